"""Volumes, read slice by slice: NIfTI files here, DICOM series in `segexp.data.dicom`.

Voxel (i, j, k) of a file is the pixel of row j and column i of slice k: slices lie along the third array axis, whatever
that axis is in the patient. `Source.kind` names the patient's axes, so that a set that mixes them is seen.
"""

import functools
import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from segexp.data.file_set import files_of, gone
from segexp.data.image_set import Header, ImageError, Source, state_of
from segexp.data.rasters import MAX_CHANNELS
from segexp.errors import UsageError, first_line

LARGEST = 4 * 2**30
"""Bytes of a decoded volume above which it is refused: a small file may declare any size."""
KEPT = 512 * 2**20
"""Bytes of decoded volumes that a process keeps, beside the one that was read last."""
MM = {"meter": 1000.0, "mm": 1.0, "micron": 0.001, "unknown": 1.0}
"""NIfTI's units of length."""


@dataclass(frozen=True)
class Volume:
    """An opened volume. affine_44: voxel (i, j, k) -> mm to the patient's right, front and head; None: unknown.

    decode: all voxels as (C, D, H, W): uint8, uint16, int16 or float32.
    """

    header: Header
    affine_44: np.ndarray | None
    decode: Callable[[], np.ndarray] = field(repr=False)


def header_of(path: Path) -> Header:
    """The header of a NIfTI file, a DICOM file or a folder that holds one DICOM series. Decodes no voxel.

    Raises ImageError if it cannot be read, UsageError if the package that reads it is not installed.
    """
    return _opened(path).header


def read_slice(path: Path, k: int = 0) -> tuple[np.ndarray, Source]:
    """Slice k: (H, W), or (H, W, C) with several channels; rescaled by what the file declares. Raises as `header_of`.

    The volumes that were read last stay decoded in memory, so that slices in order decode a file once.
    """
    header = header_of(path)
    if not 0 <= k < header.slices:
        raise ImageError(f"{path}: no slice {k}, it has {header.slices}")
    slice_CHW = _decoded(path)[:, k]
    pixels = slice_CHW[0] if header.channels == 1 else np.moveaxis(slice_CHW, 0, -1)
    return np.ascontiguousarray(pixels), Source(header.kind)


def check_grids(paths: Sequence[Path]) -> None:
    """Raise ImageError if volumes (a case's channels and mask) differ in size, orientation or place.

    Positions may differ by half a voxel, for files are written with rounded numbers.
    """
    first = _opened(paths[0])
    for path in paths[1:]:
        other = _opened(path)
        size, others = ((v.header.width, v.header.height, v.header.slices) for v in (first, other))
        if others != size:
            sizes = " and ".join("x".join(map(str, shape)) for shape in (others, size))
            raise ImageError(f"{path}: another size than {paths[0]}: {sizes} voxels")
        if first.affine_44 is None or other.affine_44 is None:
            continue
        corners_8 = np.array([[*ijk, 1] for ijk in itertools.product(*((0, n) for n in size))])
        moved = np.linalg.norm((corners_8 @ (other.affine_44 - first.affine_44).T)[:, :3], axis=1).max()
        if moved > 0.5 * np.linalg.norm(first.affine_44[:3, :3], axis=0).min():
            axes = " and ".join(axes_of(volume.affine_44) for volume in (other, first) if volume.affine_44 is not None)
            raise ImageError(
                f"{path}: {moved:.3g} mm away from {paths[0]} by their headers (axes {axes}); resample one to the "
                "other, or if the voxels do match, copy the affine of the image into the mask"
            )


def axes_of(affine_44: np.ndarray) -> str:
    """Where i, j and k lead in the patient, as "RAS": to the right, the front and the head."""
    rest, letters = np.abs(affine_44[:3, :3] / np.linalg.norm(affine_44[:3, :3], axis=0)), [""] * 3
    for _ in range(3):  # the clearest axis first, as a volume may be oblique
        to, axis = np.unravel_index(rest.argmax(), rest.shape)
        letters[axis] = ("RAS" if affine_44[to, axis] > 0 else "LPI")[to]
        rest[to], rest[:, axis] = -1, -1
    return "".join(letters)


def _stamp(path: Path) -> tuple[int, ...]:
    try:
        return tuple(n for file in files_of(path) for n in state_of(file))
    except OSError as error:
        raise ImageError(f"{path}: {gone(path) or error.strerror}") from None


def _opened(path: Path) -> Volume:
    return _open(path, *_stamp(path))


