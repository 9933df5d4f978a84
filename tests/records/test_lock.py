"""One process owns a run directory; what it left behind is taken over once it is gone, and not before."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from timing import HANGS_S
from tiny import wait_until

from segexp.records.owned import host
from segexp.records.process import STALE_SECONDS, OwnedError, lock_holder, ownership


def test_a_second_owner_is_refused_and_the_lock_goes(tmp_path: Path) -> None:
    with ownership(tmp_path):
        with pytest.raises(OwnedError, match=str(os.getpid())), ownership(tmp_path):
            pass
        assert (tmp_path / "lock").exists()
    assert list(tmp_path.iterdir()) == []


def test_the_lock_of_a_dead_process_is_taken_over(tmp_path: Path) -> None:
    code = (
        "import os, sys, pathlib, segexp.records.process as r\n"
        "owner = r.ownership(pathlib.Path(sys.argv[1])); owner.__enter__(); os._exit(1)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert (tmp_path / "lock").exists()
    with ownership(tmp_path):
        assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()


@pytest.mark.parametrize("elsewhere", ["elsewhere", f"{host()} other namespace"])
def test_another_host_or_container_owns_while_its_heart_beats(elsewhere: str, tmp_path: Path) -> None:
    (tmp_path / "lock").write_text(json.dumps({"host": elsewhere, "pid": 2**22 + 1, "started": "1"}))
    with pytest.raises(OwnedError, match=elsewhere.rsplit(maxsplit=1)[-1]), ownership(tmp_path):
        pass
    old = time.time() - STALE_SECONDS - 1
    os.utime(tmp_path / "lock", (old, old))
    with ownership(tmp_path):
        pass
    # A pid that was used again is not the owner.
    (tmp_path / "lock").write_text(json.dumps({"host": host(), "pid": os.getpid(), "started": "1"}))
    with ownership(tmp_path):
        pass


def test_a_lock_that_cannot_be_read_belongs_to_somebody(tmp_path: Path) -> None:
    """As on a file server that does not answer: an error of the system is no reason to take a run over."""
    (tmp_path / "lock").mkdir()
    assert lock_holder(tmp_path) == "an unknown process (its lock cannot be read: Is a directory)"


@pytest.mark.parametrize("content", ["[" * 200_000, "9" * 5000, json.dumps({"host": host(), "pid": "1\0"}), "[]", ""])
def test_a_lock_of_a_stranger_breaks_nothing(content: str, tmp_path: Path) -> None:
    (tmp_path / "lock").write_text(content)
    assert lock_holder(tmp_path) == ""
    with ownership(tmp_path):
        pass


@pytest.mark.slow
def test_many_processes_one_owner(tmp_path: Path) -> None:
    """Twelve at once after a stale lock: exactly one gets it."""
    (tmp_path / "lock").write_text(json.dumps({"host": host(), "pid": 2**22 + 1, "started": "1"}))
    code = (
        "import sys, time, pathlib, segexp.records.process as r\n"
        "try:\n"
        "    with r.ownership(pathlib.Path(sys.argv[1])):\n"
        "        print('mine', flush=True); sys.stdin.read()\n"
        "except r.OwnedError: print('owned')\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    # The owner holds it until all have answered.
    processes: list[Any] = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(12)
    ]
    answers = [process.stdout.readline().strip() for process in processes]
    assert sorted(answers) == ["mine"] + ["owned"] * 11
    for process in processes:
        process.communicate(timeout=HANGS_S)


def test_a_lock_taken_over_by_another_is_left_alone(tmp_path: Path) -> None:
    with ownership(tmp_path):
        (tmp_path / "lock").write_text('{"host": "elsewhere", "pid": 1}')
    assert (tmp_path / "lock").exists()


def test_a_killed_process_that_nobody_has_waited_for_is_gone(tmp_path: Path) -> None:
    code = (
        "import os, sys, pathlib, segexp.records.process as r\n"
        "owner = r.ownership(pathlib.Path(sys.argv[1])); owner.__enter__(); os.kill(os.getpid(), 9)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
    wait_until(lambda: (tmp_path / "lock").exists() and (tmp_path / "lock").stat().st_size)
    wait_until(lambda: not lock_holder(tmp_path))
    assert process.returncode is None  # a zombie: its parent has not asked yet
    with ownership(tmp_path):
        pass
    process.wait()


def test_whoever_lost_the_lock_is_interrupted(tmp_path: Path) -> None:
    """As after a laptop's sleep: another host has taken over, and nothing more may be written."""
    code = (
        "import json, pathlib, signal, sys, time, segexp.records.process as r\n"
        "r.HEARTBEAT_SECONDS = 0.1\n"
        "def stop(*args): raise KeyboardInterrupt\n"
        "signal.signal(signal.SIGTERM, stop)\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "with r.ownership(folder) as own:\n"
        "    (folder / 'lock').write_text(json.dumps({'host': 'elsewhere', 'pid': 1}))\n"
        "    try:\n"
        "        for _ in range(200): time.sleep(0.1)\n"  # one long sleep would be slept out first
        "    except KeyboardInterrupt: print(own.lost)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "True", done.stderr
    assert "elsewhere" in (tmp_path / "lock").read_text()


def test_the_clock_of_another_host_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lock").write_text(json.dumps({"host": "elsewhere", "pid": 1, "started": "1"}))
    ahead = time.time() + 10 * STALE_SECONDS
    monkeypatch.setattr(time, "time", lambda: ahead)
    assert "elsewhere" in lock_holder(tmp_path)
    (tmp_path / "run").mkdir()
    with ownership(tmp_path / "run"):
        (tmp_path / "run").rename(tmp_path / "aside")
    assert not (tmp_path / "run").exists()
