"""The tables of a report and of `segexp compare`, with names and cells as text. `formats` prints them."""

import math
import re
import textwrap
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from segexp.compare import formatting as fmt
from segexp.compare.result import (
    METRICS,
    NO_CLASS,
    Answer,
    ArmScore,
    Block,
    Comparison,
    Factorial,
    Influence,
    Interval,
    Method,
    Metric,
    OverDatasets,
    Result,
    Verdict,
)
from segexp.records.formatting import pairs, pluralize
from segexp.records.runs import shown_state

_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")


def clean(text: str) -> str:
    """Text for HTML and SVG: control characters, lone surrogates and marks of writing direction are replaced, line ends
    become blanks."""
    if text.isprintable():  # nearly every one, in a tenth of the time
        return text
    return _UNPRINTABLE.sub("\ufffd", re.sub(r"[\t\r\n]+", " ", text))


def short(text: str, limit: int = 34) -> str:
    """`clean` text; longer than ``limit`` characters, its middle is left out."""
    text = clean(text)
    if len(text) <= limit:
        return text
    tail = limit // 2 - 1
    return f"{text[: limit - tail - 1]}\u2026{text[-tail:]}"


def unique_labels(names: Sequence[str], limit: int = 34) -> dict[str, str]:
    """A different label for each name, in lines of at most ``limit`` characters.

    Names that `short` would make equal keep more characters, on several lines.
    """
    names = list(dict.fromkeys(names))
    kept = limit
    while True:
        labels = [short(name, kept) for name in names]
        if len(set(labels)) == len(names) or kept >= max(map(len, names), default=0):
            break
        kept *= 2
    numbered = [f"{label} ({n + 1})" if labels.count(label) > 1 else label for n, label in enumerate(labels)]
    return {name: textwrap.fill(label, limit) for name, label in zip(names, numbered, strict=True)}


_FOLDER = re.compile(r"(?<![\w.:/<])(?:[A-Za-z]:)?[\\/](?:[^\s\\/:'\",;<>()]+[\\/])+")


def folders_of(result: Result) -> list[str]:
    """The folders of the paths that were read, for `only_names`."""
    paths = [path.rstrip("/") for path in map(str, result.provenance.get("read from", ())) if "/" in path]
    return [path.rpartition("/")[0] for path in paths]


def only_names(text: str, folders: Sequence[str] = ()) -> str:
    """Text with file names in place of absolute paths, because a report may be sent to others. folders: known ones, for
    paths with blanks; other paths are found by their form."""
    for folder in sorted(folders, key=len, reverse=True):
        text = text.replace(f"{folder.rstrip('/')}/", "") if folder.strip("/") else text
    return _FOLDER.sub("", text)


def last_name(path: str) -> str:
    """The last part of a path."""
    return path.replace("\\", "/").rstrip("/").rpartition("/")[2]


MAX_PAIRS = 15
"""Of more pairs of arms (more than 6), tables and notes show only differences and verdicts."""
PAIR_MARKS = "* better or worse, = equivalent or negligible, ? no test"

SCOPES = {
    "new seeds and new test images, this training set": "new seeds and test images",
    "new seeds and new test images, these training sets": "new seeds and test images, these folds",
    "new seeds, this training and test set": "new seeds",
    "new training sets and new test images": "new training sets",
}
"""Shorter forms of a comparison's scope, for columns; other scopes are shown as they are."""


def scope(comparison: Comparison) -> str:
    """What the deciding interval of a comparison generalises to; a dash without a test."""
    tested = not math.isnan(comparison.deciding.low)
    return SCOPES.get(comparison.scope, comparison.scope) if tested else fmt.NOTHING


def seeds(n_seeds: int, n_folds: int) -> str:
    """5, or with folds 1 seed x 5 folds."""
    return f"{pluralize(n_seeds, 'seed')} x {pluralize(n_folds, 'fold')}" if n_folds else str(n_seeds)


def number(value: object) -> str:
    """A plain value of a table: floats with four digits, a dash where it is missing."""
    if value is None or value == "":
        return fmt.NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    return fmt.plain(value) if isinstance(value, float) else clean(str(value))


