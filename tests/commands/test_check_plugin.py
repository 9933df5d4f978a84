"""`segexp check-plugin` and `segexp new`: templates and right plugins pass, a broken one fails the check for it."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from segexp import cli
from segexp.commands import bench
from segexp.commands.new import TEMPLATES
from segexp.registry import plugins

Captured = pytest.CaptureFixture[str]

RIGHT = """
from typing import Annotated
import torch
from segexp.plugin import *

@hidden_activation(range="(-inf, inf)", learnable=("scale",))
def hidden(x, *, scale: float = 0.5):
    return x.asinh() * scale

@output_activation(slope_at_zero=0.5)
def out(x):
    return 2 * x.asinh()

@loss(needs="values")
def power_loss(prediction, target, *, power: Annotated[float, Range(1, 4)] = 2.0):
    y, valid = reference_planes(prediction, target)
    return mean_over((prediction.values_NKHW - y).square() ** (power / 2), valid)
"""

START = """
import dataclasses
import threading
from typing import Annotated

import numpy as np
import torch

from segexp.plugin import *
"""

BROKEN = {
    "a wrong derivative": ({"gradient", "gradient at 0"}, """
class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient * torch.sigmoid(2 * x + 1)

@hidden_activation
def broken(x):
    return Square.apply(x)
"""),
    "works in place": ({"input unchanged"}, """
@hidden_activation(range="[0, inf)", saturates="left", can_die=True)
def broken(x):
    return x.relu_()
"""),
    "an output activation in place": ({"input unchanged"}, """
@output_activation(slope_at_zero=0.5)
def broken(x):
    return x.mul_(2)
"""),
    "a loss in place": ({"call"}, """
@loss
def broken(prediction, target):
    target[target == 255] = 0
    return prediction.logits_NKHW.square().mean()
"""),
    "a network in place": ({"call"}, """
@architecture
class Broken(torch.nn.Sequential):
    def __init__(self, in_channels, classes):
        super().__init__(torch.nn.Conv2d(in_channels, classes, 3, padding=1))

    def forward(self, images):
        return super().forward(images.sub_(0.5))
"""),
    "NaN at 1e4": ({"finite", "finite in float16", "range"}, """
@hidden_activation
def broken(x):
    return x.exp() / (1 + x.exp()) * x
"""),
    "infinite gradient at 0": ({"finite", "finite in float16", "gradient", "gradient at 0"}, """
@hidden_activation(range="[0, inf)")
def broken(x):
    return x.abs().sqrt()
"""),
    "a wrong range": ({"range"}, """
@hidden_activation(range="[0, 1]", zero_centred=True, saturates="both")
def broken(x):
    return x.tanh()
"""),
    "cannot be copied": ({"copy", "gain", "in a network"}, """
