"""Reads what is compared: run directories, studies, outputs folders, and tables of `segexp collect`, in any mixture.

Every run becomes a row of text cells under the columns of runs.csv, and its images numbers under a layout that runs on
the same images share. What cannot be used is told, never left out in silence. Axes: N images, F foreground classes.
"""

import csv
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

from segexp.compare.images import ROUNDING, Images, Layout, Read, frame_of, frames_of, read_images, same_images
from segexp.errors import UsageError, first_line
from segexp.evaluation.scores import EmptyPolicy, fp_rate_empty, micro_scores, primary_score
from segexp.records import ENCODING, SCHEMA_VERSION, cell_of, check_table, whole_table
from segexp.records.collected import row_of, totals_of
from segexp.records.formatting import pluralize
from segexp.records.runs import FINAL, INCOMPLETE, Copy, Duplicates, runs_in, studies_in
from segexp.records.scores import SCORES

if TYPE_CHECKING:
    import numpy as np

CHUNK_BYTES = 32_000_000
"""Images are parsed in portions of about this size, so that memory does not grow with the study."""

_WHOLE = ("seed", "fold", "config_split_fold")
"""Columns by which runs are paired: whole numbers, of which runs that are no fold have the first alone."""


@dataclass(frozen=True, eq=False)
class Run:
    """A run to compare. row: column of runs.csv -> cell as text, "" for what is not known; path: its directory, None
    where it comes from collected tables; images: None where it has no scores."""

    row: Mapping[str, str]
    path: Path | None
    images: Images | None
    _computed: dict[tuple[str, str], float] = field(default_factory=dict, init=False, repr=False)

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

    def once(self, metric: str, policy: str, compute: Callable[[], float]) -> float:
        """The score of this run's images under a metric and a policy, computed when it is first asked for."""
        key = (metric, policy)
        if key not in self._computed:
            self._computed[key] = compute()
        return self._computed[key]


@dataclass(frozen=True)
class Loaded:
    """All runs in order of study and directory, and what was found wrong or left out, a line each."""

    runs: tuple[Run, ...]
    problems: tuple[str, ...]


def load(paths: Sequence[Path], split: str = "test") -> Loaded:
    """Read all runs under ``paths`` with their scores on ``split`` (val or test).

    A path is a run directory, a study, an outputs folder, a folder with runs.csv and images.csv of `segexp collect`, or
    such a runs.csv. A run that is found in several places counts once, wherever it stands in ``paths``. Raises
    UsageError where a path is none of these, where two places hold different scores of one run, or no run is found.
    """
    reader = _Reader(split)
    # In an order of their own, directories first, for they hold more than tables.
    found = [(path, _collected(path)) for path in paths]
    for path, tables in sorted(found, key=lambda f: (f[1] is not None, os.path.abspath(f[0]))):
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


@dataclass
class _Found:
    """A run in one place, before it is decided whether it counts. place: its directory or its table; told: keys of
    `_TOLD` and how often."""

    row: dict[str, str]
    identity: str
    path: Path | None
    place: str
    images: Images | None = None
    told: Counter[str] = field(default_factory=Counter)

    @property
    def run_id(self) -> str:
        return self.row["run_id"]

    @property
    def done(self) -> bool:
        return self.row["status"] == "done"


_ROW = ("row of images.csv", "rows of images.csv")
_TOLD = {
    "edited": (*_ROW, "whose Dice or IoU is not that of the counts beside it: edited by hand? The counts are used"),
    "infinite": (*_ROW, "with a score that is not finite: it is left out"),
    "mended": ("score", "scores", "that the images do not give: edited by hand? The images are used"),
    "untimed": ("timings.csv", "timings.csv", "that cannot be read: how long it took is unknown"),
}
"""What is told of runs that are used all the same: of one, of many, and why."""


