"""How fast does an arm reach its best score?"""

import math
from typing import Any

import pandas as pd

from segexp.compare.questions import (
    BANDS,
    OF_EPOCHS,
    OF_TIMINGS,
    Findings,
    Reading,
    mean_and_sd,
    near_the_best,
    question,
    timed_alike,
)
from segexp.compare.result import Panel
from segexp.records.runs import Run

NEAR = 0.95
"""Share of its own best validation Dice at which a run has converged."""

DRAWN = 0.5
"""Epochs reached by a smaller share of the runs are not drawn: their mean would be one of other runs."""

PANELS = {
    "val_dice": ("Validation Dice", "Dice", "val", "dice"),
    "val_loss": ("Validation loss", "loss", "val", "loss"),
    "train_loss": ("Training loss", "loss", "train", "loss"),
}
"""Panel -> title, y label, split and column of epochs.csv."""


@question(
    "Convergence",
    {
        "best_val_dice": "best validation Dice (points)",
        "epochs_to_95": "epochs to 95 % of the best",
        "seconds_to_95": "seconds to 95 % of the best",
        "best_epoch": "best epoch",
        "epochs": "epochs",
        "share_at_limit": "stopped at trainer.epochs (%)",
    },
)
def convergence(reading: Reading) -> Findings:
    """Learning curves; epochs and seconds until the validation Dice reaches 95 % of its best.

    Rows: mean and sd over runs. epochs_to_95, seconds_to_95: the first epoch with at least `NEAR` of the run's best
    validation Dice, and the time until its end. epochs: completed epochs; share_at_limit: share of runs that stopped at
    trainer.epochs before trainer.patience ran out. Always of the validation split.
    """
    epochs = reading.rows("epochs", OF_EPOCHS, "")
    val = epochs[(epochs["split"] == "val") & epochs["dice"].notna()]
    every, best = epochs["run"].unique(), val.groupby("run")["dice"].max()
    near = val[(val["dice"] >= NEAR * val["run"].map(best)) & (val["run"].map(best) > 0)]
    to_95 = near.groupby("run")["epoch"].min().astype(float).reindex(every)
    for n in to_95.index[to_95.isna()]:
        reading.note("never converged: no validation Dice above 0", reading.every[n])
    alike, seconds = timed_alike(reading), _until(reading.rows("timings", OF_TIMINGS, ""), to_95)
    timed = seconds[[reading.every[n].path in alike for n in seconds.index]]
    found = {"best_val_dice": best, "epochs_to_95": to_95, "seconds_to_95": timed}
    of_arms = {name: reading.of_arms(values) for name, values in found.items()}
    rows = []
    for arm, runs in reading.runs.items():
        row: dict[str, Any] = {"arm": arm, "n_runs": len(runs)}
        for name, values in of_arms.items():
            row |= mean_and_sd(name, values[arm])
        row |= mean_and_sd("best_epoch", [run.number("best_epoch") for run in runs])
        row |= mean_and_sd("epochs", [run.number("epochs") for run in runs])
        row["share_at_limit"] = sum(_at_limit(run) for run in runs) / len(runs) if runs else math.nan
        rows.append(row)
    panels = []
    for name, (title, y_label, part, column) in PANELS.items():
        curves = reading.curves(epochs[epochs["split"] == part].set_index(["run", "epoch"])[column], least=DRAWN)
        of_dice = column == "dice"
        y_from = near_the_best(curves) if of_dice else math.nan
        panels.append(Panel(name, title, "epoch", y_label, curves, y_points=of_dice, y_from=y_from))
    notes = [
        "An arm with a low best score reaches 95 % of it early: read the epochs to 95 % together with the best.",
        f"{BANDS} Lines end where fewer than half of the runs were still training.",
        *_warnings(reading),
    ]
    return rows, panels, notes


def _until(timings: pd.DataFrame, epochs: pd.Series) -> pd.Series:
    """Seconds of each run from its first epoch until the end of one; NaN where one is missing."""
    last = timings["run"].map(epochs)
    until = timings[timings["epoch"] <= last].groupby("run")["seconds"]
    return until.sum().where(until.count() == epochs.reindex(until.count().index))


def _at_limit(run: Run) -> bool:
    patience = run.config.get("trainer.patience")
    patient = patience is None or run.number("epochs") - run.number("best_epoch") < patience
    return patient and run.number("epochs") == run.config.get("trainer.epochs")


def _warnings(reading: Reading) -> list[str]:
    runs = [run for known in reading.runs.values() for run in known]
    notes = []
    limited = [run for run in runs if _at_limit(run)]
    if limited:
        notes.append(
            f"{len(limited)} of {len(runs)} runs stopped at trainer.epochs while scores might still have risen. "
            "Raise trainer.epochs."
        )
    losses = {run.config.get("loss.name") for run in runs}
    if len(losses) > 1:
        notes.append(f"Values of different losses ({', '.join(sorted(map(str, losses)))}) cannot be compared.")
    return notes
