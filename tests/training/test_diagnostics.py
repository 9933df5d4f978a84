"""Known cases of what the diagnostics tell: values by hand, units that die, gradients that vanish; and their cost."""

import csv
import functools
import json
import math
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tables, tiny_run, tiny_task
from torch import nn

from segexp.activations.hidden import make_hidden
from segexp.data.batches import batches_of, epoch_order
from segexp.models.swap import audit, swap_hidden
from segexp.models.trace import trace
from segexp.records import read_table
from segexp.training import diagnostics, loop
from segexp.training.diagnostics import (
    ActivationProbe,
    diagnostics_rows,
    sites_of,
    summarised,
    validation_rows,
    warnings_of,
)

SIZE = 16


def stack(depth: int, width: int = 8, norm: bool = False) -> Any:
    """A network of ``depth`` convolutions, each with a rectifier in place, and a last one without; weights for it."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for n in range(depth):
        layers.append(nn.Conv2d(1 if n == 0 else width, width, 3, padding=1))
        nn.init.kaiming_normal_(layers[-1].weight, nonlinearity="relu")  # type: ignore[arg-type]
        nn.init.zeros_(layers[-1].bias)  # type: ignore[arg-type]
        layers += [nn.BatchNorm2d(width)] if norm else []
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers, nn.Conv2d(width, 1, 1))


def with_hidden(network: nn.Module, name: str) -> list[diagnostics.Site]:
    """Swap, unless native, and give the call sites."""
    if name != "native":
        swap_hidden(network, name, functools.partial(make_hidden, name, {}), "both", 1, SIZE)
    return sites_of(audit(network, 1, SIZE)[1])


def looked(network: nn.Module, sites: list[diagnostics.Site], images: torch.Tensor) -> list[dict[str, Any]]:
    probe = ActivationProbe(network, sites)
    network.zero_grad(set_to_none=True)
    with probe.watching():
        network(images).square().mean().backward()
    probe.take_gradient_norms()
    return diagnostics_rows([probe], "run", "train", 1)


@pytest.mark.parametrize("name", ["native", "relu", "tanh", "prelu", "gelu"])
def test_values_are_those_computed_by_hand(name: str) -> None:
    network = stack(2)
    sites = with_hidden(network, name)
    with torch.no_grad():
        network[0].weight[3:5] = 0
        network[0].bias[3:5] = torch.tensor([-1.0, 0.0])
    images = torch.randn(3, 1, SIZE, SIZE)
    rows = looked(network, sites, images)
    assert [(row["site"], row["depth"], row["units"]) for row in rows] == [("1", 1, 8), ("3", 2, 8)]

    f = make_hidden("relu" if name == "native" else name, {})
    x = network[0](images).detach().requires_grad_()
    y = f(x)
    rest: Any = network
    rest[4](f(rest[2](y))).square().mean().backward()
    row = rows[0]
    assert row["mean"] == pytest.approx(float(y.detach().mean()), rel=1e-5)
    assert row["sd"] == pytest.approx(float(y.detach().std(correction=0)), rel=1e-4)
    assert row["dead_output"] == float((y == 0).all(dim=(0, 2, 3)).float().mean())
    assert x.grad is not None
    assert row["dead_gradient"] == float((x.grad == 0).all(dim=(0, 2, 3)).float().mean())
    assert row["grad_norm"] == pytest.approx(float(rest[0].weight.grad.norm()), rel=1e-5)
    # A unit whose input is 0 everywhere gives 0, whatever f is; below 0 only a rectifier does.
    assert row["dead_output"] == (2 / 8 if name in ("native", "relu") else 1 / 8)
    assert row["learned"] == ("weight=0.25" if name == "prelu" else "")


def test_saturation() -> None:
    """Of inputs spread evenly over [-10, 10]: beyond 3.0 tanh' is below a hundredth, beyond 0 relu' is."""
    x_PC = torch.linspace(-10, 10, 64 * 64)[:, None]
    tanh = 1 - math.atanh(math.sqrt(0.99)) / 10
    for name, share in (("tanh", tanh), ("relu", 0.5), ("identity", 0), ("mish", 0.195)):
        found = diagnostics._saturated({0: (make_hidden(name, {}), x_PC)})
        assert float(found[0]) == pytest.approx(share, abs=0.05), name
    # One function at several sites is evaluated once, and each site keeps its own share.
    relu, learned = nn.ReLU(inplace=True), make_hidden("prelu", {"init": 0.0})
    found = diagnostics._saturated({0: (relu, x_PC), 1: (relu, x_PC[:2048]), 2: (learned, x_PC), 3: (learned, x_PC)})
    assert [round(float(found[n]), 2) for n in range(4)] == [0.5, 1.0, 0.5, 0.5]
    assert x_PC.min() == -10


def test_batches_add_up() -> None:
    """All images at once, or in batches: the same look."""
    images = torch.randn(6, 1, SIZE, SIZE)
    masks = torch.zeros(6, SIZE, SIZE)
    found = []
    for cut in ([6], [4, 2]):
        network = stack(3)
        sites = with_hidden(network, "relu")
        batches = zip(images.split(cut), masks.split(cut), strict=True)
        loss = functools.partial(lambda net, x, m: net(x).square().mean(), network)
        found.append(validation_rows(network, sites, loss, batches, 6, "r", 3))
        assert not network.training
        assert all(p.grad is None for p in network.parameters())
    for one, other in zip(*found, strict=True):
        assert (one["probe"], one["epoch"]) == ("val", 3)
        assert {k: v for k, v in one.items() if not isinstance(v, float)} == {
            k: v for k, v in other.items() if not isinstance(v, float)
        }
        for name in diagnostics.VALUES:
            assert one[name] == pytest.approx(other[name], rel=1e-3, abs=0.02 if name == "saturated" else 1e-6), name


def test_a_unit_that_lives_on_one_image_is_alive() -> None:
    """Whichever batch that image is in."""
    bright, dark = torch.ones(2, 1, SIZE, SIZE), -torch.ones(2, 1, SIZE, SIZE)
    for order in ([bright, dark], [dark, bright], [dark, dark]):
        network = nn.Sequential(nn.Conv2d(1, 4, 1, bias=False), nn.ReLU(), nn.Conv2d(4, 1, 1))
        nn.init.ones_(network[0].weight)  # type: ignore[arg-type]
        sites = with_hidden(network, "relu")
        loss = functools.partial(lambda net, x, m: net(x).square().mean(), network)
        (row,) = validation_rows(network, sites, loss, [(x, x) for x in order], 4, "r", 1)
        assert row["dead_output"] == row["dead_gradient"] == float(order[0] is order[1])


def trained(hidden: str, lr: float) -> list[dict[str, Any]]:
    """A look after thirty steps of gradient descent towards another network's output."""
    network = stack(4, width=16)
    sites = with_hidden(network, hidden)
    optimizer = torch.optim.SGD(network.parameters(), lr=lr)
    images = torch.randn(8, 1, SIZE, SIZE)
    with torch.no_grad():
        target = stack(2)(images) - 1
    for _ in range(30):
        optimizer.zero_grad()
        (network(images) - target).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
    return looked(network, sites, images)


