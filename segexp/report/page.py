"""The report: what it shows, the HTML page, and the files of figures and tables.

Names from configurations, files and hosts are text, which jinja2 escapes. The page runs one script, allowed by its
hash, and loads nothing.
"""

import base64
import hashlib
import itertools
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

import segexp
from segexp.compare.claims import NO_DATA, REFUTED, SUPPORTED, UNDETERMINED
from segexp.compare.formatting import amount, difference, in_unit, limits, score, with_unit
from segexp.compare.kept import FROM_RUNS, kept_texts
from segexp.compare.questions import QUESTIONS, answers_of
from segexp.compare.result import METRICS, Answer, Block, Metric, Result, Verdict
from segexp.errors import UsageError
from segexp.evaluation import EmptyPolicy
from segexp.records import read_run, write_atomic
from segexp.records.files import read_text
from segexp.records.formatting import METADATA, STYLES, image_bytes, pluralize, size, terms_of
from segexp.records.process import in_parallel
from segexp.records.runs import shown_state
from segexp.report import figures, formats, tables
from segexp.report.drawing import Looks, looks_of, styled
from segexp.report.figures import Drawing, Pairs
from segexp.report.samples import ERRORS, Sample, Samples, case_of, samples_of
from segexp.report.svg import INK, inline_svg
from segexp.report.tables import Table, clean, folders_of, notes_of, only_names, scope

MARK = '<meta name="generator" content="segexp report">'
"""In every page: a file with it may be overwritten."""

MAX_EMBEDDED = 10**6
"""Bytes of all CSV files inside the page; further files are written beside it."""

MAX_FIGURES, MAX_PICTURES = 2 * 10**6, 10**6
"""Bytes of figures and of sample predictions on a page, so that it stays below 5 MB: the first ones are shown."""

MAX_BLOCKS = 8
"""Blocks with figures; of further ones the page has the tables."""

MAX_OVERVIEW = 24
"""Comparisons in the first table of the page."""

FIRST_QUESTIONS = ("convergence", "calibration", "threshold")
"""Secondary analyses that come first; the others follow."""


@dataclass(frozen=True)
class Question:
    """A secondary analysis as it is shown."""

    answer: Answer
    table: Table
    drawings: Sequence[Drawing]


@dataclass(frozen=True)
class Chapter:
    """A block as it is shown. arms: the means of arms; images: pairs of figures, each with its title."""

    id: str
    block: Block
    metric: Metric
    tables: Sequence[Table]
    forest: Sequence[Drawing]
    arms: Sequence[Drawing]
    heat_maps: Sequence[Drawing]
    images: Pairs
    images_note: str
    samples: Samples
    questions: Sequence[Question]


@dataclass(frozen=True)
class Contents:
    """Everything a report shows, for the page, the files of its figures and those of its tables. claims: of --claims;
    note: HTML of the user's own text."""

    result: Result
    chapters: Sequence[Chapter]
    datasets: Sequence[Drawing]
    over_all: Sequence[Table]
    runs: Table
    claims: Table | None = None
    note: Markup | None = None

    def drawings(self) -> list[Drawing]:
        """All figures, the most important ones first: if they are too large for a page, it shows the first ones."""
        found = [drawn for chapter in self.chapters for drawn in chapter.forest]
        found += [drawn for chapter in self.chapters for drawn in (*chapter.arms, *chapter.heat_maps)]
        found += self.datasets
        for chapter in self.chapters:
            found += [drawn for _, pair in chapter.images for drawn in pair]
            found += [drawn for question in chapter.questions for drawn in question.drawings]
        return found

    def tables(self) -> list[Table]:
        """All tables for a paper in their order, those without rows left out."""
        found = [table for c in self.chapters for table in (*c.tables, *(question.table for question in c.questions))]
        return [table for table in (*found, *self.over_all, self.claims) if table is not None and table.rows]


def contents_of(result: Result) -> Contents:
    """Run all secondary analyses, pick sample predictions where there are run directories, and make every figure and
    table."""
    names = list(dict.fromkeys([*FIRST_QUESTIONS, *QUESTIONS]))
    answers, samples = [], []
    for block in result.blocks:
        answers.append(answers_of(block, names, result.split, result.metric, result.loaded))
        reference = block.comparisons[0].reference if block.comparisons else ""
        # The policy of all runs or, where it differs between them, of this block.
        policy = block.conditions.get("metrics.empty_policy", result.empty_policy)
        known: EmptyPolicy = "both_empty_one" if policy == "both_empty_one" else "reference"
        samples.append(samples_of(block.ranking, reference, result.split, known))
    return arrange(result, answers, samples)


