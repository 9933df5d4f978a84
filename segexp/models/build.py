"""Build the network: an architecture and encoder of segmentation-models-pytorch (smp), logits out, no activation."""

import hashlib
import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

from segexp.catalogue import REQUIRED, nearest
from segexp.errors import UsageError
from segexp.seeds import torch_seeded

if TYPE_CHECKING:
    import torch


@dataclass
class ModelConfig:
    """Architecture of the network."""

    name: str = REQUIRED
    encoder_depth: int = REQUIRED
    decoder_channels: list[int] = REQUIRED


@dataclass
class BackboneConfig:
    """Encoder of the network. weights: null (random), "imagenet", or the path of a state dict."""

    name: str = REQUIRED
    weights: str | None = REQUIRED


def encoder_names() -> list[str]:
    """Every encoder of smp by name; besides, any timm model with feature maps as ``tu-<name>``. Imports torch."""
    from segmentation_models_pytorch.encoders import get_encoder_names

    return get_encoder_names()


def build_network(
    model: ModelConfig, backbone: BackboneConfig, in_channels: int, out_channels: int, seed: int
) -> "torch.nn.Module":
    """The network, images_NCHW -> logits_NKHW, its random weights drawn from the stream "init" of ``seed``.

    Raises UsageError when encoder or options are unknown to smp, or weights cannot be had.
    """
    import segmentation_models_pytorch as smp

    name = backbone.name
    if not name.startswith("tu-") and name not in encoder_names():
        raise UsageError(
            f"unknown encoder backbone.name={name}{nearest(name, encoder_names())}; "
            "`segexp list backbones` names all, and tu-<name> takes any timm encoder"
        )
    pretrained = "imagenet" if backbone.weights == "imagenet" else None
    try:
        with torch_seeded(seed, "init"), _hub_offline_when_unreachable(pretrained is not None):
            network = smp.Unet(
                encoder_name=name,
                encoder_depth=model.encoder_depth,
                encoder_weights=pretrained,
                decoder_channels=tuple(model.decoder_channels),
                in_channels=in_channels,
                classes=out_channels,
                activation=None,
            )
    except OSError as error:
        raise UsageError(
            f"backbone.weights=imagenet: the weights of {name} are not on this machine and cannot be fetched "
            f"({_first_line(error)}); use backbone.weights=null, or fetch them once where there is a network "
            f"(segexp train backbone.name={name} backbone.weights=imagenet --dry-run) and copy ~/.cache/huggingface, "
            "or give a file: backbone.weights=PATH"
        ) from error
    except (KeyError, ValueError, RuntimeError, TypeError) as error:
        raise UsageError(
            f"smp cannot build {model.name} with backbone.name={name}, model.encoder_depth={model.encoder_depth}, "
            f"{in_channels} input channels: {_first_line(error)}"
        ) from error
    if backbone.weights is not None and pretrained is None:
        _load_encoder(network.encoder, Path(backbone.weights).expanduser(), name)
    return network


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


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
        raise UsageError(f"backbone.weights={path}: cannot be read as weights ({_first_line(error)})") from error
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


def weights_sha(backbone: BackboneConfig) -> str:
    """SHA-256 of the weight file, "" where there is none: the path is not what identifies a run."""
    if backbone.weights in (None, "imagenet"):
        return ""
    path = Path(str(backbone.weights)).expanduser()
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UsageError(
            f"backbone.weights={backbone.weights}: no such file ({error.strerror}); give null, imagenet or a path"
        ) from error


def stride_of(network: "torch.nn.Module") -> int:
    """What height and width of the input must be divisible by."""
    return int(network.encoder.output_stride)  # type: ignore[union-attr, arg-type]


def init_sha(network: "torch.nn.Module") -> str:
    """SHA-256 (hex) over the initial weights without the final bias: equal where two runs start alike."""
    total = hashlib.sha256()
    bias = final_conv(network).bias
    final_bias = next((name for name, p in network.named_parameters() if p is bias), "")
    for name, tensor in sorted(network.state_dict().items()):
        if name != final_bias:
            total.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
            total.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return total.hexdigest()


def final_conv(network: "torch.nn.Module") -> "torch.nn.Conv2d":
    """The convolution that puts out the logits."""
    import torch

    head = network.segmentation_head
    assert isinstance(head, torch.nn.Module)
    return [module for module in head.modules() if isinstance(module, torch.nn.Conv2d)][-1]


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
    told += [str(w.message).splitlines()[0] for w in caught]
