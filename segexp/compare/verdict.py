"""From runs to a verdict: `compare` reads, arranges, compares and says what may be said.

The statistics stand in paired.py, power.py and across.py; pairing.py says which runs are pairs, procedures.py what is
tested, pairs.py what a comparison may claim, scores.py what a ranking shows, warn.py what must be known to believe it.
"""

import dataclasses
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from segexp.compare.blocks import (
    USUAL_REFERENCE,
    ArmRuns,
    Arms,
    BlockRuns,
    arrange,
    counterpart,
    pairs_of,
    reference_levels,
    where_these,
)
from segexp.compare.comparisons import compared, with_holm
from segexp.compare.datasets import over_datasets_of, ranks_of, warnings_over_all
from segexp.compare.factorial import factorials_of
from segexp.compare.formatting import headline
from segexp.compare.integrity import load_checked
from segexp.compare.result import METRICS, ArmScore, Block, Comparison, Metric, Result, Unscored
from segexp.compare.statistics import interquartile_mean
from segexp.compare.values import (
    folds_of,
    mean_score,
    measured_in,
    metric_of,
    score_of,
    scored_runs,
    seed_scores,
    values_of,
)
from segexp.compare.warnings import provenance_of, warnings_of, warnings_of_split
from segexp.errors import UsageError
from segexp.evaluation.scores import EmptyPolicy
from segexp.records.formatting import pluralize
from segexp.records.load import Loaded
from segexp.records.runs import Run
from segexp.records.scores import SPLITS

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

    by: groups or keys of the configuration that make an arm (default: hidden_activation, activation, loss, as far as
    they vary); reference: "activation=sigmoid,loss=bce"; rope: half-width of what is negligible, in points where the
    metric is printed in points; where: only runs with these values. Raises UsageError for what cannot be answered by
    any reading of the runs: no runs, one arm, unknown names. loaded: what `load` has read under ``paths``, if it has.
    """
    measured = metric_of(metric, rope)
    if split not in SPLITS:
        raise UsageError(f"--split {split}: there are {', '.join(SPLITS)}")
    if split != "test" and not measured.per_image and metric != "val_dice":
        raise UsageError(f"--split {split}: {metric} was measured on test only; per image and on both are {_on_both()}")
    loaded = load_checked(paths, split) if loaded is None else loaded
    runs = _usable(loaded, split, where or {})
    measured = measured_in(measured, runs)
    arms = _arranged(runs, by)
    references = reference_levels(reference, arms)
    blocks = _blocks(arms, references, measured)
    found = dict(itertools.chain.from_iterable(r.items() for r in references))
    over = over_datasets_of(blocks)
    ranks, unranked = ranks_of(blocks, measured)
    return Result(
        metric=measured,
        split=split,
        by=arms.by,
        reference=found,
        empty_policy=", ".join(sorted({_policy(ground) for ground in arms.grounds})),
        n_runs=len(runs),
        blocks=blocks,
        over_datasets=over,
        ranks=ranks,
        unscored=_unscored(runs if where else loaded.runs, arms),
        warnings=(
            *warnings_of_split(split),
            *loaded.problems,
            *arms.warnings,
            *_alone(arms, references, blocks),
            *warnings_over_all(over, blocks),
            *unranked,
        ),
        headline=headline(blocks, over, measured, _unanswered(arms, references)),
        provenance=provenance_of(paths, runs),
        runs=tuple(_row(run, arms, measured) for run in runs),
    )


def _usable(loaded: Loaded, split: str, where: Mapping[str, str]) -> tuple[Run, ...]:
    """The runs that are compared. Raises UsageError where none has a score, with the first reason."""
    # Of what a damaged record was to be nothing is known: it is told, and is no arm.
    known = [run for run in loaded.runs if run.row.get("config_seed") or run.row.get("seed")]
    runs = where_these(known, where)
    if any(run.state == "done" for run in runs):
        return runs
    more = len(loaded.problems) - 1
    why = f": {loaded.problems[0]}" + (f" (and {more} more)" if more > 0 else "") if loaded.problems else ""
    runs_read = pluralize(len(loaded.runs), "run")
    raise UsageError(f"none of {runs_read} has scores on {split}{why}; `segexp status` says how they stand")


def _arranged(runs: Sequence[Run], by: Sequence[str] | None) -> Arms:
    """The runs in their arms. Raises UsageError where there is one only."""
    arms = arrange(runs, by)
    if len(set(arms.level_of.values())) > 1:
        return arms
    (only,) = set(arms.level_of.values())
    raise UsageError(
        f"there is one arm only, {arms.label(only)}: nothing to compare it with; "
        "--by names what else makes an arm, `segexp show` looks at one run"
    )


def _on_both() -> str:
    return ", ".join(name for name, metric in METRICS.items() if metric.per_image)


def _policy(ground: BlockRuns) -> EmptyPolicy:
    """What the runs themselves do with empty masks; a block never mixes the two, for the policy is a condition."""
    for group in ground.groups.values():
        for run in group.scored.values():
            if run.row.get("empty_policy"):
                return cast(EmptyPolicy, run.row["empty_policy"])
    return "reference"


def _blocks(arms: Arms, references: Sequence[Mapping[str, str]], metric: Metric) -> tuple[Block, ...]:
    """All comparisons, adjusted together over all that are made on one data set."""
    grounds = sorted(arms.grounds, key=_place)
    blocks = []
    for _, together in itertools.groupby(grounds, key=lambda g: (g.dataset, g.dataset_sha)):
        of_data = list(together)
        judged = _judged(of_data, arms, references, metric, None)
        if any(_has_empty(ground) for ground in of_data) and metric.name in ("dice", "iou"):
            judged = _with_policy_warning(judged, of_data, arms, references, metric)
        blocks += [
            _block(ground, arms, references, metric, comparisons)
            for ground, comparisons in zip(of_data, judged, strict=True)
        ]
    return tuple(blocks)


def _place(ground: BlockRuns) -> tuple[Any, ...]:
    """Where a block stands: by data set, then by conditions, numbers by their size."""
    number = re.compile(r"-?\d+(\.\d+)?(e-?\d+)?")
    values = [(float(v), "") if number.fullmatch(v) else (math.inf, v) for v in ground.conditions.values()]
    return ground.dataset, ground.dataset_sha, values


def _judged(
    grounds: Sequence[BlockRuns],
    arms: Arms,
    references: Sequence[Mapping[str, str]],
    metric: Metric,
    policy: EmptyPolicy | None,
) -> list[list[Comparison]]:
    """The comparisons of each block of a data set, with verdicts. policy: None for that of the runs."""
    made = [
        [compared(pair, ground, arms, metric, policy or _policy(ground)) for pair in pairs_of(ground, arms, references)]
        for ground in grounds
    ]
    judged = iter(with_holm([c for of_block in made for c in of_block], metric))
    return [[next(judged) for _ in of_block] for of_block in made]


def _has_empty(ground: BlockRuns) -> bool:
    """Whether any reference mask lacks a class, so that the policy for empty masks matters."""
    layouts = {
        id(run.images.layout): run.images.layout
        for group in ground.groups.values()
        for run in group.scored.values()
        if run.images is not None
    }
    return any((layout.n_reference_NF == 0).any() for layout in layouts.values())


def _with_policy_warning(
    judged: Sequence[Sequence[Comparison]],
    grounds: Sequence[BlockRuns],
    arms: Arms,
    references: Sequence[Mapping[str, str]],
    metric: Metric,
) -> list[list[Comparison]]:
    """The comparisons, with a warning where the other policy for empty masks would change the verdict."""
    # Judged once for each policy there is, for Holm's adjustment is over all blocks.
    others = {_policy(ground): (set(_POLICIES) - {_policy(ground)}).pop() for ground in grounds}
    again = {other: _judged(grounds, arms, references, metric, other) for other in set(others.values())}
    marked = []
    for n, (of_block, ground) in enumerate(zip(judged, grounds, strict=True)):
        other = others[_policy(ground)]
        told = f"with empty masks counted as {other} the verdict would be"
        marked.append(
            [
                c if c.verdict == o.verdict else dataclasses.replace(c, warnings=(*c.warnings, f"{told}: {o.verdict}"))
                for c, o in zip(of_block, again[other][n], strict=True)
            ]
        )
    return marked


def _block(
    ground: BlockRuns,
    arms: Arms,
    references: Sequence[Mapping[str, str]],
    metric: Metric,
    comparisons: Sequence[Comparison],
) -> Block:
    policy = _policy(ground)
    sign = -1 if metric.higher_is_better else 1
    folds = folds_of(ground)
    ranking = sorted(
        (_arm(group, arms, folds, metric, policy) for group in ground.groups.values()),
        key=lambda arm: (math.isnan(arm.mean), sign * arm.mean if not math.isnan(arm.mean) else 0, arm.arm),
    )
    place = {arm.arm: n for n, arm in enumerate(ranking)}
    return Block(
        dataset=ground.dataset,
        dataset_sha=ground.dataset_sha,
        conditions=ground.conditions,
        ranking=tuple(ranking),
        comparisons=tuple(sorted(comparisons, key=lambda c: place[c.candidate])),
        factorials=factorials_of(ground, arms, references, metric, policy),
        warnings=(*warnings_of(ground, arms), *_without_mean(ranking, folds)),
    )


def _without_mean(ranking: Sequence[ArmScore], folds: Sequence[str]) -> list[str]:
    """Arms of a cross-validation with runs but no mean, for it would be one over other folds."""
    lacking = [arm.arm for arm in ranking if arm.n_seeds and math.isnan(arm.mean)]
    return [f"{', '.join(lacking)}: not all {len(folds)} folds have a run, so that there is no mean"] if lacking else []


def _arm(group: ArmRuns, arms: Arms, folds: Sequence[str], metric: Metric, policy: EmptyPolicy) -> ArmScore:
    import numpy as np

    runs = scored_runs(group, metric, policy)
    seeds = list(seed_scores(runs, folds, metric, policy).values())
    mean = mean_score(runs, folds, metric, policy)
    states = [run.state for run in group.unscored if run.state != "done"]
    n_lost = states.count("failed") + states.count("diverged")
    n_images, n_units, iqm = _spread(list(runs.values()), metric, policy)
    bounded = metric.points and metric.higher_is_better and len(runs) + n_lost > 0
    return ArmScore(
        arm=arms.label(group.levels),
        levels=dict(zip(arms.by, group.levels, strict=True)),
        n_seeds=len({seed for _, seed in runs}),
        n_folds=len({fold for fold, _ in runs if fold}),
        n_images=n_images,
        n_groups=n_units,
        n_failed=states.count("failed"),
        n_diverged=states.count("diverged"),
        n_unfinished=len(states) - n_lost,
        mean=mean,
        seed_sd=float(np.std(seeds, ddof=1)) if len(seeds) > 1 else math.nan,
        iqm=iqm,
        mean_failures_zero=(mean if runs else 0.0) * len(runs) / (len(runs) + n_lost) if bounded else math.nan,
        seeds={
            f"fold {fold}, seed {seed}" if fold else seed: score_of(run, metric, policy)
            for (fold, seed), run in runs.items()
        },
        directories=tuple(str(run.path) for run in runs.values() if not run.collected),
    )


def _spread(runs: Sequence[Run], metric: Metric, policy: EmptyPolicy) -> tuple[int, int, float]:
    """Images and units behind an arm's scores, and the interquartile mean over seeds x units."""
    import numpy as np

    if not metric.per_image or not runs:
        scores = np.array([run.number(metric.name) for run in runs])
        scores = scores[~np.isnan(scores)]
        return 0, 0, interquartile_mean(scores) if scores.size else math.nan
    by_fold: dict[str, list[Run]] = {}
    for run in runs:
        by_fold.setdefault(run.row.get("fold", ""), []).append(run)
    values = [values_of(of_fold, metric, policy) for of_fold in by_fold.values()]
    pooled = np.concatenate([v.values_KU.ravel() for v in values])
    n_images, n_units = sum(v.n_images for v in values), sum(len(v.units) for v in values)
    return n_images, n_units, interquartile_mean(pooled) if pooled.size else math.nan


