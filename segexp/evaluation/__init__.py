"""From counts to scores. numpy only: the summary of a run and `segexp compare` use these very functions.

Shapes: N images, F foreground classes. NaN means "undefined here", and is never replaced by 0 or 1.
"""

from collections.abc import Sequence
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


FEWEST_HOLDING = 10
"""With fewer images (groups) that hold a class, the number of such images is too uncertain for a linear correction."""


def linearised_scores(
    cells_NF: np.ndarray, n_reference_NF: np.ndarray, group_ids: tuple[str, ...], policy: EmptyPolicy = "reference"
) -> np.ndarray:
    """One value per image (group) for tests: their mean is `primary_score` up to rounding, their spread its error.

    `image_scores` weighs a class by N / N_c, so its values vary most with which images hold a rare class. But N_c is
    drawn with the images: to first order (delta method of a ratio) an image without class c stands for its mean A_c,
    not for 0. Without groups, u_i = m + (1 / C') * sum over classes c in reference i of N / N_c * (d_ic - A_c), m the
    score. With groups g of n_g images, n_gc of them holding c (means over groups: n, n_c), the group's mean of
    `image_scores` gets (1 / C') * sum over all c of A_c * (n_g / n - n_gc / n_c) added, the same without groups.
    This sums to 0 over groups, so the mean needs no recentring.

    Not corrected, as there is nothing to correct or too little to do so: the policy both_empty_one, classes that all
    images hold, and those held in fewer than 10 groups. Arguments as of `primary_score`; NaN where nothing enters.
    """
    raw_N = image_scores(cells_NF, n_reference_NF, policy)
    values_U = group_means(raw_N, group_ids)
    enters_N = ~np.isnan(raw_N)
    held_NF = (n_reference_NF > 0)[:, (n_reference_NF > 0).any(axis=0)]
    if policy == "both_empty_one" or (held_NF == enters_N[:, None]).all():
        return values_U
    names = [group or n for n, group in enumerate(group_ids)]
    position = {name: u for u, name in enumerate(dict.fromkeys(names))}
    unit_N = np.array([position[name] for name in names])
    n_U = np.bincount(unit_N[enters_N], minlength=len(values_U))
    G, occurring = np.count_nonzero(n_U), cells_NF[:, (n_reference_NF > 0).any(axis=0)]
    for held_N, cells_N in zip(held_NF.T, occurring.T, strict=True):
        n_holding_U = np.bincount(unit_N[held_N], minlength=len(values_U))
        if np.count_nonzero(n_holding_U) < FEWEST_HOLDING or (held_N == enters_N).all():
            continue
        in_mean = cells_N[held_N] / n_U[unit_N[held_N]] / G  # each image counts 1 / n_g in its group
        mean = in_mean.sum() * n_U.sum() / held_N.sum()
        values_U += mean * G * (n_U / n_U.sum() - n_holding_U / held_N.sum()) / held_NF.shape[1]
    return values_U


def case_sums(values_N: np.ndarray, cases: Sequence[str]) -> np.ndarray:
    """Sums over the images of each case, in order of first appearance. values_N: (N, ...) of any kind of number."""
    position = {case: n for n, case in enumerate(dict.fromkeys(cases))}
    sums_M = np.zeros((len(position), *values_N.shape[1:]), dtype=values_N.dtype)
    np.add.at(sums_M, [position[case] for case in cases], values_N)
    return sums_M


def case_means(values_N: np.ndarray, valid_N: np.ndarray, cases: Sequence[str]) -> np.ndarray:
    """Means over the valid pixels of each case, from the means over the ``valid_N`` pixels of its images."""
    weight_N = valid_N.reshape(-1, *[1] * (values_N.ndim - 1)).astype(np.float64)
    sums_M = case_sums(np.where(weight_N > 0, values_N * weight_N, 0.0), cases)
    with np.errstate(invalid="ignore"):
        means_M: np.ndarray = sums_M / case_sums(weight_N, cases)
    return means_M


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
    dice_F, iou_F = dice_and_iou(counts_NF3.sum(axis=0))
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
