"""Networks, data sets and scores of a plugin, from the decorator to a finished run, its records and its comparison."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import TINY, no_figures

import segexp
from segexp.errors import UsageError
from segexp.models.build import final_layer, init_sha
from segexp.records import read_run
from segexp.running import prepare

OWN = [word for word in TINY if not word.startswith(("model.", "backbone."))]

NETWORKS = '''
import torch
import torch.nn.functional as F
from torch import nn
from typing import Annotated
from segexp.plugin import Range, architecture

@architecture(divisor=2)
class Small(nn.Module):
    """Ten lines: a function, a shared module."""
    def __init__(self, in_channels, classes, *, width: Annotated[int, Range(1)] = 4):
        super().__init__()
        self.a, self.b = nn.Conv2d(in_channels, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.act, self.last = nn.ReLU(), nn.Conv2d(width, classes, 1)
    def forward(self, x):
        x = self.act(self.b(self.act(F.relu(self.a(x)))))
        return F.interpolate(self.last(F.max_pool2d(x, 2)), scale_factor=2)

class Escaping(Small):
    def forward(self, x):
        return self.last(F.softplus(self.a(x)))

@architecture
def escapes(in_channels, classes):
    return Escaping(in_channels, classes)

class Stage(nn.Sequential):
    def __init__(self, i, o):
        super().__init__(nn.Conv2d(i, o, 3, padding=1, bias=False), nn.BatchNorm2d(o), nn.ReLU(inplace=True))

@architecture(divisor=4, min_size=16)
class OwnUNet(nn.Module):
    """A small U-Net with a part called encoder."""
    def __init__(self, in_channels, classes):
        super().__init__()
        self.encoder = nn.ModuleList([Stage(in_channels, 4), Stage(4, 8), Stage(8, 8)])
        self.up = nn.ModuleList([Stage(16, 4), Stage(8, 4)])
        self.out = nn.Conv2d(4, classes, 1, bias=False)
    def forward(self, x):
        skips = []
        for stage in self.encoder:
            x = stage(F.max_pool2d(x, 2) if skips else x)
            skips.append(x)
        for stage, skip in zip(self.up, skips[-2::-1]):
            x = stage(torch.cat([F.interpolate(x, scale_factor=2), skip], 1))
        return self.out(x)

class Ending(nn.Module):
    def __init__(self, k, end):
        super().__init__()
        self.conv, self.end = nn.Conv2d(1, k, 1), end
    def forward(self, x):
        return self.end(self.conv(x))

@architecture
def wrong_channels(in_channels, classes): return Ending(classes + 2, nn.Identity())
@architecture
def half(in_channels, classes): return Ending(classes, nn.MaxPool2d(2))
@architecture
def probabilities(in_channels, classes): return Ending(classes, nn.Sigmoid())
@architecture
def mapping(in_channels, classes): return Ending(classes, lambda x: {"out": x})
@architecture
def raising(in_channels, classes): return Ending(classes, lambda x: x.missing)
@architecture
def scaled(in_channels, classes): return Ending(classes, lambda x: 3 * x)
@architecture(min_size=64)
def large(in_channels, classes): return Ending(classes, nn.Identity())
@architecture
def broken(in_channels, classes): raise KeyError("depth")
@architecture
def with_encoder(encoder_name, encoder_weights, in_channels, classes):
    import segmentation_models_pytorch as smp
    widths = {'decoder_channels': (16, 8, 8), 'in_channels': in_channels, 'classes': classes}
    return smp.Unet(encoder_name, 3, encoder_weights, **widths)
'''


@pytest.fixture
def plugin(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Writes and loads a plugin called parts."""

    def load(text: str) -> Path:
        path = tmp_path / "parts.py"
        path.write_text(text, encoding="utf-8")
        segexp.use_plugins(path)
        return path

    yield load
    segexp.use_plugins()


def refused(outputs: Path, *words: str, own: bool = True) -> str:
    """The line with which a run of these words is refused before it begins."""
    from segexp.running.execute import execute

    with pytest.raises(UsageError) as error:
        execute(prepare(_config(outputs, *words)))
    assert "\n" not in str(error.value)
    assert not list(outputs.rglob("run.json"))
    return str(error.value)


def _config(outputs: Path, *words: str) -> Any:
    from segexp.config.compose import compose, hydra_session

    with hydra_session() as extra:
        return compose([*OWN, f"outputs='{outputs}'", *words], extra)


def run(outputs: Path, *words: str) -> Path:
    """A finished tiny run."""
    from segexp.running.execute import execute

    with no_figures():
        outcome = execute(prepare(_config(outputs, *words)))
    assert outcome.status == "done", outcome.reason
    return outcome.run_dir


