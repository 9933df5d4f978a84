"""DICOM: a file, or a folder that holds one series, as a volume.

Stored values are rescaled (RescaleSlope, RescaleIntercept); windows and overlays are for display and not applied.
Attributes are those of the standard, part 3: https://dicom.nema.org/medical/dicom/current/output/html/part03.html
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from segexp.data.file_set import files_of, is_dicom
from segexp.data.image_set import Header
from segexp.data.volumes import Volume, as_delivered, axes_of, named
from segexp.errors import UsageError

PHOTOMETRIC = ("MONOCHROME2", "RGB", "YBR_FULL", "YBR_FULL_422")
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
UNSCALED = {(1, 0): "uint8", (8, 0): "uint8", (8, 1): "int16", (16, 0): "uint16", (16, 1): "int16"}
"""BitsAllocated and PixelRepresentation -> the type of values that are not rescaled; float32 for others."""
EVEN = 0.01
"""Share by which distances between slices may differ and still count as even."""


@dataclass(frozen=True)
class _Frame:
    """One plane of pixels.

    place_33: its position and the directions along a row and down a column, in mm; None if unknown. alike: what all
    planes of a volume have in common.
    """

    file: Path
    index: int
    rescale: tuple[float, float]
    place_33: np.ndarray | None
    number: int | None
    thickness: float | None
    alike: dict[str, Any]


def open_dicom(path: Path) -> Volume:
    """The frames of a file or of a folder's files, ordered along the normal of their planes. Raises ValueError."""
    try:
        import pydicom
    except ImportError:
        raise UsageError(f"{path} needs pydicom: pip install 'segexp[dicom]'") from None

    files = [file for file in files_of(path) if file == path or is_dicom(file)]
    frames: list[_Frame] = []
    for file in files:
        with named(file):
            frames += _frames_of(file, pydicom.dcmread(file, stop_before_pixels=True))
    if not frames:
        raise ValueError("no DICOM files in this folder")
    for frame in frames:
        if wrong := [what for what, value in frames[0].alike.items() if frame.alike[what] != value]:
            names = f"{frames[0].file.name} and {frame.file.name}"
            raise ValueError(f"{names} differ in {wrong[0]}; put each series into a folder of its own")
    frames, step_3 = _in_order(frames)
    rescales = {frame.rescale for frame in frames}
    dtype = _dtype(frames[0].alike["type"], rescales)
    affine_44 = _affine(frames[0], step_3)
    kind = f"DICOM, {frames[0].alike['type'][2]} bit" + ("" if rescales == {(1.0, 0.0)} else ", rescaled")
    kind += "" if affine_44 is None else f", axes {axes_of(affine_44)}"
    kind += ", uneven distances" if len(frames) > 1 and affine_44 is not None and step_3 is None else ""
    kind += f", {unread} other files in the folder not read" if (unread := len(files_of(path)) - len(files)) else ""
    height, width, channels = frames[0].alike["size"]
    series = str(frames[0].alike["SeriesInstanceUID"] or "")
    header = Header(kind, height, width, channels, len(frames), _spacing(frames, step_3), series)
    return Volume(header, affine_44, lambda: _decode(frames, header, dtype))


def _decode(frames: list[_Frame], header: Header, dtype: str | None) -> np.ndarray:
    from pydicom import dcmread
    from pydicom.pixels.utils import pixel_array

    at = {(frame.file, frame.index): k for k, frame in enumerate(frames)}
    out = np.empty((header.channels, header.slices, header.height, header.width), dtype or np.float32)
    for file in dict.fromkeys(frame.file for frame in frames):
        with named(file):
            stored = pixel_array(dcmread(file)).reshape(-1, header.height, header.width, header.channels)
            for index, plane_HWC in enumerate(stored):
                slope, intercept = frames[k := at[file, index]].rescale
                value_HWC = plane_HWC if (slope, intercept) == (1, 0) else plane_HWC * slope + intercept
                out[:, k] = np.moveaxis(as_delivered(value_HWC, dtype), -1, 0)
    return out


def _frames_of(file: Path, read: Any) -> list[_Frame]:
    """The frames of a file by its header. Raises ValueError for pixels with another reading."""
    if "Rows" not in read or "Columns" not in read or "BitsAllocated" not in read:
        raise ValueError("a DICOM file without pixels")
    if read.get("Modality") == "SEG":
        raise ValueError("a DICOM segmentation object; export it as NIfTI labels")
    shown = read.get("PhotometricInterpretation", "MONOCHROME2")
    if shown not in PHOTOMETRIC:
        raise ValueError(f"stored as {shown}, which programs read in opposite ways; save it as MONOCHROME2 or RGB")
    if "ModalityLUTSequence" in read:
        raise ValueError("rescaled by a table (ModalityLUTSequence); save it with rescaled values")
    count = int(read.get("NumberOfFrames") or 1)
    if count > file.stat().st_size:  # each would take memory before the pixels are missed
        raise ValueError(f"its header names {count} frames, more than the file has bytes; copy or export it again")
    return [_frame(file, read, index, count) for index in range(count)]


