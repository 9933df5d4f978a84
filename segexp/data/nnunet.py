"""Data sets in the raw layout of nnU-Net, and of the Medical Segmentation Decathlon from which it stems.

dataset.json, imagesTr/CASE_0000.nii.gz (a file for each channel) and labelsTr/CASE.nii.gz; imagesTs and labelsTs for a
test part. The Decathlon has all channels in one file, imagesTr/CASE.nii.gz. Layout and keys of dataset.json:
https://github.com/MIC-DKFZ/nnUNet/blob/master/documentation/dataset_format.md, region_based_training.md and
ignore_label.md there, and http://medicaldecathlon.com.
"""

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segexp.data.file_set import FilesConfig, Item, beside, image_set_of, root_of, source_of
from segexp.data.image_set import ImageError, ImageSet, PairsError, adapter
from segexp.data.lists import composed
from segexp.data.pattern import group_of, regex_of
from segexp.errors import UsageError
from segexp.records.formatting import pluralize
from segexp.records.user_tables import some
from segexp.registry import REQUIRED

PARTS = {"Tr": "train", "Ts": "test"}


@dataclass
class NnUNetConfig(FilesConfig):
    """Options of a data set in nnU-Net's layout; values and explanations are in configs/dataset/nnunet.yaml."""

    group_pattern: str | None = REQUIRED

    @property
    def names_groups(self) -> str:
        return "dataset.group_pattern"


def _complete(config: NnUNetConfig) -> NnUNetConfig:
    """Classes, channels and the ignored label from dataset.json, where the options leave them open."""
    if config.root == REQUIRED:  # what is missing is reported with the other options
        return config
    path = root_of(config) / "dataset.json"
    described = _described(config, path)
    labels, ignored = _labels(path, described)
    names, regions = [str(name) for name in _channels(path, described)], config.regions
    if regions is None and any(len(of) > 1 for of in labels.values()):
        regions = [",".join(map(str, of)) for of in labels.values() if of != [0]]
    changes: dict[str, Any] = {"num_classes": len(regions) + 1 if regions else len(labels), "regions": regions}
    values = [of[0] for of in labels.values()]
    if not regions and values != list(range(len(values))):
        changes |= {"mask_coding": "values", "mask_values": values}
    licence = described.get("licence", described.get("license"))
    open_ones = {"channels": len(names), "channel_names": names, "class_names": list(labels), "ignore_index": ignored}
    open_ones |= {"licence": licence if isinstance(licence, str) else None}
    changes |= {key: value for key, value in open_ones.items() if getattr(config, key) is None}
    return dataclasses.replace(config, **changes)


@adapter("nnunet", NnUNetConfig, complete=_complete)
def open_nnunet(config: NnUNetConfig) -> ImageSet:
    """The raw layout of nnU-Net (dataset.json, imagesTr, labelsTr), and tasks of the Medical Segmentation Decathlon.

    Every slice of a volume is an image CASE_z000, its case is CASE. A volume is a group of its own unless
    ``group_pattern`` finds the patient in its name. Cases with labels in labelsTs are the declared test part. Decodes
    no pixels. Raises UsageError for a set with missing files, and what `image_set_of` raises.
    """
    root = root_of(config)
    described = _described(config, root / "dataset.json")
    ending, channels = str(described.get("file_ending", ".nii.gz")), len(_channels(root / "dataset.json", described))
    unused: dict[str, str] = {}
    refusals: list[PairsError] = []
    cases = {part: _cases(root, part, ending, channels, unused, refusals) for part in PARTS}
    if not cases["Tr"] and not refusals:
        raise UsageError(f"no labels *{ending} in {root / 'labelsTr'}; {_layout(config)}")
    twice = sorted(cases["Tr"].keys() & cases["Ts"].keys())
    if twice:
        raise UsageError(f"{root}: case {twice[0]} is in labelsTr and in labelsTs; rename or remove one")
    patient = None if config.group_pattern is None else regex_of("dataset.group_pattern", config.group_pattern)
    items: list[Item] = []
    for part, of in cases.items():
        for case, (images, mask) in of.items():
            if len(images) == 1:
                _check_channels(images[0], config, channels)
            group = "" if patient is None else group_of(patient, case)  # slices of a case stay together
            items.append(Item(case, images, (mask,), group, PARTS[part]))
    notes, stated = [], described.get("numTraining")
    if stated not in (None, len(cases["Tr"])):
        found = pluralize(len(cases["Tr"]), "case")
        notes.append(f"{root / 'dataset.json'} says numTraining={stated}, but there are {found}")
    layout = [
        root / name for name in ("dataset.json", *(f"{of}{part}" for of in ("images", "labels") for part in PARTS))
    ]
    others = beside(layout, [root], "in none of the folders of the layout")
    unused |= {path.name: why for path, why in others.items()}
    if (root / "splits_final.json").is_file():
        unused["splits_final.json"] = "its folds name no test images; split.folds divides the cases"
    return image_set_of(config, root, items, declared=bool(cases["Ts"]), notes=notes, unused=unused, refusals=refusals)


