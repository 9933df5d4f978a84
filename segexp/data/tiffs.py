"""One TIFF file as it is stored: tifffile reads its tags and pixels, Pillow what is compressed otherwise.

A page has samples (channels, of which one may be alpha); a file has pages, or planes with names (ImageJ, OME) within
one. Errors are ValueErrors.
"""

import contextlib
import logging
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image, UnidentifiedImageError

from segexp.data.image_set import Header, Source
from segexp.data.rasters import FORMATS, MAX_CHANNELS, ORIENTATION, UNDONE, Stored, check_size, decoded, turned

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, YCBCR = 0, 1, 2, 3, 6
COLOURS = {BLACK_IS_ZERO: "grey", RGB: "RGB", PALETTE: "palette", YCBCR: "YCbCr"}
PLAIN = (1, 8, 32773, 32946)  # not compressed, deflate, PackBits: what tifffile decodes without another package
UNPREDICTED = (1, 32773)  # not compressed, PackBits
JPEG = (6, 7, 34892)
ICC_PROFILE, GDAL, NODATA = 34675, 42112, 42113
Page = tifffile.TiffPage | tifffile.TiffFrame

logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what it would log is an error here, or no matter


@dataclass(frozen=True)
class _Layout:
    """What a file holds. planes: name of an axis of pages -> its length, as {"Z": 5}; {} for one page."""

    page: tifffile.TiffPage
    series: tifffile.TiffPageSeries
    planes: dict[str, int]

    @property
    def alpha(self) -> int | None:
        """Which sample is alpha. RGB with a fourth sample that nothing describes counts as RGB with alpha."""
        extra, samples = [int(e) for e in self.page.extrasamples], self.page.samplesperpixel
        if not extra and self.page.photometric == RGB and samples == 4:
            return 3
        marked = [samples - len(extra) + i for i, e in enumerate(extra) if e in (1, 2)]
        return marked[0] if marked else None

    @property
    def colours(self) -> int:
        return int(self.page.samplesperpixel) - (self.alpha is not None)

    @property
    def kind(self) -> str:
        page, samples = self.page, self.page.samplesperpixel
        colours = COLOURS.get(page.photometric, _name(page))
        if page.photometric == BLACK_IS_ZERO and self.colours > 1:
            colours = f"{self.colours} channels"
        elif page.photometric == RGB and self.colours > 3:
            colours += f" + {self.colours - 3} channels"
        colours += "" if self.alpha is None or samples < 2 else " + alpha"
        sign = {2: " signed", 3: " float", 5: " complex", 6: " complex"}.get(int(page.sampleformat or 1), "")
        rescaled = re.search(r'role="(scale|offset)"', str(page.tags.valueof(GDAL)))
        parts: list[tuple[bool, str]] = [
            (True, f"TIFF, {colours}, {page.bitspersample} bit{sign}"),
            (page.compression in JPEG, "JPEG"),
            (bool(self.planes), f"{'x'.join(map(str, self.planes.values()))} pages ({''.join(self.planes)})"),
            (ICC_PROFILE in page.tags, "colour profile not applied"),
            (rescaled is not None, "scale or offset not applied"),
            (NODATA in page.tags, f"nodata {page.tags.valueof(NODATA)}"),
        ]
        return ", ".join(text for holds, text in parts if holds)


def _name(page: tifffile.TiffPage) -> str:
    return str(getattr(page.photometric, "name", page.photometric))


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[_Layout]:
    with tifffile.TiffFile(path, _multifile=False) as file:
        len(file.pages)  # raises for directories in a circle
        pages = [page for page in file.pages if not int(getattr(page, "subfiletype", 0)) & 1]  # no thumbnail
        series = next((s for s in file.series if not int(s.keyframe.subfiletype) & 1), file.series[0])
        planes = {a: n for a, n in zip(series.axes, series.shape, strict=True) if a not in "YXS" and n > 1}
        if len(pages) != len(series.pages) or None in series.pages:
            raise ValueError(f"{len(pages)} pages of different size or kind; save each as a file of its own")
        yield _Layout(series.keyframe, series, planes)


