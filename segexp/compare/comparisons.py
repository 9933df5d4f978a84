"""A candidate against its reference: which procedure their runs allow, what it can find, and what it says.

Axes: K seeds, U units (images or groups).
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Sequence

from segexp.compare.blocks import Arms, Ground, Group, Pair, alone, assumed, by_number, not_whole, unpaired
from segexp.compare.kernel import FEWEST_SEEDS, NAN, TwoWay, effect_size, holm, seed_correlation, verdict, wins
from segexp.compare.power import (
    image_floor,
    minimum_detectable,
    minimum_detectable_by_seeds,
    seeds_needed,
    seeds_needed_alone,
)
from segexp.compare.procedures import (
    Found,
    Runs,
    nothing,
    of_images,
    on_seeds,
    on_seeds_of_folds,
    out_of_fold,
    over_folds,
    unpaired_seeds,
)
from segexp.compare.result import OVER_FOLDS, SCOPES, Comparison, Metric, Verdict
from segexp.compare.scores import scored_runs, whole
from segexp.evaluation.scores import EmptyPolicy
from segexp.records.formatting import pluralize


def compared(pair: Pair, ground: Ground, arms: Arms, metric: Metric, policy: EmptyPolicy) -> Comparison:
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


def _found(candidate: Group, reference: Group, arms: Arms, metric: Metric, policy: EmptyPolicy) -> Found:
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


def _of_folds(a: Runs, b: Runs, metric: Metric, policy: EmptyPolicy, told: str) -> Found:
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


def _why_none(group: Group) -> str:
    """How the runs of an arm without a score ended."""
    states = Counter(run.state for run in group.unscored)
    return ", ".join(f"{count} {state}" for state, count in states.items()) or "its runs did not measure it"


def _by_design(found: Found, rope: float) -> dict[str, float]:
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


def _by_seeds(found: Found, rope: float) -> dict[str, float]:
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


def _wins(found: Found, metric: Metric) -> tuple[float, float, float]:
    if not found.paired or not len(found.candidate_K):
        return NAN, NAN, NAN
    differences = found.candidate_K - found.reference_K
    share, low, high = wins(differences if metric.higher_is_better else -differences)
    return share * len(differences), low, high


def _variance(crossed: TwoWay | None) -> dict[str, float]:
    if crossed is None:
        return {}
    return {"seed": crossed.var_seed, "image": crossed.var_image, "residual": crossed.var_residual}
