"""From a prepared run to what the training loop takes: network, device, scorer, loss, batches."""

import functools
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from segexp.activations.head import Head, PriorBias, make_head, prior_bias
from segexp.activations.output import OUTPUT_ACTIVATIONS, logit_channels, slope_of
from segexp.config import Config, mode_of, params
from segexp.errors import UsageError
from segexp.losses import LOSSES
from segexp.models.architectures import ARCHITECTURES, check_size
from segexp.models.build import Built, build_with_hidden, final_conv
from segexp.running.prepare import RunSpec

if TYPE_CHECKING:
    import numpy as np
    import torch

    from segexp.data.batches import InputGeometry, Normalisation, Read, ScoringBatch
    from segexp.evaluation.predict import Scored
    from segexp.models.trace import Application
    from segexp.training.loop import Task


@dataclass(frozen=True)
class Scorer:
    """fit, read, normalise: how the images of ``prepared`` come to the network, which is on ``device``."""

    prepared: RunSpec
    network: "torch.nn.Module"
    head: Head
    device: "torch.device"
    fit: "InputGeometry"
    read: "Read"
    normalise: "Normalisation"

    def batches(self, members: Sequence[int]) -> "Iterable[ScoringBatch]":
        """These images and masks as they are scored, in batches of equal size."""
        from segexp.data.batches import scoring_batches

        sizes, batch_size = self.prepared.facts.sizes_N2, self.prepared.config.trainer.batch_size
        return scoring_batches(self.read, self.fit, self.normalise, members, sizes, batch_size)

    def predictions(self, images: str | Sequence[int], flips: Sequence[tuple[int, ...]] = ((),)) -> "Iterator[Scored]":
        """Predictions of a split (by name) or of single images (by index), at scoring resolution, with the weights as
        they are. flips: see `segexp.evaluation.predict.FLIPS`."""
        from segexp.evaluation.predict import make_forward, predict

        config = self.prepared.config
        members = self.prepared.split[images] if isinstance(images, str) else images
        self.network.eval()
        forward = make_forward(self.network, self.device, config.trainer.precision)
        return predict(forward, self.head, self.batches(members), self.device, config.metrics.resolution, flips)


def initial_network(prepared: RunSpec) -> tuple[Built, "torch.device", "InputGeometry"]:
    """The initial network on its device, audited, and how images are fitted to it. Raises UsageError."""
    import torch

    config = prepared.config
    if config.trainer.threads:
        torch.set_num_threads(config.trainer.threads)
    device = device_of(config.trainer.device)
    channels = prepared.image_set.channels
    fit = fit_of(prepared)
    built = built_of(config, channels, fit.size)
    set_bias(built.network, initial_bias(config, class_pixels(prepared)))
    built.network.to(device)
    return built, device, fit


def built_of(config: Config, channels: int, size: int) -> Built:
    """The network of a configuration before the bias of its prior, on the CPU. Raises UsageError."""
    return build_with_hidden(
        (config.model.name, params(config.model)),
        config.backbone,
        (config.hidden_activation.name, params(config.hidden_activation)),
        config.init,
        in_channels=channels,
        out_channels=logit_channels(config.dataset.num_classes, mode_of(config)),
        size=size,
        seed=config.seed,
    )


def class_pixels(prepared: RunSpec) -> "np.ndarray":
    """(C,) labelled pixels of every class in the train split."""
    pixels_C: np.ndarray = prepared.facts.class_pixels_NC[prepared.split["train"]].sum(axis=0)
    return pixels_C


def set_bias(network: "torch.nn.Module", start: PriorBias | None) -> None:
    """Write the bias of a prior into the last layer."""
    import torch

    bias = final_conv(network).bias
    if start is not None and bias is not None:
        with torch.no_grad():
            bias.copy_(torch.tensor(start.bias_K))


def initial_bias(config: Config, class_pixels_C: "np.ndarray | None") -> PriorBias | None:
    """The bias of the last layer that gives the prior of ``activation.prior_bias``; None where it stays as drawn.

    auto: each class's share of the labelled pixels given. Raises UsageError where a class has none.
    """
    options, mode = params(config.activation), mode_of(config)
    asked = options["prior_bias"]
    if asked == "none":
        return None
    if asked == "auto":
        assert class_pixels_C is not None, "the prior of the data needs the data"
        share_C = [float(n) / float(class_pixels_C.sum()) for n in class_pixels_C]
        if min(share_C) == 0:
            raise UsageError(
                f"activation.prior_bias=auto: class {share_C.index(0.0)} has no pixel in the train split, so no prior; "
                "give a number, or none"
            )
    else:
        foreground = [float(asked)] * (config.dataset.num_classes - 1)
        share_C = [1 - sum(foreground), *foreground]
    prior_K = share_C if mode == "softmax" else share_C[1:]
    return prior_bias(OUTPUT_ACTIVATIONS[config.activation.name], mode, prior_K, options)


