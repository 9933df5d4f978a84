"""`segexp evaluate`: a finished run scored again, and nothing of it changed."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from messages import mentions
from tiny import counts_on_test, tables, tiny_config, tiny_run, write_pairs

import segexp
from segexp import cli
from segexp.errors import UsageError
from segexp.records import read_run, read_table
from segexp.records.process import ownership
from segexp.running import Outcome, prepare
from segexp.running.evaluate import threshold_of

Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return tiny_run(tmp_path_factory.mktemp("evaluate"), "activation=arctan", "dataset.number=40")


def evaluated(run_dir: Path, name: str, *words: str) -> Path:
    """The folder of an evaluation that must work, under the name it must have."""
    assert cli.main(["evaluate", str(run_dir), *words]) == 0
    folder = run_dir / "evaluations" / name
    record = json.loads((folder / "evaluation.json").read_text())
    for table, rows in record["n_rows_expected"].items():
        assert len(read_table(folder / f"{table}.csv", table)) == rows
    assert sorted(p.name for p in folder.iterdir()) == [
        "bins.csv", "evaluation.json", "images.csv", "objects.csv", "summary.csv", "thresholds.csv",
    ]  # fmt: skip
    return folder


def refused(capsys: Captured, run_dir: Path, *words: str) -> str:
    capsys.readouterr()
    assert cli.main(["evaluate", str(run_dir), *words]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    return told


def row(folder: Path) -> dict[str, Any]:
    (found,) = read_table(folder / "summary.csv", "summary").to_dict("records")
    return {str(k): v for k, v in found.items()}


def test_as_it_was_scored_it_scores_again(done: Outcome) -> None:
    """Byte for byte: tables of the same split, and the summary; the run's own files stay as they are."""
    before = tables(done.run_dir)
    folder = evaluated(done.run_dir, "test-0.5")
    assert tables(done.run_dir) == before
    for name in ("images", "objects", "bins", "thresholds"):
        lines = (done.run_dir / f"{name}.csv").read_text().splitlines()
        own = [lines[0], *(line for line in lines[1:] if line.startswith("test,"))]
        assert (folder / f"{name}.csv").read_text().splitlines() == own
    assert (folder / "summary.csv").read_bytes() == (done.run_dir / "summary.csv").read_bytes()


@pytest.mark.slow
def test_a_threshold_is_that_of_the_run_or_a_probability(done: Outcome) -> None:
    summary = row(evaluated(done.run_dir, "test-tuned", "--threshold", "tuned"))
    assert summary["dice"] == done.summary["dice_tuned"] == summary["dice_tuned"]
    assert summary["dice"] != done.summary["dice"]
    val = row(evaluated(done.run_dir, "val-tuned", "--threshold", "tuned", "--split", "val"))
    assert val["dice"] >= done.summary["val_dice"]
    # A lower probability calls more pixels foreground; 0.50 is 0.5.
    counted = {}
    for p in ("0.3", "0.50", "0.7"):
        folder = evaluated(done.run_dir, f"test-{float(p)}", "--threshold", p)
        counted[p] = int(read_table(folder / "images.csv", "images")["n_pred"].sum())
    assert counted["0.3"] > counted["0.50"] > counted["0.7"]
    own = read_table(done.run_dir / "images.csv", "images")
    assert counted["0.50"] == int(own[own["split"] == "test"]["n_pred"].sum())


def test_tta_is_the_mean_over_mirror_images(done: Outcome) -> None:
    dice = row(evaluated(done.run_dir, "test-0.5-tta", "--tta"))["dice"]
    model = segexp.load(done.run_dir)
    prepared = prepare(tiny_config(done.run_dir.parent.parent, "activation=arctan", "dataset.number=40"))

    def mean_over_flips(image: torch.Tensor) -> torch.Tensor:
        flips: list[list[int]] = [[], [2], [3], [2, 3]]
        return torch.stack([model(image.flip(axes)).flip(axes) for axes in flips]).mean(0)

    assert dice == pytest.approx(counts_on_test(mean_over_flips, prepared)[1])
    assert dice != done.summary["dice"]


