"""The GPU path on a GPU: the same numbers as on the CPU, and no step that waits for the device.

Skipped without one; other tests hold the same code on the CPU. Where there is one: `pytest -n 0 tests/test_gpu.py`.
"""

import json
import logging
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import MODEL_NEEDS, interrupted_run, tables, tiny_run, tiny_task
from tqdm import tqdm

from benchmarks.feed import config_of
from segexp import cli
from segexp.activations.head import make_head
from segexp.activations.hidden import function_names, make_hidden
from segexp.activations.output import OUTPUT_ACTIVATIONS, HeadMode
from segexp.config.compose import compose_job, hydra_session, typed_of
from segexp.data.augment import make_augment
from segexp.data.batches import batches_of, epoch_order
from segexp.losses import LOSSES
from segexp.models.architectures import ARCHITECTURES
from segexp.records import read_table
from segexp.running import prepare
from segexp.running.build import initial_network, make_scorer, make_task
from segexp.training import loop
from segexp.training.on_gpu import Captured, Passes

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"),
    pytest.mark.filterwarnings("default"),  # the compiler warns about itself
]

GPU = ("trainer.device=cuda",)

HEADS: list[tuple[str, HeadMode]] = [
    (name, "binary" if "binary" in entry.modes else "softmax")
    for name, entry in OUTPUT_ACTIVATIONS.items()
    if entry.log_odds is not None
]


def value_and_gradient(name: str, mode: HeadMode, loss: str, logits: torch.Tensor) -> list[torch.Tensor]:
    """Of a loss, in float64 on the CPU; compiled, as in training, where the logits are on a GPU."""
    head, x = make_head(OUTPUT_ACTIVATIONS[name], mode), logits.clone().requires_grad_()
    places = torch.arange(logits.shape[0] * logits[0, 0].numel(), device=logits.device)
    target = (places.reshape(logits.shape[0], *logits.shape[2:]) % 7 == 0).long()
    target[:, :2] = 255

    def value(x: torch.Tensor) -> torch.Tensor:
        return LOSSES[loss].function(head(x), target)

    torch.compiler.reset()
    found = (torch.compile(value, fullgraph=True) if x.is_cuda else value)(x)
    return [found.detach().cpu().double(), torch.autograd.grad(found, x)[0].cpu().double()]


@pytest.mark.parametrize("loss", ["ce", "dice"])
@pytest.mark.parametrize(("name", "mode"), HEADS)
def test_compiled_heads_are_exact(name: str, mode: HeadMode, loss: str) -> None:
    """Next to 0, in the tails and far out, against float64."""
    channels = 3 if mode == "softmax" else 1
    logits = torch.randn(4, channels, 32, 32, generator=torch.Generator().manual_seed(0))
    for factor in (1e-4, 3.0, 100.0):
        exact = value_and_gradient(name, mode, loss, (factor * logits).double())
        found = value_and_gradient(name, mode, loss, (factor * logits).cuda())
        for mine, true in zip(found, exact, strict=True):
            torch.testing.assert_close(mine, true, rtol=1e-4, atol=1e-5 * float(true.abs().max()))


@pytest.mark.parametrize("name", function_names())
def test_hidden_activations_are_those_of_the_cpu(name: str) -> None:
    module = make_hidden(name, {}, channels=4).eval()  # rrelu draws while training
    x = 3 * torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    results = []
    for device in ("cpu", "cuda"):
        here, leaf = module.to(device), x.to(device).requires_grad_()
        y = here(leaf)
        g = torch.linspace(-1, 1, y.numel(), device=device).view_as(y)
        results.append([t.cpu() for t in (y.detach(), *torch.autograd.grad(y, [leaf, *here.parameters()], g))])
    for mine, true in zip(*reversed(results), strict=True):
        torch.testing.assert_close(mine, true, rtol=1e-4, atol=1e-5)


def test_augmented_batches_are_those_of_the_cpu() -> None:
    """To the tolerance that `segexp.data.augment` states."""
    smooth = torch.nn.functional.interpolate(torch.rand(16, 1, 16, 16), size=(128, 128), mode="bicubic")
    images, masks = smooth.sub(0.5).mul(4), (smooth[:, 0] > 0.5).to(torch.uint8)
    names, augment = [f"image {n}" for n in range(16)], make_augment(config_of("strong"), 0)
    assert augment is not None
    here, masks_here = augment(images.clone(), masks, 1, names, torch.clone)
    there, masks_there = augment(images.cuda(), masks.cuda(), 1, names, torch.clone)
    assert there.is_cuda
    assert (here - there.cpu()).abs().max() < 1e-3
    assert (masks_here != masks_there.cpu()).float().mean() < 1e-3
    alone, masks_alone = augment(images[3:4].cuda(), masks[3:4].cuda(), 1, names[3:4], torch.clone)
    print("alone and in a batch differ by", float((alone[0] - there[3]).abs().max()))
    torch.testing.assert_close(alone[0], there[3], rtol=0, atol=1e-3)
    assert (masks_alone[0] != masks_there[3]).float().mean() < 1e-3


