"""Runs on volumes: scored slice by slice, or each volume as one (metrics.unit=case)."""

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from medical import nnunet, save_nifti, scene
from messages import mentions
from tiny import TINY, write_pairs

from segexp import cli
from segexp.config import Config
from segexp.config.compose import compose, hydra_session
from segexp.data.image_set import ImageSet
from segexp.errors import UsageError
from segexp.running import Outcome, prepare, scoring_notes
from segexp.running.build import units_of
from segexp.running.execute import execute
from segexp.running.splits import check_unit

pytest.importorskip("nibabel")

CASE = "metrics.unit=case"


def config_on(root: Path, outputs: Path, *more: str, dataset: str = "nnunet") -> Config:
    words = [word for word in TINY if not word.startswith("dataset.number")]
    words += [f"dataset={dataset}", f"dataset.root='{root}'", f"outputs='{outputs}'", "trainer.epochs=1"]
    with hydra_session():
        return compose([*words, *more])


def rows_of(path: Path, split: str = "test") -> list[dict[str, str]]:
    with path.open() as file:
        return [row for row in csv.DictReader(file) if row["split"] == split]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cases") / "data"
    nnunet(root, cases=8)
    return root


@pytest.fixture(scope="module")
def by_case(data: Path) -> Outcome:
    return execute(prepare(config_on(data, data.parent / "out", CASE)))


def test_a_run_has_a_row_for_each_volume_and_class(data: Path, by_case: Outcome) -> None:
    run_dir = by_case.run_dir
    rows = rows_of(run_dir / "images.csv")
    cases = {row["image_id"].rpartition("_z")[0] for row in rows_of(run_dir / "split.csv")}
    assert {(row["image_id"], row["class_id"]) for row in rows} == {(case, c) for case in cases for c in ("1", "2")}
    assert by_case.summary["n_test_cases"] == len(cases)
    assert by_case.summary["n_test"] == 3 * len(cases)
    assert by_case.summary["distance_unit"] == "mm"
    by_image = execute(prepare(config_on(data, data.parent / "out"))).run_dir
    slices = rows_of(by_image / "images.csv")
    for row in rows:
        of_case = [
            s for s in slices if s["image_id"].startswith(row["image_id"] + "_z") and s["class_id"] == row["class_id"]
        ]
        assert int(row["n_gt"]) == sum(int(s["n_gt"]) for s in of_case)
        assert int(row["n_valid"]) == sum(int(s["n_valid"]) for s in of_case)
    # The validation score after the epoch is that of the final scores, of cases.
    (last,) = rows_of(run_dir / "epochs.csv", "val")
    assert float(last["dice"]) == pytest.approx(by_case.summary["val_dice"])
    record = json.loads((run_dir / "run.json").read_text())
    assert mentions(record["notes"][1], "8 volumes", "scored as one")


