"""What a design can find: against formulas, against statsmodels, and by simulation."""

import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.power import TTestPower

from segexp.compare.statistics import (
    MOST,
    TwoWay,
    image_floor,
    images_needed,
    minimum_detectable,
    minimum_detectable_by_seeds,
    noncentrality,
    one_sample,
    se_of,
    seeds_needed,
    seeds_needed_alone,
    two_way,
)

ORACLE_KN = np.array([[1, 2, 3, 4], [2, 2, 4, 4], [0, 1, 2, 5], [1, 3, 3, 5], [2, 4, 3, 3]])


def design(K: int, N: int, seed: float, image: float, residual: float) -> TwoWay:
    """A comparison whose components of variance are exactly the squares of these standard deviations."""
    e = residual**2
    return TwoWay(one_sample([0.0, 0.0]), e + N * seed**2, e + K * image**2, e, K, N)


TYPICAL = design(5, 80, 0.01, 0.05, 0.08)


def test_the_same_design_has_the_same_standard_error():
    found = two_way(ORACLE_KN)
    assert se_of(found, 5, 4) == pytest.approx((found.interval.se, found.interval.df))


def test_seeds_that_vary_less_than_the_residual_are_taken_for_chance():
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


def test_the_unit_scales_what_can_be_detected():
    found, scaled = two_way(ORACLE_KN), two_way(100 * ORACLE_KN)
    assert minimum_detectable(scaled) == pytest.approx(100 * minimum_detectable(found))
    assert image_floor(scaled) == pytest.approx(100 * image_floor(found))
    assert seeds_needed(scaled, 260) == seeds_needed(found, 2.6)


@pytest.mark.parametrize("K", [2, 3, 5, 6, 30])
def test_the_seeds_needed_for_what_a_design_detects_are_its_own(K: int):
    target = minimum_detectable(design(K, 80, 0.01, 0.05, 0.08))
    assert seeds_needed(TYPICAL, 1.0001 * target) == K
    assert (seeds_needed(TYPICAL, 0.9999 * target) or MOST) > K


@pytest.mark.parametrize("N", [2, 20, 300])
def test_the_images_needed_for_what_a_design_detects_are_its_own(N: int):
    target = minimum_detectable(design(5, N, 0.01, 0.05, 0.08))
    assert images_needed(TYPICAL, 1.0001 * target) == N
    assert (images_needed(TYPICAL, 0.9999 * target) or MOST) > N


def test_below_the_floor_no_number_is_enough():
    assert seeds_needed(TYPICAL, 0.99 * image_floor(TYPICAL)) is None
    seed_floor = float(noncentrality(4)) * 0.01 / math.sqrt(5)
    assert images_needed(TYPICAL, 0.99 * seed_floor) is None
    assert images_needed(TYPICAL, 1.2 * seed_floor) is not None


def test_without_variance_of_images_there_is_no_floor_but_a_limit():
    found = design(5, 80, 0.01, 0, 0.08)
    assert image_floor(found) == 0
    assert seeds_needed(found, 0.01) is not None
    assert seeds_needed(found, 1e-6) is None


@pytest.mark.parametrize("target", [0.3, 0.5, 1.0, 2.0])
def test_paired_seeds_alone_need_what_statsmodels_says(target: float):
    needed = seeds_needed_alone([1.0], target)
    assert needed is not None
    power = [TTestPower().power(target, n, 0.05) for n in (needed - 1, needed)]
    assert power[1] >= 0.8 > power[0]


@pytest.mark.parametrize(("sds", "target"), [((1.0, 1.0), 1.0), ((1.0, 0.2), 0.7)])
def test_unpaired_seeds_need_what_simulation_says(sds: tuple[float, float], target: float):
    needed = seeds_needed_alone([sd**2 for sd in sds], target)
    assert needed is not None
    rng = np.random.default_rng(0)
    a, b = (rng.normal(mean, sd, (20000, needed)) for mean, sd in zip((target, 0.0), sds, strict=True))
    found = stats.ttest_ind(a, b, axis=1, equal_var=False)
    share = ((found.pvalue < 0.05) & (found.statistic > 0)).mean()
    assert 0.79 < share < 0.84


def test_what_seeds_alone_detect_is_what_they_need():
    values = np.array([0.3, -0.1, 0.2, 0.4, 0.05])
    target = minimum_detectable_by_seeds(one_sample(values))
    variance = float(values.var(ddof=1))
    assert (seeds_needed_alone([variance], 1.0001 * target), seeds_needed_alone([variance], 0.9999 * target)) == (5, 6)
    assert seeds_needed_alone([0.0, 0.0], 1.0) is None
    assert seeds_needed_alone([1.0], 1e-6) is None
    with pytest.raises(ValueError, match="above 0"):
        seeds_needed_alone([1.0], 0.0)


@pytest.mark.parametrize("target", [1.0, 1e3, 1e9])
def test_a_large_difference_needs_the_fewest(target: float):
    assert seeds_needed(TYPICAL, target) == 2
    assert images_needed(TYPICAL, target) == 2


@pytest.mark.parametrize("D", [np.ones((1, 5)), np.ones((5, 1)), np.zeros((5, 4)), np.full((5, 4), 0.1)])
def test_without_components_nothing_is_predicted(D: np.ndarray):
    found = two_way(D)
    assert math.isnan(minimum_detectable(found))
    assert math.isnan(image_floor(found))
    assert seeds_needed(found, 0.01) is None
    assert images_needed(found, 0.01) is None


def test_a_target_is_a_difference_above_zero():
    assert seeds_needed(TYPICAL, math.nan) is None
    for target in (0, -1):
        with pytest.raises(ValueError, match="above 0"):
            seeds_needed(TYPICAL, target)


def found_share(K: int, N: int, sds: tuple[float, float, float], difference: float) -> float:
    """How often the two-way test finds a true difference, by simulation."""
    rng = np.random.default_rng([K, N])
    seed, image, residual = sds
    found = 0
    for _ in range(3000):
        D = difference + rng.normal(0, seed, (K, 1)) + rng.normal(0, image, N) + rng.normal(0, residual, (K, N))
        interval = two_way(D).interval
        found += interval.p < 0.05 and interval.mean > 0
    return found / 3000


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
    print(
        f"\nseed, image, residual {sds}, target {target}: {needed} seeds {enough:.3f}, {0.7 * needed:.0f} {fewer:.3f}"
    )
    assert 0.75 < enough < 0.88
    assert fewer < 0.75
