"""A candidate against its reference: values of their runs, whether these are pairs, the procedure and its result.

Axes: K runs (seeds; L for an unpaired reference), N images, F foreground classes or folds, U units (groups where there
are any, else images). Runs are named by (fold, seed), fold "" without cross-validation. Arrays of 2 K runs hold K
candidates, then their K references.
"""

import itertools
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike

from segexp.compare import statistics as stats
from segexp.compare.blocks import ArmRuns, Arms, BlockRuns, Levels, RunKey, are_splits, by_number
from segexp.compare.result import (
    ALPHA,
    FEW_SEEDS,
    FEWEST_SEEDS,
    METRICS,
    NO_CLASS,
    Comparison,
    Factorial,
    Influence,
    Interaction,
    Interval,
    Method,
    Metric,
    Verdict,
)
from segexp.errors import UsageError
from segexp.evaluation import EmptyPolicy, group_means, linearised_scores
from segexp.records.formatting import pluralize
from segexp.records.runs import Run, shown_state
from segexp.records.scores import PIXELS, SCORES, title_of, unit_of
from segexp.records.tables import Images, Layout
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
    return replace(metric, rope=rope / 100 if metric.points else rope)


def measured_in(metric: Metric, runs: Sequence[Run]) -> Metric:
    """The metric with the title and unit of these runs: distances are in mm where the spacing of pixels is known."""
    score = SCORES[metric.name]
    titles = sorted({title_of(score, run.row.get("config_metrics_nsd")) for run in runs}) or [score.title]
    metric = replace(metric, title=metric.title.replace(score.title, " or ".join(titles)))
    if SCORES[metric.name].unit != PIXELS:
        return metric
    units = sorted({unit_of(SCORES[metric.name], run.row.get("config_dataset_spacing")) for run in runs})
    return replace(metric, unit=" or ".join(units))


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
                raise UsageError(f"run {run.run_id} has no {name} per image: an older segexp made it")
        names, kept = _common(images)
        groups = tuple(images[0].layout.groups[n] for n in kept[0])
        # An image without a value in one run is left out of all runs, before its group is averaged.
        enters_N = np.all([self._enters(i)[part] for i, part in zip(images, kept, strict=True)], axis=0)
        values_KU = np.array([self._per_unit(i, part, enters_N, groups) for i, part in zip(images, kept, strict=True)])
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

    def _enters(self, images: Images) -> np.ndarray:
        """Whether each image has a value: where its reference holds a class (or all count), and all such are known."""
        cells_NF, held_NF = images.cells[self.metric.name], images.layout.n_reference_NF > 0
        if SCORES[self.metric.name].averaged == "all":
            return ~np.isnan(cells_NF).any(axis=1)
        if self._policy == "both_empty_one":
            return np.full(len(cells_NF), True)
        return held_NF.any(axis=1) & ~(np.isnan(cells_NF) & held_NF).any(axis=1)

    def _per_unit(self, images: Images, kept: np.ndarray, enters_N: np.ndarray, groups: tuple[str, ...]) -> np.ndarray:
        """One value per image (group), NaN where none enters; their mean is the primary score on these images."""
        cells_NF = images.cells[self.metric.name][kept]
        if SCORES[self.metric.name].averaged == "all":
            return group_means(np.where(enters_N, cells_NF.mean(axis=1), np.nan), groups)
        references_NF = np.where(enters_N[:, None], images.layout.n_reference_NF[kept], 0)
        return linearised_scores(cells_NF, references_NF, groups, self._policy)

    @property
    def _policy(self) -> EmptyPolicy:
        return self.policy if SCORES[self.metric.name].averaged == "empty_policy" else "reference"

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
        of_folds = [] if complete_seeds(runs, folds) else self.of_folds(runs, folds)
        if len(of_folds) >= FEWEST_SEEDS:
            n_test_F, n_train_F, _ = _sizes([next(r for (f, _), r in runs.items() if f == fold) for fold in folds])
            known = np.isfinite([*n_test_F, *n_train_F]).all()
            return stats.corrected_resampled(of_folds, n_test_F, n_train_F) if known else stats.NO_TEST
        if not folds:
            seeds = list(runs)
            parts = {"": [runs[key] for key in seeds]}
        else:
            seeds = [RunKey("", seed) for seed in complete_seeds(runs, folds)]
            parts = {fold: [runs[RunKey(fold, key.seed)] for key in seeds] for fold in folds}
        if len(seeds) < FEWEST_SEEDS:
            return stats.NO_TEST
        values = self.out_of_fold(parts).values_KU if self.metric.per_image else np.empty((0, 0))
        if values.shape[-1] < 2:
            return stats.one_sample(list(self.of_seeds(runs, folds).values()))
        return stats.two_way(values, from_seeds=FEWEST_SEEDS).interval


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
    layout = Layout(
        tuple(name for each in layouts for name in each.image_ids),
        tuple(group for each in layouts for group in each.groups),
        layouts[0].classes,
        np.concatenate([each.n_reference_NF for each in layouts]),
    )
    names = [name for name in images[0].cells if all(name in i.cells for i in images)]
    cells = {name: np.concatenate([i.cells[name] for i in images]) for name in names}
    return Images(layout, cells, np.concatenate([i.counts_NF3 for i in images]))


