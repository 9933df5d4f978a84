"""Every pair is read once before training: what is wrong is told in one message, what is found is kept."""

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

from segexp.errors import UsageError
from segexp.losses.targets import IGNORE, MAX_CLASSES
from segexp.registry import NOT_NEGATIVE, REQUIRED, Range, Registry

if TYPE_CHECKING:
    import numpy as np


SPLITS = ("train", "val", "test")


@dataclass
class DatasetConfig:
    """Options that every data set has; an adapter's own dataclass inherits them and adds its own.

    Types stand here, values and their explanation in configs/dataset/*.yaml.
    """

    adapter: str = REQUIRED
    name: str | None = REQUIRED
    num_classes: Annotated[int, Range(2, MAX_CLASSES)] = REQUIRED
    image_size: Annotated[int | None, Range(8, 65536)] = REQUIRED
    fit: Annotated[str, ("resize", "pad")] = REQUIRED
    surface_tolerance: Annotated[float, NOT_NEGATIVE] = REQUIRED
    spacing: list[float] | None = REQUIRED


@dataclass(frozen=True)
class Pair:
    """One image and its reference mask at native resolution.

    image_HWC: uint8 or uint16, 1 to 7 channels. mask_HW: uint8, class index 0..C-1 or `segexp.losses.targets.IGNORE`.
    """

    image_HWC: "np.ndarray"
    mask_HW: "np.ndarray"


@dataclass(frozen=True)
class ImageSet:
    """A data set before it is split: names, groups and a way to read pair i.

    image_ids are unique and sorted, so that every machine sees the same order. group_ids names the patient,
    volume or video of each image ("" = none known). declared_split maps image ids to "train", "val" or "test"
    where the data set comes with split files; None where it does not. notes: what the user should be told, a line each.
    ``read(i)`` decodes pair i (raises `PairError` when it cannot be used) and ``file_bytes(i)`` yields what the
    fingerprint hashes for pair i.
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


class PairError(Exception):
    """One image or mask cannot be used; the message names the file and the reason, not the cure."""


@dataclass(frozen=True)
class Adapter:
    """A way of reading data sets: ``open`` takes an instance of the ``config`` dataclass."""

    name: str
    config: type
    open: Callable[[Any], ImageSet]
    summary: str


ADAPTERS: Registry[Adapter] = Registry("dataset")


def adapter(name: str, config: type) -> Callable[[Callable[[Any], ImageSet]], Callable[[Any], ImageSet]]:
    """Decorator: the function opens data sets described by ``config``; its docstring's first line is listed."""

    def put(function: Callable[[Any], ImageSet]) -> Callable[[Any], ImageSet]:
        summary = (function.__doc__ or "").strip().splitlines()[0]
        ADAPTERS.add(name, Adapter(name, config, function, summary))
        return function

    return put


def fingerprint(image_set: ImageSet) -> str:
    """SHA-256 (hex) over the names and bytes of every pair, in the order of the names."""
    total = hashlib.sha256()
    for index, image_id in enumerate(image_set.image_ids):
        one = hashlib.sha256()
        for chunk in image_set.file_bytes(index):
            one.update(chunk)
        total.update(image_id.encode() + b"\0" + one.digest())
    return total.hexdigest()


SHOWN = 5
"""How many offenders one message names."""


@dataclass(frozen=True)
class PairFacts:
    """What the check found, one row per image: sizes (N, 2) as height and width, and pixels per class (N, C).

    image_sha_N: 16 hex digits over the pixels of the image, whatever its name, its file format and its mask; "" for an
    image of one value, which any other may be equal to.
    """

    sizes_N2: "np.ndarray"
    class_pixels_NC: "np.ndarray"
    image_sha_N: tuple[str, ...]


LONGEST_NAME = 200
"""Bytes; file systems take 255, and endings are added."""


def offenders(problems: list[str], what: str, cure: str) -> UsageError:
    """One error naming the first problems ("<file>: <what>") and how many there are; equal ones are told once."""
    alike: dict[str, list[str]] = {}
    for problem in problems[:SHOWN]:
        name, _, fault = problem.partition(": ")
        alike.setdefault(fault, []).append(name)
    shown = "; ".join(", ".join(names) + (f": {fault}" if fault else "") for fault, names in alike.items())
    more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
    return UsageError(f"{len(problems)} {what}: {shown}{more}. {cure}")


