"""What a sweep would cost, for its dry run: its arms, its finished runs, and time and disk of the others.

Each distinct network is built, one training step and the scoring of a few images are timed, and its checkpoints are
measured by the size of their tensors. Nothing is written.
"""

import dataclasses
import heapq
import importlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm

from segexp.config import Config
from segexp.data.batches import batches_of, make_reader
from segexp.errors import DivergedError, UsageError, out_of_memory
from segexp.models.build import build_warnings, parameter_count
from segexp.records import flatten
from segexp.records.formatting import duration, pluralize, size
from segexp.running import RunSpec, prepare
from segexp.running.build import InitialNetwork, initial_network, make_scorer, make_task, threads_kept
from segexp.running.finalize import final_diagnostics, final_scores
from segexp.sweep.local import Slots
from segexp.sweep.plan import Job
from segexp.sweep.pool import PRELOADED
from segexp.training.loop import as_checkpoint, begin, train_epoch
from segexp.training.on_gpu import CAPTURED_AFTER, CAPTURED_ON

PICTURES_S = 0.3  # seconds for the pictures and tables of a run
SAVED_PER_S = 5e8  # bytes per second with which checkpoints are written
TABLES_BYTES = 100_000  # tables, pictures and probability maps of a run, small beside its checkpoints
IMAGES = 8  # images of val and of test that a probe scores

PROBES_S = 60.0
"""After this time further networks are only built, so that errors are found, and their cost is scaled from others."""


@dataclass(frozen=True)
class CostProbe:
    """What one network costs on its device, alone on the machine.

    work: parameters x pixels of a batch. start_s: opening the data set and building the network. read_s: reading an
    image into the store, which one run of a data set does. step_s: a training step. validate_s, final_s: scoring an
    image after an epoch, and at the end. checkpoint_bytes: last.pt and best.pt.
    """

    device: str
    parameters: int
    work: float
    start_s: float
    read_s: float
    step_s: float
    validate_s: float
    final_s: float
    checkpoint_bytes: float


