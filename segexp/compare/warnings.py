"""Warnings about the runs of a comparison, and why arms are not compared."""

import itertools
import math
import shlex
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from segexp.compare.blocks import USUAL_REFERENCE, Arms, BlockRuns, counterpart
from segexp.compare.result import Block
from segexp.data.split import slices_in
from segexp.errors import UsageError
from segexp.records import text_rows
from segexp.records.foreign import PAIRING
from segexp.records.formatting import pairs, pluralize
from segexp.records.runs import Run, column_of, shown_state

SHARE = 0.001
"""A larger share of pixels on a tie, or clipped, gives a warning."""

_MADE_WITH = (
    ("version_segexp", "versions of segexp"),
    ("git_commit", "commits of the code"),
    ("git_dirty", "changed and unchanged checkouts"),
    ("git_diff_sha", "local changes of the code"),
    ("version_torch", "versions of torch"),
    ("device_type", "kinds of device"),
    ("device_name", "devices"),
    ("threads", "numbers of threads"),
    ("precision", "precisions"),
    ("compiled", "compiled (true) and uncompiled heads and losses"),
)

_PATIENCE, _EPOCHS = column_of("trainer.patience"), column_of("trainer.epochs")


def warnings_of(block: BlockRuns, arms: Arms) -> tuple[str, ...]:
    """The warnings about the runs of a block, one line each."""
    done = [run for arm in block.arms.values() for run in arm.scored.values()]
    lines = [*_without_score(block, arms), *_unequal_seeds(block, arms)]
    for column, what in _MADE_WITH:
        values = {run.row.get(column, "") for run in done} - {""}
        if len(values) > 1:
            lines.append(f"mixed {what}: {_some([value[:12] for value in sorted(values)], 4)}")
    lines += [*_pixels(block, arms), *_slices(done)]
    on_test = sum(run.row.get("select_metric", "").startswith("test") for run in done)
    if on_test:
        lines.append(f"{pluralize(on_test, 'run')} chose the epoch on the test images: scores are optimistic")
    limited = sum(_at_limit(run) for run in done)
    if limited:
        runs = f"{limited} of {pluralize(len(done), 'run')}"
        lines.append(f"{runs} stopped at trainer.epochs before trainer.patience ran out: scores might still have risen")
    return tuple(lines)


def mixed_ap(block: BlockRuns) -> list[str]:
    """A warning where the average precision of some runs comes from the fixed bins of earlier versions."""
    done = [run for arm in block.arms.values() for run in arm.scored.values() if not math.isnan(run.number("ap"))]
    older = sum(math.isnan(run.number("ap_error")) for run in done)
    if older in (0, len(done)):
        return []
    return [f"ap of {older} of {pluralize(len(done), 'run')} is up to 0.14 points too low: repeat these older runs"]


