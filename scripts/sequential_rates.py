"""How often `segexp decide` is wrong, and how many runs it saves: simulated studies, as tables of docs/comparing.md.

    python scripts/sequential_rates.py [--only TABLE ...] [--repetitions N] [--seed S] [--processes P] [--write]

A study is made up as in error_rates.py, with the seeds of the last look for every arm. It is looked at as
`segexp.compare.sequential` says: an arm whose comparison is open gets the seeds of the next look, others keep theirs,
and the study ends when none is open. A fixed design gives all arms K seeds and compares once, without looks.

Statistics come from arrays of the values per image, by the functions that `compare` calls; `by_compare` takes the same
looks with `compare` itself (some ten times slower). Arrays: as in error_rates.py, C candidates.
"""

import functools
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import error_rates as rates
import numpy as np
from error_rates import Bounds, Events, Rng, Row, Setting, points, setting
from scipy.special import stdtr

from segexp.compare import sequential
from segexp.compare import statistics as stats
from segexp.compare.result import ALPHA, FEWEST_SEEDS, METRICS, Verdict
from segexp.compare.scorer import Scorer
from segexp.compare.sequential import LOOKS, Evidence
from segexp.records.runs import Run

MARKS = "<!-- tables of scripts/sequential_rates.py -->", "<!-- end of the tables of looks -->"

REPETITIONS = 2000
ROPE = METRICS["dice"].rope
LAST = LOOKS[-1]
SHARES, WITHIN = sequential.shares(len(LOOKS)), sequential.shares_within(len(LOOKS))

FALSE, SAME, HOLDS = "false verdict", "false equivalence", "interval holds the truth"
FOUND, EQUAL, OPEN, RUNS = "found", "equivalent", "undecided", "runs"

EvidenceOf = Callable[[int, int], Evidence]
"""(candidate, seeds) -> the evidence of a comparison, without looks."""

Take = Callable[[Sequence[int]], tuple[Sequence[Evidence], Sequence[Verdict]]]
"""Takes a look. Argument: the last look (0, 1, ...) of each comparison."""


@dataclass(frozen=True)
class Ended:
    """A study after its last look. state_C: of `Standing`; look_C: the last look of each comparison."""

    evidence_C: Sequence[Evidence]
    verdict_C: Sequence[Verdict]
    state_C: Sequence[str]
    look_C: Sequence[int]

    @property
    def runs(self) -> int:
        seeds_C = [LOOKS[look] for look in self.look_C]
        return sum(seeds_C) + max(seeds_C)


def looked_at(take: Take, C: int) -> Ended:
    """A study with C candidates from its first look to its end. What has stopped is not taken up again."""
    look_C, going_on = [0] * C, set(range(C))
    for look, K in enumerate(LOOKS):
        look_C = [look if c in going_on else before for c, before in enumerate(look_C)]
        evidence_C, verdict_C = take(look_C)
        left = LAST if K < LAST else None
        found = sequential.standings(evidence_C, verdict_C, ROPE, left, (SHARES[-1], WITHIN[-1]))
        going_on = {c for c in going_on if found[c].state == "open"}
        if not going_on:
            break
    return Ended(evidence_C, verdict_C, [one.state for one in found], look_C)


def by_arrays(evidence: EvidenceOf, look_C: Sequence[int]) -> tuple[list[Evidence], list[Verdict]]:
    found = []
    for c, look in enumerate(look_C):
        one = evidence(c, LOOKS[look])
        found.append(replace(one, interval=sequential.at_look(one.interval, SHARES[look], WITHIN[look])))
    return found, sequential.decided([one.interval for one in found], ROPE)


