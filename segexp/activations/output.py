"""Registry of output activations.

An output activation maps a logit x to a probability p = F(x). Each is written once, as its log-odds

    phi(x) = ln F(x) - ln(1 - F(x)),        p = sigmoid(phi(x)),

because phi gives every loss and score in a stable form: ln p = logsigmoid(phi), ln(1 - p) = logsigmoid(-phi) and, over
classes, p = softmax(phi(z)). Functions take and return a floating tensor of any shape, in float32 or better
(`segexp.activations.head` converts), and stay finite with finite gradients for |x| <= 1e6.

To add an activation, add one decorated function here; its keyword-only parameters become options of the command line.
Functions import torch themselves, so that the registry can be read without it.

Notation: a = |x|, q = 1 - F(a) the upper tail mass, t = phi(x) the log-odds.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

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
    ``log_odds``; None if it is solved numerically (`segexp.activations.head`). learnable: options whose value is the
    initial value of a parameter that is trained with the network; ``log_odds`` gets a scalar tensor for each, within
    the option's range up to rounding. modes: the head modes in which it is defined. linear: phi is a multiple of x.
    clips: F is 0 or 1 beyond some logit, so that p is clipped to [eps, 1 - eps] (option ``eps``) and has no gradient
    there. per_batch: F depends on the other logits of the batch. overflows_fp16: the gradient of a wrong pixel grows as
    e^a under cross-entropy: beyond a = ln 65504 = 11.1 (for the mean over n pixels, ln 65504 n) it is infinite in fp16,
    whatever the loss scale. warning: shown to users of this activation. aliases: other names of the same map, each with
    the head modes in which it is valid.
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


OUTPUT_ACTIVATIONS: Registry[OutputActivation] = Registry("activation")


def output_activation(**facts: Any) -> Callable[[LogOdds], LogOdds]:
    """Decorator: register the log-odds function under its own name. facts: fields of `OutputActivation`."""

    def entry(function: LogOdds) -> OutputActivation:
        options = (*HEAD_OPTIONS, *options_of(function))
        floats = {option.name for option in options if option.type is float}
        if unknown := set(facts.get("learnable", ())) - floats:
            raise ValueError(
                f"{function.__name__}: learnable names {sorted(unknown)}, which are no options of type float"
            )
        return OutputActivation(function.__name__, function, options=options, **facts)

    return OUTPUT_ACTIVATIONS.decorator(entry)


def head_mode(num_classes: int, mode: str) -> HeadMode:
    """The mode used: with two classes there is one logit, and ``mode`` (``head.mode``) has no effect."""
    if num_classes == 2:
        return "binary"
    if mode not in ("softmax", "independent"):
        raise ValueError(f"unknown head mode {mode!r}: softmax or independent")
    return "softmax" if mode == "softmax" else "independent"


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
    if activation.slope_at_zero is None:
        raise ValueError(f"{activation.name} has no slope: it scales the logits by the batch, which cancels any slope")
    if slope == "learned":
        return 1.0
    if slope == "matched":
        of_options = activation.slope_of_options
        return 1 / (4 * (of_options(**own_params(params)) if of_options else activation.slope_at_zero))
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


def _odd(x: "Tensor", centre: Map, log_tail: Map) -> "Tensor":
    """The odd log-odds map of a symmetric F from its two halves over a = |x|.

    centre(a) = 2 F(a) - 1 keeps its precision near 0, where phi = 2 artanh(2 F - 1);
    log_tail(a) = ln(1 - F(a)) keeps it far out, where phi = ln(1 - q) - ln q. Each branch only gets arguments in its
    valid range, so that the branch not taken has no infinite gradient. At x = 0 the slope is that of the right half.
    """
    negative = x < 0
    a = (-x).where(negative, x)
    far = ~(a < 0.5)
    log_q = log_tail(a.where(far, 0.5))
    half = ((-log_q.exp()).log1p() - log_q).where(far, 2 * centre(a.where(~far, 0.0)).atanh())
    return (-half).where(negative, half)


def _odd_inverse(t: "Tensor", near: Map, far: Map) -> "Tensor":
    """x of the log-odds t of a symmetric F: near(w) of w = 2 F(a) - 1 where F(a) < 0.9, far(q) beyond; both give a."""
    size = t.abs()
    is_near = size < math.log(9)
    w = (size.where(is_near, 0.0) / 2).tanh()
    q = (-size.where(~is_near, math.log(9))).sigmoid()
    return near(w).where(is_near, far(q)).copysign(t)


@output_activation(
    formula="1 / (1 + e^-x)",
    tail="exponential, e^-a",
    wrong_pixel="-> 1",
    slope_at_zero=0.25,
    source="Verhulst 1838; Cox 1958",
    inverse=lambda t: t,
    linear=True,
    aliases={"softmax": ("softmax",)},
)
def sigmoid(x: "Tensor") -> "Tensor":
    """phi(x) = x. Under head.mode=softmax this is exactly softmax, its multi-class name."""
    return x


@output_activation(
    formula="(1 + tanh x) / 2 = sigmoid(2x)",
    tail="exponential, e^-2a",
    wrong_pixel="-> 2",
    slope_at_zero=0.5,
    source="sigmoid at twice the slope",
    inverse=lambda t: t / 2,
    linear=True,
)
def tanh(x: "Tensor") -> "Tensor":
    """phi(x) = 2x."""
    return 2 * x


def _arctan_inverse(t: "Tensor") -> "Tensor":
    return _odd_inverse(t, lambda w: (w * (math.pi / 2)).tan(), lambda q: 1 / (math.pi * q).tan())


@output_activation(
    formula="1/2 + atan(x) / pi",
    tail="algebraic, 1 / (pi a)",
    wrong_pixel="1 / a",
    slope_at_zero=1 / math.pi,
    source="Cauchy CDF (Student t1); Nieradzik et al. 2021, arXiv:2109.00903",
    inverse=_arctan_inverse,
)
def arctan(x: "Tensor") -> "Tensor":
    """Log-odds of the Cauchy CDF; ln(1 - F(a)) = ln(atan2(1, a) / pi) keeps the far tail."""
    import torch

    return _odd(
        x,
        centre=lambda a: torch.atan(a) * (2 / math.pi),
        log_tail=lambda a: torch.log(torch.atan2(torch.ones_like(a), a) / math.pi),
    )


@output_activation(
    formula="Phi(x), the standard normal CDF",
    tail="Gaussian, e^(-a^2/2)",
    wrong_pixel="~ a",
    slope_at_zero=1 / math.sqrt(2 * math.pi),
    source="probit, Bliss 1934; Nieradzik et al. 2021, arXiv:2109.00903",
    aliases={"probit": ALL_MODES},
)
def normal_cdf(x: "Tensor") -> "Tensor":
    """Log-odds of the normal CDF; erfcx, because the backward of `torch.special.log_ndtr` is wrong far out."""
    import torch

    return _odd(
        x,
        centre=lambda a: torch.erf(a / math.sqrt(2)),
        log_tail=lambda a: torch.log(torch.special.erfcx(a / math.sqrt(2)) / 2) - a * a / 2,
    )


@output_activation(
    formula="1/2 + x / (2 sqrt(1 + x^2))",
    tail="algebraic, 1 / (4 a^2)",
    wrong_pixel="2 / a",
    slope_at_zero=0.5,
    source="Student t2 CDF at sqrt(2) x; Nieradzik et al. 2021, arXiv:2109.00903",
    inverse=lambda t: (t / 2).sinh(),
)
def inverse_square_root(x: "Tensor") -> "Tensor":
    """phi(x) = 2 asinh(x), since F / (1 - F) = (x + sqrt(1 + x^2))^2."""
    return 2 * x.asinh()


@output_activation(
    formula="1/2 + x / (2 (1 + |x|))",
    tail="algebraic, 1 / (2 a)",
    wrong_pixel="~ 1 / (1 + a)",
    slope_at_zero=0.5,
    source="Nieradzik et al. 2021, arXiv:2109.00903",
    inverse=lambda t: (t.abs().expm1() / 2).copysign(t),
)
def softsign(x: "Tensor") -> "Tensor":
    """phi(x) = sign(x) ln(1 + 2 |x|)."""
    negative = x < 0
    half = (2 * (-x).where(negative, x)).log1p()
    return (-half).where(negative, half)


@output_activation(
    formula="1 - e^-a / 2 for x >= 0, mirrored below",
    tail="exponential, e^-a / 2",
    wrong_pixel="= 1",
    slope_at_zero=0.5,
    source="Laplace CDF, Laplace 1774",
    # 2 (1 - F(a)) = 2 / (1 + e^t), solved for a.
    inverse=lambda t: (t.abs() + ((-t.abs()).expm1() / 2).log1p()).copysign(t),
)
def laplace(x: "Tensor") -> "Tensor":
    """phi(x) = sign(x) (a + ln(2 - e^-a)): its gradient on a wrong pixel is exactly 1."""
    negative = x < 0
    a = (-x).where(negative, x)
    half = a + (-(-a).expm1()).log1p()
    return (-half).where(negative, half)


def _t3_log_tail(a: "Tensor") -> "Tensor":
    """ln((atan(1/u) - u / (1 + u^2)) / pi), u = a / sqrt 3; beyond u = 4 the difference cancels and its series is used:
    with v = 1/u, (2/3) v^3 - (4/5) v^5 + (6/7) v^7 - ..."""
    import torch

    u = a / math.sqrt(3)
    far = u > 4
    u_near = u.where(~far, 1.0)
    near = ((torch.atan2(torch.ones_like(u), u_near) - u_near / (1 + u_near * u_near)) / math.pi).log()
    v = 1 / u.where(far, 4.0)
    w = v * v
    series = torch.zeros_like(w)
    for k in range(14, 0, -1):
        series = (-1) ** (k + 1) * 2 * k / (2 * k + 1) + w * series
    return (3 * v.log() + (series / math.pi).log()).where(far, near)


@output_activation(
    formula="1/2 + (atan u + u / (1 + u^2)) / pi, u = x / sqrt 3",
    tail="algebraic, ~ a^-3",
    wrong_pixel="3 / a",
    slope_at_zero=2 / (math.pi * math.sqrt(3)),
    source="Student t CDF, 3 degrees of freedom, Student 1908",
)
def student_t3(x: "Tensor") -> "Tensor":
    """Log-odds of Student's t3 CDF, between arctan (t1) and the normal in weight of tail."""

    def centre(a: "Tensor") -> "Tensor":
        u = a / math.sqrt(3)
        return (u.atan() + u / (1 + u * u)) * (2 / math.pi)

    return _odd(x, centre, _t3_log_tail)


