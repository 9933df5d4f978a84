"""`segexp curves`: figures of output and hidden activations, their derivatives, tails and losses."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segexp.commands import Parser, imported
from segexp.errors import DONE, UsageError
from segexp.records.formatting import COLOURS, METADATA, image_bytes, look, new_figure, tidy

if TYPE_CHECKING:
    import numpy as np
    import torch
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from segexp.activations.head import Prediction
    from segexp.activations.hidden import HiddenActivation
    from segexp.activations.output import OutputActivation

DEFAULT = ("sigmoid", "arctan", "normal_cdf", "softsign", "inverse_square_root")
"""The smooth activations of Nieradzik et al. 2021."""

FORMATS = tuple(f".{kind}" for kind in METADATA)

EPILOG = """\
examples:
  segexp curves -o outputs.pdf
  segexp curves --output sigmoid,arctan,student_t3,normal_cdf -o tails.png
  segexp curves --hidden relu,elu,silu,gelu -o hidden.png
  segexp curves --hidden all -o all.pdf
"""


def parser() -> Parser:
    parser = Parser("curves", EPILOG)
    add = parser.add_argument
    add(
        "--output",
        metavar="NAME,...",
        complete=lambda: imported("segexp.activations.output", "OUTPUT_ACTIVATIONS"),
        help="output activations (default: those of Nieradzik et al. 2021)",
    )
    add(
        "--hidden",
        metavar="NAME,...",
        complete=lambda: [*imported("segexp.activations.hidden", "function_names")(), "all"],
        help="hidden activations, or all",
    )
    add("-o", "--out", type=Path, required=True, metavar="FILE", help="a .png, .pdf or .svg file")
    return parser


def command(words: Sequence[str]) -> int:
    options = parser().parse_args(list(words))
    path, kind = options.out, options.out.suffix.lower()
    if kind not in FORMATS:
        raise UsageError(f"{path}: cannot draw '{path.suffix}' files; use {', '.join(FORMATS)}")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"{path}: the folder {path.absolute().parent} does not exist")
    if options.hidden is None:
        figure = output_figure(DEFAULT if options.output is None else options.output.split(","))
    elif options.output is None:
        figure = hidden_figure(options.hidden.split(","))
    else:
        raise UsageError("--output and --hidden make different figures: give one here, the other in a second command")

    from segexp.records import write_atomic

    write_atomic(path, image_bytes(figure, kind.removeprefix(".")))
    print(f"figure: {path}")
    return DONE


def with_slope(f: Callable[["torch.Tensor"], "torch.Tensor"], x: "torch.Tensor") -> tuple["np.ndarray", "np.ndarray"]:
    """Values of f, elementwise or a sum over elements, and its derivative by each element, by autograd."""
    import torch

    leaf = x.clone().requires_grad_()
    y = f(leaf)
    (slope,) = torch.autograd.grad(y.sum(), leaf)
    return y.detach().numpy(), slope.numpy()


# Hidden activations

REACH = 4.0
"""Curves are drawn for x from -REACH to REACH."""

WINDOWS = {"f": (-REACH, REACH), "slope": (-1.25, 2.25)}
"""What of f and f' is shown at most: squared_relu leaves it."""

JUMP = 0.05
"""A derivative that moves more from one point to the next is not continuous: the line has a gap."""

REFERENCE = "relu"

GREY = "0.78"


@dataclass(frozen=True)
class Curve:
    """One activation at its default options, before training, in evaluation mode."""

    label: str
    x: "np.ndarray"
    f: "np.ndarray"
    slope: "np.ndarray"


def hidden_figure(names: Sequence[str]) -> "Figure":
    """Function and derivative of each; ["all"]: of every one. Raises UsageError for unknown names and `native`."""
    from segexp.activations.hidden import HIDDEN_ACTIVATIONS, function_names
    from segexp.config import alias_target

    if list(names) == ["all"]:
        names = function_names()
    entries = {name: HIDDEN_ACTIVATIONS[name] for name in (alias_target("hidden_activation", n)[0] for n in names)}
    for entry in entries.values():
        if entry.make is None:
            raise UsageError(f"--hidden {entry.name}: the encoder's own activations, which have no one curve")
    curves = [_curve(entry) for entry in entries.values()]
    return _overlaid(curves) if len(curves) <= len(COLOURS) else _side_by_side(curves)


def _curve(entry: "HiddenActivation") -> Curve:
    import numpy as np
    import torch

    from segexp.activations.hidden import make_hidden, one_channel

    x = torch.linspace(-REACH, REACH, 1601, dtype=torch.float64)
    module = make_hidden(entry.name, {}).double().eval()
    f, slope = with_slope(lambda leaf: module(one_channel(leaf)).flatten(), x)
    slope = np.where(np.abs(np.diff(slope, append=slope[-1])) > JUMP, math.nan, slope)
    return Curve(f"{entry.name} (initial)" if entry.learnable else entry.name, x.numpy(), f, slope)


