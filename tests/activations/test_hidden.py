"""Hidden activations against references of 30 digits, and every fact that their entries declare."""

import functools
from collections.abc import Callable
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from messages import mentions
from mpmath import mp

from segexp.activations.hidden import HIDDEN_ACTIVATIONS, SWAP_OPTIONS, make_hidden, measured_gain
from segexp.config import alias_target
from segexp.errors import UsageError
from segexp.running.entry_check import checked, hidden

Map = Callable[[Any], Any]

SELU_SCALE = mpmath.mpf("1.05070098735548049")
SELU_ALPHA = mpmath.mpf("1.67326324235437728")

# Parameters are float32 whatever the input.
NUMERATOR = [float(np.float32(c)) for c in (0.0448, 0.505, 1.2388, 1.1282, 0.3918, 0.048)]
DENOMINATOR = [float(np.float32(c)) for c in (0.0, 2.234, 0.0, 0.0951)]
SCALE, BIAS = (float(np.float32(c)) for c in (0.8944, -0.4472))
P, N = (mpmath.log1p(mpmath.exp(float(np.float32(np.log(np.expm1(c)))))) for c in (0.8, 0.3))


def logistic(x: Any) -> Any:
    return 1 / (1 + mp.exp(-x))


def pade(x: Any) -> Any:
    above = sum(c * x**power for power, c in enumerate(NUMERATOR))
    return above / (1 + abs(sum(c * x ** (power + 1) for power, c in enumerate(DENOMINATOR))))


def gelu_by_tanh(x: Any) -> Any:
    return x * (1 + mp.tanh(mp.sqrt(2 / mp.pi) * (x + mp.mpf("0.044715") * x**3))) / 2


REFERENCES: dict[str, Map] = {
    "relu": lambda x: max(x, 0),
    "leaky_relu": lambda x: x if x > 0 else x / 100,
    "prelu": lambda x: x if x > 0 else x / 4,
    "prelu_channel": lambda x: x if x > 0 else x / 4,
    "rrelu": lambda x: x if x > 0 else 11 * x / 48,
    "relu6": lambda x: min(max(x, 0), 6),
    "hardtanh": lambda x: min(max(x, -1), 1),
    "hardsigmoid": lambda x: min(max((x + 3) / 6, 0), 1),
    "hardswish": lambda x: x * min(max((x + 3) / 6, 0), 1),
    "hard_mish": lambda x: x * min(max(x + 2, 0), 2) / 2,
    "squared_relu": lambda x: max(x, 0) ** 2,
    "star_relu": lambda x: SCALE * max(x, 0) ** 2 + BIAS,
    "threshold": lambda x: x if x > 1 else mp.mpf(0),
    "hardshrink": lambda x: x if abs(x) > 0.5 else mp.mpf(0),
    "softshrink": lambda x: mp.sign(x) * max(abs(x) - 0.5, 0),
    "identity": lambda x: x,
    "elu": lambda x: x if x > 0 else mp.expm1(x),
    "celu": lambda x: x if x > 0 else mp.expm1(x),
    "selu": lambda x: SELU_SCALE * (x if x > 0 else SELU_ALPHA * mp.expm1(x)),
    "gelu": lambda x: x * mp.erfc(-x / mp.sqrt(2)) / 2,
    "gelu_tanh": gelu_by_tanh,
    "quick_gelu": lambda x: x * logistic(mp.mpf("1.702") * x),
    "silu": lambda x: x * logistic(x),
    "swish_beta": lambda x: x * logistic(x),
    "mish": lambda x: x * mp.tanh(mp.log1p(mp.exp(x))),
    "softplus": lambda x: mp.log1p(mp.exp(x)),
    "squareplus": lambda x: (x + mp.sqrt(x * x + 4)) / 2,
    "lisht": lambda x: x * mp.tanh(x),
    "golu": lambda x: x * mp.exp(-mp.exp(-x)),
    "telu": lambda x: x * mp.tanh(mp.exp(x)),
    "med_relu": lambda x: x if x > 0 else x / (1 + abs(x)),
    "xielu": lambda x: x / 2 + (P * x * x if x > 0 else (N + 0.5) * (mp.expm1(x) - x)),
    "tanh": mp.tanh,
    "sigmoid": logistic,
    "logsigmoid": lambda x: -mp.log1p(mp.exp(-x)),
    "softsign": lambda x: x / (1 + abs(x)),
    "arctan": mp.atan,
    "erf": mp.erf,
    "inverse_square_root": lambda x: x / mp.sqrt(1 + x * x),
    "tanhshrink": lambda x: x - mp.tanh(x),
    "sine": mp.sin,
    "gcu": lambda x: x * mp.cos(x),
    "snake": lambda x: x + mp.sin(x) ** 2,
    "rational": pade,
}
"""f(x) of every entry at its default options, as its source writes it."""

