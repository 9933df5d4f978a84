"""The figures of a report: what compare found in, a matplotlib figure out. Nothing is computed here but places.

Small figures, each of one axis: side by side on a wide screen, one below the other on a phone, legible on both.
"""

import math
import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from segexp.compare.formatting import MINUS, NOTHING, difference, factor, limits, score, with_unit
from segexp.compare.result import Comparison, Curve, Factorial, Metric, OverDatasets, Panel, Ranks
from segexp.records.formatting import BLUE, GREEN, STYLES, VERMILION, look, new_figure, tidy
from segexp.report.formatting import apart, clean, unit_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TEXT, MUTED, GRID = "#1b1f24", "#67707b", "#e6e6e6"
"""Ink, what stands back, and the grid of `segexp.records.formatting.tidy`; on the page they follow light and dark."""

VERDICT_COLOURS = {"better": GREEN, "worse": VERMILION, "equivalent": BLUE}
"""By the first word of a verdict; everything undecided is muted. The words stand beside the colours."""

MAX_ROWS = 40
"""Rows of a forest plot; the others stand in its table."""

MAX_LINES = 12
"""Arms of one panel: more lines than that nobody tells apart."""

MAX_VECTORS = 800
"""Points of an axis that are drawn one by one; more of them become a picture inside the figure."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X")

STYLE: Mapping[str, Any] = {
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 10,
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
    "legend.fontsize": 9.5,
    "text.color": TEXT,
    "axes.labelcolor": TEXT,
    "axes.titlecolor": TEXT,
    "axes.edgecolor": MUTED,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": TEXT,
    "ytick.labelcolor": TEXT,
    "axes.axisbelow": True,
    # A name with $ in it is a name, not mathematics.
    "text.parse_math": False,
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
}

Looks = Mapping[str, tuple[str, str]]
"""Colour and line style of every arm, the same in all figures."""


@contextmanager
def styled() -> Iterator[None]:
    """Figures are made and written inside this: ticks are made only when they are drawn."""
    from matplotlib import rc_context

    style: Any = dict(STYLE)
    with rc_context(style), warnings.catch_warnings():
        # A name in a script that the font lacks shows boxes in a bitmap; on the page the reader's own fonts have it.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def looks_of(arms: Sequence[str]) -> dict[str, tuple[str, str]]:
    """A colour and a line style for each of the arms, in their order."""
    return {arm: look(n) for n, arm in enumerate(dict.fromkeys(arms))}


def forest(comparisons: Sequence[Comparison], metric: Metric) -> "Figure":
    """Differences with both 95 % intervals, a row per candidate, and the range that is negligible.

    Hollow where only this test set can be spoken of.
    """
    shown = comparisons[:MAX_ROWS]
    references = {comparison.reference for comparison in comparisons}
    alone = len(references) == 1
    names = _pair_names(shown, alone)
    lines = max((name.count("\n") + 1 for name in names), default=1)
    figure = new_figure(5.2, 1.2 + (0.4 + 0.18 * lines) * len(shown))
    axis = figure.subplots()
    by = factor(metric)
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
        _row_label(axis, y, names[y], f"{difference(metric, wide.mean)} {limits(metric, wide)}")
    tidy(axis)
    axis.grid(visible=False, axis="y")
    axis.spines["left"].set_visible(False)
    axis.set_yticks([])
    axis.set_ylim(len(shown) - 0.45, -0.6)
    what = f"candidate minus {next(iter(references))}" if alone else "difference"
    axis.set_xlabel(_difference_label(what, metric))
    return figure


def _difference_label(what: str, metric: Metric) -> str:
    """What lies along an axis of differences, in which unit, and which way is better."""
    better = "right" if metric.higher_is_better else "left"
    return f"{_wrapped(what, 34)},\n{_wrapped(f'{with_unit(metric)}; better to the {better}', 34)}"


def _pair_names(comparisons: Sequence[Comparison], alone: bool) -> list[str]:
    """A name for each row; with several references the one that is meant stands in a line of its own."""
    labels = apart([name for c in comparisons for name in (c.candidate, c.reference)], 28)
    if alone:
        return [labels[c.candidate] for c in comparisons]
    return [f"{labels[c.candidate]}\n{MINUS} {labels[c.reference]}" for c in comparisons]


def _wrapped(text: str, width: int) -> str:
    """A title in lines of ``width`` characters, three at the most."""
    return "\n".join(textwrap.wrap(clean(text), width, max_lines=3, placeholder=" \u2026"))


def _row_label(axis: "Axes", y: float, name: str, numbers: str) -> None:
    """A name with its numbers below, left of the axis."""
    place = axis.get_yaxis_transform()
    axis.text(-0.03, y - 0.05, name, transform=place, ha="right", va="bottom", fontsize=10.5)
    axis.text(-0.03, y + 0.03, numbers, transform=place, ha="right", va="top", fontsize=9.5, color=MUTED)


def over_datasets(found: OverDatasets, metric: Metric) -> "Figure":
    """The difference on each data set, and over all of them with its 95 % interval."""
    by = factor(metric)
    figure = new_figure(5.2, 1.5 + 0.34 * len(found.differences))
    axis = figure.subplots()
    axis.axvline(0, color=MUTED, linewidth=1)
    labels = apart(list(found.differences), 30)
    for y, (dataset, value) in enumerate(found.differences.items()):
        axis.plot([by * value], [y], "o", color=MUTED, markersize=5)
        axis.text(
            -0.03, y, labels[dataset], transform=axis.get_yaxis_transform(), ha="right", va="center", fontsize=9.5
        )
    last, interval = len(found.differences) + 0.3, found.interval
    axis.plot([by * interval.low, by * interval.high], [last, last], color=BLUE, linewidth=2.6)
    axis.plot([by * interval.mean], [last], "D", color=BLUE, markersize=7)
    _row_label(axis, last, "over data sets", f"{difference(metric, interval.mean)} {limits(metric, interval)}")
    tidy(axis)
    axis.grid(visible=False, axis="y")
    axis.spines["left"].set_visible(False)
    axis.set_yticks([])
    axis.set_ylim(last + 0.7, -0.6)
    axis.set_xlabel(_difference_label(f"{found.candidate} minus {found.reference}", metric))
    return figure


def heat_map(factorial: Factorial, metric: Metric, scale: tuple[float, float], where: str = "") -> "Figure":
    """Mean scores of two factors crossed, each cell with its number; a cell without runs stays empty.

    scale: scores of the darkest and the brightest cell (the other way round where lower is better); where: the block.
    """
    import numpy as np
    from matplotlib import colormaps
    from matplotlib.colors import Normalize

    by = factor(metric)
    means = np.array(factorial.means, dtype=float) * by
    n_rows, n_columns = means.shape
    # The columns' factor comes with the levels at which further factors are held.
    column_factor, _, fixed = factorial.column_factor.partition(", ")
    rows, columns = (list(apart(levels, 20).values()) for levels in (factorial.rows, factorial.columns))
    width = max(4.2, 1.9 + 0.72 * n_columns)
    about = "; ".join(part for part in (where, fixed) if part)
    titles = [_wrapped(text, round(11 * width)) for text in (f"mean {with_unit(metric)}, brighter is better", about)]
    title = "\n".join(filter(None, titles))
    lines = max(row.count("\n") + 1 for row in rows)
    figure = new_figure(width, 1.5 + 0.17 * title.count("\n") + (0.3 + 0.16 * lines) * n_rows)
    axis = figure.subplots()
    # The lower end is the worse one whichever way the metric points: brighter is better.
    colours = colormaps["cividis" if metric.higher_is_better else "cividis_r"]
    low, high = by * scale[0], by * scale[1]
    norm = Normalize(low, high if high > low else low + 1)
    axis.pcolormesh(np.ma.masked_invalid(means), cmap=colours, norm=norm, edgecolors=MUTED, linewidth=0.4)
    for (i, j), value in np.ndenumerate(means):
        if math.isnan(value):
            axis.text(j + 0.5, i + 0.5, NOTHING, ha="center", va="center", color=MUTED)
            continue
        red, green, blue, _ = colours(norm(value))
        ink = "#ffffff" if 0.299 * red + 0.587 * green + 0.114 * blue < 0.5 else "#111111"
        axis.text(j + 0.5, i + 0.5, score(metric, value / by), ha="center", va="center", color=ink, fontsize=9)
    turned = n_columns > 4 or any(len(column) > 9 for column in factorial.columns)
    axis.set_xticks(np.arange(n_columns) + 0.5, columns)
    if turned:
        axis.tick_params(axis="x", labelrotation=40)
        for label in axis.get_xticklabels():
            label.set(ha="right", rotation_mode="anchor")
    axis.set_yticks(np.arange(n_rows) + 0.5, rows)
    axis.invert_yaxis()
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    axis.set(xlabel=_wrapped(column_factor, 30), ylabel=_wrapped(factorial.row_factor, 20))
    figure.suptitle(title, x=0.02, ha="left", fontsize=10.5, fontweight="bold")
    return figure


def image_scatter(comparison: Comparison, metric: Metric) -> "Figure":
    """Each image (or group): score with the candidate over score with the reference, both means over seeds."""
    by = factor(metric)
    x, y = _pair(comparison, by)
    figure = new_figure(3.4, 3.3)
    axis = figure.subplots()
    ends = [min(x.min(), y.min()), max(x.max(), y.max())]
    axis.plot(ends, ends, color=MUTED, linewidth=1, linestyle="--")
    _points(axis, x, y)
    axis.set_aspect("equal", adjustable="datalim")
    tidy(axis)
    axis.set_title(f"each {unit_of(comparison)},\nmeans over seeds")
    axis.set(
        xlabel=_wrapped(f"{comparison.reference}, {with_unit(metric)}", 24), ylabel=_wrapped(comparison.candidate, 28)
    )
    return figure


def image_differences(comparison: Comparison, metric: Metric) -> "Figure":
    """Each image (or group): what the candidate adds over how well both do on it; mean difference and interval."""
    by = factor(metric)
    x, y = _pair(comparison, by)
    figure = new_figure(3.4, 3.3)
    axis = figure.subplots()
    interval = comparison.deciding
    axis.axhline(0, color=MUTED, linewidth=1, linestyle="--")
    if not math.isnan(interval.low):
        axis.axhspan(by * interval.low, by * interval.high, color=VERMILION, alpha=0.2, linewidth=0)
    axis.axhline(by * interval.mean, color=VERMILION, linewidth=1.6)
    _points(axis, (x + y) / 2, y - x)
    tidy(axis)
    axis.set_title(f"difference of each {unit_of(comparison)}")
    axis.set_xlabel(_wrapped(f"mean of both, {with_unit(metric)}", 24))
    axis.set_ylabel(_wrapped(f"{comparison.candidate} minus reference", 28))
    return figure


def _pair(comparison: Comparison, by: float) -> tuple[Any, Any]:
    assert comparison.reference_N is not None
    assert comparison.candidate_N is not None
    return comparison.reference_N * by, comparison.candidate_N * by


def _points(axis: "Axes", x: Any, y: Any) -> None:
    axis.plot(x, y, "o", color=BLUE, markersize=4.5, alpha=0.7, mew=0, rasterized=len(x) > MAX_VECTORS)


def panel(shown: Panel, looks: Looks) -> "Figure":
    """The curves or points of a second question, at most `MAX_LINES` of them, with their bands; values as printed."""
    curves = shown.curves[:MAX_LINES]
    labels = apart([curve.arm for curve in curves], 44)
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
        # matplotlib leaves out of a legend what begins with an underscore.
        label = f"\u200b{label}" if label.startswith("_") else label
        # A line through a single point would be nothing.
        if shown.kind == "points" or len(curve.x) == 1:
            how = {"color": colour, "markersize": 6, "alpha": 0.75, "mew": 0, "rasterized": dense}
            axis.plot(curve.x, curve.y, marker, label=label, **how)
            if curve.low:
                axis.vlines(curve.x, curve.low, curve.high, color=colour, linewidth=1.2, alpha=0.75)
            continue
        # Colours come round again after so many arms: line styles alone are hard to tell apart, markers help.
        marked = {"marker": marker, "markersize": 4.5, "markevery": max(1, len(curve.x) // 6)}
        again = marked if style != STYLES[0] else {}
        axis.plot(curve.x, curve.y, style, color=colour, linewidth=1.7, label=label, **again)
        if curve.low:
            axis.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=0.16, linewidth=0)
    if shown.log_x:
        _log(axis, "x", [v for curve in curves for v in curve.x])
    if shown.log_y:
        _log(axis, "y", [v for curve in curves for v in curve.y])
    if cut_off(shown):
        axis.set_ylim(bottom=shown.y_from)
    _from_nothing(axis, curves)
    tidy(axis)
    axis.set_title(title)
    axis.set(xlabel=_wrapped(shown.x_label, 38), ylabel=_wrapped(shown.y_label, 30))
    if curves:
        figure.legend(loc="outside lower left", ncols=columns, frameon=False, handlelength=1.6, columnspacing=1.2)
    return figure


def _from_nothing(axis: "Axes", curves: Sequence[Curve]) -> None:
    """Where all values are 0, as of dead units, an axis begins at 0: below it there is nothing."""
    if curves and not any(value for curve in curves for value in curve.x):
        axis.set_xlim(-0.002, 0.1)
    if curves and not any(value for curve in curves for value in (*curve.y, *curve.low, *curve.high)):
        axis.set_ylim(-0.002, 0.1)


def printed(shown: Panel) -> Panel:
    """The panel as it is drawn: Dice in points, as in every table."""
    x, y = (100 if points else 1 for points in (shown.x_points, shown.y_points))

    def scaled(curve: Curve) -> Curve:
        places = tuple(x * value for value in curve.x)
        values, low, high = (tuple(y * value for value in part) for part in (curve.y, curve.low, curve.high))
        return replace(curve, x=places, y=values, low=low, high=high)

    return replace(
        shown,
        x_label=f"{shown.x_label} (points)" if shown.x_points else shown.x_label,
        y_label=f"{shown.y_label} (points)" if shown.y_points else shown.y_label,
        curves=tuple(scaled(curve) for curve in shown.curves),
        guide=scaled(shown.guide) if shown.guide else None,
        y_from=y * shown.y_from,
    )


def cut_off(shown: Panel) -> bool:
    """Whether anything lies below the lowest value that is drawn."""
    return any(value < shown.y_from for curve in shown.curves for value in (*curve.y, *curve.low))


def _log(axis: "Axes", which: str, values: Sequence[float]) -> None:
    """A logarithmic axis with plain numbers; left as it is where nothing is above 0, or all is the same."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    held = [value for value in values if value > 0]
    if not held or min(held) == max(held):
        return
    axis.set(**{f"{which}scale": "log"})
    numbered = axis.xaxis if which == "x" else axis.yaxis
    # Over one decade or two the powers of ten alone do not tell where one is.
    if max(held) < 10 * min(held):
        numbered.set_major_locator(MaxNLocator(4))
    else:
        numbered.set_major_locator(LogLocator(subs=(1, 2, 5) if max(held) < 100 * min(held) else (1,)))
    numbered.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    numbered.set_minor_formatter(NullFormatter())


def ranks(found: Ranks) -> "Figure":
    """Critical-difference diagram: mean ranks over data sets (1 is best); a bar joins what cannot be told apart."""
    import pandas as pd
    from scikit_posthocs import critical_difference_diagram

    # Two names shortened to the same one the library would take for one arm.
    names = list(apart(list(found.ranks), 24).values())
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
