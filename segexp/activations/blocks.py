"""Chains of element-wise operations in pieces that stay in a CPU's cache."""

from collections.abc import Callable

import torch

BLOCK = 2**16
"""Elements per thread of a piece: its few temporaries fit a cache of 1 MB. A multiple of every vector width, so that
each element is computed by the same instructions as without pieces."""


def in_blocks(function: Callable[..., tuple[torch.Tensor, ...]], *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """function(*tensors) of an element-wise function of tensors of one shape, in the memory order of the first.

    On a CPU it is called on 1-D pieces of them; elsewhere, while compiling, and where autograd follows, once. The
    values do not depend on this.
    """
    first = tensors[0]
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or first.device.type != "cpu":
        return function(*tensors)
    size = BLOCK * torch.get_num_threads()  # the compiler must not meet this call
    if first.numel() <= size:
        return function(*tensors)
    order = sorted(range(first.dim()), key=first.stride, reverse=True)
    pieces = zip(*(t.permute(order).reshape(-1).split(size) for t in tensors), strict=True)
    joined: list[torch.Tensor] = []
    for number, piece in enumerate(pieces):
        found = function(*piece)
        joined = joined or [part.new_empty(first.numel()) for part in found]
        for whole, part in zip(joined, found, strict=True):
            whole[number * size : (number + 1) * size] = part  # copied while it is in the cache
    shape, back = [first.shape[d] for d in order], [order.index(d) for d in range(first.dim())]
    return tuple(whole.view(shape).permute(back) for whole in joined)
