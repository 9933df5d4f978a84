"""The end of a run: scores of validation and, once, of test with the selected weights; tables and pictures."""

import copy
import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from segexp.activations.head import learned_options
from segexp.config import mode_of
from segexp.data import seeded
from segexp.data.codings import innermost
from segexp.data.image_set import ImageError
from segexp.data.normalise import shown
from segexp.data.split import count_groups
from segexp.errors import DataChangedError
from segexp.evaluation.pictures import (
    Example,
    as_bytes,
    fixed_choice,
    grey_or_colour,
    image_title,
    probability_map,
    save_example,
    save_maps,
    save_samples,
    try_to_draw_figures,
    worst_median_best,
)
from segexp.evaluation.predict import Scored, make_forward
from segexp.evaluation.score import FittedOnValidation, SplitScores, best_threshold, fit_on_validation, split_scores
from segexp.records import FIGURES, PROGRESS, SCHEMA_VERSION, columns_of, flatten, write_json, write_table
from segexp.records.formatting import pluralize
from segexp.records.owned import discard
from segexp.records.scores import LEARNED, class_color, class_label
from segexp.running import RunSpec
from segexp.running.build import Scorer, conventions_of, units_of
from segexp.training.checkpoint import load_selected
from segexp.training.diagnostics import summarised, validation_rows, warnings_of
from segexp.training.loop import Task, TrainingState

log = logging.getLogger("segexp")

SCORE_TABLES = ("images", "objects", "bins", "thresholds")


