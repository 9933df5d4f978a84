"""The values of one metric, read from runs: per image, of seeds and folds, and of arms with their intervals.

Axes: K runs (seeds; L for an unpaired reference), N images, F foreground classes or folds, U units (groups where there
are any, else images). Runs are named by (fold, seed), fold "" where there is one split.
"""

import itertools
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np

from segexp.compare import statistics as stats
from segexp.compare.blocks import ArmRuns, BlockRuns, RunKey, are_splits, by_number
from segexp.compare.result import FEWEST_SEEDS, METRICS, NO_CLASS, Each, Interval, Metric
from segexp.errors import UsageError
from segexp.evaluation import EmptyPolicy, group_means, linearised_scores
from segexp.records.formatting import pluralize
from segexp.records.runs import Run
from segexp.records.scores import OWN, PIXELS, Score, recorded_scores, title_of, unit_of
from segexp.records.tables import Images, Layout
from segexp.registry import nearest

Runs = Mapping[RunKey, Run]


def own_scores(runs: Iterable[Run]) -> dict[str, Score]:
    """Column -> score of the scores of plugins that runs recorded. Raises UsageError where two describe one
    differently."""
    found: dict[str, tuple[Run, Score]] = {}
    for text, run in {run.row["scores"]: run for run in runs if run.row.get("scores")}.items():
        try:
            scores = recorded_scores(text)
        except ValueError as error:
            raise UsageError(f"{run.path}: run {run.run_id}: {error}: restore the file") from None
        for name, score in scores.items():
            other, known = found.setdefault(name, (run, score))
            if repr(known) != repr(score):  # NaN is not equal to itself
                both = f"{run.run_id} ({run.path}) and {other.run_id} ({other.path})"
                one = name.removeprefix(OWN)
                raise UsageError(f"the score {one} has other facts in the runs {both}: compare them separately")
    return {name: score for name, (_, score) in found.items()}


def metric_of(name: str, rope: float | None, own: Mapping[str, Score] | None = None) -> Metric:
    """A metric by name. rope: half-width of negligible differences, in points where the metric is printed in points.
    own: scores of plugins, by column; the name may leave out its begin.

    Raises UsageError for an unknown name or a negative or infinite rope.
    """
    score = next((one for column, one in (own or {}).items() if name in (column, column.removeprefix(OWN))), None)
    if name not in METRICS and score is None:
        names = [*METRICS, *(column.removeprefix(OWN) for column in own or ())]
        raise UsageError(f"unknown metric '{name}'{nearest(name, names)}")
    metric = METRICS.get(name) or Metric.of(score, score)  # type: ignore[arg-type]
    if rope is None:
        return metric
    if not 0 <= rope < math.inf:
        raise UsageError(f"--rope {rope:g}: the half-width of negligible differences must be 0 or more")
    return replace(metric, rope=rope / 100 if metric.points else rope)


def measured_in(metric: Metric, runs: Sequence[Run]) -> Metric:
    """The metric with the title and unit of these runs: distances are in mm where the spacing of pixels is known."""
    score = metric.score
    variants = {(run.row.get("config_metrics_nsd"), run.row.get("config_metrics_unit")) for run in runs}
    titles = sorted({title_of(score, *variant) for variant in variants}) or [score.title]
    metric = replace(metric, title=metric.title.replace(score.title, " or ".join(titles)))
    if score.unit != PIXELS:
        return metric
    known = [(run.row.get("config_dataset_spacing"), run.row.get("distance_unit")) for run in runs]
    units = sorted({unit_of(score, *of_run) for of_run in known})
    return replace(metric, unit=" or ".join(units))


@dataclass(frozen=True)
class Values:
    """Values of K runs on the units they have in common. images: those behind them; dropped: what was left out."""

    units: tuple[str, ...]
    values_KU: np.ndarray
    images: tuple[str, ...]
    dropped: str


