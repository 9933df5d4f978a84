"""Values, canonical names and identity; composing itself is tested in test_compose.py."""

import copy
import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest
from messages import mentions
from tiny import MODEL_NEEDS

from segexp.config import CODE_GROUPS, Config, TrainerConfig, alias_target, choice_config, names_in, params
from segexp.config import canonical as module
from segexp.config.canonical import CHOICES, arm_identity, as_before, config_of, identity, options_in, resolve
from segexp.config.compose import compose, hydra_session
from segexp.data import adapters
from segexp.errors import UsageError
from segexp.losses import LOSSES
from segexp.records import NUMERICS, flatten
from segexp.registry import NOT_NEGATIVE, Option, Range, Since

VOLATILE = {
    "outputs", "study.name", "study.protocol", "study.budget", "sweep.pairs", "sweep.exclude", "tuned", "resume",
    "tracking", "dataset.name", "dataset.root", "dataset.group_file", "dataset.max_pixels", "trainer.device",
    "trainer.threads", "trainer.workers", "trainer.keep_last", "trainer.figures",
    "trainer.wait", "dataset.class_names", "split.method",
    *(f"dataset.{key}" for key in ("class_colors", "channel_names", "licence", "citation", "url", "download")),
    "dataset.mask_antialias",
}  # fmt: skip
"""Keys that do not change what a run is; every other key does."""

CONTENT = {"dataset": "d", "split": "s", "weights": ""}

MEMBERS = [(group, name) for group in CODE_GROUPS for name in names_in(group)]
OPTIONS = [(g, n, o) for g, n in MEMBERS for o in alias_target(g, n)[1]]


@pytest.fixture(scope="module")
def default() -> Config:
    with hydra_session():
        return compose([])


@pytest.fixture(scope="module")
def of_folder() -> Config:
    with hydra_session():
        return compose(["dataset=folder", "dataset.root=/images", "loss=dice", "scheduler=plateau", "optimizer=sgd"])


def with_value(config: Any, key: str, value: Any) -> Any:
    """A copy of the tree with another value at one dotted key."""
    name, _, rest = key.partition(".")
    return dataclasses.replace(config, **{name: with_value(getattr(config, name), rest, value) if rest else value})


def with_choice(config: Config, group: str, name: str, **options: Any) -> Config:
    return with_value(config, group, dataclasses.replace(choice_config(group, name)(), **options))


def another(value: Any) -> Any:
    """A value that differs from ``value``."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, str):
        return f"{value}x"
    return [*value, *(value[-1:] or [1])] if isinstance(value, list) else 1


def all_keys() -> list[tuple[str, str]]:
    """(fixture, key) for every key of the typed tree, with each data set's own."""
    keys = []
    for fixture, dataset in (("default", "lesions"), ("of_folder", "folder")):
        tree = Config(dataset=adapters()[dataset].config())
        keys += [(fixture, key) for key in flatten(tree)]
    return keys


def test_values_that_only_permit_do_not_enter_the_identity(of_folder: Config) -> None:
    plain = identity(of_folder, CONTENT)
    for key, permits, changes in (("orientation", "stored", "upright"), ("normalise", "full_range", "image")):
        assert identity(with_value(of_folder, f"dataset.{key}", permits), CONTENT) == plain
        assert identity(with_value(of_folder, f"dataset.{key}", changes), CONTENT) != plain


@pytest.mark.parametrize(("fixture", "key"), all_keys())
def test_every_key_but_the_volatile_enters_the_identity(fixture: str, key: str, request: pytest.FixtureRequest) -> None:
    config = request.getfixturevalue(fixture)
    changed = with_value(config, key, another(flatten(config)[key]))
    assert (identity(changed, CONTENT) == identity(config, CONTENT)) == (key in VOLATILE)


def test_where_folders_lie_is_no_part_of_the_identity(of_folder: Config) -> None:
    """Absolute ones; a name below the root is one, as before."""
    here, there, below = (
        identity(with_value(of_folder, "dataset.images", p), CONTENT) for p in ("/a/b", "~/c", "images2")
    )
    assert here == there != below != identity(of_folder, CONTENT)


@pytest.mark.parametrize("group", CODE_GROUPS)
def test_every_option_of_an_entry_enters_the_identity(group: str, default: Config) -> None:
    for name, option in ((name, option) for of, name, option in OPTIONS if of == group):
        config = with_choice(default, group, name)
        changed = with_choice(default, group, name, **{option.name: another(option.default)})
        assert identity(changed, CONTENT) != identity(config, CONTENT), (name, option.name)


