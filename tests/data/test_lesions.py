import functools
import math
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from segexp.data.image_set import ADAPTERS, fingerprint
from segexp.data.lesions import LesionsConfig, open_lesions
from segexp.errors import UsageError
from segexp.registry import fields_of

SLOW = pytest.mark.slow
CONFIG_FILE = Path(__file__).parents[2] / "configs" / "dataset" / "lesions.yaml"


def config_with(**options: Any) -> LesionsConfig:
    names = {field.name for field in fields(LesionsConfig)}
    values = {key: value for key, value in yaml.safe_load(CONFIG_FILE.read_text()).items() if key in names}
    return LesionsConfig(**(values | options))


@functools.cache
def pixels(**options: Any) -> tuple[np.ndarray, np.ndarray]:
    image_set = open_lesions(config_with(**options))
    pairs = [image_set.read(index) for index in range(len(image_set.image_ids))]
    return np.stack([pair.image_HWC for pair in pairs]), np.stack([pair.mask_HW for pair in pairs])


VARIED = {"image_size": 256, "foreground_fraction": 0.05, "empty_share": 0.3, "contrast": 0.5, "boundary_blur": 3.0}
VARIED |= {"distractors": 8.0, "noise": 0.2, "seed": 5}


# These hold on every platform and with every numpy from 1.26 on. Other pixels are another data set, and every
# published figure that names `dataset=lesions` is about the pixels frozen here.
@pytest.mark.parametrize(("options", "sha256"), [
    ({}, "f331dfe4e9e6b2af4975eb38aa64696cfcb487afbf0d71cfbb38338711780090"),
    ({"num_classes": 3}, "b951a5105be584e0892053c5f7a76ddfe21b53b9cc13b43ac62bbbe5c56b6bec"),
    ({"channels": 3}, "50644ab4618a9ec6a569d11d71e1f9226203da6281b8e6bcec7d3e5cb6e6b0b3"),
    (
        {"num_classes": 5, "channels": 2, "image_size": 96, "label_noise": 1.0},
        "1bb2bd35e67abfd85b2e32c121343f14af1142cc4def4413ea96a6d093f3133d",
    ),
    pytest.param(VARIED, "ff18b4d76eeeca0d2475fa87743f6b91227a6be8edf8397606b9212c2d224b77", marks=SLOW),
])  # fmt: skip
def test_pixels_are_frozen(options: dict[str, Any], sha256: str) -> None:
    assert fingerprint(open_lesions(config_with(number=12, **options))) == sha256


def test_config_file_names_every_option_and_no_other() -> None:
    given = set(yaml.safe_load(CONFIG_FILE.read_text())) - {"defaults"}
    assert given == {field.name for field in fields(LesionsConfig)}
    assert ADAPTERS.find("lesions").open is open_lesions


def test_what_is_promised_of_an_image_set() -> None:
    image_set = open_lesions(config_with(number=12, channels=2))
    assert image_set.image_ids[:2] == ("lesion_0000", "lesion_0001")
    assert image_set.group_ids == ("",) * 12
    assert (image_set.channels, image_set.num_classes, image_set.declared_split) == (2, 2, None)
    pair = image_set.read(3)
    assert (pair.image_HWC.dtype, pair.image_HWC.shape) == (np.uint8, (64, 64, 2))
    assert (pair.mask_HW.dtype, pair.mask_HW.shape) == (np.uint8, (64, 64))
    assert b"".join(image_set.file_bytes(3)) == pair.image_HWC.tobytes() + pair.mask_HW.tobytes()
    # Ids stay sorted beyond four digits, and a caller cannot spoil the next read.
    image_ids = open_lesions(config_with(number=10_001)).image_ids
    assert list(image_ids) == sorted(set(image_ids))
    before = fingerprint(image_set)
    pair.image_HWC[:] = 0
    assert fingerprint(image_set) == before


def test_pixels_depend_neither_on_the_order_of_reading_nor_on_the_number_of_images() -> None:
    few, many = open_lesions(config_with(number=8)), open_lesions(config_with(number=300))
    backwards = {index: many.read(index) for index in reversed(range(8))}
    for index in range(8):
        assert np.array_equal(few.read(index).image_HWC, backwards[index].image_HWC)
        assert np.array_equal(few.read(index).mask_HW, backwards[index].mask_HW)


@pytest.mark.parametrize("share", [0.5, *(pytest.param(share, marks=SLOW) for share in (0.0, 0.05, 1.0))])
def test_empty_share(share: float) -> None:
    _, mask_NHW = pixels(number=100, image_size=32, empty_share=share)
    assert np.mean(~mask_NHW.any(axis=(1, 2))) == pytest.approx(share, abs=0.02)


@pytest.mark.parametrize("fraction", [0.12, *(pytest.param(fraction, marks=SLOW) for fraction in (0.01, 0.05, 0.3))])
def test_foreground_fraction(fraction: float) -> None:
    _, mask_NHW = pixels(number=100, image_size=48, foreground_fraction=fraction, empty_share=0.0)
    share_N = (mask_NHW > 0).mean(axis=(1, 2))
    assert share_N.mean() == pytest.approx(fraction, rel=0.1)
    assert share_N.min() > 0


@pytest.mark.parametrize("num_classes", [3, *(pytest.param(number, marks=SLOW) for number in (2, 5))])
def test_every_class_occurs_about_equally_often(num_classes: int) -> None:
    _, mask_NHW = pixels(number=100, image_size=32, num_classes=num_classes)
    area_K = np.bincount(mask_NHW.ravel(), minlength=num_classes)[1:]
    assert len(area_K) == num_classes - 1
    assert area_K.min() > 0.6 * area_K.mean()


