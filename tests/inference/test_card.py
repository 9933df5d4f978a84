"""`segexp card`: a folder that the Hugging Face client reads, without what must not be published."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import EvalResult, ModelCard, metadata_load
from made_scores import make_pair
from tiny import TINY, tiny_run

import segexp
from segexp import cli
from segexp.inference.card import _front, escaped, usage

Captured = pytest.CaptureFixture[str]

NAMED = ["dataset.name='disks [1](http://x)'", "dataset.licence='CC BY-SA 4.0'", "dataset.citation='A *b*, 2020'"]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = [*NAMED, "trainer.epochs=1", "activation=learned_tail", "hidden_activation=prelu"]
    return Path(tiny_run(tmp_path_factory.mktemp("outputs"), *words).run_dir)


def front_of(folder: Path) -> dict[str, Any]:
    data = dict(metadata_load(folder / "README.md") or {})
    card = ModelCard.load(folder / "README.md")
    assert card.data.eval_results
    assert {key: data[key] for key in ("library_name", "pipeline_tag")} == {
        "library_name": "segexp",
        "pipeline_tag": "image-segmentation",
    }
    return data


def test_the_card_of_a_run_holds_its_weights_scores_and_terms(run_dir: Path, tmp_path: Path, capsys: Captured):
    folder = tmp_path / "card"
    assert cli.main(["card", str(run_dir), "-o", str(folder)]) == 0
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    data, text = front_of(folder), (folder / "README.md").read_text()
    record = json.loads((run_dir / "run.json").read_text())
    assert data["license"] == "cc-by-sa-4.0"
    assert data["datasets"] == ["disks-1-http-x"]
    (result,) = data["model-index"][0]["results"]
    assert result["metrics"][0]["value"] == record["summary"]["dice"]
    assert r"disks \[1\](http://x)" in text
    assert r"A \*b\*, 2020" in text
    assert "- runs: 1 done\n" in text
    for published in (text, (folder / "config.json").read_text()):
        assert str(run_dir.parent) not in published
        assert not re.search(rf"\b{re.escape(record['host'])}\b", published)
    # The same card again is no change; an edited one stays.
    assert cli.main(["card", str(run_dir), "-o", str(folder)]) == 0
    (folder / "README.md").write_text(text + "mine")
    assert cli.main(["card", str(run_dir), "-o", str(folder)]) == 2
    assert "-o" in capsys.readouterr().err
    assert (folder / "README.md").read_text() == text + "mine"


NETWORK = """
import torch
from segexp.plugin import architecture

