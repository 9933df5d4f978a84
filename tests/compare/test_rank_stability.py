"""The stability of the ranking: known orders, what all arms share, and how often equal arms seem to differ."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_scores import edit_record, make_arm
from messages import one_mentions

from segexp.compare.questions import answers_of, ranking
from segexp.compare.questions.ranking import bootstrap
from segexp.compare.result import Answer
from segexp.compare.verdict import compare

ARMS = ("sigmoid", "arctan", "softsign", "laplace")


def scores(rng: np.random.Generator, K: int = 5, N: int = 40, **gains: float) -> dict[str, np.ndarray]:
    """Arm -> Dice (seeds, images): what seeds and images do to all arms, the gain of each, and some noise."""
    shared = 0.7 + 0.05 * rng.standard_normal(N) + 0.02 * rng.standard_normal((K, 1))
    return {arm: shared + gain + 0.003 * rng.standard_normal((K, N)) for arm, gain in gains.items()}


def answer_of(study: Path, **options: Any) -> Answer:
    result = compare([study], **options)
    (found,) = answers_of(result.blocks[0], ["ranking"], result.split, result.metric)
    return found


def ranked(answer: Answer) -> dict[str, tuple[float, ...]]:
    return {row["arm"]: tuple(row[key] for key in ("rank", "rank_low", "rank_high", "p_best")) for row in answer.rows}


def make(study: Path, made: dict[str, np.ndarray], **changes: Any) -> None:
    for arm, dice_KN in made.items():
        make_arm(study, arm, dice_KN, **changes)


def test_a_clear_order_is_certain_and_identical_arms_share_their_rank(tmp_path: Path):
    made = scores(np.random.default_rng(1), sigmoid=0.0, arctan=0.05, softsign=-0.05)
    make(tmp_path, made | {"laplace": made["arctan"]})
    answer = answer_of(tmp_path)
    tied, first = (1.5, 1.5, 1.5, 0.5), answer.rows[0]
    assert ranked(answer) == {"arctan": tied, "laplace": tied, "sigmoid": (3, 3, 3, 0), "softsign": (4, 4, 4, 0)}
    assert first["mean"] == pytest.approx(made["arctan"].mean(), abs=1e-5)
    assert one_mentions(answer.notes, "not a test", "5 seeds", "40 images")
    (panel,) = answer.panels
    assert panel.x_label
    assert panel.y_label
    assert [(c.arm, c.x, c.low, c.high) for c in panel.curves][2] == ("sigmoid", (3,), (3,), (3,))
    assert answer == answer_of(tmp_path), "the same again"


def test_seeds_and_images_that_an_arm_lacks_are_left_out_of_all_and_named(tmp_path: Path):
    made = scores(np.random.default_rng(2), sigmoid=0.0, arctan=0.02)
    make(tmp_path, {"sigmoid": made["sigmoid"]}, names=[f"i{n}" for n in range(40)])
    make(tmp_path, {"arctan": made["arctan"][:4, 3:]}, names=[f"i{n}" for n in range(3, 40)])
    answer = answer_of(tmp_path)
    assert one_mentions(answer.notes, "seed 4", "3 images", "not all arms")
    assert one_mentions(answer.notes, "4 seeds", "37 images")
    assert answer.rows[1]["mean"] == pytest.approx(made["sigmoid"][:4, 3:].mean(), abs=1e-5)
    make_arm(tmp_path, "softsign", made["sigmoid"][:2])
    few = answer_of(tmp_path)
    assert not few.panels
    assert all("rank" not in row for row in few.rows)
    assert one_mentions(few.notes, "2 seeds", "needs 3")


def test_groups_are_drawn_as_wholes_and_two_are_too_few(tmp_path: Path):
    make(tmp_path, scores(np.random.default_rng(3), sigmoid=0, arctan=0.02), groups=[f"p{n // 10}" for n in range(40)])
    assert one_mentions(answer_of(tmp_path).notes, "4 groups")
    other = scores(np.random.default_rng(3), sigmoid=0, arctan=0.02)
    make(tmp_path / "few", other, groups=[f"p{n // 20}" for n in range(40)])
    assert one_mentions(answer_of(tmp_path / "few").notes, "2 groups", "needs 3")


def test_lower_is_better_and_a_score_without_values_of_images_draws_seeds_alone(tmp_path: Path):
    for n, (arm, dice_KN) in enumerate(scores(np.random.default_rng(4), sigmoid=0, arctan=0.05, softsign=0).items()):
        for seed, dice_N in enumerate(dice_KN):
            error = {"ece15": 0.1 * (3 - n) + 0.01 * (seed * 7 % 3)}
            make_arm(tmp_path, arm, [dice_N], first_seed=seed, summary=error)
    answer = answer_of(tmp_path, metric="ece15")
    assert {arm: found[0] for arm, found in ranked(answer).items()} == {"softsign": 1, "arctan": 2, "sigmoid": 3}
    assert one_mentions(answer.notes, "5 seeds,")
    assert answer.titles["mean"] == "mean ECE (15 bins)"


def test_several_splits_are_drawn_instead_of_seeds_and_images(tmp_path: Path):
    for split in range(4):
        of_split = {"split.seed": split}
        for arm, dice_KN in scores(np.random.default_rng(split), 2, sigmoid=0.0, arctan=0.05).items():
            names = [f"i{split}x{n}" for n in range(40)]
            make_arm(tmp_path, arm, dice_KN, of_split, f"s{split}", split_sha=f"{split}" * 64, names=names)
    answer = answer_of(tmp_path)
    assert one_mentions(answer.notes, "4 splits,")
    assert ranked(answer)["arctan"] == (1, 1, 1, 1)


def test_folds_are_rows_of_seeds_where_three_seeds_have_all_of_them(tmp_path: Path):
    made = {fold: scores(np.random.default_rng(fold), 3, sigmoid=0.0, arctan=0.05) for fold in range(3)}
    for fold, of_fold in made.items():
        for arm, dice_KN in of_fold.items():
            names = [f"i{fold}x{n}" for n in range(40)]
            split = {"split.fold": fold, "split.folds": 3}
            make_arm(tmp_path, arm, dice_KN, split, f"f{fold}", split_sha=f"{fold}" * 64, names=names)
    answer = answer_of(tmp_path)
    assert one_mentions(answer.notes, "3 seeds", "120 images")
    assert answer.rows[0]["mean"] == pytest.approx(np.mean([made[f]["arctan"].mean() for f in made]), abs=1e-5)
    edit_record(tmp_path / "run-f0arctan2", status="failed")
    answer = answer_of(tmp_path)
    assert one_mentions(answer.notes, "3 folds,")
    assert one_mentions(answer.notes, "fold 0, seed 2", "not all arms")


NULLS = [
    *((A, K, 30, (1, 1, 1)) for A, K in ((2, 5), (5, 5), (12, 3), (12, 10))),
    *((A, K, 1, (1, 0, 0)) for A, K in ((2, 3), (2, 5), (12, 3), (12, 10))),
    (5, 5, 30, (1, 3, 5)),
]


@pytest.mark.slow
@pytest.mark.parametrize(("A", "K", "N", "sds"), NULLS)
def test_the_rank_intervals_of_equally_good_arms_overlap(
    A: int, K: int, N: int, sds: tuple[float, float, float], monkeypatch: pytest.MonkeyPatch
):
    """In 95 % of 2,000 studies all of them do; sds: of seeds, images and the rest, in an arm."""
    monkeypatch.setattr(ranking, "DRAWS", 500)
    rng, apart = np.random.default_rng([A, K, N]), 0
    for _ in range(2000):
        seeds, images, rest = (
            sd * rng.standard_normal(s) for sd, s in zip(sds, ((A, K, 1), (A, 1, N), (A, K, N)), strict=True)
        )
        _, low_A, high_A, _ = bootstrap(seeds + images + rest, higher_is_better=True, crossed=N > 1)
        apart += low_A.max() > high_A.min()
    print(f"\n{A} arms, {K} seeds, {N} images, {sds}: {apart / 2000:.4f} do not overlap")
    assert apart / 2000 <= 0.05 + 3.1 * math.sqrt(0.05 * 0.95 / 2000)
