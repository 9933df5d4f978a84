"""What is adjusted for what: data sets, metrics and classes of one call are one family; scores of single classes."""

import csv
import io
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fabricated import sealed
from made_scores import N_GT, drawn, edit_record, make_arm, make_pair, make_run, only
from messages import mentions

from segexp import cli
from segexp.compare.claims import Claim, evaluate_claims
from segexp.compare.result import METRICS, Result
from segexp.compare.statistics import holm, two_way
from segexp.compare.verdict import SELECTED, compare
from segexp.errors import UsageError
from segexp.report.drawing import styled
from segexp.report.figures import forest
from segexp.report.formats import datasets_csv, how_to_read
from segexp.report.tables import of_block


def make_arms(study: Path, effects: list[float], dataset: str = "a", rng: int = 0, n_images: int = 12) -> None:
    """sigmoid, and a candidate for each effect, on a data set of its own."""
    shas: dict[str, Any] = {"dataset_sha": dataset * 64, "split_sha": dataset * 64}
    config = {"dataset.name": dataset}
    make_arm(study, "sigmoid", drawn(5, n_images, 0.0, rng=rng)[1], config, dataset, **shas)
    for n, effect in enumerate(effects):
        make_arm(study, f"candidate{n}", drawn(5, n_images, effect, rng=rng)[0], config, dataset, **shas)


def every(result: Result) -> list[Any]:
    return [c for one in (result, *result.others) for block in one.blocks for c in block.comparisons]


def family(result: Result) -> tuple[list[float], list[float]]:
    """p and p_holm of all comparisons and results across data sets."""
    over = [found for one in (result, *result.others) for found in one.over_datasets]
    p = [*(c.deciding.p for c in every(result)), *(found.interval.p for found in over)]
    return p, [*(c.p_holm for c in every(result)), *(found.p_holm for found in over)]


# Data sets
def test_five_candidates_on_four_data_sets_are_one_family(tmp_path: Path):
    """A difference that holds among the candidates of its data set need not hold among all that the headline names."""
    for n, name in enumerate("abcd"):
        make_arms(tmp_path / "s", [0.0008 * m for m in range(4)] + [0.005 if name == "a" else 0.001], name, rng=n)
    result = compare([tmp_path])
    p, p_holm = family(result)
    assert len(p) == result.n_family == 25
    assert p_holm == pytest.approx(holm(p))
    (claimed,) = [c for c in result.blocks[0].comparisons if c.candidate == "candidate4"]
    assert claimed.p_block < 0.05 < claimed.p_holm
    assert claimed.verdict == "inconclusive"
    assert mentions(result.headline, "On single data sets", "no candidate", "20 comparisons")
    for block in result.blocks:
        assert [c.p_block for c in block.comparisons] == pytest.approx(holm([c.deciding.p for c in block.comparisons]))
    # The verdict without an image is within the same family.
    without = claimed.influence[0]
    others = [c.deciding.p for c in every(result) if c is not claimed]
    again = holm([without.interval.p, *others, *(found.interval.p for found in result.over_datasets)])
    assert without.p_holm == pytest.approx(again[0])


def test_from_six_data_sets_on_the_headline_is_the_result_across_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    for n, name in enumerate("abcdef"):
        make_arms(tmp_path / "s", [0.02], name, rng=n)
    result = compare([tmp_path])
    (over,) = result.over_datasets
    assert over.p_holm == over.interval.p
    singles = every(result)
    assert [c.p_holm for c in singles] == pytest.approx(holm([c.deciding.p for c in singles]))
    assert result.n_family == 6
    assert mentions(result.headline, "Across 6 data sets", "candidate0", "better", "tables")
    assert not any(mentions(result.headline, f"on {name}") for name in "abcdef")
    (row,) = csv.DictReader(io.StringIO(datasets_csv(result)))
    assert (row["candidate"], row["method"], row["n_datasets"]) == ("candidate0", over.method, "6")
    assert (float(row["p_holm"]), float(row["prediction_high"])) == (over.p_holm, over.prediction[1])
    assert {name: float(row[f"mean_on_{name}"]) for name in "abcdef"} == over.differences
    assert cli.main(["compare", str(tmp_path), "--csv"]) == 0
    assert mentions(capsys.readouterr().err, "across data sets are not in this table", "datasets.csv")


