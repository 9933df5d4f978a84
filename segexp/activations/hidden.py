"""Registry of hidden activations: the elementwise nonlinearities inside the network.

An entry is a function that makes the module: torch's own if there is one (`from_torch` registers one without options),
else a `pointwise` one. To add an activation, add one decorated function here; its keyword-only parameters become
options of the command line. Functions import torch themselves, so that the registry can be read without it.

Every module is finite with finite gradients for |x| <= 1e4 in float32 and bfloat16. None works in place, because
another branch of the network may need its input.
"""

import csv
import functools
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from segexp.activations.output import ALL_MODES, HeadMode
from segexp.registry import NOT_NEGATIVE, POSITIVE, Option, Range, Registry, options_of

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

Make = Callable[..., "Module"]

Sides = Literal["", "left", "right", "both"]

Scope = Literal["both", "encoder", "decoder"]

CALL_SITE = ("channels", "channel_dim")
"""Parameters that a make function may have: the number of channels of its call site, and their dimension (1 or -1)."""

SWAP_OPTIONS = (Option("scope", str, "both", choices=("both", "encoder", "decoder")),)
"""Option of every hidden activation: the part of the network in which it replaces activations."""

NO_HIDDEN = {
    "softmax": "normalises over channels, so it is not elementwise; it belongs to the head",
    "log_softmax": "normalises over channels, so it is not elementwise; it belongs to the loss (loss=ce)",
    "softmin": "normalises over channels, so it is not elementwise",
    "maxout": "combines several channels into one, so it is not elementwise",
    "glu": "combines two channels into one, so it is not elementwise",
}
"""Names that users may try and that cannot be used between two layers, each with the reason."""


@dataclass(frozen=True)
class HiddenActivation:
    """One entry. ``make`` builds a module; None leaves the architecture unchanged. It gets those of `CALL_SITE` that it
    has as parameters.

    derivative: f'(x). range: values of f. zero_centred: f is odd, so that symmetric inputs give outputs of mean 0.
    saturates: the sides on which f' goes to 0. can_die: f' is exactly 0 on a half line, so that a unit there gets no
    gradient. learnable: names of its learnable parameters. gain: 1 / sqrt(E f(z)^2), z ~ N(0, 1), at the default
    options (`measured_gain`). aliases: other names, each with the head modes in which it is valid (all).
    """

    name: str
    make: Make | None
    formula: str
    derivative: str = ""
    range: str = "(-inf, inf)"
    zero_centred: bool = False
    saturates: Sides = ""
    can_die: bool = False
    learnable: tuple[str, ...] = ()
    gain: float = math.nan
    source: str = ""
    aliases: Mapping[str, tuple[HeadMode, ...]] = field(default_factory=dict)
    options: tuple[Option, ...] = SWAP_OPTIONS


HIDDEN_ACTIVATIONS: Registry[HiddenActivation] = Registry("hidden_activation", refused=NO_HIDDEN)
HIDDEN_ACTIVATIONS.add(
    "native", HiddenActivation("native", None, "the activations of the architecture and encoder", range="")
)


def hidden_activation(*, aliases: tuple[str, ...] = (), **facts: Any) -> Callable[[Make], Make]:
    """Decorator: register the function under its own name. facts: fields of `HiddenActivation`."""

    def entry(make: Make) -> HiddenActivation:
        options, names = (*SWAP_OPTIONS, *options_of(make, CALL_SITE)), dict.fromkeys(aliases, ALL_MODES)
        return HiddenActivation(make.__name__, make, aliases=names, options=options, **facts)

    return HIDDEN_ACTIVATIONS.decorator(entry)


def from_torch(cls: str, **facts: Any) -> None:
    """Register ``torch.nn.<cls>``, without options, under its name in lower case. facts: as for `hidden_activation`."""

    def make() -> "Module":
        return _torch_module(cls)

    make.__name__ = cls.lower()
    hidden_activation(**facts)(make)


def _torch_module(cls: str, **options: Any) -> "Module":
    import torch

    module: torch.nn.Module = getattr(torch.nn, cls)(**options)
    return module


