"""Pixels of image and mask files, read as they are stored."""

import importlib
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from segexp.data.codings import MaskCoding, decode_mask
from segexp.data.file_set import FilesConfig, Item
from segexp.data.image_set import Header, ImageError, Pair, Source

T = TypeVar("T")

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # dataset.max_pixels is the limit

FORMATS = ("PNG", "JPEG", "TIFF", "BMP")  # the only decoders that run, for any file extension
GREY_MODES = ("1", "L", "LA", "I", "I;16", "I;16B", "I;16L")  # Pillow's modes of grey files

BITS_PER_SAMPLE, PHOTOMETRIC, ORIENTATION = 258, 262, 274  # TIFF tags


def channels_of(files: Iterable[Sequence[Path]]) -> int:
    """Channels of the images of a set, each the files of one image: one channel for each of several files, else 1 if
    every file is grey and 3 if not. Reads only file headers."""
    for paths in files:
        if len(paths) > 1:
            return len(paths)
        try:
            mode = with_image(paths[0], lambda image: image.mode)
        except ImageError:
            continue  # the check that reads every pair reports this file
        if mode not in GREY_MODES:
            return 3
    return 1


def is_volume(path: Path) -> bool:
    """Whether a file is NIfTI or DICOM, or a folder of DICOM files."""
    return path.name.lower().endswith((".nii", ".nii.gz", ".dcm")) or path.is_dir()


def _volumes(path: Path) -> Any:
    try:
        return importlib.import_module("segexp.data.volumes")
    except ModuleNotFoundError:
        raise ImageError(f"{path}: NIfTI and DICOM files are not supported") from None


def header_of(path: Path, config: FilesConfig) -> Header:
    """Size, channels and slices of an image file; decodes no pixels. Raises ImageError."""
    if is_volume(path):
        header: Header = _volumes(path).header_of(path)
        return header
    return with_image(
        path,
        lambda image: Header(
            f"{image.format}, {image.mode}", image.height, image.width, 1 if image.mode in GREY_MODES else 3
        ),
    )


def read_slice(path: Path, config: FilesConfig, k: int = 0, as_index: bool = False) -> tuple[np.ndarray, Source]:
    """Pixels (H, W) or (H, W, C) of slice k as they are stored, and what they are. Raises ImageError.

    as_index: a palette stands for its indices, not for its colours.
    """
    if is_volume(path):
        pixels: tuple[np.ndarray, Source] = _volumes(path).read_slice(path, k)
        return pixels
    return with_image(
        path,
        lambda image: (_decode(image, config.max_pixels, as_index), Source(f"{image.format}, {image.mode}")),
    )


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


def read_pair(item: Item, channels: int, coding: MaskCoding, config: FilesConfig) -> Pair:
    """The pixels of an item's files. Raises ImageError."""
    max_pixels, image_path, mask_path = config.max_pixels, item.images[0], item.masks[0]
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
