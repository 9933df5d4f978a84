"""Many runs on one machine, each in a process of its own, so that a run that dies does not affect the others.

The pools of the standard library are lost when a worker is killed; here the death of a process is one way in which a
task can end. Processes are forked from a server that has imported torch once (forkserver); where forking is not safe
each imports it itself (spawn). This module knows processes, not runs: the results of a task are in its directory.
"""

import faulthandler
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from multiprocessing import connection, get_context, parent_process
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from segexp.config.canonical import config_of
from segexp.errors import REFUSED, BusyError, UsageError
from segexp.records.process import SAVE_AND_STOP, can_fork, signal_handlers, signal_self
from segexp.registry import plugins

BUSY, BROKEN = 75, 70  # exit codes of a process whose run did not start: its directory is in use; an error

EXIT_CODES = (0, REFUSED, BUSY, BROKEN)  # exit codes of a process that was not killed; any other code is a death

PRELOADED = (
    "segexp.sweep.pool",
    "segexp.running.execute",
    "segexp.evaluation.pictures",
    "segexp.training.loop",
    "segexp.training.diagnostics",
    "segexp.models.swap",
    "segexp.models.trace",
    "segexp.data.batches",
    "torch",
    "torch._dynamo",  # by the first optimizer; it takes a second
    "segmentation_models_pytorch",
    "scipy.ndimage",
)
"""What the server imports once for all processes. Imports only: an operation of torch there would start threads, which
a forked process does not have."""

LEAVE_SECONDS = 30.0  # how long a worker whose parent has died may take to record that it was interrupted
LOOK_SECONDS = 0.5  # time between two looks at the clock, at Ctrl-C and at the state of the sweep
BUSY_SECONDS = 5.0  # time until a run whose directory is in use is tried again
KILL_SECONDS = 20.0  # time between the request to stop at once and the end by force

Report = Callable[..., None]  # sends facts from a worker to its parent: why its run did not start, or how it ended

Target = Callable[[Mapping[str, Any], Report], int]


# In the process of a worker


def main(target: Target, payload: Mapping[str, Any], output: Path, gpu: str | None, mailbox: Connection) -> None:
    """Entry of a worker: it prints to a file, ignores Ctrl-C, which its parent handles, and ends with its parent.

    gpu: the value of CUDA_VISIBLE_DEVICES; None leaves it.
    """

    def report(**facts: Any) -> None:
        with suppress(OSError):  # the parent is gone
            mailbox.send(facts)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in (signal.SIGTERM, SAVE_AND_STOP):
        # Until there is something to save, stopping means leaving; SystemExit might be lost in a callback.
        signal.signal(number, lambda *_: os._exit(0))
    # All output of this process and its libraries goes to the file.
    sys.stdout.flush()
    sys.stderr.flush()
    output.parent.mkdir(parents=True, exist_ok=True)
    safe = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND | safe, 0o644)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    os.close(descriptor)
    text: dict[str, Any] = {"buffering": 1, "encoding": "utf-8", "errors": "replace", "closefd": False}
    sys.stdout, sys.stderr = (os.fdopen(stream, "w", **text) for stream in (1, 2))
    faulthandler.enable()
    threading.Thread(target=_heed_parent, args=(mailbox,), daemon=True, name="segexp-parent").start()
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    try:
        code = target(payload, report)
    except KeyboardInterrupt:
        code = 0
        report(status="interrupted")  # as the run has recorded
    sys.stdout.flush()
    sys.exit(code)


def run(payload: Mapping[str, Any], report: Report) -> int:
    """Carry out one run; returns the exit code. payload: its plain configuration, and the run_id that was planned."""
    from segexp.running import check_planned, prepare
    from segexp.running.execute import execute

    try:
        plugins.use(payload.get("plugins", ()))
        spec = prepare(config_of(payload["config"]))
        check_planned(spec, payload["run_id"], payload.get("plugins"))
        outcome = execute(spec)
    except BusyError as error:
        report(reason=str(error))
        return BUSY
    except UsageError as error:
        report(reason=str(error))
        return REFUSED
    except Exception as error:
        report(reason=plugins.explained(error))
        return BROKEN
    report(status=outcome.status, reason=outcome.reason)
    return 0


def _heed_parent(mailbox: Connection) -> None:
    """Pass the signals on that the sweep sends (Windows has none between processes), and stop when it is killed: the
    run would keep its directory from the next attempt."""
    parent = parent_process()
    if parent is None:
        return
    with suppress(EOFError, OSError):
        while mailbox in wait([parent.sentinel, mailbox]):
            signal_self(mailbox.recv())
    signal_self(signal.SIGTERM)
    time.sleep(LEAVE_SECONDS)
    os._exit(1)


