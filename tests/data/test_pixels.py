"""Every kind of image and mask file: read right, or refused with the word for what is wrong."""

import struct
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import tifffile
from PIL import Image

from segexp.data.check import PairFacts, check_pairs, check_set
from segexp.data.file_set import FilesConfig, Item, image_set_of
from segexp.data.image_set import ImageError, ImageSet
from segexp.data.pixels import header_of
from segexp.errors import UsageError

RNG = np.random.default_rng(1)
H, W = 6, 8
RGB = RNG.integers(0, 256, (H, W, 3), dtype=np.uint8)
GREY = RGB[..., 0].copy()
GREY16 = RNG.integers(0, 65536, (H, W), dtype=np.uint16)
RGB16 = RNG.integers(0, 65536, (H, W, 3), dtype=np.uint16)
FIVE = RNG.integers(0, 65536, (H, W, 5), dtype=np.uint16)
BITS = GREY > 127
FLOAT = RNG.normal(0, 100, (H, W)).astype(np.float32)
ALPHA = np.where(BITS, 255, 0).astype(np.uint8)
M = np.zeros((H, W), dtype=np.uint8)
M[2:4, 3:7] = 1
CLASSES = M.copy()
CLASSES[0, :2] = 2

Save = Callable[[Path], object]


def config_of(**options: Any) -> FilesConfig:
    shipped: dict[str, Any] = {
        "adapter": "folder", "name": "x", "num_classes": 2, "image_size": 32, "fit": "resize", "root": ".",
        "surface_tolerance": 2.0, "spacing": None, "channels": None, "mask_coding": "binary", "mask_threshold": None,
        "mask_values": None, "mask_colors": None, "ignore_index": None, "ignore_color": None,
    }  # fmt: skip
    return FilesConfig(**shipped | options)


def set_of(root: Path, images: list[Path], masks: list[Path], **options: Any) -> ImageSet:
    return image_set_of(config_of(**options), root, [Item("a", tuple(images), tuple(masks))])


def written(path: Path, save: Save) -> Path:
    save(path)
    return path


def array(pixels: np.ndarray) -> Save:
    return lambda path: np.save(path, pixels)


def pillow(pixels: np.ndarray | Image.Image, **how: Any) -> Save:
    return lambda path: (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(path, **how)


def tif(pixels: np.ndarray, **how: Any) -> Save:
    return lambda path: tifffile.imwrite(path, pixels, **how)


def raw(content: bytes) -> Save:
    return lambda path: path.write_bytes(content)


def packed(pixels: np.ndarray, bits: int) -> bytes:
    """Rows of samples of a few bits, each row padded to whole bytes."""
    planes = (pixels[..., np.newaxis] >> np.arange(bits - 1, -1, -1)) & 1
    return np.packbits(planes.reshape(len(pixels), -1).astype(np.uint8), axis=1).tobytes()


def png(pixels: np.ndarray, bits: int, colour_type: int, *chunks: tuple[bytes, bytes]) -> Save:
    """A PNG made by hand, of kinds that Pillow cannot write. chunks: before the pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = [packed(row[np.newaxis], bits) if bits < 8 else row.astype(f">u{bits // 8}").tobytes() for row in pixels]
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", W, H, bits, colour_type, 0, 0, 0))
    extra = b"".join(chunk(*one) for one in chunks)
    data = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    return raw(b"\x89PNG\r\n\x1a\n" + header + extra + data + chunk(b"IEND", b""))


def lzw(data: bytes) -> bytes:
    """TIFF's LZW without repeats: codes of 9 bits, the table cleared before they grow."""
    codes = [256, *(c for at in range(0, len(data), 250) for c in (*data[at : at + 250], 256)), 257]
    return packed(np.array([codes]), 9)


def tiff(
    data: bytes | list[bytes], bits: int, samples: int = 1, order: str = "<", **tags: int | tuple[int, ...]
) -> Save:
    """A TIFF of one strip (or several, of planes) made by hand: photometric 1 unless given."""
    strips = [data] if isinstance(data, bytes) else data
    numbers = {
        "photometric": 262, "compression": 259, "fill": 266, "orientation": 274, "planar": 284, "extra": 338,
        "format": 339, "colormap": 320, "subsampling": 530, "predictor": 317,
    }  # fmt: skip
    entries: dict[int, tuple[int, tuple[int, ...]]] = {
        256: (3, (W,)), 257: (3, (H,)), 258: (3, (bits,) * samples), 259: (3, (1,)),
        262: (3, (1,)), 277: (3, (samples,)),
        278: (3, (H,)), 279: (4, tuple(map(len, strips))),
        273: (4, tuple(8 + len(b"".join(strips[:n])) for n in range(len(strips)))),
    }  # fmt: skip
    for name, value in tags.items():
        entries[numbers[name]] = (3, value if isinstance(value, tuple) else (value,))
    body = b"".join(strips)
    body += b"\0" * (len(body) % 2)
    directory, far = b"", b""
    far_at = 8 + len(body) + 2 + 12 * len(entries) + 4
    for tag, (kind, values) in sorted(entries.items()):
        text = struct.pack(f"{order}{len(values)}{'H' if kind == 3 else 'I'}", *values)
        if len(text) > 4:
            text, far = struct.pack(f"{order}I", far_at + len(far)), far + text
        directory += struct.pack(f"{order}HHI", tag, kind, len(values)) + text.ljust(4, b"\0")
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8 + len(body))
    return raw(head + body + struct.pack(f"{order}H", len(entries)) + directory + b"\0\0\0\0" + far)


def circle(path: Path) -> None:
    """A TIFF whose only page names itself as the next one."""
    tiff(GREY.tobytes(), 8)(path)
    content = path.read_bytes()
    path.write_bytes(content[:-4] + content[4:8])


