"""The swap of hidden activations in every encoder: the table of what it finds, and that it changes nothing else."""

import copy
import functools
import itertools
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from segexp.activations.hidden import make_hidden
from segexp.commands.list import listed
from segexp.models.architectures import (
    ARCHITECTURES,
    BackboneConfig,
    buildable,
    common_size,
    encoder_names,
    swap_closes,
    swapped,
)
from segexp.models.build import build_network
from segexp.models.swap import CallSites, audit, swap_hidden


@pytest.fixture
def script(repository: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(repository / "scripts"))
    import audit_encoders

    return audit_encoders


# The table


def test_the_table_is_of_every_encoder_of_smp_many_of_timm_and_every_architecture(script: ModuleType) -> None:
    assert [(row["model"], row["encoder"]) for row in swapped()] == script.pairs()
    encoders = {row["encoder"] for row in swapped()}
    assert {name for name in encoders if not name.startswith("tu-")} == set(encoder_names())
    assert set(buildable()) <= encoders
    assert {row["model"] for row in swapped()} == set(ARCHITECTURES)


def test_every_encoder_of_smp_closes_and_the_table_can_say_otherwise() -> None:
    assert [name for name in encoder_names() if not swap_closes(name)] == []
    assert swap_closes("tu-resnetv2_50d_evos") is False
    assert swap_closes("tu-none") is None


def test_each_call_site_has_a_weight_of_its_own() -> None:
    """The table is of prelu; a module that is never called has one weight."""
    for row in swapped():
        if not row["escaped"]:
            assert int(row["weights"]) == int(row["call_sites"]) + int(row["unreached"]), row
        assert int(row["call_sites"]) >= int(row["functions"])


def test_the_page_is_that_of_the_table(script: ModuleType, repository: Path) -> None:
    page = (repository / "docs" / "encoders.md").read_text(encoding="utf-8")
    rows = list(swapped())
    assert page == script.page(rows)
    assert page.count("\n| ") == len(rows) + 2
    assert page != script.page([{**rows[0], "escaped": "1 x tanh in Odd"}, *rows[1:]])


def test_backbones_say_whether_their_activations_can_be_replaced() -> None:
    replaced = {row["name"]: row["hidden_activations_replaced"] for row in listed("backbones")}
    assert replaced == {name: swap_closes(name) for name in replaced}
    assert all(replaced[name] for name in encoder_names())
    assert None not in replaced.values()


TIMM = (
    "tu-convnext_atto", "tu-resnet34", "tu-efficientnet_b0", "tu-mobilenetv3_small_100", "tu-regnety_002",
    "tu-edgenext_xx_small", "tu-repvgg_a0", "tu-ghostnet_100", "tu-swin_tiny_patch4_window7_224", "tu-efficientvit_b0",
    "tu-caformer_s18", "tu-dm_nfnet_f0", "tu-xception41", "tu-resnetv2_50d_evos", "tu-resnetv2_50d_frn",
)  # fmt: skip


SMALL = [name for _, family in itertools.groupby(encoder_names(), lambda name: re.split(r"[-_]?[a-z]?\d", name)[0])
         for name in [*family][:2]]  # fmt: skip
"""Of each family of smp the first two encoders; the others repeat their blocks more often."""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("part", range(8))
def test_the_table_can_be_measured_again(script: ModuleType, part: int) -> None:
    """`SMALL`, `TIMM` and every architecture; for the whole table: --check of the script."""
    some = [row for row in swapped() if row["encoder"] in (*SMALL, *TIMM) or row["model"] == "dpt"]
    assert {row["model"] for row in some} == {*ARCHITECTURES}
    for row in some[part::8]:
        assert script.row(row["model"], row["encoder"]) == dict(row)


# What the swap must not lose, and what must not count as a gate


class Net(torch.nn.Module):
    """An encoder of one convolution and ``after``."""

    def __init__(self, after: torch.nn.Module) -> None:
        super().__init__()
        self.encoder = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), after)

    def forward(self, images_NCHW: torch.Tensor) -> torch.Tensor:
        return self.encoder(images_NCHW)


def swap(network: torch.nn.Module, name: str, scope: Any = "both", size: int = 8) -> None:
    swap_hidden(network, name, functools.partial(make_hidden, name, {}), scope, 3, size)


def test_hooks_of_a_replaced_activation_go_on() -> None:
    """Encoders of timm read feature maps by hooks on activations: xception, nasnet, pnasnet."""
    network, seen = Net(torch.nn.ReLU()), []
    network.encoder[1].register_forward_hook(lambda module, inputs, output: seen.append(("after", output)))
    network.encoder[1].register_forward_pre_hook(lambda module, inputs: seen.append(("before", inputs[0])))
    handle = network.encoder[1].register_forward_hook(lambda *_, **words: seen.append(("removed", 0)), with_kwargs=True)
    swap(network, "identity")
    seen.clear()
    handle.remove()
    output = copy.deepcopy(network)(torch.ones(1, 3, 2, 2))
    assert [name for name, _ in seen] == ["before", "after"]
    assert all(torch.equal(tensor, output) for _, tensor in seen)


