"""Tables of a split against direct computation, image by image in numpy."""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import expit, log_softmax, logsumexp, softmax
from torch.utils._python_dispatch import TorchDispatchMode

import segexp.evaluation.score as fitted_module
from segexp.activations.head import Prediction, make_head
from segexp.activations.output import ALL_MODES, OUTPUT_ACTIVATIONS, HeadMode, logit_channels
from segexp.data.batches import ScoringBatch
from segexp.evaluation import EmptyPolicy
from segexp.evaluation.boundary import boundary_scores
from segexp.evaluation.measures import bin_edges, fit_temperature
from segexp.evaluation.objects import match_objects
from segexp.evaluation.predict import EpochScores, Scored, Units, epoch_scores, predict
from segexp.evaluation.score import (
    Conventions,
    FittedOnValidation,
    SplitScores,
    best_threshold,
    fit_on_validation,
    split_scores,
)
from segexp.losses import IGNORE, LOSSES, fits
from segexp.records import COLUMNS, read_table, write_table

NAN = float("nan")
OBJECT_SCORES = ("object_f1_10", "object_f1_50", "sq", "pq")
CASES = [(name, mode) for name, entry in OUTPUT_ACTIVATIONS.items() if not entry.per_batch for mode in entry.modes]
SOME: list[tuple[str, HeadMode]] = [("arctan", "binary"), ("sigmoid", "softmax"), ("identity", "independent")]
THRESHOLDED = [case for case in CASES if case[1] != "softmax"]
WITH_PROBABILITIES = [case for case in CASES if OUTPUT_ACTIVATIONS[case[0]].log_odds is not None]


KINDS_OF_F = ("sigmoid", "normal_cdf", "cloglog", "hardsigmoid", "identity", "softmax", "learned_tail")


def in_turn(cases: Sequence[tuple[str, HeadMode]]) -> pytest.MarkDecorator:
    """Each activation in every mode of the cases: by default kinds of them in one, which takes turns, and the others
    are slow."""
    modes: dict[str, list[HeadMode]] = {}
    for name, mode in cases:
        modes.setdefault(name, []).append(mode)
    kinds = [(name, modes[name]) for name in KINDS_OF_F if name in modes]
    usual = [(name, found[n % len(found)]) for n, (name, found) in enumerate(kinds)]
    together = [pytest.param(*case, marks=[pytest.mark.slow] * (case not in usual)) for case in cases]
    return pytest.mark.parametrize(("activation", "mode"), together)


IMAGE_IDS = tuple(f"image {i:02d}" for i in range(20))
GROUP_IDS = tuple(["p", "p", "", "q", "q", "", "p", "", "r", "q"] * 2)


@dataclass(frozen=True)
class Scene:
    """Logits (N, K, H, W) in float64, so that batching cannot change a digit, and a target that they partly match.

    Image 2 holds no foreground, image 4 no valid pixel, class 1 is rare.
    """

    activation: str
    mode: HeadMode
    logits: torch.Tensor
    target: torch.Tensor
    indices: tuple[int, ...]

    @property
    def num_classes(self) -> int:
        return 2 if self.mode == "binary" else 4

    @property
    def groups(self) -> tuple[str, ...]:
        return tuple(GROUP_IDS[i] for i in self.indices)

    def prediction(self, chosen: slice = slice(None)) -> Prediction:
        return make_head(OUTPUT_ACTIVATIONS[self.activation], self.mode)(self.logits[chosen])

    def batches(self, size: int = 4) -> list[Scored]:
        found = []
        for start in range(0, len(self.indices), size):
            part = slice(start, start + size)
            prediction = self.prediction(part)
            network = (prediction, self.target[part])
            found.append(Scored(self.indices[part], prediction, self.target[part], network))
        return found


def scene(activation: str = "sigmoid", mode: HeadMode = "binary", seed: int = 0, n: int = 7) -> Scene:
    num_classes = 2 if mode == "binary" else 4
    draw = torch.Generator().manual_seed(seed)
    target = torch.zeros(n, 8, 7, dtype=torch.int64)
    for image in range(n):
        for c in range(1, num_classes):
            if image != 2 and (c != 1 or image % 3 == 0 or num_classes == 2):
                top, left = torch.randint(0, 6, (2,), generator=draw).tolist()
                target[image, top : top + 4, left : left + 3] = c
    channels = logit_channels(num_classes, mode)
    logits = torch.randn(n, channels, 8, 7, dtype=torch.float64, generator=draw) * 2
    hint = target.unsqueeze(1) == torch.arange(num_classes - channels, num_classes).view(1, -1, 1, 1)
    logits += 4 * hint - 2
    target[torch.rand(target.shape, generator=draw) < 0.15] = IGNORE
    if n > 4:
        target[4] = IGNORE
    indices = tuple((3 * i + 2 * seed + 1) % len(IMAGE_IDS) for i in range(n))
    return Scene(activation, mode, logits, target.to(torch.uint8), indices)


