"""`segexp compare`: from records to a verdict. No torch here.

>>> from segexp.compare import compare
>>> result = compare([Path("outputs/mine")])        # a `Result`: what the command prints, as data
"""

from segexp.compare.result import Result
from segexp.compare.verdict import compare

__all__ = ["Result", "compare"]
