"""The errors that segexp answers with one clear line instead of a traceback, and the exit codes they end in."""

import re
from collections.abc import Iterable
from typing import Any

DONE, FAILED, REFUSED, INTERRUPTED = 0, 1, 2, 130
"""Exit codes: done; a run failed or diverged; bad usage, configuration or data; Ctrl-C."""


def first_line(error: object) -> str:
    """The first line of what an exception or a warning says, `shortened`, and the next where that ends in a colon; of
    one that says nothing, its kind."""
    try:
        text = str(error)
    except Exception:  # of a plugin's own class
        text = ""
    lines = [line.strip() for line in text.strip().splitlines()] or [type(error).__name__]
    return shortened(" ".join(lines[: 2 if lines[0].endswith(":") else 1]))


def line_in(error: BaseException, files: Iterable[str]) -> str:
    """The last line of the traceback in one of the files, "FILE, line 3", or "". files: ends of their paths."""
    import traceback

    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename.endswith(tuple(files))]
    return f"{frames[-1].filename}, line {frames[-1].lineno}" if frames else ""


def printable(text: str) -> str:
    """The text with control characters, which could steer a terminal, and lone surrogates written as escapes."""
    unsafe = "[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
    return re.sub(unsafe, lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


LONGEST = 1000
"""Characters of a message: what is longer quotes a value of thousands of characters."""


def shortened(text: str) -> str:
    """The text in at most `LONGEST` characters; what it says first and its cure, last, are kept."""
    half = LONGEST // 2 - 3
    return text if len(text) <= LONGEST else f"{text[:half]} ... {text[-half:]}"


def one_line(text: str) -> str:
    """The text as one printable line, `shortened`. Line breaks, which come from a value in quotes, are written as
    escapes."""
    return shortened(printable(text.strip()).replace("\n", "\\n").replace("\t", "\\t"))


class PrintableStream:
    """A text stream that escapes what `printable` escapes; ``raw`` is the stream itself."""

    def __init__(self, raw: Any) -> None:
        self.raw = raw

    def __getattr__(self, name: str) -> Any:
        return getattr(self.raw, name)

    def write(self, text: str) -> int:
        encoding = getattr(self.raw, "encoding", None) or "utf-8"  # not every terminal has Greek or Chinese
        self.raw.write(printable(text).encode(encoding, "backslashreplace").decode(encoding))
        return len(text)


def unexpected(error: BaseException, cure: str = "please report it") -> str:
    """One line for an unexpected error; the traceback is in the temporary file that the line names."""
    import tempfile
    import traceback

    try:
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", errors="backslashreplace", prefix="segexp-", suffix=".txt", delete=False
        ) as file:
            file.write("".join(traceback.format_exception(error)))
        where = f"the traceback is in {file.name}: {cure}"
    except OSError as full:
        where = f"no traceback could be written ({first_line(full)})"
    return f"unexpected {type(error).__name__}: {first_line(error)}; {where}"


SMALLER = "lower trainer.batch_size or dataset.image_size, or use a device with more"
"""What helps a run that is `out_of_memory`."""


def out_of_memory(error: BaseException, cure: str = SMALLER) -> str:
    """One line for an error because memory was lacking, of Python, numpy or torch on any device; "" for another one."""
    text = str(error)
    words = "out of memory|not enough memory|(can't|[Cc]annot|[Uu]nable to) allocate|_ALLOC_FAILED"
    if not isinstance(error, MemoryError) and not (isinstance(error, RuntimeError) and re.search(words, text)):
        return ""
    asked = re.search(r"(?:ried|nable) to allocate (\d[\d.]* \w+)", text)
    return f"out of memory{f' ({asked[1]} more were asked for)' if asked else ''}: {cure}"


class UsageError(Exception):
    """Bad usage, configuration or data: one line saying what, where and the cure.

    The command line prints the message and ends with exit code 2.
    """


class PairError(UsageError):
    """An output activation that does not fit the loss or the head: a sweep leaves such a combination out."""


class BusyError(UsageError):
    """Another process holds the lock of the run directory."""


class DataChangedError(UsageError):
    """An image or mask is no longer the one that the run began with."""


class TakenOverError(BusyError):
    """Another process took the run directory over while this one slept."""


class DivergedError(Exception):
    """The loss, a logit or a gradient became non-finite: the run is over and has no scores."""