def make_hidden(name: str, options: Mapping[str, Any], channels: int = 1, channel_dim: int = 1) -> "Module":
    """A new module of the entry called ``name``; `SWAP_OPTIONS` among the options are ignored.

    channels, channel_dim: of its call site, for entries that depend on them. A module for one channel takes any input.
    """
    make = HIDDEN_ACTIVATIONS[name].make
    assert make is not None, "native is not a single function"
    swap = {option.name for option in SWAP_OPTIONS}
    own = {key: value for key, value in options.items() if key not in swap}
    site = zip(CALL_SITE, (channels, channel_dim), strict=True)
    parameters = inspect.signature(make).parameters
    return make(**own, **{key: value for key, value in site if key in parameters})


def function_names() -> list[str]:
    """Hidden activations that are one function, which has a curve and a cost: all but ``native``."""
    return [name for name, entry in HIDDEN_ACTIVATIONS.items() if entry.make is not None]


def measured_gain(module: "Module") -> float:
    """Kaiming's gain 1 / sqrt(E f(z)^2), z ~ N(0, 1), of a module in eval mode: float64, integrated over |z| <= 12.

    He et al. 2015, arXiv:1502.01852, eq. 10, with f in place of the rectifier.
    """
    import copy

    import torch

    z = torch.linspace(-12, 12, 24001, dtype=torch.float64)
    density = torch.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    with torch.no_grad():
        f = copy.deepcopy(module).to(device="cpu", dtype=torch.float64).eval()(one_channel(z)).flatten()
    return float(torch.trapezoid(f * f * density, z) ** -0.5)


def one_channel(x_N: "Tensor") -> "Tensor":
    """Numbers as images of one channel and pixel, (N, 1, 1, 1): what a module without a call site takes."""
    return x_N[:, None, None, None]


