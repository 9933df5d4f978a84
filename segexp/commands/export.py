"""`segexp export RUN_DIR`: a finished run's network as a file for other software."""

from collections.abc import Sequence
from pathlib import Path

from segexp.commands import Parser, log_to_terminal
from segexp.errors import DONE, FAILED

EPILOG = """\
onnx: ONNX Runtime; pt2: torch.export.load; safetensors: weights; smp: a folder for smp.from_pretrained.
--with-head: images in, probabilities out, as segexp.load; float32 in [0, 1] (8 bit / 255, 16 bit / 65535), or stored
values where the run was trained on them. Without it: images that are normalised with (x - mean) / std in, logits out.
Batch and sides (multiples of the divisor) are dynamic where torch.export finds them to be; else a line names the size.
The metadata describe all this. The file is read back and compared with the run on its test images: above 1e-4 in
probability it is not kept, exit code 1.

examples:
  segexp export outputs/default/RUN --format onnx --with-head -o lesions.onnx
  segexp export outputs/default/RUN --format smp -o lesions-unet
"""


def parser() -> Parser:
    parser = Parser("export", EPILOG)
    add = parser.add_argument
    add("run_dir", type=Path, metavar="RUN_DIR")
    add("--format", required=True, choices=("onnx", "pt2", "safetensors", "smp"), help="of the file")
    add("--with-head", action="store_true", help="include normalisation and output activation (onnx, pt2)")
    add("-o", "--out", type=Path, metavar="PATH", help="file, or folder of smp (default: RUN.FORMAT)")
    return parser


def command(words: Sequence[str]) -> int:
    options = parser().parse_args(list(words))
    log_to_terminal()

    from segexp.inference.export import DifferentError, export

    out = options.out or Path(f"{options.run_dir.absolute().name}.{options.format}")
    try:
        done = export(options.run_dir, options.format, options.with_head, out)
    except DifferentError as error:
        print(f"segexp: {error}")
        return FAILED
    print(f"{out}: {done['output']}; {done['sizes']}")
    print(f"checked on {done['checked_on']}: largest difference of a probability {done['difference']:.2g}")
    return DONE
