"""Configurations composed through Hydra from what the user typed or a run recorded, with one-line errors."""

import copy
import dataclasses
import functools
import logging
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import NoneType
from typing import Any

import yaml
from hydra import initialize_config_dir
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import MissingConfigException, OverrideParseException
from hydra.plugins.config_source import ConfigResult
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
    entry_of,
    members_of,
    names_in,
    preset_names,
    preset_values,
)
from segexp.config.canonical import SECTIONS, as_before, no_value, place, resolve
from segexp.config.launchers import ENGINES, REMOVED, refuse_code, register_launchers
from segexp.data import adapters
from segexp.data.image_set import AugmentConfig
from segexp.errors import UsageError, first_line
from segexp.models.architectures import BackboneConfig
from segexp.records import RESTORE, flatten, read_run
from segexp.records.files import nodes_of, read_yaml, yaml_root
from segexp.records.plugins import check_plugins
from segexp.registry import Option, cached_names, fields_of, nearest


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


_STORED: dict[tuple[str, str], Any] = {}
"""(group, name) -> the entry that Hydra's store, one for the process, holds: a plugin may come with another."""


@cached_names
def register_schemas() -> None:
    """Store the typed root, the types of groups, and the groups generated from registries where Hydra finds them."""
    store = ConfigStore.instance()
    for group in ("schema", "dataset"):
        store.repo.pop(group, None)  # of plugins that are gone
    store.store(name="config_schema", node=Config)
    store.store(group="schema", name="backbone", node=BackboneConfig)
    store.store(group="schema", name="augment", node=AugmentConfig)
    for entry in adapters().values():
        store.store(group="schema/dataset", name=entry.name, node=entry.config)
        if entry.preset is not None:
            store.store(group="dataset", name=entry.name, node=entry.preset)
    entries = {(group, name): entry_of(group, name) for group in CODE_GROUPS for name in names_in(group)}
    for group, name in _STORED.keys() - entries.keys():
        del store.repo[group][f"{name}.yaml"], _STORED[group, name]
    for (group, name), entry in entries.items():
        if _STORED.get((group, name)) is not entry:
            store.store(group=group, name=name, node=choice_config(group, name))
            _STORED[group, name] = entry
    store.store(group="hydra/launcher", name="local", node=LocalOptions)
    register_launchers()
    for source in (GuardedFolder, GuardedFolderWithEnv):
        SourcesRegistry.instance().register(source)


HARMLESS = ("hydra", "now", "oc.select", "oc.dict.keys", "oc.dict.values")
"""Resolvers that a configuration file may use; the others read variables, or compute interpolations from text."""


class GuardedFolder(FileConfigSource):
    """A folder of `--config-dir`, which may be a stranger's: each file is checked before Hydra reads it."""

    may_read_env = False

    @staticmethod
    def scheme() -> str:
        return "guarded"

    def load_config(self, config_path: str) -> ConfigResult:
        path = Path(self.path, self._normalize_file_name(config_path))
        for node in nodes_of(yaml_root(path), path):
            # A backslash may hide a brace until the value of a sweep is read.
            text = node.value.replace("\\", "") if isinstance(node.value, str) and not self.may_read_env else ""
            for found in re.finditer(r"\$\{([^:}]*)(:?)", text):
                if (found[2] and found[1].strip() not in HARMLESS) or "${" in found[1]:
                    raise UsageError(
                        f"{path}, line {node.start_mark.line + 1}: {found[0]}...}} may read a secret into names and "
                        "records: write the value, or trust the folder with --allow-env"
                    )
        return super().load_config(config_path)


class GuardedFolderWithEnv(GuardedFolder):
    """The same with `--allow-env`: the files may use all resolvers."""

    may_read_env = True

    @staticmethod
    def scheme() -> str:
        return "guarded-env"


