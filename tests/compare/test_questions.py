"""Second questions: values worked out by hand on made-up runs, and every way in which a run can lack something."""

import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from fabricated import make_run, row
from messages import mentions
from timing import within
from tiny import tiny_run

from segexp.compare.questions import IN_BINS, IN_IMAGES, OF_FOLDS, QUESTIONS, Reading, ask, near_the_best
from segexp.compare.result import METRICS, Answer, Curve, Panel
from segexp.errors import UsageError
from segexp.records import read_run, text_rows, write_json, write_table
from segexp.records.scores import PER_IMAGE, class_rows

Rows = Iterable[dict[str, Any]]


class Runs:
    """Makes run directories of arms. Rows of tables: those of `row` but for the values given."""

    def __init__(self, study: Path) -> None:
        self.study = study
        self.arms: dict[str, list[Path]] = {}
        self._numbers = count()

    def add(
        self,
        arm: str,
        tables: Mapping[str, Rows] | None = None,
        summary: Mapping[str, Any] | None = None,
        config: Mapping[str, Any] | None = None,
        **record: Any,
    ) -> Path:
        run_dir = make_run(self.study, f"{next(self._numbers):08x}", config=config, **record)
        changed = read_run(run_dir)
        changed["summary"] |= summary or {}
        for table, rows in (tables or {}).items():
            with mock.patch("os.fsync"):
                write_table(run_dir / f"{table}.csv", table, [row(table, **values) for values in rows], changed)
        write_json(run_dir / "run.json", changed)
        self.arms.setdefault(arm, []).append(run_dir)
        return run_dir

    def ask(self, question: str, split: str = "test") -> Answer:
        (answer,) = ask([question], self.arms, split)
        return answer


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path)


def test_a_mean_over_folds_is_said_not_to_be_that_of_the_ranking(runs: Runs) -> None:
    runs.add("a", summary={"dice": 0.5})
    assert OF_FOLDS not in runs.ask("boundary").notes
    for fold in range(2):
        runs.add("a", summary={"dice": 0.7}, config={"split.folds": 2, "split.fold": fold})
    for question in ("boundary", "cost", "threshold", "diagnostics"):
        answer = runs.ask(question)
        assert (OF_FOLDS in answer.notes) == any("dice" in row for row in answer.rows)
    assert OF_FOLDS in runs.ask("boundary").notes
    assert OF_FOLDS not in runs.ask("convergence").notes


MANY = """
import os, sys
from pathlib import Path
from segexp.compare import questions
from segexp.records import process
questions.FROM_RUNS = int(sys.argv[1])
process.usable_cores = lambda: 2
asked = questions.in_parallel
questions.in_parallel = lambda calls: print("in parallel", file=sys.stderr) or asked(calls)
arms = {arm: sorted(Path(arm).iterdir()) for arm in sys.argv[2:]}
print(repr(questions.ask(list(questions.QUESTIONS), arms)))
"""


def test_questions_on_many_runs_are_answered_side_by_side(tmp_path: Path) -> None:
    for arm in ("a", "b"):
        runs = Runs(tmp_path / arm)
        for seed in range(2):
            runs.add(arm, {"epochs": [{"epoch": 1, "split": "val", "dice": 0.5 + seed / 8}]})
    said = [
        subprocess.run(
            [sys.executable, "-c", MANY, least, str(tmp_path / "a"), str(tmp_path / "b")],
            capture_output=True, text=True, check=True,
        )
        for least in ("1", "99")
    ]  # fmt: skip
    assert [one.stderr.splitlines() for one in said] == [["in parallel"], []]
    assert said[0].stdout == said[1].stdout
    assert "convergence" in said[0].stdout


def panel_of(answer: Answer, name: str) -> Panel:
    (panel,) = [panel for panel in answer.panels if panel.name == name]
    return panel


def curve_of(answer: Answer, panel: str, arm: str) -> Curve:
    (curve,) = [curve for curve in panel_of(answer, panel).curves if curve.arm == arm]
    return curve


def told(answer: Answer, *parts: str) -> str:
    """The one note that names all of these."""
    (note,) = [note for note in answer.notes if mentions(note, *parts)]
    return note


def close(value: Any, *, abs: float = 1e-12) -> Any:
    if isinstance(value, tuple):
        return tuple(close(part, abs=abs) for part in value)
    return pytest.approx(value, abs=abs, nan_ok=True)


def at(curve: Curve, x: float) -> tuple[float, float, float]:
    """y, low and high of a curve at the place nearest x."""
    i = min(range(len(curve.x)), key=lambda j: abs(curve.x[j] - x))
    assert curve.x[i] == pytest.approx(x, abs=1e-9)
    return curve.y[i], curve.low[i], curve.high[i]


# calibration
def bins(
    *cells: tuple[str, int, int, int, float, float], split: str = "test", class_id: int = 1
) -> list[dict[str, Any]]:
    names = ("region", "scaled", "bin", "n", "sum_p", "sum_y")
    return [{"split": split, "class_id": class_id} | dict(zip(names, cell, strict=True)) for cell in cells]


