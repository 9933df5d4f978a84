"""Augmentation of a whole batch at once, on any device: flips, one sampling of affine and elastic change, intensities.

What happens to an image depends only on (seed, epoch, image id): its parameters are words of a hash of these, its noise
and its elastic field are hashes of such a word and the place of a pixel. Batches, workers and devices change nothing
but the rounding: where CPU and GPU round float32 otherwise, a normalised smooth image of 128 px changes by less than
1e-3, and fewer than 1 in 1,000 pixels of a mask, all of them between two classes.

The distributions are those of torchvision's v2.RandomHorizontalFlip, RandomVerticalFlip, RandomAffine and, with
probability ``elastic``, ElasticTransform(alpha=30, sigma=5), one after another.
"""

import functools
import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from segexp.data.image_set import AugmentConfig
from segexp.losses import IGNORE

ALPHA, SIGMA = 30.0, 5.0
"""Of ElasticTransform: strength, and smoothness in pixels. A pixel moves by ALPHA / 2 times blurred uniform noise."""

WORDS = ("horizontal", "vertical", "angle", "x", "y", "scale", "elastic", "contrast", "brightness")
KEYS = ("dx", "dy", "noise")
"""The 32-bit words of an image in an epoch that are numbers in [0, 1), and those that are keys of random fields."""

ToInput = Callable[[torch.Tensor], torch.Tensor]
"""images_NCHW as stored -> float32, normalised."""


