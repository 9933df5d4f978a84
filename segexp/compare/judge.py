"""Claims held against runs: supported, refuted, undetermined, or no data, and what it would take to decide.

What decides is p after Holm's adjustment over all that a file has judged, from the test that a verdict of compare rests
on. "beats by at least d" is tested two-sided against a difference of d: supported when the difference is beyond,
refuted when it is short of d; "loses to" likewise the other way round. "matches within d" is supported by two one-sided
tests that the difference is inside +-d, refuted by the test that it is outside. All else is undetermined. Before the
adjustment p < 5 % is the same as a 95 % interval (for "matches" a 90 % one inside) that lies wholly on one side.

A claim that names no data set is held against each, and where there are several against all of them together, one
difference each; what is over data sets is a family of its own for Holm, as it is in compare.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from segexp.compare.cases import Case, cases_of
from segexp.compare.claims import Claim
from segexp.compare.datasets import can_rank, wilcoxon_p
from segexp.compare.formatting import amount, p_value
from segexp.compare.result import Comparison, Interval, OverDatasets, Result
from segexp.compare.statistics import ALPHA, by_datasets, by_runs, holm

SUPPORTED, REFUTED, UNDETERMINED, NO_DATA = "supported", "refuted", "undetermined", "no data"


@dataclass(frozen=True)
class Judged:
    """A claim held against one comparison, or against the differences of several data sets.

    where: data set and conditions; reason: why this is the outcome. scope: what the interval speaks of; interval:
    candidate - reference in the metric's own unit, None where there is no data. p: of what the difference points to,
    that the claim holds or that it does not; p_holm: adjusted over all of its kind in the file, and what the outcome
    rests on. n_datasets: 0 for a comparison on one. to_decide: what would decide it, "" where it is decided. warnings:
    of the comparison, what was left out of it among them; of_runs: of its block, and of all that was read.
    """

    claim: Claim
    outcome: str
    reason: str
    where: str = ""
    candidate: str = ""
    reference: str = ""
    scope: str = ""
    interval: Interval | None = None
    p: float = math.nan
    p_holm: float = math.nan
    n_seeds: int = 0
    n_folds: int = 0
    n_images: int = 0
    n_datasets: int = 0
    to_decide: str = ""
    warnings: tuple[str, ...] = ()
    of_runs: tuple[str, ...] = ()


def judge_claims(
    claims: Sequence[Claim], compare: Callable[..., Result], where: Mapping[str, str] | None = None
) -> list[Judged]:
    """Every claim against the runs: one judgement for each comparison that speaks to it, that over data sets first.

    compare is asked once a claim: compare(metric="dice", by=("activation",), reference="activation=sigmoid",
    where={"loss": "dice"}), and again where the reference has options. What it cannot answer (UsageError) is "no data",
    with its reason. where: only runs with these values, for all claims; one of other runs is "no data".
    """
    return _together([case for claim in claims for case in cases_of(claim, compare, where or {})])


def judge(claim: Claim, comparison: Comparison, where: str = "") -> Judged:
    """The claim against one comparison of its candidate with its reference, alone."""
    (judged,) = _together([Case(claim, comparison, where)])
    return judged


@dataclass(frozen=True)
class _Test:
    """p of what the difference points to: that the claim holds, or (``holds`` False) that it does not; NaN for no test.
    ranked: by signed ranks of data sets."""

    p: float
    holds: bool
    ranked: bool


def _together(cases: Sequence[Case]) -> list[Judged]:
    """All cases judged, those of each kind with Holm's adjustment over all of them."""
    judged = {n: Judged(case.claim, NO_DATA, case.why_none) for n, case in enumerate(cases)}
    for kind in (Comparison, OverDatasets):
        family = {n: case for n, case in enumerate(cases) if isinstance(case.found, kind)}
        ranked = _rankable([case.found for case in family.values()])
        tests = [_test(case, ranked) for case in family.values()]
        adjusted = holm([test.p for test in tests])
        among = sum(not math.isnan(p) for p in adjusted)
        for (n, case), test, p_holm in zip(family.items(), tests, adjusted, strict=True):
            judged[n] = _judged(case, test, float(p_holm), among)
    return [judged[n] for n in range(len(cases))]


def _rankable(family: Sequence[Comparison | OverDatasets | None]) -> bool:
    """Whether signed ranks of so many data sets can be significant after Holm; else it is Student's t over them."""
    sizes = [len(found.differences) for found in family if isinstance(found, OverDatasets)]
    return bool(sizes) and can_rank(len(sizes), min(sizes))


def _test(case: Case, ranked: bool) -> _Test:
    """The test of a claim, for it and against it, each two-sided at its margin or by two one-sided tests."""
    if math.isnan(case.interval.p) or not case.interval.se > 0:
        return _Test(math.nan, False, ranked)
    d = case.claim.margin
    if case.claim.relation == "matches":
        inside = max(_one_sided(case, -d, 1, ranked), _one_sided(case, d, -1, ranked))
        outside = 2 * min(_one_sided(case, d, 1, ranked), _one_sided(case, -d, -1, ranked))
        return _Test(min(inside, outside, 1.0), inside < outside, ranked)
    sign = _oriented(case.claim)
    beyond, short = (2 * _one_sided(case, sign * d, way, ranked) for way in (sign, -sign))
    return _Test(min(beyond, short, 1.0), beyond < short, ranked)


