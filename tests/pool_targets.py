"""What the processes of tests/sweep/test_pool.py do; a module of its own, for a process finds its target by name."""

import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segexp.errors import REFUSED
from segexp.sweep.pool import BUSY, Report

SLEEP_S = 600.0
"""How long those sleep that are to be stopped."""


def act(payload: Mapping[str, Any], report: Report) -> int:
    """Does what the payload says, and notes in a file that it was begun."""
    folder = Path(payload["folder"])
    with (folder / f"{payload['name']}.begun").open("a", encoding="utf-8") as file:
        file.write(f"{os.getpid()} {os.environ.get('CUDA_VISIBLE_DEVICES')} {time.monotonic()}\n")
    print("printed by", payload["name"])
    attempts = len((folder / f"{payload['name']}.begun").read_text().splitlines())
    match payload.get("does", "nothing"):
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "kill once" if attempts == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        case "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "leave":
            os._exit(payload.get("code", 3))
        case "refuse":
            report(reason="no such thing")
            return REFUSED
        case "busy once" if attempts == 1:
            report(reason="in use")
            return BUSY
        case "save when asked":
            asked: list[int] = []
            signal.signal(signal.SIGUSR1, lambda number, frame: asked.append(number))
            (folder / f"{payload['name']}.ready").touch()
            while not asked:
                time.sleep(0.02)
            (folder / f"{payload['name']}.saved").touch()
            return 0
        case "sleep":
            try:
                signal.signal(signal.SIGUSR1, signal.SIG_IGN)
                signal.signal(signal.SIGTERM, _interrupt)
                (folder / f"{payload['name']}.ready").touch()
                time.sleep(SLEEP_S)
            except KeyboardInterrupt:
                (folder / f"{payload['name']}.interrupted").touch()
                return 0
        case "stay":
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            (folder / f"{payload['name']}.ready").touch()
            time.sleep(SLEEP_S)
    report(status="done", reason="")
    return 0


def _interrupt(signum: int, frame: object) -> None:
    raise KeyboardInterrupt
