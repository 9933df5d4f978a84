"""The runs of a sweep: every combination of the swept values that makes sense, each with its directory; or the runs of
a study, from their directories, to finish them or to tune their arms.

Mistakes in a sweep are reported here, before its first run.
"""

import dataclasses
import hashlib
import itertools
import json
import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override, RangeSweep, Transformer
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf

from segexp.config import CODE_GROUPS, STUDY_VARIANTS, YAML_GROUPS, Config, alias_target
from segexp.config.arm import ARM_GROUPS, arm_of, conditions_of, member_of, with_tuned_rate
from segexp.config.compose import (
    check_root,
    compose_job,
    compose_raw,
    parse_overrides,
    quoted,
    recorded_in,
    recorded_tree,
    tree_overrides,
    typed_of,
)
from segexp.errors import PairError, UsageError
from segexp.records import check_numerics, flatten, write_json
from segexp.records.files import shown_command
from segexp.records.formatting import pluralize
from segexp.records.plugins import check_plugins, lacks_plugins, plugins_record
from segexp.records.runs import FINAL, RESUMABLE, Run, runs_in, studies_in, sweeps_folder
from segexp.registry import nearest
from segexp.running import LoadedDataset, RunSpec, load_dataset, now, prepare


@dataclass(frozen=True)
class Job:
    """One run of a sweep. label: the overrides that distinguish it from the others; overrides: all of them."""

    label: str
    overrides: tuple[str, ...]
    spec: RunSpec

    @property
    def run_dir(self) -> Path:
        return self.spec.run_dir


@dataclass(frozen=True)
class LeftOut:
    """A combination that is not run, and the reason in one line."""

    label: str
    reason: str


def labelled(label: str, reason: str) -> str:
    """The reason with what it is about, which some reasons begin with."""
    return reason if reason.startswith(f"{label}: ") else f"{label}: {reason}"


@dataclass
class Plan:
    """The runs of a sweep, and what is left out.

    dropped: activations and losses that do not fit, and what ``sweep.exclude`` lists. refused: combinations with a
    mistake. duplicates: other spellings of a run of the plan.
    """

    jobs: list[Job] = field(default_factory=list)
    dropped: list[LeftOut] = field(default_factory=list)
    refused: list[LeftOut] = field(default_factory=list)
    duplicates: list[LeftOut] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def base_of(overrides: Sequence[str], extra: Sequence[str]) -> DictConfig:
    """The configuration of the overrides that are not swept, with study and launcher. Raises UsageError."""
    return compose_job([str(o.input_line) for o in parse_overrides(overrides) if not o.is_sweep_override()], extra)


def make_plan(overrides: Sequence[str], extra: Sequence[str], base: DictConfig | None = None) -> Plan:
    """Expand a sweep, inside a `hydra_session`. base: its `base_of`, if known.

    Raises UsageError for a mistake in the sweep as a whole, and if no combination can be run.
    """
    combinations, excluded = _combinations(overrides, extra, base or base_of(overrides, extra))
    plan = Plan()
    images: dict[str, LoadedDataset] = {}
    found: dict[Path, Job] = {}
    unused = dict(enumerate(excluded))
    for swept, words in combinations:
        label = " ".join(swept) or " ".join(words)
        try:
            tree = compose_job(words, extra)
            rule = next((i for i, rule in enumerate(excluded) if _matches(rule, tree)), None)
            if rule is not None:
                unused.pop(rule, None)
                plan.dropped.append(LeftOut(label, f"excluded by sweep.exclude: {_rule_text(excluded[rule])}"))
                continue
            spec = spec_of(with_tuned_rate(typed_of(tree)), images)
        except PairError as error:
            plan.dropped.append(LeftOut(label, str(error)))
            continue
        except (UsageError, OSError) as error:
            plan.refused.append(LeftOut(label, str(error)))
            continue
        plan.warnings += [w for w in spec.warnings if w not in plan.warnings]
        job = Job(label, words, spec)
        if job.run_dir in found:
            plan.duplicates.append(LeftOut(label, f"the same run as {found[job.run_dir].label}"))
            continue
        found[job.run_dir] = job
        plan.jobs.append(job)
    plan.notes += [f"sweep.exclude: {_rule_text(rule)} matches no run" for rule in unused.values()]
    if not plan.jobs:
        first, *others = plan.refused + plan.dropped
        every = f"none of the {len(others) + 1} combinations can be run; the first: " if others else ""
        raise UsageError(every + first.reason)
    return plan


