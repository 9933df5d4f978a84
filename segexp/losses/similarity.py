"""Losses of whole regions that are no ratio of overlaps: correlation, angle, and overlaps with focused errors."""

from typing import TYPE_CHECKING, Annotated

from segexp.losses import log_odds_of, loss, mean_over, reference_planes
from segexp.losses.region import (
    SIDE_EFFECTS,
    Classes,
    Empty,
    NotNegative,
    Planes,
    Reduction,
    mean_of_classes,
    mean_tversky,
    planes_of,
    power,
    ratio,
)
from segexp.registry import Range

if TYPE_CHECKING:
    from torch import Tensor

    from segexp.activations.head import Prediction

Share = Annotated[float, Range(0, 1)]


@loss(
    needs="log_odds",
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
    pixels = planes.pooled(torch.ones_like(y), reduction).clamp_min(1)
    tp, fp, fn, tn = (
        planes.pooled(values, reduction) / pixels for values in (planes.p * y, planes.p * (1 - y), q * y, q * (1 - y))
    )
    tiny = torch.finfo(y.dtype).tiny
    predicted, truth = (tp + fp) * (tn + fn), (tp + fn) * (tn + fp)
    correlation = (tp * tn - fp * fn) / (predicted.clamp_min(tiny).sqrt() * truth.clamp_min(tiny).sqrt())
    return mean_of_classes(1 - correlation, truth, "skip", planes.class_weight_K)


@loss(
    needs="log_odds",
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

    y, valid = reference_planes(prediction, target)
    phi, p = log_odds_of(prediction), prediction.values_NKHW
    if prediction.mode != "softmax":
        p, y = torch.cat((torch.sigmoid(-phi), p), dim=1), torch.cat((1 - y, y), dim=1)
    weight, tiny = valid.unsqueeze(1).to(p.dtype), torch.finfo(p.dtype).tiny
    # The angle does not change with the scale, and without it the squares of small p would underflow.
    p = p * weight
    p = p / p.detach().amax((0, 2, 3) if reduction == "batch" else (2, 3), keepdim=True).clamp_min(tiny)
    planes = Planes(p, y, weight, p.new_ones(p.shape[1]))
    both, predicted, truth = (planes.pooled(values, reduction) for values in (p * y, p * p, y * y))
    # Rounding must not bring the cosine above 1.
    apart = (1 - both / (predicted * truth).clamp_min(tiny).sqrt()).clamp_min(0)
    similarity = (2 - apart) / (1 + kappa * apart) - 1
    return mean_of_classes((1 - similarity).square(), truth, "skip", planes.class_weight_K)


@loss(
    needs="log_odds",
    formula="1 - mean_c (2 TP + s) / (2 TP + sum (p (1 - y))^gamma + sum ((1 - p) y)^gamma + s), TP = sum p y",
    side_effects="gamma > 1 spares errors of small confidence: probabilities are pushed to 0 and 1 less than by dice; "
    "biased volume",
    source="Yeung et al. 2023, arXiv:2111.00528 (DSC++)",
)
def dice_plus_plus(
    prediction: "Prediction",
    target: "Tensor",
    *,
    gamma: Annotated[float, Range(1)] = 2.0,
    reduction: Reduction = "batch",
    smooth: NotNegative = 0.0,
    classes: Classes = "foreground",
    empty: Empty = "skip",
    class_weights: list[float] | None = None,
) -> "Tensor":
    """Dice loss with the errors to the power gamma; gamma = 1 is `dice`, whose options it takes.

    For soft labels the errors are |p - y|, and the intersection is that of `dice`. The authors' code pools each image
    and averages all classes (``reduction=image, classes=all``).
    """
    planes = planes_of(prediction, target, classes, class_weights)
    both, _, truth = planes.sums(reduction)
    wrong = planes.pooled((planes.p - planes.y).abs().pow(gamma), reduction)
    index = ratio(2 * both, 2 * both + wrong, smooth)
    return mean_of_classes(1 - index, truth, empty, planes.class_weight_K)


@loss(
    needs="log_odds",
    formula="focal_weight * mean[-delta y ln p - (1 - delta) (1 - y) p^gamma ln(1 - p)] + (1 - focal_weight) * mean of "
    "1 - TI_0 and (1 - TI_c)^(1 - gamma), TI of tversky with alpha = 1 - delta, beta = delta, class 0 the background; "
    "softmax: -mean[(1 - delta) y_0 (1 - p_0)^gamma ln p_0 + delta sum_c y_c ln p_c]",
    side_effects="delta > 1/2 trades false positives for sensitivity; easy background has a small gradient; "
    + SIDE_EFFECTS,
    source="Yeung et al. 2022, arXiv:2102.04525",
)
def unified_focal(
    prediction: "Prediction",
    target: "Tensor",
    *,
    focal_weight: Share = 0.5,
    delta: Share = 0.6,
    gamma: Annotated[float, Range(0, 1, below=True)] = 0.5,
    asymmetric: bool = True,
    reduction: Reduction = "batch",
) -> "Tensor":
    """Unified focal loss: a weighted sum of the modified focal and focal Tversky losses.

    focal_weight: the paper's lambda. delta: weight of the foreground and of false negatives. gamma: how far the easy
    background is suppressed and the difficult class enhanced. asymmetric: the focus acts on the background in the focal
    term and on the foreground in the Tversky term; otherwise on both (as in the authors' code). reduction: as for
    `dice`, of the Tversky term; the authors' code pools each image.
    """
    import torch.nn.functional as F

    y, valid = reference_planes(prediction, target)
    log_odds_of(prediction)
    one_vs_rest = prediction.channel_log_odds_NKHW()
    log_p, log_q = F.logsigmoid(one_vs_rest), F.logsigmoid(-one_vs_rest)
    softmax = prediction.mode == "softmax"
    backgrounds = prediction.first if softmax else 0
    rest = log_p.shape[1] - backgrounds
    weight = log_p.new_tensor([1 - delta] * backgrounds + [delta] * rest).view(1, -1, 1, 1)
    focus = log_p.new_tensor([gamma] * backgrounds + [0.0 if asymmetric else gamma] * rest).view(1, -1, 1, 1)
    yes = -weight * (focus * log_q).exp() * log_p
    no = -(1 - delta) * (gamma * log_p).exp() * log_q
    focal_term = mean_over((y * yes).sum(1, keepdim=True) if softmax else y * yes + (1 - y) * no, valid)

    def focused(term_PK: "Tensor") -> "Tensor":
        exponents = [1 - gamma] * term_PK.shape[1]
        if asymmetric and prediction.mode != "independent" and prediction.first:
            exponents[0] = 1.0
        return power(term_PK, term_PK.new_tensor(exponents))

    tversky_term = mean_tversky(
        prediction, target, focused, alpha=1 - delta, beta=delta, reduction=reduction, classes="all"
    )
    return focal_weight * focal_term + (1 - focal_weight) * tversky_term
