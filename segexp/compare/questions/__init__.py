"""Secondary analyses of runs that were compared (`compare --questions`). Adding one is adding one file here.

Every module of this package is imported, and its name is that of the question. Its function, decorated with `question`,
is the whole entry: titles, and what it computes from the records of the runs.
"""

import copy
import functools
import importlib
import math
import os
import pkgutil
import statistics
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd

from segexp.compare.kept import FROM_RUNS, kept_tables
from segexp.compare.result import METRICS, Answer, Block, Curve, Metric, Panel
from segexp.errors import UsageError
from segexp.evaluation import dice_and_iou, fp_rate_empty, primary_score
from segexp.records import KEYS
from segexp.records.process import in_parallel
from segexp.records.runs import Run, run_at, shown_state
from segexp.records.scores import SPLITS
from segexp.records.tables import Images, load
from segexp.registry import Registry

IN_IMAGES = ("dice", "iou", "nsd", "hd95", "nll", "brier", "fp_rate_empty")
"""Scores of the summary that follow from images.csv, and so are known of the validation split too."""

IN_BINS = ("ece15", "ece15_t")
"""Those that follow from bins.csv."""

OF_EPOCHS, OF_TIMINGS = ("epoch", "split", "step", "loss", "dice"), ("epoch", "seconds", "images_per_s", "peak_mem_mib")
OF_CELLS = ("image_id", "class_id", "group_id", "n_gt", "n_pred", "dice")
OF_BINS = ("class_id", "region", "scaled", "bin", "n", "sum_p", "sum_y")

NO_BINS = "activations without probabilities have no reliability diagram"

BANDS = "Lines are means over runs, each of the same weight; bands reach from the lowest to the highest run."


OF_FOLDS = "Means are over runs, each of one fold. The ranking scores a seed over all folds: its Dice differs."

Compared = tuple[Block | None, Metric, Sequence[Run] | None]
ALONE: Compared = (None, METRICS["dice"], None)
"""What `compare` found: the block, its metric, and all runs with their images, None where they were not read."""


