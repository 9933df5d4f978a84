"""`segexp decide`: which arms get more seeds, what is recorded and refused, and that an interruption changes nothing.

Runs are not trained here but made up, each with a score that depends on its arm and its seed.
"""

import dataclasses
import functools
import hashlib
import json
import math
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from made_scores import make_run
from messages import mentions
from scipy.stats import t as student
from tiny import TINY

from segexp import cli
from segexp.commands import decide as command
from segexp.compare.sequential import shares, shares_within
from segexp.compare.verdict import compare
from segexp.config import Config
from segexp.config.compose import hydra_session
from segexp.errors import UsageError
from segexp.records import flatten, read_run
from segexp.records.decision import FILE, Decision, read_decision, write_decision
from segexp.records.files import MOST_BYTES
from segexp.records.runs import FINAL
from segexp.sweep import SweepReport, SweptRun
from segexp.sweep import decide as deciding
from segexp.sweep.plan import Job, Plan, base_of, make_plan

Captured = pytest.CaptureFixture[str]
Patch = pytest.MonkeyPatch

slow = pytest.mark.slow

N_IMAGES = 40
LOOKS = (3, 4, 6)
STUDY = Path("outputs/question")
QUESTION = ("loss=dice", "study.name=question", "outputs=outputs", "--looks", ",".join(map(str, LOOKS)))
ARMS = "activation=sigmoid,arctan,normal_cdf,softsign"

EFFECTS: Mapping[str, tuple[float, float]] = {
    "sigmoid": (0, 0.0002),
    "arctan": (0.05, 0.0002),  # clearly better
    "normal_cdf": (0.02, 0.008),  # better, which takes some seeds
    "softsign": (0, 0.2),  # seeds differ so much that no look can decide
}
"""Mean difference to the reference, and the standard deviation of seeds, of each activation."""


def seeded(*what: object) -> np.random.Generator:
    return np.random.default_rng(int(hashlib.sha256(repr(what).encode()).hexdigest()[:8], 16))


def scores_of(config: Config) -> np.ndarray | str:
    """Dice of the test images of a run."""
    effect, sd = EFFECTS[config.activation.name]
    images = 0.5 + 0.05 * seeded(config.dataset.name).standard_normal(N_IMAGES)
    # Seeds as far apart as their standard deviation says, with no luck in it.
    of_seed = sd * (-1) ** config.seed * (1 + config.seed / 10)
    return images + effect + of_seed + 0.001 * seeded(config.activation.name, config.seed).standard_normal(N_IMAGES)


@dataclasses.dataclass
class Training:
    """What is trained in place of `carry_out`. score: Dice of the images of a run, or the state in which it ends;
    before: is called with the number of each run before it begins; changes: keys of each run.json."""

    score: Callable[[Config], np.ndarray | str] = scores_of
    before: Callable[[int], None] = lambda number: None
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    batches: list[list[str]] = dataclasses.field(default_factory=list)
    begun: int = 0

    def carry_out(self, plan: Plan, base: object, extra: object, *, score: str) -> SweepReport:
        assert score == "val_dice", "test scores are not shown before a look"
        self.batches.append([])
        runs = [SweptRun(job.label, job.run_dir, self.train(job), dice=0.98765) for job in plan.jobs]
        return SweepReport(plan, runs)

    def train(self, job: Job) -> str:
        if (job.run_dir / "run.json").exists() and (status := read_run(job.run_dir)["status"]) in FINAL:
            return str(status)
        self.begun += 1
        self.before(self.begun)
        self.batches[-1].append(job.label)
        return made(job, self.score(job.spec.config), **self.changes)

    @property
    def seeds(self) -> dict[str, int]:
        """How many runs of each arm were trained."""
        arms = (re.sub(r"activation=|(^|\s+)seed=\d+", "", label) for batch in self.batches for label in batch)
        return Counter(arms)


def made(job: Job, score: np.ndarray | str, **changes: Any) -> str:
    """Write a run's directory; returns its state."""
    spec, status = job.spec, score if isinstance(score, str) else "done"
    changes |= {"identity": spec.identity, "dataset_sha": spec.dataset_sha}
    if spec.config.split.per_seed:
        changes["split_sha"] = f"split{spec.config.seed}"
    names = [f"{spec.config.split.seed}-{n:03}" for n in range(N_IMAGES)]
    where = job.run_dir.parent / "made"
    found = make_run(
        where,
        spec.run_id,
        None if isinstance(score, str) else score,
        flatten(spec.config),
        spec.config.seed,
        status,
        names=names,
        **changes,
    )
    if job.run_dir.exists():
        (job.run_dir / "run.json").unlink()
        job.run_dir.rmdir()
    found.rename(job.run_dir)
    where.rmdir()
    return status


base_once = functools.cache(base_of)


@functools.cache
def first_seed(overrides: tuple[str, ...], extra: tuple[str, ...]) -> Plan:
    """To compose runs takes longer than all else here."""
    return make_plan([*overrides, "seed=0"], extra)


def plan_of(overrides: Sequence[str], extra: Sequence[str]) -> Plan:
    """A plan with seeds, in the folder and the study of a test; only the runs of the first seed are composed."""
    *others, last = overrides
    (study,) = (word.removeprefix("study.name=") for word in others if word.startswith("study.name="))
    plan = first_seed(tuple(word for word in others if not word.startswith("study.name=")), tuple(extra))
    jobs = []
    for seed in range(int(last.removeprefix("seed=range(").removesuffix(")"))):
        for job in plan.jobs:
            config = dataclasses.replace(job.spec.config, seed=seed)
            identity = hashlib.sha256(f"{job.spec.identity} {seed}".encode()).hexdigest()
            name = job.run_dir.name.replace(f"s0-{job.spec.run_id}", f"s{seed}-{identity[:8]}")
            place = Path.cwd() / "outputs" / study / name
            spec = dataclasses.replace(job.spec, config=config, identity=identity, run_dir=place)
            words = tuple(f"seed={seed}" if word == "seed=0" else word for word in job.overrides)
            jobs.append(Job(f"{job.label} seed={seed}", words, spec))
    return dataclasses.replace(plan, jobs=jobs)


