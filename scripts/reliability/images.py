"""Images that were made to harm: damaged, with huge or looping headers, with code; read as data and by `predict`."""

import contextlib
import gzip
import io
import pickle
import random
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from PIL import Image

from reliability import Ending, ended, fault_class, runs_of, said_by, study
from reliability.damage import DAMAGE

SIDE = 32


def _tiff(entries: list[tuple[int, int, int, int]], following: int, strip: bytes = b"") -> bytes:
    """A TIFF of one folder: (tag, type, number, value), and the place of the following folder."""
    body = struct.pack("<2sHIH", b"II", 42, 8, len(entries))
    return body + b"".join(struct.pack("<HHII", *entry) for entry in entries) + struct.pack("<I", following) + strip


def _looping_tiff(draw: random.Random) -> bytes:
    """A folder that is its own successor, its own SubIFD or EXIF, and may name huge sizes, numbers and places."""
    huge = draw.choice((SIDE, 2**16, 2**31 - 1, 2**32 - 1))
    tags = [(256, 4, 1, huge), (257, 4, 1, draw.choice((SIDE, huge))), (258, 3, 1, draw.choice((1, 8, 32, 255)))]
    tags += [(259, 3, 1, draw.choice((1, 5, 7, 8, 32773))), (262, 3, 1, draw.choice((0, 1, 3, 6)))]
    tags += [
        (273, 4, draw.choice((1, 2**30)), draw.choice((8, 200, 2**32 - 1))),
        (277, 3, 1, draw.choice((1, 3, 60000))),
    ]
    tags += [(278, 4, 1, draw.choice((0, 1, huge))), (279, 4, 1, draw.choice((0, SIDE * SIDE, 2**32 - 1)))]
    tags += [(330, 4, 1, 8), (34665, 4, 1, 8), (40965, 4, 1, 8)][: draw.randrange(4)]
    return _tiff(tags, draw.choice((0, 8, 8, 9, 2**32 - 1)), bytes(SIDE * SIDE))


