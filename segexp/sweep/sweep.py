"""A planned sweep from beginning to end: what is done is left alone, the rest is launched, and the directories tell
what became of it, whatever the launcher says.
"""

import hashlib
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from segexp.config import LocalOptions, params
from segexp.config.launchers import check_engine
from segexp.errors import UsageError
from segexp.records import read_run, write_json
from segexp.records.lock import OwnedError
from segexp.running.prepare import archive, finished_before, now, record_death
from segexp.sweep.local import STOPPED, Score, run_locally, slots_of
from segexp.sweep.plan import Job, Plan, as_record

log = logging.getLogger("segexp")


@dataclass(frozen=True)
class Ended:
    """What became of a run of a sweep, as its directory has it.

    status: done, diverged, failed, interrupted, running (another process is at it), "not begun", or submitted (and not
    waited for). before: it was over when the sweep began. stopped: the sweep was, before the run's turn came. dice:
    test score, None where there is none.
    """

    label: str
    run_dir: Path
    status: str
    reason: str = ""
    before: bool = False
    dice: float | None = None
    stopped: bool = False


def local_options(base: DictConfig, wait: bool = True) -> LocalOptions | None:
    """The options of the launcher of this machine; None where another one is chosen. Raises UsageError where the
    launcher cannot be used."""
    if base.hydra.runtime.choices["hydra/launcher"] != "local":
        check_engine(base.hydra, wait)
        return None
    if not wait:
        raise UsageError("--no-wait needs a launcher that queues runs, such as hydra/launcher=submitit_slurm")
    options = OmegaConf.to_object(base.hydra.launcher)
    assert isinstance(options, LocalOptions)
    slots_of(options, any_gpu=False)
    return options


def carry_out(
    plan: Plan, base: DictConfig, extra: Sequence[str], *, wait: bool = True, score: Score = "dice"
) -> list[Ended]:
    """Run what of a plan is not over, with the launcher of the composed ``base``; returns what became of each run.

    score: what is shown of a run as it ends: the test Dice, or val_dice where something is chosen by it.
    Raises UsageError for a launcher that cannot begin.
    """
    options = local_options(base, wait)
    keep_plan(plan)
    before: dict[Path, Ended] = {}
    open_jobs: list[Job] = []
    for job in plan.jobs:
        ended = _over(job)
        if ended is None:
            open_jobs.append(job)
        else:
            before[job.run_dir] = ended
            print(f"already {ended.status}: {job.label}" if ended.before else f"{ended.status}: {job.label}")
    reasons: dict[Path, str] = {}
    if open_jobs:
        if options is not None:
            reasons = run_locally(open_jobs, options, score)
        else:
            from segexp.sweep.engines import launch_through

            launch_through(base, [_words(job) for job in open_jobs], extra, wait=wait)
            for job in open_jobs if wait else []:
                record_death(job.run_dir, "its process died; the same command continues it")
    if not wait:
        submitted = {job.run_dir: Ended(job.label, job.run_dir, "submitted") for job in open_jobs}
        return [before.get(job.run_dir) or submitted[job.run_dir] for job in plan.jobs]
    return [before.get(job.run_dir) or _ended(job, reasons.get(job.run_dir, "")) for job in plan.jobs]


def _words(job: Job) -> list[str]:
    """The overrides of a job that another process composes. What was to begin again has been moved away by now, and a
    tuned rate has been looked up: the file may not be where the other process is."""
    words = [*(w for w in job.overrides if not w.startswith("resume=")), "resume=auto"]
    config = job.prepared.config
    return words if config.tuned is None else [*words, f"optimizer.lr={params(config.optimizer)['lr']!r}"]


def keep_plan(plan: Plan) -> None:
    """Write the plan into every study it has runs in, once for equal plans: what has not begun is known from it."""
    studies = dict.fromkeys(job.run_dir.parent for job in plan.jobs)
    for study in studies:
        part = Plan([j for j in plan.jobs if j.run_dir.parent == study], plan.dropped, plan.refused)
        record = as_record(part, sys.argv, now())
        text = json.dumps([sorted(run["run_id"] for run in record["runs"]), record["dropped"], record["refused"]])
        path = study / ".sweeps" / f"plan-{hashlib.sha256(text.encode()).hexdigest()[:8]}.json"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, record)


def _over(job: Job) -> Ended | None:
    """How a run ended before, or why it cannot be begun; None where there is something to do."""
    try:
        finished = finished_before(job.prepared)
        if finished is None and job.prepared.config.resume == "restart":
            archive(job.run_dir)
    except UsageError as error:
        return Ended(job.label, job.run_dir, "failed", str(error))
    except OwnedError as owner:
        return Ended(job.label, job.run_dir, "running", f"by {owner}: wait for it or stop it")
    if finished is None:
        return None
    return Ended(job.label, job.run_dir, finished.status, finished.reason, True, finished.summary.get("dice"))


def _ended(job: Job, reason: str) -> Ended:
    """What a run's directory says; ``reason`` where it says nothing."""
    stopped = reason == STOPPED
    if not (job.run_dir / "run.json").exists():
        status = "failed" if reason and not stopped else "not begun"
        return Ended(job.label, job.run_dir, status, reason, stopped=stopped)
    try:
        record = read_run(job.run_dir)
    except UsageError as error:
        return Ended(job.label, job.run_dir, "failed", str(error))
    status, error_line = str(record.get("status")), str(record.get("error", ""))
    dice = record.get("summary", {}).get("dice")
    return Ended(job.label, job.run_dir, status, error_line or reason, dice=dice, stopped=stopped and status != "done")