@pytest.fixture
def training(monkeypatch: Patch, tmp_path: Path) -> Training:
    """In a folder of its own; no report is drawn."""
    return replaced(monkeypatch, tmp_path)


def replaced(patch: Patch, folder: Path) -> Training:
    training = Training()
    patch.chdir(folder)
    patch.setattr(deciding, "make_plan", plan_of)
    patch.setattr("segexp.sweep.plan.base_of", lambda words, extra: base_once(tuple(words), tuple(extra)))
    patch.setattr(deciding, "carry_out", training.carry_out)
    patch.setattr("segexp.report.page.contents_of", lambda result: result)
    patch.setattr("segexp.report.page.write_page", lambda path, contents: (path, contents))
    return training


def decide(*words: str, arms: str = ARMS) -> int:
    """`segexp decide` with four arms, three looks and a study of its own; returns the exit code."""
    return cli.main(["decide", *TINY, arms, *QUESTION, *words])


def recorded(study: Path = STUDY) -> dict[str, Any]:
    """What decision.json holds, but for dates and hours."""
    known = read_decision(study)
    assert known is not None
    entries = [dict(entry) for entry in (known.design, *known.looks)]
    for entry in entries:
        for name in ("created", "date", "hours", "command"):
            entry.pop(name, None)
    return {"design": entries[0], "looks": entries[1:]}


def verdicts_at(look: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """candidate -> (verdict, state)."""
    return {c["candidate"]: (c["verdict"], c["state"]) for c in look["comparisons"]}


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
    assert mentions(out, "18 used", "6 saved of 24")
    sentences = {name: line for line in out.splitlines() for name in EFFECTS if line.startswith(name) and "(" in line}
    assert mentions(sentences["arctan"], "better than sigmoid", "3 seeds")
    assert mentions(sentences["normal_cdf"], "better than sigmoid", "6 seeds")
    assert mentions(sentences["softsign"], "not decided", "3 seeds")


def test_a_repeated_command_trains_nothing_and_says_the_same(training: Training, capsys: Captured) -> None:
    def end() -> str:
        return capsys.readouterr().out.partition("\n\n")[2]

    decide()
    said, before, trained = end(), (STUDY / FILE).read_bytes(), training.begun
    assert decide() == 0
    assert training.begun == trained
    assert end() == said
    assert mentions(said, "arctan is better")
    assert (STUDY / FILE).read_bytes() == before


# Interruptions


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study after an undisturbed decision."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        replaced(patch, folder)
        assert decide() == 0
    return folder / STUDY


def interrupt(at: int, error: type[BaseException]) -> Callable[[int], None]:
    def before(number: int) -> None:
        if number == at:
            raise error

    return before


@pytest.mark.parametrize(("at", "error"), [
    (1, KeyboardInterrupt), (7, SystemExit), pytest.param(13, SystemExit, marks=slow), (16, KeyboardInterrupt),
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


def stopped(error: type[BaseException]) -> None:
    """A command that ends by this error."""
    if error is KeyboardInterrupt:
        assert decide() == 130
    else:
        with pytest.raises(error):
            decide()


@pytest.mark.parametrize(("number", "written"), [(1, False), pytest.param(2, True, marks=slow), (3, True)])
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


# Commands that read the study


def compared(capsys: Captured, *words: str) -> tuple[dict[str, Any], str]:
    """What `segexp compare --json` prints: candidate -> comparison; and all warnings."""
    capsys.readouterr()
    assert cli.main(["compare", *words, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    (block,) = result["blocks"]
    return {c["candidate"]: c for c in block["comparisons"]}, " ".join(result["warnings"])


def of_decision(study: Path = STUDY) -> dict[str, Any]:
    return {c["candidate"]: c for c in recorded(study)["looks"][-1]["comparisons"]}


def same(found: Mapping[str, Any], decided: Mapping[str, Any]) -> bool:
    """Whether comparisons have the intervals, p and verdicts of the last look."""
    assert found.keys() == decided.keys()
    return all(
        [found[name]["overall"][key] for key in ("mean", "low", "high", "p")]
        == [one[key] for key in ("mean", "low", "high", "p")]
        and (found[name]["p_holm"], found[name]["verdict"]) == (one["p_holm"], one["verdict"])
        for name, one in decided.items()
    )


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
        found, _ = compared(capsys, *map(str, paths))
        assert found["normal_cdf"]["overall"]["share"] == pytest.approx(5 / 9)
        assert found["arctan"]["overall"]["share"] == pytest.approx(1 / 9)


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
    assert [one.interval.share for block in result.blocks for f in block.factorials for one in f.interactions]
    for over in result.over_datasets:
        assert not math.isnan(over.interval.mean)
        assert all(math.isnan(end) for end in (over.interval.low, over.interval.high, *over.prediction, over.p_holm))
    assert "cross" not in result.headline, "the headline has no result where there is no test"
    assert cli.main(["compare", str(STUDY), "--questions", "ranking"]) == 0
    out = capsys.readouterr().out
    assert "95 % interval" not in out.partition("Across data sets")[0]
    assert mentions(out, "No ranking", "segexp decide")


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


@pytest.mark.parametrize(("budget", "trained"), [("3runs", 0), ("11runs", 0), ("11gpuh", 8)])
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
        assert mentions(capsys.readouterr().out, "failed", "seed=4", "17 used")
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
