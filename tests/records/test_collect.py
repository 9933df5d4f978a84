"""`segexp collect`: every run is accounted for, numbers come back as they were, the same runs give the same bytes."""

import csv
import hashlib
import io
import json
import re
import shutil
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
from fabricated import SECONDS, images_of, make_plan, make_run, sealed
from timing import bare_reading

from segexp import cli
from segexp.errors import UsageError
from segexp.records import COLUMNS, collected
from segexp.records.collected import FIRST, IMAGES, RECORD, TIMINGS, collect, read_collected
from segexp.records.runs import Run, Study, runs_in
from segexp.records.tables import load

Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written") / "study"
    for n in range(26):
        make_run(folder, f"000000{n:02}", seed=n, config={"loss.smooth": 0.5} if n == 3 else {})
    make_run(folder, "00000026", "diverged", epochs=1)
    make_run(folder, "00000027", "failed", epochs=1)
    make_run(folder, "00000028", "running", epochs=1)
    make_plan(folder, "00000029")
    return folder


@pytest.fixture
def study(written: Path, tmp_path: Path) -> Path:
    """30 runs: 26 done, and one each diverged, failed, stale and not begun."""
    return Path(shutil.copytree(written, tmp_path / "study"))


def test_every_run_has_a_row(study: Path) -> None:
    collected = collect(study)
    assert collected.counts == {"done": 26, "diverged": 1, "failed": 1, "stale": 1, "not begun": 1}
    assert (collected.n_images, collected.duplicates, collected.problems) == (26 * 3, (), ())
    runs = read_collected(study / "runs.csv")
    assert runs["run_id"].is_unique
    assert len(runs) == 30
    done = runs[runs["status"] == "done"]
    assert done["dice"].tolist() == [images_of(run_id)[0]["dice"] for run_id in done["run_id"]]
    others = runs[runs["status"] != "done"]
    assert others["dice"].isna().all()
    assert set(others["activation"]) == {"arctan"}
    images = read_collected(study / "images.csv")
    assert list(images.columns) == list(IMAGES)
    for run_id, rows in images.groupby("run_id"):
        assert rows["dice"].tolist() == [row["dice"] for row in images_of(str(run_id))]
    assert others.set_index("run_id")["error"].to_dict() == {
        "00000026": "loss is nan in epoch 2", "00000027": "loss is nan in epoch 2", "00000028": "", "00000029": "",
    }  # fmt: skip


def test_columns(study: Path) -> None:
    collect(study)
    with (study / "runs.csv").open(encoding="utf-8", newline="") as file:
        header = next(csv.reader(file))
    configured = [name for name in header if name.startswith("config_") and name != "config_id"]
    assert header[: len(FIRST)] == list(FIRST)
    assert len(FIRST) == 25
    others = [*COLUMNS["summary"], *RECORD, *sorted(configured), *TIMINGS]
    assert header[25:] == [name for name in others if name not in FIRST]
    assert len(set(header)) == len(header)
    assert all(re.fullmatch("[a-z][a-z0-9_]*", name) for name in [*header, *IMAGES])
    runs = read_collected(study / "runs.csv")
    first = runs.iloc[0]
    assert (first["config_optimizer_lr"], first["config_trainer_epochs"]) == (0.002, 4)
    assert not first["config_loss_squared"]
    assert first["config_model_decoder_channels"] == "[16, 8, 8]"
    assert (first["n_warnings"], first["git_dirty"], first["version_torch"]) == (2, False, "2.15.0")
    assert (first["seconds"], first["images_per_s"], first["peak_mem_mib"]) == (4 * SECONDS, 0.5, 400.0)
    assert runs["config_loss_smooth"].count() == 1
    assert (first["study"], first["host"]) == ("study", "machine")
    assert runs["seed"].tolist() == runs["config_seed"].tolist()


