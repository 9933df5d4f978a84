"""Backward passes in closed form: right in every layout and type, and keeping at most 8 bytes an element."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from segexp.activations import blocks
from segexp.activations.hidden import function_names, make_hidden, pointwise
from segexp.activations.hidden.elementwise import Pointwise
from segexp.commands.bench import saved_bytes

TWICE = [n for n in function_names() if getattr(make_hidden(n, {}), "_gradient", None) is not None]
SLOPED = [n for n in function_names() if getattr(make_hidden(n, {}), "_with_slopes", None) is not None]
CLOSED = TWICE + SLOPED
LEARNED = {
    "star_relu": ["scale", "bias"],
    "xielu": ["raw_p", "raw_n"],
    "rational": ["numerator", "denominator"],
    "swish_beta": ["beta"],
    "snake": ["a"],
}
"""Names of parameters in checkpoints."""


def made(name: str, **options: Any) -> Any:
    return make_hidden(name, options)


def plain(module: Any, x: torch.Tensor) -> torch.Tensor:
    """The same function through autograd's own operations."""
    constants = list(module.parameters())
    return module._function(x, *(module._prepare(*constants) if module._prepare else constants))


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return 2.5 * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradients(y: torch.Tensor, x: torch.Tensor, module: torch.nn.Module, g: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(y, [x, *module.parameters()], g))


def test_those_that_were_slow_have_one() -> None:
    slow = {"hard_mish", "squareplus", "golu", "telu", "med_relu", "xielu", "inverse_square_root", "snake", "rational"}
    assert slow <= set(CLOSED)
    assert {n: [*made(n).state_dict()] for n in CLOSED if made(n).state_dict()} == LEARNED


