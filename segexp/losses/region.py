"""Losses of whole regions (Dice, Jaccard, Tversky, Lovasz), and weighted sums of losses."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from segexp.activations.output import ALL_MODES
from segexp.losses import (
    LOSSES,
    Maps,
    label_planes,
    log_odds_of,
    loss,
    mean_over,
    retyped,
    term_of,
    weights_of_classes,
)
from segexp.losses.pixelwise import ce
from segexp.registry import NOT_NEGATIVE, POSITIVE, REQUIRED, Range

if TYPE_CHECKING:
    from torch import Tensor

    from segexp.activations.head import Prediction

Reduction = Literal["batch", "image"]
Classes = Literal["foreground", "all"]
Empty = Literal["skip", "formula"]
NotNegative = Annotated[float, NOT_NEGATIVE]

SIDE_EFFECTS = "biased volume: small objects are over-segmented; probabilities are pushed to 0 and 1"


@dataclass(frozen=True)
class Planes:
    """Probabilities p and reference y of the averaged classes, (N, K, H, W); weight (N, 1, H, W) is 0 or 1.

    y is 0 on ignored pixels; hard labels and the weight are uint8. soft: y holds probabilities instead of 0 and 1.
    """

    p: "Tensor"
    y: "Tensor"
    weight: "Tensor"
    class_weight_K: "Tensor"
    soft: bool = False

    def sums(self, reduction: str, squared: bool = False) -> tuple["Tensor", "Tensor", "Tensor"]:
        """The intersection, sum p, sum y (squared: of p^2 and y^2) over the valid pixels of each pool, each (P, K).

        The intersection is sum (|p| + |y| - |p - y|) / 2 (Wang et al. 2023, arXiv:2302.05666 and arXiv:2303.16296), so
        that overlaps are perfect at p = y for soft labels, too. Squared, (p^2 + y^2 - (p - y)^2) / 2 is p y, and so is
        the intersection of hard labels.
        """
        p, y = self.p, self.y
        # min(p, y) is (p + y - |p - y|) / 2 without its rounding; at p = y it has the same gradient, the mean of both.
        both = p.minimum(y) if self.soft and not squared else p * y
        predicted = self.pooled((p * p if squared else p) * self.weight, reduction)
        return self.pooled(both, reduction), predicted, self.pooled(y * y if squared else y, reduction)

    def pooled(self, values_NKHW: "Tensor", reduction: str) -> "Tensor":
        """Sums over each pool of values that are 0 on ignored pixels, (P, K)."""
        over = (0, 2, 3) if reduction == "batch" else (2, 3)
        return values_NKHW.sum(over, dtype=self.p.dtype).reshape(-1, values_NKHW.shape[1])


def planes_of(
    prediction: "Prediction", target: "Tensor", classes: str, class_weights: list[float] | None = None
) -> Planes:
    """``classes="all"`` includes the background: softmax's first channel, or the complement of the single channel."""
    import torch

    phi = log_odds_of(prediction)
    y, valid = label_planes(prediction, target)
    weight = retyped(valid.unsqueeze(1), torch.uint8)
    p, weights = prediction.values_NKHW, weights_of_classes(class_weights, prediction)
    if prediction.mode == "softmax" and classes == "foreground":
        p, y = p[:, prediction.first :], y[:, prediction.first :]
    elif prediction.mode == "binary" and classes == "all":
        p, y = torch.cat((torch.sigmoid(-phi), p), dim=1), torch.cat(((1 - y) * weight, y), dim=1)
    return Planes(p, y, weight, weights[-p.shape[1] :], target.is_floating_point())


def mean_of_classes(terms_PK: "Tensor", truth_PK: "Tensor", empty: str, weight: "Tensor") -> "Tensor":
    """Mean over the pools and classes that count; 0 if there are none. weight: of the classes, (K,)."""
    import torch

    weight = weight.expand_as(terms_PK)
    if empty == "skip":
        weight = weight * (truth_PK > 0)
    return (terms_PK * weight).sum() / weight.sum().clamp_min(torch.finfo(weight.dtype).tiny)


def ratio(numerator: "Tensor", denominator: "Tensor", smooth: float) -> "Tensor":
    import torch

    # With p = y = 0 the ratio is 0 / 0; the smallest positive denominator makes it 0 with a finite gradient.
    if smooth:
        numerator, denominator = numerator + smooth, denominator + smooth
    return numerator / denominator.clamp_min(torch.finfo(denominator.dtype).tiny)


