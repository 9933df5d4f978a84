"""The split of a run: drawn as its study has it, or refused; one for each seed where that is asked."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from medical import placed, save_dicom, save_nifti, scene
from PIL import Image
from tiny import TINY, write_pairs

from segexp import cli
from segexp.config.compose import compose_job, hydra_session, recorded_config, typed_of
from segexp.errors import REFUSED, UsageError
from segexp.records import NUMERICS, flatten, read_run, read_table, write_json
from segexp.running import RunSpec, config_yaml, prepare
from segexp.running.execute import execute
from segexp.sweep.plan import make_plan, resume_plan

Captured = pytest.CaptureFixture[str]

SIZES = (5, 4, 2, 1, 1, 1, 1, 1)
GROUP_OF = [f"P{patient}" for patient, size in enumerate(SIZES) for _ in range(size)]

LARGEST_FIRST = "split.method=largest_first"


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Words of a run on 16 small images of 8 patients, some with more images than others."""
    root = tmp_path_factory.mktemp("data")
    drawn = np.random.default_rng(0)
    masks = [np.pad(np.full((9, 9), 255, np.uint8), ((n, 23 - n), (8, 15))) for n in range(sum(SIZES))]
    write_pairs(root, [(f"{n:02}.png", 60 * (m > 0) + drawn.normal(90, 20, m.shape), m) for n, m in enumerate(masks)])
    (root / "groups.csv").write_text("stem,patient\n" + "".join(f"{n:02},{p}\n" for n, p in enumerate(GROUP_OF)))
    tiny = [word for word in TINY if not word.startswith("dataset.number")]
    return ["dataset=folder", f"dataset.root={root}", *tiny]


GROUPED = ("dataset.group_file=groups.csv", "dataset.group_column=patient")


def prepared(outputs: Path, *words: str) -> RunSpec:
    with hydra_session() as extra:
        return prepare(typed_of(compose_job([*words, f"outputs='{outputs}'"], extra)))


def record(spec: RunSpec, status: str = "done", old: bool = False) -> Path:
    """The record of a run that was not trained. old: written by a segexp without the later options of splits."""
    spec.run_dir.mkdir(parents=True)
    later = ("method", "per_seed") if old else ()
    config = {k: v for k, v in flatten(spec.config).items() if k not in [f"split.{key}" for key in later]}
    tree = yaml.safe_load(config_yaml(spec.config))
    tree["split"] = {k: v for k, v in tree["split"].items() if k not in later}
    (spec.run_dir / "config.yaml").write_text(yaml.safe_dump(tree))
    content = {"schema_version": 1, "numerics": NUMERICS, "status": status, "run_id": spec.run_id}
    shas = {"identity": spec.identity, "dataset_sha": spec.dataset_sha, "split_sha": spec.split_sha}
    write_json(spec.run_dir / "run.json", content | shas | {"config": config})
    return spec.run_dir


@pytest.mark.parametrize(("begun", "options"), [
    ("largest_first", ()),
    ("random", ("split.folds=3", "split.fold=1", "split.per_seed=true")),
    *(pytest.param(begun, options, marks=pytest.mark.slow) for begun, options in (
        ("random", ()), ("largest_first", ("split.folds=3", "split.fold=1", "split.per_seed=true")),
        *((method, chosen) for method in ("largest_first", "random") for chosen in (
            ("dataset.limit=0.7",), ("split.folds=3", "split.fold=1"), ("split.per_seed=true",),
        )),
    )),
], ids=str)  # fmt: skip
def test_a_study_on_the_split_of_the_other_method_is_refused(
    begun: str, options: tuple[str, ...], words: list[str], tmp_path: Path
) -> None:
    (other,) = {"largest_first", "random"} - {begun}
    usual = (*words, *GROUPED, *options)
    held = record(prepared(tmp_path, *usual, f"split.method={begun}"), old=begun == "largest_first")
    for new in ((), ("activation=arctan",), ("seed=3",)):
        with pytest.raises(UsageError, match=rf"{held.name}.*split.method={begun}.*study.name="):
            prepared(tmp_path, *usual, f"split.method={other}", *new)
        prepared(tmp_path, *usual, f"split.method={begun}", *new)
    prepared(tmp_path, *usual, f"split.method={other}", "study.name=another")
    prepared(tmp_path, *usual, f"split.method={other}", "split.seed=1")


