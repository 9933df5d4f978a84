"""What a design can find: from the variance components of a comparison, for as many seeds and images as one may ask.

Power is that of the two-way t test (`paired.two_way`) at 5 %, two-sided, for one comparison (Holm asks for more), by
the noncentral t with the estimated components taken for true: with few seeds they are rough, and so is all that stands
here. A difference is found when its test is significant with the right sign. Where there are no components (one seed,
one image), or nothing varies, nothing can be predicted: NaN, or None.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from segexp.compare.paired import ALPHA, NAN, ROUNDING, TwoWay, standard_error
from segexp.compare.result import Interval

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    from segexp.compare.paired import Numbers

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
