"""Studies in a notebook: tidy pandas frames, and a comparison that displays itself. Imports no torch."""

import csv
import html
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from segexp.compare import verdict
from segexp.compare.blocks import arrange, with_later_options
from segexp.compare.result import Result
from segexp.errors import UsageError
from segexp.records import COLUMNS, cell_of
from segexp.records.collected import FIRST, typed_runs
from segexp.records.foreign import columns_in, loaded, of_table
from segexp.records.formatting import pluralize
from segexp.records.runs import Run, shown_state
from segexp.records.tables import Images, Loaded, read_tables
from segexp.records.user_tables import Table
from segexp.report import figures, formats, tables
from segexp.report.drawing import styled

Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
Columns = str | Mapping[str, str | Sequence[str]] | None  # as --columns, or role -> column, or several for arm
Names = str | Sequence[str]  # one, several with commas between them, or a list


@dataclass(frozen=True, eq=False, repr=False)
class StudyFrames:
    """What `load_study` reads: a row per run; per run, image and class; per run, epoch and split (none of tables).

    "arm" is the arm as `segexp compare` names it, ids are text, scores lie in [0, 1]. loaded: the runs themselves, and
    a line for each problem.
    """

    runs: pd.DataFrame
    images: pd.DataFrame
    epochs: pd.DataFrame
    loaded: Loaded
    paths: tuple[Path, ...]
    split: str

    def __repr__(self) -> str:
        names, n_images = ", ".join(path.name for path in self.paths), self.images["image_id"].nunique()
        return f"{names}: {pluralize(len(self.runs), 'run')}, {pluralize(n_images, 'image')} of {self.split}"

    def _repr_html_(self) -> str:
        states = pd.crosstab(self.runs["arm"], self.runs["status"].map(shown_state))
        return f"<p>{html.escape(repr(self))}</p>{states.to_html()}{_list(self.loaded.problems)}"


def load_study(
    path: Paths, *, split: str = "test", by: Names | None = None, columns: Columns = None, paired: bool = False
) -> StudyFrames:
    """The runs under a path, or several: run directories, studies, collected tables, results of other programs.

    by: the keys that make an arm; columns, paired: of other programs. All are as in `compare`. Raises UsageError.

    >>> segexp.load_study("outputs/nightly").images.groupby("arm")["dice"].mean()  # doctest: +SKIP
    """
    paths = _paths(path)
    found = verdict.load_checked(paths, split, columns=_columns(columns), paired=paired)
    known = [run for run in found.runs if run.row.get("config_seed") or run.row.get("seed")]
    arms = arrange(with_later_options(known), _names(by) or found.by)
    arm_of = {run_id: arms.label(levels) for run_id, levels in arms.level_of.items()}
    names, text = dict.fromkeys([*FIRST, *(name for run in found.runs for name in run.row)]), io.StringIO()
    csv.writer(text).writerows([names, *([run.row.get(name, "") for name in names] for run in found.runs)])
    runs = typed_runs(text.getvalue().encode(), [*names])
    runs.insert(0, "arm", [arm_of.get(run.run_id, "") for run in found.runs])
    images = [_images(run, arm_of[run.run_id], split) for run in found.runs if run.images is not None]
    on_disk = [run for run in found.runs if run.state in ("done", "diverged") and not run.collected]
    epochs = read_tables(on_disk, "epochs", COLUMNS["epochs"])[0]
    epochs = pd.DataFrame(columns=["run", *COLUMNS["epochs"]]) if epochs is None else epochs.reset_index(drop=True)
    of_run = [on_disk[n].run_id for n in epochs.pop("run")]
    epochs.insert(0, "run_id", of_run)
    epochs.insert(1, "arm", [arm_of[run_id] for run_id in of_run])
    return StudyFrames(runs, pd.concat(images, ignore_index=True), epochs, found, paths, split)


def _images(run: Run, arm: str, split: str) -> pd.DataFrame:
    images = cast(Images, run.images)
    layout, counts_3R = images.layout, images.counts_NF3.reshape(-1, 3).T.astype("int64")
    N, F = layout.n_reference_NF.shape
    facts = {"run_id": run.run_id, "arm": arm, "seed": int(run.row["seed"]), "fold": run.row.get("fold", "")}
    ids = {"image_id": np.repeat(layout.image_ids, F), "group_id": np.repeat(layout.groups, F)}
    counts = zip(("tp", "fp", "fn"), counts_3R, strict=True) if counts_3R.any() else ()  # else they are unknown
    scores = {name: cells_NF.ravel() for name, cells_NF in images.cells.items()}
    return pd.DataFrame({**facts, "split": split, **ids, "class_id": layout.classes * N, **dict(counts), **scores})


