"""Networks, data sets and scores of a plugin, from the decorator to a finished run, its records and its comparison."""

import dataclasses
import math
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from messages import mentions
from tiny import TINY, tables, tiny_config

import segexp
from segexp.activations.hidden import make_hidden
from segexp.activations.output import OUTPUT_ACTIVATIONS, slope_of
from segexp.config import changed_from_defaults
from segexp.data import adapters
from segexp.data.check import check_pairs
from segexp.errors import LONGEST, UsageError
from segexp.models.build import final_layer, init_sha
from segexp.records import read_run
from segexp.registry.plugins import explained
from segexp.running import prepare
from segexp.training import loop

USES = """from typing import Annotated, Literal
import torch
from segexp.plugin import *
"""
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

class Clamping(Small):
    def forward(self, x):
        return self.last(self.a(x).clamp(min=0))

@architecture
def escapes(in_channels, classes, *, how: str = "softplus"):
    return (Escaping if how == "softplus" else Clamping)(in_channels, classes)

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


SCORES = """
import numpy as np
from segexp.plugin import score

@score(title="relative volume error", highest=1000, higher_is_better=False, negligible=0.05)
def volume_error(predicted_HW, reference_HW, valid_HW, probability_HW):
    n = reference_HW.sum()
    return abs(predicted_HW.sum() - n) / n if n else float("nan")

@score(unit="points", averaged="empty_policy")
def own_dice(predicted_HW, reference_HW, valid_HW, probability_HW):
    predicted_HW &= valid_HW
    total = predicted_HW.sum() + reference_HW.sum()
    return 2 * (predicted_HW & reference_HW).sum() / total if total else np.nan

@score(averaged="all", higher_is_better=False)
def mean_square(predicted_HW, reference_HW, valid_HW, probability_HW):
    p = predicted_HW if probability_HW is None else probability_HW
    return ((p - reference_HW.astype(float)) ** 2)[valid_HW].mean()
"""

OPTIM = """
import torch
from segexp.plugin import optimizer, scheduler

@optimizer
def plain_sgd(parameters, *, lr: float = 0.05, momentum: float = 0.9):
    return torch.optim.SGD(parameters, lr=lr, momentum=momentum)

@scheduler
def halved(optimizer, total_steps, steps_per_epoch, *, rate: float = 0.5):
    return torch.optim.lr_scheduler.StepLR(optimizer, steps_per_epoch, rate)
"""


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


def refused(outputs: Path, *words: str) -> str:
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


def _config_without(outputs: Path, *words: str) -> Any:
    """The same on another data set."""
    from segexp.config.compose import compose, hydra_session

    training = [word for word in OWN if word.startswith("trainer.")]
    with hydra_session() as extra:
        return compose([*training, f"outputs='{outputs}'", *words], extra)


def run(outputs: Path, *words: str) -> Path:
    """A finished tiny run."""
    return run_of(_config(outputs, *words))


def run_of(config: Any) -> Path:
    from segexp.running.execute import execute

    outcome = execute(prepare(config))
    assert outcome.status == "done", outcome.reason
    return outcome.run_dir


# Networks


def test_a_network_of_ten_lines_is_trained_swapped_and_loaded(plugin: Any, tmp_path: Path) -> None:
    plugin(NETWORKS + SCORES + OPTIM)
    words = ["model=small", "model.width=6", "hidden_activation=arctan", "activation.prior_bias=auto"]
    words += ["optimizer=plain_sgd", "scheduler=halved", "metrics.scores=[own_dice]"]
    run_dir = run(tmp_path, *words, "backbone=resnet34")
    record = read_run(run_dir)
    report, config = record["swap_report"], record["config"]
    assert (report["replaced"], report["functions"], report["shared_split"], report["escaped"]) == (3, 1, 1, {})
    assert (config["backbone.name"], config["backbone.weights"], config["model.width"]) == ("none", None, 6)
    entries = ["model=small", "optimizer=plain_sgd", "scheduler=halved", "metrics.scores=own_dice"]
    assert record["plugins"]["parts"]["entries"] == entries
    assert record["summary"]["score_own_dice"] == pytest.approx(record["summary"]["dice"], abs=1e-12)
    assert record["head"]["prior_bias"]["bias"]
    changed = changed_from_defaults(config)
    assert changed["model"] == "small"
    assert (changed["model.width"], changed.get("backbone.name")) == (6, None)
    # The backbone has no effect: the same run.
    assert prepare(_config(tmp_path, *words)).run_dir == run_dir
    sites = (run_dir / "diagnostics.csv").read_text().splitlines()
    assert {line.split(",")[3] for line in sites[1:]} == {"decoder"}
    model = segexp.load(run_dir)
    assert model(torch.zeros(1, 1, 33, 40, dtype=torch.uint8)).shape == (1, 1, 33, 40)


@pytest.mark.slow
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


