"""Score a finished run again: another split, threshold, resolution or data set; nothing is fitted anew.

    evaluations/<split>-<threshold>[-network][-tta][-<data set>-<hash8>]/
      evaluation.json summary.csv images.csv bins.csv thresholds.csv

Temperature and tuned threshold are those that the run fitted on its own validation split.
"""

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import segexp
from segexp.activations.output import OUTPUT_ACTIVATIONS
from segexp.config import Config, mode_of
from segexp.data.image_set import ImageSet, PairFacts
from segexp.data.split import make_split, split_sha
from segexp.errors import DivergedError, UsageError
from segexp.records import COLUMNS, check_complete, flatten, read_table, write_json, write_table
from segexp.records.lock import OwnedError, ownership
from segexp.running.build import Scorer, fit_of
from segexp.running.finalize import conventions_of
from segexp.running.prepare import LoadedDataset, RunSpec, open_images
from segexp.running.trained import trained

if TYPE_CHECKING:
    import numpy as np

    from segexp.evaluation.score import FittedOnValidation, SplitScores
    from segexp.running.trained import Trained

WHERE = ("dataset.root", "dataset.name", "dataset.group_file")
"""Where the data are and what they are called: their hash says which they are."""

CONVENTIONS = (
    "metrics.empty_policy",
    "metrics.boundary_band",
    "dataset.fit",
    "dataset.image_size",
    "dataset.surface_tolerance",
    "dataset.spacing",
)
"""Settings that change the scores of the same predictions, or the predictions of the same images."""

EVALUATED_SPLITS = ("test", "val", "train", "all")


