"""Which classes are segmented well?"""

import math
from typing import Any

from segexp.compare.questions import Findings, Reading, mean_and_sd, points_of, question
from segexp.compare.result import Panel
from segexp.records.scores import class_label


@question("Classes", {})
def classes(reading: Reading) -> Findings:
    """Dice of each class, of runs with several: mean over the images whose reference holds it, then over runs."""
    images = reading.cells()
    several, found = sorted(images["class_id"].unique().tolist()), dict[int, dict[str, list[float]]]()
    for class_id in several if len(several) > 1 else ():
        held = images[(images["class_id"] == class_id) & (images["n_gt"] > 0)]
        group = held["group_id"].where(held["group_id"] != "", held["image_id"] + "/")
        found[class_id] = reading.of_arms(held["dice"].groupby([held["run"], group]).mean().groupby("run").mean())
        labels = (class_label(run.config, class_id) for run in reading.every)
        reading.titles[f"dice_class_{class_id}"] = f"{[*labels][-1]} (points)"
    rows_of_arms: list[dict[str, Any]] = []
    curves = []
    for arm, runs in reading.runs.items():
        rows_of_arms.append({"arm": arm, "n_runs": len(runs)})
        for class_id in several if len(several) > 1 else ():
            rows_of_arms[-1] |= mean_and_sd(f"dice_class_{class_id}", found[class_id][arm])
        means = [rows_of_arms[-1].get(f"dice_class_{class_id}", math.nan) for class_id in several]
        curves.append(points_of(arm, map(float, several), means))
    panel = Panel("classes", "Dice of each class", "class", "Dice", tuple(curves), "points", y_points=True)
    note = "Dice of each class: mean over the images (of groups: over groups) whose reference holds it."
    return rows_of_arms, [panel], [note if len(several) > 1 else "Only one class is scored."]
