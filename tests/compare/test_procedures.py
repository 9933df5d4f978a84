"""Which procedure a comparison gets where seeds, images or folds are few, missing or no pairs; made-up studies."""

import hashlib
import itertools
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_scores import N_GT, drawn, make_arm, make_pair, make_run, only
from messages import mentions, one_mentions

from segexp.compare.result import Method, Verdict
from segexp.compare.statistics import corrected_resampled, one_sample, two_way, welch
from segexp.compare.verdict import compare, load_checked
from segexp.errors import UsageError


def exact(dice: np.ndarray) -> np.ndarray:
    """Dice as the counts of a made-up image give it."""
    return np.round(dice * N_GT) / N_GT


def make_folds(
    study: Path,
    sizes: list[int],
    n_seeds: int,
    without: tuple[tuple[str, int, int], ...] = (),
    loss: str = "dice",
    repeat: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """A cross-validated pair whose folds hold so many images; without: (arm, fold, seed) that was not run. What the
    candidate gains falls from fold to fold. Returns what was drawn, (seeds, images of all folds) each."""
    candidate_KN, reference_KN = map(exact, drawn(n_seeds, sum(sizes), 0.0))
    fold_N = np.repeat(np.arange(len(sizes)), sizes)
    candidate_KN = exact(np.clip(candidate_KN + 0.03 - 0.025 * fold_N, 0, 1))
    drawn_of = {"arctan": candidate_KN, "sigmoid": reference_KN}
    for arm, fold, seed in itertools.product(drawn_of, range(len(sizes)), range(n_seeds)):
        if (arm, fold, seed) not in without:
            dice_N = drawn_of[arm][seed, fold_N == fold]
            of_run = {
                "activation.name": arm,
                "split.fold": fold,
                "split.folds": len(sizes),
                "loss.name": loss,
                "split.seed": repeat,
            }
            names = [f"f{fold}i{n:03d}x" for n in range(len(dice_N))]
            summary = {"auroc": float(dice_N.mean()), "fold": fold}
            shas: dict[str, Any] = {"split_sha": f"{fold}{repeat}" * 32}
            run_id = f"{arm}{fold}s{seed}{loss}{repeat}"
            make_run(study, run_id, dice_N, of_run, seed, names=names, summary=summary, **shas)
    return candidate_KN, reference_KN


# Seeds and images
def test_seeds_that_change_nothing_are_no_certainty_however_images_vary(tmp_path: Path):
    candidate_KN, reference_KN = drawn(1, 60, 0.01)
    for arm, dice_KN in (("arctan", candidate_KN), ("sigmoid", reference_KN)):
        make_arm(tmp_path / "s", arm, [dice_KN[0]] * 5)
    result = compare([tmp_path])
    found = only(result)
    assert found.verdict == Verdict.NO_TEST
    assert math.isnan(found.deciding.p)
    assert math.isnan(found.test_set.p)
    assert found.overall.mean == pytest.approx(float((candidate_KN - reference_KN).mean()), abs=1e-5)
    assert mentions(found.warnings[0], "do not vary", "no test")
    assert "do not vary" in result.headline


def test_one_image_tells_of_new_seeds_alone(tmp_path: Path):
    candidate_KN, reference_KN = make_pair(tmp_path / "s", n_images=1, effect=0.05)
    result = compare([tmp_path])
    found = only(result)
    expected = one_sample((exact(candidate_KN) - exact(reference_KN))[:, 0])
    assert (found.method, found.scope) == (Method.OVER_SEEDS, Method.OVER_SEEDS.scope)
    assert (found.deciding.p, found.deciding.low) == pytest.approx((expected.p, expected.low))
    assert found.verdict == Verdict.BETTER
    assert (found.n_images, found.n_groups) == (1, 1)
    (warning,) = found.warnings
    assert mentions(warning, "only", "test set")
    assert "do not vary" not in result.headline


def test_seeds_that_are_no_pairs_are_scored_on_the_images_that_all_have(tmp_path: Path):
    candidate_KN, reference_KN = (exact(dice_KN) for dice_KN in drawn(5, 60, 0.03))
    candidate_KN = candidate_KN[:4, :40]
    make_arm(tmp_path / "s", "arctan", candidate_KN)
    make_arm(tmp_path / "s", "sigmoid", reference_KN, first_seed=10)
    found = only(compare([tmp_path]))
    expected = welch(candidate_KN.mean(axis=1), reference_KN[:, :40].mean(axis=1))
    assert found.method == Method.UNPAIRED
    assert (found.test_set.mean, found.test_set.p) == pytest.approx((expected.mean, expected.p))
    assert (found.n_images, found.n_groups, len(found.units)) == (40, 40, 40)
    assert found.dropped.startswith("20 images")
    assert found.candidate_N == pytest.approx(candidate_KN.mean(axis=0))


@pytest.mark.parametrize("method", [Method.OVER_SEEDS, Method.UNPAIRED])
def test_what_seeds_alone_can_find(tmp_path: Path, method: str):
    """The two numbers belong together: as many seeds as there are find the detectable difference."""
    apart: dict[str, Any] = {"init_sha": "x"} if method == Method.UNPAIRED else {}
    n_images = 20 if method == Method.UNPAIRED else 1
    candidate_KN, reference_KN = drawn(5, n_images, 0.01, spread=(0.01, 0.004, 0.01))
    make_arm(tmp_path / "s", "arctan", candidate_KN, **apart)
    make_arm(tmp_path / "s", "sigmoid", reference_KN)
    found = only(compare([tmp_path]))
    assert found.method == method
    assert 0.005 < found.minimum_detectable < 0.1
    ropes = [100 * factor * found.minimum_detectable for factor in (1.001, 0.5)]
    needed = [only(compare([tmp_path], rope=rope)).seeds_needed for rope in ropes]
    assert needed[0][0] <= 5 <= needed[0][1]
    assert needed[1][0] <= 15 <= needed[1][1]
    assert math.isnan(found.image_floor)


# Folds
def test_a_ranking_in_cross_validation_is_that_of_the_comparison(tmp_path: Path):
    """Folds of unequal size: the mean over folds would put the arms the other way round."""
    sizes = [6, 6, 40]
    candidate_KN, reference_KN = make_folds(tmp_path, sizes, 3)
    result = compare([tmp_path])
    found, ranking = only(result), result.blocks[0].ranking
    expected = two_way(candidate_KN - reference_KN).interval
    assert (found.method, found.scope) == (Method.OUT_OF_FOLD, Method.OUT_OF_FOLD.scope)
    assert f"for {found.scope}, Holm-adjusted" in result.headline
    assert (found.n_seeds, found.n_folds, found.n_images) == (3, 3, 52)
    assert (found.overall.mean, found.overall.se) == pytest.approx((expected.mean, expected.se))
    means = {arm.arm: arm.mean for arm in ranking}
    assert [arm.arm for arm in ranking] == ["sigmoid", "arctan"]
    assert means["arctan"] - means["sigmoid"] == pytest.approx(found.overall.mean)
    assert means["arctan"] == pytest.approx(candidate_KN.mean())
    sd = {arm.arm: arm.seed_sd for arm in ranking}
    assert sd["sigmoid"] == pytest.approx(reference_KN.mean(axis=1).std(ddof=1))
    ends = np.cumsum([0, *sizes])
    of_folds = [(candidate_KN - reference_KN)[:, a:b].mean() for a, b in itertools.pairwise(ends)]
    assert np.mean(of_folds) > 0 > found.overall.mean


def test_crossed_means_of_folds_are_out_of_fold_too(tmp_path: Path):
    candidate_KN, _ = make_folds(tmp_path / "one", [4, 4, 12], 2)
    make_folds(tmp_path / "two", [4, 4, 12], 2, loss="ce")
    (table,) = compare([tmp_path / "one", tmp_path / "two"]).blocks[0].factorials
    cell = table.rows.index("arctan"), table.columns.index("dice")
    assert table.means[cell[0]][cell[1]] == pytest.approx(candidate_KN.mean())
    assert table.seeds[cell[0]][cell[1]] == 2


def test_an_arm_that_lacks_a_fold_has_no_mean(tmp_path: Path):
    without = tuple(("arctan", 2, seed) for seed in range(3))
    _, reference_KN = make_folds(tmp_path, [5, 5, 5], 3, without=without)
    result = compare([tmp_path])
    means = {arm.arm: arm.mean for arm in result.blocks[0].ranking}
    assert math.isnan(means["arctan"])
    assert means["sigmoid"] == pytest.approx(reference_KN.mean())
    assert any(w.startswith("arctan: no mean") for w in result.blocks[0].warnings)


def test_another_seed_for_each_fold_is_ranked_by_the_mean_of_the_folds(tmp_path: Path):
    without = tuple((arm, f, s) for arm in ("arctan", "sigmoid") for f in range(3) for s in range(3) if f != s)
    _, reference_KN = make_folds(tmp_path, [5, 5, 20], 3, without=without)
    result = compare([tmp_path])
    found = only(result)
    means = {arm.arm: arm.mean for arm in result.blocks[0].ranking}
    parts = reference_KN[0, :5].mean(), reference_KN[1, 5:10].mean(), reference_KN[2, 10:].mean()
    assert found.method == Method.OVER_FOLDS
    assert means["sigmoid"] == pytest.approx(np.mean(parts))
    assert means["arctan"] - means["sigmoid"] == pytest.approx(found.overall.mean)
    assert one_mentions(found.warnings, "folds", "5 to 20")


def test_a_missing_fold_takes_its_seed_along_and_it_is_told(tmp_path: Path):
    make_folds(tmp_path, [5, 5, 5], 4, without=(("sigmoid", 0, 1),))
    result = compare([tmp_path])
    found = only(result)
    assert (found.method, found.n_seeds) == (Method.OUT_OF_FOLD, 3)
    assert mentions(found.dropped, "seed 1", "fold 0", "candidate", "other folds", "4 runs")
    assert ", exploratory)" in result.headline


def test_folds_without_values_per_image_are_tested_over_seeds(tmp_path: Path):
    candidate_KN, reference_KN = make_folds(tmp_path, [5, 5, 5], 3)
    result = compare([tmp_path], metric="auroc")
    found = only(result)
    expected = one_sample((candidate_KN - reference_KN).mean(axis=1))
    assert (found.method, found.scope) == (Method.OVER_SEEDS_OF_FOLDS, Method.OVER_SEEDS_OF_FOLDS.scope)
    assert (found.deciding.mean, found.deciding.p) == pytest.approx((expected.mean, expected.p))
    assert (found.n_seeds, found.n_folds) == (3, 3)
    assert any("these folds only" in w for w in found.warnings)
    assert not any("weaker" in note for note in found.warnings)
    means = {arm.arm: arm.mean for arm in result.blocks[0].ranking}
    assert means["arctan"] - means["sigmoid"] == pytest.approx(found.deciding.mean)


def test_one_seed_per_fold_gets_the_weaker_test(tmp_path: Path):
    candidate_KN, reference_KN = make_folds(tmp_path, [20] * 5, 1)
    result = compare([tmp_path])
    found = only(result)
    means_F = (candidate_KN - reference_KN)[0].reshape(5, 20).mean(axis=1)
    assert (found.method, found.n_seeds, found.n_folds) == (Method.OVER_FOLDS, 1, 5)
    assert found.overall.mean == pytest.approx(means_F.mean())
    assert found.overall.se == pytest.approx(means_F.std(ddof=1) * math.sqrt(1 / 5 + 1 / 4))
    assert found.scope == Method.OVER_FOLDS.scope
    assert mentions(result.headline, "1 seed", "5 folds", "100 images", found.scope)
    assert [(arm.n_seeds, arm.n_folds) for arm in result.blocks[0].ranking] == [(1, 5)] * 2
    assert all(np.isnan(arm.seed_sd) for arm in result.blocks[0].ranking)


@pytest.mark.parametrize("metric", ["dice", "auroc"])
def test_too_few_seeds_of_folds_get_the_weaker_test(tmp_path: Path, metric: str):
    make_folds(tmp_path, [5, 5, 5], 2)
    result = compare([tmp_path], metric=metric)
    found = only(result)
    assert found.method == Method.OVER_FOLDS
    assert mentions(found.warnings[0], "3 folds", "2 seeds")
    assert "exploratory" not in result.headline


# What is stored and parsed nowhere
@pytest.mark.parametrize(("method", "scope"), [
    ("two-way t over seeds and images", "new seeds and new test images, this training set"),
    (
        "two-way t over seeds and images, out-of-fold predictions",
        "new seeds and new test images, these training sets",
    ),
    ("t over seeds", "new seeds, this training and test set"),
    ("t over seeds, means over folds", "new seeds, these folds"),
    ("Welch over seeds, unpaired", "new seeds, this training and test set"),
    ("corrected resampled t over folds (Nadeau-Bengio)", "new training sets and new test images"),
    ("corrected resampled t over splits (Nadeau-Bengio)", "new training sets and new test images"),
])  # fmt: skip
def test_methods_and_scopes_are_stored_as_before(method: str, scope: str):
    assert {str(known): known.scope for known in Method}[method] == scope


@pytest.mark.parametrize("word", ["better", "worse", "equivalent", "inconclusive", "no test"])
def test_a_verdict_is_written_as_before_and_known_by_its_parts(word: str):
    significant = word in ("better", "worse")
    for written in (word, f"{word}, negligible") if significant else (word,):
        said = Verdict(written)
        assert (f"{said}", said.word, said.significant) == (written, word, significant)
        assert said.negligible == (written != word)


# Several splits
def make_splits(
    study: Path, n_splits: int, n_seeds: int, n_images: int = 20, same_images: bool = False, **options: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Two arms on several splits, each with its own test images; (splits, seeds, images) of what was drawn."""
    both = []
    for arm, effect in (("arctan", 0.03), ("sigmoid", 0.0)):
        of_arm = []
        for j in range(n_splits):
            names = [f"i{0 if same_images else j}-{n:02}x" for n in range(n_images)]
            candidate, reference = drawn(n_seeds, n_images, effect + 0.01 * j, rng=j)
            dice_SN = candidate if arm == "arctan" else reference
            per_seed = bool(options.get("split.per_seed"))
            make_arm(
                study,
                arm,
                dice_SN,
                {"split.seed": 0 if per_seed else j, **options},
                prefix=f"j{j}",
                first_seed=j if per_seed else 0,
                split_sha=f"{j}" * 64,
                names=names,
                summary={"n_test_groups": n_images, "n_train_groups": 3 * n_images, "n_train": 10**6},
            )
            of_arm.append(exact(dice_SN))
        both.append(np.array(of_arm))
    return both[0], both[1]


@pytest.mark.parametrize(("n_splits", "n_seeds", "options"), [(5, 1, {"split.per_seed": True}), (4, 3, {})])
def test_splits_are_pooled_into_one_answer(tmp_path: Path, n_splits: int, n_seeds: int, options: dict[str, Any]):
    candidate_JSN, reference_JSN = make_splits(tmp_path / "s", n_splits, n_seeds, **options)
    result = compare([tmp_path])
    found, means_J = only(result), (candidate_JSN - reference_JSN).mean(axis=(1, 2))
    share = 20 / 60  # of groups
    assert (found.method, found.scope) == (Method.OVER_SPLITS, "new training sets and new test images")
    assert (found.n_splits, found.n_folds, found.n_seeds) == (n_splits, 0, n_seeds)
    assert (found.overall.mean, found.overall.df) == (pytest.approx(means_J.mean()), n_splits - 1)
    assert found.overall.se == pytest.approx(means_J.std(ddof=1) * math.sqrt(1 / n_splits + share))
    assert found.split_floor_se == pytest.approx(means_J.std(ddof=1) * math.sqrt(share))
    assert found.split_floor == pytest.approx(2.8 * found.split_floor_se, rel=0.01)
    assert math.isnan(found.test_set.mean)
    # Splits share images: as if they were independent, an interval of the share won would be too narrow.
    assert found.wins == (means_J > 0).sum()
    assert math.isnan(found.wins_low)
    assert math.isnan(found.wins_high)
    assert set(found.variance) == {"split", "seed", "image", "residual"}
    assert math.isnan(found.variance["seed"]) == (n_seeds == 1)
    assert mentions(found.warnings[0], f"{n_splits} splits", "images")
    arms = {arm.arm: arm for arm in result.blocks[0].ranking}
    assert arms["arctan"].mean == pytest.approx(candidate_JSN.mean())
    assert (arms["arctan"].n_splits, arms["arctan"].n_folds) == (n_splits, 0)
    assert arms["arctan"].interval.se == pytest.approx(
        candidate_JSN.mean(axis=(1, 2)).std(ddof=1) * math.sqrt(1 / n_splits + share)
    )


def test_images_of_several_splits_are_counted_once_and_only_with_a_score(tmp_path: Path):
    for j in range(3):  # neighbouring splits share 10 of 20 images
        dice_SN = drawn(1, 20, rng=j)
        for arm, of_arm in zip(("arctan", "sigmoid"), dice_SN, strict=True):
            names = [f"i{10 * j + n:02}x" for n in range(20)]
            make_arm(tmp_path, arm, of_arm, {"split.seed": j}, prefix=f"j{j}", split_sha=f"{j}" * 64, names=names)
    loaded = load_checked([tmp_path])
    runs = []
    for run in loaded.runs:
        images = run.images
        assert images is not None
        n_reference_NF = images.layout.n_reference_NF.copy()
        n_reference_NF[0] = 0  # the first image of each split has an empty mask: i00x, i10x, i20x
        layout = replace(images.layout, n_reference_NF=n_reference_NF)
        runs.append(replace(run, images=replace(images, layout=layout)))
    result = compare([tmp_path], loaded=replace(loaded, runs=tuple(runs)))
    found, ranked = only(result), result.blocks[0].ranking[0]
    assert found.method == Method.OVER_SPLITS
    # i10x and i20x are scored in the split before.
    assert (found.n_images, found.n_groups, found.unit) == (39, 39, "image")
    assert (ranked.n_images, ranked.n_groups) == (39, 39)


def test_splits_of_the_same_test_images_are_not_pooled(tmp_path: Path):
    make_splits(tmp_path / "s", 3, 5, same_images=True)
    result = compare([tmp_path])
    assert [block.comparisons[0].method for block in result.blocks] == [Method.TWO_WAY] * 3


def test_a_split_that_one_arm_lacks_is_left_out(tmp_path: Path):
    candidate_JSN, reference_JSN = make_splits(tmp_path / "s", 4, 1)
    shutil.rmtree(tmp_path / "s" / "run-j3arctan0")
    result = compare([tmp_path])
    found = only(result)
    assert (found.method, found.n_splits) == (Method.OVER_SPLITS, 3)
    assert found.overall.mean == pytest.approx((candidate_JSN - reference_JSN)[:3].mean())
    assert mentions(found.dropped, "split 3", "reference")
    assert mentions(result.blocks[0].warnings[-1], "arctan", "splits")
    shutil.rmtree(tmp_path / "s" / "run-j2sigmoid0")
    assert only(compare([tmp_path])).verdict == Verdict.NO_TEST


def test_a_fixed_split_stands_beside_several(tmp_path: Path):
    make_splits(tmp_path / "s", 3, 1, **{"split.per_seed": True})
    make_pair(tmp_path / "fixed", config={"split.per_seed": False, "split.seed": 0})
    result = compare([tmp_path / "s", tmp_path / "fixed"])
    assert [block.conditions for block in result.blocks] == [{"split": "5" * 8}, {"split": "several"}]


def test_cross_validation_has_a_verdict_about_new_training_sets_too(tmp_path: Path):
    candidate_KN, reference_KN = make_folds(tmp_path, [20] * 5, 3)
    found = only(compare([tmp_path]))
    assert found.method == Method.OUT_OF_FOLD
    again = found.new_training_sets
    assert again is not None
    means_F = (candidate_KN - reference_KN).mean(axis=0).reshape(5, 20).mean(axis=1)
    expected = corrected_resampled(means_F, [20] * 5, [80] * 5)
    assert (again.method, again.scope) == (Method.OVER_FOLDS, Method.OVER_FOLDS.scope)
    assert (again.overall.mean, again.overall.p) == (pytest.approx(expected.mean), pytest.approx(expected.p))
    assert again.verdict != Verdict.NO_TEST
    assert again.p_holm == pytest.approx(again.overall.p)
    assert math.isfinite(again.split_floor)


def test_folds_that_share_images_are_refused(tmp_path: Path):
    make_folds(tmp_path, [10] * 3, 3)
    for run in tmp_path.glob("*1s*"):  # fold 1 has the images of fold 0, as validation images may be
        images = run / "images.csv"
        images.write_text(images.read_text().replace("f1i", "f0i"))
        record = json.loads((run / "run.json").read_text())
        record["sha256"]["images"] = hashlib.sha256(images.read_bytes()).hexdigest()
        (run / "run.json").write_text(json.dumps(record))
    with pytest.raises(UsageError) as error:
        compare([tmp_path])
    assert mentions(str(error.value), "--split test", "--metric val_dice")


def test_repeated_cross_validation_is_pooled(tmp_path: Path):
    for repeat in range(2):
        make_folds(tmp_path / f"r{repeat}", [10] * 3, 1, repeat=repeat)
    found = only(compare([tmp_path / "r0", tmp_path / "r1"]))
    assert (found.method, found.n_splits, found.overall.df) == (Method.OVER_SPLITS, 6, 5)


def test_equivalence_over_splits_has_its_condition_too(tmp_path: Path):
    _, reference_JSN = make_splits(tmp_path / "s", 5, 1, **{"split.per_seed": True})
    found = only(compare([tmp_path], rope=50))
    assert found.verdict.negligible
    assert (found.n_images, len(found.units), found.unit) == (100, 100, "image")
    assert "3/100" in found.condition
    assert found.reference_N == pytest.approx(reference_JSN.ravel())
