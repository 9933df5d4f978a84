"""Every pair is checked before training; one message names the first offenders, their number and the cure."""

import dataclasses
import importlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from segexp import data
from segexp.data.check import check_pairs, check_set, check_split, set_warnings
from segexp.data.image_set import ImageError, ImageSet, Pair, fingerprint, pair_digest, stamp, watched
from segexp.errors import DataChangedError, UsageError
from segexp.registry import Registry


def image_set(pairs: Sequence[Pair | str], num_classes: int = 2) -> ImageSet:
    def read(index: int) -> Pair:
        pair = pairs[index]
        if isinstance(pair, str):
            raise ImageError(pair)
        return pair

    return ImageSet(
        image_ids=tuple(f"i{n}" for n in range(len(pairs))),
        group_ids=("",) * len(pairs),
        channels=1,
        num_classes=num_classes,
        read=read,
        file_bytes=lambda i: [str(pairs[i]).encode()],
        location="here",
    )


def pair(height: int = 4, width: int = 6, value: int = 1, channels: int = 1, mask_width: int | None = None) -> Pair:
    mask = np.zeros((height, mask_width or width), np.uint8)
    mask[0, 0] = value
    return Pair(np.zeros((height, width, channels), np.uint8), mask)


def test_facts_are_sizes_and_pixels_per_class() -> None:
    facts = check_pairs(image_set([pair(), pair(8, 8, 0), pair(3, 3, 255)]))
    assert facts.sizes_N2.tolist() == [[4, 6], [8, 8], [3, 3]]
    assert facts.class_pixels_NC.tolist() == [[23, 1], [64, 0], [8, 0]]


