"""What `segexp train -m ... --dry-run` says: arms, runs that are over, time and disk of the others."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segexp.errors import DONE, FAILED
from segexp.records.formatting import duration, size

if TYPE_CHECKING:
    from segexp.config import LocalOptions
    from segexp.sweep.estimate import Estimate
    from segexp.sweep.local import Slots
    from segexp.sweep.plan import Plan

MOST_ROWS = 30
"""Rows that a table of arms or of kinds of runs shows."""


def foresee(plan: "Plan", options: "LocalOptions | None") -> int:
    """Print what the sweep is and what it would cost, and write nothing; returns the exit code.

    options: of the launcher of this machine; None where another one is chosen.
    """
    from segexp.sweep.estimate import already_over, arms_of, estimate
    from segexp.sweep.local import slots_of

    arms = arms_of(plan.jobs)
    print(f"\n{len(arms)} arm{'s' * (len(arms) > 1)}:")
    _table(arms)
    for study in dict.fromkeys(str(job.run_dir.parent) for job in plan.jobs):
        print(f"study: {study}")
    over, left, problems = already_over(plan.jobs)
    ended = f" ({', '.join(f'{n} {status}' for status, n in over.items())})" if over else ""
    print(f"{over.total()} of {len(plan.jobs)} runs are over already{ended}, {len(left)} to do", flush=True)
    if left:
        devices = {job.prepared.config.trainer.device for job in left}
        slots = None if options is None else slots_of(options, any_gpu=devices != {"cpu"})
        found = estimate(left, slots)
        problems += found.problems
        patience = any(job.prepared.config.trainer.patience is not None for job in left)
        _tell(found, slots, patience, plan.jobs[0].run_dir)
    for problem in problems:
        print(f"will fail: {problem}")
    return FAILED if problems or plan.refused else DONE


def _tell(found: "Estimate", slots: "Slots | None", patience: bool, run_dir: Path) -> None:
    if found.rows:
        print("\nestimated from a few timed steps:")
        _table(
            [
                {
                    "network": row["network"],
                    "hidden": row["hidden_activation"],
                    "dataset": row["dataset"],
                    "parameters": f"{row['parameters']:,}",
                    "device": row["device"],
                    "step": f"{1000 * row['step_s']:.0f} ms",
                    "runs": row["runs"],
                    "a run": duration(row["run_s"]),
                    "disk of a run": size(round(row["run_bytes"])),
                }
                for row in found.rows
            ]
        )
        most = "at most " if patience else "about "
        if found.wall_s is None:
            print(f"time: {most}{duration(found.seconds)} of machine time in all, a run as on this machine; how many")
            print("  run at once is the launcher's business")
        else:
            print(f"time: {most}{duration(found.wall_s)} on this machine, {slots}")
        if patience:
            print("  trainer.patience may end runs earlier, which cannot be foreseen")
        free = shutil.disk_usage(next(p for p in run_dir.absolute().parents if p.exists())).free
        print(f"disk: about {size(round(found.n_bytes))}, of {size(free)} free")
        if found.n_bytes > free:
            print("warning: that is more than there is")
    for note in found.notes:
        print(f"note: {note}")


def _table(rows: "list[dict[str, Any]]") -> None:
    from segexp.records.formatting import text_table

    print(text_table(rows[:MOST_ROWS], width=160))
    if len(rows) > MOST_ROWS:
        print(f"... and {len(rows) - MOST_ROWS} more")
