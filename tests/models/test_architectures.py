"""Every architecture builds, trains and says truthfully what it takes; what it does not take is refused in one line."""

import csv
import functools
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from segexp.errors import UsageError
from segexp.models.architectures import (
    ARCHITECTURES,
    BUILDABLE,
    IN_CHANNELS,
    BackboneConfig,
    buildable,
    check_model,
    check_size,
    encoder_names,
    min_size,
)
from segexp.models.build import build_network, check_forward, final_layer, init_sha
from segexp.registry import Option

NARROW: dict[str, dict[str, Any]] = {
    "unet": {"decoder_channels": [16, 8, 8, 8, 8]},
    "unetplusplus": {"decoder_channels": [16, 8, 8, 8, 8]},
    "manet": {"decoder_channels": [16, 8, 8, 8, 8], "decoder_pab_channels": 8},
    "linknet": {},
    "fpn": {"decoder_pyramid_channels": 8, "decoder_segmentation_channels": 32},
    "pspnet": {"psp_out_channels": 8},
    "pan": {"decoder_channels": 8},
    "deeplabv3": {"decoder_channels": 8},
    "deeplabv3plus": {"decoder_channels": 8},
    "upernet": {"decoder_channels": 8},
    "segformer": {"decoder_segmentation_channels": 8},
    "dpt": {"decoder_intermediate_channels": [8, 8, 8, 8], "decoder_fusion_channels": 8},
}
"""Options that make the decoder small."""

VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((name, {"encoder_depth": d, "decoder_channels": [8] * d}) for name in ("unet", "unetplusplus", "manet")
      for d in (3, 4)),
    *((name, {"encoder_depth": depth}) for name in ("linknet", "upernet", "segformer") for depth in (3, 4)),
    ("pspnet", {"encoder_depth": 4}), ("pspnet", {"encoder_depth": 5}),
    ("unet", {"decoder_channels": [16] * 5, "decoder_attention_type": "scse"}),
    ("unetplusplus", {"decoder_channels": [16] * 5, "decoder_attention_type": "scse"}),
    ("fpn", {"decoder_merge_policy": "cat"}), ("pan", {"encoder_output_stride": 32}),
    ("deeplabv3", {"encoder_output_stride": 16, "decoder_atrous_rates": [2, 4, 6]}),
    ("deeplabv3plus", {"encoder_output_stride": 8}),
    ("dpt", {"decoder_readout": "add"}), ("dpt", {"decoder_readout": "ignore"}),
]  # fmt: skip
"""What options change: sizes, branches of the decoder."""

MANY_LAYERS = ("unetplusplus", "manet", "linknet", "fpn", "pan")
SOME = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in MANY_LAYERS)) for name in ARCHITECTURES]
)
"""By default not those whose steps take longest."""

EVERY = [*((name, {}) for name in ARCHITECTURES), *VARIANTS]


def encoder_of(name: str) -> str:
    return "tu-vit_tiny_patch16_224" if name == "dpt" else "resnet18"


def options_of(name: str, changed: dict[str, Any] | None = None) -> dict[str, Any]:
    return {**ARCHITECTURES[name].defaults, **NARROW[name], **(changed or {})}


def build(name: str, changed: dict[str, Any] | None = None, channels: int = 1, seed: int = 0) -> torch.nn.Module:
    return build_network(name, options_of(name, changed), BackboneConfig(encoder_of(name), None), channels, 2, seed)


def on_meta(name: str, encoder: str, changed: dict[str, Any] | None = None, channels: int = 1) -> torch.nn.Module:
    with torch.device("meta"):
        return build_network(name, options_of(name, changed), BackboneConfig(encoder, None), channels, 2, 0)


def named(value: Any) -> str:
    return value if isinstance(value, str) else ",".join(f"{k}={v}" for k, v in value.items())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_each_says_what_it_is(name: str) -> None:
    entry = ARCHITECTURES[name]
    assert re.search(r"(19|20)\d\d, (arXiv:\d{4}\.\d{5}|doi:10\.\S+)$", entry.source)
    assert entry.summary
    assert entry.encoders
    assert entry.function.__doc__
    check_model(name, entry.defaults, encoder_of(name))
    assert list(NARROW) == list(ARCHITECTURES)


# Training, at the smallest size


