"""Tables of many runs: runs.csv and images.csv as `segexp collect` writes them, and the one reader of runs to compare.

runs.csv has one row a run and, after the columns `FIRST`, in this order,

- the columns of summary.csv: what the run is, as far as that is known, and the scores of finished runs;
- `RECORD`: its directory, its state, how it ended, and what it was made with;
- numerics, where a run has another version of the numbers than 1; plugins, where a run uses entries of plugins, each
  with the version of its plugin, loss=mine:93bdba78;
- config_<key> for every key of any run's configuration, in alphabetical order, dots as underscores:
  config_trainer_epochs;
- `TIMINGS`: seconds (sum over the epochs), images_per_s (their mean), peak_mem_mib (the largest).

images.csv holds run_id, activation, loss, seed and the columns of the runs' own images.csv, of finished runs. Lists are
JSON, booleans true and false, unknown values empty cells. The same run directories give the same bytes.

Axes: N images, F foreground classes, R rows. No torch and no YAML: thousands of runs are read in seconds.
"""

import csv
import dataclasses
import hashlib
import io
import itertools
import os
import re
import statistics
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from segexp.errors import UsageError, first_line
from segexp.records import (
    COLUMNS,
    KEYS,
    RESTORE,
    SCHEMA_VERSION,
    cell_of,
    check_complete,
    check_header,
    is_column,
    lasting,
    open_atomic,
    read_typed,
    text_rows,
    typed,
    unverified,
    whole_table,
)
from segexp.records.decision import read_decision
from segexp.records.formatting import pluralize
from segexp.records.runs import FINAL, INCOMPLETE, Duplicates, Run, Study, runs_in, studies_in
from segexp.records.scores import OWN, PER_IMAGE, SCORES

if TYPE_CHECKING:
    import numpy as np
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


def _in_images(name: str) -> bool:
    return name in IMAGES or name.startswith(OWN)


KINDS: dict[str, type] = {**COLUMNS["summary"], **RECORD, **TIMINGS}  # the columns that every runs.csv has

RARE: dict[str, type] = {"numerics": int, "compiled": bool, "plugins": str, "scores": str, "look": str}
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
        for recorded in (run for study in studies for run in _at_looks(study)):
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
    return Collected(counts, n_images, tuple(left_out), (*problems, *duplicates.others), _unverified(old))


def _at_looks(study: Study) -> Iterator[Run]:
    """The runs of a study, each with the looks of the study's decision that used it, if there is a decision."""
    decision = read_decision(study.path)
    yield from (decision.at_look(run) if decision else run for run in runs_in(study))


def _unverified(run_ids: Collection[str]) -> tuple[str, ...]:
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


def _runs_header(line: bytes, path: Path, needed: Collection[str]) -> list[str]:
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
        names = check_header(line, path, _in_images, lasting(IMAGES.keys() - _ARM), AGAIN)
        return read_typed(path, {name: IMAGES.get(name, float) for name in names})
    return typed_runs(path.read_bytes(), _runs_header(line, path, lasting(KINDS)))


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


ROUNDING = 1e-6  # by how much a score may lie outside its range, or differ from the same score computed again

_COUNTS = ("n_gt", "tp", "fp", "fn")
_NEEDED = ("split", "image_id", "class_id", *_COUNTS, "dice", "iou")
"""Columns of images.csv that no version lacks."""

_TOGETHER = 8_000_000
"""Images of many runs are read in portions of about this many bytes, so that memory does not grow with the study."""

_ANALYSED = ("config", "summary", "diagnostics", "device", "host", "n_rows_expected", "sha256")
"""The parts of a record that secondary analyses need; the others would fill the memory."""

_WHOLE = ("seed", "fold", "config_split_fold", "numerics")
"""Columns by which runs are paired. They hold whole numbers; a finished run always has a seed."""


