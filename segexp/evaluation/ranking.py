"""Ranking by evidence (one-vs-rest log-odds): AUROC, average precision, and counts at any threshold.

All three come from one int64 histogram per image, class and truth over fine bins of asinh(evidence / 1e-6): 16384
bins that resolve 0.4 % of a log-odds of any size from 1e-6 to 5e6, with 0 on an edge, so that "above 0" is exact.
Probabilities are not used: in float32 they round to ties.
"""

import numpy as np
import torch

N_BINS = 16384
SCALE = 1e-6
"""Evidence is resolved down to this size; below it only the sign counts. (asinh alone would blur all below 1.)"""
LIMIT = 30.0
"""asinh(5.3e6 / SCALE): evidence beyond it falls into the outermost bins."""

QUANTILES = 31
"""Thresholds tried within the foreground, and again within the background; with the one at 0, 63 at most."""


def bin_edges() -> np.ndarray:
    """Upper edges of all bins but the last, in units of evidence, ascending: (N_BINS - 1,).

    Bin b holds edge[b - 1] < v <= edge[b].
    """
    return np.sinh(np.linspace(-LIMIT, LIMIT, N_BINS + 1)[1:-1]) * SCALE


def histograms(evidence_NFHW: torch.Tensor, truth_NFHW: torch.Tensor, valid_NHW: torch.Tensor) -> torch.Tensor:
    """int64 (N, F, 2, N_BINS): pixels by image, class, truth (0 no, 1 yes) and bin of evidence."""
    n_images, n_classes = evidence_NFHW.shape[:2]
    # The offset is added as an integer: in floating point it would round the smallest evidence to 0. NaN is lowest.
    steps = (torch.asinh(evidence_NFHW.double() / SCALE) * (N_BINS / (2 * LIMIT))).ceil()
    lowest = 1 - N_BINS // 2
    bin_index = steps.nan_to_num(nan=lowest).clamp_(lowest, N_BINS // 2).long() - lowest
    cell = torch.arange(n_images * n_classes, device=evidence_NFHW.device).view(n_images, n_classes, 1, 1)
    flat = (cell * 2 + truth_NFHW.long()) * N_BINS + bin_index
    counted = valid_NHW.unsqueeze(1).expand_as(flat)
    counts = torch.bincount(flat[counted], minlength=n_images * n_classes * 2 * N_BINS)
    return counts.view(n_images, n_classes, 2, N_BINS)


def auroc_and_ap(histogram_2B: np.ndarray) -> tuple[float, float]:
    """Area under the ROC curve (ties count half) and average precision; NaN without pixels of both truths."""
    negatives, positives = (histogram_2B[i, ::-1].astype(np.float64) for i in (0, 1))
    n_negative, n_positive = negatives.sum(), positives.sum()
    if n_negative == 0 or n_positive == 0:
        return float("nan"), float("nan")
    tp, fp = np.cumsum(positives), np.cumsum(negatives)
    auroc = float((negatives * (tp - positives / 2)).sum() / (n_negative * n_positive))
    hit = positives > 0
    ap = float((positives[hit] * tp[hit] / (tp[hit] + fp[hit])).sum() / n_positive)
    return auroc, ap


def threshold_grid(histogram_NF2B: np.ndarray) -> np.ndarray:
    """Indices of the bin edges to try as thresholds, ascending: the edge at 0, and quantiles of evidence.

    Quantiles are taken within the foreground and within the background: in a pooled distribution the background would
    leave few for the foreground.
    """
    pooled_2B = histogram_NF2B.sum(axis=(0, 1))
    levels = np.linspace(0.0, 1.0, QUANTILES + 2)[1:-1]
    edges = {N_BINS // 2 - 1}
    for counts_B in pooled_2B:
        if counts_B.sum() > 0:
            share = np.cumsum(counts_B) / counts_B.sum()
            edges.update(int(i) for i in np.searchsorted(share, levels))
    return np.array(sorted(e for e in edges if e < N_BINS - 1))


def counts_above(histogram_NF2B: np.ndarray, edge_index: np.ndarray) -> np.ndarray:
    """tp, fp, fn when evidence above each edge is foreground: int64 (T, N, F, 3)."""
    below_NF2T = np.cumsum(histogram_NF2B, axis=3)[..., edge_index]
    total_NF2 = histogram_NF2B.sum(axis=3)
    above_NF2T = total_NF2[..., None] - below_NF2T
    fn = below_NF2T[:, :, 1]
    return np.stack((above_NF2T[:, :, 1], above_NF2T[:, :, 0], fn), axis=-1).transpose(2, 0, 1, 3)
