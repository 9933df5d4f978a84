"""Output activations against references of 50 digits: accuracy, symmetry, and behaviour at the edges of the numbers."""

import csv
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mpmath import mp

from segexp.activations.output import ALL_MODES, OUTPUT_ACTIVATIONS

Map = Callable[[Any], Any]


def mirrored(link: Map) -> tuple[Map, Map]:
    """p = F(x) and 1 - p = F(-x) of a symmetric F; F itself must be accurate where it is small."""
    return link, lambda x: link(-x)


REFERENCES: dict[str, tuple[Map, Map]] = {
    "sigmoid": mirrored(lambda x: 1 / (1 + mp.exp(-x))),
    "arctan": mirrored(lambda x: mp.mpf(1) / 2 + mp.atan(x) / mp.pi),
    "normal_cdf": mirrored(lambda x: mp.erfc(-x / mp.sqrt(2)) / 2),
    "inverse_square_root": mirrored(lambda x: (1 + x / mp.sqrt(1 + x * x)) / 2),
    "softsign": mirrored(lambda x: (1 + x / (1 + abs(x))) / 2),
    "tanh": mirrored(lambda x: mp.exp(x) / (mp.exp(x) + mp.exp(-x))),
}
"""p = F(x) and 1 - p of every activation with probabilities, as its source writes it."""

MAPS = [name for name, entry in OUTPUT_ACTIVATIONS.items() if entry.log_odds is not None]
DIGITS = 50
COLUMNS = ("log_p", "log_q", "dlog_p_dx", "dlog_q_dx")

# Relative errors allowed of ln p and ln(1 - p), and of their derivatives.
BOUNDS = {torch.float32: (2e-5, 2e-4), torch.float64: (2e-13, 2e-13)}

EDGES = (0.0, 1e-6, 0.5, 1.0, 5.0, 6.24, 10.0, 20.0, 88.0, 100.0, 256.0, 300.0, 1e3, 1e4, 6e4, 1e5, 1e6)


def phi_of(name: str) -> Callable[[torch.Tensor], torch.Tensor]:
    function = OUTPUT_ACTIVATIONS[name].log_odds
    assert function is not None
    return function


def is_symmetric(name: str) -> bool:
    """Whether 1 - F(x) is F(-x), judged by the reference."""
    p, q = REFERENCES[name]
    with mp.workdps(DIGITS):
        return all(mp.almosteq(q(mp.mpf(x)), p(-mp.mpf(x))) for x in (0.1, 0.7, 3))


SYMMETRIC = [name for name in MAPS if name in REFERENCES and is_symmetric(name)]


def grid(dtype: torch.dtype) -> torch.Tensor:
    """Both signs: every size from 1e-7 to 1e4, the range where probabilities move, and the seam of the branches."""
    near = torch.linspace(0.05, 15, 90, dtype=dtype)
    sizes = torch.logspace(-7, 4, 100, dtype=dtype)
    seam = torch.tensor([0.5], dtype=dtype)
    seam = torch.cat([seam, torch.nextafter(seam, 0 * seam), torch.nextafter(seam, 1 + seam)])
    half = torch.cat([near, sizes, seam, torch.tensor([1e4], dtype=dtype)]).clamp(max=1e4)
    return torch.cat([-half, half, torch.zeros(1, dtype=dtype)]).unique()


@functools.cache
def reference(name: str, x: float) -> tuple[float, ...]:
    """ln p, ln(1 - p) and their derivatives; 0.0 where float64 has no number that small."""
    with mp.workdps(DIGITS):
        at = mp.mpf(x)
        p, q = (link(at) for link in REFERENCES[name])
        # Of 1 - 1e-300 neither the logarithm nor the slope is left: both are taken from the smaller side.
        slope = mp.diff(REFERENCES[name][0], at) if p < q else -mp.diff(REFERENCES[name][1], at)
        log_p = mp.log(p) if p < q else mp.log1p(-q)
        log_q = mp.log(q) if q < p else mp.log1p(-p)
        return float(log_p), float(log_q), float(slope / p), float(-slope / q)


