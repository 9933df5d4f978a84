"""Output activations that are asymmetric, clipped, over the whole batch or exclusive classes, or no probability."""

import math
from typing import TYPE_CHECKING, Annotated

from segexp.activations.output import ALL_MODES, OUTPUT_ACTIVATIONS, ClosedForm, OutputActivation, output_activation
from segexp.registry import Range

if TYPE_CHECKING:
    from torch import Tensor


@output_activation(
    formula="exclusive classes: p_c = f(z_c) / sum f(z), f(z) = 1 + z + z^2 / 2",
    tail="algebraic, ~ 2 / z^2",
    wrong_pixel="~ 2 / a, in either direction",
    slope_at_zero=0.25,
    source="Vincent et al. 2015, arXiv:1412.7091; de Brebisson and Vincent 2016, arXiv:1511.05042",
    # The right branch, z >= -1; f is at least 1/2.
    inverse=lambda t: (2 * t.exp() - 1).sqrt() - 1,
    derivative=lambda z: (1 + z) / (1 + z * (1 + z / 2)),
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


def _cloglog_slope(x: "Tensor") -> "Tensor":
    u = x.clamp(-CLOGLOG_END, CLOGLOG_END).exp()
    return (u / -(-u).expm1()).where(x <= CLOGLOG_END, 1.0)


@output_activation(
    formula="1 - exp(-e^x)",
    tail="left e^x, right e^(-e^x)",
    wrong_pixel="-> 1 (y = 1), e^x (y = 0)",
    slope_at_zero=math.exp(-1),
    source="complementary log-log, Fisher 1922",
    inverse=_log_softplus,
    derivative=_cloglog_slope,
    overflows_fp16=True,
    warning="cloglog is asymmetric: F(0) is 0.632, the gradient of a wrong background pixel is e^x, and F saturates "
    "beyond a logit of 80",
)
def cloglog(x: "Tensor") -> "Tensor":
    """ln(1 - exp(-u)) + u with u = e^x, the log-odds of the complementary log-log link.

    x + ln((1 - exp(-u)) / u) + u keeps every digit of x below 0; beyond x = 80 phi saturates with a gradient of 1.
    """
    u = x.clamp(-CLOGLOG_END, CLOGLOG_END).exp()
    return x + (-(-u).expm1() / u).log() + u


@output_activation(
    formula="exp(-e^-x)",
    tail="left e^(-e^a), right e^-a",
    wrong_pixel="e^a (y = 1), -> 1 (y = 0)",
    slope_at_zero=math.exp(-1),
    source="log-log; Gumbel CDF, Gumbel 1935",
    inverse=lambda t: -_log_softplus(-t),
    derivative=lambda x: _cloglog_slope(-x),
    overflows_fp16=True,
    aliases={"gompertz": ALL_MODES},
    warning="loglog is asymmetric: F(0) is 0.368, the gradient of a wrong foreground pixel is e^|x|, and F saturates "
    "beyond a logit of -80",
)
def loglog(x: "Tensor") -> "Tensor":
    """Mirror of `cloglog`: phi(x) = -phi_cloglog(-x)."""
    return -cloglog(-x)


def _clipped_log_odds(p: "Tensor", q: "Tensor", eps: float) -> "Tensor":
    """ln p - ln q of p and q = 1 - p, both clipped to [eps, 1 - eps]."""
    return p.clamp(eps, 1 - eps).log() - q.clamp(eps, 1 - eps).log()


def _clipped_slope(p: "Tensor", q: "Tensor", eps: float) -> "Tensor":
    """The derivative of `_clipped_log_odds` by p: 1/p + 1/q, each 0 where it is clipped."""
    p_held, q_held = p.clamp(eps, 1 - eps), q.clamp(eps, 1 - eps)
    return (p == p_held) / p_held + (q == q_held) / q_held


EPS = Range(1e-30, 0.5, below=True)


@output_activation(
    formula="clip(x, eps, 1 - eps)",
    range="[eps, 1 - eps]",
    tail="compact",
    wrong_pixel="0 where clipped",
    slope_at_zero=1.0,
    source="Nieradzik et al. 2021, arXiv:2109.00903",
    inverse=lambda t, eps=1e-7: t.sigmoid(),
    derivative=lambda x, eps=1e-7: _clipped_slope(x, 1 - x, eps),
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
    derivative=lambda x, eps=1e-7: _clipped_slope(0.5 + x / 6, 0.5 - x / 6, eps) / 6,
    clips=True,
    warning="hardsigmoid has no gradient where it is clipped (logits outside [-3, 3]): such pixels do not contribute "
    "to training; summary.csv records their fraction as frac_clipped",
)
def hardsigmoid(x: "Tensor", *, eps: Annotated[float, EPS] = 1e-7) -> "Tensor":
    """Log-odds of x/6 + 1/2 clipped to [eps, 1 - eps]."""
    return _clipped_log_odds(0.5 + x / 6, 0.5 - x / 6, eps)


def _scaled(x: "Tensor", low: "Tensor", high: "Tensor") -> tuple["Tensor", "Tensor"]:
    """The shares of [low, high] below and above x; both 0, hence p = 1/2, if the ends are equal."""
    width = (high - low).where(high > low, 1.0)
    return (x - low) / width, (high - x) / width


def _scaled_slopes(x: "Tensor", low: "Tensor", high: "Tensor", eps: float) -> tuple["Tensor", dict[str, "Tensor"]]:
    p, q = _scaled(x, low, high)
    slope = _clipped_slope(p, q, eps) / (high - low).where(high > low, 1.0)
    return slope, {"low": -slope * q, "high": -slope * p}


SCALED = ClosedForm(lambda x, low, high, eps: _clipped_log_odds(*_scaled(x, low, high), eps), _scaled_slopes)


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
    return SCALED(x, low=x.min(), high=x.max(), eps=eps)


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
