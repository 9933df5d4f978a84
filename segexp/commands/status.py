"""`segexp status [DIR]`: how the runs of a study stand, what went wrong, and when all will be over."""

import argparse
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from segexp.commands.shared import parser_of
from segexp.errors import DONE
from segexp.tables import duration, size

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


def command(words: Sequence[str]) -> int:
    """`segexp status [DIR]`."""
    from segexp.study import STATES

    states = "\n".join(f"  {state:12} {meaning}" for state, meaning in STATES.items())
    parser = parser_of("status", "How the runs of a study stand.", f"states:\n{states}\n\n{EPILOG}")
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
    options = parser.parse_args(list(words))

    import json

    from segexp.status import is_over, status_of

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
    from segexp.study import STATES

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
    from segexp.tables import text_table

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
    from segexp.status import CONTINUABLE

    counts = {state: status["counts"].get(state, 0) for state in CONTINUABLE}
    named = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    return [f"{named}: `segexp resume {shlex.quote(str(folder))}` continues them"] if named else []
