"""Reads what is compared: run directories, studies, outputs folders, and tables of `segexp collect`, in any mixture.

Every run becomes a row of text cells under the columns of runs.csv, and its images numbers under a layout that runs on
the same images share. What cannot be used is told, never left out in silence. Axes: N images, F foreground classes.
"""

import csv
import io
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segexp.collect import INCOMPLETE, row_of
from segexp.compare.images import CELLS, COUNTS, Images, Layout, frame_of, frames_of, layout_of
from segexp.errors import UsageError
from segexp.records import SCHEMA_VERSION, cell_of
from segexp.study import runs_in, studies_in
from segexp.tables import counted

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

CHUNK_BYTES = 32_000_000
"""Images are parsed in portions of about this size, so that memory does not grow with the study."""


@dataclass(frozen=True, eq=False)
class Run:
    """A run to compare. row: column of runs.csv -> cell as text, "" for what is not known; path: its directory, None
    where it comes from collected tables; images: None where it has no scores. known: scores that were computed."""

    row: Mapping[str, str]
    path: Path | None
    images: Images | None
    known: dict[tuple[str, str], float] = field(default_factory=dict)

    @property
    def run_id(self) -> str:
        return self.row["run_id"]

    @property
    def state(self) -> str:
        return self.row["status"]

    def number(self, column: str) -> float:
        """A cell as a number, NaN where it is empty, missing or not finite. Raises UsageError for anything else."""
        text = self.row.get(column, "")
        try:
            value = float(text) if text else math.nan
            return value if math.isfinite(value) else math.nan
        except ValueError:
            raise UsageError(f"run {self.run_id}: {column}={text!r} is no number: was a table edited?") from None


@dataclass(frozen=True)
class Loaded:
    """All runs in order of study and directory, and what was found wrong or left out, a line each."""

    runs: tuple[Run, ...]
    problems: tuple[str, ...]


def load(paths: Sequence[Path], split: str = "test") -> Loaded:
    """Read all runs under ``paths`` with their scores on ``split`` (val or test).

    A path is a run directory, a study, an outputs folder, a folder with runs.csv and images.csv of `segexp collect`, or
    such a runs.csv. Raises UsageError where a path is none of these, or no run is found at all.
    """
    reader = _Reader(split)
    for path in paths:
        tables = _collected(path)
        if tables is None:
            reader.directories(path)
        else:
            reader.tables(*tables)
    return reader.finish()


