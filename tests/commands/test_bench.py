"""`segexp bench`: what is counted, how rounds are compared, and what is printed and written."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from segexp import cli
from segexp.activations.hidden import function_names, make_hidden, measured_costs
from segexp.commands import bench
from segexp.commands.bench import BASELINE, hidden_names, measure, saved_bytes, setting

SMALL = ["--shape", "2,3,8,8", "--rounds", "3", "--device", "cpu"]
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call or two per timing."""
    monkeypatch.setattr(bench, "BLOCK_S", 1e-5)


def test_saved_bytes_count_each_piece_of_memory_once_and_no_parameter() -> None:
    """relu keeps its output, gelu its input, lisht its slope, swish_beta two; x * x keeps one tensor twice, rrelu its
    input and its slopes."""

    class Square(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * x

    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    saved = {"identity": 0, "relu": 4, "gelu": 4, "prelu": 4, "rrelu": 8, "lisht": 4, "swish_beta": 8}
    for name, expected in saved.items():
        assert saved_bytes(make_hidden(name, {}).train(), x) == expected, name
    assert saved_bytes(Square(), x) == 4
    assert saved_bytes(Square().double(), x.detach().double().requires_grad_()) == 8


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """In place of a stopwatch: every round is slower, as machines are, and silu takes 2 and 3 times what relu does."""
    seen: list[str] = []

    def seconds(module: torch.nn.Module, x: Any, gradient: Any, calls: tuple[int, int] = (1, 1)) -> tuple[float, float]:
        seen.append(type(module).__name__)
        slower = 1.0 + (len(seen) - 1) // 3
        return (2e-3 * slower, 6e-3 * slower) if isinstance(module, torch.nn.SiLU) else (1e-3 * slower, 2e-3 * slower)

    monkeypatch.setattr(bench, "_seconds", seconds)
    return seen


def test_only_times_of_the_same_round_are_compared(clock: list[str]) -> None:
    names = ["relu", "silu", "tanh"]
    rows = {row["name"]: row for row in measure(names, CPU, (1, 1, 2, 2), rounds=8)}
    kinds = ["ReLU", "SiLU", "Tanh"]
    rounds = [clock[n : n + 3] for n in range(0, len(clock), 3)]
    assert len(rounds) == 9  # the first finds out how many calls fill a timing
    assert all(sorted(order) == kinds for order in rounds)
    assert len({tuple(order) for order in rounds[1:]}) > 2
    ratios = ("forward", "backward", "both", "forward_iqr")
    assert [rows["relu"][key] for key in ratios] == [1, 1, 1, 0]
    for key, true in zip(ratios[:3], (2, 3, 8 / 3), strict=True):
        assert rows["silu"][key] == pytest.approx(true, rel=1e-3)
    again = measure(names, CPU, (1, 1, 2, 2), rounds=8)
    assert clock[27:] == clock[:27]
    assert len(again) == 3


def test_everything_can_be_measured() -> None:
    every = function_names()
    before = torch.random.get_rng_state()
    rows = measure(hidden_names([]), CPU, (2, 3, 8, 8), rounds=2)
    assert sorted(row["name"] for row in rows) == sorted(every)
    assert rows[0]["name"] == BASELINE
    for row in rows:
        assert all(row[key] > 0 for key in ("forward_ms", "backward_ms", "forward", "backward", "both")), row
        assert all(row[key] >= 0 for key in ("forward_iqr", "backward_iqr", "both_iqr", "saved", "saved_bytes")), row
    assert torch.equal(torch.random.get_rng_state(), before)
    # relu is always there, and aliases are known.
    assert hidden_names(["swish", "gelu", "silu"]) == ["relu", "silu", "gelu"]
    assert hidden_names(["gelu", "relu"]) == ["relu", "gelu"]


def test_table_json_and_csv_say_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "cost.csv"
    assert cli.main(["bench", "activations", "swish", *SMALL]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "threads: " in lines[0]
    assert lines[0].endswith(f"torch {torch.__version__}; float32 of shape 2x3x8x8; rounds: 3")
    assert [line.split()[0] for line in lines[3:]] == ["relu", "silu"]
    assert max(map(len, lines)) <= 140
    assert cli.main(["bench", "activations", "swish", "--json", "--csv", str(path), *SMALL]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {key: rows[0][key] for key in ("shape", "dtype", "rounds")} == {
        "shape": "2x3x8x8", "dtype": "float32", "rounds": 3,
    }  # fmt: skip
    with path.open(newline="") as file:
        assert list(csv.DictReader(file)) == [{key: str(value) for key, value in row.items()} for row in rows]


def test_cuda_that_is_not_there_is_refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cli.main(["bench", "activations", "--device", "cuda"]) == 2
    assert "segexp doctor" in capsys.readouterr().err
    assert bench.device_of("auto") == CPU


def test_the_packaged_costs_have_the_columns_that_are_measured() -> None:
    from segexp.activations.hidden import COSTS

    (row,) = measure(["relu"], CPU, (1, 1, 2, 2), rounds=1)
    with COSTS.open(newline="") as file:
        packaged = list(csv.DictReader(file))
    assert list(packaged[0]) == [*row, *setting(CPU, (1, 1, 2, 2), 1)]
    assert len({(line["device"], line["torch"], line["rounds"]) for line in packaged}) == 1
    cost = measured_costs()["relu"]
    assert (cost.forward, cost.backward, cost.both, cost.saved_bytes) == (1, 1, 1, 4)