def arrange(result: Result, answers: Sequence[Sequence[Answer]], samples: Sequence[Samples]) -> Contents:
    """The contents of a report. answers, samples: of each block of the result, in its order; the chapters of further
    metrics follow without them."""
    scale, looks = figures.scale_of(result.blocks), _looks(result)
    chapters: list[Chapter] = []
    for n, (block, of_block) in enumerate(zip(formats.first_blocks(result), answers, strict=True)):
        name, drawn = (f"{n + 1}" if len(result.blocks) > 1 else "all"), n < MAX_BLOCKS
        chapter = _chapter(block, result.metric, name, scale, drawn)
        questions = [
            Question(answer, tables.answer(answer, f"{name}-", block.title), drawings)
            for answer in of_block
            # Nothing to show: such as the classes of data with one class.
            if answer.panels or not answer.rows or any(row.keys() - {"arm", "n_runs"} for row in answer.rows)
            for title in [f"{name}-{answer.name}"]
            for drawings in [figures.of_answer(answer, looks, title) if drawn else []]
        ]
        chapters.append(replace(chapter, id=f"block-{n + 1}", samples=samples[n], questions=questions))
    datasets = figures.of_datasets(result.over_datasets, result.ranks, result.metric)
    for one in result.others:
        slug, scale = tables.slug(one.metric), figures.scale_of(one.blocks)
        for n, block in enumerate(formats.further_blocks(result, one)):
            chapter = _chapter(block, one.metric, f"{slug}-{n + 1}", scale, len(chapters) < MAX_BLOCKS)
            chapters.append(replace(chapter, id=f"block-{len(chapters) + 1}"))
        drawings = figures.of_datasets(one.over_datasets, one.ranks, one.metric)
        datasets += [replace(drawing, name=f"{slug}-{drawing.name}") for drawing in drawings]
    return Contents(result, chapters, datasets, tables.over_all(result), tables.runs(result, "runs"))


def _chapter(block: Block, metric: Metric, name: str, scale: tuple[float, float], drawn: bool) -> Chapter:
    """A block without samples and secondary analyses. name: of its figures and tables; drawn: whether with figures."""
    images, note = figures.of_images(block, metric, name) if drawn else ((), "")
    maps = enumerate(block.factorials if drawn else (), start=1)
    return Chapter(
        id="",
        block=block,
        metric=metric,
        tables=list(itertools.chain(*tables.of_block(block, metric, f"{name}-"))),
        forest=figures.forest(block, metric, name) if drawn else [],
        arms=[*figures.of_arms(block, metric, name), *figures.distributions(block, metric, name)] if drawn else [],
        heat_maps=[figures.heat_map(one, metric, f"{name}-{k}", scale, block.title) for k, one in maps],
        images=images,
        images_note=note,
        samples=Samples("", (), ""),
        questions=[],
    )


def _looks(result: Result) -> Looks:
    """Colour and line style of every arm. References come first, so that they look alike in all blocks."""
    arms: list[str] = []
    for block in result.blocks:
        arms += [*(comparison.reference for comparison in block.comparisons), *(arm.arm for arm in block.ranking)]
    return looks_of(arms)


def note_of(path: Path) -> Markup:
    """The user's own text in Markdown (CommonMark and tables) as HTML: without HTML of its own, pictures, and links but
    to web pages. Its headings become those of a section.

    Raises UsageError for a file that is missing, above 128 KiB or not UTF-8.
    """
    from markdown_it import MarkdownIt

    markdown = MarkdownIt("commonmark", {"html": False}).enable("table").disable("image")
    tokens = markdown.parse(read_text(path, 2**17))
    for token in tokens:
        if token.tag in ("h1", "h2", "h3", "h4"):
            token.tag = f"h{int(token.tag[1]) + 2}"
        for link in (child for child in token.children or () if child.type == "link_open"):
            link.attrs = {key: at for key, at in link.attrs.items() if re.match("https?://", str(at))}
    return Markup(markdown.renderer.render(tokens, markdown.options, {}))


# The page


