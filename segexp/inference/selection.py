"""Which finished runs a prediction uses: one run, or of a study the arm and the seed that are best on validation.

Test scores choose nothing here, so those of the chosen run remain a fair estimate. Imports no torch.
"""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segexp.compare.blocks import BlockRuns, arrange, where_these, with_later_options
from segexp.compare.verdict import compare
from segexp.config import is_volatile
from segexp.errors import UsageError
from segexp.records.formatting import pluralize
from segexp.records.runs import Run, run_at, runs_in, studies_in
from segexp.records.tables import load


def chosen_runs(path: Path, arm: Mapping[str, str], ensemble: bool) -> tuple[tuple[Run, ...], list[str]]:
    """The runs whose networks predict, in order of their seeds, and lines about how they were chosen.

    path: a run directory or a study. arm: key -> value of the runs of a study to choose from, as compare's ``--where``.
    ensemble: all seeds of the arm, not one. Raises UsageError.
    """
    (study, *others) = studies_in(path)
    if others:
        raise UsageError(f"{path} holds {1 + len(others)} studies: name one, as {study.path}")
    if study.path != Path(os.path.abspath(path)).parent:
        found, notes = _of_study(study.path, arm)
        runs = {run.run_id: run_at(run.path) for run in found}
    elif arm:
        raise UsageError(f"--arm chooses among the arms of a study, and {path} is one run: leave it out")
    else:
        run = run_at(path)
        if run.state != "done":
            raise UsageError(f"{path} is {run.state}: only a run that is done has a selected network")
        (whole,) = studies_in(run.path.parent)[:1]
        siblings = [other for other in runs_in(whole) if other.state == "done"] if ensemble else []
        runs, notes = {run.run_id: run} | {r.run_id: r for r in siblings if _but_seed(r) == _but_seed(run)}, []
    in_order = sorted(runs.values(), key=lambda run: (run.row.get("fold", ""), int(run.number("seed"))))
    if not ensemble:
        best = max(in_order, key=lambda run: run.number("val_dice"))
        if len(in_order) > 1:
            notes.append(
                f"seed {best.row['seed']} of {len(in_order)}: highest validation Dice ({best.number('val_dice'):.4f}); "
                "--ensemble seeds averages all"
            )
        return (best,), notes
    if len(in_order) == 1:
        raise UsageError(f"--ensemble seeds: {in_order[0].path} has no finished sibling that differs in its seed alone")
    notes.append(f"ensemble of {len(in_order)} networks: {', '.join(run.run_id for run in in_order)}")
    if len({run.row.get("split_sha") for run in in_order}) > 1:
        notes.append(
            "they were trained on different splits: each image of their data set may be a training image of one of "
            "them, so this ensemble is for new images"
        )
    return tuple(in_order), notes


def _but_seed(run: Run) -> dict[str, Any]:
    """What two runs must have in common to be seeds of one arm."""
    config = {key: value for key, value in run.config.items() if key != "seed" and not is_volatile(key, value)}
    return config | {"data": run.row.get("dataset_sha"), "made by": (run.numerics, run.row.get("plugins"))}


def _of_study(path: Path, arm: Mapping[str, str]) -> tuple[list[Run], list[str]]:
    """The scored runs of the arm with the highest mean validation Dice. Raises UsageError."""
    loaded = load([path], "val")  # nobody sees a test score: this is no look at the study
    done = with_later_options([run for run in loaded.runs if run.state == "done"])
    if not done:
        raise UsageError(f"{path} has no finished run: `segexp status {path}` lists their states")
    arms = arrange(where_these(done, arm), None)
    if len(arms.blocks) > 1:
        listed = "; ".join(dict.fromkeys(_title(block) for block in arms.blocks))
        raise UsageError(
            f"{path} has runs under {len(arms.blocks)} conditions: {listed}. Name one with --arm KEY=VALUE"
        )
    (block,) = arms.blocks
    if len(block.arms) == 1:
        (only,) = block.arms.values()
        return list(only.scored.values()), []
    first, second = compare([path], split="val", where=arm, loaded=loaded).blocks[0].ranking[:2]
    if math.isnan(first.mean):
        raise UsageError(f"{path} has no validation scores to choose an arm by: name one with --arm KEY=VALUE")
    found = [run for run in done if str(run.path) in first.directories]
    note = (
        f"arm {first.arm}, of {len(block.arms)}: highest mean validation Dice ({first.mean:.4f} over "
        f"{pluralize(first.n_seeds, 'seed')}; next {second.arm}, {second.mean:.4f}); --arm KEY=VALUE names another"
    )
    return found, [note]


def _title(block: BlockRuns) -> str:
    return ", ".join([block.dataset, *(f"{key}={value}" for key, value in block.conditions.items())])