@dataclass
class Estimate:
    """What the unfinished runs will cost.

    costs: (seconds, bytes that it leaves) of each run whose network could be built. running_bytes: the most that a run
    needs besides until its end. wall_s: until the last one ends; None if they do not run on this machine. rows: a table
    of the networks. problems: runs that will fail, and why. notes: limits.
    """

    costs: list[tuple[float, float]] = field(default_factory=list)
    running_bytes: float = 0.0
    wall_s: float | None = None
    rows: list[dict[str, Any]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def estimate(jobs: Sequence[Job], slots: Slots | None) -> Estimate:
    """Time and disk of unfinished runs. slots: where they will run; None if another launcher decides that."""
    found = Estimate()
    networks: dict[str, list[Job]] = {}
    for job in jobs:
        networks.setdefault(_network(job.spec.config), []).append(job)
    probes: dict[str, CostProbe] = {}
    timed: list[CostProbe] = []
    unavailable: set[str] = set()
    import_s, _ = _timed(lambda: [importlib.import_module(module) for module in PRELOADED])
    begun = time.perf_counter()
    for key, members in networks.items():
        enough = bool(timed) and time.perf_counter() - begun > PROBES_S
        spec = members[0].spec
        if slots is not None and spec.config.trainer.threads is None:
            trainer = dataclasses.replace(spec.config.trainer, threads=slots.threads)
            spec = dataclasses.replace(spec, config=dataclasses.replace(spec.config, trainer=trainer))
        made, problem = _try_probe(spec, timed if enough else [], unavailable)
        if problem:
            found.problems.append(f"{members[0].label} ({pluralize(len(members), 'run')}): {problem}")
        if made is not None:
            probes[key] = made
            timed += [] if enough else [made]
    if unavailable:
        found.notes.append("pretrained weights could not be fetched: random weights were timed instead")
    if scaled := len(probes) - len(timed):
        found.notes.append(f"{scaled} of {len(probes)} networks were not timed, but scaled from the others")
    read: set[tuple[Any, ...]] = set()
    for key, made in probes.items():
        costs, config = [], networks[key][0].spec.config
        for spec in (job.spec for job in networks[key]):
            images = (spec.dataset_sha, spec.config.dataset.fit, spec.config.dataset.image_size)
            costs.append(cost_of(spec, made, images not in read))
            read.add(images)
        found.costs += costs
        found.running_bytes = max(found.running_bytes, made.checkpoint_bytes)
        found.rows.append(
            {
                "network": f"{config.model.name}/{config.backbone.name}",
                "hidden": config.hidden_activation.name,
                "dataset": config.dataset.name,
                "parameters": f"{made.parameters:,}",
                "device": made.device,
                "step": f"{1000 * made.step_s:.0f} ms",
                "runs": len(costs),
                "a run": duration(max(seconds for seconds, _ in costs)),
                "disk of a run": size(round(max(n_bytes for _, n_bytes in costs))),
            }
        )
    if slots is not None:
        found.wall_s = import_s + wall_seconds([seconds for seconds, _ in found.costs], len(slots.gpus))
    return found


def _network(config: Config) -> str:
    """Equal for runs that cost the same, except for their numbers of images and epochs."""
    trainer, groups = config.trainer, [config.model, config.backbone, config.hidden_activation, config.init]
    groups += [config.dataset, config.augment, config.metrics]
    facts: list[Any] = [{k: v for k, v in flatten(group).items() if k != "seed"} for group in groups]
    facts += [trainer.batch_size, trainer.precision, trainer.format, trainer.device, trainer.workers, trainer.threads]
    return json.dumps([*facts, config.optimizer.name, config.head.mode], sort_keys=True, default=str)


def _try_probe(spec: RunSpec, timed: list[CostProbe], unavailable: set[str]) -> tuple[CostProbe | None, str]:
    """The probe of a run, None if it cannot be made, and why the run would fail, "" if it would not. If pretrained
    weights cannot be fetched, random ones are probed: the cost does not depend on their values."""
    backbone, problem = spec.config.backbone, ""
    if backbone.weights == "imagenet" and backbone.name in unavailable:
        random = dataclasses.replace(spec.config, backbone=dataclasses.replace(backbone, weights=None))
        spec, problem = dataclasses.replace(spec, config=random), "its weights could not be fetched either"
    try:
        return probe(spec, timed), problem
    except DivergedError as error:
        return None, f"the first step is not finite: {error}"
    except (MemoryError, RuntimeError) as error:
        lacking = out_of_memory(error)
        if not lacking:
            raise
        return None, lacking
    except UsageError as error:
        if backbone.weights != "imagenet" or not isinstance(error.__cause__, OSError):
            return None, str(error)
        unavailable.add(backbone.name)
        return _try_probe(spec, timed, unavailable)[0], str(error)


@threads_kept()
def probe(spec: RunSpec, timed: Sequence[CostProbe] = ()) -> CostProbe:
    """Build the run's network and time it, or scale the nearest of ``timed``. Raises UsageError if it cannot be built,
    DivergedError if the first step is not finite."""
    begun = time.perf_counter()
    with build_warnings():
        initial = initial_network(spec)
    parameters = parameter_count(initial.built.network)
    work = parameters * initial.geometry.size**2 * spec.config.trainer.batch_size
    if not timed:
        prepare(spec.config)
        base = CostProbe(str(initial.device), parameters, work, time.perf_counter() - begun, 0, 0, 0, 0, 0)
        return _time_network(base, spec, initial)
    nearest = min(timed, key=lambda one: abs(one.work - work))
    seconds = {key: getattr(nearest, key) * work / nearest.work for key in ("step_s", "validate_s", "final_s")}
    n_bytes = nearest.checkpoint_bytes * parameters / nearest.parameters
    return dataclasses.replace(nearest, parameters=parameters, work=work, checkpoint_bytes=n_bytes, **seconds)


def _time_network(base: CostProbe, spec: RunSpec, initial: InitialNetwork) -> CostProbe:
    sizes = {"train": spec.config.trainer.batch_size, "val": IMAGES, "test": IMAGES}
    few = {part: spec.split[part][:n] for part, n in sizes.items()}
    # One epoch is one step; the first ones differ from all others. They are more than some schedules last, and must
    # not diverge by repetition.
    first = CAPTURED_AFTER + 2 if initial.device.type in CAPTURED_ON else 1
    trainer = dataclasses.replace(spec.config.trainer, epochs=spec.config.trainer.epochs + first + 1)
    optimizer = dataclasses.replace(spec.config.optimizer, lr=1e-12)  # type: ignore[call-arg]
    config = dataclasses.replace(spec.config, trainer=trainer, optimizer=optimizer)
    small = dataclasses.replace(spec, split=few, config=config)
    read = make_reader(dataclasses.replace(spec.image_set, content=""), initial.geometry)  # not from the store
    read_s, samples = _timed(lambda: [read(i) for part in few.values() for i in part])
    scorer = make_scorer(small, initial, read)
    task = make_task(scorer, initial.built.sites)
    state = begin(config, task)
    with tqdm(disable=True) as bar:
        for epoch in range(1, first + 1):
            train_epoch(config, task, state, epoch, bar)
        step_s, _ = _timed(lambda: train_epoch(config, task, state, first + 1, bar))
    validate_s, _ = _timed(task.validate)
    final_s, _ = _timed(lambda: (final_scores(scorer), final_diagnostics(scorer, task, 1)))
    return dataclasses.replace(
        base,
        read_s=read_s / len(samples),
        step_s=step_s,
        validate_s=validate_s / len(few["val"]),
        final_s=final_s / (2 * len(few["val"]) + len(few["test"])),
        checkpoint_bytes=_tensor_bytes(as_checkpoint(task, state)) + _tensor_bytes(task.network.state_dict()),
    )


def _timed(call: Callable[[], Any]) -> tuple[float, Any]:
    begun = time.perf_counter()
    result = call()
    return time.perf_counter() - begun, result


def _tensor_bytes(content: Any) -> int:
    if isinstance(content, Mapping):
        content = list(content.values())
    return sum(map(_tensor_bytes, content)) if isinstance(content, list) else getattr(content, "nbytes", 0)


def cost_of(spec: RunSpec, made: CostProbe, reads: bool = True) -> tuple[float, float]:
    """Seconds of a run from its start to its end, with all its epochs, as patience cannot be estimated; and the bytes
    that it leaves: best.pt in float32, last.pt only with ``trainer.keep_last``. reads: it fills the store."""
    n_train, n_val, n_test = (len(spec.split[part]) for part in ("train", "val", "test"))
    n_steps = len(batches_of(spec.split["train"], spec.config.trainer.batch_size))
    start_s = made.start_s + reads * (n_train + n_val + n_test) * made.read_s
    epoch_s = n_steps * made.step_s + n_val * made.validate_s + made.checkpoint_bytes / SAVED_PER_S
    end_s = (2 * n_val + n_test) * made.final_s + PICTURES_S
    n_bytes = made.checkpoint_bytes if spec.config.trainer.keep_last else 4 * made.parameters
    return start_s + spec.config.trainer.epochs * epoch_s + end_s, n_bytes + TABLES_BYTES


def wall_seconds(seconds: Sequence[float], n_slots: int) -> float:
    """When the last run ends, if each starts as soon as a slot is free."""
    free = [0.0] * n_slots
    for run_s in seconds:
        heapq.heapreplace(free, free[0] + run_s)
    return max(free)