def page_of(contents: Contents, beside: str) -> tuple[str, dict[str, str]]:
    """The page, and the CSV files that are too large for it (name -> text), to be written to the folder ``beside``."""
    result, folders = contents.result, folders_of(contents.result)
    template, style, script = (
        (files("segexp.report") / name).read_text(encoding="utf-8") for name in ("page.html.j2", "page.css", "page.js")
    )
    downloads, linked = _downloads(result, beside)
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        # Our own markup stays as it is.
        finalize=lambda value: clean(value) if isinstance(value, str) and not isinstance(value, Markup) else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    looks = _looks(result)
    samples = _samples(contents)
    shown = _svgs(contents, _anchors(contents, samples))
    counts = result.provenance.get("runs")
    states = {"runs": {shown_state(state): n for state, n in counts.items()}} if isinstance(counts, dict) else {}
    filters: dict[str, Any] = {
        "signed": lambda one, metric: (amount if result.others else difference)(metric, one.deciding.mean),
        "limits": lambda one, metric: limits(metric, one.deciding),
        "scope": scope,
        "names": lambda value: only_names(value, folders) if isinstance(value, str) else value,
        "svg": lambda drawing: shown.get(drawing.name),
        "colour": lambda arm: INK.get(looks[arm][0].lower(), looks[arm][0]) if arm in looks else "",
        "dice": lambda value: score(METRICS["dice"], value),
        "shape": lambda arm: SHAPES[STYLES.index(looks[arm][1])],
        "chip": lambda verdict: CHIPS[verdict.partition(",")[0]],
        "notes": notes_of,
    }
    environment.filters |= filters
    text = environment.from_string(template).render(
        contents=contents,
        empty_masks=formats.empty_masks(result),
        over_all={table.name: table for table in contents.over_all},
        samples=samples,
        errors=ERRORS,
        result=result,
        unit=with_unit(result.metric),
        difference="difference" if result.others else in_unit(result.metric, "difference"),
        interval=next((block.interval for block in result.blocks if block.sequential), "95 % interval"),
        how_to_read=formats.how_to_read(result),
        facts=_facts(result),
        data_terms=_data_terms(result),
        overview=[(chapter, one) for chapter in contents.chapters for one in chapter.block.comparisons],
        max_overview=MAX_OVERVIEW,
        provenance={**result.provenance, **states},
        downloads=downloads,
        style=Markup(style),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii"),
        mark=Markup(MARK),
        version=segexp.__version__,
    )
    return text, linked


def _anchors(contents: Contents, samples: Sequence[Samples]) -> dict[str, dict[str, str]]:
    """Figure -> image -> id of its sample prediction; a volume has that of its slice."""
    anchors: dict[str, dict[str, str]] = {}
    for chapter, shown in list(zip(contents.chapters, samples, strict=True))[: len(contents.result.blocks)]:
        ids = {s.image_id: f"{chapter.id}-sample-{n}" for n, s in enumerate(shown.samples, start=1)}
        ids |= {case_of(image_id) or image_id: at for image_id, at in ids.items()}
        anchors |= {drawn.name: ids for drawn in (*chapter.arms, *itertools.chain(*(p for _, p in chapter.images)))}
    return anchors


def _svgs(contents: Contents, anchors: Mapping[str, Mapping[str, str]]) -> dict[str, Markup]:
    """Figures by name, as many of the first ones as a page has room for; those of many runs are kept."""
    result, shown, room = contents.result, dict[str, Markup](), MAX_FIGURES
    folders = {os.path.dirname(path) for b in result.blocks for arm in b.ranking for path in arm.directories}
    of = sorted(folders), result.split, result.by, [one.metric.name for one in (result, *result.others)]
    drawings = list(contents.drawings())
    links = [anchors.get(drawing.name, {}) for drawing in drawings]
    makes = [partial(inline_svg, *pair) for pair in zip(drawings, links, strict=True)]
    sources = [
        (one.name, one.alt, one.tips, sorted(to.items()), one.draw.func.__name__, one.draw.args)
        for one, to in zip(drawings, links, strict=True)
    ]
    svgs = kept_texts(of, sources, makes) if result.n_runs >= FROM_RUNS else in_parallel(makes)
    for drawing, svg in zip(drawings, svgs, strict=True):
        room -= len(svg.encode("utf-8"))
        if room < 0:
            break
        shown[drawing.name] = Markup(svg)
    return shown


def _samples(contents: Contents) -> list[Samples]:
    """Sample predictions of each chapter, as many of the first ones as a page has room for."""
    shown, room = [], MAX_PICTURES
    for chapter in contents.chapters:
        kept: list[Sample] = []
        for s in chapter.samples.samples:
            room -= len(s.image) + len(s.outline) + sum(len(t.prediction) + len(t.errors) for t in s.tiles)
            kept += [s] if room >= 0 else []
        less = pluralize(len(chapter.samples.samples) - len(kept), "image")
        note = f"{chapter.samples.note} Left out, because the page would become too large: {less}."
        left_out = replace(chapter.samples, samples=tuple(kept), note=note)
        shown.append(left_out if len(kept) < len(chapter.samples.samples) else chapter.samples)
    return shown


SHAPES = ("", "square", "hollow")
"""The dot before the name of an arm for each of `STYLES`, because there are fewer colours than arms."""

