"""What holds for every score of a split, of any images. An exception is named, with its reason, and shown to be one."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from properties import Scene, repeatable, scenes

from segexp.activations.head import logit_of
from segexp.activations.output import OUTPUT_ACTIVATIONS, HeadMode
from segexp.evaluation.predict import Scored, Units
from segexp.evaluation.score import Conventions, SplitScores, fit_on_validation, split_scores
from segexp.losses import IGNORE
from segexp.records.scores import PER_IMAGE, SCORES

PAIRS: list[tuple[str, HeadMode]] = [
    (name, mode) for name, entry in OUTPUT_ACTIVATIONS.items() if not entry.per_batch for mode in entry.modes
]

NUMBERS = ("n_gt_nonempty", "n_groups", "hd95_missed")
"""They count images. All others are the same where each image is given twice."""

OF_BOTH = ("dice", "iou", "nsd", "hd95", "object_f1_10", "object_f1_50", "sq", "pq")
"""Scores of an image that see no difference between the prediction and the reference, where neither is empty."""

PERFECT = {"hd95": 0.0, "nll": 0.0, "brier": 0.0}
"""Of an image whose reference is predicted for certain, where it is not 1."""


few_examples = pytest.mark.parametrize("examples", [4, pytest.param(12, marks=pytest.mark.slow)])
"""By default; more are left to CI."""


def scored(scene: Scene, temperature: float | None = None) -> SplitScores:
    """temperature: fitted on the scene itself by default."""
    names = tuple(map(str, range(len(scene.target))))
    batch = [Scored(tuple(range(len(names))), scene.prediction, scene.target, (scene.prediction, scene.target))]
    fitted = fit_on_validation(batch, scene.mode, scene.target.numel())
    fitted = replace(fitted, temperature=temperature or fitted.temperature)
    conventions = Conventions(scene.prediction.classes, scene.mode, "reference", boundary_band=1, surface_tolerance=1.5)
    return split_scores(batch, "test", Units(names, ("",) * len(names)), fitted, conventions)


def alike(one: dict[str, Any], other: dict[str, Any], but: Sequence[str] = ()) -> bool:
    assert one.keys() == other.keys()
    both = [(one[name], other[name]) for name in one if isinstance(one[name], float) and name not in but]
    return all(a == b or (math.isnan(a) and math.isnan(b)) or math.isclose(a, b, abs_tol=1e-9) for a, b in both)


@few_examples
def test_bounds_and_what_changes_no_score(examples: int) -> None:
    """The order of images and classes, a mirror, each image twice, and what is predicted on ignored pixels."""

    @repeatable(examples)
    @given(scenes(PAIRS, side=8), st.randoms(use_true_random=False))
    def check(scene: Scene, random: Any) -> None:
        summary = scored(scene, 2.0).summary
        for row in (summary, *scored(scene, 2.0).images):
            for name in SCORES.keys() & row.keys() - {"distance_unit", "n_test_cases"}:
                assert math.isnan(row[name]) or 0 <= row[name] <= SCORES[name].highest, name
        images = list(range(len(scene.target)))
        random.shuffle(images)
        ignored = (scene.target == IGNORE).unsqueeze(1)
        assert alike(scored(replace(scene, logits=scene.logits.where(~ignored, -9.0)), 2.0).summary, summary)
        assert alike(scored(scene.over(lambda x: x[images]), 2.0).summary, summary)
        assert alike(scored(scene.over(lambda x: x.flip(-1)), 2.0).summary, summary)
        twice = scored(scene.over(lambda x: torch.cat((x, x))), 2.0).summary
        assert alike(twice, summary, NUMBERS)
        assert {name: twice[name] for name in NUMBERS} == {name: 2 * summary[name] for name in NUMBERS}
        if scene.mode != "binary":
            classes = list(range(scene.first, scene.prediction.classes.stop))
            random.shuffle(classes)
            assert alike(scored(scene.with_classes([*range(scene.first), *classes]), 2.0).summary, summary)

    check()


@few_examples
def test_one_logit_is_two_classes(examples: int) -> None:
    """Under softmax with the logit of p = 1/2 for the background, and as one independent channel."""

    @repeatable(examples)
    @given(scenes([(a, mode) for a, mode in PAIRS if mode == "binary" and OUTPUT_ACTIVATIONS[a].log_odds], side=8))
    def check(scene: Scene) -> None:
        half = logit_of(OUTPUT_ACTIVATIONS[scene.activation], torch.zeros(1)).expand_as(scene.logits)
        found = scored(scene)
        for other in (
            replace(scene, mode="softmax", logits=torch.cat((half, scene.logits), 1)),
            replace(scene, mode="independent"),
        ):
            assert all(alike(a, b) for a, b in zip(scored(other, 2.0).images, scored(scene, 2.0).images, strict=True))
            # The search for the temperature ends at another digit.
            after = [name for name in found.summary if name.endswith("_t")]
            assert alike(scored(other).summary, found.summary, after)

    check()


@few_examples
def test_prediction_and_reference_change_places_and_are_perfect_together(examples: int) -> None:
    @repeatable(examples)
    @given(scenes([("sigmoid", "independent")], side=8), st.integers(0, 2**16))
    def check(scene: Scene, seed: int) -> None:
        classes = scene.prediction.classes
        generator = torch.Generator().manual_seed(seed)
        maps = [torch.randint(scene.first, classes.stop, scene.target.shape, generator=generator) for _ in range(2)]

        def of(predicted: torch.Tensor, reference: torch.Tensor) -> list[dict[str, Any]]:
            chosen = torch.stack([predicted == c for c in classes], 1)
            return scored(replace(scene, logits=2000.0 * chosen - 1000, target=reference)).images

        for there, back in zip(of(*maps), of(*maps[::-1]), strict=True):
            if there["n_gt"] and there["n_pred"]:
                assert alike({name: there[name] for name in OF_BOTH}, {name: back[name] for name in OF_BOTH})
        for row in of(maps[0], maps[0]):
            for name in PER_IMAGE:
                assert math.isnan(row[name]) or row[name] == pytest.approx(PERFECT.get(name, 1.0)), name

    check()
