"""From an image set to input tensors: resizing or padding, normalisation, order and batches.

Training images stay as they are stored until a batch of them is on the device that prepares it: they are converted to
float32, normalised and augmented there, all at once. They are kept on that device where they fit, see `resident`.

``dataset.fit`` fits images of any size to a network whose input must be divisible by its stride:
resize: every image is resized to image_size x image_size; scoring resizes the logits back to native size.
pad: pixels are not resampled. Training uses a window of image_size (random in a larger image, padded in a smaller one);
scoring pads the whole image to the next multiple of the stride and removes the padding from the logits.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader
from tqdm import tqdm

from segexp.data import generator
from segexp.data.augment import Augment
from segexp.data.image_set import AugmentConfig, ImageSet, Pair
from segexp.data.normalise import AS_STORED, Rule, ruled
from segexp.data.store import images_of, in_memory
from segexp.losses import IGNORE, Maps

MapsOf = Callable[[torch.Tensor], Maps]
"""Masks_NHW -> what the loss needs computed from them, see `segexp.losses.maps_of`."""

Batch = tuple[torch.Tensor, torch.Tensor, Maps]
"""images_NCHW float32, normalised; masks_NHW int64; the maps of these masks that the loss needs, {} for most losses."""

CPU = torch.device("cpu")

RESIDENT = 2**28  # most bytes of training images that a run keeps in memory as they are stored
RESIDENT_SHARE = 0.2  # of the memory of a GPU that is free before training, for the same

AT_ONCE = 2**22  # pixels of the batches that a GPU prepares at once, some 100 bytes each while it does

MAPS_MEMORY = 2**30  # bytes of maps that a run keeps of training images, and again of validation images

SCORING_PIXELS = 4_000_000  # maximum number of pixels per scoring batch; scoring needs about 100 bytes for each


@dataclass(frozen=True)
class InputGeometry:
    """How images are fitted to the network. size: side in pixels; divisor: a side must be a multiple of it.

    rule: applied to the stored values of each image before it is resized.
    """

    how: str
    size: int
    divisor: int
    rule: Rule = AS_STORED


@dataclass(frozen=True)
class Sample:
    """One image at the size that the network takes, with its mask at that size and at native resolution.

    stored_CHW: uint8, uint16 or int16 as in its file; float32 if it was resized (8 and 16 bits then in [0, 1]), or as
    ``dataset.normalise`` made it. mask_HW, native_mask_HW: uint8 classes, 255 ignored.
    """

    stored_CHW: torch.Tensor
    mask_HW: torch.Tensor
    native_mask_HW: torch.Tensor

    @property
    def image_CHW(self) -> torch.Tensor:
        """float32; 8 and 16-bit images in [0, 1], others in stored values, or as ``dataset.normalise`` made them."""
        return _unit_range(self.stored_CHW)


Read = Callable[[int], Sample]


@dataclass(frozen=True)
class Normalisation:
    """Mean and standard deviation per channel of the training images; recorded with the run."""

    mean_C: tuple[float, ...]
    std_C: tuple[float, ...]

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """(..., C, H, W) -> the same with mean 0 and standard deviation 1."""
        return self.on(image.device, image.dtype)(image)

    def on(self, device: torch.device, dtype: torch.dtype) -> Callable[[torch.Tensor], torch.Tensor]:
        """The same for many images, with its constants on their device."""
        columns = (torch.tensor(v, dtype=dtype).view(-1, 1, 1) for v in (self.mean_C, self.std_C))
        mean, std = (column.to(device, non_blocking=True) for column in columns)
        return lambda image: (image - mean).div_(std)


def make_reader(image_set: ImageSet, fit: InputGeometry) -> Read:
    """A function that reads sample i. Each is decoded and fitted once, see `segexp.data.store`."""

    size = "native size" if fit.how == "pad" else f"{fit.size} px"
    rule = "" if fit.rule == AS_STORED else f", {fit.rule}"
    arrays_of = images_of(image_set, size + rule, functools.partial(_arrays, fit=fit))
    return lambda index: _sample(arrays_of(index))


def sample_of(pair: Pair, fit: InputGeometry) -> Sample:
    """The sample of a pair that belongs to no image set."""
    return _sample(_arrays(pair, fit))


def _arrays(pair: Pair, fit: InputGeometry) -> list[np.ndarray]:
    """The image as it is kept, the mask, and its native mask where that is another."""
    native_HW = torch.from_numpy(pair.mask_HW)
    image_CHW, mask_HW = _fitted(torch.from_numpy(ruled(pair.image_HWC, fit.rule)).permute(2, 0, 1), native_HW, fit)
    return [one.numpy() for one in (image_CHW, mask_HW, *([native_HW] if mask_HW is not native_HW else []))]


def _sample(arrays: Sequence[np.ndarray]) -> Sample:
    image_CHW, mask_HW, *native_HW = map(torch.from_numpy, arrays)
    return Sample(image_CHW, mask_HW, native_HW[0] if native_HW else mask_HW)


def _unit_range(image: torch.Tensor) -> torch.Tensor:
    """Unsigned integers of 8 or 16 bits to float32 in [0, 1]; other values as they are, in float32."""
    full = {torch.uint8: 255, torch.uint16: 65535}.get(image.dtype)
    return image.float().div_(full) if full else image.float()


def _fitted(image_CHW: torch.Tensor, mask_HW: torch.Tensor, fit: InputGeometry) -> tuple[torch.Tensor, torch.Tensor]:
    """Resize for ``fit=resize``: images bilinearly with antialiasing, masks with nearest neighbours."""
    if fit.how == "pad" or tuple(mask_HW.shape) == (fit.size, fit.size):
        return image_CHW, mask_HW
    size = (fit.size, fit.size)
    image = F.interpolate(_unit_range(image_CHW)[None], size=size, mode="bilinear", antialias=True)
    mask = F.interpolate(mask_HW[None, None].float(), size=size, mode="nearest-exact")
    return image[0], mask[0, 0].to(mask_HW.dtype)


def training_statistics(read: Read, indices: Sequence[int]) -> Normalisation:
    """Mean and standard deviation per channel over the training images, in float64."""
    total, squares, count = torch.zeros(()), torch.zeros(()), 0
    for index in tqdm(indices, desc="reading images", unit="img", disable=None, leave=False):
        image = read(index).image_CHW.double()
        total = total + image.sum((1, 2))
        squares = squares + image.square().sum((1, 2))
        count += image.shape[1] * image.shape[2]
    mean = total / count
    std = (squares / count - mean.square()).clamp_min(0).sqrt()
    # A constant channel has no information; dividing by 1 leaves it at 0.
    std = torch.where(std < 1e-6, torch.ones_like(std), std)
    return Normalisation(tuple(mean.tolist()), tuple(std.tolist()))


def same_masks(config: AugmentConfig, fit: InputGeometry) -> bool:
    """Whether an image has the same mask in each epoch: only its intensities are augmented, and there is no window."""
    moved = (config.flip_horizontal, config.flip_vertical, config.rotate_degrees, config.translate, config.scale)
    return fit.how == "resize" and not any((*moved, config.elastic))


def epoch_order(indices: Sequence[int], seed: int, epoch: int) -> list[int]:
    """The training images in the order of this epoch."""
    permutation = torch.randperm(len(indices), generator=generator(seed, "order", epoch))
    return [indices[i] for i in permutation.tolist()]


def batches_of(order: Sequence[int], batch_size: int) -> list[list[int]]:
    """Consecutive batches; a single last image joins the batch before, because batch statistics need two."""
    batches = [list(order[i : i + batch_size]) for i in range(0, len(order), batch_size)]
    if len(batches) > 1 and len(batches[-1]) == 1:
        single = batches.pop()
        batches[-1] += single
    return batches


def batches_at_once(batch_size: int, side: int) -> int:
    """How many batches a GPU prepares at once: of at most `AT_ONCE` pixels."""
    return max(1, AT_ONCE // (batch_size * side**2))


def resident(read: Read, indices: Sequence[int], device: torch.device) -> tuple[Read, int]:
    """``read`` that has these samples in the memory of the device, and their bytes; or ``read`` and 0 if they do not
    fit: into `RESIDENT` bytes, on CUDA into the `RESIDENT_SHARE` of the memory that is free."""
    room = torch.cuda.mem_get_info(device)[0] * RESIDENT_SHARE if device.type == "cuda" else RESIDENT
    samples: dict[int, Sample] = {}
    total = 0
    for index in indices:
        one = read(index)
        total += one.stored_CHW.nbytes + one.mask_HW.nbytes
        if total > room:
            return read, 0
        image_CHW, mask_HW = (t.contiguous().to(device, copy=True) for t in (one.stored_CHW, one.mask_HW))
        samples[index] = Sample(image_CHW, mask_HW, mask_HW)
    return samples.__getitem__, total


def training_batches(
    image_set: ImageSet,
    read: Read,
    fit: InputGeometry,
    normalise: Normalisation,
    augment: Augment | None,
    epoch: int,
    batches: Sequence[Sequence[int]],
    *,
    seed: int,
    device: torch.device = CPU,
    workers: int = 0,
    pin_memory: bool = False,
    ahead: bool = False,
    at_once: int = 1,
    maps_of: MapsOf = lambda masks_NHW: {},
    kept: dict[int, Maps] | None = None,
) -> Iterator[Batch]:
    """The batches of one epoch, prepared on ``device``; also the maps, which are of the augmented masks.

    workers: processes that read, and on the CPU also prepare. ahead: without them, a thread works ahead. at_once:
    without them, so many batches are prepared at once, which changes none: a GPU takes as long to start as for one.
    pin_memory: read into pinned memory, for a copy that does not wait.
    kept: the maps of earlier epochs by image, to use and to add to, where the masks are always the same.
    """
    standard = normalise.on(device, torch.float32)

    def as_input(images_NCHW: torch.Tensor) -> torch.Tensor:
        return standard(_unit_range(images_NCHW))

    def load(indices: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        return _stored_batch(read, fit, indices, lambda i: generator(seed, "window", epoch, image_set.image_ids[i]))

    def prepared(indices: Sequence[int], stored: tuple[torch.Tensor, torch.Tensor]) -> Batch:
        images_NCHW, masks_NHW = (tensor.to(device, non_blocking=True) for tensor in stored)
        if augment is None:
            images_NCHW = as_input(images_NCHW)
        else:
            image_ids = [image_set.image_ids[i] for i in indices]
            images_NCHW, masks_NHW = augment(images_NCHW, masks_NHW, epoch, image_ids, as_input)
        return images_NCHW, masks_NHW.long(), _maps_of_batch(maps_of, masks_NHW, indices, kept or {})

    def made(indices: Sequence[int]) -> Batch:
        stored = load(indices)
        if pin_memory and ahead and device.type != "cpu" and not stored[0].is_cuda:
            stored = stored[0].pin_memory(), stored[1].pin_memory()
        return prepared(indices, stored)

    def several(group: Sequence[Sequence[int]]) -> list[Batch]:
        images_NCHW, masks_NHW, maps = made([i for batch in group for i in batch])
        sizes = [len(batch) for batch in group]
        columns = zip(*(maps[name].split(sizes) for name in maps), strict=True) if maps else ((),) * len(group)
        parts = zip(images_NCHW.split(sizes), masks_NHW.split(sizes), columns, strict=True)
        return [(images, masks, dict(zip(maps, column, strict=True))) for images, masks, column in parts]

    groups = [batches[start : start + at_once] for start in range(0, len(batches), at_once)]
    loaded: Iterable[Any] = chain.from_iterable(_ahead(several, groups) if ahead else map(several, groups))
    if workers:
        options: Any = {"multiprocessing_context": "fork", "generator": torch.Generator()}  # not the global one
        items: Any = batches
        collate = made if device.type == "cpu" else load  # a process must not touch the GPU: the loader's thread pins
        loaded = DataLoader(items, None, num_workers=workers, collate_fn=collate, pin_memory=pin_memory, **options)
    for indices, found in zip(batches, loaded, strict=True):
        batch = prepared(indices, found) if workers and device.type != "cpu" else found
        if kept is not None:  # Here, because a worker process ends with the epoch.
            _keep_maps(kept, indices, batch[2])
        yield batch


def _maps_of_batch(maps_of: MapsOf, masks_NHW: torch.Tensor, indices: Sequence[int], kept: Mapping[int, Maps]) -> Maps:
    each = [
        kept.get(i) or {name: map_NFHW[0] for name, map_NFHW in maps_of(masks_NHW[n : n + 1]).items()}
        for n, i in enumerate(indices)
    ]
    return {name: torch.stack([of_image[name] for of_image in each]) for name in each[0]}


def _keep_maps(kept: dict[int, Maps], indices: Sequence[int], maps: Maps) -> None:
    """Add the maps of these images, as long as `MAPS_MEMORY` holds them."""
    room = MAPS_MEMORY // sum(map_NFHW[0].nbytes for map_NFHW in maps.values())
    for n, index in enumerate(indices):
        if index not in kept and len(kept) < room:
            kept[index] = {name: map_NFHW[n].clone() for name, map_NFHW in maps.items()}


def _ahead(load: Callable[[Any], Any], batches: Sequence[Any]) -> Iterator[Any]:
    """What ``load`` makes of each batch, while a thread makes the next one."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(load, batches[0])
        for following in batches[1:]:
            ready = coming.result()
            coming = pool.submit(load, following)
            yield ready
        yield coming.result()