@dataclass(frozen=True)
class Layout:
    """The images of a split in order of their names, with their groups ("" for none), and where a class is held."""

    image_ids: tuple[str, ...]
    groups: tuple[str, ...]
    classes: tuple[int, ...]
    n_reference_NF: "np.ndarray"
    _alone: "dict[int, Layout]" = field(default_factory=dict, init=False, repr=False, compare=False)

    def of_class(self, class_id: int) -> "Layout":
        """The same images with one of their classes; the same object each time, as runs share their layouts."""
        if class_id not in self._alone:
            n_reference_N1 = self.n_reference_NF[:, [self.classes.index(class_id)]]
            self._alone[class_id] = dataclasses.replace(self, classes=(class_id,), n_reference_NF=n_reference_N1)
        return self._alone[class_id]


@dataclass(frozen=True, eq=False)
class Images:
    """The images of one run: scores per image and class, column -> (N, F), NaN where undefined; counts: tp, fp, fn.

    n_infinite: scores that were not finite, and count as undefined.
    """

    layout: Layout
    cells: Mapping[str, "np.ndarray"]
    counts_NF3: "np.ndarray"
    n_infinite: int = 0

    def __eq__(self, other: object) -> bool:
        import numpy as np

        if not isinstance(other, Images) or self.layout is not other.layout:
            return False
        # The table of an earlier version lacks some scores.
        a, b = self.cells, other.cells
        return all(np.array_equal(a[name], b[name], equal_nan=True) for name in a.keys() & b.keys())

    __hash__ = None  # type: ignore[assignment]

    def of_class(self, class_id: int) -> "Images | None":
        """One class alone (F is 1), None where these images do not have it."""
        if class_id not in self.layout.classes:
            return None
        n = [self.layout.classes.index(class_id)]
        cells = {name: of_all_NF[:, n] for name, of_all_NF in self.cells.items()}
        return Images(self.layout.of_class(class_id), cells, self.counts_NF3[:, n], self.n_infinite)


@dataclass(frozen=True)
class Loaded:
    """All runs in order of study and directory, and what was left out or found wrong, a line each.

    by, metrics: of results of other programs, the columns of their arms and the scores that they hold; else empty.
    """

    runs: tuple[Run, ...]
    problems: tuple[str, ...]
    by: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()


def load(paths: Sequence[Path], split: str = "test") -> Loaded:
    """Read all runs under ``paths`` with their scores per image on ``split`` (val or test).

    A path is a run directory, a study, an outputs folder, a folder with runs.csv and images.csv of `segexp collect`, or
    such a runs.csv. A run that is found in several places is counted once, in any order of ``paths``. Raises UsageError
    where a path is none of these, where two places hold different scores of one run, or no run is found.
    """
    reader = _Reader(split)
    found = [(path, _collected(path)) for path in paths]
    # Sorted, directories first because they hold more than tables: the order of ``paths`` does not matter.
    for path, tables in sorted(found, key=lambda f: (f[1] is not None, os.path.abspath(f[0]))):
        if tables is None:
            reader.directories(path)
        else:
            reader.tables(*tables)
    return reader.finish()


def _collected(path: Path) -> tuple[Path, Path] | None:
    """runs.csv and images.csv where ``path`` names collected tables; run directories in the same folder go first."""
    if path.is_file():
        if path.suffix.lower() != ".csv" or path.name.startswith("images"):
            raise UsageError(
                f"{path} is no runs.csv of `segexp collect`: name that file, or a folder of runs, or the columns of "
                "another program's table with --columns"
            )
        images = path.name.replace("runs", "images", 1) if "runs" in path.name else "images.csv"
        return path, path.with_name(images)
    if path.is_dir() and (path / "runs.csv").is_file():
        try:
            studies_in(path)
        except UsageError:
            return path / "runs.csv", path / "images.csv"
    return None


