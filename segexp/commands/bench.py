"""`segexp bench activations`: what hidden activations cost on this machine."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from segexp.catalogue import nearest
from segexp.commands.shared import parser_of
from segexp.errors import DONE, UsageError

DEVICES = ("auto", "cpu", "cuda")

EPILOG = """\
columns: milliseconds per call; forward, backward and both as multiples of relu's (median over the rounds, and
interquartile range); bytes kept for the backward pass per element, and as a multiple of relu's.

examples:
  segexp bench activations
  segexp bench activations relu gelu mish --shape 16,64,256,256 --rounds 30
"""

BRIEF = (
    *("name", "forward_ms", "forward", "forward_iqr", "backward_ms", "backward", "backward_iqr"),
    *("both", "both_iqr", "saved_bytes", "saved"),
)
"""Columns of the plain table; the others are the same in every row and stand in a line of their own."""


def _rounds(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is no whole number from 1 on")
    return int(text)


def command(words: Sequence[str]) -> int:
    """`segexp bench activations [NAME ...]`."""
    parser = parser_of("bench", "Time and memory of hidden activations, beside relu's.", EPILOG)
    parser.add_argument("what", metavar="activations")
    parser.add_argument("names", nargs="*", metavar="NAME", help="hidden activations (default: all)")
    parser.add_argument("--json", action="store_true", help="the measurements as JSON")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the measurements to a file as well")
    parser.add_argument("--device", choices=DEVICES, default="auto", help="auto takes a CUDA GPU where there is one")
    parser.add_argument("--shape", default="8,64,64,64", metavar="N,C,H,W", help="of the input (default: %(default)s)")
    parser.add_argument("--rounds", type=_rounds, default=15, metavar="R", help="default: %(default)s")
    options = parser.parse_args(list(words))
    if options.what != "activations":
        raise UsageError(f"cannot bench '{options.what}'{nearest(options.what, ['activations'])}")

    from segexp.bench import device_of, hidden_names, measure, setting, shape_of
    from segexp.records import write_atomic
    from segexp.tables import csv_table, json_table, text_table

    names, shape = hidden_names(options.names), shape_of(options.shape)
    if options.csv is not None and not options.csv.absolute().parent.is_dir():
        raise UsageError(f"--csv {options.csv}: the folder {options.csv.absolute().parent} does not exist")
    device = device_of(options.device)
    common = setting(device, shape, options.rounds)
    rows = [row | common for row in measure(names, device, shape, options.rounds)]
    if options.csv is not None:
        write_atomic(options.csv, csv_table(rows))
    if options.json:
        print(json_table(rows))
    else:
        print("{device}; torch {torch}; {dtype} of shape {shape}; rounds: {rounds}".format(**common))
        print(text_table([{name: row[name] for name in BRIEF} for row in rows], width=140))
    return DONE
