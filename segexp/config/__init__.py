"""The typed schema of a configuration: its sections, and the groups that registries and YAML files offer.

The configuration files are read without Hydra here, for `list`, `show` and completion.
"""

import dataclasses
import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import segexp
from segexp.activations.hidden import HIDDEN_ACTIVATIONS, SWAP_OPTIONS
from segexp.activations.output import HEAD_OPTIONS, OUTPUT_ACTIVATIONS, HeadMode, head_mode
from segexp.data import adapters
from segexp.data.image_set import AugmentConfig, DatasetConfig
from segexp.data.split import METHODS
from segexp.errors import UsageError
from segexp.losses import LOSSES
from segexp.models.architectures import ARCHITECTURES, NO_ENCODER, BackboneConfig, InitConfig, memory_format
from segexp.optim import OPTIMIZERS, SCHEDULERS
from segexp.records import flatten
from segexp.records.files import read_yaml
from segexp.registry import REQUIRED, Option, Range, Registry, Since, fields_of, nearest

CODE_GROUPS: dict[str, Registry[Any]] = {
    "model": ARCHITECTURES,
    "hidden_activation": HIDDEN_ACTIVATIONS,
    "activation": OUTPUT_ACTIVATIONS,
    "loss": LOSSES,
    "optimizer": OPTIMIZERS,
    "scheduler": SCHEDULERS,
}
"""Groups whose members are code: their options are the keyword-only parameters of the registry's functions."""

SHARED_OPTIONS: dict[str, tuple[Option, ...]] = {"activation": HEAD_OPTIONS, "hidden_activation": SWAP_OPTIONS}
"""Options that all entries of a group have. Of the entries of plugins, records are read with these alone."""

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
    """How C > 2 classes share a pixel: softmax (exclusive, auto) or independent (C - 1 binary channels). Two classes
    are binary."""

    mode: Annotated[str, ("auto", "softmax", "independent", "binary")] = REQUIRED


@dataclass
class SplitConfig:
    """How the images are split into train, val and test.

    allow_shared_groups: split files may put images of one group into two parts.
    folds, fold: cross-validation, both or none: fold ``fold`` (from 0) of ``folds`` is the test part.
    method: the order in which groups are dealt; the hash of the split, not the method, enters the identity of a run.
    per_seed: every ``seed`` draws a split of its own, otherwise all have the same.
    leave_one_group_out: group ``fold``, in the order of names, is the test part. stratify: see `segexp.data.split`.
    """

    source: Annotated[str, ("auto", "files", "fractions")] = REQUIRED
    fractions: list[float] = REQUIRED
    seed: Annotated[int, SEEDS] = REQUIRED
    folds: Annotated[int | None, Range(2, 10**6), Since(None)] = None
    fold: Annotated[int | None, Range(0, 10**6), Since(None)] = None
    allow_shared_groups: Annotated[bool, Since(False)] = False
    method: Annotated[str, METHODS, Since("largest_first")] = "random"
    per_seed: Annotated[bool, Since(False)] = False
    leave_one_group_out: Annotated[bool, Since(False)] = False
    stratify: Annotated[bool, Since(False)] = False


@dataclass
class TrainerConfig:
    """The training loop. A run records what ``auto`` was in precision and format (`segexp.running.hardware`)."""

    epochs: Annotated[int, Range(1, 10**6)] = REQUIRED
    batch_size: Annotated[int, Range(2, 10**6)] = REQUIRED
    precision: Annotated[str, ("auto", "fp32", "bf16", "fp16")] = REQUIRED
    device: Annotated[str, ("auto", "cpu", "cuda", "mps")] = REQUIRED
    threads: Annotated[int | None, Range(1, 1024)] = REQUIRED
    wait: Annotated[str, ("auto", "active", "passive"), Since("auto")] = REQUIRED
    workers: Annotated[int, Range(0, 256)] = REQUIRED
    clip_norm: float | None = REQUIRED
    patience: Annotated[int | None, Range(1, 10**6)] = REQUIRED
    select: Annotated[str, ("dice", "loss")] = REQUIRED
    keep_last: bool = REQUIRED
    figures: Annotated[bool, Since(True)] = REQUIRED
    format: Annotated[str, ("auto", "contiguous", "channels_last"), Since("contiguous")] = REQUIRED


@dataclass
class MetricsConfig:
    """Conventions of the scores. scores: those of plugins that are computed as well."""

    empty_policy: Annotated[str, ("reference", "both_empty_one")] = REQUIRED
    resolution: Annotated[str, ("native", "network")] = REQUIRED
    boundary_band: Annotated[int, Range(1, 1000)] = REQUIRED
    nsd: Annotated[str, ("pixel", "surface"), Since("pixel")] = REQUIRED
    unit: Annotated[str, ("image", "case"), Since("image")] = REQUIRED
    scores: Annotated[list[str] | None, Since(None)] = None


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
    tracking: Annotated[Any, Since("none")] = REQUIRED  # "none", a name or a list of names of `TRACKERS`; [] for none


