"""How matplotlib draws the figures of a report: their style, colours and axes.

Small figures with one axis each: side by side on a wide screen, stacked on a phone.
"""

import math
import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from segexp.compare import formatting as fmt
from segexp.compare.result import ArmScore, Comparison, Curve, Factorial, Metric, OverDatasets, Panel, Ranks
from segexp.records.formatting import BLUE, GREEN, STYLES, VERMILION, look, new_figure, tidy
from segexp.report.tables import clean, score_limits, unique_labels

if TYPE_CHECKING:  # half a second to import, and a report whose figures are kept needs none of it
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TEXT, MUTED, GRID = "#1b1f24", "#67707b", "#e6e6e6"
"""Colours of text, of secondary elements, and of the grid of `segexp.records.formatting.tidy`."""

VERDICT_COLOURS = {"better": GREEN, "worse": VERMILION, "equivalent": BLUE}
"""Other verdicts are muted."""

MAX_ROWS = 40
"""Rows of a forest plot; its table has all."""

MAX_LINES = 12
"""Arms of one panel: more lines look alike."""

MAX_VECTORS = 800
"""Points that are drawn one by one; more of them are rasterised, to keep files small."""

BELOW, SEEDS_BELOW = 0.3, 0.22
"""Rows between the data sets and the result across them, and between an arm and its seeds."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X")

STYLE: Mapping[str, Any] = {
    "font.family": "sans-serif",
    **dict.fromkeys(("font.size", "axes.labelsize"), 10),
    **dict.fromkeys(("xtick.labelsize", "ytick.labelsize", "legend.fontsize"), 9.5),
    **{"axes.titlesize": 10.5, "axes.titleweight": "bold", "axes.titlelocation": "left", "axes.titlecolor": TEXT},
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"), TEXT),
    **dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color"), MUTED),
    "axes.axisbelow": True,
    # Looking for what lies above an axis, where none of ours has anything, takes a sixth of the time to draw it.
    "axes.titley": 1.0,
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
    from matplotlib import rc_context

    style: Any = dict(STYLE)
    with rc_context(style), warnings.catch_warnings():
        # Characters that the font lacks become boxes in a bitmap; the page uses the fonts of the browser.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def looks_of(arms: Sequence[str]) -> dict[str, tuple[str, str]]:
    """A colour and a line style for each of the arms, in their order."""
    return {arm: look(n) for n, arm in enumerate(dict.fromkeys(arms))}


def mean_of(metric: Metric, arm: ArmScore) -> str:
    return f"{fmt.score(metric, arm.mean)} {score_limits(metric, arm.interval)}"


def draw_forest(comparisons: Sequence[Comparison], metric: Metric) -> "Figure":
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
        row_label(axis, y, names[y], fmt.estimate(metric, wide))
    what = f"candidate minus {next(iter(references))}" if len(references) == 1 else "difference"
    finish_rows(axis, len(shown) - 0.45, what, metric)
    return figure


def draw_arms(arms: Sequence[ArmScore], metric: Metric) -> "Figure":
    """A row per arm, from the best to the worst: mean and 95 % interval."""
    shown, by = arms[:MAX_ROWS], fmt.factor(metric)
    labels = unique_labels([arm.arm for arm in shown], 28)
    lines = max(label.count("\n") + 1 for label in labels.values())
    figure = new_figure(5.2, 1.2 + (0.4 + 0.18 * lines) * len(shown))
    axis = figure.subplots()
    for y, arm in enumerate(shown):
        axis.plot([by * arm.interval.low, by * arm.interval.high], [y, y], color=BLUE, linewidth=1.8)
        axis.plot([by * arm.mean], [y], "o", color=BLUE, markersize=6.5)
        seeds = [by * value for value in arm.seeds.values()]
        axis.plot(seeds, [y + SEEDS_BELOW] * len(seeds), "|", color=MUTED, markersize=7)
        row_label(axis, y, labels[arm.arm], mean_of(metric, arm))
    finish_rows(axis, len(shown) - 0.45, "mean of each arm", metric)
    return figure


def draw_distributions(values: Mapping[str, Sequence[float]], metric: Metric, unit: str) -> "Figure":
    """A row per arm: its values as dots, with a box from the lower to the upper quartile and whiskers to 5 and 95 %."""
    from matplotlib.patches import Rectangle

    labels = unique_labels(list(values), 28)
    lines = max(label.count("\n") + 1 for label in labels.values())
    figure = new_figure(5.2, 1.2 + (0.6 + 0.18 * lines) * len(values))
    axis = figure.subplots()
    for y, (arm, x_N) in enumerate(values.items()):
        how: Any = {"markersize": 4, "alpha": 0.5, "mew": 0, "rasterized": len(x_N) > MAX_VECTORS}
        axis.plot(np.array(x_N) * fmt.factor(metric), y + spread(len(x_N)), "o", color=BLUE, **how)
        low, lower, median, upper, high = np.quantile(x_N, (0.05, 0.25, 0.5, 0.75, 0.95)) * fmt.factor(metric)
        axis.plot([low, lower, math.nan, upper, high], [y] * 5, color=TEXT, linewidth=1.2)
        axis.add_patch(Rectangle((lower, y - 0.22), upper - lower, 0.44, fill=False, edgecolor=TEXT, linewidth=1.2))
        axis.plot([median] * 2, [y - 0.22, y + 0.22], color=VERMILION, linewidth=2.2)
        row_label(axis, y, labels[arm], f"median {fmt.score(metric, float(np.median(x_N)))}")
    finish_rows(axis, len(values) - 0.45, f"each {unit}, means over seeds", metric)
    return figure


def spread(n: int) -> np.ndarray:
    """Places of n dots across a row, in [-0.3, 0.3], so that few cover each other: always the same."""
    return 0.6 * (np.arange(n) * 0.618034 % 1 - 0.5)


def finish_rows(axis: "Axes", bottom: float, what: str, metric: Metric) -> None:
    """Rows down to ``bottom`` in place of a y axis; the x label has the unit and says which side is better."""
    from matplotlib.ticker import MaxNLocator

    tidy(axis)
    axis.grid(visible=False, axis="y")
    axis.spines["left"].set_visible(False)
    axis.set_yticks([])
    axis.xaxis.set_major_locator(MaxNLocator(6, steps=(1, 2, 5, 10)))  # more labels of this width touch each other
    axis.set_ylim(bottom, -0.6)
    better = "right" if metric.higher_is_better else "left"
    axis.set_xlabel(f"{wrapped(what, 34)},\n{wrapped(f'{fmt.with_unit(metric)}; better to the {better}', 34)}")


def wrapped(text: str, width: int) -> str:
    """A title in at most three lines of ``width`` characters."""
    return "\n".join(textwrap.wrap(clean(text), width, max_lines=3, placeholder=" \u2026"))


def row_label(axis: "Axes", y: float, name: str, numbers: str) -> None:
    """A name with its numbers below, left of the axis."""
    place = axis.get_yaxis_transform()
    axis.text(-0.03, y - 0.05, name, transform=place, ha="right", va="bottom", fontsize=10.5)
    axis.text(-0.03, y + 0.03, numbers, transform=place, ha="right", va="top", fontsize=9.5, color=MUTED)


def draw_over_datasets(found: OverDatasets, metric: Metric) -> "Figure":
    """The difference on each data set, and over all of them with its 95 % interval."""
    by = fmt.factor(metric)
    figure = new_figure(5.2, 1.8 + 0.34 * len(found.differences))
    axis = figure.subplots()
    axis.axvline(0, color=MUTED, linewidth=1)
    labels, place = unique_labels(list(found.differences), 30), axis.get_yaxis_transform()
    for y, (dataset, value) in enumerate(found.differences.items()):
        axis.plot([by * value], [y], "o", color=MUTED, markersize=5)
        axis.text(-0.03, y, labels[dataset], transform=place, ha="right", va="center", fontsize=9.5)
    last, interval = len(found.differences) + BELOW, found.interval
    bars = {"new data set, 95 %": (found.prediction, 1.2), "mean, 95 %": ((interval.low, interval.high), 3.4)}
    for label, (ends, width) in bars.items():
        axis.plot([by * end for end in ends], [last, last], color=BLUE, linewidth=width, label=label)
    axis.plot([by * interval.mean], [last], "D", color=BLUE, markersize=7)
    figure.legend(loc="outside lower right", ncols=2, frameon=False)
    row_label(axis, last, "across data sets", fmt.estimate(metric, interval))
    finish_rows(axis, last + 0.7, f"{found.candidate} minus {found.reference}", metric)
    return figure


def draw_heat_map(factorial: Factorial, metric: Metric, scale: tuple[float, float], where: str = "") -> "Figure":
    """Mean scores by two factors, each cell with its number; a cell without runs is empty.

    scale: scores of the darkest and the brightest cell (the other way round where lower is better); where: the block.
    """
    # Levels at which other factors are held follow the name of the column factor.
    from matplotlib import colormaps
    from matplotlib.colors import Normalize

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
    figure.axes[0].set(xlabel=wrapped(column_factor, 30), ylabel=wrapped(factorial.row_factor, 20))
    return figure


def draw_cells(
    rows: Sequence[str], columns: Sequence[str], cells: Mapping[Any, tuple[str, Any]], title: str, about: str
) -> "Figure":
    """A table of coloured cells. cells: (row, column) -> text, and colour (red, green, blue) or None."""
    from matplotlib.patches import Rectangle

    n_rows, n_columns = len(rows), len(columns)
    width = max(4.2, 1.9 + 0.72 * n_columns)
    title = "\n".join(wrapped(text, round(11 * width)) for text in (title, about) if text)
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


def _of_images(comparison: Comparison, metric: Metric) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """The scores of the reference and of the candidate, and how their points are drawn."""
    assert comparison.reference_N is not None
    assert comparison.candidate_N is not None
    x, y = comparison.reference_N * fmt.factor(metric), comparison.candidate_N * fmt.factor(metric)
    return x, y, {"color": BLUE, "markersize": 4.5, "alpha": 0.7, "mew": 0, "rasterized": len(x) > MAX_VECTORS}


def draw_scatter(comparison: Comparison, metric: Metric) -> "Figure":
    """Each image (or group), means over seeds: score of the candidate against score of the reference."""
    x, y, points = _of_images(comparison, metric)
    figure = new_figure(3.4, 3.3)
    axis = figure.subplots()
    ends = [min(x.min(), y.min()), max(x.max(), y.max())]
    axis.plot(ends, ends, color=MUTED, linewidth=1, linestyle="--")
    axis.plot(x, y, "o", **points)
    axis.set_aspect("equal", adjustable="datalim")
    tidy(axis)
    x_label = wrapped(f"{comparison.reference}, {fmt.with_unit(metric)}", 24)
    title = f"each {comparison.unit},\nmeans over seeds"
    axis.set(title=title, xlabel=x_label, ylabel=wrapped(comparison.candidate, 28))
    return figure


def draw_differences(comparison: Comparison, metric: Metric) -> "Figure":
    """Each image (or group): difference against the mean of both, with the mean difference and its interval."""
    x, y, points = _of_images(comparison, metric)
    by, interval, figure = fmt.factor(metric), comparison.deciding, new_figure(3.4, 3.3)
    axis = figure.subplots()
    axis.axhline(0, color=MUTED, linewidth=1, linestyle="--")
    if not math.isnan(interval.low):
        axis.axhspan(by * interval.low, by * interval.high, color=VERMILION, alpha=0.2, linewidth=0)
    axis.axhline(by * interval.mean, color=VERMILION, linewidth=1.6)
    axis.plot((x + y) / 2, y - x, "o", **points)
    tidy(axis)
    x_label, y_label = f"mean of both, {fmt.with_unit(metric)}", f"{comparison.candidate} minus reference"
    title = f"difference of each {comparison.unit}"
    axis.set(title=title, xlabel=wrapped(x_label, 24), ylabel=wrapped(y_label, 28))
    return figure


def draw_panel(shown: Panel, looks: Looks) -> "Figure":
    """The curves or points of a secondary analysis with their bands, at most `MAX_LINES`. shown: as of `in_points`."""
    curves = shown.curves[:MAX_LINES]
    labels = unique_labels([curve.arm for curve in curves], 44)
    lines = max((label.count("\n") + 1 for label in labels.values()), default=1)
    widest = max((len(line) for label in labels.values() for line in label.splitlines()), default=0)
    columns = 3 if widest <= 12 else 2 if widest <= 22 else 1
    title = wrapped(shown.title, 34)
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
        marked = {"marker": marker, "markersize": 4.5, "markevery": 1 if shown.x_names else max(1, len(curve.x) // 6)}
        again = marked if style != STYLES[0] or shown.x_names or len(curve.x) < 8 else {}
        axis.plot(curve.x, curve.y, style, color=colour, linewidth=1.7, label=label, **again)
        if curve.low:
            axis.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=0.16, linewidth=0)
    axis.locator_params(axis="x", nbins=5)  # labels such as 0.4825 touch each other
    _scale_x(axis, shown, [v for curve in curves for v in curve.x])
    if shown.log_y:
        _log(axis, "y", [v for curve in curves for v in curve.y])
    elif shown.name in ("ranking", "metrics"):
        axis.locator_params(axis="y", integer=True)  # there is no rank 1.25
        axis.invert_yaxis()
    if cut_off(shown):
        axis.set_ylim(bottom=shown.y_from)
    # Where all values are 0, an axis begins at 0: none of these values can be negative.
    if curves and not any(value for curve in curves for value in curve.x):
        axis.set_xlim(-0.002, 0.1)
    if curves and not any(value for curve in curves for value in (*curve.y, *curve.low, *curve.high)):
        axis.set_ylim(-0.002, 0.1)
    tidy(axis)
    axis.set(title=title, xlabel=wrapped(shown.x_label, 38), ylabel=wrapped(shown.y_label, 30))
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


def _scale_x(axis: "Axes", shown: Panel, values: Sequence[float]) -> None:
    """With names, logarithmic, or with whole ticks where all values are whole: there is no epoch 1.25."""
    if shown.x_names:
        axis.set_xticks(
            range(1, len(shown.x_names) + 1), shown.x_names, rotation=60, ha="right", rotation_mode="anchor"
        )
    elif shown.log_x:
        _log(axis, "x", values)
    elif any(values) and all(float(value).is_integer() for value in values):
        axis.locator_params(axis="x", integer=True)
        if len(set(values)) == 1:
            axis.set(xlim=(values[0] - 1, values[0] + 1), xticks=values[:1])


def _log(axis: "Axes", which: str, values: Sequence[float]) -> None:
    """A logarithmic axis with plain numbers; linear where no value is above 0, or all are equal."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

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


def draw_ranks(found: Ranks) -> "Figure":
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
