"""A finished run's network, as it was selected: rebuilt from the recorded configuration and the checkpoint."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segexp.activations.head import Head, make_head
from segexp.activations.output import OUTPUT_ACTIVATIONS
from segexp.config import Config, mode_of, params
from segexp.errors import UsageError
from segexp.models.architectures import ARCHITECTURES, BackboneConfig, check_size, common_size
from segexp.running.build import built_of, device_of

if TYPE_CHECKING:
    import torch

    from segexp.data.batches import Normalisation


@dataclass(frozen=True)
class Trained:
    """The selected network on its device, in eval mode, its head, and how its input is normalised."""

    network: "torch.nn.Module"
    head: Head
    normalise: "Normalisation"
    device: "torch.device"
    channels: int


def trained(run_dir: Path, config: Config, record: dict[str, Any], device_name: str) -> Trained:
    """Rebuild the network of a finished run on a device; ``config`` is the one it recorded.

    Raises UsageError when the run is not done or its checkpoint cannot be read.
    """
    from segexp.data.batches import Normalisation
    from segexp.training.checkpoints import load_checkpoint

    if record.get("status") != "done":
        raise UsageError(f"{run_dir} is {record.get('status')}: only a run that is done has a selected network")
    checkpoints = run_dir / "checkpoints"
    path = checkpoints / ("best.pt" if (checkpoints / "best.pt").exists() else "last.pt")
    if not path.exists():
        raise UsageError(f"{checkpoints} holds no checkpoint: copy it from where the run was made")
    device = device_of(device_name)
    content = load_checkpoint(path, device)
    normalise = Normalisation(tuple(record["normalisation"]["mean"]), tuple(record["normalisation"]["std"]))
    # The encoder's first weights came from a file or a hub; these come from the checkpoint.
    backbone = BackboneConfig(config.backbone.name, None)
    channels = len(normalise.mean_C)
    size = record.get("input_size") or common_size(config.model.name, params(config.model), backbone.name)
    network = built_of(dataclasses.replace(config, backbone=backbone), channels, size).network
    try:
        network.load_state_dict(content["network"])
    except RuntimeError as error:
        raise UsageError(f"{path} does not fit {config.model.name} with {backbone.name}: {error}") from error
    head = make_head(OUTPUT_ACTIVATIONS[config.activation.name], mode_of(config), params(config.activation))
    return Trained(network.to(device).eval(), head, normalise, device, channels)


def as_module(run: Trained, config: Config) -> "torch.nn.Module":
    """images_NCHW -> probabilities, padded to the network's divisor and cut back; for use outside segexp."""
    import torch
    import torch.nn.functional as F

    model = (config.model.name, params(config.model), config.backbone.name)
    divisor = ARCHITECTURES[config.model.name].divisor.of(params(config.model))

    class ProbabilityModel(torch.nn.Module):
        """images_NCHW -> probabilities_NKHW (K = 1, C - 1 or C channels as the run's head has), values of `identity`.

        Images are uint8, uint16, or floating in [0, 1], at the scale of the run's training images. It stays in eval
        mode. Raises ValueError for images of another kind.
        """

        def __init__(self) -> None:
            super().__init__()
            self.network = run.network
            self.eval()

        def train(self, mode: bool = True) -> "ProbabilityModel":
            return super().train(False)

        def forward(self, images_NCHW: torch.Tensor) -> torch.Tensor:
            if images_NCHW.dim() != 4 or images_NCHW.shape[1] != run.channels:
                raise ValueError(f"images {tuple(images_NCHW.shape)} must be (N, {run.channels}, H, W)")
            depth = {torch.uint8: 255, torch.uint16: 65535}.get(images_NCHW.dtype)
            if depth is None and not images_NCHW.is_floating_point():
                raise ValueError(f"images of {images_NCHW.dtype} are neither uint8, uint16 nor floating in [0, 1]")
            unit = images_NCHW.float() / (depth or 1)
            if depth is None and not bool(((unit >= 0) & (unit <= 1)).all()):
                raise ValueError("floating images must lie in [0, 1]")
            height, width = unit.shape[2:]
            below, right = -height % divisor, -width % divisor
            check_size(*model, min(height + below, width + right), "images of")
            # The edge is repeated, as it is where a run pads.
            padded = F.pad(run.normalise(unit), (0, right, 0, below), mode="replicate")
            values: torch.Tensor = run.head(self.network(padded)[:, :, :height, :width]).values_NKHW
            return values

    return ProbabilityModel()
