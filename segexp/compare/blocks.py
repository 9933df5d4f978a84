"""Sorts runs into blocks (one data set, one split, equal conditions) and arms, and names the pairs of arms to compare.

An arm is a combination of levels of some keys of the configuration. Whatever else varies inside a data set is a
condition and separates blocks. Runs of an arm are named by (fold, seed), fold "" without cross-validation.
"""

import dataclasses
import itertools
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from segexp.compare.result import FEWEST_SEEDS
from segexp.config import CODE_GROUPS, Config, alias_target, is_volatile
from segexp.config.arm import ARM_GROUPS, TUNED_FILE, Arm, arm_of_row, read_tuned
from segexp.config.canonical import options_in
from segexp.errors import UsageError
from segexp.records import COLUMNS, cell_of
from segexp.records.formatting import pluralize
from segexp.records.runs import FIXED, Run, column_of
from segexp.registry import nearest

_GROUPS = tuple(f.name for f in dataclasses.fields(Config) if dataclasses.is_dataclass(f.default_factory))
"""The sections of the configuration."""

_PLAIN = {f.name for f in dataclasses.fields(Config)} - {*_GROUPS}
"""The keys of the configuration without a section."""

USUAL_REFERENCE = {"activation": "sigmoid", "hidden_activation": "native"}
"""The default of ``--reference``: the reference arms, at each level of the other keys."""

_SEED, _FOLD, _RATE, _TUNED, _SPLIT_SEED, _PER_SEED = (
    column_of(key) for key in ("seed", "split.fold", "optimizer.lr", "tuned", "split.seed", "split.per_seed")
)

TUNED = "tuned"
"""The condition optimizer.lr of runs whose learning rate was tuned for their arm."""

SPLIT = "split"
"""Begins the name of a split that is pooled with others (`RunKey.fold`)."""

Levels = tuple[str, ...]
"""An arm: the level of every key in ``by``, such as "arctan", or "arctan slope=2" where options differ."""


class RunKey(NamedTuple):
    """Pairs the runs of two arms: fold and seed, whole numbers as text.

    fold: "" where all runs have one split; where several splits are pooled "split 3" or, in cross-validation, "split 3
    fold 0".
    """

    fold: str
    seed: str


def by_number(key: RunKey) -> tuple[list[int], int]:
    """Sorts runs by split, fold and seed as numbers."""
    return [int(number) for number in re.findall(r"\d+", key.fold)], int(key.seed)


def are_splits(folds: Iterable[str]) -> bool:
    """Whether these are several pooled splits, not the folds of one."""
    return any(fold.startswith(SPLIT) for fold in folds)


def part_name(fold: str) -> str:
    """A fold or split in words: "fold 2", "split 3"."""
    return fold if are_splits([fold]) else f"fold {fold}"


@dataclass
class ArmRuns:
    """The runs of one arm in one block. scored: one run with scores per fold and seed; unscored: all others."""

    levels: Levels
    scored: dict[RunKey, Run] = field(default_factory=dict)
    unscored: list[Run] = field(default_factory=list)


@dataclass
class BlockRuns:
    """The runs of a block. split_sha: "" in cross-validation; conditions: key -> value; arms: levels -> runs."""

    dataset: str
    dataset_sha: str
    split_sha: str
    conditions: dict[str, str]
    arms: dict[Levels, ArmRuns] = field(default_factory=dict)


