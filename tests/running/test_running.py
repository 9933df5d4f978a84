"""A run from configuration to finished directory: repeatable, paired, resumable, and honest when it goes wrong."""

import errno
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from messages import mentions, one_mentions
from timing import HANGS_S
from tiny import TINY, interrupted_run, tables, tiny_config, tiny_run, tiny_task, wait_until, write_pairs

import segexp
from segexp import cli
from segexp.config.compose import compose, hydra_session
from segexp.data.batches import batches_of, epoch_order
from segexp.errors import TakenOverError, UsageError
from segexp.evaluation import pictures
from segexp.records import COLUMNS, NUMERICS, owned, read_run, read_table
from segexp.records.owned import host
from segexp.records.process import ownership, read_environment, signal_handlers
from segexp.running import build, finalize, prepare, threads_begun_with
from segexp.running.build import Scorer, initial_network
from segexp.running.execute import execute, git_state
from segexp.training import checkpoint, loop

EXPECTED_FILES = {
    "diagnostics.csv",
    "run.json", "config.yaml", "environment.txt", "summary.csv",
    "split.csv", "epochs.csv", "images.csv", "objects.csv", "bins.csv", "thresholds.csv", "timings.csv",
    "log.txt", "checkpoints", "predictions", "examples",
}  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    outcome = tiny_run(tmp_path_factory.mktemp("outputs"), "activation=arctan", "loss=dice")
    assert outcome.status == "done"
    return outcome.run_dir


