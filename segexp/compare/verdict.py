"""`compare`: from run directories to a `Result`.

blocks.py sorts runs into blocks and arms, scorer.py reads their values, procedures.py tests a candidate against its
reference (statistics.py), comparisons.py decides, datasets.py compares across data sets, warnings.py lists limits.
"""

import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
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
    part_name,
    reference_levels,
    where_these,
    with_later_options,
)
from segexp.compare.comparisons import compared, with_holm
from segexp.compare.datasets import across_alone, over_datasets_of, ranks_of, warnings_over_all
from segexp.compare.factorial import factorials_of
from segexp.compare.formatting import headline
from segexp.compare.result import (
    FEWEST_SEEDS,
    METRICS,
    ArmScore,
    Block,
    Comparison,
    Each,
    Metric,
    OverDatasets,
    Result,
    Unscored,
)
from segexp.compare.scorer import Scorer, folds_of, measured_in, metric_of, own_scores
from segexp.compare.sequential import adjusted
from segexp.compare.statistics import holm, interquartile_mean
from segexp.compare.warnings import convergence_of, mixed_ap, not_compared, shared_images, unanswered, warnings_of
from segexp.config.arm import arm_label, arm_of_row
from segexp.errors import UsageError
from segexp.evaluation import EmptyPolicy, fp_rate_empty, micro_scores, primary_score
from segexp.records import NUMERICS_OF_GROUPS, RESTORE
from segexp.records.collected import AGAIN
from segexp.records.decision import NO_LOOK, Decision
from segexp.records.foreign import load
from segexp.records.formatting import pluralize
from segexp.records.looks import look
from segexp.records.provenance import provenance_of
from segexp.records.runs import Run, column_of
from segexp.records.scores import OWN, SCORES, SPLITS, Score, class_label
from segexp.records.tables import ROUNDING, Loaded

Reference = Mapping[str, str]

_POLICIES: tuple[EmptyPolicy, EmptyPolicy] = ("reference", "both_empty_one")

_NAMES = column_of("dataset.class_names")


def compare(
    paths: Sequence[Path],
    metric: str | Sequence[str] | None = None,
    by: Sequence[str] | None = None,
    reference: str | None = None,
    rope: float | None = None,
    split: str = "test",
    where: Mapping[str, str] | None = None,
    loaded: Loaded | None = None,
    class_: str | None = None,
    columns: str | None = None,
    paired: bool = False,
) -> Result:
    """Compare the arms of all runs under ``paths``.

    metric: one or several (default: dice, or the first score of another program's table); the first is that of the
    result, the others are in `Result.others`, and Holm's adjustment is over all; class_: name or id of the only
    foreground class that is scored, or "each" for all of them, one by one. by: groups or keys of the configuration that
    make an arm (default: hidden_activation, activation and loss, if they vary); reference:
    "activation=sigmoid,loss=bce" or "all"; rope: half-width of what is negligible, in points where it is printed in
    points; where: only runs with these values; loaded: the runs under ``paths``, if they have been read before;
    columns, paired: of results of other programs, see `segexp.records.foreign.load`. Raises UsageError where there are
    no runs with scores, only one arm, or unknown names.
    """
    names = ["dice"] if metric is None else [metric] if isinstance(metric, str) else metric
    if METRICS.keys() >= set(names):
        _metrics(names, rope if metric else None, split, class_, {})  # before thousands of runs are read
    loaded = load_checked(paths, split, columns=columns, paired=paired) if loaded is None else loaded
    names = loaded.metrics[:1] if metric is None and loaded.metrics else names
    if loaded.metrics and (unknown := set(names) - {*loaded.metrics, *(m.removeprefix(OWN) for m in loaded.metrics)}):
        raise UsageError(f"--metric {min(unknown)}: these results have {', '.join(loaded.metrics)}")
    runs = _usable(loaded, split, where or {})
    metrics = _metrics(names, rope, split, class_, own_scores(runs))
    metrics = [measured_in(one, runs) for one in metrics]
    arms = arrange(runs, by or loaded.by)
    if len(set(arms.level_of.values())) == 1:
        (only,) = set(arms.level_of.values())
        raise UsageError(
            f"there is only one arm, {arms.label(only)}, and nothing to compare it with; "
            "--by names other keys that make an arm, `segexp show` shows one run"
        )
    references = reference_levels(reference, arms)
    if class_ is not None:
        metrics = [
            replace(one, title=f"{one.title}, {label}", class_id=class_id)
            for one, (class_id, label) in itertools.product(metrics, _classes(class_, runs).items())
        ]
    parts, n_tests = _decided([_measured(one, arms, references) for one in metrics])
    first, *others = [
        replace(_result(part, references), split=split, n_runs=len(runs), n_family=n_tests)
        for part in _with_policy_warnings(parts, references)
    ]
    convergence = convergence_of([run for run in runs if run.state == "done"])
    selected = split == "val" or any(one.name.startswith("val_") for one in metrics)
    return replace(
        first,
        unscored=_unscored(runs if where else loaded.runs, arms),
        warnings=(
            *([SELECTED] if selected else []),
            *filter(None, [convergence["warning"]]),
            *loaded.problems,
            *arms.warnings,
            *not_compared(arms, references, first.blocks),
            *shared_images(arms.blocks),
            *dict.fromkeys(warning for one in (first, *others) for warning in one.warnings),
        ),
        headline=headline([first, *others], unanswered(arms, references)) if others else first.headline,
        provenance=provenance_of(paths, runs),
        runs=tuple(_row(run, arms, first.metric) for run in runs),
        convergence=convergence,
        others=tuple(others),
        loaded=loaded.runs,
    )


