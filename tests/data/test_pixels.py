"""Every kind of image and mask file: read right, or refused with the word for what is wrong."""

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from segexp.data.file_set import FilesConfig, Item, image_set_of
from segexp.data.image_set import ImageError, ImageSet

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


def tiff(data: bytes, bits: int, samples: int = 1, order: str = "<", **tags: int | tuple[int, ...]) -> Save:
    """A TIFF of one strip made by hand: photometric 1 unless given."""
    numbers = {
        "photometric": 262, "compression": 259, "fill": 266, "orientation": 274, "planar": 284, "extra": 338,
        "format": 339, "colormap": 320, "subsampling": 530,
    }  # fmt: skip
    entries: dict[int, tuple[int, tuple[int, ...]]] = {
        256: (3, (W,)), 257: (3, (H,)), 258: (3, (bits,) * samples), 259: (3, (1,)),
        262: (3, (1,)), 277: (3, (samples,)),
        278: (3, (H,)), 279: (4, (len(data),)), 273: (4, (8,)),
    }  # fmt: skip
    for name, value in tags.items():
        entries[numbers[name]] = (3, value if isinstance(value, tuple) else (value,))
    body = data + b"\0" * (len(data) % 2)
    directory, far = b"", b""
    far_at = 8 + len(body) + 2 + 12 * len(entries) + 4
    for tag, (kind, values) in sorted(entries.items()):
        text = struct.pack(f"{order}{len(values)}{'H' if kind == 3 else 'I'}", *values)
        if len(text) > 4:
            text, far = struct.pack(f"{order}I", far_at + len(far)), far + text
        directory += struct.pack(f"{order}HHI", tag, kind, len(values)) + text.ljust(4, b"\0")
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8 + len(body))
    return raw(head + body + struct.pack(f"{order}H", len(entries)) + directory + b"\0\0\0\0" + far)


def with_alpha(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    return np.dstack([pixels, alpha])


def palette(index: np.ndarray, *colors: tuple[int, int, int], transparent: int | bytes | None = None) -> Save:
    image = Image.frombytes("P", (W, H), index.tobytes())
    image.putpalette([level for color in colors for level in color])
    return pillow(image, **({} if transparent is None else {"transparency": transparent}))


def frames(kind: str) -> Save:
    both = [Image.fromarray(RGB), Image.fromarray(255 - RGB)]
    return lambda path: both[0].save(path, kind, save_all=True, append_images=both[1:])


def pages(*arrays: np.ndarray, **kinds: int) -> Save:
    def save(path: Path) -> None:
        with tifffile.TiffWriter(path) as file:
            for i, one in enumerate(arrays):
                file.write(one, metadata=None, subfiletype=kinds.get("last", 0) if i == len(arrays) - 1 else 0)

    return save


THREE = RNG.integers(0, 256, (3, H, W), dtype=np.uint8)
FOUR = RNG.integers(0, 65536, (2, 3, H, W), dtype=np.uint16)  # axes of two kinds
LUT = tuple(int(v) for v in RNG.integers(0, 65536, 3 * 256))
CLEAR = np.full((H, W), 255, np.uint8)


@dataclass(frozen=True)
class Case:
    """A file as an image: what it is read as, or the word that the refusal has."""

    ending: str
    save: Save
    right: np.ndarray | str
    options: dict[str, Any] = field(default_factory=dict)
    about: float = 0  # how far a lossy file may be off


RED, BLACK, WHITE = (255, 0, 0), (0, 0, 0), (255, 255, 255)
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
    "png palette with holes": Case(".png", palette(BITS.astype(np.uint8), BLACK, RED, transparent=0), "alpha"),
    "png palette with an unused hole": Case(
        ".png", palette(BITS.astype(np.uint8), BLACK, RED, WHITE, transparent=b"\xff\xff\0"), RED_OR_BLACK
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
    "gif with holes": Case(".gif", palette(BITS.astype(np.uint8), BLACK, RED, transparent=1), "alpha"),
    "gif of two frames": Case(".gif", frames("GIF"), "2 frames"),
    "bmp 1 bit": Case(".bmp", pillow(BITS), ALPHA),
    "bmp grey": Case(".bmp", pillow(GREY), GREY),
    "bmp palette": Case(".bmp", palette(BITS.astype(np.uint8), BLACK, RED), RED_OR_BLACK),
    "bmp rgb": Case(".bmp", pillow(RGB), RGB),
    "bmp 32 bit": Case(".bmp", pillow(with_alpha(RGB, ALPHA)), RGB),
    "tiff 1 bit": Case(".tif", tif(BITS, photometric="minisblack"), ALPHA),
    "tiff 1 bit fax": Case(".tif", pillow(BITS, compression="group4"), ALPHA),
    "tiff 2 bit": Case(".tif", tiff(packed(LEVELS4, 2), 2), LEVELS4 * 85),
    "tiff 4 bit": Case(".tif", tiff(packed(LEVELS16, 4), 4), LEVELS16 * 17),
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
    "tiff palette": Case(
        ".tif",
        tiff(GREY.tobytes(), 8, photometric=3, colormap=LUT),
        (np.array(LUT).reshape(3, 256) >> 8).T[GREY].astype(np.uint8),
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
