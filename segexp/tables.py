"""Plain tables for the terminal, Markdown, CSV and JSON; spans of time and sizes as people read them."""

import csv
import io
import json
import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]


def text_table(rows: Sequence[Row], width: int = 100) -> str:
    """Aligned columns under a header; long cells are wrapped so that a line keeps to about ``width``."""
    if not rows:
        return "(none)"
    names = list(rows[0])
    cells = [[_plain(row[name]) for name in names] for row in rows]
    widths = [max(len(name), *(len(line[i]) for line in cells)) for i, name in enumerate(names)]
    while sum(widths) + 2 * len(widths) > width and max(widths) > 14:
        widths[widths.index(max(widths))] -= 1
    lines = [_line(names, widths), _line(["-" * w for w in widths], widths)]
    for row in cells:
        wrapped = [textwrap.wrap(cell, w) or [""] for cell, w in zip(row, widths, strict=True)]
        for i in range(max(map(len, wrapped))):
            lines.append(_line([part[i] if i < len(part) else "" for part in wrapped], widths))
    return "\n".join(lines)


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
    """CSV with a header; every row has the columns of the first."""
    text = io.StringIO()
    table = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return text.getvalue()


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


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(cell.ljust(w) for cell, w in zip(cells, widths, strict=True)).rstrip()