def test_other_data_and_archived_attempts_are_no_obstacle(words: list[str], tmp_path: Path) -> None:
    held = record(prepared(tmp_path, *words, *GROUPED, LARGEST_FIRST), old=True)
    kept = read_run(held)
    write_json(held / "run.json", kept | {"dataset_sha": "0" * 64})
    changed = held.with_name(held.name.replace("data", "other"))
    held.rename(changed)
    prepared(tmp_path, *words, *GROUPED)
    write_json(changed / "run.json", kept)
    changed.rename(held.with_name("moved-00000000.old1"))
    prepared(tmp_path, *words, *GROUPED)
    (tmp_path / "default" / "broken-00000001").mkdir()
    (tmp_path / "default" / "broken-00000001" / "run.json").write_text("{")
    odd = kept | {"config": {"split.folds": 3, "split.fold": [1], "split.method": {}}}
    (tmp_path / "default" / "odd-00000002").mkdir()
    write_json(tmp_path / "default" / "odd-00000002" / "run.json", odd)
    prepared(tmp_path, *words, *GROUPED, "split.folds=3", "split.fold=0")


def test_the_method_is_no_part_of_what_a_run_is(words: list[str], tmp_path: Path) -> None:
    alike = [prepared(tmp_path, *words, f"split.method={m}") for m in ("random", "largest_first")]
    assert alike[0].identity == alike[1].identity
    record(alike[0], old=True)
    assert prepared(tmp_path, *words).run_dir.exists(), "a finished run without groups is found"
    grouped = [prepared(tmp_path, *words, *GROUPED, f"split.method={m}") for m in ("random", "largest_first")]
    assert grouped[0].identity != grouped[1].identity


def test_commands_refuse_before_training_and_continue_with_the_cure(
    words: list[str], tmp_path: Path, capsys: Captured
) -> None:
    run = [*words, *GROUPED, f"outputs={tmp_path}", "trainer.epochs=1"]
    spec = prepared(tmp_path, *run, LARGEST_FIRST)
    done = execute(spec).run_dir
    for file in ("run.json", "config.yaml"):
        path = done / file
        path.write_text("\n".join(line for line in path.read_text().splitlines() if "method:" not in line))
    recorded = read_run(done)
    groups = {part: {GROUP_OF[i] for i in spec.split[part]} for part in ("train", "test")}
    assert {part: recorded["summary"][f"n_{part}_groups"] for part in groups} == {p: len(g) for p, g in groups.items()}
    del recorded["config"]["split.method"]
    write_json(done / "run.json", recorded)
    before = sorted(tmp_path.rglob("*"))
    for command in (
        ["train"],
        ["train", "--dry-run"],
        ["train", "-m", "seed=0,1"],
    ):
        assert cli.main([*command, *run]) == REFUSED, command
        assert LARGEST_FIRST in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before
    assert cli.main(["train", *run, LARGEST_FIRST]) == 0
    assert cli.main(["train", "--from", str(done), f"outputs={tmp_path}"]) == 0
    assert cli.main(["evaluate", str(done)]) == 0
    (evaluated,) = read_table(next(done.glob("evaluations/*/summary.csv")), "summary").to_dict("records")
    assert evaluated["n_test_groups"] == len(groups["test"])
    assert recorded_config(done).split.method == "largest_first"
    assert len(list((tmp_path / "default").glob("*/run.json"))) == 1, "each is the run that was there"


def test_an_unfinished_run_of_an_earlier_version_is_resumed_on_its_split(words: list[str], tmp_path: Path) -> None:
    spec = prepared(tmp_path, *words, *GROUPED, LARGEST_FIRST)
    record(spec, "interrupted", old=True)
    with hydra_session() as extra:
        plan = resume_plan(tmp_path / "default", [], [], extra)
    assert [job.spec.split for job in plan.jobs] == [spec.split]


