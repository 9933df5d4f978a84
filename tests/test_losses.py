"""Losses against plain NumPy, torch, segmentation-models-pytorch and MONAI; ignored pixels, empty masks, extremes."""

import functools
import itertools
import math
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import grey_dilation, grey_erosion
from scipy.special import ndtr
from skimage.morphology import diamond, dilation, thin

from segexp.activations.head import Prediction, make_head
from segexp.activations.output import ALL_MODES, OUTPUT_ACTIVATIONS, HeadMode
from segexp.losses import (
    IGNORE,
    LOSSES,
    class_masks,
    fits,
    incompatibility,
    map_functions,
    maps_of,
    region,
    valid_pixels,
)
from segexp.losses.pixelwise import focal, matching
from segexp.losses.region import (
    Planes,
    dice,
    generalized_dice,
    jaccard,
    log_cosh_dice,
    lovasz,
    tversky,
)
from segexp.registry import Option

Array = np.ndarray[Any, np.dtype[Any]]

PAIRS: list[tuple[str, str, HeadMode]] = [
    (activation.name, loss.name, mode)
    for loss in LOSSES.values()
    for activation in OUTPUT_ACTIVATIONS.values()
    for mode in ALL_MODES
    if fits(activation, loss, mode)
]
"""Every (activation, loss, mode) that means something."""


KINDS_OF_F = ("sigmoid", "normal_cdf", "cloglog", "hardsigmoid", "minmax_linear", "identity")
"""An activation of each kind of phi: linear, curved, exponential, clipped, of the whole batch, and none."""

KINDS_OF_LOSS = ("ce", "mse", "matching", "dice")
"""A loss of log-odds, of values, with a gradient of its own, and of regions; other pairs of the rest are left to CI."""


def usual(activation: str, loss: str, mode: HeadMode) -> bool:
    """By default: each activation with a kind of loss and each loss with two kinds of activation, in turns, each pair
    in one mode; and the kinds of both in every mode."""
    modes = [m for m in ALL_MODES if fits(OUTPUT_ACTIVATIONS[activation], LOSSES[loss], m)]
    turn = list(LOSSES).index(loss)
    if mode != modes[(turn + list(OUTPUT_ACTIVATIONS).index(activation)) % len(modes)]:
        return activation in KINDS_OF_F and loss in KINDS_OF_LOSS
    return loss in KINDS_OF_LOSS or activation in KINDS_OF_F[turn % 3 :: 3]


def in_every_mode(check: Callable[[str, str, HeadMode], None]) -> Callable[[str, bool], None]:
    """One test for each loss, through the activations and head modes that fit: the usual ones, or the rest."""

    def test(loss: str, rest: bool) -> None:
        for pair in PAIRS:
            if pair[1] == loss and usual(*pair) != rest:
                check(*pair)

    test.__doc__ = check.__doc__
    slow = pytest.mark.slow
    marked: Callable[[str, bool], None] = pytest.mark.parametrize("loss", LOSSES)(
        pytest.mark.parametrize("rest", [False, pytest.param(True, marks=slow)])(test)
    )
    return marked


MANY_OPTIONS = ("dice_ce", "focal_tversky")
"""Losses with the most combinations of options, of parts whose own are tested by default: these are left to CI."""


def with_modes(losses: Iterable[str]) -> pytest.MarkDecorator:
    """Each loss in every mode. By default in one, in turn, and not `MANY_OPTIONS`; the rest is slow."""
    usual = {loss: ALL_MODES[n % len(ALL_MODES)] for n, loss in enumerate(LOSSES)}
    return pytest.mark.parametrize(("loss", "mode"), [
        pytest.param(loss, mode, marks=[pytest.mark.slow] * (loss in MANY_OPTIONS or mode != usual[loss]))
        for loss in losses for mode in ALL_MODES
    ])  # fmt: skip


OPTIONS_OF_SUM = {"terms": {"dice": 1, "ce": {"weight": 0.5, "label_smoothing": 0.1}}}
NUM_CLASSES = {"binary": 2, "independent": 4, "softmax": 4}
CHANNELS: dict[HeadMode, int] = {"binary": 1, "independent": 3, "softmax": 4}


def predict(name: str, mode: HeadMode, logits: torch.Tensor) -> Prediction:
    return make_head(OUTPUT_ACTIVATIONS[name], mode)(logits)


