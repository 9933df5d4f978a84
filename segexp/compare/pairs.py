"""A candidate against its reference: what may be paired, which procedure that allows, and what it says.

Axes: K seeds, U units (images or groups). D[k, u] is candidate minus reference on the same seed and the same unit.
"""

import dataclasses
import math
from collections import Counter
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
from segexp.tables import counted

if TYPE_CHECKING:
    import numpy as np

NAN = math.nan

NO_TEST = Interval(NAN, NAN, NAN, NAN, NAN, NAN, NAN, NAN)

FEWEST_SEEDS = 3
"""Fewer seeds are no test."""

CROSSED = "two-way t over seeds and images"
OUT_OF_FOLD = "two-way t over seeds and images, out-of-fold predictions"
OVER_SEEDS = "t over seeds"
UNPAIRED = "Welch over seeds, unpaired"
OVER_FOLDS = "corrected resampled t over folds (Nadeau-Bengio), weaker"
NONE = "none"

SCOPES = {
    CROSSED: "new seeds and new images",
    OUT_OF_FOLD: "new seeds and new images",
    OVER_SEEDS: "new seeds, this test set",
    UNPAIRED: "new seeds, this test set",
    OVER_FOLDS: "new folds of these images",
    NONE: "",
}
"""What the verdict of each procedure speaks of."""


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
    """What a procedure came to. candidate_K, reference_K: scores of seeds (or folds) behind it, paired or not."""

    method: str
    overall: Interval
    test_set: Interval
    candidate_K: "np.ndarray"
    reference_K: "np.ndarray"
    n_seeds: int = 0
    n_folds: int = 0
    n_images: int = 0
    crossed: TwoWay | None = None
    values: Values | None = None
    dropped: str = ""
    notes: tuple[str, ...] = ()

    @property
    def paired(self) -> bool:
        return self.method not in (UNPAIRED, NONE)


def compared(pair: Pair, ground: Ground, arms: Arms, metric: Metric, policy: EmptyPolicy) -> Comparison:
    """One comparison; p_holm and verdict follow when all of a data set are known (`with_holm`)."""
    found = _found(ground.groups[pair.candidate], ground.groups[pair.reference], arms, metric, policy)
    won, low, high = _wins(found, metric)
    half = found.values.values_KU.shape[0] // 2 if found.values else 0
    return Comparison(
        candidate=arms.label(pair.candidate),
        reference=arms.label(pair.reference),
        method=found.method,
        scope=SCOPES[found.method],
        paired=found.paired,
        n_seeds=found.n_seeds,
        n_folds=found.n_folds,
        n_images=found.n_images,
        n_groups=len(found.values.units) if found.values else 0,
        overall=found.overall,
        test_set=found.test_set,
        p_holm=NAN,
        verdict="no test",
        **_found_by_design(found.crossed, metric.rope),
        wins=won,
        wins_low=low,
        wins_high=high,
        effect_size=effect_size(found.candidate_K - found.reference_K) if found.paired else NAN,
        seed_correlation=seed_correlation(found.candidate_K, found.reference_K) if found.paired else NAN,
        variance=_variance(found.crossed),
        dropped=found.dropped,
        warnings=found.notes,
        units=found.values.units if found.values else (),
        candidate_N=found.values.values_KU[:half].mean(axis=0) if found.values else None,
        reference_N=found.values.values_KU[half:].mean(axis=0) if found.values else None,
    )


def _found_by_design(crossed: TwoWay | None, rope: float) -> dict[str, float]:
    """What seeds and images like these can find; NaN where it is not known."""
    if crossed is None or crossed.n_seeds < FEWEST_SEEDS or not crossed.interval.se > 0:
        return {"minimum_detectable": NAN, "target": rope, "seeds_needed": NAN, "image_floor": NAN}
    needed = seeds_needed(crossed, rope) if rope > 0 else NAN
    return {
        "minimum_detectable": minimum_detectable(crossed),
        "target": rope,
        # Fewer are no test, whatever they could find.
        "seeds_needed": math.inf if needed is None else max(needed, FEWEST_SEEDS) if rope > 0 else NAN,
        "image_floor": image_floor(crossed) or NAN,
    }


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
        word = verdict(comparison.deciding, float(p), metric.rope, metric.higher_is_better)
        notes = list(comparison.warnings)
        if not math.isnan(comparison.overall.p) and not math.isnan(comparison.test_set.p):
            here = verdict(comparison.test_set, float(p_narrow), metric.rope, metric.higher_is_better)
            if here != word:
                notes.append(f"on this very test set alone the verdict would be: {here}")
        judged.append(dataclasses.replace(comparison, p_holm=float(p), verdict=word, warnings=tuple(notes)))
    return judged


