"""`segexp collect DIR`: the tables of all runs of a study in two files."""

import sys
from collections.abc import Sequence
from pathlib import Path

from segexp.commands import Parser
from segexp.errors import DONE, FAILED

EPILOG = """\
runs.csv has one row a run: what it is, its scores, how it stands and what it was made with, its whole configuration
(config_...), its time. images.csv has every image of every finished run. Both are joined by run_id.

Runs that are not finished have a row with their status and no scores. A finished run that has lost rows of its tables
is named, its status is incomplete, its scores are left out, and the exit code is 1. Of several directories of one run
the first whole one counts; the others are named.

In Python `segexp.records.collected.read_collected(PATH)` keeps names such as 001 or None as they are; in R
read.csv(PATH, colClasses = c(run_id = "character", image_id = "character", group_id = "character")) does.
"""


def parser() -> Parser:
    parser = Parser("collect", EPILOG)
    parser.add_argument("folder", type=Path, metavar="DIR", help="an outputs folder, or one study")
    parser.add_argument("-o", "--out", type=Path, metavar="OUT_DIR", help="where to write (default: DIR)")
    return parser


def command(words: Sequence[str]) -> int:
    """`segexp collect DIR`."""
    options = parser().parse_args(list(words))

    from segexp.records.collected import collect

    out = options.out or options.folder
    collected = collect(options.folder, out)
    counts = ", ".join(f"{n} {status}" for status, n in sorted(collected.counts.items(), key=lambda item: -item[1]))
    print(f"{out / 'runs.csv'}: {sum(collected.counts.values())} runs ({counts})")
    print(f"{out / 'images.csv'}: {collected.n_images} rows of {collected.counts.get('done', 0)} runs")
    for line in collected.twice:
        print(line)
    for line in collected.problems:
        print(f"segexp: {line}", file=sys.stderr)
    return FAILED if collected.problems else DONE
