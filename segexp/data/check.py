"""The check of every pair before training, and of the split: what cannot be used, and what is probably wrong."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from segexp.data.image_set import ImageError, ImageSet, is_text
from segexp.errors import UsageError
from segexp.losses import IGNORE

if TYPE_CHECKING:
    import numpy as np

SHOWN = 5  # number of problems that a message lists


@dataclass(frozen=True)
class PairFacts:
    """Results of the check, one row per image: sizes (N, 2) as height and width, and pixels per class (N, C).

    image_sha_N: hash of the image's pixels, see `image_sha`. network_pixels_NC: pixels per class at the network's size.
    dtypes_N: type of the images' pixels, as "uint8".
    """

    sizes_N2: "np.ndarray"
    class_pixels_NC: "np.ndarray"
    image_sha_N: tuple[str, ...]
    network_pixels_NC: "np.ndarray"
    warnings: tuple[str, ...] = ()
    dtypes_N: tuple[str, ...] = ()


def is_stored(facts: PairFacts) -> bool:
    """Whether the network takes stored values: those of unsigned 8 and 16 bits become shares of their range."""
    return not set(facts.dtypes_N) <= {"uint8", "uint16"}


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

    def inspect(index: int) -> tuple[tuple[int, int], "np.ndarray", str, "np.ndarray", str] | str:
        try:
            pair = image_set.read(index)
        except ImageError as error:
            return str(error)
        if pair.image_HWC.shape[:2] != pair.mask_HW.shape:
            return f"{image_set.image_ids[index]}: image {pair.image_HWC.shape[:2]}, mask {pair.mask_HW.shape}"
        if pair.image_HWC.shape[2] != image_set.channels:
            return f"{image_set.image_ids[index]}: {pair.image_HWC.shape[2]} channels, expected {image_set.channels}"
        pixels = np.bincount(pair.mask_HW.reshape(-1), minlength=IGNORE + 1)
        highest = 1 << (image_set.num_classes - 1) if image_set.overlapping else image_set.num_classes
        unknown = np.flatnonzero(pixels[highest:IGNORE]) + highest
        if unknown.size:
            return f"{image_set.image_ids[index]}: class {unknown[0]} in mask, num_classes={image_set.num_classes}"
        for doubt in pair.doubts:
            doubts.setdefault(doubt, []).append(image_set.image_ids[index])
        small = pair.mask_HW
        if side is not None:  # the nearest pixel of each, as in training
            y, x = (((np.arange(side) + 0.5) * n / side).astype(int) for n in pair.mask_HW.shape)
            small = pair.mask_HW[y][:, x]
        left_C, pixels_C = pixels_of_classes(small, image_set), pixels_of_classes(pair.mask_HW, image_set)
        dtype = pair.image_HWC.dtype.name
        return pair.mask_HW.shape, pixels_C, image_sha(pair.image_HWC), left_C, dtype

    rows = range(len(image_set.image_ids))
    with ThreadPoolExecutor(threads) as pool:
        inspected = pool.map(inspect, rows)
        found = list(tqdm(inspected, "checking images", len(rows), leave=False, unit="img", disable=None))
    problems = [f for f in found if isinstance(f, str)]
    if problems:
        or_else = ", or correct dataset.* options" if len(problems) == len(found) else ""
        raise _problems(problems, f"of {len(found)} pairs cannot be used", f"Repair or remove these files{or_else}")
    usable = [f for f in found if not isinstance(f, str)]
    sizes, class_pixels, digests, left, dtypes = zip(*usable, strict=True)
    warnings = [f"{len(names)} of {len(found)} {doubt} (the first: {min(names)})" for doubt, names in doubts.items()]
    return PairFacts(np.array(sizes), np.stack(class_pixels), digests, np.stack(left), tuple(sorted(warnings)), dtypes)


def pixels_of_classes(mask_HW: "np.ndarray", image_set: ImageSet) -> "np.ndarray":
    """Pixels of each class, int64 (C,). Where classes overlap, class 0 counts the pixels of none."""
    import numpy as np

    pixels_V = np.bincount(mask_HW.reshape(-1), minlength=IGNORE + 1)
    classes = image_set.num_classes
    if not image_set.overlapping:
        return pixels_V[:classes]
    sets_V, classes_C = np.arange(IGNORE), np.arange(1, classes)
    of_class_CV = (sets_V >> (classes_C[:, None] - 1)) & 1
    return np.array([pixels_V[0], *(of_class_CV @ pixels_V[:IGNORE])])


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
