"""`hydra/launcher=local`: the runs of a sweep in processes of this machine, in slots on its cores and GPUs."""

import dataclasses
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from segexp.errors import UsageError
from segexp.launch.options import LocalOptions
from segexp.launch.plan import Job
from segexp.launch.pool import Board, Ending, Task, run_tasks
from segexp.launch.progress import LiveTable, Score
from segexp.machine import usable_cores
from segexp.ownership import living_owner
from segexp.running import record_death, threads_begun_with

STOPPED = "the sweep was stopped before it began"
"""Why a run has not begun."""


@dataclasses.dataclass(frozen=True)
class Slots:
    """Where runs take place: the CUDA_VISIBLE_DEVICES of each slot (None: as it is), and CPU threads per run."""

    gpus: tuple[str | None, ...]
    threads: int

    def __str__(self) -> str:
        devices = sorted({gpu for gpu in self.gpus if gpu})
        where = f" on GPU {', '.join(devices)}" if devices else ""
        return f"{len(self.gpus)} at once{where}, {self.threads} CPU thread{'s' * (self.threads > 1)} each"


def run_locally(jobs: Sequence[Job], options: LocalOptions, score: Score = "dice") -> dict[Path, str]:
    """Run every job; returns, by run directory, why a run has no record of its own end. Raises UsageError."""
    slots = slots_of(options, any_gpu=any(job.prepared.config.trainer.device != "cpu" for job in jobs))
    minutes = options.timeout_minutes
    print(f"{len(jobs)} to run, {slots}", flush=True)
    tasks = {str(job.run_dir): _task(job, slots.threads) for job in jobs}
    with LiveTable({str(job.run_dir): job for job in jobs}, score) as table:
        board = run_tasks(
            list(tasks.values()),
            slots.gpus,
            retries=options.retries,
            timeout_seconds=None if minutes is None else 60 * minutes,
            show=table.show,
        )
    return {Path(name): reason for name, task in tasks.items() if (reason := _settle(name, task, board))}


def _settle(name: str, task: Task, board: Board) -> str:
    """What a run's directory cannot tell by itself is written there; returns why it has no record."""
    ending: Ending | None = board.endings.get(name)
    if ending is None:
        return STOPPED if board.stopping else ""
    if ending.crash:
        attempts = f" ({ending.attempts} attempts)" if ending.attempts > 1 else ""
        # One that was stopped for its time has recorded an interruption, which is not the whole truth.
        record_death(
            Path(name), f"{ending.crash}{attempts}; what it printed: {task.output}", ("running", "interrupted")
        )
        return f"{ending.crash}{attempts}; {task.output}"
    if ending.code == 0:
        task.output.unlink(missing_ok=True)
    if board.stopping and not ending.reason:
        record_death(Path(name), "stopped with its sweep; the same command continues it", status="interrupted")
        return STOPPED
    return ending.reason


def _task(job: Job, threads: int) -> Task:
    """A job as plain data for its process."""
    tree: dict[str, Any] = dataclasses.asdict(job.prepared.config)
    tree["resume"] = "auto"
    if tree["trainer"]["threads"] is None:
        tree["trainer"]["threads"] = threads_begun_with(job.run_dir) or threads
    # Another sweep may be at the same run, in a process that prints too.
    output = job.run_dir.parent / ".sweeps" / "printed" / f"{job.run_dir.name}-{os.getpid()}.txt"
    return Task(str(job.run_dir), tree, output, busy=lambda: bool(living_owner(job.run_dir)))


def slots_of(options: LocalOptions, any_gpu: bool, cores: int | None = None) -> Slots:
    """The slots that the options ask for on this machine. Raises UsageError."""
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
    """Names of the GPUs to use, as CUDA_VISIBLE_DEVICES takes them. Raises UsageError."""
    visible = visible_gpus()
    if asked == "auto":
        return visible
    if isinstance(asked, int) and not isinstance(asked, bool) and asked >= 0:
        if asked > len(visible):
            raise UsageError(f"hydra.launcher.gpus={asked}, but {len(visible)} are visible; `segexp doctor` says more")
        return visible[:asked]
    if isinstance(asked, Sequence) and not isinstance(asked, str) and all(isinstance(g, int | str) for g in asked):
        return [str(g) for g in asked]
    raise UsageError(f"hydra.launcher.gpus={asked} must be auto, a number of GPUs, or a list of them as [0,2]")


def visible_gpus() -> list[str]:
    """GPUs that this process may use, found without torch, which would take memory on each of them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip() not in ("", "-1")]
    if not shutil.which("nvidia-smi"):
        return []
    asked = subprocess.run(
        ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"], capture_output=True, text=True, check=False
    )
    return asked.stdout.split() if asked.returncode == 0 else []