@dataclass(frozen=True)
class Augment:
    """The augmentation of a run, see `make_augment`."""

    config: AugmentConfig
    seed: int

    def __call__(
        self,
        images_NCHW: torch.Tensor,
        masks_NHW: torch.Tensor,
        epoch: int,
        image_ids: Sequence[str],
        as_input: ToInput,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Images and masks as stored -> as the network takes them, float32, and masks of the same type, on the device.

        Pixels from outside the image are 0, the mean of the training images, and ignored in the mask. Never waits for
        the device.
        """
        config, device = self.config, images_NCHW.device
        words_N = _words(self.seed, epoch, image_ids)
        flips = (words_N["horizontal"] < config.flip_horizontal, 3), (words_N["vertical"] < config.flip_vertical, 2)
        for chosen_N, axis in flips:
            if chosen_N.any():
                images_NCHW = _flipped(images_NCHW, chosen_N, axis)
                masks_NHW = _flipped(masks_NHW.unsqueeze(1), chosen_N, axis)[:, 0]
        images_NCHW = as_input(images_NCHW)
        if config.rotate_degrees or config.translate or config.scale or config.elastic:
            images_NCHW, masks_NHW = self._sampled(images_NCHW, masks_NHW, words_N)
        if config.brightness or config.contrast:
            changes = (1 + (2 * words_N["contrast"] - 1) * config.contrast, 2 * words_N["brightness"] - 1)
            gain_N, shift_N = (_floats(change_N, device).view(-1, 1, 1, 1) for change_N in changes)
            mean_N = images_NCHW.mean(3, keepdim=True).mean((1, 2), keepdim=True)
            images_NCHW = images_NCHW.sub_(mean_N).mul_(gain_N).add_(mean_N + shift_N * config.brightness)
        if config.noise:
            noise = normal_field(words_N["noise"], tuple(images_NCHW.shape[1:]), device)
            images_NCHW = images_NCHW.add_(noise.mul_(config.noise))
        return images_NCHW, masks_NHW

    def _sampled(
        self, images_NCHW: torch.Tensor, masks_NHW: torch.Tensor, words_N: dict[str, np.ndarray]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Affine and elastic change by one sampling: bilinear for images, the nearest pixel for masks."""
        height, width = masks_NHW.shape[1:]
        matrix_N23 = self._matrices(words_N, height, width)
        elastic_N = words_N["elastic"] < self.config.elastic
        moved_N = elastic_N | (matrix_N23 != np.eye(2, 3)).any((1, 2))
        if not moved_N.any():
            return images_NCHW, masks_NHW
        field_N2HW = None
        if elastic_N.any():
            field_N2HW = displacement(words_N["dx"], words_N["dy"], elastic_N, (height, width), images_NCHW.device)
        grid_NHW2 = _grid(matrix_N23, field_N2HW, (height, width), images_NCHW.device)
        sampled = F.grid_sample(images_NCHW, grid_NHW2, align_corners=False)  # 0 outside
        classes = masks_NHW.unsqueeze(1).to(images_NCHW.dtype) - IGNORE  # so that it is IGNORE outside
        nearest = F.grid_sample(classes, grid_NHW2, mode="nearest", align_corners=False)[:, 0]
        masks = nearest.add_(IGNORE).to(masks_NHW.dtype)
        if moved_N.all():
            return sampled, masks
        moved = torch.from_numpy(moved_N).to(images_NCHW.device, non_blocking=True).view(-1, 1, 1, 1)
        return torch.where(moved, sampled, images_NCHW), torch.where(moved[:, 0], masks, masks_NHW)

    def _matrices(self, words_N: dict[str, np.ndarray], height: int, width: int) -> np.ndarray:
        """Where pixels come from, (N, 2, 3): (x, y, 1) from the centre -> (x, y) of the source, in pixels."""
        config = self.config
        angle = np.deg2rad((2 * words_N["angle"] - 1) * config.rotate_degrees)
        scale = 1 + (2 * words_N["scale"] - 1) * config.scale
        shift_N2 = np.stack([(2 * words_N[axis] - 1) * config.translate for axis in ("x", "y")], axis=1)
        shift_N2 = np.round(shift_N2 * (width, height))
        cos, sin = np.cos(angle) / scale, np.sin(angle) / scale
        turned_N22 = np.stack([np.stack([cos, sin], 1), np.stack([-sin, cos], 1)], 1)
        return np.concatenate([turned_N22, -turned_N22 @ shift_N2[:, :, None]], axis=2)


def make_augment(config: AugmentConfig, seed: int) -> Augment | None:
    """The augmentation of a run, or None if it changes nothing."""
    return Augment(config, seed) if any(value for name, value in vars(config).items() if name != "name") else None


def _words(seed: int, epoch: int, image_ids: Sequence[str]) -> dict[str, np.ndarray]:
    """Each of WORDS as float64 (N,), each of KEYS as int32 (N,)."""
    texts = (f"{seed}/augment/{epoch}/{image_id}" for image_id in image_ids)
    digests = b"".join(hashlib.sha512(text.encode(errors="surrogateescape")).digest() for text in texts)
    words_NW = np.frombuffer(digests, "<u4").reshape(-1, 16)
    numbers = {name: words_NW[:, w] / 2.0**32 for w, name in enumerate(WORDS)}
    return numbers | {key: words_NW[:, len(WORDS) + k].astype(np.int32) for k, key in enumerate(KEYS)}


def _floats(values: np.ndarray, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(values.astype(np.float32)).to(device, non_blocking=True)


def _flipped(images_NCHW: torch.Tensor, chosen_N: np.ndarray, axis: int) -> torch.Tensor:
    """The chosen images flipped. Bits are selected, which is quicker on a CPU than ``where``, and equal."""
    kind = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[images_NCHW.element_size()]
    bits = images_NCHW.contiguous().view(kind)
    all_or_none = torch.from_numpy(-chosen_N.astype(np.int32)).to(images_NCHW.device, non_blocking=True)
    changed = bits.flip(axis).bitwise_xor_(bits).bitwise_and_(all_or_none.to(kind).view(-1, 1, 1, 1))
    return changed.bitwise_xor_(bits).view(images_NCHW.dtype)


def _grid(
    matrix_N23: np.ndarray, field_N2HW: torch.Tensor | None, size: tuple[int, int], device: torch.device
) -> torch.Tensor:
    """The grid of `grid_sample`: where each pixel comes from, from -1 to 1. field: moves pixels before the matrix."""
    height, width = size
    theta = _floats(matrix_N23 * np.array([[2 / width], [2 / height]]), device).view(-1, 2, 3, 1, 1)
    x_W, y_H1 = (torch.arange(n, dtype=torch.float32, device=device) - (n - 1) / 2 for n in (width, height))
    grid_N2HW = theta[:, :, 0] * x_W + (theta[:, :, 1] * y_H1.unsqueeze(1) + theta[:, :, 2])
    if field_N2HW is not None:
        for axis in (0, 1):
            grid_N2HW.add_(theta[:, :, axis] * field_N2HW[:, axis : axis + 1])
    return grid_N2HW.permute(0, 2, 3, 1)


# Random fields


def _mixed(bits: torch.Tensor) -> torch.Tensor:
    """A bijection of int32 in place after which each bit depends on all ("lowbias32", C. Wellons 2018)."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B - 2**32), (16, 1)):
        bits.bitwise_xor_((bits >> shift).bitwise_and_((1 << (32 - shift)) - 1))  # >> repeats the sign
        if factor != 1:
            bits.mul_(factor)
    return bits


def normal_field(key_N: np.ndarray, shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Standard normal numbers, float32 (N, *shape), each by its key and its place alone (Box and Muller 1958)."""
    count = math.prod(shape)
    half = -(-count // 2)
    keys = torch.from_numpy(key_N).to(device, non_blocking=True).unsqueeze(1)
    bits = _mixed(_mixed(torch.arange(half, dtype=torch.int32, device=device)) ^ keys)
    radius = ((bits >> 16) & 0xFFFF).float().add_(0.5).mul_(2.0**-16).log_().mul_(-2).sqrt_()
    angle = bits.bitwise_and_(0xFFFF).float().mul_(2 * math.pi / 2**16)
    field = torch.empty(len(key_N), 2, half, device=device)
    torch.mul(angle.cos(), radius, out=field[:, 0])
    torch.mul(angle.sin_(), radius, out=field[:, 1])
    return field.flatten(1)[:, :count].view(-1, *shape)


def displacement(
    dx_key_N: np.ndarray, dy_key_N: np.ndarray, chosen_N: np.ndarray, size: tuple[int, int], device: torch.device
) -> torch.Tensor:
    """By how many pixels each pixel is moved, (N, 2, H, W), first along the width; 0 in images that are not chosen.

    Blurring noise at every pixel by a Gaussian is a sum of Gaussians; nodes SIGMA apart give a field of the same mean,
    covariance and reflection at the border, for 1/25 of the numbers.
    """
    spread_Hh, spread_Ww = (torch.from_numpy(_spread(n)).to(device, non_blocking=True) for n in size)
    nodes = (spread_Hh.shape[1], spread_Ww.shape[1])
    noise = torch.stack([normal_field(key_N, nodes, device) for key_N in (dx_key_N, dy_key_N)], dim=1)
    noise *= _floats(chosen_N * (ALPHA / 2 / math.sqrt(3)), device).view(-1, 1, 1, 1)  # of variance 1/3: uniform
    return spread_Hh @ noise @ spread_Ww.T


@functools.cache
def _spread(side: int) -> np.ndarray:
    """float32 (side, nodes): weight of each node of white noise at each pixel, reflected at both ends."""
    number = max(1, math.ceil((side - 1) / SIGMA))
    step = max(side - 1, 1) / number
    beyond = math.ceil(4 * SIGMA / step)
    node = np.arange(-beyond, number + beyond)
    distance = np.arange(side)[:, None] - (node + 0.5) * step
    weight = np.exp(-0.5 * (distance / SIGMA) ** 2) * math.sqrt(step / (2 * math.pi)) / SIGMA
    place = node % (2 * number)
    spread = np.zeros((side, number))
    np.add.at(spread.T, np.minimum(place, 2 * number - 1 - place), weight.T)
    return spread.astype(np.float32)
