"""A permanent campaign: does segexp lose a result, lie about one, or let anything in? Seeded, resumable, reproducible.

    make reliability                                        # every class of fault, in its long form
    PYTHONPATH=scripts python -m reliability damage --cases 50     # one class, cases 0 to 49
    PYTHONPATH=scripts python -m reliability damage --only 17      # one case again, with what it printed

A class of fault is one module here with one decorated function, which carries out case number n and says how it ended.
A case draws everything from (class, n), so that its number repeats it.
"""

import contextlib
import functools
import hashlib
import importlib
import io
import os
import pkgutil
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HANGS_S = 10.0
"""Seconds of processor time after which a command counts as hanging."""

MEMORY = 4 * 2**30
"""Bytes of address space that a command may add to those of this process."""

HELD = ("same", "refused", "reported")
FAULTS = ("lie", "traceback", "hang", "escape", "lost", "litter")
"""How a case ends. same: nothing differs. refused: one line with a cure and exit code 2, or 1 for single files of many.
reported: another result, and a warning that says why. lie: another result, and nothing said. escape: something was
written, read or run where it must not be. lost: a result is gone, or work done twice. litter: a file is left over."""


@dataclass(frozen=True)
class Ending:
    """How a case ended: one of `HELD` or `FAULTS`, and what was done and seen, for whoever looks into it."""

    how: str
    what: str
    seen: str = ""


@dataclass(frozen=True)
class FaultClass:
    """prepare(folder): makes what all cases start from, once. carry_out(random, prepared folder, own folder)."""

    name: str
    title: str
    cases: int
    prepare: Callable[[Path], None]
    carry_out: Callable[[random.Random, Path, Path], Ending]


CLASSES: dict[str, FaultClass] = {}


def fault_class(
    title: str, cases: int, prepare: Callable[[Path], None]
) -> Callable[[Callable[[random.Random, Path, Path], Ending]], Any]:
    """Decorator: register a class under the name of its function. cases: of the long form."""

    def register(carry_out: Callable[[random.Random, Path, Path], Ending]) -> Any:
        CLASSES[carry_out.__name__] = FaultClass(carry_out.__name__, title, cases, prepare, carry_out)
        return carry_out

    return register


def load() -> dict[str, FaultClass]:
    """All classes, in the order of their names."""
    for module in sorted(info.name for info in pkgutil.iter_modules(__path__)):
        if module != "__main__":
            importlib.import_module(f"{__name__}.{module}")
    return dict(sorted(CLASSES.items()))


def generator(name: str, case: int) -> random.Random:
    """The random numbers of a case."""
    return random.Random(f"{name}/{case}")


@dataclass(frozen=True)
class Said:
    """What a command printed, and its exit code; None for one that raised or hung, which is in ``fault``."""

    code: int | None
    out: str
    err: str
    fault: str = ""


STUDY = (
    *("activation=sigmoid,arctan", "seed=range(3)", "loss=dice", "study.name=s", "dataset.number=24"),
    *("dataset.image_size=32", "trainer.epochs=2", "trainer.batch_size=5", "trainer.device=cpu", "trainer.threads=1"),
    *("model.encoder_depth=3", "model.decoder_channels=[16,8,8]", "backbone.name=tu-test_resnet"),
)


@functools.cache
def _made() -> tempfile.TemporaryDirectory[str]:
    folder = tempfile.TemporaryDirectory(prefix="segexp-reliability-study-")
    said = said_by(["train", "-m", *STUDY, f"outputs={folder.name}"])
    if said.code != 0:
        raise RuntimeError(f"the study was not made: {said}")
    return folder


def study(folder: Path) -> None:
    """Six runs of two arms in outputs/s, and beside them a file that nothing may touch."""
    (folder / "outside").mkdir()
    (folder / "outside" / "untouched.txt").write_text("as it was\n", encoding="utf-8")
    shutil.copytree(_made().name, folder / "outputs")


def runs_of(outputs: Path) -> list[Path]:
    """The runs of `study`."""
    return sorted((outputs / "s").glob("lesions-*"))


