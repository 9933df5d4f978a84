import os
import re
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from medical import save_series, voxels
from PIL import Image
from shipped import shipped

from segexp.data.file_set import Item, in_slices
from segexp.data.folder import FolderConfig, open_folder
from segexp.data.image_set import Header, ImageError, ImageSet, Pair, fingerprint
from segexp.data.pattern import PatternConfig, open_pattern
from segexp.errors import UsageError

IMAGE_HWC = np.random.default_rng(1).integers(0, 256, (6, 8, 3), dtype=np.uint8)
MASK_HW = np.zeros((6, 8), dtype=np.uint8)
MASK_HW[2:4, 3:7] = 255


def opened(root: Path, **options: Any) -> ImageSet:
    """The folder opened with the shipped options but for ``options``, through the types of FolderConfig."""
    return open_folder(shipped(FolderConfig, "folder", **options | {"root": str(root)}))


def put(path: Path, pixels: np.ndarray | Image.Image, **how: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(path, **how)
    return path


def put_pairs(root: Path, *names: str) -> None:
    for name in names:
        put(root / "images" / f"{name}.png", IMAGE_HWC)
        put(root / "masks" / f"{name}.png", MASK_HW)


def write(path: Path, text: str, encoding: str = "utf-8") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding=encoding)


def one_pair(root: Path, **options: Any) -> Pair:
    image_set = opened(root, **options)
    assert len(image_set.image_ids) == 1
    return image_set.read(0)


def paletted(index_HW: np.ndarray, *colors: tuple[int, int, int]) -> Image.Image:
    height, width = index_HW.shape
    image = Image.frombytes("P", (width, height), index_HW.tobytes())
    image.putpalette([level for color in colors for level in color])
    return image


