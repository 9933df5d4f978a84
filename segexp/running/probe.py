"""What a run will cost in time and disk: the run's own code, timed on a few images, and multiplied.

A probe builds the network as the run does, trains it for a few steps and scores a few images, and writes nothing.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from segexp.running.prepare import Prepared

PICTURES_S = 1.2
"""Seconds that samples.png, diagnostics.png and the probability maps take: their size does not follow the images'."""

PICTURES_BYTES = 310_000
"""Bytes of samples.png and diagnostics.png."""

RECORD_BYTES = 16_000
"""Bytes of what every run writes whatever it is: run.json, config.yaml, environment.txt, summary.csv, log.txt."""

ROW_BYTES = {"images": 160, "bins": 45, "thresholds": 85, "diagnostics": 190, "epochs": 150, "timings": 65, "split": 36}
"""Bytes of one row of each table."""

MAP_BYTES_PER_PIXEL = 0.6
"""Bytes per pixel of a compressed probability map."""

IMAGES = 16
"""Of each split that are read and scored, at most."""

ENOUGH_S, MOST_CALLS = 1.0, 8
"""One thing is timed until this many seconds or calls are together."""


@dataclass(frozen=True)
class Measured:
    """What a probe found. Seconds on its device, with its threads, while nothing else runs.

    build_s: the network. read_s: reading an image for the first time; kept_share: of the images that stay in memory.
    step_s: a training step. save_s: writing both checkpoints, without the disk. Each per image: validate_s the scores
    after an epoch, score_s one pass of the final ones (of three: twice val, once test), diagnose_s the final look.
    last_bytes, best_bytes: the checkpoints. sites: rows of diagnostics.csv for each look.
    """

    device: str
    parameters: int
    pixels: int
    build_s: float
    read_s: float
    kept_share: float
    step_s: float
    save_s: float
    validate_s: float
    score_s: float
    diagnose_s: float
    last_bytes: int
    best_bytes: int
    sites: int


@dataclass(frozen=True)
class Cost:
    """Of one whole run: seconds, and bytes on disk, those of its checkpoints apart."""

    seconds: float
    checkpoint_bytes: float
    other_bytes: float

    @property
    def n_bytes(self) -> float:
        """All that it leaves on disk."""
        return self.checkpoint_bytes + self.other_bytes


def measure(prepared: Prepared) -> Measured:
    """Build the run's network and time a few steps, the first one left out, and a few images of scoring.

    Raises UsageError where the network cannot be built, DivergedError where these steps diverge already.
    """
    import torch

    threads = torch.get_num_threads()
    try:
        return _measured(_fewer(prepared), prepared)
    finally:
        torch.set_num_threads(threads)


def parameters_of(prepared: Prepared) -> int:
    """Trainable parameters of the run's network, built and audited. Raises UsageError where it cannot be built."""
    import torch

    from segexp.models.build import build_warnings, parameter_count
    from segexp.running.assemble import initial_network

    threads = torch.get_num_threads()
    try:
        with build_warnings():
            return parameter_count(initial_network(prepared)[0].network)
    finally:
        torch.set_num_threads(threads)


def _fewer(prepared: Prepared) -> Prepared:
    """The run with one batch of training images, and few to score."""
    most = {"train": prepared.config.trainer.batch_size, "val": IMAGES, "test": IMAGES}
    return dataclasses.replace(prepared, split={part: prepared.split[part][:n] for part, n in most.items()})


def _measured(few: Prepared, prepared: Prepared) -> Measured:
    from tqdm import tqdm

    from segexp.data.batches import CACHE_BYTES, make_reader
    from segexp.models.build import build_warnings, parameter_count
    from segexp.running.assemble import initial_network, make_scorer, make_task
    from segexp.running.conclude import final_diagnostics, final_scores
    from segexp.training.loop import as_checkpoint, begin, train_epoch

    begun = time.perf_counter()
    with build_warnings():
        # The prior of the last layer is that of the whole train split.
        built, device, fit = initial_network(prepared)
    build_s = time.perf_counter() - begun
    read = make_reader(few.image_set, fit)
    members = [i for part in few.split.values() for i in part]
    begun = time.perf_counter()
    samples = [read(i) for i in members]
    read_s = (time.perf_counter() - begun) / len(members)
    held = sum(4 * s.image_CHW.numel() + s.mask_HW.numel() + s.native_mask_HW.numel() for s in samples) / len(samples)
    scorer = make_scorer(few, built.network, device, fit, read)
    task = make_task(scorer, built.sites)
    # Schedules end with the run, but a probe may take more steps than a small run has.
    trainer = dataclasses.replace(few.config.trainer, epochs=few.config.trainer.epochs + 10 * MOST_CALLS)
    # Not so that it learns, and by repeating one batch diverges.
    optimizer = dataclasses.replace(few.config.optimizer, lr=1e-12)  # type: ignore[call-arg]
    config = dataclasses.replace(few.config, trainer=trainer, optimizer=optimizer)
    state = begin(config, task)
    with tqdm(disable=True) as bar:
        step_s = _seconds(lambda: train_epoch(config, task, state, 1, bar))
    # Sizes are those of the optimizer's state after a step, so that they are right for every optimizer.
    begun = time.perf_counter()
    last = _stored(as_checkpoint(task, state))
    best = _stored({"epoch": 1, "network": task.network.state_dict()})
    save_s = time.perf_counter() - begun
    n_val, n_test = len(few.split["val"]), len(few.split["test"])
    begun = time.perf_counter()
    final_scores(scorer)
    score_s = (time.perf_counter() - begun) / (2 * n_val + n_test)
    begun = time.perf_counter()
    final_diagnostics(scorer, task, 1)
    diagnose_s = (time.perf_counter() - begun) / n_val
    return Measured(
        device=str(device),
        parameters=parameter_count(built.network),
        pixels=fit.size**2,
        build_s=build_s,
        read_s=read_s,
        kept_share=min(1.0, CACHE_BYTES / max(held * len(prepared.facts.sizes_N2), 1)),
        step_s=step_s,
        save_s=save_s,
        validate_s=_seconds(task.validate) / n_val,
        score_s=score_s,
        diagnose_s=diagnose_s,
        last_bytes=last,
        best_bytes=best,
        sites=len(task.sites),
    )