@hidden_activation
class Broken(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()

    def forward(self, x):
        return x.sin()
"""),
    "log-odds that fall": ({"monotone", "range", "prior_bias", "inverse"}, """
@output_activation(slope_at_zero=0.25)
def broken(x):
    return x.sin()
"""),
    "a wrong slope at 0": ({"slope_at_zero"}, """
@output_activation(slope_at_zero=0.3, inverse=lambda t: (t / 2).sinh())
def broken(x):
    return 2 * x.asinh()
"""),
    "ignored pixels count": ({"ignored pixels"}, """
@loss(needs="values")
def broken(prediction, target):
    return (prediction.values_NKHW - (target == 1).float()[:, None]).square().mean()
"""),
    "no range": ({"range"}, """
@hidden_activation(range="positive", gain=1.4142, saturates="left", can_die=True)
def broken(x):
    return x.relu()
"""),
    "logits of half the size": ({"call"}, """
@architecture(divisor=2)
def broken(in_channels, classes):
    return torch.nn.Sequential(torch.nn.Conv2d(in_channels, classes, 3, stride=2, padding=1), torch.nn.ReLU())
"""),
    "an activation that escapes": ({"another activation"}, """
@architecture
class Broken(torch.nn.Module):
    def __init__(self, in_channels, classes):
        super().__init__()
        self.conv = torch.nn.Conv2d(in_channels, 4, 1)
        self.last = torch.nn.Conv2d(4, classes, 1)

    def forward(self, images):
        return self.last(torch.nn.functional.softplus(self.conv(images)))
"""),
    "data that change": ({"data"}, """
@dataset(num_classes=2, image_size=32)
def broken():
    draw = np.random.default_rng()
    return [(draw.integers(0, 255, (32, 32), dtype=np.uint8), np.eye(32, dtype=np.uint8)) for _ in range(20)]
"""),
    "a wrong inverse": ({"inverse", "prior_bias"}, """
@output_activation(slope_at_zero=0.5, inverse=lambda t: t)
def broken(x):
    return 2 * x
"""),
    "an option that fails at its end": ({"options"}, """
@loss(needs="values")
def broken(prediction, target, *, power: Annotated[float, Range(0, 2)] = 1.0):
    y, valid = reference_planes(prediction, target)
    return mean_over((prediction.values_NKHW - y).square(), valid) / power
"""),
    "the first image counts twice": ({"order"}, """
@loss(needs="values")
def broken(prediction, target):
    y, valid = reference_planes(prediction, target)
    wrong = (prediction.values_NKHW - y).square()
    return mean_over(wrong, valid) + mean_over(wrong[:1], valid[:1])
"""),
    "a parameter without use": ({"learnable", "in a network"}, """
@hidden_activation(learnable=("unused",))
class Broken(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.unused = torch.nn.Parameter(torch.ones(()))

    def forward(self, x):
        return x.sin()
"""),
    "one parameter for all": ({"copy"}, """
SHARED = torch.nn.Parameter(torch.ones(()))

@hidden_activation(learnable=("shared",))
class Broken(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.shared = SHARED

    def forward(self, x):
        return self.shared * x.sin()
"""),
    "a call that fails": ({"call"}, """
@hidden_activation
def broken(x):
    return x @ torch.ones(7, 7)
"""),
    "NaN for negative numbers": ({"call"}, """
@hidden_activation
def broken(x):
    return x.log()
"""),
    "NaN above 3": ({"gradient", "finite", "finite in float16", "range", "gain", "in a network"}, """
@hidden_activation
def broken(x):
    return (9 - x * x).sqrt()
"""),
    "a detached loss": ({"call"}, """
@loss(needs="values")
def broken(prediction, target):
    return prediction.values_NKHW.detach().mean()
"""),
    "a divisor that is not stated": ({"another activation"}, """
@architecture
def broken(in_channels, classes):
    layers = [torch.nn.Conv2d(in_channels, classes, 3, stride=4, padding=1), torch.nn.ReLU()]
    return torch.nn.Sequential(*layers, torch.nn.Upsample(scale_factor=4))
"""),
    "a score in the wrong direction": ({"direction"}, """
@score
def broken(predicted, reference, valid, probability):
    return float((predicted != reference).sum())
"""),
    "learning rates below 0": ({"eight steps"}, """
@scheduler
def broken(optimizer, total_steps, steps_per_epoch):
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 - step)
"""),
}  # fmt: skip
"""What is wrong -> the checks that fail, and the plugin."""

CHOSEN = {
    "output_activation": "activation=my_part", "architecture": "model=my_part", "score": "'metrics.scores=[my_part]'",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _unloaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bench, "BLOCK_S", 0.001)
    yield
    plugins.use([])


def results(capsys: Captured, *words: str) -> tuple[int, list[dict[str, Any]]]:
    """Exit code and rows of check-plugin."""
    code = cli.main(["check-plugin", *words, "--json"])
    return code, json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("kind", TEMPLATES)
def test_every_template_passes_and_is_not_overwritten(kind: str, capsys: Captured) -> None:
    assert cli.main(["new", kind, "my_part"]) == 0
    written = Path("my_part.py").read_text()
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "  segexp check-plugin my_part.py",
        f"  segexp train --plugin my_part.py {CHOSEN.get(kind, f'{kind}=my_part')}",
    ]
    code, rows = results(capsys, "my_part.py")
    assert code == 0
    assert {row["result"] for row in rows} == {"ok"}, rows
    plugins.use([])
    assert cli.main(["new", kind, "my_part"]) == 2
    assert "-o" in capsys.readouterr().err
    assert Path("my_part.py").read_text() == written


@pytest.mark.parametrize(("words", "named"), [
    (["loss", "dice"], "loss=dice"), (["dataset", "lesions"], "dataset=lesions"),
    (["score", "iou"], "metrics.scores=iou"),
    (["hidden_activation", "softmax"], "hidden_activation=softmax"),
    (["loss", "random"], "-o"),
    (["loss", "my-loss"], "my_part"), (["loss", "MyLoss"], "small letters"), (["los", "mine"], "did you mean loss"),
    (["hidden", "mine"], "did you mean hidden_activation?"), (["model", "mine"], "did you mean architecture?"),
    (["loss", "mine", "-o", "no/such/mine.py"], "mkdir -p no/such"), (["loss", "mine", "-o", "mine"], ".py"),
])  # fmt: skip
def test_new_refuses(words: list[str], named: str, capsys: Captured) -> None:
    assert cli.main(["new", *words]) == 2
    assert named in capsys.readouterr().err
    assert not list(Path().iterdir())


def test_a_right_plugin_passes_with_notes_on_what_it_does_not_state(capsys: Captured) -> None:
    Path("parts.py").write_text(RIGHT)
    code, rows = results(capsys, "parts.py")
    assert code == 0, rows
    assert {row["entry"] for row in rows} == {"hidden_activation=hidden", "activation=out", "loss=power_loss"}
    notes = {row["check"]: row["detail"] for row in rows if row["result"] == "note"}
    assert set(notes) == {"zero_centred", "saturates", "gain"}
    assert "zero_centred=True" in notes["zero_centred"]
    only = results(capsys, "parts.py", "--entry", "out")[1]
    assert only == [row for row in rows if row["entry"] == "activation=out"]
    assert cli.main(["check-plugin", "parts.py", "--entry", "oout"]) == 2
    assert "did you mean out?" in capsys.readouterr().err


@pytest.mark.slow
def test_what_is_right_with_limits_is_noted(capsys: Captured) -> None:
    """F alone with the rounding of its tails; a spatial activation; and a broken loss, which is its own failure."""
    Path("parts.py").write_text(
        f"""{START}
@output_activation(gives="probability", symmetric=True)
def cdf(x):
    return torch.special.ndtr(x)

@hidden_activation
class FReLU(torch.nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = torch.nn.Conv2d(channels, channels, 3, padding=1, groups=channels)

    def forward(self, x):
        return torch.maximum(x, self.conv(x))

@dataclasses.dataclass
class Rooted(DatasetConfig):
    root: str = "???"

@dataset(num_classes=2, config=Rooted)
def rooted(config):
    raise NotImplementedError

@loss
def broken(prediction, target):
    return prediction.logits_NKHW[0, 0, 0, 0] / 0
"""
    )
    code, rows = results(capsys, "parts.py")
    assert code == 1
    assert {row["entry"] for row in rows if row["result"] == "failed"} == {"loss=broken"}
    noted = {row["check"] for row in rows if row["result"] == "note"}
    assert noted == {"range", "gain", "learnable", "input unchanged", "channels last", "data"}


FIRST = (
    "a wrong derivative",
    "works in place",
    "an output activation in place",
    "a loss in place",
    "a network in place",
    "NaN at 1e4",
    "a wrong range",
    "cannot be copied",
    "ignored pixels count",
    "a call that fails",
    "NaN for negative numbers",
    "NaN above 3",
    "a detached loss",
    "a divisor that is not stated",
)


@pytest.mark.parametrize("wrong", [pytest.param(w, marks=[pytest.mark.slow] * (w not in FIRST)) for w in BROKEN])
def test_a_broken_plugin_fails_the_check_for_it(wrong: str, capsys: Captured) -> None:
    expected, source = BROKEN[wrong]
    Path("parts.py").write_text(START + source)
    code, rows = results(capsys, "parts.py")
    failed = {row["check"] for row in rows if row["result"] == "failed"}
    assert code == 1
    assert failed == expected, [row for row in rows if row["result"] == "failed"]
    if "call" in failed:
        assert [row["check"] for row in rows] == ["call"]
    assert not ("in a network" in failed and "channels last" in {row["check"] for row in rows})
    if wrong == "a divisor that is not stated":
        assert "state divisor=4" in rows[-1]["detail"]


def test_an_exception_is_a_failure_with_its_line_and_a_reason_below_the_table(capsys: Captured) -> None:
    Path("parts.py").write_text(f"{START}\n@hidden_activation\ndef broken(x):\n    return x.no_such_thing\n")
    assert cli.main(["check-plugin", "parts.py"]) == 1
    reasons = capsys.readouterr().out.partition("failed:")[2]
    assert "hidden_activation=broken, call:" in reasons
    assert "parts.py, line 13: " in reasons


def test_json_is_json_whatever_the_plugin_prints(capsys: Captured) -> None:
    source = "@score\ndef found(predicted, reference, valid, p):\n    print('called')\n    return 1.0\n"
    Path("parts.py").write_text(f"{START}\nprint('loaded')\n{source}")
    assert cli.main(["check-plugin", "parts.py", "--json"]) == 0
    printed = capsys.readouterr()
    assert [row["check"] for row in json.loads(printed.out)] == ["direction"]
    assert {"loaded", "called"} <= {*printed.err.split()}


@pytest.mark.parametrize(("name", "named"), [("parts.txt", "does not end in .py"), ("folder", "is a folder")])
def test_what_is_no_plugin_is_named_for_what_it_is(name: str, named: str, capsys: Captured) -> None:
    Path("parts.txt").touch()
    Path("folder").mkdir()
    assert cli.main(["check-plugin", name]) == 2
    assert named in capsys.readouterr().err


def test_a_syntax_error_has_its_line_once(capsys: Captured) -> None:
    Path("parts.py").write_text("x = 1\ny = (\n")
    assert cli.main(["check-plugin", "parts.py"]) == 2
    error = capsys.readouterr().err
    assert error.count("line 2") == 1
    assert "unknown" not in error


def test_a_taken_name_is_refused(capsys: Captured) -> None:
    Path("parts.py").write_text(f"{START}\n@hidden_activation\ndef relu(x):\n    return x\n")
    assert cli.main(["check-plugin", "parts.py"]) == 2
    assert "hidden_activation=relu" in capsys.readouterr().err


@pytest.mark.slow
def test_the_first_plugin_of_a_process_owns_its_own_entries_alone() -> None:
    """Also where the built-in data sets have not been read before."""
    Path("parts.py").write_text(
        "from segexp.plugin import dataset\n@dataset(num_classes=2)\ndef mine():\n    return []\n"
    )
    line = "from segexp.registry import plugins; plugins.use(['parts.py'])\n"
    line += "from segexp.data.image_set import ADAPTERS; print(*ADAPTERS.origins, len(ADAPTERS) > 1)"
    seen = subprocess.run([sys.executable, "-c", line], capture_output=True, text=True, check=True)
    assert seen.stdout.split() == ["mine", "True"]
