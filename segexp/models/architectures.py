"""Registry of architectures: name -> function(common, *, options) that builds a network with logits as output.

They are those of segmentation-models-pytorch (smp). ``common`` holds the arguments of every smp model: encoder_name,
encoder_weights, in_channels, classes. Each entry declares the supported encoders, the divisor of the sides of an image,
and the smallest image that can be trained in batches of two; `check_model` and `check_size` check a configuration
against that, without torch. Two tables are measured: the encoders that build (`buildable`, scripts/which_build.py), and
those in which every hidden activation can be replaced (`swapped`, scripts/audit_encoders.py).
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
    from torch.nn import Module

Options = Mapping[str, Any]
Build = Callable[..., "Module"]

NO_ENCODER = "none"
"""``backbone.name`` of runs whose network has no encoder to choose."""

IN_CHANNELS = range(1, 33)  # numbers of image channels that every encoder supports
MIN_BATCH = 2  # smallest batch for training: batch statistics of a feature map of one pixel need two images

BUILDABLE = Path(__file__).with_name("buildable.csv")

SWAPPED = Path(__file__).with_name("swapped.csv")

Channels = Annotated[int, Range(1)]
ChannelList = Annotated[list[int], Range(1)]
Depth = Annotated[int, Range(3, 5)]
Dropout = Annotated[float, Range(0, 1, below=True)]


@dataclass(frozen=True)
class Pixels:
    """A number of pixels that depends on the options: ``text`` is the formula, ``of`` computes it."""

    text: str
    of: Callable[[Options], int]


@dataclass
class BackboneConfig:
    """Encoder of the network. weights: null (random), "imagenet", or the path of a state dict.

    allow_mismatched_weights: allow pretrained weights with another hidden activation than they were trained with.
    """

    name: str = REQUIRED
    weights: str | None = REQUIRED
    allow_mismatched_weights: bool = False


@dataclass
class InitConfig:
    """Initial weights of hidden layers. gain: that of the hidden activation (auto) or as drawn (relu); bias: 0 leaves
    biases as they are."""

    gain: Annotated[str, ("auto", "relu")] = REQUIRED
    bias: Annotated[float, Range(-100, 100)] = REQUIRED


# Properties of encoders by name, measured with smp 0.6 and timm 1.0.

PYRAMIDS = "all of smp, and tu-* except plain vision transformers"
PYRAMIDS_WITH_HALVES = "all of smp except mit_*, and tu-* except plain vision transformers"
DILATED = "all of smp except vgg, densenet, inception and xception, and tu-* that can be dilated"


def _pyramid(encoder: str, options: Options) -> str | None:
    if encoder.startswith(("tu-vit_", "tu-deit", "tu-beit", "tu-eva", "tu-flexivit", "tu-xcit", "tu-cait")):
        return "all feature maps of a plain vision transformer have the same size"
    return None


def _pyramid_with_halves(encoder: str, options: Options) -> str | None:
    if encoder.startswith("mit_"):
        return "mit_* have no feature map of half the image size"
    return _pyramid(encoder, options)


def _dilated(encoder: str, options: Options) -> str | None:
    if options["encoder_output_stride"] < 32 and encoder.startswith(("vgg", "densenet", "inception", "xception")):
        return "it downsamples by pooling, which dilation cannot replace"
    return _pyramid(encoder, options)


def _vision_transformer(encoder: str, options: Options) -> str | None:
    if not encoder.startswith(("tu-vit_", "tu-deit")):
        return "it is not a vision transformer of timm"
    if "_patch14" in encoder:
        return "its patches of 14 px cannot be rescaled to strides of 4, 8, 16 and 32 px"
    if "relpos" in encoder:
        return "its relative positions are fixed to one image size"
    return None


# Sizes


def pixels(number: int) -> Pixels:
    """A number that depends on no option."""
    return Pixels(str(number), lambda options: number)


BY_DEPTH = Pixels("2^encoder_depth", lambda options: 2 ** options["encoder_depth"])
BY_STRIDE = Pixels("encoder_output_stride", lambda options: options["encoder_output_stride"])


# Conflicts between options


def _one_per_stage(options: Options) -> str | None:
    channels, depth = options["decoder_channels"], options["encoder_depth"]
    if len(channels) != depth:
        return (
            f"model.decoder_channels has {len(channels)} numbers; model.encoder_depth={depth} needs {depth}, one per "
            "decoder stage"
        )
    if options.get("decoder_attention_type") == "scse" and min(channels) < 16:
        return f"model.decoder_attention_type=scse needs 16 or more channels, not model.decoder_channels={channels}"
    return None


def _groups_of_32(options: Options) -> str | None:
    channels = options["decoder_segmentation_channels"]
    wrong = f"model.decoder_segmentation_channels={channels} must be a multiple of 32 (group normalisation)"
    return wrong if channels % 32 else None


def _three_rates(options: Options) -> str | None:
    rates = options["decoder_atrous_rates"]
    return None if len(rates) == 3 else f"model.decoder_atrous_rates={rates} must be three dilation rates"


def _four_maps(options: Options) -> str | None:
    given = options["decoder_intermediate_channels"]
    wrong = f"model.decoder_intermediate_channels={given} must be four numbers, one per feature map"
    return None if len(given) == 4 else wrong


@dataclass(frozen=True)
class Architecture:
    """One entry. The sides of an image in pixels must be multiples of ``divisor`` and at least ``min_size``
    (None: the divisor).

    encoders: the supported encoders, in words. unsupported(encoder, options): the reason why an encoder cannot be used,
    else None. check(options): the conflict between options, else None. encoder: whether ``backbone`` chooses its
    encoder. own: the user's own network, which may be any module that maps images_NCHW to logits_NKHW.
    """

    name: str
    function: Build
    summary: str
    source: str
    divisor: Pixels = BY_DEPTH
    min_size: Pixels | None = None
    encoders: str = PYRAMIDS
    unsupported: Callable[[str, Options], str | None] = _pyramid
    check: Callable[[Options], str | None] = lambda options: None
    options: tuple[Option, ...] = ()
    encoder: bool = True
    own: bool = False

    @property
    def defaults(self) -> dict[str, Any]:
        """The options' default values."""
        return {option.name: option.default for option in self.options}


