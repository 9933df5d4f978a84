"""Lists and tables that people and spreadsheets write: which image belongs to which part, group or file."""

import codecs
import csv
import io
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from segexp.errors import UsageError, first_line
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
MANGLED = re.compile(r"\d+([.,]\d+)?E\+?\d+|\d{1,2}[-. ](Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)", re.I)
"""What a spreadsheet makes of an id like 1e5 or 3-12: a number or a date in its own notation."""


def some(names: Sequence[str]) -> str:
    """The first five names and the number of the others."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def composed(name: str) -> str:
    """The name in one spelling (Unicode's NFC): archives made on a Mac write é as two characters."""
    return unicodedata.normalize("NFC", name)


def spelling(names: Iterable[str]) -> Callable[[str], str]:
    """A function that spells a name, composed or not, as ``names`` do; others stay as they are."""
    known = {composed(name): name for name in names}
    return lambda name: known.get(composed(name), name)


def read_text(path: Path) -> str:
    """A text file in UTF-8, or in UTF-16 with a byte order mark; lines end in "\\n". Raises UsageError for others."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({first_line(error)}); check the path and its permissions") from None
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


def read_lines(path: Path) -> list[str]:
    """The lines of a list, without blanks around them, empty lines and comments (#)."""
    lines = [line.strip() for line in read_text(path).split("\n")]
    return [line for line in lines if line and not line.startswith("#")]


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
                f"{self.path} has no column '{column}', only {', '.join(self.columns)}; set dataset.{option}=COLUMN to "
                f"the column of {meaning}"
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


def doubtful_names(names: Iterable[str], what: str, path: Path) -> list[str]:
    """A note if names look as if a spreadsheet had changed them."""
    changed = sorted({name for name in names if MANGLED.fullmatch(name)})
    if not changed:
        return []
    return [f"{what} in {path} look as if a spreadsheet had changed them ({some(changed)}); format the column as text"]


def alike(group_ids: Iterable[str]) -> list[str]:
    """A note if names of groups differ only in case."""
    spellings: dict[str, set[str]] = {}
    for group in group_ids:
        spellings.setdefault(group.casefold(), set()).add(group)
    pairs = [" and ".join(sorted(names)) for names in spellings.values() if len(names) > 1]
    return [f"groups differ only in case ({some(pairs)}) and count as different; write them alike"] if pairs else []


def parts_in(
    lists: Mapping[str, Path], image_ids: Collection[str], image_id: Callable[[str], str], cure: str
) -> dict[str, str]:
    """Image id -> part for every image that the lists name. image_id: line of a list -> image id.

    cure: what to do without the lists. Raises UsageError for an empty list, and an image that is not there or in two.
    """
    part_of: dict[str, str] = {}
    spelled = spelling(image_ids)
    for part, path in lists.items():
        entries = read_lines(path)
        if not entries:
            raise UsageError(f"{path} lists no images; write one image id per line, or {cure}")
        for entry in entries:
            name = spelled(image_id(entry))
            if name not in image_ids:
                mark = next((SEPARATORS[mark] for mark in ";\t," if mark in entry), "")
                table = f" (it holds {mark}: write only the names, without other columns)" if mark else ""
                raise UsageError(f"{path}: there is no image '{entry}'{table}; correct or remove the line, or {cure}")
            if part_of.setdefault(name, part) != part:
                names = f"{lists[part_of[name]].name} and {path.name}"
                raise UsageError(f"'{name}' is in both {names} in {path.parent}; remove one")
    return part_of


def groups_in(
    path: Path, key: str, column: str, image_ids: Sequence[str], image_id: Callable[[str], str]
) -> tuple[str, ...]:
    """The group of each image, from the group file. image_id: cell of the column ``key`` -> image id.

    Raises UsageError for an image without a group or with two.
    """
    table = read_table(path, (key, column))
    table.check_column(key, "group_key", "image names")
    table.check_column(column, "group_column", "groups")
    group_of: dict[str, str] = {}
    spelled, spelled_group = spelling(image_ids), spelling(row[column] for row in table.rows)
    for row in table.rows:
        name, group = spelled(image_id(row[key])), spelled_group(row[column])
        if group_of.setdefault(name, group) != group:
            raise UsageError(f"{path}: '{name}' is in both group '{group_of[name]}' and '{group}'; remove one row")
    missing = [name for name in image_ids if not group_of.get(name)]
    if missing:
        raise UsageError(
            f"{path} has no {column} for {len(missing)} images (the first is '{missing[0]}'); add them, because images "
            "of one group must not be in two parts of the split"
        )
    return tuple(group_of[name] for name in image_ids)
