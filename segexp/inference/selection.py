"""Which finished runs predict: one run, or of a study the arm and the seed that are best on validation images.

Test scores choose nothing, so those of the chosen run remain a fair estimate. Imports no torch.
"""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from segexp.compare.blocks import arrange, where_these, with_later_options
from segexp.config import is_volatile
from segexp.errors import UsageError
from segexp.records.formatting import pluralize
from segexp.records.runs import Run, run_at, runs_in, studies_in
from segexp.records.tables import load


def chosen_runs(path: Path, arm: Mapping[str, str], ensemble: bool) -> tuple[list[Run], list[str]]:
    """The runs whose networks predict, by fold and seed, and lines about the choice. Raises UsageError.

    path: a run directory or a study. arm: key -> value, of the runs of a study. ensemble: all seeds of the arm.
    """
    study, *others = studies_in(path)
    if others:
        raise UsageError(f"{path} holds {1 + len(others)} studies: name one, as {study.path}")
    if study.path != Path(os.path.abspath(path)).parent:
        runs, notes = _of_study(study.path, arm)
    else:
        runs, notes = [run_at(path)], []
        if arm or runs[0].state != "done":
            wrong = "is one run, and --arm chooses in a study" if arm else f"is {runs[0].state}, not done"
            raise UsageError(f"{path} {wrong}: name a study, or a finished run without --arm")
        if ensemble:
            beside = runs_in(studies_in(runs[0].path.parent)[0])
            alike = [run for run in beside if run.state == "done" and _but_seed(run) == _but_seed(runs[0])]
            runs = [*{run.run_id: run for run in alike}.values()]
    runs.sort(key=lambda run: (run.row.get("fold", ""), int(run.number("seed"))))
    if ensemble and len(runs) == 1:
        raise UsageError(f"--ensemble seeds: {runs[0].path} has no finished sibling that differs in its seed alone")
    if ensemble and len({run.row.get("split_sha") for run in runs}) > 1:
        notes.append(
            "these networks were trained on different splits: an image of their data set may be a training image of "
            "some, so predict only new images"
        )
    elif not ensemble and len(runs) > 1:
        best = max(runs, key=lambda run: _defined_first(run.number("val_dice")))
        why = f"highest validation Dice ({best.number('val_dice'):.4f}); --ensemble seeds averages all"
        fold = f", fold {best.row['fold']}" if best.row.get("fold") else ""
        notes.append(f"seed {best.row['seed']}{fold}, of {pluralize(len(runs), 'run')}: {why}")
        runs = [best]
    return [run_at(run.path) for run in runs], notes


def _defined_first(score: float) -> tuple[bool, float]:
    """Sorts scores so that NaN (no validation image has foreground) is below every number."""
    return not math.isnan(score), score


def _but_seed(run: Run) -> dict[str, Any]:
    """What two runs must have in common to be seeds of one arm."""
    config = {key: value for key, value in run.config.items() if key != "seed" and not is_volatile(key, value)}
    return config | {"": (run.row.get("dataset_sha"), run.numerics, run.row.get("plugins"))}


def _of_study(path: Path, arm: Mapping[str, str]) -> tuple[list[Run], list[str]]:
    """The scored runs of the arm with the highest mean validation Dice, and a line about it. Raises UsageError."""
    loaded = load([path], "val")  # no test score is shown: this is no look at the study
    done = with_later_options([run for run in loaded.runs if run.state == "done"])
    if not done:
        raise UsageError(f"{path} has no finished run: see `segexp status {path}`")
    arms = arrange(where_these(done, arm), None)
    if len(arms.blocks) > 1:
        titles = dict.fromkeys(", ".join([b.dataset, *map("=".join, b.conditions.items())]) for b in arms.blocks)
        files = dict.fromkeys(run.row["config_tuned"] for run in done if run.row.get("config_tuned"))
        tuned = "".join(f", tuned rates with --arm tuned={file}" for file in files)
        raise UsageError(f"{path} has several conditions ({'; '.join(titles)}): name one with --arm KEY=VALUE{tuned}")
    runs = {levels: [*of.scored.values()] for levels, of in arms.blocks[0].arms.items() if of.scored}
    means = {levels: fmean(run.number("val_dice") for run in of) for levels, of in runs.items()}
    first, *others = sorted(means, key=lambda levels: _defined_first(means[levels]), reverse=True)
    why = f"highest mean validation Dice, {means[first]:.4f} over {pluralize(len(runs[first]), 'run')}"
    why += "".join(f"; next {arms.label(levels)}, {means[levels]:.4f}" for levels in others[:1])
    note = f"arm {arms.label(first)}, of {len(runs)}: {why}; --arm KEY=VALUE names another"
    return runs[first], [note] if others else []
