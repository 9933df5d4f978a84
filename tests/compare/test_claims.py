"""Claims: sentences and what is wrong with them, what decides, what would decide, and claims no runs speak to."""

import csv
import dataclasses
import io
import json
import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from made_scores import drawn, make_pair, make_run

from segexp import cli
from segexp.compare.claims import claim_of, read_claims
from segexp.compare.comparisons import NO_TEST
from segexp.compare.formatting import p_value
from segexp.compare.judge import Judged, judge, judge_claims
from segexp.compare.load import load
from segexp.compare.result import (
    METRICS,
    OVER_FOLDS,
    ArmScore,
    Block,
    Comparison,
    Interval,
    Metric,
    OverDatasets,
    Result,
    Verdict,
)
from segexp.compare.statistics import image_floor, one_sample, two_way
from segexp.compare.verdict import compare
from segexp.config.presets import preset_file, preset_names
from segexp.errors import UsageError
from segexp.report.claims import as_csv, as_json, as_markdown, as_text, note

BEATS = "activation=arctan beats activation=sigmoid on dice"
LOSES = BEATS.replace("beats", "loses to")
MATCHES = "activation=arctan matches activation=sigmoid on dice"

# Sentences


def test_a_sentence_in_full() -> None:
    claim = claim_of(
        "activation=arctan, loss=bce beats activation=sigmoid and loss=dice on dice by at least 1.5 points "
        "under hidden_activation=swish, optimizer.lr=0.001 on data set dsb2018_nuclei"
    )
    assert claim.candidate == {"activation": "arctan", "loss": "ce"}
    assert claim.reference == {"activation": "sigmoid", "loss": "dice"}
    assert claim.under == {"hidden_activation": "silu", "optimizer.lr": "0.001"}
    assert (claim.relation, claim.metric.name, claim.dataset) == ("beats", "dice", "dsb2018_nuclei")
    assert claim.margin == pytest.approx(0.015)


@pytest.mark.parametrize(
    ("sentence", "relation", "margin"),
    [
        (BEATS, "beats", 0.0),
        (f"{BEATS} by at least 0.02", "beats", 0.02),
        (f"{BEATS} by at least 1 point", "beats", 0.01),
        (MATCHES, "matches", 0.01),
        (f"{MATCHES} within 2 points", "matches", 0.02),
        ("activation.name=arctan loses to activation=sigmoid on hd95 by at least 1.5", "loses to", 1.5),
        ("activation=arctan  beats\n activation=sigmoid  on dataset x under seed=1 on nll", "beats", 0.0),
        ("backbone=resnet34 matches backbone=resnet18 on nll within 1e-3", "matches", 0.001),
    ],
)
def test_sizes_and_orders(sentence: str, relation: str, margin: float) -> None:
    claim = claim_of(sentence)
    assert claim.relation == relation
    assert claim.margin == pytest.approx(margin)


@pytest.mark.parametrize(
    ("sentence", "told"),
    [
        ("", "who beats"),
        ("arctan is best", "who beats"),
        ("on dice activation=arctan beats activation=sigmoid", "who beats"),
        ("activation=arctan beats activation=sigmoid", "on which metric"),
        ("arctan beats activation=sigmoid on dice", "'arctan' is no KEY=VALUE"),
        ("activation=arctn beats activation=sigmoid on dice", "did you mean arctan"),
        ("activation=arctan beats activation=sigmoid on dicee", "did you mean dice"),
        ("activation=arctan beats loss=dice on dice", "only one of them names activation, loss"),
        ("loss=bce beats loss=ce on dice", "both arms are the same"),
        ("activation=arctan, activation=tanh beats activation=sigmoid on dice", "activation is there twice"),
        (f"{BEATS} under activation=tanh", "cannot stand under"),
        (f"{BEATS} under loss=dice by 1 point", "'loss=dice by 1 point' is no KEY=VALUE"),
        (f"{BEATS} within 1 point", "'by at least SIZE', not with 'within'"),
        (f"{MATCHES} by at least 1 point", "'within SIZE', not with 'by at least'"),
        (f"{MATCHES} within 0", "out of range"),
        (f"{BEATS} by at least 1 %", "is no size"),
        (f"{BEATS} by at least -1 point", "is no size"),
        (f"{BEATS} by at least 2", "'2 points' perhaps?"),
        (f"{BEATS} by at least 1e999", "out of range"),
        (f"{BEATS} on iou", "'on' is one too many"),
        (f"{BEATS} beats activation=tanh", "'beats' is one too many"),
        ("activation=arctan beats activation=sigmoid on hd95 by at least 1 point", "not measured in points"),
        ("activation=arctan matches activation=sigmoid on nll", "add 'within SIZE'"),
    ],
)
def test_sentences_that_say_nothing(sentence: str, told: str) -> None:
    with pytest.raises(UsageError) as caught:
        claim_of(sentence)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def written(folder: Path, text: str) -> Path:
    path = folder / "claims.yaml"
    path.write_text(text)
    return path


