"""What a sweep says before its first run and after its last."""

import math
import shlex
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from segexp.errors import DONE, FAILED, INTERRUPTED, REFUSED

if TYPE_CHECKING:
    from segexp.sweep.plan import LeftOut, Plan
    from segexp.sweep.sweep import Ended

MOST_ROWS = 60
"""Runs that the table of a sweep lists; of larger sweeps only the failures are told, and counts."""


def tell_plan(plan: "Plan") -> None:
    """How many runs there will be, and what is left out of them."""
    left = "".join(f", {len(these)} {what}" for these, what in _left_out(plan) if these)
    print(f"{pluralize(len(plan.jobs))}{left}")
    for these, what in _left_out(plan):
        alike: dict[str, list[str]] = {}
        for one in these:
            # Which names would fit is what a single run needs to know; here they are simply left out.
            alike.setdefault(one.reason.split("; ")[0] if these is plan.dropped else one.reason, []).append(one.label)
        for reason, labels in alike.items():
            where = labels[0] if len(labels) == 1 else pluralize(len(labels))
            print(f"  {what}: {where}: {reason}")
    for line in [*(f"note: {note}" for note in plan.notes), *(f"warning: {w}" for w in plan.warnings)]:
        print(line, flush=True)


def pluralize(number: int) -> str:
    """A number of runs."""
    return f"{number} run{'s' * (number != 1)}"


def _left_out(plan: "Plan") -> "list[tuple[list[LeftOut], str]]":
    return [(plan.dropped, "left out"), (plan.copies, "there twice"), (plan.refused, "refused")]


def report(plan: "Plan", ended: "Sequence[Ended]", waited: bool = True) -> int:
    """The table of a sweep, its failures last; returns the exit code."""
    from segexp.records.formatting import text_table

    counts = Counter(one.status for one in ended)
    if len(ended) <= MOST_ROWS:
        print()
        print(
            text_table(
                [
                    {
                        "run": one.label,
                        "status": one.status + (" before" if one.before else ""),
                        "test dice": "" if one.dice is None or math.isnan(one.dice) else f"{one.dice:.4f}",
                        "directory": one.run_dir.name,
                    }
                    for one in ended
                ],
                width=140,
            )
        )
    for study in dict.fromkeys(str(one.run_dir.parent) for one in ended):
        print(f"study: {study}")
    print(", ".join(f"{n} {status}" for status, n in counts.items()) + _refused_count(plan))
    failures = [
        {"run": one.label, "status": one.status, "reason": one.reason, "directory": str(one.run_dir)}
        for one in ended
        if one.status not in ("done", "submitted", "not begun") or one.stopped
    ]
    refused = [{"run": one.label, "status": "refused", "reason": one.reason, "directory": ""} for one in plan.refused]
    if failures or refused:
        print("\nnot done:")
        # A line each, however long: to be searched, and its directory to be copied.
        print(text_table([*failures, *refused], width=100_000))
    if waited and (counts["interrupted"] or counts["not begun"]):
        studies = dict.fromkeys(shlex.quote(str(one.run_dir.parent)) for one in ended if one.status != "done")
        print("\nfinished epochs are kept; the same line goes on, or:")
        for study in studies:
            print(f"  segexp resume {study}")
    if counts["failed"] or counts["diverged"] or plan.refused:
        return FAILED if counts else REFUSED
    if counts["interrupted"] or counts["not begun"] or any(one.stopped for one in ended):
        return INTERRUPTED
    # Somebody else is at what is still running; a script must not take it for done.
    return FAILED if counts["running"] and waited else DONE


def _refused_count(plan: "Plan") -> str:
    return f", {len(plan.refused)} refused" if plan.refused else ""
