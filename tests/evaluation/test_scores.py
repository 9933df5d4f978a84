import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from segexp.api import confusion_counts
from segexp.evaluation import (
    dice_and_iou,
    fp_rate_empty,
    group_cells,
    group_means,
    image_scores,
    linearised_scores,
    micro_scores,
    primary_score,
)
from segexp.evaluation.predict import mask_counts
from segexp.losses import IGNORE, class_masks, valid_pixels

NAN = float("nan")


def no_groups(n: int) -> tuple[str, ...]:
    return ("",) * n


def all_scores(counts_NF3: np.ndarray) -> dict[str, float]:
    """Every score of a data set without groups, under the names of the golden cases."""
    dice_NF, iou_NF = dice_and_iou(counts_NF3)
    n_gt = counts_NF3[..., 0] + counts_NF3[..., 2]
    groups = no_groups(len(counts_NF3))
    dice_micro, iou_micro = micro_scores(counts_NF3)
    return {
        "dice": primary_score(dice_NF, n_gt, groups),
        "iou": primary_score(iou_NF, n_gt, groups),
        "dice_micro": dice_micro,
        "iou_micro": iou_micro,
        "fp_rate_empty": fp_rate_empty(counts_NF3),
        "dice_both_empty_one": primary_score(dice_NF, n_gt, groups, "both_empty_one"),
    }


Case = tuple[list[str], list[str], int, list[list[float]], list[float]]

# Predicted and true label maps, a string of 4 pixels per image (x: ignored); number of classes; Dice per image and
# class; the values of `all_scores`.
HAND: dict[str, Case] = {
    "half overlap": (["0110"], ["1100"], 2, [[0.5]], [1 / 2, 1 / 3, 1 / 2, 1 / 3, NAN, 1 / 2]),
    "all foreground ignored": (["1100"], ["xx00"], 2, [[NAN]], [NAN, NAN, NAN, NAN, 0, 1]),
    "one right, one empty, one false alarm": (
        ["1100", "0000", "0001"], ["1100", "0000", "0000"], 2, [[1.0], [NAN], [0.0]],
        [1, 1, 4 / 5, 2 / 3, 1 / 2, 2 / 3],
    ),
    "classes on different images": (
        ["1100", "0020"], ["1100", "0022"], 3, [[1.0, NAN], [NAN, 2 / 3]], [5 / 6, 3 / 4, 5 / 6, 3 / 4, 0, 11 / 12],
    ),
}  # fmt: skip


def label_maps(rows: Sequence[str]) -> torch.Tensor:
    return torch.tensor([[[255 if c == "x" else int(c) for c in row]] for row in rows])


@pytest.mark.parametrize("name", HAND)
def test_by_hand(name: str) -> None:
    predicted, true, num_classes, cells, expected = HAND[name]
    counts = confusion_counts(label_maps(predicted), label_maps(true), num_classes, 255).numpy()
    assert dice_and_iou(counts)[0] == pytest.approx(np.array(cells), nan_ok=True, abs=1e-15)
    assert list(all_scores(counts).values()) == pytest.approx(expected, nan_ok=True, abs=1e-15)


def test_golden_cases(shared_dir: Path) -> None:
    def with_nan(value: Any) -> Any:
        return NAN if value is None else [with_nan(v) for v in value] if isinstance(value, list) else value

    cases = json.loads((shared_dir / "golden" / "metric_cases.json").read_text())["cases"]
    assert cases
    for case in cases:
        prediction, target = torch.tensor(case["prediction"]), torch.tensor(case["target"])
        counts = confusion_counts(prediction, target, case["num_classes"], case["ignore_index"]).numpy()
        assert counts.tolist() == case["counts_tp_fp_fn"], case["name"]
        dice_NF, iou_NF = dice_and_iou(counts)
        wanted_dice, wanted_iou = (np.array(with_nan(case[f"per_image_{name}"])) for name in ("dice", "iou"))
        assert dice_NF == pytest.approx(wanted_dice, nan_ok=True, abs=1e-12), case["name"]
        assert iou_NF == pytest.approx(wanted_iou, nan_ok=True, abs=1e-12), case["name"]
        scores = all_scores(counts)
        assert scores.keys() == case["expected"].keys()
        for score, expected in case["expected"].items():
            assert scores[score] == pytest.approx(with_nan(expected), nan_ok=True, abs=1e-12), (case["name"], score)


