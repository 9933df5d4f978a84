"""One image file as it is stored: what Pillow decodes (PNG, JPEG, WebP, GIF, BMP, and TIFF in part), and .npy.

Nothing that changes the meaning of pixels is applied here in silence: orientation and alpha are handed on, an embedded
colour profile or gamma is named in `Source.kind`, and what has two readings is refused. Errors are ValueErrors.
"""

import re
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.ImageFile import ImageFile

from segexp.data.image_set import Header, Source

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # dataset.max_pixels is the limit

FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "GIF")  # the only decoders that run, for any file extension
NAMES = {"JPEG": "JPEG", "MPO": "JPEG", "WEBP": "WebP"}
COLOURS = {"1": "grey", "L": "grey", "I": "grey", "F": "grey", "P": "palette", "RGB": "RGB"}
COLOURS |= dict.fromkeys(("I;16", "I;16B", "I;16L"), "grey") | dict.fromkeys(("LA", "La"), "grey + alpha")
COLOURS |= dict.fromkeys(("RGBA", "RGBa"), "RGB + alpha") | {"PA": "palette + alpha"}
"""Pillow's modes that are read -> their name. Others (CMYK, YCbCr, LAB, HSV) can be converted in several ways."""
MAX_CHANNELS = 32
ORIENTATION = 274  # tag of EXIF and TIFF
NPY = b"\x93NUMPY"


@dataclass(frozen=True)
class Stored:
    """Pixels as a file holds them: (H, W), or (H, W, C); a palette as colours or as indices.

    alpha_HW: what is apart from the pixels; None without alpha. lossy: the values are not those that were saved.
    scaled: grey levels of 2 or 4 bits, which are spread over 0..255 as most programs do. palette: the colours of
    indices, red, green and blue of each, where pixels are indices.
    """

    pixels: np.ndarray
    source: Source
    alpha_HW: np.ndarray | None = None
    lossy: bool = False
    scaled: bool = False
    palette: tuple[int, ...] = ()

    def upright(self) -> "Stored":
        """The same, turned by its orientation tag."""
        alpha_HW, tag = self.alpha_HW, self.source.orientation
        alpha_HW = None if alpha_HW is None else turned(alpha_HW, tag)
        return replace(self, pixels=turned(self.pixels, tag), alpha_HW=alpha_HW)


UNDONE = {orientation: {6: 8, 8: 6}.get(orientation, orientation) for orientation in range(10)}
"""Orientation -> the one that turns the result back."""


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """(H, W, ...) upright, as an orientation tag (EXIF, TIFF 6.0: Orientation) says; sides may swap."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)  # then as 1 to 4
        orientation = {5: 1, 6: 2, 7: 3, 8: 4}.get(orientation, 1)
    up_down, left_right = orientation in (3, 4), orientation in (2, 3)
    return np.ascontiguousarray(pixels[:: -1 if up_down else 1, :: -1 if left_right else 1])


def check_size(width: int, height: int, max_pixels: int) -> None:
    """Raise ValueError if a file has no pixels, or more than are decoded."""
    if width * height < 1:
        raise ValueError("no pixels")
    if width * height > max_pixels:
        raise ValueError(
            f"{width} x {height} pixels are more than dataset.max_pixels={max_pixels}; use smaller images, "
            "or raise the limit"
        )


def picture_header(image: ImageFile) -> Header:
    """The header of a file that Pillow has opened."""
    grey = COLOURS.get(image.mode, "").startswith("grey")
    return Header(_kind(image), image.height, image.width, channels=1 if grey else 3)


def read_picture(image: ImageFile, max_pixels: int, as_index: bool) -> Stored:
    """The pixels of a file that Pillow has opened, but for TIFF. as_index: a palette stands for its indices."""
    check_size(image.width, image.height, max_pixels)
    frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    if frames > 1:
        raise ValueError(f"{frames} frames of an animation; save one of them as a file of its own")
    _check_bmp(image)
    kind, lossy, scaled = _kind(image), _is_lossy(image), image.mode == "L" and _bits(image) < 8
    pixels, alpha_HW = decoded(image, as_index)
    orientation = int(image.getexif().get(ORIENTATION, 1)) if _METADATA & image.info.keys() else 1
    palette = tuple(image.getpalette("RGB") or ()) if as_index and image.mode == "P" else ()
    return Stored(pixels, Source(kind, orientation if 2 <= orientation <= 8 else 1), alpha_HW, lossy, scaled, palette)


def _check_bmp(image: ImageFile) -> None:
    """Raise ValueError for a BMP whose palette is grey, but whose pixels have more bits than Pillow then reads."""
    if image.format == "BMP" and image.mode in ("1", "L"):
        with Path(str(image.filename)).open("rb") as file:
            head = file.read(30)
        bits = head[24 if head[14] == 12 else 28]  # a header of 12 bytes is that of OS/2
        if bits != _bits(image):
            raise ValueError(f"a BMP of {bits} bits with few grey levels, which is decoded wrong; save it as PNG")


_METADATA = {"exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"}
"""Where Pillow finds an orientation."""


def decoded(image: ImageFile, as_index: bool = False) -> tuple[np.ndarray, np.ndarray | None]:
    """Pixels and alpha of a file that Pillow has opened, in the depth that it has."""
    if image.mode not in COLOURS:
        raise ValueError(f"{image.mode} colours; save it as RGB or grey")
    raw_mode = str(_raw_mode(image))
    if raw_mode.startswith("LA;16"):
        raise ValueError("16-bit grey with alpha cannot be read at full depth; save it without alpha")
    transparent, bits = image.info.get("transparency"), _bits(image)
    if raw_mode.startswith(("RGB;16", "RGBA;16")):
        pixels = _rgb16(image, raw_mode)
    elif image.mode in ("P", "PA") and not as_index:
        return _apart(image.convert("RGBA"))  # Pillow knows which entries are transparent
    elif image.mode == "RGBA":
        return _apart(image)
    else:
        pixels = np.array(image)
    if pixels.ndim == 3 and pixels.shape[2] in (2, 4):
        return pixels[..., 0] if pixels.shape[2] == 2 else pixels[..., :3], pixels[..., -1]
    if isinstance(transparent, int | tuple) and image.mode != "P":
        scale = 255 // ((1 << bits) - 1) if bits in (2, 4) else 1
        seen = pixels != (np.array(transparent) * scale).astype(pixels.dtype)
        return pixels, (seen.any(axis=-1) if seen.ndim == 3 else seen).astype(np.uint8) * 255
    return pixels.astype(pixels.dtype.newbyteorder("=")), None


def _apart(rgba: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    size = rgba.height, rgba.width  # packing is faster than convert("RGB") and getchannel("A"), and gives the same
    rgb, alpha = bytearray(rgba.tobytes("raw", "RGB")), rgba.tobytes("raw", "A")
    return np.frombuffer(rgb, np.uint8).reshape(*size, 3), np.frombuffer(alpha, np.uint8).reshape(size)


def _raw_mode(image: ImageFile) -> object:
    """How samples are packed in the file, in Pillow's words, as "RGB;16B"; "" where Pillow does not say."""
    if image.format not in ("PNG", "TIFF") or not image.tile:
        return ""
    args = image.tile[0][3]
    return args[0] if isinstance(args, tuple) else args


