"""Registry of output activations.

An output activation maps a logit x to a probability p = F(x). Each is written once, as its log-odds

    phi(x) = ln F(x) - ln(1 - F(x)),        p = sigmoid(phi(x)),

because phi gives every loss and score in a stable form: ln p = logsigmoid(phi), ln(1 - p) = logsigmoid(-phi) and, over
classes, p = softmax(phi(z)). Functions take and return a floating tensor of any shape, in float32 or better
(`segexp.activations.head` converts), and stay finite with finite gradients for |x| <= 1e6.

To add an activation, add one decorated function to `symmetric` or `special`; its keyword-only parameters become options
of the command line. Functions import torch themselves, so that the registry can be read without it.

Notation: a = |x|, q = 1 - F(a) the upper tail mass, t = phi(x) the log-odds.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from segexp.registry import POSITIVE, Option, Range, Registry, options_of

if TYPE_CHECKING:
    from torch import Tensor

HeadMode = Literal["binary", "independent", "softmax"]
"""binary: one logit (two classes). independent: C - 1 binary channels. softmax: C exclusive classes."""

ALL_MODES: tuple[HeadMode, ...] = ("binary", "independent", "softmax")

Offer = Literal["log_odds", "values"]
"""What a prediction holds: log-odds (hence probabilities, which are values too), or plain values only."""

LogOdds = Callable[..., "Tensor"]

Map = Callable[["Tensor"], "Tensor"]


def mirrored(x: "Tensor", half: Map) -> "Tensor":
    """The odd function that is half(a) over a = |x|, with the slope of that half at 0."""
    negative = x < 0
    y = half((-x).where(negative, x))
    return (-y).where(negative, y)


def beyond(a: "Tensor", end: float) -> "Tensor":
    """1 where a > end, else 0, to choose by `lerp`: on a CPU several times as fast as a boolean tensor and `where`."""
    return (a - end).relu().sign()


@dataclass(frozen=True)
class ClosedForm:
    """A log-odds function whose derivative is not left to automatic differentiation; called as the function is.

    derivative: phi'(x), with the options of ``value``; differentiable in turn. Where options can be tensors, a pair of
    it and the derivatives by these, by name.
    """

    value: LogOdds
    derivative: Callable[..., Any]

    def __call__(self, x: "Tensor", **options: Any) -> "Tensor":
        from segexp.activations.closed_form import applied

        return applied(self, x, options)


HEAD_OPTIONS = (
    Option("slope", str, "native", range=Range(0, above=True, words=("native", "matched", "learned"))),
    Option("prior_bias", str, "none", range=Range(0, 1, above=True, below=True, words=("none", "auto"))),
    Option("prior_bias_cap", float, 10.0, range=POSITIVE),
)
"""Options of every output activation, in addition to those of its function.

