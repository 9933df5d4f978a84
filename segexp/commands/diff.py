"""`segexp diff RUN_A RUN_B`: what differs between two runs."""

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from segexp.commands import Parser
from segexp.errors import DONE, UsageError
from segexp.records import COLUMNS, read_run, text_rows, whole_table
from segexp.records.formatting import text_table
from segexp.records.plugins import versions_of
from segexp.records.process import read_environment
from segexp.records.scores import OWN

T = TypeVar("T")

TABLES = tuple(table for table in COLUMNS if table != "timings")
"""Tables that runs of one identity have in common, byte for byte, on a CPU with equal threads."""

PAIRED_BY = {"dataset_sha": "data", "split_sha": "split", "init_sha": "initial weights", "order_sha": "batch order"}
PAIRED_BY |= {"numerics": "numerics version"}
"""What two runs must have in common to be compared image by image: keys of run.json and their names in messages."""

EPILOG = """\
Reports how the two runs are related (the same run, the same configuration with another seed, or what they differ in),
then lists what differs in configuration, environment, code, machine, data, pairing and results. Keys marked volatile
describe where and how a run was executed; they do not change its identity. The exit code is 0 whether or not they
differ.
"""


def parser() -> Parser:
    parser = Parser("diff", EPILOG)
    add = parser.add_argument
    add("run_a", type=Path, metavar="RUN_A")
    add("run_b", type=Path, metavar="RUN_B")
    add("--json", action="store_true", help="the differences as JSON")
    return parser


def command(words: Sequence[str]) -> int:
    options = parser().parse_args(list(words))
    found = diff(options.run_a, options.run_b)
    print(json.dumps(found, indent=1) if options.json else as_text(found))
    return DONE


def diff(a: Path, b: Path) -> dict[str, Any]:
    """The differences between the runs in ``a`` and ``b``, as `segexp diff --json` prints them.

    - a, b: the directories; verdict: how they are related, one line; paired: same data, split, initial weights,
      batch order and numerics, null where one of them does not record these
    - config, environment, code, machine, data, pairing: what differs, as a list of key, a and b; a side without the
      key is left out; in config, volatile marks keys that do not change the identity
    - split: images in other parts, only in a, only in b; null where split.csv is missing
    - summary: column, a, b and difference (b - a; null where one is not a number) of what differs
    - images: compared, differ (images and classes whose Dice differs), max_difference, only_a, only_b; splits: split ->
      compared and differ; or null
    - tables: table -> same (byte-identical), different, or missing
    - missing: what could not be read, one line each

    Raises UsageError when one is not a run directory or its run.json is damaged.
    """
    from segexp.config import is_volatile

    records = {"numerics": 1, **read_run(a)}, {"numerics": 1, **read_run(b)}
    missing: list[str] = []
    same_run = bool(records[0].get("identity")) and records[0].get("identity") == records[1].get("identity")
    config = [
        # Runs of one identity mean the same, however the paths in their configurations are written.
        entry | {"volatile": same_run or is_volatile(entry["key"])}
        for entry in _differing(*(record.get("config", {}) for record in records))
    ]
    data = _differing(*(_chosen(record, "dataset_sha", "split_sha") for record in records))

    pairs = [(records[0].get(key), records[1].get(key)) for key in PAIRED_BY]

    def both(read: Callable[[Path], T], compare: Callable[[T, T], Any]) -> Any:
        """The comparison of a file that both runs have, else None."""
        contents = []
        for path in (a, b):
            try:
                contents.append(read(path))
            except UsageError as error:
                missing.append(str(error))
        return compare(*contents) if len(contents) == 2 else None

    def same_bytes(table: str) -> Any:
        return both(lambda path: whole_table(path, {}, table), lambda x, y: "same" if x == y else "different")

    return {
        "a": str(a),
        "b": str(b),
        "verdict": _verdict(records, config, data, same_run),
        "paired": None if any(None in pair for pair in pairs) else all(x == y for x, y in pairs),
        "config": config,
        "environment": both(lambda path: read_environment(path / "environment.txt"), _differing) or [],
        "code": _differing(*(_code(record) for record in records)),
        "machine": _differing(*(_chosen(record, "host") | dict(record.get("device") or {}) for record in records)),
        "data": data,
        "split": both(lambda path: text_rows(path / "split.csv", "split"), _split),
        "pairing": _differing(*(_chosen(record, "init_sha", "order_sha", "numerics") for record in records)),
        "summary": _summary(*(record.get("summary", {}) for record in records)),
        "images": both(lambda path: text_rows(path / "images.csv", "images"), _images),
        "tables": {
            table: same_bytes(table) or "missing"
            for table in TABLES
            # Earlier versions did not write objects.csv.
            if table != "objects" or any(table in record.get("n_rows_expected", {}) for record in records)
        },
        "missing": list(dict.fromkeys(missing)),
    }


