"""The classes that the pixels of a mask encode: four codings, each a plain function in `CODINGS`.

A coding maps the distinct values of a mask to classes. Errors are ValueErrors of one line, without a file name.
"""

import dataclasses
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from segexp.losses import IGNORE, MAX_CLASSES
from segexp.records.user_tables import some
from segexp.registry import nearest

FOREGROUND = (1, 255, 65535)
"""The values that mean foreground in a binary mask, beside 0."""

COLOUR_TOLERANCE = 32
"""Grey levels by which the channels of a pixel may differ in a binary mask that is cut, for rounding and JPEG."""

OUTLINE_SHARE = 0.05
"""Share of the pixels that are not black up to which those of a declared grey outline may lie away from an outline.

JPEG of quality 75 to 95 stays below it for objects of 3 pixels (0.6 % at most), as do resizing up to 4 times and a blur
of 1.5 pixels; objects in two or three grey levels exceed it 5 times, unless they are thinner than 5 pixels.
"""

GREY, GREY_REACH, FAINT_REACH = (32, 224), 2, 8
"""Pixels of GREY[0] to GREY[1] - 1 are grey, below are faint; how far from the outline (pixels) either is expected."""

BLACK = 2
"""Largest value that the black of a JPEG has, whose rounding may raise all of it by one (quality 68 to 70)."""


FEW = 8
"""Values in one mask up to which they are rather classes than an outline."""


@dataclass(frozen=True)
class MaskCoding:
    """A coding and its options.

    name: a key of `CODINGS`. threshold (``binary``): pixels above it are foreground; None: see `_binary`.
    codes: the grey values (``values``) or 0xRRGGBB (``colors``) of class 0, 1, ... ignore: the grey value, palette
    index or 0xRRGGBB (``colors``) that becomes `segexp.losses.IGNORE`. regions (``index``): the values of class 1, 2,
    ..., which may overlap. antialias (``binary``): outlines may be grey. ignore_other: values that are no class become
    IGNORE, too; not for ``binary``.
    """

    name: str
    num_classes: int
    threshold: int | None = None
    codes: tuple[int, ...] = ()
    ignore: int | None = None
    regions: tuple[tuple[int, ...], ...] = ()
    antialias: bool = False
    ignore_other: bool = False


@dataclass(frozen=True)
class MaskValues:
    """The V distinct values of a mask, ascending, and where they are, as runs of equal pixels.

    code_V: int64, grey values, palette indices (1-bit files: 0 and 1) or, if ``coloured``, 0xRRGGBB. pixels_V: number
    of pixels of each. shape: (height, width). dtype: of the mask.
    """

    code_V: np.ndarray
    pixels_V: np.ndarray
    coloured: bool
    dtype: np.dtype
    shape: tuple[int, ...]
    value_R: np.ndarray
    length_R: np.ndarray

    def spread(self, of_V: np.ndarray) -> np.ndarray:
        """(H, W) whose pixels have the entry of their value."""
        return np.repeat(of_V[self.value_R], self.length_R).reshape(self.shape)

    def names(self) -> list[str]:
        """The values as text: "255" or "#ff0000"."""
        return [f"#{code:06x}" if self.coloured else str(code) for code in self.code_V.tolist()]

    def levels_VK(self) -> np.ndarray:
        """Grey level (V, 1), or red, green and blue (V, 3); 0 and 255 for a 1-bit file."""
        if self.coloured:
            return self.code_V[:, np.newaxis] >> np.array([16, 8, 0]) & 255
        return self.code_V[:, np.newaxis] * (255 if self.dtype == bool else 1)


def values_of(mask: np.ndarray) -> MaskValues:
    """The distinct values of a mask: bool or integers, (H, W), or (H, W, 3) RGB, which is grey where all channels are
    equal. Raises ValueError for colours of more than 8 bits."""
    code_HW = mask
    coloured = mask.ndim == 3 and bool((mask != mask[..., :1]).any())
    if coloured and mask.dtype != np.uint8:
        raise ValueError(f"colours of {mask.dtype.itemsize * 8} bits; save the mask with 8 bits per channel")
    if coloured:
        code_HW = mask.astype(np.int64) @ np.array([1 << 16, 1 << 8, 1])
    elif mask.ndim == 3:
        code_HW = mask[..., 0]
    flat = np.ascontiguousarray(code_HW).reshape(-1)
    edges = np.concatenate(([0], np.flatnonzero(flat[1:] != flat[:-1]) + 1, [flat.size]))
    code_R, length_R = flat[edges[:-1]], edges[1:] - edges[:-1]
    if code_R.dtype == np.uint8:  # as np.unique, without sorting
        code_V = np.flatnonzero(np.bincount(code_R))
        position = np.zeros(256, dtype=np.intp)
        position[code_V] = np.arange(code_V.size)
        value_R = position[code_R]
    else:
        code_V, value_R = np.unique(code_R, return_inverse=True)
    pixels_V = np.bincount(value_R, weights=length_R).astype(np.int64)
    return MaskValues(code_V.astype(np.int64), pixels_V, coloured, mask.dtype, mask.shape[:2], value_R, length_R)


