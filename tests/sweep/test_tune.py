"""Learning rates per arm: the same budget for each, judged on validation, and nothing chosen from part of a budget."""

import csv
import dataclasses
import hashlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.core.global_hydra import GlobalHydra
from messages import mentions
from omegaconf import DictConfig
from tiny import TINY

from segexp import cli
from segexp.config.arm import arm_of, arm_of_row, read_tuned, with_tuned_rate
from segexp.config.compose import compose
from segexp.errors import UsageError
from segexp.records import cell_of, flatten, write_json
from segexp.records.runs import column_of
from segexp.sweep import SweepReport, SweptRun, _overrides
from segexp.sweep import tune as tuning_module
from segexp.sweep.plan import Plan, base_of, make_plan, tuning_jobs
from segexp.sweep.tune import RANDOM_TRIALS, Search, Tuning, tune, tuning_plan, write_tuning

Captured = pytest.CaptureFixture[str]
Log = pytest.LogCaptureFixture
Score = Callable[[str, float, int], float | None]
"""(activation, rate, seed) -> validation Dice; None: diverged."""


@pytest.fixture
def carried_out(monkeypatch: pytest.MonkeyPatch) -> Callable[[Score], list[list[str]]]:
    """Runs are not trained; their validation Dice is made up. Returns the labels of every batch of runs."""

    def replace(score: Score) -> list[list[str]]:
        batches: list[list[str]] = []

        def carry_out(plan: Plan, base: DictConfig, extra: Sequence[str], **how: str) -> SweepReport:
            assert how == {"score": "val_dice"}, "what is not chosen by is not shown"
            batches.append([job.label for job in plan.jobs])
            runs = []
            for job in plan.jobs:
                config = job.spec.config
                dice = score(config.activation.name, config.optimizer.lr, config.seed)  # type: ignore[attr-defined]
                status = "diverged" if dice is None else "failed" if math.isnan(dice) else "done"
                job.run_dir.mkdir(parents=True, exist_ok=True)
                write_json(job.run_dir / "run.json", {"status": status, "summary": {"val_dice": dice, "dice": 1.0}})
                runs.append(SweptRun(job.label, job.run_dir, status))
            return SweepReport(plan, runs)

        monkeypatch.setattr(tuning_module, "carry_out", carry_out)
        return batches

    return replace


def search(session: list[str], tmp_path: Path, how: Search, *overrides: str) -> Tuning:
    words = [*TINY, f"outputs='{tmp_path}'", *overrides]
    return tune(tuning_plan(words, session).jobs, base_of(words, session), session, how, lambda line: None)


def peaked(at: dict[str, float]) -> Score:
    """Best at a rate of its own for each activation."""
    return lambda activation, lr, seed: 0.9 - abs(math.log10(lr / at[activation])) / 10 + seed / 1000


ARMS = ("activation=sigmoid,arctan", "loss=dice")


def test_each_arm_gets_its_best_rate_from_the_same_budget(session: list[str], tmp_path: Path, carried_out: Any) -> None:
    batches = carried_out(peaked({"sigmoid": 1e-3, "arctan": 1e-2}))
    tuning = search(session, tmp_path, Search(rates=(1e-4, 1e-3, 1e-2)), *ARMS, "seed=0,1,2")
    assert [len(batch) for batch in batches] == [18]
    best = {arm[1]: tuning.best(arm) for arm in tuning.trials}
    assert {name: tried.lr for name, tried in best.items() if tried} == {"sigmoid": 1e-3, "arctan": 1e-2}
    assert {arm[1]: tuning.edge(arm) for arm in tuning.trials} == {"sigmoid": "", "arctan": "highest"}
    assert tuning.seeds == [0, 1, 2]
    assert tuning.folder == tmp_path / "default-tuning"


@pytest.mark.slow
def test_the_default_grid_stands_around_the_configured_rate(
    session: list[str], tmp_path: Path, carried_out: Any
) -> None:
    carried_out(peaked({"sigmoid": 1.0}))
    tuning = search(session, tmp_path / "grid", Search(), "activation=sigmoid", "loss=dice")
    assert [[t.lr for t in tried] for tried in tuning.trials.values()] == [[2e-4, 6e-4, 2e-3, 6e-3, 2e-2]]
    assert tuning.seeds == [0, 1]


