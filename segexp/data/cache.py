"""The cache folder: complete entries under names that say what they hold, made by one process at a time.

An entry is a folder whose name is a hash of all that its content depends on, so that it never becomes wrong. It appears
when it is complete; what a killed process left is removed.
"""

import json
import logging
import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

from segexp.errors import UsageError
from segexp.records.files import read_json
from segexp.records.process import heed_interrupts

log = logging.getLogger("segexp")

T = TypeVar("T")

LIMIT = "50GB"
"""Size above which the entries that were used least recently are removed, unless $SEGEXP_CACHE_LIMIT is set."""


class Unusable(Exception):
    """The cache folder cannot be used; the message says why."""


class Damaged(Exception):
    """What a file of an entry holds cannot be right; the message says why."""


@contextmanager
def _storing() -> Iterator[None]:
    """Errors of the system become `Unusable`."""
    try:
        yield
    except OSError as error:
        raise Unusable(f"{error.strerror or error} ({error.filename or folder()})") from error


# The folder and its entries


def folder() -> Path:
    """The folder of the entries: in $SEGEXP_CACHE, else $XDG_CACHE_HOME/segexp, else ~/.cache/segexp."""
    given, base = os.environ.get("SEGEXP_CACHE"), os.environ.get("XDG_CACHE_HOME", "")
    if given:
        return Path(os.path.abspath(os.path.expanduser(given))) / "store"
    return Path(base if os.path.isabs(base) else os.path.expanduser("~/.cache")) / "segexp" / "store"


def limit() -> int:
    """Bytes that the cache may take. Raises UsageError."""
    text = os.environ.get("SEGEXP_CACHE_LIMIT") or LIMIT
    found = re.fullmatch(r"(\d+(?:\.\d+)?) *([KMGT]?)B?", text, re.IGNORECASE)
    if found is None:
        raise UsageError(f"SEGEXP_CACHE_LIMIT={text} is not a size such as 20GB or 500MB")
    return int(float(found[1]) * 1024 ** " KMGT".index(found[2].upper() or " "))


def _private() -> Path:
    """The folder of the entries, made if it is missing, for this user alone. Raises Unusable or OSError."""
    path = folder()
    if not hasattr(os, "pread") or not path.is_absolute():
        raise Unusable("this system has no pread" if path.is_absolute() else "there is no home folder")
    if not path.exists():
        path.parent.parent.mkdir(parents=True, exist_ok=True)
        for made in (path.parent, path):
            made.mkdir(mode=0o700, exist_ok=True)
    state = path.lstat()
    if not stat.S_ISDIR(state.st_mode) or state.st_uid != os.geteuid():
        raise Unusable(f"{path} is a link or belongs to another user")
    if state.st_mode & 0o077:
        path.chmod(0o700)
    return path


@dataclass(frozen=True)
class Entry:
    """A folder of the cache. kind: "files", "check" or "images", see `entry`. content: hash of the set.

    name, location, images: of the set. geometry: of ``images``. used: time of the last use, seconds since 1970.
    """

    path: Path
    kind: str = ""
    content: str = ""
    name: str = ""
    location: str = ""
    images: int = 0
    geometry: str = ""
    bytes: int = 0
    used: float = 0.0


def entries() -> list[Entry]:
    """All entries, those used least recently first. Makes nothing."""
    found = []
    for path in folder().glob("*/entry.json"):
        if path.parent.suffix:  # of a folder that is being filled or removed
            continue
        with suppress(OSError):
            n_bytes, used = sum(part.lstat().st_size for part in path.parent.iterdir()), path.lstat().st_mtime
            try:
                found.append(Entry(path.parent, **read_json(path, path.parent), bytes=n_bytes, used=used))
            except (UsageError, TypeError):
                found.append(Entry(path.parent, bytes=n_bytes, used=used))
    return sorted(found, key=lambda entry: entry.used)


def discard(place: Path) -> None:
    """Remove an entry, which disappears in one step. Processes that read it go on."""
    gone = place.with_name(f"{place.name}.{os.urandom(4).hex()}.gone")
    with suppress(FileNotFoundError):
        place.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def clear_litter() -> None:
    """Remove what killed processes left: folders that they were filling or removing, and their locks."""
    for path in folder().glob("*.*"):
        if path.suffix == ".gone":
            shutil.rmtree(path, ignore_errors=True)
        elif path.suffix in (".partial", ".lock") and (file := _try_lock(path.with_suffix(""))):
            discard(path.with_suffix(".partial"))
            _unlock(path.with_suffix(""), file)


