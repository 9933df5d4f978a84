"""`segexp decide` without training: runs are made up, each with a score that depends on its arm and its seed."""

import dataclasses
import functools
import hashlib
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_scores import make_run
from tiny import TINY

from segexp import cli
from segexp.config import Config
from segexp.records import flatten, read_run
from segexp.records.decision import read_decision
from segexp.records.runs import FINAL
from segexp.sweep import SweepReport, SweptRun
from segexp.sweep import decide as deciding
from segexp.sweep.plan import Job, Plan, base_of, make_plan

Patch = pytest.MonkeyPatch

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


def replaced(patch: Patch, folder: Path) -> Training:
    """Nothing is trained, in this folder; no report is drawn."""
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


def interrupt(at: int, error: type[BaseException]) -> Callable[[int], None]:
    def before(number: int) -> None:
        if number == at:
            raise error

    return before


def stopped(error: type[BaseException]) -> None:
    """A command that ends by this error."""
    if error is KeyboardInterrupt:
        assert decide() == 130
    else:
        with pytest.raises(error):
            decide()


def decided_in(folder: Path) -> Path:
    """The study after an undisturbed decision."""
    with pytest.MonkeyPatch.context() as patch:
        replaced(patch, folder)
        assert decide() == 0
    return folder / STUDY


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