def _overlap(
    prediction: "Prediction",
    target: "Tensor",
    fraction: Callable[["Tensor", "Tensor"], tuple["Tensor", "Tensor"]],
    *,
    reduction: Reduction = "batch",
    smooth: NotNegative = 0.0,
    squared: bool = False,
    classes: Classes = "foreground",
    empty: Empty = "skip",
    class_weights: list[float] | None = None,
) -> "Tensor":
    """Mean over the classes of 1 - a / b, with (a, b) = fraction(sum p y, sum p + sum y); options: see `dice`."""
    planes = planes_of(prediction, target, classes, class_weights)
    both, predicted, truth = planes.sums(reduction, squared)
    index = ratio(*fraction(both, predicted + truth), smooth)
    return mean_of_classes(1 - index, truth, empty, planes.class_weight_K)


@loss(
    formula="1 - mean_c (2 sum p y + s) / (sum p + sum y + s)",
    side_effects=SIDE_EFFECTS,
    source="Milletari et al. 2016, arXiv:1606.04797; bias: Bertels et al. 2019, arXiv:1911.02278",
    like=_overlap,
)
def dice(prediction: "Prediction", target: "Tensor", **options: Any) -> "Tensor":
    """Soft Dice loss. Its least value, 0, is at p = y for soft labels, too.

    Runs have hard labels: soft ones, floating targets, come from the Python API alone.

    reduction: sums over the whole batch, or within each image (a pool). squared: p^2 and y^2 in the denominator.
    classes: whether the background is one of the averaged classes (independent channels have none). empty: a class that
    is absent from the pool's reference is skipped, or counted by the formula. class_weights: weights of the classes in
    the mean, background first.
    """
    return _overlap(prediction, target, lambda both, total: (2 * both, total), **options)


@loss(
    formula="1 - mean_c (sum p y + s) / (sum p + sum y - sum p y + s)",
    side_effects=SIDE_EFFECTS,
    source="Rahman and Wang 2016",
    aliases={"iou": ALL_MODES},
    like=_overlap,
)
def jaccard(prediction: "Prediction", target: "Tensor", **options: Any) -> "Tensor":
    """Soft Jaccard (intersection over union) loss; options as for `dice`."""
    return _overlap(prediction, target, lambda both, total: (both, total - both), **options)


@loss(
    formula="1 - (2 sum_c w_c sum p y + s) / (sum_c w_c (sum p + sum y) + s), w_c = 1 / (sum y)^2, normalised",
    side_effects="the smallest class of a pool dominates; " + SIDE_EFFECTS,
    source="Sudre et al. 2017, arXiv:1707.03237",
)
def generalized_dice(
    prediction: "Prediction",
    target: "Tensor",
    *,
    reduction: Reduction = "batch",
    smooth: NotNegative = 0.0,
    weighting: Literal["square", "simple", "uniform"] = "square",
    classes: Classes = "all",
    empty: Empty = "skip",
) -> "Tensor":
    """Generalised Dice loss: one ratio per pool, classes weighted by the inverse (square) of their reference volume.

    The weights of a pool sum to 1, so that ``smooth`` is a number of pixels. With two classes and the foreground only
    it would equal `dice`; hence ``classes=all``. empty=formula: an absent class gets the largest weight of those
    present.
    """
    import torch

    planes = planes_of(prediction, target, classes)
    both, predicted, truth = planes.sums(reduction)
    held = truth > 0
    weight = truth.where(held, 1.0).pow(-{"square": 2, "simple": 1, "uniform": 0}[weighting]).where(held, 0.0)
    any_held = held.any(dim=1)
    if empty == "formula":
        weight = weight.where(held, weight.amax(dim=1).where(any_held, 1.0).unsqueeze(1))
    weight = weight / weight.sum(dim=1, keepdim=True).clamp_min(torch.finfo(weight.dtype).tiny)
    term = 1 - ratio(2 * (weight * both).sum(1), (weight * (predicted + truth)).sum(1), smooth)
    return mean_of_classes(term.unsqueeze(1), any_held.unsqueeze(1), empty, term.new_ones(1))


def _power(term: "Tensor", exponent: float) -> "Tensor":
    """term^exponent of a loss that is 0 at a perfect overlap, where the slope would be infinite: there it is 0."""
    imperfect = term > 0
    return term.where(imperfect, 1.0).pow(exponent).where(imperfect, 0.0)


