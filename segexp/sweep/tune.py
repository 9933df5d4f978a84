"""Fair learning rates: every arm gets the same budget of rates, on the same seeds, judged on validation alone.

The runs are ordinary ones in a study of their own, so that a search that was stopped goes on where it was. A grid, or
Optuna's tree-structured Parzen estimator, whose only memory are these runs: what it proposes follows from what the
earlier ones gave. Its trials are kept in tuning.db, to be looked at.
"""

import csv
import io
import math
import os
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from segexp.config.arm import ARM_GROUPS, CONTEXT, Arm, arm_label, arm_of, conditions_of, write_tuned
from segexp.config.compose import parse_overrides
from segexp.data.seeds import stream_seed
from segexp.errors import UsageError
from segexp.records import flatten, read_run, write_atomic
from segexp.running.prepare import LoadedDataset
from segexp.sweep.plan import Job, Plan, base_of, job_with, make_plan
from segexp.sweep.sweep import SweptRun, carry_out

FACTORS = (0.1, 0.3, 1.0, 3.0, 10.0)
"""The default grid, as multiples of optimizer.lr."""

RANDOM_TRIALS = 3
"""How many of an arm's trials Optuna draws at random before it looks at what they gave; its own 10 would be all."""


@dataclass(frozen=True)
class Search:
    """What is tried: ``rates`` (None: `FACTORS`), or as many ``trials`` as Optuna may propose within ``bounds``."""

    rates: tuple[float, ...] | None = None
    trials: int | None = None
    bounds: tuple[float, float] | None = None


@dataclass(frozen=True)
class Trial:
    """One learning rate of an arm: validation Dice of each seed, None where it diverged."""

    lr: float
    scores: tuple[float | None, ...]

    @property
    def mean(self) -> float:
        """Mean over seeds; -inf where one diverged: a rate that may blow up is no choice."""
        known = [s for s in self.scores if s is not None]
        return statistics.fmean(known) if len(known) == len(self.scores) else -math.inf


@dataclass
class Tuning:
    """What a search has found. open: runs that are neither done nor diverged, for which no arm can be judged."""

    trials: dict[Arm, list[Trial]]
    bounds: tuple[float, float]
    seeds: list[int]
    context: dict[str, Any]
    folder: Path
    grid: bool
    runs: list[SweptRun] = field(default_factory=list)

    @property
    def unfinished(self) -> list[SweptRun]:
        return [one for one in self.runs if one.status not in ("done", "diverged")]

    def best(self, arm: Arm) -> Trial | None:
        """The rate with the best mean validation Dice, the lowest of equals; None where every one diverged."""
        best = max(self.trials[arm], key=lambda tried: (tried.mean, -tried.lr))
        return best if math.isfinite(best.mean) else None

    def edge(self, arm: Arm) -> str:
        """ "lowest" or "highest" where the best rate is the last one on that side of what was tried, else ""."""
        best = self.best(arm)
        if best is None or len(self.trials[arm]) == 1:
            return ""
        low, high = self.bounds
        # Of a range that is sampled the last tenth (of its logarithm) on either side is its edge.
        slack = 1.0 if self.grid else (high / low) ** 0.1
        return "lowest" if best.lr <= low * slack else "highest" if best.lr >= high / slack else ""


def tune(
    jobs: Sequence[Job], base: DictConfig, extra: Sequence[str], search: Search, tell: Callable[[str], None]
) -> Tuning:
    """Search a rate for the arms of these jobs, on the seeds they have, inside a `hydra_session`.

    Raises UsageError where arms differ in their seeds, or jobs in more than arm and seed.
    """
    context = _context(jobs)
    arms: dict[Arm, list[Job]] = {}
    for job in jobs:
        arms.setdefault(arm_of(job.spec.config), []).append(job)
    seeds = _common_seeds(arms)
    config = jobs[0].spec.config
    rates = search.rates or tuple(float(f"{config.optimizer.lr * factor:.2g}") for factor in FACTORS)  # type: ignore[attr-defined]
    bounds = search.bounds or (min(rates), max(rates))
    folder = jobs[0].run_dir.parent
    tuning = Tuning({arm: [] for arm in arms}, bounds, seeds, context, folder, search.trials is None)
    number = search.trials or len(rates)
    tell(f"{len(arms)} arms x {number} learning rates x {len(seeds)} seeds = {len(jobs) * number} runs")
    if context["split.fold"] is not None:
        tell(
            f"within fold {context['split.fold']} of {context['split.folds']}: the images that judge here are "
            "test images of other folds, so that the rates are for this fold alone"
        )
    images: dict[str, LoadedDataset] = {}

    def run(chosen: Mapping[Arm, Iterable[float]]) -> dict[Arm, list[Trial]]:
        """Carry out these rates of every arm and read their scores."""
        by_rate = {
            (arm, rate): [job_with(job, f"optimizer.lr={rate!r}", extra, images) for job in arms[arm]]
            for arm, its_rates in chosen.items()
            for rate in its_rates
        }
        plan = Plan([job for several in by_rate.values() for job in several])
        tuning.runs += carry_out(plan, base, extra, score="val_dice").runs
        found: dict[Arm, list[Trial]] = {arm: [] for arm in chosen}
        if not tuning.unfinished:
            for (arm, rate), several in by_rate.items():
                found[arm].append(Trial(rate, tuple(_validation_dice(job.run_dir) for job in several)))
        return found

    if search.trials is None:
        tuning.trials = run(dict.fromkeys(arms, rates))
    else:
        _sample(arms, search.trials, tuning, run)
    return tuning


