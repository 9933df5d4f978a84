"""Data sets of image and mask files: the options that their adapters share, and the image set that their files make.

An adapter finds the files and lists them as `Item`s; `image_set_of` makes the rest.
"""

import dataclasses
import functools
import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from segexp.data.image_set import DatasetConfig, Header, ImageError, ImageSet, Pair, PairsError, is_text, state_of
from segexp.data.lists import alike, doubtful_names, groups_in
from segexp.errors import UsageError, printable
from segexp.registry import REQUIRED, Range, Since

if TYPE_CHECKING:
    from segexp.data.codings import MaskCoding

EXTENSIONS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".webp", ".npy", ".nii", ".nii.gz", ".dcm")
"""Endings of the files that are looked at in a folder; what a file is, its content says."""

HIDDEN, FOLDER = "hidden: its name begins with a dot", "a folder, not looked into"

OPTION_OF_CODING = {"mask_threshold": "binary", "mask_values": "values", "mask_colors": "colors"}
OPTION_OF_CODING |= {"ignore_color": "colors"}


@dataclass
class FilesConfig(DatasetConfig):
    """How image and mask files are read. Values and explanations are in configs/dataset/shared/files.yaml.

    Some options only permit what is otherwise refused, as having two readings. regions: mask values of class 1, 2, ...
    as "1,2,3": classes that may overlap.
    """

    root: str = REQUIRED
    channels: Annotated[int | None, Range(1, 32)] = REQUIRED
    mask_coding: str = REQUIRED
    mask_threshold: int | None = REQUIRED
    mask_values: list[int] | None = REQUIRED
    mask_colors: list[str] | None = REQUIRED
    ignore_index: int | None = REQUIRED
    ignore_color: str | None = REQUIRED
    max_pixels: Annotated[int, Range(1, 178_956_970)] = 100_000_000
    mask_antialias: Annotated[bool, Since(False)] = False
    mask_other: Annotated[str, ("refuse", "ignore"), Since("refuse")] = "refuse"
    orientation: Annotated[str, ("refuse", "stored", "upright"), Since("refuse")] = "refuse"
    pages: Annotated[str, ("refuse", "channels", "slices"), Since("refuse")] = "refuse"
    regions: Annotated[list[str] | None, Since(None)] = None
    download: Annotated[bool, Since(False)] = False

    @property
    def overlapping(self) -> bool:
        return bool(self.regions)


@dataclass(frozen=True)
class Item:
    """One image of a data set, and where it is read from.

    images: one file, or one for each channel. masks: one file, or several binary ones whose foreground is united.
    slice: position in the volume ``case`` that the files hold, None for files of one image. spacing: (slice thickness,
    pixel height, pixel width). group, split, case: "" where there is none. series: see `Header`.
    """

    image_id: str
    images: tuple[Path, ...]
    masks: tuple[Path, ...]
    group: str = ""
    split: str = ""
    slice: int | None = None
    case: str = ""
    spacing: tuple[float, float, float] | None = None
    series: str = ""


def in_slices(item: Item, header: Header) -> list[Item]:
    """One item for each slice of the volume that an item's files hold, as NAME_z000 of case NAME; where they hold one
    slice, the item itself, which is no volume. header: of its first file."""
    case, spacing = item.case or item.image_id, item.spacing or header.spacing
    if item.spacing and header.spacing and not item.spacing[0]:
        spacing = (header.spacing[0], *item.spacing[1:])
    if header.slices == 1:
        return [dataclasses.replace(item, spacing=spacing, series=header.series)]
    digits = max(3, len(str(header.slices - 1)))  # sorted by name, the slices are in their order
    return [
        dataclasses.replace(item, image_id=f"{item.image_id}_z{k:0{digits}d}", slice=k, case=case, spacing=spacing)
        for k in range(header.slices)
    ]


def is_volume(path: Path) -> bool:
    """Whether a file is NIfTI or DICOM by its name, or a folder, which may hold a DICOM series."""
    return path.name.lower().endswith((".nii", ".nii.gz", ".dcm")) or path.is_dir()


def files_of(path: Path) -> tuple[Path, ...]:
    """The files behind a path: itself, or those of a folder that holds a DICOM series, but for hidden ones."""
    if not path.is_dir():
        return (path,)
    return tuple(sorted(p for p in path.iterdir() if p.is_file() and not p.name.startswith(".")))


def gone(path: Path) -> str:
    """What is wrong with a link whose target is gone, "" for others."""
    broken = path.is_symlink() and not path.exists()
    return f"a link whose target is gone ({os.readlink(path)})" if broken else ""