def tiff_header(path: Path, pages: str) -> Header:
    """The header of a TIFF file. pages: what pages are, see dataset.pages; "refuse": those beyond the first are not
    counted."""
    with _opened(path) as layout:
        channels, slices = layout.colours, 1
        if pages == "channels" and layout.planes:
            channels = math.prod(layout.planes.values())
        elif pages == "slices" and layout.planes:
            inner = _channel_axis(layout)
            slices = math.prod(n for axis, n in layout.planes.items() if axis != inner)
            channels *= layout.planes.get(inner, 1)
        if layout.page.photometric in (PALETTE, YCBCR):
            channels = 3
        return Header(layout.kind, layout.page.imagelength, layout.page.imagewidth, channels, slices)


def _channel_axis(layout: _Layout) -> str:
    """The axis of pages that are channels while others are slices, "" if there is none."""
    return "C" if "C" in layout.planes and len(layout.planes) > 1 else ""


def read_tiff(path: Path, max_pixels: int, pages: str, k: int = 0, as_index: bool = False) -> Stored:
    """Pixels of a TIFF file, or of its slice k with ``pages=slices``. as_index: a palette stands for its indices."""
    with _opened(path) as layout:
        page = layout.page
        check_size(page.imagewidth, page.imagelength, max_pixels)
        _check(layout, pages, k)
        if not layout.planes:
            pixels, alpha_HW = _page(path, layout, page, as_index)
        elif pages == "channels":
            pixels, alpha_HW = np.moveaxis(_planes(path, layout), 0, -1), None
        elif inner := _channel_axis(layout):
            at = list(layout.planes).index(inner)
            planes = _planes(path, layout)
            planes = np.moveaxis(planes.reshape(*layout.planes.values(), *planes.shape[1:]), at, -1)
            pixels, alpha_HW = planes.reshape(-1, *planes.shape[-3:])[k], None
        elif len(layout.series.pages) > 1:
            pixels, alpha_HW = _page(path, layout, layout.series.pages[k] or page, as_index)
        else:
            pixels, alpha_HW = _planes(path, layout)[k], None
        if pixels.shape[:2] != (page.imagelength, page.imagewidth):  # as of types that tifffile does not know
            raise ValueError(f"TIFF of {page.bitspersample} bits a sample has no readable pixels; save it as PNG")
        if 1 in page.extrasamples and alpha_HW is not None:
            _check_multiplied(alpha_HW)
        orientation = page.tags.valueof(ORIENTATION, 1)
        source = Source(layout.kind, orientation if 2 <= orientation <= 8 else 1)
        pixels = _calibrated(page.description, pixels)
        scaled = page.photometric == BLACK_IS_ZERO and page.bitspersample in (2, 4)
        indexed = as_index and page.photometric == PALETTE
        palette = tuple((np.asarray(page.colormap) >> 8).T.reshape(-1).tolist()) if indexed else ()
        return Stored(np.ascontiguousarray(pixels), source, alpha_HW, page.compression in JPEG, scaled, palette)


def _check(layout: _Layout, pages: str, k: int) -> None:
    """Raise ValueError for what has two readings or none."""
    page, planes = layout.page, layout.planes
    count, axes = math.prod(planes.values()), "".join(planes)
    if page.predictor != 1 and page.compression in UNPREDICTED:
        raise ValueError("a TIFF predictor without LZW or deflate, which programs read in two ways; save it without")
    if page.photometric == PALETTE and 0 < np.asarray(page.colormap).max() < 256:
        raise ValueError("a TIFF palette of 8-bit colours, which programs read as 16 bits, all black; save it as PNG")
    if page.photometric == WHITE_IS_ZERO:
        raise ValueError("TIFF stored as WhiteIsZero, which programs read in opposite ways; save it as PNG")
    if page.photometric not in COLOURS or (page.photometric == YCBCR and page.compression not in JPEG):
        raise ValueError(f"{_name(page)} colours; save it as RGB or grey")
    if planes and pages == "refuse":
        named = {"C": "channels", "Z": "slices"}.get(axes, "channels or dataset.pages=slices")
        raise ValueError(f"TIFF with {count} pages (axes {axes}); set dataset.pages={named}")
    grey = page.photometric == BLACK_IS_ZERO and page.samplesperpixel == 1
    if planes and pages == "channels" and not (grey and count <= MAX_CHANNELS and len(planes) == 1):
        what = f"axes {axes}" if grey else f"{_name(page)}, {page.samplesperpixel} samples each"
        raise ValueError(
            f"TIFF with {count} pages ({what}) as channels; valid: up to {MAX_CHANNELS} grey pages along one axis"
        )
    if planes and page.samplesperpixel > 1 and _channel_axis(layout):
        raise ValueError(f"TIFF with {count} pages (axes {axes}) of {page.samplesperpixel} samples; save one per slice")
    if not 0 <= k < (count if planes and pages == "slices" else 1):
        raise ValueError(f"no slice {k}")
    if layout.colours > MAX_CHANNELS:
        raise ValueError(f"{layout.colours} channels; at most {MAX_CHANNELS} are supported")


