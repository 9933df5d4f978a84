"""Checks of registry entries: the built-in ones pass them in the tests, the user's own in `segexp check-plugin`.

A check returns what it found, in words. It raises `WrongError` where the entry does not hold what it states or what
segexp needs, and `NoteError` where the entry works and a fact about it should be stated. Everything runs on CPU.
"""

import contextlib
import copy
import functools
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch

from segexp.activations.hidden import HiddenActivation, make_hidden, measured_gain
from segexp.data import seeded
from segexp.errors import UsageError, first_line, line_in
from segexp.models.swap import audit, swap_hidden
from segexp.registry import NOT_STATED, Option

E = TypeVar("E")
Function = Callable[[torch.Tensor], torch.Tensor]
Checks = Iterator[tuple[str, Callable[[], str]]]
"""Name of each check, and the check."""

FLOATS = (torch.float32, torch.float64)


class WrongError(Exception):
    """The entry fails the check."""


class NoteError(Exception):
    """The entry works, and a fact about it should be stated."""


@dataclass(frozen=True)
class Check:
    """The result of one check of one entry."""

    name: str
    result: Literal["ok", "note", "failed"]
    detail: str


def checked(checks: Checks, files: Collection[str] = ()) -> Iterator[Check]:
    """The result of each check. An exception is a failure; a failed "call" is the last. files: ends of the paths of the
    files of the entry's plugin, of which the last line in the traceback is named."""
    name = unmade = "made with its defaults"
    while True:
        try:
            if not (following := next(checks, None)):
                return
            name, check = following
            with seeded(0, "check", name):
                result = Check(name, "ok", check())
        except NoteError as note:
            result = Check(name, "note", str(note))
        except (WrongError, UsageError) as error:
            result = Check(name, "failed", str(error))
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # also SystemExit
            where = line_in(error, files)
            reason = f"{where}{': ' if where else ''}{type(error).__name__}: {first_line(error)}"
            result = Check(name, "failed", reason)
        yield result
        if name in (unmade, "call") and result.result == "failed":
            return


def defaults_of(options: Sequence[Option]) -> dict[str, Any]:
    """The default of each option."""
    return {option.name: option.default for option in options}


def stated(fact: str, value: Any, measured: Any, default: Any) -> str:
    """``measured``, in words, if it is the stated ``value``; ``default`` counts as not stated."""
    if isinstance(measured, float) and math.isnan(measured):
        raise WrongError(f"{fact} cannot be measured: values are not finite")
    if value == measured:
        return (", ".join(measured) if isinstance(measured, tuple) else str(measured)) or "none"
    if value == default:
        raise NoteError(f"not stated: state {fact}={measured!r}")
    raise WrongError(f"stated {fact}={value!r}, measured {measured!r}")


# Functions of numbers, which are images of one channel and pixel, (number, 1, 1, 1)


def line(low: float, high: float, number: int) -> torch.Tensor:
    """Equidistant numbers, float64."""
    return torch.linspace(low, high, number, dtype=torch.float64)[:, None, None, None]


POINTS = torch.cat([line(-12, 12, 481), line(-51.3, 51.3, 2)])
"""Where derivatives are checked."""


def at(x: torch.Tensor, wrong: torch.Tensor) -> str:
    """The first place that is wrong."""
    return f"x = {x.flatten()[wrong.flatten().int().argmax()].item() + 0.0:.6g}"


def same_shape(y: Any, x: torch.Tensor) -> None:
    """Raise WrongError if y is no tensor of the shape of x."""
    if not isinstance(y, torch.Tensor):
        raise WrongError(f"gives {type(y).__name__}, not a tensor")
    if y.shape != x.shape:
        raise WrongError(f"gives {tuple(y.shape)} for a tensor of shape {tuple(x.shape)}")


def unchanged(call: Callable[[], E], *given: torch.Tensor) -> E:
    """What the call gives. Raises WrongError if it changes one of the tensors that it is given."""
    before = [(x._version, x.detach().clone()) for x in given]
    found = call()
    # The version also counts changes to equal values; writing through .data or NumPy shows in the values alone.
    if any(x._version != version or not torch.equal(x, old) for x, (version, old) in zip(given, before, strict=True)):
        raise WrongError("changes its input in place, which segexp uses again: compute a new tensor, or clone it first")
    return found


