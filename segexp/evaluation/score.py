"""Score a split in one pass: the rows of its tables, and its summary.

Shapes: N images, F foreground classes, T thresholds. Images have equal weight (within their group), see
`segexp.evaluation`; pixels have equal weight only where a measure says "pooled".
"""

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from segexp.activations.output import HeadMode
from segexp.errors import DivergedError
from segexp.evaluation import (
    EmptyPolicy,
    dice_and_iou,
    expected_calibration_error,
    fp_rate_empty,
    group_means,
    image_scores,
    mean_or_nan,
    micro_scores,
    primary_score,
)
from segexp.evaluation.boundary import Nsd, boundary_scores
from segexp.evaluation.measures import (
    RELIABILITY_BINS,
    bin_edges,
    boundary_band,
    counts_above,
    fit_temperature,
    histograms,
    nll_and_brier,
    one_vs_rest,
    reliability_bins,
    threshold_grid,
)
from segexp.evaluation.predict import Scored, counted_masks, mask_counts
from segexp.evaluation.ranking import Ranking

TEMPERATURE_PIXELS = 1_000_000  # the temperature is fitted on at most this many validation pixels, evenly spaced
REGIONS = ("all", "boundary")  # regions of bins.csv: all valid pixels, and those near the reference boundary


@dataclass(frozen=True)
class FittedOnValidation:
    """temperature: NaN for a head without probabilities. edges_T: thresholds to try, as indices of bin edges."""

    temperature: float
    edges_T: np.ndarray