def test_it_is_evaluated_compared_shown_and_reported(
    data: Path, by_case: Outcome, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = str(by_case.run_dir)
    assert cli.main(["evaluate", run_dir]) == 0
    assert (by_case.run_dir / "evaluations/test-0.5/images.csv").read_text().splitlines()[1:] == [
        line for line in (by_case.run_dir / "images.csv").read_text().splitlines() if line.startswith("test,")
    ]
    assert cli.main(["evaluate", run_dir, "metrics.unit=image"]) == 0
    (slices,) = (path for path in (by_case.run_dir / "evaluations").iterdir() if path.name != "test-0.5")
    assert len(rows_of(slices / "images.csv")) == 2 * by_case.summary["n_test"]
    assert cli.main(["show", run_dir]) == 0
    assert "mm" in capsys.readouterr().out
    assert cli.main(["collect", str(by_case.run_dir.parent), "-o", str(data.parent / "tables")]) == 0
    capsys.readouterr()
    # Runs on cases and on images are not put into one comparison, and no row is taken for missing.
    assert cli.main(["compare", str(data.parent / "tables"), "--json"]) == 0
    shown = capsys.readouterr().out
    assert "rows are missing" not in shown


@pytest.mark.slow
def test_tables_of_evaluate_name_classes_and_units(
    by_case: Outcome, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Other data may lack the names of the classes that the network was trained for."""
    for n in range(2):
        for name, volume in zip(("images", "masks"), scene(50 + n, classes=3), strict=True):
            (tmp_path / name).mkdir(exist_ok=True)
            save_nifti(tmp_path / name / f"other{n}.nii.gz", volume.squeeze())
    others = ["--split", "all", "--dataset", "folder", f"dataset.root={tmp_path}", "dataset.mask_coding=index"]
    for words in ([], others):
        capsys.readouterr()
        assert cli.main(["evaluate", str(by_case.run_dir), *words]) == 0
        shown = capsys.readouterr().out
        assert mentions(shown, "PZ", "TZ", "Hausdorff distance 95 % (mm)", "by voxels")


def test_what_is_scored_is_noted_before_training(data: Path, tmp_path: Path) -> None:
    config = config_on(data, tmp_path)
    image_set = prepare(config).image_set
    _, volumes, distances = scoring_notes(config, image_set)
    assert mentions(volumes, "8 volumes", "metrics.unit=case")
    assert mentions(distances, "mm", "dataset.surface_tolerance=2")
    config.dataset.spacing = [1.0, 1.0]
    assert len(scoring_notes(config, image_set)) == 2


@pytest.mark.parametrize(("more", "words"), [
    (["metrics.nsd=surface"], ["metrics.nsd=pixel"]),
    (["dataset.spacing=[1,2,3,4]"], ["dataset.spacing"]),
])  # fmt: skip
def test_options_that_do_not_fit_volumes_are_refused(data: Path, tmp_path: Path, more: list[str], words: list[str]):
    with pytest.raises(UsageError) as error:
        config_on(data, tmp_path, CASE, *more)
    assert mentions(error.value, *words)


def test_spacing_is_that_of_the_files_unless_it_is_given(data: Path, tmp_path: Path) -> None:
    config = config_on(data, tmp_path, CASE)
    image_set = prepare(config).image_set

    def spacing(*numbers: float, of: ImageSet = image_set) -> object:
        dataset = dataclasses.replace(config.dataset, spacing=list(numbers) or None)
        return units_of(dataclasses.replace(config, dataset=dataset), of).spacing(0)

    nothing = dataclasses.replace(image_set, spacings=())
    assert (spacing(), spacing(of=nothing)) == ((5.0, 0.75, 0.5), (1.0, 1.0, 1.0))
    assert (spacing(2, 3), spacing(9, 2, 3), spacing(9, 2, 3, of=nothing)) == ((5, 2, 3), (9, 2, 3), (9, 2, 3))
    config.dataset.spacing = [2.0, 3.0]
    with pytest.raises(UsageError) as error:
        check_unit(config, nothing, {})
    assert mentions(error.value, "dataset.spacing=[SLICES,2,3]")
    config.dataset.spacing = None
    flat = dataclasses.replace(image_set, spacings=((0.0, 0.75, 0.5), *image_set.spacings[1:]))
    with pytest.raises(UsageError) as error:
        check_unit(config, flat, {})
    assert mentions(error.value, "dataset.spacing=[SLICES,HEIGHT,WIDTH]")
    check_unit(config, nothing, {})
    assert "voxels as cubes" in scoring_notes(config, nothing)[1]


def test_a_volume_in_two_parts_of_the_split_is_refused(data: Path, tmp_path: Path) -> None:
    spec = prepare(config_on(data, tmp_path, CASE))
    moved = {**spec.split, "test": [*spec.split["test"], spec.split["train"][0]]}
    with pytest.raises(UsageError) as error:
        check_unit(spec.config, spec.image_set, moved)
    assert mentions(error.value, spec.image_set.case_ids[spec.split["train"][0]], "train", "test", "metrics.unit=image")


def test_images_that_are_no_slices_cannot_be_scored_by_case(tmp_path: Path) -> None:
    write_pairs(tmp_path / "data", [(f"{n}.png", np.eye(32) * 9 * n, np.eye(32) * 255) for n in range(8)])
    with pytest.raises(UsageError) as error:
        prepare(config_on(tmp_path / "data", tmp_path, CASE, dataset="folder"))
    assert mentions(error.value, "metrics.unit=image", tmp_path / "data")