class Reading:
    """The finished runs of each arm, and notes on the runs that are left out.

    titles: a question may add titles of columns that depend on the runs; ranking, metric: what `compare` found; every:
    all runs, whose places are the column "run" of `rows`. Each record and table is read once, see `again`.
    """

    def __init__(self, arms: Mapping[str, Sequence[Path]], split: str, compared: Compared = ALONE) -> None:
        self.split, self.titles = split, dict[str, str]()
        block, self.metric, self.loaded = compared
        self.ranking = block.ranking if block else ()
        self._of = (block.dataset, block.dataset_sha, sorted(block.conditions.items())) if block else ()
        self._tables: dict[Any, tuple[pd.DataFrame | None, dict[int, str]]] = {}
        self.n_runs = sum(len(directories) for directories in arms.values())
        self._arm_of = {Path(os.path.abspath(path)): arm for arm, of_arm in arms.items() for path in of_arm}
        self._known = {run.path: run for run in self.loaded or () if not run.collected}
        self._noted: dict[str, tuple[dict[Path, str], str]] = {}
        # Sorted: the answers must not depend on the order in which runs were found.
        paths = sorted(self._arm_of)
        self.runs = {
            arm: [run for path in paths if self._arm_of[path] == arm and (run := self._run(path))] for arm in arms
        }
        self.every = [run for of_arm in self.runs.values() for run in of_arm]
        self.arm_N = [arm for arm, of_arm in self.runs.items() for _ in of_arm]

    def again(self) -> "Reading":
        """The same runs and tables for another question, with the notes on runs that no question can use."""
        other = copy.copy(self)
        other.titles, other._noted = {}, copy.deepcopy(self._noted)
        return other

    def images(self) -> Mapping[Path, Run]:
        """The runs with their scores per image, by directory."""
        paths = [run.path for run in self.every]
        if self.loaded is None:
            self.loaded = load(paths, self.split).runs if paths else ()
        return {run.path: run for run in self.loaded}

    def cells(self) -> pd.DataFrame:
        """`rows` of images.csv on the split with the columns `OF_CELLS`, from the images that `compare` has read."""
        if self.loaded is None:
            return self.rows("images", OF_CELLS, "", split=self.split)
        found: dict[str, list[Any]] = {name: [] for name in ("run", *OF_CELLS)}
        for number, run in enumerate(self.every):
            images = cast(Images, run.images)
            layout, (n, width) = images.layout, images.layout.n_reference_NF.shape
            found["run"].append(np.full(n * width, number))
            for name, of_images in (("image_id", layout.image_ids), ("group_id", layout.groups)):
                found[name].append(np.repeat(np.array(of_images, dtype=object), width))
            found["class_id"].append(np.tile(layout.classes, n))
            found["n_gt"].append(layout.n_reference_NF.ravel())
            found["n_pred"].append(images.counts_NF3[..., :2].sum(axis=-1).ravel())
            found["dice"].append(images.cells["dice"].ravel())
        return pd.DataFrame({name: np.concatenate(parts) if parts else [] for name, parts in found.items()})

    def _run(self, path: Path) -> Run | None:
        try:
            run = self._known.get(path) or run_at(path)
        except UsageError as error:
            self._note("left out, without a record that can be read", path, str(error))
            return None
        if run.state == "unreadable":
            self._note("left out, without a record that can be read", path, run.reason)
        elif run.state != "done":
            self._note("left out, because they are not done", path, f"{path} is {shown_state(run.state)}")
        return run if run.state == "done" else None

    def note(self, what: str, run: Run, example: str = "") -> None:
        """Count a run, once, in the note "k of n runs (arms): <what>", which quotes the first example."""
        self._note(what, run.path, example)

    def _note(self, what: str, path: Path, example: str) -> None:
        counted, _ = self._noted.setdefault(what, ({}, example))
        counted[path] = self._arm_of[path]

    def notes(self) -> list[str]:
        """The notes, a line each, in order of the first time."""
        lines = []
        for what, (counted, example) in self._noted.items():
            arms = ", ".join(f"{arm} {count}" for arm, count in Counter(counted.values()).items())
            lines.append(f"{len(counted)} of {self.n_runs} runs ({arms}): {what}{example and f'; {example}'}")
        return lines

    def rows(self, table: str, columns: Collection[str], why_empty: str, **only: str) -> pd.DataFrame:
        """These columns of a table of all runs, of the rows where the columns ``only`` have these values, in order of
        the runs; the column "run" is the place of the run in ``every``.

        Runs whose table cannot be used, or has no such rows, are left out with a note; why_empty: the harmless reason
        for no rows. Whole numbers have no missing values.
        """
        key = table, *columns
        if key not in self._tables:
            self._tables[key] = kept_tables(self.every, table, columns, self._of)
        rows, wrong = self._tables[key]
        for number, reason in wrong.items():
            self.note(f"left out of {table}.csv, which is missing, incomplete or damaged", self.every[number], reason)
        if rows is None:
            rows = pd.DataFrame(columns=[*dict.fromkeys(("run", *KEYS[table], *columns))], dtype=float)
        for name, value in only.items():
            rows = rows[rows[name] == value]
        values, known = "".join(f" of {value}" for value in only.values()), set(rows["run"])
        for number, run in enumerate(self.every):
            if number not in known and number not in wrong:
                self.note(f"no rows{values} in {table}.csv{why_empty and f': {why_empty}'}", run)
        return rows

    def of_arms(self, values: pd.Series) -> dict[str, list[float]]:
        """arm -> the values of its runs, of a series by the place of the run in ``every``; not of runs without one."""
        found: dict[str, list[float]] = {arm: [] for arm in self.runs}
        for number, value in values.sort_index().items():
            found[self.arm_N[cast(int, number)]].append(float(value))
        return found

    def curves(self, values: pd.Series, least: float = 0.0) -> tuple[Curve, ...]:
        """A band over runs for each arm, of a series by run and place. n: runs that have a value at the place; places
        of fewer than ``least`` of the arm's runs are left out."""
        found = []
        table = values.unstack(level=0)
        for arm in self.runs:
            of_arm = table[[n for n in table if self.arm_N[cast(int, n)] == arm]]
            count = of_arm.count(axis=1)
            of_arm = of_arm[(count > 0) & (count >= least * of_arm.shape[1])]
            parts = (of_arm.mean(axis=1), of_arm.min(axis=1), of_arm.max(axis=1), of_arm.count(axis=1))
            y, low, high, n = (tuple(float(value) for value in part) for part in parts)
            found.append(Curve(arm, tuple(float(place) for place in of_arm.index), y, low, high, n))
        return tuple(found)

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
                    self.note(f"no {', '.join(absent)}{f' of the {self.split} split' if elsewhere else ''}", run)
            found[arm] = {name: [row[i] for row in rows] for i, name in enumerate(names)}
        return found

    def _of_split(self, names: Collection[str]) -> dict[Path, dict[str, float]]:
        """Scores by run directory from the tables, as the summary, which is of the test split, has them."""
        # A temperature belongs to the run.
        known = {run.path: {"temperature": run.number("temperature")} for run in self.every}
        if not set(names).isdisjoint(IN_IMAGES):
            of_cells = ("image_id", "class_id", "group_id", "tp", "fp", "fn", "nsd", "hd95", "nll", "brier")
            for place, frame in self.rows("images", of_cells, "", split=self.split).groupby("run"):
                run = self.every[cast(int, place)]
                known[run.path] |= scores_of_images(frame, run.config.get("metrics.empty_policy", "reference"))
        if not set(names).isdisjoint(IN_BINS):
            bins = self.rows("bins", OF_BINS, NO_BINS, split=self.split)
            for scaled, name in enumerate(IN_BINS):
                for number, value in calibration_errors(bins, "all", scaled).items():
                    known[self.every[cast(int, number)].path][name] = float(value)
        return known


