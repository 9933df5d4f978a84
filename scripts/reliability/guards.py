"""Guards of segexp, each of which can be broken in a process, to see that the campaign then finds a fault.

    PYTHONPATH=scripts python -m reliability entrances --cases 30 --broken escape

A campaign that stays green without a guard does not try what that guard is for.
"""

import functools
import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

VARIABLE = "RELIABILITY_BROKEN"
"""Names the broken guard to the processes that a case starts."""


def _replace(name: str, new: Any) -> None:
    """Replace a function in every module that has it."""
    for module in ("running.execute", "sweep.local", "commands.compare", "commands.evaluate", "commands.status"):
        importlib.import_module(f"segexp.{module}")
    for loaded in [one for key, one in sys.modules.items() if key.startswith("segexp") and hasattr(one, name)]:
        setattr(loaded, name, new)


def checksum() -> None:
    """Tables and checkpoints are taken without their checksums."""
    from segexp import records
    from segexp.training import checkpoint

    real = records.whole_table
    _replace("whole_table", lambda run_dir, record, table: real(run_dir, {**record, "sha256": {}}, table))
    checkpoint._verify = lambda file: bool(file.seek(0)) or True


def weights_only() -> None:
    """torch.load runs the code in a checkpoint."""
    import torch

    real = torch.load
    torch.load = lambda *given, **named: real(*given, **{**named, "weights_only": False})


def atomic_rename() -> None:
    """Files are written under their names, not beside them."""
    from segexp.records.owned import Folder

    def copied(self: Folder, name: str, to: Folder, new: str) -> None:
        with open(name, "rb", opener=lambda at, flags: os.open(self.at(at), flags, dir_fd=self.fd)) as file:
            data = file.read()
        with open(new, "wb", opener=lambda at, flags: os.open(to.at(at), flags, 0o666, dir_fd=to.fd)) as file:
            file.write(data)
        os.unlink(self.at(name), dir_fd=self.fd)

    Folder.move = copied  # type: ignore[method-assign]


def lock() -> None:
    """Nobody seems to hold a lock, and an owner never sees that it was lost."""
    from segexp.records import owned

    _replace("lock_holder", lambda run_dir: "")
    owned.Ownership.lost = property(lambda self: False)  # type: ignore[assignment, method-assign]


def nofollow() -> None:
    """Links in run directories are followed."""
    from segexp.records import owned

    owned._SAFE = 0
    owned.Folder.refuse_odd = lambda self, name: None  # type: ignore[method-assign]


def escape() -> None:
    """Text becomes part of the page as it is."""
    from segexp.report import page

    real = vars(page)["Environment"]
    setattr(page, "Environment", lambda **given: real(**{**given, "autoescape": False}))  # noqa: B010


def decision() -> None:
    """The record of a decision is taken without its checksums."""
    from segexp.records import decision as of

    class Equal(list[str]):
        def __ne__(self, other: object) -> bool:
            return False

    real = of.checksums
    of.checksums = lambda entries: Equal(real(entries))


GUARDS: dict[str, Callable[[], None]] = {
    one.__name__: one for one in (checksum, weights_only, atomic_rename, lock, nofollow, escape, decision)
}


@functools.cache
def break_named() -> None:
    """Break the guard that the environment names, in this process, once."""
    if name := os.environ.get(VARIABLE):
        GUARDS[name]()
