"""The classes that the pixels of a mask encode: four codings, each a plain function in `CODINGS`, arrays in and out.

Their errors are ValueErrors of one line, without a file name.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from segexp.losses import IGNORE, MAX_CLASSES
from segexp.registry import nearest

COLOUR_TOLERANCE = 32
"""Grey levels by which the channels of a pixel may differ in a binary mask, for rounding and JPEG artefacts."""


@dataclass(frozen=True)
class MaskCoding:
    """A coding and its options.

    name: a key of `CODINGS`. threshold (``binary``): pixels above it are foreground; None chooses it from the mask.
    codes: the grey values (``values``) or 0xRRGGBB (``colors``) of class 0, 1, ... ignore: the grey value, palette
    index or 0xRRGGBB (``colors``) that becomes `segexp.losses.IGNORE`. regions (``index``): the values of class 1, 2,
    ..., which may overlap.
    """

    name: str
    num_classes: int
    threshold: int | None = None
    codes: tuple[int, ...] = ()
    ignore: int | None = None
    regions: tuple[tuple[int, ...], ...] = ()


def decode_mask(mask: np.ndarray, coding: MaskCoding) -> np.ndarray:
    """Class index of every pixel: uint8 (H, W), 0..C-1 or `segexp.losses.IGNORE`; of ``regions``, see `region_bits`.

    mask: bool, uint8 or uint16, (H, W) grey values or palette indices (bool: 0 and 1, but 0 and 255 under
    ``binary`` and ``colors``) or (H, W, 3) RGB. Raises ValueError if a pixel does not fit the coding.
    """
    if coding.regions:
        labels = max(value for region in coding.regions for value in region) + 1
        return region_bits(_index(mask, dataclasses.replace(coding, num_classes=labels)), coding.regions)
    return CODINGS[coding.name](mask, coding)


def region_bits(label_HW: np.ndarray, regions: Sequence[Sequence[int]]) -> np.ndarray:
    """Sets of classes, uint8 (H, W): bit c - 1 where the value is one of region c, 0 where of none.

    regions: at most 7, so that no set is `segexp.losses.IGNORE`; ignored pixels stay. Values are below IGNORE.
    """
    bits_V = np.zeros(IGNORE + 1, dtype=np.uint8)
    for c, values in enumerate(regions):
        bits_V[list(values)] |= np.uint8(1 << c)
    bits_V[IGNORE] = IGNORE
    return bits_V[label_HW]


def check_coding(coding: MaskCoding) -> None:
    """Raise ValueError if the options of ``coding`` contradict each other."""
    name, classes, codes = coding.name, coding.num_classes, coding.codes
    if name not in CODINGS:
        raise ValueError(f"unknown mask_coding '{name}'{nearest(name, CODINGS)}")
    if not 2 <= classes <= MAX_CLASSES:
        raise ValueError(f"num_classes={classes} is out of range; valid: 2 (background and one class) to {MAX_CLASSES}")
    if name == "binary" and classes != 2:
        raise ValueError(f"mask_coding=binary needs num_classes=2, not {classes}; use index, values or colors")
    if name in ("values", "colors"):
        if len(codes) != classes:
            raise ValueError(f"mask_{name} lists {len(codes)} classes, but num_classes={classes}; make them equal")
        if len(set(codes)) != len(codes):
            raise ValueError(f"mask_{name} has the same entry for two classes; each class needs its own")
    values = [value for region in coding.regions for value in region]
    if any(not 0 < value < IGNORE for value in values):
        raise ValueError(f"regions hold mask values from 1 to {IGNORE - 1}: 0 is the background")
    known = values or (range(classes) if name == "index" else codes)
    if coding.ignore is not None and coding.ignore in known:
        raise ValueError(f"mask_coding={name}: an entry is both ignored and a class; remove one of them")


def innermost(mask_HW: np.ndarray) -> np.ndarray:
    """For pictures of classes that overlap: the highest class of each pixel's set, uint8; ignored pixels stay."""
    highest_V = np.array([value.bit_length() for value in range(IGNORE)] + [IGNORE], dtype=np.uint8)
    return highest_V[mask_HW]


