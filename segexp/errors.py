"""The errors that segexp answers with one clear line instead of a traceback."""


class UsageError(Exception):
    """Bad usage, configuration or data: one line saying what, where and the cure.

    The command line prints the message and ends with exit code 2.
    """


class DivergedError(Exception):
    """The loss, a logit or a gradient became non-finite: the run is over and has no scores."""