def test_a_rate_that_blows_up_on_one_seed_is_no_choice(session: list[str], tmp_path: Path, carried_out: Any) -> None:
    carried_out(lambda activation, lr, seed: None if lr > 5e-3 and seed == 1 else lr)
    tuning = search(session, tmp_path, Search(rates=(3e-3, 1e-2)), "activation=sigmoid", "loss=dice")
    (arm,) = tuning.trials
    best = tuning.best(arm)
    assert best is not None
    assert best.lr == 3e-3
    carried_out(lambda activation, lr, seed: None)
    nothing = search(session, tmp_path, Search(rates=(1e-3,)), "activation=sigmoid", "loss=dice", "dataset.seed=1")
    assert nothing.best(arm) is None


def test_nothing_is_chosen_while_a_run_is_missing(tmp_path: Path, carried_out: Any, capsys: Captured) -> None:
    carried_out(lambda activation, lr, seed: math.nan if lr > 5e-3 and seed == 1 else lr)
    words = ["tune", *TINY, f"outputs='{tmp_path}'", "activation=sigmoid", "loss=dice", "--rates", "1e-3,1e-2"]
    assert cli.main(words) == 1
    assert "no rate" in capsys.readouterr().out
    assert not (tmp_path / "default-tuning" / "tuned.yaml").exists()


def test_the_file_gives_arms_their_rates(session: list[str], tmp_path: Path, carried_out: Any, caplog: Log) -> None:
    carried_out(peaked({"sigmoid": 1e-3, "arctan": 3e-3}))
    matched = "activation.slope=0.5"
    tuning = search(session, tmp_path, Search(rates=(1e-3, 3e-3)), *ARMS, matched)
    path = tmp_path / "tuned.yaml"
    table = write_tuning(tuning, path, ["segexp", "tune"])
    rates, context = read_tuned(path)
    assert rates == {("native", "sigmoid slope=0.5", "dice"): 1e-3, ("native", "arctan slope=0.5", "dice"): 3e-3}
    assert context["optimizer.name"] == "adamw"
    with table.open() as file:
        rows = list(csv.DictReader(file))
    assert [(r["activation"].split()[0], r["lr"], r["chosen"]) for r in rows] == [
        ("sigmoid", "0.001", "1"), ("sigmoid", "0.003", "0"), ("arctan", "0.001", "0"), ("arctan", "0.003", "1"),
    ]  # fmt: skip

    def composed(*words: str) -> Any:
        return with_tuned_rate(compose([*TINY, f"tuned='{path}'", "loss=dice", *words], session))

    assert composed("activation=arctan", matched).optimizer.lr == 3e-3
    for others, named in (((), "activation=arctan"), ((matched, "optimizer=sgd"), "optimizer=adamw.*sgd")):
        with pytest.raises(UsageError, match=named):
            composed("activation=arctan", *others)
    words = [*TINY, f"outputs='{tmp_path}'", f"tuned='{path}'", "activation=arctan", "loss=dice", matched]
    (job,) = make_plan(words, session).jobs
    # Another machine composes the job without the file.
    assert _overrides(job)[-1] == "optimizer.lr=0.003"
    caplog.clear()
    for _ in range(2):
        composed("activation=arctan", matched, "trainer.epochs=7")
        composed("activation=arctan", matched, "split.seed=4")  # validation images of one are test images of the other
    assert [r.getMessage().partition("conditions: ")[2] for r in caplog.records] == [
        "trainer.epochs=7 (tuned at 2)", "split.seed=4 (tuned at 0)",
    ]  # fmt: skip


@pytest.mark.parametrize(("words", "arm"), [
    (["loss=bce"], ("native", "arctan", "ce")),
    (["loss=focal", "loss.gamma=2"], ("native", "arctan", "focal")),
    (["loss=dice", "loss.squared=true", "loss.smooth=1"], ("native", "arctan", "dice smooth=1.0 squared=true")),
    (["loss=ce", "loss.class_weights=[1, 3]"], ("native", "arctan", "ce class_weights=[1.0, 3.0]")),
    (["loss=sum", "loss.terms={focal_tversky: {weight: 0.5, beta: 0.8}, dice: 1}"],
     ("native", "arctan", "sum terms.focal_tversky.beta=0.8 terms.dice.weight=1.0 terms.focal_tversky.weight=0.5")),
    (["hidden_activation=leaky_relu", "hidden_activation.negative_slope=0.1", "loss=dice"],
     ("leaky_relu negative_slope=0.1", "arctan", "dice")),
])  # fmt: skip
def test_an_arm_is_one_in_tune_and_in_compare(words: list[str], arm: tuple[str, ...], session: list[str]) -> None:
    """compare must find a run's rate in the file that tune wrote, whatever the options."""
    config = compose(["activation=arctan", *words], session)
    row = {column_of(key): cell_of(value) for key, value in flatten(config).items()}
    assert arm_of_row(row) == arm_of(config) == arm


