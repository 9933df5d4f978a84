"""From overrides and YAML files to the resolved configuration."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny import MODEL_NEEDS

from segexp.config import (
    CODE_GROUPS,
    STUDY_VARIANTS,
    YAML_GROUPS,
    Config,
    StudyConfig,
    alias_target,
    names_in,
    params,
    preset_names,
    preset_values,
)
from segexp.config.canonical import identity
from segexp.config.compose import compose, hydra_session, parse_overrides, quoted, readable
from segexp.data import adapters
from segexp.data.image_set import AugmentConfig
from segexp.errors import UsageError
from segexp.models.architectures import BackboneConfig
from segexp.records import flatten
from segexp.registry import Option

CONFIGS = Path(__file__).resolve().parent.parent.parent / "configs"
PRESETS = sorted(
    f"{p.parent.name}/{p.name}" for p in CONFIGS.glob("*/*.yaml") if p.parent.name not in (*STUDY_VARIANTS, "claims")
)
"""Presets with values of their own; those of the variants of a study stand in test_studies.py, and claims are none."""
LIKE_OTHERS = {
    *(path for path in PRESETS if path.startswith("backbone/") and path != "backbone/resnet18.yaml"),
    *(f"augment/{name}.yaml" for name in ("light", "strong")),
    *(f"study/{name}.yaml" for name in ("pairs", "tail_ladder", "hidden", "nieradzik2021")),
    *(f"dataset/{name}.yaml" for name in ("acdc", "ade20k", "camvid", "cityscapes", "drive", "isic2018", "isles2018")),
    *(f"dataset/{name}.yaml" for name in ("kvasir_seg", "msd_prostate", "oxford_pets", "voc2012")),
}
"""Those of which tests/data/test_presets.py and tests/sweep/test_studies.py compose each as well, and backbones."""
SCHEMAS: dict[str, type] = {"backbone": BackboneConfig, "augment": AugmentConfig, "study": StudyConfig}
CONTENT = {"dataset": "d", "split": "s", "weights": ""}


@pytest.fixture
def user(tmp_path: Path) -> Path:
    """A user's own configuration folder."""
    for group in YAML_GROUPS:
        (tmp_path / group).mkdir()
    return tmp_path


def composed(user: Path, *overrides: str) -> Config:
    with hydra_session(user) as extra:
        return compose(overrides, extra)


def refusal(*overrides: str, extra: list[str]) -> str:
    with pytest.raises(UsageError) as told:
        compose(overrides, extra)
    assert "\n" not in str(told.value)
    return str(told.value)


# The files under configs/


@pytest.mark.parametrize(
    "path", [pytest.param(path, marks=[pytest.mark.slow] * (path in LIKE_OTHERS)) for path in PRESETS]
)
def test_every_preset_composes_and_gives_each_field_of_its_group_a_value(path: str, session: list[str]) -> None:
    """A preset that leaves a field out, or has one that the code does not know, would be found by the user."""
    group, name = path.removesuffix(".yaml").split("/")
    assert group in YAML_GROUPS
    needs_root = preset_values(CONFIGS / path).get("root") == "???"
    given = ["dataset.root=/images"] if needs_root else ["dataset=lesions"] if group == "study" else []
    completed = ["num_classes"] if preset_values(CONFIGS / path).get("num_classes") == "0" else []  # from the data
    given += [f"dataset.{key}=2" for key in completed]
    config = compose([f"{group}={name}", *given], session)
    values = yaml.safe_load((CONFIGS / path).read_text(encoding="utf-8"))
    own = values["study"] if group == "study" else values
    for key, value in flatten(own).items():
        if key not in ("defaults", "root", *completed) and value is not None:
            assert getattr(getattr(config, group), key) == value
    if group != "dataset":
        assert own["name"] == name
    if group == "study":
        assert set(values) <= {f.name for f in dataclasses.fields(Config)} | {"defaults", "hydra"}
        return
    if values.get("defaults", [""])[0] in adapters():  # a preset over an adapter says what differs from it
        (adapter,) = values["defaults"]
        assert set(values) - {"defaults"} <= {f.name for f in dataclasses.fields(adapters()[adapter].config)}
        assert adapter == "lesions" or all(values.get(key) for key in ("licence", "citation", "url"))
        return
    schema = adapters()[values["adapter"]].config if group == "dataset" else SCHEMAS[group]
    assert {key for key in preset_values(CONFIGS / path) if key != "defaults"} == {
        f.name for f in dataclasses.fields(schema)
    }
    assert values["defaults"][0].startswith(f"/schema/{group}")


