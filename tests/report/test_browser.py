"""The page in a browser, from a file: no error, nothing loaded, sorted and filtered by keyboard, phone, dark, print."""

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from made_up_result import make_answers, make_arm, make_block, make_factorial, make_pictures, make_result

from segexp.report.page import arrange, write_page
from segexp.report.samples import samples_of

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.slow

DICE = {"sigmoid": 0.81, "arctan": 0.825, "normal_cdf": 0.80}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    for n, arm in enumerate(DICE):
        make_pictures(folder / arm, {f"image_{k}": 0.5 + 0.06 * k for k in range(8)}, seed=n)
    block = make_block(DICE, "sigmoid", {arm: [str(folder / arm)] for arm in DICE}, loss="dice")
    named = (*(f"image_{k}" for k in range(8)), *block.comparisons[0].units[8:])
    block = replace(
        block,
        comparisons=tuple(replace(found, units=named) for found in block.comparisons),
        ranking=tuple(make_arm(arm, DICE[arm], 1, [str(folder / arm)]) for arm in sorted(DICE, key=DICE.__getitem__)),
        factorials=(make_factorial(("sigmoid", "arctan", "normal_cdf"), ("dice", "ce")),),
    )
    contents = arrange(make_result(blocks=(block,)), [make_answers(list(DICE))], [samples_of(block.ranking, "sigmoid")])
    path, *_ = write_page(folder / "report.html", contents)
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("needs chromium: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        # As root, in a container, Chromium has no sandbox; the page is ours.
        launched = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture
def page(browser: Any, report: Path, request: pytest.FixtureRequest) -> Iterator["Page"]:
    """The page, opened as a file; what is written to the console or asked of a network fails the test."""
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}} | getattr(request, "param", {}))
    opened = context.new_page()
    said: list[str] = []
    opened.on("console", lambda message: said.append(message.text))
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.on("request", lambda asked: said.append(asked.url) if not asked.url.startswith(("file:", "data:")) else None)
    opened.goto(report.as_uri())
    yield opened
    assert said == []
    context.close()


def column(page: "Page", number: int) -> list[str]:
    rows = page.locator("#table-runs tbody tr:not([hidden])")
    return [text.strip() for text in rows.locator(f":nth-child({number})").all_inner_texts()]


def test_figures_and_pictures_are_there(page: "Page") -> None:
    assert page.locator("figure svg:not(.layers)").count() == 14
    for box in page.locator("figure svg").all():
        place = box.bounding_box() or {"width": 0.0, "height": 0.0}
        assert (place["width"] > 150, place["height"] > 100) == (True, True)
    assert page.locator(".tiles svg").count() == 4 * 3
    # Text is set in the reader's font, which the layout did not know.
    outside = """all => all.flatMap(svg => {
        const frame = svg.getBoundingClientRect();
        return [...svg.querySelectorAll("text")].filter(text => {
            const box = text.getBoundingClientRect();
            return box.left < frame.left - 1 || box.right > frame.right + 1 || box.bottom > frame.bottom + 1;
        }).map(text => text.textContent);
    })"""
    assert page.locator("figure svg").evaluate_all(outside) == []


@pytest.mark.parametrize("page", [{}, {"viewport": {"width": 390, "height": 844}}], indirect=True)
def test_numbers_are_shown_on_focus_and_arrow_keys_move_on(page: "Page") -> None:
    tip, figure = page.locator("#tip"), page.locator("figure svg[aria-label^=Scatter]").first
    assert tip.is_hidden()
    figure.locator("[tabindex='0']").focus()
    first = tip.inner_text()
    assert "difference" in first
    page.keyboard.press("ArrowRight")
    assert tip.inner_text() != first
    box, width = tip.bounding_box(), page.evaluate("document.documentElement.clientWidth")
    assert box is not None
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= width
    page.keyboard.press("Escape")
    assert tip.is_hidden()
    assert figure.locator("[tabindex='0']").count() == 1


def test_numbers_are_shown_near_the_pointer(page: "Page") -> None:
    cell = page.locator("figure svg[aria-label^='Heat map'] .tips rect").first
    cell.hover()
    assert "5 seeds" in page.locator("#tip").inner_text()
    page.mouse.move(1, 1)
    assert page.locator("#tip").is_hidden()


