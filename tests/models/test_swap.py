"""Every hidden activation is replaced, gates stay, and what escapes is named: on networks of smp and small own ones."""

import copy
import functools
from collections.abc import Callable
from pathlib import Path

import pytest
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from messages import mentions
from torch import nn

from segexp.activations.hidden import HIDDEN_ACTIVATIONS, make_hidden, measured_gain
from segexp.errors import UsageError
from segexp.models.swap import CallSites, SwapReport, audit, check_closed, swap_hidden
from segexp.models.trace import trace
from segexp.registry import plugins

SIZE = 64


def unet(encoder: str, device: str = "meta") -> nn.Module:
    with torch.device(device):
        return smp.Unet(encoder, encoder_weights=None, in_channels=3, classes=1)


def swapped(network: nn.Module, name: str, scope: str = "both", channels: int = 3, size: int = SIZE) -> SwapReport:
    swap_hidden(network, name, functools.partial(make_hidden, name, {}), scope, channels, size)  # type: ignore[arg-type]
    return audit(network, channels, size)[0]


# What was measured on smp 0.6 and timm 1.0: modules that isinstance finds, call sites, and what it misses.
MEASURED = {
    "resnet34": {"modules": 27, "replaced": 43, "shared_split": 16, "functions": 0, "gates_kept": 0},
    "dpn68": {"modules": 82, "replaced": 85, "functions": 3, "gates_kept": 0},
    "timm-efficientnet-b0": {"replaced": 58, "gates_kept": 16, "functions": 0},
    "mobileone_s4": {"modules": 53, "replaced": 65, "functions": 12, "gates_kept": 12},
    "efficientnet-b0": {"modules": 27, "gates_kept": 16},
    "se_resnet50": {"modules": 43, "gates_kept": 16},
    "tu-convnext_atto": {"modules": 22, "gates_kept": 0},
}


@pytest.mark.filterwarnings("ignore:`timm-` encoders:DeprecationWarning")
@pytest.mark.parametrize("encoder", [pytest.param(e, marks=[pytest.mark.slow] * (e != "resnet34")) for e in MEASURED])
def test_the_swap_closes_with_the_numbers_that_were_measured(encoder: str) -> None:
    report = swapped(unet(encoder), "arctan")
    assert {name: getattr(report, name) for name in MEASURED[encoder]} == MEASURED[encoder]
    assert report.escaped == {}
    assert report.native == 0
    check_closed(report, encoder)


@pytest.mark.slow
def test_every_call_site_has_a_module_of_its_own() -> None:
    network = unet("resnet18", "cpu")
    report = swapped(network, "prelu")
    sites = [m for m in network.modules() if isinstance(m, nn.PReLU)]
    assert len(sites) == report.replaced == 27
    assert len({id(m.weight) for m in sites}) == 27
    network(torch.randn(2, 3, SIZE, SIZE)).square().sum().backward()
    assert all(m.weight.grad is not None for m in sites)
    assert not any(isinstance(m, nn.ReLU) for m in network.modules())


@pytest.mark.parametrize(("scope", "replaced", "native"), [("both", 27, 0), ("encoder", 17, 10), ("decoder", 10, 17)])
def test_scope(scope: str, replaced: int, native: int) -> None:
    network = unet("resnet18")
    report = swapped(network, "gelu", scope)
    assert (report.replaced, report.native, report.escaped) == (replaced, native, {})
    for part in ("encoder", "decoder"):
        found = any(isinstance(m, CallSites) for m in network.get_submodule(part).modules())
        assert found == (scope in ("both", part))


def test_copies_are_their_own_network() -> None:
    network = Network(nn.Sequential(Bare(F.relu), nn.ReLU())).eval()
    swapped(network, "prelu")
    images = torch.randn(1, 3, SIZE, SIZE)
    before = network(images)
    other = copy.deepcopy(network)
    with torch.no_grad():
        for module in other.modules():
            if isinstance(module, nn.PReLU):
                module.weight.fill_(-3.0)
    assert torch.equal(network(images), before)
    assert not torch.allclose(other(images), before)


