"""The benchmarks run, their arithmetic is right, and the page of the documentation is what their results say."""

import dataclasses
import json
import math
import time
from pathlib import Path

import pytest
import torch

import benchmarks
from benchmarks import Row, __main__


def test_ratios_are_of_the_same_round() -> None:
    """A machine that slows down between rounds changes no ratio."""
    (row,) = benchmarks.ratios({"mine": [2.0, 20.0, 4.0], "theirs": [1.0, 10.0, 2.0]}, "theirs", {"mine": ("<=", 2.0)})
    assert (row.value, row.low, row.high, row.rounds, row.held) == (2.0, 2.0, 2.0, 3, True)
    (row,) = benchmarks.ratios({"mine": [2.0], "theirs": [1.0]}, "theirs", {"mine": (">=", 0.9)}, rate=True)
    assert (row.value, row.held) == (0.5, False)


def test_calls_are_timed_in_turns() -> None:
    times = benchmarks.in_turns({"short": lambda: None, "long": lambda: time.sleep(0.01)}, 3)
    assert [len(t) for t in times.values()] == [3, 3]
    assert min(times["long"]) > 0.01 > min(times["short"])


def test_the_page_is_made_from_the_results() -> None:
    if not __main__.RESULTS.exists():
        pytest.skip("nothing was measured yet")
    results = json.loads(__main__.RESULTS.read_text())
    assert __main__.PAGE.read_text() == __main__.page(results), "run: python -m benchmarks --page"
    assert not any(found["quick"] for found in results.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", list(benchmarks.load()))
def test_every_benchmark_runs(name: str, tmp_path: Path) -> None:
    """Whether bounds hold is not asked: this machine is busy with other tests."""
    if name.endswith("on_gpu") and not torch.cuda.is_available():
        pytest.skip("no GPU")
    kept = tmp_path / "results.json"
    assert __main__.main([name, "--quick", "--json", str(kept)]) == 0
    rows = [__main__.row_of(row) for row in json.loads(kept.read_text())[name]["rows"]]
    assert rows
    assert all(isinstance(row, Row) and math.isfinite(row.value) and row.low <= row.value <= row.high for row in rows)


def test_a_long_table_is_folded_and_marks_what_misses() -> None:
    rows = [
        Row(f"a{n}, {kind}", n, n, n + 1, "x", "relu", bound=("<=", 20.0) if kind == "fast" else None)
        for n in range(15)
        for kind in ("fast", "slow")
    ]
    rows[0] = dataclasses.replace(rows[0], value=21.0)
    said, _, head, _, *lines = __main__.table(rows).splitlines()
    assert said.startswith("14 of 15 ")
    assert head == "|  | fast, of relu, asked <= 20.00 | slow, of relu |"
    assert lines[:2] == [
        "| a0 | **21.00 (0.00 to 1.00)** | 0.00 (0.00 to 1.00) |",
        "| a1 | 1.00 (1.00 to 2.00) | 1.00 (1.00 to 2.00) |",
    ]
    assert len(lines) == 15
