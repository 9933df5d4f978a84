"""Score a split in one pass: the rows of its tables, and its summary.

Shapes: N images, F foreground classes, T thresholds. Images have equal weight (within their group), see
`segexp.evaluation`; pixels have equal weight only where a measure says "pooled".
"""

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from segexp.activations.output import HeadMode
from segexp.errors import DivergedError
from segexp.evaluation import (
    EmptyPolicy,
    case_means,
    case_sums,
    dice_and_iou,
    expected_calibration_error,
    fp_rate_empty,
    group_means,
    mean_or_nan,
    micro_scores,
    primary_score,
)
from segexp.evaluation.boundary import Nsd, boundary_scores
from segexp.evaluation.measures import (
    RELIABILITY_BINS,
    bin_edges,
    boundary_band,
    counts_above,
    fit_temperature,
    histograms,
    nll_and_brier,
    one_vs_rest,
    reliability_bins,
    threshold_grid,
)
from segexp.evaluation.objects import Objects, match_objects
from segexp.evaluation.own import own_scores
from segexp.evaluation.predict import Scored, Units, counted_masks, mask_counts
from segexp.evaluation.ranking import Ranking
from segexp.records.process import heed_interrupts
from segexp.records.scores import Score

TEMPERATURE_PIXELS = 1_000_000  # the temperature is fitted on at most this many validation pixels, evenly spaced
OF_IMAGES = ("size_N2", "valid_N", "counts_NF3", "above_NTF3", "nll_NF", "brier_NF", "nll_t_NF", "brier_t_NF")
PENDING = 64  # units whose boundaries wait to be measured, at most
REGIONS = ("all", "boundary")  # regions of bins.csv: all valid pixels, and those near the reference boundary


@dataclass(frozen=True)
class FittedOnValidation:
    """temperature: NaN for a head without probabilities. edges_T: thresholds to try, as indices of bin edges."""

    temperature: float
    edges_T: np.ndarray


