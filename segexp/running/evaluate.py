"""Score a finished run again: another split, threshold, resolution or data set. Nothing is fitted again.

    evaluations/<split>-<threshold>[-network][-tta][-<data set>-<hash8>]/
      evaluation.json summary.csv images.csv objects.csv bins.csv thresholds.csv

The temperature and the tuned threshold are those that the run fitted on its own validation split.
"""

import dataclasses
import hashlib
import json
import logging
import math
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import segexp
from segexp.activations.output import OUTPUT_ACTIVATIONS
from segexp.config import Config, is_volatile, mode_of
from segexp.config.canonical import plugins_of
from segexp.data.batches import make_reader
from segexp.data.check import SHARES, check_set, is_stored, same_scale, set_warnings
from segexp.data.normalise import rule_of
from segexp.data.similar import UNCOMPARED, near_duplicates, too_many
from segexp.data.split import count_groups, split_sha
from segexp.errors import DivergedError, UsageError
from segexp.evaluation.measures import bin_edges
from segexp.evaluation.predict import FLIPS
from segexp.evaluation.score import FittedOnValidation, SplitScores, split_scores
from segexp.records import COLUMNS, LONGEST, check_complete, flatten, read_table, unverified, write_json, write_table
from segexp.records.files import read_json
from segexp.records.formatting import pluralize
from segexp.records.process import OwnedError, ownership
from segexp.records.scores import OWN_SCORES, facts_of
from segexp.registry.plugins import LOADED
from segexp.running import LoadedDataset, RunSpec, load_dataset
from segexp.running.build import Scorer, Trained, conventions_of, geometry_of, threads_kept, trained, units_of
from segexp.running.splits import check_unit, drawn_split

log = logging.getLogger("segexp")

CONVENTIONS = (
    "metrics.empty_policy",
    "metrics.boundary_band",
    "metrics.nsd",
    "metrics.unit",
    "metrics.scores",
    "dataset.fit",
    "dataset.image_size",
    "dataset.surface_tolerance",
    "dataset.spacing",
)
"""Settings that change the scores of the same predictions, or the predictions of the same images."""


@dataclass(frozen=True)
class Evaluation:
    """What was scored and where its tables are. again: the tables existed and were only read."""

    folder: Path
    summary: dict[str, Any]
    n_images: int
    warnings: tuple[str, ...]
    again: bool = False


@threads_kept()
def evaluate(
    run_dir: Path,
    record: dict[str, Any],
    recorded: Config,
    config: Config,
    split: str = "test",
    threshold: str = "0.5",
    tta: bool = False,
) -> Evaluation:
    """Score ``split`` of the data of ``config`` with the network of a run.

    record: its run.json. recorded: its configuration; ``config`` may differ in the data that are scored, in where they
    are, and in the scoring conventions. threshold: "0.5", another probability, or "tuned". Raises UsageError.
    """
    threshold, limit = threshold_of(threshold, recorded, record)
    if config.trainer.threads:
        torch.set_num_threads(config.trainer.threads)
    run = trained(run_dir, recorded, record, config.trainer.device)
    spec = _evaluated_spec(load_dataset(config), config, run, record, split, run_dir)
    folder = run_dir / "evaluations" / _folder_name(spec, recorded, record, split, threshold, tta)
    settings = {
        "run_id": record["run_id"],
        "split": split,
        "threshold": threshold,
        "threshold_log_odds": limit,
        "tta": tta,
        "dataset_sha": spec.dataset_sha,
        "n_images": len(spec.split[split]),
        "resolution": config.metrics.resolution,
        "config": _scoring_options(config),
        # The predictions of some activations depend on the whole batch.
        "batch_size": config.trainer.batch_size if OUTPUT_ACTIVATIONS[config.activation.name].per_batch else None,
    }
    if scores_of_plugins := facts_of(config.metrics.scores):
        settings["scores"] = scores_of_plugins
    for lock in folder.parent.glob("*/lock"):
        with suppress(OwnedError, UsageError, OSError), ownership(lock.parent, run_dir):
            log.info("removed what a killed evaluation left in %s", lock.parent)
    known = _finished(folder, settings)
    if known:
        return known
    if not os.access(next(path for path in (folder, folder.parent, run_dir) if path.exists()), os.W_OK):
        raise UsageError(f"{folder} cannot be written: evaluate a copy of the run directory, in a folder of your own")
    scores = _score(spec, run, split, limit, tta, record)
    summary = _summary(record, spec, scores, split)
    _write(folder, settings, spec.warnings, scores, summary)
    return Evaluation(folder, summary, len(spec.split[split]), spec.warnings)


