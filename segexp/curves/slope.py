"""The values of an activation function and its slope, for the figures of both kinds."""

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch


def with_slope(f: Callable[["torch.Tensor"], "torch.Tensor"], x: "torch.Tensor") -> tuple["np.ndarray", "np.ndarray"]:
    """Values of an elementwise f and their derivative, by autograd."""
    import torch

    leaf = x.clone().requires_grad_()
    y = f(leaf)
    (slope,) = torch.autograd.grad(y.sum(), leaf)
    return y.detach().numpy(), slope.numpy()
