"""Every random number comes from a generator made here, named by its purpose; there is no global random state.

Streams of different names are independent. A run therefore draws the same initial weights, batch order and augmentation
whatever else it computes, which makes runs of different activations comparable in pairs.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def stream_seed(seed: int, stream: str, *keys: object) -> int:
    """A 63-bit seed for one named stream, e.g. ``stream_seed(0, "augment", epoch, image_id)``."""
    text = "/".join(map(str, (seed, stream, *keys)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def generator(seed: int, stream: str, *keys: object) -> "torch.Generator":
    """A new CPU generator for one named stream."""
    import torch

    return torch.Generator().manual_seed(stream_seed(seed, stream, *keys))


@contextmanager
def torch_seeded(seed: int, stream: str, *keys: object, devices: tuple[int, ...] = ()) -> Iterator[None]:
    """Seeds torch's global generators, for library code that draws from them, and restores them afterwards.

    devices: indices of the CUDA devices whose generators are seeded too.
    """
    import torch

    with torch.random.fork_rng(devices=devices):
        derived = stream_seed(seed, stream, *keys)
        torch.default_generator.manual_seed(derived)
        for index in devices:
            torch.cuda.default_generators[index].manual_seed(derived)
        yield