def head_record(prepared: RunSpec) -> dict[str, Any]:
    """What run.json says of the head: slope s of F(s x), and the prior and bias that the last layer starts with."""
    activation = prepared.config.activation
    slope = slope_of(OUTPUT_ACTIVATIONS[activation.name], params(activation)["slope"])
    start = initial_bias(prepared.config, class_pixels(prepared))
    bias = None if start is None else {"prior": start.prior_K, "bias": start.bias_K, "capped": start.capped}
    return {"slope": slope, "prior_bias": bias}


def device_of(name: str) -> "torch.device":
    """The device of ``trainer.device``; auto takes a GPU where there is one. Raises UsageError."""
    import torch

    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if available[kind])
    if not available[name]:
        raise UsageError(f"trainer.device={name} is not available here; `segexp doctor` says why, or use auto")
    return torch.device(name, 0) if name == "cuda" else torch.device(name)


def fit_of(prepared: RunSpec) -> "InputGeometry":
    """Size and divisor of the network's images, held against the architecture."""
    from segexp.data.batches import InputGeometry

    config = prepared.config
    dataset, model = config.dataset, (config.model.name, params(config.model), config.backbone.name)
    divisor = ARCHITECTURES[config.model.name].divisor.of(params(config.model))

    def padded(side: int) -> int:
        return -(-side // divisor) * divisor

    size, whose = dataset.image_size, ""
    if size is None:
        if dataset.fit == "resize":
            raise UsageError("dataset.fit=resize needs a size: give dataset.image_size=N, or dataset.fit=pad")
        size = padded(int(prepared.facts.sizes_N2.max()))
        whose = f"dataset.fit=pad: the largest image, padded to {size} px,"
    if dataset.fit == "pad":
        # Scoring pads each image on its own, so that the smallest must be large enough.
        smallest = padded(int(prepared.facts.sizes_N2.min()))
        check_size(*model, smallest, f"dataset.fit=pad: the smallest image, padded to {smallest} px,")
    check_size(*model, size, whose)
    return InputGeometry(dataset.fit, size, divisor)


def make_scorer(
    prepared: RunSpec,
    network: "torch.nn.Module",
    device: "torch.device",
    fit: "InputGeometry",
    read: "Read | None" = None,
) -> Scorer:
    """The scorer of a run that trains: its input is normalised by its training images. read: where there is one."""
    from segexp.data.batches import make_reader, training_statistics

    config = prepared.config
    read = read or make_reader(prepared.image_set, fit)
    head = make_head(OUTPUT_ACTIVATIONS[config.activation.name], mode_of(config), params(config.activation))
    return Scorer(prepared, network, head, device, fit, read, training_statistics(read, prepared.split["train"]))


def make_task(scorer: Scorer, sites: "Sequence[Application]") -> "Task":
    """Loss and batches of a run, as the training loop takes them. sites: what `build_with_hidden` found."""
    from segexp.data.augment import make_augment
    from segexp.data.batches import training_batches
    from segexp.evaluation.predict import EpochScores, epoch_scores
    from segexp.training.diagnostics import sites_of
    from segexp.training.loop import Batch, Task

    prepared = scorer.prepared
    config, image_set = prepared.config, prepared.image_set
    loss_of = functools.partial(LOSSES[config.loss.name].function, **params(config.loss))
    augment = make_augment(config.augment, config.seed)

    def batches(epoch: int, batch_indices: Sequence[Sequence[int]]) -> Iterable[Batch]:
        return training_batches(
            image_set,
            scorer.read,
            scorer.fit,
            scorer.normalise,
            augment,
            batch_indices,
            seed=config.seed,
            epoch=epoch,
            workers=config.trainer.workers,
            pin_memory=scorer.device.type == "cuda",
        )

    def validate() -> EpochScores:
        policy: Any = config.metrics.empty_policy
        return epoch_scores(scorer.predictions("val"), loss_of, config.dataset.num_classes, image_set.group_ids, policy)

    return Task(
        network=scorer.network,
        head=scorer.head,
        loss_of=loss_of,
        members=prepared.split["train"],
        batches=batches,
        validate=validate,
        device=scorer.device,
        sites=sites_of(sites),
        run_id=prepared.run_id,
    )


def order_sha(prepared: RunSpec) -> str:
    """SHA-256 over the order of the first epoch's images: equal where two runs see the same batches."""
    from segexp.data.batches import epoch_order

    order = epoch_order(prepared.split["train"], prepared.config.seed, 1)
    names = "\n".join(prepared.image_set.image_ids[i] for i in order)
    return hashlib.sha256(names.encode()).hexdigest()
