"""`segexp data list|clear`: the store of images and masks that runs share."""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from segexp.commands import Parser, imported
from segexp.errors import DONE, UsageError

if TYPE_CHECKING:
    from segexp.data.cache import Entry

EPILOG = """\
segexp data list [--json]                     data sets in the cache: size, last use, and what is kept of each
segexp data clear [NAME ...] [--older DAYS]   remove all of them, some, or those not used for DAYS days

Runs read a data set once, check it and keep it in $SEGEXP_CACHE (default: ~/.cache/segexp), as large as
$SEGEXP_CACHE_LIMIT (default: 50GB) allows: the sets used least recently are removed. The cache may be cleared at any
time, also while runs use it: later runs read the files again.
"""


def parser() -> Parser:
    parser = Parser("data", EPILOG)
    add = parser.add_argument
    add("action", choices=tuple(ACTIONS), metavar="ACTION", help=", ".join(ACTIONS))
    add("names", nargs="*", metavar="NAME", complete=_names, help="data sets, by name or location")
    add("--older", type=float, metavar="DAYS", help="clear: only what was not used for so many days")
    add("--json", action="store_true", help="list: every entry, as JSON")
    return parser


def _names() -> list[str]:
    return sorted({entry.name for entry in imported("segexp.data.cache", "entries")() if entry.name})


def command(words: Sequence[str]) -> int:
    options = parser().parse_intermixed_args(list(words))
    return ACTIONS[options.action](options)


def _list(options: Any) -> int:
    from segexp.data.cache import entries, folder, limit
    from segexp.records.formatting import duration, json_table, pluralize, size, text_table

    if options.names or options.older is not None:
        raise UsageError("`segexp data list` takes no names and no --older: it lists every data set")
    found = entries()
    if options.json:
        print(json_table([{**vars(entry), "path": str(entry.path)} for entry in found]))
        return DONE
    sets: dict[str, list[Entry]] = {}
    for entry in reversed(found):
        sets.setdefault(entry.content, []).append(entry)
    rows = []
    for kept in sets.values():
        shown = [f"images, {entry.geometry}" for entry in kept if entry.kind == "images"]
        rows.append(
            {
                "data set": kept[0].name,
                "images": kept[0].images,
                "kept": sorted(shown) or ["check"],
                "size": size(sum(entry.bytes for entry in kept)),
                "used": f"{duration(max(0.0, time.time() - kept[0].used))} ago",
                "location": kept[0].location,
            }
        )
    if rows:
        print(text_table(rows))
    total = size(sum(entry.bytes for entry in found))
    print(f"{pluralize(len(rows), 'data set')} in {folder()}: {total} of {size(limit())} (SEGEXP_CACHE_LIMIT)")
    return DONE


def _clear(options: Any) -> int:
    from segexp.data.cache import clear_litter, discard, entries
    from segexp.records.formatting import size
    from segexp.registry import nearest

    if options.json:
        raise UsageError("`segexp data clear` takes no --json")
    found = entries()
    known = {label for entry in found for label in (entry.name, entry.location) if label}
    for name in options.names:
        if name not in known:
            raise UsageError(f"no data set '{name}' in the cache{nearest(name, known)}; see `segexp data list`")
    oldest = time.time() - 86400 * (options.older or 0)
    gone = [entry for entry in found if not options.names or {entry.name, entry.location} & set(options.names)]
    gone = [entry for entry in gone if entry.used <= oldest]
    for entry in gone:
        discard(entry.path)
    clear_litter()
    print(f"removed {len(gone)} of {len(found)} entries, {size(sum(entry.bytes for entry in gone))}")
    return DONE


ACTIONS = {"list": _list, "clear": _clear}