def test_every_adapter_has_a_preset_and_the_primary_file_gives_every_other_field_a_value() -> None:
    assert set(adapters()) <= set(preset_names("dataset"))
    values = yaml.safe_load((CONFIGS / "train.yaml").read_text(encoding="utf-8"))
    entries = (next(iter(entry)) for entry in values["defaults"] if isinstance(entry, dict))
    groups = {entry for entry in entries if not entry.startswith("override ")}
    assert groups == {*CODE_GROUPS, *YAML_GROUPS} | {f"optional study/{group}" for group in STUDY_VARIANTS}
    plain = {f.name: f for f in dataclasses.fields(Config) if f.name not in groups}
    assert set(values) - {"defaults", "hydra"} == set(plain)
    for name, declared in plain.items():
        if dataclasses.is_dataclass(declared.default_factory):
            assert set(values[name]) == {f.name for f in dataclasses.fields(declared.default_factory)}


@pytest.mark.parametrize("path", [*PRESETS, "train.yaml"])
def test_the_light_reader_of_presets_sees_what_yaml_does(path: str) -> None:
    """`list` and completion read presets line by line, without a YAML library."""
    values = yaml.safe_load((CONFIGS / path).read_text(encoding="utf-8"))
    light = preset_values(CONFIGS / path)
    assert set(light) >= set(values)
    for key, value in values.items():
        if not isinstance(value, dict | list) or light[key]:
            assert yaml.safe_load(light[key]) == value


TOGETHER = (("hidden_activation", "loss", "optimizer"), ("activation", "model", "scheduler"))
"""Groups whose members fit each other, so that the n-th of each are composed at once: to compose takes its time."""


@functools.cache
def composed_with(*overrides: str) -> Config:
    with hydra_session() as extra:
        return compose(overrides, extra)


def together(
    group: str, name: str, members: Callable[[str], Sequence[str]], chosen: Callable[..., list[str]]
) -> Config:
    """The configuration of a member of a group, composed together with as many others as are made to fit."""
    (groups,) = (groups for groups in TOGETHER if group in groups)
    position = members(group).index(name)
    rows = [(other, members(other)[position]) for other in groups if position < len(members(other))]
    return composed_with(*(text for row in rows for text in chosen(*row)))


def needs(group: str, name: str) -> list[str]:
    """What a member of a group cannot be composed without."""
    canonical, _ = alias_target(group, name)
    entry = CODE_GROUPS[group][canonical]
    overrides = []
    if ("softmax",) in (getattr(entry, "aliases", {}).get(name), getattr(entry, "modes", None)):
        overrides.append("dataset.num_classes=3")
    if group == "activation" and "log_odds" not in entry.offers:
        overrides.append("loss=mse")
    if group == "model":
        overrides += MODEL_NEEDS.get(name, ())
    return overrides


def with_options(group: str) -> list[str]:
    """Members that `test_every_option_can_be_set` composes."""
    return [name for name, entry in CODE_GROUPS[group].items() if entry.options]


def named(group: str, name: str) -> list[str]:
    return [f"{group}={name}", *(["loss.terms={dice: 1, ce: 1}"] if name == "sum" else []), *needs(group, name)]


@pytest.mark.parametrize(("group", "name"), [
    pytest.param(g, n, marks=[pytest.mark.slow] * (n in with_options(g))) for g in CODE_GROUPS for n in names_in(g)
])  # fmt: skip
def test_every_catalogue_name_composes(group: str, name: str) -> None:
    canonical, options = alias_target(group, name)
    chosen = getattr(together(group, name, names_in, named), group)
    assert chosen.name == canonical
    assert {k: v for k, v in params(chosen).items() if k != "terms"} == {
        o.name: o.default for o in options if o.name != "terms"
    }


