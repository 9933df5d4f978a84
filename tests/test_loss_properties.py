"""What holds for every loss, of any images and options. An exception is named, with its reason, and shown to be one."""

import functools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from properties import Scene, repeatable, scenes

from segexp.activations.head import logit_of
from segexp.activations.output import ALL_MODES, OUTPUT_ACTIVATIONS, HeadMode
from segexp.losses import IGNORE, LOSSES, fits

HIGHEST = {
    **dict.fromkeys(("mse", "l1", "smooth_l1", "dice", "jaccard", "generalized_dice", "tversky", "focal_tversky"), 1.0),
    **dict.fromkeys(("lovasz", "dice_plus_plus", "skeleton_recall", "cl_dice"), 1.0),
    "log_cosh_dice": math.log(math.cosh(1)),
    "mcc": 2.0,
    "t_vmf_dice": 4.0,
}
"""Of probabilities; other losses have no bound."""

SIGNED = ("boundary",)
"""Its distances are negative inside of an object. All others are at least 0."""

NEIGHBOURS = ("nacl", "boundary", "hausdorff_dt", "skeleton_recall", "cl_dice")
"""They look at the pixels around. For all others the place of a pixel means nothing."""

HANDED = ("skeleton_recall",)
"""Thinning removes pixels on one side first, so that the skeleton of a mirrored object may be another. For all others
an image and its mirror image are alike."""

WITH_BACKGROUND = ("unified_focal",)
"""It counts the background of a single logit, but not of independent channels. All others give one independent channel
the value of a single logit."""

TERMS = {"terms": {"dice": 1, "ce": {"weight": 0.5, "label_smoothing": 0.1}}}


def fitting(loss: str) -> list[tuple[str, HeadMode]]:
    """Activations and modes of a loss, but for those that mix the pixels of a batch."""
    entries = [a for a in OUTPUT_ACTIVATIONS.values() if not a.per_batch]
    return [(a.name, mode) for a in entries for mode in ALL_MODES if fits(a, LOSSES[loss], mode)]


def of(loss: str, change: Callable[[Any], Any] = lambda pairs: pairs) -> st.SearchStrategy[Scene]:
    """Scenes of a loss, with any of its options. change: of the pairs to choose from."""
    if loss == "sum":
        pairs = [pair for pair in fitting(loss) if OUTPUT_ACTIVATIONS[pair[0]].log_odds]
        return scenes(change(pairs)).map(lambda scene: replace(scene, options=TERMS))
    return scenes(change(fitting(loss)), LOSSES[loss].options)


def of_each_loss(test: Callable[[str, int], None]) -> Callable[[str, int], None]:
    """By default with a few examples; more are left to CI."""
    examples = pytest.mark.parametrize("examples", [4, pytest.param(12, marks=pytest.mark.slow)])
    marked: Callable[[str, int], None] = pytest.mark.parametrize("loss", LOSSES)(examples(test))
    return marked


def value(loss: str, scene: Scene) -> torch.Tensor:
    return LOSSES[loss].function(scene.prediction, scene.target, **scene.options)


def alike(loss: str, first: Scene, second: Scene) -> bool:
    """Up to rounding, of which a root of gamma makes more; distances are float32."""
    return torch.allclose(value(loss, first), value(loss, second), rtol=1e-6 if LOSSES[loss].maps else 1e-7, atol=1e-9)


@of_each_loss
def test_bounds_and_ignored_pixels(loss: str, examples: int) -> None:
    """Nothing depends on what is predicted where the mask is ignored, and a frame of such pixels changes nothing."""

    @repeatable(examples)
    @given(of(loss), st.integers(0, 3), st.integers(0, 3))
    def check(scene: Scene, wider: int, higher: int) -> None:
        ignored = (scene.target == IGNORE).unsqueeze(1)
        scene.logits.requires_grad_()
        found = value(loss, scene)
        (gradient,) = torch.autograd.grad(found, scene.logits)
        assert gradient.isfinite().all()
        assert (gradient[ignored.expand_as(gradient)] == 0).all()
        probable = OUTPUT_ACTIVATIONS[scene.activation].log_odds is not None
        assert found.isfinite()
        assert found >= -1e-9 or loss in SIGNED
        assert found <= HIGHEST.get(loss, math.inf) + 1e-9 or not probable
        if ignored.all() and scene.options.get("empty") != "formula":  # by which 0 / 0 is no overlap
            assert found == 0
        assert value(loss, replace(scene, logits=scene.logits.detach().where(~ignored, 1e6))) == found
        framed = functools.partial(F.pad, pad=(wider, 3 - wider, higher, 0))
        logits, target = framed(scene.logits, value=-3.0), framed(scene.target, value=IGNORE)
        assert alike(loss, scene, replace(scene, logits=logits, target=target))

    check()


