"""Are small objects segmented as well as large ones, and how often are absent classes predicted?"""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from segexp.compare.questions import BANDS, Findings, Reading, band_over_runs, mean_and_sd, question
from segexp.compare.result import Panel
from segexp.records.formatting import pluralize

MOST_BINS = 8
CELLS_PER_BIN = 5
"""The fewest cells per bin of sizes, about."""


@question(
    "Small objects",
    {
        "dice_smallest": "Dice, smallest (points)",
        "dice_largest": "Dice, largest (points)",
        "slope": "Dice per tenfold size (points)",
        "fp_rate_empty": "false alarms where absent (points)",
    },
)
def objects(reading: Reading) -> Findings:
    """Dice against the size of the reference, and false alarms where a class is absent.

    A cell is an image and a class. Its size is the share of the class in the valid pixels of the image, all objects
    together. Bins are quantiles of the sizes, the same for all arms. Rows: mean and sd over runs. dice_smallest,
    dice_largest: of the cells in the outermost bins; slope: gain in Dice for a tenfold size (least squares over cells);
    fp_rate_empty: share of the cells without reference where anything is predicted.
    """
    columns = ("image_id", "class_id", "n_valid", "n_gt", "n_pred", "dice")
    read = reading.tables("images", columns, "", split=reading.split)
    cells: dict[str, list[pd.DataFrame]] = {arm: [] for arm in read}
    for arm, frame in ((arm, frame) for arm, found in read.items() for _, frame in found):
        counted = frame[frame["n_valid"] > 0]  # without valid pixels there is no size
        cells[arm].append(counted.assign(size=counted["n_gt"] / counted["n_valid"]))
    every = [frame for frames in cells.values() for frame in frames]
    # Every cell once, whichever run it was read from.
    distinct = pd.concat(every).drop_duplicates(["image_id", "class_id"]) if every else pd.DataFrame({"size": []})
    sizes = distinct.loc[distinct["size"] > 0, "size"]
    edges = _edges(sizes)
    # The geometric mean of each bin.
    places = dict(sizes.groupby(_bin(sizes, edges)).agg(lambda of_bin: float(np.exp(np.log(of_bin).mean()))))
    rows, curves = [], []
    for arm, runs in reading.runs.items():
        held = [frame[frame["size"] > 0] for frame in cells[arm]]
        by_bin = [frame.groupby(_bin(frame["size"], edges))["dice"].mean() for frame in held]
        rows.append({"arm": arm, "n_runs": len(runs)} | _row(cells[arm], held, by_bin, len(edges)))
        curves.append(band_over_runs(arm, [line.rename(places) for line in by_bin]))
    title, x_label = "Dice by size of the reference", "size (share of the image)"
    panel = Panel("objects", title, x_label, "Dice", tuple(curves), log_x=True, y_points=True)
    return rows, [panel], [*_notes(distinct, len(places)), BANDS]


def _row(
    cells: Sequence[pd.DataFrame], held: Sequence[pd.DataFrame], by_bin: Sequence[pd.Series], last: int
) -> dict[str, float]:
    """Mean and sd over an arm's runs. held: cells with a reference; by_bin: their Dice by bin, 0 to ``last``."""
    # With a single bin the smallest and the largest would be the same cells, and sizes too similar for a slope.
    smallest, largest = ([line.get(end, math.nan) for line in by_bin if last] for end in (0, last))
    absent = [frame.loc[frame["size"] == 0, "n_pred"] for frame in cells]
    return (
        mean_and_sd("dice_smallest", smallest)
        | mean_and_sd("dice_largest", largest)
        | mean_and_sd("slope", [_slope(frame) for frame in held if last])
        | mean_and_sd("fp_rate_empty", [float((n_pred > 0).mean()) for n_pred in absent])
    )


def _notes(distinct: pd.DataFrame, n_bins: int) -> list[str]:
    """How the cells are binned, and what they cannot show."""
    n_cells = int((distinct["size"] > 0).sum())
    in_bins = f"in {n_bins} bins of about as many" if n_bins > 1 else f"in {pluralize(n_bins, 'bin')}"
    notes = [
        f"{pluralize(n_cells, 'cell')} (an image and a class that its reference holds) {in_bins}; the size is of all "
        "objects of the class together."
    ]
    if n_bins == 1:
        notes.append("There are too few sizes, or they are too similar, to compare the smallest with the largest.")
    if len(distinct) and not (distinct["size"] == 0).any():
        notes.append("No false alarms can be counted: every reference holds every class.")
    return notes


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
