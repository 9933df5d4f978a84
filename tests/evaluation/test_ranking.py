import functools

import numpy as np
import pytest
import torch

from segexp.activations import OUTPUT_ACTIVATIONS
from segexp.activations.head import make_head
from segexp.evaluation.measures import EVIDENCE_BINS, auroc_and_ap, bin_edges, counts_above, histograms, threshold_grid

ZERO_EDGE = EVIDENCE_BINS // 2 - 1

N = 4000


def exact_auroc(evidence: np.ndarray, truth: np.ndarray) -> float:
    """Share of (foreground, background) pairs in the right order, ties half."""
    difference = evidence[truth][:, None] - evidence[~truth][None]
    return float((difference > 0).mean() + (difference == 0).mean() / 2)


def exact_ap(evidence: np.ndarray, truth: np.ndarray) -> float:
    """Sum over distinct thresholds, descending, of precision times gain in recall, as scikit-learn defines it."""
    ap = previous = 0.0
    for threshold in np.unique(evidence)[::-1]:
        above = evidence >= threshold
        recall = truth[above].sum() / truth.sum()
        ap += truth[above].mean() * (recall - previous)
        previous = recall
    return ap


def histogram_of(evidence: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """(2, EVIDENCE_BINS) of a row of pixels."""
    row = (1, 1, 1, -1)
    everywhere = torch.ones(1, 1, len(truth), dtype=torch.bool)
    return histograms(torch.tensor(evidence).view(row), torch.tensor(truth).view(row), everywhere)[0, 0].numpy()


def drawn(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Truth of which a fifth is foreground, and standard normal evidence that is higher there."""
    rng = np.random.default_rng(seed)
    truth = rng.random(N) < 0.2
    return truth, rng.normal(0.0, 1.0, N) + 1.2 * truth - 0.6


@functools.cache
def exact(seed: int) -> tuple[float, float]:
    """AUROC and average precision of what is drawn, which no change of scale moves."""
    truth, evidence = drawn(seed)
    return exact_auroc(evidence, truth), exact_ap(evidence, truth)


def signed_power(evidence: np.ndarray) -> np.ndarray:
    """The same order, sizes spread evenly over the decades from 1e-6 to 1e6."""
    share = np.clip(np.abs(evidence) / 3, 0, 1)
    return np.sign(evidence) * 10 ** (12 * share - 6)


def test_edges() -> None:
    edges = bin_edges()
    assert edges.shape == (EVIDENCE_BINS - 1,)
    assert (np.diff(edges) > 0).all()
    assert edges[ZERO_EDGE] == 0.0
    assert edges == pytest.approx(-edges[::-1], rel=1e-9)
    above = edges[ZERO_EDGE + 1 :]
    resolved = (above[:-1] >= 1e-6) & (above[:-1] <= 1e6)
    assert (np.diff(above)[resolved] / above[:-1][resolved]).max() < 0.0055
    assert above[0] < 1e-8
    assert above[-1] > 1e6


def test_bins_hold_what_lies_above_the_edge_before_and_up_to_their_own() -> None:
    rng = np.random.default_rng(5)
    evidence = rng.choice([-1, 1], N) * 10 ** rng.uniform(-9, 9, N)
    found = np.array([histogram_of(evidence[[i]], np.array([False]))[0].argmax() for i in range(60)])
    assert np.array_equal(found, np.searchsorted(bin_edges(), evidence[:60], side="left"))
    counts = np.bincount(np.searchsorted(bin_edges(), evidence, side="left"), minlength=EVIDENCE_BINS)
    assert np.array_equal(histogram_of(evidence, np.zeros(N, dtype=bool))[0], counts)


def test_histograms_by_image_class_and_truth_without_ignored_pixels() -> None:
    draw = torch.Generator().manual_seed(0)
    evidence = torch.randn(3, 2, 4, 5, generator=draw)
    truth, valid = torch.rand(3, 2, 4, 5, generator=draw) < 0.5, torch.rand(3, 4, 5, generator=draw) < 0.7
    tables = histograms(evidence, truth, valid)
    assert tables.dtype == torch.int64
    assert tables.shape == (3, 2, 2, EVIDENCE_BINS)
    for n in range(3):
        for f in range(2):
            for t in (0, 1):
                chosen = evidence[n, f][valid[n] & (truth[n, f] == bool(t))].double().numpy()
                wanted = np.bincount(np.searchsorted(bin_edges(), chosen), minlength=EVIDENCE_BINS)
                assert np.array_equal(tables[n, f, t].numpy(), wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zero_is_not_foreground_and_the_smallest_evidence_has_a_sign(dtype: torch.dtype) -> None:
    tiny = torch.finfo(dtype).smallest_normal
    evidence = torch.tensor([-tiny, -1e-20, -0.0, 0.0, 1e-20, tiny], dtype=dtype).view(1, 1, 1, 6)
    tables = histograms(evidence, torch.ones_like(evidence, dtype=torch.bool), torch.ones(1, 1, 6, dtype=torch.bool))
    (tp, fp, fn) = counts_above(tables.numpy(), np.array([ZERO_EDGE]))[0, 0, 0]
    assert (tp, fp, fn) == (int((evidence > 0).sum()), 0, 4) == (2, 0, 4)


def test_evidence_beyond_the_bins_is_outermost_and_nan_above_no_threshold() -> None:
    table = histogram_of(np.array([-np.inf, -1e300, -1e10, 1e10, 1e300, np.inf]), np.zeros(6, dtype=bool))
    assert (table[0, 0], table[0, -1], table.sum()) == (3, 3, 6)
    table = histogram_of(np.array([np.nan]), np.array([True]))
    assert counts_above(table[None, None], np.arange(EVIDENCE_BINS - 1))[:, 0, 0].max(axis=0).tolist() == [0, 0, 1]


@pytest.mark.parametrize("seed", range(3))
def test_binned_is_exact_to_a_thousandth(seed: int) -> None:
    """At any scale, and with sizes from 1e-6 to 1e6 in one data set."""
    truth, evidence = drawn(seed)
    auroc, ap = exact(seed)
    for warped in (signed_power(evidence), *(evidence * scale for scale in (1e-5, 1e-3, 0.1, 1.0, 30.0, 1e5))):
        found = auroc_and_ap(histogram_of(warped, truth))
        assert found[0] == pytest.approx(auroc, abs=1e-3)
        assert found[1] == pytest.approx(ap, abs=1e-3)


def test_ties_count_half() -> None:
    """A few levels, each in a bin of its own: the binned figures are the exact ones, ties and all."""
    rng = np.random.default_rng(2)
    truth = rng.random(300) < 0.3
    evidence = rng.choice([-1e4, -2.0, -1e-4, 0.0, 1e-4, 3.0, 1e5], 300) * np.where(
        truth | (rng.random(300) < 0.5), 1, -1
    )
    auroc, ap = auroc_and_ap(histogram_of(evidence, truth))
    assert auroc == pytest.approx(exact_auroc(evidence, truth), abs=1e-12)
    assert ap == pytest.approx(exact_ap(evidence, truth), abs=1e-12)


def test_rankings_by_hand() -> None:
    truth = np.array([True, False, True, False])
    assert auroc_and_ap(histogram_of(np.array([4.0, 3.0, 2.0, 1.0]), truth)) == pytest.approx((3 / 4, (1 + 2 / 3) / 2))
    assert auroc_and_ap(histogram_of(np.zeros(4), truth)) == pytest.approx((1 / 2, 1 / 2))
    assert auroc_and_ap(histogram_of(np.array([2.0, 1.0, 2.0, 1.0]), truth)) == pytest.approx((1.0, 1.0))
    assert auroc_and_ap(histogram_of(np.array([1.0, 2.0, 1.0, 2.0]), truth)) == pytest.approx((0.0, 1 / 2))


def test_one_class_or_nothing_cannot_be_ranked() -> None:
    for truth in (np.ones(4, dtype=bool), np.zeros(4, dtype=bool)):
        assert np.isnan(auroc_and_ap(histogram_of(np.arange(4.0), truth))).all()
    assert np.isnan(auroc_and_ap(np.zeros((2, EVIDENCE_BINS), dtype=np.int64))).all()


ASYMMETRIC = ("cloglog", "loglog")
"""Their evidence is -0.54 or 0.54 at 0: the bins, finest at 0, keep logits of 1e-3 apart only from a distance."""


@pytest.mark.parametrize(
    ("name", "scale"),
    [
        (name, scale)
        for name, entry in OUTPUT_ACTIVATIONS.items()
        for scale in (1e-3, 1.0, 30.0)
        if entry.log_odds is not None and not entry.clips and (scale == 1.0 or name not in ASYMMETRIC)
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ranking_does_not_depend_on_the_activation(name: str, dtype: torch.dtype, scale: float) -> None:
    """A monotone map of the logits orders the pixels alike, where float32 probabilities would round to ties."""
    truth, evidence = drawn(1)
    logits = torch.tensor(evidence * scale, dtype=dtype).view(1, 1, 1, -1)
    prediction = make_head(OUTPUT_ACTIVATIONS[name], "binary")(logits)
    auroc, ap = auroc_and_ap(histogram_of(prediction.evidence_NFHW().flatten().numpy(), truth))
    assert auroc == pytest.approx(exact(1)[0], abs=1e-3)
    assert ap == pytest.approx(exact(1)[1], abs=2e-3)


@pytest.mark.parametrize("warp", [lambda v: v, lambda v: 2 * v, np.arctan, np.sinh, signed_power])
def test_thresholds_count_what_lies_above_them(warp: "np.ufunc") -> None:
    draw = np.random.default_rng(3)
    evidence = warp(draw.normal(0, 1, (3, 2, 6, 5)))
    truth, valid = draw.random((3, 2, 6, 5)) < 0.4, draw.random((3, 6, 5)) < 0.8
    tables = histograms(*map(torch.tensor, (evidence, truth, valid))).numpy()
    grid = threshold_grid(tables)
    counts = counts_above(tables, grid)
    assert counts.dtype == np.int64
    assert counts.shape == (len(grid), 3, 2, 3)
    for threshold, found in zip(bin_edges()[grid], counts, strict=True):
        above, counted = evidence > threshold, valid[:, None]
        wanted = [(m & counted).sum(axis=(2, 3)) for m in (above & truth, above & ~truth, ~above & truth)]
        assert np.array_equal(found, np.stack(wanted, axis=-1))


def test_threshold_grid_holds_zero_and_quantiles_of_both_truths() -> None:
    """One pixel in a thousand is foreground, far up; the grid still spans it as finely as the background."""
    rng = np.random.default_rng(4)
    truth = np.arange(50_000) < 50
    evidence = np.where(truth, rng.uniform(10, 20, 50_000), rng.uniform(-5, -1, 50_000))
    grid = threshold_grid(histogram_of(evidence, truth)[None, None])
    assert grid.tolist() == sorted(set(grid.tolist()))
    assert ZERO_EDGE in grid
    thresholds = bin_edges()[grid]
    levels = np.linspace(0, 1, 33)[1:-1]
    for part in (evidence[truth], evidence[~truth]):
        for quantile in np.quantile(part, levels, method="inverted_cdf"):
            assert np.abs(thresholds / quantile - 1).min() < 0.005
    assert len(grid) <= 63
    # Images and classes are pooled.
    parts = [histogram_of(evidence[chosen], truth[chosen]) for chosen in (slice(0, 30_000), slice(30_000, None))]
    assert np.array_equal(threshold_grid(np.stack(parts)[None]), grid)
    assert np.array_equal(threshold_grid(np.stack(parts)[:, None]), grid)


def test_threshold_grid_of_constant_evidence() -> None:
    """The edge above the topmost bin does not exist; zero is always there."""
    assert threshold_grid(histogram_of(np.full(4, 1e300), np.array([1, 0, 1, 0], dtype=bool))[None, None]).tolist() == [
        ZERO_EDGE
    ]
    assert threshold_grid(np.zeros((1, 1, 2, EVIDENCE_BINS), dtype=np.int64)).tolist() == [ZERO_EDGE]
