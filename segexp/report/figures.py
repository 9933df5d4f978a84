"""The figures of a report: which ones there are, their descriptions, and how matplotlib draws them.

Small figures with one axis each: side by side on a wide screen, stacked on a phone.
"""

import math
import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from segexp.compare import formatting as fmt
from segexp.compare.datasets import WILCOXON
from segexp.compare.result import (
    Answer,
    ArmScore,
    Block,
    Comparison,
    Curve,
    Factorial,
    Metric,
    OverDatasets,
    Panel,
    Ranks,
)
from segexp.records.formatting import BLUE, GREEN, STYLES, VERMILION, look, new_figure, pluralize, tidy
from segexp.report import tables
from segexp.report.tables import against, clean, interval_for, scope, score_limits, unique_labels, verdict

TEXT, MUTED, GRID = "#1b1f24", "#67707b", "#e6e6e6"
"""Colours of text, of secondary elements, and of the grid of `segexp.records.formatting.tidy`."""

VERDICT_COLOURS = {"better": GREEN, "worse": VERMILION, "equivalent": BLUE}
"""Other verdicts are muted."""

MAX_ROWS = 40
"""Rows of a forest plot; its table has all."""

MAX_LINES = 12
"""Arms of one panel: more lines cannot be told apart."""

MAX_VECTORS = 800
"""Points that are drawn one by one; more of them are rasterised, to keep files small."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X")

STYLE: Mapping[str, Any] = {
    "font.family": "sans-serif",
    **dict.fromkeys(("font.size", "axes.labelsize"), 10),
    **dict.fromkeys(("xtick.labelsize", "ytick.labelsize", "legend.fontsize"), 9.5),
    **{"axes.titlesize": 10.5, "axes.titleweight": "bold", "axes.titlelocation": "left", "axes.titlecolor": TEXT},
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"), TEXT),
    **dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color"), MUTED),
    "axes.axisbelow": True,
    # $ in a name is not mathematics.
    "text.parse_math": False,
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
}

Looks = Mapping[str, tuple[str, str]]
"""Colour and line style of every arm, the same in all figures."""


@contextmanager
def styled() -> Iterator[None]:
    """The style of all figures, which must be both made and written inside it: ticks are made when they are drawn."""
    style: Any = dict(STYLE)
    with rc_context(style), warnings.catch_warnings():
        # Characters that the font lacks become boxes in a bitmap; the page uses the fonts of the browser.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def looks_of(arms: Sequence[str]) -> dict[str, tuple[str, str]]:
    """A colour and a line style for each of the arms, in their order."""
    return {arm: look(n) for n, arm in enumerate(dict.fromkeys(arms))}


MAX_IMAGE_FIGURES = 6
"""Comparisons of a block whose images are drawn; images.csv has the values of all."""

DESCRIBED = 8
"""Values in the description of a figure; the tables beside it have all."""


@dataclass(frozen=True)
class Drawing:
    """A figure. name: of its file; alt: description for those who do not see it; caption: below it, "" for none."""

    name: str
    alt: str
    caption: str
    figure: Figure


def forest(block: Block, metric: Metric, name: str) -> list[Drawing]:
    """The forest plot of a block's comparisons, if any was tested."""
    tested = [found for found in block.comparisons if not math.isnan(found.deciding.low)]
    drawn = [pair_map(block, metric, name)] if block.n_pairs else []
    if not tested or block.n_pairs > tables.MAX_PAIRS:
        return drawn
    values = [f"{against(f)}: {fmt.estimate(metric, f.deciding)}, {verdict(f)}" for f in tested]
    alt = f"Forest plot, {fmt.with_unit(metric, 'difference in')}, {block.interval}s. {_listed(values)}"
    wide = [found for found in tested if not math.isnan(found.overall.mean)]
    caption = []
    if wide:
        scopes = " or ".join(dict.fromkeys(map(scope, wide)))
        caption.append(f"Thick: deciding {block.interval}, for {scopes}.")
    if any(not math.isnan(found.test_set.low) for found in wide):
        caption.append("Thin: interval for new seeds on these images.")
    if any(found.deciding is found.test_set for found in tested):
        caption.append("Hollow: deciding interval, for new seeds on these images alone.")
    if not math.isnan(metric.rope):
        caption.append(f"Shaded: negligible, within {fmt.amount(metric, metric.rope, signed=False)}.")
    if len(tested) > MAX_ROWS:
        caption.append(f"{pluralize(len(tested) - MAX_ROWS, 'candidate')} of lower rank: in the table.")
    if len(tested) < len(block.comparisons):
        untested = pluralize(len(block.comparisons) - len(tested), "pair")
        caption.append(f"Not drawn because there is no test: {untested}.")
    return [Drawing(f"{name}-forest", alt, " ".join(caption), draw_forest(tested, metric)), *drawn]


