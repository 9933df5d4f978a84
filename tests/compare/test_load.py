"""What is read for a comparison, and what is said of all that cannot be: nothing is dropped in silence."""

import csv
import functools
import hashlib
import itertools
import json
import math
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fabricated import make_plan, sealed
from made_scores import N_GT, drawn, edit_record, make_arm, make_pair, make_run, only
from messages import mentions, one_mentions
from timing import bare_reading
from tiny import PRINT_PEAK_KIB

from segexp import cli
from segexp.compare.result import Result
from segexp.compare.verdict import compare
from segexp.compare.verdict import load_checked as load
from segexp.errors import UsageError
from segexp.records.collected import collect, read_collected
from segexp.report.formats import as_text

TIMES = "epoch,seconds,images_per_s,peak_mem_mib\n1,2.0,3.0,\n2,2.5,3.0,\n"


def collected(study: Path, out: Path) -> Path:
    collect(study, out)
    return out


def numbers(result: Result) -> list[object]:
    return [(c.overall, c.p_holm, c.verdict, c.units) for block in result.blocks for c in block.comparisons]


def test_collected_tables_say_what_run_directories_say(tmp_path: Path):
    make_pair(tmp_path / "study", effect=0.01, groups=[f"p{n // 2}" for n in range(60)])
    make_pair(tmp_path / "study", effect=0.01, rng=1, prefix="b", config={"loss.name": "bce", "loss.alpha": 0.5})
    collect(tmp_path / "study", tmp_path / "tables")
    whole = numbers(compare([tmp_path / "study"]))
    assert len(whole) == 2
    assert numbers(compare([tmp_path / "tables"])) == whole
    shutil.copytree(tmp_path / "tables", tmp_path / "named")
    (tmp_path / "named" / "runs.csv").rename(tmp_path / "named" / "laptop.csv")
    assert numbers(compare([tmp_path / "named" / "laptop.csv"])) == whole
    # Both at once: every run has a duplicate, and is counted once.
    both = compare([tmp_path / "study", tmp_path / "tables"])
    assert numbers(both) == whole
    assert one_mentions(both.warnings, "20 duplicate runs")


def test_studies_of_two_machines_are_read_together(tmp_path: Path):
    candidate_KN, reference_KN = make_pair(tmp_path / "all", effect=0.01)
    for machine, first, end in (("a", 0, 3), ("b", 3, 5)):
        for arm, dice_KN in (("arctan", candidate_KN), ("sigmoid", reference_KN)):
            make_arm(tmp_path / machine / "study", arm, dice_KN[first:end], first_seed=first, host=machine)
    assert numbers(compare([tmp_path / "a", tmp_path / "b"])) == numbers(compare([tmp_path / "all"]))


def test_names_that_look_like_numbers_or_nothing_stay_names(tmp_path: Path):
    """Where names look like numbers: 1 and 001 are two images, 4e931661 is no infinity; and with commas and quotes."""
    names = ["1", "001", "None", "NA", "nan", "true", "1e5", *(f"{n:03d}" for n in range(10, 20)), '"im, 00 ""x"""']
    ids = iter(("4e931661", "00000012", "12", "99e99999", "1234567", "0"))
    a, b = drawn(3, len(names))
    for seed in range(3):
        make_run(tmp_path / "study", next(ids), a[seed], {"activation.name": "arctan"}, seed, names=names)
        make_run(tmp_path / "study", next(ids), b[seed], {"activation.name": "sigmoid"}, seed, names=names)
    found = load([tmp_path / "study"])
    assert found.problems == ()
    assert {run.run_id for run in found.runs} == {"4e931661", "00000012", "12", "99e99999", "1234567", "0"}
    read = {*names[:-1], 'im, 00 "x"'}
    assert all(run.images and set(run.images.layout.image_ids) == read for run in found.runs)
    whole = compare([tmp_path / "study"])
    collected(tmp_path / "study", tmp_path / "tables")
    assert numbers(compare([tmp_path / "tables"])) == numbers(whole)


def images(edit: Callable[[str], str]) -> Callable[[Path], None]:

    def damage(run: Path) -> None:
        sealed(run / "images.csv", edit((run / "images.csv").read_text()))

    return damage


