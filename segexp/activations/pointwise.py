"""Hidden activations that torch has no module for: a function of each element, with or without learned parameters."""

from collections.abc import Callable, Sequence

import torch


class Pointwise(torch.nn.Module):
    """``function(x, **parameters)``, element by element; ``learnable`` gives the parameters their first values.

    Each call site of a network has a module, and so parameters, of its own.
    """

    def __init__(self, function: Callable[..., torch.Tensor], **learnable: float | Sequence[float]) -> None:
        super().__init__()
        self.function = function
        self.names = tuple(learnable)
        for name, value in learnable.items():
            self.register_parameter(name, torch.nn.Parameter(torch.tensor(value, dtype=torch.float32)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Values of the shape and type of x."""
        return self.function(x, **{name: getattr(self, name) for name in self.names})

    def extra_repr(self) -> str:
        """How the module prints itself."""
        return getattr(self.function, "__qualname__", "").split(".")[0]
