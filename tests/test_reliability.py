"""The short form of the reliability campaign (scripts/reliability): each class of fault, its first cases."""

from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_the_first_cases_of_each_class_end_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(REPOSITORY / "scripts"))
    from reliability.__main__ import main

    assert main(["--cases", "40", "--kept", str(tmp_path / "kept.jsonl")]) == 0, capsys.readouterr().out
    assert len((tmp_path / "kept.jsonl").read_text().splitlines()) == 40


def test_a_command_that_hangs_or_raises_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(REPOSITORY / "scripts"))
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
