"""What is held against what, and whether its runs are pairs: of one seed, with the same weights, batches and images.

Runs are named by (fold, seed), fold "" where there is none.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from segexp.compare.arms import Arms, Ground, Levels, RunKey, by_number
from segexp.compare.load import Run
from segexp.tables import counted

_MOST_NAMED = 8

_BEGAN = (("split_sha", "the split"), ("init_sha", "initial weights"), ("order_sha", "batch order"))
"""Columns that say how a run began, and what they are in words."""


@dataclass(frozen=True)
class Pair:
    """A candidate and what it is held against, by their levels."""

    candidate: Levels
    reference: Levels


def pairs_of(ground: Ground, arms: Arms, references: Sequence[Mapping[str, str]]) -> list[Pair]:
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
    return [f"{silent} of {counted(len(runs), 'run')} {what}"]


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
    return f"the other folds of seed {shown} ({counted(2 * len(left), 'run')}), for only seeds with all folds count"


def _names(keys: Sequence[RunKey], most: int) -> str:
    shown = ", ".join(f"{seed} (fold {fold})" if fold else seed for fold, seed in keys[:most])
    return shown + (" ..." if len(keys) > most else "")