def _check_names(image_ids: Sequence[str]) -> None:
    """A run names pictures after its images: <image>.png, <image>_reference.png, <image>_class1.png."""
    names = set(image_ids)
    unfit = [i for i in image_ids if i in ("", ".", "..") or len(i.encode()) > LONGEST_NAME or set(i) & set("/\\\0")]
    if unfit:
        cure = f"Rename them: at most {LONGEST_NAME} bytes, no slashes"
        raise offenders([i[:60] for i in unfit], f"of {len(names)} image names cannot be file names", cure)
    endings = ((i, re.fullmatch(r"(.+)_(?:reference|class\d+)", i)) for i in image_ids)
    twofold = [i for i, match in endings if match and match[1] in names]
    if twofold:
        what = f"of {len(names)} images are called as the pictures of another one will be"
        raise offenders(twofold, what, "Rename them")


def check_pairs(image_set: ImageSet, threads: int = 2) -> PairFacts:
    """Read every pair of the set. Raises UsageError naming the first offenders, their number and the cure."""
    import numpy as np
    from tqdm import tqdm

    if not image_set.image_ids:
        raise UsageError(f"no images in {image_set.location}: the data set is empty")
    _check_names(image_set.image_ids)

    def inspect(index: int) -> tuple[tuple[int, int], "np.ndarray", str] | str:
        try:
            pair = image_set.read(index)
        except PairError as error:
            return str(error)
        if pair.image_HWC.shape[:2] != pair.mask_HW.shape:
            return f"{image_set.image_ids[index]}: image {pair.image_HWC.shape[:2]}, mask {pair.mask_HW.shape}"
        if pair.image_HWC.shape[2] != image_set.channels:
            return f"{image_set.image_ids[index]}: {pair.image_HWC.shape[2]} channels, expected {image_set.channels}"
        pixels = np.bincount(pair.mask_HW.reshape(-1), minlength=IGNORE + 1)
        unknown = np.flatnonzero(pixels[image_set.num_classes : IGNORE]) + image_set.num_classes
        if unknown.size:
            return f"{image_set.image_ids[index]}: mask holds class {unknown[0]}, num_classes={image_set.num_classes}"
        return pair.mask_HW.shape, pixels[: image_set.num_classes], image_sha(pair.image_HWC)

    rows = range(len(image_set.image_ids))
    with ThreadPoolExecutor(threads) as pool:
        bar = tqdm(
            pool.map(inspect, rows), total=len(rows), desc="checking images", unit="img", disable=None, leave=False
        )
        found = list(bar)
    problems = [f for f in found if isinstance(f, str)]
    if problems:
        or_else = ", or correct the options dataset.*" if len(problems) == len(found) else ""
        raise offenders(problems, f"of {len(found)} pairs cannot be used", f"Repair or remove these files{or_else}")
    usable = [f for f in found if not isinstance(f, str)]
    sizes, class_pixels, digests = zip(*usable, strict=True)
    return PairFacts(np.array(sizes), np.stack(class_pixels), digests)


def image_sha(image_HWC: "np.ndarray") -> str:
    """16 hex digits over shape, type and pixels of an image; "" when all its pixels are alike."""
    if image_HWC.min() == image_HWC.max():
        return ""
    digest = hashlib.sha256(f"{image_HWC.shape}{image_HWC.dtype}".encode())
    digest.update(image_HWC.tobytes())
    return digest.hexdigest()[:16]


def check_split(image_set: ImageSet, facts: PairFacts, split: dict[str, list[int]]) -> list[str]:
    """Refuse a split that cannot train or score; returns warnings. Raises UsageError."""
    warnings = []
    for name, members in split.items():
        pixels_C = facts.class_pixels_NC[members].sum(axis=0)
        if pixels_C[1:].sum() == 0:
            raise UsageError(
                f"the {name} split ({len(members)} images of {image_set.location}) holds no foreground pixel: "
                "nothing can be learned or scored there; change split.seed, split.fractions or the split files"
            )
        absent = [c for c in range(1, image_set.num_classes) if pixels_C[c] == 0]
        if absent:
            warnings.append(f"class {_listed(absent)} does not occur in the {name} split")
    learned = {facts.image_sha_N[i] for i in split["train"]} - {""}
    for name in ("val", "test"):
        copies = [image_set.image_ids[i] for i in split[name] if facts.image_sha_N[i] in learned]
        if copies:
            warnings.append(
                f"{len(copies)} {name} images have the very pixels of a train image (the first is {copies[0]}): scores "
                "are inflated; give copies the same group, or leave them out"
            )
    if len(split["train"]) < 2:
        raise UsageError(f"the train split holds {len(split['train'])} image; at least 2 are needed")
    return warnings


def _listed(values: Iterable[int]) -> str:
    return ", ".join(map(str, values))