def tuning_plan(overrides: Sequence[str], extra: Sequence[str]) -> Plan:
    """The plan of a sweep over arms and seeds (two, where none is named), in a study of their own.

    Raises UsageError.
    """
    base = base_of(overrides, extra)
    _check_swept(overrides, base)
    given = {o.key_or_group for o in parse_overrides(overrides)}
    seeds = [] if "seed" in given or base.sweep.pairs or "seed" in (base.hydra.sweeper.params or {}) else ["seed=0,1"]
    plan = make_plan([*overrides, *seeds, f"study.name={study_for(str(base.study.name))}"], extra)
    if plan.refused:
        raise UsageError(f"{plan.refused[0].label}: {plan.refused[0].reason}")
    return plan


def _common_seeds(arms: Mapping[Arm, Sequence[Job]]) -> list[int]:
    """The seeds that every arm has. Raises UsageError where they differ or come twice: budgets must be equal."""
    seeds = {arm: sorted(job.spec.config.seed for job in jobs) for arm, jobs in arms.items()}
    first = next(iter(arms))
    for arm, its in seeds.items():
        if len(set(its)) < len(its):
            raise UsageError(f"{arm_label(arm)} has seeds {its}: each seed once")
        if its != seeds[first]:
            raise UsageError(f"{arm_label(arm)} has seeds {its}, {arm_label(first)} has {seeds[first]}")
    return seeds[first]


ONE_FOLD = "validation images of one fold are test images of another: tune within one fold, as with split.fold=0"


def _check_swept(overrides: Sequence[str], base: DictConfig) -> None:
    """A rate belongs to an arm; whatever else is swept would need a search of its own. Raises UsageError."""
    given = {o.key_or_group for o in parse_overrides(overrides)}
    of_study = [f"{key}={value}" for key, value in (base.hydra.sweeper.params or {}).items() if key not in given]
    for override in parse_overrides([*overrides, *of_study]):
        key = override.key_or_group
        if override.is_sweep_override() and key == "split.fold":
            raise UsageError(f"'{override.input_line}': {ONE_FOLD}")
        if override.is_sweep_override() and key != "seed" and key.split(".")[0] not in ARM_GROUPS:
            raise UsageError(
                f"'{override.input_line}': only {', '.join(ARM_GROUPS)} and seed can be swept while tuning; "
                "tune once for each value"
            )
        if key in ("optimizer.lr", "tuned"):
            raise UsageError(f"'{override.input_line}': `segexp tune` looks for it; give what it tries as --rates")
    if base.sweep.pairs and any(not _of_arm(pair) for pair in base.sweep.pairs):
        raise UsageError(f"sweep.pairs: only {', '.join(ARM_GROUPS)} and seed can be swept while tuning")


def _of_arm(pair: Any) -> bool:
    keys = pair if isinstance(pair, Mapping) else ()
    return all(key == "seed" or str(key).split(".")[0] in ARM_GROUPS for key in keys)


def study_for(name: str) -> str:
    """The study that the runs of a search belong to."""
    return name if name.endswith("-tuning") else f"{name}-tuning"


def _context(jobs: Sequence[Job]) -> dict[str, Any]:
    """What the rates are found under. Raises UsageError where jobs differ in it, or in anything else but arm and seed:
    each needs a search of its own."""
    flats = [flatten(job.spec.config) for job in jobs]
    values: dict[str, set[str]] = {}
    for job, flat in zip(jobs, flats, strict=True):
        shas = {"dataset_sha": job.spec.dataset_sha, "split_sha": job.spec.split_sha}
        for key, value in (conditions_of(flat) | {key: flat[key] for key in CONTEXT} | shas).items():
            values.setdefault(key, set()).add(str(value))
    for key, several in values.items():
        if len(several) > 1:
            cure = ONE_FOLD if key == "split.fold" else "tune once for each, a rate belongs to both"
            raise UsageError(f"{key} is {' and '.join(sorted(several))}: {cure}")
    return {key: flats[0][key] for key in ("optimizer.name", *CONTEXT)}


