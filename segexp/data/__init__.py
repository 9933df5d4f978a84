"""Data sets: one adapter per module, checks, splits, augmentation and batches; and every source of random numbers.

Every random number comes from a generator made here, named by its purpose; there is no global random state. Streams of
different names are independent. A run therefore draws the same initial weights, batch order and augmentation whatever
else it computes, which makes runs of different activations comparable in pairs.
"""

import functools
import hashlib
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from segexp.data.image_set import ADAPTERS, Adapter
from segexp.registry import Registry

if TYPE_CHECKING:
    import torch


@functools.cache
def adapters() -> Registry[Adapter]:
    """The registry of adapters, filled by importing every module here that uses `@adapter`. No numpy, no torch."""
    for path in sorted(Path(__file__).parent.glob("*.py")):
        if "\n@adapter(" in path.read_text(encoding="utf-8"):
            importlib.import_module(f"{__name__}.{path.stem}")
    return ADAPTERS


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