def pair_map(block: Block, metric: Metric, name: str) -> Drawing:
    """The differences of all pairs of arms, coloured by verdict."""
    arms = list(unique_labels([arm.arm for arm in block.ranking], 20).values())
    at = {arm.arm: n for n, arm in enumerate(block.ranking)}
    places: dict[Any, tuple[str, Any]] = {}
    for found in block.comparisons:
        tint = 0.6 + 0.4 * np.array(to_rgb(VERDICT_COLOURS.get(found.verdict.word, MUTED)))
        places[at[found.candidate], at[found.reference] - 1] = tables.pair_cell(found, metric), tint
    title = f"{fmt.with_unit(metric, 'difference in')}, row minus column"
    values = [f"{against(found)}: {tables.pair_cell(found, metric)}" for found in block.comparisons]
    colours = "Row minus column. Green: better, orange: worse, blue: equivalent, grey: not decided."
    figure = draw_cells(arms[:-1], arms[1:], places, title, tables.PAIR_MARKS)
    return Drawing(f"{name}-pairs", f"Map of {title}: {_listed(values)}", colours, figure)


def of_arms(block: Block, metric: Metric, name: str) -> list[Drawing]:
    """The mean of each arm with its 95 % interval, if any is known."""
    known = [arm for arm in block.ranking if not math.isnan(arm.interval.low)]
    if not known:
        return []
    values = [f"{arm.arm} {_mean(metric, arm)}" for arm in known]
    alt = f"Mean {fmt.with_unit(metric)} of each arm with its {block.interval}. {_listed(values)}"
    caption = [
        f"Bars: {block.interval} of each arm's mean, for {interval_for(known, metric)}. They are not for comparing arms"
        ": pairs are compared by their differences."
    ]
    if len(known) > MAX_ROWS:
        caption.append(f"{pluralize(len(known) - MAX_ROWS, 'arm')} of lower rank: in the table.")
    if len(known) < len(block.ranking):
        caption.append(f"Not drawn: {pluralize(len(block.ranking) - len(known), 'arm')} without an interval.")
    return [Drawing(f"{name}-arms", alt, " ".join(caption), draw_arms(known, metric))]


def _mean(metric: Metric, arm: ArmScore) -> str:
    return f"{fmt.score(metric, arm.mean)} {score_limits(metric, arm.interval)}"


Pairs = tuple[tuple[str, tuple[Drawing, ...]], ...]
"""Two figures under a title each."""


def of_images(block: Block, metric: Metric, name: str) -> tuple[Pairs, str]:
    """Two figures for each comparison with values of images; and how many comparisons are left out, "" for none."""
    shown = [f for f in block.comparisons if f.candidate_N is not None and f.reference_N is not None and len(f.units)]
    groups = []
    for n, found in enumerate(shown[:MAX_IMAGE_FIGURES]):
        higher = int((found.candidate_N > found.reference_N).sum())  # type: ignore[operator]
        about = f"{against(found)}, {pluralize(len(found.units), found.unit)}"
        above = f"{higher} of {len(found.units)} above the diagonal"
        which = f"{fmt.with_unit(metric)} of {found.candidate} against {found.reference}"
        scatter = f"Scatter of {about}: {which}; {above}."
        mean = fmt.estimate(metric, found.deciding)
        differences = f"Differences of {about}, against the mean of both; mean difference {mean}."
        tested = not math.isnan(found.deciding.low)
        band = f"Line and band: mean difference and its {block.interval}." if tested else "Line: mean difference."
        of_scatter, of_differences = draw_images(found, metric)
        first = Drawing(f"{name}-images-{n + 1}-scatter", scatter, f"{above}.", of_scatter)
        second = Drawing(f"{name}-images-{n + 1}-difference", differences, band, of_differences)
        groups.append((against(found), (first, second)))
    left_out = len(shown) - len(groups)
    note = f"No figures for {pluralize(left_out, 'more comparison')}; images.csv has the values."
    return tuple(groups), note if left_out else ""


