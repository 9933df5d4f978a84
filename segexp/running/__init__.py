"""From a `Config` to a `RunSpec`: data read, checked and split, the run named, and what an earlier attempt left.

hardware  what auto is in trainer.format and trainer.precision
data_check  a data set read and checked for a report
splits    the split of a run, and the study that already holds another one
build     makes the network, its head, scorer and training task; rebuilds those of a finished run
execute   trains, scores and records the run, or continues what an earlier attempt left
finalize  scores validation and test with the selected weights, and writes tables and pictures
evaluate  scores a finished run again

Nothing in this file needs torch: planning a sweep and refusing a mistake take well under a second.
"""

import dataclasses
import datetime
import functools
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

import segexp
from segexp.activations.hidden import HIDDEN_ACTIVATIONS
from segexp.activations.output import OUTPUT_ACTIVATIONS
from segexp.config import Config
from segexp.config.canonical import arm_identity, first_of_arm, identity, plugins_of
from segexp.data import adapters
from segexp.data.check import PairFacts, check_channel_names, check_pairs, check_set, check_split, set_warnings
from segexp.data.description import describe
from segexp.data.image_set import AS_SERIES, DatasetConfig, ImageSet, PairsError
from segexp.data.split import Split, limited, shared_groups, slices_in, split_sha
from segexp.data.store import checked
from segexp.errors import UsageError
from segexp.models.architectures import weights_sha
from segexp.records import NUMERICS, NUMERICS_OF_GROUPS, check_complete, check_numerics, read_run, run_name, write_run
from segexp.records.formatting import pluralize
from segexp.records.process import OwnedError, can_fork, ownership, usable_cores
from segexp.records.runs import FINAL
from segexp.registry.plugins import LOADED, no_exit
from segexp.running.hardware import without_auto
from segexp.running.splits import check_method, check_unit, drawn_split
from segexp.tracking import check_installed

log = logging.getLogger("segexp")


@dataclass(frozen=True)
class RunSpec:
    """Everything that decides the identity of a run, and its directory.

    data: what was found in the data set, see `describe`. outdated: unfinished directories of the same configuration
    that were begun with earlier versions of the numbers, numerics the present one. plugins: those it uses -> which
    entries of them.
    """

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
    data: dict[str, Any] = field(default_factory=dict)
    numerics: int = NUMERICS
    outdated: tuple[Path, ...] = ()
    plugins: Mapping[str, list[str]] = field(default_factory=dict)

    @property
    def run_id(self) -> str:
        """First 8 hex digits of the identity."""
        return self.identity[:8]


@dataclass(frozen=True)
class LoadedDataset:
    """A data set that was read and checked once, for all runs that use it. whole: without ``dataset.limit``."""

    whole: ImageSet
    image_set: ImageSet
    facts: PairFacts
    dataset_sha: str


@dataclass(frozen=True)
class Outcome:
    """How a run ended. reason: one line unless it is done. skipped: it was finished before and was only read.

    diagnostics: summary of the hidden activations on the validation images, as in run.json.
    """

    run_dir: Path
    status: str
    summary: dict[str, Any]
    reason: str = ""
    skipped: bool = False
    diagnostics: dict[str, Any] = field(default_factory=dict)


def load_dataset(config: Config) -> LoadedDataset:
    """Read the data set of a configuration and check its pairs. Raises UsageError."""
    whole, image_set, options = opened(config)
    image_set, facts, dataset_sha = checked(
        image_set, config.dataset, functools.partial(check_pairs, image_set, *options)
    )
    return LoadedDataset(whole, image_set, facts, dataset_sha)


def opened(config: Config, bad: dict[str, str] | None = None) -> tuple[ImageSet, ImageSet, tuple[int, int | None]]:
    """The whole data set, what ``dataset.limit`` keeps of it, and the options of `inspect_pairs`. Raises UsageError.

    bad: where pairs that cannot be used are added (image id -> why) if others can; without it, they are refused.
    """
    try:
        whole = adapters()[config.dataset.adapter].open(config.dataset)
    except PairsError as error:
        if bad is None or error.usable is None or not error.usable.image_ids:
            raise
        whole = error.usable
        bad |= error.problems
    side = config.dataset.image_size if config.dataset.fit == "resize" else None
    image_set = limited(whole, config.dataset.limit, **vars(config.split))
    return whole, image_set, (config.trainer.threads or usable_cores(), side)


