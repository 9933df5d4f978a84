"""Which runs a sweep consists of: combinations of values, without those that mean nothing, each with its directory.

Everything that can be wrong with a sweep is told here, before its first run.
"""

import dataclasses
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override, Transformer
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf

from segexp.config import CODE_GROUPS, STUDY_VARIANTS, YAML_GROUPS, Config, alias_target
from segexp.config.arm import ARM_GROUPS, member_of, with_tuned_rate
from segexp.config.compose import compose_job, compose_raw, parse_overrides, quoted, typed_of
from segexp.errors import PairError, UsageError
from segexp.records import flatten
from segexp.registry import nearest
from segexp.running.prepare import LoadedDataset, RunSpec, load_dataset, prepare


@dataclass(frozen=True)
class Job:
    """One run of a sweep. label: the overrides that tell it from the others; overrides: all that make it."""

    label: str
    overrides: tuple[str, ...]
    spec: RunSpec

    @property
    def run_dir(self) -> Path:
        return self.spec.run_dir


@dataclass(frozen=True)
class LeftOut:
    """A combination that is not run, and why, in one line."""

    label: str
    reason: str


@dataclass
class Plan:
    """The runs of a sweep, and what is left out of it.

    dropped: pairs of activation and loss that do not fit, and what ``sweep.exclude`` names. refused: combinations
    with a mistake. duplicates: other spellings of a run of the plan.
    """

    jobs: list[Job] = field(default_factory=list)
    dropped: list[LeftOut] = field(default_factory=list)
    refused: list[LeftOut] = field(default_factory=list)
    duplicates: list[LeftOut] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def base_of(overrides: Sequence[str], extra: Sequence[str]) -> DictConfig:
    """What the overrides that are not swept compose to, the study and the launcher among it. Raises UsageError."""
    plain = [text for o, text in zip(parse_overrides(overrides), overrides, strict=True) if not o.is_sweep_override()]
    return compose_job(plain, extra)


def make_plan(overrides: Sequence[str], extra: Sequence[str], base: DictConfig | None = None) -> Plan:
    """Expand a sweep, inside a `hydra_session`; ``base`` is its `base_of`, where that is known.

    Raises UsageError for what is wrong with the sweep as a whole, and where nothing of it can be run.
    """
    combinations, excluded = _combinations(overrides, extra, base or base_of(overrides, extra))
    plan = Plan()
    images: dict[str, LoadedDataset] = {}
    found: dict[Path, Job] = {}
    used = [0] * len(excluded)
    for swept, words in combinations:
        label = " ".join(swept) or " ".join(words)
        try:
            tree = compose_job(words, extra)
            rule = next((i for i, rule in enumerate(excluded) if _matches(rule, tree)), None)
            if rule is not None:
                used[rule] += 1
                plan.dropped.append(LeftOut(label, f"sweep.exclude names it: {_rule_text(excluded[rule])}"))
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
    plan.notes += [
        f"sweep.exclude: {_rule_text(rule)} names no run" for rule, n in zip(excluded, used, strict=True) if not n
    ]
    if not plan.jobs:
        raise UsageError(_nothing_left(plan))
    return plan


def job_with(job: Job, more: str, extra: Sequence[str], images: dict[str, LoadedDataset]) -> Job:
    """The job with one override more, on data sets that ``images`` keeps. Raises UsageError."""
    words = (*job.overrides, more)
    return Job(f"{job.label} {more}", words, spec_of(typed_of(compose_job(words, extra)), images))


def _nothing_left(plan: Plan) -> str:
    first = (plan.refused or plan.dropped)[0].reason
    number = len(plan.refused) + len(plan.dropped)
    return first if number == 1 else f"none of the {number} combinations can be run; the first: {first}"


def spec_of(config: Config, images: dict[str, LoadedDataset]) -> RunSpec:
    """The run's name, from a data set that is read once for all runs that use it."""
    key = json.dumps(flatten(config.dataset), sort_keys=True, default=str)
    if key not in images:
        images[key] = load_dataset(config)
    return prepare(config, images[key])


# What is swept

Alternative = tuple[str, ...]
"""Overrides that go together."""

Rule = Mapping[str, Any]

NOT_OF_A_RUN = ("study", *STUDY_VARIANTS, "outputs", "tuned", "resume", "sweep", "hydra")
"""Keys that a sweep has one value of."""


