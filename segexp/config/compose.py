"""Configurations composed through Hydra from what the user typed or a run recorded, with one-line errors."""

import copy
import dataclasses
import functools
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    MissingMandatoryValue,
    OmegaConfBaseException,
    ValidationError,
)

from segexp.config import (
    CODE_GROUPS,
    STUDY_VARIANTS,
    YAML_GROUPS,
    Config,
    LocalOptions,
    choice_config,
    configs_dir,
    names_in,
    preset_names,
)
from segexp.config.canonical import as_before, no_value, resolve
from segexp.config.launchers import ENGINES, REMOVED, refuse_code, register_launchers
from segexp.data import adapters
from segexp.data.image_set import AugmentConfig
from segexp.errors import UsageError, first_line
from segexp.models.architectures import BackboneConfig
from segexp.records import flatten
from segexp.registry import nearest


def quoted(value: Any) -> str:
    """A plain value (None, bool, number, string, list or mapping of these) in Hydra's grammar, strings in quotes.

    Raises TypeError for values of other types.
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
        # Inside quotes a backslash has a meaning only before a quote, and must be doubled there.
        return "'" + re.sub(r"(\\*)('|$(?!\n))", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), value) + "'"
    raise TypeError(f"a {type(value).__name__} is not a plain value")


log = logging.getLogger("segexp")


def register_schemas() -> None:
    """Store the typed root, the types of groups, and the groups generated from registries where Hydra finds them."""
    store = ConfigStore.instance()
    store.store(name="config_schema", node=Config)
    store.store(group="schema", name="backbone", node=BackboneConfig)
    store.store(group="schema", name="augment", node=AugmentConfig)
    for entry in adapters().values():
        store.store(group="schema/dataset", name=entry.name, node=entry.config)
    for group in CODE_GROUPS:
        for name in names_in(group):
            store.store(group=group, name=name, node=choice_config(group, name))
    store.store(group="hydra/launcher", name="local", node=LocalOptions)
    register_launchers()


@contextmanager
def hydra_session(config_dir: Path | None = None) -> Iterator[list[str]]:
    """Hydra ready to compose; yields the overrides that add the user's own configuration folder."""
    extra = []
    if config_dir is not None:
        if not config_dir.is_dir():
            raise UsageError(f"--config-dir {config_dir} is not a folder")
        extra = [f"hydra.searchpath={quoted([f'file://{config_dir.absolute()}'])}"]
    register_schemas()
    with initialize_config_dir(str(configs_dir()), version_base="1.3", job_name="segexp"):
        yield extra


class _Members:
    """Gives Hydra the names that ``glob(...)`` matches: entries of a registry in their order, without aliases."""

    @staticmethod
    def get_group_options(group: str, results_filter: Any = None) -> list[str]:
        if group in CODE_GROUPS:
            return list(CODE_GROUPS[group])
        return GlobalHydra.instance().config_loader().get_group_options(group, results_filter)


def parse_overrides(overrides: Sequence[str]) -> list[Override]:
    """Check the grammar, and refuse what would bypass the schema. Raises UsageError."""
    parser = OverridesParser.create(config_loader=_Members())  # type: ignore[arg-type]
    parsed = []
    for text in overrides:
        if text.startswith("-"):
            raise UsageError(f"unknown option '{text}'; overrides are written key=value, see `segexp train --help`")
        if "=" not in text and not text.startswith("~"):
            raise UsageError(f"'{text}' is not an override; write key=value")
        try:
            override = parser.parse_overrides([text])[0]
        except OverrideParseException as error:
            raise UsageError(
                f"cannot read the override {error.override!r}: quote values with special characters, "
                "as in 'key=\"a value\"'"
            ) from error
        key = override.key_or_group
        if key.startswith("hydra.sweeper"):
            raise UsageError(f"'{text}': write a sweep as key=a,b; `segexp tune` searches learning rates")
        if override.is_add() or override.is_force_add():
            known = _known_keys(())
            if key in known:
                raise UsageError(f"'{text}' adds a key that exists; write {text.lstrip('+')}")
            raise UsageError(f"'{text}': unknown key '{key}'{nearest(key, known)}; keys cannot be added")
        if override.is_delete():
            raise UsageError(f"'{text}': keys cannot be deleted; set {key}=null where that is allowed")
        parsed.append(override)
    return parsed


