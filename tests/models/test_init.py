"""First weights of hidden layers: scaled and biased where no normalisation follows, and nowhere else."""

import copy
import functools
import math
from typing import Any
from unittest import mock

import pytest
import torch

import segexp
from segexp.activations.hidden import HIDDEN_ACTIVATIONS, HiddenActivation, pointwise
from segexp.models.architectures import BackboneConfig, InitConfig
from segexp.models.build import Built, build_with_hidden, init_sha, initialise, learned_parameters
from segexp.models.swap import audit, swap_hidden

OPTIONS: dict[str, Any] = {
    "encoder_depth": 5, "decoder_channels": [32, 16, 16, 8, 8], "decoder_attention_type": "none",
}  # fmt: skip


class Narrow(torch.nn.Linear):
    """What a VGG of torchvision gets in place of its classifier: 120 million weights, thrown away by smp."""

    def __init__(self, *sizes: int, **options: Any) -> None:
        super().__init__(1, 1)


@functools.cache
def built(
    hidden: str, gain: str = "auto", bias: float = 0.0, encoder: str = "vgg11", scope: str = "both", **backbone: Any
) -> Built:
    with mock.patch("torchvision.models.vgg.nn.Linear", Narrow):
        return build_with_hidden(
            ("unet", OPTIONS),
            BackboneConfig(encoder, **{"weights": None, **backbone}),
            (hidden, {"scope": scope}),
            InitConfig(gain, bias),
            in_channels=1,
            out_channels=1,
            size=64,
            seed=0,
        )


def weights(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in network.named_parameters()}


@pytest.fixture(scope="module")
def native() -> dict[str, torch.Tensor]:
    return weights(built("native").network)


@pytest.mark.parametrize(
    ("hidden", "gain"),
    [
        ("tanh", 1.5925),
        pytest.param("sigmoid", 1.8462, marks=pytest.mark.slow),
        pytest.param("identity", 1.0, marks=pytest.mark.slow),
    ],
)
def test_layers_without_normalisation_have_the_gain_of_the_activation(
    hidden: str, gain: float, native: dict[str, torch.Tensor]
) -> None:
    """Of a VGG without batch norm: its eight convolutions; those of the decoder are normalised."""
    made = built(hidden)
    for name, weight in weights(made.network).items():
        layer = made.network.get_submodule(name.rpartition(".")[0])
        hidden_conv = name.startswith("encoder.features") and isinstance(layer, torch.nn.Conv2d)
        factor = gain / math.sqrt(2) if hidden_conv and name.endswith("weight") else 1.0
        assert torch.allclose(weight, native[name] * factor, rtol=1e-4), name
    record = made.init
    assert record["gain_value"] == pytest.approx(gain, abs=1e-4)
    assert (record["layers_scaled"], record["layers_without_normalisation"]) == (8, 8)
    assert record["layers_with_normalisation"] == 12


@pytest.mark.slow
def test_a_rectifier_and_the_gain_of_the_rectifier_leave_the_weights(native: dict[str, torch.Tensor]) -> None:
    """And layers that feed no replacement: those of the encoder where only the decoder is in the scope."""
    for made in (built("relu"), built("tanh", gain="relu"), built("native"), built("tanh", scope="decoder")):
        assert all(torch.equal(weight, native[name]) for name, weight in weights(made.network).items())
        assert made.init["layers_scaled"] == 0
    assert built("relu").init["gain_value"] == pytest.approx(math.sqrt(2), abs=1e-6)
    assert built("tanh", gain="relu").init["gain_value"] == math.sqrt(2)
    assert built("native").init["gain_value"] is None


def test_bias(native: dict[str, torch.Tensor]) -> None:
    for hidden in ("native", "relu"):
        made = built(hidden, bias=0.1)
        assert made.init["layers_biased"] == 8
        for name, value in weights(made.network).items():
            layer = made.network.get_submodule(name.rpartition(".")[0])
            if name.startswith("encoder.features") and name.endswith("bias") and isinstance(layer, torch.nn.Conv2d):
                assert torch.equal(value, torch.full_like(value, 0.1))
            else:
                assert torch.equal(value, native[name])