slope: scales the input, F(s x). native: s = 1; matched: s = 1 / (4 F'(0)), which gives the sigmoid's slope at 0;
learned: s = exp(theta), trained with the network from s = 1.
prior_bias: initialises the bias of the last layer so that F gives this foreground fraction (auto: that of the training
masks). prior_bias_cap: limit of |bias|; without it a heavy tail would start at -49 for a fraction of 1 %.
"""


@dataclass(frozen=True)
class OutputActivation:
    """One entry. ``log_odds`` is None for `identity`, whose values are not probabilities.

    tail: how fast 1 - F(x) falls. wrong_pixel: |d BCE / d logit| on a pixel that is wrong by a logit of size a.
    slope_at_zero: F'(0) at the default options; None if F is not a function of x alone. slope_of_options: F'(0) as a
    function of the options, where it depends on them. inverse: log-odds t -> x in closed form, with the options of
    ``log_odds``; None if it is solved numerically (`segexp.activations.head`). derivative: phi'(x) in
    closed form: ``log_odds`` becomes a `ClosedForm`; without it gradients are autograd's. learnable: options
    whose value is the initial value of a parameter that is trained with the network; ``log_odds`` gets a scalar tensor
    for each, within the option's range up to rounding. modes: the head modes in which it is defined. linear: phi is a
    multiple of x. clips: F is 0 or 1 beyond some logit, so that p is clipped to [eps, 1 - eps] (option ``eps``) and has
    no gradient there. per_batch: F depends on the other logits of the batch. overflows_fp16: the gradient of a wrong
    pixel grows as e^a under cross-entropy: beyond a = ln 65504 = 11.1 (for the mean over n pixels, ln 65504 n) it is
    infinite in fp16, whatever the loss scale. warning: shown to users of this activation. aliases: other names of the
    same map, each with the head modes in which it is valid.
    """

    name: str
    log_odds: LogOdds | None
    formula: str
    tail: str
    wrong_pixel: str
    slope_at_zero: float | None
    source: str
    range: str = "(0, 1)"
    inverse: LogOdds | None = None
    derivative: Callable[..., Any] | None = None
    slope_of_options: Callable[..., float] | None = None
    learnable: tuple[str, ...] = ()
    modes: tuple[HeadMode, ...] = ALL_MODES
    linear: bool = False
    clips: bool = False
    per_batch: bool = False
    overflows_fp16: bool = False
    warning: str = ""
    offers: tuple[Offer, ...] = ("log_odds", "values")
    aliases: Mapping[str, tuple[HeadMode, ...]] = field(default_factory=dict)
    options: tuple[Option, ...] = HEAD_OPTIONS

    def __post_init__(self) -> None:
        numbers = {option.name for option in self.options if option.type is float or option.range.words}
        if unknown := set(self.learnable) - numbers:
            raise ValueError(f"{self.name}: learnable names {', '.join(sorted(unknown))}, no options of type float")
        if self.log_odds and self.derivative and not isinstance(self.log_odds, ClosedForm):
            object.__setattr__(self, "log_odds", ClosedForm(self.log_odds, self.derivative))


OUTPUT_ACTIVATIONS: Registry[OutputActivation] = Registry("activation")


def output_activation(**facts: Any) -> Callable[[LogOdds], LogOdds]:
    """Decorator: register the log-odds function under its own name. facts: fields of `OutputActivation`."""

    def entry(function: LogOdds) -> OutputActivation:
        return OutputActivation(function.__name__, function, options=(*HEAD_OPTIONS, *options_of(function)), **facts)

    return OUTPUT_ACTIVATIONS.decorator(entry)


def head_mode(num_classes: int, mode: str) -> HeadMode:
    """The mode used: with two classes there is one logit, and ``mode`` (``head.mode``) has no effect."""
    if num_classes == 2:
        return "binary"
    if mode not in ("auto", "softmax", "independent"):
        raise ValueError(f"unknown head mode {mode!r}: auto, softmax or independent")
    return "independent" if mode == "independent" else "softmax"


def logit_channels(num_classes: int, mode: HeadMode, first: int = 1) -> int:
    """K, the number of output channels of the network. first: the first foreground class."""
    return {"binary": 1, "independent": num_classes - first, "softmax": num_classes}[mode]


def slope_of(activation: OutputActivation, params: Mapping[str, Any]) -> float:
    """s of F(s x), from the option slope: 1 for "native", 1 / (4 F'(0)) for "matched", the initial value 1 for
    "learned", else the number given. params: the activation's options; those not given have their defaults.

    Raises ValueError for another word, a number that is not above 0, or an F that has no slope of its own.
    """
    slope = params.get("slope", "native")
    if slope == "native":
        return 1.0
    if activation.slope_at_zero is None and activation.slope_of_options is None:
        raise ValueError(f"{activation.name} has no slope: it scales the logits by the batch, which cancels any slope")
    if slope == "learned":
        return 1.0
    if slope == "matched":
        of_options, known = activation.slope_of_options, {o.name: o.default for o in activation.options} | dict(params)
        return 1 / (4 * (of_options(**own_params(known)) if of_options else activation.slope_at_zero))  # type: ignore
    number = float(slope)
    if not 0 < number < math.inf:
        raise ValueError(f"slope={slope} must be native, matched, learned or a number above 0")
    return number


def learnable_with(activation: OutputActivation, params: Mapping[str, Any]) -> OutputActivation:
    """The activation as it is under these options: slope=learned makes the slope one of its learned options."""
    if params.get("slope") != "learned":
        return activation
    return replace(activation, learnable=(*activation.learnable, "slope"))


def outside(activation: OutputActivation, mode: HeadMode) -> str | None:
    """The reason why the activation does not exist under a head mode; None if it does."""
    if mode in activation.modes:
        return None
    cure = "dataset.num_classes of 3 or more, and head.mode=softmax" if activation.modes == ("softmax",) else ""
    cure = cure or f"head.mode={' or '.join(activation.modes)}"
    return f"{activation.name} is not defined for a {mode} head: it needs {cure}"


def own_params(params: Mapping[str, Any]) -> dict[str, Any]:
    """The options of the activation's own function, without `HEAD_OPTIONS`."""
    shared = {option.name for option in HEAD_OPTIONS}
    return {name: value for name, value in params.items() if name not in shared}


# They register the activations, in the order of every list.
from segexp.activations.output import symmetric  # noqa: E402, F401, I001
from segexp.activations.output import special  # noqa: E402, F401
