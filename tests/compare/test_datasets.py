"""Comparison across data sets: one difference of each, whatever its splits, and one family of tests."""

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_scores import make_pair
from messages import mentions, one_mentions
from scipy import stats

from segexp.compare.datasets import T, can_rank, mean_ranks, over_datasets, warnings_over_all
from segexp.compare.result import OverDatasets
from segexp.compare.statistics import NO_TEST, holm, one_sample, prediction
from segexp.compare.verdict import compare
from segexp.records import write_table
from segexp.report.formats import as_json


def make_on(study: Path, dataset: str, split: int = 0, rng: int = 0, config: Mapping[str, Any] | None = None) -> float:
    """A pair on a data set and one of its splits; returns the mean difference."""
    name = "".join([dataset, str(split), *map(str, (config or {}).values())])
    shas: dict[str, Any] = {"dataset_sha": dataset * 64, "split_sha": f"{dataset}{split}" * 32}
    of_run = {"dataset.name": dataset, "split.seed": split, **(config or {})}
    both = make_pair(study, 3, 12, 0.02 + 0.001 * rng, rng=rng, prefix=name, config=of_run, **shas)
    return float((both[0] - both[1]).mean())


def test_a_data_set_with_two_splits_counts_once_with_their_mean(tmp_path: Path):
    splits = [make_on(tmp_path / "s", "a", split, rng=split) for split in range(2)]
    others = [make_on(tmp_path / "s", name, rng=n + 3) for n, name in enumerate("bc")]
    result = compare([tmp_path])
    (found,) = result.over_datasets
    assert (found.conditions, found.method, result.ranks) == ({}, T, None)
    expected = stats.ttest_1samp([sum(splits) / 2, *others], 0)
    assert found.interval.p == pytest.approx(expected.pvalue, rel=1e-2)
    assert one_mentions(found.warnings, "3 data sets")
    assert found.differences == pytest.approx({"a": sum(splits) / 2, "b": others[0], "c": others[1]}, abs=1e-5)
    assert one_mentions(result.warnings, "a", "mean", "2 splits")
    assert mentions(result.headline, "3 data sets")


def test_data_sets_that_share_images_are_no_independent_ones(tmp_path: Path):
    for n, name in enumerate("abc"):
        make_on(tmp_path / "s", name, rng=n)
    known = {"a": ("1", "2", "3"), "b": ("4", "", "2"), "c": ("5", "")}
    for name, shas in known.items():
        rows = [{"image_id": str(n), "group_id": "", "split": "train", "image_sha": sha, "image_hash": ""}
                for n, sha in enumerate(shas)]  # fmt: skip
        for run_dir in (tmp_path / "s").glob(f"run-{name}0*"):
            write_table(run_dir / "split.csv", "split", rows)
    shared = [line for line in compare([tmp_path]).warnings if "in common" in line]
    assert shared == ["a and b have 1 image in common: they are no independent data sets"]
    for table in (tmp_path / "s").glob("*/split.csv"):
        table.unlink()
    assert not any("in common" in line for line in compare([tmp_path]).warnings), "not at hand"


def test_a_data_set_that_is_in_no_comparison_over_data_sets_is_named(tmp_path: Path):
    for n, name in enumerate("ab"):
        make_on(tmp_path / "s", name, rng=n, config={"optimizer.lr": 0.01})
    make_on(tmp_path / "s", "a", rng=3, config={"optimizer.lr": 0.1})
    make_on(tmp_path / "s", "c", rng=2, config={"optimizer.lr": 0.5})
    result = compare([tmp_path])
    assert [set(found.differences) for found in result.over_datasets] == [{"a", "b"}]
    assert any("c left out" in w for w in result.warnings)


def test_holm_over_data_sets_does_not_depend_on_what_makes_an_arm(tmp_path: Path):
    for n, name in enumerate("abcd"):
        for m, loss in enumerate(("dice", "ce")):
            make_on(tmp_path / "s", name, rng=n + 10 * m, config={"loss.name": loss})
    one, other = (compare([tmp_path], by=by) for by in (("activation", "loss"), ("activation",)))
    family = sorted((over.interval.p, over.p_holm) for over in one.over_datasets)
    assert len(family) == 2
    for a, b in zip(family, sorted((over.interval.p, over.p_holm) for over in other.over_datasets), strict=True):
        assert a == pytest.approx(b)
    # With fewer than six data sets the headline speaks of single ones too: one family.
    single = [c for block in one.blocks for c in block.comparisons]
    together = holm([*(c.deciding.p for c in single), *(over.interval.p for over in one.over_datasets)])
    assert [c.p_holm for c in single] + [over.p_holm for over in one.over_datasets] == pytest.approx(together)
    assert one.n_family == 10


def differences(C: int, D: int) -> np.ndarray:
    return np.random.default_rng(C * 100 + D).normal(0.5, 1, (C, D))


@pytest.mark.parametrize(("C", "D"), [(6, 8), (1, 6), (2, 7), (3, 7)])
def test_ranks_are_tested_from_as_many_data_sets_as_they_need(C: int, D: int):
    assert can_rank(C, D)
    assert not can_rank(C, D - 1)
    assert {method for method, *_ in over_datasets(differences(C, D))} == {"Wilcoxon"}
    assert {method for method, *_ in over_datasets(differences(C, D - 1))} == {T}


