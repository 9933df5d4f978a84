"""Statistics of one comparison as functions of arrays: tests and intervals, verdicts, power and sample size.

Axes: K seeds (L for an unpaired reference), N images or groups, F folds, C candidates. A difference is candidate minus
reference in the metric's own unit, and so are intervals. Seeds x images is a factorial random design: differences vary
from seed to seed and from image to image, and inference for new seeds and new images must count both. Callers drop NaN
and infinite values before; here they raise ValueError.

An interval of NaN means that there is no test: a single value, or seeds that do not vary at all although not all values
are 0. Equal values for all seeds say that the seed changes nothing, not that the result is certain. Differences that
are all 0 have p = 1 and the interval (0, 0): the arms are identical.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import betaincinv, gammaincinv, nctdtrinc, stdtr, stdtrit

from segexp.compare.result import ALPHA, FEW_SEEDS, FEWEST_SEEDS, Comparison, Interval, Method, Verdict

Numbers = float | np.ndarray

NAN = float("nan")
NO_TEST = Interval(NAN, NAN, NAN, NAN, NAN, NAN, NAN, NAN)

ROUNDING = 1e-12
"""A standard error below this share of the largest value is a rounding error and counts as 0."""

POWER = 0.8
MOST = 10_000
"""The largest number of seeds or images that is searched."""
CERTAINTY = 0.8
"""Forecasts are ranges: variances between the limits of an interval with this confidence."""

FROM_SEEDS = 5
"""With fewer seeds a test uses K - 1 degrees of freedom. With 3, Satterthwaite's would raise false alarms to .08; with
4 to .065 (any of five candidates .10), and still find 2 points in fewer than half of the studies (.46)."""
MOST_DF = 3
"""Times K - 1. With more, any of five candidates has false alarms of .074, not .065 (5 seeds, 200 images)."""
FAILURE = 5
"""An image fails where its difference is this many robust standard deviations, and ropes, from the median."""


@dataclass(frozen=True)
class TwoWay:
    """The two-way random-effects analysis of differences_KN: interval and mean squares, NaN where K or N is 1.

    var_seed, var_image, var_residual: ANOVA components of variance, 0 or more; the last includes seed x image.
    """

    interval: Interval
    ms_seed: float
    ms_image: float
    ms_residual: float
    n_seeds: int
    n_images: int

    @property
    def var_seed(self) -> float:
        return max((self.ms_seed - self.ms_residual) / self.n_images, 0.0)

    @property
    def var_image(self) -> float:
        return max((self.ms_image - self.ms_residual) / self.n_seeds, 0.0)

    @property
    def var_residual(self) -> float:
        return self.ms_residual


def two_way(differences_KN: ArrayLike, from_seeds: int = FROM_SEEDS, most: float = MOST_DF) -> TwoWay:
    """The mean difference (or score of an arm) with its interval for new seeds and new images.

    Factorial random effects by ANOVA with the degrees of freedom of `standard_error` (Dorfman-Berbaum-Metz,
    Obuchowski-Rockette; Hillis 2014, doi:10.1002/sim.5926). Raises ValueError unless differences_KN is two-dimensional,
    finite and not empty.
    """
    D = finite(differences_KN, 2)
    K, N = D.shape
    mean = float(D.mean())
    if K == 1 or N == 1:
        return TwoWay(_no_test(mean), NAN, NAN, NAN, K, N)
    rows_K, columns_N = D.mean(axis=1) - mean, D.mean(axis=0) - mean
    residuals_KN = D - mean - rows_K[:, None] - columns_N
    ms_s = N * float(rows_K @ rows_K) / (K - 1)
    ms_i = K * float(columns_N @ columns_N) / (N - 1)
    ms_e = float((residuals_KN**2).sum()) / ((K - 1) * (N - 1))
    se, df = standard_error(ms_s, ms_i, ms_e, K, N, from_seeds, most)
    largest = float(abs(D).max())
    if largest and math.sqrt(ms_s / N) <= ROUNDING * largest:  # all seeds have one mean: no inference for new seeds
        interval = _no_test(mean, 0.0 if float(se) <= ROUNDING * largest else NAN)
    else:
        interval = _interval(mean, float(se), float(df), largest)
    return TwoWay(interval, ms_s, ms_i, ms_e, K, N)


def standard_error(
    ms_seed: Numbers,
    ms_image: Numbers,
    ms_residual: Numbers,
    n_seeds: Numbers,
    n_images: Numbers,
    from_seeds: int = FROM_SEEDS,
    most: float = MOST_DF,
) -> tuple[np.ndarray, np.ndarray]:
    """(se, df) of the mean of a factorial design from its mean squares, elementwise.

    df is Satterthwaite's, but at least K - 1: by chance it can fall below 1, which makes intervals 600 times too wide
    (where there are more seeds than images, at least N - 1 or 4, because seeds do not stand for images). It is at most
    ``most`` (K - 1), and K - 1 where the images add no variance or there are fewer than ``from_seeds`` seeds.
    """
    K, N = n_seeds, n_images
    total = ms_seed + np.maximum(np.subtract(ms_image, ms_residual), 0)
    parts = np.square(ms_seed) / (K - 1) + np.square(ms_image) / (N - 1) + np.square(ms_residual) / ((K - 1) * (N - 1))
    with np.errstate(invalid="ignore"):  # 0 / 0, where nothing varies
        satterthwaite = np.fmax(total**2 / parts, np.minimum(K, np.maximum(N, FEW_SEEDS)) - 1)
        satterthwaite = np.fmin(satterthwaite, most * (K - 1))
    df = np.where((from_seeds <= K) & np.greater(ms_image, ms_residual), satterthwaite, K - 1)
    return np.sqrt(total / (K * N)), df


def one_sample(values_K: ArrayLike) -> Interval:
    """Student's t over the means of seeds (their differences, if paired). The inference is for new seeds on these
    images, so it also suits scores without a value per image."""
    values = finite(values_K, 1)
    n = len(values)
    mean = float(values.mean())
    if n == 1:
        return _no_test(mean)
    return _interval(mean, float(values.std(ddof=1)) / math.sqrt(n), n - 1.0, float(abs(values).max()))


def welch(candidate_K: ArrayLike, reference_L: ArrayLike) -> Interval:
    """Welch's t between the scores of seeds that cannot be paired; inference for new seeds on these images."""
    a, b = finite(candidate_K, 1), finite(reference_L, 1)
    mean = float(a.mean() - b.mean())
    if len(a) == 1 or len(b) == 1:
        return _no_test(mean)
    var_a, var_b = float(a.var(ddof=1)) / len(a), float(b.var(ddof=1)) / len(b)
    total = var_a + var_b
    df = total**2 / (var_a**2 / (len(a) - 1) + var_b**2 / (len(b) - 1)) if total > 0 else NAN
    identical = bool((a == b[0]).all() and (b == b[0]).all())
    largest = 0.0 if identical else float(max(abs(a).max(), abs(b).max()))
    return _interval(mean, math.sqrt(total), df, largest)


