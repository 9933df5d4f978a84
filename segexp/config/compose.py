"""Composes a configuration from what the user typed, through Hydra, and writes values in its override grammar."""

import copy
import dataclasses
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

from segexp.config import CODE_GROUPS, STUDY_VARIANTS, YAML_GROUPS, Config, LocalOptions, choice_config, names_in
from segexp.config.canonical import as_before, no_value, resolve
from segexp.config.launchers import ENGINES, REMOVED, refuse_code, register_launchers
from segexp.config.presets import configs_dir, preset_names
from segexp.data import adapters
from segexp.data.augment import AugmentConfig
from segexp.errors import UsageError, first_line
from segexp.models.architectures import BackboneConfig
from segexp.records import flatten
from segexp.registry import nearest


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


log = logging.getLogger("segexp")

PRIMARY = "train"

COMPOSITION_ERRORS = (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError)
"""What Hydra and its libraries raise when overrides or configuration files are wrong."""


def register_schemas() -> None:
    """Put the typed root, the groups' types and the groups generated from registries into Hydra's store."""
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
    """Check the grammar, and refuse what would go around the schema. Raises UsageError."""
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
            raise UsageError(f"'{text}': what is swept is written key=a,b, and `segexp tune` searches")
        if override.is_add() or override.is_force_add():
            plain = text.lstrip("+")
            if key in (*CODE_GROUPS, *YAML_GROUPS) or key in _known_keys(()):
                raise UsageError(f"'{text}' adds what is there already; write {plain}")
            raise UsageError(f"'{text}': unknown key '{key}'{nearest(key, _known_keys(()))}; keys cannot be added")
        if override.is_delete():
            raise UsageError(f"'{text}': keys cannot be deleted; set {key}=null where that is allowed")
        parsed.append(override)
    return parsed


def readable(overrides: Sequence[str]) -> list[str]:
    """Overrides with plain text values quoted where Hydra's grammar cannot read them bare, as `root=/data/dir (1)`."""
    return [text if _parses(text) else _with_quotes(text) for text in overrides]


def warn_repeated_keys(overrides: Sequence[str]) -> None:
    """Warn where a line gives a key two values, for example a script's own and one added to it: the last one counts."""
    last: dict[str, str] = {}
    for text in overrides:
        key = text.partition("=")[0]
        if last.get(key, text) != text:
            log.warning("%s is given twice, as %s and %s: the last one counts", key, last[key], text)
        last[key] = text


def _parses(text: str) -> bool:
    try:
        OverridesParser.create().parse_overrides([text])
    except OverrideParseException:
        return False
    return True


def _with_quotes(text: str) -> str:
    key, _, value = text.partition("=")
    structured = any(c in value for c in "[]{},'\"$\n")
    return text if structured or not value else f"{key}={quoted(value)}"


def compose(overrides: Sequence[str], extra: Sequence[str] = ()) -> Config:
    """One resolved configuration, inside a `hydra_session`. Raises UsageError."""
    refuse_several_values(overrides)
    return typed_of(compose_raw([*extra, *overrides]))


def refuse_several_values(overrides: Sequence[str]) -> None:
    """Raise UsageError where an override is a sweep."""
    for override in parse_overrides(overrides):
        if override.is_sweep_override() and override.key_or_group not in ("hydra.searchpath",):
            raise UsageError(f"'{override.input_line}' names several values: add -m to sweep over them")


def typed_of(composed: DictConfig) -> Config:
    """A composed tree with its ``hydra`` node -> resolved `Config`. Raises UsageError."""
    choices = composed.hydra.runtime.choices
    OmegaConf.set_struct(composed, False)
    del composed["hydra"]
    return typed(composed, choices)


_composed_groups: dict[tuple[str, ...], DictConfig] = {}
"""What choices of groups have composed to in this process, with the search path they were found on."""


def compose_job(overrides: Sequence[str], extra: Sequence[str]) -> DictConfig:
    """As `compose_raw`, for the many jobs of a sweep: choices of groups, a tenth of a second each, are composed once
    and plain values set into a copy, as Hydra does it."""
    parsed = list(zip(parse_overrides(overrides), overrides, strict=True))
    groups = tuple(text for o, text in parsed if _is_choice(o.key_or_group))
    key = (*extra, *groups)
    if key not in _composed_groups:
        _composed_groups[key] = _with_choices(groups, extra)
    tree = copy.deepcopy(_composed_groups[key])
    try:
        for override, _ in parsed:
            if not _is_choice(override.key_or_group):
                OmegaConf.update(tree, override.key_or_group, override.value(), merge=True)
    except OmegaConfBaseException as error:
        raise UsageError(explain(error, overrides)) from error
    return tree