def _collected(path: Path) -> tuple[Path, Path] | None:
    """runs.csv and images.csv where ``path`` names collected tables. Run directories are the truth where both are."""
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
    """What has been read so far: the same run may come several times, and images come in portions."""

    def __init__(self, split: str) -> None:
        self.split = split
        self.rows: dict[str, dict[str, str]] = {}
        self.identities: dict[str, str] = {}
        self.paths: dict[str, Path | None] = {}
        self.images: dict[str, Images] = {}
        self.layouts: dict[Any, Layout] = {}
        self.problems: list[str] = []
        self.twice: list[str] = []
        self.edited: Counter[str] = Counter()
        self.infinite: Counter[str] = Counter()
        self.older: Counter[str] = Counter()

    def directories(self, path: Path) -> None:
        """The runs of a folder. Their images are parsed together: thousands of files take seconds, not minutes."""
        waiting: list[tuple[str, Path, bytes]] = []
        size = 0
        for run in (run for study in studies_in(path) for run in runs_in(study)):
            row = {key: cell_of(value) for key, value in row_of(run).items()}
            if run.state == "unreadable":
                self.problems.append(f"{run.path} cannot be read: {run.reason}")
            if run.state == "done":
                row |= {key: cell_of(value) for key, value in run.record.get("summary", {}).items()}
                row["seconds"] = cell_of(run.record.get("seconds"))
            if not self._take(row, str(run.record.get("identity", "")), run.path):
                continue
            if run.state == "done":
                try:
                    waiting.append((run.run_id, run.path, _whole(run.path / "images.csv", run.record)))
                except UsageError as error:
                    self._incomplete(run.run_id, str(error))
                else:
                    size += len(waiting[-1][2])
            if size > CHUNK_BYTES:
                self._parse(waiting)
                waiting, size = [], 0
        self._parse(waiting)

    def tables(self, runs: Path, images: Path) -> None:
        """The runs of collected tables."""
        taken = set()
        for row in _rows_of(runs):
            if self._take(row, "", None, str(runs)):
                taken.add(row["run_id"])
        done = {run_id for run_id in taken if self.rows[run_id]["status"] == "done"}
        if not images.is_file():
            raise UsageError(f"{images} is missing: `segexp collect` writes it beside {runs.name}, copy both")
        strange: set[str] = set()
        for frame in frames_of(images):
            strange |= set(frame["run_id"].unique()) - self.rows.keys()
            self._add(frame[frame["run_id"].isin(done)])
        if strange:
            shown = ", ".join(sorted(strange)[:3])
            self.problems.append(f"{images} holds {counted(len(strange), 'run')} that {runs.name} does not: {shown}")
        for run_id in sorted(done - self.images.keys()):
            if self.rows[run_id]["status"] == "done":
                self._incomplete(run_id, f"{images} holds no {self.split} images of run {run_id}")

    def _take(self, row: dict[str, str], identity: str, path: Path | None, where: str = "") -> bool:
        """Whether this is to be the run of its run_id: of several copies the first finished one is taken."""
        run_id, here = row.get("run_id", ""), where or str(path)
        for key in ("seed", "fold", "config_split_fold"):
            if re.fullmatch(r"\d+\.0*", row.get(key, "")):  # as a spreadsheet writes whole numbers
                row[key] = row[key].partition(".")[0]
        if not run_id:
            self.problems.append(f"{here}: a run without run_id is left out")
            return False
        version = row.get("schema_version", "")
        if version and not (version.isdecimal() and int(version) <= SCHEMA_VERSION):
            reason = f"run {run_id} has schema version {version}, this segexp reads up to {SCHEMA_VERSION}"
            self.problems.append(f"{here}: {reason}: left out")
            return False
        earlier = self.rows.get(run_id)
        if earlier is not None:
            other = self.identities.get(run_id)
            if identity and other and identity != other:
                self.problems.append(f"{here} is another run than the one of the same run_id {run_id}: left out")
                return False
            self.twice.append(f"{run_id} ({here})")
            if _rank(earlier) <= _rank(row):
                return False
            self.images.pop(run_id, None)
        if version != str(SCHEMA_VERSION) and version:
            self.older[version] += 1
        self.rows[run_id], self.identities[run_id], self.paths[run_id] = row, identity, path
        return True

    def _incomplete(self, run_id: str, reason: str) -> None:
        self.rows[run_id] |= {"status": INCOMPLETE, "error": reason}
        self.problems.append(reason)

    def _parse(self, waiting: Sequence[tuple[str, Path, bytes]]) -> None:
        """Images of many runs at once where all of them parse, else one by one to name the damaged ones."""
        by_header: dict[bytes, list[tuple[str, Path, bytes]]] = {}
        for run_id, path, data in waiting:
            by_header.setdefault(data.partition(b"\n")[0], []).append((run_id, path, data))
        for header, runs in by_header.items():
            try:
                self._add(frame_of(header, [(run_id, data) for run_id, _, data in runs]))
            except (ValueError, UsageError):
                for run_id, path, data in runs:
                    try:
                        self._add(frame_of(header, [(run_id, data)]))
                    except (ValueError, UsageError) as error:
                        reason = str(error).splitlines()[0]
                        self._incomplete(run_id, f"{path / 'images.csv'} is damaged: {reason}")
            for run_id, path, _ in runs:
                if run_id not in self.images and self.rows[run_id]["status"] == "done":
                    self._incomplete(run_id, f"{path / 'images.csv'} holds no {self.split} images")

    def _add(self, frame: "pd.DataFrame") -> None:
        """The images of a table, run by run; rows of a run stand together, or are brought together."""
        import numpy as np

        frame = frame[frame["split"] == self.split]
        if not len(frame):
            return
        # Names in order once for all runs: codes of sorted categories sort as the names do.
        names = {key: frame[key].astype("category") for key in ("run_id", "image_id", "group_id")}
        codes = {key: names[key].cat.codes.to_numpy() for key in names}
        class_id = frame["class_id"].to_numpy()
        order = np.lexsort((class_id, codes["image_id"], codes["run_id"]))
        numbers = {key: frame[key].to_numpy(dtype=np.float64)[order] for key in (*CELLS, *COUNTS) if key in frame}
        sorted_codes = {key: value[order] for key, value in codes.items()}
        class_id = class_id[order]
        starts = np.flatnonzero(np.r_[True, np.diff(sorted_codes["run_id"]) != 0])
        for start, stop in zip(starts, [*starts[1:], len(order)], strict=True):
            run_id = str(names["run_id"].cat.categories[sorted_codes["run_id"][start]])
            part = slice(start, stop)
            image = sorted_codes["image_id"][part]
            key = (
                tuple(names["image_id"].cat.categories[image]),
                tuple(names["group_id"].cat.categories[sorted_codes["group_id"][part]]),
                class_id[part].tobytes(),
                numbers["n_gt"][part].tobytes(),
            )
            layout = self.layouts.get(key)
            if layout is None:
                try:
                    layout = layout_of(*key[:2], class_id[part], numbers["n_gt"][part])
                except UsageError as error:
                    self._incomplete(run_id, f"images of run {run_id}: {error}")
                    continue
                self.layouts[key] = layout
            lacking = self._lacking(run_id, layout)
            if lacking:
                self._incomplete(run_id, f"images of run {run_id}: {lacking}")
                continue
            shape = layout.n_reference_NF.shape
            cells = {name: numbers[name][part].reshape(shape) for name in CELLS if name in numbers}
            counts = {name: numbers[name][part].reshape(shape) for name in COUNTS}
            self.images[run_id] = Images(layout, self._checked(run_id, cells, counts))

    def _lacking(self, run_id: str, layout: Layout) -> str:
        """What the table lacks of what the run says of itself, "" when nothing."""
        row = self.rows[run_id]
        expected = {"images": row.get("n_test", "") if self.split == "test" else "", "classes": ""}
        if row.get("config_dataset_num_classes", "").isdecimal():
            expected["classes"] = str(int(row["config_dataset_num_classes"]) - 1)
        found = {"images": len(layout.image_ids), "classes": len(layout.classes)}
        for what, number in expected.items():
            if number.isdecimal() and int(number) != found[what]:
                return f"{found[what]} {what} of {number}: rows are missing, or too many"
        return ""

    def _checked(
        self, run_id: str, cells: dict[str, "np.ndarray"], counts: Mapping[str, "np.ndarray"]
    ) -> dict[str, "np.ndarray"]:
        """Scores as they may be used. Dice and IoU follow from the counts beside them, which are the truth; what is not
        finite is missing."""
        import numpy as np

        tp, fp, fn = (counts[name] for name in ("tp", "fp", "fn"))
        with np.errstate(invalid="ignore", divide="ignore"):
            true = {"dice": 2 * tp / (2 * tp + fp + fn), "iou": tp / (tp + fp + fn)}
        wrong = (tp + fn != counts["n_gt"]) & ~np.isnan(counts["n_gt"])
        for name, values in true.items():
            wrong |= ~((np.abs(values - cells[name]) < 1e-9) | (np.isnan(values) & np.isnan(cells[name])))
        if wrong.any():
            self.edited[run_id] += int(wrong.sum())
        infinite = sum(int(np.isinf(values).sum()) for values in cells.values())
        if infinite:
            self.infinite[run_id] += infinite
        return {name: np.where(np.isinf(values), np.nan, values) for name, values in {**cells, **true}.items()}

    def finish(self) -> Loaded:
        """All runs. Raises UsageError where there is none."""
        if not self.rows:
            raise UsageError("there is no run to compare")
        if self.twice:
            shown = ", ".join(self.twice[:3]) + (" ..." if len(self.twice) > 3 else "")
            self.problems.append(f"{counted(len(self.twice), 'run')} there twice, counted once: {shown}")
        for counts, what in (
            (self.edited, "whose Dice or IoU is not that of the counts beside it: edited by hand? The counts are used"),
            (self.infinite, "with a score that is not finite: it is left out"),
        ):
            if counts:
                shown = ", ".join(list(counts)[:3]) + (" ..." if len(counts) > 3 else "")
                where = (
                    f"{counted(sum(counts.values()), 'row')} of images.csv in {counted(len(counts), 'run')} ({shown})"
                )
                self.problems.append(f"{where} {what}")
        for version, count in self.older.items():
            self.problems.append(
                f"{counted(count, 'run')} of the older schema version {version}: what was not measured then is missing"
            )
        order = sorted(self.rows, key=lambda run_id: (self.rows[run_id].get("study", ""), self._name(run_id)))
        runs = tuple(Run(self.rows[i], self.paths[i], self.images.get(i)) for i in order)
        return Loaded(runs, tuple(self.problems))

    def _name(self, run_id: str) -> tuple[str, str]:
        return self.rows[run_id].get("directory", ""), run_id


