"""Figure of output activations, of what their tails do to gradients, and of what an epsilon does."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from segexp.activations.head import Prediction, make_head
from segexp.activations.output import OUTPUT_ACTIVATIONS, OutputActivation
from segexp.config import alias_target
from segexp.curves.slope import with_slope
from segexp.drawing import look, new_figure, tidy
from segexp.errors import UsageError
from segexp.losses import ce, dice

if TYPE_CHECKING:
    import numpy as np
    import torch
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DEFAULT = ("sigmoid", "arctan", "normal_cdf", "softsign", "inverse_square_root")
"""The smooth activations of Nieradzik et al. 2021."""

EPSILON = 1e-7
"""Published code computes ln(eps + (1 - 2 eps) F(x))."""


def output_figure(names: Sequence[str]) -> "Figure":
    """Six panels with a line per activation. Raises UsageError for what is unknown or has no curve."""
    entries = [_entry(name) for name in dict.fromkeys(names)]
    figure = new_figure(12.5, 8.2)
    axes = figure.subplots(2, 3)
    panels = (_probability, _slope, _log_probability, _cross_entropy_gradient, _dice_gradient, _epsilon_gradient)
    for axis, panel in zip(axes.flat, panels, strict=True):
        panel(axis, [Line(entry, *look(n)) for n, entry in enumerate(entries)])
        tidy(axis)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 6), fontsize=10, frameon=False)
    return figure


@dataclass(frozen=True)
class Line:
    """One activation, and how its line looks in every panel."""

    entry: OutputActivation
    colour: str
    style: str

    def phi(self, x: "torch.Tensor") -> "torch.Tensor":
        assert self.entry.log_odds is not None
        return self.entry.log_odds(x)

    def probability(self, x: "torch.Tensor") -> "torch.Tensor":
        return self.phi(x).sigmoid()

    def log_probability(self, x: "torch.Tensor") -> "torch.Tensor":
        import torch.nn.functional as F

        return F.logsigmoid(self.phi(x))

    def loss_with_epsilon(self, x: "torch.Tensor") -> "torch.Tensor":
        """-ln(eps + (1 - 2 eps) F(x)), as published code has it."""
        return -(EPSILON + (1 - 2 * EPSILON) * self.probability(x)).log()

    def draw(self, axis: "Axes", x: Any, y: Any, **how: Any) -> None:
        look: dict[str, Any] = {"color": self.colour, "linestyle": self.style, "linewidth": 1.6}
        axis.plot(x, y, **(look | {"label": self.entry.name} | how))


def _entry(name: str) -> OutputActivation:
    entry = OUTPUT_ACTIVATIONS[alias_target("activation", name)[0]]
    if entry.log_odds is None:
        raise UsageError(f"{name} gives plain values: there is no probability to draw")
    if entry.per_batch:
        raise UsageError(f"{name} depends on the whole batch: it has no curve of its own")
    return entry


def _probability(axis: "Axes", lines: Sequence[Line]) -> None:
    import torch

    x = torch.linspace(-6, 6, 1201, dtype=torch.float64)
    for line in lines:
        line.draw(axis, x, with_slope(line.probability, x)[0])
    axis.set(title="probability", xlabel="logit x", ylabel="p = F(x)", xlim=(-6, 6), ylim=(-0.02, 1.02))


def _slope(axis: "Axes", lines: Sequence[Line]) -> None:
    import torch

    x = torch.linspace(-6, 6, 2401, dtype=torch.float64)
    for line in lines:
        line.draw(axis, x, with_slope(line.probability, x)[1])
    axis.set(title="slope", xlabel="logit x", ylabel="dF/dx", xlim=(-6, 6))
    axis.set_ylim(bottom=0)


def _log_probability(axis: "Axes", lines: Sequence[Line]) -> None:
    import torch

    x = torch.linspace(-20, 4, 1201, dtype=torch.float64)
    for line in lines:
        line.draw(axis, x, with_slope(line.log_probability, x)[0])
    axis.set(title="tail", xlabel="logit x", ylabel="ln p", xlim=(-20, 4), ylim=(-30, 1))


def _wrong_sizes() -> "torch.Tensor":
    import torch

    return torch.logspace(-1, 4, 501)


def _log_log(axis: "Axes", title: str, ylabel: str, bottom: float, top: float) -> None:
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set(
        title=title,
        xlabel="how wrong the pixel is: -x, with y = 1",
        ylabel=ylabel,
        xlim=(0.1, 1e4),
        ylim=(bottom, top),
    )


def _positive(gradient: "np.ndarray") -> "np.ndarray":
    """|gradient| for a log axis: nothing is drawn where it is 0."""
    import numpy as np

    size: np.ndarray = np.abs(gradient.astype(np.float64))
    return np.where(size > 0, size, math.nan)


def _cross_entropy_gradient(axis: "Axes", lines: Sequence[Line]) -> None:
    """|d BCE / dx| of a pixel of the foreground with logit x = -a, in float32."""
    import torch

    a = _wrong_sizes()
    truth = torch.ones(len(a), 1, 1, dtype=torch.long)
    for line in lines:
        gradient = _gradient_of_pixels(line, -a, lambda prediction: ce(prediction, truth) * len(a))
        line.draw(axis, a, _positive(gradient))
    _log_log(axis, "cross-entropy: pull on a wrong pixel", "|d BCE / dx|", 1e-5, 1e5)


def _gradient_of_pixels(line: Line, x: "torch.Tensor", total: Callable[[Prediction], "torch.Tensor"]) -> "np.ndarray":
    """Gradient of a loss that is a sum over the images (N, 1, 1, 1) of one pixel each."""
    import torch

    leaf = x.clone().requires_grad_()
    prediction = make_head(line.entry, "binary")(leaf.view(-1, 1, 1, 1))
    (gradient,) = torch.autograd.grad(total(prediction), leaf)
    return gradient.numpy()


PIXELS, FOREGROUND = 1000, 100
"""The image of the Dice panel: one wrong pixel among pixels that are right with p = 0.99 or 0.01."""


def _dice_gradient(axis: "Axes", lines: Sequence[Line]) -> None:
    """|d Dice / dx| of one foreground pixel with logit x = -a, everything else being right."""
    import torch

    from segexp.activations.inverse import logit_of

    a = _wrong_sizes()[::4]
    target = torch.zeros(len(a), 1, PIXELS, dtype=torch.long)
    target[..., :FOREGROUND] = 1
    sure = torch.logit(torch.tensor([0.99, 0.01], dtype=torch.float64))
    for line in lines:
        right = logit_of(line.entry, sure).float()
        logits = torch.where(target == 1, right[0], right[1]).unsqueeze(1)
        logits[:, 0, 0, 0] = -a
        leaf = logits.requires_grad_()
        loss = dice(make_head(line.entry, "binary")(leaf), target, reduction="image") * len(a)
        (gradient,) = torch.autograd.grad(loss, leaf)
        line.draw(axis, a, _positive(gradient[:, 0, 0, 0].numpy()))
    _log_log(axis, f"Dice: pull on one wrong pixel of {FOREGROUND}", "|d Dice / dx|", 1e-12, 1e-1)


def _epsilon_gradient(axis: "Axes", lines: Sequence[Line]) -> None:
    """The gradient of -ln p as it is, and through ln(eps + (1 - 2 eps) F), in float32."""
    import torch

    a = _wrong_sizes()
    truth = torch.ones(len(a), 1, 1, dtype=torch.long)
    for line in lines:
        stable = _gradient_of_pixels(line, -a, lambda prediction: ce(prediction, truth) * len(a))
        line.draw(axis, a, _positive(stable), linewidth=4.0, alpha=0.25, linestyle="-", label="_stable")

        gradient = with_slope(line.loss_with_epsilon, -a)[1]
        line.draw(axis, a, _positive(gradient), linewidth=1.3, label="_epsilon")
        dead = (gradient == 0).nonzero()[0]
        if len(dead):
            axis.plot(a[dead[0]], max(abs(float(gradient[dead[0] - 1])), 1e-12), "x", color=line.colour, markersize=7)
    _log_log(axis, "exact (broad), and -ln(1e-7 + F) (thin)", "|d BCE / dx|", 1e-12, 1e5)
    axis.text(
        0.02,
        0.03,
        "x: from here on exactly 0 in float32",
        transform=axis.transAxes,
        fontsize=8.5,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5},
    )
