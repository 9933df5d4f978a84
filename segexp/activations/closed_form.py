"""Log-odds with a derivative in closed form, as one operation of automatic differentiation."""

from collections.abc import Mapping
from typing import Any

import torch

from segexp.activations.blocks import in_blocks
from segexp.activations.output import ClosedForm


def applied(phi: ClosedForm, x: torch.Tensor, options: Mapping[str, Any]) -> torch.Tensor:
    """phi(x): plain operators where no gradient is asked for, as in inference, or a graph is written to a file."""
    tensors = {name: value for name, value in options.items() if isinstance(value, torch.Tensor)}
    trained = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, *tensors.values()))
    if not trained or torch.jit.is_tracing():  # type: ignore[attr-defined]
        return phi.value(x, **options)
    fixed = {name: value for name, value in options.items() if name not in tensors}
    result: torch.Tensor = _Applied.apply(phi, fixed, tuple(tensors), x, *tensors.values())
    return result


class _Applied(torch.autograd.Function):
    """Keeps x alone for the backward pass. tensors: the options called ``names``, scalars."""

    generate_vmap_rule = True

    @staticmethod
    def forward(phi: ClosedForm, fixed: dict[str, Any], names: tuple[str, ...], x: Any, *tensors: Any) -> torch.Tensor:
        options = {**fixed, **dict(zip(names, tensors, strict=True))}
        return in_blocks(lambda v: phi.value(v, **options), x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        ctx.phi, ctx.fixed, ctx.names, *saved = inputs
        ctx.save_for_backward(*saved)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, *tensors = ctx.saved_tensors
        options, sums = {**ctx.fixed, **dict(zip(ctx.names, tensors, strict=True))}, []

        def piece(g: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            found = ctx.phi.derivative(v, **options)
            of_x, of_options = found if isinstance(found, tuple) else (found, {})
            sums.append([(g * of_options[name]).sum() for name in ctx.names])
            return g * of_x

        of_x = in_blocks(piece, gradient, x)
        return None, None, None, of_x, *(torch.stack(part).sum() for part in zip(*sums, strict=True))
