"""When last.pt and best.pt are written: in the background, when due, and so that the two never lack what continues."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tables, tiny_run, tiny_task

from segexp.records.process import ownership
from segexp.training import checkpoint
from segexp.training.checkpoint import Checkpoints, copied
from segexp.training.loop import as_checkpoint, begin, restore


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    with ownership(tmp_path):
        yield tmp_path / "checkpoints"


def at_epoch(epoch: int, best_epoch: int) -> dict[str, Any]:
    return {"network": {"w": torch.full((3,), float(epoch))}, "epoch": epoch, "best_epoch": best_epoch, "rows": [epoch]}


def on_disk(folder: Path) -> dict[str, Any]:
    return {path.name: torch.load(path, weights_only=True) for path in folder.glob("*.pt")}


def due(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    monkeypatch.setattr(checkpoint, "WRITE_EVERY_S", seconds)


def test_a_short_run_that_ends_well_writes_only_best_pt(folder: Path) -> None:
    with Checkpoints(folder, {"identity": "x"}, keep_last=False) as kept:
        kept.add(at_epoch(1, 1))
        kept.add(at_epoch(2, 1))
        kept.finish()
    assert {name: (one["epoch"], one["network"]["w"][0].item()) for name, one in on_disk(folder).items()} == {
        "best.pt": (1, 1.0)
    }


@pytest.mark.parametrize("kept_to_the_end", [True, False])
def test_what_is_not_written_is_written_when_a_run_is_interrupted_or_keeps_it(
    folder: Path, kept_to_the_end: bool
) -> None:
    ended: list[str] = []
    try:
        with Checkpoints(folder, {}, keep_last=kept_to_the_end) as kept:
            kept.add(at_epoch(1, 1))
            kept.add(at_epoch(2, 1))
            if not kept_to_the_end:
                raise KeyboardInterrupt
            kept.finish()
    except KeyboardInterrupt:
        ended.append("interrupted")
    assert ended == ["interrupted"] * (not kept_to_the_end)
    found = on_disk(folder)
    assert (found["last.pt"]["epoch"], found["best.pt"]["epoch"]) == (2, 1)


def test_a_due_checkpoint_is_written_after_its_epoch(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    due(monkeypatch, 0)
    with Checkpoints(folder, {}, keep_last=False) as kept:
        for epoch in (1, 2):
            kept.add(at_epoch(epoch, epoch))
            kept.wait()
            assert [one["epoch"] for one in on_disk(folder).values()] == [epoch, epoch]
        due(monkeypatch, 60)
        kept.add(at_epoch(3, 2))
        kept.wait()
        assert on_disk(folder)["last.pt"]["epoch"] == 2


def test_a_copy_stays_as_it_was_while_it_is_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training goes on meanwhile, and so do epochs."""
    due(monkeypatch, 0)
    real, content = checkpoint.save_checkpoint, at_epoch(1, 1)

    def slow(path: Path, saved: dict[str, Any]) -> None:
        time.sleep(0.1)
        real(path, saved)

    monkeypatch.setattr(checkpoint, "save_checkpoint", slow)
    with Checkpoints(folder, {}, keep_last=False) as kept:
        kept.add(content)
        content["network"]["w"].fill_(7)
        content["rows"].append(7)
        kept.add(at_epoch(2, 2))
        kept.wait()
        found = on_disk(folder)
        assert [found[name]["network"]["w"].tolist() for name in ("last.pt", "best.pt")] == [[1.0] * 3] * 2
        assert found["last.pt"]["rows"] == [1]


