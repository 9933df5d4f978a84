"""What commands share: exit codes, the parser, the terminal."""

import argparse
import logging
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segexp.commands import Parser
from segexp.errors import UsageError

if TYPE_CHECKING:
    from segexp.compare.result import Result


def add_comparison_arguments(parser: Parser) -> None:
    """The arguments that compare and report share: which runs, arms and score."""
    from segexp.compare.blocks import USUAL_REFERENCE
    from segexp.config import CODE_GROUPS
    from segexp.records.scores import SCORES, SPLITS

    scores = [score.name for score in SCORES.values() if score.compared]
    usual = [f"{key}={level}" for key, level in USUAL_REFERENCE.items()]
    parser.add_argument("paths", type=Path, nargs="+", metavar="PATH", help="run directories, studies, collected CSVs")
    parser.add_argument(
        "--by", metavar="KEY,KEY", complete=CODE_GROUPS, help="what makes an arm: groups or keys of the configuration"
    )
    parser.add_argument("--reference", metavar="KEY=VALUE", complete=usual, help="what the others are held against")
    parser.add_argument(
        "--where",
        metavar="KEY=VALUE",
        action="append",
        help="only runs with this value, or one of several: activation=sigmoid,arctan; may be repeated",
    )
    parser.add_argument("--metric", metavar="NAME", complete=scores, help="the score that is compared (default: dice)")
    parser.add_argument("--rope", type=float, metavar="WIDTH", help="what is negligible: points of Dice, else the unit")
    parser.add_argument("--split", default="test", metavar="NAME", complete=SPLITS, help="test (default) or val")


def compared(options: argparse.Namespace) -> "Result":
    """The comparison that these arguments ask for."""
    from segexp.compare.verdict import compare

    return compare(
        options.paths,
        metric="dice" if options.metric is None else options.metric,
        by=names_of(options.by),
        reference=options.reference,
        rope=options.rope,
        split=options.split,
        where=pairs_of(options.where),
    )


def names_of(text: str | None) -> list[str] | None:
    return [part.strip() for part in text.split(",") if part.strip()] if text else None


def pairs_of(texts: Sequence[str] | None) -> dict[str, str]:
    """--where KEY=VALUE[,KEY=VALUE], where a value may be several: seed=0,1,loss=dice."""
    chosen: dict[str, str] = {}
    for text in texts or ():
        for part in re.split(r",(?=[\w.]+=)", text):
            key, equals, value = part.strip().partition("=")
            if not equals or not key:
                raise UsageError(f"--where {text}: '{part}' is not KEY=VALUE")
            if chosen.get(key, value) != value:
                raise UsageError(
                    f"--where {key}={value}: {key}={chosen[key]} is asked for as well, and no run has both; "
                    f"for runs with either: {key}={chosen[key]},{value}"
                )
            chosen[key] = value
    return chosen


def log_to_terminal() -> None:
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


class _Unbreakable:
    """A stream whose reader may go away, or whose disk may be full: what is written to it then is lost, and no more."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return int(self._stream.write(text))
        except OSError:
            self._lose()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            self._lose()

    def _lose(self) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)


@contextmanager
def going_on_without_reader() -> Iterator[None]:
    """A night's work does not end because nobody reads what it prints any more (`| head`, a lost `tee`)."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _Unbreakable(sys.stdout), _Unbreakable(sys.stderr)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before


def hidden_line(diagnostics: Mapping[str, Any]) -> str:
    """What the hidden activations of a finished run did on the validation images, from ``diagnostics`` of run.json."""

    def shown(key: str, form: str) -> str:
        return "-" if diagnostics.get(key) is None else format(diagnostics[key], form)

    return (
        f"hidden units on validation: {shown('dead_output', '.1%')} dead (output 0), "
        f"{shown('dead_gradient', '.1%')} dead (gradient 0), {shown('saturated', '.1%')} of inputs saturated; "
        f"gradient of the first layer over the last {shown('gradient_ratio', '.3g')}, "
        f"of the weakest {shown('gradient_weakest', '.2g')}"
    )