ARCHITECTURES: Registry[Architecture] = Registry("model")


def architecture(**facts: Any) -> Callable[[Build], Build]:
    """Decorator: register the function under its own name. facts: fields of `Architecture`."""
    return ARCHITECTURES.decorator(lambda f: Architecture(f.__name__, f, options=options_of(f), **facts))


def _smp(name: str, common: Options, **options: Any) -> "Module":
    """The network of an smp class, whose parameters have the names of ``options``; lists as tuples, "none" as None."""
    import segmentation_models_pytorch as smp

    given = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    return getattr(smp, name)(**common, **{key: None if value == "none" else value for key, value in given.items()})


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
) -> "Module":
    """U-Net. decoder_channels: deepest first, one per stage; scse: squeeze-and-excitation of channels and pixels."""
    return _smp("Unet", **locals())


@architecture(
    summary="U-Net with nested, dense skip connections",
    encoders=PYRAMIDS_WITH_HALVES,
    unsupported=_pyramid_with_halves,
    check=_one_per_stage,
    source="Zhou et al. 2018, arXiv:1807.10165",
)
def unetplusplus(
    common: Options,
    *,
    encoder_depth: Depth = 5,
    decoder_channels: ChannelList = _STAGES,
    decoder_attention_type: Literal["none", "scse"] = "none",
) -> "Module":
    """UNet++; options as for `unet`."""
    return _smp("UnetPlusPlus", **locals())


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
) -> "Module":
    """MA-Net. Its position attention has a weight for each pair of pixels of the deepest map."""
    return _smp("MAnet", **locals())


@architecture(
    summary="encoder and light decoder, feature maps of equal size added",
    encoders=PYRAMIDS_WITH_HALVES,
    unsupported=_pyramid_with_halves,
    source="Chaurasia and Culurciello 2017, arXiv:1707.03718",
)
def linknet(common: Options, *, encoder_depth: Depth = 5) -> "Module":
    """LinkNet; the encoder determines the widths of its decoder."""
    return _smp("Linknet", **locals())


@architecture(
    summary="feature pyramid from 1/32 to 1/4, its levels merged",
    divisor=pixels(32),
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
) -> "Module":
    """Feature pyramid network, logits at a quarter of the image size, enlarged."""
    return _smp("FPN", **locals())


