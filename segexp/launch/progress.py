"""What a sweep on this machine shows while it goes on: runs done and failed, the time left, and each run at work."""

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from segexp.errors import UsageError
from segexp.launch.plan import Job
from segexp.launch.pool import Board
from segexp.ownership import living_owner
from segexp.records import read_run, text_rows
from segexp.tables import duration

if TYPE_CHECKING:
    from tqdm import tqdm

MOST_BARS = 8
"""Runs at work that are shown, a line each."""

REFRESH_SECONDS = 1.0

Score = Literal["dice", "val_dice"]
"""What is shown of a run as it ends: its test or its validation Dice, as summary.csv calls them."""


class LiveTable:
    """A line per run that has ended, for the log; on a terminal also a bar for the sweep and one per run at work."""

    def __init__(self, jobs: Mapping[str, Job], score: Score = "dice") -> None:
        from tqdm import tqdm

        self._jobs, self._score = jobs, score
        self._begun = time.monotonic()
        self._shown = 0.0
        self._told: set[str] = set()
        self._waited_for: set[str] = set()
        self._stopping = 0
        self._bars: dict[str, tqdm[Any]] = {}
        self._failed = 0
        self._sweep = tqdm(
            total=len(jobs),
            unit="run",
            disable=None,
            bar_format="sweep {percentage:3.0f}% |{bar:20}| {desc}",
            leave=False,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for bar in [*self._bars.values(), self._sweep]:
            bar.close()

    def show(self, board: Board) -> None:
        """Bring the lines up to date with the board."""
        for name in board.endings.keys() - self._told:
            self._told.add(name)
            self._tell_end(name, board)
        for name in board.busy:
            if name not in self._waited_for:
                self._waited_for.add(name)
                owner = living_owner(self._jobs[name].run_dir) or "another process"
                self._write(f"waiting for {self._jobs[name].label}: {owner} is at it")
        if board.stopping > self._stopping:
            self._stopping = board.stopping
            words = (
                "stopping: every run saves its epoch first; Ctrl-C again stops at once"
                if board.stopping == 1
                else "stopping at once; finished epochs are kept"
            )
            self._write(f"segexp: {words}", sys.stderr)
        if not self._sweep.disable and time.monotonic() > self._shown + REFRESH_SECONDS:
            self._shown = time.monotonic()
            self._refresh(board)

    def _tell_end(self, name: str, board: Board) -> None:
        ending, job = board.endings[name], self._jobs[name]
        status, reason, summary = _state(job.run_dir)
        dice = summary.get(self._score)
        if ending.crash or (ending.code != 0 and not board.stopping):
            status, reason = "failed", ending.crash or ending.reason
        elif board.stopping and status not in ("done", "diverged", "interrupted"):
            status, reason = "stopped", ""
        self._failed += status not in ("done", "interrupted", "stopped")
        label = "test dice" if self._score == "dice" else "val dice"
        score = f"  {label} {dice:.4f}" if dice is not None else ""
        why = f"  {reason}" if reason and status not in ("done", "interrupted", "stopped") else ""
        done = len(self._told)
        self._write(f"[{done}/{board.total}] {status}  {job.label}{score}{why}  ({duration(ending.seconds)})")

    def _refresh(self, board: Board) -> None:
        parts = 0.0
        names = {active.task.name for active in board.active}
        for gone in self._bars.keys() - names:
            self._bars.pop(gone).close()
        for active in board.active:
            job = self._jobs[active.task.name]
            total = job.prepared.config.trainer.epochs
            epoch, dice = epochs_done(job.run_dir)
            parts += epoch / total
            bar = self._bar(active.task.name, job, total)
            if bar is not None:
                bar.n = epoch
                bar.set_description_str("" if dice is None else f", val dice {dice:.3f}", refresh=False)
                bar.refresh()
        share = min((len(board.endings) + parts) / max(board.total, 1), 1.0)
        elapsed = time.monotonic() - self._begun
        left = f", {duration(elapsed * (1 - share) / share)} left" if share > 0.01 else ""
        failed = f", {self._failed} failed" if self._failed else ""
        elsewhere = f", {len(board.busy)} elsewhere" if board.busy else ""
        self._sweep.n = share * board.total
        ended = f"{len(board.endings)}/{board.total} ended{failed}"
        self._sweep.set_description_str(f"{ended}, {len(board.active)} running{elsewhere}{left}", refresh=False)
        self._sweep.refresh()

    def _bar(self, name: str, job: Job, total: int) -> "tqdm[Any] | None":
        from tqdm import tqdm

        if name not in self._bars:
            taken = {bar.pos for bar in self._bars.values()}
            if len(taken) == MOST_BARS:
                return None
            label = job.label[:60].replace("{", "{{").replace("}", "}}")
            form = f"  {{n_fmt}}/{{total_fmt}} epochs |{{bar:10}}| {label}{{desc}}"
            self._bars[name] = tqdm(total=total, leave=False, bar_format=form)
        return self._bars[name]

    def _write(self, line: str, file: Any = None) -> None:
        self._sweep.write(line, file=file or sys.stdout)
        (file or sys.stdout).flush()


def _state(run_dir: Path) -> tuple[str, str, dict[str, Any]]:
    """Status, one-line reason and summary of a run, from its record."""
    try:
        record = read_run(run_dir)
    except UsageError:
        return "failed", "", {}
    return str(record.get("status")), str(record.get("error", "")), record.get("summary", {})


def epochs_done(run_dir: Path) -> tuple[int, float | None]:
    """Finished epochs of a run and the validation Dice of the last one, None before the first."""
    try:
        rows = [row for row in text_rows(run_dir / "epochs.csv", "epochs") if row["split"] == "val"]
        return (int(rows[-1]["epoch"]), float(rows[-1]["dice"] or "nan")) if rows else (0, None)
    except (UsageError, ValueError):  # not there yet, or not readable just now: nothing to stop a sweep for
        return 0, None
