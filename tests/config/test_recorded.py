"""A recorded configuration is data: it gives the same configuration again, and can do nothing else."""

import dataclasses
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny import tiny_run

from segexp.config import Config
from segexp.config.canonical import identity
from segexp.config.compose import compose, hydra_session, recorded_config, recorded_overrides
from segexp.errors import UsageError
from segexp.records import flatten
from segexp.running import config_yaml

CONTENT = {"dataset": "d", "split": "s", "weights": ""}

NOT_DEFAULT = (
    "dataset=folder", "dataset.root='/my data/ü, it\\'s [here] {a: b} #1 \"x\" = $HOME & ~'", "dataset.name='1e-3'",
    "dataset.image_suffix='null'", "dataset.mask_suffix=' _mask '", "dataset.mask_coding=colors",
    "dataset.mask_colors=['#000000','#ff0000','#00ff00']", "dataset.ignore_color='#e0e0c0'", "dataset.num_classes=3",
    "dataset.class_names=['null','a, b','1']",
    "dataset.image_size=null", "dataset.fit=pad", "dataset.spacing=[0.5,1e-3]", "dataset.split_dir=null",
    "dataset.group_file='groups, of images.csv'", "dataset.group_column='Fälle'", "hidden_activation=swish",
    "backbone.allow_mismatched_weights=true", "hidden_activation.scope=encoder", "init.gain=relu", "init.bias=0.01",
    "activation=softmax", "activation.slope=2", "activation.prior_bias=auto", "activation.prior_bias_cap=5",
    "loss=sum", "loss.terms={nll: 2, dice: {weight: 0.5, smooth: 1, reduction: image, class_weights: [1, 2, 3]}}",
    "optimizer=sgd", "optimizer.lr=1e-3", "optimizer.weight_decay=1e-20", "scheduler=plateau", "scheduler.min_lr=1e-7",
    "augment=strong", "augment.noise=0.05", "backbone.name=tu-resnet10t", "backbone.weights='~/my weights/r=18.pt'",
    "model.encoder_depth=3", "model.decoder_channels=[16,8,8]", "study.name='true'", "study.protocol=paper",
    "study.budget=smoke", "seed=9223372036854775807", "split.fractions=[0.7,0.1,0.2]", "split.folds=4", "split.fold=3",
    "trainer.clip_norm=1", "trainer.patience=4", "trainer.threads=null", "split.allow_shared_groups=true",
    "split.method=largest_first", "split.per_seed=true",
    "dataset.background=none", "dataset.limit=0.5", "dataset.normalise='ct(-100,300)'",
    "dataset.class_colors=['#000000','#ff0000','#00ff00']", "dataset.channel_names=[T1,'a, b']",
    "dataset.licence='CC BY 4.0'", "dataset.citation='A et al., 2020'", "dataset.url='https://example.org/?a=b&c'",
    "dataset.mask_antialias=true", "dataset.mask_other=ignore", "dataset.orientation=upright", "dataset.pages=slices",
    "dataset.download=true", "tracking=[csv]",
)  # fmt: skip

TEXTS = (
    "plain", "two words", " blanks ", "it's", 'say "hi"', "größe 日本", "a,b", "[x]", "{a: b}", "(a)", "null", "true",
    "007", "1e-3", "-1", "a#b", "key: value", "a=b", "~/x", "$HOME", "%", "@", "*", "?", "!", "a|b", "", "range(3)",
    "choice(a,b)", "a\\b", "C:\\data\\new", "\\\\server\\share", "ends in \\", "\\'", "a\\'b", "'", "''", "\\n", "a\tb",
    "two\nlines", "\\\n",
)  # fmt: skip


def composed(*overrides: str) -> Config:
    with hydra_session() as extra:
        return compose(overrides, extra)


