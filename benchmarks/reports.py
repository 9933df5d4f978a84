"""`segexp report` and `segexp compare` of many runs, as whole processes."""

import csv
import hashlib
import io
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from benchmarks import Row, benchmark, seconds
from benchmarks.commands import rows_of, segexp
from segexp.activations.output import OUTPUT_ACTIVATIONS
from segexp.compare.kept import SETTLED_S
from segexp.records import COLUMNS, NUMERICS, SCHEMA_VERSION
from segexp.records.scores import PER_IMAGE, SCORES

CONFIG = {
    **{"dataset.name": "made up", "dataset.num_classes": 2, "dataset.spacing": None, "dataset.surface_tolerance": 1.0},
    **{"model.name": "unet", "backbone.name": "resnet18", "hidden_activation.name": "native"},
    **{"optimizer.lr": 0.002, "trainer.epochs": 12, "trainer.patience": None, "split.fold": None, "tuned": None},
    **{"metrics.empty_policy": "reference", "metrics.unit": "image", "outputs": "outputs", "study.name": "made up"},
}
EPOCHS, IMAGES, SITES = 12, {"val": 60, "test": 100}, 27
"""As a run of the defaults has them, so that its tables have as many rows."""


@benchmark("Reports and comparisons of many runs, in seconds of the whole process")
def reports(quick: bool) -> Iterable[Row]:
    """The study of 1,000 runs is 10 activations with two losses and 50 seeds; that of `compare` has 10 runs."""
    n_seeds = 2 if quick else 50
    with tempfile.TemporaryDirectory() as folder:
        many, few = Path(folder) / "many", Path(folder) / "few"
        make_study(many, 2 if quick else 10, n_seeds)
        make_study(few, 1, 5)
        out, cache = str(Path(folder) / "report.html"), Path(folder) / "cache"
        report, rounds, runs = segexp("report", str(many), "-o", out), 1 if quick else 5, sorted(many.iterdir())
        of = f"report of {len(runs)} runs"
        times: dict[str, list[float]] = {f"{of}, {case}": [] for case in ("first", "after one new run", "repeated")}
        times["compare of 10 runs"] = []
        with mock.patch.dict(os.environ, {"SEGEXP_CACHE": str(cache)}):
            for run in runs[:rounds]:
                away = run.rename(Path(folder) / run.name)
                shutil.rmtree(cache, ignore_errors=True)
                time.sleep(SETTLED_S)  # as files are that were written a while ago
                times[f"{of}, first"].append(seconds(report))
                away.rename(run)
                times[f"{of}, after one new run"].append(seconds(report))
                times[f"{of}, repeated"].append(seconds(report))
                times["compare of 10 runs"].append(seconds(segexp("compare", str(few))))
    yield from rows_of(times, {name: 0.8 if name.startswith("compare") else 4.0 for name in times})


def make_study(study: Path, n_activations: int, n_seeds: int) -> None:
    """Finished runs of activations with two losses; scores are made up, tables as large as those of the defaults."""
    rng = np.random.default_rng(0)
    images = {split: rng.standard_normal(n) for split, n in IMAGES.items()}
    for number, activation in enumerate(list(OUTPUT_ACTIVATIONS)[:n_activations]):
        for loss in ("dice", "bce"):
            for seed in range(n_seeds):
                level = 0.8 + 0.002 * number + 0.004 * rng.standard_normal()
                _make_run(study, {"activation.name": activation, "loss.name": loss, "seed": seed}, level, images, rng)


