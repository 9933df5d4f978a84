"""`segexp show RUN_DIR`: one run at a glance."""

import itertools
import math
import shlex
import shutil
import statistics
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segexp.commands import Parser
from segexp.commands.status import progress_of
from segexp.commands.terminal import hidden_line
from segexp.config.presets import changed_from_defaults
from segexp.errors import DONE, UsageError
from segexp.records import check_complete, text_rows
from segexp.records.runs import Run
from segexp.records.scores import PIXELS, SCORES, shown_score, unit_of

BARS = "▁▂▃▄▅▆▇█"
ASCII = "_.:-=+*#"


def sparkline(values: Sequence[float], width: int, levels: str = BARS) -> str:
    """The values from their least to their greatest in ``levels``, a character each.

    More than ``width`` values are averaged in ``width`` groups of neighbours. A blank stands where nothing is finite,
    the lowest level where all are equal.
    """
    groups = _resampled(values, width)
    finite = [value for value in groups if math.isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    # Halved, for the span of the largest floats is infinite.
    span = high / 2 - low / 2

    def level(value: float) -> str:
        share = (value / 2 - low / 2) / span if span else 0.0
        return levels[min(int(share * len(levels)), len(levels) - 1)]

    return "".join(level(value) if math.isfinite(value) else " " for value in groups)


def position(index: int, count: int, width: int) -> int:
    """The character of a sparkline of ``count`` values that shows the value at ``index``."""
    columns = min(count, width)
    # The last group that begins at or before it.
    return next(column for column in reversed(range(columns)) if column * count // columns <= index)


def _resampled(values: Sequence[float], width: int) -> list[float]:
    if len(values) <= width:
        return list(values)
    ends = [column * len(values) // width for column in range(width + 1)]
    return [_mean(values[start:end]) for start, end in itertools.pairwise(ends)]


def _mean(values: Sequence[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return sum(value / len(finite) for value in finite) if finite else math.nan


@dataclass(frozen=True)
class Curve:
    """A column of epochs.csv. values: one per epoch, NaN where there is none. mark: place of the least or greatest
    finite value, None where there is none; better: "lowest" or "highest", which of them."""

    title: str
    values: tuple[float, ...]
    better: str

    @property
    def mark(self) -> int | None:
        finite = [i for i, value in enumerate(self.values) if math.isfinite(value)]
        choose = min if self.better == "lowest" else max
        return choose(finite, key=lambda i: self.values[i], default=None)


CURVES = (
    ("train loss", "train", "loss", "lowest"),
    ("val loss", "val", "loss", "lowest"),
    ("val Dice", "val", "dice", "highest"),
    ("lr", "train", "lr", "highest"),
    ("grad norm", "train", "grad_norm", "highest"),
)
"""Title, split and column of epochs.csv, and which end of it is worth naming."""


@dataclass(frozen=True)
class Glance:
    """What is shown of a run. progress: as `segexp status --json` tells it of a run.

    changed: keys that are not as `segexp train` has them by itself; curves with a finite value, and the epochs that
    they are over; best_epoch: whose weights were scored, None where nothing was; val: scores on the validation images
    at that epoch. epoch_s: median seconds of an epoch; images_per_s: mean; peak_mem_mib: largest; NaN where unknown.
    """

    run: Run
    progress: Mapping[str, Any]
    changed: Mapping[str, Any]
    epochs: tuple[int, ...]
    curves: tuple[Curve, ...]
    best_epoch: int | None
    val: Mapping[str, float]
    epoch_s: float
    images_per_s: float
    peak_mem_mib: float
    problems: tuple[str, ...]
    files: tuple[str, ...]


def glance_at(run: Run) -> Glance:
    """Everything of a run that fits a screen. Raises nothing for a damaged table."""
    record, problems = run.record, []
    config = record.get("config", {})
    summary = record.get("summary", {})

    def table(name: str) -> list[dict[str, str]]:
        path = run.path / f"{name}.csv"
        # Before the first epoch is over there are no tables.
        if run.state not in ("done", "unreadable") and not path.exists():
            return []
        try:
            return text_rows(path, name)
        except UsageError as error:
            problems.append(str(error))
            return []

    def numbers(name: str, rows: Sequence[Mapping[str, str]], column: str) -> list[float]:
        try:
            return [float(row[column] or "nan") for row in rows]
        except ValueError as error:
            problems.append(f"{run.path / name}.csv, column {column}: {error}")
            return []

    epochs = {split: [r for r in table("epochs") if r["split"] == split] for split in ("train", "val")}
    timings = table("timings")
    curves = [
        Curve(title, tuple(numbers("epochs", epochs[split], column)), better) for title, split, column, better in CURVES
    ]
    best = summary.get("best_epoch")
    at_best = [row for row in epochs["val"] if row["epoch"] == str(best)]
    val = {name: numbers("epochs", at_best, name) for name in ("dice", "dice_micro", "nll", "brier")}
    seconds, rates, memory = (numbers("timings", timings, n) for n in ("seconds", "images_per_s", "peak_mem_mib"))
    if run.state == "done":
        try:
            check_complete(run.path, record)
        except UsageError as error:
            problems.append(str(error))
    return Glance(
        run=run,
        progress=progress_of(run),
        changed=changed_from_defaults(config) if config else {},
        epochs=tuple(int(e) for e in numbers("epochs", epochs["train"], "epoch") if math.isfinite(e)),
        curves=tuple(curve for curve in curves if curve.mark is not None),
        best_epoch=best,
        val={name: values[0] for name, values in val.items() if values},
        epoch_s=statistics.median(seconds) if seconds else math.nan,
        images_per_s=statistics.fmean(rates) if rates else math.nan,
        peak_mem_mib=max(memory, default=math.nan),
        problems=tuple(dict.fromkeys(problems)),
        files=_files(run.path),
    )


def _files(path: Path) -> tuple[str, ...]:
    """Names in the run directory, folders with a slash; hidden ones are nobody's business."""
    entries = path.iterdir() if path.is_dir() else ()
    return tuple(sorted(p.name + "/" * p.is_dir() for p in entries if not p.name.startswith(".")))


EPILOG = """\
Shows how the run stands, what it does otherwise than `segexp train` by itself, its curves (each from its own lowest to
its own highest value), its scores, warnings, and what to type next. Works for runs in any state, also while they train.
"""

LABEL = 12
"""Characters before the text of a line."""


def parser() -> Parser:
    parser = Parser("show", EPILOG)
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    parser.add_argument("--json", action="store_true", help="the run's record (run.json), nothing more")
    return parser


def command(words: Sequence[str]) -> int:
    """`segexp show RUN_DIR`."""
    options = parser().parse_args(list(words))

    import json

    from segexp.records import read_run
    from segexp.records.runs import run_at

    if options.json:
        print(json.dumps(read_run(options.run_dir), indent=1))
        return DONE
    glance = glance_at(run_at(options.run_dir))
    encoding = sys.stdout.encoding or "utf-8"
    # Where nobody's terminal is asked, as for tables: 100.
    width = max(40, min(shutil.get_terminal_size((100, 24)).columns, 140))
    for line in lines_of(glance, options.run_dir, width, encoding):
        print(printable(line, encoding))
    if glance.run.state == "unreadable":
        raise UsageError(glance.run.reason)
    return DONE


def printable(line: str, encoding: str) -> str:
    r"""The line without what a terminal would obey or cannot show: control and formatting characters, and those that
    ``encoding`` lacks, as \x1b or ü. A record may come from a stranger."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
    return shown.encode(encoding, "backslashreplace").decode(encoding)


def lines_of(glance: "Glance", run_dir: Path, width: int, encoding: str) -> list[str]:
    """The run for a terminal of ``width`` columns; paths are as given, and longer lines only where they are."""
    run, record = glance.run, glance.run.record
    lines = [*_head(glance, width), ""]
    if record:
        lines += [*_configuration(glance, width), ""]
    if glance.curves:
        lines += [*_curves(glance, width, encoding), ""]
    lines += _scores(glance, width)
    lines += _details(glance, width)
    for warning in record.get("warnings", []):
        lines += _wrapped("warning:", str(warning), width, indent=2)
    for problem in glance.problems:
        lines += _wrapped("problem:", problem, width, indent=2)
    lines += _wrapped("files", ", ".join(glance.files) or "none", width)
    following = _next(run.state, record, shlex.quote(str(run_dir)), shlex.quote(str(run_dir.parent)))
    return [*lines, *(f"{'next' * (not i):{LABEL}}{words}" for i, words in enumerate(following))]


def _wrapped(label: str, text: str, width: int, indent: int = LABEL) -> list[str]:
    """The label, then the text in lines of ``width``. Words are left whole: they may be paths."""
    start = f"{label:{LABEL}}" if indent == LABEL else f"{label} "
    wrapper = textwrap.TextWrapper(width, start, " " * indent, break_long_words=False, break_on_hyphens=False)
    return wrapper.wrap(text) or [start.rstrip()]


def _head(glance: "Glance", width: int) -> list[str]:
    """What the run is, how it stands, and where and when it was made."""
    from segexp.records.formatting import duration
    from segexp.records.runs import STATES

    run, record, progress = glance.run, glance.run.record, glance.progress
    config, device = record.get("config", {}), record.get("device") or {}
    lines = []
    if config:
        hidden, activation, loss = (config.get(f"{g}.name") for g in ("hidden_activation", "activation", "loss"))
        built = f"{config.get('model.name')}, {config.get('backbone.name')}, hidden {hidden}"
        arm = f"{config.get('dataset.name')}: {built}; {activation} + {loss}, seed {config.get('seed')}"
        lines += textwrap.wrap(arm, width, subsequent_indent="  ", break_long_words=False)
    state = f"{run.state} by {run.owner}" if run.owner else f"{run.state}: {STATES[run.state]}"
    if run.state != "unreadable":
        # Of an unreadable one the reason is the error that the command ends with.
        state += f" ({run.reason})" * bool(run.reason)
    parts = [state]
    if progress["epochs"]:
        parts.append(f"{progress['epoch'] or 0} of {progress['epochs']} epochs")
    if progress["seconds"]:
        parts.append(duration(progress["seconds"]))
    if progress["eta_s"] is not None:
        parts.append(f"ends in {duration(progress['eta_s'])}")
    lines += _wrapped("state", "; ".join(parts), width)
    lines += _wrapped("run", f"{run.run_id}, study {run.study}, {run.path}", width)
    if record:
        versions = record.get("versions") or {}
        made = [
            f"{record.get('started')} to {record.get('finished') or '...'} on {record.get('host')}",
            f"{device.get('name') or device.get('type') or 'device unknown'}",
            f"{device.get('precision') or config.get('trainer.precision')}",
            f"segexp {versions.get('segexp')}, torch {versions.get('torch')}",
        ]
        lines += _wrapped("made", "; ".join(made), width)
    return lines


def _configuration(glance: "Glance", width: int) -> list[str]:
    """What is not as `segexp train` has it by itself, as words for its command line; then what one always asks."""
    config = glance.run.record.get("config", {})
    changed = " ".join(shlex.quote(f"{key}={_value(value)}") for key, value in glance.changed.items())
    told = [
        f"{config.get('optimizer.name')} at lr {config.get('optimizer.lr')}",
        f"{config.get('scheduler.name')}",
        f"{config.get('trainer.epochs')} epochs",
        f"batches of {config.get('trainer.batch_size')}",
        f"{config.get('trainer.precision')}",
        f"augment {config.get('augment.name')}",
        f"seed {config.get('seed')}",
        f"split.seed {config.get('split.seed')}",
    ]
    if config.get("split.folds") is not None:
        told.append(f"fold {config.get('split.fold')} of {config['split.folds']}")
    return [
        *_wrapped("changed", changed or "nothing: all is as `segexp train` has it by itself", width),
        *_wrapped("with", ", ".join(told), width),
    ]


def _value(value: Any) -> str:
    import json

    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _curves(glance: "Glance", width: int, encoding: str) -> list[str]:
    """A line for each curve: its first value, its course, its last value, its lowest or highest one."""

    levels = BARS if _shows(BARS, encoding) else ASCII
    # Without room for them, the extremes are left out.
    note = 26 if width >= 70 else 0
    room = width - LABEL - 2 * 11 - note
    epochs = glance.epochs
    lines = []
    for curve in glance.curves:
        line = sparkline(curve.values, room, levels)
        first, last = _number(curve.values[0]), _number(curve.values[-1])
        text = f"{curve.title:{LABEL}}{first:<9}  {line}  {last:<9}"
        mark = curve.mark
        if note and mark is not None and len(curve.values) == len(epochs):
            text += f"  {curve.better} {_number(curve.values[mark])} in {epochs[mark]}"
        lines.append(text.rstrip())
    if glance.best_epoch in epochs:
        column = LABEL + 11 + position(epochs.index(glance.best_epoch), len(epochs), room)
        said = f"epoch {glance.best_epoch}: scored"
        fits = column + 2 + len(said) <= width
        lines.append(" " * column + f"^ {said}" if fits else f"{said} ^".rjust(column + 1))
    head = f"{'curves':{LABEL}}{'first':<9}  {'epochs ' + _span(epochs)}"
    return [head, *lines]


def _span(epochs: Sequence[int]) -> str:
    return f"{epochs[0]} to {epochs[-1]}" if len(epochs) > 1 else "".join(map(str, epochs))


def _shows(text: str, encoding: str) -> bool:
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


def _number(value: Any) -> str:
    known = isinstance(value, int | float) and not math.isnan(value)
    return f"{value:.4g}" if known else "-"


def _scores(glance: "Glance", width: int) -> list[str]:
    """The scores on test, with those on validation at the epoch that was chosen; nothing where there are none."""
    from segexp.records.formatting import text_table

    summary, spacing = glance.run.record.get("summary", {}), glance.run.record.get("config", {}).get("dataset.spacing")
    rows = [
        {
            "score": f"{score.label} ({unit_of(score, spacing)})" if score.unit == PIXELS else score.label,
            "val": shown_score(glance.val.get(score.name)),
            "test": shown_score(summary.get(score.name)),
            "column": score.name,
        }
        for score in SCORES.values()
        if score.in_result
    ]
    if all(row["test"] == "-" for row in rows):
        return []
    if width < 70:
        rows = [{key: value for key, value in row.items() if key != "column"} for row in rows]
    return [*text_table(rows, width=width).split("\n"), ""]


def _details(glance: "Glance", width: int) -> list[str]:
    """Time and memory, hidden units, which activations were replaced."""
    from segexp.records.formatting import duration

    record, lines = glance.run.record, []
    if not math.isnan(glance.epoch_s):
        time = f"{glance.epoch_s:.3g} s" if glance.epoch_s < 99.5 else duration(glance.epoch_s)
        told = f"{time} an epoch (median), {_number(glance.images_per_s)} images/s, {_number(glance.peak_mem_mib)} MiB"
        lines += _wrapped("time", told, width)
    if record.get("diagnostics"):
        told = hidden_line(record["diagnostics"]).removeprefix("hidden units ")
        lines += _wrapped("hidden", told, width)
    swap = record.get("swap_report")
    if isinstance(swap, dict):
        lines += _wrapped("swapped", _swapped(swap), width)
    return [*lines, ""] if lines else []


def _swapped(swap: Mapping[str, Any]) -> str:
    """What was replaced, from ``swap_report`` of run.json."""
    if swap.get("activation") == "native":
        return f"nothing: {swap.get('native')} call sites, native; {swap.get('gates_kept')} gates"
    escaped = swap.get("escaped")
    return (
        f"{swap.get('replaced')} call sites replaced by {swap.get('activation')} ({swap.get('scope')}), "
        f"{swap.get('shared_split')} shared modules split, {swap.get('gates_kept')} gates kept, "
        f"{swap.get('native')} left native, {len(escaped) if isinstance(escaped, dict) else 0} escaped"
    )


def _next(state: str, record: Mapping[str, Any], run_dir: str, study: str) -> list[str]:
    """Commands that one would type next."""
    if state == "running":
        return [f"segexp status {study} --watch"]
    if state in ("interrupted", "stale", "failed"):
        look = [f"less {run_dir}/traceback.txt"] if state == "failed" else []
        return [*look, f"segexp resume {run_dir}"]
    if state == "diverged":
        lr = record.get("config", {}).get("optimizer.lr")
        lower = f"{lr / 3:.1g}" if isinstance(lr, float) else "LOWER"
        return [f"segexp train --from {run_dir} optimizer.lr={lower}"]
    if state == "done":
        seed = record.get("config", {}).get("seed", 0)
        return [
            f"segexp evaluate {run_dir} --threshold tuned",
            f"segexp compare {study}",
            f"segexp train --from {run_dir} seed={seed + 1}",
        ]
    return []