def test_a_fixed_filter_is_no_layer() -> None:
    """Blurs between layers have no weights to scale, and pass on what came in."""
    made = built("tanh", encoder="tu-resnetblur18", bias=0.1)
    assert (made.init["layers_scaled"], made.init["layers_biased"], made.report.escaped) == (0, 0, {})


def test_a_layer_with_and_without_normalisation_is_one_without() -> None:
    class Both(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = torch.nn.Conv2d(1, 4, 1), torch.nn.BatchNorm2d(4)
            self.one, self.other = torch.nn.ReLU(), torch.nn.ReLU()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.conv(x)
            return self.one(x) + self.other(self.norm(x))

    network = Both()
    before = network.conv.weight.detach().clone()
    swap_hidden(network, "tanh", lambda **site: torch.nn.Tanh(), "both", 1, 8)
    record = initialise(network, audit(network, 1, 8)[1], InitConfig("auto", 0.0), 2.0)
    assert (record["layers_scaled"], record["layers_without_normalisation"]) == (1, 1)
    assert torch.allclose(network.conv.weight, before * 2 / math.sqrt(2))


def test_normalised_networks_begin_with_equal_weights() -> None:
    """Whatever the activation: only then are runs paired. (Of runs: tests/running/test_hidden_runs.py.)"""
    shas = {name: init_sha(built(name, encoder="resnet18").network) for name in ("native", "prelu")}
    assert len(set(shas.values())) == 1
    assert init_sha(built("tanh").network) != init_sha(built("native").network)


def test_pretrained_weights_stay(tmp_path: Any, native: dict[str, torch.Tensor]) -> None:
    donor = copy.deepcopy(built("native").network.encoder)
    assert isinstance(donor, torch.nn.Module)
    with torch.no_grad():
        for p in donor.parameters():
            p.add_(0.5)
    torch.save(donor.state_dict(), tmp_path / "vgg.pt")
    made = built("tanh", bias=0.1, weights=str(tmp_path / "vgg.pt"), allow_mismatched_weights=True)
    encoder = made.network.encoder
    assert isinstance(encoder, torch.nn.Module)
    assert all(torch.equal(a, b) for a, b in zip(encoder.parameters(), donor.parameters(), strict=True))
    assert (made.init["layers_scaled"], made.init["layers_biased"]) == (0, 0)
    assert any("mismatched weights" in warning for warning in made.warnings)


def test_variance_is_kept_through_the_layers() -> None:
    """What the gain is for: E f(z)^2 stays 1 from layer to layer, and with the wrong gain it does not."""
    torch.manual_seed(0)

    def last_square(name: str, gain: float) -> float:
        f = segexp.hidden_activation(name)
        x = torch.randn(256, 512)
        for _ in range(20):
            x = f(x) @ (torch.randn(512, 512) * gain / math.sqrt(512))
        return float(f(x).square().mean())

    from segexp.activations.hidden import HIDDEN_ACTIVATIONS

    for name in ("tanh", "softsign", "erf"):
        gain = HIDDEN_ACTIVATIONS[name].gain
        assert last_square(name, gain) == pytest.approx(1 / gain**2, rel=0.1), name
    assert last_square("softsign", math.sqrt(2)) < 0.5 / HIDDEN_ACTIVATIONS["softsign"].gain ** 2


@pytest.mark.slow
def test_selu_with_batch_norm_is_labelled() -> None:
    for scope, labelled in (("encoder", False), ("both", True)):
        made = built("selu", scope=scope)
        assert any("self-normalising" in warning for warning in made.warnings) == labelled
    assert built("tanh").warnings == ()


@pytest.mark.slow
def test_parameters_that_start_at_random_come_from_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each call site draws its own; a network built again has the same, and no other random numbers change."""
    drawn = HiddenActivation("drawn", lambda: pointwise(lambda x, a: a * x, a=1 + float(torch.rand(()))), "a x")
    monkeypatch.setitem(HIDDEN_ACTIVATIONS, "drawn", drawn)
    before = torch.random.get_rng_state()
    first, again = (learned_parameters(built.__wrapped__("drawn", encoder="resnet18").network) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert len({float(p.detach()) for p in first}) == len(first) > 20
    assert first == again
