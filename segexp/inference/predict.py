"""Masks of new images by finished runs, written so that a repeated command goes on where it stopped.

DIR/predict.json   settings, and the images that are finished
DIR/<image>.png (.nii.gz, .npy, .tif), <image>_class<c>.png ..., <image>_overlay.png, <image>_probabilities.npz
"""

import errno
import functools
import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import segexp
from segexp.activations.output import OUTPUT_ACTIVATIONS
from segexp.config import Config, mode_of
from segexp.data.batches import SCORING_PIXELS
from segexp.data.check import SHARES, same_scale
from segexp.data.codings import MaskCoding
from segexp.data.file_set import FilesConfig, Item, is_volume
from segexp.data.image_set import ImageError, Pair
from segexp.data.pixels import header_of, read_pair
from segexp.errors import UsageError, first_line, out_of_memory
from segexp.inference.images import RECORD, Sources, class_files, recorded
from segexp.inference.masks import ENDINGS, code_of, mask_file, overlay_png, probabilities_npz
from segexp.inference.networks import Networks
from segexp.records import write_atomic, write_json
from segexp.records.owned import read_file
from segexp.records.process import OwnedError, heed_interrupts, interruptible, ownership
from segexp.records.runs import Run
from segexp.records.scores import class_color, class_label
from segexp.running.evaluate import threshold_of

log = logging.getLogger("segexp")


@dataclass
class Outcome:
    """Images that were predicted now, and before; file -> why it has no mask; lines on how much tiles change."""

    written: int = 0
    kept: int = 0
    problems: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def predict_images(
    runs: Sequence[Run], configs: Sequence[Config], sources: Sources, out: Path, asked: Mapping[str, Any]
) -> Outcome:
    """Write the masks of ``sources`` into ``out``. configs: of the runs, with the device. asked: threshold, tta, tile,
    overlap, probabilities and overlay of the command line. Raises UsageError."""
    threshold, limit = threshold_of(asked["threshold"], configs[0], dict(runs[0].record))
    if threshold == "tuned" and len(runs) > 1:
        raise UsageError("--threshold tuned: each run has tuned its own; give an ensemble a number")
    if OUTPUT_ACTIVATIONS[configs[0].activation.name].per_batch:
        log.warning(OUTPUT_ACTIVATIONS[configs[0].activation.name].warning)
    networks, outcome = {run.run_id: _checkpoint_sha(run) for run in runs}, Outcome()
    settings = {"networks": networks, **asked, "threshold": threshold}
    last = f"_class{classes[-1]}" if (classes := class_files(configs[0])) else ""

    @functools.cache  # loaded for the first image that has no mask yet
    def job() -> _Job:
        return _Job(runs[0], Networks.of(runs, configs, asked["tta"]), asked, limit, outcome.notes)

    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"-o {out} cannot be a folder ({error.strerror}): choose another one") from error
    try:
        with ownership(out), interruptible():
            images = recorded(out, settings, sources, classes)
            write_json(out / RECORD, {"segexp": segexp.__version__, **settings, "images": images})
            for name, paths in tqdm(sources.items(), desc="predicting", unit="img", disable=None):
                heed_interrupts()
                if _is_done(paths, [out / f"{name}{last}{ending}" for ending in ENDINGS]):
                    outcome.kept += 1
                else:
                    _one(name, paths, out, job(), outcome)
    except OwnedError as owner:
        raise UsageError(f"{out} is being written by {owner}: wait for it or stop it") from None
    return outcome


def _checkpoint_sha(run: Run) -> str:
    name = "best.pt" if run.summary.get("best_epoch") else "last.pt"
    return hashlib.sha256(read_file(run.path / "checkpoints" / name, run.path)).hexdigest()


def _is_done(paths: Sequence[Path], last: Sequence[Path]) -> bool:
    """Whether the file that is written last, under one of the endings it may have, is no older than the image."""
    changed = max((path.stat().st_mtime_ns for path in paths if path.exists()), default=0)
    return any(file.is_file() and file.stat().st_mtime_ns >= changed for file in last)


def _one(name: str, paths: tuple[Path, ...], out: Path, job: "_Job", outcome: Outcome) -> None:
    """Predict one image; why it cannot be used is noted in ``outcome``."""
    try:
        for suffix, content in job.files(paths):
            write_atomic(out / (name + suffix), content)
        outcome.written += 1
    except (MemoryError, RuntimeError) as error:
        lacking = out_of_memory(error, "see --tile")
        if not lacking:
            raise
        outcome.problems[str(paths[0])] = lacking
    except (ImageError, UsageError) as error:
        outcome.problems[str(paths[0])] = first_line(error).removeprefix(f"{paths[0]}: ")
    except OSError as error:
        if error.errno not in (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG):
            raise
        outcome.problems[str(paths[0])] = f"its mask cannot have this name ({error.strerror}): rename the image"