def loss_and_gradient(
    activation: str, loss: str, mode: HeadMode, logits: torch.Tensor, target: torch.Tensor, **options: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    leaf = logits.clone().requires_grad_()
    value = LOSSES[loss].function(predict(activation, mode, leaf), target, **(needed(loss, activation) | options))
    (gradient,) = torch.autograd.grad(value, leaf)
    return value.detach(), gradient


def needed(loss: str, activation: str) -> dict[str, Any]:
    """Options without which a loss means nothing."""
    if loss != "sum":
        return {}
    return OPTIONS_OF_SUM if "log_odds" in OUTPUT_ACTIVATIONS[activation].offers else {"terms": {"mse": 1, "l1": 2}}


MORE: dict[Any, float] = {
    "label_smoothing": 0.2,
    "gamma": 1.0,
    "focal_weight": 0.25,
    "delta": 0.8,
    ("unified_focal", "gamma"): 0.25,
}
"""The second value of a number, of every loss or of one; of others it is the default plus 3/4."""


def second_value(loss: str, option: Option) -> float:
    more = option.default + 1 if option.type is int else min(option.default + 0.75, option.range.high)
    return MORE.get((loss, option.name), MORE.get(option.name, more))


def option_sets(loss: str, mode: HeadMode) -> Iterator[dict[str, Any]]:
    """Every combination of a loss's options; numbers take their default and one more value."""
    if loss == "sum":
        yield OPTIONS_OF_SUM
        return
    settings: list[tuple[Any, ...]] = []
    for o in LOSSES[loss].options:
        if o.name == "class_weights":
            settings.append((None, [0.5, 2.0, 1.0, 0.25][: NUM_CLASSES[mode]]))
        elif o.type is bool:
            settings.append((False, True))
        elif o.choices:
            settings.append(o.choices)
        else:
            settings.append((o.default, second_value(loss, o)))
    for combination in itertools.product(*settings):
        yield {o.name: value for o, value in zip(LOSSES[loss].options, combination, strict=True)}


def mixed_target(mode: HeadMode) -> torch.Tensor:
    """(4, 4, 5): all classes but the last; an image without class 2, one without foreground, one ignored; holes."""
    last = NUM_CLASSES[mode] - 1
    target = torch.arange(80).reshape(4, 4, 5) * 7 % max(last, 2)
    target[0][target[0] == 2] = 1
    target[2] = 0
    target[3] = IGNORE
    target[:, 1, 2:4] = IGNORE
    return target


def full_target(mode: HeadMode) -> torch.Tensor:
    """(2, 4, 5): every class in every image, and holes."""
    target = torch.arange(40).reshape(2, 4, 5) * 7 % NUM_CLASSES[mode]
    target[:, 2, :2] = IGNORE
    return target


def random_logits(mode: HeadMode, images: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return 2 * torch.randn(4, CHANNELS[mode], 4, 5, generator=generator, dtype=dtype)[:images]


# The references: probabilities from F(x) as written in books, and losses written out over single classes and pixels.

LINKS: dict[str, Callable[[Array], Array]] = {
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "arctan": lambda x: 0.5 + np.arctan(x) / np.pi,
    "normal_cdf": ndtr,
}


def values_of(activation: str, mode: HeadMode, logits: Array) -> Array:
    if activation not in LINKS:
        return logits
    p = LINKS[activation](logits)
    odds = p / (1 - p)
    return odds / odds.sum(axis=1, keepdims=True) if mode == "softmax" else p


def planes_of(target: Array, mode: HeadMode) -> Array:
    classes = range(0 if mode == "softmax" else 1, NUM_CLASSES[mode])
    return np.stack([target == c for c in classes], axis=1).astype(float)


def pixel_reference(
    p: Array,
    y: Array,
    valid: Array,
    mode: HeadMode,
    *,
    yes: Callable[[Array], Array],
    no: Callable[[Array], Array],
    class_weights: list[float] | None = None,
    label_smoothing: float = 0.0,
    share: float = 1.0,
) -> float:
    """Errors yes(p) of a pixel that is of the class and no(p) of one that is not, weighted, pixel by pixel.

    share: of the pixels (of each channel where it has errors of its own) that count, the worst first.
    """
    found: list[tuple[float, float]] = []
    classes = range(p.shape[1]) if mode == "softmax" else range(1, p.shape[1] + 1)
    weights = class_weights or [1.0] * (len(classes) + (mode != "softmax"))
    alternatives = p.shape[1] if mode == "softmax" else 2
    for n, h, w in zip(*np.nonzero(valid), strict=True):
        error = weight = 0.0
        for k, c in enumerate(classes):
            label = y[n, k, h, w]
            soft = label * (1 - label_smoothing) + label_smoothing / alternatives
            error += soft * weights[c] * yes(p[n, k, h, w])
            weight += label * weights[c]
            if mode != "softmax":
                error += (1 - soft) * weights[0] * no(p[n, k, h, w])
                weight += (1 - label) * weights[0]
                found.append((error, weight))
                error = weight = 0.0
        if mode == "softmax":
            found.append((error, weight))
    found.sort(reverse=True)
    parts = np.clip(max(share * len(found), 1) - np.arange(len(found)), 0, 1)
    errors, of_labels = np.array(found).reshape(-1, 2).T @ parts
    return float(errors / of_labels) if of_labels else 0.0


def ce_reference(*arrays: Any, **options: Any) -> float:
    return pixel_reference(*arrays, yes=lambda p: -np.log(p), no=lambda p: -np.log(1 - p), **options)


def focal_reference(*arrays: Any, gamma: float, **options: Any) -> float:
    return pixel_reference(
        *arrays,
        yes=lambda p: -((1 - p) ** gamma) * np.log(p),
        no=lambda p: -(p**gamma) * np.log(1 - p),
        **options,
    )


def poly1_reference(*arrays: Any, epsilon: float, **options: Any) -> float:
    return pixel_reference(
        *arrays,
        yes=lambda p: -np.log(p) + epsilon * (1 - p),
        no=lambda p: -np.log(1 - p) + epsilon * p,
        **options,
    )


def nacl_reference(
    *arrays: Any, logits: Array, penalty_weight: float = 0.1, kernel: int = 3, norm: str = "l1"
) -> float:
    """The squares around single pixels, cut off at the border."""
    _, y, valid, mode = arrays
    reach, gaps = kernel // 2, []
    for n, h, w in zip(*np.nonzero(valid), strict=True):
        rows, columns = slice(max(h - reach, 0), h + reach + 1), slice(max(w - reach, 0), w + reach + 1)
        around = valid[n, rows, columns]
        for k in range(y.shape[1]):
            share = y[n, k, rows, columns][around].mean()
            x = logits[n, k, h, w]
            gaps.append(abs((x if mode == "softmax" else (1 + x) / 2) - share) ** {"l1": 1, "l2": 2}[norm])
    return ce_reference(*arrays) + penalty_weight * float(np.mean(gaps))


def value_reference(error: Callable[[Array], Array]) -> Callable[..., float]:
    def reference(p: Array, y: Array, valid: Array, mode: HeadMode) -> float:
        return float(np.mean([error(np.abs(p[:, k][valid] - y[:, k][valid])) for k in range(p.shape[1])]))

    return reference


def smooth_l1_reference(*arrays: Any, beta: float) -> float:
    return value_reference(lambda d: np.where(d < beta, d**2 / (2 * beta), d - beta / 2))(*arrays)


def pools_and_classes(
    arrays: tuple[Array, Array, Array, HeadMode], reduction: str, classes: str
) -> Iterator[list[tuple[int, Array, Array]]]:
    """Per pool, the class index, probabilities and labels of its valid pixels for every class averaged."""
    p, y, valid, mode = arrays
    everything = list(range(len(p)))
    for pool in [everything] if reduction == "batch" else [[n] for n in everything]:
        planes = []
        if mode == "binary" and classes == "all":
            planes.append((0, 1 - p[pool, 0][valid[pool]], 1 - y[pool, 0][valid[pool]]))
        for k in range(1 if mode == "softmax" and classes == "foreground" else 0, p.shape[1]):
            c = k if mode == "softmax" else k + 1
            planes.append((c, p[pool, k][valid[pool]], y[pool, k][valid[pool]]))
        yield planes


def overlap_reference(
    *arrays: Any,
    index: Callable[[Array, Array], float],
    reduction: str = "batch",
    classes: str = "foreground",
    empty: str = "skip",
    class_weights: list[float] | None = None,
) -> float:
    """(Weighted) mean of ``index(p, y)`` over pools and classes."""
    total = weight = 0.0
    for planes in pools_and_classes(arrays, reduction, classes):
        for c, predicted, truth in planes:
            if truth.sum() == 0 and empty == "skip":
                continue
            w = class_weights[c] if class_weights else 1.0
            total += w * index(predicted, truth)
            weight += w
    return total / weight if weight else 0.0


def one_minus(top: float, bottom: float, smooth: float) -> float:
    return 1 - (top + smooth) / (bottom + smooth) if bottom + smooth > 0 else 1.0


def intersection(p: Array, y: Array) -> Array:
    """Of arXiv:2302.05666 and 2303.16296; p y where y is 0 or 1."""
    return (np.abs(p) + np.abs(y) - np.abs(p - y)) / 2


def dice_reference(*arrays: Any, smooth: float = 0.0, squared: bool = False, **options: Any) -> float:
    def index(p: Array, y: Array) -> float:
        if squared:
            return one_minus((2 * p * y).sum(), (p**2 + y**2).sum(), smooth)
        return one_minus(2 * intersection(p, y).sum(), (p + y).sum(), smooth)

    return overlap_reference(*arrays, index=index, **options)


def jaccard_reference(*arrays: Any, smooth: float, squared: bool, **options: Any) -> float:
    def index(p: Array, y: Array) -> float:
        both = (p * y if squared else intersection(p, y)).sum()
        return one_minus(both, (p**2 + y**2 if squared else p + y).sum() - both, smooth)

    return overlap_reference(*arrays, index=index, **options)


def tversky_reference(
    *arrays: Any, alpha: float, beta: float, smooth: float, gamma: float = 1.0, **options: Any
) -> float:
    def index(p: Array, y: Array) -> float:
        tp, fp, fn = intersection(p, y).sum(), np.maximum(p - y, 0).sum(), np.maximum(y - p, 0).sum()
        return one_minus(tp, tp + alpha * fp + beta * fn, smooth) ** gamma

    return overlap_reference(*arrays, index=index, **options)


def generalized_dice_reference(
    *arrays: Any, reduction: str, smooth: float, weighting: str, classes: str, empty: str
) -> float:
    power = {"square": 2, "simple": 1, "uniform": 0}[weighting]
    terms = []
    for planes in pools_and_classes(arrays, reduction, classes):
        volumes = [y.sum() for _, _, y in planes]
        held = [v**-power for v in volumes if v > 0]
        if not held and empty == "skip":
            continue
        absent = 0.0 if empty == "skip" else max(held, default=1.0)
        weights = np.array([v**-power if v > 0 else absent for v in volumes])
        weights /= weights.sum()
        top = sum(w * 2 * intersection(p, y).sum() for w, (_, p, y) in zip(weights, planes, strict=True))
        bottom = sum(w * (p.sum() + y.sum()) for w, (_, p, y) in zip(weights, planes, strict=True))
        terms.append(one_minus(top, bottom, smooth))
    return float(np.mean(terms)) if terms else 0.0


def lovasz_reference(*arrays: Any, **options: Any) -> float:
    """Algorithm 1 of the paper: errors in falling order, each times what its pixel adds to the Jaccard loss."""

    def index(p: Array, y: Array) -> float:
        error = np.abs(y - p)
        total = before = 0.0
        wrong: list[int] = []
        for i in np.argsort(-error, kind="stable"):
            wrong.append(i)
            missed, alarms = y[wrong].sum(), (1 - y[wrong]).sum()
            now = 1 - (y.sum() - missed) / max(y.sum() + alarms, 1)
            total += error[i] * (now - before)
            before = now
        return total

    return overlap_reference(*arrays, index=index, **options)


def mcc_reference(*arrays: Any, reduction: str) -> float:
    terms = []
    for planes in pools_and_classes(arrays, reduction, "foreground"):
        for _, p, y in planes:
            if 0 < y.sum() < len(y):
                tp, fp, fn, tn = (p * y).sum(), (p * (1 - y)).sum(), ((1 - p) * y).sum(), ((1 - p) * (1 - y)).sum()
                terms.append(1 - (tp * tn - fp * fn) / np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)))
    return float(np.mean(terms)) if terms else 0.0


