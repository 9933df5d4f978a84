"""Which runs a sweep consists of: combinations, pairs, exclusions, and every mistake told before the first run."""

import json
import re
from dataclasses import asdict
from pathlib import Path

import pytest
from tiny import TINY

from segexp.config.canonical import config_of
from segexp.config.compose import compose, compose_job, compose_raw, typed_of
from segexp.errors import UsageError
from segexp.records import flatten
from segexp.records.runs import runs_in, studies_in
from segexp.sweep.plan import Plan, keep_plan, make_plan


def planned(session: list[str], tmp_path: Path, *overrides: str) -> Plan:
    return make_plan([*TINY, f"outputs='{tmp_path}'", *overrides], session)


def labels(plan: Plan) -> list[str]:
    return [job.label for job in plan.jobs]


def test_every_combination_once(session: list[str], tmp_path: Path) -> None:
    plan = planned(session, tmp_path, "activation=sigmoid,arctan", "loss=dice,mse", "seed=range(2)")
    assert len(plan.jobs) == 8
    assert len({job.run_dir for job in plan.jobs}) == 8
    assert labels(plan)[:2] == ["activation=sigmoid loss=dice seed=0", "activation=sigmoid loss=dice seed=1"]
    assert list(tmp_path.iterdir()) == []
    # The last word on a key counts.
    assert labels(planned(session, tmp_path, "seed=0,1", "seed=2,3")) == ["seed=2", "seed=3"]
    assert len(planned(session, tmp_path, "activation=sigmoid,arctan", "seed=0,1", "seed=5").jobs) == 2


@pytest.mark.parametrize("words", [
    ["activation=arctan", "activation.slope=matched", "seed=3", "trainer.epochs=5"],
    *(pytest.param(words, marks=pytest.mark.slow) for words in (
        ["loss=sum", "loss.terms={dice: 1, ce: 0.5}", "dataset.channels=3", "split.fractions=[0.5,0.25,0.25]"],
        ["study=tail_ladder", "budget=smoke", "optimizer.lr=2e-4"],
        ["loss=bce", "hidden_activation=silu", "model=fpn", "dataset=lesions_small"],
    )),
    ["study=nieradzik2021", "dataset=lesions", "activation=softsign", "loss=mse", "optimizer=sgd"],
])  # fmt: skip
def test_what_one_run_makes_of_its_overrides_a_sweep_makes_too(words: list[str], session: list[str]) -> None:
    """A sweep composes groups once and sets values into copies."""
    whole = typed_of(compose_raw(words))
    assert asdict(typed_of(compose_job(words, session))) == asdict(compose(words, session)) == asdict(whole)


def test_a_mistake_in_a_job_is_told_as_in_a_run(session: list[str]) -> None:
    for words in (["optimizer.lr=fast"], ["optimizer.lrr=1"], ["activation.slop=matched"], ["model=unett"]):
        with pytest.raises(UsageError) as alone:
            typed_of(compose_raw(words), words)
        with pytest.raises(UsageError) as swept:
            compose_job(words, session)
        assert str(swept.value) == str(alone.value)


def test_pairs_that_do_not_fit_are_left_out(session: list[str], tmp_path: Path) -> None:
    plan = planned(session, tmp_path, "activation=identity,sigmoid", "loss=dice,mse")
    fitting = (("identity", "mse"), ("sigmoid", "dice"), ("sigmoid", "mse"))
    assert labels(plan) == [f"activation={activation} loss={loss}" for activation, loss in fitting]
    assert [left.label for left in plan.dropped] == ["activation=identity loss=dice"]
    assert "loss=dice" in plan.dropped[0].reason


def test_pairs_run_side_by_side_instead_of_all_with_all(session: list[str], tmp_path: Path) -> None:
    pairs = "sweep.pairs=[[sigmoid,mse],[arctan,dice]]"
    pair = "activation=sigmoid loss=mse", "activation=arctan loss=dice"
    assert labels(planned(session, tmp_path, pairs, "seed=0,1")) == [f"{p} seed={n}" for p in pair for n in (0, 1)]
    more = "sweep.pairs=[{activation:arctan,optimizer.lr:1e-3},{activation:sigmoid,optimizer.lr:3e-3}]"
    plan = planned(session, tmp_path, more)
    assert [flatten(job.spec.config)["optimizer.lr"] for job in plan.jobs] == [1e-3, 3e-3]
    assert all(job.spec.config.sweep.pairs is None for job in plan.jobs)


def test_the_lists_of_the_documentation_are_read(session: list[str], tmp_path: Path, repository: Path) -> None:
    text = (repository / "docs" / "sweeps.md").read_text(encoding="utf-8")
    pairs, exclude = (re.search(rf"`'(sweep\.{key}=.*?)'`", text) for key in ("pairs", "exclude"))
    assert pairs
    assert exclude
    lines = ["activation=sigmoid loss=ce", "activation=arctan loss=dice optimizer.lr=0.001"]
    assert labels(planned(session, tmp_path, pairs[1])) == lines
    plan = planned(session, tmp_path, "activation=sigmoid,arctan", "loss=bce,dice", exclude[1])
    assert "activation=arctan loss=bce" not in labels(plan)
    assert len(plan.jobs) == 3


