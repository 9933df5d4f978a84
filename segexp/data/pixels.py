"""Pairs of image and mask: the files of an item, read as they are stored and held against each other.

What changes the meaning of pixels is honoured alike for image and mask, or refused.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from segexp.data import volumes
from segexp.data.codings import BLACK, MaskCoding, MaskValues, decode_mask, values_of
from segexp.data.file_set import FilesConfig, Item, gone, is_volume
from segexp.data.image_set import Header, ImageError, Pair, Source
from segexp.data.rasters import FORMATS, NPY, Stored, array_header, picture_header, read_array, read_picture, turned
from segexp.errors import first_line
from segexp.losses import IGNORE
from segexp.records.formatting import pluralize

TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the last two: BigTIFF
SHOWN_VALUES = 300
"""Values of a mask that its `Source` lists, the most frequent ones."""
OTHERS = {"HEIC or AVIF": (4, b"ftyp"), "JPEG 2000": (4, b"jP"), "DICOM": (128, b"DICM"), "HDF5": (0, b"\x89HDF")}
"""Formats that are found under a wrong extension -> where in a file which bytes say so."""


def header_of(path: Path, config: FilesConfig) -> Header:
    """Size, channels and slices of an image file; decodes no pixels. Raises ImageError."""
    if is_volume(path):
        return volumes.header_of(path)
    with _opened(path) as (file, head):
        if head[:4] in TIFF:
            from segexp.data.tiffs import tiff_header

            return tiff_header(path, config.pages)
        if head.startswith(NPY):
            return array_header(path, config.pages)
        with Image.open(file, formats=FORMATS) as image:
            return picture_header(image)


def stored(path: Path, config: FilesConfig, k: int = 0, as_index: bool = False) -> Stored:
    """The pixels of slice k as the file holds them. as_index: a palette stands for its indices, not for its colours.

    Raises ImageError; UsageError if a package that reads the file is not installed.
    """
    if is_volume(path):
        return Stored(*volumes.read_slice(path, k))
    with _opened(path) as (file, head):
        if head[:4] in TIFF:
            from segexp.data.tiffs import read_tiff

            return read_tiff(path, config.max_pixels, config.pages, k, as_index)
        if head.startswith(NPY):
            return read_array(path, config.max_pixels, config.pages, k)
        if k:
            raise ValueError(f"no slice {k}: a file of one image")
        with Image.open(file, formats=FORMATS) as image:
            image.filename = str(path)
            return read_picture(image, config.max_pixels, as_index)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, bytes]]:
    """The open file and its first bytes; any exception becomes an ImageError."""
    try:
        with path.open("rb") as file:
            head = file.read(8)
            if not head:
                raise ValueError("an empty file")
            file.seek(0)
            yield file, head
    except Exception as error:  # decoders raise errors of many kinds on broken files
        raise _named(path, error) from error


def _named(path: Path, error: Exception) -> ImageError:
    if wrong := gone(path):
        return ImageError(f"{path}: {wrong}")
    if not isinstance(error, UnidentifiedImageError):
        return ImageError(f"{path}: {first_line(error)}")
    with path.open("rb") as file:
        head = file.read(160)
    for name, (start, signature) in OTHERS.items():
        if head[start:].startswith(signature):
            return ImageError(f"{path}: a {name} file, whatever its name; save it as PNG")
    return ImageError(f"{path}: not an image file; supported: {', '.join(FORMATS)}, .npy, NIfTI, DICOM")


def channels_of(items: Iterable[Sequence[Path]], config: FilesConfig) -> int:
    """Channels of the images of a set, each the files of one image: one channel for each of several files, else what
    the first file that is not grey has. Reads only file headers."""
    known: set[Path] = set()
    for paths in items:
        if len(paths) > 1:
            return len(paths)
        if paths[0] in known:
            continue
        known.add(paths[0])
        try:
            channels = header_of(paths[0], config).channels
        except ImageError:
            continue  # the check that reads every pair reports this file
        if channels != 1:
            return channels
    return 1


def read_pair(item: Item, channels: int, coding: MaskCoding, config: FilesConfig) -> Pair:
    """The pixels of an item's files; of an item without masks, all are of class 0. Raises ImageError."""
    k = item.slice or 0
    if len(item.masks) > 1 and coding.name != "binary":
        raise ImageError(f"{item.masks[0]} and {item.masks[1]}: several masks of one image need mask_coding=binary")
    if grids := [path for path in (*item.images, *item.masks) if is_volume(path)]:
        volumes.check_grids(grids)
    images = [_read_image(path, k, config) for path in item.images]
    # The colours of a palette of classes are arbitrary, but those of a binary mask mark the foreground.
    labels = [stored(path, config, k, as_index=coding.name in ("index", "values")) for path in item.masks]
    sources = [*(source for _, source in images), *(label.source for label in labels)]
    _check_orientation(item, sources, config.orientation)
    if config.orientation == "upright":
        images = [(turned(pixels, source.orientation), source) for pixels, source in images]
        labels = [label.upright() for label in labels]
    paths, arrays = (*item.images, *item.masks), [*(pixels for pixels, _ in images), *(one.pixels for one in labels)]
    height, width = arrays[0].shape[:2]
    for path, array in zip(paths, arrays, strict=True):
        if array.shape[:2] != (height, width):
            swapped = "; is one of them turned?" if array.shape[:2] == (width, height) else ""
            sizes = f"{width}x{height} pixels, {path} {array.shape[1]}x{array.shape[0]}"
            raise ImageError(f"{paths[0]} has {sizes} (width x height){swapped}")
    try:
        image_HWC = _with_channels(_joined([pixels for pixels, _ in images]), channels)
    except ValueError as error:
        raise ImageError(f"{paths[0]}: {error}") from None
    masks = [_classes(path, label, coding) for path, label in zip(item.masks, labels, strict=True)]
    of_images, of_masks = (tuple(source for _, source in files) for files in (images, masks))
    types = [pixels.dtype.name for pixels, _ in images]
    dtypes = "+".join(types) if len(set(types)) > 1 else ""
    mask_HW = _united([mask_HW for mask_HW, _ in masks]) if masks else np.zeros((height, width), np.uint8)
    return Pair(image_HWC, mask_HW, of_images, of_masks, dtypes)


