"""`segexp compare`: from records to a verdict. No torch here.

>>> from segexp.compare import compare
>>> result = compare([Path("outputs/mine")])        # a `Result`: what the command prints, as data
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from segexp.compare.result import Result as Result
    from segexp.compare.verdict import compare as compare

__all__ = ["Result", "compare"]


def __getattr__(name: str) -> Any:
    # Shell completion takes names from modules in here and must not wait for all of them.
    import importlib

    homes = {"Result": "segexp.compare.result", "compare": "segexp.compare.verdict"}
    if name in homes:
        return getattr(importlib.import_module(homes[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
