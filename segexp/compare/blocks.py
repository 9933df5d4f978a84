"""What is held against what, and whether its runs are pairs: of one seed, with the same weights, batches and images.

Runs are named by (fold, seed), fold "" where there is none.
"""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from segexp.config import CODE_GROUPS, Config, alias_target
from segexp.config.arm import ARM_GROUPS, TUNED_FILE, arm_of_row, read_tuned
from segexp.config.canonical import VOLATILE
from segexp.errors import UsageError
from segexp.records import COLUMNS
from segexp.records.formatting import pluralize
from segexp.records.runs import Run, column_of
from segexp.registry import nearest

_GROUPS = tuple(f.name for f in dataclasses.fields(Config) if dataclasses.is_dataclass(f.default_factory))
"""The sections of the configuration."""

USUAL_REFERENCE = {"activation": "sigmoid", "hidden_activation": "native"}
"""What candidates are held against unless ``--reference`` says otherwise, within each level of the other factors."""

_SEED, _FOLD, _RATE, _TUNED = (column_of(key) for key in ("seed", "split.fold", "optimizer.lr", "tuned"))

TUNED = "tuned"
"""The level of optimizer.lr of runs whose rate was tuned for their arm."""

Levels = tuple[str, ...]
"""The level of every key in ``by``, in its order: "arctan", or "arctan slope=2" where options differ."""


class RunKey(NamedTuple):
    """What pairs the runs of two arms: the fold, "" where there is none, and the seed; whole numbers as text."""

    fold: str
    seed: str


def by_number(key: RunKey) -> tuple[int, int]:
    """Runs in order of fold and seed as numbers, for sorting."""
    return int(key.fold) if key.fold else -1, int(key.seed)


@dataclass
class ArmRuns:
    """The runs of one arm in one block. scored: `RunKey` -> run with scores; unscored: the others, second runs too."""

    levels: Levels
    scored: dict[RunKey, Run] = field(default_factory=dict)
    unscored: list[Run] = field(default_factory=list)


@dataclass
class BlockRuns:
    """A block before it is compared: data set, split ("" in cross-validation), conditions (key -> value), arms."""

    dataset: str
    dataset_sha: str
    split_sha: str
    conditions: dict[str, str]
    groups: dict[Levels, ArmRuns] = field(default_factory=dict)


@dataclass(frozen=True)
class Arms:
    """Every run in its place. by: keys of an arm; levels: key -> its levels, in order; level_of: run_id -> levels."""

    by: tuple[str, ...]
    levels: Mapping[str, tuple[str, ...]]
    level_of: Mapping[str, Levels]
    grounds: tuple[BlockRuns, ...]
    warnings: tuple[str, ...]

    def level(self, levels: Levels, key: str) -> str:
        """The level of one key."""
        return levels[self.by.index(key)]

    def label(self, levels: Levels) -> str:
        """An arm by what varies: "arctan + dice" of groups, "gelu / arctan / dice" where two of them share their names
        (in the order of ``by``), with its keys where names alone would not tell."""
        varying = [(key, level) for key, level in zip(self.by, levels, strict=True) if len(self.levels[key]) > 1]
        groups = {key for key, _ in varying if key in _GROUPS}
        if varying and len(groups) == len(varying):
            both = {"activation", "hidden_activation"} <= groups
            return (" / " if both else " + ").join(level for _, level in varying)
        shown = [f"{key}={level}" for key, level in zip(self.by, levels, strict=True) if len(self.levels[key]) > 1]
        return ", ".join(shown) or ", ".join(f"{k}={level}" for k, level in zip(self.by, levels, strict=True))


def key_of(column: str) -> str:
    """A column of the configuration as it is shown: activation.slope; the first underscore is not always the dot."""
    name = column.removeprefix("config_")
    for group in _GROUPS:
        if name.startswith(f"{group}_"):
            return f"{group}.{name.removeprefix(f'{group}_')}"
    return name


def where_these(runs: Sequence[Run], where: Mapping[str, str]) -> tuple[Run, ...]:
    """The runs whose configuration says ``where``: key or group -> a value, or several with commas between them. Raises
    UsageError where none does."""
    kept = tuple(runs)
    for key, given in where.items():
        column = _name_column(key, runs)
        values = sorted({run.row.get(column, "") for run in runs})
        wanted = [canonical(key, value, values) for value in values_in(given, values)]
        for value in wanted:
            if value not in values:
                raise UsageError(f"no run has {key}={value}{nearest(value, values)}")
        kept = tuple(run for run in kept if run.row.get(column, "") in wanted)
        if not kept:
            asked = " ".join(f"{name}={value}" for name, value in where.items())
            raise UsageError(f"no run has all of {asked}: leave one out")
    return kept


