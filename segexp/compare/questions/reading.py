"""The runs behind a question: what their records and tables say, and an account of what they do not."""

import math
import statistics
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segexp.compare.result import Curve, Panel
from segexp.errors import UsageError
from segexp.evaluation.calibration import expected_calibration_error
from segexp.evaluation.scores import dice_and_iou, fp_rate_empty, mean_or_nan, primary_score
from segexp.records import COLUMNS, check_table, read_run, read_table
from segexp.records.scores import PER_IMAGE

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

IN_IMAGES = (*PER_IMAGE, "fp_rate_empty")
"""Scores of the summary that follow from images.csv, and so are known of the validation split too."""

IN_BINS = ("ece15", "ece15_t")
"""Those that follow from bins.csv."""

KEYS = {
    "images": ("split", "image_id", "class_id"),
    "bins": ("split", "class_id", "region", "scaled", "bin"),
    "thresholds": ("split", "class_id", "threshold"),
    "epochs": ("epoch", "split"),
    "timings": ("epoch",),
    "diagnostics": ("site", "probe", "epoch"),
}
"""What a row of a table is of: none stands there twice."""

NO_BINS = "heads without probabilities have no reliability"

BANDS = "Lines are means over runs, each of the same weight; bands reach from the lowest to the highest run."


@dataclass(frozen=True)
class Finished:
    """A finished run: its arm, its directory and run.json."""

    arm: str
    path: Path
    record: Mapping[str, Any]

    @property
    def config(self) -> Mapping[str, Any]:
        """The configuration, flat."""
        return self.record.get("config", {})

    @property
    def summary(self) -> Mapping[str, Any]:
        """The row of summary.csv as run.json repeats it; None for NaN."""
        return self.record.get("summary", {})

    def number(self, name: str) -> float:
        """A number of the summary; NaN where there is none."""
        value = self.summary.get(name)
        return math.nan if value is None else float(value)


