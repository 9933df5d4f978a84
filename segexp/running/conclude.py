"""The end of a run: scores of validation and, once, test with the selected weights; tables and pictures."""

import functools
import logging
import shutil
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from segexp.config import Config, mode_of
from segexp.records import COLUMNS, SCHEMA_VERSION, write_table
from segexp.running.assemble import predictions_of
from segexp.running.prepare import Prepared

log = logging.getLogger("segexp")

if TYPE_CHECKING:
    from segexp.data.batches import Fit, Normalisation, Read
    from segexp.evaluation.counted import Conventions
    from segexp.evaluation.fitted import FittedOnValidation
    from segexp.evaluation.predict import Scored
    from segexp.evaluation.score import SplitScores
    from segexp.training.loop import Task, TrainingState


def conclude(
    prepared: Prepared,
    task: "Task",
    fit: "Fit",
    read: "Read",
    normalise: "Normalisation",
    state: "TrainingState",
    record: dict[str, Any],
) -> dict[str, Any]:
    """Score validation and, once, test with the selected weights; write tables and pictures."""
    from segexp.evaluation.score import best_threshold
    from segexp.training.checkpoints import load_checkpoint

    run_dir = prepared.run_dir
    if state.best_epoch:
        best = load_checkpoint(run_dir / "checkpoints" / "best.pt", task.device)
        task.network.load_state_dict(best["network"])
    fitted, scores = final_scores(prepared, task, fit, read, normalise)
    chosen = best_threshold(scores["val"])
    summary = _identity_columns(prepared, state, record) | scores["test"].summary
    summary |= {
        "threshold_tuned": float("nan") if chosen is None else float(scores["val"].thresholds_T[chosen]),
        "dice_tuned": float("nan") if chosen is None else float(scores["test"].dice_T[chosen]),
        "temperature": fitted.temperature,
        "val_dice": scores["val"].summary["dice"],
    }
    _write_scores(prepared, summary, scores, record)
    _diagnose(prepared, task, fit, read, normalise, state, record)
    predictions = _predictions(prepared, task, fit, read, normalise)
    _draw(prepared, task, predictions, read, scores["test"], summary)
    return summary


def _predictions(
    prepared: Prepared, task: "Task", fit: "Fit", read: "Read", normalise: "Normalisation"
) -> "Callable[[str | list[int]], Iterator[Scored]]":
    """Predictions of a split or of single images, with the weights as they are."""
    from segexp.evaluation.predict import make_forward

    task.network.eval()
    forward = make_forward(task.network, task.device, prepared.config.trainer.precision)
    return functools.partial(predictions_of, prepared, forward, task.head, fit, read, normalise, device=task.device)


def final_scores(
    prepared: Prepared, task: "Task", fit: "Fit", read: "Read", normalise: "Normalisation"
) -> "tuple[FittedOnValidation, dict[str, SplitScores]]":
    """Everything measured on val and test with the weights as they are, and what was fitted on val for it."""
    from segexp.evaluation.fitted import fit_on_validation
    from segexp.evaluation.score import split_scores

    config, image_set = prepared.config, prepared.image_set
    predictions = _predictions(prepared, task, fit, read, normalise)
    if config.metrics.resolution == "native" or fit.how == "pad":
        n_pixels = int(prepared.facts.sizes_N2[prepared.split["val"]].prod(axis=1).sum())
    else:
        n_pixels = len(prepared.split["val"]) * fit.size**2
    fitted = fit_on_validation(predictions("val"), config.dataset.num_classes, mode_of(config), n_pixels)
    conventions = conventions_of(config)
    return fitted, {
        part: split_scores(predictions(part), part, image_set.image_ids, image_set.group_ids, fitted, conventions)
        for part in ("val", "test")
    }


def _diagnose(
    prepared: Prepared,
    task: "Task",
    fit: "Fit",
    read: "Read",
    normalise: "Normalisation",
    state: "TrainingState",
    record: dict[str, Any],
) -> None:
    """Look at the hidden activations on the validation images, with the selected weights: table, figure, warnings."""
    from segexp.training.diagnostics import summarised, warnings_of
    from segexp.training.diagnostics_figure import draw_diagnostics

    run_dir = prepared.run_dir
    rows = final_diagnostics(prepared, task, fit, read, normalise, state.best_epoch or state.epoch)
    rows = [*state.diagnostics, *rows]
    record["n_rows_expected"]["diagnostics"] = write_table(run_dir / "diagnostics.csv", "diagnostics", rows)
    seen = [row for row in rows if row["probe"] == "val"]
    record["diagnostics"] = summarised(seen)
    for warning in warnings_of(seen):
        record["warnings"].append(warning)
        log.warning("%s", warning)
    draw_diagnostics(run_dir / "diagnostics.png", rows)


def final_diagnostics(
    prepared: Prepared, task: "Task", fit: "Fit", read: "Read", normalise: "Normalisation", epoch: int
) -> list[dict[str, Any]]:
    """Rows of diagnostics.csv: a look at the validation images with the weights as they are, those of ``epoch``."""
    from segexp.data.batches import scoring_batches
    from segexp.evaluation.predict import make_forward
    from segexp.training.diagnostics import validation_rows

    config, members = prepared.config, prepared.split["val"]
    # Without the scaler of the training loop small gradients would be 0 in fp16, and units would seem dead.
    precision = "fp32" if config.trainer.precision == "fp16" else config.trainer.precision
    forward = make_forward(task.network, task.device, precision)
    batches = scoring_batches(read, fit, normalise, members, prepared.facts.sizes_N2, config.trainer.batch_size)
    return validation_rows(
        task.network,
        task.sites,
        lambda images, masks: task.loss_of(task.head(forward(images)), masks),
        ((batch.images_NCHW.to(task.device), batch.masks_NHW.long().to(task.device)) for batch in batches),
        len(members),
        prepared.run_id,
        epoch,
    )


