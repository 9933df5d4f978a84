"""The training loop, as plain functions over a `TrainingState`.

Every random choice of an epoch is a function of (seed, epoch), so that a run continued from the checkpoint of an
epoch is bit-equal, on CPU with equal threads, to one that was never interrupted.

No step waits for the device: losses, counts and the first non-finite step are kept there and read every `READ_EVERY`
steps. After a non-finite step the (fused) optimizers skip all updates on the device, so that its cause is searched
with the weights of that step.
"""

import functools
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from segexp.activations.head import Head, learned_options
from segexp.config import Config, params
from segexp.data import seeded
from segexp.data.batches import Batch, batches_of, epoch_order
from segexp.errors import DivergedError, UsageError
from segexp.evaluation import dice_and_iou, micro_scores, primary_score
from segexp.evaluation.predict import EpochScores, Forward, LossOf, Scored, counted_masks, make_forward, mask_counts
from segexp.losses import Maps
from segexp.models.build import learned_parameters
from segexp.optim import OPTIMIZERS, SCHEDULERS
from segexp.records import RESTORE, write_table
from segexp.records.formatting import duration
from segexp.records.process import heed_interrupts
from segexp.training import on_gpu
from segexp.training.checkpoint import BEST, Checkpoints, copied, load_checkpoint, save_checkpoint
from segexp.training.diagnostics import EVERY, ActivationProbe, Site, diagnostics_rows
from segexp.training.on_gpu import CAPTURED_ON, COMPILED_ON, Captured, Compiled, Measure, Passes

log = logging.getLogger("segexp")

READ_EVERY = 20  # steps between two reads of what the device has counted

TABLES_EVERY_S = 2.0  # the tables of a run in progress are rewritten after an epoch if they are older

NAN = float("nan")