def another_value(option: Option, per_batch: bool) -> Any:
    """A valid value of an option that is not its default."""
    special: dict[str, Any] = {
        "terms": {"ce": {"weight": 2.0, "class_weights": None, "label_smoothing": 0.0}, "mse": {"weight": 1.0}},
        "class_weights": [0.5, 2.0],
        "slope": "native" if per_batch else "2.5",
        "prior_bias": "none" if per_batch else "auto",
    }
    if option.name in special:
        return special[option.name]
    if option.choices:
        return option.choices[-1]
    if isinstance(option.default, bool):
        return not option.default
    if isinstance(option.default, list):
        return [2 * n for n in option.default]
    if isinstance(option.default, float):
        return next(v for v in (option.default / 2, 2 * option.default) if option.range.holds(v))
    n = option.default or 0
    return next(v for v in (2 * n or 1, n + 1, n - 1) if option.range.holds(v))


def other_values(group: str, name: str) -> dict[str, Any]:
    """Another value for every option of a member of a group."""
    entry = CODE_GROUPS[group][name]
    wanted = {o.name: another_value(o, getattr(entry, "per_batch", False)) for o in entry.options}
    if "encoder_depth" in wanted and isinstance(wanted.get("decoder_channels"), list):
        wanted["decoder_channels"] = wanted["decoder_channels"][: wanted["encoder_depth"]]
    return wanted


def set_otherwise(group: str, name: str) -> list[str]:
    given = [f"{group}.{key}={quoted(value)}" for key, value in other_values(group, name).items()]
    return [f"{group}={name}", *given, *needs(group, name)]


@pytest.mark.parametrize(("group", "name"), [(g, n) for g in CODE_GROUPS for n in with_options(g)])
def test_every_option_can_be_set(group: str, name: str) -> None:
    wanted = other_values(group, name)
    chosen = params(getattr(together(group, name, with_options, set_otherwise), group))
    if name == "native":
        wanted["scope"] = "both"  # native replaces nothing, wherever
    if wanted.get("prior_bias") == "none":
        wanted["prior_bias_cap"] = 10.0  # which is written one way where there is no bias to cap
    assert chosen == wanted
    assert [type(v) for v in chosen.values()] == [type(v) for v in wanted.values()]


