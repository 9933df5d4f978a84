"""Runs with their scores per image, from run directories and collected tables in any mixture, and tables of many runs.

A run that cannot be used is incomplete, and a line says why. Axes: N images, F foreground classes, R rows.
"""

import csv
import dataclasses
import io
import itertools
import operator
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segexp.errors import UsageError, first_line
from segexp.records import (
    COLUMNS,
    KEYS,
    RESTORE,
    SCHEMA_VERSION,
    cell_of,
    check_header,
    read_typed,
    whole_table,
)
from segexp.records.collected import AGAIN, IMAGES, runs_header, totals_of
from segexp.records.formatting import pluralize
from segexp.records.runs import FINAL, Duplicates, Run, runs_in, studies_in
from segexp.records.scores import PER_IMAGE, SCORES

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

ROUNDING = 1e-6
"""By how much a score may lie outside its range, or differ from the same score computed again."""

_COUNTS = ("n_gt", "tp", "fp", "fn")
_NEEDED = ("split", "image_id", "class_id", *_COUNTS, "dice", "iou")
"""Columns of images.csv that no version lacks."""

_WHOLE = ("seed", "fold", "config_split_fold", "numerics")
"""Columns by which runs are paired. They hold whole numbers; a finished run always has a seed."""


@dataclass(frozen=True)
class Layout:
    """The images of a split in order of their names, with their groups ("" for none), and where a class is held."""

    image_ids: tuple[str, ...]
    groups: tuple[str, ...]
    classes: tuple[int, ...]
    n_reference_NF: "np.ndarray"


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

        return (
            isinstance(other, Images)
            and self.layout is other.layout
            and self.cells.keys() == other.cells.keys()
            and all(np.array_equal(self.cells[name], other.cells[name], equal_nan=True) for name in self.cells)
        )

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True)
class Loaded:
    """All runs in order of study and directory, and what was left out or found wrong, a line each."""

    runs: tuple[Run, ...]
    problems: tuple[str, ...]


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
            raise UsageError(f"{path} is no runs.csv of `segexp collect`: name that file, or a folder of runs")
        images = path.name.replace("runs", "images", 1) if "runs" in path.name else "images.csv"
        return path, path.with_name(images)
    if path.is_dir() and (path / "runs.csv").is_file():
        try:
            studies_in(path)
        except UsageError:
            return path / "runs.csv", path / "images.csv"
    return None


class _Reader:
    """What has been read so far: a run may come several times."""

    def __init__(self, split: str) -> None:
        self.split = split
        self.duplicates = Duplicates()
        self.layouts: dict[Any, Layout] = {}
        self.problems: list[str] = []

    def directories(self, path: Path) -> None:
        """The runs of a folder."""
        for found in (run for study in studies_in(path) for run in runs_in(study)):
            run, images = self._opened(found)
            where = f"{run.path / 'images.csv'}, run {run.run_id}"
            if run.state == "done":
                try:
                    names = check_header(images.partition(b"\n")[0], where, COLUMNS["images"].__contains__, _NEEDED)
                    rows = list(csv.reader(io.StringIO(images.decode("utf-8"), newline="")))[1:]
                    run = self._with_images(run, names, rows, where, RESTORE)
                except (UsageError, ValueError, csv.Error) as error:
                    run = self._incomplete(run, str(error))
            self.duplicates.add(run, run.images)

    def _opened(self, run: Run) -> tuple[Run, bytes]:
        """A run of a directory with its row in place of its record, and the content of its images.csv once done."""
        totals, images = {}, b""
        if run.state == "unreadable":
            self.problems.append(f"{run.path} cannot be read: {run.reason}")
        try:
            if run.state in FINAL:
                if "timings" in run.record.get("n_rows_expected", {}):
                    whole_table(run.path, run.record, "timings")
                totals = totals_of(run)
            if run.state == "done":
                images = whole_table(run.path, run.record, "images")
        except UsageError as error:
            run = self._incomplete(run, str(error))
        row = {**run.row, **{key: cell_of(value) for key, value in totals.items()}}
        return self._checked(dataclasses.replace(run, record={}, planned=None, cells=row)), images

    def tables(self, runs: Path, images: Path) -> None:
        """The runs of collected tables."""
        rows = [run for cells in _rows_of(runs) if (run := self._of_cells(runs, cells)) is not None]
        found = {run.run_id: self._checked(run) for run in rows}
        if not images.is_file():
            raise UsageError(f"{images} is missing: `segexp collect` writes it beside {runs.name}, copy both")
        scored: dict[str, Run] = {}
        strange = []
        for run_id, names, of_run in _images_of(images):
            if run_id not in found:
                strange.append(run_id)
            elif found[run_id].state == "done":
                where = f"{images}, run {run_id}"
                scored[run_id] = self._with_images(found[run_id], names, of_run, where, AGAIN)
        if strange:
            shown = ", ".join(sorted(strange)[:3])
            self.problems.append(f"{images} holds {pluralize(len(strange), 'run')} that {runs.name} does not: {shown}")
        for run_id, run in found.items():
            if run.state == "done" and run_id not in scored:
                scored[run_id] = self._with_images(run, _NEEDED, [], f"{images}, run {run_id}", AGAIN)
            run = scored.get(run_id, run)  # noqa: PLW2901
            self.duplicates.add(run, run.images)

    def _of_cells(self, path: Path, cells: dict[str, str]) -> Run | None:
        """A row of runs.csv; None, with a problem noted, where it is unusable."""
        run_id, version = cells.get("run_id", ""), cells.get("schema_version", "")
        if not run_id:
            self.problems.append(f"{path}: a run without run_id is left out")
        elif version and not (version.isdecimal() and int(version) <= SCHEMA_VERSION):
            reads = f"this segexp reads up to {SCHEMA_VERSION}"
            self.problems.append(f"{path}: run {run_id} has schema version {version}, {reads}: left out")
        else:
            study, error = cells.get("study", ""), cells.get("error", "")
            return Run(run_id, cells["status"], path, study, reason=error, cells=cells, collected=True)
        return None

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

    def _with_images(self, run: Run, names: Sequence[str], rows: list[list[str]], where: str, cure: str) -> Run:
        """A finished run with its images, incomplete where they cannot be used."""
        try:
            images = _parsed(names, rows, self.split, self.layouts)
            wrong = self._lacking(run.row, images.layout)
        except ValueError as error:
            wrong = first_line(error)
        if wrong:
            return self._incomplete(run, f"{where}: {wrong}; {cure}")
        return dataclasses.replace(run, images=images)

    def _lacking(self, row: Mapping[str, str], layout: Layout) -> str:
        """How the number of images or classes differs from what the run itself says, "" when it does not."""
        expected = {"images": row.get("n_test", "") if self.split == "test" else "", "classes": ""}
        if row.get("config_dataset_num_classes", "").isdecimal():
            expected["classes"] = str(int(row["config_dataset_num_classes"]) - 1)
        found = {"images": len(layout.image_ids), "classes": len(layout.classes)}
        for what, number in expected.items():
            if number.isdecimal() and int(number) != found[what]:
                return f"{found[what]} {what} instead of {number}: rows are missing, or too many"
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
        problems += [
            f"{pluralize(count, 'run')} of the older schema version {version}: what was not measured then is missing"
            for version, count in older.items()
        ]
        return Loaded(tuple(runs), tuple(problems))


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")