# A candidate against its reference

FEW_UNITS = 50
"""With fewer images (groups) a comparison carries a warning."""

MOST_NAMED = 8

_NO_IMAGE = "no image has a score in all runs"
_NO_VALUES = "no value per image"
_NO_CERTAINTY = "no test, because seeds that change nothing are not evidence of certainty"

_BEGAN = (("split_sha", "the split"), ("init_sha", "initial weights"), ("order_sha", "batch order"))
"""Columns that identify how a run began, and what they are in words."""


@dataclass(frozen=True)
class TestResult:
    """The result of a procedure. candidate_K, reference_K: scores of the seeds (or folds), paired or not; values: of as
    many candidates and references; analysis: where seeds x images were analysed. notes: warnings, with the reason why
    there is no test first."""

    method: Method
    candidate_K: np.ndarray
    reference_K: np.ndarray
    dropped: str
    notes: tuple[str, ...]
    overall: Interval = stats.NO_TEST
    test_set: Interval = stats.NO_TEST
    n_seeds: int = 0
    n_folds: int = 0
    analysis: stats.TwoWay | None = None
    values: Values | None = None
    n_images: int = 0
    n_splits: int = 0
    seeds: tuple[str, ...] = ()
    floor_se: float = stats.NAN
    over_folds: "TestResult | None" = None
    variance: Mapping[str, float] = field(default_factory=dict)


def compared(pair: tuple[Levels, Levels], block: BlockRuns, arms: Arms, scorer: Scorer) -> Comparison:
    """One comparison. p_holm and verdict are added when all comparisons of the call are known (`with_holm`)."""
    candidate, reference = pair
    found = _tested(block.arms[candidate], block.arms[reference], arms, scorer)
    one = _comparison(found, arms.label(candidate), arms.label(reference), scorer)
    if found.over_folds is None or found.over_folds.method == Method.NONE:
        return one
    return replace(one, new_training_sets=_comparison(found.over_folds, one.candidate, one.reference, scorer))


def _comparison(found: TestResult, candidate: str, reference: str, scorer: Scorer) -> Comparison:
    won, low, high = _wins(found, scorer.metric)
    values, paired = found.values, found.method.paired
    K = 1 if found.method.resampled else len(found.candidate_K)
    return Comparison(
        candidate=candidate,
        reference=reference,
        method=found.method,
        scope=found.method.scope,
        paired=paired,
        n_seeds=found.n_seeds,
        n_folds=found.n_folds,
        n_images=found.n_images,
        n_groups=len(values.units) if values else 0,
        overall=found.overall,
        test_set=found.test_set,
        p_holm=stats.NAN,
        verdict=Verdict.NO_TEST,
        n_splits=found.n_splits,
        split_floor_se=found.floor_se,
        **_power(found, scorer.metric.rope),
        **_sample(found),
        wins=won,
        wins_low=low,
        wins_high=high,
        effect_size=stats.effect_size(found.candidate_K - found.reference_K) if paired else stats.NAN,
        seed_correlation=stats.seed_correlation(found.candidate_K, found.reference_K) if paired else stats.NAN,
        variance=found.variance,
        dropped=found.dropped,
        warnings=found.notes,
        units=values.units if values else (),
        candidate_N=values.values_KU[:K].mean(axis=0) if values else None,
        reference_N=values.values_KU[K:].mean(axis=0) if values else None,
    )


