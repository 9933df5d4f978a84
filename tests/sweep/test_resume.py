"""What is not over is begun again from its record alone, as the run that it was."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny import TINY, tables, tiny_run

from segexp import cli
from segexp.config.compose import hydra_session
from segexp.records import flatten, read_run, write_json
from segexp.records.process import ownership
from segexp.running import config_yaml
from segexp.sweep.plan import keep_plan, make_plan, resume_plan

SWEEP = [*TINY, "trainer.epochs=1", "activation=sigmoid,arctan", "loss=dice", "seed=0,1"]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run done, one failed, one whose process died, one that never began; the folder was moved since."""
    outputs = tmp_path_factory.mktemp("before") / "outputs"
    with hydra_session() as extra:
        plan = make_plan([*SWEEP, f"outputs='{outputs}'"], extra)
        keep_plan(plan)
    done = tiny_run(outputs, "trainer.epochs=1", "activation=sigmoid", "loss=dice").run_dir
    for job, status in zip(plan.jobs[1:3], ("failed", "running"), strict=True):
        shutil.copytree(done, job.run_dir, ignore=shutil.ignore_patterns("*.csv", "checkpoints"))
        (job.run_dir / "config.yaml").write_text(config_yaml(job.spec.config))
        ids = {"run_id": job.spec.run_id, "identity": job.spec.identity}
        changes = {"status": status, "error": "it broke", "config": flatten(job.spec.config), **ids}
        write_json(job.run_dir / "run.json", read_run(done) | changes)
    moved = outputs.parent.parent / "moved"
    outputs.rename(moved)
    return moved / "default"


def states(study: Path, *only: str) -> dict[str, list[str]]:
    with hydra_session() as extra:
        plan = resume_plan(study, only, [], extra)
    return {"jobs": sorted(job.run_dir.name for job in plan.jobs), "refused": [r.reason for r in plan.refused]}


def test_all_that_is_not_over_is_found(study: Path) -> None:
    names = sorted(p.name for p in study.iterdir() if not p.name.startswith("."))
    found = states(study)
    assert found["refused"] == []
    assert len(found["jobs"]) == 3
    assert len(set(found["jobs"]) - set(names)) == 1
    assert [len(states(study, name)["jobs"]) for name in ("failed", "interrupted", "not-begun", "pending")] == [1] * 4
    assert len(states(study, "failed", "not-begun")["jobs"]) == 2


def test_a_run_that_someone_is_at_is_left_to_them(study: Path) -> None:
    (stale,) = [p.parent for p in study.glob("*/run.json") if read_run(p.parent)["status"] == "running"]
    with ownership(stale), hydra_session() as extra:
        plan = resume_plan(study, [], [], extra)
    assert len(plan.jobs) == 2
    assert any(stale.name in note for note in plan.notes)


def test_what_jobs_of_a_cluster_print_is_in_the_study(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = []

    def launch(base: Any, *_: Any, **options: Any) -> None:
        folders.append(base.hydra.launcher.submitit_folder)

    monkeypatch.setattr("segexp.sweep.check_engine", lambda *_: None)
    monkeypatch.setattr("segexp.sweep.engines.launch_through", launch)
    assert cli.main(["resume", str(study), "hydra/launcher=submitit_slurm", "--no-wait"]) == 0
    assert folders == [str(study / ".sweeps" / "slurm" / "%j")]


def test_overrides_that_make_another_run_are_refused(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["resume", str(study), "trainer.epochs=2"]) == 2
    assert "segexp train --from" in capsys.readouterr().err


def test_a_run_of_other_numerics_is_refused_with_the_cure(study: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(study, tmp_path / "default"))
    (path,) = [p for p in copy.glob("*/run.json") if read_run(p.parent)["status"] == "failed"]
    write_json(path, read_run(path.parent) | {"numerics": 99})
    found = states(copy)
    assert len(found["jobs"]) == 2
    (reason,) = found["refused"]
    assert all(part in reason for part in (path.parent.name, "99", "resume=restart"))


def test_nothing_to_resume_is_no_mistake(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (done,) = [p.parent for p in study.glob("*/run.json") if read_run(p.parent)["status"] == "done"]
    assert cli.main(["resume", str(done)]) == 0
    assert "nothing to resume" in capsys.readouterr().out
    assert cli.main(["resume", str(study / "nothing")]) == 2


@pytest.mark.slow
def test_resuming_finishes_the_study(study: Path, tmp_path: Path) -> None:
    copy = tmp_path / "outputs" / "default"
    shutil.copytree(study, copy)
    assert cli.main(["resume", str(copy)]) == 0
    records = [json.loads(p.read_text()) for p in copy.glob("*/run.json")]
    assert [record["status"] for record in records] == ["done"] * 4
    assert len({record["run_id"] for record in records}) == 4
    whole = tiny_run(tmp_path / "whole", "trainer.epochs=1", "activation=arctan", "loss=dice", "seed=1").run_dir
    assert tables(copy / whole.name) == tables(whole)