class _Reader:
    """What has been read so far: the same run may come several times, and images come in portions."""

    def __init__(self, split: str) -> None:
        self.split = split
        self.copies = Duplicates(same_images)
        self.found: dict[str, _Found] = {}
        self.layouts: dict[Any, Layout] = {}
        self.problems: list[str] = []
        self.none = Read(None, f"there are no images on {split}")

    def directories(self, path: Path) -> None:
        """The runs of a folder. Their images are parsed together: thousands of files take seconds, not minutes."""
        waiting: list[tuple[_Found, bytes]] = []
        size = 0
        for run in (run for study in studies_in(path) for run in runs_in(study)):
            row = {key: cell_of(value) for key, value in row_of(run).items()}
            if run.state == "unreadable":
                self.problems.append(f"{run.path} cannot be read: {run.reason}")
            if run.state in FINAL:
                row |= {key: cell_of(value) for key, value in run.record.get("summary", {}).items()}
            found = self._begun(row, str(run.record.get("identity") or ""), run.path, str(run.path))
            if found is None:
                continue
            if run.state in FINAL:
                self._timed(found, run.path, run.record)
            images = b""
            if found.done:
                try:
                    images = whole_table(run.path, run.record, "images")
                except UsageError as error:
                    self._incomplete(found, str(error))
            waiting.append((found, images))
            size += len(images)
            if size > CHUNK_BYTES:
                self._parse(waiting)
                waiting, size = [], 0
        self._parse(waiting)

    def tables(self, runs: Path, images: Path) -> None:
        """The runs of collected tables."""
        rows = [found for row in _rows_of(runs) if (found := self._begun(row, "", None, str(runs))) is not None]
        if not images.is_file():
            raise UsageError(f"{images} is missing: `segexp collect` writes it beside {runs.name}, copy both")
        known, done = {found.run_id for found in rows}, {found.run_id for found in rows if found.done}
        read: dict[str, Read] = {}
        strange: set[str] = set()
        for frame in frames_of(images):
            strange |= set(frame["run_id"].unique()) - known
            read |= read_images(frame[frame["run_id"].isin(done)], self.split, self.layouts)
        if strange:
            shown = ", ".join(sorted(strange)[:3])
            self.problems.append(f"{images} holds {pluralize(len(strange), 'run')} that {runs.name} does not: {shown}")
        for found in rows:
            if found.done:
                self._scored(found, read.get(found.run_id, self.none))
            self._settled(found)

    def _begun(self, row: dict[str, str], identity: str, path: Path | None, place: str) -> _Found | None:
        """A run of which the images are to be read yet; None, and told, where nothing can be said of it."""
        if not row.get("run_id"):
            self.problems.append(f"{place}: a run without run_id is left out")
            return None
        version = row.get("schema_version", "")
        if version and not (version.isdecimal() and int(version) <= SCHEMA_VERSION):
            reason = f"run {row['run_id']} has schema version {version}, this segexp reads up to {SCHEMA_VERSION}"
            self.problems.append(f"{place}: {reason}: left out")
            return None
        found = _Found(row, identity, path, place)
        for key in _WHOLE:
            if re.fullmatch(r"\d+(\.0*)?", row.get(key, "")):  # 1.0 as a spreadsheet writes whole numbers
                row[key] = str(int(row[key].partition(".")[0]))
            elif row.get(key) or (found.done and key == "seed"):
                self._incomplete(found, f"{place}: run {found.run_id} has {key}={row.get(key, '')!r}, no whole number")
        policies = get_args(EmptyPolicy)
        if row.get("empty_policy") and row["empty_policy"] not in policies:
            told = f"empty_policy={row['empty_policy']!r}, none of {', '.join(policies)}"
            self._incomplete(found, f"{place}: run {found.run_id} has {told}")
        return found

    def _timed(self, found: _Found, run_dir: Path, record: Mapping[str, Any]) -> None:
        """How long the epochs of a run took; told where that cannot be read, though it should be there."""
        expected = "timings" in record.get("n_rows_expected", {})
        try:
            if expected:
                check_table(run_dir, record, "timings")
            found.row["seconds"] = cell_of(totals_of(run_dir)["seconds"])
        except UsageError:
            found.told["untimed"] += expected

    def _incomplete(self, found: _Found, reason: str) -> None:
        found.row |= {"status": INCOMPLETE, "error": reason}
        found.images = None
        self.problems.append(reason)

    def _parse(self, waiting: Sequence[tuple[_Found, bytes]]) -> None:
        """Images of many runs at once where all of them parse, else one by one to name the damaged ones."""
        by_header: dict[bytes, dict[str, tuple[_Found, bytes]]] = {}
        # By number, not by run_id: of one run there may be several copies.
        for number, (found, data) in enumerate(waiting):
            if found.done:
                by_header.setdefault(data.partition(b"\n")[0], {})[str(number)] = (found, data)
        for header, of_header in by_header.items():
            try:
                frame = frame_of(header, [(number, data) for number, (_, data) in of_header.items()])
                read = dict(read_images(frame, self.split, self.layouts))
            except (ValueError, UsageError):
                read = {number: self._alone(header, data) for number, (_, data) in of_header.items()}
            for key, (found, _) in of_header.items():
                self._scored(found, read.get(key, self.none))
        for found, _ in waiting:
            self._settled(found)

    def _alone(self, header: bytes, data: bytes) -> Read:
        try:
            frame = frame_of(header, [("", data)])
            return dict(read_images(frame, self.split, self.layouts)).get("", self.none)
        except (ValueError, UsageError) as error:
            return Read(None, f"damaged: {first_line(error)}")

    def _scored(self, found: _Found, read: Read) -> None:
        """A finished run gets its images, unless they, or its own summary, cannot be believed."""
        reason = read.reason or (self._lacking(found.row, read.images.layout) if read.images else "")
        if reason or read.images is None:
            where = found.place if found.path is None else found.path / "images.csv"
            self._incomplete(found, f"{where}, run {found.run_id}: {reason}")
            return
        found.told.update(edited=read.edited, infinite=read.infinite)
        found.images = read.images
        if self.split == "test" and read.counts_NF3 is not None:
            for name, score in _recomputed(found.row, read.images, read.counts_NF3).items():
                if found.row.get(name) and not abs(_number(found.row[name]) - score) < ROUNDING:
                    found.told["mended"] += 1
                    found.row[name] = cell_of(score)
        outside = [f"{name}={found.row[name]}" for name in _outside(found.row)]
        if outside:
            self._incomplete(found, f"{found.place}: run {found.run_id} has {', '.join(outside)}: no such score can be")

    def _settled(self, found: _Found) -> None:
        """Whether this place of the run is the one that counts."""
        copy = Copy(found.run_id, found.place, found.row["status"], found.identity, found.row, found.images)
        if self.copies.counts(copy):
            self.found[found.run_id] = found

    def _lacking(self, row: Mapping[str, str], layout: Layout) -> str:
        """What the table lacks of what the run says of itself, "" when nothing."""
        expected = {"images": row.get("n_test", "") if self.split == "test" else "", "classes": ""}
        if row.get("config_dataset_num_classes", "").isdecimal():
            expected["classes"] = str(int(row["config_dataset_num_classes"]) - 1)
        found = {"images": len(layout.image_ids), "classes": len(layout.classes)}
        for what, number in expected.items():
            if number.isdecimal() and int(number) != found[what]:
                return f"{found[what]} {what} of {number}: rows are missing, or too many"
        return ""

    def finish(self) -> Loaded:
        """All runs. Raises UsageError where there is none."""
        if not self.found:
            raise UsageError("there is no run to compare")
        problems = [*self.problems, *self.copies.others]
        if self.copies.twice:
            shown = _first([f"{left.run_id} ({left.place})" for left, _ in self.copies.twice])
            problems.append(f"{pluralize(len(self.copies.twice), 'run')} there twice, counted once: {shown}")
        for key, (one, many, what) in _TOLD.items():
            of_runs = [(found.run_id, found.told[key]) for found in self.found.values() if found.told[key]]
            if of_runs:
                n = sum(count for _, count in of_runs)
                runs = f"{pluralize(len(of_runs), 'run')} ({_first([run_id for run_id, _ in of_runs])})"
                problems.append(f"{n} {one if n == 1 else many} in {runs} {what}")
        older = Counter(found.row.get("schema_version") or str(SCHEMA_VERSION) for found in self.found.values())
        del older[str(SCHEMA_VERSION)]
        problems += [
            f"{pluralize(count, 'run')} of the older schema version {version}: what was not measured then is missing"
            for version, count in older.items()
        ]
        order = sorted(
            self.found.values(), key=lambda f: (f.row.get("study", ""), f.row.get("directory", ""), f.run_id)
        )
        return Loaded(tuple(Run(found.row, found.path, found.images) for found in order), tuple(problems))


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _recomputed(row: Mapping[str, str], images: Images, counts_NF3: "np.ndarray") -> dict[str, float]:
    """The scores of the summary on test that follow from the images, of those that it holds."""
    layout, policy = images.layout, cast(EmptyPolicy, row.get("empty_policy") or "reference")
    scores = {
        name: primary_score(images.cells[name], layout.n_reference_NF, layout.groups, policy)
        for name in ("dice", "iou")
        if row.get(name)
    }
    if row.get("dice_micro") or row.get("iou_micro"):
        scores |= zip(("dice_micro", "iou_micro"), micro_scores(counts_NF3), strict=True)
    if row.get("fp_rate_empty"):
        scores["fp_rate_empty"] = fp_rate_empty(counts_NF3)
    return scores


def _outside(row: Mapping[str, str]) -> list[str]:
    """The scores of a summary that are outside their range."""
    wrong = []
    for name, score in SCORES.items():
        value = _number(row[name]) if row.get(name) else math.nan
        if value < -ROUNDING or (value > score.highest + ROUNDING and math.isfinite(value)):
            wrong.append(name)
    return wrong


def _rows_of(path: Path) -> Iterator[dict[str, str]]:
    """The rows of runs.csv. Raises UsageError where it is none."""
    try:
        with path.open(encoding=ENCODING, newline="") as file:
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