@no_exit()
def prepare(config: Config, dataset: LoadedDataset | None = None) -> RunSpec:
    """Read, check and split the data, and name the run. Raises UsageError before anything is written."""
    check_installed(config.tracking)
    if config.trainer.workers and not can_fork():
        raise UsageError(
            f"trainer.workers={config.trainer.workers} needs processes that are forked, which this system cannot do "
            "safely: use trainer.workers=0, the same batches"
        )
    dataset = dataset or load_dataset(config)
    image_set, facts = dataset.image_set, dataset.facts
    config = without_auto(config, facts.sizes_N2)
    split, warnings = checked_split(config, image_set, facts)
    content = {"dataset": dataset.dataset_sha, "split": split_sha(image_set, split)}
    content["weights"] = weights_sha(config.backbone)
    plugins = plugins_of(config)
    if plugins:
        content["plugins"] = " ".join(sorted(LOADED[name].sha256 for name in plugins))
    several_classes = config.dataset.num_classes - config.dataset.first_class > 1
    numerics = NUMERICS_OF_GROUPS if several_classes and any(image_set.group_ids) else NUMERICS
    run_identity = identity(config, content, numerics)
    first = split
    if config.split.fold is not None or config.split.per_seed:
        first = drawn_split(image_set, first_of_arm(config).split, 0, facts, config.dataset.first_class)
    arm_content = content | {"split": split_sha(image_set, first)}
    chosen = (config.model, config.backbone, config.hidden_activation, config.activation, config.loss)
    parts = [str(config.dataset.name), *(choice.name for choice in chosen), f"s{config.seed}"]
    parts += [] if config.split.fold is None else [f"f{config.split.fold}"]
    study = Path(config.outputs) / config.study.name
    run_dir = _directory(study, run_name(parts, run_identity[:8]), run_identity[:8])
    if not (run_dir / "run.json").exists():
        if plugins:  # they have imported torch
            from segexp.running.own_check import check_own

            check_own(config, plugins)
        _check_precision(config)
        check_method(config, dataset.whole, content["dataset"], content["split"], study)
    return RunSpec(
        config=config,
        image_set=image_set,
        facts=facts,
        split=split,
        dataset_sha=content["dataset"],
        split_sha=content["split"],
        identity=run_identity,
        config_id=arm_identity(config, arm_content, numerics)[:8],
        run_dir=run_dir,
        warnings=(*warnings, *_overflows(config)),
        data=describe(image_set, facts, config.dataset, split),
        numerics=numerics,
        outdated=tuple(_outdated(study, config, content, numerics)),
        plugins=plugins,
    )


def _check_precision(config: Config) -> None:
    name = config.activation.name
    if config.trainer.precision == "fp16" and OUTPUT_ACTIVATIONS[name].overflows_fp16:
        raise UsageError(
            f"trainer.precision=fp16 cannot hold the gradient of activation={name}, which is infinite from a logit of "
            "about 11 on: use trainer.precision=bf16 or fp32"
        )


def _overflows(config: Config) -> list[str]:
    name = config.hidden_activation.name
    if config.trainer.precision != "fp16" or not HIDDEN_ACTIVATIONS[name].overflows_fp16:
        return []
    what = f"trainer.precision=fp16 cannot hold the values of hidden_activation={name} from inputs of a few hundred on"
    return [f"{what}, and the loss may become NaN: use trainer.precision=bf16 or fp32"]


def checked_split(
    config: Config, image_set: ImageSet, facts: PairFacts, refused: list[str] | None = None
) -> tuple[Split, list[str]]:
    """The split of a run, and the warnings about its data, after all checks of them.

    Raises UsageError for what a run refuses; ``refused`` gets all these reasons instead. The split is empty where none
    can be drawn.
    """

    @contextmanager
    def check() -> Iterator[None]:
        try:
            yield
        except UsageError as error:
            if refused is None:
                raise
            refused.append(str(error))

    dataset, split = config.dataset, Split()
    warnings = [*image_set.notes, *set_warnings(image_set, facts)]
    with check():
        check_set(image_set, facts, dataset.normalise, dataset.spacing)
    with check():
        check_channel_names(image_set, dataset.channel_names)
    with check():
        split = drawn_split(image_set, config.split, config.seed, facts, dataset.first_class)
    with check():
        check_unit(config, image_set, split)
    if split:
        with check():
            warnings += _split_warnings(config, image_set, facts, split)
    return split, warnings


