"""Statistics of one comparison and power: hand values, other libraries, symmetries, corner cases, simulations."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower

from segexp.compare.result import Interval
from segexp.compare.statistics import (
    CERTAINTY,
    EXACTLY_THE_MARGIN,
    MOST,
    TwoWay,
    by_datasets,
    corrected_resampled,
    effect_size,
    equivalence,
    failure_seen,
    holm,
    image_floor,
    images_needed,
    interquartile_mean,
    minimum_detectable,
    minimum_detectable_by_seeds,
    noncentrality,
    one_sample,
    one_sided,
    range_alone,
    se_of,
    seed_correlation,
    seeds_needed,
    seeds_range,
    skewness,
    split_components,
    split_floor,
    two_way,
    verdict,
    welch,
    wins,
    within_rope,
    without_most_influential,
)

ORACLE_KN = np.array([[1, 2, 3, 4], [2, 2, 4, 4], [0, 1, 2, 5], [1, 3, 3, 5], [2, 4, 3, 3]])
NAN = math.nan


def factorial(rng: np.random.Generator, K: int, N: int, seed: float, image: float, residual: float) -> np.ndarray:
    """Differences without a true one, from the standard deviations of their three sources."""
    return rng.normal(0, seed, (K, 1)) + rng.normal(0, image, N) + rng.normal(0, residual, (K, N))


def some_KN() -> np.ndarray:
    return factorial(np.random.default_rng(1), 6, 9, 0.5, 0.5, 1) + 0.3


def equivalent_C(intervals: list[Interval], ropes: list[float]) -> list[bool]:
    """Which differences are negligible after Holm's adjustment over all of them."""
    tests = [within_rope(one, rope) for one, rope in zip(intervals, ropes, strict=True)]
    return [holds and not p >= 0.05 for (_, holds), p in zip(tests, holm([p for p, _ in tests]), strict=True)]


def numbers(interval: Interval) -> np.ndarray:
    return np.array(dataclasses.astuple(interval)[:8])  # the shares of a look are not estimates


def mirrored(interval: Interval) -> np.ndarray:
    i = interval
    return np.array([-i.mean, i.se, i.df, i.p, -i.high, -i.low, -i.high90, -i.low90])


def test_the_two_way_test_by_hand():
    interval = two_way(ORACLE_KN).interval
    found = (interval.mean, interval.se, interval.df, interval.p, interval.low, interval.high)
    assert found == pytest.approx((2.7, 0.6245, 4, 0.0124, 0.966, 4.434), abs=5e-4)
    assert interval.se == pytest.approx(math.sqrt(7.8 / 20))
    assert interval.p == pytest.approx(0.0124, abs=5e-5)


def test_below_five_seeds_or_without_variance_of_images_the_degrees_of_freedom_are_those_of_the_seeds():
    interval = two_way(ORACLE_KN[:3]).interval
    assert (interval.se, interval.p) == pytest.approx((0.7638, 0.0820), abs=5e-5)
    assert interval.df == 2
    assert two_way(ORACLE_KN[:3] + 10 * np.arange(4)).interval.df == 2
    wide = np.hstack([ORACLE_KN, ORACLE_KN + 1, ORACLE_KN - 1])
    assert (two_way(wide[:4]).interval.df, two_way(wide[:4], from_seeds=3).interval.df > 3) == (3, True)
    # With variance of images alone Satterthwaite's would be those of the images.
    images = factorial(np.random.default_rng(0), 6, 200, 0, 5, 1)
    assert two_way(images).interval.df == 15
    assert two_way(images, most=math.inf).interval.df == pytest.approx(199, rel=0.1)
    # Satterthwaite's own may be less than those of the seeds, which are the least.
    assert two_way(ORACLE_KN).interval.df == 4
    D = some_KN()
    found = two_way(D - D.mean(axis=0) + np.arange(6)[:, None])  # every image the same mean
    assert found.ms_image == pytest.approx(0, abs=1e-25)
    assert found.interval.df == 5
    assert found.interval.se == pytest.approx(math.sqrt(found.ms_seed / 54))


def test_both_intervals_hold_the_same_test():
    interval = two_way(some_KN()).interval
    for low, high, level in ((interval.low, interval.high, 0.95), (interval.low90, interval.high90, 0.90)):
        assert (low, high) == pytest.approx(stats.t.interval(level, interval.df, interval.mean, interval.se))
    assert interval.p == pytest.approx(2 * stats.t.sf(abs(interval.mean) / interval.se, interval.df))