@pytest.mark.parametrize("group", CODE_GROUPS)
def test_every_member_of_a_group_is_another_run(group: str, default: Config) -> None:
    members = list(CODE_GROUPS[group])
    assert len({identity(with_choice(default, group, name), CONTENT) for name in members}) == len(members)


def test_content_enters_the_identity_and_that_of_a_weight_file_stands_for_its_path(default: Config) -> None:
    assert len({identity(default, CONTENT), *(identity(default, {**CONTENT, what: "other"}) for what in CONTENT)}) == 4
    here, there = (with_value(default, "backbone.weights", path) for path in ("/a.pt", "/b.pt"))
    content = {**CONTENT, "weights": "sha"}
    assert identity(here, content) == identity(there, content)
    assert identity(here, CONTENT) != identity(there, CONTENT)


def test_identity_is_hexadecimal_and_repeatable(default: Config) -> None:
    assert identity(default, CONTENT) == identity(copy.deepcopy(default), dict(reversed(CONTENT.items())))
    assert len(bytes.fromhex(identity(default, CONTENT))) == 32


@pytest.mark.parametrize(("key", "same"), [("seed", True), ("dataset.seed", False), ("split.seed", False)])
def test_arm_identity_ignores_the_seed_alone(key: str, same: bool, default: Config) -> None:
    assert (arm_identity(with_value(default, key, 7), CONTENT) == arm_identity(default, CONTENT)) == same


def folded(config: Config, folds: int | None, fold: int | None) -> Config:
    return with_value(with_value(config, "split.folds", folds), "split.fold", fold)


def test_a_fold_is_another_run_of_the_same_arm(default: Config) -> None:
    runs = [folded(default, folds, fold) for folds, fold in ((None, None), (5, 0), (5, 1), (4, 1))]
    assert len({identity(run, CONTENT) for run in runs}) == 4
    arms = [arm_identity(run, CONTENT) for run in runs]
    assert arms[1] == arms[2] == identity(runs[1], CONTENT)
    assert len(set(arms)) == 3


# What was recorded earlier keeps its identity

GOLDEN: dict[str, tuple[list[str], str]] = {
    "7133193670722baa63d5a3de5ca21b1aa6ba519a766a3b8432407527b3a7b426": ([], ""),
    "ed97c0601a03c629aa05b1da11ec59e7bf9dad7746ff2964c5c3a97bd13511a9": (
        ["dataset=folder", "dataset.root=/images", "dataset.group_file=/g.csv", "dataset.mask_coding=values",
         "dataset.mask_values=[0,128,255]", "dataset.num_classes=3", "head.mode=independent", "loss=tversky"], "",
    ),
    "b2825e78b29e988ee30d72d53c645642e83d0c27034a685a84ba98f3aafc953d": (
        ["hidden_activation=leaky_relu", "hidden_activation.negative_slope=0.1", "init.bias=0.01", "activation=arctan",
         "activation.slope=matched", "activation.prior_bias=auto"], "w",
    ),
    "7a80e7d1d3b90d8789abf448ec87d7d8880d953dcb4d4b710e66c194437ce693": (
        ["loss=sum", "loss.terms={dice: 1, focal: {weight: 0.5, gamma: 3}}", "optimizer=sgd", "scheduler=plateau",
         "trainer.clip_norm=1"], "",
    ),
    "a779fb16f017c6dbab6c52b5dcb20baba629c21aad0b45a06fff64706a0e9ebc": (
        ["split.folds=5", "split.fold=3", "model=fpn", "backbone=resnet34", "augment=strong", "trainer.patience=4"], "",
    ),
    "cbb83d9f4b99b1027cde09d1f26c8aa64414b2ee104eb5547111e2c3a401aec0": (
        ["study=nieradzik2021", "protocol=paper", "budget=smoke", "dataset=lesions", "loss=bce", "split.fold=1"], "",
    ),
}  # fmt: skip
"""Identity as commit 83d9e4b computed it -> overrides and the hash of the weight file."""


@pytest.mark.parametrize("golden", GOLDEN)
def test_runs_recorded_by_earlier_versions_keep_their_identity(golden: str, session: list[str]) -> None:
    overrides, weights = GOLDEN[golden]
    assert identity(compose(overrides, session), CONTENT | {"weights": weights}, numerics=1) == golden