@contextmanager
def hydra_session(config_dir: Path | None = None, allow_env: bool = False) -> Iterator[list[str]]:
    """Hydra ready to compose; yields the overrides that add the user's own configuration folder.

    allow_env: its files may read environment variables. Raises UsageError for what cannot be resolved in the block.
    """
    extra = []
    if config_dir is not None:
        if not config_dir.is_dir():
            raise UsageError(f"--config-dir {config_dir} is not a folder")
        source = GuardedFolderWithEnv if allow_env else GuardedFolder
        extra = [f"hydra.searchpath={quoted([f'{source.scheme()}://{config_dir.absolute()}'])}"]
    register_schemas()
    with initialize_config_dir(str(configs_dir()), version_base="1.3", job_name="segexp"):
        try:
            yield extra
        except OmegaConfBaseException as error:
            raise UsageError(explain(error, ())) from error


class _Members:
    """Gives Hydra the names that ``glob(...)`` matches: entries of a registry in their order, without aliases."""

    @staticmethod
    def get_group_options(group: str, results_filter: Any = None) -> list[str]:
        if group in CODE_GROUPS:
            return list(CODE_GROUPS[group])
        return GlobalHydra.instance().config_loader().get_group_options(group, results_filter)


@functools.lru_cache(maxsize=4096)
def _parsed(text: str) -> Override:
    """In Hydra's grammar; a line is read several times on its way, and the jobs of a sweep share their words."""
    parser = OverridesParser.create(config_loader=_Members())  # type: ignore[arg-type]
    override: Override = parser.parse_overrides([text])[0]
    return override


def parse_overrides(overrides: Sequence[str]) -> list[Override]:
    """Check the grammar, and refuse what would bypass the schema. Raises UsageError."""
    parsed = []
    for text in overrides:
        if text.startswith("-"):
            raise UsageError(f"unknown option '{text}'; overrides are written key=value, see `segexp train --help`")
        if "=" not in text and not text.startswith("~"):
            raise UsageError(f"'{text}' is not an override; write key=value")
        if text.rstrip().endswith("=") and text.count("=") == 1 and not text.rstrip().endswith("_suffix="):
            off = _off(text.rstrip().rstrip("="))
            other = f", or {off}" if off else ""
            raise UsageError(f"'{text}' is empty: is a shell variable unset? Write a value{other}")
        try:
            override = _parsed(text)
        except (OverrideParseException, ValueError, RecursionError) as error:  # ValueError: a number of 5,000 digits
            raise UsageError(
                f"cannot read the override {text[:200]!r}: quote values with special characters, "
                "as in 'key=\"a value\"'"
            ) from error
        key = override.key_or_group
        if key == "hydra":
            raise UsageError(f"'{text}': hydra holds further keys, not one value: write hydra.KEY=VALUE")
        if key.startswith("hydra.sweeper"):
            raise UsageError(f"'{text}': write a sweep as key=a,b; `segexp tune` searches learning rates")
        if override.is_add() or override.is_force_add():
            known = _known_keys(())
            if key in known:
                raise UsageError(f"'{text}' adds a key that exists; write {text.lstrip('+')}")
            raise UsageError(f"'{text}': {unknown_key(key, ())}; keys cannot be added")
        if override.is_delete():
            raise UsageError(f"'{text}': keys cannot be deleted; leave it out, or set {_off(key) or 'another value'}")
        if key == "tracking" and override.is_sweep_override():
            raise UsageError(f"'{text}' would repeat one run: several trackers are a list, tracking=[csv,mlflow]")
        parsed.append(override)
    return parsed


def readable(overrides: Sequence[str]) -> list[str]:
    """Overrides with plain text values quoted if Hydra's grammar cannot read them, such as `root=/data/dir (1)`, or
    would change them, such as `study.name=007`: text is recorded as it was typed."""
    result = list(overrides)
    for n, text in enumerate(overrides):
        key, _, value = text.partition("=")
        if not value or any(c in value for c in "[]{}'\"$\n"):
            continue
        # A comma in parentheses belongs to the word, as in dataset.normalise=ct(-100,300).
        words = re.split(r",(?![^()]*\))", value) if key in _text_keys() else [value]
        if key in _text_keys() or "," not in value:
            result[n] = f"{key}={','.join(_as_typed(key, word) for word in words)}"
    return result


