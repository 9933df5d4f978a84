"""Registry of losses. Adding one is adding one decorated function to `pixelwise`, `region` or `combined`."""

from segexp.losses.entry import LOSSES, Loss, fits, loss, refusal
from segexp.losses.pixelwise import ce, focal, l1, matching, mse, smooth_l1
from segexp.losses.region import (
    dice,
    dice_ce,
    focal_tversky,
    generalized_dice,
    jaccard,
    log_cosh_dice,
    lovasz,
    sum_,
    term_of,
    tversky,
)

__all__ = [
    "LOSSES",
    "Loss",
    "ce",
    "dice",
    "dice_ce",
    "fits",
    "focal",
    "focal_tversky",
    "generalized_dice",
    "jaccard",
    "l1",
    "log_cosh_dice",
    "loss",
    "lovasz",
    "matching",
    "mse",
    "refusal",
    "smooth_l1",
    "sum_",
    "term_of",
    "tversky",
]