def _t4_inverse(t: "Tensor") -> "Tensor":
    """With s = a / sqrt(4 + a^2), d = 1 - s: 2 F - 1 = (3 s - s^3) / 2 = sin(3 asin(s / 2)), q = d^2 (3 - d) / 4."""

    def near(w: "Tensor") -> "Tensor":
        s = 2 * (w.asin() / 3).sin()
        return 2 * s / ((1 - s) * (1 + s)).sqrt()

    def far(q: "Tensor") -> "Tensor":
        b = q.sqrt().asin() * (2 / 3)
        d = 2 * (b / 2).sin().square() + math.sqrt(3) * b.sin()
        return 2 * (1 - d) / (d * (2 - d)).sqrt()

    return _odd_inverse(t, near, far)


@output_activation(
    formula="1/2 + (3 s - s^3) / 4, s = x / sqrt(4 + x^2)",
    tail="algebraic, ~ 3 a^-4",
    wrong_pixel="4 / a",
    slope_at_zero=0.375,
    source="Student t CDF, 4 degrees of freedom, Student 1908",
    inverse=_t4_inverse,
)
def student_t4(x: "Tensor") -> "Tensor":
    """Log-odds of Student's t4 CDF; q = d^2 (3 - d) / 4 with d = 1 - s = 4 / (g (g + a)), g = sqrt(4 + a^2)."""

    def centre(a: "Tensor") -> "Tensor":
        g_squared = 4 + a * a
        return a * (3 - a * a / g_squared) / (2 * g_squared.sqrt())

    def log_tail(a: "Tensor") -> "Tensor":
        g = (4 + a * a).sqrt()
        d = 4 / (g * (g + a))
        return 2 * d.log() + (3 - d).log() - 2 * math.log(2)

    return _odd(x, centre, log_tail)


