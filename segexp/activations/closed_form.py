"""Log-odds with a derivative in closed form, as one operation of automatic differentiation."""

import functools
from collections.abc import Mapping
from typing import Any

import torch

from segexp.activations.blocks import in_blocks
from segexp.activations.output import ClosedForm


def applied(phi: ClosedForm, x: torch.Tensor, options: Mapping[str, Any]) -> torch.Tensor:
    """phi(x): as plain operators where no gradient is asked for, as in inference, or a graph is written to a file."""
    tensors = {name: value for name, value in options.items() if isinstance(value, torch.Tensor)}
    plain = torch.jit.is_tracing() or not torch.is_grad_enabled()  # type: ignore[attr-defined]
    if compiling := torch.compiler.is_compiling():  # which knows neither forward mode nor a call without a gradient
        plain = plain or not any(tensor.requires_grad for tensor in (x, *tensors.values()))
    if plain or not tensors.keys() <= phi.of_options.keys():
        return phi.value(x, **options)
    fixed = {name: value for name, value in options.items() if name not in tensors}
    operation = _Applied if compiling else _WithForwardMode
    return operation.apply(phi, fixed, tuple(tensors), x, *tensors.values())


class _Applied(torch.autograd.Function):
    """Keeps x alone for the backward pass. tensors: the options called ``names``, scalars."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        phi: ClosedForm, fixed: dict[str, Any], names: tuple[str, ...], x: torch.Tensor, *tensors: torch.Tensor
    ) -> torch.Tensor:
        return in_blocks(functools.partial(phi.value, **fixed, **dict(zip(names, tensors, strict=True))), x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        phi, ctx.fixed, ctx.names, *saved = inputs
        ctx.derivatives = (phi.derivative, *(phi.of_options[name] for name in ctx.names))
        ctx.save_for_backward(*saved)
        ctx.save_for_forward(*saved)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, *tensors = ctx.saved_tensors
        options = {**ctx.fixed, **dict(zip(ctx.names, tensors, strict=True))}
        found: list[torch.Tensor | None] = [None, None, None]
        for derivative, needed in zip(ctx.derivatives, ctx.needs_input_grad[3:], strict=True):
            times = in_blocks(lambda g, v, d=derivative: g * d(v, **options), gradient, x) if needed else None
            found.append(times if times is None or len(found) == 3 else times.sum())
        return tuple(found)


class _WithForwardMode(_Applied):
    """The same with the forward mode of `torch.func`."""

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> torch.Tensor:
        x, *tensors = ctx.saved_tensors
        options = {**ctx.fixed, **dict(zip(ctx.names, tensors, strict=True))}
        pairs = zip(ctx.derivatives, tangents[3:], strict=True)
        parts = [tangent * derivative(x, **options) for derivative, tangent in pairs if tangent is not None]
        return torch.stack(parts).sum(0)
