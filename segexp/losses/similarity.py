"""Losses of whole regions by correlation and by angle."""

from typing import TYPE_CHECKING

from segexp.losses import log_odds_of, loss, reference_planes, retyped
from segexp.losses.region import NotNegative, Planes, Reduction, mean_of_classes, planes_of

if TYPE_CHECKING:
    from torch import Tensor

    from segexp.activations.head import Prediction


@loss(
    formula="1 - mean_c (TP TN - FP FN) / sqrt((TP + FP) (TP + FN) (TN + FP) (TN + FN)), TP = sum p y, "
    "FP = sum p (1 - y), FN = sum (1 - p) y, TN = sum (1 - p) (1 - y)",
    side_effects="a shift common to all p has no gradient where they are alike, as before training; probabilities are "
    "pushed to 0 and 1",
    source="Abhishek and Hamarneh 2020, arXiv:2010.13454",
)
def mcc(prediction: "Prediction", target: "Tensor", *, reduction: Reduction = "batch") -> "Tensor":
    """1 - Matthews correlation of the soft counts, each foreground class against the rest; in [0, 2].

    reduction: as for `dice`. A class that holds no pixel of the pool, or all, has no correlation and is skipped. Raises
    ValueError for soft labels: the counts are those of sets, and the loss is not least at p = y.
    """
    import torch

    if target.is_floating_point():
        raise ValueError("mcc takes hard labels only, because it counts the pixels of sets")
    planes = planes_of(prediction, target, "foreground")
    # From the log-odds, so that 1 - p keeps its digits where p is almost 1.
    q, y = torch.sigmoid(-prediction.evidence_NFHW()), planes.y
    no = (1 - y) * planes.weight
    counted = (planes.p * y, planes.p * no, q * y, q * no)
    tp, fp, fn, tn = (planes.pooled(values, reduction) for values in counted)
    tiny = torch.finfo(q.dtype).tiny
    predicted, truth = (tp + fp) * (tn + fn), (tp + fn) * (tn + fp)
    correlation = (tp * tn - fp * fn) / (predicted.clamp_min(tiny).sqrt() * truth.clamp_min(tiny).sqrt())
    return mean_of_classes(1 - correlation, truth, "skip", planes.class_weight_K)


@loss(
    formula="mean_c (1 - s_c)^2, s = (1 + cos) / (1 + kappa (1 - cos)) - 1, cos = sum p y / sqrt(sum p^2 sum y^2)",
    side_effects="kappa > 0 steepens the loss near a perfect overlap and flattens it far away; a factor of all p of a "
    "class shows only in the other classes; probabilities are pushed to 0 and 1",
    source="Kato and Hotta 2022, arXiv:2207.07842 (kappa fixed, 32 as in their code)",
)
def t_vmf_dice(
    prediction: "Prediction", target: "Tensor", *, kappa: NotNegative = 32.0, reduction: Reduction = "batch"
) -> "Tensor":
    """t-vMF Dice loss: the angle between p and y, over all classes with the background.

    A channel of its own (binary, independent) counts with its complement: the angle alone is blind to a factor of p.
    kappa: concentration of the similarity; 0 is the cosine. reduction: as for `dice`. Absent classes are skipped.
    """
    import torch
    import torch.nn.functional as F

    y, valid = reference_planes(prediction, target)
    phi = log_odds_of(prediction)
    if prediction.mode == "softmax":
        log_p = phi.log_softmax(1)
    else:
        log_p, y = F.logsigmoid(torch.cat((-phi, phi), dim=1)), torch.cat((1 - y, y), dim=1)
    weight, limits = valid.unsqueeze(1), torch.finfo(phi.dtype)
    # The angle does not change with the scale, and without it small p, or their squares, would underflow.
    log_p = log_p.masked_fill(~weight, limits.min)
    p = (log_p - log_p.detach().amax((0, 2, 3) if reduction == "batch" else (2, 3), keepdim=True)).exp()
    y = y * weight
    planes = Planes(p, y, retyped(weight, torch.uint8), p.new_ones(p.shape[1]))
    both, predicted, truth = (planes.pooled(values, reduction) for values in (p * y, p * p * weight, y * y))
    # Rounding must not bring the cosine above 1.
    apart = (1 - both / (predicted * truth).clamp_min(limits.tiny).sqrt()).clamp_min(0)
    similarity = (2 - apart) / (1 + kappa * apart) - 1
    return mean_of_classes((1 - similarity).square(), truth, "skip", planes.class_weight_K)
