"""What compare found, and results of claims, as text, Markdown, LaTeX, CSV and JSON.

``answers``: secondary analyses, per block with run directories.
"""

import dataclasses
import json
import math
import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from segexp.compare.claims import ClaimResult
from segexp.compare.datasets import across_alone
from segexp.compare.formatting import MINUS, NOTHING, amount, design, limits, p_value
from segexp.compare.result import ALPHA, NO_CLASS, Answer, Block, Comparison, Metric, OverDatasets, Result
from segexp.records.formatting import csv_table, markdown_table, pairs, pluralize, text_table
from segexp.report import tables
from segexp.report.tables import NUMBER, TEXT, VERDICT, Table, clean, folders_of, last_name, notes_of, only_names

WIDTH = max(60, min(150, shutil.get_terminal_size((150, 24)).columns))
"""Of lines for the terminal: that of the terminal, between 60 and 150, which files get."""

VERSIONS = ("segexp", "numpy", "scipy")
"""Packages whose versions `as_text` prints, because the numbers depend on them. JSON has all."""

MOST_ROWS = 40
"""Runs without a score that `as_text` lists; the warnings count all of them."""

Answers = Sequence[tuple[Block, Sequence[Answer]]]


def as_text(result: Result, answers: Answers) -> str:
    """For the terminal."""
    lines = textwrap.wrap(result.headline, WIDTH)
    lines += ["", *_warned(result.warnings)] if result.warnings else []
    reading = how_to_read(result)
    explained: set[str] = set()
    for block, first, details, of_answers in _blocks(result, answers):
        lines += ["", f"== {block.title}"]
        lines += _each_note_once(first, explained)
        notes = notes_of(block)
        lines += ["", *_warned(notes)] if notes else []
        if block.comparisons and reading:
            folded = [textwrap.fill(line, WIDTH, initial_indent="  ", subsequent_indent="    ") for line in reading]
            lines += ["", "How to read this", *folded]
            reading = ()
        lines += _each_note_once(details, explained)
        for table, answer in of_answers:
            lines += ["", *text(table, WIDTH)]
            for note in answer.notes:
                lines += textwrap.wrap(f"note: {note}", WIDTH, subsequent_indent="  ")
    with_reason = tuple(u for u in result.unscored if u.reason)[:MOST_ROWS]  # pending runs would fill the screen
    for table in tables.over_all(dataclasses.replace(result, unscored=with_reason)):
        lines += ["", *text(table, WIDTH)]
    read = (
        f"{pluralize(result.n_runs, 'run')} read; negligible: {negligible(result)}; empty masks: {empty_masks(result)}"
    )
    lines += ["", *textwrap.wrap(read, WIDTH)]
    versions = result.provenance.get("compared with", {})
    shown = [f"{name} {versions[name]}" for name in VERSIONS if name in versions]
    lines += [f"compared with {', '.join(shown)}"] if shown else []
    # The minus of a keyboard, for searching and copying.
    return "\n".join(lines).replace(MINUS, "-") + "\n"


def negligible(result: Result) -> str:
    """The range of differences that matter to nobody; of each metric where there are several."""
    metrics = [one.metric for one in (result, *result.others)]
    ranges = [
        "not defined for this metric (--rope)"
        if math.isnan(one.rope)
        else f"within {amount(one, one.rope, signed=False)}"
        for one in metrics
    ]
    named = [f"{one.title} {of_one}" for one, of_one in zip(metrics, ranges, strict=True)]
    return ", ".join(named) if len(set(ranges)) > 1 else ranges[0]


def empty_masks(result: Result) -> str:
    """How images without reference pixels count, with the option that decides it."""
    how = {"reference": "left out", "both_empty_one": "1 where nothing is predicted, else 0"}
    policies = [policy for policy in result.empty_policy.split(", ") if policy]
    return ", or ".join(f"{how.get(policy, policy)} (metrics.empty_policy={policy})" for policy in policies)


def _each_note_once(shown: Sequence[Table], explained: set[str]) -> Iterator[str]:
    """Tables for the terminal, without the notes that are in ``explained`` already; the others are added to it."""
    for table in shown:
        again = table.note in explained
        yield from ("", *text(dataclasses.replace(table, note="") if again else table, WIDTH))
        explained.add(table.note)