@dataclass
class _Reader:
    """What has been read so far: a run may come several times. waiting: runs that are read together, with the columns
    and the rows of their images and where these come from."""

    split: str
    duplicates: Duplicates = field(default_factory=Duplicates)
    layouts: dict[Any, Layout] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    waiting: list[tuple[Run, tuple[str, ...], bytes, str]] = field(default_factory=list)
    waiting_bytes: int = 0
    unverified: set[str] = field(default_factory=set)

    def directories(self, path: Path) -> None:
        """The runs of a folder."""
        for run in (run for study in studies_in(path) for run in _at_looks(study)):
            self._wait(*self._opened(run), f"{run.path / 'images.csv'}, run {run.run_id}")
        self._parse()

    def _opened(self, run: Run) -> tuple[Run, tuple[str, ...], bytes]:
        """A run of a directory with its row in place of its record; columns and rows of its images.csv once done."""
        totals: dict[str, Any] = {}
        names, rows = list[str](), b""
        if run.state == "unreadable":
            self.problems.append(run.reason)
        try:
            if run.state in FINAL:
                self.unverified |= {run.run_id} if unverified(run.record) else set()
                if "timings" in run.record.get("n_rows_expected", {}):
                    whole_table(run.path, run.record, "timings")
                totals = totals_of(run)
            if run.state == "done":
                header, _, rows = whole_table(run.path, run.record, "images").partition(b"\n")
                names = check_header(header, run.path / "images.csv", _in_images, _NEEDED)
        except UsageError as error:
            run = self._incomplete(run, str(error))
        row = {**run.row} | {key: cell_of(value) for key, value in totals.items()}
        record = {key: run.record[key] for key in _ANALYSED if key in run.record}
        return self._checked(dataclasses.replace(run, record=record, planned=None, cells=row)), tuple(names), rows

    def tables(self, runs: Path, images: Path) -> None:
        """The runs of collected tables."""
        found: dict[str, Run] = {}
        for cells in _rows_of(runs):
            run_id, version = cells.get("run_id", ""), cells.get("schema_version", "")
            if not run_id:
                self.problems.append(f"{runs}: a run without run_id is left out")
            elif version and not (version.isdecimal() and int(version) <= SCHEMA_VERSION):
                reads = f"this segexp reads up to {SCHEMA_VERSION}"
                self.problems.append(f"{runs}: run {run_id} has schema version {version}, {reads}: left out")
            else:
                study, error = cells.get("study", ""), cells.get("error", "")
                run = Run(run_id, cells["status"], runs, study, reason=error, cells=cells, collected=True)
                found[run_id] = self._checked(run)
        if not images.is_file():
            raise UsageError(f"{images} is missing: `segexp collect` writes it beside {runs.name}, copy both")
        strange, scored = [], set[str]()
        for run_id, names, of_run in _images_of(images):
            if run_id not in found:
                strange.append(run_id)
            elif found[run_id].state == "done":
                scored.add(run_id)
                self._wait(found[run_id], names, of_run, f"{images}, run {run_id}")
        if strange:
            shown = ", ".join(sorted(strange)[:3])
            self.problems.append(f"{images} holds {pluralize(len(strange), 'run')} that {runs.name} does not: {shown}")
        for run in [run for run_id, run in found.items() if run_id not in scored]:
            self._wait(run, (), b"", f"{images}, run {run.run_id}")
        self._parse()

    def _wait(self, run: Run, names: tuple[str, ...], rows: bytes, where: str) -> None:
        self.waiting.append((run, names, rows, where))
        self.waiting_bytes += len(rows)
        if self.waiting_bytes > _TOGETHER:
            self._parse()

    def _parse(self) -> None:
        """Add the waiting runs, finished ones with their images, or incomplete where these cannot be used."""
        images: dict[int, Images | str] = {}
        for names in dict.fromkeys(names for _, names, _, _ in self.waiting):
            done = [n for n, waiting in enumerate(self.waiting) if waiting[0].state == "done" and waiting[1] == names]
            read = _parsed(names, [self.waiting[n][2] for n in done], self.split, self.layouts)
            images |= zip(done, read, strict=True)
        for n, (run, _, _, where) in enumerate(self.waiting):
            found = images.get(n)
            wrong = self._lacking(run.row, found.layout) if isinstance(found, Images) else found
            if wrong:
                run = self._incomplete(run, f"{where}: {wrong}; {AGAIN if run.collected else RESTORE}")  # noqa: PLW2901
            elif isinstance(found, Images):
                run = dataclasses.replace(run, images=found)  # noqa: PLW2901
            self.duplicates.add(run, run.images)
        self.waiting, self.waiting_bytes = [], 0

    def _checked(self, run: Run) -> Run:
        for key in _WHOLE:
            cell = run.row.get(key, "")
            if not re.fullmatch(r"\d+", cell) and (cell or (run.state == "done" and key == "seed")):
                wrong = f"{run.path}: run {run.run_id} has {key}={cell!r}, which is not a whole number"
                return self._incomplete(run, f"{wrong}; {AGAIN if run.collected else RESTORE}")
        return run

    def _incomplete(self, run: Run, reason: str) -> Run:
        self.problems.append(reason)
        return run.incomplete(reason)

    def _lacking(self, row: Mapping[str, str], layout: Layout) -> str:
        """How the number of images or classes differs from what the run itself says, "" when it does not."""
        column = "n_test_cases" if row.get("config_metrics_unit") == "case" else "n_test"
        n_images = row.get(column, "") if self.split == "test" else ""
        not_scored = int(row.get("config_dataset_background") != "none")
        for what, found, number, others in (
            ("images", len(layout.image_ids), n_images, 0),
            ("classes", len(layout.classes), row.get("config_dataset_num_classes", ""), not_scored),
        ):
            if number.isdecimal() and int(number) - others != found:
                return f"{found} {what} instead of {int(number) - others}: rows are missing, or too many"
        return ""

    def finish(self) -> Loaded:
        """All runs. Raises UsageError where there is none."""
        runs = sorted(self.duplicates.runs.values(), key=lambda r: (r.study, r.row.get("directory", ""), r.run_id))
        if not runs:
            raise UsageError("there is no run to compare: name run directories, studies or collected tables")
        problems = [*self.problems, *self.duplicates.others]
        if self.duplicates.left_out:
            shown = _first([f"{run.run_id} ({run.path})" for run, _ in self.duplicates.left_out])
            problems.append(f"{pluralize(len(self.duplicates.left_out), 'duplicate run')}, counted once: {shown}")
        infinite = {run.run_id: run.images.n_infinite for run in runs if run.images and run.images.n_infinite}
        if infinite:
            of = f"{pluralize(len(infinite), 'run')} ({_first(list(infinite))})"
            problems.append(f"{pluralize(sum(infinite.values()), 'score')} of images of {of} not finite: left out")
        older = Counter(run.row.get("schema_version") or str(SCHEMA_VERSION) for run in runs)
        del older[str(SCHEMA_VERSION)]
        for version, count in older.items():
            what = f"{pluralize(count, 'run')} of the older schema version {version}"
            problems.append(f"{what}: what was not measured then is missing")
        return Loaded(tuple(runs), (*problems, *_unverified(self.unverified)))


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")


