"""Calibration: NLL, Brier score, reliability bins and temperature scaling.

One-vs-rest per foreground class, from log-odds in float64. Pixels are summed batch by batch, none is kept.
"""

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp

from segexp.activations import HeadMode
from segexp.activations.head import Prediction

N_BINS = 15


def one_vs_rest(log_odds_NKHW: torch.Tensor, mode: HeadMode) -> torch.Tensor:
    """ln p_c - ln(1 - p_c) of each foreground class, (N, F, H, W); under softmax against all other classes."""
    return Prediction(mode, log_odds_NKHW, log_odds_NKHW).evidence_NFHW()


def pixel_nll(log_odds_NKHW: torch.Tensor, truth_NFHW: torch.Tensor, mode: HeadMode) -> torch.Tensor:
    """Negative log-likelihood of every pixel, (N, F, H, W).

    Binary and independent: -ln of the probability that each class assigns to its reference. Softmax: -ln p of the true
    class, the same in every class plane.
    """
    if mode != "softmax":
        return F.softplus(log_odds_NKHW.where(~truth_NFHW, -log_odds_NKHW))
    log_p = log_odds_NKHW.log_softmax(dim=1)
    foreground = (log_p[:, 1:] * truth_NFHW).sum(1)
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
    p = one_vs_rest(phi, prediction.mode).sigmoid()
    brier = (p - truth_NFHW.double()).square().where(weight, 0.0).sum((2, 3)) / n_valid
    return nll, brier


def reliability_bins(p_NFHW: torch.Tensor, truth_NFHW: torch.Tensor, counted_NFHW: torch.Tensor) -> torch.Tensor:
    """n, sum p, sum y of 15 equal bins of p for each foreground class: float64 (F, 15, 3). p = 1 is in the last bin."""
    n_classes = p_NFHW.shape[1]
    bin_index = (p_NFHW * N_BINS).long().clamp_(0, N_BINS - 1)
    class_index = torch.arange(n_classes, device=p_NFHW.device).view(1, -1, 1, 1)
    flat = (class_index * N_BINS + bin_index)[counted_NFHW]
    p, y = p_NFHW[counted_NFHW], truth_NFHW[counted_NFHW].to(p_NFHW.dtype)
    table = torch.zeros(n_classes * N_BINS, 3, dtype=torch.float64, device=p_NFHW.device)
    for column, weights in enumerate((None, p, y)):
        table[:, column] = torch.bincount(flat, weights=weights, minlength=n_classes * N_BINS)
    return table.view(n_classes, N_BINS, 3)


def boundary_band(truth_NFHW: torch.Tensor, radius: int) -> torch.Tensor:
    """Boolean (N, F, H, W): pixels within ``radius`` (chessboard distance) of the reference boundary of each class."""
    planes = truth_NFHW.float()
    size = 2 * radius + 1
    dilated = F.max_pool2d(planes, size, stride=1, padding=radius)
    eroded = 1 - F.max_pool2d(1 - planes, size, stride=1, padding=radius)
    return dilated > eroded


def fit_temperature(log_odds_PK: np.ndarray, classes_P: np.ndarray, mode: HeadMode) -> float:
    """The T > 0 that minimises the NLL of phi / T over P pixels (Guo et al. 2017, arXiv:1706.04599).

    log_odds_PK: float64 log-odds per channel. classes_P: true class index. Searched within [1/100, 100], because
    perfectly separated pixels have no finite optimum. Returns NaN without pixels.
    """
    if len(log_odds_PK) == 0:
        return float("nan")
    if mode == "softmax":
        true_log_odds = log_odds_PK[np.arange(len(classes_P)), classes_P]

        def nll(log_t: float) -> float:
            scale = np.exp(-log_t)
            return float(np.mean(logsumexp(log_odds_PK * scale, axis=1) - true_log_odds * scale))
    else:
        truth_PK = classes_P[:, None] == np.arange(1, log_odds_PK.shape[1] + 1)
        against = np.where(truth_PK, -log_odds_PK, log_odds_PK)

        def nll(log_t: float) -> float:
            return float(np.mean(np.logaddexp(0.0, against * np.exp(-log_t))))

    limit = np.log(100.0)
    return float(np.exp(minimize_scalar(nll, bounds=(-limit, limit), method="bounded", options={"xatol": 1e-6}).x))
