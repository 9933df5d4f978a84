"""The end of a run: scores of validation and, once, test with the selected weights; tables and pictures."""

import logging
import shutil
from typing import TYPE_CHECKING, Any

from segexp.config import Config, mode_of
from segexp.records import COLUMNS, SCHEMA_VERSION, write_table
from segexp.running.build import Scorer
from segexp.running.prepare import RunSpec

log = logging.getLogger("segexp")

if TYPE_CHECKING:
    import numpy as np

    from segexp.evaluation.score import Conventions, FittedOnValidation, SplitScores
    from segexp.training.loop import Task, TrainingState


def conclude(scorer: Scorer, task: "Task", state: "TrainingState", record: dict[str, Any]) -> dict[str, Any]:
    """Score validation and, once, test with the selected weights; write tables and pictures."""
    from segexp.evaluation.score import best_threshold
    from segexp.training.checkpoints import load_checkpoint

    prepared = scorer.prepared
    if state.best_epoch:
        best = load_checkpoint(prepared.run_dir / "checkpoints" / "best.pt", scorer.device)
        scorer.network.load_state_dict(best["network"])
    fitted, scores = final_scores(scorer)
    chosen = best_threshold(scores["val"])
    summary = _identity_columns(prepared, state, record) | scores["test"].summary
    summary |= {
        "threshold_tuned": float("nan") if chosen is None else float(scores["val"].thresholds_T[chosen]),
        "dice_tuned": float("nan") if chosen is None else float(scores["test"].dice_T[chosen]),
        "temperature": fitted.temperature,
        "val_dice": scores["val"].summary["dice"],
    }
    _write_scores(prepared, summary, scores, record)
    _diagnose(scorer, task, state, record)
    _keep_pictures(scorer)
    _draw_samples(scorer, scores["test"], summary)
    return summary


def final_scores(scorer: Scorer) -> "tuple[FittedOnValidation, dict[str, SplitScores]]":
    """Everything measured on val and test with the weights as they are, and what was fitted on val for it."""
    from segexp.evaluation.score import fit_on_validation, split_scores

    prepared = scorer.prepared
    config, image_set, val = prepared.config, prepared.image_set, prepared.split["val"]
    if config.metrics.resolution == "native" or scorer.fit.how == "pad":
        n_pixels = int(prepared.facts.sizes_N2[val].prod(axis=1).sum())
    else:
        n_pixels = len(val) * scorer.fit.size**2
    fitted = fit_on_validation(scorer.predictions("val"), config.dataset.num_classes, mode_of(config), n_pixels)
    conventions = conventions_of(config)
    return fitted, {
        part: split_scores(
            scorer.predictions(part), part, image_set.image_ids, image_set.group_ids, fitted, conventions
        )
        for part in ("val", "test")
    }


def _diagnose(scorer: Scorer, task: "Task", state: "TrainingState", record: dict[str, Any]) -> None:
    """Look at the hidden activations on the validation images, with the selected weights: table, figure, warnings."""
    from segexp.training.diagnostics import draw_diagnostics, summarised, warnings_of

    run_dir = scorer.prepared.run_dir
    rows = [*state.diagnostics, *final_diagnostics(scorer, task, state.best_epoch or state.epoch)]
    record["n_rows_expected"]["diagnostics"] = write_table(run_dir / "diagnostics.csv", "diagnostics", rows)
    seen = [row for row in rows if row["probe"] == "val"]
    record["diagnostics"] = summarised(seen)
    for warning in warnings_of(seen):
        record["warnings"].append(warning)
        log.warning("%s", warning)
    draw_diagnostics(run_dir / "diagnostics.png", rows)


def final_diagnostics(scorer: Scorer, task: "Task", epoch: int) -> list[dict[str, Any]]:
    """Rows of diagnostics.csv: a look at the validation images with the weights as they are, those of ``epoch``."""
    from segexp.evaluation.predict import make_forward
    from segexp.training.diagnostics import validation_rows

    prepared, device = scorer.prepared, scorer.device
    # Without the scaler of the training loop small gradients would be 0 in fp16, and units would seem dead.
    precision = prepared.config.trainer.precision
    forward = make_forward(scorer.network, device, "fp32" if precision == "fp16" else precision)
    members = prepared.split["val"]
    return validation_rows(
        scorer.network,
        task.sites,
        lambda images, masks: task.loss_of(scorer.head(forward(images)), masks),
        ((b.images_NCHW.to(device), b.masks_NHW.long().to(device)) for b in scorer.batches(members)),
        len(members),
        prepared.run_id,
        epoch,
    )


