"""Learning rates per arm: every arm gets the same number of rates and the same seeds, compared on validation images.

The runs are saved in a study of their own, so that a search can be continued. The rates are a grid, or are chosen by
Optuna's tree-structured Parzen estimator from the results of the earlier runs; tuning.db keeps its trials for viewing.
"""

import math
import os
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from segexp.config.arm import (
    ARM_GROUPS,
    CONTEXT,
    OF_ONE_SEED,
    OF_THE_SPLIT,
    Arm,
    arm_label,
    arm_of,
    conditions_of,
    write_tuned,
)
from segexp.config.compose import compose_job, parse_overrides, typed_of
from segexp.data import stream_seed
from segexp.errors import UsageError
from segexp.records import flatten, read_run, write_atomic
from segexp.records.files import shown_command
from segexp.records.formatting import csv_table, pluralize
from segexp.records.owned import clear_litter, writer
from segexp.running import LoadedDataset
from segexp.sweep import SweptRun, carry_out
from segexp.sweep.plan import Job, Plan, base_of, labelled, make_plan, spec_of, study_for

FACTORS = (0.1, 0.3, 1.0, 3.0, 10.0)  # the default grid, as multiples of optimizer.lr

RANDOM_TRIALS = 3
"""Trials of an arm that Optuna draws at random before it uses their results; its default of 10 would be all."""


@dataclass(frozen=True)
class Search:
    """A grid of ``rates`` (None: `FACTORS`), or a number of ``trials`` that Optuna chooses within ``bounds``."""

    rates: tuple[float, ...] | None = None
    trials: int | None = None
    bounds: tuple[float, float] | None = None


@dataclass(frozen=True)
class Trial:
    """One learning rate of an arm: validation Dice of each seed, None if it diverged."""

    lr: float
    scores: tuple[float | None, ...]

    @property
    def mean(self) -> float:
        """Mean over seeds; -inf if one diverged, so that the rate is not chosen."""
        known = [s for s in self.scores if s is not None]
        return statistics.fmean(known) if len(known) == len(self.scores) else -math.inf


@dataclass
class Tuning:
    """The result of a search."""

    trials: dict[Arm, list[Trial]]
    bounds: tuple[float, float]
    seeds: list[int]
    context: dict[str, Any]
    folder: Path
    grid: bool
    runs: list[SweptRun] = field(default_factory=list)

    @property
    def unfinished(self) -> list[SweptRun]:
        """Runs that are neither done nor diverged: while there are any, no rate is chosen."""
        return [one for one in self.runs if one.status not in ("done", "diverged")]

    def best(self, arm: Arm) -> Trial | None:
        """The rate with the best mean validation Dice, the lowest of equals; None if every rate diverged."""
        best = max(self.trials[arm], key=lambda tried: (tried.mean, -tried.lr))
        return best if math.isfinite(best.mean) else None

    def edge(self, arm: Arm) -> str:
        """ "lowest" or "highest" if the best rate is the lowest or highest that was tried, else ""."""
        best = self.best(arm)
        if best is None or len(self.trials[arm]) == 1:
            return ""
        low, high = self.bounds
        # The edge of a sampled range is a tenth of its logarithm on either side.
        slack = 1.0 if self.grid else (high / low) ** 0.1
        return "lowest" if best.lr <= low * slack else "highest" if best.lr >= high / slack else ""


def tune(
    jobs: Sequence[Job], base: DictConfig, extra: Sequence[str], search: Search, tell: Callable[[str], None]
) -> Tuning:
    """Search a rate for each arm of these jobs, with their seeds, inside a `hydra_session`. tell: prints a line.

    Raises UsageError if arms differ in their seeds, or jobs in more than arm and seed.
    """
    context = _context(jobs)
    arms: dict[Arm, list[Job]] = {}
    for job in jobs:
        arms.setdefault(arm_of(job.spec.config), []).append(job)
    seeds_of = {arm: sorted(job.spec.config.seed for job in several) for arm, several in arms.items()}
    first, seeds = next(iter(seeds_of.items()))
    for arm, its in seeds_of.items():
        if len(set(its)) < len(its):
            raise UsageError(f"{arm_label(arm)} has seeds {its}: each seed once")
        if its != seeds:
            raise UsageError(f"{arm_label(arm)} has seeds {its}, {arm_label(first)} has {seeds}")
    config = jobs[0].spec.config
    rates = search.rates or tuple(float(f"{config.optimizer.lr * factor:.2g}") for factor in FACTORS)  # type: ignore[attr-defined]
    bounds = search.bounds or (min(rates), max(rates))
    folder = jobs[0].run_dir.parent
    tuning = Tuning({arm: [] for arm in arms}, bounds, seeds, context, folder, search.trials is None)
    number = search.trials or len(rates)
    parts = pluralize(len(arms), "arm"), pluralize(number, "learning rate"), pluralize(len(seeds), "seed")
    tell(f"{' x '.join(parts)} = {pluralize(len(jobs) * number, 'run')}")
    folds = context["split.folds"] or "all groups"
    own = f"fold {context['split.fold']} of {folds}" if context["split.fold"] is not None else ""
    own += f"{' and ' if own else ''}seed {seeds[0]}" if config.split.per_seed else ""
    if own:
        tell(f"within {own}: use these rates there only, its validation images are test images of others")
    images: dict[str, LoadedDataset] = {}

    def run(chosen: Mapping[Arm, Iterable[float]]) -> dict[Arm, list[Trial]]:
        by_rate: dict[tuple[Arm, float], list[Job]] = {}
        for arm, rate in ((arm, rate) for arm, its_rates in chosen.items() for rate in its_rates):
            for job in arms[arm]:
                words = (*job.overrides, f"optimizer.lr={rate!r}")
                spec = spec_of(typed_of(compose_job(words, extra)), images)
                by_rate.setdefault((arm, rate), []).append(Job(f"{job.label} {words[-1]}", words, spec))
        plan = Plan([job for several in by_rate.values() for job in several])
        tuning.runs += carry_out(plan, base, extra, score="val_dice").runs
        found: dict[Arm, list[Trial]] = {arm: [] for arm in chosen}
        if not tuning.unfinished:
            for (arm, rate), several in by_rate.items():
                dice = [read_run(job.run_dir).get("summary", {}).get("val_dice") for job in several]
                scores = [None if value is None or math.isnan(value) else float(value) for value in dice]
                found[arm].append(Trial(rate, tuple(scores)))
        return found

    if search.trials is None:
        tuning.trials = run(dict.fromkeys(arms, rates))
    else:
        _sample(arms, search.trials, tuning, run)
    return tuning


