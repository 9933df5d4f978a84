"""From records to a verdict (`verdict.compare`). No torch here. The package can be called: it is what `segexp.compare`
names, and a call is one of `segexp.notebook.compare`."""

import inspect
import sys
from types import ModuleType
from typing import Any

import segexp


class _Callable(ModuleType):
    def __call__(self, *sources: Any, **options: Any) -> Any:
        return segexp.__getattr__("compare")(*sources, **options)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(segexp.__getattr__("compare"))


sys.modules[__name__].__class__ = _Callable
