"""`segexp report` on run directories."""

from pathlib import Path

import pytest
from fabricated import make_run

from segexp import cli


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    for activation in ("sigmoid", "arctan"):
        for seed in range(3):
            config = {"activation.name": activation}
            make_run(folder, f"{activation}{seed}".encode().hex()[-8:], seed=seed, config=config)
    return folder


def test_a_page_with_figures_and_tables(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, figures, tables = tmp_path / "r.html", tmp_path / "figures", tmp_path / "tables"
    words = ["report", str(study), "-o", str(page), "--figures", str(figures), "--tables", str(tables)]
    assert cli.main(words) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[1] == f"report: {page}"
    text = page.read_text("utf-8")
    assert said[0][:30] in text
    assert "arctan" in text
    assert str(len(list(figures.iterdir()))) in said[2]
    assert {path.suffix for path in tables.iterdir()} == {".tex", ".md"}


def test_what_is_no_report_is_refused_before_anything_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    thesis = tmp_path / "thesis.html"
    thesis.write_text("years of work")
    assert cli.main(["report", "/no/such/runs", "-o", str(thesis)]) == 2
    assert "is no report of segexp" in capsys.readouterr().err
    assert thesis.read_text() == "years of work"


def test_no_runs_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", str(tmp_path), "-o", str(tmp_path / "r.html")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not (tmp_path / "r.html").exists()
