"""Hidden activations that are exponential, smooth, sigmoidal or periodic."""

import math
from typing import TYPE_CHECKING, Annotated, Literal

from segexp.activations.hidden import (
    exponential,
    learned,
    of_torch,
    periodic,
    pointwise,
    shrinkage,
    sigmoidal,
    sloped,
    smooth,
    torch_module,
)
from segexp.registry import POSITIVE

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module


# Exponential on the left


@exponential(
    formula="x if x > 0 else alpha (e^x - 1)",
    derivative="1 if x > 0 else alpha e^x",
    range="(-alpha, inf)",
    saturates="left",
    gain=1.2452,
    source="Clevert et al. 2016, arXiv:1511.07289",
)
def elu(*, alpha: Annotated[float, POSITIVE] = 1.0) -> "Module":
    """Exponential linear unit."""
    return torch_module("ELU", alpha=alpha)


@exponential(
    formula="x if x > 0 else alpha (e^(x / alpha) - 1)",
    derivative="1 if x > 0 else e^(x / alpha)",
    range="(-alpha, inf)",
    saturates="left",
    gain=1.2452,
    source="Barron 2017, arXiv:1704.07483",
)
def celu(*, alpha: Annotated[float, POSITIVE] = 1.0) -> "Module":
    """Exponential linear unit with a continuous derivative for every alpha."""
    return torch_module("CELU", alpha=alpha)


exponential(
    formula="1.0507 (x if x > 0 else 1.6733 (e^x - 1))",
    derivative="1.0507 (1 if x > 0 else 1.6733 e^x)",
    range="(-1.7581, inf)",
    saturates="left",
    gain=1.0,
    source="Klambauer et al. 2017, arXiv:1706.02515",
)(of_torch("SELU"))


# Smooth rectifiers


@smooth(
    formula="x Phi(x), Phi the normal CDF",
    derivative="Phi(x) + x e^(-x^2 / 2) / sqrt(2 pi)",
    range="[-0.17, inf)",
    saturates="left",
    gain=1.5335,
    source="Hendrycks and Gimpel 2016, arXiv:1606.08415",
)
def gelu(*, approximate: Literal["none", "tanh"] = "none") -> "Module":
    """Gaussian error linear unit; approximate=tanh: x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2."""
    return torch_module("GELU", approximate=approximate)


smooth(
    formula="x (1 + tanh u) / 2, u = sqrt(2 / pi) (x + 0.044715 x^3)",
    derivative="(1 + t) / 2 + x (1 - t^2) u' / 2, t = tanh u",
    range="[-0.17, inf)",
    saturates="left",
    gain=1.5336,
    source="Hendrycks and Gimpel 2016, arXiv:1606.08415",
)(of_torch("GELU", "gelu_tanh", approximate="tanh"))


@smooth(
    formula="x sigmoid(1.702 x)",
    derivative="s + 1.702 x s (1 - s), s = sigmoid(1.702 x)",
    range="[-0.1636, inf)",
    saturates="left",
    gain=1.5395,
    source="Hendrycks and Gimpel 2016, arXiv:1606.08415",
)
def quick_gelu() -> "Module":
    """The quicker of the two approximations of gelu in its source."""
    return sloped(lambda x: _swish(x, 1.702)[:2])


smooth(
    formula="x sigmoid(x)",
    derivative="s + x s (1 - s), s = sigmoid(x)",
    range="[-0.2785, inf)",
    saturates="left",
    gain=1.6765,
    source="Elfwing et al. 2018, arXiv:1702.03118; Ramachandran et al. 2017, arXiv:1710.05941",
    aliases=("swish",),
)(of_torch("SiLU"))