def _tversky(
    prediction: "Prediction",
    target: "Tensor",
    of_class: Callable[["Tensor"], "Tensor"],
    *,
    alpha: NotNegative = 0.3,
    beta: Annotated[float, POSITIVE] = 0.7,
    reduction: Reduction = "batch",
    smooth: NotNegative = 0.0,
    classes: Classes = "foreground",
    empty: Empty = "skip",
    class_weights: list[float] | None = None,
) -> "Tensor":
    """Mean over the classes of of_class(1 - Tversky index)."""
    planes = planes_of(prediction, target, classes, class_weights)
    both, predicted, truth = planes.sums(reduction)
    index = ratio(both, both + alpha * (predicted - both) + beta * (truth - both), smooth)
    return mean_of_classes(of_class(1 - index), truth, empty, planes.class_weight_K)


@loss(
    formula="1 - mean_c (TP + s) / (TP + alpha FP + beta FN + s), TP = sum p y, FP = sum p (1 - y), FN = sum (1 - p) y",
    side_effects="beta > alpha trades false positives for sensitivity; " + SIDE_EFFECTS,
    source="Salehi et al. 2017, arXiv:1706.05721",
    like=_tversky,
)
def tversky(prediction: "Prediction", target: "Tensor", **options: Any) -> "Tensor":
    """Tversky loss: alpha weights false positives, beta false negatives; 1/2 each is Dice, 1 each is Jaccard.

    Other options as for `dice`.
    """
    return _tversky(prediction, target, lambda term: term, **options)


@loss(
    formula="mean_c (1 - TI_c)^gamma, TI the index of tversky",
    side_effects="gamma < 1 keeps a large gradient for classes that are almost right; " + SIDE_EFFECTS,
    source="Abraham and Khan 2019, arXiv:1810.07842 (gamma = 3/4 is their 1 / gamma)",
    like=_tversky,
)
def focal_tversky(
    prediction: "Prediction", target: "Tensor", *, gamma: Annotated[float, POSITIVE] = 0.75, **options: Any
) -> "Tensor":
    """Tversky loss of each class to the power gamma; other options as for `tversky`."""
    return _tversky(prediction, target, lambda term: _power(term, gamma), **options)


@loss(
    formula="ln cosh(dice)",
    side_effects="gradient vanishes near a perfect overlap, at most tanh(1) = 0.76 of Dice's; " + SIDE_EFFECTS,
    source="Jadon 2020, arXiv:2006.14822",
    like=_overlap,
)
def log_cosh_dice(prediction: "Prediction", target: "Tensor", **options: Any) -> "Tensor":
    """ln cosh of the `dice` loss, whose options it takes."""
    # cosh d = 1 + 2 sinh(d/2)^2 keeps the precision of a small d.
    return ((dice(prediction, target, **options) / 2).sinh().square() * 2).log1p()