def test_a_file_of_claims(tmp_path: Path) -> None:
    text = f"# mine\nclaims:\n  - {BEATS}\n  - claim: {MATCHES}\n    source: Somebody 2024, Table 3\n"
    claims = read_claims(written(tmp_path, text))
    assert [(c.text, c.source, c.line) for c in claims] == [(BEATS, "", 3), (MATCHES, "Somebody 2024, Table 3", 4)]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "`claims:`"),
        ("claims:", "holds no claims"),
        ("claims: []", "holds no claims"),
        ("claims: {a: b}", "holds no claims"),
        ("- a", "line 1: here belong `claims:`"),
        (f"claims:\n- {BEATS}\nclaim:\n- x", "line 3: unknown key 'claim'; did you mean claims?"),
        (f"claims:\n- clam: {BEATS}", "line 2: unknown key 'clam'; did you mean claim?"),
        (f"claims:\n- claim: {BEATS}\n  claim: x", "line 3: claim is there twice"),
        ("claims:\n- source: x", "line 2: there is no claim, only source"),
        ("claims:\n- claim: [a]", "line 2: claim must be a text"),
        ("claims:\n- - a", "line 2: here belong"),
        ("claims: &a\n- *a", "line 1: here belong"),
        ("claims:\n- ? [a]\n  : b", "line 2: unknown key"),
        (f"claims:\n- {BEATS}\n- nonsense", 'line 3, "nonsense": '),
        ("claims:\n- a: b: c", "line 2 is no YAML"),
        ("claims:\n- !!python/object:os.system x", "who beats"),
    ],
)
def test_files_that_hold_no_claims(text: str, told: str, tmp_path: Path) -> None:
    path = written(tmp_path, text)
    with pytest.raises(UsageError) as caught:
        read_claims(path)
    assert str(caught.value).startswith(str(path))
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\xff")
    for path in (tmp_path / "none.yaml", tmp_path / "x"):
        with pytest.raises(UsageError, match="cannot be read"):
            read_claims(path)


def test_the_claims_that_come_with_segexp() -> None:
    assert "nieradzik2021" in preset_names("claims")
    first, second = read_claims(preset_file("claims", "nieradzik2021"))
    assert (first.candidate, first.under) == ({"activation": "arctan"}, {"loss": "dice"})
    assert (second.candidate, second.under) == ({"activation": "normal_cdf"}, {"loss": "ce"})
    assert first.source.startswith("Nieradzik et al. 2021")
    assert first.margin == second.margin == 0


def test_a_file_goes_by_its_name_or_its_path(tmp_path: Path) -> None:
    path = written(tmp_path, "x")
    assert preset_file("claims", str(path)) == path
    with pytest.raises(UsageError, match="did you mean nieradzik2021"):
        preset_file("claims", "nieradzik2012")


# What decides

NAN = math.nan


def interval(mean: float, half: float, df: float = 8.0) -> Interval:
    """An interval of this half width at 95 %."""
    from scipy.special import stdtr, stdtrit

    se = half / float(stdtrit(df, 0.975))
    half90 = se * float(stdtrit(df, 0.95))
    p = 2 * float(stdtr(df, -abs(mean) / se))
    return Interval(mean, se, df, p, mean - half, mean + half, mean - half90, mean + half90)


def comparison(overall: Interval, **changes: Any) -> Comparison:
    made = Comparison(
        candidate="activation=arctan",
        reference="activation=sigmoid",
        method="two-way t over seeds and images",
        scope="new seeds and new images",
        paired=True,
        n_seeds=5,
        n_folds=0,
        n_images=60,
        n_groups=60,
        overall=overall,
        test_set=overall,
        p_holm=NAN,
        verdict=Verdict.INCONCLUSIVE,
        minimum_detectable=NAN,
        target=0.01,
        seeds_needed=math.inf,
        image_floor=NAN,
        wins=0.5,
        wins_low=0.1,
        wins_high=0.9,
        effect_size=0.0,
        seed_correlation=0.0,
        variance={"seed": 1e-4, "image": 1e-3, "residual": 1e-3},
        dropped="",
        warnings=(),
        units=tuple(map(str, range(60))),
    )
    return dataclasses.replace(made, **changes)