def record(folder: Path, config: Config, **changes: Any) -> Path:
    """A run directory with the configuration, whose leaves (dotted, "." as "__") are changed."""
    tree = yaml.safe_load(config_yaml(config))
    for key, value in changes.items():
        branch = tree
        *path, leaf = key.split("__")
        for name in path:
            branch = branch[name]
        branch[leaf] = value
    (folder / "config.yaml").write_text(yaml.safe_dump(tree, allow_unicode=True), encoding="utf-8")
    return folder


def refusal(run_dir: Path, *overrides: str) -> str:
    with pytest.raises(UsageError) as told:
        composed(*recorded_overrides(run_dir, overrides))
    assert "\n" not in str(told.value)
    return str(told.value)


@pytest.fixture(scope="module")
def default() -> Config:
    return composed()


@pytest.fixture(scope="module")
def of_text() -> Config:
    return composed("dataset=folder", "dataset.root=/images")


@pytest.fixture(scope="module")
def not_default() -> Config:
    return composed(*NOT_DEFAULT)


def test_the_configuration_is_far_from_the_default(not_default: Config, default: Config) -> None:
    """Only what differs can show that it is carried over."""
    flat, plain = flatten(not_default), flatten(default)
    same = [k for k in flat if flat[k] == plain.get(k, "no such key") and not k.startswith(("metrics.", "trainer."))]
    assert set(same) <= {
        "model.name", "activation.name", "head.mode", "split.source", "split.seed", "outputs",
        "resume", "model.decoder_attention_type", "sweep.pairs", "sweep.exclude", "tuned",
        "dataset.regions", "split.leave_one_group_out", "split.stratify",  # contradict other options here
    } | {k for k in same if k.startswith(("augment.", "loss.terms."))}  # fmt: skip