def files(folder: Path) -> dict[str, str]:
    """Every file below a folder and its SHA-256."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


class _Hangs(BaseException):
    """Not an Exception, so that nothing between takes it for a failure of its own."""


@contextlib.contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """Within so many seconds of processor time, and `MEMORY`."""

    def ring(number: int, frame: Any) -> None:
        raise _Hangs

    importlib.import_module("torch")  # whose libraries are not the command's memory
    limits = resource.getrlimit(resource.RLIMIT_AS)
    if sys.platform == "linux":
        used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, limits[1]))
    before = signal.signal(signal.SIGVTALRM, ring)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, limits)


_WATCH: dict[str, Any] = {}
_CHANGES = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.symlink", "os.link", "os.truncate", "os.chmod")
_CODE = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "socket.connect")


def _hear(event: str, given: tuple[Any, ...]) -> None:
    """Note what a command does outside of its folder. Paths below an open folder (dir_fd) were checked with it."""
    if not _WATCH:
        return
    if event in _CODE and given[0] != "/sbin/ldconfig":  # which Python asks for libraries
        _WATCH["heard"].append(f"{event} {given[:2]}")
    writes = event == "open" and isinstance(given[2], int) and given[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    if (event != "open" and event not in _CHANGES) or not isinstance(given[0], str | bytes | os.PathLike):
        return
    place = os.fsdecode(given[0])
    if event == "open" and isinstance(given[2], int) and given[2] & getattr(os, "O_NOFOLLOW", 0):
        path = os.path.join(os.path.realpath(os.path.dirname(place)), os.path.basename(place))
    else:
        path = os.path.realpath(place)
    secret = event == "open" and "untouched" in path
    inside = path.startswith((*_WATCH["folders"], "/dev/", "/proc/"))
    apart = not inside and not any(folder in path for folder in ("__pycache__", "matplotlib"))
    if secret or ((writes or event in _CHANGES) and apart):
        _WATCH["heard"].append(f"{event} {path}")


_install = functools.cache(sys.addaudithook)


@contextlib.contextmanager
def _watched(inside: Path | None) -> Iterator[list[str]]:
    """What is written outside of a folder, started, or read of a file called untouched; temporary files go inside."""
    heard: list[str] = []
    if inside is None:
        yield heard
        return
    _install(_hear)
    before, cwd = tempfile.tempdir, Path.cwd()
    tempfile.tempdir = str(inside)
    os.chdir(inside)
    cache = os.environ.get("SEGEXP_CACHE", "~/.cache/segexp")
    _WATCH.update(folders=[os.path.realpath(path) for path in (inside, Path(cache).expanduser())], heard=heard)
    try:
        yield heard
    finally:
        _WATCH.clear()
        os.chdir(cwd)
        tempfile.tempdir = before


def said_by(
    words: Sequence[str],
    inside: Path | None = None,
    run: Callable[[list[str]], int] | None = None,
    seconds: float | None = None,
) -> Said:
    """Run a command in this process, within `HANGS_S` or the seconds, and `MEMORY`. inside: the only folder it may
    write to; it becomes the current one. run: what takes the words, instead of the command line."""
    from segexp import cli

    out, err, code, fault = io.StringIO(), io.StringIO(), None, ""
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), _watched(inside) as heard:
        try:
            with _limited(seconds or HANGS_S):
                code = (run or cli.main)(list(words))
        except _Hangs:
            fault = "hang"
        except BaseException as error:  # SystemExit, too: commands return their code
            fault = f"traceback: {type(error).__name__}: {error}"
    if "Traceback" in err.getvalue() or "please report" in err.getvalue():
        fault = fault or f"traceback: {err.getvalue().strip().splitlines()[-1]}"
    return Said(code, out.getvalue(), err.getvalue(), f"escape: {'; '.join(heard)}" if heard else fault)


LONGEST_LINE = 1200
"""Characters of a line that says what is wrong: more is a dump."""


def ended(said: Said, what: str) -> Ending:
    """How a command ended that had bad input: same where it took it, else refused, or a fault. A refusal is one line
    after lines that begin with segexp as well, or a list of files, and no dump of a library."""
    seen = f"exit code {said.code}\n{said.err[-1500:]}"
    if said.fault:
        return Ending(said.fault.partition(":")[0], what, f"{said.fault[:1500]}\n{seen}")
    # `data check` is a report: what it refuses stands there.
    refused = [f"segexp: {line}" for line in said.out.splitlines() if line.startswith("a run would be refused")]
    lines = [line for line in [*said.err.splitlines(), *refused] if line.strip()]
    dumped = [line for line in lines if re.match(r"\s*(full_key|object_type|reference_type)[:=]", line)]
    if dumped or any(len(line) > LONGEST_LINE for line in lines) or said.code not in (0, 1, 2):
        return Ending("traceback", what, f"a dump instead of a line\n{seen}")
    if said.code == 2 and not (lines and lines[-1].startswith("segexp: ")):
        return Ending("traceback", what, f"the last line is not the refusal\n{seen}")
    return Ending("refused" if said.code else "same", what, "\n".join(lines)[-1500:])
