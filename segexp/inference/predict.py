"""Masks of new images by finished runs, written so that a repeated command goes on where it stopped.

DIR/<image>.png, .nii.gz, .npy or .tif (see `segexp.inference.masks`)   DIR/predict.json   settings, finished images
DIR/<image>_overlay.png   DIR/<image>_probabilities.npz
"""

import functools
import hashlib
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import segexp
from segexp.activations.head import Prediction
from segexp.activations.output import OUTPUT_ACTIVATIONS
from segexp.config import Config, mode_of
from segexp.data.batches import SCORING_PIXELS, sample_of
from segexp.data.check import SHARES, same_scale
from segexp.data.codings import MaskCoding
from segexp.data.file_set import FilesConfig, Item, is_volume
from segexp.data.image_set import ImageError, Pair
from segexp.data.normalise import ruled
from segexp.data.pixels import header_of, read_pair
from segexp.errors import UsageError, first_line
from segexp.inference.images import RECORD, Source, class_files, read_record
from segexp.inference.masks import code_of, mask_file, overlay_png, probabilities_npz
from segexp.inference.networks import Networks, bytes_per_pixel, free_memory, networks_of
from segexp.inference.tiles import tiled
from segexp.records import write_atomic, write_json
from segexp.records.formatting import pluralize
from segexp.records.owned import read_file
from segexp.records.process import OwnedError, heed_interrupts, interruptible, ownership
from segexp.records.runs import Run
from segexp.records.scores import class_color, class_label
from segexp.running.evaluate import threshold_of

log = logging.getLogger("segexp")

SAVE_SECONDS = 2.0
"""Time between two versions of predict.json: a killed process predicts the images of this time again."""


@dataclass(frozen=True)
class Options:
    """How to predict. threshold: "0.5", "tuned" or a probability. tile: side in pixels, None for whole images."""

    threshold: str = "0.5"
    tta: bool = False
    tile: int | None = None
    overlap: float = 0.5
    probabilities: bool = False
    overlay: bool = False


@dataclass
class Outcome:
    """written, kept: images with a mask, predicted now or before. problems: file -> why it has none."""

    written: int = 0
    kept: int = 0
    problems: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def lines(self, out: Path) -> list[str]:
        """What was done, for the terminal."""
        kept = f", {self.kept} were there already" if self.kept else ""
        bad = [f"{pluralize(len(self.problems), 'image')} could not be used:"] if self.problems else []
        return [f"{pluralize(self.written, 'image')} predicted in {out}{kept}", *bad]


def predict_images(
    runs: Sequence[Run], configs: Sequence[Config], sources: Sequence[Source], out: Path, options: Options
) -> Outcome:
    """Write the masks of ``sources`` into ``out``. configs: of the runs, with the device. Raises UsageError."""
    threshold, limit = threshold_of(options.threshold, configs[0], dict(runs[0].record))
    if threshold == "tuned" and len(runs) > 1:
        raise UsageError("--threshold tuned: each run has tuned one for its own network; give an ensemble a number")
    shas = [hashlib.sha256(read_file(_checkpoint(run), run.path)).hexdigest() for run in runs]
    networks = [{"run_id": run.run_id, "checkpoint": sha} for run, sha in zip(runs, shas, strict=True)]
    settings = asdict(options) | {"threshold": threshold, "networks": networks}
    outcome = Outcome()
    if OUTPUT_ACTIVATIONS[configs[0].activation.name].per_batch:
        log.warning(OUTPUT_ACTIVATIONS[configs[0].activation.name].warning)
    out.mkdir(parents=True, exist_ok=True)
    try:
        with ownership(out), interruptible():
            known = read_record(out, settings)
            known |= {"segexp": segexp.__version__, "runs": [str(run.path) for run in runs], "settings": settings}

            @functools.cache  # the networks are loaded for the first image that has no mask yet
            def job() -> _Job:
                return _Job(runs[0], networks_of(runs, configs, options.tta), options, limit, outcome)

            saved = time.monotonic()
            try:
                for source in tqdm(sources, desc="predicting", unit="img", disable=None):
                    _one(source, out, known["images"], job, outcome)
                    if time.monotonic() - saved > SAVE_SECONDS:
                        write_json(out / RECORD, known)
                        saved = time.monotonic()
            finally:
                write_json(out / RECORD, known)
    except OwnedError as owner:
        raise UsageError(f"{out} is being written by {owner}: wait for it or stop it") from None
    return outcome