def _with_choices(groups: Sequence[str], extra: Sequence[str]) -> DictConfig:
    """The tree of these group choices. Members of the registries know nothing of each other: each is composed once, and
    not once for every combination, and their nodes put together. Raises UsageError."""
    by_key = {o.key_or_group: (o, text) for o, text in zip(parse_overrides(groups), groups, strict=True)}
    members = {key: text for key, (_, text) in by_key.items() if key in CODE_GROUPS}
    others = tuple(text for key, (_, text) in by_key.items() if key not in CODE_GROUPS)

    def composed(*texts: str) -> DictConfig:
        key = (*extra, *texts)
        if key not in _composed_groups:
            _composed_groups[key] = compose_raw(key)
        return _composed_groups[key]

    if len(members) < 2:
        return composed(*others, *members.values())
    tree = copy.deepcopy(composed(*others))
    for group, text in members.items():
        alone = composed(*others, text)
        tree[group] = copy.deepcopy(alone[group])
        tree.hydra.runtime.choices[group] = alone.hydra.runtime.choices[group]
    return tree


def _is_choice(key: str) -> bool:
    """Whether an override of the key changes what is composed, and not only a value of it."""
    return key in (*CODE_GROUPS, *YAML_GROUPS) or "/" in key or key.startswith("hydra.")


def compose_raw(overrides: Sequence[str]) -> DictConfig:
    """The composed tree with its ``hydra`` node. Raises UsageError for unknown groups, keys and wrong types."""
    hydra = GlobalHydra.instance().hydra
    assert hydra is not None, "compose inside a hydra_session"
    try:
        composed = hydra.compose_config(
            PRIMARY, list(overrides), run_mode=RunMode.RUN, with_log_configuration=False, from_shell=True
        )
    except COMPOSITION_ERRORS as error:
        raise UsageError(explain(error, overrides)) from error
    refuse_code(composed.hydra)
    return composed


def typed(tree: DictConfig, choices: Mapping[str, Any]) -> Config:
    """Composed tree (without ``hydra``) -> resolved `Config`; every group must hold the member chosen for it."""
    for group in ("dataset", "augment", *CODE_GROUPS):
        chosen = str(choices[group])
        # The name of a data set is only its label: that of the preset, or of the folder that holds the images.
        if group == "dataset":
            if tree.dataset.get("name") is None:
                root = tree.dataset.get("root")
                tree.dataset.name = (
                    Path(str(root)).expanduser().absolute().name if chosen == "folder" and root else chosen
                )
        elif not OmegaConf.is_missing(tree[group], "name") and str(tree[group].name) != chosen:
            raise UsageError(
                f"{group}.name={tree[group].name} would keep the options of {group}={chosen}: "
                f"write {group}={tree[group].name}"
            )
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
    """The label of a study's variant is set by the variant's own file: it differs where there is no such file."""
    for group, usual in STUDY_VARIANTS.items():
        label, chosen, study = str(tree.study[group]), str(choices[group]), str(choices["study"])
        # A recorded run carries the label of its variant, whose values it has, without choosing it again.
        recorded = study == "default" and tree.study.name != "default" and chosen == usual
        if label == chosen or recorded:
            continue
        if chosen == usual:
            raise UsageError(f"study.{group}={label} would only be a label: write {group}={label}")
        whose = "without a study there is" if study == "default" else f"study={study} has"
        raise UsageError(f"{group}={chosen}: {whose} no such variant; `segexp list studies` shows which there are")


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
    words = next((words for kind, words in _TYPES.items() if line.endswith(f"converted to {kind}")), None)
    return f"{given}: the value must be {words}" if words else f"{given}: {line}"


_TYPES = {"Integer": "a whole number", "Float": "a number", "Boolean": "true or false"}
"""OmegaConf's names of types, and ours."""


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
    hydra = GlobalHydra.instance().hydra
    assert hydra is not None, "compose inside a hydra_session"
    try:
        composed = hydra.compose_config(
            PRIMARY, list(group_overrides), run_mode=RunMode.RUN, with_log_configuration=False
        )
    except (HydraException, OmegaConfBaseException):
        return [*CODE_GROUPS, *YAML_GROUPS, *(f.name for f in dataclasses.fields(Config))]
    tree: Any = OmegaConf.to_container(composed, resolve=False)
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


def _recorded_leaves(tree: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    leaves = []
    for key, value in tree.items():
        if not isinstance(key, str) or not key.isidentifier():
            raise UsageError(f"recorded configuration: {prefix}{key!r} is not a key")
        # Below a group, a mapping is the value of one option.
        if isinstance(value, dict) and not prefix:
            leaves += _recorded_leaves(value, f"{key}.")
        else:
            leaves.append((prefix + key, value))
    return leaves


def _recorded_value(value: Any, key: str) -> str:
    if "${" in str(value):
        raise UsageError(f"recorded configuration: {key} holds an interpolation, which is not data")
    try:
        return quoted(value)
    except (TypeError, RecursionError) as error:
        raise UsageError(f"recorded configuration: {key} holds no plain value ({error})") from None
