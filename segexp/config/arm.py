"""Learning rates that `segexp tune` has chosen, one per arm of (hidden activation, output activation, loss)."""

import dataclasses
import functools
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from segexp.config import ARM_GROUPS, Config, chosen
from segexp.config.canonical import is_volatile
from segexp.errors import UsageError, first_line
from segexp.records import flatten

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
"""What else a good learning rate depends on: told where it is not what it was."""

Arm = tuple[str, str, str]

log = logging.getLogger("segexp")


def arm_of(config: Config) -> Arm:
    """The arm that a run belongs to, as "name option=value" of each group, options at their defaults left out."""
    hidden, output, loss = (chosen(config, group) for group in ARM_GROUPS)
    return hidden, output, loss


def arm_label(arm: Arm) -> str:
    """An arm as a line."""
    return ", ".join(f"{group}={member}" for group, member in zip(ARM_GROUPS, arm, strict=True))


def conditions_of(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Of a flat configuration what all runs of a search must have in common: all that makes a run but its arm, its
    seed and its learning rate."""
    # These two follow from the hidden activation.
    free = {"seed", "optimizer.lr", "backbone.allow_mismatched_weights"}
    free |= {"init.gain"} if flat.get("hidden_activation.name") == "native" else set()
    return {k: v for k, v in flat.items() if k not in free and k.split(".")[0] not in ARM_GROUPS and not is_volatile(k)}


def with_tuned_rate(config: Config) -> Config:
    """The configuration with the learning rate that ``tuned`` names for its arm, or as it is without such a file.

    Raises UsageError where the file cannot be read, was made for another optimizer, or does not hold the arm.
    """
    if config.tuned is None:
        return config
    path = Path(config.tuned).expanduser().absolute()
    rates, context = read_tuned(path)
    if context.get("optimizer.name") != config.optimizer.name:
        raise UsageError(
            f"tuned={path} holds rates for optimizer={context.get('optimizer.name')}, not for {config.optimizer.name}"
        )
    flat = flatten(config)
    changed = tuple(
        f"{key}={flat[key]} (tuned at {context.get(key)})" for key in CONTEXT if flat[key] != context.get(key)
    )
    if changed:
        _warn_once(str(path), changed)
    arm = arm_of(config)
    if arm not in rates:
        raise UsageError(f"tuned={path} holds no learning rate for {arm_label(arm)}: tune it with `segexp tune`")
    optimizer = dataclasses.replace(config.optimizer, lr=rates[arm])  # type: ignore[call-arg]
    return dataclasses.replace(config, optimizer=optimizer, tuned=str(path))


@functools.cache
def _warn_once(path: str, changed: tuple[str, ...]) -> None:
    log.warning("tuned=%s was made under other conditions: %s", path, ", ".join(changed))


def read_tuned(path: Path) -> tuple[dict[Arm, float], dict[str, Any]]:
    """Arm -> learning rate, and the conditions they were found under. Raises UsageError for any other file."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"tuned={path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"tuned={path}: not YAML: {first_line(error)}") from error
    rates: dict[Arm, float] = {}
    try:
        for entry in content["arms"]:
            hidden, output, loss = (str(entry[group]) for group in ARM_GROUPS)
            arm, rate = (hidden, output, loss), float(entry["lr"])
            if not (math.isfinite(rate) and rate > 0):
                raise ValueError(f"lr={rate} of {', '.join(arm)} is no learning rate")
            rates[arm] = rate
        return rates, dict(content["context"])
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"tuned={path}: not a file of `segexp tune` ({error!r})") from error


def refuse_two_rates(overrides: Sequence[str]) -> None:
    """Raise UsageError where a tuned file and a learning rate are both given: neither may win in silence."""
    keys = {text.partition("=")[0] for text in overrides if text.partition("=")[2] != "null"}
    if {"tuned", "optimizer.lr"} <= keys:
        raise UsageError("tuned=FILE gives each arm its learning rate: leave optimizer.lr out")
