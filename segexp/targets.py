"""How a reference mask is coded once it is inside segexp.

A target is an integer map ``target_NHW`` holding the class index of every pixel, 0 (background) to C - 1,
or `IGNORE` where the pixel takes part in neither loss nor score (unlabelled, or padding).
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

IGNORE = 255
"""Pixel value that is ignored everywhere. It fits uint8, so at most 255 classes are possible."""

MAX_CLASSES = 255


def valid_pixels(target_NHW: "torch.Tensor", ignore_index: int | None = IGNORE) -> "torch.Tensor":
    """Boolean (N, H, W): True where the pixel counts."""
    import torch

    if ignore_index is None:
        return torch.ones_like(target_NHW, dtype=torch.bool)
    return target_NHW != ignore_index


def class_masks(target_NHW: "torch.Tensor", classes: range) -> "torch.Tensor":
    """Boolean (N, len(classes), H, W): one plane per class index in ``classes``; ignored pixels are False."""
    import torch

    index_K = torch.arange(classes.start, classes.stop, device=target_NHW.device)
    return target_NHW.unsqueeze(1) == index_K.view(1, -1, 1, 1)
