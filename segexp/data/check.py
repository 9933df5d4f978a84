"""The check of every pair before training, and of the split: what cannot be used, and what is probably wrong."""

import hashlib
import itertools
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from segexp.data.image_set import ImageError, ImageSet, PairsError, is_text
from segexp.data.similar import UNCOMPARED, near_duplicates, perceptual_hash, too_many
from segexp.errors import UsageError
from segexp.losses import IGNORE

if TYPE_CHECKING:
    import numpy as np

SHOWN = 5  # number of problems that a message lists


@dataclass(frozen=True)
class PairFacts:
    """Results of the check, one row per image: sizes (N, 2) as height and width, and pixels per class (N, C).

    image_sha_N: hash of the image's pixels, see `image_sha`. network_pixels_NC: pixels per class at the network's size.
    dtypes_N: type of the images' pixels, as "uint8", or of each channel, as "uint8+uint16". ranges_N2: lowest and
    highest value of the image. mask_sha_N: hash of the mask. image_hash_N: see `perceptual_hash`. objects_NC: connected
    objects (8 neighbours) per class but 0; gone_NC: those without a pixel at the network's size. image_kinds_N,
    mask_kinds_N: what the files are, "" where unknown; orientations_N2: their tags. mask_values: stored value -> pixels
    in all masks. mask_palettes: stored value, its colour, and the first image whose mask has a palette with them.
    """

    sizes_N2: "np.ndarray"
    class_pixels_NC: "np.ndarray"
    image_sha_N: tuple[str, ...]
    network_pixels_NC: "np.ndarray"
    objects_NC: "np.ndarray"
    gone_NC: "np.ndarray"
    ranges_N2: "np.ndarray"
    orientations_N2: "np.ndarray"
    mask_sha_N: tuple[str, ...]
    image_hash_N: tuple[str, ...]
    dtypes_N: tuple[str, ...]
    image_kinds_N: tuple[str, ...]
    mask_kinds_N: tuple[str, ...]
    mask_values: dict[str, int]
    mask_palettes: tuple[tuple[str, str, str], ...] = ()


SHARES = {"uint8", "uint16"}
"""Types whose values become shares of their range."""


def is_stored(facts: PairFacts) -> bool:
    """Whether the network takes stored values, not shares."""
    return not SHARES.issuperset(facts.dtypes_N)


def same_scale(dtypes: Collection[str], normalise: str) -> bool:
    """Whether ``dataset.normalise`` gives images of these types (`PairFacts.dtypes_N`) values of one scale.

    train, ct: in each channel, all are of 8 bits, or of 16, or stored values (signed and floating ones).
    """
    if normalise in ("image", "percentile") or (normalise == "full_range" and SHARES.issuperset(dtypes)):
        return True
    scales = [tuple(of if of in SHARES else "stored" for of in dtype.split("+")) for dtype in dtypes]
    return len({of[:1] if len(set(of)) == 1 else of for of in scales}) <= 1


LONGEST_NAME = 200  # bytes; file systems allow 255, including the suffix that segexp adds


def _problems(listed: Mapping[str, str], what: str, cure: str, why: str = "") -> PairsError:
    """One error with the number of problems ("<file>: <what>") and the first few; files with equal ones are grouped."""
    alike: dict[str, list[str]] = {}
    problems = [*listed.values()]
    for problem in problems[:SHOWN]:
        name, _, fault = problem.partition(": ")
        alike.setdefault(fault, []).append(name)
    shown = "; ".join(", ".join(names) + (f": {fault}" if fault else "") for fault, names in alike.items())
    more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
    message = f"{len(problems)} {what}: {shown}{more}. {cure}"
    return PairsError.about(message, {name: f"{text}: {why}" if why else text for name, text in listed.items()})


