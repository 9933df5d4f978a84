"""Data sets: one adapter per module, checks, splits, augmentation and batches; and every source of random numbers.

Every random number comes from a generator made here, named by its purpose; there is no global random state. Streams of
different names are independent. A run therefore draws the same initial weights, batch order and augmentation whatever
else it computes, which makes runs of different activations comparable in pairs.
"""

import functools
import hashlib
import importlib
import random
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
def seeded(seed: int, stream: str, *keys: object, device: "torch.device | None" = None) -> Iterator[None]:
    """Seeds the global generators of torch, NumPy and Python, for libraries and plugins, and restores them afterwards.

    device: its generator is seeded too, if it is a CUDA device.
    """
    import numpy as np
    import torch

    derived = stream_seed(seed, stream, *keys)
    devices = [device.index or 0] if device is not None and device.type == "cuda" else []
    of_python, of_numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=devices):
            torch.default_generator.manual_seed(derived)
            for index in devices:
                torch.cuda.default_generators[index].manual_seed(derived)
            random.seed(derived)
            np.random.seed(derived % 2**32)  # noqa: NPY002
            yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)  # noqa: NPY002