def decode_mask(mask: np.ndarray | MaskValues, coding: MaskCoding) -> np.ndarray:
    """Class index of every pixel: uint8 (H, W), 0..C-1 or `segexp.losses.IGNORE`; of ``regions``, see `region_bits`.

    mask: as `values_of` takes it, or its result. Raises ValueError if a value does not fit the coding.
    """
    found = mask if isinstance(mask, MaskValues) else values_of(mask)
    if not coding.regions:
        return found.spread(CODINGS[coding.name](found, coding))
    labels = max(value for region in coding.regions for value in region) + 1
    return found.spread(region_bits(_index(found, dataclasses.replace(coding, num_classes=labels)), coding.regions))


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
    if name == "binary" and coding.ignore_other:
        raise ValueError("mask_other=ignore has no effect with mask_coding=binary; use index, values or colors")
    if name != "binary" and coding.antialias:
        raise ValueError(f"mask_antialias has no effect with mask_coding={name}; unset it")
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


def planes_of(mask_HW: np.ndarray, overlapping: bool) -> dict[int, np.ndarray]:
    """For pictures: class -> where it is, for each foreground class in a mask. overlapping: of sets of classes."""
    if not overlapping:
        return {int(c): mask_HW == c for c in np.unique(mask_HW) if 0 < c < IGNORE}
    sets_HW = np.where(mask_HW == IGNORE, 0, mask_HW)
    planes = {c: (sets_HW >> (c - 1)) % 2 == 1 for c in range(1, IGNORE.bit_length())}
    return {c: plane_HW for c, plane_HW in planes.items() if plane_HW.any()}


def parse_color(text: str) -> int:
    """0xRRGGBB of "#rrggbb". Raises ValueError for any other text."""
    if not re.fullmatch(r"#[0-9a-fA-F]{6}", text):
        raise ValueError(f"'{text}' is not a colour; write it as '#rrggbb', in quotes")
    return int(text[1:], 16)


def _binary(found: MaskValues, coding: MaskCoding) -> np.ndarray:
    """Background 0 and foreground 1, 255 or 65535: a mask holds 0, one of these, or both, besides the ignored value.

    Any other value is refused: one mask cannot show whether 0 and 128 are two classes or a class of many. With
    ``antialias``, 8-bit masks are cut at 127 if grey pixels lie along outlines (see `OUTLINE_SHARE`). A threshold cuts
    any mask, in any channel of a single foreground colour.
    """
    ignored_V = np.zeros(found.code_V.shape, dtype=bool)
    if coding.ignore is not None:
        ignored_V = found.code_V == coding.ignore * (0x010101 if found.coloured else 1)
    counted_V = set(found.code_V[~ignored_V].tolist())
    level_VK = np.where(ignored_V[:, np.newaxis], 0, found.levels_VK())
    if coding.threshold is not None:
        class_V = _above(level_VK, coding.threshold)
    elif not found.coloured and any(counted_V <= {0, value} for value in FOREGROUND):
        class_V = found.code_V != 0
    else:
        class_V = level_VK.max(axis=1) > 127
        fault = _outline_fault(found, level_VK, class_V)
        if fault or not coding.antialias:
            cure = "; for grey outlines (JPEG, smoothing), set dataset.mask_antialias=true, which cuts at 127"
            cure += _hint(found).replace("; this", "; else this") if len(found.code_V) <= FEW else ""
            if fault:
                cure = _hint(found) + (" (index for a palette of class numbers)" if found.coloured else "")
                cure = f"; mask_antialias does not apply: {fault}{cure}" if coding.antialias else cure
            raise ValueError(f"{_shown(found)}: mask_coding=binary is 0 and 1, or 0 and 255{cure}")
    return np.where(ignored_V, np.uint8(IGNORE), class_V)