def t_vmf_dice_reference(*arrays: Any, kappa: float, reduction: str) -> float:
    p, y, valid, mode = arrays
    if mode != "softmax":
        p, y = np.concatenate((1 - p, p), axis=1), np.concatenate((1 - y, y), axis=1)
    terms = []
    for planes in pools_and_classes((p, y, valid, "softmax"), reduction, "all"):
        for _, predicted, truth in planes:
            if truth.any():
                cosine = predicted @ truth / np.linalg.norm(predicted) / np.linalg.norm(truth)
                terms.append((1 - ((1 + cosine) / (1 + kappa * (1 - cosine)) - 1)) ** 2)
    return float(np.mean(terms)) if terms else 0.0


def dice_plus_plus_reference(*arrays: Any, gamma: float, smooth: float, **options: Any) -> float:
    def index(p: Array, y: Array) -> float:
        both = 2 * intersection(p, y).sum()
        return one_minus(both, both + (np.abs(p - y) ** gamma).sum(), smooth)

    return overlap_reference(*arrays, index=index, **options)


def unified_focal_reference(
    *arrays: Any, focal_weight: float, delta: float, gamma: float, asymmetric: bool, reduction: str
) -> float:
    p, y, valid, mode = arrays
    errors = []
    for n, h, w in zip(*np.nonzero(valid), strict=True):
        for k in range(p.shape[1]):
            of_class, label = p[n, k, h, w], y[n, k, h, w]
            background = mode == "softmax" and k == 0
            focus = (1 - of_class) ** gamma if background or not asymmetric else 1.0
            errors.append(-(1 - delta if background else delta) * label * focus * np.log(of_class))
            if mode != "softmax":
                errors[-1] -= (1 - delta) * (1 - label) * of_class**gamma * np.log(1 - of_class)
    focal_term = float(np.sum(errors) / valid.sum() / (1 if mode == "softmax" else p.shape[1]))
    terms = []
    for planes in pools_and_classes(arrays, reduction, "all"):
        for c, predicted, truth in planes:
            if truth.sum() > 0:
                tp = intersection(predicted, truth).sum()
                lost, alarms = truth.sum() - tp, predicted.sum() - tp
                exponent = 1.0 if asymmetric and c == 0 else 1 - gamma
                terms.append((1 - tp / (tp + delta * lost + (1 - delta) * alarms)) ** exponent)
    return focal_weight * focal_term + (1 - focal_weight) * float(np.mean(terms))


def dice_ce_reference(*arrays: Any, dice_weight: float, ce_weight: float, **options: Any) -> float:
    return dice_weight * dice_reference(*arrays, **options) + ce_weight * ce_reference(*arrays)


def foreground(values: Array, mode: HeadMode) -> Array:
    return values[:, 1:] if mode == "softmax" else values


def contour_distance(inside: Array, valid: Array) -> Array:
    """Of each pixel to the nearest of the other kind, pixel by pixel; 0 where there is none."""
    distance = np.zeros(inside.shape)
    pixels = np.argwhere(valid)
    for pixel in pixels:
        others = pixels[inside[tuple(pixels.T)] != inside[tuple(pixel)]]
        distance[tuple(pixel)] = np.hypot(*(others - pixel).T).min(initial=np.inf)
    return np.where(np.isfinite(distance), distance, 0)


def of_each_plane(function: Callable[[Array, Array], Array], planes: Array, valid: Array) -> Array:
    return np.stack([[function(plane, v) for plane in image] for image, v in zip(planes, valid, strict=True)])


