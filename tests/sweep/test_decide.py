"""`segexp decide`: which arms get more seeds, what is recorded, and that an interruption changes nothing."""

import dataclasses
import math
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from decided import (
    EFFECTS,
    STUDY,
    Training,
    decide,
    decided_in,
    interrupt,
    of_decision,
    recorded,
    replaced,
    same,
    scores_of,
    stopped,
    verdicts_at,
)
from messages import mentions

from segexp.commands import decide as command
from segexp.compare.sequential import Standing, shares, shares_within
from segexp.compare.verdict import compare
from segexp.config import Config
from segexp.records import flatten
from segexp.records.decision import FILE, Decision, read_decision, write_decision
from segexp.sweep import decide as deciding

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


# Looks

UNDECIDED = {"arctan": ("better", "decided"), "softsign": ("inconclusive", "seeds")}
"""What the first look finds of the two candidates that stop there."""


def test_arms_that_are_decided_or_hopeless_get_no_more_seeds(
    training: Training, capsys: Captured, monkeypatch: Patch
) -> None:
    shown: list[int] = []

    def tell(found: deciding.Found, decision: Decision) -> None:
        on_disk = read_decision(STUDY)
        assert on_disk is not None
        assert (on_disk.design, on_disk.looks) == (decision.design, decision.looks), "recorded before it is shown"
        shown.append(len(found.open_arms))

    monkeypatch.setattr(command, "_print_look", tell)
    assert decide() == 0, "also where a candidate stays undecided"
    assert shown == [2, 2, 0]
    assert training.seeds == {"sigmoid": 6, "normal_cdf": 6, "arctan": 3, "softsign": 3}
    assert [len(batch) for batch in training.batches] == [12, 2, 4]
    made = recorded()
    design, looks = made["design"], made["looks"]
    assert [look["look"] for look in looks] == [1, 2, 3]
    assert [len(look["runs"]) for look in looks] == [12, 2, 4]
    assert len({run for look in looks for run in look["runs"]}) == 18
    for name, shared in (("share", shares), ("share_within", shares_within)):
        assert design[name] == list(shared(3)) == [look[name] for look in looks]
        assert math.fsum(design[name]) == pytest.approx(1, abs=1e-12)
    assert [verdicts_at(look) for look in looks] == [
        UNDECIDED | {"normal_cdf": ("inconclusive", "open")},
        UNDECIDED | {"normal_cdf": ("inconclusive", "open")},
        UNDECIDED | {"normal_cdf": ("better", "decided")},
    ]
    assert {c["candidate"]: c["n"] for c in looks[-1]["comparisons"]} == {"arctan": 3, "softsign": 3, "normal_cdf": 6}
    assert design["comparisons"] == 3
    out = capsys.readouterr().out
    assert mentions(out, "18 spent", "6 saved", "undecided", "study.name")
    sentences = {name: line for line in out.splitlines() for name in EFFECTS if line.startswith(name) and "(" in line}
    assert mentions(sentences["arctan"], "better than sigmoid", "3 seeds")
    assert mentions(sentences["normal_cdf"], "better than sigmoid", "6 seeds")
    assert mentions(sentences["softsign"], "not decided", "3 seeds")


def test_a_repeated_command_trains_nothing_and_says_the_same(training: Training, capsys: Captured) -> None:
    def end() -> str:
        looks, _, said = capsys.readouterr().out.partition("\n\n")
        assert mentions(looks.splitlines()[-1], "look 3 of 3", "better: arctan, normal_cdf")
        return said

    decide()
    said, before, trained = end(), (STUDY / FILE).read_bytes(), training.begun
    assert decide() == 0
    assert training.begun == trained
    assert end() == said
    assert mentions(said, "arctan is better")
    assert (STUDY / FILE).read_bytes() == before


# Interruptions


@pytest.mark.parametrize(("at", "error"), [
    (7, SystemExit),
    *(pytest.param(*at, marks=slow) for at in ((1, KeyboardInterrupt), (13, SystemExit), (16, KeyboardInterrupt))),
])  # fmt: skip
def test_training_that_is_interrupted_changes_nothing(
    training: Training, undisturbed: Path, at: int, error: type[BaseException]
) -> None:
    """Before the first run, and in each batch, at its beginning and in its middle."""
    training.before = interrupt(at, error)
    stopped(error)
    known = read_decision(STUDY)
    assert known is not None
    assert len(known.looks) == (at > 12) + (at > 14), "no look of seeds that are not all there"
    training.before = lambda number: None
    assert decide() == 0
    assert training.begun == 19, "each run was trained once; one was begun twice"
    assert recorded() == recorded(undisturbed)