@dataclass(frozen=True)
class Arms:
    """All runs in their blocks. by: the keys that make an arm; levels: key -> its levels, sorted; level_of: run_id ->
    arm."""

    by: tuple[str, ...]
    levels: Mapping[str, tuple[str, ...]]
    level_of: Mapping[str, Levels]
    blocks: tuple[BlockRuns, ...]
    warnings: tuple[str, ...]

    def level(self, levels: Levels, key: str) -> str:
        """The level of one key."""
        return levels[self.by.index(key)]

    def label(self, levels: Levels) -> str:
        """An arm by the keys that vary: "arctan + dice" for groups, and columns of another program's table, "gelu /
        arctan / dice" where hidden and output activation both vary, "key=level" for other keys."""
        varying = [(key, level) for key, level in zip(self.by, levels, strict=True) if len(self.levels[key]) > 1]
        groups = {key for key, _ in varying if key not in _PLAIN and "." not in key}
        if varying and len(groups) == len(varying):
            both = {"activation", "hidden_activation"} <= groups
            return (" / " if both else " + ").join(level for _, level in varying)
        shown = varying or zip(self.by, levels, strict=True)
        return ", ".join(f"{key}={level}" for key, level in shown)


def key_of(column: str) -> str:
    """A column of the configuration as its key: config_hidden_activation_slope -> hidden_activation.slope."""
    name = column.removeprefix("config_")
    for group in _GROUPS:
        if name.startswith(f"{group}_"):
            return f"{group}.{name.removeprefix(f'{group}_')}"
    return name


def where_these(runs: Sequence[Run], where: Mapping[str, str]) -> tuple[Run, ...]:
    """The runs with these values. where: key or group -> a value, or several separated by commas. Raises UsageError
    where no run has them."""
    kept = tuple(runs)
    for key, given in where.items():
        # Of a group, the column of its name.
        columns = _columns(key, runs)
        column = column_of(f"{key}.name") if len(columns) > 1 else columns[0]
        values = sorted({run.row.get(column, "") for run in runs})
        wanted = [canonical(key, value, values) for value in values_in(given, values)]
        for value in wanted:
            if value not in values:
                raise UsageError(f"no run has {key}={value}{nearest(value, values)}")
        kept = tuple(run for run in kept if run.row.get(column, "") in wanted)
        if not kept:
            asked = " ".join(f"{name}={value}" for name, value in where.items())
            raise UsageError(f"no run has all of {asked}: leave one of them out")
    return kept


def with_later_options(runs: Sequence[Run]) -> tuple[Run, ...]:
    """The runs, each with the options that are newer than it (`Since`) at the value that means "as before"."""
    known = _of_config(runs)
    choosing = [(group, key) for group in _GROUPS for key in ("name", "adapter")]
    before: dict[tuple[str, ...], dict[str, str]] = {}
    completed = []
    for run in runs:
        chosen = tuple(run.row.get(column_of(f"{group}.{key}"), "") for group, key in choosing)
        if chosen not in before:
            sections: dict[str, dict[str, str]] = {group: {} for group in _GROUPS}
            for (group, key), value in zip(choosing, chosen, strict=True):
                sections[group][key] = value
            options = {column_of(key): option.since for key, option in options_in(sections).items()}
            before[chosen] = {c: cell_of(since.before) for c, since in options.items() if since and c in known}
        # A collected table has an empty cell where a run lacks a column.
        lacking = {c: v for c, v in before[chosen].items() if not (run.row.get(c) if run.collected else c in run.row)}
        completed.append(dataclasses.replace(run, cells={**run.row, **lacking}) if lacking else run)
    return tuple(completed)


def values_in(given: str, known: Sequence[str]) -> list[str]:
    """The values in "0,1,2". A known value that contains commas, such as a list, is one value."""
    return [given] if given in known else [value.strip() for value in given.split(",")]


def canonical(key: str, value: str, known: Sequence[str]) -> str:
    """The known value that is meant: aliases are resolved (loss=bce is ce), numbers may be written differently (1e-3 is
    0.001). The value itself where nothing matches."""
    if value in known:
        return value
    alike = [other for other in known if _natural(other)[0] == 0 and _natural(other) == _natural(value)]
    if alike or key not in CODE_GROUPS:
        return alike[0] if alike else value
    try:
        return alias_target(key, value)[0]
    except UsageError:
        return value


