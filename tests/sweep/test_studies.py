"""The presets under configs/study: each variant composes, sweeps over what there is, and is labelled as what it is."""

import copy
import functools
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Transformer
from medical import acdc, isles2018, msd_prostate
from PIL import Image
from tiny import TINY

from segexp.activations.hidden import HIDDEN_ACTIVATIONS
from segexp.activations.output import OUTPUT_ACTIVATIONS
from segexp.commands.list import listed
from segexp.config import (
    CODE_GROUPS,
    STUDY_VARIANTS,
    Config,
    alias_target,
    configs_dir,
    params,
    preset_names,
    preset_values,
    study_purpose,
    study_sweep,
    study_variants,
)
from segexp.config.canonical import identity
from segexp.config.compose import compose, compose_raw, hydra_session, parse_overrides
from segexp.errors import UsageError
from segexp.losses import LOSSES
from segexp.records import flatten
from segexp.running import prepare
from segexp.sweep.plan import arms_of, make_plan

CONTENT = {"dataset": "d", "split": "s", "weights": ""}
STUDIES = [name for name in preset_names("study") if name != "default"]
WHERE = "dataset.root=/data/${dataset.name}"
"""Names the folders of several data sets at once."""
VARIANTS = [
    (study, protocol, budget)
    for study in STUDIES
    for protocol in study_variants(study, "protocol")
    for budget in study_variants(study, "budget")
]
"""Every preset in every variant: (study, protocol, budget)."""


pytestmark = pytest.mark.usefixtures("session")


def overrides_of(study: str, protocol: str, budget: str) -> list[str]:
    return [f"study={study}", f"protocol={protocol}", f"budget={budget}"]


@functools.cache
def sweep_of(study: str, protocol: str, budget: str) -> dict[str, list[str]]:
    """What Hydra makes of the preset's sweep: key -> each value as text."""
    tree = compose_raw(overrides_of(study, protocol, budget))
    assert str(tree.hydra.mode) == "RunMode.MULTIRUN"
    swept = {}
    for key, text in tree.hydra.sweeper.params.items():
        (override,) = parse_overrides([f"{key}={text}"])
        values = override.sweep_iterator(Transformer.encode) if override.is_sweep_override() else [override.value()]
        swept[str(key)] = [str(value) for value in values]
    return swept


@functools.cache
def composed_at(variant: tuple[str, str, str], place: int) -> Config:
    chosen = {key: values[place] for key, values in sweep_of(*variant).items()}
    root = (
        [WHERE]
        if "root" in preset_values(configs_dir() / "dataset" / f"{chosen.get('dataset', 'lesions')}.yaml")
        else []
    )
    return compose([*overrides_of(*variant), *root, *(f"{key}={value}" for key, value in chosen.items())])


def combination(variant: tuple[str, str, str], place: int) -> Config:
    return copy.deepcopy(composed_at(variant, place))


@pytest.mark.parametrize(
    "variant",
    [
        pytest.param(
            v, marks=[pytest.mark.slow] * (v[2] == "full" or v[1] == "paper" or v[0] in ("pairs", "tail_ladder"))
        )
        for v in VARIANTS
    ],
    ids="-".join,
)
def test_every_variant_sweeps_over_known_values_and_its_first_run_is_valid(variant: tuple[str, str, str]) -> None:
    """An unknown key, a value of another type or a bad name would be refused."""
    study, protocol, budget = variant
    swept = sweep_of(*variant)
    assert set(swept) & set(CODE_GROUPS)
    for key, values in swept.items():
        names = [alias_target(key, value)[0] if key in CODE_GROUPS else value for value in values]
        assert len(set(names)) == len(names) > 0
    assert set(swept.get("dataset", [])) <= set(preset_names("dataset"))
    # `list` and completion read the same sweep without Hydra.
    assert study_sweep(study, protocol=protocol, budget=budget) == swept
    config = combination(variant, 0)
    assert (config.study.protocol, config.study.budget) == (protocol, budget)
    assert config.study.name.split("_smoke")[0].startswith(study)