NOISE = """
import random
import numpy as np
import torch
from segexp.plugin import architecture, loss, score

def noise(): return random.random() + np.random.rand() + torch.rand(()).item()

@architecture
class Noisy(torch.nn.Module):
    def __init__(self, in_channels, classes):
        super().__init__()
        self.first, self.last = torch.nn.Conv2d(in_channels, 4, 3, padding=1), torch.nn.Conv2d(4, classes, 1)
        torch.nn.init.normal_(self.first.weight, std=0.1 * noise())
    def forward(self, images):
        return self.last(torch.relu(self.first(images) + noise()))

@loss
def noisy(prediction, target):
    return (prediction.logits_NKHW - (target == 1)[:, None].float() - noise()).square().mean()

@score
def noisy(predicted, reference, valid, probability):
    return noise()
"""


def test_what_a_plugin_draws_repeats(plugin: Any, tmp_path: Path) -> None:
    plugin(NOISE)
    words = ("model=noisy", "loss=noisy", "metrics.scores=[noisy]")
    following = []
    for folder in ("first", "second"):
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002
        if folder == "first":
            first = run(tmp_path / folder, *words)
        following.append((random.random(), np.random.rand()))  # noqa: NPY002
    assert following[0] == following[1], "the caller's generators are left alone"
    real, interrupted = loop.train_epoch, mock.Mock(side_effect=KeyboardInterrupt)
    patch = mock.patch.object(loop, "train_epoch", lambda *a: (interrupted if a[3] == 2 else real)(*a))
    with patch, pytest.raises(KeyboardInterrupt):
        run(tmp_path / "second", *words)
    second = run(tmp_path / "second", *words)
    assert read_run(first)["init_sha"] == read_run(second)["init_sha"]
    assert tables(first) == tables(second)


@pytest.mark.slow
def test_a_part_called_encoder_gives_the_scope_its_meaning(plugin: Any) -> None:
    plugin(NETWORKS)
    words = ["model=own_unet", "dataset.image_size=32", "hidden_activation=gelu"]
    for scope, replaced in (("encoder", 3), ("decoder", 2), ("both", 5)):
        report = segexp.audit(segexp.build_model([*words, f"hidden_activation.scope={scope}"]))
        assert (report.replaced, report.native, report.escaped) == (replaced, 5 - replaced, {})
    with pytest.raises(UsageError, match="no part called encoder: use both"):
        segexp.build_model(["model=small", "hidden_activation=gelu", "hidden_activation.scope=encoder"])


REFUSED = (
    (("model=escapes", "hidden_activation=gelu"), ("softplus in Escaping", "torch.nn.Softplus")),
    (("model=escapes", "model.how=clamp", "hidden_activation=gelu"), ("clamp in Clamping", "torch.nn.ReLU for clamp")),
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
)  # fmt: skip


def test_a_network_that_cannot_be_used_is_refused_before_training(plugin: Any, tmp_path: Path) -> None:
    plugin(NETWORKS)
    for words, reasons in REFUSED:
        line = refused(tmp_path, *words)
        assert all(reason in line for reason in reasons), line


@pytest.mark.slow
def test_a_network_that_asks_for_the_encoder_gets_the_backbone(plugin: Any) -> None:
    plugin(NETWORKS)
    network: Any = segexp.build_model(["model=with_encoder", "backbone.name=tu-resnet18", "dataset.image_size=32"])
    assert type(network.encoder).__name__ == "TimmUniversalEncoder"


# Data sets