def as_markdown(result: Result, answers: Answers) -> str:
    """The answer, the warnings, the tables, and the notes of each block before its details."""
    parts = [f"{result.headline}\n", markdown_list("Warnings", result.warnings)]
    reading = markdown_list("How to read this", how_to_read(result))
    for block, first, details, of_answers in _blocks(result, answers):
        parts += map(markdown, first)
        parts.append(markdown_list(f"Warnings: {block.title}", notes_of(block)))
        if block.comparisons:
            parts.append(reading)
            reading = ""
        parts += map(markdown, details)
        for table, answer in of_answers:
            parts += [markdown(table) if table.rows else f"**{table.title}**\n", markdown_list("", answer.notes)]
    parts += [markdown(table) for table in tables.over_all(result)]
    return "\n".join(part for part in parts if part)


def as_latex(result: Result, answers: Answers) -> str:
    """The tables, below the warnings as comments."""
    made = []
    for _, first, details, of_answers in _blocks(result, answers):
        made += [*first, *details, *(table for table, _ in of_answers if table.rows)]
    comments = [f"% warning: {clean(warning)}\n" for warning in warnings_of(result)]
    return "\n".join(["".join(comments), *map(latex, [*made, *tables.over_all(result)])]).lstrip("\n")


def as_json(result: Result, answers: Answers) -> str:
    """Everything but the values of single images; NaN is null, infinite numbers are "infinite"."""
    content = _plain(result)
    content["questions"] = [{"block": block.title, "answers": _plain(found)} for block, found in answers]
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def warnings_of(result: Result) -> list[str]:
    """Every warning once; those of a block begin with its title where there are several blocks."""
    several = len(result.blocks) > 1
    of_blocks = [f"{block.title}: {n}" if several else n for _, block in _every_block(result) for n in notes_of(block)]
    return list(dict.fromkeys([*result.warnings, *of_blocks]))


def how_to_read(result: Result) -> tuple[str, ...]:
    """Five lines, each at most 148 characters, for every form: verdicts, scope, Holm, intervals, equivalence."""
    metrics = [one.metric for one in (result, *result.others)]
    known = dict.fromkeys(amount(metric, metric.rope, signed=False) for metric in metrics if metric.rope > 0)
    rope = " or ".join(known)
    every = f"all {pluralize(result.n_family, 'comparison')}" if result.n_family > 1 else "all comparisons"
    negligible = f"negligible: smaller than {rope}. " if known else ""
    kind = "Repeated" if any(block.sequential for block in result.blocks) else "95 %"
    equivalent = (
        f'shown to be within {rope}, with the same adjustment. "Unless" names what so few images cannot rule out.'
        if known
        else "never said here, because no difference of this metric is known to be negligible. --rope sets one."
    )
    return (
        f"better, worse: p, Holm is below {ALPHA}. {negligible}inconclusive: these runs cannot tell. no test: the "
        "warnings say why.",
        "inference for: what may be new when the study is repeated. All else counts as fixed, training images too "
        "unless they are named.",
        f"p, Holm: adjusted for {every} of this call (any false one: 5 %). "
        + (
            "Other calls are not."
            if result.others
            else "Other calls are not: 3 metrics one by one, 14 %; use --metric a,b,c."
        ),
        f'{kind} intervals are not adjusted: an interval that excludes 0 can go with the verdict "inconclusive".',
        f"equivalent: {equivalent}",
    )


def _warned(warnings: Sequence[str]) -> list[str]:
    return [line for w in warnings for line in textwrap.wrap(f"warning: {w}", WIDTH, subsequent_indent="  ")]


def _blocks(
    result: Result, answers: Answers
) -> Iterator[tuple[Block, list[Table], list[Table], list[tuple[Table, Answer]]]]:
    """Each block, its verdicts, its details, and its secondary analyses with their tables; then the blocks of further
    metrics. With further metrics, every title names the metric. With several blocks, the names of tables begin with
    the number of the block."""
    for n, (unnamed, block) in enumerate(zip(result.blocks, first_blocks(result), strict=True)):
        prefix = f"{n + 1}-" if len(result.blocks) > 1 else ""
        found = [answer for other, of_other in answers if other is unnamed for answer in of_other]
        of_answers = [(tables.answer(answer, prefix, block.title), answer) for answer in found]
        yield block, *tables.of_block(block, result.metric, prefix), of_answers
    for one in result.others:
        further = dataclasses.replace(one, blocks=further_blocks(result, one))
        for block, *of_block, _ in _blocks(further, ()):
            first, details = (
                [dataclasses.replace(t, name=f"{tables.slug(one.metric)}-{t.name}") for t in these]
                for these in of_block
            )
            yield block, first, details, []


