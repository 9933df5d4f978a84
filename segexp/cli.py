"""`segexp <command>`: takes its own subcommand off and imports what that command needs, nothing else."""

import argparse
import logging
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import segexp
from segexp.catalogue import nearest
from segexp.errors import UsageError

if TYPE_CHECKING:
    from segexp.config import Config
    from segexp.launch.sweep import Job
    from segexp.running import Outcome, Prepared

DONE, FAILED, BAD_USAGE, INTERRUPTED = 0, 1, 2, 130
"""Exit codes: done; a run failed or diverged; bad usage, configuration or data; Ctrl-C."""

HELP = """\
segexp: which activation functions should my segmentation network use?

usage: segexp <command> [...]

commands:
  train        train and score one run, or a sweep of runs with -m
  list         what there is to choose from: activations, losses, datasets, backbones ...
  evaluate     score a finished run again: another split, threshold, resolution or data set
  curves       figures of activation functions, their tails and gradients
  show         one finished run at a glance
  doctor       versions, devices, what is missing and the cure
  completion   completion script for bash, zsh or fish

examples:
  segexp train activation=arctan loss=dice
  segexp train -m activation=sigmoid,arctan loss=dice,bce 'seed=range(5)'
  segexp train dataset=folder dataset.root=~/my_images trainer.epochs=20
  segexp list activations

`segexp <command> --help` says more. Exit codes: 0 done, 1 a run failed or diverged, 2 bad usage, 130 interrupted.
"""

