"""Every `segexp ...` line of README and docs is run, in the order of its page, with tiny networks and images."""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import medical
import nibabel
import numpy as np
import pytest
from PIL import Image
from test_docs import PAGES, REPOSITORY, blocks, lines_of
from tiny import TINY

from segexp.cli import main
from segexp.registry import plugins

NOT_RUN = {
    "hydra/launcher=slurm_gpu": "needs Slurm (tests/sweep/test_engines.py)",
    "hydra/launcher=ray": "starts Ray (tests/sweep/test_engines.py)",
    "dataset.download=true": "downloads a data set (tests/data/test_presets.py)",
    "study=nieradzik2021": "needs ACDC, and 42 runs at least (tests/config)",
    "tracking=": "needs TensorBoard and MLflow (tests/tracking)",
    "--trials": "needs Optuna (tests/sweep/test_tune.py)",
}
NOT_RUN |= {} if find_spec("onnxscript") else {"--format onnx": "needs segexp[onnx]"}
"""Part of a line -> why it is not run here. `test_every_line_is_understood` parses and composes these lines too."""

ELSEWHERE = ("docs/tutorial.md",)
"""Pages whose commands are run by another test, with what they print."""

PLACES = {
    "dataset.mask_coding=index": {"DIR": "CLASSES"},
    "masks/{id}.nii.gz": {"DIR": "SERIES"},
    "dataset=folder dataset.root=DIR metrics.unit=case": {"DIR": "VOLUMES"},
    "label_{id}.png": {"DIR": "NESTED"},
    "outputs/default/RUN": {"outputs/default/RUN": "outputs/default/{run}"},
    "outputs/nieradzik2021": {"outputs/nieradzik2021": "outputs/nuclei"},
    "outputs/mine/RUN": {"RUN_A": "{a}", "RUN_B": "{b}", "RUN": "{a}"},
}
"""Part of a line -> names on it that stand for something, and what that is here."""

FEWER = {"study=tail_ladder": ["activation=arctan,normal_cdf", "activation.slope=native", "loss=dice", "seed=0"]}
"""Part of a line -> what is added to it, where a prepared study has many runs."""

SMALLER = (
    (r"range\(\d+\)", "0,1"),
    (r"^([\w.]+=[^=,\[(]+,[^=,]+),[^=]*$", r"\1"),
    (r"^--budget$", "--looks"),
    (r"^8h$", "3,4"),
    (r"^1e-3,.*|^3e-4,1e-3,.*", "3e-4,1e-3"),
)
"""Sweeps of two values, decisions of two looks, two learning rates."""


def write_images(root: Path, *, classes: int = 2, side: int = 32, first: int = 0) -> None:
    """images/, masks/ and everything else that pages put into such a folder."""
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    names: list[str] = []
    images: list[np.ndarray] = []
    masks: list[np.ndarray] = []
    for n in range(24):
        rng = np.random.default_rng(first + n)
        row, column = np.mgrid[:side, :side]
        mask = (row - rng.integers(8, 24)) ** 2 + (column - rng.integers(8, 24)) ** 2 < 30
        mask = mask.astype(np.uint8) * (1 + n % (classes - 1))
        image = (100 * (mask > 0) + rng.integers(0, 100, mask.shape)).astype(np.uint8)
        Image.fromarray(image).save(root / "images" / f"{n:02d}.png")
        Image.fromarray(mask).save(root / "masks" / f"{n:02d}.png")
        names.append(f"{n:02d}")
        images.append(image)
        masks.append(mask)
    (root / "patients.csv").write_text("stem,patient\n" + "".join(f"{name},P{name[1]}\n" for name in names))
    (root / "images.csv").write_text("image,mask\n" + "".join(f"images/{n}.png,masks/{n}.png\n" for n in names))
    np.save(root / "images.npy", np.stack(images))
    np.save(root / "masks.npy", np.stack(masks))
    np.savez(root / "all.npz", x=np.stack(images), y=np.stack(masks))


def write_volumes(home: Path) -> None:
    medical.nnunet(home / "Dataset005_Prostate", 8)
    regions = {"background": 0, "whole": [1, 2], "core": 2}
    medical.nnunet(home / "Dataset137_BraTS", 8, labels=regions, regions_class_order=[1, 2])
    for root in (home / "VOLUMES", home / "SERIES"):
        for folder in ("images", "masks"):
            (root / folder).mkdir(parents=True)
        for n in range(8):
            image, labels = medical.scene(n)
            if root.name == "SERIES":
                medical.save_series(root / "images" / f"P{n}", image[..., 0].T)
                of_dicom = np.diag([-0.5, -0.75, 4.0, 1.0])  # which counts to the left and to the back
                nibabel.save(nibabel.Nifti1Image(labels, of_dicom), root / "masks" / f"P{n}.nii.gz")
            else:
                medical.save_nifti(root / "images" / f"P{n}.nii.gz", image[..., 0])
                medical.save_nifti(root / "masks" / f"P{n}.nii.gz", labels)


