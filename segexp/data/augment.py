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
        config = self.config
        words_N = _words(self.seed, epoch, image_ids)
        flips = (words_N["horizontal"] < config.flip_horizontal, 3), (words_N["vertical"] < config.flip_vertical, 2)
        sampling = self._sampling(words_N, *masks_NHW.shape[1:])
        on_device = _uploaded(images_NCHW.device, {
            **{f"flip {axis}": -chosen_N.astype(np.int32) for chosen_N, axis in flips},
            **{key: words_N[key] for key in KEYS},
            "gain": 1 + (2 * words_N["contrast"] - 1) * config.contrast,
            "shift": 2 * words_N["brightness"] - 1,
            **(sampling or {}),
        })  # fmt: skip
        for chosen_N, axis in flips:
            if chosen_N.any():
                all_or_none_N = on_device[f"flip {axis}"]
                images_NCHW = _flipped(images_NCHW, all_or_none_N, axis)
                masks_NHW = _flipped(masks_NHW.unsqueeze(1), all_or_none_N, axis)[:, 0]
        images_NCHW = as_input(images_NCHW)
        if sampling is not None:
            images_NCHW, masks_NHW = _sampled(images_NCHW, masks_NHW, sampling, on_device)
        if config.brightness or config.contrast:
            gain_N, shift_N = (on_device[name].view(-1, 1, 1, 1) for name in ("gain", "shift"))
            mean_N = images_NCHW.mean(3, keepdim=True).mean((1, 2), keepdim=True)
            images_NCHW = images_NCHW.sub_(mean_N).mul_(gain_N).add_(mean_N + shift_N * config.brightness)
        if config.noise:
            noise = normal_field(on_device["noise"], tuple(images_NCHW.shape[1:]))
            images_NCHW = images_NCHW.add_(noise.mul_(config.noise))
        return images_NCHW, masks_NHW

    def _sampling(self, words_N: dict[str, np.ndarray], height: int, width: int) -> dict[str, np.ndarray] | None:
        """By image what `_sampled` needs: theta of `_grid` (N, 6), strength of the elastic change, and whether it moves
        at all; None if no image does."""
        config = self.config
        if not (config.rotate_degrees or config.translate or config.scale or config.elastic):
            return None
        matrix_N23 = self._matrices(words_N, height, width)
        elastic_N = words_N["elastic"] < config.elastic
        moved_N = elastic_N | (matrix_N23 != np.eye(2, 3)).any((1, 2))
        if not moved_N.any():
            return None
        theta_N6 = (matrix_N23 * np.array([[2 / width], [2 / height]])).reshape(-1, 6)
        return {"theta": theta_N6, "elastic": elastic_N * (ALPHA / 2 / math.sqrt(3)), "moved": moved_N.astype(np.int32)}

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


