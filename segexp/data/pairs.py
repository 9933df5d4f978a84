"""Data sets that are Python objects: the pairs (image, mask) that a function of the user's returns."""

import hashlib
import itertools
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
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
    """What was found at a position: name and group, and the hash of image and mask."""

    name: str
    group: str
    digest: bytes


def image_set_of(
    found: Any, config: DatasetConfig, where: str, running: Callable[[str], AbstractContextManager[None]]
) -> ImageSet:
    """The image set of an object with len() and [i], or of an iterable, whose items are read into memory.

    An item is one of `FORMS`. image: an array (H, W) or (H, W, C), or a torch tensor (H, W) or (C, H, W), of 1 to 32
    channels, the same number in all. mask: (H, W), class numbers, `segexp.losses.IGNORE` where a pixel does not count.
    All items are read once, for their names and the hash of their content, and must be the same when they are read
    again. where: for messages. running: a block in which the user's code runs. Raises UsageError.
    """
    item_of, number = _source(found, where, running)
    lock = threading.Lock()  # pairs are read in threads, which not every data set allows

    def raw(position: int) -> tuple[Any, ...]:
        with lock, running(f"item {position} cannot be read"):
            item = item_of(position)
        if not isinstance(item, tuple | list) or not 2 <= len(item) <= 4:
            raise UsageError(f"{where}: item {position} is {type(item).__name__}: return {FORMS}")
        return tuple(item)

    items: list[_Item] = []
    channels, marks = 0, set[int]()
    for position in tqdm(range(number), "reading pairs", leave=False, unit="img", disable=None):
        heed_interrupts()
        image, mask, *named = raw(position)
        pixels, mask_HW = _array(image), _array(mask)
        if position == 0:
            channels = pixels.shape[0 if isinstance(image, torch.Tensor) else -1] if pixels.ndim == 3 else 1
        marks |= {value for value in (1, IGNORE) if (mask_HW == value).any()}
        words = [*map(_word, named), "", ""]
        name = words[0] or f"{position:0{len(str(max(number - 1, 1000)))}d}"
        items.append(_Item(name, words[1], _digest(pixels, mask_HW)))
    repeated = [a.name for a, b in itertools.pairwise(sorted(items, key=lambda item: item.name)) if a.name == b.name]
    if repeated:
        raise UsageError(f"{where}: the name {repeated[0]!r} is given twice; each pair needs its own")
    if config.num_classes == 2 and marks == {IGNORE}:
        raise UsageError(f"{where}: masks hold {IGNORE}, which means ignored, and no 1: return mask > 0 for foreground")
    order = sorted(range(number), key=lambda n: items[n].name)
    coding = MaskCoding("index", config.num_classes, ignore=IGNORE)

    def read(index: int) -> Pair:
        item = items[order[index]]
        image, mask, *_ = raw(order[index])
        if _digest(_array(image), _array(mask)) != item.digest:
            raise DataChangedError(f"{where}: {item.name} differs each time it is read: augment with augment=...")
        try:
            image_HWC, mask_HW = _oriented(image, mask)
        except ValueError as error:
            raise ImageError(f"{item.name}: {error}") from None
        if image_HWC.shape[2] != channels:
            raise ImageError(f"{item.name}: {image_HWC.shape[2]} channels, but the first pair has {channels}")
        return pair_of(item.name, image_HWC, mask_HW, channels, coding)

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


def _source(
    found: Any, where: str, running: Callable[[str], AbstractContextManager[None]]
) -> tuple[Callable[[int], Any], int]:
    """How an item is read, and how many there are."""
    if not isinstance(found, Mapping | str) and hasattr(found, "__len__") and hasattr(found, "__getitem__"):
        return found.__getitem__, len(found)
    if isinstance(found, Mapping | str) or not isinstance(found, Iterable):
        raise UsageError(f"{where} returns {type(found).__name__}: return or yield pairs {FORMS}")
    with running("the pairs cannot be read"):
        kept = list(found)
    return kept.__getitem__, len(kept)


def _word(given: Any) -> str:
    """A name or a group as text, "" for None."""
    if given is not None and not isinstance(given, str | int | np.integer):
        raise UsageError(f"{given!r} is no name of an image or a group: give text or a whole number")
    return "" if given is None else str(given)


def _array(given: Any) -> np.ndarray:
    return given.detach().cpu().numpy() if isinstance(given, torch.Tensor) else np.asarray(given)


def _digest(pixels: np.ndarray, mask: np.ndarray) -> bytes:
    """SHA-256 of image and mask, whatever integers hold the class numbers."""
    total = hashlib.sha256()
    for array in (pixels, mask.astype(np.int64) if mask.dtype.kind in "biu" else mask):
        total.update(f"{array.dtype.str}{array.shape}".encode() + np.ascontiguousarray(array).tobytes())
    return total.digest()


def _oriented(image: Any, mask: Any) -> tuple[np.ndarray, np.ndarray]:
    """image_HWC and mask_HW. Raises ValueError where the mask's size is not that of the image, or fits both orders."""
    pixels, mask_HW, first = _array(image), _array(mask), isinstance(image, torch.Tensor)
    if mask_HW.ndim != 2:
        raise ValueError(f"a mask of shape {mask_HW.shape}: return (H, W), class numbers")
    if pixels.shape == mask_HW.shape:
        return pixels[..., np.newaxis], mask_HW
    shown = f"an image of shape {pixels.shape} and a mask of {mask_HW.shape}"
    if pixels.ndim != 3 or mask_HW.shape not in (pixels.shape[:2], pixels.shape[1:]):
        raise ValueError(f"{shown}: return arrays (H, W) or (H, W, C), or torch tensors (C, H, W), of the mask's size")
    if pixels.shape[:2] == pixels.shape[1:]:
        raise ValueError(f"{shown}, which fit (H, W, C) and (C, H, W): crop both to another size")
    if first != (mask_HW.shape == pixels.shape[1:]):
        cure = "image.permute(2, 0, 1)" if first else "numpy.moveaxis(image, 0, -1)"
        raise ValueError(f"{shown}: torch tensors are (C, H, W), arrays (H, W, C): return {cure}")
    image_HWC = np.moveaxis(pixels, 0, -1) if first else pixels
    if not 1 <= image_HWC.shape[2] <= MAX_CHANNELS:
        raise ValueError(f"{shown}: {image_HWC.shape[2]} channels; networks support 1 to {MAX_CHANNELS}")
    return image_HWC, mask_HW