@dataclass(frozen=True)
class Evaluation:
    """What was scored and where its tables are. again: it was there before and was only read."""

    folder: Path
    summary: dict[str, Any]
    n_images: int
    warnings: tuple[str, ...]
    again: bool = False


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

    record: its run.json. recorded: its configuration; ``config`` differs from it in which data are scored, where they
    are, and in the conventions of scoring. threshold: "0.5", another probability, or "tuned". Raises UsageError.
    """
    threshold, limit = _threshold(threshold, recorded, record)
    if config.trainer.threads:
        import torch

        torch.set_num_threads(config.trainer.threads)
    run = trained(run_dir, recorded, record, config.trainer.device)
    opened = open_images(config)
    _check_channels(opened.image_set, config, run.channels)
    prepared, another = _members(opened, config, record, split, run_dir)
    n_images = len(prepared.split[split])
    other_sha = prepared.dataset_sha if another else ""
    folder = run_dir / "evaluations" / _name(config, recorded, split, threshold, tta, other_sha)
    asked = {
        "run_id": record["run_id"],
        "split": split,
        "threshold": threshold,
        "threshold_log_odds": limit,
        "tta": tta,
        "dataset_sha": prepared.dataset_sha,
        "n_images": n_images,
        **_settings(config),
    }
    known = _finished(folder, asked)
    if known:
        return known
    warnings = (*prepared.warnings, *_warnings(config, another))
    scores = _scored(prepared, run, split, limit, tta, run_dir, record)
    summary = _summary(record, prepared, config, scores, n_images, another)
    _write(folder, asked | {"segexp": segexp.__version__, "warnings": list(warnings)}, scores, summary)
    return Evaluation(folder, summary, n_images, warnings)


def _settings(config: Config) -> dict[str, Any]:
    """The settings that the scores depend on, as evaluation.json keeps them."""
    scoring = {
        key: value
        for key, value in flatten(config).items()
        if key.split(".")[0] in ("metrics", "dataset", "split") and key not in WHERE
    }
    # Where a prediction depends on the batch, its size is a setting like any other.
    batch_size = config.trainer.batch_size if OUTPUT_ACTIVATIONS[config.activation.name].per_batch else None
    return {"resolution": config.metrics.resolution, "config": scoring, "batch_size": batch_size}


def _write(folder: Path, content: dict[str, Any], scores: "SplitScores", summary: dict[str, Any]) -> None:
    """The tables, and last evaluation.json: what says that they are whole."""
    folder.mkdir(parents=True, exist_ok=True)
    tables = {
        "images": scores.images,
        "bins": scores.bins,
        "thresholds": scores.thresholds,
        "summary": [summary],
    }
    try:
        with ownership(folder):
            n_rows = {name: write_table(folder / f"{name}.csv", name, rows) for name, rows in tables.items()}
            write_json(folder / "evaluation.json", content | {"n_rows_expected": n_rows})
    except OwnedError as owner:
        raise UsageError(f"{folder} is being written by {owner}: wait for it or stop it") from None


def _threshold(threshold: str, config: Config, record: dict[str, Any]) -> tuple[str, float | None]:
    """The threshold written one way, and the evidence above which a pixel is foreground.

    That is log-odds, or for `identity` the value above 1/2; None: phi > 0.
    """
    try:
        p = float(threshold)
    except ValueError:
        p = math.nan
    if p == 0.5:
        return "0.5", None
    if threshold != "tuned" and not 0 < p < 1:
        raise UsageError(f"--threshold {threshold} is neither tuned nor a probability between 0 and 1")
    if mode_of(config) == "softmax":
        raise UsageError(
            f"--threshold {threshold}: under softmax the largest class decides, there is no threshold; use 0.5"
        )
    if threshold == "tuned":
        return threshold, float(record["summary"]["threshold_tuned"])
    if OUTPUT_ACTIVATIONS[config.activation.name].log_odds is None:
        return repr(p), p - 0.5
    return repr(p), math.log(p) - math.log1p(-p)


def _check_channels(image_set: ImageSet, config: Config, channels: int) -> None:
    if image_set.channels != channels:
        raise UsageError(
            f"{image_set.location or config.dataset.name} has {image_set.channels} channels, the run's images had "
            f"{channels}: give dataset.channels={channels} if these are the same kind of image"
        )


def _members(
    opened: LoadedDataset, config: Config, record: dict[str, Any], split: str, run_dir: Path
) -> tuple[RunSpec, bool]:
    """The images to score as a `RunSpec`, and whether they are another data set than the run's.

    Raises UsageError where images that the run was trained on would pass for unseen ones.
    """
    image_set, facts = opened.image_set, opened.facts
    another = opened.dataset_sha != record["dataset_sha"]
    everything = list(range(len(image_set.image_ids)))
    whole: dict[str, list[int]] = {"train": [], "val": [], "test": []}
    if split != "all":
        whole = make_split(image_set, **vars(config.split))
    if not another and split == "all":
        raise UsageError("--split all of the run's own data holds its training images: use test, val or train")
    if not another and split_sha(image_set, whole) != record["split_sha"]:
        raise UsageError(
            f"{config.dataset.name} is now split otherwise than when {run_dir.name} was trained, so that {split} may "
            "hold its training images: leave split.* and the split files as they were"
        )
    members = everything if split == "all" else whole[split]
    if another:
        _refuse_seen(image_set, facts, members, run_dir)
    if facts.class_pixels_NC[members][:, 1:].sum() == 0:
        raise UsageError(f"the {split} split of {config.dataset.name} holds no foreground pixel: nothing can be scored")
    prepared = RunSpec(
        config=config,
        image_set=image_set,
        facts=facts,
        split={**whole, split: members},
        dataset_sha=opened.dataset_sha,
        split_sha=split_sha(image_set, whole) if split != "all" else "",
        identity=record["identity"],
        config_id=record["config_id"],
        run_dir=run_dir,
        warnings=image_set.notes,
    )
    return prepared, another


def _refuse_seen(image_set: ImageSet, facts: PairFacts, members: list[int], run_dir: Path) -> None:
    """No image that the run was trained or selected on may pass for an unseen one, whatever its name or folder."""
    known = read_table(run_dir / "split.csv", "split")
    seen = set(known.loc[known["split"] != "test", "image_sha"]) - {""}
    again = [image_set.image_ids[i] for i in members if facts.image_sha_N[i] in seen]
    if again:
        raise UsageError(
            f"{len(again)} of the {len(members)} images to score were in the run's train or val split (the first is "
            f"{again[0]}): leave them out, or score the run's own split"
        )


def _name(config: Config, recorded: Config, split: str, threshold: str, tta: bool, other_sha: str) -> str:
    """<split>-<threshold>, and what else differs from the run's own scores; settings without a word of their own as a
    short hash."""
    parts = [split, threshold]
    if config.metrics.resolution != recorded.metrics.resolution:
        parts.append(config.metrics.resolution)
    if tta:
        parts.append("tta")
    if other_sha:
        label = "".join(c if c.isalnum() or c in "._" else "_" for c in str(config.dataset.name))
        parts += [label, other_sha[:8]]
    now, then = flatten(config), flatten(recorded)
    differing = {key: now[key] for key in CONVENTIONS if now.get(key) != then.get(key)}
    if OUTPUT_ACTIVATIONS[config.activation.name].per_batch and now["trainer.batch_size"] != then["trainer.batch_size"]:
        differing["trainer.batch_size"] = now["trainer.batch_size"]
    if differing:
        parts.append(hashlib.sha256(json.dumps(differing, sort_keys=True).encode()).hexdigest()[:6])
    return "-".join(parts)


def _finished(folder: Path, asked: dict[str, Any]) -> Evaluation | None:
    """The evaluation that is there already; None where there is none. Raises UsageError for a different one."""
    path = folder / "evaluation.json"
    if not path.exists():
        return None
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        check_complete(folder, known)
    except (ValueError, UsageError) as error:
        raise UsageError(f"{folder} is damaged ({error}): move it away to evaluate again") from error
    if {k: known.get(k) for k in asked} != json.loads(json.dumps(asked)):
        raise UsageError(f"{folder} holds an evaluation with other settings: move it away to evaluate again")
    (summary,) = read_table(folder / "summary.csv", "summary").to_dict("records")
    return Evaluation(folder, {str(k): v for k, v in summary.items()}, known["n_images"], (), again=True)


def _warnings(config: Config, another: bool) -> list[str]:
    entry = OUTPUT_ACTIVATIONS[config.activation.name]
    warnings = [entry.warning] if entry.per_batch else []
    if another:
        warnings.append(
            f"{config.dataset.name} is not the data set of the run: threshold and temperature were fitted on the run's "
            "own validation images"
        )
    return warnings


def _scored(
    prepared: RunSpec,
    run: "Trained",
    split: str,
    limit: float | None,
    tta: bool,
    run_dir: Path,
    record: dict[str, Any],
) -> "SplitScores":
    from segexp.data.batches import make_reader
    from segexp.evaluation.predict import FLIPS
    from segexp.evaluation.score import split_scores

    config, image_set = prepared.config, prepared.image_set
    fit = fit_of(prepared)
    read = make_reader(image_set, fit)
    scorer = Scorer(prepared, run.network, run.head, run.device, fit, read, run.normalise)
    try:
        return split_scores(
            scorer.predictions(split, FLIPS if tta else ((),)),
            split,
            image_set.image_ids,
            image_set.group_ids,
            _fitted(run_dir, record),
            conventions_of(config, limit),
        )
    except DivergedError as error:
        raise UsageError(f"{error}: the network has no prediction for them") from error


def _fitted(run_dir: Path, record: dict[str, Any]) -> "FittedOnValidation":
    """What the run fitted on its validation split: the temperature, and the thresholds it tried."""
    import numpy as np

    from segexp.evaluation.score import FittedOnValidation

    tried = np.unique(read_table(run_dir / "thresholds.csv", "thresholds")["threshold"].to_numpy(dtype=float))
    temperature = record["summary"].get("temperature")
    edges = _nearest_edges(tried)
    return FittedOnValidation(float("nan") if temperature is None else float(temperature), edges)


def _nearest_edges(thresholds_T: "np.ndarray") -> "np.ndarray":
    """Indices of the bin edges that the thresholds are; another machine's last digit may differ."""
    import numpy as np

    from segexp.evaluation.ranking import bin_edges

    edges = bin_edges()
    above = np.searchsorted(edges, thresholds_T).clip(1, len(edges) - 1)
    below_is_nearer = thresholds_T - edges[above - 1] < edges[above] - thresholds_T
    return np.where(below_is_nearer, above - 1, above)


