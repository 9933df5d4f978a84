"""Claims held against runs: supported, refuted, undetermined, or no data, and what it would take to decide.

What decides is the interval that a verdict of compare rests on. "beats by at least d" is supported when the whole 95 %
interval is at or beyond d, refuted when all of it is short of d; "loses to" likewise the other way round. "matches
within d" is supported when the 90 % interval is inside +-d (two one-sided tests at 5 %), refuted when the whole 95 %
interval is outside. All else is undetermined.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segexp.compare.claims import Claim, read_claims
from segexp.compare.headline import amount
from segexp.compare.paired import ALPHA, FEWEST_SEEDS, TwoWay, holm
from segexp.compare.power import MOST, images_needed, noncentrality, seeds_needed
from segexp.compare.result import OVER_FOLDS, Block, Comparison, Interval, Result
from segexp.errors import UsageError

SUPPORTED, REFUTED, UNDETERMINED, NO_DATA = "supported", "refuted", "undetermined", "no data"


@dataclass(frozen=True)
class Judged:
    """A claim held against one comparison. where: its data set and conditions; reason: why this is the outcome.

    scope: what the interval speaks of; interval: candidate - reference in the metric's own unit, None where there is no
    data. p: of a difference of exactly the margin (two-sided), or for "matches" the larger of two one-sided tests;
    p_holm: adjusted over all judgements of the file. to_decide: what would decide it, "" where it is decided.
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
    to_decide: str = ""
    warnings: tuple[str, ...] = ()


def judge_claims(path: Path, compare: Callable[..., Result]) -> list[Judged]:
    """Every claim of a file against the runs: one judgement for each comparison that speaks to it.

    compare is asked once a claim: compare(metric="dice", by=("activation",), reference="activation=sigmoid",
    where={"loss": "dice"}). What it cannot answer (UsageError) is "no data", with its reason. Raises UsageError for a
    file that is none of claims, naming the line.
    """
    import numpy as np

    judged = [j for claim in read_claims(path) for j in _against_runs(claim, compare)]
    adjusted = holm(np.array([j.p for j in judged]))
    return [dataclasses.replace(j, p_holm=float(p)) for j, p in zip(judged, adjusted, strict=True)]


def _against_runs(claim: Claim, compare: Callable[..., Result]) -> Iterator[Judged]:
    """A judgement for each comparison that speaks to the claim; one of "no data" where there is none."""
    asked = {"by": tuple(claim.candidate), "reference": _pairs(claim.reference), "where": dict(claim.under)}
    try:
        result = compare(metric=claim.metric.name, **asked)
    except UsageError as error:
        yield Judged(claim, NO_DATA, str(error))
        return
    blocks = [block for block in result.blocks if claim.dataset in ("", block.dataset)]
    met = [
        (block, comparison) for block in blocks for comparison in block.comparisons if _meets(claim, block, comparison)
    ]
    for block, comparison in met:
        yield judge(claim, comparison, block.title)
    if not met:
        yield Judged(claim, NO_DATA, _why_none(claim, result, blocks))


def _meets(claim: Claim, block: Block, comparison: Comparison) -> bool:
    """Whether the comparison is of the claim's arms, and both have a score."""
    levels = {score.arm: score.levels for score in block.ranking if score.n_seeds}
    return _is(levels.get(comparison.candidate, {}), claim.candidate) and _is(
        levels.get(comparison.reference, {}), claim.reference
    )


def _is(levels: Mapping[str, str], asked: Mapping[str, str]) -> bool:
    """Whether an arm has the levels that are asked for; one with options ("arctan slope=2") is arctan too."""
    return all(f"{levels.get(key, '')} ".startswith(f"{value} ") for key, value in asked.items())


def _why_none(claim: Claim, result: Result, blocks: Sequence[Block]) -> str:
    """Why no comparison speaks to the claim."""
    if not blocks:
        found = ", ".join(dict.fromkeys(block.dataset for block in result.blocks))
        return f"no runs on data set {claim.dataset}" + (f", only on {found}" if found else "")
    for arm in (claim.candidate, claim.reference):
        if not any(_is(score.levels, arm) and score.n_seeds for block in blocks for score in block.ranking):
            under = f" under {_pairs(claim.under)}" if claim.under else ""
            return f"no scored run of {_pairs(arm)}{under}"
    return "both arms have runs, but none under equal conditions"


