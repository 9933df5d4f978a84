"""Error rates by scripts/error_rates.py: some of its settings with fewer studies, and the script itself."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@pytest.fixture
def rates(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import error_rates

    yield error_rates
    sys.modules.pop("error_rates")


@pytest.mark.slow
def test_rates_do_not_depend_on_the_number_of_processes(rates: ModuleType):
    tables = {"real learners": rates.learners()[:1], "power": rates.power()[:1]}
    rows = [rates.rows_of(tables, 12, seed=1, processes=n) for n in (1, 2)]
    assert rows[0] == rows[1]
    assert [row.n for row in rows[0]] == [12] * 3
    assert rows[0] != rates.rows_of(tables, 12, seed=2)


def test_a_rate_fails_where_chance_does_not_explain_it(rates: ModuleType):
    assert not rates.Row("", "", "", 10, 100, (0, 0.065)).failed
    assert rates.Row("", "", "", 18, 100, (0, 0.065)).failed
    assert rates.Row("", "", "", 30, 100, (0.5, 1)).failed
    assert not rates.Row("", "", "", 90, 100, None).failed
    assert not rates.Row("", "", "", 0, 0, (0, 0.065)).failed


@pytest.mark.slow
@pytest.mark.parametrize(("table", "which", "repetitions"), [
    ("normal scores", r"(3|5) seeds, 20 images|(4|5) seeds, 100 images", 150),
    ("other variances", r"\((0|1), 1, 1\): (4|5) seeds, 200 images", 200),
    ("power", "", 150),
    ("other scores", "2.5 degrees.*, 100 images|ties.*, 30|empty masks, 30|rare.* 30|, grouped", 100),
    ("training sets", "5 folds, [15]", 150),
    ("real learners", "", 200),
    ("rare failures", "", 200),
    ("equivalence", "5 seeds, 100 images", 150),
    ("equivalence and rare failures", "^20 images", 150),
    ("several answers", "data sets|3 scores", 120),
    ("coverage", "", 120),
])  # fmt: skip
def test_rates_are_as_required(rates: ModuleType, table: str, which: str, repetitions: int):
    settings = [made for made in rates.TABLES[table]() if re.search(which, made.name)]
    rows = rates.rows_of({table: settings}, repetitions)
    print("\n" + rates.markdown(table, rows))
    assert rows
    assert [f"{row.setting}, {row.what}: {rates.shown_rate(row)}" for row in rows if row.failed] == []


@pytest.mark.slow
def test_what_is_not_covered_is_wrong_indeed(rates: ModuleType):
    """Studies that could not tell a wrong test from a right one would prove nothing."""
    fixed, plain = rates.training_sets()[-2], rates.learners()[2]
    rows = rates.rows_of({"training sets": [fixed], "real learners": [plain]}, 200)
    assert all(row.rate > 0.15 for row in rows if row.required is None)
