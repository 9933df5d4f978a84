"""Build the network: an architecture and encoder of segmentation-models-pytorch (smp), logits out, no activation."""

import hashlib
import math
import os
import socket
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

from segexp.activations.hidden import make_hidden, measured_gain
from segexp.data.seeds import torch_seeded
from segexp.errors import UsageError, first_line
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
from segexp.registry import nearest

if TYPE_CHECKING:
    import torch

    from segexp.models.swap import SwapReport
    from segexp.models.trace import Application, Trace


RELU_GAIN = math.sqrt(2)
"""Kaiming's gain for the rectifier, which the architectures' own initialisations are made for."""


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


def build_network(
    model: str, options: Options, backbone: BackboneConfig, in_channels: int, out_channels: int, seed: int
) -> "torch.nn.Module":
    """The network, images_NCHW -> logits_NKHW, its random weights drawn from the stream "init" of ``seed``.

    model: a name in `ARCHITECTURES`, options its options. in_channels: 1 to 7.
    Raises UsageError when encoder or options are unknown to smp, or weights cannot be had.
    """
    name = backbone.name
    _check_encoder(name)
    check_model(model, options, name)
    if in_channels not in IN_CHANNELS:
        raise UsageError(
            f"images of {in_channels} channels: networks take {IN_CHANNELS[0]} to {IN_CHANNELS[-1]}; "
            "choose among the channels, or split the images"
        )
    pretrained = "imagenet" if backbone.weights == "imagenet" else None
    try:
        with torch_seeded(seed, "init"), _hub_offline_when_unreachable(pretrained is not None):
            common = {
                "encoder_name": name,
                "encoder_weights": pretrained,
                "in_channels": in_channels,
                "classes": out_channels,
            }
            network = ARCHITECTURES[model].function(common, **options)
    except OSError as error:
        raise UsageError(
            f"backbone.weights=imagenet: the weights of {name} are not on this machine and cannot be fetched "
            f"({first_line(error)}); use backbone.weights=null, or fetch them once where there is a network "
            f"(segexp train backbone.name={name} backbone.weights=imagenet --dry-run) and copy ~/.cache/huggingface, "
            "or give a file: backbone.weights=PATH"
        ) from error
    except (LookupError, ValueError, RuntimeError, TypeError, AssertionError) as error:
        raise UsageError(
            f"smp cannot build model={model} with backbone.name={name} and {in_channels} input channels: "
            f"{first_line(error)}; it takes {ARCHITECTURES[model].encoders}"
        ) from error
    if backbone.weights is not None and pretrained is None:
        encoder: Any = network.encoder
        _load_encoder(encoder, Path(backbone.weights).expanduser(), name)
    return network


def _check_encoder(name: str) -> None:
    """Raise UsageError with the nearest names for an encoder that neither smp nor timm knows."""
    if name.startswith("tu-"):
        import timm

        known = name.removeprefix("tu-")
        if not timm.is_model(known):
            names = [f"tu-{model}" for model in timm.list_models()]
            raise UsageError(
                f"unknown timm encoder backbone.name={name}{nearest(name, names)} (timm.list_models() names all)"
            )
    elif name not in encoder_names():
        raise UsageError(
            f"unknown encoder backbone.name={name}{nearest(name, encoder_names())}; "
            "`segexp list backbones` names all, and tu-<name> takes any timm encoder"
        )


@dataclass(frozen=True)
class Built:
    """The initial network, what the audit of its activations found, its call sites, and how it was initialised.

    size: side in pixels of the images it was tried with. warnings: what the record should say of the combination.
    """

    network: "torch.nn.Module"
    report: "SwapReport"
    sites: "list[Application]"
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
    """`build_network`, with the hidden activation put in, audited, and the hidden layers initialised for it.

    model, hidden: a name in `ARCHITECTURES` and `HIDDEN_ACTIVATIONS`, each with its options. size: side in pixels of
    the images of the forward passes that are watched. Raises UsageError where the network does not take such images,
    and where an activation would stay that should have been replaced.
    """
    from segexp.models.swap import audit, check_closed, swap_hidden

    name, options = hidden
    network = build_network(*model, backbone, in_channels, out_channels, seed)
    seen = check_forward(network, in_channels, out_channels, size)
    gain = None
    if name != "native":
        gain = measured_gain(make_hidden(name, options))
        swap_hidden(network, name, lambda: make_hidden(name, options), options["scope"], in_channels, size, seen)
    built_for: Any = (in_channels, size)
    network.built_for = built_for
    report, sites = audit(network, in_channels, size, seen if name == "native" else None)
    check_closed(report, f"model={model[0]} with backbone.name={backbone.name}")
    pretrained = "encoder." if backbone.weights is not None else ""
    record = initialise(network, sites, init, gain, frozen=pretrained)
    return Built(network, report, sites, record, size, tuple(_cautions(network, backbone, name, options)))