def _unscored(runs: Sequence[Run], arms: Arms) -> tuple[Unscored, ...]:
    return tuple(
        Unscored(
            run.run_id,
            run.row.get("dataset", "") or run.row.get("config_dataset_name", ""),
            arms.label(arms.level_of[run.run_id]) if run.run_id in arms.level_of else "",
            run.row.get("seed", ""),
            run.state,
            run.row.get("error", ""),
        )
        for run in runs
        if run.state != "done"
    )


def _unanswered(arms: Arms, references: Sequence[Mapping[str, str]]) -> str:
    """Why nothing is compared."""
    if references:
        return "no two arms stand under the same conditions, on the same data and split"
    usual = " or ".join(f"{key}={level}" for key, level in USUAL_REFERENCE.items() if key in arms.by)
    example = f"--reference {arms.by[-1]}={arms.levels[arms.by[-1]][0]}"
    missing = f" (usually {usual})" if usual else ""
    return f"there is no reference arm{missing} to compare with: name one, as in {example}"


def _alone(arms: Arms, references: Sequence[Mapping[str, str]], blocks: Sequence[Block]) -> list[str]:
    """Arms that are in no comparison, or that a reference asks for one that cannot be made, and what keeps them out."""
    if not references:
        return []
    together = {name for b in blocks for c in b.comparisons for name in (c.candidate, c.reference)}
    alone = sorted({arm.arm for block in blocks for arm in block.ranking} - together)
    return [*_never_compared(alone, arms, references), *_not_held_against(alone, arms, references)]


