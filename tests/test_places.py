"""The table "Places to touch" of CONTRIBUTING: in a copy of the package, parts are added in that many places."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent

OUTPUT_ACTIVATION = '''

@output_activation(
    formula="sigmoid(2 x)", range="(0, 1)", tail="exponential, e^-2a", wrong_pixel="-> 2", slope_at_zero=0.5, source="-"
)
def twice(x: "torch.Tensor") -> "torch.Tensor":
    """phi(x) = 2 x."""
    return 2 * x
'''

HIDDEN_ACTIVATION = '''

@smooth(formula="max(2 x, 0)", derivative="2 if x > 0 else 0", range="[0, inf)", gain=0.7071, source="-")
def twice_relu() -> "torch.nn.Module":
    """Twice the rectifier."""
    import torch

    return pointwise(lambda x: 2 * torch.relu(x))
'''

LOSS = '''

@loss(needs="values", formula="mean (p - y)^4", proper=False, side_effects="-", source="-")
def quartic(prediction: "Prediction", target: "torch.Tensor") -> "torch.Tensor":
    """The fourth power of the error of the values, averaged over pixels and channels."""
    y, valid = reference_planes(prediction, target)
    return mean_over((prediction.values_NKHW - y).pow(4), valid)
'''

QUESTION = '''"""How many runs has each arm?"""

from segexp.compare.questions import question


@question("Size", {"n_runs": "number of runs"})
def size(reading):
    return [{"arm": arm, "n_runs": len(runs)} for arm, runs in reading.runs.items()], [], []
'''

USE = f"""
import contextlib, io, json, sys
from pathlib import Path
sys.path.insert(0, {str(REPOSITORY / "tests")!r})
import segexp
from segexp.cli import main
from tiny import tiny_run

assert Path(segexp.__file__).is_relative_to(Path.cwd()), segexp.__file__
seen = {{}}
def printed(*words):
    with contextlib.redirect_stdout(io.StringIO()) as text:
        assert main(words) == 0, words
    return text.getvalue()
for kind in ("activations", "hidden_activations", "losses"):
    seen[kind] = [row["name"] for row in json.loads(printed("list", kind, "--json"))]
for activation in ("sigmoid", "twice"):
    for seed in range(2):
        own = ("hidden_activation=twice_relu", "loss=quartic", f"activation={{activation}}", f"seed={{seed}}")
        done = tiny_run(Path("outputs"), *own, "trainer.epochs=1")
seen["summary"] = done.summary
seen["shown"] = printed("show", str(done.run_dir))
seen["compared"] = json.loads(printed("compare", "outputs", "--metric", "precision", "--questions", "size", "--json"))
seen["completed"] = [printed("__complete", *words).split() for words in (
    ("activation=tw", "train"), ("", "compare", "--metric"), ("", "compare", "--questions"))]
print(json.dumps(seen))
"""
"""Runs where the copy is the package; prints what it saw."""


def append(path: Path, text: str) -> None:
    path.write_text(path.read_text(encoding="utf-8") + text, encoding="utf-8")


def replace(path: Path, old: str, new: str) -> None:
    before = path.read_text(encoding="utf-8")
    assert before.count(old) == 1, (path, old)
    path.write_text(before.replace(old, new), encoding="utf-8")


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def seen(made_once: Callable[[str, Callable[[Path], object]], Path]) -> dict[str, Any]:
    """What the commands of the copy print once the parts are added."""
    printed: dict[str, Any] = json.loads((made_once("places", add_parts) / "seen.json").read_text())
    return printed


def add_parts(folder: Path) -> None:
    package = folder / "segexp"
    shutil.copytree(REPOSITORY / "segexp", package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(REPOSITORY / "configs", package / "configs")
    # One place each.
    append(package / "activations" / "output" / "special.py", OUTPUT_ACTIVATION)
    append(package / "activations" / "hidden" / "curved.py", HIDDEN_ACTIVATION)
    append(package / "losses" / "pixelwise.py", LOSS)
    (package / "compare" / "questions" / "size.py").write_text(QUESTION, encoding="utf-8")
    # A score: its computation, and its row in the table.
    counts = "measures.counts_NF3[..., 0].sum() / max(measures.counts_NF3[..., :2].sum(), 1)"
    replace(
        package / "evaluation" / "score.py",
        '        "dice": primary_score(',
        f'        "precision": float({counts}),\n        "dice": primary_score(',
    )
    replace(
        package / "records" / "scores.py",
        '        Score("val_dice",',
        '        Score("precision", "precision, pixels pooled", unit=POINTS),\n        Score("val_dice",',
    )
    environment = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", USE], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (folder / "seen.json").write_text(done.stdout.splitlines()[-1])


def test_activations_and_a_loss_are_added_in_one_place_each(seen: dict[str, Any]) -> None:
    assert seen["activations"][-1] == "twice"
    assert seen["hidden_activations"][-1] == "twice_relu"
    assert "quartic" in seen["losses"]
    run = {key: seen["summary"][key] for key in ("activation", "hidden_activation", "loss")}
    assert run == {"activation": "twice", "hidden_activation": "twice_relu", "loss": "quartic"}
    assert seen["completed"][0] == ["activation=twice"]


def test_a_score_is_added_in_two_places(seen: dict[str, Any]) -> None:
    assert 0 <= seen["summary"]["precision"] <= 1
    assert "precision, pixels pooled" in seen["shown"]
    assert "precision" in seen["completed"][1]
    assert seen["compared"]["metric"]["name"] == "precision"
    (comparison,) = seen["compared"]["blocks"][0]["comparisons"]
    assert comparison["candidate"].startswith("twice")
    assert comparison["n_seeds"] == 2


def test_a_question_is_added_in_one_place(seen: dict[str, Any]) -> None:
    (answer,) = seen["compared"]["questions"][0]["answers"]
    assert [row["n_runs"] for row in answer["rows"]] == [2, 2]
    assert "size" in seen["completed"][2]