def _rows_of(path: Path) -> Iterator[dict[str, str]]:
    """The rows of runs.csv. Raises UsageError where the file is another one, or was cut or edited."""
    try:
        with path.open("rb") as file:
            names = _runs_header(file.readline(), path, ("run_id", "status", "seed", "dice"))
        with path.open(encoding="utf-8", newline="") as text:
            for number, cells in enumerate(csv.reader(text), start=1):
                if len(cells) != len(names):
                    raise UsageError(f"{path}, row {number}: {len(cells)} cells instead of {len(names)}; {AGAIN}")
                if number > 1:
                    yield dict(zip(names, cells, strict=True))
    except (OSError, ValueError, csv.Error) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error


def _images_of(path: Path) -> Iterator[tuple[str, tuple[str, ...], bytes]]:
    """Each run of a collected images.csv with its columns and rows. Raises UsageError where it was cut or edited."""
    seen, cut = set[bytes](), False
    try:
        with path.open("rb") as file:
            names = tuple(check_header(file.readline(), path, _in_images, ("run_id", *_NEEDED), AGAIN))
            for run_id, of_run in itertools.groupby(_whole_rows(file), key=lambda row: row.partition(b",")[0]):
                if run_id in seen:
                    raise UsageError(f"{path}: the rows of run {run_id.decode()} do not stand together; {AGAIN}")
                seen.add(run_id)
                rows = b"".join(of_run)
                cut = not rows.endswith(b"\n")
                yield run_id.decode("utf-8"), names, rows
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {first_line(error)}; {AGAIN}") from error
    if cut:
        raise UsageError(f"{path} is cut short, its last line has no end; {AGAIN}, or copy it again")


def _whole_rows(file: BinaryIO) -> Iterator[bytes]:
    """The lines of a table; a cell in quotes may hold line ends."""
    for line in file:
        while line.count(b'"') % 2 and (more := file.readline()):
            line += more  # noqa: PLW2901
        yield line