def _stored_batch(
    read: Read, fit: InputGeometry, indices: Sequence[int], draw: Callable[[int], torch.Generator]
) -> tuple[torch.Tensor, torch.Tensor]:
    """images_NCHW and masks_NHW of these samples as stored, for ``fit=pad`` windows of them; where they are."""
    pairs = [(sample.stored_CHW, sample.mask_HW) for sample in map(read, indices)]
    if fit.how == "pad":
        pairs = [_window(*pair, fit.size, draw(index)) for index, pair in zip(indices, pairs, strict=True)]
    if len({image_CHW.dtype for image_CHW, _ in pairs}) > 1:  # some were resized, or files have 8 and 16 bits
        pairs = [(_unit_range(image_CHW), mask_HW) for image_CHW, mask_HW in pairs]
    images, masks = zip(*pairs, strict=True)
    return torch.stack(images).contiguous(), torch.stack(masks)


def _window(
    image_CHW: torch.Tensor, mask_HW: torch.Tensor, size: int, draw: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """A window of size x size at a random position, padded at the right and bottom if the image is smaller."""
    height, width = mask_HW.shape
    top, left = (int(torch.randint(0, max(extent - size, 0) + 1, (), generator=draw)) for extent in (height, width))
    image = image_CHW[:, top : top + size, left : left + size]
    mask = mask_HW[top : top + size, left : left + size]
    return _padded(image, mask, (size, size))


def _padded(image_CHW: torch.Tensor, mask_HW: torch.Tensor, size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """The image padded with its edge values at the right and bottom; the mask is ignored there."""
    below, right = size[0] - mask_HW.shape[0], size[1] - mask_HW.shape[1]
    if below == 0 and right == 0:
        return image_CHW, mask_HW
    height, width = mask_HW.shape
    rows, columns = (torch.arange(n, device=mask_HW.device) for n in size)
    image = image_CHW[:, rows.clamp_(max=height - 1).unsqueeze(1), columns.clamp_(max=width - 1)]
    return image, F.pad(mask_HW, (0, right, 0, below), value=IGNORE)


def scoring_maps(read: Read, maps_of: MapsOf) -> Callable[[Sequence[int], torch.Tensor], Maps]:
    """(indices of images of one size, masks_NHW as padded) -> their maps, computed once: they do not change."""
    names = tuple(maps_of(torch.zeros(1, 1, 1, dtype=torch.uint8)))
    kept = in_memory(lambda i: [m[0].numpy() for m in maps_of(read(i).mask_HW[None]).values()], MAPS_MEMORY)

    def of(indices: Sequence[int], masks_NHW: torch.Tensor) -> Maps:
        stacked = (torch.from_numpy(np.stack(several)) for several in zip(*map(kept, indices), strict=True))
        # Padding is ignored in the mask, so that it changes no map.
        below, right = (np.array(masks_NHW.shape[1:]) - read(indices[0]).mask_HW.shape).tolist()
        return {name: F.pad(m, (0, right, 0, below)) for name, m in zip(names, stacked, strict=True)}

    return of


@dataclass(frozen=True)
class ScoringBatch:
    """Images of one native size. images_NCHW: network input. native_masks_NHW, masks_NHW: reference at native and at
    network size. padded: whether the network input is the native image plus padding."""

    indices: tuple[int, ...]
    images_NCHW: torch.Tensor
    masks_NHW: torch.Tensor
    native_masks_NHW: torch.Tensor
    padded: bool


def scoring_batches(
    read: Read,
    fit: InputGeometry,
    normalise: Normalisation,
    indices: Sequence[int],
    sizes_N2: np.ndarray,
    batch_size: int,
) -> Iterator[ScoringBatch]:
    """Batches for scoring, in the order of ``indices``, each of images of one native size, without augmentation."""
    for batch in _batches_of_equal_size(indices, sizes_N2, batch_size, fit.size):
        samples = [read(i) for i in batch]
        pairs = [(s.image_CHW, s.mask_HW) for s in samples]
        if fit.how == "pad":
            height, width = (-(-int(n) // fit.divisor) * fit.divisor for n in sizes_N2[batch[0]])
            pairs = [_padded(image, mask, (height, width)) for image, mask in pairs]
        yield ScoringBatch(
            tuple(batch),
            normalise(torch.stack([image for image, _ in pairs])),
            torch.stack([mask for _, mask in pairs]),
            torch.stack([s.native_mask_HW for s in samples]),
            padded=fit.how == "pad",
        )


def _batches_of_equal_size(
    indices: Sequence[int], sizes_N2: np.ndarray, batch_size: int, network_side: int
) -> Iterator[list[int]]:
    """Batches of images of one size, of at most `SCORING_PIXELS` pixels but at least one image."""
    batch: list[int] = []
    for index in indices:
        pixels = max(int(sizes_N2[index].prod()), network_side**2)
        full = len(batch) >= min(batch_size, max(1, SCORING_PIXELS // pixels))
        if batch and (full or tuple(sizes_N2[index]) != tuple(sizes_N2[batch[0]])):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
