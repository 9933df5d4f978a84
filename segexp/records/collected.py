"""Tables of many runs, runs.csv and images.csv, as `segexp collect` writes them.

runs.csv has one row a run and, after the columns `FIRST`, in this order,

- the columns of summary.csv: what the run is, as far as that is known, and the scores of finished runs;
- `RECORD`: its directory, its state, how it ended, and what it was made with;
- numerics, where a run has another version of the numbers than 1; plugins, where a run uses entries of plugins, each
  with the version of its plugin, loss=mine:93bdba78; fixed_rate, true where a run with a tuned learning rate is also
  one with this rate fixed;
- config_<key> for every key of any run's configuration, in alphabetical order, dots as underscores:
  config_trainer_epochs;
- `TIMINGS`: seconds (sum over the epochs), images_per_s (their mean), peak_mem_mib (the largest).

images.csv holds run_id, activation, loss, seed and the columns of the runs' own images.csv, of finished runs. Lists are
JSON, booleans true and false, unknown values empty cells. The same run directories give the same bytes.

No torch and no YAML.
"""

import csv
import dataclasses
import hashlib
import io
import re
import statistics
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from segexp.errors import UsageError
from segexp.records import (
    COLUMNS,
    cell_of,
    check_complete,
    check_header,
    lasting,
    open_atomic,
    read_typed,
    text_rows,
    typed,
    unverified,
)
from segexp.records.decision import read_decision
from segexp.records.formatting import pluralize
from segexp.records.runs import FINAL, FIXED, INCOMPLETE, Duplicates, Run, Study, runs_in, studies_in
from segexp.records.scores import OWN

if TYPE_CHECKING:
    import pandas as pd

RECORD: dict[str, type] = {
    **typed(str, "study directory status error"),
    **typed(int, "n_warnings attempts"),
    **typed(str, "started finished host device_type device_name"),
    "threads": int,
    **typed(str, "memory_format precision version_segexp version_python version_torch git_commit"),
    "git_dirty": bool,
    "git_diff_sha": str,
}
"""Columns of runs.csv from run.json. status: a state of `segexp.records.runs.STATES`, or incomplete."""

TIMINGS = typed(float, "seconds images_per_s peak_mem_mib")

FIRST = (
    *("study", "directory", "run_id", "dataset", "model", "backbone", "hidden_activation", "activation", "loss"),
    *("seed", "fold", "status", "dice", "iou", "dice_tuned", "nsd", "hd95", "nll", "ece15", "val_dice"),
    *("epochs", "best_epoch", "n_test", "seconds", "error"),
)
"""The columns of runs.csv that come first, for people. Readers do not depend on the order."""

_ARM: dict[str, type] = {"activation": str, "loss": str, "seed": int}

IMAGES: dict[str, type] = {"run_id": str, **_ARM, **COLUMNS["images"]}
"""The columns of a study's images.csv; earlier versions wrote none of `_ARM`."""


def in_images(name: str) -> bool:
    return name in IMAGES or name.startswith(OWN)


KINDS: dict[str, type] = {**COLUMNS["summary"], **RECORD, **TIMINGS}  # the columns that every runs.csv has

RARE: dict[str, type] = {"numerics": int, "compiled": bool, "plugins": str, "scores": str, "look": str, FIXED: bool}
RARE |= typed(float, "look_share look_share_within")
"""Columns of tables with a run that has them."""

AGAIN = "write it again with `segexp collect`"


@dataclass(frozen=True)
class Collected:
    """What was collected. counts: status -> rows of runs.csv; n_images: rows of images.csv.

    duplicates: directories left out, because the run is counted already; problems: what is missing or damaged; notes:
    what cannot be verified; a line each.
    """

    counts: Mapping[str, int]
    n_images: int
    duplicates: tuple[str, ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...] = ()


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
    duplicates, n_images, problems, old = Duplicates(), 0, [], set[str]()
    # Records are read twice, as all of them take much memory.
    own = sorted({OWN + name for study in studies for run in runs_in(study) for name in run.record.get("scores") or ()})
    with open_atomic(out / "images.csv") as file:
        _write(file, [[*IMAGES, *own]])
        for recorded in (run for study in studies for run in at_looks(study)):
            run, images = _read(recorded, own)
            if run.state in ("unreadable", INCOMPLETE):
                problems.append(run.reason)
            if duplicates.add(run, hashlib.sha256(repr(images).encode()).digest()):
                old |= {run.run_id} if run.state in FINAL and unverified(recorded.record) else set()
                _write(file, images)
                n_images += len(images)
    with open_atomic(out / "runs.csv") as file:
        rows = (run.row for run in duplicates.runs.values())
        ordered = sorted(rows, key=lambda row: (row["study"], row["directory"]))
        found = {name for row in ordered for name in row}
        options = sorted(name for name in found if name.startswith("config_"))
        rare = [name for name in RARE if name in found]
        names = dict.fromkeys([*FIRST, *COLUMNS["summary"], *own, *RECORD, *rare, *options, *TIMINGS])
        _write(file, [names, *([row.get(name, "") for name in names] for row in ordered)])
    counts = Counter(row["status"] for row in ordered)
    left_out = (f"{run.path} is a duplicate of {kept.path}: counted once" for run, kept in duplicates.left_out)
    return Collected(counts, n_images, tuple(left_out), (*problems, *duplicates.others), unverified_note(old))


