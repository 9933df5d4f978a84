"""Sample predictions: the same images for every arm, from the run directories, as layers of pictures for a page."""

import base64
import io
import math
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageColor

from segexp.compare.result import ArmScore
from segexp.errors import UsageError
from segexp.evaluation import EmptyPolicy
from segexp.records import read_run, text_rows
from segexp.records.formatting import CLASS_COLOURS, PURPLE, SKY, VERMILION, YELLOW, pluralize
from segexp.records.owned import open_file
from segexp.records.scores import class_color, class_label

SIDE = 512
"""The longer side of a picture has at most so many pixels."""

LEVELS = 8
"""Probabilities that a prediction shows, from transparent to opaque: few, so that pictures stay small."""

ERRORS = {"correct": SKY, "false positive": VERMILION, "false negative": YELLOW, "wrong class": PURPLE}
"""What an error map shows and its colours, which differ in brightness too."""

MAX_ARMS = 8
"""Arms side by side: the reference and the best others."""

MAX_PIXELS = 2**26
"""Larger pictures are not opened: no run writes them."""


@dataclass(frozen=True)
class Tile:
    """What one arm predicts for an image: transparent pictures as data URIs, to lay on it. errors: an error map."""

    arm: str
    dice: float
    prediction: str
    errors: str


@dataclass(frozen=True)
class Sample:
    """One image for all arms. title: why it was chosen; width, height: in pixels; image, outline (of the reference):
    pictures as data URIs."""

    title: str
    image_id: str
    width: int
    height: int
    image: str
    outline: str
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
        return Samples("", (), "No pictures: the scores come from tables, without run directories.")
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
        f"predictions of every run, by {whose} Dice. Below each picture: {whose} Dice in points. Outline: reference. "
        "Prediction: the more opaque the more probable. Errors: of the most probable class of each pixel."
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
    reference = _opened(runs[0].references[image_id], "L", Image.Resampling.NEAREST)
    truth_HW, (width, height) = np.asarray(reference), reference.size
    buffer = io.BytesIO()
    image = _opened(runs[0].images[image_id], "RGB", Image.Resampling.BILINEAR)
    image.save(buffer, format="JPEG", quality=80, optimize=True)
    tiles = []
    for run in runs:
        planes = [_opened(path, "L", Image.Resampling.BILINEAR) for path in run.maps[image_id]]
        if {plane.size for plane in planes} != {image.size, reference.size}:
            raise ValueError("image, prediction and reference differ in shape")
        maps_CHW = np.stack([np.asarray(plane, dtype=np.int16) for plane in planes])
        errors = _layer(_errors(maps_CHW, truth_HW, run.config.get("head.mode") == "independent"), ERRORS.values())
        tiles.append(Tile(run.arm, run.dice[image_id], _prediction(maps_CHW, colours), errors))
    by = max(SIDE // 2 // max(width, height), 1)  # thin lines also on small pictures
    outline = _layer(_outline(truth_HW.repeat(by, axis=0).repeat(by, axis=1), len(colours)), colours)
    return Sample(title, image_id, width, height, _uri(buffer, "jpeg"), outline, tuple(tiles))


def _opened(path: Path, mode: str, resampling: Image.Resampling) -> Image.Image:
    """A picture of at most `SIDE` pixels. Raises ValueError for one too large, OSError for what is not a picture."""
    with open_file(path, path.parent.parent) as file, Image.open(file, formats=["PNG"]) as picture:
        width, height = picture.size
        if width * height > MAX_PIXELS:
            raise ValueError(f"{path.name} has {width} x {height} pixels")
        by = min(SIDE / max(width, height), 1)
        return picture.convert(mode).resize((max(round(width * by), 1), max(round(height * by), 1)), resampling)


def _outline(truth_HW: np.ndarray, n_classes: int) -> np.ndarray:
    """The class of each pixel that has a neighbour of another one, else 0; 255 is ignored. Wider on large pictures."""
    edge_HW, wide = np.zeros(truth_HW.shape, dtype=bool), 1 + max(truth_HW.shape) // 300
    for one, other in ((np.s_[:, :-wide], np.s_[:, wide:]), (np.s_[:-wide], np.s_[wide:])):
        differ = (truth_HW[one] != truth_HW[other]) & (truth_HW[one] != 255) & (truth_HW[other] != 255)
        edge_HW[one] |= differ
        edge_HW[other] |= differ
    return np.where(edge_HW & (truth_HW <= n_classes), truth_HW, 0)


def _prediction(maps_CHW: np.ndarray, colours: Sequence[str]) -> str:
    """The most probable foreground class of each pixel in its colour, the more opaque the more probable it is."""
    level_HW = np.round(maps_CHW.max(axis=0) / 255 * (LEVELS - 1)).astype(int)
    class_HW = maps_CHW.argmax(axis=0) % (255 // LEVELS)  # a palette has 256 entries; colours repeat anyway
    every = [colour for colour in colours[: 255 // LEVELS] for _ in range(LEVELS)]
    alphas = [round(255 * level / (LEVELS - 1)) for level in range(LEVELS)] * len(colours)
    return _layer(np.where(level_HW, class_HW * LEVELS + level_HW + 1, 0), every, alphas)


def _errors(maps_CHW: np.ndarray, truth_HW: np.ndarray, independent: bool) -> np.ndarray:
    """Place of each pixel in `ERRORS` from 1, 0 for background and what is not labelled. independent: classes do not
    exclude each other, so that a class is predicted from one half on."""
    background_HW = 127.5 if independent else 255 - maps_CHW.sum(axis=0)
    found_HW = np.where(maps_CHW.max(axis=0) > background_HW, maps_CHW.argmax(axis=0) + 1, 0)
    kinds = ((found_HW == truth_HW) & (truth_HW > 0), truth_HW == 0, found_HW == 0, truth_HW > 0)
    return np.select([truth_HW == 255, (found_HW == 0) & (truth_HW == 0), *kinds], [0, 0, 1, 2, 3, 4])


def _layer(index_HW: np.ndarray, colours: Iterable[str], alphas: Sequence[int] = ()) -> str:
    """A picture as a data URI: index 0 is transparent, n has the nth of the colours and its opacity of 255."""
    picture, buffer = Image.fromarray(index_HW.astype(np.uint8)), io.BytesIO()
    rgb = [part for colour in colours for part in ImageColor.getrgb(colour)]
    picture.putpalette([0, 0, 0, *rgb])
    transparency = bytes([0, *(alphas or [255] * (len(rgb) // 3))])[:256]
    picture.save(buffer, format="PNG", transparency=transparency, optimize=True)
    return _uri(buffer, "png")


def _uri(buffer: io.BytesIO, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
