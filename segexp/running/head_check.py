"""Checks of output activations and losses (`segexp.running.entry_check`), alone and as the pairs that train."""

import functools
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from segexp.activations.head import Prediction, learn_options, learned_options, logit_of, make_head, prior_bias
from segexp.activations.output import (
    ALL_MODES,
    OUTPUT_ACTIVATIONS,
    HeadMode,
    OutputActivation,
    logit_channels,
    own_params,
)
from segexp.data import generator
from segexp.losses import IGNORE, LOSSES, Loss, fits
from segexp.registry import Registry
from segexp.running.entry_check import (
    FLOATS,
    POINTS,
    Checks,
    E,
    Function,
    NoteError,
    WrongError,
    at,
    check_call,
    check_falls,
    check_finite,
    check_slope,
    defaults_of,
    ends_of,
    line,
    slope_at_zero,
    stated,
    unchanged,
    with_slope,
)

CLASSES: dict[HeadMode, int] = {"binary": 2, "softmax": 3, "independent": 3}
"""Number of classes with which each head is checked."""

SURROGATES = ("matching",)
"""Losses whose value is not what their gradient lowers."""


def output(entry: OutputActivation) -> Checks:
    """Checks of an output activation with its default options: of its log-odds if they are a function of one logit."""
    options = defaults_of(entry.options)
    if entry.log_odds is not None and not entry.per_batch:
        phi: Function = functools.partial(entry.log_odds, **own_params(options))
        yield "call", lambda: check_call(phi)
        points = POINTS
        if given := hasattr(entry.log_odds, "__wrapped__"):  # made from F, whose rounding shows in its far tails
            points = points[phi(points).abs() < 8][:, None, None, None]
        yield "gradient", lambda: check_slope(phi, points)
        yield "gradient at 0", lambda: slope_at_zero(lambda dtype: phi)
        yield "finite", lambda: check_finite(lambda dtype: phi, 1e6, FLOATS)
        if given:
            yield "log-odds of F", lambda: _probability(entry, phi, own_params(options))
        if entry.modes == ALL_MODES:
            yield "monotone", lambda: _monotone(phi)
            yield "range", lambda: _range(entry, phi)
            yield "symmetry", lambda: _symmetry(phi)
            yield "slope_at_zero", lambda: _slope(entry, phi)
            yield "inverse", lambda: _inverse(entry, phi)
            yield "prior_bias", lambda: _prior(entry, options)
    if entry.log_odds is not None:
        yield "input unchanged", lambda: _same_input(entry)
    yield "half precision", lambda: _half(entry, options)
    yield "training step", lambda: check_pairs([entry], _built_in(LOSSES))


def _same_input(entry: OutputActivation) -> str:
    called(entry, line(-1e3, 1e3, 81), own_params(defaults_of(entry.options)))
    return "not in place"


def called(entry: OutputActivation, x: torch.Tensor, options: Mapping[str, Any]) -> Any:
    """What the user's function gives: log-odds, F, or ln F and ln(1 - F). Raises WrongError if it changes x."""
    function: Any = getattr(entry.log_odds, "__wrapped__", entry.log_odds)
    return unchanged(lambda: function(x, **options), x)


def _monotone(phi: Function) -> str:
    """From 1e-6 to 1e6 in float32, but for its rounding."""
    size = torch.logspace(-6, 6, 100_001)
    x = torch.cat([-size.flip(0), torch.zeros(1), size])[:, None, None, None]
    with torch.no_grad():
        values = phi(x)
    steps, x = values.diff(dim=0), x[1:]
    falling = ~(steps >= -1e-6 * (1 + values[1:].abs()))  # NaN, too
    if falling.any():
        raise WrongError(f"the log-odds fall at {at(x, falling)}")
    flat = x[(steps == 0) & (x.abs() > 0.01)].abs()
    return f"rising, flat from |x| = {flat.min():.4g} on" if len(flat) else "rising"


