"""Tables that people, spreadsheets and other programs write, read as text: data/lists.py has lists of images."""

import codecs
import csv
import io
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from segexp.errors import UsageError
from segexp.records.files import read_bytes
from segexp.records.formatting import pluralize

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}
ENCODINGS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}

PARTS = {word: part for part, words in {
    "train": ("train", "training", "tr"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing", "ts"),
}.items() for word in words}  # fmt: skip
"""What other programs call the parts of a split."""

SPREADSHEET_ERROR = re.compile(r"#(N/A|REF!|VALUE!|NAME\?|DIV/0!|NUM!|NULL!)")


def some(names: Sequence[str]) -> str:
    """The first five names and the number of the others."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def read_text(path: Path) -> str:
    """A text file in UTF-8, or in UTF-16 with a byte order mark; lines end in "\\n". Raises UsageError for others."""
    data = read_bytes(path)
    encoding = next((name for mark, name in ENCODINGS.items() if data.startswith(mark)), "utf-8")
    if data.startswith(b"PK\x03\x04"):
        raise UsageError(f"{path} is a spreadsheet or an archive, whatever its name; save it as CSV in UTF-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError:
        cure = "save it as UTF-8 (in Excel: CSV UTF-8)"
        raise UsageError(f"{path} is not valid UTF-8 (it may be Latin-1); {cure}") from None
    if "\0" in text:
        raise UsageError(f"{path} holds zero bytes: UTF-16 without a byte order mark, or no text; save it as UTF-8")
    return text.replace("\r\n", "\n").replace("\r", "\n")


@dataclass(frozen=True)
class Table:
    """A CSV file. rows: column -> text of the cell; lines: the line of the file that each row begins in."""

    path: Path
    separator: str
    columns: tuple[str, ...]
    rows: tuple[dict[str, str], ...]
    lines: tuple[int, ...]

    def check_column(self, column: str, option: str, meaning: str) -> None:
        """Raise UsageError if there is no such column. option: the one that names it; meaning: what it holds."""
        if column not in self.columns:
            raise UsageError(
                f"{self.path} has no column '{column}', only {', '.join(self.columns)}; set {option}=COLUMN to the "
                f"column of {meaning}"
            )


def read_table(path: Path, wanted: Sequence[str] = (), separator: str | None = None) -> Table:
    """A table whose first row names its columns. wanted: columns that tell the separator if the first row has several.

    Read as other programs write it: with a byte order mark, in UTF-16, with any line ends, "sep=;" above the header,
    rows of nothing but separators, ids as ="001". Cells are text without blanks around it: 001 stays 001. Raises
    UsageError for a row with more cells than columns, a repeated column, an open quote or an error value of a
    spreadsheet.
    """
    text = read_text(path).lstrip("\n")
    stated = re.match(r"sep=(.)\n", text)
    text = text[stated.end() :] if stated else text
    header = text.partition("\n")[0]
    if not header.strip():
        raise UsageError(f"{path} is empty; its first line must name the columns")
    separator = separator or (stated[1] if stated else _separator_of(path, header, wanted))
    reader = csv.reader(io.StringIO(text), delimiter=separator, strict=True)
    rows, lines, line = [], [], 1 + bool(stated)
    try:
        for cells in reader:
            rows.append([_cell(cell) for cell in cells])
            lines.append(line)
            line = reader.line_num + 1 + bool(stated)
    except csv.Error as error:
        raise UsageError(f"{path}, line {line}: not CSV ({error}); close the quotes") from None
    columns = rows[0]
    while columns and not columns[-1]:
        columns.pop()
    twice = sorted(name for name, times in Counter(columns).items() if name and times > 1)
    if twice:
        raise UsageError(f"{path} has the column {some(twice)} more than once; rename one of them")
    kept = [n for n, cells in enumerate(rows) if n and any(cells)]
    for n in kept:
        if any(rows[n][len(columns) :]):
            wrong = f"{len(rows[n])} cells, but {pluralize(len(columns), 'column')}"
            raise UsageError(f"{path}, line {lines[n]}: {wrong}; put cells that hold a separator in quotes")
        if wrong := next((cell for cell in rows[n] if SPREADSHEET_ERROR.fullmatch(cell)), ""):
            raise UsageError(f"{path}, line {lines[n]}: {wrong} is an error of the spreadsheet; correct the cell")
    filled = tuple(dict(zip(columns, rows[n] + [""] * len(columns), strict=False)) for n in kept)
    return Table(path, separator, tuple(columns), filled, tuple(lines[n] for n in kept))


def _separator_of(path: Path, header: str, wanted: Sequence[str]) -> str:
    present = [mark for mark in SEPARATORS if mark in re.sub(r'"[^"]*"', "", header)]
    if len(present) > 1:
        fit = [mark for mark in present if {*wanted} <= {*map(_cell, next(csv.reader([header], delimiter=mark)))}]
        if len(fit) != 1:
            found = " and ".join(SEPARATORS[mark] for mark in present)
            raise UsageError(f"{path}: the first line holds {found}; put names that hold one of them in quotes")
        present = fit
    return present[0] if present else ","


def _cell(text: str) -> str:
    text = text.strip()
    return text[2:-1] if len(text) > 2 and text.startswith('="') and text.endswith('"') else text