def corrected_resampled(differences_F: ArrayLike, n_test_F: ArrayLike, n_train_F: ArrayLike) -> Interval:
    """The corrected resampled t of Nadeau and Bengio (2003, doi:10.1023/A:1024068626366) over the mean differences of
    folds or splits, each averaged over its seeds. They share training images, so their variance is multiplied by
    1/F + n_test / n_train (sizes in groups, summed over folds) instead of 1/F; df F - 1. Inference for new training
    sets of this size and new test images. See `split_floor` for what more splits cannot improve.
    """
    values, n_test, n_train = finite(differences_F, 1), finite(n_test_F, 1), finite(n_train_F, 1)
    n = len(values)
    if not n == len(n_test) == len(n_train) or n_test.min() <= 0 or n_train.min() <= 0:
        raise ValueError(f"{n} folds need as many positive sizes of test and training sets")
    mean = float(values.mean())
    if n == 1:
        return _no_test(mean)
    share = 1 / n + float(n_test.sum() / n_train.sum())
    return _interval(mean, math.sqrt(float(values.var(ddof=1)) * share), n - 1.0, float(abs(values).max()))


def split_floor(differences_F: ArrayLike, n_test_F: ArrayLike, n_train_F: ArrayLike) -> float:
    """The standard error of `corrected_resampled` with infinitely many splits of the same images."""
    values = finite(differences_F, 1)
    return (
        math.sqrt(float(values.var(ddof=1)) * float(np.sum(n_test_F) / np.sum(n_train_F))) if len(values) > 1 else NAN
    )