@pytest.mark.slow
def test_a_large_learning_rate_kills_rectifiers_and_not_leaky_ones() -> None:
    killed, leaky, slow = trained("relu", 10.0), trained("leaky_relu", 10.0), trained("relu", 0.01)
    assert summarised(killed)["dead_output"] > 0.3
    assert summarised(killed)["dead_gradient"] > 0.3
    assert summarised(leaky)["dead_output"] == summarised(leaky)["dead_gradient"] == 0
    assert summarised(slow)["dead_output"] < 0.1
    assert any("dead" in text for text in warnings_of(killed))
    assert not any("dead" in text for text in warnings_of(leaky))


def test_gradients_vanish_behind_sigmoids_without_normalisation() -> None:
    """Each of twelve layers takes a factor of at most 1/4 times the weights' share."""
    images = torch.randn(4, 1, SIZE, SIZE)
    ratios = {}
    for hidden in ("sigmoid", "relu", "identity"):
        network = stack(12)
        rows = looked(network, with_hidden(network, hidden), images)
        ratios[hidden] = summarised(rows)["gradient_ratio"]
        told = any("gradients vanish" in text for text in warnings_of(rows))
        assert told == (hidden == "sigmoid"), hidden
    assert ratios["sigmoid"] < 1e-4
    assert 1e-2 < ratios["relu"] < 1e2
    assert summarised(rows)["gradient_weakest"] == min(r["grad_norm"] for r in rows) / rows[-1]["grad_norm"]
    normed = stack(12, norm=True)
    rows = looked(normed, with_hidden(normed, "sigmoid"), images)
    assert summarised(rows)["gradient_ratio"] > 1e4 * ratios["sigmoid"]