TRAIN_EPILOG = """\
Overrides are key=value in Hydra's grammar; lists and sweeps need quotes in most shells. The groups are dataset,
model, backbone, hidden_activation, activation (output), loss, optimizer, scheduler, augment and study; everything
else is a plain key: seed, outputs, resume, head.mode, split.*, trainer.*, metrics.*. `--dry-run` prints them all.

examples:
  segexp train activation=arctan loss=dice
  segexp train activation=normal_cdf loss=bce trainer.epochs=30 optimizer.lr=1e-3
  segexp train dataset=folder dataset.root=DIR dataset.image_size=256 backbone.name=efficientnet-b0
  segexp train dataset=folder dataset.root=DIR dataset.mask_coding=index dataset.num_classes=3
  segexp train -m activation=sigmoid,arctan loss=dice,bce 'seed=range(5)' study.name=...  (one run per combination)
  segexp train --from outputs/default/RUN seed=1            (a recorded run again, with another seed)

The same configuration, seed and data are the same run: a finished one is skipped, an unfinished one is continued.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return DONE if words else BAD_USAGE
    if words[0] in ("-V", "--version"):
        print(f"segexp {segexp.__version__}")
        return DONE
    command = COMMANDS.get(words[0])
    if command is None:
        visible = [name for name in COMMANDS if not name.startswith("_")]
        return _refuse(f"unknown command '{words[0]}'{nearest(words[0], visible)}")
    try:
        return command(words[1:])
    except UsageError as error:
        return _refuse(str(error))
    except KeyboardInterrupt:
        print("\nsegexp: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader (head, less) has seen enough; Python would complain once more when it closes stdout.
        sys.stderr.close()
        return DONE
    except OSError as error:
        # A folder that cannot be made, a full disk, a file that has gone: the system's own words say it best.
        where = f": {error.filename}" if error.filename else ""
        return _refuse(f"{error.strerror or error}{where}")


def _refuse(message: str) -> int:
    print(f"segexp: {message}", file=sys.stderr)
    return BAD_USAGE


class _Parser(argparse.ArgumentParser):
    """Tells a mistake in one line, as everything else here does."""

    def error(self, message: str) -> Any:
        raise UsageError(f"{message}; see `{self.prog} --help`")


def _parser(command: str, description: str, epilog: str = "") -> argparse.ArgumentParser:
    return _Parser(
        prog=f"segexp {command}",
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def train(words: Sequence[str]) -> int:
    """`segexp train`."""
    parser = _parser("train", "Train and score one run, or with -m one run per combination of values.", TRAIN_EPILOG)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="what differs from configs/train.yaml")
    parser.add_argument("-m", "--multirun", action="store_true", help="sweep over comma-separated values")
    parser.add_argument("--from", dest="recorded", type=Path, metavar="RUN_DIR", help="repeat a recorded run")
    parser.add_argument("--config-dir", type=Path, metavar="DIR", help="a folder with configuration groups of your own")
    parser.add_argument("--dry-run", action="store_true", help="check configuration, data and network; train nothing")
    options = parser.parse_intermixed_args(list(words))
    _log_to_terminal()

    from segexp.launch.compose import compose, hydra_session, readable
    from segexp.launch.recorded import recorded_overrides

    overrides = readable(options.overrides)
    if options.recorded is not None:
        overrides = recorded_overrides(options.recorded, overrides)
    with hydra_session(options.config_dir) as extra:
        if options.multirun:
            if options.dry_run:
                raise UsageError("--dry-run checks one run: leave out -m")
            from segexp.launch.sweep import sweep

            return _report_sweep(sweep(overrides, extra, _run))
        config = compose(overrides, extra)
    if options.dry_run:
        return _dry_run(config)
    outcome = _run(config)
    _report(outcome)
    return DONE if outcome.status == "done" else FAILED


def _log_to_terminal() -> None:
    """Warnings and errors go to the terminal through tqdm, so that they do not tear its bars."""
    from tqdm import tqdm

    class Terminal(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            tqdm.write(f"segexp: {record.getMessage()}", file=sys.stderr)

    logger = logging.getLogger("segexp")
    logger.handlers.clear()
    logger.propagate = False
    logger.setLevel(logging.INFO)
    terminal = Terminal(logging.WARNING)
    logger.addHandler(terminal)


def _run(config: "Config") -> "Outcome":
    from segexp.running import execute, prepare

    prepared = prepare(config)
    _announce(prepared)
    try:
        return execute(prepared)
    except KeyboardInterrupt:
        if (prepared.run_dir / "run.json").exists():
            print(
                f"\nsegexp: interrupted; finished epochs are kept in {prepared.run_dir}, the same command continues",
                file=sys.stderr,
            )
            raise SystemExit(INTERRUPTED) from None
        raise


def _announce(prepared: "Prepared") -> None:
    config, split = prepared.config, prepared.split
    print(
        f"{config.dataset.name}: {len(split['train'])} train, {len(split['val'])} val, "
        f"{len(split['test'])} test images; {config.model.name}/{config.backbone.name}, "
        f"{config.activation.name} + {config.loss.name}, seed {config.seed}"
    )
    for warning in prepared.warnings:
        print(f"warning: {warning}")
    sys.stdout.flush()


def _dry_run(config: "Config") -> int:
    from segexp.models.build import parameter_count
    from segexp.running import config_yaml, initial_network, prepare

    prepared = prepare(config)
    print(config_yaml(config))
    _announce(prepared)
    network, device, fit = initial_network(prepared)
    print(f"{parameter_count(network):,} parameters on {device}, input {fit.size} px ({fit.how})")
    print(f"run directory: {prepared.run_dir}")
    return DONE


SCORES = (
    ("dice", "Dice, mean over images"),
    ("dice_tuned", "Dice at the tuned threshold"),
    ("iou", "IoU, mean over images"),
    ("dice_micro", "Dice, pixels pooled"),
    ("nsd", "normalised surface Dice"),
    ("hd95", "Hausdorff distance 95 %"),
    ("fp_rate_empty", "false alarms where absent"),
    ("nll", "NLL"),
    ("brier", "Brier score"),
    ("ece15", "ECE (15 bins)"),
    ("auroc", "AUROC"),
    ("ap", "average precision"),
)
"""Scores of the result table, in its order."""


SHOWN = (
    "dataset.name",
    "model.name",
    "backbone.name",
    "hidden_activation.name",
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


def _score_rows(summary: dict[str, Any], split: str = "test") -> list[dict[str, Any]]:
    return [
        {f"{split} score": label, "value": "-" if summary.get(key) is None else f"{summary[key]:.4f}", "column": key}
        for key, label in SCORES
    ]


def _report(outcome: "Outcome") -> None:
    from segexp.tables import text_table

    if outcome.skipped:
        print(f"already {outcome.status}: nothing to do (resume=restart begins again)")
    if outcome.status == "done":
        summary = {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in outcome.summary.items()}
        print()
        print(text_table(_score_rows(summary)))
        tuned = summary.get("threshold_tuned")
        unit = "above 1/2" if summary["activation"] == "identity" else "in log-odds"
        where = f"; tuned threshold {tuned:+.3g} {unit}" if tuned is not None else ""
        print(f"\nweights of epoch {summary['best_epoch']} of {summary['epochs']}, chosen on validation{where}")
    else:
        print(f"segexp: run {outcome.status}: {outcome.reason}", file=sys.stderr)
    run_dir = outcome.run_dir
    print(f"run directory: {run_dir}")
    if outcome.status == "done":
        print("  summary.csv images.csv epochs.csv bins.csv thresholds.csv timings.csv   tables")
        print("  samples.png predictions/ checkpoints/ config.yaml run.json log.txt")
    elif outcome.status == "failed":
        print(f"  {run_dir / 'traceback.txt'}")


def _report_sweep(jobs: "Sequence[Job]") -> int:
    from segexp.tables import text_table

    rows = []
    for job in jobs:
        outcome = job.outcome
        dice = outcome.summary.get("dice") if outcome else None
        rows.append(
            {
                "run": job.overrides,
                "status": "refused" if outcome is None else outcome.status + (" before" if outcome.skipped else ""),
                "test dice": "" if dice is None or math.isnan(dice) else f"{dice:.4f}",
                "directory or reason": job.refused or (outcome.reason if outcome else "") or _name(outcome),
            }
        )
    print()
    print(text_table(rows, width=140))
    done = [job.outcome for job in jobs if job.outcome]
    if done:
        print(f"study: {done[0].run_dir.parent}")
    if any(outcome.status != "done" for outcome in done):
        return FAILED
    return DONE if len(done) == len(jobs) else BAD_USAGE


def _name(outcome: "Outcome | None") -> str:
    return outcome.run_dir.name if outcome else ""


def list_command(words: Sequence[str]) -> int:
    """`segexp list KIND`."""
    from segexp.listing import BRIEF, KINDS, listed
    from segexp.tables import json_table, markdown_table, text_table

    parser = _parser("list", "What there is to choose from.", f"kinds: {', '.join(KINDS)}")
    parser.add_argument("kind", metavar="KIND", help="activations, losses, datasets ...")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="all facts, as JSON")
    form.add_argument("--markdown", action="store_true", help="all facts, as a Markdown table")
    options = parser.parse_args(list(words))
    if options.kind not in KINDS:
        raise UsageError(f"cannot list '{options.kind}'{nearest(options.kind, KINDS)}")
    rows = listed(options.kind)
    if options.json:
        print(json_table(rows))
    elif options.markdown:
        print(markdown_table(rows))
    else:
        brief = BRIEF.get(options.kind)
        print(text_table([{name: row[name] for name in brief} for row in rows] if brief else rows, width=140))
    return DONE


EVALUATE_EPILOG = """\
Overrides are those of `segexp train` that say which data are scored and how: dataset, dataset.*, split.*, metrics.*,
trainer.device, trainer.batch_size. Nothing is fitted anew: the tuned threshold and the temperature are the run's own.

