"""Claims: files and what is wrong with them, which outcome follows from which difference, and what would decide it."""

import csv
import io
import json
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from made_scores import drawn, make_arm, make_pair
from made_up_result import make_arm as make_score
from made_up_result import make_comparison
from messages import mentions

from segexp import cli
from segexp.compare.claims import EXAMPLE, KEYS, Claim, ClaimResult, evaluate_claims, read_claims
from segexp.compare.formatting import p_value
from segexp.compare.result import METRICS, Block, Comparison, Interval, Method, Metric, OverDatasets, Result
from segexp.compare.statistics import NO_TEST, image_floor, one_sample, two_way
from segexp.compare.verdict import compare, load_checked
from segexp.config import preset_file, preset_names
from segexp.errors import UsageError
from segexp.report.formats import claims_csv, claims_json, claims_markdown, claims_text

NAN = math.nan
WHY = "why, and what would decide"
"""The column of claims as CSV."""


# Files
def written(folder: Path, text: str) -> Path:
    path = folder / "claims.yaml"
    path.write_text(text)
    return path


BASE = {"candidate": "activation=arctan", "reference": "activation=sigmoid", "metric": "dice", "relation": "better"}


def item(**changes: str | None) -> str:
    """A claim as a line of YAML; None removes a key."""
    fields = {key: value for key, value in {**BASE, **changes}.items() if value is not None}
    return f"- {{{', '.join(f'{key}: {value}' for key, value in fields.items())}}}"


def read(folder: Path, *items: str, rope: float | None = None) -> list[Claim]:
    return read_claims(written(folder, "\n".join(["claims:", *items])), rope)


def test_a_claim_in_full(tmp_path: Path) -> None:
    (claim,) = read(
        tmp_path,
        "- candidate: {activation.name: arctan, loss: bce}",
        "  reference: activation=sigmoid, loss=dice",
        "  metric: dice",
        "  relation: better",
        "  margin: 1.5 points",
        "  where: {hidden_activation: swish, optimizer.lr: 1e-3, dataset: dsb2018_nuclei}",
        "  source: Somebody 2024",
    )
    assert claim.candidate == {"activation": "arctan", "loss": "ce"}
    assert claim.reference == {"activation": "sigmoid", "loss": "dice"}
    assert claim.where == {"hidden_activation": "silu", "optimizer.lr": "1e-3"}
    assert (claim.relation, claim.metric.name, claim.dataset) == ("better", "dice", "dsb2018_nuclei")
    assert (claim.margin, claim.line, claim.source) == (pytest.approx(0.015), 2, "Somebody 2024")
    assert claim.text == (
        "activation=arctan,loss=ce beats activation=sigmoid,loss=dice on dice by at least 1.5 points "
        "under hidden_activation=silu,optimizer.lr=1e-3 on data set dsb2018_nuclei"
    )


@pytest.mark.parametrize(("changes", "rope", "margin", "text"), [
    ({}, None, 0.0, "beats activation=sigmoid on dice"),
    ({"margin": "0 points"}, None, 0.0, "beats activation=sigmoid on dice"),
    ({"margin": "1 point"}, None, 0.01, "by at least 1 point"),
    ({"relation": "worse", "metric": "hd95", "margin": "1.5"}, None, 1.5, "loses to activation=sigmoid on hd95 by"),
    ({"relation": "equivalent"}, None, 0.01, "matches activation=sigmoid on dice within 1 point"),
    ({"relation": "equivalent"}, 0.5, 0.005, "within 0.5 points"),
    ({"relation": "equivalent", "metric": "nll"}, 0.1, 0.1, "on nll within 0.1"),
    ({"relation": "equivalent", "metric": "nll", "margin": "1e-3"}, None, 0.001, "on nll within 0.001"),
])  # fmt: skip
def test_margins(changes: dict[str, str], rope: float | None, margin: float, text: str, tmp_path: Path) -> None:
    (claim,) = read(tmp_path, item(**changes), rope=rope)
    assert claim.margin == pytest.approx(margin)
    assert text in claim.text


OLD = "activation=arctan beats activation=sigmoid on dice"


