"""Studies on disk: every run is found, in one state, whatever lies beside it and whoever writes meanwhile."""

import json
import os
from pathlib import Path

import pytest
from fabricated import make_plan, make_run, record_of

from segexp import cli
from segexp.errors import UsageError
from segexp.records import runs as module
from segexp.records import write_json
from segexp.records.process import ownership
from segexp.records.runs import STATES, Duplicates, Run, runs_in, studies_in

Captured = pytest.CaptureFixture[str]


def states(folder: Path) -> dict[str, str]:
    return {run.run_id: run.state for study in studies_in(folder) for run in runs_in(study)}


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A study with a run in every state but running."""
    folder = tmp_path / "outputs" / "default"
    make_run(folder, "00000001")
    make_run(folder, "00000002", "diverged", epochs=1)
    make_run(folder, "00000003", "failed", epochs=1)
    make_run(folder, "00000004", "interrupted", epochs=1)
    make_run(folder, "00000005", "running", epochs=1)
    (make_run(folder, "00000006") / "run.json").write_text("{broken")
    make_plan(folder, "00000001", "00000007")
    return folder


EXPECTED = {
    "00000001": "done", "00000002": "diverged", "00000003": "failed", "00000004": "interrupted", "00000005": "stale",
    "00000006": "unreadable", "00000007": "not begun",
}  # fmt: skip


@pytest.mark.parametrize("where", ["outputs", "outputs/default"])
def test_every_state(study: Path, where: str) -> None:
    assert states(study.parent.parent / where) == EXPECTED
    assert set(STATES) == {*EXPECTED.values(), "running"}


def test_one_run_directory(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (run_dir,) = study.glob("*-00000001")
    assert states(run_dir) == {"00000001": "done"}
    monkeypatch.chdir(run_dir)
    (found,) = studies_in(Path())
    assert (found.name, found.names) == ("default", (run_dir.name,))


@pytest.mark.parametrize("status", ["running", "interrupted", "failed"])
def test_the_lock_holder_decides_whatever_the_record_says(tmp_path: Path, status: str) -> None:
    run_dir = make_run(tmp_path, "00000001", status)
    with ownership(run_dir):
        (run,) = runs_in(studies_in(tmp_path)[0])
        assert (run.state, f"process {os.getpid()}" in run.owner) == ("running", True)
    assert states(tmp_path) == {"00000001": {"running": "stale"}.get(status, status)}


def test_a_run_from_its_first_moment_on(tmp_path: Path) -> None:
    run_dir = tmp_path / "lesions-0000000a"
    run_dir.mkdir()
    with ownership(run_dir):
        assert states(tmp_path) == {"0000000a": "running"}
    (run_dir / "config.yaml").touch()
    (run,) = runs_in(studies_in(tmp_path)[0])
    assert (run.state, "first record" in run.reason) == ("unreadable", True)
    make_plan(tmp_path, "0000000a")
    assert states(tmp_path) == {"0000000a": "not begun"}


@pytest.mark.parametrize(
    ("before", "written", "owners", "state"),
    [("running", {"status": "done", "summary": {}}, [""], "done"),
     ("interrupted", {"status": "running"}, ["", "process 1 on machine"], "running")],
)  # fmt: skip
def test_a_run_that_ends_or_is_taken_up_while_it_is_looked_at(
    before: str, written: dict[str, object], owners: list[str], state: str,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Between our look at the record and our look at the lock another process writes the record."""
    run_dir = make_run(tmp_path, "00000001", before)
    left = iter(owners)

    def look(path: Path) -> str:
        write_json(run_dir / "run.json", json.loads((run_dir / "run.json").read_text()) | written)
        return next(left)

    monkeypatch.setattr(module, "lock_holder", look)
    assert states(tmp_path) == {"00000001": state}


def test_a_run_that_is_moved_away_while_it_is_looked_at(tmp_path: Path) -> None:
    make_run(tmp_path, "00000001")
    second = make_run(tmp_path, "00000002")
    runs = runs_in(studies_in(tmp_path)[0])
    assert next(runs).run_id == "00000001"
    second.rename(tmp_path / f"{second.name}.old1")
    assert list(runs) == []


@pytest.mark.parametrize(("content", "said"), [
    (b"", "cannot be read"),
    (b"\xff\xfe", "cannot be read"),
    (b"[1]", "does not hold"),
    (b"null", "does not hold"),
    (json.dumps(record_of("0", "done", {}) | {"schema_version": 99}).encode(), "schema version 99"),
    (json.dumps(record_of("0", "sleeping", {})).encode(), "'sleeping'"),
    (json.dumps(record_of("0", "done", {}) | {"config": [1]}).encode(), "does not hold"),
    (json.dumps(record_of("0", "done", {}) | {"summary": None}).encode(), "does not hold"),
])  # fmt: skip
def test_a_damaged_record_hides_no_other(tmp_path: Path, content: bytes, said: str) -> None:
    (make_run(tmp_path, "00000001") / "run.json").write_bytes(content)
    make_run(tmp_path, "00000002")
    make_plan(tmp_path, "00000001")
    damaged, other = runs_in(studies_in(tmp_path)[0])
    assert (damaged.state, other.state) == ("unreadable", "done")
    assert said in damaged.reason
    assert str(damaged.path / "run.json") in damaged.reason


def test_earlier_attempts_are_counted_and_nothing_more(study: Path) -> None:
    for number in (1, 2):
        make_run(study, f"0000000{number}0").rename(study / f"lesions-unet-arctan-s0-00000001.old{number}")
    assert states(study) == EXPECTED
    assert studies_in(study)[0].archived == 2