def with_holm(
    comparisons: Sequence[Comparison],
    metrics: Sequence[Metric],
    block_of: Sequence[object],
    across: Sequence[float] = (),
) -> list[Comparison]:
    """Comparisons with p adjusted over all of them (what the headline may speak about) and over those of a data set,
    and verdicts, also without the most influential image and seed, all others being as they are.

    One adjustment for all: the headline names what is significant anywhere, and with four data sets, each adjusted
    alone, it would be wrong in 19 % of the studies in which nothing differs. Equivalence is a family of its own.

    metrics, block_of: of each comparison its metric, and what it shares with the others of its data set. across: p of
    results over data sets of which the headline speaks as well.
    """
    p_F = np.array([*(c.deciding.p for c in comparisons), *across])
    ropes = [metric.rope for metric in metrics]
    inside_C = np.array([stats.within_rope(c.deciding, rope)[0] for c, rope in zip(comparisons, ropes, strict=True)])
    of_block = np.full(len(comparisons), stats.NAN)
    for block in dict.fromkeys(block_of):
        members = np.flatnonzero([other == block for other in block_of])
        of_block[members] = stats.holm(p_F[members])

    def adjusted(p_all: np.ndarray, n: int, p: float) -> float:
        return float(stats.holm(np.where(np.arange(len(p_all)) == n, p, p_all))[n])

    def decide(n: int, interval: Interval) -> dict[str, Any]:
        """p_holm and verdict of comparison n with this interval."""
        p_holm, (p_inside, inside) = adjusted(p_F, n, interval.p), stats.within_rope(interval, ropes[n])
        negligible = inside and not adjusted(inside_C, n, p_inside) >= ALPHA
        verdict = stats.verdict(interval, p_holm, negligible, metrics[n].higher_is_better)
        return {"p_holm": p_holm, "verdict": verdict}

    decided = []
    for n, comparison in enumerate(comparisons):
        influence = tuple(replace(one, **decide(n, one.interval)) for one in comparison.influence)
        found = replace(comparison, **decide(n, comparison.deciding), p_block=float(of_block[n]), influence=influence)
        same = found.verdict == Verdict.EQUIVALENT or found.verdict.negligible
        decided.append(replace(found, condition=condition_of(found, ropes[n]) if same else ""))
    over_folds = {n: c.new_training_sets for n, c in enumerate(comparisons) if c.new_training_sets is not None}
    if over_folds:
        about = [metrics[n] for n in over_folds], [block_of[n] for n in over_folds]
        for n, verdict_of in zip(over_folds, with_holm(list(over_folds.values()), *about), strict=True):
            decided[n] = replace(decided[n], new_training_sets=verdict_of)
    return decided


ENOUGH_IMAGES = 140
"""With as many images a kind of image that is not in the sample makes up less than 3 / 140 = 2.1 % of them."""


def condition_of(comparison: Comparison, rope: float) -> str:
    """Unless what "equivalent" and "negligible" hold: failures that no image of a small sample shows (rule of three:
    what is absent from N images has a share below 3 / N, with 95 % confidence)."""
    n = len(comparison.units)
    if not n or n >= ENOUGH_IMAGES or comparison.candidate_N is None or comparison.reference_N is None:
        return ""
    if stats.failure_seen(comparison.candidate_N - comparison.reference_N, rope):
        return ""
    return f"unless more than 3/{n} of the {comparison.unit}s behave otherwise"


