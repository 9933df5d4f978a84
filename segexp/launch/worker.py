"""What happens inside the process of one run of a sweep."""

import faulthandler
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from multiprocessing import parent_process
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from segexp.errors import REFUSED, BusyError, UsageError, first_line
from segexp.resolve import config_of

BUSY, BROKEN = 75, 70
"""Exit codes of a process whose run did not begin: owned by another process; an error."""

EXIT_CODES = (0, REFUSED, BUSY, BROKEN)
"""How a process leaves by itself; any other code is a death."""

PRELOADED = (
    "segexp.launch.worker",
    "segexp.running.conclude",
    "segexp.evaluation.pictures",
    "segexp.training.loop",
    "segexp.training.diagnostics_figure",
    "segexp.models.swap",
    "segexp.models.trace",
    "segexp.activations.pointwise",
    "segexp.data.augment",
    "torch",
    "torchvision.transforms.v2",
    "segmentation_models_pytorch",
    "scipy.ndimage",
    "matplotlib.figure",
    "matplotlib.backends.backend_agg",
)
"""What the server of processes imports once for all of them. Imports only: an operation of torch there would leave
its threads behind, which a forked process does not have."""

SECONDS_TO_LEAVE = 30.0
"""How long a worker whose parent has died may take to record that it was interrupted."""

Target = Callable[[Mapping[str, Any], "Report"], int]


class Report:
    """What a worker tells its parent: lines that say why its run did not begin or what became of it."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def __call__(self, **facts: Any) -> None:
        try:
            self._connection.send(facts)
        except OSError:
            return  # the parent is gone, and so is whoever would read this


def main(target: Target, payload: Mapping[str, Any], output: Path, gpu: str | None, connection: Connection) -> None:
    """Entry of a worker: its output goes to a file, Ctrl-C is its parent's business, and it ends when its parent does.

    gpu: what CUDA_VISIBLE_DEVICES becomes; None leaves it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in ("SIGTERM", "SIGUSR1"):
        if hasattr(signal, name):
            # Before there is anything to save, stopping after saving means leaving, too.
            signal.signal(getattr(signal, name), lambda *_: sys.exit(0))
    _write_to(output)
    faulthandler.enable()
    threading.Thread(target=_leave_with_parent, daemon=True, name="segexp-parent").start()
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    try:
        code = target(payload, Report(connection))
    except KeyboardInterrupt:
        code = 0  # the run has recorded it
    sys.stdout.flush()
    sys.exit(code)


def run(payload: Mapping[str, Any], report: Report) -> int:
    """One run from its plain configuration to its directory; returns the exit code."""
    from segexp.running import execute, prepare

    try:
        outcome = execute(prepare(config_of(payload)))
    except BusyError as error:
        report(reason=str(error))
        return BUSY
    except UsageError as error:
        report(reason=str(error))
        return REFUSED
    except Exception as error:
        traceback.print_exc()
        report(reason=f"{type(error).__name__}: {first_line(error)}")
        return BROKEN
    report(status=outcome.status, reason=outcome.reason)
    return 0


def _write_to(path: Path) -> None:
    """Everything that this process and its libraries print goes to a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    sys.stdout = open(1, "w", buffering=1, encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115


def _leave_with_parent() -> None:
    """A run whose sweep was killed would go on unseen and keep its directory from the next attempt."""
    parent = parent_process()
    if parent is None:
        return
    wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(SECONDS_TO_LEAVE)
    os._exit(1)
