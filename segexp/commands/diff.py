"""`segexp diff RUN_A RUN_B`: what differs between two runs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from segexp.commands.shared import parser_of
from segexp.errors import DONE

EPILOG = """\
Says what the two runs are to each other (the same run; the same configuration with another seed; what they differ
in), then lists what differs in configuration, environment, code, machine, data, pairing and results. Keys marked
volatile say where and how a run was carried out, not what it is. The exit code is 0 whether or not they differ.
"""


def command(words: Sequence[str]) -> int:
    """`segexp diff RUN_A RUN_B`."""
    parser = parser_of("diff", "What differs between two runs.", EPILOG)
    parser.add_argument("run_a", type=Path, metavar="RUN_A")
    parser.add_argument("run_b", type=Path, metavar="RUN_B")
    parser.add_argument("--json", action="store_true", help="what differs, as JSON")
    options = parser.parse_args(list(words))

    import json

    from segexp.difference import difference

    found = difference(options.run_a, options.run_b)
    print(json.dumps(found, indent=1) if options.json else as_text(found))
    return DONE


def as_text(found: Mapping[str, Any]) -> str:
    """The difference for the terminal."""
    blocks = [f"A  {found['a']}\nB  {found['b']}\n\n{found['verdict']}{_pairing(found)}"]
    for part in ("config", "environment", "code", "machine", "data", "pairing"):
        if found[part]:
            rows = [_row(part, entry) for entry in found[part]]
            blocks.append(_table(rows))
    split, images = found["split"], found["images"]
    if split and any(split.values()):
        blocks.append(
            f"split: {split['moved']} images in another part, {split['only_a']} only in A, {split['only_b']} in B"
        )
    if found["summary"]:
        rows = [
            {"result": row["column"], "A": _number(row["a"]), "B": _number(row["b"]), "B - A": row["difference"]}
            for row in found["summary"]
        ]
        blocks.append(_table(rows))
    if images:
        alone = f", {images['only_a']} only in A, {images['only_b']} only in B"
        most = "" if images["max_difference"] is None else f", by at most {images['max_difference']:.4g}"
        blocks.append(
            f"images: Dice differs in {images['differ']} of {images['compared']}{most}"
            f"{alone if images['only_a'] or images['only_b'] else ''}"
        )
    blocks.append(_tables(found["tables"]))
    return "\n\n".join([*blocks, *found["missing"]])


PAIRED_BY = {
    "dataset_sha": "data",
    "split_sha": "split",
    "init_sha": "initial weights",
    "order_sha": "batch order",
}
"""What two runs must have in common to be compared image by image, as run.json and as a reader calls it."""


def _pairing(found: Mapping[str, Any]) -> str:
    if found["paired"] is None:
        return ""
    if found["paired"]:
        return "\npaired: same data, split, initial weights and batch order"
    differing = {entry["key"] for entry in (*found["data"], *found["pairing"])}
    named = [what for key, what in PAIRED_BY.items() if key in differing]
    return f"\nnot paired: {', '.join(named)} differ{'s' * (len(named) == 1 and named[0] != 'initial weights')}"


def _row(part: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    row = {part: entry["key"], "A": _plain(entry, "a"), "B": _plain(entry, "b")}
    return row | ({"volatile": "yes" if entry["volatile"] else ""} if part == "config" else {})


def _plain(entry: Mapping[str, Any], side: str) -> str:
    """A value as JSON would have it, strings bare; - where there is none; hashes short."""
    import json

    if side not in entry:
        return "-"
    value = entry[side]
    if not isinstance(value, str):
        return json.dumps(value)
    return f"{value[:12]}..." if len(value) in (40, 64) and set(value) <= set("0123456789abcdef") else value


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.6g}"


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    from segexp.tables import text_table

    return text_table(rows, width=140)


def _tables(tables: Mapping[str, str]) -> str:
    alike = {state: [table for table, s in tables.items() if s == state] for state in ("same", "different", "missing")}
    if len(alike["same"]) == len(tables):
        return "tables: all byte-identical"
    words = {"same": "byte-identical", "different": "different", "missing": "missing"}
    return "tables: " + "; ".join(f"{words[state]}: {', '.join(names)}" for state, names in alike.items() if names)
