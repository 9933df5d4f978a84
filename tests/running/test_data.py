"""What runs do with their data: which classes are scored, data that change, groups that were trained on."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny import TINY, tiny_config, tiny_run, write_pairs

from segexp import cli
from segexp.config.compose import compose_job, hydra_session, typed_of
from segexp.errors import REFUSED
from segexp.evaluation.pictures import draw_figures
from segexp.records import NUMERICS, NUMERICS_OF_GROUPS, read_run, read_table, write_json
from segexp.records.tables import load
from segexp.running import RunSpec, build, prepare, scored_classes
from segexp.running.execute import execute
from segexp.sweep import pool


def of_folder(root: Path, *words: str, seed: int = 0) -> list[str]:
    """Twelve small images of four patients, and the words of a run on them."""
    drawn = np.random.default_rng(seed)
    masks = [np.pad(np.full((9, 9), 255, np.uint8), ((n, 23 - n), (8, 15))) for n in range(12)]
    write_pairs(root, [(f"{n:02}.png", 60 * (m > 0) + drawn.normal(90, 20, m.shape), m) for n, m in enumerate(masks)])
    (root / "groups.csv").write_text("stem,patient\n" + "".join(f"{n:02},P{n // 3}\n" for n in range(12)))
    grouped = ("dataset.group_file=groups.csv", "dataset.group_column=patient")
    tiny = [word for word in TINY if not word.startswith("dataset.number")]
    return ["dataset=folder", f"dataset.root={root}", *grouped, *tiny, *words]


def test_every_class_is_scored_where_none_is_background(tmp_path: Path) -> None:
    words = ("dataset.num_classes=3", "dataset.background=none", "loss=ce", "trainer.epochs=1")
    run_dir = tiny_run(tmp_path, *words).run_dir
    images = read_table(run_dir / "images.csv", "images")
    assert sorted(set(images["class_id"])) == [0, 1, 2]
    assert (images.groupby(["split", "image_id"])["n_gt"].sum() == 32 * 32).all()
    assert "every class is scored" in read_run(run_dir)["notes"][0]
    assert any((run_dir / "predictions").glob("*_class0.png"))
    (loaded,) = load([run_dir]).runs
    assert loaded.state == "done"
    assert "class 0 is background" in scored_classes(tiny_config(tmp_path, words[0], words[2]))


def test_classes_of_patients_weigh_alike(tmp_path: Path) -> None:
    """Patients of 1 to 5 images, of which the small ones alone have class 2. Their runs are of other numbers than those
    of an earlier segexp; all others are of the same."""
    root, sizes = tmp_path / "data", (1, 1, 1, 1, 1, 1, 4, 5)
    of = [patient for patient, number in enumerate(sizes) for _ in range(number)]
    masks = [np.pad(np.full((9, 9), 1, np.uint8), ((n, 23 - n), (8, 15))) for n in range(len(of))]
    for mask, patient in zip(masks, of, strict=True):
        mask[:, 20:30] = 2 * (sizes[patient] == 1)
    words = of_folder(root, f"outputs={tmp_path}", "dataset.num_classes=3", "dataset.mask_coding=index", "loss=ce")
    write_pairs(root, [(f"{n:02}.png", 60.0 * m + 20, m) for n, m in enumerate(masks)])
    (root / "groups.csv").write_text("stem,patient\n" + "".join(f"{n:02},P{p}\n" for n, p in enumerate(of)))

    def prepared(words: list[str]) -> RunSpec:
        with hydra_session() as extra:
            return prepare(typed_of(compose_job(words, extra)))

    run_dir = execute(prepared([*words, "split.fractions=[0.4,0.2,0.4]", "trainer.epochs=1"])).run_dir
    images = read_table(run_dir / "images.csv", "images").query("split == 'test' and n_gt > 0")
    per_patient = images.groupby(["class_id", "group_id"])["dice"].mean()
    record = read_run(run_dir)
    assert record["summary"]["dice"] == pytest.approx(per_patient.groupby("class_id").mean().mean(), abs=1e-12)
    assert record["numerics"] == NUMERICS_OF_GROUPS > NUMERICS
    assert prepared([word for word in words if "group" not in word]).numerics == NUMERICS
    assert prepared(of_folder(tmp_path / "two_classes")).numerics == NUMERICS


@pytest.mark.slow
def test_every_class_is_drawn_where_none_is_background(tmp_path: Path) -> None:
    words = ("dataset.num_classes=3", "dataset.background=none", "loss=ce", "trainer.epochs=1")
    run_dir = tiny_run(tmp_path, *words).run_dir
    draw_figures(run_dir)
    assert (run_dir / "samples.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("where", "limit"), [("make_scorer", "1GB"), pytest.param("make_task", "0", marks=pytest.mark.slow)]
)
def test_data_that_change_while_they_are_read_end_the_run(
    where: str, limit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before they are in the store; without a store at any time, here noticed by a process that loads images."""
    root = tmp_path / "data"
    words = of_folder(root, f"outputs={tmp_path}", "trainer.workers=1")
    monkeypatch.setenv("SEGEXP_CACHE_LIMIT", limit)
    monkeypatch.setattr("segexp.data.store.MEMORY", 0)
    kept = {path: path.read_bytes() for path in (root / "masks").iterdir()}

    def edit_first(*args: Any) -> Any:
        for path in kept:
            Image.fromarray(np.zeros((32, 32), np.uint8)).save(path)
        return getattr(build, where)(*args)

    monkeypatch.setattr(f"segexp.running.execute.{where}", edit_first)
    assert cli.main(["train", *words]) == 1
    (run_dir,) = (tmp_path / "default").glob("data-*")
    record = read_run(run_dir)
    assert record["status"] == "failed"
    assert str(root / "masks") in record["error"].split()[0]
    assert not (run_dir / "traceback.txt").exists()
    for path, content in kept.items():
        path.write_bytes(content)
    monkeypatch.setattr(f"segexp.running.execute.{where}", getattr(build, where))
    assert cli.main(["train", *words]) == 0
    assert read_run(run_dir)["attempts"] == 2


