"""The loop: nothing is read back from the device within a step, gradients are clipped, schedules move as they say.

Checkpoints are whole or not there, and hold nothing that could run.
"""

import dataclasses
import functools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tables, tiny_config, tiny_run, tiny_task
from torch.utils._python_dispatch import TorchDispatchMode

from segexp import cli
from segexp.config import Config, params
from segexp.data.batches import batches_of, epoch_order
from segexp.errors import UsageError
from segexp.evaluation.predict import make_forward
from segexp.optim import OPTIMIZERS, SCHEDULERS
from segexp.records import read_table
from segexp.running import prepare
from segexp.running.build import initial_network
from segexp.training import checkpoint, loop, on_gpu
from segexp.training.checkpoint import Checkpoints, load_checkpoint, save_checkpoint
from segexp.training.loop import StepMeasures, begin, first_bad_layer, peak_memory_mib, train_step

READS = ("_local_scalar_dense", "nonzero", "_to_copy", "is_nonzero", "unique", "equal")
"""Operators that make the host wait for the device, or copy between the two."""


class Operators(TorchDispatchMode):
    """Records the names of all operators."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        result = function(*args, **(kwargs or {}))
        # A change of dtype alone stays on the device.
        if name != "_to_copy" or (kwargs or {}).get("device") not in (None, args[0].device):
            self.names.append(name)
        return result


MAPS = ("loss=sum", "loss.terms={dice: 1, boundary: 0.01, skeleton_recall: 1}")
"""A loss that needs maps of the masks: computed with the batches, not in the step."""


@pytest.mark.parametrize("overrides", [(), ("trainer.clip_norm=1.0", "loss=dice_ce"), ("dataset.num_classes=3",), MAPS])
def test_a_step_reads_nothing_back(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    prepared, task = tiny_task(tmp_path, *overrides)
    device, network = task.device, task.network
    state = begin(prepared.config, task)
    order = epoch_order(prepared.split["train"], 0, 1)
    images, masks, maps = next(iter(task.batches(1, batches_of(order, 5))))
    measures = StepMeasures(torch.zeros((), device=device))
    network.train()
    with Operators() as seen:
        train_step(prepared.config, task, state, images, masks, measures, maps=maps)
    assert "convolution" in seen.names
    assert not [name for name in seen.names if name in READS]
    measures.read()
    assert measures.row()["loss"] > 0


def _right(measure: Any, dynamic: bool) -> Any:
    return functools.partial(measure)


def _wrong_gradient(measure: Any, dynamic: bool) -> Any:
    return lambda logits, masks, maps: (measure(logits, masks, maps)[0].detach() + 0 * logits.sum(), None, None)


def _without_options(measure: Any, dynamic: bool) -> Any:
    """The right gradient of the logits, and none of the learned options."""

    def compiled(logits: torch.Tensor, masks: torch.Tensor, maps: Any) -> Any:
        loss = measure(logits, masks, maps)[0]
        (slope,) = torch.autograd.grad(loss, logits, retain_graph=True)
        return loss.detach() + ((logits - logits.detach()) * slope).sum(), None, None

    return compiled


def _fails(measure: Any, dynamic: bool) -> Any:
    def compiled(*inputs: Any) -> Any:
        raise RuntimeError("no C compiler\nand more")

    return compiled


@pytest.mark.parametrize(("compiler", "words", "reason"), [
    (_right, (), ""), (_right, ("activation.slope=learned",), ""), (_without_options, (), ""),
    (_without_options, ("activation.slope=learned",), "another gradient"), (_wrong_gradient, (), "another gradient"),
    (_fails, (), "no C compiler"),
])  # fmt: skip
def test_what_compiles_wrongly_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, compiler: Any, words: Any,
    reason: str,
) -> None:  # fmt: skip
    true = tiny_task(tmp_path, *words)[1].measure
    monkeypatch.setattr(torch, "compile", compiler)
    monkeypatch.setattr(loop, "COMPILED_ON", ("cpu",))
    monkeypatch.setattr(on_gpu, "COMPILED_FROM", 1)
    _, task = tiny_task(tmp_path, *words)
    logits = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    masks = (logits.detach()[:, 0] > 0).long()
    assert task.compiled is None
    with caplog.at_level("WARNING", "segexp"):
        found, plain = task.measure(logits, masks, {}), true(logits, masks, {})
    torch.testing.assert_close(found[0], plain[0])
    assert (found[1] is None) == (compiler is _without_options and not reason), "what was compiled has no counts here"
    assert task.compiled == (not reason)
    assert len(caplog.records) == bool(reason)
    assert reason in caplog.text
    assert "and more" not in caplog.text


@pytest.mark.parametrize(
    ("compiler", "off", "compiled"), [(_right, "0", True), (_right, "1", False), (_fails, "0", False)]
)
def test_the_record_says_whether_head_and_loss_were_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], compiler: Any, off: str,
    compiled: bool,
) -> None:  # fmt: skip
    """Not where it is never tried; it changes neither the identity nor what readers of earlier runs see."""
    plain = tiny_run(tmp_path / "plain", "trainer.epochs=1")
    monkeypatch.setattr(torch, "compile", compiler)
    monkeypatch.setattr(loop, "COMPILED_ON", ("cpu",))
    monkeypatch.setattr(on_gpu, "COMPILED_FROM", 1)
    monkeypatch.setenv("TORCH_COMPILE_DISABLE", off)
    run = tiny_run(tmp_path / "runs", "trainer.epochs=1")
    records = [json.loads((one.run_dir / "run.json").read_text()) for one in (plain, run)]
    assert "compiled" not in records[0]["device"]
    assert records[1]["device"]["compiled"] is compiled
    assert records[0]["identity"] == records[1]["identity"]
    capsys.readouterr()
    for one, shown in ((plain, False), (run, True)):
        assert cli.main(["show", str(one.run_dir)]) == 0
        text = capsys.readouterr().out
        assert ("compiled" in text) == shown
        assert ("not compiled" in text) == (shown and not compiled)


def replayed_on_the_cpu(passes: Any) -> Any:
    """As a CUDA graph, which runs nothing while it is captured, and writes to one place whenever it is replayed."""
    state = {name: one.clone() for name, one in NETWORKS[-1].state_dict().items()}
    rng, kept = torch.get_rng_state(), passes()
    torch.set_rng_state(rng)
    NETWORKS[-1].load_state_dict(state)
    gradients = {p: p.grad for p in NETWORKS[-1].parameters() if p.grad is not None}
    for written in (*kept, *gradients.values()):
        written.fill_(float("nan") if written.is_floating_point() else -1)

    def replay() -> None:
        REPLAYS.append(1)
        for parameter in gradients:
            parameter.grad = None
        for place, value in zip(kept, passes(), strict=True):
            place.copy_(value)
        for parameter, gradient in gradients.items():
            assert parameter.grad is not None
            gradient.copy_(parameter.grad)
            parameter.grad = None

    return replay, kept


NETWORKS: list[torch.nn.Module] = []
REPLAYS: list[int] = []


@pytest.mark.parametrize("words", [
    ("trainer.clip_norm=0.1", "hidden_activation=rrelu"), pytest.param((), marks=pytest.mark.slow),
    pytest.param(MAPS, marks=pytest.mark.slow),
])  # fmt: skip
def test_replayed_steps_are_the_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: Any
) -> None:
    """Of 24 batches two are of another size, two come before the capture, and the first is diagnosed."""
    words = ("dataset.number=80", "trainer.batch_size=4", *words)
    plain = tiny_run(tmp_path / "plain", *words)
    REPLAYS.clear()

    def begun(config: Config, task: loop.Task) -> loop.TrainingState:
        NETWORKS.append(task.network)
        return begin(config, task)

    monkeypatch.setattr("segexp.running.execute.begin", begun)
    for module in ("training.loop", "running.execute"):
        monkeypatch.setattr(f"segexp.{module}.CAPTURED_ON", ("cpu",))
    monkeypatch.setattr(on_gpu, "has_room", lambda device, other_bytes: True)
    monkeypatch.setattr(on_gpu, "captured", replayed_on_the_cpu)
    run = tiny_run(tmp_path / "run", *words)
    steps = read_table(run.run_dir / "epochs.csv", "epochs")["step"].max()
    assert tables(run.run_dir) == tables(plain.run_dir)
    assert (len(REPLAYS) > steps / 2) == (words[-2:] != MAPS)
    devices = [json.loads((one.run_dir / "run.json").read_text())["device"] for one in (plain, run)]
    assert [device.get("captured") for device in devices] == [None, words[-2:] != MAPS]
    capsys.readouterr()
    assert cli.main(["show", str(run.run_dir)]) == 0
    assert ("CUDA graph" in capsys.readouterr().out) == (words[-2:] != MAPS)


SGD_EPOCH = ("trainer.epochs=1", "optimizer=sgd", "optimizer.weight_decay=0.0")


def test_clipping_limits_the_update_and_not_the_recorded_norm(tmp_path: Path) -> None:
    free, clipped = (
        tiny_run(tmp_path, *SGD_EPOCH, f"trainer.clip_norm={norm}", "trainer.keep_last=true").run_dir
        for norm in ("null", "1e-6")
    )
    norms = [read_table(d / "epochs.csv", "epochs")["grad_norm"].iloc[0] for d in (free, clipped)]
    assert all(norm > 1e-3 for norm in norms)
    start, moved, held = (_weights(tmp_path, d) for d in (None, free, clipped))
    assert (moved - start).norm() > 1e3 * (held - start).norm()


def _weights(outputs: Path, run_dir: Path | None) -> torch.Tensor:
    if run_dir is None:
        network = initial_network(prepare(tiny_config(outputs)))[0].network
        state = network.state_dict()
    else:
        state = torch.load(run_dir / "checkpoints" / "last.pt", weights_only=True)["network"]
    return torch.cat([t.flatten() for name, t in state.items() if name.endswith("conv1.weight")])


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedules(name: str, tmp_path: Path) -> None:
    config = tiny_config(tmp_path, f"scheduler={name}")
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    schedule = SCHEDULERS[name].function(optimizer, 100, 10, **params(config.scheduler))
    rates = []
    for step in range(100):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if SCHEDULERS[name].moves == "step":
            schedule.step()
        elif step % 10 == 9:
            schedule.step(0.5)
    if name == "cosine":
        assert rates[0] == pytest.approx(1 / 6)
        assert max(rates) == pytest.approx(1.0, abs=0.01)
        assert rates[5:] == sorted(rates[5:], reverse=True)
        assert rates[-1] == pytest.approx(0.01, abs=0.002)
    elif name == "constant":
        assert set(rates) == {1.0}
    else:
        assert rates[0] == 1.0
        assert rates[-1] == pytest.approx(0.1)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_descend_and_take_their_options(name: str, tmp_path: Path) -> None:
    config = tiny_config(tmp_path, f"optimizer={name}", "optimizer.lr=0.05", "optimizer.weight_decay=0.0")
    x = torch.nn.Parameter(torch.tensor([3.0]))
    optimizer = OPTIMIZERS[name].function([x], **params(config.optimizer))
    assert optimizer.param_groups[0]["lr"] == 0.05
    for _ in range(200):
        optimizer.zero_grad()
        (x**2).sum().backward()
        optimizer.step()
    assert abs(x.item()) < 0.2


def test_first_bad_layer_names_input_loss_and_gradient(tmp_path: Path) -> None:
    _, task = tiny_task(tmp_path)
    images, masks = torch.randn(4, 1, 32, 32), torch.zeros(4, 32, 32, dtype=torch.long)
    masks[:, 4:9, 4:9] = 1
    forward = make_forward(task.network.train(), task.device, "fp32")

    def found(loss_of: Any = task.loss_of, pictures: torch.Tensor = images) -> str:
        return first_bad_layer(dataclasses.replace(task, loss_of=loss_of), forward, pictures, masks)

    assert "finite" in found()
    assert "input image" in found(pictures=images / 0)
    assert "loss is nan" in found(lambda p, t: task.loss_of(p, t) * float("nan"))
    # The square root's slope at 0 is infinite: a finite loss with a gradient that is not.
    told = found(lambda p, t: (p.logits_NKHW - p.logits_NKHW.detach()).abs().sqrt().sum())
    assert all(part in told for part in ("gradient", "segmentation_head.0 (Conv2d)"))


CPU = torch.device("cpu")


def test_an_interrupt_waits_until_the_checkpoint_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path / "a.pt", {"epoch": 1})
    real = torch.save

    def interrupted(*args: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(torch, "save", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(tmp_path / "a.pt", {"epoch": 2})
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert load_checkpoint(tmp_path / "a.pt", CPU, "") == {"epoch": 2}
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]


def test_a_failed_write_keeps_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = {"network": {"w": torch.arange(3.0)}, "epoch": 2, "rows": [{"dice": 0.1 + 0.2, "split": "val"}]}
    save_checkpoint(tmp_path / "a.pt", content)

    def full(*args: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(tmp_path / "a.pt", {"epoch": 2})
    back = load_checkpoint(tmp_path / "a.pt", CPU, "")
    assert torch.equal(back["network"].pop("w"), torch.arange(3.0))
    assert back == {"network": {}, "epoch": 2, "rows": content["rows"]}


def test_a_damaged_checkpoint_is_named_and_code_in_one_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(UsageError, match=r"a\.pt"):
        load_checkpoint(tmp_path / "a.pt", CPU, "")

    class Attack:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "owned",))

    torch.save({"network": Attack()}, tmp_path / "b.pt")
    with pytest.raises(UsageError, match=r"b\.pt"):
        load_checkpoint(tmp_path / "b.pt", CPU, "")
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("wrong", [
    {"network": []}, {"network": {"w": 1}}, {"epoch": torch.zeros(3)}, {"identity": torch.zeros(3)},
])  # fmt: skip
def test_a_checkpoint_that_holds_something_else_is_refused(tmp_path: Path, wrong: dict[str, Any]) -> None:
    torch.save({"network": {"w": torch.zeros(2)}, "epoch": 2, "identity": "a"} | wrong, tmp_path / "a.pt")
    with pytest.raises(UsageError, match=r"a\.pt is no whole checkpoint.*the cure"):
        load_checkpoint(tmp_path / "a.pt", CPU, "the cure")


@pytest.mark.slow
def test_the_peak_of_memory_is_that_of_this_process_alone() -> None:
    """A process that starts another hands it its own peak: a run of a sweep recorded that of its scheduler."""
    child = "import torch; from segexp.training.loop import peak_memory_mib as p; print(p(torch.device('cpu')))"
    parent = "import numpy, subprocess, sys; numpy.ones(2**28); subprocess.run([sys.executable, *sys.argv[1:]])"
    seen = subprocess.run([sys.executable, "-c", parent, "-c", child], capture_output=True, text=True, check=True)
    assert 100 < float(seen.stdout) < 2 * 2**10
    big = torch.ones(2**28)
    assert peak_memory_mib(big.device) > 2**10


class Unwritable(dict[str, Any]):
    """Content whose copy is interrupted after its first tensor."""

    def items(self) -> Any:
        yield "epoch", 2
        yield "best_epoch", 1
        yield "network", {"a": torch.full((2,), 2.0)}
        raise RuntimeError("the device is gone")


def state_of(epoch: int) -> dict[str, Any]:
    return {"epoch": epoch, "best_epoch": 1, "network": {"a": torch.full((2,), float(epoch))}}


def test_half_a_copy_is_never_written(tmp_path: Path) -> None:
    """The memory of the epoch before is used again, so that an error within a copy would leave a mixture of both."""
    with pytest.raises(RuntimeError, match="gone"), Checkpoints(tmp_path, {}, True) as checkpoints:  # noqa: PT012
        checkpoints.add(state_of(1))
        checkpoints.add(Unwritable())
    assert not (tmp_path / "last.pt").exists()


def test_a_write_that_fails_is_tried_again_with_the_newest_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = [OSError("disk full")]

    def write(path: Path, content: dict[str, Any]) -> None:
        if failures:
            raise failures.pop()
        save_checkpoint(path, content)

    monkeypatch.setattr(checkpoint, "save_checkpoint", write)
    monkeypatch.setattr(checkpoint, "WRITE_EVERY_S", 0.0)
    with pytest.raises(OSError, match="disk full"), Checkpoints(tmp_path, {}, True) as checkpoints:  # noqa: PT012
        checkpoints.add(state_of(1))
        for _ in range(100):
            if checkpoints._writing and checkpoints._writing.done():
                break
            time.sleep(0.01)
        checkpoints.add(state_of(2))
    assert load_checkpoint(tmp_path / "last.pt", torch.device("cpu"), "")["epoch"] == 2
