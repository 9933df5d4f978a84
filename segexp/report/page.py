"""The page: one HTML file that holds everything, or names what is too large for it.

What comes from a configuration, a file or a host is text: jinja2 escapes all of it, the page runs one script that is
known by its hash, and loads nothing.
"""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import segexp
from segexp.compare.formatting import amount, difference, in_unit, limits, score, with_unit
from segexp.compare.result import METRICS, Answer, Block, Comparison, Result, Verdict
from segexp.records.formatting import STYLES, size
from segexp.report import drawings, export, tables
from segexp.report.answers import answer as answer_table
from segexp.report.drawings import Drawing, Pairs
from segexp.report.figures import looks_of, styled
from segexp.report.formatting import clean, folders_of, notes_of, only_names, pairs, scope, unit_of
from segexp.report.material import Material
from segexp.report.samples import Samples
from segexp.report.svg import INK, inline_svg
from segexp.report.tables import Table

if TYPE_CHECKING:
    from markupsafe import Markup

MARK = '<meta name="generator" content="segexp report">'
"""Stands in every page of ours: what bears it may be overwritten."""

MAX_EMBEDDED = 10**6
"""Bytes of CSV files, all together, that still travel inside the page."""

MAX_FIGURES, MAX_PICTURES = 2 * 10**6, 6 * 10**5
"""Bytes of figures and of sample predictions on a page, so that it stays below 5 MB: the first ones are shown."""

MAX_BLOCKS = 8
"""Blocks with figures; of further ones the page has the tables."""


@dataclass(frozen=True)
class Question:
    """A second question as it is shown."""

    answer: Answer
    table: Table
    drawings: tuple[Drawing, ...]


@dataclass(frozen=True)
class Chapter:
    """A block as it is shown. images: pairs of figures, each with its title."""

    id: str
    block: Block
    ranking: Table
    comparisons: tuple[Table, ...]
    forest: tuple[Drawing, ...]
    factorials: tuple[tuple[Table, Table, Drawing | None], ...]
    images: Pairs
    images_note: str
    samples: Samples
    questions: tuple[Question, ...]


@dataclass(frozen=True)
class Contents:
    """Everything a report shows, made once for the page, the files of its figures and those of its tables."""

    material: Material
    chapters: tuple[Chapter, ...]
    datasets: tuple[Drawing, ...]
    datasets_table: Table
    unscored: Table
    runs: Table

    def drawings(self) -> list[Drawing]:
        """All figures, those first that answer most: a page that would become too large shows the first ones."""
        found = [drawn for chapter in self.chapters for drawn in chapter.forest]
        found += [drawn for chapter in self.chapters for *_, drawn in chapter.factorials if drawn is not None]
        found += self.datasets
        for chapter in self.chapters:
            found += [drawn for _, pair in chapter.images for drawn in pair]
            found += [drawn for question in chapter.questions for drawn in question.drawings]
        return found

    def tables(self) -> list[Table]:
        """All tables for a paper in their order, those without a row left out."""
        found: list[Table] = []
        for chapter in self.chapters:
            found += [chapter.ranking, *chapter.comparisons]
            found += [table for *both, _ in chapter.factorials for table in both]
            found += [question.table for question in chapter.questions]
        return [table for table in (*found, self.datasets_table, self.unscored) if table.rows]


def contents_of(material: Material) -> Contents:
    """Lay a report out: its chapters, figures and tables."""
    result, metric = material.result, material.result.metric
    looks = looks_of([arm for block in result.blocks for arm in _order(block)])
    chapters = []
    scale = drawings.scale_of(result.blocks)
    with styled():
        for n, block in enumerate(result.blocks):
            name = f"{n + 1}" if len(result.blocks) > 1 else "all"
            drawn = n < MAX_BLOCKS
            images, note = drawings.of_images(block, metric, name) if drawn else ((), "")
            chapters.append(
                Chapter(
                    id=f"block-{n + 1}",
                    block=block,
                    ranking=tables.ranking(block, metric, f"{name}-ranking"),
                    comparisons=tables.comparisons(block, metric, f"{name}-comparisons"),
                    forest=tuple(drawings.of_block(block, metric, name) if drawn else ()),
                    factorials=tuple(
                        (
                            tables.crossed(factorial, metric, f"{name}-factors-{k + 1}", block.title),
                            tables.interactions(factorial, metric, f"{name}-interactions-{k + 1}", block.title),
                            drawings.of_factorial(factorial, metric, f"{name}-{k + 1}", scale, block.title)
                            if drawn
                            else None,
                        )
                        for k, factorial in enumerate(block.factorials)
                    ),
                    images=images,
                    images_note=note,
                    samples=material.samples[n],
                    questions=tuple(
                        Question(
                            answer,
                            answer_table(answer, f"{name}-{answer.name}", block.title),
                            tuple(drawings.of_answer(answer, looks, f"{name}-{answer.name}") if drawn else ()),
                        )
                        for answer in material.answers[n]
                    ),
                )
            )
        datasets = drawings.of_datasets(result.over_datasets, result.ranks, metric)
    return Contents(
        material=material,
        chapters=tuple(chapters),
        datasets=tuple(datasets),
        datasets_table=tables.over_datasets(result.over_datasets, metric, "datasets"),
        unscored=tables.unscored(result, "without-score"),
        runs=tables.runs(result, "runs"),
    )


def _order(block: Block) -> list[str]:
    """References first, so that they have the same colours wherever they are the only ones in common."""
    references = [comparison.reference for comparison in block.comparisons]
    return list(dict.fromkeys([*references, *(arm.arm for arm in block.ranking)]))


