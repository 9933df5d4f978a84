"""Registry of losses. A loss is a function (prediction, target) -> scalar tensor; adding one is adding one decorated
function to a module of this package.

A loss takes a `Prediction`, so it never applies an activation, and declares what it needs: ``log_odds`` (everything
that takes a logarithm or a probability) or plain ``values``. The target is an integer map (N, H, W) with
`IGNORE` where a pixel does not count, or soft labels (N, K, H, W). Losses compute in float32 or better and stay finite
with finite gradients for logits up to 1e6.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from segexp.activations.output import HeadMode, Offer, OutputActivation, outside
from segexp.registry import Option, Registry, options_of

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from segexp.activations.head import Prediction

IGNORE = 255
"""Mask value of ignored pixels. It must fit uint8, which leaves at most 255 classes."""

MAX_CLASSES = 255

LossFunction = Callable[..., "Tensor"]

Maps = Mapping[str, "Tensor"]
"""What losses need computed from the masks, by the loss's name: (N, F, H, W) float32, F foreground classes."""

MapFunction = Callable[..., "np.ndarray"]
"""(planes_FHW, valid_HW, **options of the loss) -> float32 (F, H, W); booleans, ignored pixels are in no plane."""

Incompatibility = Callable[[OutputActivation, HeadMode], str | None]
"""The reason why a loss does not exist for an activation under a head mode; None if it does."""


@dataclass(frozen=True)
class Loss:
    """One entry. proper: whether the true probabilities minimise the expected loss (a proper scoring rule).

    maps: what it needs computed from each mask, on the CPU. Its function takes them as ``maps``, and computes them
    where they are not given. incompatible: further combinations that cannot be trained. aliases: other names, each with
    the head modes in which it is valid.
    """

    name: str
    function: LossFunction
    formula: str
    side_effects: str
    source: str
    needs: Offer = "log_odds"
    proper: bool = False
    maps: MapFunction | None = None
    incompatible: Incompatibility | None = None
    aliases: Mapping[str, tuple[HeadMode, ...]] = field(default_factory=dict)
    options: tuple[Option, ...] = ()


LOSSES: Registry[Loss] = Registry("loss")


def loss(*, like: LossFunction | None = None, **facts: Any) -> Callable[[LossFunction], LossFunction]:
    """Decorator: register the function under its own name (without a trailing "_"). facts: fields of `Loss`.

    like: another loss whose options this one accepts too.
    """

    def entry(function: LossFunction) -> Loss:
        options = (*options_of(function), *(options_of(like) if like else ()))
        return Loss(function.__name__.rstrip("_"), function, options=options, **facts)

    return LOSSES.decorator(entry)


def incompatibility(activation: OutputActivation, candidate: Loss, mode: HeadMode) -> str | None:
    """The reason why the pair cannot be trained under this head mode; None if it can."""
    if reason := outside(activation, mode):
        return reason
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


def map_functions(name: str, options: Mapping[str, Any]) -> dict[str, MapFunction]:
    """What a loss, or each term of ``sum``, needs computed from the masks; {} for most losses."""
    terms = {term: term_of(given)[1] for term, given in options["terms"].items()} if name == "sum" else {name: options}
    functions = {term: (LOSSES[term].maps, given) for term, given in terms.items()}
    return {term: functools.partial(maps, **given) for term, (maps, given) in functions.items() if maps}


def maps_of(
    functions: Mapping[str, MapFunction], masks_NHW: "Tensor", classes: range, overlapping: bool = False
) -> dict[str, "Tensor"]:
    """The maps of these masks, on the CPU. classes: the foreground classes."""
    import numpy as np
    import torch

    masks_NHW = masks_NHW.cpu()
    planes_NFHW, valid_NHW = class_masks(masks_NHW, classes, overlapping).numpy(), valid_pixels(masks_NHW).numpy()
    pairs = list(zip(planes_NFHW, valid_NHW, strict=True))
    # Copies, which a function may change.
    made = {name: [maps(planes.copy(), valid.copy()) for planes, valid in pairs] for name, maps in functions.items()}
    return {name: torch.from_numpy(np.stack(several)) for name, several in made.items()}


# What losses share


def valid_pixels(target_NHW: "Tensor", ignore_index: int | None = IGNORE) -> "Tensor":
    """Boolean (N, H, W): True where the pixel counts."""
    import torch

    return torch.ones_like(target_NHW, dtype=torch.bool) if ignore_index is None else target_NHW != ignore_index


