"""The record of what was found in a data set, and the lines that show it."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from messages import mentions
from tiny import TINY, tiny_run

from segexp import cli
from segexp.config.compose import compose_job, hydra_session, typed_of
from segexp.data.check import check_pairs
from segexp.data.description import data_lines, describe
from segexp.data.image_set import ImageSet, Pair, Source
from segexp.records import read_run

SPLIT = {"train": [0, 1], "val": [2], "test": [3]}


@pytest.fixture(scope="module")
def images() -> ImageSet:
    """Four images of 64 x 64, the last 64 x 80, with two objects of class 1 and one of class 2."""
    drawn = np.random.default_rng(0)
    mask = np.zeros((64, 64), np.uint8)
    mask[10:20, 10:20], mask[31, 31], mask[40:60, 40:56] = 1, 1, 2

    def read(index: int) -> Pair:
        wide = np.pad(mask, ((0, 0), (0, 16 * (index == 3))))
        pixels = drawn.integers(0, 255, (*wide.shape, 1), dtype=np.uint8)
        photo = Source("JPEG, L, 8 bit", orientation=3 if index == 1 else 1)
        return Pair(pixels, wide, images=(photo,), masks=(Source("PNG, P, 8 bit", 1, {"0": 3000, "7": 1000}),))

    names, groups = ("a", "b", "c", "d"), ("P1", "P1", "P2", "P3")
    unused = {"x.txt": "other ending", "y.txt": "other ending", "z.png": "no mask"}
    return ImageSet(names, groups, 1, 3, read, lambda i: [b""], location="/here", unused=unused)


def record_of(images: ImageSet, *words: str) -> dict[str, Any]:
    with hydra_session() as extra:
        config = typed_of(compose_job([*TINY, "dataset.num_classes=3", *words], extra)).dataset
    return describe(images, check_pairs(images, side=16), config, SPLIT)


def test_the_record_counts_files_values_pixels_and_objects(images: ImageSet) -> None:
    record = record_of(images, "dataset.class_names=[tissue,cell,vessel]")
    assert record == json.loads(json.dumps(record)), "plain types"
    assert (record["images"], record["groups"], record["cases"]) == (4, 3, 0)
    assert record["sizes"] == {"64x64": 3, "80x64": 1}
    assert (record["image_kinds"], record["mask_kinds"]) == ({"JPEG, L, 8 bit": 4}, {"PNG, P, 8 bit": 4})
    assert record["orientations"] == {"images": {"3": 1}, "masks": {}}
    assert record["mask_values"] == {"0": 0.75, "7": 0.25}
    assert record["class_shares"]["val"] == pytest.approx([(4096 - 421) / 4096, 101 / 4096, 320 / 4096])
    assert record["class_shares"]["test"][2] == pytest.approx(320 / (64 * 80))
    assert (record["objects"], record["objects_gone"]) == ([0, 8, 4], [0, 4, 0])
    assert record["unused"]["other ending"] == {"files": 2, "first": "x.txt"}
    lines = data_lines(record)
    assert len(lines) <= 12
    for part in ("4 images, 2 train", "3 groups", "64x64 (3), 80x64 (1)", "JPEG", "7 (25 %)", "images 3 (1)",
                 "class 1 (cell): 2.47 % train", "4 of 8 objects vanish", "2 files, other ending"):  # fmt: skip
        assert part in "\n".join(lines), part


def test_a_long_list_is_cut(images: ImageSet) -> None:
    record = record_of(images)
    facts = check_pairs(images)
    many = dataclasses.replace(
        facts, mask_values={str(value): 1 for value in range(100)}, image_kinds_N=tuple("abcdefghijkl")
    )
    with hydra_session() as extra:
        config = typed_of(compose_job([*TINY, "dataset.num_classes=3"], extra)).dataset
    record = describe(images, many, config, SPLIT)
    assert record["image_kinds"]["others"] == 4
    assert len(record["mask_values"]) == 17
    assert sum(record["mask_values"].values()) == pytest.approx(1)
    many_classes = record | {"objects": [0] * 30, "objects_gone": [0] * 30}
    many_classes["class_shares"] = {"train": [c % 29 / 30 for c in range(30)]}
    lines = data_lines(many_classes)
    assert len(lines) < 18
    shown = [line.partition(":")[0] for line in lines if line.startswith(("class", "and"))]
    classes = [f"class {c}" for c in (28, 27, 26, 25, 3, 2, 1, 29)]
    assert shown == [*classes[:4], "and 21 more; the rarest", *classes[4:]]


def test_class_0_counts_where_it_is_no_background(images: ImageSet) -> None:
    names = "dataset.class_names=[tissue,cell,vessel]"
    record = record_of(images, names, "dataset.background=none", "loss=ce")
    assert "class 0 (tissue): 89.7 % train" in "\n".join(data_lines(record))
    mask = np.zeros((64, 64), np.uint8)
    blank = dataclasses.replace(images, read=lambda i: Pair(mask[..., np.newaxis], mask))
    assert record_of(blank, "dataset.background=none", "loss=ce")["empty_masks"] == 0
    assert record_of(blank)["empty_masks"] == 4
    del record["first_class"]  # of an earlier segexp
    assert "class 0" not in "\n".join(data_lines(record))


def test_a_run_records_logs_and_shows_what_was_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = tiny_run(tmp_path, "trainer.epochs=1").run_dir
    record = read_run(run_dir)
    lines = data_lines(record["data"])
    assert lines[0].startswith("24 images, ")
    log = (run_dir / "log.txt").read_text(encoding="utf-8")
    assert all(log.count(f"data: {line}") == 1 for line in lines)
    assert cli.main(["show", str(run_dir)]) == 0
    shown = capsys.readouterr().out
    assert lines[1] in shown
    del record["data"]  # of an earlier segexp
    (run_dir / "run.json").write_text(json.dumps(record))
    assert cli.main(["show", str(run_dir)]) == 0
    assert lines[1] not in capsys.readouterr().out


def test_spacing_and_normalisation_are_said_where_they_are_not_the_default(images: ImageSet) -> None:
    said = ("spacing", "normalise")
    assert not [line for line in data_lines(record_of(images)) if line.startswith(said)]
    volume = (5.0, 0.75, 0.5)
    known = dataclasses.replace(images, spacings=(volume, volume, volume, (0.0, 1 / 3, 1 / 3)))
    spacing, normalise = (
        line for line in data_lines(record_of(known, "dataset.normalise=image")) if line.startswith(said)
    )
    assert mentions(spacing, "mm", "5x0.75x0.5 (3)", "0.3333x0.3333 (1)")
    assert mentions(normalise, "image")
    given = data_lines(record_of(known, "dataset.spacing=[2,3]"))
    assert mentions(next(line for line in given if line.startswith("spacing")), "2x3")