@pytest.mark.slow
def test_optuna_proposes_and_goes_on_where_it_was(session: list[str], tmp_path: Path, carried_out: Any) -> None:
    optuna = pytest.importorskip("optuna")
    how = ("activation=sigmoid,arctan", "loss=dice", "seed=0")
    batches = carried_out(peaked({"sigmoid": 1e-3, "arctan": 1e-2}))
    whole = search(session, tmp_path / "whole", Search(trials=4, bounds=(1e-5, 1e-1)), *how)
    assert [len(batch) for batch in batches] == [2] * 4
    search(session, tmp_path / "parts", Search(trials=2, bounds=(1e-5, 1e-1)), *how)
    # A round whose runs failed is asked for again with the same rates.
    carried_out(lambda activation, lr, seed: math.nan)
    assert search(session, tmp_path / "parts", Search(trials=3, bounds=(1e-5, 1e-1)), *how).unfinished
    carried_out(peaked({"sigmoid": 1e-3, "arctan": 1e-2}))
    parts = search(session, tmp_path / "parts", Search(trials=4, bounds=(1e-5, 1e-1)), *how)
    assert parts.trials == whole.trials
    assert all(len(several) == 4 for several in whole.trials.values())
    for folder in ("whole", "parts"):
        storage = f"sqlite:///{tmp_path / folder / 'default-tuning' / 'tuning.db'}"
        kept = {s.study_name: s for s in optuna.get_all_study_summaries(storage)}
        assert {name.split(", ")[1] for name in kept} == {"activation=sigmoid", "activation=arctan"}
        assert all(s.n_trials == 4 for s in kept.values())
    assert all(1e-5 <= t.lr <= 1e-1 for several in whole.trials.values() for t in several)


def test_any_other_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    for content in ("[1, 2]", "arms: 3", "{", "arms:\n- {activation: x}", "arms: []"):
        path.write_text(content)
        with pytest.raises(UsageError, match=r"x\.yaml"):
            read_tuned(path)
    for rate in (".nan", "-1.0", ".inf", "0"):
        path.write_text(f"context: {{}}\narms:\n- {{hidden_activation: native, activation: a, loss: b, lr: {rate}}}\n")
        with pytest.raises(UsageError, match="above 0"):
            read_tuned(path)


def recorded_study(tmp_path: Path, session: list[str], *several: tuple[str, ...]) -> Path:
    """A study with a recorded run for each of these lists of overrides, none of them trained."""
    folder = tmp_path / "mine"
    for words in several:
        config = compose([*TINY, f"outputs='{tmp_path}'", "study.name=mine", "loss=dice", *words], session)
        run_id = hashlib.sha256(str(words).encode()).hexdigest()[:8]
        (folder / f"x-{run_id}").mkdir(parents=True)
        (folder / f"x-{run_id}" / "config.yaml").write_text(yaml.safe_dump(dataclasses.asdict(config)))
        record = {"schema_version": 1, "status": "done", "run_id": run_id, "config": flatten(config)}
        write_json(folder / f"x-{run_id}" / "run.json", record)
    return folder


@pytest.mark.slow
def test_arms_of_a_study_are_tuned(session: list[str], tmp_path: Path, carried_out: Any, capsys: Captured) -> None:
    carried_out(peaked({"sigmoid": 1e-3, "arctan": 1e-2}))
    arms = ("activation=sigmoid",), ("activation=arctan", "seed=1", "optimizer.lr=1e-2", "trainer.workers=0")
    jobs = tuning_jobs(recorded_study(tmp_path / "equal", session, *arms), None, session)
    tuning = tune(jobs, base_of([], session), session, Search(rates=(1e-3, 1e-2)), lambda line: None)
    assert (len(tuning.trials), tuning.seeds) == (2, [0, 1])
    # A seed counts once.
    with pytest.raises(UsageError, match="each seed once"):
        tune([*jobs, *jobs], base_of([], session), session, Search(), lambda line: None)
    carried_out(lambda activation, lr, seed: lr)
    GlobalHydra.instance().clear()
    assert cli.main(["tune", str(tmp_path / "equal" / "mine"), "--rates", "1e-3,1e-2", "--seeds", "3,4"]) == 0
    assert mentions(capsys.readouterr().out, "2 arms", "2 learning rates", "2 seeds", "8 runs")
    assert set(read_tuned(tmp_path / "equal" / "mine-tuning" / "tuned.yaml")[0].values()) == {1e-2}


