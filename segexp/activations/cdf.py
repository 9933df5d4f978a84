"""Log-odds of an output activation that is written otherwise: as ln F(x) and ln(1 - F(x)), or as F(x) alone.

Both return a function for `segexp.activations.output.OutputActivation` with the options of the function they take.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

LEVELS = (1e-12, 1e-20, 1e-40, 1e-80, 1e-160, 1e-300)
"""Tail masses down to which F may be used. The first: there 1 - F keeps four digits in float64."""

REACH = 1e9
"""The largest |x| at which F is evaluated, far beyond the logits of a network."""


def inexact_tails(name: str, symmetric: bool = False) -> str:
    """The ``warning`` of an entry that `log_odds_of_cdf` has made."""
    least = "what F(-|x|) still resolves (at best 1e-300)" if symmetric else "1e-12"
    return (
        f"{name} is given as F(x), so its tails are not exact: where F(x) or 1 - F(x) is below {least}, the log-odds "
        "continue as a straight line"
    )


def log_odds_of_pair(function: Callable[..., "tuple[Tensor, Tensor]"]) -> Callable[..., "Tensor"]:
    """phi(x) of a function x -> (ln F(x), ln(1 - F(x))), as exact as these are."""

    @functools.wraps(function)
    def log_odds(x: "Tensor", **options: Any) -> "Tensor":
        log_p, log_q = function(x, **options)
        return log_p - log_q

    return log_odds


def log_odds_of_cdf(function: Callable[..., "Tensor"], *, symmetric: bool = False) -> Callable[..., "Tensor"]:
    """phi(x) of a non-decreasing function x -> F(x) in [0, 1], computed in float64.

    Where F(x) or 1 - F(x) is below 1e-12, phi goes on as a line with the slope that it has there: its gradient stays
    finite and has the right sign. symmetric: F(-x) = 1 - F(x), and the upper tail is F(-x), used as far down as it has
    digits (1e-300 if the function computes small values as such, 1e-12 if it subtracts from 1). Raises ValueError where
    it is not so. Where options are tensors, as learned ones, the ends of the lines are found at every call.
    """
    known: dict[tuple[Any, ...], _Ends] = {}

    @functools.wraps(function)
    def log_odds(x: "Tensor", **options: Any) -> "Tensor":
        import torch

        fixed = not any(isinstance(value, torch.Tensor) for value in options.values())
        key = tuple(sorted(options.items())) if fixed else ()
        ends = known.get(key) if fixed else None
        if ends is None:
            ends = _ends_of(function, symmetric, options, "cpu" if fixed else x.device)
            if fixed:
                if symmetric:
                    _check_symmetry(functools.partial(function, **options))
                ends = known[key] = ends.as_numbers()
        z = x.double()
        phi = _body(function, symmetric, options, z.clamp(ends.low, ends.high))
        below, above = (z - ends.low).clamp_max(0), (z - ends.high).clamp_min(0)
        return (phi + ends.slope_low * below + ends.slope_high * above).to(x.dtype)

    return log_odds


def measured_slope(log_odds: Callable[..., "Tensor"], **options: Any) -> float:
    """F'(0) of log-odds, by automatic differentiation in float64."""
    import torch

    with torch.inference_mode(False), torch.enable_grad():
        x = torch.zeros((), dtype=torch.float64, requires_grad=True)
        p = log_odds(x, **options).sigmoid()
        return float(torch.autograd.grad(p, x)[0])


def _body(function: Callable[..., "Tensor"], symmetric: bool, options: dict[str, Any], z: "Tensor") -> "Tensor":
    """phi(z) in float64 between the ends."""
    if not symmetric:
        p = function(z, **options)
        return p.log() - (1 - p).log()
    negative = z < 0
    q = function(-((-z).where(negative, z)), **options)
    half = (-q).log1p() - q.log()
    return (-half).where(negative, half)


@dataclass(frozen=True)
class _Ends:
    """Where the lines begin, and their slopes: numbers, or scalar tensors where options are learned."""

    low: Any
    high: Any
    slope_low: Any
    slope_high: Any

    def as_numbers(self) -> "_Ends":
        return _Ends(*(float(value) for value in vars(self).values()))


def _ends_of(function: Callable[..., "Tensor"], symmetric: bool, options: dict[str, Any], device: Any) -> _Ends:
    """By bisection of asinh x. Reads nothing back from the device."""
    import torch

    with torch.inference_mode(False), torch.enable_grad():
        # Copies are no tensors of an inference mode around this.
        given = {k: v.detach().clone() if isinstance(v, torch.Tensor) else v for k, v in options.items()}

        def cdf(x: "Tensor") -> "Tensor":
            return function(x, **given)

        def found(beyond: Callable[["Tensor"], "Tensor"], levels: "Tensor") -> "tuple[Tensor, Tensor]":
            """The two x, next to each other, between which ``beyond`` becomes true."""
            low = torch.full_like(levels, -math.asinh(REACH))
            high = -low
            for _ in range(64):
                middle = (low + high) / 2
                stop = beyond(middle.sinh())
                low, high = low.where(stop, middle), middle.where(stop, high)
            return low.sinh(), high.sinh()

        def slope_at(x: "Tensor") -> "Tensor":
            leaf = x.detach().requires_grad_()
            return torch.autograd.grad(_body(function, symmetric, given, leaf).sum(), leaf)[0]

        levels = torch.tensor(LEVELS if symmetric else LEVELS[:1], dtype=torch.float64, device=device)
        if not symmetric:
            # What is no number counts as beyond.
            with torch.no_grad():
                low = found(lambda x: cdf(x) > levels, levels)[1][0]
                high = found(lambda x: ~(1 - cdf(x) > levels), levels)[0][0]
            return _Ends(low, high, slope_at(low), slope_at(high))
        with torch.no_grad():
            ends = found(lambda x: ~(cdf(-x) > levels), levels)[0]
        # As far as the rise of ln F over a short way is that of its derivative.
        slopes = slope_at(ends)
        with torch.no_grad():
            way = 0.1 / slopes
            rise = cdf(-(ends - way)).log() - cdf(-(ends + way)).log()
            good = ((rise - 0.2).abs() < 0.004).long().cumprod(0)
            good[0] = 1
            last = good.sum() - 1
        return _Ends(-ends[last], ends[last], slopes[last], slopes[last])


def _check_symmetry(cdf: Callable[["Tensor"], "Tensor"]) -> None:
    import torch

    with torch.no_grad():
        x = torch.tensor([0.0, 0.3, 1.0, 4.0], dtype=torch.float64)
        wrong = (cdf(x) + cdf(-x) - 1).abs().max()
    if not wrong < 1e-6:
        raise ValueError(f"symmetric: F(x) + F(-x) is not 1, but off by {float(wrong):.2g}")