def _split_warnings(config: Config, image_set: ImageSet, facts: PairFacts, split: Split) -> list[str]:
    """What is doubtful about the split and the activation. Raises UsageError for an unusable split."""
    warnings = shared_groups(image_set, split)
    if config.split.fold is not None and config.split.source == "auto" and image_set.declared_split is not None:
        option = "leave_one_group_out=true" if config.split.folds is None else f"folds={config.split.folds}"
        warnings.append(
            f"{image_set.location} has split files, but split.{option} divides all its images into "
            "folds: images that the files list as test are training images of other folds. Set "
            "split.source=fractions if that is intended"
        )
    warnings += [] if any(image_set.group_ids) else _slices(config.dataset, image_set, facts)
    warnings += check_split(image_set, facts, split, config.dataset.first_class)
    if warning := OUTPUT_ACTIVATIONS[config.activation.name].warning:
        warnings.append(warning)
    return warnings


def _slices(config: DatasetConfig, image_set: ImageSet, facts: PairFacts) -> list[str]:
    """The warning about images without groups that are slices of volumes, by DICOM or by their names."""
    series, volumes = set(image_set.series_ids) - {""}, slices_in(image_set.image_ids, [*map(tuple, facts.sizes_N2)])
    if of_series := len(series) < len(image_set.series_ids) - image_set.series_ids.count(""):
        what = f"the images are slices of {len(series)} DICOM series, each a file of its own"
    elif volumes:
        what = f"the images look like slices of {volumes} volumes ({image_set.image_ids[0]} ...)"
    else:
        return []
    cure = f", or put each series into a folder of its own and use {AS_SERIES}" if of_series else ""
    return [
        f"{what}, without groups. Slices of one patient in several parts of the split inflate the scores, and make "
        f"intervals too narrow: name the patient of each image in {config.names_groups}{cure}"
    ]


def _directory(study: Path, name: str, run_id: str) -> Path:
    """An existing directory of this identity (its data set may have had another name), or else a new one."""
    return next((p for p in sorted(study.glob(f"*-{run_id}")) if (p / "run.json").exists()), study / name)


def _outdated(study: Path, config: Config, content: Mapping[str, str], numerics: int) -> Iterator[Path]:
    for version in range(1, numerics):
        earlier = _directory(study, "", identity(config, content, version)[:8])
        if (earlier / "run.json").exists() and read_run(earlier).get("status") not in FINAL:
            yield earlier


def scored_classes(config: Config) -> str:
    """The line that says which of several classes are scored, "" for two."""
    last = config.dataset.num_classes - 1
    if last == 1:
        return ""
    if config.dataset.first_class == 0:
        return f"every class is scored, 0 to {last}"
    return f"classes 1 to {last} are scored, class 0 is background (dataset.background=none scores it too)"


def scored_volumes(config: Config, image_set: ImageSet) -> str:
    """The line that says how volumes are scored, "" for images that are no slices."""
    number = len(set(image_set.case_ids) - {""})
    if not number:
        return ""
    if config.metrics.unit == "case":
        cubes = "" if config.dataset.spacing or image_set.spacings else " with voxels as cubes, as no spacing is known"
        whole = f"each of {pluralize(number, 'volume')} is scored as one"
        return f"{whole}: counts of its slices summed, distances in 3D{cubes}"
    return (
        f"the slices of {pluralize(number, 'volume')} are scored one by one; metrics.unit=case scores volumes: Dice of "
        "the summed counts of all slices, as nnU-Net's evaluator, NSD, HD95 and objects in 3D"
    )


def scoring_notes(config: Config, image_set: ImageSet) -> list[str]:
    """What is scored, where that is not plain: for a run's log and record."""
    lines = [scored_classes(config), scored_volumes(config, image_set)]
    if any(image_set.spacings) and config.dataset.spacing is None:
        tolerance = f"dataset.surface_tolerance={config.dataset.surface_tolerance:g}"
        lines.append(f"distances are in mm, as the files name the size of their pixels: {tolerance} too")
    return [line for line in lines if line]