DATA = '''
import numpy as np
import torch
from dataclasses import dataclass
from typing import Annotated, Literal
from segexp.plugin import DatasetConfig, ImageSet, Pair, Range, dataset

def made(number, seed, colours=1):
    rng = np.random.Generator(np.random.PCG64(seed))
    for n in range(number):
        mask = np.zeros((40, 36), np.int64)
        y, x = rng.integers(0, 20, 2)
        mask[y:y + 12, x:x + 12] = 1 + n % 2
        image = rng.integers(0, 80, (40, 36, colours)) + 80 * mask[..., None]
        yield image.astype(np.uint8), mask

@dataset(num_classes=3, image_size=32, class_names=["nothing", "odd", "even"], licence="own")
def cells(*, number: Annotated[int, Range(1)] = 16, seed: int = 0, kind: Literal["list", "generator"] = "list"):
    """Squares."""
    pairs = made(number, seed)
    return list(pairs) if kind == "list" else pairs

class Torch(torch.utils.data.Dataset):
    def __init__(self, number): self.pairs = list(made(number, 0, 2))
    def __len__(self): return len(self.pairs)
    def __getitem__(self, i):
        image, mask = self.pairs[i]
        return torch.from_numpy(image).permute(2, 0, 1), torch.from_numpy(mask), f"cell_{99 - i}", f"p{i // 2}"

@dataset(num_classes=3, image_size=32)
def tensors(*, number: int = 16):
    return Torch(number)

@dataset(num_classes=3, image_size=32)
def arrays(*, number: int = 16):
    data = Torch(number)
    return [(data.pairs[i][0], data.pairs[i][1].astype(np.uint8), *data[i][2:]) for i in range(len(data))]

@dataclass
class Config(DatasetConfig):
    num_classes: int = 2
    number: Annotated[int, Range(1)] = 12

@dataset(config=Config, image_size=32)
def adapted(config):
    """Own adapter."""
    pairs = list(made(config.number, 1))
    read = lambda i: Pair(pairs[i][0], (pairs[i][1] > 0).astype(np.uint8))
    names = tuple(f"n{i:03}" for i in range(config.number))
    bytes_of = lambda i: (pairs[i][0].tobytes(), pairs[i][1].tobytes())
    return ImageSet(names, ("",) * len(names), 1, config.num_classes, read, bytes_of, location="memory")

class Buffer(Torch):
    def __init__(self, number):
        super().__init__(number)
        self.pair = [torch.empty(2, 40, 36, dtype=torch.uint8), np.empty((40, 36), np.uint8)]
    def __getitem__(self, i):
        for own, new in zip(self.pair, self.pairs[i]):
            own[...] = torch.from_numpy(new).permute(2, 0, 1) if new.ndim == 3 else new
        return *self.pair, f"cell_{99 - i}", f"p{i // 2}"

@dataset(num_classes=3, image_size=32)
def buffer(*, number: int = 16):
    return Buffer(number)

@dataset(num_classes=3, image_size=32)
def yielded_buffer(*, number: int = 16):
    data = Buffer(number)
    return (data[i] for i in range(number))

image, mask = np.zeros((8, 9), np.uint8), np.zeros((8, 9), np.uint8)
WRONG = {
    "first": (np.zeros((3, 8, 9)), mask), "last": (torch.zeros(8, 9, 3), mask), "mask": (image, mask[None]),
    "size": (np.zeros((9, 8)), mask), "cube": (np.zeros((8, 8, 8)), np.zeros((8, 8))), "classes": (image, mask + 7),
    "many": (np.zeros((8, 9, 40)), mask), "item": image, "five": (image, mask, 1, 2, 3), "named": (image, mask, 1.5),
    "marks": (image, mask + 255),
    "words": (np.array(["a"]), mask), "half": (torch.zeros(8, 9, dtype=torch.bfloat16), mask),
}

@dataset(num_classes=2, image_size=32)
def wrong(*, of: str = "first"):
    if of == "mapping": return {0: (image, mask)}
    if of == "raises": return [1 / 0]
    if of == "twice": return [(image, mask, "a")] * 4
    if of == "random": return Changing()
    if of == "channels": return [(image, mask + 1), (np.zeros((8, 9, 2)), mask)] * 4
    return [WRONG[of]] * 8

class Changing(list):
    def __len__(self): return 8
    def __getitem__(self, i):
        self.append(i)
        return image + list.__len__(self), mask
'''


@pytest.mark.parametrize("kind", ["generator", pytest.param("list", marks=pytest.mark.slow)])
def test_pairs_of_a_function_are_trained_on(kind: str, plugin: Any, tmp_path: Path) -> None:
    from segexp.running import load_dataset

    plugin(DATA + NETWORKS)
    words = ["dataset=cells", f"dataset.kind={kind}", "dataset.number=18", "model=small", "trainer.epochs=1"]
    config = _config_without(tmp_path, *words)
    assert (config.dataset.num_classes, config.dataset.class_names) == (3, ["nothing", "odd", "even"])
    data = load_dataset(config)
    assert data.image_set.image_ids[:2] == ("0000", "0001")
    assert data.facts.class_pixels_NC[:2].tolist() == [[1296, 144, 0], [1296, 0, 144]]
    record = read_run(run_of(config))
    assert record["plugins"]["parts"]["entries"] == ["model=small", "dataset=cells"]
    assert (record["config"]["dataset.kind"], record["config"]["dataset.licence"]) == (kind, "own")
    changed = {key for key in changed_from_defaults(record["config"]) if key.startswith("dataset")}
    assert changed == {"dataset", "dataset.number"} | ({"dataset.kind"} if kind != "list" else set())
    other = load_dataset(_config_without(tmp_path, *words[:1]))
    assert other.dataset_sha != data.dataset_sha  # 16 images
    assert load_dataset(_config_without(tmp_path, *words[:1], "dataset.number=18")).dataset_sha == data.dataset_sha


@pytest.mark.slow
def test_arrays_and_tensors_of_the_same_content_are_the_same_data(plugin: Any, tmp_path: Path) -> None:
    from segexp.running import load_dataset

    plugin(DATA)
    found = [load_dataset(_config_without(tmp_path, f"dataset={name}")) for name in ("tensors", "arrays")]
    assert found[0].image_set.channels == 2
    assert found[0].dataset_sha == found[1].dataset_sha
    assert found[0].image_set.image_ids == tuple(sorted(found[0].image_set.image_ids))
    assert dict(zip(found[0].image_set.image_ids, found[0].image_set.group_ids, strict=True))["cell_99"] == "p0"
    for index in range(3):
        first, second = (one.image_set.read(index) for one in found)
        assert (first.image_HWC == second.image_HWC).all()
        assert (first.mask_HW == second.mask_HW).all()