def with_slope(function: Function, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """f and f' at x, in the type of x, and the gradients of the sum of f to the parameters of a module.

    Raises WrongError if f has another type or shape, or no gradient.
    """
    leaf = x.clone().requires_grad_()
    y = function(leaf.clone())  # a copy, so that a function that works in place fails only the check for that
    same_shape(y, x)
    if y.dtype != x.dtype:
        raise WrongError(f"gives {y.dtype} for {x.dtype}")
    if not y.requires_grad:
        raise WrongError("has no gradient: the result is detached from the input")
    parameters = [*function.parameters()] if isinstance(function, torch.nn.Module) else []
    return y.detach(), *torch.autograd.grad(y.sum(), [leaf, *parameters], materialize_grads=True)


def check_call(function: Function) -> str:
    """The first call: as `with_slope`, and the value of ordinary numbers is finite."""
    x = line(-2, 2, 8).float()
    value = with_slope(function, x)[0]
    if not value.isfinite().all():
        raise WrongError(f"the value is not finite at {at(x, ~value.isfinite())}")
    return "gives the shape and type of x, with a gradient"


def check_slope(function: Function, x: torch.Tensor) -> str:
    """Autograd's derivative lies between the differences to the left and to the right, so x may have kinks."""
    slope, h = with_slope(function, x)[1], 1e-6 * x.abs().clamp_min(1)
    with torch.no_grad():
        below, here, above = (function(x + step) for step in (-h, 0 * h, h))
    left, right = (here - below) / h, (above - here) / h
    allowed = 1e-5 * (1 + slope.abs())
    wrong = ~((slope >= torch.minimum(left, right) - allowed) & (slope <= torch.maximum(left, right) + allowed))
    if wrong.any():
        got, difference = slope[wrong][0], ((left + right) / 2)[wrong][0]
        raise WrongError(f"autograd gives {got:.6g}, finite differences {difference:.6g} at {at(x, wrong)}")
    return f"autograd = finite differences at {x.numel()} points"


def slope_at_zero(function_of: Callable[[torch.dtype], Function]) -> str:
    """f'(0): that of a side or between, the same in both types."""
    check_slope(function_of(torch.float64), line(0, 0, 1))
    single, double = (with_slope(function_of(t), line(0, 0, 1).to(t))[1].item() for t in FLOATS)
    if not math.isclose(single, double, rel_tol=1e-5, abs_tol=1e-6):
        raise WrongError(f"{single:.6g} in float32, {double:.6g} in float64")
    return f"{double:.6g}"


def check_finite(function_of: Callable[[torch.dtype], Function], size: float, dtypes: Sequence[torch.dtype]) -> str:
    """f and f' are finite for |x| <= size."""
    half = torch.tensor([0, 1e-4, 1e-2, 0.5, 1, 5, 20, 50, 88, 100, 300, 1e3, 1e4, 1e5, 1e6], dtype=torch.float64)
    half, names = half[half <= size], [str(dtype).removeprefix("torch.") for dtype in dtypes]
    for dtype, name in zip(dtypes, names, strict=True):
        x = torch.cat([-half.flip(0), half]).to(dtype)[:, None, None, None]
        value, slope, *gradients = with_slope(function_of(dtype), x)
        for what, values in (("value", value), ("gradient", slope)):
            if not values.isfinite().all():
                raise WrongError(f"the {what} is not finite in {name} at {at(x, ~values.isfinite())}")
        if not all(gradient.isfinite().all() for gradient in gradients):
            raise WrongError(f"the gradient of a learned parameter is not finite in {name}")
    return f"|x| <= {size:g} in {', '.join(names)}"


def check_falls(value_of: Callable[[], torch.Tensor], parameters: Sequence[torch.nn.Parameter]) -> None:
    """A step against the gradient lowers the value; the shortest of three is for gradients of e^|x|."""
    value = value_of()
    gradients = torch.autograd.grad(value, parameters)
    if not (value.isfinite() and all(g.isfinite().all() for g in gradients)):
        raise WrongError("loss or gradient of a training step is not finite")
    before = [p.detach().clone() for p in parameters]
    for lr in (0.02, 1e-3, 1e-5):
        with torch.no_grad():
            for parameter, old, gradient in zip(parameters, before, gradients, strict=True):
                parameter.copy_(old - lr * gradient)
            if value_of() < value:
                return
    raise WrongError("no training step along the gradient lowers the loss")


# Hidden activations


def hidden(entry: HiddenActivation) -> Checks:
    """Checks of a hidden activation with its default options."""
    if entry.make is None:
        return
    options = defaults_of(entry.options)

    def new(dtype: torch.dtype = torch.float32, **site: int) -> torch.nn.Module:
        with seeded(0, "check"):  # for parameters that start at random
            return make_hidden(entry.name, options, **site).to(dtype).eval()

    def half() -> str:
        try:
            found = check_finite(new, 1e4, [torch.float16])
        except WrongError as wrong:
            if not entry.overflows_fp16:
                raise WrongError(f"{wrong}: compute in float32, or state overflows_fp16=True") from None
            return f"overflows, as stated: {wrong}"
        return stated("overflows_fp16", entry.overflows_fp16, False, None) and found

    @functools.cache
    def in_network() -> str:
        return _swapped(entry, new, torch.nn.Conv2d(4, 1, 1))

    untested = "" if entry.derivative == NOT_STATED else "; the text of derivative is not tested"
    yield "call", lambda: check_call(new())
    yield "gradient", lambda: check_slope(new(torch.float64), POINTS) + untested
    yield "gradient at 0", lambda: slope_at_zero(new)
    yield "finite", lambda: check_finite(new, 1e4, [torch.float32, torch.bfloat16])
    yield "finite in float16", half
    yield "range", lambda: _range(entry, new(torch.float64))
    yield from _stated_facts(entry, new)
    yield "input unchanged", lambda: _unchanged(functools.partial(new, channels=4))
    yield "copy", lambda: _copied(new)
    yield "learnable", lambda: _learned(entry, new(torch.float64))
    yield "in a network", in_network
    if in_network.cache_info().currsize:  # it did not fail
        yield "channels last", lambda: _channels_last(entry, new)


def _stated_facts(entry: HiddenActivation, new: Callable[..., torch.nn.Module]) -> Checks:
    """Checks of the facts that are no text, but for the range."""

    def slopes(low: float, high: float, number: int = 101) -> torch.Tensor:
        return with_slope(new(torch.float64), line(low, high, number))[1]

    def odd() -> bool:
        x, f = line(0, 8, 161), new(torch.float64)
        return torch.allclose(f(-x), -f(x), rtol=1e-9, atol=1e-12)

    def flat() -> str:
        steepest = slopes(-200, 200, 40001).abs().max().clamp(max=1)
        sides = [side for side, x in (("left", -200), ("right", 200)) if slopes(x, x, 1).abs() < 0.01 * steepest]
        return "both" if len(sides) == 2 else "".join(sides)

    def dead() -> bool:
        """Exactly 0 on a side, and not because ever smaller slopes are rounded."""
        sides = [slopes(0, end, 9001).abs() for end in (-9, 9)]
        return any(bool((s[8000:] == 0).all() and (s[s > 0] > 1e-12).all()) for s in sides)

    def gain() -> str:
        measured = measured_gain(new())
        known = entry.gain if math.isclose(entry.gain, measured, abs_tol=1e-4) else round(measured, 4)
        return stated("gain", 0 if math.isnan(entry.gain) else entry.gain, known, 0)

    yield "zero_centred", lambda: stated("zero_centred", entry.zero_centred, odd(), False)
    yield "saturates", lambda: stated("saturates", entry.saturates, flat(), "")
    yield "can_die", lambda: stated("can_die", entry.can_die, dead(), False)
    yield "gain", gain


def _range(entry: HiddenActivation, f: Function) -> str:
    """Values end at the stated ends; where these are infinite, values grow on from |x| = 100 to 1e4."""
    with torch.no_grad():
        near, far = (f(line(-size, size, 200_001)) for size in (1e2, 1e4))
    found = f"[{far.min():.4g}, {far.max():.4g}] for |x| <= 1e4"
    if not far.isfinite().all():
        raise WrongError(f"values are {found}")
    grows = [(sign * far).max() - (sign * near).max() > 0.01 for sign in (-1, 1)]
    if entry.range == NOT_STATED:
        low = "(-inf" if grows[0] else f"[{round(far.min().item(), 4) + 0.0:g}"
        high = "inf)" if grows[1] else f"{round(far.max().item(), 4) + 0.0:g}]"
        raise NoteError(f"not stated: state range='{low}, {high}'")
    for end, sign, growing in zip(ends_of(entry.range), (-1, 1), grows, strict=True):
        if end is None:
            continue
        off = ((sign * far).max().item() - sign * end) / max(1, abs(end))
        # Finite ends are stated to four digits, and may be approached slowly.
        if not (growing if math.isinf(end) else -1e-3 <= off <= 1e-4):
            raise WrongError(f"range={entry.range}, but values are {found}")
    return entry.range


def ends_of(text: str) -> list[float | None]:
    """The two ends of a range: numbers, also as -3/8 or pi/2, else None. Raises WrongError."""
    ends: list[float | None] = []
    for end in text.strip("()[] ").rsplit(",", 1):
        above, _, below = end.replace("pi", repr(math.pi)).partition("/")
        ends.append(None)
        with contextlib.suppress(ValueError):
            ends[-1] = float(above) / float(below or 1)
    if len(ends) != 2:
        raise WrongError(f"range={text} is not written as [low, high], with ( or ) where an end is not attained")
    return ends


same = functools.partial(torch.isclose, rtol=0, atol=0, equal_nan=True)
"""Whether numbers are equal, NaN too, which the checks of finite values name."""


def _unchanged(new: Callable[[], torch.nn.Module]) -> str:
    for training in (True, False):
        x = torch.linspace(-9, 9, 64).reshape(2, 4, 2, 4)
        module = new().train(training)
        first, second = (unchanged(functools.partial(module, x), x) for _ in range(2))
    if not same(first, second).all():
        raise WrongError("two calls in eval mode give different values")
    x[0, 0, 0, 0] += 1
    if (~same(module(x), first)).sum() > 1:
        raise NoteError("not elementwise: range, gain and derivative are those of images of one pixel and channel")
    return "not in place; equal calls give equal values"


def _copied(new: Callable[[], torch.nn.Module]) -> str:
    """The module can be copied, and a new one takes its weights from a checkpoint; none shares parameters."""
    module, fresh, x = new(), new(), line(-9, 9, 64).float()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.01)
    try:
        copied = copy.deepcopy(module)
    except Exception as error:
        raise WrongError(f"copy.deepcopy fails: {first_line(error)}") from error
    fresh.load_state_dict(module.state_dict())
    if not all(same(other(x), module(x)).all() for other in (copied, fresh)):
        raise WrongError("a copy, or a new module with its state_dict, gives other values")
    if {p.data_ptr() for p in module.parameters()} & {p.data_ptr() for p in fresh.parameters()}:
        raise WrongError("modules share their parameters: each call site needs its own")
    return "copy and state_dict give equal values"


