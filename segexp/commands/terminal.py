"""What commands print to the terminal while runs are carried out: log, output that survives its reader, diagnostics."""

import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any


def log_to_terminal() -> None:
    """Warnings and errors go to the terminal through tqdm, so that they do not break its progress bars."""
    from tqdm import tqdm

    class Terminal(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            tqdm.write(f"segexp: {record.getMessage()}", file=sys.stderr)

    logger = logging.getLogger("segexp")
    logger.handlers.clear()
    logger.propagate = False
    logger.setLevel(logging.INFO)
    terminal = Terminal(logging.WARNING)
    logger.addHandler(terminal)


class _Unbreakable:
    """A stream that drops its output once the reader has closed it or the disk is full."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return int(self._stream.write(text))
        except OSError:
            self._lose()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            self._lose()

    def _lose(self) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)


@contextmanager
def ignoring_closed_output() -> Iterator[None]:
    """Runs go on when their output can no longer be written: a closed pipe (`| head`), a lost `tee`, a full disk."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _Unbreakable(sys.stdout), _Unbreakable(sys.stderr)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before


def hidden_line(diagnostics: Mapping[str, Any]) -> str:
    """One line on the hidden activations of a finished run on the validation images; diagnostics: of run.json."""

    def shown(key: str, form: str) -> str:
        return "-" if diagnostics.get(key) is None else format(diagnostics[key], form)

    return (
        f"hidden units on validation: {shown('dead_output', '.1%')} dead (output 0), "
        f"{shown('dead_gradient', '.1%')} dead (gradient 0), {shown('saturated', '.1%')} of inputs saturated; "
        f"gradient of the first layer over the last {shown('gradient_ratio', '.3g')}, "
        f"of the weakest {shown('gradient_weakest', '.2g')}"
    )
