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
    n_reference_NF: reference pixels (or any value > 0 where the reference holds the class). Groups of images enter as
    images do, with their `group_cells`.
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


def group_means(values_N: np.ndarray, group_ids: Sequence[str]) -> np.ndarray:
    """Values (N, ...) averaged within each group (patient, volume, video), NaN left out.

    An image without group is its own, even where a group has its name. Returned in order of first appearance; NaN where
    a group has no value.
    """
    known_N = ~np.isnan(values_N)
    units = [group or n for n, (group, _) in enumerate(zip(group_ids, known_N, strict=True))]
    with np.errstate(invalid="ignore"):
        means_U: np.ndarray = case_sums(np.where(known_N, values_N, 0.0), units) / case_sums(
            known_N.astype(float), units
        )
    return means_U


def group_cells(
    cells_NF: np.ndarray, n_reference_NF: np.ndarray, group_ids: Sequence[str], policy: EmptyPolicy = "reference"
) -> tuple[np.ndarray, np.ndarray]:
    """Cells of groups, and whether they hold each class: two (groups, F) arrays for `image_scores`.

    With policy `reference` a group holds a class if one of its images does, and its cell is the mean over these; with
    `both_empty_one`, over all of its images. Without groups: of the images as they are.
    """
    held_NF = n_reference_NF > 0
    if not any(group_ids):
        return cells_NF, held_NF
    entering = (
        np.where(held_NF, cells_NF, np.nan) if policy == "reference" else np.where(np.isnan(cells_NF), 1.0, cells_NF)
    )
    return group_means(entering, group_ids), group_means(held_NF.astype(float), group_ids) > 0


FEWEST_HOLDING = 10
"""With fewer images (groups) that hold a class, the number of such images is too uncertain for a linear correction."""


def linearised_scores(
    cells_NF: np.ndarray, n_reference_NF: np.ndarray, group_ids: Sequence[str], policy: EmptyPolicy = "reference"
) -> np.ndarray:
    """One value per image (group) for tests: their mean is `primary_score` up to rounding, their spread its error.

    `image_scores` weighs a class by N / N_c, so its values vary most with which images (groups) hold a rare class. But
    N_c is drawn with the images: to first order (delta method of a ratio) an image without class c stands for its mean
    A_c, not for 0: u_i = m + (1 / C') * sum over classes c in reference i of N / N_c * (d_ic - A_c), m the score. What
    is added sums to 0 over the images, so the mean needs no recentring.

    Not corrected, as there is nothing to correct or too little to do so: the policy both_empty_one, classes that all
    images hold, and those held in fewer than 10. Arguments as of `primary_score`; NaN where nothing enters.
    """
    cells_UF, held_UF = group_cells(cells_NF, n_reference_NF, group_ids, policy)
    values_U = image_scores(cells_UF, held_UF, policy)
    if policy == "both_empty_one":
        return values_U
    enters_U, occurring = held_UF.any(axis=1), np.flatnonzero(held_UF.any(axis=0))
    N = np.count_nonzero(enters_U)
    for c in occurring:
        held_U = held_UF[:, c]
        holding = np.count_nonzero(held_U)
        if FEWEST_HOLDING <= holding < N:
            mean = (cells_UF[held_U, c] / N).sum() * N / holding
            values_U += mean * N * (enters_U / N - held_U / holding) / len(occurring)
    return values_U


def case_sums(values_N: np.ndarray, cases: Sequence[object]) -> np.ndarray:
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
    cells_NF: np.ndarray, n_reference_NF: np.ndarray, group_ids: Sequence[str], policy: EmptyPolicy = "reference"
) -> float:
    """The score of a data set: for each class the mean over the images (groups) that hold it, then over classes."""
    return mean_or_nan(image_scores(*group_cells(cells_NF, n_reference_NF, group_ids, policy), policy))


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
