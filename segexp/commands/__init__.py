"""The commands of `segexp`, one module each: `parser()` declares its arguments, `command(words)` returns an exit code.

Importing a command's module imports no large library, so that help and completion answer at once.
"""

import argparse
from typing import NoReturn

from segexp.errors import UsageError

COMMANDS = {
    "train": "train and score one run, or a sweep of runs with -m",
    "status": "show the state of the runs of a study, their problems, and the remaining time",
    "resume": "finish the runs of a study that are pending, interrupted or failed",
    "collect": "write the tables of all runs of a study to two files: runs.csv, images.csv",
    "report": "write one HTML page with the answer, figures, tables and sample images",
    "tune": "find the learning rate of each arm on validation images, with an equal budget",
    "list": "list activations, losses, datasets, models, backbones, studies ...",
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


class Parser(argparse.ArgumentParser):
    """The arguments of ``segexp <name>``. A mistake raises UsageError, which is reported in one line."""

    def __init__(self, name: str, epilog: str = "") -> None:
        summary = COMMANDS[name]
        super().__init__(
            prog=f"segexp {name}",
            description=f"{summary[0].upper()}{summary[1:]}.",
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see `{self.prog} --help`")
