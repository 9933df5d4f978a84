"""Lists and tables as editors, spreadsheets and scripts write them."""

from pathlib import Path

import pytest

from segexp.data.lists import doubtful_names, parts_in
from segexp.errors import UsageError
from segexp.records.user_tables import read_table

ROWS = [{"image": "001", "group": "x, y"}, {"image": "b", "group": "é"}]
PLAIN = 'image,group\n001,"x, y"\nb,é\n'


@pytest.mark.parametrize("data", [
    PLAIN.encode(),
    PLAIN.encode("utf-8-sig"),
    PLAIN.encode("utf-16"),
    b"\xfe\xff" + PLAIN.encode("utf-16-be"),
    PLAIN.replace("\n", "\r\n").encode(),
    PLAIN.replace("\n", "\r").encode(),
    PLAIN.rstrip("\n").encode(),
    (PLAIN + "\n\n,\n , \n").encode(),
    ("\n" + PLAIN).encode(),
    b'image;group\n001;x, y\nb;\xc3\xa9\n',
    b'image\tgroup\n001\tx, y\nb\t\xc3\xa9\n',
    b'sep=;\nimage;group\n001;x, y\nb;\xc3\xa9\n',
    b'"image","group"\n"001","x, y"\n"b","\xc3\xa9"\n',
    b'image , group,,\n 001 ,"x, y",,\nb,\xc3\xa9\n',
    b'image,group\n="001","x, y"\nb,\xc3\xa9\n',
], ids=range(15))  # fmt: skip
def test_tables_of_many_programs_read_alike(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes(data)
    table = read_table(path, ("image", "group"))
    assert [{name: row[name] for name in ("image", "group")} for row in table.rows] == ROWS


@pytest.mark.parametrize(("data", "words"), [
    ("image\nlésion\n".encode("latin-1"), ["UTF-8", "Latin-1", "Excel"]),
    ("image\na\n".encode("utf-16-le"), ["UTF-16", "save it as UTF-8"]),
    (b"PK\x03\x04 and more", ["spreadsheet", "CSV"]),
    (b"", ["empty", "columns"]),
    (b"image,group\na,b,c\n", ["line 2", "3 cells", "quotes"]),
    (b'image,group\na,"b\nc,d\n', ["line 2", "quotes"]),
    (b"image,image\na,b\n", ["image more than once"]),
    (b"image,group\na,b\n#N/A,b\n", ["line 3", "#N/A"]),
    (b"a;b,c\nx\n", ["commas and semicolons", "quotes"]),
])  # fmt: skip
def test_tables_with_two_readings_or_none_are_refused(data: bytes, words: list[str], tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes(data)
    with pytest.raises(UsageError) as refused:
        read_table(path)
    assert all(word in str(refused.value) for word in [str(path), *words])
    assert "\n" not in str(refused.value)


def test_the_columns_wanted_tell_the_separator(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("image;group, hospital\na;b\n", encoding="utf-8")
    table = read_table(path, ("image",))
    assert (table.separator, table.columns) == (";", ("image", "group, hospital"))
    assert read_table(path, separator=",").columns == ("image;group", "hospital")


def test_a_table_of_very_many_columns_is_read(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text(",".join(map(str, range(100_000))) + "\n", encoding="utf-8")
    assert len(read_table(path).columns) == 100_000  # at once: no column is compared with all others


def test_a_row_knows_its_line(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text('image,note\na,"two\nlines"\n\nb,\n', encoding="utf-8")
    assert read_table(path).lines == (2, 5)


def test_a_list_has_comments_and_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "train.txt"
    path.write_bytes(b"\xef\xbb\xbf# mine\r\n\r\n a \r\nb c\r\n#1\r\n#2\r\n")
    found = parts_in({"train": path}, ("a", "b c", "#1"), str, "")
    assert found == {"a": "train", "b c": "train", "#1": "train"}  # an image may have the name of a comment


@pytest.mark.parametrize(("name", "doubtful"), [
    ("1E5", True), ("1.2E+05", True), ("1,2E+05", True), ("3-Dec", True), ("12 Jan", True),
    ("001", False), ("E5", False), ("P1E5", False), ("2012", False),
])  # fmt: skip
def test_names_that_a_spreadsheet_has_changed(name: str, doubtful: bool, tmp_path: Path) -> None:
    notes = doubtful_names([name], "ids", tmp_path)
    assert bool(notes) == doubtful
    assert all(name in note for note in notes)