@SOME
def test_one_step_of_training_at_the_smallest_size(name: str) -> None:
    network = build(name, channels=3).train()
    size = min_size(ARCHITECTURES[name], options_of(name), encoder_of(name))
    images_NCHW = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    logits_NKHW = network(images_NCHW)
    assert logits_NKHW.shape == (2, 2, size, size)
    logits_NKHW.square().mean().backward()
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    assert all(bool(torch.isfinite(g).all()) for g in gradients)
    assert any(bool(g.any()) for g in gradients)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "changed"), EVERY, ids=named)
def test_logits_at_the_size_of_the_images(name: str, changed: dict[str, Any]) -> None:
    """At the smallest size and one step above it, in training; shapes only."""
    network, options = on_meta(name, encoder_of(name), changed), options_of(name, changed)
    entry = ARCHITECTURES[name]
    least = min_size(entry, options, encoder_of(name))
    for size in (least, least + entry.divisor.of(options), 2 * least):
        check_size(name, options, encoder_of(name), size)
        check_forward(network, 1, 2, size)
        network.train()
        assert network(torch.zeros(2, 1, size, size, device="meta")).shape == (2, 2, size, size)


@pytest.mark.parametrize("channels", [7, *(pytest.param(n, marks=pytest.mark.slow) for n in range(1, 7))])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_channels_of_the_images(name: str, channels: int) -> None:
    check_forward(on_meta(name, encoder_of(name), channels=channels), channels, 2, 128)


@pytest.mark.parametrize(("name", "changed"), EVERY, ids=named)
def test_other_sizes_are_refused(name: str, changed: dict[str, Any]) -> None:
    entry, options, encoder = ARCHITECTURES[name], options_of(name, changed), encoder_of(name)
    least, divisor = min_size(entry, options, encoder), entry.divisor.of(options)
    assert least % divisor == 0
    for size in (least - 1, least - divisor):
        with pytest.raises(UsageError, match=rf"^dataset.image_size={size} .*model={name}.* {least} px"):
            check_size(name, options, encoder, size)
    for size in (least + 1, least + divisor - 1):
        with pytest.raises(UsageError, match=rf"multiple of {divisor}, .*{least} or {least + divisor}$"):
            check_size(name, options, encoder, size)


@pytest.mark.parametrize(
    ("name", "encoder", "size"),
    [
        ("pan", "resnet18", 112),
        ("unet", "mit_b0", 16),
        ("pspnet", "efficientnet-b0", 8),
        pytest.param("dpt", "dpt", 48, marks=pytest.mark.slow),
    ],
)
def test_what_is_refused_does_not_work(name: str, encoder: str, size: int) -> None:
    """The rules that go beyond the stride of the encoder are those of the library, not ours alone."""
    encoder = encoder_of(name) if encoder == "dpt" else encoder
    changed = {"encoder_depth": 3, "decoder_channels": [8] * 3} if encoder.startswith("mit") else {}
    with pytest.raises(UsageError, match=r"^dataset\.image_size="):
        check_size(name, options_of(name, changed), encoder, size)
    network = build_network(name, options_of(name, changed), BackboneConfig(encoder, None), 1, 2, 0)
    with pytest.raises(UsageError, match=f" {size} px.*dataset.image_size"):
        check_forward(network, 1, 2, size)


@pytest.mark.slow
def test_sizes_that_an_encoder_of_timm_cannot_take_are_refused() -> None:
    """An encoder of one size at another, and one whose logits have another size than the image."""
    windows = build_network(
        "unet", options_of("unet"), BackboneConfig("tu-swin_tiny_patch4_window7_224", None), 1, 2, 0
    )
    check_forward(windows, 1, 2, 224)
    uneven = on_meta("pspnet", "tu-inception_v3")
    for network, reason in ((windows, r"\(64\).*\(224\)"), (uneven, r"\(40, 40\) px")):
        with pytest.raises(UsageError, match=rf"{reason}.*dataset\.image_size"):
            check_forward(network, 1, 2, 64)


def test_trying_a_size_leaves_network_and_generators_alone() -> None:
    network = build("pspnet").train()
    before, state = init_sha(network), torch.random.get_rng_state()
    check_forward(network, 1, 2, 32)
    with pytest.raises(UsageError, match=r"dataset\.image_size"):
        check_forward(network, 3, 2, 32)
    assert init_sha(network) == before
    assert torch.equal(torch.random.get_rng_state(), state)
    assert network.training
    assert {p.device.type for p in network.parameters()} == {"cpu"}
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())