def _tested(candidate: ArmRuns, reference: ArmRuns, arms: Arms, scorer: Scorer) -> TestResult:
    """The result of the procedure that the runs of both arms allow."""
    a, b = scorer.scored(candidate), scorer.scored(reference)
    title = scorer.metric.title
    for arm, scored in ((candidate, a), (reference, b)):
        if not scored:
            states = Counter(shown_state(run.state) for run in arm.unscored)
            why = ", ".join(f"{count} {state}" for state, count in states.items()) or "its runs did not measure it"
            return _nothing(f"{arms.label(arm.levels)} has no {title}: {why}", "")
    unknown = len(candidate.scored) + len(reference.scored) - len(a) - len(b)
    without = f"{pluralize(unknown, 'run')} without a finite {title}" if unknown else ""
    alone = {"candidate": a.keys() - b.keys(), "reference": b.keys() - a.keys()}
    seeds = {arm: _names(sorted(keys, key=by_number), MOST_NAMED) for arm, keys in alone.items() if keys}
    dropped = _both(*(f"seed {names} of the {arm} alone" for arm, names in seeds.items()), without)
    common = sorted(a.keys() & b.keys(), key=by_number)
    reason = _why_unpaired(a, b, common)
    if any(fold for fold, _ in (*a, *b)):
        unpaired = f"folds and splits can only be compared as pairs: {reason}"
        found = _nothing(unpaired, dropped) if reason else _across_folds(a, b, scorer, dropped)
    elif reason:
        # Without pairs, seeds that only one arm has are used as well.
        found = _unpaired_seeds(a, b, scorer, reason, without)
    elif scorer.metric.per_image:
        found = _two_way(Method.TWO_WAY, scorer.values([arm[key] for arm in (a, b) for key in common]), dropped)
        found = replace(found, seeds=tuple(key.seed for key in common))
    else:
        candidate_K, reference_K = ([scorer.score(arm[key]) for key in common] for arm in (a, b))
        found = _over_seeds(Method.OVER_SEEDS, candidate_K, reference_K, _NO_VALUES, dropped)
    runs = [arm[key] for key in common for arm in (a, b)]
    silent = sum(not (run.row.get("init_sha") and run.row.get("order_sha")) for run in runs)
    if silent and found.method.paired:
        what = "without initial weights or batch order in the record: pairing is assumed"
        found = replace(found, notes=(*found.notes, f"{silent} of {pluralize(len(runs), 'run')} {what}"))
    return found


def _across_folds(a: Runs, b: Runs, scorer: Scorer, dropped: str) -> TestResult:
    """Several splits: a test over them. Cross-validation: a test over seeds where enough seeds have every fold in both
    arms, for these training sets, and one over folds, for new ones; else the latter alone."""
    common = sorted(a.keys() & b.keys(), key=by_number)
    folds = list(dict.fromkeys(fold for fold, _ in sorted({*a, *b}, key=by_number)))
    seeds = complete_seeds(common, folds)
    of_fold = {fold: [seed for f, seed in common if f == fold] for fold in folds}
    over_folds = _over_folds(a, b, of_fold, scorer, dropped)
    if len(seeds) < FEWEST_SEEDS:
        return over_folds
    left = [key for key in common if key.seed not in seeds]
    if left:
        names = _names([RunKey("", seed) for seed in dict.fromkeys(key.seed for key in left)], MOST_NAMED)
        runs = pluralize(2 * len(left), "run")
        dropped = _both(dropped, f"the other folds of seed {names} ({runs}), because a fold is missing")
    if scorer.metric.per_image:
        parts = {fold: [arm[RunKey(fold, seed)] for arm in (a, b) for seed in seeds] for fold in folds}
        found = _two_way(Method.OUT_OF_FOLD, scorer.out_of_fold(parts), dropped, len(folds))
        return replace(found, seeds=tuple(seeds), over_folds=over_folds)
    candidate_K, reference_K = ([scorer.of_seeds(arm, folds)[seed] for seed in seeds] for arm in (a, b))
    found = _over_seeds(Method.OVER_SEEDS_OF_FOLDS, candidate_K, reference_K, _NO_VALUES, dropped, len(folds))
    return replace(found, over_folds=over_folds)


# Procedures


def _nothing(reason: str, dropped: str) -> TestResult:
    return TestResult(Method.NONE, np.array([]), np.array([]), dropped, (reason,))