def split_components(parts: Sequence[ArrayLike]) -> dict[str, float]:
    """Components of variance of several splits, each with its own differences_SN (S seeds, N images; both may differ):
    split (the training set), seed, image, residual, each 0 or more, by the method of moments. With one seed per split
    the seed is part of "split", and the residual of "image"; these components are then NaN."""
    found = [two_way(part) for part in parts]
    means = np.array([one.interval.mean for one in found])
    several = [one for one in found if one.n_seeds > 1 and one.n_images > 1]
    if several:
        seed, image, residual = (float(np.mean([getattr(one, f"var_{part}") for one in several])) for part in PARTS[1:])
        inside = [seed / one.n_seeds + image / one.n_images + residual / (one.n_seeds * one.n_images) for one in found]
    else:
        spread = [finite(part, 2).var(ddof=1) for part in parts if np.size(part) > 1]
        seed, image, residual = NAN, float(np.mean(spread)) if spread else NAN, NAN
        inside = [image / one.n_images for one in found]
    between = float(means.var(ddof=1)) - float(np.mean(inside)) if len(means) > 1 else NAN
    return dict(zip(PARTS, (max(between, 0.0), seed, image, residual), strict=True))


PARTS = ("split", "seed", "image", "residual")


def holm(p_C: ArrayLike) -> np.ndarray:
    """Holm's adjusted p of every candidate (1979). NaN, a comparison without a test, stays NaN and is not counted."""
    adjusted = np.array(p_C, dtype=float)
    tested = np.flatnonzero(~np.isnan(adjusted))
    ascending = tested[np.argsort(adjusted[tested], kind="stable")]
    steps = adjusted[ascending] * np.arange(len(ascending), 0, -1)
    adjusted[ascending] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted


def one_sided(interval: Interval, value: float, sign: int) -> float:
    """p of the one-sided test that the difference is above ``value`` (sign 1) or below it (-1)."""
    return float(stdtr(interval.df, -sign * (interval.mean - value) / interval.se))


def equivalence(p: Callable[[float, int], float], margin: float) -> tuple[float, bool]:
    """(p, whether it supports equivalence) of "the difference is within +-margin".

    For it: two one-sided tests (Schuirmann 1987), that is, the 90 % interval lies inside. Against it: the two-sided
    test against the nearer end. The smaller p counts. p: that of a one-sided test, as `one_sided`.
    """
    inside, outside = max(p(-margin, 1), p(margin, -1)), 2 * min(p(margin, 1), p(-margin, -1))
    return min(inside, outside, 1.0), inside < outside


def within_rope(interval: Interval, rope: float) -> tuple[float, bool]:
    """`equivalence` of a difference and 0; (NaN, False) without a test or a rope. Identical arms need no test. At a
    look p is divided by its share."""
    if interval.se > 0 and rope > 0 and not math.isnan(interval.p):
        p, inside = equivalence(partial(one_sided, interval), rope)
        return (min(p / interval.share_within, 1.0) if interval.share_within else 1.0), inside
    return NAN, rope > 0 and interval.p == 1 and interval.se == 0


def pivot_shares(interval: Interval, rope: float, higher_is_better: bool) -> dict[str, float]:
    """Shares of the pivot distribution mean + se T(df) beyond and within +-rope; NaN without a test or a rope. Not a
    posterior: no prior and no model stand behind them. NaN at a look, because each is a one-sided p without its share.
    """
    known = rope > 0 and interval.se > 0 and interval.share == 1
    low, high = (one_sided(interval, sign * rope, -sign) if known else NAN for sign in (-1, 1))
    worse, better = (low, high) if higher_is_better else (high, low)
    return {"worse": worse, "within": max(1 - low - high, 0.0), "better": better}