@pytest.mark.parametrize(
    ("claim", "mean", "half", "outcome"),
    [
        (BEATS, 0.02, 0.01, "supported"),
        (BEATS, 0.02, 0.03, "undetermined"),
        (BEATS, -0.02, 0.01, "refuted"),
        (f"{BEATS} by at least 1 point", 0.03, 0.01, "supported"),
        (f"{BEATS} by at least 1 point", 0.015, 0.01, "undetermined"),
        (f"{BEATS} by at least 1 point", 0.004, 0.003, "refuted"),  # better, but not by so much
        (BEATS.replace("beats", "loses to"), -0.02, 0.01, "supported"),
        (BEATS.replace("beats", "loses to"), 0.02, 0.01, "refuted"),
        (BEATS.replace("dice", "hd95"), -2.0, 1.0, "supported"),  # lower is better
        (BEATS.replace("dice", "hd95") + " by at least 1.5", -2.0, 1.0, "undetermined"),
        (BEATS.replace("dice", "hd95"), 2.0, 1.0, "refuted"),
        (BEATS.replace("beats", "loses to").replace("dice", "hd95"), 2.0, 1.0, "supported"),
        (MATCHES, 0.002, 0.005, "supported"),
        (MATCHES, 0.004, 0.0065, "supported"),  # the 95 % interval sticks out, the 90 % does not
        (MATCHES, 0.004, 0.008, "undetermined"),
        (MATCHES, -0.03, 0.01, "refuted"),
        (MATCHES, -0.012, 0.01, "undetermined"),
        (f"{MATCHES} within 5 points", -0.03, 0.01, "supported"),
        ("activation=arctan matches activation=sigmoid on hd95 within 1", 3.0, 1.0, "refuted"),
    ],
)
def test_what_decides(claim: str, mean: float, half: float, outcome: str) -> None:
    judged = judge(claim_of(claim), comparison(interval(mean, half)), "lesions")
    assert judged.outcome == outcome, judged
    assert (judged.to_decide != "") == (outcome == "undetermined")
    # An outcome and its p say the same, whichever way it goes.
    assert (judged.p < 0.05) == (outcome != "undetermined")


@pytest.mark.parametrize(
    ("claim", "mean", "reason"),
    [
        (BEATS, 0.03, "the whole 95 % interval is a gain"),
        (BEATS, -0.03, "the whole 95 % interval is a loss"),
        (LOSES, -0.03, "the whole 95 % interval is a loss"),
        (LOSES, 0.03, "the whole 95 % interval is a gain"),
        (f"{LOSES} by at least 1 point", -0.03, "the whole 95 % interval is a loss of more than 1.00 points"),
        (f"{LOSES} by at least 5 points", -0.03, "the whole 95 % interval is short of a loss of 5.00 points"),
        (f"{BEATS} by at least 5 points", 0.03, "the whole 95 % interval is short of a gain of 5.00 points"),
        (f"{LOSES} by at least 3 points", -0.03, "the interval may lie on either side of a loss of 3.00 points"),
        (MATCHES, 0.03, "the whole 95 % interval is outside 1.00 points"),
        (f"{MATCHES} within 5 points", 0.03, "the whole 90 % interval is within 5.00 points"),
    ],
)
def test_the_reason_speaks_of_what_is_claimed(claim: str, mean: float, reason: str) -> None:
    assert judge(claim_of(claim), comparison(interval(mean, 0.01))).reason == reason


def test_p_of_two_one_sided_tests_and_of_what_lies_outside() -> None:
    from scipy.special import stdtr

    inside = interval(0.004, 0.0065)
    by_hand = float(stdtr(8.0, (0.004 - 0.01) / inside.se))
    assert judge(claim_of(MATCHES), comparison(inside)).p == pytest.approx(by_hand)
    outside = interval(-0.03, 0.01)
    by_hand = 2 * float(stdtr(8.0, -(0.03 - 0.01) / outside.se))
    assert judge(claim_of(MATCHES), comparison(outside)).p == pytest.approx(by_hand)


def test_identical_arms() -> None:
    same = Interval(0.0, 0.0, 4.0, 1.0, 0.0, 0.0, 0.0, 0.0)
    assert judge(claim_of(BEATS), comparison(same)).outcome == "refuted"
    matched = judge(claim_of(MATCHES), comparison(same))
    assert matched.outcome == "supported"
    assert math.isnan(matched.p)


def test_the_p_at_no_margin_is_that_of_the_comparison() -> None:
    overall = interval(0.013, 0.02)
    assert judge(claim_of(BEATS), comparison(overall)).p == pytest.approx(overall.p)


def test_too_few_seeds_decide_nothing() -> None:
    nothing = dataclasses.replace(NO_TEST, mean=0.3)
    judged = judge(claim_of(BEATS), comparison(nothing, n_seeds=2, warnings=("2 seeds: no test",)))
    assert (judged.outcome, judged.reason) == ("undetermined", "2 seeds: no test")
    assert judged.to_decide == "3 seeds at the least, there are 2"


def test_a_claim_of_this_test_set_alone_says_so() -> None:
    alone = {"scope": "new seeds, this test set", "variance": {}, "units": ()}
    judged = judge(claim_of(BEATS), comparison(NO_TEST, test_set=interval(0.02, 0.01), **alone))
    assert (judged.outcome, judged.scope) == ("supported", "new seeds, this test set")
    assert judge(claim_of(BEATS), comparison(interval(0.02, 0.01))).scope == "new seeds and new images"


