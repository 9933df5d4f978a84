"""Over data sets: one difference of each, never pooled seeds or images."""

import math
from collections.abc import Mapping, Sequence

from segexp.compare.across import can_rank, mean_ranks, over_datasets
from segexp.compare.pairs import deciding
from segexp.compare.result import Block, Metric, OverDatasets, Ranks

_Key = tuple[str, str, tuple[tuple[str, str], ...]]


def over_datasets_of(blocks: Sequence[Block]) -> tuple[OverDatasets, ...]:
    """Every comparison that was made on two or more data sets under the same conditions."""
    import numpy as np

    differences: dict[_Key, dict[str, float]] = {}
    for block in blocks:
        for comparison in block.comparisons:
            mean = deciding(comparison).mean
            if not math.isnan(mean):
                key = (comparison.candidate, comparison.reference, _of_training(block))
                differences.setdefault(key, {}).setdefault(block.dataset_sha or block.dataset, mean)
    names = {block.dataset_sha or block.dataset: block.dataset for block in blocks}
    found: list[OverDatasets] = []
    families: dict[tuple[str, ...], list[_Key]] = {}
    for key, values in differences.items():
        if len(values) > 1:
            families.setdefault(tuple(sorted(values)), []).append(key)
    for shas, keys in families.items():
        tested = over_datasets(np.array([[differences[key][sha] for sha in shas] for key in keys]))
        for key, (method, interval, _, p_holm) in zip(keys, tested, strict=True):
            few = (f"{len(shas)} data sets: fewer than 6 say little of others",) if len(shas) < 6 else ()
            found.append(
                OverDatasets(
                    candidate=key[0],
                    reference=key[1],
                    conditions=dict(key[2]),
                    differences=_named({sha: differences[key][sha] for sha in shas}, names),
                    method=method,
                    interval=interval,
                    p_holm=p_holm,
                    warnings=few,
                )
            )
    return tuple(found)


def _of_training(block: Block) -> tuple[tuple[str, str], ...]:
    """The conditions that are not of the data set itself."""
    return tuple((key, value) for key, value in block.conditions.items() if not key.startswith("dataset."))


def _named(values: Mapping[str, float], names: Mapping[str, str]) -> dict[str, float]:
    """By the names of data sets; with their hash where two have the same."""
    shown = [names[sha] for sha in values]
    return {
        names[sha] if shown.count(names[sha]) == 1 else f"{names[sha]} {sha[:8]}": value
        for sha, value in values.items()
    }


def ranks_of(blocks: Sequence[Block], metric: Metric) -> Ranks | None:
    """Mean ranks of the arms that all data sets have, where enough data sets make their differences testable."""
    import numpy as np

    scores: dict[str, dict[str, float]] = {}
    for block in blocks:
        for arm in block.ranking:
            if not math.isnan(arm.mean):
                scores.setdefault(block.dataset_sha or block.dataset, {}).setdefault(arm.arm, arm.mean)
    if len(scores) < 2 or len({_of_training(block) for block in blocks}) > 1:
        return None
    arms = sorted(set.intersection(*(set(of_data) for of_data in scores.values())))
    if len(arms) < 2 or not can_rank(len(arms) * (len(arms) - 1) // 2, len(scores)):
        return None
    ranks, p_AA = mean_ranks(
        np.array([[of_data[a] for of_data in scores.values()] for a in arms]), metric.higher_is_better
    )
    return Ranks(dict(zip(arms, map(float, ranks), strict=True)), tuple(tuple(map(float, row)) for row in p_AA))
