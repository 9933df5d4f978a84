"""Log-odds with a closed derivative: the same gradients in every way of asking for them, and little memory."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch

from segexp.activations import blocks
from segexp.activations.head import LearnedOptions, make_head
from segexp.activations.output import OUTPUT_ACTIVATIONS, ClosedForm, HeadMode, OutputActivation
from segexp.losses import LOSSES

CLOSED = [name for name, entry in OUTPUT_ACTIVATIONS.items() if isinstance(entry.log_odds, ClosedForm)]
BINARY = [name for name, e in OUTPUT_ACTIVATIONS.items() if e.log_odds is not None and "binary" in e.modes]


def phi_of(name: str) -> Callable[..., torch.Tensor]:
    phi = OUTPUT_ACTIVATIONS[name].log_odds
    assert phi is not None
    return phi


def logits(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return 3 * torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


def slope_of(function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(function(leaf).sum(), leaf)[0]


def kept_bytes(run: Callable[[], torch.Tensor]) -> int:
    """Of the storages that a call keeps for the backward pass, each once."""
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run()
    return sum(kept.values())


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")  # forward mode scripts its decompositions
@pytest.mark.parametrize("name", CLOSED)
def test_every_way_of_asking_gives_the_same_derivative(name: str) -> None:
    """autograd, `torch.func`, forward mode (of the plain operators), and differences."""
    phi, x = phi_of(name), logits(2, 16, dtype=torch.float64)  # rows of whole vectors on every CPU
    slope = slope_of(phi, x)
    assert torch.equal(torch.func.grad(lambda v: phi(v).sum())(x), slope)
    assert torch.equal(torch.func.vmap(phi)(x), phi(x))
    assert torch.equal(torch.func.vmap(torch.func.grad(lambda v: phi(v).sum()))(x), slope)
    torch.testing.assert_close(torch.func.jvp(phi, (x,), (torch.full_like(x, 2.0),))[1], 2 * slope)
    assert torch.autograd.gradcheck(phi, x.requires_grad_())


@pytest.mark.parametrize("name", CLOSED)
def test_inference_uses_plain_operators_with_the_same_values(name: str) -> None:
    phi, x = phi_of(name), logits(1, 1, 4, 5).requires_grad_()
    value = phi(x)

    def head(x: torch.Tensor) -> torch.Tensor:
        return phi(x)

    for context in (torch.no_grad, torch.inference_mode):
        with context():
            assert torch.equal(phi(x), value)
    with warnings.catch_warnings(action="ignore"):  # numbers become constants of the graph
        graph = str(torch.jit.trace(head, x).graph)
    assert "aten::" in graph
    assert "Applied" not in graph


@pytest.mark.parametrize("name", ["arctan", "normal_cdf", "learned_tail", "cloglog"])
def test_pieces_change_neither_value_nor_gradient(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = logits(2, 3, 16, 32).to(memory_format=torch.channels_last)
    value, slope = phi_of(name)(x), slope_of(phi_of(name), x)
    monkeypatch.setattr(blocks, "BLOCK", 256)
    assert torch.equal(phi_of(name)(x), value)
    assert torch.equal(slope_of(phi_of(name), x), slope)


@pytest.mark.parametrize("loss", ["ce", "dice"])
@pytest.mark.parametrize("name", BINARY)
def test_head_and_loss_keep_at_most_12_bytes_a_pixel(name: str, loss: str) -> None:
    """In a step of training, with learned options where there are any; scalars beside them."""
    entry, x = OUTPUT_ACTIVATIONS[name], logits(2, 1, 64, 64).requires_grad_()
    head = make_head(entry, "binary", learned=LearnedOptions(entry, {}) if entry.learnable else None)
    target = (x.detach()[:, 0] > 0).long()
    assert kept_bytes(lambda: LOSSES[loss].function(head(x), target)) <= 12 * x.numel() + 500


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # the compiler of older torch
@pytest.mark.parametrize(
    ("name", "mode"),
    [("arctan", "binary"), ("learned_tail", "binary"), ("minmax_linear", "binary"), ("cloglog", "softmax")],
)
@pytest.mark.parametrize("loss", ["ce", "dice"])
def test_head_and_loss_compile_to_one_graph(name: str, mode: HeadMode, loss: str) -> None:
    head, x = make_head(OUTPUT_ACTIVATIONS[name], mode), logits(2, 3 if mode == "softmax" else 1, 8, 8)
    target = torch.arange(128).reshape(2, 8, 8) % 2

    def value(x: torch.Tensor) -> torch.Tensor:
        return LOSSES[loss].function(head(x), target)

    torch._dynamo.reset()
    compiled = torch.compile(value, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), value(x))
    torch.testing.assert_close(slope_of(compiled, x), slope_of(value, x))


def test_options_that_are_tensors_have_the_gradient_that_is_stated() -> None:
    def steep(x: torch.Tensor, *, steepness: Any = 3.0) -> torch.Tensor:
        return steepness**2 * x

    def stated(x: torch.Tensor, steepness: Any = 3.0) -> Any:
        return steepness**2 * torch.ones_like(x), {"steepness": 2 * steepness * x}

    entry = OutputActivation("steep", steep, "", "", "", 1.0, "", derivative=stated)
    x, steepness = torch.ones(3, requires_grad=True), torch.tensor(2.0, requires_grad=True)
    assert entry.log_odds is not None
    of_x, of_option = torch.autograd.grad(
        entry.log_odds(x, steepness=steepness).sum(), (x, steepness), create_graph=True
    )
    assert (of_x.tolist(), of_option.item()) == ([4, 4, 4], 12)
    assert torch.autograd.grad(of_option, steepness)[0].item() == 6
