"""How names, states and what a comparison is of are put into words: one way for the page, the figures and the tables
for a paper. Numbers: `segexp.compare.formatting`."""

import math
import re
import textwrap
from collections.abc import Mapping, Sequence

from segexp.compare.formatting import MINUS, NOTHING, plain
from segexp.compare.result import Block, Comparison, Result
from segexp.records.formatting import pluralize

_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")


def clean(text: str) -> str:
    """Text that can stand on a page and in SVG: what neither may hold (control characters, halves of characters, marks
    that turn the direction of writing) becomes a replacement character, a line's end a blank."""
    return _UNPRINTABLE.sub("\ufffd", re.sub(r"[\t\r\n]+", " ", text))


def short(text: str, limit: int = 34) -> str:
    """`clean`, and its middle left out where it is longer than ``limit`` characters."""
    text = clean(text)
    if len(text) <= limit:
        return text
    tail = limit // 2 - 1
    return f"{text[: limit - tail - 1]}\u2026{text[-tail:]}"


def apart(names: Sequence[str], limit: int = 34) -> dict[str, str]:
    """A label for each name, in lines of at most ``limit`` characters; no two names have the same one.

    Names that `short` would make equal keep more of themselves, on several lines.
    """
    names = list(dict.fromkeys(names))
    kept = limit
    while True:
        labels = [short(name, kept) for name in names]
        if len(set(labels)) == len(names) or kept >= max(map(len, names), default=0):
            break
        kept *= 2
    numbered = [f"{label} ({n + 1})" if labels.count(label) > 1 else label for n, label in enumerate(labels)]
    return {name: textwrap.fill(label, limit) for name, label in zip(names, numbered, strict=True)}


_FOLDER = re.compile(r"(?<![\w.:/<])(?:[A-Za-z]:)?[\\/](?:[^\s\\/:'\",;<>()]+[\\/])+")


def folders_of(result: Result) -> list[str]:
    """Where what was read lies, for `only_names`: a page may be mailed."""
    read = [path.rstrip("/") for path in map(str, result.provenance.get("read from", ())) if "/" in path]
    return [path.rpartition("/")[0] for path in read]


def only_names(text: str, folders: Sequence[str] = ()) -> str:
    """Text without the folders that files lie in: who holds them is nobody else's business. folders: those known, any
    blanks in them included; other absolute paths are found by their look."""
    for folder in sorted(folders, key=len, reverse=True):
        text = text.replace(f"{folder.rstrip('/')}/", "") if folder.strip("/") else text
    return _FOLDER.sub("", text)


def last_name(path: str) -> str:
    """The name at the end of a path: enough to find a run; who holds it, and where, is nobody else's business."""
    return path.replace("\\", "/").rstrip("/").rpartition("/")[2]


SCOPES = {
    "new seeds and new images": "new seeds, new images",
    "new seeds and new images, these training folds": "new seeds, new images, these folds",
    "new seeds, this test set": "new seeds, these images",
    "new folds of these images": "new folds",
}
"""A comparison's scope in as few words as a column has room for; other scopes stand as they are."""


def scope(comparison: Comparison) -> str:
    """What a comparison speaks of, nothing where there is no test."""
    known = not math.isnan(comparison.deciding.low)
    return SCOPES.get(comparison.scope, comparison.scope) if known else NOTHING


def seeds(n_seeds: int, n_folds: int) -> str:
    """5, or with folds 1 seed x 5 folds: folds are no seeds."""
    return f"{pluralize(n_seeds, 'seed')} x {pluralize(n_folds, 'fold')}" if n_folds else str(n_seeds)


def number(value: object) -> str:
    """A plain value of a table: four digits of a float, nothing for what is missing."""
    if value is None or value == "":
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    return plain(value) if isinstance(value, float) else clean(str(value))


def unit_of(comparison: Comparison) -> str:
    """What one of a comparison's values is of: an image, or a group of images (patient, volume, video)."""
    return "image" if comparison.n_groups in (0, comparison.n_images) else "group"


def against(comparison: Comparison) -> str:
    """arctan - sigmoid, as a difference is read."""
    return f"{comparison.candidate} {MINUS} {comparison.reference}"


def notes_of(block: Block) -> list[str]:
    """The warnings of a block and of its comparisons; one that several comparisons share stands once."""
    shared: dict[str, list[str]] = {}
    for found in block.comparisons:
        for note in (*found.warnings, *([f"not compared: {found.dropped}"] if found.dropped else [])):
            shared.setdefault(note, []).append(f"{found.candidate} against {found.reference}")
    of_all = len(block.comparisons)
    notes = [note if len(of) == of_all > 1 else f"{'; '.join(of)}: {note}" for note, of in shared.items()]
    return [*notes, *block.warnings]


def pairs(mapping: Mapping[str, str]) -> str:
    """key=value, key=value."""
    return ", ".join(f"{key}={value}" for key, value in mapping.items())
