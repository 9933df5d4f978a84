"""Output activations given as F(x), or as ln F and ln(1 - F), against the exact entries of the same maps."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from segexp.activations.cdf import inexact_tails, log_odds_of_cdf, log_odds_of_pair, measured_slope
from segexp.activations.output import OUTPUT_ACTIVATIONS, OutputActivation
from segexp.activations.output.symmetric import UNIT
from segexp.registry import Option, options_of

Map = Callable[..., torch.Tensor]


def sigmoid(x: torch.Tensor) -> torch.Tensor:
    return 1 / (1 + torch.exp(-x))


def arctan(x: torch.Tensor) -> torch.Tensor:
    return 0.5 + torch.atan(x) / math.pi


def normal_cdf(x: torch.Tensor) -> torch.Tensor:
    return (1 + torch.erf(x / math.sqrt(2))) / 2


def normal_by_erfc(x: torch.Tensor) -> torch.Tensor:
    return torch.erfc(-x / math.sqrt(2)) / 2


def cloglog(x: torch.Tensor) -> torch.Tensor:
    return 1 - torch.exp(-torch.exp(x))


GIVEN: dict[Map, str] = {
    sigmoid: "sigmoid", arctan: "arctan", normal_cdf: "normal_cdf", normal_by_erfc: "normal_cdf", cloglog: "cloglog",
}  # fmt: skip
SYMMETRIC = [(function, symmetric) for function in GIVEN for symmetric in (False, True) if function != cloglog]


def exact(function: Map) -> Map:
    entry = OUTPUT_ACTIVATIONS[GIVEN[function]].log_odds
    assert entry is not None
    return entry


def with_slope(phi: Map, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    leaf = x.clone().requires_grad_()
    value = phi(leaf)
    return value.detach(), torch.autograd.grad(value.sum(), leaf)[0]


@pytest.mark.parametrize(("function", "symmetric"), [*SYMMETRIC, (cloglog, False)])
def test_body_is_that_of_the_exact_map(function: Map, symmetric: bool) -> None:
    """As far as F(x) and 1 - F(x) are above 1e-12."""
    size = torch.logspace(-3, 3, 800)
    x = torch.cat([-size.flip(0), size])
    phi, slope = with_slope(log_odds_of_cdf(function, symmetric=symmetric), x)
    true, true_slope = with_slope(exact(function), x)
    body = true.abs() < 27.5
    assert body.sum() > 400
    torch.testing.assert_close(phi[body], true[body], rtol=2e-5, atol=1e-9)
    torch.testing.assert_close(slope[body], true_slope[body], rtol=2e-4, atol=0)
    if symmetric:
        assert torch.equal(phi, -phi.flip(0))


@pytest.mark.parametrize(("function", "symmetric"), [*SYMMETRIC, (cloglog, False)])
def test_wrong_pixels_pull_the_right_way_however_far_out(function: Map, symmetric: bool) -> None:
    size = torch.tensor([0.0, 1e-6, 1.0, 7.0, 7.1, 30.0, 40.0, 300.0, 800.0, 1e4, 1e6])
    phi_of = log_odds_of_cdf(function, symmetric=symmetric)
    for sign, truth in ((-1, 1.0), (1, 0.0)):
        x = (sign * size).requires_grad_()
        phi = phi_of(x)
        assert phi.dtype == x.dtype
        loss = F.binary_cross_entropy_with_logits(phi, torch.full_like(phi, truth), reduction="none")
        (gradient,) = torch.autograd.grad(loss.sum(), x)
        assert loss.isfinite().all()
        assert gradient.isfinite().all()
        assert (gradient * sign > 0).all()
        assert (loss.detach().diff() >= 0).all()


@pytest.mark.parametrize("symmetric", [False, True])
def test_lines_begin_where_the_slope_still_has_its_digits(symmetric: bool) -> None:
    """Of the sigmoid 1, everywhere."""
    size = torch.cat([torch.linspace(20, 40, 400), torch.logspace(2, 6, 50)]).double()
    _, slope = with_slope(log_odds_of_cdf(sigmoid, symmetric=symmetric), torch.cat([-size, size]))
    torch.testing.assert_close(slope, torch.ones_like(slope), rtol=2e-4, atol=0)


def test_symmetry_keeps_the_tail_of_a_function_that_computes_small_values() -> None:
    """erfc down to 1e-300, where 1 + erf has ended at 1e-16."""
    x = torch.tensor([-36.0, -20.0, -9.0, 9.0, 20.0, 36.0], dtype=torch.float64)
    true = exact(normal_cdf)(x)
    torch.testing.assert_close(log_odds_of_cdf(normal_by_erfc, symmetric=True)(x), true, rtol=1e-9, atol=0)
    for lost in (log_odds_of_cdf(normal_by_erfc), log_odds_of_cdf(normal_cdf, symmetric=True)):
        assert ((lost(x) / true) < 0.999).all()


@pytest.mark.parametrize("symmetric", [False, True])
def test_lines_begin_anew_where_a_learned_option_has_changed(symmetric: bool) -> None:
    def scaled(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return sigmoid(x * scale)

    phi_of, scale, x = log_odds_of_cdf(scaled, symmetric=symmetric), torch.tensor(1.0), torch.tensor([-300.0, 300.0])
    for value in (1.0, 4.0):
        phi = phi_of(x, scale=scale.fill_(value))
        torch.testing.assert_close(phi, value * x, rtol=2e-4, atol=0)


def test_what_is_not_symmetric_is_refused() -> None:
    with pytest.raises(ValueError, match="symmetric"):
        log_odds_of_cdf(cloglog, symmetric=True)(torch.zeros(1))


def test_works_in_inference_mode_and_in_any_precision() -> None:
    phi = log_odds_of_cdf(normal_cdf)
    x = torch.tensor([-3.0, 0.5, 12.0])
    with torch.inference_mode():
        inside = phi(x)
    assert torch.equal(inside, phi(x))
    torch.testing.assert_close(phi(x.double()).float(), inside)


def test_pair_is_as_exact_as_its_logarithms() -> None:
    def laplace(x: torch.Tensor, *, scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
        log_tail = -x.abs() / scale - math.log(2)
        other = torch.log1p(-log_tail.exp())
        return torch.where(x < 0, log_tail, other), torch.where(x < 0, other, log_tail)

    phi = log_odds_of_pair(laplace)
    x = torch.tensor([-1e6, -700.0, -3.0, 0.2, 50.0, 1e6])
    true = OUTPUT_ACTIVATIONS["laplace"].log_odds
    assert true is not None
    torch.testing.assert_close(phi(x), true(x))
    torch.testing.assert_close(phi(2 * x, scale=2.0), true(x))
    assert [option.name for option in options_of(phi)] == ["scale"]


def power(x: torch.Tensor, *, tail: float = 2.0) -> torch.Tensor:
    return 0.5 + x / (2 * (1 + x.abs() ** tail) ** (1 / tail))


def test_options_have_ends_of_their_own_and_can_be_learned() -> None:
    """With a tensor for the option the same log-odds, and a gradient; finite beyond the ends, too."""
    phi = log_odds_of_cdf(power)
    assert [option.name for option in options_of(phi)] == ["tail"]
    x = torch.tensor([-1e6, -3e3, -2.0, 0.1, 40.0, 1e6])
    true = OUTPUT_ACTIVATIONS["inverse_square_root"].log_odds
    assert true is not None
    torch.testing.assert_close(phi(x)[1:-1], true(x)[1:-1], rtol=2e-5, atol=1e-9)
    assert not torch.allclose(phi(x, tail=4.0), phi(x))
    learned = torch.tensor(4.0, requires_grad=True)
    with torch.inference_mode():
        torch.testing.assert_close(phi(x, tail=1 * learned), phi(x, tail=4.0))
    value = phi(x, tail=learned)
    torch.testing.assert_close(value.detach(), phi(x, tail=4.0))
    for at in range(len(x)):
        (gradient,) = torch.autograd.grad(value[at], learned, retain_graph=True)
        assert gradient.isfinite()
        assert gradient != 0 or x[at].abs() > 1e3


@pytest.mark.parametrize("function", GIVEN)
def test_measured_slope_is_the_stated_one(function: Map) -> None:
    stated = OUTPUT_ACTIVATIONS[GIVEN[function]].slope_at_zero
    assert measured_slope(log_odds_of_cdf(function)) == pytest.approx(stated, rel=1e-9)
    assert measured_slope(exact(function)) == pytest.approx(stated, rel=1e-9)


def test_an_entry_says_that_its_tails_are_not_exact_and_names_its_learned_options() -> None:
    assert "tails are not exact" in inexact_tails("mine")
    assert "1e-300" in inexact_tails("mine", symmetric=True)
    facts = ("mine", log_odds_of_cdf(power), "f", "t", "w", 0.5, "s")
    option = Option("tail", float, 0.5, range=UNIT)
    assert OutputActivation(*facts, learnable=("tail",), options=(option,)).learnable == ("tail",)
    with pytest.raises(ValueError, match="mine: learnable names power"):
        OutputActivation(*facts, learnable=("power",), options=(option,))
