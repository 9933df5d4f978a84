"""Every tool read back by its own reader: a whole run, one that is killed and continued, servers that answer or not."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from timing import within
from tiny import TINY, tables, wait_until
from tracked import events_of, in_csv, in_mlflow, in_tensorboard, in_wandb, mlflow_runs, wandb_records

from segexp.config import TRACKERS
from segexp.records import read_run, text_rows

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # of libraries that are not ours

if missing := [name for name in ("mlflow", "tensorboard", "wandb") if find_spec(name) is None]:
    pytest.skip(f"needs {', '.join(missing)}", allow_module_level=True)  # not imported: that takes seconds

ALL = f"tracking=[{','.join(TRACKERS)}]"


TRAIN = """
import sys
import segexp.tracking
from segexp.cli import main
segexp.tracking.LIMIT_SECONDS = float(sys.argv[1])
sys.exit(main(["train", *sys.argv[2:]]))
"""


def train(outputs: Path, *words: str, seconds: float = 240, **environment: str) -> "subprocess.Popen[str]":
    """`segexp train`, which waits at the end as long as a busy machine may need to make a store of MLflow."""
    command = [sys.executable, "-c", TRAIN, str(seconds), *TINY, f"outputs={outputs}", *words]
    streams: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=outputs.parent, env=os.environ | environment, **streams)


def ended(*processes: "subprocess.Popen[str]", code: int = 0) -> None:
    for process in processes:
        _, errors = process.communicate()
        assert process.returncode == code, errors


def trained(outputs: Path, *words: str, seconds: float = 240, code: int = 0, **environment: str) -> Path:
    ended(train(outputs, *words, seconds=seconds, **environment), code=code)
    (run_dir,) = (path.parent for path in outputs.glob("*/*/run.json"))
    return run_dir


def store(outputs: Path) -> str:
    return f"sqlite:///{outputs}/mlflow.db"


def points_in(run_dir: Path) -> dict[str, Any]:
    """What each tool holds of a run that was tracked by all of them."""
    held = {"tensorboard": in_tensorboard(run_dir), "mlflow": in_mlflow(store(run_dir.parent.parent))}
    return {"csv": in_csv(run_dir), **held, "wandb": in_wandb(run_dir)}


def test_all_four_hold_the_same_numbers_and_leave_the_tables_as_they_are(tmp_path: Path):
    run_dir = trained(tmp_path / "with", ALL)
    assert tables(run_dir) == tables(trained(tmp_path / "without"))
    assert read_run(run_dir)["warnings"] == []
    first, *others = points_in(run_dir).values()
    rows = text_rows(run_dir / "epochs.csv", "epochs")
    assert first["val/dice"] == [(int(row["epoch"]), float(row["dice"])) for row in rows if row["split"] == "val"]
    assert first["final/dice"] == [(2, read_run(run_dir)["summary"]["dice"])]
    for points in others:
        assert {
            name: [(epoch, pytest.approx(value, rel=1e-6)) for epoch, value in of] for name, of in points.items()
        } == first
    events = events_of(run_dir)
    assert set(events.Tags()["images"]) == {"samples", "diagnostics"}
    assert events.PluginTagToContent("hparams")
    client, (run,) = mlflow_runs(store(run_dir.parent.parent))
    assert (run.info.status, run.info.run_name) == ("FINISHED", run_dir.name)
    assert client.get_experiment(run.info.experiment_id).name == "default"
    assert {name: run.data.tags[f"segexp.{name}"] for name in ("study", "seed", "run_id", "status")} == {
        "study": "default", "seed": "0", "run_id": run_dir.name[-8:], "status": "done",
    }  # fmt: skip
    assert run.data.params["trainer.epochs"] == "2"
    assert {file.path for file in client.list_artifacts(run.info.run_id)} == {"samples.png", "diagnostics.png"}
    assert {path.name for path in tmp_path.iterdir()} == {"with", "without"}  # no mlruns/ where the command was typed
    kinds = {record.WhichOneof("record_type"): record for record in wandb_records(run_dir)}
    assert (kinds["run"].run.project, kinds["run"].run.display_name) == ("default", run_dir.name)
    assert kinds["exit"].exit.exit_code == 0
    assert not (run_dir / "tracking" / "wandb" / "latest-run").exists()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_that_is_killed_and_continued_is_one_run_without_doubled_epochs(number: int, tmp_path: Path):
    words = (ALL, "trainer.epochs=12", "dataset.number=60", "study.name=two words")
    process = train(tmp_path / "out", *words)
    wait_until(lambda: list((tmp_path / "out").glob("*/*/tracking/metrics.csv")))
    process.send_signal(number)
    process.communicate()
    (run_dir,) = (tmp_path / "out").glob("*/*-*")
    done = len(text_rows(run_dir / "epochs.csv", "epochs")) // 2
    assert 0 < done < 12
    uri = store(tmp_path / "out")
    wait_until((tmp_path / "out" / "mlflow.db").exists)
    (before,) = wait_until(lambda: [r for r in mlflow_runs(uri)[1] if r.info.status == "KILLED"])
    assert before.data.tags["segexp.status"] == ("running" if number == signal.SIGKILL else "interrupted")
    run_dir = trained(tmp_path / "out", *words)
    for name, points in points_in(run_dir).items():
        assert [epoch for epoch, _ in points["train/loss"]] == list(range(1, 13)), name
        assert len(points["final/dice"]) == 1, name
    (run,) = mlflow_runs(uri)[1]
    assert (run.info.run_id, run.info.status) == (before.info.run_id, "FINISHED")
    assert read_run(run_dir)["warnings"] == []


def test_a_diverged_run_has_failed_in_every_tool(tmp_path: Path):
    run_dir = trained(tmp_path / "out", ALL, "optimizer=sgd", "optimizer.lr=1e30", code=1)
    assert read_run(run_dir)["status"] == "diverged"
    (run,) = mlflow_runs(store(tmp_path / "out"))[1]
    assert (run.info.status, run.data.tags["segexp.status"]) == ("FAILED", "diverged")
    (end,) = (r.exit for r in wandb_records(run_dir) if r.WhichOneof("record_type") == "exit")
    assert end.exit_code == 1


def test_two_runs_make_one_new_store_at_once(tmp_path: Path):
    ended(*(train(tmp_path / "out", "tracking=mlflow", f"seed={seed}") for seed in (0, 1)))
    runs = mlflow_runs(store(tmp_path / "out"))[1]
    found = sorted((run.data.tags["segexp.seed"], run.info.status) for run in runs)
    assert found == [("0", "FINISHED"), ("1", "FINISHED")]
    for path in (tmp_path / "out").glob("*/*/run.json"):
        assert json.loads(path.read_text())["warnings"] == []


def test_the_runs_of_a_sweep_are_tracked(tmp_path: Path):
    ended(train(tmp_path / "out", "-m", "seed=0,1", "tracking=[csv,tensorboard]", "hydra.launcher.n_jobs=2"))
    run_dirs = [path.parent for path in (tmp_path / "out").glob("*/*/run.json")]
    assert len(run_dirs) == 2
    for run_dir in run_dirs:
        assert in_csv(run_dir).keys() == in_tensorboard(run_dir).keys()


def free_port() -> int:
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def mlflow_server(folder: Path) -> Iterator[str]:
    port = free_port()
    words = f"server --host 127.0.0.1 --port {port} --workers 1 --backend-store-uri sqlite:///{folder}/server.db"
    command = [sys.executable, "-m", "mlflow", *words.split(), "--artifacts-destination", str(folder / "artifacts")]
    log = (folder / "server.log").open("wb")
    server = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, start_new_session=True)

    def answers() -> bool:
        try:
            return bool(urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).status == 200)
        except OSError:
            return False

    try:
        wait_until(answers)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
        log.close()


def test_the_server_of_mlflow_holds_the_run(tmp_path: Path):
    with mlflow_server(tmp_path) as uri:
        run_dir = trained(tmp_path / "out", "tracking=mlflow", MLFLOW_TRACKING_URI=uri, MLFLOW_EXPERIMENT_NAME="mine")
        client, (run,) = mlflow_runs(uri)
        assert client.get_experiment(run.info.experiment_id).name == "mine"
        assert run.info.status == "FINISHED"
        assert in_mlflow(uri)["final/dice"] == [(2, read_run(run_dir)["summary"]["dice"])]
        assert {file.path for file in client.list_artifacts(run.info.run_id)} == {"samples.png", "diagnostics.png"}
        assert not (tmp_path / "out" / "mlflow.db").exists()


@pytest.mark.parametrize("tool", ["mlflow", "wandb"])
@pytest.mark.parametrize("server", ["gone", "silent"])
def test_a_server_that_does_not_answer_costs_a_wait_at_the_end(tool: str, server: str, tmp_path: Path):
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        if server == "silent":
            listener.listen()  # it accepts, and never answers
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        keys: dict[str, Any] = {"WANDB_BASE_URL": url, "WANDB_MODE": "online", "WANDB_API_KEY": "0123456789" * 4}
        keys |= {"MLFLOW_TRACKING_URI": url.replace("//", "//me:my-password@")}
        begun = time.monotonic()
        run_dir = trained(tmp_path / "out", f"tracking={tool}", seconds=5, **keys)
        assert within(time.monotonic() - begun, 60)
    record = read_run(run_dir)
    (warning,) = record["warnings"]
    assert record["status"] == "done"
    assert warning.startswith(
        f"tracking={tool} failed, without effect on the run (tracking/{tool}.log): no answer in 5 s"
    )
    assert "my-password" not in warning + (run_dir / "tracking" / f"{tool}.log").read_text()
