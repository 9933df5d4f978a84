"""The tables of a study: runs.csv, one row a run, and images.csv, every image of every run. Key: run_id.

runs.csv holds, in this order,

- the columns of summary.csv: what the run is, as far as that is known, and the scores of finished runs;
- `RECORD`: its directory, its state, how it ended, and what it was made with;
- numerics, where a run has another version of the numbers than 1;
- config_<key> for every key of any run's configuration, in alphabetical order, dots as underscores:
  config_trainer_epochs;
- `TIMINGS`: seconds (sum over the epochs), images_per_s (their mean), peak_mem_mib (the largest).

images.csv holds run_id and the columns of the runs' own images.csv, of finished runs. Lists are JSON, booleans true and
false, unknown values empty cells. The same run directories give the same bytes. No torch and no YAML: thousands of runs
are collected in seconds.
"""

import csv
import hashlib
import io
import re
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from segexp.errors import UsageError
from segexp.records import (
    COLUMNS,
    cell_of,
    check_complete,
    check_header,
    open_atomic,
    read_typed,
    text_rows,
)
from segexp.records.runs import FINAL, INCOMPLETE, Duplicates, Run, row_of, runs_in, studies_in

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


KINDS: dict[str, type] = {**COLUMNS["summary"], **RECORD, **TIMINGS}
"""The columns that every runs.csv has."""

AGAIN = "write it again with `segexp collect`"


@dataclass(frozen=True)
class Collected:
    """What was collected. counts: status -> rows of runs.csv; n_images: rows of images.csv.

    duplicates: directories left out, because the run is counted already; problems: what is missing or damaged; a line
    each.
    """

    counts: Mapping[str, int]
    n_images: int
    duplicates: tuple[str, ...]
    problems: tuple[str, ...]


def collect(folder: Path, out: Path | None = None) -> Collected:
    """Write runs.csv and images.csv of all runs in ``folder`` into ``out`` (default: ``folder``).

    A finished run whose files are incomplete has the status incomplete, and no scores and images. Duplicate runs are
    counted once: the first complete one, in order of their directories. Raises UsageError where two complete ones
    differ, where there is no run, or where a run directory's own images.csv would be overwritten.
    """
    out = out or folder
    studies = studies_in(folder)
    if (out / "run.json").exists():
        raise UsageError(f"{out} is a run directory with an images.csv of its own: name another folder with -o")
    out.mkdir(parents=True, exist_ok=True)
    rows: dict[str, dict[str, Any]] = {}
    duplicates, n_images, problems = Duplicates(), 0, []
    with open_atomic(out / "images.csv") as file:
        _write(file, [IMAGES])
        for found in (run for study in studies for run in runs_in(study)):
            run, row, images = _read(found)
            if run.state in ("unreadable", INCOMPLETE):
                problems.append(run.reason if run.state == INCOMPLETE else f"{run.path} cannot be read: {run.reason}")
            if duplicates.add(run, hashlib.sha256(repr(images).encode()).digest()):
                rows[run.run_id] = row
                _write(file, images)
                n_images += len(images)
    with open_atomic(out / "runs.csv") as file:
        ordered = sorted(rows.values(), key=lambda row: (row["study"], row["directory"]))
        names = dict.fromkeys([*COLUMNS["summary"], *RECORD])
        names |= dict.fromkeys(["numerics"] if any("numerics" in row for row in ordered) else [])
        names |= dict.fromkeys(sorted({name for row in ordered for name in row if name.startswith("config_")}))
        names |= dict.fromkeys(TIMINGS)
        _write(file, [names, *([cell_of(row.get(name)) for name in names] for row in ordered)])
    counts = Counter(row["status"] for row in ordered)
    left_out = (f"{run.path} is a duplicate of {kept.path}: counted once" for run, kept in duplicates.left_out)
    return Collected(counts, n_images, tuple(left_out), (*problems, *duplicates.others))


def _write(file: BinaryIO, rows: Sequence[Any]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    file.write(text.getvalue().encode("utf-8"))


def _read(run: Run) -> tuple[Run, dict[str, Any], list[list[str]]]:
    """A run with its rows of runs.csv and images.csv; incomplete, without scores, where its files are."""
    if run.state not in FINAL:
        return run, row_of(run), []
    try:
        check_complete(run.path, run.record)
        row = row_of(run) | totals_of(run)
        images = [[run.run_id, *cells.values()] for cells in text_rows(run.path / "images.csv", "images")]
    except UsageError as error:
        run = run.incomplete(str(error))
        return run, row_of(run), []
    return run, row, images


def totals_of(run: Run) -> dict[str, Any]:
    """The columns `TIMINGS` of a run, none where it wrote no timings.csv. Raises UsageError where that is damaged."""
    path = run.path / "timings.csv"
    if "timings" not in run.record.get("n_rows_expected", {}) and not path.exists():
        return {}
    rows = text_rows(path, "timings")
    try:
        numbers = {name: [float(row[name]) for row in rows if row[name]] for name in TIMINGS}
    except ValueError as error:
        raise UsageError(f"{path} is damaged: {error}") from error
    return {
        "seconds": sum(numbers["seconds"]),
        "images_per_s": statistics.fmean(numbers["images_per_s"]) if numbers["images_per_s"] else None,
        "peak_mem_mib": max(numbers["peak_mem_mib"], default=None),
    }


def runs_header(line: bytes, path: Path, needed: Sequence[str] = tuple(KINDS)) -> list[str]:
    """The columns of runs.csv from its first line. Raises UsageError where the file is another one, or was edited."""
    return check_header(
        line, path, lambda name: name in KINDS or name == "numerics" or name.startswith("config_"), needed, AGAIN
    )


def read_collected(path: Path | str) -> "pd.DataFrame":
    """Read runs.csv or images.csv of `collect` with the types of their columns; names stay strings.

    A column of the configuration is of numbers or booleans where all of its cells are, else of strings; names
    (config_..._name, _suffix, _column) are always strings. Raises UsageError for a file that is neither table, or that
    a spreadsheet or an editor has changed.

    >>> runs = segexp.read_collected("outputs/nightly/runs.csv")  # doctest: +SKIP
    """
    path = Path(path)
    with path.open("rb") as file:
        line = file.readline()
    if b"image_id" in line:
        check_header(line, path, IMAGES.__contains__, IMAGES, AGAIN)
        return read_typed(path, IMAGES)
    header = runs_header(line, path)
    kinds = KINDS | ({"numerics": int} if "numerics" in header else {})
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
