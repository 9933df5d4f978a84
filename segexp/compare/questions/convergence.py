"""How fast does an arm reach its best score?"""

import math
from typing import Any

import pandas as pd

from segexp.compare.questions import (
    BANDS,
    Findings,
    Reading,
    band_over_runs,
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
    columns = ("epoch", "split", "loss", "dice")
    epochs: dict[str, list[tuple[Run, dict[str, pd.DataFrame]]]] = {arm: [] for arm in reading.runs}
    for arm, found in reading.tables("epochs", columns, "").items():
        for run, frame in found:
            ordered = frame.set_index("epoch").sort_index()
            epochs[arm].append((run, {part: ordered[ordered["split"] == part] for part in ("train", "val")}))
    timings = {
        run.path: frame.set_index("epoch")["seconds"].sort_index()
        for found in reading.tables("timings", ("epoch", "seconds"), "").values()
        for run, frame in found
    }
    alike = timed_alike(reading)
    rows = []
    for arm, runs in reading.runs.items():
        best, to_95, seconds = [], [], []
        for run, tables in epochs[arm]:
            dice = tables["val"]["dice"].dropna()
            best.append(float(dice.max()) if len(dice) else math.nan)
            # NaN where the best is 0.
            to_95.append(float(dice.index[dice >= NEAR * dice.max()][0]) if (dice > 0).any() else math.nan)
            if math.isnan(to_95[-1]):
                reading.note("never converged: no validation Dice above 0", run)
            if run.path in alike and run.path in timings:
                seconds.append(_until(timings[run.path], to_95[-1]))
        row: dict[str, Any] = {"arm": arm, "n_runs": len(runs)}
        row |= mean_and_sd("best_val_dice", best) | mean_and_sd("epochs_to_95", to_95)
        row |= mean_and_sd("seconds_to_95", seconds)
        row |= mean_and_sd("best_epoch", [run.number("best_epoch") for run in runs])
        row |= mean_and_sd("epochs", [run.number("epochs") for run in runs])
        row["share_at_limit"] = sum(_at_limit(run) for run in runs) / len(runs) if runs else math.nan
        rows.append(row)
    panels = []
    for name, (title, y_label, part, column) in PANELS.items():
        lines = {arm: [tables[part][column] for _, tables in found] for arm, found in epochs.items()}
        curves = tuple(band_over_runs(arm, known, least=DRAWN) for arm, known in lines.items())
        of_dice = column == "dice"
        y_from = near_the_best(curves) if of_dice else math.nan
        panels.append(Panel(name, title, "epoch", y_label, curves, y_points=of_dice, y_from=y_from))
    notes = [
        "An arm with a low best score reaches 95 % of it early: read the epochs to 95 % together with the best.",
        f"{BANDS} Lines end where fewer than half of the runs were still training.",
        *_warnings(reading),
    ]
    return rows, panels, notes


def _until(seconds: pd.Series, epoch: float) -> float:
    """Seconds from the first epoch until the end of ``epoch``; NaN where one is missing."""
    if math.isnan(epoch):
        return math.nan
    until = seconds[seconds.index <= epoch]
    return float(until.sum()) if len(until) == epoch and not until.isna().any() else math.nan


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
