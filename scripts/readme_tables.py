"""Write the tables of README.md anew from the registries, or with --check only say whether they are stale.

    python scripts/readme_tables.py [--check]

A table stands between `<!-- NAME: made by scripts/readme_tables.py -->` and `<!-- end -->`.
"""

import re
import sys
from pathlib import Path

from segexp.commands.list import listed
from segexp.records.formatting import markdown_table

README = Path(__file__).resolve().parent.parent / "README.md"

TABLES: dict[str, dict[str, str]] = {
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
    return markdown_table([{columns[key]: row[key] for key in columns} for row in listed(kind)])


def renewed(text: str) -> str:
    """The README with every table as the registries have it now. Raises ValueError when a table has no place."""
    for kind in TABLES:
        pattern = re.compile(rf"(<!-- {kind}: made by scripts/readme_tables.py -->\n).*?(<!-- end -->)", re.DOTALL)
        text, found = pattern.subn(lambda m, kind=kind: f"{m[1]}{table(kind)}\n{m[2]}", text)  # type: ignore[misc]
        if found != 1:
            raise ValueError(f"README.md has {found} places for the table of {kind}, not one")
    return text


def main() -> int:
    """Exit code 1 when --check finds a stale table."""
    before = README.read_text(encoding="utf-8")
    after = renewed(before)
    if "--check" in sys.argv[1:]:
        if before != after:
            print("the tables of README.md are stale: run python scripts/readme_tables.py", file=sys.stderr)
        return int(before != after)
    README.write_text(after, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
