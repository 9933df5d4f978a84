"""`segexp predict` for every kind of head, mask coding, image and volume; tiles, ensembles, and killed processes."""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, cast

import nibabel
import numpy as np
import pytest
import tifffile
from medical import nnunet, save_dicom, voxels
from messages import mentions
from PIL import Image
from predicting import Captured, config_of, discs, foreground_of, ids_of_test, pixels, predicted, trained_on
from tiny import PRINT_PEAK_KIB, TINY

from segexp.config import Config
from segexp.config.compose import compose, hydra_session
from segexp.data.codings import decode_mask
from segexp.data.file_set import FilesConfig, coding_of
from segexp.records import read_run
from segexp.running import Outcome, prepare
from segexp.running.execute import execute

pytestmark = pytest.mark.slow


def scenes(root: Path, code: np.ndarray, depth: type = np.uint8, n: int = 14) -> None:
    """Discs of class 1 that hold one of class 2. code: what a mask holds for class 0, 1, 2."""
    y, x = np.mgrid[:44, :38]
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for i in range(n):
        distance = np.hypot(y - 14 - i % 7, x - 14 - i % 5)
        label = (distance < 11).astype(np.uint8) + (distance < 5)
        image = np.random.default_rng(i).normal(60 + 70 * label, 12).clip(0, 255).astype(depth)
        Image.fromarray(image * depth(257 if depth is np.uint16 else 1)).save(root / "images" / f"a{i:02d}.png")
        Image.fromarray(code[label]).save(root / "masks" / f"a{i:02d}.png")


THREE = np.arange(3, dtype=np.uint8)
COLORS = np.array([[0, 0, 0], [128, 0, 0], [0, 128, 0]], np.uint8)
INDEX = ("dataset.mask_coding=index", "dataset.num_classes=3")
REGIONS = ("dataset.regions=['1,2','2']", "dataset.class_names=[background,whole,core]")