def _never_compared(alone: Sequence[str], arms: Arms, references: Sequence[Mapping[str, str]]) -> list[str]:
    if not alone:
        return []
    keys = sorted({key for ground in arms.grounds for key in ground.conditions})
    held = " or ".join(map(_written, references))
    if len(arms.grounds) > 1 and keys:
        same = ", ".join(keys)
        why = f"no run with {held} has the same {same}; --by names what belongs to an arm"
    else:
        why = f"no run with {held} has the same other settings; --reference names another"
    return [f"{_some(alone)}: not compared: {why}"]


def _not_held_against(alone: Sequence[str], arms: Arms, references: Sequence[Mapping[str, str]]) -> list[str]:
    """Arms that are compared somewhere, but by a reference, or in a block, have nothing to be held against."""
    told = []
    for reference in references:
        missing: dict[str, list[str]] = {}
        for ground in arms.grounds:
            where = ", ".join([ground.dataset, *(f"{key}={value}" for key, value in ground.conditions.items())])
            for levels in ground.groups:
                label = arms.label(levels)
                if label not in alone and counterpart(levels, arms, reference) not in ground.groups:
                    missing.setdefault(label, []).append(where)
        by_blocks: dict[tuple[str, ...], list[str]] = {}
        for label, places in missing.items():
            by_blocks.setdefault(tuple(places), []).append(label)
        for here, labels in by_blocks.items():
            on = f" on {_some(here)}" if len(arms.grounds) > 1 else ""
            told.append(
                f"{_some(labels)}: not compared with {_written(reference)}{on}: no such run has the same other settings"
            )
    return told


def _written(reference: Mapping[str, str]) -> str:
    return ",".join(f"{key}={level}" for key, level in reference.items())


def _some(names: Sequence[str]) -> str:
    return f"{', '.join(names[:4])}{' ...' if len(names) > 4 else ''}"


def _row(run: Run, arms: Arms, metric: Metric) -> dict[str, Any]:
    """A row of `Result.runs`."""
    scored = run.state == "done"
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
        "score": score_of(run, metric, policy) if scored else math.nan,
        "directory": run.row.get("directory", "") if run.collected else str(run.path),
        **numbers,
        **{key: run.row.get(key, "") for key in texts},
    }
