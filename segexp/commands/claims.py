"""`segexp compare PATH... --claims FILE`: every claim of a file against the runs."""

import argparse
from functools import partial

from segexp.commands.comparison import pairs_of
from segexp.errors import DONE, UsageError


def claims(options: argparse.Namespace) -> int:
    """Judge and print them. A claim names its own arms, metric and conditions; options that would are refused, and
    everything is read before the first one is judged: what is wrong with the files is no fault of a claim's."""
    from segexp.compare.blocks import where_these
    from segexp.compare.claims import read_claims
    from segexp.compare.judge import judge_claims
    from segexp.compare.load import load
    from segexp.compare.verdict import compare
    from segexp.config.presets import preset_file
    from segexp.records.scores import SPLITS
    from segexp.report.claims import as_csv, as_json, as_markdown, as_text

    names = ("by", "reference", "questions", "metric")
    for name in [name for name in names if getattr(options, name) is not None]:
        raise UsageError(f"--{name} and --claims: a claim says itself what it compares; leave --{name} out")
    if options.form == "latex":
        raise UsageError("--claims --latex: claims are told as text, --json, --csv or --markdown")
    if options.split not in SPLITS:
        raise UsageError(f"--split {options.split}: there are {', '.join(SPLITS)}")
    asked = read_claims(preset_file("claims", options.claims), options.rope)
    if options.rope is not None and all(claim.sized or claim.relation != "matches" for claim in asked):
        raise UsageError("--rope and --claims: none of them is a 'matches' without a size; leave --rope out")

    chosen, loaded = pairs_of(options.where), load(options.paths, options.split)
    where_these(loaded.runs, chosen)
    against = partial(compare, options.paths, split=options.split, loaded=loaded)
    judged = judge_claims(asked, against, chosen)
    print({"json": as_json, "csv": as_csv, "markdown": as_markdown}.get(options.form, as_text)(judged), end="")
    return DONE