KINDS: dict[str, tuple[np.ndarray, type, tuple[str, ...]]] = {
    "pad": (THREE, np.uint8, (*INDEX, "dataset.fit=pad")),
    "softmax": (THREE, np.uint8, INDEX),
    "no background": (THREE, np.uint8, (*INDEX, "dataset.background=none")),
    "independent": (THREE, np.uint8, (*INDEX, "head.mode=independent")),
    "regions": (THREE, np.uint8, (*INDEX, *REGIONS, "head.mode=independent")),
    "one region": (THREE, np.uint8, ("dataset.mask_coding=index", "dataset.regions=['2']", "head.mode=independent")),
    "values": (np.array([7, 90, 200], np.uint8), np.uint8,
               ("dataset.mask_coding=values", "dataset.num_classes=3", "dataset.mask_values=[7,90,200]")),
    "colors": (COLORS, np.uint8, ("dataset.mask_coding=colors", "dataset.num_classes=3",
               "dataset.mask_colors=['#000000','#800000','#008000']")),
    "ones": (np.array([0, 1, 1], np.uint8), np.uint8, ()),
    "deep": (np.array([0, 65535, 65535], np.uint16), np.uint16, ()),
    "each image": (np.array([0, 255, 255], np.uint8), np.uint8, ("dataset.normalise=image", "dataset.fit=pad")),
    "identity": (np.array([0, 255, 255], np.uint8), np.uint8, ("activation=identity", "loss=mse")),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_masks_are_the_runs_in_its_own_coding(kind: str, tmp_path: Path, capsys: Captured) -> None:
    """Byte for byte: what the run decides, and read by the run's own coding, its classes."""
    code, depth, options = KINDS[kind]
    root, out = tmp_path / "data", tmp_path / "out"
    scenes(root, code, depth)
    done = trained_on(tmp_path / "runs", root, *options)
    assert done.status == "done", done.reason
    config = config_of(tmp_path / "runs", root, *options)
    names = ids_of_test(done.run_dir)
    words = [root / "images" / f"{name}.png" for name in names]
    predicted(capsys, done.run_dir, *words, "-o", out, "--probabilities", "--overlay")
    wanted = foreground_of(done.run_dir, config)
    for name in names:
        chosen_FHW, values_KHW = wanted[name]
        if kind in ("independent", "regions"):
            for c, plane_HW in enumerate(chosen_FHW, start=1):
                assert np.array_equal(pixels(out / f"{name}_class{c}.png"), plane_HW * np.uint8(255))
            assert not (out / f"{name}.png").exists()
        else:
            mask = pixels(out / f"{name}.png")
            assert mask.dtype == code.dtype
            assert {*map(str, np.unique(mask.reshape(-1, *mask.shape[2:]), axis=0))} <= {*map(str, code)}
            classes_HW = decode_mask(mask, coding_of(cast(FilesConfig, config.dataset)))
            first = 0 if kind == "no background" else 1
            for c, plane_HW in enumerate(chosen_FHW, start=first):
                assert np.array_equal(classes_HW == c, plane_HW)
        with np.load(out / f"{name}_probabilities.npz") as kept:
            np.testing.assert_allclose(kept["probabilities"], values_KHW, atol=2e-6)
            assert len(kept["classes"]) == len(values_KHW)


@pytest.fixture(scope="module")
def padded(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    root = tmp_path_factory.mktemp("padded")
    discs(root)
    return trained_on(root / "runs", root, "dataset.fit=pad")


def test_tiles_agree_with_the_whole_image_where_they_can(padded: Outcome, tmp_path: Path, capsys: Captured) -> None:
    """One tile is the whole image, bit by bit; several differ little, and by as much as is printed."""
    image = np.random.default_rng(1).integers(0, 255, (100, 150)).astype(np.uint8)
    Image.fromarray(image).save(tmp_path / "x.png")
    outs = {}
    for name, words in (
        ("whole", ()),
        ("one", ("--tile", 160)),
        ("several", ("--tile", 64, "--overlap", 0.5, "--tta")),
    ):
        said = predicted(capsys, padded.run_dir, tmp_path / "x.png", "-o", tmp_path / name, "--probabilities", *words)
        with np.load(tmp_path / name / "x_probabilities.npz") as kept:
            outs[name] = kept["probabilities"], pixels(tmp_path / name / "x.png"), said.out
    assert np.array_equal(outs["whole"][0], outs["one"][0])
    assert "differ" not in outs["one"][2]
    predicted(capsys, padded.run_dir, tmp_path / "x.png", "-o", tmp_path / "tta", "--probabilities", "--tta")
    with np.load(tmp_path / "tta" / "x_probabilities.npz") as kept:
        largest = np.abs(kept["probabilities"] - outs["several"][0]).max()
    changed = (pixels(tmp_path / "tta" / "x.png") != outs["several"][1]).mean()
    (printed,) = re.findall(r"in (\S+) % of the pixels, and in probability by (\S+) at", outs["several"][2])
    share, at_most = map(float, printed)
    assert share == pytest.approx(100 * changed, rel=0.01)
    assert 0 < at_most == pytest.approx(largest, rel=0.06)
    assert largest < 0.2


def test_a_large_image_takes_the_memory_of_a_tile(padded: Outcome, tmp_path: Path) -> None:
    Image.fromarray(np.random.default_rng(1).integers(0, 255, (5000, 5000)).astype(np.uint8)).save(tmp_path / "x.png")
    words = ["predict", str(padded.run_dir), str(tmp_path / "x.png"), "-o", str(tmp_path / "out"), "--tile", "512"]
    line = "import sys; from segexp.cli import main; code = main(sys.argv[1:])\n"
    line += f"{PRINT_PEAK_KIB}; sys.exit(code)"
    seen = subprocess.run(
        [sys.executable, "-c", line, *words, "--overlap", "0.1"], capture_output=True, text=True, check=True
    )
    assert pixels(tmp_path / "out" / "x.png").shape == (5000, 5000)
    kib = int(seen.stdout.split()[-1])
    assert kib < 2 * 2**20, f"{kib / 2**20:.2f} GiB"


def test_a_study_gives_its_best_arm_and_an_ensemble_its_mean(tmp_path: Path, capsys: Captured) -> None:
    root, study = tmp_path / "data", tmp_path / "runs" / "default"
    discs(root)
    for words in (("activation=arctan",), ("activation=sigmoid",), ("activation=arctan", "seed=1")):
        trained_on(tmp_path / "runs", root, *words)
    runs = {d: read_run(d) for d in study.iterdir() if d.name.startswith("data")}
    mean = {
        arm: np.mean([r["summary"]["val_dice"] for r in runs.values() if r["config"]["activation.name"] == arm])
        for arm in ("arctan", "sigmoid")
    }
    said = predicted(capsys, study, root / "images" / "i00.png", "-o", tmp_path / "best").out
    assert mentions(said, f"arm {max(mean, key=mean.__getitem__)}")
    arctan = {d: r for d, r in runs.items() if r["config"]["activation.name"] == "arctan"}
    best = max(arctan, key=lambda d: arctan[d]["summary"]["val_dice"])
    chosen: tuple[str, ...] = ("--arm", "activation=arctan")
    said = predicted(capsys, study, root / "images" / "i00.png", "-o", tmp_path / "arctan", *chosen).out
    assert f"network: {best}" in said
    assert mentions(said, f"seed {runs[best]['config']['seed']}, of 2 runs")
    chosen += ("--ensemble", "seeds", "--probabilities")
    image = root / "images" / f"{ids_of_test(best)[0]}.png"
    predicted(capsys, study, image, "-o", tmp_path / "all", *chosen)
    predicted(capsys, best, image, "-o", tmp_path / "siblings", "--ensemble", "seeds", "--probabilities")
    each = [foreground_of(d, config_of(tmp_path / "runs", root, "activation=arctan", f"seed={r['config']['seed']}"))
            for d, r in arctan.items()]  # fmt: skip
    for folder in ("all", "siblings"):
        with np.load(tmp_path / folder / f"{image.stem}_probabilities.npz") as kept:
            both = np.mean([found[image.stem][1] for found in each], axis=0)
            np.testing.assert_allclose(kept["probabilities"], both, atol=1e-6)


def volume_config(root: Path, outputs: Path, *more: str) -> Config:
    with hydra_session():
        return compose([*TINY[1:], "trainer.epochs=1", "dataset=nnunet", f"dataset.root='{root}'",
                        f"outputs='{outputs}'", "metrics.unit=case", *more])  # fmt: skip


@pytest.mark.parametrize("channels", [1, 2])
def test_a_volume_gives_a_volume(channels: int, tmp_path: Path, capsys: Captured) -> None:
    """Slices as the run scored them, in the voxels, affine and units of the image; channels from files of nnU-Net."""
    root, out = tmp_path / "data", tmp_path / "out"
    nnunet(root, cases=8, channels=channels)
    config = volume_config(root, tmp_path / "runs")
    done = execute(prepare(config))
    assert done.status == "done", done.reason
    wanted = foreground_of(done.run_dir, config)
    cases = sorted({name.rpartition("_z")[0] for name in ids_of_test(done.run_dir)})
    predicted(capsys, done.run_dir, root / "imagesTr", "-o", out, "--overlay", "--probabilities")
    assert len([*out.glob("*.nii.gz")]) == 8
    for case in cases:
        name = f"{case}_0000" if (root / "imagesTr" / f"{case}_0000.nii.gz").exists() else case
        mask: Any = nibabel.load(out / f"{case}.nii.gz")
        image: Any = nibabel.load(root / "imagesTr" / f"{name}.nii.gz")
        assert np.array_equal(mask.affine, image.affine)
        assert mask.header.get_zooms() == image.header.get_zooms()
        assert mask.header.get_xyzt_units() == image.header.get_xyzt_units()
        assert mask.shape == image.shape
        labels = np.asanyarray(mask.dataobj)
        assert labels.dtype == np.uint8
        for k in range(labels.shape[2]):
            for c, plane_HW in enumerate(wanted[f"{case}_z{k:03}"][0], start=1):
                assert np.array_equal(c == labels[:, :, k].T, plane_HW)
        with np.load(out / f"{case}_probabilities.npz") as kept:
            assert kept["probabilities"].shape == (3, *labels.T.shape)
            assert kept["classes"].tolist() == ["background", "PZ", "TZ"]


def test_stacks_and_dicom(tmp_path: Path, capsys: Captured) -> None:
    """TIFF pages give TIFF pages, a .npy stack a .npy stack, a DICOM slice a PNG; 16-bit values are stored ones."""
    nnunet(tmp_path / "data", cases=8)
    config = volume_config(tmp_path / "data", tmp_path / "runs", "dataset.pages=slices")
    done = execute(prepare(config))
    stack_DHW = voxels(3, 40, 36)
    folder = tmp_path / "in"
    folder.mkdir()
    tifffile.imwrite(folder / "t.tif", stack_DHW, photometric="minisblack")
    np.save(folder / "n.npy", stack_DHW)
    save_dicom(folder / "d.dcm", stack_DHW[0])
    np.save(folder / "flat.npy", stack_DHW[0])
    Image.fromarray(stack_DHW[0].astype(np.uint8)).save(folder / "p.png")
    said = predicted(capsys, done.run_dir, folder, "-o", tmp_path / "out", code=1)
    assert mentions(said.err, "p.png", "uint8", "int16")
    masks = tifffile.imread(tmp_path / "out" / "t.tif")
    assert masks.shape == (3, 40, 36)
    assert np.array_equal(masks, np.load(tmp_path / "out" / "n.npy"))
    for name in ("d", "flat"):
        assert np.array_equal(pixels(tmp_path / "out" / f"{name}.png"), masks[0])


def test_the_mask_of_a_turned_image_is_turned_like_it(padded: Outcome, tmp_path: Path, capsys: Captured) -> None:
    exif = Image.Exif()
    exif[274] = 6
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 36)).astype(np.uint8))
    image.save(tmp_path / "x.png", exif=exif)
    predicted(capsys, padded.run_dir, tmp_path / "x.png", "-o", tmp_path / "out")
    with Image.open(tmp_path / "out" / "x.png") as mask:
        assert mask.getexif()[274] == 6
        assert mask.size == (36, 40)