def test_calibration_pools_pixels_and_weighs_runs_alike(runs: Runs):
    first = bins(("all", 0, 0, 10, 0.5, 1.0), ("all", 0, 14, 10, 9.5, 8.0), ("all", 0, 7, 0, 0.0, 0.0))
    first += bins(("boundary", 0, 7, 4, 2.0, 1.0), ("boundary", 1, 7, 4, 2.0, 2.0), ("all", 1, 14, 20, 18.0, 18.0))
    second = bins(("all", 0, 0, 30, 1.5, 5.0), ("boundary", 0, 7, 4, 2.0, 0.0))
    second += bins(("all", 0, 0, 9, 9.0, 9.0), ("boundary", 0, 7, 4, 2.0, 4.0), split="val")
    before = {"nll": 0.4, "brier": 0.2, "ece15": 0.1, "temperature": 1.5}
    runs.add("a", {"bins": first}, before | {"nll_t": 0.3, "brier_t": 0.15, "ece15_t": 0.05})
    runs.add("a", {"bins": second}, before | {"nll": 0.6, "nll_t": 0.5, "brier_t": 0.15, "ece15_t": 0.05})
    answer = runs.ask("calibration")
    (found,) = answer.rows
    assert (found["arm"], found["n_runs"]) == ("a", 2)
    assert (found["nll"], found["nll_sd"]) == close((0.5, math.sqrt(0.02)))
    assert (found["nll_t"], found["ece15_t"], found["temperature"]) == close((0.4, 0.05, 1.5))
    # |1 - 2| / 4 and |0 - 2| / 4; after the temperature the first alone has any, |2 - 2| / 4.
    assert (found["ece15_boundary"], found["ece15_boundary_sd"]) == close((0.375, math.sqrt(0.03125)))
    assert found["ece15_boundary_t"] == 0
    curve = curve_of(answer, "reliability", "a")
    assert (curve.x, curve.y, curve.n) == close(((0.05, 0.95), (6 / 40, 0.8), (40, 10)))
    assert curve_of(answer, "reliability_boundary", "a").y == close((1 / 8,))
    assert curve_of(answer, "reliability_t", "a").x == close((0.9,))
    assert all(panel.diagonal for panel in answer.panels)


def test_heads_without_probabilities_have_no_calibration_and_say_so(runs: Runs):
    nothing = dict.fromkeys(("nll", "brier", "ece15", "nll_t", "brier_t", "ece15_t", "temperature"))
    runs.add("identity", {"bins": []}, nothing)
    runs.add("sigmoid", {"bins": bins(("all", 0, 0, 10, 0.5, 1.0))})
    answer = runs.ask("calibration")
    assert math.isnan(answer.rows[0]["nll"])
    assert [curve.arm for curve in panel_of(answer, "reliability").curves] == ["sigmoid"]
    for lacking in (("nll", "brier", "ece15", "nll_t"), ("rows of test", "bins.csv")):
        assert told(answer, "1 of 2", "identity 1", *lacking)
    del runs.arms["sigmoid"]
    assert told(runs.ask("calibration", "val"), "rows of val", "bins.csv", "1 of 1", "identity 1")


def test_a_temperature_at_the_end_of_its_range_is_told(runs: Runs):
    for temperature in (99.9, 1.0, 0.0101):
        runs.add("a", {"bins": bins(("all", 0, 0, 10, 0.5, 1.0))}, {"temperature": temperature})
    assert told(runs.ask("calibration"), "limit", "range", "2 of 3", "a 2")


# threshold
def thresholds(dice: Mapping[float, float], split: str = "test", class_id: int = 1) -> list[dict[str, Any]]:
    return [{"split": split, "class_id": class_id, "threshold": t, "dice": d} for t, d in dice.items()]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_threshold_curves_meet_between_grids_that_differ(runs: Runs):
    first = {"temperature": 1.0, "dice": 0.6, "dice_tuned": 0.85, "threshold_tuned": 1.0}
    runs.add("a", {"thresholds": thresholds({-2.0: 0.4, 0.0: 0.6, 2.0: 0.9, 4.0: 0.5})}, first)
    second = {"temperature": 2.0, "dice": 0.8, "dice_tuned": 0.78, "threshold_tuned": 0.0}
    runs.add("a", {"thresholds": thresholds({-3.0: 0.5, 0.0: 0.8, 3.0: 0.8})}, second)
    answer = runs.ask("threshold")
    (found,) = answer.rows
    assert (found["dice"], found["dice_best"], found["regret"]) == close((0.7, 0.85, 0.15))
    assert (found["gain_tuned"], found["gain_tuned_sd"]) == close((0.115, 0.27 / math.sqrt(2)))
    assert found["threshold_tuned"] == close((sigmoid(1) + 0.5) / 2)
    # 0.89 is reached 1/15 of the way back from 2 to 0 and 1/40 of that to 4; 0.79 at -0.1, then to the last one tried.
    assert found["plateau_low"] == close((sigmoid(2 - 2 / 30) + sigmoid(-0.1)) / 2)
    assert found["plateau_high"] == close((sigmoid(2 + 2 / 40) + sigmoid(3)) / 2)
    assert found["plateau_width"] == close(found["plateau_high"] - found["plateau_low"])
    # At log-odds of 1: (0.75 + 0.8) / 2; nothing beyond -2 and 3, where one of the two was not tried.
    by_log_odds = curve_of(answer, "threshold_log_odds", "a")
    assert at(by_log_odds, 1.0) == close((0.775, 0.75, 0.8), abs=1e-9)
    assert (by_log_odds.x[0], by_log_odds.x[-1]) == close((-2, 3), abs=1e-9)
    assert set(by_log_odds.n) == {2}
    by_p = curve_of(answer, "threshold", "a")
    assert at(by_p, 0.5) == close((0.7, 0.6, 0.8), abs=1e-9)
    log_odds = math.log(0.8 / 0.2)
    assert at(by_p, 0.8)[2] == close(0.6 + 0.15 * log_odds, abs=1e-9)
    assert (by_p.x[0], by_p.x[-1]) == close((0.12, 0.95), abs=1e-9)  # sigmoid(-2) = 0.1192, sigmoid(3) = 0.9526


