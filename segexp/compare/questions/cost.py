"""What does a score cost, and which arms are worth their price?"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segexp.compare.questions.entry import question
from segexp.compare.questions.reading import Finished, Reading, drawn, mean_and_sd, timed_alike
from segexp.compare.result import Answer, Curve, Panel

if TYPE_CHECKING:
    import pandas as pd


@question
def cost(arms: Mapping[str, Sequence[Path]], split: str = "test") -> Answer:
    """Time per training step, memory and duration of a run, and which arms no other beats in both cost and Dice.

    Rows: mean and sd over runs; those of durations and memory over the n_timed runs that ran on one machine. A run's
    ms_per_step and images_per_s are medians over its epochs, of training alone; seconds: all epochs with validation;
    peak_mem_mib: the most it held. pareto: whether no other arm is at least as fast per step and as good, and better in
    one; None where durations cannot be compared.
    """
    reading = Reading(arms, split)
    scores = reading.scores("dice")
    columns = ("epoch", "seconds", "images_per_s", "peak_mem_mib")
    timings = reading.tables("timings", columns, "")
    steps = {
        run.path: _steps_per_epoch(frame)
        for found in reading.tables("epochs", ("epoch", "step"), "", split="train").values()
        for run, frame in found
    }
    alike = timed_alike(reading)
    rows: list[dict[str, Any]] = []
    reach = {}
    for arm, runs in reading.runs.items():
        timed = [(run, frame) for run, frame in timings[arm] if run.path in alike]
        ms = [_ms_per_step(run, frame, steps.get(run.path, math.nan)) for run, frame in timed]
        row: dict[str, Any] = {"arm": arm, "n_runs": len(runs), "n_timed": len(timed)}
        row |= mean_and_sd("ms_per_step", ms)
        row |= mean_and_sd("images_per_s", [float(frame["images_per_s"].median()) for _, frame in timed])
        row |= mean_and_sd("peak_mem_mib", [float(frame["peak_mem_mib"].max()) for _, frame in timed])
        row |= mean_and_sd("seconds", [float(frame["seconds"].sum(skipna=False)) for _, frame in timed])
        row["n_params"] = mean_and_sd("n_params", [run.number("n_params") for run in runs])["n_params"]
        row |= mean_and_sd("dice", scores[arm]["dice"])
        rows.append(row)
        dice = [value for value in scores[arm]["dice"] if not math.isnan(value)]
        reach[arm] = (min(dice, default=math.nan), max(dice, default=math.nan))
    rows = [row | {"pareto": _on_front(row, rows)} for row in rows]
    points = []
    for row in rows:
        if row["pareto"] is not None:
            low, high = reach[row["arm"]]
            n = (float(row["n_timed"]),)
            points.append(Curve(row["arm"], (row["ms_per_step"],), (row["dice"],), (low,), (high,), n))
    notes = [
        "Means over runs, bars from the lowest to the highest run. An arm is on the front where no other is "
        "at least as fast and as good; seeds make neighbours change places.",
        "Runs beside one another on a machine slow each other down, which no record tells.",
        *(
            ["On the CPU, memory is the most that the whole process held, libraries included."]
            if _on_cpu(reading)
            else []
        ),
        *reading.notes(),
    ]
    panel = Panel(
        name="cost",
        title="Dice against the time of a training step",
        x_label="ms per step",
        y_label="Dice",
        curves=tuple(points),
        kind="points",
    )
    return Answer("cost", "Cost", tuple(rows), drawn([panel]), tuple(notes))


def _steps_per_epoch(epochs: "pd.DataFrame") -> float:
    """``step`` counts on through the epochs, which all take as many."""
    return float(epochs["step"].max() / epochs["epoch"].max())


def _ms_per_step(run: Finished, timings: "pd.DataFrame", steps_per_epoch: float) -> float:
    """Of training alone: the seconds of an epoch hold validation too, images_per_s does not."""
    return 1000 * run.number("n_train") / steps_per_epoch / float(timings["images_per_s"].median())


def _on_front(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> bool | None:
    ms, dice = row["ms_per_step"], row["dice"]
    if math.isnan(ms + dice):
        return None
    return not any(
        other["ms_per_step"] <= ms and other["dice"] >= dice and (other["ms_per_step"], other["dice"]) != (ms, dice)
        for other in rows
    )


def _on_cpu(reading: Reading) -> bool:
    runs = (run for known in reading.runs.values() for run in known)
    return any((run.record.get("device") or {}).get("type") == "cpu" for run in runs)