def scale_of(blocks: Sequence[Block]) -> tuple[float, float]:
    """The least and the largest mean of all heat maps of a report, which share their colours."""
    factorials = [factorial for block in blocks for factorial in block.factorials]
    means = [mean for one in factorials for row in one.means for mean in row if not math.isnan(mean)]
    return (min(means), max(means)) if means else (0.0, 1.0)


def heat_map(factorial: Factorial, metric: Metric, name: str, scale: tuple[float, float], where: str = "") -> Drawing:
    """The heat map of two factors. scale: scores of the darkest and the brightest cell; where: the block."""
    cells = [
        f"{row} with {column} {fmt.score(metric, mean)}"
        for row, means in zip(factorial.rows, factorial.means, strict=True)
        for column, mean in zip(factorial.columns, means, strict=True)
    ]
    about = f", {where}" if where else ""
    what = f"{fmt.with_unit(metric)}{about}, {factorial.row_factor} by {factorial.column_factor}"
    caption = "The table has the number of seeds of each cell. Dash: no run. All heat maps here share their colours."
    figure = draw_heat_map(factorial, metric, scale, where)
    return Drawing(f"{name}-heatmap", f"Heat map of {what}: {_listed(cells)}", caption, figure)


def of_answer(answer: Answer, looks: Looks, name: str) -> list[Drawing]:
    """A figure per panel of a secondary analysis."""
    drawings = []
    for n, panel in enumerate(map(in_points, answer.panels)):
        drawn = [curve for curve in panel.curves[:MAX_LINES] if curve.x]
        if not any(curve.x for curve in panel.curves):
            continue
        how, values = "a line per arm. Last values:", [f"{c.arm} {fmt.plain(c.y[-1])}" for c in drawn]
        if panel.kind == "points":
            how, values = "points.", [f"{c.arm}: {len(c.x)}" for c in drawn]
        alt = f"{panel.title}: {panel.y_label} over {panel.x_label}, {how} {_listed(values)}"
        more = len(panel.curves) - MAX_LINES
        left_out = [f"{pluralize(more, 'more arm')} in the table."] if more > 0 else []
        left_out += [f"Cut off below {fmt.plain(panel.y_from)}{' points' * panel.y_points}."] if cut_off(panel) else []
        drawings.append(Drawing(f"{name}-{n + 1}", alt, " ".join(left_out), draw_panel(panel, looks)))
    return drawings


def of_datasets(found: Sequence[OverDatasets], ranks: Ranks | None, metric: Metric) -> list[Drawing]:
    """A forest plot over data sets for each candidate, and the critical-difference diagram where ranks are known."""
    drawn = []
    for n, one in enumerate(found[:MAX_IMAGE_FIGURES]):
        values = [f"{dataset} {fmt.difference(metric, value)}" for dataset, value in one.differences.items()]
        by_dataset = f"by data set: {_listed(values)}; over all {fmt.estimate(metric, one.interval)}"
        by_dataset += f"; for a new data set {fmt.between(metric, *one.prediction)}"
        alt = f"{one.candidate} minus {one.reference}, {fmt.with_unit(metric)}, {by_dataset}"
        test = "Wilcoxon's test, which can disagree slightly" if one.method == WILCOXON else "the same t test"
        caption = (
            "Dots: data sets. Diamond: their mean with the 95 % interval of a t test over data sets (thick), and "
            "where the difference on a new data set lies in 95 % (thin). "
            f"Holm-adjusted p: {fmt.p_value(one.p_holm)}, from {test}."
            if one.interval.share
            else "Dots: data sets. Diamond: their mean."
        )
        drawn.append(Drawing(f"datasets-{n + 1}", alt, caption, draw_over_datasets(one, metric)))
    if ranks is not None and len(ranks.ranks) > 1:
        values = [f"{arm} {rank:.2g}" for arm, rank in ranks.ranks.items()]
        alt = f"Critical-difference diagram of mean ranks, 1 is best: {_listed(values)}"
        caption = "Mean ranks over data sets, 1 is best. A bar joins arms that do not differ significantly."
        drawn.append(Drawing("datasets-ranks", alt, caption, draw_ranks(ranks)))
    return drawn


