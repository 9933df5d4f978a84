"""Pixels of image and mask files: reading them as they are stored, and the classes that the pixels of a mask encode.

There are four codings of masks, each a plain function in `CODINGS`: arrays in, arrays out. Their errors are ValueErrors
of one line, without a file name.
"""

import re
import warnings
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from segexp.data.image_set import ImageError, Pair
from segexp.losses import IGNORE, MAX_CLASSES
from segexp.registry import nearest

T = TypeVar("T")

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # dataset.max_pixels is the limit

FORMATS = ("PNG", "JPEG", "TIFF", "BMP")  # the only decoders that run, for any file extension
GREY_MODES = ("1", "L", "LA", "I", "I;16", "I;16B", "I;16L")  # Pillow's modes of grey files

BITS_PER_SAMPLE, PHOTOMETRIC, ORIENTATION = 258, 262, 274  # TIFF tags

COLOUR_TOLERANCE = 32
"""Grey levels by which the channels of a pixel may differ in a binary mask, for rounding and JPEG artefacts."""


@dataclass(frozen=True)
class MaskCoding:
    """A coding and its options.

    name: a key of `CODINGS`. threshold (``binary``): pixels above it are foreground; None chooses it from the mask.
    codes: the grey values (``values``) or 0xRRGGBB (``colors``) of class 0, 1, ... ignore: the grey value, palette
    index or 0xRRGGBB (``colors``) that becomes `segexp.losses.IGNORE`.
    """

    name: str
    num_classes: int
    threshold: int | None = None
    codes: tuple[int, ...] = ()
    ignore: int | None = None


def decode_mask(mask: np.ndarray, coding: MaskCoding) -> np.ndarray:
    """Class index of every pixel: uint8 (H, W), 0..C-1 or `segexp.losses.IGNORE`.

    mask: bool, uint8 or uint16, (H, W) grey values or palette indices (bool: 0 and 1, but 0 and 255 under
    ``binary`` and ``colors``) or (H, W, 3) RGB. Raises ValueError if a pixel does not fit the coding.
    """
    return CODINGS[coding.name](mask, coding)


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
    if coding.ignore is not None and coding.ignore in (range(classes) if name == "index" else codes):
        raise ValueError(f"mask_coding={name}: an entry is both ignored and a class; remove one of them")


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


def channels_of(paths: Iterable[Path]) -> int:
    """1 if every file is grey, else 3; reads only file headers."""
    for path in paths:
        try:
            mode = with_image(path, lambda image: image.mode)
        except ImageError:
            continue  # the check that reads every pair reports this file
        if mode not in GREY_MODES:
            return 3
    return 1


TURNED = (
    "images have another EXIF orientation than their masks, and pixels are used as they are stored: save both upright, "
    "without an orientation"
)
GREYS = (
    "masks hold many grey pixels, neither black nor white, which are divided at 127: if they are classes or objects, "
    "use another dataset.mask_coding (index for pixels of 1, 2, 3); dataset.mask_threshold=127 accepts them"
)
GREY_SHARE = 0.25
"""Share of the pixels that are not black, above which grey ones are no blurred outline."""


def _is_turned(image: ImageFile) -> bool:
    return "exif" in image.info and image.getexif().get(ORIENTATION, 1) != 1