def test_thresholds_of_several_classes_are_averaged_and_unseen_ones_left_out(runs: Runs):
    rows = thresholds({0.0: 0.2, 1.0: 0.4}) + thresholds({0.0: 0.6, 1.0: 0.6}, class_id=2)
    rows += thresholds({0.0: math.nan, 1.0: math.nan}, class_id=3) + thresholds({0.0: 0.9}, split="val")
    runs.add("a", {"thresholds": rows}, {"temperature": 1.0})
    (found,) = runs.ask("threshold").rows
    assert (found["dice"], found["dice_best"]) == close((0.4, 0.5))
    # What was tuned on validation gains nothing there.
    (found,) = runs.ask("threshold", "val").rows
    assert (found["dice"], found["gain_tuned"]) == close((0.9, math.nan))


def test_heads_without_probabilities_are_cut_at_values(runs: Runs):
    runs.add("identity", {"thresholds": thresholds({-0.5: 0.2, 0.0: 0.6, 0.25: 0.6})}, {"temperature": None})
    answer = runs.ask("threshold")
    (found,) = answer.rows
    assert (found["plateau_low"], found["plateau_high"]) == close((0.5 - 0.5 * 0.01 / 0.4, 0.75))
    assert at(curve_of(answer, "threshold", "identity"), 0.25)[0] == close(0.4, abs=1e-9)
    assert [panel.name for panel in answer.panels] == ["threshold"]
    assert "or value" in answer.panels[0].x_label


def test_softmax_has_no_thresholds(runs: Runs):
    runs.add("softmax", {"thresholds": []})
    runs.add("nothing", {"thresholds": thresholds({0.0: math.nan})})
    answer = runs.ask("threshold")
    assert answer.panels == ()
    assert [found["n_curves"] for found in answer.rows] == [0, 0]
    assert told(answer, "softmax", "1 of 2", "softmax 1", "rows of test", "thresholds.csv")
    assert told(answer, "no Dice", "1 of 2", "nothing 1")


def test_of_softmax_alone_there_is_one_sentence(runs: Runs):
    runs.add("softmax", {"thresholds": []})
    answer = runs.ask("threshold")
    assert (answer.rows, answer.panels, len(answer.notes)) == ((), (), 1)
    assert told(answer, "softmax predicts", "without a threshold")


# boundary and objects
def images(*cells: tuple[int, int, float], n_valid: int = 1000, split: str = "test") -> list[dict[str, Any]]:
    """Cells of n_gt, n_pred, dice, an image each."""
    return [
        {"split": split, "image_id": f"{i:03d}", "n_valid": n_valid, "n_gt": n_gt, "n_pred": n_pred, "dice": dice}
        for i, (n_gt, n_pred, dice) in enumerate(cells)
    ]


def test_boundary_counts_the_references_of_which_nothing_is_found(runs: Runs):
    found, missed = (10, 9, 0.8), (10, 0, 0.0)
    runs.add("a", {"images": images(found, missed, (0, 0, math.nan))}, {"nsd": 0.5, "hd95": 4.0, "dice": 0.4})
    runs.add("a", {"images": images(found, found, (0, 5, math.nan))}, {"nsd": 0.7, "hd95": 2.0, "dice": 0.8})
    answer = runs.ask("boundary")
    (row_a,) = answer.rows
    assert (row_a["nsd"], row_a["nsd_sd"], row_a["hd95"]) == close((0.6, math.sqrt(0.02), 3.0))
    assert (row_a["missed"], row_a["missed_sd"]) == close((0.25, math.sqrt(0.125)))
    assert (row_a["unit"], row_a["tolerance"]) == ("pixels", None)
    points = curve_of(answer, "boundary", "a")
    assert sorted(zip(points.x, points.y, strict=True)) == [(0.4, 0.5), (0.8, 0.7)]


def test_boundaries_of_different_units_are_told_apart(runs: Runs):
    for arm, more in (("pixels", {}), ("mm", {"dataset.spacing": [1, 1]})):
        runs.add(arm, {"images": images((1, 1, 1.0))}, config={"dataset.surface_tolerance": 2.0, **more})
    answer = runs.ask("boundary")
    assert [(found["unit"], found["tolerance"]) for found in answer.rows] == [("pixels", 2.0), ("mm", 2.0)]
    assert told(answer, "tolerance differs")
    one, other = (path for paths in runs.arms.values() for path in paths)
    (mixed,) = ask(["boundary"], {"all": [one, other]})
    assert (mixed.rows[0]["unit"], bool(told(mixed, "tolerance differs"))) == ("mixed", True)
    (alike,) = ask(["boundary"], {"one": [one]})
    assert not [note for note in alike.notes if "tolerance differs" in note]
    for variant in ("pixel", "surface"):
        options: dict[str, Any] = {"dataset.surface_tolerance": 2.0, "metrics.nsd": variant}
        runs.add(variant, {"images": images((1, 1, 1.0))}, config=options)
    paths = [runs.arms[arm][0] for arm in ("pixels", "pixel", "surface")]
    (same,), (mixed,) = ask(["boundary"], {"all": paths[:2]}), ask(["boundary"], {"all": paths[1:]})
    assert (same.rows[0]["variant"], mixed.rows[0]["variant"]) == ("pixel", "mixed")
    assert (bool([n for n in same.notes if "differs" in n]), bool(told(mixed, "variant"))) == (False, True)


