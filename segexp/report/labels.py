"""Names, labels and notes as the page, the figures and the tables show them. Numbers: `segexp.compare.formatting`."""

import math
import re
import textwrap
from collections.abc import Mapping, Sequence

from segexp.compare.formatting import MINUS, NOTHING, plain
from segexp.compare.result import Block, Comparison, Result
from segexp.records.formatting import pluralize

_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")


def clean(text: str) -> str:
    """Text for HTML and SVG: control characters, lone surrogates and marks of writing direction are replaced, line ends
    become blanks."""
    return _UNPRINTABLE.sub("\ufffd", re.sub(r"[\t\r\n]+", " ", text))


def short(text: str, limit: int = 34) -> str:
    """`clean` text; longer than ``limit`` characters, its middle is left out."""
    text = clean(text)
    if len(text) <= limit:
        return text
    tail = limit // 2 - 1
    return f"{text[: limit - tail - 1]}\u2026{text[-tail:]}"


def unique_labels(names: Sequence[str], limit: int = 34) -> dict[str, str]:
    """A different label for each name, in lines of at most ``limit`` characters.

    Names that `short` would make equal keep more characters, on several lines.
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
    """The folders of the paths that were read, for `only_names`."""
    paths = [path.rstrip("/") for path in map(str, result.provenance.get("read from", ())) if "/" in path]
    return [path.rpartition("/")[0] for path in paths]


def only_names(text: str, folders: Sequence[str] = ()) -> str:
    """Text with file names in place of absolute paths, because a report may be sent to others. folders: known ones, for
    paths with blanks; other paths are found by their form."""
    for folder in sorted(folders, key=len, reverse=True):
        text = text.replace(f"{folder.rstrip('/')}/", "") if folder.strip("/") else text
    return _FOLDER.sub("", text)


def last_name(path: str) -> str:
    """The last part of a path."""
    return path.replace("\\", "/").rstrip("/").rpartition("/")[2]


SCOPES = {
    "new seeds and new images": "new seeds, new images",
    "new seeds and new images, these training folds": "new seeds, new images, these folds",
    "new seeds, this test set": "new seeds, these images",
    "new folds of these images": "new folds",
}
"""Shorter forms of a comparison's scope, for columns; other scopes are shown as they are."""


def scope(comparison: Comparison) -> str:
    """What the deciding interval of a comparison generalises to; a dash without a test."""
    tested = not math.isnan(comparison.deciding.low)
    return SCOPES.get(comparison.scope, comparison.scope) if tested else NOTHING


def seeds(n_seeds: int, n_folds: int) -> str:
    """5, or with folds 1 seed x 5 folds."""
    return f"{pluralize(n_seeds, 'seed')} x {pluralize(n_folds, 'fold')}" if n_folds else str(n_seeds)


def number(value: object) -> str:
    """A plain value of a table: floats with four digits, a dash where it is missing."""
    if value is None or value == "":
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    return plain(value) if isinstance(value, float) else clean(str(value))


def unit_of(comparison: Comparison) -> str:
    """What each value of a comparison belongs to: an image, or a group of images (patient, volume, video)."""
    return "image" if comparison.n_groups in (0, comparison.n_images) else "group"


def against(comparison: Comparison) -> str:
    """arctan - sigmoid, the order of every difference."""
    return f"{comparison.candidate} {MINUS} {comparison.reference}"


def notes_of(block: Block) -> list[str]:
    """The warnings of a block and of its comparisons; comparisons that share one are listed with it."""
    shared: dict[str, list[str]] = {}
    for found in block.comparisons:
        for note in (*found.warnings, *([f"not compared: {found.dropped}"] if found.dropped else [])):
            shared.setdefault(note, []).append(f"{found.candidate} against {found.reference}")
    n = len(block.comparisons)
    notes = [note if len(of) == n > 1 else f"{'; '.join(of)}: {note}" for note, of in shared.items()]
    return [*notes, *block.warnings]


def pairs(mapping: Mapping[str, str]) -> str:
    """key=value, key=value."""
    return ", ".join(f"{key}={value}" for key, value in mapping.items())