def brightness_above_tissue(**options: Any) -> float:
    image_NHWC, mask_NHW = pixels(number=40, distractors=0.0, **options)
    return float(image_NHWC[mask_NHW > 0].mean() - image_NHWC[mask_NHW == 0].mean())


@pytest.mark.slow
def test_contrast() -> None:
    # The blurred edge and clipped highlights lose some grey levels.
    assert brightness_above_tissue(contrast=0.0) == pytest.approx(0, abs=5)
    assert brightness_above_tissue(contrast=0.2) == pytest.approx(0.2 * 255, abs=15)
    assert brightness_above_tissue(contrast=0.4) == pytest.approx(0.4 * 255, abs=25)


@pytest.mark.slow
def test_distractors_are_as_bright_as_lesions_and_outside_the_mask() -> None:
    bare, full = pixels(number=60, distractors=0.0, noise=0.0), pixels(number=60, noise=0.0)
    assert np.array_equal(bare[1], full[1])
    added_NHW = full[0][..., 0].astype(int) - bare[0][..., 0]
    structure_NHW = added_NHW > 20
    assert not (structure_NHW & (full[1] > 0)).mean() > 0.01
    lesion, structure = full[0][..., 0][full[1] > 0].mean(), full[0][..., 0][structure_NHW].mean()
    assert structure == pytest.approx(lesion, rel=0.15)


def steepness(image_NHWC: np.ndarray, mask_NHW: np.ndarray) -> float:
    """Mean step of grey levels across the outlines."""
    return float(np.abs(np.diff(image_NHWC[..., 0], axis=2))[np.diff(mask_NHW > 0, axis=2)].mean())


@pytest.mark.parametrize(("option", "value", "measure", "expected"), [
    pytest.param("noise", 0.05, lambda x, bare, _: (x - bare)[bare < 200].std() / 255, 0.05, marks=SLOW),
    ("noise", 0.1, lambda x, bare, _: (x - bare)[bare < 200].std() / 255, 0.1),
    pytest.param("distractors", 2.0, lambda x, bare, _: np.mean(x - bare > 25), 0.038, marks=SLOW),
    ("distractors", 4.0, lambda x, bare, _: np.mean(x - bare > 25), 0.076),
    pytest.param(
        "boundary_blur", 1.0, lambda x, bare, mask: steepness(x, mask) / steepness(bare, mask), 0.36, marks=SLOW
    ),
    ("boundary_blur", 3.0, lambda x, bare, mask: steepness(x, mask) / steepness(bare, mask), 0.15),
    # Further kinds have another texture, and nothing else changes; further channels add to the first.
    ("num_classes", 5, lambda x, bare, mask: [np.abs(x - bare)[m].mean() for m in (mask < 2, mask > 1)], [0, 42]),
    ("channels", 3, lambda x, bare, _: (x - bare).std(axis=(0, 1, 2)), [0, 4, 7.5]),
])  # fmt: skip
def test_an_option_changes_what_it_names_and_no_outline(option: str, value: float, measure: Any, expected: Any) -> None:
    plain: dict[str, Any] = {"number": 60, "distractors": 0.0, "noise": 0.0, "boundary_blur": 0.0}
    plain |= {"num_classes": 2, "channels": 1}
    (bare_NHWC, before), (image_NHWC, mask_NHW) = pixels(**plain), pixels(**(plain | {option: value}))
    assert np.array_equal(before > 0, mask_NHW > 0)
    found = measure(image_NHWC.astype(int), bare_NHWC.astype(int), mask_NHW)
    assert found == pytest.approx(expected, rel=0.15)


@pytest.mark.slow
def test_label_noise_moves_outlines_and_leaves_images() -> None:
    exact, jittered = pixels(number=60), pixels(number=60, label_noise=1.0)
    assert np.array_equal(exact[0], jittered[0])
    area, jittered_area = (exact[1] > 0).sum(), (jittered[1] > 0).sum()
    shared = ((exact[1] > 0) & (jittered[1] > 0)).sum()
    assert 0.8 < 2 * shared / (area + jittered_area) < 0.95
    assert jittered_area == pytest.approx(area, rel=0.05)
    empty = ~exact[1].any(axis=(1, 2))
    assert empty.any()
    assert not jittered[1][empty].any()


def test_brightness_alone_does_not_solve_it() -> None:
    from skimage.filters import threshold_otsu

    scores = []
    for image_HWC, mask_HW in zip(*pixels(number=60), strict=True):
        bright_HW, lesion_HW = image_HWC[..., 0] > threshold_otsu(image_HWC[..., 0]), mask_HW > 0
        if lesion_HW.any():
            scores.append(2 * (bright_HW & lesion_HW).sum() / (bright_HW.sum() + lesion_HW.sum()))
    assert 0.3 < np.mean(scores) <= 0.55


RANGES = {o.name: (o.range.low, o.range.high) for o in fields_of(LesionsConfig) if math.isfinite(o.range.high)}


@pytest.mark.parametrize("key", RANGES)
def test_out_of_range_is_one_clear_line(key: str) -> None:
    low, high = RANGES[key]
    for value in (low - 1, high + 1, float("nan"), None):
        with pytest.raises(UsageError, match=rf"^dataset\.{key}=\S+ "):
            open_lesions(config_with(**{key: value}))


@pytest.mark.parametrize("end", [0, 1])
@pytest.mark.parametrize("key", sorted(RANGES.keys() - {"number", "image_size"}))
def test_ends_of_the_ranges_can_be_read(key: str, end: int) -> None:
    image_set = open_lesions(config_with(**{"number": 2, "image_size": 32, key: RANGES[key][end]}))
    assert image_set.read(1).image_HWC.shape == (32, 32, image_set.channels)