@output_activation(
    formula="(2/pi) atan(e^(pi x / 2))",
    tail="exponential, ~ e^(-pi a / 2)",
    wrong_pixel="-> pi / 2",
    slope_at_zero=0.5,
    source="hyperbolic secant CDF, Perks 1932",
    inverse=lambda t: _odd_inverse(
        t,
        near=lambda w: (w * (math.pi / 2)).tan().asinh() * (2 / math.pi),
        far=lambda q: -(q * (math.pi / 2)).tan().log() * (2 / math.pi),
    ),
)
def hyperbolic_secant(x: "Tensor") -> "Tensor":
    """Log-odds of the hyperbolic secant CDF; ln q = ln(2/pi) - pi a / 2 + ln(atan(z) / z), z = e^(-pi a / 2)."""

    def log_tail(a: "Tensor") -> "Tensor":
        # Beyond a = 20 the last term is 0 to every digit of float64, and z would underflow to 0 / 0.
        z = (a.clamp_max(20) * (-math.pi / 2)).exp()
        return math.log(2 / math.pi) - a * (math.pi / 2) + (z.atan() / z).log()

    return _odd(x, centre=lambda a: (a * (math.pi / 4)).tanh().atan() * (4 / math.pi), log_tail=log_tail)


UNIT = Range(0, 1, above=True, below=True)