def _frame(file: Path, read: Any, index: int, count: int) -> _Frame:
    def group(name: str) -> Any:
        """Where attributes of the frame are: in a functional group (enhanced multi-frame files), else in the file."""
        own, shared = (read.get(f"{whose}FunctionalGroupsSequence") for whose in ("PerFrame", "Shared"))
        groups = (own[index] if own else {}, shared[0] if shared else {})
        return next((found[0] for of in groups if (found := of.get(name))), read)

    measures, scaled = group("PixelMeasuresSequence"), group("PixelValueTransformationSequence")
    turned = group("PlaneOrientationSequence").get("ImageOrientationPatient")
    plane = group("PlanePositionSequence")
    # The one position of a file without groups is that of no frame in particular.
    position = plane.get("ImagePositionPatient") if count == 1 or plane is not read else None
    place = np.array([*position, *turned], dtype=float).reshape(3, 3) if position and turned else None
    alike = {
        "SeriesInstanceUID": read.get("SeriesInstanceUID"),
        "size": (int(read.Rows), int(read.Columns), int(read.get("SamplesPerPixel", 1))),
        "type": (int(read.BitsAllocated), int(read.get("PixelRepresentation", 0)), int(read.get("BitsStored", 16))),
        "orientation": tuple(round(float(x), 3) for x in turned or ()),
        "pixel spacing": tuple(round(float(x), 6) for x in measures.get("PixelSpacing") or ()),
    }
    rescale = float(scaled.get("RescaleSlope", 1)), float(scaled.get("RescaleIntercept", 0))
    number = index if count > 1 else read.get("InstanceNumber")
    return _Frame(file, index, rescale, place, number, measures.get("SliceThickness"), alike)


def _in_order(frames: list[_Frame]) -> tuple[list[_Frame], np.ndarray | None]:
    """The frames along the normal of their planes, and the step (3) from one to the next in mm, None if unknown or
    uneven; those without a position by their number. Raises ValueError if the order is unknown."""
    places = [frame.place_33 for frame in frames if frame.place_33 is not None]
    if len(places) < len(frames):
        numbers = [frame.number for frame in frames]
        if len(frames) > 1 and (None in numbers or len(set(numbers)) < len(numbers)):
            raise ValueError("the order of the slices is unknown: no ImagePositionPatient, no InstanceNumber of each")
        return sorted(frames, key=lambda frame: int(frame.number or 0)), None
    normal_3 = np.cross(places[0][1], places[0][2])
    at = np.array([place[0] @ normal_3 for place in places])
    order = np.argsort(at)
    steps = np.diff(at[order])
    if not steps.size:
        return frames, None
    if steps.min() < 1e-3:
        k = int(steps.argmin())
        names = " and ".join(sorted(frames[order[n]].file.name for n in (k, k + 1)))
        raise ValueError(f"two slices at one position ({names}): several time points or echoes? Keep one of each")
    even = np.ptp(steps) <= EVEN * steps.max() + 1e-2
    step_3 = (places[order[-1]][0] - places[order[0]][0]) / len(steps)
    return [frames[n] for n in order], step_3 if even else None


def _dtype(stored: tuple[int, int, int], rescales: set[tuple[float, float]]) -> str | None:
    """The integer type that holds every rescaled value that the header allows, None: only float32 does."""
    bits, signed, used = stored
    if rescales == {(1.0, 0.0)}:
        return UNSCALED.get((bits, signed))
    ends = (-(2 ** (used - 1)), 2 ** (used - 1) - 1) if signed else (0, 2**used - 1)
    values = [end * slope + intercept for slope, intercept in rescales for end in ends]
    whole = all(slope.is_integer() and intercept.is_integer() for slope, intercept in rescales)
    return "int16" if whole and min(values) >= -(2**15) and max(values) < 2**15 else None


def _spacing(frames: list[_Frame], step_3: np.ndarray | None) -> tuple[float, float, float] | None:
    pixel, thickness = frames[0].alike["pixel spacing"], frames[0].thickness
    if len(frames) > 1:
        thickness = None if step_3 is None else float(np.linalg.norm(step_3))
    return (float(thickness), *pixel) if thickness and pixel else None


def _affine(first: _Frame, step_3: np.ndarray | None) -> np.ndarray | None:
    """Voxel (i, j, k) -> mm to the right, front and head (DICOM counts to the left and the back)."""
    pixel, place_33 = first.alike["pixel spacing"], first.place_33
    if place_33 is None or not pixel:
        return None
    position_3, along_3, down_3 = place_33
    through_3 = np.cross(along_3, down_3) if step_3 is None else step_3
    affine_44 = np.eye(4)
    affine_44[:3] = np.column_stack((along_3 * pixel[1], down_3 * pixel[0], through_3, position_3))
    return LPS_TO_RAS @ affine_44
