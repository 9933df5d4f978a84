"""Slots of this machine: how many, on what, and what the options may not be."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from segexp.config import LocalOptions
from segexp.errors import UsageError
from segexp.records import COLUMNS, write_table
from segexp.sweep import local
from segexp.sweep.local import Slots, epochs_done, slots_for, slots_of, visible_gpus


@pytest.fixture(autouse=True)
def _two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "visible_gpus", lambda: ["0", "1"])


@pytest.mark.parametrize(("options", "any_gpu", "slots"), [
    ({}, False, Slots((None,) * 8, 1)),
    ({"threads": 3}, False, Slots((None, None), 3)),
    ({"n_jobs": 3, "threads": 1}, False, Slots((None,) * 3, 1)),
    ({"threads": 16}, False, Slots((None,), 16)),
    ({}, True, Slots(("0", "1"), 4)),
    ({"runs_per_gpu": 2}, True, Slots(("0", "1", "0", "1"), 2)),
    ({"gpus": [1, 3]}, True, Slots(("1", "3"), 4)),
    ({"gpus": 0}, True, Slots((None,) * 8, 1)),
    ({"gpus": ["MIG-x"], "n_jobs": 2}, True, Slots(("MIG-x", "MIG-x"), 4)),
])  # fmt: skip
def test_slots(options: dict[str, Any], any_gpu: bool, slots: Slots) -> None:
    assert slots_of(LocalOptions(**options), any_gpu, cores=8) == slots


@pytest.mark.parametrize(("threads", "options", "slots"), [
    ([4, 2], {}, Slots((None, None), 4)),
    ([4, 4], {"threads": 1, "n_jobs": 3}, Slots((None,) * 3, 4)),
    ([4, None], {}, Slots((None,) * 8, 1)),
])  # fmt: skip
def test_threads_that_all_runs_ask_for_count(threads: list[int | None], options: dict[str, Any], slots: Slots,
                                             monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setattr(local, "usable_cores", lambda: 8)
    trainers = [SimpleNamespace(threads=n, device="cpu") for n in threads]
    jobs: list[Any] = [SimpleNamespace(spec=SimpleNamespace(config=SimpleNamespace(trainer=one))) for one in trainers]
    assert slots_for(jobs, LocalOptions(**options)) == slots


@pytest.mark.parametrize("options", [
    {"n_jobs": 0}, {"n_jobs": "all"}, {"threads": 0}, {"runs_per_gpu": 0}, {"retries": -1}, {"gpus": 3},
    {"gpus": "0"}, {"timeout_minutes": 0.0}, {"n_jobs": True},
])  # fmt: skip
def test_bad_options_are_refused_by_name(options: dict[str, Any]) -> None:
    (key,) = options
    with pytest.raises(UsageError, match=f"hydra.launcher.{key}="):
        slots_of(LocalOptions(**options), any_gpu=True, cores=8)


def test_gpus_are_those_that_may_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, 3")
    assert visible_gpus() == ["2", "3"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert visible_gpus() == []
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert visible_gpus() == []


def test_progress_is_read_from_the_run_directory_and_its_absence_stops_nothing(tmp_path: Path) -> None:
    path = tmp_path / "epochs.csv"
    assert epochs_done(tmp_path) == (0, None)
    told = [(1, "train", 0.1), (1, "val", 0.2), (2, "train", 0.3), (2, "val", 0.4)]
    empty = dict.fromkeys(COLUMNS["epochs"])
    write_table(path, "epochs", [empty | {"epoch": e, "split": s, "dice": d} for e, s, d in told])
    assert epochs_done(tmp_path) == (2, 0.4)
    for content in (b"", b"epoch,dice\n1,0.1\n", b"\0\xff"):
        path.write_bytes(content)
        assert epochs_done(tmp_path) == (0, None)
    path.unlink()
    path.mkdir()
    assert epochs_done(tmp_path) == (0, None)