def _rows_of(path: Path) -> Iterator[dict[str, str]]:
    """The rows of runs.csv. Raises UsageError where the file is another one, or was cut or edited."""
    try:
        with path.open("rb") as file:
            names = runs_header(file.readline(), path, ("run_id", "status", "seed", "dice"))
        with path.open(encoding="utf-8", newline="") as text:
            for number, cells in enumerate(csv.reader(text), start=1):
                if len(cells) != len(names):
                    raise UsageError(f"{path}, row {number}: {len(cells)} cells instead of {len(names)}; {AGAIN}")
                if number > 1:
                    yield dict(zip(names, cells, strict=True))
    except (OSError, ValueError, csv.Error) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error


def _images_of(path: Path) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """Each run of a collected images.csv with its columns and rows. Raises UsageError where it was cut or edited."""
    try:
        with path.open("rb") as raw:
            names = check_header(raw.readline(), path, IMAGES.__contains__, ("run_id", *_NEEDED), AGAIN)
            raw.seek(-1, os.SEEK_END)
            if raw.read() != b"\n":
                raise UsageError(f"{path} is cut short, its last line has no end; {AGAIN}, or copy it again")
        seen = set[str]()
        with path.open(encoding="utf-8", newline="") as text:
            rows = itertools.islice(csv.reader(text), 1, None)
            for run_id, of_run in itertools.groupby(rows, key=operator.itemgetter(names.index("run_id"))):
                if run_id in seen:
                    raise UsageError(f"{path}: the rows of run {run_id} do not stand together; {AGAIN}")
                seen.add(run_id)
                yield run_id, names, list(of_run)
    except (OSError, ValueError, csv.Error, IndexError) as error:
        raise UsageError(f"{path} cannot be read: {first_line(error)}; {AGAIN}") from error