def test_images_name_the_arm_of_their_run_and_tables_without_it_stay_readable(study: Path) -> None:
    collect(study)
    images, before = read_collected(study / "images.csv"), load([study / "runs.csv"])
    assert list(images.columns)[:4] == ["run_id", "activation", "loss", "seed"]
    runs = read_collected(study / "runs.csv").set_index("run_id")
    for column in ("activation", "loss", "seed"):
        assert images[column].tolist() == runs.loc[images["run_id"], column].tolist()
    without(study / "images.csv", "activation", "loss", "seed")
    assert read_collected(study / "images.csv").equals(images.drop(columns=["activation", "loss", "seed"]))
    again = load([study / "runs.csv"])
    assert [run.row for run in again.runs] == [run.row for run in before.runs]
    assert all(a.images is None or (a.images.counts_NF3 == b.images.counts_NF3).all()
               for a, b in zip(again.runs, before.runs, strict=True) if b.images is not None)  # fmt: skip


def test_names_stay_as_they_are(study: Path, tmp_path: Path) -> None:
    for number, name in enumerate(("001", "None", "1e5", "true")):
        make_run(study, f"1000000{number}", config={"dataset.name": name, "activation.name": name, "study.name": name})
    collect(study)
    images = read_collected(study / "images.csv")
    assert images["image_id"].tolist()[:3] == ["001", "None", "a,b"]
    assert set(images["group_id"]) == {"007"}
    runs = read_collected(study / "runs.csv")
    for column in ("config_dataset_name", "config_study_name", "dataset", "activation"):
        assert {"001", "None", "1e5", "true"} <= set(runs[column])
    assert "00000000" in set(runs["run_id"])
    # Also where all look like numbers.
    make_run(
        tmp_path / "x", "00000001", config={"dataset.name": "001", "study.name": "2024", "dataset.mask_suffix": "1"}
    )
    collect(tmp_path / "x")
    (run,) = read_collected(tmp_path / "x" / "runs.csv").to_dict("records")
    assert (run["config_dataset_name"], run["dataset"], run["run_id"]) == ("001", "001", "00000001")
    assert (run["config_study_name"], run["config_dataset_mask_suffix"]) == ("2024", "1")