def prediction(interval: Interval, n: int) -> tuple[float, float]:
    """Where a new value lies in 95 %, from the t interval over ``n`` values: mean +- t(n - 1) s sqrt(1 + 1/n)."""
    half = (interval.high - interval.mean) * math.sqrt(n + 1)
    return interval.mean - half, interval.mean + half


def verdict(interval: Interval, p_holm: float, negligible: bool, higher_is_better: bool) -> Verdict:
    """The verdict of a comparison: better or worse where p_holm < .05, with ", negligible" where it is; else equivalent
    where it is negligible, else inconclusive. negligible: by `within_rope`, adjusted."""
    if math.isnan(interval.p) or math.isnan(p_holm):
        return Verdict.NO_TEST
    if p_holm >= ALPHA:
        return Verdict.EQUIVALENT if negligible else Verdict.INCONCLUSIVE
    if (interval.mean > 0) == higher_is_better:
        return Verdict.BETTER_NEGLIGIBLE if negligible else Verdict.BETTER
    return Verdict.WORSE_NEGLIGIBLE if negligible else Verdict.WORSE


def family(
    intervals: Sequence[Interval], ropes: Sequence[float], higher: Sequence[bool], across: Sequence[float] = ()
) -> Callable[[int, Interval], tuple[float, Verdict]]:
    """(p_holm, verdict) of comparison n of a family with its own interval or another, all others being as they are.
    higher: whether higher is better; across: p of other results of the family. Equivalence is a family of its own."""
    p_F = np.array([*(one.p for one in intervals), *across])
    inside_C = np.array([within_rope(*one)[0] for one in zip(intervals, ropes, strict=True)])

    def adjusted(p_all: np.ndarray, n: int, p: float) -> float:
        return float(holm(np.where(np.arange(len(p_all)) == n, p, p_all))[n])

    def decide(n: int, interval: Interval) -> tuple[float, Verdict]:
        p_holm, (p_inside, inside) = adjusted(p_F, n, interval.p), within_rope(interval, ropes[n])
        negligible = inside and not adjusted(inside_C, n, p_inside) >= ALPHA
        return p_holm, verdict(interval, p_holm, negligible, higher[n])

    return decide


def without_most_influential(differences_KN: ArrayLike) -> dict[str, tuple[int, Interval]]:
    """Index of the image, and of the seed, whose mean lies farthest from the mean of all, and the interval without it.
    Only where enough others remain for a test. Without one of 5 seeds the test is that of 5, so that a verdict changes
    because of the seed, not of the procedure."""
    D = finite(differences_KN, 2)
    found = {}
    for name, axis, fewest in (("image", 0, 3), ("seed", 1, FEWEST_SEEDS + 1)):
        means = D.mean(axis=axis)
        if len(means) >= fewest and D.shape[axis] >= FEWEST_SEEDS - axis:
            index = int(np.argmax(abs(means - means.mean())))
            found[name] = index, two_way(np.delete(D, index, 1 - axis), FROM_SEEDS - axis).interval
    return found


def skewness(values: ArrayLike) -> float:
    """The sample skewness (adjusted Fisher-Pearson); NaN for fewer than 3 values and for those that do not vary."""
    v = finite(values, 1)
    n, away = len(v), v - v.mean()
    if n < 3 or v.std() <= ROUNDING * abs(v).max():
        return NAN
    return float(math.sqrt((n - 1.0) * n) / (n - 2.0) * (away**2 * away).mean() / (away**2).mean() ** 1.5)


def failure_seen(differences_N: ArrayLike, rope: float) -> bool:
    """Whether some image differs from most: its mean difference is more than `FAILURE` robust standard
    deviations (1.4826 times the median absolute deviation) and more than as many ropes from the median."""
    values = finite(differences_N, 1)
    away = abs(values - np.median(values))
    return bool(away.max() > FAILURE * max(1.4826 * float(np.median(away)), 0.0 if math.isnan(rope) else rope))


