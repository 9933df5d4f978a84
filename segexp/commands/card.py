"""`segexp card RUN_DIR|STUDY`: the model card of a run, or the study card of a study."""

from collections.abc import Sequence
from pathlib import Path

from segexp.commands import Parser, log_to_terminal
from segexp.errors import DONE, FAILED

EPILOG = """\
The folder is what huggingface_hub's upload_folder uploads. A run gives README.md, model.safetensors and config.json; a
study gives README.md, runs.csv, comparisons.csv and forest plots. README.md has data, protocol, scores with intervals,
limits and provenance, and no path, host, command line or image. Read it before you publish it.

examples:
  segexp card outputs/default/RUN -o lesions-unet
  segexp card outputs/nieradzik2021 -o nieradzik2021-card
"""


def parser() -> Parser:
    parser = Parser("card", EPILOG)
    parser.add_argument("path", type=Path, metavar="RUN_DIR|STUDY", help="a finished run, or a study")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="DIR", help="the folder of the card")
    return parser


def command(words: Sequence[str]) -> int:
    options = parser().parse_args(list(words))
    log_to_terminal()

    from segexp.inference.card import write_card
    from segexp.inference.published import DifferentError

    try:
        write_card(options.path, options.out)
    except DifferentError as error:
        print(f"segexp: {error}")
        return FAILED
    print(f"card: {options.out}")
    return DONE