AS_FINISHED = ("activation=arctan", "loss=dice")


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A finished run below ``tmp_path``, to do with as one likes."""
    shutil.copytree(finished.parent, tmp_path / "default")
    return tmp_path / "default" / finished.name


def test_run_directory_holds_every_file_and_table(finished: Path) -> None:
    record = json.loads((finished / "run.json").read_text())
    assert {p.name for p in finished.iterdir()} == EXPECTED_FILES
    assert {p.name for p in (finished / "checkpoints").iterdir()} == {"best.pt"}
    assert len(list((finished / "predictions").iterdir())) == 6
    assert finished.name.endswith(record["run_id"])
    for table, columns in COLUMNS.items():
        frame = read_table(finished / f"{table}.csv", table)
        assert list(frame.columns) == list(columns)
        assert len(frame) == record["n_rows_expected"][table] > 0
    assert record["seeds"] == {"seed": 0, "split.seed": 0, "dataset.seed": 0}
    assert record["device"]["name"]
    n_train = (read_table(finished / "split.csv", "split")["split"] == "train").sum()
    assert record["device"]["resident_bytes"] == n_train * 2 * 32 * 32, "image and mask, 8 bits each"
    assert record["git"] is None or len(record["git"]["commit"]) == 40
    assert len(record["normalisation"]["mean"]) == 1
    assert record["command"]
    installed = read_environment(finished / "environment.txt")
    assert record["versions"]["torch"] == torch.__version__
    assert torch.__version__.startswith(installed["torch"].split()[0])  # torch itself names its CUDA as well
    assert installed["timm"] == record["versions"]["timm"]
    assert installed["Python"].startswith(record["versions"]["python"])


def test_tables_agree_with_each_other(finished: Path) -> None:
    summary = read_table(finished / "summary.csv", "summary").iloc[0]
    images = read_table(finished / "images.csv", "images")
    test = images[images["split"] == "test"]
    held = test[test["n_gt"] > 0]
    assert summary["dice"] == pytest.approx(held["dice"].mean(), abs=1e-12)
    assert summary["hd95"] == pytest.approx(held["hd95"].mean(), abs=1e-12)
    assert summary["nll"] == pytest.approx(test["nll"].mean(), abs=1e-12)
    assert summary["n_test"] == len(test)
    val = images[(images["split"] == "val") & (images["n_gt"] > 0)]
    assert summary["val_dice"] == pytest.approx(val["dice"].mean(), abs=1e-12)
    epochs = read_table(finished / "epochs.csv", "epochs")
    best = epochs[(epochs["split"] == "val") & (epochs["epoch"] == summary["best_epoch"])].iloc[0]
    assert best["dice"] == pytest.approx(summary["val_dice"], abs=1e-12)
    assert best["dice"] == epochs[epochs["split"] == "val"]["dice"].max()
    bins = read_table(finished / "bins.csv", "bins")
    for split in ("val", "test"):
        whole = bins[(bins["split"] == split) & (bins["region"] == "all") & (bins["scaled"] == 0)]
        rows = images[images["split"] == split]
        assert whole["n"].sum() == rows["n_valid"].sum()
        assert whole["sum_y"].sum() == rows["n_gt"].sum()
    thresholds = read_table(finished / "thresholds.csv", "thresholds")
    at_zero = thresholds[(thresholds["split"] == "test") & (thresholds["threshold"] == 0.0)]
    assert at_zero["dice"].item() == pytest.approx(summary["dice"])


@pytest.mark.slow
def test_equal_configuration_and_seed_give_equal_bytes_whatever_the_workers(finished: Path, tmp_path: Path) -> None:
    again = tiny_run(tmp_path, *AS_FINISHED, "trainer.workers=2").run_dir
    assert again.name == finished.name
    assert tables(again) == tables(finished)
    for picture in (finished / "predictions").iterdir():
        assert (again / "predictions" / picture.name).read_bytes() == picture.read_bytes()


@pytest.mark.slow
def test_records_show_what_another_seed_or_arm_shares(finished: Path, tmp_path: Path) -> None:
    other = {"seed": (*AS_FINISHED, "seed=1"), "arm": ("activation=sigmoid", "loss=bce")}
    summaries = {what: tiny_run(tmp_path, *overrides).summary for what, overrides in other.items()}
    own = read_table(finished / "summary.csv", "summary").iloc[0]
    columns = ("split_sha", "dataset_sha", "config_id", "init_sha", "order_sha", "run_id", "dice")
    shared = {what: {column for column in columns if summaries[what][column] == own[column]} for what in other}
    assert shared["seed"] == {"split_sha", "dataset_sha", "config_id"}
    assert shared["arm"] == {"split_sha", "dataset_sha", "init_sha", "order_sha"}


def test_arms_share_weights_batches_and_augmentations(tmp_path: Path) -> None:
    """Runs that differ in activation and loss start alike and see the same tensors."""
    arms = ("activation=arctan", "loss=dice"), ("activation=normal_cdf", "loss=ce"), ("activation=identity", "loss=mse")
    seen = []
    for arm in arms:
        prepared, task = tiny_task(tmp_path, "augment=strong", *arm)
        order = batches_of(epoch_order(prepared.split["train"], prepared.config.seed, 1), 5)
        seen.append((task.network.state_dict(), list(task.batches(1, order)), prepared.split))
    for weights, batches, split in seen[1:]:
        assert split == seen[0][2]
        assert all(torch.equal(weights[name], tensor) for name, tensor in seen[0][0].items())
        for (images_a, masks_a, _), (images_b, masks_b, _) in zip(seen[0][1], batches, strict=True):
            assert torch.equal(images_a, images_b)
            assert torch.equal(masks_a, masks_b)


def test_a_finished_run_is_skipped_under_any_label_of_its_data(finished: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*")}
    for label in ((), ("dataset.name=other",)):
        outcome = tiny_run(finished.parent.parent, *AS_FINISHED, *label)
        assert (outcome.skipped, outcome.status, outcome.run_dir) == (True, "done", finished)
    assert {p: p.stat().st_mtime_ns for p in finished.rglob("*")} == before


def test_restart_archives_the_earlier_attempt_and_gives_the_same_bytes(copied: Path, tmp_path: Path) -> None:
    with ownership(copied), pytest.raises(UsageError, match="written by"):
        tiny_run(tmp_path, *AS_FINISHED, "resume=restart")
    assert [p.name for p in copied.parent.iterdir() if not p.name.startswith(".")] == [copied.name]
    second = tiny_run(tmp_path, *AS_FINISHED, "resume=restart").run_dir
    assert second == copied
    assert tables(copied.with_name(f"{copied.name}.old1")) == tables(second)


def test_a_damaged_record_names_its_cure_and_can_be_restarted(copied: Path, tmp_path: Path) -> None:
    (copied / "checkpoints" / "last.pt").write_bytes(b"")
    for content in ('{"status": "do', "[]"):
        (copied / "run.json").write_text(content)
        with pytest.raises(UsageError, match=r"run\.json .*resume=restart"):
            tiny_run(tmp_path, *AS_FINISHED)
    assert tiny_run(tmp_path, *AS_FINISHED, "resume=restart").status == "done"
    assert copied.with_name(f"{copied.name}.old1").exists()


def test_a_record_without_versions_and_device_is_read(copied: Path, tmp_path: Path) -> None:
    record = read_run(copied)
    (copied / "run.json").write_text(json.dumps(record | {"versions": None, "device": None}))
    (copied / "checkpoints" / "last.pt").write_bytes(b"")
    assert tiny_run(tmp_path, *AS_FINISHED).skipped
    assert threads_begun_with(copied) is None


def test_a_run_of_other_numerics_can_be_restarted(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = read_run(copied)
    (copied / "run.json").write_text(json.dumps(record | {"status": "interrupted"}))
    monkeypatch.setattr("segexp.running.NUMERICS", NUMERICS + 1)
    with pytest.raises(UsageError, match=rf"{copied}.*resume=restart.*segexp {record['versions']['segexp']}"):
        tiny_run(tmp_path, *AS_FINISHED)
    second = tiny_run(tmp_path, *AS_FINISHED, "resume=restart").run_dir
    assert second != copied
    assert copied.with_name(f"{copied.name}.old1").exists()
    assert json.loads((second / "run.json").read_text())["numerics"] == NUMERICS + 1
    assert tiny_run(tmp_path, *AS_FINISHED).skipped


@pytest.mark.parametrize("scheduler", ["cosine", pytest.param("plateau", marks=pytest.mark.slow)])
def test_a_continued_run_is_bit_equal(tmp_path: Path, scheduler: str) -> None:
    """Interrupted inside epoch 3, continued, against one that was never interrupted."""
    overrides = ("trainer.epochs=4", f"scheduler={scheduler}", "augment=medium", "trainer.keep_last=true")
    whole = tiny_run(tmp_path / "whole", *overrides).run_dir
    interrupted_run(tmp_path / "parts", 3, *overrides)
    (run_dir,) = (tmp_path / "parts" / "default").glob("lesions-*")
    assert json.loads((run_dir / "run.json").read_text())["status"] == "interrupted"
    assert len(read_table(run_dir / "epochs.csv", "epochs")) == 4
    assert not (run_dir / "lock").exists()
    outcome = tiny_run(tmp_path / "parts", *overrides)
    assert outcome.status == "done"
    assert tables(run_dir) == tables(whole)
    a, b = (torch.load(d / "checkpoints" / "last.pt", weights_only=True)["network"] for d in (whole, run_dir))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_non_finite_loss_is_diverged_with_step_and_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer that overflows at the fourth step: named, final, and without scores."""
    real_step = loop.train_step

    def overflow(config, task, state, images, masks, sums, probe, *maps):
        if state.step == 3:
            with torch.no_grad():
                task.network.decoder.blocks[1].conv1[0].weight.mul_(float("inf"))
        return real_step(config, task, state, images, masks, sums, probe, *maps)

    monkeypatch.setattr(loop, "train_step", overflow)
    outcome = tiny_run(tmp_path, "trainer.epochs=3")
    assert outcome.status == "diverged"
    assert mentions(outcome.reason, "step 4", "epoch 2", "decoder.blocks.1.conv1.0", "Conv2d")
    summary = read_table(outcome.run_dir / "summary.csv", "summary").iloc[0]
    assert math.isnan(summary["dice"])
    assert summary["activation"] == "sigmoid"
    monkeypatch.setattr(loop, "train_step", real_step)
    again = tiny_run(tmp_path, "trainer.epochs=3")
    assert again.skipped
    assert again.status == "diverged"


