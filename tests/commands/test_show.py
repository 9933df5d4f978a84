"""`segexp show`: runs in every state at a glance, and the line that a curve is drawn in."""

import json
import math
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from fabricated import CONFIG, make_run, row
from messages import mentions

from segexp import cli
from segexp.commands.show import ASCII, BARS, position, sparkline
from segexp.config import changed_from_defaults
from segexp.config.compose import compose, compose_job, hydra_session, typed_of
from segexp.records import flatten, write_json, write_table
from segexp.records.process import ownership

Captured = pytest.CaptureFixture[str]


def shown(run_dir: Path, capsys: Captured, code: int = 0) -> str:
    assert cli.main(["show", str(run_dir)]) == code
    return capsys.readouterr().out


def entry(told: str, label: str) -> str:
    """What stands beside a label, its further lines included."""
    (found,) = re.findall(rf"^{label} +(.*(?:\n {{12}}.*)*)", told, re.MULTILINE)
    return " ".join(found.split())


@pytest.fixture(autouse=True)
def _terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")


# The line of a curve


def test_a_sparkline_goes_from_the_least_to_the_greatest_fits_its_width_and_keeps_the_mean() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7], 20) == BARS
    assert sparkline([0, 0.5, 1], 3, ASCII) == "_-#".replace("-", ASCII[4])
    assert sparkline([-1e308, 1e308], 2) == BARS[0] + BARS[-1]
    assert sparkline([0.0] * 500 + [1.0] * 500, 10) == BARS[0] * 5 + BARS[-1] * 5
    assert len(sparkline(range(1001), 7)) == 7
    # Neighbours that cancel out leave nothing but their mean.
    assert sparkline([0, 1] * 50 + [5, 5], 51)[:50] == BARS[0] * 50
    # What has no shape.
    nan = math.nan
    shapeless = {(): "", (3.0,): BARS[0], (2, 2, 2): BARS[0] * 3, (nan, nan): "  "}
    for values, line in (shapeless | {(nan, 0, 1, math.inf): f" {BARS[0]}{BARS[-1]} "}).items():
        assert sparkline(values, 8) == line


