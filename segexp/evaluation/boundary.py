"""Boundary measures of two masks: normalised surface Dice in two variants, and the 95 % Hausdorff distance."""

from typing import Literal

import numpy as np
from scipy import ndimage

Nsd = Literal["pixel", "surface"]
"""pixel: the pixels of the boundary count, one each. surface: elements of the contour count by their length."""


def boundary_scores(
    predicted_HW: np.ndarray,
    reference_HW: np.ndarray,
    tolerance: float,
    spacing: tuple[float, float] = (1.0, 1.0),
    nsd: Nsd = "pixel",
) -> tuple[float, float]:
    """(NSD, HD95) of two boolean masks: normalised surface Dice and 95 % Hausdorff distance.

    NSD (Nikolov et al. 2021, doi 10.2196/26151): share of both boundaries that lies within ``tolerance`` of the other
    one. nsd "pixel": of the pixels at the boundary, as MONAI's SurfaceDiceMetric counts them. "surface": of the length
    of the contour, see `contour_lengths`, as DeepMind's surface-distance computes it. HD95: the larger of the two
    directed 95th percentiles of distances between the pixels at the boundary, the same in both variants.
    ``tolerance``, ``spacing`` (pixel height, width) and HD95 are in the same unit: pixels, or mm where the spacing is
    known. A mask ends where the image ends: the image border is boundary. Reference empty: both NaN. Prediction empty:
    NSD 0, HD95 the diagonal of the image.
    """
    if not reference_HW.any():
        return float("nan"), float("nan")
    if not predicted_HW.any():
        return 0.0, float(np.hypot(predicted_HW.shape[0] * spacing[0], predicted_HW.shape[1] * spacing[1]))
    # Distances between the boundaries do not depend on pixels outside the smallest window that holds both masks.
    both = predicted_HW | reference_HW
    rows, columns = np.flatnonzero(both.any(axis=1)), np.flatnonzero(both.any(axis=0))
    window = slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)
    # Pixels with a 4-neighbour outside the mask.
    pixels_p, pixels_r = ((m & ~ndimage.binary_erosion(m))[window] for m in (predicted_HW, reference_HW))
    to_reference, to_predicted = _distances(pixels_p, pixels_r, spacing)
    hd95 = float(max(np.percentile(to_reference, 95), np.percentile(to_predicted, 95)))
    if nsd == "pixel":
        close = (to_reference <= tolerance).sum() + (to_predicted <= tolerance).sum()
        return float(close / (to_reference.size + to_predicted.size)), hd95
    lengths_p, lengths_r = (contour_lengths(m[window], spacing) for m in (predicted_HW, reference_HW))
    to_reference, to_predicted = _distances(lengths_p > 0, lengths_r > 0, spacing)
    close = lengths_p[lengths_p > 0][to_reference <= tolerance].sum()
    close += lengths_r[lengths_r > 0][to_predicted <= tolerance].sum()
    # Sums in another order may differ in the last digit.
    return min(float(close / (lengths_p.sum() + lengths_r.sum())), 1.0), hd95


def contour_lengths(mask_HW: np.ndarray, spacing: tuple[float, float]) -> np.ndarray:
    """Length of the contour around each corner of the pixels: (H + 1, W + 1), 0 away from the boundary.

    Marching squares: the contour passes halfway between the centres of neighbouring pixels in and outside the mask.
    Between the four centres around a corner it is straight (as long as a pixel is high or wide) or cuts off one centre,
    or two opposite ones (half a pixel's diagonal each). What is outside the image is outside the mask.
    """
    height, width = spacing
    cut = np.hypot(height, width) / 2
    upright, level = height, width
    lengths_16 = np.array(
        [0, cut, cut, level, cut, upright, 2 * cut, cut, cut, 2 * cut, upright, cut, level, cut, cut, 0]
    )
    padded = np.pad(mask_HW, 1).astype(np.int64)
    code = 8 * padded[:-1, :-1] + 4 * padded[:-1, 1:] + 2 * padded[1:, :-1] + padded[1:, 1:]
    found: np.ndarray = lengths_16[code]
    return found


def _distances(
    first_HW: np.ndarray, second_HW: np.ndarray, spacing: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Distance of each point of the first set to the second set, and the other way round."""
    to_second = ndimage.distance_transform_edt(~second_HW, sampling=spacing)[first_HW]
    return to_second, ndimage.distance_transform_edt(~first_HW, sampling=spacing)[second_HW]
