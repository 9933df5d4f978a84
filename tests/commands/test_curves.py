"""`segexp curves`: figures of every format, of every activation that has a curve, and what they show."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from PIL import Image

from segexp import cli
from segexp.activations.hidden import function_names
from segexp.activations.output import OUTPUT_ACTIVATIONS
from segexp.commands.curves import DEFAULT, REFERENCE, Line, hidden_figure, size_of, with_slope
from segexp.records.formatting import COLOURS, STYLES, look

DRAWN = [n for n, e in OUTPUT_ACTIVATIONS.items() if e.log_odds is not None and not e.per_batch and "binary" in e.modes]


@pytest.mark.parametrize(("suffix", "magic", "words"), [
    pytest.param(".png", b"\x89PNG", ["--output", ",".join(DRAWN)], marks=pytest.mark.slow),
    pytest.param(".pdf", b"%PDF", [], marks=pytest.mark.slow),
    (".pdf", b"%PDF", ["--output", "sigmoid"]),
    (".svg", b"<?xml", ["--hidden", "relu"]),
])  # fmt: skip
def test_every_format(suffix: str, magic: bytes, words: list[str], tmp_path: Path) -> None:
    path = tmp_path / f"curves{suffix}"
    assert cli.main(["curves", *words, "-o", str(path)]) == 0
    assert path.read_bytes().startswith(magic)


def pixels_of(path: Path, colour: str) -> int:
    """How many pixels of a PNG have a colour, such as #1f77b4."""
    wanted = np.array([int(colour[n : n + 2], 16) for n in (1, 3, 5)])
    pixels = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3)
    return int((np.abs(pixels - wanted).max(axis=1) < 3).sum())


@pytest.mark.parametrize(
    ("words", "lines"),
    [
        pytest.param("--output sigmoid,arctan", 2, marks=pytest.mark.slow),
        ("--hidden relu,elu,snake", 3),
        pytest.param("--hidden all", 2, marks=pytest.mark.slow),
    ],
)
def test_a_figure_shows_every_line_and_is_the_same_again(words: str, lines: int, tmp_path: Path) -> None:
    first, second = tmp_path / "a.png", tmp_path / "b.png"
    for path in (first, second):
        assert cli.main(["curves", *words.split(), "-o", str(path)]) == 0
    assert first.read_bytes() == second.read_bytes()
    assert all(pixels_of(first, colour) > 500 for colour in COLOURS[:lines])


def test_everything_with_a_curve_has_a_look_of_its_own() -> None:
    assert len({look(n) for n in range(len(DRAWN))}) == len(DRAWN) <= len(COLOURS) * len(STYLES)


def line(name: str) -> Line:
    return Line(OUTPUT_ACTIVATIONS[name], COLOURS[0], "-")


def test_epsilon_kills_the_gradient_that_the_exact_form_keeps() -> None:
    """The normal CDF at x = -20 and the sigmoid at -100: exactly 0 against -20.05 and -1."""
    for name, x, true in (("normal_cdf", -20.0, -20.049753), ("sigmoid", -105.0, -1.0)):
        at = torch.tensor([x])
        assert with_slope(line(name).loss_with_epsilon, at)[1].tolist() == [0.0]
        exact = line(name).cross_entropy_slope(at)
        assert exact.tolist() == pytest.approx([true], rel=1e-5)
    # Near zero both forms agree, and a dead gradient is not drawn on a log axis.
    at = torch.tensor([-1.0, 0.5])
    for name in DEFAULT:
        exact = line(name).cross_entropy_slope(at)
        assert with_slope(line(name).loss_with_epsilon, at)[1] == pytest.approx(exact, rel=1e-4)
    shown = size_of(np.array([-2.0, 0.0, 3.0]))
    assert shown[[0, 2]].tolist() == [2.0, 3.0]
    assert np.isnan(shown[1])


def labelled(axis: Axes) -> dict[str, Any]:
    """The lines that a legend names."""
    return {str(line.get_label()): line for line in axis.lines if not str(line.get_label()).startswith("_")}


def test_a_few_hidden_activations_are_overlaid() -> None:
    """Function and derivative of each: at x = 2 and -2, as calculus has them; an alias is the same curve, once."""
    figure = hidden_figure(["relu", "swish", "silu", "tanh", "prelu"])
    f, slope = figure.axes
    assert (f.get_title(), slope.get_title()) == ("f(x)", "derivative f'(x)")
    assert f.get_xlabel() == slope.get_xlabel() == "x"
    lines = [labelled(axis) for axis in (f, slope)]
    (legend,) = figure.legends
    assert list(lines[0]) == list(lines[1]) == [text.get_text() for text in legend.get_texts()]
    assert list(lines[0]) == ["relu", "silu", "tanh", "prelu (initial)"]
    s = 1 / (1 + np.exp(-2))
    true = {"relu": (0, 2, 0, 1), "silu": (-2 * (1 - s), 2 * s, (1 - s) * (1 - 2 * s), s + 2 * s * (1 - s))}
    true |= {"tanh": (-np.tanh(2), np.tanh(2), *[1 - np.tanh(2) ** 2] * 2), "prelu (initial)": (-0.5, 2, 0.25, 1)}
    for name, values in true.items():
        drawn = [np.interp([-2, 2], line[name].get_xdata(), line[name].get_ydata()) for line in lines]
        assert np.concatenate(drawn) == pytest.approx(values, abs=1e-6), name
    assert len({line.get_color() for line in lines[0].values()}) == 4


def test_a_jump_of_a_derivative_is_a_gap() -> None:
    lines = labelled(hidden_figure(["relu", "tanh", "sine"]).axes[1])
    assert [np.isnan(lines[name].get_ydata()).sum() for name in ("relu", "tanh", "sine")] == [1, 0, 0]


@pytest.mark.slow
def test_many_hidden_activations_have_a_panel_each_before_relu() -> None:
    """From one more than there are colours; `all` is every one that is a function."""
    assert len(hidden_figure(function_names()[: len(COLOURS)]).axes) == 2
    more = hidden_figure(function_names()[: len(COLOURS) + 1])
    assert len([axis for axis in more.axes if axis.get_visible()]) == len(COLOURS) + 1
    panels = [axis for axis in hidden_figure(["all"]).axes if axis.get_visible()]
    assert [axis.get_title().removesuffix(" (initial)") for axis in panels] == function_names()
    for axis in panels:
        lines = labelled(axis)
        assert list(lines) == [REFERENCE, "its derivative", "f(x)", "f'(x)"]
        assert np.isfinite(lines["f(x)"].get_ydata()).all()
