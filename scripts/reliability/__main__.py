"""`python -m reliability`: carry out cases that are not done yet, keep how each ended, write the page of the docs."""

import argparse
import collections
import contextlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tqdm import tqdm

from reliability import FAULTS, HELD, FaultClass, generator, load
from reliability.guards import GUARDS, VARIABLE, break_named

FOLDER = Path(__file__).parent
NOTES, RESULTS = FOLDER / "notes.md", FOLDER / "results.json"
PAGE = FOLDER.parents[1] / "docs" / "reliability.md"


UNTRIED: dict[str, Any] = {"tried": "", "endings": {}, "faults": {}, "commits": []}
"""What results.json has of a class without cases."""


def carried_out(name: str, kept: Path) -> dict[int, dict[str, str]]:
    """Case -> how it ended, of the lines that are whole: the last may be cut where the campaign was killed."""
    found = {}
    for line in kept.read_text(encoding="utf-8").splitlines() if kept.exists() else ():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if row["class"] == name:
            found[int(row["case"])] = row
    return found


def carry_out(one: FaultClass, cases: list[int], kept: Path) -> None:
    """Carry out the cases and add a line for each to the file."""
    at, kept = commit(), kept.resolve()
    with tempfile.TemporaryDirectory(prefix="segexp-reliability-") as folder:
        prepared = Path(folder) / "prepared"
        prepared.mkdir()
        one.prepare(prepared)
        for case in tqdm(cases, desc=one.name, unit="case", disable=None):
            # Some commands write to the current folder, when nothing names another one.
            with tempfile.TemporaryDirectory(dir=folder) as own, contextlib.chdir(own):
                ending = one.carry_out(generator(one.name, case), prepared, Path(own))
            row = {"class": one.name, "case": case, "commit": at, **vars(ending)}
            with kept.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(row) + "\n")
            if ending.how in FAULTS:
                print(f"{one.name} {case}: {ending.how}: {ending.what}\n{ending.seen}\n", flush=True)


def numbers(ranges: str) -> set[int]:
    """Of `ranges`."""
    ends = [part.split("-") for part in ranges.split(",") if part]
    return {number for part in ends for number in range(int(part[0]), int(part[-1]) + 1)}


def ranges(found: set[int]) -> str:
    """Numbers as text, 0-4,7 say."""
    runs = itertools.groupby(enumerate(sorted(found)), lambda at: at[1] - at[0])
    ends = [[number for _, number in run] for _, run in runs]
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in ends)


def counted(known: dict[str, FaultClass], kept: Path, before: dict[str, Any]) -> dict[str, Any]:
    """Class -> which cases were tried, endings of those that held, faults, commits: as before and with those in the
    file. A case counts as it first held; while it shows a fault, it is one of the faults as well."""
    found = {}
    for name in known:
        of = before.get(name, UNTRIED)
        tried, ends, rows = numbers(of["tried"]), collections.Counter(of["endings"]), carried_out(name, kept)
        faults = {case: how for case, how in of["faults"].items() if int(case) not in rows}
        for case, row in sorted(rows.items()):
            if row["how"] in FAULTS:
                faults[str(case)] = row["how"]
            elif case not in tried:
                tried.add(case)
                ends[row["how"]] += 1
        commits = sorted({*of["commits"], *(row.get("commit", "") for row in rows.values())} - {""})
        found[name] = {
            "tried": ranges(tried),
            "endings": dict(sorted(ends.items())),
            "faults": faults,
            "commits": commits,
        }
    return found


def page(known: dict[str, FaultClass], results: dict[str, Any]) -> str:
    """docs/reliability.md."""
    rows = [f"| class | what is done | tried | of | {' | '.join(HELD)} | faults |", "|" + "---|" * (5 + len(HELD))]
    for name, one in known.items():
        of = results.get(name, UNTRIED)
        ends = [str(of["endings"].get(how, 0)) for how in HELD]
        count = len(numbers(of["tried"]) | {int(case) for case in of["faults"]})
        faults = ", ".join(f"{how} {case}" for case, how in of["faults"].items()) or "0"
        rows.append(f"| {name} | {one.title} | {count:,} | {one.cases:,} | {' | '.join(ends)} | {faults} |")
    commits = ", ".join(sorted({commit for of in results.values() for commit in of["commits"]}))
    made = f"Tried at commits {commits} (cases 0, 1, 2 ... of each class; a number repeats its case)."
    return NOTES.read_text(encoding="utf-8").replace("TABLE", "\n".join([*rows, "", made]))


def commit() -> str:
    """The checkout's, with a + where it is changed; "" without git."""
    words = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--abbrev=10", "--dirty=+", "--exclude=*"]
    found = subprocess.run(words, capture_output=True, text=True, check=False)
    return found.stdout.strip()


def main(words: list[str]) -> int:
    known = load()
    parser = argparse.ArgumentParser(prog="python -m reliability", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="CLASS", help=f"which (default: all): {', '.join(known)}")
    parser.add_argument(
        "--cases",
        type=int,
        metavar="N",
        help=f"cases 0 to N - 1 (default: of the long form, those that {RESULTS.name} has not)",
    )
    parser.add_argument("--only", type=int, nargs="+", metavar="CASE", help="these cases, whether or not they are done")
    parser.add_argument("--kept", type=Path, default=Path("outputs/reliability.jsonl"), help="where endings are kept")
    parser.add_argument("--page", action="store_true", help="only write docs/reliability.md, with what is kept")
    parser.add_argument("--broken", choices=GUARDS, metavar="GUARD", help=f"without a guard: {', '.join(GUARDS)}")
    given = parser.parse_args(words)
    if unknown := set(given.names) - set(known):
        parser.error(f"no class {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    before = json.loads(RESULTS.read_text(encoding="utf-8"))
    if given.page:
        results = counted(known, given.kept, before)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        PAGE.write_text(page(known, results), encoding="utf-8")
        return 0
    if given.broken:
        os.environ[VARIABLE] = given.broken
        break_named()
    given.kept.parent.mkdir(parents=True, exist_ok=True)
    faults = 0
    for name in given.names or known:
        one = known[name]
        done = {*carried_out(name, given.kept), *(() if given.cases else numbers(before.get(name, UNTRIED)["tried"]))}
        wanted = given.only or [case for case in range(given.cases or one.cases) if case not in done]
        carry_out(one, wanted, given.kept)
        ends = collections.Counter(row["how"] for row in carried_out(name, given.kept).values())
        faults += sum(ends[how] for how in FAULTS)
        counts = ", ".join(f"{how} {ends[how]}" for how in (*HELD, *FAULTS) if ends[how])
        print(f"{name:12} {sum(ends.values()):6} cases: {counts}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
