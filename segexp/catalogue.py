"""What the catalogues (activations, losses, optimizers ...) share: a dict filled by a decorator.

A catalogue maps a name to an entry. An entry is a plain function with its facts beside it; its keyword-only
parameters are its options, and become typed options of the command line. Nothing here imports torch.
"""

import difflib
import inspect
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from segexp.errors import UsageError

E = TypeVar("E")


REQUIRED: Any = "???"
"""Default of a typed option whose value stands in configs/ or must be given (the configuration's mark for missing)."""


@dataclass(frozen=True)
class Range:
    """Valid values of a number, written beside its type: ``lr: Annotated[float, Range(0, inf, above=True)]``.

    above: the lower end itself is not valid. below: the upper end is not. words: words that stand for a number; the
    option's type is then str.
    """

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    below: bool = False
    words: tuple[str, ...] = ()

    def holds(self, value: float) -> bool:
        """Whether the value is finite and in the range."""
        low = value > self.low if self.above else value >= self.low
        high = value < self.high if self.below else value <= self.high
        return math.isfinite(value) and low and high

    def __str__(self) -> str:
        low = f"{'above' if self.above else 'at least'} {self.low:g}" if math.isfinite(self.low) else ""
        high = f"{'below' if self.below else 'at most'} {self.high:g}" if math.isfinite(self.high) else ""
        number = " and ".join(part for part in (low, high) if part) or "finite"
        return f"{', '.join(self.words)}, or a number {number}" if self.words else number


POSITIVE = Range(0, above=True)
NOT_NEGATIVE = Range(0)


@dataclass(frozen=True)
class Option:
    """One keyword-only parameter of a catalogue entry.

    ``type`` is the Python type as annotated; ``choices`` holds the values of a ``Literal``, else (); ``range`` that
    of an ``Annotated`` number, else all that is finite.
    """

    name: str
    type: Any
    default: Any
    choices: tuple[Any, ...] = ()
    range: Range = Range()


class Catalogue(dict[str, E]):
    """A dict from name to entry in order of declaration; adding a name twice is an error.

    refused: names that users ask for and that cannot be here, each with the reason.
    """

    def __init__(self, group: str, refused: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self.group = group
        self.refused = refused or {}

    def add(self, name: str, entry: E) -> None:
        """Put ``entry`` under ``name``. Raises ValueError when the name is taken."""
        if name in self:
            raise ValueError(f"duplicate name in the {self.group} catalogue: {name!r}")
        self[name] = entry

    def find(self, name: str) -> E:
        """The entry called ``name``. Raises UsageError naming the nearest valid names."""
        if name not in self:
            raise UsageError(self.unknown(name, self))
        return self[name]

    def unknown(self, name: str, valid: Iterable[str]) -> str:
        """The line about a name that is not here, ``valid`` being those that are, aliases included."""
        if name in self.refused:
            return f"{self.group}={name}: {name} {self.refused[name]}"
        return f"unknown {self.group} '{name}'{nearest(name, valid)}"


def nearest(name: str, valid: Iterable[str]) -> str:
    """The end of an error line: the closest valid names, or all of them when none is close."""
    names = list(valid)
    close = difflib.get_close_matches(name, names, n=2, cutoff=0.72) or difflib.get_close_matches(name, names, n=1)
    if close:
        return f"; did you mean {' or '.join(close)}?"
    if len(names) > 40:
        return ""
    return f"; valid: {', '.join(names)}"


def options_of(function: Callable[..., Any]) -> tuple[Option, ...]:
    """The keyword-only parameters of ``function``. Each needs an annotation and a default."""
    options = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
            continue
        if parameter.annotation is inspect.Parameter.empty or parameter.default is inspect.Parameter.empty:
            raise ValueError(f"{function.__name__}: option {parameter.name!r} needs a type and a default")
        annotation = parameter.annotation
        limits = Range()
        if typing.get_origin(annotation) is Annotated:
            annotation, limits = typing.get_args(annotation)
        choices: tuple[Any, ...] = ()
        if typing.get_origin(annotation) is Literal:
            choices = typing.get_args(annotation)
            annotation = type(choices[0])
        elif typing.get_origin(annotation) in (types.UnionType, typing.Union):
            inner = [t for t in typing.get_args(annotation) if t is not types.NoneType]
            annotation = typing.Optional[inner[0]]  # noqa: UP045 (OmegaConf wants it so)
        options.append(Option(parameter.name, annotation, parameter.default, choices, limits))
    return tuple(options)