@pytest.mark.parametrize("kind", ["buffer", "yielded_buffer"])
def test_a_data_set_may_fill_the_same_arrays_again(kind: str, plugin: Any) -> None:
    plugin(DATA)
    found, plain = (adapters()[name].open(adapters()[name].preset) for name in (kind, "tensors"))
    assert found.content == plain.content
    with ThreadPoolExecutor(8) as pool:
        for index, pair in enumerate(pool.map(found.read, [*range(16)] * 20)):
            assert (pair.image_HWC == plain.read(index % 16).image_HWC).all()


def test_an_adapter_has_the_options_of_its_dataclass(plugin: Any, tmp_path: Path) -> None:
    plugin(DATA)
    config = _config_without(tmp_path, "dataset=adapted", "dataset.number=14")
    spec = prepare(config)
    assert (len(spec.image_set.image_ids), config.dataset.num_classes, config.dataset.name) == (14, 2, "adapted")
    with pytest.raises(UsageError, match=r"dataset\.number=0 is out of range"):
        _config_without(tmp_path, "dataset=adapted", "dataset.number=0")


@pytest.mark.parametrize(("of", "reason"), [
    ("first", "numpy.moveaxis"), ("last", "permute"), ("mask", "(1, 8, 9)"), ("size", "(9, 8)"), ("cube", "crop"),
    ("classes", "7"), ("many", "40 channels"), ("item", "ndarray"), ("five", "tuple"), ("named", "1.5"),
    ("marks", "mask > 0"), ("mapping", "dict"), ("raises", "ZeroDivisionError"), ("twice", "'a'"),
    ("words", "arrays of numbers"), ("half", "BFloat16"),
    ("random", "augment=..."), ("channels", "2 channels"),
])  # fmt: skip
def test_pairs_that_cannot_be_used_are_refused(of: str, reason: str, plugin: Any) -> None:
    plugin(DATA)
    entry = adapters()["wrong"]
    config: Any = entry.preset
    with pytest.raises(UsageError) as error:
        check_pairs(entry.open(dataclasses.replace(config, of=of)))
    assert reason in str(error.value), error.value
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("text", "reason"), [
    ("@dataset\ndef busi(): return []", "busi"), ("@dataset\ndef mine(root): return []", "after a *"),
    ("@dataset(colour=1)\ndef mine(): return []", "colour"),
    ("@dataset(image_size='big')\ndef mine(): return []", "big"),
    ("@dataset\ndef mine(*, limit: int = 1): return []", "limit"),
    ("@architecture\ndef mine(in_channels, classes, width): return 1", "width"),
    ("@architecture\ndef mine(encoder_name): return 1", "encoder_weights"),
    ("@architecture(summry='a')\ndef mine(in_channels, classes): return 1", "did you mean summary"),
    ("@hidden_activation\ndef mine(x, *, scope: str = 'both'): return x", "option scope"),
    ("@hidden_activation\ndef mine(x, *, name: str = 'a'): return x", "option name"),
    ("@output_activation\ndef mine(x, *, slope: float = 1.0): return x", "option slope"),
    ("@loss\ndef mine(p, y, *, weight: float = 1.0): return p", "option weight"),
    ("@hidden_activation\ndef mine(x, *, by: float = 'q'): return x", "by=q"),
    ("@hidden_activation\ndef mine(x, *, by: Annotated[float, Range(0)] = -1.0): return x", "at least 0"),
    ("@hidden_activation\ndef mine(x, *, by: Annotated[float, 0, 1] = 0.5): return x", "Range(low, high)"),
    ("@hidden_activation\ndef mine(x, *, by: Literal['u', 'v'] = 'w'): return x", "u, v"),
    ("@hidden_activation\ndef mine(x, *, by: int | str = 2): return x", "one type"),
    ("@hidden_activation\ndef mine(x, *, by: bool = 2): return x", "by=2"),
    ("@hidden_activation\ndef mine(x, *, by: torch.Tensor = None): return x", "Tensor"),
    ("@hidden_activation(learnable=('other',))\ndef mine(x, *, by: float = 1.0): return x", "learnable='other'"),
    ("@hidden_activation(learnable=('half',))\ndef mine(x, *, half: float = 1.0): return x", "attribute of torch"),
    ("@hidden_activation(learnable='a')\ndef mine(x, *, a: float = 1.0): return x", "tuple of text"),
    ("@hidden_activation\ndef mine(x, by=0.5): return x", "write a * before"),
    ("@output_activation\ndef mine(): return 1", "mine(x, *, OPTIONS)"),
    ("@loss\ndef mine(p): return p", "mine(prediction, target, *, OPTIONS)"),
    ("@score\ndef mine(p, q): return 1", "mine(predicted, reference, valid, probability, *"),
    ("@score\ndef dice(a, b, c, d): return 1", "dice"),
    ("@score(averaged='x')\ndef mine(a, b, c, d): return 1", "'reference' or 'all'"),
    ("@scheduler(moves='x')\ndef mine(o, t, s): return 1", "'step' or 'validation'"),
    ("@loss(needs='probabilities')\ndef mine(p, y): return p", "'log_odds' or 'values'"),
    ("@hidden_activation(forumla='x')\ndef mine(x): return x", "did you mean formula"),
    ("@hidden_activation(gain='x')\ndef mine(x): return x", "a number"),
    ("@hidden_activation('mine')\ndef other(x): return x", "name='mine'"),
    ("@hidden_activation(aliases='ab')\ndef mine(x): return x", "tuple of names"),
])  # fmt: skip
def test_what_cannot_be_registered_is_refused_with_its_line(text: str, reason: str, plugin: Any) -> None:
    with pytest.raises(UsageError, match=r"parts\.py, line \d") as error:
        plugin(f"{USES}{text}\n")
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


