"""Runs and studies on disk: which there are, what state each run is in, and what sweeps have planned.

    outputs/<study>/<run directory>/            a run; <run directory>.old1 is an archived earlier attempt
    outputs/<study>/.sweeps/plan-<hash8>.json   what a sweep runs, and which combinations it left out and why

Files are read while other processes write them: a run that ends or is moved meanwhile is seen as it was or as it is.
"""

import contextlib
import dataclasses
import datetime
import functools
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segexp.errors import UsageError
from segexp.records import COLUMNS, PROGRESS, SCHEMA_VERSION, cell_of, flatten, read_run, text_rows
from segexp.records.files import read_json
from segexp.records.owned import Folder
from segexp.records.plugins import versions_of
from segexp.records.process import lock_holder
from segexp.records.scores import LATER, OWN

if TYPE_CHECKING:
    from segexp.records.tables import Images

STATES = {
    "done": "finished, with scores",
    "running": "a process is training it",
    "not begun": "planned by a sweep, nothing written yet",
    "interrupted": "stopped by Ctrl-C or a signal; can be continued",
    "stale": "its process died without recording why; can be continued",
    "failed": "ended by an error; can be tried again",
    "diverged": "became non-finite; final, without scores",
    "unreadable": "its record is missing or damaged",
}
"""The states of a run, as JSON and CSV files store them."""

SWEEPS = ".sweeps"
"""The folder of a study that sweeps write into."""

FINAL = ("done", "diverged")  # states that never change again

FIXED = "fixed_rate"
"""The column of a run with a tuned learning rate that is also one with this rate fixed: another study or a sweep says
so."""

INCOMPLETE = "incomplete"
"""The state, in tables and comparisons, of a finished run whose files are missing, cut or edited."""

RESUMABLE = {
    "failed": ("failed",),
    "interrupted": ("interrupted", "stale"),
    "not-begun": ("not begun",),
    "pending": ("not begun",),
}
"""Values of `segexp resume --only`, and the states that each stands for."""


def shown_state(state: str) -> str:
    """A state as the terminal shows it."""
    return "pending" if state == "not begun" else state


@dataclass(frozen=True)
class Planned:
    """A run that a sweep has planned. directory: the name of its folder; config: its configuration as a tree; plugins:
    those that it uses, as in run.json."""

    run_id: str
    directory: str
    overrides: str
    config: Mapping[str, Any]
    plugins: Any = None


@dataclass(frozen=True)
class Study:
    """A study's folder. names: its run directories in order; planned: by run_id; problems: plans that cannot be read.

    dropped, refused: pairs (overrides, reason) of combinations that its sweeps left out, and that no later sweep has
    planned where they were refused; archived: earlier attempts.
    """

    path: Path
    names: tuple[str, ...] = ()
    planned: Mapping[str, Planned] = field(default_factory=dict)
    dropped: tuple[tuple[str, str], ...] = ()
    refused: tuple[tuple[str, str], ...] = ()
    archived: int = 0
    problems: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.path.name


@dataclass(frozen=True, eq=False)
class Run:
    """A run, from its directory, a plan, or a row of collected tables.

    state: of `STATES`, or `INCOMPLETE`; path: its directory, or the runs.csv that holds it (``collected``); record:
    run.json, empty where there is none or it cannot be read; reason: why it ended badly or cannot be read, one line;
    owner: the lock holder, "" when there is none; identity: "" where unknown; cells: its row of runs.csv as text, where
    it was read from there or is kept in place of the record; images: its scores per image, where `load` has read them.
    """

    run_id: str
    state: str
    path: Path
    study: str = ""
    record: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""
    owner: str = ""
    planned: Planned | None = None
    identity: str = ""
    cells: Mapping[str, str] | None = None
    images: "Images | None" = None
    collected: bool = False
    _computed: dict[tuple[str, str], float] = field(default_factory=dict, init=False, repr=False)

    @property
    def config(self) -> Mapping[str, Any]:
        """The configuration with dotted keys, from the record or else the plan; empty where neither is known."""
        return self.record.get("config") or (flatten(self.planned.config) if self.planned else {})

    @property
    def plugins(self) -> Any:
        """What the record or else the plan says of the plugins that it uses."""
        return self.record.get("plugins") or (self.planned and self.planned.plugins)

    @property
    def summary(self) -> Mapping[str, Any]:
        """The row of summary.csv as run.json repeats it; None for NaN."""
        return self.record.get("summary", {})

    @functools.cached_property
    def row(self) -> Mapping[str, str]:
        """The run's row of runs.csv as text, "" for what is unknown."""
        if self.cells is not None:
            return self.cells
        return {key: value if type(value) is str else cell_of(value) for key, value in row_of(self).items()}

    @property
    def numerics(self) -> int:
        """The version of the numbers that made it (`segexp.records.NUMERICS`), 0 where it has no record yet."""
        return int(self.row.get("numerics") or self.state not in ("not begun", "unreadable"))

    def number(self, column: str) -> float:
        """A cell of ``row`` as a number, NaN where it is empty, missing or not finite. Raises UsageError for text."""
        text = self.row.get(column, "")
        try:
            value = float(text) if text else math.nan
        except ValueError:
            wrong = f"run {self.run_id} has {column}={text!r}, which is not a number"
            raise UsageError(f"{self.path}: {wrong}: restore the file") from None
        return value if math.isfinite(value) else math.nan

    def once(self, metric: str, policy: str, compute: Callable[[], float]) -> float:
        """The score of this run's images under a metric and a policy, computed when it is first needed."""
        key = (metric, policy)
        if key not in self._computed:
            self._computed[key] = compute()
        return self._computed[key]

    def incomplete(self, reason: str) -> "Run":
        """The run without its scores, because its files cannot be trusted."""
        cells = None if self.cells is None else {**self.cells, "status": INCOMPLETE, "error": reason}
        return dataclasses.replace(self, state=INCOMPLETE, reason=reason, cells=cells, images=None)


