"""Losses that equal others for some options, and the same loss of one logit and of two classes."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from segexp.activations.head import Prediction, make_head
from segexp.activations.output import OUTPUT_ACTIVATIONS, HeadMode
from segexp.losses import IGNORE, LOSSES

CHANNELS: dict[HeadMode, int] = {"binary": 1, "independent": 3, "softmax": 4}


def predict(mode: HeadMode, logits: torch.Tensor, activation: str = "sigmoid") -> Prediction:
    return make_head(OUTPUT_ACTIVATIONS[activation], mode)(logits)


def value_of(loss: str, prediction: Prediction, target: torch.Tensor, **options: Any) -> torch.Tensor:
    return LOSSES[loss].function(prediction, target, **options)


def example(mode: HeadMode) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of two images of 6 x 5 pixels, and a target with every class and ignored pixels."""
    generator = torch.Generator().manual_seed(4)
    logits = 2 * torch.randn(2, CHANNELS[mode], 6, 5, generator=generator, dtype=torch.float64)
    target = torch.randint(2 if mode == "binary" else 4, (2, 6, 5), generator=generator)
    target[:, 1, 2:] = IGNORE
    return logits, target


SAME: list[tuple[str, dict[str, Any], str, dict[str, Any]]] = [
    ("topk_ce", {"share": 1.0}, "ce", {}),
    ("topk_ce", {"share": 1.0, "label_smoothing": 0.2}, "ce", {"label_smoothing": 0.2}),
    ("poly1_ce", {"epsilon": 0.0}, "ce", {}),
    ("nacl", {"penalty_weight": 0.0}, "ce", {}),
    ("dice_plus_plus", {"gamma": 1.0, "classes": "all"}, "dice", {"classes": "all"}),
    ("unified_focal", {"focal_weight": 0.0, "gamma": 0.0}, "tversky", {"alpha": 0.4, "beta": 0.6, "classes": "all"}),
    (
        "unified_focal",
        {"focal_weight": 0.0, "gamma": 0.25, "asymmetric": False, "reduction": "image"},
        "focal_tversky",
        {"alpha": 0.4, "beta": 0.6, "gamma": 0.75, "classes": "all", "reduction": "image"},
    ),
]


@pytest.mark.parametrize("mode", CHANNELS)
@pytest.mark.parametrize(("loss", "options", "other", "of_other"), SAME)
def test_special_cases(
    loss: str, options: dict[str, Any], other: str, of_other: dict[str, Any], mode: HeadMode
) -> None:
    logits, target = example(mode)
    prediction = predict(mode, logits)
    ours, theirs = value_of(loss, prediction, target, **options), value_of(other, prediction, target, **of_other)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)


def test_special_cases_with_weights_of_classes() -> None:
    logits, target = example("softmax")
    prediction, weights = predict("softmax", logits), [0.5, 2.0, 1.0, 0.0]
    theirs = value_of("ce", prediction, target, class_weights=weights)
    torch.testing.assert_close(value_of("topk_ce", prediction, target, share=1.0, class_weights=weights), theirs)
    # The focal term with gamma 0 is the cross-entropy with delta and 1 - delta as weights, not divided by their mean.
    ours = value_of("unified_focal", prediction, target, focal_weight=1.0, gamma=0.0, delta=0.7)
    valid = target != IGNORE
    of_pixels = torch.where(target[valid] == 0, 0.3, 0.7).double()
    weighted = value_of("ce", prediction, target, class_weights=[0.3, 0.7, 0.7, 0.7])
    torch.testing.assert_close(ours, weighted * of_pixels.mean())


def test_topk_is_the_mean_of_the_largest_errors() -> None:
    """As nnU-Net takes it, where the share is a whole number of pixels; a fraction of a pixel counts as such."""
    logits, target = example("softmax")
    target[:, 1, 2:] = 0
    errors = F.cross_entropy(logits, target, reduction="none").flatten().sort(descending=True).values
    prediction = predict("softmax", logits)
    for share, expected in ((0.1, errors[:6].mean()), (0.125, (errors[:7].sum() + errors[7] / 2) / 7.5)):
        torch.testing.assert_close(value_of("topk_ce", prediction, target, share=share), expected)
    # At least one pixel, and of the valid pixels alone.
    torch.testing.assert_close(value_of("topk_ce", prediction, target, share=1e-6), errors[0])
    target[1] = IGNORE
    errors = F.cross_entropy(logits[:1], target[:1], reduction="none").flatten().sort(descending=True).values
    torch.testing.assert_close(value_of("topk_ce", prediction, target, share=0.1), errors[:3].mean())


