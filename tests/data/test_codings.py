import io

import numpy as np
import pytest
from PIL import Image

from segexp.data.codings import CODINGS, MaskCoding, check_coding, decode_mask, parse_color
from segexp.losses import IGNORE

BINARY = MaskCoding("binary", 2)
ANTIALIAS = MaskCoding("binary", 2, antialias=True)


def grey(*values: int, dtype: type = np.uint8) -> np.ndarray:
    return np.array([values], dtype=dtype)


def rgb(*colors: tuple[int, int, int]) -> np.ndarray:
    return np.array([colors], dtype=np.uint8)


def decoded(mask: np.ndarray, coding: MaskCoding) -> list[int]:
    index_HW = decode_mask(mask, coding)
    assert index_HW.dtype == np.uint8
    assert index_HW.shape == mask.shape[:2]
    assert index_HW.flags.c_contiguous
    result: list[int] = index_HW.ravel().tolist()
    return result


INDEX, INDEX_2 = MaskCoding("index", 3), MaskCoding("index", 2)
BOOL = np.array([[False, True]])


@pytest.mark.parametrize(("coding", "mask", "expected"), [
    (BINARY, grey(0, 255, 0), [0, 1, 0]),
    (BINARY, grey(0, 1, 1), [0, 1, 1]),
    (BINARY, grey(0, 0), [0, 0]),
    (BINARY, grey(255, 255), [1, 1]),
    (BINARY, grey(1, 1), [1, 1]),
    (BINARY, grey(0, 65535, dtype=np.uint16), [0, 1]),
    (BINARY, grey(0, 255, dtype=np.uint16), [0, 1]),
    (BINARY, grey(0, 1, dtype=np.int64), [0, 1]),
    (BINARY, BOOL, [0, 1]),
    (BINARY, rgb((0, 0, 0), (255, 255, 255)), [0, 1]),
    (BINARY, rgb((0, 0, 0), (1, 1, 1)), [0, 1]),
    (MaskCoding("binary", 2, threshold=127), rgb((0, 0, 0), (255, 255, 0)), [0, 1]),
    (MaskCoding("binary", 2, threshold=127), grey(0, 65535, 127, dtype=np.uint16), [0, 1, 0]),
    (MaskCoding("binary", 2, threshold=0), grey(0, 1, 200, 70_000, dtype=np.int64), [0, 1, 1, 1]),
    (ANTIALIAS, rgb((0, 0, 0), (255, 255, 255), (126, 129, 127)), [0, 1, 1]),
    (ANTIALIAS, grey(0, 1, 1), [0, 1, 1]),
    (ANTIALIAS, grey(0, 100, 200, 255, 250), [0, 0, 1, 1, 1]),
    (MaskCoding("binary", 2, threshold=10), grey(0, 9, 10, 11), [0, 0, 0, 1]),
    (MaskCoding("binary", 2, threshold=200), BOOL, [0, 1]),
    # An ignored value does not hide that the rest is 0 and 1.
    (MaskCoding("binary", 2, ignore=255), grey(0, 1, 255), [0, 1, IGNORE]),
    (MaskCoding("binary", 2, ignore=9), rgb((0, 0, 0), (255, 255, 255), (9, 9, 9)), [0, 1, IGNORE]),
    (INDEX, grey(0, 2, 1), [0, 2, 1]),
    (INDEX, rgb((0, 0, 0), (2, 2, 2), (1, 1, 1)), [0, 2, 1]),
    (INDEX, BOOL, [0, 1]),
    # Ignored before it is checked.
    (MaskCoding("index", 2, ignore=999), grey(0, 999, 1, dtype=np.uint16), [0, IGNORE, 1]),
    (MaskCoding("index", 2, ignore=-1), grey(0, -1, 1, dtype=np.int64), [0, IGNORE, 1]),
    (MaskCoding("index", 2, ignore_other=True), grey(0, 1, 2, 255), [0, 1, IGNORE, IGNORE]),
    (MaskCoding("values", 2, codes=(7, 9), ignore_other=True), grey(7, 9, 0), [0, 1, IGNORE]),
    (MaskCoding("colors", 2, codes=(0, 0xFF0000), ignore_other=True), rgb((255, 0, 0), (0, 0, 9)), [1, IGNORE]),
])  # fmt: skip
def test_binary_and_index(coding: MaskCoding, mask: np.ndarray, expected: list[int]) -> None:
    assert decoded(mask, coding) == expected