@pytest.mark.parametrize(("bad", "told"), [
    ("broken.png: truncated", "broken.png: truncated"), (pair(mask_width=5), r"i0: .*\(4, 6\).*\(4, 5\)"),
    (pair(channels=3), "i0: 3 .*1"), (pair(value=7), "i0: .*7 .*num_classes=2"),
])  # fmt: skip
def test_each_fault_is_told(bad: Pair | str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        check_pairs(image_set([bad, pair()]))
    with pytest.raises(UsageError, match="here"):
        check_pairs(image_set([]))


def test_many_offenders_are_one_line_with_their_number() -> None:
    with pytest.raises(UsageError) as caught:
        check_pairs(image_set([f"file{n}: unreadable" for n in range(40)] + [pair()]))
    message = str(caught.value)
    assert all(part in message for part in ("40 of 41", "file0", "file4", "35"))
    assert not any(part in message for part in ("file5", "\n"))


def test_an_adapter_is_found_by_its_module_without_a_list(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A copy of the package with one more module; modules that are no adapters are not imported."""
    copy = tmp_path / "segexp_data"
    shutil.copytree(Path(data.__file__).parent, copy)
    text = (copy / "lesions.py").read_text(encoding="utf-8").replace('@adapter("lesions"', '@adapter("spots"')
    (copy / "spots.py").write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("segexp.data.image_set.ADAPTERS", Registry("dataset"))
    package = importlib.import_module("segexp_data")
    assert {"folder", "lesions", "spots"} <= set(package.adapters())
    assert "segexp_data.batches" not in sys.modules


@pytest.mark.parametrize("bad", ["b" * 201, "../b", "..", "a_reference", "a_class12"])
def test_names_that_pictures_cannot_have(bad: str) -> None:
    images = image_set([pair()] * 2)
    check_pairs(dataclasses.replace(images, image_ids=("a" * 200, "b_reference")))
    with pytest.raises(UsageError, match=f"1 of 2 .*: {re.escape(bad[:50])}"):
        check_pairs(dataclasses.replace(images, image_ids=("a", bad)))


def test_fingerprint_depends_on_names_bytes_and_their_order() -> None:
    def of(ids: tuple[str, ...], contents: list[list[bytes]]) -> str:
        base = image_set([pair() for _ in ids])
        return fingerprint(ImageSet(**{**base.__dict__, "image_ids": ids, "file_bytes": lambda i: contents[i]}))

    base = of(("a", "b"), [[b"1", b"2"], [b"3"]])
    assert base == of(("a", "b"), [[b"12"], [b"3"]])
    assert base != of(("a", "c"), [[b"1", b"2"], [b"3"]])
    assert base != of(("a", "b"), [[b"1"], [b"23"]])
    assert base != of(("b", "a"), [[b"1", b"2"], [b"3"]])


def textured(seed: int, height: int = 4) -> Pair:
    pixels = np.random.default_rng(seed).integers(0, 255, (height, 6, 1), dtype=np.uint8)
    mask = np.zeros((height, 6), np.uint8)
    mask[0, 0] = 1
    return Pair(pixels, mask)


def test_an_image_is_known_by_its_pixels() -> None:
    """Not by its mask; an image of one value is equal to any other such, and known by nothing."""
    other_mask = Pair(textured(0).image_HWC, np.ones((4, 6), np.uint8))
    facts = check_pairs(image_set([textured(0), other_mask, textured(1), pair(), textured(0, height=5)]))
    first, same, other, blank, taller = facts.image_sha_N
    assert first == same
    assert len({first, other, taller}) == 3
    assert len(first) == 16
    assert blank == ""


def test_copies_of_training_images_are_told() -> None:
    images = image_set([textured(0), textured(1), textured(2), textured(0), pair(), pair()])
    facts = check_pairs(images)
    (told,) = check_split(images, facts, {"train": [0, 1, 4], "val": [2], "test": [3, 5]})
    assert told.startswith("1 test images")
    assert "i3" in told
    (told,) = check_split(images, facts, {"train": [1, 2, 4], "val": [0], "test": [3, 5]})
    assert told.startswith("1 test images are pixel-identical to a val image (the first is i3)")
    assert check_split(images, facts, {"train": [0, 1, 4], "val": [2], "test": [5]}) == []


def test_a_pair_that_changes_after_the_check_is_not_read(tmp_path: Path) -> None:
    """Its time alone is no change; another content of the same size and time is one."""
    path = tmp_path / "i0.png"
    path.write_bytes(b"old")
    images = dataclasses.replace(image_set([pair()]), files=lambda i: (path,), file_bytes=lambda i: [path.read_bytes()])
    checked = watched(images, [stamp(images, 0)], [pair_digest(images, 0)])
    os.utime(path, ns=(1, 1))
    checked.read(0)
    path.write_bytes(b"new")
    os.utime(path, ns=(1, 1))
    for _ in range(2):
        with pytest.raises(DataChangedError, match=re.escape(str(path))):
            checked.read(0)
        path.unlink(missing_ok=True)


def test_what_is_probably_wrong_is_a_warning() -> None:
    full = Pair(textured(0).image_HWC, np.ones((4, 6), np.uint8))
    images = image_set([full, full, textured(1)])
    warnings = set_warnings(images, check_pairs(images, side=2))
    assert [line.split(" (")[0] for line in warnings] == ["2 of 3 masks have no background"]


def test_images_and_masks_that_carry_no_information_are_listed() -> None:
    """A constant image, and one mask for two different images; not for two copies, or slices of one patient."""
    shared = [Pair(textured(n).image_HWC, textured(0).mask_HW) for n in (0, 1, 1)]
    blank = Pair(np.full((4, 6, 1), 7, np.uint8), np.zeros((4, 6), np.uint8))
    images = image_set([*shared[:2], blank])
    constant, same = set_warnings(images, check_pairs(images))
    assert constant.startswith("1 of 3 images")
    assert "i2" in constant
    assert "i0 and i1" in same
    copies = image_set(shared[1:])
    assert set_warnings(copies, check_pairs(copies)) == []
    patient = dataclasses.replace(image_set(shared[:2]), group_ids=("P", "P"))
    assert set_warnings(patient, check_pairs(patient)) == []


def test_objects_that_vanish_by_resizing_are_counted() -> None:
    """Of 6 objects of 2 x 2 pixels, those between the samples of a smaller network are gone."""
    mask = np.zeros((64, 64), np.uint8)
    for n in range(6):
        mask[8 * n + 4 + 2 * (n > 2), 8 * n + 4] = 1  # sampled are rows and columns 4, 12, ...
        mask[8 * n + 5 + 2 * (n > 2), 8 * n + 5] = 1  # joined at the corner
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 1), dtype=np.uint8)
    images = image_set([Pair(image, mask)] * 3)
    facts = check_pairs(images, side=8)
    assert facts.objects_NC.tolist() == [[0, 6]] * 3
    assert facts.gone_NC.tolist() == [[0, 3]] * 3
    split = {"train": [0, 1], "val": [2], "test": [2]}
    assert any(
        re.search(r"6 of 12 objects of class 1 .*dataset.image_size", line)
        for line in check_split(images, facts, split)
    )
    whole = check_pairs(images)
    assert whole.gone_NC.sum() == 0
    assert not any("objects" in line for line in check_split(images, whole, split))


def test_images_of_several_depths_need_a_declared_rule() -> None:
    deep = Pair(textured(1).image_HWC.astype(np.uint16) * 200, textured(1).mask_HW)
    images = image_set([textured(0), textured(2), deep])
    facts = check_pairs(images)
    with pytest.raises(UsageError, match=r"1 uint16, 2 uint8; as i2\b.*dataset.normalise=image"):
        check_set(images, facts, "train", None)
    check_set(images, facts, "image", None)
    check_set(images, facts, "percentile", None)
    check_set(images, facts, "full_range", None)
    signed = dataclasses.replace(facts, dtypes_N=("uint8", "uint8", "int16"))
    with pytest.raises(UsageError, match="percentile, or convert"):
        check_set(images, signed, "full_range", None)
    with pytest.raises(UsageError, match="percentile, or convert"):
        check_set(images, facts, "ct(0,99)", None)
    stored = dataclasses.replace(facts, dtypes_N=("float32", "int16", "int16"))
    for rule in ("train", "full_range", "ct(0,99)"):
        check_set(images, stored, rule, None)
    scales = [dataclasses.replace(textured(n), image_HWC=textured(n).image_HWC / np.float32(255**n)) for n in (0, 1)]
    mixed = image_set([*scales])
    warnings = set_warnings(mixed, check_pairs(mixed))
    assert any("1 of 2 images reach 1 at most" in line and "dataset.normalise=image" in line for line in warnings)


def test_sizes_of_pixels_and_groups_of_volumes_have_one_reading() -> None:
    images = dataclasses.replace(image_set([textured(0), textured(1)]), spacings=((1.0, 0.5, 0.5), None))
    facts = check_pairs(images)
    with pytest.raises(UsageError, match=r"i1.*dataset.spacing"):
        check_set(images, facts, "train", None)
    check_set(images, facts, "train", [0.5, 0.5])
    volume = dataclasses.replace(images, spacings=(), case_ids=("v", "v"), group_ids=("P", "Q"))
    with pytest.raises(UsageError, match=r"slices of v .* P and Q"):
        check_set(volume, facts, "train", None)
    check_set(dataclasses.replace(volume, group_ids=("P", "P")), facts, "train", None)


def test_names_that_are_not_utf8_are_shown_escaped() -> None:
    with pytest.raises(UsageError, match=r"l\\udce4sion"):
        check_pairs(dataclasses.replace(image_set([pair()]), image_ids=("l\udce4sion",)))


def test_a_set_without_any_foreground_is_said_to_be_that() -> None:
    empty = image_set([pair(value=0)] * 4)
    with pytest.raises(UsageError, match=r"no mask of here .*mask_coding"):
        check_split(empty, check_pairs(empty), {"train": [0, 1], "val": [2], "test": [3]})


def test_scipy_is_imported_before_the_threads() -> None:
    """Where two threads import it at once it fails, now and then."""
    code = """
import concurrent.futures, sys
from unittest import mock
from segexp.config.compose import compose, hydra_session
from segexp.running import opened
with hydra_session() as extra:
    image_set = opened(compose(["dataset=lesions", "dataset.number=4"], extra))[0]
def pool(*arguments):
    print({"scipy.fft", "scipy.ndimage"} <= sys.modules.keys())
    return mock.MagicMock()
with mock.patch.object(concurrent.futures, "ThreadPoolExecutor", pool):
    from segexp.data.check import inspect_pairs
    inspect_pairs(image_set)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.stdout.split() == ["True"], result.stderr