def _parsed(
    names: Sequence[str], tables: Sequence[bytes], split: str, layouts: dict[Any, Layout]
) -> list[Images | str]:
    """The images of several runs on a split, from the rows of their tables in any order, or why they cannot be used.

    layouts: those known so far, which runs on the same images share; new ones are added.
    """
    import numpy as np
    import pandas as pd

    if not any(tables):
        return [f"there are no images on {split}"] * len(tables)
    kinds = {name: str if IMAGES.get(name) is str else float for name in names}
    frames, damaged = _together(names, dict(enumerate(tables)), kinds)
    if not frames:
        return [f"damaged: {why}" for why in damaged.values()]
    rows = pd.concat(frames)
    rows = rows.assign(group_id=rows.get("group_id", ""))
    rows = rows[rows["split"] == split].sort_values(["run", "image_id", "class_id"])
    image_ids, groups = (rows[name].to_numpy(dtype=object) for name in ("image_id", "group_id"))
    scores = [name for name in names if name in PER_IMAGE or name.startswith(OWN)]
    numbers = {name: rows[name].to_numpy() for name in ("class_id", *scores, *_COUNTS) if name in rows}
    infinite_R = np.zeros(len(rows), dtype=int)
    for name in scores:
        infinite_R += np.isinf(numbers[name])
        numbers[name] = np.where(np.isinf(numbers[name]), np.nan, numbers[name])
    wrong_R = _impossible(numbers)
    read: list[Images | str] = []
    for n, (start, stop) in enumerate(itertools.pairwise(np.searchsorted(rows["run"], np.arange(len(tables) + 1)))):
        part = slice(start, stop)
        try:
            if n in damaged:
                raise ValueError(f"damaged: {damaged[n]}")
            if start == stop:
                raise ValueError(f"there are no images on {split}")
            if wrong_R[part].any():
                row = int(start + np.flatnonzero(wrong_R[part])[0])
                held = ", ".join(f"{key}={of_rows[row]:g}" for key, of_rows in numbers.items())
                raise ValueError(f"image {image_ids[row]!r} holds impossible or contradictory values ({held})")
            of_run = {name: of_rows[part] for name, of_rows in numbers.items()}
            read.append(images_of(tuple(image_ids[part]), tuple(groups[part]), of_run, layouts, infinite_R[part].sum()))
        except ValueError as error:
            read.append(str(error))
    return read


def _count_rows(table: bytes, width: int) -> int:
    """The rows of a table without its header. Raises ValueError where one does not have ``width`` cells."""
    if b'"' in table:
        widths = [len(row) for row in csv.reader(io.StringIO(table.decode("utf-8"), newline=""))]
    else:
        widths = [line.count(b",") + 1 for line in table.split(b"\n")[:-1]]
    if {*widths} - {width} or not (table.endswith(b"\n") or not table):
        raise ValueError(f"not every row has {width} cells")
    return len(widths)


def images_of(
    image_ids: tuple[str, ...],
    groups: tuple[str, ...],
    numbers: Mapping[str, "np.ndarray"],
    layouts: dict[Any, Layout],
    n_infinite: int,
) -> Images:
    """Raises ValueError where an image does not have each class exactly once."""
    import numpy as np

    class_id = numbers["class_id"].astype(int).tolist()
    key = (image_ids, groups, *class_id, numbers["n_gt"].tobytes())
    if key not in layouts:
        classes = tuple(sorted(set(class_id)))
        width, n = len(classes), len(image_ids) // len(classes)
        if class_id != [*classes] * n or len(set(image_ids)) != n:
            counts = Counter(zip(image_ids, class_id, strict=True))
            repeated = [name for (name, _), count in counts.items() if count > 1]
            raise ValueError(f"image {repeated[0]!r} is repeated" if repeated else "not every image has every class")
        layouts[key] = Layout(image_ids[::width], groups[::width], classes, numbers["n_gt"].reshape(n, width))
    shape = layouts[key].n_reference_NF.shape
    counts_NF3 = np.stack([numbers[name].reshape(shape) for name in ("tp", "fp", "fn")], axis=-1)
    cells = {name: n.reshape(shape) for name, n in numbers.items() if name in PER_IMAGE or name.startswith(OWN)}
    return Images(layouts[key], cells, counts_NF3, int(n_infinite))