def parse_color(text: str) -> int:
    """0xRRGGBB of "#rrggbb". Raises ValueError for any other text."""
    if not re.fullmatch(r"#[0-9a-fA-F]{6}", text):
        raise ValueError(f"'{text}' is not a colour; write it as '#rrggbb', in quotes")
    return int(text[1:], 16)


def _binary(mask: np.ndarray, coding: MaskCoding) -> np.ndarray:
    """Foreground above the threshold; by default above 127, or above 0 if the mask only contains 0 and 1. A colour
    mask (or a palette, read as colours) must have a single foreground colour."""
    values_HWK = mask.reshape(*mask.shape[:2], -1).astype(np.uint16)
    if mask.dtype == bool:
        values_HWK *= 255
    ignored_HW = np.zeros(mask.shape[:2], dtype=bool)
    if coding.ignore is not None:
        ignored_HW = (values_HWK == coding.ignore).all(axis=-1)
        values_HWK[ignored_HW] = 0
    threshold = coding.threshold
    if threshold is None:
        threshold = 0 if values_HWK.max() <= 1 else 127
        if threshold == 127 and values_HWK.max() <= 127:
            # Usually a mask of class indices, which would become all background without notice.
            found = _distinct(values_HWK)
            hint = f"{_hint(found)}, or dataset.mask_threshold"
            raise ValueError(f"{_shown(found)}: none above 127, but not only 0 and 1{hint}")
    above_HWK = values_HWK > threshold
    carries_K = above_HWK.any(axis=(0, 1))
    if carries_K.sum() > 1:
        signal_HWS, above_HWS = values_HWK[..., carries_K], above_HWK[..., carries_K]
        differ_HW = signal_HWS.max(axis=-1) - signal_HWS.min(axis=-1) > COLOUR_TOLERANCE
        if (differ_HW & above_HWS.any(axis=-1) & ~above_HWS.all(axis=-1)).any():
            cure = "set dataset.mask_coding=index with dataset.num_classes (palettes), or dataset.mask_coding=colors"
            raise ValueError(f"several foreground colours do not fit mask_coding=binary; {cure}")
    return np.where(ignored_HW, np.uint8(IGNORE), above_HWK.any(axis=-1))


def _index(mask: np.ndarray, coding: MaskCoding) -> np.ndarray:
    """The pixel value is the class."""
    value_HW = _grey(mask, "index")
    ignored_HW = np.zeros(value_HW.shape, dtype=bool) if coding.ignore is None else value_HW == coding.ignore
    outside_HW = (value_HW >= coding.num_classes) & ~ignored_HW
    if outside_HW.any():
        found = _distinct(value_HW[~ignored_HW])
        outside = [value for value in found if value >= coding.num_classes]
        hint = _void(value_HW, found, outside, f"set dataset.num_classes={outside[0] + 1}") or _hint(found)
        raise ValueError(f"{_shown(outside)} outside 0..{coding.num_classes - 1} (mask_coding=index){hint}")
    index_HW = value_HW.astype(np.uint8)
    index_HW[ignored_HW] = IGNORE
    return index_HW


def _values(mask: np.ndarray, coding: MaskCoding) -> np.ndarray:
    """The position of the pixel value in ``codes`` is the class."""
    value_HW = _grey(mask, "values")
    index_HW, unknown_HW = _look_up(value_HW, coding)
    if unknown_HW.any():
        outside = _distinct(value_HW[unknown_HW])
        counted_HW = value_HW != (-1 if coding.ignore is None else coding.ignore)
        listed = ", ".join(map(str, coding.codes))
        found = _distinct(value_HW[counted_HW])
        hint = _void(value_HW, found, outside, "add it to dataset.mask_values") or _hint(found)
        raise ValueError(f"{_shown(outside)} not in mask_values [{listed}]{hint}")
    return index_HW


