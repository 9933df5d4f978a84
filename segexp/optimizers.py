"""Catalogue of optimizers: name -> function(parameters, *, options) -> torch.optim.Optimizer.

All are the fused torch implementations: one kernel per step, and an update that is skipped on the device itself when
a gradient is not finite (see `segexp.training.loop`).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from segexp.catalogue import NOT_NEGATIVE, POSITIVE, Catalogue, Option, Range, options_of

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class OptimizerEntry:
    """One entry of the catalogue."""

    name: str
    function: Callable[..., "torch.optim.Optimizer"]
    formula: str
    source: str
    options: tuple[Option, ...] = ()


SHARE = Range(0, 1, below=True)

OPTIMIZERS: Catalogue[OptimizerEntry] = Catalogue("optimizer")

Make = Callable[..., "torch.optim.Optimizer"]


def optimizer(*, formula: str, source: str) -> Callable[[Make], Make]:
    """Decorator: put the function into the catalogue under its own name."""

    def put(function: Make) -> Make:
        entry = OptimizerEntry(function.__name__, function, formula, source, options_of(function))
        OPTIMIZERS.add(entry.name, entry)
        return function

    return put


@optimizer(formula="Adam with decoupled weight decay", source="Loshchilov and Hutter 2019, arXiv:1711.05101")
def adamw(
    parameters: Iterable["torch.nn.Parameter"],
    *,
    lr: Annotated[float, POSITIVE] = 2e-3,
    weight_decay: Annotated[float, NOT_NEGATIVE] = 1e-2,
    beta1: Annotated[float, SHARE] = 0.9,
    beta2: Annotated[float, SHARE] = 0.999,
) -> "torch.optim.Optimizer":
    """AdamW."""
    import torch

    return torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay, betas=(beta1, beta2), fused=True)


@optimizer(formula="Adam; weight decay as L2 penalty", source="Kingma and Ba 2015, arXiv:1412.6980")
def adam(
    parameters: Iterable["torch.nn.Parameter"],
    *,
    lr: Annotated[float, POSITIVE] = 1e-3,
    weight_decay: Annotated[float, NOT_NEGATIVE] = 0.0,
    beta1: Annotated[float, SHARE] = 0.9,
    beta2: Annotated[float, SHARE] = 0.999,
) -> "torch.optim.Optimizer":
    """Adam."""
    import torch

    return torch.optim.Adam(parameters, lr=lr, weight_decay=weight_decay, betas=(beta1, beta2), fused=True)


@optimizer(formula="SGD with (Nesterov) momentum", source="Sutskever et al. 2013")
def sgd(
    parameters: Iterable["torch.nn.Parameter"],
    *,
    lr: Annotated[float, POSITIVE] = 1e-2,
    weight_decay: Annotated[float, NOT_NEGATIVE] = 1e-4,
    momentum: Annotated[float, SHARE] = 0.9,
    nesterov: bool = True,
) -> "torch.optim.Optimizer":
    """Stochastic gradient descent; without momentum there is nothing for Nesterov's to do."""
    import torch

    return torch.optim.SGD(
        parameters, lr=lr, weight_decay=weight_decay, momentum=momentum, nesterov=nesterov and momentum > 0, fused=True
    )
