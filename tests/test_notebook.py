"""Studies in a notebook: typed frames, and comparisons that display themselves with the numbers of the command line."""

import inspect
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from fabricated import row
from made_scores import edit_record, make_pair, only

import segexp
from segexp import notebook
from segexp.compare import verdict
from segexp.errors import UsageError
from segexp.notebook import StudyFrames
from segexp.records import write_table
from segexp.records.collected import collect

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("notebook") / "study"
    make_pair(path, n_seeds=3, n_images=60, effect=0.03)
    rows = [row("epochs", epoch=e, split=split, dice=0.1 * e) for e in (1, 2) for split in ("train", "val")]
    for run in path.iterdir():
        write_table(run / "epochs.csv", "epochs", rows)
    edit_record(path / "run-arctan2", status="failed")
    collect(path, path.parent / "tables")
    return path


@pytest.fixture(scope="module")
def frames(study: Path) -> StudyFrames:
    return segexp.load_study(study)


def test_a_study_is_three_typed_frames(study: Path, frames: StudyFrames):
    assert frames.runs.groupby(["arm", "status"]).size().to_dict() == {
        ("arctan", "done"): 2, ("arctan", "failed"): 1, ("sigmoid", "done"): 3,
    }  # fmt: skip
    kinds = {name: str(kind) for name, kind in frames.runs.dtypes.items()}
    assert (kinds["seed"], kinds["dice"], kinds["config_trainer_epochs"]) == ("Int64", "float64", "Int64")
    assert {type(name) for name in (*frames.runs["run_id"], *frames.images["image_id"])} == {str}
    assert (len(frames.images), frames.images["tp"].dtype) == (5 * 60, np.dtype("int64"))
    own = verdict.compare([study], metric="dice")
    means = frames.images.groupby("arm")["dice"].mean()
    assert means.to_dict() == pytest.approx({arm.arm: arm.mean for arm in own.blocks[0].ranking})
    assert frames.epochs.columns[:4].tolist() == ["run_id", "arm", "epoch", "split"]
    assert len(frames.epochs) == 5 * 4  # those of finished runs
    for part in ("study", "6 runs", "60 images", "failed"):
        assert part in frames._repr_html_()


def test_collected_tables_are_the_same_frames_without_epochs(study: Path, frames: StudyFrames):
    again = segexp.load_study([study.parent / "tables"])
    pd.testing.assert_frame_equal(again.images, frames.images)
    shared = [name for name in frames.runs if name in again.runs]
    pd.testing.assert_frame_equal(again.runs[shared], frames.runs[shared], check_dtype=False)
    assert (len(again.epochs), [*again.epochs]) == (0, [*frames.epochs])


def test_a_comparison_has_the_numbers_of_the_command_line(study: Path, frames: StudyFrames):
    expected = only(verdict.compare([study]))
    for source in (study, str(study), [study], frames):
        found = segexp.compare(source, rope=1)
        table = found.to_frame()
        assert (table["candidate"].tolist(), found.verdict) == (["arctan"], expected.verdict)
        assert table.loc[0, "mean"] == expected.deciding.mean
        assert str(table["p_holm"].dtype) == "float64"
        assert found.verdict == table.loc[0, "verdict"]
    assert found.headline in found._repr_html_()
    package = sys.modules["segexp.compare"]
    assert package(study).verdict == expected.verdict  # type: ignore[operator]
    assert inspect.signature(package) == inspect.signature(notebook.compare)  # type: ignore[arg-type]
    assert any("failed" in warning for warning in found.warnings)


def test_options_are_one_text_or_a_list(study: Path, frames: StudyFrames):
    expected = segexp.compare(study, metric=["dice", "iou"], by=["activation"], class_="1").to_frame()
    where: dict[str, Any] = {"seed": [0, 1, 2], "activation": "arctan,sigmoid"}
    found = segexp.compare(frames, metric="dice, iou", by="activation", class_=1, where=where)
    pd.testing.assert_frame_equal(found.to_frame(), expected)
    with pytest.raises(UsageError, match="no block 1"):
        found.plot_forest(1)
    for wrong in ({"paired": True}, {"columns": "arm=activation"}, {"split": "val"}):
        with pytest.raises(UsageError, match="to load_study"):
            segexp.compare(frames, **wrong)


