"""Predictions as files: masks in the coding of the training masks, probabilities, overlays."""

import gzip
import io
from collections.abc import Sequence
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
from segexp.data.volumes import affine_of
from segexp.evaluation.pictures import grey_or_colour, overlaid
from segexp.inference.images import class_files
from segexp.records.runs import Run

ENDINGS = (".png", ".tif", ".npy", ".nii", ".nii.gz")
"""Of masks."""

OVERLAY_PIXELS = 2048
"""Longest side of an overlay; larger images are thinned out to it."""


def code_of(run: Run, config: Config) -> np.ndarray:
    """What stands for class 0, 1, ... in the training masks: (C,) integers, or (C, 3) colours; 0 and 255 in the mask of
    one class of several. Of foreground values (1, 255, 65535) the usual one; 255 where a threshold cut the masks."""
    data: Any = config.dataset
    coding = getattr(data, "mask_coding", "binary" if data.num_classes == 2 else "index")
    codes = list(range(data.num_classes))
    if class_files(config):
        codes = [0, 255]
    elif coding == "colors":
        colors = [parse_color(color) for color in data.mask_colors]
        return np.array([[c >> 16, c >> 8 & 255, c & 255] for c in colors], np.uint8)
    elif coding == "values":
        codes = list(data.mask_values)
    elif getattr(data, "regions", None):
        codes = [0, int(data.regions[0].split(",")[0])]
    elif coding == "binary":
        shares = (run.record.get("data") or {}).get("mask_values") or {}
        usual = [value for value in FOREGROUND if str(value) in shares and data.mask_threshold is None]
        codes = [0, max(usual, key=lambda value: shares[str(value)], default=255)]
    return np.array(codes, np.int16 if min(codes) < 0 else np.min_scalar_type(max(codes)))


def mask_file(mask_DHW: np.ndarray, code: np.ndarray, path: Path, stack: bool, orientation: int) -> tuple[str, bytes]:
    """Ending and content of the mask of the image at ``path``, of indices into ``code``; NIfTI has no colours.

    stack: it has slices. orientation: the tag of an image that is read as its pixels lie; the PNG gets it too. Raises
    ImageError where a PNG cannot hold the values.
    """
    name, buffer = path.name.lower(), io.BytesIO()
    if name.endswith((".nii", ".nii.gz")):
        nifti = _nifti(code[mask_DHW] if code.ndim == 1 else mask_DHW, path)
        return (".nii.gz", gzip.compress(nifti, mtime=0)) if name.endswith(".gz") else (".nii", nifti)
    coded = code[mask_DHW]
    if stack and name.endswith(".npy"):
        np.save(buffer, coded)
        return ".npy", buffer.getvalue()
    if stack:
        tifffile.imwrite(buffer, coded, photometric="rgb" if code.ndim > 1 else "minisblack", compression="zlib")
        return ".tif", buffer.getvalue()
    if coded.dtype not in (np.uint8, np.uint16):
        raise ImageError(f"{path}: mask values {code.min()} to {code.max()} do not fit a PNG: predict NIfTI or stacks")
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.fromarray(coded[0]).save(buffer, format="PNG", exif=exif if orientation > 1 else None)
    return ".png", buffer.getvalue()


def _nifti(mask_DHW: np.ndarray, path: Path) -> bytes:
    """The mask of the volume at ``path``, with its affine, voxel sizes and units."""
    import nibabel

    image: Any = nibabel.load(path)
    header = image.header.copy()
    header.set_data_dtype(mask_DHW.dtype)
    header.set_slope_inter(1, 0)
    header["cal_min"] = header["cal_max"] = 0  # the window of the image's values
    written: bytes = type(image)(mask_DHW.T.reshape(image.shape[:3]), affine_of(image), header).to_bytes()
    return written


def overlay_png(image_HWC: np.ndarray, masks: Sequence[np.ndarray], colors: Sequence[str]) -> bytes:
    """The image with classes tinted and outlined. masks: class indices (H, W), drawn one over the other. colors: see
    `segexp.evaluation.pictures.class_look`."""
    step, buffer = -(-max(image_HWC.shape[:2]) // OVERLAY_PIXELS), io.BytesIO()
    picture = grey_or_colour(shown(image_HWC[::step, ::step]))
    for mask_HW in (mask[::step, ::step] for mask in masks):
        edge_HW = maximum_filter(mask_HW, 3) != minimum_filter(mask_HW, 3)
        picture = overlaid(overlaid(picture, mask_HW, colors, 0.25), mask_HW * edge_HW, colors, 1.0)
    Image.fromarray(np.round(picture * 255).astype(np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


def probabilities_npz(values: np.ndarray, names: Sequence[str]) -> bytes:
    """A compressed .npz: ``probabilities`` float32 (K, H, W), of a stack (K, D, H, W), and the K ``classes``."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, probabilities=values, classes=np.array(names))
    return buffer.getvalue()
