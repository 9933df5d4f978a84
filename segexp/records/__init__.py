"""The run directory: its files, their columns and units, and atomic writes.

    outputs/<study>/<run name>-<hash8>/
      run.json config.yaml environment.txt split.csv summary.csv epochs.csv images.csv objects.csv bins.csv
      thresholds.csv diagnostics.csv timings.csv checkpoints/ predictions/ examples/ samples.png diagnostics.png
      log.txt traceback.txt lock

Tables are UTF-8 CSV with '.' decimals, empty cells for NaN and scores in [0, 1]. Only timings.csv holds anything
volatile (durations): the same configuration and seed give the same bytes in all other tables. Tables that somebody has
edited, or saved with a spreadsheet, are refused. This package never imports torch.
"""

import csv
import dataclasses
import hashlib
import io
import json
import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from segexp.errors import UsageError
from segexp.records.files import read_json
from segexp.records.owned import open_atomic as open_atomic
from segexp.records.owned import read_file
from segexp.records.owned import write_atomic as write_atomic
from segexp.records.scores import LATER, OWN, PER_IMAGE, SCORES, recorded_scores

if TYPE_CHECKING:
    import pandas as pd

csv.field_size_limit(2**24)  # characters of a cell

SCHEMA_VERSION = 1
"""Version of the files of a run directory. Older versions stay readable."""

NUMERICS = 2
"""Version of the numbers: raised when the same configuration and seed give other results. run.json names it in
``numerics``; a record without that key has version 1.

2: log-odds and losses by other formulas, memory format by a rule, augmentation of whole batches.
"""

NUMERICS_OF_GROUPS = 3
"""Version of the numbers of runs with several scored classes in groups of images (patients): a group's images are
averaged for each class before classes are weighted, so that these weigh alike. In all other runs nothing changed."""


def typed(kind: type, names: str) -> dict[str, type]:
    """Columns of one type."""
    return dict.fromkeys(names.split(), kind)


COLUMNS: dict[str, dict[str, type]] = {
    "summary": {
        **typed(str, "run_id config_id"),
        "schema_version": int,
        **typed(str, "dataset dataset_sha split_sha model backbone hidden_activation activation loss"),
        **typed(int, "seed fold"),
        **typed(str, "init_sha order_sha"),
        **typed(int, "n_params n_train n_val n_test n_groups epochs best_epoch"),
        "select_metric": str,
        **typed(float, "threshold_tuned temperature"),
        **typed(str, "empty_policy resolution"),
        **{name: score.kind for name, score in SCORES.items()},
    },
    "epochs": {
        "epoch": int,
        "split": str,
        "step": int,
        **typed(float, "loss lr dice dice_micro iou_micro nll brier grad_norm frac_nonfinite"),
    },
    "images": {
        **typed(str, "split image_id"),
        "class_id": int,
        "group_id": str,
        **typed(int, "height width n_valid n_gt n_pred tp fp fn"),
        **dict.fromkeys(PER_IMAGE, float),
    },
    "bins": {"split": str, "class_id": int, "region": str, **typed(int, "scaled bin n"), **typed(float, "sum_p sum_y")},
    "objects": {**typed(str, "split image_id"), **typed(int, "class_id object n_pixels"), "iou": float},
    "thresholds": {"split": str, "class_id": int, "threshold": float, "dice": float},
    "split": typed(str, "image_id group_id split image_sha image_hash"),
    "diagnostics": {
        **typed(str, "run_id site"),
        "depth": int,
        **typed(str, "part probe"),
        **typed(int, "epoch units"),
        **typed(float, "dead_output dead_gradient saturated mean sd grad_norm"),
        "learned": str,
    },
    "timings": {"epoch": int, **typed(float, "seconds images_per_s peak_mem_mib")},
}
"""Tables and their columns in order. hd95 is in pixels, or mm where ``dataset.spacing`` is given."""


def columns_of(table: str, record: Mapping[str, Any] | None = None) -> dict[str, type]:
    """The columns of a table, last those of the scores of plugins that the record of a run describes."""
    own = (record or {}).get("scores") or {} if table in ("summary", "images") else {}
    return COLUMNS[table] | {f"{OWN}{name}": float for name in own}


def is_column(table: str) -> Callable[[str], bool]:
    """Whether a name is that of a column of the table in some run."""
    return lambda name: name in COLUMNS[table] or (table in ("summary", "images") and name.startswith(OWN))


