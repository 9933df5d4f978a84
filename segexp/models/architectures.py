"""Registry of architectures: name -> function(common, *, options) that builds it with smp, logits out.

smp is segmentation-models-pytorch. ``common`` holds what every smp model takes: encoder_name, encoder_weights,
in_channels, classes. Each entry says which encoders it takes, what the sides of an image must be divisible by, and
the smallest image that trains in batches of two; `check_model` holds a configuration against that, without torch.
Which encoders of smp build was measured: `buildable`, written by scripts/which_build.py; and in which of them every
hidden activation can be replaced: `swapped`, written by scripts/audit_encoders.py.
"""

import csv
import functools
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from segexp.errors import UsageError
from segexp.registry import REQUIRED, Option, Range, Registry, options_of

if TYPE_CHECKING:
    import torch

Options = Mapping[str, Any]
Build = Callable[..., "torch.nn.Module"]
Takes = Callable[[str, Options], str | None]

IN_CHANNELS = range(1, 8)
"""Numbers of image channels that every encoder takes."""

MIN_BATCH = 2
"""Images in a batch that training needs: batch statistics of a feature map of one pixel need two."""

BUILDABLE = Path(__file__).with_name("buildable.csv")

SWAPPED = Path(__file__).with_name("swapped.csv")

Channels = Annotated[int, Range(1)]
ChannelList = Annotated[list[int], Range(1)]
Depth = Annotated[int, Range(3, 5)]
Dropout = Annotated[float, Range(0, 1, below=True)]


@dataclass(frozen=True)
class Pixels:
    """A number of pixels that follows from the options: ``text`` says how, ``of`` computes it."""

    text: str
    of: Callable[[Options], int]


@dataclass(frozen=True)
class Architecture:
    """One entry. The images' sides in pixels must be multiples of ``divisor`` and at least ``min_size``.

    encoders: those it takes, in words; takes(encoder, options) gives the reason why it does not take one, else None.
    check(options) says what is wrong between options, else None.
    """

    name: str
    function: Build
    summary: str
    encoders: str
    takes: Takes
    divisor: Pixels
    min_size: Pixels
    check: Callable[[Options], str | None]
    source: str
    options: tuple[Option, ...] = ()

    @property
    def defaults(self) -> dict[str, Any]:
        """The options' default values."""
        return {option.name: option.default for option in self.options}


ARCHITECTURES: Registry[Architecture] = Registry("model")


@dataclass
class BackboneConfig:
    """Encoder of the network. weights: null (random), "imagenet", or the path of a state dict.

    allow_mismatched_weights: whether weights trained with the encoder's own activation may meet another one.
    """

    name: str = REQUIRED
    weights: str | None = REQUIRED
    allow_mismatched_weights: bool = False


@dataclass
class InitConfig:
    """First weights of hidden layers. gain: of the hidden activation (auto) or as drawn (relu); bias: 0 leaves them."""

    gain: Annotated[str, ("auto", "relu")] = REQUIRED
    bias: Annotated[float, Range(-100, 100)] = REQUIRED


# What an encoder can and cannot do, by its name alone: measured with smp 0.6 and timm 1.0.

_POOLS = ("vgg", "densenet", "inception", "xception")
_PLAIN_VITS = ("tu-vit_", "tu-deit", "tu-beit", "tu-eva", "tu-flexivit", "tu-xcit", "tu-cait")
_VITS = ("tu-vit_", "tu-deit")

_LEAST_OF_ENCODER = {"mit_": 32, "efficientnet-": 16}
"""Smallest side in pixels that the encoder itself takes, by the start of its name, where it is no less than 8."""

PYRAMIDS = "all of smp, and tu-* but plain vision transformers"
PYRAMIDS_WITH_HALVES = "all of smp but mit_*, and tu-* but plain vision transformers"
DILATED = "all of smp but vgg, densenet, inception and xception, and tu-* that can be dilated"


def _pyramid(encoder: str, options: Options) -> str | None:
    if encoder.startswith(_PLAIN_VITS):
        return "the feature maps of a plain vision transformer all have one size"
    return None


def _pyramid_with_halves(encoder: str, options: Options) -> str | None:
    if encoder.startswith("mit_"):
        return "mit_* have no feature map of half the image size"
    return _pyramid(encoder, options)