def disc(*radii: float) -> np.ndarray:
    """bool (96, 96): discs of these radii."""
    y, x = np.mgrid[:96, :96]
    at = enumerate(radii)
    return np.any([(y - 14 - 22 * (i // 4)) ** 2 + (x - 12 - 23 * (i % 4)) ** 2 < r * r for i, r in at], axis=0)


def compressed(mask: np.ndarray, quality: int, mode: str = "L") -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(mask).convert(mode).save(file, "JPEG", quality=quality)
    return np.array(Image.open(file))


@pytest.mark.parametrize("quality", [50, 69, 75, 85, 95])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_declared_outlines_survive_jpeg_and_smoothing(mode: str, quality: int) -> None:
    truth_HW = disc(1.5, 2, 3, 4, 5, 6, 8, 10)
    mask = compressed(truth_HW.astype(np.uint8) * 255, quality, mode)
    assert len(np.unique(mask)) > 10, "no ringing, the test shows nothing"
    assert (decode_mask(mask, ANTIALIAS) != truth_HW).mean() < 0.002
    with pytest.raises(ValueError, match=r"dataset\.mask_antialias=true"):
        decode_mask(mask, BINARY)
    small = Image.fromarray(truth_HW.astype(np.uint8) * 255)
    for side in (48, 130, 192, 384):
        assert decode_mask(np.array(small.resize((side, side), Image.Resampling.BILINEAR)), ANTIALIAS).max() == 1


@pytest.mark.parametrize(("values", "named"), [
    ((85, 170, 255), r"mask_values=\[0,85,170,255\]"),
    ((128, 255), r"mask_values=\[0,128,255\]"),
    ((1, 2, 3), r"mask_coding=index .*num_classes=4"),
    ((1, 2, 255), r"mask_coding=index .*num_classes=3 .*ignore_index=255"),
    ((1, 255), r"mask_coding=index .*ignore_index=255"),
    ((255, 254), r"mask_values"),
])  # fmt: skip
def test_classes_are_no_outlines(values: tuple[int, ...], named: str) -> None:
    mask = np.zeros((96, 96), np.uint8)
    for i, value in enumerate(values):
        mask[disc(*[0] * i, 10)] = value
        mask[disc(*[0] * (i + 4), 10)] = value
    for coding in (BINARY, ANTIALIAS) if values != (255, 254) else (BINARY,):
        with pytest.raises(ValueError, match=named):
            decode_mask(mask, coding)


@pytest.mark.parametrize(("coding", "mask", "reason"), [
    (BINARY, grey(0, 1, 2), r"values 0, 1, 2: .*mask_coding=index with dataset.num_classes=3"),
    (BINARY, grey(0, 2), r"values 0, 2: .*mask_coding=index"),
    (BINARY, grey(0, 1, 255), r"values 0, 1, 255: .*mask_coding=index .*dataset.ignore_index=255"),
    (BINARY, grey(0, 128), r"values 0, 128: .*dataset.mask_values=\[0,128\]"),
    (BINARY, grey(200), r"value 200: .*dataset.mask_values"),
    (BINARY, grey(*range(257), dtype=np.uint16), r"257 different values.*dataset.mask_threshold=0"),
    (BINARY, grey(0, 1, 2, 3), r"num_classes=4 or more; if its values number objects.*dataset.mask_threshold=0$"),
    (BINARY, grey(0, 7, 300, 301, dtype=np.uint16), r"mask_values=.*; if its values .*dataset.mask_threshold=0$"),
    (BINARY, grey(0, -1, dtype=np.int64), r"values -1, 0: "),
    (BINARY, rgb((0, 0, 0), (255, 255, 0)), r'mask_colors=\["#000000","#ffff00"\]'),
    (BINARY, rgb((0, 0, 0), (128, 0, 0), (0, 128, 0)), "mask_coding=binary.*=colors.*index"),
    (ANTIALIAS, grey(0, 300, dtype=np.uint16), "8-bit"),
    (ANTIALIAS, rgb((0, 0, 0), (255, 255, 255), (200, 0, 0)), "has colours"),
    (MaskCoding("index", 3), grey(-1, 0, dtype=np.int64), "value -1 outside"),
    (MaskCoding("index", 3), rgb((0, 0, 0), (1, 1, 1), (0, 0, 0)).astype(np.uint16) * [[[1, 2, 3]]], "colours of"),
    (INDEX_2, grey(0, 255), r"value 255 outside 0\.\.1 .*dataset.mask_coding=binary"),
    (INDEX_2, grey(0, 1, 4), r"value 4 outside 0\.\.1 .*; set dataset.num_classes=5, or dataset.ignore_index=4 if"),
    (INDEX_2, grey(0, 1, 2, 3), r"values 2, 3 outside 0\.\.1 \(mask_coding=index\); set dataset.num_classes=4$"),
    (MaskCoding("index", 150), grey(0, 7, 150), r"value 150 outside .*; set dataset.num_classes=151, "),
    (MaskCoding("index", 3, ignore=255), grey(0, 3, 255), r"value 3 .*; set dataset.num_classes=4$"),
    (INDEX_2, grey(*[0] * 40, 1, 200), "value 200 .*ignore_index=200; if it is a class, set dataset.mask_coding=val"),
    (MaskCoding("index", 3, regions=((1, 2), (2,))), grey(0, 1, 3), r"value 3 .*; set dataset.regions .* lists 3"),
    (INDEX_2, grey(0, 1, 2, 255), "values 2, 255 outside .*; set dataset.num_classes=3 and dataset.ignore_index=255"),
    (INDEX_2, grey(0, 128, 255), r"mask_coding=values with .*num_classes=3 and dataset.mask_values=\[0,128,255\]"),
    (INDEX_2, grey(*range(200)), r"values 2, 3, 4, 5, 6 and 193 more .*200 different values"),
    (INDEX_2, rgb((0, 0, 0), (1, 0, 0)), "mask_coding=index.*'colors'"),
    (INDEX_2, grey(*[0] * 40, 1, 2), "value 2 .*; set dataset.num_classes=3, or dataset.ignore_index=2 if it"),
    (INDEX_2, grey(0, 1, 255), "value 255 .*dataset.ignore_index=255$"),
    (MaskCoding("values", 2, codes=(0, 9)), grey(*[0] * 40, 9, 7), "value 7 .*dataset.ignore_index=7"),
])  # fmt: skip
def test_masks_that_do_not_fit_name_what_does(coding: MaskCoding, mask: np.ndarray, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        decode_mask(mask, coding)


def test_values() -> None:
    coding = MaskCoding("values", 3, codes=(0, 128, 1000), ignore=7)
    assert decoded(grey(1000, 0, 7, 128, dtype=np.uint16), coding) == [2, 0, IGNORE, 1]
    with pytest.raises(ValueError, match=r"value 3 .*mask_values.*num_classes=4"):
        decode_mask(grey(0, 3), coding)


def test_colors() -> None:
    coding = MaskCoding("colors", 3, codes=(0x000000, 0x800000, 0xFFFFFF), ignore=0xE0E0C0)
    assert decoded(rgb((128, 0, 0), (224, 224, 192), (255, 255, 255), (0, 0, 0)), coding) == [1, IGNORE, 2, 0]
    assert decoded(grey(0, 255), coding) == [0, 2]
    assert decoded(np.array([[True, False]]), coding) == [2, 0]
    with pytest.raises(ValueError, match=r"#000080, #810000 .*mask_colors"):
        decode_mask(rgb((129, 0, 0), (0, 0, 128), (0, 0, 0)), coding)
    with pytest.raises(ValueError, match="16-bit"):
        decode_mask(grey(0, dtype=np.uint16), coding)


@pytest.mark.parametrize(("coding", "reason"), [
    (MaskCoding("indexed", 2), "did you mean index"),
    (MaskCoding("index", 1), "num_classes=1"),
    (MaskCoding("index", 256), "2 .* to 255"),
    (MaskCoding("binary", 3), "needs num_classes=2"),
    (MaskCoding("values", 3, codes=(0, 1)), "mask_values .*2 .*num_classes=3"),
    (MaskCoding("colors", 2), "mask_colors .*0 "),
    (MaskCoding("values", 2, codes=(1, 1)), "same entry"),
    (MaskCoding("values", 2, codes=(0, 9), ignore=9), "mask_coding=.*ignored"),
    (MaskCoding("index", 2, ignore=1), "mask_coding=.*ignored"),
    (MaskCoding("index", 2, antialias=True), "mask_antialias"),
    (MaskCoding("binary", 2, ignore_other=True), "mask_other"),
])  # fmt: skip
def test_contradictions_are_refused(coding: MaskCoding, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        check_coding(coding)


def test_sound_codings_pass() -> None:
    sound = [BINARY, MaskCoding("index", 255, ignore=255)]
    sound += [MaskCoding("values", 2, codes=(0, 9), ignore=1), MaskCoding("colors", 2, codes=(0, 0xFFFFFF))]
    for coding in sound:
        check_coding(coding)
    assert {coding.name for coding in sound} == set(CODINGS)


def test_parse_color() -> None:
    assert parse_color("#80ff0A") == 0x80FF0A
    for text in ("800000", "#fff", "red", "#80000g"):
        with pytest.raises(ValueError, match="#rrggbb"):
            parse_color(text)
