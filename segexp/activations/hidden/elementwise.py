"""The module of hidden activations that are one function of a tensor, with a backward pass in closed form."""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from segexp.activations.closed_form import Applied, Sloped, wide

Function = Callable[..., torch.Tensor]

Gradient = Callable[..., torch.Tensor | tuple[torch.Tensor, ...]]

Prepare = Callable[..., tuple[torch.Tensor, ...]]

WithSlopes = Callable[..., tuple[torch.Tensor, ...]]


class Pointwise(torch.nn.Module):
    """Applies ``function``; see `pointwise` and `sloped`."""

    def __init__(
        self,
        function: Function,
        gradient: Gradient | None,
        prepare: Prepare | None,
        learnable: Mapping[str, Any],
        with_slopes: WithSlopes | None = None,
    ) -> None:
        super().__init__()
        self._function, self._gradient, self._prepare, self._with_slopes = function, gradient, prepare, with_slopes
        for name, value in learnable.items():
            self.register_parameter(name, torch.nn.Parameter(torch.tensor(value, dtype=torch.float32)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self._gradient is self._with_slopes is None:
            return self._function(x, **self._parameters)
        constants = [parameter.to(wide(x).dtype) for parameter in self.parameters()]
        if self._prepare is not None:
            constants = [*self._prepare(*constants)]
        if torch.compiler.is_compiling():  # a compiler fuses, an export needs operators
            return self._function(wide(x), *constants).to(x.dtype)
        y: torch.Tensor
        if self._with_slopes is not None and torch.is_grad_enabled():
            y, *_ = Sloped.apply(self._with_slopes, x, *constants)
            return y
        y = Applied.apply(self._function, self._gradient, False, x, *constants)
        return y

    def extra_repr(self) -> str:
        return getattr(self._with_slopes or self._function, "__qualname__", "").split(".")[0]
