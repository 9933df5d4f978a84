"""What takes long for many runs, kept in the cache folder under a hash of all that it depends on.

Where anything of that has changed, it is made again.
"""

import functools
import hashlib
import importlib.metadata
import json
import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import segexp
from segexp.data.cache import Damaged, Unusable, entry, limit

FROM_RUNS = 100
"""Fewer runs are read as fast as what is kept."""

SETTLED_S = 1.0
"""A file that changed more recently may change again without another time: the times of files are not so fine."""


@functools.cache
def _code() -> str:
    """Hash of the code, and the versions of the libraries that it computes and draws with."""
    sha = hashlib.sha256()
    for path in sorted(Path(segexp.__file__).parent.rglob("*.py")):
        sha.update(path.read_bytes())
    return repr((sha.hexdigest(), *map(importlib.metadata.version, ("numpy", "pandas", "scipy", "matplotlib"))))


def stamps(directories: Iterable[Path]) -> list[tuple[object, ...]] | None:
    """Path, size, times and inode of every file of run directories; None where one is too new, or has gone."""
    try:
        found = {one.path: one.stat() for folder in directories for one in os.scandir(folder) if one.is_file()}
    except OSError:
        return None
    if time.time() - max((max(s.st_mtime, s.st_ctime) for s in found.values()), default=0.0) < SETTLED_S:
        return None
    return sorted((path, s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino) for path, s in found.items())


def kept(depends: object, make: Callable[[], Any]) -> Any:
    """What ``make`` returns, as JSON holds it, or what it returned before for the same ``depends``, by its repr."""
    key = hashlib.sha256(repr((_code(), depends)).encode(errors="surrogateescape")).hexdigest()[:32]

    def fill(place: Path) -> None:
        (place / "content.json").write_text(json.dumps(make()), encoding="utf-8")

    def read(place: Path) -> Any:
        try:
            return json.loads((place / "content.json").read_bytes())
        except ValueError as error:
            raise Damaged(str(error)) from None

    with suppress(Unusable):
        if limit():
            return entry(key, {"kind": "report", "content": "report", "name": "reports"}, read, fill)
    return make()