def _make_run(
    study: Path, chosen: dict[str, Any], level: float, images: dict[str, np.ndarray], rng: np.random.Generator
) -> None:
    run_id = hashlib.sha256(str(chosen).encode()).hexdigest()
    config, seed = {**CONFIG, **chosen}, chosen["seed"]
    record: dict[str, Any] = {
        **{"schema_version": SCHEMA_VERSION, "numerics": NUMERICS, "status": "done", "error": "", "host": "somewhere"},
        **{
            "run_id": run_id[:8],
            "config_id": run_id[8:16],
            "identity": run_id,
            "dataset_sha": "d" * 64,
            "split_sha": "5" * 64,
        },
        **{"init_sha": f"init {seed}", "order_sha": f"order {seed}", "config": config, "warnings": [], "n_params": 100},
        **{"device": {"type": "cpu", "name": "a CPU", "threads": 1}, "attempts": 1, "seconds": 60.0},
        **{"versions": {"segexp": "0.2.0"}, "git": None, "n_rows_expected": {}, "sha256": {}},
        "diagnostics": {"dead_output": 0.1, "dead_gradient": 0.1, "saturated": level, "gradient_ratio": level},
    }
    run_dir = study / f"made-up-{run_id[:8]}"
    run_dir.mkdir(parents=True)
    scores: dict[str, Any] = dict.fromkeys((name for name, one in SCORES.items() if one.kind is float), level)
    for table, rows in _tables(run_id[:8], level, images, rng).items():
        text = io.StringIO()
        writer = csv.DictWriter(text, [*COLUMNS[table]], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        (run_dir / f"{table}.csv").write_text(text.getvalue(), encoding="utf-8")
        record["n_rows_expected"][table] = len(rows)
        record["sha256"][table] = hashlib.sha256(text.getvalue().encode()).hexdigest()
        if table == "images":
            test = [row for row in rows if row["split"] == "test"]
            scores |= {name: float(np.mean([row[name] for row in test])) for name in PER_IMAGE}
            scores |= {"dice_micro": None, "iou_micro": None, "fp_rate_empty": None}
    known = {f: record[f] for f in ("run_id", "dataset_sha", "split_sha", "init_sha", "order_sha", "config_id")}
    known |= {key: config[f"{key}.name"] for key in ("dataset", "model", "backbone", "activation", "loss")}
    known |= {"seed": seed, "fold": None, "n_train": 240, "n_val": 60, "n_test": 100, "epochs": EPOCHS}
    known |= {"best_epoch": EPOCHS, "empty_policy": "reference", "select_metric": "val_dice", "temperature": 1.1}
    record["summary"] = known | scores
    (run_dir / "run.json").write_text(json.dumps(record), encoding="utf-8")


def _tables(
    run_id: str, level: float, images: dict[str, np.ndarray], rng: np.random.Generator
) -> dict[str, list[dict[str, Any]]]:
    """Rows of each table that a report reads."""
    of_images = [(split, n, level + 0.05 * x) for split, xs in images.items() for n, x in enumerate(xs)]
    bins = [(split, region, scaled) for split in images for region in ("all", "boundary") for scaled in (0, 1)]
    odds, curve, draw = np.linspace(-5, 5, 60), rng.random(60), rng.random
    return {
        "images": [_image(split, n, float(dice + 0.01 * rng.standard_normal())) for split, n, dice in of_images],
        "objects": [
            {"split": s, "image_id": f"i{n:04d}", "class_id": 1, "object": k, "n_pixels": 30 + n, "iou": draw()}
            for s, n, _ in of_images
            for k in (1, 2)
        ],
        "bins": [
            {
                "split": s,
                "class_id": 1,
                "region": r,
                "scaled": t,
                "bin": b,
                "n": 900,
                "sum_p": 60.0 * b,
                "sum_y": 63 * b,
            }
            for s, r, t in bins
            for b in range(15)
        ],
        "thresholds": [
            {"split": split, "class_id": 1, "threshold": float(t), "dice": level - 0.001 * float(t * t + d)}
            for split in images
            for t, d in zip(odds, curve, strict=True)
        ],
        "epochs": [
            {"epoch": e, "split": s, "step": 20 * e, "loss": draw(), "lr": 0.01, "dice": level * (1 - 0.8**e)}
            for e in range(1, EPOCHS + 1)
            for s in ("train", "val")
        ],
        "timings": [
            {"epoch": e, "seconds": 5 + draw(), "images_per_s": 40 + draw(), "peak_mem_mib": 800.0}
            for e in range(1, EPOCHS + 1)
        ],
        "diagnostics": [
            {"run_id": run_id, "site": f"s{d}", "depth": d, "part": "encoder", "probe": probe, "epoch": epoch}
            | {"units": 64, **dict.fromkeys(("dead_output", "dead_gradient", "saturated", "mean", "sd"), draw())}
            | {"grad_norm": draw()}
            for probe, epoch in (("train", 1), ("train", 5), ("train", 9), ("val", EPOCHS))
            for d in range(1, SITES + 1)
        ],
    }


def _image(split: str, n: int, dice: float) -> dict[str, Any]:
    """A row of images.csv; the scores are those of its counts."""
    n_gt = 10_000 + 100 * n
    tp = round(min(max(dice, 0.0), 1.0) * n_gt)
    lost = n_gt - tp
    row: dict[str, Any] = dict.fromkeys(PER_IMAGE, 0.5)
    row |= {"split": split, "image_id": f"i{n:04d}", "class_id": 1, "group_id": "", "height": 512, "width": 512}
    row |= {"n_valid": 262_144, "n_gt": n_gt, "n_pred": n_gt, "tp": tp, "fp": lost, "fn": lost}
    return row | {"dice": 2 * tp / (2 * tp + 2 * lost), "iou": tp / (tp + 2 * lost)}
