"""What a dry run of a sweep says: arms, runs that are over, time and disk, and that it writes nothing."""

import dataclasses
import json
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra.core.global_hydra import GlobalHydra
from tiny import TINY, tiny_config, tiny_run

import segexp
from segexp import cli
from segexp.commands.list import listed
from segexp.config.compose import hydra_session
from segexp.config.presets import preset_names, study_variants
from segexp.errors import UsageError
from segexp.running.prepare import RunSpec, prepare
from segexp.sweep import estimate as module
from segexp.sweep.estimate import Measured, already_over, arms_of, cost_of, estimate, measure, scaled
from segexp.sweep.local import Slots
from segexp.sweep.plan import Plan, make_plan

Captured = pytest.CaptureFixture[str]
ONE = Slots((None,), 1)
MEASURED = Measured(
    device="cpu", parameters=1000, pixels=32 * 32, build_s=1.0, read_s=0.0, kept_share=1.0, step_s=0.5, save_s=0.0,
    validate_s=0.1, score_s=0.1, diagnose_s=0.1, last_bytes=12_000, best_bytes=4_000, sites=9,
)  # fmt: skip


def planned(outputs: Path, *overrides: str) -> Plan:
    GlobalHydra.instance().clear()
    with hydra_session() as extra:
        return make_plan([*TINY, f"outputs='{outputs}'", *overrides], extra)


def dry_run(*overrides: str) -> int:
    return cli.main(["train", "-m", "--dry-run", *TINY, *overrides])


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[RunSpec]:
    """Probes that take no time; holds what was looked at."""
    seen: list[RunSpec] = []

    def probe(prepared: RunSpec) -> Measured:
        seen.append(prepared)
        return MEASURED

    monkeypatch.setattr(module, "measure", probe)
    return seen


@pytest.fixture
def writes() -> Iterator[list[str]]:
    """Files that are opened to be written, folders that are made, while the test runs."""
    found: list[str] = []
    watching = True

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if not watching:
            return
        if (event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR)) or event in ("os.mkdir", "os.rename"):
            found.append(str(args[0]))

    sys.addaudithook(hook)
    yield found
    watching = False


# Arms and what is over


def test_arms_are_told_by_what_differs_between_them(tmp_path: Path) -> None:
    swept = ["hidden_activation=leaky_relu", "hidden_activation.negative_slope=0.1,0.01", "activation=sigmoid,arctan"]
    arms = arms_of(planned(tmp_path, *swept, "optimizer.lr=1e-3,1e-2", "seed=range(2)").jobs)
    assert len(arms) == 8
    assert arms[0] == {
        "hidden_activation": "leaky_relu negative_slope=0.1", "activation": "sigmoid", "loss": "dice_ce",
        "optimizer.lr": "0.001", "runs": 2, "seeds": 2,
    }  # fmt: skip
    assert {arm["hidden_activation"] for arm in arms} == {"leaky_relu negative_slope=0.1", "leaky_relu"}


def test_sums_of_losses_are_told_by_their_terms(tmp_path: Path) -> None:
    (arm,) = arms_of(planned(tmp_path, "loss=sum", "loss.terms={dice: 1, ce: 0.5}", "seed=range(2)").jobs)
    assert (arm["loss"], arm["runs"]) == ("sum terms.ce.weight=0.5 terms.dice.weight=1.0", 2)


def test_folds_and_seeds_are_counted_in_their_arm(tmp_path: Path) -> None:
    (arm,) = arms_of(planned(tmp_path, "split.folds=3", "split.fold=range(3)", "seed=range(2)").jobs)
    assert (arm["runs"], arm["seeds"], arm["folds"]) == (6, 2, 3)


def record(run_dir: Path, identity: str, status: str) -> None:
    run_dir.mkdir(parents=True)
    versions = {"segexp": segexp.__version__}
    content = {"identity": identity, "status": status, "versions": versions, "n_rows_expected": {}}
    (run_dir / "run.json").write_text(json.dumps(content))


def test_runs_that_are_over_cost_nothing(tmp_path: Path, quick: list[RunSpec], capsys: Captured) -> None:
    jobs = planned(tmp_path, "seed=range(5)").jobs
    for job, status in zip(jobs, ("done", "done", "diverged", "failed"), strict=False):
        record(job.run_dir, job.prepared.identity, status)
    over, left, problems = already_over(jobs)
    assert (over, left, problems) == ({"done": 2, "diverged": 1}, jobs[3:], [])
    assert dry_run("seed=range(5)", f"outputs={tmp_path}") == 0
    told = capsys.readouterr().out
    assert "3 of 5 runs are over already (2 done, 1 diverged), 2 to do" in told
    assert re.search(r"disk: about 7\d\d KiB", told)  # of two runs
    record(jobs[4].run_dir, "of another run", "done")
    assert dry_run("seed=range(5)", f"outputs={tmp_path}") == 1
    assert "will fail: seed=4: " in capsys.readouterr().out