# Initial weights and the final convolution


@SOME
def test_the_final_bias_shifts_every_logit_and_enters_no_sha(name: str) -> None:
    network = build(name).eval()
    sha = init_sha(network)
    size = max(64, min_size(ARCHITECTURES[name], options_of(name), encoder_of(name)))
    images_NCHW = torch.zeros(1, 1, size, size)
    conv = final_layer(network)
    assert isinstance(conv, torch.nn.Conv2d)
    assert conv.bias is not None
    with torch.no_grad():
        before = network(images_NCHW)
        conv.bias += torch.tensor([1.0, -2.0])
        shift = network(images_NCHW) - before
    assert torch.allclose(shift, torch.tensor([1.0, -2.0]).view(1, 2, 1, 1).expand_as(shift), atol=1e-4)
    assert init_sha(network) == sha
    with torch.no_grad():
        conv.weight[0, 0, 0, 0] += 1
    assert init_sha(network) != sha


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "unet" else pytest.mark.slow) for name in ARCHITECTURES]
)
def test_the_seed_draws_every_weight(name: str) -> None:
    shas = [init_sha(build(name, seed=seed)) for seed in (0, 0, 1)]
    assert shas[0] == shas[1] != shas[2]


def test_the_default_network_is_the_unet_of_the_library() -> None:
    import segmentation_models_pytorch as smp

    from segexp.data import seeded

    entry = ARCHITECTURES["unet"]
    assert entry.defaults == {
        "encoder_depth": 5, "decoder_channels": [128, 64, 32, 24, 16], "decoder_attention_type": "none"
    }  # fmt: skip
    with seeded(3, "init"):
        plain = smp.Unet("resnet18", 5, None, decoder_channels=(128, 64, 32, 24, 16), in_channels=1, classes=1)
    ours = build_network("unet", entry.defaults, BackboneConfig("resnet18", None), 1, 1, 3)
    assert init_sha(ours) == init_sha(plain)


# Refusals


def refusal(name: str, encoder: str, **changed: Any) -> str:
    with pytest.raises(UsageError) as told:
        check_model(name, {**ARCHITECTURES[name].defaults, **changed}, encoder)
    assert "\n" not in str(told.value)
    return str(told.value)


@pytest.mark.parametrize(("name", "encoder", "reason", "instead"), [
    ("unetplusplus", "mit_b0", "half the image size", "model=unet|manet|fpn|"),
    ("linknet", "mit_b5", "half the image size", "model=unet|manet|fpn|"),
    ("deeplabv3", "vgg11", "pooling", "model=unet|unetplusplus|"),
    ("deeplabv3plus", "densenet121", "pooling", "segformer"),
    ("pan", "xception", "pooling", "model=unet"),
    ("dpt", "resnet18", "vision transformer", "tu-vit_tiny_patch16_224"),
    ("dpt", "tu-vit_small_patch14_dinov2", "patches of 14 px", "tu-vit_tiny_patch16_224"),
    ("dpt", "tu-vit_relpos_small_patch16_224", "relative positions", "tu-vit_tiny_patch16_224"),
    ("unet", "tu-vit_tiny_patch16_224", "same size", "model=dpt"),
])  # fmt: skip
def test_an_encoder_that_does_not_fit_is_refused_with_what_does(
    name: str, encoder: str, reason: str, instead: str
) -> None:
    message = refusal(name, encoder)
    assert message.startswith(f"model={name} ")
    assert f"backbone.name={encoder}: " in message
    assert reason in message
    assert instead in message


def test_pooling_encoders_go_with_pan_undilated() -> None:
    check_model("pan", {**ARCHITECTURES["pan"].defaults, "encoder_output_stride": 32}, "vgg11")
    check_forward(on_meta("pan", "vgg11", {"encoder_output_stride": 32}), 1, 2, 256)