def wins(differences_K: ArrayLike) -> tuple[float, float, float]:
    """(share, low, high): the share of seeds with a difference above 0, ties as half a win, and its exact 95 % interval
    (Clopper-Pearson). low counts ties as lost and high as won, so it covers every way in which they could have fallen.
    Where lower is better, pass the differences with the opposite sign."""
    values = finite(differences_K, 1)
    n, won, tied = len(values), int((values > 0).sum()), int((values == 0).sum())
    low = float(betaincinv(won, n - won + 1, ALPHA / 2)) if won else 0.0
    high = float(betaincinv(won + tied + 1, n - won - tied, 1 - ALPHA / 2)) if won + tied < n else 1.0
    return (won + tied / 2) / n, low, high


def interquartile_mean(values: ArrayLike) -> float:
    """The mean of all values, of any shape, without the lowest and the highest quarter (rounded down)."""
    array = finite(values, None).ravel()
    cut = int(0.25 * array.size)
    return float(np.partition(array, (cut, array.size - cut - 1))[cut : array.size - cut].mean())


def effect_size(differences_K: ArrayLike) -> float:
    """Mean over standard deviation of the differences of seeds (Cohen's d_z); NaN where they do not vary."""
    values = finite(differences_K, 1)
    sd = float(values.std(ddof=1)) if len(values) > 1 else 0.0
    return float(values.mean()) / sd if sd > ROUNDING * float(abs(values).max()) else NAN


def seed_correlation(candidate_K: ArrayLike, reference_K: ArrayLike) -> float:
    """Pearson's correlation between the scores of the same seeds: how much pairing gains. NaN for fewer than 3 seeds
    and for scores that do not vary."""
    a, b = finite(candidate_K, 1), finite(reference_K, 1)
    if len(a) != len(b):
        raise ValueError(f"{len(a)} seeds of the candidate, {len(b)} of the reference")
    if len(a) < 3 or any(v.std() <= ROUNDING * abs(v).max() for v in (a, b)):
        return NAN
    return float(np.corrcoef(a, b)[0, 1])


def _interval(mean: float, se: float, df: float, largest: float) -> Interval:
    """Student's t. largest: the largest absolute value; it distinguishes a standard error of 0 from rounding."""
    if largest == 0:
        return Interval(0.0, 0.0, df, 1.0, 0.0, 0.0, 0.0, 0.0)
    if se <= ROUNDING * largest:
        return _no_test(mean, 0.0)
    half, half90 = (se * float(stdtrit(df, 1 - tail)) for tail in (ALPHA / 2, ALPHA))
    p = 2 * float(stdtr(df, -abs(mean) / se))
    return Interval(mean, se, df, p, mean - half, mean + half, mean - half90, mean + half90)


def _no_test(mean: float, se: float = NAN) -> Interval:
    return Interval(mean, se, NAN, NAN, NAN, NAN, NAN, NAN)


def finite(values: ArrayLike, n_axes: int | None) -> np.ndarray:
    """The values as an array. Raises ValueError for another number of axes, for none, and for NaN or infinite ones."""
    array = np.asarray(values, dtype=float)
    if n_axes is not None and array.ndim != n_axes:
        raise ValueError(f"an array of {n_axes} axes is needed, not of shape {array.shape}")
    if array.size == 0 or not np.isfinite(array).all():
        raise ValueError("values must be finite, and at least one")
    return array


# Power and sample size: what a design can find with 80 % power if differences and variances stay what they are.


def se_of(analysis: TwoWay, n_seeds: Numbers, n_images: Numbers) -> tuple[np.ndarray, np.ndarray]:
    """(se, df) expected of a design: se^2 = var_seed / K + var_image / N + var_residual / (K N).

    For the design of ``analysis`` these are its own, unless the seeds vary less than the residual; that is then taken
    as chance. n_seeds, n_images: 2 or more, arrays of one shape or single numbers.
    """
    residual = analysis.var_residual
    seed, image = residual + n_images * analysis.var_seed, residual + n_seeds * analysis.var_image
    return standard_error(seed, image, residual, n_seeds, n_images)


def minimum_detectable(analysis: TwoWay) -> float:
    """The difference found with 80 % power by as many seeds and images, in the unit of the differences."""
    if not _varies(analysis):
        return NAN
    se, df = se_of(analysis, analysis.n_seeds, analysis.n_images)
    return float(se * noncentrality(df))


