"""`segexp curves`: figures of output and hidden activations, their derivatives, tails and losses."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segexp.activations.head import Prediction, make_head
from segexp.activations.hidden import HIDDEN_ACTIVATIONS, HiddenActivation, make_hidden
from segexp.activations.output import OUTPUT_ACTIVATIONS, OutputActivation
from segexp.commands import Parser
from segexp.config import alias_target
from segexp.errors import DONE, UsageError
from segexp.losses.pixelwise import ce
from segexp.losses.region import dice
from segexp.records import write_atomic
from segexp.records.formatting import COLOURS, METADATA, image_bytes, look, new_figure, tidy

if TYPE_CHECKING:
    import numpy as np
    import torch
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def with_slope(f: Callable[["torch.Tensor"], "torch.Tensor"], x: "torch.Tensor") -> tuple["np.ndarray", "np.ndarray"]:
    """Values of an elementwise f and their derivative, by autograd."""
    import torch

    leaf = x.clone().requires_grad_()
    y = f(leaf)
    (slope,) = torch.autograd.grad(y.sum(), leaf)
    return y.detach().numpy(), slope.numpy()


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


def with_curve() -> list[str]:
    """Hidden activations that are one function."""
    return [name for name, entry in HIDDEN_ACTIVATIONS.items() if entry.make is not None]


def _entries(names: Sequence[str]) -> list[HiddenActivation]:
    if list(names) == ["all"]:
        return [HIDDEN_ACTIVATIONS[name] for name in with_curve()]
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

    from segexp.activations.head import logit_of

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


FORMATS = tuple(f".{kind}" for kind in METADATA)


def draw_curves(path: Path, output: Sequence[str] | None, hidden: Sequence[str] | None) -> None:
    """Draw the named activations into ``path``. Raises UsageError for unknown names and formats.

    output: output activations; those of the paper where neither is given. hidden: hidden ones, "all" for every one.
    """
    kind = path.suffix.lower()
    if kind not in FORMATS:
        raise UsageError(f"{path}: cannot draw '{path.suffix}' files; use {', '.join(FORMATS)}")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"{path}: the folder {path.absolute().parent} does not exist")
    if output is not None and hidden is not None:
        raise UsageError(
            "--output and --hidden make different figures: give one of them, and the other to another file"
        )
    figure = output_figure(output or DEFAULT) if hidden is None else hidden_figure(hidden)
    write_atomic(path, image_bytes(figure, kind.removeprefix(".")))


EPILOG = """\
examples:
  segexp curves -o outputs.pdf
  segexp curves --output sigmoid,arctan,student_t3,normal_cdf -o tails.png
  segexp curves --hidden relu,elu,silu,gelu -o hidden.png
  segexp curves --hidden all -o all.pdf
"""


def parser() -> Parser:
    parser = Parser("curves", EPILOG)
    parser.add_argument(
        "--output",
        metavar="NAME,...",
        complete=OUTPUT_ACTIVATIONS,
        help="output activations (default: those of the paper)",
    )
    parser.add_argument(
        "--hidden", metavar="NAME,...", complete=[*with_curve(), "all"], help="hidden activations, or all"
    )
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="FILE", help="a .png, .pdf or .svg file")
    return parser


def command(words: Sequence[str]) -> int:
    """`segexp curves`."""
    options = parser().parse_args(list(words))

    draw_curves(
        options.out,
        None if options.output is None else options.output.split(","),
        None if options.hidden is None else options.hidden.split(","),
    )
    print(f"figure: {options.out}")
    return DONE