def _seconds(call: Callable[[], Any]) -> float:
    """Median seconds of a call; the first does not count, unless it took so long that it must do."""
    times: list[float] = []
    while len(times) < 2 or (sum(times[1:]) < ENOUGH_S and len(times) <= MOST_CALLS):
        begun = time.perf_counter()
        call()
        times.append(time.perf_counter() - begun)
        if times[0] > 10 * ENOUGH_S:
            return times[0]
    return sorted(times[1:])[len(times[1:]) // 2]


class _Counter:
    """A file that only counts."""

    def __init__(self) -> None:
        self.n_bytes = 0

    def write(self, data: Any) -> int:
        n = memoryview(data).nbytes
        self.n_bytes += n
        return n

    def flush(self) -> None:
        pass


def _stored(content: dict[str, Any]) -> int:
    """Bytes of a checkpoint, which is written nowhere."""
    import torch

    counter: Any = _Counter()
    torch.save(content, counter)
    return int(counter.n_bytes)


def scaled(measured: Measured, parameters: int, pixels: int, batches: float = 1.0) -> Measured:
    """A guess at another network, or at other images: work grows as parameters times pixels, and as the batch."""
    size = parameters / measured.parameters
    work = size * pixels / measured.pixels
    per_image = {name: getattr(measured, name) * work for name in ("validate_s", "score_s", "diagnose_s")}
    return dataclasses.replace(
        measured,
        parameters=parameters,
        pixels=pixels,
        build_s=measured.build_s * size,
        save_s=measured.save_s * size,
        step_s=measured.step_s * work * batches,
        last_bytes=round(measured.last_bytes * size),
        best_bytes=round(measured.best_bytes * size),
        **per_image,
    )


def cost_of(prepared: Prepared, measured: Measured, prepare_s: float) -> Cost:
    """A run from its beginning to its end, all epochs included: patience cannot be foreseen.

    prepare_s: seconds to open and check its data.
    """
    from segexp.data.batches import batches_of
    from segexp.evaluation.counted import REGIONS
    from segexp.evaluation.pictures import N_MAPS
    from segexp.metrics.calibration import N_BINS
    from segexp.metrics.ranking import QUANTILES

    config, sizes = prepared.config, {part: len(members) for part, members in prepared.split.items()}
    epochs = config.trainer.epochs
    steps = len(batches_of(prepared.split["train"], config.trainer.batch_size))
    n_train, n_val, n_test = sizes["train"], sizes["val"], sizes["test"]
    again = (1 - measured.kept_share) * measured.read_s
    epoch_s = steps * measured.step_s + n_val * measured.validate_s + (n_train + n_val) * again + measured.save_s
    begin_s = prepare_s + measured.build_s + (n_train + n_val + n_test) * measured.read_s
    end_s = (2 * n_val + n_test) * measured.score_s + n_val * measured.diagnose_s + PICTURES_S
    foreground = config.dataset.num_classes - 1
    pixels = _mean_pixels(prepared, measured)
    rows = {
        "images": (n_val + n_test) * foreground,
        "bins": 2 * 2 * len(REGIONS) * N_BINS * foreground,  # of val and test, as it is and scaled
        "thresholds": 2 * (2 * QUANTILES + 1) * foreground,
        "diagnostics": (_epochs_with_a_look(epochs, steps) + 1) * measured.sites,
        "epochs": 2 * epochs,
        "timings": epochs,
        "split": n_train + n_val + n_test,
    }
    tables = sum(ROW_BYTES[table] * n for table, n in rows.items())
    maps = MAP_BYTES_PER_PIXEL * pixels * min(N_MAPS, n_test) * foreground
    return Cost(
        seconds=begin_s + epochs * epoch_s + end_s,
        checkpoint_bytes=measured.last_bytes + measured.best_bytes,
        other_bytes=tables + maps + PICTURES_BYTES + RECORD_BYTES,
    )


def _epochs_with_a_look(epochs: int, steps: int) -> int:
    """Epochs in which a training step is looked at: their number of rows in diagnostics.csv, for each call site."""
    from segexp.training.diagnostics import EVERY

    return min(epochs, math.ceil(epochs * steps / EVERY))


def _mean_pixels(prepared: Prepared, measured: Measured) -> float:
    """Of an image as it is scored."""
    if prepared.config.metrics.resolution == "network":
        return measured.pixels
    members: Sequence[int] = prepared.split["test"]
    return float(prepared.facts.sizes_N2[members].prod(axis=1).mean())
