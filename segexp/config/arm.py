"""What an arm is: the hidden activation, output activation and loss that a study compares, each with its options.

An arm is written the same way wherever it comes from (a typed configuration or a row of recorded cells), so that
`segexp compare` finds the learning rate that `segexp tune` chose for it in tuned.yaml.
"""

import dataclasses
import functools
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from segexp.config import CODE_GROUPS, SHARED_OPTIONS, Config, alias_target, is_volatile, names_in
from segexp.config.canonical import place
from segexp.errors import UsageError
from segexp.records import cell_of, flatten, write_atomic
from segexp.records.files import read_yaml
from segexp.records.runs import column_of
from segexp.registry import cached_names

ARM_GROUPS = ("hidden_activation", "activation", "loss")  # the groups that make an arm, each with its options

Arm = tuple[str, str, str]
"""A member of each group as "name option=value ...", options at their defaults left out."""

TUNED_FILE = "tuned.yaml"

CONTEXT = (
    "dataset.name",
    "model.name",
    "backbone.name",
    "backbone.weights",
    "scheduler.name",
    "trainer.epochs",
    "trainer.batch_size",
    "split.folds",
    "split.fold",
)
"""What else a good learning rate depends on; a difference gives a warning."""

OF_ONE_SEED = ("split.per_seed", "seed")
"""What it depends on besides where each seed has a split of its own."""

OF_THE_SPLIT = ("split.seed", "split.fractions", "split.stratify", "split.leave_one_group_out", "dataset.limit")
"""What decides which images are validation images, on which the rate was chosen: elsewhere these may be test images.
Files of earlier versions do not hold it."""

log = logging.getLogger("segexp")


def arm_of(config: Config) -> Arm:
    """The arm of a typed configuration."""
    hidden, output, loss = (member_of(config, group) for group in ARM_GROUPS)
    return hidden, output, loss


def arm_of_row(row: Mapping[str, str]) -> Arm:
    """The arm of a run from its cells of runs.csv: config_<key> -> text."""
    hidden, output, loss = (_recorded_member(row, group) for group in ARM_GROUPS)
    return hidden, output, loss


def arm_label(arm: Arm) -> str:
    """The arm in one line."""
    return ", ".join(f"{group}={member}" for group, member in zip(ARM_GROUPS, arm, strict=True))


def member_of(config: Config, group: str) -> str:
    """What a configuration has chosen in a group, as "name option=value ..."."""
    choice = getattr(config, group)
    return _written(group, choice.name, {k: v for k, v in flatten(choice).items() if k != "name"})


def _recorded_member(row: Mapping[str, str], group: str) -> str:
    name = row.get(column_of(f"{group}.name"), "")
    cells, terms = {}, column_of(f"{group}.terms.")
    for column, cell in row.items() if group == "loss" else ():
        if cell and column.startswith(terms):  # config_loss_terms_ce_weight
            rest = column.removeprefix(terms)
            # A loss of a plugin, such as "dice_mine", is known by its weight.
            weights = [c[len(terms) : -len("_weight")] for c in row if c.startswith(terms) and c.endswith("_weight")]
            words = {n: ("weight", *_options(group, n)) for n in names_in(group) if rest.startswith(f"{n}_")}
            fitting = [n for n, options in words.items() if rest.removeprefix(f"{n}_") in options]
            # "focal" and "focal_tversky" both fit config_loss_terms_focal_tversky_beta: the longer one is meant.
            term = max(fitting or [n for n in weights if rest.startswith(f"{n}_")], key=len, default="")
            cells[f"terms.{term}.{rest.removeprefix(f'{term}_')}"] = cell
    names = _options(group, name)
    if name not in names_in(group):  # an entry of a plugin, or of another version of segexp
        start = column_of(f"{group}.")
        own = (c for c in row if c.startswith(start) and not c.startswith(terms) and c != f"{start}name")
        names = [c.removeprefix(start) for c in own]
    columns = {name: column_of(f"{group}.{name}") for name in names}
    return _written(group, name, {key: row[column] for key, column in columns.items() if column in row} | cells)


def _written(group: str, name: str, options: Mapping[str, Any]) -> str:
    """options: option -> value or its cell in a table; in a sum of losses "terms.<loss>.<option>"."""
    usual = _defaults(group, name)
    for term in sorted({key.split(".")[1] for key in options if key.startswith("terms.")}):
        usual |= {f"terms.{term}.{option}": cell for option, cell in _defaults(group, term).items()}
    cells = {key: value if isinstance(value, str) else cell_of(value) for key, value in options.items()}
    in_order = [*(key for key in usual if key in cells), *sorted(cells.keys() - usual.keys())]
    return " ".join([name, *(f"{key}={cells[key]}" for key in in_order if cells[key] != usual.get(key, ""))])


