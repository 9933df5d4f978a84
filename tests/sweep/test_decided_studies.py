"""Studies of `segexp decide`: what may be asked of them, what reads them, and what is refused."""

import json
import math
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from decided import (
    ARMS,
    QUESTION,
    STUDY,
    Training,
    decide,
    decided_in,
    interrupt,
    made,
    of_decision,
    plan_of,
    recorded,
    replaced,
    same,
    scores_of,
    stopped,
)
from messages import mentions
from scipy.stats import t as student
from tiny import TINY

from segexp import cli
from segexp.compare.sequential import shares
from segexp.compare.verdict import compare
from segexp.config import Config
from segexp.config.compose import hydra_session
from segexp.errors import UsageError
from segexp.records.decision import FILE, checksums, read_decision
from segexp.records.files import MOST_BYTES

Captured = pytest.CaptureFixture[str]
Patch = pytest.MonkeyPatch

slow = pytest.mark.slow


@pytest.fixture
def training(monkeypatch: Patch, tmp_path: Path) -> Training:
    return replaced(monkeypatch, tmp_path)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study after an undisturbed decision."""
    return decided_in(tmp_path_factory.mktemp("undisturbed"))


# What is asked

OTHER = {
    "arms": ["activation=sigmoid,arctan,softsign"],
    "looks": [*QUESTION[:-1], "3,4,5"],
    "rope": ["--rope", "2"],
    "metric": ["--metric", "iou"],
    "reference": ["--reference", "activation=softsign"],
    "budget": ["--budget", "16runs"],
}


def other(key: str) -> int:
    """The command with another question."""
    arms, words = (OTHER[key][0], QUESTION) if key == "arms" else (ARMS, (*QUESTION, *OTHER[key]))
    words = tuple(OTHER[key]) if key == "looks" else words
    return cli.main(["decide", *TINY, arms, *words])


@pytest.mark.parametrize("key", [key if key == "arms" else pytest.param(key, marks=slow) for key in OTHER])
def test_the_question_is_fixed_by_the_first_look(
    training: Training, undisturbed: Path, key: str, capsys: Captured
) -> None:
    """The other question may be asked until then."""
    training.before = interrupt(7, SystemExit)
    stopped(SystemExit)
    training.before = lambda number: None
    assert other(key) == 0
    design = recorded()["design"]
    asked = recorded(undisturbed)["design"]
    assert {name for name in asked.keys() - {"found", "share", "share_within"} if design[name] != asked[name]} >= {key}
    begun, before = training.begun, (STUDY / FILE).read_bytes()
    capsys.readouterr()
    assert decide() == 2
    error = capsys.readouterr().err
    assert mentions(error, STUDY, key, "study.name")
    assert len(error.splitlines()) == 1
    assert training.begun == begun
    assert (STUDY / FILE).read_bytes() == before
    assert other(key) == 0


def test_another_study_name_is_another_decision(training: Training, undisturbed: Path) -> None:
    shutil.copytree(undisturbed, STUDY)
    words = ["study.name=other" if word.startswith("study.name=") else word for word in QUESTION]
    assert cli.main(["decide", *TINY, ARMS, *words, "--rope", "2"]) == 0
    assert recorded(STUDY.with_name("other"))["design"]["rope"] == 0.02
    assert recorded() == recorded(undisturbed)


@pytest.mark.parametrize("words", [["--dry-run"], ["--tune"]])
def test_another_question_is_refused_before_rates_are_searched(
    training: Training, undisturbed: Path, words: list[str], capsys: Captured
) -> None:
    """And before a forecast of it is made."""
    shutil.copytree(undisturbed, STUDY)
    assert decide("--rope", "2", *words) == 2
    said = capsys.readouterr()
    assert mentions(said.err, STUDY, "rope", "study.name")
    assert not said.out
    assert [path.name for path in STUDY.parent.iterdir()] == [STUDY.name]
    assert not training.begun


def test_a_study_that_was_compared_is_no_new_decision(training: Training, undisturbed: Path, capsys: Captured) -> None:
    """It stays what it was, and can be compared as before."""
    shutil.copytree(undisturbed, STUDY)
    (STUDY / FILE).unlink()
    shutil.rmtree(STUDY / ".decide")
    assert cli.main(["compare", str(STUDY)]) == 0
    said = capsys.readouterr().out
    assert decide() == 2
    error = capsys.readouterr().err
    assert mentions(error, STUDY, "study.name")
    assert len(error.splitlines()) == 1
    assert not (STUDY / FILE).exists()
    assert cli.main(["compare", str(STUDY)]) == 0
    assert capsys.readouterr().out == said


def test_runs_from_before_are_used_look_by_look(training: Training, undisturbed: Path) -> None:
    """A study that was trained, but never compared."""
    shutil.copytree(undisturbed, STUDY)
    (STUDY / FILE).unlink()
    shutil.rmtree(STUDY / ".decide")
    assert decide("--budget", "1runs") == 0, "runs from before cost nothing"
    assert not training.begun
    found, expected = recorded(), recorded(undisturbed)
    assert len(found["design"].pop("found")) == 18
    assert expected["design"].pop("found") == []
    assert found["design"].pop("budget") == "1runs"
    assert expected["design"].pop("budget") is None
    assert found == expected


@pytest.mark.parametrize(("words", "named"), [
    (["seed=0,1"], ["seed", "--looks"]),
    (["++seed=1"], ["seed"]),
    (["--looks", "2,3"], ["--looks", "3"]),
    (["--looks", "5,5"], ["--looks", "5,5"]),
    (["--looks", "8,5"], ["--looks", "8,5"]),
    (["--looks", "3,4.5"], ["--looks", "3,4.5"]),
    (["--looks", "3,"], ["--looks"]),
    (["--looks", "-3,5"], ["--looks"]),
    (["--max-seeds", "10"], ["--max-seeds", "--looks"]),
    (["--budget", "0h"], ["--budget", "8h"]),
    (["--budget", "8"], ["--budget", "8h"]),
    (["--budget=-1h"], ["--budget", "8h"]),
    (["--budget", "nanh"], ["--budget", "8h"]),
    (["--budget", "1e3runs"], ["--budget", "40runs"]),
    (["--rope", "-1"], ["--rope"]),
    (["--rope", "nan"], ["--rope"]),
    (["--rope", "inf"], ["--rope"]),
    (["--rope", "wide"], ["--rope"]),
    (["--metric", "dyce"], ["dyce", "dice"]),
    (["--metric", "seconds"], ["seconds", "dice"]),
    (["--reference", "activation=gelu"], ["gelu"]),
    (["--reference", "sigmoid"], ["--reference"]),
    (["--out", "page.html"], ["page.html"]),
    (["--out", "page.html/report.html"], ["page.html", "-o"]),
    (["--out", "."], ["report.html"]),
    (["loss=nothing"], ["nothing"]),
    (["dataset.number=3"], ["split.fractions"]),
])  # fmt: skip
def test_a_question_that_cannot_be_asked(
    training: Training, words: list[str], named: list[str], capsys: Captured
) -> None:
    """Refused in one line, before anything is written."""
    Path("page.html").write_text("mine")
    assert decide(*words) == 2
    error = capsys.readouterr().err
    print(error)
    assert mentions(error.splitlines()[-1], *named)
    assert sum(line.startswith("segexp") for line in error.splitlines()) == 1
    assert not training.begun
    assert [path.name for path in Path().iterdir()] == ["page.html"]


@pytest.mark.parametrize(("arms", "named"), [
    (["activation=arctan"], "one arm"),
    (["activation=sigmoid"], "one arm"),
    (["activation=arctan,softsign"], "--reference"),
    (["activation=arctan", "optimizer.lr=0.001,0.01"], "--reference"),
])  # fmt: skip
def test_nothing_to_compare(training: Training, arms: list[str], named: str, capsys: Captured) -> None:
    assert cli.main(["decide", *TINY, *arms, *QUESTION]) == 2
    assert mentions(capsys.readouterr().err, named)
    assert not list(Path().iterdir())


def test_max_seeds_cuts_the_looks(training: Training) -> None:
    assert cli.main(["decide", *TINY, "activation=sigmoid,arctan", *QUESTION[:-2], "--max-seeds", "7"]) == 0
    assert recorded()["design"]["looks"] == [5, 7]
    assert training.seeds == {"sigmoid": 5, "arctan": 5}


# Files that were changed


def entries_of(study: Path) -> Any:
    return json.loads((study / FILE).read_text())


def put(study: Path, content: Any) -> None:
    (study / FILE).write_text(content if isinstance(content, str) else json.dumps(content, indent=1))


def edited(change: Callable[[Any], Any]) -> Callable[[Path], None]:
    """Change the entries of decision.json."""

    def apply(study: Path) -> None:
        entries = entries_of(study)
        new = change(entries)
        put(study, entries if new is None else new)

    return apply


def resealed(change: Callable[[Any], Any]) -> Callable[[Path], None]:
    """As `edited`, with checksums that fit."""

    def apply(study: Path) -> None:
        entries = [{key: value for key, value in one.items() if key != "sha256"} for one in entries_of(study)]
        change(entries)
        put(study, [{**one, "sha256": sha} for one, sha in zip(entries, checksums(entries), strict=True)])

    return apply


CHANGED: Mapping[str, Callable[[Path], Any]] = {
    "a p": edited(lambda all: all[1]["comparisons"][0].update(p=0.001)),
    "a verdict": edited(lambda all: all[3]["comparisons"][1].update(verdict="worse")),
    "a run more": edited(lambda all: all[2]["runs"].append("deadbeef")),
    "a share": edited(lambda all: all[0]["share"].reverse()),
    "the rope": edited(lambda all: all[0].update(rope=0.5)),
    "a key more": edited(lambda all: all[2].update(note="")),
    "NaN": edited(lambda all: all[1].update(hours=math.nan)),
    "no checksum": edited(lambda all: [all[0], {**all[1], "sha256": None}, *all[2:]]),
    "no first look": edited(lambda all: [*all[:1], *all[2:]]),
    "no middle look": edited(lambda all: [*all[:2], *all[3:]]),
    "no last look": edited(lambda all: all[:-1]),
    "no look": edited(lambda all: all[:1]),
    "no design": edited(lambda all: all[1:]),
    "a look twice": edited(lambda all: [*all, all[-1]]),
    "reordered": edited(lambda all: [all[0], all[2], all[1], all[3]]),
    "a look without share": resealed(lambda all: all[1].pop("share")),
    "a design without arms": resealed(lambda all: all[0].pop("arms")),
    "not a list": edited(lambda all: all[0]),
    "a list of texts": edited(lambda all: [json.dumps(one) for one in all]),
    "an empty list": lambda study: put(study, []),
    "truncated": lambda study: put(study, (study / FILE).read_text()[:-40]),
    "deep": lambda study: put(study, "[" * 5000 + "]" * 5000),
    "not text": lambda study: (study / FILE).write_bytes(b"\xff\xfe" * 10),
    "removed": lambda study: (study / FILE).unlink(),
    "large": lambda study: os.truncate(study / FILE, MOST_BYTES + 1),
    "a folder": lambda study: (study / FILE).rename(study / "moved").with_name(FILE).mkdir(),
}


@pytest.mark.parametrize("change", CHANGED)
@pytest.mark.usefixtures("training")
def test_a_changed_record_is_no_decision(undisturbed: Path, change: str) -> None:
    shutil.copytree(undisturbed, STUDY, ignore=shutil.ignore_patterns("lesions-*"))
    read_decision(STUDY)
    CHANGED[change](STUDY)
    with pytest.raises(UsageError) as error:
        read_decision(STUDY)
    assert_one_line(str(error.value))


@pytest.mark.parametrize("change", ["a p", "no last look", "removed", "truncated"])
def test_what_reads_a_study_refuses_a_changed_record(
    training: Training, undisturbed: Path, change: str, capsys: Captured
) -> None:
    """Status reports it."""
    shutil.copytree(undisturbed, STUDY)
    CHANGED[change](STUDY)
    assert decide() == 2
    assert_one_line(capsys.readouterr().err)
    assert not training.begun
    for words in (["compare", str(STUDY)], ["report", str(STUDY)], ["collect", str(STUDY), "-o", "tables"]):
        assert cli.main(words) == 2
        assert_one_line(capsys.readouterr().err)
    assert cli.main(["status", str(STUDY)]) == 0
    assert mentions(capsys.readouterr().out, STUDY / FILE)


def assert_one_line(error: str) -> None:
    lines = error.splitlines()
    assert len(lines) == 1
    assert mentions(lines[0], STUDY / FILE)


# Commands that read the study


def compared(capsys: Captured, *words: str) -> tuple[dict[str, Any], str]:
    """What `segexp compare --json` prints: candidate -> comparison; and all warnings."""
    capsys.readouterr()
    assert cli.main(["compare", *words, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    (block,) = result["blocks"]
    return {c["candidate"]: c for c in block["comparisons"]}, " ".join(result["warnings"])


@pytest.mark.usefixtures("training")
def test_compare_repeats_the_last_look(undisturbed: Path, capsys: Captured) -> None:
    found, warnings = compared(capsys, str(undisturbed))
    assert same(found, of_decision(undisturbed))
    assert not (undisturbed / ".compared.json").exists()
    assert "added since" not in warnings
    # p / share, and an interval of level 1 - share x 5 %, of the look at which each stopped.
    for name, share, K in (("arctan", 1 / 9, 3), ("normal_cdf", 5 / 9, 6)):
        one = found[name]["overall"]
        t = abs(one["mean"]) / one["se"]
        assert one["share"] == pytest.approx(share)
        assert found[name]["n_seeds"] == K
        assert one["p"] == pytest.approx(min(2 * student.sf(t, one["df"]) / share, 1), rel=1e-6)
        assert one["high"] - one["mean"] == pytest.approx(student.isf(share * 0.05 / 2, one["df"]) * one["se"])
    # Another score is adjusted in the same way.
    iou, _ = compared(capsys, str(undisturbed), "--metric", "iou")
    assert {name: one["overall"]["share"] for name, one in iou.items()} == {
        name: one["overall"]["share"] for name, one in found.items()
    }
    assert iou["normal_cdf"]["overall"]["low"] != found["normal_cdf"]["overall"]["low"]


@pytest.mark.usefixtures("training")
def test_claims_about_a_decided_study_are_refused(undisturbed: Path, capsys: Captured) -> None:
    assert cli.main(["compare", str(undisturbed), "--claims", "nieradzik2021"]) == 2
    assert mentions(capsys.readouterr().err, "--claims", undisturbed.name)


@pytest.mark.usefixtures("training")
def test_collected_tables_of_a_decision(undisturbed: Path, capsys: Captured) -> None:
    assert cli.main(["collect", str(undisturbed), "-o", "tables"]) == 0
    assert same(compared(capsys, "tables")[0], of_decision(undisturbed))
    assert cli.main(["compare", "tables", "--claims", "nieradzik2021"]) == 2
    # Together with the directories they are the same runs.
    found, _ = compared(capsys, "tables", str(undisturbed))
    assert same(found, of_decision(undisturbed))


def test_runs_that_no_look_has_used_are_left_out(training: Training, undisturbed: Path, capsys: Captured) -> None:
    training.before = interrupt(16, SystemExit)
    stopped(SystemExit)  # one of four runs of the last look is finished
    found, warnings = compared(capsys, str(STUDY))
    assert same(found, of_decision())
    assert mentions(warnings, "1 finished run", "left out")
    assert cli.main(["collect", str(STUDY), "-o", "tables"]) == 0
    found, warnings = compared(capsys, "tables")
    assert same(found, of_decision())
    assert mentions(warnings, "1 finished run", "left out")
    assert len(recorded()["looks"]) == 2
    training.before = lambda number: None
    assert decide() == 0, "to have compared meanwhile changes nothing"
    assert recorded() == recorded(undisturbed)


def test_nothing_is_compared_before_the_first_look(training: Training, capsys: Captured) -> None:
    training.before = interrupt(11, SystemExit)
    stopped(SystemExit)
    for words in (["compare", str(STUDY)], ["report", str(STUDY)]):
        assert cli.main(words) == 2
        assert mentions(capsys.readouterr().err, "10 finished runs", "no look", "segexp decide")
    training.before = lambda number: None
    assert decide() == 0


def test_beside_a_study_with_a_fixed_number_of_seeds(training: Training, undisturbed: Path, capsys: Captured) -> None:
    """The other study is no part of the decision; runs of both are compared as the looks say, whichever is named first,
    also where one holds copies of the other's runs."""
    fixed = STUDY.with_name("fixed")
    words = ["study.name=fixed" if word == "study.name=question" else word for word in QUESTION[:-2]]
    with hydra_session() as extra:
        for job in plan_of([*TINY, ARMS, *words, "seed=range(4)"], extra).jobs:
            made(job, scores_of(job.spec.config))
    shutil.copytree(undisturbed, STUDY)
    alone, _ = compared(capsys, str(fixed))
    assert alone["arctan"]["overall"]["share"] == 1
    for paths in ([fixed, STUDY], [STUDY, fixed], [STUDY.parent]):
        found, warnings = compared(capsys, *map(str, paths))
        assert "segexp decide" in warnings
        assert found["normal_cdf"]["overall"]["share"] == pytest.approx(5 / 9)
        assert found["arctan"]["overall"]["share"] == pytest.approx(1 / 9)


