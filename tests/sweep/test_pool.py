"""Processes in slots: each dies alone, is tried again, is stopped as asked, and leaves when its parent does."""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pool_targets import SLEEP_S, act
from tiny import wait_until

from segexp.sweep import pool
from segexp.sweep.pool import Board, Task, run_tasks

NOTHING_TO_IMPORT = ("segexp.sweep.pool",)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(pool, "BUSY_SECONDS", 0.2)
    monkeypatch.setattr(pool, "KILL_SECONDS", 0.5)


def task(folder: Path, name: str, does: str = "nothing", **more: Any) -> Task:
    return Task(name, {"folder": str(folder), "name": name, "does": does}, folder / f"{name}.txt", **more)


def run(tasks: list[Task], slots: int = 2, **options: Any) -> Board:
    return run_tasks(tasks, [None] * slots, act, preload=NOTHING_TO_IMPORT, **options)


def begun(folder: Path, name: str) -> list[list[str]]:
    path = folder / f"{name}.begun"
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def test_every_way_to_end_is_told_apart(tmp_path: Path) -> None:
    ways = ("nothing", "kill", "segfault", "leave", "refuse", "nothing")
    board = run([task(tmp_path, f"t{i}", does) for i, does in enumerate(ways)], retries=0)
    endings = [board.endings[f"t{i}"] for i in range(len(ways))]
    for ending, named in zip(endings, ("", "SIGKILL", "SIGSEGV", "code 3", "", ""), strict=True):
        assert (named in ending.crash) if named else ending.crash == ""
    assert "Segmentation fault" in endings[2].crash
    assert (endings[4].code, endings[4].reason) == (2, "no such thing")
    assert (tmp_path / "t0.txt").read_text() == "printed by t0\n"


def test_a_death_is_tried_again_and_a_refusal_is_not(tmp_path: Path) -> None:
    board = run(
        [task(tmp_path, "a", "kill once"), task(tmp_path, "b", "kill"), task(tmp_path, "c", "refuse")], retries=2
    )
    assert [len(begun(tmp_path, name)) for name in "abc"] == [2, 3, 1]
    assert (board.endings["a"].crash, board.endings["a"].attempts) == ("", 2)
    assert "SIGKILL" in board.endings["b"].crash
    assert board.endings["b"].attempts == 3


@pytest.mark.parametrize("code", [0, 2, 70, 75])
def test_one_that_leaves_without_a_report_has_died_whatever_its_exit_code(code: int, tmp_path: Path) -> None:
    leaves = task(tmp_path, "a", "leave")
    board = run([replace(leaves, payload={**leaves.payload, "code": code}), task(tmp_path, "b")], retries=1)
    assert f"exit code {code}" in board.endings["a"].crash
    assert (len(begun(tmp_path, "a")), board.endings["b"].code) == (2, 0)


def test_slots_hold_their_number_and_their_gpu(tmp_path: Path) -> None:
    seen = []
    gpus = ["0", "3", "0"]
    tasks = [task(tmp_path, f"t{i}") for i in range(7)]
    run_tasks(tasks, gpus, act, preload=NOTHING_TO_IMPORT, show=lambda b: seen.append([a.slot for a in b.active]))
    assert max(map(len, seen)) <= 3
    assert all(len(set(slots)) == len(slots) for slots in seen)
    assert {begun(tmp_path, t.name)[0][1] for t in tasks} == {"0", "3"}


def test_what_another_owns_is_waited_for(tmp_path: Path) -> None:
    owned = [True]
    threading.Timer(0.5, owned.clear).start()
    tasks = [task(tmp_path, "a", busy=lambda: bool(owned)), task(tmp_path, "b", "busy once"), task(tmp_path, "c")]
    board = run(tasks, slots=1)
    assert {name: e.crash for name, e in board.endings.items()} == {"a": "", "b": "", "c": ""}
    assert float(begun(tmp_path, "a")[0][2]) > float(begun(tmp_path, "c")[0][2])
    assert len(begun(tmp_path, "b")) == 2


def test_one_that_takes_too_long_is_stopped_and_killed_when_it_will_not_go(tmp_path: Path) -> None:
    board = run([task(tmp_path, "a", "sleep"), task(tmp_path, "b", "stay"), task(tmp_path, "c")], timeout_seconds=2)
    assert (tmp_path / "a.interrupted").exists()
    assert ["timeout_minutes" in board.endings[name].crash for name in "abc"] == [True, True, False]
    assert all(len(begun(tmp_path, name)) == 1 for name in "abc")


def test_an_error_in_the_parent_leaves_no_worker_behind(tmp_path: Path) -> None:
    def show(board: Board) -> None:
        if (tmp_path / "a.ready").exists():
            raise OSError("the terminal is gone")

    with pytest.raises(OSError, match="the terminal is gone"):
        run([task(tmp_path, "a", "sleep")], show=show)
    wait_until((tmp_path / "a.interrupted").exists)


def interrupting(folder: Path, names: str, times: int) -> threading.Thread:
    """Ctrl-C, once all of these are ready. The terminal sends it to every process of the group: a worker ignores it,
    because it would not save."""

    def press() -> None:
        wait_until(lambda: all((folder / f"{name}.ready").exists() for name in names))
        for _ in range(times):
            for process in (*(int(begun(folder, name)[0][0]) for name in names), os.getpid()):
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGINT)
            time.sleep(0.3)

    thread = threading.Thread(target=press)
    thread.start()
    return thread


def test_ctrl_c_once_lets_everyone_save(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    thread = interrupting(tmp_path, "ab", 1)
    board = run([task(tmp_path, "a", "save when asked"), task(tmp_path, "b", "save when asked"), task(tmp_path, "c")])
    thread.join()
    assert (tmp_path / "a.saved").exists()
    assert (tmp_path / "b.saved").exists()
    assert "c" not in board.endings
    assert not begun(tmp_path, "c")
    assert board.stopping == 1
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_twice_ends_at_once(tmp_path: Path) -> None:
    thread = interrupting(tmp_path, "ab", 2)
    started = time.monotonic()
    board = run([task(tmp_path, "a", "sleep"), task(tmp_path, "b", "stay"), task(tmp_path, "c")])
    thread.join()
    assert time.monotonic() - started < SLEEP_S / 10
    assert board.stopping == 2
    assert {name: e.crash for name, e in board.endings.items()} == {"a": "", "b": ""}


@pytest.mark.slow
def test_workers_leave_when_their_parent_is_killed(tmp_path: Path) -> None:
    code = (
        "import sys; sys.path[:0] = sys.argv[2:]\n"
        "from pathlib import Path\n"
        "from pool_targets import act\n"
        "from segexp.sweep.pool import Task, run_tasks\n"
        "f = Path(sys.argv[1])\n"
        "if __name__ == '__main__':\n"
        "    task = Task('a', {'folder': str(f), 'name': 'a', 'does': 'sleep'}, f / 'a.txt')\n"
        "    run_tasks([task], [None], act, preload=('segexp.sweep.pool',))\n"
    )
    (tmp_path / "driver.py").write_text(code)
    driver = subprocess.Popen([sys.executable, str(tmp_path / "driver.py"), str(tmp_path), *sys.path])
    wait_until((tmp_path / "a.ready").exists)
    driver.kill()
    driver.wait()
    wait_until((tmp_path / "a.interrupted").exists)
