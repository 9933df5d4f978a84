"""The sequential decision: arms get more seeds until it is decided which is better, or clear that it cannot be.

Each look tests all comparisons by `segexp.compare` at its share of alpha (`segexp.compare.sequential`), and is recorded
(`segexp.records.decision`) before it is shown. All else is read from records: the same command continues after any
interruption.
"""

import dataclasses
import math
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from segexp.compare.blocks import arrange, pairs_of, reference_levels
from segexp.compare.result import ALPHA, FEWEST_SEEDS, METRICS, Block, Comparison, Metric, Result, Verdict
from segexp.compare.scorer import metric_of
from segexp.compare.sequential import Standing, evidence_of, shares, shares_within, simulated, standings
from segexp.compare.statistics import PARTS
from segexp.compare.verdict import compare, load_checked
from segexp.compare.warnings import unanswered
from segexp.config.arm import TUNED_FILE, arm_label
from segexp.errors import UsageError
from segexp.records import looks, read_run
from segexp.records.decision import FILE, LOCK, SHARES, Decision, read_decision, write_decision
from segexp.records.files import shown_command
from segexp.records.formatting import pluralize
from segexp.records.process import OwnedError, ownership
from segexp.records.runs import FINAL, Planned, Run
from segexp.records.scores import OWN, OWN_SCORES
from segexp.records.tables import load
from segexp.running import now
from segexp.sweep import SweepReport, SweptRun, carry_out
from segexp.sweep.plan import Job, Plan, labelled, make_plan
from segexp.sweep.tune import Search, tune, tuning_plan, write_tuning