def test_an_error_of_a_write_is_raised_at_the_next_epoch_and_at_the_end(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    due(monkeypatch, 0)

    def full(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(checkpoint, "save_checkpoint", full)
    with Checkpoints(folder, {}, keep_last=False) as kept:
        kept.add(at_epoch(1, 1))
        time.sleep(0.05)
        with pytest.raises(OSError, match="disk full"):
            kept.add(at_epoch(2, 2))
    due(monkeypatch, 60)
    with pytest.raises(OSError, match="disk full"):
        _ended_well(folder)


def _ended_well(folder: Path) -> None:
    with Checkpoints(folder, {}, keep_last=False) as kept:
        kept.add(at_epoch(1, 1))
        kept.finish()


def test_a_copy_uses_memory_again_and_keeps_the_versions_of_modules() -> None:
    network = torch.nn.BatchNorm2d(3)
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.randn(2, 3, 4, 4)).sum().backward()
    optimizer.step()
    both = {"network": network.state_dict(), "optimizer": optimizer.state_dict()}
    first = copied(both)
    assert vars(first["network"]) == vars(both["network"])
    optimizer.step()
    place = first["network"]["weight"].data_ptr()
    again = copied(both, first)
    assert again["network"]["weight"].data_ptr() == place != network.weight.data_ptr()
    torch.testing.assert_close(again["optimizer"]["state"], both["optimizer"]["state"], rtol=0, atol=0)


@pytest.mark.parametrize("bests", ["1111", "1222", "1134", "1133", "0033"])
def test_at_any_moment_the_best_weights_of_last_pt_are_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bests: str
) -> None:
    """Whichever epochs last.pt is due after."""
    for due_after in range(16):
        disk, moments = dict[str, dict[str, Any]](), list[dict[str, dict[str, Any]]]()

        def save(path: Path, content: dict[str, Any], disk: Any = disk, moments: Any = moments) -> None:
            disk[path.name] = copied(content)
            moments.append(dict(disk))

        monkeypatch.setattr(checkpoint, "save_checkpoint", save)
        with Checkpoints(tmp_path, {}, keep_last=False) as kept:
            for epoch, best in enumerate(map(int, bests), start=1):
                due(monkeypatch, 0 if due_after & 1 << epoch - 1 else 60)
                kept.add(at_epoch(epoch, best))
                kept.wait()
            kept.finish()
        for moment in moments:
            last = moment.get("last.pt")
            if last and last["best_epoch"]:
                found = [one for one in (moment.get("best.pt"), last, last.get("best")) if one]
                (weights,) = {one["network"]["w"][0].item() for one in found if one["epoch"] == last["best_epoch"]}
                assert weights == last["best_epoch"]
        assert moments[-1]["best.pt"]["epoch"] == int(bests[-1])


@pytest.mark.slow
def test_a_run_that_dies_between_last_pt_and_best_pt_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    four = ("trainer.epochs=4", "trainer.keep_last=true")
    whole = tiny_run(tmp_path / "whole", *four).run_dir
    real, writes = checkpoint.save_checkpoint, list[str]()

    def dying(path: Path, content: dict[str, Any]) -> None:
        writes.append(path.name)
        if path.name == "best.pt" and writes.count("best.pt") > 1:
            raise MemoryError
        real(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "WRITE_EVERY_S", 0)
        patch.setattr(checkpoint, "save_checkpoint", dying)
        assert tiny_run(tmp_path / "died", *four).status == "failed"
    assert writes.count("best.pt") > 1
    again = tiny_run(tmp_path / "died", *four).run_dir
    assert tables(again) == tables(whole)
    for name in ("last.pt", "best.pt"):
        ours, theirs = (torch.load(d / "checkpoints" / name, weights_only=True)["network"] for d in (again, whole))
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_best_weights_are_restored_from_last_pt(tmp_path: Path, folder: Path) -> None:
    prepared, task = tiny_task(tmp_path)
    state = begin(prepared.config, task)
    folder.mkdir()
    best: dict[str, Any] = {"epoch": 2, "network": {n: t + 1 for n, t in task.network.state_dict().items()}}
    last = as_checkpoint(task, state) | {"epoch": 3, "best_epoch": 2, "best": best, "identity": "x"}
    checkpoint.save_checkpoint(folder / "last.pt", last)
    kept = Checkpoints(folder, {"identity": "x"}, keep_last=False)
    restore(task, state, kept)
    assert kept.best is not None
    for found in (kept.best, on_disk(folder)["best.pt"]):
        assert found["epoch"] == 2
        assert all(torch.equal(found["network"][name], tensor) for name, tensor in best["network"].items())
