"""`segexp train -m`: Hydra's sweeper and launcher carry out one run after the other; a failed run fails alone."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override, Transformer
from omegaconf import DictConfig, OmegaConf

from segexp.config import CODE_GROUPS, STUDY_VARIANTS, YAML_GROUPS
from segexp.errors import UsageError
from segexp.launch.compose import COMPOSITION_ERRORS, PRIMARY, compose_raw, explain, parse_overrides, typed

if TYPE_CHECKING:
    from segexp.config import Config
    from segexp.running import Outcome

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
    for override in swept:
        if override.key_or_group in ("study", *STUDY_VARIANTS) and override.is_sweep_override():
            key = override.key_or_group
            raise UsageError(f"-m {key}=A,B would lose the sweeps of both: start one sweep per {key}")
    _check_values(swept, overrides, extra)
    jobs: list[Job] = []

    def job(tree: DictConfig) -> None:
        hydra = HydraConfig.get()
        label = " ".join(hydra.overrides.task)
        OmegaConf.set_struct(tree, False)
        try:
            config = typed(tree, hydra.runtime.choices)
            jobs.append(Job(label, run_one(config)))
        except (UsageError, OSError) as error:
            log.error("refused %s: %s", label, error)
            jobs.append(Job(label, None, str(error)))

    hydra = GlobalHydra.instance().hydra
    assert hydra is not None, "sweep inside a hydra_session"
    try:
        hydra.multirun(PRIMARY, job, [*extra, *overrides], with_log_configuration=False)
    except COMPOSITION_ERRORS as error:
        raise UsageError(explain(error, overrides)) from error
    return jobs


def _check_values(swept: Sequence[Override], overrides: Sequence[str], extra: Sequence[str]) -> None:
    """Compose once with the first value of every sweep, and with each further member of a group, before any run:
    what is misspelt is told at once and not after a night. Raises UsageError."""
    values = {
        text: [f"{o.key_or_group}={v}" for v in o.sweep_iterator(Transformer.encode)]
        if o.is_sweep_override()
        else [text]
        for o, text in zip(swept, overrides, strict=True)
    }
    first = {text: alternatives[0] for text, alternatives in values.items()}
    compose_raw([*extra, *first.values()])
    groups = (*CODE_GROUPS, *YAML_GROUPS)
    for override, text in zip(swept, overrides, strict=True):
        for alternative in values[text][1:] if override.key_or_group in groups else []:
            compose_raw([*extra, alternative])
