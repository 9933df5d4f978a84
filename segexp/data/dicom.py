"""DICOM: a file, or a folder that holds one series, as a volume.

Stored values are rescaled (RescaleSlope, RescaleIntercept); windows and overlays are for display and not applied.
Attributes are those of the standard, part 3: https://dicom.nema.org/medical/dicom/current/output/html/part03.html
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from segexp.data.file_set import files_of
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
    """One plane of pixels. place: position (3) and the directions along a row and down a column (3 each), in mm.

    alike: what all planes of a volume have in common: series, rows, columns, samples, type, directions, pixel size.
    """

    file: Path
    index: int
    rescale: tuple[float, float]
    place: np.ndarray | None
    number: int | None
    thickness: float | None
    series: str
    alike: dict[str, Any]


def open_dicom(path: Path) -> Volume:
    """The frames of a file or of a folder's files, ordered along the normal of their planes. Raises ValueError."""
    try:
        import pydicom
    except ImportError:
        raise UsageError(f"{path} needs pydicom: pip install 'segexp[dicom]'") from None

    files = [file for file in files_of(path) if file.name != "DICOMDIR" and (file == path or _is_dicom(file))]
    frames: list[_Frame] = []
    for file in files:
        with named(file):
            frames += _frames_of(file, pydicom.dcmread(file, stop_before_pixels=True))
    if not frames:
        raise ValueError("no DICOM files in this folder")
    series = sorted({frame.series for frame in frames})
    if len(series) > 1:
        counts = ", ".join(f"{uid}: {sum(frame.series == uid for frame in frames)}" for uid in series[:3])
        raise ValueError(f"{len(series)} series in one folder ({counts} slices ...); put each into its own folder")
    _check_alike(frames)
    frames, step_3 = _in_order(frames)
    alike = frames[0].alike
    kept = _kept(alike, {frame.rescale for frame in frames})
    header, affine_44 = _header(path, frames, step_3, len(files))

    def decode() -> np.ndarray:
        from pydicom.pixels.utils import pixel_array

        at = {(frame.file, frame.index): k for k, frame in enumerate(frames)}
        out = np.empty((header.channels, header.slices, header.height, header.width), kept or np.float32)
        for file in dict.fromkeys(frame.file for frame in frames):
            with named(file):
                stored = pixel_array(file).reshape(-1, header.height, header.width, header.channels)
                for index, plane_HWC in enumerate(stored):
                    slope, intercept = frames[k := at[file, index]].rescale
                    value_HWC = plane_HWC if (slope, intercept) == (1, 0) else plane_HWC * slope + intercept
                    out[:, k] = np.moveaxis(as_delivered(value_HWC, kept), -1, 0)
        return out

    return Volume(header, affine_44, decode)


