"""The errors that segexp answers with one clear line instead of a traceback."""


class UsageError(Exception):
    """Bad usage, configuration or data: one line saying what, where and the cure.

    The command line prints the message and ends with exit code 2.
    """


class PairError(UsageError):
    """An output activation and a loss that do not fit: a sweep leaves such a pair out."""


class BusyError(UsageError):
    """Another living process owns the run directory."""


class DivergedError(Exception):
    """The loss, a logit or a gradient became non-finite: the run is over and has no scores."""