SELECTED = (
    "scores on validation images are optimistic, and arms may differ by selection alone: epochs and thresholds were "
    "chosen on these images; verdicts should use test"
)


def _metrics(
    names: Sequence[str], rope: float | None, split: str, class_: str | None, own: Mapping[str, Score]
) -> list[Metric]:
    """The metrics, each once. own: scores of plugins, by column.

    Raises UsageError where one is unknown or cannot be measured so.
    """
    if not names:
        raise UsageError("--metric: name at least one, for example dice")
    metrics = [metric_of(name, rope, own) for name in dict.fromkeys(names)]
    units = {one.name: "points" if one.points else one.score.unit or "no unit" for one in metrics}
    if rope is not None and len(set(units.values())) > 1:
        shown = ", ".join(f"{name} in {unit}" for name, unit in units.items())
        raise UsageError(f"--rope {rope:g}: {shown}; compare metrics of one unit in a call, or leave --rope out")
    if split not in SPLITS:
        raise UsageError(f"--split {split}: choose {' or '.join(SPLITS)}")
    per_image = ", ".join(name for name, other in METRICS.items() if other.per_image)
    for one in (one for one in metrics if not one.per_image):
        if class_ is not None:
            raise UsageError(f"--class {class_}: {one.name} has no values per image; those that have: {per_image}")
        if split != "test" and one.name != "val_dice":
            raise UsageError(f"--split {split}: {one.name} is measured on test only; measured on both: {per_image}")
    return metrics


def _classes(asked: str, runs: Sequence[Run]) -> dict[int, str]:
    """The classes that are asked for, id -> label: the name that all runs give it, else "class 2"."""
    labels: dict[int, dict[str, None]] = {}
    layouts = {(id(i.layout), run.row.get(_NAMES, "")): i.layout for run in runs if (i := run.images) is not None}
    for (_, names), layout in layouts.items():
        try:
            config = {"dataset.class_names": json.loads(names or "null")}
        except ValueError:  # in the record of a stranger
            config = {}
        for class_id in layout.classes:
            labels.setdefault(class_id, {})[class_label(config, class_id)] = None
    known = {n: next(iter(of)) if len(of) == 1 else f"class {n}" for n, of in sorted(labels.items())}
    found = {n: label for n, label in known.items() if asked in ("each", str(n), *labels[n])}
    if len(found) > 1 and asked != "each":
        raise UsageError(f"--class {asked} is {' or '.join(map(str, found))}, depending on the run: give the number")
    if not found:
        shown = ", ".join(str(n) if label == f"class {n}" else f"{n} ({label})" for n, label in known.items())
        raise UsageError(f"--class {asked}: no run scores this class; known: {shown}, or each")
    return found


