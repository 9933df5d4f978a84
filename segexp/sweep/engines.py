"""A planned sweep through Slurm (submitit) or Ray.

An engine only starts the runs and waits for them. What became of a run is read from its directory, so that the loss
of one job never loses another.
"""

import dataclasses
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from segexp.config import Config
from segexp.config.compose import compose, hydra_session
from segexp.config.launchers import RaySettings, SlurmSettings, check_engine
from segexp.errors import DONE, FAILED, INTERRUPTED, REFUSED, BusyError, UsageError, first_line
from segexp.records.process import STALE_SECONDS, set_wait
from segexp.records.runs import SWEEPS, sweeps_folder
from segexp.registry import plugins
from segexp.running import Outcome, check_planned, prepare

log = logging.getLogger("segexp")

ARRAY = 1000  # jobs of one Slurm array: one less than Slurm's default MaxArraySize
PAUSE_SECONDS = 600.0  # how long an interrupted Slurm job waits for Slurm to end it


def launch_through(
    base: DictConfig,
    jobs: Sequence[Sequence[str]],
    extra: Sequence[str],
    *,
    wait: bool = True,
    run_ids: Sequence[str] = (),
) -> None:
    """Carry out every job through the launcher of the composed ``base``.

    jobs: the overrides of each run. extra: what the `hydra_session` yields. run_ids: of the planned runs, where known:
    a job whose data have changed is refused. Returns when all jobs have ended, or with ``wait=False`` when they are
    submitted. A failure of the engine is logged; the run directories hold the results.
    Raises UsageError if the engine is not available, or cannot work with ``wait=False``.
    """
    check_engine(base.hydra, wait)
    settings = OmegaConf.to_object(base.hydra.launcher)
    words = [[*extra, *job] for job in jobs]
    run_ids = run_ids or [""] * len(jobs)
    if isinstance(settings, SlurmSettings):
        _through_slurm(settings, words, run_ids, wait)
    else:
        assert isinstance(settings, RaySettings)
        _through_ray(settings, words, run_ids)


# In the process of a job


def run_job(overrides: Sequence[str], folder: str, run_id: str = "", given: Mapping[str, str] | None = None) -> int:
    """One run from its overrides; relative paths start at ``folder``. given: its plugins with the hashes that they had
    when it was planned. Returns its exit code.

    The configuration is composed in this process, because the types of options do not survive the transfer to it. Never
    raises: however the run ends, one line on stderr says so, because some engines would stop the whole sweep.
    """
    _log_to_stderr()
    label = " ".join(overrides)
    try:
        os.chdir(folder)
    except OSError as error:
        where = f"{folder} on {socket.gethostname()} ({error.strerror})"
        log.error("cannot enter %s: start the sweep in a folder that all machines share", where)
        return REFUSED
    try:
        plugins.use(given or ())
        with hydra_session():
            config = compose(overrides)
        log.info("%s", set_wait(config.trainer.wait, config.trainer.threads))
        outcome = _run(config, run_id, given)
    except (UsageError, OSError) as error:
        log.error("refused %s: %s", label, error)
        return REFUSED
    except KeyboardInterrupt:
        log.error("interrupted %s", label)
        return INTERRUPTED
    except Exception as error:
        log.error("failed %s: %s", label, plugins.explained(error))
        return FAILED
    if outcome.status == "done":
        return DONE
    log.error("%s %s: %s (%s)", outcome.status, label, outcome.reason, outcome.run_dir)
    return FAILED


