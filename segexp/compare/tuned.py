"""Runs that stand for two: where a tuned rate is the configured one, the tuned run is the fixed run, and was made once.

Such a run says nothing of its being tuned; the file of `segexp tune` does, by arm and rate.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from segexp.compare.load import Run
from segexp.config import ARM_GROUPS, alias_target, member_text, names_in
from segexp.errors import UsageError
from segexp.records.collected import column_of

FILE = "tuned.yaml"

_TUNED, _RATE = column_of("tuned"), column_of("optimizer.lr")

Arm = tuple[str, ...]


def twins_of(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """Runs without a tuned rate that a tuned file makes tuned ones as well, and what could not be read."""
    files = dict.fromkeys(run.row[_TUNED] for run in runs if run.row.get(_TUNED))
    twins, warnings = [], []
    for file in files:
        rates = _rates(file, runs)
        if rates is None:
            warnings.append(
                f"{file} is not here: a run whose configured rate is the tuned one may be missing among the tuned runs"
            )
            continue
        made = {(arm_of(run), run.row.get("seed")) for run in runs if run.row.get(_TUNED) == file}
        for run in runs:
            arm = arm_of(run)
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
        return {tuple(str(entry[group]) for group in ARM_GROUPS): float(entry["lr"]) for entry in content["arms"]}
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise UsageError(
            f"{path} is no file of `segexp tune` ({type(error).__name__}): remove it or copy it again"
        ) from error


def arm_of(run: Run) -> Arm:
    """An arm as the file writes it: names, with the options that are not at their defaults."""
    return tuple(_member(run, group) for group in ARM_GROUPS)


def _member(run: Run, group: str) -> str:
    name = run.row.get(column_of(f"{group}.name"), "")
    try:
        options = alias_target(group, name)[1]
        cells = {option.name: run.row.get(column_of(f"{group}.{option.name}")) for option in options}
        told = {key: cell for key, cell in cells.items() if cell is not None}
        return member_text(group, name, told | _terms(run, group))
    except UsageError:  # an activation of another version of segexp, or of somebody's own
        return name


def _terms(run: Run, group: str) -> dict[str, str]:
    """The cells of the terms of a sum of losses: config_loss_terms_ce_weight is "terms.ce.weight"."""
    start, found = column_of(f"{group}.terms."), {}
    for column, cell in run.row.items():
        rest = column.removeprefix(start)
        if cell and rest != column:
            # Of `focal` and `focal_tversky` the longer one that fits.
            term = max((name for name in names_in(group) if rest.startswith(f"{name}_")), key=len, default="")
            found[f"terms.{term}.{rest.removeprefix(f'{term}_')}"] = cell
    return found
