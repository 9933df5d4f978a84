"""NIfTI files and DICOM series: what is written is read, slice by slice, or refused with the reason."""

import gzip
import math
import struct
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import nibabel
import numpy as np
import pydicom
import pytest
from medical import placed, save_dicom, save_nifti, save_series, voxels

from segexp.data import volumes
from segexp.data.image_set import ImageError
from segexp.data.volumes import check_grids, header_of, read_slice
from segexp.errors import UsageError
from segexp.inference.masks import mask_file


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "float32", "int32", "float64", ">i2"])
def test_nifti_is_read_by_the_third_axis_with_the_second_as_rows(tmp_path: Path, name: str, dtype: str) -> None:
    array = voxels(6, 5, 4, dtype=dtype)
    path = save_nifti(tmp_path / name, array)
    header = header_of(path)
    assert (header.width, header.height, header.slices, header.channels) == (6, 5, 4, 1)
    assert header.spacing == (5.0, 0.75, 0.5)
    for k in range(4):
        pixels, source = read_slice(path, k)
        assert np.array_equal(pixels, array[:, :, k].T)
        wanted = {"int32": "float32", "float64": "float32", ">i2": "int16"}.get(dtype, dtype)
        assert pixels.dtype == wanted
        assert "RAS" in source.kind
    with pytest.raises(ImageError, match="no slice 4"):
        read_slice(path, 4)


def test_the_fourth_axis_of_nifti_holds_channels(tmp_path: Path) -> None:
    array = voxels(6, 5, 4, 2)
    path = save_nifti(tmp_path / "a.nii.gz", array)
    assert header_of(path).channels == 2
    assert np.array_equal(read_slice(path, 3)[0], array[:, :, 3].transpose(1, 0, 2))
    assert header_of(save_nifti(tmp_path / "one.nii", array[..., :1])).channels == 1
    flat = save_nifti(tmp_path / "flat.nii", array[:, :, 0, 0])
    assert (header_of(flat).slices, np.array_equal(read_slice(flat)[0], array[:, :, 0, 0].T)) == (1, True)


