"""Do dead units, saturated units or vanishing gradients correlate with the score?"""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from segexp.compare.formatting import signed
from segexp.compare.questions import BANDS, Findings, Reading, mean_and_sd, points_of, question
from segexp.compare.result import Panel
from segexp.records.runs import Run

SHARES = ("dead_output", "dead_gradient", "saturated")

AGAINST_DICE = {
    "dead_output": "dead units (share)",
    "saturated": "saturated inputs (share)",
    "gradient_ratio": "gradient, first to last call site",
}
"""Measures of run.json that are drawn against Dice -> label."""

BY_DEPTH = {
    "dead_output": ("Dead units by depth", "dead units (share)"),
    "saturated": ("Saturated inputs by depth", "saturated inputs (share)"),
    "grad_norm": ("Gradient by depth", "gradient norm"),
}
"""Columns of diagnostics.csv that are drawn over depth."""

ENOUGH = 6
"""The fewest runs for a rank correlation."""


@question(
    "Hidden activations",
    {
        "dead_output": "dead units (%)",
        "dead_gradient": "units without gradient (%)",
        "saturated": "saturated inputs (%)",
        "gradient_ratio": "gradient, first to last call site",
        "spearman_dead": "rank correlation of dead units and Dice",
    },
)
def diagnostics(reading: Reading) -> Findings:
    """Shares of dead and saturated units and the ratio of gradients, with Dice, for each arm, run and depth.

    Measured on the validation images with the selected weights. Rows: mean and sd over runs; gradient_ratio: geometric
    mean of the gradient before the first hidden activation over that before the last. spearman_dead: rank correlation
    of the dead share with Dice over the arm's runs, NaN below `ENOUGH` runs or where one of them does not vary.
    """
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
    panels = []
    for name, label in AGAINST_DICE.items():
        title, log_x = f"Dice against {label.split(' (')[0]}, one point per run", name == "gradient_ratio"
        curves = tuple(points_of(arm, known[name], scores[arm]["dice"]) for arm, known in measured.items())
        panels.append(Panel(f"{name}_score", title, label, "Dice", curves, "points", log_x=log_x, y_points=True))
    looks = reading.rows("diagnostics", ("depth", *BY_DEPTH), "no hidden activation was measured", probe="val")
    depths = looks.groupby(["run", "depth"])[[*BY_DEPTH]].mean()
    for name, (title, label) in BY_DEPTH.items():
        about = title, "call site, from the input", label
        panels.append(Panel(f"{name}_depth", *about, reading.curves(depths[name]), log_y=name == "grad_norm"))
    return rows, panels, [*_correlations(measured, scores), BANDS]


def _measure(run: Run, name: str) -> float:
    value = run.record.get("diagnostics", {}).get(name)
    return math.nan if value is None else float(value)


def _geometric_mean(ratios: Sequence[float]) -> float:
    """0 if any ratio is 0; ratios spread over decades in both directions."""
    known = [ratio for ratio in ratios if not math.isnan(ratio)]
    return statistics.geometric_mean(known) if known and min(known) > 0 else 0.0 if known else math.nan


def _correlations(
    measured: Mapping[str, Mapping[str, Sequence[float]]], scores: Mapping[str, Mapping[str, Sequence[float]]]
) -> list[str]:
    dice = [value for arm in measured for value in scores[arm]["dice"]]
    shown = []
    for name, label in AGAINST_DICE.items():
        rho, n = _spearman([value for known in measured.values() for value in known[name]], dice)
        if not math.isnan(rho):
            shown.append(f"{label.removesuffix(' (share)')} {signed(rho)} (n = {n})")
    note = (
        f"Rank correlation (Spearman) with Dice over all runs: {', '.join(shown)}. Runs of an arm are not "
        "independent, so this is not a test, and correlation is not causation."
    )
    return [note] if shown else []


def _spearman(x: Sequence[float], y: Sequence[float]) -> tuple[float, int]:
    """Spearman's rank correlation and the number of pairs; NaN for few pairs or values that do not vary."""
    known = [(a, b) for a, b in zip(x, y, strict=True) if not math.isnan(a + b)]
    if len(known) < ENOUGH or any(len(set(values)) < 2 for values in zip(*known, strict=True)):
        return math.nan, len(known)
    return float(np.corrcoef(pd.DataFrame(known).rank(), rowvar=False)[1, 0]), len(known)
