"""A data set that a table lists: a row for each image, with its files, and its part, group and pixel size if known."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from segexp.data.file_set import (
    FilesConfig,
    Item,
    below,
    beside,
    coding_of,
    folder_at,
    image_set_of,
    root_of,
    shown,
    stem_of,
)
from segexp.data.image_set import ImageSet, PairsError, adapter
from segexp.data.lists import alike, composed, doubtful_names
from segexp.errors import UsageError
from segexp.records.formatting import pluralize
from segexp.records.user_tables import PARTS, SEPARATORS, Table, read_table, some
from segexp.registry import REQUIRED


@dataclass
class ManifestConfig(FilesConfig):
    """Options of a data set that a table lists; values and explanations are in configs/dataset/manifest.yaml."""

    manifest: str = REQUIRED
    separator: Annotated[str, ("auto", *SEPARATORS.values())] = REQUIRED
    files_separator: str | None = REQUIRED
    image_column: str = REQUIRED
    mask_column: str = REQUIRED
    id_column: str | None = REQUIRED
    split_column: str | None = REQUIRED
    group_column: str | None = REQUIRED
    spacing_column: str | None = REQUIRED

    @property
    def names_groups(self) -> str:
        return "a column, dataset.group_column"


@adapter("manifest", ManifestConfig)
def open_manifest(config: ManifestConfig) -> ImageSet:
    """Images and masks that a CSV lists, with part, group, id and pixel size where it has them.

    image_HWC: as the files, or one channel per file of a row; volumes give one image per slice. Decodes no pixels.
    Raises UsageError for a table with two readings, files that are missing or outside the root.
    """
    coding_of(config)
    root = root_of(config)
    path = folder_at(root, config.manifest, "manifest")
    if not path.is_file():
        raise UsageError(f"no file {path}; set dataset.manifest to a CSV file (absolute path, or relative to {root})")
    mark = next((mark for mark, name in SEPARATORS.items() if name == config.separator), None)
    table = read_table(path, (config.mask_column,), mark)
    if not table.rows:
        raise UsageError(f"{path} lists no images; write a row for each")
    columns = _image_columns(config, table)
    table.check_column(config.mask_column, "dataset.mask_column", "masks")
    known = {name: _optional(config, table, name) for name in ("id", "split", "group", "spacing")}
    items: dict[str, Item] = {}
    line_of: dict[str, int] = {}
    repeated = []
    wrong: dict[str, str] = {}
    for line, row in zip(table.lines, table.rows, strict=True):
        try:
            item = _item(config, root, columns, known, row, f"{path}, line {line}", table.separator)
        except UsageError as error:
            wrong[f"line {line}"] = str(error)
            continue
        first = items.setdefault(item.image_id, item)
        if first != item:
            where = f"{path}: lines {line_of[item.image_id]} and {line} have the same image id '{item.image_id}'"
            cure = "name a column of ids in dataset.id_column, or remove a row"
            wrong[f"line {line}"] = f"{where}, but differ; {cure}"
            continue
        repeated += [line] if item.image_id in line_of else []
        line_of.setdefault(item.image_id, line)
    refusals = _refusals(root, path, wrong, {line_of[name]: item for name, item in items.items()})
    refused = {line for refusal in refusals for line in refusal.problems}
    unused = _unused(root, path, items.values())
    items = {name: item for name, item in items.items() if f"line {line_of[name]}" not in refused}
    notes = [f"{path}: {pluralize(len(repeated), 'repeated row')} counted once"] if repeated else []
    notes += doubtful_names([row[known["id"]] for row in table.rows] if known["id"] else (), "image ids", path)
    groups = [item.group for item in items.values()]
    notes += [*doubtful_names(groups, "groups", path), *alike(groups)]
    declared = any(item.split for item in items.values())
    found = image_set_of(
        config, root, [*items.values()], declared=declared, notes=notes, unused=unused, refusals=refusals
    )
    if not known["spacing"]:
        return found
    # The size of a pixel changes scores and is in no file.
    return replace(found, file_bytes=lambda n: (*found.file_bytes(n), str(found.spacings[n : n + 1]).encode()))


def _image_columns(config: ManifestConfig, table: Table) -> list[str]:
    """The column of images, or those of the channels: image_1, image_2, ... Raises UsageError."""
    name = config.image_column
    number = re.compile(rf"{re.escape(name)}_(\d+)")
    numbered = {int(match[1]): column for column in table.columns if (match := number.fullmatch(column))}
    if name in table.columns and numbered:
        raise UsageError(f"{table.path} has the columns {name} and {some([*numbered.values()])}; rename one of them")
    if not numbered:
        table.check_column(name, "dataset.image_column", "images (channels: image_1, image_2, ...)")
        return [name]
    return [numbered[n] for n in sorted(numbered)]


def _optional(config: ManifestConfig, table: Table, meaning: str) -> str:
    """The column that an option names, else the one called as what it means; "" if there is none."""
    given = getattr(config, f"{meaning}_column")
    if given is not None:
        table.check_column(given, f"dataset.{meaning}_column", f"the {meaning} of each image")
    return str(given or (meaning if meaning in table.columns else ""))


def _item(
    config: ManifestConfig,
    root: Path,
    columns: Sequence[str],
    known: dict[str, str],
    row: dict[str, str],
    where: str,
    separator: str,
) -> Item:
    """The image of a row. where: file and line, for messages. separator: of the columns."""

    def cell(column: str) -> str:
        if column and not row[column]:
            raise UsageError(f"{where}: the cell of {column} is empty; fill it, or remove the row")
        return row[column] if column else ""

    def files(column: str) -> Iterator[Path]:
        parts = cell(column).split(config.files_separator) if config.files_separator else [cell(column)]
        yield from (_path(config, root, part.strip(), where) for part in parts)

    images = tuple(path for column in columns for path in files(column))
    part = cell(known["split"]).lower()
    if part and part not in PARTS:
        raise UsageError(f"{where}: '{part}' is no part of a split; write train, val or test")
    return Item(
        image_id=composed(cell(known["id"]) or stem_of(images[0])),
        images=images,
        masks=tuple(files(config.mask_column)),
        group=composed(cell(known["group"])),
        split=PARTS.get(part, ""),
        spacing=_spacing(row[known["spacing"]], where, separator) if known["spacing"] else None,
    )


def _path(config: ManifestConfig, root: Path, text: str, where: str) -> Path:
    """The path that a cell means: below the root, or absolute and below it; symbolic links are followed.

    Backslashes separate folders, unless a file has one in its name. Raises UsageError for a path that leaves the root.
    """
    path = Path(text)
    if "\\" in text and not (root / text).exists():
        path = Path(text.replace("\\", "/"))
    given = Path(config.root).expanduser().absolute()
    if path.is_absolute() and path.is_relative_to(given):  # the root may be a link
        path = path.relative_to(given)
    try:
        return _respelled(root, below(root, path, "manifest"))
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None


def _respelled(root: Path, path: Path) -> Path:
    """The path as the folders below ``root`` spell it, where they spell letters like é otherwise, see `composed`."""
    if str(path).isascii() or path.exists():
        return path
    at = root
    for part in path.relative_to(root).parts:
        inside = at.iterdir() if at.is_dir() else ()
        same = [inner for inner in inside if composed(inner.name) == composed(part)]
        at = same[0] if len(same) == 1 else at / part
    return at


def _spacing(text: str, where: str, separator: str) -> tuple[float, float, float] | None:
    """(slice thickness or 0, pixel height, pixel width) of one number, two (height, width) or three.

    A comma is a decimal one, unless it separates the columns.
    """
    if not text:
        return None
    point = text if separator == "," else text.replace(",", ".")
    try:
        numbers = [float(word) for word in point.strip("[]()").replace("x", " ").split()]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 2, 3) or not all(0 < number < float("inf") for number in numbers):
        raise UsageError(
            f"{where}: spacing '{text}' is not one number, 'height width' or 'thickness height width'; write positive "
            "numbers with a point, separated by blanks"
        )
    *thickness, height, width = numbers * 2 if len(numbers) == 1 else numbers
    return (thickness[0] if thickness else 0.0, height, width)


def _refusals(root: Path, path: Path, wrong: Mapping[str, str], items: Mapping[int, Item]) -> list[PairsError]:
    """The errors about rows that are wrong (line -> why), that name files which are missing, or another number of files
    than the first. items: by line."""
    usual = next((len(item.images) for item in items.values()), 0)
    uneven = {line: len(item.images) for line, item in items.items() if len(item.images) != usual}
    wrong = {**wrong} | {
        f"line {line}": f"{path}, line {line}: {number} image files, {usual} in the first row; give each the same"
        for line, number in uneven.items()
    }
    listed = [text.removeprefix(f"{path}, ") for text in wrong.values()]
    several = f"{path}: {len(wrong)} rows cannot be used: {some(listed)}"
    refusals = [PairsError.about(next(iter(wrong.values())) if len(wrong) == 1 else several, wrong)] if wrong else []
    lost = {
        f"line {line}": f"line {line}: {file}"
        for line, item in items.items()
        for file in (*item.images, *item.masks)
        if not file.exists()
    }
    if lost:
        found = f"{path}: {pluralize(len(lost), 'row')} with files that cannot be found ({some([*lost.values()])})"
        refusals.append(PairsError.about(f"{found}; paths are relative to dataset.root={root}", lost))
    return refusals


def _unused(root: Path, manifest: Path, items: Iterable[Item]) -> dict[str, str]:
    """What lies beside the files of the table and is not in it."""
    used = {path for item in items for path in (*item.images, *item.masks)}
    others = beside({*used, manifest}, {path.parent for path in used}, f"not in {manifest.name}")
    return {shown(root, path): why for path, why in others.items()}
