"""Scores that a plugin computes for each image and class."""

import math
from collections.abc import Sequence

import numpy as np

from segexp.data import seeded
from segexp.errors import UsageError
from segexp.records.scores import OWN, Score


def own_scores(
    scores: Sequence[Score],
    names: Sequence[str],
    masks_2NFHW: np.ndarray,
    valid_NHW: np.ndarray,
    p_NFHW: np.ndarray | None,
) -> dict[str, list[list[float]]]:
    """Column -> value for each of N images and F classes. names: of the images.

    masks_2NFHW: predicted and reference, without ignored pixels. p_NFHW: probabilities, None where the head has none.
    Raises UsageError where a function fails, or returns no number up to the score's ``highest``.
    """
    found: dict[str, list[list[float]]] = {score.name: [] for score in scores}
    for score in scores:
        for n, name in enumerate(names):
            p_F = [None] * masks_2NFHW.shape[2] if p_NFHW is None else p_NFHW[n]
            planes_F = zip(*masks_2NFHW[:, n], p_F, strict=True)
            with seeded(0, score.name, name):
                found[score.name].append([_value(score, name, a, b, valid_NHW[n], p) for a, b, p in planes_F])
    return found


def _value(score: Score, name: str, *planes: np.ndarray | None) -> float:
    assert score.function is not None
    with np.errstate(divide="ignore", invalid="ignore"):  # copies, which a function may change
        value = score.function(*(None if plane is None else plane.copy() for plane in planes))
    if math.isinf(value) or value > score.highest:
        raise UsageError(
            f"the score {score.name.removeprefix(OWN)} of {name} is {value:g}: return a number up to its fact highest="
            f"{score.highest:g}, or NaN where it is undefined"
        )
    return value


def try_score(score: Score) -> None:
    """Raise UsageError where the function fails on small masks, empty ones too: after training would be late."""
    masks_2NFHW = np.zeros((2, 1, 4, 8, 9), dtype=bool)
    masks_2NFHW[0, 0, 1:3, 2:5, 3:6] = masks_2NFHW[1, 0, 2:, 1:4, 2:7] = True  # empty: both, reference, predicted, none
    p_NFHW = np.linspace(0, 1, masks_2NFHW[0].size, dtype=np.float32).reshape(masks_2NFHW.shape[1:])
    for p in (p_NFHW, None):
        own_scores([score], ["small masks"], masks_2NFHW, np.ones((1, 8, 9), dtype=bool), p)
