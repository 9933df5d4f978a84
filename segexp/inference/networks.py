"""Networks of finished runs as one: seeds and mirror images as the mean probability, of whole images or by tiles.

Tiles are overlapping windows at the network's scale, blended with Gaussian weights. Logits are blended, as by nnU-Net
(Isensee et al. 2021, doi:10.1038/s41592-020-01008-z): within a pass of one network that is what a run does where it
resizes logits. Networks and mirror images are then averaged as probabilities, as everywhere in segexp.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from segexp.activations.head import Prediction, mean_prediction
from segexp.config import Config, params
from segexp.data.batches import InputGeometry, sample_of, scoring_batches
from segexp.data.image_set import Pair
from segexp.data.normalise import ruled
from segexp.evaluation.predict import FLIPS, Forward, at_native_size, make_forward
from segexp.models.architectures import ARCHITECTURES, check_size, common_size
from segexp.records.process import heed_interrupts
from segexp.records.runs import Run
from segexp.running.build import Trained, trained

SIGMA = 1 / 8  # of the Gaussian weights, as share of the tile; that of nnU-Net


@dataclass(frozen=True)
class Networks:
    """members: each network, its forward pass, and a way of mirroring (`FLIPS`). geometry: how images are fitted."""

    config: Config
    members: tuple[tuple[Trained, Forward, tuple[int, ...]], ...]
    geometry: InputGeometry

    @classmethod
    def of(cls, runs: Sequence[Run], configs: Sequence[Config], tta: bool) -> "Networks":
        """The selected networks of runs that differ in seed and split alone. Raises UsageError."""
        members: list[tuple[Trained, Forward, tuple[int, ...]]] = []
        for run, config in zip(runs, configs, strict=True):
            one = trained(run.path, config, dict(run.record), config.trainer.device)
            forward = make_forward(one.network, one.device, config.trainer.precision)
            members += [(one, forward, axes) for axes in (FLIPS if tta else FLIPS[:1])]
        data, model = configs[0].dataset, configs[0].model
        divisor = ARCHITECTURES[model.name].divisor.of(params(model))
        return cls(configs[0], tuple(members), InputGeometry(data.fit, data.image_size or 0, divisor))

    def predicted(self, image_HWC: np.ndarray, tile: int | None, overlap: float) -> Iterator[tuple[slice, Prediction]]:
        """Bands of rows from top to bottom with their predictions (1, K, rows, W); one band without ``tile``.

        tile: side in pixels, a multiple of the divisor; holds the logits of a row of tiles, whatever the height of the
        image. Raises UsageError where the image is too small.
        """
        image_HWC = ruled(image_HWC, self.members[0][0].rule)
        height, width = image_HWC.shape[:2]
        side = tile or max(height, width)
        self._check(min(height, width))
        tops, lefts = starts(height, side, overlap), starts(width, side, overlap)
        sums: dict[int, torch.Tensor] = {}
        weight_HW = torch.zeros(min(side, height), width)
        bands = [*zip(tops, [*tops[1:], height], strict=True)]
        for top, end in tqdm(bands, desc="rows of tiles", leave=False, disable=None if len(bands) > 1 else True):
            for left in lefts:
                window_HWC, across = image_HWC[top : top + side, left : left + side], slice(left, left + side)
                down_H, across_W = (_weights(n, side) for n in window_HWC.shape[:2])
                single = len(tops) == len(lefts) == 1  # then logits stay bit by bit as they are
                weights_HW = torch.ones(()) if single else down_H[:, None] * across_W
                weight_HW[:, across] += weights_HW
                for n in range(len(self.members)):
                    logits_KHW = self._logits(n, window_HWC)
                    if n not in sums:
                        sums[n] = torch.zeros(len(logits_KHW), *weight_HW.shape)
                    sums[n][..., across] += logits_KHW * weights_HW
            done = end - top
            with torch.inference_mode():
                blended = [(of_KHW[:, :done] / weight_HW[:done])[None] for of_KHW in sums.values()]
                each = [member[0].head(logits) for member, logits in zip(self.members, blended, strict=True)]
                prediction = each[0] if len(each) == 1 else mean_prediction(each)
            yield slice(top, end), prediction
            for kept in (*sums.values(), weight_HW) if end < height else ():  # the next row of tiles begins at ``end``
                kept.copy_(torch.cat((kept[..., done:, :], torch.zeros_like(kept[..., :done, :])), dim=-2))

    def _check(self, shorter: int) -> None:
        """Raise UsageError where an image with this shorter side is too small for the network."""
        if self.geometry.how == "pad":
            model, side = self.config.model, -(-shorter // self.geometry.divisor) * self.geometry.divisor
            check_size(model.name, params(model), self.config.backbone.name, side, f"padded to {side} px, it")

    def _logits(self, member: int, window_HWC: np.ndarray) -> torch.Tensor:
        """(K, H, W) on the CPU, of an image that its rule has scaled or a window of it, as the run scores an image."""
        heed_interrupts()
        run, forward, axes = self.members[member]
        sample = sample_of(Pair(window_HWC, np.zeros(window_HWC.shape[:2], np.uint8)), self.geometry)
        sizes_12 = np.array([window_HWC.shape[:2]])
        (batch,) = scoring_batches(lambda _: sample, self.geometry, run.normalise, [0], sizes_12, 1)
        with torch.inference_mode():
            logits = forward(batch.images_NCHW.to(run.device).flip(axes)).flip(axes).float().cpu()
            return at_native_size(logits, window_HWC.shape[:2], batch.padded)[0]

    def lacks_memory(self, pixels: int) -> float:
        """Bytes that an image of this size may take on the CPU where less is free, else 0.

        An estimate: four times the largest output of a layer, measured on a small image.
        """
        run, forward, _ = self.members[0]
        meminfo, model, found = Path("/proc/meminfo"), self.config.model, [0]
        if run.device.type != "cpu" or not meminfo.exists():
            return 0.0
        side = common_size(model.name, params(model), self.config.backbone.name)
        note: Any = lambda module, given, result: found.append(getattr(result, "nbytes", 0))  # noqa: E731
        hooks = [module.register_forward_hook(note) for module in run.network.modules()]
        with torch.inference_mode():
            forward(torch.zeros(1, run.channels, side, side))
        for hook in hooks:
            hook.remove()
        needed = 4 * max(found) * pixels / side**2
        free = re.search(r"MemAvailable: *(\d+)", meminfo.read_text(encoding="ascii"))
        return needed if free and needed > 1024 * int(free[1]) else 0.0


def starts(extent: int, tile: int, overlap: float) -> list[int]:
    """First pixels of tiles that cover ``extent`` evenly; neighbours share at least ``overlap`` of a tile, rounded."""
    if extent <= tile:
        return [0]
    steps = -(-(extent - tile) // max(1, round(tile * (1 - overlap))))
    return [round(n * (extent - tile) / steps) for n in range(steps + 1)]


def _weights(extent: int, tile: int) -> torch.Tensor:
    return torch.exp(-0.5 * ((torch.arange(extent) - (extent - 1) / 2) / (SIGMA * tile)) ** 2)
