"""A table as text: Markdown and LaTeX for a paper, plain lines for the terminal."""

import textwrap
from collections.abc import Sequence

from segexp.compare.formatting import MINUS, NOTHING
from segexp.records.formatting import text_table
from segexp.report.formatting import clean
from segexp.report.tables import NUMBER, Table


def titled(table: Table) -> str:
    """The title, and where it holds."""
    return f"{table.title}: {table.where}" if table.where else table.title


def markdown(table: Table) -> str:
    """A table as Markdown, under its title."""
    titles = [title for title, _ in table.columns]
    lines = ["| " + " | ".join(map(_one_line, line)) + " |" for line in (titles, ["---"] * len(titles), *table.rows)]
    note = f"\n{clean(table.note)}\n" if table.note else ""
    return f"### {_one_line(titled(table))}\n\n" + "\n".join(lines) + "\n" + note


def markdown_list(title: str, lines: Sequence[str]) -> str:
    """Sentences as a list under their title, if any; "" for none."""
    heading = f"**{_one_line(title)}**\n\n" if title else ""
    return heading + "".join(f"- {_one_line(line)}\n" for line in lines) if lines else ""


def _one_line(cell: str) -> str:
    """Without what Markdown would take for HTML or for the end of a cell."""
    text = clean(cell).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return text.replace("|", "\\|")


_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    MINUS: "$-$",
    NOTHING: "--",
    "\u2026": r"\ldots{}",
    "\u00b1": r"$\pm$",
}


def latex_text(text: str) -> str:
    """Text as LaTeX prints it; \\textquotedbl asks for the T1 encoding."""
    return "".join(_LATEX.get(character, character) for character in clean(text))


def latex(table: Table) -> str:
    """A booktabs table with its caption: \\usepackage{booktabs} and \\usepackage[T1]{fontenc} print it."""
    alignment = "".join("r" if kind == NUMBER else "l" for _, kind in table.columns)
    caption = f"{titled(table).rstrip('.')}. {table.note}".strip()
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{latex_text(caption)}}}",
        rf"\label{{tab:{table.name}}}",
        rf"\begin{{tabular}}{{{alignment}}}",
        r"\toprule",
        " & ".join(latex_text(title) for title, _ in table.columns) + r" \\",
        r"\midrule",
        # A row that begins with [ would be read as an option of the line's end before it.
        *(
            " & ".join(f"{{{latex_text(c)}}}" if c[:1] == "[" else latex_text(c) for c in row) + r" \\"
            for row in table.rows
        ),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def text(table: Table, width: int) -> list[str]:
    """A table for the terminal in lines of about ``width`` characters, under its title."""
    titles = [title for title, _ in table.columns]
    rows = [dict(zip(titles, row, strict=True)) for row in table.rows]
    return [table.title, text_table(rows, width=width), *textwrap.wrap(table.note, width)]
