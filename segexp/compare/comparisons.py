"""A candidate against its reference: which procedure their runs allow, what it can find, and what it says.

Axes: K seeds, U units (images or groups).
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from segexp.compare.blocks import ArmRuns, Arms, BlockRuns, Pair, RunKey, alone, assumed, by_number, not_whole, unpaired
from segexp.compare.result import (
    NONE,
    OUT_OF_FOLD,
    OVER_FOLDS,
    OVER_SEEDS,
    OVER_SEEDS_OF_FOLDS,
    SCOPES,
    TWO_WAY,
    UNPAIRED,
    Comparison,
    Interval,
    Metric,
    Verdict,
)
from segexp.compare.statistics import (
    FEW_SEEDS,
    FEWEST_SEEDS,
    NAN,
    TwoWay,
    corrected_resampled,
    effect_size,
    holm,
    image_floor,
    minimum_detectable,
    minimum_detectable_by_seeds,
    one_sample,
    seed_correlation,
    seeds_needed,
    seeds_needed_alone,
    two_way,
    verdict,
    welch,
    wins,
)
from segexp.compare.values import Values, joined, score_of, scored_runs, seed_scores, summary_value, values_of, whole
from segexp.evaluation.scores import EmptyPolicy
from segexp.records.formatting import pluralize
from segexp.records.runs import Run

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike
NO_TEST = Interval(NAN, NAN, NAN, NAN, NAN, NAN, NAN, NAN)

FEW_UNITS = 50
"""Fewer images (groups) are told."""

_NO_IMAGE = "no image has a score in all runs"
_NO_VALUES = "no value per image"
_NO_CERTAINTY = "no test, for seeds that change nothing are no certainty"

Runs = Mapping[RunKey, Run]


@dataclass(frozen=True)
class TestResult:
    """What a procedure came to. candidate_K, reference_K: scores of seeds (or folds) behind it, paired or not; values:
    of as many candidates and references; crossed: where seeds x images were analysed. notes: what must be known, why
    there is no test first."""

    method: str
    overall: Interval
    test_set: Interval
    candidate_K: "np.ndarray"
    reference_K: "np.ndarray"
    n_seeds: int = 0
    n_folds: int = 0
    crossed: TwoWay | None = None
    values: Values | None = None
    n_images: int = 0
    dropped: str = ""
    notes: tuple[str, ...] = ()

    @property
    def paired(self) -> bool:
        return self.method not in (UNPAIRED, NONE)


def nothing(reason: str, dropped: str) -> TestResult:
    """No procedure, and why."""
    import numpy as np

    return TestResult(NONE, NO_TEST, NO_TEST, np.array([]), np.array([]), dropped=dropped, notes=(reason,))


def of_images(a: Sequence[Run], b: Sequence[Run], metric: Metric, policy: EmptyPolicy, dropped: str) -> TestResult:
    """Runs that are pairs, on the images that all of them have: the two-way test."""
    return _of_values(TWO_WAY, values_of([*a, *b], metric, policy), dropped)


def out_of_fold(
    a: Runs, b: Runs, seeds: Sequence[str], folds: Sequence[str], metric: Metric, policy: EmptyPolicy, dropped: str
) -> TestResult:
    """Seeds that both arms have in every fold are rows of out-of-fold values: the two-way test."""
    parts = {fold: [arm[RunKey(fold, seed)] for arm in (a, b) for seed in seeds] for fold in folds}
    return _of_values(OUT_OF_FOLD, joined(parts, metric, policy), dropped, len(folds))


def _of_values(method: str, values: Values, dropped: str, n_folds: int = 0) -> TestResult:
    dropped = _both(dropped, values.dropped)
    if not values.units:
        return nothing(_NO_IMAGE, dropped)
    K, units = len(values.values_KU) // 2, pluralize(len(values.units), _unit(values))
    candidate_KU, reference_KU = values.values_KU[:K], values.values_KU[K:]
    candidate_K, reference_K = candidate_KU.mean(axis=1), reference_KU.mean(axis=1)
    if len(values.units) == 1:
        # It tells nothing of others, but its seeds tell of other seeds.
        found = _on_seeds(OVER_SEEDS, candidate_K, reference_K, f"{units} tells nothing of new ones", dropped)
        return replace(found, values=values, n_images=values.n_images)
    crossed, test_set = two_way(candidate_KU - reference_KU), one_sample(candidate_K - reference_K)
    overall, notes = crossed.interval, _few(K)
    if K >= FEWEST_SEEDS and math.isnan(overall.p):
        vary = "vary at all" if overall.se == 0 else "vary from seed to seed"
        notes.insert(0, f"the differences do not {vary}: {_NO_CERTAINTY}")
    if K < FEWEST_SEEDS or math.isnan(overall.p):
        overall, test_set = _untested(overall), _untested(test_set)
    elif overall.p == 1.0 and overall.se == 0:
        notes.append("identical arms: every image has the same score in both")
    if len(values.units) < FEW_UNITS:
        notes.append(f"only {units}: new ones may differ more than these tell")
    return TestResult(
        method=method,
        overall=overall,
        test_set=test_set,
        candidate_K=candidate_K,
        reference_K=reference_K,
        n_seeds=K,
        n_folds=n_folds,
        crossed=crossed,
        values=values,
        n_images=values.n_images,
        dropped=dropped,
        notes=tuple(notes),
    )


def on_seeds(a: Sequence[Run], b: Sequence[Run], metric: Metric, dropped: str) -> TestResult:
    """Scores without values per image: paired seeds, which speak of this test set alone."""
    candidate_K, reference_K = ([summary_value(run, metric) for run in arm] for arm in (a, b))
    return _on_seeds(OVER_SEEDS, candidate_K, reference_K, _NO_VALUES, dropped)


def on_seeds_of_folds(
    a: Runs, b: Runs, seeds: Sequence[str], folds: Sequence[str], metric: Metric, policy: EmptyPolicy, dropped: str
) -> TestResult:
    """Scores without values per image in cross-validation: a seed counts with its mean over all folds."""
    of_arms = [seed_scores(arm, folds, metric, policy) for arm in (a, b)]
    candidate_K, reference_K = ([of_arm[seed] for seed in seeds] for of_arm in of_arms)
    return _on_seeds(OVER_SEEDS_OF_FOLDS, candidate_K, reference_K, _NO_VALUES, dropped, len(folds))


def _on_seeds(
    method: str, candidate: "ArrayLike", reference: "ArrayLike", why: str, dropped: str, n_folds: int = 0
) -> TestResult:
    """Paired seeds, tested by themselves; why: what keeps the claim from being a wider one."""
    import numpy as np

    candidate_K, reference_K = np.asarray(candidate, dtype=float), np.asarray(reference, dtype=float)
    K = len(candidate_K)
    interval = one_sample(candidate_K - reference_K)
    notes = _few(K)
    if K < FEWEST_SEEDS:
        interval = _untested(interval)
    elif math.isnan(interval.p):
        notes.insert(0, f"the differences do not vary at all: {_NO_CERTAINTY}")
    about = "these folds" if n_folds else "this test set"
    notes.append(f"{why}: the claim is of {about} alone")
    return TestResult(
        method, NO_TEST, interval, candidate_K, reference_K, K, n_folds, dropped=dropped, notes=tuple(notes)
    )


def unpaired_seeds(a: Runs, b: Runs, metric: Metric, policy: EmptyPolicy, reason: str, dropped: str) -> TestResult:
    """Seeds that are no pairs, each scored on the images that all of them have."""
    import numpy as np

    values = values_of([*a.values(), *b.values()], metric, policy) if metric.per_image else None
    if values is not None:
        dropped = _both(dropped, values.dropped)
        if not values.units:
            return nothing(_NO_IMAGE, dropped)
        scores_K = values.values_KU.mean(axis=1)
    else:
        scores_K = np.array([summary_value(run, metric) for arm in (a, b) for run in arm.values()])
    candidate_K, reference_L = scores_K[: len(a)], scores_K[len(a) :]
    interval = welch(candidate_K, reference_L)
    fewest = min(len(candidate_K), len(reference_L))
    notes = _few(fewest)
    if fewest < FEWEST_SEEDS:
        interval = _untested(interval)
    elif math.isnan(interval.p):
        notes.insert(0, f"the scores do not vary at all: {_NO_CERTAINTY}")
    notes.append(f"not paired, {reason}: the claim is of this test set alone")
    return TestResult(
        method=UNPAIRED,
        overall=NO_TEST,
        test_set=interval,
        candidate_K=candidate_K,
        reference_K=reference_L,
        n_seeds=fewest,
        values=values,
        n_images=values.n_images if values else 0,
        dropped=dropped,
        notes=tuple(notes),
    )


def over_folds(
    a: Runs, b: Runs, seeds: Mapping[str, Sequence[str]], metric: Metric, policy: EmptyPolicy, dropped: str
) -> TestResult:
    """Too few seeds have all folds: the folds' mean differences are tested, with the correction that their shared
    training images ask for. seeds: those that both arms have, of each fold."""
    import numpy as np

    empty = [fold for fold in seeds if not seeds[fold]]
    if empty or len(seeds) < FEWEST_SEEDS:
        what = f"fold {', '.join(empty)} has no pair of runs" if empty else f"{len(seeds)} folds are too few"
        return nothing(what, dropped)
    candidate_F, reference_F = (
        np.array(
            [
                np.mean([score_of(arm[RunKey(fold, seed)], metric, policy) for seed in of_fold])
                for fold, of_fold in seeds.items()
            ]
        )
        for arm in (a, b)
    )
    first = [a[RunKey(fold, of_fold[0])] for fold, of_fold in seeds.items()]
    n_test_F, n_train_F = (np.array([run.number(column) for run in first]) for column in ("n_test", "n_train"))
    if not (np.isfinite(n_test_F).all() and np.isfinite(n_train_F).all()):
        return nothing("the runs do not say how many images their folds hold", dropped)
    interval = corrected_resampled(candidate_F - reference_F, n_test_F, n_train_F)
    fewest, most = (extreme(len(of_fold) for of_fold in seeds.values()) for extreme in (min, max))
    each = pluralize(most, "seed") if fewest == most else f"{fewest} to {most} seeds"
    notes = [f"{len(seeds)} folds with {each} each: a weaker test than the same {FEWEST_SEEDS} seeds in every fold"]
    if math.isnan(interval.p):
        notes.insert(0, f"the differences do not vary at all: {_NO_CERTAINTY}")
    if n_test_F.max() > 1.1 * n_test_F.min():
        notes.append(f"folds of {n_test_F.min():.0f} to {n_test_F.max():.0f} images count alike in this test")
    return TestResult(
        method=OVER_FOLDS,
        overall=interval,
        test_set=NO_TEST,
        candidate_K=candidate_F,
        reference_K=reference_F,
        n_seeds=fewest,
        n_folds=len(seeds),
        n_images=int(n_test_F.sum()),
        dropped=dropped,
        notes=tuple(notes),
    )


def _untested(interval: Interval) -> Interval:
    return replace(NO_TEST, mean=interval.mean)


def _few(K: int) -> list[str]:
    if K < FEWEST_SEEDS:
        return [f"{pluralize(K, 'seed')}: no test with fewer than {FEWEST_SEEDS}"]
    if K < FEW_SEEDS:
        return [f"{K} seeds: exploratory, {FEW_SEEDS} or more are needed to rely on it"]
    return []


def _unit(values: Values) -> str:
    return "image" if len(values.units) == values.n_images else "group"


def _both(*parts: str) -> str:
    return " and ".join(part for part in parts if part)


def compared(pair: Pair, ground: BlockRuns, arms: Arms, metric: Metric, policy: EmptyPolicy) -> Comparison:
    """One comparison; p_holm and verdict follow when all of a data set are known (`with_holm`)."""
    found = _found(ground.groups[pair.candidate], ground.groups[pair.reference], arms, metric, policy)
    won, low, high = _wins(found, metric)
    values, K = found.values, len(found.candidate_K)
    return Comparison(
        candidate=arms.label(pair.candidate),
        reference=arms.label(pair.reference),
        method=found.method,
        scope=SCOPES[found.method],
        paired=found.paired,
        n_seeds=found.n_seeds,
        n_folds=found.n_folds,
        n_images=found.n_images,
        n_groups=len(values.units) if values else 0,
        overall=found.overall,
        test_set=found.test_set,
        p_holm=NAN,
        verdict=Verdict.NO_TEST,
        **_by_design(found, metric.rope),
        wins=won,
        wins_low=low,
        wins_high=high,
        effect_size=effect_size(found.candidate_K - found.reference_K) if found.paired else NAN,
        seed_correlation=seed_correlation(found.candidate_K, found.reference_K) if found.paired else NAN,
        variance=_variance(found.crossed),
        dropped=found.dropped,
        warnings=found.notes,
        units=values.units if values else (),
        candidate_N=values.values_KU[:K].mean(axis=0) if values else None,
        reference_N=values.values_KU[K:].mean(axis=0) if values else None,
    )


def with_holm(comparisons: Sequence[Comparison], metric: Metric) -> list[Comparison]:
    """All comparisons of a data set with their adjusted p, verdicts, and the warnings that follow from verdicts."""
    import numpy as np

    if not comparisons:
        return []
    adjusted = holm(np.array([c.deciding.p for c in comparisons]))
    # The narrower claim has its own family: it must not be held against the wider one's p.
    narrow = holm(np.array([c.test_set.p for c in comparisons]))
    judged = []
    for comparison, p, p_narrow in zip(comparisons, adjusted, narrow, strict=True):
        said = verdict(comparison.deciding, float(p), metric.rope, metric.higher_is_better)
        notes = list(comparison.warnings)
        if not math.isnan(comparison.overall.p) and not math.isnan(comparison.test_set.p):
            here = verdict(comparison.test_set, float(p_narrow), metric.rope, metric.higher_is_better)
            if here != said:
                notes.append(f"on this very test set alone the verdict would be: {here}")
        judged.append(dataclasses.replace(comparison, p_holm=float(p), verdict=said, warnings=tuple(notes)))
    return judged


def _found(candidate: ArmRuns, reference: ArmRuns, arms: Arms, metric: Metric, policy: EmptyPolicy) -> TestResult:
    """The procedure that the runs of both arms allow."""
    a, b = (scored_runs(group, metric, policy) for group in (candidate, reference))
    for group, scored in ((candidate, a), (reference, b)):
        if not scored:
            return nothing(f"{arms.label(group.levels)} has no {metric.title}: {_why_none(group)}", "")
    unknown = len(candidate.scored) + len(reference.scored) - len(a) - len(b)
    without = f"{pluralize(unknown, 'run')} without a finite {metric.title}" if unknown else ""
    told = " and ".join(part for part in (alone(a, b), without) if part)
    common = sorted(a.keys() & b.keys(), key=by_number)
    reason = unpaired(a, b, common)
    if any(fold for fold, _ in (*a, *b)):
        cannot = f"folds cannot be compared unpaired: {reason}"
        found = nothing(cannot, told) if reason else _of_folds(a, b, metric, policy, told)
    elif reason:
        # Without pairs no seed is left out for lack of one.
        found = unpaired_seeds(a, b, metric, policy, reason, without)
    else:
        pairs = [a[key] for key in common], [b[key] for key in common]
        found = of_images(*pairs, metric, policy, told) if metric.per_image else on_seeds(*pairs, metric, told)
    notes = assumed(a, b, common) if found.paired else []
    return dataclasses.replace(found, notes=(*found.notes, *notes))


def _of_folds(a: Runs, b: Runs, metric: Metric, policy: EmptyPolicy, told: str) -> TestResult:
    """Cross-validation: seeds are tested where enough of them have every fold in both arms, else the folds."""
    common = sorted(a.keys() & b.keys(), key=by_number)
    folds = list(dict.fromkeys(fold for fold, _ in sorted({*a, *b}, key=by_number)))
    seeds = whole(common, folds)
    if len(seeds) < FEWEST_SEEDS:
        of_fold = {fold: [seed for f, seed in common if f == fold] for fold in folds}
        return over_folds(a, b, of_fold, metric, policy, told)
    told = " and ".join(part for part in (told, not_whole(common, seeds)) if part)
    procedure = out_of_fold if metric.per_image else on_seeds_of_folds
    return procedure(a, b, seeds, folds, metric, policy, told)


def _why_none(group: ArmRuns) -> str:
    """How the runs of an arm without a score ended."""
    states = Counter(run.state for run in group.unscored)
    return ", ".join(f"{count} {state}" for state, count in states.items()) or "its runs did not measure it"


def _by_design(found: TestResult, rope: float) -> dict[str, float]:
    """What seeds and images like these can find; NaN where it is not known."""
    unknown = {"minimum_detectable": NAN, "target": rope, "seeds_needed": NAN, "image_floor": NAN}
    if found.n_seeds < FEWEST_SEEDS or found.method == OVER_FOLDS:
        return unknown
    if found.crossed is not None:
        return unknown | _by_seeds_and_images(found.crossed, rope)
    return unknown | _by_seeds(found, rope)


def _by_seeds_and_images(crossed: TwoWay, rope: float) -> dict[str, float]:
    if not crossed.interval.se > 0:
        return {}
    return {
        "minimum_detectable": minimum_detectable(crossed),
        "seeds_needed": _at_least_tested(seeds_needed(crossed, rope)) if rope > 0 else NAN,
        "image_floor": image_floor(crossed) or NAN,
    }


def _by_seeds(found: TestResult, rope: float) -> dict[str, float]:
    if not found.test_set.se > 0:
        return {}
    scores = [found.candidate_K - found.reference_K] if found.paired else [found.candidate_K, found.reference_K]
    needed = seeds_needed_alone([float(values.var(ddof=1)) for values in scores], rope) if rope > 0 else None
    return {
        "minimum_detectable": minimum_detectable_by_seeds(found.test_set),
        "seeds_needed": _at_least_tested(needed) if rope > 0 else NAN,
    }


def _at_least_tested(needed: int | None) -> float:
    """Fewer seeds are no test, whatever they could find."""
    return math.inf if needed is None else max(needed, FEWEST_SEEDS)


def _wins(found: TestResult, metric: Metric) -> tuple[float, float, float]:
    if not found.paired or not len(found.candidate_K):
        return NAN, NAN, NAN
    differences = found.candidate_K - found.reference_K
    share, low, high = wins(differences if metric.higher_is_better else -differences)
    return share * len(differences), low, high


def _variance(crossed: TwoWay | None) -> dict[str, float]:
    if crossed is None:
        return {}
    return {"seed": crossed.var_seed, "image": crossed.var_image, "residual": crossed.var_residual}
