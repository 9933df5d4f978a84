"""What an adapter returns (`ImageSet`), the registry of adapters, and the check of every pair before training."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from segexp.errors import DataChangedError, UsageError
from segexp.losses import MAX_CLASSES
from segexp.registry import NOT_NEGATIVE, REQUIRED, Range, Registry, Since

if TYPE_CHECKING:
    import numpy as np

SPLITS = ("train", "val", "test")

AS_SERIES = "dataset=pattern 'dataset.images=\"images/{id}\"', which reads a folder of DICOM files as one volume"


@dataclass
class DatasetConfig:
    """Options of every data set; an adapter's dataclass inherits them and adds its own.

    This declares the types; values and explanations are in configs/dataset/*.yaml. num_classes may be 0 where the
    adapter completes the options from the data's own description (`Adapter.complete`).

    licence, citation, url: of the data set, for records and pages.
    """

    adapter: str = REQUIRED
    name: str | None = REQUIRED
    num_classes: Annotated[int, Range(2, MAX_CLASSES)] = REQUIRED
    image_size: Annotated[int | None, Range(8, 65536)] = REQUIRED
    fit: Annotated[str, ("resize", "pad")] = REQUIRED
    surface_tolerance: Annotated[float, NOT_NEGATIVE] = REQUIRED
    spacing: list[float] | None = REQUIRED
    limit: Annotated[float | None, Since(None)] = None
    class_names: Annotated[list[str] | None, Since(None)] = None
    background: Annotated[str, ("0", "none"), Since("0")] = "0"
    class_colors: Annotated[list[str] | None, Since(None)] = None
    channel_names: Annotated[list[str] | None, Since(None)] = None
    normalise: Annotated[str, Since("train")] = "train"
    licence: Annotated[str | None, Since(None)] = None
    citation: Annotated[str | None, Since(None)] = None
    url: Annotated[str | None, Since(None)] = None

    @property
    def first_class(self) -> int:
        """The first class that is scored: 1, or 0 where class 0 is no background."""
        return 0 if self.background == "none" else 1

    @property
    def names_groups(self) -> str:
        """The option that names the patient of each image, for messages."""
        return "dataset.group_file"

    @property
    def overlapping(self) -> bool:
        """Whether a pixel may be of several classes, see `Pair`."""
        return False


@dataclass
class AugmentConfig:
    """Probabilities in [0, 1]; lengths relative to the image side; intensities in standard deviations of the training
    images, so that they are independent of the images' bit depth."""

    name: str = REQUIRED
    flip_horizontal: Annotated[float, Range(0, 1)] = REQUIRED
    flip_vertical: Annotated[float, Range(0, 1)] = REQUIRED
    rotate_degrees: Annotated[float, Range(0, 180)] = REQUIRED
    translate: Annotated[float, Range(0, 1)] = REQUIRED
    scale: Annotated[float, Range(0, 0.9)] = REQUIRED
    brightness: Annotated[float, Range(0, 10)] = REQUIRED
    contrast: Annotated[float, Range(0, 1)] = REQUIRED
    noise: Annotated[float, Range(0, 10)] = REQUIRED
    elastic: Annotated[float, Range(0, 1)] = REQUIRED


@dataclass(frozen=True)
class Source:
    """What a file holds, as it is stored. kind: as "PNG, RGB, 8 bit". orientation: the EXIF or TIFF tag, 1 is upright.

    values: of a mask, stored value (or "#rrggbb") -> number of pixels; at most 300 values. colours: of a mask whose
    palette is read as class numbers, stored value -> "#rrggbb".
    """

    kind: str
    orientation: int = 1
    values: Mapping[str, int] = field(default_factory=dict)
    colours: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Header:
    """What the header of an image file says, before its pixels are decoded.

    slices: 1 for a plain image. channels: of each slice. spacing: (slice thickness, pixel height, pixel width), in mm.
    series: what DICOM says of the series that a file belongs to, else "".
    """

    kind: str
    height: int
    width: int
    channels: int = 1
    slices: int = 1
    spacing: tuple[float, float, float] | None = None
    series: str = ""


@dataclass(frozen=True)
class Pair:
    """One image and its reference mask at native resolution.

    image_HWC: uint8, uint16, int16 or float32, 1 to 32 channels. mask_HW: uint8, class index 0..C-1 or
    `segexp.losses.IGNORE`. If classes may overlap (`DatasetConfig.overlapping`), bit c - 1 is set where class c is.
    images, masks: the files that it was read from. dtypes: of channels that are files of several types, as
    "uint8+uint16" (image_HWC is then float32), else "".
    """

    image_HWC: "np.ndarray"
    mask_HW: "np.ndarray"
    images: tuple[Source, ...] = ()
    masks: tuple[Source, ...] = ()
    dtypes: str = ""


@dataclass(frozen=True)
class ImageSet:
    """A data set before it is split: names, groups and a way to read pair i.

    image_ids: unique and sorted, so that the order is the same on every machine. group_ids: patient, volume or video of
    each image ("" = unknown). read(i): decodes pair i; raises `ImageError` if it cannot be used. file_bytes(i): the
    bytes of pair i that enter the fingerprint. declared_split: image id -> "train", "val" or "test" if the data set has
    split files, else None. location, name: for messages. notes: lines to show. files(i): the files of pair i, so that
    a change is noticed. content: stands for all that is read, where there are no files or `checked` has read them.

    case_ids: the volume that each image is a slice of, the slices of a volume in their order; () without volumes.
    spacings: (slice thickness, pixel height, pixel width) of each image, e.g. in mm, None where unknown; () if all are.
    A thickness of 0 is unknown.
    series_ids: the DICOM series of each image that is a file of its own, "" where there is none; () if all are.
    unused: files found and not used -> the reason. overlapping: see `DatasetConfig`.
    """

    image_ids: tuple[str, ...]
    group_ids: tuple[str, ...]
    channels: int
    num_classes: int
    read: Callable[[int], Pair] = field(repr=False)
    file_bytes: Callable[[int], Iterable[bytes]] = field(repr=False)
    declared_split: Mapping[str, str] | None = None
    location: str = ""
    notes: tuple[str, ...] = ()
    files: Callable[[int], tuple[Path, ...]] = field(default=lambda index: (), repr=False)
    content: str = ""
    case_ids: tuple[str, ...] = ()
    spacings: tuple[tuple[float, float, float] | None, ...] = ()
    series_ids: tuple[str, ...] = ()
    unused: Mapping[str, str] = field(default_factory=dict, repr=False)
    name: str = ""
    overlapping: bool = False

    def subset(self, kept: Sequence[int]) -> "ImageSet":
        """The images with these indices, in this order."""
        ids, declared = tuple(self.image_ids[i] for i in kept), self.declared_split
        return dataclasses.replace(
            self,
            image_ids=ids,
            group_ids=tuple(self.group_ids[i] for i in kept),
            read=lambda i: self.read(kept[i]),
            file_bytes=lambda i: self.file_bytes(kept[i]),
            files=lambda i: self.files(kept[i]),
            declared_split=None if declared is None else {i: declared[i] for i in ids},
            case_ids=tuple(self.case_ids[i] for i in kept) if self.case_ids else (),
            spacings=tuple(self.spacings[i] for i in kept) if self.spacings else (),
            series_ids=tuple(self.series_ids[i] for i in kept) if self.series_ids else (),
        )


class ImageError(Exception):
    """One image or mask cannot be used; the message names the file and the reason."""


class PairsError(UsageError):
    """Some pairs of a set cannot be used. problems: image id (or file, line) -> why; usable: the set of the others."""

    problems: Mapping[str, str] = {}
    usable: ImageSet | None = None

    @classmethod
    def about(cls, message: str, problems: Mapping[str, str]) -> "PairsError":
        error = cls(message)
        error.problems = problems
        return error


@dataclass(frozen=True)
class Adapter:
    """A way of reading data sets: ``open`` takes an instance of the ``config`` dataclass.

    complete: options as the user gave them -> the same with what the data's own description says, as the number and the
    names of classes; called where ``num_classes`` is 0, before the configuration is checked. Both raise UsageError.
    preset: an instance of ``config`` with the values of ``dataset=NAME``, where no file in configs/dataset holds them.
    """

    name: str
    config: type
    open: Callable[[Any], ImageSet]
    summary: str
    complete: Callable[[Any], Any] | None = None
    preset: DatasetConfig | None = None


ADAPTERS: Registry[Adapter] = Registry("dataset")


def adapter(
    name: str, config: type, complete: Callable[[Any], Any] | None = None
) -> Callable[[Callable[[Any], ImageSet]], Callable[[Any], ImageSet]]:
    """Decorator: register the function that opens a data set. config: its options; its docstring's first line is shown
    by `segexp list datasets`."""
    return ADAPTERS.decorator(lambda f: Adapter(name, config, f, (f.__doc__ or "").strip().splitlines()[0], complete))


def pair_digest(image_set: ImageSet, index: int) -> bytes:
    """SHA-256 over the bytes of pair i."""
    one = hashlib.sha256()
    for chunk in image_set.file_bytes(index):
        one.update(chunk)
    return one.digest()


def fingerprint(image_set: ImageSet, digests: Sequence[bytes] | None = None) -> str:
    """SHA-256 (hex) over the names and bytes of every pair, by name. digests: `pair_digest` of all."""
    total = hashlib.sha256()
    for index, image_id in enumerate(image_set.image_ids):
        digest = pair_digest(image_set, index) if digests is None else digests[index]
        total.update(image_id.encode() + b"\0" + digest)
    return total.hexdigest()


def state_of(path: Path) -> tuple[int, ...]:
    """Size, times and inode of a file, which differ after a change. Raises OSError."""
    state = path.stat()
    return (state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino)


Stamp = dict[Path, tuple[int, ...]]
"""Each file of a pair -> its `state_of`; () if it is gone."""


def stamp(image_set: ImageSet, index: int) -> Stamp:
    """The present state of the files of pair i, without reading them; empty if there are none."""
    found: Stamp = {}
    for path in image_set.files(index):
        try:
            found[path] = state_of(path)
        except OSError:
            found[path] = ()
    return found


def watched(image_set: ImageSet, stamps: list[Stamp], digests: Sequence[bytes]) -> ImageSet:
    """The set, whose ``read`` raises `DataChangedError` where a pair no longer has the bytes of ``digests``.

    Files are hashed again only where their size, times or inode differ from ``stamps``.
    """

    def check(index: int) -> None:
        now = stamp(image_set, index)
        if now == stamps[index]:
            return
        changed = [path for path in now if now[path] != stamps[index].get(path)]
        if not all(now.values()) or pair_digest(image_set, index) != digests[index]:
            raise DataChangedError(
                f"{' and '.join(map(str, changed))} changed after the run read it: restore the file and repeat the "
                "command to continue the run, or repeat it with the new data, which makes another run"
            )
        stamps[index] = now

    def read(index: int) -> Pair:
        try:
            return image_set.read(index)
        finally:
            check(index)

    return dataclasses.replace(image_set, read=read)


def is_text(name: str) -> bool:
    """Whether a file name is UTF-8: other bytes are lone surrogates here, which no table can hold."""
    return not any("\ud800" <= c <= "\udfff" for c in name)
