import json
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from segexp.evaluation.boundary import boundary_scores, contour_lengths


def square(top: int, left: int, side: int = 6, shape: tuple[int, int] = (16, 16)) -> np.ndarray:
    mask = np.zeros(shape, dtype=bool)
    mask[top : top + side, left : left + side] = True
    return mask


def surface_by_loop(mask: np.ndarray) -> np.ndarray:
    """(n, 2) pixels with one of the four neighbours outside the mask or the image; (n, 3) voxels, with six."""
    found = []
    steps = [sign * row for row in np.eye(mask.ndim, dtype=int) for sign in (-1, 1)]
    for place in np.argwhere(mask):
        around = [place + step for step in steps]
        if not all((p >= 0).all() and (p < mask.shape).all() and mask[tuple(map(int, p))] for p in around):
            found.append(place)
    return np.array(found, dtype=float)


def scores_by_loop(
    predicted: np.ndarray, reference: np.ndarray, tolerance: float, spacing: tuple[float, ...] = (1.0, 1.0)
) -> tuple[float, float]:
    """NSD and HD95 from all pairs of surface pixels."""
    distance = cdist(surface_by_loop(predicted) * spacing, surface_by_loop(reference) * spacing)
    there, back = distance.min(axis=1), distance.min(axis=0)
    nsd = ((there <= tolerance).sum() + (back <= tolerance).sum()) / (len(there) + len(back))
    return nsd, max(np.percentile(there, 95), np.percentile(back, 95))


def random_blobs(seed: int, shape: tuple[int, ...] = (14, 11)) -> tuple[np.ndarray, np.ndarray]:
    """Two ragged masks, of a few pixels to nearly all, which often touch the border."""
    rng = np.random.default_rng(seed)
    masks = np.stack([rng.random(shape) < density for density in rng.uniform(0.02, 0.9, 2)])
    for mask in masks:
        mask[(5,) * mask.ndim] = True
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


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (5.0, 0.75, 0.5)])
@pytest.mark.parametrize("tolerance", [0.0, 1.0, 4.9])
def test_volumes_against_all_pairs_of_voxels(tolerance: float, spacing: tuple[float, ...]) -> None:
    for seed in range(6):
        predicted, reference = random_blobs(seed, (6, 9, 8))
        wanted = scores_by_loop(predicted, reference, tolerance, spacing)
        assert boundary_scores(predicted, reference, tolerance, spacing) == pytest.approx(wanted, abs=1e-12)
    missed = boundary_scores(np.zeros_like(reference), reference, tolerance, spacing)
    assert missed == (0.0, pytest.approx(np.linalg.norm(np.array([6, 9, 8]) * spacing)))


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


# --- contour length ---------------------------------------------------------------------------------------------------


def contour_by_loop(mask: np.ndarray, spacing: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Corners (n, 2) that the contour passes, and its length around each: segments between the midpoints of the pairs
    of neighbouring centres around the corner that differ, two and two where all four pairs do."""
    wide = np.pad(mask, 1)
    corners, lengths = [], []
    for y, x in np.ndindex(mask.shape[0] + 1, mask.shape[1] + 1):
        centres = [(0, 0), (0, 1), (1, 1), (1, 0)]
        inside = [bool(wide[y + dy, x + dx]) for dy, dx in centres]
        ends = [
            ((a[0] + b[0]) / 2 * spacing[0], (a[1] + b[1]) / 2 * spacing[1])
            for a, b, i, j in zip(centres, centres[1:] + centres[:1], inside, inside[1:] + inside[:1], strict=True)
            if i != j
        ]
        if ends:
            pairs = [(ends[0], ends[1])] if len(ends) == 2 else [(ends[0], ends[1]), (ends[2], ends[3])]
            corners.append((y * spacing[0], x * spacing[1]))
            lengths.append(sum(np.hypot(p[0] - q[0], p[1] - q[1]) for p, q in pairs))
    return np.array(corners), np.array(lengths)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.7, 2.5)])
def test_surface_variant_against_all_pairs(seed: int, spacing: tuple[float, float]) -> None:
    """Ragged masks that touch the border; HD95 is that of the pixels."""
    predicted, reference = random_blobs(seed)
    tolerance = (0.0, 1.0, 1.5, 3.0)[seed % 4]
    (corners_p, lengths_p), (corners_r, lengths_r) = (contour_by_loop(m, spacing) for m in (predicted, reference))
    distance = cdist(corners_p, corners_r)
    close = lengths_p[distance.min(axis=1) <= tolerance].sum() + lengths_r[distance.min(axis=0) <= tolerance].sum()
    nsd, hd95 = boundary_scores(predicted, reference, tolerance, spacing, "surface")
    assert nsd == pytest.approx(close / (lengths_p.sum() + lengths_r.sum()), abs=1e-12)
    assert hd95 == boundary_scores(predicted, reference, tolerance, spacing)[1]
    wide_p, wide_r = (np.pad(mask, ((3, 5), (2, 4))) for mask in (predicted, reference))
    assert boundary_scores(wide_p, wide_r, tolerance, spacing, "surface") == pytest.approx((nsd, hd95), abs=1e-12)


def test_contours_by_hand() -> None:
    root = np.sqrt(2)
    one = np.ones((1, 1), dtype=bool)
    assert contour_lengths(one, (1.0, 1.0)) == pytest.approx(np.full((2, 2), root / 2))  # a diamond
    assert contour_lengths(one, (3.0, 4.0)).sum() == pytest.approx(4 * 2.5)
    # Touching corners are two pixels: their common corner is passed twice.
    assert contour_lengths(np.eye(2, dtype=bool), (1.0, 1.0))[1, 1] == pytest.approx(root)
    # A rectangle of 4 x 6 pixels, 0.5 high and 2 wide, with cut corners; the same at the border of the image.
    rectangle = np.zeros((9, 9), dtype=bool)
    rectangle[2:6, 1:7] = True
    perimeter = 2 * 3 * 0.5 + 2 * 5 * 2.0 + 4 * np.hypot(0.5, 2.0) / 2
    assert contour_lengths(rectangle, (0.5, 2.0)).sum() == pytest.approx(perimeter)
    assert contour_lengths(rectangle[2:6, 1:7], (0.5, 2.0)).sum() == pytest.approx(perimeter)
    # A square moved by 2 of its 6 columns shares four corners along its upper and its lower side, and a cut corner.
    moved, still = square(4, 6), square(4, 4)
    assert boundary_scores(moved, still, 0.0, nsd="surface")[0] == pytest.approx(
        2 * (4 + root / 2) / (4 * 5 + 4 * root / 2)
    )
    assert boundary_scores(moved, still, 2.0, nsd="surface")[0] == 1.0
    assert boundary_scores(~one, one, 1.0, nsd="surface")[0] == 0.0


@pytest.mark.parametrize("radius", [5.5, 20.0])
def test_contour_of_a_circle(radius: float) -> None:
    """Midpoints make an octagon at best: up to 8 (sqrt 2 - 1) / pi = 1.055 times the circle. With half the row height
    it is an ellipse in pixels and the same circle in mm."""
    y, x = np.mgrid[-60:61, -30:31]
    for mask, spacing in ((np.hypot(y, x) <= radius, (1.0, 1.0)), (np.hypot(y / 2, x) <= radius, (0.5, 1.0))):
        length = contour_lengths(mask, spacing).sum()
        assert 1.0 < length / (2 * np.pi * radius) < 1.12
