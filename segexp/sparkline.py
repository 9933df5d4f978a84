"""A curve in one line of text: a bar of an eighth to a whole character for each value, or plain ASCII."""

import itertools
import math
from collections.abc import Sequence

BARS = "▁▂▃▄▅▆▇█"
ASCII = "_.:-=+*#"


def sparkline(values: Sequence[float], width: int, levels: str = BARS) -> str:
    """The values from their least to their greatest in ``levels``, a character each.

    More than ``width`` values are averaged in ``width`` groups of neighbours. A blank stands where nothing is finite,
    the lowest level where all are equal.
    """
    groups = _resampled(values, width)
    finite = [value for value in groups if math.isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    # Halved, for the span of the largest floats is infinite.
    span = high / 2 - low / 2

    def level(value: float) -> str:
        share = (value / 2 - low / 2) / span if span else 0.0
        return levels[min(int(share * len(levels)), len(levels) - 1)]

    return "".join(level(value) if math.isfinite(value) else " " for value in groups)


def position(index: int, count: int, width: int) -> int:
    """The character of a sparkline of ``count`` values that shows the value at ``index``."""
    columns = min(count, width)
    # The last group that begins at or before it.
    return next(column for column in reversed(range(columns)) if column * count // columns <= index)


def _resampled(values: Sequence[float], width: int) -> list[float]:
    if len(values) <= width:
        return list(values)
    ends = [column * len(values) // width for column in range(width + 1)]
    return [_mean(values[start:end]) for start, end in itertools.pairwise(ends)]


def _mean(values: Sequence[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return sum(value / len(finite) for value in finite) if finite else math.nan
