"""The commands of `segexp`, one module each: `parser()` declares its arguments, `command(words)` returns an exit code.

Importing a command's module imports no large library, so that help and completion answer at once.
"""

import argparse
import importlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, NoReturn

from segexp.errors import UsageError

COMMANDS = {
    "train": "train and score one run, or a sweep of runs with -m",
    "status": "show the state of the runs of a study, their problems, and the remaining time",
    "resume": "finish the runs of a study that are pending, interrupted or failed",
    "collect": "write the tables of all runs of a study to two files: runs.csv, images.csv",
    "report": "write one HTML page with the answer, figures, tables and sample images",
    "tune": "find the learning rate of each arm on validation images, with an equal budget",
    "list": "list activations, losses, datasets, models, backbones, studies and more",
    "evaluate": "score a finished run again: another split, threshold, resolution or data set",
    "curves": "draw output or hidden activations and their gradients",
    "bench": "measure time and memory of hidden activations, relative to relu",
    "show": "summarise one run: settings, learning curves, scores, warnings",
    "compare": "test which arm is better and by how much",
    "diff": "show what differs between two runs: configuration, environment, data, results",
    "doctor": "check versions, devices and libraries, with a cure for each problem",
    "completion": "print the completion script for bash, zsh or fish",
}
"""Every command and its summary, in the order of `segexp --help`: the one place where a command is registered."""


class Overrides(NamedTuple):
    """Completes an argument as key=value; ``keys`` are the prefixes of the keys that the command accepts."""

    keys: tuple[str, ...] = ("",)


Values = Callable[[], Iterable[str]] | Iterable[str] | Overrides
"""What completion offers for an argument: words, a function that returns them, or overrides."""


class Parser(argparse.ArgumentParser):
    """The arguments of ``segexp <name>``. A mistake raises UsageError, which is reported in one line.

    Completion reads it: flags, ``choices``, and the ``complete`` of `add_argument`. An option takes several values if
    its metavar has a comma, and the shell offers paths if the metavar contains DIR, FILE, PATH or RUN.
    """

    def __init__(self, name: str, epilog: str = "") -> None:
        summary = COMMANDS[name]
        super().__init__(
            prog=f"segexp {name}",
            description=f"{summary[0].upper()}{summary[1:]}.",
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def add_argument(self, *names: str, complete: Values = (), **options: Any) -> argparse.Action:
        action = super().add_argument(*names, **options)
        action.complete = complete  # type: ignore[attr-defined]
        return action

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see `{self.prog} --help`")


def parser_of(name: str) -> Parser:
    """The parser of a command. Imports the command's module."""
    parser: Parser = importlib.import_module(f"segexp.commands.{name}").parser()
    return parser


def help_pages() -> Iterator[tuple[str, str, str]]:
    """Name, summary and full help text of every command, for the docs. The variable COLUMNS sets the width."""
    for name, summary in COMMANDS.items():
        yield name, summary, parser_of(name).format_help()
