"""Embedded data set: procedural images of lesion-like shapes, equal on every machine.

A lesion is a bright region with an irregular, blurred outline and a grained inside. It lies in textured tissue under
uneven illumination, among equally bright distractors: vessels, rings, sharp-edged flat discs and clusters of bright
dots. Brightness alone therefore does not separate lesions; local texture and outline do.

Pixels come from the raw bit stream of PCG64, in float64 until the last step. NEP 19 guarantees this stream across numpy
versions, but not the distribution methods of `numpy.random.Generator`.
"""

import dataclasses
import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from segexp.data.image_set import DatasetConfig, ImageSet, Pair, adapter
from segexp.errors import UsageError
from segexp.registry import REQUIRED, Range, check_option, fields_of

if TYPE_CHECKING:
    import numpy as np

EMPTY, SHAPES, DISTRACTORS, LABELS, LOOK, NOISE = range(6)
"""Purpose of a bit stream. Separate streams keep options independent. NOISE + c is that of channel c."""

VESSEL, RING, DISC, DOTS = range(4)

KEPT_BYTES = 2**28  # memory limit of the cache of generated images

GOLDEN = 0.6180339887498949

Circle = tuple[float, float, float]  # centre y, centre x and radius, all in px


@dataclass
class LesionsConfig(DatasetConfig):
    """Options of the embedded data set; values, units and explanations in configs/dataset/lesions.yaml."""

    num_classes: Annotated[int, Range(2, 5)] = REQUIRED
    image_size: Annotated[int | None, Range(32, 1024)] = REQUIRED
    number: Annotated[int, Range(1, 100_000)] = REQUIRED
    channels: Annotated[int, Range(1, 7)] = REQUIRED
    foreground_fraction: Annotated[float, Range(0.01, 0.3)] = REQUIRED
    empty_share: Annotated[float, Range(0, 1)] = REQUIRED
    contrast: Annotated[float, Range(0, 1)] = REQUIRED
    boundary_blur: Annotated[float, Range(0, 10)] = REQUIRED
    distractors: Annotated[float, Range(0, 20)] = REQUIRED
    noise: Annotated[float, Range(0, 1)] = REQUIRED
    label_noise: Annotated[float, Range(0, 3)] = REQUIRED
    seed: Annotated[int, Range(0, 2**63 - 1)] = REQUIRED


@adapter("lesions", LesionsConfig)
def open_lesions(config: LesionsConfig) -> ImageSet:
    """Embedded data set: procedural images of blurred lesions among bright distractors; no download.

    image_HWC: uint8, ``image_size`` square, 1 to 7 channels. mask_HW: uint8, 0 background, 1..C-1 the kind of lesion
    (1 grained, 2 dark core, 3 striped, 4 bright rim). Pair i depends only on i and the options other than ``number``.
    Raises UsageError if an option is out of range.
    """
    for option in fields_of(LesionsConfig):
        key, value = f"dataset.{option.name}", getattr(config, option.name)
        if value is None and option.range != Range():
            raise UsageError(f"{key}=null is out of range: it must be {option.range}")
        check_option(key, option, value)

    # Check, fingerprint and training each read every pair; a set that fits into KEPT_BYTES is generated once.
    fits = config.number * (config.image_size or 0) ** 2 * (config.channels + 1) <= KEPT_BYTES
    made = functools.lru_cache(maxsize=None if fits else 0)(functools.partial(_make_pair, config))

    def read(index: int) -> Pair:
        pair = made(index)
        return Pair(pair.image_HWC.copy(), pair.mask_HW.copy())

    def file_bytes(index: int) -> Iterable[bytes]:
        pair = read(index)
        yield pair.image_HWC.tobytes()
        yield pair.mask_HW.tobytes()

    digits = max(4, len(str(config.number - 1)))
    return ImageSet(
        image_ids=tuple(f"lesion_{index:0{digits}d}" for index in range(config.number)),
        group_ids=("",) * config.number,
        channels=config.channels,
        num_classes=config.num_classes,
        read=read,
        file_bytes=file_bytes,
        location="generated",
        content=f"generated {dataclasses.replace(config, name=None)}",
    )


