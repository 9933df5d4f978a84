"""Sample predictions: the same images for every arm, from the run directories. Small pictures for a page."""

import base64
import io
import math
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import to_rgb
from PIL import Image

from segexp.compare.result import ArmScore
from segexp.errors import UsageError
from segexp.evaluation import EmptyPolicy
from segexp.records import read_run, text_rows
from segexp.records.formatting import CLASS_COLOURS, pluralize
from segexp.records.owned import open_file
from segexp.records.scores import class_color, class_label

SIDE = 160
"""Longer side of a picture, in pixels."""

MAX_ARMS = 8
"""Arms side by side: the reference and the best others."""

MAX_PIXELS = 2**26
"""Larger pictures are not opened: no run writes them."""


@dataclass(frozen=True)
class Tile:
    """A picture as a data URI. dice: NaN for the image itself."""

    arm: str
    dice: float
    uri: str
    width: int
    height: int


@dataclass(frozen=True)
class Sample:
    """One image for all arms. title: why it was chosen."""

    title: str
    image_id: str
    image: Tile
    tiles: tuple[Tile, ...]


@dataclass(frozen=True)
class Samples:
    """What is shown of one block. seed: whose predictions; note: which images and arms, or why there are none.

    classes: name and colour of each class.
    """

    seed: str
    samples: tuple[Sample, ...]
    note: str
    classes: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class _Run:
    """The examples of one run: paths inside its directory by image, and Dice by image."""

    arm: str
    images: Mapping[str, Path]
    references: Mapping[str, Path]
    maps: Mapping[str, tuple[Path, ...]]
    dice: Mapping[str, float]
    config: Mapping[str, Any]

    def holds(self, image_id: str) -> bool:
        return all(image_id in found for found in (self.images, self.references, self.maps, self.dice))


def samples_of(
    arms: Sequence[ArmScore], reference: str = "", split: str = "test", policy: EmptyPolicy = "reference"
) -> Samples:
    """Worst, median and best image (mean Dice of the arms), and the one on which arms differ most.

    arms: those of a ranking; the predictions are those of one seed that all of them have. reference: the arm that is
    always shown. policy: what the runs do with empty masks. Nothing outside a run directory is read, also not by links.
    """
    scored = [arm for arm in arms if arm.seeds]
    ranked = sorted(scored, key=lambda arm: arm.arm != reference)[:MAX_ARMS]
    directories = {arm.arm: dict(zip(arm.seeds, arm.directories, strict=False)) for arm in ranked}
    seeds = [s for s in next(iter(directories.values()), ()) if all(s in of_arm for of_arm in directories.values())]
    if split != "test":
        return Samples("", (), f"Runs keep predictions of test images only; this report is about {split}.")
    if not ranked:
        return Samples("", (), "No run is done.")
    if not all(directories.values()):
        return Samples("", (), "No pictures: the scores come from collected tables, without run directories.")
    if not seeds:
        return Samples("", (), "No pictures: the arms have no seed in common.")
    try:
        runs = [_run(arm, Path(of_arm[seeds[0]]), policy) for arm, of_arm in directories.items()]
    except UsageError as error:
        return Samples("", (), f"No pictures: {error}.")
    shared = [image_id for image_id in runs[0].images if all(run.holds(image_id) for run in runs)]
    if not shared:
        without = ", ".join(run.arm for run in runs if not run.maps)
        which = f"; there are none of {without}" if without else ""
        return Samples("", (), f"No pictures: no image has predictions of every arm with seed {seeds[0]}{which}.")
    several = max(len(maps) for run in runs for maps in run.maps.values())
    classes = tuple(_look(runs[0].config, c, several) for c in range(1, several + 1))
    of_cases = runs[0].config.get("metrics.unit") == "case"
    if of_cases:  # a slice of each volume
        shared = list({case_of(image_id): image_id for image_id in sorted(shared)}.values())
    samples, problems = [], []
    for title, image_id in _chosen(runs, sorted(shared)).items():
        try:
            samples.append(_sample(title, image_id, runs, [colour for _, colour in classes]))
        except (OSError, ValueError, UsageError) as error:
            problems.append(f"{image_id} cannot be shown: {error}")
    lower = len(scored) - len(ranked)
    what, whose = ("volume", "the volume's") if of_cases else ("image", "its")
    note = (
        f"Seed {seeds[0]}, the first that all arms have. Chosen from the {pluralize(len(shared), f'test {what}')} with "
        f"predictions of every run, by {whose} Dice. Below each picture: {whose} Dice in points. Brightness: "
        "probability. Outline: reference."
    )
    left_out = [f"Not shown: {pluralize(lower, 'arm')} of lower rank."] if lower else []
    return Samples(seeds[0], tuple(samples), " ".join([note, *left_out, *problems]), classes)