def unusable(path: Path, open_ended: bool = True) -> str:
    """Why a file of a folder is not looked at, "" if it is. open_ended: its ending matters.

    Links whose targets are gone are looked at: they are reported as the pairs that they are part of.
    """
    if path.name.startswith("."):
        return HIDDEN
    if path.exists() and not path.is_file():
        return FOLDER if path.is_dir() else "not a file"
    known = not open_ended or path.name.lower().endswith(EXTENSIONS)
    return "" if known else gone(path) or f"not read: ending {path.suffix or 'none'}"


def beside(used: Iterable[Path], folders: Iterable[Path], why: str) -> dict[Path, str]:
    """What else lies in these folders -> why it is not used; ``why``: of files that could be used."""
    kept = {one for path in used for one in (path, *path.parents)}
    found = {path for folder in folders for path in (folder.iterdir() if folder.is_dir() else ())} - kept
    return {path: unusable(path) or why for path in sorted(found)}


def shown(root: Path, path: Path) -> str:
    """The path below ``root``, or absolute."""
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM by its name or, as those often have none, by its first bytes; a DICOMDIR is none."""
    if path.suffix.lower() == ".dcm":
        return True
    with path.open("rb") as file:
        return path.name != "DICOMDIR" and file.read(132)[128:] == b"DICM"


def _parts(item: Item, config: FilesConfig) -> list[Item]:
    """The slices of an item that is not a slice yet, where its files may hold several. Raises UsageError."""
    from segexp.data.pixels import header_of
    from segexp.data.volumes import check_grids

    paths = (*item.images, *item.masks)
    volumes = [path for path in paths if is_volume(path)]
    if item.slice is not None or not (volumes or config.pages == "slices"):
        return [item]
    try:
        headers = [header_of(path, config) for path in paths]
        if volumes:
            check_grids(volumes)
    except ImageError:
        return [item]  # the check that reads every pair reports this file
    for path, header in zip(paths, headers, strict=True):
        if header.slices != headers[0].slices:
            stacks = "dataset.pages=slices reads .npy and TIFF stacks slice by slice"
            cure = stacks if config.pages != "slices" and len(volumes) < len(paths) else "they must be equal"
            raise UsageError(f"{paths[0]} has {headers[0].slices} slices, {path} {header.slices}; {cure}")
    return in_slices(item, headers[0])


def stem_of(path: Path) -> str:
    """The file name without its ending, .nii.gz being one."""
    return path.name[:-7] if path.name.lower().endswith(".nii.gz") else path.stem


def source_of(config: FilesConfig) -> str:
    """The end of an error line: where to get the files of the data set; "" where the options do not say."""
    return f"get the files of {config.name or config.adapter} from {config.url}" if config.url else ""


def root_of(config: FilesConfig) -> Path:
    """The folder of a data set, which need not exist if it can be downloaded. Raises UsageError if there is none."""
    root = Path(config.root).expanduser().resolve()
    get = f"{source}, and set dataset.root to their folder" if (source := source_of(config)) else ""
    offered = getattr(config, "torchvision", "none") != "none"
    if config.download and not offered:
        raise UsageError(f"dataset.download=true: no download for {config.name}; {get or 'set dataset.root'}")
    if not root.is_dir() and not (config.download and offered):
        raise UsageError(
            f"no folder {root}; {get or 'set dataset.root to the folder that holds your images and masks'}"
        )
    if not is_text(str(root)):
        raise UsageError(f"dataset.root={ascii(str(root))[1:-1]} is not UTF-8; rename the folder")
    return root


def below(root: Path, relative: str | Path, option: str) -> Path:
    """The path of ``relative`` below ``root``, symbolic links not resolved: shared storage is often linked. Raises
    UsageError if it leaves ``root``."""
    path = Path(os.path.normpath(root / relative))
    if not path.is_relative_to(root):
        raise UsageError(f"dataset.{option}: {path} is outside {root}; move or link it below dataset.root")
    return path


def folder_at(root: Path, given: str, option: str) -> Path:
    """A folder or file that the user has typed: absolute, or below ``root``. Raises UsageError."""
    path = Path(os.path.expanduser(given))  # leaves the home of an unknown user as it is
    return Path(os.path.normpath(path)) if path.is_absolute() else below(root, given, option)


def groups_of(
    config: Any, root: Path, image_ids: Sequence[str], image_id: Callable[[str], str]
) -> tuple[tuple[str, ...], list[str]]:
    """The group of each image by ``group_file``, "" without one, and notes. image_id: cell of the file -> image id.

    Raises UsageError.
    """
    if config.group_file is None and config.group_column is None:
        return ("",) * len(image_ids), []
    if config.group_file is None or config.group_column is None:
        raise UsageError("dataset.group_file and dataset.group_column are only valid together; set both or neither")
    path = folder_at(root, config.group_file, "group_file")
    if not path.is_file():
        raise UsageError(f"no file {path}; set dataset.group_file to a CSV file (absolute path, or relative to {root})")
    groups = groups_in(path, config.group_key, config.group_column, image_ids, image_id)
    return groups, [*doubtful_names(groups, "groups", path), *alike(groups)]


def coding_of(config: FilesConfig) -> "MaskCoding":
    """The coding of the masks. Raises UsageError for options that contradict each other."""
    from segexp.data.codings import MaskCoding, check_coding, parse_color

    for option, name in OPTION_OF_CODING.items():
        if getattr(config, option) is not None and config.mask_coding != name:
            wrong = f"dataset.{option} has no effect with dataset.mask_coding={config.mask_coding}"
            raise UsageError(f"{wrong}; unset it or set dataset.mask_coding={name}")
    colors = config.mask_coding == "colors"
    if colors and config.ignore_index is not None:
        raise UsageError("dataset.ignore_index has no effect with dataset.mask_coding=colors; use dataset.ignore_color")
    try:
        ignore_color = None if config.ignore_color is None else parse_color(config.ignore_color)
        coding = MaskCoding(
            name=config.mask_coding,
            num_classes=config.num_classes,
            threshold=config.mask_threshold,
            codes=tuple(map(parse_color, config.mask_colors or ()) if colors else config.mask_values or ()),
            ignore=ignore_color if colors else config.ignore_index,
            antialias=config.mask_antialias,
            ignore_other=config.mask_other == "ignore",
            regions=tuple(tuple(map(int, region.split(","))) for region in config.regions or ()),
        )
        check_coding(coding)
    except ValueError as error:
        raise UsageError(f"dataset={config.name}: {error}") from None
    return coding


@functools.lru_cache(maxsize=4096)
def _digest(path: Path, *state: int) -> bytes:
    """Of a file in this state: the slices of a volume share its files."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _file_bytes(item: Item, files: Iterable[Path]) -> Iterable[bytes]:
    """What enters the fingerprint: the content of the files, or their hashes and the position of a slice."""
    for path in files:
        yield path.read_bytes() if item.slice is None else _digest(path, *state_of(path))
    if item.slice is not None:
        yield str(item.slice).encode()


