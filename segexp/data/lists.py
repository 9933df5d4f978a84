"""Lists and tables that people and spreadsheets write: which image belongs to which part, group or file."""

import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path

from segexp.errors import UsageError
from segexp.records.user_tables import SEPARATORS, read_table, read_text, some

MANGLED = re.compile(r"\d+([.,]\d+)?E\+?\d+|\d{1,2}[-. ](Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)", re.I)
"""What a spreadsheet makes of an id like 1e5 or 3-12: a number or a date in its own notation."""


def composed(name: str) -> str:
    """The name in one spelling (Unicode's NFC): archives made on a Mac write é as two characters."""
    return unicodedata.normalize("NFC", name)


def spelling(names: Iterable[str]) -> Callable[[str], str]:
    """A function that spells a name, composed or not, as ``names`` do; others stay as they are."""
    known = {composed(name): name for name in names}
    return lambda name: known.get(composed(name), name)


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

    A line that begins with # and names no image is a comment. cure: what to do without the lists. Raises UsageError for
    an empty list, and an image that is not there or in two.
    """
    part_of: dict[str, str] = {}
    spelled = spelling(image_ids)
    for part, path in lists.items():
        lines = filter(None, map(str.strip, read_text(path).split("\n")))
        entries = [line for line in lines if line[0] != "#" or spelled(image_id(line)) in image_ids]
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
    table.check_column(key, "dataset.group_key", "image names")
    table.check_column(column, "dataset.group_column", "groups")
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