def test_another_data_set_of_the_same_kind(done: Outcome, capsys: Captured) -> None:
    words = ["--dataset", "lesions", "dataset.seed=5", "dataset.number=8", "--split", "all"]
    assert cli.main(["evaluate", str(done.run_dir), *words]) == 0
    told = capsys.readouterr().out
    assert mentions(told, "8 images (all)", "warning: lesions")
    (folder,) = (done.run_dir / "evaluations").glob("all-0.5-lesions-*")
    summary = row(folder)
    assert summary["dataset_sha"] != done.summary["dataset_sha"]
    assert folder.name.endswith(summary["dataset_sha"][:8])
    assert len(read_table(folder / "images.csv", "images")) == summary["n_test"] == 8
    assert pd.isna(summary["n_train"])
    assert summary["temperature"] == done.summary["temperature"]
    assert summary["threshold_tuned"] == done.summary["threshold_tuned"]


@pytest.mark.slow
def test_images_of_another_folder_are_seen_at_the_scale_of_training(done: Outcome, tmp_path: Path) -> None:
    """A folder's own default size is 256; the network was trained at 32."""
    draw = np.random.default_rng(0)
    noise = [draw.integers(0, 2, (2, 20 + n, 30)) * 255 for n in range(4)]
    write_pairs(tmp_path, [(f"{n}.png", image, mask) for n, (image, mask) in enumerate(noise)])
    words = ["--dataset", "folder", f"dataset.root={tmp_path}", "--split", "all"]
    assert cli.main(["evaluate", str(done.run_dir), *words]) == 0
    (folder,) = (done.run_dir / "evaluations").glob(f"all-0.5-{tmp_path.name}-*")
    images = read_table(folder / "images.csv", "images")
    assert images[["height", "width"]].to_numpy().tolist() == [[20 + n, 30] for n in range(4)]
    assert json.loads((folder / "evaluation.json").read_text())["config"]["dataset.image_size"] == 32


@pytest.mark.slow
def test_resolution_of_the_network(tmp_path: Path) -> None:
    """Images of 32 px made 64: scored at 32 by default, at the network's 64 when asked."""
    draw, masks = np.random.default_rng(0), np.zeros((20, 32, 40), dtype=np.uint8)
    for n, mask in enumerate(masks):
        mask[8:20, n : n + 12] = 255
    write_pairs(tmp_path, [(f"{n:02}.png", m * 0.5 + draw.integers(0, 60, m.shape), m) for n, m in enumerate(masks)])
    config = ["dataset=folder", f"dataset.root={tmp_path}", "dataset.image_size=64", "trainer.epochs=1"]
    config += ["backbone.name=tu-test_resnet", "model.encoder_depth=3", "model.decoder_channels=[16,8,8]"]
    with_folder = segexp.run([*config, "trainer.batch_size=4", "trainer.device=cpu", f"outputs={tmp_path / 'o'}"])
    run_dir = Path(with_folder["run_dir"])
    native, network = (
        read_table(evaluated(run_dir, name, *words) / "images.csv", "images")
        for name, words in (("test-0.5", ()), ("test-0.5-network", ("--resolution", "network")))
    )
    assert set(native["height"]) == {32}
    assert set(network["height"]) == set(network["width"]) == {64}
    # The same data found elsewhere are the same data.
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("images", "masks"):
        shutil.copytree(tmp_path / name, moved / name)
    assert cli.main(["evaluate", str(run_dir), f"dataset.root={moved}", "--split", "val"]) == 0
    assert (run_dir / "evaluations" / "val-0.5").is_dir()


def test_what_was_evaluated_is_read_not_written(done: Outcome, capsys: Captured) -> None:
    folder = evaluated(done.run_dir, "val-0.5", "--split", "val")
    written = {p: p.stat().st_mtime_ns for p in folder.iterdir()}
    capsys.readouterr()
    evaluated(done.run_dir, "val-0.5", "--split", "val")
    assert "evaluated before" in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in folder.iterdir()} == written


