"""The record of a sequential decision: ``<study>/decision.json``, its design and each look, in order of time.

Nothing is ever changed in it: an entry is only added. The checksum of an entry covers all entries before it, so that an
edited, removed or reordered look is noticed. A study with this file is compared as it was looked at: a run counts from
the look that first used it, and each look spends its own share of alpha (`segexp.compare.sequential`).
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from segexp.errors import UsageError
from segexp.records import no_nan, write_json
from segexp.records.files import read_json, read_text
from segexp.records.owned import write_atomic
from segexp.records.runs import Run

FILE = "decision.json"

STANDINGS = {
    "open": "open",
    "untested": "without a test",
    "images": "not decidable on these images",
    "seeds": "not decidable with these seeds",
}
"""Where a comparison stands that is not decided, in words."""

LOCK = ".decide"
"""The folder of a study that holds the lock of the process that decides, and how many looks there are."""

NO_LOOK = "none"
"""In the column look: the study has a decision, and no look has used the run."""


@dataclass(frozen=True)
class Decision:
    """The design of a study's sequential decision and its looks.

    A look holds: look (1, 2, ...), share, share_within (parts of alpha for a difference and for equivalence), runs (the
    run_ids that it used first, or again if none is new), and what `segexp.sweep.decide` found.
    """

    path: Path
    design: Mapping[str, Any]
    looks: tuple[Mapping[str, Any], ...] = ()

    @property
    def used(self) -> set[str]:
        """Runs that looks have used."""
        return {run_id for look in self.looks for run_id in look["runs"]}

    def with_look(self, look: Mapping[str, Any]) -> "Decision":
        return replace(self, looks=(*self.looks, no_nan(look)))

    def at_look(self, run: Run) -> Run:
        """The run with its columns look, the first that used it, and look_share, look_share_within of the last."""
        used = [look for look in self.looks if run.run_id in look["runs"]]
        cells = {f"look_{key}": repr(float(used[-1][key])) for key in SHARES} if used else {}
        return replace(run, cells={**run.row, "look": str(used[0]["look"]) if used else NO_LOOK, **cells})


SHARES = ("share", "share_within")


def read_decision(study: Path, begins: bool = False) -> Decision | None:
    """The decision of a study, None where it has none. begins: it may be written next. Raises UsageError for a file
    that was edited, cut or removed."""
    path = study / FILE
    cure = f"{path} was edited, cut or removed: restore it, without it no p of this study is valid"
    counted = study / LOCK / "looks"
    taken = read_text(counted, inside=study) if counted.exists() else ""
    if not path.exists():
        if taken and (not begins or taken > "000"):
            raise UsageError(cure)
        return None
    entries = read_json(path, study)
    if not isinstance(entries, list) or not entries or not all(isinstance(one, dict) for one in entries):
        raise UsageError(cure)
    if [one.pop("sha256", None) for one in entries] != checksums(entries) or taken > f"{len(entries) - 1:03}":
        raise UsageError(cure)
    if not (entries[0].keys() >= _DESIGN and all(one.keys() >= _LOOK for one in entries[1:])):
        raise UsageError(cure)
    return Decision(path, entries[0], tuple(entries[1:]))


_DESIGN = {"alpha", "arms", "command", "comparisons", "found", "looks", "metric", "reference", "rope", *SHARES}
_LOOK = {"comparisons", "hours", "look", "runs", *SHARES}
"""Keys that no entry lacks."""


def write_decision(decision: Decision) -> None:
    """Write a decision that has one look more than before, or none yet. Raises UsageError for any other change."""
    known = read_decision(decision.path.parent, begins=True)
    if known and known.looks and (known.design, known.looks) != (no_nan(decision.design), decision.looks[:-1]):
        raise UsageError(f"{decision.path} has changed meanwhile: another `segexp decide` works on this study")
    entries = no_nan(decision.design), *decision.looks
    sums = checksums(entries)
    write_json(decision.path, [{**entry, "sha256": one} for entry, one in zip(entries, sums, strict=True)])
    counted = decision.path.parent / LOCK / "looks"
    counted.parent.mkdir(exist_ok=True)
    write_atomic(counted, f"{len(decision.looks):03}")


def checksums(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Of each entry and all before it."""
    sums = [""]
    for entry in entries:
        sums.append(hashlib.sha256((sums[-1] + json.dumps(entry, sort_keys=True)).encode()).hexdigest())
    return sums[1:]
