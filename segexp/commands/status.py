"""`segexp status [DIR]`: the state of every run of a study, what went wrong, and when all will be finished."""

import argparse
import datetime
import json
import math
import os
import shlex
import shutil
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from segexp.commands import Parser
from segexp.errors import DONE, UsageError
from segexp.records.decision import LOCK, STANDINGS, read_decision
from segexp.records.formatting import duration, size, text_table
from segexp.records.plugins import kept_plugins, recorded_plugins
from segexp.records.process import lock_holder
from segexp.records.runs import STATES, Run, Study, progress_of, runs_in, shown_state, studies_in

CONTINUABLE = ("stale", "interrupted", "failed")
"""States that `segexp resume` continues."""

WIDE = 10**6
"""Width of tables: lines are not wrapped, so that names of directories can be copied."""

SHOWN_PENDING = 10
"""How many pending runs are listed; --json has them all."""

EPILOG = """\
DIR is an outputs folder with its studies, one study, or one run directory. Archived attempts (*.oldN) are not counted.
--watch ends when nothing is running or pending, or with Ctrl-C, both with exit code 0. If the output is not a terminal,
--watch prints once, at the end.

examples:
  segexp status                          all studies below outputs/
  segexp status outputs/nightly --watch
  segexp status outputs/nightly --json   folder, at, counts, eta_s, bytes, and studies: a list of study, path, counts,
                                         eta_s, bytes, set_aside, runs, dropped, refused and problems; pending runs have
                                         the state "not begun" there
"""


def parser() -> Parser:
    states = "\n".join(f"  {shown_state(state):12} {meaning}" for state, meaning in STATES.items())
    parser = Parser("status", f"states:\n{states}\n\n{EPILOG}")
    add = parser.add_argument
    add("folder", nargs="?", type=Path, default=Path("outputs"), metavar="DIR", help="default: outputs")
    add("--json", action="store_true", help="everything, as JSON")
    watch = "refresh until all runs are finished (default: every 5 seconds)"
    add("--watch", nargs="?", type=_seconds, const=5.0, metavar="SECONDS", help=watch)
    return parser


def command(words: Sequence[str]) -> int:
    options = parser().parse_args(list(words))
    status = status_of(options.folder)
    if options.watch is not None:
        drawn = sys.stdout.isatty() and not options.json
        try:
            while not is_over(status):
                if drawn:
                    _draw(as_text(status, options.folder))
                time.sleep(options.watch)
                status = status_of(options.folder)
        except KeyboardInterrupt:
            return DONE  # only the watching ends
        if drawn:
            _draw("")
    print(json.dumps(status, indent=1) if options.json else as_text(status, options.folder))
    return DONE


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.1 <= seconds <= 86400:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of seconds from 0.1 to 86400 (DIR goes before it)")
    return seconds


