"""Draw docs/hidden_activations.svg, activations.svg and losses.svg: one small panel for each entry of the registries.

    python scripts/catalogue_plots.py [FOLDER]

Names stay text in the files, so that a test can read whether every entry is there.
"""

import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from segexp.activations.head import make_head
from segexp.activations.hidden import HIDDEN_ACTIVATIONS, function_names, make_hidden
from segexp.activations.output import OUTPUT_ACTIVATIONS
from segexp.commands.curves import with_slope
from segexp.losses import LOSSES, fits
from segexp.records.formatting import COLOURS, image_bytes, new_figure, tidy

GREY = "0.75"

COLUMNS = 6

X = torch.linspace(-4, 4, 201, dtype=torch.float64)

P = torch.linspace(0.005, 0.995, 100, dtype=torch.float64)

Panel = tuple[str, Callable[[Axes], None]]


def hidden_panels() -> Iterator[Panel]:
    """f (line) and f' (dashes) of every hidden activation, in evaluation mode, learned ones before training."""
    for name in function_names():
        label = f"{name} (initial)" if HIDDEN_ACTIVATIONS[name].learnable else name

        def draw(axis: Axes, name: str = name) -> None:
            f, slope = with_slope(make_hidden(name, {}).double().eval(), X)
            axis.plot(X, X.relu(), color=GREY, linewidth=2.6)
            axis.plot(X, f, color=COLOURS[0], linewidth=1.5)
            axis.plot(X, _with_gaps(slope), color=COLOURS[1], linewidth=1.3, linestyle=(0, (3, 1.2)))
            axis.set(xlim=(-4, 4), ylim=(-2, 3), xticks=(-3, 0, 3), yticks=(-2, 0, 2))

        yield label, draw


def _with_gaps(slope: np.ndarray) -> np.ndarray:
    """A derivative that jumps is no line there."""
    return np.where(np.abs(np.diff(slope, append=slope[-1])) > 0.15, math.nan, slope)


def output_panels() -> Iterator[Panel]:
    """F (line) and F' (dashes) of every output activation; over three classes where it has no binary form."""
    for name, entry in OUTPUT_ACTIVATIONS.items():

        def draw(axis: Axes, entry: Any = entry) -> None:
            one_logit = "binary" in getattr(entry, "modes", ("binary",))
            others = [] if one_logit else [torch.zeros(len(X), 1, 1, dtype=X.dtype)] * 2

            def probability(x: torch.Tensor) -> torch.Tensor:
                logits = torch.stack([*others, x.view(-1, 1, 1)], dim=1)
                values: torch.Tensor = make_head(entry, "binary" if one_logit else "softmax")(logits).values_NKHW
                return values[:, -1].flatten()

            p, slope = with_slope(probability, X)
            axis.plot(X, X.sigmoid(), color=GREY, linewidth=2.6)
            axis.plot(X, p, color=COLOURS[0], linewidth=1.5)
            if not entry.per_batch:
                axis.plot(X, _with_gaps(slope), color=COLOURS[1], linewidth=1.3, linestyle=(0, (3, 1.2)))
            axis.set(xlim=(-4, 4), ylim=(-0.05, 1.05), xticks=(-3, 0, 3), yticks=(0, 0.5, 1))

        yield name, draw


def loss_panels() -> Iterator[Panel]:
    """The loss of an image with a square object: p on the object and 1 - p elsewhere, under a sigmoid head."""
    target = torch.zeros(1, 16, 16, dtype=torch.long)
    target[:, 4:11, 5:12] = 1
    sigmoid = OUTPUT_ACTIVATIONS["sigmoid"]
    head = make_head(sigmoid, "binary")
    for name, entry in LOSSES.items():
        if name == "sum" or not fits(sigmoid, entry, "binary"):
            continue

        def draw(axis: Axes, entry: Any = entry) -> None:
            values = []
            for x in torch.logit(P):
                logits = torch.where(target == 1, x, -x).unsqueeze(1).double()
                values.append(float(entry.function(head(logits), target)))
            axis.plot(P, values, color=COLOURS[0], linewidth=1.5)
            low, high = min(values), min(max(values), 3.0)
            margin = 0.05 * max(high - low, 0.1)
            axis.set(xlim=(0, 1), ylim=(low - margin, high + margin), xticks=(0, 0.5, 1))

        yield name, draw


def drawn(panels: list[Panel], xlabel: str, ylabel: str, share_y: bool) -> Figure:
    """A grid of panels with one label for all axes of each direction."""
    rows = math.ceil(len(panels) / COLUMNS)
    figure = new_figure(1.75 * COLUMNS, 1.55 * rows + 0.4)
    axes = figure.subplots(rows, COLUMNS, sharex=True, sharey=share_y, squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis, (title, draw) in zip(axes.flat, panels, strict=False):
        draw(axis)
        axis.set_title(title, fontsize=9)
        axis.tick_params(labelsize=8)
        tidy(axis)
    for axis in axes.flat[len(panels) - COLUMNS : len(panels)]:
        axis.tick_params(labelbottom=True)
    figure.supxlabel(xlabel, fontsize=10)
    figure.supylabel(ylabel, fontsize=10)
    return figure


def main() -> None:
    """Write the three files."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent.parent / "docs"
    figures = {
        "hidden_activations": (hidden_panels(), "x", "f(x), line; f'(x), dashes; relu, grey", True),
        "activations": (output_panels(), "logit x", "p = F(x), line; F'(x), dashes; sigmoid, grey", True),
        "losses": (loss_panels(), "probability of the right class at every pixel", "loss", False),
    }
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "segexp"}):
        for name, (panels, xlabel, ylabel, share_y) in figures.items():
            figure = drawn(list(panels), xlabel, ylabel, share_y)
            (folder / f"{name}.svg").write_bytes(image_bytes(figure, "svg"))


if __name__ == "__main__":
    main()
