"""`segexp collect DIR`: the tables of all runs of a study in two files."""

import sys
from collections.abc import Sequence
from pathlib import Path

from segexp.commands import Parser
from segexp.errors import DONE, FAILED, printable

EPILOG = """\
runs.csv has one row per run: what it is, its scores, its state, what it was made with, its whole configuration
(config_...) and its time. images.csv has every image of every finished run. run_id joins both.

Unfinished runs have a row with their status and no scores. A finished run with missing, cut or edited tables is
reported; its status is incomplete, it has no scores, and the exit code is 1. Duplicate runs are counted once: the first
complete directory of a run is used and the others are reported.

In Python, segexp.read_collected(PATH) keeps names such as 001 or None as they are; in R, use
read.csv(PATH, colClasses = c(run_id = "character", image_id = "character", group_id = "character")).
Tables that were edited or saved by a spreadsheet are not read again: work on a copy.
"""


def parser() -> Parser:
    parser = Parser("collect", EPILOG)
    add = parser.add_argument
    add("folder", type=Path, metavar="DIR", help="an outputs folder, or one study")
    add("-o", "--out", type=Path, metavar="OUT_DIR", help="where to write (default: DIR)")
    return parser


def command(words: Sequence[str]) -> int:
    options = parser().parse_args(list(words))

    from segexp.records.collected import collect
    from segexp.records.formatting import pluralize
    from segexp.records.runs import shown_state

    out = options.out or options.folder
    collected = collect(options.folder, out)
    ordered = sorted(collected.counts.items(), key=lambda item: -item[1])
    counts = ", ".join(f"{n} {shown_state(state)}" for state, n in ordered)
    print(f"{out / 'runs.csv'}: {pluralize(sum(collected.counts.values()), 'run')} ({counts})")
    print(f"{out / 'images.csv'}: {collected.n_images} rows of {pluralize(collected.counts.get('done', 0), 'run')}")
    for line in (*collected.duplicates, *collected.notes):
        print(line)
    for line in collected.problems:
        print(printable(f"segexp: {line}"), file=sys.stderr)
    return FAILED if collected.problems else DONE