def check_size(n_bytes: int) -> None:
    """Raise Unusable where an entry is larger than the cache may be."""
    if n_bytes > limit():
        raise Unusable(f"the images take more than SEGEXP_CACHE_LIMIT={os.environ.get('SEGEXP_CACHE_LIMIT') or LIMIT}")


def _make_room(needed: int) -> None:
    """Remove entries until there is room for ``needed`` bytes. Raises Unusable where the limit is smaller."""
    check_size(needed)
    kept = entries()
    total = needed + sum(entry.bytes for entry in kept)
    for entry in kept:
        if total > limit():
            discard(entry.path)
            total -= entry.bytes


def _try_lock(place: Path) -> BinaryIO | None:
    """The locked lock file of an entry; None where another process holds it, or has just removed it."""
    import fcntl

    lock = place.with_suffix(".lock")
    file = lock.open("ab")
    ours = False
    try:
        with suppress(BlockingIOError, FileNotFoundError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            ours = lock.stat().st_ino == os.fstat(file.fileno()).st_ino
    finally:
        if not ours:
            file.close()
    return file if ours else None


def _unlock(place: Path, file: BinaryIO) -> None:
    place.with_suffix(".lock").unlink(missing_ok=True)
    file.close()


@contextmanager
def _alone(place: Path, what: str) -> Iterator[None]:
    """Hold the lock of an entry; waits for another process that holds it."""
    waiting = False
    while (file := _try_lock(place)) is None:
        if not waiting:
            log.warning("another process is reading %s into the cache: waiting for it", what)
        waiting = True
        heed_interrupts()
        time.sleep(0.1)
    try:
        yield
    finally:
        _unlock(place, file)


@_storing()
def entry(
    key: str, about: Mapping[str, object], read: Callable[[Path], T], fill: Callable[[Path], None], renew: bool = False
) -> T:
    """What ``read`` makes of the entry ``key``; a missing or damaged one is made first, with ``fill``.

    about: the fields of `Entry` to record. read: raises Damaged or OSError for a damaged one. renew: make it anyway.
    Raises Unusable, also for an OSError of ``fill``.
    """
    place = _private() / key
    found = None if renew else _read(place, read, report=False)
    if found is not None:
        return found
    with _alone(place, str(about.get("location") or about.get("name"))):
        found = None if renew else _read(place, read)
        if found is not None:
            return found
        partial = place.with_suffix(".partial")
        discard(partial)
        clear_litter()  # first, because it may be what takes the room
        try:
            partial.mkdir(mode=0o700)
            fill(partial)
            (partial / "entry.json").write_text(json.dumps(about), encoding="utf-8")
            for path in partial.iterdir():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
            _make_room(sum(path.stat().st_size for path in partial.iterdir()))
            discard(place)
            partial.rename(place)
        except BaseException:
            discard(partial)
            raise
        found = _read(place, read)
        if found is None:
            raise Unusable(f"{place} cannot be read back")
        return found


@_storing()
def find(key: str, read: Callable[[Path], T]) -> T | None:
    """What ``read`` makes of the entry ``key``; None where it is missing or damaged. Raises Unusable."""
    return _read(_private() / key, read)


def _read(place: Path, read: Callable[[Path], T], report: bool = True) -> T | None:
    """None where the entry is missing, damaged or another user's. report: damage."""
    try:
        if place.lstat().st_uid != os.geteuid():
            return None
        with os.scandir(place) as parts:
            if odd := [part.name for part in parts if not part.is_file(follow_symlinks=False)]:
                raise Damaged(f"{odd[0]} is no plain file")
        found = read(place)
    except FileNotFoundError:
        return None
    except (Damaged, OSError) as error:
        if report:
            log.warning("%s is damaged (%s): it is made again", place, error)
        return None
    with suppress(OSError):
        os.utime(place / "entry.json")
    if place.with_suffix(".lock").exists() and (file := _try_lock(place)):  # of a process that was killed
        discard(place.with_suffix(".partial"))
        _unlock(place, file)
    return found