@pytest.mark.parametrize(("other", "told"), [
    (("activation=arctan", "optimizer.weight_decay=0.3"), "optimizer.weight_decay is 0.01 and 0.3"),
    (("activation=arctan", "augment=none"), "augment.name is light and none"),
    (("activation=sigmoid", "split.folds=2", "split.fold=1"), "split.fold is 0 and 1: validation images of one"),
])  # fmt: skip
def test_unequal_conditions(
    session: list[str], tmp_path: Path, carried_out: Any, other: tuple[str, ...], told: str
) -> None:
    carried_out(lambda activation, lr, seed: lr)
    folds = ("split.folds=2", "split.fold=0") if "split.folds=2" in other else ()
    folder = recorded_study(tmp_path, session, ("activation=sigmoid", *folds), other)
    with pytest.raises(UsageError, match=told):
        tune(tuning_jobs(folder, None, session), base_of([], session), session, Search(), lambda line: None)


@pytest.mark.slow
def test_one_seed_is_tuned_where_each_has_a_split(
    tmp_path: Path, carried_out: Callable[[Score], list[list[str]]], session: list[str], caplog: Log
) -> None:
    words = [*TINY, f"outputs='{tmp_path}'", "activation=sigmoid", "loss=dice", "split.per_seed=true"]
    for seeds in ((), ("seed=0,1",)):
        with pytest.raises(UsageError, match=r"split.per_seed.*seed=0"):
            tuning_plan([*words, *seeds], session)
    carried_out(lambda activation, rate, seed: rate)
    told: list[str] = []
    plan = tuning_plan([*words, "seed=1"], session)
    tuning = tune(plan.jobs, base_of(words, session), session, Search((1e-3, 1e-2)), told.append)
    assert any("seed 1" in line for line in told)
    write_tuning(tuning, tmp_path / "tuned.yaml", ["segexp", "tune"])
    for seed, warned in ((1, False), (2, True)):
        with_tuned_rate(compose([*words, f"seed={seed}", f"tuned='{tmp_path / 'tuned.yaml'}'"], session))
        assert any("seed=2 (tuned at 1)" in line for line in caplog.messages) == warned


def test_the_fold_and_what_is_left_out_are_told(
    session: list[str], tmp_path: Path, carried_out: Any, capsys: Captured
) -> None:
    carried_out(lambda activation, lr, seed: lr)
    words = [*TINY, f"outputs='{tmp_path}'", "activation=sigmoid", "loss=dice", "split.folds=2", "split.fold=1"]
    told: list[str] = []
    tuning = tune(tuning_plan(words, session).jobs, base_of(words, session), session, Search(), told.append)
    assert any("fold 1 of 2" in line for line in told)
    assert tuning.context["split.fold"] == 1
    words = [*TINY, f"outputs='{tmp_path}'", "activation=sigmoid,identity", "loss=bce,mse", "seed=0"]
    GlobalHydra.instance().clear()
    assert cli.main(["tune", *words, "--rates", "1e-3,1e-2"]) == 0
    assert "left out" in capsys.readouterr().out


@pytest.mark.slow
def test_what_optuna_proposes_follows_from_the_runs_alone(session: list[str], tmp_path: Path, carried_out: Any) -> None:
    """Nothing that a killed search has left half written can be in the way, and after `RANDOM_TRIALS` it has learnt."""
    pytest.importorskip("optuna")
    how = ("activation=sigmoid", "loss=dice", "seed=0")
    several = []
    for n, peak in enumerate((1e-4, 1e-4, 1e-2)):
        carried_out(peaked({"sigmoid": peak}))
        tuning = search(session, tmp_path / str(n), Search(trials=RANDOM_TRIALS + 2, bounds=(1e-5, 1e-1)), *how)
        (tuning.folder / "tuning.db").unlink()  # to be looked at, and never looked into
        (tried,) = tuning.trials.values()
        several.append([t.lr for t in tried])
    assert several[0] == several[1]
    assert several[0][:RANDOM_TRIALS] == several[2][:RANDOM_TRIALS]
    assert several[0][RANDOM_TRIALS:] != several[2][RANDOM_TRIALS:]
