"""Sample predictions: the same images for every arm, as runs have left them. Small pictures for a page."""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from segexp.compare.result import ArmScore
from segexp.errors import UsageError
from segexp.evaluation.scores import EmptyPolicy
from segexp.records import text_rows
from segexp.records.formatting import COLOURS, ORANGE, pluralize

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

SIDE = 160
"""Longer side of a picture, in pixels."""

MAX_ARMS = 8
"""Arms side by side: the reference and the best others."""

MAX_PIXELS = 2**26
"""Pictures larger than that are not opened: no run writes them."""


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
    """What is shown of one block. seed: whose predictions; note: which images and arms, or why there are none."""

    seed: str
    samples: tuple[Sample, ...]
    note: str


@dataclass(frozen=True)
class _Run:
    """What one run has left of its examples: paths inside its directory by image, and their Dice."""

    arm: str
    images: Mapping[str, Path]
    references: Mapping[str, Path]
    maps: Mapping[str, tuple[Path, ...]]
    dice: Mapping[str, float]

    def holds(self, image_id: str) -> bool:
        return all(image_id in held for held in (self.images, self.references, self.maps, self.dice))


def samples_of(
    arms: Sequence[ArmScore], reference: str = "", split: str = "test", policy: EmptyPolicy = "reference"
) -> Samples:
    """Worst, median and best image (mean Dice of the arms), and the one on which arms differ most.

    arms: those of a ranking; those of one seed that all of them have are shown. reference: the arm that is shown
    whatever its rank. policy: what the runs do with empty masks. Nothing outside a run's directory is read, wherever
    its links lead.
    """
    if split != "test":
        return Samples("", (), f"Runs keep predictions of test images alone, and this report is about {split}.")
    scored = [arm for arm in arms if arm.seeds]
    ranked = sorted(scored, key=lambda arm: arm.arm != reference)[:MAX_ARMS]
    if not ranked:
        return Samples("", (), "No run is done.")
    directories = {arm.arm: dict(zip(arm.seeds, arm.directories, strict=False)) for arm in ranked}
    if not all(directories.values()):
        return Samples("", (), "The scores come from collected tables: the pictures lie in the run directories.")
    seeds = [seed for seed in directories[ranked[0].arm] if all(seed in held for held in directories.values())]
    if not seeds:
        return Samples("", (), "The arms have no seed in common whose predictions could stand side by side.")
    try:
        runs = [_run(arm, Path(held[seeds[0]]), policy) for arm, held in directories.items()]
    except UsageError as error:
        return Samples("", (), f"No predictions are shown: {error}.")
    shared = [image_id for image_id in runs[0].images if all(run.holds(image_id) for run in runs)]
    if not shared:
        without = ", ".join(run.arm for run in runs if not run.maps)
        which = f": {without} left none" if without else ""
        return Samples("", (), f"No image has predictions of every arm in seed {seeds[0]}{which}.")
    samples, problems = [], []
    for title, image_id in _chosen(runs, sorted(shared)).items():
        try:
            samples.append(_sample(title, image_id, runs))
        except (OSError, ValueError) as error:
            problems.append(f"{image_id} cannot be shown: {error}")
    lower = len(scored) - len(ranked)
    left_out = f"; {pluralize(lower, 'arm')} of lower rank left out" if lower else ""
    note = (
        f"Seed {seeds[0]}, the first that all arms have; chosen among the {pluralize(len(shared), 'test image')} whose "
        f"predictions every run keeps{left_out}. Below each: its Dice in points. White is probability 1, the outline "
        "the reference."
    )
    return Samples(seeds[0], tuple(samples), " ".join([note, *problems]))


def _run(arm: str, directory: Path, policy: EmptyPolicy) -> _Run:
    """Raises UsageError for a table of images that is missing, damaged or leads out of the run directory."""
    inside = directory.resolve()
    pictures = {path.stem: path for path in _pictures(inside / "examples", inside)}
    references = {stem.removesuffix("_reference"): p for stem, p in pictures.items() if stem.endswith("_reference")}
    images = {stem: path for stem, path in pictures.items() if stem in references}
    found = {path.stem: path for path in _pictures(inside / "predictions", inside)}
    maps = {}
    for image_id in images:
        of_classes = [found[name] for c in range(1, 255) if (name := f"{image_id}_class{c}") in found]
        one = (found[image_id],) if image_id in found else ()
        if one or of_classes:
            maps[image_id] = one or tuple(of_classes)
    table = inside / "images.csv"
    if not table.resolve().is_relative_to(inside):
        raise UsageError(f"{table} leads out of the run directory")
    return _Run(arm, images, references, maps, _dice(table, policy))


