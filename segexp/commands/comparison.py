"""The arguments that `compare` and `report` share, and the comparison that they ask for."""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

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
        "--by",
        metavar="KEY,KEY",
        complete=CODE_GROUPS,
        help="the groups or keys of the configuration that define an arm",
    )
    parser.add_argument(
        "--reference", metavar="KEY=VALUE", complete=usual, help="the arm that the others are compared with"
    )
    parser.add_argument(
        "--where",
        metavar="KEY=VALUE",
        action="append",
        help="only runs with this value, or one of several: activation=sigmoid,arctan; can be repeated",
    )
    parser.add_argument("--metric", metavar="NAME", complete=scores, help="the score to compare (default: dice)")
    parser.add_argument(
        "--rope",
        type=float,
        metavar="WIDTH",
        help="negligible difference: in points for Dice, else in the score's unit",
    )
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
    """Key -> value of every --where KEY=VALUE[,KEY=VALUE]; a value may be several: seed=0,1,loss=dice."""
    chosen: dict[str, str] = {}
    for text in texts or ():
        for part in re.split(r",(?=[\w.]+=)", text):
            key, equals, value = part.strip().partition("=")
            if not equals or not key:
                raise UsageError(f"--where {text}: '{part}' is not KEY=VALUE")
            if chosen.get(key, value) != value:
                raise UsageError(
                    f"--where {key}={value}: no run has both this and {key}={chosen[key]}; "
                    f"to select runs with either, write {key}={chosen[key]},{value}"
                )
            chosen[key] = value
    return chosen
