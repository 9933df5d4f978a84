"""Train, validation and test images, from the data set's split files, fractions or folds. Groups stay together."""

import dataclasses
import functools
import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from segexp.data import stream_seed
from segexp.data.image_set import SPLITS, ImageSet
from segexp.errors import UsageError
from segexp.records.formatting import pluralize

METHODS = ("random", "largest_first")
"""Values of ``split.method``, see `_cut`."""

Split = dict[str, list[int]]
"""Indices into the image set, ascending, for "train", "val" and "test"."""


Classes = Sequence[frozenset[int]]
"""The classes that each image of a set holds."""


def make_split(
    image_set: ImageSet,
    source: str,
    fractions: list[float],
    seed: int,
    folds: int | None = None,
    fold: int | None = None,
    *,
    allow_shared_groups: bool = False,
    method: str = "random",
    per_seed: bool = False,
    run_seed: int = 0,
    leave_one_group_out: bool = False,
    stratify: bool = False,
    classes: Classes | None = None,
) -> Split:
    """Split the set; no group (patient, volume, video) is ever in two parts. Deterministic in ``seed``.

    allow_shared_groups: split files may put a group into two parts, see `shared_groups`.
    method: the order in which `_cut` deals groups. per_seed: each ``run_seed`` has a split of its own.
    source: "files" (the data set's split files), "fractions", or "auto" (files if there are any). If the files name no
    validation images, part of train becomes val, in the ratio of ``fractions``.

    folds: the number of parts, as equal as whole groups allow, into which all images are divided (split files have no
    effect on them). Part ``fold`` is test; the others are divided into train and val in the ratio of ``fractions``.
    leave_one_group_out: each group is a fold, in the order of their names. stratify: parts get their share of the
    groups that hold each of ``classes``, see `_cut`. Raises UsageError.
    """
    if not stratify:
        classes = None
    elif classes is None:
        raise ValueError("a stratified split needs the classes of every image")
    declared = image_set.declared_split
    if source == "files" and declared is None:
        wrong = f"split.source=files: {image_set.location} has no split files (splits/train.txt, splits/test.txt)"
        raise UsageError(f"{wrong}; add them, or use split.source=fractions")
    everything = list(range(len(image_set.image_ids)))
    if per_seed:
        if declared is not None and source != "fractions" and folds is None and not leave_one_group_out:
            raise UsageError(
                f"split.per_seed=true: the split files of {image_set.location} name the test images of every seed; use "
                "split.source=fractions to draw a split for each seed, or split.per_seed=false"
            )
        seed = stream_seed(seed, "split", run_seed)
    cut = functools.partial(_cut, image_set, seed=seed, method=method, classes=classes)
    train_share = fractions[0] / (fractions[0] + fractions[1])
    if fold is not None:
        test = _group(image_set, fold) if leave_one_group_out else _folds(image_set, folds or 1, cut)[fold]
        train, val = cut(sorted(set(everything) - set(test)), [train_share, 1 - train_share])
        split = {"train": train, "val": val, "test": test}
    elif declared is None or source == "fractions":
        split = dict(zip(SPLITS, cut(everything, fractions), strict=True))
    else:
        split = _declared_parts(image_set, declared)
        _check_declared(image_set, split, allow_shared_groups, stratify)
        if not split["val"]:
            split["train"], split["val"] = cut(split["train"], [train_share, 1 - train_share])
    _refuse_empty(image_set, split)
    return split


def _check_declared(image_set: ImageSet, split: Split, allow_shared_groups: bool, stratify: bool) -> None:
    shared = shared_groups(image_set, split)
    if shared and not allow_shared_groups:
        cure = "correct the split files, use split.source=fractions, or set split.allow_shared_groups=true"
        raise UsageError(f"{shared[0]}; {cure}")
    if stratify and split["val"]:
        raise UsageError(
            f"split.stratify=true has no effect: the split files of {image_set.location} name every part; use "
            "split.source=fractions, or split.stratify=false"
        )


def _refuse_empty(image_set: ImageSet, split: Split) -> None:
    empty = next((part for part, indices in split.items() if not indices), "")
    if not empty:
        return
    number = len(image_set.image_ids)
    groups = pluralize(count_groups(image_set, list(range(number))), "group")
    amount = pluralize(number, "image") + (f" in {groups}" if any(image_set.group_ids) else "")
    wrong = f"the {empty} split is empty: {image_set.location} has too few images ({amount})"
    limited_to = any(note.startswith("dataset.limit=") for note in image_set.notes)
    cure = "raise dataset.limit" if limited_to else "add images, or change split.fractions or the split files"
    raise UsageError(f"{wrong}: {cure}")


