"""Train, validation and test images, from the data set's split files, fractions or folds. Groups stay together."""

import hashlib

from segexp.data.image_set import SPLITS, ImageSet
from segexp.errors import UsageError
from segexp.records.formatting import pluralize

Split = dict[str, list[int]]
"""Indices into the image set, ascending, for "train", "val" and "test"."""


def make_split(
    image_set: ImageSet,
    source: str,
    fractions: list[float],
    seed: int,
    folds: int | None = None,
    fold: int | None = None,
) -> Split:
    """Split the set; no group (patient, volume, video) is ever in two parts. Deterministic in ``seed``.

    source: "files" (the data set's split files), "fractions", or "auto" (files if there are any). If the files name no
    validation images, part of train becomes val, in the ratio of ``fractions``.

    folds: the number of parts, as equal as whole groups allow, into which all images are divided (split files have no
    effect on them). Part ``fold`` is test; the others are divided into train and val in the ratio of ``fractions``.
    Raises UsageError.
    """
    declared = image_set.declared_split
    if source == "files" and declared is None:
        wrong = f"split.source=files: {image_set.location} has no split files (splits/train.txt, splits/test.txt)"
        raise UsageError(f"{wrong}; add them, or use split.source=fractions")
    everything = list(range(len(image_set.image_ids)))
    if folds is not None and fold is not None:
        parts = _cut(image_set, everything, [1 / folds] * folds, seed)
        if not all(parts):
            raise UsageError(
                f"split.folds={folds}: {image_set.location} has only {_units(image_set)} groups of images, and each "
                "fold needs one; use fewer folds"
            )
        rest = sorted(i for k, part in enumerate(parts) if k != fold for i in part)
        train, val = _cut_validation(image_set, rest, fractions, seed)
        split = {"train": train, "val": val, "test": parts[fold]}
    elif declared is None or source == "fractions":
        split = dict(zip(SPLITS, _cut(image_set, everything, fractions, seed), strict=True))
    else:
        split = {part: [i for i in everything if declared[image_set.image_ids[i]] == part] for part in SPLITS}
        _refuse_straddling(image_set, split)
        if not split["val"]:
            split["train"], split["val"] = _cut_validation(image_set, split["train"], fractions, seed)
    for part, indices in split.items():
        if not indices:
            amount = pluralize(len(image_set.image_ids), "image")
            amount += f" in {pluralize(_units(image_set), 'group')}" if any(image_set.group_ids) else ""
            wrong = f"the {part} split is empty: {image_set.location} has too few images ({amount})"
            raise UsageError(f"{wrong}; add images, or change split.fractions or the split files")
    return split


def _cut_validation(image_set: ImageSet, indices: list[int], fractions: list[float], seed: int) -> list[list[int]]:
    """``indices`` divided into train and val, in the ratio of ``fractions``."""
    train_share = fractions[0] / (fractions[0] + fractions[1])
    return _cut(image_set, indices, [train_share, 1 - train_share], seed)


def _cut(image_set: ImageSet, indices: list[int], fractions: list[float], seed: int) -> list[list[int]]:
    """Shuffle the groups and add each to the part that is missing most images of its share."""
    groups: dict[object, list[int]] = {}
    for index in indices:
        groups.setdefault(image_set.group_ids[index] or index, []).append(index)

    # Ranked by a hash, so that the rank of an image does not depend on the other images.
    def rank(group: list[int]) -> bytes:
        label = image_set.group_ids[group[0]] or image_set.image_ids[group[0]]
        return hashlib.sha256(f"{seed}/{label}".encode()).digest()

    parts: list[list[int]] = [[] for _ in fractions]
    wanted = [fraction * len(indices) for fraction in fractions]
    # Large groups first; the small ones then balance the parts.
    single = len(groups) == len(indices)
    order = sorted(groups.values(), key=lambda g: (0 if single else -len(g), rank(g)))
    for group in order:
        missing = [number - len(part) for number, part in zip(wanted, parts, strict=True)]
        parts[missing.index(max(missing))] += group
    return [sorted(p) for p in parts]


def _refuse_straddling(image_set: ImageSet, split: Split) -> None:
    home: dict[str, str] = {}
    for part, indices in split.items():
        for index in indices:
            group = image_set.group_ids[index]
            if group and home.setdefault(group, part) != part:
                raise UsageError(
                    f"group '{group}' is in both {home[group]} and {part} of the split files of {image_set.location}: "
                    "that would inflate test scores; correct the split files, or use split.source=fractions"
                )


def _units(image_set: ImageSet) -> int:
    """Number of groups; an image without one counts as a group."""
    return len({g or i for i, g in enumerate(image_set.group_ids)})


def split_sha(image_set: ImageSet, split: Split) -> str:
    """SHA-256 (hex) over the part and group of every image."""
    total = hashlib.sha256()
    for part in SPLITS:
        for index in split[part]:
            total.update(f"{part}\0{image_set.image_ids[index]}\0{image_set.group_ids[index]}\n".encode())
    return total.hexdigest()
