"""Score a split: light measures after every epoch, and the full set of tables once, with the selected weights.

Shapes: N images, F foreground classes, T thresholds. Measures follow segexp.metrics; images are weighted alike
(within their group), pixels only where a measure says "pooled".
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from segexp.activations.head import Prediction
from segexp.activations.output import HeadMode
from segexp.errors import DivergedError
from segexp.evaluation.predict import Scored, counted_masks
from segexp.metrics.boundary import boundary_scores
from segexp.metrics.calibration import (
    boundary_band,
    expected_calibration_error,
    fit_temperature,
    one_vs_rest,
    pixel_nll,
    reliability_bins,
)
from segexp.metrics.counts import mask_counts
from segexp.metrics.ranking import N_BINS as RANKING_BINS
from segexp.metrics.ranking import auroc_and_ap, bin_edges, counts_above, histograms, threshold_grid
from segexp.metrics.scores import (
    EmptyPolicy,
    dice_and_iou,
    fp_rate_empty,
    group_means,
    image_scores,
    mean_or_nan,
    micro_scores,
    primary_score,
)

if TYPE_CHECKING:
    import numpy as np
    import torch

TEMPERATURE_PIXELS = 1_000_000
"""At most this many validation pixels, evenly spaced, fit the temperature."""

LossOf = Callable[[Prediction, "torch.Tensor"], "torch.Tensor"]


@dataclass(frozen=True)
class EpochScores:
    """Validation after an epoch. frac_nonfinite: share of the logits that are not finite."""

    loss: float
    dice: float
    dice_micro: float
    iou_micro: float
    nll: float
    brier: float
    frac_nonfinite: float


def epoch_scores(
    scored: Iterable[Scored], loss_of: LossOf, num_classes: int, group_ids: Sequence[str], policy: EmptyPolicy
) -> EpochScores:
    """The measures that are followed over the epochs. group_ids is indexed by image, as in the image set."""
    import torch

    indices: list[int] = []
    counts, nll, brier, loss, nonfinite = [], [], [], [], []
    for batch in scored:
        indices += batch.indices
        truth, valid = counted_masks(batch.target_NHW, num_classes)
        counts.append(mask_counts(batch.prediction.foreground_NFHW(), truth, valid))
        image_nll, image_brier = _image_calibration(batch.prediction, truth, valid, 1.0)
        nll.append(image_nll.mean(1))
        brier.append(image_brier.mean(1))
        network_prediction, network_target = batch.network
        loss.append(loss_of(network_prediction, network_target).double().expand(len(batch.indices)))
        logits = network_prediction.logits_NKHW
        nonfinite.append((~logits.isfinite()).double().mean((1, 2, 3)))
    counts_NF3 = torch.cat(counts).cpu().numpy()
    groups = tuple(group_ids[i] for i in indices)
    nll_N, brier_N, loss_N, nonfinite_N = (torch.cat(v).cpu().numpy() for v in (nll, brier, loss, nonfinite))
    dice_NF, _ = dice_and_iou(counts_NF3)
    dice_micro, iou_micro = micro_scores(counts_NF3)
    return EpochScores(
        loss=float(loss_N.mean()),
        dice=primary_score(dice_NF, counts_NF3[..., 0] + counts_NF3[..., 2], groups, policy),
        dice_micro=dice_micro,
        iou_micro=iou_micro,
        nll=mean_or_nan(group_means(nll_N, groups)),
        brier=mean_or_nan(group_means(brier_N, groups)),
        frac_nonfinite=float(nonfinite_N.mean()),
    )


def _image_calibration(
    prediction: Prediction, truth_NFHW: "torch.Tensor", valid_NHW: "torch.Tensor", temperature: float
) -> tuple["torch.Tensor", "torch.Tensor"]:
    """NLL and Brier score per image and class, float64 (N, F), means over valid pixels; NaN without probabilities."""
    import torch

    if prediction.log_odds_NKHW is None:
        nothing = torch.full(truth_NFHW.shape[:2], float("nan"), dtype=torch.float64, device=truth_NFHW.device)
        return nothing, nothing
    phi = prediction.log_odds_NKHW.double() / temperature
    weight = valid_NHW.unsqueeze(1)
    n_valid = weight.sum((2, 3))
    nll = pixel_nll(phi, truth_NFHW, prediction.mode).where(weight, 0.0).sum((2, 3)) / n_valid
    p = one_vs_rest(phi, prediction.mode).sigmoid()
    brier = (p - truth_NFHW.double()).square().where(weight, 0.0).sum((2, 3)) / n_valid
    return nll, brier


@dataclass(frozen=True)
class FittedOnValidation:
    """What is fitted on the validation split and then only applied. edges_T: indices of the thresholds tried."""

    temperature: float
    edges_T: "np.ndarray"


def fit_on_validation(scored: Iterable[Scored], num_classes: int, mode: HeadMode, n_pixels: int) -> FittedOnValidation:
    """Temperature and threshold grid from the validation split; ``n_pixels`` is its number of scored pixels."""
    import numpy as np

    stride = max(1, -(-n_pixels // TEMPERATURE_PIXELS))
    pooled, phi_PK, class_P = None, [], []
    seen = 0
    for batch in scored:
        truth, valid = counted_masks(batch.target_NHW, num_classes)
        tables = histograms(batch.prediction.evidence_NFHW(), truth, valid).sum(0, keepdim=True).cpu().numpy()
        pooled = tables if pooled is None else pooled + tables
        log_odds = batch.prediction.log_odds_NKHW
        if log_odds is not None:
            # Continued from batch to batch, so that the choice does not depend on how images are batched.
            chosen = slice(-seen % stride, None, stride)
            by_pixel, classes = log_odds.movedim(1, -1)[valid], batch.target_NHW[valid]
            phi_PK.append(by_pixel[chosen].double().cpu().numpy())
            class_P.append(classes[chosen].cpu().numpy())
            seen += len(classes)
    assert pooled is not None, "the validation split is never empty"
    edges = np.array([], dtype=np.int64) if mode == "softmax" else threshold_grid(pooled)
    temperature = fit_temperature(np.concatenate(phi_PK), np.concatenate(class_P), mode) if phi_PK else float("nan")
    return FittedOnValidation(temperature, edges)


@dataclass(frozen=True)
class SplitScores:
    """Everything measured on one split. Tables are rows as in `segexp.records.COLUMNS`.

    image_scores_N: Dice of each image by itself (mean over the classes its reference holds), for choosing examples;
    indices_N the images it belongs to. dice_T: the primary score at every threshold tried.
    """

    images: list[dict[str, Any]]
    bins: list[dict[str, Any]]
    thresholds: list[dict[str, Any]]
    summary: dict[str, Any]
    indices_N: tuple[int, ...]
    image_scores_N: "np.ndarray"
    thresholds_T: "np.ndarray"
    dice_T: "np.ndarray"


@dataclass(frozen=True)
class Conventions:
    """What a score depends on besides predictions and reference.

    threshold: evidence above which a pixel is foreground, in log-odds; None: the class of the largest probability.
    """

    num_classes: int
    mode: HeadMode
    empty_policy: EmptyPolicy
    boundary_band: int
    surface_tolerance: float
    spacing: tuple[float, float]
    threshold: float | None = None


def split_scores(
    scored: Iterable[Scored],
    split: str,
    image_ids: Sequence[str],
    group_ids: Sequence[str],
    fitted: FittedOnValidation,
    conventions: Conventions,
) -> SplitScores:
    """Score one split in one pass. image_ids and group_ids are indexed by image, as in the image set.

    Raises DivergedError when a logit is not finite: NaN > 0 is False, and a dead network would score as an empty mask.
    """
    import numpy as np
    import torch

    n_classes = conventions.num_classes - 1
    temperatures = (1.0, fitted.temperature)
    parts: dict[str, list[Any]] = {name: [] for name in ("counts", "valid", "boundary", "nll", "brier", "above")}
    parts |= {"nll_t": [], "brier_t": [], "size": []}
    bins = torch.zeros(2, 2, n_classes, 15, 3, dtype=torch.float64)
    ranking = np.zeros((n_classes, 2, RANKING_BINS), dtype=np.int64)
    indices: list[int] = []
    ties = clipped = pixels = 0
    for batch in scored:
        indices += batch.indices
        prediction = batch.prediction
        if not bool(prediction.logits_NKHW.isfinite().all()):
            raise DivergedError(f"logits on the {split} images are not finite with the selected weights")
        truth, valid = counted_masks(batch.target_NHW, conventions.num_classes)
        decided = prediction.foreground_NFHW()
        if conventions.threshold is not None:
            decided = prediction.evidence_NFHW().double() > conventions.threshold
        parts["counts"].append(mask_counts(decided, truth, valid).cpu().numpy())
        parts["valid"].append(valid.sum((1, 2)).cpu().numpy())
        parts["size"] += [tuple(batch.target_NHW.shape[1:])] * len(batch.indices)
        parts["boundary"].append(_boundary(decided, truth, valid, conventions, batch.pixel_size))
        tables = histograms(prediction.evidence_NFHW(), truth, valid).cpu().numpy()
        ranking += tables.sum(0)
        parts["above"].append(counts_above(tables, fitted.edges_T))
        ties += int((prediction.ties_NHW() & valid).sum())
        clipped += int((prediction.clipped_NHW() & valid).sum())
        pixels += int(valid.sum())
        for scaled, temperature in enumerate(temperatures):
            nll, brier = _image_calibration(prediction, truth, valid, temperature)
            parts["nll_t" if scaled else "nll"].append(nll.cpu().numpy())
            parts["brier_t" if scaled else "brier"].append(brier.cpu().numpy())
            if prediction.log_odds_NKHW is not None:
                p = one_vs_rest(prediction.log_odds_NKHW.double() / temperature, prediction.mode).sigmoid()
                everywhere = valid.unsqueeze(1).expand_as(truth)
                band = boundary_band(truth, conventions.boundary_band) & everywhere
                for region, counted in enumerate((everywhere, band)):
                    bins[scaled, region] += reliability_bins(p, truth, counted).cpu()
    joined = {name: np.concatenate(v) for name, v in parts.items() if name not in ("size", "above")}
    above_TNF3 = np.concatenate(parts["above"], axis=1)
    groups = tuple(group_ids[i] for i in indices)
    names = [image_ids[i] for i in indices]
    policy = conventions.empty_policy
    images = _image_rows(split, names, groups, parts["size"], joined)
    n_gt = joined["counts"][..., 0] + joined["counts"][..., 2]
    thresholds_T = bin_edges()[fitted.edges_T]
    threshold_rows, dice_T = _threshold_rows(split, thresholds_T, above_TNF3, n_gt, groups, policy)
    has_probabilities = bool(bins[0, 0, ..., 0].sum() > 0)
    summary = _summary(joined, n_gt, groups, policy) | {
        "ece15": _ece(bins[0, 0].numpy()) if has_probabilities else float("nan"),
        "ece15_t": _ece(bins[1, 0].numpy()) if has_probabilities else float("nan"),
        "frac_tie": ties / max(pixels, 1),
        "frac_clipped": clipped / max(pixels, 1),
    }
    ranks = [auroc_and_ap(table) for table in ranking]
    summary["auroc"] = mean_or_nan(np.array([auroc for auroc, _ in ranks]))
    summary["ap"] = mean_or_nan(np.array([ap for _, ap in ranks]))
    dice_NF, _ = dice_and_iou(joined["counts"])
    own_N = image_scores_alone(dice_NF, n_gt)
    bin_rows = _bin_rows(split, bins.numpy()) if has_probabilities else []
    return SplitScores(images, bin_rows, threshold_rows, summary, tuple(indices), own_N, thresholds_T, dice_T)


def image_scores_alone(dice_NF: "np.ndarray", n_gt_NF: "np.ndarray") -> "np.ndarray":
    """Mean Dice over the classes each image's reference holds; NaN where it holds none."""
    import numpy as np

    held = n_gt_NF > 0
    total = np.where(held, np.nan_to_num(dice_NF), 0.0).sum(axis=1)
    return np.where(held.any(axis=1), total / np.maximum(held.sum(axis=1), 1), np.nan)


