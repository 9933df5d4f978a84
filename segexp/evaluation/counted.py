"""What is counted on a split, batch by batch: measures of every image, and sums over all of its pixels.

Shapes: N images, F foreground classes, T thresholds, B bins. Pixels stream through; nothing per pixel is kept.
"""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from segexp.activations.output import HeadMode
from segexp.errors import DivergedError
from segexp.evaluation.fitted import FittedOnValidation
from segexp.evaluation.predict import Scored, counted_masks
from segexp.metrics.boundary import boundary_scores
from segexp.metrics.calibration import N_BINS, boundary_band, nll_and_brier, one_vs_rest, reliability_bins
from segexp.metrics.counts import mask_counts
from segexp.metrics.ranking import N_BINS as RANKING_BINS
from segexp.metrics.ranking import counts_above, histograms
from segexp.metrics.scores import EmptyPolicy

if TYPE_CHECKING:
    import numpy as np
    import torch

REGIONS = ("all", "boundary")
"""Where calibration is counted: all valid pixels, and those near the reference boundary."""


@dataclass(frozen=True)
class Conventions:
    """What a score depends on besides predictions and reference.

    threshold: evidence above which a pixel is foreground, in log-odds; None: the class of the largest probability.
    """

    num_classes: int
    mode: HeadMode
    empty_policy: EmptyPolicy
    boundary_band: int
    surface_tolerance: float
    spacing: tuple[float, float]
    threshold: float | None = None


@dataclass(frozen=True)
class ImageMeasures:
    """Measures of every image, and class by class where they are. `_t` is at the fitted temperature.

    size_N2: height and width as scored. counts_NF3 and above_NTF3: TP, FP, FN of the decision, and of every threshold
    tried. boundary_NF2: NSD and HD95.
    """

    index_N: "np.ndarray"
    size_N2: "np.ndarray"
    valid_N: "np.ndarray"
    counts_NF3: "np.ndarray"
    above_NTF3: "np.ndarray"
    boundary_NF2: "np.ndarray"
    nll_NF: "np.ndarray"
    brier_NF: "np.ndarray"
    nll_t_NF: "np.ndarray"
    brier_t_NF: "np.ndarray"

    @property
    def n_gt_NF(self) -> "np.ndarray":
        """Pixels of each class in the reference."""
        total: np.ndarray = self.counts_NF3[..., 0] + self.counts_NF3[..., 2]
        return total


@dataclass
class PixelSums:
    """Sums over all valid pixels of a split. bins_SRFB3: n, sum p, sum y by scaling (none, temperature) and region.

    ranking_F2B: histogram of the evidence of pixels outside and inside of each class.
    """

    bins_SRFB3: "torch.Tensor"
    ranking_F2B: "np.ndarray"
    ties: int = 0
    clipped: int = 0
    pixels: int = 0


def count(
    scored: Iterable[Scored], split: str, fitted: FittedOnValidation, conventions: Conventions
) -> tuple[ImageMeasures, PixelSums]:
    """One pass over the predictions of a split.

    Raises DivergedError when a logit is not finite: NaN > 0 is False, and a dead network would score as an empty mask.
    """
    import numpy as np
    import torch

    n_classes = conventions.num_classes - 1
    sums = PixelSums(
        torch.zeros(2, len(REGIONS), n_classes, N_BINS, 3, dtype=torch.float64),
        np.zeros((n_classes, 2, RANKING_BINS), dtype=np.int64),
    )
    batches = []
    for batch in scored:
        if not bool(batch.prediction.logits_NKHW.isfinite().all()):
            raise DivergedError(f"logits on the {split} images are not finite with the selected weights")
        truth, valid = counted_masks(batch.target_NHW, conventions.num_classes)
        evidence_tables = histograms(batch.prediction.evidence_NFHW(), truth, valid).cpu().numpy()
        batches.append(_measured(batch, truth, valid, evidence_tables, fitted, conventions))
        sums.ranking_F2B += evidence_tables.sum(0)
        sums.ties += int((batch.prediction.ties_NHW() & valid).sum())
        sums.clipped += int((batch.prediction.clipped_NHW() & valid).sum())
        sums.pixels += int(valid.sum())
        _add_bins(sums.bins_SRFB3, batch, truth, valid, fitted.temperature, conventions)
    names = [field.name for field in dataclasses.fields(ImageMeasures)]
    joined = ImageMeasures(*(np.concatenate([getattr(batch, name) for batch in batches]) for name in names))
    return joined, sums


def _measured(
    batch: Scored,
    truth_NFHW: "torch.Tensor",
    valid_NHW: "torch.Tensor",
    evidence_tables: "np.ndarray",
    fitted: FittedOnValidation,
    conventions: Conventions,
) -> ImageMeasures:
    import numpy as np

    prediction = batch.prediction
    decided = prediction.foreground_NFHW()
    if conventions.threshold is not None:
        decided = prediction.evidence_NFHW().double() > conventions.threshold
    plain = nll_and_brier(prediction, truth_NFHW, valid_NHW)
    scaled = nll_and_brier(prediction, truth_NFHW, valid_NHW, fitted.temperature)
    return ImageMeasures(
        np.array(batch.indices),
        np.array([tuple(batch.target_NHW.shape[1:])] * len(batch.indices)),
        valid_NHW.sum((1, 2)).cpu().numpy(),
        mask_counts(decided, truth_NFHW, valid_NHW).cpu().numpy(),
        counts_above(evidence_tables, fitted.edges_T).swapaxes(0, 1),
        _boundary(decided, truth_NFHW, valid_NHW, conventions, batch.pixel_size),
        *(measure_NF.cpu().numpy() for measure_NF in (*plain, *scaled)),
    )


def _boundary(
    decided_NFHW: "torch.Tensor",
    truth_NFHW: "torch.Tensor",
    valid_NHW: "torch.Tensor",
    conventions: Conventions,
    pixel_size: tuple[float, float],
) -> "np.ndarray":
    """NSD and HD95 per image and class, (N, F, 2); ignored pixels belong to neither mask.

    Distances are in native pixels, or in the unit of the spacing, at whatever resolution is scored.
    """
    import numpy as np

    masks_p, masks_r = ((m & valid_NHW.unsqueeze(1)).cpu().numpy() for m in (decided_NFHW, truth_NFHW))
    spacing = (conventions.spacing[0] * pixel_size[0], conventions.spacing[1] * pixel_size[1])
    rows = [
        [boundary_scores(p, r, conventions.surface_tolerance, spacing) for p, r in zip(ps, rs, strict=True)]
        for ps, rs in zip(masks_p, masks_r, strict=True)
    ]
    return np.array(rows)


def _add_bins(
    bins_SRFB3: "torch.Tensor",
    batch: Scored,
    truth_NFHW: "torch.Tensor",
    valid_NHW: "torch.Tensor",
    temperature: float,
    conventions: Conventions,
) -> None:
    log_odds = batch.prediction.log_odds_NKHW
    if log_odds is None:
        return
    everywhere = valid_NHW.unsqueeze(1).expand_as(truth_NFHW)
    band = boundary_band(truth_NFHW, conventions.boundary_band) & everywhere
    for bins_RFB3, divisor in zip(bins_SRFB3, (1.0, temperature), strict=True):
        p = one_vs_rest(log_odds.double() / divisor, batch.prediction.mode).sigmoid()
        for region, counted in enumerate((everywhere, band)):
            bins_RFB3[region] += reliability_bins(p, truth_NFHW, counted).cpu()