MINE_LR = "@optimizer\ndef mine(ps, *, lr: float = 0.1): "

SQUARES = "    return p.logits_NKHW.square().mean()"

NET_IN_PLACE = """
@architecture
class Mine(torch.nn.Conv2d):
    def __init__(self, in_channels, classes): super().__init__(in_channels, classes, 1)
    def forward(self, x): return super().forward(x.sub_(1))
"""

BAD = [
    ("hidden_activation", "@hidden_activation\ndef mine(x): return x.relu_()", "in place"),
    ("hidden_activation", "@hidden_activation\ndef mine(x): return x.clamp_(-9, 9)", "in place"),
    ("hidden_activation", "@hidden_activation\ndef mine(x): return x.mean()", "gives ()"),
    ("hidden_activation", "@hidden_activation\ndef mine(): return 1", "int, not a torch module"),
    ("hidden_activation", "@hidden_activation\ndef mine(x): return 1 / 0", "parts.py, line 5: ZeroDivisionError"),
    ("hidden_activation", "@hidden_activation\ndef mine(x): return x.detach().relu()", "has no gradient"),
    (
        "hidden_activation",
        "@hidden_activation(learnable=('k',))\ndef mine(x, *, k: float = 1.0): return x.detach().relu() * k",
        "has no gradient",
    ),
    ("activation", "@output_activation\ndef mine(x): return 2 * x.detach()", "has no gradient"),
    ("activation", "@output_activation(gives='probability')\ndef mine(x): return 0 * x.detach() + 0.5", "no gradient"),
    (
        "activation",
        "@output_activation(gives='log_probabilities')\n"
        "def mine(x): return tuple(torch.nn.functional.logsigmoid(s * x.detach()) for s in (1, -1))",
        "has no gradient",
    ),
    ("activation", "@output_activation\ndef mine(x): return x.sigmoid()", "state gives='probability'"),
    ("activation", "@output_activation\ndef mine(x): return x, x", "gives a pair"),
    ("activation", "@output_activation(gives='log_probabilities')\ndef mine(x): return x", "one tensor"),
    ("activation", "@output_activation(gives='probability')\ndef mine(x): return x", "not within 0 and 1"),
    ("activation", "@output_activation(gives='probability')\ndef mine(x): return (-x).sigmoid()", "must rise"),
    ("activation", "@output_activation(gives='probability')\ndef mine(x): return 1 / 0", "parts.py, line 5"),
    ("activation", "@output_activation\ndef mine(x): return x.log()", "not finite"),
    ("activation", "@output_activation\ndef mine(x): return x.mul_(2)", "in place"),
    ("activation", "@output_activation(gives='probability')\ndef mine(x): return x.sigmoid_()", "in place"),
    ("activation", "N = []\n@output_activation\ndef mine(x): return None if N else N.append(0) or x", "NoneType"),
    ("loss", "@loss\ndef mine(p, y): return p.values_NKHW", "scalar"),
    ("loss", "@loss\ndef mine(p, y): return torch.zeros(())", "no gradient"),
    ("loss", "@loss\ndef mine(p, y): return p.nothing", "check-plugin"),
    ("loss", f"@loss\ndef mine(p, y):\n    y[y == 255] = 0\n{SQUARES}", "in place"),
    ("loss", f"@loss\ndef mine(p, y):\n    if (y == 255).all(): y.zero_()\n{SQUARES}", "in place"),
    ("loss", f"@loss\ndef mine(p, y):\n    if not y.any(): y.add_(1)\n{SQUARES}", "in place"),
    ("loss", f"@loss\ndef mine(p, y):\n    p.log_odds_NKHW.mul_(2)\n{SQUARES}", "in place"),
    (
        "loss",
        f"@loss(maps=lambda m, v: 1.0 * m)\ndef mine(p, y, maps):\n    maps['mine'].add_(1)\n{SQUARES}",
        "in place",
    ),
    ("model", NET_IN_PLACE, "in place"),
    ("optimizer", f"{MINE_LR}return torch.optim.SGD([p for p in ps if p.requires_grad], lr)", "line 5: AttributeError"),
    ("optimizer", f"{MINE_LR}return torch.optim.LBFGS(ps, lr)", "line 5: ValueError"),
    ("optimizer", f"{MINE_LR}torch.optim.SGD(ps, lr)", "return a torch optimizer"),
    ("scheduler", "@scheduler\ndef mine(o, n, e): torch.optim.lr_scheduler.StepLR(o, e)", "return a torch scheduler"),
    ("scheduler", "@scheduler\ndef mine(o, n, e): return 1 / 0", "line 5: ZeroDivisionError"),
    (
        "scheduler",
        "@scheduler(moves='validation')\ndef mine(o, n, e): return torch.optim.lr_scheduler.StepLR(o, 1)",
        "takes no score",
    ),
]