def conventions(of: Scene, policy: EmptyPolicy = "reference") -> Conventions:
    return Conventions(range(1, of.num_classes), of.mode, policy, boundary_band=1, surface_tolerance=1.5)


def units(groups: Sequence[str] = GROUP_IDS) -> Units:
    return Units(IMAGE_IDS, groups, spacings=[(9.0, 1.0, 2.0)] * len(IMAGE_IDS))


def fitted_on(of: Scene, batch_size: int = 4) -> FittedOnValidation:
    return fit_on_validation(of.batches(batch_size), of.mode, of.target.numel())


def scored_split(
    of: Scene,
    fitted: FittedOnValidation | None = None,
    *,
    batch_size: int = 4,
    policy: EmptyPolicy = "reference",
    groups: Sequence[str] = GROUP_IDS,
) -> SplitScores:
    fitted = fitted or fitted_on(of)
    return split_scores(of.batches(batch_size), "test", units(groups), fitted, conventions(of, policy))


# --- the same quantities, computed directly -----------------------------------------------------------------------


@dataclass(frozen=True)
class Direct:
    """Per image n and class f: everything by its definition, in numpy."""

    evidence: np.ndarray
    decided: np.ndarray
    truth: np.ndarray
    valid: np.ndarray
    p: np.ndarray | None
    nll: np.ndarray | None


def direct(of: Scene, temperature: float = 1.0) -> Direct:
    target = of.target.numpy()
    truth = np.stack([target == c for c in range(1, of.num_classes)], axis=1)
    valid = np.broadcast_to((target != IGNORE)[:, None], truth.shape)
    log_odds = OUTPUT_ACTIVATIONS[of.activation].log_odds
    scores = (of.logits if log_odds is None else log_odds(of.logits)).numpy()
    if of.mode == "softmax":
        n_channels = scores.shape[1]
        others = [np.delete(scores, c, axis=1) for c in range(1, n_channels)]
        rest = [o.max(axis=1) if log_odds is None else logsumexp(o, axis=1) for o in others]
        evidence = scores[:, 1:] - np.stack(rest, axis=1)
        decided = np.stack([scores.argmax(axis=1) == c for c in range(1, n_channels)], axis=1)
    else:
        evidence = scores - 0.5 if log_odds is None else scores
        decided = evidence > 0
    if log_odds is None:
        return Direct(evidence, decided, truth, valid, None, None)
    phi = scores / temperature
    if of.mode == "softmax":
        p = softmax(phi, axis=1)[:, 1:]
        true_class = np.where(target == IGNORE, 0, target)[:, None].astype(int)
        nll = -np.take_along_axis(log_softmax(phi, axis=1), true_class, axis=1) * np.ones_like(p)
    else:
        p = expit(phi)
        nll = np.logaddexp(0.0, np.where(truth, -phi, phi))
    return Direct(evidence, decided, truth, valid, p, nll)


def direct_counts(decided: np.ndarray, d: Direct) -> np.ndarray:
    parts = (decided & d.truth, decided & ~d.truth, ~decided & d.truth)
    return np.stack([(part & d.valid).sum(axis=(2, 3)) for part in parts], axis=-1)


def direct_dice(counts: np.ndarray) -> np.ndarray:
    tp, fp, fn = np.moveaxis(counts.astype(float), -1, 0)
    return np.divide(2 * tp, 2 * tp + fp + fn, out=np.full(tp.shape, NAN), where=tp + fp + fn > 0)


def mean_over_groups(values: Iterable[float], groups: Sequence[str]) -> float:
    """Mean over groups of means over images, what is not defined left out; "" is no group."""
    members: dict[Any, list[float]] = {}
    for n, (value, group) in enumerate(zip(values, groups, strict=True)):
        if not math.isnan(value):
            members.setdefault(group or n, []).append(value)
    means = [sum(found) / len(found) for found in members.values()]
    return sum(means) / len(means) if means else NAN


def direct_primary(cells: np.ndarray, held: np.ndarray, groups: Sequence[str]) -> float:
    """For each class that occurs the mean over groups of the means over images that hold it; then over classes."""
    of_classes = [mean_over_groups(np.where(held[:, c], cells[:, c], NAN), groups) for c in range(held.shape[1])]
    return float(np.mean([score for c, score in enumerate(of_classes) if held[:, c].any()]))