def first_blocks(result: Result) -> tuple[Block, ...]:
    """The blocks of the first metric as they are printed: named after it where there are further ones."""
    title = f"{result.metric.title}: " if result.others else ""
    return tuple(dataclasses.replace(block, dataset=f"{title}{block.dataset}") for block in result.blocks)


def further_blocks(result: Result, other: Result) -> tuple[Block, ...]:
    """The blocks of a further metric of the result as they are printed: named after it, without the warnings about the
    same runs that were printed before."""
    known = {warning for block in result.blocks for warning in block.warnings}
    return tuple(
        dataclasses.replace(
            block,
            dataset=f"{other.metric.title}: {block.dataset}",
            warnings=tuple(warning for warning in block.warnings if warning not in known),
        )
        for block in other.blocks
    )


def _plain(value: Any) -> Any:
    """The value as strict JSON can hold it."""
    if dataclasses.is_dataclass(value):
        skipped = ("units", "candidate_N", "reference_N", "titles", "own", "loaded")
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value) if f.name not in skipped}
    if isinstance(value, dict):
        return {str(key): _plain(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else "infinite" if value > 0 else "-infinite"
    return value


# One table


def text(table: Table, width: int) -> list[str]:
    """A table for the terminal in lines of about ``width`` characters, under its title."""
    titles = [title for title, _ in table.columns]
    rows = [dict(zip(titles, row, strict=True)) for row in table.rows]
    numbers = [title for title, kind in table.columns if kind == NUMBER]
    return [table.title, text_table(rows, width=width, right=numbers), *textwrap.wrap(table.note, width)]


def markdown(table: Table) -> str:
    """A table as Markdown, under its title."""
    titles = [title for title, _ in table.columns]
    rules = ["---:" if kind == NUMBER else "---" for _, kind in table.columns]
    lines = ["| " + " | ".join(map(_one_line, line)) + " |" for line in (titles, rules, *table.rows)]
    note = f"\n{clean(table.note)}\n" if table.note else ""
    return f"### {_one_line(_titled(table))}\n\n" + "\n".join(lines) + "\n" + note


def markdown_list(title: str, lines: Sequence[str]) -> str:
    """Sentences as a list under their title; "" for none."""
    heading = f"**{_one_line(title)}**\n\n" if title else ""
    return heading + "".join(f"- {_one_line(line)}\n" for line in lines) if lines else ""


def _titled(table: Table) -> str:
    return f"{table.title}: {table.where}" if table.where else table.title


def _one_line(cell: str) -> str:
    """Without characters that Markdown reads as HTML or as the end of a cell."""
    escaped = clean(cell).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return escaped.replace("|", "\\|")


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


def latex_text(plain: str) -> str:
    """Text as LaTeX prints it; \\textquotedbl needs the T1 encoding."""
    return "".join(_LATEX.get(character, character) for character in clean(plain))


def latex(table: Table) -> str:
    """A booktabs table with its caption; needs \\usepackage{booktabs} and \\usepackage[T1]{fontenc}."""
    alignment = "".join("r" if kind == NUMBER else "l" for _, kind in table.columns)
    caption = f"{_titled(table).rstrip('.')}. {table.note}".strip()
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{latex_text(caption)}}}",
        rf"\label{{tab:{table.name}}}",
        rf"\begin{{tabular}}{{{alignment}}}",
        r"\toprule",
        " & ".join(latex_text(title) for title, _ in table.columns) + r" \\",
        r"\midrule",
        # LaTeX would read a leading [ as an option of the line end before it.
        *(
            " & ".join(f"{{{latex_text(c)}}}" if c[:1] == "[" else latex_text(c) for c in row) + r" \\"
            for row in table.rows
        ),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


# CSV files, in the metric's own unit


