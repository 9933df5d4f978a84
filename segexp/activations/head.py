"""The head: logits_NCHW -> log-odds -> `Prediction`. The one place where an output activation is applied.

Shapes: K logit channels are 1 (binary: two classes), C - 1 (independent) or C (softmax), C classes counting the
background; F = C - 1 foreground classes. Where class 0 is no background, all C are foreground.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from segexp.activations.output import HeadMode, OutputActivation, learnable_with, outside, own_params, slope_of
from segexp.registry import Range


def logit_of(
    activation: OutputActivation, log_odds: torch.Tensor, params: Mapping[str, Any] | None = None
) -> torch.Tensor:
    """The x with phi(x) = ``log_odds``, float64, any shape; in closed form if there is one, else by bisection.

    ``params`` are options of the activation's own function. Raises ValueError if p alone does not determine x.
    """
    options = dict(params or {})
    if activation.per_batch:
        raise ValueError(f"{activation.name} has no inverse: a probability depends on the whole batch")
    target = log_odds.double()
    if activation.inverse is not None:
        return activation.inverse(target, **options)
    assert activation.log_odds is not None
    phi = functools.partial(activation.log_odds, **options)
    # Bisection of the exponent gives the same relative precision next to 0 and at 1e300.
    at_zero = phi(torch.zeros_like(target))
    above_zero = target > at_zero
    sign = torch.where(above_zero, 1.0, -1.0).to(target.dtype)
    low, high = torch.full_like(target, -1000.0), torch.full_like(target, 1000.0)
    # After about 60 steps the bracket has the width of float64's precision.
    for _ in range(200):
        middle = (low + high) / 2
        value = phi(sign * torch.exp2(middle))
        # An overflow counts as beyond every target.
        beyond = torch.where(above_zero, ~(value < target), ~(value > target))
        low, high = torch.where(beyond, low, middle), torch.where(beyond, middle, high)
    found = sign * torch.exp2((low + high) / 2)
    found = torch.where(target == at_zero, torch.zeros_like(found), found)
    return torch.where(target.isfinite(), found, target)


@dataclass(frozen=True)
class Prediction:
    """A network's output for every pixel, in float32 or better.

    log_odds_NKHW: phi of the logits; None for activations without probabilities. activation: its name. slope: factor of
    the logits before the activation, a tensor where it is learned. clip: the largest |phi| of an activation that clips.
    first: the first foreground class, 1, or 0 without a background. overlapping: a pixel of the reference may be of
    several classes.
    values_NKHW: the probabilities, or the raw values of `identity`; computed on access.
    """

    mode: HeadMode
    logits_NKHW: torch.Tensor
    log_odds_NKHW: torch.Tensor | None
    activation: str = ""
    slope: float | torch.Tensor = 1.0
    clip: float | None = None
    first: int = 1
    overlapping: bool = False

    @property
    def classes(self) -> range:
        """The foreground classes, in the order of the planes F."""
        channels = self.logits_NKHW.shape[1]
        return range(self.first, channels if self.mode == "softmax" else self.first + channels)

    @property
    def values_NKHW(self) -> torch.Tensor:
        """Probabilities in [0, 1] (softmax: summing to 1 over K), or raw values without an activation."""
        if self.log_odds_NKHW is None:
            return self.slope * self.logits_NKHW
        if self.mode == "softmax":
            return self.log_odds_NKHW.softmax(dim=1)
        return self.log_odds_NKHW.sigmoid()

    @property
    def _scores_NKHW(self) -> torch.Tensor:
        """The scores that decide: log-odds, or the raw values if there are none."""
        return self.values_NKHW if self.log_odds_NKHW is None else self.log_odds_NKHW

    def channel_log_odds_NKHW(self) -> torch.Tensor:
        """Log-odds of each channel against all others: phi, or under softmax ln p_c - ln(1 - p_c) for every class.

        Without an activation: the value minus that of the best other class (softmax), or minus 1/2.
        """
        scores = self._scores_NKHW
        if self.mode != "softmax":
            return scores - 0.5 if self.log_odds_NKHW is None else scores
        rest = torch.amax if self.log_odds_NKHW is None else torch.logsumexp
        columns = []
        for c in range(scores.shape[1]):
            others = torch.cat((scores[:, :c], scores[:, c + 1 :]), dim=1)
            columns.append(scores[:, c] - rest(others, 1))
        return torch.stack(columns, dim=1)

    def evidence_NFHW(self) -> torch.Tensor:
        """Evidence for each foreground class against all others: positive where p > 1/2 (without
        an activation: where the class is chosen).

        Ranking and thresholds use this and not p, which has ties in float32 because of rounding.
        """
        log_odds_NKHW = self.channel_log_odds_NKHW()
        return log_odds_NKHW[:, self.first :] if self.mode == "softmax" else log_odds_NKHW

    def foreground_NFHW(self) -> torch.Tensor:
        """Boolean decision for each foreground class: phi > 0, or the argmax over classes under softmax."""
        if self.mode != "softmax":
            return self.evidence_NFHW() > 0
        chosen_NHW = self._scores_NKHW.argmax(dim=1)
        return torch.stack([chosen_NHW == c for c in self.classes], dim=1)

    def ties_NHW(self) -> torch.Tensor:
        """Boolean: pixels without a decision (phi == 0 in any channel; under softmax two equal best classes)."""
        if self.mode != "softmax":
            return (self.evidence_NFHW() == 0).any(dim=1)
        best_two = self._scores_NKHW.topk(2, dim=1).values
        return best_two[:, 0] == best_two[:, 1]

    def clipped_NHW(self) -> torch.Tensor:
        """Boolean: pixels where the activation is clipped in any channel, which therefore have no gradient."""
        if self.clip is None or self.log_odds_NKHW is None:
            return torch.zeros_like(self.logits_NKHW[:, 0], dtype=torch.bool)
        # The bound itself, give or take the rounding of its logarithm.
        return (self.log_odds_NKHW.abs() >= self.clip * (1 - 1e-6)).any(dim=1)


Head = Callable[[torch.Tensor], Prediction]


class LearnedOptions(torch.nn.Module):
    """The learned options of an output activation, a scalar parameter each, which `_within` takes into its range."""

    def __init__(self, activation: OutputActivation, params: Mapping[str, Any]) -> None:
        """Starts at the values in ``params``. activation: see `learnable_with`. Raises ValueError where the initial
        value is an end of its range, from which no gradient leads away."""
        super().__init__()
        self.ranges = {o.name: o.range for o in activation.options if o.name in activation.learnable}
        initial = {o.name: o.default for o in activation.options} | dict(params)
        initial["slope"] = slope_of(activation, params)
        for name, between in self.ranges.items():
            value = float(initial[name])
            if not between.low < value < between.high:
                ends = f"above {between.low:g} and below {between.high:g}"
                raise ValueError(f"activation.{name}={value:g} is learned, so it must start {ends}")
            self.register_parameter(name, torch.nn.Parameter(torch.tensor(_raw(value, between))))

    def present(self, like: torch.Tensor) -> dict[str, torch.Tensor]:
        """The present values, each a scalar tensor of the device and precision of ``like``."""
        return {name: _within(raw.to(like), self.ranges[name]) for name, raw in self.named_parameters()}

    def numbers(self) -> dict[str, float]:
        """The present values. Reads from the device."""
        return {name: float(value.detach()) for name, value in self.present(torch.zeros(())).items()}


def _within(raw: torch.Tensor, between: Range) -> torch.Tensor:
    """Any number as one of a range: logistic between two ends, exponential above one, as it is without a lower end."""
    if not math.isfinite(between.low):
        return raw
    return between.low + ((between.high - between.low) * raw.sigmoid() if math.isfinite(between.high) else raw.exp())


def _raw(value: float, between: Range) -> float:
    """The inverse of `_within`."""
    if not math.isfinite(between.low):
        return value
    above = math.log(value - between.low)
    return above - math.log(between.high - value) if math.isfinite(between.high) else above


def learn_options(network: torch.nn.Module, activation: OutputActivation, params: Mapping[str, Any]) -> None:
    """Make the learned options of the activation, where it has any, parameters of the network."""
    activation = learnable_with(activation, params)
    if activation.learnable:
        network.output_options = LearnedOptions(activation, params)


def learned_options(network: torch.nn.Module) -> LearnedOptions | None:
    """What `learn_options` has added to the network; None where nothing is learned."""
    found = getattr(network, "output_options", None)
    return found if isinstance(found, LearnedOptions) else None


def make_head(
    activation: OutputActivation,
    mode: HeadMode,
    params: Mapping[str, Any] | None = None,
    first: int = 1,
    overlapping: bool = False,
    learned: LearnedOptions | None = None,
) -> Head:
    """The function logits_NKHW -> `Prediction`. first: its first foreground class. overlapping: see there.

    ``params`` holds the activation's options and, if given, ``slope``. learned: present values of learned options in
    place of the initial ones. Half-precision logits are converted to float32 with autocast disabled: x * x overflows
    fp16 at |x| = 256, and the gradient of a bf16 sigmoid is exactly 0 beyond x = 6.24. Raises ValueError where the
    activation does not exist under the mode.
    """
    if reason := outside(activation, mode):
        raise ValueError(reason)
    given = dict(params or {})
    options, slope = own_params(given), slope_of(activation, given)
    clip = None
    if activation.clips:
        eps = options.get("eps", next(o.default for o in activation.options if o.name == "eps"))
        clip = math.log1p(-eps) - math.log(eps)
    fixed = Prediction(mode, torch.empty(0), None, activation.name, slope, clip, first, overlapping)
    # A partial: copies of a network and its head share the copies of the learned options.
    return functools.partial(_predicted, activation, options, fixed, learned)


def _predicted(
    activation: OutputActivation,
    options: Mapping[str, Any],
    fixed: Prediction,
    learned: LearnedOptions | None,
    logits_NKHW: torch.Tensor,
) -> Prediction:
    """The prediction ``fixed`` with these logits and their log-odds."""
    with torch.autocast(device_type=logits_NKHW.device.type, enabled=False):
        exact = logits_NKHW if logits_NKHW.dtype == torch.float64 else logits_NKHW.float()
        now: dict[str, Any] = {**options, **(learned.present(exact) if learned else {})}
        slope = now.pop("slope", fixed.slope)
        scaled = slope * exact if isinstance(slope, torch.Tensor) or slope != 1 else exact
        phi = None if activation.log_odds is None else activation.log_odds(scaled, **now)
    # Not dataclasses.replace, which the compiler of older torch does not follow.
    return Prediction(fixed.mode, exact, phi, fixed.activation, slope, fixed.clip, fixed.first, fixed.overlapping)


def mean_prediction(predictions: Sequence[Prediction]) -> Prediction:
    """One prediction with the mean probability of several of the same pixels (the mean value without an activation).

    Computed from ln p and ln(1 - p), so that agreement far in the tails keeps its log-odds.
    """
    first = predictions[0]
    logits = torch.stack([p.logits_NKHW for p in predictions]).mean(0)
    if first.log_odds_NKHW is None:
        return dataclasses.replace(first, logits_NKHW=logits)
    # In float64, because float32 would round a phi next to 0 to a tie.
    phi = torch.stack([p.log_odds_NKHW.double() for p in predictions if p.log_odds_NKHW is not None])
    if first.mode == "softmax":
        # The constant ln(number) cancels in the softmax over classes.
        mean = F.log_softmax(phi, dim=2).logsumexp(0)
    else:
        mean = F.logsigmoid(phi).logsumexp(0) - F.logsigmoid(-phi).logsumexp(0)
    return dataclasses.replace(first, logits_NKHW=logits, log_odds_NKHW=mean.to(first.log_odds_NKHW.dtype))


@dataclass(frozen=True)
class PriorBias:
    """Initial bias of the last layer. prior_K: the prior of each logit channel (softmax: of every class).

    capped: whether the cap limits any bias.
    """

    prior_K: tuple[float, ...]
    bias_K: tuple[float, ...]
    capped: bool


def prior_bias(
    activation: OutputActivation, mode: HeadMode, prior_K: Sequence[float], params: Mapping[str, Any]
) -> PriorBias:
    """The bias b_K with F(s b) = prior, so that the untrained network predicts the class fractions (softmax: up to a
    constant that all classes share, chosen so that the log-odds have mean 0, or their least is 0 where F is not
    defined for a single channel and phi may have no negative values).

    The initialisation of RetinaNet (Lin et al. 2017, arXiv:1708.02002, section 4.1) for any F. |b| is limited to
    ``params["prior_bias_cap"]``. Raises ValueError if a prior is not within (0, 1) or F has no inverse.
    """
    if not all(0 < p < 1 for p in prior_K):
        raise ValueError(f"prior {list(prior_K)}: every class needs a share above 0 and below 1")
    prior = torch.tensor(prior_K, dtype=torch.float64)
    if mode != "softmax":
        log_odds = torch.logit(prior)
    elif activation.log_odds is None:
        log_odds = torch.logit(prior / prior.sum())
    else:
        log_odds = prior.log() - (prior.log().mean() if "binary" in activation.modes else prior.log().min())
    slope = slope_of(activation, params)
    bias = logit_of(activation, log_odds, own_params(params)) / slope
    cap = float(params.get("prior_bias_cap", math.inf))
    return PriorBias(tuple(prior_K), tuple(bias.clamp(-cap, cap).tolist()), bool((bias.abs() > cap).any()))
