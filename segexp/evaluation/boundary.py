"""Boundary measures of two masks: normalised surface Dice in two variants, and the 95 % Hausdorff distance."""

import functools
from typing import Literal

import numpy as np
from scipy import ndimage

Nsd = Literal["pixel", "surface"]
"""pixel: the pixels of the boundary count, one each. surface: elements of the contour count by their length."""


def boundary_scores(
    predicted: np.ndarray,
    reference: np.ndarray,
    tolerance: float,
    spacing: tuple[float, ...] = (1.0, 1.0),
    nsd: Nsd = "pixel",
) -> tuple[float, float]:
    """(NSD, HD95) of two boolean masks, (H, W) or (D, H, W): normalised surface Dice and 95 % Hausdorff distance.

    NSD (Nikolov et al. 2021, doi 10.2196/26151): share of both boundaries that lies within ``tolerance`` of the other
    one. nsd "pixel": of the pixels at the boundary, as MONAI's SurfaceDiceMetric counts them. "surface": of the length
    of the contour, see `contour_lengths`, as DeepMind's surface-distance computes it; images only. HD95: the larger of
    the two directed 95th percentiles of distances between the pixels at the boundary, the same in both variants.
    ``tolerance``, ``spacing`` (of slices in a volume, pixel height, width) and HD95 are in the same unit: pixels, or mm
    where the spacing is known. A mask ends where the image or volume ends: its border is boundary. Reference empty:
    both NaN. Prediction empty: NSD 0, HD95 the diagonal of the image or volume.
    """
    if not reference.any():
        return float("nan"), float("nan")
    if not predicted.any():
        sides = (n * step for n, step in zip(predicted.shape, spacing, strict=True))
        return 0.0, float(functools.reduce(np.hypot, sides))
    # Distances between the boundaries do not depend on pixels outside the smallest window that holds both masks.
    (window,) = ndimage.find_objects((predicted | reference).astype(np.uint8))
    # Pixels with a 4-neighbour (voxels with a 6-neighbour) outside the mask.
    pixels_p, pixels_r = ((m & ~ndimage.binary_erosion(m))[window] for m in (predicted, reference))
    to_reference, to_predicted = _distances(pixels_p, pixels_r, spacing)
    hd95 = float(max(np.percentile(to_reference, 95), np.percentile(to_predicted, 95)))
    if nsd == "pixel":
        close = (to_reference <= tolerance).sum() + (to_predicted <= tolerance).sum()
        return float(close / (to_reference.size + to_predicted.size)), hd95
    lengths_p, lengths_r = (contour_lengths(m[window], (spacing[0], spacing[1])) for m in (predicted, reference))
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


def _distances(first: np.ndarray, second: np.ndarray, spacing: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Distance of each point of the first set to the second set, and the other way round."""
    to_second = ndimage.distance_transform_edt(~second, sampling=spacing)[first]
    return to_second, ndimage.distance_transform_edt(~first, sampling=spacing)[second]
