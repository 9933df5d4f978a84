"""`segexp show RUN_DIR`: one run at a glance."""

from collections.abc import Sequence
from pathlib import Path

from segexp.commands.shared import DONE, hidden_line, parser_of, score_rows

SHOWN = (
    "dataset.name",
    "model.name",
    "backbone.name",
    "hidden_activation.name",
    "hidden_activation.scope",
    "activation.name",
    "loss.name",
    "head.mode",
    "optimizer.name",
    "optimizer.lr",
    "scheduler.name",
    "augment.name",
    "trainer.epochs",
    "trainer.batch_size",
    "trainer.precision",
    "seed",
    "split.seed",
)
"""Keys of the configuration that `segexp show` prints."""


def command(words: Sequence[str]) -> int:
    """`segexp show RUN_DIR`."""
    parser = parser_of("show", "One run at a glance: how it ended, its configuration and its scores.")
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    parser.add_argument("--json", action="store_true", help="the run's record as JSON")
    options = parser.parse_args(list(words))

    import json

    from segexp.records import read_run
    from segexp.tables import text_table

    record = read_run(options.run_dir)
    if options.json:
        print(json.dumps(record, indent=1))
        return DONE
    config = record.get("config", {})
    print(f"run {record.get('run_id')}: {record.get('status')}  {record.get('error', '')}".rstrip())
    print(f"started {record.get('started')}, finished {record.get('finished')}, on {record.get('host')}")
    print()
    print(text_table([{"key": key, "value": config.get(key)} for key in SHOWN]))
    if record.get("summary"):
        print()
        print(text_table(score_rows(record["summary"])))
        print()
        print(hidden_line(record.get("diagnostics", {})))
    for warning in record.get("warnings", []):
        print(f"warning: {warning}")
    print(f"\nfiles: {', '.join(sorted(p.name for p in options.run_dir.iterdir() if not p.name.startswith('.')))}")
    return DONE
