"""A sweep through Slurm and Ray leaves the run directories that the same runs leave when made directly."""

import importlib.metadata
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import pytest
from messages import mentions
from slurm_server import slurm_server, why_not
from timing import HANGS_S
from tiny import TINY, tables, tiny_run, wait_until

from segexp.config import LAUNCHERS
from segexp.config.launchers import ENGINES
from segexp.records import read_run
from segexp.records.process import lock_holder
from segexp.registry import plugins

pytestmark = pytest.mark.slow

GOOD = [(f"loss={loss}", f"seed={seed}") for loss, seed in (("dice", 0), ("ce", 0), ("ce", 1))]
DIVERGES = ("loss=mse", "optimizer=sgd", "optimizer.lr=1e30")
REFUSED = ("dataset.number=3",)
LONG = ("trainer.epochs=20", "dataset.number=48")

DRIVER = """
import json, sys
from segexp.commands import log_to_terminal
from segexp.config.compose import compose_raw, hydra_session
from segexp.registry import plugins
from segexp.sweep.engines import launch_through

engine, jobs, wait, given = json.loads(sys.argv[1])
plugins.use(given)
log_to_terminal()
with hydra_session() as extra:
    launch_through(compose_raw([*engine, *jobs[0]]), jobs, extra, wait=wait)
"""


def installed(name: str) -> None:
    """Skip unless the extra of this engine is installed."""
    engine = ENGINES[name]
    try:
        importlib.metadata.version(engine.distribution)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"not installed: segexp[{LAUNCHERS[name]}]")


def start(
    outputs: str,
    engine: Sequence[str],
    runs: Sequence[Sequence[str]],
    folder: Path,
    wait: bool = True,
    given: Sequence[str] = (),
) -> subprocess.Popen[str]:
    """A process that launches these runs, in ``folder``, with outputs relative to it."""
    jobs = [[*TINY, f"outputs={outputs}", *run] for run in runs]
    command = [sys.executable, "-c", DRIVER, json.dumps([engine, jobs, wait, given])]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def end(driver: subprocess.Popen[str], within: float = HANGS_S) -> str:
    """Its stderr, once it has ended well."""
    out, told = driver.communicate(timeout=within)
    assert driver.returncode == 0, out + told
    return told


def by_name(outputs: Path) -> dict[str, Path]:
    return {p.parent.name: p.parent for p in outputs.glob("default/*/run.json")}


def kill_owner(outputs: Path, run: str = "*", unless: int = 0) -> int:
    """SIGKILL to the process of a run that has a checkpoint, once it is another than ``unless``; returns its pid."""

    def owner() -> int:
        for lock in outputs.glob(f"default/{run}/lock"):
            holder = lock_holder(lock.parent)  # "" while a process writes or releases its lock
            pid = int(holder.split()[1]) if holder else 0
            if (lock.parent / "checkpoints/last.pt").exists() and pid != unless:
                return pid
        return 0

    pid: int = wait_until(owner)
    os.kill(pid, signal.SIGKILL)
    return pid


def continued(run_dir: Path) -> int:
    """How often the run was taken up again."""
    return (run_dir / "log.txt").read_text().count("continuing after epoch")