def test_a_candidate_on_few_of_many_data_sets_is_exploratory(tmp_path: Path):
    for n, name in enumerate("abcdef"):
        make_arms(tmp_path / "s", [0.02, 0.03][: 1 + (n < 3)], name, rng=n)
    headline = compare([tmp_path]).headline
    _, few, many = headline.split("cross ")
    assert mentions(many, "6 data sets candidate0 is better")
    assert mentions(few, "3 data sets candidate1 is better")
    assert ["exploratory: fewer than 6 data sets" in told for told in (many, few)] == [False, True]


# Metrics
def test_metrics_of_one_call_are_one_family(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    make_arms(tmp_path / "s", [0.004, 0.02], n_images=30)
    alone = compare([tmp_path])
    result = compare([tmp_path], metric=("dice", "iou", "nll"))
    p, p_holm = family(result)
    assert ([one.metric.name for one in result.others], len(p), result.n_family) == (["iou", "nll"], 6, 6)
    assert p_holm == pytest.approx(holm(p))
    assert every(result)[0].p_block == pytest.approx(every(alone)[0].p_holm)
    assert (len(result.runs), [one.runs for one in result.others]) == (15, [(), ()])
    for metric in ("Dice", "IoU", "NLL"):
        assert mentions(result.headline, metric)
    assert mentions(how_to_read(alone)[2], "2 comparisons", "a,b,c")
    assert mentions(how_to_read(result)[2], "6 comparisons")
    shown = {}
    for form in ("", "--json", "--csv", "--markdown", "--latex"):
        words = ["compare", str(tmp_path), "--metric", "dice,iou,nll", *([form] if form else [])]
        assert cli.main(words) == 0
        shown[form] = capsys.readouterr().out
    rows = list(csv.DictReader(shown["--csv"].splitlines()))
    assert [row["metric"] for row in rows] == ["dice"] * 2 + ["iou"] * 2 + ["nll"] * 2
    assert "class" not in rows[0]
    assert [one["metric"]["name"] for one in json.loads(shown["--json"])["others"]] == ["iou", "nll"]
    for form in ("", "--markdown"):
        assert mentions(shown[form], "IoU: a", "NLL: a", "6 comparisons")
    assert mentions(shown[""], "negligible: Dice within 1.00 points, IoU within 1.00 points, NLL not defined")
    labels = [line for line in shown["--latex"].splitlines() if line.startswith(r"\label")]
    assert len(labels) == len(set(labels))
    assert r"\label{tab:iou-comparisons}" in labels


def test_one_rope_is_for_one_unit(tmp_path: Path):
    make_pair(tmp_path / "s")
    assert [r.metric.rope for r in compare([tmp_path], metric=("dice", "iou"), rope=2.0).others] == [0.02]
    with pytest.raises(UsageError, match=r"dice in points, hd95 in pixels.*--rope"):
        compare([tmp_path], metric=("dice", "hd95"), rope=2.0)


def test_scores_that_chose_the_epoch_warn_first(tmp_path: Path):
    make_pair(tmp_path / "s", effect=0.02, summary={"best_epoch": 4, "val_dice": 0.8})
    for metrics in ("val_dice", ("dice", "val_dice")):
        assert compare([tmp_path], metric=metrics).warnings[0] == SELECTED
    assert SELECTED not in compare([tmp_path]).warnings


# Equivalence
@pytest.mark.parametrize(("n", "equivalent"), [(1, True), pytest.param(5, False, marks=pytest.mark.slow)])
def test_equivalence_has_one_answer_in_compare_and_in_claims(tmp_path: Path, n: int, equivalent: bool):
    make_arms(tmp_path / "s", [0.004] * n, rng=2, n_images=20)
    found = compare([tmp_path])
    assert [c.verdict for c in every(found)] == ["equivalent" if equivalent else "inconclusive"] * n
    claims = [
        Claim(
            {"activation": f"candidate{m}"},
            {"activation": "sigmoid"},
            METRICS["dice"],
            "equivalent",
            0.01,
            {},
            "",
            "",
            m,
        )
        for m in range(n)
    ]
    results = evaluate_claims(claims, lambda **question: compare([tmp_path], **question))
    assert [r.outcome for r in results] == ["supported" if equivalent else "undetermined"] * n
    if equivalent:
        assert mentions(found.headline, "equivalent", "1.00 points", only(found).condition)
        assert mentions(only(found).condition, "unless", "3/20")
        assert only(found).condition in results[0].reason


# Classes
@pytest.fixture(scope="module")
def organs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray, np.ndarray]:
    """A study of two classes, 60 images; the second third of them lacks class 2. Also the differences in Dice."""
    folder = tmp_path_factory.mktemp("organs")
    rng = np.random.default_rng(3)
    dice_AKNF = np.round(0.7 + 0.02 * rng.standard_normal((2, 5, 60, 2)), 3)
    dice_AKNF[1, ..., 1] += 0.05
    for a, arm in enumerate(("sigmoid", "arctan")):
        for seed in range(5):
            config = {"activation.name": arm, "dataset.class_names": ["background", "liver", "tumour"]}
            run = make_run(folder / "s", f"{arm}{seed}", dice_AKNF[a, seed, :, 0], config, seed, summary={"dice": None})
            lines = (run / "images.csv").read_text().splitlines()
            rows = [lines[0]]
            for n, line in enumerate(lines[1:]):
                cells = line.split(",")
                held = not 20 <= n < 40
                tp = round(N_GT * dice_AKNF[a, seed, n, 1]) * held
                lost, total = (N_GT - tp) * held, N_GT * held
                cells[2], cells[7:14] = (
                    "2",
                    [str(v) for v in (total, total, tp, lost, lost)]
                    + ([repr(tp / N_GT), repr(tp / (tp + 2 * lost))] if held else ["", ""]),
                )
                rows += [line, ",".join(cells)]
            sealed(run / "images.csv", "\n".join(rows) + "\n")
            edit_record(run, n_rows_expected={"images": 120})
    return folder, dice_AKNF[1, :, :, 0] - dice_AKNF[0, :, :, 0], (dice_AKNF[1] - dice_AKNF[0])[:, np.r_[:20, 40:60], 1]


