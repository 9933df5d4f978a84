"""Tiny copies of the layouts of medical data sets, and the files they hold."""

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
from PIL import Image
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

RNG = np.random.default_rng(0)


def voxels(*shape: int, dtype: Any = np.int16) -> np.ndarray:
    return RNG.integers(0, 200, shape).astype(dtype)


def save_nifti(path: Path, array: np.ndarray) -> Path:
    image = nibabel.Nifti1Image(array, np.diag([0.5, 0.75, 5.0, 1.0]))
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)
    return path


def save_dicom(path: Path, pixels: np.ndarray, **attributes: Any) -> Path:
    """pixels: (H, W), (frames, H, W) or (H, W, 3)."""
    made = pydicom.Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.SOPClassUID, made.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", generate_uid()
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID
    made.SeriesInstanceUID = "1.2.3"
    color = pixels.ndim == 3 and pixels.shape[-1] == 3
    if pixels.ndim == 3 and not color:
        made.NumberOfFrames = len(pixels)
    made.Rows, made.Columns = pixels.shape[:2] if color else pixels.shape[-2:]
    made.SamplesPerPixel, made.PhotometricInterpretation = (3, "RGB") if color else (1, "MONOCHROME2")
    if color:
        made.PlanarConfiguration = 0
    made.BitsAllocated = made.BitsStored = 8 * pixels.itemsize
    made.HighBit = made.BitsStored - 1
    made.PixelRepresentation = int(pixels.dtype.kind == "i")
    made.PixelData = pixels.tobytes()
    made.PixelSpacing = [0.75, 0.5]  # between rows, between columns
    made.SliceThickness = 5.0
    for name, value in attributes.items():
        setattr(made, name, value)
    made.save_as(path, enforce_file_format=True)
    return path


def placed(k: float, **more: Any) -> dict[str, Any]:
    return {"ImagePositionPatient": [0.0, 0.0, k], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0], **more}


def save_series(folder: Path, array_DHW: np.ndarray, **attributes: Any) -> Path:
    """The slices in files whose names are in another order than their positions."""
    folder.mkdir()
    for k, plane_HW in enumerate(array_DHW):
        save_dicom(folder / f"IM{len(array_DHW) - k:03d}", plane_HW, **placed(4.0 * k), **attributes)
    return folder


def scene(number: int, classes: int = 2, channels: int = 1, slices: int = 3, side: int = 40) -> tuple[np.ndarray, ...]:
    """An image (W, H, D, channels) int16 and its labels (W, H, D) uint8: a disc of each class, brighter than the rest.

    The middle slices hold every class, the last one holds none.
    """
    rng = np.random.default_rng(number)
    x, y = np.mgrid[:side, : side - 4]
    labels = np.zeros((side, side - 4, slices), np.uint8)
    for k in range(slices - 1):
        for c in range(1, classes):
            center = rng.uniform(8, side - 12, 2)
            labels[(x - center[0]) ** 2 + (y - center[1]) ** 2 < 25, k] = c
    image = rng.normal(100, 10, (*labels.shape, channels)) + 80 * labels[..., np.newaxis]
    return image.astype(np.int16), labels


def save_png(path: Path, array: np.ndarray) -> Path:
    """array: (W, H) as in a volume."""
    Image.fromarray(array.T).save(path)
    return path


def nnunet(
    root: Path, cases: int = 6, *, channels: int = 1, ending: str = ".nii.gz", **described: Any
) -> dict[str, Any]:
    """nnU-Net's raw layout; returns the labels of each case. described: changes of dataset.json."""
    names = {str(c): name for c, name in zip(range(channels), ("T2", "ADC", "FLAIR"), strict=False)}
    whole = {"channel_names": names, "labels": {"background": 0, "PZ": 1, "TZ": 2}, "numTraining": cases}
    whole |= {"file_ending": ending, **described}
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "dataset.json").write_text(json.dumps({k: v for k, v in whole.items() if v is not None}))
    written = {}
    for n in range(cases):
        image, labels = scene(n, 3, channels, slices=3 if ending == ".nii.gz" else 2)
        for c in range(channels):
            path = root / "imagesTr" / f"p{n // 2}_{n % 2}_{c:04d}{ending}"
            if ending == ".png":
                save_png(path, image[:, :, 0, c].clip(0, 255).astype(np.uint8))
            else:
                save_nifti(path, image[..., c])
        path = root / "labelsTr" / f"p{n // 2}_{n % 2}{ending}"
        if ending == ".png":
            save_png(path, labels[:, :, 0])
        else:
            save_nifti(path, labels)
        written[f"p{n // 2}_{n % 2}"] = labels
    return written