def test_exploding_gradients_and_no_gradient_at_all_are_reported() -> None:
    images = torch.randn(2, 1, SIZE, SIZE)
    network = stack(10)
    sites = with_hidden(network, "identity")
    with torch.no_grad():
        for conv in (m for m in network.modules() if isinstance(m, nn.Conv2d)):
            conv.weight.mul_(1e-4 if conv.in_channels == 1 else 2)
    assert any("gradients explode" in text for text in warnings_of(looked(network, sites, images)))
    network = stack(2)
    sites = with_hidden(network, "relu")
    nn.init.constant_(network[4].weight, 0.0)
    assert any("no gradient" in text for text in warnings_of(looked(network, sites, images)))


def test_a_single_dead_call_site_is_told() -> None:
    """However wide the others are."""

    def row(site: str, units: int, dead: float, norm: float = 1.0) -> dict[str, Any]:
        known = {"site": site, "units": units, "dead_output": dead, "grad_norm": norm}
        return known | {"dead_gradient": 0.0, "saturated": 0.0}

    (told,) = warnings_of([row("wide", 512, 0.0), row("narrow", 16, 0.5)])
    assert all(part in told for part in ("1 of 2", "narrow (50%)", "2%", "0%"))
    assert warnings_of([row("wide", 512, 0.2), row("narrow", 16, 0.1)]) == []
    (told,) = warnings_of([row("a", 8, 0.0, math.inf), row("b", 8, 0.0, math.inf)])
    assert "not finite" in told