def _pairs(levels: Mapping[str, str]) -> str:
    return ",".join(f"{key}={value}" for key, value in levels.items())


def judge(claim: Claim, comparison: Comparison, where: str = "") -> Judged:
    """The claim against one comparison of its candidate with its reference."""
    interval = comparison.deciding
    outcome, reason = _outcome(claim, interval)
    if outcome == UNDETERMINED and math.isnan(interval.p):
        reason = next(iter(comparison.warnings), reason)
    return Judged(
        claim=claim,
        outcome=outcome,
        reason=reason,
        where=where,
        candidate=comparison.candidate,
        reference=comparison.reference,
        scope=comparison.scope,
        interval=interval,
        p=_p(claim, interval),
        n_seeds=comparison.n_seeds,
        n_folds=comparison.n_folds,
        n_images=comparison.n_images,
        to_decide=_to_decide(claim, comparison, interval) if outcome == UNDETERMINED else "",
        warnings=comparison.warnings,
    )


def _over_images(comparison: Comparison) -> bool:
    return not math.isnan(comparison.overall.mean)


def _oriented(claim: Claim) -> int:
    """1 or -1: by what a difference is multiplied to be positive where the claim would have it."""
    return (1 if claim.metric.higher_is_better else -1) * (-1 if claim.relation == "loses to" else 1)


def _outcome(claim: Claim, interval: Interval) -> tuple[str, str]:
    if math.isnan(interval.p):
        return UNDETERMINED, "there is no test"
    d, size = claim.margin, amount(claim.margin, claim.metric, signed=False)
    if claim.relation == "matches":
        if -d <= interval.low90 and interval.high90 <= d:
            return SUPPORTED, f"the 90 % interval lies within {size}"
        if interval.low > d or interval.high < -d:
            return REFUTED, f"the 95 % interval lies wholly outside {size}"
        return UNDETERMINED, f"the intervals lie partly within {size}, partly outside"
    low, high = sorted(_oriented(claim) * end for end in (interval.low, interval.high))
    at = f"a gain of {size}" if d else "no gain"
    if low >= d and low > 0:
        return SUPPORTED, f"the 95 % interval lies wholly beyond {at}"
    if high < d:
        return REFUTED, f"the 95 % interval lies wholly short of {at}"
    if high <= 0:
        return REFUTED, "no part of the 95 % interval is a gain"
    return UNDETERMINED, f"the 95 % interval lies on both sides of {at}"


def _p(claim: Claim, interval: Interval) -> float:
    """The p that belongs to the claim; NaN where there is no test, or nothing varies."""
    from scipy.special import stdtr

    if math.isnan(interval.p) or not interval.se > 0:
        return math.nan
    if claim.relation == "matches":
        return float(stdtr(interval.df, (abs(interval.mean) - claim.margin) / interval.se))
    beyond = _oriented(claim) * interval.mean - claim.margin
    return 2 * float(stdtr(interval.df, -abs(beyond) / interval.se))


def _to_decide(claim: Claim, comparison: Comparison, interval: Interval) -> str:
    """What would decide an undetermined claim with 80 % power, should the difference stay what it is."""
    if comparison.method == OVER_FOLDS:
        return f"{FEWEST_SEEDS} seeds or more in every fold" if comparison.n_seeds < FEWEST_SEEDS else "unknown"
    if comparison.n_seeds < FEWEST_SEEDS:
        return f"{FEWEST_SEEDS} seeds at the least, there are {comparison.n_seeds}"
    mean = abs(interval.mean) if claim.relation == "matches" else _oriented(claim) * interval.mean
    gap = abs(mean - claim.margin)
    if math.isnan(interval.p) or not interval.se > 0:
        return "unknown"
    if gap <= 1e-9 * max(abs(mean), claim.margin):
        return "nothing: the difference is the very margin"
    K, N = comparison.n_seeds, len(comparison.units)
    if not _over_images(comparison):
        seeds = _seeds_alone(interval, K, gap)
        return f"about {seeds} seeds, there are {K}" if seeds else f"more than {MOST} seeds"
    units = "images" if comparison.n_images == N else "groups of images"
    seeds = _number(seeds_needed(_design(comparison, K), gap))
    if seeds:
        # Power is a forecast: by it as many seeds as there are might have done.
        return f"about {max(seeds, K + 1)} seeds, there are {K}"
    for times in (1, 2, 4, 8):
        images = _number(images_needed(_design(comparison, times * K), gap))
        if images:
            return (
                f"no number of seeds decides it on these {N} {units}: about {images} {units} with {times * K} seeds do"
            )
    return f"more than {MOST} {units} with {8 * K} seeds: the difference is too close to the margin"


