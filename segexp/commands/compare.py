"""`segexp compare`: which arm is better, how sure that is, and what it would take to know."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segexp.commands.shared import parser_of
from segexp.errors import DONE, UsageError

if TYPE_CHECKING:
    import argparse

    from segexp.compare.result import Answer, Block, Result
    from segexp.report.tables import Table

WIDTH = 150

TOLD = ("segexp", "numpy", "scipy")
"""Whose versions the terminal shows: they decide the numbers. --json has the others."""

MOST_ROWS = 40
"""Runs without a score that the terminal shows; the warnings count all of them."""

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
"""


def add_questions_of_compare(parser: "argparse.ArgumentParser") -> None:
    """What is compared with what: the arguments that compare and report share."""
    parser.add_argument("paths", type=Path, nargs="+", metavar="PATH", help="run directories, studies, collected CSVs")
    parser.add_argument("--by", metavar="KEY,KEY", help="what makes an arm: groups or keys of the configuration")
    parser.add_argument("--reference", metavar="KEY=VALUE", help="what the others are held against")
    parser.add_argument(
        "--where", metavar="KEY=VALUE", action="append", help="only runs with this value; may be repeated"
    )
    parser.add_argument("--metric", default="dice", metavar="NAME", help="the score that is compared (default: dice)")
    parser.add_argument("--rope", type=float, metavar="WIDTH", help="what is negligible: points of Dice, else the unit")
    parser.add_argument("--split", default="test", metavar="NAME", help="test (default) or val")


def compared(options: "argparse.Namespace") -> "Result":
    """The comparison that these arguments ask for."""
    from segexp.compare.verdict import compare

    return compare(
        options.paths,
        metric=options.metric,
        by=names_of(options.by),
        reference=options.reference,
        rope=options.rope,
        split=options.split,
        where=pairs_of(options.where),
    )


def command(words: Sequence[str]) -> int:
    """`segexp compare PATH...`."""
    parser = parser_of("compare", "Which arm is better, and how sure that is.", EPILOG)
    add_questions_of_compare(parser)
    parser.add_argument("--questions", metavar="NAME,NAME", help="second questions to answer as well, or all")
    parser.add_argument(
        "--claims", metavar="FILE", help="judge the claims of a YAML file, or of a built-in one by name"
    )
    form = parser.add_mutually_exclusive_group()
    for name, what in (
        ("json", "everything, as JSON"),
        ("csv", "the comparisons as CSV, in the metric's own unit"),
        ("markdown", "the tables as Markdown"),
        ("latex", "the tables as LaTeX (booktabs)"),
    ):
        form.add_argument(f"--{name}", dest="form", action="store_const", const=name, help=what)
    options = parser.parse_args(list(words))
    if options.claims is not None:
        return _claims(options)
    asked = _asked(options.questions)
    if asked and options.form == "csv":
        raise UsageError("--csv --questions: --csv is the one table of comparisons; answers come with --json")

    result = compared(options)
    answers = answers_of(result, asked) if asked else []
    print(
        {"json": as_json, "csv": as_csv, "markdown": as_markdown, "latex": as_latex}.get(options.form, as_text)(
            result, answers
        ),
        end="",
    )
    return DONE


def names_of(text: str | None) -> list[str] | None:
    return [part.strip() for part in text.split(",") if part.strip()] if text else None


def pairs_of(texts: Sequence[str] | None) -> dict[str, str]:
    """--where KEY=VALUE[,KEY=VALUE]."""
    import re

    chosen: dict[str, str] = {}
    for text in texts or ():
        for part in re.split(r",(?=[\w.]+=)", text):
            key, equals, value = part.strip().partition("=")
            if not equals or not key:
                raise UsageError(f"--where {text}: '{part}' is not KEY=VALUE")
            if chosen.get(key, value) != value:
                raise UsageError(
                    f"--where {key}={value}: {key}={chosen[key]} is asked for as well, and no run has both"
                )
            chosen[key] = value
    return chosen


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


def answers_of(result: "Result", names: Sequence[str]) -> "list[tuple[Block, list[Answer]]]":
    """The second questions answered in every block whose run directories are at hand."""
    from segexp.compare.questions import ask

    found = []
    for block in result.blocks:
        arms = {arm.arm: [Path(directory) for directory in arm.directories] for arm in block.ranking if arm.directories}
        if arms:
            found.append((block, ask(names, arms, result.split)))
    return found


