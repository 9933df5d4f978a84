"""What the compared runs were made with, and what compared them."""

import importlib.metadata
import platform
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import segexp
from segexp.compare.load import Run

_COLUMNS = {
    "study": "studies",
    "dataset_sha": "data sets (SHA-256)",
    "split_sha": "splits (SHA-256)",
    "version_segexp": "segexp of the runs",
    "git_commit": "commits",
    "git_dirty": "local changes",
    "version_torch": "torch",
    "version_python": "Python",
    "device_name": "devices",
    "threads": "threads",
    "precision": "precision",
    "host": "hosts",
    "empty_policy": "empty masks",
    "resolution": "resolution",
    "select_metric": "weights chosen by",
}

LIBRARIES = ("numpy", "scipy", "pandas")


def provenance_of(paths: Sequence[Path], runs: Sequence[Run]) -> dict[str, Any]:
    """Keys as people read them -> values, with the number of runs behind each where there are several."""
    found: dict[str, Any] = {"read from": [str(path.absolute()) for path in paths]}
    found["runs"] = dict(Counter(run.state for run in runs))
    for column, title in _COLUMNS.items():
        counts = Counter(run.row.get(column, "") for run in runs)
        counts.pop("", None)
        if counts:
            found[title] = dict(counts.most_common())
    times = sorted(run.row["started"] for run in runs if run.row.get("started"))
    ends = sorted(run.row["finished"] for run in runs if run.row.get("finished"))
    if times:
        found["runs made"] = f"{times[0]} to {(ends or times)[-1]}"
    versions = {name: importlib.metadata.version(name) for name in LIBRARIES}
    found["compared with"] = {"segexp": segexp.__version__, "Python": platform.python_version(), **versions}
    return found
