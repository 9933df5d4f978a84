"""What all figures share: colours and line styles, the canvas, the grid."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette, told apart with any colour vision; line styles tell further ones apart."""

STYLES = ("-", "--", ":")


def look(n: int) -> tuple[str, str]:
    """Colour and style of the nth line."""
    return COLOURS[n % len(COLOURS)], STYLES[n // len(COLOURS) % len(STYLES)]


def new_figure(width: float, height: float) -> Any:
    """A figure of so many inches that no window knows of."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def tidy(axis: "Axes") -> None:
    """A light grid, and no frame above and to the right."""
    axis.grid(color="0.9", linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)