def _run(arm: str, directory: Path, policy: EmptyPolicy) -> _Run:
    """Raises UsageError for a table of images that is missing, damaged or outside the run directory."""
    pictures = {path.stem: path for path in _pictures(directory / "examples")}
    references = {stem.removesuffix("_reference"): p for stem, p in pictures.items() if stem.endswith("_reference")}
    images = {stem: path for stem, path in pictures.items() if stem in references}
    found = {path.stem: path for path in _pictures(directory / "predictions")}
    maps = {}
    for image_id in images:
        of_classes = [found[name] for c in range(1, 255) if (name := f"{image_id}_class{c}") in found]
        one = (found[image_id],) if image_id in found else ()
        if one or of_classes:
            maps[image_id] = one or tuple(of_classes)
    try:
        config = read_run(directory)["config"]
    except (UsageError, KeyError):
        config = {}
    dice = _dice(directory / "images.csv", policy)
    if config.get("metrics.unit") == "case":
        of_case = {image_id: dice.get(case_of(image_id), math.nan) for image_id in images}
        dice = {image_id: value for image_id, value in of_case.items() if not math.isnan(value)} | dice
    return _Run(arm, images, references, maps, dice, config)


def case_of(image_id: str) -> str:
    """The volume of a slice CASE_z000, whose score the slice has."""
    return image_id.rpartition("_z")[0]


def _look(config: Mapping[str, Any], class_id: int, several: int) -> tuple[str, str]:
    """Name and colour of a class: those of the run, else as samples.png has them."""
    name = class_label(config, class_id) if several > 1 or config.get("dataset.class_names") else "foreground"
    return name, class_color(config, class_id) or CLASS_COLOURS[(class_id - 1) % len(CLASS_COLOURS)]


def _pictures(folder: Path) -> list[Path]:
    """PNG files of a folder of a run directory, without links."""
    found = sorted(folder.glob("*.png")) if folder.is_dir() and not folder.is_symlink() else []
    return [path for path in found if stat.S_ISREG(path.lstat().st_mode)]


def _dice(path: Path, policy: EmptyPolicy) -> dict[str, float]:
    """Dice of each test image: mean over the classes that its reference has, with ``both_empty_one`` over all classes.
    Raises UsageError for a damaged table."""
    values: dict[str, list[float]] = {}
    for row in text_rows(path, "images"):
        if row["split"] != "test":
            continue
        try:
            present, dice = int(row["n_gt"]) > 0, float(row["dice"] or "nan")
        except ValueError:
            raise UsageError(f"{path} is damaged: n_gt {row['n_gt']!r}, dice {row['dice']!r}") from None
        if policy == "both_empty_one":
            # Dice is undefined where reference and prediction are both empty.
            values.setdefault(row["image_id"], []).append(1.0 if math.isnan(dice) else dice)
        elif present and not math.isnan(dice):
            values.setdefault(row["image_id"], []).append(dice)
    return {image_id: sum(cells) / len(cells) for image_id, cells in values.items()}


