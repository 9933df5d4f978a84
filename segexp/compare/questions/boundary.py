"""How well do outlines agree, and how many references are missed completely?"""

from collections.abc import Iterable
from typing import Any

from segexp.compare.questions import Findings, Reading, mean_and_sd, points_of, question
from segexp.compare.result import Panel
from segexp.records.scores import SCORES, unit_of


@question(
    "Boundary",
    {
        "missed": "missed references (%)",
        "unit": "unit",
        "tolerance": "tolerance (in unit)",
        "hd95": "HD95 (in unit)",
        "nsd": "NSD (points)",
        "variant": "NSD of",
    },
)
def boundary(reading: Reading) -> Findings:
    """Normalised surface Dice (NSD), 95 % Hausdorff distance (HD95), share of missed references, and Dice.

    Rows: mean and sd over runs; hd95 and tolerance in ``unit``; variant: ``metrics.nsd``. missed: share of the images x
    classes with a reference where nothing is predicted; they enter nsd with 0 and hd95 with the diagonal of the image.
    """
    scores = reading.scores("nsd", "hd95", "dice")
    images = reading.cells()
    held = images[images["n_gt"] > 0]
    missed = reading.of_arms((held["n_pred"] == 0).groupby(held["run"]).mean())
    rows, points = [], []
    for arm, runs in reading.runs.items():
        row: dict[str, Any] = {"arm": arm, "n_runs": len(runs)}
        for name in ("dice", "nsd", "hd95"):
            row |= mean_and_sd(name, scores[arm][name])
        row |= mean_and_sd("missed", missed[arm])
        row |= {
            "unit": _one(
                unit_of(SCORES["hd95"], run.config.get("dataset.spacing"), run.summary.get("distance_unit"))
                for run in runs
            ),
            "tolerance": _one(run.config.get("dataset.surface_tolerance") for run in runs),
            "variant": _one(run.config.get("metrics.nsd", "pixel") for run in runs),
        }
        rows.append(row)
        points.append(points_of(arm, scores[arm]["dice"], scores[arm]["nsd"]))
    units = {(row["unit"], row["tolerance"], row["variant"]) for row in rows if row["n_runs"]}
    notes = ["A missed reference counts as NSD 0 and as HD95 the diagonal of the image: a few can dominate the mean."]
    if len(units) > 1 or any("mixed" in unit for unit in units):
        notes.append("NSD and HD95 cannot be compared between these runs: unit, variant or tolerance differs.")
    title = "Boundary against overlap, one point per run"
    panel = Panel("boundary", title, "Dice", "NSD", tuple(points), "points", x_points=True, y_points=True)
    return rows, [panel], notes


def _one(values: Iterable[Any]) -> Any:
    """The value that all share; "mixed" where they differ."""
    seen = set(values)
    return "mixed" if len(seen) > 1 else next(iter(seen), None)