def _probability(entry: OutputActivation, phi: Function, options: Mapping[str, Any]) -> str:
    """Log-odds made from F, or from ln F and ln(1 - F), against these: `segexp.activations.cdf`."""
    x = line(-5, 5, 201)
    given: Any = entry.log_odds.__wrapped__(x, **options)  # type: ignore[union-attr]
    p, total = (given[0].exp(), given[0].exp() + given[1].exp()) if isinstance(given, tuple) else (given, x / x)
    sums = "the two probabilities add up to", total, x / x
    for what, found, wanted in (sums, ("F of the log-odds is", phi(x).sigmoid(), p)):
        wrong = ~torch.isclose(found, wanted, rtol=1e-6, atol=1e-9)
        if wrong.any():
            raise WrongError(f"{what} {found[wrong][0]:.6g}, not {wanted[wrong][0]:.6g}, at {at(x, wrong)}")
    return "agree for |x| <= 5"


def _range(entry: OutputActivation, phi: Function) -> str:
    with torch.no_grad():
        p = phi(line(-1e6, 1e6, 100_001)).sigmoid()
    for end, found, usual in zip(ends_of(entry.range), (p.min(), p.max()), (0.0, 1.0), strict=True):
        if not abs(found.item() - (usual if end is None else end)) <= 1e-3:  # None for a name, such as eps
            raise WrongError(f"stated {entry.range}, probabilities are [{p.min():.4g}, {p.max():.4g}]")
    return entry.range


def _symmetry(phi: Function) -> str:
    """Exact or clearly none: rounding that differs between the sides favours a class."""
    x = line(1e-3, 30, 301).float()
    right, left = phi(x), phi(-x)
    if torch.equal(left, -right):
        return "F(-x) = 1 - F(x)"
    if torch.allclose(left, -right, rtol=1e-4):
        cure = "compute it from |x|, or state symmetric=True"
        raise NoteError(f"F(-x) is 1 - F(x) but for rounding, which favours a class: {cure}")
    return f"none, F(0) = {phi(line(0, 0, 1)).sigmoid().item():.4g}"


def _slope(entry: OutputActivation, phi: Function) -> str:
    """F' = phi' F (1 - F) at 0; of what is clipped, in the middle of its linear part."""
    x = logit_of(entry, torch.zeros(1, 1, 1, 1)) if entry.clips else line(0, 0, 1)
    value, slope = with_slope(phi, x)
    measured = (slope * value.sigmoid() * (-value).sigmoid()).item()
    if entry.slope_at_zero is None and not math.isnan(measured):
        return f"{measured:.8g}, not stated and measured by each run"
    close = math.isclose(entry.slope_at_zero or 0.0, measured, rel_tol=1e-6)
    return stated("slope_at_zero", entry.slope_at_zero, entry.slope_at_zero if close else measured, None)


def _inverse(entry: OutputActivation, phi: Function) -> str:
    """phi of the x that has given log-odds."""
    t = torch.logit(torch.tensor([1e-6, 1e-3, 0.1, 0.3, 0.5, 0.7, 0.99, 1 - 1e-6], dtype=torch.float64))
    found = phi(logit_of(entry, t)[:, None, None, None]).flatten()
    wrong = ~torch.isclose(found, t, rtol=1e-6, atol=1e-6)
    if wrong.any():
        raise WrongError(f"the log-odds of inverse(t) are {found[wrong][0]:.6g} for t = {t[wrong][0]:.6g}")
    return "closed form" if entry.inverse else "by bisection"


def _prior(entry: OutputActivation, options: Mapping[str, Any]) -> str:
    (bias,) = prior_bias(entry, "binary", [0.1], {**options, "prior_bias_cap": math.inf}).bias_K
    p = make_head(entry, "binary", options)(torch.full((1, 1, 1, 1), bias, dtype=torch.float64)).values_NKHW.item()
    if not math.isclose(p, 0.1, rel_tol=1e-4):
        raise WrongError(f"the bias {bias:.6g} for a prior of 0.1 gives {p:.6g}")
    return f"bias {bias:.4g} for a prior of 0.1"


def _half(entry: OutputActivation, options: Mapping[str, Any]) -> str:
    for dtype in (torch.bfloat16, torch.float16):
        logits = torch.tensor([-6e4, -30, -1, 0, 1, 30, 6e4, 0], dtype=dtype).view(1, 2, 2, 2)
        values = make_head(entry, "softmax", options)(logits).values_NKHW
        if values.dtype != torch.float32 or not values.isfinite().all():
            raise WrongError(f"{dtype} logits give {values.dtype}, or values that are not finite")
    return "bfloat16 and float16 logits give finite float32"