@dataclass(frozen=True)
class _Part:
    """What is found under one metric (and class). runs, blocks: the same blocks in the same order."""

    metric: Metric
    arms: Arms
    runs: tuple[BlockRuns, ...]
    blocks: tuple[Block, ...]
    over: tuple[OverDatasets, ...] = ()


def _result(part: _Part, references: Sequence[Reference]) -> Result:
    """The result of one metric, without what it shares with the others."""
    ranks, without_rank = ranks_of(part.blocks, part.metric)
    result = Result(
        metric=part.metric,
        split="",
        by=part.arms.by,
        reference=dict(itertools.chain.from_iterable(r.items() for r in references)),
        empty_policy=", ".join(sorted({_policy(block) for block in part.runs})),
        n_runs=0,
        blocks=part.blocks,
        over_datasets=part.over,
        ranks=ranks,
        unscored=(),
        warnings=(*warnings_over_all(part.over, part.blocks), *without_rank),
        headline="",
    )
    return replace(result, headline=headline([result], unanswered(part.arms, references)))


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


def _each(block: BlockRuns) -> Each:
    """What the runs of a block, which are scored alike, score."""
    runs = itertools.chain.from_iterable(arm.scored.values() for arm in block.arms.values())
    return "volume" if any(run.row.get("config_metrics_unit") == "case" for run in runs) else "image"


def _measured(metric: Metric, arms: Arms, references: Sequence[Reference]) -> _Part:
    """All blocks under a metric, their comparisons without verdicts."""
    runs = tuple(sorted(arms.blocks, key=_place))
    blocks = tuple(_block(block, arms, references, Scorer(metric, _policy(block), _each(block))) for block in runs)
    return _Part(metric, arms, runs, blocks)


def _place(block: BlockRuns) -> tuple[Any, ...]:
    """Sorts blocks by data set, then by conditions, numbers by size."""
    number = re.compile(r"-?\d+(\.\d+)?(e-?\d+)?")
    values = [(float(v), "") if number.fullmatch(v) else (math.inf, v) for v in block.conditions.values()]
    return block.dataset, block.dataset_sha, values


def _decided(parts: Sequence[_Part]) -> tuple[list[_Part], int]:
    """All parts with results across data sets, adjusted p and verdicts, and the number of tests in their family: all
    comparisons, and the results across data sets where the headline reports both."""
    overs = over_datasets_of([part.blocks for part in parts])
    alone = across_alone(itertools.chain(*overs))
    across = [] if alone else [found.interval.p for of_part in overs for found in of_part]
    every = [
        (comparison, part.metric, (n, block.dataset, block.dataset_sha))
        for n, part in enumerate(parts)
        for block in part.blocks
        for comparison in block.comparisons
    ]
    metrics, block_of = [metric for _, metric, _ in every], [block for *_, block in every]
    with_p = iter(with_holm([comparison for comparison, *_ in every], metrics, block_of, across))
    p_F = [*(comparison.deciding.p for comparison, *_ in every), *across]
    p_across = iter(holm(p_F)[len(every) :].tolist())
    decided = []
    for part, of_part in zip(parts, overs, strict=True):
        blocks = tuple(replace(b, comparisons=tuple(next(with_p) for _ in b.comparisons)) for b in part.blocks)
        over = of_part if alone else tuple(replace(found, p_holm=next(p_across)) for found in of_part)
        decided.append(replace(part, blocks=blocks, over=over))
    return decided, sum(not math.isnan(p) for p in p_F)


def _with_policy_warnings(parts: Sequence[_Part], references: Sequence[Reference]) -> list[_Part]:
    """The parts, with a warning where the other policy for empty masks would change the verdict."""
    others = [[_other_policy(part.metric, block) for block in part.runs] for part in parts]
    warned = list(parts)
    # All parts are decided again for each policy, because Holm's adjustment is over all of them.
    for policy in {other for of_part in others for other in of_part if other}:
        again = []
        for part, of_part in zip(parts, others, strict=True):
            blocks = (
                replace(
                    b,
                    comparisons=_comparisons(r, part.arms, references, Scorer(part.metric, policy, b.each), b.ranking),
                )
                if o == policy
                else b
                for b, r, o in zip(part.blocks, part.runs, of_part, strict=True)
            )
            again.append(replace(part, blocks=tuple(blocks)))
        warned = [
            replace(part, blocks=tuple(map(partial(_noted, policy), part.blocks, other.blocks)))
            for part, other in zip(warned, _decided(again)[0], strict=True)
        ]
    return warned


