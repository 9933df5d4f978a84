"""Predictions of images, confusion counts, and the few scores of the validation split after every epoch."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from segexp.activations.head import Head, Prediction, mean_prediction
from segexp.data import seeded
from segexp.data.batches import ScoringBatch
from segexp.evaluation import (
    EmptyPolicy,
    case_means,
    case_sums,
    dice_and_iou,
    group_means,
    mean_or_nan,
    micro_scores,
    primary_score,
)
from segexp.evaluation.measures import nll_and_brier
from segexp.losses import IGNORE, Maps, class_masks, valid_pixels
from segexp.records.process import heed_interrupts

Forward = Callable[[torch.Tensor], torch.Tensor]  # images_NCHW -> logits_NKHW on the device, under the run's precision

LossOf = Callable[..., torch.Tensor]  # (prediction, target, and its maps where it needs some) -> the loss

FLIPS: tuple[tuple[int, ...], ...] = ((), (3,), (2,), (2, 3))
"""Test-time augmentation: the image as it is, mirrored left to right, top to bottom, and both."""


@dataclass(frozen=True)
class Scored:
    """Predictions and reference of images of one size, at scoring resolution.

    network: both at network resolution, where the loss is computed. pixel_size: height and width of a scored pixel in
    native pixels. maps: those that the loss needs, at network resolution; () for most losses.
    """

    indices: tuple[int, ...]
    prediction: Prediction
    target_NHW: torch.Tensor
    network: tuple[Prediction, torch.Tensor]
    pixel_size: tuple[float, float] = (1.0, 1.0)
    maps: tuple[Maps, ...] = ()


@dataclass(frozen=True)
class Units:
    """What is scored, beside the pixels: sequences over all images of a set.

    case_ids: the volume of each image, whose slices are scored as one unit; () to score every image. spacings: slice
    thickness, and height and width of a native pixel, of each image; () where unknown.
    """

    image_ids: Sequence[str]
    group_ids: Sequence[str]
    case_ids: Sequence[str] = ()
    spacings: Sequence[tuple[float, ...] | None] = ()

    def unit(self, index: int) -> str:
        """The unit that image i belongs to: its case, or itself."""
        return (self.case_ids[index] if self.case_ids else "") or self.image_ids[index]

    def spacing(self, index: int) -> tuple[float, ...]:
        """The spacing of image i, 1 pixel where it is unknown."""
        return (self.spacings[index] if self.spacings else None) or (1.0, 1.0, 1.0)

    def in_order(self, indices: Sequence[int]) -> list[int]:
        """These images, those of a case one after another, in order of first appearance."""
        first: dict[str, int] = {}
        if not self.case_ids:
            return list(indices)
        for n, index in enumerate(indices):
            first.setdefault(self.unit(index), n)
        return sorted(indices, key=lambda index: first[self.unit(index)])


def make_forward(network: torch.nn.Module, device: torch.device, precision: str) -> Forward:
    """The network as a function, under autocast where ``precision`` is bf16 or fp16."""
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)

    def forward(images_NCHW: torch.Tensor) -> torch.Tensor:
        context = torch.autocast(device.type, dtype=half) if half is not None else nullcontext()
        with context:
            return network(images_NCHW)

    return forward


def predict(
    forward: Forward,
    head: Head,
    batches: Iterable[ScoringBatch],
    device: torch.device,
    resolution: str,
    flips: Sequence[tuple[int, ...]] = ((),),
    draws: bool = False,
) -> Iterator[Scored]:
    """Predictions batch by batch, without gradient; with several ``flips`` their mean probability.

    draws: the network or the head may draw random numbers: the same for the same images, however often and in whatever
    order they are predicted.

    resolution "native": padding is cut off, or the logits are resized (bilinear) to the image's own size, before the
    activation. "network": at the size of the network's input. On MPS, which has no float64, logits move to the CPU.
    """

    def mean(several: Sequence[torch.Tensor]) -> Prediction:
        return head(several[0]) if len(several) == 1 else mean_prediction([head(logits) for logits in several])

    on_gpu = device.type == "cuda"  # on MPS, a copy that does not wait may be read too early
    for batch in batches:
        heed_interrupts()
        stream = seeded(0, "predict", *batch.indices, device=device) if draws else nullcontext()
        with torch.inference_mode(), stream:
            images = batch.images_NCHW.to(device, non_blocking=on_gpu)
            several = [forward(images.flip(axes)).flip(axes).float() for axes in flips]
            if device.type == "mps":
                several = [logits.cpu() for logits in several]
            network_target = batch.masks_NHW.to(several[0].device, non_blocking=on_gpu)
            network_prediction = mean(several)
            height, width = batch.native_masks_NHW.shape[1:]
            if resolution == "network" or tuple(several[0].shape[2:]) == (height, width):
                prediction, target = network_prediction, network_target
            else:
                prediction = mean([at_native_size(logits, (height, width), batch.padded) for logits in several])
                target = batch.native_masks_NHW.to(several[0].device, non_blocking=on_gpu)
        # Outside the block: yielding inside it would leave autograd switched off in the caller.
        resized = tuple(target.shape[1:]) != (height, width) and not batch.padded
        pixel_size = (height / target.shape[1], width / target.shape[2]) if resized else (1.0, 1.0)
        yield Scored(batch.indices, prediction, target, (network_prediction, network_target), pixel_size)


def at_native_size(logits_NKHW: torch.Tensor, size: Sequence[int], padded: bool) -> torch.Tensor:
    """The logits without padding, or resized (bilinear), at the images' own height and width."""
    height, width = size
    if padded or tuple(logits_NKHW.shape[2:]) == (height, width):
        return logits_NKHW[:, :, :height, :width]
    return F.interpolate(logits_NKHW, (height, width), mode="bilinear")


