"""`segexp evaluate RUN_DIR`: score a finished run again."""

from collections.abc import Sequence
from pathlib import Path

from segexp.commands import Overrides, Parser, add_config_dir, imported, log_to_terminal, print_classes
from segexp.errors import DONE, UsageError

EPILOG = """\
Overrides choose the data and how they are scored: dataset, dataset.*, split.*, metrics.*, trainer.device,
trainer.threads, trainer.wait, trainer.batch_size. Nothing is fitted again: the tuned threshold and the temperature are
those of the run. Tables go to RUN_DIR/evaluations/; the same command again only reads them.

examples:
  segexp evaluate outputs/default/RUN --threshold tuned
  segexp evaluate outputs/default/RUN --split val --tta
  segexp evaluate outputs/default/RUN --dataset folder dataset.root=~/other_hospital --split all
"""

SPLITS = ("test", "val", "train", "all")

ALLOWED = ("dataset", "metrics", "split", "trainer.device", "trainer.threads", "trainer.wait", "trainer.batch_size")
"""Overrides that an evaluation accepts, keys of these groups included; all others belong to the trained network."""


def parser() -> Parser:
    parser = Parser("evaluate", EPILOG)
    add = parser.add_argument
    add("run_dir", type=Path, metavar="RUN_DIR")
    add("overrides", nargs="*", metavar="key=value", help="which data to score, and how", complete=Overrides(ALLOWED))
    add("--split", default="test", complete=SPLITS, help="test (default), val, train, or all of another data set")
    add(
        "--threshold",
        default="0.5",
        metavar="P",
        complete=("0.5", "tuned"),
        help="0.5 (default), tuned, or a probability",
    )
    add(
        "--dataset",
        metavar="NAME",
        complete=lambda: imported("segexp.config", "members_of")("dataset"),
        help="another data set with the same classes, like dataset=NAME",
    )
    add(
        "--resolution",
        complete=lambda: imported("segexp.config.canonical", "CHOICES")["metrics.resolution"],
        help="native or network (default: as in the run)",
    )
    add("--tta", action="store_true", help="average the predictions of the image and its mirror images")
    add_config_dir(parser)
    return parser


def command(words: Sequence[str]) -> int:
    options = parser().parse_intermixed_args(list(words))
    log_to_terminal()

    from segexp.config.compose import readable, recorded_config
    from segexp.records import flatten, read_run
    from segexp.records.formatting import text_table
    from segexp.records.process import set_wait
    from segexp.records.scores import OWN_SCORES, result_rows

    if options.split not in SPLITS:
        raise UsageError(f"--split {options.split} is not one of {', '.join(SPLITS)}")
    overrides = readable(options.overrides)
    if options.dataset is not None:
        overrides.insert(0, f"dataset={options.dataset}")
    if options.resolution is not None:
        overrides.append(f"metrics.resolution={options.resolution}")
    for key in (text.partition("=")[0] for text in overrides):
        if key in ("dataset.num_classes", "dataset.background"):
            raise UsageError(f"{key} belongs to the run: only data with the same classes can be scored")
        if key not in ALLOWED and key.split(".")[0] not in ("dataset", "metrics", "split"):
            raise UsageError(f"{key} belongs to the run; an evaluation can set {', '.join(ALLOWED)}")
    record = read_run(options.run_dir)
    config = recorded = recorded_config(options.run_dir, (), options.config_dir, options.allow_env)
    if overrides:
        # The image size and the classes of the training data hold for other data too.
        data = recorded.dataset
        size = "null" if data.image_size is None else data.image_size
        held = [f"dataset.image_size={size}", f"dataset.fit={data.fit}", f"dataset.num_classes={data.num_classes}"]
        held += [f"dataset.background='{data.background}'", f"dataset.normalise='{data.normalise}'"]
        config = recorded_config(options.run_dir, [*held, *overrides], options.config_dir, options.allow_env)

    set_wait(config.trainer.wait, config.trainer.threads)
    from segexp.running.evaluate import evaluate

    done = evaluate(options.run_dir, record, recorded, config, options.split, options.threshold, options.tta)
    if done.again:
        print("evaluated before: showing the existing tables")
    for warning in done.warnings:
        print(f"warning: {warning}")
    print(f"{config.dataset.name}: {done.n_images} images ({options.split}), threshold {options.threshold}\n")
    flat = flatten(config)
    # The network predicts the classes of the run.
    flat["dataset.class_names"] = recorded.dataset.class_names or config.dataset.class_names
    own = [OWN_SCORES[name] for name in config.metrics.scores or ()]
    print(text_table(result_rows(done.summary, options.split, flat, own)))
    print_classes(done.folder, flat, options.split, own)
    print(f"\ntables: {done.folder}")
    return DONE
