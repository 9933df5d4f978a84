"""Functions with a derivative in closed form, as one operation of automatic differentiation."""

from collections.abc import Callable, Mapping
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

    def value(x: torch.Tensor, *learned: torch.Tensor) -> torch.Tensor:
        return phi.value(x, **{**options, **dict(zip(tensors, learned, strict=True))})

    def slopes(x: torch.Tensor, *learned: torch.Tensor) -> list[torch.Tensor]:
        found = phi.derivative(x, **{**options, **dict(zip(tensors, learned, strict=True))})
        of_x, of_options = found if isinstance(found, tuple) else (found, {})
        return [of_x, *(of_options[name] for name in tensors)]

    inputs = (x, *tensors.values())
    if torch.compiler.is_compiling():
        # Of operators alone, each input in a difference that is 0: PyTorch 2.11 compiles `Applied` to something without
        # a gradient, and says nothing.
        fixed = [tensor.detach() for tensor in inputs]
        differences = (slope * (now - then) for slope, now, then in zip(slopes(*fixed), inputs, fixed, strict=True))
        return sum(differences, value(*fixed))

    # Quoted, because the compiler of older torch does not follow the type of a tuple.
    def gradient(g: torch.Tensor, x: torch.Tensor, *learned: torch.Tensor) -> "tuple[torch.Tensor, ...]":
        of_x, *of_options = slopes(x, *learned)
        return g * of_x, *((g * slope).sum() for slope in of_options)

    result: torch.Tensor = Applied.apply(value, gradient, True, *inputs)
    return result


class Applied(torch.autograd.Function):
    """value(x, *constants), element by element in float32 or better, which keeps its tensors alone.

    gradient: (g, x, *constants) -> that of x, in a tuple followed by the sums of the constants' if there are any.
    twice: it can be differentiated in turn; else autograd differentiates ``value`` where this is asked for.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        value: Callable[..., torch.Tensor], gradient: Callable[..., Any], twice: bool, x: Any, *constants: Any
    ) -> torch.Tensor:
        return in_blocks(lambda x: (value(wide(x), *constants).to(x.dtype),), x)[0]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        ctx.value, ctx.gradient, ctx.twice, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, *constants = ctx.saved_tensors
        if torch.is_grad_enabled() and not ctx.twice:
            needed = [tensor for tensor in (x, *constants) if tensor.requires_grad]
            y = ctx.value(wide(x), *constants).to(x.dtype)
            each = iter(torch.autograd.grad(y, needed, g, create_graph=True))
            return None, None, None, *(next(each) if tensor.requires_grad else None for tensor in (x, *constants))
        sums = []

        def piece(x: torch.Tensor, g: torch.Tensor) -> tuple[torch.Tensor]:
            found = ctx.gradient(wide(g), wide(x), *constants)
            first, *others = found if isinstance(found, tuple) else (found,)
            sums.append(others)
            return (first.to(x.dtype),)

        with torch.autocast(x.device.type, enabled=False):
            (of_x,) = in_blocks(piece, x, g)
        return None, None, None, of_x, *(torch.stack(part).sum(0) for part in zip(*sums, strict=True))


class Sloped(torch.autograd.Function):
    """f(x, *parameters) of scalar parameters, element by element in float32 or better, which keeps its slopes alone.

    sloped: (x, *parameters) -> f, f' and the slope along each parameter. What they share is computed once, at the cost
    of the second derivative, which is refused with a RuntimeError.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(sloped: Callable[..., tuple[torch.Tensor, ...]], x: Any, *parameters: Any) -> Any:
        def piece(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            f, *slopes = sloped(wide(x), *parameters)
            return f.to(x.dtype), *slopes

        return in_blocks(piece, x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
        ctx.dtype = output[0].dtype
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*output[1:])

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor | None, *of_slopes: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        if any(part is not None for part in of_slopes):  # the slopes are outputs, so that autograd comes here
            raise RuntimeError("this hidden activation has no second derivative: differentiate once")
        if g is None:
            return (None,) * (1 + len(ctx.saved_tensors))
        sums = []

        def piece(of_x: torch.Tensor, g: torch.Tensor, *others: torch.Tensor) -> tuple[torch.Tensor]:
            sums.append([(g * slope).sum() for slope in others])
            return ((g * of_x).to(ctx.dtype),)

        of_x, *others = ctx.saved_tensors
        with torch.autocast(g.device.type, enabled=False):
            (of_x,) = in_blocks(piece, of_x, g, *others)
        return None, of_x, *(torch.stack(part).sum(0) for part in zip(*sums, strict=True))


def wide(x: torch.Tensor) -> torch.Tensor:
    """x in float32 or better."""
    return x if x.element_size() >= 4 else x.float()