def _listed(values: Sequence[str]) -> str:
    more = len(values) - DESCRIBED
    return "; ".join(values[:DESCRIBED]) + (f"; and {more} more" if more > 0 else "") or fmt.NOTHING


# How they are drawn


def draw_forest(comparisons: Sequence[Comparison], metric: Metric) -> Figure:
    """A row per candidate: difference with both 95 % intervals, hollow for these images only; the negligible range."""
    shown = comparisons[:MAX_ROWS]
    references = {comparison.reference for comparison in comparisons}
    labels = unique_labels([name for c in shown for name in (c.candidate, c.reference)], 28)
    # With several references each is named in a second line.
    names = [labels[c.candidate] + f"\n{fmt.MINUS} {labels[c.reference]}" * (len(references) > 1) for c in shown]
    lines = max(name.count("\n") + 1 for name in names)
    figure = new_figure(5.2, 1.2 + (0.4 + 0.18 * lines) * len(shown))
    axis = figure.subplots()
    by = fmt.factor(metric)
    if not math.isnan(metric.rope):
        axis.axvspan(-by * metric.rope, by * metric.rope, color=MUTED, alpha=0.12, linewidth=0)
    axis.axvline(0, color=MUTED, linewidth=1)
    for y, comparison in enumerate(shown):
        colour = VERDICT_COLOURS.get(comparison.verdict.word, MUTED)
        wide, narrow = comparison.deciding, comparison.test_set
        hollow = {"markerfacecolor": "none"} if wide is narrow else {}
        axis.plot([by * wide.low, by * wide.high], [y, y], color=colour, linewidth=2.8, solid_capstyle="round")
        axis.plot([by * wide.mean], [y], "o", color=colour, markersize=7.5, **hollow)
        if wide is not narrow and not math.isnan(narrow.low):
            axis.plot([by * narrow.low, by * narrow.high], [y + 0.24] * 2, color=MUTED, linewidth=1.4)
        _row_label(axis, y, names[y], fmt.estimate(metric, wide))
    what = f"candidate minus {next(iter(references))}" if len(references) == 1 else "difference"
    _finish_rows(axis, len(shown) - 0.45, what, metric)
    return figure


def draw_arms(arms: Sequence[ArmScore], metric: Metric) -> Figure:
    """A row per arm, from the best to the worst: mean and 95 % interval."""
    shown, by = arms[:MAX_ROWS], fmt.factor(metric)
    labels = unique_labels([arm.arm for arm in shown], 28)
    lines = max(label.count("\n") + 1 for label in labels.values())
    figure = new_figure(5.2, 1.2 + (0.4 + 0.18 * lines) * len(shown))
    axis = figure.subplots()
    for y, arm in enumerate(shown):
        axis.plot([by * arm.interval.low, by * arm.interval.high], [y, y], color=BLUE, linewidth=1.8)
        axis.plot([by * arm.mean], [y], "o", color=BLUE, markersize=6.5)
        _row_label(axis, y, labels[arm.arm], _mean(metric, arm))
    _finish_rows(axis, len(shown) - 0.45, "mean of each arm", metric)
    return figure


def _finish_rows(axis: Axes, bottom: float, what: str, metric: Metric) -> None:
    """Rows down to ``bottom`` in place of a y axis; the x label has the unit and says which side is better."""
    tidy(axis)
    axis.grid(visible=False, axis="y")
    axis.spines["left"].set_visible(False)
    axis.set_yticks([])
    axis.xaxis.set_major_locator(MaxNLocator(6, steps=(1, 2, 5, 10)))  # more labels of this width touch each other
    axis.set_ylim(bottom, -0.6)
    better = "right" if metric.higher_is_better else "left"
    axis.set_xlabel(f"{_wrapped(what, 34)},\n{_wrapped(f'{fmt.with_unit(metric)}; better to the {better}', 34)}")


def _wrapped(text: str, width: int) -> str:
    """A title in at most three lines of ``width`` characters."""
    return "\n".join(textwrap.wrap(clean(text), width, max_lines=3, placeholder=" \u2026"))


def _row_label(axis: Axes, y: float, name: str, numbers: str) -> None:
    """A name with its numbers below, left of the axis."""
    place = axis.get_yaxis_transform()
    axis.text(-0.03, y - 0.05, name, transform=place, ha="right", va="bottom", fontsize=10.5)
    axis.text(-0.03, y + 0.03, numbers, transform=place, ha="right", va="top", fontsize=9.5, color=MUTED)