class Reading:
    """The finished runs by arm. Whatever is left out is counted, and told by `notes`."""

    def __init__(self, arms: Mapping[str, Sequence[Path]], split: str) -> None:
        self.split = split
        self.n_runs = sum(len(directories) for directories in arms.values())
        self._told: dict[str, tuple[dict[Path, str], str]] = {}
        # In an order of their own: what comes out must not depend on the order in which runs were found.
        self.runs = {
            arm: [run for path in sorted(directories) if (run := self._run(arm, path)) is not None]
            for arm, directories in arms.items()
        }

    def _run(self, arm: str, path: Path) -> Finished | None:
        try:
            run = Finished(arm, path, read_run(path))
        except UsageError as error:
            self.tell("left out, without a record that can be read", Finished(arm, path, {}), str(error))
            return None
        if run.record.get("status") != "done":
            self.tell("left out, for they are not done", run, f"{path} is {run.record.get('status')}")
            return None
        return run

    def tell(self, what: str, run: Finished, example: str = "") -> None:
        """Count a run under "k of n runs (arms): <what>", once; the first example is told with it."""
        counted, _ = self._told.setdefault(what, ({}, example))
        counted[run.path] = run.arm

    def notes(self) -> list[str]:
        """What was told, a line each, in order of the first time."""
        lines = []
        for what, (counted, example) in self._told.items():
            arms = ", ".join(f"{arm} {count}" for arm, count in Counter(counted.values()).items())
            lines.append(f"{len(counted)} of {self.n_runs} runs ({arms}): {what}{example and f'; {example}'}")
        return lines

    def tables(
        self, table: str, columns: Collection[str], why_empty: str, **only: str
    ) -> "dict[str, list[tuple[Finished, pd.DataFrame]]]":
        """Each arm's runs with these columns of a table, of the rows where the columns ``only`` have these values.

        Runs whose table is missing, damaged, cut short, without a column or without such rows are left out and told;
        why_empty: the innocent reason for no rows. No missing values in whole numbers.
        """
        import pandas as pd

        damaged = f"left out of what {table}.csv tells, for it is missing, cut short or damaged"
        needed = list(dict.fromkeys((*KEYS[table], *columns)))
        read = []
        for run in (run for runs in self.runs.values() for run in runs):
            frame = self._table(run, table, needed, damaged)
            if frame is not None:
                read.append((run, frame))
        parts: dict[Any, pd.DataFrame] = {}
        if read:
            # All runs at once, for pandas takes as long for a few rows as for thousands.
            rows = pd.concat([frame for _, frame in read], keys=range(len(read)), names=["run"]).reset_index("run")
            whole = [name for name in needed if COLUMNS[table][name] is int]
            lacking = set(rows.loc[rows[whole].isna().any(axis=1), "run"])
            twice = set(rows.loc[rows.duplicated(["run", *KEYS[table]]), "run"])
            for name, value in only.items():
                rows = rows[rows[name] == value]
            values = "".join(f" of {value}" for value in only.values())
            present = set(rows["run"])
            for number, (run, _) in enumerate(read):
                path = run.path / f"{table}.csv"
                if number in lacking | twice:
                    wrong = "lacks whole numbers" if number in lacking else "holds rows twice"
                    self.tell(damaged, run, f"{path} {wrong}")
                elif number not in present:
                    self.tell(f"no rows{values} in {table}.csv{why_empty and f': {why_empty}'}", run)
            rows = rows[~rows["run"].isin(lacking | twice)]
            rows = rows.astype(dict.fromkeys(whole, "int64"))[["run", *columns]]
            parts = dict(iter(rows.groupby("run")))
        found: dict[str, list[tuple[Finished, pd.DataFrame]]] = {arm: [] for arm in self.runs}
        for number, (run, _) in enumerate(read):
            if number in parts:
                found[run.arm].append((run, parts[number]))
        return found

    def _table(self, run: Finished, table: str, needed: Sequence[str], damaged: str) -> "pd.DataFrame | None":
        path = run.path / f"{table}.csv"
        try:
            check_table(run.path, run.record, table)
            frame = read_table(path, table)
        except UsageError as error:
            self.tell(damaged, run, str(error))
            return None
        except ValueError as error:
            self.tell(damaged, run, f"{path} cannot be read: {' '.join(str(error).split())}")
            return None
        absent = [name for name in needed if name not in frame]
        if absent:
            what = f"left out of what {table}.csv tells, for another version wrote it without {', '.join(absent)}"
            self.tell(what, run)
            return None
        return frame[needed]

    def scores(self, *names: str) -> dict[str, dict[str, list[float]]]:
        """arm -> name -> score of each run on the split, NaN where there is none: those of ``names`` in the summary."""
        elsewhere = self.split != "test"
        tables = self._of_split(names) if elsewhere else {}
        found: dict[str, dict[str, list[float]]] = {}
        for arm, runs in self.runs.items():
            rows = []
            for run in runs:
                known = tables[run.path] if elsewhere else {name: run.number(name) for name in names}
                rows.append([known.get(name, math.nan) for name in names])
                absent = [name for name, value in zip(names, rows[-1], strict=True) if math.isnan(value)]
                if absent:
                    self.tell(f"no {', '.join(absent)}{f' of the {self.split} split' if elsewhere else ''}", run)
            found[arm] = {name: [row[i] for row in rows] for i, name in enumerate(names)}
        return found

    def _of_split(self, names: Collection[str]) -> dict[Path, dict[str, float]]:
        """Scores by run directory from the tables, as the summary, which is of the test split, has them."""
        # A temperature belongs to the run.
        known = {run.path: {"temperature": run.number("temperature")} for runs in self.runs.values() for run in runs}
        if not set(names).isdisjoint(IN_IMAGES):
            of_cells = ("image_id", "class_id", "group_id", "tp", "fp", "fn", "nsd", "hd95", "nll", "brier")
            for found in self.tables("images", of_cells, "", split=self.split).values():
                for run, frame in found:
                    known[run.path] |= scores_of_images(frame, run.config.get("metrics.empty_policy", "reference"))
        if not set(names).isdisjoint(IN_BINS):
            of_bins = ("class_id", "region", "scaled", "n", "sum_p", "sum_y")
            for found in self.tables("bins", of_bins, NO_BINS, split=self.split).values():
                for run, frame in found:
                    known[run.path] |= {
                        name: calibration_error(frame, "all", scaled) for scaled, name in enumerate(IN_BINS)
                    }
        return known


def scores_of_images(images: "pd.DataFrame", policy: Any) -> dict[str, float]:
    """The scores `IN_IMAGES` from the rows of one split, as the summary has them."""
    import numpy as np

    def cells_NF(name: str) -> "np.ndarray":
        return images.pivot(index="image_id", columns="class_id", values=name).to_numpy()

    counts_NF3 = np.stack([cells_NF(name) for name in ("tp", "fp", "fn")], axis=-1)
    n_gt = counts_NF3[..., 0] + counts_NF3[..., 2]
    groups = tuple(images.groupby("image_id")["group_id"].first())
    dice_NF, iou_NF = dice_and_iou(counts_NF3)
    every_N1 = np.ones((len(groups), 1))
    return {
        "dice": primary_score(dice_NF, n_gt, groups, policy),
        "iou": primary_score(iou_NF, n_gt, groups, policy),
        "nsd": primary_score(cells_NF("nsd"), n_gt, groups),
        "hd95": primary_score(cells_NF("hd95"), n_gt, groups),
        "nll": primary_score(cells_NF("nll").mean(axis=1, keepdims=True), every_N1, groups),
        "brier": primary_score(cells_NF("brier").mean(axis=1, keepdims=True), every_N1, groups),
        "fp_rate_empty": fp_rate_empty(counts_NF3),
    }