def _columns(key: str, runs: Iterable[Run]) -> list[str]:
    """The columns of a key or of a whole group. Raises UsageError for an unknown one."""
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
    keys = [key_of(column) for column in known]
    names = dict.fromkeys([*(key.partition(".")[0] for key in keys), *keys])
    raise UsageError(f"no run has the key '{key}'{nearest(key, names)}; name a group or a key of the configuration")


def arrange(runs: Sequence[Run], by: Sequence[str] | None) -> Arms:
    """Every run in its arm and block. by: groups or keys of the configuration; default: the `ARM_GROUPS` that vary,
    else all keys that vary. Raises UsageError for keys that cannot make an arm."""
    runs, versions = _with_versions(runs)
    # A column that a run lacks, because it is older or has another optimizer, is not a difference.
    varying = [c for c in _of_config(runs) if len(_values(c, runs)) > 1]
    keys = tuple(dict.fromkeys(by)) if by else _usual(runs, varying)
    for key in keys:
        if key.split(".")[0] == "dataset" or key in ("seed", "split.fold", "split.folds", "study", "fold"):
            raise UsageError(
                f"--by {key}: arms are compared on the same data, seeds and folds, so they cannot differ in it"
            )
    columns = {key: _columns(key, runs) for key in keys}
    of_arms = {column for inside in columns.values() for column in inside}
    level_of = _levels_of(runs, keys, columns)
    files, warnings = _tuned_files(runs)
    twins = _tuned_twins(runs, files)
    warnings += versions
    split_of = _pooled_splits(runs)
    data_of = _data_of(runs, split_of)
    together: dict[tuple[str, str, str], list[Run]] = {}
    for run in runs:
        together.setdefault(data_of[run.run_id], []).append(run)
    others = set(varying) - of_arms - _following(runs, keys)
    # Between data sets everything may differ.
    varies = {c for c in others if any(len(_values(c, here)) > 1 for here in together.values())}
    conditions = [c for c in varying if c in varies and not _is_free(c)]
    by_rate = _RATE in of_arms
    for run in () if by_rate else twins:
        together[data_of[run.run_id]].append(run)
    of_machine = [c for c in map(column_of, ("trainer.format", "trainer.precision")) if c in conditions]
    separate = {key_of(c): Counter(run.row.get(c, "") for run in runs) for c in of_machine}
    if any(len({run.numerics for run in here} - {0}) > 1 for here in together.values()):
        conditions.append("numerics")
        separate["numerics"] = Counter(f"version {run.numerics}" for run in runs if run.numerics)
    for what, counts in separate.items():
        shown = ", ".join(f"{pluralize(n, 'run')} of {value}" for value, n in sorted(counts.items()))
        warnings.append(f"runs of different {what} are not compared with each other: {shown}")

    reused = set(map(id, twins))

    def newest_rate(run: Run) -> tuple[bool, bool, str]:
        file = files.get(run.row[_TUNED])
        held = file is not None and file.holds(run) and file.dataset in ("", run.row.get("dataset", ""))
        return held, id(run) not in reused, run.row.get("started", "")

    blocks, repeated, n_earlier = _placed(together, conditions, level_of, split_of, None if by_rate else newest_rate)
    if n_earlier:
        earlier = pluralize(n_earlier, "run")
        warnings.append(f"{earlier} of rates that were tuned before left out: their arms were tuned again since")
    if repeated:
        shown = ", ".join(repeated[:3]) + (" ..." if len(repeated) > 3 else "")
        warnings.append(f"{pluralize(len(repeated), 'repeated run')} of an arm and seed left out: {shown}")
    levels = {
        key: tuple(sorted({of_run[n] for of_run in level_of.values()}, key=_natural)) for n, key in enumerate(keys)
    }
    return Arms(keys, levels, level_of, blocks, tuple(warnings))


