"""The score table agrees with the tables of a run and with `compare`."""

import math

import pytest

from segexp.compare.result import METRICS
from segexp.records import COLUMNS
from segexp.records.scores import PER_IMAGE, SCORES, result_rows, unit_of


def test_every_number_that_a_run_is_scored_with_has_a_row():
    numbers = {name for name, kind in COLUMNS["summary"].items() if kind is float}
    assert numbers - {"threshold_tuned", "temperature"} == {
        name for name, score in SCORES.items() if score.kind is float
    }
    assert {name for name in SCORES if name.startswith("n_")} == {
        "n_gt_nonempty", "n_train_groups", "n_test_groups", "n_test_cases",
    }  # fmt: skip
    assert [name for name in COLUMNS["images"] if name in SCORES] == list(PER_IMAGE)
    assert [name for name, score in SCORES.items() if score.compared] == list(METRICS)


@pytest.mark.parametrize("name", ["dice", "hd95", "nll"])
def test_a_metric_has_the_facts_of_its_row(name: str):
    score, metric = SCORES[name], METRICS[name]
    assert (metric.title, metric.higher_is_better, metric.per_image) == (score.title, name == "dice", True)
    assert metric.points == (score.unit == "points")


def test_distances_are_in_the_unit_of_the_spacing():
    assert [unit_of(SCORES["hd95"], *known) for known in ((None, None), ([0.5, 0.5], None), (None, "mm"))] == [
        "pixels", "mm", "mm",
    ]  # fmt: skip
    assert unit_of(SCORES["dice"], [0.5, 0.5], "mm") == "points"


def test_the_result_table_shows_what_there_is():
    rows = {row["column"]: row["value"] for row in result_rows({"dice": 0.51234, "iou": math.nan}, "val")}
    assert (rows["dice"], rows["iou"], rows["nsd"]) == ("0.5123", "-", "-")
    assert [name for name in rows if name not in COLUMNS["summary"]] == []


def test_the_result_table_names_units():
    def titles(summary: dict[str, str], **config: object) -> list[str]:
        rows = {row["column"]: row["test score"] for row in result_rows(summary, config=config)}
        return [rows["nsd"], rows["hd95"]]

    assert titles({}) == ["normalised surface Dice by pixels", "Hausdorff distance 95 % (pixels)"]
    of_cases = titles({"distance_unit": "mm"}, **{"metrics.unit": "case"})
    assert of_cases == ["normalised surface Dice by voxels", "Hausdorff distance 95 % (mm)"]
    assert titles({}, **{"dataset.spacing": [0.5, 0.5]})[1].endswith("(mm)")