def with_alpha(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    return np.dstack([pixels, alpha])


def palette(index: np.ndarray, *colors: tuple[int, int, int], **how: Any) -> Save:
    image = Image.frombytes("P", (W, H), index.tobytes())
    image.putpalette([level for color in colors for level in color])
    return pillow(image, **how)


def frames(kind: str) -> Save:
    both = [Image.fromarray(RGB), Image.fromarray(255 - RGB)]
    return lambda path: both[0].save(path, kind, save_all=True, append_images=both[1:])


def pages(*arrays: np.ndarray, **kinds: int) -> Save:
    def save(path: Path) -> None:
        with tifffile.TiffWriter(path) as file:
            for i, one in enumerate(arrays):
                which = {0: "first", len(arrays) - 1: "last"}.get(i, "")
                file.write(one, metadata=None, subfiletype=kinds.get(which, 0))

    return save


THREE = RNG.integers(0, 256, (3, H, W), dtype=np.uint8)
FOUR = RNG.integers(0, 65536, (2, 3, H, W), dtype=np.uint16)  # axes of two kinds
LUT = tuple(int(v) for v in RNG.integers(0, 65536, 3 * 256))
PALETTED = (np.array(LUT).reshape(3, 256) >> 8).T[GREY].astype(np.uint8)
CLEAR = np.full((H, W), 255, np.uint8)


@dataclass(frozen=True)
class Case:
    """A file as an image: what it is read as, or the word that the refusal has."""

    ending: str
    save: Save
    right: np.ndarray | str
    options: dict[str, Any] = field(default_factory=dict)
    about: float = 0  # how far a lossy file may be off


RED, GREEN, BLACK, WHITE = (255, 0, 0), (9, 200, 9), (0, 0, 0), (255, 255, 255)
RED_OR_BLACK = np.where(BITS[..., np.newaxis], RED, BLACK).astype(np.uint8)
SMOOTH = np.dstack([np.add.outer(np.arange(H), np.arange(W)).astype(np.uint8) * 9] * 3)
LEVELS4, LEVELS16 = GREY >> 6, GREY >> 4
IMAGES = {
    "png 1 bit": Case(".png", pillow(BITS), ALPHA),
    "png grey 2 bit": Case(".png", png(LEVELS4, 2, 0), LEVELS4 * 85),
    "png grey 4 bit": Case(".png", png(LEVELS16, 4, 0), LEVELS16 * 17),
    "png grey": Case(".png", pillow(GREY), GREY),
    "png grey 16 bit": Case(".png", pillow(GREY16), GREY16),
    "png rgb": Case(".png", pillow(RGB), RGB),
    "png rgb 16 bit": Case(".png", png(RGB16, 16, 2), RGB16),
    "png rgba 16 bit": Case(".png", png(with_alpha(RGB16, GREY16 | 65535), 16, 6), RGB16),
    "png rgba 16 bit with holes": Case(".png", png(with_alpha(RGB16, GREY16), 16, 6), "alpha"),
    "png grey alpha": Case(".png", pillow(with_alpha(GREY, CLEAR)), GREY),
    "png grey alpha with holes": Case(".png", pillow(with_alpha(GREY, ALPHA)), r"alpha.*dataset\.channels=2"),
    "png grey alpha 16 bit": Case(".png", png(with_alpha(GREY16, GREY16), 16, 4), "16-bit grey with alpha"),
    "png rgba": Case(".png", pillow(with_alpha(RGB, CLEAR)), RGB),
    "png rgba with holes": Case(".png", pillow(with_alpha(RGB, ALPHA)), r"alpha.*dataset\.channels=4"),
    "png rgba as channels": Case(".png", pillow(with_alpha(RGB, ALPHA)), with_alpha(RGB, ALPHA), {"channels": 4}),
    "png palette": Case(".png", palette(BITS.astype(np.uint8), BLACK, RED), RED_OR_BLACK),
    "png palette 4 bit": Case(".png", palette(BITS.astype(np.uint8) * 9, BLACK, *[RED] * 9), RED_OR_BLACK),
    "png palette with holes": Case(".png", palette(BITS.astype(np.uint8), BLACK, RED, transparency=0), "alpha"),
    "png palette with an unused hole": Case(
        ".png", palette(BITS.astype(np.uint8), BLACK, RED, WHITE, transparency=b"\xff\xff\0"), RED_OR_BLACK
    ),
    "png grey with a transparent level": Case(
        ".png", png(GREY, 8, 0, (b"tRNS", struct.pack(">H", GREY[1, 1]))), "alpha"
    ),
    "png grey with an unused one": Case(".png", png(GREY // 2, 8, 0, (b"tRNS", b"\0\xff")), GREY // 2),
    "png 4 bit with a transparent level": Case(
        ".png", png(LEVELS16, 4, 0, (b"tRNS", struct.pack(">H", LEVELS16[1, 1]))), "alpha"
    ),
    "png 16 bit with a transparent level": Case(
        ".png", png(GREY16, 16, 0, (b"tRNS", struct.pack(">H", GREY16[1, 1]))), "alpha"
    ),
    "png rgb with a transparent colour": Case(
        ".png", png(RGB, 8, 2, (b"tRNS", struct.pack(">3H", *RGB[1, 1]))), "alpha"
    ),
    "png rgb 16 bit with a transparent colour": Case(
        ".png", png(RGB16, 16, 2, (b"tRNS", struct.pack(">3H", *RGB16[1, 1]))), "alpha"
    ),
    "png of two frames": Case(".png", frames("PNG"), "2 frames"),
    "jpeg grey": Case(".jpg", pillow(SMOOTH[..., 0], quality=100), SMOOTH[..., 0], about=2),
    "jpeg rgb progressive": Case(".jpg", pillow(SMOOTH, quality=100, progressive=True), SMOOTH, about=3),
    "jpeg cmyk": Case(".jpg", pillow(Image.fromarray(RGB).convert("CMYK")), "CMYK"),
    "jpeg of two pictures": Case(
        ".jpg",
        lambda p: Image.fromarray(SMOOTH).save(
            p, "MPO", save_all=True, append_images=[Image.fromarray(RGB)], quality=100
        ),
        SMOOTH,
        about=3,
    ),
    "webp lossless": Case(".webp", pillow(RGB, lossless=True), RGB),
    "webp lossy": Case(".webp", pillow(SMOOTH, quality=100), SMOOTH, about=12),
    "webp with holes": Case(".webp", pillow(with_alpha(RGB, ALPHA), lossless=True, exact=True), "alpha"),
    "webp of two frames": Case(".webp", frames("WEBP"), "2 frames"),
    "webp called png": Case(".png", pillow(RGB, format="WEBP", lossless=True), RGB),
    "gif grey": Case(".gif", pillow(GREY), np.dstack([GREY] * 3)),
    "gif palette": Case(".gif", palette(BITS.astype(np.uint8), BLACK, RED), RED_OR_BLACK),
    "gif with holes": Case(".gif", palette(BITS.astype(np.uint8), BLACK, RED, transparency=1), "alpha"),
    "gif of two frames": Case(".gif", frames("GIF"), "2 frames"),
    "bmp 1 bit": Case(".bmp", pillow(BITS), ALPHA),
    "bmp grey": Case(".bmp", pillow(GREY), GREY),
    "bmp palette": Case(".bmp", palette(BITS.astype(np.uint8), BLACK, RED), RED_OR_BLACK),
    "bmp 8 bit of black and white": Case(".bmp", palette(BITS.astype(np.uint8), BLACK, WHITE), "BMP of 8 bits"),
    "bmp rgb": Case(".bmp", pillow(RGB), RGB),
    "bmp 32 bit": Case(".bmp", pillow(with_alpha(RGB, ALPHA)), RGB),
    "tiff 1 bit": Case(".tif", tif(BITS, photometric="minisblack"), ALPHA),
    "tiff 1 bit fax": Case(".tif", pillow(BITS, compression="group4"), ALPHA),
    "tiff 2 bit": Case(".tif", tiff(packed(LEVELS4, 2), 2), LEVELS4 * 85),
    "tiff 4 bit": Case(".tif", tiff(packed(LEVELS16, 4), 4), LEVELS16 * 17),
    "tiff palette 1 bit": Case(
        ".tif", tiff(packed(BITS.astype(np.uint8), 1), 1, photometric=3, colormap=(0, 65535, 0, 0, 0, 0)), RED_OR_BLACK
    ),
    "tiff palette of 8-bit colours": Case(
        ".tif", tiff(GREY.tobytes(), 8, photometric=3, colormap=tuple(range(256)) * 3), "palette of 8-bit colours"
    ),
    "tiff predictor without its compression": Case(
        ".tif", pillow(RGB, compression="packbits", tiffinfo={317: 2}), "predictor"
    ),
    "tiff lzw planes of 16 bits": Case(
        ".tif",
        tiff([lzw(RGB16[..., c].tobytes()) for c in range(3)], 16, 3, photometric=2, compression=5, planar=2),
        "imagecodecs",
    ),
    "tiff lzw planes": Case(
        ".tif",
        tiff([lzw(RGB[..., c].tobytes()) for c in range(3)], 8, 3, photometric=2, compression=5, planar=2),
        RGB,
    ),
    "tiff colours multiplied by alpha": Case(
        ".tif",
        tiff(with_alpha(RGB // 2, CLEAR // 2).tobytes(), 8, 4, photometric=2, extra=1),
        "multiplied by alpha",
        {"channels": 4},
    ),
    "tiff after its thumbnail": Case(".tif", pages(GREY[::2, ::2], GREY, first=1), GREY),
    "tiff whose pages lie in a circle": Case(".tif", circle, GREY),
    "npy without pixels": Case(".npy", array(np.zeros((0, W), np.int32)), "no pixels"),
    "tiff 255 bit": Case(".tif", tiff(GREY.tobytes(), 255, 3, compression=32773), "255 bits a sample"),
    "tiff 12 bit": Case(".tif", tiff(packed(GREY16 >> 4, 12), 12), GREY16 >> 4),
    "tiff uint8": Case(".tif", tif(GREY), GREY),
    "tiff int8": Case(".tif", tif(GREY.view(np.int8)), GREY.view(np.int8).astype(np.int16)),
    "tiff uint16": Case(".tif", tif(GREY16), GREY16),
    "tiff uint16 big endian": Case(".tif", tif(GREY16, byteorder=">"), GREY16),
    "tiff bigtiff": Case(".tif", tif(GREY16, bigtiff=True), GREY16),
    "tiff int16": Case(".tif", tif(GREY16.view(np.int16)), GREY16.view(np.int16)),
    "tiff uint32": Case(".tif", tif(GREY16.astype(np.uint32)), GREY16),
    "tiff uint32 of 20 bits": Case(".tif", tif(GREY16.astype(np.uint32) * 16), (GREY16 * np.float32(16))),
    "tiff uint32 full": Case(".tif", tif(np.full((H, W), 2**32 - 3, np.uint32)), "4294967293.*scale"),
    "tiff int32": Case(
        ".tif", tif(GREY16.astype(np.int32) - 32768), (GREY16.astype(np.int32) - 32768).astype(np.int16)
    ),
    "tiff int64": Case(".tif", tif(GREY16.astype(np.int64)), GREY16),
    "tiff uint64": Case(".tif", tif(np.full((H, W), 2**64 - 1, np.uint64)), "scale"),
    "tiff float16": Case(".tif", tif(FLOAT.astype(np.float16)), FLOAT.astype(np.float16).astype(np.float32)),
    "tiff float32": Case(".tif", tif(FLOAT), FLOAT),
    "tiff float64": Case(".tif", tif(FLOAT.astype(np.float64) / 3), (FLOAT.astype(np.float64) / 3).astype(np.float32)),
    "tiff float64 too large": Case(".tif", tif(FLOAT.astype(np.float64) * 1e300), "infinite"),
    "tiff nan": Case(".tif", tif(np.where(BITS, np.nan, FLOAT).astype(np.float32)), "NaN"),
    "tiff complex": Case(".tif", tif(FLOAT.astype(np.complex64)), "complex"),
    "tiff rgb": Case(".tif", tif(RGB, photometric="rgb"), RGB),
    "tiff rgb planar": Case(".tif", tif(np.moveaxis(RGB, -1, 0), photometric="rgb", planarconfig="separate"), RGB),
    "tiff rgb 16 bit": Case(".tif", tif(RGB16, photometric="rgb"), RGB16),
    "tiff rgb 16 bit deflate": Case(".tif", tif(RGB16, photometric="rgb", compression="zlib", predictor=True), RGB16),
    "tiff rgb float": Case(".tif", tif(RGB16.astype(np.float32) / 3, photometric="rgb"), RGB16.astype(np.float32) / 3),
    "tiff rgba": Case(".tif", tif(with_alpha(RGB, CLEAR), photometric="rgb", extrasamples=["unassalpha"]), RGB),
    "tiff rgba with holes": Case(
        ".tif", tif(with_alpha(RGB, ALPHA), photometric="rgb", extrasamples=["assocalpha"]), "alpha"
    ),
    "tiff rgb 16 bit with holes": Case(
        ".tif", tif(with_alpha(RGB16, GREY16), photometric="rgb", extrasamples=["unassalpha"]), "alpha"
    ),
    "tiff rgb and infrared": Case(
        ".tif", tif(with_alpha(RGB, GREY), photometric="rgb", extrasamples=["unspecified"]), with_alpha(RGB, GREY)
    ),
    "tiff rgb and a sample without description": Case(
        ".tif", tiff(with_alpha(RGB, ALPHA).tobytes(), 8, 4, photometric=2), "alpha"
    ),
    "tiff grey alpha": Case(
        ".tif",
        tif(with_alpha(GREY, CLEAR), photometric="minisblack", extrasamples=["unassalpha"], planarconfig="contig"),
        GREY,
    ),
    "tiff 2 channels": Case(".tif", tif(FIVE[..., :2], photometric="minisblack", planarconfig="contig"), FIVE[..., :2]),
    "tiff 5 channels": Case(".tif", tif(FIVE, photometric="minisblack", planarconfig="contig"), FIVE),
    "tiff 5 channels planar": Case(
        ".tif", tif(np.moveaxis(FIVE, -1, 0), photometric="minisblack", planarconfig="separate"), FIVE
    ),
    "tiff 33 channels": Case(
        ".tif", tif(np.zeros((H, W, 33), np.uint8), photometric="minisblack", planarconfig="contig"), "33 channels"
    ),
    "tiff palette": Case(".tif", tiff(GREY.tobytes(), 8, photometric=3, colormap=LUT), PALETTED),
    "tiff palette lzw": Case(
        ".tif", tiff(lzw(GREY.tobytes()), 8, photometric=3, colormap=LUT, compression=5), PALETTED
    ),
    "tiff palette and alpha": Case(
        ".tif", tiff(with_alpha(GREY, CLEAR).tobytes(), 8, 2, photometric=3, colormap=LUT, extra=2), PALETTED
    ),
    "tiff palette and alpha lzw": Case(
        ".tif",
        tiff(lzw(with_alpha(GREY, CLEAR).tobytes()), 8, 2, photometric=3, colormap=LUT, extra=2, compression=5),
        PALETTED,
    ),
    "tiff white is zero 1 bit": Case(".tif", tif(BITS), "WhiteIsZero"),
    "tiff white is zero": Case(".tif", tif(GREY, photometric="miniswhite"), "WhiteIsZero"),
    "tiff white is zero 16 bit": Case(".tif", tif(GREY16, photometric="miniswhite"), "WhiteIsZero"),
    "tiff cmyk": Case(".tif", pillow(Image.fromarray(RGB).convert("CMYK")), "SEPARATED"),
    "tiff lab": Case(".tif", pillow(Image.fromarray(RGB).convert("LAB")), "CIELAB"),
    "tiff ycbcr": Case(".tif", pillow(Image.fromarray(RGB).convert("YCbCr")), "YCBCR"),
    "tiff jpeg": Case(".tif", pillow(SMOOTH, compression="jpeg", quality=100), SMOOTH, about=3),
    "tiff lzw": Case(".tif", pillow(GREY, compression="tiff_lzw"), GREY),
    "tiff lzw 16 bit": Case(".tif", tiff(lzw(GREY16.tobytes()), 16, compression=5), GREY16),
    "tiff lzw int8": Case(
        ".tif", tiff(lzw(GREY.tobytes()), 8, compression=5, format=2), GREY.view(np.int8).astype(np.int16)
    ),
    "tiff lzw int16": Case(".tif", tiff(lzw(GREY16.tobytes()), 16, compression=5, format=2), GREY16.view(np.int16)),
    "tiff lzw uint32": Case(
        ".tif",
        tiff(lzw(np.full((H, W), 2**31 + 2**20, np.uint32).tobytes()), 32, compression=5),
        np.full((H, W), 2**31 + 2**20, np.float32),
    ),
    "tiff lzw float": Case(".tif", tiff(lzw(FLOAT.tobytes()), 32, compression=5, format=3), FLOAT),
    "tiff lzw float64": Case(
        ".tif", tiff(lzw(FLOAT.astype(float).tobytes()), 64, compression=5, format=3), "imagecodecs"
    ),
    "tiff lzw rgba premultiplied": Case(
        ".tif", tiff(lzw(with_alpha(RGB, CLEAR).tobytes()), 8, 4, photometric=2, compression=5, extra=1), RGB
    ),
    "tiff lzw rgba": Case(
        ".tif", tiff(lzw(with_alpha(RGB, CLEAR).tobytes()), 8, 4, photometric=2, compression=5, extra=2), RGB
    ),
    "tiff lzw rgb 16 bit": Case(".tif", tiff(lzw(RGB16.tobytes()), 16, 3, photometric=2, compression=5), RGB16),
    "tiff lzw rgb 16 bit big endian": Case(
        ".tif", tiff(lzw(RGB16.astype(">u2").tobytes()), 16, 3, ">", photometric=2, compression=5), RGB16
    ),
    "tiff lzw rgb 16 bit turned": Case(
        ".tif",
        tiff(lzw(RGB16.tobytes()), 16, 3, photometric=2, compression=5, orientation=6),
        RGB16,
        {"orientation": "stored"},
    ),
    "tiff lzw 5 channels": Case(
        ".tif", tiff(lzw(FIVE.tobytes()), 16, 5, compression=5, extra=(0, 0, 0, 0)), "imagecodecs"
    ),
    "tiff packbits": Case(".tif", pillow(RGB, compression="packbits"), RGB),
    "tiff deflate": Case(".tif", pillow(RGB, compression="tiff_adobe_deflate"), RGB),
    "tiff bits reversed": Case(
        ".tif", tiff(np.packbits(np.unpackbits(GREY.reshape(-1, 1), axis=1)[:, ::-1]).tobytes(), 8, fill=2), GREY
    ),
    "tiff tiles": Case(".tif", tif(np.tile(GREY16, (8, 4)), tile=(16, 16)), np.tile(GREY16, (8, 4))),
    "tiff pages": Case(
        ".tif", tif(THREE, photometric="minisblack"), r"3 pages.*dataset\.pages=channels or dataset\.pages=slices"
    ),
    "tiff pages as channels": Case(
        ".tif", tif(THREE, photometric="minisblack"), np.moveaxis(THREE, 0, -1), {"pages": "channels"}
    ),
    "tiff lzw pages as channels": Case(
        ".tif",
        pillow(
            Image.fromarray(THREE[0]),
            compression="tiff_lzw",
            save_all=True,
            append_images=[Image.fromarray(page) for page in THREE[1:]],
        ),
        np.moveaxis(THREE, 0, -1),
        {"pages": "channels"},
    ),
    "tiff imagej channels": Case(".tif", tif(THREE, imagej=True), r"axes C.*dataset\.pages=channels"),
    "tiff imagej slices": Case(
        ".tif", tif(THREE, imagej=True, metadata={"axes": "ZYX"}), r"axes Z.*dataset\.pages=slices"
    ),
    "tiff imagej signed": Case(
        ".tif",
        tif(GREY16, description="ImageJ=1.54f\ncf=0\nc0=-32768.0\nc1=1.0\n", metadata=None),
        (GREY16.astype(np.int32) - 32768).astype(np.int16),
    ),
    "tiff imagej calibrated": Case(
        ".tif", tif(GREY16, description="ImageJ=1.54f\ncf=0\nc0=2.0\nc1=3.0\n", metadata=None), "ImageJ calibration"
    ),
    "tiff imagej channels in one block": Case(
        ".tif", tif(THREE, photometric="minisblack", truncate=True), np.moveaxis(THREE, 0, -1), {"pages": "channels"}
    ),
    "tiff two axes as channels": Case(
        ".tif", tif(FOUR, imagej=True, metadata={"axes": "ZCYX"}), "axes ZC.*as channels", {"pages": "channels"}
    ),
    "tiff 33 pages as channels": Case(
        ".tif", tif(np.zeros((33, H, W), np.uint8), photometric="minisblack"), "33 pages", {"pages": "channels"}
    ),
    "tiff rgb pages as channels": Case(
        ".tif", tif(np.stack([RGB, RGB]), photometric="rgb"), "3 samples each", {"pages": "channels"}
    ),
    "tiff palette pages as channels": Case(
        ".tif",
        lambda p: tifffile.imwrite(
            p, THREE, photometric="palette", colormap=np.reshape(LUT, (3, 256)).astype(np.uint16)
        ),
        "PALETTE.*grey pages",
        {"pages": "channels"},
    ),
    "tiff with a thumbnail": Case(".tif", pages(GREY, GREY[::2, ::2], last=1), GREY),
    "tiff pages of two sizes": Case(".tif", pages(GREY, GREY[::2, ::2]), "2 pages of different size"),
    "tiff with a mask page": Case(".tif", pages(GREY, BITS, last=4), "2 pages of different size or kind"),
    "npy grey": Case(".npy", array(GREY), GREY),
    "npy big endian": Case(".npy", array(GREY16.astype(">u2")), GREY16),
    "npy fortran": Case(".npy", array(np.asfortranarray(RGB)), RGB),
    "npy bool": Case(".npy", array(BITS), ALPHA),
    "npy float": Case(".npy", array(FLOAT), FLOAT),
    "npy infinite": Case(".npy", array(np.full((H, W), np.inf)), "infinite"),
    "npy 5 channels": Case(".npy", array(FIVE), FIVE),
    "npy channels first": Case(".npy", array(np.zeros((3, 40, 50))), r"shape \(3, 40, 50\)"),
    "npy one axis": Case(".npy", array(GREY[0]), "shape"),
    "npy objects": Case(".npy", array(np.array([[None]])), "Python objects"),
    "npy records": Case(".npy", array(np.zeros((H, W), [("a", "u1")])), "real numbers"),
    "npy cut off": Case(".npy", raw(b"\x93NUMPY\x01\0v\0{'descr'"), "header"),
    "ppm": Case(".png", pillow(RGB, format="PPM"), "not an image file"),
    "heic": Case(".jpg", raw(b"\0\0\0\x18ftypheic" + bytes(20)), "HEIC"),
    "jpeg 2000": Case(".jpg", raw(b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(20)), "JPEG 2000"),
    "dicom": Case(".png", raw(bytes(128) + b"DICM" + bytes(40)), "DICOM"),
    "empty": Case(".png", raw(b""), "empty"),
    "text": Case(".png", raw(b"hello"), "not an image file"),
}


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.filterwarnings("ignore")
def test_images(name: str, tmp_path: Path) -> None:
    case = IMAGES[name]
    image = written(tmp_path / f"a{case.ending}", case.save)
    shape = (H, W) if isinstance(case.right, str) else case.right.shape[:2]
    mask = written(tmp_path / "m.npy", array(np.eye(*shape, dtype=np.uint8)))
    if "turned" in name:
        mask = written(tmp_path / "m.tif", tiff(M.tobytes(), 8, orientation=6))
    if isinstance(case.right, str):
        with pytest.raises(ImageError, match=f"a{case.ending}.*{case.right}") as caught:
            set_of(tmp_path, [image], [mask], **case.options).read(0)
        assert "\n" not in str(caught.value)
        return
    found = set_of(tmp_path, [image], [mask], **case.options).read(0).image_HWC
    right = case.right if case.right.ndim == 3 else case.right[..., np.newaxis]
    assert (found.dtype, found.shape) == (right.dtype, right.shape)
    assert np.abs(found.astype(float) - right).max() <= case.about
    assert found.flags.c_contiguous
    assert found.dtype.isnative


VOID = np.where(M > 0, 1, -1).astype(np.int16)
LZW = {"compression": "tiff_lzw"}
INDEX3 = {"mask_coding": "index", "num_classes": 3}
VALUES = {"mask_coding": "values", "mask_values": [0, 255]}
COLORS = {"mask_coding": "colors", "mask_colors": ["#000000", "#ff0000"]}
SMOOTHED = {"mask_antialias": True}
BW = M * 255
WHITE_BLACK = np.dstack([BW] * 3)
RED_MASK = WHITE_BLACK * np.array([1, 0, 0], np.uint8)
BIG = np.zeros((64, 64), np.uint8)
BIG[10:40, 13:50] = 255
CELLS = np.arange(H * W).reshape(H, W)
MASKS = {
    "png 1 bit": Case(".png", pillow(M > 0), M),
    "png 1 bit as index": Case(".png", pillow(M > 0), M, {"mask_coding": "index"}),
    "png 2 bit black and white": Case(".png", png(M * 3, 2, 0), M),
    "png 2 bit classes": Case(".png", png(CLASSES, 2, 0), "2 or 4 bits", INDEX3),
    "png 4 bit classes": Case(".png", png(CLASSES, 4, 0), "2 or 4 bits", INDEX3),
    "tiff 4 bit classes": Case(".tif", tiff(packed(CLASSES, 4), 4), "2 or 4 bits", INDEX3),
    "png 0 and 1": Case(".png", pillow(M), M),
    "png 0 and 255": Case(".png", pillow(BW), M),
    "png 0 and 128": Case(".png", pillow(M * 128), r"0, 128: .*mask_values=\[0,128\]"),
    "png 16 bit": Case(".png", pillow(M.astype(np.uint16) * 65535), M),
    "png 16 bit classes": Case(".png", pillow(CLASSES.astype(np.uint16)), CLASSES, INDEX3),
    "png 16 bit cells": Case(".png", pillow(CELLS.astype(np.uint16)), r"mask_coding=index"),
    "png 16 bit cells, cut": Case(
        ".png", pillow(CELLS.astype(np.uint16)), (CELLS > 0).astype(np.uint8), {"mask_threshold": 0}
    ),
    "png rgb black and white": Case(".png", pillow(WHITE_BLACK), M),
    "png rgb classes": Case(".png", pillow(np.dstack([CLASSES] * 3)), CLASSES, INDEX3),
    "png rgb red": Case(".png", pillow(RED_MASK), r'mask_colors=\["#000000","#ff0000"\]'),
    "png rgb red as colour": Case(".png", pillow(RED_MASK), M, COLORS),
    "png rgb 16 bit colours": Case(".png", png(RGB16, 16, 2), "colours of 16 bits", COLORS),
    "png palette black and white": Case(".png", palette(1 - M, WHITE, BLACK), M),
    "png palette as index": Case(".png", palette(CLASSES, BLACK, RED, WHITE), CLASSES, INDEX3),
    "png palette with a hole as index": Case(
        ".png", palette(CLASSES, BLACK, RED, WHITE, transparency=0), CLASSES, INDEX3
    ),
    "png palette of a class": Case(".png", palette(M, BLACK, (128, 0, 0)), "index for a palette"),
    "png white, label in alpha": Case(".png", pillow(with_alpha(WHITE_BLACK | 255, BW)), "alpha"),
    "png grey, label in alpha": Case(".png", pillow(with_alpha(BW | 255, BW)), "alpha"),
    "png label in grey and alpha": Case(".png", pillow(with_alpha(BW, BW)), M),
    "png black object on transparent white": Case(".png", pillow(with_alpha(255 - WHITE_BLACK, BW)), "alpha"),
    "png alpha within the object": Case(".png", pillow(with_alpha(BW, CLASSES * 100)), "alpha"),
    "png transparent label colour": Case(".png", png(BW, 8, 0, (b"tRNS", b"\0\xff")), "alpha"),
    "png transparent background colour": Case(".png", png(BW, 8, 0, (b"tRNS", b"\0\0")), M),
    "png constant alpha": Case(".png", pillow(with_alpha(WHITE_BLACK, CLEAR)), M),
    "png of two frames": Case(".png", frames("PNG"), "2 frames"),
    "jpeg": Case(".jpg", pillow(BIG, quality=75), r"dataset\.mask_antialias=true"),
    "jpeg antialiased": Case(".jpg", pillow(BIG, quality=75), BIG // 255, SMOOTHED),
    "jpeg called png": Case(".png", pillow(BIG, quality=75, format="JPEG"), r"dataset\.mask_antialias=true"),
    "jpeg of one value": Case(".jpg", pillow(BIG | 255), np.ones_like(BIG)),
    "jpeg of 0 and 1": Case(".jpg", pillow(BIG // 255, quality=100), "lossy"),
    "jpeg without objects": Case(".jpg", pillow(BIG * 0, quality=69), BIG * 0, SMOOTHED),
    "jpeg without objects, undeclared": Case(
        ".jpg", pillow(BIG * 0, quality=69), r"lossy.*dataset\.mask_antialias=true"
    ),
    "jpeg of 0 and 1 declared": Case(".jpg", pillow(BIG // 255, quality=100), "lossy", SMOOTHED),
    "jpeg of classes": Case(".jpg", pillow(CLASSES), "lossy.*PNG", INDEX3),
    "jpeg of values": Case(".jpg", pillow(BW), "lossy.*PNG", VALUES),
    "jpeg of colours": Case(".jpg", pillow(RED_MASK), "lossy.*PNG", COLORS),
    "jpeg in tiff of classes": Case(".tif", pillow(CLASSES, compression="jpeg"), "lossy", INDEX3),
    "webp lossy of classes": Case(".webp", pillow(np.dstack([CLASSES] * 3)), "lossy", INDEX3),
    "webp lossy with metadata": Case(".webp", pillow(np.dstack([CLASSES] * 3), icc_profile=b"12"), "lossy", INDEX3),
    "webp lossless of classes": Case(".webp", pillow(np.dstack([CLASSES] * 3), lossless=True), CLASSES, INDEX3),
    "webp lossless with metadata": Case(".webp", pillow(WHITE_BLACK, lossless=True, icc_profile=b"12"), M, VALUES),
    "gif": Case(".gif", pillow(BW), M),
    "gif as index": Case(".gif", palette(CLASSES, BLACK, RED, WHITE), CLASSES, INDEX3),
    "gif of two frames": Case(".gif", frames("GIF"), "2 frames"),
    "bmp 1 bit": Case(".bmp", pillow(M > 0), M),
    "bmp": Case(".bmp", pillow(BW), M),
    "bmp palette as index": Case(".bmp", palette(CLASSES, BLACK, RED, WHITE), CLASSES, INDEX3),
    "tiff white is zero": Case(".tif", tif(M > 0), "WhiteIsZero"),
    "tiff classes white is zero": Case(".tif", tif(CLASSES, photometric="miniswhite"), "WhiteIsZero", INDEX3),
    "tiff 1 bit": Case(".tif", tif(M > 0, photometric="minisblack"), M),
    "tiff int8": Case(".tif", tif(M.astype(np.int8)), M),
    "tiff int16 void": Case(
        ".tif", tif(VOID), np.where(VOID < 0, 255, 1), {"mask_coding": "index", "ignore_index": -1}
    ),
    "tiff int16 negative": Case(".tif", tif(VOID), "value -1", {"mask_coding": "index"}),
    "tiff int32": Case(".tif", tif(BW.astype(np.int32)), M),
    "tiff int64": Case(".tif", tif(BW.astype(np.int64)), M),
    "tiff int64 as colours": Case(
        ".tif", tif(BW.astype(np.int64)), M, {**COLORS, "mask_colors": ["#000000", "#ffffff"]}
    ),
    "tiff uint32 cells": Case(
        ".tif", tif((CELLS * 70_000).astype(np.uint32)), (CELLS > 0).astype(np.uint8), {"mask_threshold": 0}
    ),
    "tiff float": Case(".tif", tif(M.astype(np.float32)), M),
    "tiff float of classes": Case(".tif", tif(CLASSES.astype(np.float64)), CLASSES, INDEX3),
    "tiff probabilities": Case(".tif", tif(M * np.float32(0.7)), "no whole numbers"),
    "tiff nan": Case(".tif", tif(np.where(M > 0, np.nan, 0).astype(np.float32)), "no whole numbers"),
    "tiff palette as index": Case(".tif", palette(CLASSES, BLACK, RED, WHITE), CLASSES, INDEX3),
    "tiff palette lzw as index": Case(
        ".tif", palette(CLASSES, BLACK, RED, WHITE, compression="tiff_lzw"), CLASSES, INDEX3
    ),
    "tiff lzw": Case(".tif", pillow(BW, compression="tiff_lzw"), M),
    "tiff pages": Case(".tif", tif(np.stack([BW, BW]), photometric="minisblack"), r"2 pages.*dataset\.pages"),
    "tiff pages as channels": Case(
        ".tif", tif(np.stack([BW, BW]), photometric="minisblack"), "2 channels; a mask has one", {"pages": "channels"}
    ),
    "tiff with a thumbnail": Case(".tif", pages(BW, BW[::2, ::2], last=1), M),
    "npy": Case(".npy", array(M.astype(np.int64)), M),
    "npy bool": Case(".npy", array(M > 0), M),
    "npy one channel": Case(".npy", array(BW[..., np.newaxis]), M),
    "npy one hot": Case(".npy", array(np.eye(5, dtype=np.uint8)[CLASSES]), "5 channels", INDEX3),
    "grey classes": Case(".png", pillow(CLASSES * 85), r"mask_values=\[0,85,170\]"),
    "grey classes declared antialiased": Case(
        ".png", pillow(np.kron(CLASSES * 85, np.ones((9, 9), np.uint8))), "mask_values", SMOOTHED
    ),
    "classes with other values ignored": Case(
        ".png", pillow(CLASSES), np.where(CLASSES == 2, 255, CLASSES), {"mask_coding": "index", "mask_other": "ignore"}
    ),
}


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.filterwarnings("ignore")
def test_masks(name: str, tmp_path: Path) -> None:
    case = MASKS[name]
    mask = written(tmp_path / f"m{case.ending}", case.save)
    size = case.right.shape if isinstance(case.right, np.ndarray) else (H, W)
    if isinstance(case.right, str):
        with suppress(ImageError):
            header = header_of(mask, config_of(**case.options))
            size = header.height, header.width
    image = written(tmp_path / "a.npy", array(np.zeros(size, np.uint8)))
    data = set_of(tmp_path, [image], [mask], **case.options)
    if isinstance(case.right, str):
        with pytest.raises(ImageError, match=f"m{case.ending}.*{case.right}") as caught:
            data.read(0)
        assert "\n" not in str(caught.value)
        return
    pair = data.read(0)
    assert pair.mask_HW.dtype == np.uint8
    assert (pair.mask_HW != case.right).mean() < (0.02 if "jpeg" in name else 1e-9)
    assert sum(pair.masks[0].values.values()) == pair.mask_HW.size


def exif(orientation: int) -> dict[str, Image.Exif]:
    tags = Image.Exif()
    tags[274] = orientation
    return {"exif": tags}


def xmp(orientation: int) -> dict[str, bytes]:
    return {"xmp": f'<x:xmpmeta><rdf:Description tiff:Orientation="{orientation}"/></x:xmpmeta>'.encode()}


ASYMMETRIC = np.zeros((H, W), np.uint8)
ASYMMETRIC[0, :3] = 255
ASYMMETRIC[1:3, 0] = 255
UPRIGHT = {
    2: ASYMMETRIC[:, ::-1], 3: ASYMMETRIC[::-1, ::-1], 4: ASYMMETRIC[::-1], 5: ASYMMETRIC.T, 6: ASYMMETRIC[::-1].T,
    7: ASYMMETRIC[::-1, ::-1].T, 8: ASYMMETRIC.T[::-1],
}  # fmt: skip
TURNED = {
    "png": (".png", lambda o: pillow(ASYMMETRIC, **exif(o))),
    "jpeg": (".jpg", lambda o: pillow(ASYMMETRIC, quality=100, **exif(o))),
    "jpeg xmp": (".jpg", lambda o: pillow(ASYMMETRIC, quality=100, **xmp(o))),
    "webp": (".webp", lambda o: pillow(np.dstack([ASYMMETRIC] * 3), lossless=True, **exif(o))),
    "tiff": (".tif", lambda o: tiff(ASYMMETRIC.tobytes(), 8, orientation=o)),
    "tiff lzw": (".tif", lambda o: tiff(lzw(ASYMMETRIC.tobytes()), 8, compression=5, orientation=o)),
}  # fmt: skip


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("kind", TURNED)
def test_orientation_is_honoured_alike_or_refused(kind: str, orientation: int, tmp_path: Path) -> None:
    """Of an image whose mask is upright; of a mask whose image is; and of both."""
    ending, make = TURNED[kind]
    files = [tmp_path / f"{name}{ending}" for name in ("image", "mask")]
    for path in files:
        make(orientation)(path)
    antialias = {"mask_antialias": True} if "jpeg" in kind else {}
    both = set_of(tmp_path, files[:1], files[1:], **antialias).read(0)
    assert (both.images[0].orientation, both.masks[0].orientation) == (orientation, orientation)
    assert np.array_equal(both.mask_HW * 255, ASYMMETRIC)
    upright = set_of(tmp_path, files[:1], files[1:], orientation="upright", **antialias).read(0)
    assert np.array_equal(upright.mask_HW * 255, UPRIGHT[orientation])
    assert np.abs(upright.image_HWC[..., 0].astype(int) - UPRIGHT[orientation]).max() < 30
    plain = {rule: tmp_path / f"{rule}.npy" for rule in ("stored", "upright")}
    np.save(plain["stored"], ASYMMETRIC)
    np.save(plain["upright"], UPRIGHT[orientation])
    for images, masks in ((files[:1], [plain["stored"]]), ([plain["stored"]], files[1:])):
        with pytest.raises(ImageError, match=r"dataset\.orientation=stored .*dataset\.orientation=upright"):
            set_of(tmp_path, images, masks, **antialias).read(0)
        assert np.array_equal(
            set_of(tmp_path, images, masks, orientation="stored", **antialias).read(0).mask_HW, both.mask_HW
        )
    beside = set_of(tmp_path, files[:1], [plain["upright"]], orientation="upright").read(0)
    assert np.array_equal(beside.image_HWC, upright.image_HWC)
    assert np.array_equal(beside.mask_HW, upright.mask_HW)


def test_orientation_0_is_none(tmp_path: Path) -> None:
    image = written(tmp_path / "a.jpg", pillow(GREY, **exif(0)))
    assert set_of(tmp_path, [image], [written(tmp_path / "m.png", pillow(M))]).read(0).images[0].orientation == 1


def test_each_file_of_several_is_a_channel(tmp_path: Path) -> None:
    mask = written(tmp_path / "m.png", pillow(M))
    first, second = (written(tmp_path / f"a{i}.png", pillow(pixels)) for i, pixels in enumerate((GREY, 255 - GREY)))
    image = set_of(tmp_path, [first, second], [mask]).read(0).image_HWC
    assert np.array_equal(image, np.dstack([GREY, 255 - GREY]))
    floats = written(tmp_path / "f.tif", tif(FLOAT))
    image = set_of(tmp_path, [first, floats], [mask]).read(0).image_HWC
    assert np.array_equal(image, np.dstack([GREY.astype(np.float32), FLOAT]))
    colour = written(tmp_path / "c.png", pillow(RGB))
    with pytest.raises(ImageError, match="one channel"):
        set_of(tmp_path, [first, colour], [mask]).read(0)
    other = written(tmp_path / "o.png", pillow(GREY[:5]))
    with pytest.raises(ImageError, match=r"a0.png has 8x6 pixels, .*o.png 8x5"):
        set_of(tmp_path, [first, other], [mask]).read(0)
    turned = written(tmp_path / "t.png", pillow(GREY, **exif(3)))
    with pytest.raises(ImageError, match="orientation"):
        set_of(tmp_path, [first, turned], [mask]).read(0)


def test_several_masks_are_united(tmp_path: Path) -> None:
    image, parts = written(tmp_path / "a.png", pillow(GREY)), [np.zeros((H, W), np.uint8) for _ in range(3)]
    for i, part in enumerate(parts):
        part[i, i : i + 3] = (1, 255, 255)[i]
    parts[2][5] = 9
    masks = [written(tmp_path / f"m{i}.png", pillow(part)) for i, part in enumerate(parts)]
    pair = set_of(tmp_path, [image], masks, ignore_index=9).read(0)
    expected = np.where(sum(parts) == 9, 255, np.minimum(sum(parts), 1))
    assert np.array_equal(pair.mask_HW, expected)
    assert pair.masks[2].values == {"0": 37, "9": 8, "255": 3}
    with pytest.raises(ImageError, match="mask_coding=binary"):
        set_of(tmp_path, [image], masks, mask_coding="index").read(0)


@pytest.mark.parametrize(("files", "given", "right"), [
    ((GREY, GREY), None, 1), ((GREY, RGB), None, 3), ((FIVE,), None, 5), ((GREY, RGB), 1, 1), ((GREY, RGB), 3, 3),
    ((FIVE,), 3, "5 channels, but the set has 3"), ((RGB, FIVE), None, "5 channels, but the set has 3"),
    ((GREY,), 5, "1 channel, but the set has 5; make files alike"),
])  # fmt: skip
def test_channels_of_a_set(files: tuple[np.ndarray, ...], given: int | None, right: int | str, tmp_path: Path) -> None:
    mask = written(tmp_path / "m.png", pillow(M))
    items = [Item(str(i), (written(tmp_path / f"{i}.npy", array(f)),), (mask,)) for i, f in enumerate(files)]
    data = image_set_of(config_of(channels=given), tmp_path, items)
    if isinstance(right, str):
        with pytest.raises(ImageError, match=right):
            [data.read(i) for i in range(len(files))]
    else:
        assert data.channels == right
        assert {data.read(i).image_HWC.shape for i in range(len(files))} == {(H, W, right)}


def test_pages_as_slices_are_images_of_one_case(tmp_path: Path) -> None:
    stack = RNG.integers(0, 256, (3, H, W), dtype=np.uint8)
    masks = np.stack([M, 1 - M, M]) * 255
    image = written(tmp_path / "a.tif", tif(stack, photometric="minisblack"))
    mask = written(tmp_path / "m.tif", tif(masks, photometric="minisblack"))
    data = set_of(tmp_path, [image], [mask], pages="slices")
    assert (data.image_ids, data.case_ids) == (("a_z000", "a_z001", "a_z002"), ("a", "a", "a"))
    for k in range(3):
        assert np.array_equal(data.read(k).image_HWC[..., 0], stack[k])
        assert np.array_equal(data.read(k).mask_HW, masks[k] // 255)
    with pytest.raises(UsageError, match=r"a.tif has 3 slices, .*m.png 1"):
        set_of(tmp_path, [image], [written(tmp_path / "m.png", pillow(M))], pages="slices")
    blocks = written(tmp_path / "a.tif", tif(FOUR, imagej=True, metadata={"axes": "ZCYX"}))
    written(mask, tif(masks[:2], imagej=True, metadata={"axes": "ZYX"}))
    data = set_of(tmp_path, [blocks], [mask], pages="slices")
    assert data.channels == 3
    assert np.array_equal(data.read(1).image_HWC, np.moveaxis(FOUR[1], 0, -1))
    rgb = np.stack([RGB, 255 - RGB])
    written(image, tif(rgb, photometric="rgb", compression="zlib"))
    assert np.array_equal(set_of(tmp_path, [image], [mask], pages="slices").read(1).image_HWC, rgb[1])
    written(
        image, pillow(Image.fromarray(GREY), compression="tiff_lzw", save_all=True, append_images=[Image.fromarray(M)])
    )
    assert np.array_equal(set_of(tmp_path, [image], [mask], pages="slices").read(1).image_HWC[..., 0], M)
    written(image, tif(rgb, photometric="rgb", truncate=True))
    with pytest.raises(ImageError, match="one block"):
        set_of(tmp_path, [image], [mask], pages="slices").read(1)
    assert set_of(tmp_path, [written(image, tif(GREY))], [written(mask, tif(M))], pages="slices").image_ids == ("a",)


@pytest.mark.parametrize(("ending", "save", "words"), [
    (".png", pillow(RGB), "PNG, RGB, 8 bit"),
    (".png", pillow(GREY16), "PNG, grey, 16 bit"),
    (".png", pillow(RGB, icc_profile=b"12"), "PNG, RGB, 8 bit, colour profile not applied"),
    (".png", png(GREY, 8, 0, (b"gAMA", struct.pack(">I", 45455))), "PNG, grey, 8 bit, gamma 0.45455 not applied"),
    (".jpg", pillow(RGB), "JPEG, RGB, 8 bit"),
    (".png", pillow(RGB, format="WEBP"), "WebP, RGB, 8 bit"),
    (".tif", tif(FIVE, photometric="minisblack", planarconfig="contig"), "TIFF, 5 channels, 16 bit"),
    (".tif", tif(FLOAT), "TIFF, grey, 32 bit float"),
    (".tif", tif(GREY, extratags=[(42113, "s", 0, "-9999", True)]), "TIFF, grey, 8 bit, nodata -9999"),
    (".tif", pillow(GREY, icc_profile=b"12"), "TIFF, grey, 8 bit, colour profile not applied"),
    (
        ".tif",
        tif(GREY, extratags=[(42112, "s", 0, '<Item name="SCALE" role="scale">2</Item>', True)]),
        "TIFF, grey, 8 bit, scale or offset not applied",
    ),
    (".npy", array(FLOAT), "NumPy, float32"),
])  # fmt: skip
def test_the_source_says_what_the_file_is(ending: str, save: Save, words: str, tmp_path: Path) -> None:
    image = written(tmp_path / f"a{ending}", save)
    pair = set_of(tmp_path, [image], [written(tmp_path / "m.png", pillow(CLASSES))], **INDEX3).read(0)
    assert pair.images[0].kind == words
    assert pair.images[0].values == {}
    values, counts = np.unique(CLASSES, return_counts=True)
    assert pair.masks[0].values == {str(v): n for v, n in zip(values.tolist(), counts.tolist(), strict=True)}


@pytest.mark.parametrize(("ending", "how"), [(".png", {}), (".bmp", {}), (".gif", {}), (".tif", {}), (".tif", LZW)])
def test_palettes_of_class_numbers_must_agree(ending: str, how: dict[str, Any], tmp_path: Path) -> None:
    """Programs number the colours of each file anew, by their order or their number of pixels."""

    def check(*masks: Save) -> PairFacts:
        image = written(tmp_path / "a.png", pillow(GREY))
        paths = [written(tmp_path / f"m{n}{ending}", save) for n, save in enumerate(masks)]
        items = [Item(f"i{n}", (image,), (path,)) for n, path in enumerate(paths)]
        data = image_set_of(config_of(**INDEX3), tmp_path, items)
        check_set(data, facts := check_pairs(data), "train", None)
        return facts

    usual, other = (BLACK, RED, GREEN), (BLACK, GREEN, RED)
    facts = check(palette(CLASSES, *usual, **how), palette(CLASSES, *usual, **how))
    assert [entry[:2] for entry in facts.mask_palettes] == [("0", "#000000"), ("1", "#ff0000"), ("2", "#09c809")]
    check(palette(CLASSES, *usual, **how), palette(CLASSES, BLACK, (9, 9, 9), (7, 7, 7), **how))  # unknown colours
    check(palette(CLASSES, BLACK, RED, RED, **how), palette(CLASSES, BLACK, RED, RED, **how))
    check(palette(CLASSES, *usual, **how), pillow(CLASSES))
    with pytest.raises(UsageError, match=r"#09c809 is 1 in i1 and 2 in i0.*dataset\.mask_coding=colors"):
        check(palette(CLASSES, *usual, **how), palette(CLASSES, *other, **how))
    with pytest.raises(UsageError, match=r"#09c809 is 1 in i1 and 2 in i0"):
        check(palette(CLASSES, *usual, **how), palette(np.minimum(CLASSES, 1), *other[:2], **how))


def test_a_source_lists_colours_and_at_most_300_values(tmp_path: Path) -> None:
    image = written(tmp_path / "a.npy", array(np.zeros((32, 32), np.uint8)))
    cells = np.arange(1024).reshape(32, 32).astype(np.uint16)
    cells[0] = 7
    pair = set_of(tmp_path, [image], [written(tmp_path / "m.png", pillow(cells))], mask_threshold=0).read(0)
    assert len(pair.masks[0].values) == 300
    assert pair.masks[0].values["7"] == 32
    red = written(tmp_path / "r.png", pillow(RED_MASK))
    pair = set_of(tmp_path, [written(tmp_path / "b.png", pillow(GREY))], [red], **COLORS).read(0)
    assert pair.masks[0].values == {"#000000": 40, "#ff0000": 8}


@pytest.mark.parametrize("ending", [".png", ".tif", ".npy", ".webp", ".gif", ".bmp"])
def test_files_above_max_pixels_are_not_decoded(ending: str, tmp_path: Path) -> None:
    image = tmp_path / f"a{ending}"
    np.save(image, RGB) if ending == ".npy" else Image.fromarray(RGB).save(image)
    mask = written(tmp_path / "m.png", pillow(M))
    with pytest.raises(ImageError, match=f"a{ending}: 8 x 6 .*dataset.max_pixels=47"):
        set_of(tmp_path, [image], [mask], max_pixels=47).read(0)
    assert set_of(tmp_path, [image], [mask], max_pixels=48).read(0).mask_HW.shape == (H, W)


@pytest.mark.parametrize(
    "name",
    [
        "png rgb",
        "jpeg rgb progressive",
        "webp lossless",
        "gif palette",
        "bmp rgb",
        "tiff rgb 16 bit",
        "tiff lzw",
        "npy 5 channels",
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_truncated_files_are_refused(name: str, tmp_path: Path) -> None:
    image = written(tmp_path / f"a{IMAGES[name].ending}", IMAGES[name].save)
    mask, whole = written(tmp_path / "m.png", pillow(M)), image.read_bytes()
    for share in (0.05, 0.3, 0.6, 0.8):
        image.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(ImageError, match=image.name) as caught:
            set_of(tmp_path, [image], [mask]).read(0)
        assert "\n" not in str(caught.value)


def test_arrays_are_stacks_of_slices_where_that_is_declared(tmp_path: Path) -> None:
    """Images (D, H, W) or (D, H, W, C), masks (D, H, W); of a volume of another kind, too."""
    stack, labels = np.stack([GREY, GREY.T[::-1].reshape(GREY.shape)]), np.stack([M, M[::-1]])
    image, mask = (written(tmp_path / f"{name}.npy", array(of)) for name, of in (("i", stack), ("m", labels)))
    data = set_of(tmp_path, [image], [mask], pages="slices")
    assert (data.image_ids, data.case_ids) == (("a_z000", "a_z001"), ("a", "a"))
    for k in range(2):
        pair = data.read(k)
        assert np.array_equal(pair.image_HWC[..., 0], stack[k])
        assert np.array_equal(pair.mask_HW, labels[k] > 0)
    colour = written(tmp_path / "c.npy", array(np.stack([stack] * 3, axis=-1)))
    assert np.array_equal(set_of(tmp_path, [colour], [mask], pages="slices").read(1).image_HWC[..., 2], stack[1])
    flat = written(tmp_path / "flat.npy", array(M))
    assert set_of(tmp_path, [flat], [flat], pages="slices").image_ids == ("a",)
    nifti = tmp_path / "i.nii"
    nibabel.save(nibabel.Nifti1Image(stack.T, np.eye(4)), nifti)
    assert np.array_equal(set_of(tmp_path, [nifti], [mask], pages="slices").read(1).mask_HW, labels[1] > 0)
    with pytest.raises(UsageError, match=r"dataset\.pages=slices"):
        set_of(tmp_path, [nifti], [mask])
    wide = written(tmp_path / "wide.npy", array(np.zeros((2, 40, 40), np.uint8)))
    for images, masks in ((wide, wide), (written(tmp_path / "p.png", pillow(np.zeros((2, 40), np.uint8))), wide)):
        with pytest.raises(ImageError, match=r"dataset\.pages=slices"):
            set_of(tmp_path, [images], [masks]).read(0)


def test_a_mask_of_another_size_is_that_first_whatever_its_values(tmp_path: Path) -> None:
    """Its coding is no matter: it is probably the mask of something else, or a thumbnail with smoothed outlines."""
    image = written(tmp_path / "a.png", pillow(GREY))
    mask = written(tmp_path / "m.png", pillow(np.linspace(0, 255, 4 * 5).astype(np.uint8).reshape(4, 5)))
    with pytest.raises(ImageError, match="5x4"):
        set_of(tmp_path, [image], [mask]).read(0)