def _cautions(network: "torch.nn.Module", backbone: BackboneConfig, hidden: str, options: Options) -> list[str]:
    """What the record must say of a hidden activation in this network."""
    import torch

    cautions = []
    if backbone.allow_mismatched_weights:
        cautions.append(
            f"the pretrained weights of {backbone.name} were trained with another activation than {hidden}: "
            "the run starts from mismatched weights"
        )
    part: Any = network if options["scope"] == "both" else getattr(network, options["scope"])
    norms = (torch.nn.modules.batchnorm._BatchNorm, torch.nn.GroupNorm, torch.nn.LayerNorm)
    if hidden == "selu" and any(isinstance(module, norms) for module in part.modules()):
        cautions.append("selu is self-normalising without normalisation layers only, and this network has them")
    return cautions


def check_forward(network: "torch.nn.Module", in_channels: int, out_channels: int, size: int) -> "Trace":
    """Try two images of size x size in training: some encoders of timm take one size only, or halve it unevenly.

    Only shapes are computed, unless that fails. The network and the random generators stay as they are. Returns what
    was seen on the way. Raises UsageError.
    """
    from segexp.models.swap import is_call_sites
    from segexp.models.trace import FAILURES, trace

    try:
        seen = trace(network, in_channels, size, is_call_sites)
        wanted = (MIN_BATCH, out_channels, size, size)
        failure = "" if seen.output_shape == wanted else f"its logits have {seen.output_shape[2:]} px"
    except FAILURES as error:
        failure = first_line(error)[:200]
    if failure:
        raise UsageError(f"images of {size} px do not pass this network: {failure}; change dataset.image_size or model")
    return seen


@contextmanager
def _hub_offline_when_unreachable(needed: bool) -> Iterator[None]:
    """Without a network the hub's client retries for half a minute; told to be offline it looks in its cache alone."""
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


def _load_encoder(encoder: "torch.nn.Module", path: Path, name: str) -> None:
    """Load a state dict (torch or safetensors) into the encoder. Raises UsageError when it is not this encoder's."""
    import torch

    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UsageError(f"backbone.weights={path}: cannot be read as weights ({first_line(error)})") from error
    for wrapper in ("state_dict", "model", "network"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict):
        raise UsageError(f"backbone.weights={path}: holds no state dict")
    if any(key.startswith("encoder.") for key in state):
        state = {key.removeprefix("encoder."): value for key, value in state.items() if key.startswith("encoder.")}
    wanted = encoder.state_dict()
    missing = [key for key in wanted if key not in state]
    misshapen = [key for key in wanted if key in state and state[key].shape != wanted[key].shape]
    if missing or misshapen:
        what = f"{len(missing)} of {len(wanted)} entries are missing" if missing else "shapes differ"
        first = (missing or misshapen)[0]
        raise UsageError(
            f"backbone.weights={path} are not the weights of {name} with this number of channels: {what}, first {first}"
        )
    encoder.load_state_dict({key: state[key] for key in wanted})


def init_sha(network: "torch.nn.Module") -> str:
    """SHA-256 (hex) over the initial weights without the final bias: equal where two runs start alike.

    Parameters of hidden activations do not count: they belong to what is compared.
    """
    total = hashlib.sha256()
    apart = {id(p) for p in learned_parameters(network)} | {id(final_conv(network).bias)}
    for name, tensor in sorted(network.state_dict(keep_vars=True).items()):
        if id(tensor) not in apart:
            total.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
            total.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return total.hexdigest()


def final_conv(network: "torch.nn.Module") -> "torch.nn.Conv2d":
    """The convolution that makes the logits: the last of the head, with a bias per channel."""
    import torch

    head = network.segmentation_head
    assert isinstance(head, torch.nn.Module)
    return [module for module in head.modules() if isinstance(module, torch.nn.Conv2d)][-1]


def learned_parameters(network: "torch.nn.Module") -> "list[torch.nn.Parameter]":
    """Parameters of the hidden activations that were put in."""
    from segexp.models.swap import is_call_sites

    return [p for module in network.modules() if is_call_sites(module) for p in module.parameters()]


def parameter_count(network: "torch.nn.Module") -> int:
    """Number of trainable parameters."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


@contextmanager
def build_warnings() -> Iterator[list[str]]:
    """Collects what libraries warn of while building (deprecated encoders ...), one line each, for the record."""
    told: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield told
    told += [first_line(w.message) for w in caught]
