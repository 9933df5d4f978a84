"""Which images are shown, what of them, and what is never opened."""

import base64
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fabricated import record_of, row
from made_up_result import NAN, make_arm, make_pictures, save
from matplotlib.colors import to_rgb
from messages import mentions
from PIL import Image

from segexp.compare.result import ArmScore
from segexp.evaluation import EmptyPolicy
from segexp.records import write_table
from segexp.records.formatting import CLASS_COLOURS
from segexp.report.samples import ERRORS, LEVELS, MAX_ARMS, SIDE, samples_of

DICE = {"sigmoid": {"a": 0.2, "b": 0.5, "c": 0.6, "d": 0.9}, "arctan": {"a": 0.3, "b": 0.8, "c": 0.65, "d": 0.95}}


def make_arms(folder: Path, classes: int = 1, side: int = 48) -> list[ArmScore]:
    arms = []
    for arm, dice in DICE.items():
        make_pictures(folder / arm, dice, classes, side)
        arms.append(make_arm(arm, 0.5, 2, [str(folder / arm), str(folder / arm)]))
    return arms


def pixels(uri: str) -> np.ndarray:
    """(H, W, 4): red, green, blue and opacity."""
    picture = Image.open(io.BytesIO(base64.b64decode(uri.partition("base64,")[2])))
    return np.asarray(picture.convert("RGBA")).astype(int)


def count(uri: str, colour: str) -> int:
    """Opaque pixels of a colour."""
    wanted = [round(255 * part) for part in to_rgb(colour)]
    return int((pixels(uri) == [*wanted, 255]).all(axis=2).sum())


def test_worst_median_best_and_largest_disagreement(tmp_path: Path) -> None:
    found = samples_of(make_arms(tmp_path), "sigmoid")
    # Means .25 .65 .625 .925; spreads .1 .3 .05 .05.
    assert [(s.title, s.image_id) for s in found.samples] == [
        ("worst", "a"),
        ("median", "c"),
        ("best", "d"),
        ("largest disagreement", "b"),
    ]
    assert [(tile.arm, tile.dice) for tile in found.samples[3].tiles] == [("sigmoid", 0.5), ("arctan", 0.8)]
    assert found.seed == "0"
    assert "4 test images" in found.note


@pytest.mark.parametrize(("side", "shown"), [(48, 48), (300, 300), pytest.param(900, SIDE, marks=pytest.mark.slow)])
def test_layers_have_the_size_of_the_image_and_show_map_and_outline(tmp_path: Path, side: int, shown: int) -> None:
    best = samples_of(make_arms(tmp_path, side=side)).samples[2]
    assert (best.width, best.height) == (shown, shown)
    prediction = pixels(best.tiles[1].prediction)
    assert prediction.shape == pixels(best.image).shape == pixels(best.tiles[1].errors).shape == (shown, shown, 4)
    disc = np.pi * (shown / 4) ** 2
    assert 0.6 < (prediction[..., 3] == 255).sum() / disc < 1
    assert (prediction[..., 3] == 0).sum() > 0.7 * shown**2
    assert len(np.unique(prediction[..., 3])) <= LEVELS
    assert count(best.tiles[1].prediction, CLASS_COLOURS[0]) == (prediction[..., 3] == 255).sum()
    assert max(map(len, (best.outline, best.tiles[1].prediction, best.tiles[1].errors))) < 12_000
    assert 1 < count(best.outline, CLASS_COLOURS[0]) / len(pixels(best.outline)) < 4


def test_errors_are_counted_like_the_scores(tmp_path: Path) -> None:
    """A row of pixels for each kind of error; 255 is not labelled."""
    make_pictures(tmp_path, {"a": 0.9}, classes=2, side=6)
    truth = np.array([1, 2, 0, 1, 1, 255])[:, None].repeat(6, axis=1)
    first, second = np.array([200, 20, 160, 40, 30, 255]), np.array([10, 130, 10, 50, 170, 0])
    save(tmp_path / "examples" / "a_reference.png", truth)
    for c, plane in enumerate((first, second), start=1):
        save(tmp_path / "predictions" / f"a_class{c}.png", plane[:, None].repeat(6, axis=1))
    arm = make_arm("a", 0.9, 1, [str(tmp_path)])
    (tile,) = samples_of([arm]).samples[0].tiles
    rows = {"correct": 12, "false positive": 6, "false negative": 6, "wrong class": 6}
    assert {what: count(tile.errors, colour) for what, colour in ERRORS.items()} == rows
    assert (pixels(tile.errors)[5] == 0).all()
    # 110 of 255 is the most probable class beside 100 and a background of 45, but below one half.
    save(tmp_path / "predictions" / "a_class1.png", np.full((6, 6), 110))
    save(tmp_path / "predictions" / "a_class2.png", np.full((6, 6), 100))
    for mode, correct in (("softmax", 18), ("independent", 0)):
        described(tmp_path, **{"head.mode": mode})
        (tile,) = samples_of([arm]).samples[0].tiles
        assert count(tile.errors, ERRORS["correct"]) == correct


