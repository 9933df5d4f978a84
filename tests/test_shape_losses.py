"""Distance maps and skeletons of masks: their values, and that runs compute them from the augmented mask."""

import functools
import multiprocessing
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt, gaussian_filter, label
from skimage.morphology import dilation, thin
from tiny import interrupted_run, tables, tiny_config, tiny_run, tiny_task
from tqdm import tqdm

import segexp
from segexp.activations.head import make_head
from segexp.activations.output import OUTPUT_ACTIVATIONS
from segexp.config import params
from segexp.data.batches import Sample, scoring_maps
from segexp.evaluation.predict import epoch_scores
from segexp.losses import IGNORE, LOSSES, Maps, map_functions, maps_of
from segexp.losses.shape import contour_distances, parallel_distances, signed_distances, skeleton, tubed_skeletons
from segexp.running import prepare
from segexp.running.build import initial_network, make_scorer, make_task, units_of
from segexp.training import loop

WITH_MAPS = [name for name, entry in LOSSES.items() if entry.maps]
ALL_VALID = np.ones((40, 50), bool)


def blobs(*shape: int, seed: int = 0, smooth: float = 3.0) -> np.ndarray:
    """Boolean, about half of it True in patches."""
    return gaussian_filter(np.random.default_rng(seed).normal(size=shape), smooth, axes=(-2, -1)) > 0


def test_signed_distances_of_a_square() -> None:
    plane = np.zeros((1, 40, 50), bool)
    plane[0, 10:15, 10:15] = True
    (map_HW,) = signed_distances(plane, ALL_VALID)
    assert map_HW.dtype == np.float32
    assert map_HW[12, 8:14].tolist() == [2, 1, -1, -2, -3, -2]
    assert map_HW[7, 6] == 5
    assert map_HW[0, 12] == 10
    # The loss counts the outermost pixels of the class as 0.
    target = torch.from_numpy(plane.astype(np.int64))
    p = torch.zeros(1, 1, 40, 50).index_put(
        (torch.tensor(0), torch.tensor(0), torch.tensor(12), torch.tensor(12)), torch.tensor(1.0)
    )
    prediction = make_head(OUTPUT_ACTIVATIONS["sigmoid"], "binary")(200 * p - 100)
    assert float(LOSSES["boundary"].function(prediction, target)) * 2000 == pytest.approx(-2)


@pytest.mark.parametrize("alpha", [1.0, 2.0, 3.0])
def test_errors_weigh_by_the_power_of_their_distance(alpha: float) -> None:
    plane = blobs(1, 40, 50)
    target, p = torch.from_numpy(plane.astype(np.int64)), torch.full((1, 1, 40, 50), 0.25)
    prediction = make_head(OUTPUT_ACTIVATIONS["sigmoid"], "binary")(p.logit())
    distance = np.abs(signed_distances(plane, ALL_VALID)).astype(float)
    assert distance.max() > 5
    expected = ((0.25 - plane) ** 2 * distance**alpha).mean()
    found = LOSSES["hausdorff_dt"].function(prediction, target, alpha=alpha, two_sided=False)
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_distances_go_to_labelled_pixels_only() -> None:
    inside, valid = blobs(40, 50), ALL_VALID.copy()
    valid[:, 30:] = valid[4:9, 5:20] = False
    (map_HW,) = signed_distances(inside[None], valid)
    outside = valid & ~inside
    assert (map_HW[~valid] == 0).all()
    np.testing.assert_allclose(map_HW[outside], distance_transform_edt(~(inside & valid))[outside], rtol=1e-6)
    np.testing.assert_allclose(map_HW[inside & valid], -distance_transform_edt(~outside)[inside & valid], rtol=1e-6)
    alone = signed_distances(inside[None, :, :30], valid[:, :30])
    assert np.array_equal(alone[0], map_HW[:, :30])


@pytest.mark.parametrize("constant", [False, True])
def test_without_two_kinds_of_pixels_there_is_no_distance(constant: bool) -> None:
    plane = np.full((1, 40, 50), constant)
    assert not signed_distances(plane, ALL_VALID).any()
    assert not signed_distances(blobs(1, 40, 50), ~ALL_VALID).any()


def test_distances_on_a_gpu_are_exact() -> None:
    planes = torch.from_numpy(np.stack([blobs(3, 40, 50), blobs(3, 40, 50, seed=1, smooth=0.5)]))
    planes[0, 1], planes[1, 2] = False, True
    valid = torch.from_numpy(blobs(2, 40, 50, seed=2, smooth=5.0))
    found = contour_distances(planes, valid)
    for distance, plane, one in zip(found, planes, valid, strict=True):
        assert np.array_equal(distance, abs(signed_distances(plane.numpy(), one.numpy())))
    torch.testing.assert_close(parallel_distances(planes, valid), found, rtol=1e-6, atol=0)
    # Tensors without values: an operator that reads one back raises.
    assert parallel_distances(planes.to("meta"), valid.to("meta")).shape == planes.shape


