"""What an adapter returns (`ImageSet`), the registry of adapters, and the check of every pair before training."""

import dataclasses
import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from segexp.errors import DataChangedError, UsageError
from segexp.losses import IGNORE, MAX_CLASSES
from segexp.registry import NOT_NEGATIVE, REQUIRED, Range, Registry, Since

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
    limit: Annotated[float | None, Since(None)] = None
    class_names: Annotated[list[str] | None, Since(None)] = None
    background: Annotated[str, ("0", "none"), Since("0")] = "0"

    @property
    def first_class(self) -> int:
        """The first class that is scored: 1, or 0 where class 0 is no background."""
        return 0 if self.background == "none" else 1


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
    doubts: what is probably wrong with the pair, to follow "3 of 12 ".
    """

    image_HWC: "np.ndarray"
    mask_HW: "np.ndarray"
    doubts: tuple[str, ...] = ()


@dataclass(frozen=True)
class ImageSet:
    """A data set before it is split: names, groups and a way to read pair i.

    image_ids: unique and sorted, so that the order is the same on every machine. group_ids: patient, volume or video of
    each image ("" = unknown). read(i): decodes pair i; raises `ImageError` if it cannot be used. file_bytes(i): the
    bytes of pair i that enter the fingerprint. declared_split: image id -> "train", "val" or "test" if the data set has
    split files, else None. location: for messages. notes: lines to show to the user. files(i): the files of pair i, so
    that a change is noticed while a run reads them.
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


Stamp = dict[Path, tuple[int, ...]]
"""Each file of a pair -> size, times and inode; () if it is gone."""


def stamp(image_set: ImageSet, index: int) -> Stamp:
    """The present state of the files of pair i, without reading them; empty if there are none."""
    found: Stamp = {}
    for path in image_set.files(index):
        try:
            state = path.stat()
            found[path] = (state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino)
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
                f"{' and '.join(map(str, changed))} has changed since the run read it: restore the file and repeat the "
                "command to continue the run, or repeat it with the new data, which makes another run"
            )
        stamps[index] = now

    def read(index: int) -> Pair:
        try:
            return image_set.read(index)
        finally:
            check(index)

    return dataclasses.replace(image_set, read=read)


SHOWN = 5  # number of problems that a message lists


@dataclass(frozen=True)
class PairFacts:
    """Results of the check, one row per image: sizes (N, 2) as height and width, and pixels per class (N, C).

    image_sha_N: hash of the image's pixels, see `image_sha`. network_pixels_NC: pixels per class at the network's size.
    """

    sizes_N2: "np.ndarray"
    class_pixels_NC: "np.ndarray"
    image_sha_N: tuple[str, ...]
    network_pixels_NC: "np.ndarray"
    warnings: tuple[str, ...] = ()


def is_text(name: str) -> bool:
    """Whether a file name is UTF-8: other bytes are lone surrogates here, which no table can hold."""
    return not any("\ud800" <= c <= "\udfff" for c in name)


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
    strange = [ascii(i) for i in image_ids if not is_text(i)]
    if strange:
        cure = "Rename them, for example with `convmv -f latin1 -t utf8 --notest`"
        raise _problems(strange, f"of {len(names)} image names are not UTF-8", cure)
    unfit = [i for i in image_ids if i in ("", ".", "..") or len(i.encode()) > LONGEST_NAME or set(i) & set("/\\\0")]
    if unfit:
        cure = f"Rename them: at most {LONGEST_NAME} bytes, no slashes"
        raise _problems([i[:60] for i in unfit], f"of {len(names)} image names cannot be file names", cure)
    matches = ((i, re.fullmatch(r"(.+)_(?:reference|class\d+)", i)) for i in image_ids)
    ambiguous = [i for i, match in matches if match and match[1] in names]
    if ambiguous:
        what = f"of {len(names)} images have the name of an output file of another image"
        raise _problems(ambiguous, what, "Rename them")