def _boundary(
    decided: "torch.Tensor",
    truth: "torch.Tensor",
    valid: "torch.Tensor",
    conventions: Conventions,
    pixel_size: tuple[float, float],
) -> "np.ndarray":
    """NSD and HD95 per image and class, (N, F, 2); ignored pixels belong to neither mask.

    Distances are in native pixels, or in the unit of the spacing, at whatever resolution is scored.
    """
    import numpy as np

    masks_p, masks_r = ((m & valid.unsqueeze(1)).cpu().numpy() for m in (decided, truth))
    spacing = (conventions.spacing[0] * pixel_size[0], conventions.spacing[1] * pixel_size[1])
    rows = [
        [boundary_scores(p, r, conventions.surface_tolerance, spacing) for p, r in zip(ps, rs, strict=True)]
        for ps, rs in zip(masks_p, masks_r, strict=True)
    ]
    return np.array(rows)


def _image_rows(
    split: str,
    names: Sequence[str],
    groups: Sequence[str],
    sizes: Sequence[tuple[int, int]],
    joined: dict[str, "np.ndarray"],
) -> list[dict[str, Any]]:
    dice_NF, iou_NF = dice_and_iou(joined["counts"])
    rows = []
    for n, name in enumerate(names):
        for f in range(dice_NF.shape[1]):
            tp, fp, fn = (int(v) for v in joined["counts"][n, f])
            rows.append(
                {
                    "split": split,
                    "image_id": name,
                    "class_id": f + 1,
                    "group_id": groups[n],
                    "height": sizes[n][0],
                    "width": sizes[n][1],
                    "n_valid": int(joined["valid"][n]),
                    "n_gt": tp + fn,
                    "n_pred": tp + fp,
                    "tp": tp,
                    "fp": fp,
                    "fn": fn,
                    "dice": float(dice_NF[n, f]),
                    "iou": float(iou_NF[n, f]),
                    "nsd": float(joined["boundary"][n, f, 0]),
                    "hd95": float(joined["boundary"][n, f, 1]),
                    "nll": float(joined["nll"][n, f]),
                    "brier": float(joined["brier"][n, f]),
                }
            )
    return rows


