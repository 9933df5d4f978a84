import json
from pathlib import Path

import numpy as np
import pytest
import torch

from segexp.api import confusion_counts
from segexp.evaluation.predict import mask_counts
from segexp.losses import IGNORE, class_masks, valid_pixels


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


def test_no_count_takes_in_a_pixel_that_is_not_valid() -> None:
    """Whatever the masks hold there."""
    said, truth = torch.tensor([True, True, False, False]), torch.tensor([True, False, True, False])
    planes = said.view(1, 1, 1, 4), truth.view(1, 1, 1, 4)
    assert mask_counts(*planes, torch.zeros(1, 1, 4, dtype=torch.bool)).tolist() == [[[0, 0, 0]]]
    assert mask_counts(*planes, torch.ones(1, 1, 4, dtype=torch.bool)).tolist() == [[[1, 1, 1]]]


def test_nothing_is_read_back_from_the_device() -> None:
    """A tensor on "meta" has no content: whatever looked at one would raise."""
    prediction = torch.zeros(2, 4, 4, dtype=torch.int64, device="meta")
    target = torch.zeros(2, 4, 4, dtype=torch.uint8, device="meta")
    counts = confusion_counts(prediction, target, 3, IGNORE)
    assert (counts.device.type, counts.dtype, counts.shape) == ("meta", torch.int64, (2, 2, 3))
    with pytest.raises((RuntimeError, NotImplementedError)):
        int(counts.sum())


def test_shapes_that_differ_are_refused() -> None:
    """They would broadcast silently."""
    with pytest.raises(ValueError, match=r"\(1, 4, 4\).*\(2, 4, 4\)"):
        confusion_counts(torch.zeros(1, 4, 4), torch.zeros(2, 4, 4), 2)


@pytest.mark.parametrize("num_classes", [1, 0, -1])
def test_the_background_is_a_class(num_classes: int) -> None:
    with pytest.raises(ValueError, match="at least 2"):
        confusion_counts(torch.zeros(1, 2, 2, dtype=torch.long), torch.zeros(1, 2, 2, dtype=torch.long), num_classes)


def test_golden_cases(shared_dir: Path) -> None:
    cases = json.loads((shared_dir / "golden" / "metric_cases.json").read_text())["cases"]
    assert cases
    for case in cases:
        prediction, target = torch.tensor(case["prediction"]), torch.tensor(case["target"])
        counts = confusion_counts(prediction, target, case["num_classes"], case["ignore_index"])
        assert counts.tolist() == case["counts_tp_fp_fn"], case["name"]
