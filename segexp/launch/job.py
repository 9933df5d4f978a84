"""One job of a sweep inside a process of another engine: composed configuration -> one finished run directory.

The functions are found by name in the other process. What they return is told to nobody: the run directory is read.
"""

import logging
import os
import socket
import sys
import time
from typing import TYPE_CHECKING

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from segexp.errors import DONE, FAILED, INTERRUPTED, REFUSED, BusyError, UsageError
from segexp.launch.compose import compose, hydra_session
from segexp.ownership import STALE_SECONDS

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
