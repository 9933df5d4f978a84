"""Which classes are segmented well?"""

import math
from typing import Any

from segexp.compare.questions import Findings, Reading, mean_and_sd, points_of, question
from segexp.compare.result import Panel
from segexp.records.scores import class_label


@question("Classes", {})
def classes(reading: Reading) -> Findings:
    """Dice of each class, of runs with several: mean over the images whose reference holds it, then over runs."""
    columns = ("class_id", "group_id", "image_id", "n_gt", "dice")
    images = reading.tables("images", columns, "", split=reading.split)
    found: dict[str, dict[int, list[float]]] = {arm: {} for arm in reading.runs}
    for arm, run, frame in ((arm, *one) for arm, of_arm in images.items() for one in of_arm):
        for class_id in frame["class_id"].unique().tolist():
            rows = frame[frame["class_id"] == class_id]
            held = rows[rows["n_gt"] > 0]
            group = held["group_id"].where(held["group_id"] != "", held["image_id"] + "/")
            mean = float(held["dice"].groupby(group).mean().mean()) if len(held) else math.nan
            found[arm].setdefault(class_id, []).append(mean)
            label = class_label(run.config, class_id)
            reading.titles[f"dice_class_{class_id}"] = f"{label} (points)"
    several = sorted({class_id for of_arm in found.values() for class_id in of_arm})
    rows_of_arms: list[dict[str, Any]] = []
    curves = []
    for arm, runs in reading.runs.items():
        rows_of_arms.append({"arm": arm, "n_runs": len(runs)})
        for class_id in several if len(several) > 1 else ():
            rows_of_arms[-1] |= mean_and_sd(f"dice_class_{class_id}", found[arm].get(class_id, []))
        means = [rows_of_arms[-1].get(f"dice_class_{class_id}", math.nan) for class_id in several]
        curves.append(points_of(arm, map(float, several), means))
    panel = Panel("classes", "Dice of each class", "class", "Dice", tuple(curves), "points", y_points=True)
    note = "Dice of each class: mean over the images (of groups: over groups) whose reference holds it."
    return rows_of_arms, [panel], [note if len(several) > 1 else "Only one class is scored."]