SAMPLES_DRAWN = "figure svg .tips a"


def test_a_point_leads_to_its_sample(page: "Page") -> None:
    drawn = "all => all.map(link => link.ownerSVGElement.getAttribute('aria-label').split(' ')[0])"
    kinds = page.locator(SAMPLES_DRAWN).evaluate_all(drawn)
    assert set(kinds) == {"Scatter", "Differences", "Distribution"}
    assert len(kinds) == 3 * (2 + 2 + 3)
    other = page.locator("figure svg[aria-label^=Scatter] .tips > rect").first
    assert (other.get_attribute("aria-label") or "").endswith("no sample here")
    link = page.locator(SAMPLES_DRAWN).first
    link.focus()
    assert "select for its sample" in page.locator("#tip").inner_text()
    page.keyboard.press("Enter")
    target = link.get_attribute("href") or ""
    assert page.evaluate("location.hash") == target
    box = page.locator(target).bounding_box()
    assert box is not None
    assert 0 <= box["y"] < 900


@pytest.mark.parametrize("page", [{"has_touch": True, "viewport": {"width": 390, "height": 844}}], indirect=True)
def test_the_first_tap_shows_the_numbers_and_the_second_leads_to_the_sample(page: "Page") -> None:
    link = page.locator(SAMPLES_DRAWN).first
    link.tap(force=True)
    assert page.locator("#tip").is_visible()
    assert page.evaluate("location.hash") == ""
    link.tap(force=True)
    assert page.evaluate("location.hash") == link.get_attribute("href")


def painted(page: "Page", selector: str) -> bytes:
    """What the browser shows of an element."""
    return page.locator(selector).first.screenshot()


def test_layers_of_samples_are_chosen_and_faded(page: "Page") -> None:
    of_arm, slider = ".sample figure:nth-child(2) svg", page.locator(".samples input[type=range]").first
    looks = {"prediction": painted(page, of_arm)}
    page.locator(".samples [value=prediction]").first.focus()
    for value in ("errors", "image"):
        page.keyboard.press("ArrowRight")
        assert page.locator(f".samples [value={value}]").first.is_checked()
        assert page.locator(".samples p.errors").first.is_visible() == (value == "errors")
        assert page.locator(".sample .reference").first.is_hidden()  # its colour could be taken for that of an error
        looks[value] = painted(page, of_arm)
    page.locator(".samples [value=prediction]").first.check()
    slider.focus()
    page.keyboard.press("End")
    looks["opaque"] = painted(page, of_arm)
    assert len(set(looks.values())) == 4


@pytest.mark.parametrize("page", [{}, {"viewport": {"width": 390, "height": 844}}], indirect=True)
def test_contents_stay_beside_a_wide_page_and_are_folded_on_a_phone(page: "Page") -> None:
    wide, link = page.evaluate("innerWidth") > 1000, page.locator("nav a[href='#block-1-samples']")
    assert link.is_visible() == wide
    if not wide:
        page.locator("nav summary").focus()
        page.keyboard.press("Enter")
    link.click()
    assert link.is_visible() == wide
    box = page.locator("#block-1-samples").bounding_box()
    bar = page.locator("nav").bounding_box()
    assert box is not None
    assert bar is not None
    # The heading is not behind the contents.
    assert box["y"] >= (0 if wide else bar["height"]) - 1
    assert box["x"] >= (bar["width"] if wide else 0)


def test_runs_are_sorted_by_keyboard(page: "Page") -> None:
    header = page.locator("#table-runs thead th", has_text="Dice (points)")
    before = column(page, 7)
    header.locator("button").focus()
    page.keyboard.press("Enter")
    assert header.get_attribute("aria-sort") == "ascending"
    numbers = [text for text in column(page, 7) if text != "\u2013"]
    assert numbers == sorted(numbers, key=float)
    assert column(page, 7)[-1] == "\u2013"
    assert column(page, 7) != before
    page.keyboard.press("Space")
    assert header.get_attribute("aria-sort") == "descending"
    assert column(page, 7) == [*reversed(numbers), "\u2013"]
    page.locator("#table-runs thead button").first.click()
    assert page.locator("#table-runs th[aria-sort]").count() == 1
    # Intervals and differences are numbers too.
    table = page.locator("table", has=page.locator("caption", has_text="Comparisons")).last
    table.locator("thead button", has_text="difference").click()
    shown = table.locator("tbody tr td:nth-child(4)").all_inner_texts()
    values = [float(text.replace("\u2212", "-")) for text in shown]
    assert values == sorted(values)
    assert values[0] < 0 < values[-1]


