"""`compare`: from run directories to a `Result`.

blocks.py sorts runs into blocks and arms, comparisons.py tests a candidate against its reference (statistics.py) and
makes factorial tables, datasets.py compares across data sets, warnings.py lists what limits the result.
"""

import dataclasses
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np

from segexp.compare.blocks import (
    ArmRuns,
    Arms,
    BlockRuns,
    are_splits,
    arrange,
    pairs_of,
    reference_levels,
    where_these,
    with_later_options,
)
from segexp.compare.comparisons import (
    Scorer,
    compared,
    factorials_of,
    folds_of,
    measured_in,
    metric_of,
    part_name,
    with_holm,
)
from segexp.compare.datasets import over_datasets_of, ranks_of, warnings_over_all
from segexp.compare.formatting import headline
from segexp.compare.looks import look
from segexp.compare.result import METRICS, ArmScore, Block, Comparison, Metric, Result, Unscored
from segexp.compare.statistics import interquartile_mean
from segexp.compare.warnings import convergence_of, not_compared, provenance_of, unanswered, warnings_of
from segexp.errors import UsageError
from segexp.evaluation import EmptyPolicy, fp_rate_empty, micro_scores, primary_score
from segexp.records import RESTORE
from segexp.records.formatting import pluralize
from segexp.records.runs import Run
from segexp.records.scores import SCORES, SPLITS
from segexp.records.tables import AGAIN, ROUNDING, Loaded, load

Reference = Mapping[str, str]

_POLICIES: tuple[EmptyPolicy, EmptyPolicy] = ("reference", "both_empty_one")


def compare(
    paths: Sequence[Path],
    metric: str = "dice",
    by: Sequence[str] | None = None,
    reference: str | None = None,
    rope: float | None = None,
    split: str = "test",
    where: Mapping[str, str] | None = None,
    loaded: Loaded | None = None,
) -> Result:
    """Compare the arms of all runs under ``paths``.

    by: groups or keys of the configuration that make an arm (default: hidden_activation, activation and loss, if they
    vary); reference: "activation=sigmoid,loss=bce"; rope: half-width of negligible differences, in points where the
    metric is printed in points; where: only runs with these values; loaded: the runs under ``paths``, if they have been
    read before. Raises UsageError where there are no runs with scores, only one arm, or unknown names.
    """
    measured = metric_of(metric, rope)
    if split not in SPLITS:
        raise UsageError(f"--split {split}: choose {' or '.join(SPLITS)}")
    if split != "test" and not measured.per_image and metric != "val_dice":
        on_both = ", ".join(name for name, other in METRICS.items() if other.per_image)
        raise UsageError(f"--split {split}: {metric} is measured on test only; measured on both: {on_both}")
    loaded = load_checked(paths, split) if loaded is None else loaded
    runs = _usable(loaded, split, where or {})
    measured = measured_in(measured, runs)
    arms = arrange(runs, by)
    if len(set(arms.level_of.values())) == 1:
        (only,) = set(arms.level_of.values())
        raise UsageError(
            f"there is only one arm, {arms.label(only)}, and nothing to compare it with; "
            "--by names other keys that make an arm, `segexp show` shows one run"
        )
    references = reference_levels(reference, arms)
    blocks = _blocks(arms, references, measured)
    over = over_datasets_of(blocks)
    ranks, without_rank = ranks_of(blocks, measured)
    convergence = convergence_of([run for run in runs if run.state == "done"])
    optimistic = f"scores on {split} are optimistic: epochs and thresholds were chosen on it; verdicts should use test"
    return Result(
        metric=measured,
        split=split,
        by=arms.by,
        reference=dict(itertools.chain.from_iterable(r.items() for r in references)),
        empty_policy=", ".join(sorted({_policy(block) for block in arms.blocks})),
        n_runs=len(runs),
        blocks=blocks,
        over_datasets=over,
        ranks=ranks,
        unscored=_unscored(runs if where else loaded.runs, arms),
        warnings=(
            *filter(None, [convergence["warning"]]),
            *([] if split == "test" else [optimistic]),
            *loaded.problems,
            *arms.warnings,
            *not_compared(arms, references, blocks),
            *warnings_over_all(over, blocks),
            *without_rank,
        ),
        headline=headline(blocks, over, measured, unanswered(arms, references)),
        provenance=provenance_of(paths, runs),
        runs=tuple(_row(run, arms, measured) for run in runs),
        convergence=convergence,
    )