@pytest.mark.slow
def test_no_two_variants_share_a_folder(session: list[str]) -> None:
    names = [combination(variant, 0).study.name for variant in VARIANTS]
    assert len(set(names)) == len(names)
    assert {compose([f"study={study}", "dataset=lesions"], session).study.name for study in STUDIES} == set(STUDIES)


@pytest.mark.parametrize("study", STUDIES)
def test_full_is_what_one_would_publish_and_smoke_is_small(study: str, session: list[str]) -> None:
    full, smoke = sweep_of(study, "corrected", "full"), sweep_of(study, "corrected", "smoke")
    assert max(len(full.get(key, [])) for key in ("seed", "split.fold")) >= 5
    assert math.prod(map(len, smoke.values())) < math.prod(map(len, full.values())) / 2
    config = combination((study, "corrected", "smoke"), 0)
    assert config.trainer.epochs <= 2
    assert getattr(config.dataset, "number", None) == 60
    assert config.backbone.weights is None


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v[2] == "smoke"], ids="-".join)
def test_smoke_data_can_be_split(variant: tuple[str, str, str], session: list[str]) -> None:
    """Small as they are, every part has foreground, in every fold that is swept."""
    swept = sweep_of(*variant)
    config = combination(variant, 0)
    for fold in map(int, swept.get("split.fold", [])):
        config.split.fold = fold
        prepared = prepare(config)
        assert all(prepared.split.values())
        assert prepared.run_dir.name.split("-")[-2] == f"f{fold}"
    assert all(prepare(config).split.values())


def test_a_summary_holds_its_fold(tmp_path: Path, session: list[str]) -> None:
    from segexp.records import read_table
    from segexp.running.finalize import finalize_diverged

    for overrides, fold in (([], None), (["split.folds=5", "split.fold=3"], 3)):
        prepared = prepare(compose([*TINY, *overrides, f"outputs='{tmp_path}'"], session))
        prepared.run_dir.mkdir(parents=True)
        record = {"n_rows_expected": {}, "init_sha": "", "n_params": 1}
        assert finalize_diverged(prepared, record)["fold"] == fold
        read = read_table(prepared.run_dir / "summary.csv", "summary")["fold"].tolist()
        assert read == [fold] if fold is not None else pd.isna(read[0])


def write_the_papers_data(folder: Path) -> None:
    """Tiny copies of its four data sets, with something to see in every fold."""
    acdc(folder / "acdc", 10)
    isles2018(folder / "isles2018")
    msd_prostate(folder / "msd_prostate", 10)
    for part in ("images", "masks"):
        (folder / "kvasir_seg" / "Kvasir-SEG" / part).mkdir(parents=True)
    for i in range(15):
        mask = np.zeros((32, 32), np.uint8)
        mask[4 + i % 5 : 20, 6:24] = 255
        image = np.random.default_rng(i).integers(0, 128, (32, 32, 3), np.uint8) + mask[..., None] // 3
        for part, pixels in (("images", image), ("masks", mask)):
            Image.fromarray(pixels).save(folder / "kvasir_seg" / "Kvasir-SEG" / part / f"p{i:02d}.jpg", quality=95)


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS, ids="-".join)
def test_a_plan_has_as_many_runs_as_listed(variant: tuple[str, str, str], session: list[str], tmp_path: Path) -> None:
    """With one seed and one fold where the budget is full: the others only repeat them."""
    study, protocol, budget = variant
    more, repeated = [], 1
    for key in ("seed", "split.fold") if budget == "full" else ():
        if key in sweep_of(*variant):
            more.append(f"{key}=0")
            repeated *= len(sweep_of(*variant)[key])
    if (study, budget) == ("nieradzik2021", "full"):
        write_the_papers_data(tmp_path / "data")
        more += [f"dataset.root='{tmp_path}/data/${{dataset.name}}'", "backbone.weights=null", "trainer.device=cpu"]
    plan = make_plan([*overrides_of(*variant), *more, f"outputs='{tmp_path}'"], session)
    (row,) = (row for row in listed("studies") if row["name"] == study)
    if budget == "smoke" or protocol == "corrected":
        assert f"{budget}: {repeated * len(plan.jobs)} runs" in row["budgets"]
    if budget == "full" and protocol == "corrected":
        assert len(arms_of(plan.jobs)) == row["arms"]
    assert (plan.refused, plan.duplicates) == ([], [])
    assert (plan.dropped != []) == (study == "pairs")
    assert {job.spec.config.study.protocol for job in plan.jobs} == {protocol}