@pytest.mark.slow
def test_nothing_that_is_printed_ignores_looks(training: Training, capsys: Captured) -> None:
    """No interval of one look, no p without its share: of seeds won, of ranks, of interactions, over data sets."""

    def score(config: Config) -> np.ndarray | str:
        return np.asarray(scores_of(config)) + 0.001 * (config.loss.name == "bce") * (config.seed + 1)

    training.score = score
    words = ["loss=dice,bce", "dataset.seed=0,1,2"]
    assert cli.main(["decide", *TINY, "activation=sigmoid,arctan,normal_cdf", *words, *QUESTION[1:]]) == 0
    capsys.readouterr()
    result = compare([STUDY])
    made = [c for block in result.blocks for c in block.comparisons]
    assert {c.deciding.share for c in made} <= set(shares(3))
    assert all(math.isnan(value) for c in made for value in (c.wins_low, c.wins_high, *c.pivot.values()))
    assert all(math.isnan(c.minimum_detectable) for c in made)
    assert [one.interval.share for block in result.blocks for f in block.factorials for one in f.interactions]
    for over in result.over_datasets:
        assert not math.isnan(over.interval.mean)
        assert all(math.isnan(end) for end in (over.interval.low, over.interval.high, *over.prediction, over.p_holm))
    assert "cross" not in result.headline, "the headline has no result where there is no test"
    assert cli.main(["compare", str(STUDY), "--questions", "ranking"]) == 0
    out = capsys.readouterr().out
    assert "95 % interval" not in out.partition("Across data sets")[0]
    assert not mentions(out, "detectable")
    assert mentions(out, "without looks")
    assert mentions(out, "No ranking", "segexp decide")
