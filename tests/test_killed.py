"""A run that is killed at any moment and begun again ends with the same bytes as one that never was."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from kill_targets import run_until
from tiny import tables, tiny_config

from segexp.records import read_run
from segexp.running import prepare
from segexp.sweep.pool import Board, Task, run_tasks

EPOCHS = 4
KILLS = 30


def carry_out(folder: Path, moments: dict[str, int]) -> Board:
    """Runs of one configuration, each below a folder of its own, killed at their moments."""
    tasks = []
    for name, moment in moments.items():
        tiny = tiny_config(folder / name, f"trainer.epochs={EPOCHS}", "dataset.number=20", "augment=medium",
                           "trainer.keep_last=true")  # fmt: skip
        payload = {"config": dataclasses.asdict(tiny), "moment": moment, "moments": str(folder / f"{name}.moments")}
        payload["run_id"] = prepare(tiny).run_id
        tasks.append(Task(name, payload, folder / f"{name}.txt"))
    return run_tasks(tasks, [None, None], run_until, retries=0)


def the_run(folder: Path) -> Path:
    (run_dir,) = (folder / "default").glob("lesions-*")
    return run_dir


def weights(run_dir: Path, name: str) -> dict[str, torch.Tensor]:
    network: dict[str, torch.Tensor] = torch.load(run_dir / "checkpoints" / name, weights_only=True)["network"]
    return network


@pytest.mark.slow
def test_killed_at_any_moment_and_begun_again_is_as_never_killed(tmp_path: Path) -> None:
    board = carry_out(tmp_path, {"whole": 0})
    assert board.endings["whole"].code == 0, (tmp_path / "whole.txt").read_text()
    whole = the_run(tmp_path / "whole")
    lived = (tmp_path / "whole.moments").read_text().splitlines()
    first_checkpoint = lived.index("os.rename last.pt")
    last_epoch = len(lived) - 1 - lived[::-1].index("os.rename last.pt")

    # All over the run, and in particular: half-written checkpoints, tables about to appear, and the finalisation.
    chosen = {round(i * (len(lived) - 1) / 11) + 1 for i in range(12)}
    chosen |= {i + 1 for i, name in enumerate(lived) if name == "half a checkpoint"}
    chosen |= {i + 1 for i, name in enumerate(lived) if name in ("os.rename epochs.csv", "os.rename last.pt")}
    finalising = range(last_epoch + 2, len(lived) + 1)
    spread = (finalising[round(i * (len(finalising) - 1) / 40)] for i in range(41))
    for moment in spread:
        if len(chosen) < KILLS:
            chosen.add(moment)
    assert len(chosen) >= KILLS
    assert sum(moment > first_checkpoint + 1 for moment in chosen) >= 20
    assert sum(moment > last_epoch + 1 for moment in chosen) >= 5

    killed = carry_out(tmp_path, {f"at{moment}": moment for moment in sorted(chosen)})
    # The thread that writes checkpoints skips one while it is busy, so that a life may have fewer moments.
    alive = [name for name, ending in killed.endings.items() if "SIGKILL" not in ending.crash]
    assert all(killed.endings[name].code == 0 for name in alive)
    assert len(alive) <= len(chosen) / 5
    again = carry_out(tmp_path, {f"at{moment}": 0 for moment in sorted(chosen)})
    for moment in sorted(chosen):
        name, when = f"at{moment}", f"killed at {lived[moment - 1]} ({moment} of {len(lived)})"
        assert again.endings[name].code == 0, f"{when}: {(tmp_path / f'{name}.txt').read_text()}"
        run_dir = the_run(tmp_path / name)
        assert read_run(run_dir)["status"] == "done", when
        assert tables(run_dir) == tables(whole), when
        for checkpoint in ("last.pt", "best.pt"):
            ours, theirs = weights(run_dir, checkpoint), weights(whole, checkpoint)
            assert all(torch.equal(ours[key], theirs[key]) for key in theirs), when
        assert {p.name for p in run_dir.iterdir()} == {p.name for p in whole.iterdir()}, when
        for picture in (whole / "predictions").iterdir():
            assert (run_dir / "predictions" / picture.name).read_bytes() == picture.read_bytes(), when
        records = [json.loads((d / "run.json").read_text()) for d in (run_dir, whole)]
        for key in ("summary", "diagnostics", "warnings", "n_rows_expected", "init_sha", "order_sha", "identity"):
            assert records[0][key] == records[1][key], (when, key)
