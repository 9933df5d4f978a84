"""Hidden activations that are linear or quadratic in pieces."""

from typing import TYPE_CHECKING, Annotated

from segexp.activations.hidden import learned, linear, of_torch, pointwise, quadratic, shrinkage, torch_module
from segexp.registry import NOT_NEGATIVE, Range

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module


linear(
    formula="max(x, 0)",
    derivative="1 if x > 0 else 0",
    range="[0, inf)",
    saturates="left",
    can_die=True,
    gain=1.4142,
    source="Nair and Hinton 2010",
)(of_torch("ReLU"))


@linear(
    formula="x if x > 0 else negative_slope x",
    derivative="1 if x > 0 else negative_slope",
    gain=1.4141,
    source="Maas et al. 2013",
)
def leaky_relu(*, negative_slope: Annotated[float, NOT_NEGATIVE] = 0.01) -> "Module":
    """Leaky rectifier."""
    return torch_module("LeakyReLU", negative_slope=negative_slope)


@learned(
    formula="x if x > 0 else weight x, weight learned",
    derivative="1 if x > 0 else weight",
    learnable=("weight",),
    gain=1.3720,
    source="He et al. 2015, arXiv:1502.01852",
)
def prelu(*, init: Annotated[float, Range()] = 0.25) -> "Module":
    """Rectifier with a learned slope on the left, one per call site."""
    return torch_module("PReLU", init=init)


@learned(
    formula="x if x > 0 else weight x, weight learned per channel",
    derivative="1 if x > 0 else weight",
    learnable=("weight",),
    gain=1.3720,
    source="He et al. 2015, arXiv:1502.01852",
)
def prelu_channel(*, channels: int, channel_dim: int, init: Annotated[float, Range()] = 0.25) -> "Module":
    """Rectifier with a learned slope on the left, one per channel of each call site, as in the source."""
    import torch.nn.functional as F

    def function(x: "Tensor", weight: "Tensor") -> "Tensor":
        weight = weight.to(x.dtype)
        if channels == 1:
            return F.prelu(x, weight)
        # torch expects the channels in dimension 1.
        return F.prelu(x.movedim(channel_dim, 1), weight).movedim(1, channel_dim)

    return pointwise(function, weight=[init] * channels)


linear(
    formula="x if x > 0 else a x, a ~ U(1/8, 1/3) in training, 11/48 in evaluation",
    derivative="1 if x > 0 else a",
    gain=1.3785,
    source="Xu et al. 2015, arXiv:1505.00853",
)(of_torch("RReLU"))
linear(
    formula="min(max(x, 0), 6)",
    derivative="1 if 0 < x < 6 else 0",
    range="[0, 6]",
    saturates="both",
    can_die=True,
    gain=1.4142,
    source="Krizhevsky 2010",
)(of_torch("ReLU6"))
linear(
    formula="min(max(x, -1), 1)",
    derivative="1 if |x| < 1 else 0",
    range="[-1, 1]",
    zero_centred=True,
    saturates="both",
    can_die=True,
    gain=1.3920,
    source="Collobert 2004",
)(of_torch("Hardtanh"))
linear(
    formula="min(max(x / 6 + 1/2, 0), 1)",
    derivative="1/6 if |x| < 3 else 0",
    range="[0, 1]",
    saturates="both",
    can_die=True,
    gain=1.8978,
    source="Howard et al. 2019, arXiv:1905.02244",
)(of_torch("Hardsigmoid"))
quadratic(
    formula="x min(max(x + 3, 0), 6) / 6",
    derivative="0 if x < -3, 1 if x > 3, else x / 3 + 1/2",
    range="[-3/8, inf)",
    saturates="left",
    can_die=True,
    gain=1.7367,
    source="Howard et al. 2019, arXiv:1905.02244",
)(of_torch("Hardswish"))


@quadratic(
    formula="x min(max(x + 2, 0), 2) / 2",
    derivative="0 if x < -2, 1 if x > 0, else x + 1",
    range="[-1/2, inf)",
    saturates="left",
    can_die=True,
    gain=1.3312,
    source="Misra 2020, github.com/digantamisra98/H-Mish",
)
def hard_mish() -> "Module":
    """Mish of pieces."""
    import torch.nn.functional as F

    # f' is 0 below -2, where x clamped to [-2, 0] plus 1 is -1.
    return pointwise(lambda x: x * (x + 2).clamp(0, 2) / 2, lambda g, x: g * F.threshold(x.clamp(-2, 0) + 1, -1.0, 0.0))


@quadratic(
    formula="max(x, 0)^2",
    derivative="2 max(x, 0)",
    range="[0, inf)",
    saturates="left",
    can_die=True,
    gain=0.8165,
    overflows_fp16=True,
    source="So et al. 2021, arXiv:2109.08668",
)
def squared_relu() -> "Module":
    """Squared rectifier."""
    return pointwise(lambda x: x.relu().square())


@learned(
    formula="scale max(x, 0)^2 + bias, learned from 0.8944 and -0.4472 on",
    derivative="2 scale max(x, 0)",
    range="[bias, inf)",
    saturates="left",
    can_die=True,
    learnable=("scale", "bias"),
    gain=1.0,
    overflows_fp16=True,
    source="Yu et al. 2022, arXiv:2210.13452",
)
def star_relu() -> "Module":
    """Squared rectifier, of mean 0 and variance 1 for normal x at first, as the source derives it (its code starts with
    1 and 0); scale and bias are one per call site."""

    def gradient(g: "Tensor", x: "Tensor", scale: "Tensor", bias: "Tensor") -> "tuple[Tensor, ...]":
        right = x.relu()
        weighted = g * right
        return 2 * scale * weighted, right.mul_(weighted).sum(), g.sum()

    return pointwise(lambda x, scale, bias: scale * x.relu().square() + bias, gradient, scale=0.8944, bias=-0.4472)


@linear(
    formula="x if x > threshold else value",
    derivative="1 if x > threshold else 0",
    range="[min(value, threshold), inf)",
    saturates="left",
    can_die=True,
    gain=1.5801,
    source="Konda et al. 2014, arXiv:1402.3337",
)
def threshold(*, threshold: Annotated[float, Range()] = 1.0, value: Annotated[float, Range()] = 0.0) -> "Module":
    """Rectifier with a threshold, at which it jumps."""
    return torch_module("Threshold", threshold=threshold, value=value)


linear(
    formula="x",
    derivative="1",
    zero_centred=True,
    gain=1.0,
    source="negative control: convolutions only, as far as normalisation and pooling are linear",
)(of_torch("Identity"))


@shrinkage(
    formula="x if |x| > lambd else 0",
    derivative="1 if |x| > lambd else 0",
    zero_centred=True,
    gain=1.0158,
    source="hard threshold, Donoho and Johnstone 1994",
)
def hardshrink(*, lambd: Annotated[float, NOT_NEGATIVE] = 0.5) -> "Module":
    """Line without its middle; it jumps at both ends of it."""
    return torch_module("Hardshrink", lambd=lambd)


@shrinkage(
    formula="sign(x) max(|x| - lambd, 0)",
    derivative="1 if |x| > lambd else 0",
    zero_centred=True,
    gain=1.5444,
    source="soft threshold, Donoho 1995",
)
def softshrink(*, lambd: Annotated[float, NOT_NEGATIVE] = 0.5) -> "Module":
    """Proximal map of lambd |x|."""
    return torch_module("Softshrink", lambd=lambd)