def _is_dicom(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


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
    frames = []
    for index in range(count):
        spaced = _group(read, index, "PixelMeasuresSequence")
        turned = _group(read, index, "PlaneOrientationSequence").get("ImageOrientationPatient")
        position = _group(read, index, "PlanePositionSequence").get("ImagePositionPatient")
        scaled = _group(read, index, "PixelValueTransformationSequence")
        place = [*position, *turned] if position and turned else None
        alike = {
            "size": (int(read.Rows), int(read.Columns), int(read.get("SamplesPerPixel", 1))),
            "type": (int(read.BitsAllocated), int(read.get("PixelRepresentation", 0)), int(read.get("BitsStored", 16))),
            "orientation": tuple(round(float(x), 3) for x in turned or ()),
            "pixel spacing": tuple(round(float(x), 6) for x in spaced.get("PixelSpacing") or ()),
        }
        frames.append(
            _Frame(
                file,
                index,
                (float(scaled.get("RescaleSlope", 1)), float(scaled.get("RescaleIntercept", 0))),
                None if place is None else np.array(place, dtype=float).reshape(3, 3),
                index if count > 1 else read.get("InstanceNumber"),
                spaced.get("SliceThickness"),
                str(read.get("SeriesInstanceUID", "")),
                alike,
            )
        )
    return frames


def _group(read: Any, index: int, name: str) -> Any:
    """Where the attributes of a frame are: in a functional group (enhanced multi-frame files), else in the file."""
    own = read.get("PerFrameFunctionalGroupsSequence")
    shared = read.get("SharedFunctionalGroupsSequence")
    for group in (own[index] if own else None, shared[0] if shared else None):
        if group is not None and group.get(name):
            return group[name][0]
    return read


def _check_alike(frames: list[_Frame]) -> None:
    first = frames[0]
    for frame in frames[1:]:
        for what, value in first.alike.items():
            if frame.alike[what] != value:
                raise ValueError(
                    f"{frame.file.name} and {first.file.name} differ in {what} ({frame.alike[what]}, {value}); put "
                    "them into folders of their own"
                )


def _in_order(frames: list[_Frame]) -> tuple[list[_Frame], np.ndarray | None]:
    """The frames along the normal of their planes, and the step (3) from one to the next in mm, None if unknown or
    uneven; those without a position by their number. Raises ValueError if the order is unknown."""
    if len(frames) == 1:
        return frames, None
    places = [frame.place for frame in frames if frame.place is not None]
    if len(places) < len(frames):
        numbers = [frame.number for frame in frames]
        if None in numbers or len(set(numbers)) < len(numbers):
            raise ValueError("the order of the slices is unknown: no ImagePositionPatient, no InstanceNumber of each")
        return sorted(frames, key=lambda frame: int(frame.number or 0)), None
    normal_3 = np.cross(places[0][1], places[0][2])
    at = [float(place[0] @ normal_3) for place in places]
    order = np.argsort(at)
    steps = np.diff(np.array(at)[order])
    if steps.min() < 1e-3:
        k = int(steps.argmin())
        names = " and ".join(sorted(frames[order[n]].file.name for n in (k, k + 1)))
        raise ValueError(f"two slices at one position ({names}): several time points or echoes? Keep one of each")
    even = np.ptp(steps) <= EVEN * steps.max() + 1e-2
    between_3 = (places[order[-1]][0] - places[order[0]][0]) / (len(frames) - 1)
    return [frames[n] for n in order], between_3 if even else None


def _kept(alike: dict[str, Any], rescales: set[tuple[float, float]]) -> str | None:
    """The integer type that holds every rescaled value that the header allows, None: only float32 does."""
    bits, signed, stored = alike["type"]
    if rescales == {(1.0, 0.0)}:
        return UNSCALED.get((bits, signed))
    if not all(slope.is_integer() and intercept.is_integer() for slope, intercept in rescales):
        return None
    ends = (-(2 ** (stored - 1)), 2 ** (stored - 1) - 1) if signed else (0, 2**stored - 1)
    values = [end * slope + intercept for slope, intercept in rescales for end in ends]
    return "int16" if min(values) >= -(2**15) and max(values) < 2**15 else None


def _header(
    path: Path, frames: list[_Frame], step_3: np.ndarray | None, files: int
) -> tuple[Header, np.ndarray | None]:
    alike, place = frames[0].alike, frames[0].place
    height, width, channels = alike["size"]
    down, across = alike["pixel spacing"] or (None, None)
    thickness = frames[0].thickness if len(frames) == 1 else None if step_3 is None else float(np.linalg.norm(step_3))
    spacing = (float(thickness), down, across) if thickness and down and across else None
    affine_44 = None
    if place is not None and down and across:
        normal_3 = np.cross(place[1], place[2])
        affine_44 = np.eye(4)
        affine_44[:3] = np.column_stack((
            place[1] * across, place[2] * down, normal_3 if step_3 is None else step_3, place[0],
        ))  # fmt: skip
        affine_44 = LPS_TO_RAS @ affine_44
    slopes = {frame.rescale for frame in frames}
    kind = f"DICOM, {alike['type'][2]} bit" + ("" if slopes == {(1.0, 0.0)} else ", rescaled")
    kind += "" if affine_44 is None else f", axes {axes_of(affine_44)}"
    kind += ", uneven distances" if len(frames) > 1 and place is not None and step_3 is None else ""
    others = len(files_of(path)) - files
    kind += f", {others} other files in the folder not read" if others else ""
    return Header(kind, height, width, channels, len(frames), spacing), affine_44
