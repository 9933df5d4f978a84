"""`segexp show RUN_DIR`: the summary of one run."""

import itertools
import json
import math
import shlex
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from segexp.commands import Parser, hidden_line
from segexp.errors import DONE, UsageError
from segexp.records import check_complete, has_figures, read_run, text_rows
from segexp.records.formatting import duration, terms_of, text_table
from segexp.records.plugins import kept_plugins, versions_of
from segexp.records.runs import STATES, Run, progress_of, run_at, runs_in, shown_state, studies_in
from segexp.records.scores import SCORES, class_rows, label_of, recorded_scores, shown_score

BARS = "▁▂▃▄▅▆▇█"
ASCII = "_.:-=+*#"

LABEL = 12
"""Characters before the text of a line."""

CURVES = (
    ("train loss", "train", "loss", "lowest"),
    ("val loss", "val", "loss", "lowest"),
    ("val Dice", "val", "dice", "highest"),
    ("lr", "train", "lr", "highest"),
    ("grad norm", "train", "grad_norm", "highest"),
)
"""Title, split and column of epochs.csv, and which of its extremes is named."""

EPILOG = """\
Shows the state of the run, its settings that differ from the defaults of `segexp train`, its learning curves (each
scaled from its lowest to its highest value), scores, warnings, and suggested next commands. Works in any state, also
during training. Draws samples.png and diagnostics.png of a run that is done, where they are missing.
"""


def parser() -> Parser:
    parser = Parser("show", EPILOG)
    add = parser.add_argument
    add("run_dir", type=Path, metavar="RUN_DIR")
    add("--json", action="store_true", help="the run's record (run.json), nothing more")
    return parser


def command(words: Sequence[str]) -> int:
    options = parser().parse_args(list(words))
    if options.json:
        print(json.dumps(read_run(options.run_dir), indent=1))
        return DONE
    run = run_at(options.run_dir)
    encoding = sys.stdout.encoding or "utf-8"
    # Without a terminal 100 columns, as for tables.
    width = max(40, min(shutil.get_terminal_size((100, 24)).columns, 140))
    for line in lines_of(run, options.run_dir, width, encoding):
        print(printable(line, encoding))
    if run.state == "unreadable":
        raise UsageError(run.reason)
    return DONE