@dataclass(frozen=True)
class Scorer:
    """Reads the values of one metric from runs. policy: how images without reference count; each: what is scored."""

    metric: Metric
    policy: EmptyPolicy
    each: Each = "image"

    def images(self, run: Run) -> Images | None:
        """The images of a run, with the scored class alone where it is one; None where the run does not have it."""
        whole = run.images is None or self.metric.class_id == NO_CLASS
        return run.images if whole else cast(Images, run.images).of_class(self.metric.class_id)

    def values(self, runs: Sequence[Run]) -> Values:
        """One value per run and unit, on the images for which all runs have a value. Each run must have images.

        Raises UsageError where runs differ in their classes, or one does not hold the metric.
        """
        name = self.metric.name
        images = [cast(Images, self.images(run)) for run in runs]
        for run, of_run in zip(runs, images, strict=True):
            if name not in of_run.cells:
                why = "it did not compute it (metrics.scores)" if self.metric.own else "an older segexp made it"
                raise UsageError(f"run {run.run_id} has no {name} per image: {why}")
        names, kept = _common(images)
        groups = tuple(images[0].layout.groups[n] for n in kept[0])
        # An image without a value in one run is left out of all runs, before its group is averaged.
        enters_N = np.all([self._enters(i)[part] for i, part in zip(images, kept, strict=True)], axis=0)
        values_KU = np.array([self._per_unit(i, part, enters_N, groups) for i, part in zip(images, kept, strict=True)])
        taken = set(groups)  # an image without group may have the name of one
        alone = (f"{name} (image)" if name in taken else name for name in names)
        units = tuple(dict.fromkeys(group or name for group, name in zip(groups, alone, strict=True)))
        present_U = ~np.isnan(values_KU).any(axis=0)
        all_names = set().union(*(of_run.layout.image_ids for of_run in {id(i.layout): i for i in images}.values()))
        dropped = []
        if len(all_names) > len(names):
            dropped.append(f"{pluralize(len(all_names) - len(names), 'image')} not in all runs")
        lost = sum(self._expected(images, kept, n) for n in np.flatnonzero(~enters_N).tolist())
        if lost:
            dropped.append(f"{pluralize(lost, 'image')} without {self.metric.name} in some runs")
        return Values(
            tuple(unit for unit, present in zip(units, present_U, strict=True) if present),
            values_KU[:, present_U],
            tuple(itertools.compress(names, enters_N)),
            " and ".join(dropped),
        )

    def _enters(self, images: Images) -> np.ndarray:
        """Whether each image has a value: where its reference holds a class (or all count), and all such are known."""
        cells_NF, held_NF = images.cells[self.metric.name], images.layout.n_reference_NF > 0
        if self.metric.score.averaged == "all":
            return ~np.isnan(cells_NF).any(axis=1)
        if self._policy == "both_empty_one":
            return np.full(len(cells_NF), True)
        return held_NF.any(axis=1) & ~(np.isnan(cells_NF) & held_NF).any(axis=1)

    def _per_unit(self, images: Images, kept: np.ndarray, enters_N: np.ndarray, groups: tuple[str, ...]) -> np.ndarray:
        """One value per image (group), NaN where none enters; their mean is the primary score on these images."""
        cells_NF = images.cells[self.metric.name][kept]
        if self.metric.score.averaged == "all":
            return group_means(np.where(enters_N, cells_NF.mean(axis=1), np.nan), groups)
        references_NF = np.where(enters_N[:, None], images.layout.n_reference_NF[kept], 0)
        return linearised_scores(cells_NF, references_NF, groups, self._policy)

    @property
    def _policy(self) -> EmptyPolicy:
        return self.policy if self.metric.score.averaged == "empty_policy" else "reference"

    def _expected(self, images: Sequence[Images], kept: Sequence[np.ndarray], n: int) -> bool:
        """Whether image n should have a value: its reference holds a class, or every image counts."""
        if self.policy == "both_empty_one" or self.metric.score.averaged == "all":
            return True
        return any((i.layout.n_reference_NF[part[n]] > 0).any() for i, part in zip(images, kept, strict=True))

    def out_of_fold(self, parts: Mapping[str, Sequence[Run]]) -> Values:
        """Out-of-fold values. parts: fold -> the same K rows (arm and seed) in the same order.

        Every image is in one fold, else it raises UsageError: those of validation can be in several. The units of all
        folds stand side by side; class weights are those of all images.
        """
        rows = list(zip(*parts.values(), strict=True))
        return self.values([replace(row[0], images=_side_by_side(row)) for row in rows])

    def score(self, run: Run) -> float:
        """The score of one run on all of its own images, NaN where it has none."""
        name = self.metric.name
        if not self.metric.per_image:
            return run.number(name)
        images = self.images(run)
        if images is None or name not in images.cells:
            return math.nan

        def mean() -> float:
            values = self.values([run]).values_KU
            return float(values.mean()) if values.size else math.nan

        return run.once(f"{name} {self.metric.class_id}", self.policy, mean)

    def scored(self, arm: ArmRuns) -> dict[RunKey, Run]:
        """The runs of an arm whose score is a number, in order of fold and seed."""
        in_order = sorted(arm.scored, key=by_number)
        return {key: arm.scored[key] for key in in_order if math.isfinite(self.score(arm.scored[key]))}

    def of_seeds(self, runs: Runs, folds: Collection[str]) -> dict[str, float]:
        """Seed -> score. In cross-validation: for the seeds that have all ``folds``, over their out-of-fold values, or
        the mean over folds for scores without values per image."""
        if not folds:
            return {seed: self.score(run) for (_, seed), run in runs.items()}
        scores = {}
        for seed in complete_seeds(runs, folds):
            of_seed = {fold: [runs[RunKey(fold, seed)]] for fold in folds}
            if self.metric.per_image:
                scores[seed] = float(self.out_of_fold(of_seed).values_KU.mean())
            else:
                scores[seed] = sum(self.score(run) for (run,) in of_seed.values()) / len(folds)
        return scores

    def mean(self, runs: Runs, folds: Collection[str]) -> float:
        """The mean over seeds. Where no seed has all folds: the mean of the folds' means, as in the test over folds,
        or NaN where a fold is missing, because means over different folds cannot be compared."""
        of_seeds = self.of_seeds(runs, folds)
        if of_seeds:
            return sum(of_seeds.values()) / len(of_seeds)
        of_folds = self.of_folds(runs, folds)
        return sum(of_folds) / len(of_folds) if of_folds else math.nan

    def of_folds(self, runs: Runs, folds: Collection[str]) -> list[float]:
        """The score of each fold (or split), the mean over its seeds; none where a fold is missing."""
        scores = [[self.score(run) for (f, _), run in runs.items() if f == fold] for fold in folds]
        return [sum(of_fold) / len(of_fold) for of_fold in scores] if all(scores) else []

    def interval(self, runs: Runs, folds: Collection[str]) -> Interval:
        """The 95 % interval of an arm's mean, for new seeds and, where there are values per image, new test images; for
        new training sets where splits, or folds without common seeds, are averaged."""
        folds = folds or ("",)
        seeds = complete_seeds(runs, folds)
        of_folds = [] if seeds or folds == ("",) else self.of_folds(runs, folds)
        if len(of_folds) >= FEWEST_SEEDS:
            n_test_F, n_train_F, _ = sizes([next(r for (f, _), r in runs.items() if f == fold) for fold in folds])
            known = np.isfinite([*n_test_F, *n_train_F]).all()
            return stats.corrected_resampled(of_folds, n_test_F, n_train_F) if known else stats.NO_TEST
        if len(seeds) < FEWEST_SEEDS:
            return stats.NO_TEST
        parts = {fold: [runs[RunKey(fold, seed)] for seed in seeds] for fold in folds}
        values = self.out_of_fold(parts).values_KU if self.metric.per_image else np.empty((0, 0))
        if values.shape[-1] < 2:
            return stats.one_sample(list(self.of_seeds(runs, folds).values()))
        return stats.two_way(values, from_seeds=FEWEST_SEEDS, most=math.inf).interval


