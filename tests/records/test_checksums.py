"""Tables whose bytes are not those that the run wrote: left out and named; tables without checksums are reported."""

import json
import re
from pathlib import Path

import pytest
from fabricated import make_run
from made_scores import edit_record, make_pair, only
from messages import mentions

from segexp import cli
from segexp.compare.verdict import compare
from segexp.errors import UsageError
from segexp.records import check_complete, read_run, tables
from segexp.records.collected import collect


def edit_nll(run_dir: Path) -> None:
    """Numbers that any run could have written."""
    path = run_dir / "images.csv"
    path.write_text(re.sub(r",0\.1,0\.05,", ",0.001,0.05,", path.read_text()))


@pytest.fixture
def study(tmp_path: Path) -> Path:
    make_pair(tmp_path / "study", n_seeds=6, n_images=10)
    return tmp_path / "study"


def test_edited_scores_leave_their_run_out_of_every_answer(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = study / "run-arctan2"
    edit_nll(run)
    result = compare([study], metric="nll")
    (line,) = [w for w in result.warnings if "images.csv" in w]
    assert mentions(line, run / "images.csv", "resume=restart")
    assert only(result).n_seeds == 5
    assert [(u.run_id, u.state) for u in result.unscored] == [("arctan2", "incomplete")]
    collected = collect(study)
    assert mentions(*collected.problems, run / "images.csv", "resume=restart")
    assert collected.counts == {"done": 11, "incomplete": 1}
    assert cli.main(["collect", str(study)]) == 1
    assert cli.main(["show", str(run)]) == 0
    assert cli.main(["status", str(study)]) == 0
    assert mentions(capsys.readouterr().out, "images.csv", "resume=restart")


def test_runs_without_checksums_are_accepted_and_reported_once(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in study.glob("*/run.json"):
        record = json.loads(path.read_text())
        del record["sha256"]
        path.write_text(json.dumps(record))
    result = compare([study], metric="nll")
    assert only(result).n_seeds == 6
    (line,) = [w for w in result.warnings if "checksum" in w]
    assert "12 runs" in line
    assert collect(study).problems == ()
    assert cli.main(["collect", str(study)]) == 0
    assert capsys.readouterr().out.count("without checksums") == 1


def test_every_table_of_a_run_is_verified(tmp_path: Path) -> None:
    run = make_run(tmp_path, "00000001")
    record = read_run(run)
    check_complete(run, record)
    assert record["sha256"].keys() == record["n_rows_expected"].keys() > {"split", "epochs", "timings", "images"}
    for table in record["sha256"]:
        path = run / f"{table}.csv"
        whole = path.read_bytes()
        path.write_bytes(whole[:-2] + bytes([whole[-2] ^ 1]) + b"\n")
        with pytest.raises(UsageError, match=rf"{table}\.csv.*resume=restart"):
            check_complete(run, record)
        path.write_bytes(whole)


def test_a_damaged_list_of_checksums_breaks_no_study(study: Path) -> None:
    for run, value in (("arctan0", [1]), ("arctan1", {"images": 7}), ("sigmoid0", None)):
        path = study / f"run-{run}" / "run.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"sha256": value}))
    result = compare([study])
    assert {u.run_id: u.state for u in result.unscored} == {
        "arctan0": "unreadable",
        "arctan1": "incomplete",
        "sigmoid0": "unreadable",
    }
    assert only(result).n_seeds == 4


def test_a_changed_checksum_of_one_table_names_that_table(study: Path) -> None:
    edit_record(study / "run-arctan0", sha256={"images": "0" * 64})
    with pytest.raises(UsageError, match=r"images\.csv"):
        check_complete(study / "run-arctan0", read_run(study / "run-arctan0"))


@pytest.mark.parametrize("cell", ["2", '"2"'])
def test_rows_whose_widths_cancel_are_no_table(cell: str) -> None:
    whole = f"1,{cell},3\n4,5,6\n".encode()
    assert tables._count_rows(whole, 3) == 2
    with pytest.raises(ValueError, match="3 cells"):
        tables._count_rows(f"1,{cell}\n3,4,5,6\n".encode(), 3)
