"""Output activations with F(-x) = 1 - F(x): distribution functions, whose log-odds are odd."""

import math
from collections.abc import Iterable
from functools import reduce
from typing import TYPE_CHECKING, Annotated, Any

from segexp.activations.output import ALL_MODES, Map, beyond, output_activation
from segexp.registry import Range

if TYPE_CHECKING:
    from torch import Tensor


def _odd(x: "Tensor", centre: "Tensor", tail: "Tensor") -> "Tensor":
    """sign(x) ln(F(a) / (1 - F(a))) of a symmetric F over a = |x|, from centre = 2 F(a) - 1 and tail = 1 - F(a).

    F / q = 1 + centre / q, so that ln(1 + centre / q) keeps the digits of centre near 0 and those of the tail far out,
    without two branches. Gradients are the closed form of each F: that of sign(x) is 0 at 0.
    """
    return (centre / tail).log1p() * x.sign()


def _nested(s: "Tensor", factors: Iterable[float]) -> "Tensor":
    """1 + f1 s (1 + f2 s (1 + ...)); ``factors`` begin with the innermost. One operation for each."""
    one, (first, *others) = s.new_ones(()), factors
    return reduce(lambda inner, f: one.addcmul(s, inner, value=f), others, s * first + 1)


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


def _arctan_tail(a: "Tensor") -> "Tensor":
    return a.new_ones(()).atan2(a) / math.pi


def _arctan_slope(x: "Tensor") -> "Tensor":
    t = x.new_ones(()).atan2(x.abs())
    return ((1 + x * x) * t * (1 - t / math.pi)).reciprocal()


@output_activation(
    formula="1/2 + atan(x) / pi",
    tail="algebraic, 1 / (pi a)",
    wrong_pixel="1 / a",
    slope_at_zero=1 / math.pi,
    source="Cauchy CDF (Student t1); Nieradzik et al. 2021, arXiv:2109.00903",
    inverse=_arctan_inverse,
    derivative=_arctan_slope,
)
def arctan(x: "Tensor") -> "Tensor":
    """Log-odds of the Cauchy CDF; 1 - F(a) = atan2(1, a) / pi keeps the far tail."""
    a = x.abs()
    return _odd(x, a.atan() * (2 / math.pi), _arctan_tail(a))


NORMAL_END = 12.0
"""Logit from which `normal_cdf` uses its tail's continued fraction: before erfc leaves float32, at 13."""


def _normal_hazard(a: "Tensor") -> "Tensor":
    """f(a) / (1 - F(a)) for a of at least `NORMAL_END`: Laplace's continued fraction a + 1 / (a + 2 / (a + ...)), to 8
    levels in float64 and 4 in float32."""
    one = a.new_ones(())
    return reduce(lambda h, k: a.addcdiv(one, h, value=k), range(a.element_size(), 0, -1), a)


def _normal_slope(x: "Tensor") -> "Tensor":
    a = x.abs()
    near = a.clamp_max(NORMAL_END)
    q = (near / math.sqrt(2)).erfc() / 2
    inner = (near * near / -2).exp() / (math.sqrt(2 * math.pi) * q * (1 - q))
    return inner.lerp(_normal_hazard(a.clamp_min(NORMAL_END)), beyond(a, NORMAL_END))


@output_activation(
    formula="Phi(x), the standard normal CDF",
    tail="Gaussian, e^(-a^2/2)",
    wrong_pixel="~ a",
    slope_at_zero=1 / math.sqrt(2 * math.pi),
    source="probit, Bliss 1934; Nieradzik et al. 2021, arXiv:2109.00903",
    derivative=_normal_slope,
    aliases={"probit": ALL_MODES},
)
def normal_cdf(x: "Tensor") -> "Tensor":
    """Log-odds of the normal CDF; far out -ln(1 - F(a)) = a^2 / 2 + ln(sqrt(2 pi) f / (1 - F))."""
    a = x.abs()
    z, far = a.clamp_max(NORMAL_END) / math.sqrt(2), a.clamp_min(NORMAL_END)
    outer = far * far / 2 + (math.sqrt(2 * math.pi) * _normal_hazard(far)).log()
    return _odd(x, z.erf(), z.erfc() / 2).lerp(outer * x.sign(), beyond(a, NORMAL_END))


@output_activation(
    formula="1/2 + x / (2 sqrt(1 + x^2))",
    tail="algebraic, 1 / (4 a^2)",
    wrong_pixel="2 / a",
    slope_at_zero=0.5,
    source="Student t2 CDF at sqrt(2) x; Nieradzik et al. 2021, arXiv:2109.00903",
    inverse=lambda t: (t / 2).sinh(),
    derivative=lambda x: 2 * (1 + x * x).rsqrt(),
)
def inverse_square_root(x: "Tensor") -> "Tensor":
    """phi(x) = 2 asinh(x), since F / (1 - F) = (a + h)^2 = 1 + 2 a (a + h), h = sqrt(1 + a^2); log1p is vectorised."""
    a = x.abs()
    return (2 * a * (a + (1 + a * a).sqrt())).log1p() * x.sign()