def readable(overrides: Sequence[str]) -> list[str]:
    """Overrides with plain text values quoted if Hydra's grammar cannot read them, such as `root=/data/dir (1)`."""
    result = list(overrides)
    for n, text in enumerate(overrides):
        key, _, value = text.partition("=")
        try:
            OverridesParser.create().parse_overrides([text])
        except OverrideParseException:
            if value and not any(c in value for c in "[]{},'\"$\n"):
                result[n] = f"{key}={quoted(value)}"
    return result


def warn_repeated_keys(overrides: Sequence[str]) -> None:
    """Warn where a line gives a key two values, for example a script's own and one added to it: the last one counts."""
    last: dict[str, str] = {}
    for text in overrides:
        key = text.partition("=")[0]
        if last.get(key, text) != text:
            log.warning("%s is given twice, as %s and %s: the last one counts", key, last[key], text)
        last[key] = text


def compose(overrides: Sequence[str], extra: Sequence[str] = ()) -> Config:
    """One resolved configuration, inside a `hydra_session`. Raises UsageError."""
    refuse_several_values(overrides)
    return typed_of(compose_raw([*extra, *overrides]))


def refuse_several_values(overrides: Sequence[str]) -> None:
    """Raise UsageError where an override is a sweep."""
    for override in parse_overrides(overrides):
        if override.is_sweep_override() and override.key_or_group != "hydra.searchpath":
            raise UsageError(f"'{override.input_line}' names several values: add -m to sweep over them")


@functools.cache
def _composed(overrides: tuple[str, ...]) -> DictConfig:
    """`compose_raw`, which takes a tenth of a second, once per process. Callers copy the tree before they change it."""
    return compose_raw(overrides)


def compose_job(overrides: Sequence[str], extra: Sequence[str]) -> DictConfig:
    """As `compose_raw`, for the many jobs of a sweep: group choices are composed once and put together, and values are
    set in a copy, in the way of Hydra. Raises UsageError."""
    parsed = parse_overrides(overrides)
    choices = {o.key_or_group: str(o.input_line) for o in parsed if _is_choice(o.key_or_group)}
    members = {key: text for key, text in choices.items() if key in CODE_GROUPS}
    others = (*extra, *(text for key, text in choices.items() if key not in CODE_GROUPS))
    # Members of different registries do not depend on each other.
    apart = members if len(members) > 1 else {}
    tree = copy.deepcopy(_composed((*others, *(() if apart else members.values()))))
    for group, text in apart.items():
        alone = _composed((*others, text))
        tree[group] = copy.deepcopy(alone[group])
        tree.hydra.runtime.choices[group] = alone.hydra.runtime.choices[group]
    try:
        for override in parsed:
            if not _is_choice(override.key_or_group):
                OmegaConf.update(tree, override.key_or_group, override.value(), merge=True)
    except OmegaConfBaseException as error:
        raise UsageError(explain(error, overrides)) from error
    return tree


def _is_choice(key: str) -> bool:
    """Whether an override of the key changes what is composed, and not only a value of it."""
    return key in (*CODE_GROUPS, *YAML_GROUPS) or "/" in key or key.startswith("hydra.")


def compose_raw(overrides: Sequence[str]) -> DictConfig:
    """The composed tree with its ``hydra`` node. Raises UsageError for unknown groups, keys and wrong types."""
    try:
        composed = _through_hydra(overrides)
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError) as error:
        raise UsageError(explain(error, overrides)) from error
    refuse_code(composed.hydra)
    return composed


def _through_hydra(overrides: Sequence[str]) -> DictConfig:
    hydra = GlobalHydra.instance().hydra
    assert hydra is not None, "compose inside a hydra_session"
    return hydra.compose_config("train", list(overrides), run_mode=RunMode.RUN)