def row_of(run: Run) -> dict[str, Any]:
    """A run's row of runs.csv but for its timings: what is known of it in any state, and its scores once it is done."""
    record, config, used = run.record, run.config, versions_of(run.plugins)
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
        **{key: record[key] for key in ("numerics", "scores") if key in record},
        **({"compiled": device["compiled"]} if "compiled" in device else {}),
        **({FIXED: True} if config.get("tuned") and run.planned and not run.planned.config.get("tuned") else {}),
        **({"plugins": " ".join(f"{entry}:{version}" for entry, version in used.items())} if used else {}),
    }
    for key, value in config.items():
        column = column_of(key)
        if column in row:
            raise UsageError(f"{run.path}: two keys of the configuration would both be the column {column}")
        row[column] = value
    return {**row, **(run.summary if run.state in FINAL else {})}


@functools.cache
def column_of(key: str) -> str:
    """The column of runs.csv for a key of the configuration: config_trainer_epochs."""
    return "config_" + re.sub(r"[^a-z0-9_]", "_", key.lower())


def studies_in(folder: Path) -> list[Study]:
    """The studies of a folder, in order of their names: itself, or those directly in it; a run directory is one run.

    Reads no record yet. Raises UsageError when the folder does not exist or holds no run.
    """
    folder = Path(os.path.abspath(folder))
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise UsageError(f"{folder} {what}: name an outputs folder, a study or a run directory")
    if _is_run(folder):
        return [Study(folder.parent, (folder.name,))]
    study, others = _study(folder)
    found = [study] if study else []
    found += [study for study, _ in (_study(folder / name) for name in others) if study]
    if not found:
        raise UsageError(f"{folder} holds no run: name an outputs folder, a study or a run directory")
    return found


def sweeps_folder(study: Path, *below: str) -> Path:
    """`SWEEPS` of a study, or a folder below it, for writing. Raises UsageError where a stranger has put a link."""
    path = study
    for name in (SWEEPS, *below):
        Folder(path, None).refuse_odd(name)
        path /= name
    return path


def _is_run(path: Path) -> bool:
    """Whether a folder is a run directory: the lock is written first, then the configuration, then the record."""
    return any(os.path.exists(path / name) for name in ("run.json", "lock", "config.yaml"))


def _study(folder: Path) -> tuple[Study | None, list[str]]:
    """The folder as a study, None when it is not one, and the names of its folders that are not runs."""
    names, others, archived = [], [], 0
    with os.scandir(folder) as entries:
        folders = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    for name in folders:
        if re.fullmatch(r".+\.old\d+", name):
            archived += 1
        elif _is_run(folder / name):
            names.append(name)
        else:
            others.append(name)
    planned: dict[str, Planned] = {}
    dropped: dict[tuple[str, str], None] = {}
    plans: list[tuple[str, list[Planned], dict[tuple[str, str], None]]] = []
    problems = []
    for path in sorted((folder / SWEEPS).glob("plan-*.json")):
        try:
            content = read_json(path, folder)
            runs = [_planned(run) for run in content["runs"]]
            for run in runs:  # a rate that is tuned in one sweep and fixed in another: see `FIXED`
                known = planned.setdefault(run.run_id, run)
                if known.config.get("tuned") and not run.config.get("tuned"):
                    planned[run.run_id] = run
            dropped |= {(str(d["overrides"]), str(d["reason"])): None for d in content["dropped"]}
            refused = {(str(r["overrides"]), str(r["reason"])): None for r in content["refused"]}
            plans.append((str(content.get("created")), runs, refused))
        except (UsageError, ValueError, KeyError, TypeError, AttributeError) as error:
            wrong = f"{type(error).__name__}: {error}"
            problems.append(f"{path} is not the plan of a sweep ({wrong}): its runs are unknown")
    if not (names or planned or problems):
        return None, others
    refused = {}
    for _, runs, more in sorted(plans, key=lambda plan: plan[0]):
        refused = {one: None for one in refused if not any(_is_made(one[0], run) for run in runs)} | more
    return Study(folder, tuple(names), planned, tuple(dropped), tuple(refused), archived, tuple(problems)), others