def _check_multiplied(alpha_HW: np.ndarray) -> None:
    """Raise ValueError for colours that are multiplied by an alpha between 0 and 1."""
    full = np.iinfo(alpha_HW.dtype).max if alpha_HW.dtype.kind in "iu" else 1
    if ((alpha_HW > 0) & (alpha_HW < full)).any():
        raise ValueError("colours that are multiplied by alpha, which programs undo or not; save it without alpha")


def _calibrated(description: str, pixels: np.ndarray) -> np.ndarray:
    """int16 where ImageJ has stored it as uint16 with an offset. Raises ValueError for its other calibrations."""
    line = dict(re.findall(r"^(cf|c0|c1)=(\S+)", description if description.startswith("ImageJ=") else "", re.M))
    if not line or (line.get("cf") == "0" and float(line.get("c0", 0)) == 0 and float(line.get("c1", 1)) == 1):
        return pixels
    if line.get("cf") == "0" and float(line.get("c0", 0)) == -32768 and float(line.get("c1", 1)) == 1:
        return (pixels.astype(np.int32) - 32768).astype(np.int16)
    raise ValueError(f"an ImageJ calibration ({line}) changes its values; save it without, or with 32 bits")


def _planes(path: Path, layout: _Layout) -> np.ndarray:
    """(N, H, W) or (N, H, W, C): all pages of a file."""
    pages, shape = layout.series.pages, layout.page.shape
    if len(pages) > 1:
        return np.stack([_page(path, layout, page, as_index=True)[0] for page in pages if page])
    if layout.page.compression not in PLAIN or layout.page.samplesperpixel > 1:
        raise ValueError("TIFF whose pages lie in one block, compressed or in colour; save each page as a file")
    return np.asarray(layout.series.asarray()).reshape(-1, *shape[-2:])


def _page(path: Path, layout: _Layout, page: Page, as_index: bool) -> tuple[np.ndarray, np.ndarray | None]:
    key = layout.page  # has the tags of all pages of the series
    if key.compression in PLAIN and (key.bitspersample == 1 or key.bitspersample % 8 == 0) and key.predictor in (1, 2):
        pixels = np.asarray(page.asarray())
        if key.axes.startswith("S"):
            pixels = np.moveaxis(pixels, 0, -1)
        alpha_HW = None
        if layout.alpha is not None and key.samplesperpixel > 1:
            pixels, alpha_HW = np.delete(pixels, layout.alpha, axis=-1), pixels[..., layout.alpha]
            pixels = pixels[..., 0] if pixels.shape[-1] == 1 else pixels
        if key.photometric == PALETTE and not as_index:
            pixels = (np.asarray(key.colormap) >> 8).astype(np.uint8).T[pixels.astype(np.intp)]
        return pixels, alpha_HW
    bits, samples = key.bitspersample, key.samplesperpixel
    with contextlib.ExitStack() as opened:
        with contextlib.suppress(UnidentifiedImageError, SyntaxError):  # a kind that Pillow does not know
            image = opened.enter_context(Image.open(path, formats=FORMATS))
            image.seek(page.index)
            cut = bits > 8 and samples > 1 and key.planarconfig == 2  # Pillow cuts planes of colours to 8 bits
            if not cut and (len(image.getbands()) == samples or (samples, image.mode) == (1, "P")):
                pixels, alpha_HW = decoded(image, as_index)
                # Pillow has turned them, and holds signed integers in unsigned ones or the reverse.
                back = UNDONE.get(key.tags.valueof(ORIENTATION, 1), 1)
                pixels = turned(pixels if bits < 8 or image.mode == "P" else pixels.astype(key.dtype), back)
                return pixels, None if alpha_HW is None else turned(alpha_HW, back)
        try:
            return np.asarray(page.asarray()), None
        except (ValueError, ImportError) as error:
            raise ValueError(f"{error}; install it, or save the file without compression") from None
