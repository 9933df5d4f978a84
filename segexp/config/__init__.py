"""The typed schema of a configuration: its sections, and the groups that registries and YAML files offer."""

import dataclasses
import functools
from dataclasses import dataclass, field
from typing import Annotated, Any

from segexp.activations import OUTPUT_ACTIVATIONS, HeadMode, head_mode
from segexp.activations.hidden import HIDDEN_ACTIVATIONS
from segexp.data.image_set import AugmentConfig, DatasetConfig
from segexp.errors import UsageError
from segexp.losses import LOSSES
from segexp.models import ARCHITECTURES, BackboneConfig, InitConfig
from segexp.optim import OPTIMIZERS, SCHEDULERS
from segexp.registry import REQUIRED, Option, Range, Registry, Since

CODE_GROUPS: dict[str, Registry[Any]] = {
    "model": ARCHITECTURES,
    "hidden_activation": HIDDEN_ACTIVATIONS,
    "activation": OUTPUT_ACTIVATIONS,
    "loss": LOSSES,
    "optimizer": OPTIMIZERS,
    "scheduler": SCHEDULERS,
}
"""Groups whose members are code: their options are the keyword-only parameters of the registry's functions."""

YAML_GROUPS = ("dataset", "backbone", "augment", "study", "protocol", "budget")

STUDY_VARIANTS = {"protocol": "corrected", "budget": "full"}
"""Groups that choose a variant of a study, with the member that changes nothing."""


SEEDS = Range(0, 2**63 - 1)


@dataclass
class Choice:
    """A member of a group generated from a registry; members add their own typed options."""

    name: str = REQUIRED


@dataclass
class StudyConfig:
    """The study a run belongs to: the folder below ``outputs``, and which variant of a preset it is.

    protocol and budget are set by the variant's own file, which is chosen as ``protocol=...`` and ``budget=...``.
    """

    name: str = REQUIRED
    protocol: str = STUDY_VARIANTS["protocol"]
    budget: str = STUDY_VARIANTS["budget"]


@dataclass
class HeadConfig:
    """How C > 2 classes share a pixel: softmax (exclusive) or independent (C - 1 binary channels)."""

    mode: Annotated[str, ("softmax", "independent", "binary")] = REQUIRED


@dataclass
class SplitConfig:
    """How the images are split into train, val and test; it never moves with ``seed``.

    folds, fold: cross-validation, both or none: fold ``fold`` (from 0) of ``folds`` is the test part.
    """

    source: Annotated[str, ("auto", "files", "fractions")] = REQUIRED
    fractions: list[float] = REQUIRED
    seed: Annotated[int, SEEDS] = REQUIRED
    folds: Annotated[int | None, Range(2, 10**6), Since(None)] = None
    fold: Annotated[int | None, Range(0, 10**6), Since(None)] = None


@dataclass
class TrainerConfig:
    """The training loop."""

    epochs: Annotated[int, Range(1, 10**6)] = REQUIRED
    batch_size: Annotated[int, Range(2, 10**6)] = REQUIRED
    precision: Annotated[str, ("fp32", "bf16", "fp16")] = REQUIRED
    device: Annotated[str, ("auto", "cpu", "cuda", "mps")] = REQUIRED
    threads: Annotated[int | None, Range(1, 1024)] = REQUIRED
    workers: Annotated[int, Range(0, 256)] = REQUIRED
    clip_norm: float | None = REQUIRED
    patience: Annotated[int | None, Range(1, 10**6)] = REQUIRED
    select: Annotated[str, ("dice", "loss")] = REQUIRED


@dataclass
class MetricsConfig:
    """Conventions of the scores."""

    empty_policy: Annotated[str, ("reference", "both_empty_one")] = REQUIRED
    resolution: Annotated[str, ("native", "network")] = REQUIRED
    boundary_band: Annotated[int, Range(1, 1000)] = REQUIRED


@dataclass
class SweepConfig:
    """Which combinations of a sweep are run; not part of what a run is."""

    pairs: list[Any] | None = REQUIRED
    exclude: list[Any] | None = REQUIRED


@dataclass
class Config:
    """One run."""

    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    model: Choice = field(default_factory=Choice)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    hidden_activation: Choice = field(default_factory=Choice)
    activation: Choice = field(default_factory=Choice)
    loss: Choice = field(default_factory=Choice)
    optimizer: Choice = field(default_factory=Choice)
    scheduler: Choice = field(default_factory=Choice)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    study: StudyConfig = field(default_factory=StudyConfig)
    init: InitConfig = field(default_factory=InitConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig)
    tuned: str | None = REQUIRED
    seed: Annotated[int, SEEDS] = REQUIRED
    outputs: str = REQUIRED
    resume: Annotated[str, ("auto", "never", "restart")] = REQUIRED


def choice_config(group: str, name: str) -> type[Choice]:
    """The typed options of one registry entry (aliases included) as a dataclass for the command line."""
    canonical, options = alias_target(group, name)
    fields: list[tuple[str, Any, Any]] = [("name", str, name)]
    for o in options:
        # Each configuration has its own copy of a list.
        copied = field(default_factory=functools.partial(list, o.default)) if isinstance(o.default, list) else o.default
        fields.append((o.name, o.type, copied))
    return dataclasses.make_dataclass(f"{group}_{canonical}", fields, bases=(Choice,))


def names_in(group: str) -> list[str]:
    """Every valid name of a code group: entries in order of declaration, each followed by its aliases."""
    return [name for entry in CODE_GROUPS[group].values() for name in (entry.name, *getattr(entry, "aliases", {}))]


def entry_of(group: str, name: str) -> Any:
    """The registry entry that ``name`` or alias ``name`` means. Raises UsageError for unknown names."""
    for entry in CODE_GROUPS[group].values():
        if name == entry.name or name in getattr(entry, "aliases", {}):
            return entry
    raise UsageError(CODE_GROUPS[group].unknown(name, names_in(group)))


def alias_target(group: str, name: str) -> tuple[str, tuple[Option, ...]]:
    """The canonical name behind ``name`` and its options. Raises UsageError for unknown names."""
    entry = entry_of(group, name)
    return entry.name, entry.options


def params(choice: Choice) -> dict[str, Any]:
    """The options of a registry entry as keyword arguments."""
    return {f.name: getattr(choice, f.name) for f in dataclasses.fields(choice) if f.name != "name"}


def mode_of(config: Config) -> HeadMode:
    """The head mode in force."""
    return head_mode(config.dataset.num_classes, config.head.mode)


LAUNCHERS = {"local": "", "submitit_slurm": "slurm", "ray": "ray"}
"""Names of ``hydra/launcher`` that run a sweep -> the extra of segexp that installs them, "" for none."""


@dataclass
class LocalOptions:
    """``hydra.launcher.*`` of a sweep on this machine. Nothing here changes what a run is.

    n_jobs: runs at once; auto: one per GPU slot, or without GPUs one per ``threads`` CPU cores.
    threads: CPU threads of each run, unless ``trainer.threads`` is set or the run began with another number; auto: the
    cores divided by ``n_jobs`` if that is given, else 1.
    gpus: auto (all that are visible), a number of them, or a list of their indices; 0: none.
    runs_per_gpu: runs that share a GPU.
    retries: how often a run is continued after its process died (killed, out of memory, segmentation fault).
    timeout_minutes: time limit of one attempt of a run; null: no limit.
    """

    n_jobs: Any = "auto"
    threads: Any = "auto"
    gpus: Any = "auto"
    runs_per_gpu: int = 1
    retries: int = 1
    timeout_minutes: float | None = None
