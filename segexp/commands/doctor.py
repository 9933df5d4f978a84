"""`segexp doctor`: versions, devices, what is missing and the cure."""

from collections.abc import Sequence

from segexp.commands.shared import parser_of
from segexp.errors import DONE, FAILED


def command(words: Sequence[str]) -> int:
    """`segexp doctor`."""
    parser = parser_of("doctor", "Versions, devices, what is missing and the cure.")
    parser.add_argument("--json", action="store_true", help="the findings as JSON")
    options = parser.parse_args(list(words))

    from segexp.doctor import as_rows, findings
    from segexp.tables import json_table, text_table

    found = findings()
    print(json_table(as_rows(found)) if options.json else text_table(as_rows(found), width=140))
    return FAILED if any(f.state == "bad" for f in found) else DONE