def _dilated(encoder: str, options: Options) -> str | None:
    if options["encoder_output_stride"] < 32 and encoder.startswith(_POOLS):
        return "it halves its feature maps by pooling, which dilation cannot replace"
    return _pyramid(encoder, options)


def _vision_transformer(encoder: str, options: Options) -> str | None:
    if not encoder.startswith(_VITS):
        return "it is no vision transformer of timm"
    if "_patch14" in encoder:
        return "patches of 14 px do not divide into maps of 4, 8, 16 and 32 px"
    if "relpos" in encoder:
        return "its relative positions are made for one image size"
    return None


# Sizes


def _pixels(number: int) -> Pixels:
    return Pixels(str(number), lambda options: number)


BY_DEPTH = Pixels("2^encoder_depth", lambda options: 2 ** options["encoder_depth"])
BY_STRIDE = Pixels("encoder_output_stride", lambda options: options["encoder_output_stride"])


# What must hold between options


def _no_rule(options: Options) -> str | None:
    return None


def _one_per_stage(options: Options) -> str | None:
    channels, depth = options["decoder_channels"], options["encoder_depth"]
    if len(channels) != depth:
        return (
            f"model.decoder_channels has {len(channels)} numbers, model.encoder_depth={depth} needs as many: "
            "one per decoder stage"
        )
    if options.get("decoder_attention_type") == "scse" and min(channels) < 16:
        return f"model.decoder_attention_type=scse divides channels by 16: model.decoder_channels={channels} has fewer"
    return None


def _groups_of_32(options: Options) -> str | None:
    channels = options["decoder_segmentation_channels"]
    if channels % 32:
        return f"model.decoder_segmentation_channels={channels} must be a multiple of 32, for its group norm"
    return None


def _three_rates(options: Options) -> str | None:
    rates = options["decoder_atrous_rates"]
    return None if len(rates) == 3 else f"model.decoder_atrous_rates={rates} must be three dilation rates"


def _four_maps(options: Options) -> str | None:
    channels = options["decoder_intermediate_channels"]
    if len(channels) != 4:
        return f"model.decoder_intermediate_channels={channels} must be four numbers, one per feature map"
    return None


def architecture(
    *,
    summary: str,
    source: str,
    encoders: str = PYRAMIDS,
    takes: Takes = _pyramid,
    divisor: Pixels = BY_DEPTH,
    min_size: Pixels | None = None,
    check: Callable[[Options], str | None] = _no_rule,
) -> Callable[[Build], Build]:
    """Decorator: put the function into the registry under its own name. min_size: the divisor where not given."""

    def put(function: Build) -> Build:
        entry = Architecture(
            name=function.__name__,
            function=function,
            summary=summary,
            encoders=encoders,
            takes=takes,
            divisor=divisor,
            min_size=min_size or divisor,
            check=check,
            source=source,
            options=options_of(function),
        )
        ARCHITECTURES.add(entry.name, entry)
        return function

    return put


_STAGES = [128, 64, 32, 24, 16]


@architecture(
    summary="encoder and decoder, feature maps of equal size concatenated",
    check=_one_per_stage,
    source="Ronneberger et al. 2015, arXiv:1505.04597",
)
def unet(
    common: Options,
    *,
    encoder_depth: Depth = 5,
    decoder_channels: ChannelList = _STAGES,
    decoder_attention_type: Literal["none", "scse"] = "none",
) -> "torch.nn.Module":
    """U-Net. decoder_channels: deepest first, one per stage; scse: squeeze and excitation of channels and pixels."""
    import segmentation_models_pytorch as smp

    return smp.Unet(
        **common,
        encoder_depth=encoder_depth,
        decoder_channels=tuple(decoder_channels),
        decoder_attention_type=None if decoder_attention_type == "none" else decoder_attention_type,
    )


@architecture(
    summary="U-Net with nested, dense skip connections",
    encoders=PYRAMIDS_WITH_HALVES,
    takes=_pyramid_with_halves,
    check=_one_per_stage,
    source="Zhou et al. 2018, arXiv:1807.10165",
)
def unetplusplus(
    common: Options,
    *,
    encoder_depth: Depth = 5,
    decoder_channels: ChannelList = _STAGES,
    decoder_attention_type: Literal["none", "scse"] = "none",
) -> "torch.nn.Module":
    """UNet++; its options are those of the U-Net."""
    import segmentation_models_pytorch as smp

    return smp.UnetPlusPlus(
        **common,
        encoder_depth=encoder_depth,
        decoder_channels=tuple(decoder_channels),
        decoder_attention_type=None if decoder_attention_type == "none" else decoder_attention_type,
    )