@pytest.mark.parametrize("D", [ORACLE_KN, some_KN()])
def test_mean_squares_are_those_of_an_analysis_of_variance(D: np.ndarray):
    import pandas as pd
    from statsmodels.formula.api import ols
    from statsmodels.stats.anova import anova_lm

    seeds, images = np.indices(D.shape)
    frame = pd.DataFrame({"d": D.ravel(), "seed": seeds.ravel(), "image": images.ravel()})
    table = anova_lm(ols("d ~ C(seed) + C(image)", frame).fit())
    expected = (table["sum_sq"] / table["df"]).tolist()
    found = two_way(D)
    assert (found.ms_seed, found.ms_image, found.ms_residual) == pytest.approx(expected)


def test_variance_components_are_found_again_and_are_never_negative():
    found = two_way(ORACLE_KN)
    assert (found.var_seed, found.var_image, found.var_residual) == pytest.approx((0, 1.4, 0.8))
    none = TwoWay(found.interval, 0.5, 0.5, 0.8, 5, 4)
    assert (none.var_seed, none.var_image) == (0, 0)
    large = two_way(factorial(np.random.default_rng(0), 400, 400, 0.5, 2, 1))
    assert (large.var_seed, large.var_image, large.var_residual) == pytest.approx((0.25, 4, 1), rel=0.15)


def test_the_order_of_seeds_and_images_does_not_matter():
    rng, D = np.random.default_rng(2), some_KN()
    for again in (D[rng.permutation(6)], D[:, rng.permutation(9)]):
        assert numbers(two_way(again).interval) == pytest.approx(numbers(two_way(D).interval))
        assert two_way(again).var_image == pytest.approx(two_way(D).var_image)


def test_candidate_and_reference_exchanged_mirror_the_interval():
    D, rng = some_KN(), np.random.default_rng(3)
    a, b = rng.normal(size=5), rng.normal(size=7)
    folds = ([20] * 6, [80] * 6)
    assert numbers(two_way(-D).interval) == pytest.approx(mirrored(two_way(D).interval))
    assert numbers(one_sample(-a)) == pytest.approx(mirrored(one_sample(a)))
    assert numbers(welch(b, a)) == pytest.approx(mirrored(welch(a, b)))
    of_folds, negative = (corrected_resampled(sign * D[:, 0], *folds) for sign in (1, -1))
    assert numbers(negative) == pytest.approx(mirrored(of_folds))
    share, low, high = wins(a)
    assert wins(-a) == pytest.approx((1 - share, 1 - high, 1 - low))


@pytest.mark.parametrize("unit", [100, 1e-9, 1e9])
def test_the_unit_scales_everything_but_p_and_degrees_of_freedom(unit: float):
    D = some_KN()
    factors = np.array([unit, unit, 1, 1, unit, unit, unit, unit])
    for test in (lambda D: two_way(D).interval, lambda D: one_sample(D[:, 0]), lambda D: welch(D[:, 0], D[:, 1])):
        assert numbers(test(unit * D)) == pytest.approx(factors * numbers(test(D)))
    assert two_way(unit * D).var_image == pytest.approx(unit**2 * two_way(D).var_image)
    assert effect_size(unit * D[:, 0]) == pytest.approx(effect_size(D[:, 0]))
    found, scaled = two_way(ORACLE_KN), two_way(unit * ORACLE_KN)
    assert minimum_detectable(scaled) == pytest.approx(unit * minimum_detectable(found))
    assert image_floor(scaled) == pytest.approx(unit * image_floor(found))
    assert seeds_needed(scaled, unit * 2.6) == seeds_needed(found, 2.6)


@pytest.mark.parametrize("shape", [(1, 5), (5, 1), (1, 1)])
def test_one_seed_or_one_image_is_no_test(shape: tuple[int, int]):
    found = two_way(np.full(shape, 0.25))
    one = [one_sample([0.25]), welch([1.0, 2.0], [1.25]), welch([0.75], [0.5, 0.5])]
    for interval in (found.interval, *one, corrected_resampled([0.25], [2], [8])):
        assert interval.mean == 0.25
        assert np.isnan(numbers(interval)[1:]).all()
    assert np.isnan([found.ms_seed, found.var_seed, found.var_image, found.var_residual, effect_size([0.5])]).all()


