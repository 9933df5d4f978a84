"""Fitting, normalisation, order and batches."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from segexp.data.augment import make_augment
from segexp.data.batches import (
    Batch,
    InputGeometry,
    Normalisation,
    Read,
    _batches_of_equal_size,
    batches_of,
    epoch_order,
    make_reader,
    resident,
    scoring_batches,
    training_batches,
    training_statistics,
)
from segexp.data.image_set import AugmentConfig, ImageSet, Pair
from segexp.losses import IGNORE

SIZES = [(40, 50), (32, 32), (70, 33)]


NONE: Any = {field.name: 0.0 for field in dataclasses.fields(AugmentConfig)}

PLAIN = Normalisation((0.0, 0.0), (1.0, 1.0))


def image_set(dtype: type = np.uint8, channels: int = 2) -> ImageSet:
    rng = np.random.default_rng(1)
    top = 255 if dtype is np.uint8 else 65535
    pairs = []
    for height, width in SIZES:
        image: np.ndarray = rng.integers(0, top, (height, width, channels), endpoint=True).astype(dtype)
        pairs.append(Pair(image, (image[..., 0] > top // 2).astype(np.uint8)))
    return ImageSet(("a", "b", "c"), ("", "", ""), channels, 2, pairs.__getitem__, lambda i: [], location="memory")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_resize_gives_the_size_in_unit_range_and_keeps_classes(dtype: type) -> None:
    read = make_reader(image_set(dtype), InputGeometry("resize", 32, 32))
    for index, size in enumerate(SIZES):
        sample = read(index)
        assert sample.image_CHW.shape == (2, 32, 32)
        assert sample.image_CHW.dtype == torch.float32
        assert sample.image_CHW.min() >= 0
        assert sample.image_CHW.max() <= 1
        assert set(sample.mask_HW.unique().tolist()) <= {0, 1}
        assert sample.native_mask_HW.shape == size


def test_an_image_of_the_right_size_is_not_touched() -> None:
    images = image_set()
    sample = make_reader(images, InputGeometry("resize", 32, 32))(1)
    assert torch.equal(sample.image_CHW, torch.from_numpy(images.read(1).image_HWC / 255).permute(2, 0, 1).float())
    assert torch.equal(sample.mask_HW, sample.native_mask_HW)


def test_reading_twice_decodes_once() -> None:
    images = image_set()
    calls: list[int] = []

    def counting(index: int) -> Pair:
        calls.append(index)
        return images.read(index)

    read = make_reader(ImageSet(**{**images.__dict__, "read": counting}), InputGeometry("pad", 64, 32))
    assert torch.equal(read(0).image_CHW, read(0).image_CHW)
    assert calls == [0]


def test_training_statistics_normalise_the_training_images() -> None:
    read = make_reader(image_set(), InputGeometry("pad", 64, 32))
    normalise = training_statistics(read, [0, 2])
    pixels = torch.cat([normalise(read(i).image_CHW.double()).flatten(1) for i in (0, 2)], dim=1)
    assert pixels.mean(1).abs().max() < 1e-6
    assert (pixels.std(1, unbiased=False) - 1).abs().max() < 1e-6
    flat = ImageSet(
        **{**image_set().__dict__, "read": lambda i: Pair(np.full((4, 4, 1), 7, np.uint8), np.zeros((4, 4)))}
    )
    assert training_statistics(make_reader(flat, InputGeometry("pad", 64, 32)), [0]).std_C == (1.0,)


@pytest.mark.parametrize(
    ("number", "size", "expected"), [(9, 4, [4, 5]), (8, 4, [4, 4]), (10, 4, [4, 4, 2]), (3, 8, [3])]
)
def test_there_is_never_a_batch_of_one(number: int, size: int, expected: list[int]) -> None:
    batches = batches_of(range(number), size)
    assert [len(b) for b in batches] == expected
    assert [i for b in batches for i in b] == list(range(number))


def test_order_is_a_permutation_that_moves_with_seed_and_epoch() -> None:
    members = list(range(10, 60))
    orders = [epoch_order(members, seed, epoch) for seed, epoch in ((0, 1), (0, 1), (0, 2), (1, 1))]
    assert orders[0] == orders[1]
    assert orders[0] != orders[2] != orders[3] != orders[0]
    assert all(sorted(order) == members for order in orders)


def test_padded_training_windows_come_from_the_image_and_ignore_what_is_outside() -> None:
    images, fit = image_set(), InputGeometry("pad", 64, 32)
    read = make_reader(images, fit)
    stream = training_batches(images, read, fit, PLAIN, None, 1, [[0, 1], [2, 1]], seed=0)
    for (batch, masks, _), indices in zip(stream, [[0, 1], [2, 1]], strict=True):
        assert batch.shape == (2, 2, 64, 64)
        for mask, index in zip(masks, indices, strict=True):
            height, width = (min(n, 64) for n in SIZES[index])
            assert (mask[:height, :width] != IGNORE).all()
            assert (mask[height:] == IGNORE).all()
            assert (mask[:, width:] == IGNORE).all()


def test_windows_move_from_epoch_to_epoch_and_repeat() -> None:
    images, fit = image_set(), InputGeometry("pad", 32, 32)
    read = make_reader(images, fit)

    def window(epoch: int) -> torch.Tensor:
        return next(iter(training_batches(images, read, fit, PLAIN, None, epoch, [[0, 2]], seed=0)))[0]

    assert torch.equal(window(1), window(1))
    assert not torch.equal(window(1), window(2))


@pytest.mark.parametrize("how", ["resize", "pad"])
def test_scoring_keeps_order_and_groups_only_equal_sizes(how: str) -> None:
    images, fit = image_set(), InputGeometry(how, 64, 32)
    read = make_reader(images, fit)
    sizes = np.array(SIZES)
    batches = list(scoring_batches(read, fit, PLAIN, [0, 0, 0, 1, 2, 2], sizes, batch_size=2))
    assert [b.indices for b in batches] == [(0, 0), (0,), (1,), (2, 2)]
    for batch in batches:
        height, width = SIZES[batch.indices[0]]
        assert batch.native_masks_NHW.shape[1:] == (height, width)
        assert all(n % 32 == 0 for n in batch.images_NCHW.shape[2:])
        if how == "pad":
            assert torch.equal(batch.images_NCHW[0, :, :height, :width], read(batch.indices[0]).image_CHW)
            assert (batch.masks_NHW[:, height:] == IGNORE).all()
    # Large images are scored a few at a time.
    large = np.array([[3000, 1000]] * 3 + [[10, 10]] * 3)
    assert list(_batches_of_equal_size(range(6), large, 8, 32)) == [[0], [1], [2], [3, 4, 5]]


def test_intensity_changes_mean_the_same_for_8_and_16_bit() -> None:
    """12-bit values in 16-bit files span a sixteenth of the range; augmentation works on normalised images."""
    eight = image_set(channels=1)
    pairs = [Pair(eight.read(i).image_HWC.astype(np.uint16) * 16, eight.read(i).mask_HW) for i in range(3)]
    sixteen = ImageSet(**{**eight.__dict__, "read": pairs.__getitem__})
    augment = make_augment(AugmentConfig(**NONE | {"brightness": 0.5, "noise": 0.1}), 0)
    seen = []
    for images in (eight, sixteen):
        fit = InputGeometry("resize", 32, 32)
        read = make_reader(images, fit)
        normalise = training_statistics(read, [0, 1, 2])
        stream = training_batches(images, read, fit, normalise, augment, 1, [[0, 1, 2]], seed=0)
        seen.append(next(iter(stream))[0])
    assert (seen[0] - seen[1]).abs().max() < 1e-4
    assert seen[0].std() > 0.5


@pytest.mark.parametrize(("how", "dtype"), [
    ("resize", np.uint8), ("pad", np.uint16),
    pytest.param("resize", np.uint16, marks=pytest.mark.slow), pytest.param("pad", np.uint8, marks=pytest.mark.slow),
])  # fmt: skip
def test_batches_are_the_same_from_memory_by_processes_and_by_a_thread(how: str, dtype: type) -> None:
    """Bit for bit, in values and strides; of images of 32 px, which stay integers, and of others, which are resized."""
    images, fit = image_set(dtype), InputGeometry(how, 32, 32)
    augment = make_augment(AugmentConfig(**NONE | {"flip_vertical": 0.5, "rotate_degrees": 9.0, "noise": 0.1}), 0)
    read = make_reader(images, fit)
    kept, n_bytes = resident(read, [0, 1, 2], torch.device("cpu"))
    assert n_bytes == sum(read(i).stored_CHW.nbytes + read(i).mask_HW.nbytes for i in range(3))
    normalise = Normalisation((0.5, 0.4), (0.2, 0.3))

    def made(source: Read, **options: Any) -> list[Batch]:
        parts = (images, source, fit, normalise, augment, 1, [[0, 1], [1, 2, 0]])
        return list(training_batches(*parts, seed=0, **options))

    expected = made(read)
    in_groups = made(kept, at_once=2), made(read, at_once=5, ahead=True)
    for others in (made(kept), made(read, workers=2), made(kept, workers=2), made(read, ahead=True), *in_groups):
        for (image, mask, _), (other_image, other_mask, _) in zip(expected, others, strict=True):
            assert torch.equal(image, other_image)
            assert image.stride() == other_image.stride()
            assert torch.equal(mask, other_mask)
            assert mask.dtype == torch.int64


def test_a_process_that_reads_does_not_pin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is pinned by CUDA, which a forked process cannot use: the loader's own thread does it."""
    fit = InputGeometry("resize", 32, 32)
    options: Any = {"workers": 1, "ahead": True, "pin_memory": True, "device": torch.device("meta")}

    def in_a_process(items: Any, _: None, *, collate_fn: Any, **options: Any) -> Any:
        assert options["pin_memory"]
        return map(collate_fn, items)

    def refused(tensor: torch.Tensor) -> torch.Tensor:
        raise AssertionError("pinned in a process")

    monkeypatch.setattr("segexp.data.batches.DataLoader", in_a_process)
    monkeypatch.setattr(torch.Tensor, "pin_memory", refused)
    read, normalise = make_reader(image_set(), fit), Normalisation((0.5, 0.4), (0.2, 0.3))
    parts: Any = (image_set(), read, fit, normalise, None, 1, [[0, 1]])
    ((images_NCHW, _, _),) = training_batches(*parts, seed=0, **options)
    assert images_NCHW.shape[0] == 2


def test_images_that_do_not_fit_are_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    read = make_reader(image_set(), InputGeometry("resize", 32, 32))
    monkeypatch.setattr("segexp.data.batches.RESIDENT", 20_000)
    assert resident(read, [0, 1, 2], torch.device("cpu")) == (read, 0)


def test_an_epoch_has_batches_of_one_shape_and_a_last_one() -> None:
    """On a device without values: what prepares a batch reads none of them, so that it never waits."""
    images, fit = image_set(), InputGeometry("pad", 48, 32)
    read, n_bytes = resident(make_reader(images, fit), [0, 1, 2], torch.device("meta"))
    assert n_bytes == sum(3 * h * w for h, w in SIZES)
    augment = make_augment(AugmentConfig(**NONE | {"elastic": 1.0, "noise": 0.1}), 0)
    order = batches_of([0, 1, 2] * 5, 4)
    stream = training_batches(images, read, fit, PLAIN, augment, 1, order, seed=0, device=torch.device("meta"))
    assert [tuple(batch.shape) for batch, _, _ in stream] == [(4, 2, 48, 48)] * 3 + [(3, 2, 48, 48)]
