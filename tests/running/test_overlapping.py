"""Classes that overlap: a mask holds sets of classes, and each class is trained and scored as a binary one."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from messages import mentions
from PIL import Image
from tiny import TINY

from segexp.activations.head import Prediction
from segexp.activations.output import OUTPUT_ACTIVATIONS
from segexp.config import Config
from segexp.config.compose import compose, hydra_session
from segexp.data.codings import innermost
from segexp.errors import UsageError
from segexp.losses import IGNORE, LOSSES, class_masks, fits
from segexp.running import prepare
from segexp.running.execute import execute

SETS = torch.tensor([[[0b00, 0b01, 0b11, 0b10, IGNORE]]])
"""Pixels of no class, of class 1, of both, of class 2, and an ignored one."""

PLANES = torch.tensor([[[0, 1, 1, 0, 0]], [[0, 0, 1, 1, 0]]], dtype=torch.bool)


def test_a_set_of_classes_is_a_plane_for_each() -> None:
    assert torch.equal(class_masks(SETS, range(1, 3), overlapping=True)[0], PLANES)
    assert torch.equal(class_masks(SETS.byte(), range(1, 3), overlapping=True)[0], PLANES)
    assert innermost(SETS.numpy().astype(np.uint8)).tolist() == [[[0, 1, 2, 2, IGNORE]]]


SIGMOID = OUTPUT_ACTIVATIONS["sigmoid"]


@pytest.mark.parametrize("name", [n for n, e in LOSSES.items() if n != "sum" and fits(SIGMOID, e, "independent")])
def test_every_loss_takes_the_sets_as_it_takes_the_planes(name: str) -> None:
    logits = torch.linspace(-2, 3, 10).reshape(1, 2, 1, 5)
    prediction = Prediction("independent", logits, logits, "sigmoid", overlapping=True)
    loss = LOSSES[name].function
    if name in ("lovasz", "mcc", "boundary", "hausdorff_dt", "skeleton_recall", "cl_dice"):  # which take no soft labels
        alone = [Prediction("independent", phi, phi) for phi in logits.split(1, dim=1)]
        targets = [plane.long().where(SETS[0] != IGNORE, IGNORE) for plane in PLANES]
        wanted = sum(loss(one, target[None]).item() for one, target in zip(alone, targets, strict=True)) / 2
    else:
        soft = PLANES.float()[None].clone()
        soft[..., -1] = float("nan")
        wanted = loss(prediction, soft).item()
    assert loss(prediction, SETS).item() == pytest.approx(wanted, rel=1e-6)


def write(root: Path, n: int = 16) -> None:
    """Discs of label 1 that hold a smaller one of label 2; a row of each mask is unlabelled (9)."""
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    y, x = np.mgrid[:32, :32]
    for i in range(n):
        distance = np.hypot(y - 12 - i % 7, x - 14 - i % 5)
        label = (distance < 9).astype(np.uint8) + (distance < 4)
        image = np.random.default_rng(i).normal(60 + 70 * label, 12)
        label[-1] = 9
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(root / "images" / f"a{i:02d}.png")
        Image.fromarray(label).save(root / "masks" / f"a{i:02d}.png")


def overlapping_config(root: Path, outputs: Path, *more: str) -> Config:
    words = [word for word in TINY if not word.startswith("dataset.number")]
    words += ["dataset=folder", f"dataset.root='{root}'", "dataset.mask_coding=index", "dataset.num_classes=3"]
    words += ["dataset.ignore_index=9", "dataset.regions=['1,2','2']", f"outputs='{outputs}'"]
    words += ["dataset.class_names=[background,whole,core]"]
    with hydra_session():
        return compose([*words, *more])


def test_a_run_on_regions_counts_each_class_alone(tmp_path: Path) -> None:
    write(tmp_path / "data")
    config = overlapping_config(tmp_path / "data", tmp_path / "out", "head.mode=independent", "split.seed=1")
    spec = prepare(config)
    masks = [np.array(Image.open(tmp_path / "data" / "masks" / f"{i}.png")) for i in spec.image_set.image_ids]
    wanted = [[(m == 0).sum(), ((m == 1) | (m == 2)).sum(), (m == 2).sum()] for m in masks]
    assert spec.facts.class_pixels_NC.tolist() == wanted
    outcome = execute(spec)
    assert outcome.status == "done", outcome.reason
    with (outcome.run_dir / "images.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "test"]
    of = dict(zip(spec.image_set.image_ids, wanted, strict=True))
    assert {(r["image_id"], int(r["class_id"]), int(r["n_gt"])) for r in rows} == {
        (spec.image_set.image_ids[i], c, of[spec.image_set.image_ids[i]][c]) for i in spec.split["test"] for c in (1, 2)
    }
    reference = next((outcome.run_dir / "examples").glob("*_reference.png"))
    assert set(np.unique(np.array(Image.open(reference)))) == {0, 1, 2, IGNORE}
    assert json.loads((outcome.run_dir / "run.json").read_text())["config"]["dataset.regions"] == ["1,2", "2"]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["head.mode=softmax"], ["dataset.regions", "head.mode=independent"]),
        (["head.mode=independent", "dataset.regions=['1,2']"], ["dataset.regions", "dataset.num_classes=3"]),
        (["head.mode=independent", "dataset.regions=['1,2','b']"], ["dataset.regions", "1,2,3"]),
        (["head.mode=independent", "dataset.background=none"], ["dataset.regions", "dataset.background"]),
        (["head.mode=independent", "activation.prior_bias=auto"], ["activation.prior_bias", "overlap"]),
    ],
)
def test_options_that_do_not_fit_regions_are_refused(tmp_path: Path, more: list[str], words: list[str]) -> None:
    write(tmp_path / "data", 8)
    with pytest.raises(UsageError) as error:
        execute(prepare(overlapping_config(tmp_path / "data", tmp_path / "out", *more)))
    mentions(error.value, *words)
