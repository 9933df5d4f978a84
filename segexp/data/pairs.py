"""Data sets that are Python objects: the pairs (image, mask) that a function of the user's returns."""

import hashlib
import itertools
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from segexp.data.codings import MaskCoding
from segexp.data.image_set import DatasetConfig, ImageError, ImageSet, Pair
from segexp.data.pixels import pair_of
from segexp.data.rasters import MAX_CHANNELS
from segexp.errors import DataChangedError, UsageError
from segexp.losses import IGNORE
from segexp.records.process import heed_interrupts

FORMS = "(image, mask), (image, mask, name) or (image, mask, name, group)"


@dataclass(frozen=True)
class _Item:
    """What was found at a position: name ("" for none) and group, and the hash of image and mask."""

    name: str
    group: str
    digest: bytes


@dataclass(frozen=True)
class _Raw:
    """A pair as it was returned, (H, W) or three dimensions, and mask; tensor: of torch, so that channels are first."""

    pixels: np.ndarray
    mask: np.ndarray
    tensor: bool
    words: tuple[Any, ...]

    @property
    def item(self) -> _Item:
        """Integers of any type may hold the class numbers; the order of dimensions does not matter."""
        total = hashlib.sha256()
        image = self.pixels[..., np.newaxis] if self.pixels.ndim == 2 else self.pixels
        image = np.moveaxis(image, 0, -1) if self.tensor and self.pixels.ndim == 3 else image
        for array in (image, self.mask.astype(np.int64) if self.mask.dtype.kind in "biu" else self.mask):
            total.update(f"{array.dtype.str}{array.shape}".encode() + np.ascontiguousarray(array).tobytes())
        name, group, *_ = (*map(_word, self.words), "", "")
        return _Item(name, group, total.digest())


def image_set_of(
    found: Any, config: DatasetConfig, where: str, running: Callable[[str], AbstractContextManager[None]]
) -> ImageSet:
    """The image set of an object with len() and [i], or of an iterable, whose items are read into memory.

    An item is one of `FORMS`. image: an array (H, W) or (H, W, C), or a torch tensor (H, W) or (C, H, W), of 1 to 32
    channels, the same number in all. mask: (H, W), class numbers, `segexp.losses.IGNORE` where a pixel does not count.
    All items are read once, for their names and the hash of their content, and must be the same when they are read
    again. where: for messages. running: a block in which the user's code runs. Raises UsageError.
    """
    raw, number = _reader(found, where, running)
    items, channels = _items(raw, number, config.num_classes, where)
    order = sorted(range(number), key=lambda n: items[n].name)
    coding = MaskCoding("index", config.num_classes, ignore=IGNORE)

    def read(index: int) -> Pair:
        item, pair = items[order[index]], raw(order[index])
        if pair.item.digest != item.digest:
            raise DataChangedError(f"{where}: {item.name} differs each time it is read: augment with augment=...")
        try:
            image_HWC = _oriented(pair)
        except ValueError as error:
            raise ImageError(f"{item.name}: {error}") from None
        if image_HWC.shape[2] != channels:
            raise ImageError(f"{item.name}: {image_HWC.shape[2]} channels, but the first pair has {channels}")
        return pair_of(item.name, image_HWC, pair.mask, channels, coding)

    content = hashlib.sha256(b"".join(items[n].name.encode() + b"\0" + items[n].digest for n in order))
    return ImageSet(
        image_ids=tuple(items[n].name for n in order),
        group_ids=tuple(items[n].group for n in order),
        channels=channels,
        num_classes=config.num_classes,
        read=read,
        file_bytes=lambda index: (items[order[index]].digest,),
        location=where,
        content=f"pairs {content.hexdigest()}",
    )


