"""Build the network: an architecture and encoder of segmentation-models-pytorch (smp) with logits as output."""

import copy
import functools
import hashlib
import math
import os
import socket
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from safetensors.torch import load_file

from segexp.activations.head import LearnedOptions
from segexp.activations.hidden import make_hidden, measured_gain
from segexp.data import seeded
from segexp.errors import UsageError, first_line, out_of_memory
from segexp.models.architectures import (
    ARCHITECTURES,
    IN_CHANNELS,
    MIN_BATCH,
    BackboneConfig,
    InitConfig,
    Options,
    check_model,
    encoder_names,
)
from segexp.models.swap import CallSites, Swap, SwapReport, audit, check_closed, swap_hidden
from segexp.models.trace import FAILURES, GATE_OPERATORS, Application, Trace, trace
from segexp.registry import nearest
from segexp.registry.plugins import LOADED

MEMORY_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
"""Of the weights of 2D convolutions (``trainer.format``); their outputs follow, whatever the images have."""

RELU_GAIN = math.sqrt(2)  # Kaiming's gain for relu, for which the architectures initialise their weights


def initialise(
    network: torch.nn.Module, sites: Sequence[Application], init: InitConfig, gain: float | None, frozen: str = ""
) -> dict[str, Any]:
    """Scale the weights and set the biases of layers that feed an activation without normalisation.

    gain: that of the new activation, None for native ones. Weights are drawn for `RELU_GAIN`; those that feed a
    replacement are multiplied by gain / RELU_GAIN. frozen: prefix of the paths that do not change (pretrained weights).
    Returns the entry of run.json.
    """
    factor = gain / RELU_GAIN if init.gain == "auto" and gain is not None else 1.0
    if math.isclose(factor, 1.0, rel_tol=1e-6):  # relu itself: its gain is integrated numerically
        factor = 1.0
    # Whether a layer is normalised before each activation that it feeds.
    feeds: dict[str, bool] = {}
    for feed in (f for site in sites for f in site.feeds):
        feeds[feed.layer] = feeds.get(feed.layer, True) and feed.normalised
    replaced = {f.layer for site in sites if site.kind == "replaced" for f in site.feeds}
    scaled = biased = 0
    with torch.no_grad():
        for name, normalised in feeds.items():
            if normalised or (frozen and name.startswith(frozen)):
                continue
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


def build_network(
    model: str, options: Options, backbone: BackboneConfig, in_channels: int, out_channels: int, seed: int
) -> torch.nn.Module:
    """The network, images_NCHW -> logits_NKHW, its random weights drawn from the stream "init" of ``seed``.

    model: a name in `ARCHITECTURES`, options its options. in_channels: 1 to 32.
    Raises UsageError if smp does not know encoder or options, if the weights are not available, or if a network of the
    user's own cannot be built.
    """
    name, entry = backbone.name, ARCHITECTURES.find(model)
    if entry.encoder:
        _check_encoder(name)
    check_model(model, options, name)
    if in_channels not in IN_CHANNELS:
        wrong = f"the images have {in_channels} channels, networks support {IN_CHANNELS[0]} to {IN_CHANNELS[-1]}"
        raise UsageError(f"{wrong}; select some of the channels")
    pretrained = "imagenet" if backbone.weights == "imagenet" else None
    common = {"encoder_name": name, "encoder_weights": pretrained, "in_channels": in_channels, "classes": out_channels}
    try:
        with seeded(seed, "init"), _hub_offline_when_unreachable(pretrained is not None):
            network = entry.function(common, **options)
    except OSError as error:
        if pretrained is None:
            raise
        raise UsageError(
            f"backbone.weights=imagenet: the weights of {name} are not on this machine and cannot be downloaded "
            f"({first_line(error)}); use backbone.weights=null, or a file (backbone.weights=PATH), or download them on "
            f"another machine (segexp train backbone.name={name} backbone.weights=imagenet --dry-run) and copy "
            "~/.cache/huggingface"
        ) from error
    except (LookupError, ValueError, RuntimeError, TypeError, AssertionError) as error:
        if out_of_memory(error):
            raise
        raise UsageError(
            f"smp cannot build model={model} with backbone.name={name} and {in_channels} input channels: "
            f"{first_line(error)}; supported encoders: {entry.encoders}"
        ) from error
    encoder: Any = getattr(network, "encoder", None)
    if backbone.weights is not None and not isinstance(encoder, torch.nn.Module):
        raise UsageError(f"backbone.weights={backbone.weights}: model={model} has no part called encoder: use null")
    if backbone.weights is not None and pretrained is None:
        _load_encoder(encoder, Path(backbone.weights).expanduser(), name)
    return network


