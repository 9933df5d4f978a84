"""From a `RunSpec` to what the training loop takes: network, device, scorer, loss, batches; and finished networks."""

import dataclasses
import functools
import hashlib
import warnings
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
import torch.nn.functional as F

from segexp.activations.head import Head, Prediction, PriorBias, learn_options, learned_options, make_head, prior_bias
from segexp.activations.output import OUTPUT_ACTIVATIONS, logit_channels, slope_of
from segexp.config import Config, mode_of, params
from segexp.data.augment import make_augment
from segexp.data.batches import (
    InputGeometry,
    Normalisation,
    Read,
    ScoringBatch,
    batches_at_once,
    batches_of,
    epoch_order,
    make_reader,
    resident,
    same_masks,
    sample_of,
    scoring_batches,
    scoring_maps,
    training_batches,
    training_statistics,
)
from segexp.data.image_set import ImageSet, Pair
from segexp.data.normalise import AS_STORED, Rule, rule_of
from segexp.errors import UsageError
from segexp.evaluation.predict import (
    EpochScores,
    LossOf,
    Scored,
    Units,
    at_native_size,
    epoch_scores,
    make_forward,
    predict,
)
from segexp.evaluation.score import Conventions
from segexp.losses import LOSSES, Maps, map_functions, maps_of
from segexp.models.architectures import ARCHITECTURES, BackboneConfig, check_size, common_size
from segexp.models.build import MEMORY_FORMATS, Built, build_with_hidden, final_layer
from segexp.models.trace import Application
from segexp.records import check_network
from segexp.records.process import keep_freed_memory
from segexp.records.scores import OWN_SCORES
from segexp.running import RunSpec
from segexp.training.checkpoint import load_selected
from segexp.training.diagnostics import sites_of
from segexp.training.loop import Task

KEPT_BYTES = 2**28
"""Of the images and predictions of a split that a run keeps on its device, because it needs them more than once."""


@dataclass(frozen=True)
class Scorer:
    """The network of ``spec`` on ``device``, and how its images are read, fitted (geometry) and normalised.

    kept: batches by the images that were asked for.
    """

    spec: RunSpec
    network: torch.nn.Module
    head: Head
    device: torch.device
    geometry: InputGeometry
    read: Read
    normalise: Normalisation
    kept: dict[tuple[int, ...], list[ScoringBatch]] = field(default_factory=dict)

    def keeps(self, part: str) -> bool:
        """Whether `KEPT_BYTES` hold the images and the predictions of a split."""
        sizes_N2, channels = self.spec.facts.sizes_N2[self.spec.split[part]], len(self.normalise.mean_C)
        pixels = int(sizes_N2.prod(axis=1).clip(min=self.geometry.size**2).sum())
        config = self.spec.config
        # Logits and log-odds, those of the best epoch and of the present one, also at another size.
        resized = self.geometry.how == "resize" and config.metrics.resolution == "native"
        of_classes = 16 * config.dataset.num_classes * (1 + resized)
        return pixels * (4 * channels + of_classes + 4) < KEPT_BYTES

    def batches(self, indices: Sequence[int], keep: bool = False) -> Iterable[ScoringBatch]:
        """These images and masks in batches of equal size, not augmented. keep: on the device, for the next call."""
        if tuple(indices) in self.kept:
            return self.kept[tuple(indices)]
        sizes, batch_size = self.spec.facts.sizes_N2, self.spec.config.trainer.batch_size
        batches = scoring_batches(self.read, self.geometry, self.normalise, indices, sizes, batch_size)
        if not keep:
            return batches
        kept = self.kept.setdefault(tuple(indices), [])
        for batch in batches:
            there: Any = {k: v.to(self.device) for k, v in vars(batch).items() if isinstance(v, torch.Tensor)}
            kept.append(dataclasses.replace(batch, **there))
        return kept

    def predictions(self, images: str | Sequence[int], flips: Sequence[tuple[int, ...]] = ((),)) -> Iterator[Scored]:
        """Predictions at scoring resolution, with the present weights, of a split (by name) or of images (by index).

        flips: see `segexp.evaluation.predict.FLIPS`.
        """
        config = self.spec.config
        indices = self.spec.split[images] if isinstance(images, str) else images
        indices = units_of(config, self.spec.image_set).in_order(indices)
        self.network.eval()
        forward = make_forward(self.network, self.device, config.trainer.precision)
        batches = self.batches(indices, keep=images == "val" and self.keeps("val"))
        draws = bool(self.spec.plugins)
        return predict(forward, self.head, batches, self.device, config.metrics.resolution, flips, draws)


