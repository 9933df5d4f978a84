"""The plugins of a run: what its record says of them, the copies it keeps, and the refusal where one is not loaded."""

import hashlib
import json
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from segexp.errors import UsageError
from segexp.registry.plugins import LOADED, Plugin

PLUGINS = "plugins"
"""Folder of a run directory with a copy of the files of each plugin, below its name. Nothing is loaded from there
unless the user names it."""


def _hashes(plugin: Plugin) -> dict[str, str]:
    return {file: hashlib.sha256(content).hexdigest() for file, content in plugin.files.items()}


def recorded_plugins(recorded: Any) -> dict[str, Mapping[str, Any]]:
    """Plugin -> what is recorded of it. recorded: as in `check_plugins`, or anything else."""
    found = recorded.items() if isinstance(recorded, Mapping) else ()
    return {str(name): facts if isinstance(facts, Mapping) else {} for name, facts in found}


def plugins_record(used: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """The entry ``plugins`` of run.json and of a planned run. used: name of a plugin -> its entries, as "loss=mine"."""
    found = {}
    for name, entries in used.items():
        plugin = LOADED[name]
        given, files = Path(plugin.given).name, _hashes(plugin)
        found[name] = {"sha256": plugin.sha256, "given": given, "files": files, "entries": list(entries)}
    return found


def plugin_lines(used: Mapping[str, Sequence[str]]) -> list[str]:
    """A line for each plugin of a run: file, version, entries. used: as in `plugins_record`."""
    facts = plugins_record(used).values()
    return [f"plugin {one['given']} {one['sha256'][:8]}: {', '.join(one['entries'])}" for one in facts]


def versions_of(recorded: Any) -> dict[str, str]:
    """Entry, as "loss=mine" -> version of its plugin, the beginning of the hash. recorded: as in `check_plugins`."""
    return {
        str(entry): str(facts.get("sha256"))[:8]
        for facts in recorded_plugins(recorded).values()
        if isinstance(facts.get("entries"), list)
        for entry in facts["entries"]
    }


def kept_plugins(recorded: Any, run_dir: Path) -> dict[str, str]:
    """Plugin -> what names it again: the copy that the run keeps, or the entry point of an installed package; none
    where there is no copy. recorded: as in `check_plugins`."""
    found = {}
    for name, facts in recorded_plugins(recorded).items():
        files, given = facts.get("files"), facts.get("given")
        copy = run_dir / PLUGINS / name / str(next(iter(files), "") if isinstance(files, Mapping) else "")
        if files and isinstance(given, str) and not given.endswith(".py"):
            found[name] = given
        elif os.path.isfile(copy) and copy.resolve().is_relative_to((run_dir / PLUGINS).resolve()):
            found[name] = str(copy)
    return found


def lacks_plugins(recorded: Any) -> bool:
    """Whether a plugin that a run used is not loaded. recorded: as in `check_plugins`."""
    return not recorded_plugins(recorded).keys() <= LOADED.keys()


def check_plugins(recorded: Any, run_dir: Path) -> None:
    """Raise UsageError, with the cure, where a plugin that a run used is not loaded, or has changed.

    recorded: the entry ``plugins`` of the run's record, or of the plan of a pending run.
    """
    kept = kept_plugins(recorded, run_dir)
    for name, facts in recorded_plugins(recorded).items():
        entries, given = ", ".join(versions_of({name: facts})) or "an entry", facts.get("given")
        given = given if isinstance(given, str) else name
        loaded, again, shown = LOADED.get(name), kept.get(name, ""), shlex.quote(given)
        flag = f"--plugin {shlex.quote(again)} (in Python: segexp.use_plugins({json.dumps(again)}))"
        copy = f", or name the copy that the run keeps: {flag}" if again not in ("", given) else ""
        if loaded is None:
            somewhere = f" (in Python: segexp.use_plugins({json.dumps(f'PATH/{given}')}))"
            cure = flag if again == given else f"--plugin with the path of {shown}{copy or somewhere}"
            raise UsageError(f"{run_dir} uses {entries} of the plugin {shown}, which is not loaded: add {cure}")
        if loaded.sha256 != facts.get("sha256"):
            cure = "install the version that the run used" if loaded.is_installed else f"restore it{copy}"
            files, now = facts.get("files"), _hashes(loaded)
            before = {str(file): sha for file, sha in files.items()} if isinstance(files, Mapping) else now
            differing = sorted(file for file in {*before, *now} if before.get(file) != now.get(file))
            which = f" ({', '.join(differing[:3])}{', ...' if len(differing) > 3 else ''})" if differing else ""
            what = f"the plugin {loaded.given} has changed{which}"
            raise UsageError(f"{what} since {run_dir} used {entries} of it: {cure}")
