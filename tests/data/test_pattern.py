"""Path patterns: what is found below a root, what goes together, and why other files are not used."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from medical import placed, save_dicom, voxels
from PIL import Image
from shipped import shipped

from segexp.data.image_set import ImageError, ImageSet
from segexp.data.pattern import PatternConfig, compiled, open_pattern
from segexp.errors import UsageError

IMAGE_HW = np.random.default_rng(1).integers(0, 256, (6, 8), dtype=np.uint8)
MASK_HW = np.zeros((6, 8), dtype=np.uint8)
MASK_HW[2:4, 3:7] = 255


def opened(root: Path, **options: Any) -> ImageSet:
    """The data set opened with the shipped options but for ``options``."""
    return open_pattern(shipped(PatternConfig, "pattern", **options | {"root": str(root)}))


def put(root: Path, *names: str, pixels: np.ndarray = IMAGE_HW) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(root / name)


def put_pairs(root: Path, *names: str) -> None:
    put(root, *(f"images/{name}.png" for name in names))
    put(root, *(f"masks/{name}.png" for name in names), pixels=MASK_HW)


def refusal(root: Path, **options: Any) -> str:
    with pytest.raises(UsageError) as refused:
        opened(root, **options)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize(("pattern", "path", "fields"), [
    ("images/{id}.png", "images/a.b.png", {"id": "a.b"}),
    ("images/{id}.png", "images/sub/a.png", None),
    ("images/{id}.png", "images/aXpng", None),
    ("**/{id}.png", "a.png", {"id": "a"}),
    ("**/{id}.png", "x/y/a.png", {"id": "a"}),
    ("**/images/{id}.png", "x/images/a.png", {"id": "a"}),
    ("{id}/**", "p1/x/y.png", {"id": "p1"}),
    ("{id:[0-9]{2}}_*.tif", "21_training.tif", {"id": "21"}),
    ("{id:[0-9]{2}}_*.tif", "213_training.tif", None),
    ("{p}/{p}_{id}.png", "a/a_1.png", {"p": "a", "id": "1"}),
    ("{p}/{p}_{id}.png", "a/b_1.png", None),
    ("{id}_mask*.png", "benign (1)_mask_1.png", {"id": "benign (1)"}),
    ("image?/{id}.png", "images/a+b[1].png", {"id": "a+b[1]"}),
    ("{k:a|b}/{id}.png", "b/1.png", {"k": "b", "id": "1"}),
])  # fmt: skip
def test_path_patterns(pattern: str, path: str, fields: dict[str, str] | None) -> None:
    match = compiled("images", pattern, {}).regex.fullmatch(path)
    assert (match and match.groupdict()) == fields


@pytest.mark.parametrize(
    "pattern",
    [
        "/data/{id}.png",
        "a/../{id}.png",
        "images/{id.png",
        "images/{}.png",
        "images/{1d}.png",
        "images/{id:[}.png",
        "{id:(}",
    ],
)
def test_patterns_at_fault(pattern: str, tmp_path: Path) -> None:
    assert f"dataset.images={pattern}" in refusal(tmp_path, images=pattern)


def test_pairs_in_sub_folders(tmp_path: Path) -> None:
    put(tmp_path, "p1/images/a.png", "p2/images/b.png")
    put(tmp_path, "p1/masks/a_seg.tif", "p2/masks/b_seg.tif", pixels=MASK_HW)
    found = opened(tmp_path, images="{p}/images/{id}.png", masks="{p}/masks/{id}_seg.tif", group_pattern="^[^/]+")
    assert (found.image_ids, found.group_ids) == (("a", "b"), ("p1", "p2"))
    assert (found.channels, found.num_classes, found.declared_split, found.unused) == (1, 2, None, {})
    pair = found.read(1)
    assert np.array_equal(pair.image_HWC[..., 0], IMAGE_HW)
    assert np.array_equal(pair.mask_HW, MASK_HW // 255)
    assert opened(tmp_path, images="**/images/{id}.png", masks="**/masks/{id}_seg.tif").image_ids == ("a", "b")


def test_an_id_of_several_fields(tmp_path: Path) -> None:
    options = {"images": "{p}/{id}.png", "masks": "{p}/{id}_mask.png"}
    for p in ("p1", "p2"):
        put(tmp_path, f"{p}/1.png")
        put(tmp_path, f"{p}/1_mask.png", pixels=MASK_HW)
    words = refusal(tmp_path, **options)
    assert all(word in words for word in ("p1/1.png", "p2/1.png", "dataset.image_id"))
    assert opened(tmp_path, image_id="{p}_{id}", **options).image_ids == ("p1_1", "p2_1")
    assert "{p}, {id}" in refusal(tmp_path, image_id="{patient}", **options)


def test_a_field_has_the_same_limits_in_masks_as_in_images(tmp_path: Path) -> None:
    put(tmp_path, "images/a_1_x.png", "images/a_2_x.png")
    put(tmp_path, "masks/a_1.png", "masks/a_2.png", pixels=MASK_HW)
    found = opened(tmp_path, images="images/{id:[a-z]_[0-9]}_*.png", masks="masks/{id}*.png")
    assert found.image_ids == ("a_1", "a_2")
    assert "field in common" in refusal(tmp_path, images="images/{name}.png", masks="masks/{id}.png")


def test_several_masks_of_an_image(tmp_path: Path) -> None:
    put_pairs(tmp_path, "a", "b")
    put(tmp_path, "masks/a_1.png", pixels=np.roll(MASK_HW, 2, axis=0))
    options = {"images": "images/{id}.png", "masks": "masks/{id:[a-z]}*.png"}
    assert "dataset.several_masks=unite" in refusal(tmp_path, **options)
    found = opened(tmp_path, several_masks="unite", **options)
    assert [len(found.files(n)) for n in range(2)] == [3, 2]
    assert found.read(0).mask_HW.sum() == 2 * (MASK_HW > 0).sum()


def test_one_file_for_each_channel(tmp_path: Path) -> None:
    for n, channel in enumerate(("dapi", "gfp", "extra")):
        put(tmp_path, f"images/a_{channel}.png", pixels=IMAGE_HW // (n + 1))
    put(tmp_path, "masks/a.png", pixels=MASK_HW)
    options: dict[str, Any] = {"images": "images/{id}_{channel}.png", "masks": "masks/{id}.png"}
    found = opened(tmp_path, channel_files=["gfp", "dapi"], **options)
    assert (found.channels, found.image_ids) == (2, ("a",))
    assert np.array_equal(found.read(0).image_HWC, np.dstack([IMAGE_HW // 2, IMAGE_HW]))
    assert "dataset.channel_files" in found.unused["images/a_extra.png"]
    put(tmp_path, "images/b_dapi.png")
    put(tmp_path, "masks/b.png", pixels=MASK_HW)
    words = refusal(tmp_path, **options)
    assert all(word in words for word in ("image b has no extra", "image b has no gfp", "dataset.channel_files"))


def test_parts_by_folder(tmp_path: Path) -> None:
    for n, part in enumerate(("training", "training", "testing", "extra")):
        put(tmp_path, f"{part}/i/{n}.png")
        put(tmp_path, f"{part}/m/{n}.png", pixels=MASK_HW)
    options = {"images": "{part}/i/{id}.png", "masks": "{part}/m/{id}.png", "train": "training", "test": "testing"}
    found = opened(tmp_path, **options)
    assert found.declared_split == {"0": "train", "1": "train", "2": "test"}
    assert found.unused.keys() == {"extra/i/3.png", "extra/m/3.png"}
    assert any("1 image" in note for note in found.notes)
    alone = opened(tmp_path, **options | {"test": "gone"})
    assert (alone.declared_split, len(alone.image_ids)) == (None, 2)
    assert any("no test images" in note for note in alone.notes)
    assert "dataset.train" in refusal(tmp_path, **options | {"train": "x", "test": "y"})


def test_parts_by_lists(tmp_path: Path) -> None:
    put_pairs(tmp_path, "a", "b b", "c", "unlisted")
    (tmp_path / "train.txt").write_text("# mine\na 1 2\n./images/b b.png\n", encoding="utf-8")
    (tmp_path / "test.txt").write_text("images\\c.png masks\\c.png\n", encoding="utf-8")
    found = opened(tmp_path, train="train.txt", test="test.txt")
    assert found.declared_split == {"a": "train", "b b": "train", "c": "test"}
    assert found.unused.keys() == {"images/unlisted.png", "masks/unlisted.png"}
    (tmp_path / "masks" / "unlisted.png").unlink()
    assert opened(tmp_path, train="train.txt", test="test.txt").image_ids == ("a", "b b", "c")
    (tmp_path / "val.txt").write_text("a\nd\n", encoding="utf-8")
    assert "train.txt and val.txt" in refusal(tmp_path, train="train.txt", test="test.txt", val="val.txt")
    (tmp_path / "val.txt").write_text("d\n", encoding="utf-8")
    assert "no image 'd'" in refusal(tmp_path, train="train.txt", test="test.txt", val="val.txt")
    assert "dataset.val" in refusal(tmp_path, train="train.txt", test="test.txt", val="gone.txt")


def test_groups_of_a_pattern_or_a_file(tmp_path: Path) -> None:
    put_pairs(tmp_path, "P1_a", "P1_b", "p2_c")
    assert opened(tmp_path, group_pattern="([^/]+)_").group_ids == ("P1", "P1", "p2")
    assert "images/P1_a.png" in refusal(tmp_path, group_pattern="x(.)")
    assert "regular expression" in refusal(tmp_path, group_pattern="(")
    (tmp_path / "groups.csv").write_text("file;who\nimages/P1_a.png;1\nP1_b;01\np2_c.png;1\n", encoding="utf-8")
    by_file = {"group_file": "groups.csv", "group_key": "file", "group_column": "who"}
    assert opened(tmp_path, **by_file).group_ids == ("1", "01", "1")
    assert opened(tmp_path, **by_file).unused == {}
    assert "dataset.group_pattern" in refusal(tmp_path, group_pattern=".", **by_file)


def test_images_without_mask(tmp_path: Path) -> None:
    put_pairs(tmp_path, "a", "b")
    put(tmp_path, "images/c.png")
    put(tmp_path, "masks/d.png", pixels=MASK_HW)
    words = refusal(tmp_path)
    assert all(word in words for word in ("image c", "mask masks/d.png", "dataset.unpaired=leave_out"))
    found = opened(tmp_path, unpaired="leave_out")
    assert found.image_ids == ("a", "b")
    assert found.unused == {"images/c.png": "has no mask", "masks/d.png": "has no image"}


def test_each_file_that_is_not_used_has_its_reason(tmp_path: Path) -> None:
    put_pairs(tmp_path, "a")
    (tmp_path / "images" / "Thumbs.db").write_bytes(b"x")
    (tmp_path / "images" / "._a.png").write_bytes(b"x")
    (tmp_path / ".git").mkdir()
    (tmp_path / "README.txt").write_bytes(b"x")
    put(tmp_path, "images/sub/b.png")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "gone.txt").symlink_to("/not/there")
    unused = opened(tmp_path).unused
    words = {"images/Thumbs.db": ".db", "images/._a.png": "hidden", ".git": "hidden", "README.txt": "neither"}
    words |= {"images/sub/b.png": "neither", "pipe": "not a file", "loop": "folder", "gone.txt": "/not/there"}
    assert unused.keys() == words.keys()
    assert all(word in unused[path] for path, word in words.items())
    (tmp_path / "images" / "b.png").symlink_to("/not/mounted/b.png")
    put(tmp_path, "masks/b.png", pixels=MASK_HW)
    with pytest.raises(ImageError, match=r"/not/mounted/b\.png"):
        opened(tmp_path).read(1)


def test_links_are_followed_and_nothing_outside_root_is_named(tmp_path: Path) -> None:
    put_pairs(tmp_path / "store", "a", "b")
    (tmp_path / "root").mkdir()
    for kind in ("images", "masks"):
        (tmp_path / "root" / kind).symlink_to(tmp_path / "store" / kind)
    assert opened(tmp_path / "root").image_ids == ("a", "b")
    assert "outside" in refusal(tmp_path / "root", folder="../store")


def test_what_is_missing_is_described(tmp_path: Path) -> None:
    assert "dataset.root" in refusal(tmp_path / "none")
    assert "https://e.org" in refusal(tmp_path / "none", url="https://e.org")
    put(tmp_path, "scans/a.png")
    words = refusal(tmp_path, url="https://e.org", name="mine", folder="Mine")
    assert all(word in words for word in ("scans", "mine", "https://e.org", "Mine", "images/{id}.*", "masks/{id}.*"))
    put(tmp_path, "images/a.png")
    assert "no masks" in refusal(tmp_path)
    assert "https://e.org" in refusal(tmp_path, url="https://e.org", download=True)


def test_a_folder_that_the_archive_unpacks_into(tmp_path: Path) -> None:
    put_pairs(tmp_path / "Set", "a")
    for root in (tmp_path, tmp_path / "Set"):
        assert opened(root, folder="Set").image_ids == ("a",)


def test_slices_of_volumes(tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    voxels = np.random.default_rng(2).integers(-100, 100, (8, 6, 3), dtype=np.int16)
    for patient in ("p1", "p2"):
        files = {f"{patient}_CT.nii": voxels, f"{patient}_MTT.nii": voxels // 2, f"{patient}_OT.nii": voxels > 50}
        for name, array in files.items():
            (tmp_path / patient / name).mkdir(parents=True)
            image = nibabel.Nifti1Image(array.astype(np.int16), np.diag([0.5, 0.25, 4, 1]))
            nibabel.save(image, tmp_path / patient / name / "volume.nii")
    images, masks = "{id}/{id}_{channel}.nii/*.nii", "{id}/{id}_OT.nii/*.nii"
    found = opened(tmp_path, images=images, masks=masks, group_pattern="[^/]+", channel_files=["CT", "MTT"])
    assert found.image_ids == tuple(f"p{n}_z00{k}" for n in (1, 2) for k in range(3))
    assert (found.case_ids[:4], found.group_ids[:4]) == (("p1", "p1", "p1", "p2"),) * 2
    assert found.spacings[0] == (4.0, 0.25, 0.5)
    pair = found.read(4)
    assert np.array_equal(pair.image_HWC, np.dstack([voxels[..., 1].T, voxels[..., 1].T // 2]))
    assert np.array_equal(pair.mask_HW, voxels[..., 1].T > 50)


def test_a_folder_of_dicom_files_is_a_series(tmp_path: Path) -> None:
    pydicom = pytest.importorskip("pydicom")
    voxels = np.random.default_rng(3).integers(0, 200, (3, 6, 8), dtype=np.uint16)
    for folder, array in (("p1/ct", voxels), ("p1/seg", (voxels > 90).astype(np.uint16))):
        (tmp_path / folder).mkdir(parents=True)
        for k, slice_HW in enumerate(array):
            file = pydicom.Dataset()
            file.SOPClassUID, file.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", f"1.2.3.{k}"
            file.SeriesInstanceUID = "1.2.3"
            file.Rows, file.Columns, file.SamplesPerPixel = 6, 8, 1
            file.BitsAllocated = file.BitsStored = 16
            file.HighBit, file.PixelRepresentation, file.PhotometricInterpretation = 15, 0, "MONOCHROME2"
            file.PixelSpacing, file.ImageOrientationPatient = [0.5, 0.5], [1, 0, 0, 0, 1, 0]
            file.ImagePositionPatient, file.PixelData = [0, 0, 2 * k], slice_HW.tobytes()
            file.file_meta = pydicom.dataset.FileMetaDataset()
            file.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
            pydicom.dcmwrite(tmp_path / folder / f"{k}.dcm", file, enforce_file_format=True)
    found = opened(tmp_path, images="{id}/ct", masks="{id}/seg", mask_coding="index")
    assert found.image_ids == ("p1_z000", "p1_z001", "p1_z002")
    assert np.array_equal(found.read(2).image_HWC[..., 0], voxels[2])
    assert np.array_equal(found.read(2).mask_HW, voxels[2] > 90)
    assert found.unused == {}
    put(tmp_path, "p1/ct/later/1.png", "p1/ct/x.png")
    (tmp_path / "p1" / "ct" / "VERSION").touch()
    unused = opened(tmp_path, images="{id}/ct", masks="{id}/seg", mask_coding="index").unused
    assert set(unused) == {f"p1/ct/{name}" for name in ("later", "x.png", "VERSION")}


def test_letters_may_be_encoded_in_two_ways(tmp_path: Path) -> None:
    composed, decomposed = "l\u00e9sion", "le\u0301sion"
    put(tmp_path, f"{decomposed}/1.png", "a/1.png")
    put(tmp_path, f"m/{composed}_1.png", "m/a_1.png", pixels=MASK_HW)
    (tmp_path / "test.txt").write_text(f"{decomposed}_1\n", encoding="utf-8")
    (tmp_path / "train.txt").write_text("a/1.png\n", encoding="utf-8")
    options = {"images": "{p}/{n}.png", "masks": "m/{p}_{n}.png", "image_id": "{p}_{n}"}
    found = opened(tmp_path, **options, train="train.txt", test="test.txt")
    assert found.declared_split == {"a_1": "train", f"{composed}_1": "test"}
    put(tmp_path, f"{composed}/1.png")
    assert "same image id" in refusal(tmp_path, **options)


def test_names_that_are_not_utf8_are_shown_as_text(tmp_path: Path) -> None:
    put_pairs(tmp_path, "a")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/l\xe4sion.txt")).touch()
    (name,) = opened(tmp_path).unused
    assert name.encode() == b"l\\udce4sion.txt"


@pytest.mark.parametrize(("images", "found"), [
    ("{patient}/{id}.png", '"^[^/]+"'), ("scans/{patient}/{id}.png", '"^[^/]+/([^/]+)"'), ("*/{id}.png", '"^[^/]+"'),
    ("images/{id}.png", ""), ("**/{id}.png", ""),
])  # fmt: skip
def test_the_option_that_names_groups_fits_the_pattern(images: str, found: str, tmp_path: Path) -> None:
    config = shipped(PatternConfig, "pattern", root=str(tmp_path), images=images)
    assert "dataset.group_pattern" in config.names_groups
    assert ("as in" in config.names_groups) == bool(found)
    assert found in config.names_groups
    if found:
        put(tmp_path, images.format(patient="P7", id="a").replace("*", "P7"))
        put(tmp_path, "m/a.png", pixels=MASK_HW)
        options = {"images": images, "masks": "m/{id}.png", "group_pattern": found[1:-1]}
        if images.startswith("scans"):
            assert opened(tmp_path, **options).group_ids == ("P7",)


def test_images_of_one_id_are_told_apart_by_fields_that_there_are(tmp_path: Path) -> None:
    for patient in ("P1", "P2"):
        put(tmp_path, f"images/{patient}/a.png")
        put(tmp_path, f"masks/{patient}/a.png", pixels=MASK_HW)
    masks = "masks/{patient}/{id}.png"
    assert "'dataset.image_id=\"{patient}_{id}\"'" in refusal(tmp_path, images="images/{patient}/{id}.png", masks=masks)
    assert "make a field" in refusal(tmp_path, images="images/*/{id}.png", masks="masks/*/{id}.png")
    (tmp_path / "scans" / "P1").mkdir(parents=True)
    for k in range(2):
        save_dicom(tmp_path / "scans" / "P1" / f"{k}.dcm", voxels(6, 8), **placed(k))
    words = refusal(tmp_path, images="scans/{id}/*.dcm", masks="masks/{id}/*.png")
    assert "'dataset.images=\"scans/{id}\"'" in words
