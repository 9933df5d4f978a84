"""The light measures of the validation split after every epoch."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from segexp.activations.head import Prediction
from segexp.evaluation.predict import Scored, counted_masks
from segexp.metrics.calibration import nll_and_brier
from segexp.metrics.counts import mask_counts
from segexp.metrics.scores import EmptyPolicy, dice_and_iou, group_means, mean_or_nan, micro_scores, primary_score

if TYPE_CHECKING:
    import torch

LossOf = Callable[[Prediction, "torch.Tensor"], "torch.Tensor"]


@dataclass(frozen=True)
class EpochScores:
    """Validation after an epoch. frac_nonfinite: share of the logits that are not finite."""

    loss: float
    dice: float
    dice_micro: float
    iou_micro: float
    nll: float
    brier: float
    frac_nonfinite: float


def epoch_scores(
    scored: Iterable[Scored], loss_of: LossOf, num_classes: int, group_ids: Sequence[str], policy: EmptyPolicy
) -> EpochScores:
    """The measures that are followed over the epochs. group_ids is indexed by image, as in the image set."""
    import torch

    indices: list[int] = []
    counts, nll, brier, loss, nonfinite = [], [], [], [], []
    for batch in scored:
        indices += batch.indices
        truth, valid = counted_masks(batch.target_NHW, num_classes)
        counts.append(mask_counts(batch.prediction.foreground_NFHW(), truth, valid))
        image_nll, image_brier = nll_and_brier(batch.prediction, truth, valid)
        nll.append(image_nll.mean(1))
        brier.append(image_brier.mean(1))
        network_prediction, network_target = batch.network
        loss.append(loss_of(network_prediction, network_target).double().expand(len(batch.indices)))
        nonfinite.append((~network_prediction.logits_NKHW.isfinite()).double().mean((1, 2, 3)))
    counts_NF3 = torch.cat(counts).cpu().numpy()
    groups = tuple(group_ids[i] for i in indices)
    nll_N, brier_N, loss_N, nonfinite_N = (torch.cat(v).cpu().numpy() for v in (nll, brier, loss, nonfinite))
    dice_NF, _ = dice_and_iou(counts_NF3)
    dice_micro, iou_micro = micro_scores(counts_NF3)
    return EpochScores(
        loss=float(loss_N.mean()),
        dice=primary_score(dice_NF, counts_NF3[..., 0] + counts_NF3[..., 2], groups, policy),
        dice_micro=dice_micro,
        iou_micro=iou_micro,
        nll=mean_or_nan(group_means(nll_N, groups)),
        brier=mean_or_nan(group_means(brier_N, groups)),
        frac_nonfinite=float(nonfinite_N.mean()),
    )