def acdc(root: Path, patients: int = 6) -> dict[str, np.ndarray]:
    """ACDC's layout, the last third of the patients in testing/; returns the labels of each case."""
    written = {}
    for n in range(patients):
        patient, part = f"patient{n + 1:03d}", "testing" if n >= patients * 2 // 3 else "training"
        folder = root / part / patient
        folder.mkdir(parents=True)
        frames = (1, 7 + n)
        (folder / "Info.cfg").write_text(f"ED: {frames[0]}\nES: {frames[1]}\nGroup: NOR\nNbFrame: 30\n")
        save_nifti(folder / f"{patient}_4d.nii.gz", np.zeros((8, 8, 2, 30), np.int16))
        for frame in frames:
            image, labels = scene(100 * n + frame, 4)
            save_nifti(folder / f"{patient}_frame{frame:02d}.nii.gz", image[..., 0])
            save_nifti(folder / f"{patient}_frame{frame:02d}_gt.nii.gz", labels)
            written[f"{patient}_frame{frame:02d}"] = labels
    return written


MAPS = ("CT", "CT_CBF", "CT_CBV", "CT_MTT", "CT_Tmax")


def isles2018(root: Path, cases: int = 10) -> dict[str, np.ndarray]:
    """ISLES 2018's layout, with a test case that has no reference; returns the labels of each case."""
    written = {}
    for n in range(1, cases + 2):
        part, number = ("TRAINING", n) if n <= cases else ("TESTING", 1)
        image, labels = scene(n, 2, len(MAPS), slices=2)
        made = {name: image[..., c] for c, name in enumerate(MAPS)}
        made["CT_MTT"] = made["CT_MTT"] / np.float32(4)  # the maps are of several types
        made["CT_4DPWI"] = np.zeros((*labels.shape, 5), np.int16)
        if part == "TRAINING":
            made["OT"] = written[f"case_{n}"] = labels
        for k, (name, array) in enumerate(made.items()):
            stem = f"SMIR.Brain.XX.O.{name}.{300000 + 100 * n + k}"
            folder = root / part / f"case_{number}" / stem
            folder.mkdir(parents=True)
            save_nifti(folder / f"{stem}.nii", array)
    return written


def msd_prostate(root: Path, cases: int = 6) -> dict[str, np.ndarray]:
    """The Decathlon's layout of a task with two channels; returns the labels of each case."""
    described: dict[str, Any] = {"name": "PROSTATE", "modality": {"0": "T2", "1": "ADC"}, "licence": "CC-BY-SA 4.0"}
    described |= {"labels": {"0": "background", "1": "PZ", "2": "TZ"}, "tensorImageSize": "4D", "numTraining": cases}
    written = {}
    for folder in ("imagesTr", "labelsTr", "imagesTs"):
        (root / folder).mkdir(parents=True)
    for n in range(cases):
        image, written[f"prostate_{n:02d}"] = scene(n, 3, 2)
        save_nifti(root / "imagesTr" / f"prostate_{n:02d}.nii.gz", image)
        save_nifti(root / "labelsTr" / f"prostate_{n:02d}.nii.gz", written[f"prostate_{n:02d}"])
    save_nifti(root / "imagesTs" / f"prostate_{cases}.nii.gz", image)
    pairs = [{"image": f"./imagesTr/{case}.nii.gz", "label": f"./labelsTr/{case}.nii.gz"} for case in written]
    described |= {"training": pairs, "numTest": 1, "test": [f"./imagesTs/prostate_{cases}.nii.gz"]}
    (root / "dataset.json").write_text(json.dumps(described))
    return written
