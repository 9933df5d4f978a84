"""The short form of the reliability campaign (scripts/reliability): each class of fault, its first cases."""

import json
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


SHORT = {
    "damage": 40,
    "overrides": 40,
    "images": 10,
    "checkpoints": 8,
    "entrances": 30,
    "kills": 20,
    "disk": 12,
    "chaos": 2,
}
"""Class -> cases that take about a minute."""


@pytest.fixture(autouse=True)
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(REPOSITORY / "scripts"))


@pytest.mark.slow
@pytest.mark.parametrize("name", SHORT)
def test_the_first_cases_of_a_class_end_well(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from reliability.__main__ import main

    kept = tmp_path / "kept.jsonl"
    assert main([name, "--cases", str(SHORT[name]), "--kept", str(kept)]) == 0, capsys.readouterr().out
    assert len(kept.read_text().splitlines()) == SHORT[name]


@pytest.mark.slow
def test_each_class_has_a_short_form() -> None:
    from reliability import load

    assert load().keys() == SHORT.keys()


def test_a_command_that_hangs_or_raises_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    import reliability

    from segexp import cli

    def hang(words: object) -> int:
        while True:
            pass

    def fail(words: object) -> int:
        raise ValueError("a fault")

    monkeypatch.setattr(reliability, "HANGS_S", 0.2)
    for main, fault in ((hang, "hang"), (fail, "traceback: ValueError")):
        monkeypatch.setattr(cli, "main", main)
        assert reliability.said_by(["status"]).fault.startswith(fault)


def test_the_page_of_the_docs_is_that_of_the_results() -> None:
    from reliability import load
    from reliability.__main__ import PAGE, RESULTS, page

    assert PAGE.read_text(encoding="utf-8") == page(load(), json.loads(RESULTS.read_text(encoding="utf-8")))
