"""Measures of objects, which are the connected components of a mask: how many are found, and how well."""

from dataclasses import dataclass

import numpy as np

FOUND = (0.1, 0.5)
"""An object is found where its IoU with an object of the prediction is above one of these."""


@dataclass(frozen=True)
class Objects:
    """Objects of two masks, matched one to one. size_R: pixels of each of R reference objects. iou_R: IoU of each with
    its match, 0 without one. n_predicted: objects of the prediction."""

    size_R: np.ndarray
    iou_R: np.ndarray
    n_predicted: int

    def scores(self) -> tuple[float, float, float, float]:
        """F1 of detection at both thresholds of `FOUND`, segmentation quality and panoptic quality.

        F1 = 2 TP / (reference objects + predicted objects). Quality as Kirillov et al. 2019 (arXiv:1801.00868) define
        it, from matches of an IoU above 0.5: SQ is their mean IoU, RQ is F1, PQ = SQ RQ. Without a match all are 0, as
        in panoptica (arXiv:2312.02608); NaN where neither mask holds an object.
        """
        total = len(self.iou_R) + self.n_predicted
        if total == 0:
            return (float("nan"),) * 4
        f1_low, f1_high = (2 * int((self.iou_R > least).sum()) / total for least in FOUND)
        matched = self.iou_R[self.iou_R > FOUND[1]]
        sq = float(matched.mean()) if len(matched) else 0.0
        return f1_low, f1_high, sq, sq * f1_high


def match_objects(predicted: np.ndarray, reference: np.ndarray) -> Objects:
    """Match the objects of two boolean masks, (H, W) or (D, H, W).

    Pixels that share an edge are one object in an image; in a volume those that share a corner are, too (4 and 26
    neighbours, the defaults of panoptica). Pairs with an IoU above 0.1 are matched in descending order of IoU, each
    object at most once. Those above 0.5 are therefore the same as if they had been matched alone.
    """
    from scipy import ndimage  # here, because `segexp compare` reads only `FOUND`

    structure = None if reference.ndim == 2 else np.ones((3, 3, 3))
    (labels_p, n_predicted), (labels_r, n_reference) = (
        ndimage.label(mask, structure) if mask.any() else (mask.astype(np.int32), 0) for mask in (predicted, reference)
    )
    size_P, size_R = (
        np.bincount(labels[labels > 0], minlength=n + 1)
        for labels, n in ((labels_p, n_predicted), (labels_r, n_reference))
    )
    both = predicted & reference
    pairs, shared = np.unique(labels_p[both].astype(np.int64) * (n_reference + 1) + labels_r[both], return_counts=True)
    p, r = np.divmod(pairs, n_reference + 1)
    iou = shared / (size_P[p] + size_R[r] - shared)
    iou_R, taken_P = np.zeros(n_reference + 1), np.zeros(n_predicted + 1, dtype=bool)
    for n in np.argsort(-iou, kind="stable")[: int((iou > FOUND[0]).sum())]:
        if not taken_P[p[n]] and iou_R[r[n]] == 0:
            taken_P[p[n]], iou_R[r[n]] = True, iou[n]
    return Objects(size_R[1:], iou_R[1:], int(n_predicted))
