"""Registry of losses. A loss is a function (prediction, target) -> scalar tensor; adding one is adding one decorated
function to `pixelwise` or `region`.

A loss takes a `Prediction`, so it never applies an activation, and declares what it needs: ``log_odds`` (everything
that takes a logarithm or a probability) or plain ``values``. The target is an integer map (N, H, W) with
`segexp.losses.targets.IGNORE` where a pixel does not count, or soft labels (`segexp.losses.targets`). Losses compute in
float32 or better and stay finite with finite gradients for logits up to 1e6.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from segexp.activations.output import HeadMode, Offer, OutputActivation
from segexp.registry import Option, Registry, options_of

if TYPE_CHECKING:
    import torch

LossFunction = Callable[..., "torch.Tensor"]

Incompatibility = Callable[[OutputActivation, HeadMode], str | None]
"""The reason why a loss does not exist for an activation under a head mode; None if it does."""


@dataclass(frozen=True)
class Loss:
    """One entry. proper: whether the true probabilities minimise the expected loss (a proper scoring rule).

    incompatible: further combinations that cannot be trained. aliases: other names, each with the head modes in which
    it is valid.
    """

    name: str
    function: LossFunction
    needs: Offer
    formula: str
    proper: bool
    side_effects: str
    source: str
    incompatible: Incompatibility | None = None
    aliases: Mapping[str, tuple[HeadMode, ...]] = field(default_factory=dict)
    options: tuple[Option, ...] = ()


LOSSES: Registry[Loss] = Registry("loss")


def loss(*, like: LossFunction | None = None, **facts: Any) -> Callable[[LossFunction], LossFunction]:
    """Decorator: register the function under its own name (without a trailing "_"). facts: fields of `Loss`.

    like: another loss whose options this one accepts too.
    """

    def register(function: LossFunction) -> LossFunction:
        name = function.__name__.rstrip("_")
        options = (*options_of(function), *(options_of(like) if like else ()))
        LOSSES.add(name, Loss(name, function, options=options, **facts))
        return function

    return register


def incompatibility(activation: OutputActivation, candidate: Loss, mode: HeadMode) -> str | None:
    """The reason why the pair cannot be trained under this head mode; None if it can."""
    if candidate.needs not in activation.offers:
        return f"{candidate.name} needs probabilities, but {activation.name} gives plain values"
    return candidate.incompatible(activation, mode) if candidate.incompatible else None


def fits(activation: OutputActivation, candidate: Loss, mode: HeadMode) -> bool:
    """Whether the pair can be trained under this head mode."""
    return incompatibility(activation, candidate, mode) is None


def term_of(given: Any) -> tuple[float, dict[str, Any]]:
    """(weight, options) of one term, given as a number or as a mapping."""
    if isinstance(given, Mapping):
        options = dict(given)
        return float(options.pop("weight", 1.0)), options
    return float(given), {}


from segexp.losses import pixelwise, region  # noqa: E402, F401 (they register the losses)