def computed(name: str, x: torch.Tensor) -> np.ndarray:
    """(number, 4): what the code gives for `COLUMNS`, through logsigmoid as losses and scores do."""
    columns = []
    for sign in (1, -1):
        leaf = x.clone().requires_grad_()
        value = F.logsigmoid(sign * phi_of(name)(leaf))
        (slope,) = torch.autograd.grad(value.sum(), leaf)
        columns += [value.detach(), slope]
    assert all(c.dtype == x.dtype for c in columns)
    return torch.stack([columns[0], columns[2], columns[1], columns[3]], dim=1).double().numpy()


def worst_errors(got: np.ndarray, truth: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """Worst relative error per column where the true value is a normal number of ``dtype``; elsewhere it must be ~0."""
    tiny = torch.finfo(dtype).tiny
    shown = np.abs(truth) >= tiny
    assert np.isfinite(got).all()
    assert shown.any(axis=0).all()
    assert (np.abs(got[~shown]) <= 2 * tiny).all()
    error = np.abs(got - truth) / np.where(shown, np.abs(truth), 1)
    worst: np.ndarray = np.where(shown, error, 0).max(axis=0)
    return worst


def test_every_map_has_a_reference() -> None:
    """A new activation needs its F(x) among `REFERENCES`; nothing else in this file needs an edit."""
    assert set(MAPS) <= set(REFERENCES)


@pytest.mark.parametrize("name", REFERENCES)
def test_reference_is_a_probability(name: str) -> None:
    p, q = REFERENCES[name]
    with mp.workdps(DIGITS):
        for x in (-30, -1, 0, mp.mpf("0.3"), 2, 50):
            assert mp.almosteq(p(mp.mpf(x)) + q(mp.mpf(x)), 1)


@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize("name", MAPS)
def test_accuracy(name: str, dtype: torch.dtype) -> None:
    x = grid(dtype)
    truth = np.array([reference(name, value) for value in x.tolist()])
    worst = worst_errors(computed(name, x), truth, dtype)
    value_bound, slope_bound = BOUNDS[dtype]
    assert (worst <= (value_bound, value_bound, slope_bound, slope_bound)).all(), dict(zip(COLUMNS, worst, strict=True))


@pytest.mark.parametrize("name", MAPS)
def test_golden_values(name: str, shared_dir: Path) -> None:
    with (shared_dir / "golden" / "output_activations.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["activation"] == name]
    if not rows:
        pytest.skip(f"no golden values of {name}")
    truth = np.array([[float(mpmath.mpf(row[column])) for column in COLUMNS] for row in rows])
    for dtype, (value_bound, slope_bound) in BOUNDS.items():
        x = torch.tensor([float(row["x"]) for row in rows], dtype=dtype)
        assert x.double().tolist() == [float(row["x"]) for row in rows]
        worst = worst_errors(computed(name, x), truth, dtype)
        assert (worst <= (value_bound, value_bound, slope_bound, slope_bound)).all(), dict(
            zip(COLUMNS, worst, strict=True)
        )


@pytest.mark.parametrize("name", MAPS)
def test_gradient_is_that_of_the_value(name: str) -> None:
    size = torch.logspace(-3, 3, 25, dtype=torch.float64)
    x = torch.cat([-size, size, torch.tensor([-0.5, 0.0, 0.5], dtype=torch.float64)]).requires_grad_()
    assert torch.autograd.gradcheck(phi_of(name), x, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize("name", SYMMETRIC)
def test_symmetric_activation_has_odd_log_odds(name: str, dtype: torch.dtype) -> None:
    """To the last bit, gradient included: no class is favoured."""
    right = grid(dtype).abs().requires_grad_()
    left = (-right).detach().requires_grad_()
    phi_right, phi_left = phi_of(name)(right), phi_of(name)(left)
    assert torch.equal(phi_left, -phi_right)
    assert torch.equal(*(torch.autograd.grad(phi.sum(), x)[0] for phi, x in ((phi_left, left), (phi_right, right))))


@pytest.mark.parametrize("name", MAPS)
def test_increasing(name: str) -> None:
    """Steps of 1e-4 of the size are kept apart from 1e-6 to 1e6, across 0 and across the seam of the branches."""
    size = torch.logspace(-6, 6, 250_001)
    steps = phi_of(name)(torch.cat([-size.flip(0), torch.zeros(1), size])).diff()
    assert (steps > 0).all()


@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize("name", SYMMETRIC)
def test_no_tie_but_at_zero(name: str, dtype: torch.dtype) -> None:
    """phi is 0 at 0 alone: 5e-8, where p rounds to 0.5, and the least number there is fall to their side."""
    info = torch.finfo(dtype)
    size = torch.tensor([info.smallest_normal, 1e-30, 1e-20, 1e-12, 5e-8, 1e-5, 0.1, 1e6], dtype=dtype)
    size = torch.cat([torch.nextafter(torch.zeros(1, dtype=dtype), torch.ones(1, dtype=dtype)), size])
    phi = phi_of(name)
    assert (phi(size) > 0).all()
    assert (phi(-size) < 0).all()
    assert (phi(torch.tensor([0.0, -0.0], dtype=dtype)) == 0).all()


@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize("name", SYMMETRIC)
def test_slope_at_zero(name: str, dtype: torch.dtype) -> None:
    """phi' = 4 F' where p = 1/2, from either side and at either zero; the catalogue states F'(0)."""
    stated = OUTPUT_ACTIVATIONS[name].slope_at_zero
    with mp.workdps(DIGITS):
        true = float(mp.diff(REFERENCES[name][0], mp.mpf(0)))
    assert stated == pytest.approx(true, rel=1e-12)
    x = torch.tensor([0.0, -0.0, 1e-9, -1e-9], dtype=dtype, requires_grad=True)
    (slope,) = torch.autograd.grad(phi_of(name)(x).sum(), x)
    assert slope.tolist() == pytest.approx([4 * true] * 4, rel=1e-6 if dtype == torch.float32 else 1e-8)


@pytest.mark.parametrize("name", MAPS)
def test_finite_up_to_a_million(name: str) -> None:
    x = torch.tensor([*EDGES, *(-e for e in EDGES)], requires_grad=True)
    phi = phi_of(name)(x)
    (slope,) = torch.autograd.grad(phi.sum(), x)
    assert phi.isfinite().all()
    assert slope.isfinite().all()
    assert (slope > 0).all()


@pytest.mark.parametrize("name", MAPS)
def test_any_shape(name: str) -> None:
    x = torch.linspace(-3, 3, 24)
    whole = phi_of(name)(x)
    for shape in ((2, 3, 2, 2), (24, 1), (1, 24)):
        assert torch.allclose(phi_of(name)(x.reshape(shape)).reshape(-1), whole, rtol=1e-6)
    assert torch.allclose(phi_of(name)(x[5]), whole[5], rtol=1e-6)
    assert phi_of(name)(torch.empty(0, 3)).shape == (0, 3)


@pytest.mark.parametrize("name", OUTPUT_ACTIVATIONS)
def test_entry(name: str) -> None:
    entry = OUTPUT_ACTIVATIONS[name]
    assert entry.name == name
    assert ("log_odds" in entry.offers) == (entry.log_odds is not None)
    assert "values" in entry.offers
    assert all(modes and set(modes) <= set(ALL_MODES) for modes in entry.aliases.values())
    assert all((entry.formula, entry.range, entry.tail, entry.wrong_pixel, entry.source))


def test_options_of_an_activation_reach_its_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    from segexp.activations import output
    from segexp.catalogue import Catalogue

    monkeypatch.setattr(output, "OUTPUT_ACTIVATIONS", Catalogue("activation"))

    @output.output_activation(formula="f", range="r", tail="t", wrong_pixel="w", slope_at_zero=1.0, source="s")
    def steep(x: torch.Tensor, *, slope: float = 3.0) -> torch.Tensor:
        return slope * x

    entry = output.OUTPUT_ACTIVATIONS["steep"]
    assert entry.log_odds is steep
    assert entry.aliases == {}
    assert [(o.name, o.type, o.default) for o in entry.options] == [("slope", float, 3.0)]
