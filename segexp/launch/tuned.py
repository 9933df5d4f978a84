"""Learning rates that `segexp tune` has chosen, per arm of (hidden activation, output activation, loss)."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from segexp.config import Config
from segexp.errors import UsageError

ARM = ("hidden_activation", "activation", "loss")
"""What makes an arm: each has a learning rate of its own."""

Arm = tuple[str, str, str]


def arm_of(config: Config) -> Arm:
    """The arm that a run belongs to."""
    return config.hidden_activation.name, config.activation.name, config.loss.name


def with_tuned_rate(config: Config) -> Config:
    """The configuration with the learning rate that ``tuned`` names for its arm, or as it is without such a file.

    Raises UsageError where the file cannot be read or does not hold the arm.
    """
    if config.tuned is None:
        return config
    path = Path(config.tuned).expanduser().absolute()
    rates = read_tuned(path)
    arm = arm_of(config)
    if arm not in rates:
        names = " ".join(f"{key}={name}" for key, name in zip(ARM, arm, strict=True))
        raise UsageError(
            f"tuned={path} holds no learning rate for {names}: tune it with `segexp tune`, or leave it out"
        )
    optimizer = dataclasses.replace(config.optimizer, lr=rates[arm])  # type: ignore[call-arg]
    return dataclasses.replace(config, optimizer=optimizer, tuned=str(path))


def read_tuned(path: Path) -> dict[Arm, float]:
    """Arm -> learning rate. Raises UsageError for anything that is no such file."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"tuned={path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"tuned={path}: not YAML: {str(error).splitlines()[0]}") from error
    rates = {}
    try:
        for entry in content["arms"]:
            rates[(str(entry[ARM[0]]), str(entry[ARM[1]]), str(entry[ARM[2]]))] = float(entry["lr"])
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"tuned={path}: not a file of `segexp tune` (no {error})") from error
    return rates


def refuse_two_rates(overrides: Sequence[str]) -> None:
    """Raise UsageError where a tuned file and a learning rate are both given: neither may win in silence."""
    keys = {text.partition("=")[0] for text in overrides if text.partition("=")[2] != "null"}
    if {"tuned", "optimizer.lr"} <= keys:
        raise UsageError("tuned=FILE gives each arm its learning rate: leave optimizer.lr out")


def tuned_yaml(content: dict[str, Any]) -> str:
    """The text of a tuned file."""
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120)