def spec_of(config: Config, images: dict[str, LoadedDataset]) -> RunSpec:
    """A prepared run. images: keeps the data sets, each of which is read once. Raises UsageError."""
    split = config.split
    drawn = (
        None
        if config.dataset.limit is None
        else [split.source, split.seed, split.folds, split.method, split.leave_one_group_out]
    )
    key = json.dumps([flatten(config.dataset), drawn], sort_keys=True, default=str)
    if key not in images:
        images[key] = load_dataset(config)
    return prepare(config, images[key])


# What is swept

Alternative = tuple[str, ...]  # overrides that go together

Rule = Mapping[str, Any]  # keys of the configuration with a value, or for ``sweep.exclude`` with a list of values

MOST_RUNS = 100_000
"""Runs of one sweep."""

OF_THE_SWEEP = ("study", *STUDY_VARIANTS, "outputs", "tuned", "resume", "sweep", "hydra")
"""Keys that have one value in a sweep."""


def _combinations(
    overrides: Sequence[str], extra: Sequence[str], base: DictConfig
) -> tuple[Iterator[tuple[Alternative, Alternative]], list[Rule]]:
    """(the swept overrides, all overrides) of every combination; and the rules of ``sweep.exclude``."""
    given = parse_overrides(overrides)
    for override in (one for one in given if one.is_sweep_override()):
        key = override.key_or_group
        if key in ("study", *STUDY_VARIANTS):
            raise UsageError(f"-m {key}=A,B: start one sweep per {key}, each has a sweep of its own")
        if key.startswith(("hydra", "sweep", "tuned", "resume")):
            raise UsageError(f"'{override.input_line}': a sweep has one value only of {key}")
    if not str(base.hydra.sweeper._target_).endswith(".BasicSweeper"):
        raise UsageError("hydra/sweeper: leave it out; a sweep runs every combination, `segexp tune` searches")
    pairs, excluded = _rules(base, "pairs"), _rules(base, "exclude")
    paired = {key for pair in pairs for key in pair}
    # As everywhere, the last value of a key counts.
    last = {override.key_or_group: override for override in given}
    for key, value in (base.hydra.sweeper.params or {}).items():
        if isinstance(value, Mapping | ListConfig):
            raise UsageError(f"hydra.sweeper.params.{key}: write the values as one text, as in '{key}: a,b'")
        if key not in last and key not in paired:
            (last[key],) = parse_overrides([f"{key}={value}"])
    for key, override in last.items():
        if key in paired:
            raise UsageError(f"'{override.input_line}': sweep.pairs also sets {key}: leave one out")
    if base.tuned is not None and "optimizer.lr" in last.keys() | paired:
        raise UsageError("tuned=FILE gives each arm its learning rate: leave optimizer.lr out")
    _check_values(list(last.values()), extra)
    of_runs = [override for key, override in last.items() if not key.startswith(("hydra", "sweep."))]
    axes: list[list[Alternative]] = [
        [(text,) for text in _alternatives(override)] for override in of_runs if override.is_sweep_override()
    ]
    if pairs:
        axes.insert(0, [tuple(f"{key}={_written(value)}" for key, value in pair.items()) for pair in pairs])
    swept = [str(override.input_line) for override in of_runs if override.is_sweep_override()]
    _check_number(math.prod(map(len, axes)), " ".join(swept))
    fixed = tuple(str(override.input_line) for override in of_runs if not override.is_sweep_override())

    def every() -> Iterator[tuple[Alternative, Alternative]]:
        for chosen in itertools.product(*axes):
            swept = tuple(itertools.chain(*chosen))
            yield swept, (*fixed, *swept)

    return every(), excluded


def _written(value: Any) -> str:
    return value if isinstance(value, str) and value.isidentifier() else quoted(value)