def _chosen(record: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: record[key] for key in keys if key in record}


def _code(record: Mapping[str, Any]) -> dict[str, Any]:
    git = {f"git {key}": value for key, value in (record.get("git") or {}).items()}
    plugins = {f"plugin of {entry}": version for entry, version in versions_of(record.get("plugins")).items()}
    return _chosen(record.get("versions") or {}, "segexp") | git | plugins


def _differing(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Keys whose values differ, in the order of ``a``, then those of ``b`` alone."""
    return [
        {"key": key} | ({"a": a[key]} if key in a else {}) | ({"b": b[key]} if key in b else {})
        for key in dict.fromkeys([*a, *b])
        if key not in a or key not in b or a[key] != b[key]
    ]


def _verdict(
    records: Sequence[Mapping[str, Any]], config: Sequence[Mapping[str, Any]], data: Sequence[Any], same_run: bool
) -> str:
    """How the two runs are related, in one line."""
    a, b = records
    if same_run:
        return "the same run: one configuration, seed and data"
    keys = [entry["key"] for entry in config if not entry["volatile"]]
    what = [entry["key"] for entry in data]
    per_seed = bool(a.get("config", {}).get("split.per_seed"))
    if keys == ["seed"] and what == ["split_sha"] * (per_seed and len(what)):
        seeds = f"other seed ({a['config'].get('seed')} and {b['config'].get('seed')})"
        return f"the same configuration and data, {seeds}{', each with its split' if what else ''}"
    groups = list(dict.fromkeys(key.split(".")[0] if key.endswith(".name") else key for key in keys))
    # Another choice brings its own options.
    chosen = [key for key in groups if "." not in key]
    others = [key for key in groups if "." in key and key.split(".")[0] not in chosen]
    plugins = [entry["key"] for entry in _differing(*(_code(record) for record in records)) if len(entry) == 3]
    others += [key for key in plugins if key.startswith("plugin of ")]
    parts = [*chosen, *others, *({"dataset_sha": "the data", "split_sha": "the split"}[key] for key in what)]
    return (
        f"differ in {', '.join(parts)}"
        if parts
        else "alike in configuration and data, yet of another identity: other pretrained weights, or another segexp"
    )


def _split(a: Sequence[Mapping[str, str]], b: Sequence[Mapping[str, str]]) -> dict[str, int]:
    parts_a, parts_b = ({row["image_id"]: row["split"] for row in rows} for rows in (a, b))
    both = parts_a.keys() & parts_b.keys()
    return {
        "moved": sum(parts_a[name] != parts_b[name] for name in both),
        "only_a": len(parts_a.keys() - both),
        "only_b": len(parts_b.keys() - both),
    }


def _summary(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Numbers of the summary that differ; its names and hashes are those of configuration, data and pairing."""
    rows = []
    numbers = [name for name, kind in COLUMNS["summary"].items() if kind is not str and name != "seed"]
    for column in (*numbers, *sorted(name for name in a.keys() | b.keys() if name.startswith(OWN))):
        x, y = a.get(column), b.get(column)
        if x != y:
            difference = y - x if isinstance(x, int | float) and isinstance(y, int | float) else None
            rows.append({"column": column, "a": x, "b": y, "difference": difference})
    return rows


def _images(a: Sequence[Mapping[str, str]], b: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """Dice of every image and class, which both have; NaN equals NaN and differs from any number."""
    scores = [{(row["split"], row["image_id"], row["class_id"]): row["dice"] for row in rows} for rows in (a, b)]
    both = scores[0].keys() & scores[1].keys()
    unequal = [(scores[0][key], scores[1][key]) for key in both if scores[0][key] != scores[1][key]]
    compared = Counter(split for split, *_ in both)
    differ = Counter(key[0] for key in both if scores[0][key] != scores[1][key])
    return {
        "splits": {split: {"compared": n, "differ": differ[split]} for split, n in sorted(compared.items())},
        "compared": len(both),
        "differ": len(unequal),
        "max_difference": max((abs(_number(x) - _number(y)) for x, y in unequal if x and y), default=None),
        "only_a": len(scores[0].keys() - both),
        "only_b": len(scores[1].keys() - both),
    }


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return math.nan


def as_text(found: Mapping[str, Any]) -> str:
    """The differences for the terminal."""
    blocks = [f"A  {found['a']}\nB  {found['b']}\n\n{found['verdict']}{_pairing(found)}"]
    for part in ("config", "environment", "code", "machine", "data", "pairing"):
        rows = [
            {part: entry["key"], "A": _plain(entry, "a"), "B": _plain(entry, "b")}
            | ({"volatile": "yes" * entry["volatile"]} if part == "config" else {})
            for entry in found[part]
        ]
        blocks += [text_table(rows, width=140)] if rows else []
    split, images = found["split"], found["images"]
    if split and any(split.values()):
        moved = f"{split['moved']} images in another part"
        blocks.append(f"split: {moved}, {split['only_a']} only in A, {split['only_b']} in B")
    rows = [
        {"result": row["column"]}
        | {side.upper(): "-" if row[side] is None else f"{row[side]:.6g}" for side in "ab"}
        | {"B - A": row["difference"]}
        for row in found["summary"]
    ]
    blocks += [text_table(rows, width=140)] if rows else []
    if images:
        counts = [f"{n['differ']} of {n['compared']} {split}" for split, n in images["splits"].items()]
        text = f"images: Dice differs in {', '.join(counts) or 'none'}"
        text += "" if images["max_difference"] is None else f", by at most {images['max_difference']:.4g}"
        alone = f", {images['only_a']} only in A, {images['only_b']} only in B"
        blocks.append(text + alone * bool(images["only_a"] or images["only_b"]))
    words = {"same": "byte-identical", "different": "different", "missing": "missing"}
    alike = {word: [name for name, is_ in found["tables"].items() if is_ == state] for state, word in words.items()}
    named = "; ".join(f"{word}: {', '.join(names)}" for word, names in alike.items() if names)
    all_same = len(alike["byte-identical"]) == len(found["tables"])
    blocks.append(f"tables: {'all byte-identical' if all_same else named}")
    return "\n\n".join([*blocks, *found["missing"]])


def _pairing(found: Mapping[str, Any]) -> str:
    if found["paired"] is None:
        return ""
    if found["paired"]:
        return "\npaired: same data, split, initial weights and batch order"
    differing = {entry["key"] for entry in (*found["data"], *found["pairing"])}
    named = [what for key, what in PAIRED_BY.items() if key in differing]
    return f"\nnot paired: {', '.join(named)} differ{'s' * (len(named) == 1 and named[0] != 'initial weights')}"


def _plain(entry: Mapping[str, Any], side: str) -> str:
    """A value as JSON, strings without quotes, hashes shortened; - where there is none."""
    if side not in entry:
        return "-"
    value = entry[side]
    if not isinstance(value, str):
        return json.dumps(value)
    return f"{value[:12]}..." if len(value) in (40, 64) and set(value) <= set("0123456789abcdef") else value