def class_masks(target_NHW: "Tensor", classes: range, overlapping: bool = False) -> "Tensor":
    """Boolean (N, len(classes), H, W): one plane per class index in ``classes``; ignored pixels are False.

    overlapping: a pixel of the target is a set of classes from 1 on, with bit c - 1 for class c.
    """
    import torch

    index_K = torch.arange(classes.start, classes.stop, device=target_NHW.device).view(1, -1, 1, 1)
    if overlapping:
        sets = target_NHW.long().unsqueeze(1)
        return ((sets >> (index_K - 1)) & 1).bool() & (sets != IGNORE)
    return target_NHW.unsqueeze(1) == index_K


def log_odds_of(prediction: "Prediction") -> "Tensor":
    """(N, K, H, W). Raises TypeError for an activation without probabilities."""
    if prediction.log_odds_NKHW is None:
        raise TypeError("this loss needs log-odds, and the activation gives plain values")
    return prediction.log_odds_NKHW


def reference_planes(prediction: "Prediction", target: "Tensor") -> tuple["Tensor", "Tensor"]:
    """y (N, K, H, W) in the prediction's precision, 0 where ignored, and the valid pixels (N, H, W), boolean.

    Raises ValueError if the target does not have the logits' N, H and W (soft labels: also K).
    """
    y, valid = label_planes(prediction, target)
    return y.to(prediction.logits_NKHW.dtype), valid


def label_planes(prediction: "Prediction", target: "Tensor") -> tuple["Tensor", "Tensor"]:
    """`reference_planes` with hard labels, from 0 to 255, as uint8: a quarter of the memory, kept for the backward
    pass."""
    import torch

    like = prediction.logits_NKHW
    if not target.is_floating_point() and target.shape != (like.shape[0], *like.shape[2:]):
        raise ValueError(f"target {tuple(target.shape)} does not match the logits {tuple(like.shape)}: (N, H, W)")
    if not target.is_floating_point():
        classes = range(like.shape[1]) if prediction.mode == "softmax" else prediction.classes
        if prediction.overlapping:
            return class_masks(target, classes, True).byte(), valid_pixels(target)
        # Comparisons in place give bytes: on a CPU several times as fast as booleans.
        labels = target.byte().unsqueeze(1)
        index_K = torch.arange(classes.start, classes.stop, dtype=torch.uint8, device=target.device).view(1, -1, 1, 1)
        planes = labels.expand(-1, len(classes), -1, -1).clone().eq_(index_K)
        return planes, retyped(labels[:, 0].clone().ne_(IGNORE), torch.bool)
    soft = target.unsqueeze(1) if target.dim() == 3 else target
    if soft.shape != like.shape:
        raise ValueError(f"soft labels {tuple(target.shape)} do not match the logits {tuple(like.shape)}")
    valid = ~soft.isnan().any(dim=1)
    return soft.to(like.dtype).where(valid.unsqueeze(1), 0.0), valid


def retyped(zeros_and_ones: "Tensor", dtype: Any) -> "Tensor":
    """Bytes as booleans or booleans as bytes: the same memory, but for a compiler, which cannot do that and fuses."""
    import torch

    return zeros_and_ones.to(dtype) if torch.compiler.is_compiling() else zeros_and_ones.view(dtype)


def weights_of_classes(class_weights: Sequence[float] | None, like: "Prediction") -> "Tensor":
    """(C,) weights, background first; 1 by default. Raises ValueError if there is not one weight for each class."""
    import torch

    num_classes = like.classes.stop
    given = [1.0] * num_classes if class_weights is None else [float(w) for w in class_weights]
    if len(given) != num_classes:
        raise ValueError(f"class_weights holds {len(given)} numbers for {num_classes} classes, background included")
    # One by one, because a list would be copied from the host, which then waits.
    return torch.cat([like.logits_NKHW.new_full((1,), weight) for weight in given])


def mean_over(values_NKHW: "Tensor", valid_NHW: "Tensor") -> "Tensor":
    """Mean over valid pixels and channels; 0, with zero gradient, if there are none."""
    number = (valid_NHW.sum() * values_NKHW.shape[1]).clamp_min(1)
    # Each value is scaled before the sum, because the sum of a few losses of 1e38 would overflow.
    return (values_NKHW / number * valid_NHW.byte().unsqueeze(1)).sum()


from segexp.losses import pixelwise, region, shape, similarity  # noqa: E402, F401 (they register the losses)
