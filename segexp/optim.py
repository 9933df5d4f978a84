"""Registries of optimizers and learning rate schedulers: each is one decorated function.

Functions import torch themselves, so that the registries can be read without it.
"""

import functools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from segexp.registry import NOT_NEGATIVE, POSITIVE, Option, Range, Registry, options_of

if TYPE_CHECKING:
    import torch
    from torch.optim import Optimizer

Make = Callable[..., Any]


@dataclass(frozen=True)
class Entry:
    """One entry of either registry.

    moves: when a scheduler changes the rate: every training step, or after each validation by ``step(score)``, a higher
    score being better.
    """

    name: str
    function: Make
    formula: str
    source: str
    moves: Literal["step", "validation"] = "step"
    options: tuple[Option, ...] = ()


OPTIMIZERS: Registry[Entry] = Registry("optimizer")
SCHEDULERS: Registry[Entry] = Registry("scheduler")


def _register(registry: Registry[Entry], **facts: Any) -> Callable[[Make], Make]:
    """Decorator: put the function into the registry under its own name. facts: fields of `Entry`."""
    return registry.decorator(lambda make: Entry(make.__name__, make, options=options_of(make), **facts))


optimizer = functools.partial(_register, OPTIMIZERS)
scheduler = functools.partial(_register, SCHEDULERS)

Parameters = Iterable["torch.nn.Parameter"]
Positive = Annotated[float, POSITIVE]
NotNegative = Annotated[float, NOT_NEGATIVE]
Decay = NotNegative
Share = Annotated[float, Range(0, 1, below=True)]


@optimizer(formula="Adam with decoupled weight decay", source="Loshchilov and Hutter 2019, arXiv:1711.05101")
def adamw(
    parameters: Parameters, *, lr: Positive = 2e-3, weight_decay: Decay = 1e-2, beta1: Share = 0.9, beta2: Share = 0.999
) -> "Optimizer":
    """AdamW."""
    import torch

    return torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay, betas=(beta1, beta2), fused=True)


@optimizer(formula="Adam; weight decay as L2 penalty", source="Kingma and Ba 2015, arXiv:1412.6980")
def adam(
    parameters: Parameters, *, lr: Positive = 1e-3, weight_decay: Decay = 0.0, beta1: Share = 0.9, beta2: Share = 0.999
) -> "Optimizer":
    """Adam."""
    import torch

    return torch.optim.Adam(parameters, lr=lr, weight_decay=weight_decay, betas=(beta1, beta2), fused=True)


@optimizer(formula="SGD with (Nesterov) momentum", source="Sutskever et al. 2013")
def sgd(
    parameters: Parameters,
    *,
    lr: Positive = 1e-2,
    weight_decay: Decay = 1e-4,
    momentum: Share = 0.9,
    nesterov: bool = True,
) -> "Optimizer":
    """Stochastic gradient descent. Without momentum, ``nesterov`` has no effect."""
    import torch

    return torch.optim.SGD(
        parameters, lr=lr, weight_decay=weight_decay, momentum=momentum, nesterov=nesterov and momentum > 0, fused=True
    )


@scheduler(formula="linear warm-up, then half a cosine to final_ratio * lr", source="arXiv:1608.03983")
def cosine(
    optimizer: "Optimizer",
    total_steps: int,
    steps_per_epoch: int,
    *,
    warmup_epochs: NotNegative = 0.5,
    final_ratio: Annotated[float, Range(0, 1)] = 0.01,
) -> Any:
    """Cosine annealing after a linear warm-up."""
    import torch

    warmup = round(warmup_epochs * steps_per_epoch)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
        return final_ratio + (1 - final_ratio) * 0.5 * (1 + math.cos(math.pi * progress))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


@scheduler(formula="linear warm-up, then lr", source="-")
def constant(
    optimizer: "Optimizer", total_steps: int, steps_per_epoch: int, *, warmup_epochs: NotNegative = 0.0
) -> Any:
    """A constant rate after an optional linear warm-up."""
    import torch

    warmup = round(warmup_epochs * steps_per_epoch)
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / (warmup + 1)))


@scheduler(moves="validation", formula="lr * factor after more than `patience` epochs without gain", source="-")
def plateau(
    optimizer: "Optimizer",
    total_steps: int,
    steps_per_epoch: int,
    *,
    factor: Annotated[float, Range(0, 1, above=True, below=True)] = 0.1,
    patience: Annotated[int, NOT_NEGATIVE] = 5,
    min_lr: NotNegative = 1e-6,
) -> Any:
    """Reduce on plateau of the validation score (higher is better)."""
    import torch

    return torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, "max", factor, patience, min_lr=min_lr)