def _other_policy(metric: Metric, block: BlockRuns) -> EmptyPolicy | None:
    """The policy for empty masks that the runs did not use; None where it does not matter, because the score does not
    depend on it or every reference mask holds every class."""
    scorer = Scorer(metric, _policy(block))
    images = (scorer.images(run) for arm in block.arms.values() for run in arm.scored.values())
    layouts = {id(i.layout): i.layout for i in images if i is not None}.values()
    if metric.score.averaged != "empty_policy" or not any((o.n_reference_NF == 0).any() for o in layouts):
        return None
    return next(policy for policy in _POLICIES if policy != scorer.policy)


def _noted(policy: EmptyPolicy, block: Block, other: Block) -> Block:
    """The block with a warning on each comparison whose verdict is another one in ``other``."""
    comparisons = []
    for c, o in zip(block.comparisons, other.comparisons, strict=True):
        note = f"with metrics.empty_policy={policy} the verdict would be: {o.verdict}"
        comparisons.append(replace(c, warnings=(*c.warnings, note)) if c.verdict != o.verdict else c)
    return replace(block, comparisons=tuple(comparisons))


def _comparisons(
    block: BlockRuns, arms: Arms, references: Sequence[Reference], scorer: Scorer, ranking: Sequence[ArmScore]
) -> tuple[Comparison, ...]:
    """The comparisons of a block in order of its ranking, without verdicts."""
    place = {arm.arm: n for n, arm in enumerate(ranking)}
    # Of all pairs, the better mean is the candidate.
    ranked = replace(block, arms=dict(sorted(block.arms.items(), key=lambda arm: place[arms.label(arm[0])])))
    made = (compared(pair, ranked, arms, scorer) for pair in pairs_of(ranked, arms, references))
    return tuple(sorted(made, key=lambda c: place[c.candidate]))


def _block(block: BlockRuns, arms: Arms, references: Sequence[Reference], scorer: Scorer) -> Block:
    sign = -1 if scorer.metric.higher_is_better else 1
    folds = folds_of(block)
    ranking = sorted(
        (_arm(runs, arms, folds, scorer) for runs in block.arms.values()),
        key=lambda arm: (math.isnan(arm.mean), sign * arm.mean if not math.isnan(arm.mean) else 0, arm.arm),
    )
    warnings = [*warnings_of(block, arms), *(mixed_ap(block) if scorer.metric.name == "ap" else ())]
    without_mean = [arm.arm for arm in ranking if arm.n_seeds and math.isnan(arm.mean)]
    if without_mean:
        what = "splits" if are_splits(folds) else "folds"
        warnings.append(f"{', '.join(without_mean)}: no mean, because not all {len(folds)} {what} have a run")
    return Block(
        dataset=block.dataset,
        dataset_sha=block.dataset_sha,
        conditions=block.conditions,
        ranking=tuple(ranking),
        comparisons=_comparisons(block, arms, references, scorer, ranking),
        factorials=factorials_of(block, arms, references, scorer),
        warnings=tuple(warnings),
        each=scorer.each,
    )