examples:
  segexp evaluate outputs/default/RUN --threshold tuned
  segexp evaluate outputs/default/RUN --split val --tta
  segexp evaluate outputs/default/RUN --dataset folder dataset.root=~/other_hospital --split all
"""


def evaluate_command(words: Sequence[str]) -> int:
    """`segexp evaluate RUN_DIR`."""
    parser = _parser("evaluate", "Score a finished run again.", EVALUATE_EPILOG)
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="which data, and how they are scored")
    parser.add_argument("--split", default="test", help="test (default), val, train, or all of another data set")
    parser.add_argument("--threshold", default="0.5", metavar="P", help="0.5 (default), tuned, or a probability")
    parser.add_argument("--dataset", metavar="NAME", help="another data set with the same classes, as dataset=NAME")
    parser.add_argument("--resolution", help="native or network (default: as the run was scored)")
    parser.add_argument("--tta", action="store_true", help="mean probability over the image and its mirror images")
    parser.add_argument("--config-dir", type=Path, metavar="DIR", help="a folder with configuration groups of your own")
    options = parser.parse_intermixed_args(list(words))
    _log_to_terminal()

    from segexp.launch.compose import readable
    from segexp.launch.recorded import recorded_config
    from segexp.records import read_run
    from segexp.running.evaluate import EVALUATED_SPLITS, check_overrides, evaluate, evaluation_base
    from segexp.tables import text_table

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
    config = recorded_config(options.run_dir, [*evaluation_base(recorded), *overrides], options.config_dir)
    done = evaluate(options.run_dir, record, recorded, config, options.split, options.threshold, options.tta)
    if done.again:
        print("evaluated before: these are the tables that are there")
    for warning in done.warnings:
        print(f"warning: {warning}")
    print(f"{config.dataset.name}: {done.n_images} images ({options.split}), threshold {options.threshold}\n")
    summary = {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in done.summary.items()}
    print(text_table(_score_rows(summary, options.split)))
    print(f"\ntables: {done.folder}")
    return DONE


CURVES_EPILOG = """\
examples:
  segexp curves -o outputs.pdf
  segexp curves --output sigmoid,arctan,student_t3,normal_cdf -o tails.png