def typed_of(tree: DictConfig) -> Config:
    """A composed tree with its ``hydra`` node -> resolved `Config`; the tree is changed. Raises UsageError."""
    choices = tree.hydra.runtime.choices
    OmegaConf.set_struct(tree, False)
    del tree["hydra"]
    if tree.dataset.get("name") is None:
        # Only a label: of the preset, or of the folder that holds the images.
        root = tree.dataset.get("root") if choices["dataset"] == "folder" else None
        tree.dataset.name = Path(str(root)).expanduser().absolute().name if root else str(choices["dataset"])
    for group in ("augment", *CODE_GROUPS):
        chosen = str(choices[group])
        if not OmegaConf.is_missing(tree[group], "name") and str(tree[group].name) != chosen:
            wrong = f"{group}.name={tree[group].name} would keep the options of {group}={chosen}"
            raise UsageError(f"{wrong}: write {group}={tree[group].name}")
    _check_variant(tree, choices)
    try:
        config = OmegaConf.to_object(tree)
    except OmegaConfBaseException as error:
        raise UsageError(explain(error, ())) from error
    assert isinstance(config, Config)
    adapter = adapters().get(config.dataset.adapter)
    if adapter is None or adapter.config is not type(config.dataset):
        cure = f"write dataset={adapter.name}" if adapter else "leave dataset.adapter as it is"
        raise UsageError(f"dataset.adapter={config.dataset.adapter} does not read dataset={choices['dataset']}: {cure}")
    return resolve(config)


def _check_variant(tree: DictConfig, choices: Mapping[str, Any]) -> None:
    """The file of a variant sets the study's label: if the label differs, there is no such file. Raises UsageError."""
    for group, usual in STUDY_VARIANTS.items():
        label, chosen, study = str(tree.study[group]), str(choices[group]), str(choices["study"])
        # A recorded run has the label and the values of its variant without choosing it again.
        recorded = study == "default" and tree.study.name != "default" and chosen == usual
        if label == chosen or recorded:
            continue
        if chosen == usual:
            raise UsageError(f"study.{group}={label} would only be a label: write {group}={label}")
        whose = "without a study there is" if study == "default" else f"study={study} has"
        raise UsageError(f"{group}={chosen}: {whose} no such variant; `segexp list studies` shows the variants")


