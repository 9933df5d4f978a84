"""`segexp export RUN_DIR`: a finished run's network as a file for other software."""

from collections.abc import Sequence
from pathlib import Path

from segexp.commands import Parser, log_to_terminal
from segexp.errors import DONE, FAILED

EPILOG = """\
onnx: ONNX Runtime; pt2: torch.export.load; safetensors: weights; smp: a folder for smp.from_pretrained.
With --with-head images go in and probabilities come out; without it, normalised images go in and logits come out.
Rules that measure each image at its own size (dataset.normalise=image, percentile) are in no file: the output says how
to apply them. The metadata describe both, classes, threshold, activations, and the licence of the data. The file is
compared with the run on its test images: above 1e-4 in probability it is not kept, exit code 1.

examples:
  segexp export outputs/default/RUN --format onnx --with-head -o lesions.onnx
  segexp export outputs/default/RUN --format smp -o lesions-unet
"""


def parser() -> Parser:
    parser = Parser("export", EPILOG)
    add = parser.add_argument
    add("run_dir", type=Path, metavar="RUN_DIR", help="a finished run")
    add("--format", required=True, choices=("onnx", "pt2", "safetensors", "smp"), help="what to write (see below)")
    add("--with-head", action="store_true", help="include normalisation and output activation (onnx, pt2)")
    add("-o", "--out", type=Path, metavar="PATH", help="file, or folder of smp (default: RUN.FORMAT)")
    return parser


def command(words: Sequence[str]) -> int:
    options = parser().parse_args(list(words))
    log_to_terminal()

    from segexp.inference.export import export
    from segexp.inference.published import DifferentError

    out = options.out or Path(f"{options.run_dir.absolute().name}.{options.format}")
    try:
        done = export(options.run_dir, options.format, options.with_head, out)
    except DifferentError as error:
        print(f"segexp: {error}")
        return FAILED
    print(f"{out}: {done['output']}; {done['sizes']}")
    print(f"input: {done['input']}")
    print(f"checked on {done['checked_on']}: largest difference of a probability {done['difference']:.2g}")
    return DONE