def _folds(
    image_set: ImageSet, folds: int, cut: Callable[[list[int], list[float]], list[list[int]]]
) -> list[list[int]]:
    """All images in ``folds`` parts, as equal as whole groups allow."""
    everything = list(range(len(image_set.image_ids)))
    parts = cut(everything, [1 / folds] * folds)
    if not all(parts):
        groups = pluralize(count_groups(image_set, everything), "group")
        raise UsageError(
            f"split.folds={folds}: {image_set.location} has only {groups} of images, and each fold needs one; use "
            "fewer folds"
        )
    return parts


def _group(image_set: ImageSet, fold: int) -> list[int]:
    """The images of the group number ``fold``, in the order of names."""
    groups = sorted(set(image_set.group_ids))
    if "" in groups:
        raise UsageError(
            f"split.leave_one_group_out=true: not every image of {image_set.location} has a group; name them, as in "
            "dataset.group_file"
        )
    if fold >= len(groups):
        shown = ", ".join(groups[:8]) + (" ..." if len(groups) > 8 else "")
        raise UsageError(
            f"split.fold={fold}: {image_set.location} has {pluralize(len(groups), 'group')} ({shown}), so split.fold "
            f"is 0 to {len(groups) - 1}; all of them: -m 'split.fold=range({len(groups)})'"
        )
    return [i for i, group in enumerate(image_set.group_ids) if group == groups[fold]]


def _declared_parts(image_set: ImageSet, declared: Mapping[str, str]) -> Split:
    return {part: [i for i, name in enumerate(image_set.image_ids) if declared[name] == part] for part in SPLITS}


def limited(
    image_set: ImageSet,
    limit: float | None,
    source: str,
    seed: int,
    folds: int | None,
    method: str = "random",
    leave_one_group_out: bool = False,
    **_: object,
) -> ImageSet:
    """The images that ``dataset.limit`` keeps: whole groups, and of split files a share of each part. Not stratified.

    limit: a number of images from 2, or a share below 1. The other arguments are those of `make_split`.
    """
    number, declared = len(image_set.image_ids), image_set.declared_split
    if limit is None or limit >= number:
        return image_set
    share = limit if limit < 1 else limit / number
    parts = [list(range(number))]
    if declared is not None and source != "fractions" and folds is None and not leave_one_group_out:
        parts = [part for part in _declared_parts(image_set, declared).values() if part]
    drawn = [_cut(image_set, part, [share, 1 - share], seed, method, filled=1)[0] for part in parts]
    kept = sorted(i for part in drawn for i in part)
    note = f"dataset.limit={limit:g}: {len(kept)} of {number} images are used"
    return dataclasses.replace(image_set.subset(kept), notes=(*image_set.notes, note))


def _groups(image_set: ImageSet, indices: list[int], seed: int, method: str) -> list[list[int]]:
    """``indices`` by group, in random order; with the method "largest_first" the large groups first."""
    groups: dict[object, list[int]] = {}
    for index in indices:
        groups.setdefault(image_set.group_ids[index] or index, []).append(index)

    # Ranked by a hash, so that the rank of an image does not depend on the other images.
    def rank(group: list[int]) -> bytes:
        label = image_set.group_ids[group[0]] or image_set.image_ids[group[0]]
        return hashlib.sha256(f"{seed}/{label}".encode(errors="surrogateescape")).digest()

    by_size = method == "largest_first" and len(groups) < len(indices)
    return sorted(groups.values(), key=lambda g: (-len(g) if by_size else 0, rank(g)))


