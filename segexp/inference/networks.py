"""The networks of finished runs that predict together: seeds of one arm, and mirror images, as one mean probability."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from segexp.activations.head import Prediction, mean_prediction
from segexp.config import Config, params
from segexp.data.batches import InputGeometry, Sample, sample_of, scoring_batches
from segexp.data.image_set import Pair
from segexp.data.normalise import AS_STORED
from segexp.evaluation.predict import FLIPS, Forward, make_forward, predict
from segexp.models.architectures import ARCHITECTURES, check_size, common_size
from segexp.records.runs import Run
from segexp.running.build import Trained, trained


@dataclass(frozen=True)
class Networks:
    """members: each network with its normalisation and head, and its forward pass. config, geometry: what they share.
    flips: see `segexp.evaluation.predict.FLIPS`."""

    config: Config
    members: tuple[tuple[Trained, Forward], ...]
    geometry: InputGeometry
    flips: Sequence[tuple[int, ...]]

    def check(self, height: int, width: int) -> None:
        """Raise UsageError where an image of this size is too small for the network."""
        if self.geometry.how == "pad":
            model, divisor = self.config.model, self.geometry.divisor
            smaller = -(-min(height, width) // divisor) * divisor
            check_size(model.name, params(model), self.config.backbone.name, smaller, f"padded to {smaller} px, it")

    def whole(
        self, read: Callable[[int], Sample], size: tuple[int, int], slices: int
    ) -> Iterator[tuple[tuple[int, ...], Prediction]]:
        """Slices of one size, batch by batch in their order, with their prediction at that size (N, K, H, W).

        The run's own way of scoring: fitted, normalised, and the logits brought back to the native size.
        """
        sizes_N2, batch_size = np.tile(size, (slices, 1)), self.config.trainer.batch_size
        streams = [
            predict(
                forward,
                run.head,
                scoring_batches(read, self.geometry, run.normalise, range(slices), sizes_N2, batch_size),
                run.device,
                "native",
                self.flips,
            )
            for run, forward in self.members
        ]
        for several in zip(*streams, strict=True):
            yield several[0].indices, mean_of([scored.prediction for scored in several])

    def logits(self, member: int, axes: tuple[int, ...], window_HWC: np.ndarray) -> torch.Tensor:
        """(K, H, W) on the CPU: the logits of one network for a window of an image that its rule has scaled. The window
        is mirrored along ``axes`` before and back after, and padded like a whole image."""
        run, forward = self.members[member]
        geometry, size = replace(self.geometry, rule=AS_STORED), window_HWC.shape[:2]
        sample = sample_of(Pair(window_HWC, np.zeros(size, np.uint8)), geometry)
        (batch,) = scoring_batches(lambda _: sample, geometry, run.normalise, [0], np.array([size]), 1)
        with torch.inference_mode():
            logits = forward(batch.images_NCHW.to(run.device).flip(axes)).flip(axes).float().cpu()
        return logits[0, :, : size[0], : size[1]]


def mean_of(predictions: Sequence[Prediction]) -> Prediction:
    """The mean of equal weights; one prediction as it is."""
    return predictions[0] if len(predictions) == 1 else mean_prediction(predictions)


def networks_of(runs: Sequence[Run], configs: Sequence[Config], tta: bool) -> Networks:
    """The selected networks of finished runs that differ in seed and split alone. configs: theirs, in their order, with
    the device. Raises UsageError."""
    members = []
    for run, config in zip(runs, configs, strict=True):
        network = trained(run.path, config, dict(run.record), config.trainer.device)
        members.append((network, make_forward(network.network, network.device, config.trainer.precision)))
    config = configs[0]
    divisor = ARCHITECTURES[config.model.name].divisor.of(params(config.model))
    geometry = InputGeometry(config.dataset.fit, config.dataset.image_size or 0, divisor, members[0][0].rule)
    return Networks(config, tuple(members), geometry, FLIPS if tta else ((),))


def bytes_per_pixel(networks: Networks) -> float:
    """Memory that a forward pass takes for each pixel of the image: twice the largest input and output of a layer,
    measured on a small image."""
    run, forward = networks.members[0]
    config, most = networks.config, 0
    side = common_size(config.model.name, params(config.model), config.backbone.name)

    def note(module: torch.nn.Module, given: Any, result: Any) -> None:
        nonlocal most
        most = max(most, sum(t.nbytes for t in (*given, result) if isinstance(t, torch.Tensor)))

    hooks = [m.register_forward_hook(note) for m in run.network.modules() if not list(m.children())]
    try:
        with torch.inference_mode():
            forward(torch.zeros(1, run.channels, side, side, device=run.device))
    finally:
        for hook in hooks:
            hook.remove()
    return 2 * most / side**2


def free_memory(device: torch.device) -> float:
    """Free bytes of the device; infinite where the system does not say."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return 1024.0 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, ValueError, StopIteration):
        return float("inf")
