"""`segexp diff`: what two runs are to each other, and everything that differs between them."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from fabricated import images_of, make_run
from messages import mentions, one_mentions

from segexp import cli
from segexp.commands.diff import TABLES, as_text, diff

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def a(tmp_path: Path) -> Path:
    return make_run(tmp_path / "a", "0000000a")


def keys(found: dict[str, Any], part: str) -> list[str]:
    return [entry["key"] for entry in found[part]]


def test_a_run_and_its_copy_from_another_machine(a: Path, tmp_path: Path) -> None:
    b = make_run(
        tmp_path / "b", "0000000a", host="elsewhere", config={"outputs": "/else"}, device={"type": "cuda", "threads": 4}
    )
    found = diff(a, b)
    assert found["verdict"].startswith("the same run")
    assert found["paired"] is True
    assert found["config"] == [{"key": "outputs", "a": "/somewhere", "b": "/else", "volatile": True}]
    assert keys(found, "machine") == ["host", "type", "name", "threads", "memory_format", "precision"]
    assert found["machine"][2] == {"key": "name", "a": "some CPU"}
    # The tables made up here need no bins, thresholds and diagnostics.
    assert {found["tables"][t] for t in ("summary", "epochs", "images", "split")} == {"same"}
    assert found["summary"] == []
    assert found["images"].pop("splits") == {"test": {"compared": 3, "differ": 0}}
    assert found["images"] == {"compared": 3, "differ": 0, "max_difference": None, "only_a": 0, "only_b": 0}
    assert found["split"] == {"moved": 0, "only_a": 0, "only_b": 0}
    # The same pretrained weights, by their content, lie elsewhere: no key makes it another run.
    found = diff(a, make_run(tmp_path / "c", "0000000a", config={"backbone.weights": "/else/weights.pt"}))
    assert found["verdict"].startswith("the same run")
    assert [entry["volatile"] for entry in found["config"]] == [True]


def made(study: Path, changes: dict[str, Any]) -> Path:
    """A run with these keys of its configuration, or hashes."""
    hashes = {key: value for key, value in changes.items() if key.endswith("_sha")}
    config = {key: value for key, value in changes.items() if key not in hashes}
    return make_run(study, "0000000b", config=config, **hashes)


def test_seeds_with_splits_of_their_own_are_one_configuration(tmp_path: Path) -> None:
    a, b, fixed = (
        make_run(tmp_path / name, name, seed=seed, split_sha=name * 8, config={"split.per_seed": per_seed})
        for name, seed, per_seed in (("0000000a", 0, True), ("0000000b", 1, True), ("0000000c", 1, False))
    )
    assert mentions(diff(a, b)["verdict"], "the same configuration", "0 and 1", "split")
    assert diff(a, b)["paired"] is False
    assert mentions(diff(a, fixed)["verdict"], "differ in", "split.per_seed")


@pytest.mark.parametrize(("changes", "verdict"), [
    ({"seed": 1}, "the same configuration and data, other seed (0 and 1)"),
    ({"activation.name": "sigmoid", "activation.slope": "native"}, "differ in activation"),
    ({"loss.smooth": 1.0, "seed": 1, "outputs": "/else"}, "differ in seed, loss.smooth"),
    ({"split_sha": "6" * 64}, "differ in the split"),
    ({"dataset_sha": "6" * 64, "optimizer.lr": 0.1}, "differ in optimizer.lr, the data"),
    ({}, "alike in configuration and data, yet of another identity"),
])  # fmt: skip
def test_verdict(a: Path, tmp_path: Path, changes: dict[str, Any], verdict: str) -> None:
    found = diff(a, made(tmp_path / "b", changes))
    assert found["verdict"].partition(":")[0] == verdict
    assert found["paired"] is not any(key.endswith("_sha") for key in changes)
    volatile = {entry["key"]: entry["volatile"] for entry in found["config"]}
    assert volatile == {key: key == "outputs" for key in changes if not key.endswith("_sha")}


def test_results(a: Path, tmp_path: Path, capsys: Captured) -> None:
    b = make_run(tmp_path / "b", "0000000b")
    found = diff(a, b)
    dice = [images_of(run_id)[0]["dice"] for run_id in ("0000000a", "0000000b")]
    (shown,) = (entry for entry in found["summary"] if entry["column"] == "dice")
    assert shown == {"column": "dice", "a": dice[0], "b": dice[1], "difference": dice[1] - dice[0]}
    assert "seed" not in [entry["column"] for entry in found["summary"]]
    assert found["images"]["differ"] == 3
    assert found["images"]["max_difference"] == pytest.approx(abs(dice[1] - dice[0]))
    assert (found["tables"]["images"], found["tables"]["epochs"]) == ("different", "same")
    assert cli.main(["diff", str(a), str(b), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == found
    assert [key for key in found if key not in (diff.__doc__ or "")] == []
    assert list(found["tables"]) == [table for table in TABLES if table != "objects"]  # as of earlier versions


def test_images_and_parts(a: Path, tmp_path: Path) -> None:
    """One image has moved, one is new, one lost its score."""
    b = Path(shutil.copytree(a, tmp_path / "b"))
    split = (b / "split.csv").read_text()
    (b / "split.csv").write_text(split.replace("001,x,test", "001,x,train") + "new,x,test,x,\n")
    header, first, *rest = (b / "images.csv").read_text().splitlines(keepends=True)
    cells = first.split(",")
    cells[12] = ""
    (b / "images.csv").write_text("".join([header, ",".join(cells), *rest[:-1]]))
    found = diff(a, b)
    assert found["split"] == {"moved": 1, "only_a": 0, "only_b": 1}
    splits = {"test": {"compared": 2, "differ": 1}}
    counts = {"compared": 2, "differ": 1, "max_difference": None, "only_a": 1, "only_b": 0}
    assert found["images"] == {"splits": splits, **counts}
    # The images of val count apart.
    rows = (a / "images.csv").read_text() + "val,1,1,x,1,1,1,1,1,1,1,1" + ",0.5" * 10 + "\n"
    for run_dir in (a, b):
        (run_dir / "images.csv").write_text(rows)
    found = diff(a, b)
    assert found["images"]["splits"]["val"] == {"compared": 1, "differ": 0}
    assert "0 of 3 test, 0 of 1 val" in as_text(found)


def test_environment_and_code(a: Path, tmp_path: Path) -> None:
    git = {"commit": "a" * 40, "dirty": True, "diff_sha": "b" * 64}
    b = make_run(tmp_path / "b", "0000000a", git=git, versions={"segexp": "0.2.0"})
    (b / "environment.txt").write_text("# Python 3.12.1 (CPython)\n# Linux\nNumPy==2.4.7\nscipy==1.0\n")
    found = diff(a, b)
    assert found["environment"] == [
        {"key": "Python", "a": "3.11.7 (CPython)", "b": "3.12.1 (CPython)"},
        {"key": "numpy", "a": "2.4.6", "b": "2.4.7"},
        {"key": "scipy", "b": "1.0"},
    ]
    assert keys(found, "code") == ["segexp", "git dirty", "git diff_sha"]


def test_missing_and_damaged_files_are_named(a: Path, tmp_path: Path, capsys: Captured) -> None:
    b = make_run(tmp_path / "b", "0000000b", "running", epochs=0)
    (b / "environment.txt").unlink()
    (b / "split.csv").write_bytes(b"\xff")
    (a / "images.csv").write_text("a,b\n")
    found = diff(a, b)
    assert (found["images"], found["split"]) == (None, None)
    assert found["tables"]["images"] == "missing"
    named = "\n".join(found["missing"])
    for path in (b / "environment.txt", b / "split.csv", a / "images.csv", b / "images.csv", b / "summary.csv"):
        assert str(path) in named
    assert cli.main(["diff", str(a), str(b)]) == 0
    assert named.splitlines()[0] in capsys.readouterr().out


def test_an_early_record_is_enough(a: Path, tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "run.json").write_text('{"status": "running"}')
    assert diff(a, tmp_path)["paired"] is None
    for pair in ((a, tmp_path), (tmp_path, a), (tmp_path, tmp_path)):
        assert cli.main(["diff", *map(str, pair)]) == 0
    b = make_run(tmp_path / "b", "0000000b")
    record = json.loads((b / "run.json").read_text())
    del record["config"]["seed"]
    (b / "run.json").write_text(json.dumps(record))
    assert mentions(diff(a, b)["verdict"], "other seed", "0 and None")


def test_what_is_no_run_is_refused(a: Path, tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "run.json").write_text("{")
    for other in (tmp_path / "nowhere", tmp_path, tmp_path / "damaged"):
        assert cli.main(["diff", str(a), str(other)]) == 2
        assert str(other) in capsys.readouterr().err


def test_text(a: Path, tmp_path: Path, capsys: Captured) -> None:
    b = make_run(
        tmp_path / "b", "0000000b", seed=1, init_sha="2" * 64, config={"outputs": "/else", "loss.smooth": None}
    )
    assert cli.main(["diff", str(a), str(b)]) == 0
    told = capsys.readouterr().out
    lines = [line.split() for line in told.splitlines()]
    assert one_mentions(told.splitlines(), "differ", "seed, loss.smooth")
    assert one_mentions(told.splitlines(), "not paired", "initial weights")
    assert ["seed", "0", "1"] in lines
    assert ["outputs", "/somewhere", "/else", "yes"] in lines
    assert ["loss.smooth", "-", "null"] in lines
    assert ["init_sha", "111111111111...", "222222222222..."] in lines
    assert one_mentions(told.splitlines(), "images", "Dice", "3 of 3 test")
    assert "byte-identical: split, epochs" in told or "byte-identical: epochs, split" in told
    assert cli.main(["diff", str(a), str(a)]) == 0
    assert "the same run" in capsys.readouterr().out


def test_runs_of_other_numerics_are_no_pair(a: Path, tmp_path: Path, capsys: Captured) -> None:
    b = make_run(tmp_path / "b", "0000000b", numerics=2)
    found = diff(a, b)
    assert found["paired"] is False
    assert {"key": "numerics", "a": 1, "b": 2} in found["pairing"]
    assert cli.main(["diff", str(a), str(b)]) == 0
    assert "not paired: numerics version differs" in capsys.readouterr().out