def _learned(entry: HiddenActivation, module: torch.nn.Module) -> str:
    """Names of the parameters; each has a gradient that is its finite difference, away from a kink at 0."""
    x = torch.tensor([-3.1, -1.3, -0.4, 0.3, 1.2, 2.9], dtype=torch.float64)[:, None, None, None]

    def value() -> torch.Tensor:
        return module(x).square().sum()

    for name, parameter in module.named_parameters():
        gradient = torch.autograd.grad(value(), parameter, allow_unused=True)[0] if parameter.requires_grad else None
        if gradient is None or not gradient.abs().max() > 0:
            raise WrongError(f"the parameter {name} gets no gradient")
        ends = []
        for step in (-1e-6, 2e-6, -1e-6):
            parameter.data += step
            ends.append(value().item())
        found, difference = gradient.sum().item(), (ends[1] - ends[0]) / 2e-6
        if not math.isclose(found, difference, rel_tol=1e-4, abs_tol=1e-6):
            raise WrongError(f"autograd of {name} gives {found:.6g}, finite differences {difference:.6g}")
    return stated("learnable", entry.learnable, tuple(name for name, _ in module.named_parameters()), ())


class _Network(torch.nn.Module):
    """A module that is called twice and a function, before a last part."""

    def __init__(self, last: torch.nn.Module) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Conv2d(2, 4, 3, padding=1), torch.nn.Conv2d(4, 4, 1)
        self.act, self.norm, self.last = torch.nn.ReLU(), torch.nn.BatchNorm2d(4), last

    def forward(self, images_NCHW: torch.Tensor) -> torch.Tensor:
        x = self.act(self.norm(self.first(images_NCHW)))
        logits: torch.Tensor = self.last(self.act(self.second(x)) + torch.nn.functional.relu(x - 0.1))
        return logits