# What would decide


def of_differences(differences_KN: np.ndarray, **changes: Any) -> Comparison:
    found = two_way(differences_KN)
    K, N = differences_KN.shape
    variance = {"seed": found.var_seed, "image": found.var_image, "residual": found.var_residual}
    test_set = one_sample(differences_KN.mean(axis=1))
    units = tuple(map(str, range(N)))
    sizes: Mapping[str, Any] = {"n_seeds": K, "n_images": N, "n_groups": N, "units": units}
    return comparison(found.interval, test_set=test_set, variance=variance, **{**sizes, **changes})


def crossed(seed_sd: float, image_sd: float, mean: float, K: int = 5, N: int = 40) -> np.ndarray:
    """Differences with exactly this mean."""
    draw = np.random.default_rng(0)
    D = draw.normal(0, 1, (K, N)) + draw.normal(0, seed_sd, (K, 1)) + draw.normal(0, image_sd, (1, N))
    return (D - D.mean() + mean) / 100


def test_more_seeds_decide_where_seeds_vary() -> None:
    D = crossed(1.0, 0.1, 0.5)
    judged = judge(claim_of(BEATS), of_differences(D))
    assert judged.outcome == "undetermined"
    seeds = int(judged.to_decide.removeprefix("about ").split()[0])
    assert judged.to_decide == f"about {seeds} seeds, there are 5"
    # As many seeds with the same mean difference do decide it.
    assert judge(claim_of(BEATS), of_differences(crossed(1.0, 0.1, 0.5, K=seeds))).outcome == "supported"
    assert 6 < seeds < 200


def test_a_margin_far_away_is_sooner_decided() -> None:
    D = of_differences(crossed(1.0, 0.1, 0.5))

    def seeds(claim: str) -> int:
        return int(judge(claim_of(claim), D).to_decide.split()[1])

    assert seeds(f"{BEATS} by at least 0.01 points") > seeds(BEATS)
    assert seeds(f"{BEATS} by at least 0.4 points") > seeds(f"{BEATS} by at least 0.01 points")


def test_where_images_vary_no_seeds_decide_but_images_do() -> None:
    made = of_differences(crossed(0.2, 3.0, 0.8))
    judged = judge(claim_of(BEATS), made)
    assert judged.outcome == "undetermined"
    assert judged.to_decide.startswith("no number of seeds decides it on these 40 images: about ")
    images = int(judged.to_decide.partition(": about ")[2].split()[0])
    assert image_floor(two_way(crossed(0.2, 3.0, 0.8))) > abs(made.overall.mean)
    enough = judge(claim_of(BEATS), of_differences(crossed(0.2, 3.0, 0.8, K=5, N=images)))
    assert enough.outcome == "supported"


def test_groups_are_called_groups() -> None:
    judged = judge(claim_of(BEATS), of_differences(crossed(0.2, 3.0, 0.8), n_images=400))
    assert "on these 40 groups of images" in judged.to_decide


def test_the_very_margin_is_never_decided() -> None:
    judged = judge(claim_of(f"{BEATS} by at least 1 point"), comparison(interval(0.01, 0.02)))
    assert judged.to_decide == "nothing: the difference is the very margin"
    near = judge(claim_of(f"{BEATS} by at least 1 point"), comparison(interval(0.01 + 1e-7, 0.02)))
    assert near.to_decide.startswith("more than 10000 images with 40 seeds")


def test_scores_without_images_are_decided_by_seeds() -> None:
    claim = claim_of(BEATS.replace("dice", "auroc"))
    judged = judge(claim, comparison(NO_TEST, test_set=interval(0.01, 0.02, 4.0), variance={}, units=(), n_images=0))
    seeds = int(judged.to_decide.split()[1])
    # By hand: 0.01 = 2.8 standard errors, and se is 0.0072 with 5 seeds.
    assert 20 <= seeds <= 26


