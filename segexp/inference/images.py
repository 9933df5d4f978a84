"""What is asked of a prediction, checked before torch is loaded: images, names of outputs, the folder, tiles.

A folder is searched with all folders below it, and outputs keep its sub-folders; the output of a single file has the
file's name. Endings say what is looked at, as in a data set (`segexp.data.file_set.EXTENSIONS`).
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segexp.config import Config, mode_of, params
from segexp.data.file_set import EXTENSIONS, stem_of, unusable
from segexp.data.image_set import is_text, state_of
from segexp.errors import UsageError
from segexp.models.architectures import check_size
from segexp.records.files import read_json
from segexp.records.formatting import pluralize

RECORD = "predict.json"


@dataclass(frozen=True)
class Source:
    """One image or volume. name: of its outputs below the output folder, without an ending. paths: its file, or one
    for each channel."""

    name: str
    paths: tuple[Path, ...]

    def as_found(self) -> dict[str, Any]:
        """The files and their present state, for the record. Raises OSError."""
        return {"source": [str(p) for p in self.paths], "state": [list(state_of(p)[:2]) for p in self.paths]}


def sources_in(given: Sequence[Path], out: Path) -> tuple[list[Source], list[str]]:
    """The images under ``given`` (files and folders) in their order, each file once, and lines about what is not read.

    out: the output folder. Raises UsageError where there is no image, and where images and outputs share a folder.
    """
    names: dict[Path, str] = {}
    notes: list[str] = []
    out = Path(os.path.realpath(out))
    for path in given:
        real = Path(os.path.realpath(path))
        if out.is_relative_to(real) or (real.is_relative_to(out) and real.exists()):
            raise UsageError(f"-o {out}: the images of {path} lie in the same folder; choose another one")
        if path.is_file():
            names.setdefault(Path(os.path.abspath(path)), stem_of(path))
        elif path.is_dir():
            files, others = list(_below(path)), 0
            for file in files:
                others += bool(unusable(file))
                if not unusable(file):
                    name = str(file.relative_to(path).parent / stem_of(file))
                    names.setdefault(Path(os.path.abspath(file)), name)
            if others == len(files):
                raise UsageError(f"{path} holds no image: what is read ends in {', '.join(EXTENSIONS)}")
            notes += [f"{path}: {pluralize(others, 'file')} of other endings not read"] * bool(others)
        else:
            raise UsageError(f"{path} is neither a file nor a folder")
    return [Source(name, (path,)) for path, name in names.items()], notes


def _below(folder: Path) -> Iterator[Path]:
    """The files of a folder and of those below it, in order of their names, without hidden ones; links to folders are
    not followed."""
    for where, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(where, name) for name in sorted(files) if not name.startswith("."))


def by_channel(sources: Sequence[Source], channels: int) -> list[Source]:
    """The sources where CASE_0000, CASE_0001, ... are the channels of one image CASE, as nnU-Net names files. Where not
    all channels, or not only the first one, are there, files stay as they are."""
    cases: dict[str, dict[int, Source]] = {}
    for source in sources:
        case, number = re.fullmatch(r"(.*?)(?:_(\d{4}))?", source.name).groups()  # type: ignore[union-attr]
        cases.setdefault(case if number else source.name, {})[int(number or -1)] = source
    joined = []
    for case, of in cases.items():
        if sorted(of) in ([0], list(range(channels))):
            joined.append(Source(case, tuple(of[c].paths[0] for c in sorted(of))))
        else:
            joined += of.values()
    return joined


def class_files(config: Config) -> list[int]:
    """The classes that get a mask each, where each is decided on its own; [] where one mask holds all of them."""
    data = config.dataset
    return list(range(data.first_class, data.num_classes)) if mode_of(config) == "independent" else []


def check_tile(tile: int, config: Config) -> None:
    """Raise UsageError where a network cannot predict tiles of this side, in pixels."""
    if config.dataset.fit != "pad":
        size = config.dataset.image_size
        raise UsageError(
            f"--tile {tile}: the network was trained on images resized to {size} x {size} px, and a tile would have "
            "another scale: leave --tile out, or train with dataset.fit=pad"
        )
    check_size(config.model.name, params(config.model), config.backbone.name, tile, f"--tile {tile}")


def check_names(sources: Sequence[Source], suffixes: Sequence[str]) -> None:
    """Raise UsageError where two images would be written to one file, or a name cannot be written in a record.

    suffixes: of outputs beside ``Source.name`` itself, as "_overlay".
    """
    owners: dict[str, Source] = {}
    for source in sources:
        if not is_text(source.name):
            raise UsageError(f"{ascii(str(source.paths[0]))[1:-1]} is not UTF-8; rename it")
        for name in (source.name, *(source.name + suffix for suffix in suffixes)):
            other = owners.setdefault(name.casefold(), source)  # some file systems do not tell X from x
            if other is not source:
                raise UsageError(
                    f"{other.paths[0]} and {source.paths[0]} would both be written to {name}: name the folder that "
                    "holds both, rename one, or predict them into two folders"
                )


def read_record(out: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What an earlier prediction with these settings has recorded in ``out``: image name -> its files and their state.

    Raises UsageError where the folder holds anything else.
    """
    if not (out / RECORD).exists():
        if out.exists() and not out.is_dir():
            raise UsageError(f"-o {out} is not a folder")
        if out.is_dir() and [path for path in out.iterdir() if path.name != "lock" and path.name[0] != "."]:
            raise UsageError(f"-o {out} holds other files: choose a new or empty folder")
        return {"images": {}}
    known = read_json(out / RECORD, out)
    try:
        there, images = dict(known["settings"]), dict(known["images"])
    except (TypeError, KeyError, ValueError):
        raise UsageError(f"{out / RECORD} is not the record of a prediction: choose another folder") from None
    for key, value in settings.items():
        if there.get(key) != value:
            shown = "other networks" if key == "networks" else f"{key}={there.get(key)}, not {value}"
            raise UsageError(f"-o {out} holds predictions with {shown}: choose another folder, or remove this one")
    return known | {"images": images}
