"""What a sweep would cost: its arms, its runs that are over, and time and disk of the others, from timed probes.

Nothing is written. Runs that cost alike (network, images, batches, device) share a probe; of what is left when the
time for probes is over, networks are only built, so that mistakes are found, and their cost is scaled.
"""

import dataclasses
import heapq
import importlib
import json
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from segexp.config import CODE_GROUPS, Config, alias_target, flatten
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

ALWAYS = ("hidden_activation", "activation", "loss")
"""Columns of the table of arms, whether they differ or not."""

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
    differing = [k for k in keys if k not in (*ALWAYS, *REPEATS) and len({str(f.get(k, missing)) for f in told}) > 1]
    arms: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for facts in told:
        arms.setdefault(tuple(str(facts.get(key, "-")) for key in (*ALWAYS, *differing)), []).append(facts)
    folds = any(facts["split.fold"] is not None for facts in told)
    return [
        dict(zip((*ALWAYS, *differing), arm, strict=True))
        | {"runs": len(members), "seeds": len({f["seed"] for f in members})}
        | ({"folds": len({f["split.fold"] for f in members})} if folds else {})
        for arm, members in arms.items()
    ]


def _told(config: Config) -> dict[str, Any]:
    """The configuration with a key per choice: "hidden_activation" is "leaky_relu slope=0.3", defaults left out."""
    flat = {key: value for key, value in flatten(config).items() if key not in NOT_TOLD}
    for group in CODE_GROUPS:
        options = {key: flat.pop(key) for key in list(flat) if key.startswith(f"{group}.")}
        name = options.pop(f"{group}.name")
        defaults = {option.name: option.default for option in alias_target(group, name)[1]}
        words = ((key.removeprefix(f"{group}."), value) for key, value in options.items())
        if group in ALWAYS:
            flat[group] = " ".join([name, *(f"{key}={value}" for key, value in words if value != defaults[key])])
        else:
            flat |= {group: name} | options
    return flat


def already_over(jobs: Sequence[Job]) -> tuple[Counter[str], list[Job], list[str]]:
    """How many runs ended before, by status; those there is something to do for; those that cannot be begun, and why."""
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


def _probes(alike: Mapping[str, list[Job]], slots: Slots | None, found: Estimate) -> dict[str, Measured]:
    """What each kind of run costs, by its key. What cannot be built is told in ``found``, and has no entry."""
    kinds = {key: (_with_threads(jobs[0].prepared, slots), len(jobs)) for key, jobs in alike.items()}
    # One of each kind of network first: hidden activations move the cost less than networks do.
    networks: dict[str, str] = {}
    for key, (prepared, _) in kinds.items():
        networks.setdefault(_key(prepared.config, hidden=False), key)
    order = [*networks.values(), *(key for key in kinds if key not in networks.values())]
    measured: dict[str, Measured] = {}
    parameters: dict[str, int] = {}
    unseen: list[str] = []
    no_weights: set[str] = set()
    begun = time.perf_counter()
    for key in order:
        prepared, n_runs = kinds[key]
        spent = time.perf_counter() - begun
        if measured and spent > BUILD_S:
            unseen.append(key)
            continue
        for attempt in (prepared, _from_random(prepared)):
            if attempt.config.backbone.name in no_weights and attempt.config.backbone.weights == "imagenet":
                found.problems.append(_problem(prepared, n_runs, "its weights could not be fetched, as above"))
                continue
            try:
                if measured and spent > PROBE_S:
                    parameters[key] = parameters_of(attempt)
                else:
                    measured[key] = measure(attempt)
            except (UsageError, DivergedError) as error:
                found.problems.append(_problem(prepared, n_runs, str(error)))
                if attempt.config.backbone.weights == "imagenet" and isinstance(error.__cause__, OSError):
                    no_weights.add(attempt.config.backbone.name)
                    continue  # what the run costs does not depend on the values of its weights
            break
    if no_weights:
        found.notes.append("where weights could not be fetched, random ones took their place in the probe")
    if parameters:
        found.notes.append(
            f"{len(parameters)} of {len(order)} kinds of runs were built but not timed: scaled from others"
        )
    if unseen:
        found.notes.append(
            f"{len(unseen)} of {len(order)} kinds of runs were not even built: taken to cost as others do"
        )
    probes = dict(measured)
    for key in [*parameters, *unseen] if measured else []:
        config = kinds[key][0].config
        twin = networks[_key(config, hidden=False)]
        if twin in measured:  # another hidden activation in the same network
            probes[key] = measured[twin]
        else:
            probes[key] = _guess(kinds[key][0], parameters.get(key), measured, kinds)
    return probes


def _problem(prepared: Prepared, n_runs: int, reason: str) -> str:
    config = prepared.config
    who = f"{config.model.name}/{config.backbone.name} with hidden_activation={config.hidden_activation.name}"
    return f"{n_runs} run{'s' * (n_runs > 1)}, {who}: {reason}"


def _guess(
    prepared: Prepared, parameters: int | None, measured: Mapping[str, Measured], kinds: Mapping[str, Any]
) -> Measured:
    """From the measured network that is nearest in size."""
    from segexp.running.assemble import fit_of

    near = min(measured, key=lambda key: abs(measured[key].parameters - (parameters or 0)))
    batches = prepared.config.trainer.batch_size / kinds[near][0].config.trainer.batch_size
    return scaled(measured[near], parameters or measured[near].parameters, fit_of(prepared).size ** 2, batches)


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
