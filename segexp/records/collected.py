"""The tables of a study: runs.csv, one row a run, and images.csv, every image of every run. Key: run_id.

runs.csv holds, in this order,

- the columns of summary.csv: what the run is, as far as that is known, and its scores, which finished runs alone have;
- `RECORD`: where it lies, how it stands and ended, and what it was made with;
- config_<key> for every key of any run's configuration, in alphabetical order, dots as underscores:
  config_trainer_epochs;
- `TIMINGS`: seconds (sum over the epochs), images_per_s (their mean), peak_mem_mib (the largest).

images.csv holds run_id and the columns of the runs' own images.csv, of runs that are done. Lists stand as JSON, yes and
no as true and false, what is not known is an empty cell. Nothing but what the runs wrote goes into them: the same run
directories give the same bytes. No torch and no YAML: thousands of runs are collected in seconds.
"""

import csv
import functools
import hashlib
import io
import operator
import re
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from segexp.errors import UsageError
from segexp.records import COLUMNS, ENCODING, cell_of, check_complete, flatten, open_atomic, read_typed, text_rows
from segexp.records.runs import FINAL, INCOMPLETE, Copy, Duplicates, Run, runs_in, studies_in

if TYPE_CHECKING:
    import pandas as pd

RECORD: dict[str, type] = {
    "study": str,
    "directory": str,
    "status": str,
    "error": str,
    "n_warnings": int,
    "attempts": int,
    "started": str,
    "finished": str,
    "host": str,
    "device_type": str,
    "device_name": str,
    "threads": int,
    "memory_format": str,
    "precision": str,
    "version_segexp": str,
    "version_python": str,
    "version_torch": str,
    "git_commit": str,
    "git_dirty": bool,
    "git_diff_sha": str,
}
"""Columns of runs.csv from run.json. status: a state of `segexp.records.runs.STATES`, or incomplete."""

TIMINGS: dict[str, type] = {"seconds": float, "images_per_s": float, "peak_mem_mib": float}

IMAGES: dict[str, type] = {"run_id": str, **COLUMNS["images"]}
"""The columns of a study's images.csv."""


@dataclass(frozen=True)
class Collected:
    """What was collected. counts: status -> rows of runs.csv; n_images: rows of images.csv.

    twice: directories left out as copies, a line each; problems: what should be there and is not, a line each.
    """

    counts: Mapping[str, int]
    n_images: int
    twice: tuple[str, ...]
    problems: tuple[str, ...]


def collect(folder: Path, out: Path | None = None) -> Collected:
    """Write runs.csv and images.csv of all runs in ``folder`` into ``out`` (default: ``folder``).

    A finished run that has lost rows has no scores in runs.csv, where it is incomplete, and no images in images.csv.
    Of several directories of one run the first that is whole is taken, in order of their names. Raises UsageError where
    two of them are whole and differ, where there is no run, or where a run directory's own images.csv would be
    overwritten.
    """
    out = out or folder
    studies = studies_in(folder)
    if (out / "run.json").exists():
        raise UsageError(f"{out} is a run directory with an images.csv of its own: name another folder with -o")
    out.mkdir(parents=True, exist_ok=True)
    rows: dict[str, dict[str, Any]] = {}
    copies, n_images, problems = Duplicates(operator.eq), 0, []
    with open_atomic(out / "images.csv") as file:
        _write(file, [IMAGES])
        for run in (run for study in studies for run in runs_in(study)):
            row, images, problem = _read(run)
            if problem:
                problems.append(problem)
            place = f"{row['study']}/{row['directory']}"
            identity = str(run.record.get("identity") or "")
            digest = hashlib.sha256(repr(images).encode()).digest()
            if copies.counts(Copy(run.run_id, place, row["status"], identity, row, digest)):
                rows[run.run_id] = row
                _write(file, images)
                n_images += len(images)
    with open_atomic(out / "runs.csv") as file:
        ordered = sorted(rows.values(), key=lambda row: (row["study"], row["directory"]))
        names = dict.fromkeys([*COLUMNS["summary"], *RECORD])
        names |= dict.fromkeys(sorted({name for row in ordered for name in row if name.startswith("config_")}))
        names |= dict.fromkeys(TIMINGS)
        _write(file, [names, *([cell_of(row.get(name)) for name in names] for row in ordered)])
    counts = Counter(row["status"] for row in ordered)
    twice = (f"{left.place} is the run of {kept.place} once more: left out" for left, kept in copies.twice)
    return Collected(counts, n_images, tuple(twice), (*problems, *copies.others))


