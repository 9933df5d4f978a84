"""`segexp predict`: the masks of a run's own test images are the run's, and nothing is overwritten or left out."""

import csv
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from messages import mentions
from PIL import Image
from tiny import TINY, no_figures, write_pairs

from segexp import cli
from segexp.config import Config
from segexp.config.compose import compose_job, hydra_session, typed_of
from segexp.data.batches import make_reader
from segexp.evaluation.predict import FLIPS
from segexp.records import read_run
from segexp.records.process import ownership
from segexp.running import Outcome, prepare
from segexp.running.build import Scorer, geometry_of, trained
from segexp.running.execute import execute

Captured = pytest.CaptureFixture[str]


def discs(root: Path, n: int = 16, size: tuple[int, int] = (40, 36), foreground: int = 255) -> None:
    """Bright discs in noise, and their masks."""
    rng, (y, x) = np.random.default_rng(0), np.mgrid[: size[0], : size[1]]
    pairs = []
    for i in range(n):
        disc = (y - rng.uniform(8, 24)) ** 2 + (x - rng.uniform(8, 24)) ** 2 < 40
        pairs.append((f"i{i:02}.png", rng.normal(80, 20, size) + 90 * disc, disc * foreground))
    write_pairs(root, pairs)


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image)


def config_of(outputs: Path, root: Path, *more: str) -> Config:
    """A tiny run on a folder of files; no draw of its own decides anything."""
    files = ("dataset=folder", f"dataset.root='{root}'", "trainer.epochs=1", f"outputs='{outputs}'")
    with hydra_session() as extra:
        return typed_of(compose_job([*TINY[1:], *files, *more], extra))


def trained_on(outputs: Path, root: Path, *more: str) -> Outcome:
    prepared = prepare(config_of(outputs, root, *more))
    with no_figures():
        return execute(prepared)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("discs")
    discs(root)
    return root


@pytest.fixture(scope="module")
def done(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return trained_on(tmp_path_factory.mktemp("runs"), data)


def ids_of_test(run_dir: Path) -> list[str]:
    with (run_dir / "split.csv").open() as file:
        return [row["image_id"] for row in csv.DictReader(file) if row["split"] == "test"]


def predicted(capsys: Captured, *words: object, code: int = 0) -> Any:
    capsys.readouterr()
    assert cli.main(["predict", *map(str, words)]) == code
    return capsys.readouterr()


def refused(capsys: Captured, *words: object) -> str:
    told: str = predicted(capsys, *words, code=2).err
    assert told.count("\n") == 1
    return told


def foreground_of(run_dir: Path, config: Config, limit: float | None = None, tta: bool = False) -> dict[str, Any]:
    """Test image -> its foreground (F, H, W) and probabilities by the code that scores runs."""
    spec, run = prepare(config), trained(run_dir, config, read_run(run_dir), "cpu")
    geometry = geometry_of(spec)
    read = make_reader(spec.image_set, geometry)
    scorer = Scorer(spec, run.network, run.head, run.device, geometry, read, run.normalise)
    found = {}
    for scored in scorer.predictions("test", FLIPS if tta else ((),)):
        one = scored.prediction
        chosen = one.foreground_NFHW() if limit is None else one.evidence_NFHW().double() > limit
        for n, index in enumerate(scored.indices):
            found[spec.image_set.image_ids[index]] = chosen[n].numpy(), one.values_NKHW[n].numpy()
    return found


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
    assert mentions(said.out, "2 images predicted", "1 file of other endings", "2 images could not be used")
    assert mentions(said.err, "bad.png", "deep.tif", "uint16", "uint8")
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}
    assert sorted(path.relative_to(out).as_posix() for path in before) == ["a.png", "sub/a.png"]
    shutil.copy(data / "images" / "i01.png", folder / "sub" / "a.png")  # another image of that name
    assert mentions(predicted(capsys, done.run_dir, folder, "-o", out, code=1).out, "1 image predicted", "1 were there")
    again = {path for path, changed in before.items() if path.stat().st_mtime_ns != changed}
    assert again == {out / "sub" / "a.png"}
    told = refused(capsys, done.run_dir, folder, "-o", out, "--tta")
    assert mentions(told, "tta=False, not True", "another folder")
    with ownership(out):
        assert mentions(refused(capsys, done.run_dir, folder, "-o", out), "is being written by", str(os.getpid()))
    assert mentions(
        predicted(capsys, done.run_dir, data / "images" / "i00.png", folder / "a.png", "-o", tmp_path / "x").out, "2"
    )
    shutil.copy(data / "images" / "i00.png", tmp_path / "a.png")
    assert mentions(
        predicted(capsys, done.run_dir, tmp_path / "a.png", "-o", out, code=1).err, "that of", str(folder / "a.png")
    )


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
        ((run, image, "-o", run), ["other files", "empty folder"]),
        ((run, image, "-o", out, "--tile", "64"), ["--tile 64", "resized to 32 x 32", "dataset.fit=pad"]),
        ((run, image, "-o", out, "--overlap", "0.5"), ["--overlap", "--tile"]),
        ((run, image, "-o", out, "--threshold", "2"), ["--threshold 2"]),
        ((run, image, "-o", out, "--ensemble", "seeds"), ["--ensemble", "sibling"]),
        ((run, image, "-o", out, "--arm", "activation=arctan"), ["--arm", "study"]),
        ((tmp_path / "empty", image, "-o", out), ["holds no run"]),
    ):
        told = refused(capsys, *words)
        assert mentions(told, *named), told
    assert not out.exists()
    assert not (data / "images" / "masks").exists()