def described(run_dir: Path, **config: object) -> None:
    """A record beside the pictures of a run."""
    (run_dir / "run.json").write_text(json.dumps(record_of("00000000", "done", {f"{k}": v for k, v in config.items()})))


def test_classes_have_the_names_and_colours_of_the_run(tmp_path: Path) -> None:
    make_pictures(tmp_path, {"a": 0.9}, classes=2)
    (arm,) = (make_arm("a", 0.9, 1, [str(tmp_path)]),)
    assert samples_of([arm]).classes == (("class 1", CLASS_COLOURS[0]), ("class 2", CLASS_COLOURS[1]))
    colors = {"dataset.class_names": ["none", "a<b>", "c, d"], "dataset.class_colors": ["#000000", "#00ff00", '"/><x>']}
    described(tmp_path, **colors)
    found = samples_of([arm])
    assert found.classes == (("a<b>", "#00ff00"), ("c, d", CLASS_COLOURS[1]))  # what is no colour is not taken
    assert count(found.samples[0].tiles[0].prediction, "#00ff00") > 100


def test_outlines_are_in_the_colours_of_the_classes(tmp_path: Path) -> None:
    """Also that of a single class, which has its name."""
    truth = np.zeros((48, 48))
    truth[8:40, 8:24], truth[8:40, 24:40] = 1, 2
    for classes in (1, 2):
        run = tmp_path / str(classes)
        make_pictures(run, {"a": 0.9}, classes)
        save(run / "examples" / "a.png", np.zeros((48, 48)))
        save(run / "examples" / "a_reference.png", np.minimum(truth, classes))
        colors = ["#000000", "#ff0000", "#00ff00"]
        described(run, **{"dataset.class_names": ["none", "tumour", "cyst"], "dataset.class_colors": colors})
        found = samples_of([make_arm("a", 0.9, 1, [str(run)])])
        assert found.classes == (("tumour", "#ff0000"), ("cyst", "#00ff00"))[:classes]
        outline = found.samples[0].outline
        assert count(outline, "#ff0000") > 200
        assert (count(outline, "#00ff00") > 200) == (classes == 2)


def test_volumes_are_shown_once_each(tmp_path: Path) -> None:
    dice = {"p_1": 0.2, "p_2": 0.5, "p_3": 0.9}
    make_pictures(tmp_path, {f"{case}_z{k:03}": 0.9 for case in dice for k in range(3)})
    rows = [row("images", split="test", image_id=case, dice=value) for case, value in dice.items()]
    write_table(tmp_path / "images.csv", "images", rows)
    described(tmp_path, **{"metrics.unit": "case"})
    found = samples_of([make_arm("a", 0.9, 1, [str(tmp_path)])])
    shown = [(s.title, s.image_id.partition("_z")[0], s.tiles[0].dice) for s in found.samples]
    assert shown == [("worst", "p_1", 0.2), ("median", "p_2", 0.5), ("best", "p_3", 0.9)]
    assert "3 test volumes" in found.note


def test_a_slice_has_the_dice_of_its_volume(tmp_path: Path) -> None:
    make_pictures(tmp_path, {"p_1_z003": 0.9})
    write_table(tmp_path / "images.csv", "images", [row("images", split="test", image_id="p_1", dice=0.25)])
    arm = make_arm("a", 0.9, 1, [str(tmp_path)])
    assert samples_of([arm]).samples == ()
    described(tmp_path, **{"metrics.unit": "case"})
    found = samples_of([arm])
    assert (found.samples[0].image_id, found.samples[0].tiles[0].dice) == ("p_1_z003", 0.25)
    assert "volume" in found.note


def test_the_seed_that_all_arms_have(tmp_path: Path) -> None:
    arms = make_arms(tmp_path)
    other = ArmScore(**{**vars(arms[1]), "seeds": {"1": 0.5, "2": 0.5}})
    assert samples_of([arms[0], other]).seed == "1"
    none = ArmScore(**{**vars(arms[1]), "seeds": {"7": 0.5}, "directories": other.directories[:1]})
    assert mentions(samples_of([arms[0], none]).note, "no seed", "common")


