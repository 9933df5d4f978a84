"""Which figures a report has: each with a name, what it shows in words, and what was left out of it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from segexp.compare.datasets import WILCOXON
from segexp.compare.formatting import NOTHING, amount, decided, difference, limits, p_value, plain, score, with_unit
from segexp.compare.result import Answer, Block, Comparison, Factorial, Metric, OverDatasets, Panel, Ranks
from segexp.records.formatting import pluralize
from segexp.report import figures
from segexp.report.figures import MAX_LINES, MAX_ROWS, Looks
from segexp.report.formatting import against, scope, unit_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_IMAGE_FIGURES = 6
"""Comparisons of a block whose images are drawn; the values of all of them are in images.csv."""

SPOKEN = 8
"""Values that the description of a figure reads out; the tables beside it have all."""


@dataclass(frozen=True)
class Drawing:
    """A figure. name: of its file; alt: for those who do not see it; caption: below it, "" for none."""

    name: str
    alt: str
    caption: str
    figure: "Figure"


def of_block(block: Block, metric: Metric, name: str) -> list[Drawing]:
    """The forest plot of a block's comparisons, if any was tested."""
    tested = [found for found in block.comparisons if not math.isnan(found.deciding.low)]
    if not tested:
        return []
    spoken = [f"{against(f)}: {decided(metric, f)}, {f.verdict}" for f in tested]
    alt = f"Forest plot, {with_unit(metric, 'difference in')}, 95 % intervals. {_read_out(spoken)}"
    spoken_of = list(dict.fromkeys(scope(found) for found in tested if not math.isnan(found.overall.mean)))
    caption = f"Thick: {' or '.join(spoken_of)}, on which the verdict rests." if spoken_of else ""
    if any(_both(found) for found in tested):
        caption += " Thin: new seeds on these very images."
    if any(found.deciding is found.test_set for found in tested):
        caption += " Hollow: these very images only."
    if not math.isnan(metric.rope):
        caption += f" Shaded: negligible, within {amount(metric, metric.rope, signed=False)}."
    if len(tested) > MAX_ROWS:
        caption += f" {pluralize(len(tested) - MAX_ROWS, 'candidate')} of lower rank: in the table."
    untested = len(block.comparisons) - len(tested)
    if untested:
        caption += f" Without a test, and not drawn: {pluralize(untested, 'pair')}."
    return [Drawing(f"{name}-forest", alt, caption.strip(), figures.forest(tested, metric))]


def _both(found: Comparison) -> bool:
    """Whether there is an interval for these images beside a wider one."""
    return not math.isnan(found.overall.mean) and not math.isnan(found.test_set.low)


Pairs = tuple[tuple[str, tuple[Drawing, ...]], ...]


def of_images(block: Block, metric: Metric, name: str) -> tuple[Pairs, str]:
    """Two figures for each comparison that has images, under its title; a sentence on those left out, "" for none."""
    held = [f for f in block.comparisons if f.candidate_N is not None and f.reference_N is not None and len(f.units)]
    groups = tuple(
        (against(found), _images(found, metric, f"{name}-images-{n + 1}"))
        for n, found in enumerate(held[:MAX_IMAGE_FIGURES])
    )
    left_out = len(held) - len(groups)
    note = f"The figures of {pluralize(left_out, 'comparison')} more are left out; images.csv has their values."
    return groups, note if left_out else ""


def _images(found: Comparison, metric: Metric, name: str) -> tuple[Drawing, ...]:
    higher = int((found.candidate_N > found.reference_N).sum())  # type: ignore[operator]
    about = f"{against(found)}, {pluralize(len(found.units), unit_of(found))}"
    above = f"{higher} of {len(found.units)} above the diagonal"
    scatter = f"Scatter of {about}: {with_unit(metric)} of {found.candidate} over that of {found.reference}; {above}."
    apart = f"Differences of {about}, over the mean of both; mean difference {decided(metric, found)}."
    known = not math.isnan(found.deciding.low)
    band = "Line and band: mean difference and its 95 % interval." if known else "Line: mean difference."
    return (
        Drawing(f"{name}-scatter", scatter, f"{above}.", figures.image_scatter(found, metric)),
        Drawing(f"{name}-difference", apart, band, figures.image_differences(found, metric)),
    )