class _Job:
    """The networks with what is asked of them, applied to one image after the other."""

    def __init__(
        self, run: Run, networks: Networks, asked: Mapping[str, Any], limit: float | None, notes: list[str]
    ) -> None:
        self.networks, self.asked, self.limit, self.notes = networks, asked, limit, notes
        self.config, first = networks.config, networks.members[0][0]
        data: Any = self.config.dataset
        # Generated images, and those of a plugin, have no options of files.
        self.options = data if isinstance(data, FilesConfig) else FilesConfig(channels=first.channels)
        self.channels, self.separate, self.code = first.channels, class_files(self.config), code_of(run, self.config)
        there = (run.record.get("data") or {}).get("dtypes") or (() if first.stored else SHARES)
        self.dtypes = set(there) - {"others"}
        first_named = 0 if mode_of(self.config) == "softmax" else data.first_class
        self.names = [class_label(run.config, c) for c in range(first_named, data.num_classes)]
        self.colors = [class_color(run.config, c) for c in range(1, data.num_classes)]

    def files(self, paths: tuple[Path, ...]) -> list[tuple[str, bytes]]:
        """What each file's name adds to that of the image, and its content, the masks last. Raises ImageError and
        UsageError."""
        path, files = paths[0], list[tuple[str, bytes]]()
        stacks = is_volume(path) or self.options.pages == "slices"
        slices = header_of(path, self.options).slices if stacks else 1
        pair = functools.lru_cache(2)(functools.partial(self._pair, paths))
        size, tile = (slices, *pair(0).image_HWC.shape[:2]), self.asked["tile"]
        tiled, small = tile is not None and max(size[1:]) > tile, size[1] * size[2] <= SCORING_PIXELS
        whole = self.config.dataset.fit == "pad" and not (tiled or small)
        if whole and (gib := self.networks.lacks_memory(size[1] * size[2]) / 2**30):
            log.warning("%s: may take %.0f GiB, more than is free: --tile 512 takes less", path, gib)
        # How much tiles change is measured once, on the first image that can be predicted as a whole as well.
        compared = tiled and small and not self.notes
        masks_FDHW, values_KDHW = self._predicted(pair, size, tile if tiled else None, compared)
        if compared:
            others_FDHW, others_KDHW = self._predicted(pair, size, None, compared)
            share, most = (masks_FDHW != others_FDHW).any(axis=0).mean(), np.abs(values_KDHW - others_KDHW).max()
            changes = f"{100 * share:.3g} % of the pixels, and in probability by {most:.2g} at most"
            self.notes.append(f"tiles and whole image differ on {path} in {changes}")
        if self.asked["probabilities"]:
            npz = probabilities_npz(values_KDHW if slices > 1 else values_KDHW[:, 0], self.names)
            files.append(("_probabilities.npz", npz))
        if self.asked["overlay"]:
            k = int((masks_FDHW > 0).sum(axis=(0, 2, 3)).argmax())  # of a stack, the slice with the most foreground
            drawn = [of_DHW[k] * np.uint8(c) for c, of_DHW in zip(self.separate or [1], masks_FDHW, strict=True)]
            files.append(("_overlay.png", overlay_png(pair(k).image_HWC, drawn, self.colors)))
        tag = 1 if self.options.orientation == "upright" else pair(0).images[0].orientation
        for suffix, of_DHW in zip([f"_class{c}" for c in self.separate] or [""], masks_FDHW, strict=True):
            ending, content = mask_file(of_DHW, self.code, path, slices > 1, tag)
            files.append((suffix + ending, content))
        return files

    def _pair(self, paths: tuple[Path, ...], k: int) -> Pair:
        """Slice k of an image, read as the run's own images are. Raises ImageError."""
        pair = read_pair(Item("", paths, (), slice=k), self.channels, MaskCoding("index", 2), self.options)
        dtype = pair.dtypes or pair.image_HWC.dtype.name
        if self.dtypes and not same_scale({dtype, *self.dtypes}, self.config.dataset.normalise):
            there = ", ".join(sorted(self.dtypes))
            raise ImageError(f"{paths[0]}: {dtype} pixels; the run was trained on {there}: convert the image")
        return pair

    def _predicted(
        self, pair: Callable[[int], Pair], size: tuple[int, ...], tile: int | None, compared: bool
    ) -> tuple[Any, Any]:
        """masks_FDHW: class indices (F = 1), or for each class with a file of its own whether it is there, uint8; and
        probabilities values_KDHW, float32, None where they are not asked for. Raises ImageError and UsageError.

        size: (slices, H, W)."""
        masks_FDHW, values_KDHW = np.zeros((len(self.separate) or 1, *size), np.uint8), None
        for k in range(size[0]):
            for rows, prediction in self.networks.predicted(pair(k).image_HWC, tile, self.asked["overlap"]):
                if not bool(prediction.logits_NKHW.isfinite().all()):
                    raise ImageError("the network's output is not finite for this image")
                chosen_FHW = prediction.foreground_NFHW()[0]
                if self.limit is not None:
                    chosen_FHW = prediction.evidence_NFHW()[0].double() > self.limit
                for f, (number, chosen_HW) in enumerate(zip(prediction.classes, chosen_FHW.numpy(), strict=True)):
                    at, value = (f, 1) if self.separate else (0, number)
                    masks_FDHW[at, k, rows] += chosen_HW * np.uint8(value)
                if self.asked["probabilities"] or compared:
                    values_KHW = prediction.values_NKHW[0].numpy()
                    if values_KDHW is None:
                        values_KDHW = np.zeros((len(values_KHW), *size), np.float32)
                    values_KDHW[:, k, rows] = values_KHW
        return masks_FDHW, values_KDHW
