"""`segexp status [DIR]`: how the runs of a study stand, what went wrong, and when all will be over."""

import argparse
import datetime
import os
import shlex
import statistics
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from segexp.commands import Parser
from segexp.errors import DONE, UsageError
from segexp.records import text_rows
from segexp.records.formatting import duration, size
from segexp.records.runs import STATES, Run, Study, runs_in, studies_in

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


SHOWN_WAITING = 10
"""How many runs that are not begun are listed; --json has them all."""

EPILOG = """\
DIR is an outputs folder with its studies, one study, or one run directory. Earlier attempts that were set aside
(*.oldN) are not counted. --watch ends when nothing is running and nothing waits, or with Ctrl-C, both with exit code 0;
where the output is no terminal it prints once, at the end.

examples:
  segexp status                          all studies below outputs/
  segexp status outputs/nightly --watch
  segexp status outputs/nightly --json   folder, at, counts, eta_s, bytes, and studies: a list of study, path, counts,
                                         eta_s, bytes, set_aside, runs, dropped, refused and problems
"""


def parser() -> Parser:
    from segexp.records.runs import STATES

    states = "\n".join(f"  {state:12} {meaning}" for state, meaning in STATES.items())
    parser = Parser("status", f"states:\n{states}\n\n{EPILOG}")
    parser.add_argument("folder", nargs="?", type=Path, default=Path("outputs"), metavar="DIR", help="default: outputs")
    parser.add_argument("--json", action="store_true", help="everything, as JSON")
    parser.add_argument(
        "--watch",
        nargs="?",
        type=_seconds,
        const=5.0,
        metavar="SECONDS",
        help="draw anew until all is over (default 5)",
    )
    return parser


def command(words: Sequence[str]) -> int:
    """`segexp status [DIR]`."""
    options = parser().parse_args(list(words))

    import json

    def text(status: Mapping[str, Any]) -> str:
        return json.dumps(status, indent=1) if options.json else as_text(status, options.folder)

    status = status_of(options.folder)
    if options.watch is not None:
        # Where nobody looks, only the end is worth a line.
        drawn = sys.stdout.isatty() and not options.json
        try:
            while not is_over(status):
                if drawn:
                    _draw(as_text(status, options.folder))
                time.sleep(options.watch)
                status = status_of(options.folder)
        except KeyboardInterrupt:
            return DONE  # looking on is over, nothing else was stopped
        if drawn:
            _draw("")
    print(text(status))
    return DONE


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.1 <= seconds <= 86400:
        raise argparse.ArgumentTypeError(
            f"'{text}' is no number of seconds from 0.1 on; the folder stands before --watch"
        )
    return seconds


def _draw(text: str) -> None:
    """Put the text in place of what the terminal shows, as much of it as there are lines."""
    import shutil

    lines, height = text.splitlines(), shutil.get_terminal_size().lines - 1
    if len(lines) > height:
        lines = [*lines[: height - 1], f"... {len(lines) - height + 1} more lines"]
    print("\x1b[H\x1b[2J" + "\n".join(lines), end="\n" if lines else "", flush=True)


def as_text(status: Mapping[str, Any], folder: Path) -> str:
    """The status for the terminal: a line per study, the runs that are not over, what went wrong."""
    from segexp.records.runs import STATES

    blocks = [_counts(status)]
    for study in status["studies"]:
        runs = study["runs"]
        title = f"{study['study']}: " if len(status["studies"]) > 1 else ""
        waiting = [run for run in runs if run["state"] == "not begun"]
        shown = [run for run in runs if run["state"] in ("running", "stale", "interrupted", "failed")]
        shown = sorted(shown, key=lambda run: list(STATES).index(run["state"])) + waiting[:SHOWN_WAITING]
        if shown:
            blocks.append(f"{title}not over\n{_table([_unfinished(run) for run in shown])}")
        if len(waiting) > SHOWN_WAITING:
            blocks.append(f"and {len(waiting) - SHOWN_WAITING} more that are not begun (--json lists them)")
        wrong = [run for run in runs if run["reason"]]
        if wrong:
            rows = [{"state": run["state"], "run": run["directory"], "reason": run["reason"]} for run in wrong]
            blocks.append(f"{title}went wrong\n{_table(rows)}")
        if study["refused"]:
            blocks.append(f"{title}refused by sweeps: {len(study['refused'])}\n{_table(study['refused'])}")
        if study["dropped"]:
            blocks.append(f"{title}left out by sweeps: {len(study['dropped'])} (--json says why)")
        blocks += [f"{title}{problem}" for problem in study["problems"]]
    return "\n\n".join([*blocks, *_cure(status, folder)])


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Lines are not wrapped: names of directories are there to be copied."""
    from segexp.records.formatting import text_table

    return text_table(rows, width=10**6)


def _counts(status: Mapping[str, Any]) -> str:
    rows = []
    for study in status["studies"]:
        counts = {state: study["counts"].get(state, 0) for state in status["counts"]}
        row = {"study": study["study"], "runs": sum(counts.values()), **counts, "disk": size(study["bytes"])}
        aside = sum(s["set_aside"] for s in status["studies"])
        row |= {"set aside": study["set_aside"]} if aside else {}
        rows.append(row | ({"ends in": duration(study["eta_s"])} if status["eta_s"] is not None else {}))
    total, over = sum(status["counts"].values()), sum(status["counts"].get(s, 0) for s in ("done", "diverged"))
    line = f"{over} of {total} runs are over"
    if status["eta_s"] is not None:
        line += f", all in about {duration(status['eta_s'])} at the present pace"
    return f"{_table(rows)}\n\n{line}; {size(status['bytes'])} on disk in {status['folder']}"


def _unfinished(run: Mapping[str, Any]) -> dict[str, Any]:
    def dice(key: str) -> str:
        return "-" if run[key] is None else f"{run[key]:.3f}"

    return {
        "state": run["state"],
        "epoch": f"{'-' if run['epoch'] is None else run['epoch']}/{run['epochs'] or '-'}",
        "val dice": f"{dice('val_dice_last')} (best {dice('val_dice_best')})" if run["epoch"] else "-",
        "ends in": duration(run["eta_s"]),
        "process": f"{run['pid']} on {run['host']}" if run["pid"] else "-",
        "run": run["directory"],
    }


def _cure(status: Mapping[str, Any], folder: Path) -> list[str]:
    """What takes up the runs that nobody is at."""

    counts = {state: status["counts"].get(state, 0) for state in CONTINUABLE}
    named = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    return [f"{named}: `segexp resume {shlex.quote(str(folder))}` continues them"] if named else []
