"""A command in a process of its own, which is killed or stopped, or whose disk fails, at a chosen moment."""

import builtins
import contextlib
import errno
import io
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from reliability import Said
from reliability.guards import break_named

PATIENCE_S = 300.0
"""How long a command may take; a case takes seconds."""

_CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.symlink", "os.link"}


@dataclass(frozen=True)
class Fault:
    """kind: "kill" or "stop" at system call number ``at`` that changes files, at ``at`` seconds of "cpu" or "wall"
    time, or that call fails: "ENOSPC" (in the middle, if it writes) or "EIO", once or ``forever``; "short": it and all
    later ones write half of what they are given, which is no failure. None of them: "nothing", the calls are counted.
    """

    kind: str = "nothing"
    at: float = 0
    forever: bool = False


class _Calls:
    """The system calls of this process that change files."""

    def __init__(self, fault: Fault, log: Path) -> None:
        self.fault, self.count, self.lock = fault, 0, threading.RLock()
        self.log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def comes(self, name: str, half: Callable[[], Any] = lambda: None) -> bool:
        """One more; half: writes half of the data. Whether the call may write half only."""
        with self.lock:
            self.count += 1
            os.write(self.log, f"{name}\n".encode())
            fault, reached = self.fault, self.count >= self.fault.at
            if fault.kind == "short":
                return reached
            if fault.kind in ("nothing", "cpu", "wall") or not (reached if fault.forever else self.count == fault.at):
                return False
            if fault.kind == "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
                return False
            half()
            if fault.kind == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            number = getattr(errno, fault.kind)
            raise OSError(number, os.strerror(number))


def _install(calls: _Calls) -> None:
    class Raw(io.FileIO):
        def write(self, data: Any, /) -> int:
            view = memoryview(data).cast("B")
            half = view[: max(1, len(view) // 2)]
            # An error in the middle of a write shows at the next one, a short write at once.
            write = super().write
            only_half = calls.comes(f"write {Path(str(self.name)).name}", lambda: write(half))
            return write(half if only_half else view) or 0

    real_open, real_fsync = open, os.fsync

    def opened(file: Any, mode: str = "r", buffering: int = -1, encoding: Any = None, errors: Any = None,
               newline: Any = None, closefd: bool = True, opener: Any = None) -> Any:  # fmt: skip
        if not set(mode) & set("wax+") or buffering == 0 or str(file).startswith(("/dev/", "/proc/")):
            return real_open(file, mode, buffering, encoding, errors, newline, closefd, opener)
        raw = Raw(file, mode.translate({ord("b"): None, ord("t"): None}), closefd, opener)
        buffered = (io.BufferedRandom if "+" in mode else io.BufferedWriter)(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding or "utf-8", errors, newline)

    def audit(event: str, arguments: Any) -> None:
        if event == "open" and isinstance(arguments[0], str) and arguments[2] & (os.O_WRONLY | os.O_RDWR):
            if not arguments[0].startswith(("/dev/", "/proc/")):
                calls.comes(f"open {Path(arguments[0]).name}")
        elif event in _CHANGES and (calls.fault.kind == "kill" or event not in ("os.remove", "os.rmdir")):
            place = arguments[1] if event == "os.rename" else arguments[0]
            calls.comes(f"{event} {place}")  # a full disk lets files be removed

    def fsync(descriptor: Any) -> None:
        calls.comes("fsync")
        real_fsync(descriptor)

    for module, name, function in ((io, "open", opened), (builtins, "open", opened), (os, "fsync", fsync)):
        setattr(module, name, function)
    sys.addaudithook(audit)


def _carry_out(words: Sequence[str], fault: Fault, folder: Path, said: str, environment: Mapping[str, str]) -> None:
    """In the new process. What it prints and its calls are files of the folder, whose names begin with ``said``."""
    os.setsid()
    # The server of processes may have been begun by a command whose memory was limited.
    resource.setrlimit(resource.RLIMIT_AS, (resource.getrlimit(resource.RLIMIT_AS)[1],) * 2)
    os.environ.update({"SEGEXP_CACHE": str(folder / "cache"), **environment})
    for stream, name in ((1, f"{said}.out"), (2, f"{said}.err")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    sys.stdout, sys.stderr = (os.fdopen(stream, "w", buffering=1, encoding="utf-8", closefd=False) for stream in (1, 2))
    from segexp import cli
    from segexp.training import checkpoint, loop

    break_named()
    checkpoint.WRITE_EVERY_S = loop.TABLES_EVERY_S = 0.0  # as if every epoch took long
    if fault.kind == "cpu":
        signal.setitimer(signal.ITIMER_PROF, fault.at)  # its signal ends a process at once, as SIGKILL does
    (folder / f"{said}.calls").unlink(missing_ok=True)
    _install(_Calls(fault, folder / f"{said}.calls"))
    try:
        code = cli.main(list(words))
    except SystemExit as error:
        code = int(error.code or 0)
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    os._exit(code)


def begin(
    words: Sequence[str], fault: Fault, folder: Path, said: str = "said", environment: Mapping[str, str] | None = None
) -> Any:
    """Begin a command under a fault; returns its process."""
    from segexp.sweep.pool import PRELOADED

    context = get_context("forkserver")
    context.set_forkserver_preload([*PRELOADED, "segexp.cli", "matplotlib.pyplot", "reliability.warm"])
    process = context.Process(target=_carry_out, args=(words, fault, folder, said, environment or {}))
    process.start()
    return process


def end(process: Any, folder: Path, patience_s: float = PATIENCE_S, said: str = "said") -> tuple[Said, list[str]]:
    """What a command of `begin` said, once it has ended or was killed after so many seconds, and its calls."""
    process.join(patience_s)
    hung = process.is_alive() and patience_s == PATIENCE_S
    if process.is_alive():
        process.kill()
        process.join()
    out, err, calls = (
        path.read_text(encoding="utf-8", errors="replace") if (path := folder / f"{said}.{name}").exists() else ""
        for name in ("out", "err", "calls")
    )
    wrong = "Traceback" in err or "please report" in err
    fault_seen = "hang" if hung else f"traceback: {err.strip().splitlines()[-1]}" if wrong else ""
    return Said(process.exitcode, out, err, fault_seen), calls.splitlines()


def injected(
    words: Sequence[str], fault: Fault, folder: Path, environment: Mapping[str, str] | None = None
) -> tuple[Said, list[str], float]:
    """Run a command under a fault; its exit code is negative where it was killed. Also its calls and its seconds."""
    begun = time.perf_counter()
    process = begin(words, fault, folder, environment=environment)
    said, calls = end(process, folder, fault.at if fault.kind == "wall" else PATIENCE_S)
    return said, calls, time.perf_counter() - begun