@dataclass(frozen=True)
class Task:
    """What a training needs besides its configuration.

    batches(epoch, batch_indices) yields training batches; validate() scores the validation split with the present
    weights, and returns its predictions unless they are too large to keep. sites: the call sites of hidden
    activations, for the diagnostics. resident_bytes: of training images that stay in the memory of the device that
    prepares batches. steps: of the whole run, at most. capturable: it has no plugins.
    """

    network: torch.nn.Module
    head: Head
    loss_of: LossOf
    train_indices: Sequence[int]
    batches: Callable[[int, Sequence[Sequence[int]]], Iterable[Batch]]
    validate: Callable[[], tuple[EpochScores, list[Scored]]]
    device: torch.device
    sites: Sequence[Site]
    run_id: str
    resident_bytes: int = 0
    steps: int = 0
    capturable: bool = True

    @functools.cached_property
    def parameters(self) -> list[torch.nn.Parameter]:
        """Of the network: listing them takes a millisecond, which every step would."""
        return [*self.network.parameters()]

    @functools.cached_property
    def measure(self) -> Measure:
        """Head, loss and counts of a training batch; on a GPU, in a run of `COMPILED_FROM` steps or more, fused into
        few kernels, unless the environment has TORCH_COMPILE_DISABLE=1."""

        def measure(
            logits_NKHW: torch.Tensor, masks_NHW: torch.Tensor, maps: Maps
        ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            prediction = self.head(logits_NKHW)
            loss = self.loss_of(prediction, masks_NHW, *([maps] if maps else []))
            counts_NF3 = mask_counts(prediction.foreground_NFHW(), *counted_masks(masks_NHW, prediction))
            return loss, counts_NF3, (~prediction.logits_NKHW.detach().isfinite()).float().mean()

        if not self._compiles or os.environ.get("TORCH_COMPILE_DISABLE") == "1":
            return measure
        learned = learned_options(self.network)
        return Compiled(measure, [] if learned is None else [*learned.parameters()])

    @property
    def compiled(self) -> bool | None:
        """Whether every batch so far was measured by compiled code; None where that is not tried, or before the first
        batch."""
        if isinstance(self.measure, Compiled):
            return self.measure.everywhere
        return False if self._compiles else None

    @property
    def _compiles(self) -> bool:
        return self.device.type in COMPILED_ON and self.steps >= on_gpu.COMPILED_FROM


@dataclass
class TrainingState:
    """All that changes while training, besides the network; a checkpoint holds all but passes and predictions.

    passes: forward and backward pass of a step. replayed: the same, on a GPU captured as a CUDA graph.
    """

    optimizer: torch.optim.Optimizer
    scheduler: Any
    scaler: torch.amp.GradScaler
    passes: Passes
    replayed: Passes
    epoch: int = 0
    step: int = 0
    best_epoch: int = 0
    best_score: float = -math.inf
    rows: list[dict[str, Any]] = field(default_factory=list)
    timings: list[dict[str, Any]] = field(default_factory=list)
    diagnostics: list[dict[str, Any]] = field(default_factory=list)
    best_predictions: list[Scored] = field(default_factory=list)  # of validation, if this process made them


STATEFUL = ("optimizer", "scheduler", "scaler")
PLAIN = ("epoch", "step", "best_epoch", "best_score", "rows", "timings", "diagnostics")
"""Fields of `TrainingState` of which a checkpoint holds the state, and those that it holds as plain values."""


def as_checkpoint(task: Task, state: TrainingState) -> dict[str, Any]:
    """Everything needed to continue, as tensors and plain values."""
    return {
        "network": task.network.state_dict(),
        **{name: getattr(state, name).state_dict() for name in STATEFUL},
        **{name: getattr(state, name) for name in PLAIN},
    }


def restore(task: Task, state: TrainingState, checkpoints: Checkpoints) -> None:
    """Continue from the last.pt that `train` wrote.

    Where that holds the best weights, a best.pt that is missing or damaged is written again. Raises UsageError where
    either of them is missing, damaged, or of another run or epoch.
    """
    folder, identity = checkpoints.folder, checkpoints.extra["identity"]
    cure = "remove it to start over, or set resume=restart"
    content = load_checkpoint(folder / "last.pt", task.device, cure, identity)
    task.network.load_state_dict(content["network"])
    for name in STATEFUL:
        getattr(state, name).load_state_dict(content[name])
    for name in PLAIN:
        setattr(state, name, content[name])
    if not state.best_epoch:
        return
    # Earlier versions wrote best.pt first, and may have ended before last.pt.
    epochs = (state.best_epoch, *([state.epoch + 1] if state.best_epoch < state.epoch else []))
    try:
        best = load_checkpoint(folder / "best.pt", torch.device("cpu"), RESTORE, identity, epochs)
    except UsageError as error:
        best = content if state.best_epoch == state.epoch else content.get("best") or {}
        if best.get("epoch") != state.best_epoch:
            raise
        log.info("best.pt is written again from last.pt: %s", error)
        save_checkpoint(folder / "best.pt", {name: best[name] for name in BEST} | checkpoints.extra)
    if best["epoch"] == state.best_epoch:
        checkpoints.best = copied({name: best[name] for name in BEST})
        checkpoints.best_on_disk = state.best_epoch


@dataclass
class StepMeasures:
    """Loss, gradient norm and share of logits that are not finite of each step of an epoch.

    found_inf: 1 from the first step on that was not finite; fused optimizers then skip. unread: on the device, too.
    loss: the sum of those known.
    """

    found_inf: torch.Tensor
    unread: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = field(default_factory=list)
    known: list[tuple[float, float, float]] = field(default_factory=list)
    loss: float = 0.0

    def read(self) -> None:
        """Read those of the steps since the last call from the device."""
        columns = [torch.stack(several).tolist() for several in zip(*self.unread, strict=True)]
        self.known += zip(*columns, strict=True)
        self.loss += sum(columns[0]) if columns else 0.0
        self.unread.clear()

    def row(self) -> dict[str, float]:
        """Means over the steps, of the norms that are finite: under fp16 the scaler skips the other steps."""
        losses, norms, shares = np.array(self.known).T
        finite = np.isfinite(norms)
        sums = [float(np.cumsum(values)[-1]) for values in (losses, np.where(finite, norms, 0.0), shares)]
        numbers = (len(losses), max(int(finite.sum()), 1), len(losses))
        return dict(zip(("loss", "grad_norm", "frac_nonfinite"), np.divide(sums, numbers).tolist(), strict=True))


def begin(config: Config, task: Task) -> TrainingState:
    """Optimizer and schedule at step 0, and the passes of a step, captured as a CUDA graph unless the environment has
    SEGEXP_CUDA_GRAPH=0."""
    # Weight decay would pull the learned parameters of an activation towards 0, which is another activation.
    learned = learned_parameters(task.network)
    ids = {id(p) for p in learned}
    groups: list[dict[str, Any]] = [{"params": [p for p in task.parameters if id(p) not in ids]}]
    if learned:
        groups.append({"params": learned, "weight_decay": 0.0})
    optimizer = OPTIMIZERS[config.optimizer.name].function(groups, **params(config.optimizer))
    per_epoch = len(batches_of(task.train_indices, config.trainer.batch_size))
    make_scheduler = SCHEDULERS[config.scheduler.name].function
    scheduler = make_scheduler(optimizer, per_epoch * config.trainer.epochs, per_epoch, **params(config.scheduler))
    scaler = torch.amp.GradScaler(task.device.type, enabled=config.trainer.precision == "fp16")
    forward = make_forward(task.network, task.device, config.trainer.precision)

    def passes(
        images_NCHW: torch.Tensor, masks_NHW: torch.Tensor, maps: Maps
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        loss, counts_NF3, frac_nonfinite = task.measure(forward(images_NCHW), masks_NHW, maps)
        scaler.scale(loss).backward()
        return loss.detach(), counts_NF3, frac_nonfinite

    if task.device.type == "cuda":  # the peaks of the run, not of those before it in the process
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(task.device)
    captures = task.capturable and task.device.type in CAPTURED_ON and os.environ.get("SEGEXP_CUDA_GRAPH") != "0"
    replayed = Captured(passes, task.parameters, task.resident_bytes) if captures else passes
    return TrainingState(optimizer, scheduler, scaler, passes, replayed)


def train(
    config: Config, task: Task, state: TrainingState, checkpoints: Checkpoints, stop_requested: Callable[[], bool]
) -> None:
    """Train to the last epoch, or until the validation score has not risen for ``trainer.patience`` epochs.

    Every epoch is added to the checkpoints; epochs.csv, timings.csv and diagnostics.csv are rewritten after an epoch if
    they are older than `TABLES_EVERY_S`, and are left to the caller at the end. Raises DivergedError naming step and
    layer, and KeyboardInterrupt after an epoch if a stop was requested.
    """
    tables_at = -math.inf
    total, patience = config.trainer.epochs, config.trainer.patience
    per_epoch = len(batches_of(task.train_indices, config.trainer.batch_size))

    def goes_on() -> bool:
        return state.epoch < total and (patience is None or state.epoch - state.best_epoch < patience)

    with tqdm(total=total * per_epoch, initial=state.epoch * per_epoch, unit="step", disable=None) as bar:
        while goes_on():
            started = time.perf_counter()
            epoch = state.epoch + 1
            bar.set_description(f"epoch {epoch}/{total}")
            train_row = train_epoch(config, task, state, epoch, bar)
            trained = time.perf_counter()
            with seeded(config.seed, "validation", epoch, device=task.device):
                scores, predictions = task.validate()
            if scores.frac_nonfinite > 0:
                raise DivergedError(f"logits on the validation images are not finite after epoch {epoch}")
            val_row = {"epoch": epoch, "split": "val", "step": state.step, "lr": train_row["lr"], "grad_norm": NAN}
            state.rows += [train_row, val_row | vars(scores)]
            score = scores.dice if config.trainer.select == "dice" else -scores.loss
            if SCHEDULERS[config.scheduler.name].moves == "validation":
                state.scheduler.step(score)
            state.epoch = epoch
            if score > state.best_score:
                state.best_score, state.best_epoch, state.best_predictions = score, epoch, predictions
            seconds = time.perf_counter() - started
            images_per_s = len(task.train_indices) / (trained - started)
            timing = {"epoch": epoch, "seconds": seconds, "images_per_s": images_per_s}
            state.timings.append(timing | {"peak_mem_mib": peak_memory_mib(task.device)})
            # What follows training changes the weights only where those of another epoch are the best.
            stays = not goes_on() and state.best_epoch == epoch and task.device.type == "cpu"
            checkpoints.add(as_checkpoint(task, state), stays)
            if time.monotonic() - tables_at >= TABLES_EVERY_S:
                write_progress(checkpoints.folder.parent, state)
                tables_at = time.monotonic()
            shown = {"loss": f"{train_row['loss']:.3f}", "dice": f"{scores.dice:.3f}"}
            bar.set_postfix(shown | ({"best": f"{state.best_score:.3f}"} if config.trainer.select == "dice" else {}))
            log.info("%s", _epoch_line(config, state))
            if stop_requested():
                raise KeyboardInterrupt


def _epoch_line(config: Config, state: TrainingState) -> str:
    """The last epoch in a line, with the time that the others will take."""
    train, val = state.rows[-2:]
    seconds = [timing["seconds"] for timing in state.timings]
    best = state.best_score if config.trainer.select == "dice" else -state.best_score
    line = f"epoch {state.epoch}/{config.trainer.epochs}: train loss {train['loss']:.4f}, val loss {val['loss']:.4f}"
    line += f", val dice {val['dice']:.4f}, best {best:.4f} in epoch {state.best_epoch}" * bool(state.best_epoch)
    line += f", lr {train['lr']:.2e}, {seconds[-1]:.1f} s"
    left = config.trainer.epochs - state.epoch
    most = "at most " if config.trainer.patience is not None else ""
    return line + f", {most}{duration(left * sum(seconds) / len(seconds))} left" * (left > 0)


def write_progress(run_dir: Path, state: TrainingState, record: dict[str, Any] | None = None) -> None:
    """Write the tables that grow with the epochs, and note them in the record."""
    tables = {"diagnostics": state.diagnostics, "epochs": state.rows, "timings": state.timings}
    for name, rows in tables.items():
        write_table(run_dir / f"{name}.csv", name, rows, record)


def train_epoch(config: Config, task: Task, state: TrainingState, epoch: int, bar: "tqdm[Any]") -> dict[str, Any]:
    """One pass over the training images; returns the row of epochs.csv. Raises DivergedError."""
    batch_indices = batches_of(epoch_order(task.train_indices, config.seed, epoch), config.trainer.batch_size)
    n_steps = len(batch_indices)
    device, measures = task.device, StepMeasures(torch.zeros((), device=task.device))
    counts: list[torch.Tensor] = []
    probes: list[ActivationProbe] = []
    lr = float(state.optimizer.param_groups[0]["lr"])
    task.network.train()
    with seeded(config.seed, "network", epoch, device=device):
        for position, batch in enumerate(task.batches(epoch, batch_indices)):
            heed_interrupts()
            images_NCHW, masks_NHW, maps = on_device(batch, device)
            probe = ActivationProbe(task.network, task.sites) if state.step % EVERY == 0 else None
            counts.append(train_step(config, task, state, images_NCHW, masks_NHW, measures, probe, maps))
            if probe is not None:
                probes.append(probe)
            state.step += 1
            bar.update()
            if (position + 1) % READ_EVERY == 0 or position + 1 == n_steps:
                measures.read()
                try:
                    _check_finite(config, task, state, batch_indices, measures)
                except DivergedError:
                    state.diagnostics += diagnostics_rows(probes, task.run_id, "train", epoch)
                    raise
                recent = _scores(torch.cat(counts[-READ_EVERY:]))
                bar.set_postfix(
                    {"loss": f"{measures.loss / (position + 1):.3f}", "train dice": f"{recent['dice']:.3f}"}
                )
    state.diagnostics += diagnostics_rows(probes, task.run_id, "train", epoch)
    row = {"epoch": epoch, "split": "train", "step": state.step, "lr": lr, "nll": NAN, "brier": NAN}
    return row | _scores(torch.cat(counts)) | measures.row()


def on_device(batch: Batch, device: torch.device) -> Batch:
    """The batch on the device, without waiting for the copy."""
    images, masks, maps = batch
    moved = {name: values.to(device, non_blocking=True) for name, values in maps.items()}
    return images.to(device, non_blocking=True), masks.to(device, non_blocking=True), moved


def _scores(counts_NF3: torch.Tensor) -> dict[str, float]:
    """Scores of the augmented training images: Dice (mean over images), micro Dice and micro IoU."""
    counts = counts_NF3.cpu().numpy()
    dice_NF, _ = dice_and_iou(counts)
    dice_micro, iou_micro = micro_scores(counts)
    dice = primary_score(dice_NF, counts[..., 0] + counts[..., 2], ("",) * len(counts))
    return {"dice": dice, "dice_micro": dice_micro, "iou_micro": iou_micro}


def train_step(
    config: Config,
    task: Task,
    state: TrainingState,
    images_NCHW: torch.Tensor,
    masks_NHW: torch.Tensor,
    measures: StepMeasures,
    probe: ActivationProbe | None = None,
    maps: Maps | None = None,
) -> torch.Tensor:
    """Forward, backward and update, with the probe watching; returns the counts_NF3 of the masks predicted before it.

    Reads nothing back from the device.
    """
    state.optimizer.zero_grad(set_to_none=True)
    with probe.watching() if probe else nullcontext():
        passes = state.passes if probe else state.replayed
        loss, counts_NF3, frac_nonfinite = passes(images_NCHW, masks_NHW, maps or {})
    state.scaler.unscale_(state.optimizer)
    if probe:
        probe.take_gradient_norms()
    norm = _clipped_norm(task.parameters, config.trainer.clip_norm)
    if config.trainer.precision == "fp16":
        state.scaler.step(state.optimizer)
        state.scaler.update()
    else:
        measures.found_inf.masked_fill_(~(loss.isfinite() & norm.isfinite()), 1.0)
        if getattr(state.optimizer, "_step_supports_amp_scaling", False):
            state.optimizer.found_inf = measures.found_inf  # type: ignore[attr-defined]
            state.optimizer.step()
        elif not bool(measures.found_inf):  # an optimizer of the user's own, not fused: this waits for the device
            state.optimizer.step()
    if SCHEDULERS[config.scheduler.name].moves == "step":
        state.scheduler.step()
    measures.unread.append((loss, norm, frac_nonfinite))
    return counts_NF3


def _clipped_norm(parameters: Sequence[torch.nn.Parameter], limit: float | None) -> torch.Tensor:
    """The norm of all gradients, which are scaled down to ``limit`` where it is larger."""
    if limit is not None:
        return torch.nn.utils.clip_grad_norm_(parameters, limit)
    # What clip_grad_norm_ computes, which then would read and write all gradients once more.
    gradients = [p.grad for p in parameters if p.grad is not None]
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))