class _Tokens(torch.nn.Sequential):
    """Layers whose channels are the last dimension."""

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = super().forward(x_NCHW.movedim(1, -1)).movedim(-1, 1)
        return logits


def _channels_last(entry: HiddenActivation, make: Callable[..., torch.nn.Module]) -> str:
    try:
        return _swapped(entry, make, _Tokens(torch.nn.Linear(4, 6), torch.nn.GELU(), torch.nn.Linear(6, 1)), sites=4)
    except Exception as error:
        wrong = f"fails where channels are the last dimension, as in ConvNeXt ({first_line(error)})"
        raise NoteError(f"{wrong}: take channel_dim, their dimension") from error


def _swapped(
    entry: HiddenActivation, make: Callable[..., torch.nn.Module], last: torch.nn.Module, sites: int = 3
) -> str:
    """Swapped in at every call site and audited; a training step lowers the loss."""
    network = _Network(last).train()
    swap_hidden(network, entry.name, lambda **site: make(**site).train(), "both", 2, 8)
    report, _ = audit(network, 2, 8)
    if report.escaped or report.replaced != sites:
        raise WrongError(f"{report.replaced} of {sites} call sites are replaced; escaped: {', '.join(report.escaped)}")
    images, wanted = torch.randn(2, 2, 8, 8), torch.randn(2, 1, 8, 8)

    def value() -> torch.Tensor:
        with seeded(0, "check"):  # for activations that draw in training
            return (network(images) - wanted).square().mean()

    check_falls(value, [p for p in network.parameters() if p.requires_grad])
    return f"{sites} call sites, none escaped; a training step lowers the loss"
