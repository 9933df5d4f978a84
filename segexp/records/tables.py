"""The one reader of the runs to compare: run directories, or the tables of `segexp.records.collected`.

Axes: N images, F foreground classes, R rows. No torch and no YAML: thousands of runs are read in seconds.
"""

import csv
import dataclasses
import io
import itertools
import os
import re
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
    check_header,
    is_column,
    read_typed,
    unverified,
    whole_table,
)
from segexp.records.collected import AGAIN, IMAGES, at_looks, in_images, runs_header, totals_of, unverified_note
from segexp.records.formatting import pluralize
from segexp.records.runs import FINAL, Duplicates, Run, studies_in
from segexp.records.scores import OWN, PER_IMAGE, SCORES

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

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
        for run in (run for study in studies_in(path) for run in at_looks(study)):
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
                names = check_header(header, run.path / "images.csv", in_images, _NEEDED)
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
        return Loaded(tuple(runs), (*problems, *unverified_note(self.unverified)))


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


def _images_of(path: Path) -> Iterator[tuple[str, tuple[str, ...], bytes]]:
    """Each run of a collected images.csv with its columns and rows. Raises UsageError where it was cut or edited."""
    seen, cut = set[bytes](), False
    try:
        with path.open("rb") as file:
            names = tuple(check_header(file.readline(), path, in_images, ("run_id", *_NEEDED), AGAIN))
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
