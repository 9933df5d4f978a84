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

from segexp.errors import UsageError, first_line
from segexp.evaluation.scores import dice_and_iou
from segexp.records import ENCODING
from segexp.records.scores import PER_IMAGE, SCORES

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

CELLS = PER_IMAGE
"""Columns of images.csv that are scores; older records may lack those behind Dice and IoU."""

COUNTS = ("n_gt", "tp", "fp", "fn")

ROUNDING = 1e-6
"""Scores that are nearer to one another are one."""

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


@dataclass(frozen=True)
class Read:
    """What was read of a run's images. images: None where they cannot be used, for ``reason``; counts_NF3: tp, fp, fn.

    edited: rows whose Dice or IoU was not that of the counts beside it; infinite: scores that are missing, for they
    were not finite.
    """

    images: Images | None
    reason: str = ""
    counts_NF3: "np.ndarray | None" = None
    edited: int = 0
    infinite: int = 0


_NAMES = ("run_id", "split", "image_id", "group_id")
"""Read as text, not as "category": pandas makes numbers of categories that look like some, 001 or 4e931661."""


def _usable(header: Sequence[str], where: str) -> list[str]:
    """The columns to read. Raises UsageError where one that is needed is missing."""
    missing = [name for name in _NEEDED if name not in header]
    if missing:
        raise UsageError(f"{where} lacks the column {', '.join(missing)}")
    return [name for name in ("run_id", "group_id", *dict.fromkeys((*_NEEDED, *CELLS))) if name in header]


def _options(header: Sequence[str], where: str) -> dict[str, Any]:
    usable = _usable(header, where)
    numbers = [name for name in usable if name not in _NAMES]
    kinds = {name: "str" if name in _NAMES else "float64" for name in usable} | {"class_id": "int64"}
    return {
        "usecols": usable,
        "dtype": kinds,
        "keep_default_na": False,
        "na_values": {name: [""] for name in numbers if name != "class_id"},
    }


def frame_of(header: bytes, runs: Iterable[tuple[str, bytes]]) -> "pd.DataFrame":
    """Images of runs whose tables have the same header as one table with run_id in front."""
    import pandas as pd

    names = ["run_id", *next(csv.reader([header.decode(ENCODING)]), [])]
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
        with path.open(encoding=ENCODING, newline="") as file:
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
            frame = portion if kept is None else pd.concat([kept, portion])
            last = frame["run_id"].iloc[-1]
            kept = frame[frame["run_id"] == last]
            yield _complete(frame[frame["run_id"] != last])
        if kept is not None:
            yield _complete(kept)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {first_line(error)}") from error


def _complete(frame: "pd.DataFrame") -> "pd.DataFrame":
    return frame if "group_id" in frame else frame.assign(group_id="")


