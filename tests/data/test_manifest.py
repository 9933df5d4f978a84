"""A table of images: paths, channels, parts, groups, ids and pixel sizes, as other programs write them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from shipped import shipped

from segexp.data.check import check_pairs, check_set, is_stored
from segexp.data.image_set import ImageSet, fingerprint
from segexp.data.manifest import ManifestConfig, open_manifest
from segexp.errors import UsageError

IMAGE_HW = np.random.default_rng(1).integers(0, 256, (6, 8), dtype=np.uint8)
MASK_HW = np.zeros((6, 8), dtype=np.uint8)
MASK_HW[2:4, 3:7] = 255


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """scans/a.png, b.png, c.png with labels/a.png, ... below root; outside.png beside it."""
    for name in "abc":
        for folder, pixels in (("scans", IMAGE_HW), ("labels", MASK_HW)):
            (tmp_path / "root" / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / "root" / folder / f"{name}.png")
    Image.fromarray(IMAGE_HW).save(tmp_path / "outside.png")
    return tmp_path / "root"


def opened(root: Path, table: str, **options: Any) -> ImageSet:
    (root / "manifest.csv").write_text(table, encoding="utf-8")
    return open_manifest(shipped(ManifestConfig, "manifest", **{"root": str(root)} | options))


def refusal(root: Path, table: str, **options: Any) -> str:
    with pytest.raises(UsageError) as refused:
        opened(root, table, **options)
    assert "\n" not in str(refused.value)
    return str(refused.value)


FULL = """image,mask,split,group,id,spacing
scans/a.png,labels/a.png,Train,P1,001,0.5
scans/b.png,labels/b.png,validation,P1,1e5,0.5 0.25