def mean_of_valid(values: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """(N, F), NaN without a valid pixel."""
    kept = np.where(valid, values, 0.0).sum(axis=(2, 3))
    number = valid.sum(axis=(2, 3))
    return np.divide(kept, number, out=np.full(kept.shape, NAN), where=number > 0)


def direct_ece(p: np.ndarray, y: np.ndarray) -> float:
    index = np.minimum((p * 15).astype(int), 14)
    return float(sum(abs((y - p)[index == b].sum()) for b in range(15)) / len(p))


def exact_auroc(evidence: np.ndarray, truth: np.ndarray) -> float:
    difference = evidence[truth][:, None] - evidence[~truth][None]
    return float((difference > 0).mean() + (difference == 0).mean() / 2)


def exact_ap(evidence: np.ndarray, truth: np.ndarray) -> float:
    ap = previous = 0.0
    for threshold in np.unique(evidence)[::-1]:
        recall = truth[evidence >= threshold].sum() / truth.sum()
        ap += truth[evidence >= threshold].mean() * (recall - previous)
        previous = recall
    return ap


def same(found: Any, wanted: Any, tolerance: float = 1e-12) -> bool:
    """Equal keys, lengths, texts and whole numbers; numbers to ``tolerance``; NaN equals NaN."""
    if dataclasses.is_dataclass(wanted) and not isinstance(wanted, type):
        names = [field.name for field in dataclasses.fields(wanted)]
        return all(same(getattr(found, name), getattr(wanted, name), tolerance) for name in names)
    if isinstance(wanted, dict):
        return found.keys() == wanted.keys() and all(same(found[k], wanted[k], tolerance) for k in wanted)
    if isinstance(wanted, list | tuple):
        return len(found) == len(wanted) and all(same(f, w, tolerance) for f, w in zip(found, wanted, strict=True))
    if isinstance(wanted, np.ndarray):
        return found.shape == wanted.shape and np.allclose(found, wanted, rtol=0, atol=tolerance, equal_nan=True)
    if isinstance(wanted, float):
        return (math.isnan(found) and math.isnan(wanted)) or abs(found - wanted) <= tolerance
    return bool(found == wanted)


# --- tables -------------------------------------------------------------------------------------------------------


@in_turn(CASES)
def test_image_rows(activation: str, mode: HeadMode, tmp_path: Path) -> None:
    of = scene(activation, mode)
    scores = scored_split(of)
    rows = scores.images
    d = direct(of)
    counts = direct_counts(d.decided, d)
    dice = direct_dice(counts)
    # By image, in the order scored: the mean Dice over the classes that its reference holds.
    held = counts[..., 0] + counts[..., 2] > 0
    wanted_N = [row[holds].mean() if holds.any() else NAN for row, holds in zip(dice, held, strict=True)]
    assert scores.indices_N == of.indices
    assert scores.unit_scores_N == pytest.approx(np.array(wanted_N), nan_ok=True, abs=1e-12)
    brier = None if d.p is None else mean_of_valid((d.p - d.truth) ** 2, d.valid)
    nll = None if d.nll is None else mean_of_valid(d.nll, d.valid)
    wanted = []
    for n, index in enumerate(of.indices):
        for f in range(of.num_classes - 1):
            tp, fp, fn = counts[n, f].tolist()
            masks = d.decided[n, f] & d.valid[n, f], d.truth[n, f] & d.valid[n, f]
            nsd, hd95 = boundary_scores(*masks, 1.5, (1.0, 2.0))
            cell = {"split": "test", "image_id": IMAGE_IDS[index], "class_id": f + 1, "group_id": GROUP_IDS[index]}
            cell |= {"height": 8, "width": 7, "n_valid": int(d.valid[n, 0].sum())}
            cell |= {"n_gt": tp + fn, "n_pred": tp + fp, "tp": tp, "fp": fp, "fn": fn}
            cell |= {"dice": float(dice[n, f]), "iou": float(dice[n, f] / (2 - dice[n, f])), "nsd": nsd, "hd95": hd95}
            cell |= {"nll": NAN if nll is None else float(nll[n, f])}
            cell |= {"brier": NAN if brier is None else float(brier[n, f])}
            wanted.append(cell | dict(zip(OBJECT_SCORES, match_objects(*masks).scores(), strict=True)))
    assert len(rows) == 7 * (of.num_classes - 1)
    assert all(list(row) == list(COLUMNS["images"]) for row in rows)
    assert same(rows, wanted, 1e-10)

    assert write_table(tmp_path / "images.csv", "images", rows) == len(rows)
    read = read_table(tmp_path / "images.csv", "images")
    assert read["dice"].isna().tolist() == [math.isnan(row["dice"]) for row in rows]
    assert read["dice"].isna().any()


def tied_share(of: Scene) -> float:
    """0 but for two classes that are clipped alike under softmax."""
    log_odds = OUTPUT_ACTIVATIONS[of.activation].log_odds
    if not OUTPUT_ACTIVATIONS[of.activation].clips or log_odds is None or of.mode != "softmax":
        return 0.0
    first, second = log_odds(of.logits).sort(dim=1, descending=True).values[:, :2].unbind(1)
    return float((first == second)[of.target != IGNORE].double().mean())


def clipped_share(of: Scene) -> float:
    """Share of the valid pixels with a logit outside the interval on which the activation moves."""
    ends = {"hardtanh": (1e-7, 1 - 1e-7), "hardsigmoid": (-3 + 6e-7, 3 - 6e-7)}.get(of.activation)
    if ends is None:
        return 0.0
    outside = ((of.logits <= ends[0]) | (of.logits >= ends[1])).any(dim=1)
    return float(outside[of.target != IGNORE].double().mean())


@in_turn(CASES)
def test_summary(activation: str, mode: HeadMode) -> None:
    of = scene(activation, mode)
    fitted = fitted_on(of)
    scores = scored_split(of, fitted)
    summary = scores.summary
    if mode == "softmax":
        assert len(scores.thresholds) == len(scores.thresholds_T) == len(scores.dice_T) == 0
        assert best_threshold(scores) is None
    assert (scores.bins == []) == math.isnan(fitted.temperature) == (OUTPUT_ACTIVATIONS[activation].log_odds is None)
    d, d_t = direct(of), direct(of, fitted.temperature)
    counts = direct_counts(d.decided, d)
    dice, held = direct_dice(counts), counts[..., 0] + counts[..., 2] > 0
    iou = dice / (2 - dice)
    micro = direct_dice(counts.sum(axis=0, keepdims=True))
    boundary = np.array(
        [
            [boundary_scores(p & v, t & v, 1.5, (1.0, 2.0)) for p, t, v in zip(ps, ts, vs, strict=True)]
            for ps, ts, vs in zip(d.decided, d.truth, d.valid, strict=True)
        ]
    )
    objects = np.array(
        [
            [match_objects(p & v, t & v).scores() for p, t, v in zip(ps, ts, vs, strict=True)]
            for ps, ts, vs in zip(d.decided, d.truth, d.valid, strict=True)
        ]
    )
    absent = ~held
    wanted: dict[str, Any] = {
        "dice": direct_primary(dice, held, of.groups),
        "iou": direct_primary(iou, held, of.groups),
        "dice_micro": float(micro.mean()),
        "iou_micro": float((micro / (2 - micro)).mean()),
        "fp_rate_empty": float((counts[..., 1][absent] > 0).mean()),
        "n_gt_nonempty": int(held.sum()),
        "n_groups": len({group or n for n, group in enumerate(of.groups)}),
        "nsd": direct_primary(boundary[..., 0], held, of.groups),
        "hd95": direct_primary(boundary[..., 1], held, of.groups),
        "hd95_missed": int((held & (counts[..., :2].sum(-1) == 0)).sum()),
        "ap_error": 0.0,
        **{name: direct_primary(objects[..., n], held, of.groups) for n, name in enumerate(OBJECT_SCORES)},
        "frac_tie": tied_share(of),
        "frac_clipped": clipped_share(of),
    }
    classes = range(of.num_classes - 1)
    for suffix, at in (("", d), ("_t", d_t)):
        wanted |= {f"nll{suffix}": NAN, f"brier{suffix}": NAN, f"ece15{suffix}": NAN}
        if at.p is not None and at.nll is not None:
            nll, brier = (mean_of_valid(v, at.valid).mean(axis=1) for v in (at.nll, (at.p - at.truth) ** 2))
            ece = [direct_ece(at.p[:, f][at.valid[:, f]], at.truth[:, f][at.valid[:, f]]) for f in classes]
            wanted[f"nll{suffix}"] = mean_over_groups(nll.tolist(), of.groups)
            wanted[f"brier{suffix}"] = mean_over_groups(brier.tolist(), of.groups)
            wanted[f"ece15{suffix}"] = float(np.mean(ece))
    assert (summary.pop("n_test_cases"), summary.pop("distance_unit")) == (None, "mm")
    ranking = {name: summary.pop(name) for name in ("auroc", "ap")}
    assert same(summary, wanted, 1e-10)
    assert set(summary) | set(ranking) <= COLUMNS["summary"].keys()
    for name, exact in (("auroc", exact_auroc), ("ap", exact_ap)):
        by_class = [exact(d.evidence[:, f][d.valid[:, f]], d.truth[:, f][d.valid[:, f]]) for f in classes]
        assert ranking[name] == pytest.approx(np.mean(by_class), abs=1e-12)


def test_both_empty_one_reaches_the_summary_and_the_thresholds() -> None:
    of = scene()
    d = direct(of)
    dice = direct_dice(direct_counts(d.decided, d))
    assert np.isnan(dice).any()
    scores = scored_split(of, policy="both_empty_one")
    wanted = mean_over_groups(np.where(np.isnan(dice), 1.0, dice).mean(axis=1).tolist(), of.groups)
    assert scores.summary["dice"] == pytest.approx(wanted)
    assert scores.dice_T[np.flatnonzero(scores.thresholds_T == 0)[0]] == pytest.approx(wanted)
    assert wanted != pytest.approx(scored_split(of).summary["dice"], abs=1e-3)


@in_turn(WITH_PROBABILITIES)
def test_bin_rows(activation: str, mode: HeadMode) -> None:
    of = scene(activation, mode)
    fitted = replace(fitted_on(of), temperature=1.7)
    rows = scored_split(of, fitted).bins
    n_classes = of.num_classes - 1
    assert len(rows) == 2 * 2 * n_classes * 15
    assert all(list(row) == list(COLUMNS["bins"]) for row in rows)
    keys = [(row["scaled"], row["region"], row["class_id"], row["bin"]) for row in rows]
    assert len(set(keys)) == len(keys)
    for scaled, temperature in ((0, 1.0), (1, 1.7)):
        d = direct(of, temperature)
        assert d.p is not None
        for f in range(n_classes):
            # A pixel is near the boundary when any of its 8 neighbours is of the other kind.
            edged = np.pad(d.truth[:, f], ((0, 0), (1, 1), (1, 1)), mode="edge")
            around = np.stack([edged[:, i : i + 8, j : j + 7] for i in range(3) for j in range(3)])
            band = around.any(axis=0) & ~around.all(axis=0) & d.valid[:, f]
            for region, counted in (("all", d.valid[:, f]), ("boundary", band)):
                p, y = d.p[:, f][counted], d.truth[:, f][counted]
                index = np.minimum((p * 15).astype(int), 14)
                chosen = [
                    row for row in rows if (row["scaled"], row["region"], row["class_id"]) == (scaled, region, f + 1)
                ]
                wanted = [
                    (b, int((index == b).sum()), float(p[index == b].sum()), float(y[index == b].sum()))
                    for b in range(15)
                ]
                assert same([(row["bin"], row["n"], row["sum_p"], row["sum_y"]) for row in chosen], wanted, 1e-10)


@in_turn(THRESHOLDED)
def test_threshold_rows_count_evidence_above_them(activation: str, mode: HeadMode) -> None:
    of, val = scene(activation, mode), scene(activation, mode, seed=5)
    scores = scored_split(of, fitted_on(val))
    d = direct(of)
    n_classes, n_thresholds = of.num_classes - 1, len(scores.thresholds_T)
    assert n_thresholds > (8 if OUTPUT_ACTIVATIONS[activation].clips else 20)  # what is clipped alike has one threshold
    assert len(scores.thresholds) == n_classes * n_thresholds
    assert all(list(row) == list(COLUMNS["thresholds"]) for row in scores.thresholds)
    by_cell = {(row["class_id"], row["threshold"]): row["dice"] for row in scores.thresholds}
    for t, threshold in enumerate(scores.thresholds_T.tolist()):
        counts = direct_counts(d.evidence > threshold, d)
        dice, held = direct_dice(counts), counts[..., 0] + counts[..., 2] > 0
        assert scores.dice_T[t] == pytest.approx(direct_primary(dice, held, of.groups), abs=1e-12)
        for f in range(n_classes):
            wanted = direct_primary(dice[:, [f]], held[:, [f]], of.groups)
            assert by_cell[f + 1, threshold] == pytest.approx(wanted, abs=1e-12, nan_ok=True)
    assert scores.dice_T[scores.thresholds_T.tolist().index(0.0)] == pytest.approx(scores.summary["dice"], abs=1e-12)


# --- what is fitted, and on what ----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ALL_MODES)
def test_temperature_comes_from_valid_pixels_bounded_and_evenly_spaced(
    mode: HeadMode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same pixels are taken from batches of any size."""
    seen: list[np.ndarray] = []

    def catch(log_odds_PK: np.ndarray, truth: np.ndarray, mode: HeadMode) -> float:
        seen.append(np.column_stack((log_odds_PK, truth)))
        return 1.25

    monkeypatch.setattr(fitted_module, "fit_temperature", catch)
    monkeypatch.setattr(fitted_module, "TEMPERATURE_PIXELS", 60)
    of = scene("arctan", mode)
    assert {fitted_on(of, batch_size).temperature for batch_size in (1, 2, 4, 7)} == {1.25}
    stride = math.ceil(of.target.numel() / 60)
    target = of.target.numpy()
    log_odds = of.prediction().log_odds_NKHW
    assert log_odds is not None
    phi_PK = np.moveaxis(log_odds.numpy(), 1, -1)[target != IGNORE]
    valid_P = target[target != IGNORE]
    truth = valid_P if mode == "softmax" else valid_P[:, None] == np.arange(1, phi_PK.shape[1] + 1)
    wanted = np.column_stack((phi_PK, truth))[::stride]
    assert all(same(table, wanted) for table in seen)
    assert 20 < len(wanted) <= 60
    monkeypatch.undo()
    assert fitted_on(of).temperature == fit_temperature(phi_PK, truth, mode)


@in_turn(THRESHOLDED)
def test_tuned_threshold_never_looks_at_the_test_split(activation: str, mode: HeadMode) -> None:
    """Two test splits of which one wants another threshold: the one from validation is applied to both."""
    val, test = scene(activation, mode, seed=1), scene(activation, mode, seed=2)
    other = replace(test, logits=test.logits + 2.0)
    fitted = fitted_on(val)
    chosen = best_threshold(scored_split(val, fitted))
    assert chosen is not None
    scores = [scored_split(of, fitted) for of in (test, other)]
    for found in scores:
        assert np.array_equal(found.thresholds_T, bin_edges()[fitted.edges_T])
    threshold = bin_edges()[fitted.edges_T][chosen]
    for of, found in zip((test, other), scores, strict=True):
        d = direct(of)
        counts = direct_counts(d.evidence > threshold, d)
        wanted = direct_primary(direct_dice(counts), counts[..., 0] + counts[..., 2] > 0, of.groups)
        assert found.dice_T[chosen] == pytest.approx(wanted, abs=1e-12)
    assert best_threshold(scores[0]) != best_threshold(scores[1]), "each split alone would choose its own"


@in_turn(THRESHOLDED)
def test_tuned_threshold_is_the_best_on_validation(activation: str, mode: HeadMode) -> None:
    """Logits shifted down by 3 want a threshold below 0, and lose nothing by it."""
    of = scene(activation, mode)
    shifted = replace(of, logits=of.logits - 3.0)
    scores = scored_split(shifted)
    chosen = best_threshold(scores)
    assert chosen is not None
    assert scores.dice_T[chosen] == np.nanmax(scores.dice_T) > scores.summary["dice"]
    assert scores.thresholds_T[chosen] < 0


def chosen_of(thresholds: list[float], dice: list[float]) -> int | None:
    empty: list[dict[str, Any]] = []
    return best_threshold(
        SplitScores(empty, empty, empty, empty, {}, (), np.zeros(0), np.array(thresholds), np.array(dice))
    )


def test_best_threshold_among_equals_is_nearest_to_zero() -> None:
    assert chosen_of([-2.0, -0.5, 0.0, 1.0], [0.7, 0.8, 0.6, 0.8]) == 1
    assert chosen_of([-2.0, 0.0, 0.5], [0.8, 0.8, 0.8]) == 1
    assert chosen_of([-2.0, 0.0, 0.5], [NAN, 0.1, 0.3]) == 2
    assert chosen_of([], []) is chosen_of([0.0, 1.0], [NAN, NAN]) is None


# --- corners ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ALL_MODES)
def test_image_without_a_valid_pixel_changes_no_score(mode: HeadMode) -> None:
    of = scene(mode=mode)
    kept = [n for n in range(7) if n != 4]
    without = replace(of, logits=of.logits[kept], target=of.target[kept], indices=tuple(of.indices[n] for n in kept))
    fitted = fitted_on(of)
    assert same(fitted, fitted_on(without))
    found, wanted = scored_split(of, fitted), scored_split(without, fitted)
    # Absent from the reference, and never predicted on a pixel that counts.
    absent = [row for row in wanted.images if row["n_gt"] == 0]
    alarms = sum(row["fp"] > 0 for row in absent)
    assert found.summary.pop("fp_rate_empty") == pytest.approx(alarms / (len(absent) + of.num_classes - 1))
    del wanted.summary["fp_rate_empty"]
    for scores in (found, wanted):
        scores.summary.pop("n_groups")
    assert same(found.summary, wanted.summary)
    assert same((found.bins, found.thresholds), (wanted.bins, wanted.thresholds))
    for row in [row for row in found.images if row["image_id"] == IMAGE_IDS[of.indices[4]]]:
        assert [row[name] for name in ("n_valid", "n_gt", "n_pred", "tp", "fp", "fn")] == [0] * 6
        assert all(math.isnan(row[name]) for name in ("dice", "iou", "nsd", "hd95", "nll", "brier"))
    assert math.isnan(found.unit_scores_N[4])


@pytest.mark.parametrize("mode", ALL_MODES)
def test_references_all_empty(mode: HeadMode) -> None:
    of = scene(mode=mode)
    empty = replace(of, target=torch.where(of.target == IGNORE, IGNORE, 0).to(torch.uint8))
    scores = scored_split(empty)
    for name in ("dice", "iou", "nsd", "hd95", "auroc", "ap"):
        assert math.isnan(scores.summary[name]), name
    assert scores.summary["n_gt_nonempty"] == 0
    assert scores.summary["fp_rate_empty"] > 0
    assert scores.summary["dice_micro"] == 0
    assert scores.summary["nll"] > 0
    assert np.isnan(scores.dice_T).all()
    assert all(math.isnan(row["dice"]) for row in scores.thresholds)
    assert best_threshold(scores) is None
    assert np.isnan(scores.unit_scores_N).all()


def test_split_without_any_valid_pixel() -> None:
    of = scene()
    nothing = replace(of, target=torch.full_like(of.target, IGNORE))
    fitted = fitted_on(nothing)
    assert math.isnan(fitted.temperature)
    assert bin_edges()[fitted.edges_T].tolist() == [0.0]
    scores = scored_split(nothing, fitted)
    assert scores.bins == []
    assert all(math.isnan(scores.summary[name]) for name in ("dice", "nll", "brier", "ece15", "auroc", "dice_micro"))
    assert scores.summary["frac_tie"] == 0.0

    of_test = scored_split(of, fitted)
    assert of_test.summary["ece15"] > 0, "calibration as it is needs nothing from validation"
    assert math.isnan(of_test.summary["ece15_t"])
    assert len(of_test.bins) == 60


def test_ties_are_background_and_reported() -> None:
    """All p = 1/2: nothing is found, and the table says why."""
    of = scene()
    tied = replace(of, logits=torch.zeros_like(of.logits))
    summary = scored_split(tied).summary
    assert (summary["dice"], summary["frac_tie"], summary["auroc"]) == (0.0, 1.0, 0.5)
    half = replace(of, logits=torch.where(torch.arange(8).view(-1, 1) < 4, 0.0, of.logits))
    valid = of.target != IGNORE
    assert scored_split(half).summary["frac_tie"] == pytest.approx(float(valid[:, :4].sum() / valid.sum()))


def test_images_of_several_sizes_stand_with_their_own() -> None:
    of = scene()
    small = replace(of, logits=of.logits[:, :, :5, :6], target=of.target[:, :5, :6], indices=tuple(range(1, 8)))
    batches = [*of.batches(), *small.batches()]
    rows = split_scores(batches, "val", units(), fitted_on(of), conventions(of)).images
    assert [(row["height"], row["width"]) for row in rows] == [(8, 7)] * 7 + [(5, 6)] * 7
    assert [row["image_id"] for row in rows] == [IMAGE_IDS[i] for i in (*of.indices, *range(1, 8))]
    assert {row["split"] for row in rows} == {"val"}


@pytest.mark.parametrize("batch_size", [2, 4, 7])
@pytest.mark.parametrize(("activation", "mode"), SOME)
def test_nothing_depends_on_the_batch_size(activation: str, mode: HeadMode, batch_size: int) -> None:
    of = scene(activation, mode)
    fitted = fitted_on(of, batch_size=1)
    assert same(fitted_on(of, batch_size), fitted)
    one = scored_split(of, fitted, batch_size=1)
    assert same(scored_split(of, fitted, batch_size=batch_size), one)

    def loss_of(prediction: Prediction, target: torch.Tensor) -> torch.Tensor:
        return prediction.logits_NKHW.square().mean()

    epochs = [epoch_scores(of.batches(size), loss_of, units(), "reference") for size in (1, batch_size)]
    assert same(epochs[1], epochs[0])


def test_padding_counts_nowhere() -> None:
    """Native size and padded network size give one table, where no diagonal of the image enters."""
    draw = torch.Generator().manual_seed(3)
    native_masks = torch.zeros(2, 5, 6, dtype=torch.uint8)
    native_masks[:, 1:4, 2:6] = 1
    masks = torch.full((2, 8, 8), IGNORE, dtype=torch.uint8)
    masks[:, :5, :6] = native_masks
    batch = ScoringBatch((0, 1), torch.randn(2, 1, 8, 8, generator=draw), masks, native_masks, padded=True)
    head = make_head(OUTPUT_ACTIVATIONS["arctan"], "binary")
    fitted = FittedOnValidation(2.0, np.array([100, 8191]))
    tables = []
    for resolution in ("native", "network"):
        scored = predict(lambda x: x, head, [batch], torch.device("cpu"), resolution)
        tables.append(split_scores(scored, "test", units(), fitted, conventions(scene())))
    native, network = tables
    assert [(row.pop("height"), row.pop("width")) for row in native.images] == [(5, 6)] * 2
    assert [(row.pop("height"), row.pop("width")) for row in network.images] == [(8, 8)] * 2
    assert all(row["n_valid"] == 30 for row in native.images)
    # Logits are float32 here, whose last digit depends on where a value lies in memory.
    assert same(native.images, network.images, 1e-6)
    assert same(native.summary, network.summary, 1e-6)


# --- validation after an epoch ------------------------------------------------------------------------------------


def epoch_of(of: Scene, policy: EmptyPolicy = "reference", loss: str = "mse", batch_size: int = 4) -> EpochScores:
    loss_of = LOSSES.find(loss).function
    return epoch_scores(of.batches(batch_size), loss_of, units(), policy)


@in_turn(CASES)
def test_epoch_scores_are_those_of_the_split(activation: str, mode: HeadMode) -> None:
    of = scene(activation, mode)
    for policy in ("reference", "both_empty_one"):
        scores = epoch_of(of, policy)
        summary = scored_split(of, policy=policy).summary
        for name in ("dice", "dice_micro", "iou_micro", "nll", "brier"):
            assert getattr(scores, name) == pytest.approx(summary[name], abs=1e-12, nan_ok=True), name
    assert scores.frac_nonfinite == 0.0


OF_NO_OPTIONS = [name for name in LOSSES if name != "sum"]


@pytest.mark.parametrize("loss", OF_NO_OPTIONS)
@pytest.mark.parametrize("mode", ALL_MODES)
def test_epoch_loss_is_the_loss_of_its_batches_weighted_by_images(mode: HeadMode, loss: str) -> None:
    """Taken on masks of bytes, as scoring batches hold them, and at network resolution whatever is scored."""
    activation = "arctan" if fits(OUTPUT_ACTIVATIONS["arctan"], LOSSES.find(loss), mode) else "sigmoid"
    of = scene(activation, mode)
    unscored = replace(of, logits=of.logits * 0.0 + 7.0)
    batches = [
        replace(batch, prediction=other.prediction)
        for batch, other in zip(of.batches(4), unscored.batches(4), strict=True)
    ]
    loss_of = LOSSES.find(loss).function
    found = epoch_scores(batches, loss_of, units(), "reference").loss
    first, second = (float(loss_of(of.prediction(part), of.target[part])) for part in (slice(0, 4), slice(4, 7)))
    assert found == pytest.approx((4 * first + 3 * second) / 7, abs=1e-12)


@pytest.mark.parametrize("value", [float("inf"), -float("inf"), NAN])
def test_epoch_notes_logits_that_are_not_finite(value: float) -> None:
    of = scene()
    logits = of.logits.clone()
    logits[1, 0, 0, :4] = value
    assert epoch_of(replace(of, logits=logits)).frac_nonfinite == pytest.approx(4 / (7 * 56))


# --- without a background -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["softmax", "independent"])
def test_without_a_background_class_0_is_scored_like_the_others(mode: HeadMode) -> None:
    """Classes 0 to 2 without background score as classes 1 to 3 of which the background never occurs."""
    channels = logit_channels(3, mode, 0)
    assert channels == 3
    draw = torch.Generator().manual_seed(0)
    target = torch.randint(0, 3, (5, 8, 7), generator=draw)
    target[torch.rand(target.shape, generator=draw) < 0.15] = IGNORE
    logits = torch.randn(5, 3, 8, 7, dtype=torch.float64, generator=draw)
    with_0 = torch.cat((torch.full_like(logits[:, :1], -1e4), logits), dim=1) if mode == "softmax" else logits
    shifted = torch.where(target == IGNORE, IGNORE, target + 1)
    found = []
    for first, scores, classes in ((0, logits, target), (1, with_0, shifted)):
        prediction = make_head(OUTPUT_ACTIVATIONS["sigmoid"], mode, first=first)(scores)
        scored = [Scored(tuple(range(5)), prediction, classes, (prediction, classes))]
        fitted = fit_on_validation(scored, mode, classes.numel())
        conventions = Conventions(prediction.classes, mode, "reference", 1, 1.5)
        of_split = split_scores(scored, "test", Units(IMAGE_IDS, GROUP_IDS), fitted, conventions)
        loss = {name: float(LOSSES.find(name).function(prediction, classes)) for name in ("ce", "dice", "focal")}
        of_epoch = epoch_scores(scored, LOSSES.find("ce").function, units(), "reference")
        ids = [[row.pop("class_id") - first for row in rows] for rows in (of_split.images, of_split.bins)]
        found.append((of_split.images, of_split.summary, fitted.temperature, loss, of_epoch, ids))
    for ours, reference in zip(*found, strict=True):
        assert str(ours) == str(reference)
    assert set(found[0][-1][0]) == {0, 1, 2}


class Operators(TorchDispatchMode):
    """Records the names of all operators."""

    names: frozenset[str] = frozenset()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names |= {function.overloadpacket.__name__}
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(("activation", "mode"), SOME)
def test_measures_of_a_batch_are_computed_before_any_is_read(activation: str, mode: HeadMode) -> None:
    """None of the operators makes the host wait for a GPU."""
    (batch,) = scene(activation, mode).batches(7)
    with Operators() as seen:
        found = fitted_module._on_device(batch, FittedOnValidation(2.0, np.array([1])), conventions(scene("", mode)))
    assert "scatter_add_" in seen.names
    assert not seen.names & {"_local_scalar_dense", "nonzero", "bincount", "masked_select", "unique", "equal"}
    assert ("bins_SRFB3" in found) == (batch.prediction.log_odds_NKHW is not None)


def test_scores_do_not_depend_on_the_number_of_threads() -> None:
    of = scene("sigmoid", "independent")
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 4):
            torch.set_num_threads(threads)
            scores = scored_split(of)
            found.append((scores.images, scores.objects, scores.bins, scores.summary))
    finally:
        torch.set_num_threads(before)
    assert repr(found[0]) == repr(found[1])
