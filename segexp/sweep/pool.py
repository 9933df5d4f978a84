"""Many runs on one machine: a process each, in slots, so that a run that dies takes no other along.

A process pool of the standard library is lost when one of its workers is killed; here the death of a process is one of
the ways in which its task ends. The processes are forked from a server that has imported torch once (forkserver).
This module knows processes, not runs: what a task is for, its directory tells.
"""

import faulthandler
import os
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import connection, forkserver, get_context, parent_process
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from segexp.config.canonical import config_of
from segexp.errors import REFUSED, BusyError, UsageError, first_line
from segexp.records.lock import signal_handlers

BUSY, BROKEN = 75, 70
"""Exit codes of a process whose run did not begin: owned by another process; an error."""

EXIT_CODES = (0, REFUSED, BUSY, BROKEN)
"""How a process leaves by itself; any other code is a death."""

PRELOADED = (
    "segexp.sweep.pool",
    "segexp.running.execute",
    "segexp.evaluation.pictures",
    "segexp.training.loop",
    "segexp.training.diagnostics",
    "segexp.models.swap",
    "segexp.models.trace",
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
    from segexp.running.execute import execute
    from segexp.running.prepare import prepare

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
    attempt: int
    slot: int
    process: Any
    mailbox: connection.Connection
    began: float
    timed_out: bool = False


@dataclass
class Board:
    """What is going on, for whoever shows it.

    busy: names of tasks that another process owns. stopping: 0 no, 1 after saving, 2 at once.
    """

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
    """Carry every task out, at most one per slot at a time; returns how each ended.

    gpus: one entry per slot, the CUDA_VISIBLE_DEVICES of its processes (None: as it is). A process that dies is started
    again ``retries`` times; one that takes longer than ``timeout_seconds`` is ended and not started again. Ctrl-C once
    lets every worker save and stop, twice ends them at once, and what had not begun has no ending. ``show`` is called
    at every change and a few times a second.
    """
    pool = _Pool(tasks, gpus, target, preload, retries, timeout_seconds)
    try:
        with _counting_interrupts() as interrupts:
            while pool.queue or pool.board.active:
                pool.heed_interrupts(min(interrupts(), 2))
                pool.fill_slots()
                pool.heed_timeouts()
                show(pool.board)
                pool.wait()
        show(pool.board)
    except BaseException:
        # Python would wait for them to end by themselves before it tells what went wrong.
        _tell(pool.board.active, signal.SIGTERM)
        raise
    return pool.board


class _Pool:
    """The state of `run_tasks`: a queue of (task, attempt, not before), free slots, and the board."""

    def __init__(
        self,
        tasks: Sequence[Task],
        gpus: Sequence[str | None],
        target: Target,
        preload: Sequence[str],
        retries: int,
        timeout_seconds: float | None,
    ) -> None:
        self.context = get_context("forkserver")
        self.context.set_forkserver_preload(list(preload))
        with signal_handlers(dict.fromkeys((signal.SIGINT, signal.SIGTERM), signal.SIG_IGN)):
            # They go to the whole group: without the server that they come from, living processes would seem dead.
            forkserver.ensure_running()
        self.queue = deque((task, 1, 0.0) for task in tasks)
        self.board = Board(len(tasks))
        self.gpus, self.target, self.retries, self.timeout = gpus, target, retries, timeout_seconds
        self.free = list(range(len(gpus)))
        self.stopping_since = 0.0

    def fill_slots(self) -> None:
        """Start what is waiting, as long as there is a slot; what another owns is looked at again later."""
        now = time.monotonic()
        for _ in range(len(self.queue)):
            if not self.free:
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
        slot = self.free.pop(0)
        ours, theirs = self.context.Pipe(duplex=False)
        # Not daemonic: a run's own processes that load images must be allowed.
        arguments = (self.target, task.payload, task.output, self.gpus[slot], theirs)
        process = self.context.Process(target=main, args=arguments, name=task.name)
        try:
            process.start()
        except (EOFError, OSError) as error:
            # The server has died, or there is no memory for one more: this attempt has failed, not the sweep.
            ours.close()
            self.free = sorted([*self.free, slot])
            told = f"its process could not be started ({type(error).__name__}: {error})"
            self.end(task, attempt, None, told, "", 0.0)
            return
        finally:
            theirs.close()
        self.board.active.append(Active(task, attempt, slot, process, ours, time.monotonic()))

    def wait(self) -> None:
        """Until a process ends or it is time to look around; record how the ended ones ended."""
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
        with suppress(EOFError):  # it has said all
            while active.mailbox.poll():
                facts |= active.mailbox.recv()
        active.mailbox.close()
        code = active.process.exitcode
        active.process.close()
        self.board.active.remove(active)
        self.free = sorted([*self.free, active.slot])
        task, stopping = active.task, self.board.stopping
        seconds = time.monotonic() - active.began
        reason = str(facts.get("reason", ""))
        if code == BUSY and not stopping:
            self.queue.append((task, active.attempt, time.monotonic() + BUSY_SECONDS))
        elif "status" in facts:
            self.board.endings[task.name] = Ending(code, "", reason, active.attempt, seconds)
        elif active.timed_out:
            crash = f"stopped after {seconds / 60:.1f} min, its hydra.launcher.timeout_minutes"
            self.board.endings[task.name] = Ending(code, crash, reason, active.attempt, seconds)
        elif code not in EXIT_CODES and not (stopping and code < 0):
            self.end(task, active.attempt, code, _how_it_died(code, task.output), reason, seconds)
        else:
            self.board.endings[task.name] = Ending(code, "", reason, active.attempt, seconds)

    def end(self, task: Task, attempt: int, code: int | None, crash: str, reason: str, seconds: float) -> None:
        """A death: tried again, or the end of the task."""
        if attempt <= self.retries and not self.board.stopping:
            self.queue.appendleft((task, attempt + 1, 0.0))
        else:
            self.board.endings[task.name] = Ending(code, crash, reason, attempt, seconds)

    def heed_interrupts(self, stopping: int) -> None:
        """Begin nothing more; ask the workers to stop after saving (1) or at once (2), then lose patience."""
        if not stopping:
            return
        for task, attempt, _ in self.queue:
            if attempt > 1:  # it had begun, and died of the same signal before we heard of ours
                self.board.endings[task.name] = Ending(None, "", "", attempt - 1, 0.0)
        self.queue.clear()
        if stopping > self.board.stopping:
            self.board.stopping = stopping
            self.stopping_since = time.monotonic()
            _tell(self.board.active, _SAVE_AND_STOP if stopping == 1 else signal.SIGTERM)
        elif stopping == 2 and time.monotonic() > self.stopping_since + KILL_SECONDS:
            _tell(self.board.active, _KILL)

    def heed_timeouts(self) -> None:
        if self.timeout is None:
            return
        for active in self.board.active:
            over = time.monotonic() - active.began - self.timeout
            if over > KILL_SECONDS:
                _tell([active], _KILL)
            elif over > 0 and not active.timed_out:
                active.timed_out = True
                _tell([active], signal.SIGTERM)


# Windows knows neither; there, ending a process is all that can be asked of it.
_SAVE_AND_STOP = getattr(signal, "SIGUSR1", signal.SIGTERM)
_KILL = getattr(signal, "SIGKILL", signal.SIGTERM)


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

    with signal_handlers(dict.fromkeys((signal.SIGINT, signal.SIGTERM), interrupted)):
        yield lambda: count[0]
