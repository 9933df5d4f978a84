"""What does a score cost, and which arms are on the Pareto front of cost and Dice?"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from segexp.compare.questions import OF_EPOCHS, OF_TIMINGS, Findings, Reading, mean_and_sd, question, timed_alike
from segexp.compare.result import Curve, Panel

MEASURED = ("ms_per_step", "images_per_s", "peak_mem_mib", "seconds")
"""The costs of a timed run."""


@question(
    "Cost",
    {
        "n_timed": "runs with timings",
        "ms_per_step": "ms per step",
        "images_per_s": "images per s",
        "peak_mem_mib": "peak memory (MiB)",
        "seconds": "seconds of training",
        "n_params": "parameters",
        "pareto": "on the front",
    },
)
def cost(reading: Reading) -> Findings:
    """Time per training step, memory and duration of a run, and the Pareto front of cost and Dice.

    Rows: mean and sd over runs; durations and memory over the n_timed runs that ran on one machine. ms_per_step and
    images_per_s: medians over the epochs of a run, training alone; seconds: all epochs with validation; peak_mem_mib:
    the maximum. pareto: whether no other arm is at least as fast per step and as good, and better in one; None where
    durations cannot be compared.
    """
    dice = {arm: found["dice"] for arm, found in reading.scores("dice").items()}
    costs = _costs(reading)
    rows: list[dict[str, Any]] = []
    for arm, runs in reading.runs.items():
        row: dict[str, Any] = {"arm": arm, "n_runs": len(runs), "n_timed": len(costs[arm])}
        for name in MEASURED:
            row |= mean_and_sd(name, [of_run[name] for of_run in costs[arm]])
        row["n_params"] = mean_and_sd("n_params", [run.number("n_params") for run in runs])["n_params"]
        rows.append(row | mean_and_sd("dice", dice[arm]))
    rows = [row | {"pareto": _on_front(row, rows)} for row in rows]
    notes = [
        "Means over runs, bars from the lowest to the highest run. An arm is on the Pareto front if no other arm is at "
        "least as fast and as good; other seeds can swap neighbouring arms.",
        "Runs that share a machine slow each other down, and records do not show which did.",
    ]
    if any((run.record.get("device") or {}).get("type") == "cpu" for of_arm in reading.runs.values() for run in of_arm):
        notes.append("On the CPU, memory is the maximum of the whole process, libraries included.")
    return rows, [_panel(rows, dice)], notes


def _costs(reading: Reading) -> dict[str, list[dict[str, float]]]:
    """arm -> `MEASURED` of each run that ran on the machine shared by all arms."""
    timings = reading.rows("timings", OF_TIMINGS, "").groupby("run")
    # ``step`` counts all steps so far; every epoch has the same number.
    trained = reading.rows("epochs", OF_EPOCHS, "", split="train").groupby("run")[["step", "epoch"]].max()
    alike, steps = timed_alike(reading), trained["step"] / trained["epoch"]
    rates, memory = timings["images_per_s"].median(), timings["peak_mem_mib"].max()
    seconds = timings["seconds"].agg(lambda of_run: of_run.sum(skipna=False))
    costs: dict[str, list[dict[str, float]]] = {arm: [] for arm in reading.runs}
    for n, run in enumerate(reading.every):
        if n in rates and run.path in alike:
            # Of training alone: the seconds of an epoch include validation.
            ms = 1000 * run.number("n_train") / float(steps.get(n, math.nan)) / float(rates[n])
            known = (ms, float(rates[n]), float(memory[n]), float(seconds[n]))
            costs[reading.arm_N[n]].append(dict(zip(MEASURED, known, strict=True)))
    return costs


def _panel(rows: Sequence[Mapping[str, Any]], dice: Mapping[str, Sequence[float]]) -> Panel:
    """A point for each arm, and the front as stairs: the best Dice for at most so many ms."""
    points = []
    for row in rows:
        if row["pareto"] is not None:
            known = [value for value in dice[row["arm"]] if not math.isnan(value)]
            reach = ((min(known),), (max(known),))
            points.append(Curve(row["arm"], (row["ms_per_step"],), (row["dice"],), *reach, (float(row["n_timed"]),)))
    title = "Dice against the time of a training step"
    guide = _stairs([(row["ms_per_step"], row["dice"]) for row in rows if row["pareto"]])
    return Panel("cost", title, "ms per step", "Dice", tuple(points), "points", y_points=True, guide=guide)


def _stairs(front: Sequence[tuple[float, float]]) -> Curve | None:
    """A line along the front, level until the next arm; None if the front is one arm."""
    steps = sorted(set(front))
    if len(steps) < 2:
        return None
    x, y = zip(*steps, strict=True)
    places = [x[0], *(place for place in x[1:] for _ in range(2))]
    values = [*(value for value in y[:-1] for _ in range(2)), y[-1]]
    return Curve("Pareto front", tuple(places), tuple(values))


def _on_front(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> bool | None:
    ms, dice = row["ms_per_step"], row["dice"]
    if math.isnan(ms + dice):
        return None
    return not any(
        other["ms_per_step"] <= ms and other["dice"] >= dice and (other["ms_per_step"], other["dice"]) != (ms, dice)
        for other in rows
    )
