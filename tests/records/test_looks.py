"""Seeds that were added after a comparison are recognised."""

import json
from pathlib import Path

import pytest
from made_scores import drawn, make_arm, make_pair
from messages import one_mentions

from segexp.compare.verdict import compare
from segexp.errors import UsageError
from segexp.records.looks import FILE


def add_seeds(study: Path, n_seeds: int, status: str = "done") -> None:
    for arm, dice_KN in zip(("arctan", "sigmoid"), drawn(n_seeds, 60, rng=9), strict=True):
        scores = dice_KN if status == "done" else [None] * n_seeds
        make_arm(study, arm, scores, first_seed=5, prefix=f"later{status}", status=status)


def added(study: Path) -> list[str]:
    return [warning for warning in compare([study]).warnings if "added since" in warning]


def test_seeds_added_after_a_look_are_recognised(tmp_path: Path):
    study = tmp_path / "s"
    make_pair(study)
    assert not added(study)
    assert not added(study)
    (look,) = json.loads((study / FILE).read_text())
    assert list(look["seeds"].values()) == [[0, 1, 2, 3, 4]] * 2
    add_seeds(study, 3)
    for _ in range(2):
        assert one_mentions(added(study), "3 seeds", "1 other arm", "5 seeds", look["date"][:10])
    assert len(json.loads((study / FILE).read_text())) == 2


def test_seeds_that_were_planned_at_the_first_look_and_too_few_for_a_test_are_no_addition(tmp_path: Path):
    study, few = tmp_path / "s", tmp_path / "few"
    make_pair(study)
    add_seeds(study, 3, "failed")
    compare([study])
    add_seeds(study, 3)
    assert not added(study)
    make_pair(few, n_seeds=2)
    compare([few])
    assert not (few / FILE).exists()


@pytest.mark.parametrize(
    "content", ["{", "{}", '[{"date": 3, "seeds": {}}]', "[[]]", '[{"date": "", "seeds": {"a": [[]]}}]']
)
def test_what_cannot_be_read_is_said_and_kept(tmp_path: Path, content: str):
    study = tmp_path / "s"
    make_pair(study)
    (study / FILE).write_text(content)
    assert one_mentions([w for w in compare([study]).warnings if FILE in w], "not noted")
    assert (study / FILE).read_text() == content


@pytest.mark.parametrize("edit", ["seed", "date", "first look gone", "none"])
def test_an_edited_look_is_noticed(tmp_path: Path, edit: str):
    """But not one without a checksum, of an earlier version."""
    study = tmp_path / "s"
    make_pair(study)
    compare([study])
    add_seeds(study, 3)
    compare([study])
    looks = json.loads((study / FILE).read_text())
    if edit == "seed":
        next(iter(looks[0]["seeds"].values())).pop()
    elif edit == "date":
        looks[1]["date"] = "2020-01-01"
    elif edit == "first look gone":
        looks.pop(0)
    else:
        looks = [{key: value for key, value in one.items() if key != "sha256"} for one in looks]
    (study / FILE).write_text(json.dumps(looks))
    warnings = [w for w in compare([study]).warnings if FILE in w]
    assert one_mentions(warnings, "changed after") if edit != "none" else not warnings
    assert bool(added(study)) == (edit == "none")


def test_one_arm_alone_is_no_look(tmp_path: Path):
    make_arm(tmp_path / "s", "sigmoid", drawn(5, 60)[1])
    with pytest.raises(UsageError):
        compare([tmp_path / "s"])
    assert not (tmp_path / "s" / FILE).exists()