def image_set_of(
    config: FilesConfig,
    root: Path,
    items: Sequence[Item],
    *,
    declared: bool = False,
    notes: Sequence[str] = (),
    unused: Mapping[str, str] | None = None,
    refusals: Sequence[PairsError] = (),
) -> ImageSet:
    """The image set of these files, by image id. Decodes no pixels.

    declared: the items name their part of the split. notes: lines to show. unused: files not used -> reason.
    refusals: about pairs that are not in ``items``; the first is raised, with the problems of all.
    """
    from segexp.data.pixels import channels_of, read_pair

    if refusals:
        error = PairsError.about(str(refusals[0]), {k: v for one in refusals for k, v in one.problems.items()})
        error.usable = image_set_of(config, root, items, declared=declared, notes=notes, unused=unused)
        raise error
    series = {path for item in items for path in (*item.images, *item.masks) if path.is_dir()}
    in_series = [file for folder in series for file in files_of(folder) if is_dicom(file)]
    others = beside(in_series, series, "no DICOM file, in the folder of a series")
    unused = {**(unused or {}), **{shown(root, path): why for path, why in others.items()}}
    items = sorted((part for item in items for part in _parts(item, config)), key=lambda item: item.image_id)
    coding = coding_of(config)
    channels = config.channels or channels_of((item.images for item in items), config)

    def read(index: int) -> Pair:
        return read_pair(items[index], channels, coding, config)

    def files(index: int) -> tuple[Path, ...]:
        return tuple(file for path in (*items[index].images, *items[index].masks) for file in files_of(path))

    cases, spacings = tuple(item.case for item in items), tuple(item.spacing for item in items)
    series_ids = tuple(item.series for item in items)
    return ImageSet(
        image_ids=tuple(item.image_id for item in items),
        group_ids=tuple(item.group or item.case for item in items),  # slices of a volume stay together
        channels=channels,
        num_classes=config.num_classes,
        read=read,
        file_bytes=lambda index: _file_bytes(items[index], files(index)),
        declared_split={item.image_id: item.split for item in items} if declared else None,
        location=str(root),
        notes=tuple(notes),
        files=files,
        case_ids=cases if any(cases) else (),
        spacings=spacings if any(spacings) else (),
        series_ids=series_ids if any(series_ids) else (),
        unused={printable(name): reason for name, reason in unused.items()},
        overlapping=config.overlapping,
    )
