"""`segexp evaluate RUN_DIR`: a finished run scored again."""

from collections.abc import Sequence
from pathlib import Path

from segexp.commands import Overrides, Parser
from segexp.commands.terminal import log_to_terminal
from segexp.errors import DONE, UsageError

EPILOG = """\
Overrides are those of `segexp train` that say which data are scored and how: dataset, dataset.*, split.*, metrics.*,
trainer.device, trainer.batch_size. Nothing is fitted anew: the tuned threshold and the temperature are the run's own.

examples:
  segexp evaluate outputs/default/RUN --threshold tuned
  segexp evaluate outputs/default/RUN --split val --tta
  segexp evaluate outputs/default/RUN --dataset folder dataset.root=~/other_hospital --split all
"""


OVERRIDABLE = ("dataset", "metrics", "split", "trainer")


def parser() -> Parser:
    from segexp.config.canonical import CHOICES
    from segexp.config.presets import preset_names

    parser = Parser("evaluate", EPILOG)
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="which data, and how they are scored",
        complete=Overrides(OVERRIDABLE),
    )
    parser.add_argument(
        "--split",
        default="test",
        complete=("test", "val", "train", "all"),
        help="test (default), val, train, or all of another data set",
    )
    parser.add_argument(
        "--threshold",
        default="0.5",
        metavar="P",
        complete=("0.5", "tuned"),
        help="0.5 (default), tuned, or a probability",
    )
    parser.add_argument(
        "--dataset",
        metavar="NAME",
        complete=lambda: preset_names("dataset"),
        help="another data set with the same classes, as dataset=NAME",
    )
    parser.add_argument(
        "--resolution",
        complete=CHOICES["metrics.resolution"],
        help="native or network (default: as the run was scored)",
    )
    parser.add_argument("--tta", action="store_true", help="mean probability over the image and its mirror images")
    parser.add_argument("--config-dir", type=Path, metavar="DIR", help="a folder with configuration groups of your own")
    return parser


def command(words: Sequence[str]) -> int:
    """`segexp evaluate RUN_DIR`."""
    options = parser().parse_intermixed_args(list(words))
    log_to_terminal()

    from segexp.config.compose import readable, recorded_config
    from segexp.records import read_run
    from segexp.records.formatting import text_table
    from segexp.records.scores import result_rows
    from segexp.running.evaluate import EVALUATED_SPLITS, check_overrides, evaluate, evaluation_base

    if options.split not in EVALUATED_SPLITS:
        raise UsageError(f"--split {options.split} is not one of {', '.join(EVALUATED_SPLITS)}")
    overrides = readable(options.overrides)
    if options.dataset is not None:
        overrides.insert(0, f"dataset={options.dataset}")
    if options.resolution is not None:
        overrides.append(f"metrics.resolution={options.resolution}")
    check_overrides([text.partition("=")[0] for text in overrides])
    record = read_run(options.run_dir)
    recorded = recorded_config(options.run_dir, config_dir=options.config_dir)
    config = recorded
    if overrides:
        config = recorded_config(options.run_dir, [*evaluation_base(recorded), *overrides], options.config_dir)
    done = evaluate(options.run_dir, record, recorded, config, options.split, options.threshold, options.tta)
    if done.again:
        print("evaluated before: these are the tables that are there")
    for warning in done.warnings:
        print(f"warning: {warning}")
    print(f"{config.dataset.name}: {done.n_images} images ({options.split}), threshold {options.threshold}\n")
    print(text_table(result_rows(done.summary, options.split)))
    print(f"\ntables: {done.folder}")
    return DONE
