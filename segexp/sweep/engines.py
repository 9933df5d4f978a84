"""A planned sweep through another engine: Slurm, Ray or joblib, by way of Hydra's launchers.

Hydra's launchers return what jobs returned, and stop at the first that was lost. Here each job's end is awaited on
its own, and nothing is read from it: the run directories say what was done.
"""

import functools
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext
from omegaconf import DictConfig

from segexp.config.compose import compose, compose_raw, hydra_session, quoted
from segexp.config.launchers import check_engine
from segexp.errors import DONE, FAILED, INTERRUPTED, REFUSED, BusyError, UsageError, first_line
from segexp.records.lock import STALE_SECONDS

if TYPE_CHECKING:
    from segexp.config import Config
    from segexp.running import Outcome


log = logging.getLogger("segexp")

PAUSE_SECONDS = 600.0
"""How long an interrupted job of Slurm waits for Slurm to end it."""


def run_composed(tree: DictConfig, *, folder: str) -> int:
    """The run whose overrides Hydra holds; relative paths start at ``folder``. Returns how it ended.

    ``tree`` is what Hydra composed from them; it is composed anew, for the types of options do not survive the way
    into another process. However the run ends, one line on stderr tells it and nothing is raised: Hydra would keep
    it to itself, and some engines would end the sweep.
    """
    _log_to_stderr()
    overrides = HydraConfig.get().overrides
    label = " ".join(overrides.task)
    try:
        _enter(folder)
        # The Hydra of the process that started the sweep came along.
        GlobalHydra.instance().clear()
        with hydra_session() as extra:
            config = compose(list(overrides.task), [*extra, *overrides.hydra])
        outcome = _run(config)
    except (UsageError, OSError) as error:
        log.error("refused %s: %s", label, error)
        return REFUSED
    except KeyboardInterrupt:
        log.error("interrupted %s", label)
        return INTERRUPTED
    except Exception:
        log.exception("failed %s", label)
        return FAILED
    if outcome.status == "done":
        return DONE
    log.error("%s %s: %s (%s)", outcome.status, label, outcome.reason, outcome.run_dir)
    return FAILED


def run_slurm_job(tree: DictConfig, *, folder: str) -> None:
    """`run_composed` as a job of Slurm, which ends as FAILED unless the run is done. Raises SystemExit."""
    code = run_composed(tree, folder=folder)
    if code == INTERRUPTED:
        # SIGTERM announces a pre-emption or a cancellation. Slurm requeues only what it has to end itself; and the
        # signal that makes submitit requeue the job may still come.
        log.warning("saved; waiting for Slurm to end this job")
        time.sleep(PAUSE_SECONDS)
    if code != DONE:
        # Hydra and submitit make a success of anything less.
        raise SystemExit(code)


def _run(config: "Config") -> "Outcome":
    """Prepare and execute; a job that Slurm started again waits until its former process is known to be dead."""
    from segexp.running import execute, prepare

    prepared = prepare(config)
    deadline = time.monotonic() + (2 * STALE_SECONDS if os.environ.get("SLURM_RESTART_COUNT") else 0)
    while True:
        try:
            return execute(prepared)
        except BusyError:
            if time.monotonic() > deadline:
                raise
        time.sleep(5)


def _enter(folder: str) -> None:
    try:
        os.chdir(folder)
    except OSError as error:
        raise UsageError(
            f"{folder} cannot be entered on {socket.gethostname()} ({error.strerror}): "
            "start the sweep in a folder that all machines share"
        ) from error


def _log_to_stderr() -> None:
    log.setLevel(logging.INFO)
    log.propagate = False
    if not log.handlers:
        terminal = logging.StreamHandler(sys.stderr)
        terminal.setLevel(logging.WARNING)
        terminal.setFormatter(logging.Formatter("segexp: %(message)s"))
        log.addHandler(terminal)


log = logging.getLogger("segexp")

ARRAY = 1000
"""Jobs of one Slurm array: one less than Slurm's default MaxArraySize."""


