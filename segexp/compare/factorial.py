"""Factorial tables: the means of two keys that vary together, and whether the gain of one depends on the other."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from segexp.compare import statistics as stats
from segexp.compare.blocks import Arms, BlockRuns, Levels, are_splits, by_number
from segexp.compare.result import FEWEST_SEEDS, Factorial, Interaction, Interval
from segexp.compare.scorer import Runs, Scorer, folds_of
from segexp.compare.sequential import adjusted
from segexp.records.foreign import PAIRING, UNPROVEN


def factorials_of(
    block: BlockRuns, arms: Arms, references: Sequence[Mapping[str, str]], scorer: Scorer
) -> tuple[Factorial, ...]:
    """A table for every two keys that vary in a block, at each level of the others; Holm over all interactions."""
    varying = [key for key in arms.by if len({arms.level(levels, key) for levels in block.arms}) > 1]
    tables = []
    for keys in itertools.combinations(varying, 2):
        others = [key for key in arms.by if key not in keys]
        for fixed in sorted({tuple(arms.level(levels, key) for key in others) for levels in block.arms}):
            table = _Table(block, arms, keys, dict(zip(others, fixed, strict=True)), scorer)
            if len(table.rows) > 1 and len(table.columns) > 1:
                tables.append(table.factorial(references))
    adjusted = iter(stats.holm(np.array([i.interval.p for table in tables for i in table.interactions])))
    with_p = [tuple(replace(i, p_holm=float(next(adjusted))) for i in table.interactions) for table in tables]
    return tuple(replace(table, interactions=found) for table, found in zip(tables, with_p, strict=True))


class _Table:
    """Two keys of a block at fixed levels of the others."""

    def __init__(
        self, block: BlockRuns, arms: Arms, keys: tuple[str, str], fixed: Mapping[str, str], scorer: Scorer
    ) -> None:
        self.block, self.arms, self.scorer = block, arms, scorer
        self.keys, self.fixed, self.folds = keys, fixed, folds_of(block)
        here = [levels for levels in block.arms if all(arms.level(levels, k) == v for k, v in fixed.items())]
        self.rows, self.columns = (
            tuple(v for v in arms.levels[key] if any(arms.level(levels, key) == v for levels in here))
            for key in self.keys
        )

    def factorial(self, references: Sequence[Mapping[str, str]]) -> Factorial:
        cells = [[self.runs(r, c) for c in self.columns] for r in self.rows]
        return Factorial(
            row_factor=self.keys[0],
            column_factor=", ".join([self.keys[1], *(f"{key}={level}" for key, level in self.fixed.items())]),
            rows=self.rows,
            columns=self.columns,
            means=tuple(tuple(self.scorer.mean(runs, self.folds) for runs in row) for row in cells),
            seeds=tuple(tuple(self.n_seeds(runs) for runs in row) for row in cells),
            interactions=self.interactions(references),
        )

    def n_seeds(self, runs: Runs) -> int:
        every = are_splits(self.folds)
        return len({key.seed for key in runs}) if every else len(self.scorer.of_seeds(runs, self.folds))

    def runs(self, row: str, column: str) -> Runs:
        """The runs of an arm that have a score."""
        chosen = {**self.fixed, self.keys[0]: row, self.keys[1]: column}
        levels: Levels = tuple(chosen[key] for key in self.arms.by)
        return self.scorer.scored(self.block.arms[levels]) if levels in self.block.arms else {}

    def interactions(self, references: Sequence[Mapping[str, str]]) -> tuple[Interaction, ...]:
        """One for each combination of other levels whose four arms share enough seeds, weights and batches."""
        if not self.scorer.metric.per_image or self.folds:
            return ()
        # The level of the reference, else the first.
        row_at, column_at = (
            next((r[key] for r in references if r.get(key) in levels), levels[0])
            for key, levels in zip(self.keys, (self.rows, self.columns), strict=True)
        )
        found = []
        for row, column in itertools.product(self.rows, self.columns):
            if row != row_at and column != column_at and (contrast := self.contrast(row, column, row_at, column_at)):
                found.append(Interaction(*self.keys, row, column, row_at, column_at, *contrast, math.nan))
        return tuple(found)

    def contrast(self, a: str, b: str, a0: str, b0: str) -> tuple[int, Interval] | None:
        """Number of seeds, and (a, b) - (a0, b) - (a, b0) + (a0, b0) by the two-way test; None where there are too few
        seeds or images."""
        of_arms = [self.runs(row, column) for column in (b, b0) for row in (a, a0)]
        seeds = [
            seed
            for seed in sorted(set.intersection(*(set(runs) for runs in of_arms)), key=by_number)
            if len({(s[seed].row.get("init_sha"), s[seed].row.get("order_sha")) for s in of_arms}) == 1
            and of_arms[0][seed].row.get(PAIRING) != UNPROVEN
        ]
        if len(seeds) < FEWEST_SEEDS:
            return None
        values = self.scorer.values([runs[seed] for runs in of_arms for seed in seeds])
        if not values.units:
            return None
        first, second, third, fourth = values.values_KU.reshape(4, len(seeds), -1)
        contrast = first - second - third + fourth
        # Differences of differences that agree up to rounding are 0.
        contrast[np.abs(contrast) <= stats.ROUNDING * np.abs(values.values_KU).max()] = 0.0
        interval = adjusted(stats.two_way(contrast).interval, *(runs.values() for runs in of_arms))
        return len(seeds), interval