def _scoring_options(config: Config) -> dict[str, Any]:
    """The options of data, split and scores, without where the data are."""
    flat = {k: v for k, v in flatten(config).items() if not is_volatile(k, v)}
    return {k: v for k, v in flat.items() if k.split(".")[0] in ("metrics", "dataset", "split")}


def _write(
    folder: Path, settings: dict[str, Any], warnings: tuple[str, ...], scores: SplitScores, summary: dict[str, Any]
) -> None:
    tables = {"images": scores.images, "objects": scores.objects, "bins": scores.bins}
    tables |= {"thresholds": scores.thresholds, "summary": [summary]}
    try:
        with ownership(folder, folder.parent.parent):
            content = settings | {"segexp": segexp.__version__, "warnings": warnings}
            for name, rows in tables.items():
                write_table(folder / f"{name}.csv", name, rows, content)
            # Written last: it says that the tables are complete.
            write_json(folder / "evaluation.json", content)
    except OwnedError as owner:
        raise UsageError(f"{folder} is being written by {owner}: wait for it or stop it") from None


def threshold_of(threshold: str, config: Config, record: dict[str, Any]) -> tuple[str, float | None]:
    """The threshold in its canonical text, and the evidence above which a pixel is foreground: log-odds, or for
    `identity` the value minus 1/2. None: the decision of the head (phi > 0)."""
    try:
        p = float(threshold)
    except ValueError:
        p = math.nan
    if p == 0.5:
        return "0.5", None
    if threshold != "tuned" and not 0 < p < 1:
        raise UsageError(f"--threshold {threshold}: use tuned or a probability between 0 and 1")
    if mode_of(config) == "softmax":
        raise UsageError(f"--threshold {threshold}: softmax has no threshold (largest class wins); use --threshold 0.5")
    if threshold == "tuned":
        tuned = record.get("summary", {}).get("threshold_tuned")
        if tuned is None:
            raise UsageError("--threshold tuned: the run's record has none; use a probability such as 0.5")
        return threshold, float(tuned)
    if OUTPUT_ACTIVATIONS[config.activation.name].log_odds is None:
        return repr(p), p - 0.5
    return repr(p), math.log(p) - math.log1p(-p)


def _evaluated_spec(
    dataset: LoadedDataset, config: Config, run: Trained, record: dict[str, Any], split: str, run_dir: Path
) -> RunSpec:
    """A `RunSpec` whose ``split`` is what is scored. Raises UsageError where images that the run was trained on would
    be scored as unseen ones, and for images of another scale or number of channels."""
    image_set, facts = dataset.image_set, dataset.facts
    if image_set.channels != run.channels:
        cure = "only images with as many can be scored"
        if {image_set.channels, run.channels} == {1, 3}:
            cure = f"set dataset.channels={run.channels} if these are images of the same kind"
        here = pluralize(image_set.channels, "channel")
        where = image_set.location or config.dataset.name
        raise UsageError(f"{where} has {here}, the run's images had {run.channels}: {cure}")
    if rule_of(config.dataset.normalise) != run.rule:
        raise UsageError(
            f"dataset.normalise={config.dataset.normalise}: images are scaled as the run's were, by "
            f"{record['config'].get('dataset.normalise', 'train')}"
        )
    if dataset.dataset_sha != record["dataset_sha"]:
        _check_scale(dataset, config, record)
    check_set(image_set, facts, config.dataset.normalise, config.dataset.spacing)
    if split == "all":
        parts: dict[str, list[int]] = {"train": [], "val": [], "test": []}
        indices, parts_sha = list(range(len(image_set.image_ids))), ""
    else:
        parts = drawn_split(image_set, config.split, config.seed, facts, config.dataset.first_class)
        indices, parts_sha = parts[split], split_sha(image_set, parts)
    warnings = (*image_set.notes, *set_warnings(image_set, facts))
    if OUTPUT_ACTIVATIONS[config.activation.name].per_batch:
        warnings += (OUTPUT_ACTIVATIONS[config.activation.name].warning,)
    if dataset.dataset_sha == record["dataset_sha"]:
        if split == "all":
            raise UsageError("--split all would score the run's training images: use --split test, val or train")
        if parts_sha != record["split_sha"]:
            raise UsageError(
                f"the split of {config.dataset.name} has changed since {run_dir.name} was trained, so {split} may "
                "contain its training images: restore split.* and the split files"
            )
    else:
        warnings += (
            f"{config.dataset.name} is not the data set of the run: threshold and temperature were fitted on the run's "
            "own validation images",
        )
        warnings += (*_other_names(config, record), *_seen_in_training(dataset, indices, record, run_dir))
    check_unit(config, image_set, {**parts, split: indices})
    if facts.class_pixels_NC[indices][:, config.dataset.first_class :].sum() == 0:
        raise UsageError(f"the {split} split of {config.dataset.name} has no foreground pixel, so it has no scores")
    return RunSpec(
        config=config,
        image_set=image_set,
        facts=facts,
        split={**parts, split: indices},
        dataset_sha=dataset.dataset_sha,
        split_sha=parts_sha,
        identity=record["identity"],
        config_id=record["config_id"],
        run_dir=run_dir,
        warnings=warnings,
        plugins=plugins_of(config),
    )


