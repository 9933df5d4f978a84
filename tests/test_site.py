"""The documentation site: it builds without a warning, and its reference has every command, key and column."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from segexp.commands import COMMANDS
from segexp.config.compose import every_option
from segexp.records import COLUMNS

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.syspath_prepend(str(REPOSITORY / "scripts"))
    import reference

    return reference.pages()


def test_the_reference_has_every_command_key_and_column(pages: dict[str, str]) -> None:
    assert re.findall(r"^## segexp (.*)$", pages["commands"], re.M) == list(COMMANDS)
    keys = {key for _, key, _ in every_option() if not key.endswith((".name", ".adapter"))}
    internal = {"study.protocol", "study.budget"}
    assert [key for key in sorted(keys - internal) if f"| `{key}` |" not in pages["configuration"]] == []
    for table, columns in COLUMNS.items():
        section = pages["tables"].partition(f"## {table}.csv\n")[2].partition("\n## ")[0]
        assert re.findall(r"^\| (?:\*\*)?`(\w+)`", section, re.M) == list(columns)


def test_the_reference_says_what_enters_the_identity(pages: dict[str, str]) -> None:
    def row(key: str) -> list[str]:
        return next(line for line in pages["configuration"].splitlines() if line.startswith(f"| `{key}` |")).split(
            " | "
        )

    assert row("trainer.epochs")[1:4] == ["integer, at least 1 and at most 1000000", "`8`", "yes"]
    assert row("trainer.device")[1:4] == ["`auto`, `cpu`, `cuda`, `mps`", "`auto`", ""]
    assert row("metrics.nsd")[3] == "yes, but `pixel`"
    assert row("dataset.root")[2] == "must be given"


@pytest.mark.slow
@pytest.mark.parametrize("builder", ["html", "linkcheck"])
def test_the_site_builds_without_a_warning(builder: str, tmp_path: Path) -> None:
    """Links and anchors within the site lead somewhere; external ones are checked where a network is asked for."""
    pytest.importorskip("sphinx")
    pytest.importorskip("myst_parser")
    pytest.importorskip("furo")
    words = [sys.executable, "-m", "sphinx", "-b", builder, "-W", "--keep-going", "-n", "-q", "docs", str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