def folds_of(block: BlockRuns) -> tuple[str, ...]:
    """The folds, or pooled splits, of any arm of a block; none where there is one split."""
    found = {key for arm in block.arms.values() for key in arm.scored}
    return tuple(dict.fromkeys(fold for fold, _ in sorted(found, key=by_number) if fold))


def complete_seeds(keys: Collection[RunKey], folds: Collection[str]) -> list[str]:
    """The seeds that have all folds, in order; none where the folds are pooled splits, which are averaged."""
    if are_splits(folds):
        return []
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
    image_ids = tuple(name for each in layouts for name in each.image_ids)
    if len(set(image_ids)) < len(image_ids):
        several = "folds of a cross-validation share images, as its validation images do, so they cannot be pooled"
        raise UsageError(f"{several}: compare test images (--split test), or --metric val_dice")
    layout = Layout(
        image_ids,
        tuple(group for each in layouts for group in each.groups),
        layouts[0].classes,
        np.concatenate([each.n_reference_NF for each in layouts]),
    )
    names = [name for name in images[0].cells if all(name in i.cells for i in images)]
    cells = {name: np.concatenate([i.cells[name] for i in images]) for name in names}
    return Images(layout, cells, np.concatenate([i.counts_NF3 for i in images]))


def sizes(runs: Sequence[Run]) -> tuple[np.ndarray, np.ndarray, str]:
    """The test and training sizes of each fold or split, NaN where unknown, and their unit: groups where all records
    hold them (older ones do not), else images."""

    def of(column: str) -> np.ndarray:
        return np.array([run.number(column) for run in runs])

    groups = of("n_test_groups"), of("n_train_groups")
    if np.isfinite(groups).all():
        return *groups, "group"
    return of("n_test"), of("n_train"), "image"