def _usable(loaded: Loaded, split: str, where: Mapping[str, str]) -> tuple[Run, ...]:
    """The runs to compare. Raises UsageError where none has a score, with the first reason."""
    # A damaged record without a configuration belongs to no arm.
    known = [run for run in loaded.runs if run.row.get("config_seed") or run.row.get("seed")]
    runs = where_these(with_later_options(known), where)
    if any(run.state == "done" for run in runs):
        return runs
    more = len(loaded.problems) - 1
    why = f": {loaded.problems[0]}" + (f" (and {more} more)" if more > 0 else "") if loaded.problems else ""
    n_runs = pluralize(len(loaded.runs), "run")
    raise UsageError(f"none of {n_runs} has scores on {split}{why}; `segexp status` lists their states")


def _policy(block: BlockRuns) -> EmptyPolicy:
    """How the runs count empty masks. A block never mixes policies, because the policy is a condition."""
    runs = (run for arm in block.arms.values() for run in arm.scored.values())
    return cast(EmptyPolicy, next((p for run in runs if (p := run.row.get("empty_policy"))), "reference"))


def _blocks(arms: Arms, references: Sequence[Reference], metric: Metric) -> tuple[Block, ...]:
    """All blocks, with Holm's adjustment over all comparisons of a data set."""
    in_order = sorted(arms.blocks, key=_place)
    blocks = []
    for _, together in itertools.groupby(in_order, key=lambda b: (b.dataset, b.dataset_sha)):
        of_data = list(together)
        decided = _decided(of_data, arms, references, metric, None)
        arms_of_data = (arm for block in of_data for arm in block.arms.values())
        images = [run.images for arm in arms_of_data for run in arm.scored.values() if run.images is not None]
        layouts = {id(i.layout): i.layout for i in images}.values()
        # The policy for empty masks matters where a reference mask lacks a class.
        any_empty = any((layout.n_reference_NF == 0).any() for layout in layouts)
        if SCORES[metric.name].averaged == "empty_policy" and any_empty:
            decided = _with_policy_warning(decided, of_data, arms, references, metric)
        blocks += [
            _block(block, arms, references, Scorer(metric, _policy(block)), comparisons)
            for block, comparisons in zip(of_data, decided, strict=True)
        ]
    return tuple(blocks)


def _place(block: BlockRuns) -> tuple[Any, ...]:
    """Sorts blocks by data set, then by conditions, numbers by size."""
    number = re.compile(r"-?\d+(\.\d+)?(e-?\d+)?")
    values = [(float(v), "") if number.fullmatch(v) else (math.inf, v) for v in block.conditions.values()]
    return block.dataset, block.dataset_sha, values


def _decided(
    blocks: Sequence[BlockRuns], arms: Arms, references: Sequence[Reference], metric: Metric, policy: EmptyPolicy | None
) -> list[list[Comparison]]:
    """The comparisons of each block of a data set, with verdicts. policy: None for the policy of the runs."""
    scorers = [Scorer(metric, policy or _policy(block)) for block in blocks]
    made = [
        [compared(pair, block, arms, scorer) for pair in pairs_of(block, arms, references)]
        for block, scorer in zip(blocks, scorers, strict=True)
    ]
    every = [c for of_block in made for c in of_block]
    decided = iter(with_holm(every, [metric] * len(every), [0] * len(every)))
    return [[next(decided) for _ in of_block] for of_block in made]


def _with_policy_warning(
    decided: Sequence[Sequence[Comparison]],
    blocks: Sequence[BlockRuns],
    arms: Arms,
    references: Sequence[Reference],
    metric: Metric,
) -> list[list[Comparison]]:
    """The comparisons, with a warning where the other policy for empty masks would change the verdict."""
    # All blocks are decided again for each policy, because Holm's adjustment is over all of them.
    others = [next(p for p in _POLICIES if p != _policy(block)) for block in blocks]
    again = {other: _decided(blocks, arms, references, metric, other) for other in set(others)}
    warned: list[list[Comparison]] = []
    for n, (of_block, other) in enumerate(zip(decided, others, strict=True)):
        warned.append([])
        for c, o in zip(of_block, again[other][n], strict=True):
            note = f"with metrics.empty_policy={other} the verdict would be: {o.verdict}"
            warnings = (*c.warnings, note) if c.verdict != o.verdict else c.warnings
            warned[-1].append(dataclasses.replace(c, warnings=warnings))
    return warned


