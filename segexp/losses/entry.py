"""What a loss is: a function (prediction, target) -> scalar tensor with its facts, in a registry.

It takes a `Prediction`, so it never applies an activation, and says what it needs of it: ``log_odds`` (all that
takes a logarithm or a probability) or plain ``values``. The target is an integer map (N, H, W) with
`segexp.losses.targets.IGNORE` where a pixel does not count, or soft labels (`segexp.losses.targets`). Everything is
computed in float32 or better and stays finite with finite gradients for logits up to 1e6.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from segexp.activations.output import HeadMode, Offer, OutputActivation
from segexp.registry import Option, Registry, options_of

if TYPE_CHECKING:
    import torch

LossFunction = Callable[..., "torch.Tensor"]

Refuses = Callable[[OutputActivation, HeadMode], str | None]
"""Why a loss does not exist for an activation under a head mode; None where it does."""


@dataclass(frozen=True)
class Loss:
    """One entry. aliases: other names, each with the head modes in which the name means anything.

    proper: whether the expected loss is least at the true probabilities (a proper scoring rule).
    """

    name: str
    function: LossFunction
    needs: Offer
    formula: str
    proper: bool
    side_effects: str
    source: str
    refuses: Refuses | None = None
    aliases: Mapping[str, tuple[HeadMode, ...]] = field(default_factory=dict)
    options: tuple[Option, ...] = ()


LOSSES: Registry[Loss] = Registry("loss")


def loss(
    *,
    needs: Offer,
    formula: str,
    proper: bool,
    side_effects: str,
    source: str,
    refuses: Refuses | None = None,
    aliases: Mapping[str, tuple[HeadMode, ...]] | None = None,
    like: LossFunction | None = None,
) -> Callable[[LossFunction], LossFunction]:
    """Decorator: put the function into the registry under its own name (without a "_" at its end).

    like: another loss whose options it takes as well.
    """

    def put(function: LossFunction) -> LossFunction:
        entry = Loss(
            name=function.__name__.rstrip("_"),
            function=function,
            needs=needs,
            formula=formula,
            proper=proper,
            side_effects=side_effects,
            source=source,
            refuses=refuses,
            aliases=aliases or {},
            options=(*options_of(function), *(options_of(like) if like else ())),
        )
        LOSSES.add(entry.name, entry)
        return function

    return put


def refusal(activation: OutputActivation, candidate: Loss, mode: HeadMode) -> str | None:
    """Why the pair means nothing under this head, in words; None where it trains."""
    if candidate.needs not in activation.offers:
        return f"{candidate.name} needs probabilities, {activation.name} gives plain values"
    return candidate.refuses(activation, mode) if candidate.refuses else None


def fits(activation: OutputActivation, candidate: Loss, mode: HeadMode) -> bool:
    """Whether the pair trains under this head."""
    return refusal(activation, candidate, mode) is None