def test_objects_are_binned_by_the_same_sizes_for_all_arms(runs: Runs):
    small, large = (1, 1, 0.2), (100, 90, 0.8)
    runs.add("a", {"images": images(*[small] * 5, *[large] * 5, (0, 3, 0.0), (0, 0, math.nan))})
    runs.add("a", {"images": images(*[(1, 1, 0.4)] * 5, *[large] * 5, (0, 0, math.nan), (0, 0, math.nan))})
    runs.add("b", {"images": images(*[large] * 10)})
    answer = runs.ask("objects")
    a, b = answer.rows
    assert (a["dice_smallest"], a["dice_smallest_sd"], a["dice_largest"]) == close((0.3, math.sqrt(0.02), 0.8))
    # (0.8 - 0.2) and (0.8 - 0.4) over two decades.
    assert (a["slope"], a["slope_sd"]) == close((0.25, 0.1 / math.sqrt(2)), abs=1e-9)
    assert (a["fp_rate_empty"], a["fp_rate_empty_sd"]) == close((0.25, math.sqrt(0.125)))
    curve = curve_of(answer, "objects", "a")
    assert (curve.x, curve.y, curve.low, curve.high) == close(((0.001, 0.1), (0.3, 0.8), (0.2, 0.8), (0.4, 0.8)))
    assert curve.n == (2, 2)
    assert curve_of(answer, "objects", "b").x == close((0.1,))
    assert math.isnan(b["slope"])
    assert math.isnan(b["dice_smallest"])
    assert panel_of(answer, "objects").log_x
    assert told(answer, "10 cells")


def components(*found: tuple[int, float], split: str = "test") -> list[dict[str, Any]]:
    """Objects of n_pixels and IoU, all in one image."""
    return [
        {"split": split, "image_id": "000", "class_id": 1, "object": n, "n_pixels": size, "iou": iou}
        for n, (size, iou) in enumerate(found, start=1)
    ]


def test_objects_are_counted_one_by_one_where_runs_hold_them(runs: Runs):
    cells = images((606, 600, 0.9), (0, 7, 0.0))
    small, large = [(1, 0.0)] * 3 + [(1, 0.3)] * 2 + [(1, 0.6)], [(100, 0.5)] * 2 + [(100, 0.9)] * 4
    runs.add("a", {"images": cells, "objects": components(*small, *large)})
    runs.add("a", {"images": cells, "objects": components(*[(1, 0.0)] * 6, *large)})
    runs.add("b", {"images": cells, "objects": components(*[(1, 0.7)] * 6, *large)})
    answer = runs.ask("objects")
    a, b = answer.rows
    assert (a["recall_smallest"], a["recall_smallest_sd"], a["recall_largest"]) == close((0.25, 0.5 / math.sqrt(2), 1))
    assert (a["recall_50_smallest"], a["recall_50_largest"]) == close((1 / 12, 2 / 3))
    assert (b["recall_smallest"], b["recall_50_smallest"], b["fp_rate_empty"]) == close((1, 1, 1))
    curve = curve_of(answer, "objects", "a")
    assert (curve.x, curve.y, curve.low, curve.high) == close(((1, 100), (0.25, 1), (0, 1), (0.5, 1)))
    assert curve_of(answer, "objects_recall_50", "b").y == close((1, 2 / 3))
    assert told(answer, "12 objects", "2 bins")
    # A run without the table, as those of earlier versions: all are answered by cells.
    runs.add("b", {"images": cells})
    assert "dice_smallest" in runs.ask("objects").rows[0]


def test_sizes_that_many_cells_share_leave_no_outer_bin_empty(runs: Runs):
    cells = [(1, 1, 0.2)] * 10 + [(10, 9, 0.5)] * 10 + [(100, 90, 0.8)] * 20
    runs.add("a", {"images": images(*cells)})
    answer = runs.ask("objects")
    assert (answer.rows[0]["dice_smallest"], answer.rows[0]["dice_largest"]) == close((0.2, 0.8))
    curve = curve_of(answer, "objects", "a")
    assert (curve.x, curve.y) == close(((0.001, 0.01, 0.1), (0.2, 0.5, 0.8)))


def test_a_single_bin_has_neither_smallest_nor_largest(runs: Runs):
    runs.add("a", {"images": images(*[(1, 1, 0.2)] * 10)})
    answer = runs.ask("objects")
    assert [math.isnan(answer.rows[0][name]) for name in ("dice_smallest", "dice_largest", "slope")] == [True] * 3
    assert curve_of(answer, "objects", "a").y == close((0.2,))
    assert told(answer, "10 cells").count(" in 1 bin;") == 1
    assert told(answer, "too few sizes")
    assert told(answer, "No false alarms")  # every reference holds the class
    runs.add("b", {"images": images((1, 1, 0.2), (2, 2, 0.5))})
    (few,) = ask(["objects"], {"b": runs.arms["b"]})
    assert math.isnan(few.rows[0]["slope"])


@pytest.mark.parametrize(
    ("best", "y_from"), [((0.84, 0.82), 0.7), ((0.9, 0.3), 0.2), ((0.9, 0.05), 0.0), ((), math.nan)]
)
def test_curves_of_dice_are_drawn_from_below_the_best_of_the_worst(best: tuple[float, ...], y_from: float):
    curves = [Curve("a", (1.0, 2.0), (0.01, value)) for value in best] + [Curve("empty", (), ())]
    assert near_the_best(curves) == close(y_from)


# convergence and cost
def epochs(dice: Sequence[float], steps: int = 5) -> list[dict[str, Any]]:
    """Rows of epochs.csv; losses are 1 - Dice on validation and half of that in training."""
    return [
        {"epoch": e, "split": split, "step": steps * e, "dice": d, "loss": (1 - d) * share}
        for e, d in enumerate(dice, start=1)
        for split, share in (("train", 0.5), ("val", 1.0))
    ]


def timings(*seconds: float, images_per_s: float = 10.0, peak: float = 100.0) -> list[dict[str, Any]]:
    return [
        {"epoch": e, "seconds": s, "images_per_s": images_per_s, "peak_mem_mib": peak * e}
        for e, s in enumerate(seconds, start=1)
    ]


