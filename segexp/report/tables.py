"""The tables of a report, once: for the page, as LaTeX and Markdown for a paper, and as CSV to go on with."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from segexp.compare.result import (
    CROSSED,
    OVER_FOLDS,
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
    folders_of,
    limits,
    number,
    only_names,
    p_value,
    pairs,
    scope,
    score,
    seeds,
    signed,
    with_unit,
)
from segexp.tables import csv_table

TEXT, NUMBER, ARM, VERDICT, CODE = "text", "number", "arm", "verdict", "code"
"""Kinds of columns: how a page sets them, and how they are sorted."""


@dataclass(frozen=True)
class Table:
    """Cells as they are printed. columns: (title, kind) each; note: what must be known to read it; where: the data set
    and the conditions, "" for all of them."""

    name: str
    title: str
    columns: tuple[tuple[str, str], ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    where: str = ""


def ranking(block: Block, metric: Metric, name: str) -> Table:
    """Arms from the best to the worst."""
    any_zeroed = any(arm.n_failed + arm.n_diverged and not math.isnan(arm.mean_failures_zero) for arm in block.ranking)
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
            seeds(arm.n_seeds, arm.n_folds),
            str(arm.n_images),
            str(arm.n_groups),
            without_score(arm),
        )
        for arm in block.ranking
    )
    return Table(name, "Ranking", tuple(columns), rows, "IQM: interquartile mean over seeds and images.", block.title)


def without_score(arm: ArmScore) -> str:
    """2 failed, 1 diverged; a dash where every run has a score."""
    counts = {"failed": arm.n_failed, "diverged": arm.n_diverged, "unfinished": arm.n_unfinished}
    return ", ".join(f"{n} {state}" for state, n in counts.items() if n) or NOTHING


def comparisons(block: Block, metric: Metric, name: str) -> tuple[Table, ...]:
    """Every candidate against its reference, in tables that fit a page: the verdicts, what this design could have
    found, and the numbers behind both; none where nothing is compared."""
    made = (_verdicts(block, metric, name), _design(block, metric, name), _details(block, metric, name))
    return made if block.comparisons else ()


def _verdicts(block: Block, metric: Metric, name: str) -> Table:
    any_unusual = any(found.method != CROSSED for found in block.comparisons)
    columns = (
        ("candidate", ARM),
        ("reference", ARM),
        ("verdict", VERDICT),
        (_in_points("difference", metric), NUMBER),
        ("95 % interval", NUMBER),
        ("speaks of", TEXT),
        ("95 %, these images", NUMBER),
        ("p", NUMBER),
        ("p, Holm", NUMBER),
        *([("method", TEXT)] if any_unusual else []),
    )
    rows = tuple(
        (
            found.candidate,
            found.reference,
            found.verdict,
            difference(metric, found.deciding.mean),
            limits(metric, found.deciding),
            scope(found),
            limits(metric, found.test_set),
            p_value(found.deciding.p),
            p_value(found.p_holm),
            *([found.method] if any_unusual else []),
        )
        for found in block.comparisons
    )
    note = (
        "Verdicts rest on p after Holm; each interval is a 95 % interval by itself, not adjusted, so that one beside 0 "
        'can go with "inconclusive".'
    )
    return Table(name, "Comparisons", columns, rows, note, block.title)


def _design(block: Block, metric: Metric, name: str) -> Table:
    to_find = metric.rope > 0
    columns = (
        ("candidate", ARM),
        ("reference", ARM),
        ("seeds", NUMBER),
        ("images", NUMBER),
        ("groups", NUMBER),
        (_in_points("detectable", metric), NUMBER),
        *([(f"seeds to find {score(metric, metric.rope)}", NUMBER)] if to_find else []),
        (_in_points("image floor", metric), NUMBER),
    )
    rows = tuple(
        (
            found.candidate,
            found.reference,
            seeds(found.n_seeds, found.n_folds),
            str(found.n_images),
            str(found.n_groups),
            score(metric, found.minimum_detectable),
            *([_seeds_needed(found)] if to_find else []),
            score(metric, found.image_floor),
        )
        for found in block.comparisons
    )
    note = (
        "detectable: the smallest difference that as many seeds and images find with 80 % power; "
        f"{'seeds to find: how many find what is just not negligible so; ' if to_find else ''}"
        "image floor: what endless seeds could find on as many images. All for one comparison, before Holm."
    )
    return Table(f"{name}-design", "What this design can find", columns, rows, note, block.title)


def _seeds_needed(found: Comparison) -> str:
    """How many seeds it takes: a number, "no number" where none does, a dash where it is not known."""
    return "no number" if found.seeds_needed == math.inf else number(found.seeds_needed)


def _details(block: Block, metric: Metric, name: str) -> Table:
    columns = (
        ("candidate", ARM),
        ("reference", ARM),
        ("df", NUMBER),
        (_in_points("standard error", metric), NUMBER),
        ("seeds won", NUMBER),
        ("95 % of their share", NUMBER),
        ("effect size", NUMBER),
        ("correlation of seeds", NUMBER),
        *((_in_points(f"sd of {what}", metric), NUMBER) for what in _COMPONENTS.values()),
    )
    rows = tuple(
        (
            found.candidate,
            found.reference,
            number(round(found.deciding.df, 1)),
            score(metric, found.deciding.se),
            _won(found),
            f"{100 * found.wins_low:.0f} to {100 * found.wins_high:.0f} %" if found.wins_low >= 0 else NOTHING,
            signed(found.effect_size),
            signed(found.seed_correlation),
            *(score(metric, math.sqrt(max(found.variance.get(part, math.nan), 0.0))) for part in _COMPONENTS),
        )
        for found in block.comparisons
    )
    note = (
        "Of the deciding interval: df and standard error. effect size: mean over sd of the seeds' differences. sd of "
        "seeds, images and the rest: parts of a difference's variance, rough with few seeds."
    )
    return Table(f"{name}-details", "In detail", columns, rows, note, block.title)


_COMPONENTS = {"seed": "seeds", "image": "images", "residual": "the rest"}


def _won(found: Comparison) -> str:
    """4.5 of 5, or of as many folds where those are what is counted."""
    if math.isnan(found.wins):
        return NOTHING
    of = f"{found.n_folds} folds" if found.method == OVER_FOLDS else f"{found.n_seeds}"
    return f"{found.wins:g} of {of}"


def _in_points(what: str, metric: Metric) -> str:
    return f"{what} (points)" if metric.points else what


def crossed(factorial: Factorial, metric: Metric, name: str, where: str = "") -> Table:
    """Mean scores of two factors, a row per level of one and a column per level of the other."""
    columns = ((factorial.row_factor, TEXT), *((level, NUMBER) for level in factorial.columns))
    rows = tuple(
        (level, *(f"{score(metric, m)} ({n})" if n else NOTHING for m, n in zip(means, seeds, strict=True)))
        for level, means, seeds in zip(factorial.rows, factorial.means, factorial.seeds, strict=True)
    )
    title = f"{factorial.row_factor} and {factorial.column_factor}: mean {with_unit(metric)} (seeds)"
    return Table(name, title, columns, rows, where=where)


def interactions(factorial: Factorial, metric: Metric, name: str, where: str = "") -> Table:
    """Whether the gain of one factor depends on the other, and relative to which levels."""
    # Further factors, held at one level, stand behind the name of the columns' factor.
    other, _, _ = factorial.column_factor.partition(", ")
    columns = (
        (factorial.row_factor, TEXT),
        (other, TEXT),
        (_in_points("interaction", metric), NUMBER),
        ("95 % interval", NUMBER),
        ("p, Holm", NUMBER),
        ("seeds", NUMBER),
    )
    rows = tuple(
        (
            f"{i.level} against {i.reference}",
            f"{i.other_level} against {i.other_reference}",
            difference(metric, i.interval.mean),
            limits(metric, i.interval),
            p_value(i.p_holm),
            str(i.n_seeds),
        )
        for i in factorial.interactions
    )
    title = f"Interaction of {factorial.row_factor} and {factorial.column_factor}"
    note = (
        f"What the first gain is at the one level of {other}, less what it is at the other. Holm over all of the block."
    )
    return Table(name, title, columns, rows, note, where)


def over_datasets(found: Sequence[OverDatasets], metric: Metric, name: str) -> Table:
    """Candidates over data sets, one difference from each."""
    columns = (
        ("candidate", ARM),
        ("reference", ARM),
        ("conditions", TEXT),
        ("data sets", NUMBER),
        (_in_points("difference", metric), NUMBER),
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


def unscored(result: Result, name: str) -> Table:
    """Runs without a score, and why."""
    columns = (("run", CODE), ("data set", TEXT), ("arm", ARM), ("seed", NUMBER), ("state", TEXT), ("why", TEXT))
    folders = folders_of(result)
    rows = tuple((u.run_id, u.dataset, u.arm, u.seed, u.state, only_names(u.reason, folders)) for u in result.unscored)
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
        return _last(str(value))
    if column == "git_commit" and value:
        return str(value)[:10]
    if column == "started" and value:
        return str(value)[:16].replace("T", " ")
    return number(value)


def _last(path: str) -> str:
    """The name at the end of a path: enough to find a run; who holds it, and where, is nobody else's business."""
    return path.replace("\\", "/").rstrip("/").rpartition("/")[2]