def runs_csv(result: Result) -> str:
    """Every run with every column as it is recorded, but names in place of paths: a directory is study/name."""
    rows, folders = [], folders_of(result)
    for run in result.runs:
        name, study = (last_name(str(run.get(key) or "")) for key in ("directory", "study"))
        error = only_names(str(run.get("error") or ""), folders)
        rows.append({**run, "directory": f"{study}/{name}" if study and name else name, "error": error})
    return csv_table([_cells(row) for row in rows])


def comparisons_csv(result: Result) -> str:
    """`comparison_rows` as CSV."""
    rows = comparison_rows(result)
    names = list(dict.fromkeys(name for row in rows for name in row))
    return csv_table([_cells({name: row.get(name) for name in names}) for row in rows])


def comparison_rows(result: Result) -> list[dict[str, Any]]:
    """A row per comparison; mean to high90 belong to the deciding interval."""
    rows: list[dict[str, Any]] = []
    columns = "method n_seeds n_folds n_images n_groups wins wins_low wins_high minimum_detectable target"
    columns += " image_floor split_floor split_floor_se n_splits skewness effect_size seed_correlation"
    for metric, block in _every_block(result):
        for found in block.comparisons:
            row = _about(metric, block, candidate=found.candidate, reference=found.reference)
            row |= {"verdict": found.verdict, "scope": found.scope}
            row |= {key: getattr(found.deciding, key) for key in ("mean", "se", "df", "p")}
            row |= {"p_holm": found.p_holm, "p_block": found.p_block, "condition": found.condition}
            row |= {key: getattr(found.deciding, key) for key in ("low", "high", "low90", "high90")}
            row |= {"test_set_low": found.test_set.low, "test_set_high": found.test_set.high}
            row |= {key: getattr(found, key) for key in columns.split()}
            row |= dict(zip(("seeds_needed_low", "seeds_needed_high"), found.seeds_needed, strict=True))
            row |= {f"variance_{key}": value for key, value in found.variance.items()}
            for one in found.influence:
                what = "seed" if one.what == "seed" else "image"
                row |= {f"influential_{what}": one.name, f"mean_without_{what}": one.interval.mean}
                row |= {f"verdict_without_{what}": one.verdict}
            if (sets := found.new_training_sets) is not None:
                row |= {f"new_sets_{key}": getattr(sets.deciding, key) for key in ("mean", "low", "high", "p")}
                columns_of_sets = ("p_holm", "verdict", "condition", "split_floor_se")
                row |= {f"new_sets_{key}": getattr(sets, key) for key in columns_of_sets}
            row |= {"dropped": found.dropped}
            row |= {"warnings": only_names("; ".join(found.warnings), folders_of(result))}
            row |= {"warnings_of_block": only_names("; ".join(block.warnings), folders_of(result))}
            row |= {f"pivot_{part}": share for part, share in found.pivot.items()}
            rows.append(row)
    return rows


def datasets_csv(result: Result) -> str:
    """A row per comparison across data sets, with its difference on each."""
    rows: list[dict[str, Any]] = []
    for one in (result, *result.others):
        for found in one.over_datasets:
            row: dict[str, Any] = {"candidate": found.candidate, "reference": found.reference}
            row |= {"metric": one.metric.name} | _of_class(one.metric)
            row |= {"conditions": pairs(found.conditions, ", "), "method": found.method}
            row |= {"n_datasets": len(found.differences), "p_holm": found.p_holm}
            row |= {key: getattr(found.interval, key) for key in ("mean", "se", "df", "p", "low", "high")}
            row |= dict(zip(("prediction_low", "prediction_high"), found.prediction, strict=True))
            rows.append(row | {f"mean_on_{name}": value for name, value in found.differences.items()})
    names = list(dict.fromkeys(name for row in rows for name in row))
    return csv_table([_cells({name: row.get(name) for name in names}) for row in rows])


def _every_block(result: Result) -> list[tuple[Metric, Block]]:
    """The blocks of all metrics."""
    return [(one.metric, block) for one in (result, *result.others) for block in one.blocks]


def _about(metric: Metric, block: Block, **arms: str) -> dict[str, Any]:
    where = {"dataset": block.dataset, "conditions": pairs(block.conditions, ", ")}
    return {**where, **arms, "metric": metric.name, **_of_class(metric)}