def _rank(row: Mapping[str, str]) -> int:
    """Of two directories of one run that of the lower rank is taken."""
    return {"done": 0, "diverged": 1}.get(row.get("status", ""), 2)


def _whole(path: Path, record: Mapping[str, Any]) -> bytes:
    """The bytes of images.csv. Raises UsageError where rows are missing: a cut file still parses."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise UsageError(f"{path} is missing") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    expected = record.get("n_rows_expected", {}).get("images")
    if b'"' in data:
        try:
            found = sum(1 for _ in csv.reader(io.StringIO(data.decode("utf-8"), newline=""))) - 1
        except (ValueError, csv.Error) as error:
            raise UsageError(f"{path} cannot be read: {error}") from error
        found -= not data.endswith(b"\n")
    else:
        found = data.count(b"\n") - 1
    if expected is not None and found != expected:
        raise UsageError(f"{path} holds {max(found, 0)} rows, the run wrote {expected}: copy it again")
    return data


def _rows_of(path: Path) -> Iterator[dict[str, str]]:
    """The rows of runs.csv. Raises UsageError where it is none."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            missing = {"run_id", "status", "seed", "dice"} - set(reader.fieldnames or ())
            if missing:
                raise UsageError(f"{path} is no runs.csv of `segexp collect`: no column {', '.join(sorted(missing))}")
            for number, row in enumerate(reader, start=2):
                if None in row or None in row.values():
                    raise UsageError(f"{path}, row {number}: it has not as many cells as there are columns: cut short?")
                yield row
    except (OSError, ValueError, csv.Error) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
