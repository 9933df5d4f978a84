"""First weights of the layers that feed hidden activations without normalisation in between.

Where a normalisation follows, it takes every factor and bias out again: such layers stay as the architecture draws
them, and networks that differ in the activation alone begin with equal weights.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from segexp.catalogue import REQUIRED

if TYPE_CHECKING:
    import torch

    from segexp.models.trace import Application

RELU_GAIN = math.sqrt(2)
"""Kaiming's gain for the rectifier, which the architectures' own initialisations are made for."""


@dataclass
class InitConfig:
    """First weights of hidden layers. gain: of the hidden activation (auto) or as drawn (relu); bias: 0 leaves them."""

    gain: str = REQUIRED
    bias: float = REQUIRED


def initialise(
    network: "torch.nn.Module", sites: Sequence["Application"], init: InitConfig, gain: float | None, frozen: str = ""
) -> dict[str, Any]:
    """Scale weights to ``gain``, and set biases, of the layers that feed the call sites without normalisation.

    gain: of the activation that was put in, None for native ones; weights are drawn for that of the rectifier, and
    multiplied by the quotient of the two, where they feed a replacement. frozen: start of the paths that stay as they
    are (of pretrained weights). Returns what run.json says of it.
    """
    import torch

    factor = gain / RELU_GAIN if init.gain == "auto" and gain is not None else 1.0
    if math.isclose(factor, 1.0, rel_tol=1e-6):  # the gain is integrated, and that of the rectifier is no other
        factor = 1.0
    feeds: dict[str, bool] = {}
    for feed in (f for site in sites for f in site.feeds):
        feeds[feed.layer] = feeds.get(feed.layer, True) and feed.normalised
    bare = [
        layer for layer, normalised in feeds.items() if not normalised and not (frozen and layer.startswith(frozen))
    ]
    replaced = {f.layer for site in sites if site.kind == "replaced" for f in site.feeds}
    scaled = biased = 0
    with torch.no_grad():
        for name in bare:
            layer = network.get_submodule(name)
            weight, bias = getattr(layer, "weight", None), getattr(layer, "bias", None)
            if name in replaced and factor != 1 and isinstance(weight, torch.nn.Parameter):
                weight.mul_(factor)
                scaled += 1
            if init.bias != 0 and isinstance(bias, torch.nn.Parameter):
                bias.fill_(init.bias)
                biased += 1
    return {
        "gain": init.gain,
        "gain_value": RELU_GAIN if init.gain == "relu" else gain,
        "layers_scaled": scaled,
        "bias": init.bias,
        "layers_biased": biased,
        "layers_with_normalisation": sum(feeds.values()),
        "layers_without_normalisation": len(feeds) - sum(feeds.values()),
    }