KEYS = {
    "images": ("split", "image_id", "class_id"),
    "bins": ("split", "class_id", "region", "scaled", "bin"),
    "objects": ("split", "image_id", "class_id", "object"),
    "thresholds": ("split", "class_id", "threshold"),
    "epochs": ("epoch", "split"),
    "timings": ("epoch",),
    "diagnostics": ("site", "probe", "epoch"),
}
"""The columns that identify a row of a table; no two rows agree in all of them."""

LONGEST = 240
"""Bytes of the longest name of a folder; file systems take 255, and `.old1` may be added."""

FIGURES = ("samples.png", "diagnostics.png")
"""What `segexp train` draws of a single run, and `segexp show`, where they are missing."""

PROGRESS = "progress.json"
"""File of a run that is scoring: done and total images, and seconds. It is removed at the end."""

RESTORE = "restore the original file, or repeat the run with resume=restart"

Row = Mapping[str, Any]


def write_table(path: Path, table: str, rows: Iterable[Row], record: dict[str, Any] | None = None) -> int:
    """Write rows as CSV with exactly the columns of ``table``; returns how many. Floats keep all their digits.

    record: notes the number of rows and the SHA-256 of the file, by which `whole_table` notices that it was cut or
    edited. Raises ValueError when a row has other columns.
    """
    columns = columns_of(table, record)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    count = 0
    for row in rows:
        if row.keys() != columns.keys():
            raise ValueError(f"{table}: columns {sorted(row.keys() ^ columns.keys())} are missing or unknown")
        writer.writerow(_cell(row[name], kind) for name, kind in columns.items())
        count += 1
    data = text.getvalue().encode("utf-8")
    write_atomic(path, data)
    if record is not None:
        record.setdefault("n_rows_expected", {})[table] = count
        record.setdefault("sha256", {})[table] = hashlib.sha256(data).hexdigest()
    return count


def _cell(value: Any, kind: type) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return repr(float(value)) if kind is float else str(kind(value))