@architecture(
    summary="U-Net with attention over positions and over scales",
    check=_one_per_stage,
    source="Fan et al. 2020, doi:10.1109/ACCESS.2020.3025372",
)
def manet(
    common: Options,
    *,
    encoder_depth: Depth = 5,
    decoder_channels: ChannelList = _STAGES,
    decoder_pab_channels: Channels = 64,
) -> "torch.nn.Module":
    """MA-Net. Its position attention holds a weight for each pair of pixels of the deepest map."""
    import segmentation_models_pytorch as smp

    return smp.MAnet(
        **common,
        encoder_depth=encoder_depth,
        decoder_channels=tuple(decoder_channels),
        decoder_pab_channels=decoder_pab_channels,
    )


@architecture(
    summary="encoder and light decoder, feature maps of equal size added",
    encoders=PYRAMIDS_WITH_HALVES,
    takes=_pyramid_with_halves,
    source="Chaurasia and Culurciello 2017, arXiv:1707.03718",
)
def linknet(common: Options, *, encoder_depth: Depth = 5) -> "torch.nn.Module":
    """LinkNet; the widths of its decoder follow from the encoder."""
    import segmentation_models_pytorch as smp

    return smp.Linknet(**common, encoder_depth=encoder_depth)


@architecture(
    summary="feature pyramid from 1/32 to 1/4, its levels merged",
    divisor=_pixels(32),
    check=_groups_of_32,
    source="Kirillov et al. 2019, arXiv:1901.02446",
)
def fpn(
    common: Options,
    *,
    decoder_pyramid_channels: Channels = 128,
    decoder_segmentation_channels: Channels = 64,
    decoder_merge_policy: Literal["add", "cat"] = "add",
    decoder_dropout: Dropout = 0.2,
) -> "torch.nn.Module":
    """Feature pyramid network, logits at a quarter of the image size, enlarged."""
    import segmentation_models_pytorch as smp

    return smp.FPN(
        **common,
        decoder_pyramid_channels=decoder_pyramid_channels,
        decoder_segmentation_channels=decoder_segmentation_channels,
        decoder_merge_policy=decoder_merge_policy,
        decoder_dropout=decoder_dropout,
    )


@architecture(
    summary="deepest map pooled to 1, 2, 3 and 6 px a side",
    source="Zhao et al. 2017, arXiv:1612.01105",
)
def pspnet(
    common: Options,
    *,
    encoder_depth: Depth = 3,
    psp_out_channels: Channels = 256,
    psp_dropout: Dropout = 0.2,
) -> "torch.nn.Module":
    """Pyramid scene parsing; logits at 1/2^encoder_depth of the image size, enlarged."""
    import segmentation_models_pytorch as smp

    return smp.PSPNet(
        **common,
        encoder_depth=encoder_depth,
        psp_out_channels=psp_out_channels,
        psp_dropout=psp_dropout,
        upsampling=2**encoder_depth,
    )


@architecture(
    summary="pyramid attention on the deepest map, guided upsampling",
    encoders=f"{DILATED}; with encoder_output_stride=32 {PYRAMIDS}",
    takes=_dilated,
    divisor=BY_STRIDE,
    # Three poolings by 2 follow on the deepest map, and one pixel must be left.
    min_size=Pixels("8 * encoder_output_stride", lambda options: 8 * options["encoder_output_stride"]),
    source="Li et al. 2018, arXiv:1805.10180",
)
def pan(
    common: Options,
    *,
    encoder_output_stride: Literal[16, 32] = 16,
    decoder_channels: Channels = 32,
) -> "torch.nn.Module":
    """Pyramid attention network. encoder_output_stride: image size over that of the deepest map."""
    import segmentation_models_pytorch as smp

    return smp.PAN(**common, encoder_output_stride=encoder_output_stride, decoder_channels=decoder_channels)


