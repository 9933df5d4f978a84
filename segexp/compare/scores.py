"""Scores of runs, of seeds and of arms: what a ranking and a table of means show.

In cross-validation the score of a seed is that of its out-of-fold predictions over all folds, as in the comparisons.
Runs are named by (fold, seed), fold "" where there is none.
"""

import math
from collections.abc import Collection, Mapping

from segexp.compare.blocks import Ground, Group, RunKey, by_number
from segexp.compare.load import Run
from segexp.compare.result import Metric
from segexp.compare.values import joined, summary_value, values_of
from segexp.evaluation.scores import EmptyPolicy


def score_of(run: Run, metric: Metric, policy: EmptyPolicy) -> float:
    """The score of one run on all of its own images, NaN where it has none."""
    if not metric.per_image:
        return summary_value(run, metric)
    if run.images is None or metric.name not in run.images.cells:
        return math.nan

    def mean() -> float:
        values = values_of([run], metric, policy).values_KU
        return float(values.mean()) if values.size else math.nan

    return run.once(metric.name, policy, mean)


def scored_runs(group: Group, metric: Metric, policy: EmptyPolicy) -> dict[RunKey, Run]:
    """The runs of an arm whose score is a number, in order of fold and seed."""
    return {
        key: group.scored[key]
        for key in sorted(group.scored, key=by_number)
        if math.isfinite(score_of(group.scored[key], metric, policy))
    }


def folds_of(ground: Ground) -> tuple[str, ...]:
    """The folds that any arm of a block has, none without cross-validation."""
    found = {key for group in ground.groups.values() for key in group.scored}
    return tuple(dict.fromkeys(fold for fold, _ in sorted(found, key=by_number) if fold))


def seed_scores(
    runs: Mapping[RunKey, Run], folds: Collection[str], metric: Metric, policy: EmptyPolicy
) -> dict[str, float]:
    """Seed -> score. With folds: of the seeds that have all of them, joined where there are values of images, else the
    mean over the folds."""
    if not folds:
        return {seed: score_of(run, metric, policy) for (_, seed), run in runs.items()}
    return {
        seed: _over_folds([runs[RunKey(fold, seed)] for fold in folds], metric, policy) for seed in whole(runs, folds)
    }


def whole(keys: Collection[RunKey], folds: Collection[str]) -> list[str]:
    """The seeds that have all folds, in order."""
    seeds = sorted({seed for _, seed in keys}, key=int)
    return [seed for seed in seeds if all(RunKey(fold, seed) in keys for fold in folds)]


def _over_folds(runs: list[Run], metric: Metric, policy: EmptyPolicy) -> float:
    if metric.per_image:
        return float(joined({str(n): [run] for n, run in enumerate(runs)}, metric, policy).values_KU.mean())
    return sum(summary_value(run, metric) for run in runs) / len(runs)


def mean_score(runs: Mapping[RunKey, Run], folds: Collection[str], metric: Metric, policy: EmptyPolicy) -> float:
    """The mean over seeds. Where no seed has all folds, the mean of the folds' means, as the test over folds has it;
    NaN where one of them is missing, for means over different folds cannot be held against each other."""
    of_seeds = seed_scores(runs, folds, metric, policy)
    if of_seeds:
        return sum(of_seeds.values()) / len(of_seeds)
    of_folds = [[score_of(run, metric, policy) for (f, _), run in runs.items() if f == fold] for fold in folds]
    if not of_folds or not all(of_folds):
        return math.nan
    return sum(sum(scores) / len(scores) for scores in of_folds) / len(of_folds)
