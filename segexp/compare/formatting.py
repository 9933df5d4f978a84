"""How results are written: values of a metric, intervals and p for all tables, figures and claims, and the headline.

Functions of values take (metric, value) with the value in the metric's own unit. The minus is the typographic one,
values that round to 0 have no sign, and all digits that were rounded to are shown.
"""

import math
from collections.abc import Sequence

from segexp.compare.datasets import ENOUGH_DATASETS, across_alone
from segexp.compare.result import (
    ALPHA,
    FEW_SEEDS,
    FEWEST_UNITS,
    Block,
    Comparison,
    Interval,
    Metric,
    OverDatasets,
    Result,
    Verdict,
)
from segexp.records.formatting import pluralize

MINUS = "\u2212"
NOTHING = "\u2013"
"""Stands for a missing value."""


def factor(metric: Metric) -> float:
    """The factor by which values are multiplied for printing."""
    return 100.0 if metric.points else 1.0


def unit(metric: Metric) -> str:
    """The unit of printed values: points, pixels, mm, or ""."""
    return "points" if metric.points else metric.unit


def in_unit(metric: Metric, what: str) -> str:
    """The title of a column: "difference (points)"."""
    return f"{what} ({unit(metric)})" if unit(metric) else what


def with_unit(metric: Metric, what: str = "") -> str:
    """ "Dice (points)", or "difference in Dice (points)"."""
    return in_unit(metric, f"{what} {metric.title}".strip())


def score(metric: Metric, value: float) -> str:
    """A score, or the sd of scores, without its unit: 81.23 points or pixels, else four digits, 0.04120."""
    return _printed(factor(metric) * value, ".2f" if unit(metric) else "#.4g")


def difference(metric: Metric, value: float) -> str:
    """A difference with its sign, without its unit: +1.23 points or pixels, else three digits, -0.0210."""
    return _printed(factor(metric) * value, "+.2f" if unit(metric) else "+#.3g")


def amount(metric: Metric, value: float, signed: bool = True) -> str:
    """A difference with its unit: +1.23 points, -0.0210; without sign 1.00 points."""
    if math.isnan(value):
        return NOTHING
    shown = difference(metric, value)
    return f"{shown if signed else shown.lstrip('+')} {unit(metric)}".rstrip()


def limits(metric: Metric, interval: Interval) -> str:
    """The 95 % interval of a difference, without its unit: [+0.31, +2.09]."""
    return between(metric, interval.low, interval.high)


def between(metric: Metric, low: float, high: float) -> str:
    """A range of differences, without its unit: [+0.31, +2.09]."""
    return NOTHING if math.isnan(low) else f"[{difference(metric, low)}, {difference(metric, high)}]"


def estimate(metric: Metric, interval: Interval) -> str:
    """A difference with its 95 % interval: +1.20 [+0.31, +2.09]."""
    return f"{difference(metric, interval.mean)} {limits(metric, interval)}"


def p_value(p: float) -> str:
    """0.034, or <0.001. Near 0.05 one digit more, and never 0.05 for a smaller p: 0.0497."""
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
    """A number with at most four digits: 5, 0.5, 0.1235."""
    whole = float(value).is_integer() and abs(value) < 1e15
    return _printed(value, ".0f" if whole else ".4g")


def mean_and_sd(mean: float, sd: float, points: bool = False) -> str:
    """A mean and its standard deviation with the same decimals: two for points, else those that show two digits of the
    deviation (83.90 +- 0.62). The mean alone where the deviation is unknown."""
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
    """The number of decimals that show so many digits: 3 for two digits of 0.0123, 0 for four digits of 12345."""
    return max(digits - 1 - math.floor(math.log10(abs(value))), 0) if value else 0


def _printed(value: float, form: str) -> str:
    if math.isnan(value):
        return NOTHING
    text = f"{value:{form}}".rstrip(".")
    nothing = not text.strip("+-0.")
    return text.lstrip("+-") if nothing else text.replace("-", MINUS)


MOST_NAMED = 4
"""If more comparisons are significant, the headline counts them and names none: the best of many is never named for
being the best."""

Made = tuple[Block, Comparison]


