"""Tables of many runs are kept, and those of runs that have changed are read again."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks.reports import make_study
from segexp.compare import kept
from segexp.compare.questions import QUESTIONS, answers_of, ask
from segexp.compare.verdict import compare
from segexp.records.runs import Run
from segexp.records.tables import read_tables
from segexp.report import page
from segexp.report.figures import Drawing

Ask = Callable[[], tuple[list[str], dict[str, list[str]]]]


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A study whose runs count as many and as old."""
    monkeypatch.setenv("SEGEXP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(kept, "FROM_RUNS", 1)
    monkeypatch.setattr(kept, "SETTLED_S", -1e9)
    make_study(tmp_path / "study", 1, 3)
    return tmp_path / "study"


@pytest.fixture
def answers(study: Path, monkeypatch: pytest.MonkeyPatch) -> Ask:
    """All answers about the study, as text in which NaN is equal to itself, and table -> runs whose file was read."""
    read: dict[str, list[str]] = {}

    def counted(runs: Sequence[Run], table: str, columns: Any) -> Any:
        read.setdefault(table, []).extend(run.path.name for run in runs)
        return read_tables(runs, table, columns)

    monkeypatch.setattr(kept, "read_tables", counted)

    def made() -> tuple[list[str], dict[str, list[str]]]:
        result = compare([study])
        read.clear()
        found = answers_of(result.blocks[0], list(QUESTIONS), "test", result.metric, result.loaded)
        return [repr(answer) for answer in found], {table: names for table, names in read.items() if names}

    return made


def names_of(study: Path) -> list[str]:
    return sorted(path.name for path in study.glob("made-up-*"))


def uncached(answers: Ask, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    with monkeypatch.context() as patch:
        patch.setenv("SEGEXP_CACHE_LIMIT", "0")
        return answers()[0]


def test_answers_are_equal_with_and_without(study: Path, answers: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    plainly, (first, all_read), (again, none_read) = uncached(answers, monkeypatch), answers(), answers()
    assert plainly == first == again
    assert {table: sorted(names) for table, names in all_read.items()} == dict.fromkeys(all_read, names_of(study))
    assert all_read.keys() == {"bins", "diagnostics", "epochs", "objects", "thresholds", "timings"}
    assert none_read == {}


@pytest.mark.slow
def test_answers_are_equal_where_compare_has_read_nothing(study: Path) -> None:
    result = compare([study])
    (block,) = result.blocks
    names = [name for name in QUESTIONS if name != "ranking"]  # needs the block
    arms = {arm.arm: [Path(directory) for directory in arm.directories] for arm in block.ranking}
    known = answers_of(block, names, "test", result.metric, result.loaded)
    assert [repr(one) for one in ask(names, arms)] == [repr(one) for one in known]


@pytest.mark.parametrize(
    "change",
    ["edited", *(pytest.param(change, marks=pytest.mark.slow) for change in ("added", "removed", "touched", "record"))],
)
def test_only_changed_runs_are_read(
    study: Path, answers: Ask, change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = study / names_of(study)[2]
    if change == "added":
        one.rename(tmp_path / "elsewhere")
    answers()
    if change == "added":
        (tmp_path / "elsewhere").rename(one)
    elif change == "removed":
        shutil.rmtree(one)
    elif change == "record":
        record = one / "run.json"
        record.write_text(record.read_text().replace('"bins": "', '"bins": "0'))
    else:
        table = one / "bins.csv"
        table.write_bytes(table.read_bytes() + b"\n" * (change == "edited"))
    found, read = answers()
    assert found == uncached(answers, monkeypatch)
    whole = {"bins", "diagnostics", "epochs", "objects", "thresholds", "timings"}
    expected = {"added": whole, "removed": set()}.get(change, {"bins"})
    assert read == {table: [one.name] for table in expected}
    assert ("bins.csv" in "".join(found)) == (change in ("edited", "record"))


@pytest.mark.parametrize(
    "damage", ["a byte", "code", *(pytest.param(damage, marks=pytest.mark.slow) for damage in ("cut", "empty"))]
)
def test_what_is_damaged_or_of_other_code_is_made_again(
    study: Path, answers: Ask, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, _ = answers()
    for content in (study.parent / "cache").rglob("content.npz"):
        data = content.read_bytes()
        half = len(data) // 2
        changed = {"cut": data[:half], "a byte": data[:half] + bytes([data[half] ^ 1]) + data[half + 1 :], "empty": b""}
        content.write_bytes(changed.get(damage, data))
    if damage == "code":
        monkeypatch.setattr(kept, "_code", lambda: "another")
    after, read = answers()
    assert after == before
    assert set(map(len, read.values())) == {len(names_of(study))}
    assert answers()[1] == {}


@pytest.mark.slow
def test_files_that_have_just_changed_are_not_kept(study: Path, answers: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "SETTLED_S", 1e9)
    assert answers() == answers()
    assert len(answers()[1]["bins"]) == len(names_of(study))


@pytest.mark.slow
def test_a_folder_that_cannot_be_used_makes_no_difference(
    study: Path, answers: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    plainly = uncached(answers, monkeypatch)
    (study.parent / "a file").write_text("")
    monkeypatch.setenv("SEGEXP_CACHE", str(study.parent / "a file"))
    assert answers()[0] == answers()[0] == plainly


def test_reports_are_equal_with_and_without(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "FROM_RUNS", 1)
    drawn: list[str] = []

    def counted(drawing: Drawing, links: Any) -> str:
        """Instead of a picture, which takes a tenth of a second, all that it would show."""
        drawn.append(drawing.name)
        return f"<svg>{drawing.name} {drawing.alt} {drawing.tips} {links} {drawing.draw.args}</svg>"

    def text(limit: str = "") -> tuple[str, set[str]]:
        drawn.clear()
        with monkeypatch.context() as patch:
            patch.setenv("SEGEXP_CACHE_LIMIT", limit)
            return page.page_of(page.contents_of(compare([study])), "beside")[0], {*drawn}

    monkeypatch.setattr(page, "inline_svg", counted)
    plainly, every = text("0")
    assert (text(), text()) == ((plainly, every), (plainly, set()))
    for content in (tmp_path / "cache").rglob("content.json"):
        content.write_text(content.read_text().replace("2", "3", 1))
    assert text() == (plainly, every)
    (study / names_of(study)[0]).rename(tmp_path / "elsewhere")
    changed, some = text()
    assert changed != plainly
    assert set() < some < every  # the differences of images need pairs
    assert changed == text("0")[0]
