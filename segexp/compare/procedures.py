"""The procedures that a comparison may get, each from the values of its pairs to intervals.

Axes: K seeds (L those of an unpaired reference), U units (images or groups), F folds. D[k, u] is candidate minus
reference on the same seed and the same unit. Values of 2 K runs are those of K candidates, then of their K references.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from segexp.compare.blocks import RunKey
from segexp.compare.kernel import FEWEST_SEEDS, NAN, TwoWay, corrected_resampled, one_sample, two_way, welch
from segexp.compare.load import Run
from segexp.compare.result import (
    CROSSED,
    NONE,
    OUT_OF_FOLD,
    OVER_FOLDS,
    OVER_SEEDS,
    OVER_SEEDS_OF_FOLDS,
    UNPAIRED,
    Interval,
    Metric,
)
from segexp.compare.scores import score_of, seed_scores
from segexp.compare.values import Values, joined, summary_value, values_of
from segexp.evaluation.scores import EmptyPolicy
from segexp.records.formatting import pluralize

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike

NO_TEST = Interval(NAN, NAN, NAN, NAN, NAN, NAN, NAN, NAN)

FEW_SEEDS = 5
"""Fewer seeds are exploratory."""

FEW_UNITS = 50
"""Fewer images (groups) are told."""

_NO_IMAGE = "no image has a score in all runs"
_NO_VALUES = "no value per image"
_NO_CERTAINTY = "no test, for seeds that change nothing are no certainty"

Runs = Mapping[RunKey, Run]


@dataclass(frozen=True)
class Found:
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


def nothing(reason: str, dropped: str) -> Found:
    """No procedure, and why."""
    import numpy as np

    return Found(NONE, NO_TEST, NO_TEST, np.array([]), np.array([]), dropped=dropped, notes=(reason,))


def of_images(a: Sequence[Run], b: Sequence[Run], metric: Metric, policy: EmptyPolicy, dropped: str) -> Found:
    """Runs that are pairs, on the images that all of them have: the two-way test."""
    return _of_values(CROSSED, values_of([*a, *b], metric, policy), dropped)


def out_of_fold(
    a: Runs, b: Runs, seeds: Sequence[str], folds: Sequence[str], metric: Metric, policy: EmptyPolicy, dropped: str
) -> Found:
    """Seeds that both arms have in every fold are rows of out-of-fold values: the two-way test."""
    parts = {fold: [arm[RunKey(fold, seed)] for arm in (a, b) for seed in seeds] for fold in folds}
    return _of_values(OUT_OF_FOLD, joined(parts, metric, policy), dropped, len(folds))


def _of_values(method: str, values: Values, dropped: str, n_folds: int = 0) -> Found:
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
    return Found(
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


def on_seeds(a: Sequence[Run], b: Sequence[Run], metric: Metric, dropped: str) -> Found:
    """Scores without values per image: paired seeds, which speak of this test set alone."""
    candidate_K, reference_K = ([summary_value(run, metric) for run in arm] for arm in (a, b))
    return _on_seeds(OVER_SEEDS, candidate_K, reference_K, _NO_VALUES, dropped)


def on_seeds_of_folds(
    a: Runs, b: Runs, seeds: Sequence[str], folds: Sequence[str], metric: Metric, policy: EmptyPolicy, dropped: str
) -> Found:
    """Scores without values per image in cross-validation: a seed counts with its mean over all folds."""
    of_arms = [seed_scores(arm, folds, metric, policy) for arm in (a, b)]
    candidate_K, reference_K = ([of_arm[seed] for seed in seeds] for of_arm in of_arms)
    return _on_seeds(OVER_SEEDS_OF_FOLDS, candidate_K, reference_K, _NO_VALUES, dropped, len(folds))


def _on_seeds(
    method: str, candidate: "ArrayLike", reference: "ArrayLike", why: str, dropped: str, n_folds: int = 0
) -> Found:
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
    return Found(method, NO_TEST, interval, candidate_K, reference_K, K, n_folds, dropped=dropped, notes=tuple(notes))


def unpaired_seeds(a: Runs, b: Runs, metric: Metric, policy: EmptyPolicy, reason: str, dropped: str) -> Found:
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
    return Found(
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
) -> Found:
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
    return Found(
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