@pytest.mark.parametrize("smooth", [0.0, 0.7, 3.0])
def test_skeletons_are_those_of_scikit_image(smooth: float) -> None:
    mask = blobs(60, 70, smooth=smooth)
    thinned = skeleton(mask)
    assert np.array_equal(thinned, thin(mask))
    assert label(thinned, np.ones((3, 3)))[1] == label(mask, np.ones((3, 3)))[1]
    assert not skeleton(np.zeros((5, 5), bool)).any()


def test_tubes_lie_within_their_class() -> None:
    planes, valid = blobs(2, 40, 50), ALL_VALID.copy()
    valid[3:6] = False
    for tube in (0, 1, 2, 3):
        for plane, wide in zip(planes & valid, tubed_skeletons(planes, valid, tube=tube), strict=True):
            expected = thin(plane)
            for _ in range(tube):
                expected = dilation(expected)
            assert np.array_equal(wide, (expected & plane).astype(np.float32))
    assert LOSSES["skeleton_recall"].options[0].default == 2
    assert np.array_equal(tubed_skeletons(planes, valid), tubed_skeletons(planes, valid, tube=2))


def test_skeleton_recall_is_the_share_of_the_tube() -> None:
    mask = blobs(2, 40, 50)
    target, p = torch.from_numpy(mask.astype(np.int64)), torch.from_numpy(blobs(2, 1, 40, 50, seed=5)).double()
    prediction = segexp.head("sigmoid")(200 * p - 100)
    for tube in (0, 2):
        tubes = np.stack([tubed_skeletons(one[None], ALL_VALID, tube=tube)[0] for one in mask])
        found, length = ((values * tubes).sum((1, 2)) for values in (p[:, 0].numpy(), np.ones_like(tubes)))
        wanted = {"batch": 1 - found.sum() / length.sum(), "image": (1 - found / length).mean()}
        for reduction, value in wanted.items():
            of = segexp.loss("skeleton_recall", tube=tube, reduction=reduction)
            assert float(of(prediction, target)) == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize("mode", ["softmax", "independent"])
@pytest.mark.parametrize("name", WITH_MAPS)
def test_given_maps_are_those_of_the_target(name: str, mode: str) -> None:
    """Of the foreground classes alone, under any head; a sum hands each term its own."""
    masks = torch.from_numpy(blobs(2, 40, 50) + 2 * blobs(2, 40, 50, seed=1)).clamp(max=2)
    masks[:, :4] = IGNORE
    channels = 3 if mode == "softmax" else 2
    logits = torch.randn(2, channels, 40, 50, generator=torch.Generator().manual_seed(0))
    prediction = segexp.head("arctan", mode)(logits)
    options: dict[str, Any] = {o.name: o.default for o in LOSSES[name].options}
    maps = maps_of(map_functions(name, options), masks, range(1, 3))
    assert {k: tuple(v.shape) for k, v in maps.items()} == {name: (2, 2, 40, 50)}
    function = LOSSES[name].function
    assert torch.equal(function(prediction, masks, maps, **options), function(prediction, masks, **options))
    nothing: Maps = {name: torch.zeros(2, 2, 40, 50)}
    assert not torch.equal(function(prediction, masks, nothing, **options), function(prediction, masks, **options))
    terms = {"terms": {"dice": {"weight": 1.0}, name: {"weight": 0.1, **options}}}
    assert map_functions("sum", terms).keys() == {name}
    total = LOSSES["sum"].function(prediction, masks, maps, **terms)
    assert torch.equal(total, LOSSES["sum"].function(prediction, masks, **terms))
    assert not torch.equal(total, LOSSES["sum"].function(prediction, masks, nothing, **terms))
    assert not map_functions("dice", {})


SUM = ("loss=sum", "loss.terms={dice: 1, boundary: 0.01, hausdorff_dt: {weight: 0.001, alpha: 1}, skeleton_recall: 1}")
FOREGROUND = range(1, 2)


@pytest.mark.slow
def test_batches_have_the_maps_of_the_augmented_masks(tmp_path: Path) -> None:
    """Whatever process prepares them."""
    made = []
    for workers in (0, 2):
        spec, task = tiny_task(tmp_path, *SUM, "dataset.number=12", f"trainer.workers={workers}", "augment=strong")
        made.append(list(task.batches(2, [spec.split["train"]])))
    ((images, masks, maps),), ((same_images, same_masks, same_maps),) = made
    assert torch.equal(images, same_images)
    assert torch.equal(masks, same_masks)
    assert (masks == IGNORE).any()
    assert maps.keys() == same_maps.keys() == {"boundary", "hausdorff_dt", "skeleton_recall"}
    expected = maps_of(map_functions("sum", params(spec.config.loss)), masks, FOREGROUND)
    for name, values in maps.items():
        assert torch.equal(values, expected[name])
        assert torch.equal(values, same_maps[name])