def _as_typed(key: str, word: str) -> str:
    """A word of a value, in quotes where Hydra would not read it, or the key takes text and would get another one."""
    try:
        read = _parsed(f"{key}={word}").value()
    except (OverrideParseException, RecursionError):
        return quoted(word)
    except ValueError:  # a number of 5,000 digits: `parse_overrides` says so
        return word
    escaped = re.search(r"\\[ (){}\[\]:=,]", word) or "(" in word  # in the way of Hydra
    same = key not in _text_keys() or read is None or escaped or str(read) == word.strip()
    return word if same else quoted(word.strip())


@cached_names
def every_option() -> tuple[tuple[str, str, Option], ...]:
    """(member, key, option) of all sections and all members of groups; member is "" or as "dataset=folder"."""
    found = [("", option.name, option) for option in fields_of(Config)]
    for name, kind in SECTIONS.items():
        members: dict[str, Sequence[Option]] = {"": fields_of(kind)}
        if name in CODE_GROUPS:
            members |= {f"{name}={entry.name}": entry.options for entry in CODE_GROUPS[name].values()}
        elif name == "dataset":
            members |= {f"{name}={adapter.name}": fields_of(adapter.config) for adapter in adapters().values()}
        found += [(member, f"{name}.{option.name}", option) for member, of in members.items() for option in of]
    return tuple(found)


@cached_names
def _text_keys() -> frozenset[str]:
    """Keys whose value is any text."""
    plain = (str, str | None)
    return frozenset(k for _, k, o in every_option() if o.type in plain and not o.choices and not o.range.words)


def _off(key: str) -> str:
    """The override that gives a key nothing, KEY=null or PRESET=none; "" where the key needs a value."""
    if any(NoneType in typing.get_args(option.type) for _, known, option in every_option() if known == key):
        return f"{key}=null"
    return f"{key}=none" if key in YAML_GROUPS and "none" in preset_names(key) else ""


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
    # The files of a folder of the user's may have changed since the last call.
    tree = compose_raw([*extra, *overrides]) if extra else compose_job(overrides, ())
    return typed_of(tree, overrides)


def refuse_several_values(overrides: Sequence[str]) -> None:
    """Raise UsageError where an override is a sweep."""
    for override in parse_overrides(overrides):
        if override.is_sweep_override() and override.key_or_group != "hydra.searchpath":
            raise UsageError(f"'{override.input_line}' names several values: add -m to sweep over them")


@cached_names
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
    # Members of registries need Hydra only where a file may give their options other values, and for its errors.
    files = extra or {"study", "hydra.searchpath"} & choices.keys()
    plain = {} if files else {g: n for g in members for n in names_in(g) if members[g] == f"{g}={n}"}
    rest = {group: text for group, text in members.items() if group not in plain}
    # Members of different registries do not depend on each other.
    apart = rest if len(rest) > 1 else {}
    tree = copy.deepcopy(_composed((*others, *(() if apart else rest.values()))))
    for group, name in plain.items():
        tree[group] = OmegaConf.structured(choice_config(group, name))
        tree.hydra.runtime.choices[group] = name
    for group, text in apart.items():
        alone = _composed((*others, text))
        tree[group] = copy.deepcopy(alone[group])
        tree.hydra.runtime.choices[group] = alone.hydra.runtime.choices[group]
    with _explained(overrides):
        for override in parsed:
            if not _is_choice(override.key_or_group):
                OmegaConf.update(tree, override.key_or_group, override.value(), merge=True)
    return tree


def _is_choice(key: str) -> bool:
    """Whether an override of the key changes what is composed, and not only a value of it."""
    return key in (*CODE_GROUPS, *YAML_GROUPS) or "/" in key or key.startswith("hydra.")


def compose_raw(overrides: Sequence[str]) -> DictConfig:
    """The composed tree with its ``hydra`` node. Raises UsageError for unknown groups, keys and wrong types."""
    with _explained(overrides):
        composed = _through_hydra(overrides)
        refuse_code(composed.hydra)
    return composed


def _through_hydra(overrides: Sequence[str]) -> DictConfig:
    hydra = GlobalHydra.instance().hydra
    assert hydra is not None, "compose inside a hydra_session"
    return hydra.compose_config("train", list(overrides), run_mode=RunMode.RUN)


@contextmanager
def _explained(overrides: Sequence[str]) -> Iterator[None]:
    """Raise UsageError for any error of Hydra and OmegaConf about these overrides, in one line."""
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(explain(error, overrides)) from error