@pytest.mark.parametrize("name", CLOSED)
def test_first_and_second_derivative(name: str) -> None:
    module = made(name).double()
    x = random(7).requires_grad_()

    def f(x: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        names = [n for n, _ in module.named_parameters()]
        return torch.func.functional_call(module, dict(zip(names, parameters, strict=True)), (x,))

    inputs = (x, *(p.detach().clone().requires_grad_() for p in module.parameters()))
    assert torch.autograd.gradcheck(f, inputs)
    if name in TWICE:
        assert torch.autograd.gradgradcheck(f, inputs)
    else:
        (slope,) = torch.autograd.grad(module(x).sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="second derivative"):
            slope.sum().backward()


@pytest.mark.parametrize("name", TWICE)
def test_the_slope_at_zero_is_the_same_where_it_is_differentiated_again(name: str) -> None:
    """Zeros are common in images; relu and abs have no slope there that a sum of both could use."""
    x = torch.zeros(3, requires_grad=True)
    module = made(name)
    once, again = (torch.autograd.grad(module(x).sum(), x, create_graph=more)[0] for more in (False, True))
    torch.testing.assert_close(once, again)


def test_a_ripple_of_no_frequency() -> None:
    """f is x where a is 0, and its gradient to a the sum of x^2."""
    module = made("snake")
    torch.nn.init.zeros_(module.a)
    x = random(50).float().requires_grad_()
    y = module(x)
    slope, of_a = gradients(y, x, module, torch.ones_like(x))
    assert torch.equal(y, x)
    assert torch.equal(slope, torch.ones_like(x))
    torch.testing.assert_close(of_a, x.square().sum())


@pytest.mark.parametrize("name", CLOSED)
def test_pieces_and_layouts_change_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Float32 in pieces against autograd in float64; the gradient of the output in its own layout."""
    monkeypatch.setattr(blocks, "BLOCK", 1024)
    module, exact = made(name), made(name).double()
    base, g = random(4, 6, 20, 31), random(4, 6, 20, 31, seed=1)
    last = torch.channels_last
    for x, g_ in ((base, g), (base.to(memory_format=last), g), (base[..., ::2], g[..., ::2]), (base, g[:1, :1])):
        along = g_.expand_as(x)
        wanted_x, x_ = x.clone().requires_grad_(), x.float().requires_grad_()
        wanted, y = plain(exact, wanted_x), module(x_)
        torch.testing.assert_close(y.double(), wanted, rtol=1e-5, atol=2e-6)
        assert y.is_contiguous(memory_format=last) == x_.is_contiguous(memory_format=last)
        g32, before = along.float(), along.float().clone()
        of_x, *of_parameters = gradients(y, x_, module, g32)
        assert torch.equal(g32, before)
        assert torch.equal(x_, x.float())
        true_x, *true_parameters = gradients(wanted, wanted_x, exact, along)
        torch.testing.assert_close(of_x.double(), true_x, rtol=1e-5, atol=1e-5)
        for found, true in zip(of_parameters, true_parameters, strict=True):
            torch.testing.assert_close(found.double(), true, rtol=1e-5, atol=1e-5 * true.abs().max().item())


@pytest.mark.parametrize("name", CLOSED)
def test_only_the_input_or_the_slopes_are_kept(name: str) -> None:
    module = made(name)
    slopes = 1 if name in TWICE else 1 + len(list(module.parameters()))
    assert saved_bytes(module, torch.zeros(4, 8, 32, 32, requires_grad=True)) <= 4 * slopes + 0.01 <= 8.01


def test_the_page_names_those_of_each_kind(repository: Path) -> None:
    page = " ".join((repository / "docs" / "hidden.md").read_text(encoding="utf-8").split())
    stated = re.search(r"([\w, ]+) compute their backward pass.*?\. ([\w, ]+) keep their slopes instead", page)
    assert stated
    assert [set(re.split(", | and ", names.strip())) for names in stated.groups()] == [set(TWICE), set(SLOPED)]


@pytest.mark.parametrize("name", CLOSED)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_float32_rounded(name: str, dtype: torch.dtype) -> None:
    module = made(name)
    x = random(200).to(dtype)
    half, single = x.clone().requires_grad_(), x.float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = module(half)
        found = gradients(y.float().sum(), half, module, torch.ones(()))
    true = gradients(module(single).sum(), single, module, torch.ones(()))
    assert torch.equal(y, module(single).to(dtype))
    assert torch.equal(found[0], true[0].to(dtype))
    for a, b in zip(found[1:], true[1:], strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", CLOSED)
def test_inference_gives_the_same_values(name: str) -> None:
    module, x = made(name), random(3, 4, 5, 6).float()
    wanted = module(x.requires_grad_()).detach()
    with torch.inference_mode():
        assert torch.equal(module(x), wanted)


def test_mapped_over_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK", 4)
    module, x = made("snake"), random(3, 10).float()
    assert torch.equal(torch.func.vmap(module)(x), module(x))
    slope = torch.func.vmap(torch.func.grad(lambda row: module(row).sum()))(x)
    torch.testing.assert_close(slope, 1 + (2 * x).sin())


@pytest.mark.parametrize("name", ["swish_beta", "xielu", "snake", "rational"])
def test_mapped_over_the_parameters_of_several_networks(name: str) -> None:
    modules, x = [made(name) for _ in range(2)], random(2, 3, 4, 4).float()
    stacked, _ = torch.func.stack_module_state(modules)
    with torch.no_grad():
        for values in stacked.values():
            values[1] += 0.1
    module = modules[0]

    def total(parameters: Any) -> torch.Tensor:
        y: torch.Tensor = torch.func.functional_call(module, parameters, (x,))
        return (y * y).sum()

    slopes = torch.func.vmap(torch.func.grad(total))(stacked)
    for n in range(2):
        alone = torch.func.grad(total)({key: values[n] for key, values in stacked.items()})
        for key, slope in alone.items():
            torch.testing.assert_close(slopes[key][n], slope, rtol=1e-4, atol=1e-4)


def test_exported_with_plain_operators_and_any_size() -> None:
    module, x = made("hard_mish").eval(), random(2, 3, 5, 6).float()
    with torch.no_grad():
        program = torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim("n")},), strict=False)
        more = random(5, 3, 5, 6).float()
        assert torch.equal(program.module()(more), module(more))
    assert all("aten" in str(node.target) for node in program.graph.nodes if node.op == "call_function")


@pytest.mark.parametrize("name", ["xielu", "snake"])
def test_compiled_whole_with_plain_operators(name: str) -> None:
    """A compiler sees one graph without breaks; its gradients are those of the closed form."""
    module = made(name)
    x, y_ = random(40).float().requires_grad_(), random(40).float().requires_grad_()
    compiled = torch.compile(module, fullgraph=True, backend="eager")
    found, true = (gradients(m(v).sum(), v, module, torch.ones(())) for m, v in ((compiled, x), (module, y_)))
    for a, b in zip(found, true, strict=True):
        torch.testing.assert_close(a, b)


def test_without_a_gradient_autograd_follows_the_function() -> None:
    module = pointwise(lambda x, gradient: gradient * x, gradient=2.0)
    assert isinstance(module, Pointwise)
    x = random(5).float().requires_grad_()
    of_x, of_a = gradients(module(x).sum(), x, module, torch.ones(()))
    assert torch.equal(of_x, torch.full_like(x, 2))
    torch.testing.assert_close(of_a, x.sum())
