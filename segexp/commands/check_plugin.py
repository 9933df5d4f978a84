"""`segexp check-plugin FILE`: hold the entries of a plugin to the checks that the built-in entries pass."""

import contextlib
import functools
import itertools
import sys
from collections.abc import Sequence

from segexp.commands import Parser
from segexp.errors import DONE, FAILED, UsageError, first_line

EPILOG = """\
ok: as stated, and as segexp needs it. note: works; a fact about it should be stated. failed: the reason is below the
table. Exit code 1 if a check failed. Times are shown and never a failure.

examples:
  segexp check-plugin my_parts.py
  segexp check-plugin my_parts.py --entry my_relu --json
"""


def parser() -> Parser:
    parser = Parser("check-plugin", EPILOG)
    parser.add_argument("plugin", metavar="FILE", help="a file with your own parts, or the name of an installed plugin")
    parser.add_argument("--entry", metavar="NAME", help="check this entry only")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    return parser


def command(words: Sequence[str]) -> int:
    options = parser().parse_args(list(words))

    from tqdm import tqdm

    from segexp.records.formatting import json_table, pluralize, text_table
    from segexp.registry import REGISTRIES, nearest, plugins
    from segexp.running.entry_check import checked
    from segexp.running.part_check import CHECKS

    rows = []
    with contextlib.redirect_stdout(sys.stderr):  # what the plugin prints is no part of the results
        plugins.use([options.plugin])
        (plugin,) = plugins.LOADED.values()
        entries = [(r.group, name, r[name]) for r in REGISTRIES for name in r.origins if r.origins[name] == plugin.name]
        chosen = [entry for entry in entries if options.entry in (None, entry[1])]
        if not chosen:
            near = nearest(options.entry, [name for _, name, _ in entries])
            raise UsageError(f"--entry {options.entry}: {options.plugin} has no such entry{near}")
        with tqdm(unit="check", disable=None, leave=False) as bar:
            for group, name, entry in chosen:
                bar.set_description(name)
                time = [("time", functools.partial(_time, name))] if group == "hidden_activation" else []
                for check in checked(itertools.chain(CHECKS[group](entry), time), plugin.paths):
                    row = {"entry": f"{group}={name}", "check": check.name}
                    rows.append(row | {"result": check.result, "detail": check.detail})
                    bar.update()
    print(json_table(rows) if options.json else text_table(rows, width=140))
    failed = [row for row in rows if row["result"] == "failed"]
    if failed and not options.json:
        print(f"\n{pluralize(len(failed), 'check')} failed:")
        for row in failed:
            print("  {entry}, {check}: {detail}".format(**row))
    return FAILED if failed else DONE


def _time(name: str) -> str:
    import torch

    from segexp.commands.bench import BASELINE, measure
    from segexp.running.entry_check import NoteError

    try:
        row = measure([BASELINE, name], torch.device("cpu"), (2, 16, 64, 64), 5)[1]
    except Exception as error:  # the other checks say why
        raise NoteError(f"not measured: {first_line(error)}") from error
    return "{both:.1f} x the time of relu, {saved_bytes:.0f} bytes kept per element".format(**row)
