"""`segexp status`: counts, progress, what remains, what went wrong."""

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from fabricated import SECONDS, make_plan, make_run
from messages import mentions
from timing import HANGS_S

from segexp import cli
from segexp.commands.status import is_over, size_of, status_of
from segexp.records import PROGRESS, write_json
from segexp.records.formatting import duration, size
from segexp.records.process import ownership

Captured = pytest.CaptureFixture[str]


def runs_of(status: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {run["run_id"]: run for study in status["studies"] for run in study["runs"]}


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two studies; nothing is running."""
    folder = tmp_path_factory.mktemp("outputs")
    make_run(folder / "a", "00000001")
    make_run(folder / "a", "00000002", "diverged", epochs=1)
    failed = make_run(folder / "a", "00000003", "failed", epochs=2, error="RuntimeError: disk full")
    failed.rename(folder / "a" / f"{'very-long-' * 15}00000003")
    make_run(folder / "a", "00000004", "interrupted", epochs=0)
    (make_run(folder / "a", "00000005") / "run.json").write_text("{broken")
    make_run(folder / "a", "00000009").rename(folder / "a" / "lesions-unet-arctan-s0-00000001.old1")
    make_run(folder / "b", "00000006", "running", epochs=3)
    refused = [{"overrides": "activation=identity loss=dice", "reason": "do not fit"}]
    dropped = [{"overrides": "loss=bce", "reason": "sweep.exclude"}] * 2
    make_plan(folder / "b", *(f"000001{n:02}" for n in range(12)), refused=refused, dropped=dropped)
    return folder


def test_counts_and_keys(outputs: Path) -> None:
    status = status_of(outputs)
    assert status["counts"] == {
        "done": 1, "not begun": 12, "interrupted": 1, "stale": 1, "failed": 1, "diverged": 1, "unreadable": 1,
    }  # fmt: skip
    a, b = status["studies"]
    assert (a["study"], a["set_aside"], b["set_aside"]) == ("a", 1, 0)
    assert a["counts"] == {"done": 1, "interrupted": 1, "failed": 1, "diverged": 1, "unreadable": 1}
    assert (len(b["refused"]), len(b["dropped"])) == (1, 1)
    documented = (status_of.__doc__ or "").replace("\n", " ")
    for keys in (status, a, a["runs"][0]):
        assert [key for key in keys if key not in documented] == []


def test_what_a_later_sweep_has_planned_is_no_longer_refused(tmp_path: Path) -> None:
    refused = [{"overrides": f"activation={name}", "reason": "?"} for name in ("arctan", "mine")]
    make_plan(tmp_path, "00000001", name="1", refused=refused)
    assert len(status_of(tmp_path)["studies"][0]["refused"]) == 2
    later = make_plan(tmp_path, "00000002", name="0")  # activation=arctan
    later.write_text(later.read_text().replace("2024-", "2025-"))
    assert [one["overrides"] for one in status_of(tmp_path)["studies"][0]["refused"]] == ["activation=mine"]
    make_plan(tmp_path, "00000003", name="0")  # not later
    later.write_text(later.read_text().replace("2024-", "2023-"))
    assert len(status_of(tmp_path)["studies"][0]["refused"]) == 2


def test_the_suggested_resume_names_the_plugins_of_unfinished_runs(tmp_path: Path, capsys: Captured) -> None:
    for run_id, status, name in (("00000001", "interrupted", "mine"), ("00000002", "done", "other")):
        run = make_run(tmp_path / "a", run_id, status, plugins={name: {"files": {"f.py": ""}, "given": "f.py"}})
        (run / "plugins" / name).mkdir(parents=True)
        (run / "plugins" / name / "f.py").touch()
    copy = next(tmp_path.glob("a/*/plugins/mine/f.py"))
    assert cli.main(["status", str(tmp_path)]) == 0
    assert f"`segexp resume {tmp_path} --plugin {copy}`" in capsys.readouterr().out


def test_progress_of_runs(outputs: Path) -> None:
    runs = runs_of(status_of(outputs))
    shown = {name: (run["epoch"], run["epochs"], run["val_dice_last"], run["seconds"]) for name, run in runs.items()}
    assert shown["00000003"] == (2, 4, 0.6, 2 * SECONDS)
    assert shown["00000006"] == (3, 4, 0.5, 3 * SECONDS)
    assert runs["00000006"]["val_dice_best"] == 0.6
    assert shown["00000004"] == (0, 4, None, 0)
    assert shown["00000100"] == (None, 4, None, None)
    assert runs["00000001"]["seconds"] == 10
    assert runs["00000003"]["reason"] == "RuntimeError: disk full"
    assert {run["eta_s"] for run in runs.values()} == {None}
    assert runs["00000100"]["overrides"] == "activation=arctan seed=00000100"


def test_when_all_will_be_over(tmp_path: Path) -> None:
    """One done in 10 s, one running with 1 of 4 epochs of 2 s to go, two waiting: 2 + 2 * 10 s in one slot."""
    make_run(tmp_path, "00000001")
    running = make_run(tmp_path, "00000002", "running", epochs=3)
    make_run(tmp_path, "00000003", "interrupted", epochs=0)
    make_plan(tmp_path, "00000004")
    assert status_of(tmp_path)["eta_s"] is None
    with ownership(running):
        status = status_of(tmp_path)
        assert runs_of(status)["00000002"]["eta_s"] == pytest.approx(SECONDS)
        assert status["eta_s"] == pytest.approx(SECONDS + 2 * 10)
        assert not is_over(status)
        second = make_run(tmp_path, "00000005", "running", epochs=0)
        with ownership(second):
            # Two slots, and one that has no epoch yet is taken to need a whole run: (2 + 10 + 2 * 10) / 2.
            assert status_of(tmp_path)["eta_s"] == pytest.approx((SECONDS + 10 + 20) / 2)
    # Before any run is done, the running ones say how long one takes.
    running = make_run(tmp_path / "other", "00000001", "running", epochs=1)
    make_plan(tmp_path / "other", "00000002")
    with ownership(running):
        assert status_of(tmp_path / "other")["eta_s"] == pytest.approx(3 * SECONDS + 4 * SECONDS)


def test_a_running_run_shows_its_phase_and_no_time_that_is_none(tmp_path: Path, capsys: Captured) -> None:
    run_dir = make_run(tmp_path, "00000001", "running", epochs=3)

    def found() -> tuple[Any, Any, Any]:
        status = status_of(tmp_path)
        run = runs_of(status)["00000001"]
        return run["phase"], run["eta_s"], status["eta_s"]

    assert found() == (None, None, None)
    with ownership(run_dir):
        assert found() == ("training epoch 4 of 4", SECONDS, SECONDS)
        write_json(run_dir / PROGRESS, {"done": 10, "total": 40, "seconds": 5.0})
        assert found() == ("scoring 10 of 40 images", 15.0, 15.0)
        assert cli.main(["status", str(tmp_path)]) == 0
        assert mentions(capsys.readouterr().out, "scoring 10 of 40 images", "15 s")
        for done, seconds in ((0, 0.0), ("x", 1), (40, 9), (1e308, 1), (1, 1e300)):
            write_json(run_dir / PROGRESS, {"done": done, "total": 40, "seconds": seconds})
            assert found()[2] in (None, SECONDS)
        (run_dir / PROGRESS).unlink()
        (make_run(tmp_path / ".other", "00000001", epochs=4) / "epochs.csv").replace(run_dir / "epochs.csv")
        assert found() == ("scoring", None, None)
        assert cli.main(["status", str(tmp_path)]) == 0
        assert " 0 s" not in capsys.readouterr().out


def test_tables_that_cannot_be_read_are_no_progress(tmp_path: Path) -> None:
    for n, content in enumerate((None, b"", b"a,b\n1,2\n", b"\xff", b"epoch\n1\n")):
        for table in ("epochs", "timings"):
            study = tmp_path / f"{table}{n}"
            path = make_run(study, "00000001", "interrupted") / f"{table}.csv"
            path.unlink()
            if content is not None:
                path.write_bytes(content)
            assert runs_of(status_of(study))["00000001"]["epoch"] == 0


def test_bytes_on_disk(tmp_path: Path) -> None:
    (tmp_path / "s" / "deep").mkdir(parents=True)
    (tmp_path / "s" / "deep" / "x").write_bytes(b"1" * 1000)
    (tmp_path / "s" / "y").write_bytes(b"1" * 24)
    (tmp_path / "s" / "link").symlink_to(tmp_path)
    assert 1024 <= size_of(tmp_path / "s") <= 1024 + 4096
    assert size_of(tmp_path / "nowhere") == 0


def test_text(outputs: Path, capsys: Captured) -> None:
    assert cli.main(["status", str(outputs)]) == 0
    told = capsys.readouterr().out
    lines = told.splitlines()
    states = "done pending interrupted stale failed diverged unreadable"
    assert lines[0].split() == ["study", "runs", *states.split(), "disk", "archived"]
    assert mentions(told, "2 of 18", "finished")
    assert any(line.split()[:2] == ["stale", "3/4"] and "0.500 (best 0.600)" in line for line in lines)
    # Directories are not wrapped, so that they can be copied.
    failed = [line for line in lines if line.startswith("failed ") and f" {'very-long-' * 15}00000003" in line]
    assert any(line.endswith("RuntimeError: disk full") for line in failed)
    for state, named in (("diverged ", "nan"), ("unreadable ", "run.json")):
        assert any(line.startswith(state) and named in line for line in lines)
    assert all(text in told for text in ("2 more pending", "--json", "do not fit", "b: left out"))
    assert mentions(lines[-1], "1 stale", "1 interrupted", "1 failed", f"`segexp resume {outputs}`")
    assert cli.main(["status", str(outputs), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) | {"at": ""} == status_of(outputs) | {"at": ""}
    # What is over is watched once.
    assert cli.main(["status", str(outputs / "a"), "--watch"]) == 0
    assert capsys.readouterr().out.count("runs are finished") == 1


@pytest.mark.parametrize("words", [
    ("status", "NOWHERE"),
    ("status", "EMPTY"),
    ("status",),
    ("status", "--watch", "0", "RUN"),
    ("status", "--watch", "RUN"),
])  # fmt: skip
def test_refusals(words: tuple[str, ...], tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    paths = {"NOWHERE": "nowhere", "EMPTY": "empty", "RUN": str(make_run(tmp_path / "s", "00000001"))}
    assert cli.main([paths.get(word, word) for word in words]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.slow
def test_watching_is_quiet_where_nobody_looks(tmp_path: Path) -> None:
    """Not a terminal: nothing is printed until the last run has ended."""
    run_dir = make_run(tmp_path, "00000001", "running")
    command = [sys.executable, "-m", "segexp", "status", str(tmp_path), "--watch", "0.1"]
    with ownership(run_dir):
        watching = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        time.sleep(1)
        assert watching.poll() is None
    told, _ = watching.communicate(timeout=HANGS_S)
    assert (watching.returncode, told.count("runs are finished")) == (0, 1)
    assert "\x1b" not in told


def test_watching_redraws_a_terminal_until_ctrl_c(tmp_path: Path) -> None:
    make_run(tmp_path, "00000001")
    make_plan(tmp_path, "00000002")
    leader, follower = pty.openpty()
    # Whoever runs the tests in the background may ignore Ctrl-C, and a child would inherit that.
    script = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from segexp.cli import main; raise SystemExit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", script, "status", str(tmp_path), "--watch", "0.1"]
    watching = subprocess.Popen(command, stdout=follower, stderr=subprocess.STDOUT)
    os.close(follower)
    told, deadline = b"", time.monotonic() + HANGS_S
    while told.count(b"\x1b[2J") < 3 and time.monotonic() < deadline:
        if select.select([leader], [], [], 0.1)[0]:
            told += os.read(leader, 65536)
    watching.send_signal(signal.SIGINT)
    assert watching.wait(timeout=HANGS_S) == 0
    os.close(leader)
    assert told.count(b"\x1b[2J") >= 3
    assert b"1 of 2 runs are finished" in told
    assert b"Traceback" not in told


def test_durations_and_sizes() -> None:
    assert duration(None) == "-"
    hours = {3570.0: "1 h 0 min", 5400.0: "1 h 30 min", 169_200.0: "47 h 0 min", 172_800.0: "2 d 0 h"}
    for seconds, shown in {0.0: "0 s", 59.4: "59 s", 99.0: "99 s", 100.0: "2 min", **hours, 36e4: "4 d 4 h"}.items():
        assert duration(seconds) == shown
    large = {200 * 2**20: "200 MiB", 3 * 2**30 // 2: "1.5 GiB", 2**50: "1024 TiB"}
    for n_bytes, shown in {0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", **large}.items():
        assert size(n_bytes) == shown
