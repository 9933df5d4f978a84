"""Score a split once, with the selected weights: the rows of its tables, and its summary.

Shapes: N images, F foreground classes, T thresholds. Measures follow segexp.metrics; images are weighted alike
(within their group), pixels only where a measure says "pooled".
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from segexp.evaluation.counted import REGIONS, Conventions, ImageMeasures, PixelSums, count
from segexp.evaluation.fitted import FittedOnValidation
from segexp.evaluation.predict import Scored
from segexp.metrics.calibration import expected_calibration_error
from segexp.metrics.ranking import auroc_and_ap, bin_edges
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
    measures, sums = count(scored, split, fitted, conventions)
    indices = tuple(int(i) for i in measures.index_N)
    groups = tuple(group_ids[i] for i in indices)
    policy = conventions.empty_policy
    thresholds_T = bin_edges()[fitted.edges_T]
    threshold_rows, dice_T = _threshold_rows(split, thresholds_T, measures, groups, policy)
    return SplitScores(
        images=_image_rows(split, [image_ids[i] for i in indices], groups, measures),
        bins=_bin_rows(split, sums),
        thresholds=threshold_rows,
        summary=_image_summary(measures, groups, policy) | _pixel_summary(sums),
        indices_N=indices,
        image_scores_N=_scores_alone(measures),
        thresholds_T=thresholds_T,
        dice_T=dice_T,
    )


def best_threshold(scores: SplitScores) -> int | None:
    """Position of the threshold with the best validation score, the one nearest 0 among equals; None without any."""
    import numpy as np

    if not len(scores.dice_T) or np.isnan(scores.dice_T).all():
        return None
    best = np.flatnonzero(scores.dice_T == np.nanmax(scores.dice_T))
    return int(best[np.argmin(np.abs(scores.thresholds_T[best]))])


def _scores_alone(measures: ImageMeasures) -> "np.ndarray":
    """Mean Dice over the classes each image's reference holds; NaN where it holds none."""
    import numpy as np

    dice_NF, _ = dice_and_iou(measures.counts_NF3)
    held = measures.n_gt_NF > 0
    total = np.where(held, np.nan_to_num(dice_NF), 0.0).sum(axis=1)
    return np.where(held.any(axis=1), total / np.maximum(held.sum(axis=1), 1), np.nan)


def _image_summary(measures: ImageMeasures, groups: tuple[str, ...], policy: EmptyPolicy) -> dict[str, Any]:
    n_gt_NF = measures.n_gt_NF
    dice_NF, iou_NF = dice_and_iou(measures.counts_NF3)
    dice_micro, iou_micro = micro_scores(measures.counts_NF3)
    calibration = {
        "nll": measures.nll_NF,
        "brier": measures.brier_NF,
        "nll_t": measures.nll_t_NF,
        "brier_t": measures.brier_t_NF,
    }
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
        **{name: mean_or_nan(group_means(of_NF.mean(axis=1), groups)) for name, of_NF in calibration.items()},
    }


def _pixel_summary(sums: PixelSums) -> dict[str, Any]:
    """ece15 is NaN where no bin holds a pixel: a head without probabilities."""
    import numpy as np

    plain, scaled = (bins_RFB3[0].numpy() for bins_RFB3 in sums.bins_SRFB3)
    ranks = [auroc_and_ap(table) for table in sums.ranking_F2B]
    return {
        "ece15": mean_or_nan(np.array([expected_calibration_error(table) for table in plain])),
        "ece15_t": mean_or_nan(np.array([expected_calibration_error(table) for table in scaled])),
        "frac_tie": sums.ties / max(sums.pixels, 1),
        "frac_clipped": sums.clipped / max(sums.pixels, 1),
        "auroc": mean_or_nan(np.array([auroc for auroc, _ in ranks])),
        "ap": mean_or_nan(np.array([ap for _, ap in ranks])),
    }


def _image_rows(
    split: str, names: Sequence[str], groups: Sequence[str], measures: ImageMeasures
) -> list[dict[str, Any]]:
    dice_NF, iou_NF = dice_and_iou(measures.counts_NF3)
    rows = []
    for n, name in enumerate(names):
        for f in range(dice_NF.shape[1]):
            tp, fp, fn = (int(v) for v in measures.counts_NF3[n, f])
            rows.append(
                {
                    "split": split,
                    "image_id": name,
                    "class_id": f + 1,
                    "group_id": groups[n],
                    "height": int(measures.size_N2[n, 0]),
                    "width": int(measures.size_N2[n, 1]),
                    "n_valid": int(measures.valid_N[n]),
                    "n_gt": tp + fn,
                    "n_pred": tp + fp,
                    "tp": tp,
                    "fp": fp,
                    "fn": fn,
                    "dice": float(dice_NF[n, f]),
                    "iou": float(iou_NF[n, f]),
                    "nsd": float(measures.boundary_NF2[n, f, 0]),
                    "hd95": float(measures.boundary_NF2[n, f, 1]),
                    "nll": float(measures.nll_NF[n, f]),
                    "brier": float(measures.brier_NF[n, f]),
                }
            )
    return rows


def _bin_rows(split: str, sums: PixelSums) -> list[dict[str, Any]]:
    """Rows of bins.csv; none for a head without probabilities."""
    if not bool(sums.bins_SRFB3[0, 0, ..., 0].sum() > 0):
        return []
    rows = []
    for scaled, by_region in enumerate(sums.bins_SRFB3.numpy()):
        for region, by_class in zip(REGIONS, by_region, strict=True):
            for f, table in enumerate(by_class):
                for b, (n, sum_p, sum_y) in enumerate(table):
                    row = {"split": split, "class_id": f + 1, "region": region, "scaled": scaled, "bin": b}
                    rows.append(row | {"n": int(n), "sum_p": float(sum_p), "sum_y": float(sum_y)})
    return rows


def _threshold_rows(
    split: str, thresholds_T: "np.ndarray", measures: ImageMeasures, groups: tuple[str, ...], policy: EmptyPolicy
) -> tuple[list[dict[str, Any]], "np.ndarray"]:
    """Rows of thresholds.csv, and the primary score at every threshold."""
    import numpy as np

    n_gt_NF = measures.n_gt_NF
    rows: list[dict[str, Any]] = []
    dice_T = []
    for t, threshold in enumerate(thresholds_T):
        dice_NF, _ = dice_and_iou(measures.above_NTF3[:, t])
        dice_T.append(primary_score(dice_NF, n_gt_NF, groups, policy))
        for f in range(n_gt_NF.shape[1]):
            score = primary_score(dice_NF[:, [f]], n_gt_NF[:, [f]], groups, policy)
            rows.append({"split": split, "class_id": f + 1, "threshold": float(threshold), "dice": score})
    rows.sort(key=lambda row: row["class_id"])
    return rows, np.array(dice_T)