def test_pairs_by_stem_in_sorted_order(tmp_path: Path) -> None:
    put_pairs(tmp_path, "b", "a.1", "c")
    image_set = opened(tmp_path)
    assert image_set.image_ids == ("a.1", "b", "c")
    assert image_set.group_ids == ("", "", "")
    assert (image_set.channels, image_set.num_classes, image_set.declared_split) == (3, 2, None)
    assert image_set.location == str(tmp_path.resolve())
    pair = image_set.read(1)
    assert np.array_equal(pair.image_HWC, IMAGE_HWC)
    assert np.array_equal(pair.mask_HW, MASK_HW // 255)
    assert pair.image_HWC.flags.c_contiguous
    assert pair.image_HWC.flags.writeable
    assert pair.mask_HW.dtype == np.uint8


@pytest.mark.parametrize("suffix", [".png", ".PNG", ".tif", ".TIFF", ".bmp", ".jpg", ".Jpeg"])
def test_formats(tmp_path: Path, suffix: str) -> None:
    put(tmp_path / "images" / f"a{suffix}", np.full((6, 8, 3), 77, dtype=np.uint8))
    put(tmp_path / "masks" / f"a{suffix}", np.full((6, 8), 255, dtype=np.uint8))
    pair = one_pair(tmp_path)
    assert pair.image_HWC.shape == (6, 8, 3)
    assert (pair.image_HWC == 77).all()
    assert (pair.mask_HW == 1).all()


def test_extension_may_lie_about_the_format_but_other_decoders_never_run(tmp_path: Path) -> None:
    put_pairs(tmp_path, "a")
    put(tmp_path / "images" / "a.png", IMAGE_HWC, format="BMP")
    assert np.array_equal(one_pair(tmp_path).image_HWC, IMAGE_HWC)
    put(tmp_path / "images" / "a.png", IMAGE_HWC, format="PPM")
    with pytest.raises(ImageError, match=r"a\.png.*PNG"):
        one_pair(tmp_path)


def test_suffixes_are_stripped(tmp_path: Path) -> None:
    put(tmp_path / "pictures" / "a_img.png", IMAGE_HWC)
    put(tmp_path / "labels" / "a_mask.tif", MASK_HW)
    folders = {"images": "pictures", "masks": "labels"}
    assert opened(tmp_path, image_suffix="_img", mask_suffix="_mask", **folders).image_ids == ("a",)
    with pytest.raises(UsageError, match=r"a_img .*a_mask .*dataset.mask_suffix"):
        opened(tmp_path, **folders)


def test_images_and_masks_in_one_folder(tmp_path: Path) -> None:
    put(tmp_path / "a.png", IMAGE_HWC)
    put(tmp_path / "a_mask.png", MASK_HW)
    assert opened(tmp_path, images=".", masks=".", mask_suffix="_mask").image_ids == ("a",)
    with pytest.raises(UsageError, match=r"dataset\.mask_suffix"):
        opened(tmp_path, images=".", masks="")


def test_stray_files_are_ignored_and_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_pairs(tmp_path, "a")
    write(tmp_path / "splits" / "README.txt", "no lists, so no split is declared")
    for name in (".hidden.png", "._a.png", "Thumbs.db", "notes.txt", ".DS_Store"):
        write(tmp_path / "images" / name, "no image")
    (tmp_path / "masks" / "folder.png").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    for root in (tmp_path, Path("~") / tmp_path.name):
        assert (opened(root).image_ids, opened(root).declared_split) == (("a",), None)


def test_grey_or_colour_is_decided_for_the_whole_folder(tmp_path: Path) -> None:
    grey_HW = IMAGE_HWC[..., 0]
    images: dict[str, np.ndarray | Image.Image] = {
        "L": grey_HW,
        "LA": Image.fromarray(grey_HW).convert("LA"),
        "1": MASK_HW > 0,
        "I16": grey_HW.astype(np.uint16) * 257,
    }
    for name, pixels in images.items():
        put(tmp_path / "images" / f"{name}.png", pixels)
        put(tmp_path / "masks" / f"{name}.png", MASK_HW)
    image_set = opened(tmp_path)
    assert image_set.channels == 1
    read = {name: image_set.read(index).image_HWC for index, name in enumerate(image_set.image_ids)}
    assert np.array_equal(read["L"][..., 0], grey_HW)
    assert np.array_equal(read["LA"][..., 0], grey_HW)
    assert np.array_equal(read["1"][..., 0], MASK_HW)
    assert read["I16"].dtype == np.uint16
    assert np.array_equal(read["I16"][..., 0], grey_HW.astype(np.uint16) * 257)

    put_pairs(tmp_path, "Z")
    image_set = opened(tmp_path)
    assert image_set.channels == 3
    assert np.array_equal(image_set.read(image_set.image_ids.index("L")).image_HWC, np.dstack([grey_HW] * 3))


def test_constant_alpha_is_dropped_and_a_palette_is_seen_as_colours(tmp_path: Path) -> None:
    put_pairs(tmp_path, "a")
    paletted_image = Image.fromarray(IMAGE_HWC).quantize(256, dither=Image.Dither.NONE)
    for image in (Image.fromarray(IMAGE_HWC).convert("RGBA"), paletted_image):
        put(tmp_path / "images" / "a.png", image)
        assert opened(tmp_path).channels == 3
        assert np.array_equal(one_pair(tmp_path).image_HWC, np.array(image.convert("RGB")))


def test_channels_given(tmp_path: Path) -> None:
    put_pairs(tmp_path, "a")
    luma_HWC = one_pair(tmp_path, channels=1).image_HWC
    assert luma_HWC.shape == (6, 8, 1)
    assert luma_HWC.dtype == np.uint8
    expected_HW = np.array(Image.fromarray(IMAGE_HWC).convert("L")).astype(int)
    assert np.abs(luma_HWC[..., 0] - expected_HW).max() <= 1
    with pytest.raises(ImageError, match=r"3 channels, but the set has 2; .*dataset\.channels"):
        one_pair(tmp_path, channels=2)


COLORS = ["#000000", "#008000", "#800000"]


@pytest.mark.parametrize(("options", "expected"), [
    ({"mask_coding": "index", "num_classes": 3}, [0, 1, 2, 0]),
    ({"mask_coding": "index", "num_classes": 2, "ignore_index": 2}, [0, 1, 255, 0]),
    ({"mask_coding": "values", "num_classes": 3, "mask_values": [2, 0, 1]}, [1, 2, 0, 1]),
    ({"mask_coding": "colors", "num_classes": 3, "mask_colors": COLORS}, [0, 2, 1, 0]),
    ({"mask_coding": "colors", "mask_colors": COLORS[:2], "ignore_color": COLORS[2]}, [0, 255, 1, 0]),
])  # fmt: skip
def test_palette_mask(tmp_path: Path, options: dict[str, Any], expected: list[int]) -> None:
    """Of indices or of the colours they stand for; a binary mask is of colours, and of two."""
    put(tmp_path / "images" / "a.png", IMAGE_HWC[:1, :4])
    three = put(
        tmp_path / "masks" / "a.png", paletted(np.array([[0, 1, 2, 0]], np.uint8), (0, 0, 0), (128, 0, 0), (0, 128, 0))
    )
    assert one_pair(tmp_path, **options).mask_HW.tolist() == [expected]
    with pytest.raises(ImageError, match=r"masks.a\.png: .*mask_coding=binary"):
        one_pair(tmp_path)
    put(three, paletted(np.array([[0, 1, 1, 0]], np.uint8), (255, 255, 255), (0, 0, 0)))
    assert one_pair(tmp_path).mask_HW.tolist() == [[1, 0, 0, 1]]


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_masks_of_1_and_16_bit(tmp_path: Path, suffix: str) -> None:
    put(tmp_path / "images" / "a.png", IMAGE_HWC)
    mask = put(tmp_path / "masks" / f"a.{suffix}", MASK_HW > 0)
    with Image.open(mask) as image:
        assert image.mode == "1"
    assert np.array_equal(one_pair(tmp_path).mask_HW, MASK_HW // 255)
    assert np.array_equal(one_pair(tmp_path, mask_coding="index").mask_HW, MASK_HW // 255)
    put(mask, (MASK_HW // 255 * 2).astype(np.uint16))
    assert np.array_equal(one_pair(tmp_path, mask_coding="index", num_classes=3).mask_HW, MASK_HW // 255 * 2)


def assert_pair_error(root: Path, reason: str, **options: Any) -> None:
    with pytest.raises(ImageError, match=reason) as caught:
        one_pair(root, **options)
    assert "\n" not in str(caught.value)
    assert str(root) in str(caught.value)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "bmp"])
@pytest.mark.parametrize("kept", [0.0, 0.05, 0.6, 0.95])
def test_truncated_file(tmp_path: Path, suffix: str, kept: float) -> None:
    noise_HWC = np.random.default_rng(4).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    image = put(tmp_path / "images" / f"a.{suffix}", noise_HWC)
    put(tmp_path / "masks" / "a.png", np.zeros((64, 64), dtype=np.uint8))
    one_pair(tmp_path)
    image.write_bytes(image.read_bytes()[: int(kept * image.stat().st_size)])
    assert_pair_error(tmp_path, rf"a\.{suffix}")


def test_sizes_differ(tmp_path: Path) -> None:
    put_pairs(tmp_path, "a")
    put(tmp_path / "masks" / "a.png", np.zeros((5, 8), dtype=np.uint8))
    assert_pair_error(tmp_path, r"8x6 pixels, .*masks.a\.png 8x5 \(width x height\)$")
    put(tmp_path / "masks" / "a.png", np.zeros((8, 6), dtype=np.uint8))
    assert_pair_error(tmp_path, "6x8 .*turned")


def test_pixels_that_cannot_be_read(tmp_path: Path) -> None:
    put_pairs(tmp_path, "a")
    assert_pair_error(tmp_path, r"masks.a\.png: value 255 outside 0\.\.1 .*mask_coding=binary", mask_coding="index")
    path = tmp_path / "images" / "a.png"
    huge = bytearray(path.read_bytes())
    huge[16:24] = struct.pack(">II", 50_000, 50_000)
    huge[29:33] = struct.pack(">I", zlib.crc32(bytes(huge[12:29])))
    noise_HWC = np.random.default_rng(5).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    half = put(tmp_path / "half.png", noise_HWC).read_bytes()[:150]
    for data, reason in {bytes(huge): "decompression bomb", half: "truncated"}.items():
        path.write_bytes(data)
        assert_pair_error(tmp_path, reason)


def assert_usage_error(root: Path, reason: str, **options: Any) -> None:
    with pytest.raises(UsageError, match=reason) as caught:
        opened(root, **options)
    assert "\n" not in str(caught.value)


def test_missing_folders_and_files(tmp_path: Path) -> None:
    assert_usage_error(tmp_path / "none", rf"no folder {tmp_path}/none; set dataset\.root")
    (tmp_path / "images").mkdir()
    assert_usage_error(tmp_path, rf"no images found in {tmp_path}/images; .*\.png, \.jpg, .*\.bmp")
    put_pairs(tmp_path, "a")
    assert_usage_error(tmp_path, rf"no folder {tmp_path}/labels; .*dataset\.masks", masks="labels")
    put(tmp_path / "images" / "a.jpg", IMAGE_HWC)
    assert_usage_error(tmp_path, r"a\.jpg and a\.png in .*'a'")


def test_missing_partners_are_told_at_once(tmp_path: Path) -> None:
    put_pairs(tmp_path, "a")
    for name in "hgfedcb":
        put(tmp_path / "images" / f"{name}.png", IMAGE_HWC)
    put(tmp_path / "masks" / "z.png", MASK_HW)
    listed = ", ".join(f"image {name} has no mask" for name in "bcdef")
    assert_usage_error(tmp_path, rf"8 .*{tmp_path}: {listed} and 3 more;.* dataset\.mask_suffix")
    for name in "hgfedcb":
        put(tmp_path / "masks" / f"{name}_mask.png", MASK_HW)
    (tmp_path / "masks" / "z.png").unlink()
    for wrong in ("", "mask", "_label"):
        assert_usage_error(tmp_path, r"; set dataset\.mask_suffix=_mask$", mask_suffix=wrong)


def test_nothing_outside_root_is_read(tmp_path: Path) -> None:
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    put_pairs(root, "a")
    put_pairs(elsewhere, "b")
    assert_usage_error(root, "outside .*root", images="../elsewhere/images")
    assert_usage_error(root, "dataset.split_dir.*outside", split_dir="../elsewhere")
    group = {"group_column": "patient", "group_file": "../elsewhere/groups.csv"}
    assert_usage_error(root, "dataset.group_file.*outside", **group)


def test_links_of_the_folder_are_followed(tmp_path: Path) -> None:
    """A file linked into the folder, and a folder that is itself a link into a shared store."""
    root, store = tmp_path / "root", tmp_path / "store"
    put_pairs(root, "a")
    put_pairs(store, "b")
    for kind in ("images", "masks"):
        (root / kind / "b.png").symlink_to(store / kind / "b.png")
    assert opened(root).image_ids == ("a", "b")
    linked = tmp_path / "linked"
    linked.mkdir()
    for kind in ("images", "masks"):
        (linked / kind).symlink_to(store / kind)
    assert opened(linked).image_ids == ("b",)


@pytest.mark.parametrize(("options", "reason"), [
    ({"mask_coding": "palette"}, "unknown mask_coding 'palette'"),
    ({"num_classes": 3}, "mask_coding=binary needs num_classes=2"),
    ({"mask_values": [0, 9]}, r"mask_values has no effect .* set dataset\.mask_coding=values"),
    ({"mask_coding": "index", "ignore_color": "#000000"}, "ignore_color has no effect"),
    ({"mask_coding": "colors", "mask_colors": ["#000000", "red"]}, "'red' is not a colour"),
    ({"mask_coding": "colors", "mask_colors": COLORS[:2], "ignore_index": 3}, "use dataset.ignore_color"),
])  # fmt: skip
def test_mask_options_that_contradict(tmp_path: Path, options: dict[str, Any], reason: str) -> None:
    put_pairs(tmp_path, "a")
    assert_usage_error(tmp_path, reason, **options)


def test_declared_split(tmp_path: Path) -> None:
    put_pairs(tmp_path, "a", "b", "c", "unused")
    put(tmp_path / "images" / "no_mask_but_unlisted.png", IMAGE_HWC)
    orphan = put(tmp_path / "masks" / "no_image_but_unlisted.png", MASK_HW)
    write(tmp_path / "splits" / "train.txt", "# stems\n\n  c \na.png\n", encoding="utf-8-sig")
    write(tmp_path / "splits" / "test.txt", "b\r\n")
    image_set = opened(tmp_path)
    assert image_set.image_ids == ("a", "b", "c")
    assert image_set.declared_split == {"a": "train", "b": "test", "c": "train"}
    write(tmp_path / "splits" / "val.txt", "unused\n")
    assert (opened(tmp_path).declared_split or {})["unused"] == "val"
    put(tmp_path / "masks" / "no_mask_but_unlisted.png", MASK_HW)
    orphan.unlink()
    image_set = opened(tmp_path, split_dir=None)
    assert len(image_set.image_ids) == 5
    assert image_set.declared_split is None


def test_a_split_dir_without_split_files_is_refused(tmp_path: Path) -> None:
    put_pairs(tmp_path, "a", "b")
    assert opened(tmp_path).declared_split is None  # the default folder may be missing
    for typed in ("split", str(tmp_path / "images")):
        assert_usage_error(tmp_path, r"no split files in .*split_dir=null", split_dir=typed)


@pytest.mark.parametrize(("files", "reason"), [
    ({"train": "a"}, r"train\.txt .* no test\.txt.*split_dir=null"),
    ({"val": "a", "test": "b"}, r"val\.txt .* no train\.txt.*split_dir=null"),
    ({"train": "a", "test": "b\nd.png"}, r"test\.txt: .*'d\.png'.*split_dir=null"),
    ({"train": "a\nb", "test": "b"}, r"'b' .* train\.txt and test\.txt"),
    ({"train": "a", "test": "../images/b"}, r"test\.txt: .*'\.\./images/b'"),
    ({"train": "a", "test": "# none\n"}, r"test\.txt .*split_dir=null"),
    ({"train": "a", "test": "c"}, "1 .*: image c has no mask"),
    ({"train": "\udce4", "test": "b"}, r"train\.txt .*save it as UTF-8"),
])  # fmt: skip
def test_split_files_at_fault(tmp_path: Path, files: dict[str, str], reason: str) -> None:
    put_pairs(tmp_path, "a", "b")
    put(tmp_path / "images" / "c.png", IMAGE_HWC)
    for split, text in files.items():
        (tmp_path / "splits").mkdir(exist_ok=True)
        (tmp_path / "splits" / f"{split}.txt").write_bytes(text.encode(errors="surrogateescape"))
    assert_usage_error(tmp_path, reason)


def test_groups(tmp_path: Path) -> None:
    put_pairs(tmp_path, "a", "b", "c")
    table = 'file,patient\nb.png,"001"\na,1\nc,"x, y"\nother,7\n'
    write(tmp_path / "root.csv", table, encoding="utf-8-sig")
    options = {"group_file": "root.csv", "group_column": "patient", "group_key": "file"}
    assert opened(tmp_path, **options).group_ids == ("1", "001", "x, y")
    assert opened(tmp_path, **options | {"group_file": str(tmp_path / "root.csv")}).group_ids[1] == "001"


@pytest.mark.parametrize(("options", "reason"), [
    ({"group_column": None}, "dataset.group_file and dataset.group_column"),
    ({"group_file": "none.csv"}, "no file .*none.csv"),
    ({"group_column": "patiend"}, r"'patiend'.* stem, patient.* dataset\.group_column=COLUMN"),
    ({"group_key": "image"}, r"'image'.* stem, patient.* dataset\.group_key=COLUMN"),
    ({}, "patient for 2 images .*'b'"),
    ({"group_file": "blank.csv"}, "patient for 1 images .*'c'"),
    ({"group_file": "twice.csv"}, "'a' .*'1' and '2'"),
])  # fmt: skip
def test_group_file_at_fault(tmp_path: Path, options: dict[str, Any], reason: str) -> None:
    put_pairs(tmp_path, "a", "b", "c")
    write(tmp_path / "groups.csv", "stem,patient\na,1\na,1\n")
    write(tmp_path / "blank.csv", "stem,patient\na,1\nb,2\nc, \n")
    write(tmp_path / "twice.csv", "stem,patient\na,1\na,2\n")
    assert_usage_error(tmp_path, reason, **{"group_file": "groups.csv", "group_column": "patient"} | options)


def test_file_bytes_are_those_of_the_image_then_the_mask(tmp_path: Path) -> None:
    put_pairs(tmp_path, "a")
    files = [tmp_path / "images" / "a.png", tmp_path / "masks" / "a.png"]
    assert list(opened(tmp_path).file_bytes(0)) == [path.read_bytes() for path in files]
    before = fingerprint(opened(tmp_path))
    put(files[1], 255 - MASK_HW)
    assert fingerprint(opened(tmp_path)) != before


def test_threads_read_what_one_reads(tmp_path: Path) -> None:
    names = [f"{index:02d}" for index in range(24)]
    for index, name in enumerate(names):
        put(tmp_path / "images" / f"{name}.png", np.full((32, 32, 3), index, dtype=np.uint8))
        put(tmp_path / "masks" / f"{name}.png", np.eye(32, k=index, dtype=np.uint8))
    image_set = opened(tmp_path)
    with ThreadPoolExecutor(4) as threads:
        pairs = list(threads.map(image_set.read, range(24)))
    for index, pair in enumerate(pairs):
        assert (pair.image_HWC == index).all()
        assert np.array_equal(pair.mask_HW, np.eye(32, k=index))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "options", "number", "foreground"), [
    ("dsb2018_nuclei", {"group_file": "sources.csv", "group_column": "group"}, 382, 0.09686),
    ("usgra", {"mask_coding": "index", "num_classes": 3}, 190, 0.07245),
])  # fmt: skip
def test_real_images(name: str, options: dict[str, Any], number: int, foreground: float, shared_dir: Path) -> None:
    image_set = opened(shared_dir / "data" / name, **options)
    assert (len(image_set.image_ids), image_set.channels) == (number, 3)
    masks = [image_set.read(index).mask_HW for index in range(number)]
    share = sum(np.count_nonzero(mask_HW) for mask_HW in masks) / sum(mask_HW.size for mask_HW in masks)
    assert share == pytest.approx(foreground, abs=1e-5)


def test_typed_folders_may_lie_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_pairs(tmp_path / "data", "a", "b")
    write(tmp_path / "lists" / "train.txt", "a\n")
    write(tmp_path / "lists" / "test.txt", "b\n")
    (tmp_path / "data" / "masks").rename(tmp_path / "masks")
    monkeypatch.setenv("HOME", str(tmp_path))
    for lists in (str(tmp_path / "lists"), "~/lists"):
        found = opened(tmp_path / "data", masks=str(tmp_path / "masks"), split_dir=lists)
        assert found.declared_split == {"a": "train", "b": "test"}


def test_what_is_left_out_is_listed(tmp_path: Path) -> None:
    put_pairs(tmp_path, "a")
    assert opened(tmp_path).notes == ()
    write(tmp_path / "images" / "b.heic", "")
    (tmp_path / "masks" / "p1").mkdir()
    notes = " ".join(opened(tmp_path).notes)
    assert all(part in notes for part in (".heic", "p1"))
    (tmp_path / "images" / "a.png").rename(tmp_path / "masks" / "p1" / "a.png")
    (tmp_path / "images" / "p2").mkdir()
    with pytest.raises(UsageError, match="p2"):
        opened(tmp_path)


def test_a_link_whose_target_is_gone_is_a_bad_image(tmp_path: Path) -> None:
    put_pairs(tmp_path, "a", "c")
    (tmp_path / "images" / "c.png").unlink()
    (tmp_path / "images" / "c.png").symlink_to("/gone/c.png")
    with pytest.raises(ImageError, match=r"c\.png: a link .*/gone/c\.png"):
        opened(tmp_path).read(1)


@pytest.mark.parametrize(("mark", "named"), [(";", "semicolons"), ("\t", "tabs")])
def test_separators_of_spreadsheets_are_read_in_tables_and_named_in_lists(
    mark: str, named: str, tmp_path: Path
) -> None:
    put_pairs(tmp_path, "a", "b")
    write(tmp_path / "groups.csv", f"stem{mark}patient\na{mark}P1\nb{mark}p1\n")
    grouped = {"group_file": "groups.csv", "group_column": "patient"}
    assert opened(tmp_path, **grouped).group_ids == ("P1", "p1")
    assert "P1 and p1" in " ".join(opened(tmp_path, **grouped).notes)
    write(tmp_path / "splits" / "train.txt", f"a{mark}x\n")
    write(tmp_path / "splits" / "test.txt", "b\n")
    with pytest.raises(UsageError, match=named):
        opened(tmp_path)


def test_an_image_above_max_pixels_is_not_decoded(tmp_path: Path) -> None:
    put_pairs(tmp_path, "a")
    with pytest.raises(ImageError, match=r"a.png: 8 x 6 .*dataset.max_pixels=47"):
        one_pair(tmp_path, max_pixels=47)


def test_slices_of_an_item_are_items_of_one_case(tmp_path: Path) -> None:
    item = Item("a", (tmp_path / "a.nii",), (tmp_path / "b.nii",), group="P1")
    header = Header("NIfTI", 6, 8, slices=2, spacing=(3.0, 1.0, 0.5))
    first, second = in_slices(item, header)
    assert (first.image_id, second.image_id, second.slice, second.case) == ("a_z000", "a_z001", 1, "a")
    assert (second.spacing, second.group, second.images) == (header.spacing, "P1", item.images)
    assert in_slices(item, Header("PNG", 6, 8)) == [item]


def test_each_file_that_is_not_used_has_its_reason(tmp_path: Path) -> None:
    put_pairs(tmp_path, "a", "b", "c")
    for name in (".hidden.png", "notes.txt"):
        write(tmp_path / "images" / name, "")
    (tmp_path / "masks" / "p1").mkdir()
    os.mkfifo(tmp_path / "masks" / "pipe")
    write(tmp_path / "splits" / "train.txt", "a\n")
    write(tmp_path / "splits" / "test.txt", "b\n")
    unused = opened(tmp_path).unused
    words = {"images/.hidden.png": "hidden", "images/notes.txt": ".txt", "masks/p1": "folder", "masks/pipe": "file"}
    words |= {"images/c.png": "split", "masks/c.png": "split"}
    assert unused.keys() == words.keys()
    assert all(word in unused[path] for path, word in words.items())
    assert opened(tmp_path, split_dir=None).unused.keys() == words.keys() - {"images/c.png", "masks/c.png"}


def test_what_else_lies_in_a_shared_folder_is_listed(tmp_path: Path) -> None:
    for name in "ab":
        put(tmp_path / f"{name}.png", IMAGE_HWC)
        put(tmp_path / f"{name}_mask.png", MASK_HW)
    write(tmp_path / "splits" / "train.txt", "a\n")
    write(tmp_path / "splits" / "test.txt", "b\n")
    write(tmp_path / "groups.csv", "stem,patient\na,1\nb,2\n")
    options = {"images": ".", "masks": ".", "mask_suffix": "_mask", "group_file": "groups.csv"}
    options |= {"group_column": "patient"}
    assert (opened(tmp_path, **options).unused, opened(tmp_path, **options).notes) == ({}, ())
    write(tmp_path / "c99.heic", "")
    put(tmp_path / "sub" / "d.png", IMAGE_HWC)
    found = opened(tmp_path, **options)
    assert set(found.unused) == {"c99.heic", "sub"}
    assert all(word in " ".join(found.notes) for word in (".heic", "sub"))
    (tmp_path / "sub" / "d.png").unlink()
    for name in "ab":
        (tmp_path / f"{name}_mask.png").rename(tmp_path / "sub" / f"{name}.png")
    assert set(opened(tmp_path, **options | {"masks": "sub", "mask_suffix": ""}).unused) == {"c99.heic"}


def test_letters_may_be_encoded_in_two_ways(tmp_path: Path) -> None:
    """Archives made on a Mac hold é as two characters."""
    composed, decomposed = "l\u00e9sion", "le\u0301sion"
    for image, mask in ((decomposed, composed), (composed, decomposed)):
        root = tmp_path / str(len(image))
        put(root / "images" / f"{image}.png", IMAGE_HWC)
        put(root / "masks" / f"{mask}.png", MASK_HW)
        put_pairs(root, "b", "c")
        write(root / "splits" / "train.txt", f"{mask}\n")
        write(root / "splits" / "test.txt", "b\nc\n")
        write(root / "groups.csv", f"stem,patient\n{mask},{composed}\nb,{decomposed}\nc,1\n")
        options = {"split_dir": None, "group_file": "groups.csv", "group_column": "patient"}
        assert opened(root).image_ids == ("b", "c", image)
        assert len(set(opened(root, **options).group_ids)) == 2
        put(root / "images" / f"{mask}.png", IMAGE_HWC)
        assert_usage_error(root, "same image id")


def dicom_series(root: Path, folder: str, slices: int = 3) -> None:
    (root / folder).parent.mkdir(parents=True, exist_ok=True)
    save_series(root / folder, voxels(slices, 6, 8))


@pytest.mark.parametrize(("files", "advice"), [
    (("imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz", "dataset.json"), "use dataset=nnunet"),
    (("Dataset001/imagesTr/a_0000.png", "Dataset002/imagesTr/a_0000.png"), "dataset=nnunet with dataset.root="),
    (("Kvasir/images/a.png", "Kvasir/masks/a.png", "ISIC/images/a.png"), "set dataset.root to one of them"),
    (("P1/a.png", "P2/a.png", "P3/a.png"), "{patient}/{id}.png"),
])  # fmt: skip
def test_another_layout_is_named_with_what_reads_it(tmp_path: Path, files: tuple[str, ...], advice: str) -> None:
    for name in files:
        write(tmp_path / name, "x")
    assert_usage_error(tmp_path, re.escape(advice))


@pytest.mark.parametrize(("images", "masks", "image_ids"), [
    ("{}/images/{}.png", "{}/masks/{}.png", ("P1_0", "P1_1")),
    ("images/{}/{}.png", "masks/{}/{}.png", ("P1_0", "P1_1")),
    ("{}/images/s{}.png", "{}/masks/s{}_mask.png", ("P1_s0", "P1_s1")),
    ("images/{}/s{}_img.png", "masks/{}/s{}_seg.png", ("P1_s0", "P1_s1")),
    ("images/{}/1_scan_1{}.png", "masks/{}/label_1{}.png", ("P1_10", "P1_11")),
    ("images/{}/scan.png", "masks/{}/label.png", ("P1", "P2")),
])  # fmt: skip
def test_the_pattern_that_reads_folders_of_patients_is_that_of_the_message(
    tmp_path: Path, images: str, masks: str, image_ids: tuple[str, str]
) -> None:
    for patient in ("P1", "P2"):
        for name in ("0", "1"):
            put(tmp_path / images.format(patient, name), IMAGE_HWC)
            put(tmp_path / masks.format(patient, name), MASK_HW)
    found = by_advice(tmp_path)
    assert found.image_ids[:2] == image_ids
    assert {*found.group_ids} == {"P1", "P2"}


@pytest.mark.parametrize(("images", "masks"), [
    ("images/P{}", "masks/P{}.nii.gz"), ("images/P{}", "masks/P{}"), ("P{}/images", "P{}/masks/seg.nii.gz")
])  # fmt: skip
def test_folders_of_dicom_are_advised_as_series(tmp_path: Path, images: str, masks: str) -> None:
    for n in range(2):
        dicom_series(tmp_path, images.format(n))
        if masks.endswith(".nii.gz"):
            path = tmp_path / masks.format(n)
            path.parent.mkdir(parents=True, exist_ok=True)
            labels = np.zeros((8, 6, 3), np.uint8)
            nibabel.save(nibabel.Nifti1Image(labels, np.diag([-0.5, -0.75, 4.0, 1.0])), path)
        else:
            dicom_series(tmp_path, masks.format(n))
    found = by_advice(tmp_path)
    assert (len(found.image_ids), {*found.case_ids}) == (6, {"P0", "P1"})


def test_a_series_beside_files_is_advised_too(tmp_path: Path) -> None:
    put_pairs(tmp_path, "a")
    dicom_series(tmp_path, "images/P1")
    (note,) = opened(tmp_path).notes
    assert 'dataset.images="images/{id}"' in note
    assert "move the files up" in note


def by_advice(root: Path) -> ImageSet:
    """The data set under the options of dataset=pattern that the refusal of dataset=folder names."""
    with pytest.raises(UsageError, match="dataset=pattern") as refused:
        opened(root)
    assert "\n" not in str(refused.value)
    given = dict(re.findall(r"'dataset\.(\w+)=\"([^\"]+)\"'", str(refused.value)))
    return open_pattern(shipped(PatternConfig, "pattern", **given, root=str(root)))
