"""A run before torch is imported: data opened, checked and split, the run named."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import yaml

from segexp.activations.output import OUTPUT_ACTIVATIONS
from segexp.config import Config
from segexp.config.canonical import arm_identity, identity
from segexp.data import adapters
from segexp.data.image_set import ImageSet, PairFacts, check_pairs, check_split, fingerprint
from segexp.data.split import Split, make_split, split_sha
from segexp.models.architectures import weights_sha
from segexp.records import run_name
from segexp.records.environment import usable_cores


@dataclass(frozen=True)
class RunSpec:
    """A run before torch is imported: everything that decides its identity, and its directory."""

    config: Config
    image_set: ImageSet
    facts: PairFacts
    split: Split
    dataset_sha: str
    split_sha: str
    identity: str
    config_id: str
    run_dir: Path
    warnings: tuple[str, ...]

    @property
    def run_id(self) -> str:
        """First 8 hex digits of the identity."""
        return self.identity[:8]


@dataclass(frozen=True)
class LoadedDataset:
    """A data set that has been read and checked once, for all runs that use it."""

    image_set: ImageSet
    facts: PairFacts
    dataset_sha: str


def open_images(config: Config) -> LoadedDataset:
    """Open and check the data set of a configuration. Raises UsageError."""
    image_set = adapters()[config.dataset.adapter].open(config.dataset)
    facts = check_pairs(image_set, threads=config.trainer.threads or usable_cores())
    return LoadedDataset(image_set, facts, fingerprint(image_set))


def prepare(config: Config, opened: LoadedDataset | None = None) -> RunSpec:
    """Open, check and split the data, and name the run. Raises UsageError before anything is written."""
    opened = opened or open_images(config)
    image_set, facts = opened.image_set, opened.facts
    split = make_split(image_set, **vars(config.split))
    warnings = check_split(image_set, facts, split)
    content = {
        "dataset": opened.dataset_sha,
        "split": split_sha(image_set, split),
        "weights": weights_sha(config.backbone),
    }
    run_identity = identity(config, content)
    first_fold = split if config.split.folds is None else make_split(image_set, **(vars(config.split) | {"fold": 0}))
    arm_content = content | {"split": split_sha(image_set, first_fold)}
    chosen = (config.model, config.backbone, config.hidden_activation, config.activation, config.loss)
    parts = (str(config.dataset.name), *(choice.name for choice in chosen), f"s{config.seed}")
    if config.split.fold is not None:
        parts += (f"f{config.split.fold}",)
    name = run_name(parts, run_identity[:8])
    return RunSpec(
        config=config,
        image_set=image_set,
        facts=facts,
        split=split,
        dataset_sha=content["dataset"],
        split_sha=content["split"],
        identity=run_identity,
        config_id=arm_identity(config, arm_content)[:8],
        run_dir=_directory(Path(config.outputs) / config.study.name, name, run_identity[:8]),
        warnings=(*image_set.notes, *_split_warnings(config, image_set), *warnings, *_head_warnings(config)),
    )


def _split_warnings(config: Config, image_set: ImageSet) -> list[str]:
    if config.split.folds is None or config.split.source != "auto" or image_set.declared_split is None:
        return []
    return [
        f"{image_set.location} has split files, but split.folds={config.split.folds} cuts all its images into folds: "
        "what the files call test is trained on in other folds (split.source=fractions says that this is meant)"
    ]


def _head_warnings(config: Config) -> list[str]:
    warning = OUTPUT_ACTIVATIONS[config.activation.name].warning
    return [warning] if warning else []


def _directory(study: Path, name: str, run_id: str) -> Path:
    """The directory of this identity: the one that is there, whatever its data set was called then, or a new one."""
    return next((p for p in sorted(study.glob(f"*-{run_id}")) if (p / "run.json").exists()), study / name)


def split_rows(prepared: RunSpec) -> list[dict[str, str]]:
    """Rows of split.csv: which image, known by name and by its pixels, is in which part."""
    image_set = prepared.image_set
    return [
        {
            "image_id": image_set.image_ids[i],
            "group_id": image_set.group_ids[i],
            "split": part,
            "image_sha": prepared.facts.image_sha_N[i],
        }
        for part, members in prepared.split.items()
        for i in members
    ]


def config_yaml(config: Config) -> str:
    """The resolved configuration as YAML, in the order of the typed tree."""
    return yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, allow_unicode=True, width=120)