def _layout(config: NnUNetConfig) -> str:
    """The end of an error line about a data set that is not there."""
    names = "dataset.json, imagesTr/CASE_0000.nii.gz (or CASE.nii.gz with all channels), labelsTr/CASE.nii.gz"
    return f"{source_of(config) or 'correct dataset.root'}; expected in dataset.root: {names}"


def _described(config: NnUNetConfig, path: Path) -> dict[str, Any]:
    """dataset.json. Raises UsageError."""
    if not path.is_file():
        raise UsageError(f"no file {path}; {_layout(config)}")
    try:
        described = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_unrepeated)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not JSON ({error}); correct it") from None
    if not isinstance(described, dict):
        raise UsageError(f"{path} does not hold names and values; see nnU-Net's dataset_format.md")
    return described


def _unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of a JSON file. Raises ValueError for a repeated name, of which json keeps the last."""
    if twice := [name for name, times in Counter(name for name, _ in pairs).items() if times > 1]:
        raise ValueError(f'"{twice[0]}" more than once')
    return dict(pairs)


def _channels(path: Path, described: Mapping[str, Any]) -> list[Any]:
    """Names of the channels: "channel_names", called "modality" by the Decathlon and by nnU-Net 1."""
    named = described.get("channel_names", described.get("modality"))
    if not isinstance(named, dict) or not named or sorted(named) != sorted(map(str, range(len(named)))):
        raise UsageError(f'{path}: "channel_names" must name channel "0", "1", ... as {{"0": "T2", "1": "ADC"}}')
    return [named[str(channel)] for channel in range(len(named))]


def _labels(path: Path, described: Mapping[str, Any]) -> tuple[dict[str, list[int]], int | None]:
    """Name of each class, background first -> its values in the label files; and the value that is ignored.

    nnU-Net writes {name: value, or values of a region}; the Decathlon and nnU-Net 1 {value: name}.
    """
    named = described.get("labels")
    try:
        if not isinstance(named, dict):
            raise TypeError
        if any(isinstance(value, str) for value in named.values()):
            if twice := [name for name, times in Counter(named.values()).items() if times > 1]:
                raise UsageError(f'{path}: "labels" has two values called {twice[0]}; give each its own name')
            named = {str(name): int(value) for value, name in named.items()}
        found = {name: of if isinstance(of, list) else [of] for name, of in named.items()}
        if any(value != int(value) for of in found.values() for value in of):
            raise ValueError
        found = {name: [int(value) for value in of] for name, of in found.items()}
        ignored = found.pop("ignore", None)
        if any(not 0 <= value < 2**16 for of in found.values() for value in of) or not all(found.values()):
            raise ValueError
        if ignored is not None and len(ignored) != 1:
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        wrong = f'{path}: "labels" must give each class its value, as {{"background": 0, "liver": 1}}'
        raise UsageError(f"{wrong}, or its values, as [1, 2]") from None
    if not any(len(of) > 1 for of in found.values()):
        found = dict(sorted(found.items(), key=lambda item: item[1]))
    background = next((name for name, of in found.items() if of == [0]), "background")
    found.pop(background, None)
    return {background: [0], **found}, None if ignored is None else ignored[0]


def _cases(
    root: Path, part: str, ending: str, channels: int, unused: dict[str, str], refusals: list[PairsError]
) -> dict[str, tuple[tuple[Path, ...], Path]]:
    """Case -> its image files and its label file; other files are added to ``unused``, cases with missing ones to
    ``refusals``. Raises UsageError."""
    images = _files(root / f"images{part}", ending, unused)
    labels = _files(root / f"labels{part}", ending, unused)
    if part == "Ts" and not labels:
        unused |= {f"images{part}/{path.name}": "a test image without a reference" for path in images.values()}
        return {}
    cases, used = {}, set()
    missing: dict[str, list[str]] = {}
    for case, label in labels.items():
        names = [f"{case}_{channel:04d}" for channel in range(channels)]
        if case in images and names[0] in images:
            raise UsageError(f"{images[case]} and {images[names[0]].name} are both images of {case}; remove one")
        # One file may hold all channels: that of the Decathlon, and RGB images of nnU-Net.
        choices = [[case], names, *([] if {*names[1:]} & images.keys() else [names[:1]])]
        chosen = next((choice for choice in choices if {*choice} <= images.keys()), [])
        used.update(chosen)
        cases[case] = (tuple(images[name] for name in chosen), label)
        if not chosen:
            missing[case] = [f"{name}{ending}" for name in names if name not in images]
    if missing:
        files = [name for of in missing.values() for name in of]
        wrong = f"{len(files)} images missing in {root / f'images{part}'} ({some(files)})"
        cure = f"add a file for each of the {pluralize(channels, 'channel')} of a case"
        lacking = {case: f"{case}: no {some(of)} in images{part}" for case, of in missing.items()}
        refusals.append(PairsError.about(f"{wrong}; {cure}", lacking))
    bare = {}
    for name, path in images.items():
        case = re.sub(r"_\d{4}$", "", name)
        if name not in used and case in cases:
            unused[f"images{part}/{path.name}"] = f"dataset.json names {pluralize(channels, 'channel')}"
        elif name not in used:
            bare[case] = f"{case}{ending}"
    if bare:
        wrong = f"{len(bare)} labels missing in {root / f'labels{part}'} ({some([*bare.values()])})"
        lacking = {case: f"{case}: no {name} in labels{part}" for case, name in bare.items()}
        refusals.append(PairsError.about(f"{wrong}; add them, or remove the images of these cases", lacking))
    return {case: files for case, files in cases.items() if case not in missing}


def _files(folder: Path, ending: str, unused: dict[str, str]) -> dict[str, Path]:
    """Name without ending -> file; {} without the folder."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.name.startswith("."):
            unused[f"{folder.name}/{path.name}"] = "hidden"
        elif not path.name.endswith(ending):
            unused[f"{folder.name}/{path.name}"] = f"does not end in {ending}"
        else:
            name = composed(path.name.removesuffix(ending))
            if found.setdefault(name, path) != path:
                raise UsageError(f"{path} and {found[name]} differ only in how letters are encoded; rename one")
    return found


def _check_channels(file: Path, config: NnUNetConfig, channels: int) -> None:
    """Raise UsageError if a file that should hold all channels of a case does not."""
    from segexp.data.pixels import header_of

    with suppress(ImageError):  # the check that reads every pair reports this file
        if (found := header_of(file, config).channels) != channels:
            cure = "add a file for each channel (CASE_0001 ...), or correct channel_names"
            raise UsageError(f"{file} has {pluralize(found, 'channel')}, dataset.json names {channels}: {cure}")