@architecture(summary="deepest map pooled to 1, 2, 3 and 6 px a side", source="Zhao et al. 2017, arXiv:1612.01105")
def pspnet(
    common: Options, *, encoder_depth: Depth = 3, psp_out_channels: Channels = 256, psp_dropout: Dropout = 0.2
) -> "Module":
    """Pyramid scene parsing; logits at 1/2^encoder_depth of the image size, enlarged."""
    return _smp("PSPNet", **locals(), upsampling=2**encoder_depth)


@architecture(
    summary="pyramid attention on the deepest map, guided upsampling",
    encoders=f"{DILATED}; with encoder_output_stride=32 {PYRAMIDS}",
    unsupported=_dilated,
    divisor=BY_STRIDE,
    # The deepest map is pooled three times by 2 and must keep one pixel.
    min_size=Pixels("8 * encoder_output_stride", lambda options: 8 * options["encoder_output_stride"]),
    source="Li et al. 2018, arXiv:1805.10180",
)
def pan(common: Options, *, encoder_output_stride: Literal[16, 32] = 16, decoder_channels: Channels = 32) -> "Module":
    """Pyramid attention network. encoder_output_stride: ratio of image size to the size of the deepest map."""
    return _smp("PAN", **locals())


@architecture(
    summary="dilated convolutions of several rates on the deepest map",
    encoders=DILATED,
    unsupported=_dilated,
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
) -> "Module":
    """DeepLabv3; logits at 1/encoder_output_stride of the image size, enlarged."""
    return _smp("DeepLabV3", **locals())


@architecture(
    summary="DeepLabv3 with a decoder that joins the map of 1/4",
    encoders=DILATED,
    unsupported=_dilated,
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
) -> "Module":
    """DeepLabv3+; logits at a quarter of the image size, enlarged."""
    return _smp("DeepLabV3Plus", **locals())


@architecture(summary="pooling as in PSPNet, then a feature pyramid", source="Xiao et al. 2018, arXiv:1807.10221")
def upernet(common: Options, *, encoder_depth: Depth = 5, decoder_channels: Channels = 128) -> "Module":
    """UPerNet; logits at a quarter of the image size, enlarged."""
    return _smp("UPerNet", **locals())


@architecture(
    summary="each feature map through one linear layer, then joined", source="Xie et al. 2021, arXiv:2105.15203"
)
def segformer(common: Options, *, encoder_depth: Depth = 5, decoder_segmentation_channels: Channels = 128) -> "Module":
    """SegFormer's decoder on any encoder (original: mit_b0 to mit_b5); logits at a quarter of the size, enlarged."""
    return _smp("Segformer", **locals())


@architecture(
    summary="four layers of a vision transformer, brought to four sizes and fused",
    encoders="tu-vit_* and tu-deit* (such as tu-vit_tiny_patch16_224) except those with patches of 14 px or relpos",
    unsupported=_vision_transformer,
    divisor=pixels(32),
    check=_four_maps,
    source="Ranftl et al. 2021, arXiv:2103.13413",
)
def dpt(
    common: Options,
    *,
    decoder_readout: Literal["cat", "add", "ignore"] = "cat",
    decoder_intermediate_channels: ChannelList = [64, 128, 256, 256],  # noqa: B006 (options are copied)
    decoder_fusion_channels: Channels = 128,
) -> "Module":
    """Dense prediction transformer. decoder_readout: how the class token is used."""
    # Position embeddings are interpolated, which allows any image size.
    return _smp("DPT", **locals(), dynamic_img_size=True)


def min_size(entry: Architecture, options: Options, encoder: str) -> int:
    """Smallest side of an image in pixels, for architecture and encoder together."""
    of_encoder = 32 if encoder.startswith("mit_") else 16 if encoder.startswith("efficientnet-") else 0
    return max((entry.min_size or entry.divisor).of(options), of_encoder)


