"""`segexp report` on run directories; what `segexp compare` prints of a result."""

from pathlib import Path
from typing import Any

import pytest
from made_scores import make_pair

from segexp import cli
from segexp.compare.verdict import compare


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    make_pair(folder, n_seeds=3, n_images=20)
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


def test_what_is_refused_is_one_line_and_leaves_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    thesis = tmp_path / "thesis.html"
    thesis.write_text("years of work")
    # Another file is refused before anything is read.
    for runs, page, named in (("/no/such/runs", thesis, "-o"), (str(tmp_path), tmp_path / "r.html", "holds no run")):
        assert cli.main(["report", runs, "-o", str(page)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert named in line
    assert thesis.read_text() == "years of work"
    assert not (tmp_path / "r.html").exists()


@pytest.mark.parametrize(
    ("spacing", "shown"), [((None, None), "pixels"), (([0.5, 0.5],) * 2, "mm"), ((None, [0.5, 0.5]), "mm or pixels")]
)
def test_a_hausdorff_distance_has_the_unit_of_its_data(tmp_path: Path, spacing: tuple[Any, Any], shown: str) -> None:
    for n, of_arm in enumerate(spacing):
        make_pair(
            tmp_path / str(n),
            n_seeds=3,
            n_images=20,
            prefix=str(n),
            config={"dataset.spacing": of_arm, "optimizer.lr": 0.1 * n},
        )
    assert compare([tmp_path], metric="hd95").metric.unit == shown


def test_forms_without_room_for_warnings_tell_them_beside(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = "arctan against sigmoid: 3 seeds: exploratory"
    assert cli.main(["compare", str(study), "--latex"]) == 0
    said = capsys.readouterr()
    assert f"% warning: {few}" in said.out
    assert f"segexp: warning: {few}" in said.err
    assert cli.main(["compare", str(study), "--csv"]) == 0
    said = capsys.readouterr()
    assert f"segexp: warning: {few}" in said.err
    assert len(said.out.splitlines()) == 2
