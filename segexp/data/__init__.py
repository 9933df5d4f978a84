"""Data sets: one adapter per file, checks, splits, augmentation and batches."""

from segexp.data.image_set import ADAPTERS, Adapter
from segexp.registry import Registry


def adapters() -> Registry[Adapter]:
    """The registry of adapters, filled by importing each adapter's file. Imports neither numpy nor torch."""
    import segexp.data.folder
    import segexp.data.lesions  # noqa: F401

    return ADAPTERS