def common_size(name: str, options: Options, encoder: str) -> int:
    """The smallest image side of at least 64 px that fits architecture and encoder."""
    entry = ARCHITECTURES[name]
    divisor = entry.divisor.of(options)
    return -(-max(64, min_size(entry, options, encoder)) // divisor) * divisor


def check_model(name: str, options: Options, encoder: str) -> None:
    """Check the architecture's options and the encoder's name against the registry. Raises UsageError.

    Unknown encoder names pass; `segexp.models.build` checks them against smp and timm.
    """
    entry = ARCHITECTURES.find(name)
    conflict = entry.check(options)
    if conflict:
        raise UsageError(conflict)
    if entry.encoder and encoder == NO_ENCODER:
        raise UsageError(f"model={name} needs an encoder: set backbone.name, for example backbone.name=resnet18")
    reason = entry.unsupported(encoder, options)
    if reason:
        others = [other.name for other in ARCHITECTURES.values() if not other.unsupported(encoder, other.defaults)]
        cure = f"; backbone.name={encoder} works with model={'|'.join(others)}" if others else ""
        wrong = f"model={name} does not support backbone.name={encoder}: {reason}"
        raise UsageError(f"{wrong}; it supports {entry.encoders}{cure}")


def check_size(name: str, options: Options, encoder: str, size: int, whose: str = "") -> None:
    """Check the side of the network's images, in pixels, against divisor and smallest size. Raises UsageError.

    whose: what has this size, for the message (default "dataset.image_size=...").
    """
    entry = ARCHITECTURES[name]
    divisor, least = entry.divisor.of(options), min_size(entry, options, encoder)
    relevant = [k for k in ("encoder_depth", "encoder_output_stride") if k in options]
    model = f"model={name}" + "".join(f" model.{k}={options[k]}" for k in relevant)
    whose = whose or f"dataset.image_size={size}"
    if size < least:
        minimum = f"the minimum is {least} px, in steps of {divisor}"
        on = f" with backbone.name={encoder}" if entry.encoder else ""
        raise UsageError(f"{whose} is too small for {model}{on}: {minimum}")
    if size % divisor:
        below = size // divisor * divisor
        near = [str(n) for n in (below, below + divisor) if n >= least]
        raise UsageError(f"{whose} does not fit {model}: use a multiple of {divisor}, such as {' or '.join(near)}")


CHANNELS_LAST_FROM = 128  # px; on CPU it was measured to be faster from there on


def memory_format(device: str, size: int, model: str) -> str:
    """``trainer.format=auto`` for a type of device and a side of the network's images in pixels: a fixed rule.
    Contiguous for networks of the user's own, which need not hold 2D convolutions."""
    known = model in ARCHITECTURES and not ARCHITECTURES[model].own
    pays = device == "cuda" or (device == "cpu" and size >= CHANNELS_LAST_FROM)
    return "channels_last" if known and pays else "contiguous"


def encoder_names() -> list[str]:
    """The names of all encoders of smp. (Any timm model with feature maps is ``tu-<name>``.) Imports torch."""
    from segmentation_models_pytorch.encoders import get_encoder_names

    return get_encoder_names()


@functools.cache  # for all runs of a sweep, until the file changes
def _file_sha(path: Path, mtime_ns: int, size: int) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def weights_sha(backbone: BackboneConfig) -> str:
    """SHA-256 of the weight file, "" if there is none. It identifies a run by the weights instead of the path."""
    if backbone.weights in (None, "imagenet"):
        return ""
    path = Path(str(backbone.weights)).expanduser()
    try:
        state = path.stat()
        return _file_sha(path, state.st_mtime_ns, state.st_size)
    except OSError as error:
        wrong = f"backbone.weights={backbone.weights}: no such file ({error.strerror})"
        raise UsageError(f"{wrong}; use null, imagenet or a path") from error


@functools.cache
def buildable() -> dict[str, tuple[str, ...]]:
    """Encoder -> architectures that trained with it in the measurement, from 1 to 7 channels, at default options."""
    with BUILDABLE.open(newline="", encoding="utf-8") as file:
        return {row.pop("encoder"): tuple(k for k, v in row.items() if v == "yes") for row in csv.DictReader(file)}


@functools.cache
def swapped() -> tuple[dict[str, str], ...]:
    """Measured results of the swap of hidden activations: rows of model, encoder, counts, and activations missed."""
    with SWAPPED.open(newline="", encoding="utf-8") as file:
        return tuple(csv.DictReader(file))


def swap_closes(encoder: str) -> bool | None:
    """Whether every hidden activation of the encoder can be replaced; None if not measured."""
    escaped = [row["escaped"] for row in swapped() if row["encoder"] == encoder]
    return not any(escaped) if escaped else None