def _alternatives(override: Override) -> list[str]:
    """The override, or one for each value that it sweeps over."""
    if not override.is_sweep_override():
        return [str(override.input_line)]
    if not override.is_discrete_sweep():
        raise UsageError(f"'{override.input_line}': infinitely many values: list them, or use `segexp tune`")
    value = override.value()
    if isinstance(value, RangeSweep):
        start, stop = (value.start or 0, value.stop) if value.stop is not None else (0, value.start or 0)
        if any(isinstance(end, float) and not math.isfinite(end) for end in (start, stop, value.step)):
            raise UsageError(f"'{override.input_line}': a range has finite ends and a finite step")
        _check_number((stop - start) / value.step if value.step else math.inf, override.input_line)
    try:
        values = [f"{override.key_or_group}={v}" for v in override.sweep_iterator(Transformer.encode)]
    except HydraException as error:
        raise UsageError(f"'{override.input_line}': list the values, with commas between them ({error})") from error
    if not values:
        raise UsageError(f"'{override.input_line}' names no value")
    return values


def _check_number(number: float, what: object) -> None:
    if number > MOST_RUNS:
        raise UsageError(f"'{what}' is {number:,.0f} runs; a sweep has at most {MOST_RUNS:,}: sweep over fewer values")


def _check_values(parsed: Sequence[Override], extra: Sequence[str]) -> None:
    """Compose the first value of every sweep, and each further member of a group. Raises UsageError."""
    values = {override.key_or_group: _alternatives(override) for override in parsed}
    sets = [compose_job([alternatives[0] for alternatives in values.values()], extra).dataset]
    for group, alternatives in values.items():
        for alternative in alternatives[1:]:
            if group in CODE_GROUPS:
                alias_target(group, str(parse_overrides([alternative])[0].value()))
            elif group in YAML_GROUPS:
                sets += [compose_raw([*extra, alternative]).dataset][: group == "dataset"]
    check_root(sets[0], sets)


def _rules(base: DictConfig, key: str) -> list[Rule]:
    """``sweep.pairs`` or ``sweep.exclude``; a rule of two names is an activation and a loss. Raises UsageError."""
    value = OmegaConf.to_container(base.sweep)[key]  # type: ignore[call-overload, index]
    if not isinstance(value, list | None):
        raise UsageError(f"sweep.{key}={value} must be a list")
    rules = []
    for given in value or []:
        rule = {"activation": given[0], "loss": given[1]} if isinstance(given, list) and len(given) == 2 else given
        listed = isinstance(rule, Mapping) and any(isinstance(v, list) for v in rule.values())
        if not isinstance(rule, Mapping) or not rule or (key == "pairs" and listed):
            cure = "[sigmoid,bce] or {activation: sigmoid, optimizer.lr: 1e-3}"
            raise UsageError(f"sweep.{key}: cannot read {given}; write {cure}")
        rules.append(_checked(rule, base, key))
    return rules


def _checked(rule: Mapping[Any, Any], base: DictConfig, key: str) -> Rule:
    """The rule with aliases replaced. Raises UsageError for unknown keys."""
    tree: Any = OmegaConf.to_container(base, resolve=False)
    tree.pop("hydra")
    known = [*CODE_GROUPS, *YAML_GROUPS, *flatten(tree)]
    options = {o.name for group in CODE_GROUPS.values() for entry in group.values() for o in entry.options}
    checked = {}
    for name, value in rule.items():
        group, _, option = str(name).partition(".")
        if group in OF_THE_SWEEP:
            raise UsageError(f"sweep.{key}: '{name}' belongs to the whole sweep: set it outside of sweep.{key}")
        if name not in known and not (group in CODE_GROUPS and option in options):
            raise UsageError(f"sweep.{key}: unknown key '{name}'{nearest(str(name), known)}")
        several = [_canonical(str(name), one) for one in _listed(value)]
        checked[str(name)] = several if isinstance(value, list) else several[0]
    return checked


def _canonical(key: str, value: Any) -> Any:
    """Names of registry entries without their aliases."""
    return alias_target(key, str(value))[0] if key in CODE_GROUPS else value


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _matches(rule: Rule, tree: DictConfig) -> bool:
    def value(key: str) -> Any:
        return OmegaConf.select(tree, f"{key}.name" if key in (*CODE_GROUPS, *YAML_GROUPS) else key)

    return all(_canonical(key, value(key)) in _listed(wanted) for key, wanted in rule.items())