def _cut(
    image_set: ImageSet,
    indices: list[int],
    fractions: list[float],
    seed: int,
    method: str,
    filled: int | None = None,
    classes: Classes | None = None,
) -> list[list[int]]:
    """Deal the groups of ``indices`` one by one, each to the part that is missing most images of its share.

    Fractions, validation images, folds and ``dataset.limit`` are all drawn here. The method "random" deals groups in
    random order: a group's chance of being in a part is nearly the part's share, whatever the size of the group (but
    for one that holds most images), and each part is within one group of its share. "largest_first" is what segexp did
    before: the parts are more equal, but the largest groups are never in a small part. filled: the first parts
    (default: all), none of which is empty where there are as many groups.

    classes: of every image, for a stratified cut (after Sechidis et al., On the Stratification of Multi-Label Data,
    2011, for groups). Groups of many classes are dealt first, each to the part that is missing most of the groups that
    hold its classes so far; images decide between equals. A part has its share of the groups that hold a class within
    one group for one class, within 1.6 for six (measured; 3 for 19 classes of 60 groups).
    """
    parts: list[list[int]] = [[] for _ in fractions]
    wanted = [fraction * len(indices) for fraction in fractions]
    groups = _groups(image_set, indices, seed, method)
    # Groups without any of the classes (-1) have their share as well.
    held = (
        {id(group): frozenset[int]().union(*(classes[i] for i in group)) or {-1} for group in groups} if classes else {}
    )
    groups.sort(key=lambda group: -len(held.get(id(group), ())))
    dealt = {c: _dealt_before(fractions, seed) for c in sorted(frozenset().union(*held.values()))}
    for left, group in zip(range(len(groups), 0, -1), groups, strict=True):
        empty = [part for part, members in enumerate(parts[:filled]) if not members]
        open_to = empty if left == len(empty) else range(len(parts))

        def missing(part: int, group: list[int] = group) -> tuple[float, float]:
            of_classes = sum(_missing(fractions, dealt[c], part) for c in held.get(id(group), ()))
            return round(of_classes, 9), wanted[part] - len(parts[part])

        part = max(open_to, key=missing)
        parts[part] += group
        for c in held.get(id(group), ()):
            dealt[c][part] += 1
    return [sorted(p) for p in parts]


def _missing(fractions: Sequence[float], dealt: Sequence[int], part: int) -> float:
    """How many groups a part is missing of its share, once one more is dealt."""
    return fractions[part] * (sum(dealt) + 1) - dealt[part]


def _dealt_before(fractions: Sequence[float], seed: int) -> list[int]:
    """Numbers of groups of a class with which dealing begins, as if up to 19 had been dealt: otherwise the parts would
    always get their shares in the same order, and the only group of a class never be a test group."""
    dealt = [0] * len(fractions)
    for _ in range(stream_seed(seed, "stratify") % 20 if len(set(fractions)) > 1 else 0):
        dealt[max(range(len(dealt)), key=lambda part: round(_missing(fractions, dealt, part), 9))] += 1
    return dealt


def shared_groups(image_set: ImageSet, split: Split) -> list[str]:
    """One line for each pair of parts that share groups: which, and which scores that inflates."""
    of = {part: {image_set.group_ids[i] for i in indices} - {""} for part, indices in split.items()}
    lines = []
    for a, b in (("train", "test"), ("val", "test"), ("train", "val")):
        if both := sorted(of[a] & of[b]):
            inflated = "the scores of test" if b == "test" else "the scores of val, which select the weights"
            shown = ", ".join(both[:5]) + (" ..." if len(both) > 5 else "")
            where = f"{a} and {b} of the split files of {image_set.location} share {pluralize(len(both), 'group')}"
            lines.append(f"{where} ({shown}): that inflates {inflated}")
    return lines


def count_groups(image_set: ImageSet, indices: Iterable[int]) -> int:
    """Number of groups among these images; an image without one counts as a group."""
    return len({image_set.group_ids[i] or i for i in indices})


def slices_in(names: Sequence[str], sizes: Sequence[object] | None = None) -> int:
    """How many volumes the images look like slices of, as patient07_012 and patient07_013; 0 where they do not.

    sizes: of each image, where known: the slices of a volume share one. A stem without a digit (img_001, benign_001)
    names a kind of image, not a volume.
    """
    stems: dict[str, list[object]] = {}
    for name, size in zip(names, sizes or [None] * len(names), strict=True):
        if m := re.fullmatch(r"(.*[A-Za-z0-9])[-_. ](?:[A-Za-z]{0,6})\d{1,4}", name):
            stems.setdefault(m[1], []).append(size)
    numbered = [of for stem, of in stems.items() if re.search(r"\d", stem)]
    volumes = [len(of) for of in numbered if len(of) > 1 and len(set(of)) == 1]
    return len(volumes) if len(volumes) > 1 and sum(volumes) > len(names) / 2 else 0


def split_sha(image_set: ImageSet, split: Split) -> str:
    """SHA-256 (hex) over the part and group of every image."""
    total = hashlib.sha256()
    for part in SPLITS:
        for index in split[part]:
            total.update(f"{part}\0{image_set.image_ids[index]}\0{image_set.group_ids[index]}\n".encode())
    return total.hexdigest()
