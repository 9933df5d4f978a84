"""Runs whose output activation learns its slope or its tail: what they record, and that they continue and load."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from messages import mentions, one_mentions
from tiny import interrupted_run, tables, tiny_run, tiny_task

import segexp
from segexp.activations.head import LearnedOptions, learned_options
from segexp.cli import main
from segexp.compare.questions import ask
from segexp.errors import UsageError
from segexp.records import read_table
from segexp.training import loop
from segexp.training.diagnostics import warnings_of

Captured = pytest.CaptureFixture[str]

LEARNED = ("activation=learned_tail", "activation.slope=learned", "activation.tail=0.3", "optimizer=adamw")


def record_of(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "run.json").read_text())


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    outcome = tiny_run(tmp_path_factory.mktemp("learned"), *LEARNED)
    assert outcome.status == "done"
    return outcome.run_dir


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_run(tmp_path_factory.mktemp("plain"), "optimizer=adamw").run_dir


def test_every_table_has_what_was_learned(learned: Path, plain: Path, capsys: Captured) -> None:
    record, without = record_of(learned), record_of(plain)
    values = record["head"]["learned"]
    assert set(values) == {"tail", "slope"}
    assert 0 < values["tail"] < 1
    assert values["tail"] != pytest.approx(0.3, abs=1e-6)
    assert values["slope"] != 1
    assert record["n_params"] == without["n_params"] + 2
    assert record["init_sha"] == without["init_sha"]
    assert "learned" not in without["head"]
    row, empty = (read_table(path / "summary.csv", "summary").iloc[0] for path in (learned, plain))
    assert (row["learned_tail"], row["learned_slope"]) == (values["tail"], values["slope"])
    assert list(row.index)[-2:] == ["learned_slope", "learned_tail"]
    assert empty[["learned_slope", "learned_tail"]].isna().all()
    looks = read_table(learned / "diagnostics.csv", "diagnostics")
    of_head = looks[looks["part"] == "head"]
    assert list(of_head["probe"]) == ["train", "val"]
    text = f"slope={round(values['slope'], 6)!r}; tail={round(values['tail'], 6)!r}"
    assert of_head["learned"].iloc[-1] == text
    assert not (read_table(plain / "diagnostics.csv", "diagnostics")["part"] == "head").any()
    assert record["diagnostics"].keys() == without["diagnostics"].keys()
    assert main(["show", str(learned)]) == 0
    assert mentions(capsys.readouterr().out, f"tail {values['tail']:.4g}", f"slope {values['slope']:.4g}")


def test_its_row_is_no_call_site(learned: Path) -> None:
    """In the warnings about dead units and gradients."""
    rows: list[Any] = read_table(learned / "diagnostics.csv", "diagnostics").query("probe == 'val'").to_dict("records")
    rows[0]["dead_output"] = 0.9
    (told,) = warnings_of(rows)
    assert f"1 of {len(rows) - 1} call sites" in told
    assert warnings_of(rows[-1:]) == []


def test_the_report_gives_the_mean_of_what_was_learned(learned: Path, plain: Path) -> None:
    values = record_of(learned)["head"]["learned"]
    (answer,) = ask(["calibration"], {"learned": [learned], "plain": [plain]})
    row, other = answer.rows
    assert answer.titles["learned_tail"] == "learned tail"
    assert (row["learned_tail"], row["learned_slope"]) == (values["tail"], values["slope"])
    assert math.isnan(other["learned_tail"])
    (alone,) = ask(["calibration"], {"plain": [plain]})
    assert not [name for name in (*alone.rows[0], *alone.titles) if name.startswith("learned")]


@pytest.mark.slow
def test_a_continued_run_is_bit_equal(learned: Path, tmp_path: Path) -> None:
    interrupted_run(tmp_path, 2, *LEARNED)
    assert tables(tiny_run(tmp_path, *LEARNED).run_dir) == tables(learned)


def test_loading_and_evaluating_use_what_was_learned(learned: Path, capsys: Captured) -> None:
    assert main(["evaluate", str(learned), "--split", "test"]) == 0
    capsys.readouterr()
    (folder,) = (learned / "evaluations").iterdir()
    again, images = (read_table(path / "images.csv", "images") for path in (folder, learned))
    assert list(again["nll"]) == list(images[images["split"] == "test"]["nll"])
    model: Any = segexp.load(learned)
    values = learned_options(model.network)
    assert values is not None
    assert values.numbers() == record_of(learned)["head"]["learned"]
    image = torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    p, copied = model(image), copy.deepcopy(model)
    assert torch.equal(copied(image), p)
    with torch.no_grad():
        copied.network.output_options.slope.add_(1)
    assert not torch.equal(copied(image), p)
    assert torch.equal(model(image), p)


def test_learned_options_have_no_weight_decay(tmp_path: Path) -> None:
    spec, task = tiny_task(tmp_path, *LEARNED, "optimizer.weight_decay=0.1")
    groups = loop.begin(spec.config, task).optimizer.param_groups
    assert [group["weight_decay"] for group in groups] == [0.1, 0]
    learned = learned_options(task.network)
    assert learned is not None
    assert {id(p) for p in groups[1]["params"]} == {id(p) for p in learned.parameters()}


def test_an_option_at_the_end_of_its_range_is_a_warning(
    learned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = {"tail": 1.0, "slope": 2.0}
    monkeypatch.setattr(LearnedOptions, "numbers", lambda self: numbers)
    warnings = record_of(tiny_run(tmp_path, *LEARNED, "trainer.epochs=1").run_dir)["warnings"]
    assert one_mentions(warnings, "activation.tail", "range")
    assert not any(mentions(text, "activation.slope", "range") for text in warnings)
    assert not any(mentions(text, "end of its range") for text in record_of(learned)["warnings"])


@pytest.mark.parametrize(("words", "cures"), [
    (["activation.slope=learned", "loss=matching"], ("learned slope", "matching", "activation.slope=native")),
    (["activation=learned_tail", "loss=matching"], ("learned tail",)),
    (["activation=minmax_linear", "activation.slope=learned"], ("activation.slope=native",)),
    (["activation=learned_tail", "activation.tail=1"], ("activation.tail", "below 1")),
    (["activation=taylor_softmax"], ("head.mode=softmax", "dataset.num_classes")),
])  # fmt: skip
def test_what_cannot_be_learned_is_refused(words: list[str], cures: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        tiny_task(tmp_path, *words)
    assert mentions(str(caught.value), *cures)
