"""A run of less than a second, for tests of everything around the training itself."""

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from timing import HANGS_S

import segexp
from segexp.config import Config
from segexp.config.compose import compose_job, hydra_session, typed_of
from segexp.evaluation import dice_and_iou, primary_score
from segexp.running import Outcome, RunSpec, prepare
from segexp.running.build import initial_network, make_scorer, make_task
from segexp.running.execute import execute
from segexp.training import loop
from segexp.training.loop import Task

TINY = (
    "dataset.number=24",
    "dataset.image_size=32",
    "trainer.epochs=2",
    "trainer.batch_size=5",
    "trainer.device=cpu",
    "trainer.threads=1",
    "model.encoder_depth=3",
    "model.decoder_channels=[16,8,8]",
    # The residual network that timm keeps for tests, without the stages that a shallow network does not use.
    "backbone.name=tu-test_resnet",
)

MODEL_NEEDS: dict[str, tuple[str, ...]] = {
    "pan": ("dataset.image_size=256",),
    "dpt": ("backbone.name=tu-vit_tiny_patch16_224",),
}
"""What some architectures need beside the defaults, to be composed with any of their options."""


PRINT_PEAK_KIB = 'print(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])'
"""Code for a Linux process that tests start. Its ru_maxrss would begin with the peak of the process of the tests."""


def tiny_config(outputs: Path, *overrides: str) -> Config:
    """The configuration of a tiny run, composed as the jobs of a sweep are: each choice of groups once."""
    with hydra_session() as extra:
        return typed_of(compose_job([*TINY, f"outputs='{outputs}'", *overrides], extra))


def tiny_run(outputs: Path, *overrides: str) -> Outcome:
    """Prepare and execute a tiny run. It draws no figures."""
    return execute(prepare(tiny_config(outputs, *overrides)))


def interrupted_run(outputs: Path, epoch: int, *overrides: str) -> None:
    """A tiny run, interrupted inside this epoch, before its validation."""
    real = loop.train_epoch

    def interrupted(*arguments: Any) -> dict[str, Any]:
        row = real(*arguments)
        if arguments[3] == epoch:
            raise KeyboardInterrupt
        return row

    with mock.patch.object(loop, "train_epoch", interrupted), pytest.raises(KeyboardInterrupt):
        tiny_run(outputs, *overrides)


def tiny_task(outputs: Path, *overrides: str) -> tuple[RunSpec, Task]:
    """What the training loop of a tiny run takes."""
    prepared = prepare(tiny_config(outputs, *overrides))
    initial = initial_network(prepared)
    return prepared, make_task(make_scorer(prepared, initial), initial.built.sites)


def counts_on_test(predict: Callable[[torch.Tensor], torch.Tensor], prepared: RunSpec) -> tuple[np.ndarray, float]:
    """tp, fp, fn of the raw test images, (N, 3), and their Dice, from one probability per pixel."""
    counts = []
    for index in prepared.split["test"]:
        pair = prepared.image_set.read(index)
        with torch.inference_mode():
            p_NKHW = predict(torch.from_numpy(pair.image_HWC).permute(2, 0, 1)[None])
        assert p_NKHW.shape == (1, 1, *pair.mask_HW.shape)
        target = torch.from_numpy(pair.mask_HW)[None].long()
        counts.append(segexp.confusion_counts(p_NKHW[:, 0] > 0.5, target, 2, 255).numpy())
    table = np.concatenate(counts)
    dice, _ = dice_and_iou(table)
    return table[:, 0], primary_score(dice, table[..., 0] + table[..., 2], ("",) * len(table))


def write_pairs(root: Path, pairs: Iterable[tuple[str, np.ndarray, np.ndarray]]) -> None:
    """A data set for dataset=folder: (file name, image, mask), 8 bit each; masks are PNG."""
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for name, image, mask in pairs:
        Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)).save(root / "images" / name)
        Image.fromarray(mask.astype(np.uint8)).save(root / "masks" / f"{Path(name).stem}.png")


def tables(run_dir: Path) -> dict[str, bytes]:
    """The bytes of every table that must be equal between equal runs."""
    return {p.name: p.read_bytes() for p in sorted(run_dir.glob("*.csv")) if p.name != "timings.csv"}


def wait_until(happened: Callable[[], Any], seconds: float = HANGS_S) -> Any:
    """What ``happened`` returns, once that is true."""
    deadline = time.monotonic() + seconds
    while not (found := happened()):
        assert time.monotonic() < deadline, f"it did not happen in {seconds} s"
        time.sleep(0.02)
    return found