def test_each_class_has_a_verdict_within_one_family(organs: tuple[Path, np.ndarray, np.ndarray]):
    folder, *differences = organs
    result = compare([folder], class_="each")
    liver, tumour = every(result)
    assert [(r.metric.title, r.metric.class_id) for r in (result, *result.others)] == [
        ("Dice, liver", 1),
        ("Dice, tumour", 2),
    ]
    for found, difference_KN in zip((liver, tumour), differences, strict=True):
        expected = two_way(difference_KN).interval
        # Counts are whole pixels: Dice is exact to 1e-5.
        assert (found.overall.mean, found.overall.p) == pytest.approx((expected.mean, expected.p), rel=1e-3, abs=1e-9)
        assert found.n_images == difference_KN.shape[1]
    p, p_holm = family(result)
    assert p_holm == pytest.approx(holm(p))
    assert (tumour.verdict, liver.verdict.significant) == ("better", False)
    assert mentions(result.headline, "Dice, liver", "Dice, tumour")
    assert result.runs[0]["score"] == pytest.approx(next(iter(result.blocks[0].ranking[1].seeds.values())), abs=0.1)
    # One metric more doubles the family; the classes stay side by side.
    both = compare([folder], metric=("dice", "iou"), class_="each")
    assert (both.n_family, [r.metric.class_id for r in both.others]) == (4, [2, 1, 2])