def titled(table: Table) -> str:
    """The title, and where it holds."""
    return f"{table.title}: {table.where}" if table.where else table.title


def markdown(table: Table) -> str:
    """A table as Markdown, under its title."""
    titles = [title for title, _ in table.columns]
    lines = ["| " + " | ".join(map(_one_line, line)) + " |" for line in (titles, ["---"] * len(titles), *table.rows)]
    note = f"\n{clean(table.note)}\n" if table.note else ""
    return f"### {_one_line(titled(table))}\n\n" + "\n".join(lines) + "\n" + note


def markdown_list(title: str, lines: Sequence[str]) -> str:
    """Sentences as a list under their title, if any; "" for none."""
    heading = f"**{_one_line(title)}**\n\n" if title else ""
    return heading + "".join(f"- {_one_line(line)}\n" for line in lines) if lines else ""


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
    caption = f"{titled(table).rstrip('.')}. {table.note}".strip()
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
    """Every run with every column, values as they are recorded; of directories study/name, of paths the names."""
    return csv_table([_recorded(_without_places(run, folders_of(result))) for run in result.runs])


def _without_places(run: Mapping[str, Any], folders: Sequence[str]) -> dict[str, Any]:
    name = _last(str(run.get("directory") or ""))
    study = _last(str(run.get("study") or ""))
    error = only_names(str(run.get("error") or ""), folders)
    return {**run, "directory": f"{study}/{name}" if study and name else name, "error": error}