Answers = Sequence[tuple["Block", "list[Answer]"]]


def as_text(result: "Result", answers: Answers) -> str:
    """For the terminal."""
    import textwrap

    from segexp.report.words import notes_of
    from segexp.tables import counted

    lines = textwrap.wrap(result.headline, WIDTH)
    lines += [""] if result.warnings else []
    for warning in result.warnings:
        lines += textwrap.wrap(f"warning: {warning}", WIDTH, subsequent_indent="  ")
    for block in result.blocks:
        lines += ["", f"== {block.title}"]
        for table in tables_of(result, block):
            lines += ["", *_titled(table)]
        notes = notes_of(block)
        lines += [""] if notes else []
        for warning in notes:
            lines += textwrap.wrap(f"warning: {warning}", WIDTH, subsequent_indent="  ")
        for of_block, found in answers:
            if of_block is block:
                for answer in found:
                    lines += ["", *_titled(_answer_table(answer, ""))]
                    for note in answer.notes:
                        lines += textwrap.wrap(f"note: {note}", WIDTH, subsequent_indent="  ")
    for table in tables_over_all(result, with_reason=True):
        lines += ["", *_titled(table)]
    lines += [
        "",
        f"{counted(result.n_runs, 'run')} read; negligible: {_rope(result)}; empty masks: {result.empty_policy}",
    ]
    versions = result.provenance.get("compared with", {})
    told = [f"{name} {versions[name]}" for name in TOLD if name in versions]
    lines += [f"compared with {', '.join(told)}"] if told else []
    return "\n".join(lines) + "\n"


def _rope(result: "Result") -> str:
    from segexp.compare.headline import amount

    rope = result.metric.rope
    return (
        "not defined for this metric (--rope)" if math.isnan(rope) else f"within {amount(rope, result.metric, False)}"
    )


def _titled(table: "Table") -> list[str]:
    from segexp.report.render import text

    return text(table, WIDTH)


def tables_of(result: "Result", block: "Block") -> "list[Table]":
    """Ranking, comparisons, and what crossing two factors shows; their names are told apart over all blocks."""
    from segexp.report.tables import comparisons, crossed, interactions, ranking

    name, metric = _name(result, block), result.metric
    tables = [ranking(block, metric, f"{name}ranking"), *comparisons(block, metric, f"{name}comparisons")]
    for n, factorial in enumerate(block.factorials):
        number = f"-{n + 1}" if len(block.factorials) > 1 else ""
        tables.append(crossed(factorial, metric, f"{name}crossed{number}", block.title))
        if factorial.interactions:
            tables.append(interactions(factorial, metric, f"{name}interactions{number}", block.title))
    return tables


def _name(result: "Result", block: "Block") -> str:
    """What the names of a block's tables begin with: its number, where there are several."""
    (n,) = [n for n, other in enumerate(result.blocks) if other is block]
    return f"{n + 1}-" if len(result.blocks) > 1 else ""


def tables_over_all(result: "Result", with_reason: bool = False) -> "list[Table]":
    """Over data sets, and what has no score; with_reason: only what says why, for a plan's runs would fill a screen."""
    import dataclasses

    from segexp.report.tables import over_datasets, unscored

    if with_reason:
        result = dataclasses.replace(result, unscored=tuple(u for u in result.unscored if u.reason)[:MOST_ROWS])

    tables = [over_datasets(result.over_datasets, result.metric, "over_datasets")] if result.over_datasets else []
    return [*tables, *([unscored(result, "unscored")] if result.unscored else [])]


def _answer_table(answer: "Answer", name: str, where: str = "") -> "Table":
    from segexp.report.answers import answer as table_of

    return table_of(answer, f"{name}{answer.name}", where)