def _check_finite(
    config: Config, task: Task, state: TrainingState, batches: list[list[int]], measures: StepMeasures
) -> None:
    """Raise DivergedError where a step since the last call was not finite."""
    fp16, epoch, n_steps = config.trainer.precision == "fp16", state.epoch + 1, len(measures.known)
    if fp16 and state.scaler.get_scale() < 1:
        raise DivergedError(f"epoch {epoch}: gradients no longer fit into fp16; use trainer.precision=bf16 or fp32")
    start = max(n_steps - READ_EVERY, 0)
    new = enumerate(measures.known[start:], start)  # under fp16 infinite gradients are normal
    bad = [n for n, (loss, norm, _) in new if not (math.isfinite(loss) and (fp16 or math.isfinite(norm)))]
    if not bad:
        return
    batch = next(iter(task.batches(epoch, batches[bad[0] : bad[0] + 1])))
    forward = make_forward(task.network, task.device, config.trainer.precision)
    images_NCHW, masks_NHW, _ = on_device(batch, task.device)
    where = first_bad_layer(task, forward, images_NCHW, masks_NHW)
    raise DivergedError(f"step {state.step - n_steps + bad[0] + 1} (epoch {epoch}): {where}")


def first_bad_layer(task: Task, forward: Forward, images_NCHW: torch.Tensor, masks_NHW: torch.Tensor) -> str:
    """Repeat a step and name the first thing that is not finite, in the order of computation.

    The input, the output of a layer, the loss, or else the gradient of the layer that backpropagation reaches first.
    """
    if not images_NCHW.isfinite().all():
        return "the input image is not finite"
    bad: list[str] = []
    reached: list[str] = []

    def watch(name: str) -> Callable[..., None]:
        def hook(module: torch.nn.Module, inputs: Any, output: Any) -> None:
            reached.append(name)
            if isinstance(output, torch.Tensor) and not output.isfinite().all():
                bad.append(f"the output of {name} ({type(module).__name__}) is not finite")

        return hook

    leaves = [(name, module) for name, module in task.network.named_modules() if not any(module.children())]
    handles = [module.register_forward_hook(watch(name)) for name, module in leaves]
    try:
        task.network.zero_grad(set_to_none=True)
        prediction = task.head(forward(images_NCHW))
        if bad:
            return bad[0]
        loss = task.loss_of(prediction, masks_NHW)
        if not loss.isfinite():
            return f"the loss is {loss.item()} although every logit is finite"
        loss.backward()
    finally:
        for handle in handles:
            handle.remove()
    for name in reversed(reached):
        module = task.network.get_submodule(name)
        if any(p.grad is not None and not p.grad.isfinite().all() for p in module.parameters(recurse=False)):
            return f"the gradient of {name} ({type(module).__name__}) is not finite"
    return "the loss was not finite, but it is finite when the step is repeated"


def peak_memory_mib(device: torch.device) -> float:
    """Peak of what is taken from the GPU, or without one of this process; NaN on Windows, which does not report it."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device) / 2**20
    try:
        import resource
    except ImportError:
        return NAN
    status = Path("/proc/self/status")
    if status.exists():  # Linux, whose ru_maxrss begins with the peak of the process that started this one
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