def test_when_all_is_over_nothing_is_probed(tmp_path: Path, quick: list[RunSpec], capsys: Captured) -> None:
    for job in planned(tmp_path, "seed=range(2)").jobs:
        record(job.run_dir, job.prepared.identity, "done")
    assert dry_run("seed=range(2)", f"outputs={tmp_path}") == 0
    assert quick == []
    assert "2 of 2 runs are over already (2 done), 0 to do" in capsys.readouterr().out


# What is probed


def test_runs_that_cost_alike_share_a_probe(tmp_path: Path, quick: list[RunSpec]) -> None:
    plan = planned(tmp_path, "activation=sigmoid,arctan", "loss=dice,ce", "seed=range(2)")
    assert len(estimate(plan.jobs, ONE).costs) == 8
    assert len(quick) == 1
    estimate(planned(tmp_path, "hidden_activation=relu,mish", "trainer.batch_size=4,6").jobs, ONE)
    assert len(quick) == 1 + 4


def test_the_probe_has_the_threads_of_a_slot(tmp_path: Path, quick: list[RunSpec]) -> None:
    estimate(planned(tmp_path, "seed=0,1", "trainer.threads=null").jobs, Slots((None,), 3))
    estimate(planned(tmp_path, "seed=0,1", "trainer.threads=2").jobs, Slots((None,), 3))
    assert [prepared.config.trainer.threads for prepared in quick] == [3, 2]


