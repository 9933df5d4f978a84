"""Which learning rates were tried for each arm, and how did they do on validation images?"""

import io
from pathlib import Path
from typing import Any

import pandas as pd

from segexp.compare.questions import Findings, Reading, near_the_best, question
from segexp.compare.result import Curve, Panel
from segexp.config.arm import ARM_GROUPS, arm_of_row
from segexp.errors import UsageError
from segexp.records import exact_floats
from segexp.records.files import read_text

NOTHING = pd.DataFrame([], columns=["lr", "val_dice", "val_dice_sd", "n_seeds", "n_diverged", "chosen"], dtype=float)


@question("Tuned learning rates", {"lr": "chosen learning rate"})
def tuning(reading: Reading) -> Findings:
    """Validation Dice of each learning rate, from the table that `segexp tune` wrote beside the file ``tuned``.

    It is read from the study of the search, beside that of the runs: a record may not name any file to be read.
    """
    runs = [run for of_arm in reading.runs.values() for run in of_arm]
    files = {(run.path.parent.parent, Path(str(run.config["tuned"]))) for run in runs if run.config.get("tuned")}
    tried: dict[Any, pd.DataFrame] = {}
    rows, curves, notes = [], [], []
    for path in sorted(outputs / file.parent.name / f"{file.stem}_rates.csv" for outputs, file in files):
        try:
            table = pd.read_csv(io.StringIO(read_text(path, 2**20)), keep_default_na=False, **exact_floats()).set_index(
                [*ARM_GROUPS]
            )
            tried |= dict(iter(table.apply(pd.to_numeric).sort_values("lr").groupby(level=[*ARM_GROUPS])))
        except (UsageError, KeyError, ValueError) as error:
            notes.append(f"No rates from {path}: {error}")
    for arm, of_arm in reading.runs.items():
        found = tried.get(arm_of_row(of_arm[0].row) if of_arm else (), NOTHING)
        known = found[found["n_diverged"] == 0]
        mean, sd = known["val_dice"], known["val_dice_sd"].fillna(0)
        parts = (known["lr"], mean, mean - sd, mean + sd, known["n_seeds"])
        curves.append(Curve(arm, *(tuple(map(float, part)) for part in parts)))
        chosen = {key: float(found.loc[found["chosen"] == 1, key].max()) for key in ("lr", "val_dice")}
        rows.append({"arm": arm, "n_runs": len(of_arm)} | (chosen if files else {}))
    about = "Bands: one standard deviation of the seeds. Rates that diverged with a seed are not drawn."
    notes.append(about if files else "No run has a rate of `segexp tune` (tuned=FILE) other than optimizer.lr.")
    title, y_from = "Validation Dice against the learning rate", near_the_best(curves)
    panel = Panel("tuning", title, "learning rate", "Dice", tuple(curves), log_x=True, y_points=True, y_from=y_from)
    return rows, [panel], notes