def test_a_pass_that_was_broken_off_leaves_no_call_site_out_of_step() -> None:
    network = unet("resnet18", "cpu").eval()
    swapped(network, "prelu")
    with torch.no_grad():
        for number, module in enumerate(m for m in network.modules() if isinstance(m, nn.PReLU)):
            module.weight.fill_(number / 30)
    images = torch.randn(1, 3, SIZE, SIZE)
    before = network(images)
    block = network.get_submodule("encoder.layer2.1")
    broken = block.get_submodule("conv2").register_forward_pre_hook(lambda module, inputs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        network(images)
    assert block.relu.turn == 1  # type: ignore[union-attr]
    broken.remove()
    assert torch.equal(network(images), before)


# Own networks: an encoder and a decoder, each one layer and what it applies.


class Network(nn.Module):
    """``apply`` is what the encoder does with the layer's output."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(4, 1, 1))

    def forward(self, images_NCHW: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.encoder(images_NCHW))


class Bare(nn.Module):
    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(self.conv(x))


def ignoring_the_result(x: torch.Tensor) -> torch.Tensor:
    x.relu_()
    return x


def twice(x: torch.Tensor) -> torch.Tensor:
    return F.relu(x) - F.relu(-x, inplace=True)


def swish_in_place(x: torch.Tensor) -> torch.Tensor:
    return x.mul_(x.sigmoid())


FUNCTIONS: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], int]] = {
    "F.relu": (F.relu, 1),
    "F.relu in place by position": (lambda x: F.relu(x, True), 1),
    "torch.relu": (torch.relu, 1),
    "Tensor.relu_": (lambda x: x.relu_(), 1),
    "its result ignored": (ignoring_the_result, 1),
    "twice": (twice, 2),
    "F.leaky_relu": (lambda x: F.leaky_relu(x, 0.2), 1),
    "F.elu in place by position, its result ignored": (lambda x: (F.elu(x, 1.0, True), x)[1], 1),
    "x * sigmoid(x)": (lambda x: x * torch.sigmoid(x), 1),
    "x.mul_(sigmoid)": (swish_in_place, 1),
}


@pytest.mark.parametrize("written", FUNCTIONS)
def test_functions_are_replaced_however_they_are_written(written: str) -> None:
    function, number = FUNCTIONS[written]
    network = Network(Bare(function))
    report = swapped(network, "tanh")
    assert (report.functions, report.replaced, report.escaped) == (number, number + 1, {})
    assert report.gates_kept == 0
    x = torch.randn(2, 3, SIZE, SIZE)
    z = network.encoder.conv(x)  # type: ignore[operator]
    expected = torch.tanh(z) - torch.tanh(-z) if written == "twice" else torch.tanh(z)
    assert torch.allclose(network.encoder(x), expected)
    network(x).sum().backward()
    assert network.encoder.conv.weight.grad is not None  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["relu", "tanh"])
def test_the_result_of_a_function_may_be_changed_in_place(name: str) -> None:
    """timm's dm_nfnet scales gelu's, which keeps its input; these keep their result for the backward pass."""
    network = Network(Bare(lambda x: F.gelu(x).mul_(2)))
    swapped(network, name)
    network(torch.randn(2, 3, SIZE, SIZE)).sum().backward()
    assert network.encoder.conv.weight.grad is not None  # type: ignore[union-attr]


ESCAPES: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], str]] = {
    "mish written out": (lambda x: x * torch.tanh(F.softplus(x)), "softplus"),
    "hard swish written out": (lambda x: x * F.relu6(x + 3) / 6, "hardtanh"),
    "a clamp": (lambda x: x.clamp(min=0), "clamp"),
    "relu6 as a clamp": (lambda x: x.clamp(0, 6), "clamp"),
    "quick gelu": (lambda x: x * torch.sigmoid(1.702 * x), "sigmoid and mul"),
    "swish of a multiple": (lambda x: torch.sigmoid(x * 2 + 1) * x, "sigmoid and mul"),
    "sigmoid": (torch.sigmoid, "sigmoid"),
    "hard sigmoid": (F.hardsigmoid, "hardsigmoid"),
    "tanh": (torch.tanh, "tanh"),
    "prelu": (lambda x: F.prelu(x, torch.full((1,), 0.1, device=x.device)), "prelu"),
}


@pytest.mark.parametrize("written", ESCAPES)
def test_what_cannot_be_replaced_is_named(written: str) -> None:
    """No silent half-swap, and none that puts an activation into the middle of another one."""
    function, operator = ESCAPES[written]
    network = Network(Bare(function))
    report = swapped(network, "gelu")
    assert any(operator in where and "Bare (encoder)" in where for where in report.escaped), report.escaped
    with pytest.raises(UsageError, match=rf"hidden_activation=gelu .*mine.*{operator}.*hidden_activation=native"):
        check_closed(report, "mine")
    assert swapped(Network(Bare(function)), "gelu", "decoder").escaped == {}


KEPT: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "squeeze and excitation": lambda x: x * x.mean((2, 3), keepdim=True).sigmoid(),
    "hard gate": lambda x: x * F.hardsigmoid(x.mean((2, 3), keepdim=True)),
    "gate of another layer, turned round": lambda x: x * (1 - x.mean((2, 3), keepdim=True).sigmoid()).expand_as(x),
    "attention over tokens": lambda x: (x.flatten(2).softmax(1).transpose(1, 2) @ x.flatten(2)).mean() + x,
    "attention": lambda x: torch.softmax(x.flatten(2), -1).view_as(x) * x,
    "numbers kept valid": lambda x: x / x.norm(dim=1, keepdim=True).clamp(min=1e-6),
    "position code": lambda x: x + torch.sin(torch.arange(SIZE, device=x.device)),
}


@pytest.mark.parametrize("written", KEPT)
def test_gates_and_arithmetic_stay(written: str) -> None:
    torch.manual_seed(0)
    encoder = Bare(KEPT[written])
    network, x = Network(encoder), torch.randn(2, 3, SIZE, SIZE)
    before = network.encoder(x)
    report = swapped(network, "relu")
    assert report.escaped == {}
    assert report.functions == 0
    assert report.gates_kept == (0 if written in ("numbers kept valid", "position code") else 1)
    assert torch.equal(network.encoder(x), before)


def test_swish_of_a_gate_module_is_no_gate() -> None:
    class Swish(Bare):
        def __init__(self) -> None:
            super().__init__(lambda x: x)
            self.gate = nn.Sigmoid()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.conv(x)
            return x * self.gate(x)

    report = swapped(Network(Swish()), "relu")
    (escaped,) = report.escaped
    assert mentions(escaped, "sigmoid", "mul", "Sigmoid", "encoder.gate")


def test_one_module_in_several_places() -> None:
    """Each place gets its own, and each of several calls at one place."""
    shared = nn.ReLU(inplace=True)

    class Block(Bare):
        def __init__(self, function: Callable[[torch.Tensor], torch.Tensor], channels: int) -> None:
            super().__init__(function)
            self.conv = nn.Conv2d(channels, 4, 3, padding=1)
            self.act = shared

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.act(self.function(self.act(self.conv(x))))

    network = Network(nn.Sequential(Block(lambda x: x + 1, 3), Block(F.relu, 4)))
    report = swapped(network, "prelu")
    assert (report.replaced, report.functions, report.shared_split, report.escaped) == (6, 1, 1, {})
    assert sum(isinstance(m, nn.PReLU) for m in network.modules()) == 6
    names = [a.module for a in trace(network, 3, SIZE).applications]
    assert names == ["encoder.0.act"] * 2 + ["encoder.1.act", "encoder.1.hidden_calls", "encoder.1.act", "decoder.1"]


@pytest.mark.parametrize("encoder", ["resnet18", "tu-test_convnext", pytest.param("mit_b0", marks=pytest.mark.slow)])
def test_call_sites_have_a_slope_per_channel_of_their_own(encoder: str) -> None:
    """As many as the layers before them give, also in tokens and in (N, H, W, C)."""
    network = unet(encoder, "cpu" if encoder == "mit_b0" else "meta")
    assert swapped(network, "prelu_channel").escaped == {}
    for site in audit(network, 3, SIZE)[1]:
        slopes: torch.Tensor = network.get_submodule(f"{site.module}.{site.turn}").weight  # type: ignore[assignment]
        given = {len(network.get_submodule(f.layer).weight) for f in site.feeds}  # type: ignore[arg-type]
        assert {site.channels} == {len(slopes)} == given


def test_the_users_class_gets_the_channels_of_its_call_site(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "from segexp.plugin import hidden_activation\n"
        "@hidden_activation\n"
        "class Shifted(torch.nn.Module):\n"
        "    def __init__(self, channels, *, channel_dim, start: float = 0.5):\n"
        "        super().__init__()\n"
        "        shape = (channels,) if channel_dim == -1 else (channels, 1, 1)\n"
        "        self.shift = torch.nn.Parameter(torch.full(shape, start))\n"
        "    def forward(self, x):\n"
        "        return (x - self.shift).relu()\n"
        "@hidden_activation\n"
        "def leaning(channels):\n"
        "    return torch.nn.PReLU(channels)\n"
    )
    plugins.use([tmp_path / "mine.py"])
    try:
        assert [option.name for option in HIDDEN_ACTIVATIONS["shifted"].options] == ["scope", "start"]
        network = unet("tu-test_convnext")
        assert swapped(network, "shifted").escaped == {}
        sites = audit(network, 3, SIZE)[1]
        for site in sites:
            shape = network.get_submodule(f"{site.module}.0").shift.shape
            assert shape == ((site.channels,) if site.channel_dim == -1 else (site.channels, 1, 1))
        assert make_hidden("leaning", {}, channels=7).num_parameters == 7
        # Without a call site, it takes one channel.
        assert measured_gain(make_hidden("shifted", {"start": 0.0})) == pytest.approx(2**0.5)
    finally:
        plugins.use([])


def test_one_module_for_places_of_several_widths() -> None:
    """A shared rectifier, called as a module and as a function, after layers of 4 and 6 channels and on tokens."""

    class Widths(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.wide, self.out = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 6, 1), nn.Linear(6, 4)
            self.act = nn.ReLU()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = F.relu(self.wide(self.act(self.conv(x))))
            x = F.relu(self.out(self.act(x).permute(0, 2, 3, 1)))
            return x.permute(0, 3, 1, 2)

    network = Network(Widths())
    assert swapped(network, "prelu_channel").escaped == {}
    shapes = {name: p.shape[0] for name, p in network.encoder.named_parameters() if "act" in name or "calls" in name}
    assert shapes == {"act.0.weight": 4, "act.1.weight": 6, "hidden_calls.0.weight": 6, "hidden_calls.1.weight": 4}
    images = torch.randn(2, 3, SIZE, SIZE)
    network(images).square().sum().backward()
    assert all(p.grad is not None for p in network.parameters())
    # At another size of the images, and rebuilt.
    network(images[..., :20])
    again = Network(Widths())
    swapped(again, "prelu_channel", size=32)
    again.load_state_dict(network.state_dict())
    assert torch.equal(again(images), network(images))


def test_a_call_site_that_comes_back_is_found() -> None:
    """The audit looks at what runs: a module put back, and a call site that is called once more."""
    network = Network(Bare(F.relu))
    assert swapped(network, "mish").escaped == {}
    network.decoder[1] = nn.ReLU()
    assert list(audit(network, 3, SIZE)[0].escaped) == ["relu in ReLU (decoder.1)"]
    again = Network(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()))
    swapped(again, "mish")
    again.encoder.append(again.encoder[1])  # type: ignore[operator, index]
    again.encoder[2] = CallSites(nn.Mish() for _ in range(3))  # type: ignore[operator]
    (escaped,) = audit(again, 3, SIZE)[0].escaped
    assert mentions(escaped, "1 calls", "3 call sites", "encoder.2")


def test_another_way_in_evaluation_is_audited_too() -> None:
    class TwoWays(Bare):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.conv(x)
            return x if self.training else x.relu()

    (escaped,) = swapped(Network(TwoWays(F.relu)), "mish").escaped
    assert mentions(escaped, "relu", "TwoWays", "encoder")


def test_layers_that_feed_a_call_site() -> None:
    """Followed through sums, norms and pooling, up to the activation before."""
    network = unet("resnet18")
    report, sites = audit(network, 3, SIZE)
    assert (report.activation, report.replaced, report.native, report.escaped) == ("native", 0, 27, {})
    assert len(sites) == 27
    feeds = {site.module: site.feeds for site in sites}
    assert [(f.layer, f.normalised) for f in feeds["encoder.relu"]] == [("encoder.conv1", True)]
    residual = [site for site in sites if site.module == "encoder.layer2.0.relu"][1]
    assert {f.layer for f in residual.feeds} == {"encoder.layer2.0.conv2", "encoder.layer2.0.downsample.0"}
    _, plain = audit(unet("vgg11"), 3, SIZE)
    assert [f.normalised for site in plain for f in site.feeds] == [False] * 8 + [True] * 12
    assert {site.channel_dim for site in plain} == {1}


def test_units_of_linear_layers_are_in_the_last_dimension() -> None:
    network = smp.Unet("mit_b0", encoder_weights=None, in_channels=3, classes=1)
    sites = audit(network, 3, SIZE)[1]
    assert {s.channel_dim for s in sites if s.module.startswith("encoder")} == {-1}  # tokens
    assert {s.channel_dim for s in sites if s.module.startswith("decoder")} == {1}
    maps = audit(unet("tu-test_convnext"), 3, SIZE)[1]  # (N, H, W, C)
    assert {s.channel_dim for s in maps if s.module.startswith("encoder")} == {-1}