def test_a_killed_command_goes_on(padded: Outcome, tmp_path: Path, capsys: Captured) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    number_of_images = 40
    for n in range(number_of_images):
        image = np.random.default_rng(n).integers(0, 255, (512, 512)).astype(np.uint8)
        Image.fromarray(image).save(folder / f"{n:03}.png")
    words = ["predict", str(padded.run_dir), str(folder), "-o", str(tmp_path / "cut")]
    for number, code in ((signal.SIGKILL, -9), (signal.SIGINT, 130)):
        with subprocess.Popen([sys.executable, "-m", "segexp", *words], stdout=subprocess.PIPE, text=True) as process:
            before = len([*(tmp_path / "cut").glob("*.png")])
            while len([*(tmp_path / "cut").glob("*.png")]) < before + 2 and process.poll() is None:
                time.sleep(0.001)
            process.send_signal(number)
            process.communicate()
        assert process.returncode == code
    found = len([*(tmp_path / "cut").glob("*.png")])
    assert 4 <= found < number_of_images
    said = predicted(capsys, *words[1:]).out
    assert mentions(said, f"{number_of_images - found} images predicted", f"{found} were there")
    predicted(capsys, *words[1:3], "-o", tmp_path / "at_once")
    for path in (tmp_path / "at_once").glob("*.png"):
        assert path.read_bytes() == (tmp_path / "cut" / path.name).read_bytes()
    assert sorted(p.name for p in (tmp_path / "cut").iterdir()) == sorted(
        p.name for p in (tmp_path / "at_once").iterdir()
    )
