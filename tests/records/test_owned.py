"""Only the lock holder writes a run directory; no link is followed, no pipe opened in it; litter of the dead goes."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from segexp.config.compose import recorded_tree
from segexp.errors import TakenOverError, UsageError
from segexp.records import open_atomic, read_run, read_table, text_rows, whole_table, write_atomic, write_json
from segexp.records.owned import discard, writer
from segexp.records.process import STALE_SECONDS, lock_holder, ownership, read_environment
from segexp.records.runs import runs_in, studies_in
from segexp.running import record_death
from segexp.running.execute import _log_file
from segexp.training.checkpoint import load_checkpoint, save_checkpoint

DEAD = 2**22 + 1
"""A pid that no process has."""


@pytest.fixture(autouse=True)
def _no_waiting() -> Iterator[None]:
    """A pipe that is opened for reading must not stop the tests."""

    def too_late(*_: object) -> None:
        raise TimeoutError("it waits for a pipe")

    before = signal.signal(signal.SIGALRM, too_late)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def look_asleep(run_dir: Path) -> None:
    """The lock looks like that of another host which has not renewed it for long."""
    (run_dir / "lock").write_text(json.dumps({"host": "elsewhere", "pid": 1, "started": "1"}))
    long_ago = time.time() - 2 * STALE_SECONDS
    os.utime(run_dir / "lock", (long_ago, long_ago))


def take_over(run_dir: Path, *written: str) -> None:
    """Another process takes a directory over, writes files and ends."""
    code = (
        "import pathlib, sys; from segexp.records.process import ownership; from segexp.records import write_atomic\n"
        "run_dir = pathlib.Path(sys.argv[1])\n"
        "with ownership(run_dir):\n"
        "    for name in sys.argv[2:]: write_atomic(run_dir / name, 'of the finished run')\n"
    )
    subprocess.run([sys.executable, "-c", code, str(run_dir), *written], check=True)


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_an_owner_that_wakes_after_a_takeover_changes_nothing(tmp_path: Path) -> None:
    run_dir, log = tmp_path / "run", logging.getLogger("segexp")
    run_dir.mkdir()
    with ownership(run_dir) as own, _log_file(run_dir / "log.txt"):
        log.warning("before")
        write_atomic(run_dir / "checkpoints" / "last.pt", "half")
        write_atomic(run_dir / "epochs.csv", "half")
        opened = open_atomic(run_dir / "images.csv")
        opened.__enter__().write(b"half")
        write_atomic(run_dir / "predictions" / "a.png", "half")
        assert "before" in (run_dir / "log.txt").read_text()
        look_asleep(run_dir)
        names = ("epochs.csv", "images.csv", "traceback.txt", "checkpoints/last.pt", "predictions/a.png", "run.json")
        take_over(run_dir, *names, "log.txt")
        before = content(run_dir)

        log.warning("after")
        attempts: list[Callable[[], object]] = [
            lambda: write_json(run_dir / "run.json", {}),
            lambda: write_atomic(run_dir / "new.csv", ""),
            lambda: save_checkpoint(run_dir / "checkpoints" / "last.pt", {}),
            lambda: discard(run_dir / "traceback.txt"),
            lambda: discard(run_dir / "predictions"),
            lambda: discard(run_dir / "not there"),
            lambda: opened.__exit__(None, None, None),
        ]
        for attempt in attempts:
            with pytest.raises(TakenOverError, match="taken over"):
                attempt()
        assert own.lost
    assert content(run_dir) == before
    assert not list(run_dir.glob(".*"))


def test_a_takeover_names_who_has_it(tmp_path: Path) -> None:
    with ownership(tmp_path):
        (next(tmp_path.glob(".owner-*"))).rmdir()
        (tmp_path / "lock").write_text(json.dumps({"host": "elsewhere", "pid": 7}))
        with pytest.raises(TakenOverError, match=f"{tmp_path} was taken over by process 7 on elsewhere"):
            write_atomic(tmp_path / "a", "")


def test_a_lock_dated_in_the_future_blocks_nothing(tmp_path: Path) -> None:
    look_asleep(tmp_path)
    ahead = time.time() + 10 * STALE_SECONDS
    os.utime(tmp_path / "lock", (ahead, ahead))
    assert lock_holder(tmp_path) == ""
    with ownership(tmp_path):
        pass


# Links and pipes

FILES = ("run.json", "epochs.csv", "log.txt", "traceback.txt", "checkpoints/best.pt", "environment.txt")
SPOILT = ("symbolic link", "pipe")


def spoil(path: Path, kind: str) -> None:
    """Put a link to a file or folder of the user, or a pipe, in place of ``path``."""
    if kind == "pipe":
        os.mkfifo(path)
        return
    user = path.parent / f"{path.name}-of-the-user"
    user.mkdir() if path.suffix == "" and path.name != "lock" else user.write_text("precious")
    path.symlink_to(user)


@pytest.mark.parametrize("name", FILES)
def test_what_is_written_replaces_a_link(tmp_path: Path, name: str) -> None:
    (tmp_path / "checkpoints").mkdir()
    spoil(tmp_path / name, "symbolic link")
    with ownership(tmp_path):
        write_atomic(tmp_path / name, "ours")
    assert ((tmp_path / name).is_symlink(), (tmp_path / name).read_text()) == (False, "ours")
    assert (tmp_path / f"{name}-of-the-user").read_text() == "precious"
    spoil(tmp_path / "again", "symbolic link")
    with ownership(tmp_path):
        discard(tmp_path / "again")
    assert (tmp_path / "again-of-the-user").exists()


@pytest.mark.parametrize("kind", SPOILT)
@pytest.mark.parametrize("name", ["lock", "log.txt", "checkpoints", "predictions", "examples"])
def test_no_run_is_written_through_a_link(tmp_path: Path, name: str, kind: str) -> None:
    spoil(tmp_path / name, kind)
    with pytest.raises(UsageError, match=rf"{name} is .*remove"), ownership(tmp_path), _log_file(tmp_path / "log.txt"):
        pass
    assert {p.name for p in tmp_path.iterdir()} <= {name, f"{name}-of-the-user"}
    assert all(text == b"precious" for text in content(tmp_path).values())


@pytest.mark.parametrize("name", ["evaluations", "evaluations/test-0.5", "evaluations/test-0.5/lock"])
def test_no_evaluation_is_written_through_a_link(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    spoil(tmp_path / name, "symbolic link")
    with pytest.raises(UsageError, match="remove"), ownership(tmp_path / "evaluations" / "test-0.5", tmp_path):
        pass
    assert all(text == b"precious" for text in content(tmp_path).values())


def test_a_folder_that_becomes_a_link_is_not_followed(tmp_path: Path) -> None:
    with ownership(tmp_path):
        spoil(tmp_path / "checkpoints", "symbolic link")
        with pytest.raises(UsageError, match="checkpoints is a symbolic link"):
            write_atomic(tmp_path / "checkpoints" / "last.pt", "")
    assert not list((tmp_path / "checkpoints").iterdir())


READERS: dict[str, Callable[[Path], object]] = {
    "run.json": lambda path: read_run(path.parent),
    "epochs.csv": lambda path: text_rows(path, "epochs"),
    "bins.csv": lambda path: read_table(path, "bins"),
    "images.csv": lambda path: whole_table(path.parent, {}, "images"),
    "environment.txt": read_environment,
    "config.yaml": lambda path: recorded_tree(path.parent),
    "checkpoints/best.pt": lambda path: load_checkpoint(path, torch.device("cpu"), ""),
}


@pytest.mark.parametrize("kind", SPOILT)
@pytest.mark.parametrize("name", READERS)
def test_nothing_is_read_through_a_link_or_a_pipe(tmp_path: Path, name: str, kind: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    spoil(tmp_path / name, kind)
    with pytest.raises(UsageError, match=rf"{name} is .*remove it"):
        READERS[name](tmp_path / name)
    if "/" in name:
        (tmp_path / name).parent.rename(tmp_path / "away")
        (tmp_path / name).parent.symlink_to(tmp_path / "away")
        with pytest.raises(UsageError, match="checkpoints is a symbolic link"):
            READERS[name](tmp_path / name)


@pytest.mark.parametrize("kind", SPOILT)
@pytest.mark.parametrize("name", ["run.json", "lock", "../.sweeps/plan-1.json"])
def test_a_study_is_listed_beside_links_and_pipes(tmp_path: Path, name: str, kind: str) -> None:
    for run in ("a-11111111", "b-22222222"):
        (tmp_path / run).mkdir()
        write_json(tmp_path / run / "run.json", {"status": "done", "schema_version": 1, "run_id": run[-8:]})
    (tmp_path / ".sweeps").mkdir()
    (tmp_path / "a-11111111" / name).unlink(missing_ok=True)
    spoil(tmp_path / "a-11111111" / name, kind)
    (study,) = studies_in(tmp_path)
    states = [run.state for run in runs_in(study)]
    assert states == ["unreadable" if name == "run.json" else "done", "done"]
    assert len(study.problems) == name.startswith("..")


def test_the_run_directory_itself_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "there")
    with ownership(tmp_path / "run"):
        write_json(tmp_path / "run" / "run.json", {"status": "running"})
    record_death(tmp_path / "run", "gone")
    assert read_run(tmp_path / "run")["status"] == "failed"
    assert [p.name for p in (tmp_path / "there").iterdir()] == ["run.json"]


# Litter


def test_an_owner_removes_what_the_dead_have_left(tmp_path: Path) -> None:
    (tmp_path / ".owner-1" / "predictions" / "deep").mkdir(parents=True)
    (tmp_path / ".owner-2").symlink_to(tmp_path.parent)
    for name in (".a-1-2.partial", f".clock-{DEAD}-1", "checkpoints/.b-1-2.partial", "predictions/.c.partial"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / ".mine").touch()
    with ownership(tmp_path):
        assert len(list(tmp_path.glob(".owner-*"))) == 1
    assert set(content(tmp_path)) == {".mine"}
    assert not list(tmp_path.glob(".owner-*"))


def test_a_writer_removes_what_dead_writers_of_the_file_left(tmp_path: Path) -> None:
    with open_atomic(tmp_path / "a") as file:
        alive = Path(file.name)
    host = writer()[-8:]
    tags = {"dead": f"{DEAD}-{host}", "alive": f"1-{host}", "elsewhere": "1-00000000", "old": "5-6", "long ago": "5-7"}
    paths = {what: alive.with_name(alive.name.replace(writer(), tag)) for what, tag in tags.items()}
    for path in paths.values():
        path.touch()
    os.utime(paths["long ago"], (0, 0))
    write_atomic(tmp_path / "a", "")
    write_atomic(tmp_path / "b", "")
    left = {p.name for p in tmp_path.glob(".*")}
    assert left == {paths[what].name for what in ("alive", "elsewhere", "old")}


@pytest.mark.parametrize("below", [("a" * 300,), ("evaluations", "a" * 300)])
def test_errors_of_the_system_name_the_whole_path(tmp_path: Path, below: tuple[str, ...]) -> None:
    folder = tmp_path.joinpath(*below)
    with pytest.raises(OSError, match="too long") as raised, ownership(folder, tmp_path):
        pass
    assert raised.value.filename == str(folder)