def test_what_is_excluded_is_not_run(session: list[str], tmp_path: Path) -> None:
    rules = "sweep.exclude=[{activation:arctan,loss:bce},{seed:[1,2],activation:sigmoid}]"
    plan = planned(session, tmp_path, "activation=sigmoid,arctan", "loss=dice,ce", "seed=range(3)", rules)
    kept = {(j.spec.config.activation.name, j.spec.config.loss.name, j.spec.config.seed) for j in plan.jobs}
    assert kept == {("sigmoid", "dice", 0), ("sigmoid", "ce", 0), *(("arctan", "dice", s) for s in range(3))}
    assert len(plan.dropped) == 7
    assert plan.notes == []
    useless = planned(session, tmp_path, "seed=0,1", "sweep.exclude=[{loss:focal}]")
    assert "{loss: focal}" in useless.notes[0]


def test_duplicates_are_one_run_and_a_mistake_leaves_the_others(session: list[str], tmp_path: Path) -> None:
    plan = planned(session, tmp_path, "loss=ce,bce,dice")
    assert labels(plan) == ["loss=ce", "loss=dice"]
    assert [(left.label, left.reason) for left in plan.duplicates] == [("loss=bce", "the same run as loss=ce")]
    plan = planned(session, tmp_path, "dataset.image_size=32,33")
    assert labels(plan) == ["dataset.image_size=32"]
    assert "dataset.image_size=33" in plan.refused[0].reason


@pytest.mark.parametrize(("overrides", "named"), [
    (["seed=0,1", "hydra.launcher.n_jobs=1,2"], ["hydra.launcher.n_jobs"]),
    (["tuned=a.yaml,b.yaml"], ["tuned=a.yaml,b.yaml"]),
    (["sweep.pairs=[[sigmoid,bce]]", "loss=dice"], ["loss=dice", "sweep.pairs"]),
    (["sweep.pairs=[sigmoid]"], ["sweep.pairs", "[sigmoid,bce]"]),
    (["sweep.pairs=[{activaton:sigmoid}]"], ["did you mean activation"]),
    (["sweep.pairs=[{study:hidden},{study:pairs}]"], ["sweep.pairs", "'study'"]),
    (["sweep.exclude=[{los:dice}]"], ["'los'"]),
    (["sweep.exclude=[1]"], ["sweep.exclude", "{activation: sigmoid"]),
    (["sweep.exclude=[{outputs:x}]"], ["sweep.exclude", "'outputs'"]),
    (["optimizer.lr=interval(1e-4,1e-2)"], ["optimizer.lr", "segexp tune"]),
    *[([f"seed=range({ends})"], [f"range({ends})", "finite"]) for ends in ("nan", "0,inf", "0,1,nan", "-inf,1")],
    (["dataset.number=2,3"], ["none of the 2 combinations"]),
    (["activation=glob(q*)"], ["activation=glob(q*)"]),
    (["seed=0,1", "hydra.launcher=null"], ["hydra.launcher=null"]),
    (["seed=0,1", "hydra.sweeper=null"], ["hydra.sweeper=null", "key=a,b"]),
    (["seed=0,1", "hydra.sweeper.params={seed:[1,2]}"], ["hydra.sweeper.params", "key=a,b"]),
    (["tuned=x.yaml", "sweep.pairs=[{activation:arctan,optimizer.lr:1e-3}]"], ["tuned=FILE", "optimizer.lr"]),
])  # fmt: skip
def test_a_mistake_and_its_cure_are_named(
    session: list[str], tmp_path: Path, overrides: list[str], named: list[str]
) -> None:
    with pytest.raises(UsageError) as told:
        planned(session, tmp_path, *overrides)
    assert "\n" not in str(told.value)
    assert [name for name in named if name not in str(told.value)] == []


def test_a_plan_is_kept_once_and_read_back(session: list[str], tmp_path: Path) -> None:
    plan = planned(session, tmp_path, "activation=identity,sigmoid", "seed=0,1,-1")
    for _ in range(2):
        keep_plan(plan)
    (path,) = (tmp_path / "default" / ".sweeps").iterdir()
    (study,) = studies_in(tmp_path)
    runs = list(runs_in(study))
    assert [run.state for run in runs] == ["not begun", "not begun"]
    jobs = {job.spec.run_id: job for job in plan.jobs}
    for run in runs:
        assert run.planned is not None
        assert run.path == jobs[run.run_id].run_dir
        assert asdict(config_of(run.planned.config)) == asdict(jobs[run.run_id].spec.config)
    assert json.loads(path.read_text())["command"]
    assert (len(study.dropped), len(study.refused)) == (2, 2)