@pytest.mark.parametrize(
    ("number", "written"), [pytest.param(1, False, marks=slow), pytest.param(2, True, marks=slow), (3, True)]
)
def test_a_look_that_is_interrupted_changes_nothing(
    training: Training, undisturbed: Path, monkeypatch: Patch, number: int, written: bool
) -> None:
    """Between training and the record of a look, and between its record and what is shown of it."""

    def interrupted(decision: Decision) -> None:
        if written or len(decision.looks) != number:
            write_decision(decision)
        if len(decision.looks) == number:
            raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(deciding, "write_decision", interrupted)
        stopped(SystemExit)
    assert decide() == 0
    assert training.begun == 18
    assert recorded() == recorded(undisturbed)


# Budgets


def spend(training: Training, clock: list[float]) -> None:
    """Every run takes an hour."""
    training.before = lambda number: clock.append(3600.0 * number)
    training.changes = {"seconds": 3600.0}


@pytest.mark.parametrize(("budget", "runs", "seeds"), [
    pytest.param("16runs", [12, 2, 2], 5, marks=slow),  # one of two seeds of the last look
    ("16gpuh", [12, 2, 2], 5),
    pytest.param("16h", [12, 2, 2], 5, marks=slow),
    ("15.9h", [12, 2], 4),
])  # fmt: skip
def test_a_budget_ends_with_the_last_look(
    training: Training, monkeypatch: Patch, budget: str, runs: list[int], seeds: int
) -> None:
    """Taken with the seeds that are there, at its share; the first runs cost what is not known yet."""
    clock = [0.0]
    spend(training, clock)
    monkeypatch.setattr(deciding, "time", SimpleNamespace(monotonic=lambda: clock[-1]))
    assert decide("--budget", budget) == 0
    looks = recorded()["looks"]
    assert [look["look"] for look in looks] == [1, 2, 3]
    assert training.begun == sum(runs)
    assert of_decision()["normal_cdf"]["n"] == seeds
    cells = compare([STUDY]).blocks[0].comparisons
    (share,) = (c.deciding.share for c in cells if c.candidate == "normal_cdf")
    assert share == pytest.approx(5 / 9)
    (share,) = (c.deciding.share for c in cells if c.candidate == "arctan")
    assert share == pytest.approx(1 / 9)
    begun = training.begun
    assert decide("--budget", budget) == 0, "the last look is the last"
    assert training.begun == begun


@pytest.mark.parametrize(("budget", "trained"), [pytest.param("3runs", 0, marks=slow), ("11runs", 0), ("11gpuh", 8)])
def test_a_budget_without_a_test(
    training: Training, undisturbed: Path, budget: str, trained: int, capsys: Captured
) -> None:
    """No look is wasted on it, nor a run where runs are counted; what was trained counts when more is given."""
    spend(training, [0.0])
    assert decide("--budget", budget) == 2
    assert mentions(capsys.readouterr().err, "--budget", "3 seeds")
    assert training.begun == trained
    assert not recorded()["looks"]
    assert decide("--budget", "18runs") == 0
    found = recorded()
    assert found["design"].pop("budget") == "18runs"
    assert found == without_budget(undisturbed)


def test_a_budget_counts_what_was_spent_before(training: Training, monkeypatch: Patch) -> None:
    for at in (7, 14, 16):
        training.before = interrupt(at, SystemExit)
        with pytest.raises(SystemExit):
            decide("--budget", "16runs")
    training.before = lambda number: None
    assert decide("--budget", "16runs") == 0
    assert of_decision()["normal_cdf"]["n"] == 5
    assert len({run for look in recorded()["looks"] for run in look["runs"]}) == 16


def without_budget(study: Path) -> dict[str, Any]:
    made = recorded(study)
    assert made["design"].pop("budget") is None
    return made


@pytest.mark.slow
def test_runs_without_a_duration_cost_nothing_known(training: Training) -> None:
    training.changes = {"seconds": 0.0}
    assert decide("--budget", "1gpuh") == 0
    assert training.begun == 18


# Runs without scores


def ends(when: Callable[[Config], bool], state: str, times: int = 99) -> Callable[[Config], np.ndarray | str]:
    """Runs that end in another state, each so many times."""
    tried = Counter[tuple[str, int]]()

    def score(config: Config) -> np.ndarray | str:
        run = (config.activation.name, config.seed)
        tried[run] += 1
        return state if when(config) and tried[run] <= times else scores_of(config)

    return score