def tuning_plan(overrides: Sequence[str], extra: Sequence[str]) -> Plan:
    """The plan of a sweep over arms and seeds (default 0 and 1), in a study of its own. Raises UsageError."""
    base = base_of(overrides, extra)
    pairs = [pair for pair in base.sweep.pairs or () if isinstance(pair, Mapping)]
    given = {o.key_or_group for o in parse_overrides(overrides)}.union(base.hydra.sweeper.params or (), *pairs)
    for key in {"optimizer.lr", "tuned"} & given:
        raise UsageError(f"{key}: `segexp tune` finds the learning rate; set the rates to try with --rates")
    seeds = [] if "seed" in given or base.sweep.pairs else ["seed=0,1"]
    plan = make_plan([*overrides, *seeds, f"study.name={study_for(str(base.study.name))}"], extra)
    if plan.refused:
        raise UsageError(labelled(plan.refused[0].label, plan.refused[0].reason))
    _context(plan.jobs)
    return plan


def _context(jobs: Sequence[Job]) -> dict[str, Any]:
    """The conditions of the search. Raises UsageError if jobs differ in more than arm and seed."""
    flats = [flatten(job.spec.config) for job in jobs]
    values: dict[str, set[str]] = {}
    for job, flat in zip(jobs, flats, strict=True):
        shas = {"dataset_sha": job.spec.dataset_sha, "split_sha": job.spec.split_sha}
        for key, value in (conditions_of(flat) | {key: flat[key] for key in CONTEXT} | shas).items():
            values.setdefault(key, set()).add(str(value))
    for key, several in values.items():
        if len(several) > 1:
            cure = "tune once for each; only arms and seeds can be swept"
            if key == "split.fold":
                cure = "validation images of one fold are test images of another: tune within one, as split.fold=0"
            if key == "split_sha" and flats[0]["split.per_seed"]:
                key, several = "split.per_seed", {"true"}  # noqa: PLW2901
                cure = "validation images of one seed are test images of another: tune one, with seed=0 or --seeds 0"
            raise UsageError(f"{key} is {' and '.join(sorted(several))}: {cure}")
    of_one_seed = OF_ONE_SEED if flats[0]["split.per_seed"] else ()
    return {key: flats[0][key] for key in ("optimizer.name", *CONTEXT, *OF_THE_SPLIT, *of_one_seed)}


def _sample(
    arms: Mapping[Arm, list[Job]],
    trials: int,
    tuning: Tuning,
    run: Callable[[Mapping[Arm, Iterable[float]]], dict[Arm, list[Trial]]],
) -> None:
    """Optuna chooses a rate per arm and round from the arm's earlier results. Raises UsageError without Optuna."""
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
            # A seed per trial and no memory but the runs: an interrupted search continues with the same rates.
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
        # For Optuna's dashboard: its SQLite storage, a study per arm, replaced atomically.
        clear_litter(tuning.folder, ".tuning.db-*")
        partial = tuning.folder / f".tuning.db-{writer()}.partial"
        partial.unlink(missing_ok=True)
        storage = optuna.storages.RDBStorage(f"sqlite:///{partial}")
        for arm, study in studies.items():
            copy = optuna.create_study(study_name=arm_label(arm), storage=storage, direction="maximize")
            copy.add_trials(study.trials)
        storage.engine.dispose()
        os.replace(partial, tuning.folder / "tuning.db")


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
    arms = {
        arm: {"lr": best.lr, "val_dice": best.mean, "on_the_edge": tuning.edge(arm) or None}
        for arm in tuning.trials
        if (best := tuning.best(arm)) is not None
    }
    found = {
        "command": shown_command(command),
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
    table = path.with_name(f"{path.stem}_rates.csv")
    write_atomic(table, csv_table(table_of(tuning)))
    return table