def boundary_reference(p: Array, y: Array, valid: Array, mode: HeadMode) -> float:
    p, y = foreground(p, mode), foreground(y, mode)
    distance = of_each_plane(contour_distance, y > 0, valid)
    phi = np.where(y > 0, np.minimum(1 - distance, 0), distance)
    return float((p * phi).swapaxes(0, 1)[:, valid].mean())


def hausdorff_reference(p: Array, y: Array, valid: Array, mode: HeadMode, *, alpha: float, two_sided: bool) -> float:
    decided = p == p.max(axis=1, keepdims=True) if mode == "softmax" else p > 0.5
    p, y, decided = (foreground(values, mode) for values in (p, y, decided))
    weight = of_each_plane(contour_distance, y > 0, valid) ** alpha
    if two_sided:
        weight += of_each_plane(contour_distance, decided, valid) ** alpha
    return float(((p - y) ** 2 * weight).swapaxes(0, 1)[:, valid].mean())


def skeleton_recall_reference(p: Array, y: Array, valid: Array, mode: HeadMode, *, tube: int, reduction: str) -> float:
    def tubed(plane: Array, valid: Array) -> Array:
        within = (plane > 0) & valid
        return dilation(thin(within), diamond(tube)) & within

    tubes = of_each_plane(tubed, y, valid).astype(float)
    return overlap_reference(p, tubes, valid, mode, index=lambda p, s: 1 - (p * s).sum() / s.sum(), reduction=reduction)


def soft_skeleton_reference(values: Array, valid: Array, iterations: int) -> Array:
    """Algorithm 1 of the paper."""
    cross, square = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]])[None, None], np.ones((1, 1, 3, 3))
    counts = np.broadcast_to(valid[:, None], values.shape)

    def eroded(x: Array) -> Array:
        return grey_erosion(np.where(counts, x, np.inf), footprint=cross, mode="constant", cval=np.inf)

    def ridge(x: Array) -> Array:
        small = np.where(counts, eroded(x), -np.inf)
        opened = grey_dilation(small, footprint=square, mode="constant", cval=-np.inf)
        return np.where(counts, np.maximum(x - opened, 0), 0)

    thin_ = ridge(values)
    for _ in range(iterations):
        values = np.where(counts, eroded(values), 0)
        thin_ = thin_ + (1 - thin_) * ridge(values)
    return thin_


def cl_dice_reference(
    p: Array, y: Array, valid: Array, mode: HeadMode, *, alpha: float, iterations: int, smooth: float, reduction: str
) -> float:
    thin_p, thin_y = (soft_skeleton_reference(v, valid, iterations) for v in (p, y))
    total = number = 0.0
    pools = (pools_and_classes((*pair, valid, mode), reduction, "foreground") for pair in ((p, y), (thin_p, thin_y)))
    for planes, skeletons in zip(*pools, strict=True):
        for (_, volume_p, volume_y), (_, line_p, line_y) in zip(planes, skeletons, strict=True):
            if volume_y.sum() > 0:
                precision = ((line_p * volume_y).sum() + smooth) / (line_p.sum() + smooth)
                sensitivity = ((line_y * volume_p).sum() + smooth) / (line_y.sum() + smooth)
                total += 1 - 2 * precision * sensitivity / (precision + sensitivity)
                number += 1
    overlap = dice_reference(p, y, valid, mode, reduction=reduction)
    return (1 - alpha) * overlap + alpha * (total / number if number else 0.0)


def sum_reference(*arrays: Any, terms: dict[str, Any]) -> float:
    assert terms == OPTIONS_OF_SUM["terms"]
    return dice_reference(*arrays) + 0.5 * ce_reference(*arrays, label_smoothing=0.1)


REFERENCES: dict[str, Callable[..., float]] = {
    "ce": ce_reference,
    "topk_ce": ce_reference,
    "poly1_ce": poly1_reference,
    "nacl": nacl_reference,
    "focal": focal_reference,
    "mse": value_reference(np.square),
    "l1": value_reference(np.abs),
    "smooth_l1": smooth_l1_reference,
    "matching": ce_reference,
    "dice": dice_reference,
    "jaccard": jaccard_reference,
    "generalized_dice": generalized_dice_reference,
    "tversky": tversky_reference,
    "focal_tversky": tversky_reference,
    "log_cosh_dice": lambda *arrays, **options: math.log(math.cosh(dice_reference(*arrays, **options))),
    "lovasz": lovasz_reference,
    "dice_ce": dice_ce_reference,
    "boundary": boundary_reference,
    "hausdorff_dt": hausdorff_reference,
    "skeleton_recall": skeleton_recall_reference,
    "cl_dice": cl_dice_reference,
    "mcc": mcc_reference,
    "t_vmf_dice": t_vmf_dice_reference,
    "dice_plus_plus": dice_plus_plus_reference,
    "unified_focal": unified_focal_reference,
    "sum": sum_reference,
}


def expected_value(loss: str, p: Array, y: Array, valid: Array, mode: HeadMode, logits: Array, **options: Any) -> float:
    """logits: of the one loss that is no function of p."""
    of_logits = {"logits": logits} if loss == "nacl" else {}
    return REFERENCES[loss](p, y, valid, mode, **options, **of_logits)


def test_every_loss_has_a_reference() -> None:
    """A new loss needs its definition among `REFERENCES`; nothing else in this file needs an edit."""
    assert set(LOSSES) == set(REFERENCES)


@with_modes(LOSSES)
def test_definition_under_every_option(loss: str, mode: HeadMode) -> None:
    for activation in (*LINKS, "identity"):
        if not fits(OUTPUT_ACTIVATIONS[activation], LOSSES[loss], mode):
            continue
        if loss == "sum" and activation == "identity":
            continue
        for target in (mixed_target(mode), full_target(mode)):
            logits = random_logits(mode, len(target))
            p, y = values_of(activation, mode, logits.numpy()), planes_of(target.numpy(), mode)
            valid = target.numpy() != IGNORE
            prediction = predict(activation, mode, logits)
            seen = set()
            for options in option_sets(loss, mode):
                expected = expected_value(loss, p, y, valid, mode, logits.numpy(), **options)
                computed = LOSSES[loss].function(prediction, target, **options)
                assert computed.shape == ()
                rel = 1e-6 if LOSSES[loss].maps else 1e-10  # maps are float32
                assert computed.item() == pytest.approx(expected, rel=rel), (activation, options)
                seen.add(round(expected, 9))
            # Objects of a few pixels are their own skeletons.
            assert len(seen) > 1 or not LOSSES[loss].options or loss in ("sum", "skeleton_recall")


WITH_OPTIONS = [name for name, entry in LOSSES.items() if entry.options and name != "sum"]


