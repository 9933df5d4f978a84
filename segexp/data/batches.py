"""From an image set to input tensors: resizing or padding, normalisation, augmentation, order and batches.

``dataset.fit`` fits images of any size to a network whose input must be divisible by its stride:
resize: every image is resized to image_size x image_size; scoring resizes the logits back to native size.
pad: pixels are not resampled. Training uses a window of image_size (random in a larger image, padded in a smaller one);
scoring pads the whole image to the next multiple of the stride and removes the padding from the logits.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2
from tqdm import tqdm

from segexp.data import generator, torch_seeded
from segexp.data.image_set import AugmentConfig, ImageSet, Pair
from segexp.data.normalise import AS_STORED, Rule, ruled
from segexp.data.store import images_of, in_memory
from segexp.losses import IGNORE, Maps

MapsOf = Callable[[torch.Tensor], Maps]
"""Masks_NHW -> what the loss needs computed from them, see `segexp.losses.maps_of`."""

Batch = tuple[torch.Tensor, torch.Tensor, Maps]
"""images_NCHW float32, normalised; masks_NHW int64; the maps of these masks that the loss needs, {} for most losses."""

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
    """One image ready for the network, with its mask at network and at native resolution.

    image_CHW: float32; 8 and 16-bit images in [0, 1], others in stored values, or as ``dataset.normalise`` made them.
    mask_HW, native_mask_HW: uint8 classes, 255 ignored.
    """

    image_CHW: torch.Tensor
    mask_HW: torch.Tensor
    native_mask_HW: torch.Tensor


Read = Callable[[int], Sample]


@dataclass(frozen=True)
class Normalisation:
    """Mean and standard deviation per channel of the training images; recorded with the run."""

    mean_C: tuple[float, ...]
    std_C: tuple[float, ...]

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """(..., C, H, W) -> the same with mean 0 and standard deviation 1."""
        mean, std = (image.new_tensor(v).view(-1, 1, 1) for v in (self.mean_C, self.std_C))
        return (image - mean) / std


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
    return Sample(_unit_range(image_CHW), mask_HW, native_HW[0] if native_HW else mask_HW)


def _unit_range(image_CHW: torch.Tensor) -> torch.Tensor:
    """Unsigned integers of 8 or 16 bits to float32 in [0, 1]; other values as they are, in float32."""
    if image_CHW.dtype == torch.uint8:
        return image_CHW.float() / 255
    if image_CHW.dtype == torch.uint16:
        return image_CHW.float() / 65535
    return image_CHW.float()


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


Augment = Callable[[torch.Tensor, torch.Tensor, int, str], tuple[torch.Tensor, torch.Tensor]]
"""(normalised image_CHW, mask_HW, epoch, image id) -> augmented image and mask."""


def make_augment(config: AugmentConfig, seed: int) -> Augment | None:
    """The augmentation of a run, or None if it changes nothing.

    The change of an image depends only on (seed, epoch, image id), not on workers, batches or the network. Pixels from
    outside the image are 0, the mean of the training images, and ignored in the mask.
    """
    fill = {tv_tensors.Image: 0.0, tv_tensors.Mask: IGNORE}
    steps: list[Callable[..., object]] = []
    if config.flip_horizontal:
        steps.append(v2.RandomHorizontalFlip(config.flip_horizontal))
    if config.flip_vertical:
        steps.append(v2.RandomVerticalFlip(config.flip_vertical))
    if config.rotate_degrees or config.translate or config.scale:
        steps.append(
            v2.RandomAffine(
                degrees=config.rotate_degrees,
                translate=(config.translate, config.translate),
                scale=(1 - config.scale, 1 + config.scale),
                interpolation=InterpolationMode.BILINEAR,
                fill=fill,
            )
        )
    if config.elastic:
        steps.append(v2.RandomApply([v2.ElasticTransform(alpha=30.0, sigma=5.0, fill=fill)], p=config.elastic))
    if config.brightness or config.contrast or config.noise:
        steps.append(_intensity(config))
    if not steps:
        return None
    transform = v2.Compose(steps)

    def augment(
        image_CHW: torch.Tensor, mask_HW: torch.Tensor, epoch: int, image_id: str
    ) -> tuple[torch.Tensor, torch.Tensor]:
        with torch_seeded(seed, "augment", epoch, image_id):
            image, mask = transform(tv_tensors.Image(image_CHW), tv_tensors.Mask(mask_HW))
        return image.as_subclass(type(image_CHW)), mask.as_subclass(type(mask_HW))

    return augment


def same_masks(config: AugmentConfig, fit: InputGeometry) -> bool:
    """Whether an image has the same mask in each epoch: only its intensities are augmented, and there is no window."""
    moved = (config.flip_horizontal, config.flip_vertical, config.rotate_degrees, config.translate, config.scale)
    return fit.how == "resize" and not any((*moved, config.elastic))


def _intensity(config: AugmentConfig) -> Callable[..., object]:
    """Contrast about the image's mean, shift and noise (v2's ColorJitter only supports 1 or 3 channels)."""

    def change(image: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        contrast, shift = (torch.rand(2) * 2 - 1).tolist()
        mean = image.mean()
        changed = (image - mean) * (1 + contrast * config.contrast) + mean + shift * config.brightness
        if config.noise:
            changed = changed + torch.randn(image.shape) * config.noise
        return tv_tensors.Image(changed), mask

    return change


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
    workers: int = 0,
    pin_memory: bool = False,
    maps_of: MapsOf = lambda masks_NHW: {},
    kept: dict[int, Maps] | None = None,
) -> Iterator[Batch]:
    """The batches of one epoch, prepared by ``workers`` processes: also the maps, which are of the augmented masks.

    kept: the maps of earlier epochs by image, to use and to add to, where the masks are always the same.
    """

    class Epoch(Dataset[Batch]):
        def __getitem__(self, index: int) -> Batch:
            sample = read(index)
            image, mask = sample.image_CHW, sample.mask_HW
            image_id = image_set.image_ids[index]
            if fit.how == "pad":
                image, mask = _window(image, mask, fit.size, generator(seed, "window", epoch, image_id))
            image = normalise(image)
            if augment is not None:
                image, mask = augment(image, mask, epoch, image_id)
            maps = kept.get(index) if kept else None
            return image, mask.long(), maps or {name: map_NFHW[0] for name, map_NFHW in maps_of(mask[None]).items()}

    loader = DataLoader(
        Epoch(),
        batch_sampler=list(map(list, batches)),
        num_workers=workers,
        pin_memory=pin_memory,
        multiprocessing_context="fork" if workers else None,
    )
    for indices, batch in zip(batches, loader, strict=True):
        if kept is not None:  # Here, because a worker process ends with the epoch.
            room = MAPS_MEMORY // sum(map_NFHW[0].nbytes for map_NFHW in batch[2].values())
            for n, index in enumerate(indices):
                if index not in kept and len(kept) < room:
                    kept[index] = {name: map_NFHW[n].clone() for name, map_NFHW in batch[2].items()}
        yield batch


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
    image = F.pad(image_CHW.unsqueeze(0), (0, right, 0, below), mode="replicate")[0]
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