class SlurmJob:
    """`run_job` as submitit calls it: the job fails unless its run is done, and is submitted again before its time
    limit."""

    def __call__(self, *job: Any) -> None:
        """Raises SystemExit with the exit code of a run that is not done. job: the arguments of `run_job`."""
        code = run_job(*job)
        if code == INTERRUPTED:
            # SIGTERM announces a pre-emption or a cancellation. Slurm requeues only jobs that it ends itself, and
            # submitit's signal to requeue may still arrive.
            log.warning("saved; waiting for Slurm to end this job")
            time.sleep(PAUSE_SECONDS)
        if code != DONE:
            raise SystemExit(code)

    def checkpoint(self, *job: Any) -> Any:
        """What submitit runs after requeueing: the same run, which continues from its last checkpoint."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, *job)


def _run(config: Config, run_id: str, given: Mapping[str, str] | None = None) -> Outcome:
    """Prepare and execute; a requeued Slurm job waits until the lock of its previous process has expired."""
    from segexp.running.execute import execute

    spec = prepare(config)
    if run_id:
        check_planned(spec, run_id, given)
    deadline = time.monotonic() + (2 * STALE_SECONDS if os.environ.get("SLURM_RESTART_COUNT") else 0)
    while True:
        try:
            return execute(spec)
        except BusyError:
            if time.monotonic() > deadline:
                raise
        time.sleep(5)


def _log_to_stderr() -> None:
    log.setLevel(logging.INFO)
    log.propagate = False
    if not log.handlers:
        terminal = logging.StreamHandler(sys.stderr)
        terminal.setLevel(logging.WARNING)
        terminal.setFormatter(logging.Formatter("segexp: %(message)s"))
        log.addHandler(terminal)
        progress = logging.StreamHandler(sys.stdout)
        progress.addFilter(lambda record: record.levelno == logging.INFO)
        log.addHandler(progress)


# In the process of the sweep


def _through_ray(settings: RaySettings, jobs: Sequence[Sequence[str]], run_ids: Sequence[str]) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if settings.ray.init.address is None:
        # Ray's switch for clusters on Windows and macOS: 0 makes it listen on 127.0.0.1 only, on every system.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    import ray

    try:
        with _failure_logged():
            ray.init(**dataclasses.asdict(settings.ray.init))
            remote = ray.remote(**dataclasses.asdict(settings.ray.remote))(run_job)
            folder, given = os.getcwd(), plugins.given()
            started = [remote.remote(job, folder, run_id, given) for job, run_id in zip(jobs, run_ids, strict=True)]
            for result in started:
                with _failure_logged():
                    ray.get(result)
    finally:
        ray.shutdown()


def _through_slurm(settings: SlurmSettings, jobs: Sequence[Sequence[str]], run_ids: Sequence[str], wait: bool) -> None:
    import submitit

    options = {key: value for key, value in dataclasses.asdict(settings).items() if value is not None}
    folder = Path(options.pop("submitit_folder")).absolute()
    if SWEEPS in folder.parts:  # of a study, which may be a stranger's
        at = len(folder.parts) - folder.parts[::-1].index(SWEEPS) - 1
        sweeps_folder(Path(*folder.parts[:at]), *folder.parts[at + 1 :])
    executor = submitit.AutoExecutor(folder, cluster="slurm", slurm_max_num_timeout=options.pop("max_num_timeout"))
    # submitit gives these names for every cluster; all others are Slurm's own.
    common = ("name", "timeout_min", "cpus_per_task", "gpus_per_node", "mem_gb")
    numbers: list[str] = []
    with _failure_logged():
        executor.update_parameters(**{k if k in common else f"slurm_{k}": value for k, value in options.items()})
        for start in range(0, len(jobs), ARRAY):
            part = jobs[start : start + ARRAY]
            folders, given = [os.getcwd()] * len(part), [plugins.given()] * len(part)
            submitted = executor.map_array(SlurmJob(), part, folders, run_ids[start : start + ARRAY], given)
            numbers.append(submitted[0].job_id.split("_")[0])
    if not numbers:
        return
    log.warning("submitted to Slurm: %s; logs in %s", " ".join(numbers), str(folder).partition("/%")[0])
    if not wait:
        return
    try:
        _await_slurm(set(numbers))
    except KeyboardInterrupt:
        log.warning("the jobs continue without this command; `scancel %s` ends them", " ".join(numbers))
        raise


def _await_slurm(numbers: set[str]) -> None:
    """Return when none of these jobs is in Slurm's queue any more; needs no accounting on the cluster."""
    pause, warned = 1.0, ""
    # %F is the number of the whole array.
    command = ["squeue", "--noheader", "--me", "--format=%F"]
    while True:
        queue = subprocess.run(command, capture_output=True, text=True, check=False)
        if queue.returncode == 0 and not numbers & set(queue.stdout.split()):
            return
        if queue.returncode and queue.stderr != warned:
            warned = queue.stderr
            log.warning("squeue does not answer, trying again: %s", first_line(warned))
        time.sleep(pause)
        pause = min(pause * 1.2, 30.0)


@contextmanager
def _failure_logged() -> Iterator[None]:
    """Log what the engine raises: the run directories say which runs are done."""
    try:
        yield
    except Exception as error:
        log.error("the engine failed: %s: %s", type(error).__name__, first_line(error))