def at_looks(study: Study) -> Iterator[Run]:
    """The runs of a study, each with the looks of the study's decision that used it, if there is a decision."""
    decision = read_decision(study.path)
    yield from (decision.at_look(run) if decision else run for run in runs_in(study))


def unverified_note(run_ids: Collection[str]) -> tuple[str, ...]:
    """The line about runs whose tables have no checksums."""
    number = pluralize(len(run_ids), "run")
    text = f"{number} without checksums, made by an earlier segexp: edited tables would go unnoticed"
    return (text,) if run_ids else ()


def _write(file: BinaryIO, rows: Sequence[Any]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    file.write(text.getvalue().encode("utf-8", "backslashreplace"))


def _read(run: Run, own: Sequence[str]) -> tuple[Run, list[list[str]]]:
    """A run with its row of runs.csv in place of its record, and its rows of images.csv; incomplete, without scores,
    where its files are. own: columns of the scores of plugins in the table of all runs."""
    row: dict[str, str] = {}
    images: list[list[str]] = []
    if run.state in FINAL:
        try:
            check_complete(run.path, run.record)
            row = {**run.row} | {name: cell_of(value) for name, value in totals_of(run).items()}
            arm = [run.run_id, *(row.get(name, "") for name in _ARM)]
            columns = (*COLUMNS["images"], *own)
            rows = text_rows(run.path / "images.csv", "images")
            images = [[*arm, *(cells.get(name, "") for name in columns)] for cells in rows]
        except UsageError as error:
            run, row = run.incomplete(str(error)), {}
    return dataclasses.replace(run, record={}, planned=None, cells=row or run.row), images


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


def runs_header(line: bytes, path: Path, needed: Collection[str]) -> list[str]:
    """The columns of runs.csv from its first line. Raises UsageError where the file is another one, or was edited."""
    return check_header(
        line, path, lambda name: name in KINDS | RARE or name.startswith(("config_", OWN)), needed, AGAIN
    )


def read_collected(path: Path | str) -> "pd.DataFrame":
    """Read runs.csv or images.csv of `collect` with the types of their columns; names stay strings.

    A column of the configuration is of numbers or booleans where all of its cells are, else of strings; names
    (config_..._name, _suffix, _column) are always strings. Raises UsageError for a file that is neither table, or that
    a spreadsheet or an editor has changed.

    >>> runs = segexp.read_collected("outputs/nightly/runs.csv")  # doctest: +SKIP
    """
    path = Path(path)
    if path.is_dir():
        raise UsageError(f"{path} is a folder: name runs.csv or images.csv in it")
    with path.open("rb") as file:
        line = file.readline()
    if b"image_id" in line:
        names = check_header(line, path, in_images, lasting(IMAGES.keys() - _ARM), AGAIN)
        return read_typed(path, {name: IMAGES.get(name, float) for name in names})
    return typed_runs(path.read_bytes(), runs_header(line, path, lasting(KINDS)))


def typed_runs(table: bytes, header: Sequence[str]) -> "pd.DataFrame":
    """The content of runs.csv with the types of its columns."""
    kinds = KINDS | RARE | {name: float for name in header if name.startswith(OWN)}
    text = read_typed(io.BytesIO(table), {name: kinds.get(name, str) for name in header})
    kinds = {name: kinds.get(name) or _kind(name, set(text[name]) - {""}) for name in header}
    return read_typed(io.BytesIO(table), kinds)


def _kind(name: str, cells: set[str]) -> type:
    """The type of a column of the configuration, from its cells that are not empty."""
    if not cells or name.endswith(("_name", "_suffix", "_column")):
        return str
    if cells <= {"true", "false"}:
        return bool
    if all(re.fullmatch(r"-?\d+", cell) for cell in cells):
        return int
    return float if all(re.fullmatch(r"-?\d+(\.\d+)?(e[-+]?\d+)?", cell) for cell in cells) else str
