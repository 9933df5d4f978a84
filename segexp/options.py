"""Values of the options of catalogue entries: of the right type, one of their words, or within their range."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from segexp.catalogue import Option, nearest
from segexp.errors import UsageError


def checked_options(
    key: str, name: str, known: Sequence[Option], given: Mapping[str, Any], num_classes: int | None = None
) -> dict[str, Any]:
    """Every option of a catalogue entry: the values given, which nothing has typed yet, and defaults for the others.

    Raises UsageError for an option it does not have, and for a value of another type or out of range.
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
    """Raise UsageError where the value of an option is none of its words or out of its range."""
    if option.choices and value not in option.choices:
        raise UsageError(f"{key}={value} is not one of {', '.join(map(str, option.choices))}")
    if option.range.words:
        number = _number(value)
        if value not in option.range.words and (number is None or not option.range.holds(number)):
            raise UsageError(f"{key}={value} is none of {option.range}")
        return
    numbers = [n for n in (value if isinstance(value, list) else [value]) if isinstance(n, int | float)]
    if not all(option.range.holds(n) for n in numbers if not isinstance(n, bool)):
        raise UsageError(f"{key}={value} is out of range: it must be {option.range}")
    if option.name == "class_weights" and value is not None:
        if num_classes is not None and len(value) != num_classes:
            raise UsageError(
                f"{key} holds {len(value)} numbers, dataset.num_classes={num_classes}: one per class, background first"
            )
        if not all(0 <= w < math.inf for w in value) or not any(w > 0 for w in value[1:]):
            raise UsageError(f"{key}={value} must be numbers of at least 0, one of a foreground class above")


def _number(text: Any) -> float | None:
    try:
        return None if isinstance(text, bool) else float(text)
    except (TypeError, ValueError):
        return None


def _typed(key: str, option: Option, value: Any) -> Any:
    """The value of an option that reached us untyped. Raises UsageError for another type."""
    if hasattr(value, "tolist"):  # an array, a tensor or a number of NumPy's
        value = value.tolist()
    number = _is_number(value)
    if option.range.words and (number or isinstance(value, str)):
        return value
    if option.type is float and number:
        return float(value)
    if option.name == "class_weights" and isinstance(value, list | tuple) and all(map(_is_number, value)):
        return [float(v) for v in value]
    if (value is None and option.default is None) or (option.type in (bool, int, str) and type(value) is option.type):
        return value
    raise UsageError(f"{key}={value} is not a valid value; the default is {option.default}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