scans/c.png,labels/c.png,testing,p1,"x, y",3 0.5 0.25
"""


def test_every_column(root: Path) -> None:
    found = opened(root, FULL)
    assert found.image_ids == ("001", "1e5", "x, y")
    assert found.group_ids == ("P1", "P1", "p1")
    assert found.declared_split == {"001": "train", "1e5": "val", "x, y": "test"}
    assert found.spacings == ((0.0, 0.5, 0.5), (0.0, 0.5, 0.25), (3.0, 0.5, 0.25))
    assert np.array_equal(found.read(0).mask_HW, MASK_HW // 255)
    notes = " ".join(found.notes)
    assert "1e5" in notes
    assert "P1 and p1" in notes
    assert found.unused == {}
    assert fingerprint(found) != fingerprint(opened(root, FULL.replace("0.5 0.25", "0.5 0.24")))


@pytest.mark.parametrize("mark", [";", "\t"])
def test_a_decimal_comma_where_columns_are_separated_otherwise(mark: str, root: Path) -> None:
    table = "image,mask,spacing\nscans/a.png,labels/a.png,0_5 0_75\nscans/b.png,labels/b.png,0.5\n"
    found = opened(root, table.replace(",", mark).replace("_", ","))
    assert found.spacings == ((0.0, 0.5, 0.75), (0.0, 0.5, 0.5))


def test_columns_of_other_names(root: Path) -> None:
    table = "file;truth;fold;who\nscans/a.png;labels/a.png;train;1\nscans/b.png;labels/b.png;test;2\n"
    names = {"image_column": "file", "mask_column": "truth", "split_column": "fold", "group_column": "who"}
    found = opened(root, table, **names)
    assert (found.image_ids, found.group_ids) == (("a", "b"), ("1", "2"))
    assert found.unused == {f"{folder}/c.png": "not in manifest.csv" for folder in ("scans", "labels")}
    for option in names:
        words = refusal(root, table, **names | {option: "other"})
        assert f"dataset.{option}" in words
        assert "'other'" in words
    assert opened(root, table, **names | {"split_column": None}).declared_split is None


def test_paths(root: Path) -> None:
    rows = f"image,mask\nscans\\a.png,.\\labels\\a.png\n{root}/scans/b.png,scans/../labels/b.png\n"
    assert opened(root, rows).files(1) == (root / "scans" / "b.png", root / "labels" / "b.png")
    link = root.parent / "link"
    link.symlink_to(root)
    through = rows.replace(str(root), str(link))
    assert opened(link, through).image_ids == ("a", "b")
    (root / "scans" / "d.png").symlink_to(root.parent / "outside.png")
    assert opened(root, "image,mask\nscans/d.png,labels/a.png\n").image_ids == ("d",)


@pytest.mark.parametrize("cell", ["../outside.png", "scans/../../outside.png", "..\\outside.png", "/etc/hostname"])
def test_a_path_that_leaves_root_is_refused(cell: str, root: Path) -> None:
    words = refusal(root, f"image,mask\n{cell},labels/a.png\n")
    assert "line 2" in words
    assert "outside" in words


def test_channels_in_several_files(root: Path) -> None:
    several = "image_2,image_10,image_1,mask\nscans/b.png,scans/c.png,scans/a.png,labels/a.png\n"
    one = "image,mask\nscans/a.png|scans/b.png|scans/c.png,labels/a.png|labels/b.png\n"
    for table, options in ((several, {}), (one, {"files_separator": "|"})):
        found = opened(root, table, **options)
        assert [path.stem for path in found.files(0)[:3]] == ["a", "b", "c"]
        assert (found.channels, found.read(0).image_HWC.shape) == (3, (6, 8, 3))
    assert "image_1" in refusal(root, "image,image_1,mask\nscans/a.png,scans/b.png,labels/a.png\n")
    uneven = one + "scans/b.png,labels/b.png\n"
    assert "line 3" in refusal(root, uneven, files_separator="|")


def test_repeated_rows(root: Path) -> None:
    table = "image,mask,group\nscans/a.png,labels/a.png,1\nscans/a.png,labels/a.png,1\n"
    found = opened(root, table)
    assert found.image_ids == ("a",)
    assert any("1 repeated row" in note for note in found.notes)
    words = refusal(root, table.replace("a.png,1\nscans", "a.png,2\nscans"))
    assert all(word in words for word in ("lines 2 and 3", "'a'", "dataset.id_column"))


@pytest.mark.parametrize(("table", "words"), [
    ("image,mask\n", ["no images"]),
    ("image\nscans/a.png\n", ["'mask'", "dataset.mask_column"]),
    ("mask\nlabels/a.png\n", ["'image'", "dataset.image_column"]),
    ("image,mask\nscans/a.png,\n", ["line 2", "mask"]),
    ("image,mask,group\nscans/a.png,labels/a.png,1\nscans/b.png,labels/b.png,\n", ["line 3", "group"]),
    ("image,mask,split\nscans/a.png,labels/a.png,2\n", ["line 2", "'2'", "train, val or test"]),
    ("image,mask\nscans/z.png,labels/a.png\n", ["line 2", "scans/z.png", "dataset.root"]),
    ('image,mask,spacing\nscans/a.png,labels/a.png,"0,5"\n', ["line 2", "0,5", "point"]),
    ("image;mask;spacing\nscans/a.png;labels/a.png;1.5,5\n", ["line 2", "1.5,5", "point"]),
    ("image,mask,spacing\nscans/a.png,labels/a.png,0\n", ["line 2", "spacing"]),
])  # fmt: skip
def test_tables_at_fault(table: str, words: list[str], root: Path) -> None:
    line = refusal(root, table)
    assert all(word in line for word in words)


def test_no_table(root: Path) -> None:
    assert "dataset.manifest" in refusal(root, FULL, manifest="other.csv")
    assert opened(root, FULL.replace(",", ";").replace("x; y", "x, y"), separator="semicolons").image_ids[0] == "001"
    assert "dataset.image_column" in refusal(root, FULL, separator="tabs")


def test_slices_of_volumes(root: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    volume = np.random.default_rng(2).integers(-100, 100, (8, 6, 3), dtype=np.int16)
    for name, voxels in (("ct", volume), ("seg", (volume > 0).astype(np.uint8))):
        nibabel.save(nibabel.Nifti1Image(voxels, np.diag([0.5, 0.25, 4, 1])), root / f"{name}.nii.gz")
    found = opened(root, "image,mask,group\nct.nii.gz,seg.nii.gz,P1\n", mask_coding="index")
    assert found.image_ids == ("ct_z000", "ct_z001", "ct_z002")
    assert (found.case_ids, found.group_ids) == (("ct",) * 3, ("P1",) * 3)
    assert found.spacings[0] == (4.0, 0.25, 0.5)
    assert found.read(1).mask_HW.sum() == (volume[..., 1] > 0).sum()
    found = opened(
        root, "image,mask,spacing\nct.nii.gz,seg.nii.gz,2 3\n", mask_coding="index", spacing_column="spacing"
    )
    assert found.spacings[0] == (4.0, 2.0, 3.0)  # the distance of slices is that of the file


def test_what_lies_beside_the_files_is_listed(root: Path) -> None:
    (root / "scans" / "d.heic").touch()
    (root / "scans" / "later").mkdir()
    found = opened(root, "image,mask\nscans/a.png,labels/a.png\nscans/b.png,labels/b.png\n")
    assert set(found.unused) == {"scans/c.png", "labels/c.png", "scans/d.heic", "scans/later"}
    assert ".heic" in found.unused["scans/d.heic"]


def test_letters_may_be_encoded_in_two_ways(root: Path) -> None:
    composed, decomposed = "l\u00e9sion", "le\u0301sion"
    (root / "scans" / "b.png").rename(root / "scans" / f"{decomposed}.png")
    found = opened(root, f"image,mask\nscans/{composed}.png,labels/b.png\nscans/a.png,labels/a.png\n")
    assert found.image_ids == ("a", composed)
    assert found.read(1).mask_HW.any()
    rows = f"scans/a.png,labels/a.png,{composed}\nscans/c.png,labels/c.png,{decomposed}\n"
    assert "same image id" in refusal(root, f"image,mask,id\n{rows}")


def test_a_channel_has_one_depth_in_all_images(root: Path) -> None:
    """Channels of one image may differ; then the image is read as stored."""
    deep = IMAGE_HW.astype(np.uint16) * 200
    Image.fromarray(deep).save(root / "scans" / "c.png")
    table = "image_1,image_2,mask,id\nscans/a.png,scans/c.png,labels/a.png,x\nscans/b.png,scans/c.png,labels/b.png,y\n"
    found = opened(root, table)
    facts = check_pairs(found)
    assert facts.dtypes_N == ("uint8+uint16",) * 2
    assert is_stored(facts)
    check_set(found, facts, "train", None)
    assert np.array_equal(found.read(0).image_HWC[..., 1], deep)
    Image.fromarray(IMAGE_HW.astype(np.uint16)).save(root / "scans" / "b.png")
    found = opened(root, table.replace("labels/b.png,y", "labels/b.png,y\nscans/a.png,scans/a.png,labels/c.png,z"))
    facts = check_pairs(found)
    assert facts.dtypes_N == ("uint8+uint16", "uint16", "uint8")
    for rule in ("train", "full_range", "ct(0,9)"):
        with pytest.raises(UsageError, match=r"1 uint16, 1 uint8, 1 uint8\+uint16; as y\b.*image or percentile"):
            check_set(found, facts, rule, None)
    check_set(found, facts, "image", None)