@dataclass
class LaterTrainer(TrainerConfig):
    """The training loop of a later version, with an option that earlier runs did not have."""

    ema: Annotated[float, NOT_NEGATIVE, Since(0.0)] = 0.9


@pytest.fixture
def later(default: Config, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Config]:
    """The identity of a run, and its configuration in a later version whose trainer and dice have one more option."""
    before = identity(with_choice(default, "loss", "dice"), CONTENT)
    monkeypatch.setitem(module.SECTIONS, "trainer", LaterTrainer)
    option = Option("border", bool, True, since=Since(False))
    dice = dataclasses.replace(LOSSES["dice"], options=(*LOSSES["dice"].options, option))
    monkeypatch.setitem(LOSSES, "dice", dice)
    config = dataclasses.replace(default, trainer=LaterTrainer(**vars(default.trainer), ema=0.0))
    return before, with_choice(config, "loss", "dice", border=False)


def test_a_later_option_enters_the_identity_only_where_it_changes_something(later: tuple[str, Config]) -> None:
    before, config = later
    assert identity(config, CONTENT) == before
    changed = [with_value(config, "trainer.ema", 0.5), with_value(config, "loss.border", True)]
    assert len({before, *(identity(run, CONTENT) for run in changed)}) == 3


@pytest.mark.usefixtures("later")
def test_a_record_without_a_later_option_means_as_before(default: Config) -> None:
    """Although the default of the later version is another one."""
    tree = dataclasses.asdict(default) | {"loss": {"name": "sum", "terms": {"dice": {"weight": 1.0}, "ce": 2}}}
    complete = as_before(tree)
    assert complete["trainer"]["ema"] == 0.0
    assert complete["loss"]["terms"]["dice"]["border"] is False
    assert config_of(tree).trainer.ema == 0.0  # type: ignore[attr-defined]
    assert "ema" not in tree["trainer"]
    assert as_before({"seed": 3}) == {"seed": 3, "tracking": "none"}
    assert as_before({"trainer": {"ema": 0.7}})["trainer"]["ema"] == 0.7


