"""Over data sets: one difference of each, whatever its splits, and one family of tests."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from made_scores import make_pair

from segexp.compare.verdict import compare


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
    assert found.conditions == {}
    assert found.differences == pytest.approx({"a": sum(splits) / 2, "b": others[0], "c": others[1]}, abs=1e-5)
    assert any("a enters with the mean of its 2 splits" in w for w in result.warnings)
    assert result.headline.startswith("Across 3 data sets")


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
    found = {
        by: sorted((over.interval.p, over.p_holm) for over in compare([tmp_path], by=by).over_datasets)
        for by in (("activation", "loss"), ("activation",))
    }
    one, other = found.values()
    assert len(one) == 2
    for a, b in zip(one, other, strict=True):
        assert a == pytest.approx(b)
    assert one[0][1] == pytest.approx(2 * one[0][0])