# Networks


def test_a_network_of_ten_lines_is_trained_swapped_and_loaded(plugin: Any, tmp_path: Path) -> None:
    plugin(NETWORKS)
    words = ("model=small", "model.width=6", "hidden_activation=arctan", "activation.prior_bias=auto")
    run_dir = run(tmp_path, *words, "backbone=resnet34")
    record = read_run(run_dir)
    report, config = record["swap_report"], record["config"]
    assert (report["replaced"], report["functions"], report["shared_split"], report["escaped"]) == (3, 1, 1, {})
    assert (config["backbone.name"], config["backbone.weights"], config["model.width"]) == ("none", None, 6)
    assert record["plugins"]["parts"]["entries"] == ["model=small"]
    assert record["head"]["prior_bias"]["bias"]
    # The backbone has no effect: the same run.
    assert prepare(_config(tmp_path, *words)).run_dir == run_dir
    sites = (run_dir / "diagnostics.csv").read_text().splitlines()
    assert {line.split(",")[3] for line in sites[1:]} == {"decoder"}
    model = segexp.load(run_dir)
    assert model(torch.zeros(1, 1, 33, 40, dtype=torch.uint8)).shape == (1, 1, 33, 40)


def test_its_weights_come_from_the_seed_and_the_final_bias_enters_no_sha(plugin: Any) -> None:
    plugin(NETWORKS)
    words = ["model=small", "dataset.image_size=32"]
    network: Any = segexp.build_model(words)
    same = segexp.build_model([*words, "hidden_activation=tanh", "init.gain=relu"])
    assert init_sha(network) == init_sha(same) != init_sha(segexp.build_model([*words, "seed=1"]))
    layer: Any = final_layer(network)
    assert layer is network.last
    with torch.no_grad():
        layer.bias += 1
    assert init_sha(network) == init_sha(same)
    prior = segexp.build_model([*words, "activation.prior_bias=0.1"])
    layer = final_layer(prior)
    assert layer.bias.item() == pytest.approx(-2.1972, abs=1e-3)
    assert segexp.audit(same).replaced == 3


def test_a_part_called_encoder_gives_the_scope_its_meaning(plugin: Any) -> None:
    plugin(NETWORKS)
    words = ["model=own_unet", "dataset.image_size=32", "hidden_activation=gelu"]
    for scope, replaced in (("encoder", 3), ("decoder", 2), ("both", 5)):
        report = segexp.audit(segexp.build_model([*words, f"hidden_activation.scope={scope}"]))
        assert (report.replaced, report.native, report.escaped) == (replaced, 5 - replaced, {})
    with pytest.raises(UsageError, match="no part called encoder: use both"):
        segexp.build_model(["model=small", "hidden_activation=gelu", "hidden_activation.scope=encoder"])


@pytest.mark.parametrize(("words", "reasons"), [
    (("model=escapes", "hidden_activation=gelu"), ("softplus in Escaping", "torch.nn.Softplus")),
    (("model=wrong_channels",), ("(2, 3, 32, 32)", "(2, 1, 32, 32)")),
    (("model=half",), ("(16, 16) px",)),
    (("model=probabilities",), ("ends in sigmoid",)),
    (("model=mapping",), ("dict",)),
    (("model=raising",), ("AttributeError", "missing")),
    (("model=broken",), ("parts.py, line", "KeyError", "depth")),
    (("model=small", "backbone.weights=imagenet"), ("no encoder", "backbone.weights=null")),
    (("model=small", "dataset.image_size=33"), ("multiple of 2",)),
    (("model=large",), ("the minimum is 64 px",)),
    (("model=scaled", "activation.prior_bias=0.1"), ("prior_bias=none",)),
    (("model=own_unet", "activation.prior_bias=0.1"), ("prior_bias=none",)),
    (("backbone.name=none",), ("needs an encoder",)),
])  # fmt: skip
def test_a_network_that_cannot_be_used_is_refused_before_training(
    words: tuple[str, ...], reasons: tuple[str, ...], plugin: Any, tmp_path: Path
) -> None:
    plugin(NETWORKS)
    line = refused(tmp_path, *words)
    assert all(reason in line for reason in reasons), line


def test_a_network_that_asks_for_the_encoder_gets_the_backbone(plugin: Any) -> None:
    plugin(NETWORKS)
    network: Any = segexp.build_model(["model=with_encoder", "backbone.name=tu-resnet18", "dataset.image_size=32"])
    assert type(network.encoder).__name__ == "TimmUniversalEncoder"
