"""The process that runs: its lock on a run directory, its signals, its software and its CPU cores.

One process at a time may write a run directory; a lock file names it with its host and pid.

The lock holder renews the file's time. A lock is taken over when its process is gone (same host), or when nobody has
renewed it for two minutes (another host or container that shares the folder). A lock is checked and replaced in one
step, under the file system's own lock on that file. The age of another host's lock is measured by the clock of the
file system, because the clocks of two hosts may differ.
"""

import _thread
import functools
import importlib
import json
import math
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from segexp.errors import UsageError
from segexp.records.formatting import pluralize
from segexp.records.owned import HELD, Folder, Ownership, entered, host, process_start, read_file

T = TypeVar("T")

HEARTBEAT_SECONDS = 10.0
STALE_SECONDS = 120.0


class OwnedError(Exception):
    """Another process holds the lock of the run directory."""


@contextmanager
def ownership(run_dir: Path, inside: Path | None = None) -> Iterator[Ownership]:
    """Hold the lock of a run directory during the block, or of a folder ``inside`` one, which is made if it is missing.

    If the lock is lost meanwhile (the machine slept for minutes), the main thread is interrupted as by SIGTERM, and
    nothing can be written any more (see `segexp.records.owned`). Raises OwnedError when another process holds the lock,
    UsageError where a link would be followed.
    """
    token = json.dumps({"host": host(), "pid": os.getpid(), "started": process_start(os.getpid()), "at": time.time()})
    absolute, start = Path(os.path.abspath(run_dir)), inside or run_dir
    with entered(start, *run_dir.relative_to(start).parts, make=True) as folder:
        own = Ownership(folder, f".owner-{os.urandom(4).hex()}", token, lambda: lock_holder(run_dir))
        with _alone_at(folder) as file:
            if owner := lock_holder(run_dir):
                raise OwnedError(owner)
            own.claim()
            file.truncate(0)
            file.write(token.encode())
            file.flush()
            os.fsync(file.fileno())
        stop = threading.Event()

        def beat() -> None:
            while not stop.wait(HEARTBEAT_SECONDS):
                if own.lost:
                    _thread.interrupt_main(signal.SIGTERM)
                    return
                with suppress(OSError):  # the next renewal comes long before the lock looks stale
                    os.utime(folder.at("lock"), dir_fd=folder.fd)

        thread = threading.Thread(target=beat, daemon=True, name="segexp-heartbeat")
        thread.start()
        HELD[absolute] = own
        try:
            yield own
        finally:
            del HELD[absolute]
            stop.set()
            thread.join()
            folder.remove(own.owner)
            if not own.lost:
                with suppress(FileNotFoundError), _alone_at(folder) as file:
                    if not own.lost:
                        file.truncate(0)


def lock_holder(run_dir: Path) -> str:
    """The process that holds the lock of a directory, as "process 123 on host"; "" when there is none."""
    lock = run_dir / "lock"
    try:
        owner: Any = json.loads(read_file(lock))
        touched = lock.stat().st_mtime
    except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError, UsageError):
        return ""
    except OSError as error:  # a file server that does not answer has not taken the lock away
        return f"an unknown process (its lock cannot be read: {error.strerror})"
    if not isinstance(owner, dict):
        return ""
    name = f"process {owner.get('pid')} on {owner.get('host')}"
    if owner.get("host") == host() and Path("/proc/self/stat").exists():
        return name if process_start(owner.get("pid")) == owner.get("started") != "" else ""
    # Nobody has renewed a lock that is dated in the future.
    return name if abs(_file_clock(run_dir) - touched) < STALE_SECONDS else ""


