"""`segexp curves`: figures of activation functions, output ones or hidden ones."""

from collections.abc import Sequence
from pathlib import Path

from segexp.commands.shared import parser_of
from segexp.errors import DONE

EPILOG = """\
examples:
  segexp curves -o outputs.pdf
  segexp curves --output sigmoid,arctan,student_t3,normal_cdf -o tails.png
  segexp curves --hidden relu,elu,silu,gelu -o hidden.png
  segexp curves --hidden all -o all.pdf
"""


def command(words: Sequence[str]) -> int:
    """`segexp curves`."""
    parser = parser_of(
        "curves",
        "Draw activation functions: output ones with tails and gradients, hidden ones with derivatives.",
        EPILOG,
    )
    parser.add_argument("--output", metavar="NAME,...", help="output activations (default: those of the paper)")
    parser.add_argument("--hidden", metavar="NAME,...", help="hidden activations, or all")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="FILE", help="a .png, .pdf or .svg file")
    options = parser.parse_args(list(words))

    from segexp.curves import draw_curves

    draw_curves(
        options.out,
        None if options.output is None else options.output.split(","),
        None if options.hidden is None else options.hidden.split(","),
    )
    print(f"figure: {options.out}")
    return DONE