def test_convergence_counts_epochs_and_seconds_to_95_percent_of_the_own_best(runs: Runs):
    patient = {"trainer.epochs": 4, "trainer.patience": 2}
    rows = {"epochs": epochs([0.5, 0.76, 0.8, 0.7]), "timings": timings(5, 1, 1, 1)}
    runs.add("a", rows, {"epochs": 4, "best_epoch": 3}, patient)  # stopped at the limit, one epoch after its best
    rows = {"epochs": epochs([0.4, 0.3, 0.2]), "timings": timings(2, 1, 1)}
    runs.add("a", rows, {"epochs": 3, "best_epoch": 1}, patient)  # stopped by patience
    answer = runs.ask("convergence")
    (found,) = answer.rows
    assert (found["best_val_dice"], found["epochs_to_95"], found["seconds_to_95"]) == close((0.6, 1.5, 4.0))
    assert (found["epochs_to_95_sd"], found["best_epoch"], found["epochs"]) == close((math.sqrt(0.5), 2, 3.5))
    assert found["share_at_limit"] == 0.5
    curve = curve_of(answer, "val_dice", "a")
    assert (curve.x, curve.n) == ((1, 2, 3, 4), (2, 2, 2, 1))
    assert (curve.y, curve.low, curve.high) == close(
        ((0.45, 0.53, 0.5, 0.7), (0.4, 0.3, 0.2, 0.7), (0.5, 0.76, 0.8, 0.7))
    )
    assert at(curve_of(answer, "train_loss", "a"), 1)[0] == close(0.275)
    assert told(answer, "trainer.epochs", "1 of 2")


@pytest.mark.parametrize(("patience", "best", "at_limit"), [(None, 1, True), (3, 1, False), (3, 2, True), (4, 1, True)])
def test_a_run_is_at_its_limit_where_patience_is_not_used_up(
    runs: Runs, patience: int | None, best: int, at_limit: bool
):
    runs.add("a", {}, {"epochs": 4, "best_epoch": best}, {"trainer.epochs": 4, "trainer.patience": patience})
    assert runs.ask("convergence").rows[0]["share_at_limit"] == at_limit


def test_convergence_notes_what_cannot_be_compared(runs: Runs):
    for dice in ([0.1, 0.2, 0.3], [0.1], [0.0]):
        runs.add("a", {"epochs": epochs(dice)})
    runs.add("b", {"epochs": epochs([0.0, 0.0])}, config={"loss.name": "ce"})
    answer = runs.ask("convergence")
    # Drawn as long as most runs were still training.
    assert curve_of(answer, "val_dice", "a").x == (1,)
    assert math.isnan(answer.rows[1]["epochs_to_95"])
    assert told(answer, "never converged", "2 of 4", "a 1", "b 1")
    assert "(ce, dice)" in told(answer, "different losses")


def test_cost_is_that_of_a_training_step(runs: Runs):
    """30 images at 10 a second are 3 s an epoch of 5 steps: 600 ms."""
    rows = {"epochs": epochs([0.5, 0.5]), "timings": timings(4, 5)}
    summary = {"n_train": 30, "n_params": 7, "dice": 0.8}
    runs.add("good", rows, summary)
    runs.add("good", rows | {"timings": timings(4, 5, images_per_s=15)}, summary | {"dice": 0.6})
    runs.add("fast", rows | {"timings": timings(1, 1, images_per_s=60)}, summary | {"dice": 0.5})
    runs.add("dear", rows | {"timings": timings(9, 9, images_per_s=10, peak=50)}, summary | {"dice": 0.7})
    answer = runs.ask("cost")
    good, fast, dear = answer.rows
    assert (good["ms_per_step"], good["ms_per_step_sd"]) == close((500, 200 / math.sqrt(2)))
    assert (good["images_per_s"], good["seconds"], good["peak_mem_mib"], good["n_params"]) == close((12.5, 9, 200, 7))
    assert (dear["peak_mem_mib"], fast["ms_per_step"]) == close((100, 100))
    assert [found["pareto"] for found in (good, fast, dear)] == [True, True, False]
    curve = curve_of(answer, "cost", "good")
    assert (curve.x, curve.y, curve.low, curve.high, curve.n) == close(((500,), (0.7,), (0.6,), (0.8,), (2,)))
    panel = panel_of(answer, "cost")
    assert (panel.kind, panel.y_points) == ("points", True)
    assert panel.guide is not None
    # Level until the next arm of the front is reached; the dear one lies below.
    assert (panel.guide.x, panel.guide.y) == close(((100, 500, 500), (0.5, 0.5, 0.7)))
    assert told(answer, "On the CPU")
    # Arms that cost and score the same are both on the front.
    runs.arms.clear()
    for arm in ("a", "b"):
        runs.add(arm, rows, summary)
    answer = runs.ask("cost")
    assert [found["pareto"] for found in answer.rows] == [True, True]
    assert panel_of(answer, "cost").guide is None


def test_durations_are_compared_on_the_machine_where_every_arm_ran(runs: Runs):
    rows = {"epochs": epochs([0.5]), "timings": timings(3)}
    elsewhere = {"epochs": epochs([0.5]), "timings": timings(1000, images_per_s=1)}
    for arm in ("a", "b"):
        runs.add(arm, rows, {"n_train": 30})
    runs.add("a", elsewhere, {"n_train": 30}, host="slow")
    runs.add("a", elsewhere, {"n_train": 30}, host="slow")
    for question in ("cost", "convergence"):
        answer = runs.ask(question)
        assert told(answer, "no durations", "2 of 4", "a 2")
        assert answer.rows[0]["seconds" if question == "cost" else "seconds_to_95"] == 3
    assert [found["n_timed"] for found in runs.ask("cost").rows] == [1, 1]


def test_runs_that_were_not_captured_are_noted_beside_those_that_were(runs: Runs):
    rows = {"epochs": epochs([0.5]), "timings": timings(3)}
    for arm, captured in (("a", True), ("b", False)):
        runs.add(arm, rows, {"n_train": 30}, device={"type": "cuda", "name": "x", "threads": 1, "captured": captured})
    assert told(runs.ask("cost"), "CUDA graph", "1 of 2", "b 1")


