"""What is published of a run, and where files go that are never overwritten."""

import filecmp
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from segexp.config import is_volatile
from segexp.errors import UsageError
from segexp.records.owned import partial_folder


class DifferentError(Exception):
    """The written file does not compute what the run's network computes. It is removed."""


DESCRIBED = tuple(f"dataset.{key}" for key in ("name", "class_names", "normalise", "licence", "citation", "url"))
"""Keys that do not change a run, and that its readers need."""


def settings_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """What may be published of a configuration (dotted keys): no path, and not where and how a run was made."""
    kept = {k: v for k, v in config.items() if not is_volatile(k, v) or k in DESCRIBED}
    return {k: Path(v).name if k == "backbone.weights" and v else v for k, v in kept.items()}


@contextmanager
def placed(path: Path) -> Iterator[Path]:
    """A path for a new file or folder, which moves to ``path`` when the block has ended without an error.

    Raises UsageError where ``path`` cannot be written, or exists with other content.
    """
    full = Path(os.path.realpath(path))
    try:
        full.parent.mkdir(parents=True, exist_ok=True)
        folder = partial_folder(full)
    except OSError as error:
        raise UsageError(f"{path} cannot be written ({error.strerror}): choose another -o") from error
    made = folder / full.name
    try:
        try:
            yield made
        except OSError as error:
            if error.filename is None:  # the disk is full
                raise UsageError(f"{path} cannot be written ({error.strerror}): choose another -o") from error
            raise
        if not path.exists():
            os.replace(made, path)
        elif made.is_dir() and path.is_dir() and all(_equal(made / child.name, child) for child in path.iterdir()):
            # Into the folder, which may be the current one, is empty, or was being filled when the command was killed.
            for child in made.iterdir():
                if not (path / child.name).exists():
                    os.replace(child, path / child.name)
        elif not _equal(made, path):
            raise UsageError(f"{path} exists with other content and stays as it is: choose another -o, or remove it")
    finally:
        shutil.rmtree(folder)


def _equal(one: Path, other: Path) -> bool:
    """Whether two files, or the files of two folders, have the same bytes."""
    if one.is_dir() and other.is_dir():
        names, others = ({path.name for path in folder.iterdir()} for folder in (one, other))
        return names == others and all(_equal(one / name, other / name) for name in names)
    return one.is_file() and other.is_file() and filecmp.cmp(one, other, shallow=False)