def test_several_plans_are_one(tmp_path: Path) -> None:
    refused = [{"overrides": "loss=bce", "reason": "no"}]
    make_plan(tmp_path, "00000001", "00000002", name="a", refused=refused)
    make_plan(tmp_path, "00000002", "00000003", name="b", refused=refused, dropped=[{"overrides": "x", "reason": "y"}])
    make_run(tmp_path, "00000002", "interrupted")
    # A plan knows a run by its id: the directory may have been called after another name of the data set.
    (tmp_path / "lesions-unet-arctan-s0-00000002").rename(tmp_path / "other-00000002")
    (found,) = studies_in(tmp_path)
    assert {run.run_id: run.state for run in runs_in(found)} == {
        "00000001": "not begun", "00000002": "interrupted", "00000003": "not begun",
    }  # fmt: skip
    assert [run.planned.overrides for run in runs_in(found) if run.planned] == [
        f"activation=arctan seed=0000000{n}" for n in (1, 3, 2)
    ]
    assert (found.refused, found.dropped) == ((("loss=bce", "no"),), (("x", "y"),))


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"runs": [1]}', '{"runs": [{"run_id": "1"}]}', "\xff"])
def test_a_damaged_plan_is_told_and_hides_nothing(tmp_path: Path, content: str) -> None:
    make_run(tmp_path, "00000001")
    make_plan(tmp_path, "00000002", name="good")
    (tmp_path / ".sweeps" / "plan-bad.json").write_bytes(content.encode("latin-1"))
    (found,) = studies_in(tmp_path)
    assert [run.run_id for run in runs_in(found)] == ["00000001", "00000002"]
    assert len(found.problems) == 1
    assert "plan-bad.json" in found.problems[0]


def test_a_folder_without_runs_is_refused_with_a_cure(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        studies_in(tmp_path / "nowhere")
    (tmp_path / "other").mkdir()
    with pytest.raises(UsageError, match="outputs folder"):
        studies_in(tmp_path)


@pytest.mark.parametrize(("change", "said"), [
    *(({"directory": name}, "is no name of a run directory")
      for name in ("/elsewhere/x-00000008", "../x-00000008", "a/x-00000008", "..", "")),
    ({"config": {"trainer": 3}}, "is no configuration"),
])  # fmt: skip
def test_a_plan_that_is_not_of_this_study_is_reported(study: Path, change: dict[str, object], said: str) -> None:
    make_plan(study, "00000008", name="bad")
    path = study / ".sweeps" / "plan-bad.json"
    content = json.loads(path.read_text())
    content["runs"][0] |= change
    path.write_text(json.dumps(content))
    (problem,) = studies_in(study)[0].problems
    assert said in problem
    assert states(study) == EXPECTED


@pytest.mark.parametrize("damage", [
    {"versions": [1]}, {"device": "cpu"}, {"git": "x"}, {"warnings": 3}, {"run_id": [1]}, {"summary": 3},
    {"summary": {"dice": "high"}}, {"diagnostics": {"dead_output": "x"}}, {"seconds": "long"},
    {"config": {"trainer.epochs": "x"}}, {"config": {"seed": "x"}},
])  # fmt: skip
def test_wrong_types_are_unreadable(study: Path, damage: dict[str, object], capsys: Captured) -> None:
    """One damaged run is named, and hinders no command from telling of the others."""
    (run_dir,) = study.glob("*-00000001")
    content = json.loads((run_dir / "run.json").read_text())
    write_json(run_dir / "run.json", content | damage)
    assert states(study) == EXPECTED | {"00000001": "unreadable"}
    assert cli.main(["status", str(study)]) == 0
    assert cli.main(["collect", str(study)]) == 1
    capsys.readouterr()
    key = next(iter(damage))
    for words in (["show", str(run_dir)], ["diff", str(run_dir), str(run_dir)]):
        assert cli.main(words) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert key in error or "trainer.epochs" in error or "seed" in error


def place(name: str, state: str = "done", identity: str = "", dice: object = 0.5) -> Run:
    """The run 00000001 in a place."""
    return Run("00000001", state, Path(name), identity=identity, cells={"dice": str(dice)})


def test_duplicates_are_counted_once() -> None:
    duplicates = Duplicates()
    offered = [
        (place("a", "failed"), True),
        (place("b", "incomplete"), False),
        (place("c", "diverged"), True),
        (place("d", identity="x"), True),
        (place("e", dice="0.50", identity="x"), False),
        (place("f", "diverged"), False),
        (place("g", identity="y", dice=0.7), False),
    ]
    assert [duplicates.add(run, 1) for run, _ in offered] == [counts for _, counts in offered]
    assert [f"{left.path}{kept.path}" for left, kept in duplicates.left_out] == ["ba", "ac", "cd", "ed", "fd"]
    (other,) = duplicates.others
    assert {"g", "d", "00000001:"} <= set(other.replace(",", "").split())
    assert [str(run.path) for run in duplicates.runs.values()] == ["d"]
    # Another version of segexp had not all scores.
    newer = Run("00000001", "done", Path("n"), identity="x", cells={"dice": "0.5", "hd95_missed": "0"})
    assert not duplicates.add(newer, 1)
    for dice, images in ((0.7, 1), ("", 1), ("x", 1), (0.5, 2)):
        with pytest.raises(UsageError, match=r"00000001 .* d .* h "):
            duplicates.add(place("h", dice=dice), images)