@pytest.mark.parametrize(
    "optimizer", ["adamw", *(pytest.param(name, marks=pytest.mark.slow) for name in ("adam", "sgd"))]
)
def test_updates_stop_at_the_first_bad_step(optimizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the device is read, later steps leave the weights as they were at the bad step, finite."""
    kept: dict[str, torch.Tensor] = {}
    real_step = loop.train_step

    def poisoned(config, task, state, images, masks, sums, probe, *maps):
        if state.step == 1:
            images = images * float("nan")
            kept.update({name: p.detach().clone() for name, p in task.network.named_parameters()})
        result = real_step(config, task, state, images, masks, sums, probe, *maps)
        if state.step >= 1:
            assert all(torch.equal(p, kept[name]) for name, p in task.network.named_parameters())
        return result

    monkeypatch.setattr(loop, "train_step", poisoned)
    outcome = tiny_run(tmp_path, f"optimizer={optimizer}")
    assert outcome.status == "diverged"
    assert "step 2" in outcome.reason


def test_a_failed_run_keeps_its_traceback_and_can_be_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_epoch = loop.train_epoch

    def broken(*args):
        raise RuntimeError("disk full\nand more")

    monkeypatch.setattr(loop, "train_epoch", broken)
    outcome = tiny_run(tmp_path)
    assert (outcome.status, outcome.reason) == ("failed", "RuntimeError: disk full")
    assert "train_epoch" in (outcome.run_dir / "traceback.txt").read_text()
    with pytest.raises(UsageError, match="resume=never"):
        tiny_run(tmp_path, "resume=never")
    monkeypatch.setattr(loop, "train_epoch", real_epoch)
    assert tiny_run(tmp_path).status == "done"
    assert not (outcome.run_dir / "traceback.txt").exists()


def test_early_stopping_and_selection_use_validation_alone(tmp_path: Path) -> None:
    outcome = tiny_run(tmp_path, "trainer.epochs=30", "trainer.patience=2", "optimizer.lr=1e-7", "scheduler=constant")
    epochs = read_table(outcome.run_dir / "epochs.csv", "epochs")
    val = epochs[epochs["split"] == "val"]["dice"].to_numpy(float)
    best = int(np.argmax(val)) + 1
    assert len(val) == min(30, best + 2)
    assert outcome.summary["best_epoch"] == best


SLOW = pytest.mark.slow


@pytest.mark.parametrize("overrides", [
    pytest.param(("dataset.num_classes=3", "activation=arctan", "loss=dice_ce"), marks=SLOW),
    pytest.param(("dataset.num_classes=3", "activation=normal_cdf", "loss=bce", "head.mode=independent"), marks=SLOW),
    ("activation=identity", "loss=mse"),
    pytest.param(("dataset.channels=3", "trainer.clip_norm=1.0", "optimizer=sgd", "scheduler=constant"), marks=SLOW),
    pytest.param(("trainer.precision=bf16",), marks=SLOW),
    ("metrics.empty_policy=both_empty_one", "metrics.resolution=network", "trainer.select=loss"),
    pytest.param(("dataset.number=13", "trainer.batch_size=8", "split.fractions=[0.69,0.16,0.15]"), marks=SLOW),
])  # fmt: skip
def test_other_runs_finish(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    outcome = tiny_run(tmp_path, "trainer.epochs=1", *overrides)
    assert outcome.status == "done", outcome.reason
    summary = outcome.summary
    assert math.isfinite(summary["dice"])
    assert math.isnan(summary["nll"]) == ("activation=identity" in overrides)
    softmax = "dataset.num_classes=3" in overrides and "head.mode=independent" not in overrides
    assert math.isnan(summary["dice_tuned"]) == softmax


def _command(*words: str) -> list[str]:
    return [sys.executable, "-m", "segexp", *words]


@pytest.mark.parametrize("where", ["train_step", "_keep_pictures", pytest.param("epoch_scores", marks=SLOW)])
def test_a_signal_inside_a_callback_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """SIGTERM in the callback of a weakref: an exception there is lost."""
    module = {"train_step": loop, "epoch_scores": build, "_keep_pictures": finalize}[where]
    real, calls = getattr(module, where), []

    def signalled(*arguments):
        calls.append(where)
        watched = {1}
        callback = weakref.ref(watched, lambda _: signal.raise_signal(signal.SIGTERM))
        del watched
        assert callback() is None
        return real(*arguments)

    monkeypatch.setattr(module, where, signalled)
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(KeyboardInterrupt):
        execute(prepare(tiny_config(tmp_path)))
    assert calls == [where]
    (record,) = (json.loads(path.read_text()) for path in tmp_path.glob("default/*/run.json"))
    assert record["status"] == "interrupted"
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_second_ctrl_c_leaves_a_step_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reached = []

    def hanging(*arguments):
        for number in (1, 2):
            signal.raise_signal(signal.SIGINT)
            reached.append(number)

    monkeypatch.setattr(loop, "train_step", hanging)
    with pytest.raises(KeyboardInterrupt), signal_handlers({signal.SIGINT: signal.default_int_handler}):
        tiny_run(tmp_path)
    monkeypatch.undo()
    assert reached == [1]
    assert tiny_run(tmp_path).status == "done"  # the next run is not interrupted


def test_a_run_that_slept_through_a_takeover_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its epoch goes on after another process has finished the run; no byte of that changes, and one line says so."""
    real_step, held = loop.train_step, dict[Path, Any]()
    before: dict[Path, bytes] = {}

    def sleep_through(*arguments):
        monkeypatch.setattr(loop, "train_step", real_step)
        (run_dir,) = tmp_path.glob("default/*")
        (run_dir / "lock").write_text(json.dumps({"host": "elsewhere", "pid": 1}))
        os.utime(run_dir / "lock", (0, 0))
        held.update(owned.HELD)
        owned.HELD.clear()  # the other process
        assert tiny_run(tmp_path).status == "done"
        owned.HELD.update(held)
        before.update({path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()})
        raise RuntimeError("also the reason of a failure is not written")

    monkeypatch.setattr(loop, "train_step", sleep_through)
    with pytest.raises(TakenOverError, match="taken over"):
        tiny_run(tmp_path)
    (run_dir,) = tmp_path.glob("default/*")
    assert {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()} == before
    assert {path.name for path in run_dir.iterdir()} == EXPECTED_FILES


@pytest.mark.slow
def test_a_stopped_process_that_continues_after_a_takeover(tmp_path: Path) -> None:
    words = ["train", *TINY[:2], *TINY[3:], "trainer.epochs=12", f"outputs={tmp_path}"]
    sleeper = subprocess.Popen(_command(*words), stderr=subprocess.PIPE, text=True)
    wait_until(lambda: list(tmp_path.glob("default/*/epochs.csv")))
    sleeper.send_signal(signal.SIGSTOP)
    (lock,) = tmp_path.glob("default/*/lock")
    lock.write_text(json.dumps({"host": "elsewhere", "pid": 1}))  # for who runs on another host
    os.utime(lock, (0, 0))
    subprocess.run(_command(*words), check=True, capture_output=True)
    before = {path: path.read_bytes() for path in lock.parent.rglob("*") if path.is_file()}
    sleeper.send_signal(signal.SIGCONT)
    _, told = sleeper.communicate(timeout=HANGS_S)
    assert sleeper.returncode == 2
    assert re.search(r"^segexp: \S+ was taken over", told, flags=re.MULTILINE)
    assert "Traceback" not in told
    assert {path: path.read_bytes() for path in lock.parent.rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_a_run_with_predictions_made_anew_has_the_same_tables(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is kept in memory changes no score, and the run is the same run."""
    monkeypatch.setattr(build, "KEPT_BYTES", 0)
    run_dir = tiny_run(tmp_path, *AS_FINISHED).run_dir
    assert run_dir.name == finished.name
    assert tables(run_dir) == tables(finished)
    for folder in ("predictions", "examples"):
        for path in (run_dir / folder).glob("*.png"):
            assert path.read_bytes() == (finished / folder / path.name).read_bytes()


def test_last_pt_goes_when_a_run_is_done(finished: Path, copied: Path, tmp_path: Path) -> None:
    """Also what a process left that was killed when all was done, but for removing it."""
    assert not (finished / "checkpoints" / "last.pt").exists()
    (copied / "checkpoints" / "last.pt").touch()
    (copied / "lock").write_text(json.dumps({"host": host(), "pid": 2**22 + 1, "started": "1"}))
    (copied / ".owner-1").mkdir()
    assert tiny_run(tmp_path, *AS_FINISHED, "trainer.keep_last=true").skipped
    assert (copied / "checkpoints" / "last.pt").exists()
    (copied / "lock").write_text("")
    assert tiny_run(tmp_path, *AS_FINISHED).skipped
    assert {path.name for path in copied.rglob("*")} == {path.name for path in finished.rglob("*")}


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_ctrl_c_leaves_a_consistent_directory(tmp_path: Path, workers: int) -> None:
    """A terminal sends it to every process: also to those of trainer.workers."""
    words = [w for w in TINY if not w.startswith("trainer.epochs")]
    # Whoever runs the tests in the background may ignore Ctrl-C, and a child would inherit that.
    script = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from segexp.cli import main; raise SystemExit(main(sys.argv[1:]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, "train", *words, "trainer.epochs=500", f"outputs={tmp_path}",
         f"trainer.workers={workers}"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path, start_new_session=True,
    )  # fmt: skip
    wait_until(lambda: list(tmp_path.glob("default/*/epochs.csv")))
    os.killpg(process.pid, signal.SIGINT)
    _out, err = process.communicate(timeout=HANGS_S)
    assert process.returncode == 130, err
    assert "interrupted" in err
    assert "Traceback" not in err
    (run_dir,) = tmp_path.glob("default/*")
    record = json.loads((run_dir / "run.json").read_text())
    assert record["status"] == "interrupted"
    assert len(read_table(run_dir / "epochs.csv", "epochs")) == record["n_rows_expected"]["epochs"] >= 2
    assert not (run_dir / "lock").exists()


@pytest.mark.slow
def test_from_repeats_a_recorded_run(finished: Path, tmp_path: Path) -> None:
    """Same configuration, same identity: in place it is skipped, elsewhere it gives the same tables."""
    again = _command("train", "--from", str(finished))
    in_place = [*again, f"outputs={finished.parent.parent}"]
    done = subprocess.run(in_place, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert "already done" in done.stdout
    done = subprocess.run([*again, f"outputs={tmp_path}"], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    (run_dir,) = (tmp_path / "default").iterdir()
    assert run_dir.name == finished.name
    first, second = (json.loads((path / "run.json").read_text())["identity"] for path in (finished, run_dir))
    assert first == second
    assert tables(run_dir) == tables(finished)


def test_logits_that_fail_on_test_images_alone_are_diverged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predictions = Scorer.predictions

    def poisoned(self, images):
        for scored in predictions(self, images):
            if images == "test":
                with torch.inference_mode():
                    scored.prediction.logits_NKHW[0, 0, 0, 0] = float("nan")
            yield scored

    monkeypatch.setattr(Scorer, "predictions", poisoned)
    outcome = tiny_run(tmp_path)
    assert (outcome.status, "test images" in outcome.reason) == ("diverged", True)
    assert math.isnan(read_table(outcome.run_dir / "summary.csv", "summary")["dice"].item())


def test_a_finished_run_that_lost_rows_is_not_taken_for_done(copied: Path, tmp_path: Path) -> None:
    lines = (copied / "images.csv").read_text().splitlines(keepends=True)
    (copied / "images.csv").write_text("".join(lines[:-1]))
    with pytest.raises(UsageError, match=r"images\.csv holds \d+"):
        tiny_run(tmp_path, *AS_FINISHED)


def test_two_states_of_a_changed_checkout_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*words: str) -> None:
        who = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
        subprocess.run(["git", "-C", str(tmp_path), *who, *words], check=True, capture_output=True)

    source = tmp_path / "segexp" / "__init__.py"
    source.parent.mkdir()
    source.write_text("1")
    monkeypatch.setattr(segexp, "__file__", str(source))
    assert git_state.__wrapped__() is None
    for words in (("init",), ("add", "."), ("commit", "-m", "x")):
        git(*words)
    states = [git_state.__wrapped__()]
    (tmp_path / "untracked").touch()
    for text in ("1", "2", "3", "2"):
        source.write_text(text)
        states.append(git_state.__wrapped__())
    git("add", "segexp")
    states.append(git_state.__wrapped__())
    assert all(state and len(state["commit"]) == 40 for state in states)
    clean, also_clean, two, three, two_again, staged = [(s["dirty"], s["diff_sha"]) for s in states if s]
    assert clean == also_clean == (False, None)
    assert two == two_again == staged != three
    assert two[0] is three[0] is True
    assert len(two[1]) == 64


@pytest.mark.slow
def test_distances_keep_their_unit_at_network_resolution(tmp_path: Path) -> None:
    """The same masks scored at half their size: HD95 in native pixels stays about what it was."""
    rng, masks = np.random.default_rng(0), np.zeros((12, 64, 64), np.uint8)
    for i, mask in enumerate(masks):
        mask[8 + i : 40 + i, 8:40] = 255
    pairs = [(f"p$^$_{i}.png", mask * 0.5 + rng.normal(60, 20, mask.shape), mask) for i, mask in enumerate(masks)]
    write_pairs(tmp_path / "data", pairs)
    config = [w for w in TINY if not w.startswith("dataset.")]
    scores = {}
    for resolution in ("native", "network"):
        with hydra_session():
            given = [*config, "dataset=folder", f"dataset.root='{tmp_path}/data'", "dataset.image_size=32"]
            given += [f"outputs='{tmp_path}/o'", f"metrics.resolution={resolution}", "optimizer.lr=1e-9"]
            outcome = execute(prepare(compose(given)))
        assert outcome.status == "done", outcome.reason
        scores[resolution] = outcome.summary["hd95"]
    assert scores["network"] == pytest.approx(scores["native"], rel=0.25)


@pytest.mark.parametrize(("model", "size", "said"), [
    ("pan", "128", "dataset.fit=pad: the smallest image, padded to 64 px, is too small for model=pan"),
    ("pan", "null", "dataset.fit=pad: the smallest image, padded to 64 px, is too small for model=pan"),
    ("unet", "null", ""),
])  # fmt: skip
def test_padded_images_must_be_large_enough(model: str, size: str, said: str, tmp_path: Path) -> None:
    flat = [np.full((60, 60 + i), 255 * (i % 2)) for i in range(10)]
    write_pairs(tmp_path, [(f"{i}.png", pixels, pixels) for i, pixels in enumerate(flat)])
    given = [f"model={model}", "dataset=folder", f"dataset.root='{tmp_path}'", "dataset.fit=pad", "trainer.device=cpu"]
    with hydra_session() as extra:
        prepared = prepare(compose([*given, f"dataset.image_size={size}", f"outputs='{tmp_path}/o'"], extra))
    if said:
        with pytest.raises(UsageError) as told:
            initial_network(prepared)
        assert str(told.value).startswith(said)
    else:
        _, _, fit = initial_network(prepared)
        assert (fit.size, fit.divisor) == (96, 32)


def test_the_head_and_its_warnings_are_recorded(tmp_path: Path) -> None:
    """Slope, prior and bias of the last layer, the cap where it bit, and the share of pixels that were clipped."""
    run = tiny_run(tmp_path, "activation=hardsigmoid", "activation.slope=matched", "activation.prior_bias=auto",
                   "activation.prior_bias_cap=0.5", "loss=matching", "optimizer.lr=0.05")  # fmt: skip
    record = json.loads((run.run_dir / "run.json").read_text())
    assert one_mentions(record["warnings"], "hardsigmoid", "no gradient", "clipped")
    (prior,) = record["head"]["prior_bias"]["prior"]
    assert 0.02 < prior < 0.4
    assert record["head"] == {"slope": 1.5, "prior_bias": {"prior": [prior], "bias": [-0.5], "capped": True}}
    assert 0 < run.summary["frac_clipped"] < 1
    plain = tiny_run(tmp_path, "activation=minmax_linear", "loss=dice", "trainer.epochs=1")
    record = json.loads((plain.run_dir / "run.json").read_text())
    assert one_mentions(record["warnings"], "minmax_linear", "whole batch")
    assert record["head"] == {"slope": 1.0, "prior_bias": None}


def test_a_prior_needs_every_class_in_training(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"activation\.prior_bias=auto: class \d .*number.*none"):
        tiny_run(tmp_path, "activation.prior_bias=auto", "dataset.num_classes=5", "dataset.foreground_fraction=0.01",
                 "dataset.number=16", "dataset.empty_share=0.8")  # fmt: skip


@pytest.mark.usefixtures("figures")
def test_figures_are_drawn_from_what_a_run_has_kept(
    copied: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By `show`, once; no file changes."""
    before = {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()}
    assert cli.main(["show", str(copied)]) == 0
    assert "samples.png" in capsys.readouterr().out
    drawn = {path.name: path.read_bytes() for path in copied.glob("*.png")}
    assert sorted(drawn) == ["diagnostics.png", "samples.png"]
    assert {path: path.read_bytes() for path in before} == before
    for name in ("draw_samples", "draw_diagnostics"):
        monkeypatch.setattr(f"segexp.evaluation.pictures.{name}", None)
    assert cli.main(["show", str(copied)]) == 0
    assert "problem" not in capsys.readouterr().out


@pytest.mark.usefixtures("figures")
@pytest.mark.parametrize("content", [b"", b"no archive", "large", "flat", "words"])
def test_damaged_samples_are_named(
    content: bytes | str, copied: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = copied / "examples" / "samples.npz"
    if content == "large":
        monkeypatch.setattr(pictures, "SIDE", 1)
    elif isinstance(content, str):
        with np.load(path) as arrays:
            look = {**json.loads(arrays["look"].tobytes()), "colors": ["no colour"]}
            words = {"look": np.frombuffer(json.dumps(look).encode(), np.uint8)}
            np.savez_compressed(path, **{**arrays, **(words if content == "words" else {"0.truth_HW": np.zeros(3)})})
    else:
        path.write_bytes(content)
    assert cli.main(["show", str(copied)]) == 0
    assert "samples.npz is damaged" in " ".join(capsys.readouterr().out.split())
    assert not (copied / "samples.png").exists()


def test_weights_that_are_being_written_are_not_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """smp's deeplabv3 takes every key out of the weights that it loads, and puts it back."""
    save = checkpoint.save_checkpoint

    def slowly(path: Path, content: dict[str, Any]) -> None:
        for _ in content["network"]:
            time.sleep(0.005)
        save(path, content)

    monkeypatch.setattr(checkpoint, "save_checkpoint", slowly)
    words = [word for word in TINY if not word.startswith("model.")]
    words += ["model=deeplabv3", "dataset.image_size=64", "trainer.epochs=1", f"outputs={tmp_path}"]
    assert cli.main(["train", *words]) == 0
    assert len([*tmp_path.glob("default/*/checkpoints/best.pt")]) == 1


@pytest.mark.slow
@pytest.mark.usefixtures("figures")
def test_a_run_is_done_without_its_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    with mock.patch("segexp.evaluation.pictures.draw_samples", side_effect=full):
        assert cli.main(["train", *TINY, "trainer.epochs=1", f"outputs={tmp_path}"]) == 0
    shown = capsys.readouterr()
    assert "No space left on device" in shown.err + shown.out
    (run_dir,) = tmp_path.glob("default/*")
    assert read_run(run_dir)["status"] == "done"
    ours = owned._partial("samples.png")  # of a process that was killed while it drew
    litter = run_dir / ours.replace(f"-{os.getpid()}-", "-99999999-")
    litter.touch()
    assert cli.main(["train", *TINY, "trainer.epochs=1", f"outputs={tmp_path}"]) == 0
    assert (run_dir / "samples.png").exists()
    assert not litter.exists()