def _summary(
    joined: dict[str, "np.ndarray"], n_gt: "np.ndarray", groups: tuple[str, ...], policy: EmptyPolicy
) -> dict[str, Any]:
    dice_NF, iou_NF = dice_and_iou(joined["counts"])
    dice_micro, iou_micro = micro_scores(joined["counts"])
    calibration = {
        name: mean_or_nan(group_means(joined[name].mean(axis=1), groups))
        for name in ("nll", "brier", "nll_t", "brier_t")
    }
    return {
        "dice": primary_score(dice_NF, n_gt, groups, policy),
        "iou": primary_score(iou_NF, n_gt, groups, policy),
        "dice_micro": dice_micro,
        "iou_micro": iou_micro,
        "fp_rate_empty": fp_rate_empty(joined["counts"]),
        "n_gt_nonempty": int((n_gt > 0).sum()),
        "n_groups": len(group_means(image_scores(dice_NF, n_gt), groups)),
        "nsd": primary_score(joined["boundary"][..., 0], n_gt, groups),
        "hd95": primary_score(joined["boundary"][..., 1], n_gt, groups),
        **calibration,
    }


def _ece(bins_FB3: "np.ndarray") -> float:
    import numpy as np

    return mean_or_nan(np.array([expected_calibration_error(table) for table in bins_FB3]))


