"""What an adapter returns (`ImageSet`), the registry of adapters, and the check of every pair before training."""

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

from segexp.errors import UsageError
from segexp.losses import IGNORE, MAX_CLASSES
from segexp.registry import NOT_NEGATIVE, REQUIRED, Range, Registry

if TYPE_CHECKING:
    import numpy as np

SPLITS = ("train", "val", "test")


@dataclass
class DatasetConfig:
    """Options of every data set; an adapter's dataclass inherits them and adds its own.

    This declares the types; values and explanations are in configs/dataset/*.yaml.
    """

    adapter: str = REQUIRED
    name: str | None = REQUIRED
    num_classes: Annotated[int, Range(2, MAX_CLASSES)] = REQUIRED
    image_size: Annotated[int | None, Range(8, 65536)] = REQUIRED
    fit: Annotated[str, ("resize", "pad")] = REQUIRED
    surface_tolerance: Annotated[float, NOT_NEGATIVE] = REQUIRED
    spacing: list[float] | None = REQUIRED


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
class Pair:
    """One image and its reference mask at native resolution.

    image_HWC: uint8 or uint16, 1 to 7 channels. mask_HW: uint8, class index 0..C-1 or `segexp.losses.IGNORE`.
    """

    image_HWC: "np.ndarray"
    mask_HW: "np.ndarray"