@pytest.mark.parametrize(
    "other", [{"host": "b"}, {"device": {"type": "cuda", "name": "x", "threads": 1}}, {"device": None}]
)
def test_durations_of_different_machines_are_not_compared(runs: Runs, other: dict[str, Any]):
    rows = {"epochs": epochs([0.5]), "timings": timings(3)}
    runs.add("a", rows, {"n_train": 30})
    runs.add("b", rows, {"n_train": 30}, **other)
    answer = runs.ask("cost")
    assert [found["pareto"] for found in answer.rows] == [None, None]
    assert all(math.isnan(found["ms_per_step"]) for found in answer.rows)
    assert answer.panels == ()
    assert told(answer, "no machine", "no durations", "2 of 2", "a 1", "b 1")


# diagnostics
def looks(*dead: float, **values: float) -> list[dict[str, Any]]:
    return [{"site": f"s{d}", "depth": d, "probe": "val", "dead_output": v} | values for d, v in enumerate(dead, 1)]


def test_diagnostics_join_what_hidden_activations_do_to_the_score(runs: Runs):
    for dead, dice, ratio in ((0.1, 0.8, 0.01), (0.3, 0.6, 1.0)):
        measured = {"dead_output": dead, "dead_gradient": 0.0, "saturated": 0.5, "gradient_ratio": ratio}
        in_training = {"site": "s1", "depth": 1, "probe": "train", "dead_output": 1.0}
        rows = [*looks(dead, 2 * dead, grad_norm=ratio), in_training]
        runs.add("relu", {"diagnostics": rows}, {"dice": dice}, diagnostics=measured)
    answer = runs.ask("diagnostics")
    (found,) = answer.rows
    assert (found["dead_output"], found["dead_output_sd"]) == close((0.2, 0.2 / math.sqrt(2)))
    assert (found["gradient_ratio"], found["dice"], found["saturated"]) == close((0.1, 0.7, 0.5))
    points = curve_of(answer, "dead_output_score", "relu")
    assert sorted(zip(points.x, points.y, strict=True)) == [(0.1, 0.8), (0.3, 0.6)]
    depth = curve_of(answer, "dead_output_depth", "relu")
    assert (depth.x, depth.y, depth.low, depth.high) == close(((1, 2), (0.2, 0.4), (0.1, 0.2), (0.3, 0.6)))
    assert panel_of(answer, "grad_norm_depth").log_y
    assert math.isnan(found["spearman_dead"])
    assert not [note for note in answer.notes if "Spearman" in note]


def test_rank_correlations_are_told_where_there_are_enough_runs(runs: Runs):
    for i in range(6):
        measured = {"dead_output": 0.1 * i, "dead_gradient": 0.0, "saturated": 0.5, "gradient_ratio": 1.0 + (i == 5)}
        runs.add("relu", {"diagnostics": looks(0.5)}, {"dice": 0.9 - i**2 / 100}, diagnostics=measured)
    answer = runs.ask("diagnostics")
    assert answer.rows[0]["spearman_dead"] == close(-1.0)
    # Five ties at rank 3 and one at 6: -5 sqrt(5 / 17.5) / ... = -0.6547
    note = told(answer, "Spearman", "dead units \u22121.00", "n = 6", "call site \u22120.65")
    assert "saturated" not in note  # the same everywhere


def test_a_gradient_that_vanishes_altogether_is_not_averaged_away(runs: Runs):
    for ratio in (0.0, 1.0):
        runs.add("a", diagnostics={"dead_output": 0.1, "gradient_ratio": ratio})
    answer = runs.ask("diagnostics")
    assert answer.rows[0]["gradient_ratio"] == 0
    assert told(answer, "run.json", "2 of 2", "a 2", "dead_gradient", "saturated")


# what runs can lack
READS = {
    "boundary": ["images"],
    "calibration": ["bins"],
    "convergence": ["epochs", "timings"],
    "cost": ["epochs", "timings"],
    "diagnostics": ["diagnostics"],
    "objects": ["images"],
    "threshold": ["thresholds"],
}
"""Question -> tables that it reads."""

TABLES: dict[str, Rows] = {
    "images": images((10, 9, 0.5), (20, 9, 0.7)),
    "bins": bins(("all", 0, 0, 10, 0.5, 1.0), ("all", 0, 1, 10, 1.0, 1.0)),
    "thresholds": thresholds({0.0: 0.5, 1.0: 0.6}),
    "epochs": epochs([0.5, 0.6]),
    "timings": timings(1, 2),
    "diagnostics": looks(0.1, 0.2),
}

MEASURED = {"dead_output": 0.1, "dead_gradient": 0.1, "saturated": 0.1, "gradient_ratio": 1.0}


def edit(change: Callable[[list[str]], list[str]]) -> Callable[[Path], object]:
    return lambda path: path.write_text("".join(f"{line}\n" for line in change(path.read_text().splitlines())))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "removed": lambda path: path.unlink(),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-3]),
    "shorter": edit(lambda lines: lines[:-1]),
    "no numbers": edit(lambda lines: [*lines[:-1], ",".join("?" * len(lines[0].split(",")))]),
    "no text": lambda path: path.write_bytes(path.read_bytes().replace(b"\n", b"\xff\n")),
    "repeated": edit(lambda lines: [*lines[:-1], lines[1]]),
    # The first column of whole numbers is epoch.
    "a gap": edit(lambda lines: [*lines[:-1], f",{lines[-1].partition(',')[2]}"]),
    "wider": edit(lambda lines: [f"notes,{lines[0]}", *(f"?,{line}" for line in lines[1:])]),
    "narrower": edit(lambda lines: [line.partition(",")[2] for line in lines]),
}
"""Damages of epochs.csv."""