def scores_of_images(images: pd.DataFrame, policy: Any) -> dict[str, float]:
    """The scores `IN_IMAGES` from the rows of one split, as the summary has them."""

    def cells_NF(name: str) -> np.ndarray:
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


def calibration_errors(bins: pd.DataFrame, region: str, scaled: int) -> pd.Series:
    """Mean over classes of the expected calibration error of each run, from the rows of bins.csv of one split."""
    rows = bins[(bins["region"] == region) & (bins["scaled"] == scaled)]
    gap = (rows["sum_y"] - rows["sum_p"]).abs()
    sums = rows.assign(gap=gap).groupby(["run", "class_id"])[["gap", "n"]].sum()
    return (sums["gap"] / sums["n"].where(sums["n"] > 0)).groupby("run").mean()


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


def near_the_best(curves: Iterable[Curve]) -> float:
    """The lower end of the axis of Dice, so that the differences between arms stay visible: a multiple of 0.05, 0.1 or
    more below the best value of the worst arm; NaN without curves."""
    best = [max(curve.y) for curve in curves if curve.y]
    return max(math.floor(20 * (min(best) - 0.1) + 1e-9) / 20, 0.0) if best else math.nan


def drawn(panels: Iterable[Panel]) -> tuple[Panel, ...]:
    """The panels that show something, without the curves that do not."""
    shown = (replace(panel, curves=tuple(curve for curve in panel.curves if curve.x)) for panel in panels)
    return tuple(panel for panel in shown if panel.curves)


