"""Files of a run: exact, atomic and strict."""

import json
import math
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from segexp.errors import UsageError
from segexp.records import (
    COLUMNS,
    check_complete,
    check_network,
    exact_floats,
    open_atomic,
    read_run,
    read_table,
    run_name,
    write_atomic,
    write_json,
    write_run,
    write_table,
)

NAMES = ["None", "NA", "001", "1e5", "nan", "a,b", 'say "hi"', "line\nbreak", "å", "true", ""]


def image_row(name: str, **changes: object) -> dict[str, object]:
    row: dict[str, object] = {c: {str: "x", int: 1, float: 0.5}[kind] for c, kind in COLUMNS["images"].items()}
    return row | {"image_id": name} | changes


def test_names_come_back_as_they_were(tmp_path: Path) -> None:
    write_table(tmp_path / "images.csv", "images", [image_row(n, group_id=n) for n in NAMES])
    frame = read_table(tmp_path / "images.csv", "images")
    assert frame["image_id"].tolist() == NAMES
    assert frame["group_id"].tolist() == NAMES


def test_floats_keep_their_digits_and_nan_is_an_empty_cell(tmp_path: Path) -> None:
    values = [0.1 + 0.2, 1e-300, math.nan, 1 / 3, 0.0, -0.0]
    write_table(tmp_path / "images.csv", "images", [image_row("i", dice=v, n_gt=2**53 + 1) for v in values])
    frame = read_table(tmp_path / "images.csv", "images")
    for got, value in zip(frame["dice"], values, strict=True):
        assert (math.isnan(got) and math.isnan(value)) or got == value
    assert frame["n_gt"].tolist() == [2**53 + 1] * len(values)
    assert ",," in (tmp_path / "images.csv").read_text()
    row = dict.fromkeys(COLUMNS["summary"])
    write_table(tmp_path / "summary.csv", "summary", [row])
    frame = read_table(tmp_path / "summary.csv", "summary")
    assert frame["fold"].isna().all()
    assert str(frame["fold"].dtype) == "Int64"


@pytest.mark.parametrize(("true", "flipped"), [
    ('"dice": 0.5', '"dice": 0.4'), ('"seed": 1', '"seed": 3'), ('"identity": "ab"', '"identity": "aj"'),
    ("dice", "dise"),
])  # fmt: skip
def test_a_flipped_bit_of_a_record_is_noticed(true: str, flipped: str, tmp_path: Path) -> None:
    record = {"identity": "ab", "config": {"seed": 1}, "summary": {"dice": 0.5, "hd95": math.nan}, "warnings": ["å"]}
    write_run(tmp_path, record)
    assert read_run(tmp_path) == record | {"summary": {"dice": 0.5, "hd95": None}}
    text = (tmp_path / "run.json").read_text()
    (tmp_path / "run.json").write_text(text.replace(true, flipped))
    with pytest.raises(UsageError, match=r"run\.json was changed.*SHA-256"):
        read_run(tmp_path)
    write_json(tmp_path / "run.json", record)  # as earlier versions wrote it
    assert read_run(tmp_path)["summary"]["dice"] == 0.5


USABLE = {
    **dict.fromkeys(("run_id", "config_id", "identity", "dataset_sha", "split_sha"), "x"),
    **{"versions": {"segexp": "1"}, "summary": {"dice": 0.5}, "normalisation": {"mean": [0, 0.5], "std": [1, 0.25]}},
}


NO_NORMALISATION: list[Any] = [
    *(None, [0.5], {}, {"mean": [0.5]}, {"mean": [0.5], "std": []}, {"mean": [], "std": []}, {"mean": 0, "std": 1}),
    *({"mean": [0.5], "std": [True]}, {"mean": ["x"], "std": [1]}, {"mean": [0.5], "std": [1, 1]}),
]


