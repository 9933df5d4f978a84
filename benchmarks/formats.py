"""Memory format and precision of the network: a training step of the default configuration in each of them."""

from collections.abc import Callable, Iterable

import torch

import segexp
from benchmarks import Row, benchmark, in_turns, ratios
from segexp.evaluation.predict import make_forward
from segexp.models.architectures import memory_format
from segexp.models.build import MEMORY_FORMATS
from segexp.running.hardware import has_bf16

SIZES = (64, 96, 128, 192, 256)
BATCH = 8  # trainer.batch_size of plain `segexp train`

NETWORKS = {
    "unet/resnet18": [],
    "fpn/mobilenet_v2": ["model=fpn", "backbone=mobilenet_v2"],
    "segformer/mit_b0": ["model=segformer", "backbone.name=mit_b0"],
}
"""The default network, and two of another kind: depthwise convolutions, attention."""


def step_of(overrides: list[str], size: int, format: str, precision: str) -> Callable[[], None]:
    """A training step: forward and backward pass, with torch's own BCE as the loss, and AdamW."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = segexp.build_model([*overrides, f"dataset.image_size={size}"])
    network.to(device).to(memory_format=MEMORY_FORMATS[format])
    optimizer, forward = torch.optim.AdamW(network.parameters(), fused=True), make_forward(network, device, precision)
    generator = torch.Generator().manual_seed(0)
    images_NCHW = torch.randn(BATCH, 1, size, size, generator=generator).to(device)
    masks_NKHW = (torch.rand(BATCH, 1, size, size, generator=generator) < 0.2).float().to(device)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        logits_NKHW = forward(images_NCHW).float()
        torch.nn.functional.binary_cross_entropy_with_logits(logits_NKHW, masks_NKHW).backward()
        optimizer.step()

    return step


@benchmark("Memory format and precision: speed of a training step, against contiguous fp32")
def formats(quick: bool) -> Iterable[Row]:
    """``trainer.format=auto`` must lose nowhere: a bound for each size at which it takes channels_last. bf16 where the
    device multiplies it itself: elsewhere it takes 20 times as long."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    precisions = ("fp32", "bf16") if has_bf16(device) else ("fp32",)
    for name, overrides in list(NETWORKS.items())[: 1 if quick else None]:
        for size in SIZES[:1] if quick else SIZES:
            calls = {
                f"{name} {size} px {precision} {format}": step_of(overrides, size, format, precision)
                for precision in precisions
                for format in MEMORY_FORMATS
            }
            names, rounds = list(calls), 2 if quick else max(5, 1200 // size)
            taken = names[1] if memory_format(device, size, "unet") == "channels_last" else ""
            times = in_turns(calls, rounds, device, warm_up=2)
            yield from ratios(times, names[0], {taken: (">=", 1.0)} if name == "unet/resnet18" else {}, rate=True)
