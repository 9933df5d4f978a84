"""Errors that mean a lack of memory are told as such, with what helps, wherever they come up."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from messages import mentions
from tiny import TINY, tiny_run

from segexp import cli
from segexp.errors import out_of_memory
from segexp.sweep import estimate
from segexp.training import loop

Captured = pytest.CaptureFixture[str]
TOO_MANY = 10**15


def lacking(*_: object) -> None:
    torch.empty(TOO_MANY)


def of_cuda() -> None:
    raise torch.cuda.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of ..."
    )


def of_cublas() -> None:
    raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")


@pytest.mark.parametrize(("ask", "said"), [
    (lacking, "4000000000000000 bytes"), (lambda: np.empty(TOO_MANY), "7.11 PiB"), (of_cuda, "2.50 GiB"),
    (of_cublas, ""), (lambda: bytearray(TOO_MANY), ""),
])  # fmt: skip
def test_a_lack_of_memory_is_known_whoever_reports_it(ask: Callable[[], object], said: str) -> None:
    with pytest.raises((MemoryError, RuntimeError)) as caught:
        ask()
    assert mentions(out_of_memory(caught.value), "out of memory", said, "trainer.batch_size")


@pytest.mark.parametrize(
    "error", [RuntimeError("shape mismatch"), ValueError("out of memory"), OSError(28, "disk full")]
)
def test_other_errors_are_none(error: Exception) -> None:
    assert not out_of_memory(error)


def test_a_run_and_a_dry_run_say_what_to_lower(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setattr(loop, "train_epoch", lacking)
    outcome = tiny_run(tmp_path)
    assert outcome.status == "failed"
    assert mentions(outcome.reason, "out of memory", "trainer.batch_size", "dataset.image_size")
    assert (outcome.run_dir / "traceback.txt").exists()
    monkeypatch.setattr(estimate, "probe", lacking)
    assert cli.main(["train", "-m", "--dry-run", *TINY, "seed=1,2", f"outputs={tmp_path}"]) == 1
    assert mentions(capsys.readouterr().out, "will fail", "2 runs", "out of memory", "trainer.batch_size")
