"""Catalogue of output activations.

An output activation maps a logit x to a probability p = F(x). Each is written down once, as its log-odds

    phi(x) = ln F(x) - ln(1 - F(x)),        p = sigmoid(phi(x)),

because phi alone gives every loss and score in stable form: ln p = logsigmoid(phi), ln(1 - p) = logsigmoid(-phi),
and, over classes, p = softmax(phi(z)). Functions take and return a floating tensor of any shape, in float32 or
better (`segexp.activations.head` sees to that), and stay finite with finite gradients for |x| <= 1e6.

Adding an activation is adding one decorated function here. Its keyword-only parameters become options of the
command line. torch is imported inside the functions: the facts are read without it.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from segexp.catalogue import Catalogue, Option, options_of

if TYPE_CHECKING:
    import torch

HeadMode = Literal["binary", "independent", "softmax"]
"""binary: one logit (two classes). independent: C - 1 binary channels. softmax: C exclusive classes."""

ALL_MODES: tuple[HeadMode, ...] = ("binary", "independent", "softmax")

Offer = Literal["log_odds", "values"]
"""What a prediction holds: log-odds (hence probabilities, which are values too) or plain values alone."""

LogOdds = Callable[..., "torch.Tensor"]


@dataclass(frozen=True)
class OutputActivation:
    """One entry. ``log_odds`` is None for `identity`, whose values are no probabilities.

    aliases: other names of the same map, each with the head modes in which the name means anything.
    slope_at_zero: F'(0). tail: how fast 1 - F(x) falls. wrong_pixel: |d BCE / d logit| on a pixel that is wrong
    by a logit of size a.
    """

    name: str
    log_odds: LogOdds | None
    formula: str
    range: str
    tail: str
    wrong_pixel: str
    slope_at_zero: float | None
    source: str
    offers: tuple[Offer, ...] = ("log_odds", "values")
    aliases: Mapping[str, tuple[HeadMode, ...]] = field(default_factory=dict)
    options: tuple[Option, ...] = ()


OUTPUT_ACTIVATIONS: Catalogue[OutputActivation] = Catalogue("activation")


def output_activation(
    *,
    formula: str,
    range: str,
    tail: str,
    wrong_pixel: str,
    slope_at_zero: float | None,
    source: str,
    aliases: Mapping[str, tuple[HeadMode, ...]] | None = None,
) -> Callable[[LogOdds], LogOdds]:
    """Decorator: put the log-odds function into the catalogue under its own name."""

    def put(function: LogOdds) -> LogOdds:
        entry = OutputActivation(
            name=function.__name__,
            log_odds=function,
            formula=formula,
            range=range,
            tail=tail,
            wrong_pixel=wrong_pixel,
            slope_at_zero=slope_at_zero,
            source=source,
            aliases=aliases or {},
            options=options_of(function),
        )
        OUTPUT_ACTIVATIONS.add(entry.name, entry)
        return function

    return put


def _odd(
    x: "torch.Tensor",
    centre: Callable[["torch.Tensor"], "torch.Tensor"],
    log_tail: Callable[["torch.Tensor"], "torch.Tensor"],
    cut: float = 0.5,
) -> "torch.Tensor":
    """The odd log-odds map of a symmetric F from its two halves over a = |x|.

    centre(a) = 2 F(a) - 1 keeps its precision near 0, where phi = 2 artanh(2 F - 1);
    log_tail(a) = ln(1 - F(a)) keeps it far out, where phi = ln(1 - q) - ln q. Each branch sees only arguments it can
    bear, so that no gradient of the branch not taken is infinite. At x = 0 the slope is that of the right half.
    """
    import torch

    negative = x < 0
    a = torch.where(negative, -x, x)
    near = a < cut
    a_near = torch.where(near, a, torch.zeros_like(a))
    a_far = torch.where(near, torch.full_like(a, cut), a)
    log_q = log_tail(a_far)
    half = torch.where(near, 2 * torch.atanh(centre(a_near)), torch.log1p(-torch.exp(log_q)) - log_q)
    return torch.where(negative, -half, half)


@output_activation(
    formula="1 / (1 + e^-x)",
    range="(0, 1)",
    tail="exponential, e^-a",
    wrong_pixel="-> 1",
    slope_at_zero=0.25,
    source="Verhulst 1838; Cox 1958",
    aliases={"softmax": ("softmax",)},
)
def sigmoid(x: "torch.Tensor") -> "torch.Tensor":
    """phi(x) = x. Under head.mode=softmax this is exactly softmax, its multi-class name."""
    return x


@output_activation(
    formula="1/2 + atan(x) / pi",
    range="(0, 1)",
    tail="algebraic, 1 / (pi a)",
    wrong_pixel="1 / a",
    slope_at_zero=1 / math.pi,
    source="Cauchy CDF (Student t1); Nieradzik et al. 2021, arXiv:2109.00903",
)
def arctan(x: "torch.Tensor") -> "torch.Tensor":
    """Log-odds of the Cauchy CDF; ln(1 - F(a)) = ln(atan2(1, a) / pi) keeps the far tail."""
    import torch

    return _odd(
        x,
        centre=lambda a: torch.atan(a) * (2 / math.pi),
        log_tail=lambda a: torch.log(torch.atan2(torch.ones_like(a), a) / math.pi),
    )


@output_activation(
    formula="Phi(x), the standard normal CDF",
    range="(0, 1)",
    tail="Gaussian, e^(-a^2/2)",
    wrong_pixel="~ a",
    slope_at_zero=1 / math.sqrt(2 * math.pi),
    source="probit, Bliss 1934; Nieradzik et al. 2021, arXiv:2109.00903",
    aliases={"probit": ALL_MODES},
)
def normal_cdf(x: "torch.Tensor") -> "torch.Tensor":
    """Log-odds of the normal CDF; erfcx, because the backward of `torch.special.log_ndtr` is wrong far out."""
    import torch

    return _odd(
        x,
        centre=lambda a: torch.erf(a / math.sqrt(2)),
        log_tail=lambda a: torch.log(torch.special.erfcx(a / math.sqrt(2)) / 2) - a * a / 2,
    )


@output_activation(
    formula="1/2 + x / (2 sqrt(1 + x^2))",
    range="(0, 1)",
    tail="algebraic, 1 / (4 a^2)",
    wrong_pixel="2 / a",
    slope_at_zero=0.5,
    source="Student t2 CDF at sqrt(2) x; Nieradzik et al. 2021, arXiv:2109.00903",
)
def inverse_square_root(x: "torch.Tensor") -> "torch.Tensor":
    """phi(x) = 2 asinh(x), since F / (1 - F) = (x + sqrt(1 + x^2))^2."""
    import torch

    return 2 * torch.asinh(x)


@output_activation(
    formula="1/2 + x / (2 (1 + |x|))",
    range="(0, 1)",
    tail="algebraic, 1 / (2 a)",
    wrong_pixel="~ 1 / (1 + a)",
    slope_at_zero=0.5,
    source="Nieradzik et al. 2021, arXiv:2109.00903",
)
def softsign(x: "torch.Tensor") -> "torch.Tensor":
    """phi(x) = sign(x) ln(1 + 2 |x|)."""
    import torch

    negative = x < 0
    half = torch.log1p(2 * torch.where(negative, -x, x))
    return torch.where(negative, -half, half)


@output_activation(
    formula="(1 + tanh x) / 2 = sigmoid(2x)",
    range="(0, 1)",
    tail="exponential, e^-2a",
    wrong_pixel="-> 2",
    slope_at_zero=0.5,
    source="sigmoid at twice the slope",
)
def tanh(x: "torch.Tensor") -> "torch.Tensor":
    """phi(x) = 2x."""
    return 2 * x


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
        offers=("values",),
        aliases={"linear": ALL_MODES, "none": ALL_MODES},
    ),
)