@learned(
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
    return sloped(_swish, beta=init)


def _swish(x: "Tensor", beta: "Tensor | float") -> "tuple[Tensor, ...]":
    """x sigmoid(beta x) and its slopes along x and beta."""
    s = (beta * x).sigmoid()
    f = x * s
    rest = f * (1 - s)
    return f, s + beta * rest, x * rest


smooth(
    formula="x tanh(ln(1 + e^x))",
    derivative="t + x (1 - t^2) sigmoid(x), t = tanh(ln(1 + e^x))",
    range="[-0.3088, inf)",
    saturates="left",
    gain=1.4868,
    source="Misra 2020, arXiv:1908.08681",
)(of_torch("Mish"))


@smooth(
    formula="ln(1 + e^(beta x)) / beta",
    derivative="sigmoid(beta x)",
    range="(0, inf)",
    saturates="left",
    gain=1.0419,
    source="Glorot et al. 2011",
)
def softplus(*, beta: Annotated[float, POSITIVE] = 1.0) -> "Module":
    """Smooth rectifier; linear to rounding from beta x = 20 on."""
    return torch_module("Softplus", beta=beta)


@smooth(
    formula="(x + sqrt(x^2 + b)) / 2",
    derivative="(1 + x / sqrt(x^2 + b)) / 2",
    range="(0, inf)",
    saturates="left",
    gain=0.8165,
    source="Barron 2021, arXiv:2112.11687",
)
def squareplus(*, b: Annotated[float, POSITIVE] = 4.0) -> "Module":
    """Algebraic softplus. For x < 0 the sum cancels; max(x, 0) + b / (2 (sqrt(x^2 + b) + |x|)) does not."""

    def with_slope(x: "Tensor") -> "tuple[Tensor, ...]":
        root = (x * x + b).sqrt()
        # Not relu, whose slope at 0 is 0: the maximum gives both sides half.
        f = x.maximum(x.new_zeros(())) + (b / 2) / (root + x.abs())
        return f, f / root

    return sloped(with_slope)


@smooth(
    formula="x tanh(x)",
    derivative="tanh(x) + x (1 - tanh(x)^2)",
    range="[0, inf)",
    gain=1.1487,
    source="Roy et al. 2019, arXiv:1901.05894",
)
def lisht() -> "Module":
    """Linearly scaled tanh: even, with a minimum at 0."""

    def with_slope(x: "Tensor") -> "tuple[Tensor, ...]":
        t = x.tanh()
        f = x * t
        return f, x - f * t + t

    return sloped(with_slope)


@smooth(
    formula="x exp(-e^-x)",
    derivative="(1 + x e^-x) exp(-e^-x)",
    range="[-0.0973, inf)",
    saturates="left",
    gain=1.7688,
    source="Das et al. 2025, arXiv:2502.03654",
)
def golu() -> "Module":
    """Gompertz linear unit. In float32 f and f' are exactly 0 for x < -4.7, so that units can die there."""

    def with_slope(x: "Tensor") -> "tuple[Tensor, ...]":
        # Beyond the bound f is 0 in every type, and the exponential stays finite.
        u = (-x.clamp(min=-10)).exp()
        gompertz = (-u).exp()
        return x * gompertz, (u * x + 1) * gompertz

    return sloped(with_slope)


@smooth(
    formula="x tanh(e^x)",
    derivative="t + x e^x (1 - t^2), t = tanh(e^x)",
    range="[-0.3533, inf)",
    saturates="left",
    gain=1.3748,
    source="Liu and Di 2020, arXiv:2003.09855 (as TanhExp); Fernandez and Mali 2024, arXiv:2412.20269",
)
def telu() -> "Module":
    """Hyperbolic tangent exponential linear unit."""
    import torch

    def with_slope(x: "Tensor") -> "tuple[Tensor, ...]":
        e = x.clamp(max=10).exp()  # beyond the bound tanh is 1 in every type, and the exponential stays finite
        t = e.tanh()
        f = x * t
        return f, torch.addcmul(t, e, x - f * t)

    return sloped(with_slope)


@smooth(
    formula="x if x > 0 else x / (1 - x)",
    derivative="1 if x > 0 else 1 / (1 - x)^2",
    range="(-1, inf)",
    saturates="left",
    gain=1.3002,
    source="Waqas et al. 2025, Med-ReLU, Computers, Materials and Continua",
)
def med_relu() -> "Module":
    """Rectifier that is softsign on the left."""
    return pointwise(lambda x: x / (1 + (-x).relu()), lambda g, x: g / (1 + (-x).relu()).square())


@learned(
    formula="x / 2 + (p x^2 if x > 0 else n (e^x - 1 - x)), p = softplus(raw_p) and n = 1/2 + softplus(raw_n) learned",
    derivative="1/2 + (2 p x if x > 0 else n (e^x - 1))",
    range="[-0.2058, inf)",
    learnable=("raw_p", "raw_n"),
    gain=0.7591,
    overflows_fp16=True,
    source="Huang and Schlag 2024, arXiv:2411.13010",
)
def xielu() -> "Module":
    """Integral of an elu whose two slopes are learned, one of each per call site; p and n are 0.8 at first."""
    import torch
    import torch.nn.functional as F

    def prepare(raw_p: "Tensor", raw_n: "Tensor") -> "tuple[Tensor, ...]":
        return F.softplus(raw_p), 0.5 + F.softplus(raw_n)

    def function(x: "Tensor", p: "Tensor", n: "Tensor") -> "Tensor":
        left = x.clamp(max=0)
        return torch.addcmul(torch.addcmul(x / 2, p, (x - left).square()), n, left.expm1() - left)

    def gradient(g: "Tensor", x: "Tensor", p: "Tensor", n: "Tensor") -> "tuple[Tensor, ...]":
        right = x.relu()
        left = x - right
        power = left.exp().sub_(1)  # exact enough beside the 1/2
        slope = (right * (2 * p)).add_(0.5).addcmul_(n, power).mul_(g)
        return slope, right.square_().mul_(g).sum(), power.sub_(left).mul_(g).sum()

    initial = {"raw_p": math.log(math.expm1(0.8)), "raw_n": math.log(math.expm1(0.3))}
    return pointwise(function, gradient, prepare, **initial)


# Sigmoidal

sigmoidal(
    formula="tanh(x)",
    derivative="1 - tanh(x)^2",
    range="(-1, 1)",
    zero_centred=True,
    saturates="both",
    gain=1.5925,
    source="LeCun et al. 1998",
)(of_torch("Tanh"))
sigmoidal(
    formula="1 / (1 + e^-x)",
    derivative="s (1 - s), s = sigmoid(x)",
    range="(0, 1)",
    saturates="both",
    gain=1.8462,
    source="Rumelhart et al. 1986",
)(of_torch("Sigmoid"))
smooth(
    formula="-ln(1 + e^-x)",
    derivative="sigmoid(-x)",
    range="(-inf, 0)",
    saturates="right",
    gain=1.0419,
    source="torch.nn.LogSigmoid",
)(of_torch("LogSigmoid"))


@sigmoidal(
    formula="x / (1 + |x|)",
    derivative="1 / (1 + |x|)^2",
    range="(-1, 1)",
    zero_centred=True,
    saturates="both",
    gain=2.3375,
    source="Glorot and Bengio 2010",
)
def softsign() -> "Module":
    """Algebraic sigmoid."""
    return pointwise(lambda x: x / (1 + x.abs()), lambda g, x: g / (1 + x.abs()).square())


@sigmoidal(
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


@sigmoidal(
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


@sigmoidal(
    formula="x / sqrt(1 + alpha x^2)",
    derivative="(1 + alpha x^2)^(-3/2)",
    range="(-1 / sqrt(alpha), 1 / sqrt(alpha))",
    zero_centred=True,
    saturates="both",
    gain=1.7042,
    source="Carlile et al. 2017, arXiv:1710.09967",
)
def inverse_square_root(*, alpha: Annotated[float, POSITIVE] = 1.0) -> "Module":
    """Inverse square root unit."""

    def inverse_root(x: "Tensor") -> "Tensor":
        return (1 + alpha * x * x).rsqrt()

    return pointwise(lambda x: x * inverse_root(x), lambda g, x: g * inverse_root(x) ** 3)


shrinkage(
    formula="x - tanh(x)",
    derivative="tanh(x)^2",
    zero_centred=True,
    gain=2.3384,
    source="torch.nn.Tanhshrink",
)(of_torch("Tanhshrink"))


# Periodic and rational


@periodic(
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


@periodic(
    formula="x cos(x)",
    derivative="cos(x) - x sin(x)",
    zero_centred=True,
    gain=1.8349,
    source="Noel et al. 2021, arXiv:2108.12943",
)
def gcu() -> "Module":
    """Growing cosine unit."""

    def with_slope(x: "Tensor") -> "tuple[Tensor, ...]":
        cosine = x.cos()
        return x * cosine, cosine - x * x.sin()

    return sloped(with_slope)


@learned(
    formula="x + sin(a x)^2 / a, a learned",
    derivative="1 + sin(2 a x)",
    learnable=("a",),
    gain=0.8746,
    source="Ziyin et al. 2020, arXiv:2006.08195",
)
def snake(*, init: Annotated[float, POSITIVE] = 1.0) -> "Module":
    """Line with a ripple of learned frequency, one per call site; a may be 0, where the ripple vanishes."""

    import torch

    def with_slopes(x: "Tensor", a: "Tensor") -> "tuple[Tensor, ...]":
        a = a + 1e-20 * (a == 0)
        angle = a * x
        sine, cosine = angle.sin(), angle.cos()
        wave = sine / a
        return torch.addcmul(x, sine, wave), 1 + 2 * sine * cosine, (2 * x * cosine - wave) * wave

    return sloped(with_slopes, a=init)


@learned(
    formula="P(x) / (1 + |Q(x)|), P of degree 5, Q = q1 x + ... + q4 x^4, coefficients learned",
    derivative="(P' (1 + |Q|) - P Q' sign Q) / (1 + |Q|)^2",
    learnable=("numerator", "denominator"),
    gain=1.4140,
    source="Molina et al. 2020, arXiv:1907.06732; begins as the least-squares fit to leaky_relu on [-4, 4]",
)
def rational() -> "Module":
    """Padé activation unit, one per call site."""
    import torch
    import torch.nn.functional as F

    def prepare(numerator: "Tensor", denominator: "Tensor") -> "tuple[Tensor]":
        """Coefficients of P, Q, P' and Q', a row each, the constant term first."""
        both = torch.stack((numerator, F.pad(denominator, (1, 1))))
        slopes = both[:, 1:] * torch.arange(1, 6, device=both.device)
        return (torch.cat((both, F.pad(slopes, (0, 1)))),)

    def polynomial(row: "Tensor", x: "Tensor") -> "Tensor":
        *lower, first, last = row.unbind()
        value = x * last + first  # torch's addcmul of two scalars does not use the vector unit
        for c in reversed(lower):
            value = torch.addcmul(c, value, x)
        return value

    def function(x: "Tensor", rows: "Tensor") -> "Tensor":
        return polynomial(rows[0], x) / (1 + (x * polynomial(rows[1, 1:5], x)).abs())

    def gradient(g: "Tensor", x: "Tensor", rows: "Tensor") -> "tuple[Tensor, ...]":
        line = x.flatten()
        powers, square = line.new_empty(6, len(line)), line * line
        powers[0], powers[1] = 1, line
        for k in (2, 4):
            torch.mul(powers[k - 2 : k], square, out=powers[k : k + 2])
        p, q, p_slope, q_slope = rows.mm(powers)
        weights, sums = torch.empty_like(powers[:2]), torch.zeros_like(rows)
        sign = q.sign()
        below = q.abs_().add_(1)
        of_p = torch.div(g.flatten(), below, out=weights[0])
        of_q = torch.mul(of_p, p.mul_(sign).div_(below), out=weights[1])  # with the opposite sign
        torch.mm(weights, powers.t(), out=sums[:2])
        sums[1].neg_()
        return p_slope.mul_(of_p).addcmul_(of_q, q_slope, value=-1).view_as(x), sums

    return pointwise(
        function,
        gradient,
        prepare,
        numerator=[0.0448, 0.505, 1.2388, 1.1282, 0.3918, 0.048],
        denominator=[0.0, 2.234, 0.0, 0.0951],
    )