# What each preset is for


@pytest.mark.slow
def test_the_papers_study(session: list[str]) -> None:
    swept = sweep_of("nieradzik2021", "corrected", "full")
    assert swept["activation"] == [
        "sigmoid", "arctan", "normal_cdf", "softsign", "inverse_square_root", "hardtanh", "minmax_linear",
    ]  # fmt: skip
    assert swept["loss"] == ["bce", "mse", "dice"]
    assert swept["split.fold"] == ["0", "1", "2", "3", "4"]
    assert swept["dataset"] == ["acdc", "isles2018", "kvasir_seg", "msd_prostate"]
    flat = flatten(combination(("nieradzik2021", "corrected", "full"), -1))
    assert flat["dataset.root"] == "/data/msd_prostate"
    wanted = {
        "model.name": "unet", "backbone.name": "resnet34", "backbone.weights": "imagenet", "optimizer.name": "adam",
        "optimizer.lr": 1e-3, "scheduler.name": "plateau", "scheduler.patience": 5, "augment.name": "none",
        "trainer.batch_size": 8, "trainer.patience": 11, "trainer.select": "dice", "split.folds": 5,
        "loss.name": "dice", "loss.reduction": "batch", "loss.smooth": 0.0,
    }  # fmt: skip
    assert {key: flat[key] for key in wanted} == wanted
    # What its protocols change.
    corrected, paper = (sweep_of("nieradzik2021", protocol, "full") for protocol in ("corrected", "paper"))
    assert {key for key in corrected if corrected[key] != paper[key]} == {"seed"}
    assert (len(corrected["seed"]), len(paper["seed"])) == (3, 1)
    flats = [
        flatten(compose([*overrides_of("nieradzik2021", protocol, "full"), "loss=bce", WHERE], session))
        for protocol in ("corrected", "paper")
    ]
    assert {key for key in flats[0] if flats[0][key] != flats[1][key]} == {
        "study.name", "study.protocol", "split.fractions",
    }  # fmt: skip


def test_the_papers_study_without_data_says_what_to_get(session: list[str], tmp_path: Path) -> None:
    every = r"dataset.root .*dataset.name.*acdc from https.*isles2018 from.*kvasir_seg from.*msd_prostate from"
    with pytest.raises(UsageError, match=rf"^{every}[^\n]*$"):
        make_plan(["study=nieradzik2021", f"outputs='{tmp_path}'"], session)


@pytest.mark.slow
def test_the_papers_study_runs_on_the_sets_that_are_there(session: list[str], tmp_path: Path) -> None:
    acdc(tmp_path / "acdc")
    made = ["trainer.device=cpu", "backbone.weights=null", f"dataset.root='{tmp_path}/${{dataset.name}}'"]
    swept = ["activation=sigmoid", "loss=bce", "split.fold=0", "seed=0"]
    plan = make_plan(["study=nieradzik2021", f"outputs='{tmp_path}'", *made, *swept], session)
    assert [job.spec.config.dataset.name for job in plan.jobs] == ["acdc"]
    assert [left.label for left in plan.refused] == [
        f"dataset={name}" for name in ("isles2018", "kvasir_seg", "msd_prostate")
    ]
    assert all("https://" in left.reason or "http://" in left.reason for left in plan.refused)


def test_the_core_hidden_activations_from_random_weights(session: list[str]) -> None:
    swept = sweep_of("hidden", "corrected", "full")
    assert set(swept["hidden_activation"]) <= set(HIDDEN_ACTIVATIONS)
    config = combination(("hidden", "corrected", "full"), -1)
    assert (config.backbone.weights, params(config.hidden_activation)["scope"]) == (None, "both")


