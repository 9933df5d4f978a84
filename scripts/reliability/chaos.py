"""Sweeps of two hosts on one folder: processes are killed and stopped, clocks jump, folders are moved away.

At the end the same command, once more and undisturbed, leaves every run once, with the bytes of a sweep that nothing
happened to.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from reliability import STUDY, Ending, fault_class, said_by
from reliability.interruptions import ended
from reliability.other_host.sitecustomize import STALE_S

OTHER_HOST = Path(__file__).parent / "other_host"
PATIENCE_S = 400.0
WORDS = ("train", "-m", *(word.replace("epochs=2", "epochs=4") for word in STUDY), "hydra.launcher.n_jobs=1")


def prepare(made: Path) -> None:
    """The sweep, undisturbed."""
    said = said_by([*WORDS, f"outputs={made / 'outputs'}"])
    if said.code != 0:
        raise RuntimeError(f"the sweep was not made: {said}")


class Sweep:
    """Two schedulers of one sweep, on hosts a and b."""

    def __init__(self, own: Path) -> None:
        self.own, self.study = own, own / "outputs" / "s"
        self.schedulers: dict[str, subprocess.Popen[bytes]] = {}
        self.held: list[tuple[float, int]] = []  # stopped processes, and when they go on
        self.moved: list[tuple[float, Path, Path]] = []

    def begin(self, host: str) -> None:
        env = {**os.environ, "RELIABILITY_HOST": host, "SEGEXP_CACHE": str(self.own / "cache")}
        env["PYTHONPATH"] = os.pathsep.join([str(OTHER_HOST), str(OTHER_HOST.parents[1]), env.get("PYTHONPATH", "")])
        command = [sys.executable, "-m", "segexp", *WORDS, f"outputs={self.own / 'outputs'}"]
        with (self.own / f"said.{host}").open("ab") as said:
            self.schedulers[host] = subprocess.Popen(command, env=env, stdout=said, stderr=said, start_new_session=True)

    def workers(self) -> list[int]:
        """The processes that the locks name."""
        found = []
        for lock in self.study.glob("*/lock"):
            with suppress(OSError, ValueError, KeyError, TypeError):
                found.append(int(json.loads(lock.read_bytes())["pid"]))
        return found

    def tick(self) -> None:
        """Let those go on, and move that back, whose time has come."""
        now = time.monotonic()
        for until, pid in [one for one in self.held if one[0] <= now]:
            self.held.remove((until, pid))
            _signal(pid, signal.SIGCONT)
        for until, place, away in [one for one in self.moved if one[0] <= now]:
            self.moved.remove((until, place, away))
            if not place.exists():
                away.rename(place)

    def end(self) -> None:
        for _, pid in self.held:
            _signal(pid, signal.SIGCONT)
        for process in self.schedulers.values():
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _signal(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _kill_worker(draw: random.Random, sweep: Sweep) -> str:
    for pid in draw.sample(workers := sweep.workers(), min(1, len(workers))):
        _signal(pid, signal.SIGKILL)
    return f"a worker of {len(workers)} killed"


def _stop(draw: random.Random, sweep: Sweep) -> str:
    who = draw.choice(("worker", "worker", "scheduler"))
    pids = sweep.workers() if who == "worker" else [one.pid for one in sweep.schedulers.values() if one.poll() is None]
    for pid in draw.sample(pids, min(1, len(pids))):
        _signal(pid, signal.SIGSTOP)
        sweep.held.append((time.monotonic() + draw.uniform(0.5, 2.5) * STALE_S, pid))
    return f"a {who} of {len(pids)} stopped"


def _kill_scheduler(draw: random.Random, sweep: Sweep) -> str:
    host, group = draw.choice(sorted(sweep.schedulers)), draw.random() < 0.5
    with suppress(ProcessLookupError):
        (os.killpg if group else os.kill)(sweep.schedulers[host].pid, signal.SIGKILL)
    sweep.schedulers[host].wait()
    sweep.begin(host)
    return f"scheduler {host} killed{' with its workers' if group else ''} and begun again"


def _delete_lock(draw: random.Random, sweep: Sweep) -> str:
    locks = sorted(sweep.study.glob("*/lock"))
    for lock in draw.sample(locks, min(1, len(locks))):
        lock.unlink(missing_ok=True)
    return f"a lock of {len(locks)} deleted"


def _move(draw: random.Random, sweep: Sweep) -> str:
    """The study or a run, to another name for a moment; for ever, where another one has taken its place."""
    place = draw.choice((sweep.study, *sorted(sweep.study.glob("lesions-*"))))
    away = sweep.own / f"away-{len(list(sweep.own.glob('away-*')))}"
    with suppress(FileNotFoundError):
        place.rename(away)
        sweep.moved.append((time.monotonic() + draw.uniform(0.1, 3), place, away))
    return f"{place.name[:8]} moved away"


ACTIONS: tuple[Callable[[random.Random, Sweep], str], ...] = (
    *(_kill_worker, _kill_worker, _stop, _stop, _kill_scheduler, _delete_lock, _move),
)


@fault_class(
    "six runs swept by two hosts, with killed and stopped processes, jumping clocks, moved folders", 40, prepare
)
def chaos(draw: random.Random, made: Path, own: Path) -> Ending:
    sweep = Sweep(own)
    told: list[str] = []
    deadline, actions = time.monotonic() + PATIENCE_S, draw.randint(3, 10)
    try:
        for host in ("a", "b"):
            sweep.begin(host)
        after = 0.0
        while any(process.poll() is None for process in sweep.schedulers.values()) or sweep.moved:
            if time.monotonic() > deadline:
                return Ending("hang", "; ".join(told), _said(own))
            if len(told) < actions and time.monotonic() > after and sweep.workers():
                told.append(draw.choice(ACTIONS)(draw, sweep))
                after = time.monotonic() + draw.uniform(0.3, 3.0)
            sweep.tick()
            time.sleep(0.05)
    finally:
        sweep.end()
    what = "; ".join(told)
    if "Traceback" in _said(own):
        return Ending("traceback", what, _said(own))
    sweep.begin("a")
    code = sweep.schedulers["a"].wait(PATIENCE_S)
    true, found = ended(made / "outputs"), ended(own / "outputs")
    true, found = ({name: sha for name, sha in one.items() if "sweeps" not in name} for one in (true, found))
    missing, extra = sorted(true.keys() - found.keys()), sorted(found.keys() - true.keys())
    other = sorted(name for name in true.keys() & found.keys() if true[name] != found[name])
    seen = f"exit code {code}\nmissing: {missing}\nother content: {other}\nleft over: {extra}\n{_said(own)}"
    if code or missing:
        return Ending("lost", what, seen)
    return Ending("lie" if other else "litter" if extra else "same", what, seen if other or extra else "")


def _said(own: Path) -> str:
    return "\n".join(f"{host}: {(own / f'said.{host}').read_text(errors='replace')[-1500:]}" for host in ("a", "b"))