def headline(results: Sequence[Result], unanswered: str) -> str:
    """The answer for each metric, with interval and what the inference is for; or why there is none. One sentence each
    where there are several.

    From six data sets on it is the result across them; with fewer, that and the verdicts on single ones.
    unanswered: why nothing is compared, where that is so.
    """
    if not any(block.comparisons for result in results for block in result.blocks):
        return f"No answer: {unanswered}."
    n_across = sum(found.p_holm < ALPHA for result in results for found in result.over_datasets)
    made = [c for result in results for block in result.blocks for c in block.comparisons]
    named = n_across <= MOST_NAMED, sum(c.verdict.significant for c in made) <= MOST_NAMED
    alone = across_alone(found for result in results for found in result.over_datasets)
    answers = [_answer(result, *named, alone, len(results) > 1) for result in results]
    sentences = ["; ".join(answer) for answer in answers] if len(results) > 1 else answers[0]
    sentences += ["verdicts on single data sets are in the tables, as a family of their own"] if alone else []
    # Names of arms stay as they are.
    ours = ("across ", "no ", "of the ", "on single ", "verdicts ")
    return " ".join(f"{one[0].upper()}{one[1:]}." if one.startswith(ours) else f"{one}." for one in sentences)


def _answer(result: Result, name_across: bool, name_single: bool, alone: bool, several: bool) -> list[str]:
    """The parts of an answer. name_across, name_single: whether significant results are named, not counted; alone: only
    results across data sets; several: one metric of several, in short."""
    metric, blocks = result.metric, result.blocks
    parts = _across_data_sets(result.over_datasets, metric, name_across)
    if parts and alone:
        return parts
    made = [(block, c) for block in blocks for c in block.comparisons]
    tested = [(block, c) for block, c in made if c.verdict != Verdict.NO_TEST]
    if not tested and not parts:
        reasons = list(dict.fromkeys(c.warnings[0] for _, c in made if c.warnings))
        shown = "; ".join(reasons[:2]) + ("; ..." if len(reasons) > 2 else "")
        none = "the comparison cannot be tested" if len(made) == 1 else f"none of {len(made)} comparisons can be tested"
        return [f"no answer{f' in {metric.title}' if several else ''}: {none} ({shown})"]
    untested = len(made) - len(tested)
    if len(tested) == 1:
        parts.append(_only(*tested[0], metric, len(blocks) > 1))
    elif tested:
        first, *more = _many(tested, metric, len(blocks) > 1, name_single, several)
        named = name_single and any(c.verdict.significant for _, c in tested)
        parts += [f"on single data sets {first}" if parts and not named else first, *more]
    return [*parts, *([f"{pluralize(untested, 'comparison')} could not be tested"] if untested else [])]


def _across_data_sets(found: Sequence[OverDatasets], metric: Metric, name: bool) -> list[str]:
    """With several data sets the answer across them comes first, where there is a test."""
    found = [f for f in found if f.interval.share]
    if not found:
        return []
    clear = [f for f in found if f.p_holm < ALPHA]
    n = max(len(f.differences) for f in found)
    if clear and not name:
        better = sum((f.interval.mean > 0) == metric.higher_is_better for f in clear)
        return [
            f"across {n} data sets {len(clear)} of {pluralize(len(found), 'comparison')} differ significantly in "
            f"{metric.title}: {better} better, {len(clear) - better} worse"
        ]
    if not clear:
        return [
            f"across {pluralize(n, 'data set')} no candidate differs significantly from its reference in "
            f"{metric.title} ({pluralize(len(found), 'comparison')})"
        ]
    few = f", exploratory: fewer than {ENOUGH_DATASETS} data sets"
    return [
        f"across {len(f.differences)} data sets {f.candidate} is "
        f"{'better' if (f.interval.mean > 0) == metric.higher_is_better else 'worse'} than {f.reference} in "
        f"{metric.title}: {amount(metric, f.interval.mean)} (95 % interval {limits(metric, f.interval)}, Holm-adjusted "
        f"{_p(f.p_holm)}, {f.method}{few * (len(f.differences) < ENOUGH_DATASETS)})"
        for f in clear
    ]


def _only(block: Block, comparison: Comparison, metric: Metric, several: bool) -> str:
    """The only comparison, with any verdict."""
    if comparison.verdict.significant:
        return _named(block, comparison, metric, several)
    where, within = f" on {block.title}" if several else "", ""
    are = "do not differ significantly"
    if comparison.verdict == Verdict.EQUIVALENT:
        are, within = "are equivalent", f" {_within(metric, [comparison])}"
    return (
        f"{comparison.candidate} and {comparison.reference} {are} in {metric.title}{where}{within}: "
        f"{amount(metric, comparison.deciding.mean)} ({_evidence(comparison, metric)})"
    )