OPTIONS: dict[tuple[str, str], tuple[Any, Map]] = {
    ("leaky_relu", "negative_slope"): (0.1, lambda x: x if x > 0 else x / 10),
    ("prelu", "init"): (-0.5, lambda x: x if x > 0 else -x / 2),
    ("prelu_channel", "init"): (-0.5, lambda x: x if x > 0 else -x / 2),
    ("elu", "alpha"): (2.0, lambda x: x if x > 0 else 2 * mp.expm1(x)),
    ("celu", "alpha"): (2.0, lambda x: x if x > 0 else 2 * mp.expm1(x / 2)),
    ("threshold", "threshold"): (-1.0, lambda x: x if x > -1 else mp.mpf(0)),
    ("threshold", "value"): (-2.0, lambda x: x if x > 1 else mp.mpf(-2)),
    ("hardshrink", "lambd"): (3.0, lambda x: x if abs(x) > 3 else mp.mpf(0)),
    ("softshrink", "lambd"): (3.0, lambda x: mp.sign(x) * max(abs(x) - 3, 0)),
    ("gelu", "approximate"): (
        "tanh",
        gelu_by_tanh,
    ),
    ("swish_beta", "init"): (2.0, lambda x: x * logistic(2 * x)),
    ("softplus", "beta"): (2.0, lambda x: mp.log1p(mp.exp(2 * x)) / 2),
    ("squareplus", "b"): (1.0, lambda x: (x + mp.sqrt(x * x + 1)) / 2),
    ("inverse_square_root", "alpha"): (4.0, lambda x: x / mp.sqrt(1 + 4 * x * x)),
    ("sine", "frequency"): (3.0, lambda x: mp.sin(3 * x)),
    ("snake", "init"): (2.0, lambda x: x + mp.sin(2 * x) ** 2 / 2),
}
"""Entry and option -> another value of it, and f(x) with that value."""

ENDS = {"-3/8": -0.375, "-1/2": -0.5, "-alpha": -1.0, "-0.2785 / beta": -0.2785, "-pi/2": -np.pi / 2, "pi/2": np.pi / 2}
ENDS |= {"-1 / sqrt(alpha)": -1.0, "1 / sqrt(alpha)": 1.0, "bias": -0.4472}
ENDS |= {"min(value, threshold)": 0.0}
"""Ends of ranges that are no plain numbers, at the default options."""

NAMES = [name for name in HIDDEN_ACTIVATIONS if name != "native"]

# No kink lies at any of these.
POINTS = torch.cat([torch.linspace(-12, 12, 200), torch.tensor([-50.3, -21.7, 21.7, 50.3])])

# Errors allowed of f and f', beside 1 + |f| and 1 + |f'|.
BOUNDS = {torch.float32: 2e-6, torch.float64: 1e-13}
LOOSER = {"softplus": 3e-9, "hardsigmoid": 5e-9}
"""torch's softplus is x from 20 on, without e^-20; the slope of its hardsigmoid is 1/6 in float32."""


def reference_of(name: str) -> Map:
    assert name in REFERENCES, f"{name} has no reference: give its f(x) in REFERENCES of {__file__}"
    return REFERENCES[name]


def made(name: str, **options: Any) -> torch.nn.Module:
    return make_hidden(name, options).eval()


