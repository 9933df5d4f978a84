"""Copies of an image are recognised in another size, brightness, compression or orientation; other images are not."""

import dataclasses
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from segexp.data.check import check_pairs, check_split, set_warnings
from segexp.data.image_set import ImageSet, Pair
from segexp.data.similar import UNCOMPARED, near_duplicates, perceptual_hash


def scene(seed: int, height: int = 96, width: int = 128) -> np.ndarray:
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=(height, width)), 5)
    return np.clip(128 + noise / noise.std() * 40, 0, 255).astype(np.uint8)


def hash_of(image_HW: np.ndarray) -> str:
    return perceptual_hash(np.ascontiguousarray(image_HW)[..., np.newaxis])


def as_jpeg(image_HW: np.ndarray) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(image_HW).save(file, "JPEG", quality=60)
    return np.asarray(Image.open(file))


CHANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "same": lambda image: image,
    "jpeg": as_jpeg,
    "brighter": lambda image: np.clip(image * 1.1 + 15, 0, 255).astype(np.uint8),
    "16 bit": lambda image: image.astype(np.uint16) * 257,
    "float": lambda image: image.astype(np.float32) / 255 - 1,
    "smaller": lambda image: np.asarray(Image.fromarray(image).resize((85, 57), Image.Resampling.BILINEAR)),
    "mirrored": lambda image: image[:, ::-1],
    "upside down": lambda image: as_jpeg(np.ascontiguousarray(image[::-1])),
    "turned": np.rot90,
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_copy_is_found_among_others(change: str) -> None:
    others = tuple(hash_of(scene(seed)) for seed in range(30))
    copies = tuple(hash_of(CHANGES[change](scene(seed))) for seed in (7, 21))
    assert near_duplicates(copies, others) == (7, 21)
    assert near_duplicates(copies, others[8:20]) == (-1, -1)


def test_images_without_content_are_copies_of_nothing() -> None:
    blank = hash_of(np.full((40, 40), 9, np.uint8))
    assert blank == ""
    some = hash_of(scene(0))
    assert near_duplicates((blank, some), (blank, "", some)) == (-1, 2)
    rows = hash_of(np.repeat(np.arange(40, dtype=np.uint8)[:, np.newaxis], 40, axis=1))
    assert near_duplicates((rows,), (blank, rows)) == (1,), "nearly all of its frequencies are 0"
    assert near_duplicates((rows,), (blank,)) == (-1,)
    assert near_duplicates((), (some,)) == ()
    assert near_duplicates((some,), ()) == (-1,)


def test_of_very_many_images_only_equal_hashes_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segexp.data.similar.MOST_PAIRS", 3)
    one, other = hash_of(scene(100)), hash_of(scene(101))
    assert near_duplicates((one, other, ""), (other, one, "", one)) == (1, 0, -1)


def set_of(images: list[np.ndarray], groups: tuple[str, ...]) -> ImageSet:
    mask = np.pad(np.ones((2, 2), np.uint8), 10)
    pairs = [Pair(image[:22, :22, np.newaxis], np.roll(mask, n)) for n, image in enumerate(images)]
    names = tuple(f"i{n}" for n in range(len(images)))
    return ImageSet(names, groups, 1, 2, lambda i: pairs[i], lambda i: [b""], location="here")


def test_copies_across_parts_are_warned_about_but_for_images_of_one_group() -> None:
    images = [scene(0), scene(1), scene(2), scene(0)[:22, :22][:, ::-1], scene(3)]
    split = {"train": [0, 1], "val": [2], "test": [3, 4]}
    found = set_of(images, ("",) * 5)
    (warning,) = check_split(found, check_pairs(found), split)
    assert warning.startswith("1 test images look like copies")
    assert "i3, of i0" in warning
    (warning,) = check_split(found, check_pairs(found), {"train": [1, 2], "val": [0], "test": [3, 4]})
    assert warning.startswith("1 test images look like copies of a val image")
    same = dataclasses.replace(found, group_ids=("P", "", "", "P", ""))
    assert check_split(same, check_pairs(same), split) == []


def test_a_copy_is_not_an_image_with_a_strange_mask() -> None:
    found = set_of([scene(0), scene(1), scene(0)[:22, :22][:, ::-1]], ("",) * 3)
    mask = found.read(0).mask_HW
    alike = dataclasses.replace(found, read=lambda i: dataclasses.replace(found.read(i), mask_HW=mask))
    (warning,) = set_warnings(alike, check_pairs(alike))
    assert warning.startswith("2 images have the mask of another image, pixel by pixel (as i0 and i1)")
    copies = alike.subset([0, 2])
    assert set_warnings(copies, check_pairs(copies)) == []


def test_it_is_said_where_near_copies_are_not_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segexp.data.similar.MOST_PAIRS", 3)
    found = set_of([scene(n) for n in range(6)], ("",) * 6)
    facts = check_pairs(found)
    assert check_split(found, facts, {"train": [0, 1, 2, 3], "val": [4], "test": [5]}) == [UNCOMPARED]
    assert check_split(found, facts, {"train": [0, 1, 2], "val": [4], "test": [5]}) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dsb2018_nuclei", "usgra"])
def test_no_false_alarm_on_real_sets(name: str, shared_dir: Path) -> None:
    paths = sorted((shared_dir / "data" / name / "images").glob("*.png"))
    hashes = [hash_of(np.asarray(Image.open(path).convert("RGB").convert("L"))) for path in paths]
    for i, one in enumerate(hashes):
        assert near_duplicates((one,), (*hashes[:i], *hashes[i + 1 :])) == (-1,), paths[i]