def test_without_a_background_every_class_is_foreground() -> None:
    logits, target = example("softmax")
    prediction = make_head(OUTPUT_ACTIVATIONS["sigmoid"], "softmax", first=0)(logits)
    of_pixels = value_of("unified_focal", prediction, target, focal_weight=1.0, delta=0.7)
    torch.testing.assert_close(of_pixels, 0.7 * value_of("ce", prediction, target))
    of_regions = value_of("unified_focal", prediction, target, focal_weight=0.0, gamma=0.25)
    theirs = value_of("focal_tversky", prediction, target, alpha=0.4, beta=0.6, gamma=0.75, classes="all")
    torch.testing.assert_close(of_regions, theirs)


@pytest.mark.parametrize("mode", CHANNELS)
def test_nacl_bounds_the_logits_that_the_activation_gets(mode: HeadMode) -> None:
    logits, target = example(mode)
    steeper = make_head(OUTPUT_ACTIVATIONS["arctan"], mode, {"slope": 2.0})(logits)
    theirs = value_of("nacl", predict(mode, 2 * logits, "arctan"), target)
    torch.testing.assert_close(value_of("nacl", steeper, target), theirs)


def test_mcc_is_that_of_smp_and_of_counts() -> None:
    import segmentation_models_pytorch as smp

    logits, target = example("binary")
    valid = target != IGNORE
    theirs = smp.losses.MCCLoss(eps=0)(logits[:, 0][valid].sigmoid()[None], target[valid].double()[None])
    torch.testing.assert_close(value_of("mcc", predict("binary", logits), target), theirs)
    decided = np.corrcoef((logits[:, 0][valid] > 0).numpy(), target[valid].numpy())[0, 1]
    certain = value_of("mcc", predict("binary", 1e6 * logits), target)
    assert certain.item() == pytest.approx(1 - decided, rel=1e-12)


@pytest.mark.parametrize("sign", [1, -1])
def test_correlation_and_angle_keep_their_gradient_where_all_pixels_are_sure(sign: int) -> None:
    """All p next to 0, or all 1 - p: the value is that of 8 times larger ones, and does not underflow."""
    draws = torch.rand(1, 1, 6, 5, generator=torch.Generator().manual_seed(5))
    target = (torch.arange(30).reshape(1, 6, 5) % 3 == 0).long()
    for loss, depth in (("mcc", 30.0), ("t_vmf_dice", 60.0)):
        logits = (sign * (draws - depth)).requires_grad_()
        value = value_of(loss, predict("binary", logits), target if sign > 0 else 1 - target)
        (gradient,) = torch.autograd.grad(value, logits)
        nearer = value_of(loss, predict("binary", logits + sign * np.log(8)), target if sign > 0 else 1 - target)
        assert (gradient.abs() > 0).all()
        if loss == "t_vmf_dice":
            exact = value_of(loss, predict("binary", logits.double() + sign * 40), target if sign > 0 else 1 - target)
            assert (value.item(), nearer.item()) == (pytest.approx(exact.item(), rel=1e-5),) * 2
        else:
            assert (1 - value).item() == pytest.approx((1 - nearer).item() / np.sqrt(8), rel=1e-5)


@pytest.mark.parametrize("loss", ["focal_tversky", "unified_focal", "t_vmf_dice", "mcc", "dice_plus_plus"])
def test_a_perfect_prediction_has_no_gradient(loss: str) -> None:
    """Where the power of the Tversky losses has an infinite slope, and the angle is 0."""
    target = (torch.arange(30).reshape(1, 6, 5) % 3 == 0).long()
    logits = (1e6 * (2.0 * target[:, None] - 1)).requires_grad_()
    value = value_of(loss, predict("binary", logits), target)
    (gradient,) = torch.autograd.grad(value, logits)
    assert value.item() == pytest.approx(0, abs=1e-6)
    assert (gradient == 0).all()


@pytest.mark.parametrize("loss", [name for name, entry in LOSSES.items() if name != "sum" and entry.maps is None])
def test_no_value_is_read_from_the_device(loss: str) -> None:
    """Tensors without storage have none to give: a loss that waits for the device in a step raises here."""
    for mode, channels in CHANNELS.items():
        logits = torch.empty(2, channels, 8, 8, device="meta", requires_grad=True)
        target = torch.empty(2, 8, 8, dtype=torch.long, device="meta")
        value_of(loss, Prediction(mode, logits, logits, "sigmoid"), target).backward()
        assert logits.grad is not None
