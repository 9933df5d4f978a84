"""Data sets that are NumPy arrays: files of all images and all masks, and the archives of MedSegBench."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from segexp.data.file_set import FilesConfig, coding_of, folder_at, root_of
from segexp.data.image_set import SPLITS, ImageSet, Pair, adapter
from segexp.data.lists import alike
from segexp.errors import UsageError, first_line, printable
from segexp.records.user_tables import PARTS, some
from segexp.registry import REQUIRED

if TYPE_CHECKING:
    import numpy as np

_NAMES = """kvasir isic2018 drive chasedb1 dca1 chuac wbc idrib cellnuclei pandental bbbc010 dynamicnuclear nuset nuclei
    tnbcnuclei monusac deepbacs brifiseg busi covid19radio covidquex cystoidfluid isic2016 polypgen promise12 robotool
    uwaterlooskincancer ultrasoundnerve usforkidney yeaz bkai-igh m2caiseg abdomenus fhpsaop mosmedplus"""
SETS = tuple(_NAMES.split())
"""The sets of MedSegBench, as its archives are called."""

CLASSES = {
    "wbc": "background, cytoplasm, nucleus",
    "monusac": "background, epithelial, lymphocyte, macrophage, neutrophil, ambiguous",
    "bkai-igh": "background, neoplastic polyp, non-neoplastic polyp",
    "m2caiseg": "unknown, grasper, bipolar, hook, scissors, clipper, irrigator, specimen bag, trocars, clip, liver, "
    "gallbladder, fat, organ, artery, intestine, bile, blood, black",
    "abdomenus": "background, liver, kidney, pancreas, vessels, adrenals, gallbladder, bones, spleen",
    "fhpsaop": "background, pubic symphysis, fetal head",
}
"""Classes of the sets of MedSegBench that have several; the others have foreground where a label is not 0."""

RECORDS = dict.fromkeys(("wbc", "yeaz"), 13359660)
"""Records on Zenodo of the archives that are not in the first one."""


ARCHIVE = re.compile(r"(.+\.npz)(?:/(.*))?")
"""FILE.npz/KEY, an array of an archive."""


@dataclass
class ArrayConfig(FilesConfig):
    """Options of a data set of arrays; values and explanations are in configs/dataset/array.yaml."""

    images: str = REQUIRED
    masks: str = REQUIRED
    ids: str | None = REQUIRED
    groups: str | None = REQUIRED
    split: str | None = REQUIRED

    @property
    def names_groups(self) -> str:
        return "dataset.groups"


@dataclass
class MedSegBenchConfig(FilesConfig):
    """Options of a set of MedSegBench; values and explanations are in configs/dataset/medsegbench.yaml."""

    set: Annotated[str, SETS] = REQUIRED
    size: Annotated[int, (128, 256, 512)] = REQUIRED
    file: str | None = REQUIRED
    category: str | None = REQUIRED


@dataclass(frozen=True)
class Stack:
    """All images and masks of a part: images_NHWC (or N, H, W) and masks_NHW, as stored, of these files."""

    images: "np.ndarray"
    masks: "np.ndarray"
    files: tuple[Path, ...]


@adapter("array", ArrayConfig)
def open_array(config: ArrayConfig) -> ImageSet:
    """Arrays of all images and all masks, .npy or .npz: (N, H, W) or (N, H, W, C).

    image_HWC: 1 to 32 channels, as `Pair` has them. A .npy file is read from disk as needed. Raises UsageError for
    files that are not there or hold objects, and for shapes that do not agree.
    """
    root = _root(config)
    (images, of_images), (masks, of_masks) = (_load(root, getattr(config, o), o) for o in ("images", "masks"))
    stack = _checked(config, Stack(images, masks, tuple(dict.fromkeys((of_images, of_masks)))), "dataset.images")
    number = len(stack.images)
    known = {option: _words(root, getattr(config, option), option, number) for option in ("ids", "groups", "split")}
    ids = known["ids"] or [f"{n:0{len(str(number - 1))}d}" for n in range(number)]
    parts = [PARTS.get(word.lower(), "") for word in known["split"]]
    if not all(parts):
        wrong = next(word for word in known["split"] if word.lower() not in PARTS)
        raise UsageError(f"dataset.split={config.split} holds '{wrong}'; write train, val or test for each image")
    twice = sorted({name for name in ids if ids.count(name) > 1}) if len(set(ids)) < number else []
    if twice:
        raise UsageError(f"dataset.ids={config.ids} holds {some(twice)} more than once; each image needs its own id")
    named = filter(None, (config.images, config.masks, config.ids, config.groups, config.split))
    rows = [(name, stack, n) for n, name in enumerate(ids)]
    return _image_set(config, root, rows, known["groups"], parts, _further(root, named))


def _complete(config: MedSegBenchConfig) -> MedSegBenchConfig:
    """The classes of the set."""
    name = config.set
    label = f"medsegbench_{name}" if config.name == "medsegbench" else config.name
    if name not in CLASSES:
        binary = replace(config, mask_coding="binary", mask_threshold=0, class_names=["background", "foreground"])
        return replace(binary, num_classes=2, name=label)
    names = CLASSES[name].split(", ")
    return replace(config, mask_coding="index", class_names=names, num_classes=len(names), name=label)


@adapter("medsegbench", MedSegBenchConfig, complete=_complete)
def open_medsegbench(config: MedSegBenchConfig) -> ImageSet:
    """A set of MedSegBench (35 sets of medical images in one size, doi:10.1038/s41597-024-04159-2).

    Images are called train_0000, ...; the split is the official one. Raises UsageError.
    """
    root = _root(config)
    name = f"{config.set}_{config.size}.npz"
    path = folder_at(root, config.file or name, "file")
    if not path.is_file():
        url = f"https://zenodo.org/records/{RECORDS.get(config.set, 13358372)}/files/{name}"
        raise UsageError(
            f"no file {path}; get {url} (see {config.url}) and put it into dataset.root, or set dataset.file"
        )
    rows: list[tuple[str, Stack, int]] = []
    named: list[str] = []
    for part in SPLITS:
        suffix = f"_{config.category}" if config.category else ""
        keys = [f"{part}_images{suffix}", f"{part}_label{suffix}"]
        if config.set == "idrib":  # one image, a label for each category
            keys[0] = f"{part}_images"
        named += [f"{path.name}/{key}" for key in keys]
        (images, _), (masks, _) = (_load(path.parent, name, "category") for name in named[-2:])
        stack = _checked(config, Stack(images, masks, (path,)), f"{path}: {keys[0]}")
        rows += [(f"{part}_{n:05d}", stack, n) for n in range(len(images))]
    parts = [name.partition("_")[0] for name, *_ in rows]
    return _image_set(config, root, rows, [], parts, _further(path.parent, named))


def _root(config: FilesConfig) -> Path:
    """`root_of`. Raises UsageError also for options that say how image files are read."""
    for option in ("orientation", "pages"):
        if (given := getattr(config, option)) != "refuse":
            raise UsageError(f"dataset.{option}={given} has no effect on arrays, which have no {option}; unset it")
    return root_of(config)


def _load(root: Path, given: str, option: str) -> tuple["np.ndarray", Path]:
    """The array that ``FILE.npy`` or ``FILE.npz/KEY`` means, and its file. Raises UsageError."""
    import zipfile
    import zlib

    import numpy as np

    from segexp.data.rasters import load_array

    file, key = (match[1], match[2]) if (match := ARCHIVE.fullmatch(given)) else (given, None)
    path = folder_at(root, file, option)
    if not path.is_file():
        raise UsageError(f"dataset.{option}={given}: no file {path}; write FILE.npy or FILE.npz/KEY")
    try:
        loaded = load_array(path, mapped=match is None)
        if not isinstance(loaded, np.lib.npyio.NpzFile):
            return loaded, path
        with loaded:
            if key not in loaded.files:
                named = f"no array '{key}' in" if key else "name one of the arrays of"
                raise UsageError(f"dataset.{option}={given}: {named} {path}, which holds {', '.join(loaded.files)}")
            array = loaded[key]
            if not isinstance(array, np.ndarray):
                raise ValueError(f"'{key}' is no array")
            return array, path
    except (OSError, ValueError, EOFError, MemoryError, zlib.error, zipfile.BadZipFile) as error:
        wrong = "objects, which only run as code" if "allow_pickle" in str(error) else first_line(error)
        raise UsageError(f"{path} cannot be read ({wrong}); save arrays of numbers with numpy.save or savez") from None


def _further(root: Path, named: Iterable[str]) -> dict[str, str]:
    """Arrays of the archives in ``named`` that are not named -> why they are not used."""
    import zipfile

    used: dict[Path, set[str]] = {}
    for match in filter(None, map(ARCHIVE.fullmatch, named)):
        used.setdefault(folder_at(root, match[1], "images"), set()).add(match[2])
    found = {path: [name.removesuffix(".npy") for name in zipfile.ZipFile(path).namelist()] for path in used}
    return {f"{path.name}/{key}": "not named" for path, keys in found.items() for key in keys if key not in used[path]}


def _checked(config: FilesConfig, stack: Stack, where: str) -> Stack:
    """The stack with masks (N, H, W) or (N, H, W, 3). Raises UsageError if shapes do not agree."""
    from segexp.data.rasters import MAX_CHANNELS

    images, masks = stack.images, stack.masks
    if masks.ndim == 4 and masks.shape[-1] == 1:
        masks = masks[..., 0]
    if images.ndim not in (3, 4) or (images.ndim == 4 and not 1 <= images.shape[-1] <= MAX_CHANNELS):
        first = images.ndim == 4 and images.shape[1] <= MAX_CHANNELS
        cure = "move the channels to the end (numpy.moveaxis(images, 1, -1))" if first else "save (N, H, W[, C])"
        raise UsageError(f"{where}: images of shape {images.shape}; {cure}, with at most {MAX_CHANNELS} channels")
    if masks.ndim not in (3, 4) or masks.shape[3:] not in ((), (3,)) or masks.shape[:3] != images.shape[:3]:
        raise UsageError(
            f"{where}: shape {images.shape}, masks {masks.shape}; masks must be (N, H, W) of the same size"
        )
    if not images.size:
        raise UsageError(f"{where}: images of shape {images.shape} hold no pixels; save images")
    if images.shape[1] * images.shape[2] > config.max_pixels:
        raise UsageError(f"{where}: {images.shape[1:3]} pixels are more than dataset.max_pixels={config.max_pixels}")
    return replace(stack, masks=masks)


def _words(root: Path, given: str | None, option: str, number: int) -> list[str]:
    """An array of words or whole numbers, one for each image, as text; [] where there is none. Raises UsageError."""
    if given is None:
        return []
    array, _ = _load(root, given, option)
    if array.shape != (number,) or array.dtype.kind not in "USiu":
        raise UsageError(
            f"dataset.{option}={given}: {array.dtype} of shape {array.shape}; save text or whole numbers, one for "
            f"each of the {number} images"
        )
    return [word.decode() if isinstance(word, bytes) else str(word) for word in array.tolist()]


def _image_set(
    config: FilesConfig,
    root: Path,
    rows: Sequence[tuple[str, Stack, int]],
    groups: Sequence[str],
    parts: Sequence[str],
    unused: Mapping[str, str],
) -> ImageSet:
    """The image set of rows (image id, stack, position), with a group and a part for each row or for none."""
    from segexp.data.pixels import pair_of

    coding = coding_of(config)
    order = sorted(range(len(rows)), key=lambda n: rows[n][0])
    channels = config.channels or max(stack.images.shape[3:] or (1,) for _, stack, _ in rows)[0]

    def read(index: int) -> Pair:
        name, stack, n = rows[order[index]]
        return pair_of(f"{name} of {stack.files[0]}", stack.images[n], stack.masks[n], channels, coding)

    def file_bytes(index: int) -> tuple[bytes, ...]:
        _, stack, n = rows[order[index]]
        arrays = (stack.images[n], stack.masks[n])
        return tuple(part for a in arrays for part in (f"{a.dtype.str}{a.shape}".encode(), a.tobytes()))

    return ImageSet(
        image_ids=tuple(rows[n][0] for n in order),
        group_ids=tuple(groups[n] for n in order) if groups else ("",) * len(rows),
        channels=channels,
        num_classes=config.num_classes,
        read=read,
        file_bytes=file_bytes,
        declared_split={rows[n][0]: parts[n] for n in order} if parts else None,
        location=str(root),
        notes=tuple(alike(groups)),
        files=lambda index: rows[order[index]][1].files,
        unused={printable(name): why for name, why in unused.items()},
        overlapping=config.overlapping,
    )