def test_a_look_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step looked at, or none: the same scores, byte for byte; rrelu draws random numbers besides."""
    found = []
    for name, every in (("all", 1), ("few", 1000)):
        monkeypatch.setattr(loop, "EVERY", every)
        outcome = tiny_run(tmp_path / name, "hidden_activation=rrelu", "trainer.epochs=1")
        assert outcome.status == "done"
        found.append(tables(outcome.run_dir))
    assert found[0].pop("diagnostics.csv") != found[1].pop("diagnostics.csv")
    assert found[0] == found[1]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    outcome = tiny_run(tmp_path_factory.mktemp("outputs"), "hidden_activation=rational", "optimizer.weight_decay=100")
    assert outcome.status == "done"
    return outcome.run_dir


def test_a_run_records_its_looks(finished: Path) -> None:
    table = read_table(finished / "diagnostics.csv", "diagnostics")
    record = json.loads((finished / "run.json").read_text())
    assert set(table["run_id"]) == {record["run_id"]}
    assert set(zip(table["probe"], table["epoch"], strict=True)) == {
        ("train", 1),
        ("val", record["summary"]["best_epoch"]),
    }
    assert set(table["part"]) == {"encoder", "decoder"}
    val = table[table["probe"] == "val"]
    assert list(val["depth"]) == list(range(1, record["swap_report"]["replaced"] + 1))
    assert val[list(diagnostics.VALUES)].notna().all(axis=None)
    with (finished / "diagnostics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["probe"] == "val"]
    units = [int(row["units"]) for row in rows]
    dead = sum(float(row["dead_output"]) * n for row, n in zip(rows, units, strict=True)) / sum(units)
    assert record["diagnostics"]["dead_output"] == pytest.approx(dead)


def test_learned_values_are_told_and_do_not_decay(finished: Path) -> None:
    """With a weight decay that takes every other weight to nothing, the coefficients stay near where they began."""
    table = read_table(finished / "diagnostics.csv", "diagnostics")
    last = table[table["probe"] == "val"]["learned"].iloc[-1]
    parts = dict(part.split("=") for part in last.split("; "))
    numerator = [float(v) for v in parts["numerator"].split()]
    assert list(parts) == ["numerator", "denominator"]
    assert numerator == pytest.approx([0.0448, 0.505, 1.2388, 1.1282, 0.3918, 0.048], abs=0.1)
    assert numerator != pytest.approx([0.0448, 0.505, 1.2388, 1.1282, 0.3918, 0.048], abs=1e-5)


def test_many_learned_values_are_summarised() -> None:
    module: Any = make_hidden("prelu_channel", {}, channels=64)
    module.weight.data[:32] = 0.75
    assert diagnostics.learned_values(module) == "weight: mean=0.5 sd=0.25 n=64"
    assert diagnostics.learned_values(make_hidden("prelu_channel", {}, channels=2)) == "weight=0.25 0.25"


@pytest.mark.parametrize("channel_dim", [1, -1])
def test_saturation_of_an_activation_that_depends_on_the_channel(channel_dim: int) -> None:
    """Written for images, or for channels in the last dimension: half the channels have no slope on the left."""

    class Slopes(nn.Module):
        slope: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("slope", torch.tensor([0.0, 0.0, 1.0, 1.0]))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.where(x > 0, x, x * (self.slope[:, None, None] if channel_dim == 1 else self.slope))

    x = torch.linspace(-1, 1, 64 * 64).reshape(1, 1, 64, 64).expand(2, 4, 64, 64).movedim(1, channel_dim)
    network: Any = nn.Sequential(Slopes(), Slopes())
    sites = [diagnostics.Site(name, 1, "encoder", name, 0, (), channel_dim) for name in ("0", "1")]
    probe = diagnostics.ActivationProbe(network.append(nn.PReLU()), sites)
    with probe.watching():
        network[1](network[0](x.clone()))
    saturated = probe.values()[:, diagnostics.VALUES.index("saturated")].tolist()
    # What the first gives, 0 and more in two channels, counts as the left side of the second.
    assert saturated == pytest.approx([0.25, 0.25], abs=0.02)


def test_one_module_under_two_names_of_its_parent() -> None:
    network, shared = stack(3), nn.ReLU()
    network[1] = network[3] = shared
    sites = sites_of(trace(network, 1, SIZE).applications)
    assert [(site.name, site.path, site.turn) for site in sites] == [("1.0", "1", 0), ("1.1", "1", 1), ("5", "5", 0)]
    rows = looked(network, sites, torch.randn(2, 1, SIZE, SIZE))
    assert rows[0]["mean"] != rows[1]["mean"]
    swap_hidden(network, "prelu", functools.partial(make_hidden, "prelu", {}), "both", 1, SIZE)
    report, again = audit(network, 1, SIZE)
    assert (report.replaced, report.escaped) == (3, {})
    assert [site.name for site in sites_of(again)] == ["1.0", "1.1", "5"]


@pytest.mark.slow
@pytest.mark.alone
def test_a_look_every_fifty_steps_costs_less_than_two_percent(tmp_path: Path) -> None:
    """Steps with and without a look, in turn; medians of one process."""
    prepared, task = tiny_task(
        tmp_path, "dataset.image_size=64", "trainer.batch_size=8", "hidden_activation=relu", "model.encoder_depth=5",
        "model.decoder_channels=[256,128,64,32,16]",
    )  # fmt: skip
    config, device = prepared.config, task.device
    state = loop.begin(config, task)
    order = batches_of(epoch_order(prepared.split["train"], 0, 1), 8)
    images, masks, _ = next(iter(task.batches(1, order)))
    measures = loop.StepMeasures(torch.zeros((), device=device))
    task.network.train()
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for number in range(40):
        looking = number % 2 == 0
        began = time.perf_counter()
        probe = ActivationProbe(task.network, task.sites) if looking else None
        loop.train_step(config, task, state, images, masks, measures, probe)
        if probe is not None:
            probe.values()
        seconds[looking].append(time.perf_counter() - began)
    with_look, without = (sorted(seconds[looking])[len(seconds[looking]) // 2] for looking in (True, False))
    assert diagnostics.EVERY <= 50
    assert (with_look - without) / without / diagnostics.EVERY < 0.02
