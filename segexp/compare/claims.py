"""Claims: what a YAML file says the runs should show (format: configs/claims/nieradzik2021.yaml), tested on the runs.

"better" by a margin d is tested two-sided against a difference of d: supported when the difference is beyond d, refuted
when it is short of d; "worse" with the opposite sign. "equivalent" is supported by two one-sided tests that the
difference is inside +-d, and refuted by the test that it is outside. Anything else is undetermined. Outcomes use p
after Holm's adjustment over all results of the file. Before it, p < 5 % means that the 95 % interval (to support
"equivalent": the 90 % interval) lies wholly on one side.

A claim without a data set is evaluated on each data set and, where there are several, over all of them with one
difference per data set. Results over data sets are a family of their own for Holm's adjustment.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from segexp.compare.blocks import canonical, values_in
from segexp.compare.comparisons import condition_of
from segexp.compare.datasets import across_alone, can_rank, wilcoxon_p
from segexp.compare.formatting import amount, p_value
from segexp.compare.result import ALPHA, Block, Comparison, Interval, Metric, OverDatasets, Result
from segexp.compare.scorer import metric_of
from segexp.compare.statistics import by_datasets, by_runs, equivalence, holm, one_sided
from segexp.config import CODE_GROUPS, alias_target
from segexp.errors import UsageError
from segexp.records.files import yaml_root
from segexp.records.formatting import pairs, pluralize
from segexp.registry import nearest

REQUIRED = ("candidate", "reference", "metric", "relation")
KEYS = (*REQUIRED, "margin", "where", "source")
VERBS = {"better": "beats", "worse": "loses to", "equivalent": "matches"}

EXAMPLE = "- {candidate: loss=dice, reference: loss=ce, metric: dice, relation: better, margin: 1 point}"
_SENTENCE = re.compile(r"([^\s,]+) beats ([^\s,]+) on (\w+) under ([^\s,]+)(?: by at least ([\d.]+(?: points?)?))?")
"""A claim as claims were written before."""

SUPPORTED, REFUTED, UNDETERMINED, NO_DATA = "supported", "refuted", "undetermined", "no data"


@dataclass(frozen=True)
class Claim:
    """One claim of a file. candidate, reference, where: key -> value, registered names in their canonical form.

    relation: better, worse or equivalent. margin: 0 or more, in the metric's own unit. dataset: "" for any. line: where
    the claim begins in its file.
    """

    candidate: Mapping[str, str]
    reference: Mapping[str, str]
    metric: Metric
    relation: str
    margin: float
    where: Mapping[str, str]
    dataset: str
    source: str
    line: int

    @property
    def text(self) -> str:
        """The claim as a sentence: "activation=arctan beats activation=sigmoid on dice by at least 1 point"."""
        points = f"{100 * self.margin:.6g}"
        size = f"{points} point{'s' * (points != '1')}" if self.metric.points else f"{self.margin:g}"
        candidate, reference = pairs(self.candidate), pairs(self.reference)
        parts = [f"{candidate} {VERBS[self.relation]} {reference} on {self.metric.name}"]
        parts += [f"{'within' if self.relation == 'equivalent' else 'by at least'} {size}"] if self.margin else []
        parts += [f"under {pairs(self.where)}"] if self.where else []
        parts += [f"on data set {self.dataset}"] if self.dataset else []
        return " ".join(parts)


def read_claims(path: Path, rope: float | None = None) -> list[Claim]:
    """The claims of a YAML file. rope: the margin of "equivalent" where a claim has none, as `--rope` takes it.

    Raises UsageError with the line and the cure for what is not a claim, and for a rope that no claim uses.
    """
    root = yaml_root(path)
    top = _mapping(root, str(path)) if root is not None else {}
    if list(top) != ["claims"] or not isinstance(top["claims"], yaml.SequenceNode) or not top["claims"].value:
        raise UsageError(f"{path} must hold a list of claims below the one key `claims:`")
    claims, uses_rope = [], False
    for node in top["claims"].value:
        line = node.start_mark.line + 1
        try:
            fields = _fields(node)
            claims.append(_claim(fields, rope, line))
        except UsageError as error:
            raise UsageError(f"{path}, line {line}: {error}") from error
        uses_rope |= claims[-1].relation == "equivalent" and "margin" not in fields
    if rope is not None and not uses_rope:
        raise UsageError(f"--rope: no claim in {path} is 'equivalent' without a margin; leave --rope out")
    return claims


def _mapping(node: yaml.Node, what: str) -> dict[str, yaml.Node]:
    if not isinstance(node, yaml.MappingNode):
        raise UsageError(f"{what} must be a mapping, with `key: value` lines")
    fields: dict[str, yaml.Node] = {}
    for key, value in node.value:
        name = _text(key, f"{what}: a key")
        if name in fields:
            raise UsageError(f"{what}: {name} is given twice; remove one")
        fields[name] = value
    return fields


def _text(node: yaml.Node, what: str) -> str:
    if not isinstance(node, yaml.ScalarNode):
        raise UsageError(f"{what} must be a single value, not a list or a mapping")
    return str(node.value).strip()


def _fields(node: yaml.Node) -> dict[str, yaml.Node]:
    """The keys of a claim. Raises UsageError for unknown, repeated and missing ones, and for a sentence, as claims were
    written before."""
    fields: dict[str, yaml.Node] = {"claim": node} if isinstance(node, yaml.ScalarNode) else _mapping(node, "a claim")
    if "claim" in fields:
        found, example = _SENTENCE.fullmatch(str(fields["claim"].value)), EXAMPLE
        if found:
            where = r"\4, margin: \5" if found[5] else r"\4"
            example = found.expand(rf"- {{candidate: \1, reference: \2, metric: \3, relation: better, where: {where}}}")
        raise UsageError(f"a claim is not a sentence but a mapping with {', '.join(KEYS)}: write {example}")
    for key in fields:
        if key not in KEYS:
            raise UsageError(f"unknown key '{key}'{nearest(key, KEYS)}")
    missing = ", ".join(key for key in REQUIRED if key not in fields)
    if missing:
        raise UsageError(f"{missing} missing; a claim needs {', '.join(REQUIRED)}")
    return fields


def _claim(fields: Mapping[str, yaml.Node], rope: float | None, line: int) -> Claim:
    texts = {key: _text(fields[key], key) for key in ("metric", "relation", "margin", "source") if key in fields}
    candidate, reference = (_levels(fields[key], key) for key in ("candidate", "reference"))
    if candidate.keys() != reference.keys():
        differing = ", ".join(sorted(candidate.keys() ^ reference.keys()))
        raise UsageError(f"candidate and reference must have the same keys; only one of them has {differing}")
    if candidate == reference:
        raise UsageError("candidate and reference are the same arm")
    where = _levels(fields["where"], "where") if "where" in fields else {}
    if where.keys() & candidate.keys():
        raise UsageError(f"where: {', '.join(where.keys() & candidate.keys())} is a key of the arms; remove it")
    relation = texts["relation"]
    if relation not in VERBS:
        raise UsageError(f"unknown relation '{relation}'{nearest(relation, VERBS)}")
    metric = metric_of(texts["metric"], rope)
    margin, dataset = _margin(texts.get("margin"), relation, metric), where.pop("dataset", "")
    return Claim(candidate, reference, metric, relation, margin, where, dataset, texts.get("source", ""), line)


def _levels(node: yaml.Node, what: str) -> dict[str, str]:
    """A mapping, or the text KEY=VALUE,KEY=VALUE; registered names in their canonical form."""
    if isinstance(node, yaml.MappingNode):
        given = [(key, _text(value, f"{what}: {key}")) for key, value in _mapping(node, what).items()]
    else:
        given = [(part.partition("=")[0], part.partition("=")[2]) for part in _text(node, what).split(",")]
    levels: dict[str, str] = {}
    for key, value in ((key.strip().removesuffix(".name"), value.strip()) for key, value in given):
        if not key or not value:
            raise UsageError(f"{what}: '{key}' has no value; write it as activation=arctan")
        if key in levels:
            raise UsageError(f"{what}: {key} is given twice; remove one")
        levels[key] = alias_target(key, value)[0] if key in CODE_GROUPS else value
    return levels


def _margin(text: str | None, relation: str, metric: Metric) -> float:
    """The margin in the metric's own unit."""
    equivalent, example = relation == "equivalent", "'margin: 1 point'" if metric.points else "'margin: 0.5'"
    if text is None and equivalent and not metric.rope > 0:
        raise UsageError(f"'equivalent' on {metric.name} needs a margin above 0; add for example {example}")
    if text is None:
        return metric.rope if equivalent else 0.0
    found = re.fullmatch(r"(\d+(?:\.\d*)?(?:e[-+]?\d+)?)( points?)?", text, re.IGNORECASE)
    if found is None or bool(found[2]) != metric.points:
        unit = "points (hundredths)" if metric.points else "its own unit; write the number alone"
        raise UsageError(f"margin '{text}': {metric.name} is measured in {unit}, for example {example}")
    margin = float(found[1]) / (100 if metric.points else 1)
    if (metric.points and margin > 1) or not math.isfinite(margin) or (equivalent and margin == 0):
        limits = ["above 0"] * equivalent + ["at most 100 points" if metric.points else "finite"]
        raise UsageError(f"margin '{text}' is out of range: it must be {' and '.join(limits)}")
    return margin