def typed_of(tree: DictConfig, overrides: Sequence[str] = ()) -> Config:
    """A composed tree with its ``hydra`` node -> resolved `Config`; the tree is changed. Raises UsageError, which names
    the ``overrides`` that made the tree."""
    with _explained(overrides):
        config = _typed(tree)
    _refuse_numbers(config, overrides)
    return resolve(config)


def _refuse_numbers(config: Config, overrides: Sequence[str]) -> None:
    """Raise UsageError for a number as value of an option that is true or false: OmegaConf takes any."""
    flat = flatten(config)
    for override in parse_overrides(overrides):
        value = override.value()
        if type(flat.get(str(override.key_or_group))) is bool and type(value) in (int, float):
            raise UsageError(f"{override.input_line}: the value must be true or false")


def _typed(tree: DictConfig) -> Config:
    choices = tree.hydra.runtime.choices
    OmegaConf.set_struct(tree, False)
    del tree["hydra"]
    if tree.dataset.name is None:
        # Only a label: of the preset, or of the folder that holds the images.
        own = str(choices["dataset"]) in preset_names("dataset")  # a preset without a name is for the user's data
        # "in" is False for what is missing or cannot be resolved, which is reported with its key below.
        root = tree.dataset.root if own and "root" in tree.dataset else None
        folder = place("dataset.root", str(root)) if root else Path(str(choices["dataset"]))
        tree.dataset.name = (folder.resolve() if folder.name == ".." else folder).name
    for group in ("augment", *CODE_GROUPS):
        chosen = str(choices[group])
        if not OmegaConf.is_missing(tree[group], "name") and str(tree[group].name) != chosen:
            wrong = f"{group}.name={tree[group].name} would keep the options of {group}={chosen}"
            raise UsageError(f"{wrong}: write {group}={tree[group].name}")
    _check_variant(tree, choices)
    check_root(tree.dataset)
    config = OmegaConf.to_object(tree)
    assert isinstance(config, Config)
    adapter = adapters().get(config.dataset.adapter)
    if adapter is None or adapter.config is not type(config.dataset):
        if adapter is None and str(choices["dataset"]) == config.dataset.adapter:  # of a plugin that is loaded no more
            raise UsageError(adapters().unknown(config.dataset.adapter, members_of("dataset")))
        cure = f"write dataset={adapter.name}" if adapter else "leave dataset.adapter as it is"
        raise UsageError(f"dataset.adapter={config.dataset.adapter} does not read dataset={choices['dataset']}: {cure}")
    return config


def check_root(dataset: Any, swept: Sequence[Any] = ()) -> None:
    """Raise UsageError if a data set needs a folder that is not given. swept: all sets of a sweep."""
    if not OmegaConf.is_missing(dataset, "root"):
        return
    several = ", or 'dataset.root=DIR/${dataset.name}' for all" if len(swept) > 1 else ""
    sources = ", ".join(f"{one.name} from {one.url}" for one in swept or [dataset] if one.get("url"))
    raise UsageError(no_value("dataset.root") + several + (f"; get {sources}" if sources else ""))


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
    where = " ".join(text for text in overrides if not text.startswith("hydra.searchpath="))
    return f"{where or 'the configuration'} has no meaning here ({first_line(error)}): write key=VALUE, group=NAME"


def _explain_key(error: OmegaConfBaseException, key: str, overrides: Sequence[str]) -> str:
    if isinstance(error, ConfigAttributeError | ConfigKeyError):
        return unknown_key(key, overrides)
    if isinstance(error, MissingMandatoryValue):
        return no_value(key) + (_where_from(overrides) if key == "dataset.root" else "")
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


def _where_from(overrides: Sequence[str]) -> str:
    """Where the files of the data set that ``overrides`` choose come from, "" where its preset does not say."""
    chosen = next((text.partition("=")[2] for text in overrides if text.startswith("dataset=")), "")
    path = configs_dir() / "dataset" / f"{chosen}.yaml"
    url = preset_values(path).get("url", "null") if path.is_file() else "null"
    return "" if url == "null" else f", the folder of the files from {url}"