"""


def curves_command(words: Sequence[str]) -> int:
    """`segexp curves`."""
    parser = _parser("curves", "Draw activation functions: F, its slope, tails, and gradients.", CURVES_EPILOG)
    parser.add_argument("--output", metavar="NAME,...", help="output activations (default: those of the paper)")
    parser.add_argument("--hidden", metavar="NAME,...", help="hidden activations")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="FILE", help="a .png, .pdf or .svg file")
    options = parser.parse_args(list(words))

    from segexp.curves import draw_curves

    draw_curves(
        options.out,
        None if options.output is None else options.output.split(","),
        [] if options.hidden is None else options.hidden.split(","),
    )
    print(f"figure: {options.out}")
    return DONE


def doctor(words: Sequence[str]) -> int:
    """`segexp doctor`."""
    parser = _parser("doctor", "Versions, devices, what is missing and the cure.")
    parser.add_argument("--json", action="store_true", help="the findings as JSON")
    options = parser.parse_args(list(words))

    from segexp.doctor import as_rows, findings
    from segexp.tables import json_table, text_table

    found = findings()
    print(json_table(as_rows(found)) if options.json else text_table(as_rows(found), width=140))
    return FAILED if any(f.state == "bad" for f in found) else DONE


def show(words: Sequence[str]) -> int:
    """`segexp show RUN_DIR`."""
    parser = _parser("show", "One run at a glance: how it ended, its configuration and its scores.")
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
        print(text_table(_score_rows(record["summary"])))
    for warning in record.get("warnings", []):
        print(f"warning: {warning}")
    print(f"\nfiles: {', '.join(sorted(p.name for p in options.run_dir.iterdir() if not p.name.startswith('.')))}")
    return DONE


def completion(words: Sequence[str]) -> int:
    """`segexp completion SHELL`."""
    from segexp.launch.completion import SHELLS, script

    epilog = 'bash: eval "$(segexp completion bash)"   zsh: eval "$(segexp completion zsh)"   '
    epilog += "fish: segexp completion fish | source"
    parser = _parser("completion", "Print the completion script of a shell.", epilog)
    parser.add_argument("shell", metavar="bash|zsh|fish")
    options = parser.parse_args(list(words))
    if options.shell not in SHELLS:
        raise UsageError(f"unknown shell '{options.shell}'{nearest(options.shell, SHELLS)}")
    print(script(options.shell), end="")
    return DONE


def _complete(words: Sequence[str]) -> int:
    """Called by the completion scripts: the current word, then the words before it."""
    from segexp.launch.completion import complete

    current, *before = words or [""]
    print("\n".join(complete(before, current)))
    return DONE


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "train": train,
    "list": list_command,
    "evaluate": evaluate_command,
    "curves": curves_command,
    "show": show,
    "doctor": doctor,
    "completion": completion,
    "__complete": _complete,
}