def check_names(image_ids: Sequence[str]) -> None:
    """Image ids must be valid file names: a run writes <image>.png, <image>_reference.png, <image>_class1.png."""
    names = set(image_ids)
    strange = {i: ascii(i) for i in image_ids if not is_text(i)}
    if strange:
        cure = "Rename them, for example with `convmv -f latin1 -t utf8 --notest`"
        raise _problems(strange, f"of {len(names)} image names are not UTF-8", cure, "the name is not UTF-8")
    unfit = [i for i in image_ids if i in ("", ".", "..") or len(i.encode()) > LONGEST_NAME or set(i) & set("/\\\0")]
    if unfit:
        cure = f"Rename them: at most {LONGEST_NAME} bytes, no slashes"
        why = "this name cannot be that of a file"
        raise _problems({i: i[:60] for i in unfit}, f"of {len(names)} image names cannot be file names", cure, why)
    matches = ((i, re.fullmatch(r"(.+)_(?:reference|class\d+)", i)) for i in image_ids)
    ambiguous = [i for i, match in matches if match and match[1] in names]
    if ambiguous:
        what = f"of {len(names)} images have the name of an output file of another image"
        raise _problems({i: i for i in ambiguous}, what, "Rename them", "the name of an output file of another image")


def check_pairs(image_set: ImageSet, threads: int = 2, side: int | None = None) -> PairFacts:
    """Read every pair of the set. side: of the square that masks are resized to.

    Raises UsageError with the first problems, their number and what to do.
    """
    facts, problems = inspect_pairs(image_set, threads, side)
    if problems or facts is None:
        named = {image_set.image_ids[i]: problem for i, problem in problems.items()}
        raise unusable(named, len(image_set.image_ids))
    return facts


def unusable(problems: Mapping[str, str], number: int) -> PairsError:
    """The error about these problems of a set of ``number`` images."""
    or_else = ", or correct dataset.* options" if len(problems) == number else ""
    cure = f"Repair or remove these files{or_else}"
    return _problems(problems, f"of {number} pairs cannot be used", cure)


def inspect_pairs(
    image_set: ImageSet, threads: int = 2, side: int | None = None
) -> tuple[PairFacts | None, dict[int, str]]:
    """The facts of the pairs that can be used (None if there are none), and index -> problem of the others.

    Raises UsageError for an empty set and for names that cannot be file names.
    """
    from concurrent.futures import ThreadPoolExecutor  # not for `list` and completion

    import scipy.fft
    import scipy.ndimage  # noqa: F401 - before the threads: scipy fails where two import it at once
    from tqdm import tqdm

    if not image_set.image_ids:
        raise UsageError(f"the data set is empty: no images in {image_set.location}")
    check_names(image_set.image_ids)
    number = len(image_set.image_ids)
    with ThreadPoolExecutor(threads) as pool:
        inspected = pool.map(lambda index: _inspect(image_set, index, side), range(number))
        found = list(tqdm(inspected, "checking images", number, leave=False, unit="img", disable=None))
    usable = [one for one in found if not isinstance(one, str)]
    return (_facts(usable) if usable else None), {i: one for i, one in enumerate(found) if isinstance(one, str)}


def _inspect(image_set: ImageSet, index: int, side: int | None) -> dict[str, Any] | str:
    """What pair i adds to the fields of `PairFacts`, or what is wrong with it."""
    import numpy as np

    name, classes = image_set.image_ids[index], image_set.num_classes
    try:
        pair = image_set.read(index)
    except ImageError as error:
        return str(error)
    image_HWC, mask_HW = pair.image_HWC, pair.mask_HW
    if image_HWC.shape[:2] != mask_HW.shape:
        return f"{name}: image {image_HWC.shape[:2]}, mask {mask_HW.shape}"
    if image_HWC.shape[2] != image_set.channels:
        return f"{name}: {image_HWC.shape[2]} channels, expected {image_set.channels}"
    stored = np.bincount(mask_HW.reshape(-1), minlength=IGNORE + 1)
    highest = 1 << (classes - 1) if image_set.overlapping else classes
    unknown = np.flatnonzero(stored[highest:IGNORE]) + highest
    if unknown.size:
        return f"{name}: class {unknown[0]} in mask, num_classes={classes}"
    rows, columns = (np.arange(n) for n in mask_HW.shape)
    if side is not None:  # the nearest pixel of each, as in training
        rows, columns = (((np.arange(side) + 0.5) * n / side).astype(int) for n in mask_HW.shape)
    pixels_C = pixels_of_classes(mask_HW, image_set)

    def held_HW(c: int) -> "np.ndarray":
        if not image_set.overlapping:
            return mask_HW == c
        return (mask_HW >> (c - 1) & 1 == 1) & (mask_HW != IGNORE)

    counted = [_objects(held_HW(c), rows, columns) if c and pixels_C[c] else (0, 0) for c in range(classes)]
    objects, gone = zip(*counted, strict=True)
    kinds = [" and ".join(dict.fromkeys(source.kind for source in of)) for of in (pair.images, pair.masks)]
    return {
        "sizes_N2": mask_HW.shape,
        "class_pixels_NC": pixels_C,
        "network_pixels_NC": pixels_of_classes(mask_HW[rows][:, columns], image_set),
        "objects_NC": objects,
        "gone_NC": gone,
        "ranges_N2": (float(image_HWC.min()), float(image_HWC.max())),
        "orientations_N2": [
            next((s.orientation for s in of if s.orientation != 1), 1) for of in (pair.images, pair.masks)
        ],
        "image_sha_N": image_sha(image_HWC),
        "mask_sha_N": hashlib.sha256(f"{mask_HW.shape}".encode() + mask_HW.tobytes()).hexdigest()[:16],
        "image_hash_N": perceptual_hash(image_HWC),
        "dtypes_N": pair.dtypes or image_HWC.dtype.name,
        "image_kinds_N": kinds[0],
        "mask_kinds_N": kinds[1],
        "mask_values": [source.values for source in pair.masks],
        "mask_palettes": [(*entry, name) for source in pair.masks for entry in source.colours.items()],
    }


