"""`segexp predict RUN_DIR|STUDY IMAGES... -o DIR`: masks of new images."""

import sys
from collections.abc import Sequence
from pathlib import Path

from segexp.commands import Parser, log_to_terminal, pairs_of
from segexp.errors import DONE, FAILED, UsageError, printable

EPILOG = """\
IMAGES are files and folders (with all folders below them) of any kind that a data set can have. Masks have the coding
of the training masks; a volume gives a volume. The default repeats the run's own scoring: images are resized or padded
as the run's were, and logits are brought back to the native size.

Of a study, the arm with the highest mean validation Dice is taken and its seed with the highest one; --arm names
another arm, --ensemble seeds averages the probabilities of all its seeds. Test scores choose nothing.

The same command again skips what is finished. Files that cannot be used are listed at the end, with exit code 1.

examples:
  segexp predict outputs/nuclei ~/new_images -o masks --overlay
  segexp predict outputs/nuclei slide.tif -o masks --tile 512 --ensemble seeds
  segexp predict outputs/default/RUN scan.nii.gz -o masks --threshold tuned --probabilities
"""


def parser() -> Parser:
    parser = Parser("predict", EPILOG)
    add = parser.add_argument
    add("run", type=Path, metavar="RUN_DIR|STUDY", help="a finished run, or a study to choose one from")
    add("images", type=Path, nargs="+", metavar="PATH", help="images and volumes, or folders of them")
    add("-o", "--out", type=Path, required=True, metavar="DIR", help="a new folder for the masks, or one to go on with")
    tile = "predict tiles of N x N pixels, for images that do not fit into memory; only dataset.fit=pad"
    add("--tile", type=int, metavar="N", help=tile)
    add("--overlap", type=float, metavar="SHARE", help="share of a tile that neighbours share (default: 0.5)")
    add("--tta", action="store_true", help="average the predictions of the image and its mirror images")
    limit = "0.5 (default), tuned, or a probability"
    add("--threshold", default="0.5", metavar="P", complete=("0.5", "tuned"), help=limit)
    add("--probabilities", action="store_true", help="also write NAME_probabilities.npz: probabilities, classes")
    add("--overlay", action="store_true", help="also write NAME_overlay.png: the image with tinted classes")
    add("--ensemble", choices=("seeds",), help="average all seeds of the arm, or of RUN_DIR's siblings")
    arm = "of a study: only runs with this value, as activation=arctan; can be repeated"
    add("--arm", metavar="KEY=VALUE", action="append", help=arm)
    add("--device", default="auto", complete=("auto", "cpu", "cuda", "mps"), help="auto (default), cpu, cuda or mps")
    return parser


def command(words: Sequence[str]) -> int:
    options = parser().parse_intermixed_args(list(words))
    log_to_terminal()

    from segexp.config.compose import recorded_config
    from segexp.inference.images import by_channel, check_names, check_tile, class_files, sources_in
    from segexp.inference.selection import chosen_runs
    from segexp.records.process import set_wait

    if options.overlap is not None and not (options.tile and 0 <= options.overlap < 1):
        raise UsageError(f"--overlap {options.overlap}: a share from 0 to below 1, together with --tile N")
    sources, notes = sources_in(options.images, options.out)
    runs, chosen = chosen_runs(options.run, pairs_of(options.arm), options.ensemble is not None)
    configs = [recorded_config(run.path, [f"trainer.device={options.device}"]) for run in runs]
    if options.tile is not None:
        check_tile(options.tile, configs[0])
    if configs[0].dataset.adapter == "nnunet":
        sources = by_channel(sources, len(runs[0].record["normalisation"]["mean"]))
    suffixes = [f"_class{c}" for c in class_files(configs[0])] + ["_overlay"] * options.overlay
    check_names(sources, suffixes)
    print(*notes, *chosen, *(f"network: {run.path}" for run in runs), sep="\n")

    set_wait(configs[0].trainer.wait, configs[0].trainer.threads)
    from segexp.inference.predict import Options, predict_images

    names = ("threshold", "tta", "tile", "overlap", "probabilities", "overlay")
    asked = Options(**{name: getattr(options, name) for name in names if getattr(options, name) is not None})
    done = predict_images(runs, configs, sources, options.out, asked)
    print(*done.notes, *done.lines(options.out), sep="\n")
    for path, problem in done.problems.items():
        print(printable(f"segexp: {path}: {problem}"), file=sys.stderr)
    return FAILED if done.problems else DONE
