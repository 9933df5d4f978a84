"""Without what Windows lacks (tests/windows_like): the same runs, locks that keep others out, and clear refusals."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from timing import HANGS_S
from tiny import TINY, tables, tiny_config, tiny_run, wait_until

from segexp.config import canonical
from segexp.errors import UsageError
from segexp.records import owned
from segexp.records.owned import Folder
from segexp.running import prepare

HERE = Path(__file__).resolve().parent


def command(*words: str) -> list[str]:
    return [sys.executable, *words]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE / "windows_like"), str(HERE.parent), str(HERE)])}


def on_windows(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*words), env=environment(), capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", ["a:b", "what?", "con", "NUL.txt", "ends."])
def test_a_study_has_a_name_that_windows_takes(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_config(tmp_path, f"study.name='{name}'")
    monkeypatch.setattr(canonical, "os", SimpleNamespace(name="nt"))
    with pytest.raises(UsageError, match="on Windows: use"):
        tiny_config(tmp_path, f"study.name='{name}'")
    tiny_config(tmp_path, "study.name=console.2")


def test_a_file_that_is_being_read_is_replaced_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows replaces no open file; everywhere else the first refusal counts."""
    refusals = [PermissionError(13, "in use")] * 3
    replace = os.replace

    def busy(*words: object, **options: object) -> None:
        if refusals:
            raise refusals.pop()
        replace(*words, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "replace", busy)
    (tmp_path / "new").write_text("new")
    folder = Folder(tmp_path, None)
    with pytest.raises(PermissionError):
        folder.move("new", folder, "old")
    monkeypatch.setattr(owned, "HAS_DIR_FD", False)
    folder.move("new", folder, "old")
    assert (tmp_path / "old").read_text() == "new"
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    refusals += [PermissionError(13, "in use")] * 1000
    with pytest.raises(PermissionError):
        folder.move("old", folder, "new")


def test_processes_for_images_are_refused_where_none_can_be_forked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(tmp_path, "trainer.workers=2")
    prepare(config)
    for name, value in (("platform", "darwin"), ("platform", "win32")):
        with monkeypatch.context() as patch:
            patch.setattr(sys, name, value)
            if value == "win32":
                patch.delattr(os, "fork")
            with pytest.raises(UsageError, match=r"use trainer\.workers=0"):
                prepare(config)


LOCKS = """
import os, pathlib, sys, time
import segexp.records.process as process
from segexp.records.owned import write_atomic
folder = pathlib.Path(sys.argv[1])
process.STALE_SECONDS = 2
try:
    with process.ownership(folder) as own:
        print("mine", flush=True)
        write_atomic(folder / "predictions" / "a", "x")
        write_atomic(folder / "predictions" / "a", "y")
        time.sleep(float(sys.argv[2]))
        if sys.argv[3:]:
            os._exit(1)
except process.OwnedError:
    print("owned")
"""


@pytest.mark.slow
def test_one_owner_without_flock_and_folders_by_descriptor(tmp_path: Path) -> None:
    here = command("-c", LOCKS, str(tmp_path), "2")
    several = [subprocess.Popen(here, env=environment(), stdout=subprocess.PIPE, text=True) for _ in range(5)]
    assert sorted(one.communicate()[0].strip() for one in several) == ["mine"] + ["owned"] * 4
    assert [path.name for path in tmp_path.iterdir()] == ["predictions"]
    assert (tmp_path / "predictions" / "a").read_text() == "y"
    on_windows("-c", LOCKS, str(tmp_path), "0", "die")
    assert (tmp_path / "lock").exists()
    assert on_windows("-c", LOCKS, str(tmp_path), "0").stdout == "owned\n"  # whether it has died is not known at once
    wait_until(lambda: on_windows("-c", LOCKS, str(tmp_path), "0").stdout == "mine\n", 20)
    assert [path.name for path in tmp_path.iterdir()] == ["predictions"]


SWEEP = ("-m", "segexp", "train", "-m", *TINY, "activation=sigmoid,arctan", "hydra.launcher.n_jobs=2")


@pytest.mark.slow
def test_a_sweep_gives_the_same_tables(tmp_path: Path) -> None:
    outputs, study = f"outputs={tmp_path / 'windows'}", tmp_path / "windows" / "default"
    there = on_windows(*SWEEP, outputs)
    assert there.returncode == 0, there.stderr
    for name in ("sigmoid", "arctan"):
        here = tiny_run(tmp_path / "linux", f"activation={name}", "trainer.threads=1").run_dir
        assert tables(study / here.name) == tables(here)
        assert not (study / here.name / "lock").exists()
    for name in ("status", "compare"):
        assert on_windows("-m", "segexp", name, str(study)).returncode == 0
    again = on_windows("-m", "segexp", "train", *TINY, "activation=arctan", outputs, "resume=restart")
    assert again.returncode == 0, again.stderr
    (archived,) = study.glob("*.old1")
    assert sorted(path.name for path in archived.iterdir()) == sorted(path.name for path in here.iterdir())


@pytest.mark.slow
def test_ctrl_c_lets_every_run_save(tmp_path: Path) -> None:
    words = (*SWEEP, f"outputs={tmp_path}", "trainer.epochs=400")
    process = subprocess.Popen(command(*words), env=environment(), stderr=subprocess.PIPE, text=True)
    wait_until(lambda: len(list(tmp_path.glob("default/*/epochs.csv"))) == 2)
    process.send_signal(signal.SIGINT)
    _, printed = process.communicate(timeout=HANGS_S)
    assert process.returncode == 130, printed
    for record in tmp_path.glob("default/*/run.json"):
        assert json.loads(record.read_text())["status"] == "interrupted"
        assert not record.with_name("lock").exists()


@pytest.mark.slow
def test_what_cannot_work_there_is_refused_in_one_line(tmp_path: Path) -> None:
    loaded = on_windows("-m", "segexp", "train", *TINY, f"outputs={tmp_path}", "trainer.workers=2")
    assert (loaded.returncode, loaded.stderr.count("\n")) == (2, 1)
    assert "trainer.workers=0" in loaded.stderr
    swept = on_windows(*SWEEP, f"outputs={tmp_path}", "trainer.workers=2")
    assert swept.returncode == 2
    assert "trainer.workers=0" in swept.stderr