def make_whole(runs: Runs, arm: str) -> Path:
    return runs.add(arm, TABLES, {"temperature": 1.0, "n_train": 30}, diagnostics=MEASURED)


@pytest.mark.parametrize(("question", "table", "damage"), [
    *((question, table, "cut") for question, tables in READS.items() for table in tables),
    *(("convergence", "epochs", damage) for damage in DAMAGES),
])  # fmt: skip
def test_a_damaged_table_is_left_out_and_told(runs: Runs, question: str, table: str, damage: str):
    """The rest answers as if the run were not there."""
    make_whole(runs, "a")
    expected = runs.ask(question).panels
    DAMAGES[damage](make_whole(runs, "a") / f"{table}.csv")
    answer = runs.ask(question)
    note = told(answer, f"{table}.csv")
    assert mentions(note, "1 of 2", "a 1")
    assert str(runs.study) in note
    assert damage != "narrower" or "column epoch" in note
    assert [panel.name for panel in answer.panels] == [panel.name for panel in expected]
    for panel, alone in zip(answer.panels, expected, strict=True):
        # The others show scores, which run.json repeats.
        if table != "timings" and panel.name not in ("boundary", "cost") and not panel.name.endswith("_score"):
            assert panel == alone


@pytest.mark.parametrize("question", QUESTIONS)
def test_runs_without_a_record_or_not_done_are_told(runs: Runs, question: str):
    make_whole(runs, "a")
    (make_whole(runs, "a") / "run.json").write_text("{")
    runs.arms["b"] = [make_run(runs.study, "ffffffff", "failed")]
    answer = runs.ask(question)
    assert told(answer, "cannot be read", "1 of 3", "a 1")
    assert told(answer, "not done", "1 of 3", "b 1")
    assert [(found["arm"], found["n_runs"]) for found in answer.rows] == [("a", 1), ("b", 0)]


def test_without_a_single_run_there_are_rows_in_the_order_asked_and_nothing_to_draw():
    names = [*QUESTIONS][::-1]
    found = [(answer.name, [row["arm"] for row in answer.rows], answer.panels) for answer in ask(names, {"a": []})]
    assert found == [(name, ["a"], ()) for name in names]
    assert [answer.rows for answer in ask(names, {})] == [()] * len(names)
    for question, split, named in (
        ("treshold", "test", "did you mean threshold"),
        ("boundary", "train", "test or val"),
    ):
        with pytest.raises(UsageError, match=named):
            ask([question], {}, split)


@pytest.mark.parametrize("question", QUESTIONS)
def test_the_order_of_runs_does_not_matter(runs: Runs, question: str):
    for i in range(5):
        dice = {"dice": 0.1 + i / 7}
        scored = {name: [values | dice for values in TABLES[name]] for name in ("images", "thresholds", "epochs")}
        runs.add("ab"[i % 2], {**TABLES, **scored}, {**dice, "temperature": 1.0}, diagnostics=MEASURED)
    forward = runs.ask(question)
    runs.arms = {arm: paths[::-1] for arm, paths in runs.arms.items()}
    assert repr(runs.ask(question)) == repr(forward)


def test_ranks_under_the_metrics_that_all_runs_have_and_that_differ(runs: Runs):
    for arm, dice, nll in (("a", 0.8, 0.3), ("a", 0.6, 0.1), ("b", 0.9, 0.5), ("c", 0.65, 0.2)):
        known = dict.fromkeys(METRICS, 0.5) | {"dice": dice, "nll": nll, "hd95": 5.0 if arm == "c" else math.nan}
        runs.add(arm, {}, known)
    panel = panel_of(runs.ask("ranking"), "metrics")
    assert panel.x_names == ("dice", "nll")
    assert {curve.arm: (curve.x, curve.y) for curve in panel.curves} == {
        "a": ((1, 2), (2, 1.5)),  # mean Dice 0.7; mean NLL 0.2 as c
        "b": ((1, 2), (1, 3)),
        "c": ((1, 2), (3, 1.5)),
    }
    assert "metrics" not in [panel.name for panel in runs.ask("ranking", "val").panels]


RATES = """hidden_activation,activation,loss,lr,n_seeds,n_diverged,val_dice,val_dice_sd,chosen
native,arctan,dice,0.1,2,1,0.9,,0
native,arctan,dice,0.01,2,0,0.8,0.02,1
native,arctan,dice,0.001,2,0,0.7,0.01,0
native,sigmoid,dice,0.01,2,2,,,0
"""


def test_rates_are_those_of_the_search_beside_the_study(tmp_path: Path):
    runs = Runs(tmp_path / "mine")
    for arm in ("arctan", "sigmoid", "softsign"):
        # That one rate was the configured one, so that the run is older than the search.
        tuned = None if arm == "arctan" else "/another/machine/mine-tuning/tuned.yaml"
        runs.add(arm, config={"activation.name": arm, "tuned": tuned})
    missing = runs.ask("tuning")
    assert [set(found) for found in missing.rows] == [{"arm", "n_runs", "lr", "val_dice"}] * 3
    assert missing.panels == ()
    assert told(missing, "tuned_rates.csv", "cannot be read")
    (tmp_path / "mine-tuning").mkdir()
    (tmp_path / "mine-tuning" / "tuned_rates.csv").write_text(RATES)
    answer = runs.ask("tuning")
    (curve,) = panel_of(answer, "tuning").curves
    assert (curve.arm, curve.x, curve.y, curve.n) == ("arctan", (0.001, 0.01), (0.7, 0.8), (2, 2))
    assert (curve.low, curve.high) == (close((0.69, 0.78)), close((0.71, 0.82)))
    found = {row["arm"]: (row["lr"], row["val_dice"]) for row in answer.rows}
    assert found["arctan"] == (0.01, 0.8)
    assert all(math.isnan(value) for arm in ("sigmoid", "softsign") for value in found[arm])
    (tmp_path / "mine-tuning" / "tuned_rates.csv").write_text("a,b\n1,2\n")
    assert told(runs.ask("tuning"), "No rates")


