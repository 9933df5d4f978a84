"""Write the tables of docs/catalogues.md from the registries and commands; with --check, only report stale tables.

    python scripts/catalogues.py [--check]

A table stands between `<!-- NAME: made by scripts/catalogues.py -->` and `<!-- end -->`.
"""

import re
import sys
from pathlib import Path

from segexp.commands import COMMANDS
from segexp.commands.list import listed
from segexp.records.formatting import markdown_table

PAGE = Path(__file__).resolve().parent.parent / "docs" / "catalogues.md"

TABLES: dict[str, dict[str, str]] = {
    "commands": {"name": "command", "summary": "what it does"},
    "activations": {
        "name": "activation",
        "formula": "p = F(x)",
        "tail": "tail (a = size of x)",
        "wrong_pixel_gradient": "BCE gradient, wrong pixel",
        "slope_at_zero": "F'(0)",
        "source": "source",
    },
    "hidden_activations": {
        "name": "hidden activation",
        "formula": "f(x)",
        "derivative": "f'(x)",
        "range": "range",
        "zero_centred": "zero-centred",
        "saturates": "saturates",
        "can_die": "can die",
        "learnable": "learns",
        "gain": "gain",
        "cost": "time, of relu's",
        "saved_bytes": "bytes kept",
        "source": "source",
    },
    "losses": {
        "name": "loss",
        "formula": "formula",
        "proper": "proper",
        "needs": "needs",
        "side_effects": "side effects",
        "source": "source",
    },
    "models": {
        "name": "model",
        "encoders": "encoders",
        "divisor": "size divisible by",
        "min_size": "least size, px",
        "source": "source",
    },
}
"""Kind of list -> its columns and their headings."""


def table(kind: str) -> str:
    """The Markdown table of one kind."""
    columns = TABLES[kind]
    if kind == "commands":
        rows = [{"name": f"`segexp {name}`", "summary": summary} for name, summary in COMMANDS.items()]
    else:
        rows = listed(kind)
    return markdown_table([{columns[key]: row[key] for key in columns} for row in rows])


def renewed(text: str) -> str:
    """The page with every table as the code has it now. Raises ValueError when a table has no place."""
    for kind in TABLES:
        pattern = re.compile(rf"(<!-- {kind}: made by scripts/catalogues.py -->\n).*?(<!-- end -->)", re.DOTALL)
        text, found = pattern.subn(lambda m, kind=kind: f"{m[1]}{table(kind)}\n{m[2]}", text)  # type: ignore[misc]
        if found != 1:
            raise ValueError(f"{PAGE.name} has {found} places for the table of {kind}, not one")
    return text


def main() -> int:
    """Exit code 1 when --check finds a stale table."""
    before = PAGE.read_text(encoding="utf-8")
    after = renewed(before)
    if "--check" in sys.argv[1:]:
        if before != after:
            print(f"the tables of {PAGE} are stale: run python scripts/catalogues.py", file=sys.stderr)
        return int(before != after)
    PAGE.write_text(after, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
