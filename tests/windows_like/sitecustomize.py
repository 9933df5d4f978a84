"""Takes away from a process what Windows does not have; Python reads this where its folder is on PYTHONPATH.

No descriptors of folders, fcntl, fork, SIGUSR1 and /proc; os.kill ends a process; an open file is neither removed nor
replaced.
"""

import fcntl
import os
import pathlib
import signal
import subprocess  # before it finds msvcrt, by which it knows Windows  # noqa: F401
import sys
from types import SimpleNamespace
from typing import Any

_list, _readlink, _kill = os.listdir, os.readlink, os.kill


def _opened_below(path: str) -> bool:
    """Whether this process has the file open, or one in the folder."""
    path = os.path.abspath(path)
    for number in _list("/proc/self/fd"):
        try:
            target = _readlink(f"/proc/self/fd/{number}")
        except OSError:
            continue
        if target == path or target.startswith(f"{path}/"):
            return True
    return False


def _sharing(function: Any) -> Any:
    def checked(*paths: Any, **options: Any) -> Any:
        assert not any(options.get(name) is not None for name in ("dir_fd", "src_dir_fd", "dst_dir_fd"))
        for path in paths:
            if isinstance(path, (str, os.PathLike)) and _opened_below(os.fspath(path)):
                raise PermissionError(13, "another process is using this file", os.fspath(path))
        return function(*paths, **options)

    return checked


for name in ("unlink", "remove", "rename", "replace", "rmdir"):
    setattr(os, name, _sharing(getattr(os, name)))


def _no_proc(function: Any, missing: Any) -> Any:
    def hidden(path: Any, *words: Any, **options: Any) -> Any:
        return missing() if os.fspath(path).startswith("/proc/") else function(path, *words, **options)

    return hidden


def _missing() -> None:
    raise FileNotFoundError(2, "No such file")


setattr(pathlib.Path, "read_text", _no_proc(pathlib.Path.read_text, _missing))  # noqa: B010
setattr(pathlib.Path, "exists", _no_proc(pathlib.Path.exists, lambda: False))  # noqa: B010

_flock, _EXCLUSIVE = fcntl.flock, fcntl.LOCK_EX
_msvcrt: Any = SimpleNamespace(LK_LOCK=1, locking=lambda descriptor, mode, n_bytes: _flock(descriptor, _EXCLUSIVE))
sys.modules["msvcrt"] = _msvcrt
for name in ("fcntl", "resource", "termios", "pwd", "grp"):
    sys.modules[name] = None  # type: ignore[assignment]
for name in (
    "O_NOFOLLOW", "O_NONBLOCK", "O_DIRECTORY", "fork", "getuid", "geteuid", "getloadavg", "killpg", "mkfifo", "pread",
    "sched_getaffinity", "setsid",
):  # fmt: skip
    delattr(os, name)
os.supports_dir_fd.clear()
setattr(os, "kill", lambda pid, number: _kill(pid, signal.SIGKILL))  # noqa: B010
signal.SIGBREAK = signal.SIGTTIN  # type: ignore[attr-defined]
del signal.SIGUSR1, signal.SIGUSR2