def status_of(folder: Path) -> dict[str, Any]:
    """The state of the studies of a folder, as `segexp status --json` prints it.

    folder; at (ISO time); counts (state -> runs); eta_s (seconds until all runs are finished, null when unknown or
    nothing is running); bytes; studies, each with

    - study, path, counts, eta_s, bytes, set_aside (archived attempts, *.oldN)
    - runs: run_id, directory, state, reason (of failed, diverged, unreadable), overrides (of its sweep, or null),
      epoch (finished ones), epochs (planned), val_dice_best, val_dice_last, seconds (so far), eta_s, phase (what a
      running run does, or null), host, pid (of the last process that wrote it), owner (the lock holder, or null),
      started, finished, plugins (that it uses -> what names each again: the copy that the run keeps, or null)
    - dropped, refused: overrides and reason of combinations that sweeps left out; problems: files that cannot be read
    - decision (of `segexp decide`, else null): command, looks (taken), of (planned), owner (the process that decides),
      comparisons (those of the last look: block, candidate, reference, n, verdict, state ...)

    Raises UsageError when the folder does not exist or holds no run.
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
    runs = [_of_run(run) for run in runs_in(study)]
    decision, problems = None, list(study.problems)
    try:
        if found := read_decision(study.path):
            looks = [int(look["look"]) for look in found.looks]
            decision = {
                "command": found.design["command"],
                "looks": looks[-1] if looks else 0,
                "of": len(found.design["looks"]),
                "owner": lock_holder(study.path / LOCK) or None,
                "comparisons": found.looks[-1]["comparisons"] if looks else [],
            }
    except UsageError as error:
        problems.append(str(error))
    is_one_run = len(study.names) == 1 and not study.planned
    return {
        "study": study.name,
        "path": str(study.path),
        "counts": _in_order(Counter(run["state"] for run in runs)),
        "eta_s": _eta(runs),
        "bytes": size_of(study.path / study.names[0] if is_one_run else study.path),
        "set_aside": study.archived,
        "runs": runs,
        "dropped": [{"overrides": overrides, "reason": reason} for overrides, reason in study.dropped],
        "refused": [{"overrides": overrides, "reason": reason} for overrides, reason in study.refused],
        "problems": problems,
        "decision": decision,
    }


def _in_order(counts: Mapping[str, int]) -> dict[str, int]:
    return {state: counts[state] for state in STATES if counts.get(state)}


def _of_run(run: Run) -> dict[str, Any]:
    record = run.record
    return {
        "run_id": run.run_id,
        "directory": run.path.name,
        "state": run.state,
        "reason": run.reason if run.state in ("failed", "diverged", "unreadable") else "",
        "overrides": run.planned.overrides if run.planned else None,
        **progress_of(run),
        "host": record.get("host"),
        "pid": record.get("pid"),
        "owner": run.owner or None,
        "started": record.get("started"),
        "finished": record.get("finished"),
        "plugins": _plugins(run),
    }


def _plugins(run: Run) -> dict[str, str | None]:
    return dict.fromkeys(recorded_plugins(run.plugins)) | kept_plugins(run.plugins, run.path)


def _eta(runs: list[dict[str, Any]]) -> float | None:
    """Seconds until all runs are finished: what the running ones still need, plus the mean duration of a run for every
    other unfinished one, shared among as many as are running now. None when nothing is running or nothing is known."""
    running = [run for run in runs if run["state"] == "running"]
    waiting = sum(run["state"] in ("not begun", "interrupted", "stale") for run in runs)
    whole = [run["seconds"] for run in runs if run["state"] == "done" and run["seconds"] is not None]
    if not whole:  # none is done: what the running ones will have taken
        whole = [run["seconds"] + run["eta_s"] for run in running if run["eta_s"] is not None]
    if not running or not whole:
        return None
    mean = math.fsum(whole) / len(whole)
    # A run that has trained all epochs only scores.
    left = [mean * (run["epoch"] != run["epochs"]) if run["eta_s"] is None else run["eta_s"] for run in running]
    longest = max((sum(left) + waiting * mean) / len(running), *left)
    return longest if longest >= 1 else None


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder. What vanishes meanwhile or cannot be read is not counted."""
    total, folders = 0, [str(folder)]
    while folders:
        try:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    else:
                        total += entry.stat(follow_symlinks=False).st_size
        except OSError:
            continue
    return total


def is_over(status: Mapping[str, Any]) -> bool:
    """Whether nothing is running or pending."""
    return not status["counts"].keys() & {"running", "not begun"}


def _draw(text: str) -> None:
    """Replace what the terminal shows by the text, as much of it as there are lines."""
    lines, height = text.splitlines(), shutil.get_terminal_size().lines - 1
    if len(lines) > height:
        lines = [*lines[: height - 1], f"... {len(lines) - height + 1} more lines"]
    print("\x1b[H\x1b[2J", end="", file=getattr(sys.stdout, "raw", sys.stdout))
    print("\n".join(lines), end="\n" if lines else "", flush=True)


