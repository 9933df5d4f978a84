"""What a plugin declares of an entry, checked without calling it. Each function raises UsageError."""

import dataclasses
import inspect
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from segexp.errors import UsageError
from segexp.registry import Option, checked_options, nearest


def check_parameters(target: Callable[..., Any], takes: Sequence[str], passed: Collection[str] = ()) -> None:
    """The function has the positional parameters that ``takes`` names, whatever it calls them, and its options stand
    after a *. passed: parameters that it may have besides, by name."""
    who, parameters = target.__name__, inspect.signature(target).parameters.values()
    plain = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and p.name not in passed]
    for p in plain:
        if p.default is not p.empty:
            raise UsageError(f"{who}: {p.name} has a default: write a * before it to make it an option")
    if len(plain) != len(takes) and not any(p.kind is p.VAR_POSITIONAL for p in parameters):
        raise UsageError(f"{who} takes other parameters: write {who}({', '.join((*takes, '*', 'OPTIONS'))})")


def check_options(who: str, options: Sequence[Option], shared: Collection[str]) -> None:
    """Each option has a name of its own, and a default that its type, range and words accept."""
    for option in options:
        if option.name in shared:
            raise UsageError(f"{who}: segexp has an option {option.name} here already: give yours another name")
        if len({type(choice) for choice in option.choices}) > 1:
            raise UsageError(f"{who}: the words of the option {option.name} have several types: write them as text")
        try:
            checked_options(who, who, [option], {})
        except UsageError as error:
            wrong = str(error).partition("; the default")[0]
            raise UsageError(f"the default {wrong}: give the option one that its type and range accept") from None


def check_facts(kind: type, who: str, facts: Mapping[str, Any], made: Collection[str]) -> None:
    """Each fact is a field of the dataclass ``kind`` and of its type. made: fields that are no facts."""
    fields = {f.name: f.type for f in dataclasses.fields(kind) if f.name not in made}
    for fact, value in facts.items():
        if fact not in fields:
            raise UsageError(f"{who}: {fact} is no fact of this kind of entry{nearest(fact, ['name', *fields])}")
        if not _holds(fields[fact], value):
            raise UsageError(f"{who}: {fact}={value!r} must be {_words(fields[fact])}")


def _holds(kind: Any, value: Any) -> bool:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return any(value == word for word in inner)
    if origin in (types.UnionType, typing.Union):
        return any(_holds(one, value) for one in inner)
    if origin is tuple:
        return isinstance(value, tuple) and all(_holds(inner[0], one) for one in value)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is kind if kind in (bool, int, str) else isinstance(value, origin or kind)


def _words(kind: Any) -> str:
    inner = typing.get_args(kind)
    if typing.get_origin(kind) is typing.Literal:
        return " or ".join(map(repr, inner))
    if typing.get_origin(kind) is tuple:
        return f"a tuple of {_words(inner[0])}"
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        return " or ".join(map(_words, inner))
    known = {bool: "True or False", str: "text", float: "a number", int: "a whole number", types.NoneType: "None"}
    return known.get(kind, "a function")