def untimed(run: Path) -> None:
    edit_record(run, n_rows_expected={"timings": 2})
    (run / "timings.csv").write_text(TIMES[:-10])


cut = images(lambda text: "\n".join(text.splitlines()[:40]) + "\n")


@pytest.mark.parametrize(("damage", "told"), [
    (cut, "holds 39 rows, the run wrote 60"),
    (lambda run: (run / "images.csv").unlink(), "images.csv is missing"),
    (images(lambda text: text.replace(f",{N_GT},", ",many,", 1)), "'many'"),
    (images(lambda text: text.replace("i0001x", "i0000x")), "image 'i0000x' is repeated"),
    (images(lambda text: text.replace(",n_gt,", ",n_truth,", 1)), "n_gt"),
    (images(lambda text: text.replace("\n", ",notes\n", 1).replace("5\n", "5,\n")), "'notes'"),
    (images(lambda text: text.replace(",", ";").replace(".", ",")), "semicolons"),
    (images(lambda text: f"\ufeff{text}"), "byte order mark"),
    (untimed, "timings.csv holds 1 rows, the run wrote 2"),
    (lambda run: (run / "run.json").write_text('{"status": "do'), "run.json cannot be read"),
    (lambda run: edit_record(run, schema_version=99), "schema version 99"),
])  # fmt: skip
def test_a_damaged_run_is_left_out_and_told(tmp_path: Path, damage: Callable[[Path], None], told: str):
    make_pair(tmp_path / "study", n_seeds=6, effect=0.02)
    damage(tmp_path / "study" / "run-arctan2")
    result = compare([tmp_path])
    assert [w for w in result.warnings if told in w] == [w for w in result.warnings if "arctan2" in w] != []
    assert only(result).n_seeds == 5
    assert any(u.run_id == "arctan2" and u.state in ("incomplete", "unreadable") for u in result.unscored)
    assert {arm.arm for arm in result.blocks[0].ranking} == {"arctan", "sigmoid"}


def spoilt(path: Path, row: int, column: int, value: str) -> None:
    """Another value in one cell of images.csv; rows count from 1."""
    lines = path.read_text().splitlines()
    cells = lines[row].split(",")
    cells[column] = value
    lines[row] = ",".join(cells)
    sealed(path, "\n".join(lines) + "\n")


@pytest.mark.parametrize("value", ["", "inf"])
def test_missing_values_leave_an_image_out_of_all_runs(tmp_path: Path, value: str):
    make_pair(tmp_path / "study", effect=0.02)
    spoilt(tmp_path / "study" / "run-arctan1" / "images.csv", 3, 14, value)
    result = compare([tmp_path], metric="nsd")
    assert only(result).n_images == 59
    assert mentions(only(result).dropped, "1 image", "nsd")
    assert any("not finite" in w and "1 run (arctan1)" in w for w in result.warnings) == (value == "inf")


def test_volumes_are_called_volumes(tmp_path: Path):
    for arm, dice_KN in zip(("arctan", "sigmoid"), drawn(5, 8, 0.02), strict=True):
        make_arm(tmp_path / arm, arm, dice_KN, {"metrics.unit": "case"})
    result = compare([tmp_path], metric="nsd")
    assert result.metric.title == "normalised surface Dice by voxels"
    assert only(result).unit == "volume"
    assert any("only 8 volumes" in warning for warning in only(result).warnings)
    assert not any("volume" in warning for block in result.blocks for warning in block.warnings)
    printed = as_text(result, [])
    assert "5 seeds x 8 volumes" in printed
    assert not re.search(r"^ *arm .*\bimages\b", printed, re.MULTILINE)