def draw_over_datasets(found: OverDatasets, metric: Metric) -> Figure:
    """The difference on each data set, and over all of them with its 95 % interval."""
    by = fmt.factor(metric)
    figure = new_figure(5.2, 1.8 + 0.34 * len(found.differences))
    axis = figure.subplots()
    axis.axvline(0, color=MUTED, linewidth=1)
    labels, place = unique_labels(list(found.differences), 30), axis.get_yaxis_transform()
    for y, (dataset, value) in enumerate(found.differences.items()):
        axis.plot([by * value], [y], "o", color=MUTED, markersize=5)
        axis.text(-0.03, y, labels[dataset], transform=place, ha="right", va="center", fontsize=9.5)
    last, interval = len(found.differences) + 0.3, found.interval
    bars = {"new data set, 95 %": (found.prediction, 1.2), "mean, 95 %": ((interval.low, interval.high), 3.4)}
    for label, (ends, width) in bars.items():
        axis.plot([by * end for end in ends], [last, last], color=BLUE, linewidth=width, label=label)
    axis.plot([by * interval.mean], [last], "D", color=BLUE, markersize=7)
    figure.legend(loc="outside lower right", ncols=2, frameon=False)
    _row_label(axis, last, "across data sets", fmt.estimate(metric, interval))
    _finish_rows(axis, last + 0.7, f"{found.candidate} minus {found.reference}", metric)
    return figure


def draw_heat_map(factorial: Factorial, metric: Metric, scale: tuple[float, float], where: str = "") -> Figure:
    """Mean scores by two factors, each cell with its number; a cell without runs is empty.

    scale: scores of the darkest and the brightest cell (the other way round where lower is better); where: the block.
    """
    # Levels at which other factors are held follow the name of the column factor.
    column_factor, _, fixed = factorial.column_factor.partition(", ")
    rows, columns = (list(unique_labels(levels, 20).values()) for levels in (factorial.rows, factorial.columns))
    # Brighter is better, also for metrics where lower is better.
    colours = colormaps["cividis" if metric.higher_is_better else "cividis_r"]
    norm = Normalize(scale[0], scale[1] if scale[1] > scale[0] else scale[0] + 1)
    cells = {
        place: (fmt.score(metric, mean), None if math.isnan(mean) else colours(norm(mean))[:3])
        for place, mean in np.ndenumerate(np.array(factorial.means, dtype=float))
    }
    title = f"mean {fmt.with_unit(metric)}, brighter is better"
    about = "; ".join(part for part in (where, fixed) if part)
    figure = draw_cells(rows, columns, cells, title, about)
    figure.axes[0].set(xlabel=_wrapped(column_factor, 30), ylabel=_wrapped(factorial.row_factor, 20))
    return figure


def draw_cells(
    rows: Sequence[str], columns: Sequence[str], cells: Mapping[Any, tuple[str, Any]], title: str, about: str
) -> Figure:
    """A table of coloured cells. cells: (row, column) -> text, and colour (red, green, blue) or None."""
    n_rows, n_columns = len(rows), len(columns)
    width = max(4.2, 1.9 + 0.72 * n_columns)
    title = "\n".join(_wrapped(text, round(11 * width)) for text in (title, about) if text)
    lines = max(row.count("\n") + 1 for row in rows)
    figure = new_figure(width, 1.5 + 0.17 * title.count("\n") + (0.3 + 0.16 * lines) * n_rows)
    axis = figure.subplots()
    for (i, j), (text, colour) in cells.items():
        ink = MUTED
        if colour is not None:
            axis.add_patch(Rectangle((j, i), 1, 1, facecolor=colour, edgecolor=MUTED, linewidth=0.4))
            red, green, blue = colour
            ink = "#ffffff" if 0.299 * red + 0.587 * green + 0.114 * blue < 0.5 else "#111111"
        axis.text(j + 0.5, i + 0.5, text, ha="center", va="center", color=ink, fontsize=9)
    turned = n_columns > 4 or any(len(column) > 9 for column in columns)
    how: Any = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if turned else {}
    axis.set_xticks(np.arange(n_columns) + 0.5, columns, **how)
    axis.set_yticks(np.arange(n_rows) + 0.5, rows)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    axis.set(xlim=(0, n_columns), ylim=(n_rows, 0))
    figure.suptitle(title, x=0.02, ha="left", fontsize=10.5, fontweight="bold")
    return figure