def _combinations(
    overrides: Sequence[str], extra: Sequence[str], base: DictConfig
) -> tuple[Iterator[tuple[Alternative, Alternative]], list[Rule]]:
    """(overrides that tell a run apart, all its overrides) of every combination; the rules of ``sweep.exclude``."""
    parsed = parse_overrides(overrides)
    for override in parsed:
        if override.is_sweep_override() and override.key_or_group in ("study", *STUDY_VARIANTS):
            key = override.key_or_group
            raise UsageError(f"-m {key}=A,B would lose the sweeps of both: start one sweep per {key}")
        if override.is_sweep_override() and override.key_or_group.startswith(("hydra", "sweep", "tuned", "resume")):
            raise UsageError(f"'{override.input_line}': one value only; this says how a sweep is carried out")
    if not str(base.hydra.sweeper._target_).endswith(".BasicSweeper"):
        raise UsageError("hydra/sweeper: a sweep runs every combination; `segexp tune` searches")
    pairs, excluded = _pairs(base), _excluded(base)
    paired = {key for pair in pairs for key in pair}
    texts = list(overrides)
    given = {o.key_or_group for o in parsed}
    for key, value in (base.hydra.sweeper.params or {}).items():
        if isinstance(value, Mapping | ListConfig):
            raise UsageError(f"hydra.sweeper.params.{key}: values as one text, as in '{key}: a,b'")
        if key not in given | paired:
            texts.append(f"{key}={value}")
    parsed = parse_overrides(texts)
    for override in parsed:
        if override.key_or_group in paired:
            raise UsageError(
                f"'{override.input_line}': sweep.pairs says which {override.key_or_group} each run has: leave one out"
            )
    # As ever, the last word on a key counts.
    last = {override.key_or_group: (override, text) for override, text in zip(parsed, texts, strict=True)}
    parsed, texts = [override for override, _ in last.values()], [text for _, text in last.values()]
    if base.tuned is not None and "optimizer.lr" in {*last, *paired}:
        raise UsageError("tuned=FILE gives each arm its learning rate: leave optimizer.lr out")
    _check_values(parsed, texts, extra)
    axes: list[list[Alternative]] = [
        [(text,) for text in _alternatives(o)] for o in parsed if o.is_sweep_override() and not _of_sweep(o)
    ]
    if pairs:
        axes.insert(0, [tuple(f"{key}={_written(value)}" for key, value in pair.items()) for pair in pairs])
    fixed = tuple(t for o, t in zip(parsed, texts, strict=True) if not o.is_sweep_override() and not _of_sweep(o))

    def every() -> Iterator[tuple[Alternative, Alternative]]:
        for chosen in itertools.product(*axes):
            swept = tuple(itertools.chain(*chosen))
            yield swept, (*fixed, *swept)

    return every(), excluded


def _written(value: Any) -> str:
    """A value as an override says it, names without quotes."""
    return value if isinstance(value, str) and value.isidentifier() else quoted(value)


def _of_sweep(override: Override) -> bool:
    """Whether an override says how the sweep is carried out, and nothing of its runs."""
    return override.key_or_group.startswith(("hydra", "sweep."))


def _alternatives(override: Override) -> list[str]:
    if not override.is_discrete_sweep():
        raise UsageError(f"'{override.input_line}': no end of values; list them, or use `segexp tune`")
    try:
        values = [f"{override.key_or_group}={v}" for v in override.sweep_iterator(Transformer.encode)]
    except HydraException as error:
        raise UsageError(f"'{override.input_line}': list the values, with commas between them ({error})") from error
    if not values:
        raise UsageError(f"'{override.input_line}' names no value")
    return values


def _check_values(parsed: Sequence[Override], texts: Sequence[str], extra: Sequence[str]) -> None:
    """Compose once with the first value of every sweep, and with each further member of a group, before any run:
    what is misspelt is told at once and not after a night. Raises UsageError."""
    values = [_alternatives(o) if o.is_sweep_override() else [t] for o, t in zip(parsed, texts, strict=True)]
    compose_job([alternatives[0] for alternatives in values], extra)
    groups = (*CODE_GROUPS, *YAML_GROUPS)
    for override, alternatives in zip(parsed, values, strict=True):
        for alternative in alternatives[1:] if override.key_or_group in groups else []:
            if override.key_or_group in CODE_GROUPS:
                alias_target(override.key_or_group, str(parse_overrides([alternative])[0].value()))
            else:
                compose_raw([*extra, alternative])


