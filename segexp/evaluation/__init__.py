"""From counts to scores. numpy only: the summary of a run and `segexp compare` use these very functions.

Shapes: N images, F foreground classes. NaN means "undefined here", and is never replaced by 0 or 1.
"""

from typing import Literal

import numpy as np

EmptyPolicy = Literal["reference", "both_empty_one"]
"""reference: a cell counts iff the reference holds the class. both_empty_one: all count, 1 where both are empty.

`reference` is the default because only the reference then decides which images are averaged: leaving out the images
where reference AND prediction are empty lets a model choose its own sample.
"""


def dice_and_iou(counts_NF3: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Dice and IoU per image and class from tp, fp, fn; NaN iff 2 tp + fp + fn = 0. Two float64 (N, F) arrays."""
    tp, fp, fn = (counts_NF3[..., i].astype(np.float64) for i in range(3))
    union = tp + fp + fn
    with np.errstate(invalid="ignore"):
        return 2 * tp / (tp + union), tp / union


def image_scores(cells_NF: np.ndarray, n_reference_NF: np.ndarray, policy: EmptyPolicy = "reference") -> np.ndarray:
    """One value per image whose mean is the primary score: u_N, NaN for images that do not enter.

    With policy `reference`: u_i = (N / C') * sum over classes c in reference i of d_ic / N_c, where N_c images hold
    class c, C' classes occur and N images hold any. mean(u) equals the mean over the images holding c, then over c.
    With `both_empty_one` every cell enters with equal weight and an undefined cell, empty in both, is 1.
    n_reference_NF: reference pixels (or any value > 0 where the reference holds the class).
    """
    if policy == "both_empty_one":
        return np.where(np.isnan(cells_NF), 1.0, cells_NF).mean(axis=1)
    held = n_reference_NF > 0
    images_per_class = held.sum(axis=0)
    occurring = images_per_class > 0
    enters = held.any(axis=1)
    u_N = np.full(len(cells_NF), np.nan)
    if not enters.any():
        return u_N
    weighted = np.where(held, cells_NF, 0.0)[:, occurring] / images_per_class[occurring]
    u_N[enters] = weighted[enters].sum(axis=1) * enters.sum() / occurring.sum()
    return u_N


def group_means(values_N: np.ndarray, group_ids: tuple[str, ...]) -> np.ndarray:
    """Values averaged within each group (patient, volume, video), NaN left out; an image without group is its own.

    Returned in order of first appearance; groups without a single value are NaN.
    """
    if not any(group_ids):
        return np.array(values_N, dtype=np.float64)
    rows: dict[object, list[float]] = {}
    for index, (value, group) in enumerate(zip(values_N, group_ids, strict=True)):
        rows.setdefault(group or index, []).append(float(value))
    return np.array([np.nan if np.isnan(v).all() else np.nanmean(v) for v in rows.values()], dtype=np.float64)


def mean_or_nan(values: np.ndarray) -> float:
    """Mean of the values that are not NaN; NaN when there are none."""
    kept = values[~np.isnan(values)]
    return float(kept.mean()) if kept.size else float("nan")


def primary_score(
    cells_NF: np.ndarray, n_reference_NF: np.ndarray, group_ids: tuple[str, ...], policy: EmptyPolicy = "reference"
) -> float:
    """The score of a data set: mean over groups of the mean over their images of `image_scores`."""
    return mean_or_nan(group_means(image_scores(cells_NF, n_reference_NF, policy), group_ids))


def micro_scores(counts_NF3: np.ndarray) -> tuple[float, float]:
    """Dice and IoU of the counts pooled over all images, averaged over the classes where they are defined."""
    dice_F, iou_F = dice_and_iou(counts_NF3.sum(axis=0, keepdims=True))
    return mean_or_nan(dice_F), mean_or_nan(iou_F)


def fp_rate_empty(counts_NF3: np.ndarray) -> float:
    """Share of the cells absent from the reference where any pixel is predicted; NaN when no cell is absent."""
    tp, fp, fn = (counts_NF3[..., i] for i in range(3))
    absent = (tp + fn) == 0
    return float((fp[absent] > 0).mean()) if absent.any() else float("nan")


def expected_calibration_error(bins_B3: np.ndarray) -> float:
    """Sum over bins of n / total * |mean y - mean p| (Naeini et al. 2015), pixels pooled; NaN without pixels."""
    n, sum_p, sum_y = bins_B3[:, 0], bins_B3[:, 1], bins_B3[:, 2]
    total = n.sum()
    return float(np.abs(sum_y - sum_p).sum() / total) if total > 0 else float("nan")