def _of_class(metric: Metric) -> dict[str, int]:
    return {} if metric.class_id == NO_CLASS else {"class": metric.class_id}


def arms_csv(result: Result) -> str:
    """A row per arm of each block: its mean with the interval for new seeds and images, in the metric's own unit."""
    rows = []
    columns = "mean seed_sd iqm mean_failures_zero n_seeds n_splits n_folds n_images n_groups"
    columns += " n_failed n_diverged n_unfinished"
    for metric, block in _every_block(result):
        for arm in block.ranking:
            row = _about(metric, block, arm=arm.arm)
            row |= {key: getattr(arm, key) for key in columns.split()}
            row |= {key: getattr(arm.interval, key) for key in ("se", "df", "low", "high")}
            rows.append(_cells(row | {"interval_for": tables.interval_for([arm], metric)}))
    return csv_table(rows)


def images_csv(result: Result) -> str:
    """A row per comparison and image: means over seeds of candidate and reference."""
    rows = []
    for metric, block in _every_block(result):
        for found in block.comparisons:
            if found.candidate_N is None or found.reference_N is None:
                continue
            fixed = _about(metric, block, candidate=found.candidate, reference=found.reference)
            for unit, ours, theirs in zip(found.units, found.candidate_N, found.reference_N, strict=True):
                scores = {"of_candidate": round(float(ours), 6), "of_reference": round(float(theirs), 6)}
                rows.append(_cells(fixed | {"image": unit} | scores))
    return csv_table(rows)


def _cells(row: Mapping[str, Any]) -> dict[str, Any]:
    """The cells of a CSV row: nothing for NaN, inf, which pandas and R read as a number, and clean text."""

    def cell(value: Any) -> Any:
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return ""
        return clean(value) if isinstance(value, str) else value

    return {key: cell(value) for key, value in row.items()}


# Results of claims


def claims_text(results: Sequence[ClaimResult]) -> str:
    """A paragraph per result, the warnings of the runs, and a note."""
    lines = []
    for result in results:
        row = _claim_row(result)
        paragraph = []
        if result.found is not None:
            paragraph.append(
                f"{row['candidate']} against {row['reference']} on {row['on']}: difference {row['difference']}, "
                f"95 % {row['95 %']} for {row['inference for']}, p {row['p']}, Holm {row['p Holm']}, {row['rests on']}"
            )
        paragraph.append(row["why, and what would decide"])
        paragraph += [f"warnings: {row['warnings']}"] if _claim_warnings(result) else []
        lines.append(f"{result.outcome.upper()}: {result.claim.text}")
        for text in paragraph:
            lines += textwrap.wrap(text, WIDTH, initial_indent="  ", subsequent_indent="  ")
        lines.append("")
    of_runs = dict.fromkeys(warning for result in results for warning in result.of_runs)
    lines += [*_warned(list(of_runs)), ""] if of_runs else []
    return "\n".join([*lines, *textwrap.wrap(_claims_note(results), WIDTH)]).replace(MINUS, "-") + "\n"


def claims_markdown(results: Sequence[ClaimResult]) -> str:
    """A table, the warnings of the runs, and a note."""
    of_runs = dict.fromkeys(warning for result in results for warning in result.of_runs)
    parts = [markdown_table(list(map(_claim_row, results))), markdown_list("Warnings", list(of_runs))]
    return "\n\n".join(part.rstrip("\n") for part in (*parts, _claims_note(results)) if part) + "\n"


def claims_table(results: Sequence[ClaimResult]) -> Table:
    """For the page: a row per result. The note says how to read it and has the warnings of the runs."""
    columns = [("claim", TEXT), ("outcome", VERDICT), *((name, NUMBER) for name in ("difference", "95 %", "p Holm"))]
    columns += [(name, TEXT) for name in ("why, and what would decide", "on", "rests on", "inference for", "warnings")]
    rows = tuple(tuple(row[name] for name, _ in columns) for row in map(_claim_row, results))
    of_runs = dict.fromkeys(warning for result in results for warning in result.of_runs)
    note = " ".join([_claims_note(results), *(f"Warning: {warning}." for warning in of_runs)])
    return Table("claims", "Outcomes", tuple(columns), rows, note)


