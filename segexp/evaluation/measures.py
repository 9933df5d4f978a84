"""Measures from log-odds: calibration (NLL, Brier score, reliability bins, temperature) and counts at thresholds.

One-vs-rest per foreground class, in float64. Pixels are summed batch by batch, none is kept.

Counts at any threshold come from one int64 histogram per image, class and truth over fine bins of
asinh(evidence / 1e-6): 16384 bins that resolve 0.4 % of a log-odds of any size from 1e-6 to 5e6, with 0 on an edge, so
that "above 0" is exact. Probabilities are not used: in float32 they round to ties.
"""

import numpy as np
import torch
import torch.nn.functional as F
from scipy.special import logsumexp

from segexp.activations.head import Prediction
from segexp.activations.output import HeadMode

RELIABILITY_BINS = 15


def one_vs_rest(log_odds_NKHW: torch.Tensor, mode: HeadMode, first: int = 1) -> torch.Tensor:
    """ln p_c - ln(1 - p_c) of each foreground class, (N, F, H, W); under softmax against all other classes."""
    return Prediction(mode, log_odds_NKHW, log_odds_NKHW, first=first).evidence_NFHW()


def pixel_nll(log_odds_NKHW: torch.Tensor, truth_NFHW: torch.Tensor, mode: HeadMode) -> torch.Tensor:
    """Negative log-likelihood of every pixel, (N, F, H, W).

    Binary and independent: -ln of the probability that each class assigns to its reference. Softmax: -ln p of the true
    class, the same in every class plane.
    """
    if mode != "softmax":
        return F.softplus(log_odds_NKHW.where(~truth_NFHW, -log_odds_NKHW))
    log_p = log_odds_NKHW.log_softmax(dim=1)
    foreground = (log_p[:, -truth_NFHW.shape[1] :] * truth_NFHW).sum(1)
    true_class = foreground.where(truth_NFHW.any(1), log_p[:, 0])
    return (-true_class).unsqueeze(1).expand(-1, truth_NFHW.shape[1], -1, -1)