def _png(draw: random.Random) -> bytes:
    """A PNG with any size and depth in its header, whose text or pixels may unfold to a gigabyte."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    side = draw.choice((SIDE, 0, 30000, 2**31 - 1))
    header = struct.pack(">IIBBBBB", side, draw.choice((SIDE, side)), draw.choice((8, 16, 1, 3)), *draw.choice(
        ((0, 0, 0, 0), (2, 0, 0, 1), (3, 0, 0, 0), (6, 0, 9, 0))))  # fmt: skip
    bomb = _bomb(draw.choice((10**4, 10**8)))
    text = chunk(draw.choice((b"zTXt", b"iCCP")), b"x\0\0" + bomb) if draw.random() < 0.5 else b""
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + text + chunk(b"IDAT", bomb) + chunk(b"IEND", b"")


def _bomb(size: int) -> bytes:
    """So many zeros, deflated."""
    packer, block = zlib.compressobj(9), bytes(2**20)
    return b"".join(packer.compress(block) for _ in range(max(1, size >> 20))) + packer.flush()


class _Code:
    """Its pickle writes a file when it is read."""

    def __reduce__(self) -> Any:
        return exec, ("open('executed', 'w').close(); open('../executed', 'w').close()",)


def _npy(draw: random.Random) -> bytes:
    """An array of objects that runs code, or a header with any shape and type."""
    if draw.random() < 0.4:
        head = "{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"
        return _with_header(head) + pickle.dumps(np.array([_Code()], dtype=object))
    shape = draw.choice(
        ("(32, 32)", "(4294967295, 4294967295)", "(10**9,)", "(-1, 32)", "(0, 0)", "(32, 32, 3, 3)", "()")
    )
    kind = draw.choice(("<u1", "<f8", "<c16", "|O", "<U9999", "|V8", "<M8[s]", "[('a', '<f8')]", "__import__('os')"))
    head = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}"
    return _with_header(draw.choice((head, head, "(" * 5000, "[" * 300 + "]" * 300))) + bytes(SIDE * SIDE)


def _with_header(head: str) -> bytes:
    data = head.encode().ljust(118) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(data)) + data


def _nifti(draw: random.Random, *, packed: bool = False) -> bytes:
    """A NIfTI with any sizes, type, offset and scale; packed may unfold to hundreds of megabytes."""
    header = bytearray(348)
    header[:4] = struct.pack("<i", 348)
    sizes = draw.choice(((SIDE, SIDE, 4), (32767,) * 3, (SIDE, SIDE, 0), (-1, 5, 5), (SIDE, SIDE, 1)))
    header[40:56] = struct.pack("<8h", draw.choice((3, 3, 2, 7, -1, 99)), *sizes, 1, 1, 1, 1)
    header[70:74] = struct.pack("<2h", draw.choice((2, 4, 16, 128, 2304, 999)), draw.choice((8, 16, 32, 0)))
    header[76:108] = struct.pack("<8f", 1, *draw.choices((1, 0, -1, float("nan"), 1e30), k=7))
    header[108:120] = struct.pack("<3f", *draw.choice(((352, 1, 0), (1e30, 1, 0), (-5, 1, 0), (352, float("nan"), 0))))
    header[344:348] = draw.choice((b"n+1\0", b"n+1\0", b"ni1\0", b"\0\0\0\0"))
    data = bytes(header) + bytes(4) + bytes(draw.choice((SIDE * SIDE * 4, 3 * 10**8 if packed else 100)))
    return gzip.compress(data, 1) if packed else data


def _dicom(draw: random.Random) -> bytes:
    """A DICOM file that Pydicom wrote, with a size or a number of frames that its pixels do not have."""
    import pydicom
    from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian

    one = pydicom.Dataset()
    one.file_meta = pydicom.dataset.FileMetaDataset()
    one.file_meta.TransferSyntaxUID, one.file_meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, CTImageStorage
    one.file_meta.MediaStorageSOPInstanceUID = UID("1.2.3")
    one.SOPClassUID, one.SOPInstanceUID, one.Modality = CTImageStorage, "1.2.3", "CT"
    one.Rows, one.Columns = draw.choice(((SIDE, SIDE), (65535, 65535), (0, 5)))
    one.SamplesPerPixel, one.BitsAllocated, one.BitsStored = draw.choice((1, 3)), draw.choice((8, 16)), 8
    one.HighBit, one.PixelRepresentation, one.PhotometricInterpretation = 7, 0, "MONOCHROME2"
    if draw.random() < 0.5:
        one.NumberOfFrames = draw.choice((1, 5, 2**31 - 1))
    one.PixelData = bytes(SIDE * SIDE)
    file = io.BytesIO()
    one.save_as(file, enforce_file_format=True)
    return file.getvalue()


def _saved(kind: str) -> Callable[[random.Random], bytes]:
    """A picture as Pillow writes it, damaged."""

    def make(draw: random.Random) -> bytes:
        file, mode = io.BytesIO(), draw.choice(("L", "RGB"))
        grey = np.frombuffer(draw.randbytes(SIDE * SIDE), np.uint8).reshape(SIDE, SIDE)
        exif = Image.Exif()
        exif[274] = draw.choice((1, 6, 9))
        Image.fromarray(grey).convert(mode).save(file, kind, exif=exif)
        return draw.choice(DAMAGE)(draw, file.getvalue())

    return make


KINDS: dict[str, tuple[str, Callable[[random.Random], bytes]]] = {
    **{f"damaged {kind}": (ending, _saved(kind)) for kind, ending in
       {"PNG": "png", "TIFF": "tif", "JPEG": "jpg", "BMP": "bmp", "GIF": "gif", "WEBP": "webp"}.items()},
    "looping TIFF": ("tif", _looping_tiff), "PNG with any header": ("png", _png), "array": ("npy", _npy),
    "NIfTI": ("nii", _nifti), "packed NIfTI": ("nii.gz", lambda draw: _nifti(draw, packed=True)),
    "DICOM": ("dcm", _dicom),
}  # fmt: skip


@fault_class("hostile images, as images and masks of a data set and for predict", 3000, study)
def images(draw: random.Random, prepared: Path, own: Path) -> Ending:
    kind = draw.choice(list(KINDS))
    ending, make = KINDS[kind]
    data = make(draw)
    if draw.random() < 0.4:
        data = draw.choice(DAMAGE)(draw, data or b"x")
    ending = draw.choice((ending,) * 9 + ("png", "tif", "npy"))
    shutil.copytree(prepared / "outputs", own / "outputs")
    role = draw.choice(("images", "masks", "predict"))
    root = own / "data"
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
        for n in range(12):
            pixels = np.frombuffer(random.Random(n).randbytes(SIDE * SIDE), np.uint8).reshape(SIDE, SIDE)
            Image.fromarray(pixels if folder == "images" else pixels // 128 * 255).save(root / folder / f"{n}.png")
    words = ["predict", str(runs_of(own / "outputs")[0]), str(root / f"x.{ending}"), "-o", "masks"]
    if role != "predict":
        (root / role / "3.png").unlink()
        words = ["data", "check", "folder", f"dataset.root={root}", "dataset.image_size=32", "split.seed=1"]
    (root / (f"x.{ending}" if role == "predict" else f"{role}/3.{ending}")).write_bytes(data)
    with contextlib.ExitStack() as without:
        if draw.random() < 0.9:  # drawing the sheet takes most of the time, and is of other images
            without.enter_context(mock.patch("segexp.running.data_check.contact_sheet"))
        return ended(said_by(words, own), f"{kind} as {ending}, {role}")
