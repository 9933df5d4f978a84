"""The procedure that the runs of a candidate and its reference allow, whether they are pairs, and its result.

Axes: K runs (seeds; L for an unpaired reference), N images, F foreground classes or folds, U units (groups where there
are any, else images). Runs are named by (fold, seed), fold "" where there is one split.
Arrays of 2 K runs hold K candidates, then their K references.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import ArrayLike

from segexp.compare import statistics as stats
from segexp.compare.blocks import ArmRuns, Arms, RunKey, are_splits, by_number, part_name
from segexp.compare.result import FEW_SEEDS, FEWEST_SEEDS, FEWEST_UNITS, Each, Interval, Method
from segexp.compare.scorer import Runs, Scorer, Values, complete_seeds, sizes
from segexp.records.foreign import PAIRING, STATED, UNPROVEN
from segexp.records.formatting import pluralize
from segexp.records.runs import shown_state

FEW_UNITS = 50
"""With fewer images (groups) a comparison carries a warning."""

MOST_NAMED = 8

_NO_IMAGE = "no image has a score in all runs"
_NO_VALUES = "no value per image"
_NO_CERTAINTY = "no test, because seeds that change nothing are not evidence of certainty"

_NO_PROOF = "nothing proves that runs of equal seeds are pairs (--paired states it)"

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


def tested(candidate: ArmRuns, reference: ArmRuns, arms: Arms, scorer: Scorer) -> TestResult:
    """The result of the procedure that the runs of both arms allow."""
    a, b = scorer.scored(candidate), scorer.scored(reference)
    title = scorer.metric.title
    for arm, scored in ((candidate, a), (reference, b)):
        if not scored:
            states = Counter(shown_state(run.state) for run in arm.unscored)
            why = (
                ", ".join(f"{count} {state}" for state, count in states.items())
                or "not measured, or undefined for these images"
            )
            return _nothing(f"{arms.label(arm.levels)} has no value of {title}: {why}", "")
    unknown = len(candidate.scored) + len(reference.scored) - len(a) - len(b)
    without = f"{pluralize(unknown, 'run')} without a finite {title}" if unknown else ""
    alone = {"candidate": a.keys() - b.keys(), "reference": b.keys() - a.keys()}
    seeds = {arm: _names(sorted(keys, key=by_number), MOST_NAMED) for arm, keys in alone.items() if keys}
    dropped = _both(*(f"seed {names} of the {arm} alone" for arm, names in seeds.items()), without)
    common = sorted(a.keys() & b.keys(), key=by_number)
    reason = _why_unpaired(a, b, common)
    if any(fold for fold, _ in (*a, *b)):
        unpaired = f"folds and splits can only be compared as pairs: {reason}"
        known = reason in ("", _NO_PROOF)
        found = _across_folds(a, b, scorer, dropped, not reason) if known else _nothing(unpaired, dropped)
    elif reason:
        # Without pairs, seeds that only one arm has are used as well.
        found = _unpaired_seeds(a, b, scorer, reason, without)
    elif scorer.metric.per_image:
        values = scorer.values([arm[key] for arm in (a, b) for key in common])
        found = _two_way(Method.TWO_WAY, values, dropped, scorer.each)
        found = replace(found, seeds=tuple(key.seed for key in common))
    else:
        candidate_K, reference_K = ([scorer.score(arm[key]) for key in common] for arm in (a, b))
        found = _over_seeds(Method.OVER_SEEDS, candidate_K, reference_K, _NO_VALUES, dropped)
    runs = [arm[key] for key in common for arm in (a, b)]
    silent = sum(not (run.row.get("init_sha") and run.row.get("order_sha")) for run in runs)
    stated = any(run.row.get(PAIRING) == STATED for run in runs)
    if silent and found.method.paired and reason != _NO_PROOF:
        what = "without initial weights or batch order in the record: pairing is assumed"
        what = "paired by seed because --paired says so: no record proves it" if stated else what
        found = replace(found, notes=(*found.notes, f"{silent} of {pluralize(len(runs), 'run')} {what}"))
    return found


def _across_folds(a: Runs, b: Runs, scorer: Scorer, dropped: str, paired: bool) -> TestResult:
    """Several splits: a test over them. Cross-validation: a test over seeds where enough seeds have every fold in both
    arms, for these training sets, and one over folds, for new ones; else the latter alone, and where seeds are not
    ``paired``: it takes the mean over the seeds of a fold."""
    common = sorted(a.keys() & b.keys(), key=by_number)
    folds = list(dict.fromkeys(fold for fold, _ in sorted({*a, *b}, key=by_number)))
    seeds = complete_seeds(common, folds)
    of_fold = {fold: [seed for f, seed in common if f == fold] for fold in folds}
    over_folds = _over_folds(a, b, of_fold, scorer, dropped)
    if len(seeds) < FEWEST_SEEDS or not paired:
        return over_folds
    left = [key for key in common if key.seed not in seeds]
    if left:
        names = _names([RunKey("", seed) for seed in dict.fromkeys(key.seed for key in left)], MOST_NAMED)
        runs = pluralize(2 * len(left), "run")
        dropped = _both(dropped, f"the other folds of seed {names} ({runs}), because a fold is missing")
    if scorer.metric.per_image:
        parts = {fold: [arm[RunKey(fold, seed)] for arm in (a, b) for seed in seeds] for fold in folds}
        found = _two_way(Method.OUT_OF_FOLD, scorer.out_of_fold(parts), dropped, scorer.each, len(folds))
        return replace(found, seeds=tuple(seeds), over_folds=over_folds)
    candidate_K, reference_K = ([scorer.of_seeds(arm, folds)[seed] for seed in seeds] for arm in (a, b))
    found = _over_seeds(Method.OVER_SEEDS_OF_FOLDS, candidate_K, reference_K, _NO_VALUES, dropped, len(folds))
    return replace(found, over_folds=over_folds)


# Procedures


def _nothing(reason: str, dropped: str) -> TestResult:
    return TestResult(Method.NONE, np.array([]), np.array([]), dropped, (reason,))


def _two_way(method: Method, values: Values, dropped: str, each: Each, n_folds: int = 0) -> TestResult:
    """The two-way test over seeds x images, for pairs with values on the same images."""
    dropped = _both(dropped, values.dropped)
    if not values.units:
        return _nothing(_NO_IMAGE, dropped)
    unit = each if len(values.units) == len(values.images) else "group"
    K, units = len(values.values_KU) // 2, pluralize(len(values.units), unit)
    candidate_KU, reference_KU = values.values_KU[:K], values.values_KU[K:]
    candidate_K, reference_K = candidate_KU.mean(axis=1), reference_KU.mean(axis=1)
    if len(values.units) == 1:  # no inference for new images, but for new seeds
        why = f"{units} cannot represent new ones"
        found = _over_seeds(Method.OVER_SEEDS, candidate_K, reference_K, why, dropped)
        return replace(found, values=values, n_images=len(values.images))
    analysis, test_set = stats.two_way(candidate_KU - reference_KU), stats.one_sample(candidate_K - reference_K)
    overall, notes = analysis.interval, _few(K)
    if K >= FEWEST_SEEDS and math.isnan(overall.p):
        vary = "vary at all" if overall.se == 0 else "vary from seed to seed"
        notes.insert(0, f"the differences do not {vary}: {_NO_CERTAINTY}")
    if K < FEWEST_SEEDS or math.isnan(overall.p):
        overall, test_set = _untested(overall), _untested(test_set)
    elif overall.p == 1.0 and overall.se == 0:
        notes.append(f"identical arms: every {each} has the same score in both")
    if len(values.units) < FEW_UNITS:
        few = "exploratory, with up to 22 % false alarms; a reliable result needs 5 or more"
        small = "new ones may differ more than the interval shows"
        notes.append(f"only {units}: {few if len(values.units) < FEWEST_UNITS else small}")
    found = TestResult(method, candidate_K, reference_K, dropped, tuple(notes), overall, test_set, K, n_folds)
    variance = {part: getattr(analysis, f"var_{part}") for part in stats.PARTS[1:]}
    return replace(found, analysis=analysis, values=values, n_images=len(values.images), variance=variance)


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
    return replace(found, values=values, n_images=len(values.images)) if values else found


def _over_folds(a: Runs, b: Runs, seeds: Mapping[str, Sequence[str]], scorer: Scorer, dropped: str) -> TestResult:
    """A test of the mean differences of folds or splits, each averaged over its seeds, corrected for their shared
    training images. seeds: those that both arms have, of each fold."""
    what = "split" if are_splits(seeds) else "fold"
    if what == "split":  # each is a study of its own; a fold is a part of one
        seeds = {split: of_split for split, of_split in seeds.items() if of_split}
    empty = [fold for fold in seeds if not seeds[fold]]
    if empty or len(seeds) < FEWEST_SEEDS:
        few = f"{pluralize(len(seeds), what)}: a test needs at least {FEWEST_SEEDS}"
        return _nothing(f"{', '.join(map(part_name, empty))}: no pair of runs" if empty else few, dropped)
    candidate_F, reference_F = (
        np.array([np.mean([scorer.score(arm[RunKey(fold, s)]) for s in of_fold]) for fold, of_fold in seeds.items()])
        for arm in (a, b)
    )
    n_test_F, n_train_F, unit = sizes([a[RunKey(fold, of_fold[0])] for fold, of_fold in seeds.items()])
    if not np.isfinite([*n_test_F, *n_train_F]).all():
        return _nothing(f"the records do not say how many images the {what}s hold (n_test, n_train)", dropped)
    design = candidate_F - reference_F, n_test_F, n_train_F
    interval, floor_se = stats.corrected_resampled(*design), stats.split_floor(*design)
    fewest, most = (extreme(len(of_fold) for of_fold in seeds.values()) for extreme in (min, max))
    each = pluralize(most, "seed") if fewest == most else f"{fewest} to {most} seeds"
    notes = [f"{len(seeds)} {what}s of {each}: one difference each, no analysis of single images; sizes in {unit}s"]
    if math.isnan(interval.p):
        notes.insert(0, f"the differences do not vary at all: {_NO_CERTAINTY}")
    if n_test_F.max() > 1.1 * n_test_F.min():
        notes.append(f"{what}s of {n_test_F.min():.0f} to {n_test_F.max():.0f} {unit}s have equal weight in this test")
    # Splits share test images, so that without values per image their number is unknown.
    splits, n = what == "split", len(seeds)
    values, variance = _by_image(a, b, seeds, scorer) if scorer.metric.per_image else (None, {})
    n_images = len(values.images) if values else 0 if splits else round(float(n_test_F.sum()))
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


def _by_image(a: Runs, b: Runs, seeds: Mapping[str, Sequence[str]], scorer: Scorer) -> tuple[Values, dict[str, float]]:
    """Means of candidate and reference for each image (group) over all splits that test it, and the components of
    variance over splits, seeds and images."""
    parts: list[np.ndarray] = []
    names: set[str] = set()
    means_2: dict[str, list[np.ndarray]] = {}
    for fold, of_fold in seeds.items():
        runs = [arm[RunKey(fold, seed)] for arm in (a, b) for seed in of_fold]
        values = scorer.values(runs)
        names.update(values.images)
        both_2SU = values.values_KU.reshape(2, len(of_fold), -1)
        parts.append(both_2SU[0] - both_2SU[1])
        for unit, mean_2 in zip(values.units, both_2SU.mean(axis=1).T, strict=True):
            means_2.setdefault(unit, []).append(mean_2)
    of_unit_2U = np.array([np.mean(of_unit, axis=0) for of_unit in means_2.values()]).reshape(-1, 2).T
    components = stats.split_components(parts) if all(part.size for part in parts) else {}
    return Values(tuple(means_2), of_unit_2U, tuple(names), ""), components


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
    return _NO_PROOF if any(run.row.get(PAIRING) == UNPROVEN for run in (*a.values(), *b.values())) else ""


def _names(keys: Sequence[RunKey], most: int) -> str:
    shown = ", ".join(f"{seed} ({part_name(fold)})" if fold else seed for fold, seed in keys[:most])
    return shown + (" ..." if len(keys) > most else "")
