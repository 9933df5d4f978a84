"""A report on disk: the page, what is too large for it beside it, figures and tables for a paper."""

from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from segexp.errors import UsageError
from segexp.records import write_atomic
from segexp.records.formatting import METADATA, image_bytes
from segexp.report.figures import styled
from segexp.report.page import MARK, Contents, page_of
from segexp.report.render import latex, markdown

FORMATS = tuple(METADATA)


def refuse_foreign(path: Path) -> None:
    """Raise UsageError where the page would replace a directory, or a file that is no report of ours."""
    if path.is_dir():
        raise UsageError(f"{path} is a directory: name a file, such as {path / 'report.html'}")
    if path.exists() and MARK.encode() not in path.read_bytes():
        raise UsageError(f"{path} is no report of segexp, and is not overwritten: give another -o, or remove it")


def write_page(path: Path, contents: Contents) -> list[Path]:
    """Write the page, and into the folder <name>-data beside it the CSV files that are too large; returns all paths.

    Raises UsageError as `refuse_foreign` does.
    """
    refuse_foreign(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.stem}-data")
    page, linked = page_of(contents, quote(beside.name))
    written = []
    for name, text in linked.items():
        beside.mkdir(exist_ok=True)
        write_atomic(beside / name, text)
        written.append(beside / name)
    # The page comes last: once it is there, so is everything that it links to.
    write_atomic(path, page)
    return [path, *written]


def write_figures(folder: Path, contents: Contents, formats: Sequence[str] = FORMATS) -> list[Path]:
    """Every figure of the report in every format, for paper: black on white."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with styled():
        for drawing in contents.drawings():
            for kind in formats:
                written.append(folder / f"{drawing.name}.{kind}")
                write_atomic(written[-1], image_bytes(drawing.figure, kind, dpi=300))
    return written


def write_tables(folder: Path, contents: Contents) -> list[Path]:
    """Every table of the report as LaTeX (booktabs) and as Markdown."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for table in contents.tables():
        for path, text in ((f"{table.name}.tex", latex(table)), (f"{table.name}.md", markdown(table))):
            write_atomic(folder / path, text)
            written.append(folder / path)
    return written