def _pictures(folder: Path, inside: Path) -> list[Path]:
    """PNG files of a folder that do not lead out of the run directory."""
    found = sorted(folder.glob("*.png")) if folder.is_dir() else []
    return [path for path in found if path.resolve().is_relative_to(inside)]


def _dice(path: Path, policy: EmptyPolicy) -> dict[str, float]:
    """Dice of each test image, mean over its cells (an image and a class) that count: those whose reference holds the
    class, or under ``both_empty_one`` all of them. Raises UsageError for a table that is damaged."""
    values: dict[str, list[float]] = {}
    for row in text_rows(path, "images"):
        if row["split"] != "test":
            continue
        try:
            held, dice = int(row["n_gt"]) > 0, float(row["dice"] or "nan")
        except ValueError:
            raise UsageError(f"{path} is damaged: n_gt {row['n_gt']!r}, dice {row['dice']!r}") from None
        if policy == "both_empty_one":
            # Undefined means that nothing is there and nothing was found.
            values.setdefault(row["image_id"], []).append(1.0 if math.isnan(dice) else dice)
        elif held and not math.isnan(dice):
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


def _sample(title: str, image_id: str, runs: Sequence[_Run]) -> Sample:
    """Raises ValueError or OSError where a picture cannot be shown."""
    import numpy as np
    from PIL import Image

    first = runs[0]
    truth = _opened(first.references[image_id], "L", Image.Resampling.NEAREST)
    edge = _edge(np.asarray(truth))
    picture = _tile("", math.nan, _opened(first.images[image_id], "RGB", Image.Resampling.BILINEAR), edge)
    tiles = []
    for run in runs:
        planes = [_opened(path, "L", Image.Resampling.BILINEAR) for path in run.maps[image_id]]
        tiles.append(_tile(run.arm, run.dice[image_id], _mixed(planes), edge))
    return Sample(title, image_id, picture, tuple(tiles))


def _opened(path: Path, mode: str, resampling: "Image.Resampling") -> "Image.Image":
    """A picture of `SIDE` pixels. Raises ValueError for one too large, OSError for what is no picture."""
    from PIL import Image

    with Image.open(path, formats=["PNG"]) as picture:
        width, height = picture.size
        if width * height > MAX_PIXELS:
            raise ValueError(f"{path.name} has {width} x {height} pixels")
        by = SIDE / max(width, height)
        size = max(round(width * by), 1), max(round(height * by), 1)
        # Small pictures are enlarged without smoothing: their pixels are what was scored.
        return picture.convert(mode).resize(size, Image.Resampling.NEAREST if by > 1 else resampling)


def _edge(classes_HW: "np.ndarray") -> "np.ndarray":
    """(H, W) bool: pixels of the reference whose neighbour right or below is of another class, ignored ones aside."""
    import numpy as np

    edge = np.zeros(classes_HW.shape, dtype=bool)
    known = classes_HW != 255
    edge[:, :-1] |= (classes_HW[:, :-1] != classes_HW[:, 1:]) & known[:, :-1] & known[:, 1:]
    edge[:-1] |= (classes_HW[:-1] != classes_HW[1:]) & known[:-1] & known[1:]
    return edge


def _mixed(planes: Sequence["Image.Image"]) -> "Image.Image":
    """Probability maps as one picture: white for a single class, a colour of its own for each of several."""
    import numpy as np
    from matplotlib.colors import to_rgb
    from PIL import Image

    if len(planes) == 1:
        return planes[0].convert("RGB")
    # The palette's black is no colour on black.
    colours = [to_rgb(COLOURS[c % (len(COLOURS) - 1)]) for c in range(len(planes))]
    mixed = sum(np.asarray(plane)[..., None] * np.array(colour) for plane, colour in zip(planes, colours, strict=True))
    return Image.fromarray(np.clip(mixed, 0, 255).astype(np.uint8))


def _tile(arm: str, dice: float, picture: "Image.Image", edge: "np.ndarray") -> Tile:
    import numpy as np
    from matplotlib.colors import to_rgb
    from PIL import Image

    pixels = np.array(picture)
    if pixels.shape[:2] != edge.shape:
        raise ValueError("prediction and reference differ in shape")
    pixels[edge] = np.round(np.array(to_rgb(ORANGE)) * 255).astype(np.uint8)
    buffer = io.BytesIO()
    # Colours at full resolution: the outline is one pixel wide.
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=82, subsampling=0, optimize=True)
    uri = f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
    return Tile(arm, dice, uri, pixels.shape[1], pixels.shape[0])