def test_pairs_holds_every_output_activation_and_every_loss() -> None:
    """Without an edit of configs/study/pairs.yaml, in the order of the registries and without aliases."""
    swept = sweep_of("pairs", "corrected", "full")
    assert swept["activation"] == list(OUTPUT_ACTIVATIONS)
    assert swept["loss"] == [name for name in LOSSES if name != "sum"]


# Labels and refusals


@pytest.mark.parametrize(("overrides", "said"), [
    (["budget=smoke"], "budget=smoke: without a study"),
    (["study=hidden", "protocol=paper"], "protocol=paper: study=hidden .*`segexp list studies`"),
    (["study=hidden", "study.budget=smoke"], "write budget=smoke"),
    (["study=hidden", "budget=smok"], "unknown budget 'smok'; did you mean smoke"),
    (["study=hiden"], "unknown study 'hiden'; did you mean hidden"),
    (["study=budget"], "unknown study 'budget'"),
])  # fmt: skip
def test_variants_that_are_not_there_are_refused(overrides: list[str], said: str, session: list[str]) -> None:
    with pytest.raises(UsageError, match=rf"^[^\n]*{said}[^\n]*$"):
        compose(overrides, session)


@pytest.mark.slow
def test_the_command_line_wins_over_every_variant(session: list[str]) -> None:
    given = ["trainer.epochs=7", "study.name=mine", "backbone=resnet50", "dataset=folder", "dataset.root=/x"]
    config = compose([*overrides_of("nieradzik2021", "paper", "smoke"), *given], session)
    assert (config.trainer.epochs, config.study.name, config.dataset.name) == (7, "mine", "x")
    assert compose([*overrides_of("hidden", "corrected", "smoke"), "loss=dice"], session).loss.name == "dice"
    # Without a study, the default variants change nothing; the label of a variant is no part of the identity.
    variants = [f"{group}={member}" for group, member in STUDY_VARIANTS.items()]
    assert flatten(compose(variants, session)) == flatten(compose([], session))
    smoke = compose(overrides_of("tail_ladder", "corrected", "smoke"), session)
    assert identity(smoke, CONTENT) == identity(compose(["trainer.epochs=2"], session), CONTENT)


def test_a_study_of_ones_own_can_have_variants(tmp_path: Path) -> None:
    (tmp_path / "study" / "budget").mkdir(parents=True)
    (tmp_path / "study" / "mine.yaml").write_text("# @package _global_\nstudy: {name: mine}\n")
    text = "# @package _global_\nstudy: {budget: smoke}\ntrainer: {epochs: 1}\n"
    (tmp_path / "study" / "budget" / "mine-smoke.yaml").write_text(text)
    GlobalHydra.instance().clear()
    with hydra_session(tmp_path) as extra:
        config = compose(["study=mine", "budget=smoke"], extra)
        assert (config.study.budget, config.trainer.epochs) == ("smoke", 1)
        assert compose(["study=mine"], extra).study.budget == "full"


def test_studies_are_listed_with_purpose_arms_and_budgets() -> None:
    rows = {row["name"]: row for row in listed("studies")}
    assert set(rows) == {*STUDIES, "default"}
    assert all(row["purpose"] == study_purpose(name) != "" for name, row in rows.items())
    arms = {name: row["arms"] for name, row in rows.items()}
    binary = [row for row in listed("activations") if "binary" in OUTPUT_ACTIVATIONS[row["name"]].modes]
    valid = sum(len(row["losses"]) - ("sum" in row["losses"]) for row in binary)
    assert arms == {
        "default": 1, "hidden": 13, "nieradzik2021": 21, "pairs": valid, "tail_ladder": 30,
    }  # fmt: skip
    assert rows["nieradzik2021"]["budgets"] == ["full: 1260 runs", "smoke: 42 runs"]
    assert rows["nieradzik2021"]["protocols"] == ["corrected", "paper"]
    assert rows["default"]["budgets"] == ["full: 1 run"]