def printable(line: str, encoding: str) -> str:
    r"""The line with what a terminal would execute or cannot show escaped: control and formatting characters, and those
    that ``encoding`` lacks, as \x1b or ü. A record may come from a stranger."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
    return shown.encode(encoding, "backslashreplace").decode(encoding)


class _Tables:
    """The tables of a run. problems: what in them is missing or damaged, a line each."""

    def __init__(self, run: Run) -> None:
        self.run, self.problems = run, list[str]()
        epochs = self.rows("epochs")
        self.epochs = {split: [row for row in epochs if row["split"] == split] for split in ("train", "val")}
        self.timings = self.rows("timings")
        self.numbers_of = [int(e) for e in self.numbers("epochs", self.epochs["train"], "epoch") if math.isfinite(e)]

    def rows(self, name: str) -> list[dict[str, str]]:
        path = self.run.path / f"{name}.csv"
        # The first epoch writes the tables.
        if self.run.state not in ("done", "unreadable") and not path.exists():
            return []
        try:
            return text_rows(path, name)
        except UsageError as error:
            self.problems.append(str(error))
            return []

    def numbers(self, name: str, rows: Sequence[Mapping[str, str]], column: str) -> list[float]:
        """A column, NaN for empty cells."""
        try:
            return [float(row[column] or "nan") for row in rows]
        except ValueError as error:
            self.problems.append(f"{self.run.path / name}.csv, column {column}: {error}")
            return []


def lines_of(run: Run, run_dir: Path, width: int, encoding: str) -> list[str]:
    """The run for a terminal of ``width`` columns; only paths make longer lines. Damaged tables are reported."""
    record, tables = run.record, _Tables(run)
    lines = [*_head(run, width), ""]
    if record:
        lines += [*_configuration(run.config, width), *_data(record, width), ""]
    lines += _curves(tables, width, encoding)
    lines += _scores(tables, width)
    lines += _details(tables, width)
    if run.state == "done":
        for step in (partial(check_complete, run.path, record), partial(_draw_missing, run.path)):
            try:
                step()
            except (UsageError, OSError) as error:
                tables.problems.append(str(error))
    for warning in record.get("warnings", []):
        lines += _wrapped("warning:", str(warning), width, indent=2)
    for problem in dict.fromkeys(tables.problems):
        lines += _wrapped("problem:", problem, width, indent=2)
    entries = run.path.iterdir() if run.path.is_dir() else ()
    files = sorted(p.name + "/" * p.is_dir() for p in entries if not p.name.startswith("."))
    lines += _wrapped("files", ", ".join(files) or "none", width)
    study = run_dir.parent if run_dir.name.strip(".") else run.path.parent
    following = _next(run, shlex.quote(str(run_dir)), shlex.quote(str(study)))
    return [*lines, *(f"{'next' * (not i):{LABEL}}{words}" for i, words in enumerate(following))]


def _draw_missing(run_dir: Path) -> None:
    if not has_figures(run_dir):
        from segexp.evaluation.pictures import draw_figures

        draw_figures(run_dir)


def _wrapped(label: str, text: str, width: int, indent: int = LABEL) -> list[str]:
    """The label, then the text in lines of ``width``. Words are not broken: they may be paths."""
    start = f"{label:{LABEL}}" if indent == LABEL else f"{label} "
    wrapper = textwrap.TextWrapper(width, start, " " * indent, break_long_words=False, break_on_hyphens=False)
    return wrapper.wrap(text) or [start.rstrip()]


def _head(run: Run, width: int) -> list[str]:
    """What the run is, its state, and where and when it was made."""
    record, config, progress = run.record, run.record.get("config", {}), progress_of(run)
    lines = []
    if config:
        hidden, activation, loss = (config.get(f"{g}.name") for g in ("hidden_activation", "activation", "loss"))
        built = f"{config.get('model.name')}, {config.get('backbone.name')}, hidden {hidden}"
        arm = f"{config.get('dataset.name')}: {built}; {activation} + {loss}, seed {config.get('seed')}"
        lines += textwrap.wrap(arm, width, subsequent_indent="  ", break_long_words=False)
        lines += _wrapped("terms", terms, width) if (terms := terms_of(config)) else []
    state = f"{run.state} by {run.owner}" if run.owner else f"{shown_state(run.state)}: {STATES[run.state]}"
    # The command ends with the reason of an unreadable run as its error.
    parts = [state + f" ({run.reason})" * bool(run.reason and run.state != "unreadable")]
    parts += [f"{progress['epoch'] or 0} of {progress['epochs']} epochs"] if progress["epochs"] else []
    parts += [duration(progress["seconds"])] if progress["seconds"] else []
    parts += [progress["phase"]] if progress["phase"] else []
    parts += [f"ends in {duration(progress['eta_s'])}"] if progress["eta_s"] else []
    lines += _wrapped("state", "; ".join(parts), width)
    lines += _wrapped("run", f"{run.run_id}, study {run.study}, {run.path}", width)
    if used := versions_of(run.plugins):
        entries = (f"{entry} (version {version})" for entry, version in used.items())
        lines += _wrapped("plugins", ", ".join(entries), width)
    if record:
        versions, device = record.get("versions") or {}, record.get("device") or {}
        made = [
            f"{record.get('started')} to {record.get('finished') or '...'} on {record.get('host')}",
            f"{device.get('name') or device.get('type') or 'device unknown'}",
            f"{device.get('precision') or config.get('trainer.precision')}",
            *([f"head and loss {'' if device['compiled'] else 'not '}compiled"] if "compiled" in device else []),
            *(["steps captured as a CUDA graph"] if device.get("captured") else []),
            f"segexp {versions.get('segexp')}, torch {versions.get('torch')}",
        ]
        lines += _wrapped("made", "; ".join(made), width)
    return lines


def _configuration(config: Mapping[str, Any], width: int) -> list[str]:
    """What differs from the defaults of `segexp train`, as words for its command line; then the usual settings."""
    from segexp.config import changed_from_defaults

    changes = changed_from_defaults(config) if config else {}
    texts = {k: v if isinstance(v, str) else json.dumps(v, ensure_ascii=False) for k, v in changes.items()}
    changed = " ".join(shlex.quote(f"{key}={text}") for key, text in texts.items())
    usual = [
        f"{config.get('optimizer.name')} at lr {config.get('optimizer.lr')}",
        f"{config.get('scheduler.name')}, {config.get('trainer.epochs')} epochs",
        f"batches of {config.get('trainer.batch_size')}, {config.get('trainer.precision')}",
        f"augment {config.get('augment.name')}, seed {config.get('seed')}, split.seed {config.get('split.seed')}",
    ]
    if config.get("split.fold") is not None:
        usual.append(f"fold {config['split.fold']} of {config.get('split.folds') or 'all groups'}")
    return [
        *_wrapped("changed", changed or "nothing: these are the defaults of `segexp train`", width),
        *_wrapped("with", ", ".join(usual), width),
    ]


def _data(record: Mapping[str, Any], width: int) -> list[str]:
    """What was found in the data set; nothing for a run of an earlier segexp, or where it was edited."""
    from segexp.data.description import data_lines

    try:
        texts = data_lines(record["data"])
    except (KeyError, TypeError, ValueError, AttributeError, IndexError):
        return []
    return [line for n, text in enumerate(texts) for line in _wrapped("" if n else "data", text, width)]


def _curves(tables: _Tables, width: int, encoding: str) -> list[str]:
    """A line for each curve with a finite value: its first value, its course, its last value, and its extreme."""
    levels = BARS
    try:
        BARS.encode(encoding)
    except UnicodeEncodeError:
        levels = ASCII
    # Without room for them, the extremes are left out.
    note = 26 if width >= 70 else 0
    room = width - LABEL - 2 * 11 - note
    epochs, lines = tables.numbers_of, []
    for title, split, column, extreme in CURVES:
        values = tables.numbers("epochs", tables.epochs[split], column)
        finite = [i for i, value in enumerate(values) if math.isfinite(value)]
        if not finite:
            continue
        first, last = _number(values[0]), _number(values[-1])
        text = f"{title:{LABEL}}{first:<9}  {sparkline(values, room, levels)}  {last:<9}"
        if note and len(values) == len(epochs):
            mark = (min if extreme == "lowest" else max)(finite, key=lambda i: values[i])
            text += f"  {extreme} {_number(values[mark])} in {epochs[mark]}"
        lines.append(text.rstrip())
    if not lines:
        return []
    best = tables.run.summary.get("best_epoch")
    if best in epochs:
        column_of_best = LABEL + 11 + position(epochs.index(best), len(epochs), room)
        said = f"epoch {best}: scored"
        fits = column_of_best + 2 + len(said) <= width
        lines.append(" " * column_of_best + f"^ {said}" if fits else f"{said} ^".rjust(column_of_best + 1))
    span = f"{epochs[0]} to {epochs[-1]}" if len(epochs) > 1 else "".join(map(str, epochs))
    return [f"{'curves':{LABEL}}{'first':<9}  {'epochs ' + span}", *lines, ""]


def sparkline(values: Sequence[float], width: int, levels: str = BARS) -> str:
    """The values as characters, scaled from the lowest to the highest of ``levels``.

    More than ``width`` values are averaged in ``width`` groups of neighbours. Groups without a finite value are blank;
    equal values have the lowest level.
    """
    columns = min(len(values), width)
    ends = [column * len(values) // columns for column in range(columns + 1)] if columns else []
    kept = [[v for v in values[start:end] if math.isfinite(v)] for start, end in itertools.pairwise(ends)]
    groups = [sum(value / len(group) for value in group) if group else math.nan for group in kept]
    finite = [value for value in groups if math.isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    # Halved, because the span of the largest floats is infinite.
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


def _number(value: Any) -> str:
    known = isinstance(value, int | float) and not math.isnan(value)
    return f"{value:.4g}" if known else "-"


def _scores(tables: _Tables, width: int) -> list[str]:
    """The scores on test, beside those on validation at the chosen epoch; nothing where there are none."""
    summary = tables.run.summary
    at_best = [row for row in tables.epochs["val"] if row["epoch"] == str(summary.get("best_epoch"))]
    val = {name: tables.numbers("epochs", at_best, name) for name in ("dice", "dice_micro", "nll", "brier")}
    own = recorded_scores(tables.run.record.get("scores")).values()
    rows = [
        {
            "score": label_of(score, summary, tables.run.config),
            "val": shown_score(val[score.name][0] if val.get(score.name) else None),
            "test": shown_score(summary.get(score.name)),
            "column": score.name,
        }
        for score in (*SCORES.values(), *own)
        if score.in_result
    ]
    if all(row["test"] == "-" for row in rows):
        return []
    names = ("score", "val", "test", "column") if width >= 70 else ("score", "val", "test")
    lines = [*text_table([{name: row[name] for name in names} for row in rows], width=width).split("\n"), ""]
    try:
        by_class = class_rows(tables.rows("images"), tables.run.config, own=own)
    except ValueError as error:
        tables.problems.append(f"{tables.run.path / 'images.csv'}: {error}")
        by_class = []
    return [*lines, *text_table(by_class, width=width).split("\n"), ""] if by_class else lines


def _details(tables: _Tables, width: int) -> list[str]:
    """Time and memory, hidden units, replaced activations."""
    import statistics

    record, lines = tables.run.record, []
    seconds, rates, memory = (
        tables.numbers("timings", tables.timings, n) for n in ("seconds", "images_per_s", "peak_mem_mib")
    )
    median = statistics.median(seconds) if seconds else math.nan
    if not math.isnan(median):
        time = f"{median:.3g} s" if median < 99.5 else duration(median)
        rate, most = (_number(f(values)) if values else "-" for f, values in ((statistics.fmean, rates), (max, memory)))
        device = record.get("device")
        resident = device.get("resident_bytes") if isinstance(device, dict) else None
        kept = f", {resident / 2**20:.3g} MiB of training images in memory" if isinstance(resident, int) else ""
        lines += _wrapped("time", f"{time} an epoch (median), {rate} images/s, {most} MiB{kept}", width)
    head = record.get("head")
    if isinstance(learned := head.get("learned") if isinstance(head, dict) else None, dict):
        lines += _wrapped("learned", ", ".join(f"{name} {_number(value)}" for name, value in learned.items()), width)
    if record.get("diagnostics"):
        lines += _wrapped("hidden", hidden_line(record["diagnostics"]).removeprefix("hidden units "), width)
    swap = record.get("swap_report")
    if isinstance(swap, dict):
        get, escaped = swap.get, swap.get("escaped")
        replaced = (
            f"{get('replaced')} call sites replaced by {get('activation')} ({get('scope')}), "
            f"{get('shared_split')} shared modules split, {get('gates_kept')} gates kept, "
            f"{get('native')} left native, {len(escaped) if isinstance(escaped, dict) else 0} escaped"
        )
        if get("activation") == "native":
            replaced = f"nothing: {get('native')} call sites, native; {get('gates_kept')} gates"
        lines += _wrapped("swapped", replaced, width)
    return [*lines, ""] if lines else []


def _next(run: Run, run_dir: str, study: str) -> list[str]:
    """Suggested commands, those that can work."""
    state, config = run.state, run.record.get("config", {})
    root = config.get("dataset.root")
    data = " dataset.root=DIR" if root and not Path(str(root)).exists() else ""
    data += "".join(f" --plugin {shlex.quote(name)}" for name in kept_plugins(run.plugins, run.path).values())
    if state == "running":
        return [f"segexp status {study} --watch"]
    if state in ("interrupted", "stale", "failed"):
        look = [f"less {run_dir}/traceback.txt"] if (run.path / "traceback.txt").exists() else []
        return [*look, f"segexp resume {run_dir}{data}"]
    if state == "diverged":
        lr = config.get("optimizer.lr")
        lower = f"optimizer.lr={lr / 3:.1g}" if isinstance(lr, float) else "trainer.clip_norm=1"
        return [f"segexp train --from {run_dir} {lower}{data}"]
    if state != "done":
        return []
    lines = []
    if any((run.path / "checkpoints" / name).exists() for name in ("best.pt", "last.pt")):
        tuned = run.summary.get("threshold_tuned") is not None and config.get("head.mode") != "softmax"
        lines.append(f"segexp evaluate {run_dir} {'--threshold tuned' if tuned else '--split val'}{data}")
    if _has_other_arm(run):
        lines.append(f"segexp compare {study}")
    return [*lines, f"segexp train --from {run_dir} seed={config.get('seed', 0) + 1}{data}"]


def _has_other_arm(run: Run) -> bool:
    """Whether the study holds a finished run of another arm, without which there is nothing to compare."""

    def arm(one: Run) -> list[Any]:
        return [one.config.get(f"{group}.name") for group in ("hidden_activation", "activation", "loss")]

    others = (one for study in studies_in(run.path.parent) for one in runs_in(study))
    return any(one.state == "done" and arm(one) != arm(run) for one in others)