@output_activation(
    formula="1/2 + x / (2 (1 + |x|))",
    tail="algebraic, 1 / (2 a)",
    wrong_pixel="~ 1 / (1 + a)",
    slope_at_zero=0.5,
    source="Nieradzik et al. 2021, arXiv:2109.00903",
    inverse=lambda t: (t.abs().expm1() / 2).copysign(t),
    derivative=lambda x: 2 / (1 + 2 * x.abs()),
)
def softsign(x: "Tensor") -> "Tensor":
    """phi(x) = sign(x) ln(1 + 2 |x|)."""
    return (2 * x.abs()).log1p() * x.sign()


@output_activation(
    formula="1 - e^-a / 2 for x >= 0, mirrored below",
    tail="exponential, e^-a / 2",
    wrong_pixel="= 1",
    slope_at_zero=0.5,
    source="Laplace CDF, Laplace 1774",
    # 2 (1 - F(a)) = 2 / (1 + e^t), solved for a.
    inverse=lambda t: (t.abs() + ((-t.abs()).expm1() / 2).log1p()).copysign(t),
    derivative=lambda x: 2 / (2 - (-x.abs()).exp()),
)
def laplace(x: "Tensor") -> "Tensor":
    """phi(x) = sign(x) (a + ln(2 - e^-a)): its gradient on a wrong pixel is exactly 1."""
    a = x.abs()
    return (a + (-(-a).expm1()).log1p()) * x.sign()


def _t3_tail(u: "Tensor") -> "Tensor":
    """(atan(1/u) - u / (1 + u^2)) / pi, u = a / sqrt 3; beyond u = 8 the difference cancels and its series is used:
    with v = 1/u, (2/3) v^3 - (4/5) v^5 + (6/7) v^7 - ..."""
    near, v = u.clamp_max(8), 1 / u.clamp_min(8)
    w = v * v
    # 8 terms in float64, 4 in float32.
    series = _nested(w, (-(k + 1) * (2 * k + 1) / (k * (2 * k + 3)) for k in range(u.element_size() - 1, 0, -1)))
    inner = near.new_ones(()).atan2(near).addcdiv(near, 1 + near * near, value=-1)
    return inner.lerp(v * w * series * (2 / 3), beyond(u, 8)) / math.pi


def _t3_slope(x: "Tensor") -> "Tensor":
    u = x.abs() / math.sqrt(3)
    q, square = _t3_tail(u), 1 + u * u
    return 2 / (math.pi * math.sqrt(3)) / (square * (square * q) * (1 - q))


@output_activation(
    formula="1/2 + (atan u + u / (1 + u^2)) / pi, u = x / sqrt 3",
    tail="algebraic, ~ a^-3",
    wrong_pixel="3 / a",
    slope_at_zero=2 / (math.pi * math.sqrt(3)),
    source="Student t CDF, 3 degrees of freedom, Student 1908",
    derivative=_t3_slope,
)
def student_t3(x: "Tensor") -> "Tensor":
    """Log-odds of Student's t3 CDF, between arctan (t1) and the normal in weight of tail."""

    u = x.abs() / math.sqrt(3)
    return _odd(x, (u.atan() + u / (1 + u * u)) * (2 / math.pi), _t3_tail(u))


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


def _t4_parts(x: "Tensor") -> tuple["Tensor", "Tensor", "Tensor"]:
    """g^2, g = sqrt(4 + a^2) and the tail d^2 (3 - d) / 4 with d = 1 - s = 4 / (g (g + a))."""
    square = 4 + x * x
    g = square.sqrt()
    d = 4 / (g * (g + x.abs()))
    return square, g, d * d * (3 - d) / 4


def _t4_slope(x: "Tensor") -> "Tensor":
    square, g, q = _t4_parts(x)
    return 12 / (g * square * (square * q) * (1 - q))


@output_activation(
    formula="1/2 + (3 s - s^3) / 4, s = x / sqrt(4 + x^2)",
    tail="algebraic, ~ 3 a^-4",
    wrong_pixel="4 / a",
    slope_at_zero=0.375,
    source="Student t CDF, 4 degrees of freedom, Student 1908",
    inverse=_t4_inverse,
    derivative=_t4_slope,
)
def student_t4(x: "Tensor") -> "Tensor":
    """Log-odds of Student's t4 CDF."""
    square, g, q = _t4_parts(x)
    return _odd(x, x.abs() * (3 - x * x / square) / (2 * g), q)


SECANT_END = 20.0
"""Logit from which the log-odds of the hyperbolic secant are a straight line to every digit of float64."""