def _found(candidate: Group, reference: Group, arms: Arms, metric: Metric, policy: EmptyPolicy) -> _Found:
    """The procedure that the runs of both arms allow."""
    a, b = (_with_score(group, metric, policy) for group in (candidate, reference))
    for group, scored in ((candidate, a), (reference, b)):
        if not scored:
            return _nothing(f"{arms.label(group.levels)} has no {metric.title}: {_why_none(group)}", "")
    unknown = len(candidate.scored) + len(reference.scored) - len(a) - len(b)
    dropped = [_alone(a, b)] + ([f"{counted(unknown, 'run')} without a finite {metric.title}"] if unknown else [])
    told = " and ".join(part for part in dropped if part)
    if any(fold for fold, _ in (*a, *b)):
        return _over_folds(a, b, metric, policy, told)
    common = sorted(a.keys() & b.keys(), key=_by_number)
    reason = _unpaired(a, b, common)
    if reason:
        return _welch(a, b, metric, policy, reason)
    pairs = [(a[key], b[key]) for key in common]
    if metric.per_image:
        return _of_values(CROSSED, values_of([*(x for x, _ in pairs), *(y for _, y in pairs)], metric, policy), told)
    return _on_seeds([[summary_value(run, metric) for run in runs] for runs in zip(*pairs, strict=True)], told)


def _why_none(group: Group) -> str:
    """How the runs of an arm without a score ended."""
    states = Counter(run.state for run in group.unscored)
    return ", ".join(f"{count} {state}" for state, count in states.items()) or "its runs did not measure it"


def _with_score(group: Group, metric: Metric, policy: EmptyPolicy) -> dict[tuple[str, str], Run]:
    """The runs of an arm whose score is a number."""
    known = {
        key: run
        for key, run in group.scored.items()
        if not metric.per_image or (run.images is not None and metric.name in run.images.cells)
    }
    return {key: run for key, run in known.items() if math.isfinite(score_of(run, metric, policy))}


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


def _of_values(method: str, values: Values, dropped: str, n_folds: int = 0) -> _Found:
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
    elif math.isnan(overall.p):
        notes.insert(0, "the differences do not vary at all: no test, for seeds that change nothing are no certainty")
    elif overall.p == 1.0 and overall.se == 0:
        notes.append("identical arms: every image has the same score in both")
    if len(values.units) < 50:
        units = counted(len(values.units), _unit(values))
        notes.append(f"only {units}: new ones may differ more than these tell")
    return _Found(
        method=method,
        overall=overall,
        test_set=test_set,
        candidate_K=candidate_KU.mean(axis=1),
        reference_K=reference_KU.mean(axis=1),
        n_seeds=K,
        n_folds=n_folds,
        n_images=values.n_images,
        crossed=crossed,
        values=values,
        dropped=dropped,
        notes=tuple(notes),
    )


def _unit(values: Values) -> str:
    return "image" if len(values.units) == values.n_images else "group"


def _few(K: int) -> str:
    if K < FEWEST_SEEDS:
        return f"{K} seed{'s' * (K != 1)}: no test with fewer than {FEWEST_SEEDS}"
    return f"{K} seeds: exploratory, 5 or more are needed to rely on it"


def _on_seeds(scores: Sequence[Sequence[float]], dropped: str) -> _Found:
    """Scores without values per image: paired seeds, which speak of this test set alone."""
    import numpy as np

    candidate_K, reference_K = (np.array(values) for values in scores)
    K = len(candidate_K)
    interval = one_sample(candidate_K - reference_K)
    notes = ["no value per image: the claim is of this test set alone"]
    if K < FEWEST_SEEDS:
        interval = dataclasses.replace(NO_TEST, mean=interval.mean)
    if K < 5:
        notes.insert(0, _few(K))
    return _Found(OVER_SEEDS, NO_TEST, interval, candidate_K, reference_K, K, dropped=dropped, notes=tuple(notes))


