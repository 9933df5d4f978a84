"""Many runs on one machine: a process each, in slots, so that a run that dies takes no other along.

A process pool of the standard library is lost when one of its workers is killed; here the death of a process is one of
the ways in which its task ends. The processes are forked from a server that has imported torch once (forkserver).
This module knows processes, not runs: what a task is for, its directory tells.
"""

import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import connection, get_context
from pathlib import Path
from typing import Any

from segexp.launch import worker

LOOK_SECONDS = 0.5
"""Time between two looks at the clock, at Ctrl-C and at the table of what is going on."""

BUSY_SECONDS = 5.0
"""Time until a run that another process owns is tried again."""

KILL_SECONDS = 20.0
"""Time between the request to end at once and the end of patience."""


@dataclass(frozen=True)
class Task:
    """One piece of work: what the worker gets, and the file for what it prints.

    busy() says whether somebody else is at it just now, without starting a process to find out.
    """

    name: str
    payload: Mapping[str, Any]
    output: Path
    busy: Callable[[], bool] = lambda: False


@dataclass(frozen=True)
class Ending:
    """How a task's last process ended. crash: why it died, "" when it ended by itself; reason: what it said."""

    code: int | None
    crash: str = ""
    reason: str = ""
    attempts: int = 1
    seconds: float = 0.0


@dataclass
class Active:
    """A process at work on a task in a slot."""

    task: Task
    slot: int
    process: Any
    mailbox: connection.Connection
    began: float
    timed_out: bool = False
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass
class Board:
    """What is going on, for whoever shows it. stopping: 0 no, 1 after saving, 2 at once."""

    total: int
    active: list[Active] = field(default_factory=list)
    endings: dict[str, Ending] = field(default_factory=dict)
    waiting: int = 0
    busy: int = 0
    stopping: int = 0


def run_tasks(
    tasks: Sequence[Task],
    gpus: Sequence[str | None],
    target: worker.Target = worker.run,
    *,
    preload: Sequence[str] = worker.PRELOADED,
    retries: int = 1,
    timeout_seconds: float | None = None,
    show: Callable[[Board], None] = lambda board: None,
) -> Board:
    """Carry every task out, at most one per slot at a time; returns how each ended.

    gpus: one entry per slot, the CUDA_VISIBLE_DEVICES of its processes (None: as it is). A process that dies is started
    again ``retries`` times; one that takes longer than ``timeout_seconds`` is ended and not started again. Ctrl-C once
    lets every worker save and stop, twice ends them at once, and what had not begun has no ending. ``show`` is called
    at every change and a few times a second.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    queue = deque((task, 1, 0.0) for task in tasks)
    slots = list(range(len(gpus)))
    board = Board(len(tasks))
    told = 0
    ended_at_once = 0.0
    attempts: dict[str, int] = {}

    def start(task: Task, attempt: int) -> None:
        slot = slots.pop(0)
        ours, theirs = context.Pipe(duplex=False)
        # Not daemonic: a run's own processes that load images must be allowed.
        process = context.Process(
            target=worker.main, args=(target, task.payload, task.output, gpus[slot], theirs), name=task.name
        )
        process.start()
        theirs.close()
        attempts[task.name] = attempt
        board.active.append(Active(task, slot, process, ours, time.monotonic()))

    def finish(active: Active) -> None:
        active.process.join()
        while active.mailbox.poll():
            try:
                active.facts |= active.mailbox.recv()
            except EOFError:
                break
        active.mailbox.close()
        code = active.process.exitcode
        active.process.close()
        board.active.remove(active)
        slots.append(active.slot)
        slots.sort()
        attempt, seconds = attempts[active.task.name], time.monotonic() - active.began
        if code == worker.BUSY and not board.stopping:
            queue.append((active.task, attempt, time.monotonic() + BUSY_SECONDS))
            return
        known = (0, worker.REFUSED, worker.BUSY, worker.BROKEN)
        crash = "" if code in known or active.facts.get("status") else _how_it_died(code, active.task.output)
        if board.stopping and code is not None and code < 0:
            crash = ""  # it was asked to
        if active.timed_out:
            crash = (
                f"stopped after {seconds / 60:.1f} min (hydra.launcher.timeout_minutes); the same command continues it"
            )
        elif crash and attempt <= retries and not board.stopping:
            queue.appendleft((active.task, attempt + 1, 0.0))
            return
        reason = str(active.facts.get("reason", ""))
        board.endings[active.task.name] = Ending(code, crash, reason, attempt, seconds)

    with _counting_interrupts() as interrupts:
        while queue or board.active:
            now = time.monotonic()
            board.stopping = min(interrupts(), 2)
            if board.stopping:
                queue.clear()
                if board.stopping > told:
                    told = board.stopping
                    ended_at_once = now
                    _tell(board.active, _save_and_stop() if told == 1 else signal.SIGTERM)
                if told == 2 and now > ended_at_once + KILL_SECONDS:
                    _tell(board.active, signal.SIGKILL)
            for _ in range(len(queue)):
                if not slots:
                    break
                task, attempt, not_before = queue.popleft()
                if now < not_before:
                    queue.append((task, attempt, not_before))
                elif task.busy():
                    queue.append((task, attempt, now + BUSY_SECONDS))
                else:
                    start(task, attempt)
            for active in board.active:
                over = timeout_seconds is not None and now - active.began > timeout_seconds
                if over and not active.timed_out:
                    active.timed_out = True
                    _tell([active], signal.SIGTERM)
                elif active.timed_out and timeout_seconds and now - active.began > timeout_seconds + KILL_SECONDS:
                    _tell([active], signal.SIGKILL)
            board.busy = sum(1 for _, _, not_before in queue if not_before)
            board.waiting = len(queue) - board.busy
            show(board)
            ended = connection.wait([a.process.sentinel for a in board.active], timeout=LOOK_SECONDS)
            if not board.active:
                time.sleep(LOOK_SECONDS)
            for active in [a for a in board.active if a.process.sentinel in ended]:
                finish(active)
    show(board)
    return board


def _save_and_stop() -> int:
    return signal.SIGUSR1 if hasattr(signal, "SIGUSR1") else signal.SIGTERM


def _tell(active: Sequence[Active], number: int) -> None:
    for one in active:
        try:
            os.kill(one.process.pid, number)
        except ProcessLookupError:
            continue  # it has ended meanwhile


def _how_it_died(code: int | None, output: Path) -> str:
    """One line about a process that ended without a word: the signal, and the last line that it printed."""
    if code is not None and code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        likely = " (out of memory?)" if name == "SIGKILL" else ""
        line = f"its process was ended by {name}{likely}"
    else:
        line = f"its process ended with exit code {code}"
    said = _told_by_faulthandler(output)
    return f"{line}: {said}" if said else line


def _told_by_faulthandler(output: Path) -> str:
    try:
        lines = output.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.startswith("Fatal Python error")), "")


@contextmanager
def _counting_interrupts() -> Iterator[Callable[[], int]]:
    """Ctrl-C is counted instead of raised; SIGTERM counts for two, for whoever sends it will not wait long."""
    count = [0]

    def interrupted(signum: int, frame: object) -> None:
        count[0] += 2 if signum == signal.SIGTERM else 1

    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0
        return
    before = {number: signal.signal(number, interrupted) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: count[0]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
