"""What a run sets for its process, never against the user's word: how idle CPU threads wait, decided before torch is
loaded (`trainer.wait`), and that freed memory is kept."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny import TINY, tables, tiny_config

from segexp.config import LocalOptions
from segexp.records import process
from segexp.records.process import MALLOPT, WAIT_KEYS, set_wait
from segexp.running import prepare
from segexp.sweep import local
from segexp.sweep.pool import Board


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets the load average of two usable cores, and whether others run now; torch is not loaded, nothing is set."""
    for key in (*WAIT_KEYS, "OMP_NUM_THREADS"):
        monkeypatch.setenv(key, "")  # so that it is restored
        del os.environ[key]
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setattr(process, "usable_cores", lambda: 2)
    monkeypatch.setattr(process, "_WAITING", {})

    def set_load(load: float, others: bool = True) -> None:
        monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
        monkeypatch.setattr(process, "_others_run", lambda: others)

    return set_load


@pytest.mark.parametrize(("wait", "load", "expected"), [
    ("auto", 0.1, {"GOMP_SPINCOUNT": "20000", "KMP_BLOCKTIME": "1"}),
    ("auto", 1.0, {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}),
    ("passive", 0.0, {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}),
    ("active", 9.0, {"OMP_WAIT_POLICY": "ACTIVE"}),
])  # fmt: skip
def test_idle_threads_wait_as_the_load_suggests(wait: str, load: float, expected: dict[str, str], machine: Any) -> None:
    machine(load)
    line = set_wait(wait, 2)
    assert {key: os.environ[key] for key in WAIT_KEYS if key in os.environ} == expected
    assert f"{load:.1f} on 2" in line
    assert f"trainer.wait={wait}" in line
    assert ("trainer.threads=1" in line) == (load > 0.5)
    assert "trainer.threads" not in set_wait(wait, 1)


def test_later_rounds_of_a_command_say_the_same(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(1.0)
    line = set_wait("auto", 1)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace())
    assert set_wait("auto", 1) == line


def test_the_load_of_our_own_earlier_runs_does_not_count(machine: Any) -> None:
    machine(1.0, others=False)
    assert "trainer.threads" not in set_wait("auto", 2)
    assert "OMP_WAIT_POLICY" not in os.environ


@pytest.mark.parametrize(
    ("threads", "n_runs", "told"), [(4, 1, "4 threads"), (1, 3, "3 threads"), (1, 2, ""), (None, 1, "")]
)
def test_more_threads_than_cores_are_told(threads: int | None, n_runs: int, told: str, machine: Any) -> None:
    machine(0.0)
    line = set_wait("auto", threads, n_runs)
    assert told in line
    assert ("wait for each other" in line) == bool(told)


def test_what_the_user_set_wins_and_is_reported(machine: Any) -> None:
    machine(9.0)
    os.environ["OMP_WAIT_POLICY"] = "ACTIVE"
    assert "OMP_WAIT_POLICY=ACTIVE" in set_wait("passive", 1)
    assert "KMP_BLOCKTIME" not in os.environ


HOOK = """
import json, os, sys
class Stop:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print("\\n" + json.dumps({key: value for key, value in os.environ.items() if key in KEYS}), flush=True)
            os._exit(7)
sys.meta_path.insert(0, Stop())
from segexp.cli import main
main(sys.argv[1:])
"""
"""Runs a command until it imports torch, and prints the variables that torch will see."""


@pytest.mark.parametrize(
    "words",
    [["train"], pytest.param(["train", "-m", "seed=0,1", "--dry-run"], marks=pytest.mark.slow), ["doctor"]],
    ids=" ".join,
)
def test_it_is_set_before_torch_is_imported(words: list[str], tmp_path: Path) -> None:
    settings = [] if words == ["doctor"] else [*TINY, "trainer.wait=passive", f"outputs={tmp_path}"]
    environment = {key: value for key, value in os.environ.items() if key not in WAIT_KEYS}
    code = f"KEYS = {WAIT_KEYS}\n{HOOK}"
    command = [sys.executable, "-c", code, *words, *settings]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 7, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    assert "KMP_BLOCKTIME" in seen
    assert words == ["doctor"] or seen["OMP_WAIT_POLICY"] == "PASSIVE"


def test_the_processes_of_a_sweep_inherit_it(tmp_path: Path, machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(0.0)
    seen: list[str | None] = []

    def run_tasks(*_: object, **__: object) -> Board:
        seen.append(os.environ.get("OMP_WAIT_POLICY"))
        return Board(0)

    monkeypatch.setattr(local, "run_tasks", run_tasks)
    spec = prepare(tiny_config(tmp_path, "trainer.wait=active"))
    job: Any = SimpleNamespace(spec=spec, run_dir=spec.run_dir, label="one")
    local.run_locally([job], LocalOptions(n_jobs=1, gpus=0))
    assert seen == ["ACTIVE"]


FAULTS = """
import resource, sys, torch
from tiny import tiny_config
from segexp.running import prepare
from segexp.running.build import initial_network
initial_network(prepare(tiny_config(sys.argv[1])))
def step():
    return [torch.zeros(4 * 2**20) for _ in range(10)]  # 16 MiB each
for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
"""Prints how many pages of memory the system had to give to ten like steps, in a process that has built a network."""


def pages(tmp_path: Path, **environment: str) -> int:
    free = {key: value for key, value in os.environ.items() if key not in (*MALLOPT, "GLIBC_TUNABLES")}
    command, path = [sys.executable, "-c", FAULTS, str(tmp_path)], os.pathsep.join(sys.path)
    done = subprocess.run(
        command, env={**free, **environment, "PYTHONPATH": path}, capture_output=True, text=True, check=True
    )
    return int(done.stdout.split()[-1])


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="sets glibc's allocator")
def test_a_run_keeps_freed_memory_unless_the_user_set_the_allocator(tmp_path: Path) -> None:
    assert pages(tmp_path) < 2000
    assert pages(tmp_path, MALLOC_TRIM_THRESHOLD_="131072") > 50_000


@pytest.mark.slow
def test_it_changes_no_number(tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key not in (*WAIT_KEYS, "OMP_NUM_THREADS")}
    written = []
    for wait in ("passive", "auto"):
        settings = [*TINY, "trainer.threads=2", f"trainer.wait={wait}", f"outputs={tmp_path / wait}"]
        subprocess.run([sys.executable, "-m", "segexp", "train", *settings], env=environment, check=True)
        (run_dir,) = (tmp_path / wait / "default").iterdir()
        written.append(tables(run_dir))
        record = json.loads((run_dir / "run.json").read_text())
        assert record["device"]["threads"] == 2
        assert wait != "passive" or record["device"]["wait"].startswith("OMP_WAIT_POLICY=PASSIVE")
    assert written[0] == written[1]