def _write(file: BinaryIO, rows: Sequence[Any]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    file.write(text.getvalue().encode("utf-8"))


def _read(run: Run) -> tuple[dict[str, Any], list[list[str]], str]:
    """A run's row of runs.csv, its rows of images.csv, and what is wrong with it, "" when nothing is."""
    row, images = row_of(run), []
    if run.state == "unreadable":
        return row, [], f"{run.path} cannot be read: {run.reason}"
    if run.state in FINAL:
        try:
            check_complete(run.path, run.record)
            totals = totals_of(run.path)
            images = [[run.run_id, *cells.values()] for cells in text_rows(run.path / "images.csv", "images")]
        except UsageError as error:
            return row | {"status": INCOMPLETE, "error": str(error)}, [], str(error)
        row |= run.record.get("summary", {}) | totals
    return row, images, ""


def row_of(run: Run) -> dict[str, Any]:
    """A run's row of runs.csv before its scores: what is known of it from its first moment on."""
    record = run.record
    config = record.get("config", {}) or (flatten(run.planned.config) if run.planned else {})
    device, versions, git = (record.get(key) or {} for key in ("device", "versions", "git"))
    known = ("config_id", "schema_version", "dataset_sha", "split_sha", "init_sha", "order_sha", "n_params")
    groups = ("dataset", "model", "backbone", "hidden_activation", "activation", "loss")
    row = {
        "run_id": run.run_id,
        **{key: record.get(key) for key in known},
        **{group: config.get(f"{group}.name") for group in groups},
        "seed": config.get("seed"),
        "study": run.study,
        "directory": run.path.name,
        "status": run.state,
        "error": run.reason,
        "n_warnings": len(record["warnings"]) if "warnings" in record else None,
        **{key: record.get(key) for key in ("attempts", "started", "finished", "host")},
        **{f"device_{key}": device.get(key) for key in ("type", "name")},
        **{key: device.get(key) for key in ("threads", "memory_format", "precision")},
        **{f"version_{key}": versions.get(key) for key in ("segexp", "python", "torch")},
        **{f"git_{key}": git.get(key) for key in ("commit", "dirty", "diff_sha")},
    }
    for key, value in config.items():
        column = column_of(key)
        if column in row:
            raise UsageError(f"{run.path}: two keys of the configuration would both be the column {column}")
        row[column] = value
    return row


@functools.cache
def column_of(key: str) -> str:
    """The column of a key of the configuration: config_trainer_epochs."""
    return "config_" + re.sub(r"[^a-z0-9_]", "_", key.lower())


def totals_of(run_dir: Path) -> dict[str, Any]:
    """The columns `TIMINGS` of a run. Raises UsageError where timings.csv cannot be read."""
    timings = text_rows(run_dir / "timings.csv", "timings")
    try:
        numbers = {name: [float(row[name]) for row in timings if row[name]] for name in TIMINGS}
    except ValueError as error:
        raise UsageError(f"{run_dir / 'timings.csv'} is damaged: {error}") from error
    return {
        "seconds": sum(numbers["seconds"]),
        "images_per_s": statistics.fmean(numbers["images_per_s"]) if numbers["images_per_s"] else None,
        "peak_mem_mib": max(numbers["peak_mem_mib"], default=None),
    }


def read_collected(path: Path) -> "pd.DataFrame":
    """Read runs.csv or images.csv of `collect` with the types of their columns, names as the strings they are.

    Columns of the configuration whose cells are all numbers are numbers, all true or false booleans, else strings;
    names (config_..._name, _suffix, _column) are strings whatever they look like.
    """
    with path.open(encoding=ENCODING, newline="") as file:
        header = next(csv.reader(file), [])
    if header == list(IMAGES):
        return read_typed(path, IMAGES)
    kinds = {**COLUMNS["summary"], **RECORD, **TIMINGS}
    if not header or set(kinds) - set(header):
        raise UsageError(f"{path} is no runs.csv or images.csv of `segexp collect`")
    text = read_typed(path, {name: kinds.get(name, str) for name in header})
    return read_typed(path, {name: kinds.get(name) or _kind(name, set(text[name]) - {""}) for name in header})


def _kind(name: str, cells: set[str]) -> type:
    """The type of a column of the configuration, from its cells that are not empty."""
    if not cells or name.endswith(("_name", "_suffix", "_column")):
        return str
    if cells <= {"true", "false"}:
        return bool
    if all(re.fullmatch(r"-?\d+", cell) for cell in cells):
        return int
    return float if all(re.fullmatch(r"-?\d+(\.\d+)?(e[-+]?\d+)?", cell) for cell in cells) else str
