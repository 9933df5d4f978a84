"""Run directories without training: what a run leaves, written with segexp's own functions, scores made up."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

from segexp.records import COLUMNS, write_json, write_table

CONFIG: dict[str, Any] = {
    "dataset.name": "lesions",
    "dataset.spacing": None,
    "model.name": "unet",
    "model.decoder_channels": [16, 8, 8],
    "backbone.name": "resnet18",
    "hidden_activation.name": "native",
    "activation.name": "arctan",
    "loss.name": "dice",
    "loss.squared": False,
    "optimizer.lr": 0.002,
    "study.name": "default",
    "trainer.epochs": 4,
    "trainer.threads": None,
    "seed": 0,
    "outputs": "/somewhere",
}

SECONDS = 2.0
"""What an epoch takes."""


def row(table: str, **values: Any) -> dict[str, Any]:
    """A row of a table with made-up values, but those given."""
    made_up: dict[str, Any] = {name: {str: "x", int: 1, float: 0.5}[kind] for name, kind in COLUMNS[table].items()}
    return made_up | values


def images_of(run_id: str, names: tuple[str, ...] = ("001", "None", "a,b")) -> list[dict[str, Any]]:
    """Rows of images.csv; the Dice of an image depends on the run."""
    dice = int(hashlib.sha256(run_id.encode()).hexdigest()[:4], 16) / 0xFFFF
    return [row("images", split="test", image_id=name, group_id="007", dice=dice) for name in names]


def record_of(run_id: str, status: str, config: dict[str, Any], **changes: Any) -> dict[str, Any]:
    record = {
        "schema_version": 1,
        "status": status,
        "error": "" if status in ("done", "running") else "loss is nan in epoch 2",
        "run_id": run_id,
        "config_id": "c0ffee00",
        "identity": run_id * 8,
        "dataset_sha": "d" * 64,
        "split_sha": "5" * 64,
        "init_sha": "1" * 64,
        "order_sha": "0" * 64,
        "config": config,
        "versions": {"segexp": "0.1.0", "python": "3.11.7", "torch": "2.15.0"},
        "git": {"commit": "a" * 40, "dirty": False, "diff_sha": None},
        "device": {"type": "cpu", "name": "some CPU", "threads": 1, "memory_format": "contiguous", "precision": "fp32"},
        "host": "machine",
        "pid": 123,
        "started": "2024-01-01T00:00:00+00:00",
        "finished": None if status == "running" else "2024-01-01T00:00:10+00:00",
        "n_params": 100,
        "warnings": ["one", "two"],
        "n_rows_expected": {},
        "sha256": {},
    }
    return record | changes


# Nothing is lost here if the machine stops, and hundreds of files need not wait for the disk.
@mock.patch("os.fsync", new=mock.Mock())
def make_run(
    study: Path,
    run_id: str,
    status: str = "done",
    epochs: int = 4,
    seed: int = 0,
    config: Mapping[str, Any] | None = None,
    **changes: Any,
) -> Path:
    """Write the directory of a run that has carried out ``epochs`` epochs; ``changes`` are keys of run.json."""
    config = {**CONFIG, "seed": seed, **(config or {})}
    record = record_of(run_id, status, config, **changes)
    run_dir = study / f"lesions-unet-{config['activation.name']}-s{config['seed']}-{run_id}"
    run_dir.mkdir(parents=True)
    rows = {
        "split": [row("split", image_id=name, split="test") for name in ("001", "None", "a,b")],
        "epochs": [
            row("epochs", epoch=e, split=split, dice=0.5 + 0.1 * (e == 2))
            for e in range(1, epochs + 1)
            for split in ("train", "val")
        ],
        "timings": [row("timings", epoch=e, seconds=SECONDS, peak_mem_mib=100.0 * e) for e in range(1, epochs + 1)],
    }
    if status in ("done", "diverged"):
        images = images_of(run_id) if status == "done" else []
        scored = dict.fromkeys((name for name, kind in COLUMNS["summary"].items() if kind is float), float("nan"))
        if images:
            scored = dict.fromkeys(scored, images[0]["dice"])
        groups = ("dataset", "model", "backbone", "hidden_activation", "activation", "loss")
        named = {group: config[f"{group}.name"] for group in groups} | {"seed": config["seed"], "run_id": run_id}
        shas = {key: record[key] for key in ("dataset_sha", "split_sha", "init_sha", "order_sha", "config_id")}
        record["summary"] = row("summary", **scored, **named, **shas, fold=None)
        rows |= {"images": images, "summary": [record["summary"]]}
    for table, these in rows.items():
        write_table(run_dir / f"{table}.csv", table, these, record)
    write_json(run_dir / "run.json", record)
    (run_dir / "environment.txt").write_text("# Python 3.11.7 (CPython)\n# Linux\nnumpy==2.4.6\n")
    return run_dir


def sealed(table: Path, text: str) -> None:
    """Change a table as if the run itself had written this text."""
    table.write_text(text)
    path = table.parent / "run.json"
    record = json.loads(path.read_text())
    record["sha256"][table.stem] = hashlib.sha256(text.encode()).hexdigest()
    path.write_text(json.dumps(record))


def make_plan(study: Path, *run_ids: str, name: str = "0", **left_out: list[dict[str, str]]) -> Path:
    runs = [
        {
            "overrides": f"activation=arctan seed={run_id}",
            "run_id": run_id,
            "directory": f"lesions-unet-arctan-s0-{run_id}",
            "config": {"activation": {"name": "arctan"}, "trainer": {"epochs": 4}, "seed": 0},
        }
        for run_id in run_ids
    ]
    content: dict[str, Any] = {"schema_version": 1, "command": ["segexp"], "created": "2024-01-01T00:00:00+00:00"}
    content |= {"runs": runs, "dropped": [], "refused": [], **left_out}
    (study / ".sweeps").mkdir(parents=True, exist_ok=True)
    path = study / ".sweeps" / f"plan-{name}.json"
    path.write_text(json.dumps(content))
    return path