@pytest.mark.parametrize("which", ["default", "not_default"])
def test_a_recorded_run_is_the_same_run_again(which: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    config = request.getfixturevalue(which)
    again = composed(*recorded_overrides(record(tmp_path, config), ()))
    assert flatten(again) == flatten(config)
    assert [type(v) for v in flatten(again).values()] == [type(v) for v in flatten(config).values()]
    assert identity(again, CONTENT) == identity(config, CONTENT)
    assert config_yaml(again) == config_yaml(config)


TEXT_FIELDS = (
    "images", "masks", "image_suffix", "mask_suffix", "split_dir", "group_file", "group_column", "group_key",
    "ignore_color",
)  # fmt: skip


@pytest.mark.parametrize("start", range(0, len(TEXTS), len(TEXT_FIELDS)))
def test_any_text_comes_back_as_it_was(start: int, of_text: Config, tmp_path: Path) -> None:
    given: dict[str, Any] = dict(zip(TEXT_FIELDS, TEXTS[start:], strict=False))
    given["mask_colors"] = list(given.values())
    config = dataclasses.replace(of_text, dataset=dataclasses.replace(of_text.dataset, **given))
    again = composed(*recorded_overrides(record(tmp_path, config), ()))
    assert {key: getattr(again.dataset, key) for key in given} == given


@pytest.mark.parametrize("value", [1e-3, 1.7976931348623157e308, 0.1 + 0.2, 5e-324])
def test_any_number_keeps_all_its_digits(value: float, default: Config, tmp_path: Path) -> None:
    again = composed(*recorded_overrides(record(tmp_path, default, optimizer__lr=value), ()))
    assert flatten(again)["optimizer.lr"] == value


def test_values_given_now_win(not_default: Config, tmp_path: Path) -> None:
    run_dir = record(tmp_path, not_default)
    again = composed(*recorded_overrides(run_dir, ["seed=1", "optimizer.lr=0.5", "loss.terms.dice.smooth=0"]))
    differing = {k for k, v in flatten(again).items() if flatten(not_default)[k] != v}
    assert differing == {"seed", "optimizer.lr", "loss.terms.dice.smooth"}


@pytest.mark.slow
def test_a_group_given_now_brings_its_own_values(not_default: Config, tmp_path: Path) -> None:
    """Recorded options of dice mean nothing to jaccard or ce: they are dropped with their group."""
    run_dir = record(tmp_path, not_default)
    for override in ("loss=jaccard", "scheduler=constant", "augment=none", "backbone=resnet34"):
        group = override.partition("=")[0]
        again = composed(*recorded_overrides(run_dir, [override]))
        assert asdict(getattr(again, group)) == asdict(getattr(composed(override), group))
        others = {k: v for k, v in flatten(again).items() if k.split(".")[0] != group}
        assert others == {k: v for k, v in flatten(not_default).items() if k.split(".")[0] != group}


def test_another_data_set_given_now(not_default: Config, tmp_path: Path) -> None:
    overrides = recorded_overrides(record(tmp_path, not_default), ["dataset=lesions", "dataset.num_classes=3"])
    again = composed(*overrides)
    assert asdict(again.dataset) == asdict(composed("dataset=lesions", "dataset.num_classes=3").dataset)
    assert asdict(again.loss) == asdict(not_default.loss)


@pytest.mark.slow
def test_a_run_of_a_preset_is_repeated_without_its_preset(tmp_path: Path) -> None:
    """Fixed values and labels come from the record; neither the preset nor its sweep is loaded again."""
    config = composed("study=nieradzik2021", "protocol=paper", "budget=smoke", "dataset=lesions", "split.fold=1")
    overrides = recorded_overrides(record(tmp_path, config), ["seed=7"])
    assert not [o for o in overrides if o.startswith(("study=", "protocol=", "budget="))]
    again = composed(*overrides)
    assert {k for k, v in flatten(again).items() if flatten(config)[k] != v} == {"seed"}
    assert asdict(again.study) == {"name": "nieradzik2021_paper_smoke", "protocol": "paper", "budget": "smoke"}


def test_sweeps_over_what_was_recorded(not_default: Config, default: Config, tmp_path: Path) -> None:
    overrides = recorded_overrides(record(tmp_path, not_default), ["seed=1,2", "loss=dice,ce"])
    assert overrides[-2:] == ["seed=1,2", "loss=dice,ce"]
    assert [o for o in overrides[:-2] if o.startswith(("seed", "loss"))] == []
    # How the earlier attempt was to be resumed is not carried over; keys cannot be added.
    assert composed(*recorded_overrides(record(tmp_path, default, resume="restart"), ())).resume == "auto"
    assert "new" in refusal(tmp_path, "+new=1")


def test_options_that_the_record_lacks_mean_as_before(default: Config, tmp_path: Path) -> None:
    """Cross-validation is newer than the first records, which split the images once whatever a preset says."""
    (tmp_path / "config.yaml").write_text("seed: 3\n")
    assert flatten(composed(*recorded_overrides(tmp_path, ()))) == {**flatten(default), "seed": 3}
    tree = yaml.safe_load(config_yaml(default))
    del tree["split"]["folds"], tree["split"]["fold"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree))
    overrides = recorded_overrides(tmp_path, ())
    assert {"split.folds=null", "split.fold=null"} <= set(overrides)
    assert identity(composed(*overrides), CONTENT) == identity(default, CONTENT)


def test_a_preset_of_ones_own_need_not_be_there_any_more(of_text: Config, tmp_path: Path) -> None:
    again = composed(*recorded_overrides(record(tmp_path, of_text, dataset__name="kidneys"), ()))
    assert (again.dataset.name, again.dataset.adapter) == ("kidneys", "folder")