def check_planned(spec: RunSpec, run_id: str, given: Mapping[str, str] | None = None) -> None:
    """Raise UsageError where a run of a sweep is no longer the planned one: only its data and plugins can have changed.

    given: what named the plugins of the sweep -> their hashes when the run was planned.
    """
    if spec.run_id != run_id:
        for plugin in (LOADED[name] for name in spec.plugins):
            if plugin.sha256 != (given or {}).get(plugin.given, plugin.sha256):
                raise UsageError(
                    f"the plugin {plugin.given} has changed since the sweep began: restore it and repeat the command, "
                    "or repeat it with the new one, which makes other runs"
                )
        raise UsageError(
            f"the data of {spec.image_set.location} have changed since the sweep began: restore them and repeat "
            "the command, or repeat it with the new data, which makes other runs"
        )


def split_rows(spec: RunSpec) -> list[dict[str, str]]:
    """Rows of split.csv: the part of every image, with its name, a hash of its pixels, and one by which copies of it
    are recognised."""
    ids, groups = spec.image_set.image_ids, spec.image_set.group_ids
    shas, hashes = spec.facts.image_sha_N, spec.facts.image_hash_N
    return [
        {"image_id": ids[i], "group_id": groups[i], "split": part, "image_sha": shas[i], "image_hash": hashes[i]}
        for part, indices in spec.split.items()
        for i in indices
    ]


def config_yaml(config: Config) -> str:
    """The resolved configuration as YAML, in the order of the typed tree."""
    return yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, allow_unicode=True, width=120)


def finished_before(spec: RunSpec) -> Outcome | None:
    """The outcome of a run that is already done or diverged, else None. Follows ``resume``. Raises UsageError."""
    run_dir, resume = spec.run_dir, spec.config.resume
    if not (run_dir / "run.json").exists():
        for earlier in spec.outdated if resume != "restart" else ():
            check_numerics(read_run(earlier), earlier, spec.numerics)
        return None
    try:
        record = read_run(run_dir)
    except UsageError:
        if resume == "restart":
            return None
        raise
    if record.get("identity") != spec.identity:
        raise UsageError(f"{run_dir} holds another run (identity {str(record.get('identity'))[:16]}): move it away")
    if resume == "restart":
        return None
    if record["status"] in FINAL:
        version = (record.get("versions") or {}).get("segexp")
        if version != segexp.__version__:
            log.warning("%s was written by segexp %s", run_dir, version)
        check_complete(run_dir, record)
        return outcome_of(run_dir, record, skipped=True)
    if resume == "never":
        raise UsageError(f"{run_dir} is {record['status']} and resume=never: use resume=auto or resume=restart")
    return None


def outcome_of(run_dir: Path, record: dict[str, Any], skipped: bool = False) -> Outcome:
    """The outcome that a run's record describes."""
    summary, diagnostics = record.get("summary", {}), record.get("diagnostics", {})
    return Outcome(run_dir, record["status"], summary, record.get("error", ""), skipped, diagnostics)


def threads_begun_with(run_dir: Path) -> int | None:
    """CPU threads of a run with a checkpoint to continue from; None without one, or where they are unknown."""
    if not (run_dir / "checkpoints" / "last.pt").exists():
        return None
    try:
        threads = (read_run(run_dir).get("device") or {}).get("threads")
    except UsageError:
        return None
    return threads if isinstance(threads, int) else None


def archive(spec: RunSpec) -> None:
    """Rename earlier attempts of a run to RUN_DIR.old<n>, if there are any: a restart overwrites nothing.

    Raises OwnedError when another process is writing one.
    """
    for run_dir in (spec.run_dir, *spec.outdated):
        if not (run_dir / "run.json").exists():
            continue
        with ownership(run_dir) as own:
            number = 1
            while (archived := run_dir.with_name(f"{run_dir.name}.old{number}")).exists():
                number += 1
            run_dir.rename(archived)
            (archived / "lock").unlink()
            (archived / own.owner).rmdir()
        log.warning("the earlier attempt is kept in %s", archived)


def record_death(run_dir: Path, reason: str, states: Sequence[str] = ("running",), status: str = "failed") -> None:
    """Record why the process of a run died, where the recorded status is one of ``states``.

    Does nothing where the run has not begun or its process is still running.
    """
    try:
        with ownership(run_dir):
            record = read_run(run_dir)
            if record.get("status") in states:
                write_run(run_dir, record | {"status": status, "error": reason, "finished": now()})
    except (FileNotFoundError, UsageError, OwnedError):
        return


def now() -> str:
    """The time in UTC, ISO 8601, in whole seconds."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