def _with_versions(runs: Sequence[Run]) -> tuple[Sequence[Run], list[str]]:
    """Runs where each version of a plugin's entry has a name of its own, "mine@93bdba78", if there are several; and
    warnings about them."""
    used = {run.run_id: [part.rpartition(":") for part in run.row.get("plugins", "").split()] for run in runs}
    found: dict[str, set[str]] = {}
    for entry, _, version in itertools.chain.from_iterable(used.values()):
        if entry.partition("=")[0] in CODE_GROUPS:
            found.setdefault(entry, set()).add(version)
    several = {entry: versions for entry, versions in found.items() if len(versions) > 1}
    named = []
    for run in runs:
        cells = dict(run.row)
        for entry, _, version in used[run.run_id]:
            if entry in several:
                cells[column_of(f"{entry.partition('=')[0]}.name")] += f"@{version}"
        named.append(dataclasses.replace(run, cells=cells) if cells != run.row else run)
    return named, [
        f"the plugin of {entry} has changed between the runs: its versions {', '.join(sorted(versions))} are not pooled"
        for entry, versions in several.items()
    ]


class _TunedFile(NamedTuple):
    """What a file of `segexp tune` holds now: the rate of each arm, and the name of its data set."""

    rates: Mapping[Arm, float]
    dataset: str

    def holds(self, run: Run) -> bool:
        return math.isclose(self.rates.get(arm_of_row(run.row), math.nan), run.number(_RATE), rel_tol=1e-12)


def _tuned_files(runs: Sequence[Run]) -> tuple[dict[str, _TunedFile], list[str]]:
    """The files of tuned rates that runs name and that are found, and warnings about the others. Raises UsageError for
    a file that is not one of `segexp tune`."""
    found, warnings = {}, []
    # A file that has moved with its study lies beside the runs.
    beside = list(dict.fromkeys(run.path.parent / TUNED_FILE for run in runs if not run.collected))
    for file in dict.fromkeys(run.row[_TUNED] for run in runs if run.row.get(_TUNED)):
        path = next((p for p in (Path(file), *beside) if p.is_file()), None)
        if path is None:
            warnings.append(
                f"{file} not found: runs whose configured rate equals the tuned one may be missing among the tuned runs"
            )
            continue
        rates, context = read_tuned(path)
        found[file] = _TunedFile(rates, str(context.get("dataset.name", "")))
    return found, warnings


def _tuned_twins(runs: Sequence[Run], files: Mapping[str, _TunedFile]) -> list[Run]:
    """Runs without a tuned rate whose configured rate is the one that a tuned file holds for their arm, as tuned ones,
    and those of the column `FIXED` as fixed ones.

    Such a run was made once and stands for two: with a fixed and with a tuned rate. It is reused only in its study, and
    rates hold for the data and the optimizer of the runs with the file.
    """

    def part_of(run: Run) -> tuple[str, ...]:
        return run.study, *(run.row.get(column_of(key), "") for key in ("dataset.name", "optimizer.name"))

    used = {(run.row[_TUNED], *part_of(run)) for run in runs if run.row.get(_TUNED)}
    twins = []
    for run in runs:
        if not run.row.get(_TUNED):
            file = next((file for file, of in files.items() if of.holds(run) and (file, *part_of(run)) in used), "")
            twins += [dataclasses.replace(run, cells={**run.row, _TUNED: file})] if file else []
        elif run.row.get(FIXED):
            # No look of `segexp decide` has used it for its fixed rate.
            cells = {key: cell for key, cell in run.row.items() if not key.startswith("look")}
            twins.append(dataclasses.replace(run, cells={**cells, _TUNED: ""}))
    return twins


