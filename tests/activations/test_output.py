"""Output activations against references of 50 digits: accuracy, symmetry, and behaviour at the edges of the numbers."""

import csv
import dataclasses
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mpmath import mp

from segexp.activations.head import Prediction, logit_of, make_head
from segexp.activations.output import (
    ALL_MODES,
    HEAD_OPTIONS,
    OUTPUT_ACTIVATIONS,
    OutputActivation,
    output_activation,
    slope_of,
)
from segexp.activations.output.special import CLOGLOG_END
from segexp.activations.output.symmetric import TAIL_FACTOR, TAIL_SCALE
from segexp.registry import Registry

Map = Callable[[Any], Any]


def mirrored(link: Map) -> tuple[Map, Map]:
    """p = F(x) and 1 - p = F(-x) of a symmetric F; F itself must be accurate where it is small."""
    return link, lambda x: link(-x)


def tailed(tail: float) -> Map:
    """F of learned_tail, as its documentation writes it."""

    def link(x: Any) -> Any:
        w, scale, factor = mp.mpf(tail), mp.mpf(TAIL_SCALE) ** mp.mpf(tail), mp.mpf(TAIL_FACTOR) ** mp.mpf(tail)
        q = mp.atan2(1, scale * abs(x)) / mp.pi
        phi = factor * mp.sinh(2 * w * (mp.log1p(-q) - mp.log(q))) / (2 * w)
        return 1 / (1 + mp.exp(-mp.sign(x) * phi))

    return link


REFERENCES: dict[str, tuple[Map, Map]] = {
    "sigmoid": mirrored(lambda x: 1 / (1 + mp.exp(-x))),
    "arctan": mirrored(lambda x: mp.mpf(1) / 2 + mp.atan(x) / mp.pi),
    "normal_cdf": mirrored(lambda x: mp.erfc(-x / mp.sqrt(2)) / 2),
    "inverse_square_root": mirrored(lambda x: (1 + x / mp.sqrt(1 + x * x)) / 2),
    "softsign": mirrored(lambda x: (1 + x / (1 + abs(x))) / 2),
    "tanh": mirrored(lambda x: mp.exp(x) / (mp.exp(x) + mp.exp(-x))),
    "laplace": mirrored(lambda x: mp.exp(x) / 2 if x < 0 else 1 - mp.exp(-x) / 2),
    "student_t3": mirrored(lambda x: mp.mpf(1) / 2 + (mp.atan(x / mp.sqrt(3)) + x * mp.sqrt(3) / (3 + x * x)) / mp.pi),
    "student_t4": mirrored(lambda x: mp.mpf(1) / 2 + (3 + x * x / 2) * x / (4 + x * x) ** mp.mpf(1.5)),
    "hyperbolic_secant": mirrored(lambda x: 2 / mp.pi * mp.atan(mp.exp(mp.pi * x / 2))),
    "learned_tail": mirrored(tailed(0.5)),
    "cloglog": (lambda x: -mp.expm1(-mp.exp(x)), lambda x: mp.exp(-mp.exp(x))),
    "loglog": (lambda x: mp.exp(-mp.exp(-x)), lambda x: -mp.expm1(-mp.exp(-x))),
}
"""p = F(x) and 1 - p of every activation that is not clipped, as its source writes it."""


BINARY = [name for name, entry in OUTPUT_ACTIVATIONS.items() if entry.log_odds is not None and "binary" in entry.modes]
MAPS = [name for name in BINARY if not OUTPUT_ACTIVATIONS[name].clips]
CLIPPED = [name for name, entry in OUTPUT_ACTIVATIONS.items() if entry.clips]
REACH = {"cloglog": (-1e4, CLOGLOG_END), "loglog": (-CLOGLOG_END, 1e4)}
"""Logits between which an asymmetric map follows its formula; beyond, it leaves float32 and saturates."""

DIGITS = 50
COLUMNS = ("log_p", "log_q", "dlog_p_dx", "dlog_q_dx")

# Relative errors allowed of ln p and ln(1 - p), and of their derivatives.
BOUNDS = {torch.float32: (2e-5, 2e-4), torch.float64: (2e-13, 2e-13)}