@dataclass(frozen=True)
class Download:
    """A CSV file of the page. href: the data itself, or where it lies beside the page."""

    name: str
    what: str
    size: str
    href: str
    embedded: bool


def page_of(contents: Contents, beside: str) -> tuple[str, dict[str, str]]:
    """The page, and the CSV files that are too large for it: name -> text, to be written to the folder ``beside``."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    result = contents.material.result
    folders = folders_of(result)
    folder = files("segexp.report")
    script = (folder / "page.js").read_text(encoding="utf-8")
    downloads, linked = _downloads(result, beside)
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, finalize=_cleaned, trim_blocks=True, lstrip_blocks=True
    )
    looks = looks_of([arm for block in result.blocks for arm in _order(block)])
    shown = _svgs(contents.drawings())
    environment.filters |= {
        "signed": lambda one: difference(result.metric, one.deciding.mean),
        "limits": lambda one: limits(result.metric, one.deciding),
        "scope": scope,
        "names": lambda text: only_names(text, folders),
        "pairs": pairs,
        "unit_of": unit_of,
        "svg": lambda drawing: shown.get(drawing.name),
        "colour": lambda arm: INK.get(looks[arm][0].lower(), looks[arm][0]) if arm in looks else "",
        "dice": lambda value: score(METRICS["dice"], value),
        "shape": lambda arm: SHAPES[STYLES.index(looks[arm][1])],
        "chip": _chip,
        "notes": notes_of,
    }
    text = environment.from_string((folder / "page.html.j2").read_text(encoding="utf-8")).render(
        contents=contents,
        samples=_samples(contents),
        result=result,
        unit=with_unit(result.metric),
        difference=in_unit(result.metric, "difference"),
        rope=amount(result.metric, result.metric.rope, signed=False),
        facts=_facts(result),
        glance=_glance(result)[:MAX_GLANCE],
        n_compared=len(_glance(result)),
        provenance=_named(result.provenance, folders),
        downloads=downloads,
        style=Markup((folder / "page.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii"),
        mark=Markup(MARK),
        version=segexp.__version__,
    )
    return text, linked


def _cleaned(value: Any) -> Any:
    """What a page cannot hold is replaced; what is markup already is ours."""
    from markupsafe import Markup

    return clean(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _svgs(found: Sequence[Drawing]) -> "dict[str, Markup]":
    """Figures by name, until they are too many for a page."""
    from markupsafe import Markup

    shown: dict[str, Markup] = {}
    room = MAX_FIGURES
    for drawing in found:
        svg = inline_svg(drawing.figure, drawing.name, clean(drawing.alt))
        room -= len(svg.encode("utf-8"))
        if room < 0:
            break
        shown[drawing.name] = Markup(svg)
    return shown


def _samples(contents: Contents) -> list[Samples]:
    """Sample predictions of each chapter, until they are too many for a page."""
    shown, room = [], MAX_PICTURES
    for chapter in contents.chapters:
        room -= sum(len(t.uri) for sample in chapter.samples.samples for t in (sample.image, *sample.tiles))
        left_out = replace(chapter.samples, samples=(), note="Left out: the page would become too large.")
        shown.append(left_out if room < 0 and chapter.samples.samples else chapter.samples)
    return shown


SHAPES = ("", "square", "hollow")
"""How the dot before the name of an arm looks for the line styles of `LINES`: there are fewer colours than arms."""

SIGNS = {
    Verdict.BETTER: "\u25b2",
    Verdict.WORSE: "\u25bc",
    Verdict.EQUIVALENT: "\u2248",
    Verdict.INCONCLUSIVE: "?",
    Verdict.NO_TEST: "\u2013",
}


def _chip(verdict: str) -> tuple[str, str]:
    """Class and sign of a verdict."""
    word = Verdict(verdict).word
    return "no" if word == Verdict.NO_TEST else str(word), SIGNS[word]


def _facts(result: Result) -> list[tuple[str, str]]:
    """The numbers below the headline."""
    arms = {arm.arm for block in result.blocks for arm in block.ranking}
    seeds = sorted({arm.n_seeds for block in result.blocks for arm in block.ranking})
    images = sorted({found.n_images for block in result.blocks for found in block.comparisons if found.n_images})
    facts = [
        ("metric", f"{with_unit(result.metric)}, {result.split}"),
        ("arms", str(len(arms))),
        ("runs", str(result.n_runs)),
        ("seeds an arm", _span(seeds)),
        ("images", _span(images)),
        ("without a score", str(len(result.unscored))),
    ]
    return [(what, value) for what, value in facts if value]


def _span(values: Sequence[int]) -> str:
    return "" if not values else str(values[0]) if len(values) == 1 else f"{values[0]} to {values[-1]}"


MAX_GLANCE = 24


def _glance(result: Result) -> list[tuple[Block, str, Comparison]]:
    """The comparisons of all blocks: (block, id of its chapter, comparison)."""
    return [(block, f"block-{n + 1}", one) for n, block in enumerate(result.blocks) for one in block.comparisons]


def _named(value: Any, folders: Sequence[str]) -> Any:
    """Provenance with names where there were paths."""
    if isinstance(value, dict):
        return {_named(key, folders): _named(inner, folders) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_named(inner, folders) for inner in value]
    return only_names(value, folders) if isinstance(value, str) else value


def _downloads(result: Result, beside: str) -> tuple[list[Download], dict[str, str]]:
    texts = {
        "runs.csv": ("every run: scores, how it ended, on what", export.runs_csv(result)),
        "comparisons.csv": ("every comparison with all its numbers", export.comparisons_csv(result)),
        "images.csv": ("every image of every comparison, means over seeds", export.images_csv(result)),
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
        downloads.append(Download(name, what, size(len(data)), href, embedded))
    return downloads, linked