def _chosen(runs: Sequence[_Run], shared: Sequence[str]) -> dict[str, str]:
    """Why an image is shown -> the image; one that is chosen twice is shown once, for both reasons."""
    mean = {i: sum(run.dice[i] for run in runs) / len(runs) for i in shared}
    spread = {i: max(run.dice[i] for run in runs) - min(run.dice[i] for run in runs) for i in shared}
    order = sorted(shared, key=lambda i: mean[i])
    picks = {"worst": order[0], "median": order[(len(order) - 1) // 2], "best": order[-1]}
    if len(runs) > 1:
        picks["largest disagreement"] = max(shared, key=lambda i: spread[i])
    reasons: dict[str, list[str]] = {}
    for reason, image_id in picks.items():
        reasons.setdefault(image_id, []).append(reason)
    return {" and ".join(given): image_id for image_id, given in reasons.items()}


def _sample(title: str, image_id: str, runs: Sequence[_Run], colours: Sequence[str]) -> Sample:
    """Raises ValueError or OSError where a picture cannot be shown."""
    truth = np.asarray(_opened(runs[0].references[image_id], "L", Image.Resampling.NEAREST))
    # Pixels of a class with a neighbour of another one; 255 is ignored.
    edge = np.zeros(truth.shape, dtype=bool)
    for one, other in ((np.s_[:, :-1], np.s_[:, 1:]), (np.s_[:-1], np.s_[1:])):
        differ = (truth[one] != truth[other]) & (truth[one] != 255) & (truth[other] != 255)
        edge[one] |= differ
        edge[other] |= differ
    outline = np.where(edge & (truth <= len(colours)), truth, 0)
    picture = _tile("", math.nan, _opened(runs[0].images[image_id], "RGB", Image.Resampling.BILINEAR), outline, colours)
    tiles = []
    for run in runs:
        planes = [_opened(path, "L", Image.Resampling.BILINEAR) for path in run.maps[image_id]]
        tiles.append(_tile(run.arm, run.dice[image_id], _mixed(planes, colours), outline, colours))
    return Sample(title, image_id, picture, tuple(tiles))


def _opened(path: Path, mode: str, resampling: Image.Resampling) -> Image.Image:
    """A picture of `SIDE` pixels. Raises ValueError for one too large, OSError for what is not a picture."""
    with open_file(path, path.parent.parent) as file, Image.open(file, formats=["PNG"]) as picture:
        width, height = picture.size
        if width * height > MAX_PIXELS:
            raise ValueError(f"{path.name} has {width} x {height} pixels")
        by = SIDE / max(width, height)
        size = max(round(width * by), 1), max(round(height * by), 1)
        # Small pictures are enlarged without smoothing, to show the pixels that were scored.
        return picture.convert(mode).resize(size, Image.Resampling.NEAREST if by > 1 else resampling)


def _mixed(planes: Sequence[Image.Image], colours: Sequence[str]) -> Image.Image:
    """Probability maps as one picture: white for a single class, for several their colours, darker than outlines."""
    if len(planes) == 1:
        return planes[0].convert("RGB")
    rgb = [np.array(to_rgb(colour)) for colour in colours]
    mixed = sum(0.6 * np.asarray(plane)[..., None] * colour for plane, colour in zip(planes, rgb, strict=False))
    return Image.fromarray(np.clip(mixed, 0, 255).astype(np.uint8))


def _tile(arm: str, dice: float, picture: Image.Image, outline_HW: np.ndarray, colours: Sequence[str]) -> Tile:
    """outline_HW: the class whose outline a pixel is, 0 for none."""
    pixels = np.array(picture)
    if pixels.shape[:2] != outline_HW.shape:
        raise ValueError("prediction and reference differ in shape")
    for class_id, colour in enumerate(colours, start=1):
        pixels[outline_HW == class_id] = np.round(np.array(to_rgb(colour)) * 255).astype(np.uint8)
    buffer = io.BytesIO()
    # Colours at full resolution, because the outline is one pixel wide.
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=82, subsampling=0, optimize=True)
    uri = f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
    return Tile(arm, dice, uri, pixels.shape[1], pixels.shape[0])
