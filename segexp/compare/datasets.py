"""Over data sets: one difference of each, never pooled seeds or images."""

import math
from collections.abc import Sequence

from segexp.compare.across import can_rank, mean_ranks, over_datasets
from segexp.compare.result import Block, Metric, OverDatasets, Ranks

_Conditions = tuple[tuple[str, str], ...]
_Key = tuple[str, str, _Conditions]

_SPLIT = "split"
"""The condition that names one of several splits of a data set."""


def _conditions(block: Block) -> _Conditions:
    """What must be equal on all data sets; splits are each data set's own."""
    return tuple((key, value) for key, value in block.conditions.items() if key != _SPLIT)


def over_datasets_of(blocks: Sequence[Block]) -> tuple[OverDatasets, ...]:
    """Every comparison that was made on two or more data sets under the same conditions, with one difference of each:
    the mean over its splits. Holm over all of them."""
    import numpy as np

    of_splits: dict[_Key, dict[str, list[float]]] = {}
    for block in blocks:
        for comparison in block.comparisons:
            mean = comparison.deciding.mean
            if not math.isnan(mean):
                key = (comparison.candidate, comparison.reference, _conditions(block))
                of_splits.setdefault(key, {}).setdefault(block.dataset, []).append(mean)
    several = {key: of_data for key, of_data in of_splits.items() if len(of_data) > 1}
    if not several:
        return ()
    differences = {
        key: {name: sum(values) / len(values) for name, values in of_data.items()} for key, of_data in several.items()
    }
    tested = over_datasets([np.array(list(of_data.values())) for of_data in differences.values()])
    found: list[OverDatasets] = []
    for (key, of_data), (method, interval, _, p_holm) in zip(differences.items(), tested, strict=True):
        n = len(of_data)
        most = len({name for other, named in differences.items() if other[2] == key[2] for name in named})
        warnings = [f"{n} data sets: fewer than 6 say little of others"] if n < 6 else []
        warnings += [f"made on {n} of {most} data sets"] if n < most else []
        warnings += [
            f"{name} counts with the mean of its {len(values)} splits"
            for name, values in several[key].items()
            if len(values) > 1
        ]
        found.append(
            OverDatasets(
                candidate=key[0],
                reference=key[1],
                conditions=dict(key[2]),
                differences=of_data,
                method=method,
                interval=interval,
                p_holm=p_holm,
                warnings=tuple(warnings),
            )
        )
    return tuple(found)


def warnings_over_all(found: Sequence[OverDatasets], blocks: Sequence[Block]) -> list[str]:
    """The warnings of all, each once, with those it is about where it is not about all, and the data sets that are in
    none of them."""
    if not found:
        return []
    counted = {name for one in found for name in one.differences}
    left = list(dict.fromkeys(block.dataset for block in blocks if block.dataset not in counted))
    about: dict[str, list[str]] = {}
    for one in found:
        for warning in one.warnings:
            about.setdefault(warning, []).append(f"{one.candidate} against {one.reference}")
    told = [
        f"over data sets: {warning}" + ("" if len(these) == len(found) else f" ({', '.join(these)})")
        for warning, these in about.items()
    ]
    if left:
        told.append(f"over data sets: {', '.join(left)} left out: nothing there is compared elsewhere as well")
    return told


def ranks_of(blocks: Sequence[Block], metric: Metric) -> tuple[Ranks | None, list[str]]:
    """Mean ranks of the arms that all data sets have, where enough data sets make their differences testable, and which
    arms have none."""
    import numpy as np

    of_splits: dict[str, list[dict[str, float]]] = {}
    for block in blocks:
        means = {arm.arm: arm.mean for arm in block.ranking if not math.isnan(arm.mean)}
        of_splits.setdefault(block.dataset, []).append(means)
    if len(of_splits) < 2 or len({_conditions(block) for block in blocks}) > 1:
        return None, []
    # Over several splits of a data set an arm has a mean where it has one on each.
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
    told = [f"without a mean rank, for not all data sets have a score of them: {', '.join(lacking)}"] if lacking else []
    table = np.array([[of_data[arm] for of_data in scores.values()] for arm in arms])
    ranks, p_AA = mean_ranks(table, metric.higher_is_better)
    found = Ranks(dict(zip(arms, map(float, ranks), strict=True)), tuple(tuple(map(float, row)) for row in p_AA))
    return found, told