def by_compare(runs: Sequence[Run], look_C: Sequence[int]) -> tuple[list[Evidence], list[Verdict]]:
    """runs: of all arms with the seeds (or splits) of the last look; each belongs to the first look that has it."""
    look_of = dict(zip(rates.ARMS, (max(look_C), *look_C), strict=False))
    kept = []
    for run in runs:
        seed = int(run.row.get("config_split_seed") or run.row["seed"])
        if seed < LOOKS[look_of[run.row["config_activation_name"]]]:
            look = next(j for j, K in enumerate(LOOKS) if seed < K)
            cells = {"look": str(look + 1), "look_share": repr(SHARES[look]), "look_share_within": repr(WITHIN[look])}
            kept.append(replace(run, cells={**(run.cells or {}), **cells}))
    found = sorted(rates.comparisons(rates.compared(kept)), key=lambda c: rates.ARMS.index(c.candidate))
    return [sequential.evidence_of(c) for c in found], [c.verdict for c in found]


def values_of(runs: Sequence[Run]) -> np.ndarray:
    """The values (A, K, N) of runs as the two-way test takes them: an image, or group, each."""
    values = Scorer(METRICS["dice"], "reference").values(runs).values_KU
    A = len({run.row["config_activation_name"] for run in runs})
    return values.reshape(A, -1, values.shape[-1])


def of_values(values_AKN: np.ndarray, sizes: tuple[int, int] | None = None) -> EvidenceOf:
    """sizes: test and training images of splits, where each seed has a split of its own."""
    return functools.cache(lambda c, K: sequential.analysed(values_AKN[c + 1, :K] - values_AKN[0, :K], sizes))


# Studies


def events(evidence: EvidenceOf, truth_C: Sequence[float]) -> dict[str, float | None]:
    """What happened in a study whose candidates are better by ``truth_C`` points."""
    ended = looked_at(partial(by_arrays, evidence), len(truth_C))
    first = ended.evidence_C[0].interval
    pairs = list(zip(ended.verdict_C, truth_C, strict=True))
    same = [v == Verdict.EQUIVALENT or v.negligible for v in ended.verdict_C]
    margins = [said for said, truth in zip(same, truth_C, strict=True) if abs(truth) / 100 >= ROPE]
    equal = [v == Verdict.EQUIVALENT for v, truth in pairs if not truth]
    better = [v.word == Verdict.BETTER for v, truth in pairs if truth > 0]
    return {
        FALSE: any(v.significant and not (v.word == Verdict.BETTER and truth > 0) for v, truth in pairs),
        SAME: any(margins) if margins else None,
        HOLDS: None if math.isnan(first.low) else first.low <= truth_C[0] / 100 <= first.high,
        FOUND: sum(better) / len(better) if better else None,
        EQUAL: sum(equal) / len(equal) if equal else None,
        OPEN: sum(v == Verdict.INCONCLUSIVE for v in ended.verdict_C) / len(pairs),
        RUNS: ended.runs,
    }


def fixed_design(K: int) -> str:
    return f"found with {K} seeds"


def fixed_designs(D_CKN: np.ndarray, truth_C: Sequence[float]) -> dict[str, float]:
    """The share of better candidates that each fixed design calls better: `segexp.compare.statistics.two_way` for the
    first 3, 4, ... seeds at once."""
    N = D_CKN.shape[2]
    k = np.arange(1, LAST + 1)
    row_CK, column_CKN = D_CKN.mean(axis=2), D_CKN.cumsum(axis=1) / k[:, None]
    mean_CK = column_CKN.mean(axis=2)
    seeds_CK = N * ((row_CK**2).cumsum(axis=1) - k * mean_CK**2)
    images_CK = k * ((column_CKN - mean_CK[..., None]) ** 2).sum(axis=2)
    rest_CK = (D_CKN**2).sum(axis=2).cumsum(axis=1) - k * N * mean_CK**2 - seeds_CK - images_CK
    several = slice(FEWEST_SEEDS - 1, None)
    k, mean_CK = k[several], mean_CK[:, several]
    ms = seeds_CK[:, several] / (k - 1), images_CK[:, several] / (N - 1), rest_CK[:, several] / ((k - 1) * (N - 1))
    se_CK, df_CK = stats.standard_error(*ms, np.broadcast_to(k, mean_CK.shape), N)
    p_CK = 2 * stdtr(df_CK, -abs(mean_CK) / se_CK)
    called_CK = np.array([stats.holm(p_C) < ALPHA for p_C in p_CK.T]).T & (mean_CK > 0)
    share_K = called_CK[np.array(truth_C) > 0].mean(axis=0)
    return {fixed_design(int(K)): float(share) for K, share in zip(k, share_K, strict=True)}


