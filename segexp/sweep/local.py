"""`hydra/launcher=local`: the runs of a sweep in processes of this machine, with slots on its cores and GPUs."""

import dataclasses
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from segexp.config import LocalOptions
from segexp.errors import UsageError
from segexp.records import read_run, text_rows
from segexp.records.formatting import duration
from segexp.records.owned import clear_litter, writer
from segexp.records.process import lock_holder, set_wait, usable_cores
from segexp.records.runs import scoring_of, sweeps_folder
from segexp.registry import plugins
from segexp.running import record_death, threads_begun_with
from segexp.sweep.plan import Job
from segexp.sweep.pool import Board, Task, run_tasks

MOST_BARS = 8  # running runs with a progress bar of their own

REFRESH_SECONDS = 1.0

STOPPED = "the sweep was stopped before it began"  # why a run is pending

Score = Literal["dice", "val_dice"]
"""The score printed for a run as it ends: test or validation Dice, by its column of summary.csv."""


class LiveTable:
    """Prints a line for each run that ends; on a terminal also a bar for the sweep and one for each running run."""

    def __init__(self, jobs: Mapping[str, Job], score: Score = "dice") -> None:
        self._jobs, self._score = jobs, score
        self._begun = time.monotonic()
        self._shown = 0.0
        self._ended: set[str] = set()
        self._waiting: set[str] = set()
        self._stopping = 0
        self._bars: dict[str, tqdm[Any]] = {}
        self._failed = 0
        form = "sweep {percentage:3.0f}% |{bar:20}| {desc}"
        self._sweep = tqdm(total=len(jobs), unit="run", disable=None, bar_format=form, leave=False)

    def close(self) -> None:
        """Remove all bars."""
        for bar in [*self._bars.values(), self._sweep]:
            bar.close()

    def show(self, board: Board) -> None:
        """Print what has changed since the last call."""
        for name in board.endings.keys() - self._ended:
            self._ended.add(name)
            self._print_end(name, board)
        for name in board.busy:
            if name not in self._waiting:
                self._waiting.add(name)
                owner = lock_holder(self._jobs[name].run_dir) or "another process"
                self._write(f"waiting for {self._jobs[name].label}: in use by {owner}")
        if board.stopping > self._stopping:
            self._stopping = board.stopping
            after_saving = "stopping: every run saves its epoch first; Ctrl-C again stops at once"
            at_once = "stopping at once; finished epochs are kept"
            self._write(f"segexp: {after_saving if board.stopping == 1 else at_once}", sys.stderr)
        if not self._sweep.disable and time.monotonic() > self._shown + REFRESH_SECONDS:
            self._shown = time.monotonic()
            self._refresh(board)

    def _print_end(self, name: str, board: Board) -> None:
        ending, job = board.endings[name], self._jobs[name]
        record: dict[str, Any] = {"status": "failed"}
        with suppress(UsageError):  # no record, or an unreadable one
            record = read_run(job.run_dir)
        status, reason = str(record.get("status")), str(record.get("error", ""))
        dice = record.get("summary", {}).get(self._score)
        if ending.crash or (ending.code != 0 and not board.stopping):
            status, reason = "failed", ending.crash or ending.reason
        elif board.stopping and status not in ("done", "diverged", "interrupted"):
            status, reason = "stopped", ""
        failed = status not in ("done", "interrupted", "stopped")
        self._failed += failed
        score = f"  {'test' if self._score == 'dice' else 'val'} dice {dice:.4f}" if dice is not None else ""
        why = f"  {reason}" if reason and failed else ""
        done = f"[{len(self._ended)}/{board.total}]"
        self._write(f"{done} {status}  {job.label}{score}{why}  ({duration(ending.seconds)})")

    def _refresh(self, board: Board) -> None:
        parts = 0.0
        names = {active.task.name for active in board.active}
        for gone in self._bars.keys() - names:
            self._bars.pop(gone).close()
        for active in board.active:
            job = self._jobs[active.task.name]
            total = job.spec.config.trainer.epochs
            epoch, dice = epochs_done(job.run_dir)
            parts += epoch / total
            taken = {bar.pos for bar in self._bars.values()}
            if active.task.name not in self._bars and len(taken) < MOST_BARS:
                label = job.label[:60].replace("{", "{{").replace("}", "}}")
                form = f"  {{n_fmt}}/{{total_fmt}} epochs |{{bar:10}}| {label}{{desc}}"
                self._bars[active.task.name] = tqdm(total=total, leave=False, bar_format=form)
            if active.task.name in self._bars:
                bar = self._bars[active.task.name]
                bar.n = epoch
                scoring = scoring_of(job.run_dir)
                text = "" if dice is None else f", val dice {dice:.3f}"
                text = f", scoring {scoring[0]} of {scoring[1]} images" if scoring else text
                bar.set_description_str(text, refresh=False)
                bar.refresh()
        share = min((len(board.endings) + parts) / max(board.total, 1), 1.0)
        elapsed = time.monotonic() - self._begun
        left = f", {duration(elapsed * (1 - share) / share)} left" if 0.01 < share < 1 else ""
        failed = f", {self._failed} failed" if self._failed else ""
        elsewhere = f", {len(board.busy)} elsewhere" if board.busy else ""
        self._sweep.n = share * board.total
        ended = f"{len(board.endings)}/{board.total} ended{failed}"
        self._sweep.set_description_str(f"{ended}, {len(board.active)} running{elsewhere}{left}", refresh=False)
        self._sweep.refresh()

    def _write(self, line: str, file: Any = None) -> None:
        self._sweep.write(line, file=file or sys.stdout)
        (file or sys.stdout).flush()


