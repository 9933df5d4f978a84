"""Checkpoints that are damaged, of another run or epoch, or gone: refused with a cure that leads to a finished run."""

import json
import logging
import random
import shutil
from pathlib import Path

import pytest
import torch
from messages import mentions
from tiny import TINY, interrupted_run, tables, tiny_run

import segexp
from segexp import cli
from segexp.errors import UsageError
from segexp.records import read_run
from segexp.training.checkpoint import load_checkpoint, save_checkpoint

CPU = torch.device("cpu")

RUN = ("trainer.epochs=3", "trainer.keep_last=true")


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    outputs = tmp_path_factory.mktemp("stopped")
    interrupted_run(outputs, 3, *RUN)
    (run_dir,) = (outputs / "default").glob("lesions-*")
    return run_dir


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, stopped: Path) -> Path:
    outputs = tmp_path_factory.mktemp("done")
    shutil.copytree(stopped.parent, outputs / "default")
    return tiny_run(outputs, *RUN).run_dir


@pytest.fixture
def copied(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of the run that the test's parameter names."""
    run_dir: Path = request.getfixturevalue(request.param)
    shutil.copytree(run_dir.parent, tmp_path / "default")
    return tmp_path / "default" / run_dir.name


of_stopped = pytest.mark.parametrize("copied", ["stopped"], indirect=True)
of_done = pytest.mark.parametrize("copied", ["done"], indirect=True)


def train(run_dir: Path, *overrides: str) -> int:
    return cli.main(["train", *TINY, *RUN, f"outputs={run_dir.parent.parent}", *overrides])


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def change(path: Path, **values: object) -> None:
    """Other values in a checkpoint, which is whole again."""
    save_checkpoint(path, torch.load(path, weights_only=True) | values)


@pytest.mark.slow
@of_stopped
@pytest.mark.parametrize("name", ["last.pt", "best.pt"])
def test_one_flipped_bit_anywhere_in_a_run_is_noticed(copied: Path, name: str) -> None:
    check_flips(copied / "checkpoints" / name)


def test_one_flipped_bit_anywhere_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    path = tmp_path / "checkpoints" / "best.pt"
    weights = {f"layer{n}.weight": torch.rand(40, 50) for n in range(5)}
    save_checkpoint(path, {"epoch": 1, "network": weights, "rows": [{"dice": 0.1}]})
    check_flips(path)


def check_flips(path: Path) -> None:
    name = path.name
    load_checkpoint(path, CPU, "")
    bits, drawn = 8 * path.stat().st_size, random.Random(0)
    # All over the file, in the directory of the archive with its padding, and in the checksum itself.
    chosen = [drawn.randrange(bits) for _ in range(30)]
    chosen += [drawn.randrange(bits - 8 * near, bits) for near in (20_000, 1_000, 101, 78, 2) for _ in range(6)]
    chosen += [drawn.randrange(8 * 64) for _ in range(5)]
    for bit in chosen:
        flip(path, bit)
        with pytest.raises(UsageError, match=rf"{name}.*the cure"):
            load_checkpoint(path, CPU, "the cure")
        flip(path, bit)
    whole = path.read_bytes()
    for size in (len(whole) - 1, len(whole) - 80, len(whole) // 2, 10, 0):
        path.write_bytes(whole[:size])
        with pytest.raises(UsageError, match=name):
            load_checkpoint(path, CPU, "")
    path.write_bytes(whole + b"\0")
    with pytest.raises(UsageError, match=name):
        load_checkpoint(path, CPU, "")


@of_stopped
def test_a_damaged_last_pt_is_refused_and_removing_it_starts_over(
    copied: Path, done: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = copied / "checkpoints" / "last.pt"
    flip(path, 4 * path.stat().st_size)
    assert train(copied) == 2
    assert mentions(capsys.readouterr().err, path, "remove it", "resume=restart")
    assert json.loads((copied / "run.json").read_text())["status"] == "failed"
    path.unlink()
    assert train(copied) == 0
    assert tables(copied) == tables(done)


@pytest.mark.slow
@of_stopped
def test_a_damaged_best_pt_is_refused_before_training_and_a_restart_ends_well(
    copied: Path, done: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    best, last = (copied / "checkpoints" / name for name in ("best.pt", "last.pt"))
    change(best, epoch=1)
    change(last, best_epoch=1, best=None)
    flip(best, 4 * best.stat().st_size)
    assert train(copied) == 2
    assert mentions(capsys.readouterr().err, best, "resume=restart")
    assert train(copied, "resume=restart") == 0
    assert tables(copied) == tables(done)


SLOW = [pytest.param(damage, marks=pytest.mark.slow) for damage in ("flipped", "of epoch 1")]


@of_stopped
@pytest.mark.parametrize("damage", ["removed", *SLOW])
def test_the_best_epoch_is_taken_from_last_pt_where_it_is_the_last(copied: Path, damage: str) -> None:
    """Also where a run ended after last.pt and before best.pt was written."""
    best, last = (copied / "checkpoints" / name for name in ("best.pt", "last.pt"))
    weights = torch.load(last, weights_only=True)["network"]
    change(last, best_epoch=2)
    change(best, epoch=2, network=weights)
    whole = best.read_bytes()
    if damage == "removed":
        best.unlink()
    elif damage == "flipped":
        flip(best, 80_000)
    else:
        change(best, epoch=1)
    interrupted_run(copied.parent.parent, 3, *RUN)
    assert best.read_bytes() == whole


@of_stopped
def test_a_last_pt_of_another_run_is_refused(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    last = copied / "checkpoints" / "last.pt"
    change(last, identity="0" * 64)
    assert train(copied) == 2
    assert mentions(capsys.readouterr().err, last, "another run", "remove it")


@of_done
@pytest.mark.parametrize("damage", ["gone", "flipped", "another epoch", "another run"])
def test_a_finished_run_without_its_best_pt_is_neither_evaluated_nor_loaded(
    copied: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    best = copied / "checkpoints" / "best.pt"
    assert best.with_name("last.pt").exists()
    if damage == "gone":
        best.unlink()
    elif damage == "flipped":
        flip(best, 80_000)
    else:
        change(best, **({"epoch": 77} if damage == "another epoch" else {"identity": "0" * 64}))
    assert cli.main(["evaluate", str(copied)]) == 2
    assert mentions(capsys.readouterr().err, best, "resume=restart")
    with pytest.raises(UsageError, match=r"best\.pt.*resume=restart"):
        segexp.load(copied)


@pytest.mark.slow
@of_done
def test_a_restart_cures_a_finished_run(copied: Path, done: Path) -> None:
    (copied / "checkpoints" / "best.pt").unlink()
    assert train(copied, "resume=restart") == 0
    assert tables(copied) == tables(done)
    segexp.load(copied)


@of_done
def test_where_no_epoch_was_the_best_the_last_is_used_and_reported(
    copied: Path, caplog: pytest.LogCaptureFixture
) -> None:
    record = read_run(copied)
    record["summary"]["best_epoch"] = 0
    (copied / "run.json").write_text(json.dumps(record))
    (copied / "checkpoints" / "best.pt").unlink()
    with caplog.at_level(logging.WARNING, "segexp"):
        segexp.load(copied)
    assert "last epoch" in caplog.text


@pytest.mark.slow
@of_stopped
def test_checkpoints_of_an_earlier_version_are_continued_and_reported(
    copied: Path, done: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for path in (copied / "checkpoints").iterdir():
        content = torch.load(path, weights_only=True)
        del content["identity"]
        torch.save(content, path)
    with caplog.at_level(logging.WARNING, "segexp"):
        assert tiny_run(copied.parent.parent, *RUN).status == "done"
    assert tables(copied) == tables(done)
    assert {name for name in ("last.pt", "best.pt") if name in caplog.text} == {"last.pt", "best.pt"}
    assert "last.pt" in (copied / "log.txt").read_text()