@pytest.mark.parametrize(("items", "named"), [
    ([item(metric=None)], ["line 2", "metric missing"]),
    ([item(), "- nonsense"], ["line 3", *KEYS]),
    (["- [a]"], ["line 2", "mapping"]),
    ([item(margn="1 point")], ["'margn'", "did you mean margin"]),
    ([f"{item()[:-1]}, metric: iou}}"], ["metric is given twice"]),
    (["- {? [a] : b}"], ["single value"]),
    ([item(metric="[dice]")], ["metric must be a single value"]),
    ([item(candidate="{activation: [arctan]}")], ["candidate: activation must be"]),
    ([item(candidate="arctan")], ["candidate: 'arctan' has no value"]),
    ([item(candidate="activation=arctn")], ["did you mean arctan"]),
    ([item(metric="dicee")], ["did you mean dice"]),
    ([item(relation="bettr")], ["did you mean better"]),
    ([item(reference="loss=dice")], ["only one of them has activation, loss"]),
    ([item(candidate="loss=bce", reference="loss=ce")], ["same arm"]),
    ([item(candidate="'activation=arctan, activation=tanh'")], ["activation is given twice"]),
    ([item(where="{activation: tanh}")], ["where: activation"]),
    ([item(where="loss")], ["where: 'loss' has no value"]),
    ([item(margin="1")], ["'1'", "points", "'margin: 1 point'"]),
    ([item(margin="-1 point")], ["'-1 point'", "points"]),
    ([item(margin="200 points")], ["out of range", "100 points"]),
    ([item(margin="1e999", metric="nll")], ["out of range", "finite"]),
    ([item(margin="1 point", metric="hd95")], ["hd95", "number alone"]),
    ([item(margin="0 points", relation="equivalent")], ["out of range", "above 0"]),
    ([item(relation="equivalent", metric="nll")], ["'equivalent' on nll", "'margin: 0.5'"]),
    ([f"- {OLD}"], [*KEYS, EXAMPLE]),
    ([f"- claim: {OLD}", "  source: S"], [*KEYS, EXAMPLE]),
    ([f"- {OLD} under loss=ce"], [item(where="loss=ce")]),
    ([f"- {OLD} under loss=ce by at least 1 point"], [item(where="loss=ce", margin="1 point")]),
])  # fmt: skip
def test_what_is_not_a_claim_is_one_line_with_the_cure(items: list[str], named: list[str], tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        read(tmp_path, *items)
    message = str(caught.value)
    n_claims = sum(text.startswith("-") for text in items)
    assert message.startswith(f"{tmp_path / 'claims.yaml'}, line {n_claims + 1}: ")
    assert [part for part in named if part not in message] == []
    assert "\n" not in message


@pytest.mark.parametrize(("text", "named"), [
    ("", "claims:"),
    ("claims:", "claims:"),
    ("claims: []", "claims:"),
    ("- a", "mapping"),
    (f"claims:\n{item()}\nclaim:\n- x", "claims:"),
    ("claims: &a\n- *a", "alias"),
    ("claims:\n- a: b: c", "line 2"),
    ("claims:\n- !!python/object:os.system x", "line 2"),
])  # fmt: skip
def test_files_without_claims(text: str, named: str, tmp_path: Path) -> None:
    path = written(tmp_path, text)
    with pytest.raises(UsageError) as caught:
        read_claims(path)
    assert str(caught.value).startswith(str(path))
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


def test_built_in_and_other_files(tmp_path: Path) -> None:
    assert "nieradzik2021" in preset_names("claims")
    claims = read_claims(preset_file("claims", "nieradzik2021"))
    assert [(claim.candidate["activation"], claim.where["loss"], claim.margin) for claim in claims] == [
        ("arctan", "dice", 0),
        ("normal_cdf", "ce", 0),
    ]
    assert mentions(claims[0].source, "Nieradzik", "2021")
    path = written(tmp_path, "x")
    assert preset_file("claims", str(path)) == path
    (tmp_path / "bytes").write_bytes(b"\xff")
    for unreadable in (tmp_path / "none.yaml", tmp_path / "bytes"):
        with pytest.raises(UsageError, match="cannot be read"):
            read_claims(unreadable)
    with pytest.raises(UsageError, match="mean nieradzik2021"):
        preset_file("claims", "nieradzik2012")


# Outcomes of one comparison
def made(
    relation: str = "better",
    margin: float | None = None,
    metric: str = "dice",
    arms: tuple[str, str] = ("arctan", "sigmoid"),
    dataset: str = "",
    **where: str,
) -> Claim:
    """A claim. margin: None for none, of "equivalent" 0.01."""
    candidate, reference = ({"activation": arm} for arm in arms)
    size = margin if margin is not None else 0.01 if relation == "equivalent" else 0.0
    return Claim(candidate, reference, METRICS[metric], relation, size, where, dataset, "", 1)


def interval(mean: float, half: float, df: float = 8.0) -> Interval:
    """An interval of this half width at 95 %."""
    from scipy.special import stdtr, stdtrit

    se = half / float(stdtrit(df, 0.975))
    half90 = se * float(stdtrit(df, 0.95))
    p = 2 * float(stdtr(df, -abs(mean) / se))
    return Interval(mean, se, df, p, mean - half, mean + half, mean - half90, mean + half90)


def comparison(overall: Interval, **changes: Any) -> Comparison:
    found = make_comparison("activation=arctan", "activation=sigmoid", 0.0)
    variance = {"seed": 1e-4, "image": 1e-3, "residual": 1e-3}
    return replace(found, **{"overall": overall, "test_set": overall, "variance": variance, **changes})


ARMS = ("sigmoid", "arctan", "arctan slope=2", "tanh")


def block(dataset: str, *comparisons: Comparison, warnings: tuple[str, ...] = ()) -> Block:
    scores = [make_score(arm, 0.8, 5 * (arm != "tanh")) for arm in ARMS]
    ranking = tuple(replace(score, arm=f"activation={score.arm}") for score in scores)
    return Block(dataset, "d" * 64, {"loss": "dice"}, ranking, comparisons, (), warnings)


def result(*blocks: Block, metric: Metric = METRICS["dice"], over: tuple[OverDatasets, ...] = ()) -> Result:
    return Result(metric, "test", ("activation",), {}, "reference", 10, blocks, over, None, (), (), "")


def evaluate(claim: Claim, found: Comparison) -> ClaimResult:
    (evaluated,) = evaluate_claims([claim], lambda **_: result(block("lesions", found)))
    return evaluated


@pytest.mark.parametrize(("claim", "mean", "half", "outcome", "reason"), [
    (made(), 0.02, 0.01, "supported", "the whole 95 % interval is a gain"),
    (made(), 0.02, 0.03, "undetermined", "0"),
    (made(), -0.02, 0.01, "refuted", "the whole 95 % interval is a loss"),
    (made(margin=0.01), 0.03, 0.01, "supported", "gain of more than 1.00 points"),
    (made(margin=0.01), 0.015, 0.01, "undetermined", "gain of 1.00 points"),
    # Better, but not by so much.
    (made(margin=0.01), 0.004, 0.003, "refuted", "short of a gain of 1.00 points"),
    (made("worse"), -0.02, 0.01, "supported", "the whole 95 % interval is a loss"),
    (made("worse", 0.01), -0.03, 0.01, "supported", "loss of more than 1.00 points"),
    (made("worse", 0.05), -0.03, 0.01, "refuted", "short of a loss of 5.00 points"),
    # Lower is better.
    (made(metric="hd95"), -2.0, 1.0, "supported", "gain"),
    (made(metric="hd95", margin=1.5), -2.0, 1.0, "undetermined", "gain of 1.50"),
    (made("worse", metric="hd95"), 2.0, 1.0, "supported", "loss"),
    (made("equivalent"), 0.002, 0.005, "supported", "90 % interval is within 1.00 points"),
    # The 95 % interval sticks out, the 90 % interval does not.
    (made("equivalent"), 0.004, 0.0065, "supported", "90 % interval is within 1.00 points"),
    (made("equivalent"), 0.004, 0.008, "undetermined", "1.00 points"),
    (made("equivalent"), -0.03, 0.01, "refuted", "95 % interval is outside 1.00 points"),
    (made("equivalent", 0.05), -0.03, 0.01, "supported", "within 5.00 points"),
    (made("equivalent", 1.0, "hd95"), 3.0, 1.0, "refuted", "outside 1.00"),
])  # fmt: skip
def test_the_outcome_follows_from_the_interval(
    claim: Claim, mean: float, half: float, outcome: str, reason: str
) -> None:
    found = evaluate(claim, comparison(interval(mean, half)))
    assert found.outcome == outcome
    assert reason in found.reason
    assert (found.to_decide != "") == (outcome == "undetermined")
    # Outcome and p agree.
    assert (found.p < 0.05) == (outcome != "undetermined")


def test_p_values_by_hand() -> None:
    from scipy.special import stdtr

    inside, outside, overall = interval(0.004, 0.0065), interval(-0.03, 0.01), interval(0.013, 0.02)
    two_one_sided = float(stdtr(8.0, (0.004 - 0.01) / inside.se))
    assert evaluate(made("equivalent"), comparison(inside)).p == pytest.approx(two_one_sided)
    beyond = 2 * float(stdtr(8.0, -(0.03 - 0.01) / outside.se))
    assert evaluate(made("equivalent"), comparison(outside)).p == pytest.approx(beyond)
    assert evaluate(made(), comparison(overall)).p == pytest.approx(overall.p)


def test_identical_arms_and_too_few_seeds() -> None:
    same = comparison(Interval(0.0, 0.0, 4.0, 1.0, 0.0, 0.0, 0.0, 0.0))
    assert evaluate(made(), same).outcome == "refuted"
    equivalent = evaluate(made("equivalent"), same)
    assert (equivalent.outcome, math.isnan(equivalent.p)) == ("supported", True)
    nothing = comparison(replace(NO_TEST, mean=0.3), n_seeds=2, warnings=("2 seeds",))
    found = evaluate(made(), nothing)
    assert (found.outcome, found.reason) == ("undetermined", "2 seeds")
    assert "3 seeds" in found.to_decide


def test_distances_are_in_the_unit_of_the_runs() -> None:
    in_mm = replace(METRICS["hd95"], unit="mm")
    found = result(block("lesions", comparison(interval(-2.0, 1.0))), metric=in_mm)
    results = evaluate_claims([made(metric="hd95", margin=1.5)], lambda **_: found)
    assert mentions(claims_text(results), "difference -2.00 mm", "a gain of 1.50 mm")


# What would decide
def of_differences(differences_KN: np.ndarray, **changes: Any) -> Comparison:
    found = two_way(differences_KN)
    K, N = differences_KN.shape
    variance = {"seed": found.var_seed, "image": found.var_image, "residual": found.var_residual}
    known: dict[str, Any] = {"test_set": one_sample(differences_KN.mean(axis=1)), "variance": variance}
    known |= {"n_seeds": K, "n_images": N, "n_groups": N, "units": tuple(map(str, range(N)))}
    return comparison(found.interval, **known | changes)


def crossed(seed_sd: float, image_sd: float, mean: float, K: int = 5, N: int = 40) -> np.ndarray:
    """Differences with exactly this mean."""
    draw = np.random.default_rng(0)
    D = draw.normal(0, 1, (K, N)) + draw.normal(0, seed_sd, (K, 1)) + draw.normal(0, image_sd, (1, N))
    return (D - D.mean() + mean) / 100


def about(text: str) -> int:
    """The middle of the forecast, a range "about 6 to 24", or its lower end, "at least 6"."""
    low, high = re.findall(r"(?:about|at least) (\d+)(?: to (\d+))?", text)[0]
    return round(math.sqrt(int(low) * int(high or low)))


def test_more_seeds_decide_where_seeds_vary() -> None:
    found = evaluate(made(), of_differences(crossed(1.0, 0.1, 0.5)))
    assert found.outcome == "undetermined"
    seeds = about(found.to_decide)
    assert mentions(found.to_decide, "seeds", 5)
    # As many seeds with the same mean difference do decide it.
    assert evaluate(made(), of_differences(crossed(1.0, 0.1, 0.5, K=seeds))).outcome == "supported"
    assert 6 < seeds < 200


def test_a_distant_margin_needs_fewer_seeds() -> None:
    found = of_differences(crossed(1.0, 0.1, 0.5))
    none, close, distant = (about(evaluate(made(margin=m), found).to_decide) for m in (0.0, 0.0001, 0.004))
    assert none < close < distant
    # A difference equal to the margin is never decided.
    assert "margin" in evaluate(made(margin=0.01), comparison(interval(0.01, 0.02))).to_decide
    near = evaluate(made(margin=0.01), comparison(interval(0.01 + 1e-7, 0.02)))
    assert mentions(near.to_decide, "more than 10000", "40 seeds")


def test_where_images_vary_images_decide_and_seeds_do_not() -> None:
    differences = crossed(0.2, 3.0, 0.8)
    found = evaluate(made(), of_differences(differences))
    assert found.outcome == "undetermined"
    assert mentions(found.to_decide, "no number", "40 images")
    assert image_floor(two_way(differences)) > abs(found.interval.mean)
    images = about(found.to_decide)
    assert evaluate(made(), of_differences(crossed(0.2, 3.0, 0.8, K=5, N=images))).outcome == "supported"
    groups = evaluate(made(), of_differences(differences, n_images=400))
    assert mentions(groups.to_decide, "40 groups")


def test_scope_and_sizes_are_those_of_the_comparison() -> None:
    alone: dict[str, Any] = {"scope": Method.OVER_SEEDS.scope, "variance": {}, "units": ()}
    test_set = evaluate(made(), comparison(NO_TEST, test_set=interval(0.02, 0.01), **alone))
    assert test_set.outcome == "supported"
    few = comparison(NO_TEST, test_set=interval(0.01, 0.02, 4.0), variance={}, units=(), n_images=0)
    # By hand: 0.01 = 2.8 standard errors, and se is 0.0072 with 5 seeds.
    assert 20 <= about(evaluate(made(metric="auroc"), few).to_decide) <= 40
    folds = evaluate(
        made(), comparison(interval(0.01, 0.02), method=Method.OVER_FOLDS, n_seeds=1, n_folds=5, variance={})
    )
    assert folds.to_decide.startswith("3 seeds")
    entries = json.loads(claims_json([test_set, folds]))
    assert [entry["scope"] for entry in entries] == [Method.OVER_SEEDS.scope, Method.TWO_WAY.scope]
    assert [entry["n_folds"] for entry in entries] == [0, 5]
    assert mentions(claims_text([folds]), "1 seed", "5 folds", "60 images")
    assert isinstance(folds.found, Comparison)
    grouped = replace(folds, found=replace(folds.found, n_groups=16))
    assert mentions(claims_text([grouped]), "5 folds", "16 groups")


# Claims against runs
WIDE = comparison(interval(0.01, 0.02))
CLEAR = comparison(interval(0.03, 0.01))


def test_each_claim_is_evaluated_on_every_block() -> None:
    asked: list[dict[str, Any]] = []

    def compared(**question: Any) -> Result:
        asked.append(question)
        steep = replace(WIDE, candidate="activation=arctan slope=2")
        other = replace(CLEAR, candidate="activation=tanh")
        return result(block("lesions", CLEAR, steep, other), block("nuclei", WIDE))

    results = evaluate_claims([made(loss="ce"), made(margin=0.01, dataset="nuclei")], compared)
    question = {"metric": "dice", "by": ("activation",), "reference": "activation=sigmoid"}
    assert asked == [{**question, "where": {"loss": "ce"}}, {**question, "where": {}}]
    assert [(r.where, r.found.candidate if r.found else "", r.outcome) for r in results] == [
        ("lesions, loss=dice", "activation=arctan", "supported"),
        ("lesions, loss=dice", "activation=arctan slope=2", "undetermined"),
        ("nuclei, loss=dice", "activation=arctan", "undetermined"),
        ("nuclei, loss=dice", "activation=arctan", "undetermined"),
    ]
    # Holm over the four of the file.
    assert results[0].p_holm == pytest.approx(4 * results[0].p)
    assert mentions(claims_text(results), "4 results")


def test_claims_without_data_say_why() -> None:
    def compared(where: Mapping[str, str], **_: Any) -> Result:
        if where:
            raise UsageError("no run has loss=mse; there are ce, dice")
        unscored = comparison(NO_TEST, test_set=NO_TEST, candidate="activation=tanh", scope="", n_seeds=0)
        return result(block("lesions", unscored))

    arms = ("softsign", "sigmoid"), ("tanh", "sigmoid"), ("arctan", "tanh")
    claims = [*(made(arms=both) for both in arms), made(dataset="kidneys"), made(loss="mse"), made()]
    results = evaluate_claims(claims, compared)
    named = ["activation=softsign", "activation=tanh", "activation=tanh", "only on lesions", "ce, dice", "conditions"]
    for found, name in zip(results, named, strict=True):
        assert found.outcome == "no data"
        assert name in found.reason
        assert math.isnan(found.p_holm)
    assert mentions(claims_text(results), "No claim", "tested")
    with pytest.raises(ZeroDivisionError):
        evaluate_claims([made()], mock.Mock(side_effect=ZeroDivisionError))


def test_every_form() -> None:
    def compared(metric: str, **_: Any) -> Result:
        noted = replace(CLEAR, scope=Method.OVER_SEEDS.scope, warnings=("5 images", "unpaired"))
        return result(block("lesions", WIDE if metric == "dice" else noted), metric=METRICS[metric])

    sourced = replace(made(), source="S", line=2)
    results = evaluate_claims([sourced, made(metric="hd95"), made(dataset="x")], compared)
    rows = list(csv.DictReader(io.StringIO(claims_csv(results))))
    columns = {title: [row[title] for row in rows] for title in rows[0]}
    # The columns that files have had since there are claims.
    assert list(columns) == [
        "claim", "on", "candidate", "reference", "outcome", "difference", "95 %", "speaks of", "p", "p Holm",
        "rests on", WHY, "warnings", "warnings of runs",
    ]  # fmt: skip
    shown = {
        "outcome": ["undetermined", "refuted", "no data"],
        "speaks of": [Method.TWO_WAY.scope, Method.OVER_SEEDS.scope, "-"],
        "warnings": ["-", "5 images; unpaired", "-"],
        "difference": ["+1.00 points", "+0.0300", "-"],
        "95 %": ["[-1.00, +3.00]", "[+0.0200, +0.0400]", "-"],
        "rests on": ["5 seeds x 60 images", "5 seeds x 60 images", "-"],
        "candidate": ["activation=arctan", "activation=arctan", "-"],
    }
    assert {title: columns[title] for title in shown} == shown
    assert mentions(rows[0][WHY], "to decide", "seeds")
    first_line, second_line, *_ = claims_text(results).splitlines()
    assert first_line == f"UNDETERMINED: {OLD}"
    assert mentions(second_line, "activation=arctan", "activation=sigmoid", "lesions")
    assert mentions(claims_markdown(results), "| refuted |", "inference for")
    first, _, third = json.loads(claims_json(results))
    assert list(first) == [
        "claim", "source", "line", "metric", "margin", "outcome", "reason", "where", "candidate", "reference", "scope",
        "interval", "p", "p_holm", "n_seeds", "n_splits", "n_folds", "n_images", "n_datasets", "to_decide",
        "warnings", "warnings_of_runs",
    ]  # fmt: skip
    assert first["interval"]["low"] == pytest.approx(-0.01)
    assert (first["claim"], first["source"], first["line"], first["metric"]) == (OLD, "S", 2, "dice")
    assert third["interval"] is None


# Several claims, several data sets
def test_an_outcome_rests_on_p_after_holm() -> None:
    barely, clear = (replace(CLEAR, overall=interval(0.03, half)) for half in (0.027, 0.008))

    def compared(metric: str, **_: Any) -> Result:
        return result(block("lesions", clear if metric == "iou" else barely), metric=METRICS[metric])

    (alone,) = evaluate_claims([made()], compared)
    assert (alone.outcome, alone.p_holm) == ("supported", alone.p)
    held, sure, lost = evaluate_claims([made(), made(metric="iou"), made("worse")], compared)
    assert (held.outcome, sure.outcome, lost.outcome) == ("undetermined", "supported", "undetermined")
    assert held.p < 0.05 < held.p_holm == pytest.approx(2 * held.p)
    for found, word in ((held, "supported"), (lost, "refuted")):
        assert found.reason.startswith(word)
        for part in (f"p {p_value(held.p)}", f"p {p_value(held.p_holm)}", "3 claims", "Holm"):
            assert part in found.reason
    assert held.interval == alone.interval
    # What would decide is for all claims of the file.
    assert about(held.to_decide) > 5
    same = result(block("lesions", of_differences(crossed(1.0, 0.1, 0.5))))
    ten, two, one = (about(evaluate_claims([made()] * n, lambda **_: same)[0].to_decide) for n in (10, 2, 1))
    assert ten > two > one


def over(differences: list[float], **changes: Any) -> OverDatasets:
    names = {f"d{n}": value for n, value in enumerate(differences)}
    arms = ("activation=arctan", "activation=sigmoid")
    found = OverDatasets(*arms, {}, names, "t over data sets", one_sample(differences), NAN, ())
    return replace(found, **changes)


EIGHT = [0.012, 0.013, 0.009, 0.011, 0.014, 0.008, 0.016, 0.007]


def test_a_claim_without_a_data_set_is_evaluated_over_all_of_them() -> None:
    blocks = [block(name, WIDE) for name in ("d0", "d1")]
    found = result(*blocks, over=(over(EIGHT, warnings=("few",)),))
    first, *others = evaluate_claims([made()], lambda **_: found)
    (entry,) = json.loads(claims_json([first]))
    shown = entry["outcome"], entry["where"], entry["scope"], entry["n_datasets"]
    assert shown == ("supported", "8 data sets", "new data sets", 8)
    assert first.p == pytest.approx(2**-7)  # all eight signs alike: exact signed ranks
    # A family of its own: results on single data sets do not weigh on it.
    assert first.p_holm == first.p
    assert entry["warnings"] == ["few"]
    assert [r.where for r in others] == ["d0, loss=dice", "d1, loss=dice"]
    assert ["signed ranks" in r.reason for r in (first, *others)] == [True, False, False]
    assert "8 data sets" in claims_text([first]).replace("\n  ", " ")
    named = evaluate_claims([made(dataset="d1")], lambda **_: found)
    assert [r.where for r in named] == ["d1, loss=dice"]


@pytest.mark.parametrize(("claim", "outcome", "p"), [
    (made(margin=0.005), "supported", 2**-7),
    (made(margin=0.01), "undetermined", None),
    (made(margin=0.02), "refuted", 2**-7),
    (made("worse"), "refuted", 2**-7),
    (made("equivalent", 0.02), "supported", 2**-8),
    (made("equivalent", 0.005), "refuted", 2**-7),
    (made("equivalent"), "undetermined", None),
])  # fmt: skip
def test_margins_over_data_sets_by_signed_ranks(claim: Claim, outcome: str, p: float | None) -> None:
    (found,) = evaluate_claims([claim], lambda **_: result(block("d"), over=(over(EIGHT),)))
    assert found.outcome == outcome
    assert "signed ranks" in found.reason
    assert p is None or found.p == pytest.approx(p)
    assert (found.to_decide != "") == (outcome == "undetermined")


def test_few_data_sets_are_tested_by_t() -> None:
    differences = [0.02, 0.05, -0.01]
    (found,) = evaluate_claims([made()], lambda **_: result(block("d"), over=(over(differences),)))
    assert found.p == pytest.approx(one_sample(differences).p)
    low, high = map(int, re.findall(r"\d+", found.to_decide)[:2])
    assert mentions(found.to_decide, "data sets", 3)
    # By hand: the mean is 1.15 standard errors, and 2.8 to 3.6 are needed.
    assert low < 3 * (2.8 / 1.15) ** 2 < 3 * (3.6 / 1.15) ** 2 < high


def test_warnings_of_comparison_block_and_runs_are_passed_on() -> None:
    cut = replace(CLEAR, dropped="seed 2", warnings=("4 seeds",))
    first, second = (block(name, cut, warnings=(f"unequal {name}",)) for name in ("d0", "d1"))
    found = replace(result(first, second), warnings=("table cut",))
    results = evaluate_claims([made()], lambda **_: found)
    entries = json.loads(claims_json(results))
    assert entries[0]["warnings"] == ["4 seeds", f"not compared: {cut.dropped}"]
    of_runs = [entry["warnings_of_runs"] for entry in entries]
    assert of_runs == [["table cut", f"{name}, loss=dice: unequal {name}"] for name in ("d0", "d1")]
    text = claims_text(results)
    assert text.count("warning: table cut\n") == text.count(f"warning: {of_runs[1][1]}\n") == 1
    assert "- table cut\n" in claims_markdown(results)
    first_row, _ = csv.DictReader(io.StringIO(claims_csv(results)))
    assert first_row["warnings of runs"] == "; ".join(of_runs[0])
    # A warning that holds under one claim's conditions says so.
    (under, *_) = evaluate_claims([made(loss="dice")], lambda **_: result(first))
    assert under.of_runs == (f"under loss=dice: {first.warnings[0]}",)


# Options and arms
@pytest.mark.parametrize(("where", "named"), [
    ({"loss": "ce"}, ("--where loss=ce", "loss=dice")),
    ({"loss.name": "ce"}, ("--where loss.name=ce", "loss=dice")),
    ({"activation": "arctan"}, ("--where activation=arctan", "activation=sigmoid")),
    ({"loss": "ce,focal"}, ("--where loss=ce,focal", "loss=dice")),
    ({"optimizer.lr": "1e-2"}, ("--where optimizer.lr=1e-2", "optimizer.lr=0.001")),
    # The same values by other names.
    ({"loss": "dice,bce", "optimizer.lr": "1e-3"}, None),
])  # fmt: skip
def test_a_where_that_leaves_out_the_runs_of_a_claim(where: dict[str, str], named: tuple[str, str] | None) -> None:
    claim = replace(made(), where={"loss": "dice", "optimizer.lr": "0.001"})
    (found,) = evaluate_claims([claim], lambda **_: result(block("lesions", CLEAR)), where)
    assert found.outcome == ("supported" if named is None else "no data")
    assert named is None or all(name in found.reason for name in named)


@pytest.mark.parametrize(("steep", "flat"), [("arctan", "sigmoid"), ("sigmoid", "arctan")])
def test_arms_with_options_are_told_apart(steep: str, flat: str, tmp_path: Path) -> None:
    """Of the candidate or of the reference: each is evaluated, and named."""
    dice = dict(zip(("arctan", "sigmoid"), drawn(5, 60, effect=0.03), strict=True))
    make_arm(tmp_path, flat, dice[flat])
    for slope in (1.0, 2.0):
        make_arm(tmp_path, steep, dice[steep], {"activation.slope": slope}, str(slope))
    results = evaluate_claims([made()], partial(compare, [tmp_path]))
    assert [r.outcome for r in results] == ["supported", "supported"]
    both = [f"{steep} slope=1.0", f"{steep} slope=2.0"]
    entries = json.loads(claims_json(results))
    assert sorted(entry["candidate" if steep == "arctan" else "reference"] for entry in entries) == both
    (none,) = evaluate_claims([made(arms=("arctan", "tanh"))], partial(compare, [tmp_path]))
    assert (none.outcome, "activation=tanh" in none.reason) == ("no data", True)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    make_pair(folder, effect=0.03)
    return folder


@pytest.mark.parametrize(("words", "named"), [
    (["--metric", "iou"], ["--metric", "--claims"]),
    (["--reference", "activation=sigmoid"], ["--reference", "--claims"]),
    (["--questions", "all"], ["--questions", "--claims"]),
    (["--latex"], ["--latex", "--markdown"]),
    (["--split", "tset"], ["--split tset", "test, val"]),
    (["--rope", "0.5"], ["leave --rope out"]),
    (["--rope", "-1"], ["--rope -1"]),
    (["--where", "loss=ce"], ["loss=ce"]),
    (["--where", "los=dice"], ["'los'"]),
    (["nowhere"], ["nowhere does not exist"]),
], ids=" ".join)  # fmt: skip
def test_an_option_that_cannot_be_followed_is_refused(
    words: list[str], named: list[str], study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, f"claims:\n{item()}")
    assert cli.main(["compare", str(study), *words, "--claims", str(path)]) == 2
    output = capsys.readouterr()
    assert [name for name in named if name not in output.err] == []
    assert output.err.count("\n") == 1
    assert output.out == ""


def test_every_form_and_the_runs_are_read_once(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with mock.patch("segexp.compare.verdict.load_checked", wraps=load_checked) as loading:
        assert cli.main(["compare", str(study), "--claims", "nieradzik2021", "--where", "loss=dice", "--json"]) == 0
    assert loading.call_count == 1
    first, second = json.loads(capsys.readouterr().out)
    assert (first["where"], first["outcome"], first["n_seeds"], first["n_images"]) == ("lesions", "supported", 5, 60)
    assert first["interval"]["mean"] == pytest.approx(0.03, abs=0.005)
    assert (second["where"], second["outcome"], second["n_seeds"]) == ("", "no data", 0)
    assert "--where loss=dice" in second["reason"]
    for form in ([], ["--csv"], ["--markdown"]):
        assert cli.main(["compare", str(study), "--claims", "nieradzik2021", *form]) == 0
        assert "supported" in capsys.readouterr().out.lower()


def test_a_rope_is_the_margin_of_equivalent_without_one(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(written(tmp_path, f"claims:\n{item(relation='equivalent')}"))
    outcomes = []
    for words in ([], ["--rope", "8"]):
        assert cli.main(["compare", str(study), "--claims", path, "--json", *words]) == 0
        outcomes.append(json.loads(capsys.readouterr().out)[0]["outcome"])
    assert outcomes == ["refuted", "supported"]
    assert cli.main(["compare", str(study), "--claims", path, "--rope", "0"]) == 2
    assert "above 0" in capsys.readouterr().err
