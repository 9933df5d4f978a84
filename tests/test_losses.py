"""Losses against plain NumPy, torch, segmentation-models-pytorch and MONAI; ignored pixels, empty masks, extremes."""

import itertools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import ndtr

from segexp.activations.head import Prediction, make_head
from segexp.activations.output import ALL_MODES, OUTPUT_ACTIVATIONS, HeadMode
from segexp.losses import LOSSES, dice, dice_ce, fits, jaccard
from segexp.targets import IGNORE, class_masks, valid_pixels

Array = np.ndarray[Any, np.dtype[Any]]

PAIRS = [
    pytest.param(activation.name, loss.name, mode, id=f"{activation.name}-{loss.name}-{mode}")
    for loss in LOSSES.values()
    for activation in OUTPUT_ACTIVATIONS.values()
    if fits(activation, loss)
    for mode in ALL_MODES
]
"""Every (activation, loss, mode) that means something."""

OVERLAPS = [dice, jaccard]
NUM_CLASSES = {"binary": 2, "independent": 4, "softmax": 4}
CHANNELS: dict[HeadMode, int] = {"binary": 1, "independent": 3, "softmax": 4}


def predict(name: str, mode: HeadMode, logits: torch.Tensor) -> Prediction:
    return make_head(OUTPUT_ACTIVATIONS[name], mode)(logits)