def _has_greys(mask: np.ndarray, indices: bool) -> bool:
    """Whether many pixels are between an eighth and seven eighths of the largest value.

    indices: also whether most that are not 0 are below an eighth, as class indices beside a 255 for unlabelled pixels.
    """
    top = int(mask.max())
    if indices and mask.ndim == 2 and top > 1 and np.count_nonzero(mask) > 2 * (mask > top // 8).sum():
        return True
    marked = mask[mask > top // 8] if mask.dtype != bool and top > 1 else mask[:0]
    return bool(marked.size and (marked < top - top // 8).mean() > GREY_SHARE)


def read_pair(image_path: Path, mask_path: Path, channels: int, coding: MaskCoding, max_pixels: int) -> Pair:
    """max_pixels: larger files are refused before they are decoded. Raises ImageError."""
    pixels, turned = with_image(image_path, lambda image: (_decode(image, max_pixels), _is_turned(image)))
    image_HWC = _with_channels(pixels, channels)
    # The colours of a palette of classes are arbitrary, but those of a binary mask mark the foreground.
    as_index = coding.name in ("index", "values")
    mask, mask_turned = with_image(
        mask_path, lambda image: (_decode_mask(image, max_pixels, as_index), _is_turned(image))
    )
    if image_HWC.shape[:2] != mask.shape[:2]:
        (height, width), (mask_height, mask_width) = image_HWC.shape[:2], mask.shape[:2]
        rotated = "; is one rotated by an EXIF orientation?" if (height, width) == (mask_width, mask_height) else ""
        sizes = f"{width}x{height} pixels, its mask {mask_path} {mask_width}x{mask_height}"
        raise ImageError(f"{image_path} has {sizes} (width x height){rotated}")
    doubts = [TURNED] if turned != mask_turned else []
    # JPEG has such values around every object.
    indices = coding.ignore is None and mask_path.suffix.lower() not in (".jpg", ".jpeg")
    doubts += [GREYS] if coding.name == "binary" and coding.threshold is None and _has_greys(mask, indices) else []
    try:
        return Pair(image_HWC, decode_mask(mask, coding), tuple(doubts))
    except ValueError as error:
        if mask_path.suffix.lower() in (".jpg", ".jpeg") and as_index:
            values = str(error).partition("; this mask fits")[0]
            error = ValueError(f"{values}; JPEG compression changes class numbers: save masks as PNG")
        raise ImageError(f"{mask_path}: {error}") from None


def with_image(path: Path, use: Callable[[ImageFile], T]) -> T:
    """The result of ``use(image)`` for the opened file. Any exception becomes an ImageError that names the file."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            return use(image)
    except UnidentifiedImageError:
        raise ImageError(f"{path}: {_kind_of(path)}; save it as PNG") from None
    except Exception as error:  # Pillow's decoders raise errors of many kinds on broken files
        raise ImageError(f"{path}: {error}") from error


SIGNATURES = {"WebP": (8, b"WEBP"), "GIF": (0, b"GIF8"), "HEIC or AVIF": (4, b"ftyp"), "JPEG 2000": (4, b"jP")}
"""Formats that are found under a wrong extension -> where in a file which bytes say so."""


def _kind_of(path: Path) -> str:
    """What a file is that Pillow cannot identify."""
    with suppress(Exception), path.open("rb") as file:
        head = file.read(16)
        for name, (start, signature) in SIGNATURES.items():
            if head[start:].startswith(signature):
                return f"a {name} file, whatever its name; supported: {', '.join(FORMATS)}"
        tags = ImageFileDirectory_v2(head[:8])  # of a TIFF
        file.seek(tags.next)
        tags.load(file)
        return f"TIFF with {tags[BITS_PER_SAMPLE][0]} bits per sample; only integers of 8 and 16 bits are supported"
    return "not an image file"


def _decode_mask(image: ImageFile, max_pixels: int, as_index: bool) -> np.ndarray:
    if getattr(image, "tag_v2", {}).get(PHOTOMETRIC) == 0:
        raise ValueError("TIFF stored as WhiteIsZero, which programs read in opposite ways; save the mask as PNG")
    mask = _decode(image, max_pixels, as_index)
    if image.has_transparency_data and not as_index and (mask == mask[:1, :1]).all():
        alpha_HW = np.array(image.convert("RGBA"))[..., 3]
        if alpha_HW.min() != alpha_HW.max():
            raise ValueError("one colour everywhere, only the alpha channel differs; save that channel as the mask")
    return mask


def _decode(image: ImageFile, max_pixels: int, palette_as_index: bool = False) -> np.ndarray:
    """(H, W) of a grey file or of palette indices, else (H, W, 3) RGB; bool, uint8 or uint16, as stored."""
    if image.width * image.height > max_pixels:
        raise ValueError(
            f"{image.width} x {image.height} pixels are more than dataset.max_pixels={max_pixels}; use smaller images, "
            "or raise the limit"
        )
    if image.format == "TIFF":
        _check_tiff(image)
    raw_mode = image.tile[0][3] if image.format == "PNG" else None
    if raw_mode == "LA;16B":
        raise ValueError("16-bit grey with alpha cannot be read at full depth")
    if raw_mode in ("RGB;16B", "RGBA;16B"):
        return _decode_rgb16(image)
    image.load()
    if image.mode == "F":
        raise ValueError("floating point pixels; only 8-bit and 16-bit integers are supported")
    if image.mode == "LA":
        return np.array(image.getchannel("L"))
    if image.mode in GREY_MODES or (image.mode == "P" and palette_as_index):
        pixels_HW = np.array(image)
        if pixels_HW.dtype in (bool, np.uint8):
            return pixels_HW
        if pixels_HW.min() < 0 or pixels_HW.max() > 65535:
            raise ValueError(f"values {pixels_HW.min()} to {pixels_HW.max()} do not fit unsigned 16 bits")
        return pixels_HW.astype(np.uint16)
    # By way of RGBA, because Pillow would warn about every palette with transparency.
    return np.array(image.convert("RGBA").convert("RGB") if image.mode == "P" else image.convert("RGB"))


def _check_tiff(image: ImageFile) -> None:
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        raise ValueError(f"TIFF with {frames} pages; only one page is supported")
    tags = getattr(image, "tag_v2", {})
    if len(tags.get(BITS_PER_SAMPLE, (1,))) > 1 and max(tags[BITS_PER_SAMPLE]) > 8:
        raise ValueError("TIFF with more than 8 bits per colour cannot be read at full depth; use PNG")
    if tags.get(ORIENTATION, 1) != 1:
        raise ValueError(f"TIFF with orientation {tags[ORIENTATION]}; only orientation 1 (upright) is supported")


def _decode_rgb16(image: ImageFile) -> np.ndarray:
    """uint16 (H, W, 3) of a 16-bit RGB(A) PNG. Pillow keeps one byte of each sample, so it is decoded twice."""
    *rest, raw_mode = image.tile[0]
    with Image.open(image.filename, formats=FORMATS) as low:
        low.tile = [(*rest, str(raw_mode).replace("16B", "16L"))]  # type: ignore[list-item]
        low_HWC = np.array(low, dtype=np.uint16)
    return ((np.array(image, dtype=np.uint16) << 8) | low_HWC)[..., :3]


def _with_channels(pixels: np.ndarray, channels: int) -> np.ndarray:
    """C-contiguous uint8 or uint16 (H, W, channels); grey is repeated, colour is converted to luma (ITU-R BT.601)."""
    if pixels.dtype == bool:
        pixels = pixels.astype(np.uint8) * 255
    if pixels.ndim == 2:
        pixels = pixels[..., np.newaxis].repeat(channels, axis=-1)
    elif channels == 1:
        pixels = np.rint(pixels @ np.array([[0.299], [0.587], [0.114]])).astype(pixels.dtype)
    return np.ascontiguousarray(pixels)
