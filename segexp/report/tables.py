"""The tables of a report: what stands in their cells. `render` prints them, `export` writes the numbers behind them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from segexp.compare.formatting import NOTHING, difference, in_unit, limits, p_value, score, signed, with_unit
from segexp.compare.result import (
    METRICS,
    OVER_FOLDS,
    TWO_WAY,
    ArmScore,
    Block,
    Comparison,
    Factorial,
    Metric,
    OverDatasets,
    Result,
)
from segexp.report.formatting import folders_of, last_name, number, only_names, pairs, scope, seeds

TEXT, NUMBER, ARM, VERDICT, CODE = "text", "number", "arm", "verdict", "code"
"""Kinds of columns: how a page sets them, and how they are sorted."""


@dataclass(frozen=True)
class Table:
    """Cells as they are printed. columns: (title, kind) each; note: what must be known to read it; where: the data set
    and the conditions, "" for all of them."""

    name: str
    title: str
    columns: tuple[tuple[str, str], ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    where: str = ""


def ranking(block: Block, metric: Metric, name: str) -> Table:
    """Arms from the best to the worst."""
    any_zeroed = any(arm.n_failed + arm.n_diverged and not math.isnan(arm.mean_failures_zero) for arm in block.ranking)
    columns = [
        ("arm", ARM),
        (with_unit(metric), NUMBER),
        ("sd of seeds", NUMBER),
        ("IQM", NUMBER),
        *([("failures as 0", NUMBER)] if any_zeroed else []),
        ("seeds", NUMBER),
        ("images", NUMBER),
        ("groups", NUMBER),
        ("no score", TEXT),
    ]
    rows = tuple(
        (
            arm.arm,
            score(metric, arm.mean),
            score(metric, arm.seed_sd),
            score(metric, arm.iqm),
            *([score(metric, arm.mean_failures_zero)] if any_zeroed else []),
            seeds(arm.n_seeds, arm.n_folds),
            _rested_on(arm.n_images, metric),
            _rested_on(arm.n_groups, metric),
            without_score(arm),
        )
        for arm in block.ranking
    )
    over = "seeds and images" if metric.per_image else "seeds; the score is of all images together"
    return Table(name, "Ranking", tuple(columns), rows, f"IQM: interquartile mean over {over}.", block.title)


def _rested_on(number: int, metric: Metric) -> str:
    """How many images or groups; nothing for scores that are not image by image."""
    return str(number) if number or metric.per_image else NOTHING


def without_score(arm: ArmScore) -> str:
    """2 failed, 1 diverged; 0 where every run has a score."""
    counts = {"failed": arm.n_failed, "diverged": arm.n_diverged, "unfinished": arm.n_unfinished}
    return ", ".join(f"{n} {state}" for state, n in counts.items() if n) or "0"


def comparisons(block: Block, metric: Metric, name: str) -> tuple[Table, ...]:
    """Every candidate against its reference, in tables that fit a page: the verdicts, what this design could have
    found, and the numbers behind both; none where nothing is compared."""
    made = (_verdicts(block, metric, name), _design(block, metric, name), _details(block, metric, name))
    return made if block.comparisons else ()


def _verdicts(block: Block, metric: Metric, name: str) -> Table:
    any_unusual = any(found.method != TWO_WAY for found in block.comparisons)
    columns = (
        ("candidate", ARM),
        ("reference", ARM),
        ("verdict", VERDICT),
        (in_unit(metric, "difference"), NUMBER),
        ("95 % interval", NUMBER),
        ("speaks of", TEXT),
        ("95 %, these images", NUMBER),
        ("p", NUMBER),
        ("p, Holm", NUMBER),
        *([("method", TEXT)] if any_unusual else []),
    )
    rows = tuple(
        (
            found.candidate,
            found.reference,
            found.verdict,
            difference(metric, found.deciding.mean),
            limits(metric, found.deciding),
            scope(found),
            limits(metric, found.test_set),
            p_value(found.deciding.p),
            p_value(found.p_holm),
            *([found.method] if any_unusual else []),
        )
        for found in block.comparisons
    )
    note = (
        "Verdicts rest on p after Holm; each interval is a 95 % interval by itself, not adjusted, so that one beside 0 "
        'can go with "inconclusive".'
    )
    return Table(name, "Comparisons", columns, rows, note, block.title)


def _design(block: Block, metric: Metric, name: str) -> Table:
    to_find = metric.rope > 0
    columns = (
        ("candidate", ARM),
        ("reference", ARM),
        ("seeds", NUMBER),
        ("images", NUMBER),
        ("groups", NUMBER),
        (in_unit(metric, "detectable"), NUMBER),
        *([(f"seeds to find {score(metric, metric.rope)}", NUMBER)] if to_find else []),
        (in_unit(metric, "image floor"), NUMBER),
    )
    rows = tuple(
        (
            found.candidate,
            found.reference,
            seeds(found.n_seeds, found.n_folds),
            _rested_on(found.n_images, metric),
            _rested_on(found.n_groups, metric),
            score(metric, found.minimum_detectable),
            *([_seeds_needed(found)] if to_find else []),
            score(metric, found.image_floor),
        )
        for found in block.comparisons
    )
    note = (
        "detectable: the smallest difference that as many seeds and images find with 80 % power; "
        f"{'seeds to find: how many find what is just not negligible so; ' if to_find else ''}"
        "image floor: what endless seeds could find on as many images. All for one comparison, before Holm."
    )
    return Table(f"{name}-design", "What this design can find", columns, rows, note, block.title)


def _seeds_needed(found: Comparison) -> str:
    """How many seeds it takes: a number, "no number" where none does, a dash where it is not known."""
    return "no number" if found.seeds_needed == math.inf else number(found.seeds_needed)


def _details(block: Block, metric: Metric, name: str) -> Table:
    columns = (
        ("candidate", ARM),
        ("reference", ARM),
        ("df", NUMBER),
        (in_unit(metric, "standard error"), NUMBER),
        ("seeds won", NUMBER),
        ("95 % of their share", NUMBER),
        ("effect size", NUMBER),
        ("correlation of seeds", NUMBER),
        *((in_unit(metric, f"sd of {what}"), NUMBER) for what in _COMPONENTS.values()),
    )
    rows = tuple(
        (
            found.candidate,
            found.reference,
            number(round(found.deciding.df, 1)),
            score(metric, found.deciding.se),
            _won(found),
            f"{100 * found.wins_low:.0f} to {100 * found.wins_high:.0f} %" if found.wins_low >= 0 else NOTHING,
            signed(found.effect_size),
            signed(found.seed_correlation),
            *(score(metric, math.sqrt(max(found.variance.get(part, math.nan), 0.0))) for part in _COMPONENTS),
        )
        for found in block.comparisons
    )
    note = (
        "Of the deciding interval: df and standard error. effect size: mean over sd of the seeds' differences. sd of "
        "seeds, images and the rest: parts of a difference's variance, rough with few seeds."
    )
    return Table(f"{name}-details", "In detail", columns, rows, note, block.title)


_COMPONENTS = {"seed": "seeds", "image": "images", "residual": "the rest"}


def _won(found: Comparison) -> str:
    """4.5 of 5, or of as many folds where those are what is counted."""
    if math.isnan(found.wins):
        return NOTHING
    of = f"{found.n_folds} folds" if found.method == OVER_FOLDS else f"{found.n_seeds}"
    return f"{found.wins:g} of {of}"


def crossed(factorial: Factorial, metric: Metric, name: str, where: str = "") -> Table:
    """Mean scores of two factors, a row per level of one and a column per level of the other."""
    columns = ((factorial.row_factor, TEXT), *((level, NUMBER) for level in factorial.columns))
    rows = tuple(
        (level, *(f"{score(metric, m)} ({n})" if n else NOTHING for m, n in zip(means, seeds, strict=True)))
        for level, means, seeds in zip(factorial.rows, factorial.means, factorial.seeds, strict=True)
    )
    title = f"{factorial.row_factor} and {factorial.column_factor}: mean {with_unit(metric)} (seeds)"
    return Table(name, title, columns, rows, where=where)


def interactions(factorial: Factorial, metric: Metric, name: str, where: str = "") -> Table:
    """Whether the gain of one factor depends on the other, and relative to which levels."""
    # Further factors, held at one level, stand behind the name of the columns' factor.
    other, _, _ = factorial.column_factor.partition(", ")
    columns = (
        (factorial.row_factor, TEXT),
        (other, TEXT),
        (in_unit(metric, "interaction"), NUMBER),
        ("95 % interval", NUMBER),
        ("p, Holm", NUMBER),
        ("seeds", NUMBER),
    )
    rows = tuple(
        (
            f"{i.level} against {i.reference}",
            f"{i.other_level} against {i.other_reference}",
            difference(metric, i.interval.mean),
            limits(metric, i.interval),
            p_value(i.p_holm),
            str(i.n_seeds),
        )
        for i in factorial.interactions
    )
    title = f"Interaction of {factorial.row_factor} and {factorial.column_factor}"
    note = (
        f"What the first gain is at the one level of {other}, less what it is at the other. Holm over all of the block."
    )
    return Table(name, title, columns, rows, note, where)


def over_datasets(found: Sequence[OverDatasets], metric: Metric, name: str) -> Table:
    """Candidates over data sets, one difference from each."""
    columns = (
        ("candidate", ARM),
        ("reference", ARM),
        ("conditions", TEXT),
        ("data sets", NUMBER),
        (in_unit(metric, "difference"), NUMBER),
        ("95 % interval", NUMBER),
        ("p, Holm", NUMBER),
        ("method", TEXT),
    )
    rows = tuple(
        (
            f.candidate,
            f.reference,
            pairs(f.conditions),
            str(len(f.differences)),
            difference(metric, f.interval.mean),
            limits(metric, f.interval),
            p_value(f.p_holm),
            f.method,
        )
        for f in found
    )
    note = "Each interval is that of a t over data sets, whichever method p is of: the two may disagree a little."
    return Table(name, "Over data sets", columns, rows, note)


def unscored(result: Result, name: str) -> Table:
    """Runs without a score, and why."""
    columns = (("run", CODE), ("data set", TEXT), ("arm", ARM), ("seed", NUMBER), ("state", TEXT), ("why", TEXT))
    folders = folders_of(result)
    rows = tuple((u.run_id, u.dataset, u.arm, u.seed, u.state, only_names(u.reason, folders)) for u in result.unscored)
    return Table(name, "Runs without a score", columns, rows)


RUNS = {
    "run_id": ("run", CODE),
    "dataset": ("data set", TEXT),
    "arm": ("arm", ARM),
    "seed": ("seed", NUMBER),
    "fold": ("fold", NUMBER),
    "status": ("status", TEXT),
    "score": ("score", NUMBER),
    "dice": (with_unit(METRICS["dice"]), NUMBER),
    "iou": (with_unit(METRICS["iou"]), NUMBER),
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
"""Columns of the run table on the page; the CSV file has all."""


def runs(result: Result, name: str) -> Table:
    """Every run, with or without a score."""
    # The score that is compared need not stand there twice.
    shown = [column for column in RUNS if column != result.metric.name]
    columns = tuple((with_unit(result.metric), NUMBER) if column == "score" else RUNS[column] for column in shown)
    rows = tuple(tuple(_run_cell(column, run.get(column), result.metric) for column in shown) for run in result.runs)
    return Table(name, "Runs", columns, rows)


def _run_cell(column: str, value: Any, metric: Metric) -> str:
    if column in ("score", "dice", "iou") and isinstance(value, float):
        return score(metric if column == "score" else METRICS[column], value)
    if column == "directory" and value:
        return last_name(str(value))
    if column == "git_commit" and value:
        return str(value)[:10]
    if column == "started" and value:
        return str(value)[:16].replace("T", " ")
    return number(value)
