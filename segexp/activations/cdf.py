"""Log-odds of an output activation that is written otherwise: as ln F(x) and ln(1 - F(x)), or as F(x) alone.

Both return a function for `segexp.activations.output.OutputActivation` with the options of the function they take.
"""

import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from segexp.activations.output import mirrored

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

    log_odds.form = "log_probabilities"  # type: ignore[attr-defined]
    return log_odds


def log_odds_of_cdf(function: Callable[..., "Tensor"], *, symmetric: bool = False) -> Callable[..., "Tensor"]:
    """phi(x) of a non-decreasing function x -> F(x) in [0, 1], computed in float64.

    Where F(x) or 1 - F(x) is below 1e-12, phi goes on as a line with the slope that it has there: its gradient stays
    finite and has the right sign. symmetric: F(-x) = 1 - F(x), and the upper tail is F(-x), used as far down as it has
    digits (1e-300 if the function computes small values as such, 1e-12 if it subtracts from 1). Raises ValueError where
    it is not so. Where options are tensors, as learned ones, the ends of the lines are found at every call.
    """
    known: dict[tuple[Any, ...], tuple[Any, ...]] = {}

    def body(z: "Tensor", options: dict[str, Any]) -> "Tensor":
        if not symmetric:
            p = function(z, **options)
            return p.log() - (1 - p).log()
        return mirrored(z, lambda a: (-(q := function(-a, **options))).log1p() - q.log())

    @functools.wraps(function)
    def log_odds(x: "Tensor", **options: Any) -> "Tensor":
        import torch

        fixed = not any(isinstance(value, torch.Tensor) for value in options.values())
        key = tuple(sorted(options.items())) if fixed else ()
        if not fixed or key not in known:
            with torch.inference_mode(False), torch.enable_grad():
                # Copies are no tensors of an inference mode around this.
                copies = {k: v.detach().clone() if isinstance(v, torch.Tensor) else v for k, v in options.items()}
                cdf, phi = functools.partial(function, **copies), functools.partial(body, options=copies)
                ends = _ends_of(cdf, phi, symmetric, "cpu" if fixed else x.device)
            if fixed:
                if symmetric and not (wrong := _asymmetry(cdf)) < 1e-6:
                    raise ValueError(f"symmetric: F(x) + F(-x) is not 1, but off by {wrong:.2g}")
                known[key] = tuple(map(float, ends))
        low, high, slope_low, slope_high = known[key] if fixed else ends
        z = x.double()
        lines = slope_low * (z - low).clamp_max(0) + slope_high * (z - high).clamp_min(0)
        return (body(z.clamp(low, high), options) + lines).to(x.dtype)

    log_odds.form = "probability"  # type: ignore[attr-defined]
    return log_odds


def measured_slope(log_odds: Callable[..., "Tensor"], **options: Any) -> float:
    """F'(0) of log-odds, by automatic differentiation in float64."""
    import torch

    with torch.inference_mode(False), torch.enable_grad():
        x = torch.zeros((), dtype=torch.float64, requires_grad=True)
        return float(torch.autograd.grad(log_odds(x, **options).sigmoid(), x)[0])


def _asymmetry(cdf: Callable[["Tensor"], "Tensor"]) -> float:
    import torch

    x = torch.tensor([0.0, 0.3, 1.0, 4.0], dtype=torch.float64)
    return float((cdf(x) + cdf(-x) - 1).detach().abs().max())


def _ends_of(
    cdf: Callable[["Tensor"], "Tensor"], phi: Callable[["Tensor"], "Tensor"], symmetric: bool, device: Any
) -> "tuple[Tensor, Tensor, Tensor, Tensor]":
    """Both ends of the body, and the slope of phi at them: scalars. Reads nothing back from the device."""
    import torch

    def between(beyond: Callable[["Tensor"], "Tensor"]) -> "tuple[Tensor, Tensor]":
        """The neighbours between which a condition on x becomes true, by bisection of asinh x."""
        low = torch.full_like(levels, -math.asinh(REACH))
        high = -low
        with torch.no_grad():
            for _ in range(64):
                middle = (low + high) / 2
                stop = beyond(middle.sinh())
                low, high = low.where(stop, middle), middle.where(stop, high)
        return low.sinh(), high.sinh()

    def slope_at(x: "Tensor") -> "Tensor":
        return torch.autograd.grad(phi(x.requires_grad_()).sum(), x)[0]

    levels = torch.tensor(LEVELS if symmetric else LEVELS[:1], dtype=torch.float64, device=device)
    # What is no number counts as beyond.
    if not symmetric:
        low, high = between(lambda x: cdf(x) > levels)[1], between(lambda x: ~(1 - cdf(x) > levels))[0]
        return low[0].detach(), high[0].detach(), slope_at(low)[0], slope_at(high)[0]
    ends = between(lambda x: ~(cdf(-x) > levels))[0]
    slopes = slope_at(ends)
    with torch.no_grad():
        # As far as the rise of ln F over a short way is that of its derivative.
        way = 0.1 / slopes
        rise = cdf(-(ends - way)).log() - cdf(-(ends + way)).log()
        good = ((rise - 0.2).abs() < 0.004).long()
        good[0] = 1
        last = good.cumprod(0).sum() - 1
        end, slope = ends.take(last), slopes.take(last)
        return -end, end, slope, slope