def _block(
    block: BlockRuns, arms: Arms, references: Sequence[Reference], scorer: Scorer, comparisons: Sequence[Comparison]
) -> Block:
    sign = -1 if scorer.metric.higher_is_better else 1
    folds = folds_of(block)
    ranking = sorted(
        (_arm(runs, arms, folds, scorer) for runs in block.arms.values()),
        key=lambda arm: (math.isnan(arm.mean), sign * arm.mean if not math.isnan(arm.mean) else 0, arm.arm),
    )
    place = {arm.arm: n for n, arm in enumerate(ranking)}
    warnings = list(warnings_of(block, arms))
    without_mean = [arm.arm for arm in ranking if arm.n_seeds and math.isnan(arm.mean)]
    if without_mean:
        what = "splits" if are_splits(folds) else "folds"
        warnings.append(f"{', '.join(without_mean)}: no mean, because not all {len(folds)} {what} have a run")
    return Block(
        dataset=block.dataset,
        dataset_sha=block.dataset_sha,
        conditions=block.conditions,
        ranking=tuple(ranking),
        comparisons=tuple(sorted(comparisons, key=lambda c: place[c.candidate])),
        factorials=factorials_of(block, arms, references, scorer),
        warnings=tuple(warnings),
    )


def _arm(arm: ArmRuns, arms: Arms, folds: Sequence[str], scorer: Scorer) -> ArmScore:
    metric, runs = scorer.metric, scorer.scored(arm)
    seeds = list(scorer.of_seeds(runs, folds).values())
    seeds = scorer.of_folds(runs, folds) if are_splits(folds) else seeds
    n_parts = len({fold for fold, _ in runs if fold})
    mean = scorer.mean(runs, folds)
    states = [run.state for run in arm.unscored if run.state != "done"]
    n_lost = states.count("failed") + states.count("diverged")
    n_images, n_units, iqm = _spread(list(runs.values()), scorer)
    bounded = metric.points and metric.higher_is_better and len(runs) + n_lost > 0
    return ArmScore(
        arm=arms.label(arm.levels),
        levels=dict(zip(arms.by, arm.levels, strict=True)),
        n_seeds=len({seed for _, seed in runs}),
        n_folds=0 if are_splits(folds) else n_parts,
        n_splits=n_parts if are_splits(folds) else 0,
        n_images=n_images,
        n_groups=n_units,
        n_failed=states.count("failed"),
        n_diverged=states.count("diverged"),
        n_unfinished=len(states) - n_lost,
        mean=mean,
        interval=scorer.interval(runs, folds),
        seed_sd=float(np.std(seeds, ddof=1)) if len(seeds) > 1 else math.nan,
        iqm=iqm,
        mean_failures_zero=(mean if runs else 0.0) * len(runs) / (len(runs) + n_lost) if bounded else math.nan,
        seeds={
            f"{part_name(fold)}, seed {seed}" if fold else seed: scorer.score(run) for (fold, seed), run in runs.items()
        },
        directories=tuple(str(run.path) for run in runs.values() if not run.collected),
    )


def _spread(runs: Sequence[Run], scorer: Scorer) -> tuple[int, int, float]:
    """Images and units behind an arm's scores, and the interquartile mean over seeds x units."""
    if not scorer.metric.per_image or not runs:
        scores = np.array([run.number(scorer.metric.name) for run in runs])
        scores = scores[~np.isnan(scores)]
        return 0, 0, interquartile_mean(scores) if scores.size else math.nan
    by_fold: dict[str, list[Run]] = {}
    for run in runs:
        by_fold.setdefault(run.row.get("split_sha") or run.row.get("fold", ""), []).append(run)
    values = [scorer.values(of_fold) for of_fold in by_fold.values()]
    pooled = np.concatenate([v.values_KU.ravel() for v in values])
    n_images, n_units = sum(v.n_images for v in values), sum(len(v.units) for v in values)
    return n_images, n_units, interquartile_mean(pooled) if pooled.size else math.nan