def cell_of(value: Any) -> str:
    """A cell of runs.csv: "" for None and NaN, lists and mappings as JSON."""
    if isinstance(value, str):
        return value
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | dict):
        return json.dumps(value)
    return repr(value) if isinstance(value, float) else str(value)


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted keys to plain values: {"trainer.epochs": 12, ...}. Lists stay lists."""
    flat: dict[str, Any] = {}
    for key, value in (config if isinstance(config, Mapping) else vars(config)).items():
        if dataclasses.is_dataclass(value) or isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def read_table(path: Path, table: str, record: Mapping[str, Any] | None = None) -> "pd.DataFrame":
    """Read a table with the types of its columns. record: run.json of a finished run, to verify it as `whole_table`.

    Names ("None", "NA", "001", "1e5") stay the strings they are, which plain ``pandas.read_csv`` would change. Whole
    numbers that may be missing are pandas' nullable Int64.
    """
    data = read_file(path) if record is None else whole_table(path.parent, record, table)
    return read_typed(io.BytesIO(data), columns_of(table, record))


def read_typed(source: Path | BinaryIO, kinds: Mapping[str, type], only: bool = False) -> "pd.DataFrame":
    """`read_table` for any columns of the types str, int, float and bool. only: without the other columns."""
    import pandas as pd

    types = {name: {str: "str", int: "Int64", float: "float64", bool: "boolean"}[kind] for name, kind in kinds.items()}
    not_text = {name: [""] for name, kind in kinds.items() if kind is not str}
    more = exact_floats() | ({"usecols": [*kinds]} if only else {})
    return pd.read_csv(source, dtype=types, keep_default_na=False, na_values=not_text, **more)


def exact_floats() -> dict[str, Any]:
    """With what pandas reads every float exactly: its default from 3.1 on, which warns about the option."""
    import pandas as pd

    return {} if [int(part) for part in pd.__version__.split(".")[:2]] >= [3, 1] else {"float_precision": "round_trip"}


def check_header(
    line: bytes, where: object, known: Callable[[str], bool], needed: Collection[str], cure: str = RESTORE
) -> list[str]:
    """The columns that the first line of a table names.

    Raises UsageError where a column is missing, unknown or repeated, or a spreadsheet has saved the table.
    """
    try:
        text = line.decode("utf-8").rstrip("\r\n")
    except ValueError:
        raise UsageError(f"{where} is not UTF-8 text: {cure}") from None
    try:
        names = next(csv.reader([text]), [])
    except csv.Error as error:
        raise UsageError(f"{where} cannot be read: {error}; {cure}") from error
    missing = [name for name in needed if name not in names]
    unknown = [name for name in names if not known(name)]
    if text.startswith("\ufeff"):
        wrong = "starts with a byte order mark: a spreadsheet has saved it"
    elif missing and (separators := [what for mark, what in ((";", "semicolons"), ("\t", "tabs")) if mark in text]):
        wrong = f"is separated by {separators[0]} instead of commas: a spreadsheet has saved it"
    elif missing:
        wrong = f"lacks the column {', '.join(missing)}"
    elif unknown:
        wrong = f"has the unknown column {', '.join(map(repr, unknown[:3]))}: it was edited"
    elif len(set(names)) < len(names):
        wrong = "names a column twice"
    else:
        return names
    raise UsageError(f"{where} {wrong}; {cure}")


def lasting(columns: Iterable[str]) -> list[str]:
    """The columns that a table has in every version: scores and `image_hash` may be newer than the table."""
    return [name for name in columns if name not in (*LATER, "image_hash")]


def text_rows(path: Path, table: str) -> list[dict[str, str]]:
    """The rows of a table as strings, read without pandas for commands that must answer at once.

    Scores that a table of an earlier version lacks are "". Raises UsageError when the file is missing or damaged, or
    has other columns.
    """
    columns = list(COLUMNS[table])
    try:
        data = read_file(path)
        names = check_header(data.partition(b"\n")[0], path, is_column(table), lasting(columns))
        rows = list(csv.reader(io.StringIO(data.decode("utf-8"), newline="")))[1:]
    except FileNotFoundError:
        raise UsageError(f"{path} is missing") from None
    except (OSError, ValueError, csv.Error) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    own = [name for name in names if name not in COLUMNS[table]]
    known = columns[: len(names) - len(own)]
    if names != known + own or any(len(row) != len(names) for row in rows):
        raise UsageError(f"{path} is damaged: columns are in another order, or cells are missing; {RESTORE}")
    lacking = dict.fromkeys(columns[len(known) :], "")
    return [dict(zip(names, row, strict=True)) | lacking for row in rows]


def write_json(path: Path, content: Mapping[str, Any] | Sequence[Any]) -> None:
    """Write strict JSON (NaN becomes null), atomically."""
    write_atomic(path, json.dumps(no_nan(content), indent=1, allow_nan=False) + "\n")


def no_nan(value: Any) -> Any:
    """The value as strict JSON can hold it: None for NaN and infinite numbers, lists for tuples."""
    if isinstance(value, Mapping):
        return {str(key): no_nan(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [no_nan(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def has_figures(run_dir: Path) -> bool:
    """Whether a run has both of its figures."""
    return all((run_dir / name).exists() for name in FIGURES)


def write_run(run_dir: Path, record: Mapping[str, Any]) -> None:
    """Write run.json with a checksum of its content, by which `read_run` notices that it was damaged or edited."""
    content = no_nan(record)
    write_json(run_dir / "run.json", {**content, "record_sha256": _sha256(content)})


def _sha256(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def read_run(run_dir: Path) -> dict[str, Any]:
    """The content of run.json without its checksum, which earlier versions did not write. Raises UsageError when the
    folder is not a run directory or the file is damaged."""
    path = run_dir / "run.json"
    try:
        content = read_json(path, run_dir)
    except UsageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise UsageError(f"{run_dir} is not a run directory: it holds no run.json") from None
        raise UsageError(f"{error}; {RESTORE}") from error
    if isinstance(content, dict) and content.pop("record_sha256", None) not in (None, _sha256(content)):
        raise UsageError(f"{path} was changed after the run wrote it (its SHA-256 is another): {RESTORE}")
    wrong = _wrong_in(content)
    if wrong:
        raise UsageError(f"{path} does not hold a run's record: {wrong}; {RESTORE}")
    return content


_FIELDS = {
    **typed(str, "run_id config_id identity status error started finished host"),
    **typed(str, "dataset_sha split_sha init_sha order_sha"),
    **typed(float, "pid attempts seconds"),
}
"""The type of a key of run.json that may be null; whole numbers are floats here."""


def _wrong_in(content: Any) -> str:
    """What makes this no content of run.json, "" when nothing does. Readers rely on these types."""
    if not isinstance(content, dict):
        return "it is not a mapping"
    mappings = {key: content.get(key, {}) for key in ("config", "summary", "n_rows_expected", "sha256", "diagnostics")}
    mappings |= {key: content.get(key) or {} for key in ("device", "versions", "git")}  # null where unknown
    for key, value in mappings.items():
        if not isinstance(value, dict):
            return f"{key} is not a mapping"
    if not isinstance(content.get("warnings", []), list):
        return "warnings is not a list"
    if not isinstance(content.get("scores", {}), dict):
        return "scores is not a mapping"
    try:
        own = recorded_scores(content.get("scores"))
    except ValueError as error:
        return str(error)
    diagnostics = mappings["diagnostics"]
    for part, prefix, fields in (
        (content, "", _FIELDS),
        (mappings["summary"], "summary.", COLUMNS["summary"] | dict.fromkeys(own, float)),
        (diagnostics, "diagnostics.", dict.fromkeys(diagnostics, float)),
    ):
        for key, kind in fields.items():
            value = part.get(key)
            if value is not None and type(value) not in ((str,) if kind is str else (int, float)):
                return f"{prefix}{key} is not a {'string' if kind is str else 'number'}"
    config = mappings["config"]
    whole = {"numerics": content.get("numerics", 1)} | {key: config.get(key, 0) for key in ("seed", "trainer.epochs")}
    for key, value in whole.items():
        if type(value) is not int:
            return f"{key} is not a whole number"
    return ""


def check_network(run_dir: Path, record: Mapping[str, Any]) -> None:
    """Raise UsageError where the record of a run that is done lacks what using its network needs."""
    needed = ("run_id", "config_id", "identity", "dataset_sha", "split_sha", "versions", "summary")  # of all versions
    lacks = [key for key in needed if not record.get(key)]
    normalisation: Any = record.get("normalisation")
    of: list[Any] = [normalisation.get(key) for key in ("mean", "std")] if isinstance(normalisation, dict) else [None]
    numbers = all(isinstance(one, list) and one and {*map(type, one)} <= {int, float} for one in of)
    lacks += [] if numbers and len(of[0]) == len(of[-1]) else ["normalisation (mean and std of each channel)"]
    if lacks:
        raise UsageError(f"{run_dir / 'run.json'} lacks {', '.join(lacks)}: {RESTORE}")


def check_complete(run_dir: Path, record: Mapping[str, Any]) -> None:
    """Raise UsageError when a table of a finished run is missing, cut or edited: such a file may still parse."""
    for table in record.get("n_rows_expected", {}):
        whole_table(run_dir, record, table)


def unverified(record: Mapping[str, Any]) -> bool:
    """Whether a finished run or an evaluation has tables without a checksum, as earlier versions wrote them."""
    return not record.get("n_rows_expected", {}).keys() <= record.get("sha256", {}).keys()


def whole_table(run_dir: Path, record: Mapping[str, Any], table: str) -> bytes:
    """The content of a table's file. Raises UsageError when it is missing or not what the run wrote."""
    path = run_dir / f"{table}.csv"
    expected = record.get("n_rows_expected", {}).get(table)
    wrote = f", the run wrote {expected}: {RESTORE}" if expected is not None else ""
    try:
        data = read_file(path)
        found = _count_rows(data)
    except FileNotFoundError:
        raise UsageError(f"{path} is missing{wrote}") from None
    except (OSError, ValueError, csv.Error) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    if expected is not None and found != expected:
        raise UsageError(f"{path} holds {found} rows{wrote}")
    sha256 = record.get("sha256", {}).get(table)
    if sha256 is not None and sha256 != hashlib.sha256(data).hexdigest():
        check_header(data.partition(b"\n")[0], path, is_column(table), lasting(COLUMNS[table]))
        raise UsageError(f"{path} was changed after the run wrote it (its SHA-256 is another): {RESTORE}")
    return data


