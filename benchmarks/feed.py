"""How fast training batches are made, against the same augmentation image by image with torchvision."""

import math
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from statistics import median
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2

import segexp
from benchmarks import Row, benchmark, counted, in_turns, ratios
from segexp.data import seeded
from segexp.data.augment import make_augment
from segexp.data.batches import InputGeometry, Normalisation, batches_at_once, make_reader, resident, training_batches
from segexp.data.image_set import AugmentConfig, ImageSet, Pair
from segexp.evaluation.boundary import boundary_scores
from segexp.evaluation.objects import match_objects
from segexp.losses import IGNORE
from segexp.records.process import usable_cores

SIDE, BATCH = 128, 16

STRENGTHS: dict[str, dict[str, float]] = {
    "light": {"brightness": 0.3, "contrast": 0.1},
    "medium": {
        "rotate_degrees": 15,
        "translate": 0.05,
        "scale": 0.1,
        "brightness": 0.5,
        "contrast": 0.15,
        "noise": 0.05,
    },
    "strong": {
        **{"rotate_degrees": 45, "translate": 0.1, "scale": 0.25, "brightness": 1.0, "contrast": 0.3, "noise": 0.15},
        "elastic": 0.5,
    },
}
"""configs/augment/*.yaml, all of which flip half of the images along each axis."""

ON_GPU = {"light": 20_000, "medium": 10_000, "strong": 10_000}
ON_CPU = {"light": 1.0, "medium": 1.5, "strong": 6.0}
"""Asked: images a second on a GPU; on a CPU how many times the speed of the baseline."""


def config_of(strength: str) -> AugmentConfig:
    none = dict.fromkeys(("rotate_degrees", "translate", "scale", "brightness", "contrast", "noise", "elastic"), 0.0)
    return AugmentConfig(name=strength, flip_horizontal=0.5, flip_vertical=0.5, **none | STRENGTHS[strength])


def images_of(number: int, channels: int = 3) -> ImageSet:
    """Random images of 8 bits, with a disc in each mask."""
    drawn = np.random.default_rng(0)
    disc_HW = (np.indices((SIDE, SIDE)) - SIDE / 2).__pow__(2).sum(0) < (SIDE / 4) ** 2
    pairs = [
        Pair(drawn.integers(0, 256, (SIDE, SIDE, channels), np.uint8), disc_HW.astype(np.uint8)) for _ in range(number)
    ]
    names = tuple(map(str, range(number)))
    return ImageSet(names, ("",) * number, channels, 2, pairs.__getitem__, lambda i: [], location="memory")