TAIL_SCALE, TAIL_FACTOR = 0.22956, 5.45763
"""c and m of `learned_tail` at tail = 1: there F comes closest to the normal CDF, within 4e-5."""


def _tail_constants(tail: Any) -> tuple[Any, Any]:
    """c and m of `learned_tail`, both 1 at tail = 0."""
    return TAIL_SCALE**tail, TAIL_FACTOR**tail


def _learned_tail_inverse(t: "Tensor", tail: float = 0.5) -> "Tensor":
    scale, factor = _tail_constants(tail)
    return _arctan_inverse((t * (2 * tail / factor)).asinh() / (2 * tail)) / scale


def _learned_tail_slope(tail: float = 0.5) -> float:
    scale, factor = _tail_constants(tail)
    return float(factor * scale / math.pi)


@output_activation(
    formula="sigmoid(m sinh(2 w A(c x)) / (2 w)), A: log-odds of arctan, c = 0.22956^w, m = 5.45763^w, w = tail",
    tail="stretched exponential, ~ e^(-C a^(2 w)); w -> 0: 1 / (pi a), w = 1: ~ e^(-0.71 a^2)",
    wrong_pixel="~ a^(2 w - 1); w -> 0: 1 / a, w = 1: ~ a",
    slope_at_zero=_learned_tail_slope(),
    source="arctan's log-odds through sinh; written for segexp",
    inverse=_learned_tail_inverse,
    slope_of_options=_learned_tail_slope,
    learnable=("tail",),
)
def learned_tail(x: "Tensor", *, tail: Annotated[float, UNIT] = 0.5) -> "Tensor":
    """From arctan (tail -> 0) over an exponential tail (1/2) to the normal CDF (1, within 4e-5 of F), learned.

    tail: its initial value; a scalar tensor while it is trained. sinh(y) / y is a series next to 0, and far out
    e^y is the power 2 w of the odds, which keeps more digits than the exponential of their logarithm.
    """
    import torch

    w = torch.as_tensor(tail, dtype=x.dtype, device=x.device)
    scale, factor = _tail_constants(w)
    negative = x < 0
    a = (-x).where(negative, x)
    u = scale * a
    log_odds = arctan(u)
    y = 2 * w * log_odds
    far = y > 1
    square = y.where(~far, 0.0).square()
    series = torch.ones_like(y)
    for k in range(7, 0, -1):
        series = 1 + square / (2 * k * (2 * k + 1)) * series
    power = (math.pi / torch.atan2(torch.ones_like(u), u) - 1).where(far, 1.0) ** (2 * w)
    # No y is far where w is next to 0.
    ratio = ((power - 1 / power) / (4 * w.clamp_min(1e-4))).where(far, log_odds * series)
    # Next to 0 a product of x itself, because c x of the least numbers would round to 0.
    half = factor * ratio.where(a > 1e-9, a * (4 / math.pi * scale))
    return (-half).where(negative, half)


