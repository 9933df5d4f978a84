"""Provenance of a comparison: what its runs were made with, on which data and devices, and when."""

import functools
import importlib.metadata
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import segexp
from segexp.records.runs import Run

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
    "compiled": "head and loss compiled",
    "host": "hosts",
    "empty_policy": "empty masks",
    "resolution": "resolution",
    "select_metric": "weights chosen by",
}

LIBRARIES = ("numpy", "scipy", "pandas")


@functools.cache  # reading them takes longer than a small comparison
def _versions() -> Mapping[str, str]:
    return {name: importlib.metadata.version(name) for name in LIBRARIES}


def provenance_of(paths: Sequence[Path], runs: Sequence[Run]) -> dict[str, Any]:
    """Title -> values, with the number of runs behind each."""
    found: dict[str, Any] = {"read from": [str(path.absolute()) for path in paths]}
    found["runs"] = dict(Counter(run.state for run in runs))
    for column, title in _COLUMNS.items():
        counts = Counter(run.row.get(column, "") for run in runs)
        counts.pop("", None)
        if counts:
            found[title] = dict(counts.most_common())
    entries = Counter(entry for run in runs for entry in run.row.get("plugins", "").split())
    if entries:
        found["plugins"] = dict(entries.most_common())
    starts, ends = (sorted(run.row[key] for run in runs if run.row.get(key)) for key in ("started", "finished"))
    if starts:
        found["runs made"] = f"{starts[0]} to {(ends or starts)[-1]}"
    found["compared with"] = {"segexp": segexp.__version__, "Python": platform.python_version(), **_versions()}
    return found