def comparisons_csv(result: Result) -> str:
    """A row per comparison, in the metric's own unit; mean to high90 are of the interval that the verdict rests on."""
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
                    "scope": found.scope,
                    **{key: getattr(found.deciding, key) for key in ("mean", "se", "df", "p")},
                    "p_holm": found.p_holm,
                    **{key: getattr(found.deciding, key) for key in ("low", "high", "low90", "high90")},
                    "test_set_low": found.test_set.low,
                    "test_set_high": found.test_set.high,
                    "method": found.method,
                    "n_seeds": found.n_seeds,
                    "n_folds": found.n_folds,
                    "n_images": found.n_images,
                    "n_groups": found.n_groups,
                    "wins": found.wins,
                    "wins_low": found.wins_low,
                    "wins_high": found.wins_high,
                    "minimum_detectable": found.minimum_detectable,
                    "target": found.target,
                    "seeds_needed": found.seeds_needed,
                    "image_floor": found.image_floor,
                    "effect_size": found.effect_size,
                    "seed_correlation": found.seed_correlation,
                    **{f"variance_{key}": value for key, value in found.variance.items()},
                    "dropped": found.dropped,
                    "warnings": only_names("; ".join(found.warnings), folders_of(result)),
                    "warnings_of_block": only_names("; ".join(block.warnings), folders_of(result)),
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
    """Values as a CSV file holds them: nothing for NaN, "infinite", and text that can be written."""
    return {key: _cell(value) for key, value in row.items()}


def _cell(value: Any) -> Any:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if value == math.inf:
        return "infinite"
    return clean(value) if isinstance(value, str) else value