def calibration_error(bins: "pd.DataFrame", region: str, scaled: int) -> float:
    """Mean over classes of the expected calibration error, from the rows of bins.csv of one run and split."""
    import numpy as np

    rows = bins[(bins["region"] == region) & (bins["scaled"] == scaled)]
    by_class = (part[["n", "sum_p", "sum_y"]].to_numpy() for _, part in rows.groupby("class_id"))
    return mean_or_nan(np.array([expected_calibration_error(table) for table in by_class]))


def mean_and_sd(name: str, values: Iterable[float]) -> dict[str, float]:
    """{name: mean, name_sd: standard deviation} over runs, NaN left out; NaN without runs, or of one for the sd."""
    kept = [float(value) for value in values if not math.isnan(value)]
    return {
        name: statistics.fmean(kept) if kept else math.nan,
        f"{name}_sd": statistics.stdev(kept) if len(kept) > 1 else math.nan,
    }


def points_of(arm: str, x: Iterable[float], y: Iterable[float]) -> Curve:
    """A point for each run of which both values are known."""
    known = [(a, b) for a, b in zip(x, y, strict=True) if not math.isnan(a + b)]
    return Curve(arm, tuple(a for a, _ in known), tuple(b for _, b in known))


def band_over_runs(arm: str, lines: "Iterable[pd.Series]", least: float = 0.0) -> Curve:
    """The mean over runs at each place, each line's index, with the lowest and the highest run around it.

    n: runs that have a value there; places of fewer than ``least`` of all runs are left out.
    """
    import pandas as pd

    known = list(lines)
    if not known:
        return Curve(arm, (), ())
    table = pd.concat(known, axis=1).sort_index()
    count = table.count(axis=1)
    table = table[(count > 0) & (count >= least * len(known))]
    parts = (table.mean(axis=1), table.min(axis=1), table.max(axis=1), table.count(axis=1))
    y, low, high, n = (tuple(float(value) for value in part) for part in parts)
    return Curve(arm, tuple(float(place) for place in table.index), y, low, high, n)


def near_the_best(curves: Iterable[Curve]) -> float:
    """From where curves of Dice are drawn, so that what arms differ in is not lost in what all of them rise from: a
    multiple of 0.05, 0.1 or more below the best of the worst arm; NaN without curves."""
    best = [max(curve.y) for curve in curves if curve.y]
    return max(math.floor(20 * (min(best) - 0.1) + 1e-9) / 20, 0.0) if best else math.nan


def drawn(panels: Iterable[Panel]) -> tuple[Panel, ...]:
    """The panels that show something, without the curves that do not."""
    shown = (replace(panel, curves=tuple(curve for curve in panel.curves if curve.x)) for panel in panels)
    return tuple(panel for panel in shown if panel.curves)


def timed_alike(reading: Reading) -> set[Path]:
    """Directories of the runs whose durations may be compared: those on one machine, on which every arm ran.

    A machine is host, device and threads; of several that with most runs is taken. Tells what is left out.
    """
    where = {run.path: _machine(run) for runs in reading.runs.values() for run in runs}
    arms = [{where[run.path] for run in runs} for runs in reading.runs.values() if runs]
    shared = set.intersection(*arms) if arms else set()
    count = Counter(where.values())
    chosen = max(sorted(shared), key=lambda machine: count[machine], default=None)
    for runs in reading.runs.values():
        for run in runs:
            if chosen is None:
                reading.tell("no durations, for no machine (host, device, threads) ran every arm", run)
            elif where[run.path] != chosen:
                reading.tell(f"no durations, for they did not run where every arm did: {chosen}", run)
    return {path for path, machine in where.items() if machine == chosen}


def _machine(run: Finished) -> str:
    device = run.record.get("device") or {}
    name = f"{device.get('type')} ({device.get('name')})"
    return f"host {run.record.get('host')}, {name}, {device.get('threads')} threads"
