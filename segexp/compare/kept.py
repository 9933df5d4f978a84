"""What takes long for many runs, kept in the cache folder: only tables of runs that are new or have changed are read
again, and only figures that show something else are drawn again."""

import functools
import hashlib
import importlib.metadata
import json
import os
import sys
import time
import zipfile
import zlib
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

import segexp
from segexp.data.cache import Damaged, Unusable, entry, find, limit
from segexp.records.process import in_parallel
from segexp.records.runs import Run
from segexp.records.tables import read_tables

FROM_RUNS = 100
"""Fewer runs are read as fast as what is kept."""

SETTLED_S = 1.0
"""A file that changed more recently may change again without another time: the times of files are not so fine."""


@functools.cache
def _code() -> str:
    """Hash of the code, and the versions of the libraries that it reads with."""
    sha = hashlib.sha256()
    for path in sorted(Path(segexp.__file__).parent.glob("*/*.py")):
        sha.update(path.read_bytes())
    return repr((sha.hexdigest(), *map(importlib.metadata.version, ("numpy", "pandas"))))


def _hash(*parts: object) -> str:
    """Of their repr, with every number of an array."""
    with np.printoptions(threshold=sys.maxsize, floatmode="unique"):
        return hashlib.sha256(repr(parts).encode(errors="surrogateescape")).hexdigest()[:32]


_ABOUT = {"kind": "report", "content": "report", "name": "reports"}


class _Kept(NamedTuple):
    """stamps: of the runs; rows: theirs, with the place of the run in the column "run"."""

    stamps: list[str]
    rows: pd.DataFrame


def kept_tables(
    runs: Sequence[Run], table: str, columns: Collection[str], of: object
) -> tuple[pd.DataFrame | None, dict[int, str]]:
    """`segexp.records.tables.read_tables`, of which the rows of many runs are kept. of: what the runs have in common,
    by its repr."""
    if len(runs) < FROM_RUNS or not limit():
        return read_tables(runs, table, columns)
    key = _hash(_code(), sorted({str(run.path.parent) for run in runs}), table, [*columns], of)
    known = None
    with suppress(Unusable):
        known = find(key, _read)
    place = {stamp: n for n, stamp in enumerate(known.stamps)} if known else {}
    stamps = [_stamp(run, table) for run in runs]
    again = [n for n, stamp in enumerate(stamps) if stamp not in place]
    rows, unusable = read_tables([runs[n] for n in again], table, columns)
    wrong = {again[n]: why for n, why in unusable.items()}
    parts = [] if rows is None else [rows.assign(run=np.array(again)[rows["run"]])]
    if known and len(again) < len(runs):
        number = np.full(len(known.stamps), -1)
        number[[place[stamp] for stamp in stamps if stamp in place]] = [n for n, s in enumerate(stamps) if s in place]
        number_R = number[known.rows["run"]]
        parts.append(known.rows.assign(run=number_R)[number_R >= 0])
    if not parts:
        return None, wrong
    whole = pd.concat(parts, ignore_index=True).sort_values("run", kind="stable", ignore_index=True)
    settled = [n for n, stamp in enumerate(stamps) if stamp and n not in wrong]
    if not set(settled).isdisjoint(again):
        number = np.full(len(runs), -1)
        number[settled] = np.arange(len(settled))
        number_R = number[whole["run"]]
        kept = _Kept([stamps[n] for n in settled], whole.assign(run=number_R)[number_R >= 0])
        with suppress(Unusable):
            entry(key, _ABOUT, lambda place: True, functools.partial(_write, kept=kept), renew=True)
    return whole, wrong


def _stamp(run: Run, table: str) -> str:
    """What the usable content of a table's file is known by; "" where it is too new, or has gone."""
    try:
        found = os.lstat(run.path / f"{table}.csv")
    except OSError:
        return ""
    if time.time() - max(found.st_mtime, found.st_ctime) < SETTLED_S:
        return ""
    written = [run.record.get(key, {}).get(table) for key in ("n_rows_expected", "sha256")]
    of_file = found.st_mode, found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_dev, found.st_ino
    return repr((run.path.name, *of_file, *written))


def _write(place: Path, kept: _Kept) -> None:
    """Texts as numbers of a list, whole numbers as small ones."""
    texts: dict[str, list[str]] = {}
    arrays: dict[str, np.ndarray] = {}
    for name, column in kept.rows.items():
        if pd.api.types.is_numeric_dtype(column):
            arrays[str(name)] = column.to_numpy()
        else:
            arrays[str(name)], found = pd.factorize(column)
            texts[str(name)] = found.tolist()
        if arrays[str(name)].dtype.kind == "i":
            arrays[str(name)] = pd.to_numeric(arrays[str(name)], downcast="integer")
    about = json.dumps({"stamps": kept.stamps, "texts": texts}).encode()
    np.savez(place / "content.npz", about=np.frombuffer(about, np.uint8), **arrays)  # type: ignore[arg-type]


def _read(place: Path) -> _Kept:
    """The archive has a checksum of each array."""
    try:
        with (place / "content.npz").open("rb") as file, np.load(file, allow_pickle=False) as content:
            arrays = {name: content[name] for name in content.files}
        about = json.loads(arrays.pop("about").tobytes())
        for name, found in about["texts"].items():
            arrays[name] = pd.Series(found, dtype="str").array.take(arrays[name])
    except (ValueError, KeyError, IndexError, EOFError, zipfile.BadZipFile) as error:
        raise Damaged(str(error)) from None
    rows = pd.DataFrame({name: a.astype("int64") if a.dtype.kind == "i" else a for name, a in arrays.items()})
    return _Kept(about["stamps"], rows)


def kept_texts(of: object, sources: Sequence[object], makes: Sequence[Callable[[], str]]) -> list[str]:
    """Texts, each kept under the repr of all that it is made from; what is not asked for is forgotten.

    of: what the texts belong to. makes: what makes each, see `in_parallel`.
    """
    key, known = _hash(_code(), of), dict[str, str]()
    with suppress(Unusable):
        known = (find(key, _read_texts) if limit() else None) or {}
    names = [_hash(source) for source in sources]
    missing = {name: make for name, make in zip(names, makes, strict=True) if name not in known}
    made = dict(zip(missing, in_parallel([*missing.values()]), strict=True))
    texts = {name: made[name] if name in made else known[name] for name in names}

    def fill(place: Path) -> None:
        text = json.dumps(texts)
        (place / "content.json").write_text(json.dumps([zlib.crc32(text.encode()), text]), encoding="utf-8")

    if texts.keys() != known.keys() and limit():
        with suppress(Unusable):
            entry(key, _ABOUT, lambda place: True, fill, renew=True)
    return [texts[name] for name in names]


def _read_texts(place: Path) -> dict[str, str]:
    try:
        checksum, text = json.loads((place / "content.json").read_bytes())
        if checksum == zlib.crc32(text.encode()):
            return dict(json.loads(text))
    except (ValueError, TypeError, AttributeError) as error:
        raise Damaged(str(error)) from None
    raise Damaged("its checksum is another")
