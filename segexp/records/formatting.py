"""Tables and numbers as text, and the common style of all figures."""

import csv
import io
import json
import math
import re
import textwrap
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = Mapping[str, Any]


def text_table(rows: Sequence[Row], width: int = 100, right: Collection[str] = ()) -> str:
    """Aligned columns under a header, in lines of about ``width``. right: names of columns aligned at the right.

    Long cells and titles are wrapped at blanks, words that are too long for their column after a comma, semicolon or
    slash, else in the middle. Of a cell, `LONGEST_CELL` characters are shown.
    """
    if not rows:
        return "(none)"
    names = list(rows[0])
    cells = [names, *([_cut(_plain(row[name])) for name in names] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(names))]
    whole = [max(_longest(line[i]) for line in cells) for i in range(len(names))]
    below = [max(_longest(cells[0][i]), *(len(line[i]) for line in cells[1:])) for i in range(len(names))]
    # The widest columns shrink first. Titles are wrapped before cells; words are broken only if that is not enough.
    for least in (below, whole, [14] * len(names)):
        while sum(widths) + 2 * len(widths) > width:
            spare = [w if w > kept else 0 for w, kept in zip(widths, least, strict=True)]
            if not any(spare):
                break
            widths[spare.index(max(spare))] -= 1
    header, *body = ([_folded(cell, w) for cell, w in zip(line, widths, strict=True)] for line in cells)
    lines = []
    for folded in (header, [["-" * w] for w in widths], *body):
        for i in range(max(map(len, folded))):
            parts = [part[i] if i < len(part) else "" for part in folded]
            sides = [
                part.rjust(w) if name in right else part.ljust(w)
                for name, part, w in zip(names, parts, widths, strict=True)
            ]
            lines.append("  ".join(sides).rstrip())
    return "\n".join(lines)


LONGEST_CELL = 10_000


def _cut(cell: str) -> str:
    return cell if len(cell) <= LONGEST_CELL else f"{cell[:LONGEST_CELL]} ... ({len(cell):,} characters)"


def _longest(cell: str) -> int:
    """Characters of the longest piece that should not be broken."""
    return max(map(len, re.findall(r"[^\s,;/]+[,;/]*", cell)), default=0)


def _folded(cell: str, width: int) -> list[str]:
    """A cell in lines of at most ``width`` characters."""
    lines = []
    for rest in textwrap.wrap(cell, width, break_long_words=False) or [""]:
        while len(rest) > width:
            cut = max((found.end() for found in re.finditer(r"[,;/]+", rest[:width])), default=width)
            lines.append(rest[:cut].rstrip())
            rest = rest[cut:]  # noqa: PLW2901
        lines.append(rest)
    return lines


def markdown_table(rows: Sequence[Row]) -> str:
    """A GitHub-flavoured Markdown table; pipes inside cells are escaped."""
    if not rows:
        return "(none)"
    names = list(rows[0])
    lines = [names, ["---"] * len(names)]
    lines += [[_plain(row[name]).replace("|", "\\|") for name in names] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def json_table(rows: Sequence[Row]) -> str:
    """A JSON list of objects."""
    return json.dumps(list(rows), indent=1, ensure_ascii=False)


def csv_table(rows: Sequence[Row]) -> str:
    """CSV with a header; every row has the columns of the first. An apostrophe keeps text from being a formula."""
    formula = re.compile(r"[=@\t\r]|[+-](?![\d.]|$)")
    text = io.StringIO()
    table = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    table.writeheader()
    for row in rows:
        table.writerow({k: f"'{v}" if isinstance(v, str) and formula.match(v) else v for k, v in row.items()})
    return text.getvalue()


def pluralize(number: int, what: str) -> str:
    """1 run, 2 runs."""
    return f"{number} {what}{'s' * (number != 1)}"


def pairs(values: Mapping[str, object], between: str = ",") -> str:
    """key=value,key=value."""
    return between.join(f"{key}={value}" for key, value in values.items())


def duration(seconds: float | None) -> str:
    """Seconds as 45 s, 12 min, 3 h 20 min or 2 d 4 h; - when unknown."""
    if seconds is None or not math.isfinite(seconds):
        return "-"
    minutes, hours = round(seconds / 60), round(seconds / 3600)
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def size(n_bytes: int) -> str:
    """Bytes as 12 B, 3.4 MiB ..."""
    power = min(int(math.log(max(n_bytes, 1), 1024)), 4)
    number = n_bytes / 1024**power
    return f"{number:.{0 if power == 0 or number >= 100 else 1}f} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"


def _plain(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return str(value)


BLUE, VERMILION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
ORANGE, SKY, YELLOW, BLACK, GREY = "#E69F00", "#56B4E9", "#F0E442", "#000000", "#999999"
"""Okabe and Ito's palette, which is distinct for any colour vision."""

COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK)
"""Colours of lines in order, without yellow, which is hard to see on white. Line styles distinguish further ones."""

CLASS_COLOURS = (ORANGE, SKY, YELLOW, PURPLE, GREEN, BLUE, VERMILION)
"""Colours of the foreground classes in pictures: first those that arms rarely have and dark images show well."""

STYLES = ("-", "--", ":")

METADATA: dict[str, dict[str, None]] = {
    "png": {"Software": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    "svg": {"Date": None, "Creator": None},
}
"""Formats of a figure, and the metadata to leave out: `image_bytes` gives equal figures as equal files."""


def look(n: int) -> tuple[str, str]:
    """Colour and style of the nth line."""
    return COLOURS[n % len(COLOURS)], STYLES[n // len(COLOURS) % len(STYLES)]


def new_figure(
    width: float, height: float, dpi: int = 130, layout: Literal["constrained"] | None = "constrained"
) -> Any:
    """A figure in inches without a window. layout: None where places are given by hand."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=dpi, layout=layout)
    FigureCanvasAgg(figure)
    return figure


def image_bytes(figure: "Figure", kind: str, dpi: float | None = None, transparent: bool = False) -> bytes:
    """The figure as a file of a kind of `METADATA`. dpi: that of the figure where it is None."""
    from matplotlib import rc_context

    buffer = io.BytesIO()
    with rc_context({"svg.hashsalt": "segexp"}):  # the ids in an SVG file are random without one
        figure.savefig(buffer, format=kind, dpi=dpi or figure.dpi, transparent=transparent, metadata=METADATA[kind])
    return buffer.getvalue()


def tidy(axis: "Axes") -> None:
    """A light grid, and no frame above and to the right."""
    axis.grid(color="0.9", linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)


def terms_of(config: Mapping[str, Any]) -> str:
    """Licence, citation and address of a recorded data set in one line, "" where none is known. config: dotted keys."""
    of = {key: config.get(f"dataset.{key}") for key in ("licence", "citation", "url")}
    words = {"licence": "licence: ", "citation": "cite ", "url": ""}
    return "; ".join(f"{words[key]}{value}" for key, value in of.items() if value)
