"""`segexp report PATH...`: the results of a comparison as one HTML page."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from segexp.commands import Parser, add_comparison_arguments, claims_of, compared
from segexp.errors import DONE

EPILOG = """\
The page shows the answer, forest plots, means and distributions of arms, heat maps, image-by-image differences,
learning curves, calibration, thresholds, ranks, tuned learning rates, diagnostics, sample predictions with their
errors, failures, and a table of all runs, with the data as CSV. It is a single file that loads nothing, so it can be
sent by mail and read offline. CSV files above 1 MB are written to <name>-data beside it.

--claims adds the outcomes of `segexp compare --claims`; --by, --reference, --metric and --rope are for the rest.
--note adds your own text: Markdown, without HTML and pictures.

examples:
  segexp report outputs/nieradzik2021
  segexp report outputs/hidden --by hidden_activation -o hidden.html
  segexp report outputs/hidden --claims nieradzik2021 --note conclusions.md
  segexp report laptop/runs.csv server/runs.csv --figures paper/figures --tables paper/tables
"""


def parser() -> Parser:
    parser = Parser("report", EPILOG)
    add = parser.add_argument
    add_comparison_arguments(parser)
    add("-o", "--out", type=Path, default=Path("report.html"), metavar="FILE", help="the page (default: report.html)")
    add("--note", type=Path, metavar="FILE", help="a section with your own text, in Markdown")
    add("--figures", type=Path, metavar="DIR", help="also write the figures as PDF, PNG and SVG")
    add("--tables", type=Path, metavar="DIR", help="also write the tables as LaTeX and Markdown")
    return parser


def command(words: Sequence[str]) -> int:
    options = parser().parse_args(list(words))

    from segexp.report.formats import claims_table
    from segexp.report.page import contents_of, note_of, refuse_foreign, write_figures, write_page, write_tables

    refuse_foreign(options.out)
    note = note_of(options.note) if options.note else None
    claims = claims_table(claims_of(options)) if options.claims else None
    result = compared(options)
    contents = replace(contents_of(result), claims=claims, note=note)
    page, *beside = write_page(options.out, contents)
    print(result.headline)
    print(f"report: {page}")
    for path in beside:
        print(f"too large to be embedded: {path}")
    if options.figures is not None:
        print(f"figures: {options.figures}, {len(write_figures(options.figures, contents))} files")
    if options.tables is not None:
        print(f"tables: {options.tables}, {len(write_tables(options.tables, contents))} files")
    return DONE