def _make_pair(config: LesionsConfig, index: int) -> Pair:
    import numpy as np

    size = config.image_size
    assert size is not None, "open_lesions refuses null"
    shapes = _stream(config.seed, index, SHAPES)
    y_HW, x_HW = np.mgrid[0:size, 0:size].astype(np.float64)
    y_HW += 0.03 * size * _smooth_noise(shapes, size, 0.07 * size)
    x_HW += 0.03 * size * _smooth_noise(shapes, size, 0.07 * size)

    # Images without a lesion are evenly spread over the indices.
    start = _uniforms(_stream(config.seed, 0, EMPTY), 1)[0]
    empty = (start + index * GOLDEN) % 1 < config.empty_share
    lesions = [] if empty else _place_lesions(shapes, size, config.foreground_fraction)
    level_HW, kind_HW = np.full((size, size), np.inf), np.zeros((size, size), np.uint8)
    for lesion in lesions:
        lesion_level_HW = _outline(shapes, y_HW, x_HW, lesion)
        kind = 1 + int((config.num_classes - 1) * _uniforms(shapes, 1)[0])
        kind_HW = np.where(lesion_level_HW < level_HW, np.uint8(kind), kind_HW)
        level_HW = np.minimum(level_HW, lesion_level_HW)

    jitter_HW = config.label_noise * _smooth_noise(_stream(config.seed, index, LABELS), size, 2.5)
    mask_HW = np.where(level_HW + jitter_HW < 0, kind_HW, np.uint8(0))

    lesion_HW = _coverage(level_HW, config.boundary_blur)
    depth_HW = -level_HW / (0.03 * size)
    distractor_HW = (1 - lesion_HW) * _distractors(config, index, y_HW, x_HW, lesions)
    look = _stream(config.seed, index, LOOK)
    pattern_HW = _pattern(look, kind_HW, depth_HW)
    bright_HW = config.contrast * (lesion_HW * pattern_HW + distractor_HW)
    tissue_HW = 0.3 + 0.05 * _smooth_noise(look, size, 0.08 * size) + 0.04 * _smooth_noise(look, size, 1.5)
    illumination_HW = _illumination(look, size)
    channels = []
    for channel in range(config.channels):
        disturbance = _stream(config.seed, index, NOISE + channel)
        speckle_HW = 1 + 0.5 * config.noise * _smooth_noise(disturbance, size, 0.8)
        grain_HW = config.noise * _normals(disturbance, size * size).reshape(size, size)
        # Weaker in every further channel, like other sequences or stains, so that channels differ by more than noise.
        scene_HW = tissue_HW + 0.85**channel * bright_HW
        channels.append(scene_HW * illumination_HW * speckle_HW + grain_HW)
    image_HWC = np.clip(np.rint(255 * np.stack(channels, axis=-1)), 0, 255).astype(np.uint8)
    return Pair(image_HWC, mask_HW)


def _place_lesions(bits: "np.random.PCG64", size: int, area_share: float) -> list[Circle]:
    """One to three circles that together cover 0.5 to 1.5 times the mean fraction ``area_share``."""
    import numpy as np

    how_many, spread, *weights = _uniforms(bits, 5)
    weight_K = 0.4 + np.array(weights[: 1 + int(3 * how_many**1.5)])
    area = area_share * size**2 * (0.5 + spread)
    placed: list[Circle] = []
    for radius in np.sqrt(area * weight_K / weight_K.sum() / np.pi):
        placed.append(_place(bits, size, float(radius), placed))
    return placed


def _place(bits: "np.random.PCG64", size: int, radius: float, others: list[Circle]) -> Circle:
    """The first of 24 random centres at least 3 px from ``others``, or the one farthest from them."""
    import numpy as np

    margin = min(1.15 * radius, 0.5 * size)
    y_P, x_P = margin + (size - 2 * margin) * _uniforms(bits, 48).reshape(2, 24)
    clearance_P = np.full(24, np.inf)
    for other_y, other_x, other_radius in others:
        gap_P = np.hypot(y_P - other_y, x_P - other_x) - 1.2 * (radius + other_radius)
        clearance_P = np.minimum(clearance_P, gap_P)
    best = np.argmax(np.minimum(clearance_P, 3.0))
    return float(y_P[best]), float(x_P[best]), radius


def _outline(bits: "np.random.PCG64", y_HW: "np.ndarray", x_HW: "np.ndarray", circle: Circle) -> "np.ndarray":
    """Level of an irregular outline with the area of ``circle``: approximate distance in px, negative inside."""
    import numpy as np

    y, x, radius = circle
    tilt, stretch, *waves = _uniforms(bits, 10)
    u_HW, v_HW = _turned(y_HW - y, x_HW - x, 2 * np.pi * tilt)
    stretch = 1 + 0.35 * stretch
    angle_HW = np.arctan2(v_HW * stretch, u_HW / stretch)
    amplitude_K = 0.45 * np.array(waves[:4]) / np.arange(2, 6)
    reach_HW = np.ones_like(angle_HW)
    for order, amplitude, phase in zip(range(2, 6), amplitude_K, waves[4:], strict=True):
        reach_HW += amplitude * np.cos(order * angle_HW + 2 * np.pi * phase)
    return np.hypot(v_HW * stretch, u_HW / stretch) - radius * reach_HW / np.sqrt(1 + 0.5 * np.sum(amplitude_K**2))


def _pattern(bits: "np.random.PCG64", kind_HW: "np.ndarray", depth_HW: "np.ndarray") -> "np.ndarray":
    """Relative brightness inside lesions by kind; ``depth_HW`` is 0 at the outline and 1 two px (of 64) inside."""
    import numpy as np

    size = len(kind_HW)
    grain_HW = 0.3 * _smooth_noise(bits, size, 1.2)
    tilt, phase = 2 * np.pi * _uniforms(bits, 2)
    y_HW, x_HW = np.mgrid[0:size, 0:size]
    across_HW, along_HW = _turned(y_HW, x_HW, tilt)
    fibre_HW = np.sin(2 * np.pi * across_HW / 5 + 1.5 * np.sin(along_HW / 6) + phase)
    grained_HW = 1 + grain_HW
    dark_core_HW = 1.3 + grain_HW - 1.5 * _coverage(1 - depth_HW, 0.4)
    striped_HW = 1 + 0.5 * fibre_HW + 0.3 * grain_HW
    bright_rim_HW = 0.6 + 0.3 * grain_HW + 1.2 * np.exp(-2 * (depth_HW - 0.5) ** 2)
    return np.choose(kind_HW, [grained_HW, grained_HW, dark_core_HW, striped_HW, bright_rim_HW])