@cached_names
def _options(group: str, name: str) -> list[str]:
    return [option.name for option in alias_target(group, name)[1]] if name in names_in(group) else []


@cached_names
def _defaults(group: str, name: str) -> dict[str, str]:
    """Option -> its default as a cell. Of an entry of a plugin only the options that all entries have: the others are
    always written, because whoever reads a record does not know their defaults."""
    of_plugin = name in CODE_GROUPS[group].origins or name not in names_in(group)
    options = SHARED_OPTIONS.get(group, ()) if of_plugin else alias_target(group, name)[1]
    return {option.name: cell_of(option.default) for option in options}


def conditions_of(flat: Mapping[str, Any]) -> dict[str, Any]:
    """What all runs of a search share: a flat configuration without arm, seed, learning rate and volatile keys."""
    # These two follow from the hidden activation.
    free = {"seed", "optimizer.lr", "backbone.allow_mismatched_weights"}
    free |= {"init.gain"} if flat.get("hidden_activation.name") == "native" else set()
    return {
        k: v for k, v in flat.items() if k not in free and k.split(".")[0] not in ARM_GROUPS and not is_volatile(k, v)
    }


def with_tuned_rate(config: Config) -> Config:
    """The configuration with the learning rate that the file ``tuned`` holds for its arm; unchanged without a file.

    Raises UsageError where the file cannot be read, was made for another optimizer, or does not hold the arm.
    """
    if config.tuned is None:
        return config
    path = place("tuned", config.tuned)
    rates, context = read_tuned(path)
    optimizer = context.get("optimizer.name")
    if optimizer != config.optimizer.name:
        raise UsageError(f"tuned={path} holds rates for optimizer={optimizer}, not for {config.optimizer.name}")
    flat = flatten(config)
    kept = [*CONTEXT, *(key for key in (*OF_ONE_SEED, *OF_THE_SPLIT) if key in context)]
    changed = [f"{key}={flat[key]} (tuned at {context.get(key)})" for key in kept if flat[key] != context.get(key)]
    if changed:
        _warn_once(f"tuned={path} was made under other conditions: {', '.join(changed)}")
    arm = arm_of(config)
    if arm not in rates:
        raise UsageError(f"tuned={path} holds no learning rate for {arm_label(arm)}: tune it with `segexp tune`")
    tuned = dataclasses.replace(config.optimizer, lr=rates[arm])  # type: ignore[call-arg]
    return dataclasses.replace(config, optimizer=tuned, tuned=str(path))


@functools.cache
def _warn_once(message: str) -> None:
    log.warning(message)


def read_tuned(path: Path) -> tuple[dict[Arm, float], dict[str, Any]]:
    """A file of `segexp tune`: arm -> learning rate, and the conditions they were found under.

    Raises UsageError for any other file.
    """
    try:
        content = read_yaml(path)
    except UsageError as error:
        raise UsageError(f"tuned={error}") from error
    rates: dict[Arm, float] = {}
    try:
        for entry in content["arms"]:
            hidden, output, loss = (str(entry[group]) for group in ARM_GROUPS)
            arm, rate = (hidden, output, loss), float(entry["lr"])
            if not (math.isfinite(rate) and rate > 0):
                raise ValueError(f"lr={rate} of {', '.join(arm)} must be a number above 0")
            rates[arm] = rate
        return rates, dict(content["context"])
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"tuned={path}: not a file of `segexp tune` ({error!r}): run `segexp tune` again") from error


def write_tuned(path: Path, found: Mapping[str, Any], arms: Mapping[Arm, Mapping[str, Any]]) -> None:
    """Write a file that `read_tuned` reads.

    found: how the rates were found (command, judged_by, budget, context). arms: lr and further facts of each arm.
    """
    rows = [dict(zip(ARM_GROUPS, arm, strict=True)) | dict(row) for arm, row in arms.items()]
    content = {"schema_version": 1, **found, "arms": rows}
    write_atomic(path, yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120))


def refuse_two_rates(overrides: Sequence[str]) -> None:
    """Raise UsageError where both a tuned file and a learning rate are given."""
    keys = {text.partition("=")[0] for text in overrides if text.partition("=")[2] != "null"}
    if {"tuned", "optimizer.lr"} <= keys:
        raise UsageError("tuned=FILE gives each arm its learning rate: leave optimizer.lr out")
