"""A sweep from its plan to its report: finished runs are skipped and the others launched.

The report is read from the run directories, not from what the launcher returns.
"""

import math
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from segexp.config import LocalOptions, params
from segexp.config.launchers import check_engine
from segexp.data.description import data_lines
from segexp.errors import DONE, FAILED, INTERRUPTED, REFUSED, UsageError
from segexp.records import read_run
from segexp.records.formatting import pluralize, text_table
from segexp.records.process import OwnedError
from segexp.records.runs import SWEEPS
from segexp.registry import plugins
from segexp.running import archive, finished_before, record_death
from segexp.sweep.local import STOPPED, Score, run_locally, slots_of
from segexp.sweep.plan import Job, Plan, keep_plan, labelled

MOST_ROWS = 60  # largest table of runs; of a larger sweep only counts and failures are printed


@dataclass(frozen=True)
class SweptRun:
    """How a run of a sweep ended, as its directory records it.

    status: done, diverged, failed, interrupted, running (in another process), pending, or submitted (not waited for).
    before: it had ended before the sweep began. stopped: the sweep was stopped before the run began. dice: test score,
    None if there is none.
    """

    label: str
    run_dir: Path
    status: str
    reason: str = ""
    before: bool = False
    dice: float | None = None
    stopped: bool = False


@dataclass(frozen=True)
class SweepReport:
    """The runs of a sweep after its end; with ``waited=False`` after their submission."""

    plan: Plan
    runs: list[SweptRun]
    waited: bool = True

    @property
    def exit_code(self) -> int:
        """FAILED if a run failed or was refused, or is still running in another process; else INTERRUPTED or DONE."""
        statuses = {run.status for run in self.runs}
        if statuses & {"failed", "diverged"} or self.plan.refused:
            return FAILED if self.runs else REFUSED
        if statuses & {"interrupted", "pending"} or any(run.stopped for run in self.runs):
            return INTERRUPTED
        return FAILED if "running" in statuses and self.waited else DONE

    def text(self, blind: bool = False) -> str:
        """A table of at most `MOST_ROWS` runs, counts, failures, how to continue. blind: no test scores or resume."""
        lines = []
        if len(self.runs) <= MOST_ROWS:
            rows = [
                {
                    "run": run.label,
                    "status": run.status + (" before" if run.before else ""),
                    "test dice": "" if blind or run.dice is None or math.isnan(run.dice) else f"{run.dice:.4f}",
                    "directory": run.run_dir.name,
                }
                for run in self.runs
            ]
            lines.append(text_table(rows, width=140))
        counts = Counter(run.status for run in self.runs) + Counter(refused=len(self.plan.refused))
        lines += [f"study: {study}" for study in dict.fromkeys(str(run.run_dir.parent) for run in self.runs)]
        lines.append(", ".join(f"{n} {status}" for status, n in counts.items()))
        failures = [
            (run.label, run.status, run.reason, str(run.run_dir))
            for run in self.runs
            if run.status not in ("done", "submitted", "pending") or run.stopped
        ]
        failures += [(one.label, "refused", one.reason, "") for one in self.plan.refused]
        if failures:
            # One line each, however long, so that it can be searched and its directory copied.
            rows = [dict(zip(("run", "status", "reason", "directory"), one, strict=True)) for one in failures]
            lines.append("\nnot done:\n" + text_table(rows, width=100_000))
        if self.waited and counts["interrupted"] + counts["pending"] and not blind:
            unfinished = dict.fromkeys(shlex.quote(str(r.run_dir.parent)) for r in self.runs if r.status != "done")
            lines.append("\nfinished epochs are kept; to continue repeat the command, or:")
            lines += [f"  segexp resume {study}{plugins.flags()}" for study in unfinished]
        return "\n".join(lines)


def print_plan(plan: Plan, before: str = "") -> None:
    """Print how many runs there are (after ``before``), which combinations are left out and why, notes and warnings."""
    left_out = [(plan.dropped, "left out"), (plan.duplicates, "duplicate"), (plan.refused, "refused")]
    counts = [pluralize(len(plan.jobs), "run"), *(f"{len(these)} {what}" for these, what in left_out if these)]
    print(before + ", ".join(counts))
    for these, what in left_out:
        alike: dict[str, list[str]] = {}
        for one in these:
            # A single run needs to know which names would fit; a sweep leaves the combination out.
            reason = one.reason.split("; ")[0] if these is plan.dropped else one.reason
            alike.setdefault(reason, []).append(one.label)
        for reason, labels in alike.items():
            print(f"  {what}: {labelled(labels[0] if len(labels) == 1 else pluralize(len(labels), 'run'), reason)}")
    for spec in {job.spec.dataset_sha: job.spec for job in reversed(plan.jobs)}.values():
        print(f"{spec.config.dataset.name}:")
        for line in data_lines(spec.data):
            print(f"  {line}")
    for line in [*(f"note: {note}" for note in plan.notes), *(f"warning: {w}" for w in plan.warnings)]:
        print(line, flush=True)


