"""Whole epochs against a plain loop over the same batches with the same network, head and loss."""

import copy
import functools
import os
import statistics
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from tqdm import tqdm

from benchmarks import Row, benchmark, counted, in_turns, ratios, seconds
from segexp.config import params
from segexp.config.compose import compose_job, hydra_session, typed_of
from segexp.data.batches import Batch, batches_of, epoch_order
from segexp.evaluation.predict import make_forward
from segexp.optim import OPTIMIZERS
from segexp.records.process import ownership
from segexp.running import RunSpec, prepare
from segexp.running.build import Scorer, initial_network, make_scorer, make_task
from segexp.training.checkpoint import Checkpoints
from segexp.training.loop import Task, begin, train, train_epoch

ASKED = {64: (240, 0.95), 128: (120, 0.97)}
"""Image side in pixels -> images, and the speed of a whole epoch, as a share of that of the plain loop."""


@contextmanager
def made(*overrides: str) -> Iterator[tuple[RunSpec, Scorer, Task]]:
    """The run of plain `segexp train` with these overrides, before its first step."""
    with tempfile.TemporaryDirectory() as outputs:
        with hydra_session() as extra:
            spec = prepare(typed_of(compose_job([f"outputs='{outputs}'", *overrides], extra)))
        initial = initial_network(spec)
        scorer = make_scorer(spec, initial)
        with ownership_of(spec.run_dir):
            yield spec, scorer, make_task(scorer, initial.built.sites)


@contextmanager
def ownership_of(run_dir: Path) -> Iterator[None]:
    run_dir.mkdir(parents=True)
    with ownership(run_dir):
        yield


def plain_loop(spec: RunSpec, scorer: Scorer, task: Task) -> Callable[[], None]:
    """An epoch: the training steps, and the forward passes of validation. Nothing is measured, scored or written."""
    config, network, head = spec.config, copy.deepcopy(task.network), task.head
    optimizer = OPTIMIZERS[config.optimizer.name].function(network.parameters(), **params(config.optimizer))
    forward = make_forward(network, task.device, config.trainer.precision)
    batches = batches_of(epoch_order(task.train_indices, config.seed, 1), config.trainer.batch_size)
    val = [batch.images_NCHW.to(task.device) for batch in scorer.batches(spec.split["val"])]

    def epoch() -> None:
        network.train()
        for images_NCHW, masks_NHW, _ in task.batches(1, batches):
            optimizer.zero_grad(set_to_none=True)
            loss = task.loss_of(head(forward(images_NCHW.to(task.device))), masks_NHW.to(task.device))
            loss.backward()
            optimizer.step()
        network.eval()
        with torch.inference_mode():
            for images_NCHW in val:
                head(forward(images_NCHW))

    return epoch


def whole_epochs(spec: RunSpec, task: Task, checkpoints: Checkpoints) -> Callable[[], None]:
    """The next epoch of a run: with validation, scores, tables and, where they are due, checkpoints: waited for."""
    state = begin(spec.config, task)

    def epoch() -> None:
        with suppress(KeyboardInterrupt):
            train(spec.config, task, state, checkpoints, stop_requested=lambda: True)
        checkpoints.wait()

    return epoch


@benchmark("Whole epochs, with validation, checkpoints and tables, against the steps and forward passes alone")
def epochs(quick: bool) -> Iterable[Row]:
    for side, (many, asked) in ASKED.items():
        number, rounds = (30, 1) if quick else (many, 9)
        words: Any = f"dataset.image_size={side}", f"dataset.number={number}", "trainer.epochs=1000"
        with made(*words) as (spec, scorer, task), Checkpoints(spec.run_dir / "checkpoints", {}, False) as checkpoints:
            case = f"{side} px, {len(task.train_indices)} + {len(spec.split['val'])} images"
            calls = {case: whole_epochs(spec, task, checkpoints), "plain loop": plain_loop(spec, scorer, task)}
            times = in_turns(calls, rounds, task.device.type, warm_up=0 if quick else 1)
        yield from ratios(times, "plain loop", {case: (">=", asked)}, rate=True)


def bare_steps(network: torch.nn.Module, batch: Batch, number: int) -> Callable[[], None]:
    """So many steps of torch's cross-entropy and AdamW on one batch that stays on the device."""
    images_NCHW, masks_NHW, _ = batch
    foreground_N1HW = (masks_NHW == 1).unsqueeze(1).float()
    optimizer = torch.optim.AdamW(network.train().parameters(), fused=True)

    def steps() -> None:
        for _ in range(number):
            optimizer.zero_grad(set_to_none=True)
            F.binary_cross_entropy_with_logits(network(images_NCHW), foreground_N1HW).backward()
            optimizer.step()

    return steps


def steps_of_a_run(spec: RunSpec, task: Task, captured: bool) -> Callable[[], None]:
    """The steps of an epoch, with all that is measured in them."""
    with mock.patch.dict(os.environ, {"SEGEXP_CUDA_GRAPH": str(int(captured))}):
        state = begin(spec.config, task)
    quiet: Any = tqdm(disable=True)

    def epoch() -> None:
        train_epoch(spec.config, task, state, 1, quiet)

    return epoch


@benchmark("Training steps of a run on a GPU, captured as a CUDA graph and as they are, against torch's bare steps")
def steps_on_gpu(quick: bool) -> Iterable[Row]:
    """With augment=medium; also what they add to the card's memory in use. No rows without a GPU."""
    if not torch.cuda.is_available():
        return
    number, rounds = (100, 2) if quick else (800, 7)
    for side, size in ((128, 8), (256, 16)):
        words = f"dataset.image_size={side}", f"trainer.batch_size={size}", "augment=medium", "trainer.device=cuda"
        data, case = f"dataset.number={number}", f"{side} px, batch {size}"
        with made(data, *words) as (spec, _, task), made(data, "trainer.epochs=10000", *words) as (longer, _, compiled):
            batches = batches_of(epoch_order(task.train_indices, spec.config.seed, 1), size)
            first = next(iter(task.batches(1, batches)))
            makers: dict[str, Callable[[], Callable[[], None]]] = {
                "bare steps": functools.partial(bare_steps, copy.deepcopy(task.network), first, len(batches)),
                f"{case}, as they are": functools.partial(steps_of_a_run, spec, task, False),
                f"{case}, captured": functools.partial(steps_of_a_run, spec, task, True),
                f"{case}, compiled and captured": functools.partial(steps_of_a_run, longer, compiled, True),
            }
            calls, peaks, began = dict[str, Callable[[], None]](), dict[str, int](), dict[str, float]()
            for name, make in makers.items():
                calls[name] = make()
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
                held = torch.cuda.memory_reserved()
                began[name] = seconds(calls[name], "cuda")
                peaks[name] = torch.cuda.max_memory_reserved() - held
            times = in_turns(calls, rounds, "cuda")
        for name, taken in times.items():
            ms, mib = 1e3 * statistics.median(taken) / len(batches), peaks[name] / 2**20
            print(f"{name}: {ms:.2f} ms a step, {mib:.0f} MiB, the first epoch {began[name]:.1f} s")
        yield from ratios(times, "bare steps", dict.fromkeys(calls, (">=", 0.95)), rate=True)
        for name in list(calls)[1:]:
            yield counted(f"{name}, memory, of bare steps", peaks[name] / peaks["bare steps"], "x", ("<=", 1.1))