def test_members_of_registries_are_chosen_without_hydra(session: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    compose([], session)
    monkeypatch.setattr("segexp.config.compose._through_hydra", None)
    config = compose(["activation=probit", "loss=dice", "loss.smooth=2"], session)
    assert (config.activation.name, params(config.loss)["smooth"]) == ("normal_cdf", 2.0)


def test_aliases_are_the_same_run(session: list[str]) -> None:
    def named(*overrides: str) -> str:
        return identity(compose(overrides, session), CONTENT)

    assert named("loss=bce") == named("loss=ce") == named("loss=nll") != named()
    assert named("activation=softmax", "dataset.num_classes=3") == named("dataset.num_classes=3")
    assert named("activation=probit") == named("activation=normal_cdf") != named()
    assert named("loss=dice", "loss.smooth=1") == named("loss=dice", "loss.smooth=1.0") != named("loss=dice")
    assert named("head.mode=independent") == named("head.mode=binary") == named()
    assert named("study.name=other", "outputs=/elsewhere", "trainer.device=cpu") == named()


# Overrides


def test_values_are_read_with_their_types(session: list[str]) -> None:
    given = {
        "seed=3": 3,
        "optimizer.lr=1e-3": 0.001,
        "trainer.clip_norm=1": 1.0,
        "trainer.patience=null": None,
        "split.fractions=[0.5,0.25,0.25]": [0.5, 0.25, 0.25],
        "model.decoder_channels=[16, 8, 8, 4, 4]": [16, 8, 8, 4, 4],
        "study.name='größe 1=b'": "größe 1=b",
        "dataset.name=1": "1",
        "backbone.weights=/some/file.pt": "/some/file.pt",
        "backbone.name=efficientnet-b0": "efficientnet-b0",
        "dataset.spacing=[0.5,2]": [0.5, 2.0],
        "loss.smooth=1": 1.0,
        "loss.squared=True": True,
    }
    flat = flatten(compose(["loss=dice", *given], session))
    for text, value in given.items():
        got = flat[text.partition("=")[0]]
        assert (text, got, type(got)) == (text, value, type(value))


@pytest.mark.parametrize("folder", [
    "/data/dir (1) & more", "/data/größe", "/data/病理", "/data/a&b", "/data/50%", "/data/plain",
])  # fmt: skip
def test_paths_of_ordinary_life_need_no_second_pair_of_quotes(folder: str, session: list[str]) -> None:
    (text,) = readable([f"dataset.root={folder}"])
    assert (text == f"dataset.root={folder}") == (folder in ("/data/plain", "/data/50%"))
    assert flatten(compose(["dataset=folder", text], session))["dataset.root"] == folder


def test_what_means_something_in_the_grammar_is_left_as_it_is() -> None:
    overrides = [
        "seed=0,1", "seed=range(3)", "loss=[dice", "study.name='a b'", "loss", "loss=", "a={b}", "a=b", "x=[1,2]",
        "y={a: 1}", "loss=dice,ce", "nothing",
    ]  # fmt: skip
    assert readable(overrides) == overrides


def test_a_glob_names_the_entries_of_a_registry_in_their_order_and_no_aliases(session: list[str]) -> None:
    for text in ("activation=glob(*)", "activation=glob([s*, tanh], exclude=soft*)"):
        (override,) = parse_overrides([text])
        names = list(CODE_GROUPS["activation"])
        wanted = names if "tanh" not in text else [n for n in names if n == "tanh" or (n[0] == "s" and n[:4] != "soft")]
        assert list(override.sweep_iterator()) == wanted
    (override,) = parse_overrides(["augment=glob(*)"])
    assert list(override.sweep_iterator()) == preset_names("augment")


def test_composing_leaves_nothing_behind(session: list[str]) -> None:
    changed = compose(["loss=dice", "loss.smooth=1", "trainer.epochs=3"], session)
    assert flatten(compose([], session)) != flatten(changed)
    assert flatten(compose([], session)) == flatten(compose([], session))


@pytest.mark.parametrize(("override", "said"), [
    ("trainer._target_=os.system", "unknown key 'trainer._target_'"),
    ("augment.name=strong", "write augment=strong"),
    ("config_schema=1", "unknown key 'config_schema'"),
    ("hydra.foo=1", "unknown key 'hydra.foo'"),
    ("+trainer.epochs=3", "'+trainer.epochs=3' adds a key that exists; write trainer.epochs=3"),
    ("++trainer.epoch=3", "did you mean trainer.epochs"),
    ("+new.key=1", "'+new.key=1': unknown key 'new.key'"),
    *((text, "deleted; leave it out, or set another") for text in ("~trainer.epochs", "~loss", "~loss=ce")),
    ("~augment", "set augment=none"),
    ("seed=9223372036854775808", "at most 9223372036854775807"),
    ("~trainer.threads", "set trainer.threads=null"),
])  # fmt: skip
def test_nothing_goes_past_the_schema(override: str, said: str, session: list[str]) -> None:
    assert said in refusal(override, extra=session)


@pytest.mark.parametrize(("text", "end"), [
    ("activation=", "Write a value"), ("seed=", "Write a value"), ("augment=", "Write a value, or augment=none"),
    ("trainer.threads= ", "Write a value, or trainer.threads=null"),
])  # fmt: skip
def test_what_stands_for_nothing_is_named_where_there_is_such_a_value(text: str, end: str, session: list[str]) -> None:
    assert refusal(text, extra=session).endswith(f"is empty: is a shell variable unset? {end}")
    if "or " in end:
        compose([end.rpartition(" ")[2]], session)


@pytest.mark.parametrize("text", ["loss==dice", "loss=[dice", "loss={", "loss", "", " ", "--loss=dice", "a b=c"])
def test_bad_grammar_is_refused(text: str, session: list[str]) -> None:
    with pytest.raises(UsageError) as told:
        parse_overrides([text])
    assert repr(text) in str(told.value) or f"'{text}'" in str(told.value)


@pytest.mark.parametrize("value", ["9" * 5000, "[" * 3000])
def test_what_is_too_long_to_read_is_refused_in_a_short_line(value: str) -> None:
    with pytest.raises(UsageError, match="cannot read the override") as told:
        parse_overrides(readable([f"seed={value}"]))
    assert len(str(told.value)) < 400


# A user's own configuration folder

MINE = """\
defaults: [folder]
name: mine
root: /my images/ä
mask_coding: values
mask_values: [0, 128, 255]
num_classes: 3
image_size: 96
"""


def test_a_users_own_data_set(user: Path) -> None:
    (user / "dataset" / "mine.yaml").write_text(MINE, encoding="utf-8")
    flat = flatten(composed(user, "dataset=mine", "dataset.image_size=64"))
    wanted = {"name": "mine", "root": "/my images/ä", "mask_values": [0, 128, 255], "image_size": 64}
    wanted |= {"adapter": "folder", "images": "images"}
    assert {key: flat[f"dataset.{key}"] for key in wanted} == wanted
    with pytest.raises(UsageError, match="did you mean mine"):
        composed(user, "dataset=mines")


def test_a_users_own_study_wins_over_the_defaults_and_loses_against_the_command_line(user: Path) -> None:
    text = "# @package _global_\nstudy: {name: margins}\ntrainer: {epochs: 3, batch_size: 8}\nloss: {smooth: 1}\n"
    text = "# @package _global_\ndefaults:\n  - override /loss: dice\n" + text.partition("\n")[2]
    (user / "study" / "margins.yaml").write_text(text)
    config = composed(user, "study=margins", "trainer.batch_size=4")
    assert (config.study.name, config.trainer.epochs, config.trainer.batch_size) == ("margins", 3, 4)
    assert params(config.loss)["smooth"] == 1.0
    assert composed(user).study.name == "default"


@pytest.mark.parametrize(("group", "text"), [
    ("backbone", "defaults: [resnet18]\nname: resnet34\n"),
    ("augment", "defaults: [strong]\nname: mine\nnoise: 0.2\n"),
])  # fmt: skip
def test_a_users_own_preset_of_each_group(group: str, text: str, user: Path) -> None:
    (user / group / "mine.yaml").write_text(text)
    own = {k: v for k, v in yaml.safe_load(text).items() if k != "defaults"}
    chosen = dataclasses.asdict(getattr(composed(user, f"{group}=mine"), group))
    assert {k: chosen[k] for k in own} == own


@pytest.mark.parametrize(("group", "text", "said"), [
    ("dataset", "defaults: [folder]\nroot: /x\nrooot: /y\n", "rooot"),
    ("dataset", "defaults: [folder]\nroot: /x\nnum_classes: two\n", "num_classes"),
    ("dataset", "defaults: [folder]\nroot: /x\n_target_: os.system\n", "_target_"),
    ("augment", "defaults: [none]\nname: mine\nblur: 1\n", "blur"),
    ("study", "# @package _global_\nstudy: {name: s}\ntrainer: {epoch: 3}\n", "epoch"),
])  # fmt: skip
def test_a_users_own_files_are_held_to_the_schema(group: str, text: str, said: str, user: Path) -> None:
    (user / group / "mine.yaml").write_text(text)
    with pytest.raises(UsageError, match=said):
        composed(user, f"{group}=mine")


@pytest.mark.parametrize("text", ["defaults: [folder\nroot: x\n", "- a\n- b\n", "a: b: c"])
def test_a_file_that_holds_no_configuration_is_refused_by_its_name(text: str, user: Path) -> None:
    (user / "dataset" / "mine.yaml").write_text(text)
    with pytest.raises(UsageError, match=r"^[^\n]*mine[^\n]*$"):
        composed(user, "dataset=mine")


def test_folders_with_odd_names_can_hold_ones_own(tmp_path: Path) -> None:
    folder = tmp_path / "mine, it's (ä) $x"
    (folder / "study").mkdir(parents=True)
    (folder / "study" / "own.yaml").write_text("# @package _global_\nstudy: {name: own}\n")
    assert composed(folder, "study=own").study.name == "own"