def _within(metric: Metric, equivalent: Sequence[Comparison]) -> str:
    """The rope, and the condition of equivalence."""
    conditions = list(dict.fromkeys(c.condition for c in equivalent if c.condition))
    condition = f", {conditions[0] if len(conditions) == 1 else 'each under its condition'}" if conditions else ""
    return f"within {amount(metric, metric.rope, signed=False)}{condition}"


def _many(tested: Sequence[Made], metric: Metric, several: bool, name: bool, short: bool) -> list[str]:
    """All significant comparisons are named, or none if there are too many."""
    clear = [(b, c) for b, c in tested if c.verdict.significant]
    equivalent = [c for _, c in tested if c.verdict == Verdict.EQUIVALENT]
    left = len(tested) - len(clear) - len(equivalent)
    rest = [f"{left} inconclusive"] if left else []
    rest += [f"{len(equivalent)} equivalent {_within(metric, equivalent)}"] if equivalent else []
    if not clear:
        text = (
            f"no candidate differs significantly from its reference in {metric.title} "
            f"({pluralize(len(tested), 'comparison')}: {', '.join(rest)})"
        )
        detectable = [c.minimum_detectable for _, c in tested if not math.isnan(c.minimum_detectable)]
        if detectable and not short:
            least = amount(metric, max(detectable), signed=False)
            text += f"; a single comparison like these detects differences of {least} or more (80 % power)"
        return [text]
    if name:
        sentences = [_named(b, c, metric, several) for b, c in clear]
    else:
        better = sum(c.verdict.word == Verdict.BETTER for _, c in clear)
        means = [c.deciding.mean for _, c in clear]
        scopes = " or ".join(dict.fromkeys(c.scope for _, c in clear))
        sentences = [
            f"{len(clear)} of {pluralize(len(tested), 'comparison')} differ significantly in {metric.title}: "
            f"{better} better, {len(clear) - better} worse than their reference, by {amount(metric, min(means))} to "
            f"{amount(metric, max(means))} (Holm-adjusted p < {ALPHA}; inference for {scopes})"
        ]
    return [*sentences, *([f"of the others: {', '.join(rest)}"] if rest else [])]


def _named(block: Block, comparison: Comparison, metric: Metric, several: bool) -> str:
    where = f" on {block.title}" if several else ""
    small = ", a negligible difference" if comparison.verdict.negligible else ""
    small += f" {comparison.condition}" if small and comparison.condition else ""
    return (
        f"{comparison.candidate} is {comparison.verdict.word} than {comparison.reference} in {metric.title}{where}: "
        f"{amount(metric, comparison.deciding.mean)}{small} ({_evidence(comparison, metric)})"
    )


def _evidence(comparison: Comparison, metric: Metric) -> str:
    """The interval, what the inference is for, p, and the number of seeds, folds and images."""
    # A test over folds has one seed per fold.
    few = ", exploratory" * (comparison.n_seeds < FEW_SEEDS and not comparison.method.resampled)
    if 1 < (comparison.n_groups or comparison.n_images) < FEWEST_UNITS:
        few = ", exploratory"
    kind = "repeated" if comparison.deciding.share < 1 else "95 %"
    return (
        f"{kind} interval {limits(metric, comparison.deciding)} for {comparison.scope}, Holm-adjusted "
        f"{_p(comparison.p_holm)}, {design(comparison)}{few}"
    )


def design(comparison: Comparison) -> str:
    """What a comparison rests on: 5 seeds x 60 images, or 1 seed x 5 folds x 60 images."""
    units = comparison.n_groups or comparison.n_images
    counts = ((comparison.n_splits, "split"), (comparison.n_folds, "fold"), (units, comparison.unit))
    return " x ".join([pluralize(comparison.n_seeds, "seed"), *(pluralize(n, what) for n, what in counts if n)])


def _p(p: float) -> str:
    shown = p_value(p)
    return f"p {shown[0]} {shown[1:]}" if shown.startswith("<") else f"p = {shown}"