EDGES = (0.0, 1e-6, 0.5, 1.0, 5.0, 6.24, 10.0, 20.0, 88.0, 100.0, 256.0, 300.0, 1e3, 1e4, 6e4, 1e5, 1e6)


def phi_of(name: str) -> Callable[..., torch.Tensor]:
    function = OUTPUT_ACTIVATIONS[name].log_odds
    assert function is not None
    return function


def learned_tail(x: torch.Tensor, *, tail: Any) -> torch.Tensor:
    return phi_of("learned_tail")(x, tail=tail)


def taylor_softmax(x: torch.Tensor) -> torch.Tensor:
    return phi_of("taylor_softmax")(x)


def within_reach(name: str, x: torch.Tensor, margin: float = 1.0) -> torch.Tensor:
    low, high = REACH.get(name, (-1e7, 1e7))
    return x[(x >= low * margin) & (x <= high * margin)]


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
    """See `exact`."""
    return exact(REFERENCES[name], x)


def exact(links: tuple[Map, Map], x: float) -> tuple[float, ...]:
    """ln p, ln(1 - p) and their derivatives; 0.0 where float64 has no number that small."""
    with mp.workdps(DIGITS):
        at = mp.mpf(x)
        p, q = (link(at) for link in links)
        # Of 1 - 1e-300 neither the logarithm nor the slope is left: both are taken from the smaller side.
        slope = mp.diff(links[0], at) if p < q else -mp.diff(links[1], at)
        log_p = mp.log(p) if p < q else mp.log1p(-q)
        log_q = mp.log(q) if q < p else mp.log1p(-p)
        return float(log_p), float(log_q), float(slope / p), float(-slope / q)


