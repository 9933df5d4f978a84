"""Boundary measures of one mask against its reference: normalised surface Dice and the 95 % Hausdorff distance."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


def _surface(mask_HW: "np.ndarray") -> "np.ndarray":
    """Pixels of the mask with a 4-neighbour outside it; the image border counts as outside."""
    from scipy import ndimage

    return mask_HW & ~ndimage.binary_erosion(mask_HW)


def boundary_scores(
    predicted_HW: "np.ndarray",
    reference_HW: "np.ndarray",
    tolerance: float,
    spacing: tuple[float, float] = (1.0, 1.0),
) -> tuple[float, float]:
    """(NSD, HD95) of two boolean masks.

    NSD (Nikolov et al. 2018, arXiv:1809.04430): share of both surfaces' pixels that lie within ``tolerance`` of the
    other surface. HD95: the larger of the two directed 95th percentiles of surface distances. ``tolerance``,
    ``spacing`` (pixel height, width) and HD95 are in the same unit: pixels, or mm where the spacing is known.
    Reference empty: both NaN. Prediction empty: NSD 0, HD95 the diagonal of the image.
    """
    import numpy as np
    from scipy import ndimage

    if not reference_HW.any():
        return float("nan"), float("nan")
    if not predicted_HW.any():
        return 0.0, float(np.hypot(predicted_HW.shape[0] * spacing[0], predicted_HW.shape[1] * spacing[1]))
    window = _bounding_window(predicted_HW | reference_HW)
    surface_p, surface_r = _surface(predicted_HW)[window], _surface(reference_HW)[window]
    to_reference = ndimage.distance_transform_edt(~surface_r, sampling=spacing)[surface_p]
    to_predicted = ndimage.distance_transform_edt(~surface_p, sampling=spacing)[surface_r]
    close = (to_reference <= tolerance).sum() + (to_predicted <= tolerance).sum()
    nsd = close / (to_reference.size + to_predicted.size)
    hd95 = max(np.percentile(to_reference, 95), np.percentile(to_predicted, 95))
    return float(nsd), float(hd95)


def _bounding_window(mask_HW: "np.ndarray") -> tuple[slice, slice]:
    """The smallest window holding the mask: distances between surfaces inside it do not depend on the rest."""
    import numpy as np

    rows, columns = np.flatnonzero(mask_HW.any(axis=1)), np.flatnonzero(mask_HW.any(axis=0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)