def _check_scale(dataset: LoadedDataset, config: Config, record: dict[str, Any]) -> None:
    """Raise UsageError where other data have values of another scale than those of the run."""
    here = set(dataset.facts.dtypes_N)
    # Earlier versions read 8 and 16 bits only, and did not record which.
    there = set((record.get("data") or {}).get("dtypes") or (SHARES if is_stored(dataset.facts) else here)) - {"others"}
    if not same_scale(here | there, config.dataset.normalise):
        both = config.dataset.normalise == "train" and here | there == SHARES
        declare = ", or set dataset.normalise=full_range (shares of 255 and 65535)" if both else ""
        raise UsageError(
            f"{dataset.image_set.location or config.dataset.name} has images of {', '.join(sorted(here))}, the run's "
            f"had {', '.join(sorted(there))}, so that its normalisation does not fit: convert the images{declare}"
        )


def _other_names(config: Config, record: dict[str, Any]) -> list[str]:
    """Warnings about channels and classes that have other names than the run's."""
    warnings = []
    for key in ("channel_names", "class_names"):
        here, there = getattr(config.dataset, key), record["config"].get(f"dataset.{key}")
        if here and there and list(here) != list(there):
            warnings.append(
                f"dataset.{key} is {', '.join(here)}, the run's is {', '.join(there)}: they are matched by their order"
            )
    return warnings


def _seen_in_training(
    dataset: LoadedDataset, indices: list[int], record: dict[str, Any], run_dir: Path
) -> tuple[str, ...]:
    """Warnings about groups that the run was trained or selected on, and about copies of its images. Raises UsageError
    for its images, which are recognised by their pixels."""
    known = read_table(run_dir / "split.csv", "split", record)
    known = known[known["split"] != "test"]
    ids, shas = dataset.image_set.image_ids, set(known["image_sha"]) - {""}
    again = [ids[i] for i in indices if dataset.facts.image_sha_N[i] in shas]
    if again:
        raise UsageError(
            f"{len(again)} of the {len(indices)} images to score were in the run's train or val split (first: "
            f"{again[0]}): remove them, or score the run's own test split"
        )
    warnings = []
    both = sorted({dataset.image_set.group_ids[i] for i in indices} & (set(known["group_id"]) - {""}))
    if both:
        shown = ", ".join(both[:5]) + (" ..." if len(both) > 5 else "")
        warnings.append(
            f"the run's train or val split has groups of the same name: {shown}. If these are the same "
            "patients, their scores are inflated: remove their images"
        )
    if "image_hash" in known:  # earlier versions recorded none
        hashes = dataset.facts.image_hash_N
        near = near_duplicates(tuple(hashes[i] for i in indices), tuple(known["image_hash"]))
        alike = [(ids[i], known["image_id"].iloc[j]) for i, j in zip(indices, near, strict=True) if j >= 0]
        if too_many(len(indices), len(known)):
            warnings.append(UNCOMPARED)
        if alike:
            warnings.append(
                f"{len(alike)} of the {len(indices)} images to score look like copies of train or val images of the "
                f"run (first: {alike[0][0]}, of {alike[0][1]}), which inflates their scores: remove them"
            )
    return tuple(warnings)


def _folder_name(spec: RunSpec, recorded: Config, record: dict[str, Any], split: str, threshold: str, tta: bool) -> str:
    """<split>-<threshold>, and whatever differs from the run's own scoring; changed conventions as a short hash."""
    config = spec.config
    parts = [split, threshold]
    if config.metrics.resolution != recorded.metrics.resolution:
        parts.append(config.metrics.resolution)
    if tta:
        parts.append("tta")
    if spec.dataset_sha != record["dataset_sha"]:
        label = "".join(c if c.isalnum() or c in "._" else "_" for c in str(config.dataset.name))
        parts += [label.encode()[: LONGEST - 100].decode(errors="ignore"), spec.dataset_sha[:8]]
    now, then = flatten(config), flatten(recorded)
    differing = {key: now[key] for key in CONVENTIONS if now.get(key) != then.get(key)}
    if OUTPUT_ACTIVATIONS[config.activation.name].per_batch and now["trainer.batch_size"] != then["trainer.batch_size"]:
        differing["trainer.batch_size"] = now["trainer.batch_size"]
    if "metrics.scores" in differing:
        owners = {name: OWN_SCORES.origins[name] for name in config.metrics.scores or ()}
        differing["plugins"] = {name: LOADED[owner].sha256 for name, owner in owners.items()}
    if differing:
        parts.append(hashlib.sha256(json.dumps(differing, sort_keys=True).encode()).hexdigest()[:6])
    return "-".join(parts)