def _unscored(runs: Sequence[Run], arms: Arms) -> tuple[Unscored, ...]:
    unscored = []
    for run in (run for run in runs if run.state != "done"):
        dataset = run.row.get("dataset", "") or run.row.get("config_dataset_name", "")
        arm = arms.label(arms.level_of[run.run_id]) if run.run_id in arms.level_of else ""
        seed, error = run.row.get("seed", ""), run.row.get("error", "")
        unscored.append(Unscored(run.run_id, dataset, arm, seed, run.state, error))
    return tuple(unscored)


def _row(run: Run, arms: Arms, metric: Metric) -> dict[str, Any]:
    """A row of `Result.runs`."""
    numbers = {key: run.number(key) for key in ("dice", "iou", "seconds")} | {
        key: None if math.isnan(value := run.number(key)) else int(value) for key in ("epochs", "best_epoch")
    }
    policy = cast(EmptyPolicy, run.row.get("empty_policy") or "reference")
    texts = ("study", "error", "device_type", "host", "version_segexp", "git_commit", "started")
    return {
        "run_id": run.run_id,
        "dataset": run.row.get("dataset", "") or run.row.get("config_dataset_name", ""),
        "arm": arms.label(arms.level_of[run.run_id]),
        "seed": run.row.get("seed", ""),
        "fold": run.row.get("fold", ""),
        "status": run.state,
        "score": Scorer(metric, policy).score(run) if run.state == "done" else math.nan,
        "directory": run.row.get("directory", "") if run.collected else str(run.path),
        **numbers,
        **{key: run.row.get(key, "") for key in texts},
    }


def load_checked(paths: Sequence[Path], split: str = "test") -> Loaded:
    """`segexp.records.tables.load`, where a run whose summary cannot be true is incomplete; the look is noted."""
    loaded = load(paths, split)
    runs, problems = [], list(loaded.problems)
    for run in loaded.runs:
        wrong = _wrong_scores(run, split) if run.state == "done" else ""
        if wrong:
            cure = AGAIN if run.collected else RESTORE
            problems.append(f"{run.path}: run {run.run_id} has {wrong}; {cure}")
            run = run.incomplete(problems[-1])  # noqa: PLW2901
        runs.append(run)
    return Loaded(tuple(runs), (*problems, *look(runs)))


def _wrong_scores(run: Run, split: str) -> str:
    """What is impossible in the summary of a finished run, "" when nothing is."""
    policy = run.row.get("empty_policy") or "reference"
    if policy not in get_args(EmptyPolicy):
        return f"empty_policy={policy!r}, which is none of {', '.join(get_args(EmptyPolicy))}"
    given = {name: run.number(name) for name in SCORES if run.row.get(name)}
    out_of_range = [name for name, v in given.items() if v < -ROUNDING or v > SCORES[name].highest + ROUNDING]
    outside = [f"{name}={run.row[name]}" for name in out_of_range]
    if outside:
        return f"{', '.join(outside)}, which is out of range"
    if run.images is None or split != "test":
        return ""
    counts_NF3, layout, cells = run.images.counts_NF3, run.images.layout, run.images.cells
    again = {
        "dice": lambda: primary_score(cells["dice"], layout.n_reference_NF, layout.groups, cast(EmptyPolicy, policy)),
        "iou": lambda: primary_score(cells["iou"], layout.n_reference_NF, layout.groups, cast(EmptyPolicy, policy)),
        "dice_micro": lambda: micro_scores(counts_NF3)[0],
        "iou_micro": lambda: micro_scores(counts_NF3)[1],
        "fp_rate_empty": lambda: fp_rate_empty(counts_NF3),
    }
    for name, compute in again.items():  # computed only where the summary has it: thousands of runs are compared
        if not math.isnan(given.get(name, math.nan)) and not abs(given[name] - (score := compute())) < ROUNDING:
            return f"{name}={run.row[name]}, but its images give {score:.6g}"
    return ""