def _check_orientation(item: Item, sources: Sequence[Source], rule: str) -> None:
    paths = (*item.images, *item.masks)
    for path, source in zip(paths, sources, strict=True):
        if rule == "refuse" and source.orientation != sources[0].orientation:
            raise ImageError(
                f"{paths[0]} has orientation {sources[0].orientation} (EXIF or TIFF tag), {path} {source.orientation}: "
                "set dataset.orientation=stored if their pixels lie alike in the files, or dataset.orientation=upright "
                "if each is right when turned by its tag"
            )


def _read_image(path: Path, k: int, config: FilesConfig) -> tuple[np.ndarray, Source]:
    """(H, W) or (H, W, C) of a type that `Pair` has."""
    found = stored(path, config, k)
    pixels, alpha_HW = found.pixels, found.alpha_HW
    try:
        if alpha_HW is not None and config.channels == (colours := pixels.shape[2] if pixels.ndim == 3 else 1) + 1:
            pixels = np.dstack([pixels, alpha_HW])
        elif alpha_HW is not None and (alpha_HW != alpha_HW.flat[0]).any():
            raise ValueError(
                "an alpha channel that is not the same everywhere: save the image without it, or set "
                f"dataset.channels={colours + 1} to use it as a channel"
            )
        return _delivered(pixels), found.source
    except ValueError as error:
        raise ImageError(f"{path}: {error}") from None


def _delivered(pixels: np.ndarray) -> np.ndarray:
    """The same numbers as uint8, uint16, int16 or float32 (floats rounded to it); 1-bit pixels as 0 and 255.

    Raises ValueError for other numbers.
    """
    kind = pixels.dtype
    if kind.kind == "b":
        return pixels.astype(np.uint8) * np.uint8(255)
    if kind in (np.uint8, np.uint16, np.int16):
        return pixels
    if kind.kind not in "iuf":
        raise ValueError(f"{kind} pixels; save real numbers")
    if kind == np.int8:
        return pixels.astype(np.int16)
    if kind.kind == "f":
        with np.errstate(over="ignore"):
            result = pixels.astype(np.float32)
        if not np.isfinite(result).all():
            raise ValueError("NaN or infinite pixels; replace them")
        return result
    low, high = int(pixels.min()), int(pixels.max())
    for narrow in (np.uint16, np.int16):
        if np.iinfo(narrow).min <= low and high <= np.iinfo(narrow).max:
            return pixels.astype(narrow)
    result = pixels.astype(np.float32)
    if (result.astype(np.float64) != pixels).any() or max(-low, high) > 2**53:
        raise ValueError(f"{kind} pixels from {low} to {high}, which 32-bit floats cannot hold; scale them")
    return result


def _joined(images: Sequence[np.ndarray]) -> np.ndarray:
    """The channels of several files as one image; of one file, its pixels."""
    if len(images) == 1:
        return images[0]
    grey = [image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image for image in images]
    if any(image.ndim != 2 for image in grey):
        raise ValueError("colours in one of several files; each holds one channel")
    kinds = {image.dtype for image in grey}
    return np.stack(grey, axis=-1) if len(kinds) == 1 else np.stack([g.astype(np.float32) for g in grey], axis=-1)


def _with_channels(pixels: np.ndarray, channels: int) -> np.ndarray:
    """C-contiguous (H, W, channels); grey is repeated to 3, colour becomes luma (ITU-R BT.601) for 1."""
    if pixels.ndim == 2:
        pixels = pixels[..., np.newaxis]
    found = pixels.shape[2]
    if (found, channels) == (1, 3):
        pixels = pixels.repeat(channels, axis=-1)
    elif (found, channels) == (3, 1):
        luma = pixels @ np.array([[0.299], [0.587], [0.114]])
        pixels = (luma if pixels.dtype.kind == "f" else np.rint(luma)).astype(pixels.dtype)
    elif found != channels:
        cure = "make files alike (.npy and TIFF hold any number of channels), or train with another dataset.channels"
        raise ValueError(f"{pluralize(found, 'channel')}, but the set has {channels}; {cure}")
    return np.ascontiguousarray(pixels)