def _bin_rows(split: str, bins: "np.ndarray") -> list[dict[str, Any]]:
    rows = []
    for scaled, by_region in enumerate(bins):
        for region, by_class in zip(("all", "boundary"), by_region, strict=True):
            for f, table in enumerate(by_class):
                for b, (n, sum_p, sum_y) in enumerate(table):
                    row = {"split": split, "class_id": f + 1, "region": region, "scaled": scaled, "bin": b}
                    rows.append(row | {"n": int(n), "sum_p": float(sum_p), "sum_y": float(sum_y)})
    return rows


def _threshold_rows(
    split: str,
    thresholds_T: "np.ndarray",
    above_TNF3: "np.ndarray",
    n_gt: "np.ndarray",
    groups: tuple[str, ...],
    policy: EmptyPolicy,
) -> tuple[list[dict[str, Any]], "np.ndarray"]:
    """Rows of thresholds.csv, and the primary score at every threshold."""
    import numpy as np

    rows: list[dict[str, Any]] = []
    dice_T = []
    for threshold, counts_NF3 in zip(thresholds_T, above_TNF3, strict=True):
        dice_NF, _ = dice_and_iou(counts_NF3)
        dice_T.append(primary_score(dice_NF, n_gt, groups, policy))
        for f in range(n_gt.shape[1]):
            score = primary_score(dice_NF[:, [f]], n_gt[:, [f]], groups, policy)
            rows.append({"split": split, "class_id": f + 1, "threshold": float(threshold), "dice": score})
    rows.sort(key=lambda row: row["class_id"])
    return rows, np.array(dice_T)


def best_threshold(scores: SplitScores) -> int | None:
    """Position of the threshold with the best validation score, the one nearest 0 among equals; None without any."""
    import numpy as np

    if not len(scores.dice_T) or np.isnan(scores.dice_T).all():
        return None
    best = np.flatnonzero(scores.dice_T == np.nanmax(scores.dice_T))
    return int(best[np.argmin(np.abs(scores.thresholds_T[best]))])
