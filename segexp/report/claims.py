"""Results of claims for the terminal and as JSON, CSV and Markdown."""

import dataclasses
import json
import math
import textwrap
from collections.abc import Sequence
from typing import Any

from segexp.compare.claims import ClaimResult
from segexp.compare.formatting import MINUS, amount, limits, p_value
from segexp.compare.result import ALPHA, Comparison, OverDatasets
from segexp.records.formatting import csv_table, markdown_table, pluralize
from segexp.report.formats import WIDTH, markdown_list


def as_text(results: Sequence[ClaimResult]) -> str:
    """A paragraph per result, the warnings of the runs, and a note."""
    lines = []
    for result in results:
        row = _row(result)
        paragraph = []
        if result.found is not None:
            paragraph.append(
                f"{row['candidate']} against {row['reference']} on {row['on']}: difference {row['difference']}, "
                f"95 % {row['95 %']} for {row['speaks of']}, p {row['p']}, Holm {row['p Holm']}, {row['rests on']}"
            )
        paragraph.append(row["why, and what would decide"])
        paragraph += [f"warnings: {row['warnings']}"] if _warnings(result) else []
        lines.append(f"{result.outcome.upper()}: {result.claim.text}")
        for text in paragraph:
            lines += textwrap.wrap(text, WIDTH, initial_indent="  ", subsequent_indent="  ")
        lines.append("")
    for warning in _of_runs(results):
        lines += textwrap.wrap(f"warning: {warning}", WIDTH, subsequent_indent="  ")
    lines += [""] if _of_runs(results) else []
    return "\n".join([*lines, *textwrap.wrap(_note(results), WIDTH)]).replace(MINUS, "-") + "\n"


def as_markdown(results: Sequence[ClaimResult]) -> str:
    """A table, the warnings of the runs, and a note."""
    rows = [{_TITLES.get(key, key): value for key, value in _row(r).items()} for r in results]
    warnings = markdown_list("Warnings", _of_runs(results))
    return "\n\n".join(part.rstrip("\n") for part in (markdown_table(rows), warnings, _note(results)) if part) + "\n"


def as_csv(results: Sequence[ClaimResult]) -> str:
    """A row per result."""
    rows = [_row(result) | {"warnings of runs": "; ".join(result.of_runs) or "-"} for result in results]
    return csv_table(rows).replace(MINUS, "-")


def as_json(results: Sequence[ClaimResult]) -> str:
    """A list of results; NaN is null, values are in the metric's own unit."""
    return json.dumps([_entry(result) for result in results], indent=1, allow_nan=False) + "\n"


def _note(results: Sequence[ClaimResult]) -> str:
    """How to read the outcomes."""
    tested = [isinstance(result.found, OverDatasets) for result in results if not math.isnan(result.p)]
    single, over = tested.count(False), tested.count(True)
    if not tested:
        return "No claim could be tested."
    families = [f"the {pluralize(single, 'result')} on single data sets"] if single else []
    families += [f"the {pluralize(over, 'result')} across data sets"] if over else []
    return (
        f"Outcomes use p < {ALPHA} after Holm's adjustment over {' and, separately, '.join(families)}. "
        'The 95 % intervals are not adjusted. "to decide" assumes 80 % power at the strictest level of the adjustment.'
    )


def _of_runs(results: Sequence[ClaimResult]) -> list[str]:
    """The warnings of the runs, each once."""
    return list(dict.fromkeys(warning for result in results for warning in result.of_runs))


def _warnings(result: ClaimResult) -> list[str]:
    """The warnings of the comparison itself."""
    dropped = result.found.dropped if isinstance(result.found, Comparison) else ""
    return [*(result.found.warnings if result.found else ()), *([f"not compared: {dropped}"] if dropped else [])]


def _scope(result: ClaimResult) -> str:
    if result.found is None:
        return ""
    return result.found.scope if isinstance(result.found, Comparison) else "new data sets"


_TITLES = {"speaks of": "inference for"}
"""CSV columns with another title elsewhere: CSV keeps the names that its readers know."""


def _row(result: ClaimResult) -> dict[str, Any]:
    """The columns of the CSV file, but for the warnings of the runs."""
    metric, found = result.claim.metric, result.found
    to_decide = f"; to decide: {result.to_decide}" if result.to_decide else ""
    known = found is not None and not math.isnan(result.interval.mean)
    return {
        "claim": result.claim.text,
        "on": result.where or "-",
        "candidate": found.candidate if found else "-",
        "reference": found.reference if found else "-",
        "outcome": result.outcome,
        "difference": amount(metric, result.interval.mean) if known else "-",
        "95 %": limits(metric, result.interval) if known and not math.isnan(result.interval.low) else "-",
        "speaks of": _scope(result) or "-",
        "p": p_value(result.p),
        "p Holm": p_value(result.p_holm),
        "rests on": _sizes(result) if found else "-",
        "why, and what would decide": result.reason + to_decide,
        "warnings": "; ".join(_warnings(result)) or "-",
    }


def _sizes(result: ClaimResult) -> str:
    """5 seeds x 60 images, 1 seed x 5 folds x 60 images, or 8 data sets."""
    found = result.found
    if not isinstance(found, Comparison):
        return pluralize(len(found.differences) if found else 0, "data set")
    parts = [pluralize(found.n_seeds, "seed")]
    parts += [pluralize(n, what) for n, what in ((found.n_folds, "fold"), (found.n_images, "image")) if n]
    return " x ".join(parts)


def _entry(result: ClaimResult) -> dict[str, Any]:
    claim, found = result.claim, result.found

    def number(value: float) -> float | None:
        return value if math.isfinite(value) else None

    interval = {key: number(value) for key, value in dataclasses.asdict(result.interval).items()} if found else None
    counts = {f"n_{what}": getattr(found, f"n_{what}", 0) for what in ("seeds", "folds", "images")}
    return {
        "claim": claim.text,
        "source": claim.source,
        "line": claim.line,
        "metric": claim.metric.name,
        "margin": claim.margin,
        "outcome": result.outcome,
        "reason": result.reason,
        "where": result.where,
        "candidate": found.candidate if found else "",
        "reference": found.reference if found else "",
        "scope": _scope(result),
        "interval": interval,
        "p": number(result.p),
        "p_holm": number(result.p_holm),
        **counts,
        "n_datasets": len(found.differences) if isinstance(found, OverDatasets) else 0,
        "to_decide": result.to_decide,
        "warnings": _warnings(result),
        "warnings_of_runs": list(result.of_runs),
    }
