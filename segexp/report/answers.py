"""The rows of second questions as tables: columns named and measured as people read them."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from segexp.compare.formatting import mean_and_sd, with_unit
from segexp.compare.result import METRICS, Answer
from segexp.report.formatting import number
from segexp.report.tables import ARM, NUMBER, TEXT, Table

COLUMNS: Mapping[str, str] = {
    "n_runs": "runs",
    "missed": "missed references (%)",
    "unit": "unit",
    "tolerance": "tolerance (in unit)",
    "hd95": "HD95 (in unit)",
    "nsd": "NSD (points)",
    "nll": "NLL",
    "nll_t": "NLL after temperature",
    "brier": "Brier score",
    "brier_t": "Brier score after temperature",
    "ece15": "ECE",
    "ece15_t": "ECE after temperature",
    "ece15_boundary": "ECE near the boundary",
    "ece15_boundary_t": "ECE near the boundary after temperature",
    "temperature": "temperature",
    "best_val_dice": "best validation Dice (points)",
    "epochs_to_95": "epochs to 95 % of the best",
    "seconds_to_95": "seconds to 95 % of the best",
    "best_epoch": "best epoch",
    "epochs": "epochs",
    "share_at_limit": "stopped at trainer.epochs (%)",
    "n_timed": "runs with timings",
    "ms_per_step": "ms per step",
    "images_per_s": "images per s",
    "peak_mem_mib": "peak memory (MiB)",
    "seconds": "seconds of training",
    "n_params": "parameters",
    "pareto": "on the front",
    "dead_output": "dead units (%)",
    "dead_gradient": "units without gradient (%)",
    "saturated": "saturated inputs (%)",
    "gradient_ratio": "gradient, first to last call site",
    "spearman_dead": "rank correlation of dead units and Dice",
    "dice_smallest": "Dice, smallest (points)",
    "dice_largest": "Dice, largest (points)",
    "slope": "Dice per tenfold size (points)",
    "fp_rate_empty": "false alarms where absent (points)",
    "n_curves": "runs with curves",
    "dice_best": "Dice at the best threshold (points)",
    "regret": "regret of 0.5 (points)",
    "gain_tuned": "gain of the tuned threshold (points)",
    "threshold_tuned": "tuned threshold",
    "plateau_low": "plateau from",
    "plateau_high": "plateau to",
    "plateau_width": "plateau, width",
}
"""Column of a row -> title with its unit. What is told in points or % is recorded as a share, and times 100 here."""


def answer(found: Answer, name: str, where: str = "") -> Table:
    """The rows of a second question; every row has the columns of the first. A mean and its sd share a cell."""
    held = list(found.rows[0]) if found.rows else []
    keys = [key for key in held if key.removesuffix("_sd") not in held or not key.endswith("_sd")]
    columns = tuple((_title(key), _kind(key, [row.get(key) for row in found.rows])) for key in keys)
    rows = tuple(tuple(_with_sd(row, key) for key in keys) for row in found.rows)
    note = "\u00b1: standard deviation of the runs." if any("\u00b1" in cell for row in rows for cell in row) else ""
    return Table(name, found.title, columns, rows, note, where)


def _title(key: str) -> str:
    if key in COLUMNS:
        return COLUMNS[key]
    return with_unit(METRICS[key]) if key in METRICS else key


def _with_sd(row: Mapping[str, Any], key: str) -> str:
    value = row.get(key)
    if not isinstance(value, float):
        return number(value)
    title = _title(key)
    points = title.endswith("(points)")
    by = 100 if points or title.endswith("(%)") else 1
    return mean_and_sd(by * value, by * row.get(f"{key}_sd", math.nan), points)


def _kind(key: str, values: Sequence[Any]) -> str:
    if key == "arm":
        return ARM
    return TEXT if any(isinstance(v, str | bool) and v != "" for v in values) else NUMBER