def _rule_text(rule: Rule) -> str:
    return "{" + ", ".join(f"{key}: {value}" for key, value in rule.items()) + "}"


def arms_of(jobs: Iterable[Job]) -> list[dict[str, Any]]:
    """A row per arm: hidden activation, activation, loss, what else differs; how many runs, data sets, seeds, folds."""
    facts = [_facts(job.spec.config) for job in jobs]
    several = len({one["dataset.name"] for one in facts}) > 1  # an arm is one arm on all data sets
    differing = [
        key
        for key in dict.fromkeys(key for one in facts for key in one)
        if key not in (*ARM_GROUPS, "seed", "split.fold")
        and not (several and key.startswith(("dataset.", "head.mode")))  # binary with two classes
        and len({str(one.get(key, "-")) for one in facts}) > 1
    ]
    arms: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for one in facts:
        arms.setdefault(tuple(str(one.get(key, "-")) for key in (*ARM_GROUPS, *differing)), []).append(one)
    folds = any(one["split.fold"] is not None for one in facts)
    return [
        dict(zip((*ARM_GROUPS, *differing), arm, strict=True))
        | ({"data sets": len({one["dataset.name"] for one in members})} if several else {})
        | {"runs": len(members), "seeds": len({one["seed"] for one in members})}
        | ({"folds": len({one["split.fold"] for one in members})} if folds else {})
        for arm, members in arms.items()
    ]


def _facts(config: Config) -> dict[str, Any]:
    """The configuration with one key per member of an arm: "hidden_activation" is "leaky_relu slope=0.3"."""
    flat = {key: value for key, value in flatten(config).items() if key not in ("outputs", "resume", "tuned")}
    for group in CODE_GROUPS:
        options = {key: flat.pop(key) for key in list(flat) if key.startswith(f"{group}.")}
        if group in ARM_GROUPS:
            flat[group] = member_of(config, group)
        else:
            flat |= {group: options.pop(f"{group}.name")} | options
    return flat


def keep_plan(plan: Plan) -> None:
    """Write the plan into each of its studies, once for equal plans: `.sweeps/plan-*.json`, from which `segexp status`
    and `resume` know the pending runs."""
    left_out = (plan.dropped, plan.refused)
    dropped, refused = ([{"overrides": one.label, "reason": one.reason} for one in these] for these in left_out)
    for study in dict.fromkeys(job.run_dir.parent for job in plan.jobs):
        runs = [
            {
                "overrides": job.label,
                "run_id": job.spec.run_id,
                "directory": job.run_dir.name,
                "config": dataclasses.asdict(job.spec.config),
                **({"plugins": used} if (used := plugins_record(job.spec.plugins)) else {}),
            }
            for job in plan.jobs
            if job.run_dir.parent == study
        ]
        text = json.dumps([sorted(run["run_id"] for run in runs), dropped, refused])
        path = sweeps_folder(study) / f"plan-{hashlib.sha256(text.encode()).hexdigest()[:8]}.json"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            record = {"schema_version": 1, "command": shown_command(sys.argv), "created": now()}
            write_json(path, record | {"dropped": dropped, "refused": refused, "runs": runs})


# The runs of a study, from their directories


def resume_plan(folder: Path, only: Sequence[str], more: Sequence[str], extra: Sequence[str]) -> Plan:
    """The unfinished runs of a study, or of all studies of a folder, inside a `hydra_session`.

    only: names of `RESUMABLE`; empty for all of them. more: overrides for all runs, such as dataset.root where the
    images have moved; a run that they would change is refused. Raises UsageError where all runs are refused,
    and where a plugin of one is not loaded.
    """
    states = [state for name in only for state in RESUMABLE[name]]
    plan, images = Plan(), dict[str, LoadedDataset]()
    finished, unfinished = 0, list[tuple[Run, Path]]()
    for study in studies_in(folder):
        for run in runs_in(study):
            if run.state in FINAL:
                finished += 1
            elif run.state == "running":
                plan.notes.append(f"{run.path.name} is running: {run.owner} holds its lock")
            elif not states or run.state in states:
                unfinished.append((run, study.path))
    lacking = [run for run, _ in unfinished if lacks_plugins(run.plugins)]
    if lacking:
        try:
            check_plugins(lacking[0].plugins, lacking[0].path)
        except UsageError as error:
            number = pluralize(len(lacking), "unfinished run")
            raise UsageError(f"{number} cannot be resumed without a plugin: {error}") from None
    for run, path in unfinished:
        try:
            plan.jobs.append(_job(run, path, more, extra, images))
        except (UsageError, OSError) as error:
            plan.refused.append(LeftOut(run.path.name, str(error)))
    if not plan.jobs and plan.refused:
        raise UsageError(plan.refused[0].reason)
    plan.notes.append(f"already finished: {finished}")
    return plan


