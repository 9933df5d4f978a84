"""What a sweep would cost: its arms, its runs that are over, and time and disk of the others, from timed probes.

Nothing is written. Runs that cost alike (network, images, batches, device) share a probe; of what is left when the
time for probes is over, networks are only built, so that mistakes are found, and their cost is scaled.
"""

import dataclasses
import heapq
import importlib
import json
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from segexp.config import CODE_GROUPS, Config
from segexp.config.arm import ARM_GROUPS, member_of
from segexp.errors import DivergedError, UsageError
from segexp.records import flatten
from segexp.running.prepare import RunSpec, finished_before, prepare
from segexp.sweep.local import Slots
from segexp.sweep.plan import Job
from segexp.sweep.pool import PRELOADED

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


def measure(prepared: RunSpec) -> Measured:
    """Build the run's network and time a few steps, the first one left out, and a few images of scoring.

    Raises UsageError where the network cannot be built, DivergedError where these steps diverge already.
    """
    import torch

    threads = torch.get_num_threads()
    try:
        return _measured(_fewer(prepared), prepared)
    finally:
        torch.set_num_threads(threads)


def parameters_of(prepared: RunSpec) -> int:
    """Trainable parameters of the run's network, built and audited. Raises UsageError where it cannot be built."""
    import torch

    from segexp.models.build import build_warnings, parameter_count
    from segexp.running.build import initial_network

    threads = torch.get_num_threads()
    try:
        with build_warnings():
            return parameter_count(initial_network(prepared)[0].network)
    finally:
        torch.set_num_threads(threads)


def _fewer(prepared: RunSpec) -> RunSpec:
    """The run with one batch of training images, and few to score."""
    most = {"train": prepared.config.trainer.batch_size, "val": IMAGES, "test": IMAGES}
    return dataclasses.replace(prepared, split={part: prepared.split[part][:n] for part, n in most.items()})


def _measured(few: RunSpec, prepared: RunSpec) -> Measured:
    from tqdm import tqdm

    from segexp.data.batches import CACHE_BYTES, make_reader
    from segexp.models.build import build_warnings, parameter_count
    from segexp.running.build import initial_network, make_scorer, make_task
    from segexp.running.finalize import final_diagnostics, final_scores
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


def cost_of(prepared: RunSpec, measured: Measured, prepare_s: float) -> Cost:
    """A run from its beginning to its end, all epochs included: patience cannot be foreseen.

    prepare_s: seconds to open and check its data.
    """
    from segexp.data.batches import batches_of
    from segexp.evaluation.calibration import N_BINS
    from segexp.evaluation.pictures import N_MAPS
    from segexp.evaluation.ranking import QUANTILES
    from segexp.evaluation.score import REGIONS

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


def _mean_pixels(prepared: RunSpec, measured: Measured) -> float:
    """Of an image as it is scored."""
    if prepared.config.metrics.resolution == "network":
        return measured.pixels
    members: Sequence[int] = prepared.split["test"]
    return float(prepared.facts.sizes_N2[members].prod(axis=1).mean())


PROBE_S = 12.0
"""After so many seconds of probes no other begins; there is at least one."""

BUILD_S = 60.0
"""After so many seconds networks are not even built to find mistakes."""

REPEATS = ("seed", "split.fold")
"""What runs of one arm differ in."""

NOT_TOLD = ("outputs", "resume", "tuned")