def test_rates_that_were_not_tuned_have_a_note_alone(runs: Runs):
    runs.add("a")
    answer = runs.ask("tuning")
    assert (answer.rows, answer.panels) == (({"arm": "a", "n_runs": 1},), ())
    assert told(answer, "tuned=FILE")


# real runs
@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    outputs = tmp_path_factory.mktemp("real")
    three = ("dataset.num_classes=3", "loss=ce")
    runs = {name: tiny_run(outputs, *three, f"head.mode={name}") for name in ("softmax", "independent")}
    return {name: [outcome.run_dir] for name, outcome in runs.items()}


def test_scores_from_the_tables_are_those_of_the_summary(real: dict[str, list[Path]]):
    reading = Reading(real, "test")
    known = reading._of_split([*IN_IMAGES, *IN_BINS])
    for (run,) in reading.runs.values():
        for name in (*IN_IMAGES, *IN_BINS):
            assert known[run.path][name] == close(run.number(name)), name


@pytest.mark.parametrize("split", ["test", "val"])
def test_real_runs_answer_every_question(real: dict[str, list[Path]], split: str):
    answers = ask(list(QUESTIONS), real, split)
    assert [answer.name for answer in answers] == list(QUESTIONS)
    for answer in answers:
        assert answer.title
        assert [found["arm"] for found in answer.rows] == ["softmax", "independent"]
        assert len({tuple(found) for found in answer.rows}) == 1
        json.dumps(answer.rows)  # plain values
        assert answer.panels or answer.name in ("ranking", "tuning")  # which need three seeds, and a search
        for panel in answer.panels:
            for curve in panel.curves:
                assert len(curve.x) == len(curve.y) > 0
                assert {len(part) for part in (curve.low, curve.high, curve.n)} <= {0, len(curve.x)}
                assert all(type(value) is float for part in (curve.x, curve.y, curve.low, curve.n) for value in part)
        lacking = [note for note in answer.notes if " of 2 runs (" in note and "temperature" not in note]
        expected = {("threshold", "test"): 1, ("threshold", "val"): 1, ("calibration", "val"): 1}
        assert len(lacking) == expected.get((answer.name, split), 0), lacking


def test_the_scores_of_each_class_are_those_of_the_thresholds_and_the_run_table(real: dict[str, list[Path]]):
    (run_dir,) = real["independent"]
    (answer,) = ask(["classes"], {"a": [run_dir]})
    thresholds = [found for found in text_rows(run_dir / "thresholds.csv", "thresholds") if found["split"] == "test"]
    at_half = {found["class_id"]: float(found["dice"]) for found in thresholds if float(found["threshold"]) == 0}
    assert {f"dice_class_{c}": dice for c, dice in at_half.items()} == close(
        {key: value for key, value in answer.rows[0].items() if key in ("dice_class_1", "dice_class_2")}
    )
    assert answer.titles["dice_class_2"] == "class 2 (points)"
    shown = class_rows(text_rows(run_dir / "images.csv", "images"), {})
    assert [found["dice"] for found in shown] == [f"{dice:.4f}" for dice in at_half.values()]


@pytest.mark.parametrize(
    ("policy", "expected"), [("reference", ["0.3000", "-"]), ("both_empty_one", ["0.6500", "1.0000"])]
)
def test_scores_of_a_class_count_groups_and_empty_masks_as_the_run_does(policy: str, expected: list[str]):
    cells = [("1", "g", 9, "0.2"), ("1", "g", 9, "0.4"), ("1", "", 0, ""), ("2", "", 0, ""), ("2", "", 0, "")]
    rows = [{**dict.fromkeys(PER_IMAGE, dice), "split": "test", "class_id": c, "group_id": g, "n_gt": str(n)}
            for c, g, n, dice in cells]  # fmt: skip
    shown = class_rows(rows, {"metrics.empty_policy": policy, "dataset.class_names": ["sky", "car"]})
    assert [found["dice"] for found in shown] == expected
    assert [found["test class"] for found in shown] == ["car", "class 2"]
    assert class_rows(rows[:3], {}) == []


@pytest.mark.slow
@pytest.mark.alone
def test_the_time_to_answer_everything_grows_with_the_number_of_runs(runs: Runs):
    cells = [(region, scaled, b, 9, 1.0, 1.0) for region in ("all", "boundary") for scaled in (0, 1) for b in range(15)]
    rows: dict[str, Rows] = {
        "images": [r for part, n in (("val", 80), ("test", 134)) for r in images(*[(9, 9, 0.5)] * n, split=part)],
        "bins": [r for part in ("val", "test") for r in bins(*cells, split=part)],
        "thresholds": [r for part in ("val", "test") for r in thresholds({t / 4: 0.5 for t in range(-31, 32)}, part)],
        "epochs": epochs([0.5] * 40),
        "timings": timings(*[2.0] * 40),
        "diagnostics": looks(*[0.1] * 17)
        + [look | {"probe": "train", "epoch": e} for e in range(1, 41) for look in looks(*[0.1] * 17)],
    }
    spent = {}
    for i in range(500):
        runs.add(f"arm {i % 10}", rows, {"temperature": 1.0, "n_train": 30}, diagnostics=MEASURED)
        if i + 1 in (125, 500):
            started = time.process_time()  # of this process alone, whatever else the machine does
            ask(list(QUESTIONS), runs.arms)
            spent[i + 1] = time.process_time() - started
    print(spent)
    assert spent[500] < 6 * spent[125]
    assert within(spent[500], 30)