def explain(error: BaseException, overrides: Sequence[str]) -> str:
    """One line for an exception of Hydra or OmegaConf: what is wrong, where, and the nearest valid name."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, yaml.MarkedYAMLError) and cause.problem_mark is not None:
            mark = cause.problem_mark
            return f"{mark.name}, line {mark.line + 1}: not YAML ({cause.problem})"
        if isinstance(cause, MissingConfigException) and cause.missing_cfg_file:
            return _explain_missing_group(cause)
        if isinstance(cause, OmegaConfBaseException) and cause.full_key:
            return _explain_key(cause, str(cause.full_key), overrides)
        cause = cause.__cause__ or cause.__context__
    return first_line(error)


def _explain_key(error: OmegaConfBaseException, key: str, overrides: Sequence[str]) -> str:
    if isinstance(error, ConfigAttributeError | ConfigKeyError):
        return _explain_unknown_key(key, overrides)
    if isinstance(error, MissingMandatoryValue):
        return no_value(key)
    if isinstance(error, ValidationError) and error.value is None:
        return f"{key}=null: the key must have a value"
    if isinstance(error.child_node, DictConfig):
        return f"{key} holds further keys, not one value: write {key}.KEY=VALUE"
    line = first_line(error)
    given = next((o for o in overrides if o.lstrip("+").startswith(f"{key}=")), key)
    for kind, words in {"Integer": "a whole number", "Float": "a number", "Boolean": "true or false"}.items():
        if line.endswith(f"converted to {kind}"):
            return f"{given}: the value must be {words}"
    return f"{given}: {line}"


def _explain_missing_group(error: MissingConfigException) -> str:
    group, _, name = str(error.missing_cfg_file).rpartition("/")
    if group in CODE_GROUPS:
        return CODE_GROUPS[group].unknown(name, names_in(group))
    options = [o for o in (error.options or []) if not o.endswith("schema")]
    if group == "hydra/launcher":
        if name in REMOVED:
            return REMOVED[name]
        options = ["local", *ENGINES, *preset_names(group)]
    message = f"unknown {group or 'config'} '{name}'{nearest(name, options)}"
    if group == "backbone":
        message += f"; any encoder of segmentation-models-pytorch: backbone.name={name}"
    return message


def _explain_unknown_key(key: str, overrides: Sequence[str]) -> str:
    groups = [o for o in overrides if o.split("=")[0] in (*CODE_GROUPS, *YAML_GROUPS)]
    group, _, option = key.partition(".")
    owners = [e.name for e in CODE_GROUPS.get(group, {}).values() if option in (o.name for o in e.options)]
    if owners:
        return f"unknown key '{key}': it is an option of {group}={'|'.join(owners)}"
    return f"unknown key '{key}'{nearest(key, _known_keys(groups))}"


def _known_keys(group_overrides: Sequence[str]) -> list[str]:
    """Every dotted key of the tree that these group choices (or the defaults) give, and the groups themselves."""
    try:
        tree: Any = OmegaConf.to_container(_through_hydra(group_overrides), resolve=False)
    except (HydraException, OmegaConfBaseException):
        return [*CODE_GROUPS, *YAML_GROUPS, *(f.name for f in dataclasses.fields(Config))]
    tree.pop("hydra")
    return list(dict.fromkeys([*flatten(tree), *CODE_GROUPS, *YAML_GROUPS]))


# A recorded configuration is data: it is checked, and turned back into overrides


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


def recorded_config(run_dir: Path, overrides: Sequence[str] = (), config_dir: Path | None = None) -> Config:
    """The configuration recorded in ``run_dir`` without its augmentation, with ``overrides``. Raises UsageError."""
    with hydra_session(config_dir) as extra:
        # A preset of the user's own may be missing, and a trained network sees no augmented image.
        return compose(recorded_overrides(run_dir, ["augment=none", *overrides]), extra)


def tree_overrides(tree: Any, overrides: Sequence[str], path: str) -> list[str]:
    """Overrides that repeat a recorded configuration, followed by further ones. path: where it was read.

    Group choices come from the recorded names, values are quoted, and options newer than the record mean "as before".
    Values of a group that ``overrides`` choose again are dropped. Raises UsageError for interpolations, a ``hydra``
    block and a defaults list, which no record holds.
    """
    if not isinstance(tree, dict):
        raise UsageError(f"{path} does not hold a configuration")
    refused = {"hydra", "defaults"} & tree.keys()
    if refused:
        raise UsageError(f"{path} holds '{min(refused)}', which a recorded configuration never does")
    replaced = {o.split("=")[0] for o in overrides}
    result = []
    for group in (*CODE_GROUPS, *YAML_GROUPS):
        # Any encoder can be set as backbone.name, and a study is only a label: no preset of that name is needed.
        if group not in tree or group in replaced or group in ("backbone", "study"):
            continue
        # A preset of the user's own may be missing here; the adapter has all its keys.
        member = tree[group]
        name = member.get("adapter" if group == "dataset" else "name") if isinstance(member, dict) else None
        if not isinstance(name, str):
            raise UsageError(f"{path} does not say which {group} was used")
        result.append(f"{group}={_recorded_value(name, group)}")
    for key, value in _recorded_leaves(as_before(tree)):
        group = key.split(".")[0]
        if group in replaced or key in replaced or (group in CODE_GROUPS and key == f"{group}.name"):
            continue
        # ``resume`` was about the earlier attempt.
        if key not in ("augment.name", "resume"):
            result.append(f"{key}={_recorded_value(value, key)}")
    return [*result, *overrides]


def _recorded_leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if not isinstance(key, str) or not key.isidentifier():
            raise UsageError(f"recorded configuration: {prefix}{key!r} is not a key")
        # Below a group, a mapping is the value of one option.
        if isinstance(value, dict) and not prefix:
            yield from _recorded_leaves(value, f"{key}.")
        else:
            yield prefix + key, value


def _recorded_value(value: Any, key: str) -> str:
    if "${" in str(value):
        raise UsageError(f"recorded configuration: {key} holds an interpolation, which is not data")
    try:
        return quoted(value)
    except (TypeError, RecursionError) as error:
        raise UsageError(f"recorded configuration: {key} holds no plain value ({error})") from None