def counted_masks(target_NHW: torch.Tensor, prediction: Prediction) -> tuple[torch.Tensor, torch.Tensor]:
    """Reference masks of the foreground classes (N, F, H, W) and valid pixels (N, H, W), both boolean."""
    masks_NFHW = class_masks(target_NHW, prediction.classes, prediction.overlapping)
    return masks_NFHW, valid_pixels(target_NHW, IGNORE)


def mask_counts(predicted_NFHW: torch.Tensor, truth_NFHW: torch.Tensor, valid_NHW: torch.Tensor) -> torch.Tensor:
    """tp, fp, fn of boolean masks over the valid pixels, one plane per foreground class: int64 (N, F, 3).

    All scores derive from these counts. Does not wait for the device.
    """
    valid = valid_NHW.unsqueeze(1)
    predicted, truth = predicted_NFHW & valid, truth_NFHW & valid
    tp, n_predicted, n_truth = (planes.sum((2, 3)) for planes in (predicted & truth, predicted, truth))
    return torch.stack((tp, n_predicted - tp, n_truth - tp), dim=2)


@dataclass(frozen=True)
class EpochScores:
    """Scores of the validation split after an epoch. frac_nonfinite: share of the logits that are not finite."""

    loss: float
    dice: float
    dice_micro: float
    iou_micro: float
    nll: float
    brier: float
    frac_nonfinite: float


def epoch_scores(scored: Iterable[Scored], loss_of: LossOf, units: Units, policy: EmptyPolicy) -> EpochScores:
    """Scores of one pass over the validation split: of its images, or of its cases (``units.case_ids``)."""
    indices: list[int] = []
    rows: list[tuple[torch.Tensor, ...]] = []
    for batch in scored:
        indices += batch.indices
        truth, valid = counted_masks(batch.target_NHW, batch.prediction)
        counts = mask_counts(batch.prediction.foreground_NFHW(), truth, valid)
        nll, brier = (of_classes.mean(1) for of_classes in nll_and_brier(batch.prediction, truth, valid))
        loss = loss_of(*batch.network, *batch.maps).double().expand(len(batch.indices))
        nonfinite = (~batch.network[0].logits_NKHW.isfinite()).double().mean((1, 2, 3))
        rows.append((counts, valid.sum((1, 2)), nll, brier, loss, nonfinite))
    counts_NF3, valid_N, nll_N, brier_N, loss_N, nonfinite_N = (
        torch.cat(of_batches).cpu().numpy() for of_batches in zip(*rows, strict=True)
    )
    groups = tuple(units.group_ids[i] for i in indices)
    if units.case_ids:
        cases = [units.unit(i) for i in indices]
        counts_NF3 = case_sums(counts_NF3, cases)
        nll_N, brier_N = (case_means(of_images_N, valid_N, cases) for of_images_N in (nll_N, brier_N))
        groups = tuple(dict(zip(cases, groups, strict=True)).values())
    dice_NF, _ = dice_and_iou(counts_NF3)
    dice_micro, iou_micro = micro_scores(counts_NF3)
    return EpochScores(
        loss=float(loss_N.mean()),
        dice=primary_score(dice_NF, counts_NF3[..., 0] + counts_NF3[..., 2], groups, policy),
        dice_micro=dice_micro,
        iou_micro=iou_micro,
        nll=mean_or_nan(group_means(nll_N, groups)),
        brier=mean_or_nan(group_means(brier_N, groups)),
        frac_nonfinite=float(nonfinite_N.mean()),
    )
