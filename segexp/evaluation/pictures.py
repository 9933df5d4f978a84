"""Pictures of a finished run: samples.png, diagnostics.png, and probability maps of a fixed set of test images.

A run keeps what its two figures show; `draw_figures` draws them afterwards, without torch or the network.
"""

import hashlib
import io
import json
import logging
import math
import textwrap
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from segexp.data.codings import innermost, planes_of
from segexp.errors import UsageError, first_line
from segexp.losses import IGNORE
from segexp.records import COLUMNS, FIGURES, text_rows, write_atomic
from segexp.records.formatting import BLUE, CLASS_COLOURS, GREY, ORANGE, image_bytes, new_figure, tidy
from segexp.records.owned import open_file

if TYPE_CHECKING:
    from segexp.activations.head import Prediction

log = logging.getLogger("segexp")

Rows = Sequence[Mapping[str, Any]]

N_MAPS = 8  # test images whose probability maps are kept

DEAD_WARNING = 0.2  # share of dead units at a call site above which a run warns

SIDE = 640
"""The longer side of an image that samples.png shows, in about 288 pixels, is kept with less than twice so many."""

HATCHES = ("", "//", "--", "||")
"""Stripes of the first 7 classes, the next 7 ...: with the colours, 28 looks that any colour vision tells apart."""


def fixed_choice(image_ids: Sequence[str], indices: Sequence[int]) -> list[int]:
    """The images whose names hash lowest: the same for every arm and seed, and not picked by hand."""
    return sorted(indices, key=lambda i: hashlib.sha256(image_ids[i].encode()).digest())[:N_MAPS]


