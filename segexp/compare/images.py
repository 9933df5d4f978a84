"""Images of runs: the table images.csv as it is parsed, and the numbers that are compared.

Axes: N images, F foreground classes.
"""

import csv
import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segexp.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

CELLS = ("dice", "iou", "nsd", "hd95", "nll", "brier")
"""Columns of images.csv that are scores; older records may lack some of the last four."""

COUNTS = ("n_gt", "tp", "fp", "fn")

_NEEDED = ("split", "image_id", "class_id", *COUNTS, "dice", "iou")


@dataclass(frozen=True)
class Layout:
    """The images of a split in order of their names, with their groups ("" for none), and where a class is held."""

    image_ids: tuple[str, ...]
    groups: tuple[str, ...]
    classes: tuple[int, ...]
    n_reference_NF: "np.ndarray"


@dataclass(frozen=True)
class Images:
    """Scores of one run per image and class: column -> (N, F), NaN where undefined."""

    layout: Layout
    cells: Mapping[str, "np.ndarray"]


_KINDS = {"run_id": "category", "split": "category", "image_id": "category", "group_id": "category"}


def _usable(header: Sequence[str], where: str) -> list[str]:
    """The columns to read. Raises UsageError where one that is needed is missing."""
    missing = [name for name in _NEEDED if name not in header]
    if missing:
        raise UsageError(f"{where} lacks the column {', '.join(missing)}")
    return [name for name in ("run_id", "group_id", *dict.fromkeys((*_NEEDED, *CELLS))) if name in header]


def _options(header: Sequence[str], where: str) -> dict[str, Any]:
    usable = _usable(header, where)
    numbers = [name for name in usable if name not in _KINDS]
    kinds = {name: _KINDS.get(name, "float64") for name in usable} | {"class_id": "int64"}
    return {
        "usecols": usable,
        "dtype": kinds,
        "keep_default_na": False,
        "na_values": {name: [""] for name in numbers if name != "class_id"},
    }


def frame_of(header: bytes, runs: Iterable[tuple[str, bytes]]) -> "pd.DataFrame":
    """Images of runs whose tables have the same header as one table with run_id in front."""
    import pandas as pd

    names = ["run_id", *next(csv.reader([header.decode("utf-8")]), [])]
    if len(set(names)) < len(names):
        raise UsageError("its header names a column twice")
    lines = io.BytesIO()
    for run_id, data in runs:
        body = data.partition(b"\n")[2]
        if b'"' in body:
            rows = csv.reader(io.StringIO(body.decode("utf-8"), newline=""))
            text = io.StringIO()
            csv.writer(text, lineterminator="\n").writerows([run_id, *cells] for cells in rows)
            lines.write(text.getvalue().encode("utf-8"))
        elif body:
            prefix = run_id.encode("utf-8") + b","
            lines.write(prefix + body.rstrip(b"\n").replace(b"\n", b"\n" + prefix) + b"\n")
    lines.seek(0)
    frame = pd.read_csv(lines, names=names, header=None, **_options(names, "its header"))
    return _complete(frame)


def frames_of(path: Path) -> Iterator["pd.DataFrame"]:
    """The rows of a collected images.csv in portions that never part the rows of a run."""
    import pandas as pd

    try:
        with path.open(encoding="utf-8", newline="") as file:
            header = next(csv.reader(file), [])
        options = _options(header, str(path))
        with path.open("rb") as raw:
            raw.seek(0, 2)
            raw.seek(max(raw.tell() - 1, 0))
            if raw.read() != b"\n":
                raise UsageError(f"{path} is cut short, its last line has no end: copy it again")
        if "run_id" not in header:
            raise UsageError(f"{path} is no images.csv of `segexp collect`: no column run_id")
        # A run's rows stand together in the file; a portion may still end in the middle of one.
        kept: pd.DataFrame | None = None
        for portion in pd.read_csv(path, chunksize=400_000, **options):
            frame = portion.astype({"run_id": "str"})
            frame = frame if kept is None else pd.concat([kept, frame.astype(_as_text(frame))])
            last = frame["run_id"].iloc[-1]
            kept = frame[frame["run_id"] == last].astype(_as_text(frame))
            yield _complete(frame[frame["run_id"] != last])
        if kept is not None:
            yield _complete(kept)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error


def _as_text(frame: "pd.DataFrame") -> dict[str, str]:
    """Categories of different portions have nothing in common but their names."""
    return {name: "str" for name in _KINDS if name in frame}


def _complete(frame: "pd.DataFrame") -> "pd.DataFrame":
    return frame if "group_id" in frame else frame.assign(group_id="")


def layout_of(
    image_ids: tuple[str, ...], groups: tuple[str, ...], class_id: "np.ndarray", n_gt: "np.ndarray"
) -> Layout:
    """Raises UsageError where an image has not each class exactly once."""
    import numpy as np

    classes = tuple(int(c) for c in np.unique(class_id))
    n = len(image_ids) // len(classes)
    expected = np.tile(np.array(classes), n)
    if len(expected) != len(class_id) or (expected != class_id).any() or len(set(image_ids)) != n:
        twice = [name for name, count in Counter(zip(image_ids, class_id, strict=True)).items() if count > 1]
        what = f"image {twice[0][0]!r} is there twice" if twice else "not every image has every class"
        raise UsageError(what)
    width = len(classes)
    return Layout(image_ids[::width], groups[::width], classes, n_gt.reshape(n, width))


def slices_in(names: Sequence[str]) -> int:
    """How many volumes image names look like slices of, 0 where they do not: patient07_012 and patient07_013."""
    stems = Counter(
        m[1] for name in names if (m := re.fullmatch(r"(.*[A-Za-z0-9])[-_. ](?:[A-Za-z]{0,6})\d{1,4}", name))
    )
    volumes = [count for count in stems.values() if count > 1]
    return len(stems) if len(stems) > 1 and sum(volumes) > len(names) / 2 else 0