def _impossible(numbers: Mapping[str, "np.ndarray"]) -> "np.ndarray":
    """Which of R rows no run can have written: counts that are none, scores out of range or not of their counts."""
    import numpy as np

    tp, fp, fn = (numbers[name] for name in ("tp", "fp", "fn"))
    wrong_R = tp + fn != numbers["n_gt"]
    for counts in (tp, fp, fn, numbers["class_id"]):
        wrong_R |= ~(counts >= 0) | (counts != np.floor(counts))
    with np.errstate(invalid="ignore", divide="ignore"):
        for name, score in (("dice", 2 * tp / (2 * tp + fp + fn)), ("iou", tp / (tp + fp + fn))):
            wrong_R |= (numbers[name] != score) & ~(np.isnan(numbers[name]) & np.isnan(score))
    for name in PER_IMAGE:
        if name in numbers:
            wrong_R |= (numbers[name] < -ROUNDING) | (numbers[name] > SCORES[name].highest + ROUNDING)
    return wrong_R


def read_tables(
    runs: Sequence[Run], table: str, columns: Collection[str]
) -> "tuple[pd.DataFrame | None, dict[int, str]]":
    """The columns of a table of many runs, with the number of the run in the column "run", and why runs are left out.

    A table that is missing, incomplete or edited, lacks a column, or repeats a row, leaves its run out. None where no
    table can be read. Whole numbers are int64 without missing values.
    """
    import pandas as pd

    needed = list(dict.fromkeys((*KEYS[table], *columns)))
    whole = [name for name in needed if COLUMNS[table][name] is int]
    kinds = {name: float if name in whole else COLUMNS[table][name] for name in needed}
    waiting: dict[tuple[str, ...], dict[int, bytes]] = {}
    frames, wrong = list[pd.DataFrame](), dict[int, str]()
    for number, run in enumerate(runs):
        try:
            header, _, data = whole_table(run.path, run.record, table).partition(b"\n")
            names = check_header(header, run.path / f"{table}.csv", is_column(table), needed)
            waiting.setdefault(tuple(names), {})[number] = data
        except UsageError as error:
            wrong[number] = str(error)
    for of_names, tables in waiting.items():
        found, damaged = _together(of_names, tables, kinds)
        frames += found
        wrong |= {n: f"{runs[n].path / table}.csv cannot be read: {why}" for n, why in damaged.items()}
    if not frames:
        return None, wrong
    rows = pd.concat(frames).sort_values("run", kind="stable")[["run", *needed]]
    for what, bad in (
        ("lacks whole numbers", (rows[whole] % 1 != 0).any(axis=1)),
        ("repeats a row", rows.duplicated(["run", *KEYS[table]])),
    ):
        wrong |= {n: f"{runs[n].path / table}.csv {what}: {RESTORE}" for n in rows.loc[bad, "run"] if n not in wrong}
    return rows[~rows["run"].isin(list(wrong))].astype(dict.fromkeys(whole, "int64")), wrong


def _together(
    names: Sequence[str], tables: Mapping[int, bytes], kinds: Mapping[str, type]
) -> "tuple[list[pd.DataFrame], dict[int, str]]":
    """The columns ``kinds`` of tables (number -> rows, with the header ``names``), the number in the column "run"; and
    why tables cannot be read. All at once, because pandas takes as long for a few rows as for thousands."""
    import numpy as np

    try:
        run_R = np.repeat([*tables], [_count_rows(data, len(names)) for data in tables.values()])
        rows = read_typed(
            io.BytesIO(b"\n".join([",".join(names).encode(), b"".join(tables.values())])), kinds, only=True
        )
        return [rows.assign(run=run_R)], {}
    except (ValueError, csv.Error) as error:
        if len(tables) == 1:
            return [], dict.fromkeys(tables, first_line(error))
        each = [_together(names, {number: data}, kinds) for number, data in tables.items()]
        return list(itertools.chain(*(found for found, _ in each))), {n: why for _, w in each for n, why in w.items()}
