"""How studies stand: counts, progress of every run, when all will be over, what went wrong, what lies on the disk."""

import datetime
import os
import statistics
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segexp.errors import UsageError
from segexp.records import text_rows
from segexp.study import STATES, Run, Study, runs_in, studies_in

CONTINUABLE = ("stale", "interrupted", "failed")
"""States that `segexp resume` takes up."""


def status_of(folder: Path) -> dict[str, Any]:
    """How the studies of a folder stand, as `segexp status --json` prints it.

    folder; at (ISO time); counts (state -> runs); eta_s (seconds until nothing remains to be done, null when unknown
    or nothing is running); bytes; studies, each with

    - study, path, counts, eta_s, bytes, set_aside (earlier attempts kept as *.oldN)
    - runs: run_id, directory, state, reason (of failed, diverged, unreadable), overrides (of its sweep, or null),
      epoch (finished ones), epochs (to be done), val_dice_best, val_dice_last, seconds (so far), eta_s, host, pid
      (of the process that wrote it last), owner (the living one, or null), started, finished
    - dropped, refused: overrides and reason of combinations that sweeps left out; problems: files that cannot be read

    Raises UsageError when there is no such folder or nothing in it.
    """
    studies = [_of_study(study) for study in studies_in(folder)]
    counts: Counter[str] = Counter()
    for study in studies:
        counts.update(study["counts"])
    waits = [study["eta_s"] for study in studies if study["eta_s"] is not None]
    return {
        "folder": os.path.abspath(folder),
        "at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "counts": _in_order(counts),
        "eta_s": max(waits, default=None),
        "bytes": sum(study["bytes"] for study in studies),
        "studies": studies,
    }


def _of_study(study: Study) -> dict[str, Any]:
    runs = [progress_of(run) for run in runs_in(study)]
    counts = Counter(run["state"] for run in runs)
    is_one_run = len(study.names) == 1 and not study.planned
    return {
        "study": study.name,
        "path": str(study.path),
        "counts": _in_order(counts),
        "eta_s": _eta(runs),
        "bytes": size_of(study.path / study.names[0] if is_one_run else study.path),
        "set_aside": study.set_aside,
        "runs": runs,
        "dropped": [{"overrides": overrides, "reason": reason} for overrides, reason in study.dropped],
        "refused": [{"overrides": overrides, "reason": reason} for overrides, reason in study.refused],
        "problems": list(study.problems),
    }


def _in_order(counts: Mapping[str, int]) -> dict[str, int]:
    return {state: counts[state] for state in STATES if counts.get(state)}


def progress_of(run: Run) -> dict[str, Any]:
    """How a run stands and how far it is, as `status_of` has it among ``runs``."""
    record, config = run.record, run.record.get("config", {})
    epochs = config.get("trainer.epochs")
    if not config and run.planned:
        epochs = run.planned.config.get("trainer", {}).get("epochs")
    told: dict[str, Any] = {
        "run_id": run.run_id,
        "directory": run.path.name,
        "state": run.state,
        "reason": run.reason if run.state in ("failed", "diverged", "unreadable") else "",
        "overrides": run.planned.overrides if run.planned else None,
        "epoch": None,
        "epochs": epochs,
        "val_dice_best": None,
        "val_dice_last": None,
        "seconds": None,
        "eta_s": None,
        "host": record.get("host"),
        "pid": record.get("pid"),
        "owner": run.owner or None,
        "started": record.get("started"),
        "finished": record.get("finished"),
    }
    if run.state == "done":
        summary = record.get("summary", {})
        # The sum over attempts, where a run was continued.
        seconds = record.get("seconds") or _between(record.get("started"), record.get("finished"))
        return told | {
            "epoch": summary.get("epochs"),
            "val_dice_best": summary.get("val_dice"),
            "seconds": seconds,
        }
    return told | _progress(run, epochs) if record else told


def _progress(run: Run, epochs: int | None) -> dict[str, Any]:
    """How far a run is that is not done. The tables come with the first epoch; what cannot be read is not known."""
    try:
        rows = [row for row in text_rows(run.path / "epochs.csv", "epochs") if row["split"] == "val"]
        spent = [float(row["seconds"]) for row in text_rows(run.path / "timings.csv", "timings")]
        epoch = int(rows[-1]["epoch"]) if rows else 0
        dice = [float(row["dice"]) for row in rows if row["dice"]]
    except (UsageError, ValueError):
        return {"epoch": None if run.state == "diverged" else 0}
    left = statistics.fmean(spent) * max(epochs - epoch, 0) if spent and epochs else None
    return {
        "epoch": epoch,
        "val_dice_best": max(dice, default=None),
        "val_dice_last": dice[-1] if dice else None,
        "seconds": sum(spent),
        "eta_s": left if run.state == "running" else None,
    }


def _between(started: Any, finished: Any) -> float | None:
    try:
        return (datetime.datetime.fromisoformat(finished) - datetime.datetime.fromisoformat(started)).total_seconds()
    except (TypeError, ValueError):
        return None


def _eta(runs: list[dict[str, Any]]) -> float | None:
    """Seconds until nothing remains: what the running ones still need, and the mean of a run for every other one that
    is not over, shared among as many as are running now. None when nothing is running or nothing is known yet."""
    running = [run for run in runs if run["state"] == "running"]
    waiting = sum(run["state"] in ("not begun", "interrupted", "stale") for run in runs)
    whole = [run["seconds"] for run in runs if run["state"] == "done" and run["seconds"] is not None]
    if not whole:  # none is done: what the running ones will have taken
        whole = [run["seconds"] + run["eta_s"] for run in running if run["eta_s"] is not None]
    if not running or not whole:
        return None
    mean = statistics.fmean(whole)
    left = [mean if run["eta_s"] is None else run["eta_s"] for run in running]
    return max((sum(left) + waiting * mean) / len(running), *left)


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder. What vanishes while it is looked at counts nothing."""
    total, folders = 0, [str(folder)]
    while folders:
        try:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    else:
                        total += entry.stat(follow_symlinks=False).st_size
        except FileNotFoundError:
            continue
    return total


def is_over(status: Mapping[str, Any]) -> bool:
    """Whether nothing is running and nothing is waiting for its turn."""
    return not status["counts"].keys() & {"running", "not begun"}
