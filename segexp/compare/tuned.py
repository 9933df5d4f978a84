"""Runs that stand for two: where a tuned rate is the configured one, the tuned run is the fixed run, and was made once.

Such a run says nothing of its being tuned; the file of `segexp tune` does, by arm and rate.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from segexp.collect import cell_of, column_of
from segexp.compare.load import Run
from segexp.config import alias_target
from segexp.errors import UsageError

GROUPS = ("hidden_activation", "activation", "loss")
"""What a learning rate is tuned for, as `segexp tune` writes it."""

FILE = "tuned.yaml"

_TUNED, _RATE = column_of("tuned"), column_of("optimizer.lr")

Arm = tuple[str, ...]


def twins_of(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """Copies of the runs without tuned rate that a tuned file makes tuned ones as well, and what could not be read."""
    files = dict.fromkeys(run.row[_TUNED] for run in runs if run.row.get(_TUNED))
    twins, warnings = [], []
    for file in files:
        rates = _rates(file, runs)
        if rates is None:
            warnings.append(
                f"{file} is not here: a run whose configured rate is the tuned one may be missing among the tuned runs"
            )
            continue
        made = {(_arm_of(run), run.row.get("seed")) for run in runs if run.row.get(_TUNED) == file}
        for run in runs:
            arm = _arm_of(run)
            if run.row.get(_TUNED) or (arm, run.row.get("seed")) in made:
                continue
            if math.isclose(rates.get(arm, math.nan), run.number(_RATE), rel_tol=1e-12):
                twins.append(dataclasses.replace(run, row={**run.row, _TUNED: file}))
    return twins, warnings


def _rates(file: str, runs: Sequence[Run]) -> Mapping[Arm, float] | None:
    """Arm -> rate; a file that has moved with its study is looked for beside the runs. None where it cannot be found.

    Raises UsageError for a file that is no tuned one.
    """
    beside = dict.fromkeys(run.path.parent / FILE for run in runs if run.path is not None)
    path = next((p for p in (Path(file), *beside) if p.is_file()), None)
    if path is None:
        return None
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        return {tuple(str(entry[group]) for group in GROUPS): float(entry["lr"]) for entry in content["arms"]}
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise UsageError(
            f"{path} is no file of `segexp tune` ({type(error).__name__}): remove it or copy it again"
        ) from error


def _arm_of(run: Run) -> Arm:
    """An arm as the file writes it: names, with the options that are not at their defaults."""
    return tuple(_member(run, group) for group in GROUPS)


def _member(run: Run, group: str) -> str:
    name = run.row.get(column_of(f"{group}.name"), "")
    try:
        options = alias_target(group, name)[1]
    except UsageError:  # an activation of another version of segexp, or of somebody's own
        return name
    cells = {option.name: run.row.get(column_of(f"{group}.{option.name}")) for option in options}
    changed = [f"{o.name}={cells[o.name]}" for o in options if cells[o.name] not in (None, cell_of(o.default))]
    return " ".join([name, *changed])