def _job(run: Run, study: Path, more: Sequence[str], extra: Sequence[str], images: dict[str, LoadedDataset]) -> Job:
    """A run as a job again. Raises UsageError where it would not be the same run."""
    # The study may have been moved since its runs were recorded.
    place = [f"outputs={quoted(str(study.parent))}", f"study.name={quoted(study.name)}"]
    job = _recorded_job(run, [*place, *more], extra, images)
    if run.record:
        check_numerics(run.record, run.path.name, job.spec.numerics)
    if job.spec.run_id != run.run_id:
        raise UsageError(
            f"{run.path.name} would become another run ({job.spec.run_id}): its data, segexp or an override has "
            "changed; `segexp diff` shows what differs, `segexp train --from` starts a new run"
        )
    return job


def _recorded_job(run: Run, more: Sequence[str], extra: Sequence[str], images: dict[str, LoadedDataset]) -> Job:
    if (run.path / "config.yaml").exists():
        tree, where = recorded_tree(run.path), str(run.path / "config.yaml")
    elif run.planned is not None:
        tree, where = dict(run.planned.config), f"the plan of {run.path.name}"
    else:
        raise UsageError(f"{run.path} holds no configuration: start its command again, or remove the folder")
    check_plugins(run.plugins, run.path)
    words = tree_overrides(tree, more, where)
    with recorded_in(run.path if (run.path / "config.yaml").exists() else None, more):
        config = typed_of(compose_job(words, extra))
    spec = spec_of(config, images)
    return Job(run.planned.overrides if run.planned else run.path.name, tuple(words), spec)


def study_for(name: str) -> str:
    """The study of a search."""
    return f"{name.removesuffix('-tuning')}-tuning"


def tuning_jobs(folder: Path, seeds: Sequence[int] | None, extra: Sequence[str]) -> list[Job]:
    """One job per arm of a study and seed, in a study of its own beside it. seeds: None for the two lowest of its runs.

    An arm that was run under several conditions has a job for each, which the search refuses. Raises UsageError where
    the folder holds several studies, or no recorded run.
    """
    runs = [run for study in studies_in(folder) for run in runs_in(study)]
    if len({run.study for run in runs}) > 1:
        raise UsageError(f"{folder} holds several studies: name one")
    images: dict[str, LoadedDataset] = {}
    first: dict[Any, Run] = {}
    found: set[int] = set()
    for run in (run for run in runs if run.record.get("config")):
        config = run.record["config"]
        found.add(int(config["seed"]))
        made_by = conditions_of(config) | {k: v for k, v in config.items() if k.split(".")[0] in ARM_GROUPS}
        first.setdefault(tuple(sorted((key, str(value)) for key, value in made_by.items())), run)
    if not first:
        raise UsageError(f"{folder} holds no recorded run to take arms from")
    jobs: dict[Any, Job] = {}
    for run in first.values():
        place = [f"outputs={quoted(str(run.path.parent.parent))}", f"study.name={quoted(study_for(run.study))}"]
        for seed in seeds or sorted(found)[:2]:
            job = _recorded_job(run, [*place, f"seed={seed}", "tuned=null"], extra, images)
            config = job.spec.config
            # A record of an earlier segexp may lack a key and mean the same.
            same = (arm_of(config), str(conditions_of(flatten(config))), seed)
            jobs.setdefault(same, Job(f"{', '.join(arm_of(config))} seed={seed}", job.overrides, job.spec))
    return list(jobs.values())
