"""Comparison across data sets: one difference of each data set, never pooled seeds or images."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from segexp.compare.result import ALPHA, Block, Interval, Metric, OverDatasets, Ranks
from segexp.compare.statistics import NO_TEST, finite, holm, one_sample, prediction

WILCOXON = "Wilcoxon"
T = "t over data sets"


def over_datasets(differences: Iterable[Sequence[float] | np.ndarray]) -> list[tuple[str, Interval, float]]:
    """(method, interval, p_holm) of every candidate from its differences to the reference, one per data set.

    differences: C candidates x D data sets; D may differ between candidates, the smallest selects the method.
    Wilcoxon's signed rank test where it can reach 5 % after Holm, 2^(1 - D) <= .05 / C (8 data sets for 6 candidates),
    else Student's t over the data sets. The interval always comes from the t, so it may disagree slightly with the p of
    Wilcoxon. D = 1: NaN, no test. Raises ValueError unless all differences are finite.
    """
    rows = [finite(row, 1) for row in differences]
    if not rows:
        raise ValueError("no candidate")
    ranked = can_rank(len(rows), min(len(row) for row in rows))
    intervals = [one_sample(row) for row in rows]
    if ranked:
        intervals = [replace(interval, p=wilcoxon_p(row)) for interval, row in zip(intervals, rows, strict=True)]
    adjusted = holm([interval.p for interval in intervals])
    return [(WILCOXON if ranked else T, i, float(h)) for i, h in zip(intervals, adjusted, strict=True)]


def can_rank(n_comparisons: int, n_datasets: int) -> bool:
    """Whether signed ranks over ``n_datasets``, whose smallest two-sided p is 2^(1 - n), can be significant in Holm's
    first step."""
    return 2.0 ** (1 - n_datasets) <= ALPHA / n_comparisons


def mean_ranks(scores_AD: ArrayLike, higher_is_better: bool) -> tuple[np.ndarray, np.ndarray]:
    """(ranks_A, p_AA) for a critical-difference diagram: mean ranks over data sets, 1 is best, ties averaged, and
    Wilcoxon's p of every pair of arms, Holm-adjusted over all pairs, 1 on the diagonal.

    With few data sets no p can be small: a diagram is informative only where ``can_rank(A (A - 1) / 2, D)``.
    """
    from scipy.stats import rankdata

    scores = finite(scores_AD, 2)
    ranks = rankdata(-scores if higher_is_better else scores, axis=0).mean(axis=1)
    a, b = np.triu_indices(len(scores), k=1)
    p_AA = np.ones((len(scores), len(scores)))
    p_AA[a, b] = p_AA[b, a] = holm([wilcoxon_p(scores[i] - scores[j]) for i, j in zip(a, b, strict=True)])
    return ranks, p_AA


def wilcoxon_p(differences_D: np.ndarray, alternative: Literal["two-sided", "greater"] = "two-sided") -> float:
    """p of the signed rank test against 0, two-sided or for greater differences. Data sets without a difference are
    left out. Exact; with ties for up to 13 data sets."""
    from scipy.stats import PermutationMethod, wilcoxon  # half a second to import, and few comparisons need it

    nonzero = differences_D[differences_D != 0]
    if len(nonzero) == 0:
        return 1.0
    ties = len(np.unique(abs(nonzero))) < len(nonzero)
    # All signs, none drawn; "auto" of some scipy versions ignores ties.
    method = PermutationMethod(n_resamples=2**13) if ties and len(nonzero) <= 13 else "auto"
    return float(wilcoxon(nonzero, alternative=alternative, method=method).pvalue)


_Conditions = tuple[tuple[str, str], ...]
_Key = tuple[int, str, str, _Conditions]
"""The number of the metric, candidate, reference and conditions."""

_SPLIT = "split"
"""The condition that names one of several splits of a data set (`blocks`)."""


def _conditions(block: Block) -> _Conditions:
    """The conditions that must be equal on all data sets; each data set has its own splits."""
    return tuple((key, value) for key, value in block.conditions.items() if key != _SPLIT)


ENOUGH_DATASETS = 6
"""From as many data sets on the result across them is the answer, and the headline reports no single data set."""


def across_alone(found: Iterable[OverDatasets]) -> bool:
    """Whether there are enough data sets for the headline to report the results across them alone. These are then a
    family of their own, and so are the verdicts on single data sets; else all are one family."""
    return max((len(one.differences) for one in found if one.interval.share), default=0) >= ENOUGH_DATASETS


def over_datasets_of(blocks_of: Sequence[Sequence[Block]]) -> list[tuple[OverDatasets, ...]]:
    """For the blocks of each metric, every comparison made on two or more data sets under the same conditions, with one
    difference of each: the mean over its splits. Holm over all of them."""
    of_splits: dict[_Key, dict[str, list[float]]] = {}
    for n, blocks in enumerate(blocks_of):
        for block, comparison in ((b, comparison) for b in blocks for comparison in b.comparisons):
            mean = comparison.deciding.mean
            if not math.isnan(mean):
                key = (n, comparison.candidate, comparison.reference, _conditions(block))
                other = (n, comparison.reference, comparison.candidate, _conditions(block))
                if other in of_splits:  # of all pairs, which the first data set orders
                    key, mean = other, -mean
                of_splits.setdefault(key, {}).setdefault(block.dataset, []).append(mean)
    several = {key: of_data for key, of_data in of_splits.items() if len(of_data) > 1}
    found: list[tuple[OverDatasets, ...]] = [() for _ in blocks_of]
    if not several:
        return found
    differences = {
        key: {name: sum(values) / len(values) for name, values in of_data.items()} for key, of_data in several.items()
    }
    tested = over_datasets([list(of_data.values()) for of_data in differences.values()])
    looked_at = any(block.sequential for blocks in blocks_of for block in blocks)
    if looked_at:  # each stopped because of its own results
        tested = [(T, replace(NO_TEST, mean=interval.mean, share=0.0), math.nan) for _, interval, _ in tested]
    for (key, of_data), (method, interval, p_holm) in zip(differences.items(), tested, strict=True):
        number, candidate, reference, conditions = key
        n = len(of_data)
        alike = (named for other, named in differences.items() if (other[0], other[3]) == (number, conditions))
        most = len({name for named in alike for name in named})
        few = f"{n} data sets: with fewer than {ENOUGH_DATASETS} the inference for other data sets is weak"
        warnings = [few] if n < ENOUGH_DATASETS else []
        warnings += ["no test, because the data sets were decided one by one, at looks of their own"] * looked_at
        warnings += [f"made on {n} of {most} data sets"] if n < most else []
        warnings += [
            f"{name} enters with the mean of its {len(values)} splits"
            for name, values in several[key].items()
            if len(values) > 1
        ]
        over = candidate, reference, dict(conditions), of_data, method, interval, p_holm, tuple(warnings)
        found[number] += (OverDatasets(*over, prediction(interval, n)),)
    return found


def warnings_over_all(found: Sequence[OverDatasets], blocks: Sequence[Block]) -> list[str]:
    """The warnings of all comparisons across data sets, each once, and the data sets that are in none of them."""
    if not found:
        return []
    about: dict[str, list[str]] = {}
    for one in found:
        for warning in one.warnings:
            about.setdefault(warning, []).append(f"{one.candidate} against {one.reference}")
    lines = [
        f"across data sets: {warning}" + ("" if len(these) == len(found) else f" ({', '.join(dict.fromkeys(these))})")
        for warning, these in about.items()
    ]
    used = {name for one in found for name in one.differences}
    left = list(dict.fromkeys(block.dataset for block in blocks if block.dataset not in used))
    if left:
        lines.append(f"across data sets: {', '.join(left)} left out, because no other data set has its comparisons")
    return lines


def ranks_of(blocks: Sequence[Block], metric: Metric) -> tuple[Ranks | None, list[str]]:
    """Mean ranks of the arms that all data sets have, None where too few data sets make them testable; and a warning
    about the arms without a rank."""
    of_splits: dict[str, list[dict[str, float]]] = {}
    for block in blocks:
        means = {arm.arm: arm.mean for arm in block.ranking if not math.isnan(arm.mean)}
        of_splits.setdefault(block.dataset, []).append(means)
    if any(block.sequential for block in blocks) or len(of_splits) < 2:
        return None, []
    if len({_conditions(block) for block in blocks}) > 1:
        return None, []
    # Over several splits of a data set an arm has a mean only if it has one on each.
    scores = {
        name: {
            arm: sum(means[arm] for means in splits) / len(splits)
            for arm in splits[0]
            if all(arm in means for means in splits)
        }
        for name, splits in of_splits.items()
    }
    arms = sorted(set.intersection(*(set(of_data) for of_data in scores.values())))
    if len(arms) < 2 or not can_rank(len(arms) * (len(arms) - 1) // 2, len(scores)):
        return None, []
    lacking = sorted(set().union(*scores.values()) - set(arms))
    warnings = [f"no mean rank, because not all data sets have a score: {', '.join(lacking)}"] if lacking else []
    table = np.array([[of_data[arm] for of_data in scores.values()] for arm in arms])
    ranks, p_AA = mean_ranks(table, metric.higher_is_better)
    found = Ranks(dict(zip(arms, map(float, ranks), strict=True)), tuple(tuple(map(float, row)) for row in p_AA))
    return found, warnings
