"""Tables as they are printed, in Markdown and in LaTeX, and as CSV."""

import csv
import dataclasses
import io
import re

import pytest
from made_up_result import DICE, NAN, make_block, make_factorial, make_result

from segexp.compare.result import Answer, Metric
from segexp.report import tables
from segexp.report.tables import Table, latex, latex_text, markdown
from segexp.report.words import clean, difference, notes_of, number, p_value, score, short

HD95 = Metric("hd95", "HD95", higher_is_better=False, per_image=True, points=False, rope=NAN)


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (score(DICE, 0.81234), "81.23"),
        (score(HD95, 5.31449), "5.314"),
        (score(DICE, NAN), "\u2013"),
        (difference(DICE, -0.0123), "\u22121.23"),
        (difference(DICE, 0.0123), "+1.23"),
        (difference(HD95, -2.5), "\u22122.5"),
        (number(12470000.0), "12470000"),
        (number(-0.123456), "\u22120.1235"),
        (number(True), "yes"),
        (number(""), "\u2013"),
        (p_value(0.0004), "<0.001"),
        (p_value(0.0341), "0.034"),
        (p_value(NAN), "\u2013"),
        (clean("a\nb\x1b[0m\ud800"), "a b\ufffd[0m\ufffd"),
        (short("x" * 50, 11), "xxxxxx\u2026xxxx"),
        (short("short", 11), "short"),
    ],
)
def test_values_in_words(shown: str, expected: str) -> None:
    assert shown == expected


def test_latex_prints_any_name() -> None:
    assert latex_text(r"a_b & 5 % of {$x^2} ~ #1 \n <|>") == (
        r"a\_b \& 5 \% of \{\$x\textasciicircum{}2\} \textasciitilde{} \#1 \textbackslash{}n "
        r"\textless{}\textbar{}\textgreater{}"
    )
    assert latex_text("\u22121.2 \u00b1 0.3 \u2013") == r"$-$1.2 $\pm$ 0.3 --"


def test_latex_has_a_column_for_each_cell_and_no_bracket_after_a_line() -> None:
    text = latex(tables.comparisons(make_block({"a": 0.8, "b": 0.82}, "a"), DICE, "all"))
    lines = text.splitlines()
    (alignment,) = re.findall(r"\\begin{tabular}{(\w+)}", text)
    body = lines[lines.index(r"\toprule") + 1 : lines.index(r"\bottomrule")]
    cells = [len(re.split(r"(?<!\\)&", line)) for line in body if line != r"\midrule"]
    assert cells == [len(alignment)] * 2
    assert not any(re.match(r"\s*\[", line) for line in body)
    assert r"{[+0.88, +3.12]}" in text
    assert r"\label{tab:all}" in text


def test_markdown_keeps_its_columns() -> None:
    table = Table("t", "a | b", (("x|y", "text"), ("n", "number")), (("1 | 2", "<b>"), ("line\nend", "&")), "note")
    lines = markdown(table).splitlines()
    assert lines[0] == "### a \\| b"
    assert [len(re.split(r"(?<!\\)\|", line)) for line in lines[2:6]] == [4] * 4
    assert "1 \\| 2" in lines[4]
    assert "&lt;b&gt;" in lines[4]
    assert lines[5].startswith("| line end | &amp;")


def test_comparisons_in_two_lose_nothing() -> None:
    whole = tables.comparisons(make_block({"a": 0.8, "b": 0.82}, "a"), DICE, "all")
    verdicts, design = tables.in_two(whole)
    assert [*verdicts.columns, *design.columns[2:]] == list(whole.columns)
    assert [*verdicts.rows[0], *design.rows[0][2:]] == list(whole.rows[0])
    assert design.columns[:2] == whole.columns[:2]


def test_a_mean_and_its_sd_share_a_cell() -> None:
    rows = ({"arm": "a", "nll": 0.12345, "nll_sd": 0.0123, "n": 5}, {"arm": "b", "nll": NAN, "nll_sd": NAN, "n": 4})
    table = tables.answer(Answer("q", "Q", rows, ()), "q")
    assert [title for title, _ in table.columns] == ["arm", "nll", "n"]
    assert table.rows == (("a", "0.1235 \u00b1 0.012", "5"), ("b", "\u2013", "4"))
    assert "standard deviation" in table.note


def test_seeds_needed_are_a_number_none_or_unknown() -> None:
    block = make_block({"a": 0.8, "b": 0.82}, "a")
    (known,) = block.comparisons
    never = dataclasses.replace(known, seeds_needed=None)
    unknown = dataclasses.replace(never, minimum_detectable=NAN)
    table = tables.comparisons(dataclasses.replace(block, comparisons=(known, never, unknown)), DICE, "all")
    assert table.columns[13] == ("seeds to find 1.00", "number")
    assert [row[13] for row in table.rows] == ["12", "no number", "\u2013"]


def test_factors_crossed_name_their_seeds() -> None:
    table = tables.crossed(make_factorial(("a", "b"), ("x", "y")), DICE, "f")
    assert re.fullmatch(r"8\d\.\d\d \(5\)", table.rows[0][1])
    assert table.rows[1][2] == "\u2013"


def test_a_note_that_comparisons_share_stands_once() -> None:
    block = make_block({"a": 0.8, "b": 0.82, "c": 0.83}, "a")
    first, second = block.comparisons
    both = (
        dataclasses.replace(first, warnings=("few images", "unpaired"), dropped=""),
        dataclasses.replace(second, warnings=("few images",), dropped="seed 3"),
    )
    assert notes_of(dataclasses.replace(block, comparisons=both, warnings=("all of it",))) == [
        "few images",
        "c against a: unpaired",
        "b against a: not compared: seed 3",
        "all of it",
    ]


def test_csv_has_the_unit_of_the_metric_and_no_nan() -> None:
    result = make_result(n_arms=3)
    rows = list(csv.DictReader(io.StringIO(tables.comparisons_csv(result))))
    assert len(rows) == 4
    assert float(rows[0]["mean"]) == result.blocks[0].comparisons[0].overall.mean
    assert rows[0]["conditions"] == "loss=dice"
    runs = list(csv.DictReader(io.StringIO(tables.runs_csv(result))))
    assert runs[-1]["score"] == ""
    images = list(csv.DictReader(io.StringIO(tables.images_csv(result))))
    assert len(images) == 4 * 60
    assert images[0]["image"] == "image_0000"
