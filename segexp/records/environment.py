"""The software and the CPU cores that this process runs with."""

import functools
import importlib.metadata
import json
import os
import platform
import re
from pathlib import Path
from urllib.parse import urlsplit

from segexp.errors import UsageError


@functools.cache
def environment_text() -> str:
    """The content of environment.txt for this process; looked up once."""
    lines = [f"# Python {platform.python_version()} ({platform.python_implementation()})", f"# {platform.platform()}"]
    found: dict[str, str] = {}
    for distribution in importlib.metadata.distributions():
        name, version = _name_and_version(distribution)
        # The first on the path is imported. Leftovers of a broken removal have no name.
        if name:
            found.setdefault(_normal(name), f"{name}=={version}{_origin(distribution)}")
    return "\n".join([*lines, *(found[name] for name in sorted(found))]) + "\n"


def _name_and_version(distribution: importlib.metadata.Distribution) -> tuple[str, str]:
    """From the first lines of the metadata; parsing all of it takes fifteen times as long."""
    text = distribution.read_text("METADATA") or distribution.read_text("PKG-INFO") or ""
    head = re.split(r"\r?\n\r?\n", text, maxsplit=1)[0]
    fields = dict(re.findall(r"^(Name|Version): *(\S+)", head, flags=re.MULTILINE))
    return fields.get("Name", ""), fields.get("Version", "")


def _origin(distribution: importlib.metadata.Distribution) -> str:
    """The origin of a distribution that is not from an index (PEP 610), without user names, passwords or tokens."""
    text = distribution.read_text("direct_url.json")
    try:
        content = json.loads(text or "{}")
        url, commit = str(content["url"]), content.get("vcs_info", {}).get("commit_id")
        editable = content.get("dir_info", {}).get("editable", False)
    except (ValueError, KeyError, TypeError, AttributeError):
        return ""
    parts = urlsplit(url)
    clean = parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()
    return f"  # {'editable, ' if editable else ''}from {clean}{f'@{commit}' if commit else ''}"


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def read_environment(path: Path) -> dict[str, str]:
    """environment.txt as name -> version and origin, with the keys "Python" and "platform".

    Raises UsageError when the file is missing or cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise UsageError(f"{path} is missing") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    found: dict[str, str] = {}
    for line in lines:
        if line.startswith("#"):
            text = line.lstrip("# ")
            found |= {"Python": text.removeprefix("Python ")} if text.startswith("Python ") else {"platform": text}
        else:
            name, _, version = line.partition("==")
            found[_normal(name)] = version
    return found


def usable_cores() -> int:
    """CPU cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        return os.cpu_count() or 1