# In the process of the sweep


@dataclass(frozen=True)
class Task:
    """One piece of work. payload: for the worker; output: the file for what it prints; busy(): whether another process
    is working on it, found out without starting one."""

    name: str
    payload: Mapping[str, Any]
    output: Path
    busy: Callable[[], bool] = lambda: False


@dataclass(frozen=True)
class Ending:
    """How a task's last process ended. crash: why it died, "" if it was not killed; reason: what it reported."""

    code: int | None
    crash: str = ""
    reason: str = ""
    attempts: int = 1
    seconds: float = 0.0


@dataclass
class Active:
    """A running process."""

    task: Task
    attempt: int
    slot: int
    process: Any
    mailbox: Connection
    began: float
    timed_out: bool = False


@dataclass
class Board:
    """The state of all tasks. busy: tasks in use by another process. stopping: 0 no, 1 after saving, 2 at once."""

    total: int
    active: list[Active] = field(default_factory=list)
    endings: dict[str, Ending] = field(default_factory=dict)
    busy: list[str] = field(default_factory=list)
    stopping: int = 0


def run_tasks(
    tasks: Sequence[Task],
    gpus: Sequence[str | None],
    target: Target = run,
    *,
    preload: Sequence[str] = PRELOADED,
    retries: int = 1,
    timeout_seconds: float | None = None,
    show: Callable[[Board], None] = lambda board: None,
) -> Board:
    """Carry out every task, one per slot at a time; returns how each ended.

    gpus: the CUDA_VISIBLE_DEVICES of each slot (None: unchanged). A process that dies is started again ``retries``
    times; one that takes longer than ``timeout_seconds`` is stopped and not started again. After Ctrl-C every worker
    saves and stops; after a second one it stops at once; tasks that had not started have no ending. ``show`` is called
    at every change and a few times a second.
    """
    if can_fork():
        _start_server(preload)
    pool = _Pool(gpus, target, retries, timeout_seconds, deque((task, 1, 0.0) for task in tasks), Board(len(tasks)))
    interrupts = 0

    def interrupted(signum: int, frame: object) -> None:
        nonlocal interrupts
        interrupts += 2 if signum == signal.SIGTERM else 1  # the sender of SIGTERM will not wait long

    try:
        with signal_handlers(dict.fromkeys((signal.SIGINT, signal.SIGTERM), interrupted)):
            while pool.queue or pool.board.active:
                pool.heed_interrupts(min(interrupts, 2))
                pool.fill_slots()
                pool.heed_timeouts()
                show(pool.board)
                pool.wait()
        show(pool.board)
    except BaseException:
        # Python would wait for the workers before it reports the error.
        _send(pool.board.active, signal.SIGTERM)
        raise
    return pool.board


def _start_server(preload: Sequence[str]) -> None:
    from multiprocessing import forkserver

    forkserver.set_forkserver_preload(list(preload))
    with signal_handlers(dict.fromkeys((signal.SIGINT, signal.SIGTERM), signal.SIG_IGN)):
        # Signals go to the whole process group: without the server, running processes would seem dead.
        forkserver.ensure_running()