def computed(phi: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> np.ndarray:
    """(number, 4): what the code gives for `COLUMNS`, through logsigmoid as losses and scores do."""
    columns = []
    for sign in (1, -1):
        leaf = x.clone().requires_grad_()
        value = F.logsigmoid(sign * phi(leaf))
        (slope,) = torch.autograd.grad(value.sum(), leaf)
        columns += [value.detach(), slope]
    assert all(c.dtype == x.dtype for c in columns)
    return torch.stack([columns[0], columns[2], columns[1], columns[3]], dim=1).double().numpy()


def worst_errors(got: np.ndarray, truth: np.ndarray, dtype: torch.dtype, least: float = 0.0) -> np.ndarray:
    """Worst relative error per column where the true value is a normal number of ``dtype`` and at least ``least``;
    elsewhere it must be ~0."""
    tiny = max(torch.finfo(dtype).tiny, least)
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


@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize("name", MAPS)
def test_accuracy(name: str, dtype: torch.dtype) -> None:
    x = within_reach(name, grid(dtype))
    truth = np.array([reference(name, value) for value in x.tolist()])
    worst = worst_errors(computed(phi_of(name), x), truth, dtype)
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
        # The golden values were made with 80 digits: a 1 - p below that stands as 0.
        worst = worst_errors(computed(phi_of(name), x), truth, dtype, least=1e-79)
        assert (worst <= (value_bound, value_bound, slope_bound, slope_bound)).all(), dict(
            zip(COLUMNS, worst, strict=True)
        )


@pytest.mark.parametrize("name", MAPS)
def test_second_derivative_is_that_of_the_slope(name: str) -> None:
    x = torch.tensor([-2.5, -1.2, -0.3, 0.4, 1.1, 2.6], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(phi_of(name), x)


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
    if name in REACH:  # where phi is -0.54 at 0, a step of 1e-10 is below its last digit
        size = size[size > 1e-2]
    x = within_reach(name, torch.cat([-size.flip(0), torch.zeros(1), size]))
    assert (phi_of(name)(x).diff() > 0).all()


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
    """phi' = 4 F' where p = 1/2, from either side and at either zero; the registry states F'(0)."""
    stated = OUTPUT_ACTIVATIONS[name].slope_at_zero
    with mp.workdps(DIGITS):
        true = float(mp.diff(REFERENCES[name][0], mp.mpf(0)))
    assert stated == pytest.approx(true, rel=1e-12)
    x = torch.tensor([0.0, -0.0, 1e-9, -1e-9], dtype=dtype, requires_grad=True)
    (slope,) = torch.autograd.grad(phi_of(name)(x).sum(), x)
    assert slope.tolist() == pytest.approx([4 * true] * 4, rel=1e-6 if dtype == torch.float32 else 1e-8)


@pytest.mark.parametrize("name", MAPS)
def test_finite_up_to_a_million_in_any_shape(name: str) -> None:
    x = torch.tensor([*EDGES, *(-e for e in EDGES)], requires_grad=True)
    phi = phi_of(name)(x)
    (slope,) = torch.autograd.grad(phi.sum(), x)
    assert phi.isfinite().all()
    assert slope.isfinite().all()
    assert (slope > 0).all()
    for shape in ((2, 17), (34, 1)):
        assert torch.allclose(phi_of(name)(x.reshape(shape)).reshape(-1), phi, rtol=1e-6)
    assert torch.allclose(phi_of(name)(x[5]), phi[5], rtol=1e-6)
    assert phi_of(name)(torch.empty(0, 3)).shape == (0, 3)


@pytest.mark.parametrize("name", OUTPUT_ACTIVATIONS)
def test_entry(name: str) -> None:
    entry = OUTPUT_ACTIVATIONS[name]
    assert entry.name == name
    assert ("log_odds" in entry.offers) == (entry.log_odds is not None)
    assert "values" in entry.offers
    assert all(modes and set(modes) <= set(ALL_MODES) for modes in entry.aliases.values())
    assert all((entry.formula, entry.range, entry.tail, entry.wrong_pixel, entry.source))
    # What clips or depends on the batch warns of it.
    assert not entry.clips or ("batch" if entry.per_batch else "frac_clipped") in entry.warning
    assert "\n" not in entry.warning


def test_options_of_an_activation_reach_its_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    registry: Registry[OutputActivation] = Registry("activation")
    monkeypatch.setattr("segexp.activations.output.OUTPUT_ACTIVATIONS", registry)

    @output_activation(formula="f", tail="t", wrong_pixel="w", slope_at_zero=1.0, source="s")
    def steep(x: torch.Tensor, *, steepness: float = 3.0) -> torch.Tensor:
        return steepness * x

    entry = registry["steep"]
    assert entry.log_odds is steep
    assert entry.aliases == {}
    assert entry.options[: len(HEAD_OPTIONS)] == HEAD_OPTIONS
    assert [(o.name, o.type, o.default) for o in entry.options[len(HEAD_OPTIONS) :]] == [("steepness", float, 3.0)]


@pytest.mark.parametrize("name", REACH)
def test_asymmetric_map_saturates_with_a_gradient_of_the_right_sign(name: str) -> None:
    """Beyond a logit of 80 on the side that grows as e^|x|: finite, never falling, pulling the right way."""
    size = torch.tensor([80.0, 80.5, 88.0, 89.0, 300.0, 1e4, 1e6])
    x = (size if name == "cloglog" else -size).requires_grad_()
    phi = phi_of(name)(x)
    (slope,) = torch.autograd.grad(phi.sum(), x, retain_graph=True)
    assert phi.isfinite().all()
    assert slope.isfinite().all()
    assert (slope > 0).all()
    assert (phi.abs() >= 5e34).all()
    for truth, sign in ((0.0, 1), (1.0, -1)):
        loss = F.binary_cross_entropy_with_logits(phi, torch.full_like(phi, truth), reduction="none")
        (gradient,) = torch.autograd.grad(loss.sum(), x, retain_graph=True)
        assert loss.isfinite().all()
        assert gradient.isfinite().all()
        if (sign > 0) == (name == "cloglog"):
            assert (gradient.sign() == sign).all()


def test_asymmetric_maps_mirror_each_other() -> None:
    x = grid(torch.float32)
    assert torch.equal(phi_of("loglog")(-x), -phi_of("cloglog")(x))


@pytest.mark.parametrize("name", ["hardtanh", "hardsigmoid"])
def test_clipped_map_is_linear_between_its_ends(name: str) -> None:
    scale, centre = {"hardtanh": (1.0, 0.5), "hardsigmoid": (1 / 6, 0.0)}[name]
    x = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    p = torch.sigmoid(phi_of(name)(x))
    torch.testing.assert_close(p, (scale * (x - centre) + 0.5).clamp(1e-7, 1 - 1e-7), rtol=1e-9, atol=1e-16)
    assert (phi_of(name)(x.float()).diff() >= 0).all()
    phi = phi_of(name)(torch.tensor([centre, centre - 0.1, centre + 0.1]))
    assert phi[0] == 0
    assert torch.allclose(phi[1], -phi[2])
    inner = torch.linspace(centre - 0.45 / scale, centre + 0.45 / scale, 40, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(phi_of(name), inner)


@pytest.mark.parametrize("eps", [1e-7, 1e-3])
@pytest.mark.parametrize("name", ["hardtanh", "hardsigmoid"])
def test_clipped_map_has_no_gradient_outside_and_says_so(name: str, eps: float) -> None:
    ends = {"hardtanh": (0.0, 1.0), "hardsigmoid": (-3.0, 3.0)}[name]
    x = torch.tensor([*ends, -1e6, 1e6, -20.0, 20.0, ends[0] + 0.2, ends[1] - 0.2], requires_grad=True)
    phi = phi_of(name)(x, eps=eps)
    (slope,) = torch.autograd.grad(phi.sum(), x)
    assert phi.isfinite().all()
    assert (slope == 0).tolist() == [True] * 6 + [False] * 2
    prediction = make_head(OUTPUT_ACTIVATIONS[name], "binary", {"eps": eps})(x.detach().view(1, 1, 1, -1))
    assert prediction.clipped_NHW().flatten().tolist() == (slope == 0).tolist()


def test_minmax_scales_the_whole_batch() -> None:
    x = torch.tensor([[[[-3.0, 1.0]]], [[[5.0, 3.0]]]], dtype=torch.float64)
    p = torch.sigmoid(phi_of("minmax_linear")(x)).flatten()
    torch.testing.assert_close(p, torch.tensor([1e-7, 0.5, 1 - 1e-7, 0.75], dtype=torch.float64))
    alone = torch.sigmoid(phi_of("minmax_linear")(x[:1])).flatten()
    assert not torch.allclose(alone, p[:2])
    inner = torch.rand(2, 1, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: phi_of("minmax_linear")(v, eps=0.01), inner, atol=1e-6)


@pytest.mark.parametrize("value", [0.0, -7.0, 1e6])
def test_minmax_of_equal_logits_is_undecided(value: float) -> None:
    x = torch.full((2, 1, 2, 2), value, requires_grad=True)
    phi = phi_of("minmax_linear")(x)
    (slope,) = torch.autograd.grad(phi.sum(), x)
    assert (phi == 0).all()
    assert (slope == 0).all()


INVERTIBLE = [name for name in BINARY if not OUTPUT_ACTIVATIONS[name].per_batch]


@pytest.mark.parametrize("name", INVERTIBLE)
def test_inverse_undoes_the_map(name: str) -> None:
    """From 1e-300 to 1 - 1e-15, where x is far beyond what float32 could hold."""
    p = torch.tensor(
        [1e-300, 1e-100, 1e-12, 1e-5, 0.01, 0.1, 0.3, 0.5 - 1e-9, 0.5, 0.6, 0.99, 1 - 1e-6, 1 - 1e-15],
        dtype=torch.float64,
    )
    if name in CLIPPED:
        p = p[(p > 1e-6) & (p < 1 - 1e-6)]
    t = torch.logit(p)
    x = logit_of(OUTPUT_ACTIVATIONS[name], t)
    assert x.isfinite().all()
    assert (x.diff() > 0).all()
    torch.testing.assert_close(phi_of(name)(x), t, rtol=1e-9, atol=1e-12)
    whole = OUTPUT_ACTIVATIONS[name]
    numeric = logit_of(dataclasses.replace(whole, inverse=None), t)
    torch.testing.assert_close(numeric, x, rtol=1e-7, atol=1e-7)
    # Certainty is at infinity, or at the end of a clipped map.
    low, high, nothing = logit_of(whole, torch.tensor([-math.inf, math.inf, math.nan], dtype=torch.float64)).tolist()
    ends = {"hardtanh": (0.0, 1.0), "hardsigmoid": (-3.0, 3.0)}.get(name, (-math.inf, math.inf))
    assert (low, high) == pytest.approx(ends)
    assert math.isnan(nothing)


@pytest.mark.parametrize("name", INVERTIBLE)
def test_matched_slope_is_the_sigmoids(name: str) -> None:
    """F(s x) at its x = 0 rises by 1/4, whatever F; a number is taken as it is."""
    entry = OUTPUT_ACTIVATIONS[name]
    at = 0.5 if name == "hardtanh" else 0.0  # F'(0) of a clipped map is that of its linear part
    s = slope_of(entry, {"slope": "matched"})
    x = torch.tensor([at / s - 1e-5, at / s + 1e-5], dtype=torch.float64).view(1, 1, 1, 2)
    p = make_head(entry, "binary", {"slope": "matched"})(x).values_NKHW.flatten()
    assert (p.diff() / 2e-5).item() == pytest.approx(0.25, rel=1e-5)
    assert slope_of(entry, {"slope": "native"}) == 1
    assert slope_of(entry, {"slope": "2.5"}) == slope_of(entry, {"slope": 2.5}) == 2.5


def test_slope_scales_the_logit() -> None:
    x = torch.linspace(-3, 3, 9, dtype=torch.float64).view(1, 1, 3, 3)

    def at(name: str, scale: float, **params: Any) -> Prediction:
        return make_head(OUTPUT_ACTIVATIONS[name], "binary", params)(scale * x)

    for name in INVERTIBLE:
        torch.testing.assert_close(at(name, 1, slope="2").values_NKHW, at(name, 2).values_NKHW)
        assert torch.equal(at(name, 1, slope="2").logits_NKHW, x)
    torch.testing.assert_close(at("identity", 1, slope="2").values_NKHW, 2 * x)
    with pytest.raises(ValueError, match="minmax_linear"):
        slope_of(OUTPUT_ACTIVATIONS["minmax_linear"], {"slope": "matched"})
    with pytest.raises(ValueError, match="minmax_linear"):
        logit_of(OUTPUT_ACTIVATIONS["minmax_linear"], torch.zeros(1))
    for wrong in ("0", "-1", "inf", "steep"):
        with pytest.raises(ValueError, match=wrong):
            slope_of(OUTPUT_ACTIVATIONS["sigmoid"], {"slope": wrong})


@pytest.mark.parametrize("name", MAPS)
def test_linear_maps_are_those_said_to_be(name: str) -> None:
    x = torch.linspace(-6, 6, 13, dtype=torch.float64)
    ratio = phi_of(name)(x[x != 0]) / x[x != 0]
    assert OUTPUT_ACTIVATIONS[name].linear == bool(torch.allclose(ratio, ratio[:1], rtol=1e-12))


# The learned tail


@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize("tail", [1e-4, 0.03, 0.3, 0.9, 0.9999])
def test_accuracy_of_any_tail(tail: float, dtype: torch.dtype) -> None:
    """A tensor, as in training."""
    x, given = grid(dtype)[::5], torch.tensor(tail, dtype=dtype)
    truth = np.array([exact(mirrored(tailed(given.item())), value) for value in x.tolist()])
    worst = worst_errors(computed(lambda leaf: learned_tail(leaf, tail=given), x), truth, dtype)
    value_bound, slope_bound = BOUNDS[dtype]
    if tail > 0.99 and dtype == torch.float32:  # where 1 - p is 1e-35, the square of the odds has too few digits
        value_bound = 5e-5
    assert (worst <= (value_bound, value_bound, slope_bound, slope_bound)).all(), dict(zip(COLUMNS, worst, strict=True))


def test_tail_ends_at_arctan_and_at_the_normal_cdf() -> None:
    x = torch.cat([torch.linspace(-12, 12, 4801, dtype=torch.float64), torch.logspace(1, 6, 200, dtype=torch.float64)])

    def distance(tail: float, name: str) -> float:
        return float((learned_tail(x, tail=tail).sigmoid() - phi_of(name)(x).sigmoid()).abs().max())

    assert torch.equal(learned_tail(x, tail=0.0), phi_of("arctan")(x))
    assert distance(1e-3, "arctan") < 1e-3
    assert distance(1.0, "normal_cdf") < 5e-5
    assert distance(0.9999, "normal_cdf") < 1e-3
    assert min(distance(0.5, "arctan"), distance(0.5, "normal_cdf")) > 0.02


@pytest.mark.parametrize("tail", [0.0, 1e-30, 1e-6, 0.2, 0.5, 0.8, 1.0])
def test_any_tail_is_finite_and_increasing(tail: float) -> None:
    """In the logit and in the parameter, its ends included, to which a logistic rounds."""
    size = torch.logspace(-6, 6, 25_001)
    x = torch.cat([-size.flip(0), torch.zeros(1), size]).requires_grad_()
    parameter = torch.tensor(tail, requires_grad=True)
    phi = learned_tail(x, tail=parameter)
    assert (phi.diff() > 0).all()
    for gradient in torch.autograd.grad(phi.abs().mean(), (x, parameter)):
        assert gradient.isfinite().all()
    if 0 < tail < 1:
        t = torch.tensor([-600.0, -3.0, 0.0, 1e-9, 2.0, 40.0], dtype=torch.float64)
        inverse = logit_of(OUTPUT_ACTIVATIONS["learned_tail"], t, {"tail": tail})
        if bool(inverse.isfinite().all()):  # arctan's own reach ends at e^709
            torch.testing.assert_close(learned_tail(inverse, tail=tail), t, rtol=1e-9, atol=1e-12)


def test_tail_has_the_gradient_of_its_formula() -> None:
    x = torch.tensor([-30.0, -2.0, -0.4, 0.3, 1.7, 12.0], dtype=torch.float64, requires_grad=True)
    for tail in (1e-3, 0.02, 0.4, 0.97):
        parameter = torch.tensor(tail, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda a, w: learned_tail(a, tail=w), (x, parameter))


def test_matched_slope_follows_the_tail() -> None:
    entry = OUTPUT_ACTIVATIONS["learned_tail"]
    for tail in (0.1, 0.5, 0.9):
        s = slope_of(entry, {"slope": "matched", "tail": tail})
        x = torch.tensor([-1e-5, 1e-5], dtype=torch.float64)
        p = learned_tail(s * x, tail=tail).sigmoid()
        assert (p.diff() / 2e-5).item() == pytest.approx(0.25, rel=1e-6)


# Taylor softmax


def test_taylor_softmax_is_the_logarithm_of_its_polynomial() -> None:
    x = torch.linspace(-30, 30, 601, dtype=torch.float64)
    torch.testing.assert_close(taylor_softmax(x), (1 + x + x * x / 2).log(), rtol=1e-12, atol=1e-15)
    p = make_head(OUTPUT_ACTIVATIONS["taylor_softmax"], "softmax")(x[:600].view(1, 3, 10, 20)).values_NKHW
    f = 1 + x[:600] + x[:600] ** 2 / 2
    torch.testing.assert_close(p, f.view(1, 3, 10, 20) / f.view(1, 3, 10, 20).sum(1, keepdim=True))
    far = torch.tensor([*EDGES, *(-e for e in EDGES)], requires_grad=True)
    (slope,) = torch.autograd.grad(taylor_softmax(far).sum(), far)
    assert slope.isfinite().all()
    assert ((slope > 0) == (far > -1)).logical_or(far == -1).all()
    entry = OUTPUT_ACTIVATIONS["taylor_softmax"]
    t = torch.tensor([-0.6, 0.0, 5.0, 20.0], dtype=torch.float64)
    torch.testing.assert_close(taylor_softmax(logit_of(entry, t)), t)
    for mode in ("binary", "independent"):
        with pytest.raises(ValueError, match=r"head\.mode=softmax"):
            make_head(entry, mode)
