"""The errors that segexp answers with one clear line instead of a traceback, and the exit codes they end in."""

DONE, FAILED, REFUSED, INTERRUPTED = 0, 1, 2, 130
"""Exit codes: done; a run failed or diverged; bad usage, configuration or data; Ctrl-C."""


def first_line(error: object) -> str:
    """The first line of what an exception or a warning says; of one that says nothing, its kind."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class UsageError(Exception):
    """Bad usage, configuration or data: one line saying what, where and the cure.

    The command line prints the message and ends with exit code 2.
    """


class PairError(UsageError):
    """An output activation and a loss that do not fit: a sweep leaves such a pair out."""


class BusyError(UsageError):
    """Another process holds the lock of the run directory."""


class DataChangedError(UsageError):
    """An image or mask is no longer the one that the run began with."""


class DivergedError(Exception):
    """The loss, a logit or a gradient became non-finite: the run is over and has no scores."""