def choice_config(group: str, name: str) -> type[Choice]:
    """The typed options of one registry entry (aliases included) as a dataclass for the command line."""
    entry = entry_of(group, name)
    fields: list[tuple[str, Any, Any]] = [("name", str, name)]
    for o in entry.options:
        # Each configuration has its own copy of a list.
        copied = field(default_factory=functools.partial(list, o.default)) if isinstance(o.default, list) else o.default
        fields.append((o.name, o.type, copied))
    return dataclasses.make_dataclass(f"{group}_{entry.name}", fields, bases=(Choice,))


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
TRACKERS = {"csv": "", "tensorboard": "tensorboard", "mlflow": "mlflow", "wandb": "wandb"}
"""Names of ``hydra/launcher`` that run a sweep, and of ``tracking`` -> the extra that installs them, "" for none."""


@dataclass
class LocalOptions:
    """``hydra.launcher.*`` of a sweep on this machine. Nothing here changes what a run is.

    n_jobs: runs at once; auto: one per GPU slot, or without GPUs one for as many CPU cores as a run has threads.
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


VOLATILE = (
    "outputs",
    "study",
    "sweep",
    "tuned",
    "resume",
    "tracking",
    "dataset.name",
    "dataset.root",
    "dataset.group_file",
    "dataset.max_pixels",
    "dataset.class_names",
    "dataset.class_colors",
    "dataset.channel_names",
    "dataset.licence",
    "dataset.citation",
    "dataset.url",
    "dataset.download",
    "dataset.torchvision",
    "dataset.mask_antialias",
    "split.method",
    "trainer.device",
    "trainer.threads",
    "trainer.wait",
    "trainer.workers",
    "trainer.keep_last",
    "trainer.figures",
)
"""Keys that say where and how a run is carried out, not what it is: they do not enter its identity."""


PERMISSIONS = {"dataset.orientation": ("refuse", "stored"), "dataset.normalise": ("train", "full_range")}
"""Values that only permit what is otherwise refused, and change nothing else: these are volatile."""

PLACES = ("dataset.images", "dataset.masks", "dataset.split_dir", "dataset.manifest")
"""Folders and files below dataset.root, or absolute paths: these are volatile, because the content has its own hash."""


def is_volatile(key: str, value: object = None) -> bool:
    """Whether a dotted key says where and how a run is carried out, and so does not enter its identity."""
    if key in PLACES:
        return isinstance(value, str) and (Path(value).is_absolute() or value.startswith("~"))
    if key in PERMISSIONS:
        return value in PERMISSIONS[key]
    return key in VOLATILE or key.partition(".")[0] in VOLATILE


def configs_dir() -> Path:
    """The folder configs/ of the checkout if segexp runs from one, else the copy inside the installed package."""
    package = Path(segexp.__file__).resolve().parent
    checkout = package.parent
    if (checkout / "pyproject.toml").is_file() and (checkout / "configs" / "train.yaml").is_file():
        return checkout / "configs"
    return package / "configs"


def preset_names(group: str) -> list[str]:
    """Names of the YAML files of a group, sorted."""
    return sorted(path.stem for path in (configs_dir() / group).glob("*.yaml"))


def members_of(group: str) -> list[str]:
    """Names of the presets of a group, and of the data sets of plugins."""
    own = [entry.name for entry in adapters().values() if entry.preset is not None] if group == "dataset" else []
    return [*preset_names(group), *own]


def preset_file(group: str, given: str) -> Path:
    """The file that ``given`` names: a preset of the group, or a path. Raises UsageError if it is neither."""
    names = preset_names(group)
    if given in names:
        return configs_dir() / group / f"{given}.yaml"
    if not Path(given).is_file():
        raise UsageError(f"{given} is neither a file nor one of the {group} of segexp{nearest(given, names)}")
    return Path(given)


def changed_from_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """The keys and values that turn the configuration of plain `segexp train` into a recorded one.

    config: dotted key -> value. Groups with another member than the default come first, under the name of the group,
    then options with another value than their member has, and all of a plugin's entry, whose defaults no record holds.
    Where and how the run was carried out is left out.
    """
    train = _yaml(configs_dir() / "train.yaml")
    usual = {group: name for entry in train["defaults"] if isinstance(entry, dict) for group, name in entry.items()}
    expected = flatten(train)
    members = {group: str(config.get(f"{group}.name", usual[group])) for group in CODE_GROUPS}
    of_plugins = []
    for group, member in members.items():
        known = member in names_in(group)
        options = alias_target(group, member)[1] if known else SHARED_OPTIONS.get(group, ())
        expected |= {f"{group}.{option.name}": option.default for option in options}
        of_plugins += [] if known else [f"{group}."]
    for group in ("dataset", "backbone", "augment"):
        # A member that is not a preset was made from one: a data set from the preset of its adapter.
        asked = (config.get(f"{group}.name"), config.get(f"{group}.adapter"), usual[group])
        members[group] = next(member for member in asked if member in preset_names(group))
        adapter = str(config.get("dataset.adapter", members[group]))
        if group == "dataset" and adapter not in preset_names(group):  # of a plugin
            members[group] = adapter
            entry = adapters().get(adapter)
            expected |= {f"{group}.{option.name}": option.default for option in fields_of(DatasetConfig)}
            expected |= flatten(entry.preset, f"{group}.") if entry else {f"{group}.adapter": adapter}
            of_plugins += [] if entry else [f"{group}."]
            continue
        for path in preset_chain(configs_dir() / group / f"{members[group]}.yaml"):
            expected |= flatten(_yaml(path), f"{group}.")
    if config.get("backbone.name") == NO_ENCODER:
        expected["backbone.name"] = NO_ENCODER  # whatever the user set
    # What auto is, and for two classes whatever the user set.
    expected["head.mode"] = "binary" if config.get("dataset.num_classes") == 2 else "softmax"
    on_cpu = memory_format("cpu", config.get("dataset.image_size") or 0, str(config.get("model.name")))
    if config.get("trainer.format") == on_cpu:  # what auto is without a GPU
        expected["trainer.format"] = on_cpu
    changed: dict[str, Any] = {group: member for group, member in members.items() if member != usual[group]}
    terms: dict[str, dict[str, Any]] = {}
    for key, value in config.items():
        if key.startswith("loss.terms."):
            _, _, term, option = key.split(".")
            terms.setdefault(term, {})[option] = value
    if terms:
        changed["loss.terms"] = terms
    for key, value in config.items():
        shown = not is_volatile(key) or key in ("dataset.root", "dataset.group_file", "split.method", "tuned")
        own = key.startswith(tuple(of_plugins)) and key.count(".") == 1 and not key.endswith((".name", ".adapter"))
        if shown and (key in expected or own) and value != expected.get(key, REQUIRED):
            changed[key] = value
    return changed


def _yaml(path: Path) -> dict[str, Any]:
    tree: dict[str, Any] = read_yaml(path)
    return tree


def preset_chain(path: Path) -> list[Path]:
    """A preset's file, preceded by the files of the same group that its defaults list names, shared ones too."""
    block = re.search(r"^defaults:\n((?: *- .*\n)+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    named = re.findall(r"- (\w[\w/]*)(?:@_here_)?$", block[1], re.MULTILINE) if block else []
    below = [path.parent / f"{name}.yaml" for name in named]
    return [found for file in below if file.is_file() for found in preset_chain(file)] + [path]


def preset_values(path: Path) -> dict[str, str]:
    """Top-level `key: value  # comment` lines of a preset as text: key -> value, without comments.

    A value that is longer than its line is "". A preset over another one has its values too.
    """
    values = {}
    for part in preset_chain(path):
        for line in part.read_text(encoding="utf-8").splitlines():
            if line and not line[0].isspace() and not line.startswith(("#", "-")) and ":" in line:
                key, _, rest = line.partition(":")
                values[key] = rest.split(" #")[0].strip()
    return values


def study_purpose(study: str) -> str:
    """What a study is for: the first comment of its file below Hydra's line."""
    lines = (configs_dir() / "study" / f"{study}.yaml").read_text(encoding="utf-8").splitlines()
    return next(line[1:].strip() for line in lines if line.startswith("#") and "@package" not in line)


def study_variants(study: str, group: str) -> list[str]:
    """The members of ``group`` (protocol, budget) that a study has, the default first."""
    files = (configs_dir() / "study" / group).glob(f"{study}-*.yaml")
    return [STUDY_VARIANTS[group], *sorted(path.stem.removeprefix(f"{study}-") for path in files)]


def study_sweep(study: str, **variants: str) -> dict[str, list[str]]:
    """What a study sweeps over in these variants (``budget="smoke"``): key -> values as text."""
    folder = configs_dir() / "study"
    chosen = [folder / group / f"{study}-{variants[group]}.yaml" for group in STUDY_VARIANTS if group in variants]
    swept: dict[str, str] = {}
    for path in (folder / f"{study}.yaml", *(path for path in chosen if path.is_file())):
        swept |= _yaml(path).get("hydra", {}).get("sweeper", {}).get("params", {})
    values: dict[str, list[str]] = {}
    for key, text in swept.items():  # a,b,c or range(n) or glob(*) or glob(*, exclude=a)
        if numbers := re.fullmatch(r"range\((\d+)\)", str(text)):
            values[key] = [str(i) for i in range(int(numbers[1]))]
        elif members := re.fullmatch(r"glob\(\*(?:, *exclude=(\w+))?\)", str(text)):
            values[key] = [name for name in CODE_GROUPS[key] if name != members[1]]
        else:
            values[key] = [value.strip() for value in str(text).split(",")]
    return values