def as_text(status: Mapping[str, Any], folder: Path) -> str:
    """The status for the terminal: a line per study, the unfinished runs, what went wrong, and what to do."""
    blocks = [_counts(status)]
    for study in status["studies"]:
        runs = study["runs"]
        title = f"{study['study']}: " if len(status["studies"]) > 1 else ""
        pending = [run for run in runs if run["state"] == "not begun"]
        shown = [run for run in runs if run["state"] in ("running", *CONTINUABLE)]
        shown = sorted(shown, key=lambda run: list(STATES).index(run["state"])) + pending[:SHOWN_PENDING]
        if shown:
            blocks.append(f"{title}unfinished\n{text_table([_unfinished(run) for run in shown], WIDE)}")
        if len(pending) > SHOWN_PENDING:
            blocks.append(f"and {len(pending) - SHOWN_PENDING} more pending (--json lists them)")
        wrong = [run for run in runs if run["reason"]]
        if wrong:
            rows = [{"state": run["state"], "run": run["directory"], "reason": run["reason"]} for run in wrong]
            blocks.append(f"{title}went wrong\n{text_table(rows, WIDE)}")
        if study["refused"]:
            blocks.append(f"{title}refused by sweeps: {len(study['refused'])}\n{text_table(study['refused'], WIDE)}")
        if study["dropped"]:
            blocks.append(f"{title}left out by sweeps: {len(study['dropped'])} (--json lists the reasons)")
        blocks += [f"{title}{problem}" for problem in study["problems"]]
        if decision := study["decision"]:
            blocks.append(title + _decided(decision))
    counts = {state: status["counts"].get(state, 0) for state in CONTINUABLE}
    named = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    cure = [f"{named}: `segexp resume {shlex.quote(str(folder))}{_flags(status)}` continues them"] if named else []
    return "\n\n".join([*blocks, *cure])


def _flags(status: Mapping[str, Any]) -> str:
    """The plugins of unfinished runs as words for a command line; a pending run's may have a copy in another run."""
    runs = [run for study in status["studies"] for run in study["runs"]]
    copies = {name: path for run in runs for name, path in run["plugins"].items() if path}
    needed = {name: None for run in runs if run["state"] in ("not begun", *CONTINUABLE) for name in run["plugins"]}
    return "".join(f" --plugin {shlex.quote(copies.get(name, f'PATH/{name}.py'))}" for name in needed)


def _decided(decision: Mapping[str, Any]) -> str:
    """The looks of `segexp decide`, and who takes the next."""
    counts = Counter(
        c["verdict"] if c["state"] == "decided" else STANDINGS[c["state"]] for c in decision["comparisons"]
    )
    said = [f"{decision['looks']} of {decision['of']} looks taken", *(f"{n} {what}" for what, n in counts.items())]
    if decision["owner"]:
        said.append(f"{decision['owner'].partition(' on ')[0]} is at work")
    elif not counts or (counts["open"] and decision["looks"] < decision["of"]):
        said.append(f"to continue: {shlex.join(['segexp', *decision['command'][1:]])}")
    return f"decision: {', '.join(said)}"


def _counts(status: Mapping[str, Any]) -> str:
    rows = []
    archived = sum(study["set_aside"] for study in status["studies"])
    for study in status["studies"]:
        counts = {shown_state(state): study["counts"].get(state, 0) for state in status["counts"]}
        row = {"study": study["study"], "runs": sum(counts.values()), **counts, "disk": size(study["bytes"])}
        row |= {"archived": study["set_aside"]} if archived else {}
        rows.append(row | ({"ends in": duration(study["eta_s"])} if status["eta_s"] is not None else {}))
    total, over = sum(status["counts"].values()), sum(status["counts"].get(s, 0) for s in ("done", "diverged"))
    line = f"{over} of {total} runs are finished"
    if status["eta_s"] is not None:
        line += f", all in about {duration(status['eta_s'])} at the present pace"
    return f"{text_table(rows, WIDE)}\n\n{line}; {size(status['bytes'])} on disk in {status['folder']}"


def _unfinished(run: Mapping[str, Any]) -> dict[str, Any]:
    def dice(key: str) -> str:
        return "-" if run[key] is None else f"{run[key]:.3f}"

    return {
        "state": shown_state(run["state"]),
        "epoch": f"{'-' if run['epoch'] is None else run['epoch']}/{run['epochs'] or '-'}",
        "phase": run["phase"] or "-",
        "val dice": f"{dice('val_dice_last')} (best {dice('val_dice_best')})" if run["epoch"] else "-",
        "ends in": duration(run["eta_s"]),
        "process": f"{run['pid']} on {run['host']}" if run["pid"] else "-",
        "run": run["directory"],
    }
