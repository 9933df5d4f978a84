"""`segexp train --from RUN_DIR`: a recorded configuration read as data and turned back into overrides."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from segexp.config import CODE_GROUPS, YAML_GROUPS, Config
from segexp.config.compose import compose, hydra_session, quoted
from segexp.errors import UsageError, first_line


def recorded_tree(run_dir: Path) -> Any:
    """The configuration recorded in ``run_dir``, as plain data. Raises UsageError."""
    path = run_dir / "config.yaml"
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{run_dir}: cannot read {path} ({error.strerror}); give a run directory") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{run_dir}: {path} is not YAML: {first_line(error)}") from error


def recorded_overrides(run_dir: Path, overrides: Sequence[str]) -> list[str]:
    """Overrides that repeat the run recorded in ``run_dir``, followed by the user's own. Raises UsageError."""
    return tree_overrides(recorded_tree(run_dir), overrides, str(run_dir / "config.yaml"))


def tree_overrides(tree: Any, overrides: Sequence[str], path: str) -> list[str]:
    """Overrides that give a recorded configuration again, followed by further ones; ``path`` is where it was read.

    Group choices come from the recorded names, leaves are quoted; the leaves of groups that are overridden are
    dropped. Interpolations, a ``hydra`` block and a defaults list are refused: a recorded config is data.
    Raises UsageError.
    """
    if not isinstance(tree, dict):
        raise UsageError(f"{path} does not hold a configuration")
    refused = {"hydra", "defaults"} & tree.keys()
    if refused:
        raise UsageError(f"{path} holds '{min(refused)}', which a recorded configuration never does")
    replaced = {o.split("=")[0] for o in overrides}
    result = []
    for group in (*CODE_GROUPS, *YAML_GROUPS):
        member = tree.get(group)
        # Any encoder goes through backbone.name, and a study is only a label: no preset of that name is needed.
        if group not in tree or group in replaced or group in ("backbone", "study"):
            continue
        # A preset of the user's own may be missing here; its adapter and its values are all that matter.
        name = member.get("adapter" if group == "dataset" else "name") if isinstance(member, dict) else None
        if not isinstance(name, str):
            raise UsageError(f"{path} does not say which {group} was used")
        result.append(f"{group}={_quoted(name, group)}")
    for key, value in _leaves(tree):
        group = key.split(".")[0]
        if group in replaced or key in replaced or (group in CODE_GROUPS and key == f"{group}.name"):
            continue
        # How the earlier attempt was to be resumed says nothing about this one.
        if key in ("augment.name", "resume"):
            continue
        result.append(f"{key}={_quoted(value, key)}")
    return [*result, *overrides]


def recorded_config(run_dir: Path, overrides: Sequence[str] = (), config_dir: Path | None = None) -> Config:
    """The configuration recorded in ``run_dir``, but for its augmentation, with ``overrides``. Raises UsageError."""
    with hydra_session(config_dir) as extra:
        # A preset of the user's own may be missing, and nothing is augmented once a network is trained.
        return compose(recorded_overrides(run_dir, ["augment=none", *overrides]), extra)


def _leaves(tree: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    leaves = []
    for key, value in tree.items():
        if not isinstance(key, str) or not key.isidentifier():
            raise UsageError(f"recorded configuration: {prefix}{key!r} is not a key")
        # Below a group, a mapping is the value of one option.
        if isinstance(value, dict) and not prefix:
            leaves += _leaves(value, f"{key}.")
        else:
            leaves.append((prefix + key, value))
    return leaves


def _quoted(value: Any, key: str) -> str:
    if "${" in str(value):
        raise UsageError(f"recorded configuration: {key} holds an interpolation, which is not data")
    try:
        return quoted(value)
    except (TypeError, RecursionError) as error:
        raise UsageError(f"recorded configuration: {key} holds no plain value ({error})") from None