@dataclass(frozen=True)
class ClaimResult:
    """A claim, and what was found of it: a comparison on one data set, differences over several, or nothing.

    where: data set and conditions; reason: why this is the outcome. p: of the side that the difference points to, for
    the claim or against it; p_holm: adjusted over all results of the file, from six data sets on over those of its kind
    (single data sets, or across them); the outcome rests on it.
    to_decide: what would decide an undetermined claim, else "". of_runs: warnings of the block and of what was read.
    """

    claim: Claim
    found: Comparison | OverDatasets | None = None
    where: str = ""
    of_runs: tuple[str, ...] = ()
    outcome: str = NO_DATA
    reason: str = ""
    p: float = math.nan
    p_holm: float = math.nan
    to_decide: str = ""

    @property
    def interval(self) -> Interval:
        """Candidate - reference in the metric's own unit; of `found`, which must not be None."""
        assert self.found is not None
        return self.found.deciding if isinstance(self.found, Comparison) else self.found.interval


def evaluate_claims(
    claims: Sequence[Claim], compare: Callable[..., Result], where: Mapping[str, str] | None = None
) -> list[ClaimResult]:
    """Every claim against the runs: a result per comparison of its arms, the one over data sets first.

    compare is called once per claim: compare(metric="dice", by=("activation",), reference="activation=sigmoid",
    where={"loss": "dice"}), and again where the reference has options. If it raises UsageError, the claim has no data,
    for that reason. where: only runs with these values, for all claims; a claim about other runs has no data.
    """
    results = [result for claim in claims for result in _found(claim, compare, where or {})]
    singles, across = ([n for n, r in enumerate(results) if isinstance(r.found, k)] for k in (Comparison, OverDatasets))
    overs = [over for n in across if isinstance(over := results[n].found, OverDatasets)]
    # Student's t where signed ranks of so few data sets cannot be significant after Holm.
    ranked = bool(overs) and can_rank(len(overs), min(len(over.differences) for over in overs))
    # The same families as in `compare`.
    for family in (singles, across) if across_alone(overs) else ([*singles, *across],):
        tests = [_test(results[n], ranked) for n in family]
        adjusted = holm([p for p, _ in tests])
        n_tested = sum(not math.isnan(p) for p in adjusted)
        for n, (p, holds), p_holm in zip(family, tests, adjusted, strict=True):
            tested = dataclasses.replace(results[n], p=p, p_holm=float(p_holm))
            results[n] = _with_condition(_with_outcome(tested, holds, ranked, n_tested))
    return results


