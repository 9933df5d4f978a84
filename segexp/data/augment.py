"""Random augmentation of image and mask together, with torchvision.transforms.v2."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from segexp.data.seeds import torch_seeded
from segexp.losses.targets import IGNORE
from segexp.registry import REQUIRED, Range

if TYPE_CHECKING:
    import torch


@dataclass
class AugmentConfig:
    """Probabilities in [0, 1]; lengths relative to the image side; intensities in standard deviations of the training
    images, so that they are independent of the images' bit depth."""

    name: str = REQUIRED
    flip_horizontal: Annotated[float, Range(0, 1)] = REQUIRED
    flip_vertical: Annotated[float, Range(0, 1)] = REQUIRED
    rotate_degrees: Annotated[float, Range(0, 180)] = REQUIRED
    translate: Annotated[float, Range(0, 1)] = REQUIRED
    scale: Annotated[float, Range(0, 0.9)] = REQUIRED
    brightness: Annotated[float, Range(0, 10)] = REQUIRED
    contrast: Annotated[float, Range(0, 1)] = REQUIRED
    noise: Annotated[float, Range(0, 10)] = REQUIRED
    elastic: Annotated[float, Range(0, 1)] = REQUIRED


Augment = Callable[["torch.Tensor", "torch.Tensor", int, str], tuple["torch.Tensor", "torch.Tensor"]]
"""(normalised image_CHW, mask_HW, epoch, image id) -> augmented image and mask."""


def make_augment(config: AugmentConfig, seed: int) -> Augment | None:
    """The augmentation of a run, or None if it changes nothing.

    The change of an image depends only on (seed, epoch, image id), not on workers, batches or the network. Pixels from
    outside the image are 0, the mean of the training images, and ignored in the mask.
    """
    from torchvision import tv_tensors
    from torchvision.transforms import InterpolationMode, v2

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
        image_CHW: "torch.Tensor", mask_HW: "torch.Tensor", epoch: int, image_id: str
    ) -> tuple["torch.Tensor", "torch.Tensor"]:
        with torch_seeded(seed, "augment", epoch, image_id):
            image, mask = transform(tv_tensors.Image(image_CHW), tv_tensors.Mask(mask_HW))
        return image.as_subclass(type(image_CHW)), mask.as_subclass(type(mask_HW))

    return augment


def _intensity(config: AugmentConfig) -> Callable[..., object]:
    """Contrast about the image's mean, shift and noise (v2's ColorJitter only supports 1 or 3 channels)."""
    import torch
    from torchvision import tv_tensors

    def change(image: "torch.Tensor", mask: "torch.Tensor") -> tuple["torch.Tensor", "torch.Tensor"]:
        contrast, shift = (torch.rand(2) * 2 - 1).tolist()
        mean = image.mean()
        changed = (image - mean) * (1 + contrast * config.contrast) + mean + shift * config.brightness
        if config.noise:
            changed = changed + torch.randn(image.shape) * config.noise
        return tv_tensors.Image(changed), mask

    return change
