"""The commands of `segexp`, one module each: `parser()` declares its arguments, `command(words)` returns an exit code.

Importing a command's module imports no large library, so that help and completion answer at once.
"""

import argparse
import importlib
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from segexp.errors import UsageError, one_line, printable

if TYPE_CHECKING:
    from pathlib import Path

    from segexp.compare.claims import ClaimResult
    from segexp.compare.result import Result
    from segexp.records.scores import Score

COMMANDS = {
    "train": "train and score one run, or a sweep of runs with -m",
    "status": "show the state of the runs of a study, their problems, and the remaining time",
    "resume": "finish the runs of a study that are pending, interrupted or failed",
    "collect": "write the tables of all runs of a study to two files: runs.csv, images.csv",
    "report": "write one HTML page with the answer, figures, tables and sample images",
    "decide": "train no more seeds than it takes to decide which arm is better",
    "tune": "find the learning rate of each arm on validation images, with an equal budget",
    "list": "list activations, losses, datasets, models, backbones, studies and more",
    "data": "check a data set, or write it as a folder; list or clear the cache of images that runs share",
    "evaluate": "score a finished run again: another split, threshold, resolution or data set",
    "predict": "write the masks of new images with a finished run, or with the best arm of a study",
    "export": "write the network of a finished run as ONNX, pt2, safetensors or for smp, and check the file",
    "card": "write the model card of a run or the card of a study, a folder to upload to the Hugging Face Hub",
    "curves": "draw output or hidden activations and their gradients",
    "bench": "measure time and memory of hidden activations, relative to relu",
    "show": "summarise one run: settings, learning curves, scores, warnings",
    "compare": "test which arm is better and by how much",
    "diff": "show what differs between two runs: configuration, environment, data, results",
    "new": "write a commented file with a part of your own: activation, loss, optimizer ...",
    "check-plugin": "check parts of your own like the built-in ones: gradients, stated facts, training",
    "doctor": "check versions, devices and libraries, with a cure for each problem",
    "completion": "print the completion script for bash, zsh or fish",
}
"""Every command and its summary, in the order of `segexp --help`: the one place where a command is registered."""


class Overrides(NamedTuple):
    """Completes an argument as key=value; ``keys`` are the prefixes of the keys that the command accepts."""

    keys: tuple[str, ...] = ("",)


WITHOUT_CODE = ("status", "collect", "report", "show", "compare", "diff", "doctor", "completion", "new", "check-plugin")
"""Commands that execute no entry of a registry, or only those of the plugin that they check: they accept --plugin and
load nothing, as records hold what they need."""