@pytest.mark.parametrize("folds", [(), pytest.param(("split.folds=3", "split.fold=0,1"), marks=pytest.mark.slow)])
def test_each_seed_may_have_a_split_of_its_own(folds: tuple[str, ...], words: list[str], tmp_path: Path) -> None:
    sweep = [*words, *GROUPED, f"outputs={tmp_path}", "seed=0,1,2", "activation=sigmoid,arctan", "loss=dice"]
    with hydra_session() as extra:
        jobs = make_plan([*sweep, *folds, "split.per_seed=true"], extra).jobs
        fixed = make_plan([*sweep, *folds], extra).jobs
    by_seed: dict[tuple[int, int | None], set[str]] = {}
    for job in jobs:
        by_seed.setdefault((job.spec.config.seed, job.spec.config.split.fold), set()).add(job.spec.split_sha)
    assert {len(shas) for shas in by_seed.values()} == {1}, "the same for all arms"
    assert len(set.union(*by_seed.values())) == len(by_seed)
    assert len({job.spec.config_id for job in jobs}) == 2, "one for each arm"
    assert len({job.spec.dataset_sha for job in jobs}) == 1
    assert not {job.spec.identity for job in jobs} & {job.spec.identity for job in fixed}


def test_a_limit_draws_the_same_images_for_each_seed(words: list[str], tmp_path: Path) -> None:
    options = (*words, *GROUPED, "dataset.limit=0.7", "split.per_seed=true")
    first, second = (prepared(tmp_path, *options, f"seed={seed}") for seed in (0, 1))
    assert first.dataset_sha == second.dataset_sha
    assert first.split != second.split


def test_slices_without_groups_are_reported_before_training(words: list[str], tmp_path: Path, capsys: Captured) -> None:
    root = tmp_path / "data"
    drawn = np.random.default_rng(0)
    mask = np.pad(np.full((9, 9), 255, np.uint8), 12)
    write_pairs(root, [(f"case{n // 4}_{n % 4}.png", drawn.normal(90, 20, mask.shape), mask) for n in range(20)])
    (root / "groups.csv").write_text("stem,patient\n" + "".join(f"case{n // 4}_{n % 4},{n // 4}\n" for n in range(20)))
    own = [word for word in words if not word.startswith("dataset.root")] + [f"dataset.root={root}"]

    def warned(*more: str) -> bool:
        return any("dataset.group_file" in warning for warning in prepared(tmp_path, *own, *more).warnings)

    assert warned()
    assert not warned(*GROUPED)
    assert cli.main(["train", "--dry-run", *own, f"outputs={tmp_path}"]) == 0
    assert "dataset.group_file" in "".join(capsys.readouterr())
    write_pairs(
        root, [(f"case{n // 4}_{n % 4}.png", np.full((33, 40 + n), 90), np.ones((33, 40 + n))) for n in range(20)]
    )
    assert not warned("dataset.mask_values=[0,1]", "dataset.mask_coding=values")


def test_leaving_out_each_group_is_a_sweep_over_folds(words: list[str], tmp_path: Path) -> None:
    options = (*words, *GROUPED, "split.leave_one_group_out=true")
    with hydra_session() as extra:
        plan = make_plan([*options, f"outputs='{tmp_path}'", "split.fold=range(8)", "activation=sigmoid,arctan"], extra)
    jobs = [job.spec for job in plan.jobs if job.spec.config.activation.name == "arctan"]
    assert [{GROUP_OF[i] for i in spec.split["test"]} for spec in jobs] == [{f"P{n}"} for n in range(8)]
    assert len({spec.config_id for spec in jobs}) == 1, "one arm"
    assert len({spec.identity for spec in jobs}) == 8
    for more, cure in (
        ((), "split.fold=range"),
        (("split.fold=8",), r"split.fold=range\(8\)"),
        (("split.fold=0", "split.folds=4"), "leave one of them out"),
        (("split.fold=0", "split.source=files"), "split.source=fractions"),
    ):
        with pytest.raises(UsageError, match=cure):
            prepared(tmp_path, *options, *more)


