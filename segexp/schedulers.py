"""Catalogue of learning-rate schedules: name -> function(optimizer, total_steps, steps_per_epoch, *, options).

Each returns a torch scheduler, and says when it moves: after every step, or after every validation by its score.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from segexp.catalogue import NOT_NEGATIVE, Catalogue, Option, Range, options_of

if TYPE_CHECKING:
    import torch

Moves = Literal["step", "validation"]


@dataclass(frozen=True)
class SchedulerEntry:
    """One entry of the catalogue. moves "validation": ``step(score)`` after each epoch, a higher score being better."""

    name: str
    function: Callable[..., Any]
    moves: Moves
    formula: str
    source: str
    options: tuple[Option, ...] = ()


SCHEDULERS: Catalogue[SchedulerEntry] = Catalogue("scheduler")

Make = Callable[..., Any]


def scheduler(*, moves: Moves, formula: str, source: str) -> Callable[[Make], Make]:
    """Decorator: put the function into the catalogue under its own name."""

    def put(function: Make) -> Make:
        entry = SchedulerEntry(function.__name__, function, moves, formula, source, options_of(function))
        SCHEDULERS.add(entry.name, entry)
        return function

    return put


@scheduler(moves="step", formula="linear warm-up, then half a cosine to final_ratio * lr", source="arXiv:1608.03983")
def cosine(
    optimizer: "torch.optim.Optimizer",
    total_steps: int,
    steps_per_epoch: int,
    *,
    warmup_epochs: Annotated[float, NOT_NEGATIVE] = 0.5,
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


@scheduler(moves="step", formula="linear warm-up, then lr", source="-")
def constant(
    optimizer: "torch.optim.Optimizer",
    total_steps: int,
    steps_per_epoch: int,
    *,
    warmup_epochs: Annotated[float, NOT_NEGATIVE] = 0.0,
) -> Any:
    """A constant rate after an optional linear warm-up."""
    import torch

    warmup = round(warmup_epochs * steps_per_epoch)
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / (warmup + 1)))


@scheduler(moves="validation", formula="lr * factor after `patience` epochs without gain", source="-")
def plateau(
    optimizer: "torch.optim.Optimizer",
    total_steps: int,
    steps_per_epoch: int,
    *,
    factor: Annotated[float, Range(0, 1, above=True, below=True)] = 0.1,
    patience: Annotated[int, NOT_NEGATIVE] = 5,
    min_lr: Annotated[float, NOT_NEGATIVE] = 1e-6,
) -> Any:
    """Reduce on plateau of the validation score (higher is better)."""
    import torch

    return torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, mode="max", factor=factor, patience=patience, min_lr=min_lr
    )