def _placed(
    together: Mapping[tuple[str, str, str], Sequence[Run]],
    conditions: Sequence[str],
    level_of: Mapping[str, Levels],
    split_of: Mapping[str, str],
    newest_rate: Callable[[Run], Any] | None,
) -> tuple[tuple[BlockRuns, ...], list[str], int]:
    """Every run in its block and arm, the run_ids of runs that repeat an arm, fold and seed, and how many have a rate
    that was tuned before.

    newest_rate: sorts tuned runs so that the last has the rate of its arm that counts; None where learning rates make
    arms. Otherwise a tuned rate belongs to its arm and is one condition.
    """
    blocks: dict[tuple[str, ...], BlockRuns] = {}
    repeated, of_block, tuned = [], list[tuple[Run, BlockRuns]](), dict[tuple[int, Levels], list[Run]]()
    for of_data, here in sorted(together.items()):
        newest = max(run.numerics for run in here)  # what pending runs will have
        for run in here:
            values = {c: run.row.get(c, "") for c in conditions}
            if "numerics" in values:
                values["numerics"] = str(run.numerics or newest)
            is_tuned = newest_rate and run.row.get(_TUNED)
            if is_tuned:
                values[_RATE] = TUNED
            shown = {key_of(c): value or "none" for c, value in values.items()}
            block = blocks.setdefault((*of_data, *values.values()), BlockRuns(*of_data, shown))
            of_block.append((run, block))
            if is_tuned:
                tuned.setdefault((id(block), level_of[run.run_id]), []).append(run)
    rate_of = {of: max(several, key=newest_rate).number(_RATE) for of, several in tuned.items() if newest_rate}
    n_earlier = 0
    for run, block in of_block:
        rate = rate_of.get((id(block), level_of[run.run_id])) if run.row.get(_TUNED) else None
        if rate is not None and not math.isclose(rate, run.number(_RATE), rel_tol=1e-12):
            n_earlier += 1
            continue
        arm = block.arms.setdefault(level_of[run.run_id], ArmRuns(level_of[run.run_id]))
        fold, split = _fold(run), split_of[run.run_id]
        key = RunKey(f"{split} fold {fold}" if split and fold else split or fold, run.row.get("seed", ""))
        if run.state == "done" and run.images is not None and key not in arm.scored:
            arm.scored[key] = run
            continue
        arm.unscored.append(run)
        if run.state == "done":
            repeated.append(run.run_id)
    _make_names_unique(list(blocks.values()))
    return tuple(blocks.values()), repeated, n_earlier


def _make_names_unique(blocks: Sequence[BlockRuns]) -> None:
    """Add the hash to data sets of one name with different images, and the split to blocks that differ in it alone."""
    shas: dict[str, set[str]] = {}
    for block in blocks:
        shas.setdefault(block.dataset, set()).add(block.dataset_sha)
    for block in blocks:
        if len(shas[block.dataset]) > 1 and block.dataset_sha:
            block.dataset = f"{block.dataset} {block.dataset_sha[:8]}"
    splits: dict[tuple[str, ...], list[BlockRuns]] = {}
    for block in blocks:
        splits.setdefault((block.dataset, *block.conditions.values()), []).append(block)
    for alike in splits.values():
        for block in alike if len(alike) > 1 else []:
            block.conditions["split"] = block.split_sha[:8] or ("several" if block.dataset_sha else "unknown")


def _natural(text: str) -> tuple[int, float, str]:
    """Sorts numbers by size, then words by alphabet."""
    try:
        return 0, float(text), ""
    except ValueError:
        return 1, 0.0, text


def _of_config(runs: Iterable[Run]) -> dict[str, None]:
    """The columns of the configuration that any run has, in order."""
    named = dict.fromkeys(itertools.chain.from_iterable(run.row for run in runs))
    return {column: None for column in named if column.startswith("config_") and column not in COLUMNS["summary"]}


def _values(column: str, runs: Sequence[Run]) -> set[str]:
    """The values of the runs that have a column."""
    key = key_of(column)
    found = {run.row[column] for run in runs if column in run.row}
    return {"" if is_volatile(key, value) else value for value in found}


def _is_free(column: str) -> bool:
    """Whether a column is never a condition. Splits of several seeds are pooled, or have blocks of their own."""
    return column in (_SEED, _FOLD, _SPLIT_SEED) or is_volatile(key_of(column))


def _fold(run: Run) -> str:
    return run.row.get("fold") or run.row.get(_FOLD, "")