CHIPS = {
    Verdict.BETTER: ("better", "\u25b2"),
    Verdict.WORSE: ("worse", "\u25bc"),
    Verdict.EQUIVALENT: ("equivalent", "\u2248"),
    Verdict.INCONCLUSIVE: ("inconclusive", "?"),
    Verdict.NO_TEST: ("no", "\u2013"),
    SUPPORTED: ("better", "\u2713"),
    REFUTED: ("worse", "\u2717"),
    UNDETERMINED: ("inconclusive", "?"),
    NO_DATA: ("no", "\u2013"),
}
"""Verdict, or outcome of a claim -> class and sign on the page."""


def _facts(result: Result) -> list[tuple[str, str]]:
    """The numbers below the headline."""
    arms = [arm for block in result.blocks for arm in block.ranking]
    images = {found.n_images for block in result.blocks for found in block.comparisons if found.n_images}

    def span(values: set[int]) -> str:
        return " to ".join(map(str, sorted({min(values), max(values)}))) if values else ""

    facts = [
        ("metric", f"{', '.join(with_unit(one.metric) for one in (result, *result.others))}, {result.split}"),
        ("arms", str(len({arm.arm for arm in arms}))),
        ("runs", str(result.n_runs)),
        ("seeds per arm", span({arm.n_seeds for arm in arms})),
        (" or ".join(sorted({f"{block.each}s" for block in result.blocks})), span(images)),
        ("without a score", str(len(result.unscored))),
    ]
    return [(what, value) for what, value in facts if value]


def _data_terms(result: Result) -> list[str]:
    """A line for each data set with a licence or a citation, of blocks that have run directories."""
    lines = {}
    for block in result.blocks:
        directories = [arm.directories[0] for arm in block.ranking if arm.directories]
        for directory in directories[:1]:
            with suppress(UsageError):
                if terms := terms_of(read_run(Path(directory)).get("config") or {}):
                    lines[block.dataset] = f"{block.dataset}: {terms}"
    return [*lines.values()]


def _downloads(result: Result, beside: str) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The CSV files for the template (href: the data itself, or the path from the page), and those beside the page."""
    texts = {
        "runs.csv": ("every run: scores, status, device and versions", formats.runs_csv(result)),
        "datasets.csv": ("every comparison across data sets", formats.datasets_csv(result)),
        "comparisons.csv": ("every comparison with all its numbers", formats.comparisons_csv(result)),
        "arms.csv": ("every arm: its mean with its 95 % interval", formats.arms_csv(result)),
        "images.csv": ("every image of every comparison: means over seeds", formats.images_csv(result)),
    }
    downloads, linked, room = [], {}, MAX_EMBEDDED
    for name, (what, text) in texts.items():
        data = text.encode("utf-8")
        if text.count("\n") < 2:
            continue
        embedded = len(data) <= room
        if embedded:
            room -= len(data)
            href = f"data:text/csv;charset=utf-8;base64,{base64.b64encode(data).decode('ascii')}"
        else:
            href, linked[name] = f"{beside}/{name}", text
        downloads.append({"name": name, "what": what, "size": size(len(data)), "href": href, "embedded": embedded})
    return downloads, linked


# Files


def refuse_foreign(path: Path) -> None:
    """Raise UsageError for a directory, a file that is no report of segexp, and a folder that cannot be written to."""
    if path.is_dir():
        raise UsageError(f"{path} is a directory; give a file, such as {path / 'report.html'}")
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UsageError(f"{path} cannot be written: {folder} is no folder that you may write to; choose another -o")
    if path.exists() and MARK.encode() not in path.read_bytes():
        raise UsageError(
            f"{path} is not a report of segexp and is not overwritten; choose another -o, or remove the file"
        )


def write_page(path: Path, contents: Contents) -> list[Path]:
    """Write the page, and CSV files that are too large for it into the folder <name>-data beside it; returns all paths.

    Raises UsageError as `refuse_foreign` does.
    """
    refuse_foreign(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.stem}-data")
    page, linked = page_of(contents, quote(beside.name))
    written = []
    for name, text in linked.items():
        beside.mkdir(exist_ok=True)
        write_atomic(beside / name, text)
        written.append(beside / name)
    # The page is written last, when everything that it links to is there.
    write_atomic(path, page)
    return [path, *written]


def write_figures(folder: Path, contents: Contents, kinds: Sequence[str] = tuple(METADATA)) -> list[Path]:
    """Every figure of the report in every format, for paper: black on white."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with styled():
        for drawing in contents.drawings():
            for kind in kinds:
                written.append(folder / f"{drawing.name}.{kind}")
                write_atomic(written[-1], image_bytes(drawing.figure, kind, dpi=300))
    return written


def write_tables(folder: Path, contents: Contents) -> list[Path]:
    """Every table of the report as LaTeX (booktabs) and as Markdown."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for table in contents.tables():
        for path, text in ((f"{table.name}.tex", formats.latex(table)), (f"{table.name}.md", formats.markdown(table))):
            write_atomic(folder / path, text)
            written.append(folder / path)
    return written
