"""Studies on disk: which run directories there are, how each run stands, and what sweeps have planned.

    outputs/<study>/<run directory>/            a run; <run directory>.old1 is an earlier attempt that was set aside
    outputs/<study>/.sweeps/plan-<hash8>.json   what a sweep is to carry out, and what it left out and why

Everything is read while other processes write: a run that ends or is moved meanwhile is seen as it was or as it is.
"""

import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from segexp.errors import UsageError
from segexp.records import COLUMNS, SCHEMA_VERSION, read_run
from segexp.records.lock import lock_holder

STATES = {
    "done": "finished, with scores",
    "running": "a living process is at it",
    "not begun": "planned by a sweep, nothing written yet",
    "interrupted": "stopped by Ctrl-C or a signal; can be continued",
    "stale": "its process died without a word; can be continued",
    "failed": "ended by an error; can be tried again",
    "diverged": "became non-finite; final, without scores",
    "unreadable": "its record is missing or damaged",
}
"""The states of a run."""

FINAL = ("done", "diverged")
"""States that nothing changes any more."""

INCOMPLETE = "incomplete"
"""How a run stands in tables and comparisons that is over, but has lost rows or holds what no run writes."""

RESUMABLE = {
    "failed": ("failed",),
    "interrupted": ("interrupted", "stale"),
    "not-begun": ("not begun",),
}
"""What `segexp resume --only` takes, and the states that each means."""


@dataclass(frozen=True)
class Planned:
    """A run that a sweep is to carry out. directory: the name of its folder; config: its configuration as a tree."""

    run_id: str
    directory: str
    overrides: str
    config: Mapping[str, Any]


@dataclass(frozen=True)
class Study:
    """A study's folder. names: its run directories in order; planned: by run_id; problems: plans that cannot be read.

    dropped, refused: pairs (overrides, reason) of combinations that its sweeps left out. set_aside: earlier attempts.
    """

    path: Path
    names: tuple[str, ...] = ()
    planned: Mapping[str, Planned] = field(default_factory=dict)
    dropped: tuple[tuple[str, str], ...] = ()
    refused: tuple[tuple[str, str], ...] = ()
    set_aside: int = 0
    problems: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.path.name


@dataclass(frozen=True)
class Run:
    """A run as it stands. record: run.json, empty where there is none yet or it cannot be read.

    reason: why it ended badly or cannot be read, one line. owner: the living process at it, "" when there is none.
    """

    path: Path
    study: str
    run_id: str
    state: str
    record: Mapping[str, Any]
    reason: str = ""
    owner: str = ""
    planned: Planned | None = None


def studies_in(folder: Path) -> list[Study]:
    """The studies of a folder, in order of their names: itself, or those directly in it; a run directory is one run.

    No record is read yet. Raises UsageError when there is no such folder, or nothing in it.
    """
    folder = Path(os.path.abspath(folder))
    if not folder.is_dir():
        what = "is no folder" if folder.exists() else "does not exist"
        raise UsageError(f"{folder} {what}: name an outputs folder, a study or a run directory")
    if _is_run(folder):
        return [Study(folder.parent, (folder.name,))]
    studies, others = _study(folder)
    found = [studies] if studies else []
    found += [study for study, _ in (_study(folder / name) for name in others) if study]
    if not found:
        raise UsageError(
            f"{folder} holds no run: name an outputs folder, a study or a run directory; `segexp train` makes them"
        )
    return found


def _is_run(path: Path) -> bool:
    """A run directory from its first moment on: the lock comes first, then the configuration, then the record."""
    return any(os.path.exists(path / name) for name in ("run.json", "lock", "config.yaml"))


