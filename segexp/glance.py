"""One run at a glance: its record and tables as what `segexp show` prints, whatever state it is in.

Light: plain CSV, no pandas, no Hydra. What cannot be read becomes a line of ``problems``.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segexp.errors import UsageError
from segexp.launch.presets import changed_from_defaults
from segexp.records import check_complete, text_rows
from segexp.status import progress_of
from segexp.study import Run


@dataclass(frozen=True)
class Curve:
    """A column of epochs.csv. values: one per epoch, NaN where there is none. mark: place of the least or greatest
    finite value, None where there is none; better: "lowest" or "highest", which of them."""

    title: str
    values: tuple[float, ...]
    better: str

    @property
    def mark(self) -> int | None:
        finite = [i for i, value in enumerate(self.values) if math.isfinite(value)]
        choose = min if self.better == "lowest" else max
        return choose(finite, key=lambda i: self.values[i], default=None)


CURVES = (
    ("train loss", "train", "loss", "lowest"),
    ("val loss", "val", "loss", "lowest"),
    ("val Dice", "val", "dice", "highest"),
    ("lr", "train", "lr", "highest"),
    ("grad norm", "train", "grad_norm", "highest"),
)
"""Title, split and column of epochs.csv, and which end of it is worth naming."""


@dataclass(frozen=True)
class Glance:
    """What is shown of a run. progress: as `segexp status --json` tells it of a run.

    changed: keys that are not as `segexp train` has them by itself; curves with a finite value, and the epochs that
    they are over; best_epoch: whose weights were scored, None where nothing was; val: scores on the validation images
    at that epoch. epoch_s: median seconds of an epoch; images_per_s: mean; peak_mem_mib: largest; NaN where unknown.
    """

    run: Run
    progress: Mapping[str, Any]
    changed: Mapping[str, Any]
    epochs: tuple[int, ...]
    curves: tuple[Curve, ...]
    best_epoch: int | None
    val: Mapping[str, float]
    epoch_s: float
    images_per_s: float
    peak_mem_mib: float
    problems: tuple[str, ...]
    files: tuple[str, ...]


def glance_at(run: Run) -> Glance:
    """Everything of a run that fits a screen. Raises nothing for a damaged table."""
    record, problems = run.record, []
    config = record.get("config", {})
    summary = record.get("summary", {})

    def table(name: str) -> list[dict[str, str]]:
        path = run.path / f"{name}.csv"
        # Before the first epoch is over there are no tables.
        if run.state not in ("done", "unreadable") and not path.exists():
            return []
        try:
            return text_rows(path, name)
        except UsageError as error:
            problems.append(str(error))
            return []

    def numbers(name: str, rows: Sequence[Mapping[str, str]], column: str) -> list[float]:
        try:
            return [float(row[column] or "nan") for row in rows]
        except ValueError as error:
            problems.append(f"{run.path / name}.csv, column {column}: {error}")
            return []

    epochs = {split: [r for r in table("epochs") if r["split"] == split] for split in ("train", "val")}
    timings = table("timings")
    curves = [
        Curve(title, tuple(numbers("epochs", epochs[split], column)), better) for title, split, column, better in CURVES
    ]
    best = summary.get("best_epoch")
    at_best = [row for row in epochs["val"] if row["epoch"] == str(best)]
    val = {name: numbers("epochs", at_best, name) for name in ("dice", "dice_micro", "nll", "brier")}
    seconds, rates, memory = (numbers("timings", timings, n) for n in ("seconds", "images_per_s", "peak_mem_mib"))
    if run.state == "done":
        try:
            check_complete(run.path, record)
        except UsageError as error:
            problems.append(str(error))
    return Glance(
        run=run,
        progress=progress_of(run),
        changed=changed_from_defaults(config) if config else {},
        epochs=tuple(int(e) for e in numbers("epochs", epochs["train"], "epoch") if math.isfinite(e)),
        curves=tuple(curve for curve in curves if curve.mark is not None),
        best_epoch=best,
        val={name: values[0] for name, values in val.items() if values},
        epoch_s=statistics.median(seconds) if seconds else math.nan,
        images_per_s=statistics.fmean(rates) if rates else math.nan,
        peak_mem_mib=max(memory, default=math.nan),
        problems=tuple(dict.fromkeys(problems)),
        files=_files(run.path),
    )


def _files(path: Path) -> tuple[str, ...]:
    """Names in the run directory, folders with a slash; hidden ones are nobody's business."""
    entries = path.iterdir() if path.is_dir() else ()
    return tuple(sorted(p.name + "/" * p.is_dir() for p in entries if not p.name.startswith(".")))
