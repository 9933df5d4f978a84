"""Secondary analyses and figures of many runs are kept, and made again where what they depend on has changed."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_scores import image_rows, make_pair

from segexp.compare import kept, questions
from segexp.compare.questions import answers_of
from segexp.compare.result import Answer
from segexp.compare.verdict import compare
from segexp.report import page

Made = Callable[[], tuple[tuple[Answer, ...], int]]


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A study whose runs count as many and as old."""
    monkeypatch.setenv("SEGEXP_CACHE", str(tmp_path / "cache"))
    for module in (questions, page):
        monkeypatch.setattr(module, "FROM_RUNS", 1)
    monkeypatch.setattr(kept, "SETTLED_S", -1e9)
    make_pair(tmp_path / "study", n_seeds=3, n_images=20)
    return tmp_path / "study"


@pytest.fixture
def made(study: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    """Answers about the study, and how often they were worked out."""
    calls: list[Any] = []
    ask = questions.ask

    def counted(*given: Any) -> list[Answer]:
        calls.append(given)
        return ask(*given)

    monkeypatch.setattr(questions, "ask", counted)

    def make() -> tuple[tuple[Answer, ...], int]:
        result = compare([study])
        calls.clear()
        found = answers_of(result.blocks[0], ["boundary", "objects", "cost"], "test", result.metric, result.loaded)
        return found, len(calls)

    return make


def plain(answers: tuple[Answer, ...]) -> list[str]:
    """As text, in which NaN is equal to itself."""
    return [repr(answer) for answer in answers]


def test_answers_are_kept_and_equal(study: Path, made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(questions, "FROM_RUNS", 100)
    (plainly, n_plain) = made()
    monkeypatch.setattr(questions, "FROM_RUNS", 1)
    (first, n_first), (again, n_again) = made(), made()
    assert (n_plain, n_first, n_again) == (1, 1, 0)
    assert plain(plainly) == plain(first) == plain(again)


@pytest.mark.parametrize("change", ["table", "touched", "damaged", "code"])
def test_what_has_changed_is_made_again(study: Path, made: Made, change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before, _ = made()
    images = study / "run-arctan0" / "images.csv"
    if change == "table":
        images.write_text(image_rows(np.full(20, 0.5)))
    elif change == "touched":
        images.write_bytes(images.read_bytes())
    elif change == "damaged":
        for content in (study.parent / "cache").rglob("content.json"):
            content.write_text(content.read_text()[:-3])
    else:
        monkeypatch.setattr(kept, "_code", lambda: "another")
    after, n_made = made()
    assert n_made == 1
    # A table that is not what the run wrote leaves it out.
    assert (plain(after) == plain(before)) == (change != "table")
    assert made()[1] == 0


def test_files_that_have_just_changed_are_read(study: Path, made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "SETTLED_S", 1e9)
    assert (made()[1], made()[1]) == (1, 1)
    assert kept.stamps([study / "run-arctan0"]) is None


def test_figures_are_kept_and_equal(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pages(metric: str = "dice") -> str:
        contents = page.contents_of(compare([study], metric))
        nothing: dict[str, Any] = {"arms": [], "images": (), "questions": []}
        return page.page_of(replace(contents, chapters=[replace(one, **nothing) for one in contents.chapters]), "")[0]

    monkeypatch.setattr(page, "FROM_RUNS", 100)
    plainly = pages()
    monkeypatch.setattr(page, "FROM_RUNS", 1)
    first = pages()
    with monkeypatch.context() as patch:
        patch.setattr(page, "inline_svg", lambda *given: pytest.fail("drawn again"))
        assert pages() == first == plainly
    assert pages("iou") != first


def test_without_a_cache_everything_is_made(study: Path, made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGEXP_CACHE_LIMIT", "0")
    assert (made()[1], made()[1]) == (1, 1)
    assert json.dumps(kept.kept("this", lambda: [1])) == "[1]"
