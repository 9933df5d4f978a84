"""Checkpoints: one file of tensors and plain values that says whose they are, and in which no bit can change unnoticed.

`torch.save` writes a ZIP archive. Its directory has a CRC-32 of the data of every entry, which `torch.load` ignores.
`save_checkpoint` adds the SHA-256 of all other bytes as the comment of the archive. Together they cover the whole file,
and hashing so little takes no time, however large the network.
"""

import hashlib
import logging
import os
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import Any, BinaryIO

import torch

from segexp.errors import UsageError, first_line
from segexp.records import RESTORE
from segexp.records.owned import open_atomic, open_file
from segexp.records.process import interrupts_held

log = logging.getLogger("segexp")

SEAL = b"segexp sha256 "
_END = b"PK\x05\x06"  # begins the last 22 bytes of an archive, of which the last two are the length of its comment


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write tensors and plain values; at any moment ``path`` is a complete checkpoint, the old or the new one."""
    with interrupts_held(), open_atomic(path) as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:
            # torch's own error hides that of the system, such as a full disk.
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, OSError):
                cause = cause.__cause__ or cause.__context__
            raise cause or error from None
        end = file.seek(-2, os.SEEK_END)
        sealed = _comment(file, end)
        file.seek(end)
        file.write(sealed)


def load_checkpoint(
    path: Path, device: torch.device, cure: str, identity: str | None = None, epochs: Collection[int | None] = ()
) -> dict[str, Any]:
    """Read a checkpoint onto ``device``, running no code in it. Those of earlier versions are read with a warning.

    identity: of the run; epochs: those of which it may be (none: any). Raises UsageError with the cure where the file
    is missing, damaged, or of another run or epoch.
    """
    try:
        with open_file(path, path.parent.parent) as file:
            sealed = _verify(file)
            content = torch.load(file, map_location=device, weights_only=True)
        found = content.get("identity"), content.get("epoch")
    except FileNotFoundError:
        raise UsageError(f"{path} is missing: {cure}") from None
    except UsageError:
        raise
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {first_line(error)}") from error
    except Exception as error:
        raise UsageError(f"{path} is no whole checkpoint: {first_line(error)}; {cure}") from error
    if not (sealed and found[0]):
        log.warning("%s was written by an earlier segexp, without its run and a checksum: it cannot be verified", path)
    if identity and found[0] and found[0] != identity:
        raise UsageError(f"{path} belongs to another run (identity {str(found[0])[:16]}): {cure}")
    if epochs and found[1] not in epochs:
        wanted = " or ".join(map(str, epochs))
        raise UsageError(f"{path} is of epoch {found[1]}, not of epoch {wanted}: {cure}")
    return content


def load_selected(
    run_dir: Path, device: torch.device, identity: str | None, best_epoch: int | None, epochs: int | None
) -> dict[str, Any]:
    """The checkpoint of a run's best epoch; where none was the best, with a warning, of its last. Raises UsageError."""
    if not best_epoch:
        log.warning("%s: no epoch was the best on validation; the weights are those of the last epoch", run_dir)
    path = run_dir / "checkpoints" / ("best.pt" if best_epoch else "last.pt")
    return load_checkpoint(path, device, RESTORE, identity, (best_epoch or epochs,))


def _verify(file: BinaryIO) -> bool:
    """Whether the file has a checksum. Raises an error where it or the CRC-32 of an entry is wrong."""
    length = 2 + len(SEAL) + 64
    size = file.seek(0, os.SEEK_END)
    file.seek(max(size - length, 0))
    tail = file.read()
    sealed = tail[-22:-18] != _END or tail[-2:] != b"\0\0"
    if sealed and tail != _comment(file, size - length):
        raise ValueError("its checksum is wrong")
    bad = zipfile.ZipFile(file).testzip()
    if bad:
        raise ValueError(f"the checksum of its entry {bad} is wrong")
    file.seek(0)
    return sealed


def _comment(file: BinaryIO, end: int) -> bytes:
    """The length of the comment and the comment: the SHA-256 of the file up to ``end``, but for the entries' data."""
    digest, start = hashlib.sha256(), 0
    for entry in sorted(zipfile.ZipFile(file).infolist(), key=lambda entry: entry.header_offset):
        file.seek(entry.header_offset + 26)
        lengths = file.read(4)  # of the name and of the padding, in the header before the data
        data = entry.header_offset + 30 + int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")
        file.seek(start)
        digest.update(file.read(max(data - start, 0)))
        start = data + entry.compress_size
    file.seek(start)
    digest.update(file.read(max(end - start, 0)))
    text = SEAL + digest.hexdigest().encode()
    return len(text).to_bytes(2, "little") + text
