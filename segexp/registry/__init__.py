"""Registries (activations, losses, optimizers ...): a dict filled by a decorator, and what is declared about options.

A registry maps a name to an entry. An entry is a plain function with its facts beside it; its keyword-only
parameters are its options, and become typed options of the command line. Fields of the configuration are declared in
the same way: ``epochs: Annotated[int, Range(1)]``, ``select: Annotated[str, ("dice", "loss")]`` (OmegaConf knows no
Literal). Nothing here imports torch.
"""

import dataclasses
import difflib
import functools
import inspect
import math
import types
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from segexp.errors import UsageError

E = TypeVar("E")
F = TypeVar("F")

NOT_STATED = "not stated"
"""A fact that the author of an entry does not state."""

REQUIRED: Any = "???"
"""Default of a typed option whose value stands in configs/ or must be given (the configuration's mark for missing)."""


@dataclass(frozen=True)
class Range:
    """Valid values of a number, written beside its type: ``lr: Annotated[float, Range(0, above=True)]``.

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
        return abs(value) < math.inf and low and high

    def __str__(self) -> str:
        ends = ("above" if self.above else "at least", self.low), ("below" if self.below else "at most", self.high)
        plain = [f"{word} {end if isinstance(end, int) else f'{end:g}'}" for word, end in ends if math.isfinite(end)]
        number = " and ".join(plain) or "finite"
        return f"{', '.join(self.words)}, or a number {number}" if self.words else number


POSITIVE = Range(0, above=True)
NOT_NEGATIVE = Range(0)


@dataclass(frozen=True)
class Since:
    """Marks an option that earlier versions did not have: ``Annotated[bool, Since(False)]``.

    before: the value that means "as before". While an option has it, it does not enter the identity, so that earlier
    runs keep theirs; and it is the option's value in a recorded configuration that does not have the option.
    """

    before: Any


@dataclass(frozen=True)
class Option:
    """One keyword-only parameter of a registry entry, or one field of a section of the configuration.

    ``type`` is the Python type as annotated; ``choices`` holds the values of a ``Literal`` (of a field: the tuple),
    else (); ``range`` that of an ``Annotated`` number, else all that is finite; ``since`` marks a later option.
    """

    name: str
    type: Any
    default: Any
    choices: tuple[Any, ...] = ()
    range: Range = Range()
    since: Since | None = None


_LOADING: list[str] = []
"""The plugin that is being loaded, which owns what is added meanwhile."""


@contextmanager
def adding_for(plugin: str) -> Iterator[None]:
    """Entries that are added in this block belong to the plugin of this name."""
    _LOADING.append(plugin)
    try:
        yield
    finally:
        _LOADING.pop()


REGISTRIES: list["Registry[Any]"] = []
"""Every registry."""

_CACHES: list[Any] = []


def cached_names(function: Callable[..., F]) -> Callable[..., F]:
    """`functools.cache` for what depends on the names in registries: forgotten when a plugin changes them."""
    cached = functools.cache(function)
    _CACHES.append(cached)
    return cached


def forget_names() -> None:
    """Empty the caches of `cached_names`."""
    for cached in _CACHES:
        cached.cache_clear()


class Registry(dict[str, E]):
    """A dict from name to entry in order of declaration; adding a name twice is an error.

    refused: names that users may ask for but that cannot be registered, each with the reason. origins: name of an entry
    -> name of the plugin that it came from; built-in entries have none.
    """

    def __init__(self, group: str, refused: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self.group = group
        self.refused = refused or {}
        self.origins: dict[str, str] = {}
        REGISTRIES.append(self)

    def add(self, name: str, entry: E) -> None:
        """Put ``entry`` under ``name``. Raises ValueError when the name is taken, UsageError in a plugin."""
        if _LOADING:
            taken = self.names()
            for wanted in (name, *getattr(entry, "aliases", {})):
                if wanted in taken or wanted in self.refused:
                    whose = self.origins.get(taken.get(wanted, ""))
                    owner = f"the plugin {whose} has" if whose else "segexp has"
                    raise UsageError(f"{owner} {self.group}={wanted} already: give yours another name")
            self.origins[name] = _LOADING[-1]
        elif name in self:
            raise ValueError(f"duplicate name in the {self.group} registry: {name!r}")
        self[name] = entry
        forget_names()

    def names(self) -> dict[str, str]:
        """Every valid name, aliases included -> the name of its entry."""
        return {name: key for key, entry in self.items() for name in (key, *getattr(entry, "aliases", {}))}

    def remove_plugin(self, plugin: str) -> None:
        """Remove the entries of a plugin."""
        for name in [name for name, origin in self.origins.items() if origin == plugin]:
            del self[name], self.origins[name]
        forget_names()

    def decorator(self, entry: Callable[[F], E]) -> Callable[[F], F]:
        """A decorator that adds the entry of a function under the name that ``entry(function)`` gives it."""

        def register(function: F) -> F:
            made: Any = entry(function)
            self.add(made.name, made)
            return function

        return register

    def find(self, name: str) -> E:
        """The entry called ``name``. Raises UsageError naming the nearest valid names."""
        if name not in self:
            raise UsageError(self.unknown(name, self))
        return self[name]

    def unknown(self, name: str, valid: Iterable[str]) -> str:
        """The error line about a name that is not registered. valid: the names that are, aliases included."""
        if reason := self.refused.get(name.lower()):  # SwiGLU, too
            return f"{self.group}={name}: {name} {reason}"
        near = nearest(name, valid)
        own = "" if self.group == "question" else f"{'' if near.endswith('?') else ';'} your own needs --plugin FILE"
        return f"unknown {self.group} '{name}'{near}{own}"


def nearest(name: str, valid: Iterable[str]) -> str:
    """The end of an error line: the closest valid names, or all of them when none is close."""
    names = list(valid)
    close = difflib.get_close_matches(name, names, n=2, cutoff=0.72) or difflib.get_close_matches(name, names, n=1)
    close = close or [valid for valid in names if len(name) > 2 and name in valid][:2]  # a part of it
    if close:
        return f"; did you mean {' or '.join(close)}?"
    if len(names) > 40:
        return ""
    return f"; valid: {', '.join(names)}"


def options_of(function: Callable[..., Any], passed: Collection[str] = ()) -> tuple[Option, ...]:
    """The keyword-only parameters of ``function``. Each needs an annotation and a default.

    passed: names of parameters that segexp passes, so that they are no options.
    """
    options = []
    try:  # in a file with `from __future__ import annotations` all annotations are text
        signature = inspect.signature(function, eval_str=True)
    except NameError:  # of another parameter, whose type is imported for type checkers only
        signature = inspect.signature(function)
    for parameter in signature.parameters.values():
        if parameter.kind is not inspect.Parameter.KEYWORD_ONLY or parameter.name in passed:
            continue
        if parameter.annotation is inspect.Parameter.empty or parameter.default is inspect.Parameter.empty:
            raise ValueError(f"{function.__name__}: option {parameter.name!r} needs a type and a default")
        options.append(_option(parameter.name, parameter.annotation, parameter.default))
    return tuple(options)


@functools.cache
def fields_of(section: type) -> tuple[Option, ...]:
    """The fields of a dataclass that are options, those that hold dataclasses of their own left out."""
    hints = typing.get_type_hints(section, include_extras=True)
    fields = [f for f in dataclasses.fields(section) if not dataclasses.is_dataclass(f.default_factory)]
    return tuple(_option(f.name, hints[f.name], f.default) for f in fields)


def _option(name: str, annotation: Any, default: Any) -> Option:
    declared: dict[str, Any] = {}
    if typing.get_origin(annotation) is Annotated:
        annotation, *markers = typing.get_args(annotation)
        kinds: dict[type, str] = {Range: "range", tuple: "choices", Since: "since"}
        if not kinds.keys() >= {type(marker) for marker in markers}:
            raise ValueError(f"option {name}: Annotated takes a Range(low, high), or a tuple of words")
        declared = {kinds[type(marker)]: marker for marker in markers}
    if typing.get_origin(annotation) is Literal:
        declared["choices"] = typing.get_args(annotation)
        annotation = type(declared["choices"][0])
    elif typing.get_origin(annotation) in (types.UnionType, typing.Union):
        inner = [t for t in typing.get_args(annotation) if t is not types.NoneType]
        if len(inner) > 1:
            raise ValueError(f"option {name}: an option has one type, or one type and None")
        annotation = typing.Optional[inner[0]]  # noqa: UP045 (OmegaConf wants it so)
    return Option(name, annotation, default, **declared)


def checked_options(
    key: str, name: str, known: Sequence[Option], given: Mapping[str, Any], num_classes: int | None = None
) -> dict[str, Any]:
    """Every option of a registry entry: the untyped values ``given``, and defaults for the others.

    Raises UsageError for an unknown option, and for a value of another type or out of range.
    """
    by_name = {option.name: option for option in known}
    for option in given:
        if option not in by_name:
            raise UsageError(f"{key}.{option}: {name} has no such option{nearest(str(option), by_name)}")
    values = {o.name: _typed(f"{key}.{o.name}", o, given.get(o.name, o.default)) for o in known}
    for option_name, value in values.items():
        check_option(f"{key}.{option_name}", by_name[option_name], value, num_classes)
    return values


def check_option(key: str, option: Option, value: Any, num_classes: int | None = None) -> None:
    """Raise UsageError if the value of an option is not one of its words or is out of its range."""
    if option.choices and value not in option.choices:
        words = [str(choice) for choice in option.choices]
        close = nearest(str(value), words)
        raise UsageError(f"{key}={value} is not one of {', '.join(words)}{close if 'did you mean' in close else ''}")
    if option.range.words:
        number = _number(value)
        if value not in option.range.words and (number is None or not option.range.holds(number)):
            raise UsageError(f"{key}={value} is none of {option.range}")
        return
    numbers = [n for n in (value if isinstance(value, list) else [value]) if isinstance(n, int | float)]
    if not all(option.range.holds(n) for n in numbers if not isinstance(n, bool)):
        raise UsageError(f"{key}={value} is out of range: it must be {option.range}")
    if any(isinstance(n, int) and abs(n) >= 2**63 for n in numbers):
        raise UsageError(f"{key}={value} is out of range: a whole number must be above -2^63 and below 2^63")
    if option.name == "class_weights" and value is not None:
        if num_classes is not None and len(value) != num_classes:
            wrong = f"{key} holds {len(value)} numbers, dataset.num_classes={num_classes}"
            raise UsageError(f"{wrong}: one per class, background first")
        if not all(0 <= w < math.inf for w in value) or not any(w > 0 for w in value[1:]):
            raise UsageError(f"{key}={value} must be numbers of at least 0, above 0 for one foreground class or more")


def _number(text: Any) -> float | None:
    try:
        return None if isinstance(text, bool) else float(text)
    except (TypeError, ValueError, OverflowError):
        return None


def _typed(key: str, option: Option, value: Any) -> Any:
    """An untyped value as the type of the option. Raises UsageError if it has another type."""
    if hasattr(value, "tolist"):  # an array, a tensor or a NumPy number
        value = value.tolist()
    number = _is_number(value)
    if option.range.words and (number or isinstance(value, str)):
        return value
    if option.type is float and number:
        return value if abs(value) >= 2**63 else float(value)
    kind = next((t for t in typing.get_args(option.type) if t is not types.NoneType), None)
    if typing.get_origin(option.type) is typing.Union and value is not None:
        return _typed(key, dataclasses.replace(option, type=kind), value)
    if (typing.get_origin(option.type) or option.type) is list and isinstance(value, list | tuple):
        item = dataclasses.replace(option, type=kind)
        return list(value) if kind is None else [_typed(key, item, one) for one in value]
    if option.type is Any:
        return value
    if (value is None and option.default is None) or (option.type in (bool, int, str) and type(value) is option.type):
        return value
    raise UsageError(f"{key}={value} is not a valid value; the default is {option.default}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