@dataclass(frozen=True, repr=False)
class StudyComparison:
    """What `compare` finds. result: everything, as plain data."""

    result: Result

    @property
    def headline(self) -> str:
        """The answer in a sentence."""
        return self.result.headline

    @property
    def warnings(self) -> tuple[str, ...]:
        """Every warning, the most important ones first."""
        return tuple(formats.warnings_of(self.result))

    @property
    def verdict(self) -> str:
        """The verdict of the only comparison. Raises UsageError where there are several."""
        verdicts = [str(row["verdict"]) for row in formats.comparison_rows(self.result)]
        if len(verdicts) != 1:
            raise UsageError(f"there are {len(verdicts)} verdicts, not one: see to_frame()")
        return verdicts[0]

    def to_frame(self) -> pd.DataFrame:
        """A row per comparison, as `segexp compare --csv` has it: numbers in the metric's own unit, not in points."""
        return pd.DataFrame(formats.comparison_rows(self.result))

    def plot_forest(self, block: int = 0) -> Figure:
        """The differences with their intervals. block: data set or condition, from 0. Raises UsageError."""
        if block not in range(len(self.result.blocks)):
            raise UsageError(f"there is no block {block}: blocks are 0 to {len(self.result.blocks) - 1}")
        with styled():
            drawn = figures.forest(self.result.blocks[block], self.result.metric, "forest")
            if not drawn:
                raise UsageError("there is no forest plot, because no comparison was tested: see warnings")
            drawn[0].figure.canvas.draw()  # with the style, which ticks take when they are made
        return drawn[0].figure

    def __repr__(self) -> str:
        return self.headline

    def _repr_html_(self) -> str:
        text = f"<p><b>{html.escape(self.headline)}</b></p>{_list(self.warnings)}"
        for table in [one for block in self.result.blocks for one in tables.of_block(block, self.result.metric, "")[0]]:
            frame = pd.DataFrame(table.rows, columns=[title for title, _ in table.columns])
            text += f"<p>{html.escape(f'{table.title} {table.where}')}</p>{frame.to_html(index=False)}"
        return text


def compare(
    source: "Paths | StudyFrames | pd.DataFrame",
    *,
    by: Names | None = None,
    reference: str | None = None,
    metric: Names | None = None,
    rope: float | None = None,
    class_: str | int | None = None,
    split: str = "test",
    where: Mapping[str, Any] | None = None,
    columns: Columns = None,
    paired: bool = False,
) -> StudyComparison:
    """`segexp compare` with its options. Raises UsageError.

    source: paths, what `load_study` read (with its split, columns and paired), or a DataFrame with a row per arm, seed
    and image, which is read like a table of another program (columns, paired); rows are counted from 0 in its errors.
    where: key -> its value, or a list of values.

    >>> segexp.compare("outputs/nightly", reference="activation=sigmoid").headline  # doctest: +SKIP
    """
    paths, found, text = (Path("DataFrame"),), None, _columns(columns)
    if isinstance(source, StudyFrames):
        if columns or paired or split not in ("test", source.split):
            raise UsageError("the study is read already: give split, columns and paired to load_study")
        paths, found, split = source.paths, source.loaded, source.split  # type: ignore[assignment]
    elif isinstance(source, pd.DataFrame):
        names = [*map(str, source.columns)]
        if twice := [name for n, name in enumerate(names) if name in names[:n]]:
            raise UsageError(f"DataFrame has the column {twice[0]} more than once; rename one of them")
        rows = [{str(key): cell_of(value) for key, value in row.items()} for row in source.to_dict("records")]
        table = Table(paths[0], ",", tuple(names), tuple(rows), tuple(range(len(rows))))
        found = loaded([of_table(table, columns_in(text), split)], paired)
    else:
        paths = _paths(source)  # type: ignore[assignment]
    filters = {key: _text(value, ",") for key, value in (where or {}).items()}
    one_class = None if class_ is None else str(class_)
    options: dict[str, Any] = {"loaded": found, "class_": one_class, "columns": text, "paired": paired}
    return StudyComparison(
        verdict.compare(paths, _names(metric), _names(by), reference, rope, split, filters, **options)
    )


def _paths(given: Paths) -> tuple[Path, ...]:
    return tuple(map(Path, [given] if isinstance(given, str | os.PathLike) else given))


def _columns(given: Columns) -> str | None:
    if isinstance(given, Mapping):
        return ",".join(f"{role}={_text(name, '+')}" for role, name in given.items())
    return given


def _text(given: Any, between: str) -> str:
    """One value, or all of a list, as the command line has them."""
    return between.join(map(str, given)) if isinstance(given, list | tuple) else str(given)


def _names(given: Names | None) -> list[str] | None:
    return [name.strip() for name in given.split(",")] if isinstance(given, str) else given and [*given]  # type: ignore[return-value]


def _list(lines: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{html.escape(line)}</li>' for line in lines)}</ul>" if lines else ""
