"""The values that are compared: scores, and for each run one value per image, or per group of images.

Axes: K runs (seeds), N images, F foreground classes, U units (groups where there are any, else images).
"""

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from segexp.compare.blocks import ArmRuns, BlockRuns, RunKey, by_number
from segexp.compare.result import METRICS, Metric
from segexp.errors import UsageError
from segexp.evaluation.scores import EmptyPolicy, group_means, image_scores
from segexp.records.formatting import pluralize
from segexp.records.load import Images, Layout
from segexp.records.runs import Run
from segexp.records.scores import PIXELS, SCORES, unit_of
from segexp.registry import nearest

if TYPE_CHECKING:
    import numpy as np


def metric_of(name: str, rope: float | None) -> Metric:
    """A metric with the half-width of what is negligible, given in points where the metric is printed in points.

    Raises UsageError for an unknown name and a width that is none.
    """
    if name not in METRICS:
        raise UsageError(f"unknown metric '{name}'{nearest(name, list(METRICS))}")
    metric = METRICS[name]
    if rope is None:
        return metric
    if not 0 <= rope < float("inf"):
        raise UsageError(f"--rope {rope:g}: what is negligible is a width of 0 or more")
    return dataclasses.replace(metric, rope=rope / 100 if metric.points else rope)


def measured_in(metric: Metric, runs: Sequence[Run]) -> Metric:
    """The metric with the unit of these runs: a distance is in mm where the spacing of pixels is known."""
    if SCORES[metric.name].unit != PIXELS:
        return metric
    units = sorted({unit_of(SCORES[metric.name], run.row.get("config_dataset_spacing")) for run in runs})
    return dataclasses.replace(metric, unit=" or ".join(units))


@dataclass(frozen=True)
class Values:
    """Values of K runs on the units they have in common. n_images: images behind them; dropped: what was left out."""

    units: tuple[str, ...]
    values_KU: "np.ndarray"
    n_images: int
    dropped: str


def values_of(runs: Sequence[Run], metric: Metric, policy: EmptyPolicy) -> Values:
    """One value per run and unit, on the images that all of them have a value for. Each run must have images.

    Raises UsageError where the runs tell different classes apart, or a run does not hold the metric.
    """
    import numpy as np

    images = [cast(Images, run.images) for run in runs]
    for run, of_run in zip(runs, images, strict=True):
        if metric.name not in of_run.cells:
            raise UsageError(f"run {run.run_id} has no {metric.name} per image: it was made by an older segexp")
    names, kept = _common(images)
    u_KN = np.array([_per_image(i, metric, policy, part) for i, part in zip(images, kept, strict=True)])
    first = images[0].layout.groups
    groups = tuple(first[n] for n in kept[0])
    enters_N = ~np.isnan(u_KN).any(axis=0)
    # An image without a value in one of the runs is left out of all, before its group is averaged.
    u_KN = np.where(enters_N, u_KN, np.nan)
    values_KU = np.array([group_means(u_N, groups) for u_N in u_KN])
    units = tuple(dict.fromkeys(group or name for group, name in zip(groups, names, strict=True)))
    present_U = ~np.isnan(values_KU).any(axis=0)
    all_names = set().union(*(of_run.layout.image_ids for of_run in {id(i.layout): i for i in images}.values()))
    dropped = []
    if len(all_names) > len(names):
        dropped.append(f"{pluralize(len(all_names) - len(names), 'image')} that not all runs have")
    lost = [n for n in range(len(names)) if not enters_N[n] and _scored_somewhere(images, kept, metric, policy, n)]
    if lost:
        has = "has" if len(lost) == 1 else "have"
        dropped.append(f"{pluralize(len(lost), 'image')} that {has} no {metric.name} in some runs")
    return Values(
        tuple(unit for unit, there in zip(units, present_U, strict=True) if there),
        values_KU[:, present_U],
        int(enters_N.sum()),
        " and ".join(dropped),
    )


def _common(images: Sequence[Images]) -> tuple[tuple[str, ...], list["np.ndarray"]]:
    """Names of the images that all runs have, in order, and where each run holds them."""
    import numpy as np

    layouts = {id(i.layout): i.layout for i in images}
    first = images[0].layout
    if any(layout.classes != first.classes for layout in layouts.values()):
        raise UsageError("runs that tell different classes apart cannot be compared image by image")
    if len(layouts) == 1:
        return first.image_ids, [np.arange(len(first.image_ids))] * len(images)
    shared = set.intersection(*(set(layout.image_ids) for layout in layouts.values()))
    names = tuple(sorted(shared))
    places = {}
    for key, layout in layouts.items():
        at = {name: n for n, name in enumerate(layout.image_ids)}
        places[key] = np.array([at[name] for name in names], dtype=np.int64)
    return names, [places[id(i.layout)] for i in images]