def draw_images(comparison: Comparison, metric: Metric) -> tuple[Figure, Figure]:
    """Each image (or group), means over seeds: score of the candidate against score of the reference; and difference
    against the mean of both, with the mean difference and its interval."""
    assert comparison.reference_N is not None
    assert comparison.candidate_N is not None
    by, unit, interval = fmt.factor(metric), comparison.unit, comparison.deciding
    x, y = comparison.reference_N * by, comparison.candidate_N * by
    points = {"color": BLUE, "markersize": 4.5, "alpha": 0.7, "mew": 0, "rasterized": len(x) > MAX_VECTORS}
    scatter, difference_plot = new_figure(3.4, 3.3), new_figure(3.4, 3.3)
    axis = scatter.subplots()
    ends = [min(x.min(), y.min()), max(x.max(), y.max())]
    axis.plot(ends, ends, color=MUTED, linewidth=1, linestyle="--")
    axis.plot(x, y, "o", **points)
    axis.set_aspect("equal", adjustable="datalim")
    tidy(axis)
    x_label = _wrapped(f"{comparison.reference}, {fmt.with_unit(metric)}", 24)
    axis.set(title=f"each {unit},\nmeans over seeds", xlabel=x_label, ylabel=_wrapped(comparison.candidate, 28))
    axis = difference_plot.subplots()
    axis.axhline(0, color=MUTED, linewidth=1, linestyle="--")
    if not math.isnan(interval.low):
        axis.axhspan(by * interval.low, by * interval.high, color=VERMILION, alpha=0.2, linewidth=0)
    axis.axhline(by * interval.mean, color=VERMILION, linewidth=1.6)
    axis.plot((x + y) / 2, y - x, "o", **points)
    tidy(axis)
    x_label, y_label = f"mean of both, {fmt.with_unit(metric)}", f"{comparison.candidate} minus reference"
    axis.set(title=f"difference of each {unit}", xlabel=_wrapped(x_label, 24), ylabel=_wrapped(y_label, 28))
    return scatter, difference_plot


