"""Files that may be a stranger's: one reader of JSON and one of YAML. Whatever they hold, the answer is a value or one
line. And the command line as a record may show it."""

import json
import os
import re
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segexp.errors import UsageError, first_line
from segexp.records.owned import open_file

if TYPE_CHECKING:
    import yaml

MOST_BYTES = 2**28
"""Size of the largest text that is read; of YAML, which is parsed slowly: `MOST_YAML`."""

MOST_YAML, MOST_VALUES, MOST_LEVELS, MOST_DIGITS = 2**20, 100_000, 100, 400


def read_text(path: Path, most: int = MOST_BYTES, inside: Path | None = None) -> str:
    """The text of a plain UTF-8 file, read as by `read_bytes`."""
    data = read_bytes(path, most, inside)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UsageError(f"{path} cannot be read: line {line} is not UTF-8 text") from None


def read_bytes(path: Path, most: int = MOST_BYTES, inside: Path | None = None) -> bytes:
    """The content of a plain file; of the run directory ``inside``, where it must be no link.

    Raises UsageError for a pipe, a device, a folder, and what is larger.
    """
    try:
        # A pipe that nobody writes to must not hold us up.
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)
        with open_file(path, inside) if inside else open(os.open(path, flags), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise UsageError(f"{path} cannot be read: it is not a plain file")
            data = file.read(most + 1)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    if len(data) > most:
        raise UsageError(f"{path} cannot be read: it is larger than {most:,} bytes")
    return data


def read_json(path: Path, inside: Path | None = None) -> Any:
    """The content of a JSON file. Raises UsageError for anything else, a repeated key, and deep nesting."""
    text = read_text(path, inside=inside)
    too_deep = UsageError(f"{path} cannot be read: it is nested deeper than {MOST_LEVELS} levels")
    try:
        content = json.loads(text, object_pairs_hook=_keys_once)
    except ValueError as error:
        raise UsageError(f"{path} cannot be read: not JSON ({error})") from error
    except RecursionError:
        raise too_deep from None
    level = [content]
    for _ in range(MOST_LEVELS):
        inner = [one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list)]
        level = [value for values in inner for value in values]
        if not level:
            return content
    raise too_deep


def _keys_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{max(names, key=names.count)!r} is given twice")
    return content


def yaml_root(path: Path, inside: Path | None = None) -> "yaml.Node | None":
    """The node tree of a YAML file, None for an empty one; safe to construct. Raises UsageError, with the line."""
    import yaml

    text = read_text(path, MOST_YAML, inside)
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError) as error:
        raise UsageError(_not_yaml(path, error)) from error
    for node in nodes_of(root, path):
        keys: dict[str, yaml.Node] = {}
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key, yaml.ScalarNode) and keys.setdefault(key.value, key) is not key:
                raise UsageError(f"{path}, line {key.start_mark.line + 1}: {key.value} is given twice")
        # 1:59:59 is a number too, of powers of 60: a long one takes for ever.
        if node.tag.endswith(":int") and len(node.value) > MOST_DIGITS:
            raise UsageError(f"{path}, line {node.start_mark.line + 1}: a number of more than {MOST_DIGITS} digits")
    return root


def _not_yaml(path: Path, error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or first_line(error)
    return f"{path}{f', line {mark.line + 1}' if mark else ''}: not YAML ({problem})"


def nodes_of(root: "yaml.Node | None", path: Path) -> "Iterator[yaml.Node]":
    """Every node of a YAML tree, as often as aliases repeat it. Raises UsageError where there are too many."""
    waiting, count = [(root, 1)] if root is not None else [], 0
    while waiting:
        node, level = waiting.pop()
        count += 1
        if count > MOST_VALUES or level > MOST_LEVELS:
            limit = f"{MOST_LEVELS} levels" if level > MOST_LEVELS else f"{MOST_VALUES:,} values"
            raise UsageError(f"{path} holds more than {limit}; an alias (*name) counts with all that it repeats")
        yield node
        for inner in node.value if not isinstance(node.value, str) else ():
            waiting += [(one, level + 1) for one in (inner if isinstance(inner, tuple) else (inner,))]


def read_yaml(path: Path, inside: Path | None = None) -> Any:
    """The plain content of a YAML file. Raises UsageError."""
    import yaml

    root = yaml_root(path, inside)
    try:
        return None if root is None else yaml.SafeLoader("").construct_document(root)
    except (yaml.YAMLError, ValueError) as error:
        raise UsageError(_not_yaml(path, error)) from error


_SECRET = r"(?:token|secret|passw(?:or)?d|api[_-]?key|auth(?!or)|credential)"

SECRETS = (
    (rf"(?is)(?<![\w.-])([\w.-]*{_SECRET}[\w.-]*=)[^\0]+", r"\1***"),  # key=value
    (rf"(?is)(?<![\w-])(--?[\w-]*{_SECRET}\0)[^\0]+", r"\1***"),  # --key value
    (r"(://)[^/@\s\0]+@", r"\1***@"),
    (r"(?<![A-Za-z0-9+])(?=[A-Za-z0-9+]*\d)[A-Za-z0-9+]{32,}={,2}", "***"),
    (r"\b(?:hf|gh[a-z]|sk|glpat|xox[a-z])[_-][A-Za-z0-9_-]{8,}", "***"),
)
"""Patterns of passwords and tokens in words that \\0 separates, and what a record shows instead. Each begins where a
name does, so that a word of megabytes, as a server may answer, takes no longer than its length."""


def shown_command(words: Sequence[str]) -> list[str]:
    """A command line as a record holds it: what looks like a password or a token is masked."""
    line = "\0".join(words)
    for pattern, mask in SECRETS:
        line = re.sub(pattern, mask, line)
    return line.split("\0")