def _two_way(method: Method, values: Values, dropped: str, n_folds: int = 0) -> TestResult:
    """The two-way test over seeds x images, for pairs with values on the same images."""
    dropped = _both(dropped, values.dropped)
    if not values.units:
        return _nothing(_NO_IMAGE, dropped)
    unit = "image" if len(values.units) == values.n_images else "group"
    K, units = len(values.values_KU) // 2, pluralize(len(values.units), unit)
    candidate_KU, reference_KU = values.values_KU[:K], values.values_KU[K:]
    candidate_K, reference_K = candidate_KU.mean(axis=1), reference_KU.mean(axis=1)
    if len(values.units) == 1:  # no inference for new images, but for new seeds
        why = f"{units} cannot represent new ones"
        found = _over_seeds(Method.OVER_SEEDS, candidate_K, reference_K, why, dropped)
        return replace(found, values=values, n_images=values.n_images)
    analysis, test_set = stats.two_way(candidate_KU - reference_KU), stats.one_sample(candidate_K - reference_K)
    overall, notes = analysis.interval, _few(K)
    if K >= FEWEST_SEEDS and math.isnan(overall.p):
        vary = "vary at all" if overall.se == 0 else "vary from seed to seed"
        notes.insert(0, f"the differences do not {vary}: {_NO_CERTAINTY}")
    if K < FEWEST_SEEDS or math.isnan(overall.p):
        overall, test_set = _untested(overall), _untested(test_set)
    elif overall.p == 1.0 and overall.se == 0:
        notes.append("identical arms: every image has the same score in both")
    if len(values.units) < FEW_UNITS:
        notes.append(f"only {units}: new ones may differ more than the interval shows")
    found = TestResult(method, candidate_K, reference_K, dropped, tuple(notes), overall, test_set, K, n_folds)
    variance = {part: getattr(analysis, f"var_{part}") for part in stats.PARTS[1:]}
    return replace(found, analysis=analysis, values=values, n_images=values.n_images, variance=variance)


def _over_seeds(
    method: Method, candidate: ArrayLike, reference: ArrayLike, why: str, dropped: str, n_folds: int = 0
) -> TestResult:
    """A test over paired seeds alone. why: what limits the inference to these images."""
    candidate_K, reference_K = np.asarray(candidate, dtype=float), np.asarray(reference, dtype=float)
    interval, notes = _checked(stats.one_sample(candidate_K - reference_K), len(candidate_K), "differences")
    notes.append(f"{why}: inference for {'these folds' if n_folds else 'this training and test set'} only")
    found = TestResult(method, candidate_K, reference_K, dropped, tuple(notes), test_set=interval)
    return replace(found, n_seeds=len(candidate_K), n_folds=n_folds)


def _unpaired_seeds(a: Runs, b: Runs, scorer: Scorer, reason: str, dropped: str) -> TestResult:
    """Seeds that are not pairs, each scored on the images that all of them have."""
    runs = [*a.values(), *b.values()]
    values = scorer.values(runs) if scorer.metric.per_image else None
    if values is not None:
        dropped = _both(dropped, values.dropped)
        if not values.units:
            return _nothing(_NO_IMAGE, dropped)
        scores_K = values.values_KU.mean(axis=1)
    else:
        scores_K = np.array([scorer.score(run) for run in runs])
    candidate_K, reference_L = scores_K[: len(a)], scores_K[len(a) :]
    fewest = min(len(candidate_K), len(reference_L))
    interval, notes = _checked(stats.welch(candidate_K, reference_L), fewest, "scores")
    notes.append(f"not paired, {reason}: inference for this training and test set only")
    found = TestResult(
        Method.UNPAIRED, candidate_K, reference_L, dropped, tuple(notes), test_set=interval, n_seeds=fewest
    )
    return replace(found, values=values, n_images=values.n_images) if values else found


