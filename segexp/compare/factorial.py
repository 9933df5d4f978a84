"""Two factors crossed: the mean of every combination, and whether what one gains depends on the other."""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence

from segexp.compare.blocks import Arms, BlockRuns, Levels, RunKey, by_number
from segexp.compare.result import Factorial, Interaction, Interval, Metric
from segexp.compare.statistics import FEWEST_SEEDS, ROUNDING, holm, two_way
from segexp.compare.values import folds_of, mean_score, scored_runs, seed_scores, values_of
from segexp.evaluation.scores import EmptyPolicy
from segexp.records.runs import Run


def factorials_of(
    ground: BlockRuns, arms: Arms, references: Sequence[Mapping[str, str]], metric: Metric, policy: EmptyPolicy
) -> tuple[Factorial, ...]:
    """A table for every two keys that vary in a block, at each level of the others."""
    present = {key: {levels[n] for levels in ground.groups} for n, key in enumerate(arms.by)}
    varying = [key for key in arms.by if len(present[key]) > 1]
    tables = []
    for row, column in itertools.combinations(varying, 2):
        others = [key for key in arms.by if key not in (row, column)]
        for fixed in sorted({tuple(arms.level(levels, key) for key in others) for levels in ground.groups}):
            table = _Table(ground, arms, row, column, dict(zip(others, fixed, strict=True)), metric, policy)
            if len(table.rows) > 1 and len(table.columns) > 1:
                tables.append(table.factorial(references))
    return _adjusted(tables)


def _adjusted(tables: Sequence[Factorial]) -> tuple[Factorial, ...]:
    """The tables with p adjusted over all interactions of the block."""
    import numpy as np

    adjusted = iter(holm(np.array([i.interval.p for table in tables for i in table.interactions])))
    return tuple(
        dataclasses.replace(
            table,
            interactions=tuple(dataclasses.replace(i, p_holm=float(next(adjusted))) for i in table.interactions),
        )
        for table in tables
    )


class _Table:
    """Two keys of a block at fixed levels of the others."""

    def __init__(
        self,
        ground: BlockRuns,
        arms: Arms,
        row: str,
        column: str,
        fixed: Mapping[str, str],
        metric: Metric,
        policy: EmptyPolicy,
    ) -> None:
        self.ground, self.arms, self.metric, self.policy = ground, arms, metric, policy
        self.keys, self.fixed, self.folds = (row, column), fixed, folds_of(ground)
        here = [levels for levels in ground.groups if all(arms.level(levels, k) == v for k, v in fixed.items())]
        self.rows = tuple(v for v in arms.levels[row] if any(arms.level(levels, row) == v for levels in here))
        self.columns = tuple(v for v in arms.levels[column] if any(arms.level(levels, column) == v for levels in here))

    def levels(self, row: str, column: str) -> Levels:
        chosen = {**self.fixed, self.keys[0]: row, self.keys[1]: column}
        return tuple(chosen[key] for key in self.arms.by)

    def factorial(self, references: Sequence[Mapping[str, str]]) -> Factorial:
        cells = [[self.runs(r, c) for c in self.columns] for r in self.rows]
        of_scores = self.folds, self.metric, self.policy
        row_at, column_at = (self.reference(key, references) for key in self.keys)
        return Factorial(
            row_factor=self.keys[0],
            column_factor=", ".join([self.keys[1], *(f"{key}={level}" for key, level in self.fixed.items())]),
            rows=self.rows,
            columns=self.columns,
            means=tuple(tuple(mean_score(runs, *of_scores) for runs in row) for row in cells),
            seeds=tuple(tuple(len(seed_scores(runs, *of_scores)) for runs in row) for row in cells),
            interactions=self.interactions(row_at, column_at),
        )

    def runs(self, row: str, column: str) -> dict[RunKey, Run]:
        """The runs of an arm that have a score."""
        group = self.ground.groups.get(self.levels(row, column))
        return scored_runs(group, self.metric, self.policy) if group else {}

    def reference(self, key: str, references: Sequence[Mapping[str, str]]) -> str:
        """The level that the others are held against: that of the reference, else the first of the alphabet."""
        levels = self.rows if key == self.keys[0] else self.columns
        chosen = [reference[key] for reference in references if reference.get(key) in levels]
        return chosen[0] if chosen else levels[0]

    def interactions(self, row_at: str, column_at: str) -> tuple[Interaction, ...]:
        """One for each combination of other levels whose four arms share enough seeds, weights and batches."""
        found = []
        for row, column in itertools.product(self.rows, self.columns):
            if row == row_at or column == column_at:
                continue
            contrast = self.contrast((row, column), (row_at, column_at))
            if contrast is not None:
                n_seeds, interval = contrast
                found.append(Interaction(*self.keys, row, column, row_at, column_at, n_seeds, interval, math.nan))
        return tuple(found)

    def contrast(self, at: tuple[str, str], start: tuple[str, str]) -> tuple[int, Interval] | None:
        """(a, b) - (a0, b) - (a, b0) + (a0, b0), by the procedure of the comparisons; None where it cannot be had."""
        import numpy as np

        four = [(at[0], at[1]), (start[0], at[1]), (at[0], start[1]), (start[0], start[1])]
        of_arms = [self.runs(*pair) for pair in four]
        if not self.metric.per_image or self.folds:
            return None
        seeds = [
            seed
            for seed in sorted(set.intersection(*(set(runs) for runs in of_arms)), key=by_number)
            if len({(s[seed].row.get("init_sha"), s[seed].row.get("order_sha")) for s in of_arms}) == 1
        ]
        if len(seeds) < FEWEST_SEEDS:
            return None
        values = values_of([runs[seed] for runs in of_arms for seed in seeds], self.metric, self.policy)
        if not values.units:
            return None
        a, b, c, d = values.values_KU.reshape(4, len(seeds), -1)
        contrast = a - b - c + d
        # Differences of differences that agree but for rounding are none.
        contrast[np.abs(contrast) <= ROUNDING * np.abs(values.values_KU).max()] = 0.0
        return len(seeds), two_way(contrast).interval
