"""What a dry run of a sweep prints: arms, finished runs, time and disk; and that it writes nothing but the cache."""

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
import torch
from hydra.core.global_hydra import GlobalHydra
from messages import mentions, one_mentions
from tiny import TINY, tiny_config, tiny_run

import segexp
from segexp import cli
from segexp.commands.list import listed
from segexp.commands.train import _estimate
from segexp.config.compose import hydra_session
from segexp.errors import UsageError
from segexp.running import RunSpec, prepare
from segexp.running.build import initial_network
from segexp.sweep import estimate as module
from segexp.sweep import split_finished
from segexp.sweep.estimate import CostProbe, cost_of, estimate, probe, wall_seconds
from segexp.sweep.local import Slots
from segexp.sweep.plan import Plan, arms_of, make_plan

Captured = pytest.CaptureFixture[str]
Patch = pytest.MonkeyPatch
ONE = Slots((None,), 1)
MEASURED = CostProbe(
    device="cpu", parameters=1000, work=1e6, start_s=3.0, read_s=0.0, step_s=0.5, validate_s=0.1,
    final_s=0.2, checkpoint_bytes=16_000,
)  # fmt: skip


def planned(outputs: Path, *overrides: str) -> Plan:
    GlobalHydra.instance().clear()
    with hydra_session() as extra:
        return make_plan([*TINY, f"outputs='{outputs}'", *overrides], extra)


def dry_run(*overrides: str) -> int:
    return cli.main(["train", "-m", "--dry-run", *TINY, *overrides])


@pytest.fixture
def quick(monkeypatch: Patch) -> list[RunSpec]:
    """Probes that take no time; holds what was probed."""
    seen: list[RunSpec] = []

    def probe(spec: RunSpec, timed: Any) -> CostProbe:
        seen.append(spec)
        return MEASURED

    monkeypatch.setattr(module, "probe", probe)
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


# Arms and finished runs


def test_arms_are_described_by_what_differs_between_them(tmp_path: Path) -> None:
    swept = ["hidden_activation=leaky_relu", "hidden_activation.negative_slope=0.1,0.01", "activation=sigmoid,arctan"]
    arms = arms_of(planned(tmp_path, *swept, "optimizer.lr=1e-3,1e-2", "seed=range(2)").jobs)
    assert len(arms) == 8
    assert arms[0] == {
        "hidden_activation": "leaky_relu negative_slope=0.1", "activation": "sigmoid", "loss": "dice_ce",
        "optimizer.lr": "0.001", "runs": 2, "seeds": 2,
    }  # fmt: skip
    assert {arm["hidden_activation"] for arm in arms} == {"leaky_relu negative_slope=0.1", "leaky_relu"}
    sums = ("loss=sum", "loss.terms={dice: 1, ce: 0.5}", "split.folds=3", "split.fold=range(3)", "seed=range(2)")
    (arm,) = arms_of(planned(tmp_path, *sums).jobs)
    assert arm["loss"] == "sum terms.ce.weight=0.5 terms.dice.weight=1.0"
    assert (arm["runs"], arm["seeds"], arm["folds"]) == (6, 2, 3)


def record(run_dir: Path, identity: str, status: str) -> None:
    run_dir.mkdir(parents=True)
    versions = {"segexp": segexp.__version__}
    content = {"identity": identity, "status": status, "versions": versions, "n_rows_expected": {}}
    (run_dir / "run.json").write_text(json.dumps(content))


def test_finished_runs_cost_nothing(tmp_path: Path, quick: list[RunSpec], capsys: Captured) -> None:
    jobs = planned(tmp_path, "seed=range(5)").jobs
    for job, status in zip(jobs, ("done", "done", "diverged", "failed"), strict=False):
        record(job.run_dir, job.spec.identity, status)
    assert split_finished(jobs) == ({"done": 2, "diverged": 1}, jobs[3:], [])
    assert dry_run("seed=range(5)", f"outputs={tmp_path}") == 0
    told = capsys.readouterr().out
    assert mentions(told, "3 of 5", "2 done", "1 diverged", "2 to do")
    assert re.search(r"disk: .* 234 KiB", told)  # of two runs
    record(jobs[4].run_dir, "of another run", "done")
    assert dry_run("seed=range(5)", f"outputs={tmp_path}") == 1
    assert "will fail: seed=4: " in capsys.readouterr().out
    quick.clear()
    assert dry_run("seed=range(3)", f"outputs={tmp_path}") == 0
    assert quick == []


# What is probed