def _welch(
    a: Mapping[tuple[str, str], Run], b: Mapping[tuple[str, str], Run], metric: Metric, policy: EmptyPolicy, reason: str
) -> _Found:
    """Seeds that are no pairs."""
    import numpy as np

    candidate_K, reference_L = (np.array([score_of(run, metric, policy) for run in arm.values()]) for arm in (a, b))
    interval = welch(candidate_K, reference_L)
    fewest = min(len(candidate_K), len(reference_L))
    notes = [f"not paired, {reason}: the claim is of this test set alone"]
    if fewest < 5:
        notes.insert(0, _few(fewest))
    if fewest < FEWEST_SEEDS:
        interval = dataclasses.replace(NO_TEST, mean=interval.mean)
    return _Found(UNPAIRED, NO_TEST, interval, candidate_K, reference_L, fewest, notes=tuple(notes))


def score_of(run: Run, metric: Metric, policy: EmptyPolicy) -> float:
    """The score of one run on all of its own images."""
    if not metric.per_image:
        return summary_value(run, metric)
    if run.images is None or metric.name not in run.images.cells:
        return NAN

    def compute() -> float:
        values = values_of([run], metric, policy).values_KU
        return float(values.mean()) if values.size else NAN

    return run.once(metric.name, policy, compute)


def _over_folds(
    a: Mapping[tuple[str, str], Run],
    b: Mapping[tuple[str, str], Run],
    metric: Metric,
    policy: EmptyPolicy,
    dropped: str,
) -> _Found:
    """Cross-validation. Seeds that both arms have in every fold are rows of out-of-fold values; with fewer than three
    of them the folds' mean differences are tested, with the correction that their shared training images ask for."""
    import numpy as np

    common = a.keys() & b.keys()
    folds = sorted({fold for fold, _ in (*a, *b)}, key=float)
    of_fold = {fold: sorted({seed for f, seed in common if f == fold}, key=float) for fold in folds}
    reason = _unpaired(a, b, sorted(common, key=_by_number))
    if reason:
        return _nothing(f"folds cannot be compared unpaired: {reason}", dropped)
    whole = sorted(set.intersection(*(set(seeds) for seeds in of_fold.values())), key=float)
    if metric.per_image and len(whole) >= FEWEST_SEEDS:
        parts = {fold: [*(a[fold, seed] for seed in whole), *(b[fold, seed] for seed in whole)] for fold in folds}
        return _of_values(OUT_OF_FOLD, joined(parts, metric, policy), dropped, len(folds))
    empty = [fold for fold in folds if not of_fold[fold]]
    if empty or len(folds) < FEWEST_SEEDS:
        what = f"fold {', '.join(empty)} has no pair of runs" if empty else f"{len(folds)} folds are too few"
        return _nothing(what, dropped)
    candidate_F, reference_F = (
        np.array([np.mean([score_of(arm[fold, seed], metric, policy) for seed in of_fold[fold]]) for fold in folds])
        for arm in (a, b)
    )
    sizes = [np.array([a[fold, of_fold[fold][0]].number(column) for fold in folds]) for column in ("n_test", "n_train")]
    if any(np.isnan(size).any() for size in sizes):
        return _nothing("the runs do not say how many images their folds hold", dropped)
    interval = corrected_resampled(candidate_F - reference_F, *sizes)
    fewest, most = (extreme(len(seeds) for seeds in of_fold.values()) for extreme in (min, max))
    seeds = counted(most, "seed") if fewest == most else f"{fewest} to {most} seeds"
    note = f"{len(folds)} folds with {seeds} each: a weaker test than {FEWEST_SEEDS} or more seeds in every fold"
    n_images = int(sizes[0].sum())
    return _Found(
        OVER_FOLDS,
        interval,
        NO_TEST,
        candidate_F,
        reference_F,
        fewest,
        len(folds),
        n_images,
        dropped=dropped,
        notes=(note,),
    )


def _nothing(reason: str, dropped: str) -> _Found:
    import numpy as np

    return _Found(NONE, NO_TEST, NO_TEST, np.array([]), np.array([]), dropped=dropped, notes=(reason,))


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
