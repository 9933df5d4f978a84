"""Warnings about the runs of a comparison, and what they were made with."""

import importlib.metadata
import platform
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import segexp
from segexp.compare.blocks import Arms, BlockRuns
from segexp.records.formatting import pluralize
from segexp.records.runs import Run, column_of

SHARE = 0.001
"""More pixels than this share on a tie, or clipped, are told."""

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
)

_PATIENCE, _EPOCHS = column_of("trainer.patience"), column_of("trainer.epochs")


def warnings_of(ground: BlockRuns, arms: Arms) -> tuple[str, ...]:
    """The warnings of a block, a line each."""
    done = [run for group in ground.groups.values() for run in group.scored.values()]
    return (
        *_without_score(ground, arms),
        *_unequal_seeds(ground, arms),
        *_mixed(done),
        *_pixels(ground, arms),
        *_slices(done),
        *_selected_on_test(done),
        *_still_rising(done),
    )


def _without_score(ground: BlockRuns, arms: Arms) -> list[str]:
    """Runs that are missing bias what is left: those that fail are seldom a random choice."""
    states: dict[str, dict[str, int]] = {}
    total = 0
    for group in ground.groups.values():
        total += len(group.scored) + len(group.unscored)
        for run in group.unscored:
            if run.state != "done":
                of_state = states.setdefault(run.state, {})
                of_state[arms.label(group.levels)] = of_state.get(arms.label(group.levels), 0) + 1
    told = []
    for state, by_arm in states.items():
        shown = ", ".join(f"{count} of {arm}" for arm, count in list(by_arm.items())[:6])
        more = " ..." if len(by_arm) > 6 else ""
        told.append(f"{sum(by_arm.values())} of {pluralize(total, 'run')} {state} and without a score: {shown}{more}")
    return told


def _unequal_seeds(ground: BlockRuns, arms: Arms) -> list[str]:
    seeds = {levels: set(group.scored) for levels, group in ground.groups.items()}
    if len({frozenset(of_arm) for of_arm in seeds.values()}) < 2:
        return []
    most = set().union(*seeds.values())
    lacking = [f"{arms.label(levels)} has {len(s)}" for levels, s in seeds.items() if s != most]
    return [f"unequal seeds: of {len(most)} {', '.join(lacking[:6])}{' ...' if len(lacking) > 6 else ''}"]


def _mixed(done: Sequence[Run]) -> list[str]:
    told = []
    for column, what in _MADE_WITH:
        values = {run.row.get(column, "") for run in done} - {""}
        if len(values) > 1:
            shown = ", ".join(value[:12] for value in sorted(values)[:4])
            told.append(f"mixed {what}: {shown}{' ...' if len(values) > 4 else ''}")
    return told


def _pixels(ground: BlockRuns, arms: Arms) -> list[str]:
    told = []
    for column, what in (
        ("frac_tie", "on a tie (probability exactly 0.5)"),
        ("frac_clipped", "with clipped probability"),
    ):
        for group in ground.groups.values():
            shares = [value for run in group.scored.values() if (value := run.number(column)) > SHARE]
            if shares:
                told.append(
                    f"{arms.label(group.levels)}: up to {max(shares):.2%} of the pixels {what} in "
                    f"{pluralize(len(shares), 'run')}"
                )
    return told


def _slices(done: Sequence[Run]) -> list[str]:
    layouts = {id(run.images.layout): run.images.layout for run in done if run.images is not None}
    for layout in layouts.values():
        volumes = 0 if any(layout.groups) else slices_in(layout.image_ids)
        if volumes:
            return [
                f"images without groups look like slices of {volumes} volumes ({layout.image_ids[0]} ...): slices of "
                "one patient are not independent; name the groups (dataset.group_file), or the intervals are too narrow"
            ]
    return []


def slices_in(names: Sequence[str]) -> int:
    """How many volumes image names look like slices of, 0 where they do not: patient07_012 and patient07_013."""
    stems = Counter(
        m[1] for name in names if (m := re.fullmatch(r"(.*[A-Za-z0-9])[-_. ](?:[A-Za-z]{0,6})\d{1,4}", name))
    )
    volumes = [count for count in stems.values() if count > 1]
    return len(stems) if len(stems) > 1 and sum(volumes) > len(names) / 2 else 0


def _selected_on_test(done: Sequence[Run]) -> list[str]:
    bad = [run for run in done if run.row.get("select_metric", "").startswith("test")]
    return [f"{pluralize(len(bad), 'run')} chose the epoch on the test images: scores are optimistic"] if bad else []


def _still_rising(done: Sequence[Run]) -> list[str]:
    """Runs that were to go on until their score rises no more, and met the limit of epochs before."""

    def met(run: Run) -> bool:
        epochs, patience = run.number("epochs"), run.number(_PATIENCE)
        # Patience may run out in the very last epoch.
        return epochs >= run.number(_EPOCHS) and not epochs - run.number("best_epoch") >= patience and patience > 0

    return _told_of(done, met, "ended at the limit of epochs before the score had stopped rising (trainer.patience)")


def _told_of(done: Sequence[Run], test: Callable[[Run], bool], what: str) -> list[str]:
    found = sum(test(run) for run in done)
    return [f"{found} of {pluralize(len(done), 'run')} {what}"] if found else []


def warnings_of_split(split: str) -> tuple[str, ...]:
    """What is wrong with comparing on another split than test."""
    if split == "test":
        return ()
    return (f"scores on {split}: it has chosen epochs and thresholds, so they are optimistic; the verdict is for test",)


_COLUMNS = {
    "study": "studies",
    "dataset_sha": "data sets (SHA-256)",
    "split_sha": "splits (SHA-256)",
    "version_segexp": "segexp of the runs",
    "git_commit": "commits",
    "git_dirty": "local changes",
    "version_torch": "torch",
    "version_python": "Python",
    "device_name": "devices",
    "threads": "threads",
    "precision": "precision",
    "host": "hosts",
    "empty_policy": "empty masks",
    "resolution": "resolution",
    "select_metric": "weights chosen by",
}

LIBRARIES = ("numpy", "scipy", "pandas")


def provenance_of(paths: Sequence[Path], runs: Sequence[Run]) -> dict[str, Any]:
    """Keys as people read them -> values, with the number of runs behind each where there are several."""
    found: dict[str, Any] = {"read from": [str(path.absolute()) for path in paths]}
    found["runs"] = dict(Counter(run.state for run in runs))
    for column, title in _COLUMNS.items():
        counts = Counter(run.row.get(column, "") for run in runs)
        counts.pop("", None)
        if counts:
            found[title] = dict(counts.most_common())
    times = sorted(run.row["started"] for run in runs if run.row.get("started"))
    ends = sorted(run.row["finished"] for run in runs if run.row.get("finished"))
    if times:
        found["runs made"] = f"{times[0]} to {(ends or times)[-1]}"
    versions = {name: importlib.metadata.version(name) for name in LIBRARIES}
    found["compared with"] = {"segexp": segexp.__version__, "Python": platform.python_version(), **versions}
    return found