def conventions_of(config: Config, threshold: float | None = None) -> "Conventions":
    """The conventions of scoring that a configuration asks for."""
    from segexp.evaluation.counted import Conventions

    spacing = config.dataset.spacing or [1.0, 1.0]
    policy: Any = config.metrics.empty_policy
    return Conventions(
        num_classes=config.dataset.num_classes,
        mode=mode_of(config),
        empty_policy=policy,
        boundary_band=config.metrics.boundary_band,
        surface_tolerance=config.dataset.surface_tolerance,
        spacing=(spacing[0], spacing[1]),
        threshold=threshold,
    )


def _identity_columns(prepared: Prepared, state: "TrainingState | None", record: dict[str, Any]) -> dict[str, Any]:
    """The columns of summary.csv that say what the run is."""
    config = prepared.config
    return {
        "run_id": prepared.run_id,
        "config_id": prepared.config_id,
        "schema_version": SCHEMA_VERSION,
        "dataset": config.dataset.name,
        "dataset_sha": prepared.dataset_sha,
        "split_sha": prepared.split_sha,
        "model": config.model.name,
        "backbone": config.backbone.name,
        "hidden_activation": config.hidden_activation.name,
        "activation": config.activation.name,
        "loss": config.loss.name,
        "seed": config.seed,
        "fold": config.split.fold,
        "init_sha": record["init_sha"],
        "order_sha": record.get("order_sha", ""),
        "n_params": record["n_params"],
        "n_train": len(prepared.split["train"]),
        "n_val": len(prepared.split["val"]),
        "n_test": len(prepared.split["test"]),
        "epochs": state.epoch if state else None,
        "best_epoch": state.best_epoch if state else None,
        "select_metric": f"val_{config.trainer.select}",
        "empty_policy": config.metrics.empty_policy,
        "resolution": config.metrics.resolution,
    }


def _write_scores(
    prepared: Prepared, summary: dict[str, Any], scores: dict[str, "SplitScores"], record: dict[str, Any]
) -> None:
    run_dir = prepared.run_dir
    both = [scores["val"], scores["test"]]
    record["n_rows_expected"] |= {
        "images": write_table(run_dir / "images.csv", "images", [row for s in both for row in s.images]),
        "bins": write_table(run_dir / "bins.csv", "bins", [row for s in both for row in s.bins]),
        "thresholds": write_table(run_dir / "thresholds.csv", "thresholds", [r for s in both for r in s.thresholds]),
        "summary": write_table(run_dir / "summary.csv", "summary", [summary]),
    }


def conclude_diverged(prepared: Prepared, record: dict[str, Any]) -> dict[str, Any]:
    """A diverged run has no scores: every score of its summary is NaN, its other tables are empty."""

    known = _identity_columns(prepared, None, record)
    summary = {name: known.get(name) for name in COLUMNS["summary"]}
    for table in ("images", "bins", "thresholds"):
        record["n_rows_expected"][table] = write_table(prepared.run_dir / f"{table}.csv", table, [])
    record["n_rows_expected"]["summary"] = write_table(prepared.run_dir / "summary.csv", "summary", [summary])
    return summary


def _draw(
    prepared: Prepared, task: "Task", predictions: Any, read: "Read", test: "SplitScores", summary: dict[str, Any]
) -> None:
    """samples.png with the worst, median and best test image; eight fixed ones with their probability maps."""
    import numpy as np

    from segexp.evaluation.pictures import (
        Example,
        draw_samples,
        fixed_choice,
        probability_map,
        save_example,
        save_maps,
        worst_median_best,
    )

    config, image_set = prepared.config, prepared.image_set

    def picture_of(index: int) -> "np.ndarray":
        """The image as it is scored, (H, W, channels)."""
        if config.metrics.resolution != "native":
            return read(index).image_CHW.permute(1, 2, 0).numpy()
        image_HWC = image_set.read(index).image_HWC
        return image_HWC / (255 if image_HWC.dtype == np.uint8 else 65535)

    maps, originals = prepared.run_dir / "predictions", prepared.run_dir / "examples"
    for folder in (maps, originals):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
    for index in fixed_choice(image_set.image_ids, prepared.split["test"]):
        for scored in predictions([index]):
            image_id = image_set.image_ids[index]
            save_maps(maps, image_id, probability_map(scored.prediction, 0))
            save_example(originals, image_id, picture_of(index), scored.target_NHW[0].cpu().numpy())
    examples = []
    for title, index, dice in worst_median_best(test.indices_N, test.image_scores_N):
        (scored,) = predictions([index])
        foreground = scored.prediction.foreground_NFHW()[0].cpu().numpy()
        predicted = np.zeros(foreground.shape[1:], dtype=np.uint8)
        for f, plane in enumerate(foreground):
            predicted[plane] = f + 1
        truth = scored.target_NHW[0].cpu().numpy()
        label = f"{title}: Dice {dice:.2f}\n{image_set.image_ids[index][:24]}"
        examples.append(Example(label, picture_of(index), truth, predicted, probability_map(scored.prediction, 0)))
    if examples:
        heading = (
            f"{config.dataset.name}: {config.activation.name} + {config.loss.name}, "
            f"test Dice {summary['dice']:.3f} ({len(prepared.split['test'])} images, seed {config.seed})"
        )
        draw_samples(prepared.run_dir / "samples.png", examples, heading)
