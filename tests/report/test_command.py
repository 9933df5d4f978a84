"""`segexp report` on run directories; what `segexp compare` prints of a result."""

import csv
import dataclasses
import io
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from made_scores import make_pair
from made_up_result import make_answers, make_block, make_factorial, make_result

from segexp import cli
from segexp.compare.result import Result
from segexp.compare.verdict import compare
from segexp.report.formats import as_json, as_latex, as_markdown, as_text, comparisons_csv, warnings_of


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


def test_what_is_no_report_is_refused_before_anything_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    thesis = tmp_path / "thesis.html"
    thesis.write_text("years of work")
    assert cli.main(["report", "/no/such/runs", "-o", str(thesis)]) == 2
    assert "-o" in capsys.readouterr().err
    assert thesis.read_text() == "years of work"


def test_no_runs_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", str(tmp_path), "-o", str(tmp_path / "r.html")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
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


def two_blocks() -> Result:
    """Two blocks with factors, warnings, and what no number of seeds finds."""
    blocks = []
    for loss in ("dice", "ce"):
        block = make_block({"sigmoid": 0.8, "arctan": 0.82}, "sigmoid", loss=loss)
        never = dataclasses.replace(block.comparisons[0], seeds_needed=math.inf, warnings=(f"a < b | {loss}",))
        both = (make_factorial(("sigmoid", "arctan"), ("x", "y")),) * 2
        blocks.append(dataclasses.replace(block, comparisons=(never,), factorials=both))
    result = make_result(blocks=blocks)
    versions = {"segexp": "0.1.0", "scipy": "1.2.3", "pandas": "4.5.6", "numpy": "7"}
    return dataclasses.replace(result, provenance={"compared with": versions})


def test_tables_for_a_paper_name_their_block() -> None:
    result = two_blocks()
    answers = [(block, list(make_answers(["arctan"]))) for block in result.blocks]
    latex = as_latex(result, answers)
    labels = re.findall(r"\\label{(.*?)}", latex)
    assert len(labels) == len(set(labels)) > 20
    captions = re.findall(r"\\caption{(.*)}", latex)
    assert sum("lesions, loss=ce" in caption for caption in captions) == (len(captions) - 2) // 2
    titles = re.findall(r"^### (.*)$", as_markdown(result, answers), re.MULTILINE)
    assert len(titles) == len(captions)
    assert "Comparisons: lesions, loss=ce" in titles


def test_markdown_holds_the_warnings() -> None:
    text = as_markdown(two_blocks(), [])
    assert "**Warnings**\n\n- 4 seeds: exploratory\n- runs of two versions of torch\n" in text
    assert "- arctan against sigmoid: a &lt; b \\| dice\n" in text
    assert "**Warnings: lesions, loss=dice**" in text


def test_text_ends_with_the_versions_that_decide_the_numbers() -> None:
    text = as_text(two_blocks(), [])
    assert text.endswith("compared with segexp 0.1.0, numpy 7, scipy 1.2.3\n")
    for told in ("not adjusted", "before Holm", "new images", "no number", "In detail", "arctan against sigmoid"):
        assert told in text
    assert max(map(len, text.splitlines())) <= 150


def test_json_tells_the_infinite_from_the_unknown() -> None:
    result = two_blocks()
    block = result.blocks[0]
    unknown = dataclasses.replace(block.comparisons[0], seeds_needed=math.nan)
    result = dataclasses.replace(
        result, blocks=(dataclasses.replace(block, comparisons=(*block.comparisons, unknown)),)
    )
    (found,) = json.loads(as_json(result, []))["blocks"]
    assert [c["seeds_needed"] for c in found["comparisons"]] == ["infinite", None]
    assert found["comparisons"][0]["scope"] == "new seeds and new images"


def test_csv_is_one_table(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["compare", str(study), "--csv", "--questions", "cost"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert "--json" in said.err


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


def test_csv_holds_the_warnings_of_the_block() -> None:
    block = dataclasses.replace(two_blocks().blocks[0], warnings=("one", "two"))
    (row,) = csv.DictReader(io.StringIO(comparisons_csv(make_result(blocks=[block]))))
    assert row["warnings_of_block"] == "one; two"
    assert row["warnings"] == "a < b | dice"


def test_every_warning_once_with_its_block() -> None:
    result = two_blocks()
    result = dataclasses.replace(result, blocks=tuple(dataclasses.replace(b, warnings=("odd",)) for b in result.blocks))
    told = warnings_of(result)
    assert told[:2] == ["4 seeds: exploratory", "runs of two versions of torch"]
    assert [w for w in told if w.endswith("odd")] == ["lesions, loss=dice: odd", "lesions, loss=ce: odd"]
    assert as_latex(result, []).startswith("% warning: 4 seeds: exploratory\n")
