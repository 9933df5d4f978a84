"""Are the probabilities calibrated, before and after temperature scaling on the validation split?"""

import math
from typing import Any

import pandas as pd

from segexp.compare.questions import NO_BINS, OF_BINS, Findings, Reading, calibration_errors, mean_and_sd, question
from segexp.compare.result import Curve, Panel
from segexp.records.scores import LEARNED

SCORES = ("nll", "brier", "ece15", "nll_t", "brier_t", "ece15_t", "temperature")

TEMPERATURE_LIMIT = 100
"""The temperature is searched between 1/100 and 100 (`segexp.evaluation.measures.fit_temperature`)."""

DIAGRAMS = {
    "reliability": ("Reliability", "all", 0),
    "reliability_t": ("Reliability after temperature scaling", "all", 1),
    "reliability_boundary": ("Reliability near the boundary", "boundary", 0),
    "reliability_boundary_t": ("Reliability near the boundary after temperature scaling", "boundary", 1),
}
"""Panel -> title, region and whether scaled."""


@question(
    "Calibration",
    {
        "ece15": "ECE",
        "ece15_boundary": "ECE near the boundary",
        "ece15_boundary_t": "ECE near the boundary after temperature",
        "temperature": "temperature",
    },
)
def calibration(reading: Reading) -> Findings:
    """NLL, Brier score and expected calibration error (15 bins), before and after temperature scaling.

    Rows: mean and sd over runs; nll in nats; the learned slope and tail of output activations, where a run has learned
    one. Panels: reliability diagrams of the whole image and of the band around the
    reference boundary; each bin pools the n pixels of all runs and classes.
    """
    scores = reading.scores(*SCORES)
    bins = reading.rows("bins", OF_BINS, NO_BINS, split=reading.split)
    errors = [reading.of_arms(calibration_errors(bins, "boundary", scaled)) for scaled in (0, 1)]
    all_runs = [run for runs in reading.runs.values() for run in runs]
    learned = [name for name in LEARNED if not all(math.isnan(run.number(name)) for run in all_runs)]
    reading.titles |= {name: name.replace("_", " ") for name in learned}
    rows = []
    for arm, runs in reading.runs.items():
        row: dict[str, Any] = {"arm": arm, "n_runs": len(runs)}
        for name in SCORES:
            row |= mean_and_sd(name, scores[arm][name])
        for name, of_arms in zip(("ece15_boundary", "ece15_boundary_t"), errors, strict=True):
            row |= mean_and_sd(name, of_arms[arm])
        for name in learned:
            row |= mean_and_sd(name, [run.number(name) for run in runs])
        rows.append(row)
    arm_R = bins["run"].map(dict(enumerate(reading.arm_N))).rename("arm")
    pooled = bins.groupby(["region", "scaled", arm_R, "bin"])[["n", "sum_p", "sum_y"]].sum()
    of_all: dict[Any, pd.DataFrame] = dict(iter(pooled[pooled["n"] > 0].groupby(["region", "scaled", "arm"])))
    panels = []
    for name, (title, region, scaled) in DIAGRAMS.items():
        found = {arm: of_all[region, scaled, arm] for arm in reading.runs if (region, scaled, arm) in of_all}
        curves = tuple(_reliability(arm, sums) for arm, sums in found.items())
        panels.append(Panel(name, title, "predicted probability", "share of foreground", curves, diagonal=True))
    for arm, runs in reading.runs.items():
        for run, temperature in zip(runs, scores[arm]["temperature"], strict=True):
            if max(temperature, 1 / temperature) > 0.99 * TEMPERATURE_LIMIT:
                reading.note(f"temperature at a limit of its range, 1/{TEMPERATURE_LIMIT} or {TEMPERATURE_LIMIT}", run)
    notes = [
        "The temperature is fitted on the validation split. Diagrams pool the pixels of all runs and "
        "classes, each class against the rest."
    ]
    return rows, panels, notes


def _reliability(arm: str, sums: pd.DataFrame) -> Curve:
    """Mean probability against share of foreground in each bin that has pixels."""
    x, y = ((sums[name] / sums["n"]).tolist() for name in ("sum_p", "sum_y"))
    return Curve(arm, tuple(x), tuple(y), n=tuple(float(n) for n in sums["n"]))