@pytest.mark.slow
def test_other_conventions_have_a_folder_of_their_own(done: Outcome, capsys: Captured) -> None:
    folder = evaluated(done.run_dir, "val-0.5", "--split", "val")
    written = {p: p.stat().st_mtime_ns for p in folder.iterdir()}
    assert cli.main(["evaluate", str(done.run_dir), "--split", "val", "metrics.boundary_band=5"]) == 0
    assert cli.main(["evaluate", str(done.run_dir), "--split", "val", "metrics.nsd=surface"]) == 0
    assert "contour length" in capsys.readouterr().out
    assert len(list((done.run_dir / "evaluations").glob("val-0.5-??????"))) == 2
    assert {p: p.stat().st_mtime_ns for p in folder.iterdir()} == written
    for damage in ("images.csv", "evaluation.json"):
        whole = (folder / damage).read_bytes()
        (folder / damage).write_bytes(whole[: len(whole) // 2])
        assert "is damaged" in refused(capsys, done.run_dir, "--split", "val")
        (folder / damage).write_bytes(whole)


@pytest.mark.slow
def test_batch_size_counts_where_a_prediction_depends_on_it(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, "activation=minmax_linear", "loss=dice", "trainer.epochs=1")
    own = row(evaluated(run.run_dir, "test-0.5"))
    assert cli.main(["evaluate", str(run.run_dir), "trainer.batch_size=2"]) == 0
    (other,) = (run.run_dir / "evaluations").glob("test-0.5-??????")
    assert row(other)["nll"] != own["nll"] == run.summary["nll"]


def test_device_and_threads_are_those_asked_for_now(done: Outcome, tmp_path: Path) -> None:
    """A run made on a GPU is scored on a machine without one."""
    copy = tmp_path / "copy"
    shutil.copytree(done.run_dir, copy, ignore=shutil.ignore_patterns("evaluations"))
    recorded = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(recorded.replace("device: cpu", "device: cuda"))
    assert cli.main(["evaluate", str(copy), "trainer.device=cpu"]) == 0
    if not torch.cuda.is_available():
        assert cli.main(["evaluate", str(copy), "--split", "val"]) == 2


def test_images_of_training_are_recognised(done: Outcome, tmp_path: Path, capsys: Captured) -> None:
    """Whatever the name, the folder and the file format, and however many images are new."""
    prepared = prepare(tiny_config(tmp_path, "activation=arctan", "dataset.number=40"))
    chosen = [prepared.split["train"][0], prepared.split["val"][0], *prepared.split["test"][:2]]
    known = [prepared.image_set.read(index) for index in chosen]
    write_pairs(tmp_path, [(f"new{n}.bmp", p.image_HWC[..., 0], p.mask_HW * 255) for n, p in enumerate(known)])
    draw = np.random.default_rng(1)
    write_pairs(tmp_path, [("other.png", draw.integers(0, 255, (32, 32)), draw.integers(0, 2, (32, 32)) * 255)])
    words = ["--dataset", "folder", f"dataset.root={tmp_path}", "--split", "all"]
    told = refused(capsys, done.run_dir, *words)
    assert mentions(told, 2, "5 images")
    assert "new0" in told
    for n in (0, 1):
        (tmp_path / "images" / f"new{n}.bmp").unlink()
        (tmp_path / "masks" / f"new{n}.png").unlink()
    assert cli.main(["evaluate", str(done.run_dir), *words]) == 0


OF_LESIONS = ("--dataset", "lesions", "dataset.number=8")


@pytest.mark.parametrize(("words", "told"), [
    (("--split", "all"), "use --split test, val or train"),
    (("split.seed=3",), "restore split.*"),
    (("--split", "tset"), "--split tset is not one of test, val, train, all"),
    (("--threshold", "2"), "use tuned or a probability"),
    (("--resolution", "half"), "metrics.resolution=half is not one of native, network"),
    (("activation=sigmoid",), "activation belongs to the run"),
    (("dataset.num_classes=3",), "same classes"),
    ((*OF_LESIONS, "dataset.channels=3"), "has 3 channels, the run's images had 1: set dataset.channels=1"),
    ((*OF_LESIONS, "dataset.channels=2"), "has 2 channels, the run's images had 1: only images with"),
    (("--dataset", "folder", "dataset.root=/nowhere"), "/nowhere"),
])  # fmt: skip
def test_refusals(words: tuple[str, ...], told: str, done: Outcome, capsys: Captured) -> None:
    assert told in refused(capsys, done.run_dir, *words)


def test_a_run_directory_that_is_read_only(done: Outcome, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    told = refused(capsys, done.run_dir, "--threshold", "0.3")
    assert mentions(told, done.run_dir / "evaluations" / "test-0.3", "cannot be written", "copy of the run directory")


def test_two_at_once_do_not_write_one_folder(done: Outcome, capsys: Captured) -> None:
    folder = done.run_dir / "evaluations" / "train-0.5"
    folder.mkdir(parents=True)
    with ownership(folder):
        assert mentions(refused(capsys, done.run_dir, "--split", "train"), folder, "process", os.getpid())
    folder.rmdir()


@pytest.mark.slow
def test_what_killed_evaluations_left_goes(done: Outcome) -> None:
    folder = done.run_dir / "evaluations" / "train-0.5"
    dead = done.run_dir / "evaluations" / "killed"
    (dead / ".owner-1").mkdir(parents=True)
    (dead / "lock").touch()
    evaluated(done.run_dir, "train-0.5", "--split", "train")
    assert not list(dead.iterdir())
    dead.rmdir()
    before = sorted(folder.iterdir())
    (folder / ".owner-1").mkdir()  # killed when all was written
    (folder / "lock").touch()
    evaluated(done.run_dir, "train-0.5", "--split", "train")
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize("summary", [{}, {"threshold_tuned": None}])
def test_a_run_without_a_tuned_threshold_has_none(summary: dict[str, Any], tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    assert threshold_of("tuned", config, {"summary": {"threshold_tuned": 0.25}}) == ("tuned", 0.25)
    with pytest.raises(UsageError, match=r"--threshold tuned.*0\.5"):
        threshold_of("tuned", config, {"summary": summary})


@pytest.mark.slow
def test_softmax_has_no_threshold(tmp_path: Path, capsys: Captured) -> None:
    of_three = tiny_run(tmp_path, "dataset.num_classes=3", "trainer.epochs=1")
    assert "use --threshold 0.5" in refused(capsys, of_three.run_dir, "--threshold", "tuned")
    assert row(evaluated(of_three.run_dir, "test-0.5"))["dice"] == of_three.summary["dice"]


def test_not_a_run_or_not_done(tmp_path: Path, capsys: Captured, done: Outcome) -> None:
    assert "not a run directory" in refused(capsys, tmp_path)
    copy = tmp_path / "copy"
    shutil.copytree(done.run_dir, copy)
    record = read_run(copy)
    (copy / "run.json").write_text(json.dumps(record | {"status": "diverged"}))
    assert mentions(refused(capsys, copy), copy, "diverged", "only", "done")


def test_an_evaluation_with_an_edited_table_is_refused_and_an_old_one_reported(
    done: Outcome, tmp_path: Path, capsys: Captured
) -> None:
    run_dir = Path(shutil.copytree(done.run_dir, tmp_path / "copy"))
    folder = evaluated(run_dir, "test-0.5")
    record, images = folder / "evaluation.json", folder / "images.csv"
    content, whole = json.loads(record.read_text()), images.read_text()
    assert content["sha256"].keys() == content["n_rows_expected"].keys()
    images.write_text(whole.replace(".", ".0", 1))
    assert mentions(refused(capsys, run_dir), images, "move it away")
    images.write_text(whole)
    del content["sha256"]
    record.write_text(json.dumps(content))
    assert cli.main(["evaluate", str(run_dir)]) == 0
    assert "no checksums" in capsys.readouterr().out
    # What an evaluation takes from the run is verified too.
    shutil.rmtree(folder)
    table = run_dir / "thresholds.csv"
    table.write_text(table.read_text().replace(".", ".0", 1))
    assert mentions(refused(capsys, run_dir), table, "resume=restart")