@pytest.mark.parametrize(("changes", "said"), [
    ({"study__name": "${seed}"}, "study.name holds an interpolation"),
    ({"split__fractions": ["${seed}", 0.1, 0.2]}, "split.fractions holds an interpolation"),
    ({"hydra": {"callbacks": {"x": {"_target_": "os.system"}}}}, "'hydra'"),
    ({"defaults": ["x"]}, "'defaults'"),
    ({"trainer__epoch": 3}, "did you mean trainer.epochs"),
    ({"trainer___target_": "os.system"}, "trainer._target_"),
    ({"new": 3}, "'new'"),
    ({"activation__name": "arctn"}, "did you mean arctan"),
    ({"dataset__adapter": "nowhere"}, "'nowhere'"),
    ({"seed": "1,2"}, "a whole number"),
    ({"optimizer__lr": float("nan")}, "optimizer.lr=nan"),
    ({"a b": 1}, "'a b' is not a key"),
    ({"seed=1,outputs": "x"}, "is not a key"),
    ({"loss@trainer": "x"}, "is not a key"),
    ({"seed": None}, "seed"),
])  # fmt: skip
def test_what_no_run_records_is_refused(changes: dict[str, Any], said: str, default: Config, tmp_path: Path) -> None:
    assert said in refusal(record(tmp_path, default, **changes))


@pytest.mark.parametrize("member", [3, None, {}, {"name": None}, {"name": ["a", "b"]}, {"name": 3}])
def test_a_group_that_is_none_is_refused_by_its_key(member: Any, default: Config, tmp_path: Path) -> None:
    assert "activation" in refusal(record(tmp_path, default, activation=member))


@pytest.mark.parametrize("changes", [
    {"_target_": "os.system"}, {"evil": {"a": 1}}, {"dataset__evil": 1}, {"a b": 1}, {"seed": "1,2"},
])  # fmt: skip
def test_a_refusal_names_the_record_and_the_cure(changes: dict[str, Any], default: Config, tmp_path: Path) -> None:
    run_dir = record(tmp_path, default, **changes)
    for overrides in ((), ("trainer.epochs=3",)):
        with pytest.raises(UsageError, match="restore the original file") as told:
            recorded_config(run_dir, overrides)
        assert str(run_dir / "config.yaml") in str(told.value)
    # What the user wrote himself is no fault of the record.
    with pytest.raises(UsageError) as told:
        recorded_config(record(tmp_path, default), ("trainer.epoch=3",))
    assert "config.yaml" not in str(told.value)


@pytest.mark.parametrize("text", [
    "", "just words", "- a\n- list\n", "a: [", "seed: !!python/object/apply:os.getcwd []", "seed: 2020-01-01", "1: 2",
    "\x00", "seed: &a [*a]",
])  # fmt: skip
def test_a_file_that_is_no_configuration_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(text)
    assert "recorded configuration" in refusal(tmp_path) or str(tmp_path) in refusal(tmp_path)


def test_what_is_no_run_directory_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        assert str(folder) in refusal(folder)
    (tmp_path / "config.yaml").write_bytes(b"seed: \xff\xfe")
    assert str(tmp_path) in refusal(tmp_path)


@pytest.mark.parametrize("key", ["dataset.root", "dataset.name", "outputs"])
def test_a_variable_that_is_not_set_is_reported_with_its_key(key: str) -> None:
    with pytest.raises(UsageError, match=rf"^{key}=.*NO_SUCH_VARIABLE") as told:
        composed("dataset=folder", "dataset.root=/images", f"{key}=${{oc.env:NO_SUCH_VARIABLE}}")
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(("key", "value", "refused"), [
    ("dataset.surface_tolerance", 7.0, True), ("trainer.threads", 3, False),
    pytest.param("metrics.resolution", "network", True, marks=pytest.mark.slow),
])  # fmt: skip
def test_an_edited_config_yaml_is_not_taken_for_the_run_s(tmp_path: Path, key: str, value: Any, refused: bool) -> None:
    """Where run.json says otherwise; but a machine may be another one."""
    run_dir = tiny_run(tmp_path).run_dir
    tree = yaml.safe_load((run_dir / "config.yaml").read_text())
    group, _, option = key.partition(".")
    tree[group][option] = value
    (run_dir / "config.yaml").write_text(yaml.safe_dump(tree))
    if refused:
        with pytest.raises(UsageError, match=key):
            recorded_overrides(run_dir, [])
    else:
        recorded_overrides(run_dir, [])
