"""nnU-Net's raw layout and the Decathlon's: what dataset.json describes, which files are used, and what is refused."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from medical import nnunet, save_nifti, scene
from PIL import Image

from segexp.config import Config
from segexp.config.compose import compose, hydra_session
from segexp.data.check import check_pairs
from segexp.data.image_set import ImageSet, PairsError
from segexp.data.nnunet import open_nnunet
from segexp.errors import UsageError


def opened(root: Path, *overrides: str, dataset: str = "nnunet") -> tuple[Config, ImageSet]:
    config = composed(root, *overrides, dataset=dataset)
    return config, open_nnunet(config.dataset)


def composed(root: Path, *overrides: str, dataset: str = "nnunet") -> Config:
    with hydra_session() as extra:
        return compose([*extra, f"dataset={dataset}", f"dataset.root='{root}'", *overrides])


def describe(root: Path, **changes: Any) -> None:
    path = root / "dataset.json"
    described = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in described.items() if value is not None}))


def test_a_set_is_described_by_its_dataset_json(tmp_path: Path) -> None:
    labels = nnunet(tmp_path / "Dataset005_Prostate", channels=2, licence="CC BY 4.0")
    config, found = opened(tmp_path / "Dataset005_Prostate")
    dataset: Any = config.dataset
    assert dataset.name == "Dataset005_Prostate"
    assert (dataset.num_classes, dataset.class_names) == (3, ["background", "PZ", "TZ"])
    assert (dataset.channels, dataset.channel_names) == (2, ["T2", "ADC"])
    assert (dataset.ignore_index, dataset.regions, dataset.licence) == (None, None, "CC BY 4.0")
    assert found.image_ids == tuple(f"{case}_z{k:03d}" for case in labels for k in range(3))
    assert found.case_ids == found.group_ids == tuple(case for case in labels for _ in range(3))
    assert set(found.spacings) == {(5.0, 0.75, 0.5)}
    assert (found.channels, found.declared_split, found.unused) == (2, None, {})


def test_pixels_per_class_are_those_of_the_arrays(tmp_path: Path) -> None:
    for ending in (".png", ".nii.gz"):
        root = tmp_path / ending
        labels = nnunet(root, ending=ending)
        _, found = opened(root)
        for index, image_id in enumerate(found.image_ids):
            case, _, k = image_id.partition("_z")
            pair = found.read(index)
            wanted = labels[case][:, :, int(k or 0)].T
            assert np.array_equal(pair.mask_HW, wanted)


def test_the_first_version_of_the_format_and_a_decathlon_task(tmp_path: Path) -> None:
    nnunet(tmp_path, channels=2, channel_names=None, modality={"0": "T2", "1": "ADC"}, file_ending=None,
           labels={"0": "background", "2": "TZ", "1": "PZ"})  # fmt: skip
    config, found = opened(tmp_path)
    assert config.dataset.class_names == ["background", "PZ", "TZ"]
    assert found.channels == 2
    root = tmp_path / "Task05_Prostate"
    for folder in ("imagesTr", "labelsTr", "imagesTs"):
        (root / folder).mkdir(parents=True)
    for n in range(4):
        image, labels = scene(n, 3, 2)
        save_nifti(root / "imagesTr" / f"prostate_{n:02d}.nii.gz", image)
        save_nifti(root / "labelsTr" / f"prostate_{n:02d}.nii.gz", labels)
    save_nifti(root / "imagesTs" / "prostate_03.nii.gz", image)
    (root / "imagesTr" / "._prostate_00.nii.gz").touch()
    described = {"modality": {"0": "T2", "1": "ADC"}, "labels": {"0": "background", "1": "PZ", "2": "TZ"}}
    (root / "dataset.json").write_text(json.dumps({**described, "numTraining": 4, "tensorImageSize": "4D"}))
    config, found = opened(root, dataset="msd")
    assert config.dataset.name == "Task05_Prostate"
    assert (found.channels, found.image_ids[0], len(found.image_ids)) == (2, "prostate_00_z000", 12)
    assert set(found.unused) == {"imagesTr/._prostate_00.nii.gz", "imagesTs/prostate_03.nii.gz"}


@pytest.mark.parametrize(("labels", "wanted"), [
    ({"background": 0, "PZ": 1, "TZ": 2, "ignore": 3}, {"num_classes": 3, "ignore_index": 3, "mask_coding": "index"}),
    ({"PZ": 1, "TZ": 2}, {"num_classes": 3, "class_names": ["background", "PZ", "TZ"]}),
    ({"background": 0, "TZ": 7, "PZ": 5}, {"mask_coding": "values", "mask_values": [0, 5, 7],
                                           "class_names": ["background", "PZ", "TZ"]}),
    ({"background": 0, "whole": [1, 2], "core": [2], "ignore": 3},
     {"num_classes": 3, "regions": ["1,2", "2"], "ignore_index": 3, "class_names": ["background", "whole", "core"]}),
    ({"background": 0, "kidney": [1, 2, 3], "masses": [2, 3], "tumor": 2},
     {"regions": ["1,2,3", "2,3", "2"], "class_names": ["background", "kidney", "masses", "tumor"]}),
])  # fmt: skip
def test_labels(tmp_path: Path, labels: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    nnunet(tmp_path, cases=1, labels=labels)
    dataset = composed(tmp_path, "head.mode=independent").dataset
    assert {key: getattr(dataset, key) for key in wanted} == wanted
    assert dataset.overlapping == ("regions" in wanted)


def test_options_win_over_dataset_json(tmp_path: Path) -> None:
    nnunet(tmp_path, cases=1)
    given = ["dataset.class_names=[none,a,b]", "dataset.channel_names=[x]", "dataset.ignore_index=9"]
    dataset: Any = composed(tmp_path, *given).dataset
    assert (dataset.class_names, dataset.channel_names, dataset.ignore_index) == (["none", "a", "b"], ["x"], 9)


def test_a_patient_with_several_cases_is_one_group(tmp_path: Path) -> None:
    nnunet(tmp_path)
    _, found = opened(tmp_path, r"dataset.group_pattern='^(p\d)_'")
    assert found.group_ids == tuple(f"p{n}" for n in range(3) for _ in range(6))
    for pattern, word in (("^(q)", "finds no group in p0_0"), ("(", "regular expression")):
        with pytest.raises(UsageError, match=f"group_pattern.*{word}"):
            opened(tmp_path, f"dataset.group_pattern='{pattern}'")


def test_labels_of_test_cases_declare_a_split(tmp_path: Path) -> None:
    labels = nnunet(tmp_path)
    (tmp_path / "imagesTs").mkdir()
    image, label = scene(9, 3)
    save_nifti(tmp_path / "imagesTs" / "t_0000.nii.gz", image[..., 0])
    _, found = opened(tmp_path)
    assert found.declared_split is None
    assert "without a reference" in found.unused["imagesTs/t_0000.nii.gz"]
    (tmp_path / "labelsTs").mkdir()
    save_nifti(tmp_path / "labelsTs" / "t.nii.gz", label)
    _, found = opened(tmp_path)
    assert found.declared_split is not None
    assert [name for name, part in found.declared_split.items() if part == "test"] == [f"t_z00{k}" for k in range(3)]
    assert len(found.image_ids) == 3 * (len(labels) + 1)


def test_what_is_not_used_is_reported(tmp_path: Path) -> None:
    nnunet(tmp_path, numTraining=8)
    (tmp_path / "splits_final.json").write_text("[]")
    (tmp_path / "imagesTr" / "notes.txt").touch()
    save_nifti(tmp_path / "imagesTr" / "p0_0_0001.nii.gz", scene(0)[0][..., 0])
    _, found = opened(tmp_path)
    assert set(found.unused) == {"imagesTr/notes.txt", "imagesTr/p0_0_0001.nii.gz", "splits_final.json"}
    assert "1 channel" in found.unused["imagesTr/p0_0_0001.nii.gz"]
    assert "numTraining=8" in found.notes[0]


def test_missing_files_are_refused(tmp_path: Path) -> None:
    nnunet(tmp_path, channels=3)
    (tmp_path / "imagesTr" / "p1_0_0002.nii.gz").unlink()
    with pytest.raises(UsageError, match=r"1 images missing.*p1_0_0002"):
        opened(tmp_path)
    for channel in (0, 1):
        (tmp_path / "imagesTr" / f"p1_0_000{channel}.nii.gz").unlink()
    with pytest.raises(UsageError, match=r"3 images missing.*p1_0_0000"):
        opened(tmp_path)
    (tmp_path / "labelsTr" / "p1_0.nii.gz").unlink()
    (tmp_path / "labelsTr" / "p2_1.nii.gz").unlink()
    with pytest.raises(UsageError, match=r"1 labels missing.*p2_1"):
        opened(tmp_path)
    describe(tmp_path, file_ending=".png")
    with pytest.raises(UsageError, match=r"no labels \*.png"):
        opened(tmp_path)


def test_a_case_whose_files_do_not_match_is_refused_as_one(tmp_path: Path) -> None:
    """Not read as a single slice, or slice by slice as if the grids were one."""
    labels = nnunet(tmp_path)
    path = tmp_path / "labelsTr" / "p1_0.nii.gz"
    nibabel.save(nibabel.Nifti1Image(labels["p1_0"], np.diag([-0.5, 0.75, 5.0, 1.0])), path)
    nibabel.save(nibabel.Nifti1Image(labels["p1_1"][:, :, :2], np.eye(4)), tmp_path / "labelsTr" / "p1_1.nii.gz")
    (tmp_path / "imagesTr" / "p2_0_0000.nii.gz").write_bytes(b"")
    _, found = opened(tmp_path)
    with pytest.raises(UsageError, match=r"3 of 12 pairs .*p1_0.nii.gz: .* mm away .*p1_1.nii.gz: another size .*p2_0"):
        check_pairs(found)


def test_channels_of_files_and_of_dataset_json_must_agree(tmp_path: Path) -> None:
    nnunet(tmp_path, channels=1)
    describe(tmp_path, channel_names={"0": "T2", "1": "ADC"})
    with pytest.raises(UsageError, match=r"1 channel, dataset.json names 2"):
        opened(tmp_path)
    color = tmp_path / "color"
    labels = nnunet(color, ending=".png", channel_names={"0": "R", "1": "G", "2": "B"})
    pixels_HWC = np.random.default_rng(0).integers(0, 255, (36, 40, 3)).astype(np.uint8)
    for case in labels:
        Image.fromarray(pixels_HWC).save(color / "imagesTr" / f"{case}_0000.png")
    _, found = opened(color)
    assert np.array_equal(found.read(0).image_HWC, pixels_HWC)


@pytest.mark.parametrize("changes", [
    {"labels": None}, {"labels": []}, {"labels": {"background": 0, "a": "x"}}, {"labels": {"a": [1.5, -2]}},
    {"channel_names": None}, {"channel_names": {"1": "T2"}}, {"labels": {"background": 0, "a": []}},
    {"labels": {"background": 0, "a": 1.5}}, {"labels": {"background": 0, "a": float("inf")}},
    {"labels": {"background": 0, "a": 1, "ignore": []}}, {"labels": {"background": 0, "a": 1, "ignore": [2, 3]}},
])  # fmt: skip
def test_a_wrong_dataset_json_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    nnunet(tmp_path, cases=1, **changes)
    with pytest.raises(UsageError, match=r"dataset.json.*must"):
        composed(tmp_path)


def test_a_missing_or_broken_dataset_json_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no file .*dataset.json"):
        composed(tmp_path)
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(UsageError, match="not JSON"):
        composed(tmp_path)
    (tmp_path / "dataset.json").write_text('{"labels": {"background": 0, "liver": 1, "liver": 2}}')
    with pytest.raises(UsageError, match='"liver" more than once'):
        composed(tmp_path)
    nnunet(tmp_path, cases=1, labels={"0": "background", "1": "liver", "2": "liver"})
    with pytest.raises(UsageError, match="two values called liver"):
        composed(tmp_path)
    with hydra_session() as extra, pytest.raises(UsageError, match=r"dataset.root"):
        compose([*extra, "dataset=nnunet"])


def test_masks_of_regions_are_sets_of_classes(tmp_path: Path) -> None:
    labels = nnunet(tmp_path, labels={"background": 0, "gland": [1, 2], "TZ": 2})
    _, found = opened(tmp_path, "head.mode=independent")
    assert found.overlapping
    for index, image_id in enumerate(found.image_ids):
        plane = labels[image_id[:4]][:, :, int(image_id[-3:])].T
        assert np.array_equal(found.read(index).mask_HW, (plane > 0) | (plane == 2) << 1)


def test_more_than_seven_regions_are_refused(tmp_path: Path) -> None:
    labels = {"background": 0, "all": [1, 2, 3, 4, 5, 6, 7, 8], **{f"c{c}": c for c in range(1, 8)}}
    nnunet(tmp_path, cases=1, labels=labels)
    with pytest.raises(UsageError, match=r"regions.*7"):
        opened(tmp_path)


def test_other_files_and_folders_are_listed(tmp_path: Path) -> None:
    nnunet(tmp_path)
    (tmp_path / "imagesVal").mkdir()
    (tmp_path / "case.nii.gz").touch()
    _, found = opened(tmp_path)
    assert set(found.unused) == {"imagesVal", "case.nii.gz"}


def test_letters_may_be_encoded_in_two_ways(tmp_path: Path) -> None:
    first = next(iter(nnunet(tmp_path)))
    composed, decomposed = "l\u00e9sion", "le\u0301sion"
    (tmp_path / "labelsTr" / f"{first}.nii.gz").rename(tmp_path / "labelsTr" / f"{composed}.nii.gz")
    for path in (tmp_path / "imagesTr").glob(f"{first}*"):
        path.rename(path.with_name(path.name.replace(first, decomposed)))
    _, found = opened(tmp_path)
    assert composed in found.case_ids
    (tmp_path / "labelsTr" / f"{decomposed}.nii.gz").touch()
    with pytest.raises(UsageError, match="encoded"):
        opened(tmp_path)


def test_cases_with_missing_files_are_named_and_the_others_usable(tmp_path: Path) -> None:
    first, second, *others = nnunet(tmp_path)
    (tmp_path / "labelsTr" / f"{first}.nii.gz").unlink()
    for path in (tmp_path / "imagesTr").glob(f"{second}_*"):
        path.unlink()
    with pytest.raises(PairsError) as refused:
        opened(tmp_path)
    assert set(refused.value.problems) == {first, second}
    assert refused.value.usable is not None
    assert set(refused.value.usable.case_ids) == {*others}
