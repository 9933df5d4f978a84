"""What compare found, for the terminal and as JSON, CSV, Markdown and LaTeX.

``answers``: the second questions that were asked, for each block whose run directories are at hand.
"""

import dataclasses
import json
import math
import textwrap
from collections.abc import Sequence
from typing import Any

from segexp.compare.formatting import MINUS, amount
from segexp.compare.result import Answer, Block, Metric, Result
from segexp.records.formatting import pluralize
from segexp.report.answers import answer as answer_table
from segexp.report.export import comparisons_csv
from segexp.report.formatting import clean, notes_of
from segexp.report.render import latex, markdown, markdown_list, text
from segexp.report.tables import Table, comparisons, crossed, interactions, over_datasets, ranking, unscored

WIDTH = 150

TOLD = ("segexp", "numpy", "scipy")
"""Whose versions the terminal shows: they decide the numbers. JSON has the others."""

MOST_ROWS = 40
"""Runs without a score that the terminal shows; the warnings count all of them."""

Answers = Sequence[tuple[Block, Sequence[Answer]]]


def as_text(result: Result, answers: Answers) -> str:
    """For the terminal."""
    lines = textwrap.wrap(result.headline, WIDTH)
    lines += [""] if result.warnings else []
    for warning in result.warnings:
        lines += textwrap.wrap(f"warning: {warning}", WIDTH, subsequent_indent="  ")
    for block in result.blocks:
        lines += ["", f"== {block.title}"]
        for table in _of_block(result, block):
            lines += ["", *text(table, WIDTH)]
        notes = notes_of(block)
        lines += [""] if notes else []
        for warning in notes:
            lines += textwrap.wrap(f"warning: {warning}", WIDTH, subsequent_indent="  ")
        for found in _asked_of(block, answers):
            lines += ["", *text(answer_table(found, found.name), WIDTH)]
            for note in found.notes:
                lines += textwrap.wrap(f"note: {note}", WIDTH, subsequent_indent="  ")
    why_known = tuple(u for u in result.unscored if u.reason)[:MOST_ROWS]  # a plan's runs would fill a screen
    for table in _over_all(dataclasses.replace(result, unscored=why_known)):
        lines += ["", *text(table, WIDTH)]
    runs, policy = pluralize(result.n_runs, "run"), result.empty_policy
    lines += ["", f"{runs} read; negligible: {_rope(result.metric)}; empty masks: {policy}"]
    versions = result.provenance.get("compared with", {})
    told = [f"{name} {versions[name]}" for name in TOLD if name in versions]
    lines += [f"compared with {', '.join(told)}"] if told else []
    # To be searched and copied: the minus of a keyboard.
    return "\n".join(lines).replace(MINUS, "-") + "\n"


def as_json(result: Result, answers: Answers) -> str:
    """Everything but the values of single images; NaN is null, and what is infinite the word."""
    content = _plain(result)
    content["questions"] = [{"block": block.title, "answers": _plain(found)} for block, found in answers]
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def as_csv(result: Result) -> str:
    """A row per comparison."""
    return comparisons_csv(result)


def as_markdown(result: Result, answers: Answers) -> str:
    """The answer, the warnings, the tables, and what is to know of each block."""
    parts = [f"{result.headline}\n", markdown_list("Warnings", result.warnings)]
    for block in result.blocks:
        parts += [markdown(table) for table in _of_block(result, block)]
        parts.append(markdown_list(f"Warnings: {block.title}", notes_of(block)))
        for found in _asked_of(block, answers):
            parts.append(markdown(answer_table(found, f"{_name(result, block)}{found.name}", block.title)))
            parts.append(markdown_list("", found.notes))
    parts += [markdown(table) for table in _over_all(result)]
    return "\n".join(part for part in parts if part)


def as_latex(result: Result, answers: Answers) -> str:
    """The tables, below the warnings as comments."""
    tables = [table for block in result.blocks for table in _of_block(result, block)]
    for block, of_block in answers:
        tables += [answer_table(found, f"{_name(result, block)}{found.name}", block.title) for found in of_block]
    comments = [f"% warning: {clean(warning)}\n" for warning in warnings_of(result)]
    return "\n".join(["".join(comments), *map(latex, [*tables, *_over_all(result)])]).lstrip("\n")


def warnings_of(result: Result) -> list[str]:
    """Every warning, those of a block with its name where there are several: for the forms that have no room for
    them."""
    several = len(result.blocks) > 1
    of_blocks = [f"{block.title}: {n}" if several else n for block in result.blocks for n in notes_of(block)]
    return [*result.warnings, *of_blocks]


def _of_block(result: Result, block: Block) -> list[Table]:
    """Ranking, comparisons, and what crossing two factors shows; their names are told apart over all blocks."""
    name, metric = _name(result, block), result.metric
    tables = [ranking(block, metric, f"{name}ranking"), *comparisons(block, metric, f"{name}comparisons")]
    for n, factorial in enumerate(block.factorials):
        number = f"-{n + 1}" if len(block.factorials) > 1 else ""
        tables.append(crossed(factorial, metric, f"{name}crossed{number}", block.title))
        if factorial.interactions:
            tables.append(interactions(factorial, metric, f"{name}interactions{number}", block.title))
    return tables


def _over_all(result: Result) -> list[Table]:
    """Over data sets, and what has no score."""
    tables = [over_datasets(result.over_datasets, result.metric, "over_datasets")] if result.over_datasets else []
    return [*tables, *([unscored(result, "unscored")] if result.unscored else [])]


def _asked_of(block: Block, answers: Answers) -> list[Answer]:
    return [answer for other, found in answers if other is block for answer in found]


def _name(result: Result, block: Block) -> str:
    """What the names of a block's tables begin with: its number, where there are several."""
    (n,) = [n for n, other in enumerate(result.blocks) if other is block]
    return f"{n + 1}-" if len(result.blocks) > 1 else ""


def _rope(metric: Metric) -> str:
    unknown = math.isnan(metric.rope)
    return "not defined for this metric (--rope)" if unknown else f"within {amount(metric, metric.rope, signed=False)}"


def _plain(value: Any) -> Any:
    """What strict JSON can hold."""
    if dataclasses.is_dataclass(value):
        skipped = ("units", "candidate_N", "reference_N")
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value) if f.name not in skipped}
    if isinstance(value, dict):
        return {str(key): _plain(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else "infinite" if value > 0 else "-infinite"
    return value
