"""Values behind a comparison: per image (or group) of runs, and the scores of runs, seeds and arms.

Axes: K runs (seeds), N images, F foreground classes, U units (groups where there are any, else images). Runs are named
by (fold, seed), fold "" without cross-validation.
"""

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

from segexp.compare.blocks import ArmRuns, BlockRuns, RunKey, by_number
from segexp.compare.result import METRICS, Metric
from segexp.errors import UsageError
from segexp.evaluation.scores import EmptyPolicy, group_means, image_scores
from segexp.records.formatting import pluralize
from segexp.records.load import Images, Layout
from segexp.records.runs import Run
from segexp.records.scores import PIXELS, SCORES, unit_of
from segexp.registry import nearest

Runs = Mapping[RunKey, Run]


def metric_of(name: str, rope: float | None) -> Metric:
    """A metric by name. rope: half-width of negligible differences, in points where the metric is printed in points.

    Raises UsageError for an unknown name or a negative or infinite rope.
    """
    if name not in METRICS:
        raise UsageError(f"unknown metric '{name}'{nearest(name, list(METRICS))}")
    metric = METRICS[name]
    if rope is None:
        return metric
    if not 0 <= rope < math.inf:
        raise UsageError(f"--rope {rope:g}: the half-width of negligible differences must be 0 or more")
    return dataclasses.replace(metric, rope=rope / 100 if metric.points else rope)


def measured_in(metric: Metric, runs: Sequence[Run]) -> Metric:
    """The metric with the unit of these runs: distances are in mm where the spacing of pixels is known."""
    if SCORES[metric.name].unit != PIXELS:
        return metric
    units = sorted({unit_of(SCORES[metric.name], run.row.get("config_dataset_spacing")) for run in runs})
    return dataclasses.replace(metric, unit=" or ".join(units))


@dataclass(frozen=True)
class Values:
    """Values of K runs on the units they have in common. n_images: images behind them; dropped: what was left out."""

    units: tuple[str, ...]
    values_KU: np.ndarray
    n_images: int
    dropped: str


@dataclass(frozen=True)
class Scorer:
    """Reads the values of one metric from runs. policy: how images without reference count."""

    metric: Metric
    policy: EmptyPolicy

    def values(self, runs: Sequence[Run]) -> Values:
        """One value per run and unit, on the images for which all runs have a value. Each run must have images.

        Raises UsageError where runs differ in their classes, or one does not hold the metric.
        """
        name = self.metric.name
        images = [cast(Images, run.images) for run in runs]
        for run, of_run in zip(runs, images, strict=True):
            if name not in of_run.cells:
                raise UsageError(f"run {run.run_id} has no {name} per image: an older segexp made it")
        names, kept = _common(images)
        u_KN = np.array([self._per_image(i, part) for i, part in zip(images, kept, strict=True)])
        first = images[0].layout.groups
        groups = tuple(first[n] for n in kept[0])
        enters_N = ~np.isnan(u_KN).any(axis=0)
        # An image without a value in one run is left out of all runs, before its group is averaged.
        u_KN = np.where(enters_N, u_KN, np.nan)
        values_KU = np.array([group_means(u_N, groups) for u_N in u_KN])
        units = tuple(dict.fromkeys(group or name for group, name in zip(groups, names, strict=True)))
        present_U = ~np.isnan(values_KU).any(axis=0)
        all_names = set().union(*(of_run.layout.image_ids for of_run in {id(i.layout): i for i in images}.values()))
        dropped = []
        if len(all_names) > len(names):
            dropped.append(f"{pluralize(len(all_names) - len(names), 'image')} not in all runs")
        lost = sum(not enters_N[n] and self._expected(images, kept, n) for n in range(len(names)))
        if lost:
            dropped.append(f"{pluralize(lost, 'image')} without {self.metric.name} in some runs")
        return Values(
            tuple(unit for unit, present in zip(units, present_U, strict=True) if present),
            values_KU[:, present_U],
            int(enters_N.sum()),
            " and ".join(dropped),
        )

    def _per_image(self, images: Images, kept: np.ndarray) -> np.ndarray:
        """The value of each kept image; their mean is the primary score on these images."""
        cells_NF = images.cells[self.metric.name][kept]
        averaged = SCORES[self.metric.name].averaged
        if averaged == "all":
            return cells_NF.mean(axis=1)
        policy: EmptyPolicy = self.policy if averaged == "empty_policy" else "reference"
        return image_scores(cells_NF, images.layout.n_reference_NF[kept], policy)

    def _expected(self, images: Sequence[Images], kept: Sequence[np.ndarray], n: int) -> bool:
        """Whether image n should have a value: its reference holds a class, or every image counts."""
        if self.policy == "both_empty_one" or SCORES[self.metric.name].averaged == "all":
            return True
        return any((i.layout.n_reference_NF[part[n]] > 0).any() for i, part in zip(images, kept, strict=True))

    def out_of_fold(self, parts: Mapping[str, Sequence[Run]]) -> Values:
        """Out-of-fold values. parts: fold -> the same K rows (arm and seed) in the same order.

        Every image is in one fold. The units of all folds stand side by side; class weights are those of all images.
        """
        rows = list(zip(*parts.values(), strict=True))
        return self.values([dataclasses.replace(row[0], images=_side_by_side(row)) for row in rows])

    def score(self, run: Run) -> float:
        """The score of one run on all of its own images, NaN where it has none."""
        name = self.metric.name
        if not self.metric.per_image:
            return run.number(name)
        if run.images is None or name not in run.images.cells:
            return math.nan

        def mean() -> float:
            values = self.values([run]).values_KU
            return float(values.mean()) if values.size else math.nan

        return run.once(name, self.policy, mean)

    def scored(self, arm: ArmRuns) -> dict[RunKey, Run]:
        """The runs of an arm whose score is a number, in order of fold and seed."""
        in_order = sorted(arm.scored, key=by_number)
        return {key: arm.scored[key] for key in in_order if math.isfinite(self.score(arm.scored[key]))}

    def of_seeds(self, runs: Runs, folds: Collection[str]) -> dict[str, float]:
        """Seed -> score. In cross-validation: for the seeds that have all ``folds``, over their out-of-fold values, or
        the mean over folds for scores without values per image."""
        if not folds:
            return {seed: self.score(run) for (_, seed), run in runs.items()}
        return {
            seed: self._over_folds([runs[RunKey(fold, seed)] for fold in folds]) for seed in complete_seeds(runs, folds)
        }

    def _over_folds(self, runs: Sequence[Run]) -> float:
        if self.metric.per_image:
            return float(self.out_of_fold({str(n): [run] for n, run in enumerate(runs)}).values_KU.mean())
        return sum(self.score(run) for run in runs) / len(runs)

    def mean(self, runs: Runs, folds: Collection[str]) -> float:
        """The mean over seeds. Where no seed has all folds: the mean of the folds' means, as in the test over folds,
        or NaN where a fold is missing, because means over different folds cannot be compared."""
        of_seeds = self.of_seeds(runs, folds)
        if of_seeds:
            return sum(of_seeds.values()) / len(of_seeds)
        of_folds = [[self.score(run) for (f, _), run in runs.items() if f == fold] for fold in folds]
        if not of_folds or not all(of_folds):
            return math.nan
        return sum(sum(scores) / len(scores) for scores in of_folds) / len(of_folds)


