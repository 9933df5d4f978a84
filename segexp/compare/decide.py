"""What would decide a claim that is undetermined: so many seeds, images or data sets, should differences and variances
stay what they are, with 80 % power at the level that Holm's strictest step asks for."""

import math

from segexp.compare.paired import FEWEST_SEEDS, TwoWay
from segexp.compare.power import MOST, images_needed, noncentrality, seeds_needed
from segexp.compare.result import OVER_FOLDS, Comparison, Interval

THE_VERY_MARGIN = "nothing: the difference is the very margin"


def by_runs(comparison: Comparison, gap: float, alpha: float) -> str:
    """What decides on one data set. gap: how far the difference is from the margin, NaN where that is not known."""
    if comparison.method == OVER_FOLDS:
        return f"{FEWEST_SEEDS} seeds or more, the same in every fold"
    if comparison.n_seeds < FEWEST_SEEDS:
        return f"{FEWEST_SEEDS} seeds at the least, there are {comparison.n_seeds}"
    interval = comparison.deciding
    if not interval.se > 0 or math.isnan(gap):
        return "unknown"
    if gap == 0:
        return THE_VERY_MARGIN
    K, N = comparison.n_seeds, len(comparison.units)
    if not comparison.variance or interval is not comparison.overall:
        seeds = _more(interval, K, gap, alpha)
        return f"about {seeds} seeds, there are {K}" if seeds else f"more than {MOST} seeds"
    units = "images" if comparison.n_images == N else "groups of images"
    seeds = _number(seeds_needed(_design(comparison, K), gap, alpha))
    if seeds:
        # Power is a forecast: by it as many seeds as there are might have done.
        return f"about {max(seeds, K + 1)} seeds, there are {K}"
    for times in (1, 2, 4, 8):
        images = _number(images_needed(_design(comparison, times * K), gap, alpha))
        if images:
            return (
                f"no number of seeds decides it on these {N} {units}: about {images} {units} with {times * K} seeds do"
            )
    return f"more than {MOST} {units} with {8 * K} seeds: the difference is too close to the margin"


def by_datasets(interval: Interval, n_datasets: int, gap: float, alpha: float) -> str:
    """What decides over data sets, each of them one difference."""
    if not interval.se > 0 or math.isnan(gap):
        return "unknown"
    if gap == 0:
        return THE_VERY_MARGIN
    needed = _more(interval, n_datasets, gap, alpha)
    return f"about {needed} data sets, there are {n_datasets}" if needed else f"more than {MOST} data sets"


def _number(needed: float | None) -> int:
    """A number of seeds or images; 0 where none does, or none is known."""
    return int(needed) if needed is not None and math.isfinite(needed) else 0


def _design(comparison: Comparison, n_seeds: int) -> TwoWay:
    """The analysis that ``n_seeds`` would give if the components of variance are what they were found to be."""
    seed, image, residual = (comparison.variance[part] for part in ("seed", "image", "residual"))
    N = len(comparison.units)
    return TwoWay(comparison.overall, residual + N * seed, residual + n_seeds * image, residual, n_seeds, N)


def _more(interval: Interval, n: int, gap: float, alpha: float) -> int | None:
    """The fewest values, more than the ``n`` there are, that find ``gap`` where they alone vary."""
    import numpy as np

    sizes = np.arange(n + 1, MOST + 1)
    found = sizes[gap >= noncentrality(sizes - 1, alpha) * interval.se * np.sqrt(n / sizes)]
    return int(found[0]) if len(found) else None