def epochs_done(run_dir: Path) -> tuple[int, float | None]:
    """Finished epochs of a run, and the validation Dice of the last one (None before the first)."""
    try:
        rows = [row for row in text_rows(run_dir / "epochs.csv", "epochs") if row["split"] == "val"]
        return (int(rows[-1]["epoch"]), float(rows[-1]["dice"] or "nan")) if rows else (0, None)
    except (UsageError, ValueError):  # not written yet, or not readable at the moment
        return 0, None


@dataclasses.dataclass(frozen=True)
class Slots:
    """Places for runs: the CUDA_VISIBLE_DEVICES of each (None: unchanged), and the CPU threads per run."""

    gpus: tuple[str | None, ...]
    threads: int

    def __str__(self) -> str:
        devices = sorted({gpu for gpu in self.gpus if gpu})
        where = f" on GPU {', '.join(devices)}" if devices else ""
        return f"{len(self.gpus)} at once{where}, {self.threads} CPU thread{'s' * (self.threads > 1)} each"


def run_locally(jobs: Sequence[Job], options: LocalOptions, score: Score = "dice") -> dict[Path, str]:
    """Carry out every job; returns, by run directory, why a run recorded no end itself. Raises UsageError."""
    slots = slots_for(jobs, options)
    minutes = options.timeout_minutes
    waiting = set_wait(jobs[0].spec.config.trainer.wait, slots.threads, len(slots.gpus))
    print(f"{len(jobs)} to run, {slots}; {waiting.replace('trainer.threads', 'hydra.launcher.threads')}", flush=True)
    _clear_printed({job.run_dir.parent for job in jobs})
    tasks = {str(job.run_dir): _task(job, slots.threads) for job in jobs}
    with closing(LiveTable({str(job.run_dir): job for job in jobs}, score)) as table:
        board = run_tasks(
            list(tasks.values()),
            slots.gpus,
            retries=options.retries,
            timeout_seconds=None if minutes is None else 60 * minutes,
            show=table.show,
        )
    return {Path(name): reason for name, task in tasks.items() if (reason := _settle(name, task, board))}


def _clear_printed(studies: Collection[Path]) -> None:
    """Remove what runs of dead sweeps printed, but for files that a record names as the reason of a failure."""
    for path in (path for study in studies for path in sweeps_folder(study, "printed").glob("*.txt")):
        error = ""
        with suppress(UsageError):
            run = re.sub(r"-\d+(-[0-9a-f]{8})?\.txt$", "", path.name)
            error = str(read_run(path.parents[2] / run).get("error"))
        if path.name not in error:
            clear_litter(path.parent, path.name)


