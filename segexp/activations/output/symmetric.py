"""Output activations with F(-x) = 1 - F(x): distribution functions, whose log-odds are odd."""

import math
from typing import TYPE_CHECKING, Annotated, Any

from segexp.activations.output import ALL_MODES, Map, mirrored, output_activation
from segexp.registry import Range

if TYPE_CHECKING:
    from torch import Tensor


def _odd(x: "Tensor", centre: Map, log_tail: Map) -> "Tensor":
    """The odd log-odds map of a symmetric F from its two halves over a = |x|.

    centre(a) = 2 F(a) - 1 keeps its precision near 0, where phi = 2 artanh(2 F - 1);
    log_tail(a) = ln(1 - F(a)) keeps it far out, where phi = ln(1 - q) - ln q. Each branch only gets arguments in its
    valid range, so that the branch not taken has no infinite gradient. At x = 0 the slope is that of the right half.
    """

    def half(a: "Tensor") -> "Tensor":
        far = ~(a < 0.5)
        log_q = log_tail(a.where(far, 0.5))
        return ((-log_q.exp()).log1p() - log_q).where(far, 2 * centre(a.where(~far, 0.0)).atanh())

    return mirrored(x, half)


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
    return mirrored(x, lambda a: (2 * a).log1p())


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
    return mirrored(x, lambda a: a + (-(-a).expm1()).log1p())


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
