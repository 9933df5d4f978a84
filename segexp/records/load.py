"""Runs with their scores per image, from run directories and collected tables in any mixture, and tables of many runs.

A run that cannot be used is incomplete, and a line says why. Axes: N images, F foreground classes, R rows.
"""

import csv
import dataclasses
import io
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
    exact_floats,
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

CHUNK_BYTES = 32_000_000
"""Images are parsed in portions of about this size, so that memory does not grow with the study."""

ROUNDING = 1e-6
"""By how much a score may lie outside its range, or differ from the same score computed again."""

_COUNTS = ("n_gt", "tp", "fp", "fn")
_NEEDED = ("split", "image_id", "class_id", *_COUNTS, "dice", "iou")
"""Columns of images.csv that no version lacks."""

_NAMES = ("run_id", "split", "image_id", "group_id")
"""Read as strings, not as "category": pandas makes numbers of categories that look like some, 001 or 4e931661."""

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
    # In an order of their own, directories first: they hold more than tables.
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
    """What has been read so far: a run may come several times, and images come in portions."""

    def __init__(self, split: str) -> None:
        self.split = split
        self.duplicates = Duplicates()
        self.layouts: dict[Any, Layout] = {}
        self.problems: list[str] = []

    def directories(self, path: Path) -> None:
        """The runs of a folder. Their images are parsed together: thousands of files take seconds, not minutes."""
        waiting: list[tuple[Run, bytes]] = []
        size = 0
        for found in (run for study in studies_in(path) for run in runs_in(study)):
            run, images = self._opened(found)
            waiting.append((run, images))
            size += len(images)
            if size > CHUNK_BYTES:
                self._parse(waiting)
                waiting, size = [], 0
        self._parse(waiting)

    def tables(self, runs: Path, images: Path) -> None:
        """The runs of collected tables."""
        rows = [self._checked(run) for cells in _rows_of(runs) if (run := self._of_cells(runs, cells)) is not None]
        if not images.is_file():
            raise UsageError(f"{images} is missing: `segexp collect` writes it beside {runs.name}, copy both")
        known, done = {run.run_id for run in rows}, {run.run_id for run in rows if run.state == "done"}
        read: dict[str, Images | str] = {}
        strange: set[str] = set()
        for frame in _frames_of(images):
            strange |= set(frame["run_id"].unique()) - known
            read |= _read_images(frame[frame["run_id"].isin(done)], self.split, self.layouts)
        if strange:
            shown = ", ".join(sorted(strange)[:3])
            self.problems.append(f"{images} holds {pluralize(len(strange), 'run')} that {runs.name} does not: {shown}")
        for run in rows:
            self._add(run, read.get(run.run_id), f"{images}, run {run.run_id}", AGAIN)

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

    def _parse(self, waiting: Sequence[tuple[Run, bytes]]) -> None:
        """Images of many runs at once where all of them parse, else one by one to name the damaged ones."""
        by_header: dict[bytes, list[tuple[str, bytes]]] = {}
        for number, (run, data) in enumerate(waiting):
            if run.state == "done":  # by number, because a run_id may come twice
                by_header.setdefault(data.partition(b"\n")[0], []).append((str(number), data))
        read: dict[str, Images | str] = {}
        for header, of_header in by_header.items():
            try:
                read |= _read_images(_frame_of(header, of_header), self.split, self.layouts)
            except (ValueError, UsageError):
                read |= {number: self._alone(header, data) for number, data in of_header}
        for number, (run, _) in enumerate(waiting):
            self._add(run, read.get(str(number)), f"{run.path / 'images.csv'}, run {run.run_id}", RESTORE)

    def _alone(self, header: bytes, data: bytes) -> Images | str:
        try:
            read = dict(_read_images(_frame_of(header, [("0", data)]), self.split, self.layouts))
        except (ValueError, UsageError) as error:
            return f"damaged: {first_line(error)}"
        return read.get("0", f"there are no images on {self.split}")

    def _add(self, run: Run, read: Images | str | None, where: str, cure: str) -> None:
        """Give a finished run its images, unless they cannot be used, and count it once."""
        if run.state == "done":
            if isinstance(read, Images):
                wrong = self._lacking(run.row, read.layout)
                run = dataclasses.replace(run, images=read)
            else:
                wrong = read or f"there are no images on {self.split}"
            if wrong:
                run = self._incomplete(run, f"{where}: {wrong}" + f"; {cure}" * (cure not in wrong))
        self.duplicates.add(run, run.images)

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


def _frame_of(header: bytes, runs: Iterable[tuple[str, bytes]]) -> "pd.DataFrame":
    """The images.csv of several runs with the same header as one table, with a name for each run as run_id."""
    import pandas as pd

    names = ["run_id", *check_header(header, "its header", COLUMNS["images"].__contains__, _NEEDED)]
    lines = io.BytesIO()
    for run_id, data in runs:
        body = data.partition(b"\n")[2]
        if b'"' in body:
            rows = csv.reader(io.StringIO(body.decode("utf-8"), newline=""))
            text = io.StringIO()
            csv.writer(text, lineterminator="\n").writerows([run_id, *cells] for cells in rows)
            lines.write(text.getvalue().encode("utf-8"))
        elif body:
            prefix = run_id.encode("utf-8") + b","
            lines.write(prefix + body.rstrip(b"\n").replace(b"\n", b"\n" + prefix) + b"\n")
    lines.seek(0)
    return _with_groups(pd.read_csv(lines, **_options(names)))