def scale_of(blocks: Sequence[Block]) -> tuple[float, float]:
    """The least and the largest mean of all heat maps of a report, so that a colour means the same in all of them."""
    factorials = [factorial for block in blocks for factorial in block.factorials]
    held = [mean for factorial in factorials for row in factorial.means for mean in row if not math.isnan(mean)]
    return (min(held), max(held)) if held else (0.0, 1.0)


def of_factorial(
    factorial: Factorial, metric: Metric, name: str, scale: tuple[float, float], where: str = ""
) -> Drawing:
    """The heat map of two factors. scale: scores of the darkest and the brightest cell; where: the block."""
    cells = [
        f"{row} with {column} {score(metric, mean)}"
        for row, means in zip(factorial.rows, factorial.means, strict=True)
        for column, mean in zip(factorial.columns, means, strict=True)
    ]
    about = f", {where}" if where else ""
    what = f"{with_unit(metric)}{about}, {factorial.row_factor} by {factorial.column_factor}"
    alt = f"Heat map of {what}: {_read_out(cells)}"
    return Drawing(
        f"{name}-heatmap",
        alt,
        "Number of seeds behind each cell: in the table. A dash: no run. Colours mean the same in all heat maps here.",
        figures.heat_map(factorial, metric, scale, where),
    )


def of_answer(answer: Answer, looks: Looks, name: str) -> list[Drawing]:
    """A figure per panel of a second question."""
    return [
        Drawing(f"{name}-{n + 1}", _panel_alt(panel), _left_out(panel), figures.panel(panel, looks))
        for n, panel in enumerate(map(figures.printed, answer.panels))
        if any(curve.x for curve in panel.curves)
    ]


def _panel_alt(panel: Panel) -> str:
    """What is drawn, and where every line ends."""
    drawn = [curve for curve in panel.curves[:MAX_LINES] if curve.x]
    what = f"{panel.title}: {panel.y_label} over {panel.x_label}"
    if panel.kind == "points":
        return f"{what}, points. {_read_out([f'{c.arm}: {len(c.x)}' for c in drawn])}"
    return f"{what}, a line per arm. Last values: {_read_out([f'{c.arm} {plain(c.y[-1])}' for c in drawn])}"


def _left_out(panel: Panel) -> str:
    more = len(panel.curves) - MAX_LINES
    told = [f"{pluralize(more, 'arm')} more not drawn: see the table."] if more > 0 else []
    told += [f"Cut off below {plain(panel.y_from)}{' points' * panel.y_points}."] if figures.cut_off(panel) else []
    return " ".join(told)


def of_datasets(found: Sequence[OverDatasets], ranks: Ranks | None, metric: Metric) -> list[Drawing]:
    """A forest plot over data sets for each candidate, and the critical-difference diagram where ranks are known."""
    drawn = []
    for n, one in enumerate(found[:MAX_IMAGE_FIGURES]):
        values = [f"{dataset} {difference(metric, value)}" for dataset, value in one.differences.items()]
        overall = f"over all {difference(metric, one.interval.mean)} {limits(metric, one.interval)}"
        alt = f"{one.candidate} minus {one.reference}, {with_unit(metric)}, by data set: {_read_out(values)}; {overall}"
        of_test = "of Wilcoxon's test: the two may disagree a little" if one.method == WILCOXON else "of the same t"
        caption = (
            "Dots: data sets; diamond: their mean, with the 95 % interval of a t over data sets. "
            f"p after Holm: {p_value(one.p_holm)}, {of_test}."
        )
        drawn.append(Drawing(f"datasets-{n + 1}", alt, caption, figures.over_datasets(one, metric)))
    if ranks is not None and len(ranks.ranks) > 1:
        spoken = [f"{arm} {rank:.2g}" for arm, rank in ranks.ranks.items()]
        alt = f"Critical-difference diagram of mean ranks, 1 is best: {_read_out(spoken)}"
        caption = "Mean ranks over data sets, 1 is best; a bar joins arms that cannot be told apart."
        drawn.append(Drawing("datasets-ranks", alt, caption, figures.ranks(ranks)))
    return drawn


def _read_out(values: Sequence[str]) -> str:
    more = len(values) - SPOKEN
    return "; ".join(values[:SPOKEN]) + (f"; and {more} more" if more > 0 else "") or NOTHING