def _explain_missing_group(error: MissingConfigException) -> str:
    group, _, name = str(error.missing_cfg_file).rpartition("/")
    if group in CODE_GROUPS:
        others = [other for other in CODE_GROUPS if name in names_in(other) and name not in CODE_GROUPS[group].refused]
        elsewhere = f"; did you mean {' or '.join(f'{other}={name}' for other in others)}?"
        return f"unknown {group} '{name}'{elsewhere}" if others else CODE_GROUPS[group].unknown(name, names_in(group))
    if group.startswith("dataset/"):
        path = str(error.missing_cfg_file).removeprefix("dataset/")
        return f"unknown dataset '{path}'; did you mean dataset=folder dataset.root={path}?"
    options = [o for o in (error.options or []) if not o.endswith("schema")]
    if group == "hydra/launcher":
        if name in REMOVED:
            return REMOVED[name]
        options = ["local", *ENGINES, *preset_names(group)]
    message = f"unknown {group or 'config'} '{name}'{nearest(name, options)}"
    if group == "backbone":
        message += f"; any encoder of segmentation-models-pytorch: backbone.name={name}"
    return message


_SYNONYMS = """
lr learning_rate base_lr; epochs epoch n_epochs num_epochs max_epochs; batch_size batch bs batchsize;
image_size size img_size imgsz input_size resize crop_size; backbone encoder encoder_name; num_classes classes;
weights pretrained encoder_weights; activation act output_activation final_activation; channels in_channels;
hidden_activation hidden hidden_act; device gpu gpus cuda accelerator; workers num_workers n_workers;
threads num_threads n_threads; precision amp fp16 bf16 half mixed_precision; patience early_stopping;
folds n_folds kfold k_folds cv; root data path folder dir data_dir data_path data_root; images image_dir images_dir;
masks mask_dir masks_dir labels; num_classes n_classes; outputs output out output_dir out_dir save_dir; seed random_seed
"""
MEANT = {word: name for name, *words in map(str.split, _SYNONYMS.split(";")) for word in words}
"""What others call an option or a group -> its name here."""


def unknown_key(key: str, overrides: Sequence[str]) -> str:
    """The line about a key that does not exist: the key of that name or meaning elsewhere, else the nearest key."""
    if key in ("plugin", "plugins"):
        given = next((o.partition("=")[2] for o in overrides if o.lstrip("+").startswith(f"{key}=")), "FILE")
        return f"{key}={given} is no key: write --plugin {given}"
    choices = [o for o in overrides if o.split("=")[0] in (*CODE_GROUPS, *YAML_GROUPS) and "/" not in o]
    known, last = _known_keys(choices), key.rpartition(".")[2]
    word = MEANT.get(last, last)
    owners = [member for member, name, _ in every_option() if name == key and member]
    value = next((o.partition("=")[2] for o in overrides if o.startswith(f"{key}=")), "") or "VALUE"
    if owners:
        owners = ["dataset=folder"] if "dataset=folder" in owners else owners  # many data sets lie in a folder
        group, names = key.partition(".")[0], "|".join(member.partition("=")[2] for member in owners)
        return f"unknown key '{key}'; did you mean {group}={names} {key}={value}?"
    found = [name for name in known if name == word or name.rpartition(".")[2] == word]
    found += [f"{group}={last}" for group in CODE_GROUPS if last in names_in(group)]
    others = [f"{m} {name}={value}" for m, name, _ in every_option() if name.rpartition(".")[2] == word]
    found = found or sorted(others, key=lambda text: not text.startswith("dataset=folder "))[:1]
    meant = f"; did you mean {' or '.join(found)}?" if 0 < len(found) < 4 else nearest(key, known)
    return f"unknown key '{key}'{meant}"


def _known_keys(group_overrides: Sequence[str]) -> list[str]:
    """Every dotted key of the tree that these group choices (or the defaults) give, and the groups themselves."""
    try:
        tree: Any = OmegaConf.to_container(_composed(tuple(group_overrides)), resolve=False)
    except UsageError:
        return list(dict.fromkeys([*CODE_GROUPS, *YAML_GROUPS, *(f.name for f in dataclasses.fields(Config))]))
    tree.pop("hydra")
    return list(dict.fromkeys([*flatten(tree), *CODE_GROUPS, *YAML_GROUPS]))