def test_variants_of_surface_dice_are_named_and_never_compared(tmp_path: Path):
    """Runs without the option are of the pixel variant."""
    given: dict[str, dict[str, str]] = {"pixels": {}, "contour length": {"metrics.nsd": "surface"}}
    for variant, config in given.items():
        for arm, dice_KN in zip(("arctan", "sigmoid"), drawn(5, 60, 0.02), strict=True):
            make_arm(tmp_path / f"{variant[0]}-{arm}", arm, dice_KN, config, prefix=variant[0])
        result = compare(sorted(tmp_path.glob(f"{variant[0]}-*")), metric="nsd")
        assert result.metric.title == f"normalised surface Dice by {variant}"
    result = compare([tmp_path], metric="nsd")
    assert {b.conditions["metrics.nsd"]: len(b.comparisons) for b in result.blocks} == {"pixel": 1, "surface": 1}
    mixed = compare([tmp_path / "p-arctan", tmp_path / "c-sigmoid"], metric="nsd")
    assert not any(block.comparisons for block in mixed.blocks)


@pytest.mark.parametrize("metric", ["nsd", pytest.param("auroc", marks=pytest.mark.slow)])
def test_a_run_without_a_finite_score_is_told(tmp_path: Path, metric: str):
    """Also where the arms are no pairs, or folds."""
    changes: dict[str, dict[str, Any]] = {"paired": {}, "unpaired": {"init_sha": "other"}}
    for study, change in changes.items():
        rng = np.random.default_rng(0)
        make_arm(tmp_path / study, "arctan", rng.uniform(0.7, 0.9, (5, 20)), **change)
        make_arm(tmp_path / study, "sigmoid", rng.uniform(0.7, 0.9, (5, 20)))
        for path in sorted((tmp_path / study).iterdir()):
            nothing = path.name == "run-arctan1"
            edit_record(path, summary={"auroc": math.inf if nothing else float(rng.uniform(0.8, 0.9))})
            for row in range(1, 21):
                spoilt(path / "images.csv", row, 14, "" if nothing else repr(rng.uniform(0.5, 0.6)))
        found = only(compare([tmp_path / study], metric=metric))
        assert found.n_seeds == 4
        assert not math.isnan(found.test_set.p)
        if study == "paired":
            assert mentions(found.dropped, "1 run", "finite")


def test_collected_images_that_were_cut_are_noticed(tmp_path: Path):
    make_pair(tmp_path / "study", effect=0.02)
    tables = collected(tmp_path / "study", tmp_path / "tables")
    images = tables / "images.csv"
    whole = images.read_text()
    lines = whole.splitlines()
    images.write_text("\n".join(lines[:-20]) + "\n")
    result = compare([tables])
    assert one_mentions(result.warnings, "40 images", 60, "segexp collect")
    assert [u.state for u in result.unscored] == ["incomplete"]
    images.write_text(whole[:-9])
    with pytest.raises(UsageError, match=r"cut short.*segexp collect"):
        compare([tables])
    images.write_text(whole + lines[-1].replace("sigmoid4", "stranger") + "\n")
    assert one_mentions(compare([tables]).warnings, "1 run", "runs.csv", "stranger")


def test_rows_of_a_run_in_any_order_are_read_and_rows_apart_are_not(tmp_path: Path):
    make_pair(tmp_path / "study", effect=0.02)
    tables = collected(tmp_path / "study", tmp_path / "tables")
    images = tables / "images.csv"
    header, *lines = images.read_text().splitlines()
    images.write_text("\n".join([header, *lines[:60][::-1], *lines[60:]]) + "\n")
    assert numbers(compare([tables])) == numbers(compare([tmp_path / "study"]))
    images.write_text("\n".join([header, *lines[1:], lines[0]]) + "\n")
    with pytest.raises(UsageError, match=r"arctan0 .* together"):
        compare([tables])


@pytest.mark.parametrize(("edit", "cause"), [
    (lambda text: text.replace(",", ";").replace(".", ","), "semicolons"),
    (lambda text: text.replace(",", "\t"), "tabs"),
    (lambda text: f"\ufeff{text}", "byte order mark"),
    (lambda text: text.replace("\n", ",notes\n", 1), "'notes'"),
])  # fmt: skip
def test_tables_that_were_edited_are_refused_with_the_cause(tmp_path: Path, edit: Callable[[str], str], cause: str):
    make_pair(tmp_path / "study", n_seeds=3)
    tables = collected(tmp_path / "study", tmp_path / "tables")
    for path in (tables / "runs.csv", tables / "images.csv"):
        text = path.read_text()
        path.write_text(edit(text))
        for read in (lambda: compare([tables]), lambda path=path: read_collected(path)):
            with pytest.raises(UsageError) as refused:
                read()
            assert all(part in str(refused.value) for part in (str(path), cause, "segexp collect"))
        path.write_text(text)


