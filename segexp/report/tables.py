"""The tables of a report, once: for the page, as LaTeX and Markdown for a paper, and as CSV to go on with."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from segexp.compare.pairs import deciding
from segexp.compare.result import (
    Answer,
    ArmScore,
    Block,
    Comparison,
    Factorial,
    Metric,
    OverDatasets,
    Result,
)
from segexp.report.words import (
    MINUS,
    NOTHING,
    clean,
    difference,
    limits,
    number,
    p_value,
    pairs,
    score,
    with_unit,
)
from segexp.tables import csv_table

TEXT, NUMBER, ARM, VERDICT, CODE = "text", "number", "arm", "verdict", "code"
"""Kinds of columns: how a page sets them, and how they are sorted."""


@dataclass(frozen=True)
class Table:
    """Cells as they are printed. columns: (title, kind) each; note: what must be known to read it."""

    name: str
    title: str
    columns: tuple[tuple[str, str], ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def ranking(block: Block, metric: Metric, name: str) -> Table:
    """Arms from the best to the worst."""
    any_zeroed = any(not math.isnan(arm.mean_failures_zero) for arm in block.ranking)
    columns = [
        ("arm", ARM),
        (with_unit(metric), NUMBER),
        ("sd of seeds", NUMBER),
        ("IQM", NUMBER),
        *([("failures as 0", NUMBER)] if any_zeroed else []),
        ("seeds", NUMBER),
        ("images", NUMBER),
        ("groups", NUMBER),
        ("no score", TEXT),
    ]
    rows = tuple(
        (
            arm.arm,
            score(metric, arm.mean),
            score(metric, arm.seed_sd),
            score(metric, arm.iqm),
            *([score(metric, arm.mean_failures_zero)] if any_zeroed else []),
            str(arm.n_seeds),
            str(arm.n_images),
            str(arm.n_groups),
            without_score(arm),
        )
        for arm in block.ranking
    )
    return Table(name, "Ranking", tuple(columns), rows, "IQM: interquartile mean over seeds and images.")


def without_score(arm: ArmScore) -> str:
    """2 failed, 1 diverged; a dash where every run has a score."""
    counts = {"failed": arm.n_failed, "diverged": arm.n_diverged, "unfinished": arm.n_unfinished}
    return ", ".join(f"{n} {state}" for state, n in counts.items() if n) or NOTHING


def comparisons(block: Block, metric: Metric, name: str) -> Table:
    """Every candidate against its reference, and what this design could have found."""
    columns = (
        ("candidate", ARM),
        ("reference", ARM),
        ("verdict", VERDICT),
        (f"difference{' (points)' if metric.points else ''}", NUMBER),
        ("95 %, new images", NUMBER),
        ("95 %, these images", NUMBER),
        ("p", NUMBER),
        ("p, Holm", NUMBER),
        ("df", NUMBER),
        ("seeds won", NUMBER),
        ("seeds", NUMBER),
        ("images", NUMBER),
        ("detectable", NUMBER),
        (f"seeds to find {score(metric, _target(block))}", NUMBER),
        ("image floor", NUMBER),
    )
    rows = tuple(_comparison(found, metric) for found in block.comparisons)
    note = (
        "detectable: the smallest difference that as many seeds and images find with 80 % power; "
        "image floor: what endless seeds could find on as many images."
    )
    return Table(name, "Comparisons", columns, rows, note)


def in_two(table: Table) -> tuple[Table, Table]:
    """`comparisons` as two tables that fit a page: the verdicts, and what this design could have found."""
    verdicts = replace(table, columns=table.columns[:9], rows=tuple(row[:9] for row in table.rows), note="")
    held = (0, 1, *range(9, len(table.columns)))
    design = replace(
        table,
        name=f"{table.name}-design",
        title="What this design can find",
        columns=tuple(table.columns[n] for n in held),
        rows=tuple(tuple(row[n] for n in held) for row in table.rows),
    )
    return verdicts, design


def _target(block: Block) -> float:
    return block.comparisons[0].target if block.comparisons else math.nan


def _comparison(found: Comparison, metric: Metric) -> tuple[str, ...]:
    return (
        found.candidate,
        found.reference,
        found.verdict,
        difference(metric, deciding(found).mean),
        limits(metric, found.overall),
        limits(metric, found.test_set),
        p_value(deciding(found).p),
        p_value(found.p_holm),
        number(round(deciding(found).df, 1)),
        f"{found.wins:g} of {found.n_seeds}" if not math.isnan(found.wins) else NOTHING,
        str(found.n_seeds),
        str(found.n_images),
        score(metric, found.minimum_detectable),
        _seeds(found),
        score(metric, found.image_floor),
    )


def _seeds(found: Comparison) -> str:
    """How many seeds it takes; None means that no number does, where that could be computed at all."""
    if found.seeds_needed is not None:
        return str(found.seeds_needed)
    return NOTHING if math.isnan(found.minimum_detectable) else "no number"


def crossed(factorial: Factorial, metric: Metric, name: str) -> Table:
    """Mean scores of two factors, a row per level of one and a column per level of the other."""
    columns = ((factorial.row_factor, TEXT), *((level, NUMBER) for level in factorial.columns))
    rows = tuple(
        (level, *(f"{score(metric, m)} ({n})" if n else NOTHING for m, n in zip(means, seeds, strict=True)))
        for level, means, seeds in zip(factorial.rows, factorial.means, factorial.seeds, strict=True)
    )
    title = f"{factorial.row_factor} and {factorial.column_factor}: mean {with_unit(metric)} (seeds)"
    return Table(name, title, columns, rows)


def interactions(factorial: Factorial, metric: Metric, name: str) -> Table:
    """Whether the gain of one factor depends on the other."""
    columns = (
        (factorial.row_factor, TEXT),
        (factorial.column_factor, TEXT),
        (f"interaction{' (points)' if metric.points else ''}", NUMBER),
        ("95 % interval", NUMBER),
        ("p, Holm", NUMBER),
    )
    rows = tuple(
        (i.level, i.other_level, difference(metric, i.interval.mean), limits(metric, i.interval), p_value(i.p_holm))
        for i in factorial.interactions
    )
    return Table(name, f"Interaction of {factorial.row_factor} and {factorial.column_factor}", columns, rows)


def over_datasets(found: Sequence[OverDatasets], metric: Metric, name: str) -> Table:
    """Candidates over data sets, one difference from each."""
    columns = (
        ("candidate", ARM),
        ("reference", ARM),
        ("conditions", TEXT),
        ("data sets", NUMBER),
        (f"difference{' (points)' if metric.points else ''}", NUMBER),
        ("95 % interval", NUMBER),
        ("p, Holm", NUMBER),
        ("method", TEXT),
    )
    rows = tuple(
        (
            f.candidate,
            f.reference,
            pairs(f.conditions),
            str(len(f.differences)),
            difference(metric, f.interval.mean),
            limits(metric, f.interval),
            p_value(f.p_holm),
            f.method,
        )
        for f in found
    )
    return Table(name, "Over data sets", columns, rows)


def answer(found: Answer, name: str) -> Table:
    """The rows of a second question; every row has the columns of the first. A mean and its sd share a cell."""
    held = list(found.rows[0]) if found.rows else []
    titles = [title for title in held if title.removesuffix("_sd") not in held or not title.endswith("_sd")]
    columns = tuple((title, _kind(title, [row.get(title) for row in found.rows])) for title in titles)
    rows = tuple(tuple(_with_sd(row, title) for title in titles) for row in found.rows)
    note = "\u00b1: standard deviation of the runs." if any("\u00b1" in cell for row in rows for cell in row) else ""
    return Table(name, found.title, columns, rows, note)


def _with_sd(row: Mapping[str, Any], title: str) -> str:
    value, sd = number(row.get(title)), row.get(f"{title}_sd")
    known = isinstance(sd, float) and not math.isnan(sd) and value != NOTHING
    return f"{value} \u00b1 {sd:.2g}" if known else value


def _kind(title: str, values: Sequence[Any]) -> str:
    if title == "arm":
        return ARM
    return TEXT if any(isinstance(v, str | bool) and v != "" for v in values) else NUMBER


def unscored(result: Result, name: str) -> Table:
    """Runs without a score, and why."""
    columns = (("run", CODE), ("data set", TEXT), ("arm", ARM), ("seed", NUMBER), ("state", TEXT), ("why", TEXT))
    rows = tuple((u.run_id, u.dataset, u.arm, u.seed, u.state, u.reason) for u in result.unscored)
    return Table(name, "Runs without a score", columns, rows)


RUNS = {
    "run_id": ("run", CODE),
    "dataset": ("data set", TEXT),
    "arm": ("arm", ARM),
    "seed": ("seed", NUMBER),
    "fold": ("fold", NUMBER),
    "status": ("status", TEXT),
    "score": ("score", NUMBER),
    "dice": ("Dice", NUMBER),
    "iou": ("IoU", NUMBER),
    "epochs": ("epochs", NUMBER),
    "best_epoch": ("best epoch", NUMBER),
    "seconds": ("seconds", NUMBER),
    "study": ("study", TEXT),
    "directory": ("directory", TEXT),
    "host": ("host", TEXT),
    "device_type": ("device", TEXT),
    "version_segexp": ("segexp", TEXT),
    "git_commit": ("commit", CODE),
    "started": ("started", TEXT),
}
"""Columns of the run table on the page; the CSV file has all."""


def runs(result: Result, name: str) -> Table:
    """Every run, with or without a score."""
    columns = tuple(
        (with_unit(result.metric), NUMBER) if column == "score" else shown for column, shown in RUNS.items()
    )
    rows = tuple(tuple(_run_cell(column, run.get(column), result.metric) for column in RUNS) for run in result.runs)
    return Table(name, "Runs", columns, rows)


def _run_cell(column: str, value: Any, metric: Metric) -> str:
    if column == "score" and isinstance(value, float):
        return score(metric, value)
    if column == "directory" and value:
        # The name is enough to find a run; the path to it, and who holds it, is nobody else's business.
        return str(value).replace("\\", "/").rstrip("/").rpartition("/")[2]
    if column == "git_commit" and value:
        return str(value)[:10]
    if column == "started" and value:
        return str(value)[:16].replace("T", " ")
    return number(value)


def markdown(table: Table) -> str:
    """A table as Markdown, under its title."""
    titles = [title for title, _ in table.columns]
    lines = ["| " + " | ".join(map(_one_line, line)) + " |" for line in (titles, ["---"] * len(titles), *table.rows)]
    note = f"\n{clean(table.note)}\n" if table.note else ""
    return f"### {_one_line(table.title)}\n\n" + "\n".join(lines) + "\n" + note


def _one_line(cell: str) -> str:
    """Without what Markdown would take for HTML or for the end of a cell."""
    text = clean(cell).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return text.replace("|", "\\|")


_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    MINUS: "$-$",
    NOTHING: "--",
    "\u2026": r"\ldots{}",
    "\u00b1": r"$\pm$",
}


def latex_text(text: str) -> str:
    """Text as LaTeX prints it; \\textquotedbl asks for the T1 encoding."""
    return "".join(_LATEX.get(character, character) for character in clean(text))


def latex(table: Table) -> str:
    """A booktabs table with its caption: \\usepackage{booktabs} and \\usepackage[T1]{fontenc} print it."""
    alignment = "".join("r" if kind == NUMBER else "l" for _, kind in table.columns)
    caption = f"{table.title.rstrip('.')}. {table.note}".strip()
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{latex_text(caption)}}}",
        rf"\label{{tab:{table.name}}}",
        rf"\begin{{tabular}}{{{alignment}}}",
        r"\toprule",
        " & ".join(latex_text(title) for title, _ in table.columns) + r" \\",
        r"\midrule",
        # A row that begins with [ would be read as an option of the line's end before it.
        *(
            " & ".join(f"{{{latex_text(c)}}}" if c[:1] == "[" else latex_text(c) for c in row) + r" \\"
            for row in table.rows
        ),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def runs_csv(result: Result) -> str:
    """Every run with every column, values as they are recorded."""
    return csv_table([_recorded(run) for run in result.runs])


def comparisons_csv(result: Result) -> str:
    """A row per comparison, in the metric's own unit."""
    rows: list[dict[str, Any]] = []
    for block in result.blocks:
        for found in block.comparisons:
            rows.append(
                {
                    "dataset": block.dataset,
                    "conditions": pairs(block.conditions),
                    "candidate": found.candidate,
                    "reference": found.reference,
                    "metric": result.metric.name,
                    "verdict": found.verdict,
                    **{key: getattr(found.overall, key) for key in ("mean", "se", "df", "p")},
                    "p_holm": found.p_holm,
                    **{key: getattr(found.overall, key) for key in ("low", "high", "low90", "high90")},
                    "test_set_low": found.test_set.low,
                    "test_set_high": found.test_set.high,
                    "n_seeds": found.n_seeds,
                    "n_images": found.n_images,
                    "n_groups": found.n_groups,
                    "wins": found.wins,
                    "minimum_detectable": found.minimum_detectable,
                    "target": found.target,
                    "seeds_needed": found.seeds_needed,
                    "image_floor": found.image_floor,
                    "effect_size": found.effect_size,
                    "seed_correlation": found.seed_correlation,
                    **{f"variance_{key}": value for key, value in found.variance.items()},
                    "method": found.method,
                }
            )
    names = list(dict.fromkeys(name for row in rows for name in row))
    return csv_table([_recorded({name: row.get(name) for name in names}) for row in rows])


def images_csv(result: Result) -> str:
    """A row per comparison and image: means over seeds of candidate and reference."""
    rows = []
    for block in result.blocks:
        for found in block.comparisons:
            if found.candidate_N is None or found.reference_N is None:
                continue
            fixed = {"dataset": block.dataset, "conditions": pairs(block.conditions)}
            fixed |= {"candidate": found.candidate, "reference": found.reference, "metric": result.metric.name}
            columns = zip(found.units, found.candidate_N.tolist(), found.reference_N.tolist(), strict=True)
            rows += [
                fixed | {"image": unit, "of_candidate": round(ours, 6), "of_reference": round(theirs, 6)}
                for unit, ours, theirs in columns
            ]
    return csv_table([_recorded(row) for row in rows])


def _recorded(row: Mapping[str, Any]) -> dict[str, Any]:
    """Values as a CSV file holds them: nothing for NaN, and text that can be written."""
    return {key: _cell(value) for key, value in row.items()}


def _cell(value: Any) -> Any:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return clean(value) if isinstance(value, str) else value
