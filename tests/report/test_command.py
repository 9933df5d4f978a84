"""`segexp report` on run directories; what `segexp compare` prints of a result."""

import functools
import json
import re
from pathlib import Path
from typing import Any

import pytest
from made_scores import make_pair

from segexp import cli
from segexp.compare.verdict import compare
from segexp.report.page import write_figures


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    make_pair(folder, n_seeds=3, n_images=20)
    return folder


def test_a_page_with_figures_and_tables(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one of their formats: tests/report/test_page.py writes all."""
    monkeypatch.setattr("segexp.report.page.write_figures", functools.partial(write_figures, kinds=("svg",)))
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


CLAIMS = """claims:
  - {candidate: activation=arctan, reference: activation=sigmoid, metric: dice, relation: better}
  - {candidate: activation=softsign, reference: activation=sigmoid, metric: dice, relation: better}
"""

NOTE = """# Our <b>view</b>

[paper](https://example.org/?a=1&b=2) [bad](javascript:alert(1)) [file](/etc/passwd) ![x](https://example.org/x.png)

<script>alert(1)</script>

| arm | Dice |
|-----|------|
| one | 84   |
"""


def test_claims_and_a_note_are_sections_of_the_page(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, claims, note = tmp_path / "r.html", tmp_path / "c.yaml", tmp_path / "n.md"
    claims.write_text(CLAIMS)
    note.write_text(NOTE)
    assert cli.main(["compare", str(study), "--claims", str(claims), "--json"]) == 0
    entries = json.loads(capsys.readouterr().out)
    words = ["report", str(study), "-o", str(page), "--claims", str(claims), "--note", str(note), "--reference", "all"]
    assert cli.main([*words, "--tables", str(tmp_path / "tables")]) == 0
    text = page.read_text("utf-8")
    section = text.partition('<section id="claims">')[2].partition("</section>")[0]
    chips = re.findall(r'<span class="chip \w+"><span aria-hidden="true">.</span> ([\w ]+)</span>', section)
    assert chips == [entry["outcome"] for entry in entries] == [chips[0], "no data"]
    assert entries[0]["reason"] in section
    assert entries[1]["reason"] in section
    assert (tmp_path / "tables" / "claims.md").exists()
    written = text.partition('<section id="notes">')[2].partition("</section>")[0]
    assert "<h3>Our &lt;b&gt;view&lt;/b&gt;</h3>" in written
    assert re.findall(r'<a href="([^"]*)"', written) == [
        "#notes",
        *["https://example.org/?a=1&amp;b=2"],
        "https://example.org/x.png",
    ]
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in written
    assert "<td>84</td>" in written
    assert not re.search("<script|<img|javascript:[^a]", written)
    contents = text.partition("<nav")[2].partition("</nav>")[0]
    linked = re.findall(r'href="#([^"]+)"', contents)
    assert linked[:4] == ["answer", "notes", "claims", "block-1"]
    assert all(f'id="{name}"' in text for name in linked)


@pytest.mark.parametrize(
    ("option", "content", "named"),
    [
        ("--note", None, "No such file"),
        ("--note", b"x" * (2**17 + 1), "larger than"),
        ("--note", b"\xff", "UTF-8"),
        ("--claims", None, "c.txt"),
        ("--claims", b"claims: [x]", "line 1"),
    ],
)
def test_a_note_or_claims_that_cannot_be_read_are_one_line_and_nothing_is_written(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, content: bytes | None, named: str
) -> None:
    if content is not None:
        (tmp_path / "c.txt").write_bytes(content)
    page = tmp_path / "r.html"
    assert cli.main(["report", str(study), "-o", str(page), option, str(tmp_path / "c.txt")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert named in line
    assert not page.exists()


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
