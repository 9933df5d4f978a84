"""What is fitted on the validation split and only applied to others: the temperature, and the thresholds to try."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from segexp.activations.output import HeadMode
from segexp.evaluation.predict import Scored, counted_masks
from segexp.metrics.calibration import fit_temperature
from segexp.metrics.ranking import histograms, threshold_grid

if TYPE_CHECKING:
    import numpy as np

TEMPERATURE_PIXELS = 1_000_000
"""At most this many validation pixels, evenly spaced, fit the temperature."""


@dataclass(frozen=True)
class FittedOnValidation:
    """temperature: NaN for a head without probabilities. edges_T: the thresholds tried, as indices of bin edges."""

    temperature: float
    edges_T: "np.ndarray"


def fit_on_validation(scored: Iterable[Scored], num_classes: int, mode: HeadMode, n_pixels: int) -> FittedOnValidation:
    """Temperature and threshold grid from the validation split; ``n_pixels`` is its number of scored pixels."""
    import numpy as np

    stride = max(1, -(-n_pixels // TEMPERATURE_PIXELS))
    pooled, phi_PK, class_P = None, [], []
    seen = 0
    for batch in scored:
        truth, valid = counted_masks(batch.target_NHW, num_classes)
        tables = histograms(batch.prediction.evidence_NFHW(), truth, valid).sum(0, keepdim=True).cpu().numpy()
        pooled = tables if pooled is None else pooled + tables
        log_odds = batch.prediction.log_odds_NKHW
        if log_odds is not None:
            # Continued from batch to batch, so that the choice does not depend on how images are batched.
            chosen = slice(-seen % stride, None, stride)
            by_pixel, classes = log_odds.movedim(1, -1)[valid], batch.target_NHW[valid]
            phi_PK.append(by_pixel[chosen].double().cpu().numpy())
            class_P.append(classes[chosen].cpu().numpy())
            seen += len(classes)
    assert pooled is not None, "the validation split is never empty"
    edges = np.array([], dtype=np.int64) if mode == "softmax" else threshold_grid(pooled)
    temperature = fit_temperature(np.concatenate(phi_PK), np.concatenate(class_P), mode) if phi_PK else float("nan")
    return FittedOnValidation(temperature, edges)