def one_by_one(config: AugmentConfig) -> Callable[[torch.Tensor, torch.Tensor, int, str], Sequence[torch.Tensor]]:
    """The same augmentation by torchvision: (normalised image_CHW, mask_HW, epoch, name) -> the two, augmented."""
    fill = {tv_tensors.Image: 0.0, tv_tensors.Mask: IGNORE}
    steps: list[Any] = [v2.RandomHorizontalFlip(0.5), v2.RandomVerticalFlip(0.5)]
    if config.rotate_degrees:
        shift, sizes = (config.translate,) * 2, (1 - config.scale, 1 + config.scale)
        bilinear = InterpolationMode.BILINEAR
        steps.append(v2.RandomAffine(config.rotate_degrees, shift, sizes, interpolation=bilinear, fill=fill))
    if config.elastic:
        steps.append(v2.RandomApply([v2.ElasticTransform(alpha=30.0, sigma=5.0, fill=fill)], p=config.elastic))

    def intensity(image: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        contrast, shift = (torch.rand(2) * 2 - 1).tolist()
        mean = image.mean()
        changed = (image - mean) * (1 + contrast * config.contrast) + mean + shift * config.brightness
        if config.noise:
            changed = changed + torch.randn(image.shape) * config.noise
        return tv_tensors.Image(changed), mask

    transform = v2.Compose([*steps, intensity])

    def augment(image_CHW: torch.Tensor, mask_HW: torch.Tensor, epoch: int, name: str) -> Sequence[torch.Tensor]:
        with seeded(0, "augment", epoch, name):
            image, mask = transform(tv_tensors.Image(image_CHW), tv_tensors.Mask(mask_HW))
        return image.as_subclass(torch.Tensor), mask.as_subclass(torch.Tensor).long()

    return augment


def as_in_a_run(device: torch.device) -> dict[str, Any]:
    """What a run asks of `training_batches` on this device."""
    if device.type != "cuda":
        return {"device": device}
    return {"device": device, "ahead": True, "at_once": batches_at_once(BATCH, SIDE)}


@benchmark("Training batches of augmented images (128 px, 3 channels, batch 16)")
def feed(quick: bool) -> Iterable[Row]:
    """Rows for each strength: speed against torchvision's, images a second, and the bytes that are kept."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rounds, number = (2, 64) if quick else (15, 512)
    images, fit = images_of(number), InputGeometry("resize", SIDE, 32)
    normalise = Normalisation((0.5,) * 3, (0.29,) * 3)
    read = make_reader(images, fit)
    kept, n_bytes = resident(read, range(number), device)
    batches = [list(range(start, start + BATCH)) for start in range(0, number, BATCH)]
    for strength in STRENGTHS:
        epoch = SimpleNamespace(number=0)
        augment, each = make_augment(config_of(strength), 0), one_by_one(config_of(strength))

        def ours(augment: Any = augment, epoch: Any = epoch) -> None:
            epoch.number += 1
            parts = (images, kept, fit, normalise, augment, epoch.number, batches)
            for _ in training_batches(*parts, seed=0, **as_in_a_run(device)):
                pass

        def torchvision(each: Any = each, epoch: Any = epoch) -> None:
            epoch.number += 1
            for batch in batches[: len(batches) // 4]:
                samples = [read(i) for i in batch]
                pairs = [
                    each(normalise(s.image_CHW), s.mask_HW, epoch.number, str(i))
                    for i, s in zip(batch, samples, strict=True)
                ]
                for several in zip(*pairs, strict=True):
                    torch.stack(several).to(device)

        times = in_turns({strength: ours, "torchvision": torchvision}, rounds, device.type)
        times["torchvision"] = [4 * taken for taken in times["torchvision"]]  # of a quarter of the images
        asked = {strength: (">=", ON_CPU[strength])} if device.type == "cpu" else None
        yield from ratios(times, "torchvision", asked, rate=True)
        bound = (">=", 600.0) if strength == "strong" else None
        bound = bound if device.type == "cpu" else (">=", float(ON_GPU[strength]))
        cores = torch.get_num_threads() if device.type == "cpu" else 1
        rate = math.floor(number / median(times[strength]) / cores)
        yield counted(
            f"{strength}, {device.type}", rate, "images/s a core" if device.type == "cpu" else "images/s", bound
        )
    yield counted("kept on the device", n_bytes / number, "bytes an image")


@benchmark("Training steps fed with augment=medium, against the same steps on one batch that stays on the device")
def fed_steps(quick: bool) -> Iterable[Row]:
    """On a GPU also the peak of memory, without the images that are kept, against that of the bare steps."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rounds, steps = (2, 1) if quick else (11, 8)
    number = BATCH * steps
    images, fit, normalise = images_of(number, 1), InputGeometry("resize", SIDE, 32), Normalisation((0.5,), (0.29,))
    kept, n_bytes = resident(make_reader(images, fit), range(number), device)
    augment = make_augment(config_of("medium"), 0)
    batches = [list(range(start, start + BATCH)) for start in range(0, number, BATCH)]

    def fed() -> Iterable[Any]:
        return training_batches(images, kept, fit, normalise, augment, 1, batches, seed=0, **as_in_a_run(device))

    network = segexp.build_model([f"dataset.image_size={SIDE}"]).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)
    (batch, *_) = fed()
    peaks = {}

    def train(name: str, over: Callable[[], Iterable[Any]]) -> None:
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        for images_NCHW, masks_NHW, _ in over():
            optimizer.zero_grad(set_to_none=True)
            foreground_N1HW = (masks_NHW == 1).unsqueeze(1).float()
            F.binary_cross_entropy_with_logits(network(images_NCHW), foreground_N1HW).backward()
            optimizer.step()
        peaks[name] = torch.cuda.max_memory_allocated() - n_bytes if device.type == "cuda" else 0

    calls = {"fed": lambda: train("fed", fed), "bare": lambda: train("bare", lambda: [batch] * steps)}
    on_gpu = device.type == "cuda"
    yield from ratios(
        in_turns(calls, rounds, device.type), "bare", {"fed": (">=", 0.95)} if on_gpu else None, rate=True
    )
    if on_gpu:
        yield counted("peak of memory, of bare steps", peaks["fed"] / peaks["bare"], "x", ("<=", 1.1))


@benchmark("Boundary and object measures of 512 px masks, in threads against one by one")
def boundaries(quick: bool) -> Iterable[Row]:
    """As many threads as there are cores."""
    drawn, places = np.random.default_rng(0), np.indices((512, 512))
    discs = [
        ((places - drawn.uniform(100, 400, (2, 1, 1))) ** 2).sum(0) < drawn.uniform(20, 120) ** 2
        for _ in range(8 if quick else 48)
    ]

    def one(pair: tuple[np.ndarray, np.ndarray]) -> None:
        boundary_scores(*pair, 2.0)
        match_objects(*pair)

    pairs = list(pairwise(discs))
    with ThreadPoolExecutor(usable_cores()) as pool:
        calls = {"threads": lambda: list(pool.map(one, pairs)), "one by one": lambda: list(map(one, pairs))}
        yield from ratios(in_turns(calls, 2 if quick else 15), "one by one", rate=True)
