"""Sums of losses."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from segexp.activations.head import Prediction
from segexp.catalogue import NOT_NEGATIVE, REQUIRED
from segexp.losses.entry import LOSSES, loss
from segexp.losses.pixelwise import ce
from segexp.losses.region import dice

if TYPE_CHECKING:
    import torch


@loss(
    needs="log_odds",
    formula="dice_weight * dice + ce_weight * ce",
    proper=False,
    side_effects="between those of its two terms",
    source="Isensee et al. 2021 (nnU-Net)",
    like=dice,
)
def dice_ce(
    prediction: Prediction,
    target: "torch.Tensor",
    *,
    dice_weight: Annotated[float, NOT_NEGATIVE] = 1.0,
    ce_weight: Annotated[float, NOT_NEGATIVE] = 1.0,
    **options: Any,
) -> "torch.Tensor":
    """Weighted sum of `dice` (with its options) and `ce`."""
    return dice_weight * dice(prediction, target, **options) + ce_weight * ce(prediction, target)


@loss(
    needs="values",
    formula="sum of weight * loss over loss.terms, as in loss.terms={dice: 1, focal: {weight: 0.5, gamma: 1}}",
    proper=False,
    side_effects="those of its terms",
    source="-",
)
def sum_(prediction: Prediction, target: "torch.Tensor", *, terms: Any = REQUIRED) -> "torch.Tensor":
    """Weighted sum of other losses. terms: name -> weight, or name -> {weight: ..., option: ...}."""
    total = prediction.logits_NKHW.new_zeros(())
    for name, given in terms.items():
        weight, options = term_of(given)
        total = total + weight * LOSSES.find(name).function(prediction, target, **options)
    return total


def term_of(given: Any) -> tuple[float, dict[str, Any]]:
    """(weight, options) of one term, given as a number or as a mapping."""
    if isinstance(given, Mapping):
        options = dict(given)
        return float(options.pop("weight", 1.0)), options
    return float(given), {}
