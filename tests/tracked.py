"""What each tool holds of runs, read by the tool's own reader: name -> [(epoch, value)] in the order of arrival."""

import importlib
import io
import json
import struct
from collections import defaultdict
from pathlib import Path
from typing import Any

Points = dict[str, list[tuple[int, float]]]


def in_csv(run_dir: Path) -> Points:
    points: Points = defaultdict(list)
    header, *rows = (run_dir / "tracking" / "metrics.csv").read_text().splitlines()
    assert header == "epoch,name,value"
    for epoch, name, value in (row.split(",") for row in rows):
        points[name].append((int(epoch), float(value)))
    return dict(points)


def events_of(run_dir: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run_dir / "tracking" / "tensorboard"))
    events.Reload()
    return events


def in_tensorboard(run_dir: Path) -> Points:
    events = events_of(run_dir)
    return {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}


def mlflow_runs(uri: str) -> tuple[Any, list[Any]]:
    """The client, and every run of the store."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    return client, list(client.search_runs([e.experiment_id for e in client.search_experiments()]))


def in_mlflow(uri: str, number: int = 0) -> Points:
    client, runs = mlflow_runs(uri)
    run = runs[number]
    histories = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
    return {name: [(m.step, m.value) for m in history] for name, history in histories.items()}


def wandb_records(run_dir: Path) -> list[Any]:
    """The records of the one offline run: a LevelDB log of wandb's own messages behind seven bytes."""
    messages: Any = importlib.import_module("wandb.proto.wandb_internal_pb2")

    (path,) = (run_dir / "tracking" / "wandb").glob("offline-run-*/*.wandb")
    file, parts = io.BytesIO(path.read_bytes()), b""
    records: list[Any] = []
    assert file.read(7)[:4] == b":W&B"
    while True:
        left = 32768 - file.tell() % 32768
        if left < 7:
            file.read(left)
        header = file.read(7)
        if len(header) < 7:
            return records
        _, length, kind = struct.unpack("<IHB", header)
        parts += file.read(length)
        if kind in (1, 4):  # a whole record, or the end of one
            records.append(messages.Record.FromString(parts))
            parts = b""


def in_wandb(run_dir: Path) -> Points:
    points: Points = defaultdict(list)
    for record in wandb_records(run_dir):
        if record.WhichOneof("record_type") == "history":
            items = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            for name, value in items.items():
                if isinstance(value, int | float) and not name.startswith(("_", "samples/", "diagnostics/")):
                    points[name].append((items["_step"], value))
    return dict(points)
