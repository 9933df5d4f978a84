"""Runs on tiny images of files, `segexp predict` on them, and what it must give."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny import TINY, write_pairs

from segexp import cli
from segexp.config import Config
from segexp.config.compose import compose_job, hydra_session, typed_of
from segexp.data.batches import make_reader
from segexp.evaluation.predict import FLIPS
from segexp.records import read_run
from segexp.running import Outcome, prepare
from segexp.running.build import Scorer, geometry_of, trained
from segexp.running.execute import execute

Captured = pytest.CaptureFixture[str]


def discs(root: Path, n: int = 16, size: tuple[int, int] = (40, 36), foreground: int = 255) -> None:
    """Bright discs in noise, and their masks."""
    rng, (y, x) = np.random.default_rng(0), np.mgrid[: size[0], : size[1]]
    pairs = []
    for i in range(n):
        disc = (y - rng.uniform(8, 24)) ** 2 + (x - rng.uniform(8, 24)) ** 2 < 40
        pairs.append((f"i{i:02}.png", rng.normal(80, 20, size) + 90 * disc, disc * foreground))
    write_pairs(root, pairs)


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image)


def config_of(outputs: Path, root: Path, *more: str) -> Config:
    """A tiny run on a folder of files; no draw of its own decides anything."""
    files = ("dataset=folder", f"dataset.root='{root}'", "trainer.epochs=1", f"outputs='{outputs}'")
    with hydra_session() as extra:
        return typed_of(compose_job([*TINY[1:], *files, *more], extra))


def trained_on(outputs: Path, root: Path, *more: str) -> Outcome:
    prepared = prepare(config_of(outputs, root, *more))
    return execute(prepared)


def ids_of_test(run_dir: Path) -> list[str]:
    with (run_dir / "split.csv").open() as file:
        return [row["image_id"] for row in csv.DictReader(file) if row["split"] == "test"]


def predicted(capsys: Captured, *words: object, code: int = 0) -> Any:
    capsys.readouterr()
    assert cli.main(["predict", *map(str, words)]) == code
    return capsys.readouterr()


def foreground_of(run_dir: Path, config: Config, limit: float | None = None, tta: bool = False) -> dict[str, Any]:
    """Test image -> its foreground (F, H, W) and probabilities by the code that scores runs."""
    spec = prepare(config)
    run = trained(run_dir, spec.config, read_run(run_dir), "cpu")
    geometry = geometry_of(spec)
    read = make_reader(spec.image_set, geometry)
    scorer = Scorer(spec, run.network, run.head, run.device, geometry, read, run.normalise)
    found = {}
    for scored in scorer.predictions("test", FLIPS if tta else ((),)):
        one = scored.prediction
        chosen = one.foreground_NFHW() if limit is None else one.evidence_NFHW().double() > limit
        for n, index in enumerate(scored.indices):
            found[spec.image_set.image_ids[index]] = chosen[n].numpy(), one.values_NKHW[n].numpy()
    return found
