"""The module of hidden activations that are one function of a tensor, with a backward pass in closed form."""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from segexp.activations.blocks import in_blocks

Function = Callable[..., torch.Tensor]

Gradient = Callable[..., torch.Tensor | tuple[torch.Tensor, ...]]

Prepare = Callable[..., tuple[torch.Tensor, ...]]


class Pointwise(torch.nn.Module):
    """Applies ``function``; see `pointwise`."""

    def __init__(
        self, function: Function, gradient: Gradient | None, prepare: Prepare | None, learnable: Mapping[str, Any]
    ) -> None:
        super().__init__()
        self._function, self._gradient, self._prepare = function, gradient, prepare
        for name, value in learnable.items():
            self.register_parameter(name, torch.nn.Parameter(torch.tensor(value, dtype=torch.float32)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self._gradient is None:
            return self._function(x, **self._parameters)
        constants = [parameter.to(wide(x).dtype) for parameter in self.parameters()]
        if self._prepare is not None:
            constants = [*self._prepare(*constants)]
        if torch.compiler.is_compiling():  # a compiler fuses, an export needs operators
            return self._function(wide(x), *constants).to(x.dtype)
        y: torch.Tensor = _ClosedForm.apply(self._function, self._gradient, x, *constants)
        return y

    def extra_repr(self) -> str:
        return getattr(self._function, "__qualname__", "").split(".")[0]


def wide(x: torch.Tensor) -> torch.Tensor:
    """x in float32 or better."""
    return x if x.element_size() >= 4 else x.float()


class _ClosedForm(torch.autograd.Function):
    """y = function(x, *constants), which keeps its input alone. Its gradient can be differentiated again."""

    generate_vmap_rule = True

    @staticmethod
    def forward(function: Function, gradient: Gradient, x: torch.Tensor, *constants: torch.Tensor) -> torch.Tensor:
        return in_blocks(lambda x: function(wide(x), *constants).to(x.dtype), x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        ctx.function, ctx.gradient, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, *constants = ctx.saved_tensors
        if torch.is_grad_enabled():  # it will be differentiated itself, which autograd does
            needed = [tensor for tensor in (x, *constants) if tensor.requires_grad]
            y = ctx.function(wide(x), *constants).to(x.dtype)
            found = iter(torch.autograd.grad(y, needed, g, create_graph=True))
            return None, None, *(next(found) if tensor.requires_grad else None for tensor in (x, *constants))
        sums = []

        def piece(x: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
            found = ctx.gradient(wide(g), wide(x), *constants)
            first, *others = found if isinstance(found, tuple) else (found,)
            sums.append(others)
            return first.to(x.dtype)

        return None, None, in_blocks(piece, x, g), *(torch.stack(part).sum(0) for part in zip(*sums, strict=True))
