"""`segexp compare`: which arm is better, how sure that is, and what it would take to know."""

import sys
from collections.abc import Sequence

from segexp.commands import Parser
from segexp.commands.comparison import add_comparison_arguments, compared, names_of
from segexp.errors import DONE, UsageError

EPILOG = """\
PATH is a run directory, a study, an outputs folder, or runs.csv of `segexp collect` with images.csv beside it; several
are read together, a run that is there twice counts once.

Arms are compared on the same images and seeds, under equal conditions: whatever else varies in the configurations parts
the runs into blocks. Without --by an arm is hidden activation, output activation and loss, as far as they vary; without
--reference candidates are held against activation=sigmoid, or hidden_activation=native, at each level of the rest.

The verdict rests on a two-way t test over seeds and images with Holm's adjustment over all comparisons of a data set.
Its 95 % interval "speaks of" new images (and new seeds) where that can be had, else of these images, or new folds; the
interval for new seeds on these images stands beside it. Intervals are not adjusted, p after Holm is.

  better, worse      significant; ", negligible" where the 90 % interval lies inside +- rope as well
  equivalent         the 90 % interval lies inside +- rope
  inconclusive       neither: the column "detectable" says what this design could have found
  no test            fewer than 3 seeds, or no pairs

Second questions (--questions NAME,NAME or all): calibration, threshold, boundary, objects, convergence, cost,
diagnostics. They need run directories, not collected tables.

Claims (--claims FILE, or nieradzik2021) are sentences: "activation=arctan beats activation=sigmoid on dice by at least
1 point". Each is judged on every data set, and over several; outcomes rest on p after Holm over all of the file.
--rope is what "matches" without a size means.
"""


FORMS = {
    "json": "everything, as JSON",
    "csv": "the comparisons as CSV, in the metric's own unit; warnings on stderr",
    "markdown": "the tables as Markdown",
    "latex": "the tables as LaTeX (booktabs); warnings as comments, and on stderr",
}


def _question_names() -> list[str]:
    from segexp.compare.questions import QUESTIONS

    return [*QUESTIONS, "all"]


def _claim_files() -> list[str]:
    from segexp.config.presets import preset_names

    return preset_names("claims")


def parser() -> Parser:
    parser = Parser("compare", EPILOG)
    add_comparison_arguments(parser)
    parser.add_argument(
        "--questions", metavar="NAME,NAME", complete=_question_names, help="second questions to answer as well, or all"
    )
    parser.add_argument(
        "--claims",
        metavar="FILE",
        complete=_claim_files,
        help="judge the claims of a YAML file, or of a built-in one by name",
    )
    forms = parser.add_mutually_exclusive_group()
    for name, what in FORMS.items():
        forms.add_argument(f"--{name}", dest="form", action="store_const", const=name, help=what)
    return parser


def command(words: Sequence[str]) -> int:
    """`segexp compare PATH...`."""
    options = parser().parse_args(list(words))
    if options.claims is not None:
        from segexp.commands.claims import claims

        return claims(options)
    asked = _asked(options.questions)
    if asked and options.form == "csv":
        raise UsageError("--csv --questions: --csv is the one table of comparisons; answers come with --json")

    from segexp.compare.questions import answers_of
    from segexp.report.formats import as_csv, as_json, as_latex, as_markdown, as_text, warnings_of

    result = compared(options)
    if options.form in ("csv", "latex"):
        for warning in warnings_of(result):
            print(f"segexp: warning: {warning}", file=sys.stderr)
    if options.form == "csv":
        print(as_csv(result), end="")
        return DONE
    found = [(block, answers_of(block, asked, result.split)) for block in result.blocks]
    answers = [(block, of_block) for block, of_block in found if of_block]
    print(
        {"json": as_json, "markdown": as_markdown, "latex": as_latex}.get(options.form, as_text)(result, answers),
        end="",
    )
    return DONE


def _asked(text: str | None) -> list[str]:
    """Names of second questions. Raises UsageError for unknown ones."""
    if text is None:
        return []
    from segexp.compare.questions import QUESTIONS

    names = list(QUESTIONS) if text == "all" else names_of(text) or []
    for name in names:
        if name not in QUESTIONS:
            raise UsageError(QUESTIONS.unknown(name, [*QUESTIONS, "all"]))
    return names