@pytest.mark.parametrize(("changes", "lacks"), [
    *(({key: ""}, key) for key in ("run_id", "config_id", "identity", "dataset_sha", "split_sha")),
    ({"versions": None}, "versions"), ({"summary": {}}, "summary"), ({"summary": {}, "run_id": ""}, "run_id, summary"),
    *(({"normalisation": of}, "normalisation") for of in NO_NORMALISATION),
])  # fmt: skip
def test_a_record_without_what_its_network_needs_is_refused(
    changes: dict[str, Any], lacks: str, tmp_path: Path
) -> None:
    check_network(tmp_path, USABLE)
    with pytest.raises(UsageError, match=rf"run\.json lacks {lacks}"):
        check_network(tmp_path, USABLE | changes)


def test_unknown_or_missing_columns_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="dice"):
        write_table(tmp_path / "images.csv", "images", [{k: v for k, v in image_row("i").items() if k != "dice"}])
    assert not (tmp_path / "images.csv").exists()


def test_column_names_are_plain_and_only_timings_are_volatile() -> None:
    assert all(name.isidentifier() and name == name.lower() for columns in COLUMNS.values() for name in columns)
    volatile = {"seconds", "images_per_s", "peak_mem_mib", "host", "date"}
    assert [t for t, columns in COLUMNS.items() if volatile & columns.keys()] == ["timings"]


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    write_atomic(tmp_path / "file", "old")
    with mock.patch("os.fsync", side_effect=OSError("disk full")), pytest.raises(OSError, match="disk full"):
        write_atomic(tmp_path / "file", "new")
    with pytest.raises(ValueError, match="negative"), open_atomic(tmp_path / "file") as file:
        file.write(bytes(-1))
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("file", "old")]


def test_json_is_strict(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"x": math.nan, "y": [math.inf, 1], "z": {"w": (1, 2)}})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": None, "y": [None, 1], "z": {"w": [1, 2]}}


def test_read_run_says_what_is_wrong(tmp_path: Path) -> None:
    for content, wrong in ((None, "not a run directory"), ("{broken", "cannot be read"), ("[]", "does not hold")):
        if content is not None:
            (tmp_path / "run.json").write_text(content)
        with pytest.raises(UsageError, match=wrong):
            read_run(tmp_path)


def test_run_names_are_safe_for_any_file_system() -> None:
    name = run_name(["my data/set", "tu-x", "a:b*"], "0123abcd")
    assert name == "my_data_set-tu_x-a_b_-0123abcd"
    assert len(run_name(["x" * 500], "0123abcd")) <= 180
    assert run_name(["x" * 500], "0123abcd").endswith("0123abcd")


def test_a_cut_table_is_noticed(tmp_path: Path) -> None:
    write_table(tmp_path / "images.csv", "images", [image_row("a"), image_row("two\nlines")])
    record = {"n_rows_expected": {"images": 2}}
    check_complete(tmp_path, record)
    with pytest.raises(UsageError, match=r"images\.csv .*2.*3"):
        check_complete(tmp_path, {"n_rows_expected": {"images": 3}})
    for damage, found in ((lambda path: path.write_bytes(b""), "0 rows"), (Path.unlink, "missing")):
        damage(tmp_path / "images.csv")
        with pytest.raises(UsageError, match=rf"images\.csv .*{found}.*2"):
            check_complete(tmp_path, record)


def test_a_name_as_long_as_the_file_system_allows(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 251 + ".png")
    write_atomic(path, b"1")
    assert path.read_bytes() == b"1"


@pytest.mark.parametrize(("version", "asks"), [
    ("2.2.3", True), ("3.0.6", True), ("3.1.0", False), ("3.10.0", False), ("4.0.0.dev0+1", False),
])  # fmt: skip
def test_floats_are_read_exactly_by_every_pandas(monkeypatch: pytest.MonkeyPatch, version: str, asks: bool) -> None:
    """Read otherwise by pandas 3.0, a third of all Dice would not be those of their counts, and their runs damaged."""
    monkeypatch.setattr("pandas.__version__", version)
    assert ("float_precision" in exact_floats()) == asks