@dataclass
class _Pool:
    """The state of `run_tasks`: a queue of (task, attempt, not before), and the board."""

    gpus: Sequence[str | None]
    target: Target
    retries: int
    timeout: float | None
    queue: deque[tuple[Task, int, float]]
    board: Board
    stopping_since: float = 0.0

    def fill_slots(self) -> None:
        """Start waiting tasks while there is a slot; those in use by another process are tried again later."""
        now = time.monotonic()
        for _ in range(len(self.queue)):
            if len(self.board.active) == len(self.gpus):
                break
            task, attempt, not_before = self.queue.popleft()
            if now < not_before:
                self.queue.append((task, attempt, not_before))
            elif task.busy():
                self.queue.append((task, attempt, now + BUSY_SECONDS))
            else:
                self.start(task, attempt)
        self.board.busy = [task.name for task, _, not_before in self.queue if not_before]

    def start(self, task: Task, attempt: int) -> None:
        context = get_context("forkserver") if can_fork() else get_context("spawn")
        slot = min(set(range(len(self.gpus))) - {one.slot for one in self.board.active})
        ours, theirs = context.Pipe()
        # Not daemonic: a run's own processes that load images must be allowed.
        arguments = (self.target, task.payload, task.output, self.gpus[slot], theirs)
        process = context.Process(target=main, args=arguments, name=task.name)
        try:
            process.start()
        except (EOFError, OSError) as error:
            # The server has died, or there is no memory left: this attempt has failed, not the sweep.
            ours.close()
            crash = f"its process could not be started ({type(error).__name__}: {error})"
            self.after_death(task, Ending(None, crash, attempts=attempt))
            return
        finally:
            theirs.close()
        self.board.active.append(Active(task, attempt, slot, process, ours, time.monotonic()))

    def wait(self) -> None:
        """Wait until a process ends or `LOOK_SECONDS` are over; record how those that ended did so."""
        active = self.board.active
        if not active:
            time.sleep(LOOK_SECONDS)
            return
        ended = connection.wait([a.process.sentinel for a in active], timeout=LOOK_SECONDS)
        for one in [a for a in active if a.process.sentinel in ended]:
            self.finish(one)

    def finish(self, active: Active) -> None:
        active.process.join()
        facts: dict[str, Any] = {}
        with suppress(EOFError, OSError):  # it has reported everything
            while active.mailbox.poll():
                facts |= active.mailbox.recv()
        active.mailbox.close()
        code = active.process.exitcode
        active.process.close()
        self.board.active.remove(active)
        task, stopping = active.task, self.board.stopping
        # A part of the user's own, or a library, may end the process with any exit code: one that ran reports.
        died = "status" not in facts and (code not in EXIT_CODES or not facts)
        seconds = time.monotonic() - active.began
        ending = Ending(code, "", str(facts.get("reason", "")), active.attempt, seconds)
        if code == BUSY and not died and not stopping:
            self.queue.append((task, active.attempt, time.monotonic() + BUSY_SECONDS))
        elif "status" not in facts and active.timed_out:
            crash = f"stopped after {seconds / 60:.1f} min, its hydra.launcher.timeout_minutes"
            self.board.endings[task.name] = replace(ending, crash=crash)
        elif died and not (stopping and (code < 0 or code in EXIT_CODES)):
            self.after_death(task, replace(ending, crash=_how_it_died(code, task.output)))
        else:
            self.board.endings[task.name] = ending

    def after_death(self, task: Task, ending: Ending) -> None:
        """Another attempt, or the end of the task."""
        if ending.attempts <= self.retries and not self.board.stopping:
            self.queue.appendleft((task, ending.attempts + 1, 0.0))
        else:
            self.board.endings[task.name] = ending

    def heed_interrupts(self, stopping: int) -> None:
        """Start nothing more; ask the workers to stop after saving (1) or at once (2), and kill those that do not."""
        if not stopping:
            return
        for task, attempt, _ in self.queue:
            if attempt > 1:  # it had started, and died of the same signal before ours was handled
                self.board.endings[task.name] = Ending(None, attempts=attempt - 1)
        self.queue.clear()
        if stopping > self.board.stopping:
            self.board.stopping = stopping
            self.stopping_since = time.monotonic()
            _send(self.board.active, SAVE_AND_STOP if stopping == 1 else signal.SIGTERM)
        elif stopping == 2 and time.monotonic() > self.stopping_since + KILL_SECONDS:
            _kill(self.board.active)

    def heed_timeouts(self) -> None:
        if self.timeout is None:
            return
        for active in self.board.active:
            over = time.monotonic() - active.began - self.timeout
            if over > KILL_SECONDS:
                _kill([active])
            elif over > 0 and not active.timed_out:
                active.timed_out = True
                _send([active], signal.SIGTERM)


def _send(active: Sequence[Active], number: signal.Signals) -> None:
    """Ask processes to handle a signal."""
    for one in active:
        with suppress(OSError):  # it has ended meanwhile
            one.mailbox.send(number)


def _kill(active: Sequence[Active]) -> None:
    for one in active:
        one.process.kill()


def _how_it_died(code: int, output: Path) -> str:
    """One line: the signal or exit code, and the error that faulthandler printed."""
    line = f"its process ended with exit code {code}"
    if code < 0:
        name = {int(number): number.name for number in signal.Signals}.get(-code, f"signal {-code}")
        line = f"its process was ended by {name}{' (out of memory?)' if name == 'SIGKILL' else ''}"
    try:
        printed = output.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return line
    fatal = next((text.strip() for text in reversed(printed) if text.startswith("Fatal Python error")), "")
    return f"{line}: {fatal}" if fatal else line
