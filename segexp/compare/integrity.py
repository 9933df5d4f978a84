"""Reads the runs to compare, and leaves out those whose own scores are impossible or contradict their images."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import cast, get_args

from segexp.evaluation.scores import EmptyPolicy, fp_rate_empty, micro_scores, primary_score
from segexp.records import RESTORE
from segexp.records.collected import AGAIN
from segexp.records.load import ROUNDING, Loaded, load
from segexp.records.runs import Run
from segexp.records.scores import SCORES


def load_checked(paths: Sequence[Path], split: str = "test") -> Loaded:
    """`segexp.records.load.load`, where a run whose summary cannot be true is incomplete."""
    loaded = load(paths, split)
    runs, problems = [], list(loaded.problems)
    for run in loaded.runs:
        wrong = _wrong_scores(run, split) if run.state == "done" else ""
        if wrong:
            cure = AGAIN if run.collected else RESTORE
            problems.append(f"{run.path}: run {run.run_id} has {wrong}; {cure}")
            run = run.incomplete(problems[-1])  # noqa: PLW2901
        runs.append(run)
    return Loaded(tuple(runs), tuple(problems))


def _wrong_scores(run: Run, split: str) -> str:
    """What is impossible in the summary of a finished run, "" when nothing is."""
    policy = run.row.get("empty_policy") or "reference"
    if policy not in get_args(EmptyPolicy):
        return f"empty_policy={policy!r}, which is none of {', '.join(get_args(EmptyPolicy))}"
    given = {name: run.number(name) for name in SCORES if run.row.get(name)}
    outside = [
        f"{name}={run.row[name]}"
        for name, value in given.items()
        if value < -ROUNDING or (value > SCORES[name].highest + ROUNDING)
    ]
    if outside:
        return f"{', '.join(outside)}, which is out of range"
    if run.images is None or split != "test":
        return ""
    for name, score in _computed_again(run, cast(EmptyPolicy, policy)).items():
        if name in given and not math.isnan(given[name]) and not abs(given[name] - score) < ROUNDING:
            return f"{name}={run.row[name]}, but its images give {score:.6g}"
    return ""


def _computed_again(run: Run, policy: EmptyPolicy) -> dict[str, float]:
    """The scores of the summary on test that follow from the images."""
    assert run.images is not None
    layout, counts_NF3 = run.images.layout, run.images.counts_NF3
    dice_micro, iou_micro = micro_scores(counts_NF3)
    return {
        "dice": primary_score(run.images.cells["dice"], layout.n_reference_NF, layout.groups, policy),
        "iou": primary_score(run.images.cells["iou"], layout.n_reference_NF, layout.groups, policy),
        "dice_micro": dice_micro,
        "iou_micro": iou_micro,
        "fp_rate_empty": fp_rate_empty(counts_NF3),
    }