def budget_of(text: str) -> tuple[float, str]:
    """What may be spent: an amount, and its unit, h (hours of the command), runs, or gpuh (hours of runs, added up).
    Raises UsageError for text that is not like 8h, 40runs or 16gpuh."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(h|runs|gpuh)", text)
    if not found or not float(found[1]):
        raise UsageError(f"--budget {text}: write hours as 8h, runs as 40runs, hours of GPUs as 16gpuh")
    return float(found[1]), found[2]


@dataclass(frozen=True)
class Question:
    """What is asked. looks: seeds at each look; rope: in points where the metric is printed in points, None for its
    own; reference: as in `segexp compare --reference`; budget: as in `budget_of`, None for any."""

    looks: tuple[int, ...]
    metric: str = "dice"
    rope: float | None = None
    reference: str | None = None
    budget: tuple[float, str] | None = None


@dataclass(frozen=True)
class Arms:
    """The arms of the start. jobs: of each arm (on each data set and fold), by seed; m: comparisons."""

    jobs: tuple[Mapping[int, Sequence[Job]], ...]
    m: int
    plan: Plan

    @property
    def study(self) -> Path:
        return self.plan.jobs[0].run_dir.parent

    def metric(self, question: Question) -> Metric:
        """The metric of a question, which may be a score of a plugin that the runs compute. Raises UsageError."""
        own = {OWN + name: OWN_SCORES[name] for name in self.plan.jobs[0].spec.config.metrics.scores or ()}
        return metric_of(question.metric, question.rope, own)

    def of_seed(self, open_arms: Sequence[int], seed: int) -> list[Job]:
        return [job for arm in open_arms for job in self.jobs[arm][seed]]


@dataclass(frozen=True)
class Found:
    """The result of a look: every comparison with its block and where it stands; open_arms: numbers of the arms that
    get more seeds."""

    result: Result
    compared: tuple[tuple[Block, Comparison, Standing], ...]
    open_arms: tuple[int, ...]


def arms_of(overrides: Sequence[str], extra: Sequence[str], question: Question) -> Arms:
    """The arms that the overrides sweep over, with the seeds of the last look. Raises UsageError for anything that
    could not be compared, before anything is trained."""
    if any(text.startswith("seed=") for text in overrides):
        raise UsageError("seed: `segexp decide` chooses the seeds; set their numbers with --looks or --max-seeds")
    plan = make_plan([*overrides, f"seed=range({question.looks[-1]})"], extra)
    if plan.refused:
        raise UsageError(labelled(plan.refused[0].label, plan.refused[0].reason))
    of_arm: dict[tuple[str, ...], dict[int, list[Job]]] = {}
    for job in plan.jobs:
        same = tuple(word for word in job.overrides if not word.startswith("seed="))
        of_arm.setdefault(same, {}).setdefault(job.spec.config.seed, []).append(job)
    arranged = arrange([_pending(job) for job in plan.jobs if job.spec.config.seed == 0], None)
    references = reference_levels(question.reference, arranged)
    m = sum(len(pairs_of(block, arranged, references)) for block in arranged.blocks)
    if not m:
        one = len(set(arranged.level_of.values())) == 1
        cure = "only one arm: name several, as in activation=sigmoid,arctan"
        raise UsageError(cure if one else unanswered(arranged, references))
    arms = Arms(tuple(of_arm.values()), m, plan)
    arms.metric(question)
    return arms


def tuned(overrides: Sequence[str], extra: Sequence[str], base: DictConfig) -> Path | None:
    """The file with a learning rate for each arm, found or read again; None where runs of the search are not done."""
    per_seed = ["seed=0"] if base.split.per_seed else []
    tuning = tune(tuning_plan([*overrides, *per_seed], extra).jobs, base, extra, Search(), print)
    for run in tuning.unfinished:
        print(f"{run.status}: {run.label} {run.reason}")
    if tuning.unfinished:
        return None
    if without := [arm_label(arm) for arm in tuning.trials if tuning.best(arm) is None]:
        raise UsageError(f"{', '.join(without)}: every learning rate diverged; try other rates with `segexp tune`")
    path = (tuning.folder / TUNED_FILE).absolute()
    write_tuning(tuning, path, sys.argv)
    return path


def _pending(job: Job) -> Run:
    planned = Planned(job.spec.run_id, job.run_dir.name, job.label, dataclasses.asdict(job.spec.config))
    return Run(job.spec.run_id, "not begun", job.run_dir, job.run_dir.parent.name, planned=planned)


@contextmanager
def deciding(arms: Arms, question: Question) -> Iterator[Decision]:
    """The decision of the arms' study, new or continued, held by this process. Raises UsageError where the study was
    looked at with another design, or compared before."""
    arms.study.mkdir(parents=True, exist_ok=True)
    try:
        with ownership(arms.study / LOCK, inside=arms.study):
            yield _begun(arms, question)
    except OwnedError as owner:
        raise UsageError(f"{owner} decides {arms.study}: wait for it or stop it") from None


def continued(arms: Arms, question: Question, but: Sequence[str] = ()) -> Decision | None:
    """The decision that is recorded in the arms' study, None if none is. Raises UsageError where it was looked at with
    another design, apart from the keys of ``but``, or compared before."""
    study, known = arms.study, read_decision(arms.study, begins=True)
    if known and known.looks:
        for key, value in _asked(arms, question).items():
            before = known.design.get(key, value)
            if key not in but and (set(before) != set(value) if key == "arms" else before != value):
                shown = "" if key == "arms" else f" ({before}, now {value})"
                cure = "repeat its command, or give the new question another study.name"
                raise UsageError(f"{study} was looked at with other {key}{shown}: {cure}")
    if known is None and (study / looks.FILE).exists():
        raise UsageError(
            f"{study} was compared before (see {looks.FILE}): looks that are not counted raise false alarms; decide in "
            "a new study, with another study.name"
        )
    return known


def _asked(arms: Arms, question: Question) -> dict[str, Any]:
    rope, first = arms.metric(question).rope, [of_arm[0][0] for of_arm in arms.jobs]
    return {
        "metric": question.metric,
        "rope": None if math.isnan(rope) else rope,
        "reference": question.reference,
        "looks": list(question.looks),
        # Its end is the sample size of the last look, which may not depend on what earlier looks have shown.
        "budget": question.budget and "{:g}{}".format(*question.budget),
        "arms": {job.spec.run_id: re.sub(r"\s*(?<![\w.])seed=\d+", "", job.label) for job in first},
    }


def _begun(arms: Arms, question: Question) -> Decision:
    known, n = continued(arms, question), len(question.looks)
    if known and known.looks:
        return known
    facts = {"schema_version": 1, "created": now(), "command": shown_command(sys.argv), "alpha": ALPHA}
    facts |= {"comparisons": arms.m, "share": list(shares(n)), "share_within": list(shares_within(n))}
    ended = sorted(job.spec.run_id for job in arms.plan.jobs if _status(job) in FINAL)
    facts["found"] = known.design["found"] if known else ended
    decision = Decision(arms.study / FILE, facts | _asked(arms, question))
    write_decision(decision)
    return decision


def _status(job: Job) -> str:
    return str(read_run(job.run_dir).get("status")) if (job.run_dir / "run.json").exists() else ""


def decide(
    arms: Arms,
    question: Question,
    decision: Decision,
    base: DictConfig,
    extra: Sequence[str],
    tell: Callable[[Found, Decision], None],
) -> tuple[Found | None, Decision, SweepReport | None]:
    """Take the looks that are left, inside `deciding`. Returns the last, and the sweep that stopped before its end if
    looks are left. tell: is called with every look, once it is recorded."""
    meter = Meter(arms, decision, question.budget)
    found = look_at(arms, question, decision) if decision.looks else None
    if found:
        tell(found, decision)
    while True:
        taken = int(decision.looks[-1]["look"]) if decision.looks else 0
        open_arms = found.open_arms if found else tuple(range(len(arms.jobs)))
        if not open_arms or taken == len(question.looks):
            return found, decision, None
        runs, ended = _train(arms, open_arms, question.looks[taken], base, extra, meter)
        lost = {run.run_dir for run in runs if run.status == "failed"}
        stopped = {run.status for run in runs} & {"interrupted", "pending", "running"}
        if stopped or any(run.stopped for run in runs) or 2 * len(lost) > len(runs):
            return found, decision, SweepReport(Plan(), runs)
        failed = {job.spec.run_id: job.label for job in arms.plan.jobs if job.run_dir in lost}
        look = {"look": len(question.looks) if ended else taken + 1, "failed": failed}
        decision, found = _look(arms, question, decision, open_arms, look, meter)
        tell(found, decision)


class Meter:
    """What a decision has spent of its budget: runs and their hours by their records, hours by the clock; those of a
    call that was killed count until its last look."""

    def __init__(self, arms: Arms, decision: Decision, budget: tuple[float, str] | None) -> None:
        self.budget = budget
        self._began, self._before_h = time.monotonic(), float(decision.looks[-1]["hours"]) if decision.looks else 0.0
        self._jobs = [job for job in arms.plan.jobs if job.spec.run_id not in decision.design["found"]]
        self._n_before = len(self._records())

    def _records(self) -> list[Mapping[str, Any]]:
        return [read_run(job.run_dir) for job in self._jobs if _status(job) in FINAL]

    @property
    def hours(self) -> float:
        return self._before_h + (time.monotonic() - self._began) / 3600

    def seeds(self, runs: int) -> float:
        """How many more seeds of so many runs the budget allows; one where the cost of a run is not known yet."""
        if self.budget is None:
            return math.inf
        (amount, unit), ended = self.budget, self._records()
        n, run_hours = len(ended), math.fsum(one.get("seconds") or 0 for one in ended) / 3600
        spent = {"h": self.hours, "runs": n, "gpuh": run_hours}[unit]
        known, of = {"h": (self.hours - self._before_h, n - self._n_before), "runs": (1, 1)}.get(unit, (run_hours, n))
        cost = runs * known / of if of else 0.0
        return (amount - spent) // cost if cost > 0 else float(spent < amount)


def _train(
    arms: Arms, open_arms: Sequence[int], n_seeds: int, base: DictConfig, extra: Sequence[str], meter: Meter
) -> tuple[list[SweptRun], bool]:
    """Train the arms with ``n_seeds`` seeds, failed runs twice. Returns the runs, and whether the budget ended."""
    runs: dict[Path, SweptRun] = {}
    seeds = [s for s in range(n_seeds) if any(_status(job) not in FINAL for job in arms.of_seed(open_arms, s))]
    while seeds:
        n = int(min(meter.seeds(len(arms.of_seed(open_arms, seeds[0]))), len(seeds)))
        # What runs cost is known before any is trained.
        if n_seeds - len(seeds) + n < FEWEST_SEEDS and (n < 1 or (meter.budget and meter.budget[1] == "runs")):
            what = f"--budget ends before all arms have {FEWEST_SEEDS} seeds, without which there is no test"
            raise UsageError(f"{what}: no look is taken; repeat the command with a larger one")
        if n < 1:
            return list(runs.values()), True
        jobs = [job for seed in seeds[:n] for job in arms.of_seed(open_arms, seed)]
        for _ in range(2):
            # Test scores are not shown before a look is recorded.
            ended = carry_out(Plan(jobs), base, extra, score="val_dice").runs
            runs |= {run.run_dir: run for run in ended}
            jobs = [job for job, run in zip(jobs, ended, strict=True) if run.status == "failed"]
            if not jobs or any(run.stopped for run in ended):
                break
        if any(run.status != "failed" and run.status not in FINAL for run in runs.values()):
            break
        seeds = seeds[n:]
    return list(runs.values()), False


def _look(
    arms: Arms, question: Question, decision: Decision, open_arms: Sequence[int], look: dict[str, Any], meter: Meter
) -> tuple[Decision, Found]:
    """Record a look; returns the decision with it, and its result."""
    number = int(look["look"])
    jobs = [job for seed in range(question.looks[number - 1]) for job in arms.of_seed(open_arms, seed)]
    done = sorted(job.spec.run_id for job in jobs if _status(job) == "done")
    # Where there are no new runs, those at hand are tested again, at the share of this look.
    runs = [run_id for run_id in done if run_id not in decision.used] or done
    look |= {"runs": runs, "date": now(), "hours": round(meter.hours, 4)}
    look |= {key: decision.design[key][number - 1] for key in SHARES}
    found = look_at(arms, question, decision.with_look(look))
    look["comparisons"] = [
        {"block": block.title, "candidate": c.candidate, "reference": c.reference, "n": evidence_of(c).n}
        | {key: getattr(c.deciding, key) for key in ("mean", "low", "high", "p")}
        | {"p_holm": c.p_holm, "verdict": str(c.verdict), "state": standing.state, "power": standing.power}
        for block, c, standing in found.compared
    ]
    decision = decision.with_look(look)
    write_decision(decision)
    return decision, found


def look_at(arms: Arms, question: Question, decision: Decision) -> Found:
    """The result of a decision's last look, from the records of its runs."""
    loaded = load_checked([arms.study], decision=decision)
    planned = {job.spec.run_id for job in arms.plan.jobs}
    loaded = dataclasses.replace(loaded, runs=tuple(run for run in loaded.runs if run.run_id in planned))
    result = compare([arms.study], question.metric, reference=question.reference, rope=question.rope, loaded=loaded)
    made = [(block, c) for block in result.blocks for c in block.comparisons]
    left = question.looks[-1] if int(decision.looks[-1]["look"]) < len(question.looks) else None
    last = decision.design["share"][-1], decision.design["share_within"][-1]
    evidence, verdicts = [evidence_of(c) for _, c in made], [c.verdict for _, c in made]
    found = standings(evidence, verdicts, result.metric.rope, left, last)
    # Fewer undecided comparisons make a chance larger, but what has stopped stays so.
    before = decision.looks[-2]["comparisons"] if len(decision.looks) > 1 else []
    states = {(c["block"], frozenset((c["candidate"], c["reference"]))): c["state"] for c in before}
    compared, directories = [], set[Path]()
    for (block, c), one in zip(made, found, strict=True):
        pair = frozenset((c.candidate, c.reference))
        state = states.get((block.title, pair), "open")
        state = state if state in ("images", "seeds") and one.state != "decided" else one.state
        compared.append((block, c, dataclasses.replace(one, state=state)))
        if state == "open":
            directories |= {Path(path) for arm in block.ranking if arm.arm in pair for path in arm.directories}
    open_arms = (
        n
        for n, by_seed in enumerate(arms.jobs)
        if any(job.run_dir.absolute() in directories for of_seed in by_seed.values() for job in of_seed)
    )
    return Found(result, tuple(compared), tuple(open_arms))