# Losses, and their pairs with output activations


def check_pair(
    activation: OutputActivation,
    loss: Loss,
    mode: HeadMode,
    head_options: Mapping[str, Any] | None = None,
    loss_options: Mapping[str, Any] | None = None,
) -> None:
    """Raise WrongError unless a step of one convolution with this head and loss, as a run has them, lowers the loss.
    Options: None for the defaults."""
    draw = generator(0, "check", mode)
    network = torch.nn.Conv2d(1, logit_channels(CLASSES[mode], mode), 3, padding=1)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, generator=draw)
    images = torch.randn(2, 1, 6, 6, generator=draw).double()
    target = torch.randint(CLASSES[mode], (2, 6, 6), generator=draw)
    of_head = defaults_of(activation.options) if head_options is None else head_options
    learn_options(network, activation, of_head)
    network.double()  # where most pixels are clipped, float32 cannot show the loss falling
    head = make_head(activation, mode, of_head, learned=learned_options(network))
    options = defaults_of(loss.options) if loss_options is None else loss_options

    def value() -> torch.Tensor:
        return scalar(loss.function(head(network(images)), target, **options))

    weights = list(network.parameters())
    moving = [bool(gradient.count_nonzero()) for gradient in torch.autograd.grad(value(), weights)]
    try:
        # A bias moves nothing where logits are scaled to the range of the batch, nor where all of a channel is clipped.
        if not (all(moving) or (moving[0] and activation.clips)):
            raise WrongError("the weights get no gradient")
        if loss.name not in SURROGATES:
            check_falls(value, weights)
    except WrongError as wrong:
        raise WrongError(f"{activation.name}, {loss.name}, {mode} head: {wrong}") from None


def _built_in(registry: Registry[E]) -> list[E]:
    """The entries that are no plugin's, of which another one may be broken."""
    return [entry for name, entry in registry.items() if name not in registry.origins]


def check_pairs(activations: Sequence[OutputActivation], losses: Sequence[Loss]) -> str:
    """`check_pair` for each pair that fits, under each head."""
    every = itertools.product(activations, losses, ALL_MODES)
    pairs = [(a, b, mode) for a, b, mode in every if b.name != "sum" and fits(a, b, mode)]
    for pair in pairs:
        check_pair(*pair)
    if not pairs:
        raise WrongError("fits no partner under any head")
    return f"lowers the loss for {len(pairs)} pairs of partner and head"


def loss(entry: Loss) -> Checks:
    """Checks of a loss with its default options, under every head that it permits."""
    yield "call", lambda: _call(entry)
    yield "finite", lambda: _finite(entry)
    yield "gradient", lambda: _gradient(entry)
    yield "ignored pixels", lambda: _ignored(entry)
    yield "order", lambda: _order(entry)
    yield "options", lambda: _options(entry)
    yield "training step", lambda: check_pairs(_built_in(OUTPUT_ACTIVATIONS), [entry])


def _cases(entry: Loss, scale: float, dtype: torch.dtype) -> Iterator[tuple[torch.Tensor, Any, torch.Tensor]]:
    """Logits, the loss of logits and target, and a target with ignored pixels, for each head; the activation is the
    sigmoid if it fits."""
    for mode in ALL_MODES:
        fitting = [a for a in OUTPUT_ACTIVATIONS.values() if fits(a, entry, mode)]
        if not fitting:
            continue
        draw, head = generator(0, "check", mode), make_head(fitting[0], mode, defaults_of(fitting[0].options))
        logits = scale * torch.randn(2, logit_channels(CLASSES[mode], mode), 5, 5, generator=draw, dtype=dtype)
        target = torch.randint(CLASSES[mode], (2, 5, 5), generator=draw)
        target[:, 0, :2] = IGNORE

        def value(logits: torch.Tensor, target: torch.Tensor, head: Any = head, **options: Any) -> torch.Tensor:
            return value_of(entry, head(logits.clone()), target, **(defaults_of(entry.options) | options))

        yield logits.requires_grad_(), value, target