def convergence_of(runs: Sequence[Run]) -> dict[str, Any]:
    """How many finished runs had not converged: the last epoch that trainer.epochs allows was their best.

    runs; best_is_last; slope: validation Dice per epoch over their last quarter (three epochs or more), the mean of the
    runs (of at most 100) whose directories hold epochs.csv, NaN where none does; warning: "" where every run converged.
    """
    rising = [r for r in runs if r.number("best_epoch") == r.number("epochs") >= r.number(_EPOCHS)]
    slopes = []
    for run in [run for run in rising if not run.collected][:100]:
        try:
            rows = [row for row in text_rows(run.path / "epochs.csv", "epochs") if row["split"] == "val"]
            dice = [float(row["dice"]) for row in rows][-max(3, len(rows) // 4) :]
        except (UsageError, ValueError):
            continue
        if len(dice) > 2:
            slopes.append(statistics.linear_regression(range(len(dice)), dice).slope)
    slope = statistics.fmean(slopes) if slopes else math.nan
    warning = f"{len(rising)} of {pluralize(len(runs), 'run')} had not converged: the last epoch was the best"
    warning += f" (validation Dice changed by {100 * slope:+.2f} points an epoch at the end)" if slopes else ""
    warning = f"{warning}; raise trainer.epochs" if rising else ""
    return {"runs": len(runs), "best_is_last": len(rising), "slope": slope, "warning": warning}


def _without_score(block: BlockRuns, arms: Arms) -> list[str]:
    """Missing runs can bias the comparison: failures are seldom random."""
    states: dict[str, Counter[str]] = {}
    for arm in block.arms.values():
        for run in arm.unscored:
            if run.state != "done":
                states.setdefault(run.state, Counter())[arms.label(arm.levels)] += 1
    total = pluralize(sum(len(arm.scored) + len(arm.unscored) for arm in block.arms.values()), "run")
    return [
        f"{sum(by_arm.values())} of {total} {shown_state(state)}, without a score: "
        + _some([f"{count} of {arm}" for arm, count in by_arm.items()], 6)
        for state, by_arm in states.items()
    ]


def _unequal_seeds(block: BlockRuns, arms: Arms) -> list[str]:
    seeds = {levels: set(arm.scored) for levels, arm in block.arms.items()}
    if len({frozenset(of_arm) for of_arm in seeds.values()}) < 2:
        return []
    every = set().union(*seeds.values())
    lacking = [f"{arms.label(levels)} has {len(s)}" for levels, s in seeds.items() if s != every]
    return [f"unequal seeds: of {len(every)} {_some(lacking, 6)}"]


def _pixels(block: BlockRuns, arms: Arms) -> list[str]:
    lines = []
    columns = {"frac_tie": "on a tie (probability exactly 0.5)", "frac_clipped": "with clipped probability"}
    for (column, what), arm in itertools.product(columns.items(), block.arms.values()):
        shares = [value for run in arm.scored.values() if (value := run.number(column)) > SHARE]
        if shares:
            runs = pluralize(len(shares), "run")
            lines.append(f"{arms.label(arm.levels)}: up to {max(shares):.2%} of the pixels {what} in {runs}")
    return lines


def _slices(done: Sequence[Run]) -> list[str]:
    if any(run.row.get("config_metrics_unit") == "case" for run in done):
        return []
    for run in {id(run.images.layout): run for run in done if run.images is not None}.values():
        names, groups = run.images.layout.image_ids, run.images.layout.groups  # type: ignore[union-attr]
        volumes = 0 if any(groups) else slices_in(names) and slices_in(names, _sizes(run, names))
        if volumes:
            return [
                f"images without groups look like slices of {volumes} volumes ({names[0]} ...): slices of "
                "one patient are not independent, so the intervals are too narrow; "
                + ("name their column with --columns group=COLUMN" if PAIRING in run.row else "set dataset.group_file")
            ]
    return []


def shared_images(blocks: Sequence[BlockRuns]) -> list[str]:
    """A warning for each two data sets that have images in common, known by the hashes of their pixels; none where the
    run directories are not at hand."""
    known: dict[str, tuple[str, set[str]]] = {}
    for block in {block.dataset_sha: block for block in blocks}.values() if len(blocks) > 1 else ():
        for run in [run for arm in block.arms.values() for run in arm.scored.values() if not run.collected][:1]:
            with suppress(UsageError):
                shas = {row["image_sha"] for row in text_rows(run.path / "split.csv", "split")} - {""}
                known[block.dataset_sha] = (block.dataset, shas)
    return [
        f"{a} and {b} have {pluralize(len(of_a & of_b), 'image')} in common: they are no independent data sets"
        for (a, of_a), (b, of_b) in itertools.combinations(known.values(), 2)
        if of_a & of_b
    ]


def _sizes(run: Run, names: Sequence[str]) -> list[tuple[str, str]] | None:
    """Height and width of the images of a run as its images.csv has them; None where it is not at hand."""
    try:
        rows = [] if run.collected else text_rows(run.path / "images.csv", "images")
        sizes = {row["image_id"]: (row["height"], row["width"]) for row in rows}
        return [sizes[name] for name in names]
    except (UsageError, KeyError):
        return None


def _at_limit(run: Run) -> bool:
    """Whether a run with trainer.patience reached trainer.epochs first. Patience may run out in the last epoch."""
    epochs, patience = run.number("epochs"), run.number(_PATIENCE)
    return epochs >= run.number(_EPOCHS) and not epochs - run.number("best_epoch") >= patience and patience > 0


def unanswered(arms: Arms, references: Sequence[Mapping[str, str]]) -> str:
    """Why nothing is compared, where that is so."""
    if references:
        return "no two arms have the same conditions, data set and split"
    usual = " or ".join(f"{key}={level}" for key, level in USUAL_REFERENCE.items() if key in arms.by)
    key = next((key for key in reversed(arms.by) if len(arms.levels[key]) > 1), arms.by[-1])
    example = f"--reference {shlex.quote(f'{key}={arms.levels[key][0]}')}"
    missing = f" (default: {usual})" if usual else ""
    return f"there is no reference arm{missing}: name one, for example {example}"


def not_compared(arms: Arms, references: Sequence[Mapping[str, str]], blocks: Sequence[Block]) -> list[str]:
    """Arms that are in no comparison, or lack a comparison that a reference asks for, and why."""
    if not references:
        return []
    together = {name for b in blocks for c in b.comparisons for name in (c.candidate, c.reference)}
    alone = sorted({arm.arm for block in blocks for arm in block.ranking} - together)
    lacking = _lacks_reference(alone, arms, references)
    if not alone:
        return lacking
    keys = sorted({key for block in arms.blocks for key in block.conditions})
    same, cure = "other settings", "choose another reference with --reference"
    if len(arms.blocks) > 1 and keys:
        same, cure = ", ".join(keys), "name the keys that make an arm with --by"
    other = " or ".join(f"run with {pairs(reference)}" if reference else "other arm" for reference in references)
    return [f"{_some(alone)}: not compared, because no {other} has the same {same}; {cure}", *lacking]


def _lacks_reference(alone: Sequence[str], arms: Arms, references: Sequence[Mapping[str, str]]) -> list[str]:
    """Arms that are compared somewhere, but lack the arm of a reference in some blocks."""
    lines = []
    for reference in references:
        missing: dict[str, list[str]] = {}
        for block in arms.blocks:
            where = ", ".join(filter(None, [block.dataset, pairs(block.conditions, ", ")]))
            for levels in block.arms:
                label = arms.label(levels)
                if label not in alone and counterpart(levels, arms, reference) not in block.arms:
                    missing.setdefault(label, []).append(where)
        by_blocks: dict[tuple[str, ...], list[str]] = {}
        for label, places in missing.items():
            by_blocks.setdefault(tuple(places), []).append(label)
        for here, labels in by_blocks.items():
            on = f" on {_some(here, between='; ')}" if len(arms.blocks) > 1 else ""
            which = f"{_some(labels)}: not compared with {pairs(reference)}{on}"
            lines.append(f"{which}, because no such run has the same other settings")
    return lines


def _some(names: Sequence[str], most: int = 4, between: str = ", ") -> str:
    return f"{between.join(names[:most])}{' ...' if len(names) > most else ''}"
