"""A permanent campaign: does segexp lose a result, lie about one, or let anything in? Seeded, resumable, reproducible.

    make reliability                                        # every class of fault, in its long form
    PYTHONPATH=scripts python -m reliability damage --cases 50     # one class, cases 0 to 49
    PYTHONPATH=scripts python -m reliability damage --only 17      # one case again, with what it printed

A class of fault is one module here with one decorated function, which carries out case number n and says how it ended.
A case draws everything from (class, n), so that its number repeats it.
"""

import contextlib
import importlib
import io
import pkgutil
import random
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HANGS_S = 10.0
"""Seconds of processor time after which a command counts as hanging."""

HELD = ("same", "refused", "reported")
FAULTS = ("lie", "traceback", "hang", "escape", "lost")
"""How a case ends. same: nothing differs. refused: one line with a cure and exit code 2, or 1 for single files of many.
reported: another result, and a warning that says why. lie: another result, and nothing said. escape: something was
written, read or run where it must not be. lost: a result is gone."""


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
    """All classes, in the order of their modules' names."""
    for module in sorted(info.name for info in pkgutil.iter_modules(__path__)):
        if module != "__main__":
            importlib.import_module(f"{__name__}.{module}")
    return CLASSES


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


class _Hangs(BaseException):
    """Not an Exception, so that nothing between takes it for a failure of its own."""


@contextlib.contextmanager
def _limited(seconds: float) -> Iterator[None]:
    def ring(number: int, frame: Any) -> None:
        raise _Hangs

    before = signal.signal(signal.SIGVTALRM, ring)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def said_by(words: Sequence[str]) -> Said:
    """Run a command in this process, within `HANGS_S`."""
    from segexp import cli

    out, err, code, fault = io.StringIO(), io.StringIO(), None, ""
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            with _limited(HANGS_S):
                code = cli.main(list(words))
        except _Hangs:
            fault = "hang"
        except BaseException as error:  # SystemExit, too: commands return their code
            fault = f"traceback: {type(error).__name__}: {error}"
    if "Traceback" in err.getvalue() or "please report" in err.getvalue():
        fault = fault or f"traceback: {err.getvalue().strip().splitlines()[-1]}"
    return Said(code, out.getvalue(), err.getvalue(), fault)
