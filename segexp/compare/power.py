"""What would decide a claim that is undetermined: so many seeds, images or data sets, should differences and variances
stay what they are, with 80 % power at the level that Holm's strictest step asks for."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from segexp.compare.kernel import ALPHA, FEWEST_SEEDS, NAN, ROUNDING, TwoWay, standard_error
from segexp.compare.result import OVER_FOLDS, Comparison, Interval

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    from segexp.compare.kernel import Numbers


POWER = 0.8
MOST = 10_000
"""No more seeds or images than these are thought of."""


def se_of(two_way: TwoWay, n_seeds: "Numbers", n_images: "Numbers") -> "tuple[np.ndarray, np.ndarray]":
    """(se, df) expected of a design: se^2 = var_seed / K + var_image / N + var_residual / (K N).

    For the design that ``two_way`` comes from these are its own, unless the seeds vary less than the residual, which is
    then taken for chance. n_seeds, n_images: 2 or more, arrays of one shape or single numbers.
    """
    residual = two_way.var_residual
    seed, image = residual + n_images * two_way.var_seed, residual + n_seeds * two_way.var_image
    return standard_error(seed, image, residual, n_seeds, n_images)


def minimum_detectable(two_way: TwoWay) -> float:
    """The difference that as many seeds and images find with 80 % power, in the unit of the differences."""
    if not _varies(two_way):
        return NAN
    se, df = se_of(two_way, two_way.n_seeds, two_way.n_images)
    return float(se * noncentrality(df))


def image_floor(two_way: TwoWay) -> float:
    """The difference that endless seeds find with 80 % power on as many images; 0 where the images add no variance."""
    if not _varies(two_way):
        return NAN
    return float(noncentrality(two_way.n_images - 1)) * math.sqrt(two_way.var_image / two_way.n_images)


def seeds_needed(two_way: TwoWay, target: float, alpha: float = ALPHA) -> int | None:
    """The fewest seeds, from 2, that find a difference of ``target`` with 80 % power on as many images.

    None where no number up to MOST does: below the image floor none can. ``target`` NaN: None; not above 0: ValueError.
    alpha: the level of the test, smaller than 5 % where it is one of several.
    """
    return _first(two_way, target, lambda sizes: se_of(two_way, sizes, two_way.n_images), alpha)


def images_needed(two_way: TwoWay, target: float, alpha: float = ALPHA) -> int | None:
    """The fewest images (groups), from 2, that find a difference of ``target`` with 80 % power by as many seeds. None,
    NaN and errors as `seeds_needed`; here it is the seeds that set a floor."""
    return _first(two_way, target, lambda sizes: se_of(two_way, two_way.n_seeds, sizes), alpha)


def minimum_detectable_by_seeds(interval: Interval) -> float:
    """The difference that as many seeds find with 80 % power where seeds alone are tested, paired or not."""
    return float(interval.se * noncentrality(interval.df))


def seeds_needed_alone(variances: Sequence[float], target: float) -> int | None:
    """The fewest seeds, from 2, that find a difference of ``target`` with 80 % power where seeds alone are tested.

    variances: of the differences of paired seeds, or of the scores of each arm, which then needs so many (Welch). None
    where no number up to MOST does, or nothing varies; target not above 0: ValueError.
    """
    import numpy as np

    _check(target)
    total = sum(variances)
    if not total > 0:
        return None
    sizes = np.arange(2, MOST + 1)
    freedom = total**2 / sum(variance**2 for variance in variances) * (sizes - 1)
    found = sizes[target >= np.sqrt(total / sizes) * noncentrality(freedom)]
    return int(found[0]) if len(found) else None


def noncentrality(df: "Numbers", alpha: float = ALPHA) -> "np.ndarray":
    """How many standard errors a difference must be to be found with 80 % power by a test at the level alpha."""
    import numpy as np
    from scipy.special import nctdtrinc, stdtrit

    freedom = np.asarray(df, dtype=float)
    return np.asarray(nctdtrinc(freedom, 1 - POWER, stdtrit(freedom, 1 - alpha / 2)))


def _check(target: float) -> None:
    if target <= 0:
        raise ValueError(f"a target is a difference above 0, not {target}")


def _varies(two_way: TwoWay) -> bool:
    variance = two_way.var_seed + two_way.var_image + two_way.var_residual
    return variance > (ROUNDING * two_way.interval.mean) ** 2


def _first(
    two_way: TwoWay, target: float, design: "Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]", alpha: float
) -> int | None:
    """The first of 2 ... MOST whose design finds ``target``."""
    import numpy as np

    def finds(se: float, df: float) -> bool:
        return bool(target >= se * noncentrality(df, alpha))

    _check(target)
    if not _varies(two_way):
        return None
    sizes = np.arange(2, MOST + 1)
    se, df = design(sizes)
    possible = target >= se * noncentrality(
        df.max(), alpha
    )  # more df ask for less; each has its own only where this holds
    found = (int(n) for n, s, d in zip(sizes[possible], se[possible], df[possible], strict=True) if finds(s, d))
    return next(found, None)


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