def test_identical_arms_do_not_differ():
    intervals = [two_way(np.zeros((5, 4))).interval, one_sample(np.zeros(5)), welch([0.7] * 3, [0.7] * 4)]
    intervals += [corrected_resampled(np.zeros(5), [2] * 5, [8] * 5)]
    for interval in intervals:
        assert (interval.mean, interval.se, interval.p, interval.low, interval.high) == (0, 0, 1, 0, 0)
        assert equivalent_C([interval], [0.01]) == [True]
        assert verdict(interval, 1, True, True) == "equivalent"


@pytest.mark.parametrize("difference", [0.1, 1e-8, -3])
def test_a_difference_without_any_spread_is_no_evidence(difference: float):
    candidate = 0.7 + np.full((5, 4), difference)  # with rounding, as scores have
    intervals = [two_way(candidate - 0.7).interval, one_sample(candidate[:, 0] - 0.7), welch(candidate[0], [0.7] * 3)]
    for interval in intervals:
        assert interval.mean == pytest.approx(difference)
        assert interval.se == 0
        assert math.isnan(interval.p)
        assert math.isnan(interval.low)
        assert verdict(interval, interval.p, False, True) == "no test"
        assert equivalent_C([interval], [0.01]) == [False]
    assert math.isnan(effect_size(candidate[:, 0] - 0.7))
    # Residuals may cancel in every seed and image.
    found = two_way([[difference, 0], [0, difference]])
    assert (found.ms_seed, found.ms_image, found.interval.se) == (0, 0, 0)
    assert math.isnan(found.interval.p)


@pytest.mark.parametrize("bad", [NAN, math.inf])
def test_a_missing_value_is_refused(bad: float):
    D = some_KN()
    D[2, 3] = bad
    row, fine = D[2], np.ones(9)
    calls: list[tuple[Callable[..., object], Any]] = [(two_way, [D]), (one_sample, [row]), (welch, [row, fine])]
    calls += [(welch, [fine, row]), (corrected_resampled, [row, fine, fine]), (wins, [row]), (interquartile_mean, [D])]
    calls += [(effect_size, [row]), (seed_correlation, [row, fine])]
    for function, arguments in calls:
        with pytest.raises(ValueError, match="finite"):
            function(*arguments)


@pytest.mark.parametrize(("function", "arguments", "named"), [
    (two_way, [np.ones(4)], "2 axes"),
    (two_way, [np.ones((0, 4))], "at least one"),
    (one_sample, [np.ones((2, 2))], "1 axes"),
    (corrected_resampled, [[1, 2, 3], [1, 1], [4, 4]], "3 folds"),
    (corrected_resampled, [[1, 2], [0, 1], [4, 4]], "positive"),
    (seed_correlation, [np.arange(4), np.arange(5)], "4 seeds"),
    (range_alone, [one_sample([1.0, 2.0]), 2, 0.0], "above 0"),
    (seeds_needed, [two_way(ORACLE_KN), 0], "above 0"),
    (images_needed, [two_way(ORACLE_KN), -1], "above 0"),
])  # fmt: skip
def test_other_arguments_are_refused(function: Callable[..., object], arguments: list[Any], named: str):
    with pytest.raises(ValueError, match=named):
        function(*arguments)


def test_seeds_alone_get_students_and_welchs_test():
    rng = np.random.default_rng(4)
    a, b = rng.normal(0.5, 1, 5), rng.normal(0, 2, 8)
    by_scipy = stats.ttest_1samp(a, 0), stats.ttest_ind(a, b, equal_var=False)
    for found, expected in zip((one_sample(a), welch(a, b)), by_scipy, strict=True):
        wide, narrow = expected.confidence_interval(0.95), expected.confidence_interval(0.90)
        assert (found.p, found.df, found.low, found.high, found.low90, found.high90) == pytest.approx(
            (expected.pvalue, expected.df, wide.low, wide.high, narrow.low, narrow.high)
        )