def _one_sided(case: Case, value: float, sign: int, ranked: bool) -> float:
    """p of the test that the difference is above ``value`` (sign 1) or below it (-1)."""
    import numpy as np
    from scipy.special import stdtr

    if ranked and isinstance(case.found, OverDatasets):
        return wilcoxon_p(sign * (np.array(list(case.found.differences.values())) - value), "greater")
    interval = case.interval
    return float(stdtr(interval.df, -sign * (interval.mean - value) / interval.se))


def _oriented(claim: Claim) -> int:
    """1 or -1: by what a difference is multiplied to be positive where the claim would have it."""
    return (1 if claim.metric.higher_is_better else -1) * (-1 if claim.relation == "loses to" else 1)


def _judged(case: Case, test: _Test, p_holm: float, among: int) -> Judged:
    """A case with its outcome. among: how many of its kind were tested."""
    found, interval = case.found, case.interval
    assert found is not None
    outcome, reason = _outcome(case, test, p_holm, among)
    undecided, level = outcome == UNDETERMINED, ALPHA / max(among, 1)
    judged = Judged(
        claim=case.claim,
        outcome=outcome,
        reason=reason,
        where=case.where,
        candidate=found.candidate,
        reference=found.reference,
        interval=interval,
        p=test.p,
        p_holm=p_holm,
        warnings=found.warnings,
        of_runs=case.of_runs,
    )
    if isinstance(found, OverDatasets):
        n = len(found.differences)
        needed = by_datasets(interval, n, _gap(case), level) if undecided else ""
        return dataclasses.replace(judged, scope="new data sets", n_datasets=n, to_decide=needed)
    return dataclasses.replace(
        judged,
        scope=found.scope,
        n_seeds=found.n_seeds,
        n_folds=found.n_folds,
        n_images=found.n_images,
        to_decide=by_runs(found, _gap(case), level) if undecided else "",
        warnings=(*found.warnings, *([f"not compared: {found.dropped}"] if found.dropped else [])),
    )


def _gap(case: Case) -> float:
    """How far the difference is from the margin, 0 where that is rounding, NaN where there is no test."""
    claim, mean = case.claim, case.interval.mean
    if math.isnan(case.interval.p):
        return math.nan
    measured = abs(mean) if claim.relation == "matches" else _oriented(claim) * mean
    gap = abs(measured - claim.margin)
    return gap if gap > 1e-9 * max(abs(mean), claim.margin) else 0.0


def _outcome(case: Case, test: _Test, p_holm: float, among: int) -> tuple[str, str]:
    """The outcome, and why."""
    claim, interval = case.claim, case.interval
    if interval.p == 1 and interval.se == 0:
        same = "every score is the same in both"
        return (SUPPORTED if claim.relation == "matches" else REFUTED), same
    if math.isnan(test.p):
        assert case.found is not None
        return UNDETERMINED, next(iter(case.found.warnings), "there is no test")
    if p_holm < ALPHA:
        return (SUPPORTED if test.holds else REFUTED), _decided(case, test)
    if test.p < ALPHA:
        alone = "holds alone" if test.holds else "is refuted alone"
        kind = " over data sets" if isinstance(case.found, OverDatasets) else ""
        return (
            UNDETERMINED,
            f"{alone} (p {p_value(test.p)}), not among the {among} claims judged{kind} (Holm p {p_value(p_holm)})",
        )
    return UNDETERMINED, _undecided(claim, test)


def _decided(case: Case, test: _Test) -> str:
    """Why a claim is supported or refuted."""
    claim, size = case.claim, amount(case.claim.metric, case.claim.margin, signed=False)
    at = "90" if claim.relation == "matches" and test.holds else "95"
    which = "by signed ranks the difference is" if test.ranked else f"the whole {at} % interval is"
    if claim.relation == "matches":
        return f"{which} {'within' if test.holds else 'outside'} {size}"
    what, other = ("loss", "gain") if claim.relation == "loses to" else ("gain", "loss")
    if test.holds:
        return f"{which} a {what}" + (f" of more than {size}" if claim.margin else "")
    return f"{which} short of a {what} of {size}" if claim.margin else f"{which} a {other}"


def _undecided(claim: Claim, test: _Test) -> str:
    """Why a claim is neither, though it was tested."""
    size = amount(claim.metric, claim.margin, signed=False)
    which = "by signed ranks the difference" if test.ranked else "the interval"
    if claim.relation == "matches":
        return f"{which} may be within {size} or outside"
    what = f"a {'loss' if claim.relation == 'loses to' else 'gain'} of {size}" if claim.margin else "0"
    return f"{which} may lie on either side of {what}"