def image_floor(analysis: TwoWay) -> float:
    """The difference found with 80 % power by infinitely many seeds on as many images; 0 where images add no
    variance."""
    if not _varies(analysis):
        return NAN
    return float(noncentrality(analysis.n_images - 1)) * math.sqrt(analysis.var_image / analysis.n_images)


def seeds_needed(analysis: TwoWay, target: float, alpha: float = ALPHA) -> int | None:
    """The fewest seeds, 2 or more, that find a difference of ``target`` with 80 % power on as many images.

    None where no number up to MOST does (below the image floor none can) or target is NaN. Raises ValueError unless
    target is above 0. alpha: the level of the test, below 5 % where it is one of several.
    """
    return _first(analysis, target, lambda sizes: se_of(analysis, sizes, analysis.n_images), alpha)


def images_needed(analysis: TwoWay, target: float, alpha: float = ALPHA) -> int | None:
    """The fewest images (groups) that find a difference of ``target`` with as many seeds; see `seeds_needed`."""
    return _first(analysis, target, lambda sizes: se_of(analysis, analysis.n_seeds, sizes), alpha)


def minimum_detectable_by_seeds(interval: Interval) -> float:
    """`minimum_detectable` where seeds alone are tested, paired or not."""
    return float(interval.se * noncentrality(interval.df))


def seeds_range(analysis: TwoWay, target: float, alpha: float = ALPHA) -> tuple[float, float]:
    """(low, high) of `seeds_needed`, infinite where no number does: the variances are estimates, and both limits of
    their interval with `CERTAINTY` are tried. NaN where nothing varies."""
    if not _varies(analysis):
        return NAN, NAN
    low, high = (seeds_needed(_with_variance(analysis, upper), target, alpha) for upper in (False, True))
    return low or math.inf, high or math.inf


def _with_variance(analysis: TwoWay, upper: bool) -> TwoWay:
    """The analysis with mean squares at a limit of their intervals."""
    K, N = analysis.n_seeds, analysis.n_images
    seed, image = analysis.ms_seed * _limit(K - 1, upper), analysis.ms_image * _limit(N - 1, upper)
    return replace(analysis, ms_seed=seed, ms_image=image)


def _limit(df: float, upper: bool) -> float:
    """By how much a variance with ``df`` degrees of freedom may be larger (upper) or smaller than its estimate."""
    tail = (1 - CERTAINTY) / 2
    return float(df / (2 * gammaincinv(df / 2, tail if upper else 1 - tail)))


def range_alone(
    interval: Interval, n: int, target: float, alpha: float = ALPHA, fewest: int = 2, floor_se: float = 0.0
) -> tuple[float, float]:
    """`seeds_range` where ``n`` seeds (of each arm, if unpaired), splits or data sets alone are tested: ``fewest`` or
    more of them. floor_se: the part of the standard error that more of them do not reduce."""
    _check(target)
    sizes = np.arange(fewest, MOST + 1)
    se = np.sqrt((interval.se**2 - floor_se**2) * n / sizes + floor_se**2)
    least = noncentrality(interval.df / (n - 1) * (sizes - 1), alpha) * se
    found = [sizes[target >= least * math.sqrt(_limit(interval.df, upper))] for upper in (False, True)]
    low, high = (float(enough[0]) if interval.se > 0 and len(enough) else math.inf for enough in found)
    return low, high


def noncentrality(df: Numbers, alpha: float = ALPHA) -> np.ndarray:
    """How many standard errors a difference must have to be found with 80 % power by a test at the level alpha."""
    freedom = np.asarray(df, dtype=float)
    return np.asarray(nctdtrinc(freedom, 1 - POWER, stdtrit(freedom, 1 - alpha / 2)))


def _check(target: float) -> None:
    if target <= 0:
        raise ValueError(f"the target must be a difference above 0, not {target}")


def _varies(analysis: TwoWay) -> bool:
    variance = analysis.var_seed + analysis.var_image + analysis.var_residual
    return variance > (ROUNDING * analysis.interval.mean) ** 2