def _over_folds(a: Runs, b: Runs, seeds: Mapping[str, Sequence[str]], scorer: Scorer, dropped: str) -> TestResult:
    """A test of the mean differences of folds or splits, each averaged over its seeds, corrected for their shared
    training images. seeds: those that both arms have, of each fold."""
    what = "split" if are_splits(seeds) else "fold"
    empty = [fold for fold in seeds if not seeds[fold]]
    if empty or len(seeds) < FEWEST_SEEDS:
        few = f"{pluralize(len(seeds), what)}: a test needs at least {FEWEST_SEEDS}"
        return _nothing(f"{', '.join(map(part_name, empty))}: no pair of runs" if empty else few, dropped)
    candidate_F, reference_F = (
        np.array([np.mean([scorer.score(arm[RunKey(fold, s)]) for s in of_fold]) for fold, of_fold in seeds.items()])
        for arm in (a, b)
    )
    n_test_F, n_train_F, unit = _sizes([a[RunKey(fold, of_fold[0])] for fold, of_fold in seeds.items()])
    if not np.isfinite([*n_test_F, *n_train_F]).all():
        return _nothing(f"the records do not say how many images the {what}s hold (n_test, n_train)", dropped)
    sizes = (candidate_F - reference_F, n_test_F, n_train_F)
    interval, floor_se = stats.corrected_resampled(*sizes), stats.split_floor(*sizes)
    fewest, most = (extreme(len(of_fold) for of_fold in seeds.values()) for extreme in (min, max))
    each = pluralize(most, "seed") if fewest == most else f"{fewest} to {most} seeds"
    notes = [f"{len(seeds)} {what}s, each averaged over {each}: one difference each, no analysis over single images"]
    if math.isnan(interval.p):
        notes.insert(0, f"the differences do not vary at all: {_NO_CERTAINTY}")
    if n_test_F.max() > 1.1 * n_test_F.min():
        notes.append(f"{what}s of {n_test_F.min():.0f} to {n_test_F.max():.0f} {unit}s have equal weight in this test")
    splits, n, n_images = what == "split", len(seeds), round(float(n_test_F.sum()))
    values, n_images, variance = _by_image(a, b, seeds, scorer) if scorer.metric.per_image else (None, n_images, {})
    return TestResult(
        Method.OVER_SPLITS if splits else Method.OVER_FOLDS,
        candidate_F,
        reference_F,
        dropped,
        tuple(notes),
        overall=interval,
        n_seeds=fewest,
        n_folds=0 if splits else n,
        n_splits=n if splits else 0,
        values=values,
        n_images=n_images,
        floor_se=floor_se,
        variance=variance,
    )


def _sizes(runs: Sequence[Run]) -> tuple[np.ndarray, np.ndarray, str]:
    """The test and training sizes of each fold or split, NaN where unknown, and their unit: groups where all records
    hold them (older ones do not), else images."""

    def of(column: str) -> np.ndarray:
        return np.array([run.number(column) for run in runs])

    groups = of("n_test_groups"), of("n_train_groups")
    if np.isfinite(groups).all():
        return *groups, "group"
    return of("n_test"), of("n_train"), "image"


def _by_image(
    a: Runs, b: Runs, seeds: Mapping[str, Sequence[str]], scorer: Scorer
) -> tuple[Values, int, dict[str, float]]:
    """Means of candidate and reference for each image (group) over all splits that test it, the number of images, and
    the components of variance over splits, seeds and images."""
    parts: list[np.ndarray] = []
    names: set[str] = set()
    means_2: dict[str, list[np.ndarray]] = {}
    for fold, of_fold in seeds.items():
        runs = [arm[RunKey(fold, seed)] for arm in (a, b) for seed in of_fold]
        names.update(cast(Images, runs[0].images).layout.image_ids)
        values = scorer.values(runs)
        both_2SU = values.values_KU.reshape(2, len(of_fold), -1)
        parts.append(both_2SU[0] - both_2SU[1])
        for unit, mean_2 in zip(values.units, both_2SU.mean(axis=1).T, strict=True):
            means_2.setdefault(unit, []).append(mean_2)
    of_unit_2U = np.array([np.mean(of_unit, axis=0) for of_unit in means_2.values()]).reshape(-1, 2).T
    components = stats.split_components(parts) if all(part.size for part in parts) else {}
    return Values(tuple(means_2), of_unit_2U, len(names), ""), len(names), components


def part_name(fold: str) -> str:
    """A fold or split in words: "fold 2", "split 3"."""
    return fold if are_splits([fold]) else f"fold {fold}"


def _checked(interval: Interval, n_seeds: int, what: str) -> tuple[Interval, list[str]]:
    """The interval of a test over seeds, or none for too few seeds, and the notes on both."""
    notes = _few(n_seeds)
    if n_seeds < FEWEST_SEEDS:
        return _untested(interval), notes
    if math.isnan(interval.p):
        notes.insert(0, f"the {what} do not vary at all: {_NO_CERTAINTY}")
    return interval, notes


def _untested(interval: Interval) -> Interval:
    return replace(stats.NO_TEST, mean=interval.mean)


def _few(K: int) -> list[str]:
    if K < FEWEST_SEEDS:
        return [f"{pluralize(K, 'seed')}: a test needs at least {FEWEST_SEEDS}"]
    if K < FEW_SEEDS:
        return [f"{K} seeds: exploratory, a reliable result needs {FEW_SEEDS} or more"]
    return []


