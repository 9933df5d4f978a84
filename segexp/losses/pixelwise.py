"""Losses that are means of the errors of single pixels."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal

from segexp.activations.output import ALL_MODES, OUTPUT_ACTIVATIONS, HeadMode, OutputActivation
from segexp.losses import label_planes, log_odds_of, loss, mean_over, reference_planes, weights_of_classes
from segexp.registry import NOT_NEGATIVE, POSITIVE, Range

if TYPE_CHECKING:
    from torch import Tensor

    from segexp.activations.head import Prediction

Smoothing = Annotated[float, Range(0, 1, below=True)]
Share = Annotated[float, Range(0, 1, above=True)]
Weights = list[float] | None


def _weighted_mean(
    error: Callable[["Tensor"], "Tensor"],
    prediction: "Prediction",
    target: "Tensor",
    class_weights: Weights = None,
    label_smoothing: float = 0.0,
    share: float | None = None,
    of_class: "Tensor | None" = None,
) -> "Tensor":
    """Mean of y w_c error(-phi) + (1 - y) w_0 error(phi) (softmax: of sum_c y_c w_c of_class) over the pixels.

    error: of a label, from the log-odds against it. share: of the pixels that count, the worst first; all by default.
    of_class: softmax: the error where a class is the label; from its log-odds against all others by default.
    """
    y, valid = label_planes(prediction, target)
    phi = log_odds_of(prediction)
    mixed = prediction.mode == "softmax" or target.is_floating_point()
    if not mixed and class_weights is None and not label_smoothing:
        # One error for each pixel: that of its label.
        per_pixel = error((1 - 2 * y.char()) * phi)
        return mean_over(per_pixel, valid) if share is None else _mean_of_worst(per_pixel, valid, share, None)
    y = y.to(phi.dtype)
    weights = weights_of_classes(class_weights, prediction)
    # Mixed with the uniform distribution over the classes, or over yes and no (Szegedy et al. 2016, arXiv:1512.00567).
    soft = y * (1 - label_smoothing) + label_smoothing / (y.shape[1] if prediction.mode == "softmax" else 2)
    if prediction.mode == "softmax":
        w = weights.view(1, -1, 1, 1)
        of_class = error(-prediction.channel_log_odds_NKHW()) if of_class is None else of_class
        per_pixel = (soft * w * of_class).sum(1, keepdim=True)
        weight = (y * w).sum(1, keepdim=True)
    else:
        w = weights[prediction.first :].view(1, -1, 1, 1)
        w_no = weights[0] if prediction.first else 1.0
        per_pixel = soft * w * error(-phi) + (1 - soft) * w_no * error(phi)
        weight = y * w + (1 - y) * w_no
    if share is not None:
        return _mean_of_worst(per_pixel, valid, share, None if class_weights is None else weight)
    if class_weights is None:
        return mean_over(per_pixel, valid)
    # The terms are weighted: divided by the mean weight of the labels before smoothing, as torch's cross_entropy does.
    total = mean_over(weight, valid)
    return mean_over(per_pixel, valid) / total.where(total > 0, 1.0)


def _mean_of_worst(error_NKHW: "Tensor", valid_NHW: "Tensor", share: float, weight_NKHW: "Tensor | None") -> "Tensor":
    """Sum of the largest errors over their number, or over their weights."""
    import torch

    counts = valid_NHW.unsqueeze(1).expand_as(error_NKHW)
    # The size of the selection depends on the shape alone, and the number within it stays on the device: no sync.
    worst, at = error_NKHW.where(counts, -1.0).flatten().topk(max(1, math.ceil(share * error_NKHW.numel())))
    number = share * counts.sum().to(worst.dtype)
    taken = (number - torch.arange(len(worst), device=worst.device)).clamp(0, 1) * counts.flatten()[at]
    total = (taken if weight_NKHW is None else taken * weight_NKHW.flatten()[at]).sum()
    return (worst * (taken / total.where(total > 0, 1.0))).sum()


def _cross_entropy(prediction: "Prediction", target: "Tensor", epsilon: float = 0.0, **options: Any) -> "Tensor":
    """Mean of -ln p + epsilon (1 - p), p the probability of the pixel's label."""
    import torch.nn.functional as F

    def error(against: "Tensor") -> "Tensor":
        log_loss = F.softplus(against, threshold=30)
        return log_loss + epsilon * against.sigmoid() if epsilon else log_loss

    if prediction.mode == "softmax":
        log_p = log_odds_of(prediction).log_softmax(1)
        options["of_class"] = epsilon * (1 - log_p.exp()) - log_p if epsilon else -log_p
    return _weighted_mean(error, prediction, target, **options)