def worst_median_best(indices_N: Sequence[int], scores_N: np.ndarray) -> list[tuple[str, int, float]]:
    """(title, image, score) of the worst, the median and the best among those with a score, each image once."""
    order = np.argsort(scores_N, kind="stable")
    order = order[~np.isnan(scores_N[order])]
    if not len(order):
        return []
    picks = {"worst": order[0], "median": order[(len(order) - 1) // 2], "best": order[-1]}
    titles: dict[int, list[str]] = {}
    for title, n in picks.items():
        titles.setdefault(int(n), []).append(title)
    return [(" and ".join(given), indices_N[n], float(scores_N[n])) for n, given in titles.items()]


def probability_map(prediction: "Prediction", n: int = 0) -> np.ndarray:
    """(F, H, W) in [0, 1]: probability of each foreground class in image n; raw values are clipped."""
    values = prediction.values_NKHW[n, prediction.first if prediction.mode == "softmax" else 0 :]
    return values.clamp(0, 1).float().cpu().numpy()


def save_maps(folder: Path, image_id: str, maps_FHW: np.ndarray, first: int = 1) -> None:
    """8-bit PNG per foreground class, from ``first``: <image>.png, or <image>_class<c>.png where there are several."""
    for f, plane in enumerate(maps_FHW):
        name = f"{image_id}.png" if len(maps_FHW) == 1 else f"{image_id}_class{f + first}.png"
        _save_png(folder / name, as_bytes(plane))


def save_example(folder: Path, image_id: str, image_HW3: np.ndarray, truth_HW: np.ndarray) -> None:
    """Save an image (uint8) and its reference, to show beside the maps.

    <image>.png: 8-bit RGB. <image>_reference.png: 8-bit class indices (255 ignored).
    """
    _save_png(folder / f"{image_id}.png", image_HW3)
    _save_png(folder / f"{image_id}_reference.png", truth_HW.astype(np.uint8))


def as_bytes(plane: np.ndarray) -> np.ndarray:
    """Values in [0, 1] as 0 to 255."""
    return np.round(plane * 255).astype(np.uint8)


def _save_png(path: Path, plane: np.ndarray) -> None:
    buffer = io.BytesIO()
    Image.fromarray(plane).save(buffer, format="PNG")
    write_atomic(path, buffer.getvalue())


@dataclass(frozen=True)
class Example:
    """One row of samples.png: uint8 arrays, but for truth_HW.

    image_HW3: as it is shown; truth_HW and predicted_HW: class indices (255 ignored); probability_HW: of the most
    probable class, times 255. overlapping: truth_HW holds sets of classes, as `segexp.data.image_set.Pair` has them.
    """

    title: str
    image_HW3: np.ndarray
    truth_HW: np.ndarray
    predicted_HW: np.ndarray
    probability_HW: np.ndarray
    overlapping: bool = False

    @property
    def reference_HW(self) -> np.ndarray:
        """Class indices of the reference, where classes overlap the highest."""
        return innermost(self.truth_HW) if self.overlapping else self.truth_HW


PLANES = ("image_HW3", "truth_HW", "predicted_HW", "probability_HW")


def save_samples(path: Path, examples: Sequence[Example], **look: Any) -> None:
    """Keep what `draw_samples` needs, as arrays and JSON in an .npz file. look: its other arguments."""
    arrays, buffer = dict[str, Any](), io.BytesIO()
    for n, example in enumerate(examples):
        step = max(max(example.truth_HW.shape) // SIDE, 1)
        arrays |= {f"{n}.{name}": getattr(example, name)[::step, ::step] for name in PLANES}
    look |= {"rows": [[example.title, example.overlapping] for example in examples]}
    np.savez_compressed(buffer, look=np.frombuffer(json.dumps(look).encode(), np.uint8), **arrays)
    write_atomic(path, buffer.getvalue())


def _kept_samples(path: Path) -> tuple[list[Example], dict[str, Any]]:
    """What `save_samples` has kept. Raises UsageError for a damaged file."""
    try:
        with open_file(path, path.parents[1]) as file, zipfile.ZipFile(file) as packed:
            if sum(part.file_size for part in packed.infolist()) > 400 * SIDE**2:  # no run writes as much
                raise ValueError("too large")
            file.seek(0)
            arrays = np.load(file, allow_pickle=False)
            look = json.loads(arrays["look"].tobytes())
            found = [
                Example(str(title), overlapping=bool(over), **{name: arrays[f"{n}.{name}"] for name in PLANES})
                for n, (title, over) in enumerate(look.pop("rows"))
            ]
        for one in found:
            planes = (one.truth_HW, one.predicted_HW, one.probability_HW)
            if {(*plane.shape, 3) for plane in planes} != {one.image_HW3.shape}:
                raise ValueError("shapes differ")
    except (ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise UsageError(f"{path} is damaged: {error}") from error
    return found, look


def draw_figures(run_dir: Path) -> None:
    """Draw samples.png and diagnostics.png of a run that is done, if they are missing, from what it has kept.

    Raises UsageError where that is damaged, and OSError where nothing can be written. Runs of earlier versions kept
    nothing for samples.png.
    """
    samples, diagnostics = (run_dir / name for name in FIGURES)
    kept = run_dir / "examples" / "samples.npz"
    if not samples.exists() and kept.exists():
        examples, look = _kept_samples(kept)
        try:
            draw_samples(samples, examples, **look)
        except (ValueError, TypeError, LookupError) as error:
            raise UsageError(f"{kept} is damaged: {first_line(error)}") from error
    if not diagnostics.exists() and (run_dir / "diagnostics.csv").exists():
        kinds = COLUMNS["diagnostics"]
        rows = text_rows(run_dir / "diagnostics.csv", "diagnostics")
        try:
            typed = [{k: v if kinds[k] is str else kinds[k](v or "nan") for k, v in row.items()} for row in rows]
        except ValueError as error:
            raise UsageError(f"{run_dir / 'diagnostics.csv'} is damaged: {error}") from error
        draw_diagnostics(diagnostics, typed)


def try_to_draw_figures(run_dir: Path) -> None:
    """`draw_figures`, whose failure is a warning: a run that is done stays done."""
    try:
        draw_figures(run_dir)
    except (UsageError, OSError) as error:
        log.warning("the figures were not drawn: %s; `segexp show %s` draws them", first_line(error), run_dir)


def draw_samples(
    path: Path,
    examples: Sequence[Example],
    heading: str,
    names: Sequence[str],
    colors: Sequence[str] = (),
    image_title: str = "image",
) -> None:
    """samples.png: a row per example (worst, median, best) with image, reference, prediction and probability.

    names: of the foreground classes; the legend lists those that occur. colors: theirs, see `class_look`.
    """
    from matplotlib.patches import Patch

    n_classes = len(names)
    occurring = np.unique([c for e in examples for plane in (e.reference_HW, e.predicted_HW) for c in np.unique(plane)])
    handles = _legend_of(occurring.tolist(), names, colors)
    if IGNORE in occurring:
        handles.append(Patch(facecolor="none", edgecolor="white", hatch=4 * "\\", label="not labelled"))
    own = " (colour of the class)" if n_classes > 1 else ""
    handles.append(Patch(facecolor="none", edgecolor="white", label=f"outline: reference{own}"))
    widest = max(len(line) for handle in handles for line in str(handle.get_label()).split("\n"))
    ncols = max(1, min(len(handles), int(10.5 / (0.45 + 0.085 * widest))))
    height = 2.4 * _tallest([example.truth_HW for example in examples]) + 0.2
    figure = new_figure(11.2, height * len(examples) + 0.65 + 0.25 * -(-len(handles) // ncols), dpi=120)
    axes = figure.subplots(len(examples), 4, squeeze=False)
    for row, example in zip(axes, examples, strict=True):
        image = example.image_HW3 / 255
        overlays = (overlaid(image, plane, colors) for plane in (example.reference_HW, example.predicted_HW))
        for axis, picture in zip(row, (image, *overlays), strict=False):
            axis.imshow(picture, vmin=0, vmax=1, interpolation="nearest")
        planes = planes_of(example.truth_HW, example.overlapping)
        _outline(row[2], planes, colors if n_classes > 1 else ("white",))
        if example.overlapping:
            _outline(row[1], planes, colors)
        shown = row[3].imshow(example.probability_HW / 255, vmin=0, vmax=1, cmap="magma", interpolation="nearest")
        row[0].set_ylabel(_wrapped(example.title, round(10 * height)), fontsize=10, parse_math=False)
    label = "probability" if n_classes == 1 else f"largest probability of the classes 1 to {n_classes}"
    figure.colorbar(shown, ax=axes[:, 3].tolist(), label=label, shrink=0.85, pad=0.02)
    look = {"fontsize": 9, "facecolor": "0.35", "labelcolor": "white"}
    figure.legend(handles=handles, loc="outside lower center", ncols=ncols, **look)
    _finish(path, figure, axes, heading, (image_title, "reference", "prediction", "probability"))


def draw_sheet(
    path: Path,
    rows: Sequence[tuple[str, Sequence[tuple[np.ndarray, np.ndarray | None]]]],
    heading: str,
    titles: Sequence[str],
    names: Sequence[str],
    colors: Sequence[str] = (),
    overlapping: bool = False,
) -> None:
    """A contact sheet: rows of (title, pictures), each picture an image_HWC and the mask_HW drawn over it, or None. A
    row may have fewer pictures than there are columns.

    titles: of the columns. names: of the foreground classes; the legend lists those that occur. colors: see
    `class_look`. overlapping: masks hold sets of classes.
    """
    from matplotlib.patches import Patch

    masks = [mask for _, pictures in rows for _, mask in pictures if mask is not None]
    occurring = {c for mask in masks for c in planes_of(mask, overlapping)}
    ignored = any((mask == IGNORE).any() for mask in masks)
    handles = _legend_of(sorted(occurring), names, colors)
    handles += [Patch(facecolor="white", edgecolor="black", hatch="///", label="ignored")] * ignored
    height = 2.6 * _tallest(masks)
    figure = new_figure(2.6 * len(titles), height * len(rows) + 0.9 + 0.25 * -(-len(handles) // 4), dpi=110)
    axes = figure.subplots(len(rows), len(titles), squeeze=False)
    for row, (title, pictures) in zip(axes, rows, strict=True):
        for axis, (image_HWC, mask_HW) in zip(row, pictures, strict=False):
            picture = grey_or_colour(image_HWC)
            if mask_HW is not None:
                picture = overlaid(picture, innermost(mask_HW) if overlapping else mask_HW, colors, opacity=0.3)
                _outline(axis, planes_of(mask_HW, overlapping), colors)
            axis.imshow(picture, interpolation="nearest")
        for axis in row[len(pictures) :]:
            axis.set_axis_off()
        row[0].set_ylabel(_wrapped(title, round(12 * height)), fontsize=9, parse_math=False)
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=9)
    _finish(path, figure, axes, heading, titles)


def _tallest(masks: Sequence[np.ndarray]) -> float:
    """Height by width of the tallest mask, as far as a row of pictures follows it."""
    return float(np.clip(max(mask.shape[0] / mask.shape[1] for mask in masks), 0.5, 1.5))


def _wrapped(text: str, width: int) -> str:
    return "\n".join(textwrap.fill(line, width) for line in text.split("\n"))


def _outline(axis: Any, planes: Mapping[int, np.ndarray], colors: Sequence[str]) -> None:
    """Contours around classes. colors: see `class_look`."""
    for class_index, plane_HW in planes.items():
        if not plane_HW.all():
            axis.contour(plane_HW, levels=[0.5], colors=class_look(class_index, colors)[0], linewidths=1.3)


def _legend_of(occurring: Sequence[int], names: Sequence[str], colors: Sequence[str]) -> list[Any]:
    """A patch for each foreground class that occurs."""
    from matplotlib.patches import Patch

    looks = [(names[c - 1], *class_look(c, colors)) for c in occurring if 0 < c <= len(names)]
    return [
        Patch(facecolor=colour, edgecolor="black", hatch=2 * hatch, label=textwrap.fill(name, 40))
        for name, colour, hatch in looks
    ]


def _finish(path: Path, figure: Any, axes: np.ndarray, heading: str, titles: Sequence[str]) -> None:
    """Write a grid of pictures as PNG. titles: of its columns."""
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=11)
    for text in (text for legend in figure.legends for text in legend.get_texts()):
        text.set_parse_math(False)
    figure.suptitle(heading, fontsize=12, parse_math=False)
    with warnings.catch_warnings():
        # A name with characters that the font lacks is drawn with boxes, without a warning each.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        written = image_bytes(figure, "png")
    write_atomic(path, written)


def class_look(class_index: int, colors: Sequence[str] = ()) -> tuple[str, str]:
    """Colour and hatch of a foreground class. colors: of classes 1, 2, ..., "" or none for the palette."""
    if class_index <= len(colors) and colors[class_index - 1]:
        return colors[class_index - 1], ""
    row, place = divmod(class_index - 1, len(CLASS_COLOURS))
    return CLASS_COLOURS[place], HATCHES[row % len(HATCHES)]


def image_title(channels: int, names: Sequence[str] | None) -> str:
    """The head above an image, with the channel that `grey_or_colour` shows of several. names: of channels."""
    return "image" if channels in (1, 3) else f"image, channel {names[0] if names else 1}"


def grey_or_colour(image_HWC: np.ndarray) -> np.ndarray:
    """(H, W, 3) for display: three channels as colour, otherwise the first as grey, stretched to its range."""
    picture = image_HWC if image_HWC.shape[2] == 3 else np.repeat(image_HWC[..., :1], 3, axis=2)
    low, high = np.percentile(picture, (0.5, 99.5))
    return np.clip((picture - low) / max(high - low, 1e-6), 0, 1)


def overlaid(
    image_HW3: np.ndarray, classes_HW: np.ndarray, colors: Sequence[str] = (), opacity: float = 0.55
) -> np.ndarray:
    """The image (in [0, 1]) with each class tinted, and ignored pixels striped. colors: see `class_look`."""
    from matplotlib.colors import to_rgb

    tinted = image_HW3.copy()
    rows, columns = np.indices(classes_HW.shape)
    along = {"//": rows + columns, "--": rows, "||": columns}
    period = max(4, max(classes_HW.shape) // 24)
    tinted[(classes_HW == IGNORE) & ((columns - rows) % period < period // 4)] = 1
    for class_index in np.unique(classes_HW):
        if 0 < class_index < 255:
            where = classes_HW == class_index
            colour, hatch = class_look(int(class_index), colors)
            tinted[where] = (1 - opacity) * tinted[where] + opacity * np.array(to_rgb(colour))
            if hatch:
                tinted[where & (along[hatch] % period < period // 4)] = 0
    return tinted


PANELS = (
    ("share of dead units", (("dead_output", "output 0", "-"), ("dead_gradient", "gradient 0", ":"))),
    ("share of saturated inputs", (("saturated", "", "-"),)),
    ("gradient norm, layer before", (("grad_norm", "", "-"),)),
)
"""Panels of diagnostics.png: label, and the lines with column, what they show, and style."""

STAGES = {"first": (GREY, "s", 4), "last": (ORANGE, "^", 4), "val": (BLUE, "o", 5)}
"""Colour, marker and marker size of the stages of a run in diagnostics.png."""


def draw_diagnostics(path: Path, rows: Rows) -> None:
    """Draw dead and saturated shares and gradient norms over depth: first and last training epoch, and validation.

    rows: those of diagnostics.csv.
    """
    stages = _stages(rows)
    # Fixed margins: an automatic layout takes longer than drawing.
    figure = new_figure(9, 8, dpi=110, layout=None)
    axes = figure.subplots(len(PANELS), 1, sharex=True)
    figure.subplots_adjust(left=0.09, right=0.985, top=0.92, bottom=0.065, hspace=0.08)
    decoder = [row["depth"] for row in rows if row["part"] == "decoder"]
    for axis, (label, lines) in zip(axes, PANELS, strict=True):
        for column, what, style in lines:
            for name, (title, found) in stages.items():
                colour, marker, size = STAGES[name]
                depth, values = [row["depth"] for row in found], [row[column] for row in found]
                text = f"{title}, {what}" if what else title
                look = {"color": colour, "marker": marker, "markersize": size, "lw": 1.3}
                look |= {"markerfacecolor": "none"} if style == ":" else {}
                axis.plot(depth, values, style, label=text, **look)
        axis.set_ylabel(label)
        tidy(axis)
        if decoder:
            axis.axvspan(min(decoder) - 0.5, max(decoder) + 0.5, color="0.96", zorder=0)
    for axis in axes[:2]:
        axis.set_ylim(-0.03, 1.03)
    axes[0].axhline(DEAD_WARNING, color="0.5", linewidth=0.8, linestyle="--")
    axes[0].text(1, DEAD_WARNING + 0.02, "warning above", color="0.35", fontsize=8)
    axes[0].legend(fontsize=8, loc="upper center", ncols=3, bbox_to_anchor=(0.5, 1.25), frameon=False)
    if any(row["grad_norm"] > 0 for row in rows if not math.isnan(row["grad_norm"])):
        axes[2].set_yscale("log")
        axes[2].minorticks_off()
        # Plain numbers: the parser for powers of ten is slow.
        axes[2].yaxis.set_major_formatter("{x:.0e}")
    axes[2].set_xlabel("depth: number of the call site in the forward pass (shaded: decoder)")
    write_atomic(path, image_bytes(figure, "png"))


def _stages(rows: Rows) -> dict[str, tuple[str, Rows]]:
    """Stage -> (text for the legend, its rows); stages without rows are left out."""
    train, val = ([row for row in rows if row["probe"] == probe] for probe in ("train", "val"))
    stages: dict[str, tuple[str, Rows]] = {}
    epochs = sorted({row["epoch"] for row in train})
    for name, epoch in zip(("first", "last"), dict.fromkeys(epochs[:1] + epochs[-1:]), strict=False):
        stages[name] = (f"training, epoch {epoch}", [row for row in train if row["epoch"] == epoch])
    if val:
        stages["val"] = (f"validation, weights of epoch {val[0]['epoch']}", val)
    return stages