def test_folds_share_training_images_and_pay_for_it():
    found = corrected_resampled([1, 2, 3, 4, 5], [20] * 5, [80] * 5)
    assert (found.mean, found.se, found.df) == pytest.approx((3, math.sqrt(2.5 * (1 / 5 + 1 / 4)), 4))
    assert found.p == pytest.approx(2 * stats.t.sf(3 / found.se, 4))
    assert corrected_resampled([1, 2, 3], [1] * 3, [1] * 3).se == pytest.approx(math.sqrt(1 / 3 + 1))
    uneven = corrected_resampled([1, 2, 3], [30, 30, 40], [70, 70, 60])
    assert uneven.se == pytest.approx(math.sqrt(1 / 3 + 100 / 200))


def test_holm_by_hand_and_by_statsmodels():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.01, NAN, 0.04, 0.6]) == pytest.approx([0.03, NAN, 0.08, 0.6], nan_ok=True)
    assert holm([0.7, 0.8]) == pytest.approx([1, 1])
    assert np.isnan(holm([NAN, NAN])).all()
    assert holm([]).shape == (0,)
    rng = np.random.default_rng(0)
    for n in (1, 2, 7, 50):
        p = np.round(rng.uniform(size=n) ** 3, 2)  # with ties
        assert holm(p) == pytest.approx(multipletests(p, method="holm")[1], abs=1e-15)


@pytest.mark.parametrize(("mean", "half90", "p", "rope", "higher", "said"), [
    (2.0, 0.5, 0.001, 1.0, True, "better"),
    (2.0, 0.5, 0.001, 1.0, False, "worse"),
    (0.5, 0.3, 0.01, 1.0, True, "better, negligible"),
    (0.5, 0.51, 0.01, 1.0, True, "better"),  # reaches the margin
    (0.1, 0.3, 0.6, 1.0, True, "equivalent"),
    (0.1, 1.2, 0.6, 1.0, True, "inconclusive"),
    (2.0, 0.5, 0.05, 1.0, True, "inconclusive"),
    (0.1, 0.3, 0.6, NAN, True, "inconclusive"),
    (0.5, 0.3, 0.01, NAN, True, "better"),
    (0.5, 0.3, NAN, 1.0, True, "no test"),
])  # fmt: skip
def test_the_verdict(mean: float, half90: float, p: float, rope: float, higher: bool, said: str):
    interval = Interval(mean, half90 / stats.t.ppf(0.95, 4), 4, 0.01, NAN, NAN, mean - half90, mean + half90)
    (negligible,) = equivalent_C([interval], [rope])
    assert verdict(interval, p, negligible, higher) == said


def test_equivalence_is_adjusted_over_the_candidates():
    one = one_sample([0.001, -0.004, 0.003, 0.0, 0.002])
    rope = 0.0035
    p, inside = equivalence(lambda value, sign: one_sided(one, value, sign), rope)
    assert (inside, p < 0.05) == (True, True)
    assert p == pytest.approx(stats.t.sf((rope - abs(one.mean)) / one.se, 4))
    assert p > 0.01
    assert equivalent_C([one], [rope]) == [True]
    assert equivalent_C([one] * 5, [rope] * 5) == [False] * 5
    assert equivalent_C([one] * 5, [math.nan] * 5) == [False] * 5


def test_the_most_influential_image_and_seed_are_left_out():
    D = some_KN()
    D[:, 4] -= 30
    D[2] += 9
    found = without_most_influential(D)
    assert {what: index for what, (index, _) in found.items()} == {"image": 4, "seed": 2}
    assert numbers(found["image"][1]) == pytest.approx(numbers(two_way(np.delete(D, 4, axis=1)).interval))
    assert numbers(found["seed"][1]) == pytest.approx(numbers(two_way(np.delete(D, 2, axis=0)).interval))
    of_five = factorial(np.random.default_rng(0), 5, 30, 0.1, 1, 1)
    index, interval = without_most_influential(of_five)["seed"]
    assert numbers(interval) == pytest.approx(
        numbers(two_way(np.delete(of_five, index, axis=0), from_seeds=4).interval)
    )
    assert interval.df > 3
    assert set(without_most_influential(D[:3])) == {"image"}
    assert without_most_influential(D[:, :2]).keys() == {"seed"}
    assert skewness(D.mean(axis=0)) < -1
    assert failure_seen(D.mean(axis=0), 1.0)
    assert not failure_seen(D.mean(axis=0), 10.0)
    assert not failure_seen(np.delete(D, 4, axis=1).mean(axis=0), math.nan)