def loss_and_gradient(
    activation: str, loss: str, mode: HeadMode, logits: torch.Tensor, target: torch.Tensor, **options: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    leaf = logits.clone().requires_grad_()
    value = LOSSES[loss].function(predict(activation, mode, leaf), target, **options)
    (gradient,) = torch.autograd.grad(value, leaf)
    return value.detach(), gradient


def option_sets(loss: str) -> Iterator[dict[str, Any]]:
    """Every combination of a loss's options; numbers take their default and one more value."""
    entry = LOSSES[loss]
    settings = [
        o.choices or ((False, True) if o.type is bool else (o.default, o.default + 0.75)) for o in entry.options
    ]
    for combination in itertools.product(*settings):
        yield {o.name: value for o, value in zip(entry.options, combination, strict=True)}


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


def ce_reference(p: Array, y: Array, valid: Array, mode: HeadMode) -> float:
    if mode == "softmax":
        return float(-np.log((p * y).sum(axis=1)[valid]).mean())
    terms = [-np.log(p[:, k][valid]) @ y[:, k][valid] for k in range(p.shape[1])]
    terms += [-np.log(1 - p[:, k][valid]) @ (1 - y[:, k][valid]) for k in range(p.shape[1])]
    return float(sum(terms) / (valid.sum() * p.shape[1]))


def mse_reference(p: Array, y: Array, valid: Array, mode: HeadMode) -> float:
    return float(np.mean([(p[:, k][valid] - y[:, k][valid]) ** 2 for k in range(p.shape[1])]))


def overlap_reference(
    p: Array,
    y: Array,
    valid: Array,
    mode: HeadMode,
    *,
    kind: str,
    reduction: str,
    smooth: float,
    squared: bool,
    classes: str,
    empty: str,
) -> float:
    first = 1 if mode == "softmax" and classes == "foreground" else 0
    everything = list(range(len(p)))
    terms = []
    for pool in [everything] if reduction == "batch" else [[n] for n in everything]:
        for k in range(first, p.shape[1]):
            predicted, truth = p[pool, k][valid[pool]], y[pool, k][valid[pool]]
            if truth.sum() == 0 and empty == "skip":
                continue
            both = (predicted * truth).sum()
            total = (predicted**2 if squared else predicted).sum() + truth.sum()
            top, bottom = (2 * both, total) if kind == "dice" else (both, total - both)
            terms.append(1 - (top + smooth) / (bottom + smooth) if bottom + smooth > 0 else 1.0)
    return float(np.mean(terms)) if terms else 0.0


def dice_ce_reference(*arrays: Any, dice_weight: float, ce_weight: float, **options: Any) -> float:
    return dice_weight * overlap_reference(*arrays, kind="dice", **options) + ce_weight * ce_reference(*arrays)


REFERENCES: dict[str, Callable[..., float]] = {
    "ce": ce_reference,
    "mse": mse_reference,
    "dice": lambda *arrays, **options: overlap_reference(*arrays, kind="dice", **options),
    "jaccard": lambda *arrays, **options: overlap_reference(*arrays, kind="jaccard", **options),
    "dice_ce": dice_ce_reference,
}


def test_every_loss_has_a_reference() -> None:
    """A new loss needs its definition among `REFERENCES`; nothing else in this file needs an edit."""
    assert set(LOSSES) == set(REFERENCES)


@pytest.mark.parametrize("mode", ALL_MODES)
@pytest.mark.parametrize("loss", LOSSES)
def test_definition_under_every_option(loss: str, mode: HeadMode) -> None:
    for activation in (*LINKS, "identity"):
        if not fits(OUTPUT_ACTIVATIONS[activation], LOSSES[loss]):
            continue
        for target in (mixed_target(mode), full_target(mode)):
            logits = random_logits(mode, len(target))
            p, y = values_of(activation, mode, logits.numpy()), planes_of(target.numpy(), mode)
            valid = target.numpy() != IGNORE
            prediction = predict(activation, mode, logits)
            seen = set()
            for options in option_sets(loss):
                expected = REFERENCES[loss](p, y, valid, mode, **options)
                computed = LOSSES[loss].function(prediction, target, **options)
                assert computed.shape == ()
                assert computed.item() == pytest.approx(expected, rel=1e-10), (activation, options)
                seen.add(round(expected, 9))
            assert len(seen) > 1 or not LOSSES[loss].options


@pytest.mark.parametrize("mode", ALL_MODES)
@pytest.mark.parametrize("loss", [name for name, entry in LOSSES.items() if entry.options])
def test_every_option_counts(loss: str, mode: HeadMode) -> None:
    """Each option, changed alone, changes the loss; but `classes`, which only softmax has a background for."""
    defaults = {o.name: o.default for o in LOSSES[loss].options}
    prediction = predict("sigmoid", mode, random_logits(mode, 4))
    base = LOSSES[loss].function(prediction, mixed_target(mode)).item()
    for options in option_sets(loss):
        changed = [name for name in options if options[name] != defaults[name]]
        if len(changed) != 1:
            continue
        value = LOSSES[loss].function(prediction, mixed_target(mode), **options).item()
        # In a batch of two classes that holds both, no class is empty: `empty` shows only per image.
        if changed == ["empty"] and mode == "binary":
            per_image = {"reduction": "image"}
            base_here = LOSSES[loss].function(prediction, mixed_target(mode), **per_image).item()
            value = LOSSES[loss].function(prediction, mixed_target(mode), **per_image, empty=options["empty"]).item()
            assert value != pytest.approx(base_here, rel=1e-6), changed
        elif changed == ["classes"] and mode != "softmax":
            assert value == base
        else:
            assert value != pytest.approx(base, rel=1e-6), changed


def test_cross_entropy_is_that_of_torch() -> None:
    logits, target = random_logits("softmax", 2), full_target("softmax")
    expected = F.cross_entropy(logits, target, ignore_index=IGNORE)
    torch.testing.assert_close(LOSSES["ce"].function(predict("sigmoid", "softmax", logits), target), expected)
    logits, target = random_logits("binary", 2), full_target("binary")
    valid = target != IGNORE
    expected = F.binary_cross_entropy_with_logits(logits[:, 0][valid], target[valid].double())
    torch.testing.assert_close(LOSSES["ce"].function(predict("sigmoid", "binary", logits), target), expected)


@pytest.mark.parametrize("smooth", [0.0, 1.0])
@pytest.mark.parametrize("mode", ["binary", "softmax"])
def test_dice_is_that_of_smp(mode: HeadMode, smooth: float) -> None:
    """Where every class is present (smp counts an absent class as a loss of 0), at twice smp's constant."""
    import segmentation_models_pytorch as smp

    logits, target = random_logits(mode, 2), full_target(mode)
    prediction = predict("sigmoid", mode, logits)
    name = "binary" if mode == "binary" else "multiclass"
    theirs = smp.losses.DiceLoss(name, smooth=smooth, ignore_index=IGNORE)(logits, target)
    torch.testing.assert_close(dice(prediction, target, smooth=2 * smooth, classes="all"), theirs)
    if mode == "softmax":
        theirs = smp.losses.DiceLoss(name, classes=[1, 2, 3], smooth=smooth, ignore_index=IGNORE)(logits, target)
        torch.testing.assert_close(dice(prediction, target, smooth=2 * smooth), theirs)


@pytest.mark.parametrize("smooth", [0.0, 1.0])
@pytest.mark.parametrize("mode", ["binary", "softmax"])
def test_jaccard_is_that_of_smp(mode: HeadMode, smooth: float) -> None:
    """Without ignored pixels: smp 0.5 has no ignore_index for this loss."""
    import segmentation_models_pytorch as smp

    logits, target = random_logits(mode, 2), full_target(mode)
    target[target == IGNORE] = 1
    name = "binary" if mode == "binary" else "multiclass"
    theirs = smp.losses.JaccardLoss(name, smooth=smooth)(logits, target)
    torch.testing.assert_close(jaccard(predict("sigmoid", mode, logits), target, smooth=smooth, classes="all"), theirs)


@pytest.mark.slow
@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("reduction", ["batch", "image"])
@pytest.mark.parametrize("mode", ["binary", "softmax"])
def test_overlap_is_that_of_monai(mode: HeadMode, reduction: str, squared: bool) -> None:
    """Jaccard without smoothing, where MONAI doubles numerator and denominator but not its constants."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        losses = pytest.importorskip("monai.losses")
    logits, target = random_logits(mode, 2), full_target(mode)
    target[target == IGNORE] = 1
    prediction = predict("sigmoid", mode, logits)
    head = {"sigmoid": True} if mode == "binary" else {"softmax": True, "to_onehot_y": True}
    for ours, smooth in ((dice, 0.0), (dice, 1.0), (jaccard, 0.0)):
        for classes in ("foreground", "all") if mode == "softmax" else ("foreground",):
            theirs = losses.DiceLoss(
                **head,
                include_background=mode == "binary" or classes == "all",
                jaccard=ours is jaccard,
                squared_pred=squared,
                batch=reduction == "batch",
                smooth_nr=smooth,
                smooth_dr=smooth,
            )(logits, target.unsqueeze(1).double())
            value = ours(prediction, target, reduction=reduction, smooth=smooth, squared=squared, classes=classes)
            torch.testing.assert_close(value, theirs)


@pytest.mark.parametrize(("activation", "loss", "mode"), PAIRS)
def test_gradient_is_that_of_the_value(activation: str, loss: str, mode: HeadMode) -> None:
    target = full_target(mode)[:, :3, :2]
    logits = random_logits(mode, 2)[:, :, :3, :2].clone().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: LOSSES[loss].function(predict(activation, mode, x), target), logits, fast_mode=False
    )


@pytest.mark.parametrize("loss", [f.__name__ for f in (*OVERLAPS, dice_ce)])
def test_gradient_is_that_of_the_value_under_every_option(loss: str) -> None:
    target = mixed_target("softmax")[1:3, :3, :2]
    logits = random_logits("softmax", 2)[:, :, :3, :2].clone().requires_grad_()
    for options in option_sets(loss):
        assert torch.autograd.gradcheck(
            lambda x, options=options: LOSSES[loss].function(predict("arctan", "softmax", x), target, **options),
            logits,
            fast_mode=True,
        )


@pytest.mark.parametrize(("activation", "loss", "mode"), PAIRS)
def test_ignored_pixels_do_not_exist(activation: str, loss: str, mode: HeadMode) -> None:
    """Exactly no gradient there, the same value whatever is predicted there, and the value of the rest alone."""
    logits, target = random_logits(mode, 2, torch.float32), full_target(mode)
    target[:, :, 3:] = IGNORE
    ignored = (target == IGNORE).unsqueeze(1)
    wild = torch.where(ignored, torch.tensor(1e6), logits)
    for options in ({}, {"reduction": "image"}) if LOSSES[loss].function in OVERLAPS else ({},):
        value, gradient = loss_and_gradient(activation, loss, mode, logits, target, **options)
        value_wild, gradient_wild = loss_and_gradient(activation, loss, mode, wild, target, **options)
        assert (gradient[ignored.expand_as(gradient)] == 0).all()
        assert torch.equal(value_wild, value)
        assert torch.equal(gradient_wild, gradient)
        assert gradient.abs().sum() > 0
        alone, _ = loss_and_gradient(activation, loss, mode, logits[..., :3], target[..., :3], **options)
        torch.testing.assert_close(alone, value)


@pytest.mark.parametrize(("activation", "loss", "mode"), PAIRS)
def test_nothing_to_learn_from_is_zero(activation: str, loss: str, mode: HeadMode) -> None:
    target = torch.full((2, 4, 5), IGNORE)
    value, gradient = loss_and_gradient(activation, loss, mode, random_logits(mode, 2, torch.float32), target)
    assert value.item() == 0
    assert (gradient == 0).all()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32], ids=str)
@pytest.mark.parametrize("mode", ALL_MODES)
@pytest.mark.parametrize("loss", LOSSES)
def test_any_integer_target(loss: str, mode: HeadMode, dtype: torch.dtype) -> None:
    prediction = predict("sigmoid", mode, random_logits(mode, 4))
    function = LOSSES[loss].function
    assert torch.equal(function(prediction, mixed_target(mode).to(dtype)), function(prediction, mixed_target(mode)))


@pytest.mark.parametrize(("activation", "loss", "mode"), PAIRS)
def test_constant_targets(activation: str, loss: str, mode: HeadMode) -> None:
    """Masks that are all background, or all one class, under every option where there are some."""
    logits = random_logits(mode, 2, torch.float32)
    for constant in range(NUM_CLASSES[mode]):
        for options in option_sets(loss) if activation == "sigmoid" else ({},):
            target = torch.full((2, 4, 5), constant)
            value, gradient = loss_and_gradient(activation, loss, mode, logits, target, **options)
            assert value.isfinite()
            assert gradient.isfinite().all()


@pytest.mark.parametrize("reduction", ["batch", "image"])
@pytest.mark.parametrize("mode", ALL_MODES)
@pytest.mark.parametrize("overlap", OVERLAPS)
def test_empty_class_is_skipped_or_follows_the_formula(
    overlap: Callable[..., torch.Tensor], mode: HeadMode, reduction: str
) -> None:
    """Without foreground: 0 with zero gradient (skip); 1 whatever is predicted, or s / (sum p + s) (formula)."""
    target = torch.zeros(2, 4, 5, dtype=torch.long)
    for logits in (random_logits(mode, 2), torch.full((2, CHANNELS[mode], 4, 5), -1e6)):
        leaf = logits.clone().requires_grad_()
        prediction = predict("sigmoid", mode, leaf)
        for smooth in (0.0, 0.5):
            skipped = overlap(prediction, target, reduction=reduction, smooth=smooth, empty="skip")
            assert skipped.item() == 0
            (gradient,) = torch.autograd.grad(skipped, leaf, retain_graph=True)
            assert (gradient == 0).all()
        formula = overlap(prediction, target, reduction=reduction, empty="formula")
        assert formula.item() == 1
        (gradient,) = torch.autograd.grad(formula, leaf, retain_graph=True)
        assert (gradient == 0).all()
        smoothed = overlap(prediction, target, reduction=reduction, smooth=0.5, empty="formula")
        p = prediction.values_NKHW.detach()[:, mode == "softmax" :]
        total = p.sum((0, 2, 3)) if reduction == "batch" else p.sum((2, 3))
        torch.testing.assert_close(smoothed.detach(), (1 - 0.5 / (total + 0.5)).mean())


@pytest.mark.parametrize("overlap", OVERLAPS)
def test_empty_images_do_not_dilute_the_mean(overlap: Callable[..., torch.Tensor]) -> None:
    """Per image and skipping: images without the class, or without any valid pixel, are as if they were not there."""
    target = full_target("binary")
    prediction = predict("sigmoid", "binary", random_logits("binary", 2))
    alone = overlap(prediction, target, reduction="image")
    more = torch.cat([target, torch.zeros(1, 4, 5, dtype=torch.long), torch.full((1, 4, 5), IGNORE)])
    together = overlap(predict("sigmoid", "binary", random_logits("binary", 4)), more, reduction="image")
    torch.testing.assert_close(together, alone)


def test_overlap_by_hand() -> None:
    """Two pixels with p = 1/2 each, one of them foreground: dice = 2 (1/2) / (1 + 1), jaccard = (1/2) / (3/2)."""
    prediction = predict("sigmoid", "binary", torch.zeros(1, 1, 1, 2, dtype=torch.float64))
    target = torch.tensor([[[0, 1]]])
    assert dice(prediction, target).item() == pytest.approx(1 - 1 / 2)
    assert jaccard(prediction, target).item() == pytest.approx(1 - 1 / 3)
    assert dice(prediction, target, squared=True).item() == pytest.approx(1 - 1 / 1.5)
    assert jaccard(prediction, target, squared=True).item() == pytest.approx(1 - 0.5 / 1)
    assert dice(prediction, target, smooth=2.0).item() == pytest.approx(1 - 3 / 4)
    assert jaccard(prediction, target, smooth=2.0).item() == pytest.approx(1 - 2.5 / 3.5)


@pytest.mark.parametrize(("activation", "loss", "mode"), PAIRS)
def test_perfect_and_wrong_predictions(activation: str, loss: str, mode: HeadMode) -> None:
    target = full_target(mode)
    truth = class_masks(target, range(0 if mode == "softmax" else 1, NUM_CLASSES[mode])).float()
    size = 1e6 if "log_odds" in OUTPUT_ACTIVATIONS[activation].offers else 1.0
    certain = size * (2 * truth - 1) if size > 1 else truth
    perfect = LOSSES[loss].function(predict(activation, mode, certain), target).item()
    assert 0 <= perfect < 1e-5
    wrong = size * (1 - 2 * truth) if size > 1 else 1 - truth
    assert LOSSES[loss].function(predict(activation, mode, wrong), target).item() > 0.3


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
        value = LOSSES[loss].function(predict("sigmoid", mode, image), target)
        return value.detach(), torch.autograd.grad(value, shared)[0]

    least, slope = value_and_slope(best)
    if LOSSES[loss].proper:
        assert slope.abs().max() < 1e-12
        for k in range(len(best)):
            for step in (-0.1, 0.1):
                moved = best.clone()
                moved[k] += step
                assert value_and_slope(moved)[0] > least
    else:
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


@pytest.mark.parametrize("autocast", [None, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("activation", "loss", "mode"), PAIRS)
def test_extreme_logits(activation: str, loss: str, mode: HeadMode, autocast: torch.dtype | None) -> None:
    """Finite loss and gradients, computed in float32, in every precision, under autocast and without."""
    for dtype, largest in DTYPES:
        logits, target = extreme_case(mode, largest)
        with torch.autocast("cpu", dtype=autocast, enabled=autocast is not None):
            value, gradient = loss_and_gradient(activation, loss, mode, logits.to(dtype), target)
        assert value.dtype == torch.float32
        assert value.isfinite()
        assert gradient.dtype == dtype
        assert gradient.isfinite().all()
        assert gradient.abs().sum() > 0


@pytest.mark.parametrize("mode", ALL_MODES)
@pytest.mark.parametrize("loss", [name for name, entry in LOSSES.items() if entry.options])
def test_extreme_logits_under_every_option(loss: str, mode: HeadMode) -> None:
    logits, target = extreme_case(mode, 1e6)
    for options in option_sets(loss):
        value, gradient = loss_and_gradient("normal_cdf", loss, mode, logits, target, **options)
        assert value.isfinite(), options
        assert gradient.isfinite().all(), options


@pytest.mark.parametrize("mode", ALL_MODES)
@pytest.mark.parametrize("loss", [name for name, entry in LOSSES.items() if entry.needs == "log_odds"])
def test_values_alone_are_refused(loss: str, mode: HeadMode) -> None:
    with pytest.raises(TypeError, match="needs log-odds"):
        LOSSES[loss].function(predict("identity", mode, random_logits(mode, 4)), mixed_target(mode))


@pytest.mark.parametrize("name", LOSSES)
def test_entry(name: str) -> None:
    entry = LOSSES[name]
    assert entry.name == name == entry.function.__name__
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