def _distractors(
    config: LesionsConfig, index: int, y_HW: "np.ndarray", x_HW: "np.ndarray", lesions: list[Circle]
) -> "np.ndarray":
    """Relative brightness of distractors: 0 in plain tissue, about 1 on a structure as bright as a lesion."""
    import numpy as np

    bits = _stream(config.seed, index, DISTRACTORS)
    size = len(y_HW)
    bright_HW = np.zeros_like(y_HW)
    dots_HW = _smooth_noise(bits, size, 0.7)
    slots = 2 * int(np.ceil(config.distractors))
    placed = list(lesions)
    for _ in range(slots):
        present, shape, scale, tilt, bend = _uniforms(bits, 5)
        radius = size * (0.05 + 0.07 * scale)
        if present >= config.distractors / slots:
            continue
        placed.append(_place(bits, size, radius, placed))
        y, x, _ = placed[-1]
        v_HW, u_HW = _turned(y_HW - y, x_HW - x, 2 * np.pi * tilt)
        distance_HW = np.hypot(u_HW, (1 + 0.4 * bend) * v_HW)
        kind = int(4 * shape)
        if kind == VESSEL:
            course_HW = v_HW + radius * bend * np.sin(u_HW / radius)
            level_HW = np.maximum(np.abs(course_HW) - 0.025 * size, np.abs(u_HW) - 3 * radius)
        elif kind == RING:
            level_HW = np.abs(distance_HW - radius) - 0.022 * size
        else:
            level_HW = distance_HW - radius
        texture_HW = 1.6 * _coverage(0.5 - dots_HW, 0.2) if kind == DOTS else 1.05
        bright_HW = np.maximum(bright_HW, texture_HW * _coverage(level_HW, 0.35))
    return bright_HW


def _illumination(bits: "np.random.PCG64", size: int) -> "np.ndarray":
    """Multiplicative bias field: a slope and a slow wave across the image, between 0.4 and 2.4."""
    import numpy as np

    slope, tilt, phase, turn = _uniforms(bits, 4)
    y_HW, x_HW = np.mgrid[0:size, 0:size] / (size - 1) - 0.5
    along_HW, _ = _turned(y_HW, x_HW, 2 * np.pi * tilt)
    across_HW, _ = _turned(y_HW, x_HW, 2 * np.pi * turn)
    return np.exp((0.5 + 0.5 * slope) * along_HW + 0.15 * np.sin(4 * across_HW + 2 * np.pi * phase))


def _turned(y_HW: "np.ndarray", x_HW: "np.ndarray", angle: float) -> tuple["np.ndarray", "np.ndarray"]:
    import numpy as np

    cosine, sine = np.cos(angle), np.sin(angle)
    return cosine * y_HW + sine * x_HW, cosine * x_HW - sine * y_HW


def _coverage(level_HW: "np.ndarray", blur: float) -> "np.ndarray":
    """1 inside (negative level), 0 outside, with an edge blurred by a Gaussian of standard deviation ``blur``."""
    from scipy.special import ndtr

    return ndtr(-level_HW / max(blur, 1e-6))


def _stream(seed: int, index: int, purpose: int) -> "np.random.PCG64":
    import numpy as np

    return np.random.PCG64(np.random.SeedSequence([seed, index, purpose]))


def _uniforms(bits: "np.random.PCG64", count: int) -> "np.ndarray":
    """``count`` float64 in [0, 1): the upper 53 bits of each raw 64-bit word."""
    return (bits.random_raw(count) >> 11) * 2.0**-53


def _normals(bits: "np.random.PCG64", count: int) -> "np.ndarray":
    """``count`` standard normals by the Box-Muller transform (1958)."""
    import numpy as np

    height_U, turn_U = _uniforms(bits, 2 * ((count + 1) // 2)).reshape(2, -1)
    radius_U, angle_U = np.sqrt(-2 * np.log1p(-height_U)), 2 * np.pi * turn_U
    return np.concatenate([radius_U * np.cos(angle_U), radius_U * np.sin(angle_U)])[:count]


def _smooth_noise(bits: "np.random.PCG64", size: int, sigma: float) -> "np.ndarray":
    """(size, size) Gaussian noise with mean about 0 and variance 1, correlated over ``sigma`` px."""
    from scipy.ndimage import gaussian_filter

    field_HW = gaussian_filter(_normals(bits, size * size).reshape(size, size), sigma, mode="wrap")
    return field_HW / field_HW.std()
