"""Over data sets: one difference of each, never pooled seeds or images."""

import math
from collections.abc import Sequence

from segexp.compare.across import can_rank, mean_ranks, over_datasets
from segexp.compare.result import Block, Metric, OverDatasets, Ranks

_Key = tuple[str, str, tuple[tuple[str, str], ...]]


def over_datasets_of(blocks: Sequence[Block]) -> tuple[OverDatasets, ...]:
    """Every comparison that was made on two or more data sets under the same conditions; Holm over all of them that
    share their conditions."""
    import numpy as np

    differences: dict[_Key, dict[str, float]] = {}
    for block in blocks:
        for comparison in block.comparisons:
            mean = comparison.deciding.mean
            if not math.isnan(mean):
                key = (comparison.candidate, comparison.reference, tuple(block.conditions.items()))
                differences.setdefault(key, {})[block.dataset] = mean
    families: dict[tuple[tuple[str, str], ...], list[_Key]] = {}
    for key, values in differences.items():
        if len(values) > 1:
            families.setdefault(key[2], []).append(key)
    found: list[OverDatasets] = []
    for conditions, keys in families.items():
        tested = over_datasets([np.array(list(differences[key].values())) for key in keys])
        most = len({name for key in keys for name in differences[key]})
        for key, (method, interval, _, p_holm) in zip(keys, tested, strict=True):
            n = len(differences[key])
            warnings = [f"{n} data sets: fewer than 6 say little of others"] if n < 6 else []
            warnings += [f"made on {n} of {most} data sets"] if n < most else []
            found.append(
                OverDatasets(
                    candidate=key[0],
                    reference=key[1],
                    conditions=dict(conditions),
                    differences=differences[key],
                    method=method,
                    interval=interval,
                    p_holm=p_holm,
                    warnings=tuple(warnings),
                )
            )
    return tuple(found)


def warnings_over_all(found: Sequence[OverDatasets]) -> list[str]:
    """The warnings of all, each once, with those it is about where it is not about all."""
    about: dict[str, list[str]] = {}
    for one in found:
        for warning in one.warnings:
            about.setdefault(warning, []).append(f"{one.candidate} against {one.reference}")
    return [
        f"over data sets: {warning}" + ("" if len(these) == len(found) else f" ({', '.join(these)})")
        for warning, these in about.items()
    ]


def ranks_of(blocks: Sequence[Block], metric: Metric) -> tuple[Ranks | None, list[str]]:
    """Mean ranks of the arms that all data sets have, where enough data sets make their differences testable, and which
    arms have none."""
    import numpy as np

    scores: dict[str, dict[str, float]] = {}
    for block in blocks:
        scores[block.dataset] = {arm.arm: arm.mean for arm in block.ranking if not math.isnan(arm.mean)}
    if len(scores) < max(len(blocks), 2) or len({tuple(block.conditions.items()) for block in blocks}) > 1:
        return None, []
    arms = sorted(set.intersection(*(set(of_data) for of_data in scores.values())))
    if len(arms) < 2 or not can_rank(len(arms) * (len(arms) - 1) // 2, len(scores)):
        return None, []
    lacking = sorted(set().union(*scores.values()) - set(arms))
    told = [f"without a mean rank, for not all data sets have a score of them: {', '.join(lacking)}"] if lacking else []
    table = np.array([[of_data[arm] for of_data in scores.values()] for arm in arms])
    ranks, p_AA = mean_ranks(table, metric.higher_is_better)
    found = Ranks(dict(zip(arms, map(float, ranks), strict=True)), tuple(tuple(map(float, row)) for row in p_AA))
    return found, told