@output_activation(
    formula="exclusive classes: p_c = f(z_c) / sum f(z), f(z) = 1 + z + z^2 / 2",
    tail="algebraic, ~ 2 / z^2",
    wrong_pixel="~ 2 / a, in either direction",
    slope_at_zero=0.25,
    source="Vincent et al. 2015, arXiv:1412.7091; de Brebisson and Vincent 2016, arXiv:1511.05042",
    # The right branch, z >= -1; f is at least 1/2.
    inverse=lambda t: (2 * t.exp() - 1).sqrt() - 1,
    modes=("softmax",),
    warning="taylor_softmax is not monotone: below a logit of -1 the probability of a class rises again, so that "
    "large negative logits are large probabilities",
)
def taylor_softmax(x: "Tensor") -> "Tensor":
    """phi(z) = ln(1 + z + z^2 / 2), the second-order Taylor polynomial of e^z in its place."""
    return (x * (1 + x / 2)).log1p()


CLOGLOG_END = 80.0
"""Logit beyond which cloglog and loglog leave float32 (e^88.7); from there on phi is continued with slope 1."""


def _log_softplus(t: "Tensor") -> "Tensor":
    """ln(ln(1 + e^t)); far on the left, where ln(1 + e^t) underflows, it is t."""
    import torch

    return torch.where(t < -40, t, torch.nn.functional.softplus(t.clamp_min(-40)).log())


@output_activation(
    formula="1 - exp(-e^x)",
    tail="left e^x, right e^(-e^x)",
    wrong_pixel="-> 1 (y = 1), e^x (y = 0)",
    slope_at_zero=math.exp(-1),
    source="complementary log-log, Fisher 1922",
    inverse=_log_softplus,
    overflows_fp16=True,
    warning="cloglog is asymmetric: F(0) is 0.632, the gradient of a wrong background pixel is e^x, and F saturates "
    "beyond a logit of 80",
)
def cloglog(x: "Tensor") -> "Tensor":
    """ln(1 - exp(-u)) + u with u = e^x, the log-odds of the complementary log-log link.

    Below 0, ln(1 - exp(-u)) = x + ln((1 - exp(-u)) / u) keeps every digit of x; beyond x = 80 phi saturates with a
    gradient of 1.
    """
    positive = x > 0
    u = x.clamp(-CLOGLOG_END, CLOGLOG_END).exp()
    u_left, u_right = u.where(~positive, 1.0), u.where(positive, 1.0)
    left = x.where(~positive, 0.0) + (-(-u_left).expm1() / u_left).log() + u_left
    beyond = (x - CLOGLOG_END).where(x >= CLOGLOG_END, 0.0)
    right = u_right + (-(-u_right).expm1()).log() + beyond
    return right.where(positive, left)


