"""`segexp export RUN_DIR`: a finished run's network as a file for other software."""

from collections.abc import Sequence
from pathlib import Path

from segexp.commands import Parser, log_to_terminal
from segexp.errors import DONE, FAILED, UsageError

FORMATS = ("onnx", "pt2", "safetensors", "smp")

EPILOG = """\
onnx: ONNX Runtime; pt2: torch.export.load; safetensors: weights; smp: a folder for smp.from_pretrained.
Input: float32 (N, C, H, W), sides in multiples of the architecture's divisor. With --with-head, images in [0, 1] (8 bit
/ 255, 16 bit / 65535; stored values where the run was trained on them) go in and probabilities come out, as segexp.load
does it. Without it, normalised images go in, (x - mean) / std, and logits come out. The metadata in the file say which.
Batch and sides are dynamic where torch.export finds them to be; else the output names the fixed size. The file is read
back and compared with the run on its own test images: above 1e-4 in probability it is not kept, exit code 1.

examples:
  segexp export outputs/default/RUN --format onnx --with-head -o lesions.onnx
  segexp export outputs/default/RUN --format smp -o lesions-unet
"""


def parser() -> Parser:
    parser = Parser("export", EPILOG)
    add = parser.add_argument
    add("run_dir", type=Path, metavar="RUN_DIR")
    add("--format", required=True, metavar="NAME", complete=FORMATS, help=", ".join(FORMATS))
    add("--with-head", action="store_true", help="include normalisation and output activation (onnx, pt2)")
    add("-o", "--out", type=Path, metavar="PATH", help="file, or folder of smp (default: named after the run)")
    return parser


def command(words: Sequence[str]) -> int:
    options = parser().parse_args(list(words))
    if options.format not in FORMATS:
        raise UsageError(f"--format {options.format} is not one of {', '.join(FORMATS)}")
    log_to_terminal()

    from segexp.inference.export import DifferentError, export

    try:
        done = export(options.run_dir, options.format, options.with_head, options.out)
    except DifferentError as error:
        print(f"segexp: {error}")
        return FAILED
    print(*done.summary, sep="\n")
    return DONE