def _both(*parts: str) -> str:
    return " and ".join(part for part in parts if part)


# Pairing


def _why_unpaired(a: Runs, b: Runs, common: Sequence[RunKey]) -> str:
    """Why the runs of the common seeds are not pairs, "" when they are. What both records lack is assumed to be equal
    (with a warning), what only one of them lacks is not."""
    if not common:
        return "they have no seed in common"
    for column, what in _BEGAN:
        of_both = {key: (a[key].row.get(column, ""), b[key].row.get(column, "")) for key in common}
        unknown = [key for key, (one, other) in of_both.items() if bool(one) != bool(other)]
        differing = [key for key, (one, other) in of_both.items() if one != other]
        if unknown:
            whose = "reference" if of_both[unknown[0]][0] else "candidate"
            return f"{what} not recorded by the {whose} for seed {_names(unknown, 5)}"
        if differing:
            return f"{what} differ{'s' * (what != 'initial weights')} for seed {_names(differing, 5)}"
    return ""


def _names(keys: Sequence[RunKey], most: int) -> str:
    shown = ", ".join(f"{seed} ({part_name(fold)})" if fold else seed for fold, seed in keys[:most])
    return shown + (" ..." if len(keys) > most else "")


# What stands beside a test


def _power(found: TestResult, rope: float) -> dict[str, Any]:
    """What seeds and images like these can find; NaN where unknown."""
    unknown = (stats.NAN, stats.NAN)
    power = {"minimum_detectable": stats.NAN, "target": rope, "seeds_needed": unknown, "image_floor": stats.NAN}
    analysis = found.analysis
    deciding = found.test_set if analysis is None else analysis.interval
    if found.method.resampled and found.overall.se > 0:
        power["minimum_detectable"] = stats.minimum_detectable_by_seeds(found.overall)
        return power | {"split_floor": float(stats.noncentrality(stats.MOST) * found.floor_se)}
    if found.n_seeds < FEWEST_SEEDS or found.method.resampled or not deciding.se > 0:
        return power
    if analysis is None:
        power["minimum_detectable"] = stats.minimum_detectable_by_seeds(found.test_set)
        needed = stats.range_alone(found.test_set, found.n_seeds, rope) if rope > 0 else unknown
    else:
        power["minimum_detectable"] = stats.minimum_detectable(analysis)
        power["image_floor"] = stats.image_floor(analysis) or stats.NAN
        needed = stats.seeds_range(analysis, rope) if rope > 0 else unknown
    if rope > 0:
        power["seeds_needed"] = tuple(max(number, FEWEST_SEEDS) for number in needed)
    return power


def _sample(found: TestResult) -> dict[str, Any]:
    """What the test assumes about images and seeds that are not in the sample: skewness, and the most influential."""
    if found.values is None or found.analysis is None:
        return {}
    K, units = len(found.candidate_K), found.values.units
    D_KN = found.values.values_KU[:K] - found.values.values_KU[K:]
    influence = []
    for what, (index, interval) in stats.without_most_influential(D_KN).items():
        unit = "group" if what == "image" and len(units) != found.n_images else what
        influence.append(Influence(unit, units[index] if what == "image" else found.seeds[index], interval))
    return {"skewness": stats.skewness(D_KN.mean(axis=0)), "influence": tuple(influence)}


def _wins(found: TestResult, metric: Metric) -> tuple[float, float, float]:
    if not found.method.paired or not len(found.candidate_K):
        return stats.NAN, stats.NAN, stats.NAN
    differences = found.candidate_K - found.reference_K
    share, low, high = stats.wins(differences if metric.higher_is_better else -differences)
    return share * len(differences), low, high


# Factorial tables