@pytest.mark.slow
def test_a_stratified_run_holds_the_rare_class_in_every_part(words: list[str], tmp_path: Path) -> None:
    """A class in 8 of 40 images; and it is another run on another split, also with a limit or a split for each seed."""
    root = tmp_path / "data"
    drawn = np.random.default_rng(0)
    masks = [np.pad(np.full((9, 9), 1 + (n % 5 == 0), np.uint8), ((3, 20), (n % 20, 23 - n % 20))) for n in range(40)]
    write_pairs(root, [(f"{n:02}.png", 60.0 * m + drawn.normal(90, 20, m.shape), m) for n, m in enumerate(masks)])
    own = [word for word in words if not word.startswith("dataset.root")] + [f"dataset.root={root}"]
    own += ["dataset.mask_coding=index", "dataset.num_classes=3"]
    for more in ((), ("split.per_seed=true",), ("split.folds=4", "split.fold=1")):
        for seed in range(6):
            spec = prepared(tmp_path, *own, *more, f"split.seed={seed}", "split.stratify=true")
            rare = {part: sum(i % 5 == 0 for i in indices) for part, indices in spec.split.items()}
            assert min(rare.values()) >= 1, (more, rare)
    assert spec.identity != prepared(tmp_path, *own, "split.seed=5").identity
    with_class_0 = ("split.stratify=true", "dataset.background=none", "loss=ce")
    for n in range(40):
        if n % 5 != 1:  # class 0 is left in 8 images
            Image.fromarray(np.full((32, 32), 1 + (n % 5 == 0), np.uint8)).save(root / "masks" / f"{n:02}.png")
    for seed in range(12):
        spec = prepared(tmp_path, *own, *with_class_0, f"split.seed={seed}")
        assert all(any(i % 5 == 1 for i in indices) for indices in spec.split.values()), seed
    limited = prepared(tmp_path, *own, "dataset.limit=0.9", "split.stratify=true")
    assert sum(map(len, limited.split.values())) == 36
    with pytest.raises(UsageError, match=r"split.method=random"):
        prepared(tmp_path, *own, "split.stratify=true", LARGEST_FIRST)


@pytest.mark.parametrize("ending", [".nii", pytest.param(".dcm", marks=pytest.mark.slow)])
def test_files_of_one_slice_are_images_whose_patients_must_be_named(ending: str, tmp_path: Path) -> None:
    """They are no volumes: slices of a patient are not kept together, and cannot be scored as a whole."""
    root = tmp_path / "data"
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for n in range(20):
        image, labels = scene(n, side=36)
        name = f"P{n // 4}_{n % 4}{ending}"
        for folder, pixels in (("images", image[:, :, :1, 0]), ("masks", labels[:, :, :1])):
            if ending == ".dcm":
                save_dicom(root / folder / name, pixels[..., 0].T, **placed(n % 4, SeriesInstanceUID=f"1.2.{n // 4}"))
            else:
                save_nifti(root / folder / name, pixels)
    words = ["dataset=folder", f"dataset.root='{root}'", *(word for word in TINY if "number" not in word)]
    spec = prepared(tmp_path, *words)
    assert spec.image_set.image_ids[:2] == ("P0_0", "P0_1")
    assert (spec.image_set.case_ids, {*spec.image_set.group_ids}) == ((), {""})
    assert {*spec.image_set.spacings} == {(5.0, 0.75, 0.5)}
    (warning,) = [warning for warning in spec.warnings if "slices of 5" in warning]
    assert "dataset.group_file" in warning
    assert ("dataset=pattern" in warning) == (ending == ".dcm")
    with pytest.raises(UsageError, match="set metrics"):
        prepared(tmp_path, *words, "metrics.unit=case")
    if ending == ".dcm":  # whatever their names are
        for folder in ("images", "masks"):
            for n, path in enumerate(sorted((root / folder).iterdir())):
                path.rename(path.with_name(f"{'abcdefghijklmnopqrstuvwxyz'[n]}.dcm"))
        assert any("slices of 5 DICOM series," in warning for warning in prepared(tmp_path, *words).warnings)


def test_a_refused_fold_is_named_once(words: list[str], tmp_path: Path, capsys: Captured) -> None:
    options = [*words, *GROUPED, "split.leave_one_group_out=true", f"outputs={tmp_path}"]
    cli.main(["train", "--dry-run", "-m", *options, "split.fold=7,8"])
    assert "".join(capsys.readouterr()).count("split.fold=8:") == 1
