import json
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from segexp.evaluation.score import boundary_scores


def square(top: int, left: int, side: int = 6, shape: tuple[int, int] = (16, 16)) -> np.ndarray:
    mask = np.zeros(shape, dtype=bool)
    mask[top : top + side, left : left + side] = True
    return mask


def surface_by_loop(mask: np.ndarray) -> np.ndarray:
    """(n, 2) pixels with one of the four neighbours outside the mask or the image."""
    found = []
    for y, x in np.argwhere(mask):
        around = ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1))
        if not all(0 <= v < mask.shape[0] and 0 <= u < mask.shape[1] and mask[v, u] for v, u in around):
            found.append((y, x))
    return np.array(found, dtype=float)


def scores_by_loop(
    predicted: np.ndarray, reference: np.ndarray, tolerance: float, spacing: tuple[float, float] = (1.0, 1.0)
) -> tuple[float, float]:
    """NSD and HD95 from all pairs of surface pixels."""
    distance = cdist(surface_by_loop(predicted) * spacing, surface_by_loop(reference) * spacing)
    there, back = distance.min(axis=1), distance.min(axis=0)
    nsd = ((there <= tolerance).sum() + (back <= tolerance).sum()) / (len(there) + len(back))
    return nsd, max(np.percentile(there, 95), np.percentile(back, 95))


def random_blobs(seed: int, shape: tuple[int, int] = (14, 11)) -> tuple[np.ndarray, np.ndarray]:
    """Two ragged masks, of a few pixels to nearly all, which often touch the border."""
    rng = np.random.default_rng(seed)
    density = rng.uniform(0.02, 0.9, 2)
    masks = rng.random((2, *shape)) < density[:, None, None]
    masks[:, 5, 5] = True
    return masks[0], masks[1]


def test_golden_case(shared_dir: Path) -> None:
    """A square moved by two columns."""
    golden = json.loads((shared_dir / "golden" / "metric_cases.json").read_text())["surface"]
    nsd, hd95 = boundary_scores(square(4, 6), square(4, 4), 1.0)
    assert (nsd, hd95) == pytest.approx((golden["nsd_tolerance_1"], golden["hd95"]))


def test_empty_prediction() -> None:
    reference = square(2, 2, 3, shape=(30, 40))
    assert boundary_scores(np.zeros_like(reference), reference, 5.0) == (0.0, 50.0)
    assert boundary_scores(np.zeros_like(reference), reference, 99.0, (2.0, 2.0)) == (0.0, 100.0)
    assert boundary_scores(np.zeros_like(reference), reference, 1.0, (1.0, 2.0))[1] == pytest.approx(np.hypot(30, 80))


@pytest.mark.parametrize("predicted", [np.zeros((8, 8), dtype=bool), square(2, 2, 3, (8, 8))])
def test_empty_reference(predicted: np.ndarray) -> None:
    assert np.isnan(boundary_scores(predicted, np.zeros_like(predicted), 1.0)).all()


@pytest.mark.parametrize("seed", range(25))
@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.7, 2.5)])
def test_against_all_pairs(seed: int, spacing: tuple[float, float]) -> None:
    predicted, reference = random_blobs(seed)
    before = predicted.copy(), reference.copy()
    # With equal spacing, distances of exactly 1 or 3 occur; with the other, tolerance and distances carry its unit.
    tolerance = (0.0, 1.0, 1.5, 3.0)[seed % 4]
    found = boundary_scores(predicted, reference, tolerance, spacing)
    assert found == pytest.approx(scores_by_loop(predicted, reference, tolerance, spacing), abs=1e-12)
    assert np.array_equal(before, (predicted, reference)), "masks are left as they are"


@pytest.mark.parametrize("seed", range(8))
def test_empty_space_around_changes_nothing(seed: int) -> None:
    """A mask that ends at the image's border ends as well where the image goes on beyond it."""
    predicted, reference = random_blobs(seed)
    assert predicted[0].any() or reference[0].any() or predicted[:, -1].any()
    wide_p, wide_r = (np.pad(mask, ((3, 17), (11, 2))) for mask in (predicted, reference))
    assert boundary_scores(wide_p, wide_r, 1.0) == pytest.approx(boundary_scores(predicted, reference, 1.0), abs=1e-12)