def folds_of(block: BlockRuns) -> tuple[str, ...]:
    """The folds of any arm of a block, none without cross-validation."""
    found = {key for arm in block.arms.values() for key in arm.scored}
    return tuple(dict.fromkeys(fold for fold, _ in sorted(found, key=by_number) if fold))


def complete_seeds(keys: Collection[RunKey], folds: Collection[str]) -> list[str]:
    """The seeds that have all folds, in order."""
    seeds = sorted({seed for _, seed in keys}, key=int)
    return [seed for seed in seeds if all(RunKey(fold, seed) in keys for fold in folds)]


def _common(images: Sequence[Images]) -> tuple[tuple[str, ...], list[np.ndarray]]:
    """Names of the images that all runs have, in order, and their indices in each run."""
    layouts = {id(i.layout): i.layout for i in images}
    first = images[0].layout
    if any(layout.classes != first.classes for layout in layouts.values()):
        raise UsageError("runs with different classes cannot be compared image by image")
    if len(layouts) == 1:
        return first.image_ids, [np.arange(len(first.image_ids))] * len(images)
    names = tuple(sorted(set.intersection(*(set(layout.image_ids) for layout in layouts.values()))))
    indices = {}
    for key, layout in layouts.items():
        at = {name: n for n, name in enumerate(layout.image_ids)}
        indices[key] = np.array([at[name] for name in names], dtype=np.int64)
    return names, [indices[id(i.layout)] for i in images]


def _side_by_side(runs: Sequence[Run]) -> Images:
    """The images of several runs as those of one."""
    images = [cast(Images, run.images) for run in runs]
    layouts = [i.layout for i in images]
    layout = Layout(
        tuple(name for each in layouts for name in each.image_ids),
        tuple(group for each in layouts for group in each.groups),
        layouts[0].classes,
        np.concatenate([each.n_reference_NF for each in layouts]),
    )
    names = [name for name in images[0].cells if all(name in i.cells for i in images)]
    cells = {name: np.concatenate([i.cells[name] for i in images]) for name in names}
    return Images(layout, cells, np.concatenate([i.counts_NF3 for i in images]))
