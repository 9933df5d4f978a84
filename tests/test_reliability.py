"""The short form of the reliability campaign (scripts/reliability): each class of fault, its first cases."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


SHORT = {
    "damage": 30,
    "overrides": 30,
    "images": 10,
    "checkpoints": 8,
    "entrances": 15,
    "kills": 12,
    "disk": 6,
    "chaos": 1,
    "together": 3,
    "readers": 20,
    "store": 7,
    "edits": 12,
    "plugins": 30,
    "decide": 3,
    "trackers": 4,
}
"""Class -> cases that take less than a minute."""


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


BROKEN = {
    "escape": ("entrances", 3),
    "nofollow": ("entrances", 8),
    "weights_only": ("checkpoints", 2),
    "checksum": ("damage", 26),
    "atomic_rename": ("kills", 11),
    "lock": ("together", 2),
}
"""Guard -> a class and a case of its short form that finds that it is broken."""


@pytest.mark.slow
@pytest.mark.parametrize("guard", BROKEN)
def test_a_broken_guard_is_found(guard: str, tmp_path: Path) -> None:
    name, case = BROKEN[guard]
    words = [name, "--only", str(case), "--broken", guard, "--kept", str(tmp_path / "kept.jsonl")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join((str(REPOSITORY / "scripts"), str(REPOSITORY)))}
    command = [sys.executable, "-m", "reliability", *words]
    found = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert found.returncode == 1, found.stdout + found.stderr
    assert f"{name} {case}: " in found.stdout, found.stdout + found.stderr
    assert case < SHORT[name]


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


def test_results_grow_with_each_file_of_cases_and_lose_a_fault_that_was_repeated_and_held(tmp_path: Path) -> None:
    from reliability.__main__ import counted

    one: dict[str, Any] = {"images": None}
    results: dict[str, Any] = {}
    kept = tmp_path / "kept.jsonl"
    for ends in ({0: "same", 1: "refused", 2: "lie"}, {3: "same"}, {2: "refused", 3: "same", 6: "same"}, {6: "hang"}):
        rows = ({"class": "images", "case": case, "how": how, "commit": "c"} for case, how in ends.items())
        kept.write_text("\n".join(map(json.dumps, rows)))
        results = counted(one, kept, results)
        if 0 in ends:
            assert results["images"] | {"tried": "0-1", "faults": {"2": "lie"}} == results["images"]
    expected = {"tried": "0-3,6", "endings": {"refused": 2, "same": 3}, "faults": {"6": "hang"}, "commits": ["c"]}
    assert results == {"images": expected}