def _planned(run: Mapping[str, Any]) -> Planned:
    """An entry of a plan. Raises ValueError for a directory outside the study and for a malformed configuration."""
    directory, config = str(run["directory"]), dict(run["config"])
    if not directory or directory.startswith(".") or set(directory) & set("/\\\0"):
        raise ValueError(f"{directory!r} is no name of a run directory")
    trainer = config.get("trainer", {})
    if not isinstance(trainer, dict) or type(trainer.get("epochs", 0)) is not int:
        raise ValueError(f"trainer={trainer!r} of {directory} is no configuration")
    return Planned(str(run["run_id"]), directory, str(run["overrides"]), config, run.get("plugins"))


def _is_made(overrides: str, planned: Planned) -> bool:
    """Whether a planned run is the combination of these overrides."""
    config, same = flatten(planned.config), planned.overrides.split()
    pairs = [word.partition("=") for word in overrides.split() if word not in same]
    return all(str(config.get(f"{key}.name", config.get(key))) == value for key, _, value in pairs)


def run_at(path: Path) -> Run:
    """The run in a run directory. Raises UsageError when the folder is not a run directory."""
    path = Path(os.path.abspath(path))
    run = _look(path, path.parent.name, None) if _is_run(path) else None
    if run is None:
        raise UsageError(f"{path} is not a run directory: it holds no run.json")
    return run


def runs_in(study: Study) -> Iterator[Run]:
    """The runs of a study in order of their directories, planned ones included.

    Each record is read when its turn comes and none is kept, so that thousands of runs take no memory.
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
    """The run at a path; None for a directory that has been moved away meanwhile and that no plan names.

    A process writes how its run ended, then releases the lock. A record read before the lock may therefore be out of
    date: it is read again until it is the same before and after.
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
    state = str(record.get("status", "not begun" if planned and not reason else "unreadable"))
    if state not in FINAL and owner:
        state = "running"
    elif state == "running":
        state = "stale"
    reason, identity = reason or str(record.get("error", "")), str(record.get("identity") or "")
    return Run(run_id, state, path, study, record, reason, owner, planned, identity)


def _record(path: Path) -> tuple[Mapping[str, Any], str]:
    """run.json and why it cannot be read; neither where there is none yet."""
    if not os.path.exists(path / "run.json"):
        return {}, ""
    try:
        record = read_run(path)
    except UsageError as error:
        # The file may have been moved away between the two looks.
        return {}, str(error) if os.path.exists(path / "run.json") else ""
    version, status = record.get("schema_version"), record.get("status")
    if type(version) is not int or version > SCHEMA_VERSION:
        return {}, f"{path / 'run.json'} has schema version {version}, this segexp reads up to {SCHEMA_VERSION}"
    if status not in ("running", "interrupted", "failed", *FINAL):
        return {}, f"{path / 'run.json'} has the unknown status {status!r}"
    return record, ""


def progress_of(run: Run) -> dict[str, Any]:
    """How far a run is: epoch (finished ones), epochs (planned), val_dice_best, val_dice_last, seconds, eta_s, phase.

    What is unknown is None. Unreadable tables count as unknown: the first epoch writes them. phase: what a running run
    does at the moment; while it scores, eta_s is the time until that ends.
    """
    epochs = run.config.get("trainer.epochs")
    known: dict[str, Any] = {"epoch": None, "epochs": epochs, "val_dice_best": None, "val_dice_last": None}
    known |= {"seconds": None, "eta_s": None, "phase": None}
    if not run.record:
        return known
    if run.state == "done":
        # The sum over all attempts, where the run was continued.
        seconds = run.record.get("seconds")
        if not seconds:
            started, finished = (str(run.record.get(key)) for key in ("started", "finished"))
            with contextlib.suppress(TypeError, ValueError):
                parsed = datetime.datetime.fromisoformat
                seconds = (parsed(finished) - parsed(started)).total_seconds()
        scores = {"epoch": run.summary.get("epochs"), "val_dice_best": run.summary.get("val_dice")}
        return known | scores | {"seconds": seconds}
    try:
        rows = [row for row in text_rows(run.path / "epochs.csv", "epochs") if row["split"] == "val"]
        spent = [float(row["seconds"]) for row in text_rows(run.path / "timings.csv", "timings")]
        epoch = int(rows[-1]["epoch"]) if rows else 0
        dice = [float(row["dice"]) for row in rows if row["dice"]]
    except (UsageError, ValueError):
        first = f"training epoch 1 of {epochs}" if run.state == "running" else None
        return known | {"epoch": None if run.state == "diverged" else 0, "phase": first}
    phase, left = f"training epoch {epoch + 1} of {epochs}", None
    if spent and epochs and epoch < epochs:
        left = math.fsum(spent) / len(spent) * (epochs - epoch)
    if scoring := scoring_of(run.path):
        done, total, seconds = scoring
        phase, left = f"scoring {done} of {total} images", seconds / done * (total - done) if done else None
    elif epochs and epoch >= epochs:
        phase = "scoring"
    return known | {
        "epoch": epoch,
        "val_dice_best": max(dice, default=None),
        "val_dice_last": dice[-1] if dice else None,
        "seconds": sum(spent),
        "eta_s": left if run.state == "running" else None,
        "phase": phase if run.state == "running" else None,
    }