def nll_and_brier(
    prediction: Prediction, truth_NFHW: torch.Tensor, valid_NHW: torch.Tensor, temperature: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """NLL and Brier score per image and class, float64 (N, F), means over valid pixels; NaN without probabilities."""
    if prediction.log_odds_NKHW is None:
        undefined = torch.full(truth_NFHW.shape[:2], float("nan"), dtype=torch.float64, device=truth_NFHW.device)
        return undefined, undefined
    phi = prediction.log_odds_NKHW.double() / temperature
    weight = valid_NHW.unsqueeze(1)
    n_valid = weight.sum((2, 3))
    nll = pixel_nll(phi, truth_NFHW, prediction.mode).where(weight, 0.0).sum((2, 3)) / n_valid
    p = one_vs_rest(phi, prediction.mode, prediction.first).sigmoid()
    brier = (p - truth_NFHW.double()).square().where(weight, 0.0).sum((2, 3)) / n_valid
    return nll, brier


def reliability_bins(p_NFHW: torch.Tensor, truth_NFHW: torch.Tensor, counted_NFHW: torch.Tensor) -> torch.Tensor:
    """n, sum p, sum y of 15 equal bins of p for each foreground class: float64 (F, 15, 3). p = 1 is in the last bin."""
    n_classes = p_NFHW.shape[1]
    bin_index = (p_NFHW * RELIABILITY_BINS).long().clamp_(0, RELIABILITY_BINS - 1)
    class_index = torch.arange(n_classes, device=p_NFHW.device).view(1, -1, 1, 1)
    flat = (class_index * RELIABILITY_BINS + bin_index).flatten()
    columns = torch.zeros(3, n_classes * RELIABILITY_BINS, dtype=torch.float64, device=p_NFHW.device)
    # bincount and indexing by booleans would wait for the device.
    for column, weights in zip(columns, (counted_NFHW, p_NFHW * counted_NFHW, truth_NFHW & counted_NFHW), strict=True):
        column.scatter_add_(0, flat, weights.double().flatten())
    return columns.T.reshape(n_classes, RELIABILITY_BINS, 3)


def boundary_band(truth_NFHW: torch.Tensor, radius: int) -> torch.Tensor:
    """Boolean (N, F, H, W): pixels within ``radius`` (chessboard distance) of the reference boundary of each class."""
    planes = truth_NFHW.float()
    size = 2 * radius + 1
    dilated = F.max_pool2d(planes, size, stride=1, padding=radius)
    eroded = 1 - F.max_pool2d(1 - planes, size, stride=1, padding=radius)
    return dilated > eroded


def fit_temperature(log_odds_PK: np.ndarray, truth: np.ndarray, mode: HeadMode) -> float:
    """The T > 0 that minimises the NLL of phi / T over P pixels (Guo et al. 2017, arXiv:1706.04599).

    log_odds_PK: float64 log-odds per channel. truth: of each pixel the class index under softmax, else (P, K) boolean,
    whether it is of the channel's class. Searched within [1/100, 100], because
    perfectly separated pixels have no finite optimum. Returns NaN without pixels.
    """
    from scipy.optimize import minimize_scalar  # half a second to import, and a dry run needs none

    if len(log_odds_PK) == 0:
        return float("nan")
    if mode == "softmax":
        true_log_odds = log_odds_PK[np.arange(len(truth)), truth]

        def nll(log_t: float) -> float:
            scale = np.exp(-log_t)
            return float(np.mean(logsumexp(log_odds_PK * scale, axis=1) - true_log_odds * scale))
    else:
        against = np.where(truth, -log_odds_PK, log_odds_PK)

        def nll(log_t: float) -> float:
            return float(np.mean(np.logaddexp(0.0, against * np.exp(-log_t))))

    limit = np.log(100.0)
    return float(np.exp(minimize_scalar(nll, bounds=(-limit, limit), method="bounded", options={"xatol": 1e-6}).x))


EVIDENCE_BINS = 16384
SCALE = 1e-6
"""Evidence is resolved down to this size; below it only the sign counts. (asinh alone would blur all below 1.)"""
LIMIT = 30.0  # asinh(5.3e6 / SCALE): evidence beyond it falls into the outermost bins
QUANTILES = 31  # thresholds tried within the foreground, and again within the background; with the one at 0, 63 at most


def bin_edges() -> np.ndarray:
    """Upper edges of all bins but the last, in units of evidence, ascending: (EVIDENCE_BINS - 1,).

    Bin b holds edge[b - 1] < v <= edge[b].
    """
    return np.sinh(np.linspace(-LIMIT, LIMIT, EVIDENCE_BINS + 1)[1:-1]) * SCALE


def histograms(evidence_NFHW: torch.Tensor, truth_NFHW: torch.Tensor, valid_NHW: torch.Tensor) -> torch.Tensor:
    """int64 (N, F, 2, EVIDENCE_BINS): pixels by image, class, truth (0 no, 1 yes) and bin of evidence."""
    n_images, n_classes = evidence_NFHW.shape[:2]
    # The offset is added as an integer: in floating point it would round the smallest evidence to 0. NaN is lowest.
    steps = (torch.asinh(evidence_NFHW.double() / SCALE) * (EVIDENCE_BINS / (2 * LIMIT))).ceil()
    lowest = 1 - EVIDENCE_BINS // 2
    bin_index = steps.nan_to_num(nan=lowest).clamp_(lowest, EVIDENCE_BINS // 2).long() - lowest
    cell = torch.arange(n_images * n_classes, device=evidence_NFHW.device).view(n_images, n_classes, 1, 1)
    flat = (cell * 2 + truth_NFHW.long()) * EVIDENCE_BINS + bin_index
    counted = valid_NHW.unsqueeze(1).expand_as(flat).long()
    counts = torch.zeros(n_images * n_classes * 2 * EVIDENCE_BINS, dtype=torch.int64, device=flat.device)
    return counts.scatter_add_(0, flat.flatten(), counted.flatten()).view(n_images, n_classes, 2, EVIDENCE_BINS)


def threshold_grid(histogram_NF2B: np.ndarray) -> np.ndarray:
    """Indices of the bin edges to try as thresholds, ascending: the edge at 0, and quantiles of evidence.

    Quantiles are taken within the foreground and within the background: in a pooled distribution the background would
    leave few for the foreground.
    """
    pooled_2B = histogram_NF2B.sum(axis=(0, 1))
    levels = np.linspace(0.0, 1.0, QUANTILES + 2)[1:-1]
    edges = {EVIDENCE_BINS // 2 - 1}
    for counts_B in pooled_2B:
        if counts_B.sum() > 0:
            share = np.cumsum(counts_B) / counts_B.sum()
            edges.update(int(i) for i in np.searchsorted(share, levels))
    return np.array(sorted(e for e in edges if e < EVIDENCE_BINS - 1))


def counts_above(histogram_NF2B: np.ndarray, edge_index: np.ndarray) -> np.ndarray:
    """tp, fp, fn when evidence above each edge is foreground: int64 (T, N, F, 3)."""
    below_NF2T = np.cumsum(histogram_NF2B, axis=3)[..., edge_index]
    total_NF2 = histogram_NF2B.sum(axis=3)
    above_NF2T = total_NF2[..., None] - below_NF2T
    fn = below_NF2T[:, :, 1]
    return np.stack((above_NF2T[:, :, 1], above_NF2T[:, :, 0], fn), axis=-1).transpose(2, 0, 1, 3)
