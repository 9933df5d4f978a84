"""What a report is made of as CSV, to go on with: runs, comparisons, images, in the metric's own unit."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from segexp.compare.result import Result
from segexp.records.formatting import csv_table
from segexp.report.formatting import clean, folders_of, last_name, only_names, pairs


def runs_csv(result: Result) -> str:
    """Every run with every column, values as they are recorded; of directories study/name, of paths the names."""
    return csv_table([_recorded(_without_places(run, folders_of(result))) for run in result.runs])


def _without_places(run: Mapping[str, Any], folders: Sequence[str]) -> dict[str, Any]:
    name = last_name(str(run.get("directory") or ""))
    study = last_name(str(run.get("study") or ""))
    error = only_names(str(run.get("error") or ""), folders)
    return {**run, "directory": f"{study}/{name}" if study and name else name, "error": error}


def comparisons_csv(result: Result) -> str:
    """A row per comparison, in the metric's own unit; mean to high90 are of the interval that the verdict rests on."""
    rows: list[dict[str, Any]] = []
    for block in result.blocks:
        for found in block.comparisons:
            rows.append(
                {
                    "dataset": block.dataset,
                    "conditions": pairs(block.conditions),
                    "candidate": found.candidate,
                    "reference": found.reference,
                    "metric": result.metric.name,
                    "verdict": found.verdict,
                    "scope": found.scope,
                    **{key: getattr(found.deciding, key) for key in ("mean", "se", "df", "p")},
                    "p_holm": found.p_holm,
                    **{key: getattr(found.deciding, key) for key in ("low", "high", "low90", "high90")},
                    "test_set_low": found.test_set.low,
                    "test_set_high": found.test_set.high,
                    "method": found.method,
                    "n_seeds": found.n_seeds,
                    "n_folds": found.n_folds,
                    "n_images": found.n_images,
                    "n_groups": found.n_groups,
                    "wins": found.wins,
                    "wins_low": found.wins_low,
                    "wins_high": found.wins_high,
                    "minimum_detectable": found.minimum_detectable,
                    "target": found.target,
                    "seeds_needed": found.seeds_needed,
                    "image_floor": found.image_floor,
                    "effect_size": found.effect_size,
                    "seed_correlation": found.seed_correlation,
                    **{f"variance_{key}": value for key, value in found.variance.items()},
                    "dropped": found.dropped,
                    "warnings": only_names("; ".join(found.warnings), folders_of(result)),
                    "warnings_of_block": only_names("; ".join(block.warnings), folders_of(result)),
                }
            )
    names = list(dict.fromkeys(name for row in rows for name in row))
    return csv_table([_recorded({name: row.get(name) for name in names}) for row in rows])


def images_csv(result: Result) -> str:
    """A row per comparison and image: means over seeds of candidate and reference."""
    rows = []
    for block in result.blocks:
        for found in block.comparisons:
            if found.candidate_N is None or found.reference_N is None:
                continue
            fixed = {"dataset": block.dataset, "conditions": pairs(block.conditions)}
            fixed |= {"candidate": found.candidate, "reference": found.reference, "metric": result.metric.name}
            columns = zip(found.units, found.candidate_N.tolist(), found.reference_N.tolist(), strict=True)
            rows += [
                fixed | {"image": unit, "of_candidate": round(ours, 6), "of_reference": round(theirs, 6)}
                for unit, ours, theirs in columns
            ]
    return csv_table([_recorded(row) for row in rows])


def _recorded(row: Mapping[str, Any]) -> dict[str, Any]:
    """Values as a CSV file holds them: nothing for NaN, "infinite", and text that can be written."""
    return {key: _cell(value) for key, value in row.items()}


def _cell(value: Any) -> Any:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if value == math.inf:
        return "infinite"
    return clean(value) if isinstance(value, str) else value