@pytest.mark.parametrize(("group", "text", "reason"), BAD)
def test_what_cannot_be_trained_with_is_loaded_and_refused_before_training(
    group: str, text: str, reason: str, plugin: Any, tmp_path: Path
) -> None:
    plugin(f"{USES}{text}\n")
    answer = refused(tmp_path, f"{group}=mine")
    assert reason in answer
    assert "parts.py" in answer, "which plugin it is"


def test_a_loss_that_changes_only_the_masks_of_a_run_gets_copies(plugin: Any, tmp_path: Path) -> None:
    loss = "    return p.logits_NKHW.square().mean()\n"
    sly = f"@loss\ndef sly(p, y):\n    if len(y) > 2: y.zero_()\n{loss}"  # the check has two masks
    plugin(f"{USES}@loss\ndef usual(p, y):\n{loss}{sly}")
    first, second = ((run(tmp_path, f"loss={name}") / "epochs.csv").read_bytes() for name in ("usual", "sly"))
    assert first == second


def test_a_loss_that_fails_on_masks_that_the_data_may_lack_is_warned_of(
    plugin: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plugin(f"{USES}@loss\ndef picky(p, y):\n    assert (y == 1).any()\n    return p.logits_NKHW.square().mean()\n")
    prepare(tiny_config(tmp_path, "loss=picky"))
    assert [mentions(text, "loss=picky", "AssertionError") for text in caplog.messages if "picky" in text] == [
        True,
        True,
    ]


def test_a_scheduler_is_tried_with_as_many_epochs_as_the_run_has(plugin: Any, tmp_path: Path) -> None:
    body = "    assert n == 300 * e, n\n    return torch.optim.lr_scheduler.StepLR(o, e)"
    plugin(f"{USES}@scheduler\ndef mine(o, n, e):\n{body}\n")
    prepare(_config(tmp_path, "scheduler=mine", "trainer.epochs=300"))


def test_an_error_within_a_run_names_the_line(plugin: Any, tmp_path: Path) -> None:
    from segexp.running.execute import execute

    plugin(f"{USES}@loss\ndef mine(p, y):\n    if len(y) > 2: 1 / 0\n    return p.logits_NKHW.mean()\n")
    outcome = execute(prepare(_config(tmp_path, "loss=mine")))
    assert (outcome.status, "parts.py, line 6: ZeroDivisionError" in outcome.reason) == ("failed", True)


def test_what_ones_own_part_gave_is_suspected_of_an_unexpected_error(
    plugin: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert "check-plugin" not in explained(ValueError("x"))
    plugin(f"{USES}@hidden_activation\ndef mine(x): return x\n")
    line = explained(AttributeError("x" * 10**6))
    assert "check-plugin" in line
    assert "parts.py" in line
    assert len(line) < 2 * LONGEST
    assert len([*tmp_path.glob("segexp-*.txt")]) == 2


def test_an_error_of_the_system_that_a_plugin_raises_names_it(
    plugin: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from segexp.cli import main

    fails = "N.append(0)\n    if len(N) > 1: raise OSError(28, 'No space left')\n    return x"
    path = plugin(f"{USES}N = []\n@hidden_activation\ndef mine(x):\n    {fails}\n")
    words = ["train", *TINY, f"outputs={tmp_path / 'o'}", "hidden_activation=mine", "--plugin", str(path)]
    assert main(words) == 2
    assert "parts.py, line 8: OSError" in capsys.readouterr().err


def test_options_of_ones_own_take_what_they_declare(plugin: Any, tmp_path: Path) -> None:
    plugin(
        f"{USES}@hidden_activation(learnable=('by',))\n"
        "def mine(x, *, by: float = 2.0, add: list[float] = [1, 2], top: float | None = None, hard: bool = False):\n"
        "    return by * x + sum(add)\n"
        "@output_activation\ndef steep(x, *, by: float = 2.0): return by * x\n"
    )
    for module in (segexp.hidden_activation("mine", add=[3], top=0.5), make_hidden("mine", {})):
        assert module(torch.ones(())).item() == 5
    assert slope_of(OUTPUT_ACTIVATIONS["steep"], {"slope": "matched", "by": 4.0}) == 0.25
    assert slope_of(OUTPUT_ACTIVATIONS["steep"], {"slope": "matched"}) == 0.5
    for word in ("hidden_activation.hard=2", "hidden_activation.hard=0"):
        with pytest.raises(UsageError, match=f"{word}: the value must be true or false"):
            _config(tmp_path, "hidden_activation=mine", word)
    with pytest.raises(UsageError, match=r"write --plugin x\.py"):
        _config(tmp_path, "plugin=x.py")
    with pytest.raises(UsageError, match="your own needs --plugin FILE"):
        _config(tmp_path, "hidden_activation=erlu")


def test_a_data_set_needs_its_number_of_classes(plugin: Any, tmp_path: Path) -> None:
    plugin("from segexp.plugin import dataset\n@dataset\ndef mine(): return []\n")
    with pytest.raises(UsageError, match=r"dataset\.num_classes has no value"):
        _config_without(tmp_path, "dataset=mine")


# Scores

SCORED = "metrics.scores=[volume_error,own_dice,mean_square]"


@pytest.mark.slow
def test_a_score_becomes_columns_that_are_read_without_the_plugin(
    plugin: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from segexp.cli import main
    from segexp.compare.verdict import compare
    from segexp.records import read_table
    from segexp.records.collected import collect, read_collected

    path = plugin(SCORES + NETWORKS)
    words = ("model=small", "trainer.epochs=1", SCORED)
    runs = [run(tmp_path, *words, f"activation={name}", f"seed={s}") for name in ("sigmoid", "arctan") for s in (0, 1)]
    record = read_run(runs[0])
    assert record["plugins"]["parts"]["entries"][1:] == [f"metrics.scores={n}" for n in sorted(record["scores"])]
    images = read_table(runs[0] / "images.csv", "images", record)
    assert list(images)[-3:] == ["score_mean_square", "score_own_dice", "score_volume_error"]
    assert images["score_own_dice"].equals(images["dice"])
    assert (images["score_mean_square"] - images["brier"]).abs().max() < 1e-6
    summary = record["summary"]
    assert summary["score_own_dice"] == pytest.approx(summary["dice"], abs=1e-12)
    assert summary["score_mean_square"] == pytest.approx(summary["brier"], abs=1e-6)
    segexp.use_plugins()
    study = runs[0].parent
    for metric, like in (("own_dice", "dice"), ("score_mean_square", "brier")):
        own, usual = (compare([study], metric=name).blocks[0].comparisons[0] for name in (metric, like))
        assert own.overall.mean == pytest.approx(usual.overall.mean, abs=1e-6)
    assert main(["show", str(runs[0])]) == 0
    assert "relative volume error" in capsys.readouterr().out
    collect(study, tmp_path / "collected")
    copied = compare([tmp_path / "collected"], metric="volume_error")
    assert (copied.metric.title, copied.metric.rope) == ("relative volume error", 0.05)
    again = compare([study], metric="volume_error")
    assert repr(copied.blocks[0].comparisons) == repr(again.blocks[0].comparisons)
    for name in ("runs", "images"):
        assert "score_volume_error" in read_collected(tmp_path / "collected" / f"{name}.csv")
    assert main(["report", str(study), "--metric", "volume_error", "-o", str(tmp_path / "report")]) == 0
    # Without the score the run has the identity that it has without the plugin.
    segexp.use_plugins(path)
    plain = prepare(_config(tmp_path, "activation=arctan"))
    assert plain.plugins == {}
    assert plain.identity != prepare(_config(tmp_path, "activation=arctan", "metrics.scores=[own_dice]")).identity
    assert plain.identity == prepare(_config(tmp_path, "activation=arctan", "metrics.scores=[]")).identity


@pytest.mark.slow
def test_run_returns_own_scores(plugin: Any, tmp_path: Path) -> None:
    plugin(SCORES)
    words = [*TINY, "trainer.epochs=1", f"outputs={tmp_path}"]
    summary = segexp.run([*words, "metrics.scores=[own_dice]"])
    assert summary["score_own_dice"] == pytest.approx(summary["dice"], abs=1e-12)
    diverged = segexp.run([*words, "metrics.scores=[own_dice]", "optimizer.lr=1e30", "seed=1"])
    assert math.isnan(diverged["score_own_dice"])


def test_a_score_is_computed_for_a_finished_run(plugin: Any, tmp_path: Path) -> None:
    from segexp.cli import main
    from segexp.records import read_table

    path = plugin(SCORES)
    finished = run(tmp_path, "trainer.epochs=1", "model.encoder_depth=3", "model.decoder_channels=[16,8,8]")
    for code in (0, 0):  # computed, and read again
        assert main(["evaluate", str(finished), "--plugin", str(path), "metrics.scores=[own_dice]"]) == code
    (folder,) = (finished / "evaluations").iterdir()
    images = read_table(folder / "images.csv", "images")
    assert images["score_own_dice"].equals(images["dice"])
    assert (
        main(["evaluate", str(finished), "--plugin", str(path), "metrics.unit=case", "metrics.scores=[own_dice]"]) == 2
    )


@pytest.mark.parametrize(("text", "reason"), [
    ("def mine(a, b, c, d): return 1 / a.sum()", "highest"),
    ("def mine(a, b, c, d): return d.mean()", "AttributeError"),
    ("def mine(a, b, c, d): return 'much'", "ValueError"),
])  # fmt: skip
def test_a_score_that_fails_is_refused_before_training(text: str, reason: str, plugin: Any, tmp_path: Path) -> None:
    plugin(f"from segexp.plugin import score\n@score\n{text}\n")
    assert reason in refused(tmp_path, "metrics.scores=[mine]")


@pytest.mark.parametrize("scores", [
    1, "x", [1], {"mine": 1}, {"mine": {}}, {"../x": {}},
    {"mine": {"title": "t", "unit": "kg", "averaged": "all", "higher_is_better": True}},
    {"mine": {"title": "t", "unit": "", "averaged": "all", "higher_is_better": True, "highest": "1"}},
])  # fmt: skip
def test_a_record_of_a_stranger_cannot_describe_a_score_wrongly(scores: Any, tmp_path: Path) -> None:
    import json

    (tmp_path / "run.json").write_text(json.dumps({"run_id": "a", "status": "done", "scores": scores}))
    with pytest.raises(UsageError, match="scores"):
        read_run(tmp_path)


# All of them, through the commands

CHOSEN = ("dataset=cells", "dataset.number=24", "model=small", "optimizer=plain_sgd", "scheduler=halved")


@pytest.mark.slow
def test_the_parts_of_a_plugin_go_through_every_command(tmp_path: Path, segexp_: Callable[..., str]) -> None:
    plugin = tmp_path / "parts.py"
    plugin.write_text(NETWORKS + DATA + SCORES + OPTIM, encoding="utf-8")
    with_plugin = ("--plugin", str(plugin))
    training = ["trainer.threads=1", "trainer.device=cpu", "trainer.batch_size=4", *CHOSEN]
    training += ["metrics.scores=[volume_error]"]
    segexp_("train", "-m", *with_plugin, *training, "trainer.epochs=2", "activation=sigmoid,arctan", "seed=0,1")
    study = tmp_path / "outputs" / "default"
    runs = sorted(path.parent for path in study.glob("*/run.json"))
    assert len(runs) == 4
    record = read_run(runs[0])
    entries = ["model=small", "optimizer=plain_sgd", "scheduler=halved", "dataset=cells", "metrics.scores=volume_error"]
    assert record["plugins"]["parts"]["entries"] == entries
    rates = [line.split(",")[4] for line in (runs[0] / "epochs.csv").read_text().splitlines()[1:]]
    assert float(rates[-1]) == pytest.approx(float(rates[0]) / 2)

    # Interrupted and resumed: the same bytes as without interruption.
    long = ("trainer.epochs=25", *training, "study.name=whole")
    segexp_("train", *with_plugin, *long)
    (whole,) = (tmp_path / "outputs" / "whole").glob("*-*")
    words = [sys.executable, "-m", "segexp", "train", *with_plugin, *long[:-1], "study.name=cut"]
    process = subprocess.Popen(words, cwd=tmp_path)
    cut = tmp_path / "outputs" / "cut"
    while not any(len(path.read_text().splitlines()) > 5 for path in cut.glob("*/epochs.csv")):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert "--plugin" in segexp_("resume", str(cut), code=2)
    segexp_("resume", str(cut), *with_plugin)
    (resumed,) = cut.glob("*-*")
    for table in ("summary", "images", "epochs", "split"):
        assert (resumed / f"{table}.csv").read_bytes() == (whole / f"{table}.csv").read_bytes()

    # Use of a finished run needs the plugin, records do not.
    assert "--plugin" in segexp_("evaluate", str(runs[0]), code=2)
    segexp_("evaluate", str(runs[0]), *with_plugin, "metrics.scores=[own_dice,volume_error]", "--split", "val")
    segexp_("evaluate", str(runs[0]), "--plugin", str(runs[0] / "plugins" / "parts" / "parts.py"))
    shown = segexp_("show", str(runs[0]))
    assert "dataset=cells" in shown
    assert "score_volume_error" in shown
    assert "relative volume error" in segexp_("compare", str(study), "--metric", "volume_error")
    segexp_("report", str(study), "--metric", "volume_error,dice", "-o", "page")
    segexp_("collect", str(study), "-o", "tables")
    segexp_("compare", "tables", "--metric", "volume_error")
    segexp_("diff", str(whole), str(resumed))
    segexp_("train", "--from", str(runs[0]), *with_plugin, "seed=5")
    assert len(list(study.glob("*/run.json"))) == 5
