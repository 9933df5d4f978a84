"""`segexp predict RUN_DIR|STUDY IMAGES... -o DIR`: masks of new images."""

import sys
from collections.abc import Sequence
from pathlib import Path

from segexp.commands import Parser, log_to_terminal, pairs_of
from segexp.errors import DONE, FAILED, UsageError, printable

EPILOG = """\
Images are files and folders (with all folders below them), of any kind that a data set can have. They are fitted as the
run's were, and masks have the native size and the coding of the training masks; a volume gives a volume. Of a study,
the arm and the seed with the highest validation Dice are taken. The same command again skips what is finished. Files
that cannot be used are listed at the end, with exit code 1.

examples:
  segexp predict outputs/nuclei ~/new_images -o masks --overlay
  segexp predict outputs/nuclei slide.tif -o masks --tile 512 --ensemble seeds
  segexp predict outputs/default/RUN scan.nii.gz -o masks --threshold tuned --probabilities
"""

ASKED = ("threshold", "tta", "tile", "overlap", "probabilities", "overlay")
"""Options that change the outputs, beside the networks."""


def parser() -> Parser:
    parser = Parser("predict", EPILOG)
    add = parser.add_argument
    arm = "only runs of a study with this value, as activation=arctan; can be repeated"
    tile = "predict tiles of N x N pixels, for images that exceed the memory; for dataset.fit=pad"
    add("run", type=Path, metavar="RUN_DIR|STUDY", help="a finished run, or a study to choose one from")
    add("images", type=Path, nargs="+", metavar="PATH", help="images and volumes, or folders of them")
    add("-o", "--out", type=Path, required=True, metavar="DIR", help="folder of the masks, new or of an earlier call")
    add("--arm", metavar="KEY=VALUE", action="append", help=arm)
    add("--ensemble", choices=("seeds",), help="average all seeds of the arm, or of RUN_DIR's siblings")
    add("--tta", action="store_true", help="average the predictions of the image and its mirror images")
    limit = "0.5 (default), tuned, or a probability"
    add("--threshold", default="0.5", metavar="P", complete=("0.5", "tuned"), help=limit)
    add("--tile", type=int, metavar="N", help=tile)
    add("--overlap", type=float, metavar="SHARE", help="share of a tile that neighbours share (default: 0.5)")
    add("--probabilities", action="store_true", help="also write NAME_probabilities.npz: probabilities, classes")
    add("--overlay", action="store_true", help="also write NAME_overlay.png: the image with tinted classes")
    add("--device", default="auto", complete=("auto", "cpu", "cuda", "mps"), help="auto (default), cpu, cuda or mps")
    return parser


def command(words: Sequence[str]) -> int:
    options = parser().parse_intermixed_args(list(words))
    log_to_terminal()

    from segexp.config.compose import recorded_config
    from segexp.inference.images import check_tile, files_in, sources_of
    from segexp.inference.selection import chosen_runs
    from segexp.records import check_network
    from segexp.records.formatting import pluralize
    from segexp.records.process import set_wait

    if options.overlap is not None and not (options.tile and 0 <= options.overlap < 1):
        raise UsageError(f"--overlap {options.overlap}: a share from 0 to below 1, together with --tile N")
    files, notes = files_in(options.images, options.out)
    runs, choice = chosen_runs(options.run, pairs_of(options.arm, "--arm"), options.ensemble is not None)
    for run in runs:
        check_network(run.path, run.record)
    configs = [recorded_config(run.path, [f"trainer.device={options.device}"]) for run in runs]
    if options.tile is not None:
        check_tile(options.tile, configs[0])
        options.overlap = 0.5 if options.overlap is None else options.overlap
    channels = len(runs[0].record["normalisation"]["mean"]) if configs[0].dataset.adapter == "nnunet" else 0
    sources = sources_of(files, channels)
    print(*notes, *choice, *(f"network: {run.path}" for run in runs), sep="\n")

    set_wait(configs[0].trainer.wait, configs[0].trainer.threads)
    from segexp.inference.predict import predict_images

    done = predict_images(runs, configs, sources, options.out, {name: getattr(options, name) for name in ASKED})
    kept = f"; {done.kept} were there already" if done.kept else ""
    print(*done.notes, f"{pluralize(done.written, 'image')} predicted in {options.out}{kept}", sep="\n")
    if done.problems:
        print(f"{pluralize(len(done.problems), 'image')} could not be used:", file=sys.stderr)
    for path, problem in done.problems.items():
        print(printable(f"{path}: {problem}"), file=sys.stderr)
    return FAILED if done.problems else DONE
