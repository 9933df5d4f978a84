"""Run a network over images and hand out predictions at the resolution at which they are scored."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

from segexp.activations.head import Head, Prediction, mean_prediction
from segexp.data.batches import ScoringBatch
from segexp.targets import IGNORE

if TYPE_CHECKING:
    import torch

Forward = Callable[["torch.Tensor"], "torch.Tensor"]
"""images_NCHW -> logits_NKHW on the device, under the run's precision."""


@dataclass(frozen=True)
class Scored:
    """Predictions and reference of images of one size, at scoring resolution; ``network`` holds both at network
    resolution, where the loss is taken. pixel_size: height and width of a scored pixel in native pixels."""

    indices: tuple[int, ...]
    prediction: Prediction
    target_NHW: "torch.Tensor"
    network: tuple[Prediction, "torch.Tensor"]
    pixel_size: tuple[float, float] = (1.0, 1.0)


def make_forward(network: "torch.nn.Module", device: "torch.device", precision: str) -> Forward:
    """The network as a function, under autocast where ``precision`` is bf16 or fp16."""
    import torch

    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)

    def forward(images_NCHW: "torch.Tensor") -> "torch.Tensor":
        context = torch.autocast(device.type, dtype=half) if half is not None else nullcontext()
        with context:
            return network(images_NCHW)

    return forward


FLIPS: tuple[tuple[int, ...], ...] = ((), (3,), (2,), (2, 3))
"""Test-time augmentation: the image as it is, mirrored left to right, top to bottom, and both."""


def predict(
    forward: Forward,
    head: Head,
    batches: Iterable[ScoringBatch],
    device: "torch.device",
    resolution: str,
    flips: Sequence[tuple[int, ...]] = ((),),
) -> Iterator[Scored]:
    """Predictions batch by batch, without gradient; with several ``flips`` their mean probability.

    resolution "native": padding is cut off, or the logits are resized (bilinear) to the image's own size, before the
    activation. "network": at the size of the network's input. float64 is not known to MPS: there the logits move to
    the CPU first.
    """
    import torch
    import torch.nn.functional as F

    for batch in batches:
        with torch.inference_mode():
            images = batch.images_NCHW.to(device, non_blocking=True)
            several = [forward(images.flip(axes)).flip(axes).float() for axes in flips]
            if device.type == "mps":
                several = [logits.cpu() for logits in several]
            network_target = batch.masks_NHW.to(several[0].device, non_blocking=True)
            network_prediction = _mean(head, several)
            height, width = batch.native_masks_NHW.shape[1:]
            if resolution == "network" or tuple(several[0].shape[2:]) == (height, width):
                prediction, target = network_prediction, network_target
            else:
                if batch.padded:
                    native = [logits[:, :, :height, :width] for logits in several]
                else:
                    native = [F.interpolate(logits, (height, width), mode="bilinear") for logits in several]
                prediction = _mean(head, native)
                target = batch.native_masks_NHW.to(several[0].device, non_blocking=True)
        # Outside the block: a generator that waits inside it would switch autograd off for whoever called it.
        resized = tuple(target.shape[1:]) != (height, width) and not batch.padded
        pixel_size = (height / target.shape[1], width / target.shape[2]) if resized else (1.0, 1.0)
        yield Scored(batch.indices, prediction, target, (network_prediction, network_target), pixel_size)


def _mean(head: Head, several: "Sequence[torch.Tensor]") -> Prediction:
    return head(several[0]) if len(several) == 1 else mean_prediction([head(logits) for logits in several])


def counted_masks(target_NHW: "torch.Tensor", num_classes: int) -> tuple["torch.Tensor", "torch.Tensor"]:
    """Reference masks of the foreground classes (N, F, H, W) and valid pixels (N, H, W), both boolean."""
    from segexp.targets import class_masks, valid_pixels

    return class_masks(target_NHW, range(1, num_classes)), valid_pixels(target_NHW, IGNORE)