ENCODERS = [
    "efficientnet-b0",
    "mobilenet_v2",
    "mit_b0",
    "densenet121",
    "vgg11_bn",
    "tu-convnext_atto",
    "tu-regnety_002",
]
NETWORKS = [
    *((f"model={m.name}", *MODEL_NEEDS.get(m.name, ())) for m in ARCHITECTURES.values() if not m.own),
    *((f"backbone.name={name}",) for name in ENCODERS),
]


@pytest.mark.parametrize("words", [
    *NETWORKS, ("hidden_activation=rrelu",), ("hidden_activation=rational",), ("activation=learned_tail", "loss=ce"),
    ("trainer.precision=bf16",), ("trainer.precision=fp16",), ("dataset.num_classes=3", "loss=lovasz"),
])  # fmt: skip
def test_replayed_passes_are_the_passes(tmp_path: Path, words: tuple[str, ...]) -> None:
    """Loss, counts, gradients and running statistics of one batch, from the same weights and random numbers."""
    sizes = ("dataset.number=40", "dataset.image_size=128", "trainer.batch_size=8")
    with hydra_session() as extra:
        prepared = prepare(typed_of(compose_job([f"outputs='{tmp_path}'", *GPU, *sizes, *words], extra)))
    initial = initial_network(prepared)
    task = make_task(make_scorer(prepared, initial), initial.built.sites)
    state = loop.begin(prepared.config, task)
    batches = batches_of(epoch_order(prepared.split["train"], 0, 1), 8)[:2]
    first, second = (loop.on_device(batch, task.device) for batch in task.batches(1, batches))
    network = task.network.train()
    for _ in range(3):
        network.zero_grad()
        state.replayed(*first)
    assert isinstance(state.replayed, Captured)
    assert state.replayed.replay is not None
    before, rng = {name: one.clone() for name, one in network.state_dict().items()}, torch.cuda.get_rng_state()

    def of(passes: Passes) -> list[torch.Tensor]:
        network.load_state_dict(before)
        with torch.no_grad():
            for parameter in network.parameters():  # others than when it was captured
                parameter.mul_(1.01)
        torch.cuda.set_rng_state(rng)
        network.zero_grad()
        found = [*passes(*second), *(p.grad for p in network.parameters() if p.grad is not None)]
        return [one.double().clone() for one in (*found, *network.buffers())]

    for mine, true in zip(of(state.replayed), of(state.passes), strict=True):
        assert (mine - true).norm() <= 0.02 * true.norm() + 1e-4