@architecture
class TinyNet(torch.nn.Sequential):
    def __init__(self, in_channels, classes):
        super().__init__(torch.nn.Conv2d(in_channels, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(4, classes, 1))
"""
WORDS = [word for word in TINY if not word.startswith(("model.", "backbone."))]
TWICE = "from segexp.plugin import hidden_activation\n@hidden_activation\ndef twice(x): return 2 * x.relu()\n"


@pytest.fixture
def run_of_two_plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "net.py").write_text(NETWORK)
    (tmp_path / "hid.py").write_text(TWICE)
    files = [tmp_path / "net.py", tmp_path / "hid.py"]
    monkeypatch.setenv("SEGEXP_PLUGINS", os.pathsep.join(map(str, files)))  # for the command
    segexp.use_plugins(*files)
    yield Path(segexp.run([*WORDS, "model=tiny_net", "hidden_activation=twice", f"outputs={tmp_path}"])["run_dir"])
    segexp.use_plugins()


@pytest.mark.parametrize("run", [pytest.param("run_dir", marks=pytest.mark.slow), "run_of_two_plugins"])
def test_its_lines_of_python_give_the_probabilities_of_the_run(
    run: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run_dir = request.getfixturevalue(run)
    assert cli.main(["card", str(run_dir), "-o", str(tmp_path / "card")]) == 0
    for plugin in tmp_path.glob("*.py"):
        shutil.copy(plugin, tmp_path / "card")
    monkeypatch.chdir(tmp_path / "card")
    images = torch.rand(2, 1, 32, 40)
    names: dict[str, Any] = {"images": images}
    code = Path("README.md").read_text().partition("```python\n")[2].partition("```")[0]
    exec(compile(code, "README.md", "exec"), names)
    torch.testing.assert_close(names["probabilities"], segexp.load(run_dir)(images))


def test_the_card_of_a_study_has_its_verdicts_and_no_path(tmp_path: Path):
    make_pair(tmp_path / "study", effect=0.05)
    assert cli.main(["card", str(tmp_path / "study"), "-o", str(tmp_path / "card")]) == 0
    names = sorted(p.name for p in (tmp_path / "card").iterdir())
    assert names == ["README.md", "comparisons.csv", "forest.png", "forest.svg", "runs.csv"]
    data, text = front_of(tmp_path / "card"), (tmp_path / "card" / "README.md").read_text()
    assert "license" not in data
    assert "unknown: ask the owner" in text
    assert "| better |" in text
    assert len(data["model-index"][0]["results"][0]["metrics"]) == 2
    assert not any(str(tmp_path) in p.read_bytes().decode("utf-8", "replace") for p in (tmp_path / "card").iterdir())
    assert "host" not in (tmp_path / "card" / "runs.csv").read_text().splitlines()[0].split(",")


def test_no_card_names_an_image_or_a_patient(tmp_path: Path):
    study, ids = tmp_path / "study", [f"patient_{n:03}" for n in range(60)]
    make_pair(study, effect=0.05, names=ids)
    for run in study.iterdir():
        rows = "".join(f"{name},,test,{'0' * 64},\n" for name in ids)
        (run / "split.csv").write_text(f"image_id,group_id,split,image_sha,image_hash\n{rows}")
        record = json.loads((run / "run.json").read_text())
        record["warnings"] = ["2 images are equal: patient_001, patient_002", "class 2 is rare"]
        (run / "run.json").write_text(json.dumps(record))
    assert cli.main(["card", str(study), "-o", str(tmp_path / "card")]) == 0
    published = "".join(p.read_text("utf-8", "replace") for p in (tmp_path / "card").iterdir())
    assert not re.findall("patient_...", published)
    assert "(not named)" in published


@pytest.mark.slow
def test_the_card_of_a_study_loads_no_torch(tmp_path: Path):
    make_pair(tmp_path / "study", effect=0.05)
    line = (
        f"import sys; from segexp.cli import main; main({['card', str(tmp_path / 'study'), '-o', str(tmp_path / 'c')]})"
    )
    seen = subprocess.run(
        [sys.executable, "-c", f"{line}; print('torch' in sys.modules)"], capture_output=True, text=True, check=True
    )
    assert seen.stdout.split()[-1] == "False"


def test_collected_tables_alone_are_refused(tmp_path: Path, capsys: Captured):
    make_pair(tmp_path / "study", effect=0.05)
    assert cli.main(["collect", str(tmp_path / "study")]) == 0
    (tmp_path / "tables").mkdir()
    for name in ("runs.csv", "images.csv"):
        (tmp_path / "study" / name).rename(tmp_path / "tables" / name)
    assert cli.main(["card", str(tmp_path / "tables"), "-o", str(tmp_path / "card")]) == 2
    assert "behind its tables" in capsys.readouterr().err


@pytest.mark.parametrize(("given", "front"), [
    ("CC0", {"license": "cc0-1.0"}), ("CC0 1.0", {"license": "cc0-1.0"}), ("CC-BY-NC 4.0", {"license": "cc-by-nc-4.0"}),
    ("ask me", {"license": "other", "license_name": "ask-me"}),
])  # fmt: skip
def test_licences_of_the_front_matter(given: str, front: dict[str, str]):
    run: Any = SimpleNamespace(config={"dataset.name": "a", "activation.name": "sigmoid", "dataset.licence": given})
    data = _front("title", [EvalResult("t", "a", "a", "dice", 0.5)], [run]).to_dict()
    assert {key: value for key, value in data.items() if key.startswith("license")} == front


def test_the_lines_of_python_name_the_rule_of_normalisation(run_dir: Path):
    facts = {**json.loads((run_dir / "run.json").read_text())["config"], "dataset.normalise": "image"}
    facts |= {
        "plugins": [],
        "learned": {},
        "classes": ["a", "b"],
        "normalisation": {"mean": [0.0], "std": [1.0]},
    }
    assert usage(facts).endswith("after dataset.normalise=image")


def test_a_study_without_a_finished_run_is_refused(tmp_path: Path, capsys: Captured):
    tmp_path.joinpath("study").mkdir()
    assert cli.main(["card", str(tmp_path / "study"), "-o", str(tmp_path / "card")]) == 2
    assert not (tmp_path / "card").exists()


def test_names_are_escaped():
    assert escaped("a_b|<i>[x](y)`\n# c") == r"a\_b|\<i\>\[x\](y)\` \# c"
    assert escaped("/home/me/data/x.png is odd") == "x.png is odd"
