"""Files of run directories: written whole or not at all, only by the lock holder, and never through a link.

All that the lock holder writes or removes passes through its folder `.owner-*` in the run directory. A takeover first
moves that folder away: an earlier owner, which only slept, then finds no file to publish, and nothing changes.
A run directory may be a link and may come from a stranger: inside it no link is followed, and no pipe is opened.
"""

import errno
import functools
import hashlib
import os
import re
import shutil
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from segexp.errors import TakenOverError, UsageError

_SAFE = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
HAS_DIR_FD = os.open in os.supports_dir_fd
"""Whether folders have descriptors. On Windows they have none, and a file that is open is not replaced or removed."""

_FOLDER = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0)


@dataclass(frozen=True)
class Folder:
    """An open folder. fd: its descriptor, under whatever name; None on Windows, which has none."""

    path: Path
    fd: int | None

    def at(self, name: str) -> str:
        """The name for a function of `os`, together with ``dir_fd=fd``."""
        return name if self.fd is not None else str(self.path / name)

    def mode(self, name: str) -> int:
        """The mode of a file, a folder or a link itself; 0 where it is missing."""
        try:
            return os.stat(self.at(name), dir_fd=self.fd, follow_symlinks=False).st_mode
        except OSError:
            return 0

    def refuse_odd(self, name: str) -> None:
        """Raise UsageError for a link, a pipe or a device."""
        mode = self.mode(name)
        if mode and not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            what = "a symbolic link" if stat.S_ISLNK(mode) else "no plain file"
            raise UsageError(f"{self.path / name} is {what}, which no run directory holds: remove it")

    def open(self, name: str, mode: str) -> Any:
        """`open` for a file of this folder. Raises UsageError for a link, a pipe or a device."""
        self.refuse_odd(name)
        with self.named(name):
            return open(self.at(name), mode, opener=lambda at, flags: os.open(at, flags | _SAFE, 0o666, dir_fd=self.fd))

    @contextmanager
    def named(self, name: str) -> Iterator[None]:
        """Let errors of the system name the whole path."""
        try:
            yield
        except OSError as error:
            error.filename = str(self.path / name)
            raise

    def move(self, name: str, to: "Folder", new: str) -> None:
        """Rename, replacing what is there, in one step. Windows refuses while another process reads it: tries again."""
        for attempts_left in reversed(range(40)):
            try:
                return os.replace(self.at(name), to.at(new), src_dir_fd=self.fd, dst_dir_fd=to.fd)
            except PermissionError:
                if HAS_DIR_FD or not attempts_left:
                    raise
                time.sleep(0.05)

    def remove(self, name: str) -> None:
        """Remove a file, a link, or a folder with its content, if that is possible."""
        try:
            os.unlink(self.at(name), dir_fd=self.fd)
        except OSError:
            shutil.rmtree(self.at(name), ignore_errors=True, dir_fd=self.fd)


@contextmanager
def entered(start: Path | Folder, *parts: str, make: bool = False) -> Iterator[Folder]:
    """The folder ``start`` or, by the parts, one below it. make: make missing ones. Raises UsageError for a link."""
    if isinstance(start, Folder) and not parts:
        yield start
        return
    fd = None
    if isinstance(start, Path):  # it may be a link
        path, fd = start, os.open(start, _FOLDER) if HAS_DIR_FD else None
    else:
        path, name, parts = start.path / parts[0], parts[0], parts[1:]
        if make:
            with suppress(FileExistsError), start.named(name):
                os.mkdir(start.at(name), dir_fd=start.fd)
        start.refuse_odd(name)
        fd = os.open(name, _FOLDER | _SAFE, dir_fd=start.fd) if start.fd is not None else None
    try:
        with entered(Folder(path, fd), *parts, make=make) as folder:
            yield folder
    finally:
        if fd is not None:
            os.close(fd)


def open_file(path: Path, inside: Path | None = None) -> BinaryIO:
    """Open a file of the run directory ``inside`` (default: the folder of the file) for reading.

    Raises UsageError where it is no regular file, or a folder on the way is a link; OSError as `open` does.
    """
    inside = inside or path.parent
    try:
        if inside == path.parent and HAS_DIR_FD:
            with suppress(OSError):  # thousands of files are read, so without opening their folder first
                fd = os.open(path, os.O_RDONLY | _SAFE)
                if stat.S_ISREG(os.fstat(fd).st_mode):
                    return open(fd, "rb")
                os.close(fd)
        with entered(inside, *path.parent.relative_to(inside).parts) as folder:
            found: BinaryIO = folder.open(path.name, "rb")
            return found
    except OSError as error:
        error.filename = str(path)
        raise


def read_file(path: Path, inside: Path | None = None) -> bytes:
    """The content of a file that `open_file` opens."""
    with open_file(path, inside) as file:
        return file.read()


