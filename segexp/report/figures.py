"""The figures of a report: which ones there are, and their descriptions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import ImageColor

from segexp.compare import formatting as fmt
from segexp.compare.datasets import WILCOXON
from segexp.compare.result import (
    Answer,
    Block,
    Comparison,
    Curve,
    Factorial,
    Interval,
    Metric,
    OverDatasets,
    Panel,
    Ranks,
)
from segexp.records.formatting import pluralize
from segexp.report import drawing, tables
from segexp.report.drawing import MAX_LINES, MAX_ROWS, MUTED, VERDICT_COLOURS, Looks, cut_off, in_points, mean_of
from segexp.report.tables import against, interval_for, scope, unique_labels, verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_IMAGE_FIGURES = 6
"""Comparisons of a block whose images are drawn; images.csv has the values of all."""

DESCRIBED = 8
"""Values in the description of a figure; the tables beside it have all."""


MAX_TIPS = 300
"""Places of a figure with their numbers on the page; images.csv and the tables have all."""


@dataclass(frozen=True)
class Tip:
    """The numbers of a place of a figure, in data coordinates: a point, or an interval or a cell with its width and
    height. image: whose sample prediction the place leads to, "" for none."""

    x: float
    y: float
    text: str
    width: float = 0.0
    height: float = 0.0
    image: str = ""


@dataclass(frozen=True)
class Drawing:
    """A figure. name: of its file; alt: description for those who do not see it; caption: below it, "" for none.

    draw: makes it when it is first needed, from all that it shows; tips: what its places show on hover and keyboard
    focus.
    """

    name: str
    alt: str
    caption: str
    draw: "partial[Figure]"
    tips: tuple[Tip, ...] = ()

    @cached_property
    def figure(self) -> "Figure":
        with drawing.styled():
            return self.draw()


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
    tips = tuple(_interval(metric, f.deciding, y, _numbers(f, metric)) for y, f in enumerate(tested[:MAX_ROWS]))
    return [
        Drawing(f"{name}-forest", alt, " ".join(caption), partial(drawing.draw_forest, tested, metric), tips),
        *drawn,
    ]


def _numbers(found: Comparison, metric: Metric) -> str:
    """A comparison in one line."""
    difference = f"{fmt.estimate(metric, found.deciding)} {fmt.unit(metric)}".rstrip()
    p = f"Holm-adjusted p {fmt.p_value(found.p_holm)}"
    return f"{against(found)}: {difference}, {verdict(found)}, {p}, {fmt.design(found)}"


def _interval(metric: Metric, interval: Interval, y: float, text: str) -> Tip:
    """The place of an interval in row ``y``."""
    by = fmt.factor(metric)
    return Tip(by * interval.low, y, text, width=by * (interval.high - interval.low))


def pair_map(block: Block, metric: Metric, name: str) -> Drawing:
    """The differences of all pairs of arms, coloured by verdict."""
    arms = list(unique_labels([arm.arm for arm in block.ranking], 20).values())
    at = {arm.arm: n for n, arm in enumerate(block.ranking)}
    places: dict[Any, tuple[str, Any]] = {}
    tips: list[Tip] = []
    for found in block.comparisons:
        tint = 0.6 + 0.4 * np.array(ImageColor.getrgb(VERDICT_COLOURS.get(found.verdict.word, MUTED))) / 255
        row, column = at[found.candidate], at[found.reference] - 1
        places[row, column] = tables.pair_cell(found, metric), tint
        tips.append(Tip(column, row, _numbers(found, metric), 1, 1))
    title = f"{fmt.with_unit(metric, 'difference in')}, row minus column"
    values = [f"{against(found)}: {tables.pair_cell(found, metric)}" for found in block.comparisons]
    colours = "Row minus column. Green: better, orange: worse, blue: equivalent, grey: not decided."
    figure = partial(drawing.draw_cells, arms[:-1], arms[1:], places, title, tables.PAIR_MARKS)
    return Drawing(f"{name}-pairs", f"Map of {title}: {_listed(values)}", colours, figure, tuple(tips[:MAX_TIPS]))


def of_arms(block: Block, metric: Metric, name: str) -> list[Drawing]:
    """The mean of each arm with its 95 % interval, if any is known."""
    known = [arm for arm in block.ranking if not math.isnan(arm.interval.low)]
    if not known:
        return []
    values = [f"{arm.arm} {mean_of(metric, arm)}" for arm in known]
    alt = f"Mean {fmt.with_unit(metric)} of each arm with its {block.interval}. {_listed(values)}"
    caption = [
        f"Bars: {block.interval} of each arm's mean, for {interval_for(known, metric)}. They are not for comparing arms"
        ": pairs are compared by their differences. Strokes below: seeds."
    ]
    if len(known) > MAX_ROWS:
        caption.append(f"{pluralize(len(known) - MAX_ROWS, 'arm')} of lower rank: in the table.")
    if len(known) < len(block.ranking):
        caption.append(f"Not drawn: {pluralize(len(block.ranking) - len(known), 'arm')} without an interval.")
    unit = fmt.in_unit(metric, "mean")
    about = [f"{arm.arm}: {unit} {mean_of(metric, arm)}, {pluralize(arm.n_seeds, 'seed')}" for arm in known[:MAX_ROWS]]
    tips = [_interval(metric, known[y].interval, y, text) for y, text in enumerate(about)]
    for y, arm in enumerate(known[:MAX_ROWS]):
        for seed, value in arm.seeds.items():
            text = f"{arm.arm}, seed {seed}: {fmt.score(metric, value)}"
            tips.append(Tip(fmt.factor(metric) * value, y + drawing.SEEDS_BELOW, text))
    figure = partial(drawing.draw_arms, known, metric)
    return [Drawing(f"{name}-arms", alt, " ".join(caption), figure, tuple(tips[:MAX_TIPS]))]


def distributions(block: Block, metric: Metric, name: str) -> list[Drawing]:
    """The values of each arm over images, each the mean of its seeds, where any are known."""
    known: dict[str, dict[str, float]] = {}
    for found in block.comparisons:
        for arm, values_N in ((found.reference, found.reference_N), (found.candidate, found.candidate_N)):
            if values_N is not None and len(values_N):
                known[arm] = dict(zip(found.units, map(float, values_N), strict=True))
    shown = {arm.arm: known[arm.arm] for arm in block.ranking[:MAX_ROWS] if arm.arm in known}
    if not shown:
        return []
    unit, by, tips = block.comparisons[0].unit, fmt.factor(metric), []
    for y, (arm, values) in enumerate(shown.items()):
        for (image, x), at in zip(values.items(), drawing.spread(len(values)), strict=True):
            tips.append(Tip(by * x, y + at, f"{image}: {arm} {fmt.score(metric, x)}", image=image))
    medians = [f"{arm} {fmt.score(metric, float(np.median([*values.values()])))}" for arm, values in shown.items()]
    alt = f"Distribution of {fmt.with_unit(metric)} over {unit}s, means over seeds. Medians: {_listed(medians)}"
    caption = f"Dots: {unit}s, each the mean of its seeds. Box: quartiles and median. Whiskers: 5 to 95 %."
    caption += beyond(metric, [value for values in shown.values() for value in values.values()])
    values_of_arms = {arm: [*values.values()] for arm, values in shown.items()}
    figure = partial(drawing.draw_distributions, values_of_arms, metric, unit)
    return [Drawing(f"{name}-distributions", alt, caption, figure, tuple(tips[:: math.ceil(len(tips) / MAX_TIPS)]))]


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
        of_each, against_mean = image_tips(found, metric)
        above += "." + beyond(metric, [*found.candidate_N, *found.reference_N])  # type: ignore[misc]
        first = Drawing(
            f"{name}-images-{n + 1}-scatter", scatter, above, partial(drawing.draw_scatter, found, metric), of_each
        )
        draw = partial(drawing.draw_differences, found, metric)
        second = Drawing(f"{name}-images-{n + 1}-difference", differences, band, draw, against_mean)
        groups.append((against(found), (first, second)))
    left_out = len(shown) - len(groups)
    note = f"No figures for {pluralize(left_out, 'more comparison')}; images.csv has the values."
    return tuple(groups), note if left_out else ""


def beyond(metric: Metric, values: Sequence[float]) -> str:
    """Why the values of images lie outside the range of their score, "" where none does."""
    if min(values) >= 0 and max(values) <= metric.score.highest:
        return ""
    return " Values outside the score's range: images lack classes, so each has its share of the mean over classes."


def image_tips(found: Comparison, metric: Metric) -> tuple[tuple[Tip, ...], tuple[Tip, ...]]:
    """The places of the images in both figures, of many those that differ most from the mean difference."""
    assert found.candidate_N is not None
    assert found.reference_N is not None
    by, found_at = fmt.factor(metric), []
    away_N = np.abs(found.candidate_N - found.reference_N - found.deciding.mean)
    for n in np.sort(np.argsort(-away_N, kind="stable")[:MAX_TIPS]):
        x, y = float(found.reference_N[n]), float(found.candidate_N[n])
        both = f"{found.candidate} {fmt.score(metric, y)}, {found.reference} {fmt.score(metric, x)}"
        text = f"{found.units[n]}: {both}, difference {fmt.amount(metric, y - x)}"
        found_at.append(Tip(by * x, by * y, text, image=found.units[n]))
    return tuple(found_at), tuple(replace(tip, x=(tip.x + tip.y) / 2, y=tip.y - tip.x) for tip in found_at)


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
    figure = partial(drawing.draw_heat_map, factorial, metric, scale, where)
    counted = zip(np.ndenumerate(factorial.seeds), cells, strict=True)
    tips = tuple(Tip(j, i, f"{cell}, {pluralize(int(n), 'seed')}", 1, 1) for ((i, j), n), cell in counted)
    return Drawing(f"{name}-heatmap", f"Heat map of {what}: {_listed(cells)}", caption, figure, tips[:MAX_TIPS])


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
        figure = partial(
            drawing.draw_panel, panel, {arm: looks[arm] for arm in (c.arm for c in panel.curves) if arm in looks}
        )
        drawings.append(Drawing(f"{name}-{n + 1}", alt, " ".join(left_out), figure, _of_curves(panel, drawn)))
    return drawings


def _of_curves(panel: Panel, curves: Sequence[Curve]) -> tuple[Tip, ...]:
    """The points of a panel; of many every second, third, ... of each curve, with its last one."""
    tips, every = [], math.ceil(sum(len(curve.x) for curve in curves) / MAX_TIPS)
    for curve in curves:
        for n in range((len(curve.x) - 1) % every, len(curve.x), every):
            band = f" [{fmt.plain(curve.low[n])}, {fmt.plain(curve.high[n])}]" if curve.low else ""
            count = f", n = {curve.n[n]:g}" if curve.n else ""
            at = panel.x_names[round(curve.x[n]) - 1] if panel.x_names else fmt.plain(curve.x[n])
            text = f"{curve.arm}: {panel.y_label} {fmt.plain(curve.y[n])}{band}, {panel.x_label} {at}{count}"
            tips.append(Tip(curve.x[n], curve.y[n], text))
    return tuple(tips)


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
        places = [(n, name, fmt.factor(metric) * value) for n, (name, value) in enumerate(one.differences.items())]
        tips = [Tip(x, y, f"{name}: {fmt.amount(metric, one.differences[name])}") for y, name, x in places]
        total = f"across data sets: {fmt.estimate(metric, one.interval)}, Holm-adjusted p {fmt.p_value(one.p_holm)}"
        tips.append(_interval(metric, one.interval, len(tips) + drawing.BELOW, total))
        drawn.append(
            Drawing(f"datasets-{n + 1}", alt, caption, partial(drawing.draw_over_datasets, one, metric), tuple(tips))
        )
    if ranks is not None and len(ranks.ranks) > 1:
        values = [f"{arm} {rank:.2g}" for arm, rank in ranks.ranks.items()]
        alt = f"Critical-difference diagram of mean ranks, 1 is best: {_listed(values)}"
        caption = (
            "Mean ranks over data sets, 1 is best. A bar joins arms that do not differ significantly: Wilcoxon's p of "
            "every two arms, Holm-adjusted over all pairs and apart from the other tables."
        )
        tips = [Tip(rank, 0, f"{arm}: mean rank {rank:.3g}") for arm, rank in ranks.ranks.items()]
        drawn.append(Drawing("datasets-ranks", alt, caption, partial(drawing.draw_ranks, ranks), tuple(tips)))
    return drawn


def _listed(values: Sequence[str]) -> str:
    more = len(values) - DESCRIBED
    return "; ".join(values[:DESCRIBED]) + (f"; and {more} more" if more > 0 else "") or fmt.NOTHING
