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
