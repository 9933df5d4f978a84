"""`python -m benchmarks`: run benchmarks, print their table, keep them as JSON, write the page of the documentation."""

import argparse
import dataclasses
import datetime
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks import Row, load, machine

HERE = Path(__file__).parent
RESULTS, PAGE, NOTES = HERE / "results.json", HERE.parent / "docs" / "performance.md", HERE / "notes.md"


def shown(number: float, unit: str) -> str:
    return f"{number:,.0f}" if abs(number) >= 1000 else f"{number:.3g}" if unit != "x" else f"{number:.2f}"


def line(row: Row) -> tuple[str, ...]:
    """The cells of a row: case, value with quartiles, what it is compared with, what is asked and whether it holds."""
    value = f"{shown(row.value, row.unit)} {row.unit}"
    if row.low != row.high:
        value += f" ({shown(row.low, row.unit)} to {shown(row.high, row.unit)})"
    asked = (
        "" if row.bound is None else f"{row.bound[0]} {shown(row.bound[1], row.unit)}: {'yes' if row.held else 'no'}"
    )
    return row.case, value, row.baseline, asked


def page(results: dict[str, Any]) -> str:
    """docs/performance.md from results: name -> title, date, machine and rows; and the notes."""
    known = load()
    parts = [NOTES.read_text(encoding="utf-8").rstrip(), "## Figures"]
    for name, key in ((n, key) for n in known for key in (n, f"{n}, GPU") if key in results):
        found = results[key]
        on = found["machine"]
        place = f"{on['gpu'] or on['cpu']}, {on['threads']} of {on['cores']} cores, PyTorch {on['torch']}"
        parts.append(f"### {known[name].title}\n\n`python -m benchmarks {name}` on {place}, {found['date']}.")
        parts.append(table([row_of(row) for row in found["rows"]]))
    return "\n\n".join(parts) + "\n"


MANY = 24
"""Rows from which a table is folded."""


def table(rows: list[Row]) -> str:
    """One line a row. Of many: one line for what their cases begin with, one column for each rest of them."""
    if len(rows) < MANY:
        head, lines = ("case", "value (quartiles)", "against", "asked, and holds"), [line(row) for row in rows]
        return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ("---",) * len(head), *lines))
    folded: dict[str, dict[str, str]] = {}
    for row in rows:
        first, _, rest = row.case.replace(": ", ", ", 1).partition(", ")
        column = ", ".join(filter(None, (rest, f"of {row.baseline}" if row.unit == "x" else row.unit)))
        column += f", asked {row.bound[0]} {shown(row.bound[1], row.unit)}" if row.bound else ""
        value = line(row)[1].replace(f" {row.unit}", "", 1)
        folded.setdefault(first, {})[column] = value if row.held in (True, None) else f"**{value}**"
    columns = list(dict.fromkeys(column for cells in folded.values() for column in cells))
    lines = [(first, *(cells.get(column, "") for column in columns)) for first, cells in folded.items()]
    held = [row.held for row in rows if row.bound]
    others = "; bold: the others" if False in held else ""
    text = f"{sum(map(bool, held))} of {len(held)} values hold what is asked{others}.\n\n" if held else ""
    return text + "\n".join(
        f"| {' | '.join(cells)} |" for cells in (("", *columns), ("---",) * (1 + len(columns)), *lines)
    )


def row_of(values: dict[str, Any]) -> Row:
    """A row as it was kept in JSON."""
    bound = values.get("bound")
    return Row(**{**values, "bound": None if bound is None else (str(bound[0]), float(bound[1]))})


def main(words: list[str]) -> int:
    known = load()
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which (default: all): {', '.join(known)}")
    parser.add_argument("--quick", action="store_true", help="seconds instead of minutes, to see that it works")
    parser.add_argument("--json", type=Path, metavar="FILE", help="replace these benchmarks in FILE, or begin it")
    parser.add_argument("--page", action="store_true", help="only write docs/performance.md from results.json")
    given = parser.parse_args(words)
    if unknown := set(given.names) - set(known):
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    if given.page:
        PAGE.write_text(page(json.loads(RESULTS.read_text(encoding="utf-8"))), encoding="utf-8")
        return 0
    results = json.loads(given.json.read_text(encoding="utf-8")) if given.json and given.json.exists() else {}
    for name in given.names or known:
        print(f"\n{known[name].title}", flush=True)
        rows = []
        for row in known[name].function(given.quick):
            rows.append(row)
            case, value, baseline, asked = line(row)
            print(f"  {case:44} {value:32} {'of ' + baseline if baseline else '':24} {asked}", flush=True)
        date = datetime.date.today().isoformat()
        kept = {"date": date, "quick": given.quick, "machine": machine(), "rows": [dataclasses.asdict(r) for r in rows]}
        results[f"{name}, GPU" if kept["machine"]["gpu"] else name] = kept  # a machine of each kind beside the other
        if given.json:
            given.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
