"""Values written in Hydra's override grammar."""

import re
from typing import Any


def quoted(value: Any) -> str:
    """A plain value (None, bool, number, string, list or mapping of these) as an override says it, strings quoted.

    Inside quotes a backslash means something only before a quote, where it must be doubled. Raises TypeError for
    values of other types.
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list):
        return "[" + ",".join(map(quoted, value)) + "]"
    if isinstance(value, dict):
        if not all(isinstance(key, str) and key.isidentifier() for key in value):
            raise TypeError(f"the keys of {value} are not all plain words")
        return "{" + ",".join(f"{key}:{quoted(v)}" for key, v in value.items()) + "}"
    if isinstance(value, str):
        return "'" + re.sub(r"(\\*)('|$(?!\n))", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), value) + "'"
    raise TypeError(f"a {type(value).__name__} is not a plain value")
