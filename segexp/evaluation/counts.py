"""The kernel every score derives from: true positives, false positives and false negatives as int64.

Counted per image and foreground class, with ignored pixels left out before counting.
"""

from typing import TYPE_CHECKING

from segexp.losses.targets import class_masks, valid_pixels

if TYPE_CHECKING:
    import torch


def mask_counts(
    predicted_NFHW: "torch.Tensor", truth_NFHW: "torch.Tensor", valid_NHW: "torch.Tensor"
) -> "torch.Tensor":
    """tp, fp, fn of boolean masks, one plane per foreground class: int64 (N, F, 3). No host-device sync."""
    import torch

    valid = valid_NHW.unsqueeze(1)
    tp = (predicted_NFHW & truth_NFHW & valid).sum((2, 3))
    fp = (predicted_NFHW & ~truth_NFHW & valid).sum((2, 3))
    fn = (~predicted_NFHW & truth_NFHW & valid).sum((2, 3))
    return torch.stack((tp, fp, fn), dim=2)


def confusion_counts(
    prediction_NHW: "torch.Tensor", target_NHW: "torch.Tensor", num_classes: int, ignore_index: int | None = None
) -> "torch.Tensor":
    """tp, fp, fn of two integer label maps: int64 (N, C - 1, 3), class 0 being the background.

    Pixels whose target is ``ignore_index`` are not counted. Raises ValueError when the shapes differ, when a map holds
    no whole numbers, or when ``num_classes`` is below 2.

    >>> import segexp, torch
    >>> prediction, target = torch.tensor([[[1, 1, 2, 0]]]), torch.tensor([[[1, 0, 2, 255]]])
    >>> segexp.confusion_counts(prediction, target, num_classes=3, ignore_index=255).tolist()
    [[[1, 1, 0], [1, 0, 0]]]
    """
    if prediction_NHW.shape != target_NHW.shape:
        raise ValueError(f"prediction {tuple(prediction_NHW.shape)} and target {tuple(target_NHW.shape)} differ")
    if prediction_NHW.is_floating_point() or target_NHW.is_floating_point():
        raise ValueError("label maps hold whole numbers: take the argmax, or compare with a threshold, first")
    if num_classes < 2:
        raise ValueError(f"num_classes counts the background and is at least 2, not {num_classes}")
    foreground = range(1, num_classes)
    return mask_counts(
        class_masks(prediction_NHW, foreground),
        class_masks(target_NHW, foreground),
        valid_pixels(target_NHW, ignore_index),
    )
