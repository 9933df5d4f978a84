"""Are small objects found and segmented as well as large ones, and how often are absent classes predicted?"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from segexp.compare.questions import BANDS, Findings, Reading, mean_and_sd, question
from segexp.compare.result import Panel
from segexp.evaluation.objects import FOUND
from segexp.records.formatting import pluralize

OBJECT = ("image_id", "class_id", "object")
"""What names an object of a run and split."""

TOO_FEW = "There are too few sizes, or they are too similar, to compare the smallest with the largest."

MOST_BINS = 8
CELLS_PER_BIN = 5
"""The fewest cells or objects per bin of sizes, about."""


@question(
    "Small objects",
    {
        "recall_smallest": "found at IoU > 0.1, smallest (points)",
        "recall_largest": "found at IoU > 0.1, largest (points)",
        "recall_50_smallest": "found at IoU > 0.5, smallest (points)",
        "recall_50_largest": "found at IoU > 0.5, largest (points)",
        "dice_smallest": "Dice, smallest (points)",
        "dice_largest": "Dice, largest (points)",
        "slope": "Dice per tenfold size (points)",
        "fp_rate_empty": "false alarms where absent (points)",
    },
)
def objects(reading: Reading) -> Findings:
    """The share of objects that are found against their size, and false alarms where a class is absent.

    Objects are those of objects.csv: connected components of the reference, of any class. Bins are quantiles of their
    sizes, the same for all arms. Rows: mean and sd over runs. recall_smallest, recall_largest: share of the objects in
    the outermost bins that have a match with an IoU above 0.1, and above 0.5 (recall_50). fp_rate_empty: share of the
    images and classes without reference where anything is predicted. Where a run has no objects.csv, as those of
    earlier versions, `_of_cells` is the answer.
    """
    if not reading.every or not all("objects" in run.record.get("n_rows_expected", {}) for run in reading.every):
        return _of_cells(reading)
    images = reading.cells()
    found = reading.rows("objects", (*OBJECT, "n_pixels", "iou"), "no object of any class", split=reading.split)
    distinct = found.drop_duplicates([*OBJECT])["n_pixels"]
    edges, places = _bins(distinct)
    found = found.assign(bin=_bin(found["n_pixels"], edges))
    rows: list[dict[str, Any]] = [{"arm": arm, "n_runs": len(of_arm)} for arm, of_arm in reading.runs.items()]
    panels = []
    for threshold, name in zip(FOUND, ("recall", "recall_50"), strict=True):
        shares = (found["iou"] > threshold).groupby([found["run"], found["bin"]]).mean()
        _add_ends(reading, rows, name, shares, len(edges))
        curves = reading.curves(shares.rename(places, level="bin"))
        title, x_label = f"Objects found at IoU > {threshold}", "size of the object (pixels)"
        key = "objects" if name == "recall" else f"objects_{name}"
        panels.append(Panel(key, title, x_label, "share", curves, log_x=True, y_points=True))
    _add_false_alarms(reading, rows, images[images["n_gt"] == 0])
    number = pluralize(len(distinct), "object")
    what = "connected components of the reference; sizes in pixels as scored, in voxels of volumes"
    notes = [f"{number} {_in_bins(len(places))}: {what}."]
    return rows, panels, [*notes, *([TOO_FEW] if len(places) == 1 else []), BANDS]


def _of_cells(reading: Reading) -> Findings:
    """Dice against the size of the reference, and false alarms where a class is absent.

    A cell is an image and a class. Its size is the share of the class in the valid pixels of the image, all objects
    together. Bins are quantiles of the sizes, the same for all arms. Rows: mean and sd over runs. dice_smallest,
    dice_largest: of the cells in the outermost bins; slope: gain in Dice for a tenfold size (least squares over cells);
    fp_rate_empty: share of the cells without reference where anything is predicted.
    """
    columns = ("image_id", "class_id", "n_valid", "n_gt", "n_pred", "dice")
    cells = reading.rows("images", columns, "", split=reading.split)
    cells = cells[cells["n_valid"] > 0]  # without valid pixels there is no size
    cells = cells.assign(size=cells["n_gt"] / cells["n_valid"])
    # Every cell once, whichever run it was read from.
    distinct = cells.drop_duplicates(["image_id", "class_id"])
    edges, places = _bins(distinct.loc[distinct["size"] > 0, "size"])
    held = cells[cells["size"] > 0]
    by_bin = held["dice"].groupby([held["run"], pd.Series(_bin(held["size"], edges), held.index, name="bin")]).mean()
    rows: list[dict[str, Any]] = [{"arm": arm, "n_runs": len(runs)} for arm, runs in reading.runs.items()]
    _add_ends(reading, rows, "dice", by_bin, len(edges))
    slopes = {n: _slope(of_run) for n, of_run in held.groupby("run") if len(edges)}
    of_arms = reading.of_arms(pd.Series(slopes, dtype=float))
    for row in rows:
        row.update(mean_and_sd("slope", of_arms[row["arm"]]))
    _add_false_alarms(reading, rows, cells[cells["size"] == 0])
    curves = reading.curves(by_bin.rename(places, level="bin"))
    title, x_label = "Dice by size of the reference", "size (share of the image)"
    panel = Panel("objects", title, x_label, "Dice", curves, log_x=True, y_points=True)
    return rows, [panel], [*_notes(distinct, len(places)), BANDS]


def _add_ends(reading: Reading, rows: Sequence[dict[str, Any]], name: str, by_bin: pd.Series, last: int) -> None:
    """Add mean and sd over runs of the outermost bins, 0 and ``last``; by_bin: by run and bin."""
    # With a single bin the smallest and the largest would be the same, and sizes too similar for a slope.
    for end, what in ((0, "smallest"), (last, "largest")):
        of_arms = reading.of_arms(by_bin[by_bin.index.get_level_values("bin") == end].droplevel("bin"))
        for row in rows:
            row.update(mean_and_sd(f"{name}_{what}", of_arms[row["arm"]] if last else []))


def _add_false_alarms(reading: Reading, rows: Sequence[dict[str, Any]], absent: pd.DataFrame) -> None:
    """Add the share of images and classes without reference where anything is predicted."""
    of_arms = reading.of_arms((absent["n_pred"] > 0).groupby(absent["run"]).mean())
    for row in rows:
        row.update(mean_and_sd("fp_rate_empty", of_arms[row["arm"]]))


def _in_bins(n_bins: int) -> str:
    return f"in {n_bins} bins of about as many" if n_bins > 1 else f"in {pluralize(n_bins, 'bin')}"


def _notes(distinct: pd.DataFrame, n_bins: int) -> list[str]:
    """How the cells are binned, and what they cannot show."""
    n_cells = int((distinct["size"] > 0).sum())
    notes = [
        f"{pluralize(n_cells, 'cell')} (an image and a class that its reference holds) {_in_bins(n_bins)}; the size is "
        "of all objects of the class together."
    ]
    if n_bins == 1:
        notes.append(TOO_FEW)
    if len(distinct) and not (distinct["size"] == 0).any():
        notes.append("No false alarms can be counted: every reference holds every class.")
    return notes


def _bins(sizes: pd.Series) -> tuple[np.ndarray, dict[int, float]]:
    """The inner edges of the bins, and the geometric mean of the sizes in each."""
    edges = _edges(sizes)
    return edges, dict(sizes.groupby(_bin(sizes, edges)).agg(lambda of_bin: float(np.exp(np.log(of_bin).mean()))))


def _edges(sizes: pd.Series) -> np.ndarray:
    """The inner edges of bins with about equal numbers of sizes."""
    n_bins = max(1, min(MOST_BINS, len(sizes) // CELLS_PER_BIN))
    quantiles = np.unique(np.quantile(sizes, np.arange(1, n_bins) / n_bins)) if n_bins > 1 else np.array([])
    # An edge at the smallest size would leave the first bin empty.
    return quantiles[quantiles > sizes.min()]


def _bin(sizes: pd.Series, edges: np.ndarray) -> np.ndarray:
    return np.searchsorted(edges, sizes.to_numpy(), side="right")


def _slope(cells: pd.DataFrame) -> float:
    if cells["size"].nunique() < 2:
        return math.nan
    return float(np.polyfit(np.log10(cells["size"]), cells["dice"], 1)[0])
