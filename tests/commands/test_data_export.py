"""`segexp data export`: what was written is read back with equal pixels, parts and groups."""

import csv
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from segexp import cli
from segexp.config.compose import compose, hydra_session
from segexp.data.image_set import ImageSet
from segexp.running import opened

IGNORED = 127


def image_set(*overrides: str) -> ImageSet:
    with hydra_session():
        return opened(compose(list(overrides)))[1]


@pytest.mark.parametrize(
    ("asked", "coding"),
    [
        ([], []),
        (["dataset.num_classes=4", "dataset.channels=3"], ["dataset.mask_coding=index", "dataset.num_classes=4"]),
        (["dataset.channels=5"], []),
    ],
    ids=["grey", "four classes, RGB", "five channels"],
)
@pytest.mark.parametrize("adapter", ["manifest", "folder"])
def test_the_folder_holds_the_same_pairs(asked: list[str], coding: list[str], adapter: str, tmp_path: Path) -> None:
    small = ["dataset.number=4", "dataset.image_size=32", *asked]
    assert cli.main(["data", "export", "lesions", *small, "-o", str(tmp_path / "out")]) == 0
    assert not list(tmp_path.glob("*.partial"))
    before = image_set("dataset=lesions", *small)
    after = image_set(f"dataset={adapter}", f"dataset.root={tmp_path / 'out'}", *coding)
    assert after.image_ids == before.image_ids
    for index in range(4):
        a, b = before.read(index), after.read(index)
        assert a.image_HWC.dtype == b.image_HWC.dtype
        assert np.array_equal(a.image_HWC, b.image_HWC)
        assert np.array_equal(a.mask_HW, b.mask_HW)


def test_parts_groups_and_ignored_pixels_are_kept(tmp_path: Path) -> None:
    for folder in ("images", "masks", "splits"):
        (tmp_path / "in" / folder).mkdir(parents=True)
    mask = np.zeros((9, 8), np.uint8)
    mask[:3], mask[3:5] = 255, IGNORED
    for name in "abcd":
        Image.fromarray(mask // 2).save(tmp_path / "in" / "images" / f"{name}.png")
        Image.fromarray(mask).save(tmp_path / "in" / "masks" / f"{name}.png")
    (tmp_path / "in" / "splits" / "train.txt").write_text("a\nb\n")
    (tmp_path / "in" / "splits" / "val.txt").write_text("c\n")
    (tmp_path / "in" / "splits" / "test.txt").write_text("d\n")
    (tmp_path / "in" / "who.csv").write_text("stem,patient\na,P1\nb,P1\nc,P2\nd,P3\n")
    given = [f"dataset.root={tmp_path / 'in'}", f"dataset.ignore_index={IGNORED}"]
    given += ["dataset.group_file=who.csv", "dataset.group_column=patient"]
    assert cli.main(["data", "export", "folder", *given, "-o", str(tmp_path / "out")]) == 0
    with (tmp_path / "out" / "manifest.csv").open(newline="") as file:
        rows = [(row["id"], row["group"], row["split"]) for row in csv.DictReader(file)]
    assert rows == [("a", "P1", "train"), ("b", "P1", "train"), ("c", "P2", "val"), ("d", "P3", "test")]
    after = image_set("dataset=manifest", f"dataset.root={tmp_path / 'out'}", f"dataset.ignore_index={IGNORED}")
    assert (after.group_ids, after.declared_split) == (("P1", "P1", "P2", "P3"), {i: part for i, _, part in rows})
    assert np.array_equal(after.read(0).mask_HW, np.where(mask == IGNORED, 255, mask == 255))


def test_the_printed_words_read_the_exported_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in ("images", "masks"):
        (tmp_path / "in" / folder).mkdir(parents=True)
    mask = np.arange(72, dtype=np.uint8).reshape(9, 8) % 4
    for n in range(4):
        Image.fromarray(60 * mask).save(tmp_path / "in" / "images" / f"{n}.png")
        Image.fromarray(np.where(mask == 3, 9, mask)).save(tmp_path / "in" / "masks" / f"{n}.png")
    words = [f"dataset.root={tmp_path / 'in'}", "dataset.mask_coding=index", "dataset.num_classes=3"]
    assert cli.main(["data", "export", "folder", *words, "dataset.ignore_index=9", "-o", str(tmp_path / "out")]) == 0
    after = image_set(*capsys.readouterr().out.partition(": ")[2].split())
    assert np.array_equal(after.read(0).mask_HW, np.where(mask == 3, 255, mask))


@pytest.mark.parametrize("given", [[], ["dataset.spacing=[3,4]"]], ids=["of the file", "of dataset.spacing"])
def test_the_size_of_a_pixel_is_kept(given: list[str], tmp_path: Path) -> None:
    for folder in ("images", "masks"):
        (tmp_path / "in" / folder).mkdir(parents=True)
        volume = nibabel.Nifti1Image(np.ones((6, 5, 2), np.uint8), np.diag([0.5, 1.25, 2, 1]))
        nibabel.save(volume, tmp_path / "in" / folder / "P1.nii")
    assert (
        cli.main(["data", "export", "folder", f"dataset.root={tmp_path / 'in'}", *given, "-o", f"{tmp_path / 'out'}"])
        == 0
    )
    after = image_set("dataset=manifest", f"dataset.root={tmp_path / 'out'}")
    assert [spacing[1:] for spacing in after.spacings if spacing] == [(3.0, 4.0) if given else (1.25, 0.5)] * 2


def test_pairs_that_cannot_be_used_are_named_and_nothing_is_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder, width in (("images", 8), ("masks", 9)):
        (tmp_path / "in" / folder).mkdir(parents=True)
        for name, more in (("good", 0), ("bad", width - 8)):
            Image.fromarray(np.zeros((8, 8 + more), np.uint8)).save(tmp_path / "in" / folder / f"{name}.png")
    words = ["data", "export", "folder", f"dataset.root={tmp_path / 'in'}", "-o", str(tmp_path / "out")]
    assert cli.main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "1 of 2 pairs cannot be used" in line
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    (tmp_path / "in" / "images" / "bad.png").unlink()
    (tmp_path / "in" / "masks" / "bad.png").unlink()
    assert cli.main(words) == 0


def test_no_folder_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").mkdir()
    for words in ([], ["-o", str(tmp_path / "mine")]):
        assert cli.main(["data", "export", "lesions", "dataset.number=4", *words]) == 2
        assert "-o FOLDER" in capsys.readouterr().err
    assert list((tmp_path / "mine").iterdir()) == []