def factorials_of(
    block: BlockRuns, arms: Arms, references: Sequence[Mapping[str, str]], scorer: Scorer
) -> tuple[Factorial, ...]:
    """A table for every two keys that vary in a block, at each level of the others; Holm over all interactions."""
    varying = [key for key in arms.by if len({arms.level(levels, key) for levels in block.arms}) > 1]
    tables = []
    for keys in itertools.combinations(varying, 2):
        others = [key for key in arms.by if key not in keys]
        for fixed in sorted({tuple(arms.level(levels, key) for key in others) for levels in block.arms}):
            table = _Table(block, arms, keys, dict(zip(others, fixed, strict=True)), scorer)
            if len(table.rows) > 1 and len(table.columns) > 1:
                tables.append(table.factorial(references))
    adjusted = iter(stats.holm(np.array([i.interval.p for table in tables for i in table.interactions])))
    with_p = [tuple(replace(i, p_holm=float(next(adjusted))) for i in table.interactions) for table in tables]
    return tuple(replace(table, interactions=found) for table, found in zip(tables, with_p, strict=True))


class _Table:
    """Two keys of a block at fixed levels of the others."""

    def __init__(
        self, block: BlockRuns, arms: Arms, keys: tuple[str, str], fixed: Mapping[str, str], scorer: Scorer
    ) -> None:
        self.block, self.arms, self.scorer = block, arms, scorer
        self.keys, self.fixed, self.folds = keys, fixed, folds_of(block)
        here = [levels for levels in block.arms if all(arms.level(levels, k) == v for k, v in fixed.items())]
        self.rows, self.columns = (
            tuple(v for v in arms.levels[key] if any(arms.level(levels, key) == v for levels in here))
            for key in self.keys
        )

    def factorial(self, references: Sequence[Mapping[str, str]]) -> Factorial:
        cells = [[self.runs(r, c) for c in self.columns] for r in self.rows]
        return Factorial(
            row_factor=self.keys[0],
            column_factor=", ".join([self.keys[1], *(f"{key}={level}" for key, level in self.fixed.items())]),
            rows=self.rows,
            columns=self.columns,
            means=tuple(tuple(self.scorer.mean(runs, self.folds) for runs in row) for row in cells),
            seeds=tuple(tuple(self.n_seeds(runs) for runs in row) for row in cells),
            interactions=self.interactions(references),
        )

    def n_seeds(self, runs: Runs) -> int:
        every = are_splits(self.folds)
        return len({key.seed for key in runs}) if every else len(self.scorer.of_seeds(runs, self.folds))

    def runs(self, row: str, column: str) -> Runs:
        """The runs of an arm that have a score."""
        chosen = {**self.fixed, self.keys[0]: row, self.keys[1]: column}
        levels: Levels = tuple(chosen[key] for key in self.arms.by)
        return self.scorer.scored(self.block.arms[levels]) if levels in self.block.arms else {}

    def interactions(self, references: Sequence[Mapping[str, str]]) -> tuple[Interaction, ...]:
        """One for each combination of other levels whose four arms share enough seeds, weights and batches."""
        if not self.scorer.metric.per_image or self.folds:
            return ()
        # The level of the reference, else the first.
        row_at, column_at = (
            next((r[key] for r in references if r.get(key) in levels), levels[0])
            for key, levels in zip(self.keys, (self.rows, self.columns), strict=True)
        )
        found = []
        for row, column in itertools.product(self.rows, self.columns):
            if row != row_at and column != column_at and (contrast := self.contrast(row, column, row_at, column_at)):
                found.append(Interaction(*self.keys, row, column, row_at, column_at, *contrast, math.nan))
        return tuple(found)

    def contrast(self, a: str, b: str, a0: str, b0: str) -> tuple[int, Interval] | None:
        """Number of seeds, and (a, b) - (a0, b) - (a, b0) + (a0, b0) by the two-way test; None where there are too few
        seeds or images."""
        of_arms = [self.runs(row, column) for column in (b, b0) for row in (a, a0)]
        seeds = [
            seed
            for seed in sorted(set.intersection(*(set(runs) for runs in of_arms)), key=by_number)
            if len({(s[seed].row.get("init_sha"), s[seed].row.get("order_sha")) for s in of_arms}) == 1
        ]
        if len(seeds) < FEWEST_SEEDS:
            return None
        values = self.scorer.values([runs[seed] for runs in of_arms for seed in seeds])
        if not values.units:
            return None
        first, second, third, fourth = values.values_KU.reshape(4, len(seeds), -1)
        contrast = first - second - third + fourth
        # Differences of differences that agree up to rounding are 0.
        contrast[np.abs(contrast) <= stats.ROUNDING * np.abs(values.values_KU).max()] = 0.0
        return len(seeds), stats.two_way(contrast).interval
