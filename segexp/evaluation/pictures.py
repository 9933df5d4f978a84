"""Pictures of a finished run: samples.png, and probability maps of the same test images for every arm."""

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from segexp.activations.head import Prediction
from segexp.records import write_atomic
from segexp.records.formatting import BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION, YELLOW, image_bytes, new_figure

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes

N_MAPS = 8
"""Test images whose probability maps are kept."""

CLASS_COLOURS = (ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILION, PURPLE)
"""Of the foreground classes: those that stand out on a dark image first."""


def fixed_choice(image_ids: Sequence[str], indices: Sequence[int], count: int = N_MAPS) -> list[int]:
    """The images whose names hash lowest: the same for every arm and seed, and no choice of ours."""
    return sorted(indices, key=lambda i: hashlib.sha256(image_ids[i].encode()).digest())[:count]


def worst_median_best(indices_N: Sequence[int], scores_N: "np.ndarray") -> list[tuple[str, int, float]]:
    """(title, image, score) of the worst, the median and the best image among those with a score."""
    import numpy as np

    order = np.argsort(scores_N, kind="stable")
    order = order[~np.isnan(scores_N[order])]
    if not len(order):
        return []
    picks = {"worst": order[0], "median": order[(len(order) - 1) // 2], "best": order[-1]}
    return [(title, indices_N[n], float(scores_N[n])) for title, n in picks.items()]


def probability_map(prediction: Prediction, position: int) -> "np.ndarray":
    """(F, H, W) in [0, 1]: probability of each foreground class; raw values are clipped."""
    values = prediction.values_NKHW[position]
    if prediction.mode == "softmax":
        values = values[1:]
    return values.clamp(0, 1).float().cpu().numpy()


def save_maps(folder: Path, image_id: str, maps_FHW: "np.ndarray") -> None:
    """8-bit PNG per foreground class: <image>.png, or <image>_class<c>.png where there are several."""
    import numpy as np

    for f, plane in enumerate(maps_FHW):
        name = f"{image_id}.png" if len(maps_FHW) == 1 else f"{image_id}_class{f + 1}.png"
        _save_png(folder / name, np.round(plane * 255).astype(np.uint8))


def save_example(folder: Path, image_id: str, image_HWC: "np.ndarray", truth_HW: "np.ndarray") -> None:
    """What the maps of an image are looked at beside: <image>.png, 8-bit RGB stretched to its range, and
    <image>_reference.png, 8-bit class indices (255 ignored). image_HWC in [0, 1]."""
    import numpy as np

    _save_png(folder / f"{image_id}.png", np.round(_grey_or_colour(image_HWC) * 255).astype(np.uint8))
    _save_png(folder / f"{image_id}_reference.png", truth_HW.astype(np.uint8))


def _save_png(path: Path, plane: "np.ndarray") -> None:
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(plane).save(buffer, format="PNG")
    write_atomic(path, buffer.getvalue())


@dataclass(frozen=True)
class Example:
    """One row of samples.png. image_HWC in [0, 1]; truth_HW and predicted_HW class indices (255 ignored)."""

    title: str
    image_HWC: "np.ndarray"
    truth_HW: "np.ndarray"
    predicted_HW: "np.ndarray"
    maps_FHW: "np.ndarray"


def draw_samples(path: Path, examples: Sequence[Example], heading: str) -> None:
    """samples.png: a row per example (worst, median, best) with image, reference, prediction and probability."""
    from matplotlib.patches import Patch

    n_classes = max(len(e.maps_FHW) for e in examples)
    figure = new_figure(11.2, 2.75 * len(examples) + 0.9, dpi=120)
    axes = figure.subplots(len(examples), 4, squeeze=False)
    shown = None
    for row, example in zip(axes, examples, strict=True):
        image = _grey_or_colour(example.image_HWC)
        _picture(row[0], image)
        _picture(row[1], _overlaid(image, example.truth_HW))
        _picture(row[2], _overlaid(image, example.predicted_HW))
        _outline(row[2], example.truth_HW, n_classes)
        shown = row[3].imshow(example.maps_FHW.max(axis=0), vmin=0, vmax=1, cmap="magma", interpolation="nearest")
        _bare(row[3])
        row[0].set_ylabel(example.title, fontsize=10, parse_math=False)
    for axis, title in zip(axes[0], ("image", "reference", "prediction", "probability"), strict=True):
        axis.set_title(title, fontsize=11)
    if shown is not None:
        label = "probability" if n_classes == 1 else "largest foreground probability"
        figure.colorbar(shown, ax=axes[:, 3].tolist(), label=label, shrink=0.85, pad=0.02)
    handles = [
        Patch(color=_colour(c), label=f"class {c}" if n_classes > 1 else "foreground") for c in range(1, n_classes + 1)
    ]
    handles.append(Patch(facecolor="none", edgecolor="white", label="outline: reference"))
    legend = figure.legend(
        handles=handles, loc="outside lower center", ncols=len(handles), fontsize=9, facecolor="0.35"
    )
    for text in legend.get_texts():
        text.set_color("white")
    figure.suptitle(heading, fontsize=12, parse_math=False)
    with warnings.catch_warnings():
        # A name in a script that the font lacks shows boxes; that is no reason to fill the terminal.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        written = image_bytes(figure, "png")
    write_atomic(path, written)


def _colour(class_index: int) -> str:
    return CLASS_COLOURS[(class_index - 1) % len(CLASS_COLOURS)]


def _bare(axis: "Axes") -> None:
    axis.set_xticks([])
    axis.set_yticks([])


def _picture(axis: "Axes", image: "np.ndarray") -> None:
    axis.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    _bare(axis)


def _grey_or_colour(image_HWC: "np.ndarray") -> "np.ndarray":
    """(H, W, 3) for showing: three channels as colour, else the first as grey, stretched to its range."""
    import numpy as np

    picture = image_HWC if image_HWC.shape[2] == 3 else np.repeat(image_HWC[..., :1], 3, axis=2)
    low, high = np.percentile(picture, (0.5, 99.5))
    return np.clip((picture - low) / max(high - low, 1e-6), 0, 1)


def _overlaid(image_HW3: "np.ndarray", classes_HW: "np.ndarray") -> "np.ndarray":
    """The image with every class tinted in its colour."""
    import numpy as np
    from matplotlib.colors import to_rgb as rgb

    tinted = image_HW3.copy()
    for class_index in np.unique(classes_HW):
        if 0 < class_index < 255:
            where = classes_HW == class_index
            tinted[where] = 0.45 * tinted[where] + 0.55 * np.array(rgb(_colour(int(class_index))))
    return tinted


def _outline(axis: "Axes", classes_HW: "np.ndarray", n_classes: int) -> None:
    for class_index in range(1, n_classes + 1):
        mask = classes_HW == class_index
        if mask.any() and not mask.all():
            axis.contour(mask, levels=[0.5], colors="white", linewidths=0.9)
