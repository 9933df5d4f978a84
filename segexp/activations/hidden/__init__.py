"""Registry of hidden activations: the elementwise nonlinearities inside the network.

An entry is a function that makes the module: torch's own if there is one (`of_torch`), else a `pointwise` or `sloped`
one. To add an activation, add one decorated function to `piecewise` or `curved`; its keyword-only parameters become
options of the command line. Functions import torch themselves, so that the registry can be read without it.

Every module is finite with finite gradients for |x| <= 1e4 in float32 and bfloat16. None works in place, because
another branch of the network may need its input.
"""

import csv
import functools
import inspect
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from segexp.activations.output import ALL_MODES, HeadMode
from segexp.registry import Option, Registry, options_of
from segexp.registry.plugins import CALL_SITE

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

    from segexp.activations.hidden.elementwise import Function, Gradient, Prepare, WithSlopes

Make = Callable[..., "Module"]

Sides = Literal["", "left", "right", "both"]

Scope = Literal["both", "encoder", "decoder"]

SWAP_OPTIONS = (Option("scope", str, "both", choices=("both", "encoder", "decoder")),)
"""Option of every hidden activation: the part of the network in which it replaces activations."""

NO_HIDDEN = {
    "softmax": "normalises over channels, so it is not elementwise; it belongs to the head",
    "log_softmax": "normalises over channels, so it is not elementwise; it belongs to the loss (loss=ce)",
    "softmin": "normalises over channels, so it is not elementwise",
    "maxout": "combines several channels into one, so it is not elementwise",
    **dict.fromkeys(
        ("glu", "swiglu", "geglu", "reglu", "siglu"), "combines two channels into one, so it is not elementwise"
    ),
    "crelu": "doubles the number of channels, so it is not elementwise",
    **dict.fromkeys(
        ("dyt", "dynamic_tanh"),
        "takes the place of a normalisation layer, not of an activation; hidden_activation=tanh is its function",
    ),
}
"""Names that users may try and that cannot be used between two layers, each with the reason."""


@dataclass(frozen=True)
class HiddenActivation:
    """One entry. ``make`` builds a module; None leaves the architecture unchanged. It gets those of `CALL_SITE` that it
    has as parameters.

    derivative: f'(x). range: the interval of the values of f. zero_centred: f is odd, so that symmetric inputs give
    outputs of mean 0. saturates: the sides on which f' goes to 0. can_die: f' is exactly 0 on a half line, so that a
    unit there gets no gradient. learnable: names of its learnable parameters. gain: 1 / sqrt(E f(z)^2), z ~ N(0, 1), at
    the default options (`measured_gain`). year: of the first publication. family: its kind, in one word.
    overflows_fp16: f or its gradient is not finite in float16 for some |x| <= 1e4. aliases: other names, each with the
    head modes in which it is valid (all).
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
    year: int | None = None
    family: str = ""
    overflows_fp16: bool = False
    aliases: Mapping[str, tuple[HeadMode, ...]] = field(default_factory=dict)
    options: tuple[Option, ...] = SWAP_OPTIONS


HIDDEN_ACTIVATIONS: Registry[HiddenActivation] = Registry("hidden_activation", refused=NO_HIDDEN)
HIDDEN_ACTIVATIONS.add(
    "native", HiddenActivation("native", None, "the activations of the architecture and encoder", range="")
)


def hidden_activation(*, aliases: tuple[str, ...] = (), **facts: Any) -> Callable[[Make], Make]:
    """Decorator: register the function under its own name. facts: fields of `HiddenActivation`.

    year: by default the earliest that ``source`` names.
    """
    years = re.findall(r"(?<= )(?:19|20)\d\d(?=[,;) ]|$)", facts.get("source", ""))
    facts = {"year": min(map(int, years), default=None)} | facts

    def entry(make: Make) -> HiddenActivation:
        options, names = (*SWAP_OPTIONS, *options_of(make, CALL_SITE)), dict.fromkeys(aliases, ALL_MODES)
        return HiddenActivation(make.__name__, make, aliases=names, options=options, **facts)

    return HIDDEN_ACTIVATIONS.decorator(entry)


linear = functools.partial(hidden_activation, family="linear")
quadratic = functools.partial(hidden_activation, family="quadratic")
exponential = functools.partial(hidden_activation, family="exponential")
smooth = functools.partial(hidden_activation, family="smooth")
sigmoidal = functools.partial(hidden_activation, family="sigmoidal")
periodic = functools.partial(hidden_activation, family="periodic")
shrinkage = functools.partial(hidden_activation, family="shrinkage")
learned = functools.partial(hidden_activation, family="learned")


def of_torch(cls: str, name: str = "", **options: Any) -> Make:
    """A make function, without options, of ``torch.nn.<cls>(**options)``. name: by default the class in lower case."""

    def make() -> "Module":
        return torch_module(cls, **options)

    make.__name__ = name or cls.lower()
    return make


def torch_module(cls: str, **options: Any) -> "Module":
    import torch

    module: torch.nn.Module = getattr(torch.nn, cls)(**options)
    return module


def make_hidden(name: str, options: Mapping[str, Any], channels: int = 1, channel_dim: int = 1) -> "Module":
    """A new module of the entry called ``name``, with its defaults for options that are not given; `SWAP_OPTIONS` among
    them are ignored.

    channels, channel_dim: of its call site, for entries that depend on them. A module for one channel takes any input.
    """
    make = HIDDEN_ACTIVATIONS[name].make
    assert make is not None, "native is not a single function"
    swap = {option.name for option in SWAP_OPTIONS}
    defaults = {option.name: option.default for option in HIDDEN_ACTIVATIONS[name].options}
    own = {key: value for key, value in (defaults | dict(options)).items() if key not in swap}
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


def pointwise(
    function: "Function", gradient: "Gradient | None" = None, prepare: "Prepare | None" = None, /, **learnable: Any
) -> "Module":
    """A module that applies ``function(x, **parameters)``; ``learnable`` holds the parameters' initial values.

    gradient: the backward pass in closed form, (g, x, *parameters) -> g f'(x), followed for each parameter by the sum
    of g df/dparameter. With it x alone is kept for the backward pass, and all is computed in float32 or better; it may
    work in place on tensors of its own. prepare: computes from the parameters the constants that function and gradient
    have in their place. Each call site of a network has a module, and so parameters, of its own.
    """
    from segexp.activations.hidden.elementwise import Pointwise

    return Pointwise(function, gradient, prepare, learnable)


def sloped(with_slopes: "WithSlopes", /, **learnable: float) -> "Module":
    """A module that applies f of (x, **parameters) -> f, f' and df/dparameter of each, for functions that share costly
    steps with their slopes. The slopes alone are kept for the backward pass, in float32 or better; a second derivative
    is refused. The operations must not work in place."""
    from segexp.activations.hidden.elementwise import Pointwise

    return Pointwise(lambda *given: with_slopes(*given)[0], None, None, learnable, with_slopes)


COSTS = Path(__file__).parent.with_name("hidden_cost.csv")
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


# They register the activations, in the order of every list.
from segexp.activations.hidden import piecewise  # noqa: E402, F401, I001
from segexp.activations.hidden import curved  # noqa: E402, F401