def _colors(mask: np.ndarray, coding: MaskCoding) -> np.ndarray:
    """The position of the colour in ``codes`` is the class; a grey mask has the colours #000000 to #ffffff."""
    if mask.dtype == np.uint16:
        raise ValueError("16-bit pixels do not fit mask_coding=colors; try 'index' or 'values'")
    level = mask.astype(np.int32) * (255 if mask.dtype == bool else 1)
    red_HW, green_HW, blue_HW = (level, level, level) if mask.ndim == 2 else np.moveaxis(level, -1, 0)
    color_HW = (red_HW << 16) | (green_HW << 8) | blue_HW
    index_HW, unknown_HW = _look_up(color_HW, coding)
    if unknown_HW.any():
        unknown = _shown((f"#{color:06x}" for color in _distinct(color_HW[unknown_HW])), "colour")
        raise ValueError(f"{unknown} not in mask_colors ({int(unknown_HW.sum())} of {unknown_HW.size} pixels)")
    return index_HW


CODINGS: dict[str, Callable[[np.ndarray, MaskCoding], np.ndarray]] = {
    "binary": _binary,
    "index": _index,
    "values": _values,
    "colors": _colors,
}


def _grey(mask: np.ndarray, name: str) -> np.ndarray:
    """(H, W) of a grey mask, which may be saved as RGB with equal channels."""
    if mask.ndim == 2:
        return mask
    if (mask != mask[..., :1]).any():
        raise ValueError(f"coloured pixels do not fit mask_coding={name}; try 'colors'")
    return mask[..., 0]


def _look_up(code_HW: np.ndarray, coding: MaskCoding) -> tuple[np.ndarray, np.ndarray]:
    """uint8 (H, W) position of each pixel in ``coding.codes``, and bool (H, W) that is True for other pixels."""
    index_HW = np.zeros(code_HW.shape, dtype=np.uint8)
    unknown_HW = np.ones(code_HW.shape, dtype=bool)
    ignored = [] if coding.ignore is None else [(IGNORE, coding.ignore)]
    for index, code in [*enumerate(coding.codes), *ignored]:
        found_HW = code_HW == code
        index_HW[found_HW] = index
        unknown_HW[found_HW] = False
    return index_HW, unknown_HW


def _distinct(values: np.ndarray) -> list[int]:
    return [int(value) for value in np.unique(values)]


def _shown(values: Iterable[object], noun: str = "value") -> str:
    """ "value 3" or "values 3, 4, 5, 6, 7 and 12 more"."""
    texts = [str(value) for value in values]
    more = f" and {len(texts) - 5} more" if len(texts) > 5 else ""
    return f"{noun}{'s' if len(texts) > 1 else ''} {', '.join(texts[:5])}{more}"


RARE = 0.05
"""Share of a mask's pixels up to which a value that is no class is probably unlabelled."""


def _void(value_HW: np.ndarray, found: list[int], outside: list[int], otherwise: str) -> str:
    """The end of an error line if the only value ``outside`` the classes is probably that of unlabelled pixels."""
    void = outside[0]
    if len(outside) > 1 or len(found) < 3 or (void != IGNORE and (value_HW == void).mean() > RARE):
        return ""
    counted = "" if void == IGNORE else f"; if it is a class, {otherwise}"
    return f"; if it marks unlabelled pixels, set dataset.ignore_index={void}{counted}"


def _hint(found: list[int]) -> str:
    """The end of an error line: a coding that fits ``found``, all values of one mask."""
    classes = [value for value in found if value != IGNORE]
    if set(found) <= {0, 1} or set(found) <= {0, 255}:
        fits = "dataset.mask_coding=binary"
    elif classes and classes[-1] < 64:
        fits = f"dataset.mask_coding=index with dataset.num_classes={classes[-1] + 1} or more"
        fits += "" if classes == found else f" and dataset.ignore_index={IGNORE}"
    elif len(found) <= 32:
        fits = f"dataset.mask_coding=values with dataset.mask_values=[{','.join(map(str, found))}]"
    else:
        return f"; {len(found)} different values: is this a mask, saved without lossy compression?"
    return f"; this mask fits {fits}"