def check_pairs(image_set: ImageSet, threads: int = 2, side: int | None = None) -> PairFacts:
    """Read every pair of the set. side: of the square that masks are resized to.

    Raises UsageError with the first problems, their number and what to do.
    """
    from concurrent.futures import ThreadPoolExecutor  # not for `list` and completion

    import numpy as np
    from tqdm import tqdm

    if not image_set.image_ids:
        raise UsageError(f"the data set is empty: no images in {image_set.location}")
    _check_names(image_set.image_ids)

    doubts: dict[str, list[str]] = {}

    def inspect(index: int) -> tuple[tuple[int, int], "np.ndarray", str, "np.ndarray"] | str:
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
        for doubt in pair.doubts:
            doubts.setdefault(doubt, []).append(image_set.image_ids[index])
        small = pair.mask_HW
        if side is not None:  # the nearest pixel of each, as in training
            y, x = (((np.arange(side) + 0.5) * n / side).astype(int) for n in pair.mask_HW.shape)
            small = pair.mask_HW[y][:, x]
        left = np.bincount(small.reshape(-1), minlength=IGNORE + 1)[: image_set.num_classes]
        return pair.mask_HW.shape, pixels[: image_set.num_classes], image_sha(pair.image_HWC), left

    rows = range(len(image_set.image_ids))
    with ThreadPoolExecutor(threads) as pool:
        inspected = pool.map(inspect, rows)
        found = list(tqdm(inspected, "checking images", len(rows), leave=False, unit="img", disable=None))
    problems = [f for f in found if isinstance(f, str)]
    if problems:
        or_else = ", or correct dataset.* options" if len(problems) == len(found) else ""
        raise _problems(problems, f"of {len(found)} pairs cannot be used", f"Repair or remove these files{or_else}")
    usable = [f for f in found if not isinstance(f, str)]
    sizes, class_pixels, digests, left = zip(*usable, strict=True)
    warnings = [f"{len(names)} of {len(found)} {doubt} (the first: {min(names)})" for doubt, names in doubts.items()]
    return PairFacts(np.array(sizes), np.stack(class_pixels), digests, np.stack(left), tuple(sorted(warnings)))


def image_sha(image_HWC: "np.ndarray") -> str:
    """16 hex digits of a hash over shape, type and pixels; "" for an image of a single value, which often repeats."""
    if image_HWC.min() == image_HWC.max():
        return ""
    digest = hashlib.sha256(f"{image_HWC.shape}{image_HWC.dtype}".encode())
    digest.update(image_HWC.tobytes())
    return digest.hexdigest()[:16]


def check_split(image_set: ImageSet, facts: PairFacts, split: dict[str, list[int]], first: int = 1) -> list[str]:
    """Warnings about the split. first: the first class that is scored.

    Raises UsageError if it cannot be used for training or scoring.
    """
    warnings = []
    for name, indices in split.items():
        pixels_C = facts.class_pixels_NC[indices].sum(axis=0)
        if pixels_C[first:].sum() == 0:
            raise UsageError(
                f"the {name} split ({len(indices)} images of {image_set.location}) has no foreground pixel, so it "
                "cannot be used for training or scoring; change split.seed, split.fractions or the split files"
            )
        absent = [c for c in range(first, image_set.num_classes) if pixels_C[c] == 0]
        if absent:
            warnings.append(f"class {', '.join(map(str, absent))} does not occur in the {name} split")
    if first and facts.class_pixels_NC[split["train"], 0].sum() == 0:
        warnings.append("no pixel of the train split is background: check the masks and dataset.mask_coding")
    for c in range(first, image_set.num_classes):
        held = facts.class_pixels_NC[split["train"], c] > 0
        gone = held & (facts.network_pixels_NC[split["train"], c] == 0)
        if gone.sum() * 2 > held.sum():
            warnings.append(
                f"class {c} is in {held.sum()} train masks, resizing to dataset.image_size leaves no pixel of it in "
                f"{gone.sum()} of them: use a larger dataset.image_size, or dataset.fit=pad"
            )
    trained_on = {facts.image_sha_N[i] for i in split["train"]} - {""}
    for name in ("val", "test"):
        duplicates = [image_set.image_ids[i] for i in split[name] if facts.image_sha_N[i] in trained_on]
        if duplicates:
            warnings.append(
                f"{len(duplicates)} {name} images are pixel-identical to a train image (the first is {duplicates[0]}), "
                "which inflates scores; put duplicates in one group, or remove them"
            )
    if len(split["train"]) < 2:
        raise UsageError(
            f"the train split has 1 of the {len(image_set.image_ids)} images of {image_set.location}; at least 2 are "
            "needed: add images, or change split.fractions or the split files"
        )
    return warnings
