"""Volumes scored as one: against the counts of their slices in numpy, and against images."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from segexp.activations.head import make_head
from segexp.activations.output import OUTPUT_ACTIVATIONS
from segexp.evaluation import case_means, case_sums
from segexp.evaluation.boundary import boundary_scores
from segexp.evaluation.objects import match_objects
from segexp.evaluation.predict import Scored, Units, epoch_scores
from segexp.evaluation.score import Conventions, FittedOnValidation, SplitScores, fit_on_validation, split_scores
from segexp.losses import IGNORE, LOSSES

CONVENTIONS = Conventions(range(1, 3), "independent", "reference", boundary_band=1, surface_tolerance=2.0)
CASES = ("b", "a", "b", "b", "a", "", "c", "a")
"""The slices of two volumes are mixed; image 5 is of no volume, c has a single slice."""

GROUPS = ("p", "q", "p", "p", "q", "", "p", "q")
IDS = tuple(f"slice {n}" for n in range(8))
SPACING = (5.0, 0.75, 0.5)
UNITS = Units(IDS, GROUPS, CASES, [SPACING] * 8)


def scored(order: list[int], size: int = 3) -> list[Scored]:
    """Predictions of the slices in this order; some pixels of each are ignored, all of slice 3."""
    draw = torch.Generator().manual_seed(0)
    target = torch.randint(0, 3, (8, 9, 7), generator=draw)
    logits = 3 * torch.randn(8, 2, 9, 7, dtype=torch.float64, generator=draw)
    logits += 6 * torch.stack([target == 1, target == 2], dim=1) - 3
    target[torch.rand(target.shape, generator=draw) < 0.2] = IGNORE
    target[3] = IGNORE
    found = []
    for start in range(0, len(order), size):
        part = order[start : start + size]
        prediction = make_head(OUTPUT_ACTIVATIONS["sigmoid"], "independent")(logits[part])
        found.append(Scored(tuple(part), prediction, target[part].byte(), (prediction, target[part].byte())))
    return found


def fitted() -> FittedOnValidation:
    return fit_on_validation(scored([*range(8)]), "independent", 500)


def scores(units: Units, size: int = 3) -> SplitScores:
    return split_scores(scored(units.in_order(range(8)), size), "test", units, fitted(), CONVENTIONS)


def masks_of(members: list[int], f: int) -> tuple[np.ndarray, np.ndarray]:
    """Prediction and reference of a class in these slices, (D, H, W)."""
    (batch,) = scored(members, size=len(members))
    valid = (batch.target_NHW != IGNORE).numpy()
    return batch.prediction.foreground_NFHW()[:, f].numpy() & valid, (batch.target_NHW == f + 1).numpy()


def test_rows_are_those_of_the_pooled_slices() -> None:
    by_slice = scores(dataclasses.replace(UNITS, case_ids=())).images
    found = scores(UNITS)
    assert [(row["image_id"], row["group_id"]) for row in found.images[::2]] == [
        ("b", "p"), ("a", "q"), ("slice 5", ""), ("c", "p"),
    ]  # fmt: skip
    assert (found.summary["n_test_cases"], found.summary["distance_unit"]) == (4, "mm")
    for row in found.images:
        members = [n for n in range(8) if row["image_id"] in (CASES[n], IDS[n])]
        of_slices = [
            r for r in by_slice if r["image_id"] in [IDS[n] for n in members] and r["class_id"] == row["class_id"]
        ]
        for name in ("tp", "fp", "fn", "n_valid", "n_gt", "n_pred"):
            assert row[name] == sum(r[name] for r in of_slices), name
        assert row["dice"] == 2 * row["tp"] / (row["n_gt"] + row["n_pred"])
        for name in ("nll", "brier"):
            wanted = sum(r[name] * r["n_valid"] for r in of_slices if r["n_valid"]) / row["n_valid"]
            assert row[name] == pytest.approx(wanted, rel=1e-12)
        volume = masks_of(members, row["class_id"] - 1)
        masks, spacing = (volume, SPACING) if len(members) > 1 else ([m[0] for m in volume], SPACING[1:])
        assert (row["nsd"], row["hd95"]) == boundary_scores(masks[0], masks[1], 2.0, spacing)
        matched = match_objects(masks[0], masks[1])
        assert tuple(row[name] for name in ("object_f1_10", "object_f1_50", "sq", "pq")) == matched.scores()
        objects = [r for r in found.objects if (r["image_id"], r["class_id"]) == (row["image_id"], row["class_id"])]
        assert [r["n_pixels"] for r in objects] == matched.size_R.tolist()
    # The Dice of each case chooses examples, shown by the slice that holds most of the reference.
    of_cases = [
        [r["dice"] for r in found.images if r["image_id"] == case and r["n_gt"]] for case in ("b", "a", "slice 5", "c")
    ]
    assert found.unit_scores_N == pytest.approx([np.mean(dice) for dice in of_cases])
    held = {IDS[n]: sum(r["n_gt"] for r in by_slice if r["image_id"] == IDS[n]) for n in range(8)}
    for case, shown in zip(("b", "a", "slice 5", "c"), found.indices_N, strict=True):
        assert held[IDS[shown]] == max(held[IDS[n]] for n in range(8) if case in (CASES[n], IDS[n]))


def test_the_summary_and_the_thresholds_are_of_cases() -> None:
    found = scores(UNITS)
    dice = {(row["image_id"], row["class_id"]): row["dice"] for row in found.images}
    of_groups = [np.mean([dice[case, c] for c in (1, 2)]) for case in ("b", "a", "slice 5", "c")]
    assert found.summary["dice"] == pytest.approx(np.mean([np.mean([of_groups[0], of_groups[3]]), *of_groups[1:3]]))
    assert found.dice_T[np.flatnonzero(found.thresholds_T == 0)[0]] == pytest.approx(found.summary["dice"])
    pooled = scores(dataclasses.replace(UNITS, case_ids=()))
    for name in ("dice_micro", "iou_micro", "auroc", "ap", "ece15"):
        assert found.summary[name] == pytest.approx(pooled.summary[name], rel=1e-12), name


@pytest.mark.parametrize("size", [1, 8])
def test_the_batch_size_changes_nothing(size: int) -> None:
    a, b = scores(UNITS, size), scores(UNITS)
    assert (a.images, a.objects, a.thresholds) == (b.images, b.objects, b.thresholds)


def test_volumes_of_one_slice_are_scored_as_images() -> None:
    alone = [n for n in range(8) if n != 3]  # without a valid pixel there is no mean

    def rows(units: Units) -> list[dict[str, Any]]:
        return split_scores(scored(alone), "test", units, fitted(), CONVENTIONS).images

    one_each = dataclasses.replace(UNITS, case_ids=[f"case {n}" for n in range(8)])
    images = rows(dataclasses.replace(UNITS, case_ids=()))
    cases = [row | {"image_id": row["image_id"].replace("case", "slice")} for row in rows(one_each)]
    assert [{k: v for k, v in r.items() if k not in ("nll", "brier")} for r in cases] == [
        {k: v for k, v in r.items() if k not in ("nll", "brier")} for r in images
    ]
    for name in ("nll", "brier"):
        assert [r[name] for r in cases] == pytest.approx([r[name] for r in images], rel=1e-12)


def test_validation_selects_the_epoch_by_the_score_of_cases() -> None:
    loss = LOSSES.find("dice").function
    of_epoch = epoch_scores(scored(UNITS.in_order(range(8))), loss, UNITS, "reference")
    of_split = scores(UNITS).summary
    for name in ("dice", "dice_micro", "iou_micro", "nll", "brier"):
        assert getattr(of_epoch, name) == pytest.approx(of_split[name], rel=1e-12), name
    by_image = epoch_scores(scored([*range(8)]), loss, dataclasses.replace(UNITS, case_ids=()), "reference")
    assert by_image.dice != of_epoch.dice


def test_means_over_a_case_weigh_pixels_and_leave_out_slices_without_any() -> None:
    assert case_sums(np.array([[1], [2], [4]]), "aba").tolist() == [[5], [2]]
    nan = float("nan")
    assert case_means(np.array([1.0, 5.0, nan, 3.0]), np.array([3, 2, 0, 1]), "abaa").tolist() == [6 / 4, 5.0]
    assert np.isnan(case_means(np.array([nan]), np.array([0]), "a")).all()