def conventions_of(config: Config, threshold: float | None = None) -> "Conventions":
    """The conventions of scoring that a configuration asks for."""
    from segexp.evaluation.score import Conventions

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


def _identity_columns(prepared: RunSpec, state: "TrainingState | None", record: dict[str, Any]) -> dict[str, Any]:
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
    prepared: RunSpec, summary: dict[str, Any], scores: dict[str, "SplitScores"], record: dict[str, Any]
) -> None:
    run_dir = prepared.run_dir
    both = [scores["val"], scores["test"]]
    record["n_rows_expected"] |= {
        "images": write_table(run_dir / "images.csv", "images", [row for s in both for row in s.images]),
        "bins": write_table(run_dir / "bins.csv", "bins", [row for s in both for row in s.bins]),
        "thresholds": write_table(run_dir / "thresholds.csv", "thresholds", [r for s in both for r in s.thresholds]),
        "summary": write_table(run_dir / "summary.csv", "summary", [summary]),
    }


def conclude_diverged(prepared: RunSpec, record: dict[str, Any]) -> dict[str, Any]:
    """A diverged run has no scores: every score of its summary is NaN, its other tables are empty."""

    known = _identity_columns(prepared, None, record)
    summary = {name: known.get(name) for name in COLUMNS["summary"]}
    for table in ("images", "bins", "thresholds"):
        record["n_rows_expected"][table] = write_table(prepared.run_dir / f"{table}.csv", table, [])
    record["n_rows_expected"]["summary"] = write_table(prepared.run_dir / "summary.csv", "summary", [summary])
    return summary


def _keep_pictures(scorer: Scorer) -> None:
    """Eight fixed test images: their probability maps, and what these are looked at beside."""
    from segexp.evaluation.pictures import fixed_choice, probability_map, save_example, save_maps

    prepared = scorer.prepared
    maps, originals = prepared.run_dir / "predictions", prepared.run_dir / "examples"
    for folder in (maps, originals):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
    image_ids = prepared.image_set.image_ids
    for index in fixed_choice(image_ids, prepared.split["test"]):
        for scored in scorer.predictions([index]):
            save_maps(maps, image_ids[index], probability_map(scored.prediction, 0))
            save_example(originals, image_ids[index], _picture(scorer, index), scored.target_NHW[0].cpu().numpy())


def _draw_samples(scorer: Scorer, test: "SplitScores", summary: dict[str, Any]) -> None:
    """samples.png with the worst, median and best test image."""
    import numpy as np

    from segexp.evaluation.pictures import Example, draw_samples, probability_map, worst_median_best

    prepared = scorer.prepared
    config, image_ids = prepared.config, prepared.image_set.image_ids
    examples = []
    for title, index, dice in worst_median_best(test.indices_N, test.image_scores_N):
        (scored,) = scorer.predictions([index])
        foreground = scored.prediction.foreground_NFHW()[0].cpu().numpy()
        predicted = np.zeros(foreground.shape[1:], dtype=np.uint8)
        for f, plane in enumerate(foreground):
            predicted[plane] = f + 1
        truth = scored.target_NHW[0].cpu().numpy()
        label = f"{title}: Dice {dice:.2f}\n{image_ids[index][:24]}"
        maps = probability_map(scored.prediction, 0)
        examples.append(Example(label, _picture(scorer, index), truth, predicted, maps))
    if examples:
        heading = (
            f"{config.dataset.name}: {config.activation.name} + {config.loss.name}, "
            f"test Dice {summary['dice']:.3f} ({len(prepared.split['test'])} images, seed {config.seed})"
        )
        draw_samples(prepared.run_dir / "samples.png", examples, heading)


def _picture(scorer: Scorer, index: int) -> "np.ndarray":
    """The image as it is scored, (H, W, channels) in [0, 1]."""
    import numpy as np

    if scorer.prepared.config.metrics.resolution != "native":
        return scorer.read(index).image_CHW.permute(1, 2, 0).numpy()
    image_HWC = scorer.prepared.image_set.read(index).image_HWC
    return image_HWC / (255 if image_HWC.dtype == np.uint8 else 65535)