def _check_encoder(name: str) -> None:
    """Raise UsageError with the nearest names if neither smp nor timm knows the encoder."""
    if name.startswith("tu-"):
        import timm

        if not timm.is_model(name.removeprefix("tu-")):
            names = [f"tu-{model}" for model in timm.list_models()]
            close = nearest(name, names)
            raise UsageError(f"unknown timm encoder backbone.name={name}{close} (timm.list_models() lists all)")
    elif name not in encoder_names():
        wrong = f"unknown encoder backbone.name={name}{nearest(name, encoder_names())}"
        raise UsageError(f"{wrong}; `segexp list backbones` lists all, and tu-<name> is any timm encoder")


@dataclass(frozen=True)
class Built:
    """The initial network, the audit of its activations, its call sites, and the record of its initialisation.

    size: side in pixels of the images of the audit. warnings: notes on the combination, for run.json.
    """

    network: torch.nn.Module
    report: SwapReport
    sites: list[Application]
    init: dict[str, Any]
    size: int
    warnings: tuple[str, ...]


def build_with_hidden(
    model: tuple[str, Options],
    backbone: BackboneConfig,
    hidden: tuple[str, Options],
    init: InitConfig,
    *,
    in_channels: int,
    out_channels: int,
    size: int,
    seed: int,
) -> Built:
    """`build_network`, with the hidden activation swapped in and audited, and hidden layers initialised for it.

    model, hidden: a name in `ARCHITECTURES` and `HIDDEN_ACTIVATIONS`, each with its options. size: side in pixels of
    the images of the traced forward passes. Raises UsageError if the network cannot process such images, or if an
    activation in the scope cannot be replaced.
    """
    name, options = hidden
    entry, what = ARCHITECTURES.find(model[0]), f"model={model[0]}"
    network = build_network(*model, backbone, in_channels, out_channels, seed)
    if options["scope"] != "both" and not isinstance(getattr(network, "encoder", None), torch.nn.Module):
        raise UsageError(f"hidden_activation.scope={options['scope']}: {what} has no part called encoder: use both")
    seen = check_forward(network, in_channels, out_channels, size)
    if entry.own:
        if seen.changes_input:
            of = f"{what} of {LOADED[ARCHITECTURES.origins[model[0]]].given}"
            raise UsageError(f"{of} changes its input in place: compute new tensors, or clone the images first")
        path: Any = _logits_from(network, seen, in_channels, size)
        network.logits_from = path
    gain = None
    if name != "native":
        make = functools.partial(make_hidden, name, options)
        with seeded(seed, "hidden"):  # for activations whose parameters start at random
            gain = measured_gain(make())
            swap_hidden(network, name, make, options["scope"], in_channels, size, seen)
    built_for: Any = (in_channels, size)
    network.built_for = built_for
    report, sites = audit(network, in_channels, size, seen if name == "native" else None)
    if entry.own:
        named = "torch.nn.ReLU for clamp(min=0) or maximum(x, 0), torch.nn.Softplus for softplus"
        check_closed(report, what, f"call it as a module in your network ({named}), or use")
    else:
        check_closed(report, f"{what} with backbone.name={backbone.name}")
    pretrained = "encoder." if backbone.weights is not None else ""
    record = initialise(network, sites, init, gain, frozen=pretrained)
    return Built(network, report, sites, record, size, tuple(_cautions(network, backbone, name, options)))


def _cautions(network: torch.nn.Module, backbone: BackboneConfig, hidden: str, options: Options) -> list[str]:
    """Warnings about a hidden activation in this network, for run.json."""
    cautions = []
    if backbone.allow_mismatched_weights:
        what = f"the pretrained weights of {backbone.name} were trained with another activation than {hidden}"
        cautions.append(f"mismatched weights: {what}")
    covers = Swap(hidden, options["scope"], 0, 0).covers
    norms = (torch.nn.modules.batchnorm._BatchNorm, torch.nn.GroupNorm, torch.nn.LayerNorm)
    if hidden == "selu" and any(covers(path) and isinstance(m, norms) for path, m in network.named_modules()):
        cautions.append("selu is self-normalising only without normalisation layers, and this network has some")
    return cautions


def check_forward(network: torch.nn.Module, in_channels: int, out_channels: int, size: int) -> Trace:
    """Trace two images of size x size in training mode: some timm encoders only support one size, or halve it unevenly.

    Computes only shapes unless that fails. Does not change the network or the random generators. Raises UsageError.
    """
    try:
        seen = trace(network, in_channels, size)
    except Exception as error:  # a network of the user's own may raise anything
        if out_of_memory(error):
            raise
        failure = first_line(error)[:200]
        if not isinstance(error, FAILURES):
            failure = f"{type(error).__name__}: {failure}"
    else:
        wanted, given = (MIN_BATCH, out_channels, size, size), seen.output_shape
        if len(given) != 4 or given[:2] != wanted[:2]:
            wrong = f"the network's logits (N, K, H, W) have the shape {given}, not {wanted}"
            raise UsageError(f"{wrong}: correct the network")
        if seen.end in GATE_OPERATORS:
            wrong = f"the network ends in {seen.end.strip('_')}, so that its output is no logits"
            raise UsageError(f"{wrong}: return what is before it, because segexp applies the output activation")
        failure = "" if given == wanted else f"its logits have {given[2:]} px"
    if failure:
        wrong = f"the network cannot process images of {size} px: {failure}"
        raise UsageError(f"{wrong}; change dataset.image_size or model")
    return seen