def test_counts_beyond_float32_stay_exact() -> None:
    """One wrong pixel in a volume of 2^31 still shows; float32 would call it perfect."""
    dice_NF, iou_NF = dice_and_iou(np.array([[[2**31, 1, 0]]]))
    assert dice_NF.dtype == iou_NF.dtype == np.float64
    assert (dice_NF[0, 0], iou_NF[0, 0]) == (2**32 / (2**32 + 1), 2**31 / (2**31 + 1))


def random_counts(seed: int, n: int = 13, n_classes: int = 3) -> np.ndarray:
    """Counts in which classes are often absent from reference, prediction or both."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 50, (n, n_classes, 3))
    counts[rng.random((n, n_classes)) < 0.4] *= np.array([0, 1, 0])
    counts[rng.random((n, n_classes)) < 0.3] *= np.array([1, 0, 1])
    return counts


@pytest.mark.parametrize("seed", range(5))
def test_mean_of_image_scores_is_the_mean_over_classes_of_means_over_images(seed: int) -> None:
    counts = random_counts(seed)
    dice_NF, _ = dice_and_iou(counts)
    held = counts[..., 0] + counts[..., 2] > 0
    u_N = image_scores(dice_NF, held)
    by_class = [dice_NF[held[:, c], c].mean() for c in range(dice_NF.shape[1])]
    assert np.nanmean(u_N) == pytest.approx(np.mean(by_class), abs=1e-14)
    assert primary_score(dice_NF, held, no_groups(len(held))) == pytest.approx(np.mean(by_class), abs=1e-14)


def test_image_without_foreground_does_not_enter() -> None:
    """Not even with false alarms, and a class that no image holds has no say either."""
    cells = np.array([[1.0, NAN, 0.0], [0.0, 0.0, 0.0], [0.5, 0.25, NAN]])
    held = np.array([[1, 0, 0], [0, 0, 0], [1, 1, 0]])
    # N = 2 images hold something, C' = 2 classes occur, on 2 and 1 images.
    wanted = [(2 / 2) * (1.0 / 2), NAN, (2 / 2) * (0.5 / 2 + 0.25 / 1)]
    assert image_scores(cells, held) == pytest.approx(np.array(wanted), nan_ok=True, abs=1e-15)


def test_a_model_cannot_choose_its_own_sample() -> None:
    """Two models alike where there is something to find. The bold one raises a false alarm on every empty image, the
    shy one on none: leaving out images that both call empty, or scoring the others 0, would part them by 30 points."""
    n_found, n_empty = 6, 4
    truth = torch.zeros(n_found + n_empty, 4, 4, dtype=torch.int64)
    truth[:n_found, :2] = 1
    shy = truth.clone()
    shy[:n_found, 0, 0] = 0
    bold = shy.clone()
    bold[n_found:, 3, 3] = 1
    counts = {name: confusion_counts(said, truth, 2).numpy() for name, said in (("shy", shy), ("bold", bold))}
    scores = {name: all_scores(table) for name, table in counts.items()}
    assert scores["shy"]["dice"] == scores["bold"]["dice"] == pytest.approx(14 / 15)
    assert (scores["shy"]["fp_rate_empty"], scores["bold"]["fp_rate_empty"]) == (0.0, 1.0)

    own_sample = {name: np.nanmean(dice_and_iou(table)[0]) for name, table in counts.items()}
    assert own_sample["shy"] - own_sample["bold"] > 0.3
    u = {name: image_scores(dice_and_iou(t)[0], t[..., 0] + t[..., 2]) for name, t in counts.items()}
    assert np.array_equal(np.isnan(u["shy"]), np.isnan(u["bold"])), "one sample for all models"


def test_groups_weigh_alike_and_an_image_without_group_is_its_own() -> None:
    values = np.array([1.0, 0.0, 0.5, NAN, 0.25, NAN, 0.5])
    groups = ("b", "a", "b", "a", "", "c", "")
    assert group_means(values, groups) == pytest.approx(np.array([0.75, 0.0, 0.25, NAN, 0.5]), nan_ok=True)
    with pytest.raises(ValueError, match="zip"):
        group_means(np.zeros(2), ("a",))
    cells, held = np.array([[1.0], [1.0], [1.0], [0.0]]), np.ones((4, 1))
    assert primary_score(cells, held, ("p", "p", "p", "q")) == 0.5
    assert primary_score(cells, held, no_groups(4)) == 0.75
    # A group of undefined images stays out of the mean.
    assert primary_score(np.array([[0.5], [NAN], [0.0]]), np.array([[1], [0], [0]]), ("p", "q", "q")) == 0.5


def some_cells(seed: int, n: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Dice of three classes, in all, most and a third of the images, and where they are; some images hold none."""
    rng = np.random.default_rng(seed)
    held = rng.random((n, 3)) < np.array([1.0, 0.7, 0.35])
    held[: n // 10] = False
    return np.where(held, rng.random((n, 3)) * np.array([0.2, 0.5, 1.0]), NAN), held


def test_linearised_scores_by_formula() -> None:
    """Of images: m + (1 / C') sum of N / N_c (d_ic - A_c) over the classes that an image holds."""
    cells, held = some_cells(0)
    N, means = held.any(axis=1).sum(), np.nanmean(cells, axis=0)
    terms = np.where(held, (cells - means) * N / held.sum(axis=0), 0).sum(axis=1)
    wanted = np.where(held.any(axis=1), means.mean() + terms / 3, NAN)
    assert linearised_scores(cells, held, no_groups(len(held))) == pytest.approx(wanted, nan_ok=True, abs=1e-14)
    # In 9 images of 54 a class is too rare: its terms are those of image_scores.
    held[np.flatnonzero(held[:, 2])[9:], 2] = False
    means = np.nanmean(np.where(held, cells, NAN), axis=0)
    factor = N / held.sum(axis=0)
    terms = np.where(held, (cells - means * [1, 1, 0]) * factor, 0).sum(axis=1)
    wanted = np.where(held.any(axis=1), means[:2].sum() / 3 + terms / 3, NAN)
    assert linearised_scores(cells, held, no_groups(len(held))) == pytest.approx(wanted, nan_ok=True, abs=1e-14)


def test_linearised_scores_of_groups_are_the_derivative_of_the_score() -> None:
    """An infinitesimal jackknife: what a group's value adds to the mean is what its weight does to the score."""
    cells, held = some_cells(1)
    groups = tuple(f"p{int(n**0.8)}" for n in range(len(held)))
    found = linearised_scores(cells, held, groups)
    names = np.array(groups)
    units = [u for u in dict.fromkeys(groups) if held[names == u].any()]

    def score(weight_G: np.ndarray) -> float:
        """The score if group g counted weight_g times: the mean over classes of means over the groups that hold one."""
        total = 0.0
        for c in range(3):
            holding = [held[names == u, c].any() for u in units]
            of_group = [cells[(names == u) & held[:, c], c].sum() / max(held[names == u, c].sum(), 1) for u in units]
            total += float(weight_G @ of_group / (weight_G @ holding))
        return total / 3

    ones = np.ones(len(units))
    here = score(ones)
    assert here == pytest.approx(primary_score(cells, held, groups), abs=1e-14)
    steps = 1e-5 * np.eye(len(units))
    derivative = [len(units) * (score(ones + step) - score(ones - step)) / 2e-5 for step in steps]
    assert found[~np.isnan(found)] == pytest.approx(here + np.array(derivative), abs=1e-8)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("policy", ["reference", "both_empty_one"])
def test_the_mean_of_linearised_scores_is_the_score(seed: int, policy: Any) -> None:
    cells, held = some_cells(seed)
    for groups in (no_groups(len(held)), tuple(f"p{n % 17}" if n % 3 else "" for n in range(len(held)))):
        found = linearised_scores(cells, held, groups, policy)
        assert np.nanmean(found) == pytest.approx(primary_score(cells, held, groups, policy), abs=1e-14)

        def raw(some: np.ndarray, held: np.ndarray, groups: tuple[str, ...] = groups) -> np.ndarray:
            return image_scores(*group_cells(some, held, groups, policy), policy)

        assert np.array_equal(np.isnan(found), np.isnan(raw(cells, held)))
        assert np.array_equal(found, raw(cells, held), equal_nan=True) == (policy == "both_empty_one")
        # One class, or classes that are everywhere: not a bit changes.
        for some in (np.s_[:, [2]], np.s_[:, [0]]):
            one = linearised_scores(cells[some], held[some], groups, policy)
            assert np.array_equal(one, raw(cells[some], held[some]), equal_nan=True)
        everywhere = np.repeat(held[:, [0]], 3, axis=1)
        filled = np.where(everywhere, np.nan_to_num(cells), NAN)
        found = linearised_scores(filled, everywhere, groups, policy)
        assert np.array_equal(found, raw(filled, everywhere), equal_nan=True)
    assert np.isnan(linearised_scores(np.full((3, 2), NAN), np.zeros((3, 2)), no_groups(3))).all()


def test_classes_weigh_alike_however_many_images_a_patient_has() -> None:
    """A class that only patients with few images hold counted for more than one that all hold: a perfect segmentation
    could score 1.75."""
    held = np.array([[1, 0]] * 9 + [[1, 1]])
    groups = ("long",) * 9 + ("short",)
    assert primary_score(np.where(held, 1.0, NAN), held, groups) == 1.0
    assert linearised_scores(np.where(held, 1.0, NAN), held, groups).tolist() == [0.5, 1.5]
    # Class 1: 0.4 of the one, 0.8 of the other; class 2: 0.2.
    cells = np.array([[0.3, NAN], [0.5, NAN]] * 4 + [[0.4, NAN], [0.8, 0.2]])
    assert primary_score(cells, held, groups) == pytest.approx((0.6 + 0.2) / 2)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        held = rng.random((40, 3)) < rng.random(3)
        patients = [f"p{n}" if n else "" for n in rng.integers(0, rng.integers(1, 30), 40)]
        assert primary_score(np.where(held, 1.0, NAN), held, patients) == pytest.approx(1.0, abs=1e-14)


# --- counts -----------------------------------------------------------------------------------------------------


def counts_by_loop(prediction: np.ndarray, target: np.ndarray, num_classes: int, ignore: int | None) -> np.ndarray:
    """tp, fp, fn pixel by pixel."""
    table = np.zeros((len(target), num_classes - 1, 3), dtype=np.int64)
    for (n, y, x), true_class in np.ndenumerate(target):
        said = prediction[n, y, x]
        if ignore is not None and true_class == ignore:
            continue
        for c in range(1, num_classes):
            if said == c and true_class == c:
                table[n, c - 1, 0] += 1
            elif said == c:
                table[n, c - 1, 1] += 1
            elif true_class == c:
                table[n, c - 1, 2] += 1
    return table


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
@pytest.mark.parametrize("ignore", [None, IGNORE])
@pytest.mark.parametrize("num_classes", [2, 3, 5])
def test_random_label_maps(num_classes: int, ignore: int | None, dtype: torch.dtype) -> None:
    rng = np.random.default_rng(num_classes)
    prediction = rng.integers(0, num_classes, (3, 9, 7))
    target = rng.integers(0, num_classes, (3, 9, 7))
    target[rng.random(target.shape) < 0.2] = IGNORE
    counts = confusion_counts(
        torch.tensor(prediction, dtype=dtype), torch.tensor(target, dtype=dtype), num_classes, ignore
    )
    assert counts.dtype == torch.int64
    assert counts.shape == (3, num_classes - 1, 3)
    assert np.array_equal(counts.numpy(), counts_by_loop(prediction, target, num_classes, ignore))


def test_masks_may_overlap() -> None:
    """Independent channels can claim one pixel twice; each class is counted by itself."""
    predicted = torch.ones(1, 2, 2, 2, dtype=torch.bool)
    target = torch.tensor([[[1, 2], [0, IGNORE]]])
    counts = mask_counts(predicted, class_masks(target, range(1, 3)), valid_pixels(target))
    assert counts.tolist() == [[[1, 2, 0], [1, 2, 0]]]


def test_nothing_is_read_back_from_the_device() -> None:
    """A tensor on "meta" has no content: whatever looked at one would raise."""
    prediction = torch.zeros(2, 4, 4, dtype=torch.int64, device="meta")
    target = torch.zeros(2, 4, 4, dtype=torch.uint8, device="meta")
    counts = confusion_counts(prediction, target, 3, IGNORE)
    assert (counts.device.type, counts.dtype, counts.shape) == ("meta", torch.int64, (2, 2, 3))
    with pytest.raises((RuntimeError, NotImplementedError)):
        int(counts.sum())


@pytest.mark.parametrize(("prediction", "target", "num_classes", "words"), [
    # They would broadcast silently.
    (torch.zeros(1, 4, 4), torch.zeros(2, 4, 4), 2, r"\(1, 4, 4\).*\(2, 4, 4\)"),
    (torch.rand(1, 2, 2), torch.zeros(1, 2, 2, dtype=torch.long), 2, "take the argmax"),
    *((torch.zeros(1, 2, 2, dtype=torch.long),) * 2 + (number, "at least 2") for number in (1, 0, -1)),
])  # fmt: skip
def test_maps_that_cannot_be_counted(
    prediction: torch.Tensor, target: torch.Tensor, num_classes: int, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        confusion_counts(prediction, target, num_classes)