@pytest.mark.parametrize("count", [2, 5, 7, 8, 100, 1001])
def test_the_position_of_a_value_is_where_it_is_drawn(count: int) -> None:
    for index in {0, 1, count // 3, count - 1} & set(range(count)):
        values = [0.0] * count
        values[index] = 1.0
        assert sparkline(values, 7).index(BARS[-1]) == position(index, count, 7)


# Runs


def test_a_finished_run(tmp_path: Path, capsys: Captured) -> None:
    swap = {"activation": "mish", "scope": "both", "replaced": 17, "shared_split": 2, "gates_kept": 1, "native": 0}
    run_dir = make_run(
        tmp_path / "mine", "0123abcd", diagnostics={"dead_output": 0.25}, swap_report={**swap, "escaped": {}}
    )
    record = json.loads((run_dir / "run.json").read_text())
    record["summary"]["best_epoch"] = 2
    record["device"]["resident_bytes"] = 3 * 2**20
    write_json(run_dir / "run.json", record)
    told = shown(run_dir, capsys)
    lines = told.splitlines()
    assert mentions(lines[0], "lesions", "unet", "resnet18", "native", "arctan", "dice", "seed 0")
    assert mentions(entry(told, "state"), "done", "1 of 4", "10 s")
    assert mentions(entry(told, "run"), "0123abcd", "mine", run_dir)
    assert mentions(entry(told, "val Dice"), 0.5, BARS[0] + BARS[-1] + 2 * BARS[0], 0.6, "in 2")
    assert any(line[:25] == " " * 24 + "^" and mentions(line, "epoch 2") for line in lines)
    by_column = {line.split()[-1]: line.split()[-3:-1] for line in lines if line}
    dice, hd95 = (f"{record['summary'][column]:.4f}" for column in ("dice", "hd95"))
    assert (by_column["dice"], by_column["hd95"]) == (["0.6000", dice], ["-", hd95])
    assert any(line.startswith("Hausdorff") and "(pixels)" in line for line in lines)
    assert mentions(entry(told, "time"), "2 s", "0.5 images/s", "400 MiB", "3 MiB of training images")
    assert mentions(entry(told, "hidden"), "25.0% dead", "- dead")
    assert mentions(entry(told, "swapped"), "17 call sites", "mish (both)", "2 shared", "1 gates", "0 escaped")
    assert {"warning: one", "warning: two"} <= set(lines)
    assert lines[-1].split(maxsplit=1) == ["next", f"segexp train --from {run_dir} seed=1"]
    assert "problem:" not in told
    assert cli.main(["show", str(run_dir), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == record
    assert record["config"] == CONFIG


def test_what_is_not_the_default_is_told_as_one_types_it(tmp_path: Path, capsys: Captured) -> None:
    told = shown(make_run(tmp_path, "0123abcd", config={"augment.noise": 0.5, "dataset.root": "/a b"}), capsys)
    changed = ["activation=arctan", "loss=dice", "model.decoder_channels=[16, 8, 8]", "trainer.epochs=4"]
    assert shlex.split(entry(told, "changed")) == [*changed, "augment.noise=0.5"]


@pytest.mark.parametrize("overrides", [
    {"activation": "arctan", "loss": "focal", "loss.gamma": 3.0, "trainer.epochs": 3},
    {"backbone": "resnet34", "augment": "none", "scheduler": "constant", "split.folds": 5, "split.fold": 1},
    {"dataset": "folder", "dataset.root": "/data/x", "dataset.num_classes": 3, "head.mode": "independent"},
    {"hidden_activation": "gelu", "optimizer": "sgd", "tuned": "/some/file", "dataset.noise": 0.5},
    {"backbone.name": "tu-resnet18", "model.decoder_channels": [16, 8, 8], "model.encoder_depth": 3},
], ids=str)  # fmt: skip
def test_the_changes_are_the_overrides(overrides: dict[str, object], tmp_path: Path) -> None:
    words = [f"{key}={json.dumps(value)}".replace('"', "") for key, value in overrides.items()]
    with hydra_session() as extra:
        config = flatten(typed_of(compose_job([*words, f"outputs={tmp_path}", "trainer.threads=2"], extra)))
    assert changed_from_defaults(config) == overrides


def test_the_terms_of_a_sum_are_among_the_changes(tmp_path: Path) -> None:
    words = [f"outputs={tmp_path}", "trainer.threads=2"]
    with hydra_session() as extra:
        config = flatten(compose(["loss=sum", "loss.terms={dice: 1, focal_tversky: 0.5}", *words], extra))
        changed = changed_from_defaults(config)
        assert list(changed) == ["loss", "loss.terms"]
        typed = [f"{key}={json.dumps(value)}".replace('"', "") for key, value in changed.items()]
        assert flatten(compose([*typed, *words], extra)) == config


@pytest.mark.parametrize(("status", "state", "following"), [
    ("interrupted", "interrupted", "segexp resume"),
    ("running", "stale", "segexp resume"),
    ("failed", "failed", "traceback.txt"),
    ("diverged", "diverged", "optimizer.lr=0.0007"),
])  # fmt: skip
def test_runs_that_are_not_done(status: str, state: str, following: str, tmp_path: Path, capsys: Captured) -> None:
    run_dir = make_run(tmp_path, "0123abcd", status, epochs=2)
    if status == "failed":
        assert "traceback.txt" not in shown(run_dir, capsys)
        (run_dir / "traceback.txt").touch()
    told = shown(run_dir, capsys)
    found = entry(told, "state")
    assert found.startswith(f"{state}: ")
    assert mentions(found, "nan", "epoch 2") == (status != "running")
    assert mentions(found, "2 of 4") or status == "diverged"
    assert "\nval Dice " in told
    assert "AUROC" not in told
    assert following in told.partition("\nnext")[2]


def test_only_commands_that_work_are_suggested(
    tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {"dataset.root": str(tmp_path / "gone"), "head.mode": "softmax"}
    run_dir = make_run(tmp_path / "a", "0123abcd", config=config)
    (run_dir / "checkpoints").mkdir()

    def suggested() -> list[str]:
        told = shown(Path(), capsys).partition("\nnext")[2].splitlines()
        return [line.strip().replace(str(tmp_path), "") for line in told]

    monkeypatch.chdir(run_dir)
    assert suggested() == ["segexp train --from . seed=1 dataset.root=DIR"]
    # A checkpoint can be scored, under softmax at no other threshold; an arm that is not done is not compared.
    (run_dir / "checkpoints" / "best.pt").touch()
    make_run(tmp_path / "a", "0123abce", seed=1)
    make_run(tmp_path / "a", "0123abcf", "failed", config={"activation.name": "tanh"})
    (tmp_path / "gone").mkdir()
    assert suggested()[0] == "segexp evaluate . --split val"
    assert not any("compare" in line for line in suggested())
    make_run(tmp_path / "a", "01230000", config={"activation.name": "tanh"})
    assert "segexp compare /a" in suggested()


def test_scores_by_class_have_the_names_of_the_data(tmp_path: Path, capsys: Captured) -> None:
    run_dir = make_run(tmp_path, "0123abcd", config={"dataset.class_names": ["sky", "road", "car"]})
    rows = [row("images", split="test", image_id=str(i), class_id=c, group_id="", n_gt=i, dice=c / 4)
            for i in range(3) for c in (1, 2)]  # fmt: skip
    write_table(run_dir / "images.csv", "images", rows)
    by_class = {line.split()[0]: line.split()[1:3] for line in shown(run_dir, capsys).splitlines() if line}
    assert (by_class["road"], by_class["car"]) == (["2", "0.2500"], ["2", "0.5000"])


def test_a_run_at_work_before_its_first_record_and_before_its_first_epoch(tmp_path: Path, capsys: Captured) -> None:
    run_dir = make_run(tmp_path / "a", "0123abcd", "running", epochs=3)
    with ownership(run_dir):
        told = shown(run_dir, capsys)
    assert mentions(entry(told, "state"), "running", os.getpid(), "3 of 4", "6 s", "2 s")
    assert f"segexp status {tmp_path / 'a'} --watch" in told

    run_dir = tmp_path / "lesions-0123abcd"
    run_dir.mkdir()
    with ownership(run_dir):
        told = shown(run_dir, capsys)
    assert mentions(entry(told, "state"), "running", os.getpid())
    assert "problem:" not in told

    run_dir = make_run(tmp_path / "c", "0123abcd", "interrupted", epochs=0)
    for name in ("epochs", "timings"):
        (run_dir / f"{name}.csv").unlink()
    told = shown(run_dir, capsys)
    assert mentions(entry(told, "state"), "0 of 4")
    assert "curves" not in told
    assert "problem:" not in told


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", "\xff", '{"run_id": "0123abcd", "status": "running"}'])
def test_an_unreadable_record_is_an_error_and_the_rest_is_shown(text: str, tmp_path: Path, capsys: Captured) -> None:
    run_dir = make_run(tmp_path, "0123abcd")
    (run_dir / "run.json").write_bytes(text.encode("latin-1"))
    assert cli.main(["show", str(run_dir)]) == 2
    told = capsys.readouterr()
    assert told.err.count("\n") == 1
    assert str(run_dir / "run.json") in told.err
    assert entry(told.out, "state").startswith("unreadable")
    assert "\nval Dice " in told.out


def test_tables_that_are_damaged_are_told(tmp_path: Path, capsys: Captured) -> None:
    run_dir = make_run(tmp_path, "0123abcd")
    lines = (run_dir / "epochs.csv").read_text().splitlines()
    (run_dir / "epochs.csv").write_text("\n".join([*lines[:-1], lines[-1].replace("0.5", "high")]) + "\n")
    (run_dir / "timings.csv").unlink()
    told = shown(run_dir, capsys)
    assert mentions(told, "problem", "epochs.csv", "column loss", "'high'", "timings.csv is missing")
    assert "train loss" in told
    assert "val loss" not in told
    other = make_run(tmp_path, "0123abce")
    lines = (other / "images.csv").read_text().splitlines(keepends=True)
    (other / "images.csv").write_text("".join(lines[:-1]))
    assert mentions(shown(other, capsys), "problem", "images.csv", "2 rows", "wrote 3")


def test_numbers_that_are_none_break_nothing(tmp_path: Path, capsys: Captured) -> None:
    run_dir = make_run(tmp_path, "0123abcd", "diverged", epochs=2, swap_report="x", warnings=[3, None, {"a": 1}])
    rows = [row("epochs", epoch=1, split="train", loss=float("inf"), grad_norm=float("nan"))]
    write_table(run_dir / "epochs.csv", "epochs", [*rows, row("epochs", epoch=1, split="val", dice=float("nan"))])
    write_table(run_dir / "timings.csv", "timings", [row("timings", epoch=1, seconds=float("inf"))])
    told = shown(run_dir, capsys)
    assert "train loss" not in told
    assert "val loss" in told
    assert "warning: None" in told


def test_control_characters_of_a_stranger_are_escaped(tmp_path: Path, capsys: Captured) -> None:
    bad = "a\x1b[2Jb\x07\u202ec\nstate done\x9b"
    run_dir = make_run(
        tmp_path, "0123abcd", "failed", error=bad, host=bad, warnings=[bad], config={"loss.name": bad, "seed": 0}
    )
    (run_dir / "x\x1b]0;title\x07").touch()
    out = shown(run_dir, capsys)
    assert [c for c in set(out) - {"\n"} if not c.isprintable()] == []
    assert "\\x1b[2Jb\\x07\\u202ec" in out
    assert "\nstate done" not in out
    assert "x\\x1b]0;title\\x07" in out


@pytest.mark.parametrize("columns", [40, 60, 80, 140])
def test_lines_keep_to_the_terminal(columns: int, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    run_dir = make_run(tmp_path, "0123abcd", epochs=300, warnings=["a warning of many words " * 9])
    told = shown(run_dir, capsys).splitlines()
    curve = next(line for line in told if line.startswith("val Dice"))
    assert columns - 12 <= len(curve) <= columns
    following = next(i for i, line in enumerate(told) if line.startswith("next"))
    # What is too long by itself is not broken: it may be a path.
    assert [line for line in told[:following] if len(line) > columns and " " in line[12:].strip()] == []


def test_where_bars_cannot_be_printed_they_are_ascii(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path, "0123abcd", config={"dataset.name": "ü"})
    words = [sys.executable, "-m", "segexp", "show", str(run_dir)]
    seen = subprocess.run(words, env={**os.environ, "PYTHONIOENCODING": "ascii"}, capture_output=True, check=True)
    out = seen.stdout.decode("ascii")
    assert out.startswith("\\xfc: unet")
    assert f"{ASCII[0]}{ASCII[-1]}{ASCII[0]}{ASCII[0]}" in out
