"""Checkpoints: one file of tensors and plain values that says whose they are, and in which no bit can change unnoticed.

`torch.save` writes a ZIP archive. Its directory has a CRC-32 of the data of every entry, which `torch.load` ignores.
`save_checkpoint` adds the SHA-256 of all other bytes as the comment of the archive. Together they cover the whole file,
and hashing so little takes no time, however large the network.
"""

import hashlib
import logging
import os
import time
import zipfile
from collections import OrderedDict
from collections.abc import Collection
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, Self

import torch

from segexp.errors import UsageError, first_line
from segexp.records import RESTORE
from segexp.records.owned import open_atomic, open_file
from segexp.records.process import interrupts_held

log = logging.getLogger("segexp")

BEST = ("epoch", "network")  # what best.pt holds of last.pt

WRITE_EVERY_S = 30.0
"""last.pt is written after an epoch if the last one is older; a run that is killed loses no more, and its epoch."""

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
        if not (
            isinstance(found[0], str | None)
            and isinstance(found[1], int | None)
            and _is_state(content.get("network", {}))
        ):
            raise ValueError("it does not hold an epoch and the weights of a network")
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


def _is_state(network: Any) -> bool:
    return isinstance(network, dict) and all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in network.items()
    )


class Checkpoints:
    """last.pt and best.pt of a run: copies of the end of an epoch, written by a thread of their own when they are due.

    last.pt is written first, and holds the best weights where best.pt does not hold them yet: at any moment the two
    have what is needed to continue. A run that is done before its first last.pt writes best.pt alone. Leaving the block
    by an error writes what is not written yet.

    extra: what each checkpoint holds beside. best: epoch and weights of the best epoch, on the CPU; None without one.
    """

    def __init__(self, folder: Path, extra: dict[str, Any], keep_last: bool) -> None:
        self.folder, self.extra = folder, extra
        self.best: dict[str, Any] | None = None
        self.best_on_disk: int | None = None  # its epoch, where it is that of last.pt
        self._needs_last = keep_last or (folder / "last.pt").exists()
        self._last: dict[str, Any] | None = None
        self._is_written = True
        self._begun = time.monotonic()
        self._pool = ThreadPoolExecutor(1, "segexp-checkpoints")
        self._writing: Future[None] | None = None

    def add(self, content: dict[str, Any], stays: bool = False) -> None:
        """Copy the state at the end of an epoch, and begin to write it if that is due. Raises what a write raised.

        stays: these tensors, on the CPU, do not change any more, and need no copy.
        """
        busy = self._writing is not None and not self._writing.done()
        with interrupts_held():
            # Memory is used again, because new memory costs more than copying; but not while it is written.
            old, old_best = ({}, None) if busy else (self._last or {}, self.best)
            if not busy:  # half a copy must never be written
                self._last, self._is_written = None, True
            # The rows of tables do not change, and may be many.
            last = (
                content
                if stays
                else {k: v[:] if isinstance(v, list) else copied(v, old.get(k)) for k, v in content.items()}
            )
            if content["best_epoch"] == content["epoch"]:
                self.best = self.best if busy else None
                best = {name: last[name] for name in BEST}
                self.best = best if stays else copied(best, old_best)
            self._last, self._is_written = last, False
        if not busy:
            self.wait()
            if time.monotonic() - self._begun >= WRITE_EVERY_S:
                self._write(self._last)

    def finish(self) -> None:
        """Begin to write what a run needs whose training is over; last.pt only if there was one before or is kept."""
        self.wait()
        if not self._is_written:
            self._write(self._last if self._needs_last or self.best is None else None)
        if self.best is None:  # last.pt will be read
            self.wait()

    def wait(self) -> None:
        """Wait for the write in progress. Raises what it raised."""
        writing, self._writing = self._writing, None
        try:
            if writing is not None:
                writing.result()
        except BaseException:
            self._is_written = self._last is None
            raise

    def _write(self, last: dict[str, Any] | None) -> None:
        new = self.best is not None and self.best["epoch"] != self.best_on_disk
        self._begun = time.monotonic()
        if last is not None:
            self._is_written = self._needs_last = True
        self._writing = self._pool.submit(self._save, last, self.best if new else None)

    def _save(self, last: dict[str, Any] | None, best: dict[str, Any] | None) -> None:
        if last is not None:
            unsaved = {"best": best} if best is not None and best["epoch"] != last["epoch"] else {}
            save_checkpoint(self.folder / "last.pt", last | unsaved | self.extra)
        if best is not None:
            save_checkpoint(self.folder / "best.pt", best | self.extra)
            self.best_on_disk = best["epoch"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._pool:
            if kind is None:
                self.wait()
                return
            for what in ("a checkpoint was not written and is tried again", "the last epochs were not saved"):
                try:
                    self.wait()
                    if not self._is_written:
                        self._write(self._last)
                        self.wait()
                    return
                except Exception as error:
                    log.warning("%s: %s", what, first_line(error))


def copied(value: Any, into: Any = None) -> Any:
    """A copy of nested dicts and lists with their tensors on the CPU. into: an earlier copy whose memory is used."""
    if isinstance(value, torch.Tensor):
        if not isinstance(into, torch.Tensor) or (into.shape, into.dtype) != (value.shape, value.dtype):
            into = torch.empty_like(value, device="cpu", requires_grad=False, pin_memory=value.is_cuda)
        return into.copy_(value.detach())
    if isinstance(value, dict):
        old = into if isinstance(into, dict) else {}
        pairs = ((key, copied(one, old.get(key))) for key, one in value.items())
        new: dict[Any, Any] = OrderedDict(pairs) if isinstance(value, OrderedDict) else dict(pairs)
        if isinstance(value, OrderedDict):
            vars(new).update(vars(value))  # the versions of a network's modules
        return new
    if isinstance(value, list | tuple):
        olds = into if isinstance(into, list | tuple) and len(into) == len(value) else [None] * len(value)
        items = [copied(one, old) for one, old in zip(value, olds, strict=True)]
        return items if isinstance(value, list) else tuple(items)
    return value


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