def local_options(base: DictConfig, wait: bool = True) -> LocalOptions | None:
    """The options of the local launcher; None if another one is chosen. Raises UsageError if it cannot be used."""
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
) -> SweepReport:
    """Run what is unfinished of a plan with the launcher of the composed ``base``.

    score: printed for each run as it ends: test Dice, or val_dice if something is chosen by it. Raises UsageError for a
    launcher that cannot start.
    """
    options = local_options(base, wait)
    keep_plan(plan)
    ended: dict[Path, SweptRun] = {}
    open_jobs: list[Job] = []
    for job in plan.jobs:
        run = _ended_before(job)
        if run is None:
            open_jobs.append(job)
        else:
            ended[job.run_dir] = run
            print(f"already {run.status}: {job.label}" if run.before else f"{run.status}: {job.label}")
    reasons: dict[Path, str] = {}
    if open_jobs and options is not None:
        reasons = run_locally(open_jobs, options, score)
    elif open_jobs:
        from segexp.sweep.engines import launch_through

        # Output of jobs belongs to the study of the runs, which `tune` and `resume` do not take from the command line.
        base.hydra.sweep.dir = str(open_jobs[0].run_dir.parent / SWEEPS)
        run_ids = [job.spec.run_id for job in open_jobs]
        launch_through(base, [_overrides(job) for job in open_jobs], extra, wait=wait, run_ids=run_ids)
        for job in open_jobs if wait else []:
            record_death(job.run_dir, "its process died; the same command continues it")
    for job in open_jobs:
        submitted = SweptRun(job.label, job.run_dir, "submitted")
        ended[job.run_dir] = _read(job, reasons.get(job.run_dir, "")) if wait else submitted
    return SweepReport(plan, [ended[job.run_dir] for job in plan.jobs], wait)


def _overrides(job: Job) -> list[str]:
    """The overrides of a job that another process composes, perhaps where the file of tuned rates does not exist."""
    # A run to restart has been archived by now.
    words = [*(word for word in job.overrides if not word.startswith("resume=")), "resume=auto"]
    config = job.spec.config
    words += [f"trainer.format={config.trainer.format}", f"trainer.precision={config.trainer.precision}"]  # not auto
    return words if config.tuned is None else [*words, f"optimizer.lr={params(config.optimizer)['lr']!r}"]


def split_finished(jobs: Sequence[Job]) -> tuple[Counter[str], list[Job], list[str]]:
    """How many runs have ended, by status; the jobs with something left to do; those that cannot start, and why."""
    finished: Counter[str] = Counter()
    left, problems = [], []
    for job in jobs:
        try:
            outcome = finished_before(job.spec)
        except UsageError as error:
            problems.append(f"{job.label}: {error}")
            continue
        if outcome is None:
            left.append(job)
        else:
            finished[outcome.status] += 1
    return finished, left, problems


def _ended_before(job: Job) -> SweptRun | None:
    """How a run ended before, or why it cannot start; None if there is something to do."""
    try:
        finished = finished_before(job.spec)
        if finished is None and job.spec.config.resume == "restart":
            archive(job.spec)
    except UsageError as error:
        return SweptRun(job.label, job.run_dir, "failed", str(error))
    except OwnedError as owner:
        return SweptRun(job.label, job.run_dir, "running", f"by {owner}: wait for it or stop it")
    if finished is None:
        return None
    return SweptRun(job.label, job.run_dir, finished.status, finished.reason, True, finished.summary.get("dice"))


def _read(job: Job, reason: str) -> SweptRun:
    """What a run's directory records; ``reason`` if it records nothing."""
    stopped = reason == STOPPED
    if not (job.run_dir / "run.json").exists():
        status = "failed" if reason and not stopped else "pending"
        return SweptRun(job.label, job.run_dir, status, reason, stopped=stopped)
    try:
        record = read_run(job.run_dir)
    except UsageError as error:
        return SweptRun(job.label, job.run_dir, "failed", str(error))
    status, dice = str(record.get("status")), record.get("summary", {}).get("dice")
    why = str(record.get("error", "")) or reason
    return SweptRun(job.label, job.run_dir, status, why, dice=dice, stopped=stopped and status != "done")