def looks_study(rng: Rng, made: Callable[..., np.ndarray | list[Run]], C: int, **design: int) -> Events:
    """No candidate is better. made(rng, A, K, **design): scores in points, or runs."""
    data = made(rng, C + 1, LAST, **design)
    return events(of_values(data / 100 if isinstance(data, np.ndarray) else values_of(data)), [0] * C)


def effect_study(rng: Rng, N: int, truth_C: Sequence[float], sds: Sequence[float] = rates.USUAL) -> Events:
    scores = points(rng, len(truth_C) + 1, LAST, N, sds)
    scores[1:] += np.reshape(truth_C, (-1, 1, 1))
    found = events(of_values(scores / 100), truth_C)
    return found | fixed_designs((scores[1:] - scores[0]) / 100, truth_C) if any(truth_C) else found


def splits_study(rng: Rng) -> Events:
    """Splits are looked at, one seed in each."""
    orders = [rng.permutation(40) for _ in range(LAST)]
    scores = rates.learned_scores(rng, [(order[:24], order[32:]) for order in orders], 1)
    return events(of_values(np.concatenate(scores, axis=1) / 100, (8, 24)), [0])


def skewed(rng: Rng, A: int, K: int, N: int, share: float, loss: float, of_seeds: bool) -> np.ndarray:
    """A is 2."""
    return rates.skewed(rng, K, N, share, loss, of_seeds)[0]


def classes(rng: Rng, A: int, K: int, N: int) -> list[Run]:
    scores, held_NF = rates.class_scores(rng, A, N, K)
    return rates.runs_of(scores, held_NF=held_NF)


# Tables


def unequal() -> list[Setting]:
    """No arm is better: any wrong "better" or "worse", whether the interval of the first candidate where it stopped
    holds 0, undecided comparisons, and runs, in brackets as a share of all arms with 27 seeds.
    """
    required: dict[str, Bounds] = {FALSE: (0, ALPHA), HOLDS: (1 - ALPHA, 1)}
    other: dict[str, Bounds] = dict.fromkeys((EQUAL, OPEN, RUNS))
    titles: list[tuple[str, Callable[..., np.ndarray | list[Run]], Sequence[int]]] = [
        ("normal, {N} images", points, (30, 100)),
        ("heavy tails (t, 2.5 degrees of freedom), {N} images", heavy, (30, 100)),
        ("ties near 1, 2 % failures, {N} images", rates.ties, (30, 100)),
        ("70 % empty masks, {N} images", rates.empty_masks, (30, 100)),
        ("3 classes, a rare one in 20 % of {N} images", classes, (30, 100)),
        ("20 patients of 1 to 30 slices, grouped", rates.patients, ()),
    ]
    settings = []
    for title, made, sizes in titles:
        for design in [{"N": N} for N in sizes] or [{}]:
            for C in (1, 5):
                name = title.format(**design) + f", {of_candidates(C)}"
                settings.append(setting(name, required | other, looks_study, made=made, C=C, **design))
    settings.append(setting(f"real learners, splits, {of_candidates(1)}", required | other, splits_study))
    none: dict[str, Bounds] = dict.fromkeys(required)
    losses = "{share:.0%} of {what} lose {loss} points, {N} images, 1 candidate"
    for N, share, loss, of_seeds in ((30, 0.05, 20, False), (100, 0.02, 40, False), (100, 0.1, 10, True)):
        failing = {"N": N, "share": share, "loss": loss, "of_seeds": of_seeds}
        name = losses.format(what="seeds" if of_seeds else "images", **failing)
        settings.append(setting(name, none | other, looks_study, made=skewed, C=1, **failing))
    return settings