def _study(folder: Path) -> tuple[Study | None, list[str]]:
    """The folder as a study, None when it is none, and the names of its folders that are no runs."""
    names, others, set_aside = [], [], 0
    with os.scandir(folder) as entries:
        folders = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    for name in folders:
        if re.fullmatch(r".+\.old\d+", name):
            set_aside += 1
        elif _is_run(folder / name):
            names.append(name)
        else:
            others.append(name)
    planned: dict[str, Planned] = {}
    dropped: dict[tuple[str, str], None] = {}
    refused: dict[tuple[str, str], None] = {}
    problems = []
    for path in sorted((folder / ".sweeps").glob("plan-*.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            for run in content["runs"]:
                planned.setdefault(str(run["run_id"]), _planned(run))
            dropped |= {(str(d["overrides"]), str(d["reason"])): None for d in content["dropped"]}
            refused |= {(str(r["overrides"]), str(r["reason"])): None for r in content["refused"]}
        except (OSError, ValueError, KeyError, TypeError) as error:
            problems.append(
                f"{path} is no plan of a sweep ({type(error).__name__}: {error}): what it planned is unknown"
            )
    if not (names or planned or problems):
        return None, others
    left_out = (tuple(dropped), tuple(refused))
    return Study(folder, tuple(names), planned, *left_out, set_aside, tuple(problems)), others


def _planned(run: Mapping[str, Any]) -> Planned:
    """An entry of a plan. Raises ValueError for a directory that is not one of the study itself, and for a
    configuration that is none."""
    directory, config = str(run["directory"]), dict(run["config"])
    if not directory or directory.startswith(".") or set(directory) & set("/\\\0"):
        raise ValueError(f"{directory!r} is no name of a run directory")
    trainer = config.get("trainer", {})
    if not isinstance(trainer, dict) or type(trainer.get("epochs", 0)) is not int:
        raise ValueError(f"trainer={trainer!r} of {directory} is no configuration")
    return Planned(str(run["run_id"]), directory, str(run["overrides"]), config)


def run_at(path: Path) -> Run:
    """The run in a run directory, as it stands. Raises UsageError when the folder is none."""
    path = Path(os.path.abspath(path))
    run = _look(path, path.parent.name, None) if _is_run(path) else None
    if run is None:
        raise UsageError(f"{path} is not a run directory: it holds no run.json")
    return run


def runs_in(study: Study) -> Iterator[Run]:
    """The runs of a study one after the other, in order of their directories, planned ones among them.

    Each record is read when its turn comes and none is kept, so that a study of thousands takes no memory.
    """
    planned = {_run_id(p.directory): p for p in study.planned.values()} | dict(study.planned)
    begun = {_run_id(name) for name in study.names}
    directories = {p.directory: p for p in study.planned.values() if p.run_id not in begun}
    for name in sorted({*study.names, *directories}):
        run = _look(study.path / name, study.name, directories.get(name) or planned.get(_run_id(name)))
        if run is not None:
            yield run


def _run_id(directory: str) -> str:
    return directory.rpartition("-")[2]


def _look(path: Path, study: str, planned: Planned | None) -> Run | None:
    """How a run stands; None for a directory that has been moved away meanwhile and that no plan names.

    An owner writes how the run ended, then lets go of the lock: a record read before the lock is looked at may be old
    afterwards. It is read until it is the same before and after.
    """
    record, reason = _record(path)
    owner = ""
    while record.get("status") not in FINAL:
        before = record
        owner = lock_holder(path)
        record, reason = _record(path)
        if record == before:
            break
    if not record and not owner and not reason:
        if planned is None and not path.is_dir():
            return None
        reason = "" if planned else "it ended before its first record: start its command again, or remove it"
    run_id = record.get("run_id") or (planned.run_id if planned else _run_id(path.name))
    state = _state(record, owner, reason, planned)
    return Run(path, study, run_id, state, record, reason or str(record.get("error", "")), owner, planned)


def _state(record: Mapping[str, Any], owner: str, reason: str, planned: Planned | None) -> str:
    if record.get("status") in FINAL:
        return str(record["status"])
    if owner:
        return "running"
    if record:
        return "stale" if record["status"] == "running" else str(record["status"])
    return "not begun" if planned and not reason else "unreadable"


def _record(path: Path) -> tuple[Mapping[str, Any], str]:
    """run.json and why it cannot be read; neither where there is none yet."""
    if not os.path.exists(path / "run.json"):
        return {}, ""
    try:
        record = read_run(path)
    except UsageError as error:
        # The file may have been moved away between the two looks.
        return {}, str(error) if os.path.exists(path / "run.json") else ""
    version = record.get("schema_version")
    if type(version) is not int or version > SCHEMA_VERSION:
        return {}, f"{path / 'run.json'} has schema version {version}, this segexp reads up to {SCHEMA_VERSION}"
    if record.get("status") not in ("running", "interrupted", "failed", *FINAL):
        return {}, f"{path / 'run.json'} has the unknown status {record.get('status')!r}"
    return record, ""


@dataclass(frozen=True)
class Copy:
    """A run as it lies in one place. place: its name in messages; state: of `STATES`, or `INCOMPLETE`; identity: ""
    where it is not known; summary: its scores, as numbers or as cells; images: in whatever form they are compared."""

    run_id: str
    place: str
    state: str
    identity: str
    summary: Mapping[str, Any]
    images: Any = None


class Duplicates:
    """Which place of a run counts where it lies in several: one where it is finished and whole, else one where it
    diverged, else any; of equals the first that is offered.

    twice: pairs of a copy left out and the one that counts; others: a line for each run that only bears the run_id of
    another (eight digits are not a whole hash) and is left out.
    """

    def __init__(self, same_images: Callable[[Any, Any], bool]) -> None:
        self.twice: list[tuple[Copy, Copy]] = []
        self.others: list[str] = []
        self._counted: dict[str, Copy] = {}
        self._same_images = same_images

    def counts(self, copy: Copy) -> bool:
        """Whether this copy counts, as long as no better one is offered. Raises UsageError where another copy is
        finished and whole too, but holds other scores: nobody but the user can tell which of them are true."""
        earlier = self._counted.get(copy.run_id)
        if earlier is None:
            self._counted[copy.run_id] = copy
            return True
        if copy.identity and earlier.identity and copy.identity != earlier.identity:
            which = f"{earlier.place}, of the same run_id {copy.run_id}"
            self.others.append(f"{copy.place} is another run than {which}: left out")
            return False
        if copy.state == earlier.state == "done":
            differing = self._differing(earlier, copy)
            if differing:
                raise UsageError(
                    f"run {copy.run_id} lies in {earlier.place} and in {copy.place} with different scores "
                    f"({differing}): which are true? Move the other copy away"
                )
        better = _rank(copy) < _rank(earlier)
        self.twice.append((earlier, copy) if better else (copy, earlier))
        if better:
            self._counted[copy.run_id] = copy
        return better

    def _differing(self, a: Copy, b: Copy) -> str:
        """The first of the scores of two copies that differ, "" where all are alike."""
        for name, kind in COLUMNS["summary"].items():
            x, y = a.summary.get(name), b.summary.get(name)
            if kind is not str and not _alike(x, y):
                return f"{name} {x or 'missing'} and {y or 'missing'}"
        return "" if self._same_images(a.images, b.images) else "those of their images"


def _rank(copy: Copy) -> int:
    return FINAL.index(copy.state) if copy.state in FINAL else len(FINAL)


def _alike(x: Any, y: Any) -> bool:
    """Whether two numbers are one, whoever wrote them: a spreadsheet keeps 15 digits."""
    try:
        a, b = (math.nan if v in (None, "") else float(v) for v in (x, y))
    except ValueError:
        return bool(x == y)
    return math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12) or (math.isnan(a) and math.isnan(b))