def test_what_would_decide_a_claim_across_data_sets():
    found = one_sample([0.01, 0.03, 0.02, 0.05])
    assert by_datasets(found, 4, 0.0, 0.05) == EXACTLY_THE_MARGIN
    assert by_datasets(found, 4, NAN, 0.05) == by_datasets(one_sample([0.02] * 4), 4, 0.02, 0.05) == "unknown"
    assert by_datasets(found, 4, 0.01, 0.05).endswith("data sets, there are 4")
    assert by_datasets(found, 4, 1.0, 0.05).startswith("about 5")


def test_skewness_is_that_of_scipy():
    values = np.random.default_rng(0).lognormal(size=7)
    assert skewness(values) == pytest.approx(stats.skew(values, bias=False))
    assert skewness([0, 0, 1]) == pytest.approx(math.sqrt(3))
    assert math.isnan(skewness(values[:2]))
    assert math.isnan(skewness([0.1] * 5))


@pytest.mark.slow
def test_components_of_variance_of_splits_are_found_again():
    rng = np.random.default_rng(0)
    sds = {"split": 2.0, "seed": 1.0, "image": 3.0, "residual": 1.5}

    def part(S: int) -> np.ndarray:
        return rng.normal(0, sds["split"]) + factorial(rng, S, 30, sds["seed"], sds["image"], sds["residual"])

    found = split_components([part(4) for _ in range(3000)])
    assert found == pytest.approx({name: sd**2 for name, sd in sds.items()}, rel=0.12)
    one_seed = split_components([part(1) for _ in range(3000)])
    assert one_seed["split"] == pytest.approx(sds["split"] ** 2 + sds["seed"] ** 2, rel=0.12)
    assert one_seed["image"] == pytest.approx(sds["image"] ** 2 + sds["residual"] ** 2, rel=0.12)
    assert math.isnan(one_seed["seed"])
    assert math.isnan(one_seed["residual"])


def test_more_splits_do_not_beat_the_floor():
    rng = np.random.default_rng(0)
    values, n_test, n_train = rng.normal(size=200), np.full(200, 8), np.full(200, 24)
    floor = split_floor(values, n_test, n_train)
    assert floor == pytest.approx(values.std(ddof=1) * math.sqrt(8 / 24))
    assert 1.0 < corrected_resampled(values, n_test, n_train).se / floor < 1.01


def test_seeds_needed_are_a_range_that_holds_the_true_number():
    rng, K, N, sds = np.random.default_rng(0), 5, 100, (0.01, 0.01, 0.03)
    truth = seeds_needed(design(K, N, *sds), 0.01)
    ranges = [seeds_range(two_way(factorial(rng, K, N, *sds)), 0.01) for _ in range(200)]
    assert truth is not None
    assert np.mean([low <= truth <= high for low, high in ranges]) > 0.75


def test_wins_and_their_exact_interval():
    assert wins([1, 2, 3, 4, 5]) == pytest.approx((1, 0.025 ** (1 / 5), 1))
    assert wins([-1, -2, -3]) == pytest.approx((0, 0, 1 - 0.025 ** (1 / 3)))
    exact = stats.binomtest(7, 10).proportion_ci(method="exact")
    assert wins([1] * 7 + [-1] * 3) == pytest.approx((0.7, exact.low, exact.high), abs=1e-9)
    # Ties are half a win and widen the interval.
    low = stats.binomtest(5, 10).proportion_ci(method="exact").low
    assert wins([1] * 5 + [0] * 2 + [-1] * 3) == pytest.approx((0.6, low, exact.high), abs=1e-9)
    assert wins([0, 0, 0]) == (0.5, 0, 1)


def test_what_describes():
    assert interquartile_mean([[0, 1, 2, 3], [4, 5, 60, 700]]) == pytest.approx(3.5)
    assert interquartile_mean([1, 2, 6]) == 3
    assert effect_size([1, 2, 3]) == 2
    assert effect_size([1, 3]) == pytest.approx(2**0.5)
    assert math.isnan(effect_size([0, 0, 0]))
    assert seed_correlation([1, 2, 3, 4], [2, 4, 6, 8]) == pytest.approx(1)
    assert seed_correlation([1, 2, 4], [3, 2, 2]) == pytest.approx(stats.pearsonr([1, 2, 4], [3, 2, 2])[0])
    assert math.isnan(seed_correlation([1, 2], [3, 1]))
    assert math.isnan(seed_correlation([1, 2, 3], [0.1, 0.1, 0.1]))