def without_plugins(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words of a command line without ``--plugin NAME``, and these names; "" for one that is missing."""
    named, others, rest = [], [], iter(words)
    for word in rest:
        flag, equals, value = word.partition("=")
        if flag == "--plugin":
            named.append(value if equals else next(rest, ""))
        else:
            others.append(word)
    return others, named


def load_plugins(words: Sequence[str], named: Sequence[str]) -> None:
    """Load what a command line and SEGEXP_PLUGINS name, for a command that executes entries. Raises UsageError."""
    if any(not name or name.startswith("-") for name in named):
        raise UsageError("--plugin needs the path of a file, or the name of an installed plugin")
    if words[0] not in WITHOUT_CODE and not {"-h", "--help"} & set(words):
        from segexp.registry import plugins

        plugins.use([*named, *plugins.from_environment()])


Values = Callable[[], Iterable[str]] | Iterable[str] | Overrides
"""What completion offers for an argument: words, a function that returns them, or overrides."""


class Parser(argparse.ArgumentParser):
    """The arguments of ``segexp <name>``. A mistake raises UsageError, which is reported in one line.

    Completion reads it: flags, ``choices``, and the ``complete`` of `add_argument`. An option takes several values if
    its metavar has a comma, and the shell offers paths if the metavar contains DIR, FILE, PATH or RUN.
    """

    def __init__(self, name: str, epilog: str = "") -> None:
        summary = COMMANDS[name]
        super().__init__(
            prog=f"segexp {name}",
            description=f"{summary[0].upper()}{summary[1:]}.",
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        if name not in WITHOUT_CODE:  # for help and completion: `without_plugins` takes it before the command
            plugin = "a file with parts of your own, or the name of an installed plugin; can be repeated"
            self.add_argument("--plugin", action="append", metavar="FILE", help=plugin)

    def add_argument(self, *names: str, complete: Values = (), **options: Any) -> argparse.Action:
        action = super().add_argument(*names, **options)
        action.complete = complete  # type: ignore[attr-defined]
        return action

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        for word in args or ():
            if isinstance(word, str) and (not word.strip() or re.fullmatch(r"--[\w-]+=", word)):
                raise UsageError(f"`{self.prog}`: {word or 'an argument'} is empty: is a shell variable unset?")
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see `{self.prog} --help`")


def module_of(name: str) -> str:
    """The module of a command."""
    return f"segexp.commands.{name.replace('-', '_')}"


def parser_of(name: str) -> Parser:
    """The parser of a command. Imports the command's module."""
    parser: Parser = imported(module_of(name), "parser")()
    return parser


def imported(module: str, name: str) -> Any:
    """A name of a module that help does without: for `complete`, as lambda: imported(...)."""
    return getattr(importlib.import_module(module), name)


# The terminal, while runs are carried out


def log_to_terminal() -> None:
    """Warnings and errors go to the terminal through tqdm, so that they do not break its progress bars.

    Where the output is not a terminal, a line for each epoch goes to stdout; not what has been ``printed`` already.
    """
    import logging

    from tqdm import tqdm

    class Terminal(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno >= logging.WARNING:
                tqdm.write(f"segexp: {one_line(record.getMessage())}", file=sys.stderr)
            elif not (sys.stdout.isatty() and sys.stderr.isatty()) and not hasattr(record, "printed"):
                print(printable(record.getMessage()), flush=True)

    logging.raiseExceptions = False  # a log file on a full disk prints no tracebacks
    logger = logging.getLogger("segexp")
    logger.handlers[:] = [Terminal(logging.INFO)]
    logger.propagate = False
    logger.setLevel(logging.INFO)


class _Unbreakable:
    """A stream that drops its output once the reader has closed it or the disk is full."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return int(self._stream.write(text))
        except OSError:
            self._lose()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            self._lose()

    def _lose(self) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)


@contextmanager
def ignoring_closed_output() -> Iterator[None]:
    """Runs go on when their output can no longer be written: a closed pipe (`| head`), a lost `tee`, a full disk."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _Unbreakable(sys.stdout), _Unbreakable(sys.stderr)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before


def hidden_line(diagnostics: Mapping[str, Any]) -> str:
    """One line on the hidden activations of a finished run on the validation images; diagnostics: of run.json."""

    def shown(key: str, form: str) -> str:
        return "-" if diagnostics.get(key) is None else format(diagnostics[key], form)

    return (
        f"hidden units on validation: {shown('dead_output', '.1%')} dead (output 0), "
        f"{shown('dead_gradient', '.1%')} dead (gradient 0), {shown('saturated', '.1%')} of inputs saturated; "
        f"gradient norm relative to the last layer: {shown('gradient_ratio', '.3g')} in the first, "
        f"{shown('gradient_weakest', '.2g')} in the weakest"
    )


def add_config_dir(parser: Parser) -> None:
    """The arguments of the commands that compose a configuration."""
    from pathlib import Path

    groups = "a folder with configuration groups of your own"
    parser.add_argument("--config-dir", type=Path, metavar="DIR", help=groups)
    parser.add_argument("--allow-env", action="store_true", help="its files may read environment variables")


def print_classes(folder: "Path", config: Mapping[str, Any], split: str, own: "Sequence[Score]" = ()) -> None:
    """Print the scores of each class from images.csv of a folder, where it can be read and has several classes. own:
    scores of a plugin."""
    from segexp.records import text_rows
    from segexp.records.formatting import text_table
    from segexp.records.scores import class_rows

    with suppress(UsageError, ValueError):
        if rows := class_rows(text_rows(folder / "images.csv", "images"), config, split, own):
            print(f"\n{text_table(rows)}")


# The comparison of `compare` and `report`


def add_comparison_arguments(parser: Parser) -> None:
    """The arguments that compare and report share: which runs, arms and score."""
    from pathlib import Path

    from segexp.records.scores import SCORES, SPLITS

    def references() -> Iterable[str]:
        usual: Mapping[str, str] = imported("segexp.compare.blocks", "USUAL_REFERENCE")
        return [*(f"{key}={level}" for key, level in usual.items()), "all"]

    def roles() -> Iterable[str]:
        return [f"{role}=" for role in imported("segexp.records.foreign", "ROLES")]

    add = parser.add_argument
    scores = [score.name for score in SCORES.values() if score.compared]
    arm = "the groups or keys of the configuration that define an arm"
    add("paths", type=Path, nargs="+", metavar="PATH", help="run directories, studies, tables (CSV), nnU-Net results")
    add("--by", metavar="KEY,KEY", complete=lambda: imported("segexp.config", "CODE_GROUPS"), help=arm)
    add("--reference", metavar="KEY=VALUE", complete=references, help="the arm to compare with, or all: all pairs")
    where = "only runs with this value, or one of several: activation=sigmoid,arctan; can be repeated"
    add("--where", metavar="KEY=VALUE", action="append", help=where)
    columns = "of another program's table: which column holds what (arm, seed, image, score ...)"
    add("--columns", metavar="ROLE=COLUMN,ROLE=COLUMN", complete=roles, help=columns)
    add("--paired", action="store_true", help="of another program's table: runs of one seed are pairs")
    metric = "the score to compare (default: dice); several are adjusted for each other"
    add("--metric", metavar="NAME,NAME", complete=scores, help=metric)
    add("--class", dest="class_", metavar="CLASS", complete=("each",), help="score one class, by name or id, or each")
    rope = "negligible difference: in points for Dice, else in the score's unit"
    add("--rope", type=float, metavar="WIDTH", help=rope)
    add("--split", default="test", metavar="NAME", complete=SPLITS, help="test (default) or val")
    claims = "evaluate the claims of a YAML file, or of a built-in one by name"
    add("--claims", metavar="FILE", complete=lambda: imported("segexp.config", "preset_names")("claims"), help=claims)


def compared(options: argparse.Namespace) -> "Result":
    """The comparison that these arguments ask for."""
    from segexp.compare.verdict import compare

    return compare(
        options.paths,
        metric=None if options.metric is None else names_of(options.metric) or [],
        by=names_of(options.by),
        reference=options.reference,
        rope=options.rope,
        split=options.split,
        where=pairs_of(options.where),
        class_=options.class_,
        columns=options.columns,
        paired=options.paired,
    )


def claims_of(options: argparse.Namespace, rope: float | None = None) -> "list[ClaimResult]":
    """The outcomes of the claims of --claims. All files are read first: a path that cannot be read is an error, not "no
    data". rope: the margin of "equivalent" where a claim has none."""
    from segexp.compare.blocks import where_these
    from segexp.compare.claims import evaluate_claims, read_claims
    from segexp.compare.verdict import compare, load_checked
    from segexp.config import preset_file
    from segexp.records.scores import SPLITS

    if options.split not in SPLITS:
        raise UsageError(f"--split {options.split}: there are {', '.join(SPLITS)}")
    claims = read_claims(preset_file("claims", options.claims), rope)
    where = pairs_of(options.where)
    loaded = load_checked(options.paths, options.split, columns=options.columns, paired=options.paired)
    if looked_at := sorted({run.study for run in loaded.runs if run.row.get("look")}):
        raise UsageError(
            f"--claims: {', '.join(looked_at)} was decided by looks, and claims have the p of a fixed number of seeds; "
            "leave --claims out"
        )
    where_these(loaded.runs, where)
    return evaluate_claims(claims, partial(compare, options.paths, split=options.split, loaded=loaded), where)


def names_of(text: str | None) -> list[str] | None:
    return [part.strip() for part in text.split(",") if part.strip()] if text else None


def pairs_of(texts: Sequence[str] | None, option: str = "--where") -> dict[str, str]:
    """Key -> value of every ``option`` KEY=VALUE[,KEY=VALUE]; a value may be several: seed=0,1,loss=dice."""
    chosen: dict[str, str] = {}
    for text in texts or ():
        for part in re.split(r",(?=[\w.]+=)", text):
            key, equals, value = part.strip().partition("=")
            if not equals or not key:
                raise UsageError(f"{option} {text}: '{part}' is not KEY=VALUE")
            if chosen.get(key, value) != value:
                raise UsageError(
                    f"{option} {key}={value}: no run has both this and {key}={chosen[key]}; "
                    f"to select runs with either, write {key}={chosen[key]},{value}"
                )
            chosen[key] = value
    return chosen