def _pairs(base: DictConfig) -> list[Rule]:
    """``sweep.pairs`` as mappings of keys to one value each; a pair of names is an activation and a loss."""
    pairs = []
    for given in _listed(base, "pairs"):
        rule = {"activation": given[0], "loss": given[1]} if isinstance(given, list) and len(given) == 2 else given
        if not isinstance(rule, Mapping) or not rule or any(isinstance(v, list) for v in rule.values()):
            raise UsageError(
                f"sweep.pairs: {given} is no pair; write [sigmoid,bce] or {{activation: sigmoid, optimizer.lr: 1e-3}}"
            )
        pairs.append(_checked(rule, base, "pairs"))
    return pairs


def _excluded(base: DictConfig) -> list[Rule]:
    """``sweep.exclude`` as mappings of keys to a value or a list of them."""
    rules = []
    for given in _listed(base, "exclude"):
        rule = {"activation": given[0], "loss": given[1]} if isinstance(given, list) and len(given) == 2 else given
        if not isinstance(rule, Mapping) or not rule:
            raise UsageError(f"sweep.exclude: {given} names nothing; write {{activation: arctan, loss: bce}}")
        rules.append(_checked(rule, base, "exclude"))
    return rules


def _listed(base: DictConfig, key: str) -> list[Any]:
    value = OmegaConf.to_container(base.sweep)[key]  # type: ignore[call-overload, index]
    if value is None:
        return []
    if not isinstance(value, list):
        raise UsageError(f"sweep.{key}={value} must be a list")
    return value


def _checked(rule: Mapping[Any, Any], base: DictConfig, key: str) -> Rule:
    """A rule whose names are known, aliases replaced. Raises UsageError."""
    tree: Any = OmegaConf.to_container(base, resolve=False)
    tree.pop("hydra")
    known = [*CODE_GROUPS, *YAML_GROUPS, *flatten(tree)]
    options = {o.name for group in CODE_GROUPS.values() for entry in group.values() for o in entry.options}
    checked = {}
    for name, value in rule.items():
        group, _, option = str(name).partition(".")
        if group in NOT_OF_A_RUN:
            raise UsageError(f"sweep.{key}: '{name}' says what sweep this is, not what a run is: give it once")
        if name not in known and not (group in CODE_GROUPS and option in options):
            raise UsageError(f"sweep.{key}: unknown key '{name}'{nearest(str(name), known)}")
        checked[str(name)] = [_canonical(str(name), v) for v in value] if isinstance(value, list) else value
        if not isinstance(value, list):
            checked[str(name)] = _canonical(str(name), value)
    return checked


def _canonical(key: str, value: Any) -> Any:
    """Names of registry entries without their aliases."""
    return alias_target(key, str(value))[0] if key in CODE_GROUPS else value


def _matches(rule: Rule, tree: DictConfig) -> bool:
    """Whether a composed tree has every value that the rule names."""
    for key, wanted in rule.items():
        value = OmegaConf.select(tree, f"{key}.name" if key in (*CODE_GROUPS, *YAML_GROUPS) else key)
        value = _canonical(key, value)
        if value not in (wanted if isinstance(wanted, list) else [wanted]):
            return False
    return True


def _rule_text(rule: Rule) -> str:
    return "{" + ", ".join(f"{key}: {value}" for key, value in rule.items()) + "}"


def arms_of(jobs: Iterable[Job]) -> list[dict[str, Any]]:
    """A row per arm: hidden activation, activation, loss, whatever else differs between arms, runs, seeds and folds."""
    facts = [_facts(job.spec.config) for job in jobs]
    differing = [
        key
        for key in dict.fromkeys(key for one in facts for key in one)
        if key not in (*ARM_GROUPS, "seed", "split.fold") and len({str(one.get(key, "-")) for one in facts}) > 1
    ]
    arms: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for one in facts:
        arms.setdefault(tuple(str(one.get(key, "-")) for key in (*ARM_GROUPS, *differing)), []).append(one)
    folds = any(one["split.fold"] is not None for one in facts)
    return [
        dict(zip((*ARM_GROUPS, *differing), arm, strict=True))
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


def as_record(plan: Plan, command: Sequence[str], created: str) -> dict[str, Any]:
    """What `.sweeps/plan-*.json` keeps of a plan, so that `segexp status` and `resume` know what is missing."""
    return {
        "schema_version": 1,
        "command": list(command),
        "created": created,
        "dropped": [{"overrides": left.label, "reason": left.reason} for left in plan.dropped],
        "refused": [{"overrides": left.label, "reason": left.reason} for left in plan.refused],
        "runs": [
            {
                "overrides": job.label,
                "run_id": job.spec.run_id,
                "directory": job.run_dir.name,
                "config": dataclasses.asdict(job.spec.config),
            }
            for job in plan.jobs
        ],
    }