# What to expect: a dry run


STUDIES = 200  # that a dry run simulates
USUAL = (0.01, 0.03, 0.05), "usual ones: 1 point from seed to seed, 3 from image to image, 5 for the rest"


def variances_of(arms: Arms, question: Question) -> tuple[tuple[float, ...], str] | None:
    """Standard deviations of an arm's score from seed to seed, image to image, and of the rest, in the metric's unit;
    where they come from, in words: the runs at hand (the mean over comparisons), else `USUAL` for scores in points. No
    result of these runs is shown, so this is no look."""
    try:
        loaded = load([arms.study])
        runs = tuple(run for run in loaded.runs if run.row.get("config_seed"))
        result = compare([], question.metric, loaded=dataclasses.replace(loaded, runs=runs), rope=question.rope)
        known = [c.variance for block in result.blocks for c in block.comparisons if c.variance and c.n_seeds > 2]
    except UsageError:
        known = []
    if known:
        # Two arms make a difference.
        parts = (sum(one[part] for one in known) / len(known) / 2 for part in PARTS[1:])
        return tuple(map(math.sqrt, parts)), f"those of {pluralize(len(known), 'comparison')} of the runs at hand"
    metric = METRICS.get(question.metric)
    return USUAL if metric and metric.points else None


def expected(
    arms: Arms, question: Question, sds: Sequence[float], difference: float, rope: float
) -> tuple[float, float]:
    """(runs, share of comparisons decided) of simulated studies in which every candidate differs by ``difference``.
    sds: as in `variances_of`."""
    n_blocks = len({job.spec.dataset_sha for job in arms.plan.jobs})
    spec, C = arms.plan.jobs[0].spec, max(arms.m // n_blocks, 1)
    N, rng = max(len(spec.split["test"]), 2), np.random.default_rng(0)
    sizes = N, len(spec.split["train"])
    K, per_seed, runs, n_decided = question.looks[-1], spec.config.split.per_seed, 0, 0
    for _ in range(STUDIES):
        shapes = (K, 1), (K if per_seed else 1, N), (K, N)
        seed, image, rest = (sd * rng.normal(size=(C + 1, *shape)) for sd, shape in zip(sds, shapes, strict=True))
        scores = seed + image + rest
        D_CKN = scores[1:] - scores[0] + difference
        spent, verdicts = simulated(D_CKN, question.looks, rope, sizes if per_seed else None)
        runs += spent
        n_decided += sum(verdict != Verdict.INCONCLUSIVE for verdict in verdicts)
    per_arm = len(arms.plan.jobs) / (n_blocks * (C + 1) * K)
    return n_blocks * per_arm * runs / STUDIES, n_decided / (STUDIES * C)
