"""`segexp list KIND`: what there is to choose from."""

from collections.abc import Sequence

from segexp.catalogue import nearest
from segexp.commands.shared import parser_of
from segexp.errors import DONE, UsageError


def command(words: Sequence[str]) -> int:
    """`segexp list KIND`."""
    from segexp.listing import BRIEF, KINDS, listed
    from segexp.tables import json_table, markdown_table, text_table

    parser = parser_of("list", "What there is to choose from.", f"kinds: {', '.join(KINDS)}")
    parser.add_argument("kind", nargs="?", metavar="KIND", help="activations, losses, datasets ...")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="all facts, as JSON")
    form.add_argument("--markdown", action="store_true", help="all facts, as a Markdown table")
    options = parser.parse_args(list(words))
    if options.kind is None:
        raise UsageError(f"list what? one of: {', '.join(KINDS)}")
    if options.kind not in KINDS:
        raise UsageError(f"cannot list '{options.kind}'{nearest(options.kind, KINDS)}")
    rows = listed(options.kind)
    if options.json:
        print(json_table(rows))
    elif options.markdown:
        print(markdown_table(rows))
    else:
        brief = BRIEF.get(options.kind)
        print(text_table([{name: row[name] for name in brief} for row in rows] if brief else rows, width=140))
    return DONE
