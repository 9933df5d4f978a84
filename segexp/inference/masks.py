"""Predicted masks as files: in the coding of the training masks, and of the kind of the image.

A PNG for an image and for a DICOM slice; NIfTI for NIfTI, with its affine and header; .npy for a .npy stack; TIFF pages
for other stacks. Heads that decide each class on its own (independent, overlapping classes) get a file per class,
because a pixel may be of several: NAME_class1.png ..., with 0 and 255.
"""

import gzip
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image
from scipy.ndimage import maximum_filter, minimum_filter

from segexp.config import Config
from segexp.data.codings import FOREGROUND, parse_color
from segexp.data.image_set import ImageError
from segexp.data.normalise import shown
from segexp.data.rasters import ORIENTATION
from segexp.evaluation.pictures import grey_or_colour, overlaid
from segexp.inference.images import class_files
from segexp.records.runs import Run

OVERLAY_PIXELS = 2048
"""Longest side of an overlay; larger images are thinned out to it."""


def code_of(run: Run, config: Config) -> np.ndarray:
    """The value that stands for class 0, 1, ... in the training masks: (C,) integers, or (C, 3) colours.

    Masks of two classes hold 0 and the foreground value that most training masks have (1, 255 or 65535), 255 where a
    threshold cut them or the data are no files. Without a coding, and after values that no file holds, class numbers.
    """
    data: Any = config.dataset
    coding, classes = getattr(data, "mask_coding", "binary" if data.num_classes == 2 else "index"), data.num_classes
    if getattr(data, "regions", None) and classes == 2:
        codes = [0, int(data.regions[0].split(",")[0])]
    elif class_files(config) or coding == "binary":
        shares: Mapping[str, float] = (run.record.get("data") or {}).get("mask_values") or {}
        usual = [value for value in FOREGROUND if str(value) in shares]
        cut = class_files(config) or getattr(data, "mask_threshold", None) is not None or not usual
        codes = [0, 255 if cut else max(usual, key=lambda value: shares[str(value)])]
    elif coding == "colors":
        colors = [parse_color(color) for color in data.mask_colors]
        return np.array([[c >> 16, c >> 8 & 255, c & 255] for c in colors], np.uint8)
    else:
        codes = list(data.mask_values) if coding == "values" else list(range(classes))
    return np.array(codes, np.int16 if min(codes) < 0 else np.min_scalar_type(max(codes)))


def mask_file(mask_DHW: np.ndarray, code: np.ndarray, path: Path, stack: bool, orientation: int) -> tuple[str, bytes]:
    """Ending and content of the mask of the image at ``path``, of indices into ``code``; NIfTI holds class numbers in
    place of colours.

    stack: the image has slices. orientation: the tag of an image whose pixels are read as they are stored; the mask
    gets it too. Raises ImageError where the kind of file cannot hold the values.
    """
    name = path.name.lower()
    if name.endswith((".nii", ".nii.gz")):
        values = np.arange(len(code), dtype=np.uint8) if code.ndim > 1 else code
        return ".nii.gz" if name.endswith(".gz") else ".nii", _nifti(values[mask_DHW], path, name.endswith(".gz"))
    coded, buffer = code[mask_DHW], io.BytesIO()
    if stack and name.endswith(".npy"):
        np.save(buffer, coded)
        return ".npy", buffer.getvalue()
    if stack:
        tifffile.imwrite(buffer, coded, photometric="rgb" if code.ndim > 1 else "minisblack", compression="zlib")
        return ".tif", buffer.getvalue()
    if coded.dtype not in (np.uint8, np.uint16):
        raise ImageError(f"{path}: mask values {code.min()} to {code.max()} do not fit a PNG: predict NIfTI or .npy")
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.fromarray(coded[0]).save(buffer, format="PNG", exif=exif if orientation > 1 else None)
    return ".png", buffer.getvalue()


def _nifti(mask_DHW: np.ndarray, path: Path, zipped: bool) -> bytes:
    """Mask of the volume at ``path`` with its affine, voxel sizes and codes of space and time."""
    import nibabel

    image: Any = nibabel.load(path)
    shape = image.shape[:3] if len(image.shape) > 2 else image.shape
    header = image.header.copy()
    header.set_data_dtype(mask_DHW.dtype)
    header.set_slope_inter(1, 0)
    header["cal_min"] = header["cal_max"] = 0  # the window of the image's values
    written = type(image)(mask_DHW.T.reshape(shape), image.affine, header).to_bytes()
    return gzip.compress(written, mtime=0) if zipped else written


def overlay_png(image_HWC: np.ndarray, masks: Sequence[np.ndarray], colors: Sequence[str]) -> bytes:
    """The image with each class tinted and outlined, in colours that any colour vision tells apart.

    masks: class indices (H, W), drawn one over the other. colors: see `segexp.evaluation.pictures.class_look`.
    """
    step = -(-max(image_HWC.shape[:2]) // OVERLAY_PIXELS)
    picture = grey_or_colour(shown(image_HWC[::step, ::step]))
    for mask_HW in (mask[::step, ::step] for mask in masks):
        edge_HW = maximum_filter(mask_HW, 3) != minimum_filter(mask_HW, 3)
        picture = overlaid(overlaid(picture, mask_HW, colors, 0.25), mask_HW * edge_HW, colors, 1.0)
    buffer = io.BytesIO()
    Image.fromarray(np.round(picture * 255).astype(np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


def probabilities_npz(planes_KDHW: np.ndarray, names: Sequence[str], stack: bool) -> bytes:
    """A compressed .npz: ``probabilities`` float32 (K, H, W), of a stack (K, D, H, W), and the K ``classes``."""
    buffer = io.BytesIO()
    planes = planes_KDHW if stack else planes_KDHW[:, 0]
    np.savez_compressed(buffer, probabilities=planes, classes=np.array(names))
    return buffer.getvalue()