def as_json(result: "Result", answers: Answers) -> str:
    """Everything but the values of single images; NaN is null, and what is infinite the word."""
    import dataclasses
    import json

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            skipped = ("units", "candidate_N", "reference_N")
            return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value) if f.name not in skipped}
        if isinstance(value, dict):
            return {str(key): plain(v) for key, v in value.items()}
        if isinstance(value, list | tuple):
            return [plain(v) for v in value]
        if isinstance(value, float) and not math.isfinite(value):
            return None if math.isnan(value) else "infinite" if value > 0 else "-infinite"
        return value

    content = plain(result)
    content["questions"] = [{"block": block.title, "answers": plain(found)} for block, found in answers]
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def as_csv(result: "Result", answers: Answers) -> str:
    """A row per comparison."""
    from segexp.report.export import comparisons_csv

    return comparisons_csv(result)


def _all_tables(result: "Result", answers: Answers) -> "list[Table]":
    """In their order, for LaTeX."""
    tables = [table for block in result.blocks for table in tables_of(result, block)]
    for block, found in answers:
        tables += [_answer_table(answer, _name(result, block), block.title) for answer in found]
    return [*tables, *tables_over_all(result)]


def as_markdown(result: "Result", answers: Answers) -> str:
    """The answer, the warnings, the tables, and what is to know of each block."""
    from segexp.report.render import markdown, markdown_list
    from segexp.report.words import notes_of

    parts = [f"{result.headline}\n", markdown_list("Warnings", result.warnings)]
    for block in result.blocks:
        of_block = [answer for other, found in answers if other is block for answer in found]
        parts += [markdown(table) for table in tables_of(result, block)]
        parts.append(markdown_list(f"Warnings: {block.title}", notes_of(block)))
        for answer in of_block:
            parts.append(markdown(_answer_table(answer, _name(result, block), block.title)))
            parts.append(markdown_list("", answer.notes))
    parts += [markdown(table) for table in tables_over_all(result)]
    return "\n".join(part for part in parts if part)


def as_latex(result: "Result", answers: Answers) -> str:
    """The tables."""
    from segexp.report.render import latex

    return "\n".join(latex(table) for table in _all_tables(result, answers))


def _claims(options: Any) -> int:
    """`--claims`: every claim of a file against the runs. A claim names its own arms, metric and conditions."""
    import json
    import textwrap

    from segexp.compare.judge import json_form, judge_claims, note, table_rows
    from segexp.compare.verdict import compare
    from segexp.launch.presets import preset_file
    from segexp.tables import csv_table, markdown_table

    given = {"--by": options.by, "--reference": options.reference, "--questions": options.questions}
    for name, value in given.items():
        if value is not None:
            raise UsageError(f"{name} and --claims: a claim says itself what it compares; leave {name} out")
    chosen = pairs_of(options.where)

    def asked(**of_claim: Any) -> "Result":
        of_claim["where"] = {**chosen, **of_claim["where"]}
        return compare(options.paths, rope=options.rope, split=options.split, **of_claim)

    judged = judge_claims(preset_file("claims", options.claims), asked)
    rows = table_rows(judged)
    if options.form == "json":
        print(json.dumps(json_form(judged), indent=1, allow_nan=False))
    elif options.form == "csv":
        print(csv_table(rows), end="")
    elif options.form == "latex":
        raise UsageError("--claims --latex: claims are told as text, --json, --csv or --markdown")
    elif options.form == "markdown":
        print(f"{markdown_table(rows)}\n\n{note(judged)}")
    else:
        for row in rows:
            print("\n".join(_one(row)))
        print(textwrap.fill(note(judged), WIDTH))
    return DONE


def _one(row: dict[str, Any]) -> list[str]:
    """A judgement as a paragraph: claims are sentences, and a table of sentences is hard to read."""
    import textwrap

    lines = [f"{row['outcome'].upper()}: {row['claim']}"]
    measured = (
        f"on {row['on']}: difference {row['difference']}, 95 % {row['95 %']} for {row['speaks of']}, p {row['p']}, "
        f"Holm {row['p Holm']}, {row['seeds x images']} (seeds x images)"
    )
    told = [measured] if row["seeds x images"] != "-" else []
    told.append(row["why, and what would decide"])
    told += [f"warnings: {row['warnings']}"] if row["warnings"] != "-" else []
    for text in told:
        lines += textwrap.wrap(text, WIDTH, initial_indent="  ", subsequent_indent="  ")
    return [*lines, ""]