def _found(claim: Claim, compare: Callable[..., Result], where: Mapping[str, str]) -> Iterator[ClaimResult]:
    """What the claim can be tested on; where there is nothing, one result with the reason."""
    reason = _excluded(claim, where)
    try:
        compared = [] if reason else _compared(claim, compare, where)
    except UsageError as error:
        compared, reason = [], str(error)
    found = [one for result in compared for one in _of_arms(claim, result)]
    yield from found or [ClaimResult(claim, reason=reason or _no_data(claim, compared[0]))]


def _excluded(claim: Claim, where: Mapping[str, str]) -> str:
    """Which --where leaves out the runs that the claim is about, "" for none."""
    for key, value in where.items():
        name = key.removesuffix(".name")
        for wanted in (levels[name] for levels in (claim.where, claim.candidate, claim.reference) if name in levels):
            if all(canonical(name, one, [wanted]) != wanted for one in values_in(value, [wanted])):
                return f"--where {key}={value} leaves out the runs with {name}={wanted}"
    return ""


def _compared(claim: Claim, compare: Callable[..., Result], where: Mapping[str, str]) -> list[Result]:
    """What compare finds: one result, or one for each reference that has the claim's levels and options ("sigmoid
    slope=2" is sigmoid too). Without such a reference the result of all arms, to find the reason."""
    question = {"metric": claim.metric.name, "by": tuple(claim.candidate), "where": {**where, **claim.where}}
    try:
        return [compare(**question, reference=pairs(claim.reference))]
    except UsageError:
        of_all = compare(**question, reference=None)
    levels = [score.levels for block in of_all.blocks for score in block.ranking if _is(score.levels, claim.reference)]
    references = dict.fromkeys(pairs({key: level[key] for key in claim.reference}) for level in levels)
    return [compare(**question, reference=reference) for reference in references] or [of_all]