def _count_rows(data: bytes) -> int:
    """Complete rows below the header: line ends, except those inside quoted cells."""
    if b'"' not in data:
        return max(data.count(b"\n") - 1, 0)
    rows = sum(1 for _ in csv.reader(io.StringIO(data.decode("utf-8"), newline="")))
    return max(rows - 1 - (not data.endswith(b"\n")), 0)


def check_numerics(record: Mapping[str, Any], where: object, numerics: int) -> None:
    """Raise UsageError when an unfinished run was begun with another version of the numbers than it would have now: it
    cannot be continued."""
    begun = record.get("numerics", 1)
    if begun != numerics:
        raise UsageError(
            f"{where} was begun with numerics version {begun}, and would have {numerics} now: start over with "
            f"resume=restart, or continue with segexp {(record.get('versions') or {}).get('segexp')}"
        )


def run_name(parts: Sequence[str], run_id: str) -> str:
    """<part>-<part>-...-<hash8>: a readable folder name, valid on any system, unique by its hash."""
    safe = ["".join(c if c.isalnum() or c in "._" else "_" for c in part) for part in parts]
    # A name that begins with a dot would be hidden.
    name = "-".join([*safe, run_id])[-180:].encode()[-LONGEST:].decode(errors="ignore")
    return re.sub(r"^[.-]+", lambda found: "_" * len(found[0]), name)