def _summary(
    record: dict[str, Any], prepared: RunSpec, config: Config, scores: "SplitScores", n_images: int, another: bool
) -> dict[str, Any]:
    """The run's own row with the scores, data and conventions of this evaluation in it; n_test is what was scored."""
    import numpy as np

    tuned = record["summary"].get("threshold_tuned")
    at = np.array([], dtype=int)
    if tuned is not None and len(scores.thresholds_T):
        at = np.flatnonzero(_nearest_edges(scores.thresholds_T) == _nearest_edges(np.array([tuned])))
    row = {name: record["summary"].get(name) for name in COLUMNS["summary"]} | scores.summary
    if another:
        row |= {"n_train": None, "n_val": None, "val_dice": None}
    return row | {
        "n_test": n_images,
        "dataset": config.dataset.name,
        "dataset_sha": prepared.dataset_sha,
        "split_sha": prepared.split_sha,
        "empty_policy": config.metrics.empty_policy,
        "resolution": config.metrics.resolution,
        "dice_tuned": float(scores.dice_T[at[0]]) if len(at) else float("nan"),
    }


def evaluation_base(recorded: Config) -> list[str]:
    """Overrides that hold for every evaluation of a run: the scale and the classes it was trained at."""
    dataset = recorded.dataset
    size = "null" if dataset.image_size is None else dataset.image_size
    return [f"dataset.image_size={size}", f"dataset.fit={dataset.fit}", f"dataset.num_classes={dataset.num_classes}"]


ALLOWED = ("dataset", "metrics", "split", "trainer.device", "trainer.threads", "trainer.batch_size")
"""What an evaluation may override; everything else is the network's own."""


def check_overrides(keys: list[str]) -> None:
    """Raise UsageError for an override that would mean another network."""
    if "dataset.num_classes" in keys:
        raise UsageError("dataset.num_classes belongs to the run: only data with the same classes can be scored")
    for key in keys:
        if key not in ALLOWED and key.split(".")[0] not in ("dataset", "metrics", "split"):
            raise UsageError(f"{key} belongs to the run and cannot change in an evaluation: {', '.join(ALLOWED)} can")