def _per_image(images: Images, metric: Metric, policy: EmptyPolicy, kept: "np.ndarray") -> "np.ndarray":
    """The value of each image that is kept: its mean over them is the primary score on these images."""
    cells_NF = images.cells[metric.name][kept]
    if metric.name in ("nll", "brier"):
        return cells_NF.mean(axis=1)
    counted: EmptyPolicy = policy if metric.name in ("dice", "iou") else "reference"
    return image_scores(cells_NF, images.layout.n_reference_NF[kept], counted)


def _scored_somewhere(
    images: Sequence[Images], kept: Sequence["np.ndarray"], metric: Metric, policy: EmptyPolicy, n: int
) -> bool:
    """Whether an image should have a value: its reference holds a class, or every image counts."""
    if policy == "both_empty_one" or metric.name in ("nll", "brier"):
        return True
    return any((i.layout.n_reference_NF[part[n]] > 0).any() for i, part in zip(images, kept, strict=True))


def summary_value(run: Run, metric: Metric) -> float:
    """The run's own score of a metric that images.csv does not hold."""
    return run.number(metric.name)


def joined(parts: Mapping[str, Sequence[Run]], metric: Metric, policy: EmptyPolicy) -> Values:
    """Out-of-fold values: parts holds for each fold the same K rows (arm and seed) in the same order.

    Every image is in one fold; the units of all folds stand side by side, class weights are those of all images.
    """
    rows = list(zip(*parts.values(), strict=True))
    whole = []
    for row in rows:
        images = [cast(Images, run.images) for run in row]
        whole.append(_side_by_side(images))
    stand_ins = [dataclasses.replace(row[0], images=images) for row, images in zip(rows, whole, strict=True)]
    return values_of(stand_ins, metric, policy)


def _side_by_side(images: Sequence[Images]) -> Images:
    import numpy as np

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


def score_of(run: Run, metric: Metric, policy: EmptyPolicy) -> float:
    """The score of one run on all of its own images, NaN where it has none."""
    if not metric.per_image:
        return summary_value(run, metric)
    if run.images is None or metric.name not in run.images.cells:
        return math.nan

    def mean() -> float:
        values = values_of([run], metric, policy).values_KU
        return float(values.mean()) if values.size else math.nan

    return run.once(metric.name, policy, mean)


def scored_runs(group: ArmRuns, metric: Metric, policy: EmptyPolicy) -> dict[RunKey, Run]:
    """The runs of an arm whose score is a number, in order of fold and seed."""
    return {
        key: group.scored[key]
        for key in sorted(group.scored, key=by_number)
        if math.isfinite(score_of(group.scored[key], metric, policy))
    }


def folds_of(ground: BlockRuns) -> tuple[str, ...]:
    """The folds that any arm of a block has, none without cross-validation."""
    found = {key for group in ground.groups.values() for key in group.scored}
    return tuple(dict.fromkeys(fold for fold, _ in sorted(found, key=by_number) if fold))


def seed_scores(
    runs: Mapping[RunKey, Run], folds: Collection[str], metric: Metric, policy: EmptyPolicy
) -> dict[str, float]:
    """Seed -> score. With folds: of the seeds that have all of them, joined where there are values of images, else the
    mean over the folds."""
    if not folds:
        return {seed: score_of(run, metric, policy) for (_, seed), run in runs.items()}
    return {
        seed: _over_folds([runs[RunKey(fold, seed)] for fold in folds], metric, policy) for seed in whole(runs, folds)
    }


def whole(keys: Collection[RunKey], folds: Collection[str]) -> list[str]:
    """The seeds that have all folds, in order."""
    seeds = sorted({seed for _, seed in keys}, key=int)
    return [seed for seed in seeds if all(RunKey(fold, seed) in keys for fold in folds)]


def _over_folds(runs: list[Run], metric: Metric, policy: EmptyPolicy) -> float:
    if metric.per_image:
        return float(joined({str(n): [run] for n, run in enumerate(runs)}, metric, policy).values_KU.mean())
    return sum(summary_value(run, metric) for run in runs) / len(runs)


def mean_score(runs: Mapping[RunKey, Run], folds: Collection[str], metric: Metric, policy: EmptyPolicy) -> float:
    """The mean over seeds. Where no seed has all folds, the mean of the folds' means, as the test over folds has it;
    NaN where one of them is missing, for means over different folds cannot be held against each other."""
    of_seeds = seed_scores(runs, folds, metric, policy)
    if of_seeds:
        return sum(of_seeds.values()) / len(of_seeds)
    of_folds = [[score_of(run, metric, policy) for (f, _), run in runs.items() if f == fold] for fold in folds]
    if not of_folds or not all(of_folds):
        return math.nan
    return sum(sum(scores) / len(scores) for scores in of_folds) / len(of_folds)