def test_the_records_of_runs_are_not_kept_in_memory(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, counts = weakref.WeakSet[Run](), list[int]()

    def counted(one: Study) -> Iterator[Run]:
        for run in runs_in(one):
            kept.add(run)
            counts.append(len(kept))
            yield run

    monkeypatch.setattr(collected, "runs_in", counted)
    collect(study)
    assert len(counts) >= 30
    assert max(counts) <= 3


def test_the_same_runs_give_the_same_bytes(study: Path, tmp_path: Path) -> None:
    collect(study)
    first = {name: (study / name).read_bytes() for name in ("runs.csv", "images.csv")}
    collect(study)
    assert {name: (study / name).read_bytes() for name in first} == first
    # Another order on the disk, other times of files.
    copy = tmp_path / "copy" / "study"
    for path in sorted(study.iterdir(), reverse=True):
        if path.is_dir():
            shutil.copytree(path, copy / path.name)
    collect(copy)
    assert {name: (copy / name).read_bytes() for name in first} == first
    assert not list(study.glob(".*.partial"))


def without(path: Path, *columns: str) -> None:
    """Cut columns off a table, as if an earlier version had written it."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    kept = [name for name in rows[0] if name not in columns]
    text = io.StringIO()
    writer = csv.DictWriter(text, kept, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    (sealed if (path.parent / "run.json").exists() else Path.write_text)(path, text.getvalue())


def test_tables_that_an_earlier_version_wrote_without_later_scores_are_read(study: Path) -> None:
    whole = {name: read_collected(study / name) for name in ("runs.csv", "images.csv") if collect(study)}
    (run_dir,) = study.glob("*-00000005")
    without(run_dir / "images.csv", "sq", "pq")
    assert collect(study).problems == ()
    images = read_collected(study / "images.csv").set_index("run_id")
    assert images.loc["00000005", ["sq", "pq"]].isna().to_numpy().all()
    assert images.drop(columns=["sq", "pq"]).equals(whole["images.csv"].set_index("run_id")[[*images][:-2]])
    without(study / "images.csv", "sq", "pq")
    without(study / "runs.csv", "ap", "val_dice")
    assert read_collected(study / "images.csv").equals(whole["images.csv"].drop(columns=["sq", "pq"]))
    assert read_collected(study / "runs.csv").equals(whole["runs.csv"].drop(columns=["ap", "val_dice"]))
    # Other columns are as old as the tables.
    without(run_dir / "images.csv", "n_pred")
    assert "n_pred" in collect(study).problems[0]
    for path, column in ((study / "images.csv", "dice"), (study / "runs.csv", "dice")):
        without(path, column)
        with pytest.raises(UsageError, match=f"lacks the column {column}"):
            read_collected(path)


def cut(run_dir: Path, table: str = "images") -> None:
    lines = (run_dir / f"{table}.csv").read_text().splitlines(keepends=True)
    (run_dir / f"{table}.csv").write_text("".join(lines[:-1]))


@pytest.mark.parametrize("damage", [
    cut,
    lambda run_dir: cut(run_dir, "epochs"),
    lambda run_dir: (run_dir / "images.csv").unlink(),
    lambda run_dir: (run_dir / "timings.csv").unlink(),
    lambda run_dir: (run_dir / "timings.csv").write_text((run_dir / "timings.csv").read_text().replace("2.0", "long")),
    lambda run_dir: (run_dir / "images.csv").write_bytes(b"\xff\n\xff\n\xff\n\xff\n"),
    lambda run_dir: (run_dir / "images.csv").write_bytes(b'"\xff\n\xff\n\xff\n\xff\n'),
    lambda run_dir: (run_dir / "images.csv").write_text("a\n1\n2\n3\n"),
    lambda run_dir: (run_dir / "images.csv").write_bytes((run_dir / "images.csv").read_bytes()[:-3]),
])  # fmt: skip
def test_a_run_that_has_lost_rows_is_named_and_left_out(damage, study: Path, capsys: Captured) -> None:
    (run_dir,) = study.glob("*-00000005")
    damage(run_dir)
    assert cli.main(["collect", str(study)]) == 1
    told = capsys.readouterr()
    assert str(run_dir) in told.err
    assert len(told.err.splitlines()) == 1
    assert all(count in told.out for count in ("25 done", "1 incomplete", f"{25 * 3} rows"))
    runs = read_collected(study / "runs.csv").set_index("run_id")
    lost = runs.loc["00000005"]
    assert (lost["status"], lost["config_seed"]) == ("incomplete", 5)
    assert str(run_dir) in lost["error"]
    assert lost[["dice", "seconds"]].isna().all()
    assert "00000005" not in set(read_collected(study / "images.csv")["run_id"])


def test_a_damaged_record_is_named_and_has_a_row(study: Path, capsys: Captured) -> None:
    (run_dir,) = study.glob("*-00000005")
    (run_dir / "run.json").write_text("{")
    assert cli.main(["collect", str(study)]) == 1
    assert str(run_dir) in capsys.readouterr().err
    runs = read_collected(study / "runs.csv").set_index("run_id")
    assert runs.loc["00000005", "status"] == "unreadable"
    assert len(runs) == 30


def test_a_duplicate_is_counted_once(study: Path, capsys: Captured) -> None:
    collect(study)
    before = [(study / name).read_bytes() for name in ("runs.csv", "images.csv")]
    (run_dir,) = study.glob("*-00000005")
    shutil.copytree(run_dir, study / f"{run_dir.name} (copy)")
    assert cli.main(["collect", str(study)]) == 0
    assert f"{run_dir} (copy) is a duplicate" in capsys.readouterr().out
    assert [(study / name).read_bytes() for name in ("runs.csv", "images.csv")] == before
    # Of two directories the whole one is taken, whichever comes first.
    cut(run_dir)
    assert cli.main(["collect", str(study)]) == 1
    told = capsys.readouterr()
    assert f"{run_dir} is a duplicate" in told.out
    assert "26 done" in told.out
    runs = read_collected(study / "runs.csv").set_index("run_id")
    assert runs.loc["00000005", "directory"] == f"{run_dir.name} (copy)"
    assert len(read_collected(study / "images.csv")) == 26 * 3
    # Rows stand in the order of the directories, whichever was read first.
    (study / f"{run_dir.name} (copy)").rename(study / "zzz")
    collect(study)
    directories = read_collected(study / "runs.csv")["directory"].tolist()
    assert directories == sorted(directories)
    assert directories[-1] == "zzz"


@pytest.mark.parametrize("table", ["run.json", "images.csv"])
def test_copies_with_different_scores_are_refused(study: Path, table: str) -> None:
    collect(study)
    before = [(study / name).read_bytes() for name in ("runs.csv", "images.csv")]
    (run_dir,) = study.glob("*-00000005")
    copy = Path(shutil.copytree(run_dir, study / f"{run_dir.name} (copy)"))
    dice = repr(images_of("00000005")[0]["dice"])
    changed = (copy / table).read_text().replace(dice, "0.123")
    (sealed if table == "images.csv" else Path.write_text)(copy / table, changed)
    with pytest.raises(UsageError, match=r"00000005 .* \(copy\) .*different scores"):
        collect(study)
    assert [(study / name).read_bytes() for name in ("runs.csv", "images.csv")] == before
    assert not list(study.glob(".*.partial"))


def test_another_run_of_the_same_id_is_named(study: Path) -> None:
    """Eight digits are not a whole hash."""
    make_run(study.parent / "other", "00000005", identity="another")
    make_run(study.parent / "other", "20000000")
    collected = collect(study.parent, study.parent / "tables")
    assert len(collected.problems) == 1
    assert "another run" in collected.problems[0]
    of_study = read_collected(study.parent / "tables" / "runs.csv")["study"].value_counts()
    assert of_study.to_dict() == {"study": 29, "other": 2}
    assert not (study.parent / "runs.csv").exists()


def test_what_is_refused(study: Path, tmp_path: Path) -> None:
    (run_dir,) = study.glob("*-00000005")
    before = (run_dir / "images.csv").read_bytes()
    for words in ((run_dir,), (study, run_dir)):
        with pytest.raises(UsageError, match=r"images\.csv of its own"):
            collect(*words)
    assert (run_dir / "images.csv").read_bytes() == before
    with pytest.raises(UsageError, match="does not exist"):
        collect(tmp_path / "nowhere")
    collect(run_dir, tmp_path / "one")
    assert len(read_collected(tmp_path / "one" / "runs.csv")) == 1
    with pytest.raises(UsageError, match="segexp collect"):
        read_collected(run_dir / "summary.csv")


def test_keys_that_would_be_one_column_are_refused(tmp_path: Path) -> None:
    make_run(tmp_path, "00000001", config={"loss.a_b": 1, "loss.a.b": 2})
    with pytest.raises(UsageError, match="config_loss_a_b"):
        collect(tmp_path)
    assert not (tmp_path / "images.csv").exists()


@pytest.mark.slow
@pytest.mark.alone
def test_five_thousand_runs_are_collected_and_listed_in_the_time_of_reading_them(
    tmp_path: Path, capsys: Captured
) -> None:
    """Records of 18 kB, 50 images each. Measured: 5 times the time of reading to collect, once to list."""
    first = make_run(tmp_path / "study", "00000000")
    record = json.loads((first / "run.json").read_text())
    record["swap_report"] = [{"site": f"encoder.layer{i}", "what": "x" * 180} for i in range(60)]
    record["n_rows_expected"]["images"] = 50
    lines = (first / "images.csv").read_text().splitlines(keepends=True)
    images = lines[0] + "".join(lines[1].replace("001", f"{i:03}") for i in range(50))
    record["sha256"]["images"] = hashlib.sha256(images.encode()).hexdigest()
    for number in range(5000):
        run_id = f"{number:08x}"
        run_dir = tmp_path / "study" / f"lesions-unet-arctan-s0-{run_id}"
        run_dir.mkdir(exist_ok=True)
        changed = record | {"run_id": run_id, "identity": run_id, "summary": record["summary"] | {"run_id": run_id}}
        (run_dir / "run.json").write_text(json.dumps(changed, indent=1))
        (run_dir / "images.csv").write_text(images)
        for table in ("split", "epochs", "timings", "summary"):
            if run_dir != first:
                shutil.copy(first / f"{table}.csv", run_dir)
    bare = bare_reading(tmp_path)
    started = time.monotonic()
    assert cli.main(["collect", str(tmp_path)]) == 0
    collected = time.monotonic()
    assert cli.main(["status", str(tmp_path)]) == 0
    listed = time.monotonic()
    with capsys.disabled():
        print(
            f"\n5,000 runs: read in {bare:.1f} s, collected in {collected - started:.1f} s, "
            f"listed in {listed - collected:.1f} s"
        )
    assert collected - started < 12 * bare
    assert listed - collected < 4 * bare
    with (tmp_path / "images.csv").open() as file:
        assert sum(1 for _ in file) == 250_001