@pytest.mark.parametrize(("column", "value"), [
    ("tp", "-5"), ("tp", "7"), ("n_gt", "7"), ("fp", "12.5"), ("fn", ""), ("nsd", "7.3"), ("hd95", "-1"),
    ("nll", "-0.5"), ("brier", "1.5"), ("dice", "0.99"), ("dice", "0.8"), ("iou", ""),
])  # fmt: skip
def test_a_run_whose_images_cannot_be_true_is_left_out(tmp_path: Path, column: str, value: str):
    make_pair(tmp_path / "study", n_seeds=6, effect=0.02)
    images = tmp_path / "study" / "run-arctan2" / "images.csv"
    spoilt(images, 3, images.read_text().splitlines()[0].split(",").index(column), value)
    result = compare([tmp_path])
    (told,) = result.warnings
    assert mentions(told, images, "run arctan2", "'i0002x'", f"{column}={float(value or 'nan'):g}", "resume=restart")
    assert [(u.run_id, u.state) for u in result.unscored] == [("arctan2", "incomplete")]
    assert result.blocks[0].comparisons[0].n_seeds == 5


@pytest.mark.parametrize("policy", ["reference", "both_empty_one"])
def test_a_run_whose_summary_is_not_of_its_images_is_left_out(tmp_path: Path, policy: str):
    """Also where classes are missing, images grouped, and the policy another one."""
    made: dict[str, object] = {"empty_policy": policy}
    make_pair(tmp_path, n_images=8, groups=[*"aaabbc", "", ""], summary=made)
    edited = {"dice": 0.1, "iou": 0.7, "dice_micro": 0.3, "iou_micro": 0.3, "fp_rate_empty": 0.5}
    for name, value in edited.items():
        make_run(tmp_path, name, np.full(8, 0.8), {"seed": 8}, summary=made | {name: value})
    # An image without the class, and one of them with a false alarm, tell the policies apart.
    true = make_run(tmp_path, "true", np.full(8, 0.8), {"seed": 7}, summary=made)
    for row, cells in ((1, "0,0,0,0,0,,"), (2, "0,9,0,9,0,0.0,0.0")):
        for column, cell in zip(range(7, 14), cells.split(","), strict=True):
            spoilt(true / "images.csv", row, column, cell)
    edit_record(true, summary={"dice": 0.8 if policy == "reference" else (1 + 0 + 6 * 0.8) / 8})
    loaded = load([tmp_path])
    assert {run.run_id for run in loaded.runs if run.state == "incomplete"} == set(edited)
    for name, value in edited.items():
        assert [p for p in loaded.problems if f"run {name} has {name}={value}" in p and "resume=restart" in p]


def test_runs_whose_patients_were_averaged_otherwise_are_compared_by_their_images(tmp_path: Path):
    """Several classes in groups of images had wrong weights before numerics version 3: also more than 100 points."""
    make_pair(tmp_path / "study", n_images=40, groups=["p"] * 10 + [f"q{n}" for n in range(30)])
    for run_dir in (tmp_path / "study").iterdir():
        header, *rows = (run_dir / "images.csv").read_text().splitlines()
        absent = ",0" * 5 + "," * (header.count(",") - 11)
        second = [
            row.replace("x,1,", "x,2,")
            if 10 <= n < 20
            else f"test,i{n:04d}x,2,{row.split(',')[3]},512,512,262144{absent}"
            for n, row in enumerate(rows)
        ]
        text = "\n".join([header, *rows, *second, ""])
        (run_dir / "images.csv").write_text(text)
        sums = {"sha256": {"images": hashlib.sha256(text.encode()).hexdigest()}, "n_rows_expected": {"images": 80}}
        edit_record(run_dir, summary={"dice": 1.2, "val_dice": 1.1}, **sums)
    result = compare([tmp_path / "study"])
    assert not result.unscored
    assert one_mentions(result.warnings, "10 runs", "earlier segexp", "repeat")
    assert 0.7 < result.blocks[0].ranking[0].mean < 0.9
    for run_dir in (tmp_path / "study").glob("run-*"):
        edit_record(run_dir, numerics=3)
    with pytest.raises(UsageError, match="out of range"):
        compare([tmp_path / "study"])


