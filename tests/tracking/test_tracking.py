"""``tracking``: what is refused, what a run reports, and that no tracker can harm a run."""

import importlib.util
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from tiny import tables, tiny_config, tiny_run, wait_until
from tracked import in_csv

import segexp.tracking
from segexp.config import TRACKERS
from segexp.config.compose import compose, hydra_session, recorded_overrides
from segexp.errors import UsageError
from segexp.records import read_run, text_rows
from segexp.running import prepare
from segexp.tracking import check_installed, process, track
from segexp.tracking.process import follow


@pytest.fixture(scope="module")
def without(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_run(tmp_path_factory.mktemp("without")).run_dir


@pytest.fixture(scope="module")
def with_csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_run(tmp_path_factory.mktemp("with"), "tracking=csv").run_dir


def test_every_tracker_is_a_tool():
    assert all(getattr(process, name).__module__ == process.__name__ for name in TRACKERS)


@pytest.mark.parametrize(("given", "names"), [
    ("none", []), ("[]", []), ("csv", ["csv"]), ("[wandb,csv,wandb]", ["csv", "wandb"]),
])  # fmt: skip
def test_one_name_or_a_list(given: str, names: list[str], tmp_path: Path):
    assert tiny_config(tmp_path, f"tracking={given}").tracking == names


@pytest.mark.parametrize(("given", "cure"), [
    ("mlfow", "did you mean mlflow?"), ("[csv,none]", "valid: csv, tensorboard"), ("null", "did you mean none?"),
    ("csv,mlflow", "tracking=[csv,mlflow]"), ("{csv:1}", "unknown tracking"),
])  # fmt: skip
def test_another_name_is_refused(given: str, cure: str):
    with hydra_session() as extra, pytest.raises(UsageError) as refused:
        compose([f"tracking={given}"], extra)
    assert cure in str(refused.value)


def test_a_missing_package_is_refused_before_training(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    config = tiny_config(tmp_path, "tracking=[csv,mlflow]")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    check_installed(["csv"])
    with pytest.raises(UsageError, match=r"pip install 'segexp\[mlflow\]'"):
        prepare(config)


def test_a_tracked_run_is_the_same_run_with_the_same_tables(without: Path, with_csv: Path):
    assert with_csv.name == without.name
    assert tables(with_csv) == tables(without)
    assert read_run(with_csv)["warnings"] == read_run(without)["warnings"]
    assert not (without / "tracking").exists()


def test_a_recorded_run_keeps_its_trackers_and_an_earlier_one_has_none(with_csv: Path, tmp_path: Path):
    assert "tracking=['csv']" in recorded_overrides(with_csv, [])
    text = (with_csv / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(text.replace("tracking:\n- csv\n", ""))
    assert "tracking='none'" in recorded_overrides(tmp_path, [])


def test_the_scalars_are_those_of_the_run(with_csv: Path):
    points, record = in_csv(with_csv), read_run(with_csv)
    rows = text_rows(with_csv / "epochs.csv", "epochs")
    for split in ("train", "val"):
        for name in ("loss", "dice", "lr"):
            expected = [(int(row["epoch"]), float(row[name])) for row in rows if row["split"] == split]
            assert points[f"{split}/{name}"] == expected
    (look,) = [r for r in text_rows(with_csv / "diagnostics.csv", "diagnostics")
               if r["probe"] == "train" and r["depth"] == "1"]  # fmt: skip
    assert points[f"hidden/{look['site']}/saturated"] == [(int(look["epoch"]), float(look["saturated"]))]
    assert points["final/dice"] == [(2, record["summary"]["dice"])]
    assert points["final/hidden/saturated"] == [(2, record["diagnostics"]["saturated"])]
    assert "final/seed" not in points


def test_a_finished_run_is_not_tracked_again(with_csv: Path):
    before = (with_csv / "tracking" / "metrics.csv").stat().st_mtime_ns
    assert tiny_run(with_csv.parent.parent, "tracking=csv").skipped
    assert (with_csv / "tracking" / "metrics.csv").stat().st_mtime_ns == before


def test_a_tracker_that_cannot_start_is_a_warning(tmp_path: Path):
    run_dir = prepare(tiny_config(tmp_path, "tracking=csv")).run_dir
    run_dir.mkdir(parents=True)
    (run_dir / "tracking").symlink_to(tmp_path)
    outcome = tiny_run(tmp_path, "tracking=csv")
    (warning,) = (line for line in read_run(run_dir)["warnings"] if "tracking" in line)
    assert outcome.status == "done"
    assert warning.startswith("tracking=csv failed, without effect on the run (tracking/csv.log): ")
    assert "symbolic link" in warning
    assert warning in (run_dir / "log.txt").read_text()


@pytest.mark.parametrize(("code", "reason"), [
    ("import sys; sys.exit('ValueError: first')", "exit code 1: ValueError: first"),
    (r"import sys; print('cut\nTraceback (most\n  File'); sys.exit(1)", "exit code 1: cut"),
    ("import time; print('waiting', flush=True); time.sleep(600)", "no answer in 0.5 s: waiting"),
    ("import os; print('half', flush=True); os.kill(os.getpid(), 9)", "ended by signal 9: half"),
])  # fmt: skip
def test_one_that_fails_or_hangs_is_stopped_and_named(
    code: str, reason: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr(segexp.tracking, "CODE", code)
    monkeypatch.setattr(segexp.tracking, "LIMIT_SECONDS", 0.5)
    begun = time.monotonic()
    (failure,) = track(tmp_path, ["csv"])()
    assert failure.endswith(reason)
    assert time.monotonic() - begun < 600 / 10, "it did not wait for the end of the sleep"


def test_one_that_ends_before_the_run_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(segexp.tracking, "CODE", "import os; os._exit(0)")
    finish = track(tmp_path, ["csv"])
    wait_until(lambda: not any(t.name.endswith("(follow)") for t in threading.enumerate()))
    (failure,) = finish()
    assert failure.endswith("exit code 0")


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_the_folder_of_a_tool_is_no_link(name: str, without: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(segexp.tracking, "CODE", "raise SystemExit('begun')")
    (tmp_path / "run" / "tracking").mkdir(parents=True)
    (tmp_path / "run" / "tracking" / name).symlink_to(tmp_path)
    (failure,) = track(tmp_path / "run", [name])()
    assert "symbolic link" in failure


@pytest.mark.slow
def test_a_tracker_that_waits_leaves_after_a_run_that_was_killed(without: Path, tmp_path: Path):
    """Its tool waits for a server; nothing else of the run is left that could stop it."""
    (tmp_path / "mlflow.py").write_text("import time; time.sleep(600)")
    words = [sys.executable, "-c", segexp.tracking.CODE, str(tmp_path), str(without), "mlflow", "0.1"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join((str(tmp_path), str(Path(segexp.__file__).parents[1])))}
    process = subprocess.Popen(words, stdin=subprocess.PIPE, env=env | {"MLFLOW_TRACKING_URI": "x"})
    assert process.stdin
    process.stdin.close()
    assert process.wait(120) == 1


def test_no_file_of_the_current_folder_is_run(without: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "run").mkdir()
    for name in ("run.json", "epochs.csv", "diagnostics.csv"):
        (tmp_path / "run" / name).write_bytes((without / name).read_bytes())
    (tmp_path / "struct.py").write_text("raise SystemExit('struct.py of a stranger')")
    monkeypatch.chdir(tmp_path)
    assert track(tmp_path / "run", ["csv"])() == []
    assert in_csv(tmp_path / "run")["final/dice"]


def sent_by(run_dir: Path, held: int = 0) -> tuple[Any, list[Any]]:
    """The tags, and what was sent to a tool that holds these epochs of the run."""
    tags: dict[str, str] = {}
    sent: list[Any] = []

    def tool(run: Any, given: Any) -> Any:
        tags.update(given)
        return held, lambda *what: sent.append(what)

    ended = threading.Thread(target=lambda: None)
    ended.start()
    follow(run_dir, tool, ended)
    return tags, sent


def test_epochs_that_a_tool_holds_are_not_sent_again_and_none_in_part(with_csv: Path, tmp_path: Path):
    for name in ("run.json", "epochs.csv", "diagnostics.csv"):
        (tmp_path / name).write_bytes((with_csv / name).read_bytes())
    rows = (tmp_path / "epochs.csv").read_text().splitlines(keepends=True)
    (tmp_path / "epochs.csv").write_text("".join(rows[:3]))  # epoch 1
    looks = (tmp_path / "diagnostics.csv").read_text()
    (tmp_path / "diagnostics.csv").write_text(looks + looks.split("\n", 1)[1].replace(",train,1,", ",train,2,"))
    _, ((epochs, *rest), (last, status, pictures)) = sent_by(tmp_path)
    assert (set(epochs), rest) == ({1}, ["", []])
    assert (set(last), status, pictures) == ({1}, "done", [])
    assert "final/dice" in last[1]
    assert len(sent_by(tmp_path, held=1)[1]) == 1  # the end


@pytest.mark.slow
def test_all_attempts_are_one_tracked_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Also after one that left no checkpoint, and one of an earlier version; not what starts over."""
    with monkeypatch.context() as patched:
        patched.setattr("segexp.running.execute.make_task", None)
        run_dir = tiny_run(tmp_path).run_dir
    record = read_run(run_dir)
    assert record["status"] == "failed"
    ids = [sent_by(run_dir)[0]["id"]]
    for year, began in (("2030", {}), ("2031", {"begun": "", "earlier_attempts": [{"started": record["started"]}]})):
        monkeypatch.setattr("segexp.running.execute.now", lambda year=year: f"{year}-01-01T00:00:00+00:00")
        (run_dir / "run.json").write_text(json.dumps(record | began))
        assert tiny_run(tmp_path).status == "done"
        assert read_run(run_dir)["started"].startswith(year)
        ids.append(sent_by(run_dir)[0]["id"])
    assert ids == ids[:1] * 3
    assert sent_by(tiny_run(tmp_path, "resume=restart").run_dir)[0]["id"] != ids[0]
