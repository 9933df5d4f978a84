"""Data sets of arrays, and the archives of MedSegBench."""

import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import TINY

from segexp.config import Config
from segexp.config.compose import compose_job, hydra_session, typed_of
from segexp.data import adapters
from segexp.data.array import CLASSES, SETS
from segexp.data.image_set import ImageError, ImageSet, fingerprint
from segexp.data.rasters import array_header
from segexp.errors import UsageError
from segexp.running import prepare
from segexp.running.execute import execute

IMAGES = np.random.default_rng(1).integers(0, 256, (12, 40, 44, 3), dtype=np.uint8)
MASKS = (IMAGES[..., 0] > 100).astype(np.uint8)
NPZ = {"x": IMAGES, "y": MASKS, "who": np.arange(12) // 2, "bad": np.array([{}])}


def composed(outputs: Path, adapter: str, *words: str) -> Config:
    tiny = [word for word in TINY if not word.startswith("dataset.number")]
    base = [f"dataset={adapter}", f"outputs='{outputs}/runs'", f"dataset.root='{outputs}'", "trainer.epochs=1"]
    with hydra_session() as extra:
        return typed_of(compose_job([*tiny, *base, *words], extra))


def opened(root: Path, adapter: str, *words: str) -> ImageSet:
    return adapters()[adapter].open(composed(root, adapter, *words).dataset)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """images.npy and masks.npy, and both with others in all.npz."""
    np.save(tmp_path / "images.npy", IMAGES)
    np.save(tmp_path / "masks.npy", MASKS)
    np.savez(tmp_path / "all.npz", **NPZ)  # type: ignore[arg-type]
    return tmp_path


@pytest.mark.parametrize("word", ["orientation=upright", "pages=channels"])
@pytest.mark.parametrize("adapter", ["array", "medsegbench"])
def test_options_of_image_files_are_refused(adapter: str, word: str, root: Path) -> None:
    with pytest.raises(UsageError, match=f"dataset.{word} has no effect"):
        opened(root, adapter, f"dataset.{word}")


def test_archives_without_arrays_and_arrays_without_pixels(root: Path) -> None:
    with zipfile.ZipFile(root / "odd.npz", "w") as file:
        file.writestr("x.npy", b"junk")
    with pytest.raises(UsageError, match=r"odd.npz cannot be read \('x' is no array\)"):
        opened(root, "array", "dataset.images=odd.npz/x")
    np.save(root / "images.npy", IMAGES[:, :0])
    np.save(root / "masks.npy", MASKS[:, :0])
    with pytest.raises(UsageError, match="no pixels"):
        opened(root, "array")


@pytest.mark.parametrize("shape", [(2**32 - 1, 2**32 - 1), (10**9, 32)])
def test_an_array_shorter_than_its_header_says_is_refused(shape: tuple[int, ...], root: Path) -> None:
    with (root / "images.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        file.write(bytes(64))
    with pytest.raises(UsageError, match=r"images.npy cannot be read .*more numbers than it holds; save it again"):
        opened(root, "array")
    with pytest.raises(ValueError, match="more numbers than it holds; save it again"):
        array_header(root / "images.npy", "refuse")


def test_arrays_that_are_not_used_are_listed(root: Path) -> None:
    words = ("dataset.images=all.npz/x", "dataset.masks=all.npz/y")
    assert set(opened(root, "array", *words).unused) == {"all.npz/who", "all.npz/bad"}
    assert opened(root, "array").unused == {}


def test_two_files_or_one_archive(root: Path) -> None:
    archive = ("dataset.images=all.npz/x", "dataset.masks=all.npz/y", "dataset.groups=all.npz/who")
    for words in ((), archive):
        found = opened(root, "array", *words)
        assert (found.image_ids[3], found.channels, found.num_classes) == ("03", 3, 2)
        pair = found.read(3)
        assert np.array_equal(pair.image_HWC, IMAGES[3])
        assert np.array_equal(pair.mask_HW, MASKS[3])
        assert pair.image_HWC.flags.writeable
        assert pair.masks[0].values == {str(v): int((MASKS[3] == v).sum()) for v in (0, 1)} | {}
    assert found.group_ids[:3] == ("0", "0", "1")
    assert fingerprint(found) == fingerprint(opened(root, "array"))
    np.save(root / "images.npy", IMAGES // 2)
    assert fingerprint(found) != fingerprint(opened(root, "array"))


def test_ids_parts_and_grey_images(root: Path) -> None:
    np.save(root / "ids.npy", np.array([f"s{n % 3}_{n:02d}" for n in range(12)]))
    np.save(root / "parts.npy", np.array(["train"] * 6 + ["val"] * 3 + ["test"] * 3))
    np.save(root / "grey.npy", IMAGES[..., 0].astype(np.float32))
    words = ("dataset.images=grey.npy", "dataset.ids=ids.npy", "dataset.split=parts.npy")
    found = opened(root, "array", *words)
    assert found.image_ids[:2] == ("s0_00", "s0_03")
    assert found.declared_split is not None
    assert found.declared_split["s0_09"] == "test"
    assert found.channels == 1
    assert np.array_equal(found.read(1).image_HWC, IMAGES[3, ..., :1].astype(np.float32))


@pytest.mark.parametrize(("images", "masks", "words"), [
    (IMAGES.transpose(0, 3, 1, 2), MASKS, ["moveaxis"]),
    (IMAGES[0, 0], MASKS, ["(44, 3)", "(N, H, W[, C])"]),
    (IMAGES, MASKS[:5], ["(5, 40, 44)", "masks must be"]),
    (IMAGES, MASKS[:, :20], ["(12, 20, 44)"]),
    (np.array([{}]), MASKS, ["objects", "numpy.save"]),
])  # fmt: skip
def test_arrays_that_do_not_fit(images: np.ndarray, masks: np.ndarray, words: list[str], root: Path) -> None:
    np.save(root / "images.npy", images)
    np.save(root / "masks.npy", masks)
    with pytest.raises(UsageError) as refused:
        opened(root, "array")
    assert all(word in str(refused.value) for word in words)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("word", "named"), [
    ("dataset.images=none.npy", ["dataset.images=none.npy", "FILE.npz/KEY"]),
    ("dataset.images=all.npz", ["x, y, who, bad"]),
    ("dataset.images=all.npz/z", ["'z'", "x, y, who, bad"]),
    ("dataset.images=all.npz/bad", ["objects"]),
    ("dataset.images=text.npy", ["text.npy"]),
    ("dataset.ids=all.npz/x", ["dataset.ids=all.npz/x", "12 images"]),
    ("dataset.ids=all.npz/who", ["more than once"]),
    ("dataset.split=all.npz/who", ["dataset.split", "train, val or test"]),
    ("dataset.masks=../masks.npy", ["outside"]),
])  # fmt: skip
def test_options_at_fault(word: str, named: list[str], root: Path) -> None:
    (root / "text.npy").write_text("no array", encoding="utf-8")
    with pytest.raises(UsageError) as refused:
        opened(root, "array", word)
    assert all(text in str(refused.value) for text in named)
    assert "\n" not in str(refused.value)


def test_pixels_at_fault_are_reported_for_their_image(root: Path) -> None:
    spoilt = IMAGES.astype(np.float32)
    spoilt[7, 0, 0] = np.nan
    np.save(root / "images.npy", spoilt)
    np.save(root / "masks.npy", MASKS * 7)
    found = opened(root, "array")
    with pytest.raises(ImageError, match="07 of"):
        found.read(7)
    with pytest.raises(ImageError, match=r"dataset\.mask_coding"):
        found.read(0)


def bench(root: Path, name: str, masks: np.ndarray, suffix: str = "") -> None:
    arrays: dict[str, Any] = {}
    for part, rows in (("train", slice(0, 6)), ("val", slice(6, 9)), ("test", slice(9, 12))):
        arrays |= {f"{part}_images{suffix}": IMAGES[rows], f"{part}_label{suffix}": masks[rows]}
    np.savez(root / f"{name}.npz", **arrays)


def test_medsegbench(tmp_path: Path) -> None:
    assert len(SETS) == len(set(SETS)) == 35
    assert set(CLASSES) <= set(SETS)
    bench(tmp_path, "pandental_256", MASKS * 3)  # foreground is what is not 0
    bench(tmp_path, "wbc_128", MASKS * 2)
    config = composed(tmp_path, "medsegbench", "dataset.set=wbc", "dataset.size=128")
    assert (config.dataset.num_classes, config.dataset.name) == (3, "medsegbench_wbc")
    assert config.dataset.class_names == ["background", "cytoplasm", "nucleus"]
    prepared = prepare(config)
    assert {part: len(rows) for part, rows in prepared.split.items()} == {"train": 6, "val": 3, "test": 3}
    found = prepared.image_set
    assert found.image_ids[0] == "test_00000"
    assert np.array_equal(found.read(0).image_HWC, IMAGES[9])
    assert np.array_equal(found.read(0).mask_HW, MASKS[9] * 2)
    binary = opened(tmp_path, "medsegbench", "dataset.set=pandental")
    assert np.array_equal(binary.read(11).mask_HW, MASKS[8])


def test_medsegbench_at_fault(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"https://zenodo\.org/records/13359660/files/yeaz_512\.npz"):
        opened(tmp_path, "medsegbench", "dataset.set=yeaz", "dataset.size=512")
    with pytest.raises(UsageError, match=r"dataset\.set=kvasr .*kvasir"):
        composed(tmp_path, "medsegbench", "dataset.set=kvasr")
    bench(tmp_path, "busi_256", MASKS, "_C1")
    with pytest.raises(UsageError, match=r"train_label_C1"):
        opened(tmp_path, "medsegbench", "dataset.set=busi")
    shutil.move(tmp_path / "busi_256.npz", tmp_path / "mine.npz")
    words = ("dataset.set=busi", "dataset.category=C1", "dataset.file=mine.npz")
    assert len(opened(tmp_path, "medsegbench", *words).image_ids) == 12


def test_the_archive_of_several_labels_for_one_image(tmp_path: Path) -> None:
    arrays = {f"{part}_images": IMAGES[:4] for part in ("train", "val", "test")}
    arrays |= {f"{part}_label_C3": MASKS[:4] for part in ("train", "val", "test")}
    np.savez(tmp_path / "idrib_256.npz", **arrays)  # type: ignore[arg-type]
    found = opened(tmp_path, "medsegbench", "dataset.set=idrib", "dataset.category=C3")
    assert np.array_equal(found.read(0).mask_HW, MASKS[0])


@pytest.mark.parametrize("adapter", ["array", pytest.param("medsegbench", marks=pytest.mark.slow)])
def test_a_network_trains_on_arrays(adapter: str, root: Path) -> None:
    bench(root, "kvasir_256", MASKS)
    assert execute(prepare(composed(root, adapter))).status == "done"