def pointwise(function: Callable[..., "Tensor"], **learnable: float | list[float]) -> "Module":
    """A module that applies ``function(x, **parameters)``; ``learnable`` holds the parameters' initial values.

    Each call site of a network has a module, and so parameters, of its own.
    """
    import torch

    class Pointwise(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, value in learnable.items():
                self.register_parameter(name, torch.nn.Parameter(torch.tensor(value, dtype=torch.float32)))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return function(x, **{name: getattr(self, name) for name in learnable})

        def extra_repr(self) -> str:
            return getattr(function, "__qualname__", "").split(".")[0]

    return Pointwise()


def _wide(x: "Tensor") -> "Tensor":
    """x in float32 or better."""
    return x if x.element_size() >= 4 else x.float()


COSTS = Path(__file__).with_name("hidden_cost.csv")
"""Measured on one machine by `segexp bench activations --csv FILE`. Ratios vary between machines, the order less so."""


@dataclass(frozen=True)
class Cost:
    """Measured cost of an activation: time forward and backward, and bytes kept for the backward pass.

    Times are multiples of relu's; saved_bytes are per element of the input.
    """

    forward: float
    backward: float
    both: float
    saved_bytes: float

    def __str__(self) -> str:
        """The class of the time of both passes, and the number."""
        names = {0.5: "below relu", 1.5: "as relu", 3: "up to 3x", 10: "up to 10x", math.inf: "above 10x"}
        shown = round(self.both, 1)
        return f"{next(name for bound, name in names.items() if shown <= bound)} ({shown})"


NOT_MEASURED = "not measured"


@functools.cache
def measured_costs() -> dict[str, Cost]:
    """Name -> measured cost. Entries added after the measurement are missing."""
    keys = ("forward", "backward", "both", "saved_bytes")
    with COSTS.open(newline="", encoding="utf-8") as file:
        return {row["name"]: Cost(**{key: float(row[key]) for key in keys}) for row in csv.DictReader(file)}


# Piecewise linear

from_torch(
    "ReLU",
    formula="max(x, 0)",
    derivative="1 if x > 0 else 0",
    range="[0, inf)",
    saturates="left",
    can_die=True,
    gain=1.4142,
    source="Nair and Hinton 2010",
)


@hidden_activation(
    formula="x if x > 0 else negative_slope x",
    derivative="1 if x > 0 else negative_slope",
    gain=1.4141,
    source="Maas et al. 2013",
)
def leaky_relu(*, negative_slope: Annotated[float, NOT_NEGATIVE] = 0.01) -> "Module":
    """Leaky rectifier."""
    return _torch_module("LeakyReLU", negative_slope=negative_slope)


@hidden_activation(
    formula="x if x > 0 else weight x, weight learned",
    derivative="1 if x > 0 else weight",
    learnable=("weight",),
    gain=1.3720,
    source="He et al. 2015, arXiv:1502.01852",
)
def prelu(*, init: Annotated[float, Range()] = 0.25) -> "Module":
    """Rectifier with a learned slope on the left, one per call site."""
    return _torch_module("PReLU", init=init)


@hidden_activation(
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


from_torch(
    "RReLU",
    formula="x if x > 0 else a x, a ~ U(1/8, 1/3) in training, 11/48 in evaluation",
    derivative="1 if x > 0 else a",
    gain=1.3785,
    source="Xu et al. 2015, arXiv:1505.00853",
)
from_torch(
    "ReLU6",
    formula="min(max(x, 0), 6)",
    derivative="1 if 0 < x < 6 else 0",
    range="[0, 6]",
    saturates="both",
    can_die=True,
    gain=1.4142,
    source="Krizhevsky 2010",
)
from_torch(
    "Hardtanh",
    formula="min(max(x, -1), 1)",
    derivative="1 if |x| < 1 else 0",
    range="[-1, 1]",
    zero_centred=True,
    saturates="both",
    can_die=True,
    gain=1.3920,
    source="Collobert 2004",
)
from_torch(
    "Hardsigmoid",
    formula="min(max(x / 6 + 1/2, 0), 1)",
    derivative="1/6 if |x| < 3 else 0",
    range="[0, 1]",
    saturates="both",
    can_die=True,
    gain=1.8978,
    source="Howard et al. 2019, arXiv:1905.02244",
)
from_torch(
    "Hardswish",
    formula="x min(max(x + 3, 0), 6) / 6",
    derivative="0 if x < -3, 1 if x > 3, else x / 3 + 1/2",
    range="[-3/8, inf)",
    saturates="left",
    can_die=True,
    gain=1.7367,
    source="Howard et al. 2019, arXiv:1905.02244",
)


@hidden_activation(
    formula="max(x, 0)^2",
    derivative="2 max(x, 0)",
    range="[0, inf)",
    saturates="left",
    can_die=True,
    gain=0.8165,
    source="So et al. 2021, arXiv:2109.08668",
)
def squared_relu() -> "Module":
    """Squared rectifier."""
    return pointwise(lambda x: x.relu().square())


from_torch(
    "Identity",
    formula="x",
    derivative="1",
    zero_centred=True,
    gain=1.0,
    source="negative control: convolutions only, as far as normalisation and pooling are linear",
)


# Exponential on the left


@hidden_activation(
    formula="x if x > 0 else alpha (e^x - 1)",
    derivative="1 if x > 0 else alpha e^x",
    range="(-alpha, inf)",
    saturates="left",
    gain=1.2452,
    source="Clevert et al. 2016, arXiv:1511.07289",
)
def elu(*, alpha: Annotated[float, POSITIVE] = 1.0) -> "Module":
    """Exponential linear unit."""
    return _torch_module("ELU", alpha=alpha)


@hidden_activation(
    formula="x if x > 0 else alpha (e^(x / alpha) - 1)",
    derivative="1 if x > 0 else e^(x / alpha)",
    range="(-alpha, inf)",
    saturates="left",
    gain=1.2452,
    source="Barron 2017, arXiv:1704.07483",
)
def celu(*, alpha: Annotated[float, POSITIVE] = 1.0) -> "Module":
    """Exponential linear unit with a continuous derivative for every alpha."""
    return _torch_module("CELU", alpha=alpha)


from_torch(
    "SELU",
    formula="1.0507 (x if x > 0 else 1.6733 (e^x - 1))",
    derivative="1.0507 (1 if x > 0 else 1.6733 e^x)",
    range="(-1.7581, inf)",
    saturates="left",
    gain=1.0,
    source="Klambauer et al. 2017, arXiv:1706.02515",
)


# Smooth rectifiers


@hidden_activation(
    formula="x Phi(x), Phi the normal CDF",
    derivative="Phi(x) + x e^(-x^2 / 2) / sqrt(2 pi)",
    range="[-0.17, inf)",
    saturates="left",
    gain=1.5335,
    source="Hendrycks and Gimpel 2016, arXiv:1606.08415",
)
def gelu(*, approximate: Literal["none", "tanh"] = "none") -> "Module":
    """Gaussian error linear unit; approximate=tanh: x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2."""
    return _torch_module("GELU", approximate=approximate)


from_torch(
    "SiLU",
    formula="x sigmoid(x)",
    derivative="s + x s (1 - s), s = sigmoid(x)",
    range="[-0.2785, inf)",
    saturates="left",
    gain=1.6765,
    source="Elfwing et al. 2018, arXiv:1702.03118; Ramachandran et al. 2017, arXiv:1710.05941",
    aliases=("swish",),
)


@hidden_activation(
    formula="x sigmoid(beta x), beta learned",
    derivative="s + beta x s (1 - s), s = sigmoid(beta x)",
    range="[-0.2785 / beta, inf)",
    saturates="left",
    learnable=("beta",),
    gain=1.6765,
    source="Ramachandran et al. 2017, arXiv:1710.05941",
)
def swish_beta(*, init: Annotated[float, POSITIVE] = 1.0) -> "Module":
    """Swish with a learned steepness, one per call site."""
    return pointwise(lambda x, beta: x * (beta * x).sigmoid(), beta=init)


from_torch(
    "Mish",
    formula="x tanh(ln(1 + e^x))",
    derivative="t + x (1 - t^2) sigmoid(x), t = tanh(ln(1 + e^x))",
    range="[-0.3088, inf)",
    saturates="left",
    gain=1.4868,
    source="Misra 2020, arXiv:1908.08681",
)


@hidden_activation(
    formula="ln(1 + e^(beta x)) / beta",
    derivative="sigmoid(beta x)",
    range="(0, inf)",
    saturates="left",
    gain=1.0419,
    source="Glorot et al. 2011",
)
def softplus(*, beta: Annotated[float, POSITIVE] = 1.0) -> "Module":
    """Smooth rectifier; linear to rounding from beta x = 20 on."""
    return _torch_module("Softplus", beta=beta)


@hidden_activation(
    formula="(x + sqrt(x^2 + b)) / 2",
    derivative="(1 + x / sqrt(x^2 + b)) / 2",
    range="(0, inf)",
    saturates="left",
    gain=0.8165,
    source="Barron 2021, arXiv:2112.11687",
)
def squareplus(*, b: Annotated[float, POSITIVE] = 4.0) -> "Module":
    """Algebraic softplus. For x < 0 the sum cancels; max(x, 0) + b / (2 (sqrt(x^2 + b) + |x|)) does not."""
    import torch

    def function(x: "Tensor") -> "Tensor":
        # At a tie the gradient of maximum is one half for each side, which is the derivative of this function at 0.
        return torch.maximum(x, torch.zeros_like(x)) + b / (2 * (torch.sqrt(x * x + b) + x.abs()))

    return pointwise(function)


@hidden_activation(
    formula="x tanh(x)",
    derivative="tanh(x) + x (1 - tanh(x)^2)",
    range="[0, inf)",
    gain=1.1487,
    source="Roy et al. 2019, arXiv:1901.05894",
)
def lisht() -> "Module":
    """Linearly scaled tanh: even, with a minimum at 0."""
    return pointwise(lambda x: x * x.tanh())


# Sigmoidal

from_torch(
    "Tanh",
    formula="tanh(x)",
    derivative="1 - tanh(x)^2",
    range="(-1, 1)",
    zero_centred=True,
    saturates="both",
    gain=1.5925,
    source="LeCun et al. 1998",
)
from_torch(
    "Sigmoid",
    formula="1 / (1 + e^-x)",
    derivative="s (1 - s), s = sigmoid(x)",
    range="(0, 1)",
    saturates="both",
    gain=1.8462,
    source="Rumelhart et al. 1986",
)
from_torch(
    "LogSigmoid",
    formula="-ln(1 + e^-x)",
    derivative="sigmoid(-x)",
    range="(-inf, 0)",
    saturates="right",
    gain=1.0419,
    source="torch.nn.LogSigmoid",
)
from_torch(
    "Softsign",
    formula="x / (1 + |x|)",
    derivative="1 / (1 + |x|)^2",
    range="(-1, 1)",
    zero_centred=True,
    saturates="both",
    gain=2.3375,
    source="Glorot and Bengio 2010",
)


@hidden_activation(
    formula="arctan(x)",
    derivative="1 / (1 + x^2)",
    range="(-pi/2, pi/2)",
    zero_centred=True,
    saturates="both",
    gain=1.4912,
    source="Nieradzik et al. 2021 (there as output activation)",
)
def arctan() -> "Module":
    """Arc tangent, not scaled to (-1, 1)."""
    return pointwise(lambda x: x.atan())


@hidden_activation(
    formula="erf(x)",
    derivative="2 e^(-x^2) / sqrt(pi)",
    range="(-1, 1)",
    zero_centred=True,
    saturates="both",
    gain=1.4672,
    source="Saad and Solla 1995",
)
def erf() -> "Module":
    """Error function."""
    return pointwise(lambda x: x.erf())


@hidden_activation(
    formula="x / sqrt(1 + alpha x^2)",
    derivative="(1 + alpha x^2)^(-3/2)",
    range="(-1 / sqrt(alpha), 1 / sqrt(alpha))",
    zero_centred=True,
    saturates="both",
    gain=1.7042,
    source="Carlile et al. 2017, arXiv:1710.09967",
)
def inverse_square_root(*, alpha: Annotated[float, POSITIVE] = 1.0) -> "Module":
    """Inverse square root unit; computed in float32 or better, because x^2 overflows float16 from 256 on."""

    def function(x: "Tensor") -> "Tensor":
        wide = _wide(x)
        return (wide * (1 + alpha * wide * wide).rsqrt()).to(x.dtype)

    return pointwise(function)


from_torch(
    "Tanhshrink",
    formula="x - tanh(x)",
    derivative="tanh(x)^2",
    zero_centred=True,
    gain=2.3384,
    source="torch.nn.Tanhshrink",
)


# Periodic and rational


@hidden_activation(
    formula="sin(frequency x)",
    derivative="frequency cos(frequency x)",
    range="[-1, 1]",
    zero_centred=True,
    gain=1.5209,
    source="Sitzmann et al. 2020, arXiv:2006.09661",
)
def sine(*, frequency: Annotated[float, POSITIVE] = 1.0) -> "Module":
    """Sine; the source's 30 is for coordinates as input."""
    return pointwise(lambda x: (frequency * x).sin())


@hidden_activation(
    formula="x + sin(a x)^2 / a, a learned",
    derivative="1 + sin(2 a x)",
    learnable=("a",),
    gain=0.8746,
    source="Ziyin et al. 2020, arXiv:2006.08195",
)
def snake(*, init: Annotated[float, POSITIVE] = 1.0) -> "Module":
    """Line with a ripple of learned frequency, one per call site; a may be 0, where the ripple vanishes."""

    def function(x: "Tensor", a: "Tensor") -> "Tensor":
        t = a * x
        # sin(t)^2 / a without a division by a.
        return x + x * t.sin() * (t / math.pi).sinc()

    return pointwise(function, a=init)


@hidden_activation(
    formula="P(x) / (1 + |Q(x)|), P of degree 5, Q = q1 x + ... + q4 x^4, coefficients learned",
    derivative="(P' (1 + |Q|) - P Q' sign Q) / (1 + |Q|)^2",
    learnable=("numerator", "denominator"),
    gain=1.4140,
    source="Molina et al. 2020, arXiv:1907.06732; begins as the least-squares fit to leaky_relu on [-4, 4]",
)
def rational() -> "Module":
    """Padé activation unit, one per call site; computed in float32 or better."""

    def function(x: "Tensor", numerator: "Tensor", denominator: "Tensor") -> "Tensor":
        wide = _wide(x)
        p = numerator[5]
        for power in (4, 3, 2, 1, 0):
            p = p * wide + numerator[power]
        q = denominator[3] * wide
        for power in (2, 1, 0):
            q = (q + denominator[power]) * wide
        return (p / (1 + q.abs())).to(x.dtype)

    return pointwise(
        function, numerator=[0.0448, 0.505, 1.2388, 1.1282, 0.3918, 0.048], denominator=[0.0, 2.234, 0.0, 0.0951]
    )