def values_in(given: str, known: Sequence[str]) -> list[str]:
    """The values in "0,1,2"; a value with commas of its own, such as a list, is one."""
    return [given] if given in known else [value.strip() for value in given.split(",")]


def canonical(key: str, value: str, known: Sequence[str]) -> str:
    """What is meant by a value that is none of those that are known: a name behind its alias (loss=bce is ce), a number
    written otherwise (1e-3 is 0.001)."""
    if value in known:
        return value
    alike = [other for other in known if _natural(other)[0][0] == 0 and _natural(other) == _natural(value)]
    if alike or key not in CODE_GROUPS:
        return alike[0] if alike else value
    try:
        return alias_target(key, value)[0]
    except UsageError:
        return value


def _name_column(key: str, runs: Sequence[Run]) -> str:
    """The one column behind a key: of a group that of its member's name."""
    columns = _columns(key, runs)
    if len(columns) > 1:
        return column_of(f"{key}.name")
    return columns[0]


def _columns(key: str, runs: Iterable[Run]) -> list[str]:
    """The columns behind a key of the configuration, or behind a whole group. Raises UsageError for an unknown one."""
    known = _of_config(runs)
    exact = column_of(key)
    if exact in known and "." in key:
        return [exact]
    if key in _GROUPS:
        inside = [column for column in known if key_of(column).startswith(f"{key}.")]
        if inside:
            return inside
    if exact in known:
        return [exact]
    names = [*_GROUPS, *map(key_of, known)]
    raise UsageError(f"no run has the key '{key}'{nearest(key, names)}; name a group or a key of the configuration")


def arrange(runs: Sequence[Run], by: Sequence[str] | None) -> Arms:
    """Every run in its arm and block. by: groups or keys of the configuration; default: those of `ARM_GROUPS` that
    vary, else whatever varies. Raises UsageError for keys that make no arm."""
    varying = _varying(runs)
    keys = tuple(dict.fromkeys(by)) if by else _usual(runs, varying)
    for key in keys:
        if key.split(".")[0] == "dataset" or key in ("seed", "split.fold", "split.folds", "study", "fold"):
            raise UsageError(
                f"--by {key}: arms are compared on the same data, seeds and folds, so this cannot make one"
            )
    columns = {key: _columns(key, runs) for key in keys}
    of_arms = {column for inside in columns.values() for column in inside}
    level_of = _levels_of(runs, keys, columns)
    twins, warnings = _tuned_twins(runs)
    data_of = _data_of(runs)
    together: dict[tuple[str, str, str], list[Run]] = {}
    for run in [*runs, *twins]:
        together.setdefault(data_of[run.run_id], []).append(run)
    others = set(varying) - of_arms - _following(runs, keys, varying)
    conditions = _conditions([c for c in varying if c in others], together.values())
    grounds, seconds = _placed(together, conditions, level_of, by_rate=_RATE in of_arms)
    if seconds:
        are = (
            "run is a second one of its arm and seed"
            if len(seconds) == 1
            else "runs are second ones of their arm and seed"
        )
        shown = ", ".join(seconds[:3]) + (" ..." if len(seconds) > 3 else "")
        warnings.append(f"{len(seconds)} {are}, and left out: {shown}")
    levels = {
        key: tuple(sorted({of_run[n] for of_run in level_of.values()}, key=_natural)) for n, key in enumerate(keys)
    }
    return Arms(keys, levels, level_of, grounds, tuple(warnings))


