"""Data sets: each preset on a tiny copy of the official layout, with its names, folders and coding of masks."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torchvision.datasets
from PIL import Image
from tiny import TINY

from segexp.cli import main
from segexp.config import Config, preset_file, preset_names, preset_values
from segexp.config.compose import compose, compose_job, hydra_session, typed_of
from segexp.data import adapters
from segexp.errors import UsageError
from segexp.records.formatting import terms_of
from segexp.running import prepare
from segexp.running.execute import execute

VOID = 255
SIDE = 40


def composed(outputs: Path, name: str, root: Path, *more: str) -> Config:
    """The configuration of a tiny run on a data set."""
    words = [word for word in TINY if not word.startswith("dataset.number")]
    words += [f"dataset={name}", f"dataset.root='{root}'", f"outputs='{outputs}'", "trainer.epochs=1", *more]
    with hydra_session() as extra:
        return typed_of(compose_job(words, extra))


def photograph(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8))


def labels(seed: int, *values: int) -> np.ndarray:
    """(SIDE, SIDE) of vertical stripes of the values, the first twice as wide, shifted by the seed."""
    stripes = np.array([values[0], *values], np.uint8)[np.arange(SIDE) * (len(values) + 1) // SIDE]
    return np.tile(np.roll(stripes, seed), (SIDE, 1))


def save(path: Path, image: Image.Image | np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(path)


Layout = Callable[[Path], dict[str, np.ndarray]]
"""Writes a data set below a root and returns image id -> class of each pixel, 255 where it counts for nothing."""


def isic2018(root: Path) -> dict[str, np.ndarray]:
    truth = {}
    for n, part in enumerate(["Training"] * 4 + ["Validation"] * 2 + ["Test"] * 2):
        name, mask = f"ISIC_{n:07d}", labels(n, 0, 255)
        save(root / f"ISIC2018_Task1-2_{part}_Input" / f"{name}.jpg", photograph(n))
        save(root / f"ISIC2018_Task1_{part}_GroundTruth" / f"{name}_segmentation.png", mask)
        truth[name] = mask // 255
    (root / "ISIC2018_Task1-2_Training_Input" / "LICENSE.txt").write_text("CC", encoding="utf-8")
    return truth


def oxford_pets(root: Path) -> dict[str, np.ndarray]:
    truth, lists = {}, {"trainval": "", "test": ""}
    for n in range(8):
        name, trimap = f"Abyssinian_{n + 1}", labels(n, 2, 1, 3)
        save(root / "oxford-iiit-pet" / "images" / f"{name}.jpg", photograph(n))
        save(root / "oxford-iiit-pet" / "annotations" / "trimaps" / f"{name}.png", trimap)
        lists["trainval" if n < 6 else "test"] += f"{name} 1 1 1\n"
        truth[name] = np.array([0, 1, 0, VOID], np.uint8)[trimap]
    annotations = root / "oxford-iiit-pet" / "annotations"
    (annotations / "trimaps" / "._Abyssinian_1.png").write_bytes(b"resource fork")
    for part, text in (lists | {"list": "#Image CLASS-ID SPECIES BREED ID\n" + "".join(lists.values())}).items():
        (annotations / f"{part}.txt").write_text(text, encoding="utf-8")
    return truth


def voc2012(root: Path) -> dict[str, np.ndarray]:
    base, truth, lists = root / "VOCdevkit" / "VOC2012", {}, {"train": "", "val": "", "trainval": ""}
    for n in range(9):
        name, index = f"2007_{n:06d}", labels(n, 0, *range(1, 21), VOID)
        save(base / "JPEGImages" / f"{name}.jpg", photograph(n))
        if n == 8:  # most images have no mask
            break
        mask = Image.frombytes("P", (SIDE, SIDE), index.tobytes())
        mask.putpalette(np.random.default_rng(0).integers(0, 256, 768, dtype=np.uint8).tobytes())
        save(base / "SegmentationClass" / f"{name}.png", mask)
        save(base / "SegmentationObject" / f"{name}.png", mask)
        lists["train" if n < 5 else "val"] += f"{name}\n"
        truth[name] = index
    for part, text in (lists | {"trainval": lists["train"] + lists["val"]}).items():
        (base / "ImageSets" / "Segmentation").mkdir(parents=True, exist_ok=True)
        (base / "ImageSets" / "Segmentation" / f"{part}.txt").write_text(text, encoding="utf-8")
    return truth


def camvid(root: Path) -> dict[str, np.ndarray]:
    truth = {}
    for n, part in enumerate(["train"] * 4 + ["val"] * 2 + ["test"] * 2):
        name, index = f"0016E5_{n:05d}", labels(n, *range(12))
        save(root / "CamVid" / part / f"{name}.png", photograph(n))
        save(root / "CamVid" / f"{part}annot" / f"{name}.png", index)
        truth[name] = np.where(index == 11, VOID, index)
    (root / "CamVid" / "train.txt").write_text("/SegNet/CamVid/train/x.png /SegNet/y.png\n", encoding="utf-8")
    return truth


def ade20k(root: Path) -> dict[str, np.ndarray]:
    base, truth = root / "ADEChallengeData2016", {}
    for n, (part, short) in enumerate([("training", "train")] * 6 + [("validation", "val")] * 2):
        name, value = f"ADE_{short}_{n + 1:08d}", labels(n, 0, 1, 2, 149, 150)
        save(base / "images" / part / f"{name}.jpg", photograph(n))
        save(base / "annotations" / part / f"{name}.png", value)
        truth[name] = np.where(value == 0, VOID, value - 1).astype(np.uint8)
    (base / "objectInfo150.txt").write_text("Idx Ratio Train Val Name\n", encoding="utf-8")
    return truth


def cityscapes(root: Path) -> dict[str, np.ndarray]:
    ids = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
    class_of = np.full(256, VOID, np.uint8)
    class_of[list(ids)] = np.arange(19)
    truth = {}
    for n, (part, city) in enumerate([("train", f"city{k // 2}") for k in range(6)] + [("val", "ulm")] * 2):
        name, label_ids = f"{city}_{n:06d}_000019", labels(n, 0, 1, 4, *ids, 34)
        save(root / "leftImg8bit" / part / city / f"{name}_leftImg8bit.png", photograph(n))
        for kind in ("labelIds", "instanceIds", "color"):
            save(root / "gtFine" / part / city / f"{name}_gtFine_{kind}.png", label_ids)
        truth[name] = class_of[label_ids]
    save(root / "leftImg8bit" / "test" / "bonn" / "bonn_000000_000019_leftImg8bit.png", photograph(0))
    save(root / "gtFine" / "test" / "bonn" / "bonn_000000_000019_gtFine_labelIds.png", labels(0, 1))
    return truth


def kvasir_seg(root: Path) -> dict[str, np.ndarray]:
    truth = {}
    for n in range(8):
        mask = np.dstack([labels(n, 0, 255)] * 3)
        save(root / "Kvasir-SEG" / "images" / f"cju{n}.jpg", photograph(n))
        save(root / "Kvasir-SEG" / "masks" / f"cju{n}.jpg", mask)
        truth[f"cju{n}"] = mask[..., 0] // 255
    (root / "Kvasir-SEG" / "kavsir_bboxes.json").write_text("{}", encoding="utf-8")
    return truth


def drive(root: Path) -> dict[str, np.ndarray]:
    truth = {}
    for n, part in [(n, "training") for n in range(21, 27)] + [(n, "test") for n in (1, 2)]:
        mask = labels(n, 0, 255)
        save(root / "DRIVE" / part / "images" / f"{n:02d}_{part}.tif", photograph(n))
        save(root / "DRIVE" / part / "1st_manual" / f"{n:02d}_manual1.gif", mask)
        save(root / "DRIVE" / part / "mask" / f"{n:02d}_{part}_mask.gif", labels(0, 255))
        truth[f"{n:02d}"] = mask // 255
    save(root / "DRIVE" / "test" / "2nd_manual" / "01_manual2.gif", labels(0, 0, 255))
    return truth


def busi(root: Path) -> dict[str, np.ndarray]:
    base, truth = root / "Dataset_BUSI_with_GT", {}
    for n, kind in enumerate(["benign"] * 4 + ["malignant"] * 2 + ["normal"] * 2):
        name, mask = f"{kind} ({n + 1})", labels(n, 0, *([0] if kind == "normal" else [255]))
        save(base / kind / f"{name}.png", photograph(n))
        save(base / kind / f"{name}_mask.png", mask > 0)
        truth[name] = mask // 255
        if n == 0:  # a second focus
            save(base / kind / f"{name}_mask_1.png", mask.T > 0)
            truth[name] |= mask.T // 255
    return truth


def manifest(root: Path) -> dict[str, np.ndarray]:
    truth, rows = {}, "image;mask;split;group\r\n"
    for n, part in enumerate(["train"] * 4 + ["val"] * 2 + ["test"] * 2):
        mask = labels(n, 0, 255)
        save(root / "scans" / f"{n}.png", photograph(n))
        save(root / "labels" / f"{n}.png", mask)
        rows += f"scans\\{n}.png;labels\\{n}.png;{part};P{n}\r\n"
        truth[str(n)] = mask // 255
    (root / "manifest.csv").write_text(rows, encoding="utf-16", newline="")
    return truth


PARTS: dict[Layout, dict[str, int]] = {
    manifest: {"train": 4, "val": 2, "test": 2},
    kvasir_seg: {},
    drive: {"test": 2},
    busi: {},
    cityscapes: {"test": 2},
    isic2018: {"train": 4, "val": 2, "test": 2},
    oxford_pets: {"test": 2},
    voc2012: {"test": 3},
    camvid: {"train": 4, "val": 2, "test": 2},
    ade20k: {"test": 2},
}
"""Each layout, and how many images of it are in the parts that the official split says."""


@pytest.mark.parametrize("layout", PARTS, ids=lambda layout: layout.__name__)
def test_each_pixel_has_its_class(layout: Layout, tmp_path: Path) -> None:
    truth = layout(tmp_path / "data")
    config = composed(tmp_path, layout.__name__, tmp_path / "data")
    prepared = prepare(config)
    image_set, facts = prepared.image_set, prepared.facts
    assert set(image_set.image_ids) == set(truth)
    for n, name in enumerate(image_set.image_ids):
        pair = image_set.read(n)
        assert pair.image_HWC.shape == (SIDE, SIDE, 3)
        assert np.array_equal(pair.mask_HW, truth[name])
        counted = np.bincount(truth[name].ravel(), minlength=256)[: config.dataset.num_classes]
        assert np.array_equal(facts.class_pixels_NC[n], counted)
    parts = {part: len(prepared.split[part]) for part in PARTS[layout]}
    assert parts == PARTS[layout]
    assert all(len(indices) > 0 for indices in prepared.split.values())


@pytest.mark.parametrize(("name", "layout", "loader"), [
    ("oxford_pets", oxford_pets, "OxfordIIITPet"),
    ("voc2012", voc2012, "VOCSegmentation"),
])  # fmt: skip
def test_torchvision_fetches_what_it_offers(
    name: str, layout: Layout, loader: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its download is replaced by one that writes the layout; it is called once."""
    calls = []

    def download(self: object, root: str, **options: object) -> None:
        calls.append(options)
        layout(Path(root))

    monkeypatch.setattr(getattr(torchvision.datasets, loader), "__init__", download)
    config = composed(tmp_path, name, tmp_path / "new" / "data")
    config.dataset.download = True  # type: ignore[attr-defined]
    for _ in range(2):
        assert len(adapters()["pattern"].open(config.dataset).image_ids) == 8
    assert [call["download"] for call in calls] == [True]


