"""The inverse of an output activation: log-odds or probability -> logit."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from segexp.activations.output import OutputActivation

if TYPE_CHECKING:
    import torch

STEPS = 200
"""Bisections of the numerical inverse: after about 60 the bracket is as narrow as float64 can tell."""


def logit_of(
    activation: OutputActivation, log_odds: "torch.Tensor", params: Mapping[str, Any] | None = None
) -> "torch.Tensor":
    """The x with phi(x) = ``log_odds``, float64, any shape; by the closed form where there is one, else by bisection.

    ``params`` are options of the activation's own function. Raises ValueError where x is not determined by p alone.
    """
    options = dict(params or {})
    if activation.per_batch:
        raise ValueError(f"{activation.name} has no inverse: a probability depends on the whole batch")
    target = log_odds.double()
    if activation.inverse is not None:
        return activation.inverse(target, **options)
    assert activation.log_odds is not None
    return _solved(lambda x: activation.log_odds(x, **options), target)


def _solved(phi: Any, target: "torch.Tensor") -> "torch.Tensor":
    """phi(x) = target for an increasing phi, by bisection on the size of x from above and below 0."""
    import torch

    # Bisection between powers of two: relative precision holds next to 0 as well as at 1e300.
    above_zero = target > phi(torch.zeros_like(target))
    sign = torch.where(above_zero, 1.0, -1.0).to(target.dtype)
    low, high = torch.full_like(target, -1000.0), torch.full_like(target, 1000.0)
    for _ in range(STEPS):
        middle = (low + high) / 2
        value = phi(sign * torch.exp2(middle))
        # An overflow on the way is beyond every target.
        beyond = torch.where(above_zero, ~(value < target), ~(value > target))
        low, high = torch.where(beyond, low, middle), torch.where(beyond, middle, high)
    found = sign * torch.exp2((low + high) / 2)
    found = torch.where(target == phi(torch.zeros_like(target)), torch.zeros_like(found), found)
    return torch.where(target.isfinite(), found, target)
