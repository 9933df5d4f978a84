"""Images of any size by tiles: overlapping windows at the network's scale, blended with Gaussian weights.

Logits are blended, as nnU-Net does (Isensee et al. 2021, doi:10.1038/s41592-020-01008-z): inside one pass of a network
that is what a run does when it resizes its logits to the native size. Several networks and mirror images are then
averaged as probabilities, as everywhere in segexp.
"""

from collections.abc import Iterator

import numpy as np
import torch

from segexp.activations.head import Prediction
from segexp.inference.networks import Networks, mean_of
from segexp.records.process import heed_interrupts

SIGMA = 1 / 8  # of the Gaussian, as share of the tile; that of nnU-Net


def starts(extent: int, tile: int, overlap: float) -> list[int]:
    """First pixels of tiles that cover ``extent`` evenly; neighbours share at least ``overlap`` of a tile, rounded."""
    if extent <= tile:
        return [0]
    steps = -(-(extent - tile) // max(1, round(tile * (1 - overlap))))
    return [round(n * (extent - tile) / steps) for n in range(steps + 1)]


def _weights(extent: int, tile: int) -> torch.Tensor:
    return torch.exp(-0.5 * ((torch.arange(extent) - (extent - 1) / 2) / (SIGMA * tile)) ** 2)


def tiled(networks: Networks, image_HWC: np.ndarray, tile: int, overlap: float) -> Iterator[tuple[slice, Prediction]]:
    """Bands of rows from top to bottom, each with its prediction (1, K, rows, W).

    image_HWC: as the network's rule has made it. tile: side in pixels, a multiple of the divisor. overlap: in [0, 1).
    Holds the logits of one row of tiles, for every network and mirror image, whatever the height of the image.
    """
    height, width = image_HWC.shape[:2]
    tops, lefts = starts(height, tile, overlap), starts(width, tile, overlap)
    members = [(n, axes) for n in range(len(networks.members)) for axes in networks.flips]
    sums: list[torch.Tensor] = []
    weight_HW = torch.zeros(min(tile, height), width)
    for top, end in zip(tops, [*tops[1:], height], strict=True):
        for left in lefts:
            window = image_HWC[top : top + tile, left : left + tile]
            weights_HW = _weights(window.shape[0], tile)[:, None] * _weights(window.shape[1], tile)
            weight_HW[:, left : left + tile] += weights_HW
            for n, member in enumerate(members):
                heed_interrupts()
                logits_KHW = networks.logits(*member, window)
                if len(sums) <= n:
                    sums.append(torch.zeros(len(logits_KHW), *weight_HW.shape))
                sums[n][..., left : left + tile] += logits_KHW * weights_HW
        done = end - top
        blended = [(of_KHW[:, :done] / weight_HW[:done])[None] for of_KHW in sums]
        heads = [networks.members[n][0].head for n, _ in members]
        with torch.inference_mode():
            prediction = mean_of([head(logits) for head, logits in zip(heads, blended, strict=True)])
        yield slice(top, end), prediction
        for kept in (*sums, weight_HW):  # the next row of tiles begins at ``end``
            kept.copy_(torch.cat((kept[..., done:, :], torch.zeros_like(kept[..., :done, :])), dim=-2))