def test_images_of_a_study_are_a_table_that_can_be_compared_again(frames: StudyFrames):
    own, again = segexp.compare(frames), segexp.compare(frames.images, paired=True, reference="arm=sigmoid")
    names = ["candidate", "mean", "low", "high", "p", "n_seeds", "n_images"]
    pd.testing.assert_frame_equal(again.to_frame()[names], own.to_frame()[names])
    twice = pd.concat([frames.images, frames.images[["dice"]]], axis=1)
    with pytest.raises(UsageError, match="the column dice more than once"):
        segexp.compare(twice)


def long_frame(**arms: float) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    rows = [(arm, seed, f"c{i}", 0.7 + by + 0.01 * rng.standard_normal())
            for arm, by in arms.items() for seed in range(4) for i in range(60)]  # fmt: skip
    return pd.DataFrame(rows, columns=["model", "seed", "case", "DSC"])


def test_a_data_frame_is_read_like_the_table_that_it_would_be(tmp_path: Path):
    frame = long_frame(unet=0.0, segformer=0.05)
    frame.to_csv(tmp_path / "t.csv", index=False)
    columns = {"arm": ["model"], "image": "case", "dice": "DSC"}
    how: dict[str, Any] = {"reference": "model=unet", "columns": columns, "paired": True}
    one, other = (only(segexp.compare(source, **how).result) for source in (frame, tmp_path / "t.csv"))
    plain = [replace(found, candidate_N=None, reference_N=None) for found in (one, other)]
    assert repr(plain[0]) == repr(plain[1])
    assert one.verdict == "better"
    frame.loc[7, "DSC"] = 87.0
    with pytest.raises(UsageError, match=r"DataFrame, row 7: dice is not between 0 and 1"):
        segexp.compare(frame, **how)
    loaded = segexp.load_study(tmp_path / "t.csv", columns=columns)
    assert loaded.images.groupby("arm").size().to_dict() == {"segformer": 240, "unet": 240}
    assert "tp" not in loaded.images


def test_a_result_draws_and_escapes_itself():
    names = {"<script>alert(1)</script>": 0.0, "b & c": 0.05, "d": 0.0}
    frame = long_frame(**names).rename(columns={"DSC": "DS<C"})
    found = segexp.compare(frame, columns="arm=model,image=case,dice=DS<C", reference="model=d")
    text = found._repr_html_()
    assert "dice=DS&lt;C" in text  # how it was read, among the warnings
    assert "<script>" not in text
    assert "b &amp; c" in text
    (axis,) = found.plot_forest().axes
    assert len(axis.texts) >= 2
    with pytest.raises(UsageError, match="to_frame"):
        found.verdict  # noqa: B018
    untested = segexp.compare(long_frame(a=0.0, b=0.1).query("seed == 0"), columns="arm=model,image=case,dice=DSC",
                              reference="model=a")  # fmt: skip
    assert untested.verdict == "no test"
    with pytest.raises(UsageError, match="no forest plot"):
        untested.plot_forest()


@pytest.mark.slow
def test_the_package_is_called_before_and_after_it_is_imported_and_needs_no_torch(study: Path):
    lines = [
        f"import sys, segexp; first = segexp.compare({str(study)!r}).verdict",
        "import segexp.compare.statistics as statistics; assert segexp.compare.statistics is statistics",
        f"print(first, segexp.compare({str(study)!r}).verdict, 'torch' in sys.modules)",
    ]
    seen = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True)
    assert seen.stdout == "no test no test False\n"


@pytest.mark.slow
def test_the_notebook_of_the_docs_runs_and_holds_no_path(monkeypatch: pytest.MonkeyPatch):
    for name in ("nbclient", "nbformat", "ipykernel"):
        pytest.importorskip(name)
    monkeypatch.syspath_prepend(str(REPOSITORY / "scripts"))
    import notebook as script

    stored = json.loads(script.PAGE.read_text())
    again = script.executed()
    shapes = []
    for cells in (stored["cells"], again["cells"]):
        of_outputs = [[(o["output_type"], sorted(o.get("data", ()))) for o in c.get("outputs", ())] for c in cells]
        shapes.append((["".join(cell["source"]) for cell in cells], of_outputs))
    assert shapes[0] == shapes[1]
    assert "error" not in {kind for of_cell in shapes[0][1] for kind, _ in of_cell}
    text = script.PAGE.read_text()
    assert len(text) < 300_000
    assert not re.search(r"/(tmp|home|root|Users|var)/|" + re.escape(str(Path.cwd())), text)