def test_another_version_of_the_numbers_is_another_run(default: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    first, later = identity(default, CONTENT), NUMERICS + 1
    assert identity(default, CONTENT, numerics=later - 1) == first
    monkeypatch.setattr(module, "NUMERICS", later)
    assert identity(default, CONTENT) == identity(default, CONTENT, numerics=later) != first


# Canonical names


def in_mode(config: Config, mode: str) -> Config:
    classes = 2 if mode == "binary" else 3
    return with_value(with_value(config, "dataset.num_classes", classes), "head.mode", mode)


ALIASES = [
    (group, alias, entry.name, mode, mode in modes)
    for group, registry in CODE_GROUPS.items()
    for entry in registry.values()
    for alias, modes in getattr(entry, "aliases", {}).items()
    for mode in ("binary", "independent", "softmax")
]


@pytest.mark.parametrize(("group", "alias", "name", "mode", "allowed"), ALIASES)
def test_an_alias_is_the_same_run_or_refused(
    group: str, alias: str, name: str, mode: str, allowed: bool, default: Config
) -> None:
    config = in_mode(default, mode)
    if group == "activation" and "log_odds" not in CODE_GROUPS[group][name].offers:
        config = with_choice(config, "loss", "mse")
    if allowed:
        resolved = resolve(with_choice(config, group, alias))
        assert getattr(resolved, group).name == name
        assert identity(resolved, CONTENT) == identity(resolve(with_choice(config, group, name)), CONTENT)
    else:
        message = refusal(with_choice(config, group, alias))
        assert message.startswith(f"{group}={alias} ")
        assert mentions(message, f"head is {mode}", f"use {group}={name}")


@pytest.mark.parametrize(("written", "classes", "in_force"), [
    ("softmax", 2, "binary"), ("independent", 2, "binary"), ("binary", 2, "binary"),
    ("softmax", 3, "softmax"), ("independent", 3, "independent"),
])  # fmt: skip
def test_two_classes_are_one_logit_in_any_mode(written: str, classes: int, in_force: str, default: Config) -> None:
    config = with_value(with_value(default, "dataset.num_classes", classes), "head.mode", written)
    assert resolve(config).head.mode == in_force


def test_resolving_twice_changes_nothing_and_spares_its_argument(of_folder: Config) -> None:
    config = with_choice(of_folder, "activation", "probit")
    before = copy.deepcopy(config)
    resolved = resolve(config)
    assert flatten(config) == flatten(before)
    assert flatten(resolve(resolved)) == flatten(resolved)


def test_folders_become_absolute(of_folder: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    resolved = resolve(with_value(with_value(of_folder, "outputs", "out"), "dataset.root", "~/images"))
    assert resolved.outputs == str(tmp_path / "out")
    assert flatten(resolved)["dataset.root"] == "/home/someone/images"


# Values


def refusal(config: Config) -> str:
    with pytest.raises(UsageError) as told:
        resolve(config)
    message = str(told.value)
    assert "\n" not in message
    return message


def test_text_that_is_not_utf8_is_refused(default: Config) -> None:
    assert r"study.name=l\udce4s" in refusal(with_value(default, "study.name", "l\udce4s"))


@pytest.mark.parametrize("key", CHOICES)
def test_valid_words_are_accepted_and_listed_when_another_is_refused(key: str, default: Config) -> None:
    if key == "dataset.background":
        default = with_value(with_value(default, "dataset.num_classes", 3), "head.mode", "softmax")
    for word in CHOICES[key]:
        resolve(with_value(default, key, word))
    message = refusal(with_value(default, key, "something"))
    assert message.startswith(f"{key}=something ")
    assert ", ".join(CHOICES[key]) in message


FIELDS = {key: o.range for key, o in options_in(vars(Config())).items() if o.range != Range()}
"""Plain fields that are numbers with limits."""


@pytest.mark.parametrize("key", FIELDS)
def test_values_beyond_their_range_are_refused_and_its_ends_are_not(key: str, default: Config) -> None:
    value = flatten(default)[key]
    step = 1 if isinstance(value, int) or value is None else 1e-6
    for end, sign in zip((FIELDS[key].low, FIELDS[key].high), (-1, 1), strict=True):
        if math.isinf(end):
            continue
        assert mentions(refusal(with_value(default, key, end + sign * step)), f"{key}={end + sign * step}", "range")
        if key in ("dataset.num_classes", "dataset.image_size", "split.folds", "split.fold"):
            continue  # their ends depend on the data set, the model, and each other
        config = with_value(default, "head.mode", "softmax")
        assert flatten(resolve(with_value(config, key, type(end + step)(end))))[key] == end


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("key", [k for k in FIELDS if k.startswith("augment") or k == "dataset.surface_tolerance"])
def test_numbers_that_are_not_finite_are_refused(key: str, value: float, default: Config) -> None:
    assert mentions(refusal(with_value(default, key, value)), f"{key}={value}", "range")


@pytest.mark.parametrize(("key", "value", "said"), [
    ("optimizer.lr", 0.0, "above 0"),
    *(("trainer.clip_norm", value, "null") for value in (0.0, -1.0, math.nan)),
    *(("split.fractions", value, "sum to 1") for value in (
        [0.5, 0.5], [0.5, 0.2, 0.2], [1.0, 0.0, 0.0], [1.2, -0.1, -0.1], [math.nan, 0.5, 0.5],
    )),
    ("model.decoder_channels", [64, 32, 24, 16], "encoder_depth"),
    ("model.decoder_channels", [64, 32, 24, 16, 0], "at least 1"),
    ("model.encoder_depth", 4, "decoder_channels"),
    *(("study.name", value, "folder name") for value in ("a/b", "..", ".hidden", "a\\b", "x" * 241)),
    *((key, "", "empty") for key in ("study.name", "outputs", "tuned", "dataset.name", "backbone.name")),
    *((key, "~nobody_here/x", "home folder") for key in ("outputs", "tuned", "backbone.weights")),
    *(("dataset.name", value, "UTF-8") for value in ("a\0", "a\udcff")),
    ("seed", "???", "seed=VALUE"),
    ("dataset.spacing", [1.0], "two positive numbers"),
    ("dataset.spacing", [1.0] * 4, "two positive numbers"),
    ("dataset.class_names", ["a", "b", "c"], "each of 2 classes"),
    ("dataset.class_colors", ["#000000"], "each of 2 classes"),
    ("dataset.class_colors", ["#000000", "red"], "#rrggbb"),
    ("dataset.limit", 1.0, "share below 1"),
    ("dataset.spacing", [1.0, 0.0], "two positive numbers"),
])  # fmt: skip
def test_values_that_make_no_run_are_refused(key: str, value: Any, said: str, default: Config) -> None:
    message = refusal(with_value(default, key, value))
    assert message.startswith(key.rpartition(".")[0])
    assert said in message


def test_no_clipping_may_be_an_infinite_norm_and_fractions_may_miss_one_by_rounding(default: Config) -> None:
    fractions = [0.333333333333] * 3
    assert resolve(with_value(default, "split.fractions", fractions)).split.fractions == fractions
    assert resolve(with_value(default, "trainer.clip_norm", math.inf)).trainer.clip_norm == math.inf


@pytest.mark.parametrize(("source", "folds", "fold", "cure"), [
    ("auto", None, 1, "split.folds=N"),
    ("auto", 5, None, "-m 'split.fold=range(5)'"),
    ("auto", 5, 5, "below 5"),
    ("auto", 1, 0, "at least 2"),
    ("auto", 5, -1, "at least 0"),
    ("files", 5, 0, "split.source=fractions"),
])  # fmt: skip
def test_wrong_folds_are_refused(source: str, folds: int | None, fold: int | None, cure: str, default: Config) -> None:
    message = refusal(folded(with_value(default, "split.source", source), folds, fold))
    assert message.startswith("split.fold")
    assert cure in message


def test_binary_heads_are_for_two_classes(default: Config) -> None:
    message = refusal(with_value(with_value(default, "dataset.num_classes", 3), "head.mode", "binary"))
    assert "head.mode=softmax or head.mode=independent" in message


def fitting(config: Config, group: str, name: str, **options: Any) -> Config:
    """``config`` with a member of a group, and a head and a loss that go with it."""
    if group == "activation" and "log_odds" not in CODE_GROUPS[group][alias_target(group, name)[0]].offers:
        config = with_choice(config, "loss", "mse")
    if group == "model":
        for need in MODEL_NEEDS.get(name, ()):
            key, _, value = need.partition("=")
            config = with_value(config, key, int(value) if value.isdigit() else value)
    modes = getattr(CODE_GROUPS[group][alias_target(group, name)[0]], "aliases", {}).get(name, ("binary",))
    return with_choice(in_mode(config, modes[0]), group, name, **options)


@pytest.mark.parametrize("group", CODE_GROUPS)
def test_options_of_catalogue_entries_are_checked(group: str, default: Config) -> None:
    for name, option in ((name, option) for of, name, option in OPTIONS if of == group):
        for choice in option.choices:
            resolve(fitting(default, group, name, **{option.name: choice}))
        bad: list[Any] = ["something"] if option.choices else [math.nan, math.inf] if option.type is float else []
        for value in bad:
            message = refusal(fitting(default, group, name, **{option.name: value}))
            assert message.startswith(f"{group}.{option.name}={value} is "), name


DICE = {o.name: o.default for o in LOSSES["dice"].options}
CE = {o.name: o.default for o in LOSSES["ce"].options}


def with_terms(config: Config, terms: Any) -> Config:
    return with_choice(config, "loss", "sum", terms=terms)


def test_terms_of_a_sum_are_written_one_way(default: Config) -> None:
    """Aliases, order and defaults do not make another run."""
    wanted = {"ce": CE | {"weight": 0.5}, "dice": DICE | {"weight": 1.0, "smooth": 1.0}}
    for terms in (
        {"dice": {"smooth": 1}, "ce": 0.5},
        {"bce": {"weight": 0.5, "label_smoothing": 0}, "dice": {"weight": 1, "smooth": 1.0, "reduction": "batch"}},
    ):
        resolved = resolve(with_terms(default, terms))
        assert params(resolved.loss)["terms"] == wanted
        assert list(params(resolved.loss)["terms"]) == ["ce", "dice"]
        assert resolve(resolved) == resolved


@pytest.mark.parametrize(("terms", "key", "cure"), [
    ({"dice": 1}, "loss.terms=", "loss.terms='{dice: 1, ce: 0.5}'"),
    ({"dice": 1, "cee": 1}, "unknown loss 'cee'", "did you mean ce"),
    ({"dice": 1, "sum": 1}, "loss.terms.sum", "write it once"),
    ({"dice": 1, "ce": 0}, "loss.terms.ce=0", "weight above 0"),
    ({"dice": 1, "ce": {"weight": -1}}, "loss.terms.ce", "weight above 0"),
    ({"dice": {"smoth": 1}, "ce": 1}, "loss.terms.dice.smoth", "did you mean smooth"),
    ({"dice": {"smooth": -1}, "ce": 1}, "loss.terms.dice.smooth=-1.0", "at least 0"),
    ({"dice": {"squared": 0}, "ce": 1}, "loss.terms.dice.squared=0", "False"),
    ({"dice": {"reduction": "pixel"}, "ce": 1}, "loss.terms.dice.reduction=pixel", "batch, image"),
    ({"dice": {"class_weights": [1]}, "ce": 1}, "loss.terms.dice.class_weights", "dataset.num_classes=2"),
])  # fmt: skip
def test_wrong_terms_are_refused_with_key_and_cure(terms: Any, key: str, cure: str, default: Config) -> None:
    message = refusal(with_terms(default, terms))
    assert message.startswith(key)
    assert cure in message


@pytest.mark.parametrize(("group", "name", "option", "value", "cure"), [
    ("loss", "ce", "class_weights", [1.0], "dataset.num_classes=2"),
    ("loss", "ce", "class_weights", [1.0, -1.0], "at least 0"),
    ("loss", "ce", "class_weights", [1.0, 0.0], "above 0"),
    ("loss", "ce", "class_weights", [1.0, math.nan], "out of range"),
    ("loss", "ce", "class_weights", [1.0, 10**400], "below 2^63"),
    ("loss", "topk_ce", "share", 0.0, "above 0"),
    ("loss", "skeleton_recall", "tube", 10**12, "at most 1000"),
    ("loss", "cl_dice", "iterations", 10**6, "at most 1000"),
    ("activation", "sigmoid", "slope", "0", "learned, or a number above 0"),
    ("activation", "sigmoid", "slope", "steep", "learned, or a number above 0"),
    ("activation", "sigmoid", "prior_bias", "1", "none, auto, or a number above 0 and below 1"),
    ("activation", "minmax_linear", "slope", "matched", "use activation.slope=native"),
    ("activation", "minmax_linear", "slope", "learned", "use activation.slope=native"),
    ("activation", "minmax_linear", "prior_bias", "auto", "use none"),
])  # fmt: skip
def test_wrong_options_are_refused(group: str, name: str, option: str, value: Any, cure: str, default: Config) -> None:
    message = refusal(with_choice(default, group, name, **{option: value}))
    assert message.startswith(f"{group}.{option}" if group == "loss" else f"{group}.{option}={value}")
    assert cure in message


@pytest.mark.parametrize(("activation", "slope", "canonical"), [
    ("arctan", "native", "native"), ("arctan", "1", "native"), ("arctan", "matched", "matched"),
    ("sigmoid", "matched", "native"), ("arctan", "2", "2.0"), ("arctan", "0.50", "0.5"),
])  # fmt: skip
def test_a_slope_is_written_one_way(activation: str, slope: str, canonical: str, default: Config) -> None:
    resolved = resolve(with_choice(default, "activation", activation, slope=slope))
    assert params(resolved.activation)["slope"] == canonical


def test_a_cap_without_a_prior_is_no_other_run_and_a_prior_has_a_limit(default: Config) -> None:
    capped = with_choice(default, "activation", "arctan", prior_bias_cap=3.0)
    plain = with_choice(default, "activation", "arctan")
    assert params(resolve(capped).activation) == params(resolve(plain).activation)
    set_to = with_choice(default, "activation", "arctan", prior_bias="auto", prior_bias_cap=3.0)
    assert params(resolve(set_to).activation)["prior_bias_cap"] == 3.0
    # Priors of exclusive classes leave room for the background.
    three = with_value(with_value(default, "dataset.num_classes", 3), "head.mode", "softmax")
    assert "0.5" in refusal(with_choice(three, "activation", "arctan", prior_bias="0.5"))
    resolve(with_choice(three, "activation", "arctan", prior_bias="0.49"))
    resolve(with_choice(with_value(three, "head.mode", "independent"), "activation", "arctan", prior_bias="0.5"))


@pytest.mark.parametrize(("key", "value"), [
    ("activation.prior_bias_cap", 16.0), ("hidden_activation.scope", "decoder"), ("init.gain", "relu"),
    ("backbone.allow_mismatched_weights", True), ("head.mode", "softmax"), ("head.mode", "independent"),
])  # fmt: skip
def test_a_setting_without_effect_is_said_to_have_none(
    key: str, value: Any, default: Config, caplog: pytest.LogCaptureFixture
) -> None:
    module._note.cache_clear()
    with caplog.at_level("INFO", "segexp"):
        recorded = flatten(resolve(with_value(default, key, value)))
    assert recorded == flatten(resolve(default))
    assert mentions(caplog.text, key, "no effect", str(recorded[key]).lower())