@pytest.mark.parametrize(("name", "changed", "said"), [
    ("unet", {"decoder_channels": [8, 8]}, "model.decoder_channels has 2 .*model.encoder_depth=5"),
    ("unetplusplus", {"encoder_depth": 4}, "model.decoder_channels has 5 .*model.encoder_depth=4"),
    ("manet", {"decoder_channels": []}, "model.decoder_channels has 0 "),
    ("unet", {"decoder_channels": [32, 16, 16, 8, 8], "decoder_attention_type": "scse"}, "scse .*16"),
    ("fpn", {"decoder_segmentation_channels": 48}, "multiple of 32"),
    ("deeplabv3", {"decoder_atrous_rates": [1, 2]}, "three dilation rates"),
    ("deeplabv3plus", {"decoder_atrous_rates": [1, 2, 3, 4]}, "three dilation rates"),
    ("dpt", {"decoder_intermediate_channels": [8, 8, 8]}, "four numbers"),
])  # fmt: skip
def test_options_that_contradict_each_other_are_refused(name: str, changed: dict[str, Any], said: str) -> None:
    message = refusal(name, encoder_of(name), **changed)
    assert message.startswith("model.decoder_")
    assert re.search(said, message)


def test_what_only_the_library_knows_is_one_line() -> None:
    with pytest.raises(UsageError, match=r"model=pan .*backbone.name=tu-vgg11 ") as told:
        on_meta("pan", "tu-vgg11")
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(("name", "option"), [(e.name, o.name) for e in ARCHITECTURES.values() for o in e.options])
def test_every_option_changes_the_network(name: str, option: str) -> None:
    """An option that the function forgets to hand on would be recorded and do nothing."""
    (told,) = [o for o in ARCHITECTURES[name].options if o.name == option]
    changed = {**ARCHITECTURES[name].defaults, option: another(told)}
    if option == "encoder_depth" and isinstance(changed.get("decoder_channels"), list):
        changed["decoder_channels"] = changed["decoder_channels"][:4]
    assert repr(on_meta(name, encoder_of(name), changed)) != default_repr(name)


@functools.cache
def default_repr(name: str) -> str:
    return repr(on_meta(name, encoder_of(name), ARCHITECTURES[name].defaults))


def another(option: Option) -> Any:
    """A valid value that is not the default."""
    if option.choices:
        return next(choice for choice in option.choices if choice != option.default)
    if option.name == "encoder_depth":
        return 4
    return (
        [2 * n for n in option.default]
        if isinstance(option.default, list)
        else option.default / 2
        if (option.type is float)
        else 2 * option.default
    )


# The table


def test_the_table_is_of_these_architectures_and_of_encoders_that_exist() -> None:
    with BUILDABLE.open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["encoder", *ARCHITECTURES]
    assert {cell for row in rows for cell in row[1:]} == {"yes", "no"}
    assert len({row[0] for row in rows}) == len(rows)
    assert {row[0] for row in rows if not row[0].startswith("tu-")} == set(encoder_names())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_rules_agree_with_the_table(name: str) -> None:
    """For every encoder of smp both ways. Of timm's a name does not tell all: what is refused did not build."""
    entry = ARCHITECTURES[name]
    taken = {encoder for encoder in buildable() if entry.unsupported(encoder, entry.defaults) is None}
    built = {encoder for encoder, names in buildable().items() if name in names}
    assert built <= taken
    assert {encoder for encoder in taken - built if not encoder.startswith("tu-")} == set()


FAMILIES = (
    "resnet18", "dpn68", "vgg11", "se_resnet50", "densenet121", "inceptionv4", "efficientnet-b0", "mobilenet_v2",
    "xception", "timm-efficientnet-b0", "timm-skresnet18", "mit_b0", "mobileone_s0", "tu-convnext_atto",
    "tu-vit_tiny_patch16_224",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("part", range(6))
def test_the_table_can_be_measured_again(repository: Path, monkeypatch: pytest.MonkeyPatch, part: int) -> None:
    """One encoder of each family with a third of the architectures, and an eighth of the numbers of channels with one,
    in turns; for the whole table, half an hour of one core: scripts/which_build.py."""
    monkeypatch.syspath_prepend(str(repository / "scripts"))
    import which_build

    for turn, encoder in [*enumerate(e for e in buildable() if e in FAMILIES)][part::6]:
        built = buildable()[encoder]
        assert built
        for name in [*ARCHITECTURES][turn % 3 :: 3]:
            assert which_build.trains(name, encoder, IN_CHANNELS[-1]) == (name in built), (encoder, name)
        for channels in IN_CHANNELS[turn % 8 :: 8]:
            assert which_build.trains(built[0], encoder, channels), (encoder, channels)
