"""Studies without training: run directories as far as `segexp compare` reads them, with scores drawn as one likes."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from fabricated import CONFIG, record_of

from segexp.compare.result import Comparison, Result
from segexp.evaluation import primary_score
from segexp.records import COLUMNS

N_GT = 100_000
"""Reference pixels of every made-up image: a Dice is exact to 1e-5."""

HEADER = ",".join(COLUMNS["images"])

OTHERS = ",0.5" * (len(COLUMNS["images"]) - 18)
"""Cells of scores that no test here is about."""


def image_rows(dice_N: np.ndarray, groups: Sequence[str] | None = None, names: Sequence[str] | None = None) -> str:
    """images.csv of the test split, one class; the Dice of an image is rounded to what its counts give."""
    lines = [HEADER]
    for n, dice in enumerate(dice_N):
        tp = round(float(dice) * N_GT)
        lost = N_GT - tp
        name = names[n] if names else f"i{n:04d}x"
        group = groups[n] if groups else ""
        score, iou = tp / N_GT, tp / (tp + 2 * lost)
        lines.append(
            f"test,{name},1,{group},512,512,262144,{N_GT},{N_GT},{tp},{lost},{lost},{score!r},{iou!r},0.5,2.0,0.1,0.05{OTHERS}"
        )
    return "\n".join(lines) + "\n"


def make_run(
    study: Path,
    run_id: str,
    dice_N: np.ndarray | None,
    config: Mapping[str, Any] | None = None,
    seed: int = 0,
    status: str = "done",
    groups: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
    summary: Mapping[str, Any] | None = None,
    **changes: Any,
) -> Path:
    """A run with these scores; seed decides its first weights and its batches, ``changes`` are keys of run.json."""
    whole = {**CONFIG, "trainer.patience": None, "split.fold": None, "tuned": None, **(config or {}), "seed": seed}
    shas = {"init_sha": f"init{seed}", "order_sha": f"order{seed}"}
    record = record_of(run_id, status, whole, **{**shas, **changes})
    run_dir = study / f"run-{run_id}"
    run_dir.mkdir(parents=True)
    if dice_N is not None:
        record["n_rows_expected"]["images"] = len(dice_N)
        text = image_rows(dice_N, groups, names)
        (run_dir / "images.csv").write_text(text)
        record["sha256"]["images"] = hashlib.sha256(text.encode()).hexdigest()
        cells_NF = np.round(np.asarray(dice_N) * N_GT)[:, None] / N_GT  # what the counts of images.csv hold
        dice = primary_score(cells_NF, np.full(cells_NF.shape, N_GT), tuple(groups or [""] * len(cells_NF)))
        known = {g: whole[f"{g}.name"] for g in ("dataset", "model", "backbone", "activation", "loss")}
        known |= {"seed": seed, "run_id": run_id, "schema_version": 1, "fold": whole["split.fold"]}
        known |= {key: record[key] for key in ("dataset_sha", "split_sha", "init_sha", "order_sha")}
        known |= {"dice": dice, "empty_policy": "reference", "epochs": 4, "frac_tie": 0.0}
        known |= {"frac_clipped": 0.0, "n_test": len(dice_N), "n_train": 4 * len(dice_N), "select_metric": "val_dice"}
        record["summary"] = known | dict(summary or {})
    (run_dir / "run.json").write_text(json.dumps(record))
    return run_dir


def drawn(
    n_seeds: int,
    n_images: int,
    effect: float = 0.0,
    spread: tuple[float, float, float] = (0.003, 0.004, 0.01),
    rng: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Dice of a candidate and its reference, (seeds, images) each: sd of seeds, images and the rest are ``spread``."""
    made = np.random.default_rng(rng)
    reference = 0.8 + 0.05 * made.standard_normal(n_images) + 0.01 * made.standard_normal((n_seeds, 1))
    difference = effect + spread[0] * made.standard_normal((n_seeds, 1)) + spread[1] * made.standard_normal(n_images)
    difference = difference + spread[2] * made.standard_normal((n_seeds, n_images))
    return np.clip(reference + difference, 0, 1), np.clip(reference + np.zeros((n_seeds, n_images)), 0, 1)


def make_pair(
    study: Path,
    n_seeds: int = 5,
    n_images: int = 60,
    effect: float = 0.0,
    arms: tuple[str, str] = ("arctan", "sigmoid"),
    rng: int = 0,
    config: Mapping[str, Any] | None = None,
    prefix: str = "",
    **changes: Any,
) -> tuple[np.ndarray, np.ndarray]:
    """A study of two output activations; returns what was drawn."""
    both = drawn(n_seeds, n_images, effect, rng=rng)
    for arm, dice_KN in zip(arms, both, strict=True):
        make_arm(study, arm, dice_KN, config, prefix, **changes)
    return both


def make_arm(
    study: Path,
    arm: str,
    dice_KN: np.ndarray | Sequence[np.ndarray | None],
    config: Mapping[str, Any] | None = None,
    prefix: str = "",
    first_seed: int = 0,
    **changes: Any,
) -> None:
    for seed, dice_N in enumerate(dice_KN, start=first_seed):
        of_arm = {"activation.name": arm, **(config or {})}
        make_run(study, f"{prefix}{arm}{seed}", dice_N, of_arm, seed, **changes)


def edit_record(run_dir: Path, **changes: Any) -> None:
    """Change keys of run.json; a mapping is merged into the one that is there."""
    record = json.loads((run_dir / "run.json").read_text())
    for key, value in changes.items():
        record[key] = record[key] | value if isinstance(value, Mapping) and key in record else value
    (run_dir / "run.json").write_text(json.dumps(record))


def only(result: Result) -> Comparison:
    (found,) = [c for block in result.blocks for c in block.comparisons]
    return found