def _checkpoint(run: Run) -> Path:
    return run.path / "checkpoints" / ("best.pt" if run.summary.get("best_epoch") else "last.pt")


def _one(source: Source, out: Path, images: dict[str, Any], job: Any, outcome: Outcome) -> None:
    """Predict one image unless its files are there; what it cannot use is noted in ``outcome``."""
    heed_interrupts()
    try:
        entry, earlier = source.as_found(), images.get(source.name, {})
        if earlier.get("source", entry["source"]) != entry["source"]:
            raise ImageError(f"{source.paths[0]}: {out / source.name} is that of {earlier['source'][0]}; rename one")
        if earlier.get("state") == entry["state"] and all((out / name).is_file() for name in earlier["files"]):
            outcome.kept += 1
            return
        files = job().files(source)
        for name, content in files.items():
            write_atomic(out / name, content)
        images[source.name] = entry | {"files": list(files)}
        outcome.written += 1
    except (ImageError, UsageError, MemoryError) as error:
        named = str(source.paths[0])
        outcome.problems[named] = first_line(error).removeprefix(f"{named}: ")
    except FileNotFoundError as error:
        outcome.problems[str(source.paths[0])] = first_line(error)


class _Canvas:
    """What is predicted of an image, slice by slice or band by band.

    masks_FDHW: class indices, or for each class that has a file of its own whether it is there. planes_KDHW: its
    probabilities, None where they are not asked for.
    """

    def __init__(self, planes: int, size: tuple[int, int, int], probabilities: bool) -> None:
        self.masks_FDHW = np.zeros((planes or 1, *size), np.uint8)
        self.planes_KDHW: np.ndarray | None = None
        self._separate, self._probabilities = planes > 0, probabilities

    def add(self, slices: Sequence[int], rows: slice, prediction: Prediction, limit: float | None) -> None:
        """limit: evidence above which a pixel is foreground; None: the decision of the head."""
        if not bool(prediction.logits_NKHW.isfinite().all()):
            raise ImageError("the network's output is not finite for this image")
        chosen = prediction.foreground_NFHW() if limit is None else prediction.evidence_NFHW().double() > limit
        chosen_FNHW = chosen.transpose(0, 1).cpu().numpy()
        if self._separate:
            self.masks_FDHW[:, slices, rows] = chosen_FNHW
        else:
            for number, chosen_NHW in zip(prediction.classes, chosen_FNHW, strict=True):
                self.masks_FDHW[0, slices, rows] += chosen_NHW * np.uint8(number)
        if self._probabilities:
            values_KNHW = prediction.values_NKHW.transpose(0, 1).cpu().numpy()
            if self.planes_KDHW is None:
                self.planes_KDHW = np.zeros((len(values_KNHW), *self.masks_FDHW.shape[1:]), np.float32)
            self.planes_KDHW[:, slices, rows] = values_KNHW