def _objects(held_HW: "np.ndarray", rows: "np.ndarray", columns: "np.ndarray") -> tuple[int, int]:
    """The number of connected objects of a class, and of those without a pixel in these rows and columns."""
    import numpy as np
    from scipy.ndimage import label

    (top, bottom), (left, right) = (np.flatnonzero(held_HW.any(axis=axis))[[0, -1]] for axis in (1, 0))
    labels_HW, number = label(held_HW[top : bottom + 1, left : right + 1], np.ones((3, 3)))
    rows, columns = (
        at[(at >= low) & (at <= high)] - low for at, low, high in ((rows, top, bottom), (columns, left, right))
    )
    return number, number - np.count_nonzero(np.bincount(labels_HW[rows][:, columns].reshape(-1), minlength=1)[1:])


def _facts(found: Sequence[dict[str, Any]]) -> PairFacts:
    import numpy as np

    values: Counter[str] = Counter()
    for of_mask in itertools.chain.from_iterable(one["mask_values"] for one in found):
        values.update(of_mask)
    palettes = {entry[:2]: entry for one in reversed(found) for entry in one["mask_palettes"]}
    fields: dict[str, Any] = {key: tuple(one[key] for one in found) for key in found[0]}
    fields |= {key: np.array(rows) for key, rows in fields.items() if key.endswith(("_NC", "_N2"))}
    fields["mask_values"] = dict(sorted(values.items(), key=lambda item: (-item[1], item[0])))
    return PairFacts(**fields | {"mask_palettes": tuple(sorted(palettes.values()))})


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


def check_set(image_set: ImageSet, facts: PairFacts, normalise: str, spacing: object) -> None:
    """Raise UsageError for what the files of the set leave open, where no option decides.

    normalise, spacing: of the configuration.
    """
    depths = Counter(facts.dtypes_N)
    if not same_scale(depths, normalise):
        shown = ", ".join(f"{number} {dtype}" for dtype, number in sorted(depths.items()))
        rare = facts.dtypes_N.index(min(depths, key=lambda dtype: (depths[dtype], dtype)))
        declared = normalise == "train" and depths.keys() == SHARES
        cure = ", full_range (shares of 255 and 65535, as earlier versions did)" if declared else ""
        raise UsageError(
            f"images of several bit depths in {image_set.location} ({shown}; as {image_set.image_ids[rare]}), whose "
            f"values have no common scale: set dataset.normalise=image or percentile{cure}, or convert the files"
        )
    times = Counter(value for value, _, _ in facts.mask_palettes)  # colours of a value
    value_of: dict[str, tuple[str, str]] = {}
    for value, colour, name in facts.mask_palettes:
        other, first = value_of.setdefault(colour, (value, name))
        if other != value and max(times[value], times[other]) > 1:
            raise UsageError(
                f"palettes of masks in {image_set.location} differ: the colour {colour} is {other} in {first} and "
                f"{value} in {name}: set dataset.mask_coding=colors, or if numbers count, save masks without palette"
            )
    known = [one is not None for one in image_set.spacings]
    if spacing is None and any(known) and not all(known):
        raise UsageError(
            f"{known.count(False)} of {len(known)} images of {image_set.location} have no pixel size (the first: "
            f"{image_set.image_ids[known.index(False)]}), the others have one: set dataset.spacing"
        )
    group_of: dict[str, str] = {}
    for case, group in zip(image_set.case_ids, image_set.group_ids, strict=bool(image_set.case_ids)):
        if case and group_of.setdefault(case, group) != group:
            raise UsageError(
                f"the slices of {case} in {image_set.location} are in the groups {group_of[case]} and {group}: name "
                "one group for all slices of a volume"
            )


