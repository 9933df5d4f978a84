"""The process of a tracker: it follows a run by its files, until stdin closes with the end of the run's process.

The function of a tool opens a run there, and returns the last epoch that the tool holds of it and a function that sends
later ones; at the end also the status of run.json (running where the process died, "" before) and PNG files."""

import os
import re
import shutil
import struct
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from segexp.errors import first_line
from segexp.records import COLUMNS, text_rows, write_atomic
from segexp.records.files import shown_command
from segexp.records.runs import Run, run_at
from segexp.tracking import FOLDER

Epochs = dict[int, dict[str, float]]  # train/loss, val/dice, hidden/<call site>/dead_output; at the end final/dice
Tool = tuple[int, Callable[[Epochs, str, list[Path]], None]]


def csv(run: Run, tags: Mapping[str, str]) -> Tool:
    """RUN_DIR/tracking/metrics.csv, written whole each time."""
    lines = ["epoch,name,value\n"]

    def send(epochs: Epochs, status: str, pictures: list[Path]) -> None:
        lines.extend(f"{epoch},{name},{value!r}\n" for epoch, of in epochs.items() for name, value in of.items())
        write_atomic(run.path / FOLDER / "metrics.csv", "".join(lines))

    return 0, send


def tensorboard(run: Run, tags: Mapping[str, str]) -> Tool:
    """RUN_DIR/tracking/tensorboard. Every attempt writes all epochs, in place of the files of the attempt before."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.plugins.hparams.summary_v2 import hparams_pb
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    for earlier in (run.path / FOLDER / "tensorboard").glob("events.out.tfevents.*"):
        earlier.unlink()
    file = EventFileWriter(str(run.path / FOLDER / "tensorboard"))

    def add(epoch: int, **content: Any) -> None:
        file.add_event(Event(wall_time=time.time(), step=epoch, **content))

    def send(epochs: Epochs, status: str, pictures: list[Path]) -> None:
        for epoch, scalars in epochs.items():
            add(epoch, summary={"value": [{"tag": name, "simple_value": v} for name, v in scalars.items()]})
        for path in pictures:
            width, height = struct.unpack(">II", (data := path.read_bytes())[16:24])  # of a PNG
            image = {"encoded_image_string": data, "width": width, "height": height, "colorspace": 4}
            add(max(epochs), summary={"value": [{"tag": path.stem, "image": image}]})
        file.flush()

    add(0, session_log={"status": "START"})  # a TensorBoard that has read the earlier files forgets their points
    plain = {k: v if isinstance(v, bool | int | float) else str(v) for k, v in {**run.config, **tags}.items()}
    add(0, summary=hparams_pb(plain, trial_id=tags["id"]))
    return 0, send


def mlflow(run: Run, tags: Mapping[str, str]) -> Tool:
    """The store of MLFLOW_TRACKING_URI, else OUTPUTS/mlflow.db. Every attempt continues the run with its segexp.id."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    if own_store := not os.environ.get("MLFLOW_TRACKING_URI"):
        os.chdir(run.path.parent.parent)  # where MLflow makes mlruns/, for pictures
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{Path.cwd().as_posix()}/mlflow.db"
    import mlflow

    if own_store and not Path("mlflow.db").exists():  # made in many steps, which no other process may see or break off
        made = Path(f".mlflow-{os.getpid()}.db")
        mlflow.MlflowClient(f"sqlite:///{made}").search_experiments()
        with suppress(FileExistsError):
            os.link(made, "mlflow.db")
        made.unlink()
    mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME") or run.study)
    found = mlflow.search_runs(filter_string=f"tags.`segexp.id` = '{tags['id']}'", output_format="list")
    own = {"run_id": found[0].info.run_id} if found else {"run_name": run.path.name}
    opened = mlflow.start_run(**own, tags={f"segexp.{name}": value for name, value in tags.items()})
    mlflow.log_params({} if found else dict(run.config))
    history = mlflow.MlflowClient().get_metric_history(opened.info.run_id, "train/loss")

    def send(epochs: Epochs, status: str, pictures: list[Path]) -> None:
        for epoch, scalars in epochs.items():
            mlflow.log_metrics(scalars, step=epoch)
        for path in pictures:
            mlflow.log_artifact(str(path))
        if status:
            mlflow.set_tag("segexp.status", status)
            mlflow.end_run({"done": "FINISHED", "failed": "FAILED", "diverged": "FAILED"}.get(status, "KILLED"))

    return max((metric.step for metric in history), default=0), send