# Power and sample size
def design(K: int, N: int, seed: float, image: float, residual: float) -> TwoWay:
    """A comparison whose components of variance are exactly the squares of these standard deviations."""
    e = residual**2
    return TwoWay(one_sample([0.0, 0.0]), e + N * seed**2, e + K * image**2, e, K, N)


TYPICAL = design(5, 80, 0.01, 0.05, 0.08)


def test_the_same_design_has_the_same_standard_error():
    found = two_way(ORACLE_KN)
    assert se_of(found, 5, 4) == pytest.approx((found.interval.se, found.interval.df))
    # Seeds that vary less than the residual are taken for chance.
    calm = TwoWay(one_sample([0.0, 0.0]), 0.2, 0.5, 1.0, 5, 10)
    assert float(se_of(calm, 5, 10)[0]) == pytest.approx(math.sqrt(1.0 / 50))


@pytest.mark.parametrize(("K", "N"), [(2, 2), (3, 50), (20, 80), (7, 1000)])
def test_another_design_shares_the_components_of_variance(K: int, N: int):
    se, df = se_of(TYPICAL, K, N)
    assert float(se) == pytest.approx(math.sqrt(0.01**2 / K + 0.05**2 / N + 0.08**2 / (K * N)))
    assert float(df) == pytest.approx(K - 1) if K < 5 else float(df) > K - 1


@pytest.mark.parametrize("n", [3, 5, 10, 50])
def test_four_in_five_by_statsmodels_too(n: int):
    effect = float(noncentrality(n - 1)) / math.sqrt(n)
    assert TTestPower().power(effect, n, 0.05) == pytest.approx(0.8, abs=1e-4)


def test_the_noncentrality_is_there_for_all_degrees_of_freedom():
    wanted = noncentrality(np.concatenate([np.linspace(0.67, 400, 4000), [1e4, 1e6]]))
    assert (np.diff(wanted) < 0).all()
    assert wanted[-1] == pytest.approx(1.959964 + 0.841621, abs=1e-4)


def test_the_detectable_difference_shrinks_with_seeds_towards_the_floor():
    found = [minimum_detectable(design(K, 80, 0.01, 0.05, 0.08)) for K in (2, 3, 5, 10, 100, 10_000)]
    assert found == sorted(found, reverse=True)
    floor = image_floor(TYPICAL)
    assert floor == pytest.approx(float(noncentrality(79)) * 0.05 / math.sqrt(80))
    assert floor < found[-1] < 1.01 * floor


@pytest.mark.parametrize(("K", "N"), [(2, 2), (3, 3), (5, 20), (6, 80), (30, 300)])
def test_the_seeds_or_images_needed_for_what_a_design_detects_are_its_own(K: int, N: int):
    for needed, n, made in ((seeds_needed, K, (K, 80)), (images_needed, N, (5, N))):
        target = minimum_detectable(design(*made, 0.01, 0.05, 0.08))
        assert needed(TYPICAL, 1.0001 * target) == n
        assert (needed(TYPICAL, 0.9999 * target) or MOST) > n
        assert [needed(TYPICAL, large) for large in (1.0, 1e9)] == [2, 2]


def test_below_the_floor_no_number_is_enough():
    assert seeds_needed(TYPICAL, 0.99 * image_floor(TYPICAL)) is None
    seed_floor = float(noncentrality(4)) * 0.01 / math.sqrt(5)
    assert images_needed(TYPICAL, 0.99 * seed_floor) is None
    assert images_needed(TYPICAL, 1.2 * seed_floor) is not None
    # Without variance of images there is no floor, but a limit.
    found = design(5, 80, 0.01, 0, 0.08)
    assert image_floor(found) == 0
    assert (seeds_needed(found, 0.01) is None, seeds_needed(found, 1e-6)) == (False, None)


def needed_alone(sds: tuple[float, ...], target: float) -> int:
    """The number of seeds where the standard deviations are known: estimated from very many."""
    n, variances = 10**8, np.square(sds)
    df = variances.sum() ** 2 / (variances**2).sum() * (n - 1)
    low, high = range_alone(Interval(0, math.sqrt(variances.sum() / n), df, *[NAN] * 5), n, target)
    assert high - low <= 1
    return int(high)