def test_a_summary_that_no_run_can_have_is_told_and_the_run_left_out(tmp_path: Path):
    make_pair(tmp_path / "study", n_seeds=3)
    make_run(tmp_path / "study", "x", np.full(60, 0.8), seed=3, summary={"auroc": 2.0, "nll": -1.0, "hd95": 90.0})
    loaded = load([tmp_path])
    assert [run.state for run in loaded.runs] == ["done"] * 6 + ["incomplete"]
    (told,) = loaded.problems
    assert mentions(told, "run x", "nll=-1.0", "auroc=2.0")
    assert "hd95" not in told


@pytest.mark.parametrize(("column", "value"), [
    ("seed", "zero"), ("seed", ""), ("seed", "-1"), ("seed", "1e3"), ("seed", "1.0"), ("fold", "x"),
    ("config_split_fold", "1.5"), ("empty_policy", "none"),
])  # fmt: skip
def test_cells_by_which_runs_are_paired_are_checked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], column: str, value: str
):
    make_pair(tmp_path / "study", n_seeds=6, effect=0.02)
    tables = collected(tmp_path / "study", tmp_path / "tables")
    with (tables / "runs.csv").open(newline="") as file:
        rows = [row | {column: value} if row["run_id"] == "arctan2" else row for row in csv.DictReader(file)]
    with (tables / "runs.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    result = compare([tables])
    assert [w for w in result.warnings if f"run arctan2 has {column}={value!r}" in w]
    assert result.blocks[0].comparisons[0].n_seeds == 5
    assert [u.state for u in result.unscored] == ["incomplete"]
    assert cli.main(["compare", str(tables), "--claims", "nieradzik2021"]) == 0
    assert not capsys.readouterr().err


def test_directories_and_tables_have_the_same_seconds(tmp_path: Path):
    make_pair(tmp_path / "study", n_seeds=3, seconds=99.0)
    (tmp_path / "study" / "run-arctan0" / "timings.csv").write_text(TIMES)
    tables = collected(tmp_path / "study", tmp_path / "tables")
    for path in (tmp_path / "study", tables):
        assert [run.row.get("seconds", "") for run in load([path]).runs] == ["4.5", *[""] * 5]


def test_duplicates_are_counted_once_in_any_order_of_paths(tmp_path: Path):
    make_pair(tmp_path / "a", effect=0.01)
    tables = collected(tmp_path / "a", tmp_path / "tables")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    # One copy is damaged, and one ended badly: the whole one counts.
    cut(tmp_path / "a" / "run-arctan1")
    edit_record(tmp_path / "a" / "run-arctan2", status="failed")
    results = [compare(order) for order in itertools.permutations([tmp_path / "a", tmp_path / "b", tables])]
    assert all(numbers(r) == numbers(results[0]) and r.runs == results[0].runs for r in results)
    assert all(r.warnings == results[0].warnings for r in results)
    assert results[0].blocks[0].comparisons[0].n_seeds == 5
    assert one_mentions(results[0].warnings, "20 duplicate runs")
    directories = {run["run_id"]: Path(run["directory"]).parent.name for run in results[0].runs}
    assert {run_id for run_id, study in directories.items() if study == "b"} == {"arctan1", "arctan2"}


@pytest.mark.parametrize("scores", ["summary", "images"])
@pytest.mark.parametrize("other", ["b", "tables"])
def test_duplicates_with_different_scores_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], scores: str, other: str
):
    make_pair(tmp_path / "a", effect=0.01)
    edit_record(tmp_path / "a" / "run-arctan1", summary={"auroc": 0.8})
    tables = collected(tmp_path / "a", tmp_path / "tables")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    if scores == "summary":
        edit_record(tmp_path / "a" / "run-arctan1", summary={"auroc": 0.9})
    else:
        spoilt(tmp_path / "a" / "run-arctan1" / "images.csv", 3, 14, "0.75")
    told = set()
    for order in (("a", other), (other, "a")):
        assert cli.main(["compare", *(str(tmp_path / name) for name in order)]) == 2
        told.add(capsys.readouterr().err)
    (line,) = told
    second = tmp_path / "b" / "run-arctan1" if other == "b" else tables / "runs.csv"
    assert mentions(line, "run arctan1", tmp_path / "a" / "run-arctan1", second, "different scores")


