"""What output activations and losses add to a step, against torch's own cross-entropy and a plain soft Dice."""

import dataclasses
import statistics
from collections.abc import Callable, Iterable
from typing import Any

import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F

from benchmarks import Row, benchmark, counted, in_turns, ratios, seconds_on_card
from segexp.activations.head import LearnedOptions, make_head
from segexp.activations.output import OUTPUT_ACTIVATIONS
from segexp.losses import LOSSES
from segexp.models.architectures import memory_format
from segexp.models.build import MEMORY_FORMATS

BATCH, SIDE = 8, 128

SHAPE = (BATCH, 1, SIDE, SIDE)

ALONE = {"ce": 6.0, "dice": 4.0}
"""Asked of head and loss alone, as a multiple of torch's loss; of asymmetric activations `ASYMMETRIC`."""

ASYMMETRIC = 10.0

NAMES = [name for name, e in OUTPUT_ACTIVATIONS.items() if e.log_odds is not None and "binary" in e.modes]

Call = Callable[[], Any]
Loss = Callable[[torch.Tensor], torch.Tensor]


def plain_losses(target_NHW: torch.Tensor) -> dict[str, Loss]:
    """Cross-entropy and soft Dice of a sigmoid as torch has them, with the labels as numbers already."""
    y = target_NHW.unsqueeze(1).float()

    def dice(x: torch.Tensor) -> torch.Tensor:
        p = x.sigmoid()
        return 1 - 2 * (p * y).sum() / (p.sum() + y.sum())

    return {"ce": lambda x: F.binary_cross_entropy_with_logits(x, y), "dice": dice}


def own_loss(name: str, loss: str, target_NHW: torch.Tensor) -> Loss:
    """A head with its learned options, where it has any, and a loss, as a run has them."""
    entry = OUTPUT_ACTIVATIONS[name]
    learned = LearnedOptions(entry, {}).to(target_NHW.device) if entry.learnable else None
    head = make_head(entry, "binary", learned=learned)
    return lambda x: LOSSES[loss].function(head(x), target_NHW)


def data(shape: tuple[int, ...], device: str = "cpu") -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and a mask with a square in each image."""
    logits = 3 * torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
    target = torch.zeros(shape[0], *shape[2:], dtype=torch.long, device=device)
    target[:, shape[2] // 4 : shape[2] // 2, shape[3] // 4 :] = 1
    return logits.requires_grad_(), target


def step_of(loss: Loss, x: torch.Tensor) -> Call:
    return lambda: torch.autograd.grad(loss(x), x)


def asked(name: str, loss: str) -> tuple[str, float]:
    symmetric = name not in ("cloglog", "loglog", "hardtanh", "hardsigmoid", "minmax_linear")
    return "<=", ALONE[loss] if symmetric else ASYMMETRIC


@benchmark("Head and loss alone, forward and backward")
def head(quick: bool) -> Iterable[Row]:
    """The target of issue 19: on a CPU at most 6 times torch's cross-entropy and 4 times a plain soft Dice."""
    x, target = data((2, 1, 64, 64) if quick else SHAPE)
    for loss, plain in plain_losses(target).items():
        baseline = f"torch's {loss}"
        calls = {f"{name}, {loss}": step_of(own_loss(name, loss, target), x) for name in NAMES}
        times = in_turns({baseline: step_of(plain, x), **calls}, 3 if quick else 60)
        yield from ratios(times, baseline, {f"{name}, {loss}": asked(name, loss) for name in NAMES})


@benchmark("Memory kept by head and loss for the backward pass")
def head_memory(quick: bool) -> Iterable[Row]:
    x, target = data(SHAPE)
    losses = {f"{name}, {loss}": own_loss(name, loss, target) for loss in ALONE for name in NAMES}
    for case, call in {**{f"torch's {k}": v for k, v in plain_losses(target).items()}, **losses}.items():
        kept: dict[int, int] = {}

        def keep(tensor: torch.Tensor, kept: dict[int, int] = kept) -> torch.Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            call(x)
        bound = ("<=", 12.1) if case in losses else None  # a few scalars beside the pixels
        yield counted(case, sum(kept.values()) / x.numel(), "bytes a pixel", bound)


@benchmark("A training step with head and loss, against a step with torch's own loss")
def head_in_step(quick: bool) -> Iterable[Row]:
    """The step of the default network is measured with torch's loss; in the same round, the losses alone, whose
    difference is added to it: that of two whole steps would be lost in their spread."""
    side = 64 if quick else SIDE
    x, target = data((BATCH, 1, side, side))
    network = smp.Unet("resnet18", encoder_weights=None, in_channels=3, classes=1)
    network.to(memory_format=MEMORY_FORMATS[memory_format("cpu", side, "unet")])
    optimizer, images = torch.optim.Adam(network.parameters()), torch.randn(BATCH, 3, side, side)
    for loss, plain in plain_losses(target).items():

        def step(plain: Loss = plain) -> None:
            optimizer.zero_grad()
            plain(network(images)).backward()
            optimizer.step()

        calls = {name: step_of(own_loss(name, loss, target), x) for name in NAMES}
        times = in_turns({"step": step, "plain": step_of(plain, x), **calls}, 2 if quick else 20)
        for name in NAMES:
            rounds = zip(times[name], times["plain"], times["step"], strict=True)
            each = [1 + (mine - base) / whole for mine, base, whole in rounds]
            low, middle, high = statistics.quantiles(each, n=4, method="inclusive")
            yield Row(f"{name}, {loss}", middle, low, high, "x", f"step with torch's {loss}", ("<=", 1.03), len(each))


@benchmark("Head and loss on a GPU, as they are and compiled")
def head_on_gpu(quick: bool) -> Iterable[Row]:
    """16 x 1 x 512 x 512; no rows without a GPU."""
    if not torch.cuda.is_available():
        return
    x, target = data((16, 1, 512, 512), "cuda")
    for loss, plain in plain_losses(target).items():
        baseline = f"torch's {loss}"
        for name in NAMES[:3] if quick else NAMES:
            torch._dynamo.reset()  # it compiles few variants of one function
            own, compiled = own_loss(name, loss, target), f"{name}, {loss}, compiled"
            calls = {baseline: step_of(plain, x), f"{name}, {loss}": step_of(own, x)}
            calls[compiled] = step_of(torch.compile(own, fullgraph=True), x)
            rounds, bound = 3 if quick else 50, {compiled: ("<=", 1.2)}
            yield from ratios(in_turns(calls, rounds, "cuda", 3), baseline, bound)
            on_card = in_turns(calls, 3 if quick else 11, "cuda", 1, seconds_on_card)
            for row in ratios(on_card, baseline, bound):
                yield dataclasses.replace(row, case=f"{row.case}, kernels alone")