class InitialNetwork(NamedTuple):
    """The audited network of a run before its first step, its device, and how images are fitted to it."""

    built: Built
    device: torch.device
    geometry: InputGeometry


@contextmanager
def threads_kept() -> Iterator[None]:
    """After the block torch takes as many threads as before it, whatever ``trainer.threads`` a run in it has."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)


def initial_network(spec: RunSpec) -> InitialNetwork:
    """The initial network of a run, on its device; sets ``trainer.threads``, see `threads_kept`. Raises UsageError."""
    config = spec.config
    if config.trainer.threads:
        torch.set_num_threads(config.trainer.threads)
    keep_freed_memory()
    device = device_of(config.trainer.device)
    geometry = geometry_of(spec)
    built = built_of(config, spec.image_set.channels, geometry.size)
    set_bias(built.network, initial_bias(config, spec))
    built.network.to(device).to(memory_format=MEMORY_FORMATS[config.trainer.format])
    return InitialNetwork(built, device, geometry)


def built_of(config: Config, channels: int, size: int) -> Built:
    """The network of a configuration on the CPU, without the bias of ``activation.prior_bias``. Raises UsageError."""
    built = build_with_hidden(
        (config.model.name, params(config.model)),
        config.backbone,
        (config.hidden_activation.name, params(config.hidden_activation)),
        config.init,
        in_channels=channels,
        out_channels=logit_channels(config.dataset.num_classes, mode_of(config), config.dataset.first_class),
        size=size,
        seed=config.seed,
    )
    try:
        learn_options(built.network, OUTPUT_ACTIVATIONS[config.activation.name], params(config.activation))
    except ValueError as error:
        raise UsageError(str(error)) from error
    return built


def head_of(config: Config, network: torch.nn.Module) -> Head:
    """The head (output activation) of a configuration. network: holds the options that are learned."""
    activation, data = config.activation, config.dataset
    entry, learned = OUTPUT_ACTIVATIONS[activation.name], learned_options(network)
    return make_head(entry, mode_of(config), params(activation), data.first_class, data.overlapping, learned)


def set_bias(network: torch.nn.Module, start: PriorBias | None) -> None:
    """Write the bias of a prior into the last layer. Raises UsageError where none has a bias for each logit."""
    if start is None:
        return
    bias: Any = getattr(final_layer(network), "bias", None)
    if bias is None:
        raise UsageError(
            "activation.prior_bias: no layer of this network has a bias that adds to the logits, one number for each "
            "channel: end the network with such a layer, or set activation.prior_bias=none"
        )
    with torch.no_grad():
        bias.copy_(torch.tensor(start.bias_K))


def initial_bias(config: Config, spec: RunSpec | None) -> PriorBias | None:
    """The bias of the last layer for ``activation.prior_bias``; None for "none": the bias keeps its random value.

    auto, which needs ``spec``: the prior is each class's share of the labelled pixels in the train split. Raises
    UsageError where a class has none.
    """
    options, mode = params(config.activation), mode_of(config)
    asked = options["prior_bias"]
    if asked == "none":
        return None
    if asked == "auto":
        assert spec is not None, "activation.prior_bias=auto needs the data"
        if config.dataset.overlapping:
            raise UsageError("activation.prior_bias=auto: classes that overlap have no shares: give a number, or none")
        class_pixels_C = spec.facts.class_pixels_NC[spec.split["train"]].sum(axis=0)
        share_C = [float(n) / float(class_pixels_C.sum()) for n in class_pixels_C]
        if min(share_C) == 0:
            raise UsageError(
                f"activation.prior_bias=auto: class {share_C.index(0.0)} has no pixel in the train split, so its prior "
                "is 0; give a number, or none"
            )
    else:
        foreground = [float(asked)] * (config.dataset.num_classes - 1)
        share_C = [1 - sum(foreground), *foreground]
    prior_K = share_C if mode == "softmax" else share_C[config.dataset.first_class :]
    return prior_bias(OUTPUT_ACTIVATIONS[config.activation.name], mode, prior_K, options)


def head_record(spec: RunSpec) -> dict[str, Any]:
    """The ``head`` of run.json: slope s of F(s x), and the prior and bias that the last layer starts with. A run that
    is done adds ``learned``, its learned options."""
    activation = spec.config.activation
    slope = slope_of(OUTPUT_ACTIVATIONS[activation.name], params(activation))
    start = initial_bias(spec.config, spec)
    bias = None if start is None else {"prior": start.prior_K, "bias": start.bias_K, "capped": start.capped}
    return {"slope": slope, "prior_bias": bias}


def device_of(name: str) -> torch.device:
    """The device of ``trainer.device``; auto takes a GPU where there is one. Raises UsageError."""
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if available[kind])
    if not available[name]:
        raise UsageError(f"trainer.device={name} is not available here: use auto, or see `segexp doctor`")
    return torch.device(name, 0) if name == "cuda" else torch.device(name)


def geometry_of(spec: RunSpec) -> InputGeometry:
    """Size and divisor of the network's images, checked against the architecture. Raises UsageError."""
    config = spec.config
    dataset, model = config.dataset, (config.model.name, params(config.model), config.backbone.name)
    divisor = ARCHITECTURES[config.model.name].divisor.of(params(config.model))
    sizes_N2 = spec.facts.sizes_N2
    smallest, largest = (-(-int(side) // divisor) * divisor for side in (sizes_N2.min(), sizes_N2.max()))
    size, whose = dataset.image_size, ""
    if size is None:
        if dataset.fit == "resize":
            raise UsageError("dataset.fit=resize needs a size: set dataset.image_size=N, or use dataset.fit=pad")
        size, whose = largest, f"dataset.fit=pad: the largest image, padded to {largest} px,"
    if dataset.fit == "pad":
        # Scoring pads each image to its own size, so the smallest must be large enough too.
        check_size(*model, smallest, f"dataset.fit=pad: the smallest image, padded to {smallest} px,")
    check_size(*model, size, whose)
    return InputGeometry(dataset.fit, size, divisor, rule_of(dataset.normalise))


def make_scorer(spec: RunSpec, initial: InitialNetwork, read: Read | None = None) -> Scorer:
    """The scorer of a run that trains: its training images set the normalisation. read: reuse a reader."""
    read = read or make_reader(spec.image_set, initial.geometry)
    if initial.geometry.rule.name == "image":  # has its own statistics
        normalise = Normalisation((0.0,) * spec.image_set.channels, (1.0,) * spec.image_set.channels)
    else:
        normalise = training_statistics(read, spec.split["train"])
    network, head = initial.built.network, head_of(spec.config, initial.built.network)
    return Scorer(spec, network, head, initial.device, initial.geometry, read, normalise)


def conventions_of(config: Config, threshold: float | None = None) -> Conventions:
    """The scoring conventions of a configuration."""
    policy: Any = config.metrics.empty_policy
    nsd: Any = config.metrics.nsd
    return Conventions(
        classes=range(config.dataset.first_class, config.dataset.num_classes),
        mode=mode_of(config),
        empty_policy=policy,
        boundary_band=config.metrics.boundary_band,
        surface_tolerance=config.dataset.surface_tolerance,
        threshold=threshold,
        nsd=nsd,
        own=tuple(OWN_SCORES[name] for name in config.metrics.scores or ()),
    )


def units_of(config: Config, image_set: ImageSet) -> Units:
    """What is scored, an image or a case, and its spacing: dataset.spacing replaces what files say."""
    given = config.dataset.spacing
    spacings: Sequence[tuple[float, ...] | None] = image_set.spacings
    cases = image_set.case_ids if config.metrics.unit == "case" else ()
    if given is not None:
        in_files = spacings or [None] * len(image_set.image_ids)
        spacings = tuple((s[0] if s else 1.0, *given)[-3:] for s in in_files)
    return Units(image_set.image_ids, image_set.group_ids, cases, spacings)


def make_task(scorer: Scorer, sites: Sequence[Application]) -> Task:
    """Loss and batches of a run for the training loop. sites: those that `build_with_hidden` found."""
    spec = scorer.spec
    config, image_set = spec.config, spec.image_set
    loss_of: LossOf = functools.partial(LOSSES[config.loss.name].function, **params(config.loss))
    functions = map_functions(config.loss.name, params(config.loss))
    if spec.plugins:
        loss_of = functools.partial(_on_copies, loss_of)
    foreground = range(config.dataset.first_class, config.dataset.num_classes)
    of_masks = functools.partial(maps_of, functions, classes=foreground, overlapping=config.dataset.overlapping)
    kept = scoring_maps(scorer.read, of_masks)
    augment = make_augment(config.augment, config.seed)
    # Maps are computed on the CPU, so masks that need some are augmented there. MPS lacks some types.
    on_gpu = scorer.device.type == "cuda" and not functions
    device = scorer.device if on_gpu else torch.device("cpu")
    read, resident_bytes = resident(scorer.read, spec.split["train"], device)
    images = (image_set, read, scorer.geometry, scorer.normalise, augment)
    options: Any = {"device": device, "ahead": scorer.device.type == "cuda"}
    if on_gpu and resident_bytes:  # else reading is what takes time, and goes on beside the steps batch by batch
        options["at_once"] = batches_at_once(config.trainer.batch_size, scorer.geometry.size)
    options["workers"] = 0 if on_gpu and resident_bytes else config.trainer.workers
    options["pin_memory"] = scorer.device.type == "cuda"
    if functions:
        options["maps_of"] = of_masks
    if functions and same_masks(config.augment, scorer.geometry):
        options["kept"] = {}
    batches = functools.partial(training_batches, *images, seed=config.seed, **options)

    def validate() -> tuple[EpochScores, list[Scored]]:
        policy: Any = config.metrics.empty_policy
        scored = scorer.predictions("val")
        if functions:
            scored = (dataclasses.replace(one, maps=(kept(one.indices, one.network[1]),)) for one in scored)
        predictions = list(scored) if scorer.keeps("val") else []
        return epoch_scores(predictions or scored, loss_of, units_of(config, image_set), policy), predictions

    return Task(
        network=scorer.network,
        head=scorer.head,
        loss_of=loss_of,
        train_indices=spec.split["train"],
        batches=batches,
        validate=validate,
        device=scorer.device,
        sites=sites_of(sites),
        run_id=spec.run_id,
        resident_bytes=resident_bytes,
        steps=config.trainer.epochs * len(batches_of(spec.split["train"], config.trainer.batch_size)),
        capturable=not spec.plugins,
    )


def _on_copies(loss_of: LossOf, prediction: Prediction, target_NHW: torch.Tensor, *maps: Maps) -> torch.Tensor:
    """A loss that may be the user's own, which must not change the masks and maps that are kept for validation."""
    copies = [{name: plane.clone() for name, plane in of_masks.items()} for of_masks in maps]
    return loss_of(prediction, target_NHW.clone(), *copies)


def order_sha(spec: RunSpec) -> str:
    """SHA-256 of the order of the first epoch's images: equal where two runs see the same batches."""
    order = epoch_order(spec.split["train"], spec.config.seed, 1)
    names = "\n".join(spec.image_set.image_ids[i] for i in order)
    return hashlib.sha256(names.encode()).hexdigest()


@dataclass(frozen=True)
class Trained:
    """The selected network of a finished run on its device, in eval mode, its head, and its input normalisation.

    rule: of ``dataset.normalise``. stored: it takes stored values, not shares of the full range of 8 or 16 bits.
    """

    network: torch.nn.Module
    head: Head
    normalise: Normalisation
    device: torch.device
    channels: int
    rule: Rule = AS_STORED
    stored: bool = False


def trained(run_dir: Path, config: Config, record: dict[str, Any], device_name: str) -> Trained:
    """Rebuild the network of a finished run on a device; ``config`` is the one it recorded.

    Raises UsageError when the run is not done, or its checkpoint is missing, damaged or of another run or epoch.
    """
    if record.get("status") != "done":
        raise UsageError(f"{run_dir} is {record.get('status')}: only a run that is done has a selected network")
    check_network(run_dir, record)
    keep_freed_memory()
    device, summary = device_of(device_name), record["summary"]
    selected = load_selected(run_dir, device, record.get("identity"), summary.get("best_epoch"), summary.get("epochs"))
    normalise = Normalisation(tuple(record["normalisation"]["mean"]), tuple(record["normalisation"]["std"]))
    channels = len(normalise.mean_C)
    network = untrained(config, channels, record)
    try:
        network.load_state_dict(selected["network"])
    except RuntimeError as error:
        raise UsageError(
            f"{run_dir}: weights that do not fit {config.model.name}, {config.backbone.name}: {error}"
        ) from error
    rule, stored = rule_of(config.dataset.normalise), bool(record["normalisation"].get("stored"))
    network.to(device).to(memory_format=MEMORY_FORMATS[config.trainer.format]).eval()
    return Trained(network, head_of(config, network), normalise, device, channels, rule, stored)


def untrained(config: Config, channels: int, record: dict[str, Any]) -> torch.nn.Module:
    """The network of a recorded run on the CPU, with random weights: its checkpoint also holds the encoder's."""
    backbone = BackboneConfig(config.backbone.name, None)
    size = record.get("input_size") or common_size(config.model.name, params(config.model), backbone.name)
    return built_of(dataclasses.replace(config, backbone=backbone), channels, size).network


class ProbabilityModel(torch.nn.Module):
    """images_NCHW -> probabilities_NKHW (K = 1, C - 1 or C channels as the run's head has), values of `identity`.

    Images are uint8, uint16, or floating in [0, 1], at the scale of the run's training images; stored values where the
    run was trained on them (signed or floating files), or ``dataset.normalise`` scales each image. They are padded to
    the network's divisor, and the padding is cut off again. Where ``dataset.normalise`` (image, percentile, ct) acts
    before ``dataset.fit=resize``, images have their own size: they are scaled and resized, and the logits resized back,
    as by `segexp predict`. Always in eval mode. Raises ValueError for other images, TypeError for other objects.

    own_sizes: of the run's images as "WIDTHxHEIGHT", to warn of images that were resized too early.
    """

    def __init__(self, run: Trained, config: Config, own_sizes: Collection[str] = ()) -> None:
        super().__init__()
        self.network = run.network
        self._head, self._normalise, self._channels = run.head, run.normalise, run.channels
        self._stored = run.stored
        self._model = (config.model.name, params(config.model), config.backbone.name)
        divisor = ARCHITECTURES[config.model.name].divisor.of(params(config.model))
        # Under dataset.normalise=train the caller resizes: images of any size at the scale of the training images.
        how = "pad" if run.rule == AS_STORED else config.dataset.fit
        self._fit = InputGeometry(how, side := config.dataset.image_size or 0, divisor, run.rule)
        known = {f"{side}x{side}", "others"} & set(own_sizes)
        self._resizes_others = how == "resize" and bool(own_sizes) and not known
        self.eval()

    def train(self, mode: bool = True) -> Self:
        return super().train(False)

    def forward(self, images_NCHW: torch.Tensor) -> torch.Tensor:
        if not isinstance(images_NCHW, torch.Tensor):
            raise TypeError(f"images are {type(images_NCHW).__name__}, not a torch tensor (N, {self._channels}, H, W)")
        if images_NCHW.dim() != 4 or images_NCHW.shape[1] != self._channels:
            raise ValueError(f"images {tuple(images_NCHW.shape)} must be (N, {self._channels}, H, W)")
        height, width = images_NCHW.shape[2:]
        if self._fit.rule != AS_STORED:
            side = self._fit.size
            if self._resizes_others and (height, width) == (side, side):
                what = f"images of {side} x {side} px, a size that no image of the run had: dataset.normalise="
                cure = "give images at their own size, which are then resized as by `segexp predict`"
                warnings.warn(f"{what}{self._fit.rule.name} acts before resizing: {cure}", stacklevel=4)
            images_HWC = (image.permute(1, 2, 0).cpu().numpy() for image in images_NCHW)
            mask_HW = np.zeros((height, width), np.uint8)
            fitted = [sample_of(Pair(image_HWC, mask_HW), self._fit).image_CHW for image_HWC in images_HWC]
            return self._probabilities(torch.stack(fitted).to(images_NCHW.device), (height, width))
        if self._stored:
            if images_NCHW.dtype in (torch.uint8, torch.uint16):
                raise ValueError(f"images of {images_NCHW.dtype}: the run was trained on stored values of other files")
            return self._probabilities(images_NCHW.float(), (height, width))
        depth = {torch.uint8: 255, torch.uint16: 65535}.get(images_NCHW.dtype)
        if depth is None and not images_NCHW.is_floating_point():
            raise ValueError(f"images of {images_NCHW.dtype} are neither uint8, uint16 nor floating in [0, 1]")
        unit = images_NCHW.float() / (depth or 1)
        if depth is None and not bool(((unit >= 0) & (unit <= 1)).all()):
            raise ValueError("floating images must lie in [0, 1]")
        return self._probabilities(unit, (height, width))

    def _probabilities(self, unit: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        height, width = unit.shape[2:]
        below, right = -height % self._fit.divisor, -width % self._fit.divisor
        check_size(*self._model, min(height + below, width + right), "images of")
        # Replicated edges, as in training and scoring.
        padded = F.pad(self._normalise(unit), (0, right, 0, below), mode="replicate")
        logits_NKHW = at_native_size(self.network(padded), size, self._fit.how == "pad")
        values: torch.Tensor = self._head(logits_NKHW).values_NKHW
        return values
