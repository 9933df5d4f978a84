"""`python -m reliability`: carry out cases that are not done yet, keep how each ended, print the table."""

import argparse
import collections
import json
import sys
import tempfile
from pathlib import Path

from tqdm import tqdm

from reliability import FAULTS, HELD, FaultClass, generator, load


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
    with tempfile.TemporaryDirectory(prefix="segexp-reliability-") as folder:
        prepared = Path(folder) / "prepared"
        prepared.mkdir()
        one.prepare(prepared)
        for case in tqdm(cases, desc=one.name, unit="case", disable=None):
            with tempfile.TemporaryDirectory(dir=folder) as own:
                ending = one.carry_out(generator(one.name, case), prepared, Path(own))
            row = {"class": one.name, "case": case, **vars(ending)}
            with kept.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(row) + "\n")
            if ending.how in FAULTS:
                print(f"{one.name} {case}: {ending.how}: {ending.what}\n{ending.seen}\n", flush=True)


def main(words: list[str]) -> int:
    known = load()
    parser = argparse.ArgumentParser(prog="python -m reliability", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="CLASS", help=f"which (default: all): {', '.join(known)}")
    parser.add_argument("--cases", type=int, metavar="N", help="cases 0 to N - 1 (default: the long form)")
    parser.add_argument("--only", type=int, metavar="CASE", help="one case, whether or not it is done")
    parser.add_argument("--kept", type=Path, default=Path("outputs/reliability.jsonl"), help="where endings are kept")
    given = parser.parse_args(words)
    if unknown := set(given.names) - set(known):
        parser.error(f"no class {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    given.kept.parent.mkdir(parents=True, exist_ok=True)
    faults = 0
    for name in given.names or known:
        one = known[name]
        done = carried_out(name, given.kept)
        wanted = [given.only] if given.only is not None else range(given.cases or one.cases)
        carry_out(one, [case for case in wanted if given.only is not None or case not in done], given.kept)
        ends = collections.Counter(row["how"] for row in carried_out(name, given.kept).values())
        faults += sum(ends[how] for how in FAULTS)
        counts = ", ".join(f"{how} {ends[how]}" for how in (*HELD, *FAULTS) if ends[how])
        print(f"{name:12} {sum(ends.values()):6} cases: {counts}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