def _number(needed: float | None) -> int:
    """A number of seeds or images; 0 where none does, or none is known."""
    return int(needed) if needed is not None and math.isfinite(needed) else 0


def _design(comparison: Comparison, n_seeds: int) -> TwoWay:
    """The analysis that ``n_seeds`` would give if the components of variance are what they were found to be."""
    seed, image, residual = (comparison.variance[part] for part in ("seed", "image", "residual"))
    N = len(comparison.units)
    return TwoWay(comparison.overall, residual + N * seed, residual + n_seeds * image, residual, n_seeds, N)


def _seeds_alone(interval: Interval, n_seeds: int, gap: float) -> int | None:
    """The fewest seeds that find ``gap`` where seeds alone vary."""
    import numpy as np

    sizes = np.arange(n_seeds + 1, MOST + 1)
    found = sizes[gap >= noncentrality(sizes - 1) * interval.se * np.sqrt(n_seeds / sizes)]
    return int(found[0]) if len(found) else None


def note(judged: Sequence[Judged]) -> str:
    """What must be known to read the outcomes together."""
    tested = sum(not math.isnan(j.p) for j in judged)
    if not tested:
        return "No claim could be tested."
    return (
        f'Each outcome stands by itself, at its own 95 % interval (90 % for "matches"); p Holm is adjusted over the '
        f"{tested} that {'was' if tested == 1 else 'were'} tested: below {ALPHA} it would hold among all of them."
    )


def table_rows(judged: Sequence[Judged]) -> list[dict[str, Any]]:
    """A row per judgement for the terminal, plain text."""
    return [_row(j) for j in judged]


def _row(j: Judged) -> dict[str, Any]:
    metric, interval, scale = j.claim.metric, j.interval, 100 if j.claim.metric.points else 1
    form = ".2f" if metric.points else ".3g"
    known = interval is not None and not math.isnan(interval.mean)
    tested = interval is not None and not math.isnan(interval.low)
    return {
        "claim": j.claim.text,
        "on": j.where or "-",
        "outcome": j.outcome,
        "difference": amount(interval.mean, metric) if known and interval else "-",
        "95 %": f"[{scale * interval.low:{form}}, {scale * interval.high:{form}}]" if tested and interval else "-",
        "speaks of": j.scope or "-",
        "p": _plain(j.p),
        "p Holm": _plain(j.p_holm),
        "seeds x images": _sizes(j) if interval else "-",
        "why, and what would decide": j.reason + (f"; to decide: {j.to_decide}" if j.to_decide else ""),
        "warnings": "; ".join(j.warnings) or "-",
    }


def _sizes(j: Judged) -> str:
    """5 x 60, or with folds, which are no seeds, 1 x 5 folds x 60."""
    return f"{j.n_seeds} x {f'{j.n_folds} folds x ' if j.n_folds else ''}{j.n_images or '-'}"


def _plain(p: float) -> str:
    return "-" if math.isnan(p) else f"{p:.3g}"


def json_form(judged: Sequence[Judged]) -> list[dict[str, Any]]:
    """The judgements as strict JSON holds them: NaN is null, values in the metric's own unit."""
    return [_json(j) for j in judged]


def _json(j: Judged) -> dict[str, Any]:
    claim = j.claim

    def number(value: float) -> float | None:
        return value if math.isfinite(value) else None

    interval = dataclasses.asdict(j.interval) if j.interval else None
    return {
        "claim": claim.text,
        "source": claim.source,
        "line": claim.line,
        "metric": claim.metric.name,
        "margin": claim.margin,
        "outcome": j.outcome,
        "reason": j.reason,
        "where": j.where,
        "candidate": j.candidate,
        "reference": j.reference,
        "scope": j.scope,
        "interval": {key: number(value) for key, value in interval.items()} if interval else None,
        "p": number(j.p),
        "p_holm": number(j.p_holm),
        "n_seeds": j.n_seeds,
        "n_folds": j.n_folds,
        "n_images": j.n_images,
        "to_decide": j.to_decide,
        "warnings": list(j.warnings),
    }
