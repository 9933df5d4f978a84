"""Run directories of earlier versions, as these wrote them (without pictures and weights), stay readable.

tests/recorded: early (0.1.0, the first tables), objects (0.1.0, with objects.csv), numerics2 (0.2.0).
"""

import csv
import json
import shutil
from pathlib import Path

import pytest

from segexp import cli

RECORDED = Path(__file__).parents[1] / "recorded"


@pytest.mark.parametrize("name", ["early", "objects", "numerics2"])
def test_a_recorded_run_keeps_its_scores_and_its_identity(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(RECORDED / name, tmp_path / "study" / name)
    record = json.loads((run / "run.json").read_text())
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    assert cli.main(["status", str(tmp_path)]) == 0
    assert cli.main(["show", str(run)]) == 0
    assert record["run_id"] in capsys.readouterr().out
    assert cli.main(["collect", str(tmp_path / "study")]) == 0, capsys.readouterr().err
    with (tmp_path / "study" / "runs.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["run_id"], row["status"]) == (record["run_id"], "done")
    assert float(row["dice"]) == record["summary"]["dice"]
    with (tmp_path / "study" / "images.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 10  # 4 of val, 6 of test
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_runs_of_other_numerics_are_compared_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("early", "numerics2"):
        shutil.copytree(RECORDED / name, tmp_path / name)
    other = tmp_path / "numerics2"
    for path in (other / "run.json", other / "summary.csv"):  # another arm
        path.write_text(path.read_text().replace("arctan", "sigmoid"))
    assert cli.main(["compare", str(tmp_path), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["n_family"] == 0  # comparisons
    assert any("numerics" in warning for warning in answer["warnings"]), answer["warnings"]


@pytest.mark.parametrize("key", ["split_sha", "dataset_sha", "identity", "versions", "normalisation"])
def test_a_record_without_what_a_network_needs_is_refused_by_name(key: str, tmp_path: Path) -> None:
    from segexp.errors import UsageError
    from segexp.running.build import trained

    record = json.loads((RECORDED / "early" / "run.json").read_text())
    for value in ({}, {"mean": [0.1], "std": []}):
        wrong = {**record, key: value if key == "normalisation" else None}
        with pytest.raises(UsageError, match=f"run.json lacks .*{key}"):
            trained(tmp_path, None, wrong, "cpu")  # type: ignore[arg-type]
