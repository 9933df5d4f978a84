"""`segexp report PATH...`: what compare finds, as one page."""

from collections.abc import Sequence
from pathlib import Path

from segexp.commands import Parser
from segexp.commands.comparison import add_comparison_arguments, compared
from segexp.errors import DONE

EPILOG = """\
The page holds everything: answer, forest plots, heat maps, images one by one, learning curves, calibration, thresholds,
diagnostics, sample predictions, failures, a table of all runs and the data as CSV. It loads nothing, so that it can be
mailed, and read without a network. CSV files above 1 MB are written to <name>-data beside it.

examples:
  segexp report outputs/nieradzik2021
  segexp report outputs/hidden --by hidden_activation -o hidden.html
  segexp report laptop/runs.csv server/runs.csv --figures paper/figures --tables paper/tables
"""


def parser() -> Parser:
    parser = Parser("report", EPILOG)
    add_comparison_arguments(parser)
    parser.add_argument(
        "-o", "--out", type=Path, default=Path("report.html"), metavar="FILE", help="the page (default: report.html)"
    )
    parser.add_argument("--figures", type=Path, metavar="DIR", help="write the figures as PDF, PNG and SVG as well")
    parser.add_argument("--tables", type=Path, metavar="DIR", help="write the tables as LaTeX and Markdown as well")
    return parser


def command(words: Sequence[str]) -> int:
    """`segexp report PATH...`."""
    options = parser().parse_args(list(words))

    from segexp.report.material import material_of
    from segexp.report.page import contents_of
    from segexp.report.write import refuse_foreign, write_figures, write_page, write_tables

    refuse_foreign(options.out)
    result = compared(options)
    contents = contents_of(material_of(result))
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