@pytest.mark.parametrize("smooth", [0.0, 1.0])
@pytest.mark.parametrize("mode", ["binary", "softmax"])
def test_overlaps_are_those_of_smp(mode: HeadMode, smooth: float) -> None:
    """Every class is present (smp counts an absent class as 0); dice has twice smp's constant, jaccard no holes."""
    import segmentation_models_pytorch as smp

    logits, target = random_logits(mode, 2, torch.float32), full_target(mode)
    prediction = predict("sigmoid", mode, logits)
    name = "binary" if mode == "binary" else "multiclass"
    every: Any = "all" if mode == "softmax" else "foreground"
    theirs = smp.losses.DiceLoss(name, smooth=smooth, ignore_index=IGNORE)(logits, target)
    torch.testing.assert_close(dice(prediction, target, smooth=2 * smooth, classes=every), theirs)
    for alpha, beta in ((0.3, 0.7), (1.0, 1.0)):
        theirs = smp.losses.TverskyLoss(name, alpha=alpha, beta=beta, ignore_index=IGNORE)(logits, target)
        torch.testing.assert_close(tversky(prediction, target, alpha=alpha, beta=beta, classes=every), theirs)
    if mode == "softmax":
        for reduction in ("batch", "image"):
            theirs = smp.losses.LovaszLoss("multiclass", per_image=reduction == "image", ignore_index=IGNORE)
            ours = lovasz(prediction, target, reduction=reduction, classes="all")
            torch.testing.assert_close(ours, theirs(logits, target))
    target[target == IGNORE] = 1
    theirs = smp.losses.JaccardLoss(name, smooth=smooth)(logits, target)
    torch.testing.assert_close(jaccard(prediction, target, smooth=smooth, classes=every), theirs)


@in_every_mode
def test_gradient_is_that_of_the_value(activation: str, loss: str, mode: HeadMode) -> None:
    if loss == "matching":  # whose value is another's
        return
    target = full_target(mode)[:, :3, :2]
    logits = random_logits(mode, 2)[:, :, :3, :2].clone().requires_grad_()
    options = needed(loss, activation)
    assert torch.autograd.gradcheck(
        lambda x: LOSSES[loss].function(predict(activation, mode, x), target, **options), logits, fast_mode=True
    )


@with_modes(WITH_OPTIONS)
def test_gradient_is_that_of_the_value_under_every_option(loss: str, mode: HeadMode) -> None:
    """Every option, and every two of them, off their defaults; all of them together have their value checked above."""
    target = mixed_target(mode)[1:3, :3, :2]
    logits = random_logits(mode, 2)[:, :, :3, :2].clone().requires_grad_()
    defaults = {o.name: o.default for o in LOSSES[loss].options}
    for options in option_sets(loss, mode):
        if sum(options[name] != defaults[name] for name in options) > 2:
            continue
        assert torch.autograd.gradcheck(
            lambda x, options=options: LOSSES[loss].function(predict("arctan", mode, x), target, **options),
            logits,
            fast_mode=True,
        )


@in_every_mode
def test_perfect_and_wrong_predictions(activation: str, loss: str, mode: HeadMode) -> None:
    target = full_target(mode)
    truth = class_masks(target, range(0 if mode == "softmax" else 1, NUM_CLASSES[mode])).float()
    size = 1e6 if "log_odds" in OUTPUT_ACTIVATIONS[activation].offers else 1.0
    # The polynomial of taylor_softmax is least at -1, and large again far below.
    low = 0.0 if size == 1 else -1.0 if activation == "taylor_softmax" else -size
    certain, opposite = truth * (size - low) + low, (1 - truth) * (size - low) + low
    function = functools.partial(LOSSES[loss].function, **({"terms": {"mse": 1, "l1": 1}} if loss == "sum" else {}))
    perfect = function(predict(activation, mode, certain), target).item()
    # A clipped p is 1 - 1e-7, and float32 adds its rounding; focal_tversky and unified_focal take a root of that.
    # The penalty of nacl is on the size of the logits, whatever they predict.
    assert (
        -1e-6 <= perfect < (1e-3 if loss == "unified_focal" else 3e-5)
        or loss == "nacl"
        or (loss == "boundary" and perfect < 0)
    )
    assert function(predict(activation, mode, opposite), target).item() > 0.3


@pytest.mark.parametrize("mode", ALL_MODES)
@pytest.mark.parametrize("loss", LOSSES)
def test_proper_losses_are_least_at_the_true_probabilities(loss: str, mode: HeadMode) -> None:
    """One logit per class for all pixels: stationary, and least, at the classes' shares; not so where not proper."""
    counts = torch.tensor([5, 3, 2][: NUM_CLASSES[mode]] if mode == "binary" else [8, 5, 4, 3])
    target = torch.repeat_interleave(torch.arange(len(counts)), counts).reshape(1, 1, -1)
    share = counts.double() / counts.sum()
    best = torch.log(share) if mode == "softmax" else torch.logit(share[1:])

    def value_and_slope(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        shared = logits.clone().requires_grad_()
        image = shared.view(1, -1, 1, 1).expand(1, len(logits), 1, target.numel())
        value = LOSSES[loss].function(predict("sigmoid", mode, image), target, **needed(loss, "sigmoid"))
        return value.detach(), torch.autograd.grad(value, shared)[0]

    least, slope = value_and_slope(best)
    if LOSSES[loss].proper:
        assert slope.abs().max() < 1e-12
        for k in range(len(best)):
            for step in (-0.1, 0.1):
                moved = best.clone()
                moved[k] += step
                assert value_and_slope(moved)[0] > least
    # Correlation and angle do not see what all p have in common; the other two happen to be stationary there.
    elif loss not in ("mcc", "t_vmf_dice") and (loss, mode) not in (("generalized_dice", "binary"), ("nacl", "binary")):
        assert slope.abs().max() > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_gradient_of_a_very_wrong_pixel(dtype: torch.dtype) -> None:
    """The normal CDF at x = -20 where the truth is 1: a loss with an epsilon gives 0 here."""
    logits = torch.full((1, 1, 1, 1), -20.0, dtype=dtype)
    _, gradient = loss_and_gradient("normal_cdf", "ce", "binary", logits, torch.ones(1, 1, 1, dtype=torch.long))
    rel = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 4e-3}[dtype]
    assert gradient.item() == pytest.approx(-20.049753068527850542, rel=rel)


EDGES = (0.0, 1e-6, 0.5, 1.0, 5.0, 6.24, 10.0, 20.0, 88.0, 100.0, 256.0, 300.0, 1e3, 1e4, 6e4, 1e5, 1e6)