def _tuned_twins(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """Runs without a tuned rate whose configured rate is the one that a tuned file holds for their arm.

    Such a run was made once and stands for two: with a fixed and with a tuned rate. Also returns warnings about files
    that are not found. Raises UsageError for a file that is not one of `segexp tune`.
    """
    files = dict.fromkeys(run.row[_TUNED] for run in runs if run.row.get(_TUNED))
    # A file that has moved with its study lies beside the runs.
    beside = list(dict.fromkeys(run.path.parent / TUNED_FILE for run in runs if not run.collected))
    twins, warnings = [], []
    for file in files:
        path = next((p for p in (Path(file), *beside) if p.is_file()), None)
        if path is None:
            warnings.append(
                f"{file} is not here: a run whose configured rate is the tuned one may be missing among the tuned runs"
            )
            continue
        rates, _ = read_tuned(path)
        made = {(arm_of_row(run.row), run.row.get("seed")) for run in runs if run.row.get(_TUNED) == file}
        for run in runs:
            arm = arm_of_row(run.row)
            if run.row.get(_TUNED) or (arm, run.row.get("seed")) in made:
                continue
            if math.isclose(rates.get(arm, math.nan), run.number(_RATE), rel_tol=1e-12):
                twins.append(dataclasses.replace(run, cells={**run.row, _TUNED: file}))
    return twins, warnings


def _conditions(columns: Sequence[str], together: Iterable[Sequence[Run]]) -> list[str]:
    """Those of the columns that vary inside any data set: they are conditions on all; between data sets everything may
    differ. together: the runs of each data set."""
    of_data = list(together)
    return [c for c in columns if not _is_free(c) and any(len(_values(c, here)) > 1 for here in of_data)]


def _placed(
    together: Mapping[tuple[str, str, str], Sequence[Run]],
    conditions: Sequence[str],
    level_of: Mapping[str, Levels],
    by_rate: bool,
) -> tuple[tuple[BlockRuns, ...], list[str]]:
    """Every run in its block and arm, and the run_ids of second runs of an arm, fold and seed.

    by_rate: whether learning rates make arms; else one that was tuned belongs to its arm, whatever it is.
    """
    grounds: dict[tuple[str, ...], BlockRuns] = {}
    seconds = []
    for of_data, here in sorted(together.items()):
        for run in here:
            values = {c: run.row.get(c, "") for c in conditions}
            if run.row.get(_TUNED) and not by_rate:
                values[_RATE] = TUNED
            shown = {key_of(c): value or "none" for c, value in values.items()}
            ground = grounds.setdefault((*of_data, *values.values()), BlockRuns(*of_data, shown))
            group = ground.groups.setdefault(level_of[run.run_id], ArmRuns(level_of[run.run_id]))
            key = RunKey(run.row.get("fold") or run.row.get(_FOLD, ""), run.row.get("seed", ""))
            if run.state == "done" and run.images is not None and key not in group.scored:
                group.scored[key] = run
                continue
            group.unscored.append(run)
            if run.state == "done":
                seconds.append(run.run_id)
    _tell_apart(list(grounds.values()))
    return tuple(grounds.values()), seconds


def _tell_apart(grounds: Sequence[BlockRuns]) -> None:
    """Data of one name but other images bear their hash; blocks that differ in the split alone say so."""
    shas: dict[str, set[str]] = {}
    for ground in grounds:
        shas.setdefault(ground.dataset, set()).add(ground.dataset_sha)
    for ground in grounds:
        if len(shas[ground.dataset]) > 1 and ground.dataset_sha:
            ground.dataset = f"{ground.dataset} {ground.dataset_sha[:8]}"
    splits: dict[tuple[str, ...], list[BlockRuns]] = {}
    for ground in grounds:
        splits.setdefault((ground.dataset, *ground.conditions.values()), []).append(ground)
    for alike in splits.values():
        for ground in alike if len(alike) > 1 else []:
            ground.conditions["split"] = ground.split_sha[:8] or "unknown"


def _natural(text: str) -> list[tuple[int, float, str]]:
    """Numbers in order of size, words in order of the alphabet."""
    try:
        return [(0, float(text), "")]
    except ValueError:
        return [(1, 0.0, text)]


def _of_config(runs: Iterable[Run]) -> dict[str, None]:
    """The columns of the configuration that any run has, in their order."""
    named = dict.fromkeys(column for run in runs for column in run.row if column.startswith("config_"))
    return {column: None for column in named if column not in COLUMNS["summary"]}


def _varying(runs: Sequence[Run]) -> list[str]:
    """Columns of the configuration that are not alike in all runs, in their order."""
    # What a run says nothing of, being older or of another optimizer, is no difference.
    return [c for c in _of_config(runs) if len(_values(c, runs)) > 1]


def _values(column: str, runs: Sequence[Run]) -> set[str]:
    """What the runs that know a column say."""
    return {run.row[column] for run in runs if column in run.row}


def _is_free(column: str) -> bool:
    """Whether a column says nothing of the conditions of a run."""
    if column in (_SEED, _FOLD):
        return True
    return any(column == column_of(key) or column.startswith(column_of(f"{key}.")) for key in VOLATILE)


def _following(runs: Sequence[Run], keys: Sequence[str], varying: Sequence[str]) -> set[str]:
    """Columns that say nothing beyond the arm: what a hidden activation or a loss brings with it by itself."""
    follows = {column_of("backbone.allow_mismatched_weights")}
    gain, mode = column_of("init.gain"), column_of("head.mode")
    hidden, loss = column_of("hidden_activation.name"), column_of("loss.name")
    if len({run.row.get(gain, "") for run in runs if run.row.get(hidden) != "native"}) < 2:
        follows.add(gain)
    modes: dict[str, set[str]] = {}
    for run in runs:
        modes.setdefault(run.row.get(loss, ""), set()).add(run.row.get(mode, ""))
    if "loss" in keys and all(len(of_loss) == 1 for of_loss in modes.values()):
        follows.add(mode)
    return follows & set(varying)


def _usual(runs: Sequence[Run], varying: Sequence[str]) -> tuple[str, ...]:
    """The keys that make an arm unless they are named."""
    groups = tuple(g for g in ARM_GROUPS if any(key_of(column).startswith(f"{g}.") for column in varying))
    if groups:
        return groups
    free = [c for c in varying if not _is_free(c) and not c.startswith("config_dataset_")]
    if free:
        return tuple(key_of(c) for c in free)
    groups = tuple(g for g in ARM_GROUPS if any(column_of(f"{g}.name") in run.row for run in runs))
    if groups:
        return groups
    raise UsageError("the runs say nothing of their configuration: name what makes an arm with --by")


def _levels_of(runs: Sequence[Run], keys: Sequence[str], columns: Mapping[str, Sequence[str]]) -> dict[str, Levels]:
    """run_id -> the level of each key. Of a group's options those are named that vary among runs of one name."""
    named: dict[str, dict[str, str]] = {}
    for key in keys:
        name = column_of(f"{key}.name")
        if name not in columns[key]:
            named[key] = {run.run_id: _written(columns[key], run) for run in runs}
            continue
        options = [c for c in columns[key] if c != name]
        seen: dict[tuple[str, str], set[str]] = {}
        for run in runs:
            for column in options:
                seen.setdefault((run.row.get(name, ""), column), set()).add(run.row.get(column, ""))
        named[key] = {
            run.run_id: " ".join(
                [run.row.get(name, "") or "unknown"]
                + [
                    f"{key_of(c).removeprefix(f'{key}.')}={run.row.get(c, '')}"
                    for c in options
                    if len(seen[run.row.get(name, ""), c]) > 1
                ]
            )
            for run in runs
        }
    return {run.run_id: tuple(named[key][run.run_id] for key in keys) for run in runs}


def _written(columns: Sequence[str], run: Run) -> str:
    if len(columns) == 1:
        return run.row.get(columns[0], "") or "none"
    return " ".join(f"{key_of(c)}={run.row.get(c, '')}" for c in columns)


def _data_of(runs: Sequence[Run]) -> dict[str, tuple[str, str, str]]:
    """run_id -> (name of the data set, its hash, the split's), so that runs not begun stand beside those of their kind.

    The hash of the split is left out of cross-validation, where each fold has its own.
    """
    found: dict[tuple[str, str], tuple[str, str, str]] = {}
    known = {}
    for run in runs:
        name = run.row.get("dataset", "") or run.row.get("config_dataset_name", "") or "unknown"
        split = "" if run.row.get("fold") or run.row.get(_FOLD) else run.row.get("split_sha", "")
        if run.row.get("dataset_sha"):
            known[run.run_id] = (name, run.row["dataset_sha"], split)
            found.setdefault((name, run.row.get("config_split_seed", "")), known[run.run_id])
            found.setdefault((name, ""), known[run.run_id])
        else:
            known[run.run_id] = (name, "", "")
    # The same images under two names are one data set.
    names: dict[str, str] = {}
    for name, sha, _ in known.values():
        if sha:
            names.setdefault(sha, name)
    placed = {}
    for run in runs:
        name, sha, split = known[run.run_id]
        if not sha:
            name, sha, split = found.get(
                (name, run.row.get("config_split_seed", "")), found.get((name, ""), (name, "", ""))
            )
        placed[run.run_id] = (names.get(sha, name), sha, split)
    return placed


def reference_levels(text: str | None, arms: Arms) -> list[dict[str, str]]:
    """The references to hold candidates against: one mapping of keys to levels for each question asked.

    Without ``text`` those of `USUAL_REFERENCE` that vary and are there. Raises UsageError for what no arm has.
    """
    if text is None:
        return [
            {key: level}
            for key, level in USUAL_REFERENCE.items()
            if key in arms.by and len(arms.levels[key]) > 1 and level in arms.levels[key]
        ]
    return [assignment(text, arms, "--reference")]


def assignment(text: str, arms: Arms, option: str) -> dict[str, str]:
    """ "activation=sigmoid,loss=bce" as key -> level. Raises UsageError for what no arm has."""
    chosen = {}
    for part in re.split(r",(?=[\w.]+=)", text):
        key, equals, level = part.strip().partition("=")
        key = f"{key}.name" if key not in arms.by and f"{key}.name" in arms.by else key
        if not equals or key not in arms.by:
            raise UsageError(
                f"{option} {text}: '{part}' is not key=value of what makes an arm ({', '.join(arms.by)}); "
                "name other keys with --by"
            )
        level = canonical(key, level, arms.levels[key])
        if level not in arms.levels[key]:
            raise UsageError(f"{option} {text}: no arm has {key}={level}{nearest(level, list(arms.levels[key]))}")
        chosen[key] = level
    return chosen


_MOST_NAMED = 8

_BEGAN = (("split_sha", "the split"), ("init_sha", "initial weights"), ("order_sha", "batch order"))
"""Columns that say how a run began, and what they are in words."""


@dataclass(frozen=True)
class Pair:
    """A candidate and what it is held against, by their levels."""

    candidate: Levels
    reference: Levels


def pairs_of(ground: BlockRuns, arms: Arms, references: Sequence[Mapping[str, str]]) -> list[Pair]:
    """Every arm of a block against the arm that differs from it in the keys of a reference alone."""
    pairs = []
    for chosen in references:
        for levels in ground.groups:
            pair = Pair(levels, counterpart(levels, arms, chosen))
            if pair.reference != levels and pair.reference in ground.groups and pair not in pairs:
                pairs.append(pair)
    return pairs


def counterpart(levels: Levels, arms: Arms, reference: Mapping[str, str]) -> Levels:
    """The arm that an arm is held against by a reference, whether there is one or not; itself where it is the one."""
    return tuple(reference.get(key, level) for key, level in zip(arms.by, levels, strict=True))


def unpaired(a: Mapping[RunKey, Run], b: Mapping[RunKey, Run], common: Sequence[RunKey]) -> str:
    """Why the runs of the common seeds are no pairs, "" when they are. What neither of two runs tells is assumed to be
    alike (`assumed`); what one of them tells and the other does not is not."""
    if not common:
        return "they have no seed in common"
    for column, what in _BEGAN:
        unknown = [key for key in common if bool(_cell(a[key], column)) != bool(_cell(b[key], column))]
        differing = [key for key in common if _cell(a[key], column) != _cell(b[key], column)]
        if unknown:
            whose = [name for runs, name in ((a, "candidate"), (b, "reference")) if not _cell(runs[unknown[0]], column)]
            return f"{what} not told by the {whose[0]} for seed {_names(unknown, 5)}"
        if differing:
            return f"{what} differ{'s' * (what != 'initial weights')} for seed {_names(differing, 5)}"
    return ""


def assumed(a: Mapping[RunKey, Run], b: Mapping[RunKey, Run], common: Sequence[RunKey]) -> list[str]:
    """A warning where runs that are taken for pairs do not say how they began."""
    runs = [arm[key] for key in common for arm in (a, b)]
    silent = sum(not (_cell(run, "init_sha") and _cell(run, "order_sha")) for run in runs)
    if not silent:
        return []
    what = "do not say with which weights and order of images they began: pairing is assumed"
    return [f"{silent} of {pluralize(len(runs), 'run')} {what}"]


def _cell(run: Run, column: str) -> str:
    return run.row.get(column, "")


def alone(a: Mapping[RunKey, Run], b: Mapping[RunKey, Run]) -> str:
    """Which seeds have no partner."""
    parts = []
    for keys, whose in ((a.keys() - b.keys(), "the candidate"), (b.keys() - a.keys(), "the reference")):
        if keys:
            parts.append(f"seed {_names(sorted(keys, key=by_number), _MOST_NAMED)} of {whose} alone")
    return " and ".join(parts)


def not_whole(common: Sequence[RunKey], seeds: Sequence[str]) -> str:
    """Which common runs of a cross-validation are left out, where only ``seeds`` have all folds."""
    left = [key for key in common if key[1] not in seeds]
    if not left:
        return ""
    names = list(dict.fromkeys(seed for _, seed in left))
    shown = ", ".join(names[:_MOST_NAMED]) + (" ..." if len(names) > _MOST_NAMED else "")
    return f"the other folds of seed {shown} ({pluralize(2 * len(left), 'run')}), for only seeds with all folds count"


def _names(keys: Sequence[RunKey], most: int) -> str:
    shown = ", ".join(f"{seed} (fold {fold})" if fold else seed for fold, seed in keys[:most])
    return shown + (" ..." if len(keys) > most else "")