def write_results_of_others(home: Path) -> None:
    """A table of DSC, and folders of nnU-Net: two arms, and folds or runs."""
    draw = np.random.default_rng(0).uniform
    rows = [
        f"{m},{run},c{case},{draw(0.7, 0.9):.4f}" for m in ("unet", "other") for run in range(5) for case in range(9)
    ]
    (home / "results.csv").write_text("\n".join(["model,run,case,DSC", *rows]), encoding="utf-8")
    for trainer in ("nnUNetTrainer", "nnUNetTrainerArctan"):
        for fold in range(3):
            missed = int(draw(5, 30))
            counts = {"TP": 90 - missed, "FP": int(draw(5, 30)), "FN": missed}
            cases = [{"metrics": {"1": counts}, "reference_file": f"/x/case_{fold}{n}.nii.gz"} for n in range(6)]
            folder = (
                home / "nnUNet_results" / "Dataset004_X" / f"{trainer}__nnUNetPlans__2d" / f"fold_{fold}" / "validation"
            )
            folder.mkdir(parents=True)
            (folder / "summary.json").write_text(json.dumps({"metric_per_case": cases}), encoding="utf-8")


@pytest.fixture(scope="module")
def home(made_once: Callable[[str, Callable[[Path], None]], Path]) -> Path:
    """A folder with the data and the finished studies that the pages name."""
    return made_once("home", fill_home)


def fill_home(home: Path) -> None:
    write_images(home / "DIR")
    write_images(home / "CLASSES", classes=3)
    write_images(home / "other_hospital", first=100)
    for path in (home / "DIR").glob("*/*.png"):
        photo = home / "Kvasir-SEG" / path.parent.name / f"{path.stem}.jpg"
        photo.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.asarray(Image.open(path)) * (255 if path.parent.name == "masks" else 1)
        Image.fromarray(pixels).convert("RGB").save(photo, quality=100)
    for n, name in enumerate(sorted(path.name for path in (home / "DIR" / "images").iterdir())):
        (home / "NESTED" / f"P{n % 8}").mkdir(parents=True, exist_ok=True)
        shutil.copy(home / "DIR" / "images" / name, home / "NESTED" / f"P{n % 8}" / f"scan_{name}")
        shutil.copy(home / "DIR" / "masks" / name, home / "NESTED" / f"P{n % 8}" / f"label_{name}")
    write_volumes(home)
    write_results_of_others(home)
    shutil.copytree(home / "DIR" / "images", home / "new_images")
    Image.fromarray(np.tile(np.arange(96, dtype=np.uint8), (80, 1))).save(home / "slide.tif")
    (home / "conclusions.md").write_text("# Conclusions\n", encoding="utf-8")
    tiny = tiny_overrides(["dataset=folder"])
    binary = ["dataset=folder", "dataset.root=DIR", "dataset.fit=pad", *tiny]
    classes = ["dataset=folder", "dataset.root=CLASSES", "dataset.mask_coding=index", "dataset.num_classes=3", *tiny]
    arms = ["activation=sigmoid,arctan", "loss=dice", "seed=0,1,2"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        assert main(["train", *binary]) == 0
        assert main(["train", "-m", *arms[:2], "seed=0,1", "study.name=nuclei", *binary]) == 0
        assert main(["train", "-m", *arms, "hidden_activation=native,gelu", "study.name=mine", *classes]) == 0
        assert (
            main(["collect", "outputs/mine", "-o", "laptop"]) == main(["collect", "outputs/mine", "-o", "server"]) == 0
        )


def tiny_overrides(words: list[str]) -> list[str]:
    """The settings of a tiny run that fit the choices of a line."""
    left_out = ["backbone.name"] if any(word.startswith("backbone=") for word in words) else []
    left_out += ["dataset.number"] * any(word.startswith("dataset=") for word in words)
    left_out += ["model.", "backbone."] * any(word.startswith("model=") for word in words)
    small = [word for word in TINY if not word.startswith(("trainer.epochs", *left_out))]
    return [*small, "trainer.epochs=1"]


def made_small(words: list[str], home: Path) -> list[str]:
    """A line of a page as it is run here. home: the folder with the runs that it names."""
    line = " ".join(words)
    (run,), runs = (sorted(os.listdir(home / "outputs" / study)) for study in ("default", "mine"))
    runs = [name for name in runs if not name.startswith(".")]
    for part, names in PLACES.items():
        for name, stands_for in names.items() if part in line else ():
            real = stands_for.format(run=run, a=runs[0], b=runs[1])
            words = [word.replace(name, real) if not word.endswith(real) else word for word in words]
    words = [os.path.expanduser(word) for word in words]
    if words[0] in ("train", "decide", "tune"):
        for pattern, smaller in SMALLER:
            words = [re.sub(pattern, smaller, word) for word in words]
        words += [word for part, fewer in FEWER.items() if part in line for word in fewer]
        if words[0] != "tune" or "=" in words[1]:
            words += tiny_overrides(words)
    return words


@pytest.fixture
def desk(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the outputs, with links to the data, as the current folder and as ~."""
    for path in home.iterdir():
        if path.name == "outputs":
            shutil.copytree(path, tmp_path / "outputs")
        else:
            (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    yield tmp_path
    plugins.use([])


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if lines_of(page) and page not in ELSEWHERE])
def test_every_command_runs(page: str, home: Path, desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if page == "docs/plugins.md":
        (desk / "parts.py").write_text("".join(blocks(REPOSITORY / page, "python")), encoding="utf-8")
    for words in lines_of(page):
        if any(part in " ".join(words) for part in NOT_RUN):
            continue
        small = made_small(words, home)
        code = main(small)
        assert code == 0, f"segexp {' '.join(small)}\n{capsys.readouterr().err[-2000:]}"
        capsys.readouterr()


def test_what_is_not_run_is_on_a_page() -> None:
    """A reason that no line needs any more is removed."""
    lines = [" ".join(words) for page in PAGES for words in lines_of(page)]
    assert [part for part in NOT_RUN if not any(part in line for line in lines)] == []
    assert [part for part in PLACES if not any(part in line for line in lines)] == []
