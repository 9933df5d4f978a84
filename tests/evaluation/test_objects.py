"""Matching of objects against panoptica, against values that it gave, and by hand."""

import math

import numpy as np
import pytest
from scipy import ndimage

from segexp.evaluation.objects import match_objects

Masks = tuple[np.ndarray, np.ndarray]


def blobs(seed: int, shape: tuple[int, ...]) -> Masks:
    """A prediction and a reference with some ten objects each, which overlap more or less."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 1000, shape)
    noise = rng.integers(0, 1000, shape)
    smooth = [ndimage.uniform_filter(field.astype(np.float64), 3) for field in (truth + 0.8 * noise, truth)]
    predicted, reference = (field > np.quantile(field, 0.8) for field in smooth)
    return predicted, reference


def mask(*rows: str) -> np.ndarray:
    return np.array([[c == "x" for c in row] for row in rows])


def panoptica_scores(predicted: np.ndarray, reference: np.ndarray) -> tuple[float, ...]:
    """What panoptica finds with its own components, one to one, at an IoU above 0.1 and above 0.5."""
    pytest.importorskip("panoptica")
    from panoptica import (
        ConnectedComponentsInstanceApproximator,
        InputType,
        NaiveThresholdMatching,
        Panoptica_Evaluator,
    )
    from panoptica.metrics import Metric

    found = []
    for threshold in (0.1, 0.5):
        evaluator = Panoptica_Evaluator(
            expected_input=InputType.SEMANTIC,
            instance_approximator=ConnectedComponentsInstanceApproximator(),
            instance_matcher=NaiveThresholdMatching(matching_threshold=threshold, strict_threshold=True),
            instance_metrics=[Metric.IOU],
            global_metrics=[],
        )
        found.append(evaluator.evaluate(*(m.astype(np.uint8) for m in (predicted, reference)))["ungrouped"])
    return found[0].rq, found[1].rq, found[1].sq, found[1].pq


@pytest.mark.parametrize("shape", [(40, 44), (8, 16, 18)])
def test_scores_are_those_of_panoptica(shape: tuple[int, ...]) -> None:
    for seed in range(6):
        masks = blobs(seed, shape)
        assert match_objects(*masks).scores() == pytest.approx(panoptica_scores(*masks), abs=1e-12)
    empty = np.zeros(shape, dtype=bool)
    for masks in ((empty, blobs(0, shape)[1]), (blobs(0, shape)[0], empty), (empty, empty)):
        assert match_objects(*masks).scores() == pytest.approx(panoptica_scores(*masks), nan_ok=True)


@pytest.mark.parametrize(("shape", "wanted"), [
    ((40, 44), (0.5853658536585366, 0.24390243902439024, 0.7234888570877639, 0.17646069685067411)),
    ((8, 16, 18), (0.4117647058823529, 0.11764705882352941, 0.8, 0.09411764705882353)),
])  # fmt: skip
def test_values_that_panoptica_gave(shape: tuple[int, ...], wanted: tuple[float, ...]) -> None:
    assert match_objects(*blobs(1, shape)).scores() == pytest.approx(wanted, abs=1e-12)


def test_each_object_is_matched_once_the_best_pair_first() -> None:
    reference = mask("xxxx.xx..", ".........", "........x")
    predicted = mask("xxx.xx.x.", ".........", ".........")
    found = match_objects(predicted, reference)
    assert found.size_R.tolist() == [4, 2, 1]
    assert found.iou_R.tolist() == [3 / 4, 1 / 3, 0]
    assert found.n_predicted == 3
    assert found.scores() == (2 * 2 / 6, 2 * 1 / 6, 3 / 4, 3 / 4 / 3)


def test_one_object_over_two_counts_once() -> None:
    found = match_objects(mask("xxxxxx"), mask("xxx.xx"))
    assert found.iou_R.tolist() == [3 / 6, 0]
    assert found.scores() == (2 * 1 / 3, 0, 0, 0)  # an IoU of exactly 0.5 is not above it


def test_corners_join_voxels_but_not_pixels() -> None:
    diagonal = mask("x.", ".x")
    assert len(match_objects(diagonal, diagonal).size_R) == 2
    volume = np.zeros((2, 2, 2), dtype=bool)
    volume[0, 0, 0] = volume[1, 1, 1] = True
    assert match_objects(volume, volume).size_R.tolist() == [2]


def test_without_objects_nothing_is_defined_and_false_alarms_score_0() -> None:
    empty, one = mask("..."), mask(".x.")
    assert all(map(math.isnan, match_objects(empty, empty).scores()))
    assert match_objects(one, empty).scores() == match_objects(empty, one).scores() == (0, 0, 0, 0)
