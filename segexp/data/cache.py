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
from dataclasses import dataclass, fields
from pathlib import Path
from typing import BinaryIO, TypeVar

from segexp.errors import UsageError
from segexp.records.process import heed_interrupts

log = logging.getLogger("segexp")

T = TypeVar("T")

LIMIT = "50GB"
"""Size above which the entries that were used least recently are removed, unless $SEGEXP_CACHE_LIMIT is set."""


class Unusable(Exception):
    """The cache folder cannot be used; the message says why."""


@contextmanager
def storing() -> Iterator[None]:
    """Errors of the cache folder become `Unusable`, so that they are not taken for those of the data."""
    try:
        yield
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise Unusable(f"{error.strerror or error}{where}") from error


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
    """The folder of the entries, made if it is missing, for this user alone. Raises Unusable."""
    path = folder()
    if not hasattr(os, "pread") or not path.is_absolute():
        raise Unusable("this system has no pread" if path.is_absolute() else "there is no home folder")
    with storing():
        if not path.exists():
            path.parent.parent.mkdir(parents=True, exist_ok=True)
            for made in (path.parent, path):
                made.mkdir(mode=0o700, exist_ok=True)
        state = path.lstat()
        if not stat.S_ISDIR(state.st_mode) or state.st_uid != os.geteuid():
            raise OSError(f"{path} is a link or belongs to another user")
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

    def remove(self) -> None:
        """Remove the entry. Processes that read it go on."""
        _discard(self.path)


def entries() -> list[Entry]:
    """All entries, those used least recently first. Makes nothing."""
    found = []
    for path in folder().glob("*/entry.json"):
        if path.parent.suffix:  # of a folder that is being filled or removed
            continue
        with suppress(OSError):
            n_bytes, used = sum(part.stat().st_size for part in path.parent.iterdir()), path.stat().st_mtime
            try:
                about = {field.name: json.loads(path.read_bytes())[field.name] for field in fields(Entry)[1:7]}
            except (ValueError, KeyError, TypeError):
                about = {}
            found.append(Entry(path.parent, **about, bytes=n_bytes, used=used))
    return sorted(found, key=lambda entry: entry.used)


def _discard(place: Path) -> None:
    """Remove a folder, which disappears in one step."""
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
            _discard(path.with_suffix(".partial"))
            _unlock(path.with_suffix(""), file)


def no_room() -> Unusable:
    """The error of an entry that is larger than the cache may be."""
    return Unusable(f"the images take more than SEGEXP_CACHE_LIMIT={os.environ.get('SEGEXP_CACHE_LIMIT') or LIMIT}")


def _make_room(needed: int) -> None:
    """Remove entries until there is room for ``needed`` bytes. Raises Unusable where the limit is smaller."""
    room = limit() - needed
    if room < 0:
        raise no_room()
    clear_litter()
    kept = entries()
    total = sum(entry.bytes for entry in kept)
    for entry in kept:
        if total <= room:
            break
        entry.remove()
        total -= entry.bytes


def _try_lock(place: Path) -> BinaryIO | None:
    """The locked lock file of an entry; None where another process holds it."""
    import fcntl

    lock = place.with_suffix(".lock")
    while True:
        file = lock.open("ab")
        with suppress(FileNotFoundError):  # its holder removed it meanwhile
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if lock.stat().st_ino == os.fstat(file.fileno()).st_ino:
                    return file
            except BlockingIOError:
                file.close()
                return None
            except OSError:
                file.close()
                raise
        file.close()


def _unlock(place: Path, file: BinaryIO) -> None:
    place.with_suffix(".lock").unlink(missing_ok=True)
    file.close()


@contextmanager
def _alone(place: Path, what: str) -> Iterator[None]:
    """Hold the lock of an entry; waits for another process that holds it. Raises Unusable."""
    waiting = False
    while True:
        with storing():
            file = _try_lock(place)
        if file is not None:
            break
        if not waiting:
            log.warning("another process is reading %s into the cache: waiting for it", what)
        waiting = True
        heed_interrupts()
        time.sleep(0.1)
    try:
        yield
    finally:
        _unlock(place, file)


def entry(
    key: str, about: Mapping[str, object], read: Callable[[Path], T], fill: Callable[[Path], None], renew: bool = False
) -> T:
    """What ``read`` makes of the entry ``key``; a missing or damaged one is made first, with ``fill``.

    about: the fields of `Entry` to record. read: raises any error for a damaged entry. renew: make it in any case.
    Raises Unusable where the cache is.
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
        _discard(partial)
        try:
            with storing():
                partial.mkdir(mode=0o700)
            fill(partial)
            with storing():
                (partial / "entry.json").write_text(json.dumps(about), encoding="utf-8")
                for path in partial.iterdir():
                    _sync(path)
                _make_room(sum(path.stat().st_size for path in partial.iterdir()))
                _discard(place)
                partial.rename(place)
            with suppress(OSError):  # not every file system writes folders to the disk on request
                _sync(place.parent)
        except BaseException:
            _discard(partial)
            raise
        found = _read(place, read)
        if found is None:
            raise Unusable(f"{place} cannot be read back")
        return found


def find(key: str, read: Callable[[Path], T]) -> T | None:
    """What ``read`` makes of the entry ``key``; None where it is missing or damaged. Raises Unusable."""
    return _read(_private() / key, read)


def _read(place: Path, read: Callable[[Path], T], report: bool = True) -> T | None:
    """None where the entry is missing, damaged or another user's. report: damage."""
    try:
        if place.lstat().st_uid != os.geteuid():
            return None
        found = read(place)
    except FileNotFoundError:
        return None
    except Exception as error:  # damaged files raise errors of many kinds
        if report:
            log.warning("%s is damaged (%s): it is made again", place, error)
        return None
    with suppress(OSError):
        os.utime(place / "entry.json")
    return found


def _sync(path: Path) -> None:
    """Write a file or a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
