"""A run that is killed at a moment of its life; a module of its own, for a process finds its target by name."""

import io
import os
import signal
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segexp.sweep import pool as worker
from segexp.sweep.pool import Report


def run_until(payload: Mapping[str, Any], report: Report) -> int:
    """The run of ``payload["config"]``, killed at moment number ``payload["moment"]`` (0: never).

    A moment is a training step, a file about to be opened for writing, brought to disk, renamed or removed, and the
    middle of a checkpoint, which is written beside the next epoch. The names of all moments that came are written into
    ``payload["moments"]``.
    """
    import torch

    from segexp.training import checkpoint, loop

    checkpoint.WRITE_EVERY_S = loop.TABLES_EVERY_S = 0.0  # as if every epoch took long
    wanted, names = payload["moment"], Path(payload["moments"])
    outputs = payload["config"]["outputs"]
    # A cache of its own: the run is killed while it stores its images, too, and every run has the same moments.
    os.environ["SEGEXP_CACHE"] = f"{outputs}.cache"
    count = 0
    log, one_at_a_time = names.open("w", encoding="utf-8"), threading.RLock()

    def moment(name: str, last_act: Any = None) -> None:
        nonlocal count
        with one_at_a_time:
            count += 1
            log.write(f"{name}\n")
            if count == wanted:
                log.flush()
                if last_act:
                    last_act()
                os.kill(os.getpid(), signal.SIGKILL)

    def audit(event: str, arguments: Any) -> None:
        if event == "open" and isinstance(arguments[0], str) and arguments[2] & (os.O_WRONLY | os.O_RDWR):
            # Inside the run directory, names are relative to its descriptor.
            if arguments[0].startswith((outputs, ".owner-")):
                moment(f"open {Path(arguments[0]).name}")
        elif event in ("os.rename", "os.remove") and not os.path.isabs(arguments[0]):
            moment(f"{event} {Path(arguments[-3 if event == 'os.rename' else 0]).name}")

    real_fsync, real_save, real_step = os.fsync, torch.save, loop.train_step

    def fsync(descriptor: int) -> None:
        moment("fsync")
        real_fsync(descriptor)

    def save(content: Any, file: Any) -> None:
        whole = io.BytesIO()
        real_save(content, whole)
        data = whole.getvalue()

        def half() -> None:
            file.write(data[: len(data) // 2])
            file.flush()

        moment("half a checkpoint", half)
        file.write(data)

    def step(*arguments: Any) -> Any:
        moment("step")
        return real_step(*arguments)

    os.fsync, torch.save, loop.train_step = fsync, save, step  # type: ignore[assignment]
    sys.addaudithook(audit)
    code = worker.run(payload, report)
    log.close()
    return code