def _classes(path: Path, found: Stored, coding: MaskCoding) -> tuple[np.ndarray, Source]:
    """Classes (H, W) of a mask, and what the file holds with the values of its pixels."""
    try:
        mask = _whole(found.pixels)
        if mask.ndim == 3 and mask.shape[2] not in (1, 3):
            cure = "; dataset.pages=slices reads (D, H, W) slice by slice" if "NumPy" in found.source.kind else ""
            raise ValueError(f"{mask.shape[2]} channels; a mask has one, or red, green and blue{cure}")
        if found.scaled and coding.name in ("index", "values"):
            raise ValueError("grey levels of 2 or 4 bits, which programs read as 0, 1, 2 or as 0 to 255; save 8 bits")
        values = values_of(mask)
        dark = found.lossy and values.code_V[-1] <= BLACK and values.code_V[-1] > 0 and coding.threshold is None
        black = dark and coding.antialias and values.code_V.size == 1  # an empty mask, whose black has been rounded
        if found.lossy and (coding.name != "binary" or (dark and not black)):
            declare = ", or if 0 and 255 were saved, set dataset.mask_antialias=true" if coding.name == "binary" else ""
            raise ValueError(
                f"lossy compression (JPEG, WebP) changes class numbers and colours: save masks as PNG{declare}"
            )
        mask_HW = np.zeros(values.shape, np.uint8) if black else decode_mask(values, coding)
        if found.alpha_HW is not None:
            _check_alpha(found.alpha_HW, mask_HW, coding)
    except ValueError as error:
        raise ImageError(f"{path}: {error}") from None
    indices = values.code_V[: len(found.palette)].tolist() if found.palette else []
    colours = {str(v): "#" + bytes(rgb).hex() for v in indices if (rgb := found.palette[3 * v : 3 * v + 3])}
    return mask_HW, Source(found.source.kind, found.source.orientation, _counts(values), colours)


def _counts(values: MaskValues) -> dict[str, int]:
    """Stored value -> pixels, the most frequent values first."""
    counts = sorted(zip(values.names(), values.pixels_V.tolist(), strict=True), key=lambda value: -value[1])
    return dict(counts[:SHOWN_VALUES])


def pair_of(name: str, image: np.ndarray, mask: np.ndarray, channels: int, coding: MaskCoding) -> Pair:
    """The pair of an image (H, W) or (H, W, C) and a mask (H, W) or (H, W, 3) of arrays. name: for messages.

    Raises ImageError.
    """
    try:
        image_HWC = _with_channels(_delivered(np.array(image)), channels)
        values = values_of(_whole(np.array(mask)))
        kinds = [f"array, {array.dtype}" for array in (image, mask)]
        sources = Source(kinds[0]), Source(kinds[1], values=_counts(values))
        return Pair(image_HWC, decode_mask(values, coding), sources[:1], sources[1:])
    except ValueError as error:
        raise ImageError(f"{name}: {error}") from None


def _whole(mask: np.ndarray) -> np.ndarray:
    """The same numbers as bool, uint8, uint16 or int64. Raises ValueError if some are no whole numbers."""
    if mask.dtype in (bool, np.uint8, np.uint16):
        return mask
    if mask.dtype.kind not in "iuf" or not (mask == np.rint(mask)).all() or np.abs(mask).max() >= 2**62:
        raise ValueError(f"{mask.dtype} values that are no whole numbers; save class numbers")
    for narrow in (np.uint8, np.uint16):
        if mask.min() >= 0 and mask.max() <= np.iinfo(narrow).max:
            return mask.astype(narrow)
    return mask.astype(np.int64)


def _check_alpha(alpha_HW: np.ndarray, mask_HW: np.ndarray, coding: MaskCoding) -> None:
    """Raise ValueError if alpha does not only repeat the classes: then it may be the mask."""
    low, high = int(alpha_HW.min()), int(alpha_HW.max())
    opaque_HW = alpha_HW > (low + high) // 2
    shares = {c: opaque_HW[mask_HW == c].mean() for c in np.unique(mask_HW).tolist()}
    reversed_ = coding.name == "binary" and shares.get(1, 1) < shares.get(0, 0)
    if low != high and (reversed_ or any(share not in (0, 1) for share in shares.values())):
        raise ValueError(
            "the alpha channel and the colours show different objects: save the mask without alpha, or save that "
            "channel as the mask"
        )


def _united(masks: Sequence[np.ndarray]) -> np.ndarray:
    """Foreground of any of several binary masks; ignored where one ignores and none has foreground."""
    if len(masks) == 1:
        return masks[0]
    masks_NHW = np.stack(masks)
    ignored_HW = (masks_NHW == IGNORE).any(axis=0)
    return np.where((masks_NHW == 1).any(axis=0), np.uint8(1), np.where(ignored_HW, np.uint8(IGNORE), np.uint8(0)))
