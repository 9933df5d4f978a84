"""The answer in a sentence, with its interval; or why the runs cannot give one."""

from collections.abc import Sequence

from segexp.compare.pairs import deciding
from segexp.compare.result import Block, Comparison, Metric


def amount(value: float, metric: Metric, signed: bool = True) -> str:
    """A difference as it is printed: +1.23 points, or in the metric's own unit."""
    sign = "+" if signed else ""
    return f"{100 * value:{sign}.2f} points" if metric.points else f"{value:{sign}.3g}"


def interval_text(comparison: Comparison, metric: Metric) -> str:
    """[0.31, 2.10] in the unit that differences are printed in."""
    interval, scale = deciding(comparison), 100 if metric.points else 1
    form = ".2f" if metric.points else ".3g"
    return f"[{scale * interval.low:{form}}, {scale * interval.high:{form}}]"


def headline(blocks: Sequence[Block], metric: Metric, unanswered: str) -> str:
    """One sentence or two. unanswered: why nothing is compared, where that is so.

    The best of many is never named for being the best: every significant comparison is, or none.
    """
    made = [(block, c) for block in blocks for c in block.comparisons]
    if not made:
        return f"No answer: {unanswered}."
    tested = [(block, c) for block, c in made if c.verdict != "no test"]
    if not tested:
        reasons = dict.fromkeys(note for _, c in made for note in c.warnings[:1])
        return f"No answer: none of {_counted(len(made), 'comparison')} can be tested ({'; '.join(list(reasons)[:2])})."
    several = len(blocks) > 1
    clear = [(b, c) for b, c in tested if c.verdict.startswith(("better", "worse"))]
    parts = [_told(b, c, metric, several) for b, c in clear[:4]]
    if len(clear) > 4:
        parts.append(f"{len(clear) - 4} more differ")
    rest = [(b, c) for b, c in tested if (b, c) not in clear]
    if len(rest) == 1 and not clear:
        return _single(*rest[0], metric, several)
    text = ". ".join(parts)
    if not clear:
        number = _counted(len(tested), "comparison")
        text = f"No candidate differs significantly from its reference in {metric.title} ({number})"
        found = [c.minimum_detectable for _, c in tested if c.minimum_detectable == c.minimum_detectable]
        if found:
            text += f"; the design finds differences of {amount(max(found), metric, False)} with 80 % power"
    equivalent = sum(c.verdict == "equivalent" for _, c in rest)
    open_ones = len(rest) - equivalent
    said = [f"{equivalent} equivalent within {amount(metric.rope, metric, False)}"] if equivalent else []
    said += [f"{open_ones} inconclusive"] if open_ones else []
    if said:
        text += f". {'Of the others' if clear else 'Of them'}: {', '.join(said)}"
    untested = len(made) - len(tested)
    return text + (f"; {untested} could not be tested." if untested else ".")


def _told(block: Block, comparison: Comparison, metric: Metric, several: bool) -> str:
    where = f" on {block.title}" if several else ""
    small = ", a negligible difference" if "negligible" in comparison.verdict else ""
    word = comparison.verdict.split(",")[0]
    return (
        f"{comparison.candidate} is {word} than {comparison.reference} in {metric.title}{where}: "
        f"{amount(deciding(comparison).mean, metric)} (95 % interval {interval_text(comparison, metric)}, "
        f"Holm-adjusted p = {comparison.p_holm:.2g}, {_design(comparison)}){small}"
    )


def _single(block: Block, comparison: Comparison, metric: Metric, several: bool) -> str:
    where = f" on {block.title}" if several else ""
    same = comparison.verdict == "equivalent"
    told = "are equivalent" if same else "cannot be told apart"
    within = f" within {amount(metric.rope, metric, False)}" if same else ""
    return (
        f"{comparison.candidate} and {comparison.reference} {told}{within} in {metric.title}{where}: "
        f"{amount(deciding(comparison).mean, metric)} (95 % interval {interval_text(comparison, metric)}, "
        f"{_design(comparison)})."
    )


def _design(comparison: Comparison) -> str:
    seeds = _counted(comparison.n_seeds, "seed")
    units = comparison.n_groups or comparison.n_images
    if not units:
        return seeds
    what = "image" if comparison.n_groups in (0, comparison.n_images) else "group"
    return f"{seeds} x {_counted(units, what)}"


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"
