"""A sweep that is killed, loses a worker and holds a mistake ends, by repeating its line, with the table of one that
nothing ever happened to.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from messages import mentions
from timing import HANGS_S, within
from tiny import TINY, tables, wait_until

from segexp.records import read_run
from segexp.records.process import lock_holder
from segexp.sweep.local import epochs_done

pytestmark = pytest.mark.slow

ARMS = [(activation, loss) for activation in ("sigmoid", "arctan", "normal_cdf") for loss in ("dice", "bce")]
PAIRS = [{"activation": a, "loss": x, "seed": seed} for a, x in ARMS for seed in range(2)]


def sweep(outputs: Path, pairs: list[dict[str, Any]]) -> list[str]:
    """The line of a sweep of these runs."""
    listed = ",".join("{" + ",".join(f"{k}:{v}" for k, v in pair.items()) + "}" for pair in pairs)
    words = [w for w in TINY if not w.startswith("trainer.epochs")]
    more = ["trainer.epochs=4", f"sweep.pairs=[{listed}]", f"outputs={outputs}"]
    return [sys.executable, "-m", "segexp", "train", "-m", *words, *more]


def records(outputs: Path) -> dict[str, dict[str, Any]]:
    return {path.parent.name: read_run(path.parent) for path in sorted(outputs.glob("default/*/run.json"))}


def statuses(outputs: Path) -> list[str]:
    return sorted(record["status"] for record in records(outputs).values())


def kill_all(process: "subprocess.Popen[str]", outputs: Path) -> None:
    """SIGKILL to the sweep and everything that it began; a worker takes a moment to give its memory back."""
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    wait_until(lambda: not any(lock_holder(path.parent) for path in outputs.glob("default/*/lock")))


def begun(line: list[str]) -> "subprocess.Popen[str]":
    folder = Path(line[-1].partition("=")[2]).parent
    return subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True, cwd=folder
    )


def test_a_sweep_killed_twice_ends_as_if_nothing_had_happened(tmp_path: Path) -> None:
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    done = subprocess.run(sweep(undisturbed, PAIRS), capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert statuses(undisturbed) == ["done"] * 12

    # One more run is a mistake: it takes nothing along, this time or any other.
    line = sweep(disturbed, [*PAIRS, {"activation": "sigmoid", "loss": "dice", "seed": -1}])
    line.insert(-1, "hydra.launcher.retries=0")
    for finished in (2, 5):
        process = begun(line)
        wait_until(lambda finished=finished: statuses(disturbed).count("done") >= finished)  # type: ignore[misc]
        kill_all(process, disturbed)
    assert 5 <= statuses(disturbed).count("done") < 12

    # The third time the kernel kills one worker, as it does when memory runs out.
    process = begun(line)
    victim = wait_until(
        lambda: next(
            (
                record
                for name, record in records(disturbed).items()
                if f"process {record['pid']} " in lock_holder(disturbed / "default" / name)
                and epochs_done(disturbed / "default" / name)[0] < 2
            ),
            None,
        )
    )
    os.kill(victim["pid"], signal.SIGKILL)
    told, _ = process.communicate(timeout=HANGS_S)
    assert process.returncode == 1
    assert statuses(disturbed) == ["done"] * 11 + ["failed"], f"killed {victim['run_id']}\n{told}"
    (failed,) = (record for record in records(disturbed).values() if record["status"] == "failed")
    assert failed["run_id"] == victim["run_id"]
    assert mentions(failed["error"], "SIGKILL", "memory")
    failures = told.partition("not done:")[2]
    assert [line.split()[3] for line in failures.splitlines() if "out of memory?" in line] == ["failed"]
    assert mentions(failures, "seed=-1", "out of range")

    finish = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert finish.returncode == 1  # the mistake is still one
    assert finish.stdout.count("already done") == 11
    assert records(disturbed).keys() == records(undisturbed).keys()
    for name in records(undisturbed):
        assert tables(disturbed / "default" / name) == tables(undisturbed / "default" / name)


@pytest.mark.parametrize(("number", "told_so"), [
    (signal.SIGINT, "stopping: every run saves its epoch first"),
    (signal.SIGTERM, "stopping at once; finished epochs are kept"),
])  # fmt: skip
def test_a_signal_to_all_stops_a_sweep(number: int, told_so: str, tmp_path: Path) -> None:
    """Ctrl-C goes to every process of the sweep, and so does what `timeout` sends."""
    line = sweep(tmp_path / "outputs", PAIRS[:4])
    line = [w.replace("trainer.epochs=4", "trainer.epochs=60") for w in line]
    process = begun(line)
    wait_until(lambda: len(list(tmp_path.glob("outputs/default/*/epochs.csv"))) == 2)
    os.killpg(process.pid, number)
    told, _ = process.communicate(timeout=HANGS_S)
    assert process.returncode == 130, told
    assert told_so in told
    assert mentions(told, "2 interrupted", "2 pending")
    assert f"  segexp resume {tmp_path}/outputs/default\n" in told
    assert statuses(tmp_path / "outputs") == ["interrupted"] * 2
    for name, record in records(tmp_path / "outputs").items():
        rows = (tmp_path / "outputs" / "default" / name / "epochs.csv").read_text().splitlines()
        assert len(rows) - 1 == record["n_rows_expected"]["epochs"]
        assert not (tmp_path / "outputs" / "default" / name / "lock").exists()


def test_the_same_sweep_twice_at_once_makes_every_run_once(tmp_path: Path) -> None:
    """As two people do, or two hosts that share the folder: each waits for what the other is at."""
    line = sweep(tmp_path / "outputs", PAIRS[:5])
    both = [begun(line), begun(line)]
    told = [process.communicate(timeout=HANGS_S)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    assert all("5 done" in text for text in told)
    assert [record["attempts"] for record in records(tmp_path / "outputs").values()] == [1] * 5


@pytest.mark.alone
def test_a_hundred_runs_cost_little_beyond_their_training(tmp_path: Path) -> None:
    """Half a second each, of a machine that is not slow, for planning, a process, and its end; training is what a run
    spends between them."""
    line = sweep(
        tmp_path / "outputs", [{"activation": a, "loss": x, "seed": s} for a, x in ARMS[:4] for s in range(25)]
    )
    line = [w.replace("trainer.epochs=4", "trainer.epochs=1") for w in line]
    line.insert(-1, "hydra.launcher.n_jobs=2")
    line.insert(-1, "hydra.launcher.threads=1")
    started = time.monotonic()
    done = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path, check=False)
    wall = time.monotonic() - started
    assert done.returncode == 0, done.stdout + done.stderr
    assert statuses(tmp_path / "outputs") == ["done"] * 100
    inside = sum(record["seconds"] for record in records(tmp_path / "outputs").values())
    overhead = (2 * wall - inside) / 100
    print(f"{wall:.1f} s, {inside:.1f} s of runs in 2 slots: {overhead:.2f} s of overhead per run")
    assert within(overhead, 0.5, at_once=2)