def test_what_the_time_does_not_allow_is_built_and_taken_from_others(
    tmp_path: Path, quick: list[RunSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PROBE_S", -1.0)
    built: list[str] = []

    def build(prepared: RunSpec) -> int:
        built.append(prepared.config.backbone.name)
        return 2000

    monkeypatch.setattr(module, "parameters_of", build)
    plan = planned(tmp_path, "hidden_activation=relu,mish", "backbone.name=resnet18,resnet34")
    found = estimate(plan.jobs, ONE)
    assert len(quick) == 1
    assert sorted(built) == ["resnet18", "resnet34", "resnet34"]
    by_network = {(row["network"], row["hidden_activation"]): row for row in found.rows}
    assert by_network["unet/resnet18", "mish"]["step_s"] == 0.5
    assert by_network["unet/resnet34", "relu"]["step_s"] == 1.0
    assert any("3 of 4 kinds of runs were not timed" in note for note in found.notes)
    monkeypatch.setattr(module, "BUILD_S", -1.0)
    assert any("3 of them were not even built" in note for note in estimate(plan.jobs, ONE).notes)


def test_a_network_that_cannot_be_built_is_found_before_the_night(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    def probe(prepared: RunSpec) -> Measured:
        if prepared.config.hidden_activation.name == "mish":
            raise UsageError("the swap does not close")
        return MEASURED

    monkeypatch.setattr(module, "measure", probe)
    assert dry_run("hidden_activation=relu,mish", "seed=range(2)", f"outputs={tmp_path}") == 1
    told = capsys.readouterr().out
    assert "will fail: 2 runs, unet/tu-resnet18 with hidden_activation=mish: the swap does not close\n" in told
    assert "unet/tu-resnet18  relu" in told


def test_weights_that_cannot_be_fetched_are_told_and_random_ones_probed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str | None] = []

    def probe(prepared: RunSpec) -> Measured:
        asked.append(prepared.config.backbone.weights)
        if prepared.config.backbone.weights == "imagenet":
            raise UsageError("they cannot be fetched") from OSError("no network")
        return MEASURED

    monkeypatch.setattr(module, "measure", probe)
    found = estimate(planned(tmp_path, "backbone.weights=imagenet", "trainer.batch_size=4,6", "seed=0,1").jobs, ONE)
    assert asked == ["imagenet", None, None]  # nobody waits for the network twice
    assert len(found.costs) == 4
    assert [problem.split(": ", 1)[1] for problem in found.problems] == [
        "they cannot be fetched", "its weights could not be fetched either",
    ]  # fmt: skip
    assert any("random" in note for note in found.notes)


# What is told


def test_a_large_study_stays_readable(tmp_path: Path, quick: list[RunSpec], capsys: Captured) -> None:
    rates = ",".join(f"{n}e-5" for n in range(1, 36))
    assert dry_run(f"optimizer.lr={rates}", f"outputs={tmp_path}", "trainer.patience=3") == 0
    told = capsys.readouterr().out
    assert "35 arms:" in told
    assert "... and 5 more" in told
    assert len(told.splitlines()) < 50
    assert f"study: {tmp_path / 'default'}" in told
    assert "time: at most" in told


def test_another_launcher_is_not_told_how_long_it_takes(tmp_path: Path, quick: list[RunSpec], capsys: Captured) -> None:
    from segexp.commands.foresee import foresee

    assert foresee(planned(tmp_path, "seed=range(3)"), None) == 0
    told = capsys.readouterr().out
    assert "of machine time in all" in told
    assert "at once," not in told


def test_slots_share_the_runs_out() -> None:
    assert module._wall([3.0, 3.0, 3.0], 2) == 6.0
    assert module._wall([5.0, 1.0, 1.0, 1.0], 2) == 5.0


def test_the_cost_of_a_run_is_its_parts(tmp_path: Path) -> None:
    prepared = prepare(tiny_config(tmp_path, "trainer.epochs=10"))
    n = {part: len(members) for part, members in prepared.split.items()}
    assert (n, prepared.config.trainer.batch_size) == ({"train": 14, "val": 4, "test": 6}, 5)
    one = cost_of(prepared, MEASURED, 2.0)
    assert one.seconds == pytest.approx(2 + 1 + 10 * (3 * 0.5 + 4 * 0.1) + (2 * 4 + 6) * 0.1 + 4 * 0.1 + 1.2)
    assert one.checkpoint_bytes == 16_000
    rereading = dataclasses.replace(MEASURED, read_s=1.0, kept_share=0.5)
    assert cost_of(prepared, rereading, 2.0).seconds - one.seconds == pytest.approx(24 + 10 * 18 / 2)


def test_a_larger_network_is_scaled() -> None:
    twice = scaled(MEASURED, 2000, 4 * 32 * 32, 3)
    assert (twice.step_s, twice.validate_s, twice.last_bytes) == (0.5 * 2 * 4 * 3, 0.1 * 2 * 4, 24_000)


# Held against the truth


def test_disk_is_that_of_a_real_run(tmp_path: Path) -> None:
    """Checkpoints and all the rest, each within a factor of 1.5."""
    prepared = prepare(tiny_config(tmp_path))
    cost = cost_of(prepared, measure(prepared), 0.0)
    run_dir = tiny_run(tmp_path, figures=True).run_dir
    sizes = {p: p.stat().st_size for p in run_dir.rglob("*") if p.is_file()}
    checkpoints = sum(n for p, n in sizes.items() if p.suffix == ".pt")
    assert cost.checkpoint_bytes / checkpoints == pytest.approx(1, abs=0.05)
    assert 1 / 1.5 < cost.other_bytes / (sum(sizes.values()) - checkpoints) < 1.5


def test_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: list[str], capsys: Captured
) -> None:
    import torch

    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    assert dry_run("seed=range(2)", "outputs=out", "trainer.threads=2") == 0
    assert "time: about" in capsys.readouterr().out
    assert [path for path in writes if not path.startswith("/dev/")] == []
    assert list(tmp_path.iterdir()) == []
    assert torch.get_num_threads() == threads


def test_the_readme_has_the_numbers_of_runs(repository: Path) -> None:
    """The list counts what the sweeps say; that plans have as many is held by test_studies and below."""
    text = (repository / "README.md").read_text(encoding="utf-8")
    told = {m[1]: [int(m[2]), int(m[3])] for m in re.finditer(r"^\| `(\w+)` \|.*\| (\d+) \| (\d+) \|$", text, re.M)}
    budgets = {row["name"]: [int(b.split()[1]) for b in row["budgets"]] for row in listed("studies")}
    budgets.pop("default")
    assert told == budgets


@pytest.mark.slow
@pytest.mark.parametrize("study", [name for name in preset_names("study") if name != "default"])
def test_a_full_plan_has_as_many_runs_as_the_list_says(study: str, tmp_path: Path) -> None:
    (row,) = (row for row in listed("studies") if row["name"] == study)
    for protocol in study_variants(study, "protocol"):
        GlobalHydra.instance().clear()
        with hydra_session() as extra:
            plan = make_plan([f"study={study}", f"protocol={protocol}", f"outputs='{tmp_path}'"], extra)
        if protocol == "corrected":
            assert f"full: {len(plan.jobs)} runs" in row["budgets"]
            assert len(arms_of(plan.jobs)) == row["arms"]
        assert (plan.refused, plan.copies) == ([], [])


@pytest.mark.slow
@pytest.mark.alone
def test_time_is_that_of_a_real_sweep(tmp_path: Path) -> None:
    """Within a factor of 3: other work on the machine, and the slots themselves, slow runs down."""
    words = [f"outputs={tmp_path}", "trainer.device=cpu", "dataset.number=200", "trainer.epochs=3", "seed=range(6)"]
    GlobalHydra.instance().clear()
    with hydra_session() as extra:
        plan = make_plan(words, extra)
    found = estimate(plan.jobs, Slots((None, None), 1))
    assert found.wall_s is not None
    begun = time.perf_counter()
    assert cli.main(["train", "-m", *words, "hydra.launcher.n_jobs=2", "hydra.launcher.threads=1"]) == 0
    assert 1 / 3 < (time.perf_counter() - begun) / found.wall_s < 3