def test_records_of_an_older_segexp_are_read_as_far_as_they_go(tmp_path: Path):
    make_pair(tmp_path / "study", effect=0.02, schema_version=0, summary={"schema_version": 0})
    for path in tmp_path.glob("study/*/images.csv"):
        lines = [line.rsplit(",", 8)[0] for line in path.read_text().splitlines()]
        sealed(path, "\n".join(lines) + "\n")
    result = compare([tmp_path])
    assert one_mentions(result.warnings, "10 runs", "schema version 0")
    assert [c.verdict for block in result.blocks for c in block.comparisons] == ["better"]
    # Collected tables have the present columns, and are those of the runs.
    tables = collected(tmp_path / "study", tmp_path / "tables")
    assert one_mentions(compare([tmp_path / "study", tables]).warnings, "10 duplicate runs")
    for path in (tmp_path / "study", tables):
        missing = compare([path], metric="hd95")
        assert [c.verdict for block in missing.blocks for c in block.comparisons] == ["no test"]


def test_collected_tables_that_are_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "runs.csv").write_text("a,b\n1,2\n")
    assert cli.main(["compare", str(tmp_path)]) == 2
    assert "run_id" in capsys.readouterr().err
    (tmp_path / "runs.csv").write_text("run_id,status,seed,dice,config_activation_name\nx,done,0,0.5,arctan\n")
    with pytest.raises(UsageError, match=r"images.csv is missing"):
        load([tmp_path])
    (tmp_path / "images.csv").write_text("run_id,split\n")
    with pytest.raises(UsageError, match="column image_id"):
        load([tmp_path])
    (tmp_path / "runs.csv").write_text("run_id,status,seed,dice\nx,done,0\n")
    with pytest.raises(UsageError, match=r"row 2.*segexp collect"):
        load([tmp_path])
    with pytest.raises(UsageError, match="does not exist"):
        load([tmp_path / "nowhere"])
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(UsageError, match=r"no runs.csv"):
        load([tmp_path / "notes.txt"])


def test_runs_that_have_not_begun_are_of_the_numbers_of_the_others(tmp_path: Path):
    make_pair(tmp_path / "study", effect=0.02, numerics=2)
    gone = tmp_path / "study" / "run-arctan4"
    plan = make_plan(tmp_path / "study", "arctan4")
    config: dict[str, Any] = {}
    for key, value in json.loads((gone / "run.json").read_text())["config"].items():
        *groups, name = key.split(".")
        functools.reduce(lambda tree, group: tree.setdefault(group, {}), groups, config)[name] = value
    content = json.loads(plan.read_text())
    content["runs"][0]["config"] = config
    plan.write_text(json.dumps(content))
    shutil.rmtree(gone)
    result = compare([tmp_path / "study"])
    (block,) = result.blocks
    assert not block.conditions
    assert {arm.arm: arm.n_unfinished for arm in block.ranking} == {"arctan": 1, "sigmoid": 0}
    assert not [warning for warning in result.warnings if "numerics" in warning]


def test_runs_of_different_numerics_are_never_paired(tmp_path: Path):
    make_pair(tmp_path / "study", effect=0.02)
    make_pair(tmp_path / "study", effect=0.02, prefix="new", numerics=2)
    make_run(tmp_path / "study", "lone", np.full(60, 0.8), {"activation.name": "probit"}, numerics=2)
    tables = collected(tmp_path / "study", tmp_path / "tables")
    assert read_collected(tables / "runs.csv")["numerics"].dropna().tolist() == [2] * 11
    for result in (compare([path]) for path in (tmp_path / "study", tables)):
        assert [block.conditions for block in result.blocks] == [{"numerics": "1"}, {"numerics": "2"}]
        assert [{c.n_seeds for c in block.comparisons} for block in result.blocks] == [{5}, {5, 1}]
        (warning,) = [w for w in result.warnings if "numerics" in w]
        assert mentions(warning, "10 runs", "version 1", "11 runs", "version 2")


