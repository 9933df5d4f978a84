"""How values are put into words and figures: one way for the page, the figures and the tables for a paper."""

import math
import re
import textwrap
from collections.abc import Mapping, Sequence

from segexp.compare.result import Block, Comparison, Interval, Metric, Result
from segexp.tables import counted

MINUS = "\u2212"
NOTHING = "\u2013"
"""What stands where there is no value."""

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


def factor(metric: Metric) -> float:
    """What values of a metric are multiplied by where they are printed."""
    return 100.0 if metric.points else 1.0


def with_unit(metric: Metric, what: str = "") -> str:
    """ "Dice (points)", or "difference in Dice (points)"."""
    title = f"{what} {metric.title}".strip()
    return f"{title} (points)" if metric.points else title


def score(metric: Metric, value: float) -> str:
    """A score, or a spread of scores: 81.23 in points, 0.0412 or 5.31 else."""
    if math.isnan(value):
        return NOTHING
    return _minus(f"{100 * value:.2f}" if metric.points else f"{value:.4g}")


def difference(metric: Metric, value: float) -> str:
    """A difference, with its sign."""
    if math.isnan(value):
        return NOTHING
    return _minus(f"{100 * value:+.2f}" if metric.points else f"{value:+.3g}")


def limits(metric: Metric, interval: Interval) -> str:
    """The 95 % interval of a difference: [+0.31, +2.09]."""
    if math.isnan(interval.low):
        return NOTHING
    return f"[{difference(metric, interval.low)}, {difference(metric, interval.high)}]"


def decided(metric: Metric, comparison: Comparison) -> str:
    """The difference that the verdict rests on, with its 95 % interval: +1.20 [+0.31, +2.09]."""
    interval = comparison.deciding
    return f"{difference(metric, interval.mean)} {limits(metric, interval)}"


SCOPES = {
    "new seeds and new images": "new images",
    "new seeds and new images, these training folds": "new images, these folds",
    "new seeds, this test set": "these images",
    "new folds of these images": "new folds",
}
"""A comparison's scope in as few words as a column has room for; other scopes stand as they are."""


def scope(comparison: Comparison) -> str:
    """What a comparison speaks of, nothing where there is no test."""
    known = not math.isnan(comparison.deciding.low)
    return SCOPES.get(comparison.scope, comparison.scope) if known else NOTHING


def seeds(n_seeds: int, n_folds: int) -> str:
    """5, or with folds 1 seed x 5 folds: folds are no seeds."""
    return f"{counted(n_seeds, 'seed')} x {counted(n_folds, 'fold')}" if n_folds else str(n_seeds)


def signed(value: float) -> str:
    """A number without a unit: +0.42."""
    return NOTHING if math.isnan(value) else _minus(f"{value:+.2f}")


def p_value(p: float) -> str:
    """0.034, or <0.001."""
    if math.isnan(p):
        return NOTHING
    return "<0.001" if p < 0.0005 else f"{p:.3f}"


def number(value: object) -> str:
    """A plain value of a table: four digits of a float, nothing for what is missing."""
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        whole = value.is_integer() and abs(value) < 1e15
        return _minus(f"{value:.0f}" if whole else f"{value:.4g}")
    return clean(str(value))


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


def _minus(text: str) -> str:
    return text.replace("-", MINUS)
