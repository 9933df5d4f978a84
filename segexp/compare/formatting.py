"""How values of a metric, intervals and p are printed: one way for the answer, the claims, the tables, the page and its
figures. Arguments are (metric, value), values in the metric's own unit.

A minus is the typographic one, what rounds to nothing has no sign, and digits that were rounded to are all shown.
"""

import math

from segexp.compare.kernel import ALPHA
from segexp.compare.result import Comparison, Interval, Metric

MINUS = "\u2212"
NOTHING = "\u2013"
"""What stands where there is no value."""


def factor(metric: Metric) -> float:
    """What values of a metric are multiplied by where they are printed."""
    return 100.0 if metric.points else 1.0


def unit(metric: Metric) -> str:
    """What values are printed in: points, pixels, mm; "" where that has no name."""
    return "points" if metric.points else metric.unit


def in_unit(metric: Metric, what: str) -> str:
    """The title of a column: "difference (points)"."""
    return f"{what} ({unit(metric)})" if unit(metric) else what


def with_unit(metric: Metric, what: str = "") -> str:
    """ "Dice (points)", or "difference in Dice (points)"."""
    return in_unit(metric, f"{what} {metric.title}".strip())


def score(metric: Metric, value: float) -> str:
    """A score, or a spread of scores, without its unit: 81.23 points or pixels, else four digits, 0.04120."""
    return _printed(factor(metric) * value, ".2f" if unit(metric) else "#.4g")


def difference(metric: Metric, value: float) -> str:
    """A difference with its sign, without its unit: +1.23 points or pixels, else three digits, -0.0210."""
    return _printed(factor(metric) * value, "+.2f" if unit(metric) else "+#.3g")


def amount(metric: Metric, value: float, signed: bool = True) -> str:
    """A difference with its unit, or its size alone: +1.23 points, 1.00 points, -0.0210."""
    if math.isnan(value):
        return NOTHING
    shown = difference(metric, value)
    return f"{shown if signed else shown.lstrip('+')} {unit(metric)}".rstrip()


def limits(metric: Metric, interval: Interval) -> str:
    """The 95 % interval of a difference, without its unit: [+0.31, +2.09]."""
    if math.isnan(interval.low):
        return NOTHING
    return f"[{difference(metric, interval.low)}, {difference(metric, interval.high)}]"


def decided(metric: Metric, comparison: Comparison) -> str:
    """The difference that the verdict rests on, with its 95 % interval: +1.20 [+0.31, +2.09]."""
    interval = comparison.deciding
    return f"{difference(metric, interval.mean)} {limits(metric, interval)}"


def p_value(p: float) -> str:
    """0.034, or <0.001. Near the limit a digit more, and never 0.05 for what is below it: 0.0497."""
    if math.isnan(p):
        return NOTHING
    if p < 0.0005:
        return "<0.001"
    if abs(p - ALPHA) >= 0.1 * ALPHA:
        return f"{p:.3f}"
    return f"{min(p, ALPHA - 1e-4):.4f}" if p < ALPHA else f"{p:.4f}"


def signed(value: float) -> str:
    """A number without a unit, with its sign: +0.42."""
    return _printed(value, "+.2f")


def plain(value: float) -> str:
    """A number as it comes, at most four digits: 5, 0.5, 0.1235."""
    whole = value.is_integer() and abs(value) < 1e15
    return _printed(value, ".0f" if whole else ".4g")


def mean_and_sd(mean: float, sd: float, points: bool = False) -> str:
    """A mean and its standard deviation to the same decimals: those that show two digits of the deviation, 83.9 with
    0.62 being 83.90 +- 0.62, or those of all points (two). The mean alone where no deviation is known."""
    if math.isnan(mean) or math.isnan(sd):
        return _printed(mean, ".2f") if points else plain(mean)
    if points:
        decimals = 2
    elif sd:
        decimals = min(_decimals(sd, 2), _decimals(mean, 6) if mean else 6)
    else:
        decimals = 0 if mean.is_integer() else _decimals(mean, 4)
    return f"{_printed(mean, f'.{decimals}f')} \u00b1 {_printed(sd, f'.{decimals}f')}"


def _decimals(value: float, digits: int) -> int:
    """How many decimals show so many digits of a value: 3 for two digits of 0.0123, 0 for four digits of 12345."""
    return max(digits - 1 - math.floor(math.log10(abs(value))), 0) if value else 0


def _printed(value: float, form: str) -> str:
    if math.isnan(value):
        return NOTHING
    text = f"{value:{form}}".rstrip(".")
    nothing = not text.strip("+-0.")
    return text.lstrip("+-") if nothing else text.replace("-", MINUS)
