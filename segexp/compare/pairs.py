"""A candidate against its reference: what may be paired, which procedure that allows, and what it says.

Axes: K seeds, U units (images or groups). D[k, u] is candidate minus reference on the same seed and the same unit.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from segexp.compare.arms import Arms, Ground, Group, Levels
from segexp.compare.load import Run
from segexp.compare.paired import (
    TwoWay,
    corrected_resampled,
    effect_size,
    holm,
    one_sample,
    seed_correlation,
    two_way,
    verdict,
    welch,
    wins,
)
from segexp.compare.power import image_floor, minimum_detectable, seeds_needed
from segexp.compare.result import Comparison, Interval, Metric
from segexp.compare.values import Values, joined, summary_value, values_of
from segexp.metrics.scores import EmptyPolicy

if TYPE_CHECKING:
    import numpy as np

NAN = math.nan

NO_TEST = Interval(NAN, NAN, NAN, NAN, NAN, NAN, NAN, NAN)

FEWEST_SEEDS = 3
"""Fewer seeds are no test."""

CROSSED = "two-way t over seeds and images"
OUT_OF_FOLD = "two-way t over seeds and images, out-of-fold predictions"
OVER_SEEDS = "t over seeds, this test set"
UNPAIRED = "Welch over seeds, unpaired, this test set"
OVER_FOLDS = "corrected resampled t over folds (Nadeau-Bengio), weaker"


@dataclass(frozen=True)
class Pair:
    """A candidate and what it is held against, by their levels."""

    candidate: Levels
    reference: Levels


def pairs_of(ground: Ground, arms: Arms, references: Sequence[Mapping[str, str]]) -> list[Pair]:
    """Every arm of a block against the arm that differs from it in the keys of a reference alone."""
    pairs = []
    for chosen in references:
        for levels in ground.groups:
            counterpart = tuple(chosen.get(key, level) for key, level in zip(arms.by, levels, strict=True))
            pair = Pair(levels, counterpart)
            if counterpart != levels and counterpart in ground.groups and pair not in pairs:
                pairs.append(pair)
    return pairs


@dataclass(frozen=True)
class _Found:
    """What a procedure came to. differences_K: of the seeds, or folds; scores of both behind them."""

    method: str
    paired: bool
    overall: Interval
    test_set: Interval
    candidate_K: "np.ndarray"
    reference_K: "np.ndarray"
    n_images: int = 0
    crossed: TwoWay | None = None
    values: Values | None = None
    dropped: str = ""
    notes: tuple[str, ...] = ()


def compared(pair: Pair, ground: Ground, arms: Arms, metric: Metric, policy: EmptyPolicy) -> Comparison:
    """One comparison; p_holm and verdict follow when all of a data set are known (`with_holm`)."""
    candidate, reference = ground.groups[pair.candidate], ground.groups[pair.reference]
    found = _found(candidate, reference, metric, policy)
    low_high = _wins(found, metric)
    crossed = found.crossed if found.crossed and found.crossed.n_seeds >= FEWEST_SEEDS else None
    powered = crossed is not None and not math.isnan(crossed.interval.p) and crossed.interval.se > 0
    mean = _mean(found)
    target = metric.rope if metric.rope > 0 else abs(mean)
    n_units = len(found.values.units) if found.values else 0
    K = len(found.candidate_K) if found.paired else min(len(found.candidate_K), len(found.reference_K))
    half = found.values.values_KU.shape[0] // 2 if found.values else 0
    return Comparison(
        candidate=arms.label(pair.candidate),
        reference=arms.label(pair.reference),
        method=found.method,
        paired=found.paired,
        n_seeds=K,
        n_images=found.n_images,
        n_groups=n_units,
        overall=found.overall,
        test_set=found.test_set,
        p_holm=NAN,
        verdict="no test",
        minimum_detectable=minimum_detectable(crossed) if crossed and powered else NAN,
        target=target,
        seeds_needed=seeds_needed(crossed, target) if crossed and powered and target > 0 else None,
        image_floor=image_floor(crossed) if crossed and powered else NAN,
        wins=low_high[0],
        wins_low=low_high[1],
        wins_high=low_high[2],
        effect_size=effect_size(found.candidate_K - found.reference_K) if found.paired and K else NAN,
        seed_correlation=seed_correlation(found.candidate_K, found.reference_K) if found.paired and K else NAN,
        variance=_variance(found.crossed),
        dropped=found.dropped,
        warnings=found.notes,
        units=found.values.units if found.values else (),
        candidate_N=found.values.values_KU[:half].mean(axis=0) if found.values else None,
        reference_N=found.values.values_KU[half:].mean(axis=0) if found.values else None,
    )


def deciding(comparison: Comparison) -> Interval:
    """The interval that the verdict rests on: new seeds and new images, or this test set where there is no more."""
    return comparison.test_set if math.isnan(comparison.overall.mean) else comparison.overall


def with_holm(comparisons: Sequence[Comparison], metric: Metric) -> list[Comparison]:
    """All comparisons of a data set with their adjusted p, verdicts, and the warnings that follow from verdicts."""
    import numpy as np

    if not comparisons:
        return []
    adjusted = holm(np.array([deciding(c).p for c in comparisons]))
    # The narrower claim has its own family: it must not be held against the wider one's p.
    narrow = holm(np.array([c.test_set.p for c in comparisons]))
    judged = []
    for comparison, p, p_narrow in zip(comparisons, adjusted, narrow, strict=True):
        word = verdict(deciding(comparison), float(p), metric.rope, metric.higher_is_better)
        notes = list(comparison.warnings)
        if not math.isnan(comparison.overall.p) and not math.isnan(comparison.test_set.p):
            here = verdict(comparison.test_set, float(p_narrow), metric.rope, metric.higher_is_better)
            if here != word:
                notes.append(f"on this very test set alone the verdict would be: {here}")
        judged.append(dataclasses.replace(comparison, p_holm=float(p), verdict=word, warnings=tuple(notes)))
    return judged


def _found(candidate: Group, reference: Group, metric: Metric, policy: EmptyPolicy) -> _Found:
    """The procedure that the runs of both arms allow."""
    a, b = _with_score(candidate, metric), _with_score(reference, metric)
    if any(fold for fold, _ in (*a, *b)):
        return _over_folds(a, b, metric, policy)
    common = sorted(a.keys() & b.keys(), key=_by_number)
    dropped = _alone(a, b)
    reason = _unpaired(a, b, common)
    if reason:
        return _welch(a, b, metric, policy, reason, dropped)
    pairs = [(a[key], b[key]) for key in common]
    if metric.per_image:
        return _crossed(pairs, metric, policy, dropped)
    scores = [[summary_value(run, metric) for run in runs] for runs in zip(*pairs, strict=True)]
    return _on_seeds(OVER_SEEDS, scores, dropped)


def _with_score(group: Group, metric: Metric) -> dict[tuple[str, str], Run]:
    if metric.per_image:
        return {
            key: run for key, run in group.scored.items() if run.images is not None and metric.name in run.images.cells
        }
    return {key: run for key, run in group.scored.items() if not math.isnan(summary_value(run, metric))}


def _by_number(key: tuple[str, str]) -> tuple[float, float]:
    return tuple(float(part) if part else -1.0 for part in key)  # type: ignore[return-value]


def _alone(a: Mapping[tuple[str, str], Run], b: Mapping[tuple[str, str], Run]) -> str:
    """Which seeds have no partner."""
    parts = []
    for keys, whose in ((a.keys() - b.keys(), "the candidate"), (b.keys() - a.keys(), "the reference")):
        if keys:
            shown = ", ".join(_seed_name(key) for key in sorted(keys, key=_by_number)[:8])
            parts.append(f"seed {shown} of {whose} alone")
    return " and ".join(parts)


def _seed_name(key: tuple[str, str]) -> str:
    return f"{key[1]} (fold {key[0]})" if key[0] else key[1]


def _unpaired(
    a: Mapping[tuple[str, str], Run], b: Mapping[tuple[str, str], Run], common: Sequence[tuple[str, str]]
) -> str:
    """Why the runs of the common seeds are no pairs, "" when they are."""
    if not common:
        return "they have no seed in common"
    for column, what in (("split_sha", "split"), ("init_sha", "initial weights"), ("order_sha", "batch order")):
        differing = [key for key in common if a[key].row.get(column, "") != b[key].row.get(column, "")]
        if differing:
            shown = ", ".join(_seed_name(key) for key in differing[:5])
            return f"{what} differ for seed {shown}" if what != "split" else f"the split differs for seed {shown}"
    return ""


def _crossed(pairs: Sequence[tuple[Run, Run]], metric: Metric, policy: EmptyPolicy, dropped: str) -> _Found:
    """Seeds x images, paired."""
    values = values_of([*(a for a, _ in pairs), *(b for _, b in pairs)], metric, policy)
    return _of_values(CROSSED, values, dropped)


def _of_values(method: str, values: Values, dropped: str) -> _Found:
    """The two-way procedure on values of K candidates followed by those of their K references."""
    K = len(values.values_KU) // 2
    candidate_KU, reference_KU = values.values_KU[:K], values.values_KU[K:]
    dropped = " and ".join(part for part in (dropped, values.dropped) if part)
    if not values.units:
        return _nothing("no image has a score in all runs", dropped)
    crossed = two_way(candidate_KU - reference_KU)
    overall, test_set = crossed.interval, one_sample((candidate_KU - reference_KU).mean(axis=1))
    notes = [_few(K)] if K < 5 else []
    if K < FEWEST_SEEDS:
        overall, test_set = (dataclasses.replace(NO_TEST, mean=i.mean) for i in (overall, test_set))
    if overall.p == 1.0 and overall.se == 0:
        notes.append("identical arms: every image has the same score in both")
    if len(values.units) < 50:
        notes.append(f"only {len(values.units)} {_units(values)}: new images may differ more than these tell")
    return _Found(
        method,
        True,
        overall,
        test_set,
        candidate_KU.mean(axis=1),
        reference_KU.mean(axis=1),
        values.n_images,
        crossed,
        values,
        dropped,
        tuple(notes),
    )


def _units(values: Values) -> str:
    return "images" if len(values.units) == values.n_images else "groups"


def _few(K: int) -> str:
    if K < FEWEST_SEEDS:
        return f"{K} seed{'s' * (K != 1)}: no test with fewer than {FEWEST_SEEDS}"
    return f"{K} seeds: exploratory, 5 or more are needed to rely on it"


def _on_seeds(method: str, scores: Sequence[Sequence[float]], dropped: str, notes: tuple[str, ...] = ()) -> _Found:
    """Scores without values per image: paired seeds, which speak of this test set alone."""
    import numpy as np

    candidate_K, reference_K = (np.array(values) for values in scores)
    K = len(candidate_K)
    interval = one_sample(candidate_K - reference_K)
    if K < FEWEST_SEEDS:
        interval = dataclasses.replace(NO_TEST, mean=interval.mean)
    few = (_few(K),) if K < 5 else ()
    return _Found(method, True, NO_TEST, interval, candidate_K, reference_K, dropped=dropped, notes=(*few, *notes))


def _welch(
    a: Mapping[tuple[str, str], Run],
    b: Mapping[tuple[str, str], Run],
    metric: Metric,
    policy: EmptyPolicy,
    reason: str,
    dropped: str,
) -> _Found:
    """Seeds that are no pairs."""
    import numpy as np

    if not a or not b:
        return _nothing("one of the arms has no score", dropped)
    candidate_K, reference_L = (np.array([score_of(run, metric, policy) for run in arm.values()]) for arm in (a, b))
    interval = welch(candidate_K, reference_L)
    fewest = min(len(candidate_K), len(reference_L))
    notes = [f"not paired, {reason}: the claim is of this test set alone"]
    if fewest < 5:
        notes.append(_few(fewest))
    if fewest < FEWEST_SEEDS:
        interval = dataclasses.replace(NO_TEST, mean=interval.mean)
    return _Found(UNPAIRED, False, NO_TEST, interval, candidate_K, reference_L, dropped="", notes=tuple(notes))


def score_of(run: Run, metric: Metric, policy: EmptyPolicy) -> float:
    """The score of one run on all of its own images."""
    if not metric.per_image:
        return summary_value(run, metric)
    key = (metric.name, policy)
    if key not in run.known:
        values = values_of([run], metric, policy).values_KU
        run.known[key] = float(values.mean()) if values.size else NAN
    return run.known[key]


def _over_folds(
    a: Mapping[tuple[str, str], Run], b: Mapping[tuple[str, str], Run], metric: Metric, policy: EmptyPolicy
) -> _Found:
    """Cross-validation. Seeds that both arms have in every fold are rows of out-of-fold values; with fewer than three
    of them the folds' mean differences are tested, with the correction that their shared training images ask for."""
    import numpy as np

    common = a.keys() & b.keys()
    folds = sorted({fold for fold, _ in (*a, *b)}, key=float)
    of_fold = {fold: sorted({seed for f, seed in common if f == fold}, key=float) for fold in folds}
    dropped = _alone(a, b)
    whole = sorted(set.intersection(*(set(seeds) for seeds in of_fold.values())), key=float)
    reason = _unpaired(a, b, sorted(common, key=_by_number))
    if reason:
        return _nothing(f"folds cannot be compared unpaired: {reason}", dropped)
    if metric.per_image and len(whole) >= FEWEST_SEEDS:
        parts = {fold: [*(a[fold, seed] for seed in whole), *(b[fold, seed] for seed in whole)] for fold in folds}
        return _of_values(OUT_OF_FOLD, joined(parts, metric, policy), dropped)
    empty = [fold for fold in folds if not of_fold[fold]]
    if empty or len(folds) < FEWEST_SEEDS:
        what = f"fold {', '.join(empty)} has no pair of runs" if empty else f"{len(folds)} folds are too few"
        return _nothing(what, dropped)
    scores = [
        [float(np.mean([score_of(arm[fold, seed], metric, policy) for seed in of_fold[fold]])) for fold in folds]
        for arm in (a, b)
    ]
    candidate_F, reference_F = (np.array(values) for values in scores)
    sizes = [np.array([a[fold, of_fold[fold][0]].number(column) for fold in folds]) for column in ("n_test", "n_train")]
    if any(np.isnan(size).any() for size in sizes):
        return _nothing("the runs do not say how many images their folds hold", dropped)
    interval = corrected_resampled(candidate_F - reference_F, *sizes)
    n_seeds = min(len(seeds) for seeds in of_fold.values())
    note = (
        f"{len(folds)} folds with {n_seeds} seed{'s' * (n_seeds != 1)} each: a weaker test than "
        f"{FEWEST_SEEDS} or more seeds in every fold"
    )
    return _Found(
        OVER_FOLDS,
        True,
        interval,
        NO_TEST,
        candidate_F,
        reference_F,
        n_images=int(sizes[0].sum()),
        dropped=dropped,
        notes=(note,),
    )


def _nothing(reason: str, dropped: str) -> _Found:
    import numpy as np

    return _Found("none", False, NO_TEST, NO_TEST, np.array([]), np.array([]), dropped=dropped, notes=(reason,))


def _mean(found: _Found) -> float:
    return found.test_set.mean if math.isnan(found.overall.mean) else found.overall.mean


def _wins(found: _Found, metric: Metric) -> tuple[float, float, float]:
    if not found.paired or not len(found.candidate_K):
        return NAN, NAN, NAN
    differences = found.candidate_K - found.reference_K
    share, low, high = wins(differences if metric.higher_is_better else -differences)
    return share * len(differences), low, high


def _variance(crossed: TwoWay | None) -> dict[str, float]:
    if crossed is None:
        return {}
    return {"seed": crossed.var_seed, "image": crossed.var_image, "residual": crossed.var_residual}