@pytest.mark.parametrize("words", [
    (), ("trainer.precision=fp16", "trainer.clip_norm=1.0"), ("activation=learned_tail", "loss=ce"), ("compiled",),
])  # fmt: skip
def test_replayed_runs_are_the_runs(
    tmp_path: Path, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Most of their steps are replayed. As close as two runs on a GPU are."""
    if words == ("compiled",):
        monkeypatch.setattr("segexp.training.on_gpu.COMPILED_FROM", 1)
        words = ()
    runs = []
    for captured in ("1", "0"):
        monkeypatch.setenv("SEGEXP_CUDA_GRAPH", captured)
        sizes = ("dataset.number=80", "trainer.batch_size=4", "trainer.epochs=3")
        runs.append(tiny_run(tmp_path / captured, *GPU, *sizes, *words).run_dir)
    assert not [r.message for r in caplog.records if "captured" in r.message or "compiled" in r.message]
    devices = [json.loads((run / "run.json").read_text())["device"] for run in runs]
    assert [device["captured"] for device in devices] == [True, False]
    losses = [read_table(run / "epochs.csv", "epochs")["loss"].tolist() for run in runs]
    print(words, losses)
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


def test_steps_that_cannot_be_captured_run_as_they_are(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A layer that waits for the device: the log says so once, and everything goes on, random numbers too."""
    prepared, task = tiny_task(tmp_path, *GPU, "hidden_activation=rrelu")
    forward = task.network.forward

    def waits(x: torch.Tensor) -> torch.Tensor:
        return forward(x) * (2 if float(x.abs().max()) > 1e9 else 1)

    task.network.forward = waits
    state, quiet = loop.begin(prepared.config, task), tqdm(disable=True)
    rows = [loop.train_epoch(prepared.config, task, state, epoch, quiet) for epoch in (1, 2, 3)]
    assert sum("captured" in record.message for record in caplog.records) == 1
    assert all(math.isfinite(row["loss"]) for row in rows)
    torch.rand(3, device="cuda")


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_an_epoch_waits_for_the_device_where_it_reads_alone(tmp_path: Path, precision: str) -> None:
    prepared, task = tiny_task(tmp_path, *GPU, f"trainer.precision={precision}", "dataset.number=200", "augment=medium")
    state, quiet = loop.begin(prepared.config, task), tqdm(disable=True)
    loop.train_epoch(prepared.config, task, state, 1, quiet)  # what is made once may wait
    steps = len(batches_of(task.train_indices, prepared.config.trainer.batch_size))
    reads = math.ceil(steps / loop.READ_EVERY)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            loop.train_epoch(prepared.config, task, state, 2, quiet)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = [f"{w.filename}:{w.lineno}" for w in seen if "synchronizing" in str(w.message)]
    # Of a read: three columns and the counts; of a probe its rows; fp16 reads the scale and whether it skips.
    allowed = 6 * reads + 4 + (3 * steps if precision == "fp16" else 0)
    print(f"{precision}: {len(waits)} waits in {steps} steps: {sorted(set(waits))}")
    assert len(waits) <= allowed, sorted(set(waits))


def test_resident_and_streamed_batches_are_equal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[Any] = []
    for share in (0.5, 0.0):
        monkeypatch.setattr("segexp.data.batches.RESIDENT_SHARE", share)
        prepared, task = tiny_task(tmp_path, *GPU, "augment=strong")
        assert (task.resident_bytes > 0) == (share > 0)
        order = batches_of(epoch_order(prepared.split["train"], 0, 1), 5)
        batches.append([(images.cpu(), masks.cpu()) for images, masks, _ in task.batches(1, order)])
    for resident, streamed in zip(*batches, strict=True):
        # Products of matrices round otherwise in another number of batches at once.
        torch.testing.assert_close(resident[0], streamed[0], rtol=0, atol=1e-4)
        assert (resident[1] != streamed[1]).float().mean() < 1e-3


@pytest.mark.parametrize("overrides", [
    (), ("loss=dice", "activation=arctan"), ("dataset.num_classes=3", "loss=dice_ce"), ("trainer.precision=bf16",),
    ("trainer.precision=fp16",), ("activation=learned_tail", "loss=ce"), ("hidden_activation=rational",),
    ("loss=sum", "loss.terms={dice: 1, boundary: 0.01}"), ("dataset.fit=pad",), ("optimizer=sgd",),
    ("loss=lovasz", "activation=normal_cdf"), ("trainer.clip_norm=1.0", "augment=strong"),
])  # fmt: skip
def test_runs_are_those_of_the_cpu(
    tmp_path: Path, overrides: tuple[str, ...], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first epoch gives nearly the same loss; the run is done, compiled, and says on what it ran."""
    monkeypatch.setattr("segexp.training.on_gpu.COMPILED_FROM", 1)
    with caplog.at_level(logging.WARNING, "segexp"):
        here = tiny_run(tmp_path / "cpu", "trainer.format=channels_last", *overrides)
        there = tiny_run(tmp_path / "gpu", *GPU, "trainer.format=channels_last", *overrides)
    assert (here.status, there.status) == ("done", "done"), there.reason
    assert not [r.message for r in caplog.records if "compiled" in r.message]
    cpu, gpu = (json.loads((o.run_dir / "run.json").read_text()) for o in (here, there))
    assert (gpu["device"]["type"], gpu["device"]["compiled"]) == ("cuda", True)
    assert (gpu["init_sha"], gpu["order_sha"]) == (cpu["init_sha"], cpu["order_sha"])
    losses = [read_table(o.run_dir / "epochs.csv", "epochs")["loss"].iloc[0] for o in (here, there)]
    print(overrides, losses)
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


def test_a_run_goes_on_where_it_was_interrupted(tmp_path: Path) -> None:
    whole = tiny_run(tmp_path / "whole", *GPU)
    interrupted_run(tmp_path / "parts", 2, *GPU)
    parts = tiny_run(tmp_path / "parts", *GPU)
    equal = tables(whole.run_dir)["epochs.csv"] == tables(parts.run_dir)["epochs.csv"]
    print("bytes of epochs.csv equal after an interruption:", equal)
    rows = [read_table(o.run_dir / "epochs.csv", "epochs") for o in (whole, parts)]
    assert rows[0]["loss"].tolist() == pytest.approx(rows[1]["loss"].tolist(), rel=0.05)


def test_commands_on_a_finished_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tiny_run(tmp_path / "outputs", *GPU).run_dir
    before = (run / "images.csv").read_bytes()
    assert cli.main(["train", "--from", str(run)]) == 0
    assert cli.main(["evaluate", str(run)]) == 0
    print("bytes of images.csv equal after evaluate:", before == (run / "images.csv").read_bytes())
    capsys.readouterr()
    assert cli.main(["bench", "activations", "--rounds", "2", "--device", "cuda"]) == 0
    assert cli.main(["doctor"]) == 0
    assert torch.cuda.get_device_name() in capsys.readouterr().out