def _of_arms(claim: Claim, result: Result) -> Iterator[ClaimResult]:
    """What a result holds of the claim's arms, both with a score, on its data set; over data sets first."""
    # In the unit of these runs: pixels, or mm.
    claim = dataclasses.replace(claim, metric=dataclasses.replace(claim.metric, unit=result.metric.unit))
    for over in result.over_datasets if not claim.dataset else ():
        if _is_about(claim, over, result.blocks):
            parts = [pluralize(len(over.differences), "data set"), pairs(over.conditions, ", ")]
            title = ", ".join(filter(None, parts))
            yield ClaimResult(claim, over, title, _warnings(claim, result, result.blocks))
    for block in _blocks(claim, result):
        for comparison in block.comparisons:
            if _is_about(claim, comparison, [block]):
                yield ClaimResult(claim, comparison, block.title, _warnings(claim, result, [block]))


def _is_about(claim: Claim, found: Comparison | OverDatasets, blocks: Sequence[Block]) -> bool:
    levels = {score.arm: score.levels for block in blocks for score in block.ranking if score.n_seeds}
    arms = ((found.candidate, claim.candidate), (found.reference, claim.reference))
    return all(_is(levels.get(arm, {}), wanted) for arm, wanted in arms)


def _is(levels: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    """Whether an arm has these levels; one with options ("arctan slope=2") is arctan too."""
    return all(f"{levels.get(key, '')} ".startswith(f"{value} ") for key, value in wanted.items())


def _blocks(claim: Claim, result: Result) -> list[Block]:
    return [block for block in result.blocks if claim.dataset in ("", block.dataset)]


def _warnings(claim: Claim, result: Result, blocks: Sequence[Block]) -> tuple[str, ...]:
    """The warnings of what was read and of these blocks, with the block (if there are several) and the conditions."""
    warnings = list(result.warnings)
    for block in blocks:
        about = [block.title] * (len(result.blocks) > 1) + [f"under {pairs(claim.where)}"] * bool(claim.where)
        warnings += [": ".join(filter(None, (", ".join(about), warning))) for warning in block.warnings]
    return tuple(warnings)


def _no_data(claim: Claim, result: Result) -> str:
    """Why no comparison is about the claim."""
    blocks = _blocks(claim, result)
    if not blocks:
        found = ", ".join(dict.fromkeys(block.dataset for block in result.blocks))
        return f"no runs on data set {claim.dataset}" + (f", only on {found}" if found else "")
    for arm in (claim.candidate, claim.reference):
        if not any(_is(score.levels, arm) and score.n_seeds for block in blocks for score in block.ranking):
            return f"no scored run of {pairs(arm)}" + (f" under {pairs(claim.where)}" if claim.where else "")
    return "both arms have runs, but none under equal conditions"


def _test(result: ClaimResult, ranked: bool) -> tuple[float, bool]:
    """p of the side that the difference points to, NaN for no test, and whether that is the claim's side. Each side is
    tested two-sided at the margin, or by two one-sided tests. ranked: by signed ranks over data sets."""
    import numpy as np

    found, interval, d = result.found, result.interval, result.claim.margin
    if math.isnan(interval.p) or not interval.se > 0:
        return math.nan, False

    def p(value: float, sign: int) -> float:
        if ranked and isinstance(found, OverDatasets):
            return wilcoxon_p(sign * (np.array(list(found.differences.values())) - value), "greater")
        return one_sided(interval, value, sign)

    if result.claim.relation == "equivalent":
        return equivalence(p, d)
    sign = _sign(result.claim)
    p_for, p_against = 2 * p(sign * d, sign), 2 * p(sign * d, -sign)
    return min(p_for, p_against, 1.0), p_for < p_against


def _sign(claim: Claim) -> int:
    """1 or -1: the sign of a difference that agrees with the claim."""
    return (1 if claim.metric.higher_is_better else -1) * (-1 if claim.relation == "worse" else 1)


def _with_outcome(result: ClaimResult, holds: bool, ranked: bool, n_tested: int) -> ClaimResult:
    """The result with outcome, reason and what would decide it. holds: of its `_test`; ranked: whether results over
    data sets are tested by signed ranks; n_tested: results of its kind over which p_holm is adjusted."""
    claim, interval, found = result.claim, result.interval, result.found
    if interval.p == 1 and interval.se == 0:
        outcome = SUPPORTED if claim.relation == "equivalent" else REFUTED
        return dataclasses.replace(result, outcome=outcome, reason="every score is the same in both arms")
    side, ranked = SUPPORTED if holds else REFUTED, ranked and isinstance(found, OverDatasets)
    if result.p_holm < ALPHA:
        return dataclasses.replace(result, outcome=side, reason=_reason(claim, holds, ranked))
    if math.isnan(result.p):
        reason = next(iter(found.warnings if found else ()), "there is no test")
    elif result.p < ALPHA:
        before, after = f"p {p_value(result.p)}", f"Holm p {p_value(result.p_holm)} over {n_tested} claims"
        reason = f"{side} on its own ({before}), but not after Holm's adjustment ({after})"
    else:
        reason = _reason(claim, None, ranked)
    return dataclasses.replace(result, outcome=UNDETERMINED, reason=reason, to_decide=_to_decide(result, n_tested))


def _with_condition(result: ClaimResult) -> ClaimResult:
    """The result with the condition of "equivalent", as in `compare`."""
    if result.outcome != SUPPORTED or result.claim.relation != "equivalent" or not isinstance(result.found, Comparison):
        return result
    condition = condition_of(result.found, result.claim.margin)
    return dataclasses.replace(result, reason=", ".join(filter(None, (result.reason, condition))))


def _reason(claim: Claim, holds: bool | None, ranked: bool) -> str:
    """Why a claim that was tested is supported, refuted or (None) neither."""
    size, equivalent = amount(claim.metric, claim.margin, signed=False), claim.relation == "equivalent"
    what, other = ("loss", "gain") if claim.relation == "worse" else ("gain", "loss")
    which = "by signed ranks the difference" if ranked else "the difference"
    if holds is None:
        side = f"a {what} of {size}" if claim.margin else "0"
        return f"{which} may be {f'inside or outside {size}' if equivalent else f'on either side of {side}'}"
    which = f"{which} is" if ranked else f"the whole {90 if equivalent and holds else 95} % interval is"
    if equivalent:
        return f"{which} {'within' if holds else 'outside'} {size}"
    if holds:
        return f"{which} a {what}" + (f" of more than {size}" if claim.margin else "")
    return f"{which} short of a {what} of {size}" if claim.margin else f"{which} a {other}"


def _to_decide(result: ClaimResult, n_tested: int) -> str:
    """What would decide, from how far the difference is from the margin (0 for rounding, NaN without a test)."""
    claim, interval, found, level = result.claim, result.interval, result.found, ALPHA / max(n_tested, 1)
    measured = abs(interval.mean) if claim.relation == "equivalent" else _sign(claim) * interval.mean
    gap = math.nan if math.isnan(interval.p) else abs(measured - claim.margin)
    gap = 0.0 if gap <= 1e-9 * max(abs(interval.mean), claim.margin) else gap
    if isinstance(found, OverDatasets):
        return by_datasets(interval, len(found.differences), gap, level)
    assert found is not None
    return by_runs(found, gap, level)