def _validation_dice(run_dir: Path) -> float | None:
    summary = read_run(run_dir).get("summary", {})
    value = summary.get("val_dice")
    return None if value is None or math.isnan(value) else float(value)


def _sample(
    arms: Mapping[Arm, list[Job]],
    trials: int,
    tuning: Tuning,
    run: Callable[[Mapping[Arm, Iterable[float]]], dict[Arm, list[Trial]]],
) -> None:
    """Optuna proposes a rate per arm and round, knowing what the arm's earlier ones gave. Raises UsageError."""
    try:
        import optuna
    except ImportError:
        raise UsageError("--trials needs Optuna: pip install 'segexp[optuna]', or search a grid (--rates)") from None

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    low, high = tuning.bounds
    studies = {arm: optuna.create_study(direction="maximize") for arm in arms}
    for number in range(trials):
        asked, rates = {}, {}
        for arm, study in studies.items():
            # A seed per proposal, no memory but the runs: a search that was interrupted proposes what it would have.
            seed = stream_seed(0, "tune", *arm, number) % 2**32
            study.sampler = optuna.samplers.TPESampler(n_startup_trials=RANDOM_TRIALS, seed=seed)
            asked[arm] = study.ask()
            rates[arm] = [asked[arm].suggest_float("lr", low, high, log=True)]
        found = run(rates)
        if tuning.unfinished:
            return
        for arm, (tried,) in found.items():
            tuning.trials[arm].append(tried)
            if math.isfinite(tried.mean):
                studies[arm].tell(asked[arm], tried.mean)
            else:
                studies[arm].tell(asked[arm], state=optuna.trial.TrialState.FAIL)
        _keep(studies, tuning.folder / "tuning.db")


def _keep(studies: Mapping[Arm, Any], path: Path) -> None:
    """The trials so far as Optuna's sqlite storage, a study per arm, for its dashboard; written whole or not at all."""
    import optuna

    partial = path.with_name(f".{path.name}-{os.getpid()}.partial")
    partial.unlink(missing_ok=True)
    storage = optuna.storages.RDBStorage(f"sqlite:///{partial}")
    for arm, study in studies.items():
        copy = optuna.create_study(study_name=arm_label(arm), storage=storage, direction="maximize")
        copy.add_trials(study.trials)
    storage.engine.dispose()
    os.replace(partial, path)


COLUMNS = (*ARM_GROUPS, "lr", "n_seeds", "n_diverged", "val_dice", "val_dice_sd", "chosen")


def table_of(tuning: Tuning) -> list[dict[str, Any]]:
    """A row per arm and learning rate tried, in order of the rates."""
    rows = []
    for arm, several in tuning.trials.items():
        best = tuning.best(arm)
        for tried in sorted(several, key=lambda t: t.lr):
            known = [s for s in tried.scores if s is not None]
            rows.append(
                dict(zip(ARM_GROUPS, arm, strict=True))
                | {
                    "lr": tried.lr,
                    "n_seeds": len(tried.scores),
                    "n_diverged": len(tried.scores) - len(known),
                    "val_dice": statistics.fmean(known) if known else None,
                    "val_dice_sd": statistics.stdev(known) if len(known) > 1 else None,
                    "chosen": int(tried is best),
                }
            )
    return rows


def write_tuning(tuning: Tuning, path: Path, command: Sequence[str]) -> Path:
    """Write ``path`` (tuned.yaml) and the table of all rates beside it; returns the table's path."""
    arms: dict[Arm, dict[str, Any]] = {}
    for arm in tuning.trials:
        best = tuning.best(arm)
        if best is not None:
            arms[arm] = {"lr": best.lr, "val_dice": best.mean, "on_the_edge": tuning.edge(arm) or None}
    found = {
        "command": list(command),
        "judged_by": "val_dice, mean over seeds",
        "budget": {
            "rates_per_arm": max(map(len, tuning.trials.values())),
            "seeds": tuning.seeds,
            "search": "grid" if tuning.grid else "optuna, tree-structured Parzen estimator",
            "lowest": tuning.bounds[0],
            "highest": tuning.bounds[1],
        },
        "context": tuning.context,
    }
    write_tuned(path, found, arms)
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(table_of(tuning))
    table = path.with_name(f"{path.stem}_rates.csv")
    write_atomic(table, text.getvalue())
    return table
