"""`segexp train -m`: Hydra's sweeper and launcher carry out one run after the other; a failed run fails alone."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from segexp.errors import UsageError
from segexp.launch.compose import PRIMARY, explain, parse_overrides, typed

if TYPE_CHECKING:
    from segexp.config import Config
    from segexp.run import Outcome

log = logging.getLogger("segexp")


@dataclass(frozen=True)
class Job:
    """One run of a sweep: the overrides that make it, and its outcome or why it was refused."""

    overrides: str
    outcome: "Outcome | None"
    refused: str = ""


def sweep(overrides: Sequence[str], extra: Sequence[str], run_one: Callable[["Config"], "Outcome"]) -> list[Job]:
    """Run every combination of the overrides, inside a `hydra_session`. Raises UsageError for a bad sweep."""
    swept = parse_overrides(overrides)
    if any(o.key_or_group == "study" and o.is_sweep_override() for o in swept):
        raise UsageError("-m study=A,B would lose both studies' own sweeps: start one sweep per study")
    jobs: list[Job] = []

    def job(tree: DictConfig) -> None:
        hydra = HydraConfig.get()
        label = " ".join(hydra.overrides.task)
        OmegaConf.set_struct(tree, False)
        try:
            config = typed(tree, hydra.runtime.choices)
            jobs.append(Job(label, run_one(config)))
        except UsageError as error:
            log.error("refused %s: %s", label, error)
            jobs.append(Job(label, None, str(error)))

    hydra = GlobalHydra.instance().hydra
    assert hydra is not None, "sweep inside a hydra_session"
    try:
        hydra.multirun(PRIMARY, job, [*extra, *overrides], with_log_configuration=False)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise UsageError(explain(error, overrides)) from error
    return jobs