@loss(
    formula="-mean[y ln p + (1 - y) ln(1 - p)]; softmax: -mean ln p_y",
    proper=True,
    side_effects="none; dominated by the background if the foreground is small (not proper with class_weights or "
    "label_smoothing)",
    source="Good 1952 (logarithmic score)",
    aliases={"bce": ("binary", "independent"), "nll": ALL_MODES},
)
def ce(
    prediction: "Prediction", target: "Tensor", *, class_weights: Weights = None, label_smoothing: Smoothing = 0.0
) -> "Tensor":
    """Cross-entropy from the log-odds: binary per channel, or over the classes under softmax.

    class_weights: weight of the errors on each class's pixels, background first (independent: the background's weight
    applies to every "no").
    """
    return _cross_entropy(prediction, target, class_weights=class_weights, label_smoothing=label_smoothing)


def _worst_are_clipped(activation: OutputActivation, mode: HeadMode) -> str | None:
    if activation.clips and not activation.per_batch:
        return f"the worst pixels are those that {activation.name} clips, which have no gradient (use loss=ce)"
    return None


@loss(
    formula="mean of ce over the share of pixels where it is largest",
    side_effects="most pixels have no gradient; wrong labels are among the worst pixels and get the most weight; "
    "probabilities move towards 1/2 (share=1 is ce)",
    source="Wu et al. 2016, arXiv:1605.06885; nnU-Net's TopK loss",
    incompatible=_worst_are_clipped,
    like=ce,
)
def topk_ce(prediction: "Prediction", target: "Tensor", *, share: Share = 0.1, **options: Any) -> "Tensor":
    """Cross-entropy of the worst pixels of the batch; other options as for `ce`.

    share: how many of the valid pixels count, but at least one; the pixel at the boundary counts in part. Independent
    channels of a pixel are ranked each on its own; with class weights, the weighted errors are ranked.
    """
    return _cross_entropy(prediction, target, share=share, **options)


@loss(
    formula="ce + epsilon mean(1 - p_y), p_y the probability of the pixel's label",
    side_effects="epsilon > 0 pushes probabilities to 0 and 1 (over-confident), epsilon < 0 towards 1/2; 0 is ce",
    source="Leng et al. 2022, arXiv:2204.12511 (Poly-1)",
    like=ce,
)
def poly1_ce(
    prediction: "Prediction", target: "Tensor", *, epsilon: Annotated[float, Range(-1)] = 1.0, **options: Any
) -> "Tensor":
    """Cross-entropy whose first polynomial coefficient is 1 + epsilon; other options as for `ce`.

    Takes soft labels, but unless epsilon = 0 its least value is not at p = y.
    """
    return _cross_entropy(prediction, target, epsilon, **options)