@pytest.mark.parametrize("key", ["trainer.format", "trainer.precision"])
def test_runs_of_several_formats_or_precisions_are_never_paired_silently(key: str, tmp_path: Path):
    before, other = {"trainer.format": ("contiguous", "channels_last"), "trainer.precision": ("fp32", "bf16")}[key]
    for value, prefix in ((before, "one"), (other, "two")):
        make_pair(tmp_path, effect=0.02, prefix=prefix, config={key: value})
    result = compare([tmp_path])
    assert sorted(block.conditions[key] for block in result.blocks) == sorted((before, other))
    assert [{c.n_seeds for c in block.comparisons} for block in result.blocks] == [{5}, {5}]
    (warning,) = [w for w in result.warnings if key in w]
    assert mentions(warning, f"10 runs of {before}", f"10 runs of {other}")


def test_two_runs_of_one_name_are_not_mixed_up(tmp_path: Path):
    candidate_KN, _ = drawn(1, 60)
    make_run(tmp_path / "a", "same", candidate_KN[0], seed=0)
    make_run(tmp_path / "b", "same", candidate_KN[0], seed=1, identity="another")
    loaded = load([tmp_path / "a", tmp_path / "b"])
    assert len(loaded.runs) == 1
    assert one_mentions(loaded.problems, "another run", "run_id same")


@pytest.mark.slow
def test_comparing_does_not_import_torch(tmp_path: Path):
    make_pair(tmp_path / "study", n_seeds=3)
    code = (
        "import sys; from segexp.cli import main; code = main(sys.argv[1:]); "
        "sys.exit(code or any(name in sys.modules for name in ('torch', 'hydra', 'omegaconf', 'matplotlib')))"
    )
    words = ["compare", str(tmp_path), "--questions", "all"]
    subprocess.run([sys.executable, "-c", code, *words], check=True, capture_output=True)


GIGABYTES = 4.0


@pytest.mark.slow
@pytest.mark.alone
def test_comparing_ten_thousand_runs_takes_four_times_as_long_as_a_quarter(tmp_path: Path):
    """100 arms of 100 seeds, 100 images each, configurations as long as real ones: time grows linearly, and is a small
    multiple of that of reading the files. The quarter is timed before and after, for a machine changes its speed."""
    more = {f"group{n}.key{n}": "a value of usual length" for n in range(100)}
    rng = np.random.default_rng(0)
    code = (
        "import sys; from segexp.cli import main; main(['compare', sys.argv[1], '--json']);"
        f"{PRINT_PEAK_KIB[:-1]}, file=sys.stderr)"
    )
    spent: dict[int, list[float]] = {25: [], 100: []}
    for seeds in (25, 100):
        for a, loss in itertools.product(range(10), range(10)):
            dice_KN = np.clip(0.8 + 0.05 * rng.standard_normal((seeds, 100)), 0, 1)
            arm = f"a{a}" if a else "sigmoid"
            make_arm(tmp_path / str(seeds) / "study", arm, dice_KN, more | {"loss.name": f"l{loss}"}, f"{loss}x")
    bare = bare_reading(tmp_path / "25")
    for seeds in (25, 100, 25):
        before = time.perf_counter()
        command = [sys.executable, "-c", code, str(tmp_path / str(seeds) / "study")]
        seen = subprocess.run(command, capture_output=True, text=True, check=True)
        spent[seeds].append(time.perf_counter() - before)
        assert json.loads(seen.stdout)["n_runs"] == 100 * seeds
        assert int(seen.stderr.split()[-1]) / 1e6 < GIGABYTES
    print(f"read in {bare:.1f} s; compared in {spent} s")
    quarter = sum(spent[25]) / 2
    assert quarter < 15 * bare
    assert spent[100][0] < 5.5 * quarter