def _first(
    analysis: TwoWay, target: float, design: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]], alpha: float
) -> int | None:
    """The first of 2 ... MOST whose design finds ``target``."""
    _check(target)
    if not _varies(analysis):
        return None
    sizes = np.arange(2, MOST + 1)
    se, df = design(sizes)
    # A larger df needs less: the exact df are only worth computing where the largest of them would do.
    possible = target >= se * noncentrality(df.max(), alpha)
    candidates = zip(sizes[possible], se[possible], df[possible], strict=True)
    return next((int(n) for n, s, d in candidates if target >= s * noncentrality(d, alpha)), None)


EXACTLY_THE_MARGIN = "nothing: the difference is exactly the margin"


def by_runs(comparison: Comparison, gap: float, alpha: float) -> str:
    """What would settle an undetermined claim on one data set, in words. gap: distance of the difference from the
    margin, NaN where unknown; alpha: the level of Holm's strictest step."""
    if comparison.method == Method.OVER_FOLDS:
        return f"{FEWEST_SEEDS} seeds or more, the same in every fold"
    if comparison.method == Method.OVER_SPLITS:
        J, floor_se = comparison.n_splits, comparison.split_floor_se
        splits = range_alone(comparison.overall, J, gap, alpha, J + 1, floor_se) if gap > 0 else (math.inf, math.inf)
        if splits[0] < math.inf:
            return f"{_about(splits)} splits, there are {J}"
        return "no number of splits of these images is enough: more images are needed"
    if comparison.n_seeds < FEWEST_SEEDS:
        return f"at least {FEWEST_SEEDS} seeds, there are {comparison.n_seeds}"
    interval = comparison.deciding
    if not interval.se > 0 or math.isnan(gap):
        return "unknown"
    if gap == 0:
        return EXACTLY_THE_MARGIN
    K, N = comparison.n_seeds, len(comparison.units)
    have = f"there {'is' if K == 1 else 'are'} {K}"
    if not comparison.variance or interval is not comparison.overall:
        seeds = range_alone(interval, K, gap, alpha, K + 1)
        return f"{_about(seeds)} seeds, {have}" if seeds[0] < math.inf else f"more than {MOST} seeds"
    units = f"{comparison.each}s" if comparison.n_images == N else f"groups of {comparison.each}s"
    low, high = seeds_range(design_of(comparison, K), gap, alpha)
    if low < math.inf:
        # Power is a forecast: it may say that as many seeds as there are should have sufficed.
        return f"{_about((max(low, K + 1), max(high, K + 1)))} seeds, {have}"
    for times in (1, 2, 4, 8):
        design = design_of(comparison, times * K)
        few, many = (images_needed(_with_variance(design, upper), gap, alpha) or math.inf for upper in (False, True))
        if few < math.inf:
            needed = f"{_about((few, many))} {units} with {times * K} seeds"
            return f"no number of seeds is enough with these {N} {units}: {needed}"
    return f"more than {MOST} {units} with {8 * K} seeds: the difference is too close to the margin"


def _about(needed: tuple[float, float]) -> str:
    """A range of numbers that is a forecast, in words."""
    low, high = needed
    if high == math.inf:
        return f"at least {low:.0f}"
    return f"about {low:.0f}" + (f" to {high:.0f}" if high > low else "")


def by_datasets(interval: Interval, n_datasets: int, gap: float, alpha: float) -> str:
    """As `by_runs`, for a claim across data sets, each of which gives one difference."""
    if not interval.se > 0 or math.isnan(gap):
        return "unknown"
    if gap == 0:
        return EXACTLY_THE_MARGIN
    needed = range_alone(interval, n_datasets, gap, alpha, n_datasets + 1)
    few = needed[0] < math.inf
    return f"{_about(needed)} data sets, there are {n_datasets}" if few else f"more than {MOST} data sets"


def design_of(comparison: Comparison, n_seeds: int) -> TwoWay:
    """The analysis of a design with ``n_seeds`` and the components of variance that were found."""
    seed, image, residual = (comparison.variance[part] for part in ("seed", "image", "residual"))
    N = len(comparison.units)
    return TwoWay(comparison.overall, residual + N * seed, residual + n_seeds * image, residual, n_seeds, N)
