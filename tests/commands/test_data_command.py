"""`segexp data list` and `segexp data clear`."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from segexp import cli
from segexp.data.cache import folder

DAY = 86400


@pytest.fixture(autouse=True)
def _entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two data sets, of which one was used three days ago, and one entry that cannot be read."""
    monkeypatch.setenv("SEGEXP_CACHE", str(tmp_path / "cache"))
    folder().mkdir(parents=True)
    for key, kind, name, days in (
        ("a", "check", "kidneys", 3),
        ("b", "images", "kidneys", 3),
        ("c", "images", "lungs", 0),
    ):
        about = {"kind": kind, "content": name, "name": name, "location": f"/data/{name}", "images": 7, "geometry": ""}
        about["geometry"] = "resize 64" if kind == "images" else ""
        (folder() / key).mkdir()
        (folder() / key / "images.bin").write_bytes(b"0" * 2000)
        (folder() / key / "entry.json").write_text(json.dumps(about))
        os.utime(folder() / key / "entry.json", (time.time() - days * DAY,) * 2)
    (folder() / "d").mkdir()
    (folder() / "d" / "entry.json").write_text("{")


def listed(capsys: pytest.CaptureFixture[str]) -> set[str]:
    capsys.readouterr()
    assert cli.main(["data", "list", "--json"]) == 0
    return {Path(entry["path"]).name for entry in json.loads(capsys.readouterr().out)}


def test_each_data_set_is_one_row(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["data", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (kidneys,) = (line for line in lines if "/data/kidneys" in line)
    assert all(part in kidneys for part in ("kidneys", "7", "resize 64", "4.1 KiB", "3 d"))
    assert str(folder()) in lines[-1]


@pytest.mark.parametrize(("words", "left"), [
    ("clear", ""), ("clear lungs", "abd"), ("clear /data/kidneys", "cd"), ("clear --older 2", "cd"),
    ("clear lungs --older 2", "abcd"), ("clear --older 2 kidneys lungs", "cd"),
])  # fmt: skip
def test_clear(words: str, left: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["data", *words.split()]) == 0
    assert listed(capsys) == set(left)
    assert {path.name for path in folder().iterdir()} == set(left)


@pytest.mark.parametrize(("words", "expected"), [
    ("clear lung", "lungs"), ("list kidneys", "no names"), ("clear --json", "--json"), ("lst", "list"),
])  # fmt: skip
def test_mistakes_are_refused(words: str, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["data", *words.split()]) == 2
    assert expected in capsys.readouterr().err
    assert listed(capsys) == set("abcd")


def test_a_limit_that_is_no_size_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SEGEXP_CACHE_LIMIT", "much")
    assert cli.main(["data", "list"]) == 2
    assert "SEGEXP_CACHE_LIMIT=much" in capsys.readouterr().err


def test_no_torch_and_no_numpy_is_loaded() -> None:
    code = "import sys; from segexp import cli; cli.main(['data', 'list']); cli.main(['data', 'clear'])"
    code += "; print(sys.modules.keys() & {'torch', 'numpy'})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"