def _secant_slope(x: "Tensor") -> "Tensor":
    z = (x.abs().clamp_max(SECANT_END) * (-math.pi / 2)).exp()
    q = z.atan() * (2 / math.pi)
    return z / ((1 + z * z) * q * (1 - q))


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
    derivative=_secant_slope,
)
def hyperbolic_secant(x: "Tensor") -> "Tensor":
    """Log-odds of the hyperbolic secant CDF; ln(1 - F(a)) = ln(2/pi) - pi a / 2 from `SECANT_END` on."""
    a = x.abs()
    near = a.clamp_max(SECANT_END)
    tail = (near * (-math.pi / 2)).exp().atan() * (2 / math.pi)
    body = _odd(x, (near * (math.pi / 4)).tanh().atan() * (4 / math.pi), tail)
    return body + ((a - SECANT_END).clamp_min(0) * (math.pi / 2)) * x.sign()


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


def _tail_parts(x: "Tensor", tail: Any) -> tuple["Tensor", ...]:
    """Of `learned_tail` over a = |x|: c, m, u = c a, 1 - F(u) of arctan, A(u), y = 2 w A, e^y, e^-y and sinh(y) / y.

    Far out e^y is the power 2 w of the odds, which keeps more digits than the exponential of their logarithm. The
    series of sinh(y) / y is constant from y = 1 on: of both formulas the right one is the larger everywhere.
    """
    import torch

    w = tail.to(x) if isinstance(tail, torch.Tensor) else x.new_full((), tail)  # made there: no copy, no waiting
    scale, factor = _tail_constants(w)
    u = scale * x.abs()
    q = _arctan_tail(u)
    above = u.atan() * (2 / math.pi) / q
    log_odds, power = above.log1p(), (1 + above) ** (2 * w)
    y, inverse = 2 * w * log_odds, 1 / power
    series = _nested(y.clamp_max(1).square(), (1 / (2 * k * (2 * k + 1)) for k in range(7, 0, -1)))
    return scale, factor, u, q, log_odds, y, power, inverse, series.maximum((power - inverse) / (2 * y.clamp_min(1)))


def _learned_tail_slopes(x: "Tensor", tail: Any = 0.5) -> tuple["Tensor", dict[str, "Tensor"]]:
    """By x, and by w: phi = m A S(2 w A), S(y) = sinh(y) / y, A = A(c a), with dm/dw = m ln 5.46, dc/dw = c ln 0.23."""
    scale, factor, u, q, log_odds, y, power, inverse, quotient = _tail_parts(x, tail)
    cosh = (power + inverse) / 2
    # S'(y) = (cosh y - S) / y cancels next to 0, where it is y / 3 + y^3 / 30 + ..., 2 k y^(2 k - 1) / (2 k + 1)!
    factors = ((k + 1) / (k * (2 * k + 2) * (2 * k + 3)) for k in range(6, 0, -1))
    series = _nested(y.clamp_max(1).square(), factors)
    rise = (y / 3 * series).maximum((cosh - quotient) / y.clamp_min(1))
    slope = factor / math.pi * cosh / ((1 + u * u) * q * (1 - q))
    by_factors = slope * u * math.log(TAIL_SCALE) + factor * log_odds * quotient * math.log(TAIL_FACTOR)
    return scale * slope, {"tail": (by_factors + 2 * factor * log_odds.square() * rise) * x.sign()}


@output_activation(
    formula="sigmoid(m sinh(2 w A(c x)) / (2 w)), A: log-odds of arctan, c = 0.22956^w, m = 5.45763^w, w = tail",
    tail="stretched exponential, ~ e^(-C a^(2 w)); w -> 0: 1 / (pi a), w = 1: ~ e^(-0.71 a^2)",
    wrong_pixel="~ a^(2 w - 1); w -> 0: 1 / a, w = 1: ~ a",
    slope_at_zero=_learned_tail_slope(),
    source="arctan's log-odds through sinh; written for segexp",
    inverse=_learned_tail_inverse,
    derivative=_learned_tail_slopes,
    slope_of_options=_learned_tail_slope,
    learnable=("tail",),
)
def learned_tail(x: "Tensor", *, tail: Annotated[float, UNIT] = 0.5) -> "Tensor":
    """From arctan (tail -> 0) over an exponential tail (1/2) to the normal CDF (1, within 4e-5 of F), learned.

    tail: its initial value; a scalar tensor while it is trained.
    """
    scale, factor, _, _, log_odds, *_, quotient = _tail_parts(x, tail)
    half = factor * log_odds * quotient
    # Next to 0 a product of x itself, because c x of the least numbers would round to 0.
    return half.maximum(factor * (4 / math.pi * scale) * x.abs().clamp_max(1e-9)) * x.sign()