def claims_csv(results: Sequence[ClaimResult]) -> str:
    """A row per result."""
    rows = [_claim_row(result) | {"warnings of runs": "; ".join(result.of_runs) or "-"} for result in results]
    # CSV keeps the column name that its readers know.
    rows = [{"speaks of" if key == "inference for" else key: cell for key, cell in row.items()} for row in rows]
    return csv_table(rows).replace(MINUS, "-")


def claims_json(results: Sequence[ClaimResult]) -> str:
    """A list of results; NaN is null, values are in the metric's own unit."""
    return json.dumps([_claim_entry(result) for result in results], indent=1, allow_nan=False) + "\n"


def _claims_note(results: Sequence[ClaimResult]) -> str:
    """How to read the outcomes."""
    found = [result.found for result in results if not math.isnan(result.p)]
    if not found:
        return "No claim could be tested."
    over = [one for one in found if isinstance(one, OverDatasets)]
    counts = {"": len(found)}
    if across_alone(over):
        counts = {" on single data sets": len(found) - len(over), " across data sets": len(over)}
    families = [f"the {pluralize(count, 'result')}{where}" for where, count in counts.items() if count]
    return (
        f"Outcomes use p < {ALPHA} after Holm's adjustment over {' and, separately, '.join(families)}. "
        'The 95 % intervals are not adjusted. "to decide" assumes 80 % power at the strictest level of the adjustment.'
    )


def _claim_warnings(result: ClaimResult) -> list[str]:
    dropped = result.found.dropped if isinstance(result.found, Comparison) else ""
    return [*(result.found.warnings if result.found else ()), *([f"not compared: {dropped}"] if dropped else [])]


def _claim_scope(result: ClaimResult) -> str:
    if result.found is None:
        return ""
    return result.found.scope if isinstance(result.found, Comparison) else "new data sets"


def _claim_row(result: ClaimResult) -> dict[str, Any]:
    """The columns of the CSV file, but for the warnings of the runs."""
    metric, found = result.claim.metric, result.found
    to_decide = f"; to decide: {result.to_decide}" if result.to_decide else ""
    known = found is not None and not math.isnan(result.interval.mean)
    return {
        "claim": result.claim.text,
        "on": result.where or "-",
        "candidate": found.candidate if found else "-",
        "reference": found.reference if found else "-",
        "outcome": result.outcome,
        "difference": amount(metric, result.interval.mean) if known else "-",
        "95 %": limits(metric, result.interval) if known and not math.isnan(result.interval.low) else "-",
        "inference for": _claim_scope(result) or "-",
        "p": p_value(result.p),
        "p Holm": p_value(result.p_holm),
        "rests on": _claim_sizes(result) if found else "-",
        "why, and what would decide": result.reason + to_decide,
        "warnings": "; ".join(_claim_warnings(result)) or "-",
    }


def _claim_sizes(result: ClaimResult) -> str:
    """5 seeds x 60 images, 1 seed x 5 folds x 60 images, or 8 data sets."""
    found = result.found
    if isinstance(found, Comparison):
        return design(found)
    return pluralize(len(found.differences) if found else 0, "data set")


def _claim_entry(result: ClaimResult) -> dict[str, Any]:
    claim, found = result.claim, result.found

    def number(value: float) -> float | None:
        return value if math.isfinite(value) else None

    interval = {key: number(value) for key, value in dataclasses.asdict(result.interval).items()} if found else None
    counts = {f"n_{what}": getattr(found, f"n_{what}", 0) for what in ("seeds", "splits", "folds", "images")}
    return {
        "claim": claim.text,
        "source": claim.source,
        "line": claim.line,
        "metric": claim.metric.name,
        "margin": claim.margin,
        "outcome": result.outcome,
        "reason": result.reason,
        "where": result.where,
        "candidate": found.candidate if found else "",
        "reference": found.reference if found else "",
        "scope": _claim_scope(result),
        "interval": interval,
        "p": number(result.p),
        "p_holm": number(result.p_holm),
        **counts,
        "n_datasets": len(found.differences) if isinstance(found, OverDatasets) else 0,
        "to_decide": result.to_decide,
        "warnings": _claim_warnings(result),
        "warnings_of_runs": list(result.of_runs),
    }
