"""Do dead and saturated units, or gradients that vanish, go with the score?"""

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from segexp.compare.formatting import signed
from segexp.compare.questions import question
from segexp.compare.questions.reading import BANDS, Reading, band_over_runs, drawn, mean_and_sd, points_of
from segexp.compare.result import Answer, Panel
from segexp.records.runs import Run

SHARES = ("dead_output", "dead_gradient", "saturated")

AGAINST_DICE = {
    "dead_output": "dead units (share)",
    "saturated": "saturated inputs (share)",
    "gradient_ratio": "gradient, first to last call site",
}
"""Measures of run.json that are laid against Dice, with their label."""

BY_DEPTH = {
    "dead_output": ("Dead units by depth", "dead units (share)"),
    "saturated": ("Saturated inputs by depth", "saturated inputs (share)"),
    "grad_norm": ("Gradient by depth", "gradient norm"),
}
"""Columns of diagnostics.csv that are drawn over depth."""

ENOUGH = 6
"""Runs from which on a rank correlation is told."""


TITLES = {
    "dead_output": "dead units (%)",
    "dead_gradient": "units without gradient (%)",
    "saturated": "saturated inputs (%)",
    "gradient_ratio": "gradient, first to last call site",
    "spearman_dead": "rank correlation of dead units and Dice",
}
"""Column of a row -> title with its unit."""


@question
def diagnostics(arms: Mapping[str, Sequence[Path]], split: str = "test") -> Answer:
    """Shares of dead and saturated units and the ratio of gradients, beside Dice, for each arm, run and depth.

    Measured on the validation images with the selected weights. Rows: mean and sd over runs, but gradient_ratio:
    geometric mean, before the first hidden activation over before the last one. spearman_dead: rank correlation of the
    dead share with Dice over the arm's runs, NaN below `ENOUGH` or where one of them does not vary.
    """
    reading = Reading(arms, split)
    scores = reading.scores("dice")
    measured: dict[str, dict[str, list[float]]] = {}
    rows = []
    for arm, runs in reading.runs.items():
        names = (*SHARES, "gradient_ratio")
        measured[arm] = {name: [_measure(run, name) for run in runs] for name in names}
        for run, *values in zip(runs, *measured[arm].values(), strict=True):
            absent = [name for name, value in zip(names, values, strict=True) if math.isnan(value)]
            if absent:
                reading.note(f"no {', '.join(absent)} in run.json", run)
        row: dict[str, Any] = {"arm": arm, "n_runs": len(runs)}
        for name in SHARES:
            row |= mean_and_sd(name, measured[arm][name])
        row["gradient_ratio"] = _geometric_mean(measured[arm]["gradient_ratio"])
        row |= mean_and_sd("dice", scores[arm]["dice"])
        row["spearman_dead"], _ = _spearman(measured[arm]["dead_output"], scores[arm]["dice"])
        rows.append(row)
    panels = [
        Panel(
            name=f"{name}_score",
            title=f"Dice against {label.split(' (')[0]}, a point a run",
            x_label=label,
            y_label="Dice",
            curves=tuple(points_of(arm, known[name], scores[arm]["dice"]) for arm, known in measured.items()),
            kind="points",
            log_x=name == "gradient_ratio",
            y_points=True,
        )
        for name, label in AGAINST_DICE.items()
    ]
    depths = reading.tables("diagnostics", ("depth", *BY_DEPTH), "no hidden activation was looked at", probe="val")
    for name, (title, label) in BY_DEPTH.items():
        lines = {arm: [frame.groupby("depth")[name].mean() for _, frame in found] for arm, found in depths.items()}
        curves = tuple(band_over_runs(arm, known) for arm, known in lines.items())
        panels.append(
            Panel(f"{name}_depth", title, "call site, from the input", label, curves, log_y=name == "grad_norm")
        )
    notes = [*_correlations(measured, scores), BANDS, *reading.notes()]
    return Answer("diagnostics", "Hidden activations", tuple(rows), drawn(panels), tuple(notes), TITLES)


def _measure(run: Run, name: str) -> float:
    value = run.record.get("diagnostics", {}).get(name)
    return math.nan if value is None else float(value)


def _geometric_mean(ratios: Sequence[float]) -> float:
    """Ratios spread over decades, in both directions; one that is 0 makes it 0."""
    known = [ratio for ratio in ratios if not math.isnan(ratio)]
    return statistics.geometric_mean(known) if known and min(known) > 0 else 0.0 if known else math.nan


def _correlations(
    measured: Mapping[str, Mapping[str, Sequence[float]]], scores: Mapping[str, Mapping[str, Sequence[float]]]
) -> list[str]:
    dice = [value for arm in measured for value in scores[arm]["dice"]]
    told = []
    for name, label in AGAINST_DICE.items():
        rho, n = _spearman([value for known in measured.values() for value in known[name]], dice)
        if not math.isnan(rho):
            told.append(f"{label.removesuffix(' (share)')} {signed(rho)} (n = {n})")
    if not told:
        return []
    return [
        f"Rank correlation (Spearman) with Dice over all runs: {', '.join(told)}. Runs of an arm have much in common, "
        "so this is no test, and what goes together need not be cause and effect."
    ]


def _spearman(x: Sequence[float], y: Sequence[float]) -> tuple[float, int]:
    """Spearman's rank correlation and the pairs it is of; NaN where there are few or one does not vary."""
    from scipy.stats import spearmanr

    known = [(a, b) for a, b in zip(x, y, strict=True) if not math.isnan(a + b)]
    if len(known) < ENOUGH or any(len(set(values)) < 2 for values in zip(*known, strict=True)):
        return math.nan, len(known)
    a, b = zip(*known, strict=True)
    return float(spearmanr(a, b).statistic), len(known)
