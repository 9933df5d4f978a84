"""`segexp compare`: which arm is better, how certain that is, and what it would take to know."""

import argparse
import pkgutil
import sys
from collections.abc import Sequence
from pathlib import Path

from segexp.commands import Parser, add_comparison_arguments, claims_of, compared, names_of
from segexp.errors import DONE, UsageError, printable

EPILOG = """\
PATH is a run directory, a study, an outputs folder, or runs.csv of `segexp collect` with images.csv beside it. Several
paths are read together; duplicate runs are counted once. Results of other programs: a table with a row per arm, seed
and image (--columns arm=model,image=case,dice=DSC), or folders of nnU-Net with summary.json. docs/foreign.md

Arms are compared on the same images and seeds under equal conditions. Any other setting that varies between runs splits
them into blocks. By default an arm is hidden activation, output activation and loss, as far as they vary (--by), and
the reference is activation=sigmoid or hidden_activation=native, at each level of the other settings (--reference, or
--reference all: every two arms).

Each verdict uses a two-way t test over seeds and images where it can. The column "inference for" says what a verdict
and its 95 % interval hold for: new seeds and new test images with this training set; only new seeds; or new training
sets, where folds or splits are compared. A second interval is for new seeds only.

Verdicts use p after Holm's adjustment over everything that the headline may report: all comparisons of all data
sets, metrics and classes of the call. From six data sets on the headline is the result across them, a family of its
own. Intervals are not adjusted. Separate calls are not adjusted for each other: asked one by one, 3 metrics give a
false verdict in 14 %, 6 in 22 % of studies in which nothing differs. So ask them together:

  segexp compare outputs/study --metric dice,nsd,ece15       several metrics; the first one is the main result
  segexp compare outputs/study --class each                  every class separately; --class 2 or --class liver: one

  better, worse      significant; ", negligible" is added when the difference also lies within +- rope
  equivalent         the difference lies within +- rope: two one-sided tests at 5 %, after Holm's adjustment. In fewer
                     than 140 images rare failures may be missed; the verdict then says how rare
  inconclusive       neither is shown; the column "detectable" shows which difference this design could have found
  no test            fewer than 3 seeds, or no pairs

Secondary analyses (--questions NAME,NAME or all): calibration, threshold, boundary, objects, classes,
convergence, cost, diagnostics, ranking, tuning. They need run directories, not collected tables.

Claims (--claims FILE, or nieradzik2021): a YAML file with one item per claim:

  claims:
    - {candidate: activation=arctan, reference: activation=sigmoid, metric: dice, relation: better, margin: 1 point}

Each claim is evaluated on every data set and, where there are several, over all of them. Outcomes use p after Holm's
adjustment over the whole file. --rope is the margin of "equivalent" where a claim has none.
"""


FORMS = {
    "json": "everything, as JSON",
    "csv": "the comparisons on each data set as CSV, in the metric's own unit; warnings on stderr",
    "markdown": "the tables as Markdown",
    "latex": "the tables as LaTeX (booktabs); warnings as comments, and on stderr",
}


def _question_names() -> list[str]:
    """Without importing them: each is a module."""
    folder = Path(__file__).parent.parent / "compare" / "questions"
    return [*(module.name for module in pkgutil.iter_modules([str(folder)])), "all"]


def parser() -> Parser:
    parser = Parser("compare", EPILOG)
    add_comparison_arguments(parser)
    add = parser.add_argument
    analyses = "secondary analyses to add, or all"
    add("--questions", metavar="NAME,NAME", complete=_question_names, help=analyses)
    forms = parser.add_mutually_exclusive_group()
    for name, what in FORMS.items():
        forms.add_argument(f"--{name}", dest="form", action="store_const", const=name, help=what)
    return parser


def command(words: Sequence[str]) -> int:
    options = parser().parse_args(list(words))
    return _claims(options) if options.claims is not None else _comparison(options)


def _comparison(options: argparse.Namespace) -> int:
    questions = _questions(options.questions)
    if questions and options.form == "csv":
        raise UsageError("--csv --questions: --csv is only the table of comparisons; use --json for secondary analyses")

    from segexp.records.foreign import is_foreign
    from segexp.report.formats import as_json, as_latex, as_markdown, as_text, comparisons_csv, warnings_of

    result = compared(options)
    if questions and (options.columns or is_foreign(options.paths[0])):
        raise UsageError("--questions: secondary analyses need our run directories; leave it out for other results")
    if options.form in ("csv", "latex"):
        for warning in warnings_of(result):
            print(printable(f"segexp: warning: {warning}"), file=sys.stderr)
    if options.form == "csv":
        if any(one.over_datasets for one in (result, *result.others)):
            there = "--json has them, and datasets.csv of a report"
            print(f"segexp: warning: results across data sets are not in this table: {there}", file=sys.stderr)
        print(comparisons_csv(result), end="")
        return DONE
    answers = []
    if questions:
        from segexp.compare.questions import answers_of

        asked = questions, result.split, result.metric, result.loaded
        answers = [(block, found) for block in result.blocks if (found := answers_of(block, *asked))]
    printed = {"json": as_json, "markdown": as_markdown, "latex": as_latex}.get(options.form, as_text)
    print(printed(result, answers), end="")
    return DONE


def _questions(text: str | None) -> list[str]:
    """Names of secondary analyses. Raises UsageError for unknown ones."""
    if text is None:
        return []
    from segexp.compare.questions import QUESTIONS

    names = list(QUESTIONS) if text == "all" else names_of(text) or []
    for name in names:
        if name not in QUESTIONS:
            raise UsageError(QUESTIONS.unknown(name, [*QUESTIONS, "all"]))
    return names


def _claims(options: argparse.Namespace) -> int:
    """Evaluate a file of claims, and nothing else."""
    from segexp.report.formats import claims_csv, claims_json, claims_markdown, claims_text

    for name in ("by", "reference", "questions", "metric", "class"):
        if getattr(options, "class_" if name == "class" else name) is not None:
            raise UsageError(f"--{name} and --claims: each claim says what it compares; leave --{name} out")
    if options.form == "latex":
        raise UsageError("--claims --latex: claims have no LaTeX form; use --markdown, --csv, --json or none of them")
    results = claims_of(options, options.rope)
    printed = {"json": claims_json, "csv": claims_csv, "markdown": claims_markdown}.get(options.form, claims_text)
    print(printed(results), end="")
    return DONE