def test_nifti_is_rescaled_as_its_header_declares(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(voxels(3, 3, 2), np.eye(4))
    image.header.set_slope_inter(2, -1000)
    nibabel.save(image, path := tmp_path / "a.nii.gz")
    pixels, source = read_slice(path, 1)
    assert pixels.dtype == np.float32
    assert np.array_equal(pixels, nibabel.load(path).get_fdata()[:, :, 1].T)  # type: ignore[attr-defined]
    assert "2" in source.kind


def test_spacing_is_in_mm(tmp_path: Path) -> None:
    for unit, factor in (("meter", 1000.0), ("micron", 0.001)):
        image = nibabel.Nifti1Image(voxels(3, 3, 2), np.diag([1.0, 2.0, 3.0, 1.0]))
        image.header.set_xyzt_units(unit)
        nibabel.save(image, path := tmp_path / f"{unit}.nii")
        assert header_of(path).spacing == pytest.approx((3 * factor, 2 * factor, factor))


def test_a_compressed_file_has_the_name_of_one(tmp_path: Path) -> None:
    whole = save_nifti(tmp_path / "a.nii.gz", voxels(3, 3, 2)).read_bytes()
    (tmp_path / "zipped.nii").write_bytes(whole)
    (tmp_path / "plain.nii.gz").write_bytes(gzip.decompress(whole))
    for name, words in (("zipped.nii", r"in \.nii\.gz"), ("plain.nii.gz", r"in \.nii$")):
        with pytest.raises(ImageError, match=f"{name}: .*compressed, whatever its name; .*{words}"):
            header_of(tmp_path / name)


def test_voxel_sizes_that_differ_in_one_header_are_unknown(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(voxels(3, 3, 2), np.diag([0.5, 0.75, 5.0, 1.0]))
    image.set_qform(np.diag([1.0, 1.0, 3.0, 1.0]), 1)  # sets pixdim, too
    nibabel.save(image, path := tmp_path / "a.nii")
    assert header_of(path).spacing is None
    assert header_of(path).kind.endswith("voxel sizes of sform and pixdim differ")


def test_deflated_dicom_is_read(tmp_path: Path) -> None:
    array = voxels(5, 6)
    read = pydicom.dcmread(path := save_dicom(tmp_path / "a.dcm", array))
    read.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    read.save_as(path)
    assert np.array_equal(read_slice(path)[0], array)


def test_what_cannot_be_read_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty.nii.gz").touch()
    (tmp_path / "text.nii").write_text("no volume " * 100)
    (tmp_path / "text.nii.gz").write_text("no volume " * 100)
    whole = save_nifti(tmp_path / "whole.nii.gz", voxels(20, 20, 9)).read_bytes()
    (tmp_path / "cut.nii.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "cut.nii").write_bytes(gzip.decompress(whole)[:1000])
    save_nifti(tmp_path / "complex.nii", voxels(3, 3, 3, dtype=np.complex64))
    save_nifti(tmp_path / "times.nii", voxels(3, 3, 3, 2, 2))
    save_nifti(tmp_path / "large.nii", np.full((2, 2, 2), 2**24 + 1, np.int32))
    bomb = bytearray(gzip.decompress(whole))
    bomb[40:48] = np.array([3, 30000, 30000, 30000], np.int16).tobytes()  # the header's dim
    (tmp_path / "bomb.nii.gz").write_bytes(gzip.compress(bomb))
    (tmp_path / "none").mkdir()
    (tmp_path / "text.dcm").write_text("no volume")
    names = [p.name for p in tmp_path.iterdir() if p.name != "whole.nii.gz"]
    assert len(names) == 11
    with pytest.raises(ImageError, match="GiB"):
        header_of(tmp_path / "bomb.nii.gz")
    for name in [*names, "gone.nii", "gone.dcm"]:
        with pytest.raises(ImageError, match=f"^[^\n]*{name}: [^\n]+$"):
            read_slice(tmp_path / name)


def test_what_is_no_nifti_is_refused_with_the_cure_and_nothing_is_printed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.nii").write_text("no volume " * 100)
    odd = bytearray(save_nifti(tmp_path / "odd.nii", voxels(4, 4, 2)).read_bytes())
    odd[76:80] = np.float32(5).tobytes()  # pixdim[0], which is 1 or -1
    (tmp_path / "odd.nii").write_bytes(odd)
    with pytest.raises(ImageError, match="write it again, or remove it"):
        header_of(tmp_path / "text.nii")
    assert header_of(tmp_path / "odd.nii").slices == 2
    assert capfd.readouterr().err == ""


def test_a_missing_package_is_named_with_the_extra(tmp_path: Path) -> None:
    for package, path in (("nibabel", tmp_path / "a.nii"), ("pydicom", tmp_path / "a.dcm")):
        path.touch()
        with mock.patch.dict(sys.modules, {package: None}), pytest.raises(UsageError, match=r"segexp\[(nifti|dicom)\]"):
            header_of(path)


def test_a_volume_is_decoded_once_for_all_threads_and_again_when_it_changes(tmp_path: Path) -> None:
    array = voxels(30, 30, 8)
    path = save_nifti(tmp_path / "a.nii.gz", array)
    decoded: list[Path] = []
    load = nibabel.load

    def counted(path: Path, **options: Any) -> Any:
        decoded.extend([path] if options else [])
        return load(path, **options)

    with mock.patch.object(nibabel, "load", counted), ThreadPoolExecutor(8) as pool:
        slices = list(pool.map(lambda k: read_slice(path, k % 8)[0], range(64)))
        assert len(decoded) == 1
        assert all(np.array_equal(slices[k], array[:, :, k % 8].T) for k in range(64))
        save_nifti(path, array + 1)
        assert np.array_equal(read_slice(path, 2)[0], array[:, :, 2].T + 1)
        assert len(decoded) == 2


def test_decoded_volumes_are_bounded(tmp_path: Path) -> None:
    paths = [save_nifti(tmp_path / f"{n}.nii", voxels(10, 10, 10)) for n in range(5)]
    with mock.patch.object(volumes, "KEPT", 4500):
        for path in paths:
            read_slice(path)
        assert [key[0] for key in volumes._kept] == paths[-2:]


def test_a_series_is_ordered_by_position(tmp_path: Path) -> None:
    array = voxels(4, 5, 6)
    folder = save_series(tmp_path / "ct", array)
    (folder / ".hidden").touch()
    (folder / "notes.txt").write_text("no slice")
    header = header_of(folder)
    assert (header.slices, header.height, header.width, header.spacing) == (4, 5, 6, (4.0, 0.75, 0.5))
    assert "1 other file" in header.kind
    for k in range(4):
        assert np.array_equal(read_slice(folder, k)[0], array[k])
    assert read_slice(folder)[0].dtype == np.int16


def test_dicom_is_rescaled(tmp_path: Path) -> None:
    array = voxels(5, 6, dtype=np.uint16)
    hounsfield = save_dicom(
        tmp_path / "hu.dcm", array, BitsStored=12, HighBit=11, RescaleSlope=1, RescaleIntercept=-1024
    )
    pixels, _ = read_slice(hounsfield)
    assert (pixels.dtype, np.array_equal(pixels, array.astype(int) - 1024)) == (np.int16, True)
    pet = save_dicom(tmp_path / "pet.dcm", array, RescaleSlope=0.5, RescaleIntercept=0)
    pixels, _ = read_slice(pet)
    assert (pixels.dtype, np.array_equal(pixels, array / 2)) == (np.float32, True)


def test_frames_and_colours_of_one_file(tmp_path: Path) -> None:
    array = voxels(3, 5, 6, dtype=np.uint8)
    path = save_dicom(tmp_path / "cine.dcm", array)
    assert header_of(path).slices == 3
    assert np.array_equal(read_slice(path, 2)[0], array[2])
    color = voxels(5, 6, 3, dtype=np.uint8)
    assert np.array_equal(read_slice(save_dicom(tmp_path / "color.dcm", color))[0], color)


def test_dicom_with_another_reading_is_refused(tmp_path: Path) -> None:
    array = voxels(5, 6)
    cases: dict[str, dict[str, Any]] = {
        "MONOCHROME1": {"PhotometricInterpretation": "MONOCHROME1"},
        "PALETTE": {"PhotometricInterpretation": "PALETTE COLOR"},
        "ModalityLUT": {"ModalityLUTSequence": [pydicom.Dataset()]},
        "segmentation object": {"Modality": "SEG"},
        "more than the file has bytes": {"NumberOfFrames": 2**31 - 1},
    }
    for name, attributes in cases.items():
        with pytest.raises(ImageError, match=name):
            header_of(save_dicom(tmp_path / "a.dcm", array, **attributes))


@pytest.mark.parametrize(("one", "other", "word"), [
    ({"SeriesInstanceUID": "1.2.3"}, {"SeriesInstanceUID": "1.2.4"}, "SeriesInstanceUID"),
    (placed(0), placed(0), "one position"),
    ({}, {}, "order of the slices"),
    (placed(0), {**placed(4), "ImageOrientationPatient": [0, 1, 0, 0, 0, -1]}, "orientation"),
    (placed(0), placed(4, PixelSpacing=[1, 1]), "pixel spacing"),
])  # fmt: skip
def test_a_folder_that_is_no_single_volume_is_refused(tmp_path: Path, one: dict, other: dict, word: str) -> None:
    for name, attributes in (("a.dcm", one), ("b.dcm", other)):
        save_dicom(tmp_path / name, voxels(5, 6), **attributes)
    with pytest.raises(ImageError, match=word):
        header_of(tmp_path)


def test_uneven_distances_have_no_spacing(tmp_path: Path) -> None:
    for name, at in (("a.dcm", 0), ("b.dcm", 4), ("c.dcm", 12)):
        save_dicom(tmp_path / name, voxels(5, 6), **placed(at))
    assert header_of(tmp_path).spacing is None
    assert "uneven" in header_of(tmp_path).kind


def test_image_and_mask_must_have_one_grid(tmp_path: Path) -> None:
    array = voxels(6, 5, 4)
    image = save_nifti(tmp_path / "image.nii", array)
    affine = np.diag([0.5, 0.75, 5.0, 1.0])
    moved, rounded, flipped = affine.copy(), affine.copy(), np.diag([-0.5, 0.75, 5.0, 1.0])
    moved[2, 3], rounded[0, 3] = 5.0, 0.01
    flipped[0, 3] = 2.5
    for name, other in (("moved", moved), ("rounded", rounded), ("flipped", flipped), ("thick", affine * 1.5)):
        nibabel.save(nibabel.Nifti1Image(array, other), tmp_path / f"{name}.nii")
    save_nifti(tmp_path / "small.nii", array[..., :3])
    check_grids([image, tmp_path / "rounded.nii"])
    for name, word in (("moved", "away"), ("flipped", "LAS and RAS"), ("thick", "away"), ("small", "6x5x3")):
        with pytest.raises(ImageError, match=word):
            check_grids([image, tmp_path / f"{name}.nii"])


def test_dicom_and_nifti_are_compared_in_one_frame(tmp_path: Path) -> None:
    array = voxels(4, 5, 6)
    folder = save_series(tmp_path / "ct", array)
    mask = nibabel.Nifti1Image(array.T, np.diag([-0.5, -0.75, 4.0, 1.0]))  # the patient's left and back in DICOM
    nibabel.save(mask, tmp_path / "mask.nii")
    check_grids([folder, tmp_path / "mask.nii"])
    nibabel.save(nibabel.Nifti1Image(array.T, np.diag([0.5, 0.75, 4.0, 1.0])), tmp_path / "ras.nii")
    with pytest.raises(ImageError, match="RAS and LPS"):
        check_grids([folder, tmp_path / "ras.nii"])


@pytest.mark.parametrize("side", [0.0, math.nan, math.inf])
def test_an_affine_that_places_no_voxel_is_none(tmp_path: Path, side: float) -> None:
    """It must not make two grids look equal, nor keep a mask from being written with the header as it is."""
    image, mask = (save_nifti(tmp_path / f"{name}.nii", voxels(6, 5, 4)) for name in ("image", "mask"))
    data = bytearray(image.read_bytes())
    data[252:256] = struct.pack("<2h", 0, 1)  # no qform, but an sform
    data[280:296] = struct.pack("<4f", side, 0, 0, 0)
    image.write_bytes(data)
    assert "no affine" in header_of(image).kind
    check_grids([image, mask])
    (tmp_path / "small.nii").write_bytes(save_nifti(tmp_path / "cut.nii", voxels(6, 5, 3)).read_bytes())
    with pytest.raises(ImageError, match="another size"):
        check_grids([image, tmp_path / "small.nii"])
    ending, written = mask_file(np.zeros((4, 5, 6), np.uint8), np.arange(2, dtype=np.uint8), image, True, 1)
    assert ending == ".nii"
    assert written[280:328] == data[280:328]