def _finished(folder: Path, settings: dict[str, Any]) -> Evaluation | None:
    """An existing evaluation with these settings; None where there is none. Raises UsageError for another one."""
    path = folder / "evaluation.json"
    if not path.exists():
        return None
    try:
        known = read_json(path, folder.parent.parent)
        check_complete(folder, known)
    except (ValueError, AttributeError, UsageError) as error:
        raise UsageError(f"{folder} is damaged ({error}): move it away to evaluate again") from error
    settings = json.loads(json.dumps(settings))
    # An evaluation of an earlier version lacks the options that came later.
    settings["config"] = {k: v for k, v in settings["config"].items() if k in known.get("config", {})}
    if {k: known.get(k) for k in settings} != settings:
        raise UsageError(f"{folder} holds an evaluation with other settings: move it away to evaluate again")
    (summary,) = read_table(folder / "summary.csv", "summary", known).to_dict("records")
    warnings = (f"{folder} has no checksums: an earlier segexp wrote it",) if unverified(known) else ()
    return Evaluation(folder, {str(k): v for k, v in summary.items()}, known["n_images"], warnings, again=True)


def _score(
    spec: RunSpec, run: Trained, split: str, limit: float | None, tta: bool, record: dict[str, Any]
) -> SplitScores:
    """Score with the temperature that the run fitted on its validation split, at the thresholds that it tried."""
    tried = read_table(spec.run_dir / "thresholds.csv", "thresholds", record)["threshold"].to_numpy(dtype=float)
    temperature = record["summary"].get("temperature")
    temperature = float("nan") if temperature is None else float(temperature)
    fitted = FittedOnValidation(temperature, _nearest_edges(np.unique(tried)))
    image_set, geometry = spec.image_set, dataclasses.replace(geometry_of(spec), rule=run.rule)
    scorer = Scorer(spec, run.network, run.head, run.device, geometry, make_reader(image_set, geometry), run.normalise)
    predictions = scorer.predictions(split, FLIPS if tta else ((),))
    conventions = conventions_of(spec.config, limit)
    try:
        return split_scores(predictions, split, units_of(spec.config, image_set), fitted, conventions)
    except DivergedError as error:
        raise UsageError(f"{error}: the network cannot be scored on them") from error


def _nearest_edges(thresholds_T: np.ndarray) -> np.ndarray:
    """Indices of the nearest bin edges: thresholds from another machine may differ in the last digit."""
    edges = bin_edges()
    above = np.searchsorted(edges, thresholds_T).clip(1, len(edges) - 1)
    below_is_nearer = thresholds_T - edges[above - 1] < edges[above] - thresholds_T
    return np.where(below_is_nearer, above - 1, above)


def _summary(record: dict[str, Any], spec: RunSpec, scores: SplitScores, split: str) -> dict[str, Any]:
    """The run's own summary row with the scores, data and conventions of this evaluation; n_test: images scored."""
    config = spec.config
    tuned = record["summary"].get("threshold_tuned")
    at = np.array([], dtype=int)
    if tuned is not None and len(scores.thresholds_T):
        at = np.flatnonzero(_nearest_edges(scores.thresholds_T) == _nearest_edges(np.array([tuned])))
    row = {name: record["summary"].get(name) for name in COLUMNS["summary"]} | scores.summary
    if spec.dataset_sha != record["dataset_sha"]:
        row |= {"n_train": None, "n_train_groups": None, "n_val": None, "val_dice": None}
    return row | {
        "n_test": len(spec.split[split]),
        "n_test_groups": count_groups(spec.image_set, spec.split[split]),
        "dataset": config.dataset.name,
        "dataset_sha": spec.dataset_sha,
        "split_sha": spec.split_sha,
        "empty_policy": config.metrics.empty_policy,
        "resolution": config.metrics.resolution,
        "dice_tuned": float(scores.dice_T[at[0]]) if len(at) else float("nan"),
    }