# A recorded configuration is data: it is checked, and turned back into overrides


def recorded_tree(run_dir: Path) -> Any:
    """The configuration recorded in ``run_dir``, as plain data. Raises UsageError."""
    return read_yaml(run_dir / "config.yaml", run_dir)


def recorded_overrides(run_dir: Path, overrides: Sequence[str]) -> list[str]:
    """Overrides that repeat the run recorded in ``run_dir``, followed by the user's own. Raises UsageError.

    Where its author wrote runs is no business of the user's: ``outputs`` is not repeated.
    """
    tree = recorded_tree(run_dir)
    if (run_dir / "run.json").exists():
        record = read_run(run_dir)
        check_plugins(record.get("plugins"), run_dir)
        _check_unedited(tree, record.get("config", {}), run_dir / "config.yaml")
    repeated = tree_overrides(tree, overrides, str(run_dir / "config.yaml"))
    own = len(repeated) - len(overrides)
    return [word for n, word in enumerate(repeated) if n >= own or not word.startswith("outputs=")]


OF_THE_MACHINE = (
    *("outputs", "resume", "study", "tracking"),
    *("trainer.device", "trainer.threads", "trainer.wait", "trainer.workers"),
)
"""Options of a recorded configuration that may be edited, for no result depends on them."""


def _check_unedited(tree: Any, recorded: Mapping[str, Any], path: Path) -> None:
    """Raise UsageError where config.yaml gives an option another value than run.json, which was written with it."""
    for key, value in flatten(tree).items() if isinstance(tree, dict) else ():
        free = key in OF_THE_MACHINE or key.split(".")[0] in OF_THE_MACHINE
        if not free and key in recorded and value != recorded[key]:
            raise UsageError(
                f"{path} was edited: {key} is {value!r}, and {recorded[key]!r} in run.json: write that again, or train "
                "another run with it: segexp train --from RUN_DIR KEY=VALUE"
            )


def recorded_config(
    run_dir: Path, overrides: Sequence[str] = (), config_dir: Path | None = None, allow_env: bool = False
) -> Config:
    """The configuration recorded in ``run_dir`` without its augmentation, with ``overrides``. Raises UsageError."""
    with hydra_session(config_dir, allow_env) as extra, recorded_in(run_dir, overrides):
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
        known = name in (names_in(group) if group in CODE_GROUPS else members_of(group))  # plain, as it is typed
        result.append(f"{group}={name if known else _recorded_value(name, group, path)}")
    for key, value in _recorded_leaves(as_before(tree), path):
        group = key.split(".")[0]
        if group in replaced or key in replaced or (group in CODE_GROUPS and key == f"{group}.name"):
            continue
        # ``resume`` was about the earlier attempt.
        if key not in ("augment.name", "resume"):
            result.append(f"{key}={_recorded_value(value, key, path)}")
    return [*result, *overrides]


def _recorded_leaves(tree: dict[str, Any], path: str, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if not isinstance(key, str) or not key.isidentifier():
            raise UsageError(f"{path}: {prefix}{key!r} is not a key; {RESTORE}")
        # Below a group, a mapping is the value of one option.
        if isinstance(value, dict) and not prefix:
            yield from _recorded_leaves(value, path, f"{key}.")
        else:
            yield prefix + key, value


def _recorded_value(value: Any, key: str, path: str) -> str:
    if "${" in str(value):
        raise UsageError(f"{path}: {key} holds an interpolation, which is not data; {RESTORE}")
    try:
        return quoted(value)
    except (TypeError, RecursionError) as error:
        raise UsageError(f"{path}: {key} holds no plain value ({error}); {RESTORE}") from None


@contextmanager
def recorded_in(run_dir: Path | None, overrides: Sequence[str]) -> Iterator[None]:
    """Name config.yaml in a UsageError that is about what it records, not about the user's own ``overrides``."""
    try:
        yield
    except UsageError as error:
        text, own = str(error), [word.lstrip("+~").partition("=")[0] for word in overrides]
        if run_dir is None or str(run_dir) in text or any(key and key in text for key in own):
            raise
        raise UsageError(f"{run_dir / 'config.yaml'}: {text}; {RESTORE}") from error