def against(comparison: Comparison) -> str:
    """arctan - sigmoid, the order of every difference."""
    return f"{comparison.candidate} {fmt.MINUS} {comparison.reference}"


def notes_of(block: Block) -> list[str]:
    """The warnings of a block and of its comparisons; comparisons that share one are listed with it. Verdicts that one
    image or seed decides come first."""
    shared: dict[str, list[str]] = {}
    for found in block.comparisons:
        changes = [] if block.n_pairs > MAX_PAIRS else _changes(found)
        notes = [f"without {_called(one)} the verdict would be: {one.verdict}" for one in changes]
        notes += [*found.warnings, *([f"not compared: {found.dropped}"] if found.dropped else [])]
        for note in notes:
            shared.setdefault(note, []).append(f"{found.candidate} against {found.reference}")
    n = len(block.comparisons)
    notes = [note if len(of) == n > 1 else f"{short('; '.join(of), 400)}: {note}" for note, of in shared.items()]
    return [*notes, *block.warnings]


def verdict(comparison: Comparison) -> str:
    """The verdict with its condition: equivalent (unless ...)."""
    return f"{comparison.verdict} ({comparison.condition})" if comparison.condition else str(comparison.verdict)


def _changes(comparison: Comparison) -> list[Influence]:
    """The image and seed without which the verdict would be another."""
    return [one for one in comparison.influence if one.verdict != comparison.verdict]


def _called(one: Influence) -> str:
    return f"{one.what} {clean(one.name)}"


# Tables

TEXT, NUMBER, ARM, VERDICT, CODE = "text", "number", "arm", "verdict", "code"
"""Kinds of columns: how the page shows and sorts them."""


