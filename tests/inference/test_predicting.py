"""`segexp predict`: the masks of a run's own test images are the run's, and nothing is overwritten or left out."""

import csv
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from messages import mentions
from PIL import Image
from predicting import Captured, config_of, discs, foreground_of, ids_of_test, pixels, predicted, trained_on

from segexp.inference.predict import _Job
from segexp.records.process import ownership
from segexp.running import Outcome


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("discs")
    discs(root)
    return root


@pytest.fixture(scope="module")
def done(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return trained_on(tmp_path_factory.mktemp("runs"), data)


def refused(capsys: Captured, *words: object) -> str:
    told: str = predicted(capsys, *words, code=2).err
    assert told.count("\n") == 1
    return told


def test_masks_of_the_test_images_are_those_that_the_run_scored(
    done: Outcome, data: Path, tmp_path: Path, capsys: Captured
) -> None:
    """Also with a threshold and mirror images; and the Dice of the written masks is that of images.csv."""
    names = ids_of_test(done.run_dir)
    images = [data / "images" / f"{name}.png" for name in names]
    predicted(capsys, done.run_dir, *images, "-o", tmp_path / "out")
    wanted = foreground_of(done.run_dir, config_of(done.run_dir.parent.parent, data))
    with (done.run_dir / "images.csv").open() as file:
        dice = {row["image_id"]: float(row["dice"]) for row in csv.DictReader(file) if row["split"] == "test"}
    for name in names:
        mask = pixels(tmp_path / "out" / f"{name}.png")
        assert np.array_equal(mask, wanted[name][0][0] * np.uint8(255))
        truth = pixels(data / "masks" / f"{name}.png") > 0
        assert 2 * (truth & (mask > 0)).sum() / (truth.sum() + (mask > 0).sum()) == pytest.approx(dice[name])

    tuned = float(done.summary["threshold_tuned"])
    words = ("--threshold", "tuned", "--tta", "--probabilities", "--overlay")
    predicted(capsys, done.run_dir, *images, "-o", tmp_path / "tuned", *words)
    wanted = foreground_of(done.run_dir, config_of(done.run_dir.parent.parent, data), limit=tuned, tta=True)
    for name in names:
        mask = pixels(tmp_path / "tuned" / f"{name}.png")
        assert np.array_equal(mask > 0, wanted[name][0][0])
        with np.load(tmp_path / "tuned" / f"{name}_probabilities.npz") as kept:
            np.testing.assert_allclose(kept["probabilities"], wanted[name][1], atol=1e-6)
            assert kept["classes"].tolist() == ["class 1"]
        assert pixels(tmp_path / "tuned" / f"{name}_overlay.png").shape == (40, 36, 3)


def test_again_it_skips_what_is_done_and_says_what_it_cannot_use(
    done: Outcome, data: Path, tmp_path: Path, capsys: Captured
) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    (folder / "sub").mkdir(parents=True)
    for name in ("a.png", "sub/a.png"):
        shutil.copy(data / "images" / "i00.png", folder / name)
    (folder / "bad.png").write_bytes(b"no image")
    Image.fromarray(np.zeros((40, 36), np.uint16)).save(folder / "deep.tif")
    (folder / "notes.txt").write_text("x")
    said = predicted(capsys, done.run_dir, folder, "-o", out, code=1)
    assert mentions(said.out, "2 images predicted", "1 file of other endings")
    assert mentions(said.err, "2 images could not be used", "bad.png", "deep.tif", "uint16", "uint8")
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}
    assert sorted(path.relative_to(out).as_posix() for path in before) == ["a.png", "sub/a.png"]
    shutil.copy(data / "images" / "i01.png", folder / "sub" / "a.png")  # another image of that name
    said = predicted(capsys, done.run_dir, folder, "-o", out, code=1)
    assert mentions(said.out, "1 image predicted", "1 were there")
    again = {path for path, changed in before.items() if path.stat().st_mtime_ns != changed}
    assert again == {out / "sub" / "a.png"}
    told = refused(capsys, done.run_dir, folder, "-o", out, "--tta")
    assert mentions(told, "tta=False, not True", "another folder")
    with ownership(out):
        assert mentions(refused(capsys, done.run_dir, folder, "-o", out), "is being written by", os.getpid())
    shutil.copy(data / "images" / "i00.png", tmp_path / "a.png")
    assert mentions(refused(capsys, done.run_dir, tmp_path / "a.png", "-o", out), folder / "a.png", "another folder")
    assert {path: path.stat().st_mtime_ns for path in before} == {p: p.stat().st_mtime_ns for p in out.rglob("*.png")}


