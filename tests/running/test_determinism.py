"""The same run made in another way: where its tables are the same bytes, and where they are only close.

The rows of the table in docs/run_directory.md.
"""

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from tiny import TINY, interrupted_run, tables, tiny_run

from segexp.data import batches

pytestmark = pytest.mark.slow

RUN = ("activation=arctan", "loss=dice_ce", "augment=strong", "dataset.image_size=64", "hidden_activation=gelu")


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One thread, no workers, contiguous, in this process."""
    return tiny_run(tmp_path_factory.mktemp("usual"), *RUN).run_dir


def commanded(outputs: Path, *words: str) -> Path:
    """The run directory of ``segexp train`` in a process of its own."""
    command = [sys.executable, "-m", "segexp", "train", *TINY, *RUN, f"outputs='{outputs}'", "trainer.figures=false"]
    subprocess.run([*command, *words], check=True, capture_output=True, timeout=600)
    (found,) = outputs.glob("default/*-s0-*")
    return found


def ahead(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    real = batches.training_batches

    def by_a_thread(*arguments: object, **options: object) -> object:
        return real(*arguments, **options | {"ahead": True})  # type: ignore[arg-type]

    for module in [m for m in list(sys.modules.values()) if getattr(m, "training_batches", None) is real]:
        monkeypatch.setattr(module, "training_batches", by_a_thread)
    return tiny_run(outputs, *RUN).run_dir


def continued(outputs: Path) -> Path:
    interrupted_run(outputs, 2, *RUN)
    return tiny_run(outputs, *RUN).run_dir


@pytest.mark.parametrize("how", [
    "again", "workers", "ahead", "figures", "continued", "process", "waiting", "sweep",
])  # fmt: skip
def test_the_same_bytes(how: str, usual: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {
        "again": lambda: tiny_run(tmp_path, *RUN).run_dir,
        "workers": lambda: tiny_run(tmp_path, *RUN, "trainer.workers=2").run_dir,
        "ahead": lambda: ahead(tmp_path, monkeypatch),
        "figures": lambda: tiny_run(tmp_path, *RUN, "trainer.figures=false").run_dir,
        "continued": lambda: continued(tmp_path),
        "process": lambda: commanded(tmp_path),
        "waiting": lambda: commanded(tmp_path, "trainer.wait=active"),
        "sweep": lambda: commanded(tmp_path, "-m", "seed=0,1", "hydra.launcher.n_jobs=2"),
    }[how]()
    assert tables(found) == tables(usual)


@pytest.mark.parametrize(
    ("changed", "bound"),
    [("trainer.threads=2", 1e-5), ("trainer.format=channels_last", 1e-5), ("trainer.precision=bf16", 1e-2)],
)
def test_close(changed: str, bound: float, usual: Path, tmp_path: Path) -> None:
    """The same images in the same order, and the loss of the first epoch; later epochs drift apart."""
    paths = usual, tiny_run(tmp_path, *RUN, changed).run_dir
    (one, other), (summary, changed_summary) = (
        [pd.read_csv(p / f"{t}.csv") for p in paths] for t in ("epochs", "summary")
    )
    for sha in ("init_sha", "order_sha", "split_sha"):
        assert summary[sha].equals(changed_summary[sha])
    assert other.loss[0] == pytest.approx(one.loss[0], rel=bound)