def _arm(arm: ArmRuns, arms: Arms, folds: Sequence[str], scorer: Scorer) -> ArmScore:
    metric, runs = scorer.metric, scorer.scored(arm)
    if are_splits(folds) and any(run.row.get("look") for run in runs.values()):
        folds = tuple(fold for fold in folds if any(key.fold == fold for key in runs))  # it stopped before the others
    of_seeds = {} if are_splits(folds) else scorer.of_seeds(runs, folds)  # in cross-validation: that have all folds
    seeds = scorer.of_folds(runs, folds) if are_splits(folds) else list(of_seeds.values())
    n_parts = len({fold for fold, _ in runs if fold})
    mean = scorer.mean(runs, folds)
    states = [run.state for run in arm.unscored if run.state != "done"]
    n_lost = states.count("failed") + states.count("diverged")
    n_images, n_units, iqm = _spread(list(runs.values()), scorer)
    bounded = metric.points and metric.higher_is_better and len(runs) + n_lost > 0
    return ArmScore(
        arm=arms.label(arm.levels),
        levels=dict(zip(arms.by, arm.levels, strict=True)),
        n_seeds=len(of_seeds or {seed for _, seed in runs}),
        n_folds=0 if are_splits(folds) else n_parts,
        n_splits=n_parts if are_splits(folds) else 0,
        n_images=n_images,
        n_groups=n_units,
        n_failed=states.count("failed"),
        n_diverged=states.count("diverged"),
        n_unfinished=len(states) - n_lost,
        mean=mean,
        interval=adjusted(scorer.interval(runs, folds), runs.values()),
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
    n_images, n_units = (
        len(set(itertools.chain(*names))) for names in ([v.images for v in values], [v.units for v in values])
    )
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


def load_checked(
    paths: Sequence[Path],
    split: str = "test",
    decision: Decision | None = None,
    columns: str | None = None,
    paired: bool = False,
) -> Loaded:
    """`segexp.records.foreign.load`, where a run whose summary cannot be true is incomplete; the look is noted. Of a
    sequential study those finished runs count that a look has used. decision: in place of the recorded one."""
    loaded, unused, earlier = load(paths, split, columns, paired), list[str](), list[str]()
    runs, problems = [], list(loaded.problems)
    for run in map(decision.at_look, loaded.runs) if decision else loaded.runs:
        if run.row.get("look") == NO_LOOK and run.state == "done":
            unused.append(run.study)
            continue
        wrong = _wrong_scores(run, split) if run.state == "done" else ""
        if wrong and _averaged_otherwise(run):
            earlier.append(run.run_id)
            run = replace(run, cells={name: "" if name in _AVERAGED else v for name, v in run.row.items()})  # noqa: PLW2901
        elif wrong:
            cure = AGAIN if run.collected else RESTORE
            problems.append(f"{run.path}: run {run.run_id} has {wrong}; {cure}")
            run = run.incomplete(problems[-1])  # noqa: PLW2901
        runs.append(run)
    if unused:
        left = f"{pluralize(len(unused), 'finished run')} of {', '.join(dict.fromkeys(unused))} left out"
        problems.append(f"{left}: no look of `segexp decide` has used them; repeat that command to go on")
    if earlier:
        which = ", ".join(earlier[:3]) + " ..." * (len(earlier) > 3)
        problems.append(
            f"{pluralize(len(earlier), 'run')} of an earlier segexp ({which}) gave wrong weights to classes that not "
            "every patient has: compared by the scores of the images, but epoch and tuned threshold were chosen with "
            "these weights; repeat them"
        )
    if not runs:
        raise UsageError(problems[-1])
    fixed = [run for run in runs if not run.row.get("look")]
    if 0 < len(fixed) < len(runs):
        others = f"{pluralize(len(fixed), 'run')} of other studies"
        problems.append(f"{others} beside those of `segexp decide`: its 5 % hold for its own runs alone")
    problems += look(fixed, lambda run: arm_label(arm_of_row(run.row)), FEWEST_SEEDS)
    return replace(loaded, runs=tuple(runs), problems=tuple(problems))


_AVERAGED = {name for name, of in SCORES.items() if of.per_image and of.averaged != "all"} | {"dice_tuned", "val_dice"}
"""Columns of a summary that are means over classes and groups of images."""


def _averaged_otherwise(run: Run) -> bool:
    """Whether the run's summary was averaged as before `NUMERICS_OF_GROUPS`: several classes, in groups of images."""
    if run.numerics >= NUMERICS_OF_GROUPS or run.images is None:
        return False
    layout = run.images.layout
    return any(layout.groups) and layout.n_reference_NF.shape[1] > 1


def _wrong_scores(run: Run, split: str) -> str:
    """What is impossible in the summary of a finished run, "" when nothing is."""
    policy = run.row.get("empty_policy") or "reference"
    if policy not in get_args(EmptyPolicy):
        return f"empty_policy={policy!r}, which is none of {', '.join(get_args(EmptyPolicy))}"
    given = {name: run.number(name) for name, of in SCORES.items() if of.kind is not str and run.row.get(name)}
    out_of_range = [name for name, v in given.items() if v < -ROUNDING or v > SCORES[name].highest + ROUNDING]
    own = own_scores([run])
    out_of_range += [name for name, of in own.items() if run.number(name) > of.highest + ROUNDING]
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