def test_an_image_for_which_memory_is_lacking_is_named_and_the_others_are_predicted(
    done: Outcome, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    real = _Job.files

    def files(job: _Job, paths: tuple[Path, ...]) -> object:
        return torch.empty(10**15) if paths[0].name == "i00.png" else real(job, paths)

    monkeypatch.setattr(_Job, "files", files)
    said = predicted(capsys, done.run_dir, data / "images", "-o", tmp_path / "out", code=1)
    assert mentions(said.err, "1 image could not be used", "i00.png", "out of memory", "--tile")
    assert len([*(tmp_path / "out").glob("*.png")]) == len([*(data / "images").iterdir()]) - 1


def test_no_output_takes_the_place_of_another(done: Outcome, data: Path, tmp_path: Path, capsys: Captured) -> None:
    """Nor that of an earlier call, of the lock or of the record; long names fail alone."""
    folder, out = tmp_path / "in", tmp_path / "out"
    for name in ("a.png", "a_overlay.png", "lock/b.png", "predict.json/c.png", f"{'n' * 240}.png", "z.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(data / "images" / "i00.png", folder / name)
    predicted(capsys, done.run_dir, folder / "a.png", "-o", out, "--overlay")
    before = (out / "a_overlay.png").read_bytes()
    told = refused(capsys, done.run_dir, folder / "a_overlay.png", "-o", out, "--overlay")
    assert mentions(told, folder / "a.png", "both be written to a_overlay", "rename")
    assert (out / "a_overlay.png").read_bytes() == before
    said = predicted(capsys, done.run_dir, folder, "-o", tmp_path / "all", "--probabilities", code=1)
    assert mentions(said.out, "3 images predicted")
    assert said.err.count("cannot have this name") == 3


def test_mistakes_are_one_line(done: Outcome, data: Path, tmp_path: Path, capsys: Captured) -> None:
    image, run, out = data / "images" / "i00.png", done.run_dir, tmp_path / "out"
    twice = tmp_path / "i00.tif"
    Image.fromarray(pixels(image)).save(twice)
    (tmp_path / "empty").mkdir()
    for words, named in (
        ((run, tmp_path / "nowhere.png", "-o", out), ["nowhere.png"]),
        ((run, tmp_path / "empty", "-o", out), ["holds no image", ".png"]),
        ((run, image, twice, "-o", out), ["i00.png", "i00.tif", "rename"]),
        ((run, data / "images", "-o", data / "images"), ["-o", "another"]),
        ((run, data / "images", "-o", data / "images" / "masks"), ["-o", "another"]),
        ((run, image, "-o", data), ["-o", "another"]),
        ((run, image, "-o", twice), ["-o", "cannot be a folder"]),
        ((run, image, "-o", run), ["other files", "empty folder"]),
        ((run, image, "-o", out, "--tile", "64"), ["--tile 64", "resized to 32 px", "dataset.fit=pad"]),
        ((run, image, "-o", out, "--overlap", "0.5"), ["--overlap", "--tile"]),
        ((run, image, "-o", out, "--threshold", "2"), ["--threshold 2"]),
        ((run, image, "-o", out, "--ensemble", "seeds"), ["--ensemble", "sibling"]),
        ((run, image, "-o", tmp_path / "cuda", "--device", "mps"), ["mps", "not available"]),
        ((run, image, "-o", out, "--arm", "activation=arctan"), ["--arm", "study"]),
        ((run, image, "-o", out, "--arm", "activation"), ["--arm activation", "KEY=VALUE"]),
        ((tmp_path / "empty", image, "-o", out), ["holds no run"]),
    ):
        told = refused(capsys, *words)
        assert mentions(told, *named), told
    assert not out.exists()
    assert not (data / "images" / "masks").exists()
