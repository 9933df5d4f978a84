"""`segexp <command>`: takes its own subcommand off and imports what that command needs, nothing else."""

import importlib
import sys
from collections.abc import Callable, Sequence

import segexp
from segexp.errors import DONE, INTERRUPTED, REFUSED, UsageError
from segexp.registry import nearest

HELP = """\
segexp: which activation functions should my segmentation network use?

usage: segexp <command> [...]

commands:
  train        train and score one run, or a sweep of runs with -m
  status       how the runs of a study stand, what went wrong, when all will be over
  resume       finish what a study has begun or planned, without its command line
  collect      the tables of all runs of a study in two files: runs.csv, images.csv
  report       what the runs of a study say, as one page: answer, figures, tables, samples
  tune         the learning rate of each arm, found with the same budget, on validation
  list         what there is to choose from: activations, losses, datasets, backbones ...
  evaluate     score a finished run again: another split, threshold, resolution or data set
  curves       figures of output or hidden activation functions and their gradients
  bench        time and memory of hidden activations on this machine, beside relu's
  show         one run at a glance, in any state: configuration, curves, scores, warnings
  compare      which arm is better, how sure that is, and what it would take to know
  diff         what differs between two runs: configuration, environment, data, results
  doctor       versions, devices, what is missing and the cure
  completion   completion script for bash, zsh or fish

examples:
  segexp train activation=arctan loss=dice
  segexp train -m activation=sigmoid,arctan loss=dice,bce 'seed=range(5)'
  segexp train dataset=folder dataset.root=~/my_images trainer.epochs=20
  segexp list activations

`segexp <command> --help` says more. Exit codes: 0 done, 1 a run failed or diverged, 2 bad usage, 130 interrupted.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return DONE if words else REFUSED
    if words[0] in ("-V", "--version"):
        print(f"segexp {segexp.__version__}")
        return DONE
    if words[0] not in COMMANDS:
        visible = [name for name in COMMANDS if not name.startswith("_")]
        return _refuse(f"unknown command '{words[0]}'{nearest(words[0], visible)}")
    try:
        return COMMANDS[words[0]](words[1:])
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
    return REFUSED


def _imported(module: str, function: str = "command") -> Callable[[Sequence[str]], int]:
    """A command that is imported when it is called."""

    def call(words: Sequence[str]) -> int:
        code: int = getattr(importlib.import_module(f"segexp.commands.{module}"), function)(words)
        return code

    return call


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    name: _imported(name)
    for name in (
        "train",
        "status",
        "resume",
        "collect",
        "report",
        "tune",
        "list",
        "evaluate",
        "curves",
        "bench",
        "show",
        "compare",
        "diff",
        "doctor",
        "completion",
    )
}
COMMANDS["__complete"] = _imported("completion", "candidates")