def _reader(
    found: Any, where: str, running: Callable[[str], AbstractContextManager[None]]
) -> tuple[Callable[[int], _Raw], int]:
    """How the pair at a position is read, and how many there are."""
    if isinstance(found, Mapping | str) or not (hasattr(found, "__getitem__") or isinstance(found, Iterable)):
        raise UsageError(f"{where} returns {type(found).__name__}: return or yield pairs {FORMS}")
    lock = threading.Lock()  # pairs are read in threads, which not every data set allows

    def raw_of(position: int, item: Any) -> _Raw:
        """Its arrays are copies: a data set may fill the same ones again."""
        with running(f"item {position} cannot be read"):
            if not isinstance(item, tuple | list) or not 2 <= len(item) <= 4:
                raise UsageError(f"{where}: item {position} is {type(item).__name__}: return {FORMS}")
            image, mask = (np.array(v.detach().cpu().numpy() if isinstance(v, torch.Tensor) else v) for v in item[:2])
        for array in (image, mask):
            if array.dtype.kind not in "biuf":
                raise UsageError(f"{where}: item {position} holds {array.dtype}: return arrays of numbers, {FORMS}")
        return _Raw(image, mask, isinstance(item[0], torch.Tensor), tuple(item[2:]))

    def raw(position: int) -> _Raw:
        with lock, running(f"item {position} cannot be read"):
            return raw_of(position, found[position])

    with running("the pairs cannot be read"):
        if hasattr(found, "__len__") and hasattr(found, "__getitem__"):
            return raw, len(found)
        pairs = [raw_of(position, item) for position, item in enumerate(found)]
        return pairs.__getitem__, len(pairs)


def _items(raw: Callable[[int], _Raw], number: int, num_classes: int, where: str) -> tuple[list[_Item], int]:
    """All items with their names, and the channels of the first. Raises UsageError."""
    items: list[_Item] = []
    channels, marks, digits = 0, set[int](), len(str(max(number - 1, 1000)))
    for position in tqdm(range(number), "reading pairs", leave=False, unit="img", disable=None):
        heed_interrupts()
        pair = raw(position)
        if position == 0:
            channels = pair.pixels.shape[0 if pair.tensor else -1] if pair.pixels.ndim == 3 else 1
        marks |= {value for value in (1, IGNORE) if (pair.mask == value).any()}
        item = pair.item
        items.append(replace(item, name=item.name or f"{position:0{digits}d}"))
    names = sorted(item.name for item in items)
    if repeated := [a for a, b in itertools.pairwise(names) if a == b]:
        raise UsageError(f"{where}: the name {repeated[0]!r} is given twice; each pair needs its own")
    if num_classes == 2 and marks == {IGNORE}:
        raise UsageError(f"{where}: masks hold {IGNORE}, which means ignored, and no 1: return mask > 0 for foreground")
    return items, channels


def _word(given: Any) -> str:
    """A name or a group as text, "" for None."""
    if given is not None and not isinstance(given, str | int | np.integer):
        raise UsageError(f"{given!r} is no name of an image or a group: give text or a whole number")
    return "" if given is None else str(given)


def _oriented(pair: _Raw) -> np.ndarray:
    """image_HWC. Raises ValueError where the mask's size is not that of the image, or fits both orders."""
    pixels, mask = pair.pixels, pair.mask
    if mask.ndim != 2:
        raise ValueError(f"a mask of shape {mask.shape}: return (H, W), class numbers")
    if pixels.shape == mask.shape:
        return pixels[..., np.newaxis]
    shown = f"an image of shape {pixels.shape} and a mask of {mask.shape}"
    if pixels.ndim != 3 or mask.shape not in (pixels.shape[:2], pixels.shape[1:]):
        raise ValueError(f"{shown}: return arrays (H, W) or (H, W, C), or torch tensors (C, H, W), of the mask's size")
    if pixels.shape[:2] == pixels.shape[1:]:
        raise ValueError(f"{shown}, which fit (H, W, C) and (C, H, W): crop both to another size")
    if pair.tensor != (mask.shape == pixels.shape[1:]):
        cure = "image.permute(2, 0, 1)" if pair.tensor else "numpy.moveaxis(image, 0, -1)"
        raise ValueError(f"{shown}: torch tensors are (C, H, W), arrays (H, W, C): return {cure}")
    image_HWC = np.moveaxis(pixels, 0, -1) if pair.tensor else pixels
    if not 1 <= image_HWC.shape[2] <= MAX_CHANNELS:
        raise ValueError(f"{shown}: {image_HWC.shape[2]} channels; networks support 1 to {MAX_CHANNELS}")
    return image_HWC
