"""What is asked of a prediction, checked before torch is loaded: images, names of their outputs, tiles, the folder."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from segexp.config import Config, mode_of, params
from segexp.data.file_set import EXTENSIONS, stem_of, unusable
from segexp.errors import UsageError
from segexp.models.architectures import check_size
from segexp.records.files import read_json
from segexp.records.formatting import pluralize

RECORD = "predict.json"

Sources = dict[str, tuple[Path, ...]]
"""Name of an image or volume, which its outputs get (with sub-folders, no ending) -> its file, or one per channel."""


def files_in(given: Sequence[Path], out: Path) -> tuple[list[tuple[str, Path]], list[str]]:
    """(name, file) of images: of files, and of folders with all below them; and lines about files that are not read.

    Raises UsageError where there is no image, and for an output folder ``out`` that holds images or lies among them.
    """
    found, notes = list[tuple[str, Path]](), list[str]()
    for path in given:
        real, real_out = Path(os.path.realpath(path)), Path(os.path.realpath(out))
        if not path.exists():
            raise UsageError(f"no file or folder {path}")
        if real_out.is_relative_to(real) or real.is_relative_to(real_out):
            raise UsageError(f"-o {out}: the images of {path} lie in the same folder; choose another one")
        if path.is_file():
            found.append((stem_of(path), path))
            continue
        every = [Path(where, name) for where, _, inside in sorted(os.walk(path)) for name in sorted(inside)]
        every = [file for file in every if not any(part[0] == "." for part in file.relative_to(path).parts)]
        files = [file for file in every if not unusable(file)]
        if not files:
            raise UsageError(f"{path} holds no image: what is read ends in {', '.join(EXTENSIONS)}")
        if others := len(every) - len(files):
            notes.append(f"{path}: {pluralize(others, 'file')} of other endings not read")
        found += [(str(file.relative_to(path).parent / stem_of(file)), file) for file in files]
    return found, notes


def sources_of(files: Sequence[tuple[str, Path]], channels: int) -> Sources:
    """The images of files by name. Raises UsageError where two have one name.

    channels: of nnU-Net, where CASE_0000, CASE_0001, ... are the channels of one image CASE if all or only the first
    are there; 0: each file is an image.
    """
    cases: dict[str, list[tuple[str, Path]]] = {}
    for name, file in files:
        cases.setdefault(re.sub(r"_\d{4}$", "", name) if channels else name, []).append((name, file))
    sources, owners = Sources(), dict[str, Path]()
    for case, of in cases.items():
        names = sorted(name for name, _ in of)
        joined = channels and names in ([f"{case}_0000"], [f"{case}_{c:04}" for c in range(channels)])
        for name, paths in [(case, tuple(f for _, f in sorted(of)))] if joined else [(name, (f,)) for name, f in of]:
            _claim(name, paths[0], owners)
            sources[name] = paths
    return sources


def _claim(output: str, path: Path, owners: dict[str, Path]) -> None:
    """Note that an image is written to ``output``. Raises UsageError where another one is."""
    other = owners.setdefault(output.casefold(), path)  # some file systems do not tell X from x
    if os.path.abspath(other) != os.path.abspath(path):
        cure = "rename one, or name the files to predict"
        if other.parent != path.parent:
            cure = "name the folder that holds both, rename one, or use two folders"
        raise UsageError(f"{other} and {path} would both be written to {output}: {cure}")


def class_files(config: Config) -> list[int]:
    """The classes that get a mask each, where each is decided on its own; [] where one mask holds all of them."""
    data = config.dataset
    return list(range(data.first_class, data.num_classes)) if mode_of(config) == "independent" else []


def check_tile(tile: int, config: Config) -> None:
    """Raise UsageError where a network cannot predict tiles of this side, in pixels."""
    if config.dataset.fit != "pad":
        raise UsageError(
            f"--tile {tile}: the network was trained on images resized to {config.dataset.image_size} px, and tiles "
            "would have another scale: leave --tile out, or train with dataset.fit=pad"
        )
    check_size(config.model.name, params(config.model), config.backbone.name, tile, f"--tile {tile}")


def recorded(out: Path, settings: Mapping[str, Any], sources: Sources, classes: Sequence[int]) -> dict[str, str]:
    """Name -> file of the images whose masks ``out`` holds or gets. Raises UsageError where it holds anything but
    predictions with these settings, or where outputs of two images, also of earlier calls, would have one name."""
    images = {name: str(paths[0].absolute()) for name, paths in sources.items()}
    known = read_json(out / RECORD, out) if (out / RECORD).exists() else {}
    before = known.get("images") if isinstance(known, dict) else None
    if isinstance(before, dict):
        asked = [(key, known.get(key), value) for key, value in settings.items()]
        for key, there, now in asked + [(name, before.get(name, path), path) for name, path in images.items()]:
            if now != there:
                shown = "other networks" if key == "networks" else f"{key}={there}, not {now}"
                raise UsageError(f"-o {out} holds predictions with {shown}: choose another folder, or remove this one")
        images = before | images
    elif any(path.name != "lock" and path.name[0] != "." for path in out.iterdir()):
        raise UsageError(f"-o {out} holds other files: choose a new or empty folder")
    owners = dict[str, Path]()
    for name, path in images.items():
        for suffix in ("", *(f"_class{c}" for c in classes), *["_overlay"] * settings["overlay"]):
            _claim(name + suffix, Path(path), owners)
    return images