@architecture(
    summary="dilated convolutions of several rates on the deepest map",
    encoders=DILATED,
    takes=_dilated,
    divisor=BY_STRIDE,
    check=_three_rates,
    source="Chen et al. 2017, arXiv:1706.05587",
)
def deeplabv3(
    common: Options,
    *,
    encoder_output_stride: Literal[8, 16] = 8,
    decoder_channels: Channels = 128,
    decoder_atrous_rates: ChannelList = [12, 24, 36],  # noqa: B006 (options are copied)
    decoder_aspp_dropout: Dropout = 0.5,
) -> "torch.nn.Module":
    """DeepLabv3; logits at 1/encoder_output_stride of the image size, enlarged."""
    import segmentation_models_pytorch as smp

    return smp.DeepLabV3(
        **common,
        encoder_output_stride=encoder_output_stride,
        decoder_channels=decoder_channels,
        decoder_atrous_rates=tuple(decoder_atrous_rates),
        decoder_aspp_dropout=decoder_aspp_dropout,
    )


@architecture(
    summary="DeepLabv3 with a decoder that joins the map of 1/4",
    encoders=DILATED,
    takes=_dilated,
    divisor=BY_STRIDE,
    check=_three_rates,
    source="Chen et al. 2018, arXiv:1802.02611",
)
def deeplabv3plus(
    common: Options,
    *,
    encoder_output_stride: Literal[8, 16] = 16,
    decoder_channels: Channels = 128,
    decoder_atrous_rates: ChannelList = [12, 24, 36],  # noqa: B006 (options are copied)
    decoder_aspp_dropout: Dropout = 0.5,
) -> "torch.nn.Module":
    """DeepLabv3+; logits at a quarter of the image size, enlarged."""
    import segmentation_models_pytorch as smp

    return smp.DeepLabV3Plus(
        **common,
        encoder_output_stride=encoder_output_stride,
        decoder_channels=decoder_channels,
        decoder_atrous_rates=tuple(decoder_atrous_rates),
        decoder_aspp_dropout=decoder_aspp_dropout,
    )


@architecture(
    summary="pooling as in PSPNet, then a feature pyramid",
    source="Xiao et al. 2018, arXiv:1807.10221",
)
def upernet(common: Options, *, encoder_depth: Depth = 5, decoder_channels: Channels = 128) -> "torch.nn.Module":
    """UPerNet; logits at a quarter of the image size, enlarged."""
    import segmentation_models_pytorch as smp

    return smp.UPerNet(**common, encoder_depth=encoder_depth, decoder_channels=decoder_channels)


@architecture(
    summary="each feature map through one linear layer, then joined",
    source="Xie et al. 2021, arXiv:2105.15203",
)
def segformer(
    common: Options, *, encoder_depth: Depth = 5, decoder_segmentation_channels: Channels = 128
) -> "torch.nn.Module":
    """SegFormer's decoder, on any encoder (its own: mit_b0 to mit_b5); logits at a quarter of the size, enlarged."""
    import segmentation_models_pytorch as smp

    return smp.Segformer(
        **common, encoder_depth=encoder_depth, decoder_segmentation_channels=decoder_segmentation_channels
    )


@architecture(
    summary="four layers of a vision transformer, brought to four sizes and fused",
    encoders="tu-vit_* and tu-deit* but those with patches of 14 px or relpos, such as tu-vit_tiny_patch16_224",
    takes=_vision_transformer,
    divisor=_pixels(32),
    check=_four_maps,
    source="Ranftl et al. 2021, arXiv:2103.13413",
)
def dpt(
    common: Options,
    *,
    decoder_readout: Literal["cat", "add", "ignore"] = "cat",
    decoder_intermediate_channels: ChannelList = [64, 128, 256, 256],  # noqa: B006 (options are copied)
    decoder_fusion_channels: Channels = 128,
) -> "torch.nn.Module":
    """Dense prediction transformer. decoder_readout: what becomes of the class token."""
    import segmentation_models_pytorch as smp

    return smp.DPT(
        **common,
        decoder_readout=decoder_readout,
        decoder_intermediate_channels=tuple(decoder_intermediate_channels),
        decoder_fusion_channels=decoder_fusion_channels,
        # Position embeddings are interpolated, so that any image size will do.
        dynamic_img_size=True,
    )