def heavy(rng: Rng, A: int, K: int, N: int) -> np.ndarray:
    return points(rng, A, K, N, noise=partial(rates.student, df=2.5))


def of_candidates(C: int) -> str:
    return "1 candidate" if C == 1 else f"{C} candidates"


def equivalences() -> list[Setting]:
    """Arms that vary little (0.2, 0.6 and 2 points from seed to seed, image to image and for the rest). All candidates
    are better by the margin of 1 point, by half of it, or equal: any called equivalent or negligible although its
    difference is the margin, and equal candidates called equivalent.
    """
    required: dict[str, Bounds] = {FALSE: (0, ALPHA), SAME: (0, ALPHA), HOLDS: (1 - ALPHA, 1)}
    required |= dict.fromkeys((EQUAL, OPEN, RUNS))
    return [
        setting("{truth} points, {N} images, " + of_candidates(C), required, margin_study, truth=d, C=C, N=N)
        for d in (1, 0.5, 0)
        for N in (30, 100)
        for C in (1, 5)
    ]


def margin_study(rng: Rng, truth: float, C: int, N: int) -> Events:
    return effect_study(rng, N, [truth] * C, rates.STABLE)


def savings() -> list[Setting]:
    """Better candidates, by ROPEs of 1 point; "found" is their share called better. "Fixed" are the runs of the
    smallest design without looks that finds as many (all seeds at once, Holm), "saved" the share of them that is not
    run, below 0 where looks take more.
    """
    required: dict[str, Bounds] = {FALSE: (0, ALPHA), SAME: (0, ALPHA), HOLDS: (1 - ALPHA, 1), FOUND: None, OPEN: None}
    required |= {RUNS: None, **{fixed_design(K): None for K in range(FEWEST_SEEDS, LAST + 1)}}
    who = {"1 candidate": [1], "5 candidates, 1 better": [1, 0, 0, 0, 0], "5 candidates, all better": [1] * 5}
    return [
        setting(
            f"{d} ROPE{'s' * (d > 1)}, {{N}} images, {name}", required, effect_study, N=N, truth_C=[d * t for t in of]
        )
        for N in (30, 100)
        for name, of in who.items()
        for d in (1, 2, 3)
    ]


TABLES: Mapping[str, Callable[[], list[Setting]]] = {
    "looks, no difference": unequal,
    "looks, equivalence": equivalences,
    "looks, differences": savings,
}


def markdown(table: str, rows: Sequence[Row]) -> str:
    """A table: a line per setting. What is only printed is a mean."""
    lines = []
    for name in dict.fromkeys(row.setting for row in rows):
        of = {row.what: row for row in rows if row.setting == name}
        line = {"setting": name}
        for what in (FALSE, SAME, HOLDS):
            if what in of:
                heading = f"{what}, {next(rates.shown_bounds(r.required) for r in rows if r.what == what)}"
                line[heading] = rates.shown_rate(of[what]) + (", not required" if of[what].required is None else "")
        line |= {what: f"{of[what].rate:.2f}" if of[what].n else "-" for what in (FOUND, EQUAL, OPEN) if what in of}
        runs, C = of[RUNS].rate, 5 if "5 candidates" in name else 1
        if FOUND in of:
            line[RUNS] = f"{runs:.1f}"
            K = equal_design(of)
            fixed = (C + 1) * K
            line |= {"fixed": f"{fixed} ({K} seeds)", "saved": f"{1 - runs / fixed:.0%}"}
        else:
            line[RUNS] = f"{runs:.1f} ({runs / (LAST * (C + 1)):.0%})"
        lines.append(line)
    return rates.titled(table, TABLES[table].__doc__, lines)


def equal_design(of: Mapping[str, Row]) -> int:
    """Seeds of the smallest fixed design that finds as many."""
    return next(K for K in range(FEWEST_SEEDS, LAST + 1) if of[fixed_design(K)].rate >= of[FOUND].rate or K == LAST)


if __name__ == "__main__":
    sys.exit(rates.main(__doc__, TABLES, markdown, MARKS, REPETITIONS))