def test_runs_are_filtered_by_keyboard(page: "Page") -> None:
    n_runs = len(column(page, 3))
    page.get_by_label("Filter").focus()
    page.keyboard.type("ARCTAN done")
    assert set(column(page, 3)) == {"arctan"}
    assert page.locator("output").inner_text() == f"{len(column(page, 3))} of {n_runs}"
    page.keyboard.press("Control+A")
    page.keyboard.type("no such run")
    assert column(page, 3) == []
    page.keyboard.press("Control+A")
    page.keyboard.press("Delete")
    assert len(column(page, 3)) == n_runs


def test_the_keyboard_finds_its_way(page: "Page") -> None:
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the answer"
    box = page.locator(".skip").bounding_box()
    assert box is not None
    assert box["x"] >= 0
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    button = page.locator("thead button").first
    page.keyboard.press("Tab")
    button.focus()
    assert button.evaluate("e => getComputedStyle(e).outlineStyle") == "solid"


def test_data_is_downloaded_from_the_page_itself(page: "Page") -> None:
    with page.expect_download() as started:
        page.get_by_role("link", name="runs.csv").click()
    assert started.value.suggested_filename == "runs.csv"
    assert Path(started.value.path()).read_text("utf-8").startswith("run_id,dataset,arm,seed")


@pytest.mark.parametrize("page", [{"viewport": {"width": 375, "height": 812}}], indirect=True)
def test_a_phone_does_not_scroll_sideways(page: "Page") -> None:
    assert page.evaluate("document.documentElement.scrollWidth") == 375
    smallest = """all => Math.min(...all.map(text => {
        const svg = text.ownerSVGElement;
        const scale = svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;
        return scale * parseFloat(getComputedStyle(text).fontSize);
    }))"""
    assert page.locator("figure svg text").evaluate_all(smallest) > 7.5


@pytest.mark.parametrize("page", [{"color_scheme": "dark"}, {"color_scheme": "light"}], indirect=True)
def test_light_and_dark(page: "Page") -> None:
    def brightness(selector: str, style: str) -> float:
        colour = page.locator(selector).first.evaluate(f"e => getComputedStyle(e).{style}")
        return sum(map(float, re.findall(r"[\d.]+", colour)[:3])) / 3

    dark = page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    paper = brightness("body", "backgroundColor")
    assert (paper < 60) == dark
    for ink in (brightness("h1", "color"), brightness("figure svg text", "fill")):
        assert abs(ink - paper) > 180


def test_it_prints(page: "Page") -> None:
    printed = page.pdf(format="A4")
    assert printed.startswith(b"%PDF")
    assert 4 <= len(re.findall(rb"/Type\s*/Page\b", printed)) <= 30
    page.emulate_media(media="print")
    assert page.locator("nav").is_hidden()
    assert page.locator("#table-runs").is_visible()
    assert page.evaluate("[...document.querySelectorAll('details')].every(d => d.open)")
    page.set_viewport_size({"width": 700, "height": 1000})
    # Else the whole print would be scaled down.
    assert page.evaluate("document.documentElement.scrollWidth") == 700


@pytest.mark.parametrize("page", [{"java_script_enabled": False}], indirect=True)
def test_without_scripts_tables_are_plain_and_whole(page: "Page") -> None:
    assert page.locator("#table-runs tbody tr").count() > 10
    assert page.locator(".filter").is_hidden()
    assert page.locator(".samples input[type=range]").first.is_hidden()
    assert page.locator(".sample .prediction").first.evaluate("e => getComputedStyle(e).opacity") == "0.5"
    assert page.locator(".tips title").count() > 100
    assert page.locator("nav a[href='#runs']").is_visible()
    assert page.locator("thead button").count() == 0