def finalize(
    scorer: Scorer, task: Task, state: TrainingState, record: dict[str, Any], best: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Score with the selected weights, write tables and pictures, complete ``record``; returns the summary row.

    best: what best.pt holds; None: it is read, or last.pt where no epoch was the best.
    """
    spec = scorer.spec
    selected = best or load_selected(spec.run_dir, scorer.device, spec.identity, state.best_epoch, state.epoch)
    # Of a copy: smp's deeplabv3, and some encoders, take out and put back every key, and best.pt is being written.
    scorer.network.load_state_dict(copy.copy(selected["network"]))
    n_val, n_test = (len(spec.split[part]) for part in ("val", "test"))
    epoch = state.best_epoch or state.epoch
    log.info("scoring %d val and %d test images with the weights of epoch %d", n_val, n_test, epoch)
    fitted, scores, of_test = final_scores(scorer, spec.run_dir / PROGRESS, state.best_predictions)
    chosen = best_threshold(scores["val"])
    summary = _identity_columns(spec, state, record) | scores["test"].summary
    if learned := learned_options(scorer.network):
        record["head"]["learned"] = numbers = learned.numbers()
        for name, value in numbers.items():
            if value in (learned.ranges[name].low, learned.ranges[name].high):
                ended = f"activation.{name} was learned to the end of its range, {value:g}, which no gradient leaves"
                record["warnings"].append(f"{ended}: lower optimizer.lr, or do not learn it")
    summary |= {name: record["head"].get("learned", {}).get(name.removeprefix("learned_")) for name in LEARNED}
    summary |= {
        "threshold_tuned": float("nan") if chosen is None else float(scores["val"].thresholds_T[chosen]),
        "dice_tuned": float("nan") if chosen is None else float(scores["test"].dice_T[chosen]),
        "temperature": fitted.temperature,
        "val_dice": scores["val"].summary["dice"],
    }
    rows = {
        table: [row for split in ("val", "test") for row in getattr(scores[split], table)] for table in SCORE_TABLES
    }
    _write_scores(spec, summary, rows, record)
    with seeded(spec.config.seed, "diagnostics", device=scorer.device):
        last = final_diagnostics(scorer, task, epoch)
    write_table(spec.run_dir / "diagnostics.csv", "diagnostics", [*state.diagnostics, *last], record)
    record["diagnostics"] = summarised(last)
    for warning in warnings_of(last):
        record["warnings"].append(warning)
        log.warning("%s", warning)
    _keep_pictures(scorer, scores["test"], summary, of_test)
    if spec.config.tracking and spec.config.trainer.figures:
        try_to_draw_figures(spec.run_dir)
    return summary


def finalize_diverged(spec: RunSpec, record: dict[str, Any]) -> dict[str, Any]:
    """Write the tables of a diverged run: every score of its summary is NaN, the other tables are empty."""
    known = _identity_columns(spec, None, record)
    summary = {name: known.get(name) for name in columns_of("summary", record)}
    _write_scores(spec, summary, {table: [] for table in SCORE_TABLES}, record)
    return summary


def final_scores(
    scorer: Scorer, progress: Path | None = None, known: Sequence[Scored] = ()
) -> tuple[FittedOnValidation, dict[str, SplitScores], Sequence[Scored]]:
    """What is fitted on validation, the scores of val and test with the present weights, and the predictions of test,
    unless they are too large to keep.

    progress: a file for how many images are scored, written at most once a second; those of val are read twice. known:
    predictions of val with these weights, if there are some.
    """
    spec = scorer.spec
    config, image_set, val = spec.config, spec.image_set, spec.split["val"]
    known = known or (list(scorer.predictions("val")) if scorer.keeps("val") else [])
    of_test: list[Scored] = []
    if config.metrics.resolution == "native" or scorer.geometry.how == "pad":
        n_pixels = int(spec.facts.sizes_N2[val].prod(axis=1).sum())
    else:
        n_pixels = len(val) * scorer.geometry.size**2
    begun = time.monotonic()
    done, total, written = 0, 2 * len(val) + len(spec.split["test"]), begun - 1

    def predictions(part: str) -> Iterator[Scored]:
        nonlocal done, written
        for scored in (part == "val" and known) or scorer.predictions(part):
            if progress and time.monotonic() >= written + 1:
                written = time.monotonic()
                write_json(progress, {"done": done, "total": total, "seconds": round(written - begun, 1)})
            yield scored
            done += len(scored.indices)
            if part == "test" and scorer.keeps(part):
                of_test.append(scored)

    fitted = fit_on_validation(predictions("val"), mode_of(config), n_pixels)
    units, conventions = units_of(config, image_set), conventions_of(config)
    scores = {part: split_scores(predictions(part), part, units, fitted, conventions) for part in ("val", "test")}
    return fitted, scores, of_test


def _identity_columns(spec: RunSpec, state: TrainingState | None, record: dict[str, Any]) -> dict[str, Any]:
    """The columns of summary.csv that say what the run is."""
    config = spec.config
    return {
        "run_id": spec.run_id,
        "config_id": spec.config_id,
        "schema_version": SCHEMA_VERSION,
        "dataset": config.dataset.name,
        "dataset_sha": spec.dataset_sha,
        "split_sha": spec.split_sha,
        **{key: getattr(config, key).name for key in ("model", "backbone", "hidden_activation", "activation", "loss")},
        "seed": config.seed,
        "fold": config.split.fold,
        "init_sha": record["init_sha"],
        "order_sha": record.get("order_sha", ""),
        "n_params": record["n_params"],
        **{f"n_{part}": len(spec.split[part]) for part in ("train", "val", "test")},
        **{f"n_{part}_groups": count_groups(spec.image_set, spec.split[part]) for part in ("train", "test")},
        "epochs": state.epoch if state else None,
        "best_epoch": state.best_epoch if state else None,
        "select_metric": f"val_{config.trainer.select}",
        "empty_policy": config.metrics.empty_policy,
        "resolution": config.metrics.resolution,
    }


def _write_scores(
    spec: RunSpec, summary: dict[str, Any], rows: dict[str, list[dict[str, Any]]], record: dict[str, Any]
) -> None:
    for table, content in (rows | {"summary": [summary]}).items():
        write_table(spec.run_dir / f"{table}.csv", table, content, record)


def final_diagnostics(scorer: Scorer, task: Task, epoch: int) -> list[dict[str, Any]]:
    """Rows of diagnostics.csv for the validation images with the present weights, which are those of ``epoch``."""
    spec, device = scorer.spec, scorer.device
    # fp16 without the training loop's scaler: small gradients would become 0, and their units would seem dead.
    precision = spec.config.trainer.precision
    forward = make_forward(scorer.network, device, "fp32" if precision == "fp16" else precision)
    indices = spec.split["val"]
    return validation_rows(
        scorer.network,
        task.sites,
        lambda images, masks: task.loss_of(scorer.head(forward(images)), masks),
        ((b.images_NCHW.to(device), b.masks_NHW.long().to(device)) for b in scorer.batches(indices)),
        len(indices),
        spec.run_id,
        epoch,
    )


def _keep_pictures(scorer: Scorer, test: SplitScores, summary: dict[str, Any], known: Sequence[Scored]) -> None:
    """Eight fixed test images, or a slice of eight volumes where these are scored: their probability maps, and the
    images and references to show beside them. What samples.png shows: the worst, median and best test image.

    known: predictions of the test split, if there are some.
    """
    spec = scorer.spec
    maps, originals = spec.run_dir / "predictions", spec.run_dir / "examples"
    for folder in (maps, originals, *(spec.run_dir / name for name in FIGURES)):
        discard(folder)
    image_ids, kept = spec.image_set.image_ids, spec.split["test"]
    if spec.config.metrics.unit == "case":
        units, n_gt_N = units_of(spec.config, spec.image_set), spec.facts.class_pixels_NC[:, 1:].sum(axis=1)
        largest = {units.unit(i): i for i in sorted(kept, key=lambda i: n_gt_N[i])}
        kept = list(largest.values())
    fixed = set(fixed_choice(image_ids, kept))
    of, titles = " volume" if summary["n_test_cases"] else "", dict[int, str]()
    for title, index, dice in worst_median_best(test.indices_N, test.unit_scores_N):
        titles[index] = f"{title}{of}: Dice {dice:.2f}\n{image_ids[index]}"
    examples = dict[int, Example]()
    needed = fixed | titles.keys()
    for scored in known or scorer.predictions(sorted(needed)):
        for n, index in [(n, index) for n, index in enumerate(scored.indices) if index in needed]:
            image_HW3 = as_bytes(grey_or_colour(_picture(scorer, index)))
            if index in fixed:
                save_maps(maps, image_ids[index], probability_map(scored.prediction, n), scored.prediction.first)
                save_example(originals, image_ids[index], image_HW3, _reference(scored, n))
            if index in titles:
                examples[index] = _example(titles[index], image_HW3, scored, n)
    if examples:
        look = _look_of_samples(spec, summary)
        save_samples(originals / "samples.npz", [examples[index] for index in titles], **look)


def _example(title: str, image_HW3: np.ndarray, scored: Scored, n: int) -> Example:
    first, overlapping = scored.prediction.first, scored.prediction.overlapping
    foreground_FHW = scored.prediction.foreground_NFHW()[n].cpu().numpy()
    predicted_HW = np.zeros(foreground_FHW.shape[1:], dtype=np.uint8)
    for class_index, plane in enumerate(foreground_FHW, start=first):
        predicted_HW[plane] = class_index
    truth_HW = scored.target_NHW[n].cpu().numpy()
    likely_HW = probability_map(scored.prediction, n)[1 - first :].max(axis=0)  # class 0 has no colour
    truth_HW = truth_HW if overlapping else truth_HW.astype(np.uint8)
    return Example(title, image_HW3, truth_HW, predicted_HW, as_bytes(likely_HW), overlapping)


def _look_of_samples(spec: RunSpec, summary: dict[str, Any]) -> dict[str, Any]:
    """The words and colours of samples.png."""
    config, cases = spec.config, summary["n_test_cases"]
    on = pluralize(cases, "volume") if cases else f"{len(spec.split['test'])} images"
    heading = (
        f"{config.dataset.name}: {config.activation.name} + {config.loss.name}, "
        f"test Dice {summary['dice']:.3f} ({on}, seed {config.seed})"
    )
    flat, classes = flatten(config), range(1, config.dataset.num_classes)
    named = len(classes) > 1 or config.dataset.class_names
    return {
        "heading": heading,
        "names": [class_label(flat, c) for c in classes] if named else ["foreground"],
        "colors": [class_color(flat, c) for c in classes],
        "image_title": image_title(spec.image_set.channels, config.dataset.channel_names),
    }


def _reference(scored: Scored, n: int) -> np.ndarray:
    """The reference of image n of a batch for pictures: class indices (H, W)."""
    truth_HW = scored.target_NHW[n].cpu().numpy()
    return innermost(truth_HW) if scored.prediction.overlapping else truth_HW


def _picture(scorer: Scorer, index: int) -> np.ndarray:
    """The image as it is scored, (H, W, channels) in [0, 1]."""
    native = scorer.spec.config.metrics.resolution == "native"
    if native:
        try:
            return shown(scorer.spec.image_set.read(index).image_HWC)
        except (DataChangedError, ImageError, OSError) as error:
            log.warning("a picture shows the image as the network sees it, because %s", error)
    sample = scorer.read(index)
    image_HWC = sample.image_CHW.permute(1, 2, 0).numpy()
    if native:
        height, width = sample.native_mask_HW.shape
        rows, columns = np.arange(height) * len(image_HWC) // height, np.arange(width) * image_HWC.shape[1] // width
        image_HWC = image_HWC[rows][:, columns]
    return image_HWC if image_HWC.min() >= 0 and image_HWC.max() <= 1 else shown(image_HWC)
