"""`segexp data check`: bad files are listed, what a run would refuse is said, and a sheet shows what training sees."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny import write_pairs

from segexp import cli
from segexp.config.compose import compose, hydra_session
from segexp.errors import UsageError
from segexp.running import prepare

Captured = pytest.CaptureFixture[str]


def images(root: Path, number: int = 12) -> Path:
    drawn = np.random.default_rng(0)
    masks = [np.pad(np.full((9, 9), 255, np.uint8), ((n, 23 - n), (8, 15))) for n in range(number)]
    write_pairs(root, [(f"{n:02}.png", 60 * (m > 0) + drawn.normal(90, 20, m.shape), m) for n, m in enumerate(masks)])
    return root


def checked(root: Path, *words: str) -> int:
    return cli.main(["data", "check", "folder", f"dataset.root={root}", "dataset.image_size=32", *words])


def as_json(capsys: Captured, root: Path, *words: str) -> tuple[int, dict[str, Any]]:
    capsys.readouterr()
    code = checked(root, "--json", *words)
    content: dict[str, Any] = json.loads(capsys.readouterr().out)
    return code, content


def test_a_usable_set_and_its_sheet(tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    root = images(tmp_path / "my set")
    monkeypatch.chdir(tmp_path)
    assert checked(root) == 0
    told = capsys.readouterr().out
    assert "12 images, 7 train" in told
    assert "my_set-check.png" in told
    with Image.open("my_set-check.png") as sheet:
        assert sheet.width > 1000
        colours = np.array(sheet.convert("RGB")).reshape(-1, 3).astype(int)
    tinted = (colours[:, 0] - colours[:, 2] > 60).mean()  # the orange of class 1 over a grey image
    assert 0.02 < tinted < 0.3
    assert not list(tmp_path.glob("outputs*"))


@pytest.mark.slow
def test_bad_files_are_listed_and_the_others_checked(tmp_path: Path, capsys: Captured) -> None:
    root = images(tmp_path / "data")
    (root / "images" / "03.png").write_bytes(b"no image")
    Image.fromarray(np.zeros((32, 30), np.uint8)).save(root / "masks" / "05.png")
    code, content = as_json(capsys, root)
    assert code == 1
    assert sorted(content["bad"]) == ["03", "05"]
    assert content["data"]["images"] == len(content["images"]) == 10
    assert {one["part"] for one in content["images"]} == {"train", "val", "test"}
    assert sum(one["class_pixels"][1] for one in content["images"]) == 810
    assert not list(tmp_path.glob("*.png")), "no sheet unless asked for"
    assert checked(root, "-o", str(tmp_path / "sheet.png")) == 1
    assert "2 of 12 pairs cannot be used" in capsys.readouterr().out
    assert (tmp_path / "sheet.png").is_file()


def spoil(root: Path, how: str) -> str:
    """One bad pair; returns a word of the line about it."""
    if how == "no mask":
        (root / "masks" / "03.png").unlink()
        return "image 03 has no mask"
    if how == "no image":
        (root / "images" / "03.png").unlink()
        return "mask 03 has no image"
    if how == "link":
        (root / "images" / "03.png").unlink()
        (root / "images" / "03.png").symlink_to("/gone/03.png")
        return "/gone/03.png"
    for folder in ("images", "masks"):
        (root / folder / "03.png").rename(os.fsdecode(os.fsencode(root / folder) + b"/l\xe4sion.png"))
    return "UTF-8"


@pytest.mark.parametrize("how", ["no mask", "no image", "link", "name"])
def test_one_bad_pair_does_not_end_the_check(
    how: str, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segexp.evaluation.pictures.draw_sheet", lambda *words: None)  # which takes seconds
    root = images(tmp_path / "data")
    word = spoil(root, how)
    found = [as_json(capsys, root, *more) for more in (["dataset.limit=0.9"], [])]
    for code, content in found:
        assert code == 1
        assert [word in line for line in content["bad"].values()] == [True]
        assert not content["refused"]
    assert len(found[-1][1]["images"]) == 11
    assert checked(root, "-o", str(tmp_path / "sheet.png")) == 1
    assert word in capsys.readouterr().out
    with hydra_session() as extra:
        config = compose(["dataset=folder", f"dataset.root={root}", "dataset.image_size=32"], extra)
    with pytest.raises(UsageError, match=word):
        prepare(config)


@pytest.mark.parametrize(("row", "word"), [
    ("images/03.png,masks/03.png,", "split"),
    ("images/03.png,masks/gone.png,train", "gone.png"),
    ("images/02.png,masks/03.png,train", "same image id"),
])  # fmt: skip
def test_one_bad_row_does_not_end_the_check(row: str, word: str, tmp_path: Path, capsys: Captured) -> None:
    root = images(tmp_path / "data")
    rows = [f"images/{n:02}.png,masks/{n:02}.png,{'test' if n > 8 else 'train'}" for n in range(12)]
    rows[3] = row
    (root / "manifest.csv").write_text("\n".join(["image,mask,split", *rows]))
    words = [f"dataset.root={root}", "dataset.manifest=manifest.csv", "dataset.image_size=32"]
    assert cli.main(["data", "check", "manifest", *words, "--json"]) == 1
    content = json.loads(capsys.readouterr().out)
    assert list(content["bad"]) == ["line 5"]
    assert word in content["bad"]["line 5"]
    assert len(content["images"]) == 11


def test_every_bad_pair_is_listed_where_there_is_no_other(tmp_path: Path, capsys: Captured) -> None:
    root = images(tmp_path / "data")
    for path in (root / "images").iterdir():
        path.write_bytes(b"")
    code, content = as_json(capsys, root)
    assert code == 2
    assert len(content["bad"]) == 12
    assert "12 of 12" in content["refused"][0]
    assert checked(root) == 2
    assert "11.png" in capsys.readouterr().out
    for path in (root / "masks").iterdir():
        path.unlink()
    code, content = as_json(capsys, root)
    assert (code, content["bad"]) == (2, {})
    assert "masks" in content["refused"][0]


def test_what_a_run_would_refuse_is_said(tmp_path: Path, capsys: Captured) -> None:
    root = images(tmp_path / "data")
    for n in (2, 4):
        deep = np.array(Image.open(root / "images" / f"{n:02}.png")).astype(np.uint16) * 100
        Image.fromarray(deep).save(root / "images" / f"{n:02}.png")
    code, content = as_json(capsys, root)
    assert code == 2
    assert "dataset.normalise" in content["refused"][0]
    assert content["data"]["dtypes"] == {"uint8": 10, "uint16": 2}
    assert as_json(capsys, root, "dataset.normalise=image")[0] == 0
    assert "group" in as_json(capsys, root, "split.leave_one_group_out=true", "split.fold=0")[1]["refused"][-1]
    words = ["dataset.normalise=image", "metrics.unit=case", "dataset.channel_names=[a,b]"]
    code, content = as_json(capsys, root, *words)
    assert code == 2
    assert [reason.split(":")[0] for reason in content["refused"]] == [
        "dataset.channel_names holds 2 names", "metrics.unit=case"
    ]  # fmt: skip
    for path in (root / "images").iterdir():
        path.write_bytes(b"")
    assert checked(root) == 2
    assert "12 of 12 pairs cannot be used" in capsys.readouterr().err


def test_copies_are_named(tmp_path: Path, capsys: Captured) -> None:
    root = images(tmp_path / "data")
    original = np.array(Image.open(root / "images" / "01.png"))
    Image.fromarray(original).save(root / "images" / "08.png")
    Image.fromarray(np.ascontiguousarray(original[::-1]) // 2 + 60).save(root / "images" / "10.png")
    _, content = as_json(capsys, root, "split.source=fractions")
    named = {frozenset((one["image"], one["of"])) for one in content["copies"] if one["identical"]}
    assert named == {frozenset(("01", "08"))}
    for one in content["copies"]:
        assert {one["image"], one["of"]} <= {"01", "08", "10"}


def test_copies_in_val_and_test_are_named(tmp_path: Path, capsys: Captured) -> None:
    root = images(tmp_path / "data")
    Image.fromarray(np.array(Image.open(root / "images" / "08.png"))[:, ::-1].copy()).save(root / "images" / "10.png")
    (root / "splits").mkdir()
    for part, names in (("train", range(8)), ("val", (8, 9)), ("test", (10, 11))):
        (root / "splits" / f"{part}.txt").write_text("".join(f"{n:02}\n" for n in names))
    code, content = as_json(capsys, root)
    assert code == 0
    assert content["copies"] == [{"image": "10", "of": "08", "identical": False}]
    assert any("1 test images look like copies of a val image" in warning for warning in content["warnings"])


@pytest.mark.parametrize("words", [[], ["dataset.root=x"], ["no_such_set"], ["lesions_small", "dataset.number=x"]])
def test_a_data_set_must_be_named(words: list[str], capsys: Captured) -> None:
    assert cli.main(["data", "check", *words]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.slow
def test_every_class_is_on_the_sheet_in_its_colour(tmp_path: Path) -> None:
    words = ["lesions_small", "dataset.num_classes=4", "dataset.class_colors=['#000000','#ff0000','#00ff00','#0000ff']"]
    path = tmp_path / "sheet.png"
    assert cli.main(["data", "check", *words, "augment=none", "-o", str(path)]) == 0
    with Image.open(path) as sheet:
        pixels = np.array(sheet.convert("RGB")).reshape(-1, 3).astype(int)
    for channel in range(3):
        others = pixels[:, [c for c in range(3) if c != channel]].max(axis=1)
        assert (pixels[:, channel] - others > 60).mean() > 0.002, channel


def test_the_sheet_shows_each_part_and_names_the_channel(
    tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[Any] = []
    monkeypatch.setattr("segexp.evaluation.pictures.draw_sheet", lambda path, *words: shown.append((path, *words)))
    drawn = np.random.default_rng(0)
    masks = np.zeros((12, 32, 32), np.uint8)
    masks[:, 8:16, 8:16] = 1
    np.save(tmp_path / "images.npy", drawn.normal(90, 20, (12, 32, 32, 2)).astype(np.uint8))
    np.save(tmp_path / "masks.npy", masks)
    words = [f"dataset.root={tmp_path}", "dataset.images=images.npy", "dataset.masks=masks.npy"]
    words += ["dataset.name=two", "dataset.channels=2", "dataset.channel_names=[T2,ADC]", "dataset.image_size=32"]
    out = tmp_path / "sheet.png"
    out.write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    for where in (["-o", str(out)], [], []):
        assert cli.main(["data", "check", "array", *words, *where]) == 0
        shown[-1][0].write_bytes(b"drawn")
    assert [path.name for path, *_ in shown] == ["sheet.png", "two-check.png", "two-check-2.png"]
    assert capsys.readouterr().out.count("replaced") == 1
    _, rows, _, titles, *_ = shown[0]
    assert titles[0] == "image, channel T2"
    parts = [(title.split("\n")[-1], len(pictures)) for title, pictures in rows]
    assert parts == [*[("train", 4)] * 7, *[("val", 2)] * 2, *[("test", 2)] * 2]