@output_activation(
    formula="exp(-e^-x)",
    tail="left e^(-e^a), right e^-a",
    wrong_pixel="e^a (y = 1), -> 1 (y = 0)",
    slope_at_zero=math.exp(-1),
    source="log-log; Gumbel CDF, Gumbel 1935",
    inverse=lambda t: -_log_softplus(-t),
    overflows_fp16=True,
    aliases={"gompertz": ALL_MODES},
    warning="loglog is asymmetric: F(0) is 0.368, the gradient of a wrong foreground pixel is e^|x|, and F saturates "
    "beyond a logit of -80",
)
def loglog(x: "Tensor") -> "Tensor":
    """Mirror of `cloglog`: phi(x) = -phi_cloglog(-x)."""
    return -cloglog(-x)


def _clipped_log_odds(p: "Tensor", q: "Tensor", eps: float) -> "Tensor":
    """ln p - ln q of p and q = 1 - p, both clipped to [eps, 1 - eps]; the gradient is 0 where they are clipped."""
    return p.clamp(eps, 1 - eps).log() - q.clamp(eps, 1 - eps).log()


EPS = Range(1e-30, 0.5, below=True)


@output_activation(
    formula="clip(x, eps, 1 - eps)",
    range="[eps, 1 - eps]",
    tail="compact",
    wrong_pixel="0 where clipped",
    slope_at_zero=1.0,
    source="Nieradzik et al. 2021, arXiv:2109.00903",
    inverse=lambda t, eps=1e-7: t.sigmoid(),
    clips=True,
    warning="hardtanh has no gradient where it is clipped (logits outside [0, 1]): such pixels do not contribute to "
    "training; summary.csv records their fraction as frac_clipped",
)
def hardtanh(x: "Tensor", *, eps: Annotated[float, EPS] = 1e-7) -> "Tensor":
    """Log-odds of x clipped to [eps, 1 - eps]; foreground iff x > 1/2."""
    return _clipped_log_odds(x, 1 - x, eps)


@output_activation(
    formula="clip(x/6 + 1/2, eps, 1 - eps)",
    range="[eps, 1 - eps]",
    tail="compact",
    wrong_pixel="0 where clipped",
    slope_at_zero=1 / 6,
    source="Howard et al. 2019, arXiv:1905.02244",
    inverse=lambda t, eps=1e-7: (t / 2).tanh() * 3,
    clips=True,
    warning="hardsigmoid has no gradient where it is clipped (logits outside [-3, 3]): such pixels do not contribute "
    "to training; summary.csv records their fraction as frac_clipped",
)
def hardsigmoid(x: "Tensor", *, eps: Annotated[float, EPS] = 1e-7) -> "Tensor":
    """Log-odds of x/6 + 1/2 clipped to [eps, 1 - eps]."""
    return _clipped_log_odds(0.5 + x / 6, 0.5 - x / 6, eps)


@output_activation(
    formula="(x - min) / (max - min) over the whole batch, clipped to [eps, 1 - eps]",
    range="[eps, 1 - eps]",
    tail="none",
    wrong_pixel="depends on the batch",
    slope_at_zero=None,
    source='"linear" of Nieradzik et al. 2021, arXiv:2109.00903',
    clips=True,
    per_batch=True,
    warning="minmax_linear depends on the whole batch: the prediction for an image changes with the other images of "
    "its batch and with trainer.batch_size",
)
def minmax_linear(x: "Tensor", *, eps: Annotated[float, EPS] = 1e-7) -> "Tensor":
    """Log-odds of the logits scaled to [0, 1] by the tensor's minimum and maximum; p = 1/2 if these are equal."""
    if not x.numel():
        return x
    low, high = x.amin(), x.amax()
    flat = high == low
    width = (high - low).where(~flat, 1.0)
    return _clipped_log_odds((x - low) / width, (high - x) / width, eps).where(~flat, 0.0)


OUTPUT_ACTIVATIONS.add(
    "identity",
    OutputActivation(
        name="identity",
        log_odds=None,
        formula="x, no probability; foreground iff x > 1/2",
        range="(-inf, inf)",
        tail="none",
        wrong_pixel="-",
        slope_at_zero=1.0,
        source="linear output regressed on the mask",
        inverse=lambda t: t.sigmoid(),
        offers=("values",),
        aliases={"linear": ALL_MODES, "none": ALL_MODES},
    ),
)