def read_images(frame: "pd.DataFrame", split: str, layouts: dict[Any, Layout]) -> Iterator[tuple[str, Read]]:
    """The images of each run of a table on a split, in any order of its rows; runs without any are not named.

    layouts: those known so far, which runs on the same images share; new ones are added. Dice and IoU follow from the
    counts beside them, which are the truth; a score that is not finite is missing.
    """
    import numpy as np

    frame = frame[frame["split"] == split]
    if not len(frame):
        return
    # Names in order once for all runs: codes of sorted categories sort as the names do.
    sorted_names = {key: frame[key].astype("category").cat for key in ("run_id", "image_id", "group_id")}
    codes = {key: of_key.codes.to_numpy() for key, of_key in sorted_names.items()}
    names = {key: of_key.categories.to_numpy(dtype=object) for key, of_key in sorted_names.items()}
    class_id = frame["class_id"].to_numpy()
    order = np.lexsort((class_id, codes["image_id"], codes["run_id"]))
    class_id = class_id[order]
    codes = {key: of_rows[order] for key, of_rows in codes.items()}
    numbers = {key: frame[key].to_numpy(dtype=np.float64)[order] for key in (*CELLS, *COUNTS) if key in frame}
    counts_R3 = np.stack([numbers[key] for key in ("tp", "fp", "fn")], axis=1)
    edited_R, infinite_R = _put_right(numbers, counts_R3)
    wrong_R = _impossible(numbers)
    starts = np.flatnonzero(np.r_[True, np.diff(codes["run_id"]) != 0])
    edited, infinite = np.add.reduceat(edited_R, starts), np.add.reduceat(infinite_R, starts)
    for n, (start, stop) in enumerate(zip(starts, [*starts[1:], len(order)], strict=True)):
        part = slice(start, stop)
        run_id = str(names["run_id"][codes["run_id"][start]])
        image_ids = tuple(names["image_id"][codes["image_id"][part]])
        if wrong_R[part].any():
            row = int(start + np.flatnonzero(wrong_R[part])[0])
            told = ", ".join(
                f"{key}={of_rows[row]:g}" for key, of_rows in numbers.items() if key not in ("dice", "iou")
            )
            yield run_id, Read(None, f"image {image_ids[row - start]!r} holds what no image can: {told}")
            continue
        groups = tuple(names["group_id"][codes["group_id"][part]])
        key = (image_ids, groups, class_id[part].tobytes(), numbers["n_gt"][part].tobytes())
        if key not in layouts:
            try:
                layouts[key] = layout_of(image_ids, groups, class_id[part], numbers["n_gt"][part])
            except UsageError as error:
                yield run_id, Read(None, str(error))
                continue
        shape = layouts[key].n_reference_NF.shape
        cells = {name: numbers[name][part].reshape(shape) for name in CELLS if name in numbers}
        counts_NF3 = counts_R3[part].reshape(*shape, 3)
        yield run_id, Read(Images(layouts[key], cells), "", counts_NF3, int(edited[n]), int(infinite[n]))


def _put_right(numbers: dict[str, "np.ndarray"], counts_R3: "np.ndarray") -> tuple["np.ndarray", "np.ndarray"]:
    """Dice and IoU as the counts have them, NaN for what is not finite, in place; for each of R rows, whether it said
    something else, and how many of its scores were not finite."""
    import numpy as np

    edited_R = np.zeros(len(counts_R3), dtype=np.int64)
    infinite_R = np.zeros(len(counts_R3), dtype=np.int64)
    with np.errstate(invalid="ignore", divide="ignore"):
        true = dict(zip(("dice", "iou"), dice_and_iou(counts_R3), strict=True))
    for name in CELLS:
        if name not in numbers:
            continue
        infinite = np.isinf(numbers[name])
        infinite_R += infinite
        numbers[name][infinite] = np.nan
        if name in true:
            edited_R |= ~np.isclose(numbers[name], true[name], rtol=0, atol=1e-9, equal_nan=True)
            numbers[name] = true[name]
    return edited_R, infinite_R


def _impossible(numbers: Mapping[str, "np.ndarray"]) -> "np.ndarray":
    """Which of R rows hold counts that are none, or a score outside its range."""
    import numpy as np

    wrong_R = numbers["tp"] + numbers["fn"] != numbers["n_gt"]
    for name in ("tp", "fp", "fn"):
        wrong_R |= ~(numbers[name] >= 0) | (numbers[name] != np.floor(numbers[name]))
    for name in CELLS:
        if name in numbers:
            wrong_R |= (numbers[name] < -ROUNDING) | (numbers[name] > SCORES[name].highest + ROUNDING)
    return wrong_R


def same_images(a: Images | None, b: Images | None) -> bool:
    """Whether two runs have the same scores on the same images; a spreadsheet keeps 15 digits of them."""
    import numpy as np

    if a is None or b is None:
        return a is b
    return (
        a.layout is b.layout
        and a.cells.keys() == b.cells.keys()
        and all(np.allclose(a.cells[name], b.cells[name], rtol=1e-9, atol=1e-9, equal_nan=True) for name in a.cells)
    )


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
