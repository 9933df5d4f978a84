"""Data sets that are folders of files: which file is an image, which its mask and its part, said by path patterns.

A path pattern is a path below the root. ``{name}`` is a field: part of the name of one folder or file. ``{name:regex}``
limits it. ``*`` and ``?`` stand for any characters of one name, ``**`` for any folders. Image and masks belong together
where the fields that both patterns have are equal. The fields ``part`` and ``channel`` have a meaning of their own.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from segexp.data.file_set import (
    FOLDER,
    FilesConfig,
    Item,
    coding_of,
    files_of,
    folder_at,
    gone,
    groups_of,
    image_set_of,
    is_dicom,
    root_of,
    source_of,
    stem_of,
    unusable,
)
from segexp.data.image_set import SPLITS, ImageSet, PairsError, adapter
from segexp.data.lists import alike, composed, parts_in
from segexp.errors import UsageError, first_line
from segexp.records.formatting import pluralize
from segexp.records.user_tables import some
from segexp.registry import REQUIRED

DOWNLOADS = {"OxfordIIITPet": {"split": "trainval"}, "VOCSegmentation": {"year": "2012", "image_set": "trainval"}}
"""Data sets of torchvision that it downloads into the layout that a preset expects -> arguments of the class."""


@dataclass
class PatternConfig(FilesConfig):
    """Options of a data set of path patterns; values and explanations are in configs/dataset/pattern.yaml."""

    folder: str | None = REQUIRED
    images: str = REQUIRED
    masks: str = REQUIRED
    image_id: str = REQUIRED
    channel_files: list[str] | None = REQUIRED
    several_masks: Annotated[str, ("refuse", "unite")] = REQUIRED
    unpaired: Annotated[str, ("refuse", "leave_out")] = REQUIRED
    train: str | None = REQUIRED
    val: str | None = REQUIRED
    test: str | None = REQUIRED
    group_pattern: str | None = REQUIRED
    group_file: str | None = REQUIRED
    group_column: str | None = REQUIRED
    group_key: str = REQUIRED
    torchvision: Annotated[str, ("none", *DOWNLOADS)] = REQUIRED

    @property
    def lists(self) -> dict[str, str]:
        """Part -> the list that names its images; empty where the field ``part`` does."""
        given = {part: getattr(self, part) for part in SPLITS}
        return {} if self.in_folders else {part: path for part, path in given.items() if path}

    @property
    def names_groups(self) -> str:
        found = pattern_of_groups(self.images)
        example = f", as in 'dataset.group_pattern=\"{found}\"'," if found else ""
        return f"dataset.group_pattern{example} or dataset.group_file"

    @property
    def in_folders(self) -> bool:
        """Whether the field ``part`` says which part an image belongs to."""
        return bool(re.search(r"\{part[:}]", self.images))


def pattern_of_groups(images: str) -> str:
    """The ``group_pattern`` that finds the first folder whose name a path pattern leaves open, "" without one."""
    *folders, _ = images.split("/")
    depth = next((n for n, folder in enumerate(folders) if re.search(r"[{*]", folder)), None)
    if depth is None or folders[depth].startswith("**"):
        return ""
    return "^" + ("[^/]+/" * depth + "([^/]+)" if depth else "[^/]+")


@adapter("pattern", PatternConfig)
def open_pattern(config: PatternConfig) -> ImageSet:
    """Folders of any layout: images, masks, groups and parts found by path patterns.

    image_HWC: as the files, or one channel per file of ``channel_files``. Volumes and, with ``dataset.pages=slices``,
    files of several pages give one image per slice. Decodes no pixels. Raises UsageError.
    """
    coding_of(config)
    root = root_of(config)
    patterns = patterns_of(config)
    base = _base(root, config)
    if config.download and not (base.is_dir() and _search(base, patterns).images):
        _download(root, config)
        base = _base(root, config)
    found = _search(base, patterns)
    if not (found.images and found.masks):
        raise UsageError(_missing(config, base, "masks" if found.images else "images"))
    notes: list[str] = []
    items = _paired(config, base, found)
    items, declared = _in_parts(config, base, items, found, notes)
    refusals, paired = _refusals(config, base, items, found), _with_masks(config, base, items, found, notes)
    items = _grouped(config, base, paired, notes)
    tables = {*config.lists.values(), config.group_file}
    unused = {name: found.unused[name] for name in sorted(found.unused.keys() - tables)}
    return image_set_of(config, root, items, declared=declared, notes=notes, unused=unused, refusals=refusals)


@dataclass(frozen=True)
class PathPattern:
    """A path pattern of the option ``dataset.<option>``. limits: field -> the regular expression of its text."""

    option: str
    regex: re.Pattern[str]
    limits: Mapping[str, str]


def patterns_of(config: PatternConfig) -> tuple[PathPattern, PathPattern]:
    """The patterns of masks and images; a field has the same limits in both. Raises UsageError."""
    images = compiled("images", composed(config.images), {})
    masks = compiled("masks", composed(config.masks), images.limits)
    if not masks.limits.keys() & images.limits.keys() - {"channel"}:
        raise UsageError("dataset.images and dataset.masks have no field in common; write {id} in both")
    return masks, images


def compiled(option: str, text: str, inherited: Mapping[str, str]) -> PathPattern:
    """A path pattern. inherited: limits of fields that do not state any. Raises UsageError."""
    wrong = f"dataset.{option}={text}"
    if text.startswith(("/", "~")) or ".." in text.split("/"):
        raise UsageError(
            f"{wrong}: a path pattern begins in dataset.root; set dataset.root to a folder above the files"
        )
    regex, limits, at = "", dict[str, str](), 0
    wild = {"**/": "(?:[^/]+/)*", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    while at < len(text):
        if text[at] != "{":
            token = next((token for token in wild if text.startswith(token, at)), text[at])
            regex += wild.get(token, re.escape(token))
            at += len(token)
            continue
        # A limit may hold braces of its own, as in {id:[0-9]{3}}.
        depths = (text.count("{", at, n) - text.count("}", at, n) for n in range(at + 1, len(text) + 1))
        end = next((at + n for n, depth in enumerate(depths, 1) if depth == 0), 0)
        name, _, limit = text[at + 1 : end - 1].partition(":")
        if not name.isidentifier():
            raise UsageError(f"{wrong}: a field is written {{id}} or {{id:[0-9]+}}, with a closed brace")
        if name in limits:
            regex += f"(?P={name})"
        else:
            limits[name] = limit or inherited.get(name, "[^/]+?")
            regex += f"(?P<{name}>{limits[name]})"
        at = end
    return PathPattern(option, regex_of(wrong, regex), limits)


def regex_of(wrong: str, text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise UsageError(f"{wrong}: not a regular expression ({error})") from None


def _base(root: Path, config: PatternConfig) -> Path:
    """The folder that paths are relative to: ``folder`` below the root where there is one, else the root."""
    inner = folder_at(root, config.folder or ".", "folder")
    return inner if inner.is_dir() else root


def _download(root: Path, config: PatternConfig) -> None:
    import torchvision.datasets

    name = config.torchvision
    try:
        root.mkdir(parents=True, exist_ok=True)
        getattr(torchvision.datasets, name)(str(root), download=True, **DOWNLOADS[name])
    except (OSError, RuntimeError) as error:
        cure = f"{source_of(config)} and put them into {root}"
        raise UsageError(f"dataset.download=true: {first_line(error)}; {cure}") from error


def _missing(config: PatternConfig, base: Path, option: str) -> str:
    """The line about a data set that is not where the options say."""
    inside = sorted(path.name for path in base.iterdir() if not path.name.startswith("."))
    holds = f"it holds {some(inside)}" if inside else "it is empty"
    get = source_of(config) or "correct dataset.images, dataset.masks"
    within = f" or in its folder {config.folder}" if config.folder else ""
    layout = ", ".join([config.images, config.masks, *config.lists.values()])
    return f"no {option} in {base} ({holds}); {get}; expected in dataset.root{within}: {layout}"


@dataclass(frozen=True)
class Found:
    """Files below the base, by path relative to it -> the fields of images and masks; masks without an image;
    why others are not used."""

    images: dict[str, dict[str, str]]
    masks: dict[str, dict[str, str]]
    orphans: list[str]
    unused: dict[str, str]


def _search(base: Path, patterns: Sequence[PathPattern]) -> Found:
    """Every file below ``base``. A file that fits both patterns is a mask: its pattern is the narrower one."""
    found = Found({}, {}, [], {})
    for path in _walk(base, patterns):
        name = path.relative_to(base).as_posix()
        fits = [(pattern, match) for pattern in patterns if (match := pattern.regex.fullmatch(composed(name)))]
        wrong = unusable(path, open_ended=any(pattern.regex.pattern[-1] in "*?)" for pattern, _ in fits))
        if wrong == FOLDER:
            wrong = "" if any(map(is_dicom, files_of(path))) else "a folder that was read before"
        if fits and not wrong:
            pattern, match = fits[0]
            getattr(found, pattern.option)[name] = match.groupdict()
        else:
            found.unused[name] = wrong or gone(path) or "fits neither dataset.images nor dataset.masks"
    return found


def _walk(base: Path, patterns: Sequence[PathPattern]) -> Iterator[Path]:
    """Every file below ``base``, through symbolic links; each folder is read once, hidden ones not at all.

    A folder that fits a pattern and holds DICOM files is yielded itself, as the series that it is.
    """
    seen: set[str] = set()

    def refuse(error: OSError) -> None:
        raise UsageError(f"{error.filename} cannot be read ({error.strerror}); check its permissions") from None

    for place, folders, files in os.walk(base, followlinks=True, onerror=refuse):
        folder, real = Path(place), os.path.realpath(place)
        name = folder.relative_to(base).as_posix()
        fits = any(pattern.regex.fullmatch(composed(name)) for pattern in patterns)
        if real in seen or (fits and any(map(is_dicom, files_of(folder)))):
            folders.clear()
            yield folder
            continue
        seen.add(real)
        hidden = [inner for inner in folders if inner.startswith(".")]
        folders[:] = sorted(set(folders) - set(hidden))
        yield from (folder / inner for inner in sorted([*files, *hidden]))


def _formatted(config: PatternConfig, fields: Mapping[str, str]) -> str:
    """The image id that fields give."""
    if not {*re.findall(r"{(\w*)}", config.image_id)} <= fields.keys():
        known = ", ".join(f"{{{name}}}" for name in fields)
        raise UsageError(f"dataset.image_id={config.image_id} is made of fields of dataset.images: {known}")
    return re.sub(r"{(\w+)}", lambda field: fields[field[1]], config.image_id)


def _paired(config: PatternConfig, base: Path, found: Found) -> list[Item]:
    """An item for each image, with its files and its masks, if any; ``split`` is the field ``part``."""
    masks: dict[tuple[str, ...], list[str]] = {}
    common = sorted({*next(iter(found.images.values()))} & {*next(iter(found.masks.values()))} - {"channel"})
    for name in sorted(found.masks):
        masks.setdefault(tuple(found.masks[name][field] for field in common), []).append(name)
    files: dict[str, dict[str, str]] = {}
    keys: dict[str, tuple[str, ...]] = {}
    for name in sorted(found.images):
        fields = found.images[name]
        image_id, channel, key = _formatted(config, fields), fields.get("channel", ""), tuple(fields[f] for f in common)
        if config.channel_files and channel not in config.channel_files:
            found.unused[name] = f"channel {channel} is not in dataset.channel_files"
        elif files.setdefault(image_id, {}).setdefault(channel, name) != name or keys.setdefault(image_id, key) != key:
            first = next(iter(files[image_id].values()))
            cure = _telling_apart(config, base, found, first, name)
            raise UsageError(f"{first} and {name} in {base} have the same image id '{image_id}'; {cure}")
    order = config.channel_files or sorted({channel for of_image in files.values() for channel in of_image})
    lacking = [f"image {i} has no {channel}" for i, of in files.items() for channel in order if channel not in of]
    if lacking:
        cure = "add the files, or list in dataset.channel_files the channels that every image has"
        raise UsageError(f"{pluralize(len(lacking), 'channel')} missing in {base}: {some(lacking)}; {cure}")
    items = []
    for image_id, of_image in files.items():
        of_key, names = masks.pop(keys[image_id], []), [of_image[channel] for channel in order]
        if len(of_key) > 1 and config.several_masks == "refuse":
            cure = "dataset.several_masks=unite unites their foreground, or make dataset.masks narrower"
            raise UsageError(f"image {image_id} in {base} has {len(of_key)} masks ({some(of_key)}); {cure}")
        image_files, mask_files = (tuple(base / name for name in group) for group in (names, of_key))
        items.append(Item(image_id, image_files, mask_files, split=found.images[names[0]].get("part", "")))
    found.orphans.extend(name for of_key in masks.values() for name in of_key)
    return items


def _telling_apart(config: PatternConfig, base: Path, found: Found, first: str, name: str) -> str:
    """How two files may be different images, or one."""
    folder = config.images.rpartition("/")[0]
    if "{" in folder and is_dicom(base / first):
        return f"'dataset.images=\"{folder}\"' reads a folder of DICOM files as one volume"
    one, other = found.images[first], found.images[name]
    fields = [field for field in one if one[field] != other[field] and field != "channel"]
    longer = "_".join([*(f"{{{field}}}" for field in fields or ["folder"]), config.image_id])
    field = "" if fields else "make a field of what differs, as {folder}, and "
    return f"{field}set 'dataset.image_id=\"{longer}\"'"


def _in_parts(
    config: PatternConfig, base: Path, items: list[Item], found: Found, notes: list[str]
) -> tuple[list[Item], bool]:
    """The images that are in a part, and whether that divides the data set: by the field ``part``, or by lists."""
    if config.lists:
        part_of, why = _parts(config, base, {item.image_id for item in items}), "in no list"
    elif config.in_folders:
        names = {getattr(config, part) or part: part for part in SPLITS}
        part_of = {item.image_id: names[item.split] for item in items if item.split in names}
        why = f"not in {', '.join(names)}"
    else:
        return items, False
    kept = [replace(item, split=part_of[item.image_id]) for item in items if item.image_id in part_of]
    others = [item for item in items if item.image_id not in part_of]
    _leave_out(base, others, why, found, notes)
    if not kept:
        raise UsageError(f"every image of {base} is left out ({why}); correct dataset.train, dataset.val, dataset.test")
    lacking = [part for part in ("train", "test") if part not in part_of.values()]
    if lacking:
        notes.append(f"no {' and no '.join(lacking)} images in {base}: split.fractions divides those that there are")
    return kept, not lacking


def _leave_out(base: Path, items: Sequence[Item], why: str, found: Found, notes: list[str]) -> None:
    files = [path for item in items for path in (*item.images, *item.masks)]
    found.unused.update({path.relative_to(base).as_posix(): why for path in files})
    if items:
        notes.append(f"{pluralize(len(items), 'image')} of {base} not used: {why}")


def _parts(config: PatternConfig, base: Path, image_ids: set[str]) -> dict[str, str]:
    """Image id -> part, from the lists. Raises UsageError."""
    lists = {part: folder_at(base, given, part) for part, given in config.lists.items()}
    for part, path in lists.items():
        if not path.is_file():
            raise UsageError(f"no list {path}; correct dataset.{part}, or set it to null")
    options = ", ".join(f"dataset.{part}=null" for part in lists)
    return parts_in(
        lists, image_ids, lambda entry: _entry_id(entry, config, image_ids), f"do without lists ({options})"
    )


def _entry_id(entry: str, config: PatternConfig, image_ids: set[str]) -> str:
    """The image that an entry of a list names by id, path or file name, whether or not further columns follow."""
    regex = patterns_of(config)[1].regex
    for word in map(composed, (entry, *entry.split()[:1])):
        text = word.replace("\\", "/").removeprefix("./")
        match = regex.fullmatch(text)
        readings = [word, _formatted(config, match.groupdict()) if match else "", stem_of(Path(text))]
        for image_id in readings:
            if image_id in image_ids:
                return image_id
    return entry


def _refusals(config: PatternConfig, base: Path, items: list[Item], found: Found) -> list[PairsError]:
    """The error about images or masks without partner that may not be left out, if any."""
    unpaired = {item.image_id: f"image {item.image_id} has no mask" for item in items if not item.masks}
    unpaired |= {name: f"mask {name} has no image" for name in ([] if config.lists else found.orphans)}
    if not unpaired or config.unpaired != "refuse":
        return []
    cure = "add the files, correct dataset.images and dataset.masks, or set dataset.unpaired=leave_out"
    message = f"{len(unpaired)} unpaired files in {base}: {some([*unpaired.values()])}; {cure}"
    return [PairsError.about(message, unpaired)]


def _with_masks(config: PatternConfig, base: Path, items: list[Item], found: Found, notes: list[str]) -> list[Item]:
    """The images that have masks; files without partner become unused ones."""
    found.unused.update(dict.fromkeys(found.orphans, "in no list" if config.lists else "has no image"))
    bare = [item for item in items if not item.masks]
    _leave_out(base, bare, "has no mask", found, notes)
    return [item for item in items if item.masks]


def _grouped(config: PatternConfig, base: Path, items: list[Item], notes: list[str]) -> list[Item]:
    """The items with their groups: what ``group_pattern`` finds in the path, or the group file says."""
    if config.group_pattern and (config.group_file, config.group_column) != (None, None):
        raise UsageError("dataset.group_pattern and dataset.group_file both name groups; set one of them to null")
    ids = tuple(item.image_id for item in items)
    known = {*ids}
    if config.group_pattern:
        regex = regex_of(f"dataset.group_pattern={config.group_pattern}", config.group_pattern)
        groups = tuple(group_of(regex, composed(item.images[0].relative_to(base).as_posix())) for item in items)
        notes += alike(groups)
    else:
        groups, doubtful = groups_of(config, base, ids, lambda entry: _entry_id(entry, config, known))
        notes += doubtful
    return [replace(item, group=group) for item, group in zip(items, groups, strict=True)]


def group_of(regex: re.Pattern[str], name: str) -> str:
    """What ``group_pattern`` finds in a path: its first group in parentheses, or all that it matches."""
    match = regex.search(name)
    group = (match[1] if regex.groups else match[0]) if match else ""
    if not group:
        raise UsageError(f"dataset.group_pattern={regex.pattern} finds no group in {name}; each image needs one")
    return group