def extreme_case(mode: HeadMode, largest: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Every edge of either sign met by every class, channels shifted against one another, and all channels alike."""
    half = torch.tensor([e for e in EDGES if e <= largest])
    edges = torch.cat([half, -half])
    shifted = torch.stack([edges.roll(5 * k) for k in range(CHANNELS[mode])])
    alike = edges.expand_as(shifted)
    logits = torch.stack([shifted, shifted.flip(1), alike]).unsqueeze(2).repeat(NUM_CLASSES[mode], 1, 1, 1)
    target = torch.arange(NUM_CLASSES[mode]).repeat_interleave(3).view(-1, 1, 1).expand(-1, 1, len(edges))
    return logits, target


DTYPES = [(torch.float32, 1e6), (torch.bfloat16, 1e6), (torch.float16, 6e4)]


def check_extreme_logits(activation: str, loss: str, mode: HeadMode, autocast: torch.dtype | None) -> None:
    """Finite loss and gradients, computed in float32, in every precision, under autocast and without."""
    for dtype, reach in DTYPES:
        # Where it is infinite in half precision it should be, for that is what a gradient scaler looks for.
        overflows = OUTPUT_ACTIVATIONS[activation].overflows_fp16
        logits, target = extreme_case(mode, 10.0 if overflows and dtype == torch.float16 else reach)
        with torch.autocast("cpu", dtype=autocast, enabled=autocast is not None):
            value, gradient = loss_and_gradient(activation, loss, mode, logits.to(dtype), target)
        assert value.dtype == torch.float32
        assert value.isfinite()
        assert gradient.dtype == dtype
        assert gradient.isfinite().all()
        # Divided by a range of logits of 1e5, the gradient of minmax_linear is below the least number of fp16. These
        # images are all of one class: there is no distance to another.
        assert (
            gradient.abs().sum() > 0 or (activation == "minmax_linear" and dtype == torch.float16) or loss == "boundary"
        )


@in_every_mode
def test_extreme_logits(activation: str, loss: str, mode: HeadMode) -> None:
    check_extreme_logits(activation, loss, mode, None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@with_modes(LOSSES)
def test_no_pixel_of_a_class_is_likely(loss: str, mode: HeadMode, dtype: torch.dtype) -> None:
    """All probabilities of a class, or all of their complements, underflow together: the images have an object, and
    the logits one size."""
    target = torch.zeros(2, 32, 32, dtype=torch.long)
    target[0, 5:12, 5:12] = target[1, 20:25, 3:9] = NUM_CLASSES[mode] - 1
    for size in (-1e6, -1e4, -500.0, -110.0, 110.0, 500.0, 1e4, 1e6):
        logits = torch.zeros(2, CHANNELS[mode], 32, 32, dtype=dtype)
        logits[:, -1] = size
        value, gradient = loss_and_gradient("sigmoid", loss, mode, logits, target)
        assert value.isfinite(), size
        assert gradient.isfinite().all(), size


@pytest.mark.slow
@in_every_mode
def test_extreme_logits_under_autocast(activation: str, loss: str, mode: HeadMode) -> None:
    for half in (torch.bfloat16, torch.float16):
        check_extreme_logits(activation, loss, mode, half)


@pytest.mark.parametrize("name", [
    pytest.param(name, marks=[pytest.mark.slow] * (name not in KINDS_OF_F)) for name in OUTPUT_ACTIVATIONS
])  # fmt: skip
def test_gradients_that_no_scale_brings_into_fp16_are_declared(name: str) -> None:
    """A gradient scaler starts at 2^16 and halves its scale down to 1: what is infinite at 1 stays so."""
    bits = torch.arange(0, 2**15, 61, dtype=torch.int16)
    sizes = bits.view(torch.float16)[bits.view(torch.float16) <= 60000]
    infinite = {}
    # The distances of hausdorff_dt are those of a strip of thousands of pixels here, and squared.
    losses = [loss for loss in LOSSES if loss != "hausdorff_dt"]
    for loss, mode in itertools.product(losses, ALL_MODES):
        if fits(OUTPUT_ACTIVATIONS[name], LOSSES[loss], mode):
            every = torch.cat([sizes, -sizes])
            shifted = torch.stack([every.roll(7 * k) for k in range(CHANNELS[mode])])
            logits = shifted[None, :, None].repeat(NUM_CLASSES[mode], 1, 1, 1)
            target = torch.arange(NUM_CLASSES[mode]).view(-1, 1, 1).expand(-1, 1, len(every))
            _, gradient = loss_and_gradient(name, loss, mode, logits, target)
            at = ~gradient.isfinite()
            if at.any():
                infinite[loss, mode] = float(logits[at].abs().min())
    assert bool(infinite) == OUTPUT_ACTIVATIONS[name].overflows_fp16, infinite
    # The mean over a few thousand pixels divides the gradient: it is infinite from ln(65504 * pixels) on.
    assert all(11 < x < 25 for x in infinite.values()), infinite


@with_modes(WITH_OPTIONS)
def test_extreme_logits_under_every_option(loss: str, mode: HeadMode) -> None:
    logits, target = extreme_case(mode, 1e6)
    for options in option_sets(loss, mode):
        value, gradient = loss_and_gradient("normal_cdf", loss, mode, logits, target, **options)
        assert value.isfinite(), options
        assert gradient.isfinite().all(), options


@pytest.mark.parametrize("name", LOSSES)
def test_entry(name: str) -> None:
    entry = LOSSES[name]
    assert entry.name == name == entry.function.__name__.rstrip("_")
    assert entry.needs in ("log_odds", "values")
    assert all(modes and set(modes) <= set(ALL_MODES) for modes in entry.aliases.values())
    assert all((entry.formula, entry.side_effects, entry.source))


def test_masks_of_classes_leave_ignored_pixels_out() -> None:
    target = torch.tensor([[[0, 1, 2, IGNORE]]], dtype=torch.uint8)
    assert class_masks(target, range(1, 3))[0, :, 0].tolist() == [
        [False, True, False, False],
        [False, False, True, False],
    ]
    assert class_masks(target, range(3))[0, 0, 0].tolist() == [True, False, False, False]
    assert valid_pixels(target)[0, 0].tolist() == [True, True, True, False]
    assert valid_pixels(target, None).all()
    assert valid_pixels(target, 2)[0, 0].tolist() == [True, True, False, True]


def soft_labels(mode: HeadMode, images: int) -> torch.Tensor:
    """(N, K, 4, 5) in [0, 1], under softmax summing to 1; one image without any foreground; holes."""
    generator = torch.Generator().manual_seed(2)
    soft = torch.rand(images, CHANNELS[mode], 4, 5, generator=generator, dtype=torch.float64)
    soft = soft / soft.sum(1, keepdim=True) if mode == "softmax" else soft
    soft[0] = 0
    if mode == "softmax":
        soft[0, 0] = 1
    soft[:, :, 2, :2] = math.nan
    return soft


SETS_ONLY = ["lovasz", "mcc", "boundary", "hausdorff_dt", "skeleton_recall", "cl_dice"]
"""Losses that take no soft labels."""

SOFT = [name for name in LOSSES if name not in (*SETS_ONLY, "sum")]


@with_modes(SOFT)
def test_soft_labels_follow_the_definition(loss: str, mode: HeadMode) -> None:
    logits, soft = random_logits(mode, 3), soft_labels(mode, 3)
    prediction = predict("sigmoid", mode, logits)
    p, valid = values_of("sigmoid", mode, logits.numpy()), ~soft.isnan().any(1).numpy()
    for options in option_sets(loss, mode):
        expected = expected_value(loss, p, soft.nan_to_num().numpy(), valid, mode, logits.numpy(), **options)
        computed = LOSSES[loss].function(prediction, soft, **options).item()
        assert computed == pytest.approx(expected, rel=1e-10), options


EXACT = ["dice", "jaccard", "generalized_dice", "tversky", "focal_tversky", "log_cosh_dice", "dice_plus_plus"]
"""Overlaps that are perfect at p = y for soft labels, too."""


@with_modes(EXACT)
def test_overlaps_are_least_where_the_prediction_is_the_soft_label(loss: str, mode: HeadMode) -> None:
    soft = soft_labels(mode, 3)[1:]
    best = soft.nan_to_num(0.5).log() if mode == "softmax" else torch.logit(soft.nan_to_num(0.5))
    noise = random_logits(mode, 2)
    for options in option_sets(loss, mode):
        at_soft, near, far = (
            LOSSES[loss].function(predict("sigmoid", mode, best + step * noise), soft, **options).item()
            for step in (0.0, 1e-3, 0.5)
        )
        assert abs(at_soft) < 1e-10, options
        assert 0 < near < far, options


def test_a_label_of_one_half_is_least_at_one_half() -> None:
    """With the product as intersection it is least at 1."""
    half = torch.full((1, 1, 2, 2), 0.5)
    for loss in EXACT[:2]:
        values = [LOSSES[loss].function(predict("sigmoid", "binary", half * x), half).item() for x in (-0.2, 0, 0.2)]
        assert values[1] == 0 < min(values[0], values[2])


@pytest.mark.parametrize("squared", [False, True])
def test_hard_labels_keep_the_product(squared: bool) -> None:
    """Bit for bit, with its gradient, which min(p, y) halves where p is exactly y."""
    p = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(3)).requires_grad_()
    weight = (torch.arange(40).reshape(2, 1, 4, 5) % 7 > 0).float()
    y = (p.detach() > 0.4) * weight
    for reduction, over in (("batch", (0, 2, 3)), ("image", (2, 3))):
        both, *others = Planes(p, y, weight, torch.ones(3)).sums(reduction, squared)
        product = (p * y * weight).sum(over).reshape(-1, 3)
        assert torch.equal(both, product)
        for a, b in zip(others, (p, y), strict=True):
            assert torch.equal(a, ((b * b if squared else b) * weight).sum(over).reshape(-1, 3))
        assert torch.equal(*(torch.autograd.grad(v.sum(), p)[0] for v in (both, product)))
    certain = torch.full((1, 1, 2, 2), 40.0, dtype=torch.float32)
    assert not planes_of_prediction(certain, torch.ones(1, 2, 2, dtype=torch.long)).soft
    assert planes_of_prediction(certain, torch.ones(1, 1, 2, 2)).soft


def planes_of_prediction(logits: torch.Tensor, target: torch.Tensor) -> Planes:
    return region.planes_of(predict("sigmoid", "binary", logits), target, "foreground")


@pytest.mark.parametrize("mode", ALL_MODES)
@pytest.mark.parametrize("loss", LOSSES)
def test_hard_labels_may_be_any_integers_or_planes(loss: str, mode: HeadMode) -> None:
    target = mixed_target(mode)
    function = functools.partial(LOSSES[loss].function, **needed(loss, "sigmoid"))
    prediction = predict("sigmoid" if loss == "matching" else "arctan", mode, random_logits(mode, 4))
    for dtype in (torch.uint8, torch.int16, torch.int32):
        assert torch.equal(function(prediction, target.to(dtype)), function(prediction, target))
    if loss not in SOFT:
        return
    planes = torch.from_numpy(planes_of(target.numpy(), mode))
    planes = planes.masked_fill((target == IGNORE).unsqueeze(1), math.nan)
    torch.testing.assert_close(function(prediction, planes), function(prediction, target))
    if mode == "binary":
        assert torch.equal(function(prediction, planes[:, 0]), function(prediction, planes))


@pytest.mark.parametrize("mode", ALL_MODES)
@pytest.mark.parametrize("loss", LOSSES)
def test_a_target_of_another_shape_is_refused(loss: str, mode: HeadMode) -> None:
    """Broadcast, it would give a number, and a wrong one. So are plain values where log-odds are needed."""
    prediction, target = predict("sigmoid", mode, random_logits(mode, 2)), full_target(mode)
    for wrong in (target[:1], target.unsqueeze(1), target[:, :1], target[:, :, :1], target[0]):
        with pytest.raises(ValueError, match="logits"):
            LOSSES[loss].function(prediction, wrong, **needed(loss, "sigmoid"))
    if LOSSES[loss].needs == "log_odds":
        with pytest.raises(TypeError, match="needs log-odds"):
            LOSSES[loss].function(predict("identity", mode, random_logits(mode, 2)), target)


def test_labels_and_weights_that_mean_nothing_are_refused() -> None:
    prediction = predict("sigmoid", "softmax", random_logits("softmax", 2))
    for loss in SETS_ONLY:
        with pytest.raises(ValueError, match=loss):
            LOSSES[loss].function(prediction, soft_labels("softmax", 2))
    with pytest.raises(ValueError, match="logits"):
        dice(prediction, soft_labels("binary", 2))
    with pytest.raises(ValueError, match=r"3 .* 4"):
        dice(prediction, full_target("softmax"), class_weights=[1.0, 1.0, 1.0])


def test_log_cosh_keeps_its_value_near_a_perfect_overlap() -> None:
    logits = torch.full((1, 1, 1, 2), 12.0)
    target = torch.ones(1, 1, 2, dtype=torch.long)
    d = dice(predict("sigmoid", "binary", logits), target).item()
    assert 0 < d < 1e-4
    assert log_cosh_dice(predict("sigmoid", "binary", logits), target).item() == pytest.approx(d * d / 2, rel=1e-3)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("class_weights", [None, [0.5, 2.0, 1.0, 0.25]])
def test_cross_entropy_is_that_of_torch(class_weights: list[float] | None, label_smoothing: float) -> None:
    logits, target = random_logits("softmax", 2), full_target("softmax")
    weight = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float64)
    theirs = F.cross_entropy(logits, target, weight, ignore_index=IGNORE, label_smoothing=label_smoothing)
    options = {"class_weights": class_weights, "label_smoothing": label_smoothing}
    ours = LOSSES["ce"].function(predict("sigmoid", "softmax", logits), target, **options)
    torch.testing.assert_close(ours, theirs)
    if not label_smoothing:
        without_gamma = focal(predict("sigmoid", "softmax", logits), target, gamma=0.0, class_weights=class_weights)
        torch.testing.assert_close(without_gamma, theirs)
    logits, target = random_logits("binary", 2), full_target("binary")
    valid = target != IGNORE
    theirs = F.binary_cross_entropy_with_logits(logits[:, 0][valid], target[valid].double())
    torch.testing.assert_close(LOSSES["ce"].function(predict("sigmoid", "binary", logits), target), theirs)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_focal_is_that_of_torchvision(gamma: float) -> None:
    from torchvision.ops import sigmoid_focal_loss

    logits, target = random_logits("binary", 2), full_target("binary")
    ours = focal(predict("sigmoid", "binary", logits), target, gamma=gamma)
    valid = target != IGNORE
    theirs = sigmoid_focal_loss(logits[:, 0][valid], target[valid].double(), alpha=-1, gamma=gamma, reduction="mean")
    torch.testing.assert_close(ours, theirs)
    alpha = sigmoid_focal_loss(logits[:, 0][valid], target[valid].double(), alpha=0.25, gamma=gamma, reduction="sum")
    weighted = focal(predict("sigmoid", "binary", logits), target, gamma=gamma, class_weights=[0.75, 0.25])
    weights = torch.where(target[valid] == 1, 0.25, 0.75).sum().double()
    torch.testing.assert_close(weighted, alpha / weights)


@pytest.mark.slow
@pytest.mark.parametrize("reduction", ["batch", "image"])
@pytest.mark.parametrize("weighting", ["square", "simple", "uniform"])
def test_generalized_dice_is_that_of_monai(weighting: Any, reduction: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        losses = pytest.importorskip("monai.losses")
    logits, target = random_logits("softmax", 2), full_target("softmax")
    target[target == IGNORE] = 1
    theirs = losses.GeneralizedDiceLoss(
        softmax=True, to_onehot_y=True, w_type=weighting, smooth_nr=0, smooth_dr=0, batch=reduction == "batch"
    )(logits, target.unsqueeze(1).double())
    ours = generalized_dice(
        predict("sigmoid", "softmax", logits), target, weighting=weighting, reduction=reduction, empty="skip"
    )
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(("activation", "loss", "mode"), [pair for pair in PAIRS if pair[1] == "matching"])
def test_matching_gradient_is_p_minus_y(activation: str, loss: str, mode: HeadMode) -> None:
    """Also where p is clipped or far in a tail, where the gradient of every other loss dies; the value is ce's."""
    logits, target = 10 * random_logits(mode, 2), full_target(mode)
    value, gradient = loss_and_gradient(activation, loss, mode, logits, target)
    p, y = predict(activation, mode, logits).values_NKHW, planes_of(target.numpy(), mode)
    valid = (target != IGNORE).unsqueeze(1)
    pixels = valid.sum() * (1 if mode == "softmax" else logits.shape[1])
    torch.testing.assert_close(gradient, torch.where(valid, p - torch.from_numpy(y), 0.0) / pixels)
    ce = LOSSES["ce"].function(predict(activation, mode, logits), target)
    assert torch.equal(value, ce)


def test_matching_is_refused_where_it_does_not_exist() -> None:
    taken = {
        mode: [n for n, a in OUTPUT_ACTIVATIONS.items() if incompatibility(a, LOSSES["matching"], mode) is None]
        for mode in ALL_MODES
    }
    assert taken["softmax"] == ["sigmoid", "tanh"]
    nothing = {"minmax_linear", "identity", "learned_tail", "taylor_softmax"}
    assert taken["binary"] == taken["independent"] == [n for n in OUTPUT_ACTIVATIONS if n not in nothing]
    with pytest.raises(ValueError, match="linear"):
        matching(predict("arctan", "softmax", random_logits("softmax", 2)), full_target("softmax"))
    with pytest.raises(ValueError, match="minmax_linear"):
        matching(predict("minmax_linear", "binary", random_logits("binary", 2)), full_target("binary"))


EAGER = [(a, "mse", "softmax" if a == "taylor_softmax" else "binary") for a in OUTPUT_ACTIVATIONS]
EAGER += [("sigmoid" if name == "matching" else "arctan", name, "softmax") for name in LOSSES]
"""Every activation with one loss, and every loss with one activation; without the gradient, a few kinds of each."""

OF_EACH_KIND = {("ce", "binary"), ("dice", "softmax"), ("matching", "binary"), ("matching", "softmax")}
TRACED = []
"""Every activation with a loss of log-odds, of probabilities, or with a gradient of its own, in turns."""
for turn, name in enumerate(OUTPUT_ACTIVATIONS):
    fitting = [pair for pair in PAIRS if pair[0] == name and pair[1:] in OF_EACH_KIND]
    if fitting:
        TRACED.append(fitting[turn % len(fitting)])


FUSED = [
    ("arctan", "dice", "binary"), ("learned_tail", "ce", "binary"), ("hardtanh", "mcc", "binary"),
    ("sigmoid", "matching", "softmax"), ("arctan", "lovasz", "softmax"),
]  # fmt: skip
"""Compiled to machine code, as in training on a GPU."""

NEEDS_COMPILER = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler here")


@pytest.mark.parametrize(("activation", "loss", "mode", "backend"), [
    *(pytest.param(*pair, "eager") for pair in EAGER
      if (pair[0] if pair[1] == "mse" else pair[1]) in ("sigmoid", "minmax_linear", "matching", "boundary", "lovasz")),
    *(pytest.param(*pair, "aot_eager", marks=pytest.mark.slow) for pair in dict.fromkeys([*EAGER, *TRACED])),
    *(pytest.param(*pair, "inductor", marks=[pytest.mark.slow, NEEDS_COMPILER]) for pair in FUSED),
])  # fmt: skip
def test_activation_and_loss_compile_whole(activation: str, loss: str, mode: HeadMode, backend: str) -> None:
    """Captured as one graph; and, which takes longer, with the graph of the gradient traced as well."""
    options = needed(loss, activation) | ({"two_sided": False} if loss == "hausdorff_dt" else {})
    if LOSSES[loss].maps and loss != "sum":
        options["maps"] = maps_of(map_functions(loss, options), full_target(mode), range(1, NUM_CLASSES[mode]))

    def step(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return LOSSES[loss].function(predict(activation, mode, logits), target, **options)

    torch.compiler.reset()
    results = []
    for function in (step, torch.compile(step, fullgraph=True, backend=backend)):
        leaf = random_logits(mode, 2, torch.float32).clone().requires_grad_()
        value = function(leaf, full_target(mode))
        results.append((value.detach(), *torch.autograd.grad(value, leaf)))
    torch.testing.assert_close(results[1], results[0])