def _pooled_splits(runs: Sequence[Run]) -> dict[str, str]:
    """run_id -> the split of a run ("split 3") where several splits of a data set, drawn alike with other seeds, are
    pooled into one answer; "" elsewhere.

    Not pooled: fewer than 3 splits, and splits with the same test images (those of split files), unless each seed of a
    run draws its own split.
    """
    columns = sorted(c for c in _of_config(runs) if c.startswith("config_split_") and c not in (_SPLIT_SEED, _FOLD))
    drawn: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        name = run.row.get("dataset", "") or run.row.get("config_dataset_name", "")
        drawn.setdefault((name, *(run.row.get(c, "") for c in columns)), []).append(run)
    split_of = dict.fromkeys((run.run_id for run in runs), "")
    for alike in drawn.values():
        per_seed = alike[0].row.get(_PER_SEED) == "true"
        given = {run.run_id: run.row.get(_SPLIT_SEED, "") for run in alike}
        of_seed = {run.run_id: run.row.get("seed", "") for run in alike}
        names = {i: of_seed[i] if per_seed else given[i] for i in given}
        if per_seed and len(set(given.values())) > 1:
            names = {i: f"{given[i]}-{of_seed[i]}" for i in given}
        n_splits = len(set(zip(names.values(), map(_fold, alike), strict=True)))
        tested = {run.images.layout.image_ids for run in alike if run.images is not None and not _fold(run)}
        if len(set(names.values())) > 1 and (per_seed or (n_splits >= FEWEST_SEEDS and len(tested) != 1)):
            split_of |= {i: f"{SPLIT} {name}" for i, name in names.items()}
    return split_of


def _following(runs: Sequence[Run], keys: Sequence[str]) -> set[str]:
    """Columns that follow from the arm: what a hidden activation, a loss or an architecture sets itself."""
    follows = {column_of("backbone.allow_mismatched_weights")}
    gain, hidden = column_of("init.gain"), column_of("hidden_activation.name")
    if len({run.row.get(gain, "") for run in runs if run.row.get(hidden) != "native"}) < 2:
        follows.add(gain)
    for group, column in (("loss", column_of("head.mode")), ("model", column_of("trainer.format"))):
        values: dict[str, set[str]] = {}
        for run in runs:
            values.setdefault(run.row.get(column_of(f"{group}.name"), ""), set()).add(run.row.get(column, ""))
        if group in keys and all(len(of_member) == 1 for of_member in values.values()):
            follows.add(column)
    return follows


def _usual(runs: Sequence[Run], varying: Sequence[str]) -> tuple[str, ...]:
    """The default of ``by``."""
    groups = tuple(g for g in ARM_GROUPS if any(key_of(column).startswith(f"{g}.") for column in varying))
    if groups:
        return groups
    free = [c for c in varying if not _is_free(c) and not c.startswith("config_dataset_")]
    if free:
        return tuple(key_of(c) for c in free)
    groups = tuple(g for g in ARM_GROUPS if any(column_of(f"{g}.name") in run.row for run in runs))
    if groups:
        return groups
    raise UsageError("the runs hold no configuration: name the keys that make an arm with --by")


def _levels_of(runs: Sequence[Run], keys: Sequence[str], columns: Mapping[str, Sequence[str]]) -> dict[str, Levels]:
    """run_id -> arm. The level of a group names the options that vary among runs of one name."""
    named: dict[str, dict[str, str]] = {key: {} for key in keys}
    for key in keys:
        name = column_of(f"{key}.name")
        if name not in columns[key]:
            shown = [(f"{key_of(c)}=" if len(columns[key]) > 1 else "", c) for c in columns[key]]
            for run in runs:
                level = " ".join(f"{prefix}{run.row.get(c, '')}" for prefix, c in shown)
                named[key][run.run_id] = level or "none"
            continue
        options = {c: key_of(c).removeprefix(f"{key}.") for c in columns[key] if c != name}
        seen: dict[tuple[str, str], set[str]] = {}
        for run, column in itertools.product(runs, options):
            seen.setdefault((run.row.get(name, ""), column), set()).add(run.row.get(column, ""))
        for run in runs:
            chosen = run.row.get(name, "")
            varying = [f"{title}={run.row.get(c, '')}" for c, title in options.items() if len(seen[chosen, c]) > 1]
            named[key][run.run_id] = " ".join([chosen or "unknown", *varying])
    return {run.run_id: tuple(named[key][run.run_id] for key in keys) for run in runs}