@of_each_loss
def test_order_means_nothing(loss: str, examples: int) -> None:
    """Of images, pixels and classes; and each image given twice is the same batch."""

    @repeatable(examples)
    @given(of(loss), st.randoms(use_true_random=False))
    def check(scene: Scene, random: Any) -> None:
        images, pixels = list(range(len(scene.target))), list(range(scene.target[0].numel()))
        random.shuffle(images)
        random.shuffle(pixels)
        assert alike(loss, scene, scene.over(lambda x: x[images]))
        if scene.options.get("reduction") == "image" or not scene.options.get("smooth"):  # a number of pixels
            assert alike(loss, scene, scene.over(lambda x: torch.cat((x, x))))
        if loss not in HANDED:
            assert alike(loss, scene, scene.over(lambda x: x.flip(-1)))
        if loss not in NEIGHBOURS:
            assert alike(loss, scene, scene.over(lambda x: x.flatten(-2)[..., pixels].view(x.shape)))
        if scene.mode != "binary":
            classes = list(range(scene.first, scene.prediction.classes.stop))
            random.shuffle(classes)
            assert alike(loss, scene, scene.with_classes([*range(scene.first), *classes]))

    check()


@of_each_loss
def test_one_logit_is_two_classes(loss: str, examples: int) -> None:
    """Under softmax with the logit of p = 1/2 for the background; and one independent channel, with or without it."""
    binary = [a for a, mode in fitting(loss) if mode == "binary" and OUTPUT_ACTIVATIONS[a].log_odds is not None]
    if loss == "nacl":  # whose penalty is on the logits: (1 - x) / 2 and (1 + x) / 2 have the same
        binary = [a for a in binary if OUTPUT_ACTIVATIONS[a].linear]

    @repeatable(examples)
    @given(of(loss, lambda pairs: [(a, mode) for a, mode in pairs if mode == "binary" and a in binary]))
    def check(scene: Scene) -> None:
        entry, x = OUTPUT_ACTIVATIONS[scene.activation], scene.logits
        if (scene.activation, "softmax") in fitting(loss):
            half = logit_of(entry, torch.zeros(1)).expand_as(x)
            both = ((1 - x) / 2, (1 + x) / 2) if loss == "nacl" else (half, x)
            assert alike(loss, scene, replace(scene, mode="softmax", logits=torch.cat(both, 1)))
        if loss not in WITH_BACKGROUND and scene.options.get("classes") != "all":
            assert alike(loss, scene, replace(scene, mode="independent"))

    check()


OBJECTS = torch.tensor([[0, 0, 1, 1, 1, 0, 0], [0, 1, 1, 1, 1, 1, 0], [0, 1, 0, 0, 1, 0, 0], [1, 1, 0, 1, 1, 0, 0]])


@pytest.mark.parametrize("loss", dict.fromkeys((*SIGNED, *NEIGHBOURS, *HANDED, *WITH_BACKGROUND)))
def test_exceptions_are_needed(loss: str) -> None:
    logits = 20 * OBJECTS.double() - 10 + torch.arange(28.0).view(4, 7) % 5
    scene = Scene("sigmoid", "binary", logits[None, None], OBJECTS[None], options={"tube": 0} if loss in HANDED else {})
    if loss in SIGNED:
        assert value(loss, scene) < 0
    if loss in NEIGHBOURS:
        assert not alike(loss, scene, scene.over(lambda x: x.transpose(-1, -2).reshape(x.shape)))
    if loss in HANDED:
        assert not alike(loss, scene, scene.over(lambda x: x.flip(-1)))
    if loss in WITH_BACKGROUND:
        assert not alike(loss, scene, replace(scene, mode="independent"))