def _parsed(names: Sequence[str], rows: Iterable[Sequence[str]], split: str, layouts: dict[Any, Layout]) -> Images:
    """The images of a run on a split, from its rows in any order. Raises ValueError where they cannot be used.

    layouts: those known so far, which runs on the same images share; a new one is added.
    """
    import numpy as np

    rows = [row for row in rows if row[names.index("split")] == split]
    if not rows:
        raise ValueError(f"there are no images on {split}")
    columns = dict(zip(names, zip(*rows, strict=True), strict=True))
    class_id = tuple(map(int, columns["class_id"]))
    place = list(zip(columns["image_id"], class_id, strict=True))
    if place != sorted(place):
        order = sorted(range(len(rows)), key=place.__getitem__)
        columns = {name: tuple(column[n] for n in order) for name, column in columns.items()}
        class_id = tuple(class_id[n] for n in order)
    image_ids, groups = columns["image_id"], columns.get("group_id", ("",) * len(rows))
    numbers = {name: _floats(columns[name]) for name in (*PER_IMAGE, *_COUNTS) if name in columns}
    scores = [name for name in PER_IMAGE if name in numbers]
    n_infinite = sum(int(np.isinf(numbers[name]).sum()) for name in scores)
    for name in scores:
        numbers[name][np.isinf(numbers[name])] = np.nan
    wrong_R = _impossible(numbers)
    if wrong_R.any():
        row = int(np.flatnonzero(wrong_R)[0])
        held = ", ".join(f"{key}={of_rows[row]:g}" for key, of_rows in numbers.items())
        raise ValueError(f"image {image_ids[row]!r} holds impossible or contradictory values ({held})")
    key = (image_ids, groups, class_id, numbers["n_gt"].tobytes())
    if key not in layouts:
        layouts[key] = _layout_of(image_ids, groups, class_id, numbers["n_gt"])
    shape = layouts[key].n_reference_NF.shape
    counts_NF3 = np.stack([numbers[name].reshape(shape) for name in ("tp", "fp", "fn")], axis=-1)
    return Images(layouts[key], {name: numbers[name].reshape(shape) for name in scores}, counts_NF3, n_infinite)


def _floats(cells: Sequence[str]) -> "np.ndarray":
    import numpy as np

    return np.array(list(map(float, cells)) if "" not in cells else [float(cell or "nan") for cell in cells])


def _impossible(numbers: Mapping[str, "np.ndarray"]) -> "np.ndarray":
    """Which of R rows no run can have written: counts that are none, scores out of range or not of their counts."""
    import numpy as np

    tp, fp, fn = (numbers[name] for name in ("tp", "fp", "fn"))
    wrong_R = tp + fn != numbers["n_gt"]
    for counts in (tp, fp, fn):
        wrong_R |= ~(counts >= 0) | (counts != np.floor(counts))
    with np.errstate(invalid="ignore", divide="ignore"):
        for name, score in (("dice", 2 * tp / (2 * tp + fp + fn)), ("iou", tp / (tp + fp + fn))):
            wrong_R |= (numbers[name] != score) & ~(np.isnan(numbers[name]) & np.isnan(score))
    for name in PER_IMAGE:
        if name in numbers:
            wrong_R |= (numbers[name] < -ROUNDING) | (numbers[name] > SCORES[name].highest + ROUNDING)
    return wrong_R


def _layout_of(
    image_ids: tuple[str, ...], groups: tuple[str, ...], class_id: tuple[int, ...], n_gt: "np.ndarray"
) -> Layout:
    """Raises ValueError where an image does not have each class exactly once."""
    classes = tuple(sorted(set(class_id)))
    width, n = len(classes), len(image_ids) // len(classes)
    if class_id != classes * n or len(set(image_ids)) != n:
        counts = Counter(zip(image_ids, class_id, strict=True))
        repeated = [name for (name, _), count in counts.items() if count > 1]
        raise ValueError(f"image {repeated[0]!r} is repeated" if repeated else "not every image has every class")
    return Layout(image_ids[::width], groups[::width], classes, n_gt.reshape(n, width))


def read_tables(
    runs: Sequence[Run], table: str, columns: Collection[str]
) -> "tuple[pd.DataFrame | None, dict[int, str]]":
    """The columns of a table of many runs, with the number of the run in the column "run", and why runs are left out.

    A table that is missing, incomplete or edited, lacks a column, or repeats a row, leaves its run out. None where no
    table can be read. Whole numbers are int64 without missing values.
    """
    import pandas as pd

    needed = list(dict.fromkeys((*KEYS[table], *columns)))
    frames: dict[int, pd.DataFrame] = {}
    wrong: dict[int, str] = {}
    for number, run in enumerate(runs):
        path = run.path / f"{table}.csv"
        try:
            data = whole_table(run.path, run.record, table)
            names = check_header(data.partition(b"\n")[0], path, COLUMNS[table].__contains__, needed)
            frames[number] = read_typed(io.BytesIO(data), {name: COLUMNS[table][name] for name in names})[needed]
        except UsageError as error:
            wrong[number] = str(error)
        except ValueError as error:
            wrong[number] = f"{path} cannot be read: {' '.join(str(error).split())}"
    if not frames:
        return None, wrong
    # All runs at once, because pandas takes as long for a few rows as for thousands.
    rows = pd.concat(frames.values(), keys=frames, names=["run"]).reset_index("run")
    whole = [name for name in needed if COLUMNS[table][name] is int]
    for what, bad in (
        ("lacks whole numbers", rows[whole].isna().any(axis=1)),
        ("repeats a row", rows.duplicated(["run", *KEYS[table]])),
    ):
        wrong |= {n: f"{runs[n].path / table}.csv {what}: {RESTORE}" for n in rows.loc[bad, "run"] if n not in wrong}
    return rows[~rows["run"].isin(list(wrong))].astype(dict.fromkeys(whole, "int64")), wrong