def with_slope(module: torch.nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """f and f' at x, in the type of x."""
    leaf = x.clone().requires_grad_()
    y = module.to(x.dtype)(leaf)
    (slope,) = torch.autograd.grad(y.sum(), leaf)
    assert y.dtype == slope.dtype == x.dtype
    assert y.shape == x.shape
    return y.detach(), slope


def true_values(f: Map, points: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    with mp.workdps(30):
        at = [mp.mpf(x) for x in points.tolist()]
        return np.array([float(f(x)) for x in at]), np.array([float(mp.diff(f, x)) for x in at])


@functools.cache
def truth(name: str) -> tuple[np.ndarray, np.ndarray]:
    """f and f' of the reference at `POINTS`."""
    return true_values(reference_of(name), POINTS)


def worst(module: torch.nn.Module, true: tuple[np.ndarray, np.ndarray], x: torch.Tensor) -> float:
    """Greatest error of f and f', beside 1 + |f| and 1 + |f'|."""
    errors = [
        np.abs(got.double().numpy() - wanted) / (1 + np.abs(wanted))
        for got, wanted in zip(with_slope(module, x), true, strict=True)
    ]
    return float(np.max(errors))


def test_every_entry_has_a_reference_and_no_other_has() -> None:
    """A new activation needs its f(x) among `REFERENCES`, and each option of its own a line among `OPTIONS`."""
    assert set(NAMES) == set(REFERENCES)
    swap = {option.name for option in SWAP_OPTIONS}
    own = {(name, o.name) for name in NAMES for o in HIDDEN_ACTIVATIONS[name].options if o.name not in swap}
    assert own == set(OPTIONS)


@pytest.mark.parametrize("name", NAMES)
def test_values_and_derivatives(name: str) -> None:
    for dtype, bound in BOUNDS.items():
        assert worst(made(name), truth(name), POINTS.to(dtype)) <= max(bound, LOOSER.get(name, 0)), dtype


@pytest.mark.parametrize("name", NAMES)
def test_derivative_at_zero(name: str) -> None:
    """That of the reference where it has one, else one of its two sides or between."""
    with mp.workdps(30):
        left, right = (float(mp.diff(reference_of(name), 0, direction=side)) for side in (-1, 1))
    for dtype in BOUNDS:
        slope = with_slope(made(name), torch.zeros(1, dtype=dtype))[1].item()
        assert min(left, right) - 1e-7 <= slope <= max(left, right) + 1e-7, dtype


@pytest.mark.parametrize("name", ["softplus", "squareplus", "sigmoid", "silu"])
def test_the_left_tail_keeps_its_digits(name: str) -> None:
    """Where sums would cancel: relative error of f in float32 down to x = -80."""
    x = torch.linspace(-80, -5, 51)
    true, _ = true_values(reference_of(name), x)
    assert with_slope(made(name), x)[0].numpy() == pytest.approx(true, rel=2e-5, abs=0)


@pytest.mark.parametrize(("name", "option"), OPTIONS)
def test_an_option_changes_the_function_as_it_says(name: str, option: str) -> None:
    value, f = OPTIONS[name, option]
    x = POINTS[::5].double()
    other = true_values(f, x)
    assert worst(made(name, **{option: value}), other, x) <= max(1e-13, LOOSER.get(name, 0))
    assert worst(made(name), other, x) > 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_every_check_of_plugins_passes(name: str) -> None:
    """Finite, not in place, copied and trained, with the stated facts (of which none is only noted as missing)."""
    assert [check for check in checked(hidden(HIDDEN_ACTIVATIONS[name])) if check.result != "ok"] == []


@pytest.mark.parametrize("channel_dim", [1, -1])
def test_a_slope_per_channel(channel_dim: int) -> None:
    """Channels are where the call site has them: images, (N, C, H, W) or (N, H, W, C), tokens, and single values."""
    module: Any = make_hidden("prelu_channel", {"scope": "both"}, channels=3, channel_dim=channel_dim)
    module.weight.data = torch.tensor([0.0, 0.5, -2.0])
    for shape in ((2, 3, 4, 3), (2, 3, 3), (5, 3)):
        x = torch.randn(shape)
        y_C = module(x).movedim(channel_dim, 0)
        for x_, y, slope in zip(x.movedim(channel_dim, 0), y_C, (0.0, 0.5, -2.0), strict=True):
            assert torch.equal(y, torch.where(x_ > 0, x_, slope * x_))


def test_measured_gain_is_kaimings() -> None:
    """sqrt(2) of the rectifier, and 1 / sqrt(E z^2) = 1 of the identity; the module stays in its type and mode."""
    assert measured_gain(torch.nn.ReLU()) == pytest.approx(2**0.5, rel=1e-7)
    assert measured_gain(torch.nn.Identity()) == pytest.approx(1, rel=1e-7)
    module = torch.nn.PReLU()
    measured_gain(module)
    assert module.training
    assert module.weight.dtype == torch.float32


@pytest.mark.parametrize("name", NAMES)
def test_declared_shape_is_the_functions(name: str) -> None:
    entry, f = HIDDEN_ACTIVATIONS[name], reference_of(name)
    with mp.workdps(30):
        odd = all(mp.almosteq(f(mp.mpf(-x)), -f(mp.mpf(x)), abs_eps=1e-20) for x in (0.3, 1.7, 4.1, 7))
        # In truth: f' of golu is 0 below -6.6 in float64.
        dead = [all(mp.diff(f, low + mp.mpf(n) / 8) == 0 for n in range(9)) for low in (-9, 8)]
    assert entry.zero_centred == odd
    assert entry.can_die == any(dead)


@pytest.mark.parametrize("name", NAMES)
def test_declared_range_is_the_functions(name: str) -> None:
    """Ends are stated to four digits; a square bracket stands where the end is attained."""
    text, f = HIDDEN_ACTIVATIONS[name].range, reference_of(name)
    low, high = (ENDS[end] if end in ENDS else float(end) for end in text[1:-1].rsplit(", ", 1))
    y = with_slope(made(name), torch.linspace(-1e4, 1e4, 2_000_001, dtype=torch.float64))[0]
    assert low - 1e-4 <= y.min() <= low + 1e-3 or y.min() < -50 > low
    assert high - 1e-3 <= y.max() <= high + 1e-4 or y.max() > 50 < high
    with mp.workdps(30):
        points = [mp.mpf(n) / 8 for n in range(-56, 57)]
        values = [f(x) for x in points]
        lowest, highest = (points[values.index(end)] for end in (min(values), max(values)))
        attained = [abs(x) < 7 or mp.diff(f, x) == 0 for x in (lowest, highest)]
        attained = [np.isfinite(end) and yes for end, yes in zip((low, high), attained, strict=True)]
    assert attained == [text[0] == "[", text[-1] == "]"]


def test_years_and_families() -> None:
    entries = [HIDDEN_ACTIVATIONS[name] for name in NAMES]
    assert {e.name for e in entries if e.year is None} == {"identity", "logsigmoid", "tanhshrink"}
    years = {e.name: e.year for e in entries}
    # The earliest of several, and no number of a preprint.
    assert (years["silu"], years["squareplus"], years["relu"], years["rational"]) == (2017, 2021, 2010, 2020)
    assert years["telu"] == 2020, "TanhExp, four years earlier, is the same function"
    assert all(e.family for e in entries)
    assert len({e.family for e in entries}) == 8
    assert [e.name for e in entries if (e.family == "learned") != bool(e.learnable)] == []


@pytest.mark.parametrize(
    ("name", "word"),
    [("SwiGLU", "elementwise"), ("glu", "elementwise"), ("DyT", "hidden_activation=tanh"), ("softmax", "head")],
)
def test_what_is_not_elementwise_is_refused_with_the_reason(name: str, word: str) -> None:
    with pytest.raises(UsageError) as error:
        alias_target("hidden_activation", name)
    assert "did you mean" not in str(error.value)
    assert mentions(error.value, word)


def test_every_entry_tells_about_itself() -> None:
    for name in NAMES:
        entry = HIDDEN_ACTIVATIONS[name]
        assert entry.name == name
        assert all((entry.formula, entry.derivative, entry.range, entry.source)), name
        assert not set(entry.aliases) & set(HIDDEN_ACTIVATIONS), name
    assert HIDDEN_ACTIVATIONS["native"].make is None


def test_the_random_slope_is_drawn_in_training_alone() -> None:
    x = torch.full((64,), -1.0)
    module = made("rrelu")
    assert module(x).unique().numel() == 1
    drawn = -module.train()(x)
    assert drawn.unique().numel() > 8
    assert ((drawn >= 1 / 8) & (drawn <= 1 / 3)).all()


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_is_right_wherever_its_result_fits(name: str) -> None:
    """Squares inside must not overflow: float16 ends at 65504."""
    x = torch.tensor([-30000.0, -1000.0, -300.0, -5.0, 0.0, 0.5, 5.0, 300.0, 1000.0, 30000.0])
    module = make_hidden(name, {}).eval()
    with torch.no_grad():
        exact, half = module(x), module.half()(x.half()).float()
    fits = exact.abs() < 60000
    assert torch.allclose(half[fits], exact[fits], rtol=2e-2, atol=2e-2)