@contextmanager
def _alone_at(folder: Folder) -> Iterator[Any]:
    """The lock file, created if needed, open for writing and locked against other processes; removed if left empty."""
    try:
        import fcntl
    except ImportError:
        with _alone_on_windows(folder) as file:
            yield file
        return
    while True:
        # Network file systems only lock files that are open for writing.
        with folder.open("lock", "ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            try:
                current = os.stat(folder.at("lock"), dir_fd=folder.fd).st_ino
            except FileNotFoundError:
                continue  # its holder removed it while we waited
            if current == os.fstat(file.fileno()).st_ino:
                try:
                    yield file
                finally:
                    with suppress(FileNotFoundError):
                        if os.stat(folder.at("lock"), dir_fd=folder.fd).st_size == 0:
                            os.unlink(folder.at("lock"), dir_fd=folder.fd)
                return


@contextmanager
def _alone_on_windows(folder: Folder) -> Iterator[Any]:
    """`_alone_at` where locked bytes cannot be read and open files cannot be removed: another file is locked."""
    msvcrt: Any = importlib.import_module("msvcrt")
    with folder.open("lock.guard", "ab") as guard:
        msvcrt.locking(guard.fileno(), msvcrt.LK_LOCK, 1)  # an OSError when it is not ours in ten seconds
        try:
            with folder.open("lock", "ab") as file:
                yield file
        finally:
            if os.stat(folder.at("lock")).st_size == 0:
                os.unlink(folder.at("lock"))
    with suppress(OSError):  # another process has opened it
        os.unlink(folder.at("lock.guard"))


def _file_clock(folder: Path) -> float:
    """The time by the clock of the file system that holds ``folder``; by our own where it is not writable."""
    probe = folder / f".clock-{os.getpid()}-{threading.get_ident()}"
    try:
        probe.touch(exist_ok=False)
        now = probe.stat().st_mtime
        probe.unlink()
        return now
    except OSError:
        return time.time()


@contextmanager
def signal_handlers(handlers: Mapping[int, Any]) -> Iterator[None]:
    """Handle these signals during the block; afterwards the earlier handlers are restored.

    Python handles signals in the main thread only: in another thread this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        handlers = {}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


SAVE_AND_STOP: signal.Signals = getattr(signal, "SIGUSR1", getattr(signal, "SIGBREAK", signal.SIGTERM))
"""The signal that asks a run to stop at the end of its epoch; Windows has no SIGUSR1."""


def signal_self(number: signal.Signals) -> None:
    """Have the main thread of this process handle a signal. Call it from another thread."""
    if hasattr(signal, "SIGUSR1"):
        os.kill(os.getpid(), number)
    else:  # Windows, where os.kill ends a process
        _thread.interrupt_main(number)


def can_fork() -> bool:
    """Whether a process can be forked safely: not on Windows, nor on macOS with the libraries of its system."""
    return hasattr(os, "fork") and sys.platform != "darwin"


_interrupts: list[int] = []


def heed_interrupts() -> None:
    """Raise KeyboardInterrupt where SIGTERM or Ctrl-C came during `interruptible`; loops call it at every step.

    An exception raised in a signal handler is lost where it lands in a callback of the garbage collector.
    """
    if _interrupts:
        raise KeyboardInterrupt


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Note SIGTERM and Ctrl-C for `heed_interrupts`, and raise them at the end at the latest; a second Ctrl-C at once.

    Ctrl-C stays ignored where it was. Yields whether `SAVE_AND_STOP` has come.
    """
    asked: list[int] = []

    def note(signum: int, frame: object) -> None:
        again = signum == signal.SIGINT and signum in _interrupts
        (_interrupts if signum in (signal.SIGINT, signal.SIGTERM) else asked).append(signum)
        if again:
            raise KeyboardInterrupt
        if signum == signal.SIGINT:
            with suppress(OSError):
                os.write(2, b"\nsegexp: stopping after this step; Ctrl-C again stops at once\n")

    numbers = [signal.SIGINT] if signal.getsignal(signal.SIGINT) != signal.SIG_IGN else []
    numbers += [signal.SIGTERM, SAVE_AND_STOP]
    with signal_handlers(dict.fromkeys(numbers, note)):
        try:
            yield lambda: bool(asked)
            heed_interrupts()
        finally:
            if threading.current_thread() is threading.main_thread():
                _interrupts.clear()


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Delay Ctrl-C and SIGTERM to the end of the block: inside torch.save they would become another error."""
    waiting: list[int] = []
    with signal_handlers(dict.fromkeys((signal.SIGINT, signal.SIGTERM), lambda number, frame: waiting.append(number))):
        yield
    for number in waiting[:1]:
        signal.raise_signal(number)


@functools.cache
def environment_text() -> str:
    """The content of environment.txt for this process; looked up once."""
    import importlib.metadata  # takes longer than all else of a command that only reads records
    import platform

    lines = [f"# Python {platform.python_version()} ({platform.python_implementation()})", f"# {platform.platform()}"]
    found: dict[str, str] = {}
    # setuptools adds its own copies of packages to the path of a process that imports it, as torch.compile does.
    places = [place for place in sys.path if Path(place).name != "_vendor"]
    for distribution in importlib.metadata.distributions(path=places):
        # From the first lines of the metadata; parsing all of it takes fifteen times as long.
        text = distribution.read_text("METADATA") or distribution.read_text("PKG-INFO") or ""
        head = re.split(r"\r?\n\r?\n", text, maxsplit=1)[0]
        fields = dict(re.findall(r"^(Name|Version): *(\S+)", head, flags=re.MULTILINE))
        # The first on the path is imported. Leftovers of a broken removal have no name.
        if name := fields.get("Name"):
            origin = _origin(distribution.read_text("direct_url.json") or "{}")
            found.setdefault(_normal(name), f"{name}=={fields.get('Version', '')}{origin}")
    return "\n".join([*lines, *(found[name] for name in sorted(found))]) + "\n"


def _origin(direct_url: str) -> str:
    """The origin of a distribution that is not from an index (PEP 610), without user names, passwords or tokens."""
    try:
        content = json.loads(direct_url)
        parts, commit = urlsplit(str(content["url"])), content.get("vcs_info", {}).get("commit_id")
        editable = content.get("dir_info", {}).get("editable", False)
    except (ValueError, KeyError, TypeError, AttributeError):
        return ""
    clean = parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()
    return f"  # {'editable, ' if editable else ''}from {clean}{f'@{commit}' if commit else ''}"


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def read_environment(path: Path) -> dict[str, str]:
    """environment.txt as name -> version and origin, with the keys "Python" and "platform".

    Raises UsageError when the file is missing or cannot be read.
    """
    try:
        lines = read_file(path).decode("utf-8").splitlines()
    except FileNotFoundError:
        raise UsageError(f"{path} is missing") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    found: dict[str, str] = {}
    for line in lines:
        if line.startswith("# Python "):
            found["Python"] = line.removeprefix("# Python ")
        elif line.startswith("#"):
            found["platform"] = line.lstrip("# ")
        else:
            name, _, version = line.partition("==")
            found[_normal(name)] = version
    return found


def usable_cores() -> int:
    """CPU cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        return os.cpu_count() or 1


_CALLS: list[Callable[[], Any]] = []


def in_parallel(calls: Sequence[Callable[[], T]]) -> list[T]:
    """What each call returns, in their order: by processes forked from this one, as many as it has cores, where that is
    safe, else one after the other. A call must change nothing outside of it."""
    number = min(usable_cores(), len(calls))
    # The threads of torch would not be there after a fork, and their locks might be held.
    if number < 2 or sys.platform != "linux" or "torch" in sys.modules or threading.active_count() > 1:
        return [call() for call in calls]
    import multiprocessing  # here, because most commands need none of it

    _CALLS[:] = calls
    try:
        with multiprocessing.get_context("fork").Pool(number, signal.signal, (signal.SIGINT, signal.SIG_IGN)) as pool:
            return pool.map(_call, range(len(calls)), chunksize=1)
    finally:
        _CALLS.clear()


def _call(number: int) -> Any:
    return _CALLS[number]()


WAIT_KEYS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""Environment variables that say how idle OpenMP threads wait (GNU's library reads the first two, LLVM's and Intel's
the first and last)."""

_WAITS = {
    "passive": ("passive", {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}),
    "active": ("active", {"OMP_WAIT_POLICY": "ACTIVE"}),
    "auto": ("a short spin", {"GOMP_SPINCOUNT": "20000", "KMP_BLOCKTIME": "1"}),
}

_WAITING: dict[str, str] = {}
"""`waits` that this process has set itself -> what `set_wait` says of them, also in later rounds of a command."""

MALLOPT = {"MALLOC_TRIM_THRESHOLD_": (-1, 2**28), "MALLOC_MMAP_THRESHOLD_": (-3, 2**30)}
"""Variable of glibc -> number of its option of mallopt, and bytes."""


def keep_freed_memory() -> None:
    """Let glibc's allocator keep what is freed: by default each training step gives its memory back to the system and
    gets it again page by page, 14 to 29 % of its time on a CPU (docs/performance.md). Variables that the user
    set win; other allocators are left alone."""
    if sys.platform == "linux" and not any(name in os.environ for name in (*MALLOPT, "GLIBC_TUNABLES")):
        import ctypes

        libc = ctypes.CDLL(None)
        for option in MALLOPT.values() if hasattr(libc, "mallopt") else ():  # musl has none
            libc.mallopt(*option)


BUSY_LOAD = 0.25
"""Load average per usable core above which others may be using the machine."""


def _others_run() -> bool:
    """Whether others are running now: the load average also remembers our own runs of the last minutes. Linux counts
    the runnable threads; elsewhere they are taken to run."""
    counts = []
    for _ in range(5):
        try:
            counts.append(int(Path("/proc/loadavg").read_text(encoding="ascii").split()[3].partition("/")[0]))
        except (OSError, ValueError, IndexError):
            return True
        time.sleep(0.01)
    return sorted(counts)[2] > 1  # more than this thread


def set_wait(wait: str, threads: int | None, n_runs: int = 1) -> str:
    """Set how idle threads wait (``trainer.wait``) for this process and those it starts; returns a line about it.

    OpenMP reads the variables when torch is loaded: later calls change nothing. Variables that the user set win.
    threads: of a run, None for as many as torch takes; n_runs: at once. The line advises one thread where several would
    wait for others, and says where there are more threads than cores.
    """
    load, n_cores = os.getloadavg()[0] if hasattr(os, "getloadavg") else math.nan, usable_cores()
    busy, line = load / n_cores > BUSY_LOAD, f"load average {load:.1f} on {pluralize(n_cores, 'usable core')}"
    busy = busy and _others_run()
    if waits() in _WAITING:
        line += _WAITING[waits()]
    elif waits() or "torch" in sys.modules:
        line += f"; idle threads wait as set when the command began ({waits() or 'default of OpenMP'})"
    else:
        name, variables = _WAITS["passive" if wait == "auto" and busy else wait]
        os.environ.update(variables)
        line += _WAITING.setdefault(waits(), f"; idle threads: {name} (trainer.wait={wait})")
    several = str(threads or os.environ.get("OMP_NUM_THREADS") or n_cores) != "1"
    if (asked := n_runs * (threads or 1)) > n_cores:
        return f"{line}; {asked} threads there wait for each other: fewer are faster"
    return line + "; others use this machine: trainer.threads=1 is often faster" * (busy and several)


def waits() -> str:
    """The variables `WAIT_KEYS` that are set, as NAME=VALUE ..."""
    return " ".join(f"{key}={os.environ[key]}" for key in WAIT_KEYS if key in os.environ)
