"""What was found in a data set, for the log, run.json and `segexp show`: a record, and the lines that show it."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from segexp.data.image_set import DatasetConfig, ImageSet
from segexp.records.formatting import pluralize

if TYPE_CHECKING:
    from segexp.data.check import PairFacts

MOST = 8
"""Sizes, kinds of files, values and names that are listed; the others are counted."""


def describe(
    image_set: ImageSet, facts: "PairFacts", config: DatasetConfig, split: Mapping[str, Sequence[int]]
) -> dict[str, Any]:
    """The record of the set: numbers of images, kinds of files, values, and shares of the pixels, of plain types.

    split: part -> indices; pixels and objects of classes are counted in each of its parts.
    """
    masks, unused = facts.class_pixels_NC, sorted(image_set.unused.items())
    reasons = Counter(reason for _, reason in unused)
    return {
        "location": image_set.location,
        "images": len(image_set.image_ids),
        "parts": {part: len(indices) for part, indices in split.items()},
        "groups": len(set(image_set.group_ids) - {""}),
        "cases": len(set(image_set.case_ids) - {""}),
        "sizes": _counts(f"{width}x{height}" for height, width in facts.sizes_N2.tolist()),
        "channels": image_set.channels,
        "channel_names": config.channel_names,
        "spacings": _spacings(image_set, config),
        "normalise": config.normalise,
        "dtypes": _counts(facts.dtypes_N),
        "image_kinds": _counts(facts.image_kinds_N),
        "mask_kinds": _counts(facts.mask_kinds_N),
        "orientations": {
            of: _counts(str(tag) for tag in facts.orientations_N2[:, column].tolist() if tag != 1)
            for column, of in enumerate(("images", "masks"))
        },
        "mask_coding": _coding(config),
        "mask_values": _shares(facts.mask_values),
        "class_names": config.class_names,
        "class_shares": {
            part: (masks[indices].sum(axis=0) / max(masks[indices].sum(), 1)).tolist()
            for part, indices in split.items()
        },
        "first_class": config.first_class,
        "empty_masks": int((masks[:, config.first_class :].sum(axis=1) == 0).sum()),
        "objects": facts.objects_NC.sum(axis=0).tolist(),
        "objects_gone": facts.gone_NC.sum(axis=0).tolist(),
        "image_size": config.image_size if config.fit == "resize" else None,
        "unused": {
            reason: {"files": number, "first": next(name for name, why in unused if why == reason)}
            for reason, number in reasons.most_common()
        },
    }


def _counts(values: Iterable[str]) -> dict[str, int]:
    """Value -> how often, the most frequent first; the rare ones together as "others"."""
    ordered = sorted(Counter(value for value in values if value).items(), key=lambda item: (-item[1], item[0]))
    rest = sum(number for _, number in ordered[MOST:])
    return dict(ordered[:MOST]) | ({"others": rest} if rest else {})


def _spacings(image_set: ImageSet, config: DatasetConfig) -> dict[str, int]:
    """Size of pixels and voxels in mm -> number of images, where known: the option's, else the files'."""
    if config.spacing:
        known: Sequence[Sequence[float] | None] = [config.spacing] * len(image_set.image_ids)
    else:
        known = image_set.spacings
    return _counts("x".join(f"{side:.4g}" for side in one if side) for one in known if one)


def _shares(pixels: Mapping[str, int]) -> dict[str, float]:
    total = max(sum(pixels.values()), 1)
    listed = list(pixels.items())
    rest = sum(number for _, number in listed[2 * MOST :])
    shares = {value: number / total for value, number in listed[: 2 * MOST]}
    return shares | ({f"{len(listed) - 2 * MOST} others": rest / total} if rest else {})


def _coding(config: DatasetConfig) -> str:
    """The coding of the masks and its options in words, "" for sets without mask files."""
    options = ("mask_threshold", "mask_values", "mask_colors", "ignore_index", "ignore_color", "mask_other", "regions")
    given = {option: getattr(config, option, None) for option in options}
    said = [f"{option}={value}" for option, value in given.items() if value not in (None, "refuse", [])]
    return ", ".join([getattr(config, "mask_coding", ""), *said]).strip(", ")


def data_lines(record: Mapping[str, Any]) -> list[str]:
    """The record of `describe` as a few lines of text."""
    counted = [pluralize(record["images"], "image")]
    counted += [f"{number} {part}" for part, number in record["parts"].items()]
    counted += [pluralize(record[f"{of}s"], of) for of in ("group", "case") if record[f"{of}s"]]
    names = f" ({', '.join(record['channel_names'])})" if record["channel_names"] else ""
    kinds, masks = record["image_kinds"] or record["dtypes"], []
    if record["mask_kinds"]:
        masks = [f"masks: {_listed(record['mask_kinds'], record['images'])}"]
    if record["mask_values"]:
        values = ", ".join(f"{value} ({_percent(share)})" for value, share in record["mask_values"].items())
        coding = f"; mask_coding {record['mask_coding']}" if record["mask_coding"] else ""
        masks.append(f"mask values: {values}{coding}")
    lines = [
        f"{', '.join(counted)}" + (f"; {record['location']}" if record["location"] else ""),
        f"sizes: {_listed(record['sizes'], record['images'])}; {pluralize(record['channels'], 'channel')}{names}",
        f"images: {_listed(kinds, record['images'])}",
        *masks,
    ]
    if spacings := record.get("spacings"):
        lines.append(f"spacing (mm, slices first): {_listed(spacings, record['images'])}")
    if record.get("normalise", "train") != "train":
        lines.append(f"normalise: {record['normalise']}")
    tagged = [f"{of} {_listed(tags)}" for of, tags in record["orientations"].items() if tags]
    lines += [f"orientation tags other than 1 (upright): {', '.join(tagged)}"] if tagged else []
    lines += _class_lines(record)
    lines += [
        f"not used: {pluralize(found['files'], 'file')}, {reason} (first: {found['first']})"
        for reason, found in record["unused"].items()
    ]
    return lines


def _class_lines(record: Mapping[str, Any]) -> list[str]:
    """Share of the pixels per class and part, and what resizing takes of them; of many the largest and the rarest."""
    lines, shares_of = [], record["class_shares"].values()
    classes = [*range(record.get("first_class", 1), len(record["objects"]))]
    left_out = len(classes) - MOST
    if left_out > 0:
        classes.sort(key=lambda c: -sum(of_C[c] for of_C in shares_of))
        del classes[MOST // 2 : -MOST // 2]
    for c in classes:
        if left_out > 0 and c == classes[MOST // 2]:
            lines.append(f"and {left_out} more; the rarest:")
        name = f" ({record['class_names'][c]})" if record["class_names"] else ""
        shares = ", ".join(f"{_percent(of_C[c])} {part}" for part, of_C in record["class_shares"].items())
        gone = f"{record['objects_gone'][c]} of {pluralize(record['objects'][c], 'object')} vanish at image_size"
        parts = [f"{shares} of the pixels"] * bool(shares) + [gone] * bool(record["objects_gone"][c])
        lines += [f"class {c}{name}: {'; '.join(parts)}"] * bool(parts)
    if record["empty_masks"]:
        lines.append(f"{pluralize(record['empty_masks'], 'mask')} without foreground")
    return lines


def _listed(counts: Mapping[str, int], total: int | None = None) -> str:
    """ "a (3), b (1)", or "a" if all are alike."""
    if len(counts) == 1 and sum(counts.values()) == total:
        return next(iter(counts))
    return ", ".join(f"{value} ({number})" for value, number in counts.items())


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