def fit_on_validation(scored: Iterable[Scored], mode: HeadMode, n_pixels: int) -> FittedOnValidation:
    """Temperature and threshold grid from the validation split; ``n_pixels`` is its number of scored pixels."""
    stride = max(1, -(-n_pixels // TEMPERATURE_PIXELS))
    pooled, phi_PK, truth_P = None, [], []
    seen = 0
    for batch in scored:
        truth, valid = counted_masks(batch.target_NHW, batch.prediction)
        tables = histograms(batch.prediction.evidence_NFHW(), truth, valid).sum(0, keepdim=True).cpu().numpy()
        pooled = tables if pooled is None else pooled + tables
        log_odds = batch.prediction.log_odds_NKHW
        if log_odds is not None:
            # The stride runs on from batch to batch: the batch size does not change which pixels are taken.
            chosen = slice(-seen % stride, None, stride)
            by_pixel = log_odds.movedim(1, -1)[valid]
            phi_PK.append(by_pixel[chosen].double().cpu().numpy())
            of_pixel = batch.target_NHW[valid] if mode == "softmax" else truth.movedim(1, -1)[valid]
            truth_P.append(of_pixel[chosen].cpu().numpy())
            seen += len(by_pixel)
    assert pooled is not None, "the validation split is never empty"
    edges = np.array([], dtype=np.int64) if mode == "softmax" else threshold_grid(pooled)
    temperature = fit_temperature(np.concatenate(phi_PK), np.concatenate(truth_P), mode) if phi_PK else float("nan")
    return FittedOnValidation(temperature, edges)


@dataclass(frozen=True)
class Conventions:
    """What scores depend on besides predictions and reference.

    classes: those that are scored. boundary_band: in pixels.
    surface_tolerance: in the unit of ``spacing`` (height and width of a native pixel). nsd: see `boundary_scores`.
    threshold: evidence above which a pixel is foreground; None: the decision of the head.
    """

    classes: range
    mode: HeadMode
    empty_policy: EmptyPolicy
    boundary_band: int
    surface_tolerance: float
    spacing: tuple[float, float]
    threshold: float | None = None
    nsd: Nsd = "pixel"


@dataclass(frozen=True)
class ImageMeasures:
    """Measures per image, most of them per class. `_t`: at the fitted temperature.

    size_N2: height and width as scored. counts_NF3 and above_NTF3: TP, FP, FN of the decision, and at every threshold.
    boundary_NF2: NSD and HD95.
    """

    index_N: np.ndarray
    size_N2: np.ndarray
    valid_N: np.ndarray
    counts_NF3: np.ndarray
    above_NTF3: np.ndarray
    boundary_NF2: np.ndarray
    nll_NF: np.ndarray
    brier_NF: np.ndarray
    nll_t_NF: np.ndarray
    brier_t_NF: np.ndarray

    @property
    def n_gt_NF(self) -> np.ndarray:
        """Pixels of each class in the reference."""
        total: np.ndarray = self.counts_NF3[..., 0] + self.counts_NF3[..., 2]
        return total


@dataclass
class PixelSums:
    """Sums over all valid pixels of a split. bins_SRFB3: n, sum p, sum y by scaling (none, temperature) and region.

    ranking_F: the pixels of each class, ranked by evidence.
    """

    bins_SRFB3: torch.Tensor
    ranking_F: list[Ranking]
    ties: int = 0
    clipped: int = 0
    pixels: int = 0


def _measure(
    scored: Iterable[Scored], split: str, fitted: FittedOnValidation, conventions: Conventions
) -> tuple[ImageMeasures, PixelSums]:
    """One pass over the predictions of a split. Raises DivergedError when a logit is not finite."""
    n_classes = len(conventions.classes)
    sums = PixelSums(
        torch.zeros(2, len(REGIONS), n_classes, RELIABILITY_BINS, 3, dtype=torch.float64),
        [Ranking() for _ in conventions.classes],
    )
    batches = []
    for batch in scored:
        # NaN > 0 is False: a dead network would score as an empty mask.
        if not bool(batch.prediction.logits_NKHW.isfinite().all()):
            raise DivergedError(f"logits on the {split} images are not finite with the selected weights")
        truth, valid = counted_masks(batch.target_NHW, batch.prediction)
        evidence = batch.prediction.evidence_NFHW()
        evidence_tables = histograms(evidence, truth, valid).cpu().numpy()
        batches.append(_measured(batch, truth, valid, evidence_tables, fitted, conventions))
        of_classes = (of_all.movedim(1, 0).cpu().numpy() for of_all in (evidence, truth))
        kept_NHW = valid.cpu().numpy()
        for ranking, evidence_NHW, truth_NHW in zip(sums.ranking_F, *of_classes, strict=True):
            ranking.add(evidence_NHW[kept_NHW], truth_NHW[kept_NHW])
        sums.ties += int((batch.prediction.ties_NHW() & valid).sum())
        sums.clipped += int((batch.prediction.clipped_NHW() & valid).sum())
        sums.pixels += int(valid.sum())
        log_odds = batch.prediction.log_odds_NKHW
        if log_odds is None:
            continue
        everywhere = valid.unsqueeze(1).expand_as(truth)
        band = boundary_band(truth, conventions.boundary_band) & everywhere
        for bins_RFB3, divisor in zip(sums.bins_SRFB3, (1.0, fitted.temperature), strict=True):
            p = one_vs_rest(log_odds.double() / divisor, batch.prediction.mode, batch.prediction.first).sigmoid()
            for region, counted in enumerate((everywhere, band)):
                bins_RFB3[region] += reliability_bins(p, truth, counted).cpu()
    names = [field.name for field in dataclasses.fields(ImageMeasures)]
    joined = ImageMeasures(*(np.concatenate([getattr(batch, name) for batch in batches]) for name in names))
    return joined, sums


def _measured(
    batch: Scored,
    truth_NFHW: torch.Tensor,
    valid_NHW: torch.Tensor,
    evidence_tables: np.ndarray,
    fitted: FittedOnValidation,
    conventions: Conventions,
) -> ImageMeasures:
    prediction = batch.prediction
    decided = prediction.foreground_NFHW()
    if conventions.threshold is not None:
        decided = prediction.evidence_NFHW().double() > conventions.threshold
    plain = nll_and_brier(prediction, truth_NFHW, valid_NHW)
    scaled = nll_and_brier(prediction, truth_NFHW, valid_NHW, fitted.temperature)
    # Ignored pixels belong to neither mask; distances are in native pixels, or in the unit of the spacing.
    masks_p, masks_r = ((m & valid_NHW.unsqueeze(1)).cpu().numpy() for m in (decided, truth_NFHW))
    spacing = (conventions.spacing[0] * batch.pixel_size[0], conventions.spacing[1] * batch.pixel_size[1])
    boundary = [
        [
            boundary_scores(p, r, conventions.surface_tolerance, spacing, conventions.nsd)
            for p, r in zip(ps, rs, strict=True)
        ]
        for ps, rs in zip(masks_p, masks_r, strict=True)
    ]
    return ImageMeasures(
        np.array(batch.indices),
        np.array([tuple(batch.target_NHW.shape[1:])] * len(batch.indices)),
        valid_NHW.sum((1, 2)).cpu().numpy(),
        mask_counts(decided, truth_NFHW, valid_NHW).cpu().numpy(),
        counts_above(evidence_tables, fitted.edges_T).swapaxes(0, 1),
        np.array(boundary),
        *(measure_NF.cpu().numpy() for measure_NF in (*plain, *scaled)),
    )


@dataclass(frozen=True)
class SplitScores:
    """All scores of one split. Tables are rows as in `segexp.records.COLUMNS`.

    image_scores_N: Dice of each image (mean over the classes in its reference), to choose examples; indices_N: the
    images it belongs to. dice_T: the primary score at every threshold.
    """

    images: list[dict[str, Any]]
    bins: list[dict[str, Any]]
    thresholds: list[dict[str, Any]]
    summary: dict[str, Any]
    indices_N: tuple[int, ...]
    image_scores_N: np.ndarray
    thresholds_T: np.ndarray
    dice_T: np.ndarray


def split_scores(
    scored: Iterable[Scored],
    split: str,
    image_ids: Sequence[str],
    group_ids: Sequence[str],
    fitted: FittedOnValidation,
    conventions: Conventions,
) -> SplitScores:
    """Score one split in one pass. image_ids and group_ids are indexed by image, as in the image set.

    Raises DivergedError when a logit is not finite.
    """
    measures, sums = _measure(scored, split, fitted, conventions)
    indices = tuple(measures.index_N.tolist())
    groups = tuple(group_ids[i] for i in indices)
    policy = conventions.empty_policy
    thresholds_T = bin_edges()[fitted.edges_T]
    threshold_rows, dice_T = _threshold_rows(split, thresholds_T, measures, groups, conventions)
    return SplitScores(
        images=_image_rows(split, [image_ids[i] for i in indices], groups, measures, conventions.classes),
        bins=_bin_rows(split, sums, conventions.classes),
        thresholds=threshold_rows,
        summary=_summary(measures, sums, groups, policy),
        indices_N=indices,
        image_scores_N=_dice_per_image(measures),
        thresholds_T=thresholds_T,
        dice_T=dice_T,
    )


def best_threshold(scores: SplitScores) -> int | None:
    """Position of the threshold with the best score, the one nearest 0 among equals; None where none is defined."""
    if not len(scores.dice_T) or np.isnan(scores.dice_T).all():
        return None
    best = np.flatnonzero(scores.dice_T == np.nanmax(scores.dice_T))
    return int(best[np.argmin(np.abs(scores.thresholds_T[best]))])


def _dice_per_image(measures: ImageMeasures) -> np.ndarray:
    """Mean Dice over the classes in each image's reference; NaN where it is empty."""
    dice_NF, _ = dice_and_iou(measures.counts_NF3)
    held = measures.n_gt_NF > 0
    total = np.where(held, np.nan_to_num(dice_NF), 0.0).sum(axis=1)
    return np.where(held.any(axis=1), total / np.maximum(held.sum(axis=1), 1), np.nan)


def _summary(measures: ImageMeasures, sums: PixelSums, groups: tuple[str, ...], policy: EmptyPolicy) -> dict[str, Any]:
    """ece15 is NaN for a head without probabilities: its bins are empty."""
    n_gt_NF = measures.n_gt_NF
    dice_NF, iou_NF = dice_and_iou(measures.counts_NF3)
    dice_micro, iou_micro = micro_scores(measures.counts_NF3)
    plain, scaled = (
        mean_or_nan(np.array([expected_calibration_error(table) for table in bins_RFB3[0].numpy()]))
        for bins_RFB3 in sums.bins_SRFB3
    )
    auroc, ap, ap_error = (mean_or_nan(values_F) for values_F in np.array([r.scores() for r in sums.ranking_F]).T)
    return {
        "dice": primary_score(dice_NF, n_gt_NF, groups, policy),
        "iou": primary_score(iou_NF, n_gt_NF, groups, policy),
        "dice_micro": dice_micro,
        "iou_micro": iou_micro,
        "fp_rate_empty": fp_rate_empty(measures.counts_NF3),
        "n_gt_nonempty": int((n_gt_NF > 0).sum()),
        "n_groups": len(group_means(image_scores(dice_NF, n_gt_NF), groups)),
        "nsd": primary_score(measures.boundary_NF2[..., 0], n_gt_NF, groups),
        "hd95": primary_score(measures.boundary_NF2[..., 1], n_gt_NF, groups),
        **{
            name: mean_or_nan(group_means(getattr(measures, f"{name}_NF").mean(axis=1), groups))
            for name in ("nll", "brier", "nll_t", "brier_t")
        },
        "ece15": plain,
        "ece15_t": scaled,
        "frac_tie": sums.ties / max(sums.pixels, 1),
        "frac_clipped": sums.clipped / max(sums.pixels, 1),
        "auroc": auroc,
        "ap": ap,
        "ap_error": ap_error,
        "hd95_missed": int(((n_gt_NF > 0) & (measures.counts_NF3[..., 0] + measures.counts_NF3[..., 1] == 0)).sum()),
    }


def _image_rows(
    split: str, names: Sequence[str], groups: Sequence[str], measures: ImageMeasures, classes: range
) -> list[dict[str, Any]]:
    dice_NF, iou_NF = dice_and_iou(measures.counts_NF3)
    cells = {"dice": dice_NF, "iou": iou_NF}
    cells |= {"nsd": measures.boundary_NF2[..., 0], "hd95": measures.boundary_NF2[..., 1]}
    cells |= {"nll": measures.nll_NF, "brier": measures.brier_NF}
    rows = []
    for n, name in enumerate(names):
        height, width = measures.size_N2[n].tolist()
        for f, class_id in enumerate(classes):
            tp, fp, fn = measures.counts_NF3[n, f].tolist()
            row = {"split": split, "image_id": name, "class_id": class_id, "group_id": groups[n]}
            row |= {"height": height, "width": width, "n_valid": int(measures.valid_N[n])}
            row |= {"n_gt": tp + fn, "n_pred": tp + fp, "tp": tp, "fp": fp, "fn": fn}
            rows.append(row | {column: float(values_NF[n, f]) for column, values_NF in cells.items()})
    return rows


def _bin_rows(split: str, sums: PixelSums, classes: range) -> list[dict[str, Any]]:
    """Rows of bins.csv; none for a head without probabilities."""
    if not bool(sums.bins_SRFB3[0, 0, ..., 0].sum() > 0):
        return []
    rows = []
    for scaled, by_region in enumerate(sums.bins_SRFB3.numpy()):
        for region, by_class in zip(REGIONS, by_region, strict=True):
            for class_id, table in zip(classes, by_class, strict=True):
                for b, (n, sum_p, sum_y) in enumerate(table):
                    row = {"split": split, "class_id": class_id, "region": region, "scaled": scaled, "bin": b}
                    rows.append(row | {"n": int(n), "sum_p": float(sum_p), "sum_y": float(sum_y)})
    return rows


def _threshold_rows(
    split: str, thresholds_T: np.ndarray, measures: ImageMeasures, groups: tuple[str, ...], conventions: Conventions
) -> tuple[list[dict[str, Any]], np.ndarray]:
    """Rows of thresholds.csv, and the primary score at every threshold."""
    n_gt_NF, policy = measures.n_gt_NF, conventions.empty_policy
    rows: list[dict[str, Any]] = []
    dice_T = []
    for t, threshold in enumerate(thresholds_T):
        dice_NF, _ = dice_and_iou(measures.above_NTF3[:, t])
        dice_T.append(primary_score(dice_NF, n_gt_NF, groups, policy))
        for f, class_id in enumerate(conventions.classes):
            score = primary_score(dice_NF[:, [f]], n_gt_NF[:, [f]], groups, policy)
            rows.append({"split": split, "class_id": class_id, "threshold": float(threshold), "dice": score})
    rows.sort(key=lambda row: row["class_id"])
    return rows, np.array(dice_T)
