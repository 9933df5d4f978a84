import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage
from scipy.special import expit, logit, logsumexp

from segexp.activations.output import ALL_MODES, HeadMode
from segexp.evaluation import expected_calibration_error
from segexp.evaluation.measures import (
    EVIDENCE_BINS,
    RELIABILITY_BINS,
    bin_edges,
    boundary_band,
    counts_above,
    fit_temperature,
    histograms,
    one_vs_rest,
    pixel_nll,
    reliability_bins,
    threshold_grid,
)
from segexp.losses import class_masks


def scene(mode: HeadMode, scale: float = 3.0, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Random log-odds (2, K, 5, 6) in float64 and a target; 3 foreground classes, or 1 when binary."""
    draw = torch.Generator().manual_seed(seed)
    channels, classes = {"binary": (1, 2), "independent": (3, 4), "softmax": (4, 4)}[mode]
    phi = torch.randn(2, channels, 5, 6, dtype=torch.float64, generator=draw) * scale
    return phi, torch.randint(0, classes, (2, 5, 6), generator=draw)


def foreground(phi: torch.Tensor, target: torch.Tensor, mode: HeadMode) -> torch.Tensor:
    return class_masks(target, range(1, phi.shape[1] + (mode != "softmax")))


@pytest.mark.parametrize("scale", [0.1, 15.0, 1e5])
@pytest.mark.parametrize("mode", ["binary", "independent"])
def test_nll_of_channels_is_bce(mode: HeadMode, scale: float) -> None:
    phi, target = scene(mode, scale)
    truth = foreground(phi, target, mode)
    nll = pixel_nll(phi, truth, mode)
    by_torch = F.binary_cross_entropy_with_logits(phi, truth.double(), reduction="none")
    torch.testing.assert_close(nll, by_torch, rtol=2e-10, atol=1e-14)
    # torch rounds small losses off; their relative error shows beside numpy.
    by_numpy = np.logaddexp(0.0, np.where(truth.numpy(), -phi.numpy(), phi.numpy()))
    assert nll.numpy() == pytest.approx(by_numpy, rel=2e-10, abs=1e-300)


@pytest.mark.parametrize("scale", [0.1, 3.0, 1e5])
def test_nll_of_softmax_is_torch_cross_entropy_in_every_plane(scale: float) -> None:
    phi, target = scene("softmax", scale)
    nll = pixel_nll(phi, foreground(phi, target, "softmax"), "softmax")
    wanted = F.cross_entropy(phi, target, reduction="none").unsqueeze(1).expand(-1, 3, -1, -1)
    torch.testing.assert_close(nll, wanted, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("mode", ALL_MODES)
def test_one_vs_rest(mode: HeadMode) -> None:
    phi, _ = scene(mode)
    table = phi.numpy()
    if mode == "softmax":
        rest = [logsumexp(np.delete(table, c, axis=1), axis=1) for c in range(1, 4)]
        wanted = table[:, 1:] - np.stack(rest, axis=1)
    else:
        wanted = table
    assert one_vs_rest(phi, mode).numpy() == pytest.approx(wanted, abs=1e-12)
    if mode == "softmax":
        torch.testing.assert_close(one_vs_rest(phi, mode).sigmoid(), phi.softmax(1)[:, 1:], rtol=1e-12, atol=0)


def bins_by_loop(p: np.ndarray, y: np.ndarray) -> np.ndarray:
    table = np.zeros((RELIABILITY_BINS, 3))
    for value, truth in zip(p, y, strict=True):
        table[min(int(value * RELIABILITY_BINS), RELIABILITY_BINS - 1)] += (1, value, truth)
    return table


def test_reliability_bins() -> None:
    rng = np.random.default_rng(0)
    p, truth, counted = rng.random((2, 3, 6, 7)), rng.random((2, 3, 6, 7)) < 0.4, rng.random((2, 3, 6, 7)) < 0.8
    p[0, 0, 0, :4], counted[0, 0, 0, :4] = (0.0, 1.0, 0.5, 1 - 1e-16), True
    table = reliability_bins(torch.tensor(p), torch.tensor(truth), torch.tensor(counted))
    assert table.dtype == torch.float64
    assert table.shape == (3, 15, 3)
    for f in range(3):
        wanted = bins_by_loop(p[:, f][counted[:, f]], truth[:, f][counted[:, f]])
        assert table[f].numpy() == pytest.approx(wanted, abs=1e-12)


def ece_by_loop(p: np.ndarray, y: np.ndarray) -> float:
    index = np.minimum((p * RELIABILITY_BINS).astype(int), RELIABILITY_BINS - 1)
    gaps = [(index == b).mean() * abs(y[index == b].mean() - p[index == b].mean()) for b in np.unique(index)]
    return float(np.sum(gaps))


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_ece(power: float) -> None:
    rng = np.random.default_rng(1)
    p = rng.random(4000)
    y = rng.random(4000) < p**power
    assert expected_calibration_error(bins_by_loop(p, y)) == pytest.approx(ece_by_loop(p, y), abs=1e-12)
    assert (ece_by_loop(p, y) > 0.05) == (power != 1.0)


def test_ece_is_pooled_over_the_data_set() -> None:
    """Two images that err in opposite directions at the same p: pooled they are calibrated, each alone is not."""
    p = torch.full((2, 1, 1, 4), 0.5, dtype=torch.float64)
    truth = torch.tensor([True, False]).view(2, 1, 1, 1).expand(2, 1, 1, 4)
    everywhere = torch.ones_like(truth)
    single = [reliability_bins(p[[i]], truth[[i]], everywhere[[i]])[0].numpy() for i in range(2)]
    assert [expected_calibration_error(table) for table in single] == [0.5, 0.5]
    assert expected_calibration_error(single[0] + single[1]) == 0.0
    assert np.isnan(expected_calibration_error(0 * single[0])), "without pixels"
    pooled = reliability_bins(p, truth, everywhere)[0].numpy()
    assert np.array_equal(pooled, single[0] + single[1]), "bins of batches add up"


def test_golden_cases(shared_dir: Path) -> None:
    cases = json.loads((shared_dir / "golden" / "metric_cases.json").read_text())["calibration"]
    assert cases
    for case in cases:
        nll = case.get("nll", case.get("nll_clip_1e_7"))
        assert_scores(np.clip(case["p"], 1e-7, 1 - 1e-7).tolist(), case["y"], nll, case["brier"], case["ece15"], 6e-5)


def assert_scores(p: list[float], y: list[int], nll: float, brier: float, ece: float, abs_error: float) -> None:
    phi = torch.tensor(logit(np.array(p))).view(1, 1, 1, -1)
    truth = torch.tensor(y, dtype=torch.bool).view(1, 1, 1, -1)
    probability = one_vs_rest(phi, "binary").sigmoid()
    table = reliability_bins(probability, truth, torch.ones_like(truth))[0].numpy()
    assert float(pixel_nll(phi, truth, "binary").mean()) == pytest.approx(nll, abs=abs_error)
    assert float((probability - truth.double()).square().mean()) == pytest.approx(brier, abs=abs_error)
    assert expected_calibration_error(table) == pytest.approx(ece, abs=abs_error)


@pytest.mark.parametrize("radius", [0, 1, 2, 3, 9])
def test_boundary_band(radius: int) -> None:
    """Dilation less erosion by a square; masks go on beyond the image's border, so that no boundary runs there."""
    rng = np.random.default_rng(radius)
    truth = ndimage.binary_dilation(rng.random((2, 3, 12, 9)) < 0.03, np.ones((1, 1, 3, 3), dtype=bool))
    truth[0, 0] = False
    truth[0, 1] = True
    truth[1, 0, :4] = True
    square = np.ones((2 * radius + 1, 2 * radius + 1), dtype=bool)
    wanted = [
        [ndimage.binary_dilation(m, square) & ~ndimage.binary_erosion(m, square, border_value=1) for m in masks]
        for masks in truth
    ]
    band = boundary_band(torch.tensor(truth), radius)
    assert band.dtype == torch.bool
    assert np.array_equal(band.numpy(), np.array(wanted))
    assert not band[0, :2].any(), "neither all nor nothing has a boundary"
    assert band.any() == (radius > 0)


def simulated(mode: HeadMode, temperature: float, n_pixels: int = 40_000) -> tuple[np.ndarray, np.ndarray]:
    """Log-odds that are the true ones times ``temperature``, and classes drawn from the true ones."""
    rng = np.random.default_rng(7)
    if mode == "softmax":
        phi = rng.normal(0, 1.5, (n_pixels, 3))
        p = np.exp(phi - logsumexp(phi, axis=1, keepdims=True))
        return phi * temperature, (rng.random((n_pixels, 1)) > p.cumsum(axis=1)).sum(axis=1).astype(np.uint8)
    phi = rng.normal(-0.5, 1.5, (n_pixels, 1))
    return phi * temperature, (rng.random(n_pixels) < expit(phi[:, 0])).astype(np.uint8)


def nll_at(log_odds_PK: np.ndarray, classes_P: np.ndarray, mode: HeadMode, temperature: float) -> float:
    """The very NLL that is scored, at a temperature."""
    phi = torch.tensor(log_odds_PK.T[None, :, :, None]) / temperature
    truth = foreground(phi, torch.tensor(classes_P.astype(np.int64))[None, :, None], mode)
    return float(pixel_nll(phi, truth, mode).mean())


@pytest.mark.parametrize("temperature", [0.2, 1.0, 3.0, 25.0])
@pytest.mark.parametrize("mode", ["binary", "softmax"])
def test_known_temperature_is_found(mode: HeadMode, temperature: float) -> None:
    phi, classes = simulated(mode, temperature)
    fitted = fit_temperature(phi, classes if mode == "softmax" else classes[:, None] == 1, mode)
    assert fitted == pytest.approx(temperature, rel=0.03)
    at_best = nll_at(phi, classes, mode, fitted)
    assert at_best <= nll_at(phi, classes, mode, 1.0) + 1e-12
    assert at_best <= min(nll_at(phi, classes, mode, fitted * factor) for factor in (0.97, 0.999, 1.001, 1.03))


def test_independent_channels_share_one_temperature() -> None:
    rng = np.random.default_rng(3)
    classes = rng.integers(0, 3, 30_000)
    truth = classes[:, None] == np.array([1, 2])
    phi = np.where(truth, 1.0, -1.0) * 4 + rng.normal(0, 3, truth.shape)
    fitted = fit_temperature(phi, truth, "independent")
    nll = {t: nll_at(phi, classes, "independent", t) for t in (fitted * 0.99, fitted, fitted * 1.01, 1.0)}
    assert min(nll, key=lambda t: nll[t]) == fitted
    assert fitted != pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("mode", ALL_MODES)
@pytest.mark.parametrize(("size", "wrong"), [(3.0, False), (3.0, True), (1e5, False), (1e5, True)])
def test_temperature_is_bounded(mode: HeadMode, size: float, wrong: bool) -> None:
    """Separated pixels want T = 0 and reversed ones T = infinity; log-odds of 1e5 overflow nothing."""
    classes = np.array([0, 1, 0, 1])
    channels = np.arange(2) if mode == "softmax" else np.array([1])
    phi = np.where(classes[:, None] == channels, size, -size) * (-1.0 if wrong else 1.0)
    truth = classes if mode == "softmax" else classes[:, None] == 1
    fitted = fit_temperature(phi, truth, mode)
    assert 1 / 100 <= fitted <= 100
    assert np.isnan(fit_temperature(phi[:0], truth[:0], mode)), "without pixels"
    if wrong:
        assert fitted == pytest.approx(100, rel=1e-3)
    elif size < 10:
        assert fitted < 0.2


# --- thresholds ------------------------------------------------------------------------------------------------------

ZERO_EDGE = EVIDENCE_BINS // 2 - 1


def histogram_of(evidence: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """(2, EVIDENCE_BINS) of a row of pixels."""
    row = (1, 1, 1, -1)
    everywhere = torch.ones(1, 1, len(truth), dtype=torch.bool)
    return histograms(torch.tensor(evidence).view(row), torch.tensor(truth).view(row), everywhere)[0, 0].numpy()


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


def test_histograms_by_image_class_and_truth_without_ignored_pixels() -> None:
    draw = torch.Generator().manual_seed(0)
    evidence = torch.randn(3, 2, 4, 5, generator=draw) * 10 ** torch.empty(3, 2, 4, 5).uniform_(-9, 9, generator=draw)
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