@pytest.mark.parametrize("needed", [None, math.inf, math.nan])
def test_what_no_number_decides_is_never_a_number(needed: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segexp.compare.statistics.seeds_needed", lambda *_: needed)
    monkeypatch.setattr("segexp.compare.statistics.images_needed", lambda *_: needed)
    judged = judge(claim_of(BEATS), comparison(interval(0.01, 0.02)))
    assert judged.to_decide.startswith("more than 10000 images")


def test_an_arm_without_any_score_is_no_data(tmp_path: Path) -> None:
    nothing = comparison(NO_TEST, test_set=NO_TEST, candidate="activation=tanh", scope="", n_seeds=0)
    claim = BEATS.replace("arctan", "tanh")
    (judged,) = judged_of(tmp_path, f"claims: ['{claim}']", lambda **_: result(block("lesions", nothing)))
    assert (judged.outcome, judged.reason) == ("no data", "no scored run of activation=tanh")


def test_folds_are_no_seeds() -> None:
    judged = judge(
        claim_of(BEATS), comparison(interval(0.01, 0.02), method=OVER_FOLDS, n_seeds=1, n_folds=5, variance={})
    )
    assert judged.to_decide == "3 seeds or more, the same in every fold"
    assert "1 seed x 5 folds x 60 images" in " ".join(as_text([judged]).split())
    assert json.loads(as_json([judged]))[0]["n_folds"] == 5


# Files against runs


def judged_of(folder: Path, text: str, compare: Callable[..., Result], **where: str) -> list[Judged]:
    return judge_claims(read_claims(written(folder, text)), compare, where)


def score(arm: str, levels: Mapping[str, str], n_seeds: int = 5) -> ArmScore:
    return ArmScore(arm, levels, n_seeds, 0, 60, 60, 0, 0, 0, 0.8, 0.01, 0.8, 0.8, {})


ARMS = ("sigmoid", "arctan", "arctan slope=2", "tanh")


def block(dataset: str, *comparisons: Comparison, arms: tuple[str, ...] = ARMS) -> Block:
    ranking = tuple(score(f"activation={arm}", {"activation": arm}, 0 if arm == "tanh" else 5) for arm in arms)
    return Block(dataset, "d" * 64, {"loss": "dice"}, ranking, comparisons, (), ())


def result(*blocks: Block, metric: Metric = METRICS["dice"]) -> Result:
    return Result(metric, "test", ("activation",), {}, "reference", 10, blocks, (), None, (), (), "")


WIDE = comparison(interval(0.01, 0.02))
CLEAR = comparison(interval(0.03, 0.01))


def test_each_claim_is_asked_for_and_judged_on_every_block(tmp_path: Path) -> None:
    asked: list[dict[str, Any]] = []

    def compare(**question: Any) -> Result:
        asked.append(question)
        steep = dataclasses.replace(WIDE, candidate="activation=arctan slope=2")
        other = dataclasses.replace(CLEAR, candidate="activation=tanh")
        return result(block("lesions", CLEAR, steep, other), block("nuclei", WIDE))

    text = f"claims:\n- {BEATS} under loss=bce\n- {BEATS} by at least 1 point on data set nuclei\n"
    judged = judged_of(tmp_path, text, compare)
    question = {"metric": "dice", "by": ("activation",), "reference": "activation=sigmoid"}
    assert asked == [{**question, "where": {"loss": "ce"}}, {**question, "where": {}}]
    assert [(j.where, j.candidate, j.outcome) for j in judged] == [
        ("lesions, loss=dice", "activation=arctan", "supported"),
        ("lesions, loss=dice", "activation=arctan slope=2", "undetermined"),
        ("nuclei, loss=dice", "activation=arctan", "undetermined"),
        ("nuclei, loss=dice", "activation=arctan", "undetermined"),
    ]
    # Holm over the four of the file.
    assert judged[0].p_holm == pytest.approx(4 * judged[0].p)
    assert "over the 4 claims judged on single data sets, below" in note(judged)


def test_claims_that_no_runs_speak_to(tmp_path: Path) -> None:
    claims = (
        "activation=softsign beats activation=sigmoid on dice",
        "activation=arctan beats activation=tanh on dice",
        f"{BEATS} on data set kidneys",
        f"{BEATS} under loss=mse",
        BEATS,
    )

    def compare(where: Mapping[str, str], **_: Any) -> Result:
        if where:
            raise UsageError("no run has loss=mse; there are ce, dice")
        return result(block("lesions"))

    judged = judged_of(tmp_path, "claims:\n" + "".join(f"- {claim}\n" for claim in claims), compare)
    assert {j.outcome for j in judged} == {"no data"}
    assert [j.reason for j in judged] == [
        "no scored run of activation=softsign",
        "no scored run of activation=tanh",
        "no runs on data set kidneys, only on lesions",
        "no run has loss=mse; there are ce, dice",
        "both arms have runs, but none under equal conditions",
    ]
    assert all(math.isnan(j.p_holm) for j in judged)


def test_only_what_cannot_be_answered_is_no_data(tmp_path: Path) -> None:
    def compare(**_: Any) -> Result:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        judged_of(tmp_path, f"claims: ['{BEATS}']", compare)


def test_the_claims_of_the_paper_against_runs(tmp_path: Path) -> None:
    """All of it together: arctan is there under dice alone, and three points better; normal_cdf is nowhere."""
    make_pair(tmp_path / "dice", effect=0.03, config={"loss.name": "dice"}, prefix="d")
    make_pair(tmp_path / "ce", effect=-0.03, arms=("student_t3", "sigmoid"), config={"loss.name": "ce"}, prefix="c")
    judged = judge_claims(read_claims(preset_file("claims", "nieradzik2021")), partial(compare, [tmp_path]))
    assert [(j.where, j.outcome, j.n_seeds, j.n_images) for j in judged] == [
        ("lesions", "supported", 5, 60),
        ("", "no data", 0, 0),
    ]
    assert judged[0].interval is not None
    assert judged[0].interval.mean == pytest.approx(0.03, abs=0.005)
    assert judged[1].reason == "no scored run of activation=normal_cdf under loss=ce"


def test_as_table_and_as_json(tmp_path: Path) -> None:
    def compare(metric: str, **_: Any) -> Result:
        noted = dataclasses.replace(CLEAR, scope="new seeds, this test set", warnings=("5 images", "unpaired"))
        found = WIDE if metric == "dice" else noted
        return result(block("lesions", found), metric=METRICS[metric])

    hd95 = BEATS.replace("dice", "hd95")
    text = f"claims:\n- claim: {BEATS}\n  source: S\n- {hd95}\n- {BEATS} on data set x\n"
    judged = judged_of(tmp_path, text, compare)
    rows = list(csv.DictReader(io.StringIO(as_csv(judged))))
    assert [row["outcome"] for row in rows] == ["undetermined", "refuted", "no data"]
    assert [row["speaks of"] for row in rows] == ["new seeds and new images", "new seeds, this test set", "-"]
    assert [row["warnings"] for row in rows] == ["-", "5 images; unpaired", "-"]
    assert [row["difference"] for row in rows] == ["+1.00 points", "+0.0300", "-"]
    assert [row["95 %"] for row in rows] == ["[-1.00, +3.00]", "[+0.0200, +0.0400]", "-"]
    assert [row["rests on"] for row in rows] == ["5 seeds x 60 images", "5 seeds x 60 images", "-"]
    assert [row["candidate"] for row in rows] == ["activation=arctan", "activation=arctan", "-"]
    assert "; to decide: " in rows[0]["why, and what would decide"]
    assert as_text(judged).startswith(
        f"UNDETERMINED: {BEATS}\n  activation=arctan against activation=sigmoid on lesions"
    )
    assert "| refuted |" in as_markdown(judged)
    content = json.loads(as_json(judged))
    assert [entry["outcome"] for entry in content] == ["undetermined", "refuted", "no data"]
    assert content[0]["interval"]["low"] == pytest.approx(-0.01)
    assert (content[0]["source"], content[0]["line"], content[0]["metric"]) == ("S", 2, "dice")
    assert content[2]["interval"] is None


# What several claims, several data sets and the runs themselves have to say


def test_an_outcome_rests_on_p_after_holm(tmp_path: Path) -> None:
    barely, clear = (dataclasses.replace(CLEAR, overall=interval(0.03, half)) for half in (0.027, 0.008))

    def compare(metric: str, **_: Any) -> Result:
        return result(block("lesions", clear if metric == "iou" else barely), metric=METRICS[metric])

    (alone,) = judged_of(tmp_path, f"claims: ['{BEATS}']", compare)
    assert (alone.outcome, alone.p_holm) == ("supported", alone.p)
    three = "".join(f"- {claim}\n" for claim in (BEATS, BEATS.replace("dice", "iou"), LOSES))
    held, sure, lost = judged_of(tmp_path, f"claims:\n{three}", compare)
    assert (held.outcome, sure.outcome, lost.outcome) == ("undetermined", "supported", "undetermined")
    assert held.p < 0.05 < held.p_holm == pytest.approx(2 * held.p)
    told = f"holds alone (p {p_value(held.p)}), not among the 3 claims judged (Holm p {p_value(held.p_holm)})"
    assert held.reason == told
    assert lost.reason == told.replace("holds alone", "is refuted alone")
    assert held.interval == alone.interval
    # What would decide is reckoned for the three of them.
    assert int(held.to_decide.split()[1]) > 5


def test_more_claims_take_more_seeds(tmp_path: Path) -> None:
    made = result(block("lesions", of_differences(crossed(1.0, 0.1, 0.5))))

    def seeds(n_claims: int) -> int:
        claims = "".join(f"- {BEATS}\n" for _ in range(n_claims))
        return int(judged_of(tmp_path, f"claims:\n{claims}", lambda **_: made)[0].to_decide.split()[1])

    assert seeds(10) > seeds(2) > seeds(1)


def over(differences: list[float], **changes: Any) -> OverDatasets:
    names = {f"d{n}": value for n, value in enumerate(differences)}
    arms = ("activation=arctan", "activation=sigmoid")
    made = OverDatasets(*arms, {}, names, "t over data sets", one_sample(differences), NAN, ())
    return dataclasses.replace(made, **changes)


def with_over(found: OverDatasets, *blocks: Block) -> Result:
    return dataclasses.replace(result(*blocks), over_datasets=(found,))


EIGHT = [0.012, 0.013, 0.009, 0.011, 0.014, 0.008, 0.016, 0.007]


def test_a_claim_of_no_data_set_is_judged_over_all_of_them(tmp_path: Path) -> None:
    blocks = [block(name, WIDE) for name in ("d0", "d1")]
    told = with_over(over(EIGHT, warnings=("few",)), *blocks)
    first, *others = judged_of(tmp_path, f"claims: ['{BEATS}']", lambda **_: told)
    assert (first.outcome, first.where, first.scope, first.n_datasets) == (
        "supported",
        "8 data sets",
        "new data sets",
        8,
    )
    assert first.p == pytest.approx(2**-7)  # all eight signs alike: exact signed ranks
    # A family of its own: the data sets one by one do not weigh on it.
    assert first.p_holm == first.p
    assert first.warnings == ("few",)
    assert [j.where for j in others] == ["d0, loss=dice", "d1, loss=dice"]
    assert "8 data sets" in as_text([first]).replace("\n  ", " ")
    named = judged_of(tmp_path, f"claims: ['{BEATS} on data set d1']", lambda **_: told)
    assert [j.where for j in named] == ["d1, loss=dice"]


@pytest.mark.parametrize(
    ("claim", "outcome", "p"),
    [
        (f"{BEATS} by at least 0.5 points", "supported", 2**-7),
        (f"{BEATS} by at least 1 point", "undetermined", None),
        (f"{BEATS} by at least 2 points", "refuted", 2**-7),
        (LOSES, "refuted", 2**-7),
        (f"{MATCHES} within 2 points", "supported", 2**-8),
        (f"{MATCHES} within 0.5 points", "refuted", 2**-7),
        (f"{MATCHES} within 1 point", "undetermined", None),
    ],
)
def test_margins_over_data_sets_by_signed_ranks(claim: str, outcome: str, p: float | None, tmp_path: Path) -> None:
    (judged,) = judged_of(tmp_path, f"claims: ['{claim}']", lambda **_: with_over(over(EIGHT), block("d", arms=ARMS)))
    assert judged.outcome == outcome
    assert p is None or judged.p == pytest.approx(p)
    assert (judged.to_decide != "") == (outcome == "undetermined")


def test_few_data_sets_are_tested_by_t(tmp_path: Path) -> None:
    told = with_over(over([0.02, 0.05, -0.01]), block("d"))
    (judged,) = judged_of(tmp_path, f"claims: ['{BEATS}']", lambda **_: told)
    assert judged.p == pytest.approx(one_sample([0.02, 0.05, -0.01]).p)
    needed = int(judged.to_decide.split()[1])
    assert judged.to_decide == f"about {needed} data sets, there are 3"
    # By hand: the mean is 1.15 standard errors, and 2.8 to 3.6 are needed.
    assert 3 * (2.8 / 1.15) ** 2 < needed < 3 * (3.6 / 1.15) ** 2


def test_warnings_of_block_and_runs_and_what_was_left_out_travel_along(tmp_path: Path) -> None:
    cut = dataclasses.replace(CLEAR, dropped="seed 2 of the reference alone", warnings=("4 seeds",))
    first, second = (dataclasses.replace(block(n, cut), warnings=(f"unequal on {n}",)) for n in ("d0", "d1"))
    told = dataclasses.replace(result(first, second), warnings=("a table was cut",))
    judged = judged_of(tmp_path, f"claims: ['{BEATS}']", lambda **_: told)
    assert judged[0].warnings == ("4 seeds", "not compared: seed 2 of the reference alone")
    assert judged[0].of_runs == ("a table was cut", "d0, loss=dice: unequal on d0")
    text = as_text(judged)
    assert text.count("warning: a table was cut\n") == 1
    assert "warning: d1, loss=dice: unequal on d1\n" in text
    assert "- a table was cut\n" in as_markdown(judged)
    assert json.loads(as_json(judged))[1]["warnings_of_runs"] == ["a table was cut", "d1, loss=dice: unequal on d1"]
    first_row, _ = csv.DictReader(io.StringIO(as_csv(judged)))
    assert first_row["warnings of runs"] == "a table was cut; d0, loss=dice: unequal on d0"
    # What is true under one claim's conditions alone says so.
    (judged_under, *_) = judged_of(tmp_path, f"claims: ['{BEATS} under loss=dice']", lambda **_: result(first))
    assert judged_under.of_runs == ("under loss=dice: unequal on d0",)


# Options and arms


@pytest.mark.parametrize(
    ("where", "told"),
    [
        ({"loss": "ce"}, "--where loss=ce leaves out the runs with loss=dice"),
        ({"loss.name": "ce"}, "--where loss.name=ce leaves out the runs with loss=dice"),
        ({"activation": "arctan"}, "--where activation=arctan leaves out the runs with activation=sigmoid"),
        ({"loss": "ce,focal"}, "--where loss=ce,focal leaves out the runs with loss=dice"),
    ],
)
def test_what_is_left_out_of_the_runs_is_no_data(where: dict[str, str], told: str, tmp_path: Path) -> None:
    (judged,) = judged_of(tmp_path, f"claims: ['{BEATS} under loss=dice']", lambda **_: result(), **where)
    assert (judged.outcome, judged.reason) == ("no data", told)


def test_the_same_value_by_another_name_is_no_contradiction(tmp_path: Path) -> None:
    where = {"loss": "dice,bce", "optimizer.lr": "1e-3"}
    text = f"claims: ['{BEATS} under loss=ce, optimizer.lr=0.001']"
    (judged,) = judged_of(tmp_path, text, lambda **_: result(block("lesions", CLEAR)), **where)
    assert judged.outcome == "supported"


@pytest.mark.parametrize(("steep", "flat"), [("arctan", "sigmoid"), ("sigmoid", "arctan")])
def test_arms_with_options_are_told_apart(steep: str, flat: str, tmp_path: Path) -> None:
    """Of the candidate or of the reference: each is judged, and says which it is."""
    dice = dict(zip(("arctan", "sigmoid"), drawn(5, 60, effect=0.03), strict=True))
    for seed in range(5):
        make_run(tmp_path, f"f{seed}", dice[flat][seed], {"activation.name": flat}, seed)
        for slope in (1.0, 2.0):
            config = {"activation.name": steep, "activation.slope": slope}
            make_run(tmp_path, f"s{slope}{seed}", dice[steep][seed], config, seed)
    judged = judged_of(tmp_path, f"claims: ['{BEATS}']", partial(compare, [tmp_path]))
    assert [j.outcome for j in judged] == ["supported", "supported"]
    both = [f"{steep} slope=1.0", f"{steep} slope=2.0"]
    assert sorted(j.candidate if steep == "arctan" else j.reference for j in judged) == both
    assert all(name in as_text(judged) for name in both)
    none = BEATS.replace("sigmoid", "tanh")
    (judged_none,) = judged_of(tmp_path, f"claims: ['{none}']", partial(compare, [tmp_path]))
    assert judged_none.reason == "no scored run of activation=tanh"


def test_a_rope_is_what_matches_without_a_size_means() -> None:
    assert claim_of(MATCHES, rope=0.5).margin == pytest.approx(0.005)
    assert claim_of(f"{MATCHES} within 2 points", rope=0.5).margin == pytest.approx(0.02)
    assert claim_of(BEATS, rope=0.5).margin == 0
    assert claim_of(MATCHES.replace("dice", "nll"), rope=0.1).margin == pytest.approx(0.1)
    with pytest.raises(UsageError, match="above 0"):
        claim_of(MATCHES, rope=0)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    make_pair(folder, effect=0.03)
    return folder


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--metric", "iou"], "--metric and --claims"),
        (["--metric", "dice"], "--metric and --claims"),
        (["--by", "activation"], "--by and --claims"),
        (["--latex"], "--latex"),
        (["--split", "tset"], "--split tset: there are"),
        (["--rope", "0.5"], "leave --rope out"),
        (["--rope", "-1"], "--rope -1"),
        (["--where", "loss=ce"], "no run has loss=ce"),
        (["--where", "los=dice"], "no run has the key 'los'"),
    ],
    ids=" ".join,
)
def test_an_option_that_cannot_be_followed_is_refused(
    words: list[str], told: str, study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, f"claims: ['{BEATS}']")
    assert cli.main(["compare", str(study), "--claims", str(path), *words]) == 2
    said = capsys.readouterr()
    assert told in said.err
    assert said.err.count("\n") == 1
    assert said.out == ""