@pytest.mark.parametrize(
    ("changed", "workers", "computed"),
    [
        ("augment.noise=0", 0, 8),
        ("augment.brightness=0.2 augment.contrast=0.2 augment.noise=0.1", 0, 8),
        ("augment.noise=0.1", 2, 8),
        ("augment.flip_vertical=0.5", 0, 16),
        ("dataset.fit=pad", 0, 16),
    ],
)
def test_maps_of_masks_that_stay_are_computed_once(
    changed: str, workers: int, computed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By whatever process; those of the second epoch have the same bits."""
    spec, task = tiny_task(tmp_path, *SUM, "augment=none", f"trainer.workers={workers}", *changed.split())
    calls = multiprocessing.get_context("fork").Value("i")

    def counted(mask_HW: np.ndarray) -> np.ndarray:
        with calls:
            calls.value += 1
        return skeleton(mask_HW)

    monkeypatch.setattr("segexp.losses.shape.skeleton", counted)
    order = spec.split["train"][:8]
    list(task.batches(1, [order[:4], order[4:]]))
    ((_, masks, maps),) = task.batches(2, [order[::-1]])
    assert calls.value == computed
    expected = maps_of(map_functions("sum", params(spec.config.loss)), masks, FOREGROUND)
    assert all(torch.equal(maps[name], expected[name]) for name in expected)


def test_the_memory_for_maps_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segexp.data.batches.MAPS_MEMORY", 2 * 32 * 32 * 4 + 1)
    spec, task = tiny_task(tmp_path, "loss=boundary", "augment=none")
    order = spec.split["train"][:4]
    list(task.batches(1, [order]))
    counted = mock.Mock(side_effect=distance_transform_edt)
    monkeypatch.setattr("scipy.ndimage.distance_transform_edt", counted)
    list(task.batches(2, [order]))
    assert counted.call_count == 4  # twice for each of the two images that found no room


def test_steps_take_the_maps_of_their_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, task = tiny_task(tmp_path, *SUM)
    (batch,) = task.batches(1, [spec.split["train"][:5]])
    images, masks, maps = batch
    prediction = task.head(task.network(images))
    of_target = task.loss_of(prediction, masks)

    def computed(*_: Any) -> Maps:
        raise AssertionError("computed in the step")

    monkeypatch.setattr("segexp.losses.shape.maps_of", computed)
    assert torch.equal(task.loss_of(prediction, masks, maps), of_target)
    row = loop.train_epoch(spec.config, task, loop.begin(spec.config, task), 1, tqdm(disable=True))
    assert np.isfinite(row["loss"])


def test_validation_computes_its_maps_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = prepare(tiny_config(tmp_path, "loss=sum", "loss.terms={dice: 1, boundary: 0.01, skeleton_recall: 1}"))
    initial = initial_network(spec)
    scorer = make_scorer(spec, initial)
    task = make_task(scorer, initial.built.sites)
    units = units_of(spec.config, spec.image_set)
    of_targets = epoch_scores(scorer.predictions("val"), task.loss_of, units, "reference")
    assert task.validate()[0] == of_targets

    def again(*_: Any) -> None:
        raise AssertionError("the maps of validation images do not change")

    monkeypatch.setattr("scipy.ndimage.distance_transform_edt", again)
    assert task.validate()[0] == of_targets


@pytest.mark.parametrize("name", WITH_MAPS)
def test_padding_changes_no_map(name: str) -> None:
    masks = torch.from_numpy(blobs(2, 40, 50).astype(np.uint8))
    masks[:, 5:9] = IGNORE
    of_masks = functools.partial(maps_of, map_functions(name, {}), classes=FOREGROUND)
    samples = [Sample(torch.zeros(1, 40, 50), mask, mask) for mask in masks]
    padded = torch.nn.functional.pad(masks, (0, 14, 0, 24), value=IGNORE)
    found = scoring_maps(samples.__getitem__, of_masks)([1, 0], padded)
    assert torch.equal(found[name], of_masks(padded)[name].flip(0))
    assert found[name].any()


@pytest.mark.slow
def test_an_interrupted_run_continues_with_the_same_maps(tmp_path: Path) -> None:
    overrides = (*SUM, "augment=medium", "dataset.number=16")
    whole = tiny_run(tmp_path / "whole", *overrides)
    assert whole.status == "done", whole.reason
    interrupted_run(tmp_path / "other", 2, *overrides)
    assert tables(tiny_run(tmp_path / "other", *overrides).run_dir) == tables(whole.run_dir)