def _rgb16(image: ImageFile, raw_mode: str) -> np.ndarray:
    """uint16 (H, W, 3 or 4) of a 16-bit RGB(A) file. Pillow keeps the high byte of each sample, so it is decoded twice,
    the second time with the byte order reversed."""
    order = {"B": "L", "L": "B", "N": "B" if np.little_endian else "L"}[raw_mode[-1]]
    swapped = raw_mode[:-1] + order
    with Image.open(image.filename, formats=FORMATS) as low:
        low.seek(image.tell())
        tile: Any = low.tile[0]
        args = (swapped, *tile[3][1:]) if isinstance(tile[3], tuple) else swapped
        low.tile = [tile._replace(args=args) if hasattr(tile, "_replace") else (*tile[:3], args)]  # type: ignore[list-item]
        low_HWC = np.array(low, dtype=np.uint16)
    return (np.array(image, dtype=np.uint16) << 8) | low_HWC


def _bits(image: ImageFile) -> int:
    """Bits per sample, as far as Pillow's modes say."""
    if image.mode == "1":
        return 1
    depth = re.search(r";(\d+)", str(_raw_mode(image)) if image.format == "PNG" else image.mode)
    return int(depth[1]) if depth else 32 if image.mode in ("I", "F") else 8


def _kind(image: ImageFile) -> str:
    named = NAMES.get(image.format or "", image.format)
    parts = [f"{named}, {COLOURS.get(image.mode, image.mode)}, {_bits(image)} bit"]
    if image.format == "MPO":
        parts.append(f"first of {getattr(image, 'n_frames', 1)} pictures")
    parts += ["colour profile not applied"] if image.info.get("icc_profile") else []
    parts += [f"gamma {image.info['gamma']:g} not applied"] if "gamma" in image.info else []
    return ", ".join(parts)


def _is_lossy(image: ImageFile) -> bool:
    if image.format != "WEBP":
        return image.format in ("JPEG", "MPO")
    head = Path(str(image.filename)).read_bytes()
    at = 12
    while at + 8 <= len(head) and head[at : at + 4] not in (b"VP8 ", b"VP8L"):  # chunks, each padded to even length
        at += 8 + (size := int.from_bytes(head[at + 4 : at + 8], "little")) + size % 2
    return head[at : at + 4] != b"VP8L"


def load_array(path: Path, mapped: bool) -> Any:
    """`numpy.load` without code, or mapped into memory. Raises ValueError, also where a header declares any size."""
    try:
        with np.errstate(over="ignore"):
            return np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    except (OverflowError, ValueError) as error:
        if isinstance(error, OverflowError) or "mmap length" in str(error):
            raise ValueError("its header declares more numbers than it holds; save it again with numpy.save") from None
        raise


def array_header(path: Path, pages: str) -> Header:
    """The header of a .npy file of one image, (H, W) or (H, W, C), or with ``pages=slices`` of a stack, (D, H, W) or
    (D, H, W, C)."""
    array = load_array(path, mapped=True)
    stacked = pages == "slices" and array.ndim > 2
    plane = array.shape[stacked:]
    channels = plane[2] if len(plane) == 3 else 1
    if len(plane) not in (2, 3) or not 1 <= channels <= MAX_CHANNELS:
        form = "(D, H, W), or (D, H, W, C)" if stacked else "(H, W), or (H, W, C)"
        cure = "" if stacked else "; dataset.pages=slices reads (D, H, W) slice by slice"
        raise ValueError(f"an array of shape {array.shape}; valid: {form} with up to {MAX_CHANNELS} channels{cure}")
    return Header(f"NumPy, {array.dtype}", plane[0], plane[1], channels, array.shape[0] if stacked else 1)


def read_array(path: Path, max_pixels: int, pages: str, k: int) -> Stored:
    """The array of a .npy file, or its slice k, see `array_header`."""
    header = array_header(path, pages)
    check_size(header.width, header.height, max_pixels)
    if k >= header.slices:
        raise ValueError(f"no slice {k}: it has {header.slices}")
    array = load_array(path, mapped=header.slices > 1)
    array = array[k] if array.ndim > 2 and pages == "slices" else array
    return Stored(np.array(array, array.dtype.newbyteorder("=")), Source(header.kind))