@loss(
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
    wrong = planes.pooled((planes.p - planes.y).abs().pow(gamma) * planes.weight, reduction)
    return mean_of_classes(1 - ratio(2 * both, 2 * both + wrong, smooth), truth, empty, planes.class_weight_K)


@loss(
    formula="mean_c of the Lovasz extension of the Jaccard loss at the errors |y - p|",
    side_effects="convex surrogate of the Jaccard index; few pixels carry most of the gradient; not calibrated",
    source="Berman et al. 2018, arXiv:1705.08790",
)
def lovasz(
    prediction: "Prediction",
    target: "Tensor",
    *,
    reduction: Reduction = "batch",
    classes: Classes = "foreground",
    empty: Empty = "skip",
    class_weights: list[float] | None = None,
) -> "Tensor":
    """Lovasz loss on probabilities (the paper's Lovasz-Softmax; per channel with one logit or independent channels).

    empty=formula: an absent class costs its largest probability. Raises ValueError for soft labels, because the Jaccard
    index needs sets.
    """
    import torch

    if target.is_floating_point():
        raise ValueError("lovasz takes hard labels only, because the Jaccard index it extends needs sets")
    planes = planes_of(prediction, target, classes, class_weights)

    def by_pool(values_NKHW: "Tensor") -> "Tensor":
        """(P, K, pixels)."""
        values = values_NKHW.expand_as(planes.p)
        return values.flatten(2) if reduction == "image" else values.transpose(0, 1).flatten(1).unsqueeze(0)

    error = by_pool((planes.y - planes.p).abs())
    valid, truth = by_pool(planes.weight), by_pool(planes.y.to(planes.p.dtype))
    # Ignored pixels are sorted behind all others and have weight 0.
    order = error.where(valid > 0, -1.0).argsort(dim=2, descending=True, stable=True)
    error, valid, truth = (values.gather(2, order) for values in (error, valid, truth))
    volume = truth.sum(2, keepdim=True)
    intersection = volume - truth.cumsum(2)
    union = volume + ((1 - truth) * valid).cumsum(2)
    jaccard_loss = 1 - intersection / union.clamp_min(1)
    steps = torch.cat((jaccard_loss[..., :1], jaccard_loss.diff(dim=2)), dim=2)
    return mean_of_classes((error * steps * valid).sum(2), volume.squeeze(2), empty, planes.class_weight_K)


@loss(
    formula="dice_weight * dice + ce_weight * ce",
    side_effects="those of its two terms",
    source="Isensee et al. 2021 (nnU-Net)",
    like=_overlap,
)
def dice_ce(
    prediction: "Prediction",
    target: "Tensor",
    *,
    dice_weight: NotNegative = 1.0,
    ce_weight: NotNegative = 1.0,
    **options: Any,
) -> "Tensor":
    """Weighted sum of `dice` (with its options) and `ce`."""
    return dice_weight * dice(prediction, target, **options) + ce_weight * ce(prediction, target)


@loss(
    formula="focal_weight * mean[-delta y ln p - (1 - delta) (1 - y) p^gamma ln(1 - p)] + (1 - focal_weight) * mean of "
    "1 - TI_0, (1 - TI_c)^(1 - gamma), TI of tversky(1 - delta, delta); softmax: y_0, p_0 for 1 - y, 1 - p",
    side_effects="delta > 1/2 trades false positives for sensitivity; easy background has a small gradient; "
    + SIDE_EFFECTS,
    source="Yeung et al. 2022, arXiv:2102.04525",
)
def unified_focal(
    prediction: "Prediction",
    target: "Tensor",
    *,
    focal_weight: Annotated[float, Range(0, 1)] = 0.5,
    delta: Annotated[float, Range(0, 1)] = 0.6,
    gamma: Annotated[float, Range(0, 1, below=True)] = 0.5,
    asymmetric: bool = True,
    reduction: Reduction = "batch",
) -> "Tensor":
    """Unified focal loss: a weighted sum of modified focal and focal Tversky losses.

    focal_weight: the paper's lambda (``weight`` of the authors' code is that of the Tversky term). delta: weight of the
    foreground and of false negatives. asymmetric: gamma focuses the background in the focal term and the foreground in
    the Tversky term; otherwise both in each, as in the authors' code. reduction: as for `dice`, of the Tversky term
    (the authors' code pools each image).
    """
    import torch
    import torch.nn.functional as F

    y, valid = label_planes(prediction, target)
    log_odds_of(prediction)
    one_vs_rest, first = prediction.channel_log_odds_NKHW(), prediction.first
    log_p, log_q = F.logsigmoid(one_vs_rest), F.logsigmoid(-one_vs_rest)
    focused, no = -(gamma * log_q).exp() * log_p, -(1 - delta) * (gamma * log_p).exp() * log_q
    yes = delta * (-log_p if asymmetric else focused)
    if prediction.mode == "softmax":
        error = (y * torch.cat(((1 - delta) * focused[:, :first], yes[:, first:]), dim=1)).sum(1, keepdim=True)
    else:
        error = y * yes + (1 - y) * no

    def enhanced(term_PK: "Tensor") -> "Tensor":
        spared = first if asymmetric and prediction.mode != "independent" else 0
        return torch.cat((term_PK[:, :spared], _power(term_PK[:, spared:], 1 - gamma)), dim=1)

    tversky_term = _tversky(
        prediction, target, enhanced, alpha=1 - delta, beta=delta, reduction=reduction, classes="all"
    )
    return focal_weight * mean_over(error, valid) + (1 - focal_weight) * tversky_term


@loss(
    needs="values",
    formula="sum of weight * loss over loss.terms, as in loss.terms={dice: 1, focal: {weight: 0.5, gamma: 1}}",
    side_effects="those of its terms",
    source="-",
)
def sum_(prediction: "Prediction", target: "Tensor", maps: Maps | None = None, *, terms: Any = REQUIRED) -> "Tensor":
    """Weighted sum of other losses. terms: name -> weight, or name -> {weight: ..., option: ...}. maps: of its terms,
    see `Loss`."""
    total = prediction.logits_NKHW.new_zeros(())
    for name, given in terms.items():
        weight, options = term_of(given)
        entry = LOSSES.find(name)
        given_maps = {"maps": maps} if entry.maps else {}
        total = total + weight * entry.function(prediction, target, **given_maps, **options)
    return total