def _uploaded(device: torch.device, columns: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Columns (N,) or (N, P), int32 or to be float32, on the device by one copy that does not wait."""
    as_bits = {k: (v if v.dtype == np.int32 else v.astype(np.float32).view(np.int32)) for k, v in columns.items()}
    packed = np.column_stack(list(as_bits.values()))
    bits_PN = torch.from_numpy(np.ascontiguousarray(packed.T)).to(device, non_blocking=True)
    found, start = {}, 0
    for name, column in columns.items():
        width = column[0].size
        rows = bits_PN[start : start + width].T if column.ndim == 2 else bits_PN[start]
        found[name] = rows if column.dtype == np.int32 else rows.view(torch.float32)
        start += width
    return found


def _flipped(images_NCHW: torch.Tensor, all_or_none_N: torch.Tensor, axis: int) -> torch.Tensor:
    """The chosen images flipped. all_or_none: int32, all bits of those that are chosen. Bits are selected, which is
    quicker on a CPU than ``where``, and equal."""
    kind = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[images_NCHW.element_size()]
    bits = images_NCHW.contiguous().view(kind)
    changed = bits.flip(axis).bitwise_xor_(bits).bitwise_and_(all_or_none_N.to(kind).view(-1, 1, 1, 1))
    return changed.bitwise_xor_(bits).view(images_NCHW.dtype)


def _sampled(
    images_NCHW: torch.Tensor,
    masks_NHW: torch.Tensor,
    sampling: dict[str, np.ndarray],
    on_device: dict[str, torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Affine and elastic change by one sampling: bilinear for images, the nearest pixel for masks. sampling: see
    `Augment._sampling`; on_device holds the same, and the keys."""
    size, field_N2HW = masks_NHW.shape[1:], None
    if sampling["elastic"].any():
        field_N2HW = displacement(on_device["dx"], on_device["dy"], on_device["elastic"], size)
    grid_NHW2 = _grid(on_device["theta"], field_N2HW, size)
    sampled = F.grid_sample(images_NCHW, grid_NHW2, align_corners=False)  # 0 outside
    classes = masks_NHW.unsqueeze(1).to(images_NCHW.dtype) - IGNORE  # so that it is IGNORE outside
    nearest = F.grid_sample(classes, grid_NHW2, mode="nearest", align_corners=False)[:, 0]
    masks = nearest.add_(IGNORE).to(masks_NHW.dtype)
    if sampling["moved"].all():
        return sampled, masks
    moved = on_device["moved"].bool().view(-1, 1, 1, 1)
    return torch.where(moved, sampled, images_NCHW), torch.where(moved[:, 0], masks, masks_NHW)


def _grid(theta_N6: torch.Tensor, field_N2HW: torch.Tensor | None, size: Sequence[int]) -> torch.Tensor:
    """The grid of `grid_sample`: where each pixel comes from, from -1 to 1. theta: by which (x, y, 1) from the centre,
    in pixels, are multiplied. field: moves pixels before that."""
    height, width = size
    theta = theta_N6.reshape(-1, 2, 3, 1, 1)
    x_W, y_H1 = _places(width, theta.device), _places(height, theta.device).unsqueeze(1)
    grid_N2HW = theta[:, :, 0] * x_W + (theta[:, :, 1] * y_H1 + theta[:, :, 2])
    if field_N2HW is not None:
        for axis in (0, 1):
            grid_N2HW.add_(theta[:, :, axis] * field_N2HW[:, axis : axis + 1])
    return grid_N2HW.permute(0, 2, 3, 1)


@functools.lru_cache(8)
def _places(side: int, device: torch.device) -> torch.Tensor:
    """Pixels along an axis by their distance from the centre, (side,)."""
    return torch.arange(side, dtype=torch.float32, device=device) - (side - 1) / 2


# Random fields


def _mixed(bits: torch.Tensor) -> torch.Tensor:
    """A bijection of int32 in place after which each bit depends on all ("lowbias32", C. Wellons 2018)."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B - 2**32), (16, 1)):
        bits.bitwise_xor_((bits >> shift).bitwise_and_((1 << (32 - shift)) - 1))  # >> repeats the sign
        if factor != 1:
            bits.mul_(factor)
    return bits


@functools.lru_cache(8)
def _mixed_places(number: int, device: torch.device) -> torch.Tensor:
    return _mixed(torch.arange(number, dtype=torch.int32, device=device))


def normal_field(key_N: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Standard normal numbers, float32 (N, *shape), each by its int32 key and its place alone (Box and Muller 1958)."""
    count = math.prod(shape)
    half = -(-count // 2)
    bits = _mixed(_mixed_places(half, key_N.device) ^ key_N.unsqueeze(1))
    radius = ((bits >> 16) & 0xFFFF).float().add_(0.5).mul_(2.0**-16).log_().mul_(-2).sqrt_()
    angle = bits.bitwise_and_(0xFFFF).float().mul_(2 * math.pi / 2**16)
    field = torch.empty(len(key_N), 2, half, device=key_N.device)
    torch.mul(angle.cos(), radius, out=field[:, 0])
    torch.mul(angle.sin_(), radius, out=field[:, 1])
    return field.flatten(1)[:, :count].view(-1, *shape)


def displacement(
    dx_key_N: torch.Tensor, dy_key_N: torch.Tensor, strength_N: torch.Tensor, size: Sequence[int]
) -> torch.Tensor:
    """By how many pixels each pixel is moved, (N, 2, H, W), first along the width: strength, float32, times noise of
    variance 1 at every pixel that is blurred.

    Blurring noise at every pixel by a Gaussian is a sum of Gaussians; nodes SIGMA apart give a field of the same mean,
    covariance and reflection at the border, for 1/25 of the numbers.
    """
    spread_Hh, spread_Ww = (_spread_on(side, strength_N.device) for side in size)
    nodes = (spread_Hh.shape[1], spread_Ww.shape[1])
    noise = normal_field(torch.cat((dx_key_N, dy_key_N)), nodes).view(2, -1, *nodes).transpose(0, 1)
    return spread_Hh @ (noise * strength_N.view(-1, 1, 1, 1)) @ spread_Ww.T


@functools.lru_cache(8)
def _spread_on(side: int, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(_spread(side)).to(device, non_blocking=True)


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