def a_run(activation: str, seed: int) -> Callable[[Config], bool]:
    return lambda config: (config.activation.name, config.seed) == (activation, seed)


def test_a_run_that_fails_once_is_repeated(training: Training, undisturbed: Path) -> None:
    training.score = ends(a_run("normal_cdf", 3), "failed", 1)
    assert decide() == 0
    assert training.begun == 19
    assert recorded() == recorded(undisturbed)


def test_a_run_that_fails_twice_is_left_out(training: Training, capsys: Captured) -> None:
    """The exit code says so, also when the command is repeated."""
    training.score = ends(a_run("normal_cdf", 4), "failed")
    for _ in range(2):
        assert decide() == 1
        assert mentions(capsys.readouterr().out, "failed", "seed=4", "17 spent")
        assert training.seeds["normal_cdf"] == 7
    assert of_decision()["normal_cdf"]["n"] == 5
    assert [len(look["failed"]) for look in recorded()["looks"]] == [0, 0, 1]


def test_a_run_that_failed_is_tried_again_at_the_next_look(training: Training, capsys: Captured) -> None:
    """And then it is no failure."""
    training.score = ends(a_run("normal_cdf", 3), "failed", 2)
    assert decide() == 0
    assert "failed twice" not in capsys.readouterr().out
    first, second, third = recorded()["looks"]
    assert [len(look["runs"]) for look in (first, second, third)] == [12, 1, 5]
    assert of_decision()["normal_cdf"]["n"] == 6


def test_no_test_score_is_shown_before_a_look(training: Training, capsys: Captured) -> None:
    """Not where training was stopped either, nor is a command named that shows it."""
    training.score = ends(a_run("normal_cdf", 2), "interrupted")
    assert decide() == 130
    out = capsys.readouterr().out
    assert mentions(out, "1 interrupted", "repeat the command")
    assert "0.98" not in out
    assert "segexp resume" not in out


def test_no_look_where_most_runs_fail(training: Training, undisturbed: Path, capsys: Captured) -> None:
    training.score = ends(lambda config: config.activation.name != "sigmoid", "failed")
    assert decide() == 1
    assert mentions(capsys.readouterr().out, "9 failed", "no look")
    assert recorded()["looks"] == []
    training.score = scores_of
    assert decide() == 0, "the same command, once the cause is removed"
    assert recorded() == recorded(undisturbed)


def test_diverged_runs_are_final(training: Training) -> None:
    training.score = ends(a_run("normal_cdf", 3), "diverged")
    assert decide() == 0
    assert training.begun == 18
    assert of_decision()["normal_cdf"]["n"] == 5
    # An arm that has no two seeds with scores cannot be tested and stops.
    training.score = ends(lambda config: config.activation.name == "arctan" and config.seed > 0, "diverged")
    shutil.rmtree(STUDY)
    assert decide() == 0
    assert [verdicts_at(look)["arctan"] for look in recorded()["looks"]] == [("no test", "untested")] * 3
    assert training.seeds["arctan"] == 6


@pytest.mark.slow
def test_a_look_without_new_scores_has_its_share(training: Training) -> None:
    training.score = ends(lambda config: config.seed == 3, "diverged")
    assert decide() == 0
    first, second, _ = recorded()["looks"]
    assert set(second["runs"]) <= set(first["runs"])
    p_1, p_2 = ({c["candidate"]: c["p"] for c in look["comparisons"]}["normal_cdf"] for look in (first, second))
    assert p_2 == pytest.approx(p_1 * (1 / 9) / (3 / 9))
    assert of_decision()["normal_cdf"]["n"] == 5


def test_a_last_look_without_new_runs_leaves_what_has_stopped(training: Training) -> None:
    """The reference is used again, at the share of the last look; what stopped before keeps its look."""
    assert decide("--budget", "12runs") == 0
    first, last = recorded()["looks"]
    assert (last["look"], set(last["runs"]) < set(first["runs"])) == (3, True)
    stopped_at, found = ({c["candidate"]: c for c in look["comparisons"]} for look in (first, last))
    assert found["arctan"] == stopped_at["arctan"] | {"p_holm": found["arctan"]["p_holm"]}
    assert found["softsign"]["p"] == stopped_at["softsign"]["p"]
    assert found["normal_cdf"]["p"] == pytest.approx(stopped_at["normal_cdf"]["p"] * (1 / 9) / (5 / 9))
    shares_at = {c.candidate: c.deciding.share for c in compare([STUDY]).blocks[0].comparisons}
    assert shares_at == pytest.approx({"arctan": 1 / 9, "softsign": 1 / 9, "normal_cdf": 5 / 9})