def wandb(run: Run, tags: Mapping[str, str]) -> Tool:
    """RUN_DIR/tracking/wandb, and online with WANDB_MODE=online, where every attempt continues the run. Offline, every
    attempt writes all epochs, in place of the attempt before."""
    usual = {"MODE": "offline", "PROJECT": re.sub(r"[/\\#?%:]", "_", run.study), "RUN_GROUP": tags["arm"][-128:]}
    usual |= {"NAME": run.path.name[-128:], "CONSOLE": "off", "ERROR_REPORTING": "false", "SYMLINK": "false"}
    less = "SILENT DISABLE_GIT DISABLE_CODE X_DISABLE_STATS X_DISABLE_META X_DISABLE_MACHINE_INFO"
    usual |= dict.fromkeys(less.split(), "true") | {"X_SAVE_REQUIREMENTS": "false"}
    os.environ.update({f"WANDB_{k}": v for k, v in usual.items() if f"WANDB_{k}" not in os.environ})
    import wandb

    for earlier in (run.path / FOLDER / "wandb").glob(f"offline-run-*-{tags['id']}"):
        shutil.rmtree(earlier)
    config = {**run.config, **{f"segexp.{name}": value for name, value in tags.items()}}
    opened = wandb.init(id=tags["id"], dir=run.path / FOLDER, resume="allow", config=config, allow_val_change=True)

    def send(epochs: Epochs, status: str, pictures: list[Path]) -> None:
        for epoch, scalars in epochs.items():
            images = {path.stem: wandb.Image(str(path)) for path in pictures if epoch == max(epochs)}
            opened.log({**scalars, **images}, step=epoch)
        if status:
            opened.summary["status"] = status
            opened.finish(exit_code=0 if status == "done" else 1)

    return max(opened.starting_step - 1, 0), send


def main() -> None:
    """Entry of the process. The last line that it prints says what failed."""
    tools = {tool.__name__: tool for tool in (csv, tensorboard, mlflow, wandb)}
    (until_end := threading.Thread(target=sys.stdin.buffer.read, daemon=True)).start()

    def outlive() -> None:
        """Leave, if the run's process was killed and cannot stop one that waits for a server."""
        until_end.join()
        time.sleep(float(sys.argv[3]) + 5)
        os._exit(1)

    threading.Thread(target=outlive, daemon=True).start()
    try:
        follow(Path(sys.argv[1]), tools[sys.argv[2]], until_end)
    except BaseException as error:
        whole = [traceback.format_exc(), f"{type(error).__name__}: {first_line(error)}"]
        lines = [re.sub(r"\S{9999,}", "...", text) for text in whole]  # a server may have answered with megabytes
        with suppress(OSError):  # the disk may be full
            print(*shown_command(lines), sep="\n", file=sys.stderr, flush=True)
        os._exit(1)  # without what the tool would wait for


def follow(run_dir: Path, tool: Callable[[Run, Mapping[str, str]], Tool], until_end: threading.Thread) -> None:
    """Send every epoch that the tool does not hold, and the end once the thread ``until_end`` has ended."""
    run = run_at(run_dir)
    arm = [run.config[f"{group}.name"] for group in ("hidden_activation", "activation", "loss")]
    begun = re.sub("[^0-9]", "", run.record["begun"])[:14]  # the same in all attempts
    tags = {"id": f"{run.run_id}-{begun}", "run_id": run.run_id, "identity": run.identity}
    tags |= {"study": run.study, "arm": "-".join([*arm, run.record["config_id"]]), "seed": str(run.config["seed"])}
    (sent, send), ended = tool(run, tags), False
    while not ended:
        ended = not until_end.is_alive()
        if new := scalars_of(run_dir, sent):
            send(new, "", [])
            sent = max(new)
        until_end.join(2)
    record = run_at(run_dir).record
    scores = {f"final/{key}": value for key, value in record.get("summary", {}).items()}
    scores |= {f"final/hidden/{key}": value for key, value in record.get("diagnostics", {}).items()}
    pictures = [path for name in ("samples", "diagnostics") if (path := run_dir / f"{name}.png").exists()]
    send({sent: {key: value for key, value in scores.items() if isinstance(value, float)}}, record["status"], pictures)


def scalars_of(run_dir: Path, after: int) -> Epochs:
    """The scalars of epochs later than ``after``: from epochs.csv, and from diagnostics.csv (training images)."""
    epochs: Epochs = {}
    numbers = [name for name, kind in (COLUMNS["epochs"] | COLUMNS["diagnostics"]).items() if kind is float]
    tables = {name: run_dir / f"{name}.csv" for name in ("epochs", "diagnostics")}
    rows = [row for name, path in tables.items() if path.exists() for row in text_rows(path, name)]
    for row in rows:  # diagnostics.csv may be an epoch ahead
        epoch, part = int(row["epoch"]), row.get("split") or f"hidden/{row['site']}"
        if epoch > after and ("split" in row or (epoch in epochs and row["probe"] == "train")):
            epochs.setdefault(epoch, {}).update({f"{part}/{n}": float(row[n]) for n in numbers if row.get(n)})
    return epochs
