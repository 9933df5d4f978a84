"""diagnostics.png: what the hidden activations of one run do, along the depth of the network."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segexp.drawing import BLUE, GREY, ORANGE, image_bytes, new_figure, tidy
from segexp.records import write_atomic
from segexp.training.diagnostics import DEAD_WARNING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    Rows = Sequence[Mapping[str, Any]]

PANELS = (
    ("share of dead units", (("dead_output", "output 0", "-"), ("dead_gradient", "gradient 0", ":"))),
    ("share of saturated inputs", (("saturated", "", "-"),)),
    ("gradient norm of the layer before", (("grad_norm", "", "-"),)),
)

LOOKS = (("first", GREY, "s", 4), ("last", ORANGE, "^", 4), ("val", BLUE, "o", 5))
"""Looks that are drawn, their colours, markers and sizes."""


def draw_diagnostics(path: Path, rows: "Rows") -> None:
    """Draw dead and saturated shares and gradient norms over depth: first and last look in training, and validation.

    rows: those of diagnostics.csv.
    """
    from matplotlib.ticker import StrMethodFormatter

    looks = _looks(rows)
    # Places given by hand: to have them found takes longer than to draw.
    figure = new_figure(9, 8, dpi=110, layout=None)
    axes = figure.subplots(len(PANELS), 1, sharex=True)
    figure.subplots_adjust(left=0.09, right=0.985, top=0.92, bottom=0.065, hspace=0.08)
    for axis, (label, lines) in zip(axes, PANELS, strict=True):
        for column, what, style in lines:
            for name, colour, marker, size in LOOKS:
                if name not in looks:
                    continue
                title, found = looks[name]
                depth = [row["depth"] for row in found]
                values = [row[column] for row in found]
                text = f"{title}, {what}" if what else title
                hollow = {"markerfacecolor": "none"} if style == ":" else {}
                axis.plot(
                    depth, values, style, color=colour, marker=marker, markersize=size, lw=1.3, label=text, **hollow
                )
        axis.set_ylabel(label)
        tidy(axis)
        _shade_decoder(axis, rows)
    for axis in axes[:2]:
        axis.set_ylim(-0.03, 1.03)
    axes[0].axhline(DEAD_WARNING, color="0.5", linewidth=0.8, linestyle="--")
    axes[0].text(1, DEAD_WARNING + 0.02, "a warning above", color="0.35", fontsize=8)
    axes[0].legend(fontsize=8, loc="upper center", ncols=3, bbox_to_anchor=(0.5, 1.25), frameon=False)
    if any(row["grad_norm"] > 0 for row in rows if not math.isnan(row["grad_norm"])):
        axes[2].set_yscale("log")
        axes[2].minorticks_off()
        # Plain numbers: 10 to the power of would be set by a parser that takes its time.
        axes[2].yaxis.set_major_formatter(StrMethodFormatter("{x:.0e}"))
    axes[2].set_xlabel("depth: number of the call site in the forward pass (shaded: decoder)")
    write_atomic(path, image_bytes(figure, "png"))


def _looks(rows: "Rows") -> "dict[str, tuple[str, Rows]]":
    """name -> (what the legend says, rows of that look)."""
    looks: dict[str, tuple[str, Rows]] = {}
    epochs = sorted({row["epoch"] for row in rows if row["probe"] == "train"})
    for name, epoch in [("first", epochs[0])] * bool(epochs) + [("last", epochs[-1])] * (len(epochs) > 1):
        found = [row for row in rows if row["probe"] == "train" and row["epoch"] == epoch]
        looks[name] = (f"training, epoch {epoch}", found)
    val = [row for row in rows if row["probe"] == "val"]
    if val:
        looks["val"] = (f"validation, weights of epoch {val[0]['epoch']}", val)
    return looks


def _shade_decoder(axis: "Axes", rows: "Rows") -> None:
    decoder = [row["depth"] for row in rows if row["part"] == "decoder"]
    if decoder:
        axis.axvspan(min(decoder) - 0.5, max(decoder) + 0.5, color="0.96", zorder=0)