@loss(
    formula="ce + penalty_weight mean |x_c - t_c|^n, x the logits, t_c the share of class c among the labels in a "
    "square around the pixel, n = 1 (norm=l1) or 2 (l2); binary, independent: (1 + x) / 2 for x_c",
    side_effects="under-confident: keeps the logits in [0, 1] (binary, independent: [-1, 1]) where it outweighs ce, "
    "whatever F is; smooths labels at boundaries",
    source="Murugesan et al. 2023, arXiv:2303.06268 (NACL)",
)
def nacl(
    prediction: "Prediction",
    target: "Tensor",
    *,
    penalty_weight: Annotated[float, NOT_NEGATIVE] = 0.1,
    kernel: Literal[3, 5, 7] = 3,
    norm: Literal["l1", "l2"] = "l1",
) -> "Tensor":
    """Neighbour-aware calibration: cross-entropy with logits that stay near the shares of the classes around them.

    As in the source it is the logits that are bounded (times `activation.slope`), not phi: the pull on the network is
    the same for every F, and finite where phi grows as e^x. kernel: width in pixels of the square; its labels count
    within the image, unless ignored. A single logit x stands for the pair (1 - x) / 2 and (1 + x) / 2, which has the
    same softmax and sums to 1 as the shares do. Takes soft labels, but its least value is not at p = y.
    """
    import torch
    import torch.nn.functional as F

    y, valid = reference_planes(prediction, target)
    labels, pixels = (
        F.avg_pool2d(values, kernel, stride=1, padding=kernel // 2) for values in (y, valid.unsqueeze(1).to(y.dtype))
    )
    x = prediction.slope * prediction.logits_NKHW
    gap = (x if prediction.mode == "softmax" else (1 + x) / 2) - labels / pixels.clamp_min(torch.finfo(y.dtype).tiny)
    penalty = mean_over(gap.abs() if norm == "l1" else gap.square(), valid)
    return ce(prediction, target) + penalty_weight * penalty


@loss(
    formula="-mean[y (1 - p)^gamma ln p + (1 - y) p^gamma ln(1 - p)]; softmax: -mean (1 - p_y)^gamma ln p_y",
    side_effects="shifts calibration: probabilities move towards 1/2 (under-confident); gradients are small where the "
    "prediction is right",
    source="Lin et al. 2017, arXiv:1708.02002; calibration: Charoenphakdee et al. 2021, arXiv:2011.09172",
)
def focal(
    prediction: "Prediction",
    target: "Tensor",
    *,
    gamma: Annotated[float, NOT_NEGATIVE] = 2.0,
    class_weights: Weights = None,
    label_smoothing: Smoothing = 0.0,
) -> "Tensor":
    """Focal loss; gamma = 0 is `ce`. The paper's alpha is ``class_weights=[1 - alpha, alpha]``, here normalised."""
    import torch.nn.functional as F

    def error(against: "Tensor") -> "Tensor":
        return -(gamma * F.logsigmoid(against)).exp() * F.logsigmoid(-against)

    return _weighted_mean(error, prediction, target, class_weights, label_smoothing)


@loss(
    needs="values",
    formula="mean (p - y)^2 over pixels and channels",
    proper=True,
    side_effects="gradient vanishes with F' on pixels with a large error",
    source="Brier 1950",
    aliases={"brier": ALL_MODES, "l2": ALL_MODES},
)
def mse(prediction: "Prediction", target: "Tensor") -> "Tensor":
    """Squared error of the values against the one-hot reference, averaged over pixels and channels."""
    y, valid = reference_planes(prediction, target)
    return mean_over((prediction.values_NKHW - y).square(), valid)


@loss(
    needs="values",
    formula="mean |p - y| over pixels and channels",
    side_effects="median, not mean: probabilities are pushed to 0 and 1; gradient vanishes with F'",
    source="Willmott and Matsuura 2005",
    aliases={"mae": ALL_MODES},
)
def l1(prediction: "Prediction", target: "Tensor") -> "Tensor":
    """Absolute error of the values against the one-hot reference, averaged over pixels and channels."""
    y, valid = reference_planes(prediction, target)
    return mean_over((prediction.values_NKHW - y).abs(), valid)


@loss(
    needs="values",
    formula="mean of d^2 / (2 beta) where d < beta, else d - beta / 2; d = |p - y|",
    side_effects="between mse (small errors) and l1 (large ones); with beta = 1 and probabilities it is mse / 2",
    source="Girshick 2015, arXiv:1504.08083",
    aliases={"huber": ALL_MODES},
)
def smooth_l1(prediction: "Prediction", target: "Tensor", *, beta: Annotated[float, POSITIVE] = 0.1) -> "Tensor":
    """Absolute error, squared below beta."""
    import torch.nn.functional as F

    y, valid = reference_planes(prediction, target)
    return mean_over(F.smooth_l1_loss(prediction.values_NKHW, y, beta=beta, reduction="none"), valid)


def _no_matching(activation: OutputActivation, mode: HeadMode) -> str | None:
    if activation.per_batch:
        return f"{activation.name} depends on the whole batch, so it has no matching loss"
    if activation.learnable:
        learned = " and ".join(activation.learnable)
        cure = " (use activation.slope=native)" if activation.learnable == ("slope",) else ""
        return f"the matching loss gives the learned {learned} of {activation.name} no gradient{cure}"
    if mode == "softmax" and not activation.linear:
        return (
            "under softmax the matching loss needs log-odds that are linear in the logit, and those of "
            f"{activation.name} are not (use head.mode=independent)"
        )
    return None


@loss(
    formula="A(x) - y x with A' = F, so that d/dx = p - y; the value shown is the cross-entropy",
    proper=True,
    side_effects="the same gradient rule for every activation: separates the activation from the loss; value and "
    "gradient are those of different functions unless phi is the identity",
    source="Helmbold, Kivinen and Warmuth 1999 (matching loss)",
    incompatible=_no_matching,
)
def matching(prediction: "Prediction", target: "Tensor") -> "Tensor":
    """The loss whose gradient is p - y at every logit for any F; for the sigmoid it is `ce`.

    A(x) - y x is unbounded below for heavy tails, so the value is that of `ce`; only the gradient is A's. Raises
    ValueError if the loss does not exist: under softmax if the log-odds are not linear in the logit (the Jacobian of p
    would not be symmetric), and for an F that depends on the batch.
    """
    log_odds_of(prediction)
    activation = OUTPUT_ACTIVATIONS[prediction.activation] if prediction.activation else None
    reason = _no_matching(activation, prediction.mode) if activation else None
    if reason:
        raise ValueError(reason)
    y, valid = reference_planes(prediction, target)
    residual = (prediction.values_NKHW - y).detach()
    potential = mean_over(prediction.logits_NKHW * residual, valid)
    if prediction.mode == "softmax":
        # `ce` is a mean over pixels, not over their K channels.
        potential = potential * residual.shape[1]
    return ce(prediction, target).detach() + (potential - potential.detach())
