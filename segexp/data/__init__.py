"""Data sets: one adapter per module, checks, splits, augmentation and batches."""

import functools
import importlib
from pathlib import Path

from segexp.data.image_set import ADAPTERS, Adapter
from segexp.registry import Registry


@functools.cache
def adapters() -> Registry[Adapter]:
    """The registry of adapters, filled by importing every module here that uses `@adapter`. No numpy, no torch."""
    for path in sorted(Path(__file__).parent.glob("*.py")):
        if "\n@adapter(" in path.read_text(encoding="utf-8"):
            importlib.import_module(f"{__name__}.{path.stem}")
    return ADAPTERS
