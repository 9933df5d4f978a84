"""Checkpoints: tensors and plain values, written atomically, read without running code (weights_only)."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from segexp.errors import UsageError, first_line
from segexp.records import open_atomic
from segexp.records.lock import signal_handlers


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write ``content``; at any moment ``path`` is a complete checkpoint, the old or the new one."""
    with _interrupts_held(), open_atomic(path) as file:
        torch.save(content, file)


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Delay Ctrl-C and SIGTERM to the end of the block: inside torch.save they would become another error."""
    waiting: list[int] = []
    with signal_handlers(dict.fromkeys((signal.SIGINT, signal.SIGTERM), lambda number, frame: waiting.append(number))):
        yield
    for number in waiting[:1]:
        signal.raise_signal(number)


def load_checkpoint(path: Path, device: torch.device) -> dict[str, Any]:
    """Read a checkpoint onto ``device``. Raises UsageError when the file is damaged."""
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except Exception as error:
        raise UsageError(f"{path} is not a checkpoint: {first_line(error)}; remove it to start over") from error
