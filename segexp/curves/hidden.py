"""Figure of hidden activations and their derivatives: overlaid while lines can be told apart, else a panel for each."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from segexp.activations.hidden import HIDDEN_ACTIVATIONS, HiddenActivation, make_hidden
from segexp.config import alias_target
from segexp.curves.slope import with_slope
from segexp.drawing import COLOURS, new_figure, tidy
from segexp.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

REACH = 4.0
"""Curves are drawn for x from -REACH to REACH."""

WINDOWS = {"f": (-REACH, REACH), "slope": (-1.25, 2.25)}
"""What of f and f' is shown at most: squared_relu leaves it."""

JUMP = 0.05
"""A derivative that moves more from one point to the next is not continuous: the line has a gap."""

REFERENCE = "relu"

GREY = "0.78"


def hidden_figure(names: Sequence[str]) -> "Figure":
    """Function and derivative of each. Raises UsageError for what is unknown or has no curve."""
    curves = [_curve(entry) for entry in _entries(names)]
    return _overlaid(curves) if len(curves) <= len(COLOURS) else _side_by_side(curves)


def _entries(names: Sequence[str]) -> list[HiddenActivation]:
    if list(names) == ["all"]:
        return [entry for entry in HIDDEN_ACTIVATIONS.values() if entry.make is not None]
    entries = [HIDDEN_ACTIVATIONS[alias_target("hidden_activation", name)[0]] for name in names]
    for entry in entries:
        if entry.make is None:
            raise UsageError(f"--hidden {entry.name}: it is whatever the encoder came with, which has no one curve")
    return list({entry.name: entry for entry in entries}.values())


@dataclass(frozen=True)
class Curve:
    """One activation at its default options, as it is before anything is learned, and as it is in evaluation."""

    label: str
    x: "np.ndarray"
    f: "np.ndarray"
    slope: "np.ndarray"


def _curve(entry: HiddenActivation) -> Curve:
    import numpy as np
    import torch

    x = torch.linspace(-REACH, REACH, 1601, dtype=torch.float64)
    f, slope = with_slope(make_hidden(entry.name, {}).double().eval(), x)
    slope = np.where(np.abs(np.diff(slope, append=slope[-1])) > JUMP, math.nan, slope)
    return Curve(f"{entry.name} (initial)" if entry.learnable else entry.name, x.numpy(), f, slope)


def _overlaid(curves: Sequence[Curve]) -> "Figure":
    """Two panels: f and f' of all."""
    figure = new_figure(10.5, 4.9)
    for axis, what, title in zip(figure.subplots(1, 2), WINDOWS, ("f(x)", "derivative f'(x)"), strict=True):
        for n, curve in enumerate(curves):
            # Later lines are thinner, so that where lines coincide all of them are seen.
            width = 1.3 + 3.0 * (1 - (n + 1) / len(curves))
            y = getattr(curve, what)
            axis.plot(curve.x, y, color=COLOURS[n], linewidth=width, label=curve.label, solid_capstyle="butt")
        shown = [value for curve in curves for value in getattr(curve, what) if math.isfinite(value)]
        low, high = max(min(shown), WINDOWS[what][0]), min(max(shown), WINDOWS[what][1])
        margin = 0.05 * (high - low)
        axis.set(title=title, xlabel="x", xlim=(-REACH, REACH), ylim=(low - margin, high + margin))
        _cross(axis)
        tidy(axis)
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=10, frameon=False)
    return figure


def _side_by_side(curves: Sequence[Curve]) -> "Figure":
    """A panel for each, with relu behind in grey."""
    columns = min(8, math.ceil(math.sqrt(1.6 * len(curves))))
    rows = math.ceil(len(curves) / columns)
    figure = new_figure(1.9 * columns, 2.0 * rows + 0.5)
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    relu = _curve(HIDDEN_ACTIVATIONS[REFERENCE])
    for n, axis in enumerate(axes.flat):
        if n >= len(curves):
            axis.set_visible(False)
            continue
        _cross(axis)
        axis.plot(relu.x, relu.f, color=GREY, linewidth=3.4, label="relu")
        axis.plot(relu.x, relu.slope, color=GREY, linewidth=3.4, linestyle=(0, (1.2, 0.8)), label="its derivative")
        axis.plot(curves[n].x, curves[n].f, color=COLOURS[0], linewidth=1.7, label="f(x)")
        axis.plot(curves[n].x, curves[n].slope, color=COLOURS[1], linewidth=1.5, linestyle="--", label="f'(x)")
        axis.set_title(curves[n].label, fontsize=10)
        axis.set(xlim=(-REACH, REACH), ylim=(-2, 3), xticks=(-3, 0, 3), yticks=(-2, -1, 0, 1, 2, 3))
        axis.tick_params(labelsize=9)
        axis.set_xlabel("x" if n >= columns * (rows - 1) else "")
        tidy(axis)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    order = (2, 3, 0, 1)
    figure.legend(
        [handles[k] for k in order], [labels[k] for k in order],
        loc="outside lower center", ncols=4, fontsize=10, frameon=False,
    )  # fmt: skip
    return figure


def _cross(axis: "Axes") -> None:
    """The axes through the origin."""
    axis.axhline(0, color="0.6", linewidth=0.7)
    axis.axvline(0, color="0.6", linewidth=0.7)
