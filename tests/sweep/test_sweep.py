"""What becomes of a sweep's runs, read from their directories, and the exit code that says it."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from messages import mentions, one_mentions
from tiny import TINY, tables, tiny_run

from segexp import sweep
from segexp.commands import ignoring_closed_output
from segexp.errors import UsageError
from segexp.records import read_run, write_json
from segexp.records.owned import writer
from segexp.records.process import ownership
from segexp.running import record_death, threads_begun_with
from segexp.sweep import SweepReport, SweptRun, carry_out, local
from segexp.sweep.local import STOPPED, _clear_printed
from segexp.sweep.plan import LeftOut, Plan, base_of, make_plan
from segexp.sweep.pool import Board, Ending

Patch = pytest.MonkeyPatch


def ended(*statuses: str, stopped: bool = False) -> list[SweptRun]:
    return [SweptRun(f"seed={i}", Path(f"/x/{i}"), status, stopped=stopped) for i, status in enumerate(statuses)]


@pytest.mark.parametrize(("what", "refused", "waited", "code"), [
    (ended("done", "done"), 0, True, 0),
    (ended("done", "failed"), 0, True, 1),
    (ended("done", "diverged", "interrupted"), 0, True, 1),
    (ended("done"), 1, True, 1),
    (ended("done", "interrupted"), 0, True, 130),
    (ended("done", "pending"), 0, True, 130),
    (ended("done", "running"), 0, True, 1),
    (ended("running", stopped=True), 0, True, 130),
    (ended("done", "submitted"), 0, False, 0),
    (ended("submitted", "running"), 0, False, 0),
    (ended("submitted", "failed"), 0, False, 1),
])  # fmt: skip
def test_exit_codes(what: list[SweptRun], refused: int, waited: bool, code: int) -> None:
    plan = Plan(refused=[LeftOut("seed=-1", "out of range")] * refused)
    report = SweepReport(plan, what, waited)
    assert report.exit_code == code
    told = report.text()
    bad = [one for one in what if one.status not in ("done", "submitted", "pending") or one.stopped]
    assert ("not done:" in told) == bool(bad or refused)


def carried_out(session: list[str], tmp_path: Path, monkeypatch: Patch, endings: Any, *words: str) -> list[SweptRun]:
    """A sweep whose processes end as told, after ``endings`` has written what it likes."""

    def run_tasks(tasks: Any, *_: Any, **__: Any) -> Board:
        board = Board(len(tasks))
        board.stopping, board.endings = 0, {}
        endings(tasks, board)
        return board

    monkeypatch.setattr(local, "run_tasks", run_tasks)
    overrides = [*TINY, f"outputs='{tmp_path}'", *words]
    return carry_out(make_plan(overrides, session), base_of(overrides, session), session).runs


def begin(name: str, status: str) -> None:
    Path(name).mkdir(parents=True)
    write_json(Path(name) / "run.json", {"status": status, "error": "interrupted; ..."})


def test_a_run_without_a_recorded_end_has_failed(session: list[str], tmp_path: Path, monkeypatch: Patch) -> None:
    names: list[Path] = []

    def endings(tasks: Any, board: Board) -> None:
        names.extend(task.output for task in tasks)
        begin(tasks[0].name, "interrupted")
        board.endings[tasks[0].name] = Ending(0, "stopped after 5.0 min, its hydra.launcher.timeout_minutes")
        board.endings[tasks[1].name] = Ending(-9, "its process was ended by SIGKILL", attempts=2)
        board.endings[tasks[2].name] = Ending(2, reason="no such encoder")

    late, killed, refused = carried_out(session, tmp_path, monkeypatch, endings, "seed=0,1,2")
    assert (late.status, killed.status, refused.status) == ("failed",) * 3
    assert mentions(late.reason, "5.0 min", "hydra.launcher.timeout_minutes")
    assert read_run(late.run_dir)["status"] == "failed"
    assert "SIGKILL (2 attempts)" in killed.reason
    assert refused.reason == "no such encoder"
    # What a process prints has a file of its own.
    assert names[0].name.endswith(f"-{writer()}.txt")
    assert names[0].parent.parts[-2:] == (".sweeps", "printed")


def test_what_a_stopped_sweep_has_left(session: list[str], tmp_path: Path, monkeypatch: Patch) -> None:
    def endings(tasks: Any, board: Board) -> None:
        board.stopping = 1
        begin(tasks[0].name, "running")  # another process is at it

    other, waiting = carried_out(session, tmp_path, monkeypatch, endings, "seed=0,1")
    assert (other.status, waiting.status) == ("running", "pending")
    assert other.stopped
    assert waiting.reason == STOPPED
    assert SweepReport(Plan(), [other, waiting]).exit_code == 130


def test_without_waiting_all_are_submitted(session: list[str], tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr(sweep, "local_options", lambda base, wait: None)
    monkeypatch.setattr("segexp.sweep.engines.launch_through", lambda *_, **__: None)
    overrides = [*TINY, f"outputs='{tmp_path}'", "seed=0,1"]
    plan = make_plan(overrides, session)
    plan.jobs[0].run_dir.mkdir(parents=True)
    record = {"status": "failed", "error": "of last night", "identity": plan.jobs[0].spec.identity}
    write_json(plan.jobs[0].run_dir / "run.json", record)
    told = carry_out(plan, base_of(overrides, session), session, wait=False)
    assert [one.status for one in told.runs] == ["submitted", "submitted"]


def test_a_run_keeps_its_number_of_threads(session: list[str], tmp_path: Path, monkeypatch: Patch) -> None:
    seen = {}

    def endings(tasks: Any, board: Board) -> None:
        for task in tasks:
            seen[task.payload["config"]["seed"]] = task.payload["config"]["trainer"]["threads"]
            board.endings[task.name] = Ending(0)

    words = [*(w for w in TINY if not w.startswith("trainer.threads")), f"outputs='{tmp_path}'", "seed=0,1"]
    begun, _ = (job.run_dir for job in make_plan(words, session).jobs)
    (begun / "checkpoints").mkdir(parents=True)
    assert threads_begun_with(begun) is None
    (begun / "checkpoints" / "last.pt").touch()
    identity = make_plan(words, session).jobs[0].spec.identity
    write_json(begun / "run.json", {"status": "interrupted", "identity": identity, "device": {"threads": 3}})
    assert threads_begun_with(begun) == 3
    carried_out(session, tmp_path, monkeypatch, endings, "trainer.threads=null", "seed=0,1", "hydra.launcher.threads=2")
    assert seen == {0: 3, 1: 2}


def test_what_runs_of_dead_sweeps_printed_goes(tmp_path: Path) -> None:
    printed = tmp_path / ".sweeps" / "printed"
    printed.mkdir(parents=True)
    dead = writer().replace(str(os.getpid()), str(2**22 + 1))
    files = {name: printed / f"{name}-{tag}.txt" for name, tag in {"a": dead, "b": writer(), "c": dead}.items()}
    for name, path in files.items():
        path.touch()
        (tmp_path / name).mkdir()
        write_json(tmp_path / name / "run.json", {"error": f"killed; output: {files['c']}"} if name == "c" else {})
    _clear_printed([tmp_path])
    assert {path.name for path in printed.iterdir()} == {files["b"].name, files["c"].name}


@pytest.mark.parametrize("link", [".sweeps", ".sweeps/printed"])
def test_no_sweep_follows_a_link_in_its_study(link: str, tmp_path: Path) -> None:
    (tmp_path / "mine" / "printed").mkdir(parents=True)
    for file in ("diary.txt", "printed/diary.txt", "plan-1.json"):
        (tmp_path / "mine" / file).touch()
        os.utime(tmp_path / "mine" / file, (1e9, 1e9))
    study, before = tmp_path / "study", sorted((tmp_path / "mine").rglob("*"))
    (study / link).parent.mkdir(parents=True)
    (study / link).symlink_to(tmp_path / "mine")
    with pytest.raises(UsageError, match=rf"{link} is a symbolic link"):
        _clear_printed([study])
    assert sorted((tmp_path / "mine").rglob("*")) == before


def test_deaths_are_recorded_where_nobody_lives(tmp_path: Path) -> None:
    record_death(tmp_path / "nothing", "gone")
    write_json(tmp_path / "run.json", {"status": "running"})
    with ownership(tmp_path):
        record_death(tmp_path, "gone")
    assert read_run(tmp_path)["status"] == "running"
    record_death(tmp_path, "gone")
    assert (read_run(tmp_path)["status"], read_run(tmp_path)["error"]) == ("failed", "gone")
    write_json(tmp_path / "run.json", {"status": "done"})
    record_death(tmp_path, "gone", ("running", "interrupted"))
    assert read_run(tmp_path)["status"] == "done"


@pytest.mark.slow
def test_a_run_continued_by_other_software_says_so(tmp_path: Path) -> None:
    whole = tiny_run(tmp_path / "a")
    again = tiny_run(tmp_path / "b", "trainer.keep_last=true").run_dir
    record = read_run(again)
    write_json(
        again / "run.json", record | {"status": "interrupted", "versions": record["versions"] | {"torch": "1.0"}}
    )
    outcome = tiny_run(tmp_path / "b")
    assert outcome.status == "done"
    record = read_run(again)
    assert record["attempts"] == 2
    assert [e["versions"]["torch"] for e in record["earlier_attempts"]] == ["1.0"]
    assert one_mentions(record["warnings"], "other software", "torch 1.0")
    assert tables(again) == tables(whole.run_dir)


def test_a_sweep_goes_on_when_nobody_reads_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = (
        "import sys\n"
        "from segexp.commands import ignoring_closed_output\n"
        "with ignoring_closed_output():\n"
        "    for i in range(20000): print('line', i, flush=True)\n"
        "open(sys.argv[1], 'w').write('to the end')\n"
    )
    command = f"'{sys.executable}' -c \"{code}\" '{tmp_path / 'x'}' | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "line 0\n")
    assert (tmp_path / "x").read_text() == "to the end"
    with ignoring_closed_output():
        print("heard")
        print("told", file=sys.stderr)
        assert not sys.stdout.isatty()
    assert capsys.readouterr() == ("heard\n", "told\n")