def _above(level_VK: np.ndarray, threshold: int) -> np.ndarray:
    above_VK = level_VK > threshold
    carries_K = above_VK.any(axis=0)
    if carries_K.sum() > 1:
        signal_VS, above_VS = level_VK[:, carries_K], above_VK[:, carries_K]
        differ_V = signal_VS.max(axis=1) - signal_VS.min(axis=1) > COLOUR_TOLERANCE
        if (differ_V & above_VS.any(axis=1) & ~above_VS.all(axis=1)).any():
            cure = "set dataset.mask_coding=index with dataset.num_classes (palettes), or dataset.mask_coding=colors"
            raise ValueError(f"several foreground colours do not fit mask_coding=binary; {cure}")
    return level_VK.max(axis=1) > threshold


def _outline_fault(found: MaskValues, level_VK: np.ndarray, class_V: np.ndarray) -> str:
    """Why the values between black and white are no grey outline, "" if they are."""
    from scipy.ndimage import binary_dilation, maximum_filter

    if found.dtype != np.uint8:
        return "it is for 8-bit masks"
    if (np.ptp(level_VK, axis=1) > COLOUR_TOLERANCE).any():
        return "the mask has colours"
    top_V = level_VK.max(axis=1)
    if not (top_V >= GREY[1]).any():
        return "no pixel is white"
    index_HW, far_pixels = found.spread(class_V), 0
    edge_HW = binary_dilation(index_HW) & binary_dilation(~index_HW)
    dark_V, grey_V = top_V < GREY[0], (top_V >= GREY[0]) & (top_V < GREY[1])
    black = int(top_V[np.argmax(np.where(dark_V, found.pixels_V, 0))])
    black = black if black <= BLACK else 0
    for kind_V, reach in ((grey_V, GREY_REACH), (dark_V & (top_V != black), FAINT_REACH)):
        near_HW = maximum_filter(edge_HW, 2 * reach - 1)
        far_pixels += int((found.spread(kind_V) & ~near_HW).sum())
    share = far_pixels / found.pixels_V[top_V != black].sum()
    far = f"{share:.0%} of the pixels that are not black lie between black and white, away from outlines"
    return far if share > OUTLINE_SHARE else ""


def _index(found: MaskValues, coding: MaskCoding) -> np.ndarray:
    """The value is the class."""
    code_V = _grey(found, "index")
    ignored_V = np.zeros(code_V.shape, dtype=bool) if coding.ignore is None else code_V == coding.ignore
    outside_V = ((code_V < 0) | (code_V >= coding.num_classes)) & ~ignored_V
    if outside_V.any() and not coding.ignore_other:
        cure = _more_classes(found, coding, outside_V) or _hint(found, ~ignored_V)
        raise ValueError(f"{_shown(found, outside_V)} outside 0..{coding.num_classes - 1} (mask_coding=index){cure}")
    return np.where(ignored_V | outside_V, IGNORE, code_V).astype(np.uint8)


def _more_classes(found: MaskValues, coding: MaskCoding, outside_V: np.ndarray) -> str:
    """The end of an error line about class numbers that are no class yet, "" if the values are no class numbers."""
    outside = found.code_V[outside_V].tolist()
    classes = [code for code in outside if code != IGNORE]
    if classes and not 0 <= min(classes) <= max(classes) < coding.num_classes + 64:
        return _void(found, outside_V, "set dataset.mask_coding=values")
    if {*found.code_V.tolist()} <= {0, IGNORE}:
        return ""
    cures = [f"dataset.num_classes={classes[-1] + 1}"] if classes else []
    if classes and coding.regions:
        cures = [f"dataset.regions with a region that lists {', '.join(map(str, classes))}"]
    cures += [f"dataset.ignore_index={IGNORE}"] if IGNORE in outside else []
    void = f", or dataset.ignore_index={outside[0]} if it marks unlabelled pixels"
    return f"; set {' and '.join(cures)}" + void * (len(outside) == 1 and bool(classes) and coding.ignore is None)


def _values(found: MaskValues, coding: MaskCoding) -> np.ndarray:
    """The position of the value in ``codes`` is the class."""
    class_V, unknown_V = _look_up(_grey(found, "values"), coding)
    if unknown_V.any():
        listed = ", ".join(map(str, coding.codes))
        hint = _void(found, unknown_V, "add it to dataset.mask_values")
        hint = hint or _hint(found, found.code_V != (-1 if coding.ignore is None else coding.ignore))
        raise ValueError(f"{_shown(found, unknown_V)} not in mask_values [{listed}]{hint}")
    return class_V