@dataclass
class Estimate:
    """What the runs that are not over will cost.

    costs: of each run whose network could be built, in the order of the plan. wall_s: until the last one ends; None
    where it is not this machine that runs them. rows: a line for each kind of run. problems: runs that will fail, and
    why. notes: what the numbers leave out.
    """

    costs: list[Cost] = field(default_factory=list)
    wall_s: float | None = None
    rows: list[dict[str, Any]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Of all runs, one after the other."""
        return sum(cost.seconds for cost in self.costs)

    @property
    def n_bytes(self) -> float:
        """That all runs leave on disk."""
        return sum(cost.n_bytes for cost in self.costs)


def arms_of(jobs: Iterable[Job]) -> list[dict[str, Any]]:
    """A row per arm: hidden activation, activation, loss, whatever else differs between arms, runs, seeds and folds."""
    told = [_told(job.prepared.config) for job in jobs]
    keys = dict.fromkeys(key for facts in told for key in facts)
    missing = object()
    known = (*ARM_GROUPS, *REPEATS)
    differing = [k for k in keys if k not in known and len({str(f.get(k, missing)) for f in told}) > 1]
    arms: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for facts in told:
        arms.setdefault(tuple(str(facts.get(key, "-")) for key in (*ARM_GROUPS, *differing)), []).append(facts)
    folds = any(facts["split.fold"] is not None for facts in told)
    return [
        dict(zip((*ARM_GROUPS, *differing), arm, strict=True))
        | {"runs": len(members), "seeds": len({f["seed"] for f in members})}
        | ({"folds": len({f["split.fold"] for f in members})} if folds else {})
        for arm, members in arms.items()
    ]


def _told(config: Config) -> dict[str, Any]:
    """The configuration with a key per choice: "hidden_activation" is "leaky_relu slope=0.3", defaults left out."""
    flat = {key: value for key, value in flatten(config).items() if key not in NOT_TOLD}
    for group in CODE_GROUPS:
        options = {key: flat.pop(key) for key in list(flat) if key.startswith(f"{group}.")}
        if group in ARM_GROUPS:
            flat[group] = member_of(config, group)
        else:
            flat |= {group: options.pop(f"{group}.name")} | options
    return flat


def already_over(jobs: Sequence[Job]) -> tuple[Counter[str], list[Job], list[str]]:
    """How many runs ended before, by status; those with something left to do; those that cannot be begun, and why."""
    over: Counter[str] = Counter()
    left, problems = [], []
    for job in jobs:
        try:
            finished = finished_before(job.prepared)
        except UsageError as error:
            problems.append(f"{job.label}: {error}")
            continue
        if finished is None:
            left.append(job)
        else:
            over[finished.status] += 1
    return over, left, problems


def estimate(jobs: Sequence[Job], slots: Slots | None) -> Estimate:
    """Time and disk of runs that are to do. slots: where they will run; None where another launcher decides that."""
    begun = time.perf_counter()
    for module in PRELOADED:
        importlib.import_module(module)
    start_s = time.perf_counter() - begun
    found = Estimate()
    alike: dict[str, list[Job]] = {}
    for job in jobs:
        alike.setdefault(_key(job.prepared.config, hidden=True), []).append(job)
    on_cpu = slots is not None and slots.gpus[0] is None
    with _busy(len(slots.gpus) - 1 if slots is not None and on_cpu else 0, slots.threads if slots else 1):
        probes = _probes(alike, slots, found)
    prepared_s: dict[str, float] = {}
    for key, members in alike.items():
        measured = probes.get(key)
        if measured is None:
            continue
        first = members[0].prepared.config
        data = json.dumps(flatten(first.dataset), sort_keys=True, default=str)
        if data not in prepared_s:
            prepared_s[data] = _prepare_s(_with_threads(members[0].prepared, slots).config)
        costs = [cost_of(job.prepared, measured, prepared_s[data]) for job in members]
        found.costs += costs
        longest = max(costs, key=lambda cost: cost.seconds)
        found.rows.append(
            {
                "network": f"{first.model.name}/{first.backbone.name}",
                "hidden_activation": first.hidden_activation.name,
                "dataset": first.dataset.name,
                "parameters": measured.parameters,
                "device": measured.device,
                "step_s": measured.step_s,
                "runs": len(members),
                "run_s": longest.seconds,
                "run_bytes": longest.n_bytes,
            }
        )
    if slots is not None:
        found.wall_s = start_s + _wall([cost.seconds for cost in found.costs], len(slots.gpus))
    return found


@contextmanager
def _busy(number: int, threads: int) -> Iterator[None]:
    """Keep other slots at work meanwhile, as the sweep will: cores share their caches, and often half of themselves."""
    import torch

    over = threading.Event()

    def work() -> None:
        torch.set_num_threads(threads)
        x, weight = torch.ones(8, 32, 64, 64), torch.ones(32, 32, 3, 3)
        while not over.is_set():
            torch.nn.functional.conv2d(x, weight, padding=1)

    workers = [threading.Thread(target=work, daemon=True) for _ in range(number)]
    for worker in workers:
        worker.start()
    try:
        yield
    finally:
        over.set()
        for worker in workers:
            worker.join()


def _probes(alike: Mapping[str, list[Job]], slots: Slots | None, found: Estimate) -> dict[str, Measured]:
    """What each kind of run costs, by its key. What cannot be built is told in ``found``, and has no entry."""
    kinds = {key: _with_threads(jobs[0].prepared, slots) for key, jobs in alike.items()}
    # One of each kind of network first: hidden activations move the cost less than networks do.
    networks: dict[str, str] = {}
    for key, prepared in kinds.items():
        networks.setdefault(_key(prepared.config, hidden=False), key)
    measured: dict[str, Measured] = {}
    parameters: dict[str, int | None] = {}
    unfetched: set[str] = set()
    begun = time.perf_counter()
    for key in dict.fromkeys([*networks.values(), *kinds]):
        spent = time.perf_counter() - begun
        if measured and spent > BUILD_S:
            parameters[key] = None
            continue
        timed = not measured or spent <= PROBE_S
        result, problem = _looked_at(kinds[key], measure if timed else parameters_of, unfetched)
        if problem:
            found.problems.append(_problem(kinds[key].config, len(alike[key]), problem))
        if isinstance(result, Measured):
            measured[key] = result
        elif result is not None:
            parameters[key] = result
    found.notes += _left_out(list(parameters.values()), len(kinds), bool(unfetched))
    if not measured:
        return {}
    probes = dict(measured)
    for key, number in parameters.items():
        # The same network with another hidden activation, or else the measured one that is nearest in size.
        twin = measured.get(networks[_key(kinds[key].config, hidden=False)])
        probes[key] = twin or _guess(kinds[key], number, {m: kinds[k] for k, m in measured.items()})
    return probes


def _looked_at(prepared: RunSpec, look: Callable[[RunSpec], Any], unfetched: set[str]) -> tuple[Any, str]:
    """What ``look`` finds of a run, None where it cannot, and why the run would fail, "" where it would not.

    Where pretrained weights cannot be fetched it looks at random ones: the cost does not depend on their values.
    """
    backbone, problem = prepared.config.backbone, ""
    if backbone.weights == "imagenet" and backbone.name in unfetched:
        prepared, problem = _from_random(prepared), "its weights could not be fetched either"
    try:
        return look(prepared), problem
    except DivergedError as error:
        return None, f"the first of them is not finite from the beginning: {error}"
    except UsageError as error:
        problem = str(error)
        if backbone.weights != "imagenet" or not isinstance(error.__cause__, OSError):
            return None, problem
    unfetched.add(backbone.name)
    return _looked_at(prepared, look, unfetched)[0], problem


def _left_out(parameters: Sequence[int | None], n_kinds: int, random: bool) -> list[str]:
    """What is less than measured, a line each. parameters: of the kinds that were not timed, None: nor built."""
    unseen = sum(number is None for number in parameters)
    told = [
        (random, "where weights could not be fetched, random ones took their place in the probe"),
        (parameters, f"{len(parameters)} of {n_kinds} kinds of runs were not timed: taken from the nearest that was"),
        (unseen, f"{unseen} of them were not even built: mistakes in them are not found yet"),
    ]
    return [line for true, line in told if true]


def _problem(config: Config, n_runs: int, reason: str) -> str:
    who = f"{config.model.name}/{config.backbone.name} with hidden_activation={config.hidden_activation.name}"
    return f"{n_runs} run{'s' * (n_runs > 1)}, {who}: {reason}"


def _guess(prepared: RunSpec, parameters: int | None, measured: Mapping[Measured, RunSpec]) -> Measured:
    """A network that was not timed, from the timed one that is nearest in size."""
    from segexp.running.build import geometry_of

    near = min(measured, key=lambda one: abs(one.parameters - (parameters or 0)))
    batches = prepared.config.trainer.batch_size / measured[near].config.trainer.batch_size
    return scaled(near, parameters or near.parameters, geometry_of(prepared).size ** 2, batches)


def _key(config: Config, hidden: bool) -> str:
    """Equal for runs that cost alike, apart from how many images and epochs they have."""
    trainer = config.trainer
    groups: list[Any] = [config.model, config.backbone, config.dataset, config.augment, config.metrics]
    facts = [{k: v for k, v in flatten(group).items() if k != "seed"} for group in groups]
    facts += [flatten(config.hidden_activation), flatten(config.init)] if hidden else []
    how = [trainer.batch_size, trainer.precision, trainer.device, trainer.workers, trainer.threads]
    return json.dumps([*facts, config.optimizer.name, config.head.mode, how], sort_keys=True, default=str)


def _with_threads(prepared: RunSpec, slots: Slots | None) -> RunSpec:
    """With as many threads as the run will have."""
    config = prepared.config
    if slots is None or config.trainer.threads is not None:
        return prepared
    trainer = dataclasses.replace(config.trainer, threads=slots.threads)
    return dataclasses.replace(prepared, config=dataclasses.replace(config, trainer=trainer))


def _from_random(prepared: RunSpec) -> RunSpec:
    config = prepared.config
    backbone = dataclasses.replace(config.backbone, weights=None)
    return dataclasses.replace(prepared, config=dataclasses.replace(config, backbone=backbone))


def _prepare_s(config: Config) -> float:
    """Seconds in which a run opens and checks its data: every run does so in its own process."""
    begun = time.perf_counter()
    prepare(config)
    return time.perf_counter() - begun


def _wall(seconds: Sequence[float], n_slots: int) -> float:
    """When the last run ends, if each begins as soon as a slot is free."""
    free = [0.0] * n_slots
    for run_s in seconds:
        heapq.heapreplace(free, free[0] + run_s)
    return max(free)