def scoring_of(run_dir: Path) -> tuple[int, int, float] | None:
    """Scored images, all of them, and seconds so far of a run that is scoring, else None."""
    try:
        content = read_json(run_dir / PROGRESS)
        done, total, seconds = int(content["done"]), int(content["total"]), float(content["seconds"])
    except (OSError, UsageError, ValueError, OverflowError, KeyError, TypeError):
        return None
    return (done, total, seconds) if 0 <= done <= total < 1e9 and 0 <= seconds < 1e9 else None


class Duplicates:
    """Counts every run once, wherever it lies: a finished and complete one before a diverged one before any other, of
    equals that of a study with a decision, then the first. One with a tuned learning rate and one without are both
    (`FIXED`).

    runs: the runs that count, by run_id; left_out: pairs of a duplicate and the run that counts instead; others: a line
    for each different run of the same run_id (eight digits are not a whole hash), which is left out.
    """

    def __init__(self) -> None:
        self.runs: dict[str, Run] = {}
        self.left_out: list[tuple[Run, Run]] = []
        self.others: list[str] = []
        self._images: dict[str, object] = {}

    def add(self, run: Run, images: object = None) -> bool:
        """Whether this run counts, as long as no better one is added. images: anything that is equal for equal scores.

        Raises UsageError where a finished run was added before with other scores: only the user can tell which to keep.
        """
        earlier = self.runs.get(run.run_id)
        if earlier is None:
            self.runs[run.run_id], self._images[run.run_id] = run, images
            return True
        if run.identity and earlier.identity and run.identity != earlier.identity:
            other = f"{run.path} is another run than {earlier.path}"
            self.others.append(f"{other}, of the same run_id {run.run_id}: left out")
            return False
        if run.state == earlier.state == "done":
            different = _different_score(earlier, run)
            if not different and images != self._images[run.run_id]:
                different = "those of their images"
            if different:
                wrong = f"run {run.run_id} lies in {earlier.path} and in {run.path} with different scores ({different})"
                raise UsageError(f"{wrong}: move one of them away")
        better = _rank(run) < _rank(earlier)
        kept, left_out = (run, earlier) if better else (earlier, run)
        self.left_out.append((left_out, kept))
        self.runs[run.run_id] = _with_rate(kept, left_out)
        if better:
            self._images[run.run_id] = images
        return better


def _with_rate(run: Run, duplicate: Run) -> Run:
    """The run, tuned and `FIXED` where it has a tuned learning rate in one place and a fixed one in the other."""
    known = [one.row for one in (run, duplicate) if one.row.get(column_of("optimizer.lr"))]
    files = [row.get(column_of("tuned"), "") for row in known]
    if any(files) and (not all(files) or any(row.get(FIXED) for row in known)):
        return dataclasses.replace(run, cells={**run.row, column_of("tuned"): max(files), FIXED: "true"})
    return run


def _different_score(a: Run, b: Run) -> str:
    """The first score in which two rows of a run differ, "" when there is none; an earlier version had not all."""
    own = dict.fromkeys((name for name in a.row if name.startswith(OWN)), float)
    for name, kind in (COLUMNS["summary"] | own).items():
        x, y = (run.row.get(name, "") for run in (a, b))
        known = name not in (*LATER, *own) or all(name in run.row for run in (a, b))
        if kind is not str and known and x != y and _float(x) != _float(y):
            return f"{name} {x or 'missing'} and {y or 'missing'}"
    return ""


def _float(cell: str) -> float | str:
    try:
        return float(cell)
    except ValueError:
        return cell


def _rank(run: Run) -> tuple[int, bool]:
    # A copy elsewhere does not make a run of `segexp decide` one of a fixed number of seeds.
    return FINAL.index(run.state) if run.state in FINAL else len(FINAL), not run.row.get("look")