def _overlaid(curves: Sequence[Curve]) -> "Figure":
    """Two panels: f and f' of all."""
    figure = new_figure(10.5, 4.9)
    for axis, what, title in zip(figure.subplots(1, 2), WINDOWS, ("f(x)", "derivative f'(x)"), strict=True):
        for n, curve in enumerate(curves):
            # Later lines are thinner, so that lines that coincide can all be seen.
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
    _legend(figure, handles, labels, columns=len(labels))
    return figure


def _side_by_side(curves: Sequence[Curve]) -> "Figure":
    """A panel for each, with relu behind in grey."""
    from segexp.activations.hidden import HIDDEN_ACTIVATIONS

    columns = min(8, math.ceil(math.sqrt(1.6 * len(curves))))
    rows = math.ceil(len(curves) / columns)
    figure = new_figure(1.9 * columns, 2.0 * rows + 0.5)
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    relu = _curve(HIDDEN_ACTIVATIONS[REFERENCE])
    for axis in axes.flat[len(curves) :]:
        axis.set_visible(False)
    for n, (axis, curve) in enumerate(zip(axes.flat, curves, strict=False)):
        _cross(axis)
        axis.plot(relu.x, relu.f, color=GREY, linewidth=3.4, label="relu")
        axis.plot(relu.x, relu.slope, color=GREY, linewidth=3.4, linestyle=(0, (1.2, 0.8)), label="its derivative")
        axis.plot(curve.x, curve.f, color=COLOURS[0], linewidth=1.7, label="f(x)")
        axis.plot(curve.x, curve.slope, color=COLOURS[1], linewidth=1.5, linestyle="--", label="f'(x)")
        axis.set_title(curve.label, fontsize=10)
        axis.set(xlim=(-REACH, REACH), ylim=(-2, 3), xticks=(-3, 0, 3), yticks=(-2, -1, 0, 1, 2, 3))
        axis.tick_params(labelsize=9)
        axis.set_xlabel("x" if n >= columns * (rows - 1) else "")
        tidy(axis)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    _legend(figure, handles[2:] + handles[:2], labels[2:] + labels[:2], columns=4)
    return figure


def _cross(axis: "Axes") -> None:
    """The axes through the origin."""
    axis.axhline(0, color="0.6", linewidth=0.7)
    axis.axvline(0, color="0.6", linewidth=0.7)


def _legend(figure: "Figure", handles: list[Any], labels: list[str], columns: int) -> None:
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=10, frameon=False)


# Output activations

EPSILON = 1e-7
"""Published code computes ln(eps + (1 - 2 eps) F(x))."""

PIXELS, FOREGROUND = 1000, 100
"""The image of the Dice panel: one wrong pixel among pixels that are right with p = 0.99 or 0.01."""


@dataclass(frozen=True)
class Line:
    """One output activation, and how its line looks in every panel."""

    entry: "OutputActivation"
    colour: str
    style: str

    def phi(self, x: "torch.Tensor") -> "torch.Tensor":
        assert self.entry.log_odds is not None
        return self.entry.log_odds(x)

    def probability(self, x: "torch.Tensor") -> "torch.Tensor":
        return self.phi(x).sigmoid()

    def loss_with_epsilon(self, x: "torch.Tensor") -> "torch.Tensor":
        """-ln(eps + (1 - 2 eps) F(x)), as published code has it."""
        return -(EPSILON + (1 - 2 * EPSILON) * self.probability(x)).log()

    def cross_entropy_slope(self, x: "torch.Tensor") -> "np.ndarray":
        """d BCE / dx of foreground pixels with logits x, in the precision of x."""
        import torch

        from segexp.losses.pixelwise import ce

        truth = torch.ones(len(x), 1, 1, dtype=torch.long)
        return self._gradient(x.view(-1, 1, 1, 1), lambda prediction: ce(prediction, truth) * len(x))

    def dice_slope(self, x: "torch.Tensor") -> "np.ndarray":
        """d Dice / dx of one foreground pixel with logit x, all other pixels of its image being right."""
        import torch

        from segexp.activations.head import logit_of
        from segexp.losses.region import dice

        target = torch.zeros(len(x), 1, PIXELS, dtype=torch.long)
        target[..., :FOREGROUND] = 1
        right = logit_of(self.entry, torch.logit(torch.tensor([0.99, 0.01], dtype=torch.float64))).float()
        logits = torch.where(target == 1, right[0], right[1]).unsqueeze(1)
        logits[:, 0, 0, 0] = x
        return self._gradient(logits, lambda p: dice(p, target, reduction="image") * len(x))

    def _gradient(self, logits: "torch.Tensor", loss: Callable[["Prediction"], "torch.Tensor"]) -> "np.ndarray":
        """By each foreground logit."""
        from segexp.activations.head import make_head

        head = make_head(self.entry, "binary")
        return with_slope(lambda leaf: loss(head(leaf)), logits)[1][:, 0, 0, 0]

    def draw(self, axis: "Axes", x: Any, y: Any, **how: Any) -> None:
        look: dict[str, Any] = {"color": self.colour, "linestyle": self.style, "linewidth": 1.6}
        axis.plot(x, y, **(look | {"label": self.entry.name} | how))