@contextmanager
def _hub_offline_when_unreachable(needed: bool) -> Iterator[None]:
    """Use only the hub client's cache if the hub is not reachable; otherwise the client retries for half a minute."""
    if not needed or _hub_reachable():
        yield
        return
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _hub_reachable() -> bool:
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True
    host = urlparse(os.environ.get("HF_ENDPOINT", "https://huggingface.co")).hostname or "huggingface.co"
    try:
        socket.create_connection((host, 443), timeout=5).close()
    except OSError:
        return False
    return True


def _load_encoder(encoder: torch.nn.Module, path: Path, name: str) -> None:
    """Load a state dict (torch or safetensors) into the encoder. Raises UsageError if it does not fit."""
    try:
        safe = path.suffix == ".safetensors"
        state: Any = load_file(path) if safe else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UsageError(f"backbone.weights={path}: not a readable weight file ({first_line(error)})") from error
    for wrapper in ("state_dict", "model", "network"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict):
        raise UsageError(f"backbone.weights={path}: not a state dict")
    if any(key.startswith("encoder.") for key in state):
        state = {key.removeprefix("encoder."): value for key, value in state.items() if key.startswith("encoder.")}
    wanted = encoder.state_dict()
    missing = [key for key in wanted if key not in state]
    misshapen = [key for key in wanted if key in state and state[key].shape != wanted[key].shape]
    if missing or misshapen:
        what = f"{len(missing)} of {len(wanted)} entries are missing" if missing else "shapes differ"
        wrong = f"{what}, the first is {(missing or misshapen)[0]}"
        raise UsageError(f"backbone.weights={path} does not fit {name} with this number of channels: {wrong}")
    encoder.load_state_dict({key: state[key] for key in wanted})


def init_sha(network: torch.nn.Module) -> str:
    """SHA-256 (hex) over the initial weights without the final bias; equal if two runs start from the same weights.

    Parameters of activations are not included, because they are part of what is compared.
    """
    total = hashlib.sha256()
    excluded = {id(p) for p in learned_parameters(network)} | {id(getattr(final_layer(network), "bias", None))}
    for name, tensor in sorted(network.state_dict(keep_vars=True).items()):
        if id(tensor) not in excluded:
            total.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
            total.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return total.hexdigest()


def _logits_from(network: torch.nn.Module, seen: Trace, in_channels: int, size: int) -> str:
    """Path of the layer whose bias adds to the logits, one number for each channel; "" where there is none."""
    layer = network.get_submodule(seen.last[0].layer) if len(seen.last) == 1 else None
    bias = getattr(layer, "bias", None)
    if not isinstance(bias, torch.nn.Parameter) or bias.shape != seen.output_shape[1:2]:
        return ""
    tried = copy.deepcopy(network).eval()
    images_NCHW = torch.zeros(1, in_channels, size, size)
    with torch.no_grad(), seeded(0, "probe"):
        before = tried(images_NCHW)
        tried.get_parameter(f"{seen.last[0].layer}.bias").add_(1)
        shift = tried(images_NCHW) - before
    return seen.last[0].layer if torch.allclose(shift, torch.ones_like(shift), atol=1e-3) else ""


def final_layer(network: torch.nn.Module) -> torch.nn.Module | None:
    """The layer that outputs the logits and has a bias for each channel of them; None where there is none."""
    path: Any = getattr(network, "logits_from", None)
    if isinstance(path, str):
        return network.get_submodule(path) if path else None
    head = network.segmentation_head
    assert isinstance(head, torch.nn.Module)
    return [module for module in head.modules() if isinstance(module, torch.nn.Conv2d)][-1]


def learned_parameters(network: torch.nn.Module) -> list[torch.nn.Parameter]:
    """Learnable parameters of the hidden activations that were swapped in, and of the output activation."""
    owners = (module for module in network.modules() if isinstance(module, CallSites | LearnedOptions))
    return [p for module in owners for p in module.parameters()]


def parameter_count(network: torch.nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


@contextmanager
def build_warnings() -> Iterator[list[str]]:
    """Collect warnings of libraries while building (deprecated encoders ...), one line each, for run.json."""
    lines: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield lines
    lines += [first_line(w.message) for w in caught]