def min_size(entry: Architecture, options: Options, encoder: str) -> int:
    """Smallest side of an image in pixels, for architecture and encoder together."""
    of_encoder = [least for start, least in _LEAST_OF_ENCODER.items() if encoder.startswith(start)]
    return max([entry.min_size.of(options), *of_encoder])


def common_size(name: str, options: Options, encoder: str) -> int:
    """A side in pixels that architecture and encoder take: the smallest from 64 on."""
    entry = ARCHITECTURES[name]
    divisor = entry.divisor.of(options)
    return -(-max(64, min_size(entry, options, encoder)) // divisor) * divisor


def check_model(name: str, options: Options, encoder: str) -> None:
    """Hold the architecture's options and the encoder's name against what is known of them.

    Raises UsageError. Unknown names of encoders pass: the libraries know them, when the network is built.
    """
    entry = ARCHITECTURES.find(name)
    wrong = entry.check(options)
    if wrong:
        raise UsageError(wrong)
    reason = entry.takes(encoder, options)
    if reason:
        others = [other.name for other in ARCHITECTURES.values() if not other.takes(encoder, other.defaults)]
        cure = f"; backbone.name={encoder} goes with model={'|'.join(others)}" if others else ""
        raise UsageError(
            f"model={name} does not take backbone.name={encoder}: {reason}; it takes {entry.encoders}{cure}"
        )


def check_size(name: str, options: Options, encoder: str, size: int, whose: str = "") -> None:
    """Hold the side of the network's images, in pixels, against divisor and smallest size.

    whose: what has this size, "dataset.image_size=..." where not given. Raises UsageError.
    """
    entry = ARCHITECTURES[name]
    divisor, least = entry.divisor.of(options), min_size(entry, options, encoder)
    relevant = [k for k in ("encoder_depth", "encoder_output_stride") if k in options]
    model = f"model={name}" + "".join(f" model.{k}={options[k]}" for k in relevant)
    whose = whose or f"dataset.image_size={size}"
    if size < least:
        raise UsageError(
            f"{whose} is too small for {model} with backbone.name={encoder}: at least {least} px, in steps of {divisor}"
        )
    if size % divisor:
        below = size // divisor * divisor
        near = [str(n) for n in (below, below + divisor) if n >= least]
        raise UsageError(
            f"{whose} does not fit {model}: it must be a multiple of {divisor}, such as {' or '.join(near)}"
        )


def encoder_names() -> list[str]:
    """Every encoder of smp by name; besides, any timm model with feature maps as ``tu-<name>``. Imports torch."""
    from segmentation_models_pytorch.encoders import get_encoder_names

    return get_encoder_names()


@functools.cache
def _file_sha(path: Path, mtime_ns: int, size: int) -> str:
    """SHA-256 of a file, read once for all runs of a sweep as long as it stays as it is."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def weights_sha(backbone: BackboneConfig) -> str:
    """SHA-256 of the weight file, "" where there is none: the path is not what identifies a run."""
    if backbone.weights in (None, "imagenet"):
        return ""
    path = Path(str(backbone.weights)).expanduser()
    try:
        state = path.stat()
        return _file_sha(path, state.st_mtime_ns, state.st_size)
    except OSError as error:
        raise UsageError(
            f"backbone.weights={backbone.weights}: no such file ({error.strerror}); give null, imagenet or a path"
        ) from error


@functools.cache
def buildable() -> dict[str, tuple[str, ...]]:
    """Encoder -> architectures that were seen to train with it, from 1 to 7 channels, at their default options."""
    with BUILDABLE.open(newline="", encoding="utf-8") as file:
        return {row.pop("encoder"): tuple(k for k, v in row.items() if v == "yes") for row in csv.DictReader(file)}


@functools.cache
def swapped() -> tuple[dict[str, str], ...]:
    """What the swap of hidden activations was seen to find: rows of model, encoder, counts, and what escaped it."""
    with SWAPPED.open(newline="", encoding="utf-8") as file:
        return tuple(csv.DictReader(file))


def swap_closes(encoder: str) -> bool | None:
    """Whether every hidden activation of the encoder can be replaced; None where that was not measured."""
    escaped = [row["escaped"] for row in swapped() if row["encoder"] == encoder]
    return not any(escaped) if escaped else None
