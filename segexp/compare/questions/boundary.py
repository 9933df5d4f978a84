"""How well are outlines met, and how many objects are missed altogether?"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from segexp.compare.questions import question
from segexp.compare.questions.reading import Reading, drawn, mean_and_sd, points_of
from segexp.compare.result import Answer, Panel
from segexp.records.scores import SCORES, unit_of

TITLES = {
    "missed": "missed references (%)",
    "unit": "unit",
    "tolerance": "tolerance (in unit)",
    "hd95": "HD95 (in unit)",
    "nsd": "NSD (points)",
}
"""Column of a row -> title with its unit."""


@question
def boundary(arms: Mapping[str, Sequence[Path]], split: str = "test") -> Answer:
    """Normalised surface Dice (NSD), 95 % Hausdorff distance (HD95), share of missed references, Dice beside them.

    Rows: mean and sd over runs; hd95 and tolerance in ``unit``. missed: share of the images x classes with a reference
    of which nothing is predicted anywhere; they enter nsd with 0 and hd95 with the diagonal of the image.
    """
    reading = Reading(arms, split)
    scores = reading.scores("nsd", "hd95", "dice")
    images = reading.tables("images", ("n_gt", "n_pred"), "", split=split)
    rows, points = [], []
    for arm, runs in reading.runs.items():
        missed = []
        for _, frame in images[arm]:
            held = frame[frame["n_gt"] > 0]
            missed.append(float((held["n_pred"] == 0).mean()))
        row: dict[str, Any] = {"arm": arm, "n_runs": len(runs)}
        for name in ("dice", "nsd", "hd95"):
            row |= mean_and_sd(name, scores[arm][name])
        row |= mean_and_sd("missed", missed)
        row |= {
            "unit": _one(unit_of(SCORES["hd95"], run.config.get("dataset.spacing")) for run in runs),
            "tolerance": _one(run.config.get("dataset.surface_tolerance") for run in runs),
        }
        rows.append(row)
        points.append(points_of(arm, scores[arm]["dice"], scores[arm]["nsd"]))
    units = {(row["unit"], row["tolerance"]) for row in rows if row["n_runs"]}
    notes = [
        "A missed reference counts as NSD 0 and HD95 the diagonal of the image: a few can rule the mean of HD95.",
        *(
            ["NSD and HD95 are not comparable between these runs: unit or tolerance of their surfaces differ."]
            if len(units) > 1 or "mixed" in {value for unit in units for value in unit}
            else []
        ),
        *reading.notes(),
    ]
    panel = Panel(
        name="boundary",
        title="Boundary against overlap, a point a run",
        x_label="Dice",
        y_label="NSD",
        curves=tuple(points),
        kind="points",
        x_points=True,
        y_points=True,
    )
    return Answer("boundary", "Boundary", tuple(rows), drawn([panel]), tuple(notes), TITLES)


def _one(values: Iterable[Any]) -> Any:
    """What all values are; "mixed" where they differ."""
    seen = set(values)
    return "mixed" if len(seen) > 1 else next(iter(seen), None)
