"""What speaks to a claim: the comparisons of its arms, and that over data sets; or why there is none."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from segexp.compare.blocks import canonical, values_in
from segexp.compare.claims import Claim
from segexp.compare.result import Block, Comparison, Interval, OverDatasets, Result
from segexp.errors import UsageError
from segexp.records.formatting import pluralize


@dataclass(frozen=True)
class Case:
    """A claim beside what was found of it, a comparison or a difference over data sets; or why there is nothing."""

    claim: Claim
    found: Comparison | OverDatasets | None
    where: str = ""
    of_runs: tuple[str, ...] = ()
    why_none: str = ""

    @property
    def interval(self) -> Interval:
        assert self.found is not None
        return self.found.deciding if isinstance(self.found, Comparison) else self.found.interval


def cases_of(claim: Claim, compare: Callable[..., Result], where: Mapping[str, str]) -> Iterator[Case]:
    """What there is to hold the claim against, that over data sets first; one case without anything where nothing is.

    compare is asked as in `judge_claims`; where: only runs with these values.
    """
    refused = _contradiction(claim, where)
    if refused:
        yield Case(claim, None, why_none=refused)
        return
    try:
        results = _asked(claim, compare, where)
    except UsageError as error:
        yield Case(claim, None, why_none=str(error))
        return
    cases = [case for result in results for case in _met(claim, result)]
    yield from cases or [Case(claim, None, why_none=_why_none(claim, results[0]))]


def _contradiction(claim: Claim, where: Mapping[str, str]) -> str:
    """Why runs with these values alone say nothing of the claim, "" where they may."""
    for key, value in where.items():
        name = key.removesuffix(".name")
        for levels in (claim.under, claim.candidate, claim.reference):
            if name in levels and not any(
                canonical(name, one, [levels[name]]) == levels[name] for one in values_in(value, [levels[name]])
            ):
                return f"--where {key}={value} leaves out the runs with {name}={levels[name]}"
    return ""


def _asked(claim: Claim, compare: Callable[..., Result], where: Mapping[str, str]) -> list[Result]:
    """What compare says of the claim: one result, or one for each reference that has the claim's levels and options
    ("sigmoid slope=2" is sigmoid too). Without such a reference the result of all arms, to tell why."""
    question = {"metric": claim.metric.name, "by": tuple(claim.candidate), "where": {**where, **claim.under}}
    try:
        return [compare(**question, reference=_pairs(claim.reference))]
    except UsageError:
        of_all = compare(**question, reference=None)
    levels = [score.levels for block in of_all.blocks for score in block.ranking if _is(score.levels, claim.reference)]
    references = dict.fromkeys(_pairs({key: level[key] for key in claim.reference}) for level in levels)
    return [compare(**question, reference=reference) for reference in references] or [of_all]


def _met(claim: Claim, result: Result) -> Iterator[Case]:
    """What a result has of the claim's arms, both with a score, on its data set: that over data sets first."""
    for over in result.over_datasets if not claim.dataset else ():
        if _speaks_to(claim, over, result.blocks):
            conditions = "".join(f", {key}={value}" for key, value in over.conditions.items())
            title = f"{pluralize(len(over.differences), 'data set')}{conditions}"
            yield Case(claim, over, title, _of_runs(claim, result, result.blocks))
    for block in _blocks(claim, result):
        for comparison in block.comparisons:
            if _speaks_to(claim, comparison, [block]):
                yield Case(claim, comparison, block.title, _of_runs(claim, result, [block]))


def _speaks_to(claim: Claim, found: Comparison | OverDatasets, blocks: Sequence[Block]) -> bool:
    levels = {score.arm: score.levels for block in blocks for score in block.ranking if score.n_seeds}
    candidate, reference = levels.get(found.candidate, {}), levels.get(found.reference, {})
    return _is(candidate, claim.candidate) and _is(reference, claim.reference)


def _blocks(claim: Claim, result: Result) -> list[Block]:
    return [block for block in result.blocks if claim.dataset in ("", block.dataset)]


def _of_runs(claim: Claim, result: Result, blocks: Sequence[Block]) -> tuple[str, ...]:
    """The warnings of what was read and of these blocks, which say their names where there are several, and under which
    of a claim's conditions they hold."""
    under = [f"under {_pairs(claim.under)}"] if claim.under else []
    told = []
    for block in blocks:
        of_what = ", ".join([*([block.title] if len(result.blocks) > 1 else []), *under])
        told += [f"{of_what}: {warning}" if of_what else warning for warning in block.warnings]
    return (*result.warnings, *told)


def _is(levels: Mapping[str, str], asked: Mapping[str, str]) -> bool:
    """Whether an arm has the levels that are asked for; one with options ("arctan slope=2") is arctan too."""
    return all(f"{levels.get(key, '')} ".startswith(f"{value} ") for key, value in asked.items())


def _why_none(claim: Claim, result: Result) -> str:
    """Why no comparison speaks to the claim."""
    blocks = _blocks(claim, result)
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
