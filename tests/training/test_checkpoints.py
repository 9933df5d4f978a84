"""Checkpoints are whole or not there, and hold nothing that could run."""

import os
import signal
from pathlib import Path

import pytest
import torch

from segexp.errors import UsageError
from segexp.training.loop import load_checkpoint, save_checkpoint

CPU = torch.device("cpu")


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    content = {"network": {"w": torch.arange(3.0)}, "epoch": 2, "rows": [{"dice": 0.1 + 0.2, "split": "val"}]}
    save_checkpoint(tmp_path / "a.pt", content)
    back = load_checkpoint(tmp_path / "a.pt", CPU)
    assert torch.equal(back["network"].pop("w"), torch.arange(3.0))
    assert back == {"network": {}, "epoch": 2, "rows": content["rows"]}


def test_an_interrupt_waits_until_the_checkpoint_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path / "a.pt", {"epoch": 1})
    real = torch.save

    def interrupted(*args: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(torch, "save", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(tmp_path / "a.pt", {"epoch": 2})
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert load_checkpoint(tmp_path / "a.pt", CPU) == {"epoch": 2}
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]


def test_a_failed_write_keeps_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path / "a.pt", {"epoch": 1})

    def full(*args: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(tmp_path / "a.pt", {"epoch": 2})
    assert load_checkpoint(tmp_path / "a.pt", CPU) == {"epoch": 1}


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(UsageError, match=r"a\.pt is not a checkpoint"):
        load_checkpoint(tmp_path / "a.pt", CPU)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "owned",))

    torch.save({"network": Attack()}, tmp_path / "a.pt")
    with pytest.raises(UsageError):
        load_checkpoint(tmp_path / "a.pt", CPU)
    assert not (tmp_path / "owned").exists()