class _Job:
    """The networks with what is asked of them, applied to one image after the other."""

    def __init__(self, run: Run, networks: Networks, options: Options, limit: float | None, outcome: Outcome) -> None:
        self.networks, self.options, self.limit, self.notes = networks, options, limit, outcome.notes
        self.config = config = networks.config
        data: Any = config.dataset
        first = networks.members[0][0]
        # Generated images and those of a plugin have no options of files.
        self.files_config = data if isinstance(data, FilesConfig) else FilesConfig(channels=first.channels)
        self.channels, self.separate, self.code = first.channels, class_files(config), code_of(run, config)
        there = (run.record.get("data") or {}).get("dtypes") or (SHARES if not first.stored else ())
        self.dtypes = set(there) - {"others"}
        self.labels = [class_label(run.config, c) for c in range(data.num_classes)]
        self.colors = [class_color(run.config, c) for c in range(1, data.num_classes)]
        self.bytes = bytes_per_pixel(networks) if networks.geometry.how == "pad" and not options.tile else 0.0

    def files(self, source: Source) -> dict[str, bytes]:
        """Name below the output folder -> content, the masks last. Raises ImageError and UsageError."""
        path, config = source.paths[0], self.files_config
        slices = header_of(path, config).slices if is_volume(path) or config.pages == "slices" else 1
        pair = functools.lru_cache(self.config.trainer.batch_size)(functools.partial(self._pair, source))
        canvas = self._drawn(source, pair, slices)
        masks, stack, files = canvas.masks_FDHW, slices > 1, {}
        if canvas.planes_KDHW is not None:
            softmax = mode_of(self.config) == "softmax"
            names = self.labels if softmax else self.labels[self.config.dataset.first_class :]
            files[f"{source.name}_probabilities.npz"] = probabilities_npz(canvas.planes_KDHW, names, stack)
        if self.options.overlay:
            k = int((masks > 0).sum(axis=(0, 2, 3)).argmax())  # of a stack, the slice with the most foreground
            drawn = [mask_DHW[k] * np.uint8(c) for c, mask_DHW in zip(self.separate or [1], masks, strict=True)]
            files[f"{source.name}_overlay.png"] = overlay_png(pair(k).image_HWC, drawn, self.colors)
        tag = 1 if config.orientation == "upright" else pair(0).images[0].orientation
        for c, mask_DHW in zip(self.separate or [1], masks, strict=True):
            ending, content = mask_file(mask_DHW, self.code, path, stack, tag)
            files[source.name + (f"_class{c}" if self.separate else "") + ending] = content
        return files

    def _pair(self, source: Source, k: int) -> Pair:
        """Slice k of an image as the run's own images are read. Raises ImageError."""
        item, unread = Item(source.name, source.paths, (), slice=k), MaskCoding("index", 2)
        pair = read_pair(item, self.channels, unread, self.files_config)
        dtype = pair.dtypes or pair.image_HWC.dtype.name
        if self.dtypes and not same_scale({dtype, *self.dtypes}, self.config.dataset.normalise):
            there = ", ".join(sorted(self.dtypes))
            raise ImageError(f"{source.paths[0]}: {dtype} pixels; the run was trained on {there}: convert the image")
        return pair

    def _drawn(self, source: Source, pair: Callable[[int], Pair], slices: int) -> _Canvas:
        """The canvas of an image, by tiles where it is larger than one."""
        height, width = pair(0).image_HWC.shape[:2]
        self.networks.check(height, width)
        tile = self.options.tile or 0
        if not tile or max(height, width) <= tile:
            return self._whole(source, pair, (slices, height, width), self.options.probabilities)
        # How much tiles change is measured once, on the first image that can be predicted as a whole as well.
        compared = not self.notes and height * width <= SCORING_PIXELS
        canvas = _Canvas(len(self.separate), (slices, height, width), self.options.probabilities or compared)
        for k in range(slices):
            image_HWC = ruled(pair(k).image_HWC, self.networks.geometry.rule)
            for rows, prediction in tiled(self.networks, image_HWC, tile, self.options.overlap):
                canvas.add([k], rows, prediction, self.limit)
        if compared:
            whole = self._whole(source, pair, (slices, height, width), True)
            changed = float((canvas.masks_FDHW != whole.masks_FDHW).any(axis=0).mean())
            assert canvas.planes_KDHW is not None
            assert whole.planes_KDHW is not None
            largest = float(np.abs(canvas.planes_KDHW - whole.planes_KDHW).max())
            self.notes.append(
                f"tiles and whole image differ on {source.paths[0]} in {100 * changed:.3g} % of the pixels, and in "
                f"probability by {largest:.2g} at most"
            )
            canvas.planes_KDHW = canvas.planes_KDHW if self.options.probabilities else None
        return canvas

    def _whole(
        self, source: Source, pair: Callable[[int], Pair], size: tuple[int, int, int], probabilities: bool
    ) -> _Canvas:
        """The canvas (size: slices, height, width) of an image that is predicted without tiles."""
        slices, height, width = size
        needed, free = self.bytes * height * width, free_memory(self.networks.members[0][0].device)
        if needed > free:
            log.warning(
                "%s: %d x %d pixels may take %.1f GiB of memory, %.1f GiB are free: --tile 512 takes less",
                *(source.paths[0], width, height, needed / 2**30, free / 2**30),
            )
        canvas, geometry = _Canvas(len(self.separate), size, probabilities), self.networks.geometry
        for at, prediction in self.networks.whole(lambda k: sample_of(pair(k), geometry), (height, width), slices):
            canvas.add(at, slice(None), prediction, self.limit)
        return canvas
