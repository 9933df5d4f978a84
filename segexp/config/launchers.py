"""The launchers of a sweep: their typed settings, what they need, and which settings a file may not hold.

Hydra's launcher plugins store settings of their own under the same names. Ours replace them, so that an unknown
setting is an error, and no configuration file can name code to run.
"""

import importlib.metadata
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from omegaconf import DictConfig, OmegaConf

from segexp.config import LAUNCHERS
from segexp.errors import UsageError


@dataclass
class SlurmSettings:
    """hydra/launcher=submitit_slurm: an array of Slurm jobs, one run each; names are sbatch's, times in minutes.

    What is not here can be said in sbatch's own variables, such as SBATCH_RESERVATION.
    """

    submitit_folder: str = "${hydra.sweep.dir}/slurm/%j"  # scripts and logs of the jobs; %j is the job's number
    name: str = "segexp"
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    exclude: str | None = None
    comment: str | None = None
    timeout_min: int = 240
    cpus_per_task: int | None = None
    cpus_per_gpu: int | None = None
    gpus_per_node: int | None = None
    gpus_per_task: int | None = None
    gres: str | None = None
    mem_gb: int | None = None
    mem_per_cpu: str | None = None
    mem_per_gpu: str | None = None
    array_parallelism: int = 256  # jobs at the same time
    signal_delay_s: int = 120  # how long before its time limit a job saves and goes back to the queue
    max_num_timeout: int = 20  # how often it may do that
    mail_type: str | None = None
    mail_user: str | None = None
    setup: list[str] | None = None  # shell commands before the run


@dataclass
class RayInit:
    """What ray.init takes; null leaves the choice to Ray."""

    address: str | None = None  # of a running cluster; null starts one on this machine, for this sweep
    num_cpus: int | None = None
    num_gpus: int | None = None
    object_store_memory: int | None = 78643200  # bytes; nothing of a run goes through it; null for a running cluster
    include_dashboard: bool = False
    log_to_driver: bool = True


@dataclass
class RayRemote:
    """What one run takes of the cluster."""

    num_cpus: float = 1
    num_gpus: float = 0  # 0.5: two runs share a GPU; 0: the run sees none
    max_retries: int = 1  # after the death of its process; the run continues from its checkpoint


@dataclass
class RayParts:
    """The two parts of Ray's settings."""

    init: RayInit = field(default_factory=RayInit)
    remote: RayRemote = field(default_factory=RayRemote)


@dataclass
class RaySettings:
    """hydra/launcher=ray."""

    ray: RayParts = field(default_factory=RayParts)


@dataclass(frozen=True)
class Engine:
    """A launcher that uses another program. name: of hydra/launcher=NAME; distribution: what must be installed.

    returns: it can submit and return (--no-wait). programs: what must be on this machine.
    """

    name: str
    settings: Any
    distribution: str
    returns: bool = False
    programs: tuple[str, ...] = ()


ENGINES = {
    "submitit_slurm": Engine("submitit_slurm", SlurmSettings, "submitit", True, ("sbatch", "srun", "squeue")),
    "ray": Engine("ray", RaySettings, "ray"),
}
"""Launchers that hand runs to another program, by their names."""

REMOVED = {"joblib": "hydra/launcher=joblib was removed: use hydra/launcher=local hydra.launcher.n_jobs=N"}
"""Launchers of earlier versions, and what replaces them."""

COMMAND_LINE_ONLY = ("setup", "ray.init.address")
"""Settings that say what runs, or where: a file may not hold them, for a configuration may be a stranger's."""


def register_launchers() -> None:
    """Store our settings under the launchers' names."""
    # Hydra lets plugins store theirs when it first looks for plugins, which must not be later than this.
    Plugins.instance()
    store = ConfigStore.instance()
    for engine in ENGINES.values():
        store.store(group="hydra/launcher", name=engine.name, node=engine.settings)


def refuse_code(hydra: DictConfig) -> None:
    """Raise UsageError where the ``hydra`` block of a configuration, which may be a stranger's, decides what runs."""
    chosen = hydra.runtime.choices.get("hydra/launcher")
    if chosen in REMOVED:
        raise UsageError(REMOVED[chosen])
    for key in ("callbacks", "job.env_set", "job.env_copy"):
        # A variable such as PATH decides what runs as much as a name does.
        if OmegaConf.select(hydra, key):
            raise UsageError(f"hydra.{key} would run code from a configuration: remove it")
    for part in ("launcher", "sweeper"):
        own = f"hydra._internal.core_plugins.basic_{part}.Basic{part.capitalize()}"
        if hydra[part] is None:
            raise UsageError(f"hydra.{part}=null: a sweep needs one; leave it out")
        for key, value in _leaves(OmegaConf.to_container(hydra[part], resolve=False)):
            if key == "_target_":  # Hydra would call its value
                if value != own:
                    raise UsageError(f"hydra.{part} names {value}, which segexp does not know: remove it")
            elif key.split(".")[-1].startswith("_") or not str(f"{key}{value}").isprintable():
                # A line break in an option of sbatch begins a command.
                raise UsageError(f"hydra.{part}.{key} would run code from a configuration: remove it")
            elif value is not None:
                only = next((o for o in COMMAND_LINE_ONLY if f"{key}.".startswith(f"{o}.")), None)
                given = [text.lstrip("+").partition("=")[0] for text in hydra.overrides.hydra]
                if only and not any(f"{name}.".startswith(f"hydra.{part}.{only}.") for name in given):
                    wrong = f"hydra.{part}.{only} stands in a configuration file and decides what runs"
                    raise UsageError(f"{wrong}: give it on the command line")


def _leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of nested mappings and lists; items of a list have its key."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(inner, prefix)
    else:
        yield prefix, value


def check_engine(hydra: DictConfig, wait: bool = True) -> Engine:
    """The engine of a composed ``hydra`` node. Raises UsageError if it is none, is not installed, cannot run on this
    machine, or with ``wait=False`` cannot submit and return."""
    kind = OmegaConf.get_type(hydra.launcher)
    engine = next((engine for engine in ENGINES.values() if engine.settings is kind), None)
    if engine is None:
        names = ", ".join(ENGINES)
        raise UsageError(f"hydra/launcher={hydra.runtime.choices['hydra/launcher']} runs no sweeps: local, {names} do")
    try:
        importlib.metadata.version(engine.distribution)
    except importlib.metadata.PackageNotFoundError:
        cure = f"pip install 'segexp[{LAUNCHERS[engine.name]}]'"
        raise UsageError(f"hydra/launcher={engine.name} is not installed: {cure}") from None
    for program in engine.programs:
        if shutil.which(program) is None:
            wrong = f"hydra/launcher={engine.name} needs {program}, which is not on this machine"
            raise UsageError(f"{wrong}: start the sweep where jobs are submitted")
    if not wait and not engine.returns:
        able = ", ".join(e.name for e in ENGINES.values() if e.returns)
        raise UsageError(f"--no-wait: runs of hydra/launcher={engine.name} end with this command; {able} can do it")
    return engine