def check_channel_names(image_set: ImageSet, names: Sequence[str] | None) -> None:
    """Raise UsageError where ``dataset.channel_names`` does not name each channel."""
    if names is not None and len(names) != image_set.channels:
        raise UsageError(
            f"dataset.channel_names holds {len(names)} names: name each of the {image_set.channels} channels"
        )


def set_warnings(image_set: ImageSet, facts: PairFacts) -> list[str]:
    """What is doubtful about the images and masks of the set, a line each."""
    ids, groups, number = image_set.image_ids, image_set.group_ids, len(image_set.image_ids)
    warnings = []
    constant = [ids[i] for i in range(number) if facts.ranges_N2[i, 0] == facts.ranges_N2[i, 1]]
    if constant:
        warnings.append(f"{len(constant)} of {number} images hold a single value everywhere (first: {constant[0]})")
    full = [ids[i] for i in range(number) if facts.class_pixels_NC[i, 0] == 0 and facts.class_pixels_NC[i].any()]
    if full and image_set.num_classes == 2:
        warnings.append(
            f"{len(full)} of {number} masks have no background (first: {full[0]}): check the masks and "
            "dataset.mask_coding"
        )
    # Slices of one volume may have equal masks, and so may copies of an image, which have a warning of their own.
    same: dict[str, list[int]] = {}
    for i, sha in enumerate(facts.mask_sha_N):
        if facts.class_pixels_NC[i, 0] and facts.class_pixels_NC[i, 1:].any():
            same.setdefault(sha, []).append(i)
    shared: list[list[int]] = []
    for first, *others in same.values():
        copied = near_duplicates(tuple(facts.image_hash_N[i] for i in others), (facts.image_hash_N[first],))
        strange = [
            i
            for i, copy in zip(others, copied, strict=True)
            if copy < 0 and facts.image_sha_N[i] != facts.image_sha_N[first] and not _one_group(groups, i, first)
        ]
        shared += [[first, *strange]] if strange else []
    if shared:
        warnings.append(
            f"{sum(map(len, shared))} images have the mask of another image, pixel by pixel (as {ids[shared[0][0]]} "
            f"and {ids[shared[0][1]]}): check that each mask belongs to its image"
        )
    low, high = (facts.ranges_N2[:, 1] <= 1), (facts.ranges_N2[:, 1] > UNIT_RANGE)
    if set(facts.dtypes_N) == {"float32"} and low.any() and high.any():
        warnings.append(
            f"{low.sum()} of {number} images reach 1 at most (first: {ids[low.argmax()]}), {high.sum()} more than "
            f"{UNIT_RANGE} (first: {ids[high.argmax()]}): if these are two scales, set dataset.normalise=image"
        )
    return warnings


UNIT_RANGE = 10
"""Floating values above it are no shares of 1."""

OBJECTS_GONE = 0.1
"""Share of the objects of a class that vanish by resizing, above which there is a warning."""


def _vanishing(facts: PairFacts, c: int, train: list[int]) -> str:
    """The warning about objects of a class that resizing leaves no pixel of, "" for few."""
    before, after = facts.class_pixels_NC[train], facts.network_pixels_NC[train]
    objects, gone = facts.objects_NC[train, c].sum(), facts.gone_NC[train, c].sum()
    held = before[:, c] > 0
    empty = held & (after[:, c] == 0)
    if gone <= OBJECTS_GONE * objects and empty.sum() * 2 <= held.sum():
        return ""
    shares = [pixels[:, c].sum() / max(pixels.sum(), 1) for pixels in (before, after)]
    return (
        f"resizing to dataset.image_size leaves no pixel of {gone} of {objects} objects of class {c} in the train "
        f"masks ({shares[0]:.2%} of the pixels before, {shares[1]:.2%} after), and nothing of it in {empty.sum()} of "
        f"{held.sum()} masks: use a larger dataset.image_size, or dataset.fit=pad"
    )


