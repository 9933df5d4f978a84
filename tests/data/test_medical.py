"""The medical presets, on tiny copies of the official layouts: pixels per class, groups, spacing, and a run on each."""

from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
from medical import acdc, isles2018, msd_prostate, nnunet, placed, save_dicom, save_series, scene
from tiny import TINY

from segexp.config.compose import compose, hydra_session
from segexp.data.image_set import fingerprint
from segexp.data.pattern import open_pattern
from segexp.records import read_table
from segexp.running import prepare
from segexp.running.execute import execute

SETS: dict[str, Callable[[Path], dict[str, np.ndarray]]] = {
    "acdc": acdc,
    "isles2018": isles2018,
    "msd": msd_prostate,
    "msd_prostate": msd_prostate,
    "nnunet": nnunet,
}
"""Preset -> what writes its layout."""

GROUPS = {"acdc": lambda case: case.partition("_")[0]}
CHANNELS = {"isles2018": 5, "msd": 2, "msd_prostate": 2}
SMALL = [word for word in TINY if not word.startswith("dataset.number")]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in ("isles2018", "msd_prostate"))) for name in SETS]
)
def test_a_copy_of_the_layout_is_read_and_divided(name: str, tmp_path: Path) -> None:
    labels = SETS[name](tmp_path / "root")
    with hydra_session() as extra:
        config = compose([*extra, f"dataset={name}", f"dataset.root={tmp_path}/root", f"outputs={tmp_path}", *SMALL])
    spec = prepare(config)
    found = spec.image_set
    assert {*found.case_ids} == {*labels}
    assert (found.channels, set(found.spacings)) == (CHANNELS.get(name, 1), {(5.0, 0.75, 0.5)})
    of = GROUPS.get(name, lambda case: case)
    assert found.group_ids == tuple(of(case) for case in found.case_ids)
    for index, (case, image_id) in enumerate(zip(found.case_ids, found.image_ids, strict=True)):
        plane = labels[case][:, :, int(image_id[-3:])]
        assert np.array_equal(np.bincount(found.read(index).mask_HW.ravel()), np.bincount(plane.ravel()))
    parts = {part: {found.group_ids[i] for i in indices} for part, indices in spec.split.items()}
    assert not parts["train"] & (parts["test"] | parts["val"])
    if name == "acdc":
        assert parts["test"] == {"patient005", "patient006"}
        assert any(file.endswith("_4d.nii.gz") for file in found.unused)
    if name == "isles2018":
        assert any("4DPWI" in file for file in found.unused)


def test_a_folder_of_series_with_masks_in_nifti(tmp_path: Path) -> None:
    """The paths of a pattern may be folders: each is a DICOM series, whose every file is in the fingerprint."""
    for n in range(4):
        image, labels = scene(n)
        (tmp_path / "scans").mkdir(exist_ok=True)
        save_series(tmp_path / "scans" / f"p{n}", image[..., 0].T)
        (tmp_path / "labels").mkdir(exist_ok=True)
        lps = np.diag([-0.5, -0.75, 4.0, 1.0])
        nibabel.save(nibabel.Nifti1Image(labels, lps), tmp_path / "labels" / f"p{n}.nii.gz")
    with hydra_session() as extra:
        given = ["dataset=pattern", f"dataset.root={tmp_path}", "dataset.images='scans/{id}'"]
        given += ["dataset.masks='labels/{id}.nii.gz'"]
        found = open_pattern(compose([*extra, *given]).dataset)
    assert found.case_ids == tuple(f"p{n}" for n in range(4) for _ in range(3))
    assert np.array_equal(found.read(4).image_HWC[..., 0], scene(1)[0][:, :, 1, 0].T)
    assert np.array_equal(found.read(4).mask_HW, scene(1)[1][:, :, 1].T)
    before = fingerprint(found)
    save_dicom(tmp_path / "scans" / "p3" / "IM001", scene(3)[0][:, :, 2, 0].T + 1, **placed(8.0))
    assert fingerprint(found) != before


@pytest.mark.slow
@pytest.mark.parametrize("name", SETS)
def test_a_run_on_each(name: str, tmp_path: Path) -> None:
    labels = SETS[name](tmp_path / "root")
    with hydra_session() as extra:
        words = [f"dataset={name}", f"dataset.root={tmp_path}/root", f"outputs={tmp_path}", *SMALL, "trainer.epochs=1"]
        spec = prepare(compose([*extra, *words]))
    execute(spec)
    images = read_table(spec.run_dir / "images.csv", "images")
    test = {spec.image_set.image_ids[i] for i in spec.split["test"]}
    assert set(images["image_id"]) >= test
    assert len(labels) > 1