@pytest.mark.parametrize(("name", "told"), [
    ("EvoNorm2dS0", {"sigmoid and mul in EvoNorm2dS0 (encoder.1)": 1}),
    ("EvoNorm2dB0", {"maximum in EvoNorm2dB0 (encoder.1)": 1}),
    ("FilterResponseNormTlu2d", {"maximum in FilterResponseNormTlu2d (encoder.1)": 1}),
])  # fmt: skip
def test_an_activation_inside_a_normalisation_escapes(name: str, told: dict[str, int]) -> None:
    import timm.layers

    network = Net(getattr(timm.layers, name)(4, **({"group_size": 4} if name.endswith("S0") else {})))
    swap(network, "mish")
    assert audit(network, 3, 8)[0].escaped == told


# A network's own function, put in by us, gives the network itself

EXACT = {
    "relu": (
        "resnet18", "vgg11_bn", "densenet121", "dpn68", "se_resnet50", "inceptionresnetv2", "inceptionv4", "xception",
        "timm-skresnet18", "mobileone_s0", "mobileone_s4", "tu-xception41", "tu-nf_resnet50", "tu-dla34",
        "tu-hrnet_w18_small",
    ),
    "relu6": ("mobilenet_v2", "timm-tf_efficientnet_lite0", "tu-starnet_s1"),
    "silu": ("efficientnet-b0", "timm-efficientnet-b0", "tu-eca_nfnet_l0"),
    "gelu": ("mit_b0", "tu-convnext_atto", "tu-poolformer_s12"),
    "hardswish": ("tu-efficientvit_b0",),
}  # fmt: skip
"""Function -> encoders whose hidden activations are all this one."""

WRITTEN_OUT = ("timm-efficientnet-b0",)
"""x * sigmoid(x) is rounded twice; in float32 batch norm of a few pixels makes that visible in gradients."""


def native(model: str, encoder: str, **changed: Any) -> torch.nn.Module:
    """With random weights, none of them 0: branches that begin switched off would hide what they compute."""
    options = {**ARCHITECTURES[model].defaults, **changed}
    network = build_network(model, options, BackboneConfig(encoder, None), 3, 2, 0)
    torch.manual_seed(1)
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.5)
    return network


def passed(
    network: torch.nn.Module, training: bool, size: int = 64, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Logits; gradients, and running statistics afterwards."""
    network = copy.deepcopy(network).to(dtype).train(training)
    torch.manual_seed(2)
    logits_NKHW = network(torch.randn(2, 3, size, size).to(dtype))
    logits_NKHW.square().mean().backward()
    found = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    return logits_NKHW.detach(), found | dict(network.named_buffers())


def check_same(network: torch.nn.Module, name: str, scope: str, size: int = 64, *, rounded: bool = False) -> None:
    """In evaluation and in training, in place or not, in whatever order and under whatever seed of dropout."""
    dtype = torch.float64 if rounded else torch.float32
    wanted = [passed(network, training, size, dtype) for training in (False, True)]
    swap(network, name, scope, size)
    assert any(isinstance(module, CallSites) for module in network.modules())
    for training, (native_logits_NKHW, native_found) in zip((False, True), wanted, strict=True):
        logits_NKHW, found = passed(network, training, size, dtype)
        assert logits_NKHW.isfinite().all()
        assert found.keys() == native_found.keys()
        if rounded:
            first = next(iter(found))
            assert distance(logits_NKHW, native_logits_NKHW) <= 1e-9
            assert distance(found[first], native_found[first]) <= 1e-9
        else:
            assert torch.equal(logits_NKHW, native_logits_NKHW)
            assert [key for key, tensor in found.items() if not torch.equal(tensor, native_found[key])] == []


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


@pytest.mark.filterwarnings("ignore:.timm-. encoders are deprecated:DeprecationWarning")
@pytest.mark.parametrize(("name", "encoder"), [
    pytest.param(name, encoder, marks=[pytest.mark.slow] * (encoder != "resnet18"))
    for name in EXACT for encoder in EXACT[name]
])  # fmt: skip
def test_the_encoders_own_function_gives_the_encoders_own_network(name: str, encoder: str) -> None:
    check_same(native("unet", encoder), name, "encoder", rounded=encoder in WRITTEN_OUT)


@pytest.mark.slow
@pytest.mark.parametrize("model", ARCHITECTURES)
def test_relu_gives_the_decoders_own_network(model: str) -> None:
    """All decoders have relu alone, but for the class token of dpt."""
    encoder = "tu-vit_tiny_patch16_224" if model == "dpt" else "resnet18"
    changed = {"decoder_readout": "add"} if model == "dpt" else {}
    size = common_size(model, ARCHITECTURES[model].defaults, encoder)
    check_same(native(model, encoder, **changed), "relu", "decoder", size)


@pytest.mark.slow
def test_another_function_gives_another_network() -> None:
    network = native("unet", "resnet18")
    with pytest.raises(AssertionError, match="equal"):
        check_same(network, "leaky_relu", "encoder")
