"""Claims and what became of them, for the terminal and as JSON, CSV and Markdown."""

import dataclasses
import json
import math
import textwrap
from collections.abc import Sequence
from typing import Any

from segexp.compare.formatting import MINUS, amount, limits, p_value
from segexp.compare.judge import Judged
from segexp.compare.statistics import ALPHA
from segexp.records.formatting import csv_table, markdown_table, pluralize
from segexp.report.formats import WIDTH
from segexp.report.render import markdown_list


def as_text(judged: Sequence[Judged]) -> str:
    """A paragraph for each, for claims are sentences, and a table of sentences is hard to read."""
    lines = [line for j in judged for line in _paragraph(j)]
    for warning in _of_runs(judged):
        lines += textwrap.wrap(f"warning: {warning}", WIDTH, subsequent_indent="  ")
    lines += [""] if _of_runs(judged) else []
    return "\n".join([*lines, *textwrap.wrap(note(judged), WIDTH)]).replace(MINUS, "-") + "\n"


def as_markdown(judged: Sequence[Judged]) -> str:
    """A table, the warnings of the runs, and what must be known to read the outcomes."""
    rows = [{key: value for key, value in _row(j).items() if key != "warnings of runs"} for j in judged]
    told = markdown_list("Warnings", _of_runs(judged))
    return "\n\n".join(part.rstrip("\n") for part in (markdown_table(rows), told, note(judged)) if part) + "\n"


def as_csv(judged: Sequence[Judged]) -> str:
    """A row per judgement."""
    return csv_table([_row(j) for j in judged]).replace(MINUS, "-")


def as_json(judged: Sequence[Judged]) -> str:
    """A list of judgements; NaN is null, values in the metric's own unit."""
    return json.dumps([_entry(j) for j in judged], indent=1, allow_nan=False) + "\n"


def note(judged: Sequence[Judged]) -> str:
    """What must be known to read the outcomes together."""
    one_by_one, over = (
        sum(not math.isnan(j.p) for j in judged if bool(j.n_datasets) == several) for several in (False, True)
    )
    if not one_by_one + over:
        return "No claim could be tested."
    parts = [f"the {pluralize(one_by_one, 'claim')} judged on single data sets"] if one_by_one else []
    parts += [f"the {over} judged over data sets" if parts else f"the {pluralize(over, 'claim')} judged over data sets"]
    among = " and, by themselves, ".join(parts if over else parts[:1])
    return (
        f"Outcomes rest on p after Holm's adjustment over {among}, below {ALPHA}. Each interval is a 95 % interval by "
        "itself, not adjusted. What would decide is reckoned with 80 % power for the strictest step of the adjustment."
    )


def _of_runs(judged: Sequence[Judged]) -> list[str]:
    """The warnings of what the judgements rest on, each once."""
    return list(dict.fromkeys(warning for j in judged for warning in j.of_runs))


def _paragraph(j: Judged) -> list[str]:
    row = _row(j)
    told = []
    if j.interval is not None:
        told.append(
            f"{j.candidate} against {j.reference} on {row['on']}: difference {row['difference']}, "
            f"95 % {row['95 %']} for {row['speaks of']}, p {row['p']}, Holm {row['p Holm']}, {row['rests on']}"
        )
    told.append(row["why, and what would decide"])
    told += [f"warnings: {row['warnings']}"] if j.warnings else []
    lines = [f"{j.outcome.upper()}: {j.claim.text}"]
    for text in told:
        lines += textwrap.wrap(text, WIDTH, initial_indent="  ", subsequent_indent="  ")
    return [*lines, ""]


def _row(j: Judged) -> dict[str, Any]:
    metric, interval = j.claim.metric, j.interval
    known = interval is not None and not math.isnan(interval.mean)
    tested = interval is not None and not math.isnan(interval.low)
    return {
        "claim": j.claim.text,
        "on": j.where or "-",
        "candidate": j.candidate or "-",
        "reference": j.reference or "-",
        "outcome": j.outcome,
        "difference": amount(metric, interval.mean) if known and interval else "-",
        "95 %": limits(metric, interval) if tested and interval else "-",
        "speaks of": j.scope or "-",
        "p": p_value(j.p),
        "p Holm": p_value(j.p_holm),
        "rests on": _sizes(j) if interval else "-",
        "why, and what would decide": j.reason + (f"; to decide: {j.to_decide}" if j.to_decide else ""),
        "warnings": "; ".join(j.warnings) or "-",
        "warnings of runs": "; ".join(j.of_runs) or "-",
    }


def _sizes(j: Judged) -> str:
    """5 seeds x 60 images, with folds 1 seed x 5 folds x 60 images, or 8 data sets."""
    if j.n_datasets:
        return pluralize(j.n_datasets, "data set")
    parts = [pluralize(j.n_seeds, "seed")]
    parts += [pluralize(n, what) for n, what in ((j.n_folds, "fold"), (j.n_images, "image")) if n]
    return " x ".join(parts)


def _entry(j: Judged) -> dict[str, Any]:
    claim = j.claim

    def number(value: float) -> float | None:
        return value if math.isfinite(value) else None

    interval = dataclasses.asdict(j.interval) if j.interval else None
    return {
        "claim": claim.text,
        "source": claim.source,
        "line": claim.line,
        "metric": claim.metric.name,
        "margin": claim.margin,
        "outcome": j.outcome,
        "reason": j.reason,
        "where": j.where,
        "candidate": j.candidate,
        "reference": j.reference,
        "scope": j.scope,
        "interval": {key: number(value) for key, value in interval.items()} if interval else None,
        "p": number(j.p),
        "p_holm": number(j.p_holm),
        "n_seeds": j.n_seeds,
        "n_folds": j.n_folds,
        "n_images": j.n_images,
        "n_datasets": j.n_datasets,
        "to_decide": j.to_decide,
        "warnings": list(j.warnings),
        "warnings_of_runs": list(j.of_runs),
    }