@pytest.mark.slow
def test_data_that_change_later_do_not_change_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It reads what it has stored; the next start says what changed, and makes another run."""
    root = tmp_path / "data"
    words = of_folder(root, f"outputs={tmp_path}", "trainer.epochs=1")

    def edit_first(*args: Any) -> Any:
        for path in (root / "images").iterdir():
            Image.fromarray(np.full((32, 32), 7, np.uint8)).save(path)
        return build.make_task(*args)

    monkeypatch.setattr("segexp.running.execute.make_task", edit_first)
    assert cli.main(["train", *words]) == 0
    (run_dir,) = (tmp_path / "default").glob("data-*")
    assert read_run(run_dir)["status"] == "done"
    (example, *_) = (path for path in (run_dir / "examples").iterdir() if "reference" not in path.name)
    assert np.ptp(np.array(Image.open(example))) > 50, "the image that was scored"
    capsys.readouterr()
    monkeypatch.setattr("segexp.running.execute.make_task", build.make_task)
    assert cli.main(["train", *words]) == 0
    assert "12 of 12" in capsys.readouterr().err
    assert len(list((tmp_path / "default").glob("data-*"))) == 2


def test_a_sweep_runs_only_what_it_planned(tmp_path: Path) -> None:
    said: list[str] = []
    payload = {"config": dataclasses.asdict(tiny_config(tmp_path)), "run_id": "of other data"}
    assert pool.run(payload, lambda **facts: said.append(facts["reason"])) == REFUSED
    assert "changed" in said[0]
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_groups_and_copies_that_were_trained_on_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", *of_folder(tmp_path / "data", f"outputs={tmp_path}", "trainer.epochs=1")]) == 0
    (run_dir,) = (tmp_path / "default").glob("data-*")
    rows = read_table(run_dir / "split.csv", "split")
    seen = sorted(set(rows.loc[rows["split"] != "test", "group_id"]))

    def evaluated(*words: str) -> str:
        capsys.readouterr()
        assert cli.main(["evaluate", str(run_dir), "--dataset", "folder", "--split", "all", *words]) == 0
        return capsys.readouterr().out

    new = of_folder(tmp_path / "new", seed=1)[1:4]
    told = evaluated(*new)
    assert f"of the same name: {', '.join(seen)}" in told
    assert "look like copies" not in told
    known = rows.loc[rows["split"] == "val", "image_id"].iloc[0]
    pixels = np.array(Image.open(tmp_path / "data" / "images" / f"{known}.png"))
    Image.fromarray(np.ascontiguousarray(pixels[:, ::-1]) // 2 + 40).save(tmp_path / "new" / "images" / "05.png")
    copied = f"1 of the 12 images to score look like copies of train or val images of the run (first: 05, of {known})"
    assert copied in evaluated(*new)
    # An earlier segexp recorded no hash by which copies are recognised.
    table = run_dir / "split.csv"
    cut = ["".join(line.rpartition(",")[:1]) for line in table.read_text().splitlines()]
    table.write_text("\n".join([*cut, ""]))
    record = read_run(run_dir)
    record["sha256"]["split"] = hashlib.sha256(table.read_bytes()).hexdigest()
    write_json(run_dir / "run.json", record)
    Image.fromarray(np.ascontiguousarray(pixels[::-1]) // 2 + 40).save(tmp_path / "new" / "images" / "05.png")
    assert "look like copies" not in evaluated(*new)


@pytest.mark.slow
def test_other_data_have_the_scale_of_the_runs_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """8 bits are evaluated on 8 bits, but for rules that give all depths one scale; names are compared."""
    names = ("dataset.class_names=[tissue,cell]", "dataset.channel_names=[red]")
    words = of_folder(tmp_path / "data", f"outputs={tmp_path}", "trainer.epochs=1", *names)
    assert cli.main(["train", *words]) == 0
    assert cli.main(["train", *words, "dataset.normalise=image", "study.name=by_image"]) == 0
    (run_dir,), (by_image,) = (tmp_path.glob(f"{study}/data-*") for study in ("default", "by_image"))
    root = tmp_path / "new"
    new = of_folder(root, seed=1)[1:2]
    for path in (root / "images").iterdir():
        Image.fromarray(np.array(Image.open(path)).astype(np.uint16) * 257).save(path)

    def evaluated(run: Path, *more: str) -> tuple[int, str]:
        capsys.readouterr()
        code = cli.main(["evaluate", str(run), "--dataset", "folder", "--split", "all", *new, *more])
        return code, "".join(capsys.readouterr())

    code, told = evaluated(run_dir)
    assert code == 2
    assert "has images of uint16, the run's had uint8" in told
    assert "dataset.normalise=full_range" in told
    code, told = evaluated(run_dir, "dataset.normalise=full_range")
    assert (code, "matched by their order" in told) == (0, False)
    code, told = evaluated(run_dir, "dataset.normalise=image")
    assert code == 2
    assert "scaled as the run's were, by train" in told
    code, told = evaluated(by_image, "dataset.class_names=[cell,tissue]", "dataset.channel_names=[infrared]")
    assert code == 0
    assert "warning: dataset.class_names is cell, tissue, the run's is tissue, cell" in told
    assert "warning: dataset.channel_names is infrared, the run's is red" in told
    record = read_run(run_dir)
    del record["data"]  # of an earlier segexp, which read 8 and 16 bits only
    write_json(run_dir / "run.json", record)
    assert evaluated(run_dir, "dataset.normalise=train")[0] == 0
