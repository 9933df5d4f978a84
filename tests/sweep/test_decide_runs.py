"""`segexp decide` with real runs: killed at any moment and repeated, with tuned rates, and through other launchers."""

import csv
import importlib.metadata
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from slurm_server import slurm_server, why_not
from timing import HANGS_S
from tiny import TINY, tables, wait_until

from segexp import cli
from segexp.config import LAUNCHERS
from segexp.config.arm import TUNED_FILE, read_tuned
from segexp.config.launchers import ENGINES
from segexp.records.decision import read_decision

pytestmark = pytest.mark.slow

STUDY = Path("outputs/question")
# So wide a rope that differences are open at the first look, and negligible at a later one.
QUESTION = ("activation=sigmoid,arctan", "loss=dice", "study.name=question", "outputs=outputs", "--looks", "3,4,5")
WIDE = ("--rope", "50")

DRIVER = """
import json, os, signal, sys
from segexp import cli
from segexp.sweep import decide

words, look, written = json.loads(sys.argv[1])
write = decide.write_decision

def write_or_die(decision):
    die = len(decision.looks) == look
    if written or not die:
        write(decision)
    if die:
        os.kill(os.getpid(), signal.SIGKILL)

decide.write_decision = write_or_die
sys.exit(cli.main(words))
"""


def start(folder: Path, *words: str, die_at: int = -1, written: bool = False) -> subprocess.Popen[str]:
    """The command in a process, which kills itself before or after the record of a look."""
    asked = json.dumps([["decide", *TINY, *QUESTION, *WIDE, *words], die_at, written])
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-c", DRIVER, asked]
    streams: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=folder, start_new_session=True, **streams)


def end(process: subprocess.Popen[str], code: int = 0) -> str:
    said, _ = process.communicate(timeout=HANGS_S)
    assert process.returncode == code, said
    return said


def n_done(study: Path) -> int:
    return sum(json.loads(path.read_text())["status"] == "done" for path in study.glob("*/run.json"))


def kill(process: subprocess.Popen[str]) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def contents(folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, str]], dict[str, dict[str, bytes]]]:
    """decision.json, runs.csv and the tables of the runs, without what time it was and how long it took."""
    study = folder / STUDY
    decision = read_decision(study)
    assert decision is not None
    entries = [
        {key: value for key, value in entry.items() if key not in ("created", "command", "date", "hours", "sha256")}
        for entry in (decision.design, *decision.looks)
    ]
    assert cli.main(["collect", str(study), "-o", str(folder / "tables")]) == 0
    with (folder / "tables" / "runs.csv").open() as file:
        rows = list(csv.DictReader(file))
    other = {"started", "finished", "seconds", "images_per_s", "peak_mem_mib", "attempts", "config_outputs"}
    # Whoever commits meanwhile disturbs no run.
    rows = [{key: cell for key, cell in row.items() if key not in other and "git" not in key} for row in rows]
    return entries, rows, {path.parent.name: tables(path.parent) for path in study.glob("*/run.json")}


@pytest.fixture(scope="module")
def undisturbed(made_once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    return made_once("undisturbed", lambda folder: print(end(start(folder))))


def test_killed_at_any_moment_and_repeated(tmp_path: Path, undisturbed: Path) -> None:
    """In training, between it and a look, between a look and the next training, and again."""
    study = tmp_path / STUDY
    process = start(tmp_path)
    wait_until(lambda: n_done(study) >= 2)
    kill(process)
    end(start(tmp_path, die_at=1), -signal.SIGKILL)
    assert n_done(study) == 6
    end(start(tmp_path, die_at=1, written=True), -signal.SIGKILL)
    end(start(tmp_path, die_at=2), -signal.SIGKILL)
    said = end(start(tmp_path))
    print(said)
    ours, theirs = contents(tmp_path), contents(undisturbed)
    assert len(theirs[0]) >= 3, "the design and two looks"
    for found, expected in zip(ours, theirs, strict=True):
        assert found == expected


def test_tuned_rates_first(tmp_path: Path) -> None:
    """The search is not repeated, and each arm has its rate; a command that is killed in the search goes on with it."""
    search, study = tmp_path / "outputs/question-tuning", tmp_path / STUDY
    process = start(tmp_path, "--tune")
    wait_until(lambda: n_done(search) >= 3)
    kill(process)
    assert not study.exists()
    end(start(tmp_path, "--tune"))
    entries, rows, made = contents(tmp_path)
    assert n_done(search) == 20, "5 rates, 2 seeds, 2 arms"
    rates, _ = read_tuned(search / TUNED_FILE)
    assert len(rates) == 2
    for row in rows:
        assert float(row["config_optimizer_lr"]) == rates["native", row["activation"], "dice"]
    end(start(tmp_path, "--tune"))
    assert contents(tmp_path) == (entries, rows, made)
    assert n_done(search) == 20


# Other launchers


@pytest.fixture(scope="module")
def slurm() -> Iterator[None]:
    if why_not():
        pytest.skip(why_not())
    with slurm_server() as conf, pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(conf))
        yield


def check_launcher(name: str, folder: Path, undisturbed: Path, *options: str) -> None:
    """The same decision as with the launcher that needs no other software."""
    try:
        importlib.metadata.version(ENGINES[name].distribution)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"not installed: segexp[{LAUNCHERS[name]}]")
    end(start(folder, f"hydra/launcher={name}", *options))
    entries, _, made = contents(folder)
    expected, _, runs = contents(undisturbed)
    assert entries == expected
    assert made == runs


@pytest.mark.usefixtures("slurm")
def test_slurm(tmp_path: Path, undisturbed: Path) -> None:
    options = ("hydra.launcher.timeout_min=10", "hydra.launcher.cpus_per_task=1")
    check_launcher("submitit_slurm", tmp_path, undisturbed, *options)


def test_ray(tmp_path: Path, undisturbed: Path) -> None:
    check_launcher("ray", tmp_path, undisturbed)