def launch_through(base: DictConfig, jobs: Sequence[Sequence[str]], extra: Sequence[str], *, wait: bool = True) -> None:
    """Carry out every job through the launcher of the composed ``base``, inside a `hydra_session`.

    jobs: the overrides that make each run. extra: what the `hydra_session` yields. Returns when all have ended, or,
    with ``wait=False``, are submitted. What becomes of them is in the run directories; a breakdown of the engine is
    logged. Raises UsageError where the engine is missing, or cannot do without waiting.
    """
    engine = check_engine(base.hydra, wait)
    # Other processes may have another working directory; and Hydra's logging would write files of its own.
    own = [f"hydra.sweep.dir={quoted(os.path.abspath(base.hydra.sweep.dir))}"]
    own += ["hydra/job_logging=none", "hydra/hydra_logging=none"]
    given = [text for text in base.hydra.overrides.hydra if text not in extra]
    tree = compose_raw([*extra, *given, *own, *jobs[0]], sweep=True)
    _THROUGH[engine.name](tree, jobs, wait)


def _launcher(tree: DictConfig, task: Callable[..., Any]) -> Launcher:
    hydra = GlobalHydra.instance().hydra
    assert hydra is not None, "launch inside a hydra_session"
    context = HydraContext(config_loader=hydra.config_loader, callbacks=Callbacks())
    function = functools.partial(task, folder=str(Path.cwd()))
    return Plugins.instance().instantiate_launcher(hydra_context=context, task_function=function, config=tree)


def _joblib(tree: DictConfig, jobs: Sequence[Sequence[str]], wait: bool) -> None:
    with _breakdown_logged():
        _launcher(tree, run_composed).launch(jobs, 0)


def _ray(tree: DictConfig, jobs: Sequence[Sequence[str]], wait: bool) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if tree.hydra.launcher.ray.init.address is None:
        # What Ray calls clusters on Windows and macOS; 0 makes it listen on 127.0.0.1 alone, on any system.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    import ray

    get = ray.get

    def end_of(job: Any) -> None:
        with _breakdown_logged():
            get(job)

    try:
        with _breakdown_logged(), _replaced(ray, "get", end_of):
            _launcher(tree, run_composed).launch(jobs, 0)
    finally:
        ray.shutdown()


def _slurm(tree: DictConfig, jobs: Sequence[Sequence[str]], wait: bool) -> None:
    import submitit

    submitted: list[str] = []

    def not_awaited(job: Any) -> list[None]:
        submitted.append(job.job_id.split("_")[0])
        return [None]

    launcher = _launcher(tree, run_slurm_job)
    with _breakdown_logged(), _replaced(submitit.Job, "results", not_awaited):
        for start in range(0, len(jobs), ARRAY):
            launcher.launch(jobs[start : start + ARRAY], start)
    numbers = list(dict.fromkeys(submitted))
    if not numbers:
        return
    log.warning("submitted to Slurm: %s; logs in %s", " ".join(numbers), Path(tree.hydra.sweep.dir) / "slurm")
    if not wait:
        return
    try:
        _await_slurm(set(numbers))
    except KeyboardInterrupt:
        log.warning("the jobs go on without this command; `scancel %s` ends them", " ".join(numbers))
        raise


def _await_slurm(numbers: set[str]) -> None:
    """Return when none of these jobs is in Slurm's queue any more, whether or not the cluster keeps accounts."""
    pause, told = 1.0, ""
    # %F is the number of the whole array.
    command = ["squeue", "--noheader", "--me", "--format=%F"]
    while True:
        asked = subprocess.run(command, capture_output=True, text=True, check=False)
        if asked.returncode == 0 and not numbers & set(asked.stdout.split()):
            return
        if asked.returncode and asked.stderr != told:
            told = asked.stderr
            log.warning("squeue does not answer, trying again: %s", first_line(told))
        time.sleep(pause)
        pause = min(pause * 1.2, 30.0)


_THROUGH = {"submitit_slurm": _slurm, "ray": _ray, "joblib": _joblib}


@contextmanager
def _breakdown_logged() -> Iterator[None]:
    """An engine that breaks down takes nothing of the truth along: the planner reads the run directories."""
    try:
        yield
    except Exception as error:
        log.error("the engine broke down: %s: %s", type(error).__name__, first_line(error))


@contextmanager
def _replaced(owner: Any, name: str, function: Callable[..., Any]) -> Iterator[None]:
    """For a while, an attribute of a library is our function."""
    before = getattr(owner, name)
    setattr(owner, name, function)
    try:
        yield
    finally:
        setattr(owner, name, before)
