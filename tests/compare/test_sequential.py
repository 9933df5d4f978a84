"""Looks at a study that is not finished: shares of alpha, repeated intervals, where comparisons stand, error rates."""

import math
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from scipy.stats import t as student

from segexp.compare import statistics as stats
from segexp.compare.result import Interval, Verdict
from segexp.compare.sequential import (
    LOOKS,
    Evidence,
    analysed,
    at_look,
    conditional_power,
    decided,
    shares,
    shares_within,
    simulated,
    standings,
)

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
ROPE = 0.01


@pytest.fixture
def rates(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import sequential_rates

    yield sequential_rates
    for name in ("sequential_rates", "error_rates"):
        sys.modules.pop(name)


def interval(mean: float, se: float, n: int = 10) -> Interval:
    values = np.array([-1.0, 1.0] * (n // 2))
    return stats.one_sample(mean + se * math.sqrt(n) * values / values.std(ddof=1))


# Shares of alpha and repeated intervals


@pytest.mark.parametrize("n_looks", [1, 2, 3, 5, 8])
def test_shares_add_up_to_one_and_increase(n_looks: int):
    for of_looks in (shares(n_looks), shares_within(n_looks)):
        assert len(of_looks) == n_looks
        assert math.fsum(of_looks) == pytest.approx(1, abs=1e-12)
        spent = [share for share in of_looks if share]
        assert spent == sorted(set(spent))
        assert of_looks[-len(spent) :] == tuple(spent)


def test_five_looks_spend_squares_and_equivalence_begins_with_the_third():
    assert shares(5) == pytest.approx([1 / 25, 3 / 25, 5 / 25, 7 / 25, 9 / 25])
    assert shares_within(5) == pytest.approx([0, 0, 1 / 9, 3 / 9, 5 / 9])


def test_a_look_divides_p_and_widens_the_limits():
    found = at_look(interval(0.02, 0.01), 0.12, 0.2)
    p = 2 * student.sf(2, 9)
    low, high = student.interval(1 - 0.12 * 0.05, 9, 0.02, 0.01)
    low90, high90 = student.interval(1 - 2 * 0.2 * 0.05, 9, 0.02, 0.01)
    assert (found.p, found.low, found.high) == pytest.approx((p / 0.12, low, high))
    assert (found.low90, found.high90) == pytest.approx((low90, high90))
    assert (found.share, found.share_within) == (0.12, 0.2)
    assert at_look(interval(0.001, 0.01), 0.12, 0.2).p == 1


def test_a_difference_is_called_where_its_repeated_interval_excludes_0_and_equivalent_where_it_lies_inside():
    for mean in np.linspace(0, 0.05, 26):
        found = at_look(interval(mean, 0.012), 0.2, 1 / 9)
        assert (found.p < 0.05) == (found.low > 0)
    for se in np.linspace(0.0005, 0.005, 19):
        found = at_look(interval(0.003, se), 0.2, 1 / 9)
        p, inside = stats.within_rope(found, ROPE)
        assert (inside and p < 0.05) == (found.low90 > -ROPE and found.high90 < ROPE)


def test_a_look_without_a_share_for_equivalence_never_calls_it():
    found = at_look(interval(0, 1e-6), 0.04, 0)
    assert math.isnan(found.low90)
    assert stats.within_rope(found, ROPE)[0] == 1
    assert decided([found], ROPE) == [Verdict.INCONCLUSIVE]


def test_what_has_no_test_has_none_at_a_look_and_identical_arms_stay_equivalent():
    assert math.isnan(at_look(stats.NO_TEST, 0.12, 0.2).p)
    identical = at_look(stats.one_sample([0.0] * 5), 0.04, 0)
    assert (identical.p, identical.low, identical.high, identical.low90, identical.high90) == (1, 0, 0, 0, 0)
    assert decided([identical], ROPE) == [Verdict.EQUIVALENT]


# Where comparisons stand


@pytest.mark.parametrize(("mean", "se", "floor_se"), [(0.02, 0.012, 0), (0.015, 0.01, 0.004), (0.001, 0.004, 0.001)])
def test_conditional_power_is_how_often_the_last_look_decides(mean: float, se: float, floor_se: float):
    """Studies that go on from 8 to 27 seeds, their truth and variance drawn as the 8 seeds leave them uncertain."""
    n, last, share, within, m, rng = 8, 27, 0.36, 5 / 9, 3, np.random.default_rng(0)
    a = n * (se**2 - floor_se**2)
    variance = a * (n - 1) / rng.chisquare(n - 1, 100_000)
    truth = rng.normal(mean, np.sqrt(variance / n))
    final = (n * mean + (last - n) * rng.normal(truth, np.sqrt(variance / (last - n)))) / last
    half, half90 = student.ppf([1 - share * 0.05 / (2 * m), 1 - within * 0.05 / m], last - 1)
    se_last = math.sqrt(a / last + floor_se**2)
    calls = (abs(final) > half * se_last) | (abs(final) + half90 * se_last < ROPE)
    found = Evidence(replace(interval(mean, se), df=7.0), n, floor_se)
    assert 0.1 < calls.mean() < 0.95
    assert conditional_power(found, last, ROPE, share, within, m) == pytest.approx(calls.mean(), abs=0.006)


def test_conditional_power_falls_with_the_number_of_comparisons_and_is_0_without_a_test():
    found = Evidence(interval(0.01, 0.006), 8)
    one, five = (conditional_power(found, 27, ROPE, 0.36, 5 / 9, m) for m in (1, 5))
    assert 0 < five < one < 1
    assert conditional_power(Evidence(stats.NO_TEST, 2), 27, ROPE, 0.36, 5 / 9, 1) == 0


def test_where_the_seeds_do_not_vary_the_last_look_is_known_now():
    for mean, certain in ((0.02, 1.0), (0.004, 0.0), (-0.02, 1.0)):
        found = Evidence(replace(interval(mean, 0.004), df=7.0), 8, 0.004)
        assert conditional_power(found, 27, 0.0, 0.36, 5 / 9, 1) == certain
    # Nor do the images: there is no test. And a power is no more than 1 where both decisions are sure.
    assert conditional_power(Evidence(stats.one_sample([0.0] * 5), 5), 27, ROPE, 0.36, 5 / 9, 1) == 0
    assert conditional_power(Evidence(interval(0.02, 0.002), 8), 27, 1.0, 0.36, 5 / 9, 1) == 1


def test_comparisons_are_decided_open_or_stopped_for_a_reason():
    hopeful, hopeless = Evidence(interval(0.02, 0.012), 8), Evidence(interval(0.012, 0.02), 8, 0.0199, 0.056)
    seeds = Evidence(interval(0.0098, 0.0002), 8)
    none = Evidence(stats.NO_TEST, 2)
    verdicts = [Verdict.BETTER, Verdict.EQUIVALENT, *[Verdict.INCONCLUSIVE] * 3, Verdict.NO_TEST]
    evidence = [hopeful, hopeful, hopeful, hopeless, seeds, none]
    found = standings(evidence, verdicts, ROPE, 27, (0.36, 5 / 9))
    assert [one.state for one in found] == ["decided", "decided", "open", "images", "open", "untested"]
    assert found[2].power > 0.1 > found[3].power
    assert math.isnan(found[0].power)
    found = standings(evidence, verdicts, ROPE, None, (0.36, 5 / 9))
    assert [one.state for one in found] == ["decided", "decided", "seeds", "images", "seeds", "untested"]


def test_holms_adjustment_counts_what_was_decided_and_what_stopped_at_earlier_looks():
    """p / share at the look where each stopped: .008 / .04 = .2, .0012 / .12 = .01, .0044 / .2 = .022, and their
    steps 1, 3 and 2."""
    at = [(0.008, 0.04), (0.0012, 0.12), (0.0044, 0.2)]
    found = [at_look(of_p(p), share, 0) for p, share in at]
    assert [one.p for one in found] == pytest.approx([0.2, 0.01, 0.022])
    assert stats.holm([one.p for one in found]) == pytest.approx([0.2, 0.03, 0.044])
    assert decided(found, ROPE) == [Verdict.INCONCLUSIVE, Verdict.BETTER, Verdict.BETTER]
    found[1] = at_look(of_p(0.0024), 0.12, 0)  # .06 after three comparisons: the next one is held up by it
    assert decided(found, ROPE) == [Verdict.INCONCLUSIVE] * 3
    assert decided(found[2:], ROPE) == [Verdict.BETTER]


def of_p(p: float) -> Interval:
    return interval(0.02 * student.isf(p / 2, 9), 0.02)


# Simulated studies


def study(rates: ModuleType, which: str, rng: np.random.Generator):
    """(runs, values_AKN, sizes) of a study in which some candidates are decided early and some late."""
    made, last = rates.rates, rates.LAST
    if which == "splits":
        orders = [rng.permutation(40) for _ in range(last)]
        scores = made.learned_scores(rng, [(order[:24], order[32:]) for order in orders], 1)
        for of_split in scores:
            of_split[1] += 12
        return made.runs_of_splits(scores, 24, 0), np.concatenate(scores, axis=1) / 100, (8, 24)
    if which == "normal":
        scores = made.points(rng, 4, last, 60, made.STABLE)
        scores[1:] += np.reshape((0, 0.6, 3), (3, 1, 1))
        return made.runs_of(scores), scores / 100, None
    options = {"patients": (made.patients,), "empty": (made.empty_masks, 30), "classes": (rates.classes, 30)}[which]
    runs = options[0](rng, 3, last, *options[1:])
    return runs, rates.values_of(runs), None


@pytest.mark.parametrize("which", ["normal", "patients", "empty", "classes", "splits"])
def test_looks_at_arrays_are_those_of_compare(rates: ModuleType, which: str):
    rng = np.random.default_rng(3)
    for _ in range(2 if which in ("normal", "splits") else 1):
        runs, values_AKN, sizes = study(rates, which, rng)
        C = len(values_AKN) - 1
        fast = rates.looked_at(partial(rates.by_arrays, rates.of_values(values_AKN, sizes)), C)
        slow = rates.looked_at(partial(rates.by_compare, runs), C)
        assert (fast.look_C, fast.state_C, fast.verdict_C) == (slow.look_C, slow.state_C, slow.verdict_C)
        for a, b in zip(fast.evidence_C, slow.evidence_C, strict=True):
            assert (a.n, a.floor_se, a.floor) == pytest.approx((b.n, b.floor_se, b.floor), rel=1e-6, abs=1e-9)
            for name in ("mean", "se", "p", "low", "high", "low90", "high90", "share", "share_within"):
                both = getattr(a.interval, name), getattr(b.interval, name)
                assert both[0] == pytest.approx(both[1], rel=1e-6, abs=1e-9, nan_ok=True), name
        assert simulated(values_AKN[1:] - values_AKN[0], LOOKS, ROPE, sizes) == (fast.runs, fast.verdict_C)
        if which == "normal":
            assert len(set(fast.look_C)) > 1
            assert fast.runs < 4 * rates.LAST


def test_seeds_that_the_reference_gets_later_are_no_part_of_a_comparison_that_has_stopped(rates: ModuleType):
    """Unpaired arms use all seeds of both: each later look would test again, at the share of the earlier look."""
    runs = rates.rates.runs_of(rates.points(np.random.default_rng(0), 3, LOOKS[-1], 20))
    other = [
        replace(run, cells={**run.cells, "init_sha": "other"}) if run.row["config_activation_name"] == "arctan" else run
        for run in runs
    ]
    for of_study in (runs, other):
        (stopped, _), _ = rates.by_compare(of_study, [1, 1])
        (later, goes_on), _ = rates.by_compare(of_study, [1, 3])
        a, b = stopped.interval, later.interval
        assert (a.mean, a.se, a.df, a.low) == (b.mean, b.se, b.df, b.low)
        assert (later.n, goes_on.n) == (LOOKS[1], LOOKS[3])


def test_analysed_differences_are_the_two_way_test():
    D = np.random.default_rng(0).normal(0.01, 0.02, (6, 40))
    found, whole = analysed(D), stats.two_way(D)
    assert (found.interval, found.n) == (whole.interval, 6)
    assert found.floor == pytest.approx(stats.image_floor(whole))
    assert found.floor_se == pytest.approx(math.sqrt(whole.var_image / 40))


def test_fixed_designs_are_compared_as_by_the_two_way_test(rates: ModuleType):
    rng, truth = np.random.default_rng(1), [1.5, 0, 0.8]
    found = []
    for _ in range(6):
        D = 3 * rng.normal(size=(3, rates.LAST, 30)) + rng.normal(size=(3, 1, 30)) + np.reshape(truth, (3, 1, 1))
        D /= 100
        fixed = rates.fixed_designs(D, truth)
        for K in (3, 4, 5, 12, 27):
            verdicts = decided([stats.two_way(D[c, :K]).interval for c in range(3)], ROPE)
            found.append(sum(verdicts[c].word == Verdict.BETTER for c in (0, 2)) / 2)
            assert fixed[rates.fixed_design(K)] == found[-1]
    assert set(found) == {0, 0.5, 1}


def test_a_study_that_is_clear_at_once_ends_at_the_first_look(rates: ModuleType):
    scores = np.random.default_rng(0).normal(70, 0.1, (3, LOOKS[-1], 20))
    scores[1:] += 5
    ended = rates.looked_at(partial(rates.by_arrays, rates.of_values(scores / 100)), 2)
    assert (ended.state_C, ended.look_C, ended.runs) == (["decided"] * 2, [0, 0], 3 * LOOKS[0])


@pytest.mark.slow
@pytest.mark.parametrize(("table", "which", "repetitions"), [
    ("looks, no difference", "normal|heavy|ties|empty.* 30", 300),
    ("looks, no difference", "classes.* 30|patients|learners", 100),
    ("looks, equivalence", "^[01] points", 300),
    ("looks, differences", "^2 ROPEs, 100", 300),
])  # fmt: skip
def test_looks_keep_the_rates_of_error(rates: ModuleType, table: str, which: str, repetitions: int):
    settings = [made for made in rates.TABLES[table]() if re.search(which, made.name)]
    rows = rates.rates.rows_of({table: settings}, repetitions)
    print("\n" + rates.markdown(table, rows))
    assert rows
    assert [f"{row.setting}, {row.what}: {rates.rates.shown_rate(row)}" for row in rows if row.failed] == []


@pytest.mark.slow
def test_looks_that_each_spend_all_of_alpha_raise_false_alarms(rates: ModuleType, monkeypatch: pytest.MonkeyPatch):
    """Studies that could not tell a wrong design from a right one would prove nothing."""
    monkeypatch.setattr(rates, "SHARES", (1.0,) * len(LOOKS))
    setting = next(made for made in rates.unequal() if made.name == "normal, 100 images, 1 candidate")
    rows = rates.rates.rows_of({"looks, no difference": [setting]}, 400)
    assert all(row.failed for row in rows if row.required)


@pytest.mark.slow
def test_looks_find_a_better_candidate_with_fewer_runs(rates: ModuleType):
    name = "2 ROPEs, 100 images, 5 candidates, 1 better"
    setting = next(made for made in rates.savings() if made.name == name)
    of = {row.what: row for row in rates.rates.rows_of({"looks, differences": [setting]}, 600)}
    assert of[rates.FOUND].rate > 0.7
    assert of[rates.RUNS].rate < 0.7 * 6 * rates.equal_design(of)