@dataclass(frozen=True)
class ImageSet:
    """A data set before it is split: names, groups and a way to read pair i.

    image_ids: unique and sorted, so that the order is the same on every machine. group_ids: patient, volume or video of
    each image ("" = unknown). read(i): decodes pair i; raises `ImageError` if it cannot be used. file_bytes(i): the
    bytes of pair i that enter the fingerprint. declared_split: image id -> "train", "val" or "test" if the data set has
    split files, else None. location: for messages. notes: lines to show to the user.
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


class ImageError(Exception):
    """One image or mask cannot be used; the message names the file and the reason."""


@dataclass(frozen=True)
class Adapter:
    """A way of reading data sets: ``open`` takes an instance of the ``config`` dataclass."""

    name: str
    config: type
    open: Callable[[Any], ImageSet]
    summary: str


ADAPTERS: Registry[Adapter] = Registry("dataset")


def adapter(name: str, config: type) -> Callable[[Callable[[Any], ImageSet]], Callable[[Any], ImageSet]]:
    """Decorator: register the function that opens a data set. config: its options; its docstring's first line is shown
    by `segexp list datasets`."""
    return ADAPTERS.decorator(lambda f: Adapter(name, config, f, (f.__doc__ or "").strip().splitlines()[0]))


def fingerprint(image_set: ImageSet) -> str:
    """SHA-256 (hex) over the names and bytes of every pair, in the order of the names."""
    total = hashlib.sha256()
    for index, image_id in enumerate(image_set.image_ids):
        one = hashlib.sha256()
        for chunk in image_set.file_bytes(index):
            one.update(chunk)
        total.update(image_id.encode() + b"\0" + one.digest())
    return total.hexdigest()


SHOWN = 5  # number of problems that a message lists


@dataclass(frozen=True)
class PairFacts:
    """Results of the check, one row per image: sizes (N, 2) as height and width, and pixels per class (N, C).

    image_sha_N: hash of the image's pixels, see `image_sha`.
    """

    sizes_N2: "np.ndarray"
    class_pixels_NC: "np.ndarray"
    image_sha_N: tuple[str, ...]


LONGEST_NAME = 200  # bytes; file systems allow 255, including the suffix that segexp adds


def _problems(problems: list[str], what: str, cure: str) -> UsageError:
    """One error with the number of problems ("<file>: <what>") and the first few; files with equal ones are grouped."""
    alike: dict[str, list[str]] = {}
    for problem in problems[:SHOWN]:
        name, _, fault = problem.partition(": ")
        alike.setdefault(fault, []).append(name)
    shown = "; ".join(", ".join(names) + (f": {fault}" if fault else "") for fault, names in alike.items())
    more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
    return UsageError(f"{len(problems)} {what}: {shown}{more}. {cure}")


def _check_names(image_ids: Sequence[str]) -> None:
    """Image ids must be valid file names: a run writes <image>.png, <image>_reference.png, <image>_class1.png."""
    names = set(image_ids)
    unfit = [i for i in image_ids if i in ("", ".", "..") or len(i.encode()) > LONGEST_NAME or set(i) & set("/\\\0")]
    if unfit:
        cure = f"Rename them: at most {LONGEST_NAME} bytes, no slashes"
        raise _problems([i[:60] for i in unfit], f"of {len(names)} image names cannot be file names", cure)
    matches = ((i, re.fullmatch(r"(.+)_(?:reference|class\d+)", i)) for i in image_ids)
    ambiguous = [i for i, match in matches if match and match[1] in names]
    if ambiguous:
        what = f"of {len(names)} images have the name of an output file of another image"
        raise _problems(ambiguous, what, "Rename them")


def check_pairs(image_set: ImageSet, threads: int = 2) -> PairFacts:
    """Read every pair of the set. Raises UsageError with the first problems, their number and what to do."""
    import numpy as np
    from tqdm import tqdm

    if not image_set.image_ids:
        raise UsageError(f"the data set is empty: no images in {image_set.location}")
    _check_names(image_set.image_ids)

    def inspect(index: int) -> tuple[tuple[int, int], "np.ndarray", str] | str:
        try:
            pair = image_set.read(index)
        except ImageError as error:
            return str(error)
        if pair.image_HWC.shape[:2] != pair.mask_HW.shape:
            return f"{image_set.image_ids[index]}: image {pair.image_HWC.shape[:2]}, mask {pair.mask_HW.shape}"
        if pair.image_HWC.shape[2] != image_set.channels:
            return f"{image_set.image_ids[index]}: {pair.image_HWC.shape[2]} channels, expected {image_set.channels}"
        pixels = np.bincount(pair.mask_HW.reshape(-1), minlength=IGNORE + 1)
        unknown = np.flatnonzero(pixels[image_set.num_classes : IGNORE]) + image_set.num_classes
        if unknown.size:
            return f"{image_set.image_ids[index]}: class {unknown[0]} in mask, num_classes={image_set.num_classes}"
        return pair.mask_HW.shape, pixels[: image_set.num_classes], image_sha(pair.image_HWC)

    rows = range(len(image_set.image_ids))
    with ThreadPoolExecutor(threads) as pool:
        inspected = pool.map(inspect, rows)
        found = list(tqdm(inspected, "checking images", len(rows), leave=False, unit="img", disable=None))
    problems = [f for f in found if isinstance(f, str)]
    if problems:
        or_else = ", or correct dataset.* options" if len(problems) == len(found) else ""
        raise _problems(problems, f"of {len(found)} pairs cannot be used", f"Repair or remove these files{or_else}")
    usable = [f for f in found if not isinstance(f, str)]
    sizes, class_pixels, digests = zip(*usable, strict=True)
    return PairFacts(np.array(sizes), np.stack(class_pixels), digests)


def image_sha(image_HWC: "np.ndarray") -> str:
    """16 hex digits of a hash over shape, type and pixels; "" for an image of a single value, which often repeats."""
    if image_HWC.min() == image_HWC.max():
        return ""
    digest = hashlib.sha256(f"{image_HWC.shape}{image_HWC.dtype}".encode())
    digest.update(image_HWC.tobytes())
    return digest.hexdigest()[:16]


def check_split(image_set: ImageSet, facts: PairFacts, split: dict[str, list[int]]) -> list[str]:
    """Warnings about the split. Raises UsageError if it cannot be used for training or scoring."""
    warnings = []
    for name, indices in split.items():
        pixels_C = facts.class_pixels_NC[indices].sum(axis=0)
        if pixels_C[1:].sum() == 0:
            raise UsageError(
                f"the {name} split ({len(indices)} images of {image_set.location}) has no foreground pixel, so it "
                "cannot be used for training or scoring; change split.seed, split.fractions or the split files"
            )
        absent = [c for c in range(1, image_set.num_classes) if pixels_C[c] == 0]
        if absent:
            warnings.append(f"class {', '.join(map(str, absent))} does not occur in the {name} split")
    trained_on = {facts.image_sha_N[i] for i in split["train"]} - {""}
    for name in ("val", "test"):
        duplicates = [image_set.image_ids[i] for i in split[name] if facts.image_sha_N[i] in trained_on]
        if duplicates:
            warnings.append(
                f"{len(duplicates)} {name} images are pixel-identical to a train image (the first is {duplicates[0]}), "
                "which inflates scores; put duplicates in one group, or remove them"
            )
    if len(split["train"]) < 2:
        raise UsageError(f"the train split has {len(split['train'])} image; at least 2 are needed")
    return warnings