def draw_panel(shown: Panel, looks: Looks) -> Figure:
    """The curves or points of a secondary analysis with their bands, at most `MAX_LINES`. shown: as of `in_points`."""
    curves = shown.curves[:MAX_LINES]
    labels = unique_labels([curve.arm for curve in curves], 44)
    lines = max((label.count("\n") + 1 for label in labels.values()), default=1)
    widest = max((len(line) for label in labels.values() for line in label.splitlines()), default=0)
    columns = 3 if widest <= 12 else 2 if widest <= 22 else 1
    title = _wrapped(shown.title, 34)
    entries = len(curves) + (shown.guide is not None)
    figure = new_figure(4.3, 3.2 + 0.2 * lines * math.ceil(entries / columns) + 0.2 * title.count("\n"))
    axis = figure.subplots()
    if shown.diagonal:
        axis.axline((0, 0), slope=1, color=MUTED, linewidth=1, linestyle="--")
        axis.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    if shown.guide is not None:
        axis.plot(shown.guide.x, shown.guide.y, color=MUTED, linewidth=1.2, label=shown.guide.arm)
    dense = sum(len(curve.x) for curve in curves) > MAX_VECTORS
    for n, curve in enumerate(curves):
        colour, style = looks.get(curve.arm, look(n))
        label = labels[curve.arm]
        marker = MARKERS[STYLES.index(style) * 2 % len(MARKERS)]
        # matplotlib leaves labels that begin with an underscore out of a legend.
        label = f"\u200b{label}" if label.startswith("_") else label
        # A line through a single point is invisible.
        if shown.kind == "points" or len(curve.x) == 1:
            how = {"color": colour, "markersize": 6, "alpha": 0.75, "mew": 0, "rasterized": dense}
            axis.plot(curve.x, curve.y, marker, label=label, **how)
            if curve.low:
                axis.vlines(curve.x, curve.low, curve.high, color=colour, linewidth=1.2, alpha=0.75)
            continue
        # There are fewer colours than arms; markers help where line styles alone tell arms apart.
        marked = {"marker": marker, "markersize": 4.5, "markevery": max(1, len(curve.x) // 6)}
        again = marked if style != STYLES[0] else {}
        axis.plot(curve.x, curve.y, style, color=colour, linewidth=1.7, label=label, **again)
        if curve.low:
            axis.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=0.16, linewidth=0)
    _scale_x(axis, shown.log_x, [v for curve in curves for v in curve.x])
    if shown.log_y:
        _log(axis, "y", [v for curve in curves for v in curve.y])
    elif shown.name == "ranking":
        axis.locator_params(axis="y", integer=True)  # there is no rank 1.25
    if cut_off(shown):
        axis.set_ylim(bottom=shown.y_from)
    # Where all values are 0, an axis begins at 0: none of these values can be negative.
    if curves and not any(value for curve in curves for value in curve.x):
        axis.set_xlim(-0.002, 0.1)
    if curves and not any(value for curve in curves for value in (*curve.y, *curve.low, *curve.high)):
        axis.set_ylim(-0.002, 0.1)
    tidy(axis)
    axis.set(title=title, xlabel=_wrapped(shown.x_label, 38), ylabel=_wrapped(shown.y_label, 30))
    if curves:
        figure.legend(loc="outside lower left", ncols=columns, frameon=False, handlelength=1.6, columnspacing=1.2)
    return figure


def in_points(shown: Panel) -> Panel:
    """The panel with values in points where they are printed so, as in every table."""
    x, y = (100 if points else 1 for points in (shown.x_points, shown.y_points))

    def scaled(curve: Curve) -> Curve:
        places = tuple(x * value for value in curve.x)
        values, low, high = (tuple(y * value for value in part) for part in (curve.y, curve.low, curve.high))
        return replace(curve, x=places, y=values, low=low, high=high)

    return replace(
        shown,
        x_label=shown.x_label + " (points)" * shown.x_points,
        y_label=shown.y_label + " (points)" * shown.y_points,
        curves=tuple(scaled(curve) for curve in shown.curves),
        guide=scaled(shown.guide) if shown.guide else None,
        y_from=y * shown.y_from,
    )


def cut_off(shown: Panel) -> bool:
    """Whether values lie below the lowest one that is drawn."""
    return any(value < shown.y_from for curve in shown.curves for value in (*curve.y, *curve.low))


def _scale_x(axis: Axes, log: bool, values: Sequence[float]) -> None:
    """Logarithmic, or with whole ticks where all values are whole: there is no epoch 1.25."""
    if log:
        _log(axis, "x", values)
    elif any(values) and all(float(value).is_integer() for value in values):
        axis.locator_params(axis="x", integer=True)
        if len(set(values)) == 1:
            axis.set(xlim=(values[0] - 1, values[0] + 1), xticks=values[:1])


def _log(axis: Axes, which: str, values: Sequence[float]) -> None:
    """A logarithmic axis with plain numbers; linear where no value is above 0, or all are equal."""
    held = [value for value in values if value > 0]
    if not held or min(held) == max(held):
        return
    axis.set(**{f"{which}scale": "log"})
    numbered, ratio = axis.xaxis if which == "x" else axis.yaxis, max(held) / min(held)
    # Over one or two decades, powers of ten alone are too few ticks.
    ticks = MaxNLocator(4) if ratio < 10 else LogLocator(subs=(1, 2, 5) if ratio < 100 else (1,))
    numbered.set_major_locator(ticks)
    numbered.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    numbered.set_minor_formatter(NullFormatter())


def draw_ranks(found: Ranks) -> Figure:
    """Critical-difference diagram: mean ranks over data sets, 1 is best; bars join arms that do not differ."""
    import pandas as pd
    from scikit_posthocs import critical_difference_diagram

    # The library takes equal names for one arm.
    names = list(unique_labels(list(found.ranks), 24).values())
    figure = new_figure(5.2, 1.4 + 0.28 * len(names) * max(name.count("\n") + 1 for name in names))
    axis = figure.subplots()
    critical_difference_diagram(
        pd.Series(list(found.ranks.values()), index=names),
        pd.DataFrame(found.p, index=names, columns=names),
        ax=axis,
        label_props={"fontsize": 9.5},
        elbow_props={"color": TEXT, "linewidth": 1.2},
        marker_props={"color": BLUE},
        crossbar_props={"color": VERMILION, "linewidth": 3},
    )
    return figure
