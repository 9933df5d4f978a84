"""What a sweep would cost: its arms, its runs that are over, and time and disk of the others, from timed probes.

Nothing is written. Runs that cost alike (network, images, batches, device) share a probe; of what is left when the
time for probes is over, networks are only built, so that mistakes are found, and their cost is scaled.
"""

import dataclasses
import heapq
import importlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from segexp.config import ARM_GROUPS, CODE_GROUPS, Config, chosen, flatten
from segexp.errors import DivergedError, UsageError
from segexp.launch.local import Slots
from segexp.launch.plan import Job
from segexp.launch.worker import PRELOADED
from segexp.running import Prepared, finished_before, prepare
from segexp.running.probe import Cost, Measured, cost_of, measure, parameters_of, scaled

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
            flat[group] = chosen(config, group)
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


def _looked_at(prepared: Prepared, look: Callable[[Prepared], Any], unfetched: set[str]) -> tuple[Any, str]:
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


def _guess(prepared: Prepared, parameters: int | None, measured: Mapping[Measured, Prepared]) -> Measured:
    """A network that was not timed, from the timed one that is nearest in size."""
    from segexp.running.assemble import fit_of

    near = min(measured, key=lambda one: abs(one.parameters - (parameters or 0)))
    batches = prepared.config.trainer.batch_size / measured[near].config.trainer.batch_size
    return scaled(near, parameters or near.parameters, fit_of(prepared).size ** 2, batches)


def _key(config: Config, hidden: bool) -> str:
    """Equal for runs that cost alike, apart from how many images and epochs they have."""
    trainer = config.trainer
    groups: list[Any] = [config.model, config.backbone, config.dataset, config.augment, config.metrics]
    facts = [{k: v for k, v in flatten(group).items() if k != "seed"} for group in groups]
    facts += [flatten(config.hidden_activation), flatten(config.init)] if hidden else []
    how = [trainer.batch_size, trainer.precision, trainer.device, trainer.workers, trainer.threads]
    return json.dumps([*facts, config.optimizer.name, config.head.mode, how], sort_keys=True, default=str)


def _with_threads(prepared: Prepared, slots: Slots | None) -> Prepared:
    """With as many threads as the run will have."""
    config = prepared.config
    if slots is None or config.trainer.threads is not None:
        return prepared
    trainer = dataclasses.replace(config.trainer, threads=slots.threads)
    return dataclasses.replace(prepared, config=dataclasses.replace(config, trainer=trainer))


def _from_random(prepared: Prepared) -> Prepared:
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