def check_split(image_set: ImageSet, facts: PairFacts, split: dict[str, list[int]], first: int = 1) -> list[str]:
    """Warnings about the split. first: the first class that is scored.

    Raises UsageError if it cannot be used for training or scoring.
    """
    nowhere = [c for c in range(first, image_set.num_classes) if not facts.class_pixels_NC[:, c].any()]
    warnings = [f"class {', '.join(map(str, nowhere))} occurs in no mask"] if nowhere else []
    for name, indices in split.items():
        pixels_C = facts.class_pixels_NC[indices].sum(axis=0)
        if pixels_C[first:].sum() == 0:
            if len(nowhere) == image_set.num_classes - first:
                raise UsageError(
                    f"no mask of {image_set.location} has a foreground pixel: check the masks and dataset.mask_coding"
                )
            raise UsageError(
                f"the {name} split ({len(indices)} images of {image_set.location}) has no foreground pixel, so it "
                "cannot be used for training or scoring; change split.seed, split.fractions or the split files"
            )
        absent = [c for c in range(first, image_set.num_classes) if pixels_C[c] == 0 and c not in nowhere]
        if absent:
            warnings.append(f"class {', '.join(map(str, absent))} does not occur in the {name} split")
    if first and image_set.num_classes > 2 and facts.class_pixels_NC[split["train"], 0].sum() == 0:
        warnings.append("no pixel of the train split is background: check the masks and dataset.mask_coding")
    warnings += filter(None, (_vanishing(facts, c, split["train"]) for c in range(first, image_set.num_classes)))
    for part, other in COMPARED:
        warnings += _copies(image_set, facts, part, split[part], other, split[other])
    if any(too_many(len(split[part]), len(split[other])) for part, other in COMPARED):
        warnings.append(UNCOMPARED)
    if len(split["train"]) < 2:
        raise UsageError(
            f"the train split has 1 of the {len(image_set.image_ids)} images of {image_set.location}; at least 2 are "
            "needed: add images, or change split.fractions or the split files"
        )
    return warnings


COMPARED = (("val", "train"), ("test", "train"), ("test", "val"))
"""Parts of a split that share no image: val selects the epoch, the threshold and the temperature."""


def _copies(
    image_set: ImageSet, facts: PairFacts, part: str, indices: list[int], other: str, others: list[int]
) -> list[str]:
    """Warnings about images of a part that are also in another part."""
    ids, found = image_set.image_ids, copies(image_set, facts, indices, others)
    inflates = "which inflates scores; put duplicates in one group, or remove them"
    warnings = []
    identical = [ids[i] for i, _, same in found if same]
    if identical:
        first = f"(the first is {identical[0]})"
        warnings.append(f"{len(identical)} {part} images are pixel-identical to a {other} image {first}, {inflates}")
    alike = [(ids[i], ids[j]) for i, j, same in found if not same]
    if alike:
        first = f"(the first is {alike[0][0]}, of {alike[0][1]})"
        what = f"look like copies of a {other} image, resized, flipped or of another brightness or compression"
        warnings.append(f"{len(alike)} {part} images {what} {first}, {inflates}")
    return warnings


def _one_group(groups: Sequence[str], i: int, j: int) -> bool:
    return bool(groups[i]) and groups[i] == groups[j]


def copies(image_set: ImageSet, facts: PairFacts, indices: list[int], among: list[int]) -> list[tuple[int, int, bool]]:
    """The images that are copies of one ``among`` others: (index, index of the other, whether pixels are identical).

    Images of one group are alike by nature, so only identical ones count.
    """
    groups, hashes = image_set.group_ids, facts.image_hash_N
    same = {facts.image_sha_N[j]: j for j in reversed(among) if facts.image_sha_N[j]}
    near = near_duplicates(tuple(hashes[i] for i in indices), tuple(hashes[j] for j in among))
    found = []
    for i, n in zip(indices, near, strict=True):
        if (j := same.get(facts.image_sha_N[i])) is not None:
            found.append((i, j, True))
        elif n >= 0 and not _one_group(groups, i, among[n]):
            found.append((i, among[n], False))
    return found