@pytest.fixture(scope="module")
def direct(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    """Tables of the good runs, made here, one after the other."""
    outputs = tmp_path_factory.mktemp("direct")
    made = [tiny_run(outputs, *run) for run in GOOD]
    return {outcome.run_dir.name: tables(outcome.run_dir) for outcome in made}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Tables of the long run."""
    return tables(tiny_run(tmp_path_factory.mktemp("undisturbed"), *LONG).run_dir)


def check(found: dict[str, Path], direct: dict[str, dict[str, bytes]]) -> None:
    """The good runs are what they are when made directly; the diverging one says so; of the refused there is none."""
    assert {name: tables(found[name]) for name in direct} == direct
    others = {name: read_run(folder)["status"] for name, folder in found.items() if name not in direct}
    assert list(others.values()) == ["diverged"]
    assert "-mse-" in next(iter(others))


def check_plugin(engine: Sequence[str], folder: Path) -> None:
    """A plugin that the command names by a relative path is loaded in the processes of the runs, with its helper."""
    (folder / "helper.py").write_text("BY = 2")
    (folder / "parts.py").write_text(
        "import helper\nfrom segexp.plugin import hidden_activation\n"
        "@hidden_activation\ndef twice(x): return helper.BY * x.relu()\n"
    )
    run = ("hidden_activation=twice", "trainer.epochs=1")
    driver = start("out", engine, [run], folder, given=["parts.py"])
    print(end(driver))
    (made,) = by_name(folder / "out").values()
    assert read_run(made)["plugins"]["parts"]["entries"] == ["hidden_activation=twice"]
    plugins.use([folder / "parts.py"])
    try:
        assert tables(made) == tables(tiny_run(folder / "direct", *run).run_dir)
    finally:
        plugins.use([])


# Slurm


@pytest.fixture(scope="module")
def slurm() -> Iterator[None]:
    installed("submitit_slurm")
    if why_not():
        pytest.skip(why_not())
    with slurm_server() as conf, pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(conf))
        yield


def ask(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def states(number: str) -> list[str]:
    """State of every job of an array, by its place in it."""
    lines = ask("squeue", "-h", "--states=all", "--jobs", number, "--array", "--format=%K %T").splitlines()
    return [line.split()[1] for line in sorted(lines, key=lambda line: int(line.split()[0]))]


SLURM = ("hydra/launcher=submitit_slurm", "hydra.launcher.timeout_min=10", "hydra.launcher.cpus_per_task=1")


@pytest.mark.usefixtures("slurm")
def test_slurm(tmp_path: Path, direct: dict[str, dict[str, bytes]]) -> None:
    """One array, submitted without waiting; a run that is not done is FAILED, and takes none along."""
    told = end(start("out", SLURM, [*GOOD[:2], DIVERGES, REFUSED, *GOOD[2:]], tmp_path, wait=False))
    assert not [p for p in by_name(tmp_path / "out").values() if read_run(p)["status"] != "running"]
    (line,) = told.splitlines()
    number = line.split("submitted to Slurm: ")[1].split(";")[0]
    queue = ask("squeue", "--array")
    assert len(queue.splitlines()) == 6, queue
    wait_until(lambda: not ask("squeue", "-h"))
    jobs = ask("squeue", "--states=all", "--array", "--jobs", number, "--format=%i %j %P %T %M")
    print(queue, jobs, sep="\n")
    assert states(number) == ["COMPLETED"] * 2 + ["FAILED"] * 2 + ["COMPLETED"]
    check(by_name(tmp_path / "out"), direct)
    logs = "".join(p.read_text() for p in (tmp_path / "out/default/.sweeps/slurm").glob(f"{number}_3/*.err"))
    assert mentions(logs, "refused", "split.fractions")


@pytest.mark.usefixtures("slurm")
def test_slurm_with_a_plugin(tmp_path: Path) -> None:
    check_plugin(SLURM, tmp_path)


def preempt() -> None:
    """A job of a higher tier wants the whole node: SIGTERM, a grace time, and Slurm requeues."""
    ask("sbatch", "--partition=urgent", "--cpus-per-task=2", "--output=/dev/null", "--wrap=sleep 1")


def signal_usr2() -> None:
    """What Slurm sends before the time limit; submitit requeues."""
    ask("scancel", "--signal=USR2", "--name=segexp")


@pytest.mark.usefixtures("slurm")
def test_slurm_requeues_a_run_that_goes_on_where_it_was(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    driver = start("out", SLURM, [LONG], tmp_path)
    wait_until(lambda: list(tmp_path.glob("out/default/*/epochs.csv")))
    (run_dir,) = by_name(tmp_path / "out").values()
    preempt()
    wait_until(lambda: continued(run_dir) == 1)
    signal_usr2()
    told = end(driver)
    number = told.split("submitted to Slurm: ")[1].split(";")[0]
    record, log = ask("scontrol", "show", "job", number), (run_dir / "log.txt").read_text()
    print(record, log, sep="\n")
    assert " Restarts=2 " in record
    assert "JobState=COMPLETED" in record
    assert continued(run_dir) == 2
    assert log.count("epoch 1/") == 1
    assert tables(run_dir) == undisturbed


# Ray


def most_at_once(run_dirs: Sequence[Path]) -> int:
    """How many runs were under way at the same time."""
    records = [r for r in map(read_run, run_dirs) if r["finished"]]
    moments = [
        (datetime.fromisoformat(r[key]), step) for r in records for key, step in (("started", 1), ("finished", -1))
    ]
    running = most = 0
    for _, step in sorted(moments):
        running += step
        most = max(most, running)
    return most


def family(pid: int) -> set[int]:
    """A process and all that descend from it."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    found, size = {pid}, 0
    while len(found) > size:
        size = len(found)
        found |= {child for child, parent in parents.items() if parent in found}
    return found


def listening(pids: set[int]) -> set[str]:
    """Addresses, as /proc writes them, on which these processes accept connections."""
    sockets = set()
    for pid in pids:
        with suppress(OSError):
            sockets |= {os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir()}
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    return {row[1].split(":")[0] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in sockets}


LOCALHOST = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
"""127.0.0.1, the same within IPv6, and ::1."""


def test_ray_with_a_plugin(tmp_path: Path) -> None:
    installed("ray")
    check_plugin(["hydra/launcher=ray", "hydra.launcher.ray.init.num_cpus=2"], tmp_path)


def test_ray(tmp_path: Path, direct: dict[str, dict[str, bytes]]) -> None:
    """Two runs share a (pretended) GPU; one is killed twice: Ray begins it again once, then it is lost alone."""
    installed("ray")
    ray = "hydra.launcher.ray"
    engine = ["hydra/launcher=ray", f"{ray}.init.num_cpus=6", f"{ray}.init.num_gpus=1", f"{ray}.remote.num_gpus=0.5"]
    killed_twice = (*LONG, "trainer.epochs=5000")  # seconds pass before there is a checkpoint to continue from
    driver = start("out", engine, [killed_twice, *GOOD[:2], DIVERGES, REFUSED, GOOD[2]], tmp_path)
    first = kill_owner(tmp_path / "out", "*-dice_ce-*")
    (killed,) = tmp_path.glob("out/default/*-dice_ce-*")
    wait_until(lambda: continued(killed) == 1)
    assert "0100007F" in listening(family(driver.pid)) <= LOCALHOST
    kill_owner(tmp_path / "out", "*-dice_ce-*", unless=first)
    told = end(driver)
    assert told.count("WorkerCrashedError") == 1
    found = by_name(tmp_path / "out")
    assert most_at_once(list(found.values())) <= 2
    assert read_run(killed)["status"] == "running"
    check({name: p for name, p in found.items() if p != killed}, direct)