@pytest.mark.parametrize("D", [5, 9])
def test_few_data_sets_get_students_t_and_many_wilcoxon_and_the_interval_of_t(D: int):
    rows = differences(3, D)
    found = over_datasets(rows)
    for row, (_, interval, _) in zip(rows, found, strict=True):
        expected = stats.ttest_1samp(row, 0)
        limits = expected.confidence_interval(0.95)
        p = expected.pvalue if D == 5 else stats.wilcoxon(row, method="exact").pvalue
        assert (interval.p, interval.low, interval.high) == pytest.approx((p, limits.low, limits.high))
    assert [p_holm for *_, p_holm in found] == pytest.approx(holm([interval.p for _, interval, _ in found]))


def test_as_many_data_sets_as_needed_can_just_reach_significance():
    all_better = np.vstack([np.arange(1, 9), differences(5, 8)])
    _, interval, p_holm = over_datasets(all_better)[0]
    assert (interval.p, p_holm) == pytest.approx((2**-7, 6 * 2**-7))
    assert p_holm < 0.05


def test_data_sets_without_a_difference_are_left_out_and_ties_are_exact():
    row = [3, 1, 1, 2, 0, 2, -1, 4, 0]
    signs = np.array(np.meshgrid(*[[-1, 1]] * 7)).reshape(7, -1)
    ranks = stats.rankdata([3, 1, 1, 2, 2, 1, 4])
    observed = ranks @ np.sign([3, 1, 1, 2, 2, -1, 4])
    by_hand = np.mean(abs(ranks @ signs) >= observed - 1e-9)
    assert over_datasets([row])[0][1].p == pytest.approx(by_hand)
    assert over_datasets([[0.0] * 9])[0][1].p == 1
    ((method, interval, p_holm),) = over_datasets([[0.5]])  # a single one is no test
    assert (method, interval.mean, math.isnan(interval.p + p_holm)) == (T, 0.5, True)


def test_mean_ranks_by_hand():
    scores = [[0.9, 0.8, 0.5], [0.7, 0.8, 0.6], [0.6, 0.7, 0.7]]
    assert mean_ranks(scores, True)[0] == pytest.approx([(1 + 1.5 + 3) / 3, (2 + 1.5 + 2) / 3, (3 + 3 + 1) / 3])
    ranks, p = mean_ranks([[0.5, 0.6, 0.7]] * 2, True)
    assert (ranks.tolist(), p[0, 1]) == ([1.5, 1.5], 1)
    assert mean_ranks(scores, False)[0] == pytest.approx([(3 + 2.5 + 1) / 3, (2 + 2.5 + 2) / 3, (1 + 1 + 3) / 3])


def test_every_two_arms_are_tested_and_adjusted_together():
    scores = np.random.default_rng(3).normal(size=(4, 12)) + np.arange(4)[:, None]
    p = mean_ranks(scores, True)[1]
    pairs = [(a, b) for a in range(4) for b in range(a + 1, 4)]
    assert [p[pair] for pair in pairs] == pytest.approx(
        holm([stats.wilcoxon(scores[a], scores[b]).pvalue for a, b in pairs])
    )
    assert (p == p.T).all()
    assert (p.diagonal() == 1).all()
    assert p == pytest.approx(mean_ranks(scores, False)[1])


@pytest.mark.parametrize("bad", [[[0.5, math.nan]], [[[0.5]]], [[]]])
def test_gaps_are_refused(bad: list):
    for call in (over_datasets, lambda scores: mean_ranks(scores, True)):
        with pytest.raises(ValueError, match=r"finite|axes"):
            call(bad)


def test_a_warning_names_a_pair_under_several_conditions_once():
    few = OverDatasets("a", "b", {}, {"x": 0.1, "y": 0.2}, T, NO_TEST, math.nan, ("few",))
    (line,) = warnings_over_all([few, replace(few, conditions={"loss": "ce"}), replace(few, warnings=())], [])
    assert line.count("a against b") == 1


@pytest.mark.parametrize("n", [2, 3, 6, 12])
def test_a_prediction_interval_is_that_of_one_more_value(n: int):
    values = np.random.default_rng(n).normal(0.3, 1, n)
    half = stats.t.ppf(0.975, n - 1) * values.std(ddof=1) * math.sqrt(1 + 1 / n)
    assert prediction(one_sample(values), n) == pytest.approx((values.mean() - half, values.mean() + half))


@pytest.mark.slow
def test_the_prediction_interval_is_where_a_new_data_set_lies(tmp_path: Path):
    for n, name in enumerate("abcd"):
        make_on(tmp_path / "s", name, rng=n)
    result = compare([tmp_path])
    (found,) = result.over_datasets
    values = np.array(list(found.differences.values()))
    half = stats.t.ppf(0.975, 3) * values.std(ddof=1) * math.sqrt(1 + 1 / 4)
    assert found.prediction == pytest.approx((values.mean() - half, values.mean() + half))
    assert json.loads(as_json(result, []))["over_datasets"][0]["prediction"] == pytest.approx(found.prediction)
    rng = np.random.default_rng(17)
    for D in (2, 3, 6, 12):
        held = 0
        for drawn in rng.normal(0.3, 1, (3000, D + 1)):
            low, high = prediction(one_sample(drawn[:D]), D)
            held += low <= drawn[D] <= high
        # 3.1 standard errors: once in 500.
        assert held / 3000 == pytest.approx(0.95, abs=0.0123), D
    assert all(map(math.isnan, prediction(one_sample([0.3]), 1)))
    assert prediction(one_sample([0.0, 0.0]), 2) == (0, 0)