def _colors(found: MaskValues, coding: MaskCoding) -> np.ndarray:
    """The position of the colour in ``codes`` is the class; a grey mask has the colours #000000 to #ffffff."""
    if found.dtype not in (np.uint8, bool):
        raise ValueError("16-bit pixels do not fit mask_coding=colors; try 'index' or 'values'")
    color_V = found.code_V if found.coloured else found.levels_VK()[:, 0] * 0x010101
    class_V, unknown_V = _look_up(color_V, coding)
    if unknown_V.any():
        names = [f"#{color:06x}" for color in color_V[unknown_V]]
        count = f"{found.pixels_V[unknown_V].sum()} of {found.pixels_V.sum()} pixels"
        cure = "list them, or set dataset.mask_other=ignore if they count for nothing"
        noun = "colours" if len(names) > 1 else "colour"
        raise ValueError(f"{noun} {some(names)} not in mask_colors ({count}); {cure}")
    return class_V


CODINGS: dict[str, Callable[[MaskValues, MaskCoding], np.ndarray]] = {
    "binary": _binary,
    "index": _index,
    "values": _values,
    "colors": _colors,
}
"""Name of a coding -> its function: the values of a mask -> class of each, uint8 (V,)."""


def _grey(found: MaskValues, name: str) -> np.ndarray:
    if found.coloured:
        raise ValueError(f"coloured pixels do not fit mask_coding={name}; try 'colors'{_hint(found)}")
    return found.code_V


def _look_up(code_V: np.ndarray, coding: MaskCoding) -> tuple[np.ndarray, np.ndarray]:
    """uint8 (V,) position of each value in ``coding.codes``, and bool (V,) that is True for values that are refused."""
    class_V = np.full(code_V.shape, IGNORE, dtype=np.uint8)
    known_V = np.full(code_V.shape, coding.ignore_other) | (code_V == coding.ignore)
    for index, code in enumerate(coding.codes):
        class_V[code_V == code] = index
        known_V |= code_V == code
    return class_V, ~known_V


def _shown(found: MaskValues, of_V: np.ndarray | slice = slice(None)) -> str:
    names = np.array(found.names())[of_V].tolist()
    return f"{'colour' if found.coloured else 'value'}{'s' if len(names) > 1 else ''} {some(names)}"


RARE = 0.05
"""Share of a mask's pixels up to which a value that is no class is probably unlabelled."""


def _void(found: MaskValues, outside_V: np.ndarray, otherwise: str) -> str:
    """The end of an error line if the only value that is no class is probably that of unlabelled pixels."""
    void, share = found.code_V[outside_V][0], found.pixels_V[outside_V].sum() / found.pixels_V.sum()
    if outside_V.sum() > 1 or len(found.code_V) < 3 or (void != IGNORE and share > RARE):
        return ""
    counted = "" if void == IGNORE else f"; if it is a class, {otherwise}"
    return f"; if it marks unlabelled pixels, set dataset.ignore_index={void}{counted}"


def _hint(found: MaskValues, of_V: np.ndarray | slice = slice(None)) -> str:
    """The end of an error line: a coding that fits these values of one mask."""
    objects = "number objects of one class, set dataset.mask_coding=binary dataset.mask_threshold=0"
    codes = found.code_V[of_V].tolist()
    classes = [code for code in codes if code != IGNORE]
    if found.coloured and len(codes) <= 32:
        listed = ",".join(f'"{name}"' for name in found.names())
        fits = f"dataset.mask_coding=colors with dataset.num_classes={len(codes)} and 'dataset.mask_colors=[{listed}]'"
    elif found.coloured:
        return f"; {len(codes)} different colours: is this a mask, saved without lossy compression?"
    elif any({*codes} <= {0, value} for value in FOREGROUND):
        fits = "dataset.mask_coding=binary"
    elif classes and classes[0] >= 0 and classes[-1] < 64:
        fits = f"dataset.mask_coding=index with dataset.num_classes={classes[-1] + 1} or more"
        fits += "" if classes == codes else f" and dataset.ignore_index={IGNORE}"
    elif len(codes) <= 32:
        fits = f"dataset.mask_coding=values with dataset.num_classes={len(codes)} and "
        fits += f"dataset.mask_values=[{','.join(map(str, codes))}]"
    else:
        return f"; {len(codes)} different values: is this a mask, saved without lossy compression? If they {objects}"
    return f"; this mask fits {fits}" + f"; if its values {objects}" * (len(codes) > 3 and not found.coloured)