@pytest.mark.parametrize("name", ["tumour", "2"])
def test_one_class_by_name_or_number(
    organs: tuple[Path, np.ndarray, np.ndarray], name: str, capsys: pytest.CaptureFixture[str]
):
    found = only(compare([organs[0]], class_=name))
    assert found.p_holm == found.deciding.p
    assert cli.main(["compare", str(organs[0]), "--class", name, "--csv"]) == 0
    (row,) = csv.DictReader(capsys.readouterr().out.splitlines())
    assert (row["metric"], row["class"], row["n_images"]) == ("dice", "2", "40")
    assert cli.main(["compare", str(organs[0]), "--class", name, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metric"]["class_id"] == 2


def test_data_with_one_class_have_that_one(tmp_path: Path):
    make_pair(tmp_path / "s", effect=0.02)
    alone, each = compare([tmp_path]), compare([tmp_path], class_="each")
    assert each.metric.title == "Dice, class 1"
    assert only(each).overall == only(alone).overall


@pytest.mark.parametrize(("words", "named"), [
    (["--class", "spleen"], ["spleen", "1 (liver), 2 (tumour)", "each"]),
    (["--class", "each", "--metric", "dice,auroc"], ["auroc", "dice, iou, nsd, hd95, nll, brier"]),
    (["--class", "1", "--claims", "nieradzik2021"], ["leave --class out"]),
    (["--metric", "dice,dise"], ["did you mean dice?"]),
    (["--metric", ","], ["--metric"]),
], ids=" ".join)  # fmt: skip
def test_what_cannot_be_scored_is_refused_with_what_can(
    organs: tuple[Path, np.ndarray, np.ndarray], words: list[str], named: list[str], capsys: pytest.CaptureFixture[str]
):
    assert cli.main(["compare", str(organs[0]), *words]) == 2
    output = capsys.readouterr()
    assert [name for name in named if name not in output.err] == []
    assert (output.err.count("\n"), output.out) == (1, "")


@pytest.mark.slow
def test_the_report_shows_further_metrics(
    organs: tuple[Path, np.ndarray, np.ndarray], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "report.html"
    words = ["report", str(organs[0]), "--class", "each", "-o", str(out), "--tables", str(tmp_path / "tables")]
    assert cli.main(words) == 0
    assert mentions(capsys.readouterr().out, "Dice, tumour")
    assert "Dice, tumour: lesions" in out.read_text()
    assert (tmp_path / "tables" / "dice-class-2-1-comparisons.md").exists()


def make_four(study: Path, gains: Sequence[float], rng: int = 0, **changes: Any) -> None:
    for n, (arm, gain) in enumerate(zip(("sigmoid", "arctan", "softsign", "laplace"), gains, strict=True)):
        candidate_KN, _ = drawn(4, 30, gain, rng=10 * rng + n)
        make_arm(study, arm, candidate_KN, prefix=str(rng), **changes)


def test_all_pairs_are_compared_once_from_the_better_arm_and_adjusted_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    make_four(tmp_path, (0, 0.1, -0.1, 0.05))
    result = compare([tmp_path], reference="all")
    (block,) = result.blocks
    order = [arm.arm for arm in block.ranking]
    assert [(c.candidate, c.reference) for c in block.comparisons] == list(itertools.combinations(order, 2))
    assert (block.n_pairs, result.n_family) == (6, 6)
    assert compare([tmp_path]).blocks[0].n_pairs == 0
    p_holm = [c.p_holm for c in block.comparisons]
    assert p_holm == pytest.approx(holm([c.deciding.p for c in block.comparisons]))
    assert all(c.deciding.mean > 0 for c in block.comparisons)
    assert cli.main(["compare", str(tmp_path), "--reference", "all"]) == 0
    lines = capsys.readouterr().out.splitlines()
    at = next(n for n, line in enumerate(lines) if line.startswith("All pairs"))
    cells = {arm: f"{arm} {n}" for n, arm in enumerate(order, start=1)}
    for one in block.comparisons:
        cells[one.candidate] += f" {100 * one.deciding.mean:+.2f}" + " *" * one.verdict.significant
    assert [" ".join(line.split()) for line in lines[at + 3 : at + 7]] == list(cells.values())
    assert len({one.verdict for one in block.comparisons}) == 2


def test_pairs_have_one_direction_on_all_data_sets(tmp_path: Path):
    """The better arm of one data set is the worse of another: differences across them must not change their sign."""
    for n, name in enumerate("abc"):
        gains = (0, 0.03, -0.02, 0.05) if n else (0.05, 0, 0.03, -0.02)
        make_four(tmp_path, gains, n, config={"dataset.name": name}, dataset_sha=name * 64, split_sha=name * 64)
    result = compare([tmp_path], reference="all")
    assert len(result.over_datasets) == 6
    for found in result.over_datasets:
        for block in result.blocks:
            means = {arm.arm: arm.mean for arm in block.ranking}
            expected = means[found.candidate] - means[found.reference]
            assert found.differences[block.dataset] == pytest.approx(expected)
    assert any(min(one.differences.values()) < 0 < max(one.differences.values()) for one in result.over_datasets)


def test_many_pairs_are_shown_by_their_differences_and_verdicts_alone(tmp_path: Path):
    for n in range(7):
        make_arm(tmp_path, f"arm{n}", drawn(3, 12, 0.01 * n, rng=n)[0])
    block = compare([tmp_path], by=["activation"], reference="all").blocks[0]
    metric = compare([tmp_path], by=["activation"], reference="all").metric
    first, details = of_block(block, metric, "")
    assert [table.name for table in first] == ["ranking", "pairs", "comparisons"]
    assert details == []
    with styled():
        (drawing,) = forest(block, metric, "x")
    (axis,) = drawing.figure.axes
    assert len(axis.patches) == len(block.comparisons) == 21
    assert [text.get_text() for text in axis.get_yticklabels()] == [arm.arm for arm in block.ranking[:-1]]