def timed_alike(reading: Reading) -> set[Path]:
    """Directories of the runs whose durations may be compared: those on one machine, on which every arm ran.

    A machine is host, device and threads; of several that with most runs is taken. What is left out is noted, and runs
    whose steps took longer because they were not captured as a CUDA graph.
    """
    where, captured = {}, {}
    for run in (run for runs in reading.runs.values() for run in runs):
        device = run.record.get("device") or {}
        name = f"{device.get('type')} ({device.get('name')})"
        captured[run.path] = device.get("captured")
        where[run.path] = f"host {run.record.get('host')}, {name}, {device.get('threads')} threads"
    arms = [{where[run.path] for run in runs} for runs in reading.runs.values() if runs]
    shared = set.intersection(*arms) if arms else set()
    count = Counter(where.values())
    chosen = max(sorted(shared), key=lambda machine: count[machine], default=None)
    for run in (run for runs in reading.runs.values() for run in runs):
        if chosen is None:
            reading.note("no durations, because no machine (host, device, threads) ran every arm", run)
        elif where[run.path] != chosen:
            reading.note(f"no durations, because they did not run on the machine of every arm: {chosen}", run)
    alike = {path for path, machine in where.items() if machine == chosen}
    if len({captured[path] for path in alike}) > 1:
        for run in (run for runs in reading.runs.values() for run in runs if run.path in alike):
            if not captured[run.path]:
                reading.note("not captured as a CUDA graph, as others are: a step may take several times as long", run)
    return alike


# The questions

Findings = tuple[Sequence[Mapping[str, Any]], Sequence[Panel], Sequence[str]]
"""Rows (one per arm, all with the same keys), panels and notes."""


@dataclass(frozen=True)
class Question:
    """A secondary analysis. titles: column of a row -> title with its unit, for columns that are not scores."""

    name: str
    title: str
    titles: Mapping[str, str]
    analyse: Callable[[Reading], Findings]

    def answer(self, reading: Reading) -> Answer:
        """The answer, with notes on runs that lack what is needed."""
        rows, panels, notes = self.analyse(reading)
        in_folds = any(run.config.get("split.fold") is not None for run in reading.every)
        if in_folds and any("dice" in row for row in rows):
            notes = [*notes, OF_FOLDS]
        titles = {**self.titles, **reading.titles}
        return Answer(self.name, self.title, tuple(rows), drawn(panels), (*notes, *reading.notes()), titles)


QUESTIONS: Registry[Question] = Registry("question")


def question(title: str, titles: Mapping[str, str]) -> Callable[[Callable[[Reading], Findings]], Question]:
    """Decorator: register a function under the name of its module."""

    def register(analyse: Callable[[Reading], Findings]) -> Question:
        name = analyse.__module__.rpartition(".")[2]
        QUESTIONS.add(name, Question(name, title, titles, analyse))
        return QUESTIONS[name]

    return register


def ask(
    names: Sequence[str], arms: Mapping[str, Sequence[Path]], split: str = "test", compared: Compared = ALONE
) -> list[Answer]:
    """The answers to the questions ``names``, in this order.

    arms: label -> directories of finished runs, of one data set under equal conditions; each run has the same weight.
    Raises UsageError for an unknown question or split, before anything is read.
    """
    if split not in SPLITS:
        raise UsageError(f"split {split}: choose {' or '.join(SPLITS)}")
    asked = [QUESTIONS.find(name) for name in names]
    reading = Reading(arms, split, compared)
    answers = [functools.partial(one.answer, reading.again()) for one in asked]
    return in_parallel(answers) if reading.n_runs >= FROM_RUNS else [answer() for answer in answers]


def answers_of(
    block: Block, names: Sequence[str], split: str, metric: Metric, loaded: Sequence[Run] | None = None
) -> tuple[Answer, ...]:
    """The answers for the arms of a block; none for collected tables, which have no run directories. loaded: all runs
    with their images, if they have been read."""
    arms = {arm.arm: [Path(directory) for directory in arm.directories] for arm in block.ranking if arm.directories}
    if not arms:
        return ()
    return tuple(ask(names, arms, split, (block, metric, loaded)))


for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
