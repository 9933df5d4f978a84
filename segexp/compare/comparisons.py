"""A candidate against its reference: the result of its procedure, what stands beside it, and the verdicts of all."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from segexp.compare import statistics as stats
from segexp.compare.blocks import Arms, BlockRuns, Levels
from segexp.compare.procedures import TestResult, tested
from segexp.compare.result import FEWEST_SEEDS, Comparison, Each, Influence, Method, Metric, Verdict
from segexp.compare.scorer import Scorer
from segexp.compare.sequential import adjusted, together
from segexp.records.runs import Run


def compared(pair: tuple[Levels, Levels], block: BlockRuns, arms: Arms, scorer: Scorer) -> Comparison:
    """One comparison. p_holm and verdict are added when all comparisons of the call are known (`with_holm`)."""
    candidate, reference = (block.arms[levels] for levels in pair)
    a, b = together(candidate.scored, reference.scored)
    runs = [a.values(), b.values()]
    found = tested(replace(candidate, scored=a), replace(reference, scored=b), arms, scorer)
    one = _at_look(_comparison(found, arms.label(pair[0]), arms.label(pair[1]), scorer), runs)
    if found.over_folds is None or found.over_folds.method == Method.NONE:
        return one
    over_folds = _comparison(found.over_folds, one.candidate, one.reference, scorer)
    return replace(one, new_training_sets=_at_look(over_folds, runs))


def _at_look(one: Comparison, runs: Sequence[Collection[Run]]) -> Comparison:
    """The comparison with the intervals of its look, where its study is sequential; no interval of the seeds won and no
    detectable difference, which are those of a single look at 5 %."""
    influence = tuple(replace(of, interval=adjusted(of.interval, *runs)) for of in one.influence)
    overall, test_set = adjusted(one.overall, *runs), adjusted(one.test_set, *runs)
    if overall.share < 1:
        one = replace(one, wins_low=stats.NAN, wins_high=stats.NAN, minimum_detectable=stats.NAN)
    return replace(one, overall=overall, test_set=test_set, influence=influence)


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
        **_sample(found, scorer.each),
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
        each=scorer.each,
    )


def with_holm(
    comparisons: Sequence[Comparison],
    metrics: Sequence[Metric],
    block_of: Sequence[object],
    across: Sequence[float] = (),
) -> list[Comparison]:
    """Comparisons with p adjusted over all of them (what the headline may report) and over those of a data set,
    and verdicts, also without the most influential image and seed, all others being as they are.

    One adjustment for all: the headline names what is significant anywhere, and with four data sets, each adjusted
    alone, it would be wrong in 19 % of the studies in which nothing differs.

    metrics, block_of: of each comparison its metric, and what it shares with the others of its data set. across: p of
    results over data sets of which the headline speaks as well.
    """
    intervals, ropes = [c.deciding for c in comparisons], [metric.rope for metric in metrics]
    decide = stats.family(intervals, ropes, [metric.higher_is_better for metric in metrics], across)
    p_C = np.array([one.p for one in intervals])
    of_block = np.full(len(comparisons), stats.NAN)
    for block in dict.fromkeys(block_of):
        members = np.flatnonzero([other == block for other in block_of])
        of_block[members] = stats.holm(p_C[members])
    decided = []
    for n, comparison in enumerate(comparisons):
        without = comparison.influence
        influence = tuple(Influence(one.what, one.name, one.interval, *decide(n, one.interval)) for one in without)
        p_holm, verdict = decide(n, comparison.deciding)
        found = replace(comparison, p_holm=p_holm, verdict=verdict, p_block=float(of_block[n]), influence=influence)
        same = found.verdict == Verdict.EQUIVALENT or found.verdict.negligible
        pivot = stats.pivot_shares(found.deciding, ropes[n], metrics[n].higher_is_better)
        decided.append(replace(found, condition=condition_of(found, ropes[n]) if same else "", pivot=pivot))
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


def _sample(found: TestResult, each: Each) -> dict[str, Any]:
    """What the test assumes about images and seeds that are not in the sample: skewness, and the most influential."""
    if found.values is None or found.analysis is None:
        return {}
    K, units = len(found.candidate_K), found.values.units
    D_KN = found.values.values_KU[:K] - found.values.values_KU[K:]
    influence = []
    for what, (index, interval) in stats.without_most_influential(D_KN).items():
        unit = what if what == "seed" else each if len(units) == found.n_images else "group"
        influence.append(Influence(unit, units[index] if what == "image" else found.seeds[index], interval))
    return {"skewness": stats.skewness(D_KN.mean(axis=0)), "influence": tuple(influence)}


def _wins(found: TestResult, metric: Metric) -> tuple[float, float, float]:
    if not found.method.paired or not len(found.candidate_K):
        return stats.NAN, stats.NAN, stats.NAN
    differences = found.candidate_K - found.reference_K
    share, low, high = stats.wins(differences if metric.higher_is_better else -differences)
    if found.method.resampled:  # splits share images: the interval, for independent values, would hold 60 % with 15
        low = high = stats.NAN
    return share * len(differences), low, high
