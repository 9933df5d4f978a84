"""The page without a browser: what strangers write stays text, nothing is loaded, everything has a description."""

import base64
import csv
import hashlib
import io
import json
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fabricated import record_of, row
from made_up_result import (
    DICE,
    NAN,
    make_answers,
    make_arm,
    make_block,
    make_comparison,
    make_factorial,
    make_pictures,
    make_result,
    make_run,
)
from messages import mentions

from segexp.compare.result import METRICS, Answer, Block, Curve, Method, Panel, Result, Unscored, Verdict
from segexp.errors import UsageError
from segexp.records import write_table
from segexp.report import drawing, figures
from segexp.report.drawing import looks_of, styled
from segexp.report.formats import how_to_read
from segexp.report.page import MAX_EMBEDDED, Contents, arrange, page_of, write_figures, write_page, write_tables
from segexp.report.samples import Samples, samples_of
from segexp.report.svg import inline_svg

HOSTILE = "<script>alert(1)</script>"
QUOTED = '"><img src=x onerror=alert(1)>'
BROKEN = "a\x00b\x1b[31m\udcff\u202ec"


class Page(HTMLParser):
    """Elements and texts of a page as a browser finds them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.inside: list[str] = []
        self.held: dict[str, str] = {}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {key: value or "" for key, value in attrs}))
        self.inside.append(tag)

    def handle_endtag(self, tag: str) -> None:
        self.inside.append("")

    def handle_data(self, data: str) -> None:
        if self.inside and self.inside[-1] in ("script", "style"):
            self.held[self.inside[-1]] = data
        elif data.strip():
            self.texts.append(data)

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


def contents(result: Result, answers: bool = True) -> Contents:
    return arrange(
        result,
        [make_answers([arm.arm for arm in block.ranking]) if answers else () for block in result.blocks],
        [Samples("", (), "no pictures here")] * len(result.blocks),
    )


def small_result(n_images: int = 20) -> Result:
    block = make_block({"sigmoid": 0.8, "arctan": 0.81}, "sigmoid", n_images=n_images)
    return replace(make_result(blocks=(block,)), over_datasets=(), ranks=None)


def page(result: Result, answers: bool = True) -> str:
    return page_of(contents(result, answers), "beside")[0]


def hostile_result() -> Result:
    """Names of arms, images, hosts, runs and files as a stranger could choose them."""
    block = make_block({f"sigmoid {QUOTED}": 0.8, HOSTILE: 0.81, f"$x^2_$ {BROKEN}": 0.77}, f"sigmoid {QUOTED}")
    block = replace(
        block,
        dataset=HOSTILE,
        conditions={"loss": QUOTED},
        warnings=(HOSTILE,),
        factorials=(make_factorial((HOSTILE, "arctan"), (QUOTED, BROKEN)),),
        comparisons=tuple(replace(c, warnings=(HOSTILE,), dropped=QUOTED) for c in block.comparisons),
    )
    return replace(
        make_result(blocks=(block,)),
        headline=f"{HOSTILE} {BROKEN} is better",
        warnings=(QUOTED,),
        by=(HOSTILE,),
        provenance={HOSTILE: {QUOTED: [HOSTILE, {BROKEN: QUOTED}]}, "host": [BROKEN]},
        runs=(make_run(HOSTILE, 0, host=QUOTED, directory=f"x/{HOSTILE}"), make_run("</script>", 1, study=BROKEN)),
        unscored=(Unscored(HOSTILE, QUOTED, BROKEN, "0", "failed", f"{HOSTILE}{QUOTED}"),),
        empty_policy=HOSTILE,
    )


@pytest.fixture(scope="module")
def hostile() -> Page:
    return Page(page(hostile_result()))


@pytest.fixture(scope="module")
def usual() -> Page:
    block = make_block({"sigmoid": 0.81, "arctan": 0.82, "normal_cdf": 0.8}, "sigmoid", loss="dice")
    block = replace(block, factorials=(make_factorial(("sigmoid", "arctan"), ("dice", "ce")),))
    return Page(page(make_result(blocks=(block,))))


def test_names_from_strangers_stay_text(hostile: Page) -> None:
    assert len(hostile.all("script")) == 1
    assert [a for _, attributes in hostile.elements for a in attributes if a.startswith("on")] == []
    assert [a["src"] for a in hostile.all("img")] == []
    shown, drawn = "".join(hostile.texts), "".join(attributes["aria-label"] for attributes in hostile.all("svg"))
    assert all(name in shown and name in drawn for name in (HOSTILE, QUOTED))
    assert "$x^2_$" in shown
    # Characters that HTML cannot hold are replaced.
    assert "a\ufffdb\ufffd[31m\ufffd\ufffdc is better" in shown
    hostile.text.encode("utf-8")


def test_embedded_data_comes_back_as_it_was_recorded(hostile: Page) -> None:
    (link,) = [a for a in hostile.all("a") if a.get("download") == "runs.csv"]
    data = base64.b64decode(link["href"].partition("base64,")[2]).decode("utf-8")
    rows = list(csv.DictReader(io.StringIO(data)))
    assert [row["arm"] for row in rows] == [HOSTILE, "</script>"]
    assert rows[0]["host"] == QUOTED
    assert float(rows[0]["score"]) == 0.8


@pytest.mark.parametrize("which", ["usual", "hostile"])
def test_nothing_is_loaded(which: str, request: pytest.FixtureRequest) -> None:
    found: Page = request.getfixturevalue(which)
    for tag, attributes in found.elements:
        for key in ("src", "href", "xlink:href", "srcset", "action", "data"):
            assert attributes.get(key, "#").startswith(("#", "data:")), (tag, attributes)
        for value in attributes.values():
            assert re.sub(r"url\(#\w+\)", "", value).find("url(") == -1, (tag, value)
    assert found.all("link") == []
    assert found.all("iframe") == []
    assert not re.search(r"https?:|//\w|@import|url\(", found.held["style"])
    assert not re.search(r"https?:|fetch|XMLHttp|import\(|innerHTML|eval", found.held["script"])


def test_the_policy_allows_our_script_alone(usual: Page) -> None:
    (policy,) = [a["content"] for a in usual.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    digest = base64.b64encode(hashlib.sha256(usual.held["script"].encode()).digest()).decode()
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == f"'sha256-{digest}'"
    assert rules["img-src"] == "data:"


def test_every_figure_says_what_it_shows_and_ids_are_unique_and_exist(usual: Page) -> None:
    figures = usual.all("svg")
    assert len(figures) >= 10
    for attributes in figures:
        assert attributes["role"] == "img"
        assert len(attributes["aria-label"]) > 40
    assert all("var(--font)" in attributes["style"] for attributes in usual.all("text"))
    assert len({attributes["aria-label"] for attributes in figures}) == len(figures)
    ids = [attributes["id"] for _, attributes in usual.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes in usual.elements:
        wanted = [attributes["for"]] if "for" in attributes else []
        wanted += [value[1:] for key, value in attributes.items() if key in ("href", "xlink:href") and value[0] == "#"]
        wanted += [name for value in attributes.values() for name in re.findall(r"url\(#(\w+)\)", value)]
        assert set(wanted) <= set(ids), tag


def titles(text: str, drawn: str) -> list[str]:
    """The numbers of the places of the figure whose description begins with ``drawn``."""
    (svg,) = re.findall(rf'<svg[^>]*aria-label="{drawn}.*?</svg>', text, re.DOTALL)
    return re.findall(r"<title>(.*?)</title>", svg)


def test_places_of_figures_have_their_numbers(usual: Page) -> None:
    numbers = "+1.00 [\u22120.12, +2.12] points, inconclusive, Holm-adjusted p 0.600, 5 seeds x 60 images"
    assert titles(usual.text, "Forest")[0] == f"arctan \u2212 sigmoid: {numbers}"
    assert titles(usual.text, "Mean Dice")[0] == "arctan: mean (points) 82.00 [79.20, 84.80], 5 seeds"
    assert mentions(titles(usual.text, "Heat map")[1], "sigmoid with ce", "5 seeds")
    assert titles(usual.text, "Scatter of arctan")[0].endswith(" points")
    assert len(titles(usual.text, "Scatter of arctan")) == len(titles(usual.text, "Differences of arctan")) == 60
    assert mentions(titles(usual.text, "validation Dice")[-1], "normal_cdf", "epoch 40")
    assert titles(usual.text, "Critical")[0] == "arctan: mean rank 1.4"
    assert mentions(titles(usual.text, "arctan minus sigmoid")[-1], "across data sets", "0.400")


def test_places_lie_where_they_are_drawn() -> None:
    """Circles of a scatter are where matplotlib draws its points; what an axis cuts off has no place."""
    curve = Curve("a", (1.0, 2.0, 3.0), (0.1, 0.8, 0.84))
    panel = Panel("x", "X", "epoch", "Dice", (curve,), "points", log_x=True, y_points=True, y_from=0.7)
    with styled():
        (drawn,) = figures.of_answer(Answer("q", "Q", (), (panel,)), {}, "x")
    text = inline_svg(drawn, {})
    points = [(float(x), float(y)) for x, y in re.findall(r'<use [^>]*?x="([\d.]+)" y="([\d.]+)"', text)]
    boxes = re.findall(r'<rect x="([\d.]+)" y="([\d.]+)" width="10.0" height="10.0"><title>', text)
    assert len(boxes) == 2
    for x, y in boxes:
        assert min(math.dist((float(x) + 5, float(y) + 5), point) for point in points) < 0.3


def test_many_images_have_the_numbers_of_those_that_differ_most() -> None:
    found = make_comparison("a", "b", 0.01, n_images=900)
    tips, _ = figures.image_tips(found, DICE)
    assert found.candidate_N is not None
    assert found.reference_N is not None
    away = dict(zip(found.units, np.abs(found.candidate_N - found.reference_N - 0.01), strict=True))
    kept = {tip.image for tip in tips}
    assert len(kept) == len(tips) == figures.MAX_TIPS
    assert min(away[name] for name in kept) >= max(value for name, value in away.items() if name not in kept)


def test_verdicts_points_warnings_and_provenance_are_shown(usual: Page) -> None:
    chips = [attributes["class"] for attributes in usual.all("span") if attributes.get("class", "").startswith("chip")]
    assert {chip.split()[1] for chip in chips} <= {"better", "worse", "equivalent", "inconclusive", "no"}
    assert {"82.00", "+1.00", "[\u22120.12, +2.12]"} <= {text.strip() for text in usual.texts}
    shown = " ".join(usual.texts)
    for text in ("4 seeds: exploratory", "loss is nan in epoch 2", "inconclusive", "2.12.0", "no pictures here"):
        assert text in shown


@pytest.mark.parametrize(("length", "named"), [(100, ""), (200, "long"), (400, "longer")])
def test_a_report_without_anything_and_a_long_answer_set_smaller(length: int, named: str) -> None:
    bare = replace(small_result(), blocks=(), unscored=(), warnings=(), runs=(), headline="x " * (length // 2))
    found = Page(page(bare, answers=False))
    (title,) = found.all("h1")
    assert title.get("class", "") == named
    assert any("x x" in text for text in found.texts)


def test_a_metric_without_images_or_test_has_a_page() -> None:
    block = make_block({"sigmoid": 0.8, "arctan": 0.9}, "sigmoid")
    (found,) = block.comparisons
    none = replace(found.overall, mean=NAN, se=NAN, df=NAN, p=NAN, low=NAN, high=NAN)
    bare: dict[str, Any] = {"units": (), "candidate_N": None, "reference_N": None, "overall": none, "wins": NAN}
    of_test_set = replace(found, **bare, scope=Method.OVER_SEEDS.scope, seeds_needed=(math.inf, math.inf))
    untested = replace(of_test_set, test_set=none, verdict=Verdict.NO_TEST)
    result = replace(small_result(), blocks=(replace(block, comparisons=(of_test_set, untested)),))
    texts = [text.strip() for text in Page(page(result, answers=False)).texts]
    assert {"no test", "no number"} <= set(texts)
    assert any("Hollow" in text for text in texts)


def large_block(arms: int, images: int) -> Block:
    means = {f"activation=arm_{n}, loss=dice": 0.8 + 0.0005 * n for n in range(arms)}
    return make_block(means, "activation=arm_0, loss=dice", n_images=images)


@pytest.mark.slow
def test_five_hundred_runs_stay_below_five_megabytes(tmp_path: Path) -> None:
    block = large_block(100, 670)
    runs = tuple(make_run(arm.arm, seed, directory=f"/data/x/{'d' * 80}") for arm in block.ranking for seed in range(5))
    for arm in block.ranking[:9]:
        make_pictures(tmp_path / arm.arm, {f"i{n}": 0.5 + 0.06 * n for n in range(8)}, side=512)
    ranking = tuple(make_arm(a.arm, a.mean, directories=[str(tmp_path / a.arm)] * 5) for a in block.ranking)
    samples = samples_of(ranking, block.ranking[0].arm)
    result = replace(make_result(blocks=(replace(block, ranking=ranking),)), runs=runs)
    answers = make_answers([arm.arm for arm in ranking], points=150)
    text, beside = page_of(arrange(result, [answers], [samples]), "beside")
    assert len(samples.samples) == 3
    assert len(text.encode()) < 5e6
    assert text.count("<tr>") > 500
    assert mentions(text, "93 more comparisons", "59 candidates")
    assert list(beside) == ["images.csv"]


def test_a_page_that_would_become_too_large_shows_what_answers_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_pictures(tmp_path, {"a": 0.5})
    samples = samples_of([make_arm("sigmoid", 0.8, 1, [str(tmp_path)])])
    assert samples.samples
    made = contents(make_result(n_arms=2), answers=False)
    made = replace(made, chapters=tuple(replace(c, samples=samples) for c in made.chapters))
    whole = page_of(made, "beside")[0]
    assert "Left out" not in whole
    assert Page(whole).texts.count("Sample predictions") == 4  # a heading and an entry of the contents, each
    monkeypatch.setattr("segexp.report.page.MAX_FIGURES", 20_000)
    (sample,) = samples.samples
    (tile,) = sample.tiles
    one = sum(map(len, (sample.image, sample.outline, tile.prediction, tile.errors)))
    monkeypatch.setattr("segexp.report.page.MAX_PICTURES", one + one // 2)
    found = Page(page_of(made, "beside")[0])
    labels = [attributes["aria-label"] for attributes in found.all("svg") if "aria-hidden" not in attributes]
    assert [label.split()[0] for label in labels].count("Forest") == 2
    assert len(labels) < whole.count("<svg")
    assert len(found.all("image")) == 4  # of the first chapter: image, outline, prediction, errors
    shown = " ".join(found.texts)
    assert mentions(shown, "--figures DIR", "Left out")


@pytest.mark.slow
def test_samples_that_do_not_fit_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_pictures(tmp_path, {"a": 0.5, "b": 0.6, "c": 0.7}, side=200)
    samples = samples_of([make_arm("sigmoid", 0.8, 1, [str(tmp_path)])])
    made = contents(small_result(), answers=False)
    made = replace(made, chapters=(replace(made.chapters[0], samples=samples),))
    first, second, third = (
        len(s.image) + len(s.outline) + len(s.tiles[0].prediction) + len(s.tiles[0].errors) for s in samples.samples
    )
    for room, kept in ((first + second + third, 3), (first + second, 2), (0, 0)):
        monkeypatch.setattr("segexp.report.page.MAX_PICTURES", room)
        found = Page(page_of(made, "beside")[0])
        assert len(found.all("image")) == 4 * kept
        assert any(f"too large: {3 - kept} image" in text for text in found.texts) == (kept < 3)
        assert any("Seed 0" in text for text in found.texts)


def test_the_point_of_a_volume_leads_to_its_slice(tmp_path: Path) -> None:
    cases = ("p_1", "p_2")
    make_pictures(tmp_path, {f"{case}_z003": 0.6 for case in cases})
    rows = [row("images", split="test", image_id=case, dice=0.6) for case in cases]
    write_table(tmp_path / "images.csv", "images", rows)
    record = record_of("00000000", "done", {"metrics.unit": "case"})
    (tmp_path / "run.json").write_text(json.dumps(record))
    result = small_result()
    found = replace(result.blocks[0].comparisons[0], units=(*cases, *result.blocks[0].comparisons[0].units[2:]))
    made = contents(replace(result, blocks=(replace(result.blocks[0], comparisons=(found,)),)), answers=False)
    samples = samples_of([make_arm("sigmoid", 0.8, 1, [str(tmp_path)])])
    made = replace(made, chapters=(replace(made.chapters[0], samples=samples),))
    text = page_of(made, "beside")[0]
    links = re.findall(r'<a href="#(block-1-sample-\d)"><rect[^>]*><title>(\w+):', text)
    assert {name for _, name in links} == {sample.image_id.partition("_z")[0] for sample in samples.samples}
    assert all(f'id="{target}"' in text for target, _ in links)


def test_csv_files_above_a_megabyte_are_linked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_EMBEDDED == 10**6
    monkeypatch.setattr("segexp.report.page.MAX_EMBEDDED", 10_000)
    made = contents(small_result(n_images=1_000), answers=False)
    path = tmp_path / "my report #1.html"
    written = write_page(path, made)
    assert written == [path, tmp_path / "my report #1-data" / "images.csv"]
    (link,) = [a for a in Page(path.read_text("utf-8")).all("a") if a.get("download") == "images.csv"]
    assert link["href"] == "my%20report%20%231-data/images.csv"
    with written[1].open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 1_000
    first = made.result.blocks[0].comparisons[0].candidate_N
    assert first is not None
    assert float(rows[0]["of_candidate"]) == pytest.approx(first[0], abs=1e-6)


def test_only_reports_are_overwritten(tmp_path: Path) -> None:
    made = contents(small_result(), answers=False)
    path = tmp_path / "new" / "report.html"
    write_page(path, made)
    before = path.stat().st_mtime_ns
    write_page(path, made)
    assert path.stat().st_mtime_ns != before
    path.write_text("my thesis")
    with pytest.raises(UsageError, match="not a report"):
        write_page(path, made)
    assert path.read_text() == "my thesis"
    with pytest.raises(UsageError, match="directory"):
        write_page(tmp_path, made)


@pytest.mark.slow
def test_figures_and_tables_for_a_paper(tmp_path: Path) -> None:
    block = hostile_result().blocks[0]
    small = replace(block, factorials=(), comparisons=block.comparisons[:1])
    made = contents(replace(hostile_result(), over_datasets=(), blocks=(small,)), answers=False)
    paths = write_figures(tmp_path / "figures", made)
    assert len({path.name for path in paths}) == len(paths) == 3 * len(made.drawings())
    begins = {".pdf": b"%PDF", ".png": b"\x89PNG", ".svg": b"<?xml"}
    assert all(path.read_bytes().startswith(begins[path.suffix]) for path in paths)
    tables = write_tables(tmp_path / "tables", made)
    assert {path.suffix for path in tables} == {".tex", ".md"}
    assert len(tables) == 2 * len(made.tables())
    assert [path for path in tables if "<script" in path.read_text("utf-8")] == []


@pytest.mark.slow
def test_a_dense_scatter_becomes_a_picture() -> None:
    few = make_comparison("a", "b", 0.01, n_images=200)
    many = make_comparison("a", "b", 0.01, n_images=4000)
    sizes = []
    for comparison in (few, many):
        block = replace(make_block({"b": 0.8, "a": 0.81}, "b"), comparisons=(comparison,))
        text = page(replace(small_result(), blocks=(block,), runs=()), answers=False)
        sizes.append(len(re.findall(r"<use ", text)))
    assert sizes[0] > 2 * 200
    assert sizes[1] < 200


def test_the_page_has_names_in_place_of_folders() -> None:
    result = small_result()
    (found,) = result.blocks[0].comparisons
    block = replace(
        result.blocks[0],
        comparisons=(replace(found, warnings=("/home/jo/our runs/mine/run-2 has no images.csv",)),),
        warnings=("/home/jo/elsewhere/x.csv is old",),
    )
    result = replace(
        result,
        blocks=(block,),
        headline="No answer: /home/jo/our runs/mine is empty.",
        warnings=("/home/jo/our runs/mine/run-1: no run.json",),
        provenance={"read from": ["/home/jo/our runs/mine", "runs.csv"], "data": {"/home/jo/our runs/data": 3}},
        unscored=(Unscored("1", "x", "a", "0", "failed", "FileNotFoundError: '/home/jo/data/1.png'"),),
        runs=(make_run("a", 0, directory="/home/jo/our runs/mine/run-1", study="mine"),),
    )
    text = page(result, answers=False)
    decoded = "".join(base64.b64decode(data).decode() for data in re.findall(r"base64,([\w+/=]+)\" download", text))
    assert "mine/run-1" in decoded
    for shown in (text, decoded):
        assert "/home" not in shown
        assert "our runs" not in shown
    for name in ("mine/run-2 has no images.csv", "x.csv is old", "mine/run-1: no run.json", "data</dt>"):
        assert name in text


LONG = [f"native / arctan_{kind}_of_a_long_family / normal_dice_{loss}" for kind in "ab" for loss in ("one", "two")]


@pytest.mark.slow
def test_texts_stay_within_their_figures() -> None:
    block = make_block({arm: 0.8 + 0.01 * n for n, arm in enumerate(LONG)}, LONG[0])
    several = replace(block.comparisons[0], reference=LONG[3])
    long = "Reliability near the boundary after temperature scaling"
    panel = Panel("x", long, long[:42], long[:42], (Curve(LONG[0], (0, 1), (0.1, 1)),))
    fixed = "loss, hidden_activation=native, optimizer.lr=0.001"
    factorial = replace(make_factorial(LONG[:2], LONG[2:]), column_factor=fixed)
    where = "lesions, loss=dice, trainer.epochs=40, dataset.image_size=256"
    with styled():
        drawn = [
            drawing.draw_forest(block.comparisons, DICE),
            drawing.draw_forest((*block.comparisons, several), DICE),
            drawing.draw_heat_map(factorial, DICE, (0.8, 0.9), where),
            drawing.draw_scatter(several, DICE),
            drawing.draw_differences(several, DICE),
            drawing.draw_over_datasets(make_result().over_datasets[0], DICE),
            drawing.draw_panel(panel, {}),
            drawing.draw_panel(replace(panel, curves=tuple(Curve(a, (0, 1), (0.1, 1)) for a in LONG)), {}),
        ]
        for figure in drawn:
            figure.draw_without_rendering()
            box, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
            assert min(box.x0, box.y0) >= -0.01, figure
            assert (box.x1 <= width + 0.01, box.y1 <= height + 0.01) == (True, True), (box, width, height)


def test_the_means_of_arms_are_drawn_with_their_intervals() -> None:
    block = make_block({"a": 0.8, "b": 0.81, "c": 0.82}, "a")
    first, second, third = block.ranking
    unknown = replace(third, interval=replace(third.interval, low=NAN, high=NAN))
    with styled():
        (drawn,) = figures.of_arms(replace(block, ranking=(first, second, unknown)), DICE, "x")
        assert figures.of_arms(replace(block, ranking=(unknown,)), DICE, "x") == []
    lines = [np.asarray(line.get_xdata()) for line in drawn.figure.axes[0].get_lines()]
    bars = [ends for ends in lines if ends.size == 2]
    seeds = [places for places in lines if places.size == 5]
    assert seeds[0] == pytest.approx([100 * value for value in first.seeds.values()])
    tips = [(tip.text, tip.x) for tip in drawn.tips if "seed 3" in tip.text]
    assert tips[0] == (f"{first.arm}, seed 3: {100 * first.seeds['3']:.2f}", pytest.approx(seeds[0][3]))
    assert np.array(bars) == pytest.approx(np.array([[79.2, 84.8], [78.2, 83.8]]))
    assert mentions(drawn.caption, "new seeds and new test images", "not for comparing arms", "1 arm")
    assert mentions(drawn.alt, "c 82.00 [79.20, 84.80]")


def test_the_values_of_images_are_drawn_with_their_quartiles() -> None:
    block = make_block({"a": 0.8, "b": 0.81, "c": 0.82}, "a")
    with styled():
        (drawn,) = figures.distributions(block, DICE, "x")
        assert figures.distributions(replace(block, comparisons=()), DICE, "x") == []
    axis = drawn.figure.axes[0]
    found = next(found for found in block.comparisons if found.candidate == "c")
    values = 100 * np.asarray(found.candidate_N)
    dots, whiskers, median = (np.asarray(line.get_xdata(), dtype=float) for line in axis.get_lines()[:3])
    assert dots == pytest.approx(values)
    assert whiskers[[0, 1, 3, 4]] == pytest.approx(np.quantile(values, (0.05, 0.25, 0.75, 0.95)))
    assert median == pytest.approx([np.median(values)] * 2)
    assert f"c {np.median(values):.2f}" in drawn.alt
    tip = drawn.tips[7]
    assert (tip.image, tip.text) == (found.units[7], f"{found.units[7]}: c {values[7]:.2f}")
    assert tip.x == pytest.approx(dots[7])
    assert tip.y == pytest.approx(np.asarray(axis.get_lines()[0].get_ydata())[7])
    beyond = tuple(replace(one, candidate_N=1.5 * np.asarray(one.candidate_N)) for one in block.comparisons)
    with styled():
        ((_, (scatter, _)), *_), _ = figures.of_images(replace(block, comparisons=beyond), DICE, "x")
        (of_rare,) = figures.distributions(replace(block, comparisons=beyond), DICE, "x")
    for figure, explained in ((drawn, False), (of_rare, True), (scatter, True)):
        assert ("lack classes" in figure.caption) == explained
    many = replace(block, comparisons=(make_comparison("c", "a", 0.01, n_images=400),))
    with styled():
        (drawn,) = figures.distributions(many, DICE, "x")
    assert figures.MAX_TIPS / 2 <= len(drawn.tips) <= figures.MAX_TIPS


def test_names_of_places_and_ranks_from_the_top() -> None:
    curves = (Curve("a", (1.0, 2.0), (1.0, 2.0)), Curve("b", (1.0, 2.0), (2.0, 1.0)))
    panel = Panel("metrics", "Rank", "metric", "rank", curves, x_names=("dice", "nll"))
    axis = drawn_axis(panel)
    assert [label.get_text() for label in axis.get_xticklabels()] == ["dice", "nll"]
    assert axis.yaxis_inverted()
    with styled():
        (drawn,) = figures.of_answer(Answer("q", "Q", (), (panel,)), {}, "x")
    assert drawn.tips[1].text == "a: rank 2, metric nll"


def test_how_to_read_and_conditions_are_on_the_page(usual: Page) -> None:
    lines = how_to_read(make_result())
    shown = [text.strip() for text in usual.texts]
    assert [shown.count(line) for line in lines] == [1] * 5
    block = make_block({"sigmoid": 0.81, "arctan": 0.81, "softsign": 0.8}, "sigmoid")
    (first, second) = block.comparisons
    first = replace(first, verdict=Verdict.EQUIVALENT, condition="unless 3/60 behave otherwise")
    found = Page(page(replace(small_result(), blocks=(replace(block, comparisons=(first, second)),)), answers=False))
    assert any(text.strip() == "unless 3/60 behave otherwise" for text in found.texts)


def test_further_metrics_have_chapters_with_their_own_units() -> None:
    pixels = replace(METRICS["hd95"], unit="pixels")
    block = make_block({"sigmoid": 4.0, "arctan": 5.0}, "sigmoid")
    block = replace(block, warnings=(*block.warnings, "only of hd95"))
    other = replace(small_result(), blocks=(block,), metric=pixels, runs=())
    made = contents(replace(small_result(), others=(other,)), answers=False)
    assert [chapter.block.title for chapter in made.chapters] == ["Dice: lesions", f"{pixels.title}: lesions"]
    names = [drawn.name for drawn in made.drawings()] + [table.name for table in made.tables()]
    assert len(set(names)) == len(names)
    found = Page(page_of(made, "beside")[0])
    shown = [text.strip() for text in found.texts]
    assert {"+1.00 points", "+1.00 pixels", "difference (pixels)", "only of hd95"} <= set(shown)
    assert sum(warning in text for text in shown for warning in block.warnings[:1]) == 1
    ids = [attributes["id"] for _, attributes in found.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {"#block-1", "#block-2"} <= {attributes.get("href") for attributes in found.all("a")}


def test_heat_maps_share_their_colours() -> None:
    few = make_factorial(("a", "b"), ("x", "y"))
    low = replace(few, means=((0.5, 0.9), (0.6, NAN)), column_factor="loss, activation=arctan")
    high = replace(few, means=((0.9, 0.7), (0.8, NAN)), column_factor="loss, activation=sigmoid")
    block = replace(make_block({"a": 0.8, "b": 0.81}, "a"), factorials=(low, high))
    assert figures.scale_of([block]) == (0.5, 0.9)
    made = contents(replace(small_result(), blocks=(block,)), answers=False)
    maps = made.chapters[0].heat_maps
    lowest, best, low_cell = (patch.get_facecolor() for patch in maps[0].figure.axes[0].patches)
    same, *others = (patch.get_facecolor() for patch in maps[1].figure.axes[0].patches)
    assert same == best
    assert len({lowest, best, low_cell, *others}) == 5
    assert mentions(maps[1].figure.get_suptitle(), "activation=sigmoid", "lesions")


def test_pairs_without_a_test_are_counted_below_the_forest() -> None:
    block = make_block({"a": 0.8, "b": 0.81, "c": 0.82}, "a")
    nothing = replace(make_result().over_datasets[0].interval, mean=NAN, low=NAN, high=NAN)
    untested = replace(block.comparisons[0], overall=nothing, test_set=nothing)
    with styled():
        (forest,) = figures.forest(replace(block, comparisons=(block.comparisons[0], untested)), DICE, "x")
    assert mentions(forest.caption, "no test", "1 pair")


def drawn_axis(panel: Panel) -> Any:
    with styled():
        (axis,) = drawing.draw_panel(drawing.in_points(panel), {}).axes
    return axis


def test_dice_is_drawn_in_points_and_from_where_arms_differ() -> None:
    curve = Curve("a", (1.0, 2.0), (0.1, 0.84), (0.05, 0.83), (0.2, 0.85))
    panel = Panel("x", "X", "epoch", "Dice", (curve,), y_points=True, y_from=0.7)
    axis = drawn_axis(panel)
    assert axis.get_ylabel() == "Dice (points)"
    assert list(axis.get_lines()[0].get_ydata()) == pytest.approx([10, 84])
    assert axis.get_ylim()[0] == pytest.approx(70)
    answer = Answer("q", "Q", (), (panel, replace(panel, y_from=0.04)))
    cut, whole = figures.of_answer(answer, {}, "x")
    assert (mentions(cut.caption, "below 70 points"), whole.caption) == (True, "")
    assert cut.alt.endswith("a 84")
    both = replace(panel, kind="points", x_points=True, guide=Curve("front", (1.0, 2.0), (0.5, 0.5)))
    axis = drawn_axis(both)
    front, points = axis.get_lines()
    assert (front.get_label(), list(front.get_xdata()), list(front.get_ydata())) == ("front", [100, 200], [50, 50])
    assert list(points.get_xdata()) == [100, 200]


def test_axes_of_probabilities_of_zeros_and_of_one_point() -> None:
    axis = drawn_axis(Panel("x", "X", "p", "share", (Curve("a", (0.4, 0.6), (0.45, 0.5)),), diagonal=True))
    assert axis.get_xlim() == axis.get_ylim() == (-0.02, 1.02)
    axis = drawn_axis(Panel("x", "X", "call site", "share", (Curve("a", (1.0, 2.0), (0.0, 0.0)),)))
    assert axis.get_ylim() == (-0.002, 0.1)
    assert axis.get_xlim() != (-0.002, 0.1)
    axis = drawn_axis(Panel("x", "X", "size", "Dice", (Curve("a", (0.3,), (0.8,), (0.7,), (0.9,)),), log_x=True))
    (line,) = axis.get_lines()
    assert line.get_marker() != "None"
    assert len(axis.collections) == 1


def test_over_data_sets_the_better_side_and_the_test_are_named() -> None:
    (found,) = make_result().over_datasets
    hd95 = replace(DICE, name="hd95", title="HD95", higher_is_better=False, points=False, unit="pixels")
    wilcoxon = replace(found, method="Wilcoxon", p_holm=0.0469)
    with styled():
        of_t, of_ranks = figures.of_datasets((found, wilcoxon), None, hd95)
    assert mentions(of_t.caption, "p: 0.400", "t test")
    assert mentions(of_ranks.caption, "p: 0.0469", "Wilcoxon's")
    label = of_t.figure.axes[0].get_xlabel().replace("\n", " ")
    assert mentions(label, "arctan minus sigmoid", "HD95 (pixels)", "left")


def test_groups_are_not_called_images() -> None:
    comparison = replace(make_comparison("a", "b", 0.01, n_images=10), n_images=80)
    block = replace(make_block({"b": 0.8, "a": 0.81}, "b"), comparisons=(comparison,))
    with styled():
        (((_, (scatter, difference)),), _) = figures.of_images(block, DICE, "x")
    assert "10 groups" in scatter.alt
    shown = [drawn.figure.axes[0].get_title(loc="left") for drawn in (scatter, difference)]
    assert all("each group" in title for title in shown)
    assert "Group by group" in Page(page(replace(small_result(), blocks=(block,)), answers=False)).texts


def test_runs_and_samples_are_in_points(tmp_path: Path) -> None:
    make_pictures(tmp_path, {"a": 0.5})
    samples = samples_of([make_arm("sigmoid", 0.8, 1, [str(tmp_path)])])
    made = contents(replace(small_result(), metric=METRICS["iou"]), answers=False)
    made = replace(made, chapters=tuple(replace(c, samples=samples) for c in made.chapters))
    found = Page(page_of(made, "beside")[0])
    assert mentions(found.all("svg")[-1]["aria-label"], "Prediction", "sigmoid", "a", "Dice 50.00 points")
    titles = [title for title, _ in made.runs.columns]
    assert titles.count("IoU (points)") == 1
    assert made.runs.rows[0][titles.index("Dice (points)")] == "80.00"


@pytest.mark.slow
def test_arms_of_one_colour_are_told_apart_by_markers() -> None:
    arms = [f"arm {n}" for n in range(12)]
    curves = tuple(Curve(arm, tuple(range(9)), tuple(range(9))) for arm in arms)
    with styled():
        (axis,) = drawing.draw_panel(Panel("x", "X", "x", "y", curves), looks_of(arms)).axes
    looks = [(line.get_color(), line.get_linestyle(), line.get_marker()) for line in axis.get_lines()]
    assert len(set(looks)) == 12
    assert {marker for *_, marker in looks[:7]} == {"None"}
    assert "None" not in {marker for *_, marker in looks[7:]}
    block = make_result(n_arms=9).blocks[0]
    result = replace(small_result(), blocks=(replace(block, comparisons=block.comparisons[:1], factorials=()),))
    classes = {a.get("class", "").strip() for a in Page(page(result, answers=False)).all("span")}
    assert {name for name in classes if name.startswith("dot")} == {"dot", "dot square"}


def test_labels_of_narrow_axes_do_not_touch():
    curve = Curve("a", (0.4801, 0.4992), (0.5, 0.6))
    (axis,) = drawing.draw_panel(Panel("x", "X", "share", "y", (curve,), kind="points"), {}).axes
    low, high = axis.get_xlim()
    assert len([tick for tick in axis.get_xticks() if low <= tick <= high]) <= 6


def test_an_axis_of_one_epoch_has_one_tick():
    curve = Curve("a", (1.0,), (0.5,), (0.4,), (0.6,), (2.0,))
    (axis,) = drawing.draw_panel(Panel("val_dice", "Validation Dice", "epoch", "Dice", (curve,)), {}).axes
    assert axis.get_xticks().tolist() == [1.0]
    assert axis.get_xlim() == (0.0, 2.0)