def output_figure(names: Sequence[str]) -> "Figure":
    """Six panels with a line per activation. Raises UsageError for what is unknown or has no curve."""
    import torch

    lines = [Line(_entry(name), *look(n)) for n, name in enumerate(dict.fromkeys(names))]
    figure = new_figure(12.5, 8.2)
    axes = figure.subplots(2, 3)
    probability, slope, tail, cross_entropy, one_pixel, epsilon = axes.flat
    near = torch.linspace(-6, 6, 1201, dtype=torch.float64)
    fine = torch.linspace(-6, 6, 2401, dtype=torch.float64)
    left = torch.linspace(-20, 4, 1201, dtype=torch.float64)
    wrong = torch.logspace(-1, 4, 501)
    for line in lines:
        line.draw(probability, near, line.probability(near))
        line.draw(slope, fine, with_slope(line.probability, fine)[1])
        line.draw(tail, left, torch.nn.functional.logsigmoid(line.phi(left)))
        exact = size_of(line.cross_entropy_slope(-wrong))
        line.draw(cross_entropy, wrong, exact)
        line.draw(one_pixel, wrong[::4], size_of(line.dice_slope(-wrong[::4])))
        line.draw(epsilon, wrong, exact, linewidth=4.0, alpha=0.25, linestyle="-", label="_stable")
        gradient = with_slope(line.loss_with_epsilon, -wrong)[1]
        line.draw(epsilon, wrong, size_of(gradient), linewidth=1.3, label="_epsilon")
        dead = (gradient == 0).nonzero()[0]
        if len(dead):
            last = max(abs(float(gradient[dead[0] - 1])), 1e-12)
            epsilon.plot(wrong[dead[0]], last, "x", color=line.colour, markersize=7)
    probability.set(title="probability", xlabel="logit x", ylabel="p = F(x)", xlim=(-6, 6), ylim=(-0.02, 1.02))
    slope.set(title="slope", xlabel="logit x", ylabel="dF/dx", xlim=(-6, 6))
    slope.set_ylim(bottom=0)
    tail.set(title="tail", xlabel="logit x", ylabel="ln p", xlim=(-20, 4), ylim=(-30, 1))
    _log_log(cross_entropy, "cross-entropy: pull on a wrong pixel", "|d BCE / dx|", 1e-5, 1e5)
    _log_log(one_pixel, f"Dice: pull on one wrong pixel of {FOREGROUND}", "|d Dice / dx|", 1e-12, 1e-1)
    _log_log(epsilon, "exact (broad), and -ln(1e-7 + F) (thin)", "|d BCE / dx|", 1e-12, 1e5)
    box = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
    note = "x: from here on exactly 0 in float32"
    epsilon.text(0.02, 0.03, note, transform=epsilon.transAxes, fontsize=8.5, bbox=box)
    for axis in axes.flat:
        tidy(axis)
    handles, labels = probability.get_legend_handles_labels()
    _legend(figure, handles, labels, columns=min(len(labels), 6))
    return figure


def _entry(name: str) -> "OutputActivation":
    from segexp.activations.output import OUTPUT_ACTIVATIONS
    from segexp.config import alias_target

    entry = OUTPUT_ACTIVATIONS[alias_target("activation", name)[0]]
    if entry.log_odds is None:
        raise UsageError(f"{name} gives plain values: there is no probability to draw")
    if entry.per_batch:
        raise UsageError(f"{name} depends on the whole batch: it has no curve of its own")
    if "binary" not in entry.modes:
        raise UsageError(f"{name} is defined over exclusive classes: it has no curve of one logit")
    return entry


def size_of(gradient: "np.ndarray") -> "np.ndarray":
    """|gradient| for a log axis: NaN, which is not drawn, where it is 0."""
    import numpy as np

    size: np.ndarray = np.abs(gradient.astype(np.float64))
    return np.where(size > 0, size, math.nan)


def _log_log(axis: "Axes", title: str, ylabel: str, bottom: float, top: float) -> None:
    axis.set(title=title, xlabel="how wrong the pixel is: -x, with y = 1", ylabel=ylabel)
    axis.set(xscale="log", yscale="log", xlim=(0.1, 1e4), ylim=(bottom, top))
