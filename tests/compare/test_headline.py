"""What the sentence at the top says, and that it never says more than the test."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_scores import drawn, make_pair, make_run

from segexp.compare.formatting import amount, limits
from segexp.compare.result import METRICS, Interval
from segexp.compare.verdict import compare


def test_a_significant_difference_is_told_with_what_it_speaks_of(tmp_path: Path):
    make_pair(tmp_path / "study", effect=0.02)
    told = compare([tmp_path]).headline
    assert told.startswith(
        "arctan is better than sigmoid in Dice: +2.00 points (95 % interval [+1.49, +2.51] for new seeds"
    )
    assert "new seeds and new images, Holm-adjusted p < 0.001, 5 seeds x 60 images)." in told


@pytest.mark.parametrize(("n_seeds", "exploratory"), [(3, True), (4, True), (5, False)])
def test_few_seeds_are_exploratory(tmp_path: Path, n_seeds: int, exploratory: bool):
    make_pair(tmp_path / "study", n_seeds=n_seeds, effect=0.05)
    assert ("exploratory" in compare([tmp_path]).headline) == exploratory


def test_unpaired_runs_speak_of_this_test_set(tmp_path: Path):
    candidate_KN, reference_KN = drawn(5, 60, 0.08)
    for seed in range(5):
        make_run(tmp_path / "study", f"a{seed}", candidate_KN[seed], {"activation.name": "arctan"}, seed, init_sha="x")
        make_run(tmp_path / "study", f"s{seed}", reference_KN[seed], {"activation.name": "sigmoid"}, seed)
    told = compare([tmp_path]).headline
    assert "for new seeds, this test set" in told
    assert "new images" not in told


def test_scores_without_values_per_image_speak_of_this_test_set(tmp_path: Path):
    rng = np.random.default_rng(0)
    for arm, mean in (("arctan", 0.9), ("sigmoid", 0.8)):
        for seed in range(5):
            auroc = {"auroc": mean + 0.001 * rng.standard_normal()}
            make_run(tmp_path / "s", f"{arm}{seed}", np.full(9, 0.5), {"activation.name": arm}, seed, summary=auroc)
    assert "for new seeds, this test set" in compare([tmp_path], metric="auroc").headline


def test_folds_are_no_seeds(tmp_path: Path):
    candidate_KN, reference_KN = drawn(1, 100, 0.05)
    for fold in range(5):
        part = slice(20 * fold, 20 * fold + 20)
        names = [f"f{fold}n{n}x" for n in range(20)]
        for arm, dice_KN in (("arctan", candidate_KN), ("sigmoid", reference_KN)):
            config = {"activation.name": arm, "split.fold": fold, "split.folds": 5}
            make_run(tmp_path / "s", f"{arm}{fold}", dice_KN[0, part], config, 0, names=names, split_sha=f"{fold}" * 64)
    result = compare([tmp_path])
    (found,) = result.blocks[0].comparisons
    assert (found.n_seeds, found.n_folds) == (1, 5)
    assert "1 seed x 5 folds x 100 images, a weaker test" in result.headline
    assert "for new folds of these images" in result.headline
    assert [(arm.n_seeds, arm.n_folds) for arm in result.blocks[0].ranking] == [(1, 5)] * 2
    assert all(np.isnan(arm.seed_sd) for arm in result.blocks[0].ranking)


def test_what_rounds_to_zero_has_no_minus_sign():
    dice, nll = METRICS["dice"], METRICS["nll"]
    shown = ["0.00 points", "0.00 points", "\u22121.00 points"]
    assert [amount(dice, value) for value in (-1e-6, 0.0, -0.01)] == shown
    assert amount(nll, -0.0) == "0.00"
    assert limits(dice, Interval(0, 1, 1, 1, -1e-6, 0.01, 0, 0)) == "[0.00, +1.00]"


def test_of_many_none_is_named_for_being_the_best(tmp_path: Path):
    make_pair(tmp_path / "study", effect=0.03)
    for n in range(5):
        values_KN, _ = drawn(5, 60, 0.03 + 0.01 * n)
        for seed, dice_N in enumerate(values_KN):
            make_run(tmp_path / "study", f"c{n}s{seed}", dice_N, {"activation.name": f"other{n}"}, seed)
    told = compare([tmp_path]).headline
    assert told.startswith(
        "6 of 6 comparisons differ significantly in Dice: 6 better, 0 worse than their reference, by +3"
    )
    assert "other" not in told


def test_all_that_is_significant_is_named_where_it_is_little(tmp_path: Path):
    make_pair(tmp_path / "study", effect=0.03)
    values_KN, _ = drawn(5, 60, -0.03, rng=0)
    alike_KN, _ = drawn(5, 60, 0.0, rng=0)
    for seed in range(5):
        make_run(tmp_path / "study", f"w{seed}", values_KN[seed], {"activation.name": "erf"}, seed)
        make_run(tmp_path / "study", f"e{seed}", alike_KN[seed], {"activation.name": "laplace"}, seed)
    told = compare([tmp_path]).headline
    assert "arctan is better than sigmoid" in told
    assert "erf is worse than sigmoid" in told
    assert told.endswith("Of the others: 1 equivalent within 1.00 points.")


def test_over_data_sets_comes_first(tmp_path: Path):
    for d in range(8):
        config = {"dataset.name": f"set{d}"}
        shas: dict[str, Any] = {"dataset_sha": f"{d}" * 64, "split_sha": f"{d}" * 64}
        make_pair(tmp_path / f"d{d}", n_images=12, effect=0.006, rng=d, prefix=f"d{d}", config=config, **shas)
    result = compare([tmp_path / f"d{d}" for d in range(8)])
    (over,) = result.over_datasets
    assert over.p_holm < 0.05
    assert result.headline.startswith("Across 8 data sets arctan is better than sigmoid in Dice")


def test_why_there_is_no_answer(tmp_path: Path):
    make_pair(tmp_path / "few", n_seeds=2)
    assert compare([tmp_path / "few"]).headline.startswith("No answer: the comparison cannot be tested (2 seeds")
    for arm, dice in (("arctan", 0.8), ("sigmoid", 0.7)):
        for seed in range(5):
            make_run(tmp_path / "same", f"{arm}{seed}", np.full(60, dice), {"activation.name": arm}, seed)
    assert "the differences do not vary at all" in compare([tmp_path / "same"]).headline
    make_pair(tmp_path / "lost", arms=("erf", "sigmoid"))
    for seed in range(5):
        make_run(tmp_path / "lost", f"d{seed}", None, {"activation.name": "arctan"}, seed, status="diverged")
    result = compare([tmp_path / "lost"])
    assert "1 comparison could not be tested" in result.headline
    (of_lost,) = [c for c in result.blocks[0].comparisons if c.candidate == "arctan"]
    assert of_lost.warnings == ("arctan has no Dice: 5 diverged",)
    assert of_lost.dropped == ""