def test_a_wrong_path_is_no_fault_of_the_claims(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["compare", str(tmp_path / "nowhere"), "--claims", "nieradzik2021"]) == 2
    said = capsys.readouterr()
    assert "nowhere" in said.err
    assert said.out == ""


def test_the_runs_are_read_once(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (
        mock.patch("segexp.compare.load.load", wraps=load) as of_command,
        mock.patch("segexp.compare.verdict.load", side_effect=AssertionError),
    ):
        assert cli.main(["compare", str(study), "--claims", "nieradzik2021", "--where", "loss=dice", "--json"]) == 0
    assert of_command.call_count == 1
    first, second = json.loads(capsys.readouterr().out)
    assert first["outcome"] == "supported"
    assert second["reason"] == "--where loss=dice leaves out the runs with loss=ce"


@pytest.mark.parametrize("form", ["--csv", "--json", "--markdown"])
def test_claims_in_every_form(form: str, study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["compare", str(study), "--claims", "nieradzik2021", form]) == 0
    assert "supported" in capsys.readouterr().out


def test_the_width_that_matches_without_a_size_means(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, f"claims: ['{MATCHES}']")
    outcomes = []
    for words in ([], ["--rope", "8"]):
        assert cli.main(["compare", str(study), "--claims", str(path), "--json", *words]) == 0
        outcomes.append(json.loads(capsys.readouterr().out)[0]["outcome"])
    assert outcomes == ["refuted", "supported"]
