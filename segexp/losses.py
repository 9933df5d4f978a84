"""Catalogue of losses. A loss is a function (prediction, target_NHW) -> scalar tensor.

It takes a `Prediction`, so it never applies an activation, and says what it needs of it: ``log_odds`` (all that
takes a logarithm or a probability) or plain ``values``. target_NHW is an integer map, `segexp.targets.IGNORE` where a
pixel does not count. Everything is computed in float32 or better and stays finite with finite gradients for
logits up to 1e6. Adding a loss is adding one decorated function; keyword-only parameters become typed options.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Literal

from segexp.activations.head import Prediction
from segexp.activations.output import ALL_MODES, HeadMode, Offer, OutputActivation
from segexp.catalogue import NOT_NEGATIVE, Catalogue, Option, options_of
from segexp.targets import class_masks, valid_pixels

if TYPE_CHECKING:
    import torch

LossFunction = Callable[..., "torch.Tensor"]


@dataclass(frozen=True)
class Loss:
    """One entry. aliases: other names, each with the head modes in which the name means anything.

    proper: whether the expected loss is least at the true probabilities (a proper scoring rule).
    """

    name: str
    function: LossFunction
    needs: Offer
    formula: str
    proper: bool
    side_effects: str
    source: str
    aliases: Mapping[str, tuple[HeadMode, ...]] = field(default_factory=dict)
    options: tuple[Option, ...] = ()


LOSSES: Catalogue[Loss] = Catalogue("loss")


def loss(
    *,
    needs: Offer,
    formula: str,
    proper: bool,
    side_effects: str,
    source: str,
    aliases: Mapping[str, tuple[HeadMode, ...]] | None = None,
) -> Callable[[LossFunction], LossFunction]:
    """Decorator: put the function into the catalogue under its own name."""

    def put(function: LossFunction) -> LossFunction:
        entry = Loss(
            name=function.__name__,
            function=function,
            needs=needs,
            formula=formula,
            proper=proper,
            side_effects=side_effects,
            source=source,
            aliases=aliases or {},
            options=options_of(function),
        )
        LOSSES.add(entry.name, entry)
        return function

    return put


def fits(activation: OutputActivation, candidate: Loss) -> bool:
    """Whether the activation offers what the loss needs."""
    return candidate.needs in activation.offers


def _log_odds(prediction: Prediction) -> "torch.Tensor":
    if prediction.log_odds_NKHW is None:
        raise TypeError("this loss needs log-odds, and the activation gives plain values")
    return prediction.log_odds_NKHW


def _class_range(prediction: Prediction) -> range:
    """Class index of each channel of the prediction."""
    channels = prediction.logits_NKHW.shape[1]
    return range(channels) if prediction.mode == "softmax" else range(1, channels + 1)


def _mean_over(values_NKHW: "torch.Tensor", valid_NHW: "torch.Tensor") -> "torch.Tensor":
    """Mean over valid pixels and channels; 0 (with zero gradient) where no pixel is valid."""
    weight = valid_NHW.unsqueeze(1).to(values_NKHW.dtype)
    count = weight.sum() * values_NKHW.shape[1]
    return (values_NKHW * weight).sum() / count.clamp_min(1)


@loss(
    needs="log_odds",
    formula="-mean[y ln p + (1 - y) ln(1 - p)]; softmax: -mean ln p_y",
    proper=True,
    side_effects="none; dominated by the background where the foreground is small",
    source="Good 1952 (logarithmic score)",
    aliases={"bce": ("binary", "independent"), "nll": ALL_MODES},
)
def ce(prediction: Prediction, target_NHW: "torch.Tensor") -> "torch.Tensor":
    """Cross-entropy from the log-odds: binary per channel, or over the classes under softmax."""
    import torch.nn.functional as F

    phi = _log_odds(prediction)
    valid = valid_pixels(target_NHW)
    if prediction.mode == "softmax":
        classes = target_NHW.long().where(valid, 0)
        return _mean_over(F.cross_entropy(phi, classes, reduction="none").unsqueeze(1), valid)
    truth = class_masks(target_NHW, _class_range(prediction)).to(phi.dtype)
    return _mean_over(F.binary_cross_entropy_with_logits(phi, truth, reduction="none"), valid)


@loss(
    needs="values",
    formula="mean (p - y)^2 over pixels and channels",
    proper=True,
    side_effects="gradient vanishes with F' on pixels that are far wrong",
    source="Brier 1950",
    aliases={"brier": ALL_MODES, "l2": ALL_MODES},
)
def mse(prediction: Prediction, target_NHW: "torch.Tensor") -> "torch.Tensor":
    """Squared error of the values against the one-hot reference, averaged over pixels and channels."""
    values = prediction.values_NKHW
    truth = class_masks(target_NHW, _class_range(prediction)).to(values.dtype)
    return _mean_over((values - truth).square(), valid_pixels(target_NHW))


def _overlap_sums(
    prediction: Prediction, target_NHW: "torch.Tensor", reduction: str, squared: bool, classes: str
) -> tuple["torch.Tensor", "torch.Tensor", "torch.Tensor"]:
    """Sum p y, sum p (or p^2), sum y per class: (1, K) pooled over the batch, or (N, K) per image."""
    _log_odds(prediction)
    p = prediction.values_NKHW
    y = class_masks(target_NHW, _class_range(prediction)).to(p.dtype)
    if prediction.mode == "softmax" and classes == "foreground":
        p, y = p[:, 1:], y[:, 1:]
    weight = valid_pixels(target_NHW).unsqueeze(1).to(p.dtype)
    over = (0, 2, 3) if reduction == "batch" else (2, 3)
    both, predicted = (p * y * weight).sum(over), ((p * p if squared else p) * weight).sum(over)
    truth = (y * weight).sum(over)
    pooled = (1, -1) if reduction == "batch" else (p.shape[0], -1)
    return both.reshape(pooled), predicted.reshape(pooled), truth.reshape(pooled)


def _one_minus_overlap(
    numerator: "torch.Tensor", denominator: "torch.Tensor", truth: "torch.Tensor", smooth: float, empty: str
) -> "torch.Tensor":
    """Mean of 1 - (numerator + smooth) / (denominator + smooth) over the pools and classes that count."""
    import torch

    # The least positive denominator: with p = y = 0 the ratio is 0 / 0, and 0 with a finite gradient is wanted.
    tiny = torch.finfo(denominator.dtype).tiny
    ratio = (numerator + smooth) / (denominator + smooth).clamp_min(tiny)
    counted = torch.ones_like(truth) if empty == "formula" else (truth > 0).to(truth.dtype)
    return ((1 - ratio) * counted).sum() / counted.sum().clamp_min(1)


_OVERLAP_SIDE_EFFECTS = "favours over-segmenting small objects' volume; probabilities are pushed to 0 and 1"


@loss(
    needs="log_odds",
    formula="1 - mean_c (2 sum p y + s) / (sum p + sum y + s)",
    proper=False,
    side_effects=_OVERLAP_SIDE_EFFECTS,
    source="Milletari et al. 2016, arXiv:1606.04797",
)
def dice(
    prediction: Prediction,
    target_NHW: "torch.Tensor",
    *,
    reduction: Literal["batch", "image"] = "batch",
    smooth: Annotated[float, NOT_NEGATIVE] = 0.0,
    squared: bool = False,
    classes: Literal["foreground", "all"] = "foreground",
    empty: Literal["skip", "formula"] = "skip",
) -> "torch.Tensor":
    """Soft Dice loss.

    reduction: sums are taken over the whole batch, or within each image. squared: p^2 in the denominator. classes:
    whether softmax's background is one of the classes averaged. empty: a class that the reference (of the pool) does
    not hold is left out of the mean (skip; 0 with zero gradient if none is left), or enters by the formula, where it
    is 1 without smoothing, whatever is predicted.
    """
    both, predicted, truth = _overlap_sums(prediction, target_NHW, reduction, squared, classes)
    return _one_minus_overlap(2 * both, predicted + truth, truth, smooth, empty)


@loss(
    needs="log_odds",
    formula="1 - mean_c (sum p y + s) / (sum p + sum y - sum p y + s)",
    proper=False,
    side_effects=_OVERLAP_SIDE_EFFECTS,
    source="Rahman and Wang 2016",
    aliases={"iou": ALL_MODES},
)
def jaccard(
    prediction: Prediction,
    target_NHW: "torch.Tensor",
    *,
    reduction: Literal["batch", "image"] = "batch",
    smooth: Annotated[float, NOT_NEGATIVE] = 0.0,
    squared: bool = False,
    classes: Literal["foreground", "all"] = "foreground",
    empty: Literal["skip", "formula"] = "skip",
) -> "torch.Tensor":
    """Soft Jaccard (intersection over union) loss; options as for `dice`."""
    both, predicted, truth = _overlap_sums(prediction, target_NHW, reduction, squared, classes)
    return _one_minus_overlap(both, predicted + truth - both, truth, smooth, empty)


@loss(
    needs="log_odds",
    formula="dice_weight * dice + ce_weight * ce",
    proper=False,
    side_effects="between those of its two terms",
    source="Isensee et al. 2021 (nnU-Net)",
)
def dice_ce(
    prediction: Prediction,
    target_NHW: "torch.Tensor",
    *,
    dice_weight: Annotated[float, NOT_NEGATIVE] = 1.0,
    ce_weight: Annotated[float, NOT_NEGATIVE] = 1.0,
    reduction: Literal["batch", "image"] = "batch",
    smooth: Annotated[float, NOT_NEGATIVE] = 0.0,
    squared: bool = False,
    classes: Literal["foreground", "all"] = "foreground",
    empty: Literal["skip", "formula"] = "skip",
) -> "torch.Tensor":
    """Weighted sum of `dice` (with its options) and `ce`."""
    overlap = dice(
        prediction, target_NHW, reduction=reduction, smooth=smooth, squared=squared, classes=classes, empty=empty
    )
    return dice_weight * overlap + ce_weight * ce(prediction, target_NHW)