def value_of(entry: Loss, prediction: Prediction, target: torch.Tensor, **given: Any) -> torch.Tensor:
    """The loss. given: its options and maps. Raises WrongError if it is no scalar tensor, or changes what it takes."""
    planes = (prediction.logits_NKHW, prediction.log_odds_NKHW, target, *given.get("maps", {}).values())
    tensors = [x for x in planes if x is not None]
    return scalar(unchanged(lambda: entry.function(prediction, target, **given), *tensors))


def scalar(value: Any) -> torch.Tensor:
    """What a loss returns. Raises WrongError if it is no scalar tensor."""
    if not isinstance(value, torch.Tensor) or value.dim():
        shown = f" of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else ""
        raise WrongError(f"gives {type(value).__name__}{shown}, not a scalar tensor, as value.mean()")
    return value


def _check_case(value: torch.Tensor, logits: torch.Tensor, where: str) -> torch.Tensor:
    """The gradient, where it and the value are finite."""
    (gradient,) = torch.autograd.grad(value, logits)
    if not (value.isfinite() and gradient.isfinite().all()):
        raise WrongError(f"loss or gradient is not finite {where}")
    return gradient


def _call(entry: Loss) -> str:
    for logits, value, target in _cases(entry, 1.0, torch.float32):
        if not (result := value(logits, target)).requires_grad:
            raise WrongError("has no gradient: the result is detached from the prediction")
        _check_case(result, logits, "for ordinary logits")
    return "gives a finite scalar, with a gradient; not in place"


def _finite(entry: Loss) -> str:
    for scale in (0.0, 1.0, 1e6):
        for logits, value, target in _cases(entry, scale, torch.float32):
            for masks in (target, torch.zeros_like(target), torch.full_like(target, IGNORE)):
                shown = f"for logits of {scale:g} and masks of {masks.unique().tolist()}"
                _check_case(value(logits, masks), logits, shown)
    return "logits up to 1e6, no foreground, no valid pixel"


def _gradient(entry: Loss) -> str:
    if entry.name in SURROGATES:
        return "not of its value"
    for logits, value, target in _cases(entry, 1.0, torch.float64):
        result = value(logits, target)
        if result.dtype != logits.dtype:
            raise NoteError(f"not checked, because the loss is {result.dtype} for float64 logits: keep their type")
        gradient = _check_case(result, logits, "in float64")
        for _ in range(3):
            way = torch.randn_like(logits)
            below, above = (value(logits.detach() + step * way, target).item() for step in (-1e-6, 1e-6))
            found, difference = (gradient * way).sum().item(), (above - below) / 2e-6
            if not math.isclose(found, difference, rel_tol=1e-4, abs_tol=1e-7):
                raise WrongError(f"autograd gives {found:.6g}, finite differences {difference:.6g}")
    return "autograd = finite differences"


def _ignored(entry: Loss) -> str:
    for logits, value, target in _cases(entry, 1.0, torch.float64):
        gradient = _check_case(value(logits, target), logits, "in float64")
        if gradient.movedim(1, -1)[target == IGNORE].count_nonzero():
            cure = "average over the valid pixels alone: mean_over(values, valid), as reference_planes gives them"
            raise WrongError(f"pixels of mask value {IGNORE} have a gradient: {cure}")
    return "have no gradient"


def _order(entry: Loss) -> str:
    for logits, value, target in _cases(entry, 1.0, torch.float64):
        if not torch.allclose(value(logits, target), value(logits.flip(0), target.flip(0)), rtol=1e-5):
            raise WrongError("depends on the order of the images of a batch")
    return "no effect of the order of images"


def _options(entry: Loss) -> str:
    """Finite with each word and at each valid end of a range."""
    tried = []
    for option in entry.options:
        ends = [option.range.low] * (not option.range.above) + [option.range.high] * (not option.range.below)
        numbers = [option.type(end) for end in ends if math.isfinite(end)] if option.type in (int, float) else []
        for given in [*option.choices, *numbers, *[True, False] * (option.type is bool)]:
            tried.append(f"{option.name}={given}")
            for logits, value, target in _cases(entry, 1.0, torch.float32):
                _check_case(value(logits, target, **{option.name: given}), logits, f"with {tried[-1]}")
    return ", ".join(tried) or "none with words or ends"
