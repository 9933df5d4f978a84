"""Looks at a study that is not finished: what each may spend, and which comparisons can still be decided.

Every look j has a share w_j of alpha, w_1 + ... + w_J = 1. Tests at the levels w_j alpha have a false positive in at
most alpha of studies, whatever the dependence between looks (union bound), and intervals of level 1 - w_j alpha hold
the truth at all looks in at least 1 - alpha (repeated intervals, Jennison and Turnbull 1989). So p / w_j at the look
where a comparison stops, whatever made it stop, is as good as the p of a single test, also for Holm's adjustment over
all: a false rejection takes p / w_j <= alpha / (number of true hypotheses) for some true one at some look.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import stdtr, stdtrit

from segexp.compare import statistics as stats
from segexp.compare.blocks import RunKey
from segexp.compare.result import ALPHA, Comparison, Interval, Verdict
from segexp.records.runs import Run

LOOKS = (5, 8, 12, 18, 27)
"""Seeds (or splits) at which a study is looked at."""

LEAST_POWER = 0.1
"""A comparison is not continued where its conditional power is lower."""


def shares(n_looks: int, first: int = 1) -> tuple[float, ...]:
    """The share of alpha that each look spends, in sum 1: the increments of (j / n)^2, a power family (Kim and DeMets
    1987, doi:10.1093/biomet/74.1.149), spent from look ``first`` on and 0 before."""
    n = n_looks - first + 1
    return tuple((2 * j - 1) / n**2 if j > 0 else 0.0 for j in range(2 - first, n + 1))


def shares_within(n_looks: int) -> tuple[float, ...]:
    """As `shares`, for equivalence: on the last half of the looks."""
    return shares(n_looks, n_looks // 2 + 1)


def at_look(interval: Interval, share: float, share_within: float) -> Interval:
    """The interval at a look with these shares of alpha: p / share, at most 1, and limits at 1 - share * ALPHA and
    1 - 2 share_within * ALPHA (NaN for nothing)."""
    adjusted = replace(interval, share=share, share_within=share_within)
    if math.isnan(interval.p) or not interval.se > 0:
        return adjusted
    half, half90 = (
        interval.se * float(stdtrit(interval.df, 1 - tail)) if tail else stats.NAN
        for tail in (share * ALPHA / 2, share_within * ALPHA)
    )
    m = interval.mean
    limits = {"low": m - half, "high": m + half, "low90": m - half90, "high90": m + half90}
    return replace(adjusted, p=min(interval.p / share, 1.0), **limits)


def adjusted(interval: Interval, *arms: Collection[Run]) -> Interval:
    """`at_look` for the runs of these arms, together: the last look that all of them have. The interval itself where
    their study is not sequential."""
    shared = [[(r.number("look_share"), r.number("look_share_within")) for r in arm if _look(r)] for arm in arms]
    # Later looks have larger shares.
    return at_look(interval, *min(map(max, filter(None, shared)))) if any(shared) else interval


def together(*arms: Mapping[RunKey, Run]) -> list[dict[RunKey, Run]]:
    """The runs of these arms up to the last look that all of them have. A reference goes on when a comparison has
    stopped; where seeds are not paired, its later ones would test that comparison again at a share that is spent."""
    last = min((n for arm in arms if (n := max(map(_look, arm.values()), default=0))), default=0)
    return [{key: run for key, run in arm.items() if _look(run) <= last} for arm in arms]


def _look(run: Run) -> int:
    """0 where no look has used it."""
    look = run.row.get("look", "")
    return int(look) if look.isdecimal() else 0


@dataclass(frozen=True)
class Evidence:
    """What is known of a comparison. n: seeds, or splits; floor_se: the part of the standard error that more of them
    do not reduce; floor: the difference that infinitely many of them find with 80 % power, 0 for any."""

    interval: Interval
    n: int
    floor_se: float = 0.0
    floor: float = 0.0


def evidence_of(comparison: Comparison) -> Evidence:
    """The evidence behind a comparison."""
    interval = comparison.deciding
    if comparison.n_splits:
        return Evidence(interval, comparison.n_splits, comparison.split_floor_se, comparison.split_floor)
    floor_se = 0.0
    if interval is comparison.overall and comparison.variance:
        floor_se = math.sqrt(comparison.variance["image"] / len(comparison.units))
    floor = 0.0 if math.isnan(comparison.image_floor) else comparison.image_floor
    return Evidence(interval, comparison.n_seeds, floor_se, floor)


def conditional_power(found: Evidence, n_last: int, rope: float, share: float, share_within: float, m: int) -> float:
    """The chance that the last look, at ``n_last`` seeds, decides: a significant difference or equivalence, if the
    difference and its variances are what they are now. m: comparisons that Holm's first step counts.

    The images stay the same, so only the mean of the seeds moves: by a t with n - 1 degrees of freedom and the variance
    a (1 / n - 1 / n_last), where a is the variance between seeds.
    """
    now, n = found.interval, found.n
    if math.isnan(now.p) or not now.se > 0:
        return 0.0
    a = max(now.se**2 - found.floor_se**2, 0.0) * n
    se, sd = math.sqrt(a / n_last + found.floor_se**2), math.sqrt(a * (1 / n - 1 / n_last))

    def below(value: float) -> float:
        away = value - now.mean
        return float(stdtr(n - 1, away / sd)) if sd > 0 else float(away > 0)

    least = float(stdtrit(n_last - 1, 1 - share * ALPHA / (2 * m))) * se
    power = 1 - below(least) + below(-least)
    if rope > 0 and share_within:
        most = rope - float(stdtrit(n_last - 1, 1 - share_within * ALPHA / m)) * se
        power += max(below(most) - below(-most), 0.0) if most > 0 else 0.0
    return min(power, 1.0)


@dataclass(frozen=True)
class Standing:
    """Where a comparison stands after a look. power: conditional power of the last look, NaN where it is of no use.

    state: decided; open; untested (no test is possible); "images" or "seeds": not decidable with these images, or with
    the seeds that are left.
    """

    state: str
    power: float


def standings(
    evidence: Sequence[Evidence], verdicts: Sequence[Verdict], rope: float, left: int | None, last: tuple[float, float]
) -> list[Standing]:
    """Where comparisons stand. left: seeds of the last look, None after it; last: its shares of alpha."""
    m = sum(not verdict.significant and verdict != Verdict.NO_TEST for verdict in verdicts)
    found = []
    for one, verdict in zip(evidence, verdicts, strict=True):
        if verdict != Verdict.INCONCLUSIVE:
            found.append(Standing("untested" if verdict == Verdict.NO_TEST else "decided", stats.NAN))
            continue
        power = conditional_power(one, left, rope, *last, m) if left else 0.0
        limit = "images" if one.floor > rope else "seeds"
        found.append(Standing("open" if power >= LEAST_POWER else limit, power))
    return found


def decided(intervals: Sequence[Interval], rope: float) -> list[Verdict]:
    """Verdicts of one family of comparisons where higher is better."""
    decide = stats.family(intervals, [rope] * len(intervals), [True] * len(intervals))
    return [decide(n, one)[1] for n, one in enumerate(intervals)]


def analysed(D_KN: np.ndarray, sizes: tuple[int, int] | None = None) -> Evidence:
    """The evidence in differences of K seeds on N images, without looks; sizes: test and training images of splits,
    where each seed has a split of its own."""
    if sizes:
        design = D_KN.mean(axis=1), *(np.full(len(D_KN), size) for size in sizes)
        floor_se = stats.split_floor(*design)
        floor = float(stats.noncentrality(stats.MOST) * floor_se)
        return Evidence(stats.corrected_resampled(*design), len(D_KN), floor_se, floor)
    analysis = stats.two_way(D_KN)
    floor = stats.image_floor(analysis)
    floor_se = math.sqrt(analysis.var_image / analysis.n_images)
    return Evidence(analysis.interval, analysis.n_seeds, floor_se, 0.0 if math.isnan(floor) else floor)


def simulated(
    D_CKN: np.ndarray, looks: Sequence[int], rope: float, sizes: tuple[int, int] | None = None
) -> tuple[int, list[Verdict]]:
    """(runs, verdicts) of a sequential study of C candidates and their reference, from differences for the seeds of the
    last look, where higher is better. sizes: as in `analysed`."""
    n, C = len(looks), len(D_CKN)
    share, within, runs, open_C = shares(n), shares_within(n), 0, list(range(C))
    evidence, verdicts = [Evidence(stats.NO_TEST, 0)] * C, [Verdict.NO_TEST] * C
    for j, K in enumerate(looks):
        runs += (K - (looks[j - 1] if j else 0)) * (len(open_C) + 1)
        for c in open_C:
            found = analysed(D_CKN[c, :K], sizes)
            evidence[c] = replace(found, interval=at_look(found.interval, share[j], within[j]))
        verdicts = decided([one.interval for one in evidence], rope)
        standing = standings(evidence, verdicts, rope, looks[-1] if j < n - 1 else None, (share[-1], within[-1]))
        open_C = [c for c in open_C if standing[c].state == "open"]
        if not open_C:
            break
    return runs, verdicts
