"""Checkpoints: tensors and plain values, written atomically, read without running code (weights_only)."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segexp.errors import UsageError

if TYPE_CHECKING:
    import torch


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write ``content`` so that ``path`` is always a whole checkpoint, the old or the new one."""
    import torch

    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def load_checkpoint(path: Path, device: "torch.device") -> dict[str, Any]:
    """Read a checkpoint onto ``device``. Raises UsageError when the file is damaged."""
    import torch

    try:
        return torch.load(path, map_location=device, weights_only=True)
    except Exception as error:
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise UsageError(f"{path} is not a checkpoint: {line}; remove it to begin again") from error