@dataclass(frozen=True)
class Ownership:
    """A lock that is held. owner: the name of this process's folder; holder(): the process that has the lock now."""

    folder: Folder
    owner: str
    token: str
    holder: Callable[[], str]

    @property
    def lost(self) -> bool:
        """Whether another process has taken the lock over or removed it. Reads the lock file again."""
        try:
            with self.folder.open("lock", "rb") as file:
                return bool(file.read() != self.token.encode())
        except (FileNotFoundError, UsageError):
            return True
        except OSError:
            return False  # a file server that does not answer has not taken the lock away

    def taken_over(self) -> TakenOverError:
        """The error of an owner that has slept."""
        by = self.holder() or "another process, or removed,"
        stopped = "this one stopped and wrote nothing more"
        return TakenOverError(f"{self.folder.path} was taken over by {by} while this one slept; {stopped}")

    def claim(self) -> None:
        """Make the owner's folder and remove what dead owners left, their folders before anything is written."""
        with self.folder.named(self.owner):
            os.mkdir(self.folder.at(self.owner), dir_fd=self.folder.fd)
        try:
            for parts in ((), ("checkpoints",), ("predictions",), ("examples",)):
                with suppress(FileNotFoundError), entered(self.folder, *parts) as folder:
                    for name in os.listdir(folder.path if folder.fd is None else folder.fd):
                        if name != self.owner and re.fullmatch(r"\.owner-.*|\..*\.partial|\.clock-.*", name):
                            self.discard(folder, name)
        except BaseException:
            self.folder.remove(self.owner)
            raise

    def discard(self, folder: Folder, name: str) -> None:
        """Remove by way of the owner's folder, which a takeover has moved away."""
        folder.move(name, self.folder, f"{self.owner}/gone")
        self.folder.remove(f"{self.owner}/gone")


HELD: dict[Path, Ownership] = {}
"""The directories that this process holds, by absolute path."""


@contextmanager
def _fenced(path: Path) -> Iterator[tuple[Ownership | None, tuple[str, ...]]]:
    """The held directory that contains ``path``, and the parts of the path below it.

    Raises TakenOverError where something is missing because the owner's folder is.
    """
    path = Path(os.path.abspath(path))
    top = next((parent for parent in path.parents if parent in HELD), None)
    held = HELD[top] if top else None
    try:
        yield held, path.relative_to(top or path.parent).parts
    except OSError as error:
        if held and error.errno in (errno.ENOENT, errno.ESTALE) and not held.folder.mode(held.owner):
            raise held.taken_over() from None
        raise


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write a file so that readers see either the old or the new content, complete, even after a crash."""
    with open_atomic(path) as file:
        file.write(content.encode("utf-8") if isinstance(content, str) else content)


@contextmanager
def open_atomic(path: Path) -> Iterator[BinaryIO]:
    """`write_atomic` for large files: the file appears when the block is left without an error.

    Makes missing folders of a held run directory. Raises TakenOverError where that was taken over.
    """
    with _fenced(path) as (held, parts):
        base, partial = Folder(path.parent, None), _partial(path.name)
        if held:
            base, partial = held.folder, f"{held.owner}/{partial}"
        else:
            clear_litter(path.parent, f"{partial[:13]}-*.partial")
        try:
            with base.open(partial, "w+b") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            with entered(base, *parts[:-1], make=True) as target:
                base.move(partial, target, parts[-1])
        except BaseException as error:
            with suppress(OSError):
                os.unlink(base.at(partial), dir_fd=base.fd)
            if isinstance(error, OSError) and error.errno:  # writing names no file, and opening the partial one
                raise type(error)(error.errno, error.strerror, str(path)) from error
            raise


def discard(path: Path) -> None:
    """Remove a file or folder of a held run directory, if it is there. Raises TakenOverError."""
    with suppress(FileNotFoundError), _fenced(path) as (held, parts):
        assert held is not None, f"{path} is in no directory that this process holds"
        with entered(held.folder, *parts[:-1]) as folder:
            held.discard(folder, parts[-1])


def _partial(name: str) -> str:
    """A temporary name for a file or folder. It is short, because the name may be as long as the file system allows,
    and unique to this writer: if two processes write the same file, the later one wins."""
    return f".{hashlib.sha256(name.encode()).hexdigest()[:12]}-{threading.get_ident()}-{writer()}.partial"


def partial_folder(path: Path) -> Path:
    """A new folder beside ``path``, in which it can be made; those that dead writers left for it are removed."""
    clear_litter(path.parent, f"{_partial(path.name)[:13]}-*.partial")
    folder = path.with_name(_partial(path.name))
    folder.mkdir()
    return folder


def writer() -> str:
    """This process and its host, for the name of a temporary file."""
    return f"{os.getpid()}-{hashlib.sha256(host().encode()).hexdigest()[:8]}"


def clear_litter(folder: Path, pattern: str) -> None:
    """Remove the temporary files and folders of dead writers: of processes of this host that are gone, and other ones
    that have not changed for a day."""
    for path in folder.glob(pattern):
        found = re.search(r"-(\d+)-([0-9a-f]{8})\.", path.name)
        with suppress(OSError):
            if found and found[2] == writer()[-8:] and process_start(os.getpid()):
                gone = not process_start(found[1])
            else:
                gone = time.time() - path.lstat().st_mtime > 86400
            if gone and stat.S_ISDIR(path.lstat().st_mode):
                shutil.rmtree(path)
            elif gone:
                path.unlink()


@functools.cache
def host() -> str:
    """The host name with the boot id and the pid namespace where known: cloned machines share a name, and containers a
    kernel, but not their pids."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return f"{socket.gethostname()} {boot[:8]} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def process_start(pid: Any) -> str:
    """When the process started, because pids are reused; "" when it has ended or the system does not say."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except (OSError, ValueError):  # ValueError: a stranger's lock names no number
        return ""
    # A zombie has ended.
    return "" if fields[0] in "ZX" else fields[19]
