"""Plain, Markdown and JSON tables."""

import json

import pytest

from segexp.records.formatting import (
    METADATA,
    csv_table,
    image_bytes,
    json_table,
    markdown_table,
    new_figure,
    text_table,
)

ROWS = [
    {"name": "a", "value": 1.23456, "flag": True, "none": None, "list": ["x", "y"]},
    {"name": "long name", "value": 2, "flag": False, "none": None, "list": []},
]


def test_columns_are_aligned_and_line_ends_are_clean() -> None:
    assert text_table(ROWS).splitlines() == [
        "name       value  flag  none  list",
        "---------  -----  ----  ----  ----",
        "a          1.23   yes         x, y",
        "long name  2      no",
    ]


def test_long_cells_are_wrapped_at_words_and_lose_none() -> None:
    words = [f"word{i}" for i in range(40)]
    table = text_table([{"name": "a", "text": " ".join(words)}, {"name": "b", "text": "short"}], width=50)
    lines = table.splitlines()
    assert max(map(len, lines)) <= 50
    assert table.split()[4:-2] == ["a", *words]
    assert lines[-1].split() == ["b", "short"]
    starts = {len(line) - len(line[6:].lstrip()) for line in lines[3:-1]}
    assert len(starts) == 1


@pytest.mark.parametrize("width", [20, 40, 60, 80, 140, 1000])
def test_no_line_is_longer_than_asked_where_that_can_be(width: int) -> None:
    rows = [{"a": "x y " * n, "b": "z" * (n % 9), "c": n} for n in range(1, 30)]
    assert max(map(len, text_table(rows, width=width).splitlines())) <= max(width, 3 * 14 + 4)


def test_a_word_too_long_for_its_column_is_broken_and_not_lost() -> None:
    path = "/very/long/path/without/any/blank/in/it/at/all/that/goes/on/and/on"
    table = text_table([{"what": "x", "path": path}], width=40)
    assert max(map(len, table.splitlines())) <= 40
    assert "".join(table.splitlines()[2:]).replace(" ", "").replace("x", "", 1) == path


def test_the_widest_columns_give_way_first() -> None:
    rows = [{"short": "abc def", "long": "word " * 60, "longer": "word " * 60}]
    first = text_table(rows, width=100).splitlines()[1].split()
    assert len(first[0]) == len("abc def")
    assert abs(len(first[1]) - len(first[2])) <= 1


@pytest.mark.parametrize("table", [text_table, markdown_table])
def test_a_table_without_rows_says_so(table: object) -> None:
    assert callable(table)
    assert table([]) == "(none)"


@pytest.mark.parametrize(("value", "shown"), [
    (0.1 + 0.2, "0.3"), (1e-9, "1e-09"), (123456.0, "1.23e+05"), (0, "0"), (True, "yes"), (False, "no"), (None, ""),
    (["a", 1], "a, 1"), (("a",), "a"), ("text", "text"), (float("nan"), "nan"), ("", ""), ([], ""), ((), ""),
])  # fmt: skip
def test_values_as_people_write_them(value: object, shown: str) -> None:
    assert text_table([{"a": "x", "b": value}]).splitlines()[2] == f"x  {shown}".rstrip()
    assert text_table([{"a": value, "b": "x"}]).splitlines()[2] == f"{shown or ' '}  x"
    assert markdown_table([{"a": "x", "b": value}]).splitlines()[2] == f"| x | {shown} |"


def test_markdown() -> None:
    assert markdown_table(ROWS).splitlines() == [
        "| name | value | flag | none | list |",
        "| --- | --- | --- | --- | --- |",
        "| a | 1.23 | yes |  | x, y |",
        "| long name | 2 | no |  |  |",
    ]

    # Cells cannot break their table.
    assert markdown_table([{"a": "x|y|"}]).splitlines()[2:] == ["| x\\|y\\| |"]


def test_json_keeps_types_and_letters() -> None:
    rows = [{"a": 0.1 + 0.2, "b": [1, "ü"], "c": None, "d": True}]
    assert json.loads(json_table(rows)) == rows
    assert "ü" in json_table(rows)
    assert json.loads(json_table([])) == []
    assert csv_table([{"a": "x, y", "b": 0.1 + 0.2}, {"a": "z", "b": None}]) == f'a,b\n"x, y",{0.1 + 0.2}\nz,\n'


@pytest.mark.parametrize("width", range(42, 60))
def test_long_words_part_at_commas_and_titles_are_wrapped_too(width: int) -> None:
    rows = [{"difference of both (points)": "1.0", "levels": "alpha=1,beta=22,gamma=333", "more": "word " * 12}]
    lines = text_table(rows, width=width).splitlines()
    assert max(map(len, lines)) <= width
    shown = " ".join(lines)
    for piece in ("alpha=1,", "beta=22,", "gamma=333", "difference", "(points)"):
        assert piece in shown
    dashes = next(line for line in lines if line.startswith("-"))
    assert lines.index(dashes) > 1
    starts = [n for n, c in enumerate(dashes) if c == "-" and (n == 0 or dashes[n - 1] == " ")]
    assert len(starts) == 3
    assert all(len(line) <= s or line[s - 1] == " " for line in lines for s in starts[1:])


@pytest.mark.parametrize("kind", METADATA)
def test_equal_figures_are_equal_files(kind: str) -> None:
    written = []
    for _ in range(2):
        figure = new_figure(2, 1)
        figure.subplots().plot([0, 1], marker="o")  # a marker and a clip have ids in SVG
        written.append(image_bytes(figure, kind))
    assert written[0] == written[1]


def test_a_cell_of_millions_of_characters_is_cut():
    text = text_table([{"a": "x" * 10**7, "b": "end"}])
    assert len(text) < 20_000
    assert "10,000,000 characters" in " ".join(text.split()).replace("- ", "")
