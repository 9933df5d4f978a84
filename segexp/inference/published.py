"""What is published of a run, and where files go that are never overwritten."""

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from segexp.config import is_volatile
from segexp.errors import UsageError

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
    try:
        path.absolute().parent.mkdir(parents=True, exist_ok=True)
        beside = tempfile.TemporaryDirectory(prefix=".segexp-", dir=path.absolute().parent)
    except OSError as error:
        raise UsageError(f"{path} cannot be written ({error.strerror}): choose another -o") from error
    with beside as folder:
        made = Path(folder, path.absolute().name)
        yield made
        if made.is_dir() and path.is_dir() and not any(path.iterdir()):
            path.rmdir()
        if not path.exists():
            os.replace(made, path)
        elif _content(path) != _content(made):
            raise UsageError(f"{path} exists with other content and stays as it is: choose another -o, or remove it")


def _content(path: Path) -> dict[Path, bytes]:
    """The bytes of a file, or of every file in a folder."""
    return {file.relative_to(path): file.read_bytes() for file in (path, *path.rglob("*")) if file.is_file()}