@pytest.mark.parametrize("target", [0.3, 0.5, 1.0, 2.0])
def test_paired_seeds_alone_need_what_statsmodels_says(target: float):
    needed = needed_alone((1.0,), target)
    power = [TTestPower().power(target, n, 0.05) for n in (needed - 1, needed)]
    assert power[1] >= 0.8 > power[0]


@pytest.mark.parametrize(("sds", "target"), [((1.0, 1.0), 1.0), ((1.0, 0.2), 0.7)])
def test_unpaired_seeds_need_what_simulation_says(sds: tuple[float, float], target: float):
    needed = needed_alone(sds, target)
    rng = np.random.default_rng(0)
    a, b = (rng.normal(mean, sd, (20000, needed)) for mean, sd in zip((target, 0.0), sds, strict=True))
    found = stats.ttest_ind(a, b, axis=1, equal_var=False)
    share = ((found.pvalue < 0.05) & (found.statistic > 0)).mean()
    assert 0.79 < share < 0.84


@pytest.mark.slow
def test_what_seeds_alone_detect_lies_in_the_range_that_they_need():
    found = one_sample([0.3, -0.1, 0.2, 0.4, 0.05])
    target = minimum_detectable_by_seeds(found)
    low, high = range_alone(found, 5, target)
    assert 2 <= low < 5 < high
    assert range_alone(found, 5, target, fewest=6)[0] == 6
    assert range_alone(found, 5, 1e6) == (2, 2)
    # With as many seeds as there are, the standard error is what it is, however much of it more seeds would leave.
    least = float(noncentrality(4)) * found.se * math.sqrt(4 / stats.chi2.ppf((1 - CERTAINTY) / 2, 4))
    assert {range_alone(found, 5, 1.001 * least, floor_se=share * found.se)[1] for share in (0, 0.5)} == {5}
    assert range_alone(one_sample([0.5] * 5), 5, 1.0) == (math.inf, math.inf)
    assert range_alone(found, 5, 1e-6) == (math.inf, math.inf)
    # Where the standard error has a floor, no number finds less.
    assert range_alone(found, 5, found.se, floor_se=0.9 * found.se) == (math.inf, math.inf)
    assert seeds_needed(TYPICAL, NAN) is None


@pytest.mark.parametrize("D", [np.ones((1, 5)), np.ones((5, 1)), np.zeros((5, 4)), np.full((5, 4), 0.1)])
def test_without_components_nothing_is_predicted(D: np.ndarray):
    found = two_way(D)
    assert math.isnan(minimum_detectable(found))
    assert math.isnan(image_floor(found))
    assert seeds_needed(found, 0.01) is None
    assert images_needed(found, 0.01) is None


def found_share(K: int, N: int, sds: tuple[float, float, float], difference: float) -> float:
    """How often the two-way test finds a true difference, by simulation."""
    rng = np.random.default_rng([K, N])
    intervals = [two_way(difference + factorial(rng, K, N, *sds)).interval for _ in range(3000)]
    return sum(interval.p < 0.05 and interval.mean > 0 for interval in intervals) / 3000


@pytest.mark.slow
@pytest.mark.parametrize("sds", [(0, 0, 1), (0.3, 0.1, 1), (1, 1, 1), (0, 1, 1)], ids=str)
@pytest.mark.parametrize(("K", "N"), [(3, 50), (5, 50), (10, 50), (10, 200)])
def test_the_detectable_difference_is_found_four_times_in_five(sds: tuple[float, float, float], K: int, N: int):
    share = found_share(K, N, sds, minimum_detectable(design(K, N, *sds)))
    print(f"\nseed, image, residual {sds}, {K} seeds, {N} images: {share:.3f}")
    assert 0.7 < share < 0.9


@pytest.mark.slow
@pytest.mark.parametrize(("sds", "target"), [((0.3, 0.1, 1), 0.4), ((0.3, 0.1, 1), 0.25), ((1, 1, 1), 1.5)], ids=str)
def test_the_seeds_needed_are_enough_and_fewer_are_not(sds: tuple[float, float, float], target: float):
    needed = seeds_needed(design(5, 50, *sds), target)
    assert needed is not None
    enough, fewer = (found_share(K, 50, sds, target) for K in (needed, round(0.7 * needed)))
    print(f"\n{sds}, target {target}: {needed} seeds {enough:.3f}, {0.7 * needed:.0f} {fewer:.3f}")
    assert 0.75 < enough < 0.88
    assert fewer < 0.75
