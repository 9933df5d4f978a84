"""What every data set gives the rest of segexp: an `ImageSet`, opened by an adapter.

An adapter is a function ``open(config) -> ImageSet`` put into `ADAPTERS` by the `adapter` decorator; its
configuration dataclass stands beside it. Adapters know files and pixels, never networks or splits by seed.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from segexp.catalogue import REQUIRED, Catalogue

if TYPE_CHECKING:
    import numpy as np

SPLITS = ("train", "val", "test")


@dataclass
class DatasetConfig:
    """Options that every data set has; an adapter's own dataclass inherits them and adds its own.

    Types stand here, values and their explanation in configs/dataset/*.yaml.
    """

    adapter: str = REQUIRED
    name: str | None = REQUIRED
    num_classes: int = REQUIRED
    image_size: int | None = REQUIRED
    fit: str = REQUIRED
    surface_tolerance: float = REQUIRED
    spacing: list[float] | None = REQUIRED


@dataclass(frozen=True)
class Pair:
    """One image and its reference mask at native resolution.

    image_HWC: uint8 or uint16, 1 to 7 channels. mask_HW: uint8, class index 0..C-1 or `segexp.targets.IGNORE`.
    """

    image_HWC: "np.ndarray"
    mask_HW: "np.ndarray"


@dataclass(frozen=True)
class ImageSet:
    """A data set before it is split: names, groups and a way to read pair i.

    image_ids are unique and sorted, so that every machine sees the same order. group_ids names the patient,
    volume or video of each image ("" = none known). declared_split maps image ids to "train", "val" or "test"
    where the data set comes with split files; None where it does not. notes: what the user should be told, a line each.
    ``read(i)`` decodes pair i (raises `PairError` when it cannot be used) and ``file_bytes(i)`` yields what the
    fingerprint hashes for pair i.
    """

    image_ids: tuple[str, ...]
    group_ids: tuple[str, ...]
    channels: int
    num_classes: int
    read: Callable[[int], Pair] = field(repr=False)
    file_bytes: Callable[[int], Iterable[bytes]] = field(repr=False)
    declared_split: Mapping[str, str] | None = None
    location: str = ""
    notes: tuple[str, ...] = ()


class PairError(Exception):
    """One image or mask cannot be used; the message names the file and the reason, not the cure."""


@dataclass(frozen=True)
class Adapter:
    """A way of reading data sets: ``open`` takes an instance of the ``config`` dataclass."""

    name: str
    config: type
    open: Callable[[Any], ImageSet]
    summary: str


ADAPTERS: Catalogue[Adapter] = Catalogue("dataset")


def adapter(name: str, config: type) -> Callable[[Callable[[Any], ImageSet]], Callable[[Any], ImageSet]]:
    """Decorator: the function opens data sets described by ``config``; its docstring's first line is listed."""

    def put(function: Callable[[Any], ImageSet]) -> Callable[[Any], ImageSet]:
        summary = (function.__doc__ or "").strip().splitlines()[0]
        ADAPTERS.add(name, Adapter(name, config, function, summary))
        return function

    return put


def fingerprint(image_set: ImageSet) -> str:
    """SHA-256 (hex) over the names and bytes of every pair, in the order of the names."""
    total = hashlib.sha256()
    for index, image_id in enumerate(image_set.image_ids):
        one = hashlib.sha256()
        for chunk in image_set.file_bytes(index):
            one.update(chunk)
        total.update(image_id.encode() + b"\0" + one.digest())
    return total.hexdigest()