# Several blocks


@pytest.mark.parametrize(
    ("key", "values"), [("dataset.seed", ("0", "1")), pytest.param("optimizer.lr", ("0.001", "0.01"), marks=slow)]
)
def test_each_block_stops_at_a_look_of_its_own(
    training: Training, capsys: Captured, key: str, values: tuple[str, str]
) -> None:
    """Conditions, or data sets; one adjustment is over all, and an arm goes on where it is open."""

    def score(config: Config) -> np.ndarray | str:
        second = str(flatten(config)[key]) == values[1]
        return np.asarray(scores_of(config)) + 0.03 * (second and config.activation.name == "normal_cdf")

    training.score = score
    assert decide(f"{key}={','.join(values)}", arms="activation=sigmoid,normal_cdf") == 0
    arms = {
        f"{arm} {key}={value}": K for value, K in zip(values, (6, 4), strict=True) for arm in ("sigmoid", "normal_cdf")
    }
    assert training.seeds == arms
    found = recorded()
    assert sorted(found["design"]["arms"].values()) == sorted(f"activation={arm}" for arm in arms)
    assert found["design"]["comparisons"] == 2
    assert [sorted((c["state"], c["n"]) for c in look["comparisons"]) for look in found["looks"]] == [
        [("open", 3), ("open", 3)], [("decided", 4), ("open", 4)], [("decided", 4), ("decided", 6)],
    ]  # fmt: skip
    last = found["looks"][-1]["comparisons"]
    ordered = sorted(c["p"] for c in last)
    assert sorted(c["p_holm"] for c in last) == pytest.approx([max(ordered[1], 2 * ordered[0])] * 2), "Holm over both"
    out = capsys.readouterr().out
    titles = [c["block"] for c in last]
    assert len(set(titles)) == 2
    assert all(out.count(title) == 2 for title in titles), "in its sentence and above its table"
    result = compare([STUDY])
    assert [(c.p_holm, str(c.verdict)) for block in result.blocks for c in block.comparisons] == [
        (c["p_holm"], c["verdict"]) for c in last
    ]
    assert all(math.isnan(found.interval.p) for found in result.over_datasets), "looks differ between data sets"


def test_looks_in_splits(training: Training, capsys: Captured) -> None:
    """Every seed draws its own split. The images of the study set a limit that more splits do not move."""
    assert decide("split.per_seed=true") == 0
    assert training.seeds == {"sigmoid": 4, "normal_cdf": 4, "arctan": 3, "softsign": 3}
    first, second = recorded()["looks"]
    assert verdicts_at(first) == {
        "arctan": ("better", "decided"), "normal_cdf": ("inconclusive", "open"), "softsign": ("inconclusive", "images"),
    }  # fmt: skip
    assert verdicts_at(second)["normal_cdf"] == ("inconclusive", "images")
    assert {c["candidate"]: c["n"] for c in second["comparisons"]} == {"arctan": 3, "normal_cdf": 4, "softsign": 3}
    sentences = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if "splits)" in line}
    assert mentions(sentences["arctan"], "better than sigmoid", "3 splits")
    assert mentions(sentences["normal_cdf"], "not decidable on these images", "4 splits")
    (block,) = compare([STUDY]).blocks
    found = {c.candidate: c for c in block.comparisons}
    assert found["arctan"].n_splits == 3
    assert found["arctan"].overall.share == pytest.approx(1 / 9)
    assert found["normal_cdf"].overall.share == pytest.approx(1 / 3)
    assert same({name: dataclasses.asdict(one) for name, one in found.items()}, of_decision())


def test_folds_are_parts_of_an_arm(capsys: Captured) -> None:
    """Two arms go on, on three folds each."""
    pair = SimpleNamespace(candidate="arctan", reference="sigmoid", n_splits=0, n_seeds=3, verdict="inconclusive")
    block = SimpleNamespace(title="lesions")
    found: Any = SimpleNamespace(
        result=SimpleNamespace(blocks=[block]), compared=[(block, pair, Standing("open", 0.5))], open_arms=range(6)
    )
    command._print_look(found, Decision(Path(), {"looks": [3, 4]}, ({"look": 1, "share": 0.25},)))
    assert mentions(capsys.readouterr().out, "2 arms go on")