def fit_on_validation(scored: Iterable[Scored], mode: HeadMode, n_pixels: int) -> FittedOnValidation:
    """Temperature and threshold grid from the validation split; ``n_pixels`` is its number of scored pixels."""
    stride = max(1, -(-n_pixels // TEMPERATURE_PIXELS))
    pooled, phi_PK, truth_P = None, [], []
    seen = 0
    for batch in scored:
        truth, valid = counted_masks(batch.target_NHW, batch.prediction)
        tables = histograms(batch.prediction.evidence_NFHW(), truth, valid).sum(0, keepdim=True)
        of_batch = {"tables": tables, "valid": valid}
        if (log_odds := batch.prediction.log_odds_NKHW) is not None:
            of_batch["phi"] = log_odds.movedim(1, -1)
            of_batch["truth"] = batch.target_NHW if mode == "softmax" else truth.movedim(1, -1)
        found = on_host(of_batch)
        pooled = found["tables"] if pooled is None else pooled + found["tables"]
        if "phi" in found:
            # The stride runs on from batch to batch: the batch size does not change which pixels are taken.
            chosen = slice(-seen % stride, None, stride)
            phi_PK.append(found["phi"][found["valid"]][chosen].astype(np.float64))
            truth_P.append(found["truth"][found["valid"]][chosen])
            seen += int(found["valid"].sum())
    assert pooled is not None, "the validation split is never empty"
    edges = np.array([], dtype=np.int64) if mode == "softmax" else threshold_grid(pooled)
    temperature = fit_temperature(np.concatenate(phi_PK), np.concatenate(truth_P), mode) if phi_PK else float("nan")
    return FittedOnValidation(temperature, edges)


@dataclass(frozen=True)
class Conventions:
    """What scores depend on besides predictions and reference.

    classes: those that are scored. boundary_band: in pixels.
    surface_tolerance: in the unit of the spacing. nsd: see `boundary_scores`.
    threshold: evidence above which a pixel is foreground; None: the decision of the head. own: scores of plugins.
    """

    classes: range
    mode: HeadMode
    empty_policy: EmptyPolicy
    boundary_band: int
    surface_tolerance: float
    threshold: float | None = None
    nsd: Nsd = "pixel"
    own: tuple[Score, ...] = ()


@dataclass(frozen=True)
class ImageMeasures:
    """Measures per unit (image or case), most of them per class. `_t`: at the fitted temperature.

    names, groups: of the units. size_N2: height and width as scored. counts_NF3 and above_NTF3: TP, FP, FN of the
    decision, and at every threshold. boundary_NF2: NSD and HD95. objects_NF: `Objects`. own: column -> (N, F).
    """

    names: tuple[str, ...]
    groups: tuple[str, ...]
    boundary_NF2: np.ndarray
    objects_NF: np.ndarray
    size_N2: np.ndarray
    valid_N: np.ndarray
    counts_NF3: np.ndarray
    above_NTF3: np.ndarray
    nll_NF: np.ndarray
    brier_NF: np.ndarray
    nll_t_NF: np.ndarray
    brier_t_NF: np.ndarray
    own: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def n_gt_NF(self) -> np.ndarray:
        """Pixels of each class in the reference."""
        total: np.ndarray = self.counts_NF3[..., 0] + self.counts_NF3[..., 2]
        return total


@dataclass
class PixelSums:
    """Sums over all valid pixels of a split. bins_SRFB3: n, sum p, sum y by scaling (none, temperature) and region.

    ranking_F: the pixels of each class, ranked by evidence.
    """

    bins_SRFB3: torch.Tensor
    ranking_F: list[Ranking]
    ties: int = 0
    clipped: int = 0
    pixels: int = 0


class _Shapes:
    """Boundary and object measures of each unit, in order: of an image, or of a volume once its last slice has come.

    Only the masks of one case are collected at a time, so its slices must come one after another. Units are measured by
    as many threads as torch uses, while the next ones are predicted.
    """

    def __init__(self, units: Units, conventions: Conventions) -> None:
        self._of, self._conventions = units, conventions
        self._unit, self._spacing = "", tuple[float, ...]()
        self._planes: list[np.ndarray] = []
        self._width = 0
        self._pool = ThreadPoolExecutor(torch.get_num_threads())
        self._measured: list[Future[Any]] = []
        self.units: list[str] = []

    def add(self, indices: Sequence[int], masks_2NFHW: np.ndarray, pixel_size: tuple[float, float]) -> None:
        """The predicted and the reference masks of these images."""
        for index, masks_2FHW in zip(indices, masks_2NFHW.swapaxes(0, 1), strict=True):
            unit = self._of.unit(index)
            if unit != self._unit or not self._of.case_ids:
                self._end_unit()
            thickness, height, width = self._of.spacing(index)
            self._unit, self._spacing = unit, (thickness, height * pixel_size[0], width * pixel_size[1])
            self._width = masks_2FHW.shape[-1]
            self._planes.append(np.packbits(masks_2FHW, axis=-1))  # a case of many classes would take gigabytes

    def _end_unit(self) -> None:
        """Measure the unit whose masks have come."""
        if not self._planes:
            return
        assert not self._of.case_ids or self._unit not in self.units, "slices of a case come one after another"
        self.units.append(self._unit)
        job = (self._planes, self._width, self._spacing, self._conventions)
        self._measured.append(self._pool.submit(_boundary_and_objects, *job))
        self._planes = []
        if len(self._measured) > PENDING:  # their masks take memory
            self._measured[-PENDING].result()

    def finish(self) -> tuple[list[list[tuple[float, float]]], list[list[Objects]]]:
        """Boundary scores and objects of each unit and class."""
        self._end_unit()
        found = []
        for of_unit in self._measured:
            heed_interrupts()
            found.append(of_unit.result())
        return [boundary for boundary, _ in found], [objects for _, objects in found]

    def close(self) -> None:
        """Do not begin what is not measured yet."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def _boundary_and_objects(
    planes: Sequence[np.ndarray], width: int, spacing: tuple[float, ...], conventions: Conventions
) -> tuple[list[tuple[float, float]], list[Objects]]:
    """Of each class of a unit, from its packed masks. A case of one slice is measured as an image."""
    boundary, objects = [], []
    flat, tolerance = len(planes) == 1, conventions.surface_tolerance
    for f in range(len(conventions.classes)):
        packed = planes[0][:, f] if flat else np.stack([plane[:, f] for plane in planes], axis=1)
        predicted, reference = np.unpackbits(packed, axis=-1, count=width).astype(bool)
        boundary.append(boundary_scores(predicted, reference, tolerance, spacing[flat:], conventions.nsd))
        objects.append(match_objects(predicted, reference))
    return boundary, objects


def on_host(tensors: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Arrays of these tensors, for which the host waits once."""
    copies = {name: tensor.to("cpu", non_blocking=True) for name, tensor in tensors.items()}
    if any(tensor.is_cuda for tensor in tensors.values()):
        torch.cuda.synchronize()
    return {name: copy.numpy() for name, copy in copies.items()}


def _measure(
    scored: Iterable[Scored], split: str, units: Units, fitted: FittedOnValidation, conventions: Conventions
) -> tuple[ImageMeasures, PixelSums, tuple[int, ...], np.ndarray]:
    """One pass over the predictions of a split; also an image for each unit (of a case the slice with most reference
    pixels), and the Dice of each unit (mean over the classes that its reference holds). Raises DivergedError when a
    logit is not finite."""
    n_classes = len(conventions.classes)
    sums = PixelSums(
        torch.zeros(2, len(REGIONS), n_classes, RELIABILITY_BINS, 3, dtype=torch.float64),
        [Ranking() for _ in conventions.classes],
    )
    batches, indices = [], list[int]()
    own: dict[str, list[list[float]]] = {score.name: [] for score in conventions.own}
    with closing(_Shapes(units, conventions)) as shapes:
        for batch in scored:
            found = on_host(_on_device(batch, fitted, conventions))
            # NaN > 0 is False: a dead network would score as an empty mask.
            if not found["finite"]:
                raise DivergedError(f"logits on the {split} images are not finite with the selected weights")
            found["size_N2"] = np.array([tuple(batch.target_NHW.shape[1:])] * len(batch.indices))
            found["above_NTF3"] = counts_above(found["tables"], fitted.edges_T).swapaxes(0, 1)
            batches.append({name: found[name] for name in OF_IMAGES})
            shapes.add(batch.indices, found["masks_2NFHW"], batch.pixel_size)
            if conventions.own:
                names = [units.image_ids[i] for i in batch.indices]
                rows = own_scores(conventions.own, names, found["masks_2NFHW"], found["valid_NHW"], found.get("p_NFHW"))
                own = {name: own[name] + of_images for name, of_images in rows.items()}
            indices += batch.indices
            _add_pixels(sums, found)
        boundary, objects = shapes.finish()
    of_images = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    shown = indices
    if units.case_ids:
        cases, n_gt_N = [units.unit(i) for i in indices], of_images["counts_NF3"][..., ::2].sum(axis=(1, 2))
        largest = {cases[n]: indices[n] for n in np.argsort(n_gt_N, kind="stable")}
        shown = [largest[case] for case in dict.fromkeys(cases)]
        of_images = _pooled(of_images, cases)
    dice_N = _dice_per_unit(of_images["counts_NF3"])
    group_of = {units.unit(i): units.group_ids[i] for i in indices}
    objects_NF = np.empty((len(shapes.units), n_classes), dtype=object)
    objects_NF[:] = objects
    groups = tuple(group_of[unit] for unit in shapes.units)
    boundary_NF2, own_NF = np.array(boundary), {name: np.array(rows) for name, rows in own.items()}
    measures = ImageMeasures(tuple(shapes.units), groups, boundary_NF2, objects_NF, **of_images, own=own_NF)
    return measures, sums, tuple(shown), dice_N


def _on_device(batch: Scored, fitted: FittedOnValidation, conventions: Conventions) -> dict[str, torch.Tensor]:
    """All that is computed of a batch where its predictions are, before any of it is read."""
    prediction, evidence = batch.prediction, batch.prediction.evidence_NFHW()
    truth_NFHW, valid_NHW = counted_masks(batch.target_NHW, prediction)
    decided = prediction.foreground_NFHW()
    if conventions.threshold is not None:
        decided = evidence.double() > conventions.threshold
    plain, scaled = (nll_and_brier(prediction, truth_NFHW, valid_NHW, t) for t in (1.0, fitted.temperature))
    found = dict(zip(OF_IMAGES[-4:], (*plain, *scaled), strict=True)) | {
        "finite": prediction.logits_NKHW.isfinite().all(),
        "evidence_NFHW": evidence,
        "tables": histograms(evidence, truth_NFHW, valid_NHW),
        "truth_NFHW": truth_NFHW,
        "valid_NHW": valid_NHW,
        "valid_N": valid_NHW.sum((1, 2)),
        "counts_NF3": mask_counts(decided, truth_NFHW, valid_NHW),
        # Ignored pixels belong to neither mask; distances are in native pixels, or in the unit of the spacing.
        "masks_2NFHW": torch.stack((decided, truth_NFHW)) & valid_NHW.unsqueeze(1),
        "ties": (prediction.ties_NHW() & valid_NHW).sum(),
        "clipped": (prediction.clipped_NHW() & valid_NHW).sum(),
    }
    if prediction.log_odds_NKHW is None:
        return found
    everywhere = valid_NHW.unsqueeze(1).expand_as(truth_NFHW)
    band = boundary_band(truth_NFHW, conventions.boundary_band) & everywhere
    bins = []
    for divisor in (1.0, fitted.temperature):
        phi_NKHW = prediction.log_odds_NKHW.double() / divisor
        p_NFHW = one_vs_rest(phi_NKHW, prediction.mode, prediction.first).sigmoid()
        bins.append(torch.stack([reliability_bins(p_NFHW, truth_NFHW, region) for region in (everywhere, band)]))
        if conventions.own and len(bins) == 1:
            found["p_NFHW"] = p_NFHW.float()
    found["bins_SRFB3"] = torch.stack(bins)
    return found


def _add_pixels(sums: PixelSums, found: Mapping[str, np.ndarray]) -> None:
    kept_NHW = found["valid_NHW"]
    of_classes = (found[name].swapaxes(0, 1) for name in ("evidence_NFHW", "truth_NFHW"))
    for ranking, evidence_NHW, truth_NHW in zip(sums.ranking_F, *of_classes, strict=True):
        ranking.add(evidence_NHW[kept_NHW], truth_NHW[kept_NHW])
    sums.ties += int(found["ties"])
    sums.clipped += int(found["clipped"])
    sums.pixels += int(found["valid_N"].sum())
    if "bins_SRFB3" in found:
        sums.bins_SRFB3 += torch.from_numpy(found["bins_SRFB3"])


def _pooled(of_images: dict[str, np.ndarray], cases: Sequence[str]) -> dict[str, np.ndarray]:
    """The measures of cases from those of their images: counts are sums, the others means over valid pixels."""
    first = [cases.index(case) for case in dict.fromkeys(cases)]
    summed = {name: case_sums(of_images[name], cases) for name in ("valid_N", "counts_NF3", "above_NTF3")}
    means = {
        name: case_means(of_images[name], of_images["valid_N"], cases)
        for name in ("nll_NF", "brier_NF", "nll_t_NF", "brier_t_NF")
    }
    return {"size_N2": of_images["size_N2"][first]} | summed | means


@dataclass(frozen=True)
class SplitScores:
    """All scores of one split. Tables are rows as in `segexp.records.COLUMNS`.

    unit_scores_N: Dice of each image or case, to choose examples; indices_N: the image itself, or the slice of the case
    with most reference pixels. dice_T: the primary score at every threshold.
    """

    images: list[dict[str, Any]]
    objects: list[dict[str, Any]]
    bins: list[dict[str, Any]]
    thresholds: list[dict[str, Any]]
    summary: dict[str, Any]
    indices_N: tuple[int, ...]
    unit_scores_N: np.ndarray
    thresholds_T: np.ndarray
    dice_T: np.ndarray


def split_scores(
    scored: Iterable[Scored], split: str, units: Units, fitted: FittedOnValidation, conventions: Conventions
) -> SplitScores:
    """Score one split in one pass; with ``units.case_ids`` the slices of a case must come one after another.

    Raises DivergedError when a logit is not finite.
    """
    measures, sums, indices, dice_N = _measure(scored, split, units, fitted, conventions)
    thresholds_T = bin_edges()[fitted.edges_T]
    threshold_rows, dice_T = _threshold_rows(split, thresholds_T, measures, conventions)
    return SplitScores(
        images=_image_rows(split, measures, conventions.classes),
        objects=_object_rows(split, measures, conventions.classes),
        bins=_bin_rows(split, sums, conventions.classes),
        thresholds=threshold_rows,
        summary=_summary(measures, sums, conventions.empty_policy)
        | _counted(measures, units)
        | _own_summary(measures, conventions),
        indices_N=indices,
        unit_scores_N=dice_N,
        thresholds_T=thresholds_T,
        dice_T=dice_T,
    )


def best_threshold(scores: SplitScores) -> int | None:
    """Position of the threshold with the best score, the one nearest 0 among equals; None where none is defined."""
    if not len(scores.dice_T) or np.isnan(scores.dice_T).all():
        return None
    best = np.flatnonzero(scores.dice_T == np.nanmax(scores.dice_T))
    return int(best[np.argmin(np.abs(scores.thresholds_T[best]))])


def _dice_per_unit(counts_NF3: np.ndarray) -> np.ndarray:
    """Mean Dice over the classes in each unit's reference; NaN where it is empty."""
    dice_NF, _ = dice_and_iou(counts_NF3)
    held = counts_NF3[..., 0] + counts_NF3[..., 2] > 0
    total = np.where(held, np.nan_to_num(dice_NF), 0.0).sum(axis=1)
    return np.where(held.any(axis=1), total / np.maximum(held.sum(axis=1), 1), np.nan)


def _summary(measures: ImageMeasures, sums: PixelSums, policy: EmptyPolicy) -> dict[str, Any]:
    """ece15 is NaN for a head without probabilities: its bins are empty."""
    n_gt_NF, groups = measures.n_gt_NF, measures.groups
    dice_NF, iou_NF = dice_and_iou(measures.counts_NF3)
    dice_micro, iou_micro = micro_scores(measures.counts_NF3)
    plain, scaled = (
        mean_or_nan(np.array([expected_calibration_error(table) for table in bins_RFB3[0].numpy()]))
        for bins_RFB3 in sums.bins_SRFB3
    )
    auroc, ap, ap_error = (mean_or_nan(values_F) for values_F in np.array([r.scores() for r in sums.ranking_F]).T)
    return {
        "dice": primary_score(dice_NF, n_gt_NF, groups, policy),
        "iou": primary_score(iou_NF, n_gt_NF, groups, policy),
        "dice_micro": dice_micro,
        "iou_micro": iou_micro,
        "fp_rate_empty": fp_rate_empty(measures.counts_NF3),
        "n_gt_nonempty": int((n_gt_NF > 0).sum()),
        "n_groups": len(group_means(n_gt_NF, groups)),
        "nsd": primary_score(measures.boundary_NF2[..., 0], n_gt_NF, groups),
        "hd95": primary_score(measures.boundary_NF2[..., 1], n_gt_NF, groups),
        **{
            name: mean_or_nan(group_means(getattr(measures, f"{name}_NF").mean(axis=1), groups))
            for name in ("nll", "brier", "nll_t", "brier_t")
        },
        "ece15": plain,
        "ece15_t": scaled,
        "frac_tie": sums.ties / max(sums.pixels, 1),
        "frac_clipped": sums.clipped / max(sums.pixels, 1),
        "auroc": auroc,
        "ap": ap,
        "ap_error": ap_error,
        "hd95_missed": int(((n_gt_NF > 0) & (measures.counts_NF3[..., 0] + measures.counts_NF3[..., 1] == 0)).sum()),
        **{name: primary_score(cells_NF, n_gt_NF, groups, policy) for name, cells_NF in _of_objects(measures).items()},
    }


def _own_summary(measures: ImageMeasures, conventions: Conventions) -> dict[str, float]:
    """The means of scores of plugins, averaged as each says."""
    means = {}
    for score in conventions.own:
        cells_NF, policy = measures.own[score.name], conventions.empty_policy
        if score.averaged == "all":
            means[score.name] = mean_or_nan(group_means(cells_NF.mean(axis=1), measures.groups))
        else:
            policy = policy if score.averaged == "empty_policy" else "reference"
            means[score.name] = primary_score(cells_NF, measures.n_gt_NF, measures.groups, policy)
    return means


def _counted(measures: ImageMeasures, units: Units) -> dict[str, Any]:
    """What is scored, and in which unit distances are."""
    n_cases = len(measures.names) if units.case_ids else None
    return {"n_test_cases": n_cases, "distance_unit": "mm" if any(units.spacings) else "pixels"}


def _of_objects(measures: ImageMeasures) -> dict[str, np.ndarray]:
    """Scores of objects, score -> (N, F)."""
    scores = np.array([[found.scores() for found in of_unit] for of_unit in measures.objects_NF])
    return dict(zip(("object_f1_10", "object_f1_50", "sq", "pq"), np.moveaxis(scores, -1, 0), strict=True))


def _object_rows(split: str, measures: ImageMeasures, classes: range) -> list[dict[str, Any]]:
    return [
        {"split": split, "image_id": name, "class_id": class_id, "object": n, "n_pixels": int(size), "iou": float(iou)}
        for name, of_unit in zip(measures.names, measures.objects_NF, strict=True)
        for class_id, found in zip(classes, of_unit, strict=True)
        for n, (size, iou) in enumerate(zip(found.size_R, found.iou_R, strict=True), start=1)
    ]


def _image_rows(split: str, measures: ImageMeasures, classes: range) -> list[dict[str, Any]]:
    dice_NF, iou_NF = dice_and_iou(measures.counts_NF3)
    cells = {"dice": dice_NF, "iou": iou_NF}
    cells |= {"nsd": measures.boundary_NF2[..., 0], "hd95": measures.boundary_NF2[..., 1]}
    cells |= {"nll": measures.nll_NF, "brier": measures.brier_NF} | _of_objects(measures) | measures.own
    rows = []
    for n, name in enumerate(measures.names):
        height, width = measures.size_N2[n].tolist()
        for f, class_id in enumerate(classes):
            tp, fp, fn = measures.counts_NF3[n, f].tolist()
            row = {"split": split, "image_id": name, "class_id": class_id, "group_id": measures.groups[n]}
            row |= {"height": height, "width": width, "n_valid": int(measures.valid_N[n])}
            row |= {"n_gt": tp + fn, "n_pred": tp + fp, "tp": tp, "fp": fp, "fn": fn}
            rows.append(row | {column: float(values_NF[n, f]) for column, values_NF in cells.items()})
    return rows


def _bin_rows(split: str, sums: PixelSums, classes: range) -> list[dict[str, Any]]:
    """Rows of bins.csv; none for a head without probabilities."""
    if not bool(sums.bins_SRFB3[0, 0, ..., 0].sum() > 0):
        return []
    rows = []
    for scaled, by_region in enumerate(sums.bins_SRFB3.numpy()):
        for region, by_class in zip(REGIONS, by_region, strict=True):
            for class_id, table in zip(classes, by_class, strict=True):
                for b, (n, sum_p, sum_y) in enumerate(table):
                    row = {"split": split, "class_id": class_id, "region": region, "scaled": scaled, "bin": b}
                    rows.append(row | {"n": int(n), "sum_p": float(sum_p), "sum_y": float(sum_y)})
    return rows


def _threshold_rows(
    split: str, thresholds_T: np.ndarray, measures: ImageMeasures, conventions: Conventions
) -> tuple[list[dict[str, Any]], np.ndarray]:
    """Rows of thresholds.csv, and the primary score at every threshold."""
    n_gt_NF, groups, policy = measures.n_gt_NF, measures.groups, conventions.empty_policy
    rows: list[dict[str, Any]] = []
    dice_T = []
    for t, threshold in enumerate(thresholds_T):
        dice_NF, _ = dice_and_iou(measures.above_NTF3[:, t])
        dice_T.append(primary_score(dice_NF, n_gt_NF, groups, policy))
        for f, class_id in enumerate(conventions.classes):
            score = primary_score(dice_NF[:, [f]], n_gt_NF[:, [f]], groups, policy)
            rows.append({"split": split, "class_id": class_id, "threshold": float(threshold), "dice": score})
    rows.sort(key=lambda row: row["class_id"])
    return rows, np.array(dice_T)