@functools.lru_cache(maxsize=4096)
def _open(path: Path, *stamp: int) -> Volume:
    with named(path):
        if path.is_dir() or path.suffix.lower() == ".dcm":
            from segexp.data.dicom import open_dicom

            volume = open_dicom(path)
        else:
            volume = _open_nifti(path)
        header = volume.header
        if header.channels > MAX_CHANNELS:
            raise ValueError(f"{header.channels} channels; at most {MAX_CHANNELS} are supported")
        if min(header.height, header.width, header.slices) < 1:
            raise ValueError("no voxels")
        if (size := 4 * header.channels * header.slices * header.height * header.width) > LARGEST:
            raise ValueError(f"{size / 2**30:.0f} GiB of voxels, at most {LARGEST / 2**30:.0f} are read; crop it")
    return volume


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Any exception becomes an ImageError of one line that names the path."""
    try:
        yield
    except (ImageError, UsageError):
        raise
    except Exception as error:  # the packages raise errors of many kinds on broken files
        raise ImageError(f"{path}: {first_line(error)}") from error


_lock = threading.Lock()
_kept: "OrderedDict[tuple[object, ...], np.ndarray]" = OrderedDict()
"""Decoded volumes, the last used at the end."""


def _decoded(path: Path) -> np.ndarray:
    """The voxels (C, D, H, W) of a volume. Threads wait for each other: they mostly read slices of one volume."""
    key = (path, *_stamp(path))
    with _lock:
        if key not in _kept:
            with named(path):
                _kept[key] = _open(*key).decode()
        _kept.move_to_end(key)
        while len(_kept) > 1 and sum(volume.nbytes for volume in _kept.values()) > KEPT:
            _kept.popitem(last=False)
        return _kept[key]


def _open_nifti(path: Path) -> Volume:
    """One volume, or several (the fourth axis) as channels. Raises ValueError for what has another reading."""
    try:
        import nibabel
    except ImportError:
        raise UsageError(f"{path} needs nibabel: pip install 'segexp[nifti]'") from None

    with path.open("rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    if zipped != path.name.lower().endswith(".gz"):
        raise ValueError(
            f"{'' if zipped else 'not '}compressed, whatever its name; rename it to end in .nii{'.gz' * zipped}"
        )
    nibabel.imageglobals.logger.disabled = True  # it prints what it makes of odd headers
    try:
        image: Any = nibabel.load(path)
    except nibabel.filebasedimages.ImageFileError:
        raise ValueError("no NIfTI file, whatever its name; write it again, or remove it") from None
    if not isinstance(image, nibabel.Nifti1Image):  # Nifti2Image is one of them
        raise ValueError(f"{type(image).__name__}, not a NIfTI file")
    shape, dtype = list(image.shape), image.get_data_dtype()
    while len(shape) > 3 and shape[-1] == 1:
        shape.pop()
    if len(shape) not in (2, 3, 4):
        raise ValueError(f"an array of {'x'.join(map(str, shape))}; only 3 axes, or 4 with channels as the last")
    if dtype.kind not in "iufb":
        raise ValueError(f"voxels of type {dtype}; save them as integers or floating point numbers")
    width, height, slices, channels = (*shape, 1, 1)[:4]
    sides = [abs(float(side)) * MM[image.header.get_xyzt_units()[0]] for side in image.header.get_zooms()[:3]]
    across, down, through = (*sides, 1.0)[:3]
    spacing = (through, down, across) if min(through, down, across) > 0 else None
    steps_3 = np.linalg.norm(image.affine[:3, :3], axis=0) * MM[image.header.get_xyzt_units()[0]]
    doubtful = spacing is not None and not np.allclose(steps_3[: len(sides)], sides, rtol=0.01)
    proxy: Any = image.dataobj
    slope, inter = proxy.slope, proxy.inter
    kept = dtype.name if (slope, inter) == (1, 0) and dtype.name in ("uint8", "uint16", "int16") else None
    scaled = "" if (slope, inter) == (1, 0) else f" x {slope:g} + {inter:g}"

    def decode() -> np.ndarray:
        read: Any = nibabel.load(path, mmap=False)
        raw = np.asanyarray(read.dataobj)
        return as_delivered(raw, kept).reshape(width, height, slices, channels, order="F").T

    affine_44 = affine_of(image)
    kind = f"NIfTI, {dtype.name}{scaled}, " + (f"axes {axes_of(affine_44)}" if affine_44 is not None else "no affine")
    kind += ", voxel sizes of sform and pixdim differ" if doubtful else ""
    return Volume(Header(kind, height, width, channels, slices, None if doubtful else spacing), affine_44, decode)


def affine_of(image: Any) -> np.ndarray | None:
    """The affine of a NIfTI image; None where it places no voxel, as with voxel sizes of 0 or NaN."""
    affine_44: np.ndarray = image.affine
    places = np.isfinite(affine_44).all() and np.linalg.matrix_rank(affine_44[:3, :3]) == 3
    return affine_44 if places else None


def as_delivered(raw: np.ndarray, kept: str | None) -> np.ndarray:
    """The array in the type ``kept``, else as float32. Raises ValueError if integers are too large for that."""
    if kept is not None:
        return raw.astype(kept, copy=False)
    if raw.dtype.kind in "iu" and raw.size and max(-int(raw.min()), int(raw.max())) > 2**24:
        raise ValueError(f"values {raw.min()} to {raw.max()} are not exact in 32-bit floating point numbers")
    return raw.astype(np.float32)