def test_a_download_that_fails_says_where_the_files_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(self: object, root: str, **options: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision.datasets.OxfordIIITPet, "__init__", download)
    for name, words in (("oxford_pets", ["no route to host"]), ("kvasir_seg", ["dataset.download=true"])):
        config = composed(tmp_path, name, tmp_path / "data")
        config.dataset.download = True  # type: ignore[attr-defined]
        with pytest.raises(UsageError) as refused:
            adapters()["pattern"].open(config.dataset)
        assert all(word in str(refused.value) for word in [*words, str(config.dataset.url)])


def test_without_a_root_the_line_names_the_source() -> None:
    with hydra_session() as extra, pytest.raises(UsageError, match=r"dataset\.root.*simula\.no"):
        compose(["dataset=kvasir_seg"], extra)


def test_the_terms_of_recorded_data_are_one_line() -> None:
    config = {"dataset.licence": "CC0", "dataset.citation": "A 2020", "dataset.url": None}
    assert terms_of(config) == "licence: CC0; cite A 2020"
    assert terms_of({}) == ""


@pytest.mark.slow
def test_licence_and_citation_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    isic2018(tmp_path / "data")
    for activation in ("arctan", "sigmoid"):
        run = execute(prepare(composed(tmp_path, "isic2018", tmp_path / "data", f"activation={activation}")))
    assert main(["show", str(run.run_dir)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert main(["report", str(run.run_dir.parent), "-o", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    for words in ("CC BY-NC 4.0", "arXiv:1902.03368"):
        assert words in shown
        assert words in page


@pytest.mark.slow
@pytest.mark.parametrize("layout", PARTS, ids=lambda layout: layout.__name__)
def test_a_network_trains_on_each(layout: Layout, tmp_path: Path) -> None:
    layout(tmp_path / "data")
    run = execute(prepare(composed(tmp_path, layout.__name__, tmp_path / "data")))
    assert run.status == "done"
    assert (run.run_dir / "images.csv").exists()


def url_of(name: str) -> str:
    return preset_values(preset_file("dataset", name))["url"]


@pytest.mark.parametrize("name", [name for name in preset_names("dataset") if url_of(name) != "null"])
def test_where_to_get_the_files_is_said(name: str, tmp_path: Path) -> None:
    empty = tmp_path / "data"
    for _ in range(2):
        with pytest.raises(UsageError) as refused:
            prepare(composed(tmp_path, name, empty))
        assert url_of(name) in str(refused.value)
        assert "\n" not in str(refused.value)
        empty.mkdir(exist_ok=True)
    assert any(layout in str(refused.value) for layout in ("expected in dataset.root", "kvasir_256.npz"))