@dataclass(frozen=True)
class Table:
    """Cells as text. columns: (title, kind) each; note: how to read it; where: data set and conditions, "" for all."""

    name: str
    title: str
    columns: tuple[tuple[str, str], ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    where: str = ""


Column = tuple[str, str, Callable[[Any], str]]
"""Title, kind, and the cell of an item."""


def _table(
    name: str, title: str, columns: Sequence[Column], items: Sequence[Any], note: str = "", where: str = ""
) -> Table:
    """A row per item."""
    titles = tuple((heading, kind) for heading, kind, _ in columns)
    rows = tuple(tuple(cell(item) for *_, cell in columns) for item in items)
    return Table(name, title, titles, rows, note, where)


def of_block(block: Block, metric: Metric, prefix: str) -> tuple[list[Table], list[Table]]:
    """The tables of a block, those with rows: ranking, verdicts and what they depend on; and the details: the design,
    the numbers behind the verdicts, and two tables for each pair of factors. prefix: of their names."""
    first = [ranking(block, metric, f"{prefix}ranking"), all_pairs(block, metric, f"{prefix}pairs")]
    first += verdicts(block, metric, f"{prefix}comparisons")[: 2 if block.n_pairs > MAX_PAIRS else 3]
    details = [] if block.n_pairs > MAX_PAIRS else list(behind(block, metric, f"{prefix}comparisons"))
    for n, two in enumerate(block.factorials):
        details.append(factorial(two, metric, f"{prefix}factors-{n + 1}", block.title))
        details.append(interactions(two, metric, f"{prefix}interactions-{n + 1}", block.title))
    return [table for table in first if table.rows], [table for table in details if table.rows]


def over_all(result: Result) -> list[Table]:
    """The tables of the whole result, those with rows: over data sets, of further metrics too, and runs without a
    score."""
    tables = [over_datasets(result.over_datasets, result.metric, "datasets")]
    for one in result.others:
        further = over_datasets(one.over_datasets, one.metric, f"{slug(one.metric)}-datasets")
        tables.append(replace(further, title=f"{further.title}: {one.metric.title}"))
    return [table for table in (*tables, unscored(result, "without-score")) if table.rows]


def slug(metric: Metric) -> str:
    """A metric in the names of tables: dice, or dice-class-2."""
    return metric.name if metric.class_id == NO_CLASS else f"{metric.name}-class-{metric.class_id}"


def ranking(block: Block, metric: Metric, name: str) -> Table:
    """Arms from the best to the worst."""
    splits = any(arm.n_splits for arm in block.ranking)
    columns: list[Column] = [
        ("arm", ARM, lambda arm: arm.arm),
        (fmt.with_unit(metric), NUMBER, lambda arm: fmt.score(metric, arm.mean)),
        (block.interval, NUMBER, lambda arm: score_limits(metric, arm.interval)),
        ("sd of splits" if splits else "sd of seeds", NUMBER, lambda arm: fmt.score(metric, arm.seed_sd)),
        ("IQM", NUMBER, lambda arm: fmt.score(metric, arm.iqm)),
        ("seeds", NUMBER, lambda arm: seeds(arm.n_seeds, arm.n_folds)),
        (f"{block.each}s", NUMBER, lambda arm: _count(arm.n_images)),
        ("groups", NUMBER, lambda arm: _count(arm.n_groups)),
        ("no score", NUMBER, _without_score),
    ]
    if any(arm.n_failed + arm.n_diverged and not math.isnan(arm.mean_failures_zero) for arm in block.ranking):
        columns.insert(5, ("failures as 0", NUMBER, lambda arm: fmt.score(metric, arm.mean_failures_zero)))
    if splits:
        columns.insert(-4, ("splits", NUMBER, lambda arm: _count(arm.n_splits)))
    over = f"seeds and {block.each}s" if metric.per_image else "seeds; this score has no value per image"
    note = (
        f"{block.interval.capitalize()}: of each arm alone, for {interval_for(block.ranking, metric)}. Do not compare "
        f"arms by these intervals: pairs are compared by their differences. IQM: interquartile mean over {over}."
    )
    return _table(name, "Ranking", columns, block.ranking, note, block.title)


def all_pairs(block: Block, metric: Metric, name: str) -> Table:
    """Each arm minus each arm of lower rank, if all pairs are compared."""
    arms = [arm.arm for arm in block.ranking] if block.n_pairs else []
    cells = {(found.candidate, found.reference): pair_cell(found, metric) for found in block.comparisons}
    columns = (("arm", ARM), ("rank", NUMBER), *((f"minus {n + 1}", NUMBER) for n in range(1, len(arms))))
    rows = [(arm, str(n), *(cells.get((arm, other), "") for other in arms[1:])) for n, arm in enumerate(arms, start=1)]
    note = f"Arm minus the arm of the rank in the title. {PAIR_MARKS}; else inconclusive."
    note += " --csv has intervals, and verdicts without single images and seeds." * (block.n_pairs > MAX_PAIRS)
    return Table(name, fmt.in_unit(metric, "All pairs: difference"), columns, tuple(rows), note, block.title)


def pair_cell(found: Comparison, metric: Metric) -> str:
    """The difference with a mark for the verdict."""
    small = found.verdict == Verdict.EQUIVALENT or found.verdict.negligible
    marks = "*" * found.verdict.significant + "=" * small + "?" * (found.verdict == Verdict.NO_TEST)
    return f"{fmt.difference(metric, found.deciding.mean)} {marks}".rstrip()


def score_limits(metric: Metric, interval: Interval) -> str:
    """The 95 % interval of an arm's mean, without its unit: [80.31, 82.09]; a dash where it is unknown."""
    if math.isnan(interval.low):
        return fmt.NOTHING
    return f"[{fmt.score(metric, interval.low)}, {fmt.score(metric, interval.high)}]"


def interval_for(arms: Sequence[ArmScore], metric: Metric) -> str:
    """What the intervals of the arms' means generalise to: see `ArmScore.interval`."""

    def of(arm: ArmScore) -> str:
        parts = Counter(name.rpartition("seed ")[2] for name in arm.seeds)
        if arm.n_splits or (arm.n_folds and max(parts.values(), default=0) < arm.n_folds):
            return Method.OVER_FOLDS.scope
        return "new seeds and new test images" if metric.per_image and arm.n_groups != 1 else "new seeds"

    return " or ".join(dict.fromkeys(map(of, arms)))


def _count(n: int) -> str:
    """How many images or groups; a dash where nothing was compared image by image."""
    return str(n) if n else fmt.NOTHING


def _without_score(arm: ArmScore) -> str:
    """2 failed, 1 diverged; 0 where every run has a score."""
    counts = {"failed": arm.n_failed, "diverged": arm.n_diverged, "unfinished": arm.n_unfinished}
    return ", ".join(f"{n} {state}" for state, n in counts.items() if n) or "0"


_ARMS: list[Column] = [("candidate", ARM, lambda found: found.candidate), ("reference", ARM, lambda f: f.reference)]


def verdicts(block: Block, metric: Metric, name: str) -> list[Table]:
    """Every candidate against its reference: the verdict; in cross-validation another one for new training sets; and
    both without the most influential image and seed."""
    nested = [found.new_training_sets for found in block.comparisons if found.new_training_sets is not None]
    sets = replace(block, comparisons=tuple(nested))
    return [_verdicts(block, metric, name), _new_training_sets(sets, metric, name), _influence(block, metric, name)]


def behind(block: Block, metric: Metric, name: str) -> list[Table]:
    """What the design can detect, and the numbers behind the verdicts."""
    return [_design(block, metric, name), _details(block, metric, name)]


def _of_verdict(block: Block, metric: Metric) -> list[Column]:
    """Verdict, difference, and the interval and p that decide."""
    columns: list[Column] = [
        *_ARMS,
        ("verdict", VERDICT, lambda found: found.verdict),
        (fmt.in_unit(metric, "difference"), NUMBER, lambda found: fmt.difference(metric, found.deciding.mean)),
        (block.interval, NUMBER, lambda found: fmt.limits(metric, found.deciding)),
        ("inference for", TEXT, scope),
        ("p / share" if block.sequential else "p", NUMBER, lambda found: fmt.p_value(found.deciding.p)),
        ("p, Holm", NUMBER, lambda found: fmt.p_value(found.p_holm)),
    ]
    if any(fmt.p_value(f.p_block) != fmt.p_value(f.p_holm) for f in block.comparisons if not math.isnan(f.p_block)):
        columns.append(("p, Holm here", NUMBER, lambda found: fmt.p_value(found.p_block)))
    if block.sequential:
        columns.append(("share", NUMBER, lambda c: f"{c.deciding.share:.2f}, {c.deciding.share_within:.2f}"))
    return columns


def _conditions(block: Block) -> str:
    """The verdicts that have a condition, with it and their candidates."""
    shared: dict[str, list[str]] = {}
    for found in block.comparisons:
        if found.condition:
            shared.setdefault(f"{found.verdict} {found.condition}", []).append(found.candidate)
    return "".join(f" {', '.join(of)}: {conditional}." for conditional, of in shared.items())


def _verdicts(block: Block, metric: Metric, name: str) -> Table:
    columns = _of_verdict(block, metric)
    if not all(math.isnan(found.test_set.low) for found in block.comparisons):
        title = "repeated, these images" if block.sequential else "95 %, these images"
        columns.insert(6, (title, NUMBER, lambda found: fmt.limits(metric, found.test_set)))
    methods = {found.method for found in block.comparisons}
    if methods != {Method.TWO_WAY}:
        columns.append(("method", TEXT, lambda found: found.method))
    alike = "images; where unpaired, each arm over its own seeds" if Method.UNPAIRED in methods else "seeds and images"
    note = f"Difference: candidate minus reference, on the same {alike}."
    if any(title == "p, Holm here" for title, *_ in columns):
        note += " p, Holm: over everything in this call, decides. p, Holm here: over those of this data set and metric."
    if block.sequential:
        note += (
            " Decided by looks: each comparison counts as at its last look. share: of alpha (5 %) at that look, "
            "for a difference and for equivalence. p / share is p divided by it. Repeated intervals, of level 1 - "
            "share x 5 %, hold at all looks together."
        )
    if Method.OVER_SPLITS in methods:
        note += (
            " Several splits: seeds are averaged within each split, and the means of the splits are tested. There is "
            "no analysis of seeds x images then, because each split has other test images."
        )
    return _table(name, "Comparisons", columns, block.comparisons, note + _conditions(block), block.title)


def _new_training_sets(block: Block, metric: Metric, name: str) -> Table:
    """The tests over folds or splits that stand beside the test for these training sets."""
    columns = [column for column in _of_verdict(block, metric) if column[0] != "inference for"]
    columns += [("splits", NUMBER, _parts), *_floors(metric)]
    note = (
        "The verdicts above hold for the training sets of these runs, those here for new training sets of the same "
        "size (corrected resampled t test). Holm's adjustment is over these verdicts, apart from those above. "
        f"{_FLOOR_NOTE}"
    )
    title = "Verdicts for new training sets"
    return _table(f"{name}-training-sets", title, columns, block.comparisons, note + _conditions(block), block.title)


_FLOOR_NOTE = (
    "split floor: what no number of splits of these images improves, because their training sets overlap: the standard "
    "error, and the smallest difference found with 80 % power."
)


def _parts(found: Comparison) -> str:
    """5 folds, or 8 splits."""
    return pluralize(found.n_folds, "fold") if found.n_folds else str(found.n_splits or fmt.NOTHING)


def _floors(metric: Metric) -> list[Column]:
    return [
        (fmt.in_unit(metric, "split floor, standard error"), NUMBER, lambda f: fmt.score(metric, f.split_floor_se)),
        (fmt.in_unit(metric, "split floor, difference"), NUMBER, lambda f: fmt.score(metric, f.split_floor)),
    ]


def _components(block: Block, metric: Metric) -> list[Column]:
    """A column for each component of variance that a comparison of the block has. In cross-validation only the test
    over folds knows that of the splits."""

    def variance(found: Comparison) -> Mapping[str, float]:
        return {**(found.new_training_sets.variance if found.new_training_sets else {}), **found.variance}

    def sd_of(part: str) -> Callable[[Comparison], str]:
        return lambda found: fmt.score(metric, math.sqrt(max(variance(found).get(part, math.nan), 0.0)))

    known = {part for found in block.comparisons for part in variance(found)} | {"seed", "image", "residual"}
    return [
        (fmt.in_unit(metric, f"sd of {what}"), NUMBER, sd_of(part)) for part, what in _PARTS.items() if part in known
    ]


_PARTS = {"split": "splits", "seed": "seeds", "image": "images", "residual": "the rest"}


def _influence(block: Block, metric: Metric, name: str) -> Table:
    """Each comparison without the image and the seed that differ most from the others."""
    shown = [found for found in block.comparisons if found.influence]

    def without(seed: bool) -> Callable[[Comparison], str]:
        def cell(found: Comparison) -> str:
            one = next((one for one in found.influence if (one.what == "seed") == seed), None)
            if one is None:
                return fmt.NOTHING
            name, changed = _called(one) if seed else clean(one.name), " (changed)" * (one.verdict != found.verdict)
            return f"{name}: {fmt.difference(metric, one.interval.mean)}, {one.verdict}{changed}"

        return cell

    unit = "group" if any(one.what == "group" for found in shown for one in found.influence) else block.each
    columns: list[Column] = [
        *_ARMS,
        (fmt.in_unit(metric, f"without {unit}"), TEXT, without(seed=False)),
        (fmt.in_unit(metric, "without seed"), TEXT, without(seed=True)),
        ("skewness", NUMBER, lambda found: fmt.signed(found.skewness)),
        (f"{unit}s: fewer than", NUMBER, lambda found: _share_absent(len(found.units))),
        ("seeds: fewer than", NUMBER, lambda found: _share_absent(found.n_seeds)),
    ]
    note = (
        f"Each comparison without the {unit}, and without the seed, whose difference is farthest from the mean: its "
        f"name, and the difference and verdict that remain. changed: this {unit} or seed decides the verdict, so look "
        f"at it first. skewness: of the differences of {unit}s, 0 where symmetric. No test sees what is absent from "
        f"the sample: verdicts assume that fewer than 3/N of {unit}s and 3/K of seeds, given as numbers, behave "
        "otherwise."
    )
    return _table(f"{name}-influence", "Without the most influential", columns, shown, note, block.title)


def _share_absent(n: int) -> str:
    """3/60 = 5 %: what is absent from n has a smaller share, with 95 % confidence (rule of three)."""
    return f"3/{n} = {min(300 / n, 100):.2g} %" if n > 3 else fmt.NOTHING


def _design(block: Block, metric: Metric, name: str) -> Table:
    columns: list[Column] = [
        *_ARMS,
        ("seeds", NUMBER, lambda found: seeds(found.n_seeds, found.n_folds) if found.n_seeds else fmt.NOTHING),
        (f"{block.each}s", NUMBER, lambda found: _count(found.n_images)),
        ("groups", NUMBER, lambda found: _count(found.n_groups)),
    ]
    notes, looks = [], ""
    if block.sequential:  # what all looks together detect is not known
        looks = ", and for one test without looks"
    else:
        columns.append((fmt.in_unit(metric, "detectable"), NUMBER, lambda f: fmt.score(metric, f.minimum_detectable)))
        notes.append("detectable: the smallest difference that such a design finds in 80 % of studies.")
    crossed = not all(found.method.resampled for found in block.comparisons)
    if crossed:
        columns.append((fmt.in_unit(metric, "image floor"), NUMBER, lambda f: fmt.score(metric, f.image_floor)))
        notes.append("image floor: the smallest difference that any number of seeds finds on as many images.")
    notes.append(f"All this is for a single comparison, before Holm's adjustment{looks}.")
    if metric.rope > 0 and crossed:
        size = fmt.score(metric, metric.rope)
        columns.insert(-1, (f"seeds to find {size}", NUMBER, _seeds_needed))
        notes.append(
            f"seeds to find {size}: how many seeds find a difference of that size, a forecast from few runs and so a "
            "range. Use it once, to plan a new number of seeds. Do not add seeds and test again until a difference is "
            "significant: a test after each seed from 5 to 20 gives 16 % false alarms instead of 5 %."
        )
    if any(found.n_splits for found in block.comparisons):
        columns.insert(2, ("splits", NUMBER, _parts))
    if any(found.method.resampled for found in block.comparisons):
        columns += _floors(metric)
        notes.append(_FLOOR_NOTE)
    return _table(
        f"{name}-design", "What this design can find", columns, block.comparisons, " ".join(notes), block.title
    )


def _seeds_needed(found: Comparison) -> str:
    """A range, "no number" where none is enough, a dash where it is unknown."""
    low, high = found.seeds_needed
    if math.isnan(low) or low == math.inf:
        return fmt.NOTHING if math.isnan(low) else "no number"
    return f"{low:.0f} or more" if high == math.inf else f"{low:.0f} to {high:.0f}" if high > low else f"{low:.0f}"


def _details(block: Block, metric: Metric, name: str) -> Table:
    resampled = {found.method.resampled for found in block.comparisons if found.method != Method.NONE}
    paired = "splits" if resampled == {True} else "seeds"
    columns: list[Column] = [
        *_ARMS,
        ("df", NUMBER, lambda found: number(round(found.deciding.df, 1))),
        (fmt.in_unit(metric, "standard error"), NUMBER, lambda found: fmt.score(metric, found.deciding.se)),
        (f"{paired} won", NUMBER, _won),
        *([] if block.sequential or paired == "splits" else [("95 % of their share", NUMBER, _share_won)]),
        ("effect size", NUMBER, lambda found: fmt.signed(found.effect_size)),
        (f"correlation of {paired}", NUMBER, lambda found: fmt.signed(found.seed_correlation)),
        *_components(block, metric),
    ]
    note = (
        f"df, standard error: of the interval that decides. effect size: mean divided by the sd of the {paired}' "
        "differences. sd of seeds, images and so on: how much of the variation of differences comes from each "
        "(variance components), imprecise with few seeds; a dash where it cannot be separated."
    )
    if metric.rope > 0 and not block.sequential:
        columns.append(("worse / within / better (%)", NUMBER, _pivot))
        note += f" worse / within / better: than +- {fmt.amount(metric, metric.rope, signed=False)}, "
        note += "share of the pivot distribution of the t, not a posterior of a model."
    return _table(f"{name}-details", "In detail", columns, block.comparisons, note, block.title)


def _pivot(found: Comparison) -> str:
    return " / ".join(number(round(100 * share, 1)) for share in found.pivot.values())


def _won(found: Comparison) -> str:
    """4.5 of 5, or 4 of 5 folds where folds are tested."""
    of = pluralize(found.n_splits, "split") if found.n_splits else found.n_seeds
    of = pluralize(found.n_folds, "fold") if found.method.resampled and found.n_folds else of
    return fmt.NOTHING if math.isnan(found.wins) else f"{found.wins:g} of {of}"


def _share_won(found: Comparison) -> str:
    return f"{100 * found.wins_low:.0f} to {100 * found.wins_high:.0f} %" if found.wins_low >= 0 else fmt.NOTHING


def factorial(found: Factorial, metric: Metric, name: str, where: str = "") -> Table:
    """Mean scores of two factors, a row per level of one and a column per level of the other."""
    columns = ((found.row_factor, TEXT), *((level, NUMBER) for level in found.columns))
    rows = tuple(
        (level, *(f"{fmt.score(metric, m)} ({n})" if n else fmt.NOTHING for m, n in zip(means, of_seeds, strict=True)))
        for level, means, of_seeds in zip(found.rows, found.means, found.seeds, strict=True)
    )
    title = f"{found.row_factor} and {found.column_factor}: mean {fmt.with_unit(metric)} (seeds)"
    return Table(name, title, columns, rows, where=where)


def interactions(found: Factorial, metric: Metric, name: str, where: str = "") -> Table:
    """Whether the gain of one factor depends on the other, and relative to which levels."""
    # Other factors, held at one level, are appended to the name of the column factor.
    other, _, _ = found.column_factor.partition(", ")
    looks = any(one.interval.share < 1 for one in found.interactions)
    columns: list[Column] = [
        (found.row_factor, TEXT, lambda one: f"{one.level} against {one.reference}"),
        (other, TEXT, lambda one: f"{one.other_level} against {one.other_reference}"),
        (fmt.in_unit(metric, "interaction"), NUMBER, lambda one: fmt.difference(metric, one.interval.mean)),
        ("repeated interval" if looks else "95 % interval", NUMBER, lambda one: fmt.limits(metric, one.interval)),
        ("p, Holm", NUMBER, lambda one: fmt.p_value(one.p_holm)),
        ("seeds", NUMBER, lambda one: str(one.n_seeds)),
    ]
    title = f"Interaction of {found.row_factor} and {found.column_factor}"
    note = (
        f"The gain in the first column with the first level of {other}, minus the gain with the level after "
        '"against". Holm\'s adjustment is over all interactions of the block.'
    )
    return _table(name, title, columns, found.interactions, note, where)


def over_datasets(found: Sequence[OverDatasets], metric: Metric, name: str) -> Table:
    """Candidates over data sets, one difference from each."""
    columns: list[Column] = [
        *_ARMS,
        ("conditions", TEXT, lambda over: pairs(over.conditions, ", ")),
        ("data sets", NUMBER, lambda over: str(len(over.differences))),
        (fmt.in_unit(metric, "difference"), NUMBER, lambda over: fmt.difference(metric, over.interval.mean)),
        ("95 % interval", NUMBER, lambda over: fmt.limits(metric, over.interval)),
        (fmt.in_unit(metric, "95 % for a new data set"), NUMBER, lambda over: fmt.between(metric, *over.prediction)),
        ("p, Holm", NUMBER, lambda over: fmt.p_value(over.p_holm)),
        ("method", TEXT, lambda over: over.method),
    ]
    note = (
        "Every interval is from a t test over data sets. With another method for p, the two can disagree slightly. "
        "95 % for a new data set: where its difference lies."
    )
    return _table(name, "Across data sets", columns, found, note)


def unscored(result: Result, name: str) -> Table:
    """Runs without a score, and why."""
    folders = folders_of(result)
    columns: list[Column] = [
        ("run", CODE, lambda run: run.run_id),
        ("data set", TEXT, lambda run: run.dataset),
        ("arm", ARM, lambda run: run.arm),
        ("seed", NUMBER, lambda run: run.seed),
        ("state", TEXT, lambda run: shown_state(run.state)),
        ("why", TEXT, lambda run: only_names(run.reason, folders)),
    ]
    return _table(name, "Runs without a score", columns, result.unscored)


RUNS = {
    "run_id": ("run", CODE),
    "dataset": ("data set", TEXT),
    "arm": ("arm", ARM),
    "seed": ("seed", NUMBER),
    "fold": ("fold", NUMBER),
    "status": ("status", TEXT),
    "score": ("score", NUMBER),
    "dice": (fmt.with_unit(METRICS["dice"]), NUMBER),
    "iou": (fmt.with_unit(METRICS["iou"]), NUMBER),
    "epochs": ("epochs", NUMBER),
    "best_epoch": ("best epoch", NUMBER),
    "seconds": ("seconds", NUMBER),
    "study": ("study", TEXT),
    "directory": ("directory", TEXT),
    "host": ("host", TEXT),
    "device_type": ("device", TEXT),
    "version_segexp": ("segexp", TEXT),
    "git_commit": ("commit", CODE),
    "started": ("started", TEXT),
}
"""Columns of the run table on the page; runs.csv has more."""


def runs(result: Result, name: str) -> Table:
    """Every run, with or without a score."""
    # The score that is compared has a column already.
    shown = [column for column in RUNS if column != result.metric.name]
    columns = tuple((fmt.with_unit(result.metric), NUMBER) if column == "score" else RUNS[column] for column in shown)
    rows = tuple(tuple(_run_cell(column, run.get(column), result.metric) for column in shown) for run in result.runs)
    return Table(name, "Runs", columns, rows)


def _run_cell(column: str, value: Any, metric: Metric) -> str:
    if column in ("score", "dice", "iou") and isinstance(value, float):
        return fmt.score(metric if column == "score" else METRICS[column], value)
    shorten = {
        "status": shown_state,
        "directory": last_name,
        "git_commit": lambda commit: commit[:10],
        "started": lambda time: time[:16].replace("T", " "),
    }
    return shorten[column](str(value)) if value and column in shorten else number(value)


def answer(found: Answer, prefix: str, where: str = "") -> Table:
    """The rows of a secondary analysis; every row has the columns of the first. A mean and its sd share a cell."""
    name = prefix + (found.name if found.name != "ranking" else "ranking-stability")  # beside the ranking of the block
    first = list(found.rows[0]) if found.rows else []
    keys = [key for key in first if not (key.endswith("_sd") and key.removesuffix("_sd") in first)]
    known = {key: fmt.with_unit(METRICS[key]) for key in keys if key in METRICS}
    titles = {key: ({"n_runs": "runs"} | known | dict(found.titles)).get(key, key) for key in keys}
    columns = tuple((titles[key], _kind(key, [row.get(key) for row in found.rows])) for key in keys)
    rows = tuple(tuple(_with_sd(row, key, titles[key]) for key in keys) for row in found.rows)
    note = "\u00b1: standard deviation of the runs." if any("\u00b1" in cell for row in rows for cell in row) else ""
    return Table(name, found.title, columns, rows, note, where)


def _with_sd(row: Mapping[str, Any], key: str, title: str) -> str:
    value = row.get(key)
    if not isinstance(value, float):
        return number(value)
    points = title.endswith("(points)")
    by = 100 if points or title.endswith("(%)") else 1
    return fmt.mean_and_sd(by * value, by * row.get(f"{key}_sd", math.nan), points)


def _kind(key: str, values: Sequence[Any]) -> str:
    if key == "arm":
        return ARM
    return TEXT if any(isinstance(v, str | bool) and v != "" for v in values) else NUMBER
