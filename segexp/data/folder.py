"""Your own images: a folder of images and a folder of masks, paired by file name without extension."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path

from segexp.data.file_set import (
    EXTENSIONS,
    FOLDER,
    HIDDEN,
    FilesConfig,
    Item,
    coding_of,
    files_of,
    folder_at,
    groups_of,
    image_set_of,
    is_dicom,
    root_of,
    shown,
    stem_of,
    unusable,
)
from segexp.data.image_set import SPLITS, ImageSet, PairsError, adapter
from segexp.data.lists import composed, parts_in, spelling
from segexp.data.pattern import pattern_of_groups
from segexp.errors import UsageError
from segexp.records.formatting import pluralize
from segexp.records.user_tables import some
from segexp.registry import REQUIRED


@dataclass
class FolderConfig(FilesConfig):
    """Options of a folder of images; values and explanations are in configs/dataset/folder.yaml."""

    images: str = REQUIRED
    masks: str = REQUIRED
    image_suffix: str = REQUIRED
    mask_suffix: str = REQUIRED
    split_dir: str | None = REQUIRED
    group_file: str | None = REQUIRED
    group_column: str | None = REQUIRED
    group_key: str = REQUIRED


@adapter("folder", FolderConfig)
def open_folder(config: FolderConfig) -> ImageSet:
    """Your own images and masks in two folders, paired by file name.

    An image id is the file name without extension and ``image_suffix``. If there are split files, the set consists of
    the images they list. Decodes no pixels. Raises UsageError for unusable folders, options, pairs, splits or groups.
    """
    coding_of(config)
    root = root_of(config)
    unused: dict[str, str] = {}
    image_files, mask_files, notes = _image_and_mask_files(root, config, unused)

    declared_split = _declared_split(root, config, image_files)
    image_ids = tuple(sorted(image_files if declared_split is None else declared_split))
    orphans = sorted(set(mask_files) - set(image_files)) if declared_split is None else []
    stems = {stem_of(mask_files[name]) for name in orphans}
    refusals = _without_partner(root, [name for name in image_ids if name not in mask_files], orphans, stems)
    unlisted = len(image_files) - len(image_ids)
    if unlisted:
        notes.append(
            f"not used, in no split file: {pluralize(unlisted, 'image')}; dataset.split_dir=null uses all images"
        )
        left_out = [files[name] for files in (image_files, mask_files) for name in files.keys() - {*image_ids}]
        unused |= {shown(root, path): "in no split file" for path in left_out}
    image_ids = tuple(name for name in image_ids if name in mask_files)
    group_ids, doubtful = groups_of(config, root, image_ids, lambda entry: _image_id(entry, config.image_suffix))
    notes += doubtful
    parts = declared_split or {}
    items = [
        Item(name, (image_files[name],), (mask_files[name],), group, parts.get(name, ""))
        for name, group in zip(image_ids, group_ids, strict=True)
    ]
    declared = declared_split is not None
    return image_set_of(config, root, items, declared=declared, notes=notes, unused=unused, refusals=refusals)


def _image_and_mask_files(
    root: Path, config: FolderConfig, unused: dict[str, str]
) -> tuple[dict[str, Path], dict[str, Path], list[str]]:
    """Files by image id, and notes; in a shared folder, masks are the files that end in ``mask_suffix``.

    Other files are added to ``unused`` with the reason."""
    notes: list[str] = []
    images, masks = (_list_files(root, config, option, notes, unused) for option in ("images", "masks"))
    if folder_at(root, config.images, "images") == folder_at(root, config.masks, "masks"):
        if not config.mask_suffix:
            raise UsageError("dataset.images and dataset.masks are the same folder; set dataset.mask_suffix")
        images = [path for path in masks if not stem_of(path).endswith(config.mask_suffix)]
        masks = [path for path in masks if stem_of(path).endswith(config.mask_suffix)]
    image_files, mask_files = _by_name(images, config.image_suffix), _by_name(masks, config.mask_suffix)
    spelled = spelling(image_files)
    return image_files, {spelled(name): path for name, path in mask_files.items()}, list(dict.fromkeys(notes))


def _list_files(root: Path, config: FolderConfig, option: str, notes: list[str], unused: dict[str, str]) -> list[Path]:
    """The image files of a folder; what else lies there, and no option names, is added to ``notes`` and ``unused``."""
    named = {other: getattr(config, other) for other in ("images", "masks", "split_dir", "group_file")}
    known = {other: folder_at(root, given, other) for other, given in named.items() if given is not None}
    folder = known[option]
    if not folder.is_dir():
        raise UsageError(f"no folder {folder}; {_instead(root, option)}")
    why = {path: unusable(path) for path in sorted(folder.iterdir()) if path not in known.values()}
    files = [path for path, wrong in why.items() if not wrong]
    folders = [path.name for path, wrong in why.items() if wrong == FOLDER]
    others = [path for path, wrong in why.items() if wrong not in ("", HIDDEN, FOLDER)]
    inside = f"{pluralize(len(folders), 'folder')} in {folder} ({some(folders)}) not looked into"
    if folders:
        places = {of: known[of] / folders[0] for of in ("images", "masks") if known[of].is_relative_to(root)}
        advice = _as_pattern(root, folders[0], places) if option in places and _first(places[option])[1] else ""
        ways = ["move the files up"] * bool(files or not advice) + [f"use {advice}"] * bool(advice)
        inside += f": {', or '.join(ways)}"
    if not files:
        flat = f"{inside}; " if folders else ""
        raise UsageError(f"no {option} found in {folder}; {flat}supported files: {', '.join(EXTENSIONS)}")
    unused |= {shown(root, path): wrong for path, wrong in why.items() if wrong}
    if folders:
        notes.append(inside)
    if others:
        endings = some(sorted({path.suffix or path.name for path in others}))
        notes.append(f"{pluralize(len(others), 'file')} in {folder} with other endings ({endings}) left out")
    return files


def _instead(root: Path, option: str) -> str:
    """The end of an error line: the content of ``root``, and how to correct the missing folder."""
    inside = sorted(root.iterdir())
    folders = [path.name for path in inside if path.is_dir() and not path.name.startswith(".")]
    files = sum(path.name.lower().endswith(EXTENSIONS) for path in inside)
    if "imagesTr" in folders:
        return f"{root} has nnU-Net's layout: use dataset=nnunet"
    if any((root / folder / "imagesTr").is_dir() for folder in folders):
        return f"the folders in {root} have nnU-Net's layout: use dataset=nnunet with dataset.root={root}/NAME"
    if patient := next((folder for folder in folders if (root / folder / "images").is_dir()), ""):
        places = {of: root / patient / of for of in ("images", "masks")}
        cure = "if each is a data set, set dataset.root to one of them; if each is a patient, use "
        cure += _as_pattern(root, patient, places)
        return f"the folders in {root} ({patient} ...) have images and masks of their own: {cure}"
    if folders:
        more = f" and {len(folders) - 12} more" if len(folders) > 12 else ""
        cure = f"set dataset.{option}=NAME"
        if len(folders) > 2 and all(_first(root / folder)[1] for folder in folders):
            advice = _as_pattern(root, folders[0], {"images": root / folders[0]})
            cure += f", or if each is a patient, use {advice}, with dataset.masks likewise"
        return f"{root} contains {', '.join(folders[:12])}{more}; {cure}"
    if files:
        return f"{root} itself contains {pluralize(files, 'image file')}; put images and masks into separate folders"
    return f"{root} contains no folders; check dataset.root"


def _as_pattern(root: Path, patient: str, places: Mapping[str, Path]) -> str:
    """dataset=pattern with the options that read folders like these, as far as their files show.

    patient: the name among those of a path that stands for the patient. places: option -> folder of a patient's files.
    """
    series = {option for option, place in places.items() if _holds_dicom(place)}
    series = series if "images" in series else set()
    firsts = {option: first for option, place in places.items() if (first := _first(place))[1]}
    names = _names([stem for stem, _ in firsts.values()])
    words = ["dataset=pattern"]
    for (option, (_, ending)), name in zip(firsts.items(), names, strict=True):
        held = ["{patient}" if part == patient else part for part in places[option].relative_to(root).parts]
        path = "/".join(held if option in series else [*held, ("*" if series else name) + ending])
        found = {option: path.replace("{patient}", "{id}") if series else path}
        if option == "images" and not series:
            image_id = "{patient}_{id}" if "{id}" in name else "{patient}"
            found |= {"image_id": image_id, "group_pattern": pattern_of_groups(path)}
        words += [f"'dataset.{key}=\"{text}\"'" for key, text in found.items()]
    return " ".join(words) + " (a folder of DICOM files is read as one volume)" * bool(series)


def _names(stems: Sequence[str]) -> list[str]:
    """Patterns of the names of images and masks, from the first one of each (or of one of them alone): {id} stands for
    what these share, if it is a whole name or has a number; otherwise * for any name."""
    a, b, size = SequenceMatcher(None, stems[0], stems[-1], autojunk=False).find_longest_match()
    common = stems[0][a : a + size]
    shared = common.strip("-_. ")
    if not (shared in stems or re.search(r"\d", shared)):
        return ["*"] * len(stems)
    begin = common.index(shared)
    starts = zip(stems, (a + begin, b + begin), strict=False)
    return [f"{stem[:start]}{{id}}{stem[start + len(shared) :]}" for stem, start in starts]


def _holds_dicom(folder: Path) -> bool:
    return folder.is_dir() and any(map(is_dicom, files_of(folder)[:3]))


def _first(folder: Path) -> tuple[str, str]:
    """Stem and ending of the first image file of a folder, "" and "" without one."""
    files = files_of(folder) if folder.is_dir() else ()
    known = ((stem_of(path), path.name[len(stem_of(path)) :]) for path in files if not unusable(path))
    return next(known, ("", ".dcm" if _holds_dicom(folder) else ""))


def _by_name(paths: Iterable[Path], suffix: str) -> dict[str, Path]:
    by_name: dict[str, Path] = {}
    first: dict[str, Path] = {}
    for path in sorted(paths):
        name = stem_of(path).removesuffix(suffix)
        if (other := first.setdefault(composed(name), path)) is not path:
            raise UsageError(
                f"{other.name} and {path.name} in {path.parent} have the same image id '{name}'; rename or "
                "remove one of them"
            )
        by_name[name] = path
    return by_name


def _without_partner(
    root: Path, without_mask: list[str], without_image: list[str], stems: set[str]
) -> list[PairsError]:
    """The error about images or masks without partner, if any. stems: of the files of the masks that have no image."""
    unpaired = {name: f"image {name} has no mask" for name in without_mask}
    unpaired |= {name: f"mask {name} has no image" for name in without_image}
    if unpaired:
        cure = "name both files alike, or set dataset.image_suffix and dataset.mask_suffix, or remove the files"
        first = without_mask[0] if without_mask else ""
        for ending in (stem.removeprefix(first) for stem in stems if first and stem.startswith(first)):
            if {name + ending for name in without_mask} == stems and re.fullmatch(r"[\w-]+", ending):
                cure = f"set dataset.mask_suffix={ending}"
        message = f"{len(unpaired)} unpaired files in {root}: {some([*unpaired.values()])}; {cure}"
        return [PairsError.about(message, unpaired)]
    return []


def _image_id(entry: str, image_suffix: str) -> str:
    """The image id of an entry of a list: a file name with or without extension and suffix."""
    path = Path(entry)
    stem = entry[: len(stem_of(path)) - len(path.name)] if path.name.lower().endswith(EXTENSIONS) else entry
    return stem.removesuffix(image_suffix)


def _declared_split(root: Path, config: FolderConfig, image_files: dict[str, Path]) -> dict[str, str] | None:
    """Image id -> "train", "val" or "test" for every listed image; None if there are no split files."""
    if config.split_dir is None:
        return None
    folder = folder_at(root, config.split_dir, "split_dir")
    present = [split for split in SPLITS if (folder / f"{split}.txt").is_file()]
    if not present and config.split_dir != "splits":  # the default may be missing, what somebody typed may not
        needed = "train.txt, val.txt (optional) and test.txt"
        raise UsageError(f"no split files in {folder}: put {needed} there, or set dataset.split_dir=null to do without")
    if not present:
        return None
    cure = f"dataset.split_dir=null ignores the files in {folder}"
    for split in ("train", "test"):
        if split not in present:
            raise UsageError(f"{folder} contains {present[0]}.txt but no {split}.txt; add it, or {cure}")
    files = {split: folder / f"{split}.txt" for split in present}
    return parts_in(files, image_files, lambda entry: _image_id(entry, config.image_suffix), cure)