def _data_of(runs: Sequence[Run], split_of: Mapping[str, str]) -> dict[str, tuple[str, str, str]]:
    """run_id -> (data set, its hash, hash of the split). Pending runs, which have no hashes, get those of other runs on
    the same data. In cross-validation, and where splits are pooled, there are several splits: that hash is left out.
    """
    found: dict[tuple[str, str], tuple[str, str, str]] = {}
    names: dict[str, str] = {}
    known = {}
    for run in runs:
        name = run.row.get("dataset", "") or run.row.get("config_dataset_name", "") or "unknown"
        split = "" if _fold(run) or split_of[run.run_id] else run.row.get("split_sha", "")
        sha, split_seed = run.row.get("dataset_sha", ""), run.row.get("config_split_seed", "")
        known[run.run_id] = (name, sha, split if sha else ""), split_seed
        if sha:
            found.setdefault((name, split_seed), (name, sha, split))
            found.setdefault((name, ""), (name, sha, split))
            # The same images under two names are one data set.
            names.setdefault(sha, name)
    placed = {}
    for run_id, ((name, sha, split), split_seed) in known.items():
        if not sha:
            name, sha, split = found.get((name, split_seed)) or found.get((name, "")) or (name, "", "")  # noqa: PLW2901
        placed[run_id] = (names.get(sha, name), sha, split)
    return placed


def reference_levels(text: str | None, arms: Arms) -> list[dict[str, str]]:
    """The references, each as key -> level: of "activation=sigmoid,loss=bce", or those of `USUAL_REFERENCE` that exist
    and vary; of "all" one without keys (`pairs_of`). Raises UsageError for a level that no arm has."""
    if text == "all":
        return [{}]
    if text is None:
        return [
            {key: level}
            for group, level in USUAL_REFERENCE.items()
            for key in (group, f"{group}.name")
            if key in arms.by and len(arms.levels[key]) > 1 and level in arms.levels[key]
        ]
    chosen = {}
    for part in re.split(r",(?=[\w.]+=)", text):
        key, equals, level = part.strip().partition("=")
        key = f"{key}.name" if key not in arms.by and f"{key}.name" in arms.by else key
        if not equals or key not in arms.by:
            raise UsageError(
                f"--reference {text}: '{part}' is not KEY=VALUE with a key that makes an arm ({', '.join(arms.by)})"
                + ("; `segexp compare` takes other keys with --by" if equals else f", as in {next(iter(arms.by))}=NAME")
            )
        level = canonical(key, level, arms.levels[key])
        if level not in arms.levels[key]:
            raise UsageError(f"--reference {text}: no arm has {key}={level}{nearest(level, list(arms.levels[key]))}")
        chosen[key] = level
    return [chosen]


def pairs_of(block: BlockRuns, arms: Arms, references: Sequence[Mapping[str, str]]) -> list[tuple[Levels, Levels]]:
    """Every arm of a block, a candidate, with its reference: the arm that differs only in the keys of a reference.
    Of a reference without keys: every two arms, in the order of the block."""
    if references == [{}]:
        return list(itertools.combinations(block.arms, 2))
    pairs = [(levels, counterpart(levels, arms, chosen)) for chosen in references for levels in block.arms]
    return list(dict.fromkeys(pair for pair in pairs if pair[1] != pair[0] and pair[1] in block.arms))


def counterpart(levels: Levels, arms: Arms, reference: Mapping[str, str]) -> Levels:
    """The arm that a reference asks to compare an arm with, whether it exists or not."""
    return tuple(reference.get(key, level) for key, level in zip(arms.by, levels, strict=True))
