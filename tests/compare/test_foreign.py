"""Results of other programs: the same verdicts as from our own runs, pairs only where stated, and strict reading."""

import csv
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_scores import drawn, make_arm, make_pair, only
from messages import one_mentions

from segexp import cli
from segexp.compare.result import Comparison, Method, Result
from segexp.compare.verdict import compare
from segexp.errors import UsageError
from segexp.records.collected import collect

SHAPE = (512, 512)


def table(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


def rows_of(study: Path) -> list[dict[str, str]]:
    """images.csv of the runs of a study."""
    collect(study, study.parent / "tables")
    with (study.parent / "tables" / "images.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def exported(study: Path, columns: Mapping[str, str], path: Path, separator: str = ",") -> Path:
    """The scores of a study as another program would write them. columns: column -> that of images.csv."""
    lines = [[row[of] for of in columns.values()] for row in rows_of(study)]
    return table(path, *(separator.join(cells) for cells in [[*columns], *lines]))


def numbers(found: Comparison) -> str:
    """Everything but warnings and what they say, to the last digit."""
    values = (found.candidate_N.tolist(), found.reference_N.tolist()) if found.candidate_N is not None else ()  # type: ignore[union-attr]
    sets = numbers(found.new_training_sets) if found.new_training_sets else ""
    plain = replace(found, warnings=(), candidate_N=None, reference_N=None, new_training_sets=None)
    return f"{plain!r} {values} {sets}"


def comparisons(result: Result) -> list[str]:
    return [numbers(found) for block in result.blocks for found in block.comparisons]


LONG = {"model": "activation", "run": "seed", "case": "image_id", "DSC": "dice"}
ROLES = "arm=model, seed = run,image=case,dice=DSC"


def test_an_exported_study_has_the_same_verdict_and_numbers(tmp_path: Path):
    make_pair(tmp_path / "study", effect=0.004)
    own = compare([tmp_path / "study"])
    long = exported(tmp_path / "study", LONG, tmp_path / "long.csv")
    found = compare([long], columns=ROLES, paired=True, reference="model=sigmoid")
    assert comparisons(found) == comparisons(own)
    assert [arm.mean for arm in found.blocks[0].ranking] == [arm.mean for arm in own.blocks[0].ranking]
    assert only(found).method == Method.TWO_WAY
    assert one_mentions(only(found).warnings, "--paired")
    assert one_mentions(found.warnings, "long.csv", "arm=model", "dice=DSC")
    assert comparisons(
        compare([long], columns=ROLES, paired=True, reference="model=sigmoid", metric="dice", rope=2)
    ) == (comparisons(compare([tmp_path / "study"], rope=2)))


def test_classes_groups_and_empty_masks_come_from_the_counts(tmp_path: Path):
    """Two classes, patients, images without the second class."""
    rng = np.random.default_rng(0)
    lines = []
    for arm, seed, image, region in np.ndindex(2, 3, 24, 2):
        held = region == 0 or image % 4 > 0
        tp, fp, fn = (held * int(rng.integers(50, 99)), 5 + arm, held * 120)
        label = '"(1, 2)"' if region else "liver"
        lines.append(f"{'ab'[arm]},{seed},i{image:02d},{label},p{image // 2},{tp},{fp},{fn - tp}")
    path = table(tmp_path / "t.csv", "arm,seed,image_id,class,group_id,tp,fp,fn", *lines)
    both = compare([path], paired=True, reference="arm=a", class_="each")
    assert [one.metric.title for one in (both, *both.others)] == ["Dice, (1, 2)", "Dice, liver"]
    region_of, liver = (one.blocks[0].comparisons[0] for one in (both, *both.others))
    assert (liver.n_images, region_of.n_images) == (24, 18)  # left out where the reference is empty
    assert (liver.n_groups, region_of.n_groups) == (12, 12)
    assert compare([path], metric="iou", reference="arm=a").metric.title == "IoU"


def test_an_image_without_group_may_have_the_name_of_a_group(tmp_path: Path):
    rng = np.random.default_rng(0)
    lines = [
        f"{arm},{seed},i{n},{'i3' if n < 2 else ''},{rng.random():.3f}"
        for arm in "ab"
        for seed in range(3)
        for n in range(8)
    ]
    found = only(
        compare([table(tmp_path / "t.csv", "arm,seed,image,group,dice", *lines)], paired=True, reference="arm=a")
    )
    assert (found.n_images, found.n_groups) == (8, 7)
    assert set(found.units) == {"i3", "i3 (image)", *(f"i{n}" for n in (2, 4, 5, 6, 7))}


def test_classes_weigh_alike_however_many_images_a_patient_has(tmp_path: Path):
    """A perfect segmentation has 100 points, though large patients lack a class."""
    lines = []
    for arm, seed, n in np.ndindex(2, 3, 60):
        patient = int(n**0.5)
        lines.append(f"{'ab'[arm]},{seed},i{n},p{patient},1,100,{5 * arm},0")
        lines.append(f"{'ab'[arm]},{seed},i{n},p{patient},2,{50 * (patient < 4)},0,0")
    result = compare([table(tmp_path / "t.csv", "arm,seed,image,group,class,tp,fp,fn", *lines)], paired=True)
    best, other = result.blocks[0].ranking
    assert (best.arm, best.mean) == ("a", pytest.approx(1.0, abs=1e-12))
    assert other.mean == pytest.approx((200 / 205 + 1) / 2)


def test_seeds_are_pairs_only_where_stated(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    make_pair(tmp_path / "study", effect=0.02)
    long = exported(tmp_path / "study", LONG, tmp_path / "long.csv", ";")
    found = only(compare([long], columns=ROLES, reference="model=sigmoid"))
    assert (found.method, found.paired, found.n_seeds, found.n_images) == (Method.UNPAIRED, False, 5, 60)
    assert one_mentions(found.warnings, "--paired")
    assert cli.main(["compare", str(long), "--columns", ROLES, "--reference", "model=sigmoid"]) == 0
    assert Method.UNPAIRED.split(",")[0] in capsys.readouterr().out
    crossed = [
        f"{m},{x},{s},i{i},{0.5 + 0.001 * (s + i)}" for m in "ab" for x in "cd" for s in range(3) for i in range(9)
    ]
    table(tmp_path / "x.csv", "model,loss,seed,image,dice", *crossed)
    by: dict[str, Any] = {"columns": "arm=model+loss", "reference": "model=a,loss=c"}
    for paired, n in ((True, 1), (False, 0)):  # the interaction needs pairs too
        result = compare([tmp_path / "x.csv"], paired=paired, **by)
        assert result.by == ("model", "loss")
        assert len(result.blocks[0].factorials[0].interactions) == n


def test_one_run_per_arm_is_no_test_and_invents_no_seed(tmp_path: Path):
    lines = [f"{arm},c{i},{0.8 + 0.01 * i}" for arm in ("unet", "segformer") for i in range(9)]
    result = compare([table(tmp_path / "t.csv", "arm,image,dice", *lines)], reference="arm=unet")
    assert only(result).verdict == "no test"
    assert one_mentions(result.warnings, "no seeds, so each arm is one run")
    with pytest.raises(UsageError, match="--columns seed="):
        compare([tmp_path / "t.csv"], reference="arm=unet", paired=True)


@pytest.mark.slow
def test_names_of_runs_are_numbered_and_missing_images_counted(tmp_path: Path):
    lines = [f"{arm},run_{s},c{i},0.{5 + s}{i}" for arm in "ab" for s in range(3) for i in range(9)]
    lines.remove("b,run_1,c3,0.63")
    result = compare([table(tmp_path / "t.csv", "arm,seed,image,dice", *lines)], reference="arm=a", paired=True)
    assert [*result.blocks[0].ranking[0].seeds] == ["0", "1", "2"]
    assert one_mentions(result.warnings, "0 is run_0")
    assert one_mentions(result.warnings, "b lacks 1 of 9 images", "c3")
    twice = [f"{arm},{seed},c{i},0.{5 + len(seed)}{i}" for arm in "ab" for seed in ("1", "01", "2") for i in range(9)]
    apart = compare([table(tmp_path / "s.csv", "arm,seed,image,dice", *twice)], reference="arm=a")
    assert one_mentions(apart.warnings, "0 is 01, 1 is 1, 2 is 2")
    labels = ["1", "3", '"(1, 2)"']
    rows = [f"{arm},c{i},{label},0.{i}{n}" for arm in "ab" for i in range(9) for n, label in enumerate(labels)]
    path = table(tmp_path / "c.csv", "arm,image,class,dice", *rows)
    titles = [compare([path], reference="arm=a", class_=label).metric.title for label in ("1", "3", "(1, 2)", "4")]
    assert titles == ["Dice, 1", "Dice, 3", "Dice, (1, 2)", "Dice, (1, 2)"]  # numbers keep theirs
    assert (only(result).n_images, only(result).dropped) == (8, "1 image not in all runs")


def test_scores_that_segexp_does_not_know_have_the_stated_direction(tmp_path: Path):
    lines = [
        f"{arm};{s};c{i};{1 + 0.1 * i + (arm == 'b') * (1 + 0.1 * s) + 0.01 * (s * i % 4)}"
        for arm in "ab"
        for s in range(3)
        for i in range(9)
    ]
    path = table(tmp_path / "t.csv", "arm;seed;image;Mean ASSD", *lines)
    for role, verdict, better in (("error", "worse", "lower"), ("score", "better", "higher")):
        result = compare([path], columns=f"{role}=Mean ASSD", reference="arm=a", paired=True)
        assert (only(result).verdict, result.metric.title) == (verdict, "Mean ASSD")
        assert one_mentions(result.warnings, f"Mean ASSD: {better} is better")
    with pytest.raises(UsageError, match=r"lower is better in hd95; write hd95=hd95"):
        compare([table(tmp_path / "h.csv", "arm,image,hd95", "a,x,3")], columns="score=hd95")


def fold_study(study: Path, seeds: int = 1) -> None:
    """Cross-validation in three folds of 20 images; runs of a fold are trained on the images of the others."""
    for fold in range(3):
        both = drawn(seeds, 20, 0.01, rng=fold)
        names = [f"case_{fold}{n:02d}" for n in range(20)]
        for arm, dice_KN in zip(("arctan", "sigmoid"), both, strict=True):
            config = {"split.fold": fold, "split.folds": 3}
            facts: dict[str, Any] = {
                "summary": {"n_train": 40, "fold": fold},
                "split_sha": f"fold{fold}",
                "names": names,
            }
            make_arm(study, arm, dice_KN, config, f"f{fold}", **facts)


def nnunet_results(study: Path, root: Path) -> Path:
    """The study as folders of nnU-Net v2."""
    folds: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows_of(study):
        counts = {key.upper(): int(row[key]) for key in ("tp", "fp", "fn")}
        case = {
            "metrics": {"1": {"Dice": float(row["dice"]), **counts}},
            "reference_file": f"/x/{row['image_id']}.nii.gz",
        }
        folds.setdefault((row["activation"], row["image_id"][5]), []).append(case)
    for (arm, fold), cases in folds.items():
        path = root / "Dataset004_Hippo" / f"{arm}__nnUNetPlans__2d" / f"fold_{fold}" / "validation" / "summary.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"foreground_mean": {"Dice": float("nan")}, "metric_per_case": cases}))
    return root


def test_nnunet_folders_have_the_same_verdict_over_folds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fold_study(tmp_path / "study")
    own = only(compare([tmp_path / "study"]))
    root = nnunet_results(tmp_path / "study", tmp_path / "nnUNet_results")
    arms: dict[str, Any] = {"candidate": "arctan__nnUNetPlans__2d", "reference": "sigmoid__nnUNetPlans__2d"}
    monkeypatch.chdir(root / "Dataset004_Hippo")
    for path in (root, root / "Dataset004_Hippo", Path()):
        result = compare([path], reference=f"arm={arms['reference']}")
        assert numbers(only(result)) == numbers(replace(own, **arms))
    assert only(result).method == Method.OVER_FOLDS
    assert result.blocks[0].dataset == "Dataset004_Hippo"
    folder = root / "Dataset004_Hippo" / arms["candidate"]
    (folder / "fold_0").rename(folder / "fold_all")
    left = compare([root], reference=f"arm={arms['reference']}")
    assert (only(left).verdict, left.n_runs) == ("no test", 5)


def test_cross_validation_with_stated_pairs_is_out_of_fold(tmp_path: Path):
    fold_study(tmp_path / "study", seeds=3)
    own = only(compare([tmp_path / "study"]))
    rows = rows_of(tmp_path / "study")
    lines = [",".join([r["activation"], r["seed"], r["image_id"], r["image_id"][5], r["dice"], "40"]) for r in rows]
    path = table(tmp_path / "t.csv", "arm,seed,image,fold,dice,n_train", *lines)
    paired = only(compare([path], reference="arm=sigmoid", paired=True))
    assert numbers(paired) == numbers(own)
    assert paired.method == Method.OUT_OF_FOLD
    unpaired = only(compare([path], reference="arm=sigmoid"))
    assert (unpaired.method, unpaired.new_training_sets) == (Method.OVER_FOLDS, None)
    other = [line.replace("case_000,0", "case_000,1") if line.startswith("arctan") else line for line in lines]
    found = only(
        compare([table(tmp_path / "o.csv", "arm,seed,image,fold,dice,n_train", *other)], reference="arm=sigmoid")
    )
    assert (found.verdict, *(re.findall("the split differs", found.warnings[0]))) == ("no test", "the split differs")


GOOD = ("a,0,x,0.5", "b,0,x,0.6")


@pytest.mark.parametrize(("lines", "words", "parts"), [
    (GOOD, ["--columns", "arm=method"], ["column 'method'", "--columns arm"]),
    (GOOD, ["--columns", "arms=arm"], ["arms is an unknown role", "did you mean arm"]),
    (GOOD, ["--columns", "arm"], ["not ROLE=COLUMN"]),
    (GOOD, ["--columns", "arm=arm,arm=seed"], ["arm is given twice"]),
    (GOOD, ["--split", "val"], ["no rows of split val", "--columns split="]),
    (GOOD, ["--metric", "hd95"], ["--metric hd95", "dice"]),
    ((*GOOD, "a,0,x,0.7"), [], ["line 2", "line 4", "remove one"]),
    ((*GOOD, "b,0,y,87.1"), [], ["line 4", "not percent"]),
    ((*GOOD, 'b,0,y,"0,87"'), [], ["line 4", "decimals with a point"]),
    ((*GOOD, "b,0,y,inf"), [], ["line 4", "finite"]),
    ((*GOOD, ",0,y,0.5"), [], ["line 4", "the arm is empty"]),
    ((*GOOD, "b,,y,0.5"), [], ["line 4", "the seed is empty"]),
    (("a,0,x,0.5",), [], ["only one arm"]),
    ((), [], ["no rows"]),
    ((*GOOD, "a,1,x,"), [], ["line 2", "line 4", "the score known and undefined", "leave the image out"]),
    (GOOD, ["--by", "activation"], ["no run has the key 'activation'", "valid: dataset, seed, arm"]),
])  # fmt: skip
def test_a_table_is_read_strictly(
    lines: Sequence[str], words: list[str], parts: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = table(tmp_path / "t.csv", "arm,seed,image,dice", *lines)
    assert cli.main(["compare", str(path), *words]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert all(part in error for part in parts), error


@pytest.mark.parametrize(("header", "lines", "part"), [
    ("arm,image,class,dice", ["a,x,1,.5", "a,x,2,.5", "a,y,1,.5"], "every class"),
    ("arm,image,group,dice", ["a,x,p,.5", "b,x,q,.5"], "the group p and q"),
    ("arm,image,tp,fp,fn", ["a,x,5,0,5", "b,x,5,0,6"], "same references"),
    ("arm,image,tp,fp,fn", ["a,x,5,0,.5", "b,x,5,0,6"], "fn is not a whole number"),
    ("arm,image,value", ["a,x,5"], "--columns score"),
    ("model,image,dice", ["a,x,5"], "--columns arm"),
])  # fmt: skip
def test_rows_that_cannot_be_true_together_are_refused(header: str, lines: list[str], part: str, tmp_path: Path):
    with pytest.raises(UsageError, match=part):
        compare([table(tmp_path / "t.csv", header, *lines)])


def test_own_runs_and_others_are_compared_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    make_pair(tmp_path / "study")
    path = table(tmp_path / "t.csv", "arm,seed,image,dice", *GOOD)
    (tmp_path / "study" / "other").mkdir()
    table(tmp_path / "study" / "other" / "summary.json", "{}")  # of anything: our own runs come first
    assert len(compare([tmp_path / "study"]).runs) == 10
    for words in ([str(path), "--metric=dice"], ["--paired"], ["--columns", "arm=arm"]):
        assert cli.main(["compare", str(tmp_path / "study"), *words]) == 2
        assert str(tmp_path / "study") in capsys.readouterr().err
    (tmp_path / "summary.json").write_text('{"results": {"all": []}}')
    assert cli.main(["compare", str(tmp_path / "summary.json")]) == 2
    assert "nnU-Net v2" in capsys.readouterr().err


def test_claims_about_other_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    make_pair(tmp_path / "study", effect=0.03)
    long = exported(tmp_path / "study", LONG, tmp_path / "long.csv")
    claim = "- {candidate: method=arctan, reference: method=sigmoid, metric: dice, relation: better}"
    claims = table(tmp_path / "claims.yaml", "claims:", claim)
    words = ["--columns", ROLES.replace("arm=model", "arm=method"), "--paired", "--claims", str(claims)]
    long.write_text(long.read_text().replace("model,", "method,", 1))
    assert cli.main(["compare", str(long), *words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["outcome"] == "supported"
    assert cli.main(["compare", str(long), *words[:2], "--reference", "method=sigmoid", "--questions", "all"]) == 2
    assert "--questions" in capsys.readouterr().err


@pytest.mark.slow
def test_the_report_of_other_programs(tmp_path: Path):
    make_pair(tmp_path / "study", effect=0.03)
    long = exported(tmp_path / "study", LONG, tmp_path / "long.csv")
    page = tmp_path / "r.html"
    words = ["--columns", ROLES, "--paired", "--reference", "model=sigmoid", "-o", str(page)]
    assert cli.main(["report", str(long), *words]) == 0
    text = page.read_text()
    assert "long.csv" in text
    assert "+3.0" in text