def test_runs_that_cost_the_same_share_a_probe(tmp_path: Path, quick: list[RunSpec]) -> None:
    plan = planned(tmp_path, "activation=sigmoid,arctan", "loss=dice,ce", "seed=range(2)")
    assert len(estimate(plan.jobs, ONE).costs) == 8
    assert len(quick) == 1
    estimate(planned(tmp_path, "hidden_activation=relu,mish", "trainer.batch_size=4,6").jobs, ONE)
    assert len(quick) == 1 + 4
    # The probe has the threads of a slot.
    estimate(planned(tmp_path, "seed=0,1", "trainer.threads=null").jobs, Slots((None,), 3))
    estimate(planned(tmp_path, "seed=0,1", "trainer.threads=2").jobs, Slots((None,), 3))
    assert [spec.config.trainer.threads for spec in quick[-2:]] == [3, 2]


def test_networks_that_are_not_probed_are_scaled(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr(module, "PROBES_S", -1.0)
    plan = planned(tmp_path, "trainer.batch_size=5,10", "seed=range(2)")
    found = estimate(plan.jobs, ONE)
    assert "1 of 2" in found.notes[0]
    assert len(found.costs) == 4
    assert {row["parameters"] for row in found.rows} == {"81,337"}
    small, large = (plan.jobs[i].spec for i in (0, 2))
    made = dataclasses.replace(MEASURED, parameters=81_337, work=81_337 * 32**2 * 5)
    scaled = probe(large, [made, dataclasses.replace(made, work=1e12)])
    assert (scaled.step_s, scaled.checkpoint_bytes) == (pytest.approx(2 * made.step_s), made.checkpoint_bytes)
    assert probe(small, [made]) == made
    odd = planned(tmp_path, "hidden_activation=relu,mish", "model.decoder_channels=[16,8,8]")
    monkeypatch.setattr(module, "initial_network", refuses_mish(initial_network))
    found = estimate(odd.jobs, ONE)
    assert [row["hidden"] for row in found.rows] == ["relu"]
    assert "swap not closed" in found.problems[0]


def refuses_mish(build: Any) -> Any:
    def refusing(spec: RunSpec, *more: Any) -> Any:
        if spec.config.hidden_activation.name == "mish":
            raise UsageError("swap not closed")
        return build(spec, *more)

    return refusing


def test_a_network_that_cannot_be_built_is_found(tmp_path: Path, monkeypatch: Patch, capsys: Captured) -> None:
    monkeypatch.setattr(module, "probe", refuses_mish(lambda spec, timed: MEASURED))
    assert dry_run("hidden_activation=relu,mish", "seed=range(2)", f"outputs={tmp_path}") == 1
    told = capsys.readouterr().out
    assert one_mentions(told.splitlines(), "will fail", "mish", "2 runs", "swap not closed")
    assert "unet/tu-test_resnet  relu" in told


def test_without_weights_random_ones_are_probed(tmp_path: Path, monkeypatch: Patch) -> None:
    asked: list[str | None] = []

    def probe(spec: RunSpec, timed: Any) -> CostProbe:
        asked.append(spec.config.backbone.weights)
        if spec.config.backbone.weights == "imagenet":
            raise UsageError("they cannot be fetched") from OSError("no network")
        return MEASURED

    monkeypatch.setattr(module, "probe", probe)
    found = estimate(planned(tmp_path, "backbone.weights=imagenet", "trainer.batch_size=4,6", "seed=0,1").jobs, ONE)
    assert asked == ["imagenet", None, None]  # the network is not waited for twice
    assert len(found.costs) == 4
    assert len(found.problems) == 2
    assert "cannot be fetched" in found.problems[0]
    assert any("random" in note for note in found.notes)


# What is printed


@pytest.mark.slow
def test_an_arm_on_several_data_sets_is_one_arm(tmp_path: Path) -> None:
    arms = arms_of(planned(tmp_path, "dataset=lesions,lesions_small", "activation=sigmoid,arctan").jobs)
    assert [(arm["activation"], arm["data sets"], arm["runs"]) for arm in arms] == [("sigmoid", 2, 2), ("arctan", 2, 2)]
    assert not any(key.startswith("dataset") for arm in arms for key in arm)


@pytest.mark.slow
def test_a_large_study_stays_readable(tmp_path: Path, quick: list[RunSpec], capsys: Captured) -> None:
    rates = ",".join(f"{n}e-5" for n in range(1, 36))
    assert dry_run(f"optimizer.lr={rates}", f"outputs={tmp_path}", "trainer.patience=3") == 0
    told = capsys.readouterr().out
    assert len(told.splitlines()) < 55  # five say what the data hold
    study = f"study: {tmp_path / 'default'}"
    assert mentions(told, "35 arms", "5 more", study, "time: at most", "trainer.patience")
    # Through another launcher, the time is the sum of the runs.
    plan = planned(tmp_path, "seed=range(3)")
    assert _estimate(plan, None) == 0
    told = capsys.readouterr().out
    assert "of machine time" in told
    assert "at once," not in told
    assert estimate(plan.jobs, None).wall_s is None


def test_the_cost_of_a_run_is_its_parts(tmp_path: Path) -> None:
    spec = prepare(tiny_config(tmp_path, "trainer.epochs=10"))
    n = {part: len(members) for part, members in spec.split.items()}
    assert (n, spec.config.trainer.batch_size) == ({"train": 14, "val": 4, "test": 6}, 5)
    seconds, n_bytes = cost_of(spec, MEASURED)
    assert seconds == pytest.approx(3 + 10 * (3 * 0.5 + 4 * 0.1) + (2 * 4 + 6) * 0.2 + module.PICTURES_S, abs=0.01)
    assert n_bytes == 4 * MEASURED.parameters + module.TABLES_BYTES
    reading = dataclasses.replace(MEASURED, read_s=1.0)
    assert cost_of(spec, reading)[0] - seconds == pytest.approx(24)
    assert cost_of(spec, reading, reads=False)[0] == seconds, "from the store"
    # Slots share the runs.
    assert wall_seconds([3.0, 3.0, 3.0], 2) == 6.0
    assert wall_seconds([5.0, 1.0, 1.0, 1.0], 2) == 5.0


# Compared with real runs


@pytest.mark.slow
def test_disk_is_that_of_a_real_run(tmp_path: Path) -> None:
    given = ("trainer.keep_last=true", "backbone.name=tu-resnet18")  # weights that outweigh the names in a checkpoint
    made = probe(prepare(tiny_config(tmp_path, *given)))
    run_dir = tiny_run(tmp_path, *given).run_dir
    sizes = {p: p.stat().st_size for p in run_dir.rglob("*") if p.is_file()}
    checkpoints = sum(n for p, n in sizes.items() if p.suffix == ".pt")
    assert made.checkpoint_bytes / checkpoints == pytest.approx(1, abs=0.05)
    assert 4 * made.parameters / sizes[run_dir / "checkpoints" / "best.pt"] == pytest.approx(1, abs=0.05)
    assert 1 / 3 < module.TABLES_BYTES / (sum(sizes.values()) - checkpoints) < 3


def test_it_writes_nothing(tmp_path: Path, monkeypatch: Patch, writes: list[str], capsys: Captured) -> None:
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    assert dry_run("seed=range(2)", "outputs=out", "trainer.threads=2") == 0
    assert "time: about" in capsys.readouterr().out
    assert [path for path in writes if not path.startswith(("/dev/", os.environ["SEGEXP_CACHE"]))] == []
    assert list(tmp_path.iterdir()) == []
    assert torch.get_num_threads() == threads


def test_the_documentation_has_the_numbers_of_runs(repository: Path) -> None:
    """`list studies` counts the sweeps; test_studies and the test below compare it with plans."""
    text = (repository / "docs" / "studies.md").read_text(encoding="utf-8")
    told = {m[1]: [int(m[2]), int(m[3])] for m in re.finditer(r"^\| `(\w+)` \|.*\| (\d+) \| (\d+) \|$", text, re.M)}
    budgets = {row["name"]: [int(b.split()[1]) for b in row["budgets"]] for row in listed("studies")}
    budgets.pop("default")
    assert told == budgets


@pytest.mark.slow
@pytest.mark.alone
def test_time_is_that_of_a_real_sweep(tmp_path: Path) -> None:
    """Within a factor of 3: other work on the machine, and the slots themselves, slow runs down."""
    words = [f"outputs={tmp_path}", "trainer.device=cpu", "dataset.number=200", "trainer.epochs=3", "seed=range(4)"]
    GlobalHydra.instance().clear()
    with hydra_session() as extra:
        plan = make_plan(words, extra)
    found = estimate(plan.jobs, Slots((None, None), 1))
    assert found.wall_s is not None
    begun = time.perf_counter()
    assert cli.main(["train", "-m", *words, "hydra.launcher.n_jobs=2", "hydra.launcher.threads=1"]) == 0
    assert 1 / 3 < (time.perf_counter() - begun) / found.wall_s < 3