def _frames_of(path: Path) -> Iterator["pd.DataFrame"]:
    """The rows of a collected images.csv in portions that never part the rows of a run."""
    import pandas as pd

    try:
        with path.open("rb") as raw:
            names = check_header(raw.readline(), path, IMAGES.__contains__, ("run_id", *_NEEDED), AGAIN)
            raw.seek(-1, os.SEEK_END)
            if raw.read() != b"\n":
                raise UsageError(f"{path} is cut short, its last line has no end; {AGAIN}, or copy it again")
            raw.seek(0)
            raw.readline()
            # A run's rows stand together in the file; a portion may still end in the middle of one.
            kept: pd.DataFrame | None = None
            for portion in pd.read_csv(raw, chunksize=400_000, **_options(names)):
                frame = portion if kept is None else pd.concat([kept, portion])
                last = frame["run_id"].iloc[-1]
                kept = frame[frame["run_id"] == last]
                yield _with_groups(frame[frame["run_id"] != last])
            if kept is not None:
                yield _with_groups(kept)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {first_line(error)}; {AGAIN}") from error


def _with_groups(frame: "pd.DataFrame") -> "pd.DataFrame":
    return frame if "group_id" in frame else frame.assign(group_id="")


def _options(names: Sequence[str]) -> dict[str, Any]:
    """How pandas reads the rows below the header of images.csv: the columns that are compared, with their types."""
    usable = [name for name in ("run_id", "group_id", *dict.fromkeys((*_NEEDED, *PER_IMAGE))) if name in names]
    kinds = {name: "str" if name in _NAMES else "float64" for name in usable} | {"class_id": "int64"}
    empty = {name: [""] for name in usable if name not in (*_NAMES, "class_id")}
    columns = {"names": list(names), "header": None, "usecols": usable, "dtype": kinds}
    return columns | {"keep_default_na": False, "na_values": empty} | exact_floats()


def _read_images(frame: "pd.DataFrame", split: str, layouts: dict[Any, Layout]) -> Iterator[tuple[str, Images | str]]:
    """The images of each run of a table on a split, in any order of rows, or why they cannot be used.

    layouts: those known so far, which runs on the same images share; new ones are added.
    """
    import numpy as np

    frame = frame[frame["split"] == split]
    if not len(frame):
        return
    # Names in order once for all runs: codes of sorted categories sort as the names do.
    sorted_names = {key: frame[key].astype("category").cat for key in ("run_id", "image_id", "group_id")}
    codes = {key: of_key.codes.to_numpy() for key, of_key in sorted_names.items()}
    names = {key: of_key.categories.to_numpy(dtype=object) for key, of_key in sorted_names.items()}
    class_id = frame["class_id"].to_numpy()
    order = np.lexsort((class_id, codes["image_id"], codes["run_id"]))
    class_id = class_id[order]
    codes = {key: of_rows[order] for key, of_rows in codes.items()}
    numbers = {key: frame[key].to_numpy(dtype=np.float64)[order] for key in (*PER_IMAGE, *_COUNTS) if key in frame}
    counts_R3 = np.stack([numbers[key] for key in ("tp", "fp", "fn")], axis=1)
    scores = [name for name in PER_IMAGE if name in numbers]
    infinite_R = np.sum([np.isinf(numbers[name]) for name in scores], axis=0)
    for name in scores:
        numbers[name][np.isinf(numbers[name])] = np.nan
    wrong_R = _impossible(numbers)
    starts = np.flatnonzero(np.r_[True, np.diff(codes["run_id"]) != 0])
    for start, stop in zip(starts, [*starts[1:], len(order)], strict=True):
        part = slice(start, stop)
        run_id = str(names["run_id"][codes["run_id"][start]])
        image_ids = tuple(names["image_id"][codes["image_id"][part]])
        if wrong_R[part].any():
            row = int(start + np.flatnonzero(wrong_R[part])[0])
            held = ", ".join(f"{key}={of_rows[row]:g}" for key, of_rows in numbers.items())
            yield run_id, f"image {image_ids[row - start]!r} holds impossible or contradictory values ({held})"
            continue
        groups = tuple(names["group_id"][codes["group_id"][part]])
        key = (image_ids, groups, class_id[part].tobytes(), numbers["n_gt"][part].tobytes())
        if key not in layouts:
            try:
                layouts[key] = _layout_of(image_ids, groups, class_id[part], numbers["n_gt"][part])
            except UsageError as error:
                yield run_id, str(error)
                continue
        shape = layouts[key].n_reference_NF.shape
        cells = {name: numbers[name][part].reshape(shape) for name in scores}
        yield run_id, Images(layouts[key], cells, counts_R3[part].reshape(*shape, 3), int(infinite_R[part].sum()))


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
    image_ids: tuple[str, ...], groups: tuple[str, ...], class_id: "np.ndarray", n_gt: "np.ndarray"
) -> Layout:
    """Raises UsageError where an image does not have each class exactly once."""
    import numpy as np

    classes = tuple(int(c) for c in np.unique(class_id))
    n = len(image_ids) // len(classes)
    expected = np.tile(np.array(classes), n)
    if len(expected) != len(class_id) or (expected != class_id).any() or len(set(image_ids)) != n:
        counts = Counter(zip(image_ids, class_id, strict=True))
        repeated = [name for (name, _), count in counts.items() if count > 1]
        raise UsageError(f"image {repeated[0]!r} is repeated" if repeated else "not every image has every class")
    width = len(classes)
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