def test_reference_and_best_arms_where_there_are_many(tmp_path: Path) -> None:
    arms = []
    for n in range(MAX_ARMS + 4):
        make_pictures(tmp_path / str(n), {"a": 0.5})
        arms.append(make_arm(str(n), 0.9 - 0.01 * n, 1, [str(tmp_path / str(n))]))
    found = samples_of(arms, "11")
    assert [tile.arm for tile in found.samples[0].tiles] == ["11", *map(str, range(MAX_ARMS - 1))]
    assert "4 arms" in found.note


@pytest.mark.parametrize(("damage", "named"), [
    (lambda run: shutil.rmtree(run / "predictions"), "none of arctan"),
    (lambda run: shutil.rmtree(run / "examples"), "none of arctan"),
    (lambda run: (run / "images.csv").unlink(), "images.csv is missing"),
    (lambda run: (run / "images.csv").write_text("a,b\n1,2\n"), "images.csv"),
    (lambda run: (run / "images.csv").symlink_to((run / "images.csv").rename(run.parent / "x")), "symbolic link"),
])  # fmt: skip
def test_the_note_names_what_is_missing(tmp_path: Path, damage: Callable[[Path], object], named: str) -> None:
    arms = make_arms(tmp_path)
    damage(tmp_path / "arctan")
    found = samples_of(arms)
    assert (found.samples, named in found.note) == ((), True)


def test_no_directories_and_another_split(tmp_path: Path) -> None:
    assert "without run directories" in samples_of([make_arm("a", 0.5)]).note
    assert samples_of([]).samples == ()
    unfinished = make_arm("later", NAN, 0)
    assert mentions(samples_of([unfinished]).note, "No run", "done")
    assert len(samples_of([*make_arms(tmp_path), unfinished]).samples) == 4
    assert "about val" in samples_of(make_arms(tmp_path), split="val").note


def test_links_out_of_a_run_are_not_followed(tmp_path: Path) -> None:
    arms = make_arms(tmp_path / "runs")
    save(tmp_path / "secret.png", np.full((48, 48), 77))
    for run in ("sigmoid", "arctan"):
        for image_id in ("a", "d"):
            path = tmp_path / "runs" / run / "predictions" / f"{image_id}.png"
            path.unlink()
            path.symlink_to(tmp_path / "secret.png")
    assert {sample.image_id for sample in samples_of(arms).samples} == {"b", "c"}
    shutil.move(tmp_path / "runs" / "arctan" / "predictions", tmp_path / "elsewhere")
    (tmp_path / "runs" / "arctan" / "predictions").symlink_to(tmp_path / "elsewhere")
    assert samples_of(arms).samples == ()


@pytest.mark.parametrize(
    ("policy", "shown"),
    [("reference", {"both": 0.6, "one": 0.9}), ("both_empty_one", {"both": 0.6, "one": 0.45, "none": 0.5})],
)
def test_the_reference_decides_what_enters_the_dice_of_an_image(
    tmp_path: Path, policy: EmptyPolicy, shown: dict[str, float]
) -> None:
    """Two classes each: both held, one held with a false alarm beside it, none held with one false alarm."""
    make_pictures(tmp_path, dict.fromkeys(("both", "one", "none"), 0.5), classes=2)
    cells = {"both": ((5, 0.4), (5, 0.8)), "one": ((5, 0.9), (0, 0.0)), "none": ((0, 0.0), (0, NAN))}
    rows = [
        row("images", split="test", image_id=image_id, class_id=c + 1, n_gt=n_gt, dice=dice)
        for image_id, of_classes in cells.items()
        for c, (n_gt, dice) in enumerate(of_classes)
    ]
    write_table(tmp_path / "images.csv", "images", rows)
    found = samples_of([make_arm("a", 0.5, 1, [str(tmp_path)])], policy=policy)
    dice = {sample.image_id: sample.tiles[0].dice for sample in found.samples}
    assert dice == pytest.approx({name: shown[name] for name in dice})
    assert f"{len(shown)} test image" in found.note


def test_what_is_no_picture_or_too_large_is_named_and_the_others_are_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arms = make_arms(tmp_path)
    (tmp_path / "arctan" / "predictions" / "a.png").write_bytes(b"GIF89a, or so it says")
    save(tmp_path / "arctan" / "predictions" / "d.png", np.zeros((48, 96)))
    found = samples_of(arms)
    assert {sample.image_id for sample in found.samples} == {"b", "c"}
    assert all(f"{name} cannot be shown" in found.note for name in "ad")
    monkeypatch.setattr("segexp.report.samples.MAX_PIXELS", 48 * 48 - 1)
    found = samples_of(arms)
    assert (found.samples, "48 x 48" in found.note) == ((), True)