def _settle(name: str, task: Task, board: Board) -> str:
    """Record the end of a run whose process could not; returns why it recorded none."""
    ending = board.endings.get(name)
    if ending is None:
        return STOPPED if board.stopping else ""
    if ending.crash:
        attempts = f" ({ending.attempts} attempts)" if ending.attempts > 1 else ""
        reason = f"{ending.crash}{attempts}; output: {task.output}"
        # A run that exceeded its time has recorded an interruption.
        record_death(Path(name), reason, ("running", "interrupted"))
        return reason
    if ending.code == 0:
        task.output.unlink(missing_ok=True)
    if board.stopping and not ending.reason:
        record_death(Path(name), "stopped with its sweep; repeat the command to continue", status="interrupted")
        return STOPPED
    return ending.reason


def _task(job: Job, threads: int) -> Task:
    tree: dict[str, Any] = dataclasses.asdict(job.spec.config)
    tree["resume"] = "auto"
    if tree["trainer"]["threads"] is None:
        tree["trainer"]["threads"] = threads_begun_with(job.run_dir) or threads
    # Another sweep may carry out the same run and print too: one file per sweep.
    output = sweeps_folder(job.run_dir.parent, "printed") / f"{job.run_dir.name}-{writer()}.txt"
    payload = {"config": tree, "run_id": job.spec.run_id, "plugins": plugins.given()}
    return Task(str(job.run_dir), payload, output, busy=lambda: bool(lock_holder(job.run_dir)))


def slots_for(jobs: Sequence[Job], options: LocalOptions) -> Slots:
    """The slots for these runs, see `slots_of`: their own ``trainer.threads`` count where all of them set it."""
    trainers = [job.spec.config.trainer for job in jobs]
    if all(trainer.threads for trainer in trainers):
        options = dataclasses.replace(options, threads=max(int(trainer.threads or 1) for trainer in trainers))
    return slots_of(options, any_gpu=any(trainer.device != "cpu" for trainer in trainers))


def slots_of(options: LocalOptions, any_gpu: bool, cores: int | None = None) -> Slots:
    """The slots of the options on this machine. Raises UsageError for values out of range."""
    cores = cores or usable_cores()
    _at_least("runs_per_gpu", options.runs_per_gpu, 1)
    _at_least("retries", options.retries, 0)
    if options.timeout_minutes is not None and not options.timeout_minutes > 0:
        raise UsageError(f"hydra.launcher.timeout_minutes={options.timeout_minutes} must be above 0, or null")
    gpus = _gpus(options.gpus) if any_gpu else []
    n_jobs, threads = options.n_jobs, options.threads
    if threads != "auto":
        _at_least("threads", threads, 1)
    if n_jobs != "auto":
        _at_least("n_jobs", n_jobs, 1)
    elif gpus:
        n_jobs = len(gpus) * options.runs_per_gpu
    else:
        n_jobs = max(1, cores // (threads if threads != "auto" else 1))
    if threads == "auto":
        threads = max(1, cores // n_jobs) if gpus or options.n_jobs != "auto" else 1
    return Slots(tuple(gpus[i % len(gpus)] if gpus else None for i in range(n_jobs)), threads)


def _at_least(key: str, value: Any, low: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        auto = "auto or " if key in ("n_jobs", "threads") else ""
        raise UsageError(f"hydra.launcher.{key}={value} must be {auto}a whole number of at least {low}")


def _gpus(asked: Any) -> list[str]:
    """Names of the GPUs to use, for CUDA_VISIBLE_DEVICES. Raises UsageError."""
    visible = visible_gpus()
    if asked == "auto":
        return visible
    if isinstance(asked, int) and not isinstance(asked, bool) and asked >= 0:
        if asked > len(visible):
            raise UsageError(f"hydra.launcher.gpus={asked}, but {len(visible)} are visible; see `segexp doctor`")
        return visible[:asked]
    if isinstance(asked, Sequence) and not isinstance(asked, str) and all(isinstance(g, int | str) for g in asked):
        return [str(g) for g in asked]
    raise UsageError(f"hydra.launcher.gpus={asked} must be auto, a number of GPUs, or a list of them as [0,2]")


def visible_gpus() -> list[str]:
    """GPUs that this process may use, found without torch, which would take memory on each."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip() not in ("", "-1")]
    if not shutil.which("nvidia-smi"):
        return []
    command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    asked = subprocess.run(command, capture_output=True, text=True, check=False)
    return asked.stdout.split() if asked.returncode == 0 else []
