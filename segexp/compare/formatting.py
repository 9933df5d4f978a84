"""How values of a metric, intervals and p are printed: one way for the answer, the claims, the tables, the page and its
figures. Arguments are (metric, value), values in the metric's own unit.

A minus is the typographic one, what rounds to nothing has no sign, and digits that were rounded to are all shown.
"""

import math
from collections.abc import Sequence

from segexp.compare.result import Block, Comparison, Interval, Metric, OverDatasets, Verdict
from segexp.compare.statistics import ALPHA, FEW_SEEDS
from segexp.records.formatting import pluralize

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


MOST_NAMED = 4
"""More significant comparisons than these are counted, none of them named."""


Made = tuple[Block, Comparison]


def headline(blocks: Sequence[Block], over_datasets: Sequence[OverDatasets], metric: Metric, unanswered: str) -> str:
    """One sentence or two. unanswered: why nothing is compared, where that is so."""
    made = [(block, c) for block in blocks for c in block.comparisons]
    if not made:
        return f"No answer: {unanswered}."
    tested = [(block, c) for block, c in made if c.verdict != Verdict.NO_TEST]
    if not tested:
        reasons = list(dict.fromkeys(c.warnings[0] for _, c in made if c.warnings))
        shown = "; ".join(reasons[:2]) + ("; ..." if len(reasons) > 2 else "")
        none = "the comparison cannot be tested" if len(made) == 1 else f"none of {len(made)} comparisons can be tested"
        return f"No answer: {none} ({shown})."
    several = len(blocks) > 1
    sentences = _over_data_sets(over_datasets, metric)
    if len(tested) == 1:
        sentences.append(_one(*tested[0], metric, several))
    else:
        sentences += _many(tested, metric, several)
    untested = len(made) - len(tested)
    if untested:
        sentences.append(f"{pluralize(untested, 'comparison')} could not be tested")
    return ". ".join(sentences) + "."


def _over_data_sets(found: Sequence[OverDatasets], metric: Metric) -> list[str]:
    """Over several data sets the answer is the one over them, and comes first."""
    if not found:
        return []
    clear = [f for f in found if f.p_holm < ALPHA]
    n = max(len(f.differences) for f in found)
    if len(clear) > MOST_NAMED:
        better = sum((f.interval.mean > 0) == metric.higher_is_better for f in clear)
        return [
            f"Over {n} data sets {len(clear)} of {len(found)} candidates differ from their reference in "
            f"{metric.title}: {better} better, {len(clear) - better} worse"
        ]
    if not clear:
        return [
            f"Over {pluralize(n, 'data set')} no candidate differs significantly from its reference in {metric.title} "
            f"({pluralize(len(found), 'comparison')})"
        ]
    few = ", exploratory: fewer than 6 data sets" if n < 6 else ""
    return [
        f"Over {len(f.differences)} data sets {f.candidate} is "
        f"{'better' if (f.interval.mean > 0) == metric.higher_is_better else 'worse'} than {f.reference} in "
        f"{metric.title}: {amount(metric, f.interval.mean)} (95 % interval {limits(metric, f.interval)}, Holm-adjusted "
        f"{_p(f.p_holm)}, {f.method}{few})"
        for f in clear
    ]


def _one(block: Block, comparison: Comparison, metric: Metric, several: bool) -> str:
    """The only comparison, whatever it came to."""
    if comparison.verdict.significant:
        return _told(block, comparison, metric, several)
    where = f" on {block.title}" if several else ""
    same = comparison.verdict == Verdict.EQUIVALENT
    told = "are equivalent" if same else "cannot be told apart"
    within = f" within {amount(metric, metric.rope, signed=False)}" if same else ""
    return (
        f"{comparison.candidate} and {comparison.reference} {told}{within} in {metric.title}{where}: "
        f"{amount(metric, comparison.deciding.mean)} ({_measured(comparison, metric)})"
    )


def _many(tested: Sequence[Made], metric: Metric, several: bool) -> list[str]:
    """Every significant comparison is named, or, where there are too many, none."""
    clear = [(b, c) for b, c in tested if c.verdict.significant]
    equivalent = sum(c.verdict == Verdict.EQUIVALENT for _, c in tested)
    left = len(tested) - len(clear) - equivalent
    rest = [f"{equivalent} equivalent within {amount(metric, metric.rope, signed=False)}"] if equivalent else []
    rest += [f"{left} inconclusive"] if left else []
    if not clear:
        text = (
            f"No candidate differs significantly from its reference in {metric.title} "
            f"({pluralize(len(tested), 'comparison')}: {', '.join(rest)})"
        )
        found = [c.minimum_detectable for _, c in tested if not math.isnan(c.minimum_detectable)]
        if found:
            text += (
                f"; differences up to {amount(metric, max(found), signed=False)} may go unseen in single comparisons "
                "like these (80 % power)"
            )
        return [text]
    if len(clear) <= MOST_NAMED:
        sentences = [_told(b, c, metric, several) for b, c in clear]
    else:
        better = sum(c.verdict.word == Verdict.BETTER for _, c in clear)
        means = [c.deciding.mean for _, c in clear]
        sentences = [
            f"{len(clear)} of {pluralize(len(tested), 'comparison')} differ significantly in {metric.title}: "
            f"{better} better, {len(clear) - better} worse than their reference, by {amount(metric, min(means))} to "
            f"{amount(metric, max(means))} (Holm-adjusted p < {ALPHA}; {_scope_of_all(clear)})"
        ]
    return [*sentences, *([f"Of the others: {', '.join(rest)}"] if rest else [])]


def _scope_of_all(clear: Sequence[Made]) -> str:
    return " or ".join(dict.fromkeys(c.scope for _, c in clear))


def _told(block: Block, comparison: Comparison, metric: Metric, several: bool) -> str:
    where = f" on {block.title}" if several else ""
    small = ", a negligible difference" if comparison.verdict.negligible else ""
    return (
        f"{comparison.candidate} is {comparison.verdict.word} than {comparison.reference} in {metric.title}{where}: "
        f"{amount(metric, comparison.deciding.mean)}{small} ({_measured(comparison, metric)})"
    )


def _measured(comparison: Comparison, metric: Metric) -> str:
    """95 % interval, p, what it speaks of, on how much it rests."""
    # Where folds are tested, a seed for each is what there is.
    few = ", exploratory" if not comparison.weaker and comparison.n_seeds < FEW_SEEDS else ""
    weaker = ", a weaker test" if comparison.weaker else ""
    return (
        f"95 % interval {limits(metric, comparison.deciding)} for {comparison.scope}, Holm-adjusted "
        f"{_p(comparison.p_holm)}, {_design(comparison)}{few}{weaker}"
    )


def _p(p: float) -> str:
    shown = p_value(p)
    return f"p {shown[0]} {shown[1:]}" if shown.startswith("<") else f"p = {shown}"


def _design(comparison: Comparison) -> str:
    parts = [pluralize(comparison.n_seeds, "seed")]
    if comparison.n_folds:
        parts.append(pluralize(comparison.n_folds, "fold"))
    units = comparison.n_groups or comparison.n_images
    if units:
        parts.append(pluralize(units, "image" if comparison.n_groups in (0, comparison.n_images) else "group"))
    return " x ".join(parts)
